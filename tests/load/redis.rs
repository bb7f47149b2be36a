//! The load on Redis: counters that show a command which ran twice, blocking commands, and exclusive connections.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use redis::aio::ConnectionLike as _;
use redis::{Cmd, RedisResult, Value};
use resource_pool::config::{RedisConfig, ResourceConfig};
use resource_pool::{Error, Lease, Redis as Tasks, ResourcePool, blocking};
use services::{Kind, Service};

use super::ledger::Id;
use super::{Backend, BoxFuture, Call, IDLE, NOTICE, Shared, Told, Trouble, WORKERS, done, there};

#[derive(Default)]
pub(crate) struct Redis {
    kept: OnceLock<Lease<Tasks>>,
}

fn key(worker: usize) -> String {
    format!("load:{worker}")
}

/// Increments the counter of this id. A write that runs twice leaves a 2.
fn write(id: Id) -> Cmd {
    redis::Cmd::new().arg("HINCRBY").arg(key(id.worker)).arg(id.number).arg(1).to_owned()
}

fn read(id: Id) -> Cmd {
    redis::Cmd::new().arg("HGET").arg(key(id.worker)).arg(id.number).to_owned()
}

/// Waits on a list that stays empty.
fn wait(id: Id) -> Cmd {
    redis::Cmd::new().arg("BLPOP").arg(format!("empty:{}", id.worker)).arg(0.2).to_owned()
}

fn read_back(value: RedisResult<Value>, id: Id) -> Told {
    there(value.map_err(Trouble::of)? != Value::Nil, id)
}

impl Backend for Redis {
    fn kind(&self) -> Kind {
        Kind::Redis
    }

    fn config(&self, url: &str) -> ResourceConfig {
        let mut config = RedisConfig::url(url).pool_size(WORKERS as u32);
        config.idle_timeout = IDLE;
        // On a busy machine the default may run out without a fault.
        config.connect_timeout = NOTICE;
        config.into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let _first_time = self.kept.set(load.pool.redis().await?);
            Ok(())
        })
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, call: Call) -> Told {
        let mut redis = pool.redis().map_err(Trouble::of)?;
        match call {
            Call::Write(id) => done(write(id).query::<i64>(&mut redis)),
            Call::Read(id) => read_back(read(id).query(&mut redis), id),
            Call::Slow(id) => done(wait(id).query::<Value>(&mut redis)),
        }
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, call: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move {
            let mut redis = match self.kept.get() {
                Some(kept) if call.id().keeps_its_lease() => Tasks::clone(kept),
                _ => Tasks::clone(&*pool.redis().await.map_err(Trouble::of)?),
            };
            match call {
                Call::Write(id) => done(write(id).query_async::<i64>(&mut redis).await),
                Call::Read(id) => read_back(read(id).query_async(&mut redis).await, id),
                Call::Slow(id) if id.number.is_multiple_of(2) => {
                    let mut own = redis.exclusive().await.map_err(Trouble::of)?;
                    done(own.req_packed_command(&wait(id)).await)
                }
                Call::Slow(id) => done(wait(id).query_async::<Value>(&mut redis).await),
            }
        })
    }

    fn found(&self, server: &Service, _: &Shared) -> BTreeMap<Id, u32> {
        let mut found = BTreeMap::new();
        for worker in 0..2 * WORKERS {
            let all = server.redis().expect("a Redis").command(&["HGETALL", &key(worker)]).expect("counters");
            let mut words = all.lines();
            while let (Some(number), Some(times)) = (words.next(), words.next()) {
                let id = Id { worker, number: number.parse().expect("a number") };
                found.insert(id, times.parse().expect("a count"));
            }
        }
        found
    }

    fn version(&self, server: &Service) -> String {
        let info = server.redis().expect("a Redis").command(&["INFO", "server"]).expect("its version");
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        version.expect("a version").trim().to_owned()
    }
}
