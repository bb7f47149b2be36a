//! The handle of a Chroma, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::base::error::Error;
use crate::kinds::chroma::blocking;
use crate::kinds::chroma::collection::ChromaCollection;
use crate::kinds::chroma::errors::{answered, is_refused, refused};
use crate::kinds::chroma::spec::ChromaSpec;
use crate::kinds::rest::{doubted, leased};
use crate::lifecycle::requests::{HttpRequest, HttpResponse, RequestProbe, Requests};

/// A Chroma, or rather the database of a tenant there. Cheap to clone.
///
/// A request counts as work until its answer has come. Closing waits for it within the drain, and then ends it with an
/// error. No request is sent twice.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ChromaQuery, ChromaRecord, ResourcePool};
///
/// let chroma = ResourcePool::global().chroma().await?;
/// let stocks = chroma.get_or_create("stocks").await?;
/// stocks.upsert(&[ChromaRecord::new("000001", &[0.1, 0.9]).document("Ping An Bank")]).await?;
/// for found in stocks.query(ChromaQuery::new(&[0.2, 0.8], 10)).await? {
///     println!("{} at {}", found.id, found.distance);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Chroma {
    pub(super) session: ChromaSession,
}

/// The state that the verbs need.
#[derive(Clone)]
pub(super) struct ChromaSession {
    pub(super) requests: Requests,
    /// The path of the tenant's database.
    pub(super) database: Arc<str>,
}

/// A collection in the form in which it comes.
#[derive(Deserialize)]
struct CollectionAnswer {
    id: String,
    name: String,
}

impl Chroma {
    /// Creates a collection.
    ///
    /// # Errors
    /// [`Error::Operation`] for an answer that is an error, with a [`ChromaError`](crate::ChromaError) as its source. Its
    /// fault is [`Exists`](crate::ChromaFault::Exists) if there is one of this name. [`Error::Timeout`] if no place is free
    /// within the acquire timeout; [`Error::Lost`] if the server cannot be reached; [`Error::OutcomeUnknown`] if the server
    /// is silent for too long, the connection breaks, closing cuts the request, or the answer does not prove whether the
    /// collection was created; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may create the collection all the same.
    pub async fn create(&self, spec: impl Into<ChromaSpec>) -> Result<ChromaCollection, Error> {
        let spec = spec.into();
        self.session.create(&spec, false).await
    }

    /// The collection of this name. It is created if there is none. One that is there stays as it is, whatever else the
    /// specification says.
    ///
    /// # Errors
    /// Those of [`collection`](Self::collection), but for a collection that is not there.
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    pub async fn get_or_create(&self, spec: impl Into<ChromaSpec>) -> Result<ChromaCollection, Error> {
        let spec = spec.into();
        self.session.create(&spec, true).await
    }

    /// The collection of this name.
    ///
    /// # Errors
    /// [`Error::Operation`] for an answer that is an error, with a [`ChromaError`](crate::ChromaError) as its source. Its
    /// fault is [`NotFound`](crate::ChromaFault::NotFound) if there is no such collection. [`Error::Timeout`] if no place
    /// is free within the acquire timeout, or the server is silent for too long; [`Error::Lost`] if it cannot be reached
    /// or breaks off; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn collection(&self, name: &str) -> Result<ChromaCollection, Error> {
        const ACTION: &str = "looking for a collection";
        let request = self.session.request_for(Method::GET, name, ACTION)?;
        self.session.collection(request).await
    }

    /// Deletes the collection of this name with all its records.
    ///
    /// # Errors
    /// Those of [`collection`](Self::collection).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete the collection all the same.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        const ACTION: &str = "deleting a collection";
        let request = self.session.request_for(Method::DELETE, name, ACTION)?;
        self.session.done(request).await
    }

    /// A request to another path below the tenant's database, such as `/collections_count`, with the token and the limits.
    pub fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.session.request(method, path)
    }
}

impl ChromaSession {
    /// A request to a path below the tenant's database.
    pub(super) fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.requests.request(method, &format!("{}/{}", self.database, path.trim_start_matches('/')))
    }

    /// A request for the collection of this name.
    fn request_for(&self, method: Method, name: &str, action: &str) -> Result<HttpRequest, Error> {
        let name = segment(name).map_err(|problem| refused(self.requests.link(), action, problem))?;
        Ok(self.request(method, &format!("collections/{name}")).action(action))
    }

    /// The answer to a request, whose status is one of success.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        request.send().await?.succeeded().await.map_err(answered)
    }

    /// Sends a request whose answer says no more than that it is done. That is JSON, so that a page of something else
    /// before the server is not taken for it.
    pub(super) async fn done(&self, request: HttpRequest) -> Result<(), Error> {
        let _: IgnoredAny = self.send(request).await?.json().await?;
        Ok(())
    }

    async fn create(&self, spec: &ChromaSpec, get_or_create: bool) -> Result<ChromaCollection, Error> {
        let body: Value = spec.body(get_or_create);
        let request = self.request(Method::POST, "collections").action("creating a collection");
        let answer = request.idempotent(get_or_create).json(&body).send().await?;
        self.created(answer).await.map_err(|error| match get_or_create || is_refused(&error) {
            true => error,
            false => doubted(self.requests.link(), error),
        })
    }

    /// The collection that this request asks for.
    async fn collection(&self, request: HttpRequest) -> Result<ChromaCollection, Error> {
        self.created(request.send().await?).await
    }

    /// The collection that this answer tells of.
    async fn created(&self, answer: HttpResponse) -> Result<ChromaCollection, Error> {
        let CollectionAnswer { id, name } = answer.succeeded().await.map_err(answered)?.json().await?;
        let id = segment(&id).map_err(|problem| refused(self.requests.link(), "reading a collection's id", problem))?;
        Ok(ChromaCollection { session: self.clone(), id: id.into(), name: name.into() })
    }
}

/// All characters that may have a meaning in a URL.
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as a segment of a path.
pub(super) fn segment(name: &str) -> Result<String, &'static str> {
    match name {
        // They would name another path.
        "" | "." | ".." => Err("the name must neither be empty nor `.` nor `..`"),
        _ => Ok(utf8_percent_encode(name, IN_SEGMENT).to_string()),
    }
}

impl fmt::Debug for Chroma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chroma").field("resource", self.session.requests.link().name()).finish_non_exhaustive()
    }
}

/// A Chroma as its slot holds it. It is leased as the one of either facade.
#[derive(Clone)]
pub struct ChromaHandle {
    pub(super) tasks: Chroma,
    pub(super) threads: blocking::Chroma,
    pub(super) heartbeat: Arc<RequestProbe>,
}

leased!(ChromaHandle, Chroma, blocking::Chroma);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("bars-1.2_x"), Ok("bars-1.2_x".to_owned()));
        assert_eq!(segment("a/b?c#d%e;f"), Ok("a%2Fb%3Fc%23d%25e%3Bf".to_owned()));
        assert!(segment("").is_err() && segment(".").is_err() && segment("..").is_err());
    }
}
