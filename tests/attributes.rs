//! `#[resource_pool::main]` and `#[resource_pool::test]`. How a process ends by them is in `exits.rs`.

#![cfg(all(feature = "macros", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::process::ExitCode;
use std::rc::Rc;

use redis::AsyncCommands;
use resource_pool::config::RedisConfig;
use resource_pool::{Builder, Error, Phase, ResourcePool};
use services::{Kind, shared};
use tokio::runtime::Handle;

fn of_redis() -> Builder<ResourcePool> {
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(common::unhurried());
    builder.resource(RedisConfig::url(shared(Kind::Redis).url()))
}

#[resource_pool::test(builder = of_redis(), worker_threads = 3)]
async fn a_test_has_a_pool_of_its_own(pool: ResourcePool) -> Result<(), Box<dyn std::error::Error>> {
    // It keeps the future from being `Send`, which a body need not be.
    let key = Rc::new("attributes:own");
    let mut redis = pool.redis().await?.clone();
    let () = redis.set(*key, "long").await?;
    let here = Handle::current();
    let there = tokio::spawn(async { Handle::current().id() }).await?;
    assert_eq!((here.id(), here.metrics().num_workers()), (there, 3));
    let signal: String = redis.get(*key).await?;
    assert_eq!(signal, "long");
    Ok(())
}

#[resource_pool::test]
async fn a_test_needs_no_parameter() {
    tokio::task::yield_now().await;
}

#[resource_pool::test(builder = of_redis())]
#[should_panic(expected = "the pool of this test did not close: closed in")]
async fn a_test_whose_pool_does_not_close_fails(pool: ResourcePool) {
    pool.on_close("hook", Phase::Files, || Err("as the test asked".into())).unwrap();
}

#[resource_pool::test(builder = ResourcePool::builder().config_file("/nowhere/pool.toml"))]
#[should_panic(expected = "/nowhere/pool.toml cannot be read")]
async fn a_test_whose_pool_cannot_be_built_fails() {
    unreachable!("there is no pool");
}

#[resource_pool::test(builder = of_redis())]
#[should_panic(expected = "as the test asked")]
async fn a_panic_is_the_tests_own(pool: ResourcePool) {
    drop(pool.redis().await.unwrap());
    panic!("as the test asked");
}

#[resource_pool::main(builder = of_redis())]
async fn program() -> Result<ExitCode, Error> {
    let of_program = Rc::new(ResourcePool::global());
    let key: Option<String> = of_program.redis().await?.clone().get("attributes:none").await.unwrap();
    assert_eq!(key, None);
    Err(of_program.redis_named("nobody").await.unwrap_err())
}

#[test]
fn main_returns_what_its_body_does_and_closes_the_global_pool() {
    assert!(matches!(program(), Err(Error::UnknownName { .. })));
    assert!(resource_pool::blocking::ResourcePool::global().redis().unwrap_err().is_closed());
}
