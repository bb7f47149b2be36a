//! Metrics with the names of OpenTelemetry, for any recorder of the crate `metrics`.
//!
//! [`Metrics::install`] counts the events of a pool and times its work, and [`Metrics::observe`] reads the levels, such as
//! how many connections are in use. Call it at each scrape. Nothing polls the pool otherwise, and a lease is not
//! measured. The page `docs/monitoring.md` in the repository lists every metric, with its unit, its labels, and a query.
//!
//! ```no_run
//! use resource_pool::{ResourcePool, metrics::Metrics};
//! # struct Exporter;
//! # impl Exporter { fn render(&self) -> String { String::new() } }
//! # fn install_recorder() -> Exporter { Exporter }
//!
//! # fn main() -> Result<(), resource_pool::Error> {
//! let exporter = install_recorder(); // such as that of `metrics-exporter-prometheus`
//! let metrics = Metrics::install(ResourcePool::global())?;
//! // At each scrape:
//! metrics.observe();
//! let text = exporter.render();
//! # Ok(()) }
//! ```

mod book;
mod events;
mod levels;
mod names;
mod recorded;
mod series;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;

use crate::{Error, ResourcePool, blocking};

use self::book::Book;
use self::levels::Levels;
use self::series::Series;

/// The metrics of one pool. A clone is another handle to the same ones.
///
/// It holds the pool, so a pool of one's own closes only once this has dropped too. The counting goes on until the pool
/// is gone, even if this has dropped before. After a close the counters stay, and the levels fall to zero.
///
/// Pools that share a process share its recorder. Their counters add up where resources have the same name, and their
/// levels replace one another, so give the resources of several pools different names.
#[derive(Clone)]
pub struct Metrics(Arc<Installed>);

struct Installed {
    pool: ResourcePool,
    book: Arc<Book>,
    levels: Mutex<Levels>,
    /// The process that installed it. In a forked child the locks may be held by threads that are not there.
    process: u32,
}

impl Metrics {
    /// The most resources that have series of their own. The first to be seen have them, and all further ones are told
    /// together, as `other`. A resource that is made anew under its name at another endpoint counts anew. So the number
    /// of series stays bounded, whatever the names are.
    pub const MAX_RESOURCES: usize = book::MAX_RESOURCES;

    /// The most servers of one resource that have series of their own. The others are told together, as `other`. So far
    /// each resource is one server here, a replica set too.
    pub const MAX_NODES: usize = levels::MAX_NODES;

    /// Upper bounds for the buckets of the histograms, in seconds. They are those that OpenTelemetry advises for
    /// databases, with finer ones below, because a server nearby answers within 100 µs. An exporter has to be told, as by
    /// `set_buckets` of `metrics-exporter-prometheus`.
    pub const BUCKETS: [f64; 12] = [0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

    /// Begins to count the pool's events and to time its work, with the recorder that is installed by now. Install the
    /// recorder first, because what is counted before goes to none.
    ///
    /// One thread, `resource-pool-metrics`, counts the events. The pool never waits for it: events that find no room are
    /// left out, and their number is told as `resource_pool.events.missed`. The option
    /// [`events`](crate::config::Options::events) sets how much room there is.
    ///
    /// # Errors
    /// [`Error::Config`] if the pool has metrics already, or another listener of
    /// [`on_measured`](ResourcePool::on_measured), and if the process can have no more threads.
    pub fn install(pool: &ResourcePool) -> Result<Self, Error> {
        let book = Arc::new(Book::default());
        let (start, started) = mpsc::channel();
        let (events, counting) = (blocking::Events::from(pool.events()), Arc::clone(&book));
        let count = move || {
            // `install` drops the sender if the pool has metrics already.
            if started.recv().is_ok() {
                events::count_all(events, &counting);
            }
        };
        thread::Builder::new().name("resource-pool-metrics".to_owned()).spawn(count).map_err(|error| {
            let problem = format!("no thread can be started for them ({error}); raise the limit, such as `ulimit -u`");
            Error::config("metrics", problem)
        })?;
        let measuring = Arc::clone(&book);
        pool.on_measured(move |measured| {
            // The pool measures tasks and holds too, which have no metric.
            if let Some(place) = Series::place(measured.measure) {
                measuring.series(measured.resource, measured.system, measured.endpoint).measured(place, measured);
            }
        })?;
        names::describe();
        let levels = Mutex::new(Levels::default());
        let metrics = Metrics(Arc::new(Installed { pool: pool.clone(), book, levels, process: std::process::id() }));
        // The resources that are known by now have counters from here on, so that a first increase is seen as one.
        metrics.observe();
        // The thread waits for this message. It can only be gone by a panic.
        let _gone = start.send(());
        Ok(metrics)
    }

    /// Reads the levels from the pool's status and gives them to the recorder. Call it at each scrape, before the
    /// exporter renders. It asks no server and takes about as long as [`status`](ResourcePool::status), so it can be
    /// called in a task. Of scrapes that run side by side, the first to end gives the levels. In a forked child it does
    /// nothing.
    ///
    /// An exporter may keep the values of histograms until it renders. If nobody scrapes, have it clean up now and then,
    /// as by `run_upkeep` of `metrics-exporter-prometheus`.
    pub fn observe(&self) {
        let Installed { pool, book, levels, process } = &*self.0;
        if *process == std::process::id() {
            // `status` runs code of users' own resources, so the lock is free meanwhile.
            let observed = levels.lock().observed();
            let status = pool.status();
            levels.lock().observe(observed, &status, book);
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("pool", &self.0.pool).finish_non_exhaustive()
    }
}
