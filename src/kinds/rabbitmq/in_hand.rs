//! The deliveries of one subscription that users have in hand.
//!
//! A `Delivery` is in here from when it is handed out until it is settled. So one acknowledgement can settle many, and
//! none is settled twice, which would end the channel.
//!
//! The driver may write answers to deliveries in another order than that of the calls. An answer to many must not
//! overtake one to a delivery that it covers. So a delivery whose answer may not be written yet is in `leaving`, and
//! while there is such a one, those before and after it are answered one by one.
//!
//! An answer that was begun is written even if its caller gives up. A task on the pool's runtime then waits for that, so
//! that its deliveries leave `leaving`. Those of a lost connection stay there, and are not settled.
//!
//! Nothing is awaited under the lock, and no other lock is taken. A forked child does not touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use lapin::Acker;
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::stream::Offset;
use crate::lifecycle::busy::Busy;

/// The deliveries of a subscription by their tags, which go up in the order in which they are handed out.
#[derive(Default)]
pub(super) struct InHand(Mutex<Tags>);

#[derive(Default)]
struct Tags {
    held: BTreeMap<u64, HeldDelivery>,
    leaving: BTreeSet<u64>,
}

/// A delivery that is in hand: all that settling it takes.
pub(super) struct HeldDelivery {
    pub(super) acker: Acker,
    busy: Busy,
    /// The offset in its stream. `None` if it is not of a stream.
    offset: Option<Offset>,
}

impl HeldDelivery {
    /// Counts it as settled, or as given back.
    fn finish(mut self, is_done: bool) {
        if let Some(offset) = &self.offset {
            offset.acked();
        }
        self.busy.finish(is_done);
    }
}

/// Deliveries that are being settled.
pub(super) struct Settling {
    pub(super) held: BTreeMap<u64, HeldDelivery>,
    /// Whether one answer may settle them all.
    pub(super) at_once: bool,
}

impl InHand {
    pub(super) fn hand_out(&self, tag: u64, acker: Acker, offset: Option<Offset>, busy: Busy) {
        self.0.lock().held.insert(tag, HeldDelivery { acker, busy, offset });
    }

    /// Takes the delivery to settle it. `None` if it is settled already.
    pub(super) fn take(&self, tag: u64) -> Option<HeldDelivery> {
        let tags = &mut *self.0.lock();
        let held = tags.held.remove(&tag)?;
        tags.leaving.insert(tag);
        Some(held)
    }

    /// Takes the delivery and all before it to settle them. There are none if it is settled already.
    pub(super) fn take_all_before(&self, tag: u64) -> Settling {
        let tags = &mut *self.0.lock();
        if !tags.held.contains_key(&tag) {
            return Settling { held: BTreeMap::new(), at_once: false };
        }
        let later = tags.held.split_off(&(tag + 1));
        let held = std::mem::replace(&mut tags.held, later);
        let at_once = tags.leaving.first().is_none_or(|leaving| *leaving > tag);
        tags.leaving.extend(held.keys());
        Settling { held, at_once }
    }

    /// Whether the answer to the delivery has begun and is not written.
    pub(super) fn is_leaving(&self, tag: u64) -> bool {
        self.0.lock().leaving.contains(&tag)
    }

    /// Notes that the answer to a delivery is written.
    pub(super) fn answered(&self, tag: u64, held: HeldDelivery, is_done: bool) {
        self.0.lock().leaving.remove(&tag);
        held.finish(is_done);
    }
}

/// The writing of answers. If it is given up, a task goes on with it while there is a connection.
pub(super) struct Writing {
    writing: Option<Pin<Box<dyn Future<Output = lapin::Result<bool>> + Send>>>,
    generation: Arc<Generation>,
}

impl Writing {
    pub(super) fn new(
        generation: &Arc<Generation>,
        writing: impl Future<Output = lapin::Result<bool>> + Send + 'static,
    ) -> Self {
        Writing { writing: Some(Box::pin(writing)), generation: Arc::clone(generation) }
    }

    /// Waits for it within the operation timeout. It answers `false` if the channel is gone.
    pub(super) async fn wait(mut self, action: &str) -> Result<bool, Error> {
        let generation = Arc::clone(&self.generation);
        let written = async {
            let Some(writing) = &mut self.writing else { return Ok(false) };
            let written = writing.await;
            self.writing = None;
            written
        };
        generation.answer(action, written).await
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        if self.generation.link.check_process().is_err() {
            // Leaked on purpose: the deliveries are the parent's, and this process has none of its threads.
            return std::mem::forget(writing);
        }
        if !self.generation.is_alive() {
            return;
        }
        let switch = self.generation.switch.clone();
        self.generation.runtime.spawn(async move {
            tokio::select! {
                _ = writing => {}
                () = switch.wait() => {}
            }
        });
    }
}
