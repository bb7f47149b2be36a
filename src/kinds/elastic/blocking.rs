//! An Elasticsearch for threads, which block on the futures of the one for tasks.

use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::error::Error;
use crate::kinds::elastic::answer::{IndexedDocument, SearchAnswer, SearchHit};
use crate::kinds::elastic::bulk::BulkWriter as AsyncWriter;
use crate::kinds::elastic::handle::Elastic as AsyncElastic;
use crate::kinds::elastic::row::{BulkOutcome, BulkRow};
use crate::kinds::elastic::scroll::Scroll as AsyncScroll;
use crate::lifecycle::requests::HttpRequest;

/// An Elasticsearch for threads. Cheap to clone. Everything that is said of the [async one](crate::Elastic) holds here as
/// well. On a current-thread runtime each call that waits answers [`Error::InAsyncContext`].
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::blocking::ResourcePool;
/// use serde_json::json;
///
/// let elastic = ResourcePool::global().elastic()?;
/// elastic.index("bars", "000001-1", &json!({ "code": "000001", "close": 10.5 }))?;
/// let bar: Option<serde_json::Value> = elastic.get("bars", "000001-1")?;
/// println!("{bar:?}");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Elastic {
    tasks: AsyncElastic,
}

impl Elastic {
    pub(super) fn new(tasks: &AsyncElastic) -> Self {
        Elastic { tasks: tasks.clone() }
    }

    /// A writer of many documents into this index. It sends nothing until there are rows.
    pub fn bulk(&self, index: &str) -> BulkWriter {
        BulkWriter { writer: self.tasks.bulk(index) }
    }

    /// One page of the documents that match.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::search).
    pub fn search<T: DeserializeOwned>(
        &self,
        index: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<SearchAnswer<T>, Error> {
        self.wait(self.tasks.search(index, body))
    }

    /// All documents that match, page by page, and at most `limit` of them.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::scroll).
    pub fn scroll<T: DeserializeOwned>(
        &self,
        index: &str,
        body: &(impl Serialize + ?Sized),
        limit: usize,
    ) -> Result<Scroll<T>, Error> {
        self.wait(self.tasks.scroll(index, body, limit)).map(|scroll| Scroll { scroll })
    }

    /// The document of this id. `None` if the index has none.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::get).
    pub fn get<T: DeserializeOwned>(&self, index: &str, id: &str) -> Result<Option<T>, Error> {
        self.wait(self.tasks.get(index, id))
    }

    /// Puts a document, in the place of the one of this id. Without an id the server makes one.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::index).
    pub fn index<'a, T: Serialize + ?Sized>(
        &self,
        index: &str,
        id: impl Into<Option<&'a str>>,
        document: &T,
    ) -> Result<IndexedDocument, Error> {
        self.wait(self.tasks.index(index, id, document))
    }

    /// Deletes the document of this id, and tells whether there was one.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::delete).
    pub fn delete(&self, index: &str, id: &str) -> Result<bool, Error> {
        self.wait(self.tasks.delete(index, id))
    }

    /// Creates an index. `body` has its `settings` and `mappings`, or is `{}`.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::create_index).
    pub fn create_index(&self, index: &str, body: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.wait(self.tasks.create_index(index, body))
    }

    /// Deletes one index, with all its documents.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::delete_index).
    pub fn delete_index(&self, index: &str) -> Result<(), Error> {
        self.wait(self.tasks.delete_index(index))
    }

    /// Makes all that was written to this index visible to searches.
    ///
    /// # Errors
    /// Those of [the async method](crate::Elastic::refresh).
    pub fn refresh(&self, index: &str) -> Result<(), Error> {
        self.wait(self.tasks.refresh(index))
    }

    /// A request to another path of the server's interface, which [`ask`](Self::ask) sends.
    pub fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.tasks.request(method, path)
    }

    /// Sends a request, and gives the whole body of its answer as a `T`.
    ///
    /// # Errors
    /// Those of [`send`](HttpRequest::send), [`checked`](crate::HttpResponse::checked) and
    /// [`json`](crate::HttpResponse::json).
    pub fn ask<T: DeserializeOwned>(&self, request: HttpRequest) -> Result<T, Error> {
        self.wait(async { request.send().await?.checked().await?.json().await })
    }

    /// The driver's own client, as [that for tasks](crate::Elastic::raw_client).
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.tasks.raw_client()
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.tasks.session.requests.wait(future)?
    }
}

/// Collects rows for one index, and sends many at a time. Everything that is said of the
/// [async one](crate::BulkWriter) holds here as well.
#[derive(Debug)]
#[must_use = "its last rows are sent late, and without an outcome, unless there is a flush"]
pub struct BulkWriter {
    writer: AsyncWriter,
}

impl BulkWriter {
    /// Sets after how many rows it sends, at least 1.
    pub fn with_max_rows(self, max_rows: usize) -> Self {
        BulkWriter { writer: self.writer.with_max_rows(max_rows) }
    }

    /// Sets after how many bytes of documents it sends.
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        BulkWriter { writer: self.writer.with_max_bytes(max_bytes) }
    }

    /// Sets how long after the first row it sends.
    pub fn with_period(self, period: Duration) -> Self {
        BulkWriter { writer: self.writer.with_period(period) }
    }

    /// Takes a document, which replaces the one of this id.
    ///
    /// # Errors
    /// Those of [the async method](crate::BulkWriter::add).
    pub fn add<'a, T: Serialize + ?Sized>(
        &mut self,
        id: impl Into<Option<&'a str>>,
        document: &T,
    ) -> Result<(), Error> {
        self.wait(async |writer| writer.add(id, document).await)
    }

    /// Takes a document, which the server refuses if it has one of this id.
    ///
    /// # Errors
    /// Those of [the async method](crate::BulkWriter::create).
    pub fn create<'a, T: Serialize + ?Sized>(
        &mut self,
        id: impl Into<Option<&'a str>>,
        document: &T,
    ) -> Result<(), Error> {
        self.wait(async |writer| writer.create(id, document).await)
    }

    /// Takes a row that was given back.
    ///
    /// # Errors
    /// Those of [the async method](crate::BulkWriter::add_again).
    pub fn add_again(&mut self, row: BulkRow) -> Result<(), Error> {
        self.wait(async |writer| writer.add_again(row).await)
    }

    /// Sends the rows that there are, and gives the outcome of all rows since the last flush.
    ///
    /// # Errors
    /// Those of [the async method](crate::BulkWriter::flush).
    pub fn flush(&mut self) -> Result<BulkOutcome, Error> {
        self.wait(async |writer| writer.flush().await)
    }

    fn wait<R>(&mut self, call: impl AsyncFnOnce(&mut AsyncWriter) -> Result<R, Error>) -> Result<R, Error> {
        self.writer.session().requests.wait(call(&mut self.writer))?
    }
}

/// The hits of a search, page by page, as an iterator that blocks for the next one. Everything that is said of the
/// [async one](crate::Scroll) holds here as well.
#[derive(Debug)]
#[must_use = "a scroll is open on the server until its last page or until this drops"]
pub struct Scroll<T> {
    scroll: AsyncScroll<T>,
}

impl<T: DeserializeOwned> Iterator for Scroll<T> {
    type Item = Result<Vec<SearchHit<T>>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let session = self.scroll.session();
        let page = session.requests.wait(self.scroll.next());
        // The scroll ends here, whether a parent has it or this thread must not block. No iterator goes on for ever.
        page.unwrap_or_else(|error| self.scroll.end().then_some(Err(error)))
    }
}
