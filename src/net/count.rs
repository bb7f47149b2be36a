//! How many there are of something, and when there is none any more.

use tokio::sync::watch;

/// One of them, until it drops.
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
    // Fails only without a sender, and that is here.
    let _ = count.subscribe().wait_for(|count| *count == 0).await;
}
