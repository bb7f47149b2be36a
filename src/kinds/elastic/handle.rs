//! The handle of an Elasticsearch, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::error::Error;
use crate::kinds::elastic::answer::{
    Acknowledgement, DeletedDocument, FoundDocument, IndexedDocument, Page, RefreshAnswer, SearchAnswer, ShardCounts,
};
use crate::kinds::elastic::blocking;
use crate::kinds::elastic::bulk::BulkWriter;
use crate::kinds::elastic::errors::{ElasticError, refused};
use crate::kinds::elastic::scroll::Scroll;
use crate::kinds::elastic::session::{Ask, Effect, ElasticSession};
use crate::lifecycle::lease::LeaseAs;
use crate::lifecycle::requests::HttpRequest;

/// An Elasticsearch, or what is compatible with it. Cheap to clone.
///
/// A request counts as work until its answer has come. Closing waits for it within the drain, and then ends it with an
/// error. After a loss `search`, `get`, `refresh` and an `index` with an id are sent once more if the option
/// [`repeat`](crate::config::Options::repeat) is `idempotent`. No verb is sent again because of a status. An answer is
/// judged by its body too, because a proxy may have made it: one of another form is an error.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::ResourcePool;
/// use serde_json::json;
///
/// let elastic = ResourcePool::global().elastic().await?;
/// let mut bulk = elastic.bulk("bars");
/// for day in 1..=20 {
///     bulk.add(&*format!("000001-{day}"), &json!({ "code": "000001", "close": 10.0 + f64::from(day) })).await?;
/// }
/// let outcome = bulk.flush().await?;
/// for row in &outcome.returned {
///     println!("{:?} is not stored: {}", row.row.id(), row.problem);
/// }
/// let found = elastic.search::<serde_json::Value>("bars", &json!({ "query": { "term": { "code": "000001" } } })).await?;
/// println!("{} of {:?}", found.hits.len(), found.total);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Elastic {
    pub(super) session: Arc<ElasticSession>,
}

impl Elastic {
    /// A writer of many documents into this index. It sends nothing until there are rows.
    pub fn bulk(&self, index: &str) -> BulkWriter {
        BulkWriter::new(&self.session, index)
    }

    /// One page of the documents that match. `index` may be several, as in `bars-*` and `a,b`, and `body` is the search in
    /// the server's language.
    ///
    /// # Errors
    /// [`Error::Operation`], whose source is the [`ElasticError`] that the server answered, or tells that a document is no
    /// `T`; [`Error::Timeout`] if no place is free within the acquire timeout, or the server is silent for too long;
    /// [`Error::Lost`] if it cannot be reached or breaks off; [`Error::Closed`]. An answer that lacks documents is none:
    /// see [`is_whole`](SearchAnswer::is_whole).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may go on.
    pub async fn search<T: DeserializeOwned>(
        &self,
        index: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<SearchAnswer<T>, Error> {
        let action = format!("a search of {index:?}");
        let path = self.session.path(&action, &[index, "_search"])?;
        let ask = Ask { body: self.session.json(&action, body)?, ..Ask::new(&action, Method::POST, path) };
        let page: Page<T> = self.session.ask_for(&ask).await?;
        Ok(page.into())
    }

    /// All documents that match, page by page, and at most `limit` of them. A page has as many hits as the `size` in
    /// `body` says, or [`scroll_size`](crate::config::ElasticConfig::scroll_size).
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search), and [`Error::Operation`] if the first page lacks hits because a shard failed.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may open the scroll, and closes it by itself.
    pub async fn scroll<T: DeserializeOwned>(
        &self,
        index: &str,
        body: &(impl Serialize + ?Sized),
        limit: usize,
    ) -> Result<Scroll<T>, Error> {
        Scroll::open(&self.session, index, body, limit).await
    }

    /// The document of this id. `None` if the index has none.
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search). An index that does not exist is an error.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn get<T: DeserializeOwned>(&self, index: &str, id: &str) -> Result<Option<T>, Error> {
        let action = format!("getting a document of {index:?}");
        let ask = Ask::new(&action, Method::GET, self.session.path(&action, &[index, "_doc", id])?);
        match self.session.ask(&ask).await {
            Err(error) if is_missing_document(&error) => Ok(None),
            answer => self.session.parse(&ask, &answer?).map(|FoundDocument { source }| Some(source)),
        }
    }

    /// Puts a document, in the place of the one of this id. Without an id the server makes one.
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search), and [`Error::OutcomeUnknown`] if there is no id and the answer is lost, cannot be
    /// used, or has a status from 500 on.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may put the document all the same.
    pub async fn index<T: Serialize + ?Sized>(
        &self,
        index: &str,
        id: impl Into<Option<&str>>,
        document: &T,
    ) -> Result<IndexedDocument, Error> {
        let action = format!("putting a document into {index:?}");
        let body = self.session.json(&action, document)?;
        let ask = match id.into() {
            Some(id) => Ask::new(&action, Method::PUT, self.session.path(&action, &[index, "_doc", id])?),
            None => Ask {
                effect: Effect::Changes,
                ..Ask::new(&action, Method::POST, self.session.path(&action, &[index, "_doc"])?)
            },
        };
        self.session.ask_for(&Ask { body, ..ask }).await
    }

    /// Deletes the document of this id, and tells whether there was one.
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search). An index that does not exist is an error. After an [`Error::Lost`] the server
    /// may have deleted it, and another call does no harm, but may then tell that there was none. So the pool never repeats a
    /// `delete` that was sent.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete it all the same.
    pub async fn delete(&self, index: &str, id: &str) -> Result<bool, Error> {
        let action = format!("deleting a document of {index:?}");
        let path = self.session.path(&action, &[index, "_doc", id])?;
        let ask = Ask { effect: Effect::Once, ..Ask::new(&action, Method::DELETE, path) };
        let result = match self.session.ask_for(&ask).await {
            Err(error) if is_missing_document(&error) => return Ok(false),
            answer => answer.map(|DeletedDocument { result }| result)?,
        };
        match &*result {
            "deleted" => Ok(true),
            other => Err(self.session.unfit(&ask, format!("the server tells {other:?} of it"))),
        }
    }

    /// Creates an index. `body` has its `settings` and `mappings`, or is `{}`.
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search), and [`Error::OutcomeUnknown`] if the answer is lost, has a status from 500 on,
    /// or tells that not all nodes have acknowledged it in time. An index that exists is an error, whose
    /// [`ElasticError::kind`] is `resource_already_exists_exception`.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may create it all the same.
    pub async fn create_index(&self, index: &str, body: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        let action = format!("creating the index {index:?}");
        let (path, body) = (self.session.path(&action, &[index])?, self.session.json(&action, body)?);
        self.change(&Ask { body, effect: Effect::Changes, ..Ask::new(&action, Method::PUT, path) }).await
    }

    /// Deletes one index, with all its documents. A name that may mean several is refused: `*`, a list, `_all`.
    ///
    /// # Errors
    /// Those of [`create_index`](Elastic::create_index). An index that does not exist is an error, whose
    /// [`ElasticError::kind`] is `index_not_found_exception`.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete it all the same.
    pub async fn delete_index(&self, index: &str) -> Result<(), Error> {
        let action = format!("deleting the index {index:?}");
        if index.contains(['*', ',', '?']) || index.starts_with(['_', '-', '+', '<']) {
            return Err(refused(self.session.requests.link(), &action, "the name may mean several indices"));
        }
        let path = self.session.path(&action, &[index])?;
        self.change(&Ask { effect: Effect::Changes, ..Ask::new(&action, Method::DELETE, path) }).await
    }

    async fn change(&self, ask: &Ask<'_>) -> Result<(), Error> {
        match self.session.ask_for(ask).await? {
            Acknowledgement { acknowledged: true } => Ok(()),
            _ => Err(self.session.unfit(ask, "not all nodes have acknowledged it in time")),
        }
    }

    /// Makes all that was written to this index visible to searches, which happens once a second by itself.
    ///
    /// # Errors
    /// Those of [`search`](Elastic::search), and [`Error::Operation`] if a shard failed at it.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn refresh(&self, index: &str) -> Result<(), Error> {
        let action = format!("refreshing {index:?}");
        let path = self.session.path(&action, &[index, "_refresh"])?;
        let ask = Ask::new(&action, Method::POST, path);
        match self.session.ask_for(&ask).await? {
            RefreshAnswer { shards: ShardCounts { failed: 0 } } => Ok(()),
            RefreshAnswer { shards } => Err(self.session.unfit(&ask, format!("{} shards failed", shards.failed))),
        }
    }

    /// A request to another path of the server's interface, such as `/bars/_count`, with the login and the limits. It is
    /// never sent again.
    pub fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.session.requests.request(method, path)
    }

    /// The driver's own client. It has the proxy, TLS and the limits of time, and no login, because nothing keeps it at one
    /// server. Its requests are not counted, so nothing limits their number, closing does not wait for them, and no cut
    /// ends them.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Forked`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.session.requests.raw_client()
    }
}

fn is_missing_document(error: &Error) -> bool {
    ElasticError::of(error).is_some_and(|told| told.is_missing_document)
}

impl fmt::Debug for Elastic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elastic").field("resource", self.session.requests.link().name()).finish_non_exhaustive()
    }
}

/// An Elasticsearch as its slot holds it. It is leased as that of either facade.
#[derive(Clone)]
pub struct ElasticHandle {
    pub(super) tasks: Elastic,
    pub(super) threads: blocking::Elastic,
}

impl LeaseAs<Elastic> for ElasticHandle {
    fn lease_as(&self) -> &Elastic {
        &self.tasks
    }
}

impl LeaseAs<blocking::Elastic> for ElasticHandle {
    fn lease_as(&self) -> &blocking::Elastic {
        &self.threads
    }
}

impl fmt::Debug for ElasticHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ElasticHandle").field(&self.tasks).finish()
    }
}
