//! [`Clients`], which bounds the connections of the admin's own listener.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// The open connections, the oldest first.
pub(super) struct Clients {
    most: usize,
    open: VecDeque<Arc<ClientPlace>>,
}

/// The place of one connection. It is free once the last clone outside of [`Clients`] drops.
#[derive(Default)]
pub(super) struct ClientPlace {
    has_asked: AtomicBool,
    /// Set to give its place to another one.
    pub(super) cut: CancellationToken,
}

impl ClientPlace {
    /// Notes that a whole head of a request came over it.
    pub(super) fn ask(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
    }
}

impl Clients {
    pub(super) fn new(most: usize) -> Self {
        Clients { most: most.max(1), open: VecDeque::new() }
    }

    /// A place for one more connection. If all are taken, the oldest that has asked for nothing gives its place up, so
    /// that silent connections keep nobody out. `None` if there is none such.
    pub(super) fn admit(&mut self) -> Option<Arc<ClientPlace>> {
        if self.open.len() >= self.most {
            self.open.retain(|open| Arc::strong_count(open) > 1);
        }
        if self.open.len() >= self.most {
            let silent = self.open.iter().position(|open| !open.has_asked.load(Ordering::Relaxed))?;
            if let Some(silent) = self.open.remove(silent) {
                silent.cut.cancel();
            }
        }
        let open = Arc::new(ClientPlace::default());
        self.open.push_back(Arc::clone(&open));
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_connection_gives_its_place_up() {
        let mut connections = Clients::new(2);
        let first = connections.admit().unwrap();
        first.ask();
        let second = connections.admit().unwrap();
        let third = connections.admit().unwrap();
        assert_eq!([&first, &second, &third].map(|open| open.cut.is_cancelled()), [false, true, false]);
        third.ask();
        assert!(connections.admit().is_none(), "both are in use");
        drop(first);
        assert!(connections.admit().is_some() && !third.cut.is_cancelled());
    }
}
