//! The prober, which notices a server that stopped answering, and the kill switch, which makes
//! calls already in flight notice it too.

use std::fmt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::base::error::{Error, Failure, Proof, Source, panic_message};
use crate::base::millis;
use crate::base::runtime::{self, within};
use crate::lifecycle::slot::{AnySlot, BoxFuture};

/// How a ready resource is watched. With the defaults a frozen server is noticed within 4 s.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeOptions {
    /// Whether to probe at all. Defaults to `true`; without it a frozen server is only noticed
    /// by the driver's own means, which for most operations is never.
    pub enabled: bool,
    /// The pause between two probes, at least 1 ms. Defaults to 500 ms.
    #[serde(rename = "interval_ms", with = "millis")]
    pub interval: Duration,
    /// How long one probe may take, at least 1 ms. Defaults to 1 s.
    #[serde(rename = "limit_ms", with = "millis")]
    pub limit: Duration,
    /// How many probes in a row must fail before the connection counts as lost, at least 1. Defaults
    /// to 3.
    pub strikes: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions { enabled: true, interval: Duration::from_millis(500), limit: Duration::from_secs(1), strikes: 3 }
    }
}

/// Probes one generation until it is lost, or this is dropped or ended.
pub(crate) fn watch(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions) -> Option<Watch> {
    if !options.enabled {
        return None;
    }
    match runtime::prober() {
        Ok(prober) => {
            let (end, ended) = oneshot::channel();
            Some(Watch { task: prober.spawn(probe(slot, generation, options, ended)), end: Some(end) })
        }
        Err(error) => {
            tracing::error!(%error, "not probing");
            None
        }
    }
}

/// A generation being probed.
pub(crate) struct Watch {
    task: JoinHandle<()>,
    end: Option<oneshot::Sender<()>>,
}

impl Watch {
    /// Ends probing after the ping that is under way, so that none is cut off half-way.
    pub(crate) async fn end(mut self) {
        // Dropping it is the signal.
        drop(self.end.take());
        if let Err(error) = (&mut self.task).await {
            tracing::debug!(%error, "the prober's task");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions, mut ended: oneshot::Receiver<()>) {
    let mut strikes = 0;
    loop {
        // After a strike the next probe follows sooner: a limit that passed is pause enough.
        let pause = if strikes == 0 { options.interval } else { options.interval / 5 };
        if within(pause, &mut ended).await.is_ok() {
            return;
        }
        let Some(alive) = slot.upgrade() else { return };
        let Some(question) = Arc::clone(&alive).probe() else { return };
        let answer = answer(question, options.limit).await;
        drop(alive);
        let Err(failure) = answer else {
            strikes = 0;
            continue;
        };
        let Some(slot) = slot.upgrade() else { return };
        // Only silence is a strike. A server that answers lives, and one that was not asked may.
        strikes = match failure.proof() {
            Proof::Silent => strikes + 1,
            Proof::Refused | Proof::Limited => 0,
            Proof::Unasked => strikes,
        };
        tracing::debug!(resource = %slot.name(), strikes, error = %failure, "probe failed");
        if strikes >= options.strikes {
            return slot.lost(None, generation, Source::from(failure.source));
        }
    }
}

/// What a ping answers within a limit. It runs in a task of its own, so that a panic is an answer too.
pub(crate) async fn answer(ping: BoxFuture<Result<(), Failure>>, limit: Duration) -> Result<(), Failure> {
    let mut task = JoinSet::new();
    task.spawn(ping);
    let started = Instant::now();
    match within(limit, task.join_next()).await {
        Ok(Some(Ok(answer))) => answer,
        Ok(Some(Err(join))) if join.is_panic() => {
            Err(Failure::refused(format!("the ping panicked: {}", panic_message(&*join.into_panic()))))
        }
        Ok(_) => Err(Failure::unasked("the prober has ended")),
        Err(_elapsed) => Err(Failure::transient(format!("no answer to a ping within {:.1?}", started.elapsed()))),
    }
}

/// Cuts all streams that were put under it, so that whoever awaits an answer gets an error.
#[derive(Clone, Default)]
pub struct KillSwitch {
    token: CancellationToken,
    cause: Arc<OnceLock<Error>>,
    threads: Arc<Threads>,
}

/// What threads do under a switch.
#[derive(Default)]
struct Threads {
    /// What the token says as well, but under a lock.
    is_cut: AtomicBool,
    streams: Mutex<Vec<(u64, TcpStream)>>,
}

impl KillSwitch {
    /// A switch that has not been thrown.
    pub fn new() -> Self {
        Self::default()
    }

    /// [`cut`](KillSwitch::cut), with what each call that it cuts fails with. The first cause counts.
    ///
    /// [`Link::why_cut`](crate::Link::why_cut) is what a resource that is told to cut has for a cause.
    pub fn cut_because(&self, cause: Error) {
        // There is one already where somebody else was faster.
        let _ = self.cause.set(cause);
        self.cut();
    }

    /// Cuts everything under the switch, now and from now on.
    pub fn cut(&self) {
        self.threads.is_cut.store(true, Ordering::Release);
        self.token.cancel();
        for (_, stream) in self.threads.streams.lock().iter() {
            // Fails only where the peer was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether it has been thrown.
    pub fn is_cut(&self) -> bool {
        self.threads.is_cut.load(Ordering::Acquire)
    }

    /// Why it was thrown, if that was told.
    pub fn cause(&self) -> Option<&Error> {
        self.cause.get()
    }

    /// Resolves when it is thrown.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Puts an async stream under the switch.
    pub fn guard<S>(&self, stream: S) -> Killable<S> {
        let cut = || Cut { thrown: Box::pin(self.token.clone().cancelled_owned()), cause: Arc::clone(&self.cause) };
        Killable { stream, reading: cut(), writing: cut() }
    }

    /// Puts a stream that threads block on under the switch, until the guard drops.
    ///
    /// # Errors
    /// When the socket cannot be duplicated, or the switch has been thrown.
    pub fn guard_blocking(&self, stream: &TcpStream) -> io::Result<Guarded> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut streams = self.threads.streams.lock();
        if self.is_cut() {
            return Err(was_cut(&self.cause));
        }
        streams.push((key, stream.try_clone()?));
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
        self.switch.threads.streams.lock().retain(|(key, _)| *key != self.key);
    }
}

/// A stream that fails as soon as its [`KillSwitch`] is thrown.
pub struct Killable<S> {
    stream: S,
    // Two, as reader and writer may be different tasks, and each has to be woken.
    reading: Cut,
    writing: Cut,
}

struct Cut {
    thrown: Pin<Box<WaitForCancellationFutureOwned>>,
    cause: Arc<OnceLock<Error>>,
}

impl<S> Killable<S> {
    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

fn check(cut: &mut Cut, context: &mut Context<'_>) -> io::Result<()> {
    match cut.thrown.as_mut().poll(context) {
        Poll::Ready(()) => Err(was_cut(&cut.cause)),
        Poll::Pending => Ok(()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Killable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        check(&mut self.reading, cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Killable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        check(&mut self.writing, cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        check(&mut self.writing, cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        check(&mut self.writing, cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        check(&mut self.writing, cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Killable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Killable").field(&self.stream).finish()
    }
}

fn was_cut(cause: &OnceLock<Error>) -> io::Error {
    match cause.get() {
        // Found by `Error::behind`.
        Some(cause) => io::Error::new(io::ErrorKind::ConnectionAborted, cause.clone()),
        None => io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the pool"),
    }
}
