//! The admin's own listener: it accepts connections, and serves them until the pool has closed.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::seen::admin::clients::{ClientPlace, Clients};
use crate::seen::admin::limits::{AdminLimits, HEAD, LAST_WORDS};
use crate::seen::admin::patient::Patient;

/// How long accepting pauses when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `is_over` is set, and then until the answers under way are written, for a moment at most.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: AdminLimits, is_over: CancellationToken) {
    let mut connections = Clients::new(limits.connections);
    let mut served = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = served.join_next(), if !served.is_empty() => continue,
            () = is_over.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(open) = connections.admit() {
                    let (router, is_over) = (router.clone(), is_over.clone());
                    served.spawn(serve_one(stream, peer, router, open, limits.patience, is_over));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the admin accepts no connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while served.join_next().await.is_some() {} };
    let _stalled = tokio::time::timeout(LAST_WORDS, all).await;
}

async fn serve_one(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    open: Arc<ClientPlace>,
    patience: Duration,
    is_over: CancellationToken,
) {
    // Small messages come late if `set_nodelay` fails, and come all the same.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        open.ask();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        // The guard keeps the place for operators and those who log in.
        request.extensions_mut().insert(Arc::clone(&open));
        let mut router = router.clone();
        async move { router.call(request).await }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // The limit runs from the end of the answer before, so that it ends an idle connection, too.
            .header_read_timeout(patience)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(Patient::new(stream, patience)), service)
    );
    tokio::select! {
        // A peer that breaks off is no trouble of the admin's.
        _ended = connection.as_mut() => {}
        () = open.cut.cancelled() => {}
        () = is_over.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _stalled = tokio::time::timeout(LAST_WORDS, connection).await;
        }
    }
}
