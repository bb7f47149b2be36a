//! A collector: ticks from RabbitMQ go to ClickHouse in batches, the last price of each stock to Redis, and bars of a
//! second to another exchange. It ends with everything written.
//!
//! A delivery is acked once its tick is in ClickHouse. So no tick is lost, and one that is written twice replaces itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clickhouse::Row;
use redis::AsyncCommands;
use resource_pool::rabbitmq::{Consume, Delivery, Exchange, Message, Queue};
use resource_pool::{Closing, ResourcePool};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Row, Serialize, Deserialize)]
struct Tick {
    code: String,
    /// Milliseconds since 1970.
    at: u64,
    price: f64,
    volume: u32,
}

/// The prices of one stock in one second.
#[derive(Debug, Serialize)]
struct Bar {
    code: String,
    second: u64,
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: u32,
}

impl Bar {
    fn of(tick: &Tick) -> Self {
        let Tick { code, at, price, volume } = tick.clone();
        Bar { code, second: at / 1000, open: price, high: price, low: price, close: price, volume }
    }

    fn add(&mut self, tick: &Tick) {
        self.high = self.high.max(tick.price);
        self.low = self.low.min(tick.price);
        self.close = tick.price;
        self.volume += tick.volume;
    }
}

#[resource_pool::main]
async fn main() -> Result<()> {
    let pool = ResourcePool::global();
    let rabbitmq = pool.rabbitmq().await?;
    rabbitmq.declare_exchange(Exchange::topic("ticks")).await?;
    rabbitmq.declare_exchange(Exchange::fanout("bars")).await?;
    rabbitmq.declare_queue(Queue::new("collector")).await?;
    rabbitmq.bind("collector", "ticks", "#").await?;
    let create = "CREATE TABLE IF NOT EXISTS ticks (code String, at UInt64, price Float64, volume UInt32)
                  ENGINE = ReplacingMergeTree ORDER BY (code, at)";
    pool.clickhouse().await?.execute(create).await?;
    println!("collecting");
    pool.spawn("collector", collect)?.await?
}

/// Collects until the pool closes, in batches of what comes within a moment.
async fn collect(closing: Closing) -> Result<()> {
    let pool = ResourcePool::global();
    let rabbitmq = pool.rabbitmq().await?.clone();
    let mut consumer = rabbitmq.consume(Consume::from("collector").prefetch(1000)).await?;
    let mut bars = BTreeMap::new();
    loop {
        let mut batch = Vec::new();
        let full = async {
            while batch.len() < 1000
                && let Some(delivery) = consumer.next().await
            {
                batch.push(delivery?);
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = full => ended?,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        if let Err(error) = write(batch, &mut bars).await {
            // The deliveries dropped, and so they went back to the queue.
            eprintln!("a batch has to be written again: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if closing.is_set() {
            return publish(bars.into_values()).await;
        }
    }
}

/// Writes a batch to ClickHouse, Redis and the bars, and then acks it.
async fn write(batch: Vec<Delivery>, bars: &mut BTreeMap<String, Bar>) -> Result<()> {
    let pool = ResourcePool::global();
    let ticks: Vec<Tick> =
        batch.iter().map(|delivery| serde_json::from_slice(delivery.data())).collect::<Result<_, _>>()?;
    if ticks.is_empty() {
        return Ok(());
    }
    pool.clickhouse().await?.insert_rows("ticks", ticks.clone()).await?;
    let last: Vec<_> = ticks.iter().map(|tick| (format!("price:{}", tick.code), tick.price)).collect();
    let () = pool.redis().await?.clone().mset(&last).await.context("the last prices")?;
    let mut done = Vec::new();
    for tick in &ticks {
        match bars.get_mut(&tick.code) {
            Some(bar) if bar.second == tick.at / 1000 => bar.add(tick),
            _ => done.extend(bars.insert(tick.code.clone(), Bar::of(tick))),
        }
    }
    publish(done).await?;
    for delivery in batch {
        delivery.ack().await?;
    }
    Ok(())
}

/// Publishes bars to whoever has a queue for them.
async fn publish(bars: impl IntoIterator<Item = Bar>) -> Result<()> {
    let message = |bar: Bar| Ok(Message::new("bars", &bar.code, serde_json::to_vec(&bar)?).optional());
    let messages = bars.into_iter().map(message).collect::<Result<Vec<_>>>()?;
    let batch = ResourcePool::global().rabbitmq().await?.publish_batch(messages).await?;
    ensure!(batch.all_confirmed(), "{} bars were confirmed", batch.confirmed());
    Ok(())
}
