//! A server that answered `READONLY`, and the search for the master behind its address.
//!
//! The task that searches ends with the generation, or once a master has taken over. The old connection is retired then,
//! and a second task keeps it until the last answers on it have come.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use tokio::task::AbortHandle;

use crate::base::future::BoxFuture;
use crate::base::runtime::within;
use crate::kinds::redis::connection::{Connection, open};
use crate::kinds::redis::session::{Session, Shared};
use crate::net::kill_switch::KillSwitch;

/// The suspicion that the server is a replica. A failover behind one address leaves one there; another is one on purpose.
#[derive(Default)]
pub(super) struct Demotion {
    /// The server answered `READONLY`, and has not been seen to be a master since.
    pub(super) is_suspected: AtomicBool,
    /// A task looks for the master. There is at most one.
    is_looking: AtomicBool,
}

/// How long the server of a retired connection may be silent. Part of the 5 s within which a frozen server is an error.
const LAST_ANSWERS: Duration = Duration::from_millis(4500);

/// The pause between two questions to it.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// How many times in a row the master is looked for. With the pause it is found within 5 s of the first `READONLY`,
/// unless the address leads to it only later.
const LOOKS: usize = 5;

/// At most one connection a second is opened against a replica on purpose.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

impl Session {
    /// Looks for the master behind the address of a server that answered `READONLY`, unless somebody does.
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

    /// Whether the address leads to a master, by a new connection, which then takes the place of those that there are.
    async fn look(&self, switch: &KillSwitch) -> RedisResult<bool> {
        let (mut connection, mut driver) = open(self, switch).await?;
        let is_replica = tokio::select! {
            is_replica = is_replica(&mut connection) => is_replica?,
            () = &mut driver => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        };
        if is_replica {
            return Ok(false);
        }
        let Some(old) = self.replace_shared(connection, driver, switch) else { return Ok(false) };
        let retired_at = Instant::now();
        self.threads.retire();
        let (probe, switch) = (self.probe.lock().await.take(), switch.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = outlast(old.driver, probe, retired_at) => {}
                () = switch.wait() => {}
            }
        });
        self.demotion.is_suspected.store(false, Ordering::Relaxed);
        self.link.warn("the server became a replica; another one, which is a master, has its address", None);
        Ok(true)
    }

    /// Retires the shared connection, on which what is in flight is still answered. `None` if that is cut meanwhile.
    fn replace_shared(
        &self,
        connection: MultiplexedConnection,
        driver: BoxFuture<()>,
        switch: &KillSwitch,
    ) -> Option<Shared> {
        let mut shared = self.shared.write();
        // Under the lock: a recovery writes after the cut, so its connection takes the place of this one, never this one of it.
        if switch.is_cut() {
            return None;
        }
        let old = shared.replace(self.drive(connection, driver, switch))?;
        old.retired.cancel();
        Some(old)
    }
}

/// Waits until what is in flight on a retired connection is answered, or its server is silent. The prober's connection
/// asks, as long as it leads to that server: to a replica, as the master that was found is none.
async fn outlast(retired: AbortHandle, probe: Option<Connection>, mut heard: Instant) {
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

/// Whether the server is a replica, for all that it says. HELLO needs no right; a Redis before 6 knows ROLE alone. One
/// that says neither has answered `READONLY`, so that it counts as a replica until it takes a write.
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
