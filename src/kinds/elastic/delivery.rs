//! The delivery of rows by `_bulk`: sending them, reading the status of each, and repeating those that may pass.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::base::error::{BoxError, Error, Source};
use crate::kinds::elastic::errors::{ElasticError, ToldError, refused};
use crate::kinds::elastic::row::{BulkRow, ReturnedRow, RowProblem};
use crate::kinds::elastic::session::{Ask, Effect, ElasticSession};

/// How long the first repeat of rows waits if the server does not say.
const PAUSE: Duration = Duration::from_millis(250);

/// The outcome of rows.
#[derive(Default)]
pub(super) struct Delivered {
    pub(super) stored: usize,
    pub(super) returned: Vec<ReturnedRow>,
}

impl Delivered {
    fn give_back(&mut self, row: BulkRow, problem: RowProblem) {
        self.returned.push(ReturnedRow { row, problem });
    }
}

/// Rows that the server had no room for, each with its answer.
#[derive(Default)]
struct Crowded {
    rows: Vec<(BulkRow, ElasticError)>,
    /// How long the server asks to wait.
    wait: Option<Duration>,
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

/// Sends rows until each is stored or given back. Rows that are answered by 429 are sent again, as the configuration
/// allows.
pub(super) async fn deliver(session: &ElasticSession, index: &str, action: &str, rows: Vec<BulkRow>) -> Delivered {
    let mut delivered = Delivered::default();
    let (mut rows, mut repeats, mut left) = (rows, 0, session.config.max_repeat_wait);
    loop {
        let Crowded { rows: crowded, wait } = send(session, index, action, rows, &mut delivered).await;
        let wait = wait.unwrap_or(PAUSE * 2u32.pow(repeats));
        let may_repeat = !crowded.is_empty() && repeats < session.config.max_repeats && wait <= left;
        if !may_repeat || session.requests.pause(wait).await.is_err() {
            crowded.into_iter().for_each(|(row, told)| delivered.give_back(row, RowProblem::Refused(told)));
            return delivered;
        }
        session.requests.link().repeated(action);
        (repeats, left) = (repeats + 1, left.saturating_sub(wait));
        rows = crowded.into_iter().map(|(row, _)| row).collect();
    }
}

/// Sends rows in one bulk. The outcome of each is in `delivered`, or it is one that may pass.
async fn send(
    session: &ElasticSession,
    index: &str,
    action: &str,
    rows: Vec<BulkRow>,
    delivered: &mut Delivered,
) -> Crowded {
    let is_idempotent = rows.iter().all(BulkRow::is_idempotent);
    let mut crowded = Crowded::default();
    let error = match ask(session, index, action, &rows, is_idempotent).await {
        Ok(items) => {
            for (row, item) in rows.into_iter().zip(items) {
                let Err(told) = outcome(session, item) else {
                    delivered.stored += 1;
                    continue;
                };
                match told.status {
                    StatusCode::TOO_MANY_REQUESTS => crowded.rows.push((row, told)),
                    _ => delivered.give_back(row, RowProblem::Refused(told)),
                }
            }
            return crowded;
        }
        Err(error) => error,
    };
    let told = ElasticError::of(&error).filter(|told| told.status.is_client_error()).cloned();
    match told {
        Some(told) if told.status == StatusCode::TOO_MANY_REQUESTS => {
            crowded.wait = told.retry_after;
            crowded.rows = rows.into_iter().map(|row| (row, told.clone())).collect();
        }
        Some(told) => rows.into_iter().for_each(|row| delivered.give_back(row, RowProblem::Refused(told.clone()))),
        None => rows.into_iter().for_each(|row| delivered.give_back(row, RowProblem::Failed(error.clone()))),
    }
    crowded
}

/// The answers to these rows, one for each.
async fn ask(
    session: &ElasticSession,
    index: &str,
    action: &str,
    rows: &[BulkRow],
    is_idempotent: bool,
) -> Result<Vec<BulkItem>, Error> {
    let mut body = String::new();
    rows.iter().for_each(|row| row.write(&mut body));
    let ask = Ask {
        content_type: "application/x-ndjson",
        body: body.into(),
        effect: if is_idempotent { Effect::Harmless } else { Effect::Changes },
        ..Ask::new(action, Method::POST, session.path(action, &[index, "_bulk"])?)
    };
    let unknown = |source: Source| session.requests.link().outcome_unknown(action, source);
    let answer = match session.ask(&ask).await {
        // A proxy answers so too, after the server has got the rows.
        Err(error) if !is_idempotent && ElasticError::of(&error).is_some_and(|told| told.status.is_server_error()) => {
            return Err(match error {
                Error::Operation { source, .. } => unknown(source),
                error => error,
            });
        }
        answer => answer?,
    };
    let problem = match session.parse(action, &answer) {
        Ok(BulkAnswer { items }) => {
            let items: Vec<BulkItem> = items.into_iter().filter_map(|item| item.into_values().next()).collect();
            if items.len() == rows.len() {
                return Ok(items);
            }
            format!("the answer has {} items for {} rows", items.len(), rows.len())
        }
        Err(Error::Operation { source, .. }) => source.to_string(),
        Err(error) => return Err(error),
    };
    Err(match is_idempotent {
        true => refused(session.requests.link(), action, problem),
        false => unknown(Source::from(BoxError::from(problem))),
    })
}

/// The server's answer to one row.
fn outcome(session: &ElasticSession, item: BulkItem) -> Result<(), ElasticError> {
    let status = StatusCode::from_u16(item.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_success() {
        return Ok(());
    }
    let mut told = item.error.unwrap_or_default();
    let kind = std::mem::take(&mut told.kind);
    let reason = session.requests.withheld(told.reason()).to_string();
    Err(ElasticError { status, kind, reason, retry_after: None })
}
