//! Several servers of one PostgreSQL: the primary is found, and found again after a failover.

#![cfg(feature = "postgres")]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use common::{Stopwatch, Within, eventually, unhurried};
use parking_lot::Mutex;
use resource_pool::config::{Options, PostgresConfig};
use resource_pool::{Error, Health, PostgresTarget, ResourcePool, State, blocking};
use services::{BlackHole, Kind, Service};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);
/// The promise: how long after a promotion writes may take to go on.
const RESUMED: Duration = Duration::from_secs(5);

/// A primary and its standby.
fn pair() -> (Service, Service) {
    let primary = Service::start(Kind::Postgres).unwrap();
    let standby = primary.start_standby().unwrap();
    (primary, standby)
}

/// The configuration that names both.
fn both(first: &Service, second: &Service) -> PostgresConfig {
    PostgresConfig::url(first.url()).hosts([place(second)])
}

fn place(service: &Service) -> String {
    format!("{}:{}", service.host(), service.port())
}

fn pool_of(config: PostgresConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

async fn is_standby(pool: &ResourcePool) -> Option<bool> {
    let mut postgres = pool.postgres().await.ok()?;
    sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut postgres).await.ok()
}

/// Rows that are written from tasks and from a thread while this lives, and which of them were acknowledged.
struct Load {
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    next: Arc<AtomicI64>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    thread: std::thread::JoinHandle<()>,
}

const INSERT: &str = "INSERT INTO acked VALUES ($1)";

impl Load {
    async fn begin(pool: &ResourcePool) -> Load {
        let mut postgres = pool.postgres().await.unwrap();
        sqlx::query("CREATE TABLE acked (id bigint)").execute(&mut postgres).await.unwrap();
        let (acknowledged, next, is_over) =
            (Arc::<Mutex<BTreeSet<i64>>>::default(), Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = || {
            let (pool, acknowledged, next, is_over) =
                (pool.clone(), Arc::clone(&acknowledged), Arc::clone(&next), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let id = next.fetch_add(1, Ordering::SeqCst);
                    if let Ok(mut postgres) = pool.postgres().await
                        && sqlx::query(INSERT).bind(id).execute(&mut postgres).await.is_ok()
                    {
                        acknowledged.lock().insert(id);
                    }
                }
            })
        };
        let tasks = (0..4).map(|_| task()).collect();
        let threads = blocking::ResourcePool::from(pool.clone());
        let (acked, numbers, over) = (Arc::clone(&acknowledged), Arc::clone(&next), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let id = numbers.fetch_add(1, Ordering::SeqCst);
                if let Ok(mut postgres) = threads.postgres()
                    && matches!(
                        postgres.wait(async |postgres| sqlx::query(INSERT).bind(id).execute(postgres).await),
                        Ok(Ok(_))
                    )
                {
                    acked.lock().insert(id);
                }
            }
        });
        Load { acknowledged, next, is_over, tasks, thread }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().len()
    }

    /// Waits for so many further rows.
    async fn more(&self, rows: usize) {
        let before = self.acknowledged();
        eventually(SOON, async || (self.acknowledged() >= before + rows).then_some(())).await;
    }

    /// Ends it, and checks that each acknowledged row is in the table.
    async fn check(self, pool: &ResourcePool) {
        self.is_over.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.within(SOON).await.unwrap();
        }
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).within(SOON).await.unwrap();
        let mut postgres = pool.postgres().await.unwrap();
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM acked").fetch_all(&mut postgres).await.unwrap();
        let there: BTreeSet<i64> = ids.iter().copied().collect();
        assert_eq!(there.len(), ids.len(), "no row is there twice");
        let lost: Vec<_> = self.acknowledged.lock().difference(&there).copied().collect();
        assert!(lost.is_empty(), "lost of {}: {lost:?}", self.next.load(Ordering::SeqCst));
    }
}

/// Writes go on at the standby once it is promoted, and no acknowledged row is lost. The old primary gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_at_a_standby_that_is_promoted() {
    for is_frozen in [false, true] {
        let (primary, standby) = pair();
        let mut options = unhurried();
        // The promise is that of these defaults.
        (options.probe, options.connect_timeout) = (Options::default().probe, Options::default().connect_timeout);
        let pool = pool_of(both(&primary, &standby), options);
        let load = Load::begin(&pool).await;
        load.more(20).await;
        if is_frozen {
            primary.freeze().unwrap()
        } else {
            primary.kill().unwrap()
        }
        let is_lost = async || (pool.status().resource("postgres").unwrap().state != State::Ready).then_some(());
        eventually(SOON, is_lost).await;
        standby.postgres().unwrap().promote().unwrap();
        let stopwatch = Stopwatch::start();
        load.more(20).await;
        assert!(stopwatch.took() < RESUMED, "{:?}", stopwatch.took());
        if is_frozen {
            primary.thaw().unwrap()
        } else {
            primary.restart().unwrap()
        }
        load.more(20).await;
        load.check(&pool).within(SOON).await;
        let count = "SELECT count(*) FROM acked";
        let [old, new] = [&primary, &standby].map(|service| service.postgres().unwrap().query(count).unwrap());
        assert!(old.parse::<u64>().unwrap() < new.parse::<u64>().unwrap(), "{old} {new}");
        // The driver's own pool follows.
        let raw = pool.postgres().within(SOON).await.unwrap().raw_pool();
        let rows: i64 = sqlx::query_scalar(count).fetch_one(&raw).within(SOON).await.unwrap();
        assert_eq!(rows.to_string(), new);
        assert_eq!(pool.health_check().within(SOON).await.entry("postgres").unwrap().health, Health::Pass);
        assert!(pool.close_all().within(SOON).await.all_closed());
    }
}

/// The servers may be named in any order, and the target says which one is sought.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_decides_and_not_the_order() {
    let (primary, standby) = pair();
    for (first, second) in [(&primary, &standby), (&standby, &primary)] {
        for (target, expected) in [
            (None, false),
            (Some(PostgresTarget::Primary), false),
            (Some(PostgresTarget::Standby), true),
            (Some(PostgresTarget::PreferStandby), true),
        ] {
            let config = both(first, second);
            let config = target.map_or(config.clone(), |target| config.target(target));
            let pool = pool_of(config, unhurried());
            assert_eq!(is_standby(&pool).within(SOON).await, Some(expected), "{target:?}");
        }
    }
    // In the URL, as libpq has it.
    let url = primary.url().replace(&place(&primary), &format!("{},{}", place(&primary), place(&standby)));
    let pool = pool_of(PostgresConfig::url(format!("{url}?target_session_attrs=standby")), unhurried());
    assert_eq!(is_standby(&pool).within(SOON).await, Some(true));
    let endpoint = pool.status().resource("postgres").unwrap().endpoint.clone();
    assert!(endpoint.contains(&format!("{},{}", place(&primary), place(&standby))), "{endpoint}");
    // Without a standby the primary serves who only prefers one, and nobody else.
    standby.kill().unwrap();
    let config = |target| both(&standby, &primary).target(target);
    let pool = pool_of(config(PostgresTarget::PreferStandby), unhurried());
    assert_eq!(is_standby(&pool).within(SOON).await, Some(false));
    let mut options = unhurried();
    options.retry.budget = Duration::from_secs(1);
    let pool = pool_of(config(PostgresTarget::Standby), options);
    let error = pool.postgres().within(SOON).await.map(drop).unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error:?}") };
    assert!(!connect.permanent && error.to_string().contains("no standby can be reached"), "{error}");
    assert!(error.to_string().contains("it is the primary"), "{error}");
}

/// A server that takes connections and says nothing does not use up the time of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_leaves_time_for_the_others() {
    let server = Service::start(Kind::Postgres).unwrap();
    let hole = BlackHole::start().unwrap();
    let url = server.url().replace(&place(&server), &format!("127.0.0.1:{}", hole.port()));
    let mut options = unhurried();
    options.connect_timeout = Duration::from_secs(2);
    let pool = pool_of(PostgresConfig::url(url).hosts([place(&server)]), options);
    assert_eq!(is_standby(&pool).within(SOON).await, Some(false));
    // The next opening begins with the one that fitted.
    pool.refresh("postgres").within(SOON).await.unwrap();
    let stopwatch = Stopwatch::start();
    assert_eq!(is_standby(&pool).within(SOON).await, Some(false));
    assert!(stopwatch.took() < Duration::from_secs(1), "{:?}", stopwatch.took());
}

#[test]
fn servers_that_cannot_be_used_are_refused() {
    for (config, key, problem) in [
        (PostgresConfig::default().hosts(["h:0"]), "postgres.hosts", "from 1 to 65535"),
        (PostgresConfig::default().hosts([""]), "postgres.hosts", "is empty"),
        (PostgresConfig::url("postgres://h1,h2:x/d"), "postgres.hosts", "port"),
        (PostgresConfig::url("postgres://h/d?target_session_attrs=leader"), "postgres.url", "none of any"),
    ] {
        let built: Result<ResourcePool, _> =
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
        let Err(Error::Config { key: found, problem: told }) = built else { panic!("{built:?}") };
        assert!(found == key && told.contains(problem), "{found}: {told}");
    }
    // A place of the environment is another cluster's.
    let text = "[postgres]\nhost = 'a'\nhosts = ['b']\ndatabase = 'd'\ntarget = 'prefer-standby'";
    for variable in [("POSTGRES_URL", "postgres://c/d"), ("POSTGRES_HOST", "c")] {
        let builder = ResourcePool::builder().environment([variable]).config_str(text);
        let pool: ResourcePool = builder.build().unwrap();
        assert_eq!(&*pool.status().resource("postgres").unwrap().endpoint, "postgres://c:5432/d");
    }
}
