//! Reports, errors and events as data. The examples in the reference have the shape of the real output.

#![cfg(feature = "serde")]
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::{Plain, Unreachable, Within, unhurried, until_async};
use resource_pool::{Error, Phase, ResourcePool, What};
use serde_json::{Value, json};

const EVENTS: &str = include_str!("../docs/reference/events.md");
/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool() -> ResourcePool {
    let mut options = unhurried();
    options.leaks.shared = true;
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    pool.register("plain", Plain).unwrap();
    pool.register("unreachable", Unreachable("fake://nowhere")).unwrap();
    pool
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// The entry of this name in a list of resources.
fn named(list: &Value, name: &str) -> Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
}

/// The example after this title, in the section of the page that shows data.
fn example(title: &str) -> Value {
    let (_, section) = EVENTS.split_once("## As data").unwrap();
    let (_, text) = section.split_once(title).unwrap_or_else(|| panic!("no example of {title}"));
    let (_, text) = text.split_once("```json\n").unwrap();
    let (text, _) = text.split_once("```").unwrap();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{title}: {error}"))
}

/// Objects with one field for each kind of work in them. Their fields differ from run to run.
const COUNTS: [&str; 4] = ["work", "finished", "given_up", "unfinished"];

/// Checks that both have the same fields at every level, and the same types unless one is null.
#[track_caller]
fn assert_same_shape(title: &str, told: &Value, real: &Value) {
    match (told, real) {
        (Value::Object(told), Value::Object(real)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(told), keys(real), "{title}");
            for (key, value) in told.iter().filter(|(key, _)| !COUNTS.contains(&key.as_str())) {
                assert_same_shape(&format!("{title}.{key}"), value, &real[key]);
            }
        }
        (Value::Array(told), Value::Array(real)) => {
            if let ([told, ..], [real, ..]) = (&told[..], &real[..]) {
                assert_same_shape(title, told, real);
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        (told, real) => {
            let kind = std::mem::discriminant::<Value>;
            assert_eq!(kind(told), kind(real), "{title}: {told} and {real}");
        }
    }
}

#[track_caller]
fn assert_told(title: &str, real: &Value) {
    println!("{title}\n{}", serde_json::to_string(real).unwrap());
    assert_same_shape(title, &example(title), real);
}

#[tokio::test]
async fn status_and_holders_are_data() {
    let pool = pool();
    let lease = pool.get::<Plain>("plain").await.unwrap();
    pool.get::<Unreachable>("unreachable").await.unwrap_err();
    let status = json(&pool.status());
    let unreachable = named(&status["resources"], "unreachable");
    assert_eq!(unreachable["state"], "broken");
    assert_eq!(unreachable["error"]["code"], "connect");
    assert_eq!(unreachable["nodes"][0]["endpoint"], "fake://nowhere");
    let plain = named(&status["resources"], "plain");
    assert_eq!((&plain["leases"], &plain["error"], &plain["usage"]["max"]), (&1.into(), &Value::Null, &Value::Null));
    assert_told("`ResourceStatus`", &unreachable);
    assert_eq!(status["closing"], false);
    let holder = json(&pool.holders()[0]);
    assert!(holder["site"].as_str().unwrap().starts_with("tests/json.rs:"), "{holder}");
    assert_told("`Holder`", &holder);
    drop(lease);
}

#[tokio::test]
async fn health_is_data_for_everybody_and_in_full() {
    let pool = pool();
    drop(pool.get::<Plain>("plain").await.unwrap());
    pool.get::<Unreachable>("unreachable").await.unwrap_err();
    let report = pool.health_check().await;
    let told = json(&report);
    assert_told("A `HealthReport`", &told);
    assert_told("`HealthEntry`", &named(&told["entries"], "unreachable"));
    assert!(named(&told["entries"], "plain")["latency_ms"].is_number());
    let age = Duration::from_millis(told["at_ms"].as_f64().unwrap() as u64);
    assert!(age < std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap());

    assert_eq!(json(&report.public_json()).to_string(), r#"{"status":"fail"}"#);
    let full = json(&report.full_json());
    assert_eq!(full["checks"]["plain:responseTime"][0]["status"], "pass");
    let unreachable = &full["checks"]["unreachable:responseTime"][0];
    assert!(unreachable["output"].as_str().unwrap().contains("nobody is there"), "{full}");
    let written = json!({ "status": full["status"], "checks": { "redis:responseTime": [unreachable] } });
    assert_told("`full_json()` has", &written);
    // A resource that nobody has asked for has no status.
    let unasked = full["checks"].as_object().unwrap().values().find(|check| check[0].get("status").is_none());
    assert!(unasked.is_some() || cfg!(not(feature = "redis")), "{full}");
}

#[tokio::test]
async fn a_close_is_data() {
    let pool = pool();
    let lease = pool.get::<Plain>("plain").await.unwrap();
    pool.on_close("archive", Phase::Files, || Err("the disk is full".into())).unwrap();
    let report = json(&pool.close_all().within(SOON).await);
    assert_eq!((&report["reason"], &report["signal"]), (&"requested".into(), &Value::Null));
    let (plain, archive) = (named(&report["steps"], "plain"), named(&report["steps"], "archive"));
    assert_eq!(
        (&plain["outcome"], &plain["message"], &plain["phase"]),
        (&"closed".into(), &Value::Null, &"models".into())
    );
    assert_eq!((&archive["outcome"], &archive["message"]), (&"failed".into(), &"the disk is full".into()));
    assert_told("`StepReport`", &plain);
    let mut without = report.clone();
    without["steps"] = Value::Array(Vec::new());
    without["status"]["resources"] = Value::Array(Vec::new());
    assert_told("`CloseReport`", &without);
    drop(lease);
}

#[tokio::test]
async fn errors_are_data() {
    let pool = pool();
    let of = |error: Error| json(&error);
    let connect = of(pool.get::<Unreachable>("unreachable").await.unwrap_err());
    assert_eq!((&connect["code"], &connect["transient"]), (&"connect".into(), &false.into()));
    assert_told("`Error::Connect`", &connect);
    let warm_up = of(pool.warm_up_all().await.unwrap_err());
    assert_eq!(warm_up["failed"]["unreachable"]["code"], "connect");
    let mut without = warm_up.clone();
    without["failed"] = json!({});
    assert_told("`Error::WarmUp`", &without);
    let unknown = of(pool.get::<Plain>("nobody").await.unwrap_err());
    assert_eq!((&unknown["code"], &unknown["name"]), (&"unknown_name".into(), &"nobody".into()));
    let config = ResourcePool::builder().config_file("/nowhere/pool.toml").build().map(drop).unwrap_err();
    assert_eq!(of(config)["code"], "config");
    pool.close_all().await;
    let closed = of(pool.get::<Plain>("plain").await.unwrap_err());
    assert_eq!(
        (&closed["code"], &closed["resource"], &closed["endpoint"]),
        (&"closed".into(), &"plain".into(), &Value::Null)
    );
    assert_eq!(closed["message"], Error::Closed { resource: "plain".into() }.to_string());
}

#[tokio::test]
async fn events_are_data() {
    let pool = pool();
    let mut events = pool.events();
    drop(pool.get::<Plain>("plain").await.unwrap());
    pool.close_all().within(SOON).await;
    let mut told = Vec::new();
    until_async(SOON, async || {
        told.extend(events.try_next());
        told.last().is_some_and(|event| matches!(event.what, What::Closed { .. }))
    })
    .await;
    let told: Vec<_> = told.iter().map(json).collect();
    let of = |what: &str| told.iter().find(|event| event["what"] == what && event["resource"] != Value::Null).unwrap();
    assert_told("`Event`", of("state_changed"));
    assert_eq!((&of("connected")["generation"], &of("connected")["kind"]), (&1.into(), &Value::Null));
    assert_eq!(of("closing")["reason"], "requested");
    assert_eq!(of("step_ended")["step"]["outcome"], "closed");
}

#[cfg(feature = "redis")]
mod of_a_server {
    use resource_pool::blocking;
    use resource_pool::config::RedisConfig;
    use services::{Kind, Service};

    use super::*;

    /// The data of a timeout has its holders.
    #[test]
    fn a_timeout_is_data() {
        let server = Service::start(Kind::Redis).unwrap();
        let pool = blocking::ResourcePool::builder()
            .environment([("", ""); 0])
            .options(unhurried())
            .resource(RedisConfig::url(server.url()).pool_size(1))
            .build()
            .unwrap();
        let held = pool.redis().unwrap();
        let error = pool.within(Duration::from_millis(20)).redis().unwrap_err();
        let told = json(&error);
        assert_eq!(told["holders"][0]["exclusive"], true);
        assert_told("`Error::Timeout`", &told);
        drop(held);
        let deadlock = pool.redis().unwrap().lend(|_| pool.redis().map(drop)).unwrap_err();
        assert_told("`Error::Deadlock`", &json(&deadlock));
        let _held = pool.redis().unwrap();
        let usage = json(&pool.status().resource("redis").unwrap().usage);
        assert_eq!((&usage["max"], &usage["in_use"]), (&1.into(), &1.into()));
    }
}
