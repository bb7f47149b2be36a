//! [`Clients`], which bounds the connections of the admin's own listener.
//!
//! A connection is in use while a request of an operator is under way, up to the end of the answer: one with the token,
//! one with an open session, or one of a few that log in. All others are quiet, and give their places up to new ones:
//! those that have sent nothing, those that wait for a further request, and those of strangers.
//! Locks: each place has one, held for a moment.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The open connections, in the order in which they were opened.
pub(super) struct Clients {
    most: usize,
    open: VecDeque<Arc<ClientPlace>>,
}

/// The place of one connection. It is free once the last clone outside of [`Clients`] drops.
pub(super) struct ClientPlace {
    activity: Mutex<ClientActivity>,
    /// Tells the connection that another one has its place.
    pub(super) cut: CancellationToken,
}

struct ClientActivity {
    /// How many requests of operators are under way.
    in_use: usize,
    /// When the connection was opened, began a request, or ended one of an operator.
    at: Instant,
}

impl ClientPlace {
    fn new() -> Arc<Self> {
        let activity = Mutex::new(ClientActivity { in_use: 0, at: Instant::now() });
        Arc::new(ClientPlace { activity, cut: CancellationToken::new() })
    }

    /// Notes that the whole head of a request came.
    pub(super) fn ask(&self) {
        self.activity.lock().at = Instant::now();
    }

    /// Keeps the place until the returned guard drops.
    pub(super) fn keep(self: Arc<Self>) -> ClientUse {
        self.activity.lock().in_use += 1;
        ClientUse(self)
    }

    /// Since when the connection is quiet. `None` while it is in use.
    fn quiet_since(&self) -> Option<Instant> {
        let activity = self.activity.lock();
        (activity.in_use == 0).then_some(activity.at)
    }
}

impl Clients {
    pub(super) fn new(most: usize) -> Self {
        Clients { most: most.max(1), open: VecDeque::new() }
    }

    /// A place for one more connection. If all are taken, the connection that has been quiet for the longest time gives
    /// its place up. `None` if all are in use.
    pub(super) fn admit(&mut self) -> Option<Arc<ClientPlace>> {
        if self.open.len() >= self.most {
            self.open.retain(|open| Arc::strong_count(open) > 1);
        }
        if self.open.len() >= self.most {
            let quiet = self.open.iter().enumerate().filter_map(|(index, open)| Some((open.quiet_since()?, index)));
            let (_, quietest) = quiet.min()?;
            if let Some(quietest) = self.open.remove(quietest) {
                quietest.cut.cancel();
            }
        }
        let open = ClientPlace::new();
        self.open.push_back(Arc::clone(&open));
        Some(open)
    }
}

/// The guard of a place that is in use.
pub(super) struct ClientUse(Arc<ClientPlace>);

impl ClientUse {
    /// The same body, which keeps the place until it has ended.
    pub(super) fn until_the_end_of(self, body: Body) -> Body {
        Body::new(KeepingBody { body, _in_use: self })
    }
}

impl Drop for ClientUse {
    fn drop(&mut self) {
        let mut activity = self.0.activity.lock();
        (activity.in_use, activity.at) = (activity.in_use.saturating_sub(1), Instant::now());
    }
}

struct KeepingBody {
    body: Body,
    _in_use: ClientUse,
}

impl http_body::Body for KeepingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn are_cut<const N: usize>(places: [&Arc<ClientPlace>; N]) -> [bool; N] {
        places.map(|place| place.cut.is_cancelled())
    }

    #[test]
    fn the_connection_that_is_quiet_for_the_longest_time_gives_its_place_up() {
        let mut connections = Clients::new(2);
        let [first, second] = [(); 2].map(|()| connections.admit().unwrap());
        first.ask();
        let third = connections.admit().unwrap();
        assert_eq!(are_cut([&first, &second, &third]), [false, true, false], "the second has sent nothing for longer");
        let fourth = connections.admit().unwrap();
        assert_eq!(
            are_cut([&first, &third, &fourth]),
            [true, false, false],
            "a request keeps no place once it is over"
        );
    }

    #[test]
    fn a_connection_in_use_keeps_its_place() {
        let mut connections = Clients::new(2);
        let [first, second] = [(); 2].map(|()| connections.admit().unwrap());
        let [use_of_first, use_of_second] = [&first, &second].map(|place| Arc::clone(place).keep());
        assert!(connections.admit().is_none(), "both are in use");
        drop(use_of_second);
        let third = connections.admit().unwrap();
        assert_eq!(are_cut([&first, &second, &third]), [false, true, false]);
        drop((use_of_first, first));
        assert!(connections.admit().is_some());
        assert_eq!(are_cut([&third]), [false], "the place of a closed connection is free");
    }
}
