//! The pools that this one is compared with. Their connections do nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resource_pool::adapter::{Checkouts, Claim, LeaseAs, Limits, Manage, Quota};
use resource_pool::{Failure, Link, Resource, ResourcePool, Usage};
use tokio::runtime::Runtime;

/// The pool size of a busy service.
pub(crate) const CONNECTIONS: u32 = 16;

/// The numbers of users that ask at once.
pub(crate) const CROWDS: [usize; 4] = [1, 2, 4, 16];

/// Opens connections that do nothing, and counts them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nothing {
    takes: Duration,
    opened: Arc<AtomicUsize>,
}

impl Nothing {
    /// Opening a connection takes so long.
    pub(crate) fn slow(takes: Duration) -> Self {
        Nothing { takes, ..Nothing::default() }
    }

    /// The number of connections opened so far.
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

impl Manage for Nothing {
    type Connection = ();

    async fn connect(&self) -> Result<(), Failure> {
        self.open_async().await;
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Failure> {
        Ok(())
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

/// Our own kind, for tasks.
pub(crate) struct Ours {
    manager: Nothing,
    max: usize,
}

#[derive(Clone)]
pub(crate) struct Tasks(Arc<Checkouts<Nothing>>);

impl LeaseAs<Checkouts<Nothing>> for Tasks {
    fn lease_as(&self) -> &Checkouts<Nothing> {
        &self.0
    }
}

impl Resource for Ours {
    type Handle = Tasks;

    async fn connect(&self, link: &Link) -> Result<Tasks, Failure> {
        let quota = Quota::new(link, self.max, "connections", "pool_size");
        let limits = Limits { max: self.max, ..Limits::default() };
        let checkouts = Checkouts::new(link, self.manager.clone(), limits, quota);
        checkouts.open().await?;
        Ok(Tasks(Arc::new(checkouts)))
    }

    async fn ping(&self, tasks: &Tasks) -> Result<(), Failure> {
        tasks.0.ping().await
    }

    async fn close(&self, tasks: Tasks) -> Result<(), Failure> {
        tasks.0.close().await;
        Ok(())
    }

    fn cut(&self, tasks: &Tasks) {
        tasks.0.cut();
    }

    fn usage(&self, tasks: &Tasks) -> Usage {
        tasks.0.usage()
    }
}

impl Tasks {
    /// A connected kind in this pool, which the caller has to keep.
    pub(crate) async fn new(pool: &ResourcePool, max: u32, manager: Nothing) -> Self {
        pool.register("tasks", Ours { manager, max: max as usize }).expect("a new name");
        pool.get::<Ours>("tasks").await.expect("a connection").clone()
    }

    /// Checks out one connection.
    pub(crate) async fn get(&self) -> resource_pool::adapter::Checkout<Nothing> {
        self.0.check_out::<Ours>(Claim::shared()).await.expect("a connection")
    }
}

pub(crate) type Deadpool = deadpool::managed::Pool<Nothing>;

/// A pool of r2d2 with so many connections at most. Like the others here, it has its own defaults otherwise.
pub(crate) fn r2d2(max: u32, min_idle: u32, manager: Nothing) -> r2d2::Pool<Nothing> {
    r2d2::Pool::builder().max_size(max).min_idle(Some(min_idle)).build(manager).expect("connections that do nothing")
}

pub(crate) fn deadpool(max: u32, manager: Nothing) -> Deadpool {
    Deadpool::builder(manager).max_size(max as usize).build().expect("no timeouts, so no runtime either")
}

/// bb8 closes idle connections on this runtime.
pub(crate) fn bb8(runtime: &Runtime, max: u32, manager: Nothing) -> bb8::Pool<Nothing> {
    let _entered = runtime.enter();
    bb8::Pool::builder().max_size(max).build_unchecked(manager)
}

/// mobc closes all but two idle connections unless told otherwise.
pub(crate) fn mobc(max: u32, manager: Nothing) -> mobc::Pool<Nothing> {
    mobc::Pool::builder().max_open(max.into()).max_idle(max.into()).build(manager)
}

/// Opens connections of sqlx.
#[cfg(feature = "postgres")]
#[derive(Debug, Clone)]
pub(crate) struct OfPostgres(String);

#[cfg(feature = "postgres")]
pub(crate) mod of_postgres {
    use resource_pool::sqlx::{self, Connection, PgConnection};

    use super::{OfPostgres, Runtime};

    impl deadpool::managed::Manager for OfPostgres {
        type Type = PgConnection;
        type Error = sqlx::Error;

        async fn create(&self) -> sqlx::Result<PgConnection> {
            PgConnection::connect(&self.0).await
        }

        async fn recycle(
            &self,
            _: &mut PgConnection,
            _: &deadpool::managed::Metrics,
        ) -> deadpool::managed::RecycleResult<sqlx::Error> {
            Ok(())
        }
    }

    impl bb8::ManageConnection for OfPostgres {
        type Connection = PgConnection;
        type Error = sqlx::Error;

        async fn connect(&self) -> sqlx::Result<PgConnection> {
            PgConnection::connect(&self.0).await
        }

        async fn is_valid(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
            connection.ping().await
        }

        fn has_broken(&self, _: &mut PgConnection) -> bool {
            false
        }
    }

    pub(crate) fn deadpool(max: u32, url: &str) -> deadpool::managed::Pool<OfPostgres> {
        let manager = OfPostgres(url.to_owned());
        deadpool::managed::Pool::builder(manager).max_size(max as usize).build().expect("no timeouts")
    }

    pub(crate) fn bb8(runtime: &Runtime, max: u32, url: &str) -> bb8::Pool<OfPostgres> {
        let _entered = runtime.enter();
        bb8::Pool::builder().max_size(max).test_on_check_out(false).build_unchecked(OfPostgres(url.to_owned()))
    }
}
