//! [`EventStream`], the body of an answer of `/events`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::http::StatusCode;
use http_body::{Body, Frame};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::base::future::BoxFuture;
use crate::seen::admin::answer::Denial;
use crate::seen::admin::guard::Admitted;
use crate::seen::admin::hub::{Hub, Seat};
use crate::seen::admin::limits::SILENCE;
use crate::seen::admin::recent::{Told, message};

/// The messages of a pool, until it has closed or the session ends.
pub(super) struct EventStream {
    /// `None` once the stream has ended.
    next: Option<BoxFuture<Option<(Bytes, Feed)>>>,
}

/// The reader's end of the messages.
struct Feed {
    seat: Seat,
    admitted: Admitted,
    first: Option<Told>,
    messages: broadcast::Receiver<Told>,
    is_over: bool,
}

impl EventStream {
    /// A stream of this hub.
    ///
    /// # Errors
    /// All seats are taken, or the status cannot be had.
    pub(super) async fn open(hub: &Arc<Hub>, admitted: Admitted) -> Result<Self, Denial> {
        let full = || {
            let remedy = "close a status page that nobody looks at, or raise `AdminLimits::streams`";
            Denial::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open", remedy)
        };
        let seat = hub.seat().ok_or_else(full)?;
        let (mut first, messages) = hub.snapshot().await?;
        // Scripts cannot see the cookie, and a page needs to know whether there is something to log out of.
        let session = message("session", None, &format!(r#"{{"open":{}}}"#, admitted.session.is_some()));
        first.bytes = [session, first.bytes].concat().into();
        let feed = Feed { seat, admitted, first: Some(first), messages, is_over: false };
        Ok(EventStream { next: Some(Box::pin(feed.next())) })
    }
}

impl Feed {
    /// The next message, and the rest. `None` at the end.
    async fn next(mut self) -> Option<(Bytes, Feed)> {
        if self.is_over || !self.admitted.still() {
            return None;
        }
        let told = match self.first.take() {
            Some(first) => first,
            None => {
                let received = tokio::select! {
                    biased; // A session that is over is told nothing more.
                    () = self.admitted.over() => return None,
                    received = tokio::time::timeout(SILENCE, self.messages.recv()) => received,
                };
                match received {
                    Ok(Ok(told)) => told,
                    Ok(Err(RecvError::Lagged(_))) => {
                        // The reader was slow, and now gets everything as it is.
                        let (told, messages) = self.seat.hub().snapshot().await.ok()?;
                        self.messages = messages;
                        told
                    }
                    Ok(Err(RecvError::Closed)) => return None,
                    Err(_silent) => Told { bytes: Bytes::from_static(b":\n\n"), is_last: false },
                }
            }
        };
        self.is_over = told.is_last;
        // The time of a session may have passed during the wait.
        self.admitted.still().then_some((told.bytes, self))
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let next = ready!(next.as_mut().poll(context));
        // The seat is free as soon as the stream ends, and not once its connection does.
        self.next = None;
        Poll::Ready(next.map(|(bytes, rest)| {
            self.next = Some(Box::pin(rest.next()));
            Ok(Frame::data(bytes))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none()
    }
}
