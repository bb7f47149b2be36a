//! One async connection: its stream, and the driver's task that ends with it.
//!
//! Each connection has a driver task, which reads replies and writes commands. `RedisConnection` aborts that task when it
//! drops, and `RedisSession::drive` runs the task of the shared connection. `drivers` counts every task until its socket is
//! gone, so that closing can wait for that. Streams are opened under a kill switch, so a cut ends reads and writes that
//! hang. This file has no locks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::AbortHandle;

use crate::base::future::BoxFuture;
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::driver_end::{DriverEnd, DriverLife};
use crate::kinds::redis::greeting::Greeting;
use crate::kinds::redis::session::RedisSession;
use crate::lifecycle::kind::KindConfig;
use crate::net::count::Counted;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::Stream;

/// A connection whose driver task ends with it.
pub(super) struct RedisConnection {
    pub(super) connection: MultiplexedConnection,
    driver: AbortHandle,
    pub(super) end: Arc<DriverEnd>,
    pub(super) switch: KillSwitch,
}

/// A connection whose driver nobody runs yet.
pub(super) struct OpenedConnection {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: BoxFuture<()>,
    pub(super) end: Arc<DriverEnd>,
}

impl RedisConnection {
    /// Opens a connection, and spawns its driver.
    pub(super) async fn open(session: &RedisSession, switch: &KillSwitch) -> RedisResult<Self> {
        let OpenedConnection { connection, driver, end } = open(session, switch).await?;
        Ok(RedisConnection { connection, driver: tokio::spawn(driver).abort_handle(), end, switch: switch.clone() })
    }

    /// Whether the switch has cut the connection, or its driver has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.switch.is_cut() || self.driver.is_finished()
    }
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        // Otherwise the driver of an unanswered blocking command would live on.
        self.driver.abort();
    }
}

/// Opens a connection with its driver, which the caller spawns. `drivers` counts the connection until the driver has
/// ended.
pub(super) async fn open(session: &RedisSession, switch: &KillSwitch) -> RedisResult<OpenedConnection> {
    let counted = Counted::new(&session.drivers);
    let stream = open_stream(session, switch).await?;
    // No timeout: a slow command is no error, and the kill switch ends calls to a frozen server.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let (connection, driver) = MultiplexedConnection::new_with_config(&taken_in(), stream, settings).await?;
    let end = Arc::<DriverEnd>::default();
    let life = DriverLife(Arc::clone(&end));
    let driver: BoxFuture<()> = Box::pin(async move {
        let (_counted, _life) = (counted, life);
        driver.await;
    });
    Ok(OpenedConnection { connection, driver, end })
}

/// Settings by which the driver sends nothing of its own, since the connection has been greeted.
pub(super) fn taken_in() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// Connects and greets the server.
pub(super) async fn open_stream(session: &RedisSession, switch: &KillSwitch) -> RedisResult<Listening> {
    let RedisConfig { host, port, keepalive, socket, .. } = &*session.config;
    let mut stream = Listening(match socket {
        Some(path) => session.tls.dial_socket(path, switch).await?,
        None => session.tls.dial(host, *port, *keepalive, switch).await?,
    });
    let password = session.config.current().await?.password.clone();
    let (mut greeting, mut decoder) = (Greeting::new(session, password), Default::default());
    while let Some((steps, packed)) = greeting.words() {
        stream.write_all(&packed).await?;
        stream.flush().await?;
        for step in steps {
            greeting.heard(step, redis::parse_redis_value_async(&mut decoder, &mut stream).await)?;
        }
    }
    Ok(stream)
}

/// A stream whose end is reported by reads, never by writes. A server may send an error, such as "too large", and close
/// the connection while it is still being written to. The reader then still receives that error.
pub(super) struct Listening(Stream);

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes).map(|written| unless_ended(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx).map(|flushed| unless_ended(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Hides the errors of a broken connection from the writer. The reader gets them after all bytes that have arrived.
fn unless_ended<T>(result: io::Result<T>, ended: T) -> io::Result<T> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    result.or_else(|error| if matches!(error.kind(), BrokenPipe | ConnectionReset) { Ok(ended) } else { Err(error) })
}
