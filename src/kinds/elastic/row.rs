//! The rows of a bulk, and those that a writer gives back.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use crate::base::error::{BoxError, Error, Source};
use crate::kinds::elastic::errors::ElasticError;

/// A row of a bulk: a document, its id, and whether it may take the place of another one.
#[derive(Clone, PartialEq, Eq)]
pub struct BulkRow {
    id: Option<String>,
    /// JSON without line breaks.
    document: String,
    is_create: bool,
}

impl BulkRow {
    pub(super) fn new<T: Serialize + ?Sized>(
        id: Option<&str>,
        document: &T,
        is_create: bool,
    ) -> Result<BulkRow, BoxError> {
        let mut document = serde_json::to_string(document)?;
        if !document.starts_with('{') {
            return Err("a document must be a JSON object".into());
        }
        // A line break ends a row. JSON that a user wrote may have some between its tokens, and nowhere else.
        if document.contains(['\n', '\r']) {
            document = document.replace(['\n', '\r'], " ");
        }
        Ok(BulkRow { id: id.map(str::to_owned), document, is_create })
    }

    /// The id. `None` if the server makes one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The document, as JSON.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// Whether the server refuses it if there is a document of this id already.
    pub fn is_create(&self) -> bool {
        self.is_create
    }

    /// `true` if sending it twice does no harm, and its second answer is as good as the first. A row of `create` is never
    /// stored twice if it has an id. But the server answers 409 to the second one, as if it were not stored.
    pub(super) fn is_idempotent(&self) -> bool {
        self.id.is_some() && !self.is_create
    }

    /// How many bytes it counts.
    pub(super) fn size(&self) -> usize {
        self.document.len() + self.id.as_ref().map_or(0, String::len)
    }

    /// Adds its two lines to the body of a bulk.
    pub(super) fn write(&self, body: &mut String) {
        let operation = if self.is_create { "create" } else { "index" };
        let action = match &self.id {
            Some(id) => json!({ operation: { "_id": id } }),
            None => json!({ operation: {} }),
        };
        body.push_str(&action.to_string());
        body.push('\n');
        body.push_str(&self.document);
        body.push('\n');
    }
}

/// Leaves the document out, which may be long and is the user's own.
impl fmt::Debug for BulkRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("BulkRow");
        shown.field("id", &self.id).field("is_create", &self.is_create).finish_non_exhaustive()
    }
}

/// A row that a writer gives back, because it is not stored or not known to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReturnedRow {
    /// The row. [`BulkWriter::add_again`](crate::BulkWriter::add_again) takes it.
    pub row: BulkRow,
    /// Why it is given back.
    pub problem: RowProblem,
}

/// Why a row is given back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RowProblem {
    /// The server refused it, by a status from 400 to 499. It is not stored.
    Refused(ElasticError),
    /// The bulk failed that it was in, or the server answered the row by another status, or refused it after the answer to
    /// an earlier bulk with it was lost. After an [`Error::OutcomeUnknown`] it may be stored, and sending it again may
    /// store it twice if it has no id. If it is one of [`create`](crate::BulkWriter::create) and has an id, the server
    /// then answers 409. After any other error sending it again does no harm.
    Failed(Error),
}

impl fmt::Display for RowProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowProblem::Refused(error) => error.fmt(f),
            RowProblem::Failed(error) => error.fmt(f),
        }
    }
}

/// The outcome of the rows of a writer since the last [`flush`](crate::BulkWriter::flush).
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use = "the rows in it are not stored"]
pub struct BulkOutcome {
    /// How many rows the server has stored.
    pub stored: usize,
    /// The rows that it has not, or may not have, in the order of adding within each bulk.
    pub returned: Vec<ReturnedRow>,
    pub(super) resource: Arc<str>,
    pub(super) action: Arc<str>,
}

impl BulkOutcome {
    /// The number of rows, if all are stored.
    ///
    /// # Errors
    /// The problem of the first row whose outcome is unknown, or else of the first that is not stored: its [`Error`], or
    /// [`Error::Operation`] whose source is the [`ElasticError`]. The rows are gone then.
    pub fn checked(self) -> Result<usize, Error> {
        let count = self.returned.len();
        let unknown =
            |returned: &ReturnedRow| matches!(returned.problem, RowProblem::Failed(Error::OutcomeUnknown { .. }));
        let told = self.returned.iter().position(unknown).unwrap_or(0);
        match self.returned.into_iter().nth(told) {
            None => Ok(self.stored),
            Some(ReturnedRow { problem: RowProblem::Failed(error), .. }) => Err(error),
            Some(ReturnedRow { problem: RowProblem::Refused(first), .. }) => Err(Error::Operation {
                resource: self.resource,
                action: self.action.to_string(),
                source: Source::from(Box::new(RowsRefused { count, first }) as BoxError),
            }),
        }
    }
}

/// The number of rows that were given back, and the reason of the first one.
#[derive(Debug)]
struct RowsRefused {
    count: usize,
    first: ElasticError,
}

impl fmt::Display for RowsRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows were given back, the first because {}", self.count, self.first)
    }
}

impl StdError for RowsRefused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.first)
    }
}
