//! The servers that answer at a port, by their first words.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::loaded::Kind;

/// The ports at which servers of the kinds listen unless they are told otherwise.
pub(crate) const WELL_KNOWN: [u16; 10] = [27017, 5672, 5671, 15672, 8123, 8443, 9000, 6379, 5432, 3306];

/// How long a server may take to take a connection and to answer. It only explains a failure, so it may not make the
/// failure much later.
const LIMIT: Duration = Duration::from_millis(500);

/// The protocol of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    Mongo,
    Amqp,
    Management,
    ClickHouseHttp,
    ClickHouseNative,
    Redis,
    Postgres,
    MySql,
    Tls,
    Http,
}

impl Speaker {
    /// Whether a resource of this kind can talk to it.
    pub(crate) fn is_for(self, kind: Kind) -> bool {
        matches!(
            (self, kind),
            (Speaker::Mongo, Kind::Mongo)
                | (Speaker::Amqp, Kind::RabbitMq)
                | (Speaker::ClickHouseHttp, Kind::ClickHouse)
                | (Speaker::Redis, Kind::Redis)
                | (Speaker::Postgres, Kind::Postgres)
                | (Speaker::MySql, Kind::MySql)
                | (Speaker::Http | Speaker::Management | Speaker::ClickHouseHttp, Kind::Http | Kind::Llm)
                | (Speaker::Http, Kind::Chroma | Kind::Milvus)
        )
    }

    /// The name for users.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Speaker::Mongo => "MongoDB",
            Speaker::Amqp => "RabbitMQ's AMQP",
            Speaker::Management => "the management page of RabbitMQ",
            Speaker::ClickHouseHttp => "the HTTP port of ClickHouse",
            Speaker::ClickHouseNative => "the native port of ClickHouse",
            Speaker::Redis => "Redis",
            Speaker::Postgres => "PostgreSQL",
            Speaker::MySql => "MySQL",
            Speaker::Tls => "a server that speaks TLS",
            Speaker::Http => "a web server",
        }
    }
}

/// The server that answers there. `None` if none does, or its protocol is none of these.
///
/// # Cancel safety
/// Cancel-safe.
pub(crate) async fn speaker(host: &str, port: u16) -> Option<Speaker> {
    // Many servers answer a line of HTTP by words of their own, and only PostgreSQL wants to be asked in its way.
    let page = ask(host, port, b"GET / HTTP/1.0\r\n\r\n").await?;
    if let Some(speaker) = recognised(&page) {
        return Some(speaker);
    }
    // The request whether the server speaks TLS, to which it answers one letter.
    let letter = ask(host, port, &[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    matches!(&letter[..], b"N" | b"S").then_some(Speaker::Postgres)
}

/// The beginning of the answer, which is empty if the server hangs up or keeps silent. `None` if nobody listens.
async fn ask(host: &str, port: u16, question: &[u8]) -> Option<Vec<u8>> {
    let mut stream = timeout(LIMIT, TcpStream::connect((host, port))).await.ok()?.ok()?;
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(question).await?;
        (&mut stream).take(2048).read_to_end(&mut answer).await.map(drop)
    };
    // A server may keep the connection open after its answer, which is read by then.
    let _: Result<io::Result<()>, _> = timeout(LIMIT, exchange).await;
    Some(answer)
}

/// The server that answers a line of HTTP so.
fn recognised(answer: &[u8]) -> Option<Speaker> {
    let text = String::from_utf8_lossy(answer);
    let lower = text.to_lowercase();
    match answer {
        [b'A', b'M', b'Q', b'P', ..] => Some(Speaker::Amqp),
        [b'-', ..] => Some(Speaker::Redis),
        [21, 3, ..] => Some(Speaker::Tls),
        // MySQL greets first, by version 10 of its protocol, or refuses.
        [_, _, 0, 0, 10 | 255, ..] => Some(Speaker::MySql),
        _ if !lower.starts_with("http/") => None,
        _ if lower.contains("clickhouse-client program") => Some(Speaker::ClickHouseNative),
        _ if lower.contains("mongodb") => Some(Speaker::Mongo),
        _ if lower.contains("rabbitmq") => Some(Speaker::Management),
        _ if lower.contains("clickhouse") || lower.ends_with("ok.\n") => Some(Speaker::ClickHouseHttp),
        _ if lower.contains("https") => Some(Speaker::Tls),
        _ => Some(Speaker::Http),
    }
}
