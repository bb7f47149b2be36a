//! A count of live things, and the wait until there is none.

use tokio::sync::watch;

/// Counts as one of them until it drops.
pub(crate) struct Counted(watch::Sender<usize>);

impl Counted {
    pub(crate) fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Waits until there is none.
pub(crate) async fn none(count: &watch::Sender<usize>) {
    // The wait fails only without a sender, and `count` is one.
    let _ = count.subscribe().wait_for(|count| *count == 0).await;
}
