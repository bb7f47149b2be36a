//! The delivery of rows by `_bulk`: sending them, reading the status of each, and repeating those that may pass.
//!
//! A [`RowDelivery`] owns its rows until each has an outcome. As it drops, it gives the rest back by what is known of them.
//! So rows that pause, that wait for the server, or whose answer is awaited are not lost with the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::base::error::{Error, Source};
use crate::kinds::elastic::buffer::BulkBuffer;
use crate::kinds::elastic::errors::{ElasticError, ToldError, never_left, refused};
use crate::kinds::elastic::row::{BulkRow, ReturnedRow, RowProblem};
use crate::kinds::elastic::session::{Ask, Effect, ElasticSession};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::event::What;

/// How long the first repeat of rows waits if the server does not say.
const PAUSE: Duration = Duration::from_millis(250);

/// Rows on their way to the server.
pub(super) struct RowDelivery<'a> {
    session: &'a ElasticSession,
    index: &'a str,
    /// The word for the bulk in errors and events.
    action: &'a str,
    buffer: &'a Mutex<BulkBuffer>,
    /// The rows without an outcome, in the order of adding.
    rows: Vec<BulkRow>,
    /// Counts `rows` as work.
    busy: Busy,
    fate: RowFate,
    /// Set once a bulk with them has lost its answer. It may have stored them, so no later answer proves the contrary.
    is_doubtful: bool,
}

/// The fate of the rows of a delivery that ends now.
enum RowFate {
    /// They may have been sent, and no answer has come.
    Sent,
    /// All have this problem.
    All(RowProblem),
    /// The server had no room for them, and told so for each, in their order.
    Crowded(Vec<ElasticError>),
}

#[derive(Deserialize)]
struct BulkAnswer {
    items: Vec<BTreeMap<String, BulkItem>>,
}

#[derive(Deserialize)]
struct BulkItem {
    status: u16,
    #[serde(default)]
    error: Option<ToldError>,
}

impl<'a> RowDelivery<'a> {
    pub(super) fn new(
        session: &'a ElasticSession,
        index: &'a str,
        action: &'a str,
        buffer: &'a Mutex<BulkBuffer>,
        (rows, busy): (Vec<BulkRow>, Busy),
    ) -> Self {
        let fate = RowFate::All(RowProblem::Failed(Error::closed(session.requests.link().name())));
        RowDelivery { session, index, action, buffer, rows, busy, fate, is_doubtful: false }
    }

    /// Sends the rows until each is stored or given back. Rows that are answered by 429 are sent again, as the
    /// configuration allows.
    pub(super) async fn run(mut self) {
        let ElasticSession { requests, config, .. } = self.session;
        let (mut repeats, mut left) = (0, config.max_repeat_wait);
        while let Some(wait) = self.send(PAUSE * 2u32.pow(repeats)).await {
            let may_repeat = repeats < config.max_repeats && wait <= left;
            if !may_repeat || requests.pause(wait).await.is_err() {
                return;
            }
            requests.link().repeated(self.action);
            (repeats, left) = (repeats + 1, left.saturating_sub(wait));
        }
    }

    /// Sends the rows in one bulk. If the server has no room for some, these are left, and it returns how long to wait before
    /// they are sent again: `pause`, unless the server asks for another time.
    async fn send(&mut self, pause: Duration) -> Option<Duration> {
        let error = match self.ask().await {
            Ok(items) => {
                self.sort(items);
                return (!self.rows.is_empty()).then_some(pause);
            }
            Err(error) => error,
        };
        match ElasticError::of(&error).filter(|told| told.status.is_client_error()) {
            Some(told) if told.status == StatusCode::TOO_MANY_REQUESTS => {
                self.fate = RowFate::Crowded(vec![told.clone(); self.rows.len()]);
                Some(told.retry_after.unwrap_or(pause))
            }
            Some(told) => {
                self.fate = RowFate::All(self.refusal(told.clone()));
                None
            }
            None => {
                self.fate = RowFate::All(RowProblem::Failed(error));
                None
            }
        }
    }

    /// The answers to the rows, one for each.
    async fn ask(&mut self) -> Result<Vec<BulkItem>, Error> {
        let session = self.session;
        let mut body = String::new();
        self.rows.iter().for_each(|row| row.write(&mut body));
        let ask = Ask {
            content_type: "application/x-ndjson",
            body: body.into(),
            effect: if self.are_idempotent() { Effect::Harmless } else { Effect::Changes },
            ..Ask::new(self.action, Method::POST, session.path(self.action, &[self.index, "_bulk"])?)
        };
        self.fate = RowFate::Sent;
        let mut answer = session.ask_once(&ask).await;
        if let Err(error) = &answer {
            self.fate = RowFate::All(RowProblem::Failed(error.clone()));
            if session.is_asked_again(&ask, error).await {
                (self.fate, self.is_doubtful) = (RowFate::Sent, self.is_doubtful || !never_left(error));
                answer = session.ask_once(&ask).await;
            }
        }
        let BulkAnswer { items } = session.parse(&ask, &answer?)?;
        let items: Vec<BulkItem> = items.into_iter().filter_map(|item| item.into_values().next()).collect();
        match items.len() == self.rows.len() {
            true => Ok(items),
            false => {
                let problem = format!("the answer has {} items for {} rows", items.len(), self.rows.len());
                Err(session.unfit(&ask, problem))
            }
        }
    }

    /// Settles the rows by their answers. Those that the server had no room for are left.
    fn sort(&mut self, items: Vec<BulkItem>) {
        let (mut stored, mut returned) = (0, Vec::new());
        let (mut crowded, mut answers) = (Vec::new(), Vec::new());
        for (row, item) in std::mem::take(&mut self.rows).into_iter().zip(items) {
            match self.outcome(item) {
                Ok(()) => stored += 1,
                Err(told) if told.status == StatusCode::TOO_MANY_REQUESTS => {
                    crowded.push(row);
                    answers.push(told);
                }
                Err(told) => {
                    let problem = self.problem(&row, told);
                    returned.push(ReturnedRow { row, problem });
                }
            }
        }
        (self.rows, self.fate) = (crowded, RowFate::Crowded(answers));
        let mut problems = returned.iter().map(|returned: &ReturnedRow| &returned.problem);
        let unknown = problems.find_map(|problem| match problem {
            RowProblem::Failed(error @ Error::OutcomeUnknown { .. }) => Some(error.clone()),
            _ => None,
        });
        let given_back = returned.len();
        self.buffer.lock().settle(stored, returned);
        self.busy.split(stored).done();
        drop(self.busy.split(given_back));
        // One event tells of all rows of the bulk.
        if let Some(error) = unknown {
            self.session.requests.link().note(|| What::OutcomeUnknown { error });
        }
    }

    /// The server's answer to one row.
    fn outcome(&self, item: BulkItem) -> Result<(), ElasticError> {
        let status = StatusCode::from_u16(item.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_success() {
            return Ok(());
        }
        let mut told = item.error.unwrap_or_default();
        let kind = std::mem::take(&mut told.kind);
        let reason = self.session.requests.withheld(told.reason()).to_string();
        Err(ElasticError { status, kind, reason, retry_after: None, is_missing_document: false })
    }

    /// The problem of a row that the server answered so. An answer from 400 to 499 alone proves that the row is not stored.
    /// After another one a primary shard may have it.
    fn problem(&self, row: &BulkRow, told: ElasticError) -> RowProblem {
        let link = self.session.requests.link();
        if told.status.is_client_error() {
            return self.refusal(told);
        }
        RowProblem::Failed(match row.is_idempotent() {
            true => refused(link, self.action, told),
            false => Error::OutcomeUnknown {
                resource: Arc::clone(link.name()),
                action: self.action.to_owned(),
                source: Arc::new(told),
            },
        })
    }

    /// The problem of a row that the server refused.
    fn refusal(&self, told: ElasticError) -> RowProblem {
        match self.is_doubtful {
            true => RowProblem::Failed(refused(self.session.requests.link(), self.action, told)),
            false => RowProblem::Refused(told),
        }
    }

    /// `true` if sending all rows twice does no harm.
    fn are_idempotent(&self) -> bool {
        self.rows.iter().all(BulkRow::is_idempotent)
    }

    /// The error of rows that may have been sent, and whose answer nobody awaits any more.
    fn unanswered(&self) -> Error {
        let link = self.session.requests.link();
        let why = Error::closed(link.name());
        match self.are_idempotent() {
            true => why,
            false => link.outcome_unknown(self.action, Arc::new(why) as Source),
        }
    }
}

/// Gives back the rows that have no outcome yet.
impl Drop for RowDelivery<'_> {
    fn drop(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let problems = match std::mem::replace(&mut self.fate, RowFate::Sent) {
            RowFate::Sent => vec![RowProblem::Failed(self.unanswered()); self.rows.len()],
            RowFate::All(problem) => vec![problem; self.rows.len()],
            RowFate::Crowded(answers) => answers.into_iter().map(|told| self.refusal(told)).collect(),
        };
        let rows = std::mem::take(&mut self.rows).into_iter().zip(problems);
        let returned = rows.map(|(row, problem)| ReturnedRow { row, problem }).collect();
        // The guard that counts them drops after this, so that nobody sees them as ended before they are there.
        self.buffer.lock().settle(0, returned);
    }
}
