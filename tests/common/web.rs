//! A real server of HTTP in this process, which tests kill, restart and hold up.
//!
//! Each server has a runtime of its own, so that a kill drops all its sockets at once. The atomics only count.

#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::serve::Listener;
use futures_util::stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// A server of HTTP on a free port of the loopback.
pub(crate) struct WebServer {
    port: u16,
    router: Router,
    accepted: Arc<AtomicUsize>,
    /// `None` while it is killed.
    runtime: Option<Runtime>,
}

impl WebServer {
    pub(crate) fn start(router: Router) -> Self {
        let mut server = WebServer { port: 0, router, accepted: Arc::default(), runtime: None };
        server.restart();
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The number of connections that were ever accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Drops all sockets.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // The runtime drops the listener a moment later.
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::yield_now();
        }
    }

    /// Starts again on the same port.
    pub(crate) fn restart(&mut self) {
        let runtime = runtime();
        // The standard library's listener takes a port of which connections are just closing.
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.port)).expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        self.port = listener.local_addr().expect("an address").port();
        let (accepted, router) = (Arc::clone(&self.accepted), self.router.clone());
        runtime.spawn(async move {
            let listener = Counting(TcpListener::from_std(listener).expect("a listener"), accepted);
            axum::serve(listener, router).await
        });
        self.runtime = Some(runtime);
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Counts the connections that it accepts.
struct Counting(TcpListener, Arc<AtomicUsize>);

impl Listener for Counting {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let accepted = Listener::accept(&mut self.0).await;
        self.1.fetch_add(1, Ordering::SeqCst);
        accepted
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A gate at which handlers wait until the test lets some of them through.
#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Gate { arrived: Arc::default(), open: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) async fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.expect("never closed").forget();
    }

    /// How many have come so far.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    pub(crate) fn let_through(&self, count: usize) {
        self.open.add_permits(count);
    }
}

/// How a body goes on after its parts.
#[derive(Clone)]
pub(crate) enum Ending {
    /// It ends.
    Whole,
    /// It never ends.
    Stalled,
    /// The connection breaks off.
    BrokenOff,
    /// One part more comes once the gate lets it through, and then it ends.
    After(Gate, &'static str),
}

/// A body of these parts.
pub(crate) fn body(parts: &[&'static str], ending: Ending) -> Body {
    let parts: Vec<io::Result<Bytes>> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
    let rest = stream::once(async move {
        match ending {
            Ending::Whole => Ok(Bytes::new()),
            Ending::Stalled => forever().await,
            Ending::BrokenOff => {
                // The parts before this get out first.
                tokio::task::yield_now().await;
                Err(io::Error::other("broken off"))
            }
            Ending::After(gate, part) => {
                gate.pass().await;
                Ok(Bytes::from_static(part.as_bytes()))
            }
        }
    });
    Body::from_stream(futures_util::StreamExt::chain(stream::iter(parts), rest))
}

async fn forever<T>() -> T {
    match std::future::pending::<Infallible>().await {}
}

/// Waits in a handler for ever.
pub(crate) fn hang() -> impl Future<Output = &'static str> + Send {
    forever()
}
