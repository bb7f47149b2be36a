//! A running pool with its admin address. The address serves what serde makes of the pool's own types.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use resource_pool::{Event, ResourcePool};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

/// The token that the admin wants.
pub(crate) const TOKEN: &str = "s3cret-t0ken-of-the-admin";

/// A pool and its admin.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) pool: ResourcePool,
    pub(crate) address: String,
    pub(crate) runtime: Runtime,
}

/// The names and the data of the messages for all streams.
type News = broadcast::Sender<(&'static str, Value)>;

#[derive(Clone)]
struct Served {
    pool: ResourcePool,
    events: Arc<Mutex<Vec<Value>>>,
    latency: Arc<Mutex<BTreeMap<String, Vec<(f64, Option<f64>)>>>>,
    news: News,
}

impl Admin {
    /// Serves this pool on a free port.
    pub(crate) fn of(pool: ResourcePool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (events, latency) = (Arc::default(), Arc::default());
        let served = Served { pool: pool.clone(), events, latency, news: broadcast::channel(1024).0 };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("its address"));
        let router = Router::new()
            .route("/status", get(|State(served): State<Served>| async move { Json(page(&served.pool).await) }))
            .route(
                "/holders",
                get(|State(served): State<Served>| async move { Json(served.pool.holders()).into_response() }),
            )
            .route("/events", get(events_or_stream))
            .layer(middleware::from_fn(with_token))
            .with_state(served.clone());
        runtime.spawn(collect(served.clone()));
        runtime.spawn(tell(served));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Admin { pool, address, runtime }
    }
}

async fn with_token(request: Request, next: Next) -> Response {
    let told = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match told == Some(&format!("Bearer {TOKEN}")) {
        true => next.run(request).await,
        false => {
            let error = json!({ "error": "the token is missing or wrong", "remedy": "send the token" });
            (StatusCode::UNAUTHORIZED, Json(error)).into_response()
        }
    }
}

async fn page(pool: &ResourcePool) -> Value {
    let health = pool.health_check().await;
    json!({
        "closing": pool.is_closing(),
        "readiness": health.readiness(),
        "status": pool.status(),
        "health": health,
    })
}

/// Keeps the events, and passes them on.
async fn collect(served: Served) {
    let mut events = served.pool.events();
    while let Some(event) = events.next().await {
        let Event { what, .. } = &event;
        let name = match what {
            resource_pool::What::Closing { .. } if event.resource.is_none() => Some(("closing", json!({}))),
            resource_pool::What::StepEnded { step } => Some(("step", json!(step))),
            resource_pool::What::Closed { report } => Some(("closed", json!(report))),
            _ => None,
        };
        let event = json!(event);
        let mut kept = served.events.lock().unwrap();
        kept.push(event.clone());
        let surplus = kept.len().saturating_sub(200);
        kept.drain(..surplus);
        drop(kept);
        let _ = served.news.send(("event", event));
        if let Some(message) = name {
            let _ = served.news.send(message);
        }
    }
}

/// Tells the status every second.
async fn tell(served: Served) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        let mut page = page(&served.pool).await;
        let at = page["health"]["at_ms"].as_f64().unwrap_or_default();
        let mut newest = BTreeMap::new();
        for entry in page["health"]["entries"].as_array().into_iter().flatten().filter(|one| one["health"] != "unknown")
        {
            let name = entry["name"].as_str().unwrap_or_default().to_owned();
            let point = (at, entry["latency_ms"].as_f64());
            served.latency.lock().unwrap().entry(name.clone()).or_default().push(point);
            newest.insert(name, vec![point]);
        }
        page["latency"] = json!(newest);
        page["holders"] = json!(served.pool.holders());
        let _ = served.news.send(("status", page));
    }
}

async fn events_or_stream(
    State(served): State<Served>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json") {
        let last = query.get("last").and_then(|last| last.parse().ok()).unwrap_or(200);
        let kept = served.events.lock().unwrap();
        return Json(kept[kept.len().saturating_sub(last)..].to_vec()).into_response();
    }
    let news = served.news.subscribe();
    let mut snapshot = page(&served.pool).await;
    snapshot = json!({
        "status": snapshot,
        "holders": served.pool.holders(),
        "events": *served.events.lock().unwrap(),
        "latency": *served.latency.lock().unwrap(),
    });
    let first = Some(("snapshot", snapshot));
    let messages = stream::unfold((first, news, false), |(first, mut news, is_over)| async move {
        let (name, data) = match first {
            _ if is_over => return None,
            Some(message) => message,
            None => news.recv().await.ok()?,
        };
        let sent = Sent::default().event(name).data(data.to_string());
        Some((Ok::<_, Infallible>(sent), (None, news, name == "closed")))
    });
    Sse::new(messages).into_response()
}
