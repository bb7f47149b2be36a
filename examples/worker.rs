//! A worker: orders from a queue go to MongoDB, sixteen at once. An order that cannot be booked is tried four times
//! more, and then waits in the queue `orders.dead` for somebody to look at it.
//!
//! An order may be handled twice, so booking it twice does no harm.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mongodb::bson::{Document, doc};
use resource_pool::ResourcePool;
use resource_pool::rabbitmq::{Consume, Delivery, Queue};
use serde::Deserialize;

const AT_ONCE: u16 = 16;

#[derive(Debug, Deserialize)]
struct Order {
    id: String,
    code: String,
    price: f64,
    volume: i64,
}

#[resource_pool::main]
async fn main() -> Result<()> {
    let pool = ResourcePool::global();
    let rabbitmq = pool.rabbitmq().await?;
    rabbitmq.declare_queue(Queue::new("orders.dead")).await?;
    rabbitmq.declare_queue(Queue::new("orders").dead_letter("", Some("orders.dead"))).await?;
    let orders = Consume::from("orders").prefetch(AT_ONCE).attempts(5, Duration::from_secs(1));
    let orders = rabbitmq.consume(orders).await?;
    println!("working");
    let handled = orders.for_each_concurrent(AT_ONCE.into(), book).await?;
    println!("{handled}");
    Ok(())
}

async fn book(delivery: &Delivery) -> Result<()> {
    let order: Order = serde_json::from_slice(delivery.data()).context("it is no order")?;
    ensure!(order.volume > 0, "order {} has no volume", order.id);
    let booked = doc! { "code": order.code, "price": order.price, "volume": order.volume };
    let mongo = ResourcePool::global().mongo().await?;
    let orders = mongo.default_database().context("the URI names no database")?.collection::<Document>("orders");
    orders.replace_one(doc! { "_id": &order.id }, booked).upsert(true).await?;
    Ok(())
}
