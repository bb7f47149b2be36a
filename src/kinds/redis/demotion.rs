//! The search for the master behind the address, after a server answered `READONLY`.
//!
//! A failover behind one address leaves the pool connected to a replica. `RedisSession::answered` calls `look_for_master`
//! for each `READONLY`. One task at a time then opens new connections until one leads to a master. That connection
//! replaces the shared one, and a second task keeps the old connection until its last replies have come. Both tasks
//! also end when the kill switch of their generation is thrown.
//!
//! Invariant: a connection of the search never replaces one of a recovery. `replace_shared` checks the switch under the
//! write lock of `shared`, and a recovery writes `shared` only after the switch is cut. The lock of `probe` is taken
//! after the lock of `shared` is released.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use tokio::task::AbortHandle;

use crate::base::runtime::within;
use crate::kinds::redis::connection::{OpenedConnection, RedisConnection, open};
use crate::kinds::redis::session::{RedisSession, SharedConnection};
use crate::net::kill_switch::KillSwitch;

/// The suspicion that the server is a replica. A failover behind one address leaves a replica there. The address may
/// also lead to a replica on purpose.
#[derive(Default)]
pub(super) struct Demotion {
    /// Whether the server answered `READONLY` and has not been seen to be a master since. Relaxed suffices, because the
    /// flag publishes no other data.
    pub(super) is_suspected: AtomicBool,
    /// Whether a task is looking for the master. The swap with `AcqRel` lets at most one task start, and pairs with the
    /// `Release` at that task's end.
    is_looking: AtomicBool,
}

/// How long the server of a retired connection may be silent before that connection is aborted. It is part of the 5 s
/// within which a frozen server is an error.
const LAST_ANSWERS: Duration = Duration::from_millis(4500);

/// The pause between two questions to the server of a retired connection. One question and its pause fit into
/// [`LAST_ANSWERS`].
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// The number of attempts to find the master. With [`LOOK_PAUSE`] they find it within 5 s of the first `READONLY`,
/// unless the address leads to the master only later.
const LOOKS: usize = 5;

/// The pause after each attempt. It limits the attempts to one connection per second, since the address may lead to a
/// replica on purpose.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

impl RedisSession {
    /// Starts a task that looks for the master behind the address, unless one is running.
    pub(super) fn look_for_master(&self) {
        self.demotion.is_suspected.store(true, Ordering::Relaxed);
        if self.demotion.is_looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(session) = self.this.upgrade() else { return };
        let switch = self.switch.read().clone();
        self.runtime.spawn(async move {
            let looking = async {
                for _ in 0..LOOKS {
                    let found = session.in_time(session.look(&switch)).await;
                    tokio::time::sleep(LOOK_PAUSE).await;
                    match found {
                        Ok(true) => return,
                        Ok(false) => {}
                        Err(error) => {
                            let error = session.config.told(error);
                            tracing::debug!(resource = %session.link.name(), %error, "looking for the master");
                        }
                    }
                }
            };
            tokio::select! {
                () = looking => {}
                () = switch.wait() => {}
            }
            session.demotion.is_looking.store(false, Ordering::Release);
        });
    }

    /// Opens a new connection, and returns whether it leads to a master and has replaced the shared one. After that no
    /// older connection of threads is handed out again.
    async fn look(&self, switch: &KillSwitch) -> RedisResult<bool> {
        let mut opened = open(self, switch).await?;
        let is_replica = tokio::select! {
            is_replica = is_replica(&mut opened.connection) => is_replica?,
            () = &mut opened.driver => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        };
        if is_replica {
            return Ok(false);
        }
        let Some(old) = self.replace_shared(opened, switch) else { return Ok(false) };
        let (driver, retired_at) = (old.driver.clone(), Instant::now());
        // The driver ends once nobody has the connection.
        drop(old);
        self.threads.retire();
        let (probe, switch) = (self.probe.lock().await.take(), switch.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = outlast(driver, probe, retired_at) => {}
                () = switch.wait() => {}
            }
        });
        self.demotion.is_suspected.store(false, Ordering::Relaxed);
        self.link.warn("the server became a replica; another one, which is a master, has its address", None);
        Ok(true)
    }

    /// Replaces the shared connection, and returns the old one. Commands in flight on the old one are still answered.
    /// Returns `None` if the kill switch is cut meanwhile.
    pub(super) fn replace_shared(
        &self,
        opened: OpenedConnection,
        switch: &KillSwitch,
    ) -> Option<Arc<SharedConnection>> {
        let mut shared = self.shared.write();
        // The check is made under the write lock. A recovery writes `shared` after the cut, so its connection replaces
        // this one, and this one never replaces the connection of a recovery.
        if switch.is_cut() {
            return None;
        }
        let old = shared.replace(self.drive(opened, switch))?;
        old.retire();
        drop(shared);
        self.senders.clear();
        Some(old)
    }
}

/// Waits until the commands in flight on a retired connection are answered, or its server is silent. The prober's old
/// connection asks for a sign of life while it still leads to that server, which is a replica since the new connection
/// leads to the master.
async fn outlast(retired: AbortHandle, probe: Option<RedisConnection>, mut heard: Instant) {
    if let Some(mut probe) = probe {
        while !retired.is_finished()
            && matches!(within(LAST_ANSWERS - LAST_PAUSE, is_replica(&mut probe.connection)).await, Ok(Ok(true)))
        {
            heard = Instant::now();
            tokio::time::sleep(LAST_PAUSE).await;
        }
    }
    tokio::time::sleep(LAST_ANSWERS.saturating_sub(heard.elapsed())).await;
    retired.abort();
}

/// Asks the server whether it is a replica. `HELLO` needs no right, and a Redis before 6 knows only `ROLE`. A server
/// that answers neither counts as a replica until it accepts a write, because it has answered `READONLY`.
pub(super) async fn is_replica(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    match redis::cmd("HELLO").arg(2).query_async::<HashMap<String, Value>>(connection).await {
        Ok(about) => Ok(matches!(about.get("role"), Some(Value::BulkString(role)) if role == b"replica")),
        Err(error) if error.is_io_error() => Err(error),
        Err(_it_has_no_hello) => match redis::cmd("ROLE").query_async::<Vec<Value>>(connection).await {
            Ok(role) => Ok(!matches!(role.first(), Some(Value::BulkString(role)) if role == b"master")),
            Err(error) if error.is_io_error() => Err(error),
            Err(_it_cannot_say) => Ok(true),
        },
    }
}
