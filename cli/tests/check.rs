//! The verbs that read the configuration: `check`, `config`, `wait`, and the usage of all.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{BINARY, Ran, command, finish, folder, lead, own_host, run, until};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use services::{Kind, Service, Tls, shared};

const ALL: [Kind; 6] = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis, Kind::Postgres, Kind::MySql];

/// Gives a busy machine the time to answer.
const PATIENT: [&str; 3] = ["check", "--timeout", "30s"];

/// Asserts that the output shows no part of this server's password, in whatever form.
#[track_caller]
fn shows_no_secret(ran: &Ran, secrets: &[&str]) {
    for secret in secrets {
        let encoded = secret.replace('%', "%25").replace('@', "%40").replace(':', "%3A").replace('/', "%2F");
        for secret in [*secret, &encoded] {
            assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{secret} is in {ran:?}");
        }
    }
    assert!(!ran.out.contains('\x1b') && !ran.err.contains('\x1b'), "colours in a pipe: {ran:?}");
}

/// Asserts that the one resource failed, and returns its error with its findings.
#[track_caller]
fn failed(ran: &Ran) -> (String, Vec<(String, String)>) {
    assert_eq!(ran.code, 1, "{ran:?}");
    let json = ran.json();
    assert_eq!(json["ok"], false);
    let one = &json["resources"][0];
    assert_eq!(one["verdict"], "fail", "{ran:?}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = one["findings"].as_array().expect("findings").iter();
    (text(&one["error"]), findings.map(|one| (text(&one["problem"]), text(&one["remedy"]))).collect())
}

/// Checks this URL of the kind, as JSON.
fn check(kind: Kind, url: &str) -> Ran {
    let ran = run(&[&PATIENT[..], &["--json"]].concat(), &[(kind.url_variable(), url)]);
    shows_no_secret(&ran, &[shared(kind).password()]);
    ran
}

/// The server's URL with another host and port.
fn url_at(service: &Service, host: &str, port: u16) -> String {
    let at = format!("@{}:{}", service.host(), service.port());
    let url = service.url();
    assert!(url.contains(&at), "no {at}");
    url.replace(&at, &format!("@{host}:{port}"))
}

#[test]
fn all_kinds_pass_with_their_times() {
    let urls = ALL.map(|kind| (kind.url_variable(), shared(kind).url()));
    let ran = run(&[&PATIENT[..], &["--json"]].concat(), &urls);
    shows_no_secret(&ran, &ALL.map(|kind| shared(kind).password()));
    assert_eq!((ran.code, &*ran.err), (0, ""), "{ran:?}");
    let json = ran.json();
    assert_eq!(json["ok"], true);
    let resources = json["resources"].as_array().unwrap();
    assert_eq!(resources.len(), ALL.len(), "{ran:?}");
    for one in resources {
        assert!(one["connect_ms"].as_f64().unwrap() > 0.0 && one["ping_ms"].as_f64().unwrap() > 0.0, "{one}");
        let clock = one["clock_ahead_ms"].as_f64();
        assert!(one["name"] == "rabbitmq" || clock.unwrap().abs() < 1_000.0, "{one}");
    }
    let ran = run(&PATIENT, &urls);
    shows_no_secret(&ran, &ALL.map(|kind| shared(kind).password()));
    assert_eq!(ran.code, 0);
    for kind in ALL {
        let row = ran.out.lines().find(|line| line.starts_with(kind.name())).unwrap();
        assert!(row.contains("pass") || row.contains("warn"), "{row}");
    }
}

#[test]
fn the_wrong_port_of_the_right_host_is_named_with_the_right_one() {
    let titles = ["MongoDB", "RabbitMQ", "ClickHouse", "Redis", "PostgreSQL", "MySQL"];
    let ports = [27017, 5672, 8123, 6379, 5432, 3306];
    let host = own_host();
    for (kind, port) in ALL.into_iter().zip(ports) {
        lead(&host, port, shared(kind).port());
    }
    for ((kind, title), port) in ALL.into_iter().zip(titles).zip(ports) {
        let ran = check(kind, &url_at(shared(kind), &host, 3));
        let (_, findings) = failed(&ran);
        let problem = format!("{title} answers at port {port} of {host}, not at 3");
        let remedy = format!("set the port to {port} in {}", kind.url_variable());
        assert_eq!(findings, [(problem, remedy)], "{ran:?}");
    }
}

#[test]
fn the_port_of_another_server_is_named_for_it() {
    for (kind, other, title) in [
        (Kind::RabbitMq, Kind::Redis, "Redis"),
        (Kind::Redis, Kind::Postgres, "PostgreSQL"),
        (Kind::ClickHouse, Kind::Mongo, "MongoDB"),
        (Kind::Redis, Kind::ClickHouse, "the HTTP port of ClickHouse"),
        (Kind::Postgres, Kind::RabbitMq, "RabbitMQ's AMQP"),
        (Kind::Redis, Kind::MySql, "MySQL"),
    ] {
        let host = own_host();
        lead(&host, 4444, shared(other).port());
        let ran = check(kind, &url_at(shared(kind), &host, 4444));
        let (_, findings) = failed(&ran);
        let wanted = format!("port 4444 of {host} is {title}, not ");
        let (_, remedy) =
            findings.iter().find(|(problem, _)| problem.starts_with(&wanted)).unwrap_or_else(|| panic!("{ran:?}"));
        assert!(remedy.contains(kind.url_variable()), "{ran:?}");
    }
}

#[test]
fn the_native_port_of_clickhouse_is_told_from_its_http_port() {
    let service = shared(Kind::ClickHouse);
    let host = own_host();
    lead(&host, 9001, service.clickhouse().unwrap().native_port().unwrap());
    lead(&host, 8123, service.port());
    let (error, findings) = failed(&check(Kind::ClickHouse, &url_at(service, &host, 9001)));
    assert!(error.contains("8123") && error.contains("HTTP"), "{error}");
    // The pool's error has said which port this is, so the only finding is where the right one is.
    let problem = format!("ClickHouse answers at port 8123 of {host}, not at 9001");
    assert_eq!(findings.iter().map(|(problem, _)| problem).collect::<Vec<_>>(), [&problem]);
    // The default native port is refused before anything is connected.
    let ran = run(&["check"], &[("CLICKHOUSE_URL", &url_at(service, &host, 9000))]);
    let (problem, _) = ran.two_lines();
    assert!(ran.code == 2 && problem.contains("8123"), "{ran:?}");
}

#[test]
fn tls_that_is_expected_or_not_is_told() {
    let folder = folder();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    fs::write(folder.join("ca.pem"), &certificate).unwrap();
    fs::write(folder.join("server.pem"), certificate + &key.serialize_pem()).unwrap();
    let tls = Tls { folder, asks_for_certificate: false };
    let redis = Service::start_with_tls(Kind::Redis, &tls).unwrap();
    let plain = url_at(&redis, "127.0.0.1", redis.tls_port().unwrap());
    let (error, findings) = failed(&check(Kind::Redis, &plain));
    assert!(error.contains("this port speaks TLS: use rediss://"), "{error}");
    assert!(findings.iter().all(|(problem, _)| !problem.contains("TLS")), "said twice: {findings:?}");
    let secured = redis.url().replace("redis://", "rediss://");
    let (error, findings) = failed(&check(Kind::Redis, &secured));
    let told = format!("{error} {findings:?}");
    assert!(told.contains("is plain, but TLS is asked for") || error.contains("TLS"), "{told}");
    assert!(told.contains("REDIS_URL"), "{told}");
}

#[test]
fn a_database_or_virtual_host_that_is_missing_is_told_with_the_remedy() {
    for (kind, missing, remedy) in [
        (Kind::RabbitMq, "no_such_place", "rabbitmqctl add_vhost"),
        (Kind::ClickHouse, "no_such_place", "create the database"),
        (Kind::Redis, "4444", "raise `databases`"),
        (Kind::Postgres, "no_such_place", "createdb"),
        (Kind::MySql, "no_such_place", "CREATE DATABASE"),
    ] {
        let service = shared(kind);
        let (start, _) = service.url().rsplit_once('/').unwrap();
        let ran = check(kind, &format!("{start}/{missing}"));
        let (error, findings) = failed(&ran);
        let told = format!("{error} {findings:?}");
        assert!(told.contains(remedy), "{told}");
        assert!(findings.len() <= 1, "{told}");
    }
}

#[test]
fn a_wrong_login_is_told_and_not_shown() {
    for kind in ALL {
        let service = shared(kind);
        let (scheme, rest) = service.url().split_once("://").unwrap();
        let (_, place) = rest.rsplit_once('@').unwrap();
        let url = format!("{scheme}://somebody:wr0ng%40w0rd@{place}");
        let ran = check(kind, &url);
        shows_no_secret(&ran, &["wr0ng@w0rd", "wr0ng%40w0rd", "wr0ng"]);
        let (error, findings) = failed(&ran);
        assert!(error.contains(kind.url_variable()) || error.contains("CLICKHOUSE_PASSWORD"), "no remedy: {error}");
        assert_eq!(findings, [], "said twice: {error}");
    }
}

#[test]
fn a_host_that_nobody_knows_is_told() {
    let (_, findings) = failed(&check(Kind::Redis, "redis://no-such-host.invalid:6379"));
    let [(problem, remedy)] = &findings[..] else { panic!("{findings:?}") };
    assert!(problem.contains("not known") && remedy.contains("REDIS_URL"), "{findings:?}");
}

/// The marks of a container are put into a mount namespace, in which the command runs.
#[test]
fn localhost_in_a_container_is_told() {
    let script =
        format!("mount -t tmpfs none /run && touch /run/.containerenv && exec {BINARY} check --json --timeout 30s");
    let mut command = Command::new("unshare");
    common::clean(&mut command);
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]).env("REDIS_URL", "redis://localhost:3");
    let ran = finish(command);
    if ran.code != 1 && ran.err.contains("unshare") {
        assert!(std::env::var_os("RESOURCE_POOL_TEST_NAMESPACES").is_none(), "{ran:?}");
        return eprintln!("skipped: this machine gives no namespace");
    }
    let (_, findings) = failed(&ran);
    let found = findings.iter().any(|(problem, remedy)| {
        problem.contains("localhost is the container itself") && remedy.contains("host.docker.internal")
    });
    // Another Redis of this machine at its usual port would be the nearer explanation.
    let is_elsewhere = findings.iter().any(|(problem, _)| problem.contains("answers at port"));
    assert!(found || is_elsewhere, "{findings:?}");
}

/// The command's clock is put back by an hour, beside servers that keep time.
#[test]
fn clocks_that_differ_are_a_warning() {
    let folder = folder();
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    let text = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
                int clock_gettime(clockid_t clock, struct timespec *now) {\n\
                  int done = syscall(SYS_clock_gettime, clock, now);\n\
                  if (clock == CLOCK_REALTIME) now->tv_sec -= 3600;\n\
                  return done;\n}\n";
    fs::write(&source, text).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(made.success());
    for kind in [Kind::Redis, Kind::ClickHouse, Kind::Mongo, Kind::Postgres, Kind::MySql] {
        let mut command = command(&[&PATIENT[..], &["--json"]].concat(), &[(kind.url_variable(), shared(kind).url())]);
        command.env("LD_PRELOAD", &library);
        let ran = finish(command);
        assert_eq!(ran.code, 0, "{ran:?}");
        let one = &ran.json()["resources"][0];
        assert_eq!(one["verdict"], "warn", "{ran:?}");
        let problem = one["findings"][0]["problem"].as_str().unwrap_or_default();
        assert!(
            problem.starts_with("the server's clock is 3600.") || problem.starts_with("the server's clock is 3599."),
            "{one}"
        );
        assert!(problem.ends_with("ahead of ours"), "{one}");
    }
}

#[test]
fn wrong_usage_and_configuration_have_two_lines_and_code_2() {
    let folder = folder();
    let file = folder.join("pool.toml");
    fs::write(&file, "[redis]\nhost = 'cache'\nport = 'hunter2'\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, variables, problem, remedy) in [
        (&["chekc"][..], &[][..], "chekc", "check"),
        (&[], &[], "no verb", "--help"),
        (&["check", "--timeout", "5 days"], &[], "--timeout", "--help"),
        (&["check"], &[], "nothing is configured", "REDIS_URL"),
        (&["wait"], &[], "nothing is configured", "--config"),
        (&["check", "cache"], &[("REDIS_URL", "redis://x")], "\"cache\"", "redis"),
        (&["check", "--config", "/no/such/file.toml"], &[], "/no/such/file.toml", "correct"),
        (&["check", "--config", file], &[], "redis.port", "correct"),
        (&["config"], &[("REDIS_URL", "redis://me:hunter2@host:port")], "REDIS_URL", "correct"),
        (&["status", "--admin", "http://me:hunter2@127.0.0.1:1"], &[], "login", "http://127.0.0.1:9099"),
        (&["watch"], &[], "terminal", "status"),
        (&["man", "swim"], &[], "swim", "--help"),
    ] {
        let ran = run(arguments, variables);
        shows_no_secret(&ran, &["hunter2"]);
        let (told, advice) = ran.two_lines();
        assert!(ran.code == 2 && ran.out.is_empty(), "{ran:?}");
        assert!(told.contains(problem) && advice.contains(remedy), "{ran:?}");
    }
}

#[test]
fn configuration_tells_the_origin_of_each_value() {
    let folder = folder();
    let file = folder.join("pool.toml");
    let text = "[pool]\nacquire_timeout_ms = 3000\n\n[redis]\nurl = 'redis://me:hunter2@cache:6380/3'\npool_size = 7\n\
                [named.mongo.research]\nuri = 'mongodb://me:hunter2@research/bars'\n";
    fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let variables = [
        ("REDIS_PASSWORD", "hunter3"),
        ("REDIS_HOST", "elsewhere"),
        ("AMQP_URL", "amqp://me:hunter4@broker/v"),
        ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "9000"),
        ("RESOURCE_POOL_CONFIG", "/no/such/file"),
    ];
    let arguments = ["config", "--config", path];
    let ran = run(&[&arguments[..], &["--json"]].concat(), &variables);
    shows_no_secret(&ran, &["hunter2", "hunter3", "hunter4"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let json = ran.json();
    let value = |key: &str| {
        let values = json["values"].as_array().unwrap().iter().find(|one| one["key"] == key);
        values.cloned().unwrap_or_else(|| panic!("no {key}: {ran:?}"))
    };
    let by_file = |key: &str, shown: Value, line: usize| {
        let one = value(key);
        assert_eq!((&one["value"], &one["set_by"]["by"]), (&shown, &Value::from("file")), "{one}");
        assert_eq!((&one["set_by"]["path"], &one["set_by"]["line"]), (&Value::from(path), &Value::from(line)), "{one}");
    };
    by_file("pool.acquire_timeout_ms", 3000.into(), 2);
    by_file("redis.port", 6380.into(), 5);
    by_file("redis.user", "me".into(), 5);
    by_file("redis.db", 3.into(), 5);
    by_file("redis.pool_size", 7.into(), 6);
    by_file("research.uri", "***".into(), 8);
    for (key, shown, variable) in [
        ("redis.host", "elsewhere", "REDIS_HOST"),
        ("redis.password", "***", "REDIS_PASSWORD"),
        ("rabbitmq.host", "broker", "AMQP_URL"),
        ("rabbitmq.vhost", "v", "AMQP_URL"),
    ] {
        let one = value(key);
        assert_eq!((&one["value"], &one["set_by"]["by"]), (&Value::from(shown), &Value::from("variable")), "{one}");
        assert_eq!(one["set_by"]["name"], variable, "{one}");
    }
    assert_eq!(value("pool.close.deadline_ms")["set_by"]["name"], "RESOURCE_POOL_CLOSE_DEADLINE_MS");
    assert_eq!(value("redis.min_idle")["set_by"]["by"], "default");
    // A kind of which nothing is set is left out, unless it is asked for.
    assert!(!ran.out.contains("clickhouse."));
    let ran = run(&["config", "clickhouse", "--config", path], &[]);
    assert!(ran.out.lines().any(|line| line.starts_with("clickhouse.port") && line.ends_with("default")), "{ran:?}");
    let ran = run(&[&arguments[..], &["--changed"]].concat(), &variables);
    shows_no_secret(&ran, &["hunter2", "hunter3", "hunter4"]);
    assert!(ran.out.lines().any(|line| line.ends_with(&format!("{path}:6"))), "{ran:?}");
    assert!(!ran.out.contains("default"), "{ran:?}");
}

#[test]
fn wait_ends_when_the_server_is_ready_or_the_limit_is_over() {
    let redis = Service::start(Kind::Redis).unwrap();
    redis.kill().unwrap();
    let variables = [("REDIS_URL", redis.url())];
    let ran = run(&["wait", "--timeout", "1s"], &variables);
    shows_no_secret(&ran, &[redis.password()]);
    let (problem, remedy) = ran.two_lines();
    assert!(ran.code == 1 && problem.contains("redis") && remedy.contains("check"), "{ran:?}");
    let mut waiting = command(&["wait", "--timeout", "2m"], &variables);
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The command asks at once, so it has been refused by the time that a server takes to start.
    redis.restart().unwrap();
    until(|| waiting.try_wait().unwrap().is_some());
    let output = waiting.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && out.starts_with("ready after "), "{out}");
    assert_eq!(output.stderr, b"");
    let ran = run(&["wait", "redis"], &variables);
    assert_eq!((ran.code, ran.out.ends_with(": redis\n")), (0, true), "{ran:?}");
}

#[test]
fn a_silent_server_ends_the_check_within_its_limit() {
    let hole = services::BlackHole::start().unwrap();
    let url = format!("redis://127.0.0.1:{}", hole.port());
    let started = std::time::Instant::now();
    let ran = run(&["check", "--json", "--timeout", "1s"], &[("REDIS_URL", &url)]);
    let (error, _) = failed(&ran);
    assert!(!error.is_empty() && started.elapsed() < Duration::from_secs(20), "{:?}: {error}", started.elapsed());
}

#[test]
fn completions_and_manual_pages_name_every_verb() {
    let verbs = ["check", "config", "wait", "status", "holders", "events", "watch", "completions", "man"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell], &[]);
        assert_eq!(ran.code, 0);
        assert!(verbs.iter().all(|verb| ran.out.contains(verb)), "{shell}");
    }
    let syntax = Command::new("bash").args(["-n", "-c", &run(&["completions", "bash"], &[]).out]).status().unwrap();
    assert!(syntax.success());
    let page = run(&["man"], &[]).out;
    assert!(page.contains(".TH") && verbs.iter().all(|verb| page.contains(verb)), "{page}");
    for verb in verbs {
        let page = run(&["man", verb], &[]).out;
        assert!(page.contains(".TH") && page.contains("resource"), "{verb}: {page}");
    }
}
