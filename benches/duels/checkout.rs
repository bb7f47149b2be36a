//! Checkouts of connections that have one user at a time. The connection is either ready or has to be waited for.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use resource_pool::R2d2;
use resource_pool::blocking::ResourcePool;
use resource_pool::config::{RabbitMqConfig, RedisConfig};
use services::Kind;
use tokio::runtime::Runtime;

use crate::duel::{Duel, Rounds, Unit};
use crate::peers::{self, CONNECTIONS, Nothing, Tasks};
use crate::session::{Session, clock, cpu, cpu_of_tasks, cpu_of_threads};

pub(crate) fn run(session: &Session) {
    ready(session);
    waited_for(session);
    channel(session);
    #[cfg(feature = "postgres")]
    postgres(session);
}

fn pool(config: RedisConfig) -> ResourcePool {
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool");
    drop(pool.redis().expect("redis"));
    pool
}

/// A pool of the peers' connections, which do nothing.
fn pool_of_nothing(max: u32) -> ResourcePool {
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().expect("a pool");
    pool.register("nothing", R2d2::new(Nothing::default()).max_size(max as usize)).expect("a new name");
    let warm: Vec<_> = (0..max).map(|_| pool.check_out::<Nothing>("nothing").expect("nothing")).collect();
    drop(warm);
    pool
}

fn ready(session: &Session) {
    let count = session.times(50_000);
    let server = session.server(Kind::Redis);
    let runtime = Runtime::new().expect("a runtime");
    let pool = pool(RedisConfig::url(server.url()));
    let of_nothing = pool_of_nothing(CONNECTIONS);
    let tasks = runtime.block_on(Tasks::new(&of_nothing.as_async(), CONNECTIONS, Nothing::default()));
    let r2d2 = peers::r2d2(CONNECTIONS, CONNECTIONS, Nothing::default());
    let deadpool = peers::deadpool(CONNECTIONS, Nothing::default());
    let bb8 = peers::bb8(&runtime, CONNECTIONS, Nothing::default());
    let mobc = peers::mobc(CONNECTIONS, Nothing::default());
    let redis = || drop(black_box(pool.redis().expect("ready")));
    let ours = || drop(black_box(of_nothing.check_out::<Nothing>("nothing").expect("ready")));
    let by_task = || async { drop(black_box(tasks.get().await)) };
    let r2d2 = || drop(black_box(r2d2.get().expect("ready")));
    let deadpool = || async { drop(black_box(deadpool.get().await.expect("ready"))) };
    let bb8 = || async { drop(black_box(bb8.get().await.expect("ready"))) };
    let mobc = || async { drop(black_box(mobc.get().await.expect("ready"))) };
    Duel::new("checkout_ready", "a connection checked out and given back", Unit::CpuNanoseconds)
        .contestant("resource_pool", || cpu(count, ours))
        .contestant("resource_pool, tasks", || cpu_of_tasks(1, count, by_task))
        .contestant("resource_pool, Redis", || cpu(count, redis))
        .contestant("r2d2", || cpu(count, r2d2))
        .contestant("deadpool", || cpu_of_tasks(1, count, deadpool))
        .contestant("bb8", || cpu_of_tasks(1, count, bb8))
        .contestant("mobc", || cpu_of_tasks(1, count / 5, mobc))
        .at_most("resource_pool, Redis", 150.0, 80.0)
        .at_most("resource_pool", 150.0, 80.0)
        .times_faster_than("resource_pool, tasks", "deadpool", 1.0, None)
        .times_faster_than("resource_pool, tasks", "bb8", 1.0, None)
        .note("Connections that do nothing, but for those to a real Redis.")
        .run(session);
    let what = "a connection checked out and given back, by 1, 2, 4 and 16 threads at once";
    Duel::new("checkout_threads", what, Unit::CpuNanoseconds)
        .crowds("resource_pool", |crowd| cpu_of_threads(crowd, count / crowd, ours))
        .crowds("resource_pool, tasks", |crowd| cpu_of_tasks(crowd, count / crowd, by_task))
        .crowds("r2d2", |crowd| cpu_of_threads(crowd, count / crowd, r2d2))
        .crowds("deadpool", |crowd| cpu_of_tasks(crowd, count / crowd, deadpool))
        .crowds("bb8", |crowd| cpu_of_tasks(crowd, count / crowd, bb8))
        .run(session);
    assert!(of_nothing.close_all().expect("a plain thread").all_closed());
    assert!(pool.close_all().expect("a plain thread").all_closed());
}

/// The number of users.
const CROWD: usize = 16;
/// The number of connections that they share.
const FEW: u32 = 4;
/// The time that each user keeps a connection, like a short query.
const HELD: Duration = Duration::from_millis(1);

/// How one contestant's crowd fared in one round.
#[derive(Debug)]
struct Crowd {
    /// The time that each checkout waited, least first.
    waits: Vec<Duration>,
    /// The number of checkouts of each user.
    served: Vec<usize>,
}

impl Crowd {
    fn of(each: Vec<Vec<Duration>>) -> Self {
        let served = each.iter().map(Vec::len).collect();
        let mut waits: Vec<_> = each.into_iter().flatten().collect();
        waits.sort_unstable();
        Crowd { waits, served }
    }

    fn threads<G>(lasting: Duration, get: impl Fn() -> G + Sync) -> Self {
        let start = Barrier::new(CROWD);
        let one = || {
            let mut waits = Vec::new();
            start.wait();
            let end = Instant::now() + lasting;
            loop {
                let asked = Instant::now();
                if asked >= end {
                    return waits;
                }
                let held = get();
                waits.push(asked.elapsed());
                thread::sleep(HELD);
                drop(held);
            }
        };
        Crowd::of(thread::scope(|scope| {
            let running: Vec<_> = (0..CROWD).map(|_| scope.spawn(one)).collect();
            running.into_iter().map(|thread| thread.join().expect("a thread that ends")).collect()
        }))
    }

    fn tasks<G: Send, F>(runtime: &Runtime, lasting: Duration, get: impl Fn() -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = G> + Send,
    {
        let start = Arc::new(tokio::sync::Barrier::new(CROWD));
        let one = || {
            let (start, get) = (Arc::clone(&start), get.clone());
            async move {
                let mut waits = Vec::new();
                start.wait().await;
                let end = Instant::now() + lasting;
                loop {
                    let asked = Instant::now();
                    if asked >= end {
                        return waits;
                    }
                    let held = get().await;
                    waits.push(asked.elapsed());
                    tokio::time::sleep(HELD).await;
                    drop(held);
                }
            }
        };
        let running: Vec<_> = (0..CROWD).map(|_| runtime.spawn(one())).collect();
        let all = running.into_iter().map(|task| runtime.block_on(task).expect("a task that ends"));
        Crowd::of(all.collect())
    }

    fn wait(&self, share: f64) -> f64 {
        let index = (self.waits.len() as f64 * share) as usize;
        self.waits[index.min(self.waits.len() - 1)].as_secs_f64() * 1000.0
    }

    /// The wait of the slowest hundredth over the median wait.
    fn tail(&self) -> f64 {
        self.wait(0.99) / self.wait(0.5)
    }

    /// The number of checkouts of the user that got most over that of the user that got least.
    fn unfairness(&self) -> f64 {
        let (most, least) = (self.served.iter().max(), self.served.iter().min());
        *most.unwrap_or(&0) as f64 / *least.unwrap_or(&0).max(&1) as f64
    }
}

type Runs<'a> = Vec<(&'static str, Box<dyn Fn() -> Crowd + 'a>)>;

fn waited_for(session: &Session) {
    let lasting = Duration::from_millis(if session.is_smoke() { 30 } else { 400 });
    let server = session.server(Kind::Redis);
    let runtime = Runtime::new().expect("a runtime");
    let pool = pool(RedisConfig::url(server.url()).pool_size(FEW));
    let warm: Vec<_> = (0..FEW).map(|_| pool.redis().expect("redis")).collect();
    drop(warm);
    let tasks = runtime.block_on(Tasks::new(&pool.as_async(), FEW, Nothing::default()));
    let r2d2 = peers::r2d2(FEW, FEW, Nothing::default());
    let deadpool = peers::deadpool(FEW, Nothing::default());
    let bb8 = peers::bb8(&runtime, FEW, Nothing::default());
    let mobc = peers::mobc(FEW, Nothing::default());
    let (tasks, deadpool, bb8, mobc) = (
        move || {
            let tasks = tasks.clone();
            async move { tasks.get().await }
        },
        move || {
            let pool = deadpool.clone();
            async move { pool.get().await.expect("in turn") }
        },
        move || {
            let pool = bb8.clone();
            async move { pool.get_owned().await.expect("in turn") }
        },
        move || {
            let pool = mobc.clone();
            async move { pool.get().await.expect("in turn") }
        },
    );
    let runs: Runs<'_> = vec![
        ("resource_pool, Redis", Box::new(|| Crowd::threads(lasting, || pool.redis().expect("in turn")))),
        ("resource_pool, tasks", Box::new(|| Crowd::tasks(&runtime, lasting, tasks.clone()))),
        ("r2d2", Box::new(|| Crowd::threads(lasting, || r2d2.get().expect("in turn")))),
        ("deadpool", Box::new(|| Crowd::tasks(&runtime, lasting, deadpool.clone()))),
        ("bb8", Box::new(|| Crowd::tasks(&runtime, lasting, bb8.clone()))),
        ("mobc", Box::new(|| Crowd::tasks(&runtime, lasting, mobc.clone()))),
    ];
    let rounds: Vec<_> = runs.iter().map(|_| Rounds::new()).collect();
    let ms = HELD.as_millis();
    let note = format!("{CROWD} threads or tasks on {FEW} connections, each held for {ms} ms or the timer's tick.");
    let what = "waiting for a connection when all are taken: the 99th percentile over the median";
    let mut tail = Duel::new("checkout_tail", what, Unit::Ratio).note(note);
    let what = "the same: how often the luckiest was served over the unluckiest";
    let mut fair = Duel::new("checkout_fair", what, Unit::Ratio);
    let mut wait = Duel::new("checkout_wait", "the same: how long, at the median and at most", Unit::Milliseconds);
    for ((name, run), rounds) in runs.iter().zip(&rounds) {
        tail = tail.contestant(*name, move || rounds.keep(run(), Crowd::tail));
        fair = fair.contestant(*name, rounds.again(Crowd::unfairness));
        wait = wait.contestant(format!("{name}, median"), rounds.again(|crowd| crowd.wait(0.5)));
        wait = wait.contestant(format!("{name}, most"), rounds.again(|crowd| crowd.wait(1.0)));
    }
    tail.at_most("resource_pool, Redis", 3.0, None).at_most("resource_pool, tasks", 1.2, None).run(session);
    fair.at_most("resource_pool, Redis", 2.0, None).run(session);
    wait.run(session);
    drop(runs);
    assert!(pool.close_all().expect("a plain thread").all_closed());
}

fn channel(session: &Session) {
    let count = session.times(200);
    let server = session.server(Kind::RabbitMq);
    let config = RabbitMqConfig::url(server.url());
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool");
    let rabbitmq = pool.rabbitmq().expect("rabbitmq");
    let runtime = Runtime::new().expect("a runtime");
    let connecting = lapin::Connection::connect(server.url(), lapin::ConnectionProperties::default());
    let bare = runtime.block_on(connecting).expect("rabbitmq");
    let open = async || {
        let channel = bare.create_channel().await.expect("a channel");
        channel.close(200, "done".into()).await.expect("a close");
    };
    Duel::new("checkout_channel", "an AMQP channel of one's own, opened and given back", Unit::Nanoseconds)
        .contestant("resource_pool", || clock(count, || drop(black_box(rabbitmq.channel().expect("a channel")))))
        .contestant("lapin, closing it too", || clock(count, || runtime.block_on(open())))
        .at_most("resource_pool", 150.0, 80.0)
        .because(
            "it is opened for whoever asks, as nobody can tell what was done on one that comes back; the verbs have pooled \
             ones, which no public call takes by itself",
        )
        .run(session);
    runtime.block_on(bare.close(200, "done".into())).expect("a close");
    drop(rabbitmq);
    assert!(pool.close_all().expect("a plain thread").all_closed());
}

/// Checkouts of real PostgreSQL connections of the same driver. None of the pools tests a connection.
#[cfg(feature = "postgres")]
fn postgres(session: &Session) {
    use resource_pool::ResourcePool;
    use resource_pool::config::PostgresConfig;

    let count = session.times(50_000);
    let server = session.server(Kind::Postgres);
    let runtime = Runtime::new().expect("a runtime");
    let config = PostgresConfig::url(server.url()).pool_size(CONNECTIONS).max_overflow(0);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool");
    let deadpool = peers::of_postgres::deadpool(CONNECTIONS, server.url());
    let bb8 = peers::of_postgres::bb8(&runtime, CONNECTIONS, server.url());
    runtime.block_on(async {
        drop(pool.postgres().await.expect("postgres"));
        drop(deadpool.get().await.expect("postgres"));
        drop(bb8.get().await.expect("postgres"));
    });
    Duel::new("checkout_postgres", "a connection to PostgreSQL checked out and given back", Unit::CpuNanoseconds)
        .contestant("resource_pool", || {
            cpu_of_tasks(1, count, || async { drop(black_box(pool.postgres().await.expect("ready"))) })
        })
        .contestant("deadpool", || {
            cpu_of_tasks(1, count, || async { drop(black_box(deadpool.get().await.expect("ready"))) })
        })
        .contestant("bb8", || cpu_of_tasks(1, count, || async { drop(black_box(bb8.get().await.expect("ready"))) }))
        .times_faster_than("resource_pool", "deadpool", 1.0, None)
        .times_faster_than("resource_pool", "bb8", 1.0, None)
        .note("sqlx's connections for all three. None is tested: ours was checked out within the last 500 ms, theirs by choice.")
        .run(session);
    assert!(runtime.block_on(pool.close_all()).all_closed());
}
