//! An open connection, the kill switch that it is under, and the state that its user has left it in.
//!
//! A guard sends each statement through [`LentConnection::ask`] or a stream of `executor`. Both begin with [`Line::begin`] and,
//! once answered, end with [`PendingCall::ended`]. These record the state in [`Line`], and `SqlConnection::is_fit` reads it when
//! the connection comes back.
//!
//! Invariant: `reply_pending` is true from the begin of a call until its end, so a connection whose call was dropped or
//! cut is not handed out again. A connection has one user at a time, so this file has no locks.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sqlx::Connection as _;

use crate::base::error::{BoxError, Error, Source};
use crate::kinds::sql::effect::SqlEffect;
use crate::kinds::sql::errors::{is_loss, ours};
use crate::kinds::sql::kind::{Aborted, Companion, SqlKind};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::spans::OperationSpan;
use crate::lifecycle::work::Work;
use crate::net::kill_switch::KillSwitch;

/// One connection of the driver, as it is checked out.
pub struct SqlConnection<D: SqlKind> {
    pub(crate) driver: D::Connection,
    pub(super) line: Line<D>,
}

/// The state of a connection beside the driver.
pub(super) struct Line<D: SqlKind> {
    pub(super) link: Link,
    pub(super) switch: KillSwitch,
    pub(super) companion: Arc<D::Companion>,
    /// Whether a call was begun and has not ended. The next user would have to wait for its reply.
    pub(super) reply_pending: bool,
    /// How many transactions are open, each within the one before. The driver's own count may lag behind.
    pub(super) depth: usize,
    /// Whether a transaction was dropped. The driver sends its rollback with the next call.
    pub(super) rolls_back: bool,
    /// Whether the session is, or may be, in another state than a new one.
    pub(super) altered: bool,
    /// Whether it is unknown which changes are undone when the connection ends.
    escaped: bool,
    /// Whether a statement within the transaction has committed what came before it.
    pub(super) committed_unseen: bool,
    /// Whether an error has aborted the transaction, or has undone all of it. A commit might not report that.
    pub(super) aborted: bool,
    /// Whether the state of the protocol is unknown. Nothing more is sent on such a connection.
    pub(super) lost_track: bool,
}

impl<D: SqlKind> SqlConnection<D> {
    pub(super) fn new(driver: D::Connection, link: Link, switch: KillSwitch, companion: D::Companion) -> Self {
        SqlConnection { driver, line: Line::new(link, switch, companion) }
    }

    /// The value that the kind keeps beside the connection.
    pub(crate) fn companion(&self) -> &D::Companion {
        &self.line.companion
    }

    pub(crate) fn link(&self) -> &Link {
        &self.line.link
    }

    /// Whether the next user would find the connection as this one did.
    pub(super) fn is_fit(&self) -> bool {
        !self.line.rolls_back && self.is_fit_otherwise() && !self.driver.is_in_transaction()
    }

    /// Like `is_fit`, but ignores a rollback that is still to be sent.
    fn is_fit_otherwise(&self) -> bool {
        let Line { switch, depth, reply_pending, altered, lost_track, .. } = &self.line;
        !reply_pending && !altered && !lost_track && !switch.is_cut() && *depth == 0
    }

    /// Whether only a rollback that is still to be sent separates the connection from being fit.
    pub(super) fn lacks_rollback(&self) -> bool {
        self.line.rolls_back && self.is_fit_otherwise()
    }

    /// Sends the rollback, and waits until it is done. The driver sends it before the ping. If it fails, the connection is
    /// unfit.
    pub(super) async fn roll_back(&mut self) -> sqlx::Result<()> {
        let answer = self.lent().ask("rollback", SqlEffect::Reads, |driver| driver.ping()).await;
        self.line.lost_track |= answer.is_err();
        answer
    }

    /// The connection, for one call.
    pub(super) fn lent(&mut self) -> LentConnection<'_, D> {
        LentConnection { driver: &mut self.driver, line: &mut self.line }
    }
}

/// A connection, borrowed by one of its user's guards.
pub(super) struct LentConnection<'a, D: SqlKind> {
    pub(super) driver: &'a mut D::Connection,
    pub(super) line: &'a mut Line<D>,
}

impl<'a, D: SqlKind> LentConnection<'a, D> {
    /// Runs one call of the driver. The call ends early when the switch is thrown.
    pub(super) async fn ask<T, F: Future<Output = sqlx::Result<T>>>(
        mut self,
        name: &'static str,
        effect: SqlEffect,
        ask: impl FnOnce(&'a mut D::Connection) -> F,
    ) -> sqlx::Result<T> {
        let call = self.begin(name, effect)?;
        call.answered(self.line, ask(self.driver)).await
    }

    /// Begins a call of a statement.
    pub(super) fn begin(&mut self, name: &'static str, effect: SqlEffect) -> sqlx::Result<PendingCall<D>> {
        self.line.refuse_if_undone("a statement")?;
        self.line.begin(name, effect, self.line.depth > 0)
    }
}

impl<D: SqlKind> Line<D> {
    fn new(link: Link, switch: KillSwitch, companion: D::Companion) -> Self {
        Line {
            link,
            switch,
            companion: Arc::new(companion),
            reply_pending: false,
            depth: 0,
            rolls_back: false,
            altered: false,
            escaped: false,
            committed_unseen: false,
            aborted: false,
            lost_track: false,
        }
    }

    /// The error for a call that cannot be made.
    pub(super) fn refused(&self, action: &str, why: &str) -> sqlx::Error {
        let (resource, source) = (Arc::clone(self.link.name()), Arc::from(BoxError::from(why)));
        ours(Error::Operation { resource, action: action.to_owned(), source })
    }

    /// Notes that the database has undone the transaction without the driver's knowledge.
    pub(super) fn note_undone(&mut self) {
        if self.depth > 0 && self.companion.is_undone() {
            (self.aborted, self.lost_track) = (true, true);
        }
    }

    /// Refuses what would be done outside of a transaction that was undone as a whole.
    pub(super) fn refuse_if_undone(&mut self, action: &str) -> sqlx::Result<()> {
        self.note_undone();
        if !self.aborted || self.depth == 0 || D::ABORTED == Aborted::ByServer {
            return Ok(());
        }
        let remedy = if self.lost_track { "acquire another one" } else { "begin another one" };
        let why = format!("an earlier statement of the transaction failed, which undid all of it: {remedy}");
        Err(self.refused(action, &why))
    }

    /// Begins a call of this name, and records its effect on the connection.
    pub(super) fn begin(
        &mut self,
        name: &'static str,
        effect: SqlEffect,
        in_transaction: bool,
    ) -> sqlx::Result<PendingCall<D>> {
        self.link.check_process().map_err(ours)?;
        if self.switch.is_cut() {
            return Err(ours(self.switch.cause().cloned().unwrap_or_else(|| self.link.why_cut())));
        }
        if self.lost_track || self.companion.is_stopped() {
            let why = "an earlier call on this connection was given up or failed amid its answer: acquire another one";
            return Err(self.refused("a statement", why));
        }
        let is_several = matches!(effect, SqlEffect::Escapes | SqlEffect::Begins);
        let commits_unseen = in_transaction && effect == SqlEffect::CommitsUnseen;
        let escapes = is_several || commits_unseen;
        self.committed_unseen |= commits_unseen;
        self.altered |= escapes || effect == SqlEffect::Alters;
        self.escaped |= escapes;
        self.reply_pending = true;
        self.rolls_back = false;
        // The changes of a transaction are undone when its connection ends.
        let is_undone = match effect {
            SqlEffect::Reads => true,
            SqlEffect::Commits | SqlEffect::CommitsUnseen | SqlEffect::Begins | SqlEffect::Escapes => false,
            SqlEffect::Changes | SqlEffect::Alters => in_transaction && !self.escaped,
        };
        let (busy, operation) = (self.link.busy(Work::Operation), self.link.operation(|| name.into()));
        let (link, switch, companion) = (self.link.clone(), self.switch.clone(), Arc::clone(&self.companion));
        companion.begin();
        let stop = StopOnDrop { companion, is_awaited: false };
        Ok(PendingCall { link, switch, stop, busy, operation, is_undone, is_several, in_transaction })
    }
}

/// Tells the companion that the call has ended as it drops, and stops the call if its answer is awaited then.
pub(super) struct StopOnDrop<C: Companion> {
    companion: Arc<C>,
    pub(super) is_awaited: bool,
}

impl<C: Companion> Drop for StopOnDrop<C> {
    fn drop(&mut self) {
        if self.is_awaited {
            self.companion.stop();
        }
        self.companion.end();
    }
}

/// A call in flight.
pub(super) struct PendingCall<D: SqlKind> {
    link: Link,
    pub(super) switch: KillSwitch,
    pub(super) stop: StopOnDrop<D::Companion>,
    busy: Busy,
    operation: Option<OperationSpan>,
    /// Whether nothing of the call stays if the connection ends: it only reads, or its transaction is undone.
    is_undone: bool,
    /// Whether it may be several statements, of which some may be done when another one is undone.
    pub(super) is_several: bool,
    in_transaction: bool,
}

impl<D: SqlKind> PendingCall<D> {
    /// Awaits the driver's answer. The wait ends early when the switch is thrown.
    pub(super) async fn answered<T>(
        mut self,
        line: &mut Line<D>,
        answer: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        self.stop.is_awaited = true;
        tokio::select! {
            biased; // A reply that has arrived counts, even if the switch is thrown too.
            answer = answer => self.ended(line, answer),
            () = self.switch.wait() => Err(self.cut()),
        }
    }

    /// Records the end of a call, and returns its answer. An error counts as an answer unless the connection was lost.
    pub(super) fn ended<T>(mut self, line: &mut Line<D>, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        self.stop.is_awaited = false;
        match answer {
            Err(error) if is_loss(&error) || D::is_farewell(&error) => {
                line.lost_track = true;
                Err(self.lost(error))
            }
            mut answer => {
                line.reply_pending = false;
                if let Err(error) = &mut answer {
                    let code = error.as_database_error().and_then(|error| error.code());
                    self.operation.iter().for_each(|operation| operation.fail_by(code.as_deref()));
                    line.aborted |= self.in_transaction && D::aborts(error);
                    line.lost_track |= D::is_last(error);
                    if let Some(cause) = line.companion.cause(&self.link, error) {
                        *error = if self.is_several { self.told(cause) } else { ours(cause) };
                    }
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

impl<D: SqlKind> fmt::Debug for SqlConnection<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlConnection").field("resource", self.line.link.name()).finish_non_exhaustive()
    }
}

impl<D: SqlKind> fmt::Debug for LentConnection<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentConnection").field("resource", self.line.link.name()).finish_non_exhaustive()
    }
}
