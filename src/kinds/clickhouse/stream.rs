//! A connection to ClickHouse. It follows the bytes that go over it, as far as it takes to tell three things: whether
//! an answer is outstanding, which error its loss is for the caller, and whether the server goes on with a query that
//! was given up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::{Connected as Metadata, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::kinds::clickhouse::cancel::NamedQuery;
use crate::kinds::clickhouse::http::ResponseParser;
use crate::kinds::clickhouse::response_limit::ResponseLimit;
use crate::kinds::clickhouse::statement::{self, StatementEffect};
use crate::kinds::clickhouse::transport::{Purpose, Transport};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::work::Work;
use crate::net::count::Counted;
use crate::net::tls::Stream;

/// The most bytes of an error that are read. The driver keeps all of them in memory, and takes an error apart where it
/// is compressed.
const LONGEST_ERROR: usize = 256 * 1024;

/// The number of bytes at the beginning of a request in which its statement is looked for.
const LOOKED_AT: usize = 8 * 1024;

/// The beginning of the driver's requests, all of which have parameters.
const BEGINNING: &[u8] = b"POST /?";

/// A connection, which knows whether an answer is outstanding.
pub(super) struct TrafficStream {
    stream: Stream,
    transport: Arc<Transport>,
    exchange: Option<RequestInFlight>,
    /// Whether it ever carried a request.
    is_used: bool,
    _open: Counted,
    _permit: OwnedSemaphorePermit,
}

impl TrafficStream {
    pub(super) fn new(stream: Stream, transport: Arc<Transport>, permit: OwnedSemaphorePermit) -> Self {
        let open = Counted::new(&transport.open);
        TrafficStream { stream, transport, exchange: None, is_used: false, _open: open, _permit: permit }
    }

    /// Ends an exchange that is over. The HTTP client asks for more only after it has handed on all that it had.
    fn asked_for_more(&mut self) {
        if self.exchange.as_ref().is_some_and(|exchange| exchange.is_over) {
            self.exchange = None;
        }
    }

    /// Notes the next bytes of a request. They may begin an exchange.
    fn sends(&mut self, slices: &[io::IoSlice<'_>]) {
        self.asked_for_more();
        if self.exchange.is_some() {
            return;
        }
        let request = first(slices, LOOKED_AT);
        // The rest of a request whose answer came early does not begin another exchange.
        if request.starts_with(b"POST ") || request.starts_with(b"GET ") {
            self.exchange = Some(RequestInFlight::begin(&self.transport, &request));
            self.is_used = true;
        }
    }

    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(exchange) = &mut self.exchange else {
            // To a request that waits to be the first, the HTTP client would say no more than that the connection
            // ended.
            return if bytes.is_empty() && !self.is_used { Err(closed("before it was used")) } else { Ok(()) };
        };
        let was_begun = exchange.answer.is_begun();
        exchange.receive(bytes)?;
        if !was_begun && exchange.answer.is_begun() {
            self.transport.answered.notify_waiters();
        }
        Ok(())
    }

    /// Ends a call that the server has kept waiting for longer than the operation timeout.
    fn poll_late<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut ResponseLimit, &mut Context<'_>) -> Poll<()>,
    ) -> Poll<io::Result<T>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Pending };
        let Some(limit) = exchange.limit.as_mut().filter(|_| !exchange.is_over) else { return Poll::Pending };
        ready!(poll(limit, cx));
        Poll::Ready(Err(self.transport.late(exchange.effect, exchange.is_sent)))
    }

    /// The error of this call, for a caller that waits for an answer or is about to ask.
    fn explained(&self, error: io::Error) -> io::Error {
        match &self.exchange {
            Some(exchange) if !exchange.is_over => self.transport.broken(exchange.effect, exchange.is_sent, error),
            _ => self.transport.broken(StatementEffect::Reads, false, error),
        }
    }
}

impl AsyncRead for TrafficStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.asked_for_more();
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) else {
            return self.poll_late(cx, ResponseLimit::poll_unanswered);
        };
        let read = read.and_then(|()| self.received(&buffer.filled()[before..]));
        Poll::Ready(read.map_err(|error| self.explained(error)))
    }
}

impl AsyncWrite for TrafficStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.sends(slices);
        let TrafficStream { stream, exchange, .. } = &mut *self;
        let written = match exchange {
            Some(exchange) => exchange.poll_write(Pin::new(stream), cx, slices),
            None => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        let Poll::Ready(written) = written else { return self.poll_late(cx, ResponseLimit::poll_passed) };
        Poll::Ready(written.map_err(|error| self.explained(error)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| self.explained(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for TrafficStream {
    fn connected(&self) -> Metadata {
        Metadata::new()
    }
}

/// A request that is being sent or was sent, and is not yet answered in full.
struct RequestInFlight {
    effect: StatementEffect,
    /// Whether the server may have received any part of it.
    is_sent: bool,
    /// The bytes in place of its [`BEGINNING`] that are not yet written.
    beginning: Vec<u8>,
    answer: ResponseParser,
    /// The length of the answer so far, in bytes, if that is an error.
    error: usize,
    /// Whether the answer is complete, though perhaps not yet read by its caller.
    is_over: bool,
    /// The name by which its statement is cancelled. `None` if it is not cancelled.
    name: Option<NamedQuery>,
    /// The limit of the server's silence. `None` if there is none.
    limit: Option<Box<ResponseLimit>>,
    /// The work that it counts as. `None` if it is not of a user's.
    work: Option<(Busy, Counted)>,
}

impl RequestInFlight {
    fn begin(transport: &Transport, request: &[u8]) -> Self {
        let (effect, is_named) = statement::looked_at(request);
        let may_name = effect == StatementEffect::Reads && !is_named && request.starts_with(BEGINNING);
        let name = transport.cancel.as_ref().filter(|_| may_name).map(|cancel| cancel.name());
        let beginning = name.as_ref().map(|name| [BEGINNING, b"query_id=", name.id.as_bytes(), b"&"].concat());
        let work = (transport.purpose == Purpose::Traffic)
            .then(|| (transport.link.busy(Work::Operation), Counted::new(&transport.busy)));
        let limit = transport.silence().map(|limit| Box::new(ResponseLimit::new(limit)));
        RequestInFlight {
            effect,
            is_sent: false,
            beginning: beginning.unwrap_or_default(),
            answer: ResponseParser::default(),
            error: 0,
            is_over: false,
            name,
            limit,
            work,
        }
    }

    fn poll_write(
        &mut self,
        stream: Pin<&mut Stream>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_write_named(stream, cx, slices))?;
        if let Some(limit) = &mut self.limit {
            limit.wrote(slices, written, cx);
        }
        Poll::Ready(Ok(written))
    }

    /// Writes the request, with its name in place of its [`BEGINNING`].
    fn poll_write_named(
        &mut self,
        mut stream: Pin<&mut Stream>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while !self.beginning.is_empty() {
            let all = instead(&self.beginning, slices);
            let written = ready!(stream.as_mut().poll_write_vectored(cx, &all))?;
            self.is_sent = true;
            match written.checked_sub(self.beginning.len()) {
                Some(more) => {
                    self.beginning.clear();
                    return Poll::Ready(Ok(BEGINNING.len() + more));
                }
                None if written == 0 => return Poll::Ready(Ok(0)),
                None => drop(self.beginning.drain(..written)),
            }
        }
        let written = ready!(stream.poll_write_vectored(cx, slices))?;
        self.is_sent |= written > 0;
        Poll::Ready(Ok(written))
    }

    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(limit) = &mut self.limit {
            limit.restart();
        }
        if bytes.is_empty() && !self.is_over {
            if !self.answer.is_until_closed() {
                return Err(closed("before the answer was complete"));
            }
            self.is_over = true;
        }
        self.is_over |= self.answer.ends_in(bytes);
        if self.answer.is_error {
            self.error += bytes.len();
        }
        if self.error > LONGEST_ERROR {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an error of more than 256 KiB"));
        }
        Ok(())
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        if let Some((busy, _)) = &mut self.work {
            busy.finish(self.is_over);
        }
        // A server that has begun to answer notices by itself as it goes on.
        if self.is_sent
            && !self.answer.is_begun()
            && let Some(name) = self.name.take()
        {
            name.cancel();
        }
    }
}

fn closed(when: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the server closed the connection {when}"))
}

/// The first bytes of these slices, `most` of them at the most.
fn first(slices: &[io::IoSlice<'_>], most: usize) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.iter().copied()).take(most).collect()
}

/// These slices, with other bytes in place of the [`BEGINNING`].
fn instead<'a>(beginning: &'a [u8], slices: &'a [io::IoSlice<'_>]) -> Vec<io::IoSlice<'a>> {
    let mut skip = BEGINNING.len();
    let rest = slices.iter().map(|slice| {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        io::IoSlice::new(&slice[skipped..])
    });
    std::iter::once(io::IoSlice::new(beginning)).chain(rest).collect()
}
