//! The kill switch, which makes calls in flight notice that their server has stopped answering.
//!
//! Kinds put the streams of a connection under a switch. They throw it when the pool cuts the resource.
//! Invariant: no stream works after the cut. [`KillSwitch::cut`] sets `is_cut` before it goes through `streams`, and a
//! stream is added only if `is_cut` is not set, under the same lock. So each stream is either shut down or refused.
//! Orderings: `is_cut` is stored with release and loaded with acquire, so that a thread that sees the cut sees its
//! cause.
//! Locks: only `streams`. Wakers are woken before it is taken, and no user code runs under it.

use std::fmt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::base::error::Error;

/// Cuts all streams that were put under it, so that a task or thread that awaits an answer gets an error.
#[derive(Clone, Default)]
pub struct KillSwitch {
    token: CancellationToken,
    cause: Arc<OnceLock<Error>>,
    threads: Arc<Threads>,
}

/// The side of a switch for streams that threads block on.
#[derive(Default)]
struct Threads {
    /// Whether the switch was thrown, as the token says too. It is checked under the lock of `streams`.
    is_cut: AtomicBool,
    /// The streams under the switch, by the key of their [`Guarded`].
    streams: Mutex<Vec<(u64, TcpStream)>>,
}

impl KillSwitch {
    /// A switch that has not been thrown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does the same as [`cut`](KillSwitch::cut), and each cut call fails with `cause`. Only the first cause counts.
    ///
    /// A resource that is told to cut finds the cause in [`Link::why_cut`](crate::Link::why_cut).
    pub fn cut_because(&self, cause: Error) {
        // Another caller may have set a cause already.
        let _ = self.cause.set(cause);
        self.cut();
    }

    /// Cuts everything under the switch, now and from now on.
    pub fn cut(&self) {
        // Release, so that a thread that sees the cut sees its cause.
        self.threads.is_cut.store(true, Ordering::Release);
        self.token.cancel();
        for (_, stream) in self.threads.streams.lock().iter() {
            // The shutdown fails only if the peer was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether it has been thrown.
    pub fn is_cut(&self) -> bool {
        // Acquire, as the counterpart of the release in `cut`.
        self.threads.is_cut.load(Ordering::Acquire)
    }

    /// Why it was thrown, if the cause was told.
    pub fn cause(&self) -> Option<&Error> {
        self.cause.get()
    }

    /// Resolves when it is thrown.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Puts an async stream under the switch.
    pub fn guard<S>(&self, stream: S) -> Killable<S> {
        let cut = || Cut { switch: self.clone(), thrown: Box::pin(self.token.clone().cancelled_owned()) };
        Killable { stream, reading: cut(), writing: cut() }
    }

    /// Puts a stream that threads block on under the switch, until the guard drops.
    ///
    /// # Errors
    /// When the socket cannot be duplicated, or the switch has been thrown.
    pub fn guard_blocking(&self, stream: &TcpStream) -> io::Result<Guarded> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed, because only the uniqueness of the key counts.
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
    // Two futures, as reader and writer may be different tasks, and each has to be woken.
    reading: Cut,
    writing: Cut,
}

struct Cut {
    switch: KillSwitch,
    thrown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cut {
    /// Runs a call on the stream, unless the switch is thrown. Only a call that is pending waits for the switch too, so
    /// that the others cost one look at a flag.
    fn unless_thrown<T>(
        &mut self,
        context: &mut Context<'_>,
        call: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.switch.is_cut() {
            return Poll::Ready(Err(was_cut(&self.switch.cause)));
        }
        match call(context) {
            Poll::Pending => self.thrown.as_mut().poll(context).map(|()| Err(was_cut(&self.switch.cause))),
            ready => ready,
        }
    }
}

impl<S> Killable<S> {
    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Killable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Killable { stream, reading, .. } = &mut *self;
        reading.unless_thrown(cx, |cx| Pin::new(stream).poll_read(cx, buffer))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Killable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Killable { stream, writing, .. } = &mut *self;
        writing.unless_thrown(cx, |cx| Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Killable { stream, writing, .. } = &mut *self;
        writing.unless_thrown(cx, |cx| Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Killable { stream, writing, .. } = &mut *self;
        writing.unless_thrown(cx, |cx| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Killable { stream, writing, .. } = &mut *self;
        writing.unless_thrown(cx, |cx| Pin::new(stream).poll_shutdown(cx))
    }
}

impl<S: fmt::Debug> fmt::Debug for Killable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Killable").field(&self.stream).finish()
    }
}

fn was_cut(cause: &OnceLock<Error>) -> io::Error {
    match cause.get() {
        // `Error::behind` finds the cause in it.
        Some(cause) => io::Error::new(io::ErrorKind::ConnectionAborted, cause.clone()),
        None => io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the pool"),
    }
}
