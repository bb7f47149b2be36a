//! Models and other large objects, which are loaded once for all who ask, and unloaded on a thread that may take its
//! time.
//!
//! The object is in one [`Arc`], of which the handle and each guard have a clone. The last of them to go takes the
//! object out and drops it: the step of closing on its own thread, a guard on a thread that is started for that. So no
//! user's thread waits for gigabytes to be unmapped.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::error::Failure;
use crate::base::process::ForkGuarded;
use crate::base::runtime::{apart, thread, within};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A model or another large object, from the closure that loads it. The pool loads it as it is first asked for, once for
/// all who ask, on a thread of its own. It unloads it as it closes, by dropping it on another thread.
///
/// Callers wait for as long as their acquire timeout, which [`within`](crate::ResourcePool::within) can raise. The
/// loading goes on if they give up, and the next caller gets its result. An object that guards still hold as it is closed
/// is dropped with the last of them.
///
/// ```
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ModelLoader, blocking::ResourcePool};
///
/// let pool = ResourcePool::builder().build()?;
/// let weights = pool.model("momentum", || Ok(vec![0.1, 0.9]))?;
/// assert_eq!(weights.len(), 2);
/// drop(weights);
/// assert!(pool.close("momentum")?.all_closed()); // the memory is back
/// # let _ = ModelLoader::new(|| Ok(1)).limit(std::time::Duration::from_secs(60));
/// # Ok(()) }
/// ```
pub struct ModelLoader<T> {
    load: Arc<dyn Fn() -> Result<T, Failure> + Send + Sync>,
    limit: Duration,
    phase: Phase,
}

/// The default of [`ModelLoader::limit`].
const LIMIT: Duration = Duration::from_secs(600);

impl<T: Send + Sync + 'static> ModelLoader<T> {
    /// Makes a resource of the closure that loads it, which may block. An error that converts into a
    /// [`Failure`] is tried again, and [`Failure::permanent`] is not. It has 10 min, and closes with the models.
    pub fn new(load: impl Fn() -> Result<T, Failure> + Send + Sync + 'static) -> Self {
        ModelLoader { load: Arc::new(load), limit: LIMIT, phase: Phase::Models }
    }

    /// Sets how long loading may take. Defaults to 10 min. A closure that takes longer keeps its thread, and its result
    /// is dropped.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sets the phase in which it is unloaded. Defaults to [`Phase::Models`].
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }
}

impl<T: Send + Sync + 'static, F: Fn() -> Result<T, Failure> + Send + Sync + 'static> From<F> for ModelLoader<T> {
    fn from(load: F) -> Self {
        ModelLoader::new(load)
    }
}

/// The handle of a loaded object, from which guards are made.
pub struct Loaded<T>(Arc<ForkGuarded<LoadedObject<T>>>);

struct LoadedObject<T> {
    /// `None` once it is closed.
    object: Mutex<Option<Arc<T>>>,
    guards: Arc<AtomicUsize>,
}

/// A guard of a loaded object. It derefs to the object, and dropping it does not wait.
#[must_use = "the object may be unloaded when this drops"]
pub struct Model<T: Send + Sync + 'static> {
    /// `None` only while it drops. A forked child leaves the object alone.
    object: ForkGuarded<Option<Arc<T>>>,
    guards: Arc<AtomicUsize>,
    lease: Lease<Loaded<T>>,
}

impl<T: Send + Sync + 'static> Model<T> {
    /// The guard of the object that this lease is of. `None` if that was closed meanwhile, as by a reconnect.
    pub(crate) fn of(lease: Lease<Loaded<T>>) -> Option<Self> {
        ForkGuarded::check(&lease.0).ok()?;
        let (object, guards) = (lease.0.object.lock().clone()?, Arc::clone(&lease.0.guards));
        guards.fetch_add(1, Ordering::Relaxed);
        Some(Model { object: ForkGuarded::new(Some(object)), guards, lease })
    }

    /// The name of the resource.
    pub fn resource(this: &Self) -> &str {
        Lease::resource(&this.lease)
    }
}

impl<T: Send + Sync + 'static> Deref for Model<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object.as_ref().unwrap_or_else(|| unreachable!("nobody has a guard that drops"))
    }
}

impl<T: Send + Sync + 'static> Drop for Model<T> {
    fn drop(&mut self) {
        if !ForkGuarded::is_current(&self.object) {
            return;
        }
        self.guards.fetch_sub(1, Ordering::Relaxed);
        if let Some(object) = self.object.take().and_then(Arc::into_inner) {
            // Without a thread it drops here.
            if let Ok(unloads) = thread(drop::<T>) {
                let _ = unloads.send(object);
            }
        }
    }
}

impl<T: Send + Sync + 'static> Resource for ModelLoader<T> {
    type Handle = Loaded<T>;

    async fn connect(&self, link: &Link) -> Result<Loaded<T>, Failure> {
        let load = Arc::clone(&self.load);
        // The attempt's own limit does not count, because loading has one.
        let loaded = within(self.limit, link.going_on("loading", apart(move || load()))).await;
        let Ok(loaded) = loaded else {
            return Err(Failure::permanent(format!("it was not loaded within {:?}", self.limit)));
        };
        let object = Mutex::new(Some(Arc::new(loaded??)));
        Ok(Loaded(Arc::new(ForkGuarded::new(LoadedObject { object, guards: Arc::default() }))))
    }

    async fn ping(&self, _: &Loaded<T>) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, loaded: Loaded<T>) -> Result<(), Failure> {
        let object = loaded.0.object.lock().take();
        match object.and_then(Arc::into_inner) {
            Some(object) => apart(move || drop(object)).await,
            // The last guard drops it.
            None => Ok(()),
        }
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn usage(&self, loaded: &Loaded<T>) -> Usage {
        let open = Some(usize::from(loaded.0.object.lock().is_some()));
        Usage { open, in_use: Some(loaded.0.guards.load(Ordering::Relaxed)), ..Usage::default() }
    }
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Loaded(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for ModelLoader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelLoader { limit, phase, .. } = self;
        f.debug_struct("ModelLoader").field("limit", limit).field("phase", phase).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Loaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> fmt::Debug for Model<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&**self).finish()
    }
}
