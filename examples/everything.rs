//! A resource of every sort in one program. Each is used once, and the pool closes all of them in the order of their
//! phases, each within a limit of its own. One hangs on purpose, and holds up none of the others.
//!
//! The environment says where the servers are: `MONGODB_URI`, `AMQP_URL`, `CLICKHOUSE_URL`, `REDIS_URL`, `POSTGRES_URL`,
//! `MYSQL_URL`, `SQLITE_URL`, `HTTPCLIENT_URL`, `OPENAI_BASE_URL`, `CHROMA_URL` and `ELASTIC_URL`.

use std::future::pending;
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mongodb::bson::doc;
use redis::AsyncCommands;
use resource_pool::config::{CloseOptions, Options};
use resource_pool::rabbitmq::Queue;
use resource_pool::{ChatRequest, ChildProcess, Phase, ResourcePool, sqlx};
use serde_json::json;

#[resource_pool::main(builder = ResourcePool::builder().options(options()))]
async fn main() -> anyhow::Result<()> {
    let pool = ResourcePool::global();
    pool.on_report(|report| {
        for step in &report.steps {
            println!("{}: {} is {}", step.phase, step.name, step.outcome);
        }
    });
    let name = format!("resource_pool_example_everything_{}", std::process::id());

    pool.spawn("ticker", |closing| async move { closing.wait().await })?;
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let child = pool.child("sleeper", ChildProcess::new(sleeper)).await?;

    let page = pool.http().await?.get("/").send().await?.checked().await?.text().await?;
    let answer = pool.llm().await?.chat(ChatRequest::user("Is 000001 a bank?").model("small")).await?;

    let rabbitmq = pool.rabbitmq().await?;
    rabbitmq.declare_queue(Queue::new(&*name).transient()).await?;
    rabbitmq.delete_queue(&name).await?;

    let mut redis = pool.redis().await?.clone();
    let () = redis.set(&name, 9.21).await?;
    let () = redis.del(&name).await?;

    let chroma = pool.chroma().await?;
    let stored = chroma.get_or_create(&*name).await?.count().await?;
    chroma.delete(&name).await?;
    let elastic = pool.elastic().await?;
    elastic.index(&name, "1", &json!({ "close": 9.21 })).await?;
    elastic.delete_index(&name).await?;
    // A step that never ends. The others of its phase do not wait for it, and the next phase begins after its limit.
    pool.on_close_async("hangs", Phase::VectorStores, pending)?;

    let one: u8 = pool.clickhouse().await?.query("SELECT 1").fetch_one().await?;

    pool.mongo().await?.database("admin").run_command(doc! { "ping": 1 }).await?;
    let two: i32 = sqlx::query_scalar("SELECT 2").fetch_one(&mut pool.postgres().await?).await?;
    let three: i64 = sqlx::query_scalar("SELECT 3").fetch_one(&mut pool.mysql().await?).await?;
    let four: i64 = sqlx::query_scalar("SELECT 4").fetch_one(&mut pool.sqlite().await?).await?;

    let model = pool.model("momentum", || Ok(vec![0.5_f32; 1 << 20])).await?;
    pool.adopt("client", &CLIENT, Phase::Models, |_| Ok(()))?;
    let journal = pool.file("journal", std::env::temp_dir().join(&name)).await?;
    writeln!(&*journal, "{page} {} {stored} {one} {two} {three} {four} {}", answer.text(), model.len())?;
    let scratch = pool.temp_dir().await?;
    pool.on_close("telemetry", Phase::Telemetry, || Ok(()))?;

    println!("process {:?} runs, {} is there, and so is {}", child.id()?, scratch.path().display(), *CLIENT);
    std::fs::remove_file(std::env::temp_dir().join(&name))?;
    Ok(())
}

/// The pool holds it weakly, and would forget it if it was dropped before.
static CLIENT: LazyLock<Arc<String>> = LazyLock::new(|| Arc::new("a client of its own".to_owned()));

/// A step has half a second, and one of the tasks or the databases 2 s.
fn options() -> Options {
    let close = CloseOptions::default().step(Duration::from_millis(500)).long_step(Duration::from_secs(2));
    Options::default().close(close)
}
