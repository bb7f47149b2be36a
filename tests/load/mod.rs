//! Mixed load on one backend, from threads and from tasks, with a ledger of the results that its callers were told.
//!
//! `tests/faults.rs` and `tests/soak.rs` start a [`Load`]. A watchdog thread times each call, independently of the code
//! under test. A call that outlives its deadline fails the run at once, by name.
//!
//! The workers, the companions and the watchdog share one [`Shared`]. Lock order: `desks`, then a desk's `now` or
//! `failures`. No other two locks are held at once, and no call on a backend runs under a lock. `stop` ends the
//! workers, and `settled` ends the companions and the watchdog.

#![allow(dead_code, missing_docs, reason = "each of the two test files uses some of it")]

pub(crate) mod clickhouse;
pub(crate) mod fault;
pub(crate) mod ledger;
pub(crate) mod meter;
pub(crate) mod mongo;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod rabbitmq;
pub(crate) mod redis;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::clickhouse::error::Error as ClickHouseError;
use ::redis::{ErrorKind as RedisErrorKind, RedisError};
use mongodb::error::ErrorKind;
use resource_pool::config::{Options, ResourceConfig};
use resource_pool::{Error, ResourcePool, blocking};
use services::{Kind, Service};
use tokio::runtime::Runtime;

use ledger::{Audit, Id, Ledger};

/// The number of threads, and also of tasks.
pub(crate) const WORKERS: usize = 8;
/// The limit for a call to get a connection. It is the pool's default.
pub(crate) const ACQUIRE: Duration = Duration::from_secs(5);
/// How long an idle connection is kept. It is short, so that unused connections are soon gone.
pub(crate) const IDLE: Duration = Duration::from_secs(5);
/// The limit for noticing that a server no longer answers.
pub(crate) const NOTICE: Duration = Duration::from_secs(5);

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result that a call's caller was told.
pub(crate) type Told = Result<(), Trouble>;

#[derive(Debug)]
pub(crate) enum Trouble {
    /// The call was not done.
    NotDone(String),
    /// The call was not done, as the server itself said.
    Refused(String),
    /// The call may have been done.
    Unknown(String),
    /// The call was done wrong.
    Wrong(String),
}

impl Trouble {
    /// Classifies an error. The pool's own error says whether the call may have been done. After a driver's error it
    /// may have been, unless the driver found no server to send it to.
    pub(crate) fn of(error: impl StdError + 'static) -> Self {
        let driver = (&error as &dyn StdError).downcast_ref::<mongodb::error::Error>();
        let found_none = driver.is_some_and(|error| matches!(*error.kind, ErrorKind::ServerSelection { .. }));
        match Error::behind(&error) {
            Some(Error::OutcomeUnknown { .. }) => Trouble::Unknown(error.to_string()),
            _ if is_refusal(&error) => Trouble::Refused(error.to_string()),
            None if !found_none => Trouble::Unknown(error.to_string()),
            _ => Trouble::NotDone(error.to_string()),
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Trouble::NotDone(text) | Trouble::Refused(text) | Trouble::Unknown(text) | Trouble::Wrong(text) => text,
        }
    }
}

/// Whether the server itself refused. No fault makes MongoDB do that.
fn is_refusal(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|cause| {
        let by_redis = cause.downcast_ref().is_some_and(|error: &RedisError| {
            matches!(error.kind(), RedisErrorKind::Server(_) | RedisErrorKind::Extension)
        });
        let by_clickhouse = cause.downcast_ref().is_some_and(|error: &ClickHouseError| {
            matches!(error, ClickHouseError::BadResponse(words) if words.starts_with("Code: "))
        });
        let by_rabbitmq = cause
            .downcast_ref()
            .is_some_and(|error: &lapin::Error| matches!(error.kind(), lapin::ErrorKind::ProtocolError(_)));
        #[cfg(feature = "postgres")]
        let by_postgres = cause.downcast_ref::<resource_pool::sqlx::Error>().is_some_and(|error| {
            // Class 57 is the last message of a server that ends a connection, behind a loss.
            error.as_database_error().and_then(|said| said.code()).is_some_and(|code| !code.starts_with("57"))
        });
        #[cfg(not(feature = "postgres"))]
        let by_postgres = false;
        by_redis || by_clickhouse || by_rabbitmq || by_postgres
    })
}

/// The result of a call whose answer does not matter.
pub(crate) fn done<T>(result: Result<T, impl StdError + 'static>) -> Told {
    result.map(drop).map_err(Trouble::of)
}

/// The result of reading an id that was acknowledged.
pub(crate) fn there(is_there: bool, id: Id) -> Told {
    if is_there { Ok(()) } else { Err(Trouble::Wrong(format!("{id:?} was acknowledged and is not there"))) }
}

/// The calls that a worker makes in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Writes this id once.
    Write(Id),
    /// Reads this id, which was acknowledged.
    Read(Id),
    /// A call that takes its time, or a connection of its own.
    Slow(Id),
}

impl Call {
    pub(crate) fn id(self) -> Id {
        let (Call::Write(id) | Call::Read(id) | Call::Slow(id)) = self;
        id
    }

    fn name(self) -> &'static str {
        match self {
            Call::Write(_) => "write",
            Call::Read(_) => "read",
            Call::Slow(_) => "slow call",
        }
    }
}

/// The calls on one backend.
pub(crate) trait Backend: Send + Sync + 'static {
    fn kind(&self) -> Kind;
    /// The resource at this URL, with pools just large enough for the load.
    fn config(&self, url: &str) -> ResourceConfig;
    /// Creates the tables and queues.
    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>>;
    /// Starts the threads that run beside the workers until everything is settled.
    fn companions(&self, load: &Arc<Shared>) -> Vec<JoinHandle<()>> {
        let _ = load;
        Vec::new()
    }
    fn on_thread(&self, pool: &blocking::ResourcePool, call: Call) -> Told;
    fn on_task<'a>(&'a self, pool: &'a ResourcePool, call: Call) -> BoxFuture<'a, Told>;
    /// How often the server has each id, once all `acknowledged` writes have had time to arrive.
    fn found(&self, server: &Service, load: &Shared) -> BTreeMap<Id, u32>;
    /// The time that an operation may take without a fault, on a busy machine.
    fn operation(&self) -> Duration {
        Duration::from_secs(3)
    }
    /// Further problems that the backend noticed.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
    /// The server's version.
    fn version(&self, server: &Service) -> String;
}

pub(crate) fn backend(kind: Kind) -> Arc<dyn Backend> {
    match kind {
        Kind::Mongo => Arc::new(mongo::Mongo::default()),
        Kind::RabbitMq => Arc::new(rabbitmq::RabbitMq::default()),
        Kind::ClickHouse => Arc::new(clickhouse::ClickHouse::default()),
        Kind::Redis => Arc::new(redis::Redis::default()),
        Kind::Elastic => panic!("it has tests of its own"),
        #[cfg(feature = "postgres")]
        Kind::Postgres => Arc::new(postgres::Postgres),
        #[cfg(not(feature = "postgres"))]
        Kind::Postgres => panic!("this build has no PostgreSQL"),
        #[cfg(feature = "mysql")]
        Kind::MySql => Arc::new(mysql::MySql),
        #[cfg(not(feature = "mysql"))]
        Kind::MySql => panic!("this build has no MySQL"),
        other @ (Kind::Chroma | Kind::Milvus) => panic!("{other} has no load"),
    }
}

/// A pool of these backends at these URLs.
pub(crate) fn pool(resources: impl IntoIterator<Item = ResourceConfig>) -> ResourcePool {
    let mut options = Options::default();
    options.acquire_timeout = ACQUIRE;
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    resources.into_iter().fold(builder, |builder, resource| builder.resource(resource)).build().expect("a pool")
}

/// The record of one worker's calls.
pub(crate) struct Desk {
    pub(crate) name: String,
    now: Mutex<Now>,
}

#[derive(Clone, Default)]
struct Now {
    under_way: Option<(&'static str, Instant)>,
    succeeded: Option<Instant>,
    failed: Option<(Instant, String)>,
    /// The first failure since the last `take_sum`.
    first_failure: Option<Instant>,
    calls: usize,
    errors: usize,
    refused: usize,
    unknown: usize,
    longest: Duration,
}

/// The sum over all workers of a load.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) calls: usize,
    pub(crate) errors: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
    pub(crate) longest: Duration,
    pub(crate) first_failure: Option<Instant>,
}

impl Desk {
    fn begin(&self, what: &'static str) {
        lock(&self.now).under_way = Some((what, Instant::now()));
    }

    fn end(&self, told: &Told) {
        let mut now = lock(&self.now);
        let done = Instant::now();
        now.calls += 1;
        if let Some((_, began)) = now.under_way.take() {
            now.longest = now.longest.max(done - began);
        }
        match told {
            Ok(()) => now.succeeded = Some(done),
            Err(trouble) => {
                now.errors += 1;
                now.refused += usize::from(matches!(trouble, Trouble::Refused(_)));
                now.unknown += usize::from(matches!(trouble, Trouble::Unknown(_)));
                now.first_failure.get_or_insert(done);
                now.failed = Some((done, trouble.text().to_owned()));
            }
        }
    }
}

/// The state that a load's workers share with its watchdog and its tests.
pub(crate) struct Shared {
    pub(crate) kind: Kind,
    pub(crate) pool: ResourcePool,
    pub(crate) ledger: Ledger,
    /// The limit for every call to return.
    deadline: Duration,
    stop: AtomicBool,
    /// Whether the written data has arrived, so that the companions may end.
    settled: AtomicBool,
    desks: Mutex<Vec<Arc<Desk>>>,
    /// The moment from which an error fails the run. `None` while a fault lasts.
    quiet_from: Mutex<Option<Instant>>,
    failures: Mutex<Vec<String>>,
    /// Whether acknowledged writes may be gone by the server's own doing.
    may_have_lost: AtomicBool,
    /// How often the server has died.
    pub(crate) deaths: std::sync::atomic::AtomicU32,
}

impl Shared {
    /// Adds a desk. The load waits for its successes, and its calls are timed.
    pub(crate) fn desk(&self, name: impl Into<String>) -> Arc<Desk> {
        let desk = Arc::new(Desk { name: format!("{} {}", self.kind, name.into()), now: Mutex::default() });
        lock(&self.desks).push(Arc::clone(&desk));
        desk
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::SeqCst)
    }

    /// Times one call and books its result in the ledger.
    pub(crate) fn booked(&self, desk: &Desk, call: Call, run: impl FnOnce() -> Told) -> Told {
        desk.begin(call.name());
        let told = run();
        self.book(desk, call, &told);
        told
    }

    pub(crate) async fn booked_async(&self, desk: &Desk, call: Call, run: impl Future<Output = Told>) -> Told {
        desk.begin(call.name());
        let told = run.await;
        self.book(desk, call, &told);
        told
    }

    fn book(&self, desk: &Desk, call: Call, told: &Told) {
        if let Call::Write(id) = call {
            match told {
                Ok(()) => self.ledger.acknowledged(id),
                Err(Trouble::Unknown(_)) => self.ledger.unknown(id),
                Err(_) => {}
            }
        }
        let is_gone = matches!((call, told), (Call::Read(_), Err(Trouble::Wrong(_))));
        let is_forgiven = is_gone && self.may_have_lost.load(Ordering::SeqCst);
        self.judge(desk, call.name(), if is_forgiven { &Ok(()) } else { told });
    }

    /// Books the result of a call that needs no entry in the ledger.
    pub(crate) fn judge(&self, desk: &Desk, what: &str, told: &Told) {
        desk.end(told);
        let calm = lock(&self.quiet_from).is_some_and(|from| Instant::now() >= from);
        match told {
            Err(Trouble::Wrong(text)) => self.fail(format!("{}: {what}: {text}", desk.name)),
            Err(trouble) if calm => {
                self.fail(format!("{}: {what} failed although no fault was on: {}", desk.name, trouble.text()))
            }
            _ => {}
        }
    }

    pub(crate) fn fail(&self, why: String) {
        let mut failures = lock(&self.failures);
        // Later failures follow from the first ones and say nothing new.
        if failures.len() < 10 {
            eprintln!("FAILED: {why}");
            failures.push(why);
        }
    }

    /// A fault begins, so errors are expected.
    pub(crate) fn expect_errors(&self) {
        *lock(&self.quiet_from) = None;
    }

    /// No error is expected from this moment on.
    pub(crate) fn expect_quiet(&self, from: Instant) {
        *lock(&self.quiet_from) = Some(from);
    }

    /// Checks that nothing has gone wrong.
    ///
    /// # Panics If anything has.
    pub(crate) fn check(&self) {
        let failures = lock(&self.failures);
        assert!(failures.is_empty(), "{}:\n{}", self.kind, failures.join("\n"));
    }

    /// The desks without a success since then, each with its current call and its last error.
    pub(crate) fn idle_since(&self, since: Instant) -> Vec<String> {
        let desks = lock(&self.desks).clone();
        let waiting = desks.iter().filter_map(|desk| {
            let now = lock(&desk.now).clone();
            if now.succeeded.is_some_and(|succeeded| succeeded >= since) {
                return None;
            }
            let under_way = now.under_way.map(|(what, began)| format!(", in a {what} for {:.1?}", began.elapsed()));
            let failed = now.failed.filter(|(at, _)| *at >= since).map(|(_, why)| format!(", last told: {why}"));
            Some(format!("{}{}{}", desk.name, under_way.unwrap_or_default(), failed.unwrap_or_default()))
        });
        waiting.collect()
    }

    /// The sum since the last call of this function.
    pub(crate) fn take_sum(&self) -> Sum {
        let mut sum = Sum::default();
        for desk in lock(&self.desks).iter() {
            let mut now = lock(&desk.now);
            sum.calls += std::mem::take(&mut now.calls);
            sum.errors += std::mem::take(&mut now.errors);
            sum.refused += std::mem::take(&mut now.refused);
            sum.unknown += std::mem::take(&mut now.unknown);
            sum.longest = sum.longest.max(std::mem::take(&mut now.longest));
            let first = now.first_failure.take();
            sum.first_failure = [sum.first_failure, first].into_iter().flatten().min();
        }
        sum
    }

    pub(crate) fn state(&self) -> resource_pool::State {
        let status = self.pool.status();
        status.resource(self.kind.name()).expect("configured").state
    }

    pub(crate) fn generation(&self) -> u64 {
        let status = self.pool.status();
        status.resource(self.kind.name()).expect("configured").generation
    }

    /// From now on a reader that misses an acknowledged id reports nothing. The audit still counts it as lost.
    pub(crate) fn losses_begin(&self) {
        self.may_have_lost.store(true, Ordering::SeqCst);
    }

    /// Fails the run for each call that takes longer than the deadline.
    fn watch(&self) {
        let mut named = Vec::new();
        while !self.is_settled() {
            for desk in lock(&self.desks).iter() {
                let under_way = lock(&desk.now).under_way;
                if let Some((what, began)) = under_way
                    && began.elapsed() > self.deadline
                    && !named.contains(&(desk.name.clone(), began))
                {
                    named.push((desk.name.clone(), began));
                    let late = format!("{}: a {what} has not come back for {:.1?}", desk.name, began.elapsed());
                    self.fail(format!("{late}; {:#?}", self.pool.status()));
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A running load.
pub(crate) struct Load {
    pub(crate) shared: Arc<Shared>,
    pub(crate) backend: Arc<dyn Backend>,
    threads: Vec<JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    companions: Vec<JoinHandle<()>>,
    _stops: Stops,
}

/// Also ends the workers of a load that is dropped without `end`.
struct Stops(Arc<Shared>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.settled.store(true, Ordering::SeqCst);
    }
}

impl Load {
    /// Begins the load, with `pace` between the calls of a worker. The tasks run on this runtime, which is not the
    /// pool's.
    pub(crate) fn begin(backend: Arc<dyn Backend>, pool: &ResourcePool, runtime: &Runtime, pace: Duration) -> Load {
        let shared = Arc::new(Shared {
            kind: backend.kind(),
            pool: pool.clone(),
            ledger: Ledger::new(2 * WORKERS),
            deadline: ACQUIRE + NOTICE + backend.operation(),
            stop: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            desks: Mutex::default(),
            quiet_from: Mutex::new(Some(Instant::now())),
            failures: Mutex::default(),
            may_have_lost: AtomicBool::new(false),
            deaths: Default::default(),
        });
        runtime.block_on(backend.begin(&shared)).expect("the load's tables and queues");
        let threads = (0..WORKERS).map(|worker| {
            let (shared, backend) = (Arc::clone(&shared), Arc::clone(&backend));
            let desk = shared.desk(format!("thread {worker}"));
            let pool = blocking::ResourcePool::from(pool.clone());
            let work = move || {
                let mut turn = Turn::new(worker);
                while !shared.is_over() {
                    let call = turn.next();
                    turn.told(&shared.booked(&desk, call, || backend.on_thread(&pool, call)), call);
                    thread::sleep(pace);
                }
            };
            thread::Builder::new().name(format!("load-{worker}")).spawn(work).expect("a thread")
        });
        let threads = threads.collect();
        let tasks = (WORKERS..2 * WORKERS).map(|worker| {
            let (shared, backend, pool) = (Arc::clone(&shared), Arc::clone(&backend), pool.clone());
            let desk = shared.desk(format!("task {worker}"));
            runtime.spawn(async move {
                let mut turn = Turn::new(worker);
                while !shared.is_over() {
                    let call = turn.next();
                    let told = shared.booked_async(&desk, call, backend.on_task(&pool, call)).await;
                    turn.told(&told, call);
                    tokio::time::sleep(pace).await;
                }
            })
        });
        let tasks = tasks.collect();
        let mut companions = backend.companions(&shared);
        let watched = Arc::clone(&shared);
        let watchdog = thread::Builder::new().name("load-watchdog".into()).spawn(move || watched.watch());
        companions.push(watchdog.expect("a thread"));
        Load { _stops: Stops(Arc::clone(&shared)), shared, backend, threads, tasks, companions }
    }

    /// Checks that all workers are still there and that nothing has gone wrong.
    pub(crate) fn check(&self) {
        self.shared.check();
        let gone = self.threads.iter().filter(|thread| thread.is_finished()).count()
            + self.tasks.iter().filter(|task| task.is_finished()).count();
        assert!(gone == 0, "{}: {gone} workers have panicked", self.shared.kind);
    }

    /// Ends the load, and compares the results told with the server's data.
    pub(crate) fn end(self, server: &Service, runtime: &Runtime) -> Audit {
        self.check();
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a thread of the load");
        }
        for task in self.tasks {
            runtime.block_on(task).expect("a task of the load");
        }
        let found = self.backend.found(server, &self.shared);
        self.shared.settled.store(true, Ordering::SeqCst);
        for companion in self.companions {
            companion.join().expect("what runs beside the load");
        }
        self.shared.check();
        let audit = self.shared.ledger.audit(&found);
        let complaints = self.backend.complaints();
        assert!(complaints.is_empty(), "{}: {}", self.shared.kind, complaints.join("\n"));
        audit
    }
}

/// The next call of one worker. A write that was not acknowledged is repeated, as an application would do.
struct Turn {
    id: Id,
    acknowledged: Option<Id>,
    step: usize,
}

impl Turn {
    fn new(worker: usize) -> Self {
        Turn { id: Id { worker, number: 0 }, acknowledged: None, step: worker }
    }

    fn next(&mut self) -> Call {
        self.step += 1;
        match (self.step % 4, self.acknowledged) {
            (1, Some(id)) => Call::Read(id),
            (3, _) => Call::Slow(self.id),
            _ => Call::Write(self.id),
        }
    }

    fn told(&mut self, told: &Told, call: Call) {
        if let (Call::Write(id), Ok(())) = (call, told) {
            self.acknowledged = Some(id);
            self.id.number += 1;
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime of the tasks. It belongs to the application and not to the pool.
pub(crate) fn users_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("load-tasks").enable_all().build().expect("a runtime")
}
