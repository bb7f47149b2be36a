//! The resource of a Redis: connecting, recovering, pinging and closing it.
//!
//! `close` releases each lock before it takes the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use redis::{ErrorKind, RedisError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use crate::base::error::{Failure, Worded};
use crate::base::holder::QuotaId;
use crate::base::runtime::within;
use crate::kinds::redis::blocking_connection::Manager;
use crate::kinds::redis::client::Redis;
use crate::kinds::redis::command_senders::CommandSenders;
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::demotion::Demotion;
use crate::kinds::redis::session::RedisSession;
use crate::lifecycle::checkout::{Adapted, Checkouts, Limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;
use crate::net::count::none;
use crate::net::tls::Tls;

/// How long closing waits for the drivers' tasks and sockets to go. They take microseconds, unless their runtime no
/// longer runs, so a long wait would be in vain.
const LINGER: Duration = Duration::from_millis(500);

/// A Redis in the pool.
#[derive(Debug)]
pub struct RedisResource {
    pub(super) config: Arc<RedisConfig>,
    pub(super) tls: Tls,
    /// The quota that counts the checkouts of threads.
    pub(crate) quota: QuotaId,
}

impl Resource for RedisResource {
    type Handle = Redis;

    async fn connect(&self, link: &Link) -> Result<Redis, Failure> {
        let limits = Limits {
            max: self.config.pool_size as usize,
            min_idle: self.config.min_idle as usize,
            idle_timeout: self.config.idle_timeout,
            max_lifetime: self.config.max_lifetime,
            test_after: self.config.test_after,
            test_idle_after: self.config.test_idle_after,
            ..Limits::default()
        };
        let quota = Quota::of(self.quota, link, limits.max, "connections", "pool_size");
        let config = Arc::clone(&self.config);
        let tell = move |error| Failure::transient(config.told(error));
        let session = Arc::new_cyclic(|session| RedisSession {
            this: Weak::clone(session),
            config: Arc::clone(&self.config),
            tls: self.tls.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            switch: RwLock::default(),
            shared: RwLock::new(None),
            senders: CommandSenders::default(),
            demotion: Demotion::default(),
            probe: tokio::sync::Mutex::new(None),
            is_closed: AtomicBool::new(false),
            drivers: watch::Sender::new(0),
            exclusives: Arc::new(Semaphore::new(self.config.exclusive_size)),
            exclusive_quota: Quota::new(link, self.config.exclusive_size, "exclusive connections", "exclusive_size"),
            threads: Checkouts::new(link, Adapted::new(Arc::new(Manager(Weak::clone(session))), tell), limits, quota),
        });
        if let Err(failure) = session.open_shared().await {
            let RedisConfig { host, port, socket, .. } = &*self.config;
            let failure = match socket {
                Some(_) => failure,
                None => self.tls.or_wanted(failure, host, *port, "use rediss://").await,
            };
            let is_foreign = |error: &RedisError| error.kind() == ErrorKind::Parse;
            if !failure.source().downcast_ref().is_some_and(is_foreign) {
                return Err(failure);
            }
            let remedy = if socket.is_some() { "correct the path of the socket" } else { "correct host and port" };
            let text = format!("a server answers there that is not Redis ({failure}): {remedy}");
            return Err(Failure::permanent(Worded::new(text, failure.into_source())));
        }
        Ok(Redis { session })
    }

    async fn recover(&self, _: &Link, lost: &Redis) -> Result<bool, Failure> {
        lost.session.open_shared().await.inspect_err(|failure| {
            if failure.is_permanent() {
                lost.session.threads.give_up();
            }
        })?;
        Ok(true)
    }

    async fn ping(&self, redis: &Redis) -> Result<(), Failure> {
        redis.session.ping().await
    }

    async fn close(&self, redis: Redis) -> Result<(), Failure> {
        redis.session.threads.close().await;
        let shared = redis.session.shared.write().take();
        if let Some(shared) = shared {
            shared.retire();
            redis.session.senders.clear();
        }
        // The store comes before the lock, so a ping that takes the lock later opens no connection.
        redis.session.is_closed.store(true, Ordering::Release);
        redis.session.probe.lock().await.take();
        // The drain has waited for checked-out connections. The cut ends those that are still out.
        redis.session.switch.read().cut_because(redis.session.link.why_cut());
        // The drivers' tasks drop their sockets a moment after the cut. A runtime that no longer runs would never drop
        // them, so the wait has a limit.
        let _ = within(LINGER, none(&redis.session.drivers)).await;
        Ok(())
    }

    async fn refresh(&self, redis: &Redis) -> Result<bool, Failure> {
        redis.session.refresh().await?;
        Ok(true)
    }

    fn resize(&self, redis: &Redis, max: usize) -> bool {
        redis.session.threads.resize(max);
        true
    }

    fn cut(&self, redis: &Redis) {
        // The checkouts are cut first, so that no thread is given a cut connection.
        redis.session.threads.cut();
        redis.session.switch.read().cut_because(redis.session.link.why_cut());
    }

    fn endpoint(&self) -> String {
        self.config.endpoint()
    }

    fn phase(&self) -> Phase {
        Phase::Redis
    }

    fn usage(&self, redis: &Redis) -> Usage {
        redis.session.threads.usage()
    }
}
