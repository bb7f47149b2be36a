//! The four drivers by themselves, as their users use them, and the URLs of the servers.

use std::env;

use clickhouse::Client as ClickHouse;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use mongodb::Client as Mongo;
use mongodb::bson::doc;
use percent_encoding::percent_decode_str;
use redis::aio::MultiplexedConnection;
use services::{Kind, Proxy};
use url::Url;

use crate::session::Session;

/// The URLs of the four servers.
#[derive(Clone)]
pub(crate) struct Urls {
    pub(crate) mongo: String,
    pub(crate) rabbitmq: String,
    pub(crate) clickhouse: String,
    pub(crate) redis: String,
}

impl Urls {
    fn new(url: impl Fn(Kind) -> String) -> Self {
        Urls {
            mongo: url(Kind::Mongo),
            rabbitmq: url(Kind::RabbitMq),
            clickhouse: url(Kind::ClickHouse),
            redis: url(Kind::Redis),
        }
    }

    pub(crate) fn of(session: &Session) -> Self {
        Urls::new(|kind| session.server(kind).url().to_owned())
    }

    /// The URLs of proxies in front of the servers. The proxies count the connections.
    pub(crate) fn counted(session: &Session) -> (Self, Vec<Proxy>) {
        let proxies = Kind::ALL.map(|kind| Proxy::start(session.server(kind).port()).expect("a proxy").unrecorded());
        // A client that knows the replica set would connect to its members' own addresses, and so past the proxy.
        let url = |kind: Kind| {
            proxies[kind as usize].url(&session.server(kind)).replacen("replicaSet=rs0", "directConnection=true", 1)
        };
        (Urls::new(url), proxies.into())
    }

    /// The URLs from the variables of this process.
    pub(crate) fn from_environment() -> Self {
        Urls::new(|kind| env::var(kind.url_variable()).expect("a URL"))
    }

    /// The variables and their values.
    pub(crate) fn variables(&self) -> [(&'static str, &str); 4] {
        [
            (Kind::Mongo, &self.mongo),
            (Kind::RabbitMq, &self.rabbitmq),
            (Kind::ClickHouse, &self.clickhouse),
            (Kind::Redis, &self.redis),
        ]
        .map(|(kind, url)| (kind.url_variable(), &**url))
    }
}

/// A connected client. The server's answer shows that it is.
pub(crate) async fn mongo(url: &str) -> Mongo {
    let client = Mongo::with_uri_str(url).await.expect("a client");
    client.database("admin").run_command(doc! { "ping": 1 }).await.expect("an answer");
    client
}

pub(crate) async fn rabbitmq(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default()).await.expect("a connection")
}

/// A channel in confirm mode.
pub(crate) async fn channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel
}

/// Publishes a message to this queue and awaits its confirm.
pub(crate) async fn publish(channel: &Channel, queue: &str, message: &[u8]) {
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let published = channel.basic_publish("".into(), queue.into(), options, message, properties);
    assert!(published.await.expect("sent").await.expect("an answer").is_ack());
}

pub(crate) async fn close(channel: Channel, connection: Connection) {
    channel.close(200, "OK".into()).await.expect("a goodbye");
    connection.close(200, "OK".into()).await.expect("a goodbye");
}

/// Configures the client from the URL. The crate by itself does not read a login from the URL, and asks the server
/// nothing before the first query.
pub(crate) fn clickhouse(url: &str, client: ClickHouse) -> ClickHouse {
    let url = Url::parse(url).expect("a URL");
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().expect("UTF-8").into_owned();
    client
        .with_url(format!("http://{}:{}", url.host_str().expect("a host"), url.port().expect("a port")))
        .with_user(decoded(url.username()))
        .with_password(decoded(url.password().unwrap_or_default()))
        .with_database(decoded(url.path().trim_start_matches('/')))
        // The formats with types need a newer server than the one here. The pool finds that out by itself.
        .with_validation(false)
}

pub(crate) async fn clickhouse_connected(url: &str) -> ClickHouse {
    let client = clickhouse(url, ClickHouse::default());
    client.query("SELECT 1").execute().await.expect("an answer");
    client
}

/// A connection without a response timeout, because the pool has none either.
pub(crate) async fn redis(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("a client");
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.expect("a connection")
}
