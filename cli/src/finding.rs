//! The usual mistakes behind a failure, with their remedies. Errors of the pool say much already, and a finding adds
//! only the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use resource_pool::adapter::addresses;
use resource_pool::config::{Config, MongoConfig};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::clock;
use crate::loaded::{Kind, fields, where_to_set};
use crate::port::{Speaker, WELL_KNOWN, speaker};

/// A mistake and its remedy.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Finding {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { problem: problem.into(), remedy: remedy.into() }
    }

    /// The finding for clocks that differ by so many milliseconds. `None` if they agree.
    pub(crate) fn of_clock(ahead: f64) -> Option<Self> {
        let side = if ahead > 0.0 { "ahead of" } else { "behind" };
        (ahead.abs() > clock::MOST.as_secs_f64() * 1e3).then(|| {
            let problem = format!("the server's clock is {:.1} s {side} ours", ahead.abs() / 1e3);
            Finding::new(problem, "let both machines keep time by NTP (`timedatectl` shows whether they do)")
        })
    }
}

/// The failed resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patient<'a> {
    pub(crate) config: &'a Config,
    pub(crate) kind: Kind,
    pub(crate) name: &'a str,
    /// Where the resource is, as the pool shows it.
    pub(crate) endpoint: &'a str,
    /// The text of its error.
    pub(crate) error: &'a str,
}

/// The findings on a failed resource. They take a second or two at most.
///
/// # Cancel safety
/// Cancel-safe.
pub(crate) async fn diagnose(patient: Patient<'_>) -> Vec<Finding> {
    let Patient { config, kind, name, endpoint, error } = patient;
    if let Some(finding) = refusal(patient) {
        return vec![finding];
    }
    let mut findings = Vec::new();
    if !is_about_address(error) {
        return findings;
    }
    // A Unix socket has a path, and no port to look at. A few servers bound the time of a diagnosis.
    let servers = addresses(endpoint).into_iter().filter(|server| !server.is_socket).take(4);
    for (host, port) in servers.map(|server| (server.host, server.port.unwrap_or(kind.port()))) {
        let answering = scan(host, port).await;
        let set = where_to_set(config, kind, name, "port");
        let at_port = answering.iter().find(|(at, _)| *at == port).map(|(_, speaker)| *speaker);
        if let Some(other) = at_port.filter(|other| !other.is_for(kind) && !is_said(error, *other)) {
            let problem = format!("port {port} of {host} is {}, not {}", other.title(), kind.title());
            findings.push(Finding::new(problem, advice(kind, other, &set)));
        }
        if at_port.is_some_and(|speaker| speaker.is_for(kind))
            && asks_for_tls(config, kind, name)
            && !error.contains("TLS")
        {
            let problem = format!("port {port} of {host} is plain, but TLS is asked for");
            let tls = where_to_set(config, kind, name, "tls");
            findings.push(Finding::new(
                problem,
                format!("take TLS out of {tls}, or set the port that speaks TLS in {set}"),
            ));
        }
        let right: Vec<u16> =
            answering.iter().filter(|(at, speaker)| *at != port && speaker.is_for(kind)).map(|(at, _)| *at).collect();
        for at in right.iter().filter(|_| at_port.is_none_or(|other| !other.is_for(kind))) {
            let problem = format!("{} answers at port {at} of {host}, not at {port}", kind.title());
            findings.push(Finding::new(problem, format!("set the port to {at} in {set}")));
        }
        let is_here = at_port.is_some() || !right.is_empty();
        if !is_here && is_local(host) && is_container(Path::new("/")) {
            let set = where_to_set(config, kind, name, "host");
            findings.push(Finding::new(
                format!("this is a container, in which {host} is the container itself"),
                format!(
                    "set the host in {set} to the name of the server's container or service, or to \
                     host.docker.internal for a server of the machine"
                ),
            ));
        }
    }
    findings
}

/// The finding on a server that answered and refused. `None` if the pool's error has the remedy, or there is none.
fn refusal(Patient { config, kind, name, error, .. }: Patient<'_>) -> Option<Finding> {
    let set = where_to_set(config, kind, name, kind.place());
    let lower = error.to_lowercase();
    match kind {
        Kind::RabbitMq if lower.contains("vhost") && lower.contains("not found") => Some(Finding::new(
            "the broker has no such virtual host",
            format!(
                "create it with `rabbitmqctl add_vhost NAME`, or correct the virtual host in {set} (`/` is %2f in a URL)"
            ),
        )),
        Kind::RabbitMq if lower.contains("vhost") && lower.contains("refused") => Some(Finding::new(
            "this user has no rights on the virtual host",
            format!(
                "give them with `rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'`, or correct the user or the virtual host in {set}"
            ),
        )),
        Kind::Postgres if lower.contains("database") && lower.contains("does not exist") => Some(Finding::new(
            "the server has no such database",
            format!("create it with `createdb NAME`, or correct the database in {set}"),
        )),
        Kind::MySql if lower.contains("unknown database") => Some(Finding::new(
            "the server has no such database",
            format!("create it by `CREATE DATABASE NAME`, or correct the database in {set}"),
        )),
        // The server tells a user without rights on every database no more than this, so that nobody learns their names.
        Kind::MySql if lower.contains("1044 (42000)") => Some(Finding::new(
            "the server has no such database, or this user has no rights on it",
            format!(
                "create it by `CREATE DATABASE NAME`, give the rights by `GRANT`, or correct the database in {set}"
            ),
        )),
        Kind::Redis if lower.contains("db index is out of range") => Some(Finding::new(
            "the server has fewer databases",
            format!("correct the database's number in {set}, or raise `databases` in redis.conf"),
        )),
        _ if ["lookup address", "name or service not known", "no such host"]
            .iter()
            .any(|words| lower.contains(words)) =>
        {
            let set = where_to_set(config, kind, name, "host");
            Some(Finding::new(
                "the host's name is not known here",
                format!("correct the host in {set}; a name of a container network is known in that network only"),
            ))
        }
        _ => None,
    }
}

/// Whether the configuration asks for TLS. A URI of MongoDB is not taken apart.
fn asks_for_tls(config: &Config, kind: Kind, name: &str) -> bool {
    let by_field = fields(config, name).is_some_and(|fields| !fields["tls"].is_null());
    let uri = config.get::<MongoConfig>(name).and_then(|mongo| mongo.uri.as_ref());
    by_field
        || kind == Kind::Mongo
            && uri.is_some_and(|uri| ["tls=true", "ssl=true", "+srv://"].iter().any(|word| uri.expose().contains(word)))
}

/// Whether the failure may be one of host and port.
fn is_about_address(error: &str) -> bool {
    let lower = error.to_lowercase();
    const WORDS: [&str; 19] = [
        "refused (os error",
        "connection refused",
        "connection reset",
        "timed out",
        "no route",
        "unreachable",
        "answers there",
        "does not speak",
        "not redis",
        "http port",
        "closed",
        "eof",
        "end of file",
        "broken pipe",
        "handshake",
        "tls",
        "no answer",
        "parsing",
        "waited",
    ];
    WORDS.iter().any(|words| lower.contains(words))
}

/// Whether the error names the other server already.
fn is_said(error: &str, other: Speaker) -> bool {
    match other {
        Speaker::Amqp => error.contains("AMQP answers"),
        Speaker::Redis => error.contains("a Redis answers"),
        Speaker::Tls => error.contains("TLS"),
        Speaker::ClickHouseNative => error.contains("clickhouse-client") || error.contains("HTTP port"),
        _ => false,
    }
}

/// The remedy for a port that is another server's.
fn advice(kind: Kind, other: Speaker, set: &str) -> String {
    match (kind, other) {
        (Kind::RabbitMq, Speaker::Management) => {
            format!("set the port of AMQP, 5672 by default, or 5671 with TLS, in {set}")
        }
        (Kind::ClickHouse, Speaker::ClickHouseNative) => format!("set the HTTP port, 8123 by default, in {set}"),
        (_, Speaker::Tls) => format!("ask for TLS in {set}, or set the port that is plain"),
        _ => format!("correct host and port in {set}; {} is at {} by default", kind.title(), kind.port()),
    }
}

/// The servers that answer at the host, at this port and at the well-known ones.
async fn scan(host: &str, port: u16) -> Vec<(u16, Speaker)> {
    let ports: BTreeSet<u16> = WELL_KNOWN.into_iter().chain([port]).collect();
    let mut asking = JoinSet::new();
    for port in ports {
        let host = host.to_owned();
        asking.spawn(async move { speaker(&host, port).await.map(|speaker| (port, speaker)) });
    }
    let mut answering: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
    answering.sort_by_key(|(port, _)| *port);
    answering
}

fn is_local(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.starts_with("127.") || host == "::1"
}

/// Whether this process runs in a container, by the marks that Docker, Podman and Kubernetes leave.
fn is_container(root: &Path) -> bool {
    let cgroup = fs::read_to_string(root.join("proc/1/cgroup")).unwrap_or_default();
    root.join(".dockerenv").exists()
        || root.join("run/.containerenv").exists()
        || ["docker", "kubepods", "containerd", "libpod", "lxc"].iter().any(|mark| cgroup.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::Finding;

    #[test]
    fn clocks_that_differ_by_seconds_are_a_finding() {
        assert_eq!(Finding::of_clock(1_900.0), None);
        let finding = Finding::of_clock(-3_600_000.0).unwrap();
        assert_eq!(finding.problem, "the server's clock is 3600.0 s behind ours");
    }
}
