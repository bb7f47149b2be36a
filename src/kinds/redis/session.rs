//! The session of a Redis in the pool: the shared connection, the kill switch of its generation, and what became of a
//! call when they went.
//!
//! Invariant: a new generation writes `shared` before `switch`, so a switch that is not cut has its own connection in
//! `shared`, or a later one. The two locks are never held together, nor while anything is awaited.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::base::error::{BoxError, Error, Failure, Source};
use crate::base::future::BoxFuture;
use crate::base::runtime::within;
use crate::kinds::redis::blocking_connection::Manager;
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::connection::{Connection, open};
use crate::kinds::redis::demotion::Demotion;
use crate::kinds::redis::errors::{Answer, is_readonly, refused};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::{Adapted, Checkouts};
use crate::lifecycle::link::Link;
use crate::lifecycle::status::State;
use crate::lifecycle::wait::Quota;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{self, Tls};

/// The handle of a Redis, shared by all its clones and connections.
pub(super) struct Session {
    pub(super) this: Weak<Session>,
    pub(super) config: Arc<RedisConfig>,
    pub(super) tls: Tls,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// Cuts every stream of the current generation.
    pub(super) switch: RwLock<KillSwitch>,
    pub(super) shared: RwLock<Option<Shared>>,
    pub(super) demotion: Demotion,
    /// The prober's connection, while no ping uses it.
    pub(super) probe: tokio::sync::Mutex<Option<Connection>>,
    /// Set before closing takes `probe`, so that no ping opens a connection after that.
    pub(super) is_closed: AtomicBool,
    /// Counts async connections until their sockets are gone.
    pub(super) drivers: watch::Sender<usize>,
    pub(super) exclusives: Arc<Semaphore>,
    pub(super) exclusive_quota: Arc<Quota>,
    pub(super) threads: Checkouts<Adapted<Manager>>,
}

/// The connection that commands share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) connection: MultiplexedConnection,
    /// Cancelled once another connection has its place. The end of this one is no loss then.
    pub(super) retired: CancellationToken,
    pub(super) driver: AbortHandle,
}

impl Session {
    /// Opens one connection, whatever steps that takes, within the limit.
    pub(super) async fn in_time<T>(&self, opening: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let limit = self.config.connect_timeout;
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        within(limit, opening).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }

    /// Opens the shared connection of a new generation.
    pub(super) async fn open_shared(&self) -> Result<(), Failure> {
        // The cut one stays in place until there is a connection to put under the new one.
        let switch = KillSwitch::new();
        let (connection, driver) = self.in_time(open(self, &switch)).await.map_err(|error| {
            let permanent = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
                || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "DENIED"))
                || tls::is_permanent(&error);
            let is_silent = error.is_io_error();
            let source = self.config.told(error);
            match (permanent, is_silent) {
                (true, _) => Failure::permanent(source),
                (_, true) => Failure::transient(source),
                _ => Failure::refused(source),
            }
        })?;
        *self.shared.write() = Some(self.drive(connection, driver, &switch));
        *self.switch.write() = switch;
        self.demotion.is_suspected.store(false, Ordering::Relaxed);
        self.threads.accept();
        Ok(())
    }

    /// Spawns the connection's driver. Its end is a loss of the generation, unless the connection is retired by then.
    pub(super) fn drive(
        &self,
        connection: MultiplexedConnection,
        driver: BoxFuture<()>,
        switch: &KillSwitch,
    ) -> Shared {
        let retired = CancellationToken::new();
        let (link, switch, is_retired) = (self.link.clone(), switch.clone(), retired.clone());
        let generation = link.generation();
        let driver = tokio::spawn(async move {
            tokio::select! {
                () = driver => {
                    if !is_retired.is_cancelled() {
                        // Before the loss is told, so that no command goes to a connection that counts as lost.
                        switch.cut();
                        link.lost(generation, "the server closed the connection");
                    }
                }
                () = switch.wait() => {}
            }
        });
        Shared { connection, retired, driver: driver.abort_handle() }
    }

    /// The shared connection, unless it is cut.
    pub(super) fn live_shared(&self) -> Option<Shared> {
        if self.switch.read().is_cut() {
            return None;
        }
        self.shared.read().clone()
    }

    /// An answer ends the operation, be it an error of the server's. Without one it is given up: it is lost, or, where it
    /// changes something, nobody knows whether it ran.
    pub(super) fn answered<T: Answer>(
        &self,
        busy: Busy,
        answer: RedisResult<T>,
        unsafe_twice: impl FnOnce() -> Option<String>,
    ) -> RedisResult<T> {
        let error = match answer {
            Err(error) if error.is_io_error() => error,
            answer => {
                if is_readonly(&answer) {
                    self.look_for_master();
                }
                busy.done();
                return answer;
            }
        };
        // Before anything was sent.
        if let Some(Error::Forked) = Error::behind(&error) {
            return Err(error);
        }
        let lost = self.lost(error);
        Err(refused(match (unsafe_twice(), lost) {
            (Some(action), lost) => self.link.outcome_unknown(action, Arc::new(lost)),
            (None, lost) => lost,
        }))
    }

    /// The error of a call that no harm comes of, as the connection went under it.
    fn lost(&self, error: impl Into<BoxError>) -> Error {
        let error = error.into();
        // The first is what the kill switch was thrown for.
        let source = match Error::behind(&*error).cloned().or_else(|| self.link.failure()) {
            Some(known @ (Error::Lost { .. } | Error::Closing { .. } | Error::Closed { .. })) => return known,
            Some(known) => Arc::new(known) as Source,
            None => error.into(),
        };
        let (resource, endpoint) = (Arc::clone(self.link.name()), Arc::clone(self.link.endpoint()));
        Error::Lost { resource, endpoint, source }
    }

    /// The error of a call that found its connection gone, so that nothing was sent.
    pub(super) fn gone(&self, error: impl Into<BoxError>) -> Error {
        let name = self.link.name();
        match self.link.state() {
            None | Some(State::Closed) => Error::closed(name),
            Some(State::Draining) => Error::closing(name),
            Some(_) => self.lost(error),
        }
    }

    /// The driver's error of a call before which the connection went.
    pub(super) fn unsent(&self, error: RedisError) -> RedisError {
        if error.is_io_error() && Error::behind(&error).is_none() { refused(self.gone(error)) } else { error }
    }

    /// The driver's error of a call to a Redis that is closed.
    pub(super) fn closed(&self) -> RedisError {
        refused(Error::closed(self.link.name()))
    }
}
