//! The state of a Redis in the pool: the shared connection, the kill switch of its generation, and the errors of calls
//! that lost their connection. The handle, the exclusive connections and the prober share one [`RedisSession`].
//!
//! Locks: the `RwLock`s `switch` and `shared` are never held together, nor across an await. The async mutex `probe` is
//! held while the prober asks, and is never taken under the other two. No callback of the user runs under a lock.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::base::error::{BoxError, Error, Failure, Source, TimeoutError};
use crate::base::runtime::{timer, within};
use crate::kinds::redis::blocking_connection::Manager;
use crate::kinds::redis::command_senders::CommandSenders;
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::connection::{OpenedConnection, RedisConnection, open};
use crate::kinds::redis::demotion::Demotion;
use crate::kinds::redis::driver_end::DriverEnd;
use crate::kinds::redis::errors::{Reply, is_readonly, refused};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::{Adapted, Checkouts};
use crate::lifecycle::link::Link;
use crate::lifecycle::status::State;
use crate::lifecycle::wait::Quota;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{self, Tls};

/// The state of a Redis. All its clones and connections share it.
pub(super) struct RedisSession {
    /// The session itself, for tasks that outlive a borrow.
    pub(super) this: Weak<RedisSession>,
    pub(super) config: Arc<RedisConfig>,
    pub(super) tls: Tls,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// Cuts every stream of the current generation. Follows `shared`, whose connection has its own switch along.
    pub(super) switch: RwLock<KillSwitch>,
    /// The connection that commands share. `None` until the first one is open, and once closing has taken it.
    pub(super) shared: RwLock<Option<Arc<SharedConnection>>>,
    pub(super) senders: CommandSenders,
    pub(super) demotion: Demotion,
    /// The prober's connection. `None` while a ping uses it.
    pub(super) probe: tokio::sync::Mutex<Option<RedisConnection>>,
    /// Whether closing has begun to take `probe`. It is stored with Release before that and loaded with Acquire under
    /// the lock, so that no ping opens a connection after closing took the last one.
    pub(super) is_closed: AtomicBool,
    /// The number of async connections whose sockets are still open.
    pub(super) drivers: watch::Sender<usize>,
    /// The permits for exclusive connections.
    pub(super) exclusives: Arc<Semaphore>,
    pub(super) exclusive_quota: Arc<Quota>,
    pub(super) threads: Checkouts<Adapted<Manager>>,
}

/// The connection that commands share.
pub(super) struct SharedConnection {
    pub(super) connection: MultiplexedConnection,
    pub(super) generation: u64,
    pub(super) end: Arc<DriverEnd>,
    /// Cuts its stream.
    switch: KillSwitch,
    /// Whether another connection has replaced this one, or closing has taken it. Its end is then no loss. Stored with
    /// `Release` and loaded with `Acquire`, so that who sees it finds the other connection.
    is_retired: Arc<AtomicBool>,
    /// Aborts the task that runs the connection.
    pub(super) driver: AbortHandle,
}

impl SharedConnection {
    /// Has no further command sent over it.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Whether it is retired or cut.
    pub(super) fn is_over(&self) -> bool {
        self.is_retired() || self.switch.is_cut()
    }
}

impl RedisSession {
    /// Runs the opening of one connection, all steps together, within `connect_timeout`.
    pub(super) async fn in_time<T>(&self, opening: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let limit = self.config.connect_timeout;
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        within(limit, opening).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }

    /// Opens the shared connection of a new generation.
    pub(super) async fn open_shared(&self) -> Result<(), Failure> {
        // The cut switch and its connection stay until a new connection is open.
        let switch = KillSwitch::new();
        let opened = self.in_time(open(self, &switch)).await.map_err(|error| {
            // A refused login may pass if a file has the password, because the file may just be replaced.
            let may_pass = error.kind() == ErrorKind::AuthenticationFailed && self.config.password_file.is_some();
            let permanent = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
                || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "DENIED"))
                || tls::is_permanent(&error);
            let is_silent = error.is_io_error();
            let source = self.config.told(error);
            match (permanent, is_silent) {
                _ if may_pass => Failure::transient(source),
                (true, _) => Failure::permanent(source),
                (_, true) => Failure::transient(source),
                _ => Failure::refused(source),
            }
        })?;
        *self.shared.write() = Some(self.drive(opened, &switch));
        *self.switch.write() = switch;
        self.senders.clear();
        self.demotion.is_suspected.store(false, Ordering::Relaxed);
        self.threads.accept();
        Ok(())
    }

    /// Spawns the connection's driver. The driver's end is a loss of the generation, unless the connection is retired
    /// by then.
    pub(super) fn drive(&self, opened: OpenedConnection, switch: &KillSwitch) -> Arc<SharedConnection> {
        let OpenedConnection { connection, driver, end } = opened;
        let is_retired = Arc::new(AtomicBool::new(false));
        let (link, generation) = (self.link.clone(), self.link.generation());
        let (its_switch, was_retired) = (switch.clone(), Arc::clone(&is_retired));
        let driver = tokio::spawn(async move {
            tokio::select! {
                () = driver => {
                    if !was_retired.load(Ordering::Acquire) {
                        // The cut comes before the loss is reported, so that no command goes to a connection that
                        // counts as lost.
                        its_switch.cut();
                        let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection");
                        link.lost(generation, closed);
                    }
                }
                () = its_switch.wait() => {}
            }
        });
        let (switch, driver) = (switch.clone(), driver.abort_handle());
        Arc::new(SharedConnection { connection, generation, end, switch, is_retired, driver })
    }

    /// The shared connection. `None` if it is cut.
    pub(super) fn live_shared(&self) -> Option<Arc<SharedConnection>> {
        self.shared.read().as_ref().filter(|shared| !shared.is_over()).cloned()
    }

    /// Awaits the answer to commands within the operation timeout. `None` once that has passed. Commands that wait by
    /// themselves have no limit.
    pub(super) fn in_limit<T>(
        &self,
        mut answer: Pin<&mut (impl Future<Output = T> + ?Sized)>,
        waits: impl FnOnce() -> bool,
    ) -> impl Future<Output = Option<T>> {
        let limit = self.config.operation_timeout;
        // The timer is boxed, so that it takes no room in the futures of commands without a limit.
        let mut late = (!limit.is_zero() && !waits()).then(|| Box::pin(timer(limit)));
        poll_fn(move |context| match (answer.as_mut().poll(context), &mut late) {
            // An answer that has come counts, even if the limit passes at the same moment.
            (Poll::Ready(answer), _) => Poll::Ready(Some(answer)),
            (Poll::Pending, Some(late)) => late.as_mut().poll(context).map(|()| None),
            (Poll::Pending, None) => Poll::Pending,
        })
    }

    /// The error of a call whose answer did not come within the operation timeout. The connection goes on, so this is no
    /// loss.
    pub(super) fn late(&self, command: &str, unsafe_twice: Option<String>) -> RedisError {
        let waiting_for = format!("the server's answer to {command}");
        let (name, endpoint) = (self.link.name(), self.link.endpoint());
        let timeout = TimeoutError::new(name, endpoint, waiting_for, self.config.operation_timeout);
        let timeout = Error::Timeout(Arc::new(timeout));
        refused(match unsafe_twice {
            Some(action) => self.link.outcome_unknown(action, Arc::new(timeout)),
            None => self.link.told(timeout),
        })
    }

    /// Ends an operation that `busy` counts. A reply ends it well, even if the reply is an error of the server. Without
    /// a reply the operation is lost. If it may have changed something, nobody knows whether it ran.
    pub(super) fn answered<T: Reply>(
        &self,
        busy: &mut Busy,
        answer: RedisResult<T>,
        unsafe_twice: impl FnOnce() -> Option<String>,
    ) -> RedisResult<T> {
        let error = match answer {
            Err(error) if error.is_io_error() => error,
            answer => {
                if is_readonly(&answer) {
                    self.look_for_master();
                }
                busy.finish(true);
                return answer;
            }
        };
        // A forked child has sent nothing.
        if let Some(Error::Forked) = Error::behind(&error) {
            return Err(error);
        }
        let lost = self.lost(error);
        Err(refused(match (unsafe_twice(), lost) {
            (Some(action), lost) => self.link.outcome_unknown(action, Arc::new(lost)),
            (None, lost) => lost,
        }))
    }

    /// The error of a call that lost its connection and can do no harm.
    fn lost(&self, error: impl Into<BoxError>) -> Error {
        let error = error.into();
        // The error behind the driver's error is the cause that the kill switch was thrown with.
        let source = match Error::behind(&*error).cloned().or_else(|| self.link.failure()) {
            Some(known @ (Error::Lost { .. } | Error::Closing { .. } | Error::Closed { .. })) => return known,
            Some(known) => Arc::new(known) as Source,
            None => error.into(),
        };
        let (resource, endpoint) = (Arc::clone(self.link.name()), Arc::clone(self.link.endpoint()));
        Error::Lost { resource, endpoint, source }
    }

    /// The error of a call whose connection was gone before anything was sent.
    pub(super) fn gone(&self, error: impl Into<BoxError>) -> Error {
        let name = self.link.name();
        match self.link.state() {
            None | Some(State::Closed) => Error::closed(name),
            Some(State::Draining) => Error::closing(name),
            Some(_) => self.lost(error),
        }
    }

    /// The driver's error of a call whose connection was gone before anything was sent.
    pub(super) fn unsent(&self, error: RedisError) -> RedisError {
        if error.is_io_error() && Error::behind(&error).is_none() { refused(self.gone(error)) } else { error }
    }

    /// The driver's error of a call to a Redis that is closed.
    pub(super) fn closed(&self) -> RedisError {
        refused(Error::closed(self.link.name()))
    }
}
