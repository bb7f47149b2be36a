//! RabbitMQ in async code: a queue that is deleted with its connection, confirms, one message fetched, the rest
//! consumed.

use anyhow::{Context, Result, ensure};
use resource_pool::ResourcePool;
use resource_pool::rabbitmq::{Consume, Message, Queue};

fn main() -> Result<()> {
    resource_pool::run(publish_and_consume())?
}

async fn publish_and_consume() -> Result<()> {
    let rabbitmq = ResourcePool::global().rabbitmq().await?;
    let queue = rabbitmq.declare_queue(Queue::temporary()).await?;

    // The default exchange routes to the queue that the key names.
    let bars =
        (1..=3).map(|day| Message::new("", queue.name(), format!(r#"{{"code":"000001","date":"2024-01-0{day}"}}"#)));
    let batch = rabbitmq.publish_batch(bars).await?;
    ensure!(batch.all_confirmed(), "{} of 3 were confirmed", batch.confirmed());
    println!("the broker has {} messages", batch.confirmed());

    let first = rabbitmq.get(queue.name()).await?.context("the queue is empty")?;
    println!("fetched  {}", String::from_utf8_lossy(first.data()));
    first.ack().await?;

    let mut consumer = rabbitmq.consume(Consume::from(queue.name()).prefetch(10)).await?;
    for _ in 0..2 {
        let delivery = consumer.next().await.context("the consumer has ended")??;
        println!("consumed {}", String::from_utf8_lossy(delivery.data()));
        delivery.ack().await?;
    }
    Ok(())
}
