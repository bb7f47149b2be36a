//! The demo in async code. Each ticker has a task that publishes its bars, and one that follows them. The tasks share
//! only the global pool, and `stream` joins all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use indicatif::ProgressBar;
use mongodb::bson::{doc, from_document};
use redis::AsyncCommands;
use resource_pool::ResourcePool;
use resource_pool::rabbitmq::{Consume, Consumer, Exchange, Message, Queue};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bars::{self, Bar, Bars};
use crate::documents::{self, COLLECTION, Ends};
use crate::follower::{BATCH, Follower, PATIENCE};
use crate::numbers::{Messages, Numbers, Rows, Ticker};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::rows::{self, DayRow, Volatilities, Volatility};
use crate::strategy::{Performance, Signal, buy_and_hold};

pub(crate) async fn run(plan: Plan, progress: Progress) -> Result<Numbers> {
    let pool = ResourcePool::global();
    for (_, connected) in pool.warm_up(["mongo", "rabbitmq", "clickhouse", "redis"]).await {
        connected?;
    }
    let closing = pool.closing();
    let done = tokio::select! {
        done = work(&plan, &progress) => done,
        () = closing.wait() => Err(anyhow::anyhow!("interrupted")),
    };
    progress.clear();
    if plan.removes() {
        // Ready resources may still be used while the pool drains.
        let removed = remove(&plan).await;
        return done.and_then(|numbers| removed.map(|()| numbers));
    }
    done
}

async fn work(plan: &Plan, progress: &Progress) -> Result<Numbers> {
    if !plan.stored {
        let bars = bars::all()?;
        let bars: Vec<&Bar> = bars.values().flatten().collect();
        tokio::try_join!(fill_mongodb(plan, &bars, progress), fill_clickhouse(plan, &bars, progress))?;
    }
    let bars = read_mongodb(plan).await?;
    let codes: Vec<String> = bars.keys().cloned().collect();
    let (messages, performances) = stream(plan, bars, progress).await?;
    let (mongodb, mut held) = ask_mongodb(plan).await?;
    let (clickhouse, mut volatilities) = ask_clickhouse(plan).await?;
    let (redis, mut signals) = ask_redis(plan, &codes).await?;

    let mut tickers = BTreeMap::new();
    for (code, performance) in performances {
        let buy_and_hold = held.remove(&code).context("MongoDB has lost a ticker")?;
        let volatility = volatilities.remove(&code).context("ClickHouse has lost a ticker")?;
        let signal = signals.remove(&code).with_context(|| format!("Redis has no signal of {code}"))?;
        tickers.insert(code, Ticker { performance, buy_and_hold, volatility, signal });
    }
    Ok(Numbers { rows: Rows { mongodb, clickhouse, redis }, messages, tickers })
}

async fn fill_mongodb(plan: &Plan, bars: &[&Bar], progress: &Progress) -> Result<()> {
    let database = ResourcePool::global().mongo().await?.database(&plan.database());
    database.collection::<Bar>(COLLECTION).create_index(documents::index()).await?;
    let shown = progress.stage("into MongoDB", bars.len());
    for batch in bars.chunks(documents::BATCH) {
        let reply = database.run_command(documents::upsert(batch)?).await?;
        documents::check(&reply, batch.len())?;
        shown.inc(batch.len() as u64);
    }
    shown.finish();
    Ok(())
}

async fn fill_clickhouse(plan: &Plan, bars: &[&Bar], progress: &Progress) -> Result<()> {
    let clickhouse = ResourcePool::global().clickhouse().await?;
    clickhouse.query(&rows::create(&plan.table())).execute().await?;
    let shown = progress.stage("into ClickHouse", bars.len());
    let mut insert = clickhouse.insert::<DayRow>(&plan.table()).await?;
    for bar in bars {
        insert.write(&DayRow::try_from(*bar)?).await?;
        shown.inc(1);
    }
    insert.end().await?;
    shown.finish();
    Ok(())
}

async fn read_mongodb(plan: &Plan) -> Result<Bars> {
    let database = ResourcePool::global().mongo().await?.database(&plan.database());
    let mut stored = database.collection::<Bar>(COLLECTION).find(doc! {}).sort(documents::in_order()).await?;
    let mut bars = Bars::new();
    while let Some(bar) = stored.try_next().await? {
        bars.entry(bar.code.clone()).or_default().push(bar);
    }
    Ok(bars)
}

/// Sends every bar through the broker, and runs the strategy on the bars that come out of it.
async fn stream(plan: &Plan, bars: Bars, progress: &Progress) -> Result<(Messages, BTreeMap<String, Performance>)> {
    let rabbitmq = ResourcePool::global().rabbitmq().await?;
    let all = bars.values().map(Vec::len).sum();
    let (sent, came) = (progress.stage("published", all), progress.stage("consumed", all));
    let mut followers = JoinSet::new();
    // A fanout exchange keeps nothing, so all consumers listen before the first bar is sent.
    for (code, bars) in &bars {
        let exchange = plan.exchange(code);
        rabbitmq.declare_exchange(Exchange::fanout(&exchange).transient().auto_delete()).await?;
        let queue = rabbitmq.declare_queue(Queue::temporary()).await?;
        rabbitmq.bind(queue.name(), &exchange, "").await?;
        let consumer = rabbitmq.consume(Consume::from(queue.name()).prefetch(BATCH as u16)).await?;
        followers.spawn(follow(plan.clone(), code.clone(), Follower::of(bars.len()), consumer, came.clone()));
    }
    let mut publishers = JoinSet::new();
    for (code, bars) in bars {
        publishers.spawn(publish(plan.clone(), code, bars, sent.clone()));
    }

    let mut messages = Messages::default();
    while let Some(published) = publishers.join_next().await {
        let (published, confirmed) = published??;
        messages.published += published;
        messages.confirmed += confirmed;
    }
    let mut performances = BTreeMap::new();
    while let Some(followed) = followers.join_next().await {
        let (code, follower) = followed??;
        messages.consumed += follower.consumed();
        performances.insert(code, follower.performance());
    }
    sent.finish();
    came.finish();
    Ok((messages, performances))
}

async fn publish(plan: Plan, code: String, bars: Vec<Bar>, shown: ProgressBar) -> Result<(u64, u64)> {
    let rabbitmq = ResourcePool::global().rabbitmq().await?;
    let exchange = plan.exchange(&code);
    let mut confirmed = 0;
    for batch in bars.chunks(plan.pace.unwrap_or(BATCH)) {
        let mut messages = Vec::with_capacity(batch.len());
        for bar in batch {
            messages.push(Message::new(&exchange, "", serde_json::to_vec(bar)?).transient());
        }
        let outcome = rabbitmq.publish_batch(messages).await?;
        ensure!(outcome.all_confirmed(), "publishing the bars of {code}: {outcome}");
        confirmed += outcome.confirmed() as u64;
        shown.inc(batch.len() as u64);
        if plan.pace.is_some() {
            sleep(Duration::from_secs(1)).await;
        }
    }
    Ok((bars.len() as u64, confirmed))
}

async fn follow(
    plan: Plan,
    code: String,
    mut follower: Follower,
    mut consumer: Consumer,
    shown: ProgressBar,
) -> Result<(String, Follower)> {
    while follower.waits() {
        let Some(delivery) =
            timeout(PATIENCE, consumer.next()).await.with_context(|| format!("no more bars of {code}"))?
        else {
            bail!("the stream of {code} ended after {} bars", follower.consumed());
        };
        let delivery = delivery?;
        if let Some(signal) = follower.take(delivery.data())? {
            cache(&plan, &signal).await?;
        }
        delivery.ack().await?;
        shown.inc(1);
    }
    Ok((code, follower))
}

async fn cache(plan: &Plan, signal: &Signal) -> Result<()> {
    let mut redis = ResourcePool::global().redis().await?;
    Ok(redis.set_ex(plan.signal(&signal.code), serde_json::to_string(signal)?, Signal::KEPT.as_secs()).await?)
}

async fn ask_mongodb(plan: &Plan) -> Result<(u64, BTreeMap<String, f64>)> {
    let database = ResourcePool::global().mongo().await?.database(&plan.database());
    let bars = database.collection::<Bar>(COLLECTION);
    let ends: Vec<_> = bars.aggregate(documents::ends()).await?.try_collect().await?;
    let ends = ends.into_iter().map(from_document::<Ends>).collect::<Result<Vec<_>, _>>()?;
    let held = ends.into_iter().map(|Ends { code, first, last }| (code, buy_and_hold(first, last))).collect();
    Ok((bars.count_documents(doc! {}).await?, held))
}

async fn ask_clickhouse(plan: &Plan) -> Result<(u64, Volatilities)> {
    let clickhouse = ResourcePool::global().clickhouse().await?;
    let count = clickhouse.query(&rows::count(&plan.table())).fetch_one().await?;
    let found: Vec<Volatility> = clickhouse.query(&rows::volatility(&plan.table())).fetch_all().await?;
    Ok((count, rows::by_ticker(found)))
}

async fn ask_redis(plan: &Plan, codes: &[String]) -> Result<(u64, BTreeMap<String, Signal>)> {
    let mut redis = ResourcePool::global().redis().await?;
    let keys: Vec<_> = codes.iter().map(|code| plan.signal(code)).collect();
    let (count, cached): (u64, Vec<Option<String>>) =
        redis::pipe().exists(&keys).mget(&keys).query_async(&mut redis).await?;
    Ok((count, Signal::by_ticker(cached)?))
}

/// Removes everything from the stores. The exchanges and queues have gone with their consumers.
async fn remove(plan: &Plan) -> Result<()> {
    let pool = ResourcePool::global();
    let redis = async {
        let keys: Vec<_> = bars::all()?.keys().map(|code| plan.signal(code)).collect();
        anyhow::Ok(pool.redis().await?.del(keys).await?)
    };
    let clickhouse =
        async { anyhow::Ok(pool.clickhouse().await?.query(&rows::remove(&plan.table())).execute().await?) };
    let mongodb = async { anyhow::Ok(pool.mongo().await?.database(&plan.database()).drop().await?) };
    let (redis, clickhouse, mongodb): (Result<()>, _, _) = tokio::join!(redis, clickhouse, mongodb);
    redis.and(clickhouse).and(mongodb)
}
