//! The kill switch, which makes calls in flight notice that their server has stopped answering.

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
