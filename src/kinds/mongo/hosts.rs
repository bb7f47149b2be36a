//! The servers of a MongoDB: named in the URI, or found in the DNS under the name in the URI.

use std::future::IntoFuture;

use mongodb::error::Error as DriverError;
use mongodb::options::{ClientOptions, ConnectionString, HostInfo, ServerAddress};

use crate::base::error::Error;
use crate::base::runtime::park_on;
use crate::base::secret::Secret;
use crate::kinds::mongo::uri::{Uri, is_encoded, without_password};
use crate::net::tls;
use crate::net::url::{LOGIN, host_port, one_reading};

/// The servers, known by their addresses or by a name in the DNS.
#[derive(Debug)]
pub(super) enum Hosts {
    Known(Box<ClientOptions>),
    /// The DNS knows the servers under the name `host`.
    Srv {
        uri: Secret,
        host: String,
        database: Option<String>,
    },
}

/// Parses a URI as the driver reads it, with several hosts. Does no I/O.
pub(super) fn parse(key: &str, uri: &Secret) -> Result<Hosts, Error> {
    let text = one_reading(key, uri.expose())?;
    if !text.rsplit_once('@').is_none_or(|(login, _)| is_encoded(login)) {
        return Err(Error::config(key, format!("has a `%` that encodes nothing; expected mongodb://{LOGIN}")));
    }
    if Uri::new(text).is_some_and(|uri| uri.option("waitQueueTimeoutMS").is_some()) {
        return Err(Error::config(
            key,
            "sets waitQueueTimeoutMS, which the driver ignores: put a timeout around the operation instead",
        ));
    }
    if cfg!(not(feature = "tls")) && text.starts_with("mongodb+srv://") {
        return Err(tls::missing(key));
    }
    let read = |uri: &str| {
        let parsed = ConnectionString::parse(uri)?;
        match parsed.host_info {
            HostInfo::DnsRecord(host) => Ok(Hosts::Srv { uri: uri.into(), host, database: parsed.default_database }),
            _ => park_on(ClientOptions::parse(uri).into_future()).map(|options| Hosts::Known(options.into())),
        }
    };
    read(text).map_err(|_may_quote_the_password: DriverError| {
        let problem = match read(&without_password(text)) {
            Err(error) => error.kind.to_string(),
            Ok(_) => "has a user, password, host or port that cannot be used".to_owned(),
        };
        Error::config(key, format!("{problem}; expected mongodb://{LOGIN}"))
    })
}

/// Asks the DNS for the hosts, and answers the options of a URI that names the hosts itself. With options that name the
/// DNS the driver would go on asking, in a task that sleeps for a minute and that its `shutdown` waits for.
pub(super) async fn resolve(uri: &str) -> Result<ClientOptions, DriverError> {
    let found = ClientOptions::parse(uri).await?;
    let known: Vec<_> = found.hosts.iter().map(ServerAddress::to_string).collect();
    let with_hosts = Uri::new(uri).map(|mut uri| {
        uri.set_hosts(known.join(","));
        uri.show()
    });
    let mut options = ClientOptions::parse(with_hosts.as_deref().unwrap_or(uri)).await?;
    // The DNS or the scheme may have set these options.
    options.tls = found.tls;
    options.credential = found.credential;
    options.repl_set_name = found.repl_set_name;
    options.load_balanced = found.load_balanced;
    Ok(options)
}

/// The addresses as an endpoint shows them.
pub(super) fn shown(hosts: &[ServerAddress]) -> String {
    let hosts = hosts.iter().map(|address| match address {
        ServerAddress::Tcp { host, port } => host_port(host.trim_matches(['[', ']']), port.unwrap_or(27017)),
        other => other.to_string(),
    });
    hosts.collect::<Vec<_>>().join(",")
}
