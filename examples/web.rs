//! A web service: prices in Redis, probes for an orchestrator, and an end that fails no request.
//!
//! On SIGTERM `/readyz` fails at once. After the delay, `RESOURCE_POOL_CLOSE_DELAY_MS`, the server takes no more connections,
//! ends the requests that it has, and the pool closes.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use redis::AsyncCommands;
use resource_pool::ResourcePool;
use resource_pool::tower::{HoldLayer, Probes};
use tokio::net::TcpListener;

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let pool = ResourcePool::global();
    let app = Router::new()
        .route("/prices/{code}", get(price).put(set_price))
        .with_state(pool.clone())
        .layer(HoldLayer::new(pool))
        .fallback_service(Probes::new(pool));
    let listener = TcpListener::bind(std::env::var("LISTEN").unwrap_or("127.0.0.1:8080".to_owned())).await?;
    println!("listening on {}", listener.local_addr()?);
    let closing = pool.closing();
    Ok(axum::serve(listener, app).with_graceful_shutdown(async move { closing.wait().await }).await?)
}

async fn price(State(pool): State<ResourcePool>, Path(code): Path<String>) -> Result<Json<f64>, Failed> {
    let mut redis = pool.redis().await?.clone();
    let price: Option<f64> = redis.get(format!("price:{code}")).await?;
    price.map(Json).ok_or(Failed(StatusCode::NOT_FOUND, format!("{code} has no price")))
}

async fn set_price(
    State(pool): State<ResourcePool>,
    Path(code): Path<String>,
    Json(price): Json<f64>,
) -> Result<StatusCode, Failed> {
    let mut redis = pool.redis().await?.clone();
    let () = redis.set(format!("price:{code}"), price).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The status and the text of an answer that is no success.
struct Failed(StatusCode, String);

impl From<resource_pool::Error> for Failed {
    fn from(error: resource_pool::Error) -> Self {
        Failed(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<redis::RedisError> for Failed {
    fn from(error: redis::RedisError) -> Self {
        Failed(StatusCode::BAD_GATEWAY, error.to_string())
    }
}

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        (self.0, self.1).into_response()
    }
}
