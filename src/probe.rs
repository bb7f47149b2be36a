//! The prober, which notices a server that stopped answering, and the kill switch, which makes
//! calls already in flight notice it too.

use std::fmt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::config::millis;
use crate::error::{BoxError, Failure, Source};
use crate::runtime::{self, within};
use crate::slot::AnySlot;

/// How a ready resource is watched. With the defaults a frozen server is noticed within 4 s.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeOptions {
    /// Whether to probe at all. Defaults to `true`; without it a frozen server is only noticed
    /// by the driver's own means, which for most operations is never.
    pub enabled: bool,
    /// The pause between two probes. Defaults to 500 ms.
    #[serde(rename = "interval_ms", with = "millis")]
    pub interval: Duration,
    /// How long one probe may take. Defaults to 1 s.
    #[serde(rename = "limit_ms", with = "millis")]
    pub limit: Duration,
    /// How many probes in a row must fail before the connection counts as lost. Defaults to 3.
    pub strikes: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions {
            enabled: true,
            interval: Duration::from_millis(500),
            limit: Duration::from_secs(1),
            strikes: 3,
        }
    }
}

/// Probes one generation until it is lost, closed, or dropped.
pub(crate) fn watch(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions) -> Option<AbortHandle> {
    if !options.enabled {
        return None;
    }
    match runtime::prober() {
        Ok(prober) => Some(prober.spawn(probe(slot, generation, options)).abort_handle()),
        Err(error) => {
            tracing::error!(%error, "not probing");
            None
        }
    }
}

async fn probe(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions) {
    let mut strikes = 0;
    loop {
        // After a strike the next probe follows at once: its limit is pause enough.
        if strikes == 0 {
            tokio::time::sleep(options.interval).await;
        }
        let Some(ping) = slot.upgrade().and_then(AnySlot::ping) else { return };
        let cause: BoxError = match within(options.limit, ping).await {
            Ok(Ok(())) => {
                strikes = 0;
                continue;
            }
            Ok(Err(Failure { source, .. })) => {
                // An error comes at once, so without a pause the strikes would be one.
                tokio::time::sleep(options.interval / 5).await;
                source
            }
            Err(_elapsed) => format!("no answer to a probe within {:?}", options.limit).into(),
        };
        strikes += 1;
        let Some(slot) = slot.upgrade() else { return };
        tracing::debug!(resource = %slot.life().name, strikes, error = %cause, "probe failed");
        if strikes >= options.strikes {
            return slot.lost(generation, Source::from(cause));
        }
    }
}

/// Cuts all streams that were put under it, so that whoever awaits an answer gets an error.
#[derive(Clone, Default)]
pub struct KillSwitch {
    token: CancellationToken,
    threads: Arc<Mutex<Vec<(u64, TcpStream)>>>,
}

impl KillSwitch {
    /// A switch that has not been thrown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts everything under the switch, now and from now on.
    pub fn cut(&self) {
        self.token.cancel();
        for (_, stream) in self.threads.lock().iter() {
            // Fails only where the peer was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether it has been thrown.
    pub fn is_cut(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves when it is thrown.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Puts an async stream under the switch.
    pub fn guard<S>(&self, stream: S) -> Killable<S> {
        Killable { stream, cut: Box::pin(self.token.clone().cancelled_owned()) }
    }

    /// Puts a stream that threads block on under the switch, until the guard drops.
    ///
    /// # Errors
    /// When the socket cannot be duplicated, or the switch has been thrown.
    pub fn guard_blocking(&self, stream: &TcpStream) -> io::Result<Guarded> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut threads = self.threads.lock();
        if self.is_cut() {
            return Err(was_cut());
        }
        threads.push((key, stream.try_clone()?));
        Ok(Guarded { key, switch: self.clone() })
    }
}

impl fmt::Debug for KillSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KillSwitch").field("cut", &self.is_cut()).finish_non_exhaustive()
    }
}

/// Keeps a blocking stream under its [`KillSwitch`].
#[derive(Debug)]
#[must_use = "the stream leaves the switch when this drops"]
pub struct Guarded {
    key: u64,
    switch: KillSwitch,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.switch.threads.lock().retain(|(key, _)| *key != self.key);
    }
}

/// A stream that fails as soon as its [`KillSwitch`] is thrown.
pub struct Killable<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Killable<S> {
    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(was_cut()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Killable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Killable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Killable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Killable").field(&self.stream).finish()
    }
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the pool: the server stopped answering, or the resource is closed")
}
