//! The pools that everyone uses, of connections that do nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

/// As many as a busy service has.
pub(crate) const CONNECTIONS: u32 = 16;

/// How many ask at once.
pub(crate) const CROWDS: [usize; 4] = [1, 2, 4, 16];

/// Opens connections that do nothing, and counts them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nothing {
    takes: Duration,
    opened: Arc<AtomicUsize>,
}

impl Nothing {
    /// Opening one takes so long.
    pub(crate) fn slow(takes: Duration) -> Self {
        Nothing { takes, ..Nothing::default() }
    }

    /// How many were opened.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn open(&self) {
        std::thread::sleep(self.takes);
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    async fn open_async(&self) {
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
    }
}

impl r2d2::ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    fn connect(&self) -> Result<(), Infallible> {
        self.open();
        Ok(())
    }

    fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

impl deadpool::managed::Manager for Nothing {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        self.open_async().await;
        Ok(())
    }

    async fn recycle(
        &self,
        (): &mut (),
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

impl bb8::ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        self.open_async().await;
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[mobc::async_trait]
impl mobc::Manager for Nothing {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        self.open_async().await;
        Ok(())
    }

    async fn check(&self, (): ()) -> Result<(), Infallible> {
        Ok(())
    }
}

pub(crate) type Deadpool = deadpool::managed::Pool<Nothing>;

/// One of each, with so many connections at most and all their own defaults else.
pub(crate) fn r2d2(max: u32, min_idle: u32, manager: Nothing) -> r2d2::Pool<Nothing> {
    r2d2::Pool::builder().max_size(max).min_idle(Some(min_idle)).build(manager).expect("connections that do nothing")
}

pub(crate) fn deadpool(max: u32, manager: Nothing) -> Deadpool {
    Deadpool::builder(manager).max_size(max as usize).build().expect("no timeouts, so no runtime either")
}

/// The runtime is for what closes idle ones.
pub(crate) fn bb8(runtime: &Runtime, max: u32, manager: Nothing) -> bb8::Pool<Nothing> {
    let _entered = runtime.enter();
    bb8::Pool::builder().max_size(max).build_unchecked(manager)
}

/// It closes what it gets back beyond two idle ones unless told otherwise.
pub(crate) fn mobc(max: u32, manager: Nothing) -> mobc::Pool<Nothing> {
    mobc::Pool::builder().max_open(max.into()).max_idle(max.into()).build(manager)
}
