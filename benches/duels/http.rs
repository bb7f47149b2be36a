//! Times requests over HTTP on the loopback, one after the other and many at once, beside reqwest by itself.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use resource_pool::config::HttpConfig;
use resource_pool::{Http, ResourcePool, reqwest};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::duel::{Duel, Unit};
use crate::session::{Session, milliseconds};

const ANSWER: &str = "101.25";
/// The number of requests in one round.
const REQUESTS: usize = 10_000;
/// How many tasks send them at once.
const TASKS: usize = 16;

pub(crate) fn run(session: &Session) {
    let (served, runtime) = (Builder::new_multi_thread().worker_threads(1).enable_all().build(), Runtime::new());
    let (served, runtime) = (served.expect("a runtime"), runtime.expect("a runtime"));
    let listener = served.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let url: Arc<str> = format!("http://{}/price", listener.local_addr().expect("an address")).into();
    let router = Router::new().route("/price", get(async || ANSWER));
    served.spawn(async move { axum::serve(listener, router).await });
    let pool: ResourcePool = ResourcePool::builder()
        .environment([("", ""); 0])
        .runtime(runtime.handle().clone())
        .resource(HttpConfig::url(url.to_string()))
        .build()
        .expect("a pool");
    let http: Http = runtime.block_on(pool.http()).expect("it needs no server").clone();
    let bare = bare();
    for (tasks, id, what) in
        [(1, "http_get_1", "10,000 GETs, one after the other"), (TASKS, "http_get_16", "10,000 GETs by 16 tasks")]
    {
        let count = session.times(REQUESTS).div_ceil(tasks);
        let ours = || {
            let http = http.clone();
            async move {
                for _ in 0..count {
                    let answer = http.get("").send().await.expect("an answer");
                    assert_eq!(&*answer.bytes().await.expect("its body"), ANSWER.as_bytes());
                }
            }
        };
        let theirs = || {
            let (bare, url) = (bare.clone(), Arc::clone(&url));
            async move {
                for _ in 0..count {
                    let answer = bare.get(&*url).send().await.expect("an answer");
                    assert_eq!(&*answer.bytes().await.expect("its body"), ANSWER.as_bytes());
                }
            }
        };
        Duel::new(id, what, Unit::Milliseconds)
            .contestant("resource_pool", || all(&runtime, tasks, ours))
            .contestant("reqwest", || all(&runtime, tasks, theirs))
            .times_faster_than("resource_pool", "reqwest", 0.95, 1.0)
            .because("a place, the counts for closing, and a look at the kill switch for each request and body")
            .note("On the clock, on connections that are used again. The server is axum in the same process.")
            .run(session);
    }
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

/// The time until so many tasks have done this, in milliseconds.
fn all<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, tasks: usize, work: impl Fn() -> F) -> f64 {
    milliseconds(|| {
        runtime.block_on(async {
            let mut running = JoinSet::new();
            for _ in 0..tasks {
                running.spawn(work());
            }
            while let Some(done) = running.join_next().await {
                done.expect("no panic");
            }
        });
    })
}

fn bare() -> reqwest::Client {
    // It sends the same bytes.
    let builder = reqwest::Client::builder().no_proxy().user_agent("resource-pool").pool_max_idle_per_host(TASKS);
    #[cfg(feature = "tls")]
    let builder = {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("ring has them").with_root_certificates(rustls::RootCertStore::empty());
        builder.tls_backend_preconfigured(config.with_no_client_auth())
    };
    builder.build().expect("a client")
}
