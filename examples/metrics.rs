//! A program that Prometheus can scrape: a task and a thread read a price from Redis, and `/metrics` tells how that goes.
//!
//! The page `docs/monitoring.md` has a configuration for Prometheus, alert rules, and a dashboard for Grafana.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;
use redis::{AsyncCommands, Commands};
use resource_pool::metrics::Metrics;
use resource_pool::{Closing, ResourcePool, blocking};
use tokio::net::TcpListener;

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let exporter = PrometheusBuilder::new().set_buckets(&Metrics::BUCKETS)?.install_recorder()?;
    let pool = ResourcePool::global();
    let metrics = Metrics::install(pool)?;

    pool.spawn("reader", read)?;
    let threads = blocking::ResourcePool::global();
    threads.spawn_thread("reader thread", |closing| {
        while !closing.is_set() {
            // An error is in the metrics, and the next round tries again.
            let _price = threads.redis().map(|mut redis| redis.get::<_, Option<f64>>("price"));
            std::thread::sleep(Duration::from_millis(200));
        }
    })?;

    let scrape = move || {
        metrics.observe();
        let text = exporter.render();
        async move { text }
    };
    let app = Router::new().route("/metrics", get(scrape));
    let listener = TcpListener::bind(std::env::var("LISTEN").unwrap_or("127.0.0.1:8080".to_owned())).await?;
    println!("listening on {}", listener.local_addr()?);
    let closing = pool.closing();
    Ok(axum::serve(listener, app).with_graceful_shutdown(async move { closing.wait().await }).await?)
}

/// Reads the price ten times a second, and asks for the health of all resources once a second.
async fn read(closing: Closing) {
    let pool = ResourcePool::global();
    for round in 0_u64.. {
        if closing.is_set() {
            return;
        }
        if let Ok(redis) = pool.redis().await {
            let _price = redis.clone().get::<_, Option<f64>>("price").await;
        }
        if round % 10 == 0 {
            pool.health_check().await;
        }
        tokio::select! {
            () = closing.wait() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}
