//! Configuration: code over environment over TOML over defaults, and the errors of a bad one.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::error::Error as _;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Log, until_async};
use resource_pool::adapter::{KindConfig, Names, Part};
use resource_pool::config::{
    CONFIG_FILE, ClickHouseConfig, Config, ExitStatus, MongoConfig, Options, RabbitMqConfig, RedisConfig,
    ResourceConfig, Secret, TlsOptions,
};
use resource_pool::{Builder, Error, Failure, Health, Link, Phase, Resource, ResourcePool, blocking, mongodb};

/// Writes a file of its own, as tests that run side by side may choose the same name.
fn toml(name: &str, text: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{name}-{}-{number}.toml", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path
}

fn builder<const N: usize>(environment: [(&str, &str); N]) -> Builder<ResourcePool> {
    ResourcePool::builder().environment(environment)
}

fn endpoint(pool: &ResourcePool, name: &str) -> String {
    pool.status().resource(name).unwrap().endpoint.to_string()
}

/// The key and the problem of a configuration that the builder refuses.
fn wrong(builder: Builder<ResourcePool>) -> (String, String) {
    wrong_of(builder.build().map(drop))
}

fn wrong_of(result: Result<(), Error>) -> (String, String) {
    match result {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

/// The configuration error that this resource answers when it is asked for. The pool itself can be built.
fn asked(builder: Builder<ResourcePool>, name: &str) -> (String, String) {
    let pool = builder.build().expect("the others can be had");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    wrong_of(runtime.block_on(pool.warm_up([name])).remove(0).1)
}

/// Checks that the pool has the resource. A variable that counts as not set causes no error.
fn asked_in_vain_for_nothing(builder: Builder<ResourcePool>, name: &str) {
    assert!(builder.build().unwrap().status().resource(name).is_some());
}

#[test]
fn config_defaults_are_localhost() {
    let pool = builder([]).build().unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://localhost:6379/0");
    for (name, part) in [("mongo", "localhost:27017"), ("rabbitmq", "localhost:5672"), ("clickhouse", "localhost:8123")]
    {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    assert_eq!(pool.worst_case(), Duration::from_secs(26));
}

#[test]
fn config_code_over_environment_over_toml() {
    let file = toml(
        "layers",
        "[pool]\nacquire_timeout_ms = 700\n[pool.close]\ndeadline_ms = 9000\n\
         [redis]\nhost = 'from-toml'\nport = 7001\n[clickhouse]\nhost = 'from-toml'\n\
         [named.redis.research]\nurl = 'redis://research:1/2'\n",
    );
    let file = file.to_str().unwrap();
    let pool = builder([(CONFIG_FILE, file), ("REDIS_PORT", "7002"), ("CLICKHOUSE_HOST", "from-env")])
        .resource(ClickHouseConfig::url("http://from-code:8123"))
        .build()
        .unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://from-toml:7002/0", "port from the environment, host from TOML");
    assert_eq!(endpoint(&pool, "research"), "redis://research:1/2");
    assert!(endpoint(&pool, "clickhouse").contains("from-code"), "{}", endpoint(&pool, "clickhouse"));
    assert_eq!(pool.worst_case(), Duration::from_secs(10));
    let overridden = builder([(CONFIG_FILE, file), ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "3000")]).build().unwrap();
    assert_eq!(overridden.worst_case(), Duration::from_secs(4));
    let mut options = Options::default();
    options.close.deadline = Duration::from_secs(1);
    options.exit_status = ExitStatus::Zero;
    assert_eq!(builder([(CONFIG_FILE, file)]).options(options).build().unwrap().worst_case(), Duration::from_secs(2));
}

#[test]
fn config_reads_both_families_of_names() {
    let pool = builder([
        ("MONGODB_URI", "mongodb://mongo-uri:1"),
        ("MONGODB", "unused"),
        ("AMQP_URL", "amqp://amqp-url:2"),
        ("CLICKHOUSE_URL", "http://clickhouse-url:3"),
        ("REDIS_URL", "redis://redis-url:4/5"),
    ])
    .build()
    .unwrap();
    for (name, part) in [
        ("mongo", "mongo-uri:1"),
        ("rabbitmq", "amqp-url:2"),
        ("clickhouse", "clickhouse-url:3"),
        ("redis", "redis-url:4/5"),
    ] {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    let pool = builder([
        ("MONGODB", "mongo-host"),
        ("QAPUBSUB_IP", "amqp-ip"),
        ("QAPUBSUB_PORT", "6672"),
        ("CLICKHOUSE_IP", "clickhouse-ip"),
        ("REDIS_IP", "redis-ip"),
    ])
    .build()
    .unwrap();
    for (name, part) in [
        ("mongo", "mongo-host"),
        ("rabbitmq", "amqp-ip:6672"),
        ("clickhouse", "clickhouse-ip"),
        ("redis", "redis-ip:6379"),
    ] {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    let pool = builder([("RABBITMQ_HOST", "rabbit"), ("QAPUBSUB_IP", "pubsub")]).build().unwrap();
    assert!(endpoint(&pool, "rabbitmq").contains("rabbit:5672"), "{}", endpoint(&pool, "rabbitmq"));
}

#[test]
fn config_names_the_key_that_is_wrong() {
    for (text, key) in [
        ("[redis]\npoolsize = 3", "redis.poolsize"),
        ("[redis]\nport = 'secret'", "redis.port"),
        ("[redis]\nport = 70000", "redis.port"),
        ("[redis]\npassword = 70000", "redis.password"),
        ("[pool.retry]\nattempts = -1", "pool.retry.attempts"),
        ("[pool.retries]", "pool.retries"),
        ("[named.redis.a]\nhots = ''", "named.redis.a.hots"),
        ("[named.kafka.a]", "named.kafka"),
        ("[redis", "TOML, line 1"),
        ("[pool]\nexit_status = 'one'", "pool.exit_status"),
    ] {
        let (found, problem) = wrong(builder([]).config_file(toml("wrong", text)));
        assert_eq!(found, key, "{problem}");
        assert!(!problem.contains("secret") && !problem.contains("70000"), "{problem}");
    }
    for (name, value, expected) in [
        ("REDIS_PORT", "six", "from 1 to 65535"),
        ("REDIS_PORT", "0", "from 1 to 65535"),
        ("REDIS_URL", "foo", "not a URL"),
        ("REDIS_DB", "1.5", "the number of a database"),
        ("REDIS_USER", "me", "without a password"),
        ("REDIS_TLS", "yes", "neither `true` nor `false`"),
    ] {
        let (key, problem) = asked(builder([(name, value)]), "redis");
        assert_eq!(key, name);
        assert!(problem.contains(expected), "{problem}");
    }
    let (key, problem) = wrong(builder([("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "5s")]));
    assert_eq!(key, "RESOURCE_POOL_ACQUIRE_TIMEOUT_MS");
    assert!(problem.contains("milliseconds, from 0 to 18446744073709551615"), "{problem}");
    let (_, problem) = wrong(builder([]).config_file(toml("unit", "[pool]\nacquire_timeout_ms = '5s'")));
    assert!(problem.contains("milliseconds, from 0 to"), "{problem}");
    asked_in_vain_for_nothing(builder([("REDIS_DB", "")]), "redis");
    assert_eq!(wrong(builder([(CONFIG_FILE, "/nonexistent.toml")])).0, CONFIG_FILE);
    assert_eq!(wrong(builder([]).resource(RedisConfig::url("redis://h/x"))).0, "redis.url");
    assert_eq!(wrong(builder([]).named("far", RedisConfig::url("ftp://h"))).0, "far.url");
}

#[tokio::test]
async fn config_of_a_name_cannot_change() {
    let pool = builder([]).named("far", RedisConfig::url("redis://127.0.0.1:1/0")).build().unwrap();
    let quickly = pool.within(Duration::from_millis(50));
    let other = quickly.redis_with("far", RedisConfig::url("redis://127.0.0.1:2/0")).await.unwrap_err();
    assert!(matches!(other, Error::NameTaken { .. }), "{other}");
    let same = quickly.redis_with("far", RedisConfig::url("redis://127.0.0.1:1/0")).await.unwrap_err();
    assert!(matches!(same, Error::Connect(_) | Error::Timeout(_)), "{same}");
    assert!(matches!(quickly.mongo_named("far").await, Err(Error::NameTaken { .. })));
    let unknown = quickly.redis_named("fra").await.unwrap_err();
    assert!(matches!(unknown, Error::UnknownName { .. }) && unknown.to_string().contains("far"), "{unknown}");
}

#[test]
fn config_one_name_is_one_resource() {
    for (text, key) in [
        ("[named.mongo.far]\n[named.redis.far]", "named.redis.far"),
        ("[named.mongo.redis]", "named.mongo.redis"),
        ("[named.redis.redis]", "named.redis.redis"),
    ] {
        let (found, problem) = wrong(builder([]).config_file(toml("one-name", text)));
        assert_eq!(found, key, "{problem}");
        assert!(problem.contains("has this name already"), "{problem}");
    }
    let code = || builder([]).named("far", RedisConfig::default());
    assert_eq!(wrong(code().named("far", MongoConfig::default())).0, "named.mongo.far");
    assert_eq!(wrong(code().config_file(toml("one-name-code", "[named.clickhouse.far]"))).0, "named.redis.far");
    code().named("far", RedisConfig::url("redis://h")).build().expect("said again, for the same kind");
}

#[test]
fn config_without_pauses_is_refused() {
    for (toml_key, value) in [
        ("retry.base_ms", "0"),
        ("retry.cap_ms", "0"),
        ("probe.interval_ms", "0"),
        ("probe.limit_ms", "0"),
        ("probe.strikes", "0"),
    ] {
        let file = toml("pauses", &format!("[pool]\n{toml_key} = {value}\n"));
        let (key, problem) = wrong(builder([]).config_file(file));
        assert_eq!(key, format!("pool.{toml_key}"));
        assert!(problem.contains("at least 1"), "{problem}");
    }
    let mut options = Options::default();
    options.retry.base = Duration::ZERO;
    assert_eq!(wrong(builder([]).options(options.clone())).0, "pool.retry.base_ms");
    options = Options::default();
    (options.probe.enabled, options.probe.interval) = (false, Duration::ZERO);
    builder([]).options(options).build().expect("nothing is probed");
}

/// Runs again as a process of its own, which has a variable that is no text.
#[cfg(unix)]
#[test]
fn config_variable_that_is_no_text_is_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    let not_text = OsStr::from_bytes(b"caf\xe9");
    if std::env::var_os("REDIS_PASSWORD").as_deref() == Some(not_text) {
        for wrong in [asked(ResourcePool::builder(), "redis"), wrong_of(RedisConfig::from_env().map(drop))] {
            assert_eq!(wrong, ("REDIS_PASSWORD".to_owned(), "is not UTF-8".to_owned()));
        }
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "config_variable_that_is_no_text_is_refused"]).env("REDIS_PASSWORD", not_text);
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn config_error_is_on_one_line() {
    let (key, problem) = wrong(builder([]).config_file(toml("one-line", "[pool.\"a\\nb\"]\n")));
    assert_eq!(key, "pool.a b", "{problem}");
    assert!(!problem.contains(char::is_control), "{problem}");
}

/// Names are printed in tables and logs, so they must not have control characters.
#[tokio::test]
async fn config_name_with_a_control_character_is_refused() {
    let pool = builder([]).build().unwrap();
    for name in ["a\nb", "a\u{1b}[2J", "a\u{2028}b", "a\u{85}"] {
        let text = format!("[named.redis.{}]\n", serde_json::to_string(name).unwrap());
        let by_code = builder([]).named(name, RedisConfig::url("redis://h"));
        for builder in [by_code, builder([]).config_file(toml("named", &text))] {
            let (key, problem) = wrong(builder);
            assert!(!key.contains(char::is_control) && problem.contains("control character"), "{key}: {problem}");
        }
        let refused = [
            pool.redis_with(name, RedisConfig::url("redis://h")).await.map(drop),
            pool.on_close(name, Phase::Files, || Ok(())),
        ];
        for refused in refused {
            assert!(wrong_of(refused).1.contains("control character"));
        }
    }
}

/// Each text of a pool stays on one line, whether it comes from a server, a hook, a panic or a database's name.
#[tokio::test]
async fn config_what_a_pool_says_is_on_lines_of_its_own() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let said = "Code: 516. DB::Exception: first\nsecond\u{1b}[2J";
            write!(stream, "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{said}", said.len()).unwrap();
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let mut config = ClickHouseConfig::url(format!("http://127.0.0.1:{port}"));
    config.database = "d\nb".to_owned();
    let pool = builder([]).resource(config).build().unwrap();
    let error = pool.clickhouse().await.map(drop).unwrap_err();
    let source = error.source().expect("the driver's own").to_string();
    assert!(source.contains("first\nsecond"), "it is left as it is: {source}");
    assert!(error.to_string().contains("first second") && error.to_string().contains("/d b"), "{error}");
    let mut said = vec![error.to_string(), endpoint(&pool, "clickhouse")];
    let health = pool.health_check().await;
    assert_eq!(health.to_string().lines().count(), health.entries.len() + 2, "{health}");
    said.extend(health.entries.iter().filter_map(|entry| entry.error.clone()));
    pool.on_close("fails", Phase::Files, || Err("bad\r\nend".into())).unwrap();
    pool.on_close("panics", Phase::Files, || panic!("bad\nend")).unwrap();
    let report = pool.close_all().await;
    assert!(report.to_string().lines().skip(1).all(|line| line.starts_with("  ")), "{report}");
    said.extend(report.steps.iter().map(|step| step.outcome.to_string()));
    assert!(said.iter().any(|text| text.contains("bad  end")), "{said:?}");
    for text in said {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// A password that is not percent-encoded may end the host early. Then a part of it could be read as a port, a path or
/// an option, and shown.
#[test]
fn config_url_that_can_be_read_in_two_ways_is_refused() {
    for password in ["1/2", "1?a=b", "1#2", "1\\2", "1/2@3", "a\tb", "a\u{1}b"] {
        for (key, builder) in [
            ("mongo.uri", builder([]).resource(MongoConfig::uri(format!("mongodb://u:{password}@h")))),
            ("rabbitmq.url", builder([]).resource(RabbitMqConfig::url(format!("amqp://u:{password}@h")))),
            ("clickhouse.url", builder([]).resource(ClickHouseConfig::url(format!("http://u:{password}@h")))),
            ("redis.url", builder([]).resource(RedisConfig::url(format!("redis://u:{password}@h")))),
        ] {
            let (found, problem) = wrong(builder);
            assert_eq!(found, key, "{problem}");
            assert!(problem.contains("percent-encoded") && !problem.contains(password), "{problem}");
        }
    }
    let pool = builder([("REDIS_URL", " redis://u:%2f%40@h:1/2\n")]).build().unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://h:1/2", "white space around it is nobody's");
}

/// The driver panics where half a character follows a `%`.
#[test]
fn config_mongo_uri_with_half_an_escape_is_an_error() {
    let uri = "mongodb://user:100%a\u{e9}@host/";
    assert!(std::panic::catch_unwind(|| mongodb::options::ConnectionString::parse(uri)).is_err());
    let (key, problem) = wrong(builder([]).resource(MongoConfig::uri(uri)));
    assert_eq!(key, "mongo.uri", "{problem}");
    assert!(problem.contains("`%` that encodes nothing"), "{problem}");
}

/// The driver's message about a URI has nothing of its password, though it quotes the part that it cannot use.
#[test]
fn config_mongo_uri_is_told_without_its_password() {
    let problem = |uri: &str| wrong(builder([]).resource(MongoConfig::uri(uri))).1;
    assert_eq!(problem("mongodb://u:invalid@h:x/"), problem("mongodb://u:another@h:x/"));
    assert!(problem("mongodb://u:invalid@h:x/").contains("got x"), "{}", problem("mongodb://u:invalid@h:x/"));
    assert_eq!(problem("mongodb://u:invalid/"), problem("mongodb://u:another/"));
    assert!(problem("mongodb://u:p@h/?maxPoolSize=many").contains("maxpoolsize"));
}

/// A URL parser takes dots for steps in a tree of folders. Here they are a name.
#[test]
fn config_path_of_dots_is_a_name() {
    for (path, name) in [("%2e", "%2E"), (".", "%2E"), ("..", "%2E%2E"), ("a%2f..%2fb", "a%2F%2E%2E%2Fb")] {
        let config = RabbitMqConfig::url(format!("amqp://h/{path}?heartbeat=5"));
        let pool = builder([]).resource(config).build().unwrap();
        assert_eq!(endpoint(&pool, "rabbitmq"), format!("amqp://h:5672/{name}"));
    }
    let pool = builder([]).resource(ClickHouseConfig::url("http://h/..")).build().unwrap();
    assert_eq!(endpoint(&pool, "clickhouse"), "http://h:8123/..");
    assert_eq!(wrong(builder([]).resource(ClickHouseConfig::url("http:///h/db"))).1, "names no host");
}

/// A NUL in the user or the password moves the border between them in AMQP.
#[test]
fn config_rabbitmq_login_has_no_nul() {
    assert_eq!(wrong(builder([]).resource(RabbitMqConfig::url("amqp://u%00x:p@h"))).0, "rabbitmq.user");
    assert_eq!(wrong(builder([]).resource(RabbitMqConfig::url("amqp://u:%00p@h"))).0, "rabbitmq.password");
}

/// The driver's buffers are 64 times as large as a frame. A process that cannot allocate them is aborted.
#[test]
fn config_rabbitmq_frames_are_of_a_size_to_be_had() {
    for frame_max in [1, 4095, 1_048_577, u32::MAX] {
        let url = format!("amqp://h?frame_max={frame_max}");
        let (key, problem) = wrong(builder([]).resource(RabbitMqConfig::url(url)));
        assert_eq!(key, "rabbitmq.frame_max");
        assert!(problem.contains("from 4096 to 1048576"), "{problem}");
    }
    for frame_max in [0, 4096, 1_048_576] {
        builder([]).resource(RabbitMqConfig::url(format!("amqp://h?frame_max={frame_max}"))).build().unwrap();
    }
}

/// A header has no other characters, and it loses white space around its value.
#[test]
fn config_clickhouse_login_fits_a_header() {
    for text in ["%c3%a9", "%01", "%20a", "a%20", "%0a"] {
        assert_eq!(
            wrong(builder([]).resource(ClickHouseConfig::url(format!("http://{text}:p@h")))).0,
            "clickhouse.user"
        );
        let by_password = builder([]).resource(ClickHouseConfig::url(format!("http://u:{text}@h")));
        assert_eq!(wrong(by_password).0, "clickhouse.password");
    }
    builder([]).resource(ClickHouseConfig::url("http://u%20v:~%20%21%3a@h")).build().unwrap();
}

/// A placeholder in the place of a public word would reveal that the password is that word.
#[tokio::test]
async fn config_password_is_no_part_of_what_a_driver_says() {
    for password in ["refused", "o", "Connection"] {
        let url = format!("redis://u:{password}@127.0.0.1:1");
        let error = refused(RedisConfig::url(url), |pool| async move { pool.redis().await.map(drop) }).await;
        assert!(error.contains("Connection refused"), "{error}");
    }
}

/// The server's error has the password in it, quoted.
#[tokio::test]
async fn config_password_that_a_server_says_back_is_withheld() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let said = "Code: 516. DB::Exception: no login with \"p4\\'s\\\" e\"";
            let size = said.len();
            write!(stream, "HTTP/1.1 403 Forbidden\r\nContent-Length: {size}\r\n\r\n{said}").unwrap();
            // The client hangs up first.
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    for (password, is_in_it) in [("p4%27s%22%20e", true), ("n", true), ("%22", true), ("another", false)] {
        let url = format!("http://u:{password}@127.0.0.1:{port}");
        let error = refused(ClickHouseConfig::url(url), |pool| async move { pool.clickhouse().await.map(drop) }).await;
        assert_eq!(error.contains("withheld"), is_in_it, "{error}");
        assert_eq!(error.contains("no login"), !is_in_it, "{error}");
    }
}

/// The message has the cause on one line, and the source can be matched on.
#[tokio::test]
async fn config_cause_is_told_and_is_the_source() {
    let pool = builder([]).resource(RedisConfig::url("redis://127.0.0.1:1")).build().unwrap();
    let error = pool.redis().await.unwrap_err();
    assert!(error.to_string().contains("Connection refused (os error 111)"), "{error}");
    let source = error.source().and_then(|source| source.downcast_ref::<redis::RedisError>());
    assert!(source.is_some_and(redis::RedisError::is_connection_refusal), "{error:?}");
}

/// If nobody listens, the error says what to do. It uses the names of the layer that configured the resource.
#[tokio::test]
async fn config_nobody_there_has_a_remedy() {
    let variables = ["MONGODB_URI", "AMQP_URL", "CLICKHOUSE_URL", "REDIS_URL"];
    let urls = ["mongodb://127.0.0.1:1", "amqp://127.0.0.1:1", "http://127.0.0.1:1", "redis://127.0.0.1:1"];
    for ((kind, variable), url) in ["mongo", "rabbitmq", "clickhouse", "redis"].into_iter().zip(variables).zip(urls) {
        let mut options = Options::default();
        options.retry.attempts = 1;
        let pool = builder([(variable, url)]).options(options).build().unwrap();
        let error = pool.warm_up([kind]).await.remove(0).1.unwrap_err();
        let remedy = format!("; is it running? Else set {variable}, or [{kind}] in TOML");
        assert!(error.to_string().ends_with(&remedy), "{error}");
        let Error::Connect(error) = error else { panic!("{error}") };
        assert!(error.remedy.is_some() && !error.permanent, "{error:?}");
    }
    let by_code = refused(RedisConfig::url("redis://127.0.0.1:1"), |pool| async move { pool.redis().await.map(drop) });
    assert!(by_code.await.contains("; is it running there?"));
}

async fn refused<F: Future<Output = Result<(), Error>>>(
    config: impl Into<ResourceConfig>,
    acquire: impl FnOnce(ResourcePool) -> F,
) -> String {
    let mut options = Options::default();
    options.retry.attempts = 1;
    let pool = builder([]).options(options).resource(config).build().unwrap();
    let error = acquire(pool).await.unwrap_err();
    format!("{error} {error:?}")
}

/// A kind's configuration in TOML, and a part of it that the environment changes.
struct Moved {
    kind: &'static str,
    /// A URL with TLS and a login, for TOML.
    secure: &'static str,
    host: &'static str,
    /// The endpoint and the login after the change.
    endpoint: &'static str,
    tls: &'static str,
    url: (&'static str, &'static str),
}

const MOVED: [Moved; 4] = [
    Moved {
        kind: "mongo",
        secure: "uri = 'mongodb://me:p4ss@a:1,b:2/db?tls=true&authSource=x'",
        host: "MONGODB_HOST",
        endpoint: "mongodb://moved:1/db",
        tls: "MONGODB_TLS",
        url: ("MONGODB_URI", "mongodb://whole"),
    },
    Moved {
        kind: "rabbitmq",
        secure: "url = 'amqps://me:p4ss@a/vh'",
        host: "RABBITMQ_HOST",
        endpoint: "amqps://moved:5671/vh",
        tls: "RABBITMQ_TLS",
        url: ("AMQP_URL", "amqp://whole"),
    },
    Moved {
        kind: "clickhouse",
        secure: "url = 'https://me:p4ss@a/db'",
        host: "CLICKHOUSE_HOST",
        endpoint: "https://moved:8443/db",
        tls: "CLICKHOUSE_TLS",
        url: ("CLICKHOUSE_URL", "http://whole"),
    },
    Moved {
        kind: "redis",
        secure: "url = 'rediss://me:p4ss@a:7/3'",
        host: "REDIS_HOST",
        endpoint: "rediss://moved:7/3",
        tls: "REDIS_TLS",
        url: ("REDIS_URL", "redis://whole"),
    },
];

/// The endpoint of this kind, the effective configuration, and the warnings of the build.
fn effective(kind: &str, file: &str, environment: &[(&str, &str)]) -> (String, String, String) {
    let file = toml(&format!("effective-{kind}"), file);
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let builder = ResourcePool::builder().environment(environment).config_file(file);
    let (pool, log) = Log::during(|| builder.build().unwrap());
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let begun = async { tokio::time::timeout(Duration::ZERO, pool.warm_up([kind])).await };
    let (_, log) = Log::during(|| runtime.block_on(begun));
    let said = log.lines().find(|line| line.contains("warming up")).expect("it is logged").to_owned();
    (endpoint(&pool, kind), said, warnings.join("\n"))
}

/// A part of a higher layer changes only itself.
#[test]
fn config_part_takes_neither_tls_nor_login_away() {
    if cfg!(not(feature = "tls")) {
        // A build without TLS refuses each of these instead of going on without TLS.
        for Moved { kind, host, .. } in MOVED {
            let file = toml(&format!("moved-{kind}"), &format!("[{kind}.tls]\n"));
            let pool = builder([(host, "moved")]).config_file(file).build();
            let refused = pool.and_then(|pool| blocking::ResourcePool::from(pool).reconnect(kind)).unwrap_err();
            assert!(refused.to_string().contains("needs TLS: enable the feature"), "{refused}");
        }
        return;
    }
    for Moved { kind, secure, host, endpoint, .. } in MOVED {
        let file = format!("[{kind}]\n{secure}\n");
        let (at, said, warnings) = effective(kind, &file, &[(host, "moved")]);
        assert_eq!(at, endpoint);
        for part in ["me", "host: \"moved\"", "password: Some(***)", "tls: Some(TlsOptions"] {
            let part = if kind == "rabbitmq" { part.replace("Some(***)", "***") } else { part.to_owned() };
            assert!(said.contains(&part), "{part} in {said}");
        }
        assert_eq!(warnings, "");
        // The same without a URL in the lower layer.
        let file = format!("[{kind}]\nhost = 'a'\nuser = 'me'\npassword = 'p4ss'\n[{kind}.tls]\n");
        let (_, said, warnings) = effective(kind, &file, &[(host, "moved")]);
        assert!(said.contains("\"moved\"") && said.contains("tls: Some(TlsOptions"), "{said}");
        assert_eq!(warnings, "");
    }
}

/// A value that does take them away is warned of once, by both keys.
#[test]
fn config_whole_url_and_a_switch_take_tls_away_and_warn() {
    for Moved { kind, secure, tls, url: (variable, url), .. } in MOVED {
        let below = format!("{kind}.{}", secure.split(' ').next().unwrap());
        let file = format!("[{kind}]\n{secure}\n");
        let (_, said, warnings) = effective(kind, &file, &[(tls, "false")]);
        assert!(said.contains("tls: None") && said.contains("\"me\""), "{said}");
        assert_eq!(warnings.lines().count(), 1, "{warnings}");
        assert!(warnings.contains(tls) && warnings.contains(&below), "{warnings}");

        let (at, said, warnings) = effective(kind, &file, &[(variable, url)]);
        assert!(at.starts_with(url), "{at}");
        assert!(said.contains("tls: None") && !said.contains("\"me\""), "{said}");
        assert!(warnings.contains(variable) && warnings.contains(&below), "{warnings}");
        assert!(warnings.contains("TLS") && warnings.contains("login"), "{warnings}");

        let (_, _, warnings) = effective(kind, "", &[(variable, url), (tls, "false")]);
        assert_eq!(warnings, "", "nothing is taken away");
    }
    let both = builder([("REDIS_URL", "rediss://h"), ("REDIS_TLS", "false")]);
    let (key, problem) = asked(both, "redis");
    assert!(key == "REDIS_TLS" && problem.contains("REDIS_URL"), "{key}: {problem}");
}

/// Parts beside a URL complete it.
#[test]
fn config_parts_complete_a_url() {
    for (kind, url, parts) in [
        (
            "mongo",
            ("MONGODB_URI", "mongodb://h"),
            [("MONGODB_USER", "me"), ("MONGODB_PASSWORD", "p4ss"), ("MONGODB_DATABASE", "db")],
        ),
        (
            "rabbitmq",
            ("AMQP_URL", "amqp://h"),
            [("RABBITMQ_USER", "me"), ("RABBITMQ_PASSWORD", "p4ss"), ("RABBITMQ_VHOST", "db")],
        ),
        (
            "clickhouse",
            ("CLICKHOUSE_URL", "http://h"),
            [("CLICKHOUSE_USER", "me"), ("CLICKHOUSE_PASSWORD", "p4ss"), ("CLICKHOUSE_DATABASE", "db")],
        ),
        ("redis", ("REDIS_URL", "redis://h"), [("REDIS_USER", "me"), ("REDIS_PASSWORD", "p4ss"), ("REDIS_DB", "5")]),
    ] {
        let environment: Vec<_> = [url].into_iter().chain(parts).collect();
        let (at, said, _) = effective(kind, "", &environment);
        assert!(said.contains("\"me\"") && !said.contains("password: None"), "{said}");
        assert!(at.ends_with(parts[2].1), "{at}");
        let toml = format!(
            "[{kind}]\n{} = '{}'\nuser = 'me'\npassword = 'p4ss'\n",
            if kind == "mongo" { "uri" } else { "url" },
            url.1
        );
        let (_, said, _) = effective(kind, &toml, &[]);
        assert!(said.contains("\"me\"") && !said.contains("password: None"), "{said}");
    }
}

/// A URI with several hosts, or none, keeps the rest of its text.
#[test]
fn config_parts_change_a_mongo_uri() {
    let at = |uri: &str, environment: &[(&str, &str)]| {
        let (at, said, _) = effective("mongo", &format!("[mongo]\nuri = '{uri}'\n"), environment);
        (at, said)
    };
    let (place, said) = at("mongodb://me:p%40ss@a:1,b:2/db?replicaSet=rs", &[("MONGODB_PORT", "9")]);
    assert_eq!(place, "mongodb://a:9,b:9/db");
    assert!(said.contains("replica_set: Some(\"rs\")"), "{said}");
    let (place, said) = at("mongodb://me:p4ss@a/db", &[("MONGODB_DATABASE", "other"), ("MONGODB_USER", "y@u")]);
    assert_eq!(place, "mongodb://a:27017/other");
    assert!(said.contains("auth_source: Some(\"db\")") && said.contains("y@u"), "{said}");
    let (place, _) = at("mongodb://a", &[("MONGODB_HOST", "::1")]);
    assert_eq!(place, "mongodb://[::1]:27017/quantaxis");
    if cfg!(feature = "tls") {
        let (place, said) = at("mongodb+srv://me:p4ss@c.x.y/db?srvMaxHosts=1", &[("MONGODB_HOST", "a")]);
        assert_eq!(place, "mongodb://a:27017/db");
        assert!(said.contains("tls: Some("), "{said}");
        for (uri, variable) in
            [("mongodb://a,b/?tls=true", ("MONGODB_PORT", "9")), ("mongodb://a/?tls=false", ("MONGODB_TLS", "true"))]
        {
            let (_, said) = at(uri, &[variable]);
            assert!(said.contains("tls: Some("), "{said}");
        }
    }
}

#[test]
fn config_half_a_login_is_refused() {
    for (kind, text, key) in [
        ("redis", "user = 'me'", "redis.user"),
        ("redis", "url = 'redis://me@h'", "redis.user"),
        ("mongo", "user = 'me'", "mongo.user"),
        ("mongo", "password = 'p4ss'", "mongo.password"),
        ("mongo", "uri = 'mongodb://me@h'", "mongo.user"),
        ("mongo", "uri = 'mongodb://h'\npassword = 'p4ss'", "mongo.password"),
        ("rabbitmq", "user = 'me'", "rabbitmq.user"),
        ("rabbitmq", "url = 'amqp://me@h'", "rabbitmq.url"),
    ] {
        let (found, problem) = wrong(builder([]).config_file(toml("half", &format!("[{kind}]\n{text}\n"))));
        assert_eq!(found, key, "{problem}");
        assert!(problem.contains("without a"), "{problem}");
    }
    for (name, kind) in [
        ("REDIS_USER", "redis"),
        ("MONGODB_USER", "mongo"),
        ("MONGODB_PASSWORD", "mongo"),
        ("QAPUBSUB_USER", "rabbitmq"),
    ] {
        assert_eq!(asked(builder([(name, "me")]), kind).0, name);
    }
    for (kind, text) in [
        ("redis", "password = 'p4ss'"),
        ("rabbitmq", "password = 'p4ss'"),
        ("rabbitmq", "user = 'guest'"),
        ("clickhouse", "user = 'me'"),
        ("clickhouse", "password = 'p4ss'"),
        ("mongo", "uri = 'mongodb://CN=me@h/?authMechanism=MONGODB-X509&tls=true'"),
    ] {
        builder([]).config_file(toml("half", &format!("[{kind}]\n{text}\n"))).build().expect("a whole login");
    }
    // The same with hosts from the DNS, if the driver can ask it.
    if cfg!(feature = "tls") {
        let mongo = |uri: &str, password: &str| {
            let text = format!("[mongo]\nuri = 'mongodb+srv://{uri}c.x.y'\n{password}\n");
            builder([]).config_file(toml("half-srv", &text))
        };
        assert_eq!(wrong(mongo("me@", "")).0, "mongo.user");
        assert_eq!(wrong(mongo("", "password = 'p4ss'")).0, "mongo.password");
        mongo("me@", "password = 'p4ss'").build().expect("a whole login");
    }
}

/// Kubernetes sets the first of these variables in every pod beside a Service of that name.
#[test]
fn config_stray_variable_is_trouble_of_its_resource_alone() {
    let all = builder([("", ""); 0]).build().unwrap().status().resources.len();
    assert!(all >= 4, "{all}");
    for port in ["REDIS_PORT", "RABBITMQ_PORT", "QAPUBSUB_PORT", "CLICKHOUSE_PORT", "MONGODB_PORT", "MONGODBPORT"] {
        let (pool, log) = Log::during(|| builder([(port, "tcp://127.0.0.1:6379")]).build().unwrap());
        assert_eq!(pool.status().resources.len(), all, "{port}");
        let told: Vec<_> = log.lines().filter(|line| line.contains(port)).collect();
        assert!(told.len() == 1 && told[0].contains("DEBUG") && !told[0].contains("127.0.0.1"), "{told:?}");
    }
    let pool = builder([("MONGODB_PORT", "tcp://h:1"), ("MONGODBPORT", "7")]).build().unwrap();
    assert_eq!(endpoint(&pool, "mongo"), "mongodb://localhost:7/quantaxis");

    // The variable is not read if there is a URL, or if the code configures everything.
    let bad = [("REDIS_PORT", "six"), ("REDIS_URL", "redis://h"), ("REDIS_HOST", " ? ")];
    assert_eq!(endpoint(&builder(bad).build().unwrap(), "redis"), "redis://h:6379/0");
    let by_code = builder([("REDIS_PORT", "six")]).resource(RedisConfig::url("redis://h")).build().unwrap();
    assert_eq!(endpoint(&by_code, "redis"), "redis://h:6379/0");
}

#[tokio::test]
async fn config_bad_variable_is_told_to_whoever_asks() {
    let pool = builder([("REDIS_PORT", "six")]).build().unwrap();
    let health = pool.health_check().await;
    let entry = health.entry("redis").unwrap();
    assert_eq!((entry.health, health.is_healthy()), (Health::Unknown, true), "{health}");
    assert!(entry.error.as_ref().unwrap().contains("REDIS_PORT"), "{health}");
    assert!(health.entry("mongo").unwrap().error.is_none());
    let error = pool.redis().await.map(drop).unwrap_err();
    assert!(error.to_string().contains("REDIS_PORT: is not a port"), "{error}");
    until_async(Duration::from_secs(10), async || !pool.health_check().await.is_healthy()).await;
    assert_eq!(pool.health_check().await.entry("redis").unwrap().health, Health::Fail);
    let global = builder([("REDIS_PORT", "six"), ("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "x")]);
    assert_eq!(wrong(global).0, "RESOURCE_POOL_ACQUIRE_TIMEOUT_MS");
}

#[test]
fn config_host_is_a_host() {
    let hosts = [
        ("MONGODB_HOST", "mongo"),
        ("RABBITMQ_HOST", "rabbitmq"),
        ("CLICKHOUSE_HOST", "clickhouse"),
        ("REDIS_HOST", "redis"),
    ];
    for (variable, kind) in hosts {
        for (host, place) in
            [(" h.x\n", "//h.x:"), ("[::1]", "//[::1]:"), ("fe80::1%eth0", "//[fe80::1%eth0]:"), ("a_b-c", "//a_b-c:")]
        {
            let pool = builder([(variable, host)]).build().unwrap();
            assert!(endpoint(&pool, kind).contains(place), "{host:?}: {}", endpoint(&pool, kind));
            let by_toml =
                builder([]).config_file(toml("host", &format!("[{kind}]\nhost = {host:?}\n"))).build().unwrap();
            assert_eq!(endpoint(&by_toml, kind), endpoint(&pool, kind));
        }
        for host in ["h:1", "redis://h", "a b", "a\nb", "h/x", "u@h", "h\0", "caf\u{e9}", "::1:g", "a,b", "%41"] {
            let (key, problem) = asked(builder([(variable, host)]), kind);
            assert_eq!(key, variable, "{host:?}: {problem}");
            let text = format!("[{kind}]\nhost = {}\n", serde_json::to_string(host).unwrap());
            assert_eq!(wrong(builder([]).config_file(toml("host", &text))).0, format!("{kind}.host"), "{host:?}");
        }
    }
}

#[test]
fn config_error_names_the_key_and_the_file_it_was_said_in() {
    for (text, key) in [
        ("[redis]\nurl = 'foo'", "redis.url"),
        ("[named.redis.far]\nurl = 'foo'", "named.redis.far.url"),
        ("[redis]\npoolsize = 3", "redis.poolsize"),
        ("[mongo]\nmax_pool_size = 0", "mongo.max_pool_size"),
        ("[redis", "TOML, line 1"),
    ] {
        let file = toml("said-in", text);
        let (found, problem) = wrong(builder([]).config_file(&file));
        assert_eq!(found, key, "{problem}");
        assert!(problem.ends_with(&format!("(in {})", file.display())), "{problem}");
    }
    let file = toml("said-in", "[redis]\nurl = 'foo'\nhost = 'h'\n");
    let (key, _) = wrong(builder([("REDIS_PORT", "1")]).config_file(&file));
    assert_eq!(key, "redis.url", "it is taken apart for the part above it");
    assert_eq!(
        endpoint(&builder([("REDIS_URL", "redis://h")]).config_file(&file).build().unwrap(), "redis"),
        "redis://h:6379/0"
    );
}

/// A configuration that could never work is refused before anything connects.
#[test]
fn config_that_can_never_work_is_refused() {
    let too_many = u64::try_from(tokio::sync::Semaphore::MAX_PERMITS).unwrap() + 1;
    for (kind, field, bad, good) in [
        ("redis", "keepalive_ms", "999", "1000"),
        ("redis", "keepalive_ms", "32768000", "32767999"),
        ("clickhouse", "keepalive_ms", "0", "1000"),
        ("clickhouse", "keepalive_ms", "40000000", "32767999"),
        ("rabbitmq", "heartbeat_ms", "999", "1000"),
        ("rabbitmq", "heartbeat_ms", "40000000", "32767000"),
        ("redis", "exclusive_size", &too_many.to_string(), "1"),
        ("redis", "exclusive_size", "0", "1"),
        ("redis", "pool_size", "0", "1"),
        ("rabbitmq", "confirm_window", &too_many.to_string(), "1"),
        ("clickhouse", "max_connections", &too_many.to_string(), "1"),
        ("redis", "client_name", "'a b'", "'a-b'"),
        ("redis", "client_name", "\"a\\nb\"", "''"),
        ("redis", "db", "-1", "0"),
        ("redis", "port", "0", "1"),
        ("redis", "connect_timeout_ms", "0", "1"),
        ("redis", "test_limit_ms", "0", "1"),
        ("redis", "max_lifetime_ms", "0", "1"),
        ("clickhouse", "connect_timeout_ms", "0", "1"),
        ("clickhouse", "flush_timeout_ms", "0", "1"),
        ("rabbitmq", "operation_timeout_ms", "0", "1"),
        ("rabbitmq", "disconnect_timeout_ms", "0", "1"),
        ("rabbitmq", "confirm_timeout_ms", "0", "1"),
        ("mongo", "app_name", &format!("'{}'", "a".repeat(129)), &format!("'{}'", "a".repeat(128))),
        ("mongo", "max_pool_size", "0", "1"),
        ("pool", "connect_timeout_ms", "0", "1"),
        ("pool", "retry.attempts", "0", "1"),
        ("pool", "retry.budget_ms", "0", "1"),
        ("pool", "health.each_ms", "0", "1"),
        ("pool", "health.all_ms", "0", "1"),
    ] {
        let built = |value: &str| {
            let more = if field == "max_pool_size" { "min_pool_size = 0\n" } else { "" };
            builder([]).config_file(toml("never", &format!("[{kind}]\n{field} = {value}\n{more}")))
        };
        let (key, problem) = wrong(built(bad));
        assert_eq!(key, format!("{kind}.{field}"), "{problem}");
        assert!(problem.contains("must") || problem.contains("longer"), "{problem}");
        built(good).build().unwrap_or_else(|error| panic!("{kind}.{field} = {good}: {error}"));
    }
}

/// Every kind reads the variables of its further resources, with the endings that its own variables have.
#[test]
fn config_environment_sets_named_resources() {
    let pool = builder([
        ("RESOURCE_POOL_MONGO_RESEARCH_URL", "mongodb://research:1/db"),
        ("RESOURCE_POOL_MONGO_OTHER_URI", "mongodb://other:2/db"),
        ("RESOURCE_POOL_RABBITMQ_FAR_IP", "far-rabbit"),
        ("RESOURCE_POOL_RABBITMQ_FAR_VHOST", "desk"),
        ("RESOURCE_POOL_CLICKHOUSE_TICKS_HOST", "ticks"),
        ("RESOURCE_POOL_CLICKHOUSE_TICKS_DATABASE", "tick"),
        ("RESOURCE_POOL_REDIS_CACHE_HOST", "cache"),
        ("RESOURCE_POOL_REDIS_CACHE_DB", "3"),
        ("REDIS_HOST", "default"),
    ])
    .build()
    .unwrap();
    for (name, at) in [
        ("research", "mongodb://research:1/db"),
        ("other", "mongodb://other:2/db"),
        ("far", "amqp://far-rabbit:5672/desk"),
        ("ticks", "http://ticks:8123/tick"),
        ("cache", "redis://cache:6379/3"),
        ("redis", "redis://default:6379/0"),
        ("mongo", "mongodb://localhost:27017/quantaxis"),
    ] {
        assert_eq!(endpoint(&pool, name), at);
    }
    #[cfg(feature = "postgres")]
    {
        let named = [("RESOURCE_POOL_POSTGRES_BOOK_HOST", "book"), ("RESOURCE_POOL_POSTGRES_BOOK_DB", "orders")];
        assert_eq!(endpoint(&builder(named).build().unwrap(), "book"), "postgres://book:5432/orders");
    }
}

/// Code overrides the environment, and the environment overrides TOML, part by part.
#[test]
fn config_environment_of_a_named_resource_is_between_code_and_toml() {
    let file = toml("named-layers", "[named.redis.research-eu]\nhost = 'from-toml'\nport = 7001\n");
    let by_variable = ("RESOURCE_POOL_REDIS_RESEARCH_EU_HOST", "from-env");
    let pool = builder([by_variable]).config_file(&file).build().unwrap();
    assert_eq!(endpoint(&pool, "research-eu"), "redis://from-env:7001/0");
    assert!(pool.status().resource("research_eu").is_none(), "the configured name is the one that is meant");
    let by_code = builder([by_variable]).named("research-eu", RedisConfig::url("redis://from-code")).config_file(&file);
    assert_eq!(endpoint(&by_code.build().unwrap(), "research-eu"), "redis://from-code:6379/0");
    let alone = builder([by_variable]).build().unwrap();
    assert_eq!(endpoint(&alone, "research_eu"), "redis://from-env:6379/0");
}

/// A name may contain a word that is also a suffix. The longest suffix counts, and a configured name before that.
#[test]
fn config_name_in_a_variable_may_contain_the_words_of_suffixes() {
    let pool = builder([
        ("RESOURCE_POOL_REDIS_URL_HOST", "a"),
        ("RESOURCE_POOL_REDIS_HOST_URL", "redis://b"),
        ("RESOURCE_POOL_REDIS_URL_URL_URL", "redis://c"),
        ("RESOURCE_POOL_REDIS_MY_HOST_PORT", "7"),
    ])
    .build()
    .unwrap();
    for (name, at) in [("url", "a:6379"), ("host", "b:6379"), ("url_url", "c:6379"), ("my_host", "localhost:7")] {
        assert_eq!(endpoint(&pool, name), format!("redis://{at}/0"));
    }
    if cfg!(feature = "tls") {
        let of_tls = [("RESOURCE_POOL_REDIS_A_TLS_TLS", "true"), ("RESOURCE_POOL_REDIS_A_TLS", "true")];
        let pool = builder(of_tls).build().unwrap();
        for name in ["a_tls", "a"] {
            assert_eq!(endpoint(&pool, name), "rediss://localhost:6379/0");
        }
    }
}

/// A bad variable is an error for those who ask for its resource. It names the variable.
#[test]
fn config_bad_variable_of_a_named_resource_fails_only_its_callers() {
    for (variable, value, expected) in [
        ("RESOURCE_POOL_REDIS_FAR_PORT", "six", "from 1 to 65535"),
        ("RESOURCE_POOL_REDIS_FAR_URL", "foo", "not a URL"),
        ("RESOURCE_POOL_REDIS_FAR_USER", "me", "without a password"),
        ("RESOURCE_POOL_REDIS_FAR_HOSTS", "h", "HOST, IP"),
    ] {
        let set = || builder([(variable, value), ("RESOURCE_POOL_REDIS_FAR_DB", "1")]);
        let (key, problem) = asked(set(), "far");
        assert_eq!(key, variable, "{problem}");
        assert!(problem.contains(expected), "{problem}");
        let file = toml("named-bad", "[named.redis.far]\n");
        assert_eq!(asked(set().config_file(file), "far").0, variable);
        let by_code = set().named("far", RedisConfig::url("redis://h")).build().unwrap();
        assert_eq!(endpoint(&by_code, "far"), "redis://h:6379/0");
    }
    let file = toml("named-twice", "[named.redis.a-b]\n[named.redis.a_b]\n");
    for name in ["a-b", "a_b"] {
        let (key, problem) = asked(builder([("RESOURCE_POOL_REDIS_A_B_HOST", "h")]).config_file(&file), name);
        assert_eq!(key, "RESOURCE_POOL_REDIS_A_B_HOST");
        assert!(problem.contains("`a-b`") && problem.contains("`a_b`"), "{problem}");
    }
}

/// Two kinds cannot have one name, whoever says it.
#[test]
fn config_name_in_a_variable_is_of_one_resource() {
    let (key, problem) = wrong(builder([("RESOURCE_POOL_REDIS_MONGO_HOST", "h")]));
    assert_eq!(key, "RESOURCE_POOL_REDIS_MONGO_HOST", "{problem}");
    assert!(problem.contains("has this name already"), "{problem}");
    let by_code = builder([("RESOURCE_POOL_REDIS_FAR_HOST", "h")]).named("far", MongoConfig::default());
    assert_eq!(wrong(by_code).0, "RESOURCE_POOL_REDIS_FAR_HOST");
}

/// The variables of the pool, of its tests and of others begin in the same way.
#[test]
fn config_other_variables_are_no_named_resources() {
    let names =
        |pool: &ResourcePool| pool.status().resources.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
    let usual = names(&builder([]).build().unwrap());
    let (pool, log) = Log::during(|| {
        builder([
            ("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "700"),
            ("RESOURCE_POOL_TEST_REDIS_URL", "redis://h"),
            ("RESOURCE_POOL_CLOSE_DELAY_MS", "1"),
            ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "9000"),
            ("RESOURCE_POOL_WORKER_THREADS", "2"),
            ("RESOURCE_POOL_KAFKA_FAR_URL", "s3cret"),
            ("RESOURCE_POOL_REDIS_URL", "redis://h"),
            ("RESOURCE_POOL_REDIS_EMPTY_URL", ""),
            ("RESOURCE_POOL_R2D2_FAR_URL", "h"),
        ])
        .build()
        .unwrap()
    });
    assert_eq!(names(&pool), usual);
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let before = |line: &str| line.split(" is ignored").next().unwrap().split(' ').next_back().unwrap().to_owned();
    let mut ignored: Vec<_> = warnings.iter().map(|line| before(line)).collect();
    ignored.sort_unstable();
    assert_eq!(
        ignored,
        ["RESOURCE_POOL_KAFKA_FAR_URL", "RESOURCE_POOL_R2D2_FAR_URL", "RESOURCE_POOL_REDIS_URL"],
        "{warnings:?}"
    );
    assert!(!log.contains("s3cret"), "{log}");
}

/// A mistake in the suffix makes no other resource beside the one that TOML names.
#[test]
fn config_suffix_with_a_mistake_makes_no_resource() {
    for (variable, expected) in [
        ("RESOURCE_POOL_REDIS_ORDERS_DATABASE_URL", "ends in DATABASE_URL, and a redis has no such suffix"),
        ("RESOURCE_POOL_REDIS_ORDERS_HOSTS", "ends in HOSTS, and a redis has no such suffix; there are URL, HOST, IP"),
    ] {
        let set = || builder([(variable, "redis://h")]);
        let (key, problem) = asked(set().config_file(toml("suffix", "[named.redis.orders]\nhost = 'a'\n")), "orders");
        assert!(key == variable && problem.contains(expected), "{key}: {problem}");
    }
    let both = "[named.redis.orders]\n[named.redis.orders-database]\n";
    let pool = builder([("RESOURCE_POOL_REDIS_ORDERS_DATABASE_URL", "redis://h")]).config_str(both).build().unwrap();
    assert_eq!(endpoint(&pool, "orders-database"), "redis://h:6379/0");
    assert_eq!(endpoint(&pool, "orders"), "redis://localhost:6379/0");
}

/// Kubernetes sets variables for each Service, which are no settings.
#[test]
fn config_service_links_are_no_named_resources() {
    let names =
        |pool: &ResourcePool| pool.status().resources.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
    let usual = names(&builder([]).build().unwrap());
    let links = [
        ("RESOURCE_POOL_REDIS_CACHE_SERVICE_HOST", "10.0.0.1"),
        ("RESOURCE_POOL_REDIS_CACHE_SERVICE_PORT", "6379"),
        ("RESOURCE_POOL_REDIS_CACHE_SERVICE_PORT_MAIN", "6379"),
        ("RESOURCE_POOL_REDIS_CACHE_PORT", "tcp://10.0.0.1:6379"),
        ("RESOURCE_POOL_REDIS_CACHE_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
        ("RESOURCE_POOL_REDIS_CACHE_PORT_6379_TCP_PROTO", "tcp"),
        ("RESOURCE_POOL_REDIS_CACHE_PORT_6379_TCP_PORT", "6379"),
        ("RESOURCE_POOL_REDIS_CACHE_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("RESOURCE_POOL_API_SERVICE_HOST", "10.0.0.2"),
        ("RESOURCE_POOL_API_SERVICE_PORT", "80"),
        ("RESOURCE_POOL_API_PORT", "udp://10.0.0.2:80"),
        ("RESOURCE_POOL_API_PORT_80_UDP_PORT", "80"),
    ];
    let (pool, log) = Log::during(|| builder(links).build().unwrap());
    assert_eq!(names(&pool), usual);
    assert!(!log.contains("WARN"), "{log}");
    let own = [("RESOURCE_POOL_REDIS_DATA_SERVICE_HOST", "h"), ("RESOURCE_POOL_REDIS_DATA_SERVICE_PORT", "7")];
    assert_eq!(endpoint(&builder(own).build().unwrap(), "data_service"), "redis://h:7/0");
}

/// If nobody listens, the error names the variables of the named resource.
#[tokio::test]
async fn config_named_resource_that_nobody_serves_has_a_remedy() {
    let mut options = Options::default();
    options.retry.attempts = 1;
    let pool = builder([("RESOURCE_POOL_REDIS_FAR_URL", "redis://127.0.0.1:1")]).options(options).build().unwrap();
    let error = pool.redis_named("far").await.map(drop).unwrap_err().to_string();
    assert!(error.ends_with("Else set RESOURCE_POOL_REDIS_FAR_URL, or [named.redis.far] in TOML"), "{error}");
}

/// A password and a file for it may be said in two layers, where the higher one counts, but not in one.
#[test]
fn config_password_and_its_file_are_not_said_together() {
    let secret = toml("password-file", "s3cret\n");
    let path = secret.to_str().unwrap();
    for (kind, variables, by_code) in [
        ("mongo", ["MONGODB_USER", "MONGODB_PASSWORD", "MONGODB_PASSWORD_FILE"], {
            let mut config = MongoConfig::uri("mongodb://me:p4ss@h");
            config.password_file = Some(path.into());
            ResourceConfig::from(config)
        }),
        ("rabbitmq", ["QAPUBSUB_USER", "QAPUBSUB_PWD", "QAPUBSUB_PWD_FILE"], {
            RabbitMqConfig::url("amqp://me:p4ss@h").password_file(path).into()
        }),
        ("clickhouse", ["CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD", "CLICKHOUSE_PASSWORD_FILE"], {
            ClickHouseConfig::url("http://me:p4ss@h").password_file(path).into()
        }),
        ("redis", ["REDIS_USER", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"], {
            RedisConfig::url("redis://me:p4ss@h").password_file(path).into()
        }),
    ] {
        let key = format!("{kind}.password_file");
        assert_eq!(wrong(builder([]).resource(by_code)).0, key);
        let both = format!("[{kind}]\nuser = 'me'\npassword = 'p4ss'\npassword_file = '{path}'\n");
        let (found, problem) = wrong(builder([]).config_file(toml("both", &both)));
        assert!(found == key && problem.contains("beside a password") && !problem.contains("p4ss"), "{problem}");
        let [user, password, file] = variables;
        let (found, problem) = asked(builder([(user, "me"), (password, "p4ss"), (file, path)]), kind);
        assert!(found == file && problem.contains(password) && !problem.contains("p4ss"), "{found}: {problem}");
        let named = format!("RESOURCE_POOL_{}_FAR_", kind.to_uppercase());
        let [named_user, named_file] = [format!("{named}USER"), format!("{named}PASSWORD_FILE")];
        builder([(user, "me"), (file, path), (&*named_user, "me"), (&*named_file, path)]).build().unwrap();
        // The higher layer has the other one of the two.
        for (below, above, value) in
            [("password = 'p4ss'".to_owned(), file, path), (format!("password_file = '{path}'"), password, "p4ss")]
        {
            let text = format!("[{kind}]\nuser = 'me'\n{below}\n");
            let (_, said, warnings) = effective(kind, &text, &[(above, value)]);
            assert_eq!(said.contains(path), above == file, "{said}");
            assert!(!said.contains("s3cret") && warnings.is_empty(), "{said} {warnings}");
        }
    }
}

/// A file that has no password in it is an error with its key and its path, and without its text.
#[test]
fn config_password_file_that_cannot_be_read_is_refused() {
    for (path, expected) in [
        (PathBuf::from("/nonexistent/password"), "No such file"),
        (toml("password-empty", "\n"), "it is empty"),
        (toml("password-long", &"s3cret".repeat(20_000)), "over 65536 bytes"),
        (PathBuf::from(env!("CARGO_TARGET_TMPDIR")), "no regular file"),
    ] {
        let text = format!("[redis]\npassword_file = {path:?}\n");
        let (key, problem) = wrong(builder([]).config_file(toml("password-toml", &text)));
        assert_eq!(key, "redis.password_file");
        let path = path.display().to_string();
        assert!(problem.contains(&path) && problem.contains(expected) && !problem.contains("s3cret"), "{problem}");
        let (key, problem) = asked(builder([("REDIS_PASSWORD_FILE", &*path)]), "redis");
        assert!(key == "REDIS_PASSWORD_FILE" && problem.contains(expected), "{key}: {problem}");
        assert_eq!(
            asked(builder([("RESOURCE_POOL_REDIS_A_PASSWORD_FILE", &*path)]), "a").0,
            "RESOURCE_POOL_REDIS_A_PASSWORD_FILE"
        );
    }
}

/// A text in TOML may have variables in it.
#[test]
fn config_toml_takes_variables() {
    let text = "[redis]\nhost = '${HOST}.${_ZONE9}'\n[named.redis.far]\nurl = 'redis://${WHOLE}/1'\n\
                [pool.health]\noptional = ['${OPTIONAL}']\n[clickhouse]\ndatabase = 'a$$b$c${HOST}$'\n\
                [rabbitmq]\nvhost = '$${HOST}'\n[mongo]\ndatabase = '${DOLLARS}'\n";
    let file = toml("variables", text);
    let variables =
        [("HOST", "cache"), ("_ZONE9", "desk"), ("WHOLE", "h:7"), ("OPTIONAL", "redis"), ("DOLLARS", "${HOST}$$")];
    let pool = builder(variables).config_file(&file).build().unwrap();
    for (name, at) in [
        ("redis", "redis://cache.desk:6379/0"),
        ("far", "redis://h:7/1"),
        ("clickhouse", "http://localhost:8123/a$b$ccache$"),
        ("rabbitmq", "amqp://localhost:5672/%24%7BHOST%7D"),
        ("mongo", "mongodb://localhost:27017/${HOST}$$"),
    ] {
        assert_eq!(endpoint(&pool, name), at);
    }
    for (text, key, expected) in [
        ("[redis]\npassword = 'a${UNSET}'", "redis.password", "needs the variable UNSET, which is not set"),
        ("[redis]\npassword = '${EMPTY}'", "redis.password", "needs the variable EMPTY"),
        ("[pool.health]\noptional = ['${UNSET}']", "pool.health.optional", "needs the variable UNSET"),
        ("[named.redis.far]\nhost = '${UNSET}'", "named.redis.far.host", "needs the variable UNSET"),
        ("[redis]\nhost = '${'", "redis.host", "`${` without the name"),
        ("[redis]\nhost = '${9}'", "redis.host", "`${` without the name"),
        ("[redis]\nhost = '${A B}'", "redis.host", "`${` without the name"),
    ] {
        let (found, problem) = wrong(builder([("EMPTY", "")]).config_file(toml("variables-wrong", text)));
        assert!(found == key && problem.contains(expected) && problem.contains("(in /"), "{found}: {problem}");
    }
}

/// The value of a variable in TOML may be a password, so no error shows it.
#[test]
fn config_values_of_variables_in_toml_are_not_shown() {
    for (text, key) in [
        ("[pool]\nexit_status = '${S}'", "pool.exit_status"),
        ("[pool]\nacquire_timeout_ms = '${S}'", "pool.acquire_timeout_ms"),
        ("[redis]\nport = '${S}'", "redis.port"),
        ("[redis]\nurl = '${S}://h'", "redis.url"),
        ("[redis]\nurl = 'redis://h/?${S}=1'", "redis.url"),
        ("[redis]\nhost = '${S} '\nclient_name = '${S} b'", "redis.client_name"),
        ("[redis]\npassword_file = '/nonexistent/${S}'", "redis.password_file"),
        ("[named.redis.far]\npassword_file = '/nonexistent/${S}'", "named.redis.far.password_file"),
        ("[mongo]\nuri = 'mongodb://h:${S}'", "mongo.uri"),
        ("[postgres]\nurl = 'postgres://h/?${S}=1'", "postgres.url"),
    ] {
        if key.starts_with("postgres") && cfg!(not(feature = "postgres")) {
            continue;
        }
        let (found, problem) = wrong(builder([("S", "s3cret")]).config_file(toml("variables-hidden", text)));
        assert!(found == key && !problem.contains("s3cret"), "{found}: {problem}");
        assert!(!key.ends_with("_file") || problem.contains("/nonexistent/${S}"), "{problem}");
    }
}

/// TOML may be a text. The last one that is given counts.
#[test]
fn config_toml_may_be_a_text() {
    let pool =
        builder([("REDIS_PORT", "7")]).config_str("[redis]\nhost = 'a'\n[named.redis.far]\nhost = 'b'\n").build();
    let pool = pool.unwrap();
    assert_eq!((endpoint(&pool, "redis"), endpoint(&pool, "far")), ("redis://a:7/0".into(), "redis://b:6379/0".into()));
    let file = toml("text-or-file", "[redis]\nhost = 'from-file'\n");
    let pool = builder([]).config_str("[redis]\nhost = 'a'\n").config_file(file).build().unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://from-file:6379/0");
    for (text, key) in
        [("[redis]\nurl = 'foo'", "redis.url"), ("[redis]\nurls = 1", "redis.urls"), ("[", "TOML, line 1")]
    {
        let (found, problem) = wrong(builder([]).config_str(text));
        assert!(found == key && problem.ends_with("(in the TOML given in code)"), "{found}: {problem}");
    }
}

/// A whole configuration can be read and changed, and a pool is built of it.
#[test]
fn config_is_a_value_of_its_own() {
    let text = "[pool.close]\ndeadline_ms = 9000\n[redis]\nurl = 'redis://me:s3cret@a'\n\
                [named.mongo.far]\nuri = 'mongodb://b:1/db'\n";
    let mut config = Config::parse(text).unwrap();
    assert!(
        ["clickhouse", "far", "mongo", "rabbitmq", "redis"]
            .iter()
            .all(|name| config.names().any(|known| known == *name))
    );
    assert_eq!(config.get::<MongoConfig>("far").unwrap().uri.as_ref().unwrap().expose(), "mongodb://b:1/db");
    assert!(config.get::<RedisConfig>("far").is_none() && config.get::<RedisConfig>("nobody").is_none());
    let shown = format!("{config:?} {config:#?}");
    assert!(!shown.contains("s3cret") && shown.contains("9s"), "{shown}");
    config.pool.close.deadline = Duration::from_secs(3);
    config.set("clickhouse", ClickHouseConfig::url("http://c"));
    config.set("near", RedisConfig::url("redis://d"));
    let environment = [("REDIS_URL", "redis://from-env"), ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "1")];
    let pool = builder(environment).config(config.clone()).build().unwrap();
    for (name, at) in [
        ("redis", "redis://a:6379/0"),
        ("far", "mongodb://b:1/db"),
        ("clickhouse", "http://c:8123/default"),
        ("near", "redis://d:6379/0"),
    ] {
        assert_eq!(endpoint(&pool, name), at);
    }
    assert_eq!(pool.worst_case(), Duration::from_secs(4));
    let pool = builder([]).config(config.clone()).resource(RedisConfig::url("redis://e")).build().unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://e:6379/0");
    config.set("far", RedisConfig::default());
    assert_eq!(wrong(builder([]).config(config)).0, "named.redis.far");
    for (text, key) in
        [("[redis]\nurl = 'foo'", "redis.url"), ("[pool]\nevents = 0", "pool.events"), ("[lines]", "lines")]
    {
        assert_eq!(wrong_of(Config::parse(text).map(drop)).0, key);
    }
}

/// A program reads and changes the parts of a URL, also where no variable has touched it.
#[test]
fn config_value_has_the_parts_of_its_urls() {
    for named in [false, true] {
        let section = |kind: &str| if named { format!("named.{kind}.far") } else { kind.to_owned() };
        let of = |kind: &'static str, url: &str| {
            let name = if named { "far" } else { kind };
            (Config::parse(&format!("[{}]\nurl = '{url}'\n", section(kind))).unwrap(), name)
        };
        let moved = |config: Config, name: &str| endpoint(&builder([]).config(config).build().unwrap(), name);

        let (mut config, name) = of("redis", "redis://me:p4ss@prod:7/3");
        let redis = config.get::<RedisConfig>(name).unwrap().clone();
        assert_eq!((&*redis.host, redis.port, redis.db, &redis.url), ("prod", 7, 3, &None));
        config.set(name, redis.host("staging"));
        assert_eq!(moved(config, name), "redis://staging:7/3");

        let (mut config, name) = of("rabbitmq", "amqp://me:p4ss@prod:7/v");
        let rabbit = config.get::<RabbitMqConfig>(name).unwrap().clone();
        assert_eq!((&*rabbit.host, rabbit.port, &*rabbit.user, &*rabbit.vhost), ("prod", 7, "me", "v"));
        config.set(name, rabbit.host("staging"));
        assert_eq!(moved(config, name), "amqp://staging:7/v");

        let (mut config, name) = of("clickhouse", "http://me:p4ss@prod:7/db");
        let house = config.get::<ClickHouseConfig>(name).unwrap().clone();
        assert_eq!((&*house.host, house.port, &*house.user, &*house.database), ("prod", 7, "me", "db"));
        config.set(name, house.host("staging"));
        assert_eq!(moved(config, name), "http://staging:7/db");

        #[cfg(feature = "postgres")]
        {
            use resource_pool::config::PostgresConfig;

            let (mut config, name) = of("postgres", "postgres://me:p4ss@prod:7/db");
            let postgres = config.get::<PostgresConfig>(name).unwrap().clone();
            assert_eq!((&*postgres.host, postgres.port, &*postgres.database), ("prod", 7, "db"));
            config.set(name, postgres.host("staging"));
            assert_eq!(moved(config, name), "postgres://staging:7/db");
        }
        #[cfg(feature = "mysql")]
        {
            use resource_pool::config::MySqlConfig;

            let (mut config, name) = of("mysql", "mariadb://me:p4ss@prod:7/db");
            let mysql = config.get::<MySqlConfig>(name).unwrap().clone();
            assert_eq!((&*mysql.host, mysql.port, &*mysql.database), ("prod", 7, "db"));
            config.set(name, mysql.host("staging"));
            assert_eq!(moved(config, name), "mysql://staging:7/db");
        }
    }
}

/// A variable that several kinds share is read by the kind that it names, and by no other one.
#[cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[test]
fn config_of_a_shared_variable_is_read_by_the_kind_that_it_names() {
    const DEFAULTS: [&str; 3] = ["postgres://localhost:5432/postgres", "mysql://localhost:3306/", "database.sqlite"];
    let ends = |variables: &[(&str, &str)], expected: [&str; 3]| {
        let pool = ResourcePool::builder().environment(variables.iter().copied()).build().unwrap();
        let found = ["postgres", "mysql", "sqlite"].map(|name| endpoint(&pool, name));
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.ends_with(expected), "{variables:?}: {found}, not {expected}");
        }
    };
    let [postgres, mysql, sqlite] = DEFAULTS;
    ends(&[("DATABASE_URL", "postgresql://h/d")], ["postgres://h:5432/d", mysql, sqlite]);
    ends(&[("DATABASE_URL", "mysql://h/d")], [postgres, "mysql://h:3306/d", sqlite]);
    ends(&[("DATABASE_URL", "MariaDB://h/d")], [postgres, "mysql://h:3306/d", sqlite]);
    ends(&[("DATABASE_URL", "sqlite:///tmp/d.db")], [postgres, mysql, "sqlite:///tmp/d.db"]);
    for name in ["postgres", "mysql", "sqlite"] {
        let (key, problem) = asked(builder([("DATABASE_URL", "mongodb://h/d")]), name);
        assert_eq!(key, "DATABASE_URL");
        assert!(problem.contains("no kind reads; expected `postgres:`, `postgresql:`"), "{problem}");
    }
    // A kind that has its place elsewhere has no use for it.
    for (name, text) in [
        ("postgres", "[postgres]\nhost = 'h'"),
        ("mysql", "[mysql]\nurl = 'mysql://h/d'"),
        ("sqlite", "[sqlite]\nfile = 'h.sqlite'"),
    ] {
        let pool = builder([("DATABASE_URL", "mongodb://h/d")]).config_str(text).build().unwrap();
        assert!(endpoint(&pool, name).contains('h'), "{}", endpoint(&pool, name));
        assert!(endpoint(&pool, name).contains(if name == "sqlite" { "h.sqlite" } else { "//h:" }));
    }
    // The kind's own variable comes first.
    ends(&[("DATABASE_URL", "mysql://h/d"), ("MYSQL_URL", "mysql://own/d")], [postgres, "mysql://own:3306/d", sqlite]);
    let parts = [("DB_HOST", "h"), ("DB_PORT", "7"), ("DB_USERNAME", "u"), ("DB_PASSWORD", "p"), ("DB_NAME", "/n")];
    let of = |kind| [&parts[..], &[("DB_KIND", kind)]].concat();
    ends(&parts, DEFAULTS);
    ends(&of("postgres"), ["postgres://h:7/%2Fn", mysql, sqlite]);
    ends(&of("MySQL"), [postgres, "mysql://h:7/%2Fn", sqlite]);
    ends(&of("sqlite"), [postgres, mysql, "sqlite:///n"]);
    ends(&of("oracle"), DEFAULTS);
    ends(&[&of("mysql")[..], &[("MYSQL_HOST", "own")]].concat(), [postgres, "mysql://own:7/%2Fn", sqlite]);
}

/// Runs again as a process of its own, with variables.
#[test]
fn config_of_the_process_is_loaded_as_a_value() {
    use std::process::Command;

    if std::env::var_os("RESOURCE_POOL_REDIS_FAR_URL").is_some() {
        let loaded = Config::load();
        if std::env::var("REDIS_PORT").as_deref() == Ok("six") {
            assert_eq!(wrong_of(loaded.map(drop)).0, "REDIS_PORT");
        } else {
            let pool = builder([]).config(loaded.unwrap()).build().unwrap();
            assert_eq!(endpoint(&pool, "redis"), "redis://from-toml:7/0");
            assert_eq!(endpoint(&pool, "far"), "redis://far:6379/0");
        }
        return;
    }
    let file = toml("loaded", "[redis]\nhost = 'from-toml'\n");
    for port in ["7", "six"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "config_of_the_process_is_loaded_as_a_value"]).env("REDIS_PORT", port);
        again.env(CONFIG_FILE, &file).env("RESOURCE_POOL_REDIS_FAR_URL", "redis://far");
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}

/// The fields of a value, with their `Debug` texts.
fn fields(value: &dyn std::fmt::Debug) -> Vec<(String, String)> {
    let text = format!("{value:#?}");
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        match (line.strip_prefix(' '), line.split_once(": ")) {
            (None, Some((field, value))) => fields.push((field.to_owned(), value.to_owned())),
            (_, _) => fields.last_mut().expect("a field").1.push_str(line),
        }
    }
    fields
}

/// Checks that each field but these differs from its default, since a setter has set it.
fn all_are_set(value: &dyn std::fmt::Debug, default: &dyn std::fmt::Debug, but: &[&str]) {
    let (fields, defaults) = (fields(value), fields(default));
    assert_eq!(fields.len(), defaults.len());
    for ((field, value), (_, default)) in fields.iter().zip(&defaults) {
        // Every secret is shown alike.
        let is_secret = value.starts_with("***");
        assert_eq!(value == default && !is_secret, but.contains(&&**field), "{field}: {value}, default {default}");
    }
}

/// Every public field has a setter. The URL is set by the constructor.
#[test]
fn config_every_field_has_a_setter() {
    use resource_pool::config::{CloseOptions, HealthOptions, LeakOptions, ProbeOptions, Repeat, Retry};

    let time = Duration::from_millis(1234);
    let tls = || TlsOptions::default().ca_file("a").cert_file("b").key_file("c").server_name("d");
    all_are_set(&tls(), &TlsOptions::default(), &[]);
    let redis = RedisConfig::url("redis://h").host("h").port(1).user("u").password("p").password_file("f").db(2);
    let redis = redis.client_name("c").pool_size(3).min_idle(4).exclusive_size(5).idle_timeout(time).max_lifetime(time);
    let redis = redis.test_after(time).test_limit(time).connect_timeout(time).keepalive(time).tls(tls());
    let redis = redis.test_idle_after(time).socket("s").operation_timeout(time).on_connect(["PING"]);
    all_are_set(&redis, &RedisConfig::default(), &[]);
    let mongo =
        MongoConfig::uri("mongodb://h").host("h").port(1).user("u").password("p").password_file("f").database("d");
    let mongo = mongo.auth_source("a").replica_set("r").app_name("n").max_pool_size(1).min_pool_size(2);
    let mongo = mongo.max_idle_time(time).heartbeat(time).connect_timeout(time).server_selection_timeout(time);
    all_are_set(&mongo.tls(tls()), &MongoConfig::default(), &["options"]);
    let rabbit =
        RabbitMqConfig::url("amqp://h").host("h").port(1).user("u").password("p").password_file("f").vhost("v");
    let rabbit = rabbit.connection_name("n").heartbeat(time).frame_max(1).channel_max(2).max_channels(3).prefetch(4);
    let rabbit = rabbit.confirm_window(5).confirm_window_bytes(6).confirm_timeout(time).operation_timeout(time);
    let rabbit = rabbit.disconnect_timeout(time);
    all_are_set(&rabbit.tls(tls()), &RabbitMqConfig::default(), &[]);
    let house = ClickHouseConfig::url("http://h").host("h").port(1).user("u").password("p").password_file("f");
    let house = house.database("d").max_threads(1).max_block_size(2).insert_block_size(3).cancel_dropped(false);
    let house = house.setting("s", "v").compression(false).validation(true).max_connections(4).max_idle(5);
    let house = house.idle_timeout(time).connect_timeout(time).keepalive(time).tls(tls()).flush_timeout(time);
    let house = house.operation_timeout(time);
    all_are_set(&house, &ClickHouseConfig::default(), &[]);
    #[cfg(feature = "postgres")]
    {
        use resource_pool::config::PostgresConfig;
        let config = PostgresConfig::url("postgres://h").host("h").port(1).user("u").password("p").password_file("f");
        let config = config.database("d").application_name("n").pool_size(1).max_overflow(2).pool_timeout(time);
        let config = config.pool_recycle(time).pre_ping(false).overflow_timeout(time).tls(tls());
        let config = config.hosts(["h2"]).target(resource_pool::PostgresTarget::Any);
        let config = config.test_idle_after(time).on_connect(|_| Box::pin(async { Ok(()) }));
        all_are_set(&config, &PostgresConfig::default(), &[]);
    }
    #[cfg(feature = "mysql")]
    {
        use resource_pool::config::MySqlConfig;
        let config = MySqlConfig::url("mysql://h").host("h").port(1).user("u").password("p").password_file("f");
        let config = config.database("d").pool_size(1).max_overflow(2).pool_timeout(time).pool_recycle(time);
        let config = config.pre_ping(false).overflow_timeout(time).tls(tls()).test_idle_after(time);
        all_are_set(&config.on_connect(|_| Box::pin(async { Ok(()) })), &MySqlConfig::default(), &[]);
    }
    #[cfg(feature = "sqlite")]
    {
        use resource_pool::config::SqliteConfig;
        let config = SqliteConfig::file("f").create(true).read_only(true).wal(false).busy_timeout(time);
        let config = config.operation_timeout(time).pool_size(1).max_overflow(2).pool_timeout(time);
        let config = config.pool_recycle(time).pre_ping(false).overflow_timeout(time).test_idle_after(time);
        all_are_set(&config.on_connect(|_| Box::pin(async { Ok(()) })), &SqliteConfig::default(), &["url"]);
    }
    let retry = Retry::default().attempts(1).base(time).cap(time).budget(time).recovery(time);
    all_are_set(&retry, &Retry::default(), &[]);
    let probe = ProbeOptions::default().enabled(false).interval(time).limit(time).strikes(1);
    all_are_set(&probe, &ProbeOptions::default(), &[]);
    let health = HealthOptions::default().each(time).all(time).cache(time).slow(time).optional(["redis"]);
    all_are_set(&health, &HealthOptions::default(), &[]);
    let leaks = LeakOptions::default().age(time).count(1).shared(true).backtrace(true);
    all_are_set(&leaks, &LeakOptions::default(), &[]);
    let close = CloseOptions::default().deadline(time).drain(time).held(time).step(time).long_step(time).floor(time);
    let close = close.stderr(false).delay(time);
    all_are_set(&close, &CloseOptions::default(), &[]);
    let options = Options::default().acquire_timeout(time).connect_timeout(time).circuit(time).retry(retry);
    let options = options.repeat(Repeat::Never).probe(probe).health(health).leaks(leaks).close(close).events(1);
    let options = options.worker_threads(1_usize).trace_operations(true);
    all_are_set(&options.signals(false).exit_status(ExitStatus::Zero), &Options::default(), &[]);
}

/// The database that knows the user is a part of its own. The URI's own counts in the same layer.
#[test]
fn config_mongo_auth_source_is_a_part() {
    let source = |file: &str, environment: &[(&str, &str)]| {
        let (_, said, _) = effective("mongo", file, environment);
        let (_, said) = said.split_once("auth_source: ").unwrap();
        said.split(',').next().unwrap().to_owned()
    };
    let variable = ("MONGODB_AUTH_SOURCE", "users");
    let by_env = ("MONGODB_URI", "mongodb://me:p4ss@h/db");
    for (file, environment, expected) in [
        ("", vec![("MONGODB_USER", "me"), ("MONGODB_PASSWORD", "p4ss"), variable], "users"),
        ("[mongo]\nuser = 'me'\npassword = 'p4ss'\nauth_source = 'a b'", vec![], "a b"),
        ("[mongo]\nuser = 'me'\npassword = 'p4ss'\nauth_source = 'below'", vec![variable], "users"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/db'", vec![], "db"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/db'", vec![variable], "users"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/db'\nauth_source = 'a b'", vec![], "db"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h'\nauth_source = 'a b'", vec![], "a b"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/db?AuthSource=x'", vec![variable], "users"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/db?authSource=x'\nauth_source = 'y'", vec![], "x"),
        ("", vec![by_env, variable], "db"),
        ("", vec![("MONGODB_URI", "mongodb://me:p4ss@h/?w=1"), variable], "users"),
        ("[mongo]\nauth_source = 'below'", vec![("MONGODB_URI", "mongodb://me:p4ss@h")], "admin"),
        ("[mongo]\nauth_source = 'below'", vec![by_env], "db"),
        ("[mongo]\nuri = 'mongodb://me:p4ss@h/?authMechanism=SCRAM-SHA-256'", vec![variable], "users"),
        ("", vec![("MONGODB_URI", "mongodb://me:p4ss@h/db?authSource=x"), variable], "x"),
    ] {
        assert_eq!(source(file, &environment), format!("Some({expected:?})"), "{file} {environment:?}");
    }
    // A login by a certificate belongs to no database.
    let by_certificate = ("[mongo]\nuri = 'mongodb://me@h/?authMechanism=MONGODB-X509&tls=true'", &[variable]);
    assert_eq!(source(by_certificate.0, by_certificate.1), "Some(\"$external\")");
    let named =
        [("RESOURCE_POOL_MONGO_FAR_URL", "mongodb://me:p4ss@h"), ("RESOURCE_POOL_MONGO_FAR_AUTH_SOURCE", "users")];
    assert_eq!(endpoint(&builder(named).build().unwrap(), "far"), "mongodb://h:27017/quantaxis");
}

/// A resource on localhost by default is told of where others are configured, once.
#[test]
fn config_default_beside_configured_resources_is_told_once() {
    let lines = |builder: Builder<ResourcePool>, name: &'static str| {
        let mut options = Options::default();
        options.retry.attempts = 1;
        options.circuit = Duration::ZERO;
        let pool = builder.options(options).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ask =
            async { tokio::time::timeout(Duration::ZERO, pool.within(Duration::from_millis(1)).warm_up([name])).await };
        let (_, log) = Log::during(|| {
            let _ = pool.status().to_string();
            let _ = runtime.block_on(ask);
            let _ = blocking::ResourcePool::from(pool.within(Duration::from_millis(1))).warm_up([name]);
        });
        let told = log.lines().filter(|line| line.contains("is expected on localhost"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let other = ("MONGODB_URI", "mongodb://h");
    for (told, variables) in [
        (
            lines(builder([other]), "redis"),
            "redis is, so it is expected on localhost: set REDIS_URL or REDIS_HOST, or [redis] in TOML",
        ),
        (lines(builder([other, ("REDIS_PORT", "1")]), "redis"), "REDIS_URL or REDIS_HOST"),
        (lines(builder([]).named("far", RedisConfig::url("redis://h")), "redis"), "REDIS_URL"),
        (
            lines(builder([]).config_str("[named.redis.far]\nport = 1\n[mongo]\nhost = 'h'"), "far"),
            "RESOURCE_POOL_REDIS_FAR_URL",
        ),
    ] {
        assert!(told.len() == 1 && told[0].contains("INFO") && told[0].contains(variables), "{told:?}");
    }
    for told in [
        lines(builder([]), "redis"),
        lines(builder([other, ("REDIS_HOST", "127.0.0.1")]), "redis"),
        lines(builder([other]).resource(RedisConfig::default()), "redis"),
        lines(builder([other]).config_str("[redis]\nurl = 'redis://127.0.0.1:1'"), "redis"),
        lines(builder([("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "1")]).config_str("[pool]\ncircuit_ms = 1"), "redis"),
        lines(builder([("REDIS_PORT", "1")]), "redis"),
    ] {
        assert!(told.is_empty(), "{told:?}");
    }
}

/// A kind of one's own, whose name begins like that of another kind, and which reads no password from a file.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClusterConfig {
    url: Option<Secret>,
    host: String,
    password: Option<Secret>,
    tls: Option<TlsOptions>,
}

struct Cluster(String);

impl Resource for Cluster {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        Ok(())
    }

    fn endpoint(&self) -> String {
        self.0.clone()
    }
}

impl KindConfig for ClusterConfig {
    const KIND: &'static str = "redis_cluster";
    const NAMES: Names = Names {
        url: ("url", &["CLUSTER_URL"]),
        parts: [
            ("host", &["CLUSTER_HOST"]),
            ("port", &[]),
            ("user", &[]),
            ("password", &["CLUSTER_PASSWORD"]),
            ("place", &[]),
        ],
        plain: &[],
        tls: [""; 5],
    };
    type Resource = Cluster;

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.password.is_some()
    }

    fn forget_login(&mut self) {
        self.password = None;
    }

    fn set(&mut self, part: Part, _: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::Password => self.password = Some(text.into()),
            _ => text.clone_into(&mut self.host),
        }
        Ok(())
    }

    fn take_apart(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn resource(&self, name: &str) -> Result<Cluster, Error> {
        Ok(Cluster(self.settled(name)?.host))
    }
}

/// A kind of one's own has variables for its named resources, too. The longer kind counts, unless the name is
/// configured for the shorter one.
#[test]
fn config_environment_sets_named_resources_of_other_kinds() {
    let variables = [
        ("RESOURCE_POOL_REDIS_CLUSTER_A_HOST", "for-a"),
        ("RESOURCE_POOL_REDIS_CLUSTER_B_HOST", "for-b"),
        ("RESOURCE_POOL_REDIS_C_HOST", "for-c"),
        ("RESOURCE_POOL_REDIS_CLUSTER_D_HOST", "for-d"),
        ("CLUSTER_HOST", "default"),
        ("CLUSTER_PASSWORD", "p4ss"),
        ("CLUSTER_PASSWORD_FILE", "/is/not/read"),
    ];
    let toml = "[named.redis.cluster-b]\nport = 7\n[named.redis_cluster.d]\nhost = 'below'\n";
    let pool = builder(variables).kind::<ClusterConfig>().config_str(toml).build().unwrap();
    for (name, at) in [
        ("a", "for-a"),
        ("cluster-b", "redis://for-b:7/0"),
        ("c", "redis://for-c:6379/0"),
        ("d", "for-d"),
        ("redis_cluster", "default"),
    ] {
        assert_eq!(endpoint(&pool, name), at);
    }
    let unknown = [("RESOURCE_POOL_REDIS_CLUSTER_A_HOST", "h"), ("RESOURCE_POOL_REDIS_CLUSTER_A_PORT", "1")];
    let pool = builder(unknown).kind::<ClusterConfig>();
    // This kind has no port, so the variable is one of a Redis `cluster_a`.
    let pool = pool.build().unwrap();
    assert_eq!((endpoint(&pool, "a"), endpoint(&pool, "cluster_a")), ("h".into(), "redis://localhost:1/0".into()));
    let config = Config::parse("[redis]\nhost = 'a'\n").unwrap();
    let pool = builder([("CLUSTER_HOST", "h")]).kind::<ClusterConfig>().config(config).build().unwrap();
    assert_eq!((endpoint(&pool, "redis_cluster"), endpoint(&pool, "redis")), ("h".into(), "redis://a:6379/0".into()));
}
