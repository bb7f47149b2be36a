//! Several servers of one PostgreSQL, and the one among them that a connection is opened to.
//!
//! Every opening asks a server for its role, since a failover changes that. It begins with the server that fitted last.
//! Orderings: relaxed, since the index stands for itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::base::error::{Error, Failure};
use crate::base::runtime::within;
use crate::kinds::postgres::config::PostgresConfig;
use crate::kinds::sql::SqlConfig as _;
use crate::net::url::{host, host_port, name_and_port, port};

/// The role that a server must have for a connection to be opened to it. The names are those of libpq's
/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PostgresTarget {
    /// Any role. No server is asked for it.
    Any,
    /// The primary, which takes writes.
    Primary,
    /// A standby, which takes reads only.
    Standby,
    /// A standby, or the primary if no standby answers.
    PreferStandby,
}

impl PostgresTarget {
    /// The target of this name of libpq's. `None` for an unknown one.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "any" => PostgresTarget::Any,
            "primary" | "read-write" => PostgresTarget::Primary,
            "standby" | "read-only" => PostgresTarget::Standby,
            "prefer-standby" => PostgresTarget::PreferStandby,
            _ => return None,
        })
    }

    fn fits(self, is_standby: bool) -> bool {
        match self {
            PostgresTarget::Any => true,
            PostgresTarget::Primary => !is_standby,
            PostgresTarget::Standby | PostgresTarget::PreferStandby => is_standby,
        }
    }
}

impl fmt::Display for PostgresTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PostgresTarget::Any => "server",
            PostgresTarget::Primary => "primary",
            PostgresTarget::Standby | PostgresTarget::PreferStandby => "standby",
        })
    }
}

/// The index of the server that fitted last. Two values are equal, since none is an option of its configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct LastServer(Arc<AtomicUsize>);

impl LastServer {
    /// The one of these servers that fitted last. There is at least one, that of `host`.
    pub(super) fn of(&self, mut servers: Vec<PostgresServer>) -> PostgresServer {
        servers.swap_remove(self.0.load(Relaxed) % servers.len())
    }
}

impl PartialEq for LastServer {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One of the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostgresServer {
    pub(super) host: String,
    pub(super) port: u16,
}

impl PostgresServer {
    /// Parses `host` or `host:port`.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, Error> {
        let (name, number) = name_and_port(text.trim());
        let port = number.map_or(Ok(5432), |number| port(key, number))?;
        Ok(PostgresServer { host: host(key, name)?.to_owned(), port })
    }
}

impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_port(&self.host, self.port))
    }
}

/// The URL with the first of its hosts, and the others.
pub(super) fn split(url: &str) -> (String, Vec<String>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), Vec::new()) };
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let mut hosts = hosts.split(',').map(str::to_owned);
    let first = hosts.next().unwrap_or_default();
    (format!("{scheme}://{login}{first}{behind}"), hosts.collect())
}

/// Opens a connection to the first server that fits the target. Each one has an equal part of the limit to answer in.
///
/// # Errors
/// None fits. A server that is full may be the one that is sought, and it lives. Otherwise one that is silent may be that.
/// Trouble of this process proves nothing. If all have answered, the failure says so.
///
/// # Cancel safety
/// Cancelling closes the connection.
pub(super) async fn open(
    config: &PostgresConfig,
    options: &PgConnectOptions,
    limit: Duration,
) -> Result<PgConnection, Failure> {
    let (servers, target) = (config.servers(), config.sought());
    if target == PostgresTarget::Any && servers.len() == 1 {
        return options.connect().await.map_err(|error| config.connect_failure(error));
    }
    let count = u32::try_from(servers.len()).unwrap_or(u32::MAX);
    let (limit, first) = (limit / count, config.last.0.load(Relaxed));
    let (mut failures, mut spare) = (Vec::new(), None);
    for at in (0..servers.len()).map(|step| (first + step) % servers.len()) {
        let server = &servers[at];
        let opened = within(limit, ask(config, options.clone().host(&server.host).port(server.port), target)).await;
        let failure = match opened {
            Ok(Ok(RoleAnswer::Fits(connection))) => {
                config.last.0.store(at, Relaxed);
                return Ok(connection);
            }
            Ok(Ok(RoleAnswer::Primary(connection))) => {
                spare = spare.or(Some((connection, at)));
                continue;
            }
            Ok(Ok(RoleAnswer::Another(role))) => Failure::refused(format!("it is {role}")),
            Ok(Err(failure)) => failure,
            Err(_elapsed) => Failure::transient(format!("no answer within {limit:?}")),
        };
        failures.push((server, failure));
    }
    match spare {
        Some((connection, at)) => {
            config.last.0.store(at, Relaxed);
            Ok(connection)
        }
        None => Err(none_fits(target, failures)),
    }
}

/// The connection to a server that was asked for its role.
enum RoleAnswer {
    /// Its role is the one that is wanted.
    Fits(PgConnection),
    /// It is the primary, where a standby is preferred.
    Primary(PgConnection),
    /// It has this role, which is of no use.
    Another(&'static str),
}

async fn ask(
    config: &PostgresConfig,
    options: PgConnectOptions,
    target: PostgresTarget,
) -> Result<RoleAnswer, Failure> {
    let mut connection = options.connect().await.map_err(|error| config.connect_failure(error))?;
    if target == PostgresTarget::Any {
        return Ok(RoleAnswer::Fits(connection));
    }
    // Not prepared, since a proxy such as PgBouncer may give the next statement to another server process.
    let role = sqlx::query_scalar("SELECT pg_is_in_recovery()").persistent(false);
    let is_standby: bool = role.fetch_one(&mut connection).await.map_err(|error| config.failure(error))?;
    if target.fits(is_standby) {
        return Ok(RoleAnswer::Fits(connection));
    }
    if target == PostgresTarget::PreferStandby {
        return Ok(RoleAnswer::Primary(connection));
    }
    // It has answered, so that a goodbye that fails tells nothing.
    let _goodbye = connection.close().await;
    Ok(RoleAnswer::Another(if is_standby { "a standby" } else { "the primary" }))
}

fn none_fits(target: PostgresTarget, failures: Vec<(&PostgresServer, Failure)>) -> Failure {
    let is_unasked = failures.iter().any(|(_, failure)| failure.is_unasked());
    let is_silent = failures.iter().any(|(_, failure)| failure.is_silence());
    let is_permanent = failures.iter().all(|(_, failure)| failure.is_permanent());
    let is_full = failures.iter().any(|(_, failure)| failure.is_full);
    let told: Vec<_> = failures.into_iter().map(|(server, failure)| format!("{server}: {failure}")).collect();
    let text = format!("no {target} can be reached: {}", told.join("; "));
    let failure = match () {
        () if is_full => Failure::refused(text),
        () if is_unasked => Failure::unasked(text),
        () if is_silent => Failure::transient(text),
        () => Failure::refused(text),
    };
    Failure { is_full, ..failure.with_permanent(is_permanent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_have_several_hosts() {
        let (url, further) = split("postgres://me:a,b%40@h1:5432,[::1]:7,h3/d?x=1,2");
        assert_eq!((&*url, further), ("postgres://me:a,b%40@h1:5432/d?x=1,2", vec!["[::1]:7".into(), "h3".into()]));
        for alone in ["postgres://h/d,e", "postgres://h", "h1,h2", ""] {
            assert_eq!(split(alone), (alone.to_owned(), Vec::new()));
        }
        let server = |text| PostgresServer::parse("k", text).map(|server| server.to_string()).ok();
        assert_eq!(server("h3").as_deref(), Some("h3:5432"));
        assert_eq!(server(" [::1]:7 ").as_deref(), Some("[::1]:7"));
        assert_eq!(server("[::1]").as_deref(), Some("[::1]:5432"));
        assert!(server("h:0").is_none() && server("").is_none() && server("h1:x").is_none());
    }

    #[test]
    fn a_silent_server_may_be_the_one_that_is_sought() {
        let servers = ["h1", "h2"].map(|host| PostgresServer::parse("k", host).unwrap());
        let [one, two] = &servers;
        let standby = || Failure::refused("it is a standby");
        let all = none_fits(PostgresTarget::Primary, vec![(one, standby()), (two, standby())]);
        assert!(!all.is_silence() && !all.is_unasked() && !all.is_permanent());
        assert!(all.to_string().contains("no primary can be reached: h1:5432: it is a standby; h2:5432"), "{all}");
        let silent = none_fits(PostgresTarget::Primary, vec![(one, standby()), (two, Failure::transient("refused"))]);
        assert!(silent.is_silence(), "{silent}");
        let dead = || Failure::transient("refused");
        let full =
            none_fits(PostgresTarget::Primary, vec![(one, Failure { is_full: true, ..standby() }), (two, dead())]);
        assert!(full.is_full && !full.is_silence() && !full.is_unasked(), "{full}");
        let own = none_fits(PostgresTarget::Primary, vec![(one, Failure::unasked("no descriptors")), (two, dead())]);
        assert!(own.is_unasked(), "{own}");
        let login = || Failure::permanent("wrong password");
        assert!(none_fits(PostgresTarget::Primary, vec![(one, login()), (two, login())]).is_permanent());
        assert!(!none_fits(PostgresTarget::Primary, vec![(one, login()), (two, standby())]).is_permanent());
    }
}
