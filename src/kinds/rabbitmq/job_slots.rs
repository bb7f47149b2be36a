//! Futures that run side by side in one task. A future is polled only when it is woken, however many there are.
//!
//! `Consumer::for_each_concurrent` owns a `JobSlots`, and polls it. Each future has a slot with a waker of its own, which
//! notes the slot and wakes the task.
//!
//! The lock of `WokenSlots` is held for a moment only, and no waker is called under it. `is_noted` of a slot is reset
//! before its future is polled, so a wake during the poll is noted again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Up to so many futures, in any state.
pub(super) struct JobSlots<F> {
    slots: Vec<JobSlot<F>>,
    free: Vec<usize>,
    most: usize,
    woken: Arc<Mutex<WokenSlots>>,
}

struct JobSlot<F> {
    /// The allocation is used again for the next future of the slot.
    future: Pin<Box<Option<F>>>,
    noted: Arc<SlotWaker>,
    waker: Waker,
}

#[derive(Default)]
struct WokenSlots {
    slots: Vec<usize>,
    /// The task to wake. `None` once it is woken.
    task: Option<Waker>,
}

struct SlotWaker {
    slot: usize,
    is_noted: AtomicBool,
    woken: Arc<Mutex<WokenSlots>>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_noted.swap(true, Ordering::SeqCst) {
            return;
        }
        let task = {
            let mut woken = self.woken.lock();
            woken.slots.push(self.slot);
            woken.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future<Output = ()>> JobSlots<F> {
    pub(super) fn new(most: usize) -> Self {
        JobSlots { slots: Vec::new(), free: Vec::new(), most, woken: Arc::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.most
    }

    /// Begins a future. The caller has asked whether there is room.
    pub(super) fn begin(&mut self, future: F) {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let noted = Arc::new(SlotWaker { slot, is_noted: AtomicBool::new(false), woken: Arc::clone(&self.woken) });
            let waker = Waker::from(Arc::clone(&noted));
            self.slots.push(JobSlot { future: Box::pin(None), noted, waker });
            slot
        });
        if let Some(begun) = self.slots.get_mut(slot) {
            begun.future.set(Some(future));
        }
        self.poll_slot(slot);
    }

    /// Polls each woken future once. The task of the context is woken when there is more to poll.
    pub(super) fn poll(&mut self, cx: &Context<'_>) {
        let woken = {
            let mut woken = self.woken.lock();
            // The task comes first, so that a future that wakes itself is polled with the next poll, and not in a loop.
            woken.task = Some(cx.waker().clone());
            std::mem::take(&mut woken.slots)
        };
        for slot in woken {
            self.poll_slot(slot);
        }
    }

    fn poll_slot(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.noted.is_noted.store(false, Ordering::SeqCst);
        // The slot of a future that has ended may be woken late.
        let Some(future) = slot.future.as_mut().as_pin_mut() else { return };
        if let Poll::Ready(()) = future.poll(&mut Context::from_waker(&slot.waker)) {
            slot.future.set(None);
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use tokio::sync::oneshot;

    use super::JobSlots;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_future_is_polled_only_when_it_is_woken() {
        let polls = Arc::new(AtomicUsize::new(0));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let context = Context::from_waker(&waker);
        let mut running = JobSlots::new(3);
        let mut senders = Vec::new();
        while running.has_room() {
            let (sender, receiver) = oneshot::channel::<()>();
            senders.push(sender);
            let (polls, mut receiver) = (Arc::clone(&polls), Box::pin(receiver));
            running.begin(poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::SeqCst);
                receiver.as_mut().poll(cx).map(drop)
            }));
        }
        assert_eq!((senders.len(), polls.load(Ordering::SeqCst)), (3, 3));
        running.poll(&context);
        assert_eq!(polls.load(Ordering::SeqCst), 3);
        senders.remove(1).send(()).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        running.poll(&context);
        assert_eq!((polls.load(Ordering::SeqCst), running.has_room()), (4, true));
        drop(senders);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2, "one wake is enough for both");
        running.poll(&context);
        assert!(running.is_empty());
    }

    /// Such a future must not keep the task from others.
    #[test]
    fn a_future_that_wakes_itself_is_polled_once_at_a_time() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut running = JobSlots::new(1);
        let mut left = 3;
        running.begin(poll_fn(move |cx| {
            left -= 1;
            cx.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        for _ in 0..2 {
            assert!(!running.is_empty());
            running.poll(&Context::from_waker(&waker));
        }
        assert!(running.is_empty());
        assert!(wakes.0.load(Ordering::SeqCst) >= 1);
    }
}
