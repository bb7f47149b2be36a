//! The limit of a server's silence, for one request.
//!
//! A `TrafficStream` asks it whenever a read or a write has to wait. The timer runs only while the server is the one to
//! wait for: from the last byte of the request, or while the server takes none of it. So a caller may write and read its
//! rows as slowly as it likes. All calls come from the task that runs the connection, so there is no lock.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::base::runtime::timer;
use crate::kinds::clickhouse::http::ResponseParser;

/// How long the server may be silent, and since when it is.
pub(super) struct ResponseLimit {
    limit: Duration,
    /// Follows the request to its end. The parser takes a request like an answer, since both have the same form.
    request: ResponseParser,
    /// Whether the request is sent in full.
    is_sent: bool,
    /// Runs while the server is silent. `None` otherwise.
    timer: Option<Pin<Box<Sleep>>>,
}

impl ResponseLimit {
    pub(super) fn new(limit: Duration) -> Self {
        ResponseLimit { limit, request: ResponseParser::default(), is_sent: false, timer: None }
    }

    /// Notes that the first `written` bytes of these slices are sent.
    pub(super) fn wrote(&mut self, slices: &[io::IoSlice<'_>], written: usize, cx: &mut Context<'_>) {
        self.restart();
        let mut left = written;
        for slice in slices {
            let bytes = &slice[..left.min(slice.len())];
            left -= bytes.len();
            self.is_sent |= self.request.ends_in(bytes);
        }
        if self.is_sent {
            // The HTTP client may have asked for the answer before, and not ask again until it is woken.
            let _not_yet = self.poll_passed(cx);
        }
    }

    /// Begins the limit anew, because the server has given a sign of life.
    pub(super) fn restart(&mut self) {
        self.timer = None;
    }

    /// Ready once the server has not answered for too long. A request that is not sent in full waits for its caller.
    pub(super) fn poll_unanswered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_sent { self.poll_passed(cx) } else { Poll::Pending }
    }

    /// Ready once the server has been silent for too long. The timer begins with the first call.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.timer.get_or_insert_with(|| Box::pin(timer(limit))).as_mut().poll(cx)
    }
}
