//! The demo without async. Each ticker has a thread that publishes its bars, and one that follows them. The threads
//! share only the global pool, and a scope joins all of them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use mongodb::bson::{doc, from_document};
use redis::Commands;
use resource_pool::blocking::ResourcePool;
use resource_pool::blocking::rabbitmq::Consumer;
use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};

use crate::bars::{self, Bar, Bars};
use crate::documents::{self, COLLECTION, Ends};
use crate::follower::{BATCH, Follower, PATIENCE};
use crate::numbers::{Messages, Numbers, Rows, Ticker};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::rows::{self, DayRow, Volatilities};
use crate::strategy::{Performance, Signal, buy_and_hold};

pub(crate) fn run(plan: &Plan, progress: &Progress) -> Result<Numbers> {
    for (_, connected) in ResourcePool::global().warm_up(["mongo", "rabbitmq", "clickhouse", "redis"])? {
        connected?;
    }
    let done = work(plan, progress).or_else(|error| go_on().and(Err(error)));
    progress.clear();
    if plan.removes() {
        // Ready resources may still be used while the pool drains.
        let removed = remove(plan);
        return done.and_then(|numbers| removed.map(|()| numbers));
    }
    done
}

/// Checks that the program goes on. Nothing cancels a thread, so threads call this between steps.
fn go_on() -> Result<()> {
    ensure!(!ResourcePool::global().is_closing(), "interrupted");
    Ok(())
}

fn work(plan: &Plan, progress: &Progress) -> Result<Numbers> {
    if !plan.stored {
        let bars = bars::all()?;
        let bars: Vec<&Bar> = bars.values().flatten().collect();
        thread::scope(|scope| {
            let mongodb = scope.spawn(|| fill_mongodb(plan, &bars, progress));
            fill_clickhouse(plan, &bars, progress).and(joined(mongodb))
        })?;
    }
    let bars = read_mongodb(plan)?;
    let (messages, performances) = stream(plan, &bars, progress)?;
    go_on()?;
    let (mongodb, mut held) = ask_mongodb(plan)?;
    let (clickhouse, mut volatilities) = ask_clickhouse(plan)?;
    let (redis, mut signals) = ask_redis(plan, bars.keys())?;

    let mut tickers = BTreeMap::new();
    for (code, performance) in performances {
        let buy_and_hold = held.remove(&code).context("MongoDB has lost a ticker")?;
        let volatility = volatilities.remove(&code).context("ClickHouse has lost a ticker")?;
        let signal = signals.remove(&code).with_context(|| format!("Redis has no signal of {code}"))?;
        tickers.insert(code, Ticker { performance, buy_and_hold, volatility, signal });
    }
    Ok(Numbers { rows: Rows { mongodb, clickhouse, redis }, messages, tickers })
}

fn fill_mongodb(plan: &Plan, bars: &[&Bar], progress: &Progress) -> Result<()> {
    let database = ResourcePool::global().mongo()?.database(&plan.database());
    database.collection::<Bar>(COLLECTION).create_index(documents::index()).run()?;
    let shown = progress.stage("into MongoDB", bars.len());
    for batch in bars.chunks(documents::BATCH) {
        go_on()?;
        let reply = database.run_command(documents::upsert(batch)?).run()?;
        documents::check(&reply, batch.len())?;
        shown.inc(batch.len() as u64);
    }
    shown.finish();
    Ok(())
}

fn fill_clickhouse(plan: &Plan, bars: &[&Bar], progress: &Progress) -> Result<()> {
    let clickhouse = ResourcePool::global().clickhouse()?;
    clickhouse.execute(&rows::create(&plan.table()))?;
    let shown = progress.stage("into ClickHouse", bars.len());
    let rows = bars.iter().map(|bar| DayRow::try_from(*bar)).collect::<Result<Vec<_>>>()?;
    clickhouse.insert_rows(&plan.table(), rows.into_iter().inspect(|_| shown.inc(1)))?;
    shown.finish();
    Ok(())
}

fn read_mongodb(plan: &Plan) -> Result<Bars> {
    let database = ResourcePool::global().mongo()?.database(&plan.database());
    let mut bars = Bars::new();
    for bar in database.collection::<Bar>(COLLECTION).find(doc! {}).sort(documents::in_order()).run()? {
        let bar = bar?;
        bars.entry(bar.code.clone()).or_default().push(bar);
    }
    Ok(bars)
}

/// Sends every bar through the broker, and runs the strategy on the bars that come out of it.
fn stream(plan: &Plan, bars: &Bars, progress: &Progress) -> Result<(Messages, BTreeMap<String, Performance>)> {
    let rabbitmq = ResourcePool::global().rabbitmq()?;
    let all = bars.values().map(Vec::len).sum();
    let (sent, came) = (&progress.stage("published", all), &progress.stage("consumed", all));
    thread::scope(|scope| {
        let mut followers = Vec::new();
        // A fanout exchange keeps nothing, so all consumers listen before the first bar is sent.
        for (code, bars) in bars {
            let exchange = plan.exchange(code);
            rabbitmq.declare_exchange(Exchange::fanout(&exchange).transient().auto_delete())?;
            let queue = rabbitmq.declare_queue(Queue::temporary())?;
            rabbitmq.bind(queue.name(), &exchange, "")?;
            let consumer = rabbitmq.consume(Consume::from(queue.name()).prefetch(BATCH as u16))?;
            followers.push((code, scope.spawn(|| follow(plan, code, Follower::of(bars.len()), consumer, came))));
        }
        let publishers: Vec<_> =
            bars.iter().map(|(code, bars)| scope.spawn(|| publish(plan, code, bars, sent))).collect();

        let mut messages = Messages::default();
        for publisher in publishers {
            let (published, confirmed) = joined(publisher)?;
            messages.published += published;
            messages.confirmed += confirmed;
        }
        let mut performances = BTreeMap::new();
        for (code, follower) in followers {
            let follower = joined(follower)?;
            messages.consumed += follower.consumed();
            performances.insert(code.clone(), follower.performance());
        }
        sent.finish();
        came.finish();
        Ok((messages, performances))
    })
}

fn publish(plan: &Plan, code: &str, bars: &[Bar], shown: &ProgressBar) -> Result<(u64, u64)> {
    let rabbitmq = ResourcePool::global().rabbitmq()?;
    let exchange = plan.exchange(code);
    let mut confirmed = 0;
    for batch in bars.chunks(plan.pace.unwrap_or(BATCH)) {
        go_on()?;
        let mut messages = Vec::with_capacity(batch.len());
        for bar in batch {
            messages.push(Message::new(&exchange, "", serde_json::to_vec(bar)?).transient());
        }
        let outcome = rabbitmq.publish_batch(messages)?;
        ensure!(outcome.all_confirmed(), "publishing the bars of {code}: {outcome}");
        confirmed += outcome.confirmed() as u64;
        shown.inc(batch.len() as u64);
        if plan.pace.is_some() {
            thread::sleep(Duration::from_secs(1));
        }
    }
    Ok((bars.len() as u64, confirmed))
}

fn follow(
    plan: &Plan,
    code: &str,
    mut follower: Follower,
    mut consumer: Consumer,
    shown: &ProgressBar,
) -> Result<Follower> {
    while follower.waits() {
        let Some(delivery) = consumer.next_within(PATIENCE)? else {
            bail!("no more bars of {code} after {}", follower.consumed());
        };
        if let Some(signal) = follower.take(delivery.data())? {
            cache(plan, &signal)?;
        }
        delivery.ack()?;
        shown.inc(1);
    }
    Ok(follower)
}

fn cache(plan: &Plan, signal: &Signal) -> Result<()> {
    let mut redis = ResourcePool::global().redis()?;
    Ok(redis.set_ex(plan.signal(&signal.code), serde_json::to_string(signal)?, Signal::KEPT.as_secs())?)
}

fn ask_mongodb(plan: &Plan) -> Result<(u64, BTreeMap<String, f64>)> {
    let database = ResourcePool::global().mongo()?.database(&plan.database());
    let bars = database.collection::<Bar>(COLLECTION);
    let mut held = BTreeMap::new();
    for ends in bars.aggregate(documents::ends()).run()? {
        let Ends { code, first, last } = from_document(ends?)?;
        held.insert(code, buy_and_hold(first, last));
    }
    Ok((bars.count_documents(doc! {}).run()?, held))
}

fn ask_clickhouse(plan: &Plan) -> Result<(u64, Volatilities)> {
    let clickhouse = ResourcePool::global().clickhouse()?;
    let count: Vec<u64> = clickhouse.query_rows(&rows::count(&plan.table()))?;
    let found = clickhouse.query_rows(&rows::volatility(&plan.table()))?;
    Ok((count.into_iter().sum(), rows::by_ticker(found)))
}

fn ask_redis<'a>(plan: &Plan, codes: impl Iterator<Item = &'a String>) -> Result<(u64, BTreeMap<String, Signal>)> {
    let mut redis = ResourcePool::global().redis()?;
    let keys: Vec<_> = codes.map(|code| plan.signal(code)).collect();
    let (count, cached): (u64, Vec<Option<String>>) = redis::pipe().exists(&keys).mget(&keys).query(&mut redis)?;
    Ok((count, Signal::by_ticker(cached)?))
}

/// Removes everything from the stores. The exchanges and queues have gone with their consumers.
fn remove(plan: &Plan) -> Result<()> {
    let pool = ResourcePool::global();
    let redis = || {
        let keys: Vec<_> = bars::all()?.keys().map(|code| plan.signal(code)).collect();
        anyhow::Ok(pool.redis()?.del(keys)?)
    };
    let clickhouse = || anyhow::Ok(pool.clickhouse()?.execute(&rows::remove(&plan.table()))?);
    let mongodb = || anyhow::Ok(pool.mongo()?.database(&plan.database()).drop().run()?);
    let (redis, clickhouse, mongodb): (Result<()>, _, _) = (redis(), clickhouse(), mongodb());
    redis.and(clickhouse).and(mongodb)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}
