//! An open connection, the kill switch that it is under, and the state that its user has left it in.
//!
//! A guard sends each statement through [`LentConnection::ask`] or a stream of `executor`. Both begin with [`Line::begin`] and,
//! once answered, end with [`PendingCall::ended`]. These record the state in [`Line`], and `PostgresConnection::is_fit` reads it when
//! the connection comes back.
//!
//! Invariant: `reply_pending` is true from the begin of a call until its end, so a connection whose call was dropped or
//! cut is not handed out again. A connection has one user at a time, so this file has no locks.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sqlx::{Connection as _, PgConnection};

use crate::base::error::{BoxError, Error, Source};
use crate::kinds::postgres::effect::SqlEffect;
use crate::kinds::postgres::errors::{is_farewell, is_last, is_loss, ours};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::spans::OperationSpan;
use crate::lifecycle::work::Work;
use crate::net::kill_switch::KillSwitch;

/// One connection of the driver, as it is checked out.
pub struct PostgresConnection {
    pub(super) driver: PgConnection,
    pub(super) line: Line,
}

/// The state of a connection beside the driver.
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) switch: KillSwitch,
    /// Whether a call was begun and has not ended. The next user would have to wait for its reply.
    pub(super) reply_pending: bool,
    /// Whether a transaction was dropped. The driver sends its rollback with the next call.
    pub(super) rolls_back: bool,
    /// Whether the session is, or may be, in another state than a new one.
    pub(super) altered: bool,
    /// Whether it is unknown which changes are undone when the connection ends.
    escaped: bool,
    /// Whether an error has aborted the transaction. A commit would not report that.
    pub(super) aborted: bool,
    /// Whether the state of the protocol is unknown. Nothing more is sent on such a connection.
    pub(super) lost_track: bool,
}

impl PostgresConnection {
    pub(super) fn new(driver: PgConnection, link: Link, switch: KillSwitch) -> Self {
        PostgresConnection { driver, line: Line::new(link, switch) }
    }

    /// Whether the next user would find the connection as this one did.
    pub(super) fn is_fit(&self) -> bool {
        !self.line.rolls_back && self.is_fit_otherwise()
    }

    /// Like `is_fit`, but ignores a rollback that is still to be sent.
    fn is_fit_otherwise(&self) -> bool {
        let Line { switch, reply_pending, altered, lost_track, .. } = &self.line;
        !reply_pending && !altered && !lost_track && !switch.is_cut() && !self.driver.is_in_transaction()
    }

    /// Whether only a rollback that is still to be sent separates the connection from being fit.
    pub(super) fn lacks_rollback(&self) -> bool {
        self.line.rolls_back && self.is_fit_otherwise()
    }

    /// Sends the rollback, and waits until it is done. The driver sends it before the ping.
    pub(super) async fn roll_back(&mut self) -> sqlx::Result<()> {
        self.lent().ask("rollback", SqlEffect::Reads, async |driver| driver.ping().await).await
    }

    /// The connection, for one call.
    pub(super) fn lent(&mut self) -> LentConnection<'_> {
        LentConnection { driver: &mut self.driver, line: &mut self.line }
    }
}

/// A connection, borrowed by one of its user's guards.
pub(super) struct LentConnection<'a> {
    pub(super) driver: &'a mut PgConnection,
    pub(super) line: &'a mut Line,
}

impl LentConnection<'_> {
    /// Runs one call of the driver. The call ends early when the switch is thrown.
    pub(super) async fn ask<T>(
        self,
        name: &'static str,
        effect: SqlEffect,
        ask: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let call = self.line.begin(name, effect, self.driver.is_in_transaction())?;
        call.answered(self.line, ask(self.driver)).await
    }
}

impl Line {
    fn new(link: Link, switch: KillSwitch) -> Self {
        let (reply_pending, rolls_back, altered, escaped, aborted, lost_track) =
            (false, false, false, false, false, false);
        Line { link, switch, reply_pending, rolls_back, altered, escaped, aborted, lost_track }
    }

    /// The error for a call that cannot be made.
    pub(super) fn refused(&self, action: &str, why: &str) -> sqlx::Error {
        let (resource, source) = (Arc::clone(self.link.name()), Arc::from(BoxError::from(why)));
        ours(Error::Operation { resource, action: action.to_owned(), source })
    }

    /// Begins a call of this name, and records its effect on the connection.
    pub(super) fn begin(
        &mut self,
        name: &'static str,
        effect: SqlEffect,
        in_transaction: bool,
    ) -> sqlx::Result<PendingCall> {
        self.link.check_process().map_err(ours)?;
        if self.switch.is_cut() {
            return Err(ours(self.switch.cause().cloned().unwrap_or_else(|| self.link.why_cut())));
        }
        if self.lost_track {
            let why = "an earlier call on this connection was given up or failed amid its answer: acquire another one";
            return Err(self.refused("a statement", why));
        }
        self.altered |= matches!(effect, SqlEffect::Alters | SqlEffect::Escapes);
        self.escaped |= effect == SqlEffect::Escapes;
        self.reply_pending = true;
        self.rolls_back = false;
        // The changes of a transaction are undone when its connection ends.
        let is_undone = match effect {
            SqlEffect::Reads => true,
            SqlEffect::Commits | SqlEffect::Escapes => false,
            SqlEffect::Changes | SqlEffect::Alters => in_transaction && !self.escaped,
        };
        let (busy, operation) = (self.link.busy(Work::Operation), self.link.operation(|| name.into()));
        let (link, switch) = (self.link.clone(), self.switch.clone());
        Ok(PendingCall { link, switch, busy, operation, is_undone, in_transaction })
    }
}

/// A call in flight.
pub(super) struct PendingCall {
    link: Link,
    pub(super) switch: KillSwitch,
    busy: Busy,
    operation: Option<OperationSpan>,
    /// Whether nothing of the call stays if the connection ends: it only reads, or its transaction is undone.
    is_undone: bool,
    in_transaction: bool,
}

impl PendingCall {
    /// Awaits the driver's answer. The wait ends early when the switch is thrown.
    pub(super) async fn answered<T>(
        self,
        line: &mut Line,
        answer: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        tokio::select! {
            biased; // A reply that has arrived counts, even if the switch is thrown too.
            answer = answer => self.ended(line, answer),
            () = self.switch.wait() => Err(self.cut()),
        }
    }

    /// Records the end of a call, and returns its answer. An error counts as an answer unless the connection was lost.
    pub(super) fn ended<T>(self, line: &mut Line, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        match answer {
            Err(error) if is_loss(&error) || is_farewell(&error) => {
                line.lost_track = true;
                Err(self.lost(error))
            }
            answer => {
                line.reply_pending = false;
                if let Err(error) = &answer {
                    let code = error.as_database_error().and_then(|error| error.code());
                    self.operation.iter().for_each(|operation| operation.fail_by(code.as_deref()));
                    line.lost_track = is_last(error);
                    line.aborted |= self.in_transaction && error.as_database_error().is_some();
                }
                self.busy.done();
                answer
            }
        }
    }

    /// The error of a call whose connection was lost.
    pub(super) fn lost(&self, error: sqlx::Error) -> sqlx::Error {
        let (resource, endpoint) = (Arc::clone(self.link.name()), Arc::clone(self.link.endpoint()));
        self.told(Error::Lost { resource, endpoint, source: Arc::new(error) })
    }

    /// The error of a call that the switch cut.
    pub(super) fn cut(&self) -> sqlx::Error {
        self.told(self.switch.cause().cloned().unwrap_or_else(|| self.link.why_cut()))
    }

    /// The error itself if the call left nothing behind, else [`Error::OutcomeUnknown`] with it as the source.
    fn told(&self, lost: Error) -> sqlx::Error {
        let told = match self.is_undone {
            true => lost,
            false => self.link.outcome_unknown("a statement", Arc::new(lost) as Source),
        };
        self.operation.iter().for_each(|operation| operation.fail(&told));
        ours(told)
    }
}

/// A future that ends when the switch is thrown, boxed for streams that poll it.
pub(super) struct CutFuture(Pin<Box<dyn Future<Output = ()> + Send>>);

impl CutFuture {
    pub(super) fn of(switch: &KillSwitch) -> Self {
        let switch = switch.clone();
        CutFuture(Box::pin(async move { switch.wait().await }))
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for PostgresConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConnection").field("resource", self.line.link.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for LentConnection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentConnection").field("resource", self.line.link.name()).finish_non_exhaustive()
    }
}
