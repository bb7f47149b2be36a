//! The resources of a pool that a program means to use, and how one of them goes.
//!
//! A resource that goes is closed before it is forgotten, so that closing the whole pool finds it until then. It is
//! retired in between, so that a late reconnect connects nothing that the pool no longer knows. The locks `entries` and
//! `edges` are not held at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::error::{BoxError, Error};
use crate::base::runtime::{self, within};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::closer::drop_aside;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::registry::{Entry, Registry, check_name, downcast, taken};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::status::State;

impl Registry {
    /// The resource of this name, which is made of `resource` if nobody has asked for the name before. `is_same` tells
    /// whether a resource that is there was made of the same.
    pub(crate) fn made_of<R: Resource>(
        &self,
        name: &str,
        kind: &'static str,
        resource: R,
        is_same: impl FnOnce(&R, &R) -> bool,
    ) -> Result<Arc<Slot<R>>, Error> {
        if let Some(made) = self.existing::<R>(name)? {
            return if is_same(made.resource(), &resource) { Ok(made) } else { Err(differs(name)) };
        }
        self.check_open()?;
        check_name(name)?;
        if self.is_configured(name) {
            return Err(taken(name, "a resource has this name already"));
        }
        let slot = Slot::of_program(name, kind, resource, Arc::clone(&self.context));
        let mut entries = self.entries.write();
        // Another thread may have been faster.
        let Some(first) = entries.get(name).map(|entry| Arc::clone(&entry.slot)) else {
            entries.insert(Arc::clone(slot.name()), Entry { slot: slot.clone(), config: None });
            return Ok(slot);
        };
        drop(entries);
        match downcast::<R>(&first) {
            Some(first) if is_same(first.resource(), slot.resource()) => Ok(first),
            Some(_) => Err(differs(name)),
            None => Err(taken(name, "it is of another type")),
        }
    }

    /// The names of the resources that code, the file or the environment sets, of those that were added at run time, and
    /// of those that were used. While the pool is open, those that were closed are left out.
    pub(crate) fn names_in_use(&self) -> Result<BTreeSet<String>, Error> {
        self.context.check_process()?;
        let settings = self.settings()?;
        // A look at the status makes a resource of each kind, which nobody has used by that.
        let is_used = |slot: &Arc<dyn AnySlot>| slot.state() != State::Idle || settings.get(slot.name()).is_none();
        let slots = self.slots();
        let used = slots.iter().filter(|slot| is_used(slot)).map(|slot| slot.name().to_string());
        let mut names: BTreeSet<_> = settings.told_names().map(str::to_owned).chain(used).collect();
        if !self.is_closing() {
            for slot in slots.iter().filter(|slot| matches!(slot.state(), State::Draining | State::Closed)) {
                names.remove(&**slot.name());
            }
        }
        Ok(names)
    }

    /// Closes a resource that the configuration does not have, and forgets it. This goes on if the caller stops
    /// waiting.
    pub(crate) async fn unregister(self: &Arc<Self>, name: &str) -> Result<Arc<CloseReport>, Error> {
        self.context.check_process()?;
        let slot = match self.made(name) {
            Some(slot) if !self.is_configured(name) => slot,
            None if !self.is_configured(name) => return Err(self.unknown(name)),
            _ => {
                let why = "it is in the configuration, so its name stays its own; `close` closes it";
                let (resource, action) = (Arc::from(name), "unregister".to_owned());
                return Err(Error::Operation { resource, action, source: BoxError::from(why).into() });
            }
        };
        let background = runtime::background().map_err(|error| Error::no_threads(slot.name(), error))?;
        let mut run = self.start_closing_one(&slot)?;
        let me = Arc::clone(self);
        let closing = background.spawn(async move {
            loop {
                let report = run.wait().await;
                let limits = &me.context.options.close;
                // The close of the whole pool may have ended before that of this resource.
                let ended = slot.activity().until(|| (slot.state() != State::Draining).then_some(()));
                if within(limits.deadline, ended).await.is_err() {
                    return Err(Error::closing(slot.name()));
                }
                if slot.retire() {
                    // A resource that gets the name may need the places of these connections.
                    let said = slot.activity().until(|| slot.has_disconnected().then_some(()));
                    let _goes_on_without = within(limits.step, said).await;
                    me.forget(&slot);
                    // Its closures and what they have captured are the program's, and this is the prober's thread.
                    drop(drop_aside(vec![slot]));
                    return Ok(report);
                }
                // It was connected anew meanwhile.
                let next = me.start_closing_one(&slot)?;
                if Arc::ptr_eq(&next, &run) {
                    return Err(Error::closing(slot.name()));
                }
                run = next;
            }
        });
        closing.await.unwrap_or_else(|_join| Err(Error::closed(&Arc::from(name))))
    }

    pub(super) fn is_configured(&self, name: &str) -> bool {
        self.settings.as_ref().is_ok_and(|settings| settings.get(name).is_some())
    }

    /// Forgets a retired resource, so that its name is free.
    fn forget(&self, slot: &Arc<dyn AnySlot>) {
        let is_this = |known: &Arc<dyn AnySlot>| Arc::ptr_eq(known, slot);
        if !self.made(slot.name()).as_ref().is_some_and(is_this) {
            return;
        }
        // Before the name is free, because a resource that gets it may have edges at once.
        self.edges.lock().forget(slot.name());
        let mut entries = self.entries.write();
        let is_known = entries.get(slot.name()).is_some_and(|entry| is_this(&entry.slot));
        let forgotten = if is_known { entries.remove(slot.name()) } else { None };
        drop(entries);
        // The caller has the resource still, so that this drops none of its code.
        drop(forgotten);
    }
}

fn differs(name: &str) -> Error {
    taken(name, "a resource with another configuration has this name")
}
