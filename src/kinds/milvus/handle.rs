//! The handle of a Milvus, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::base::error::Error;
use crate::kinds::milvus::answer::{DONE, MilvusAnswer, MilvusBody, NoMore};
use crate::kinds::milvus::blocking;
use crate::kinds::milvus::collection::MilvusCollection;
use crate::kinds::milvus::errors::{MilvusError, answered, is_refused, refused};
use crate::kinds::milvus::spec::MilvusSpec;
use crate::kinds::rest::{doubted, leased};
use crate::lifecycle::requests::{HttpRequest, HttpResponse, RequestProbe, Requests};

/// A Milvus. Cheap to clone.
///
/// A request counts as work until its answer has come. Closing waits for it within the drain, and then ends it with an
/// error. No request is sent twice.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{MilvusQuery, MilvusRow, MilvusSpec, ResourcePool};
///
/// let milvus = ResourcePool::global().milvus().await?;
/// let stocks = milvus.create(MilvusSpec::new("stocks", 2)).await?;
/// stocks.insert(&[MilvusRow::new(&[0.1, 0.9]).field("code", "000001")]).await?;
/// for found in stocks.query(MilvusQuery::new(&[0.2, 0.8], 10).fields(["code"])).await? {
///     println!("{} at {}", found.fields["code"], found.distance);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Milvus {
    pub(super) session: MilvusSession,
}

/// The state that the verbs need.
#[derive(Clone)]
pub(super) struct MilvusSession {
    pub(super) requests: Requests,
    /// Empty for the server's default one.
    pub(super) database: Arc<str>,
}

impl Milvus {
    /// Creates a collection, with an index, and loads it. If there is one of this name with the same dimensions and
    /// measure, nothing is changed.
    ///
    /// # Errors
    /// [`Error::Operation`] for an answer that is an error, with a [`MilvusError`](crate::MilvusError) as its source.
    /// [`Error::Timeout`] if no place is free within the acquire timeout, or the server is silent for too long;
    /// [`Error::Lost`] if it cannot be reached or breaks off; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may create the collection all the same.
    pub async fn create(&self, spec: MilvusSpec) -> Result<MilvusCollection, Error> {
        const ACTION: &str = "creating a collection";
        let _: Option<IgnoredAny> = self.session.ask("collections/create", &spec.name, &spec, ACTION, true).await?;
        Ok(self.collection(&spec.name))
    }

    /// The collection of this name. The server is not asked whether it has it.
    pub fn collection(&self, name: &str) -> MilvusCollection {
        MilvusCollection { session: self.session.clone(), name: name.into() }
    }

    /// Deletes the collection of this name with all its rows.
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete the collection all the same.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        const ACTION: &str = "deleting a collection";
        let _: Option<IgnoredAny> = self.session.ask("collections/drop", name, NoMore {}, ACTION, true).await?;
        Ok(())
    }

    /// A request to another path below `/v1/vector`, such as `/collections`, with the token and the limits.
    pub fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.session.request(method, path)
    }
}

impl MilvusSession {
    fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.requests.request(method, &format!("v1/vector/{}", path.trim_start_matches('/')))
    }

    /// The data of the answer to a POST about this collection. `None` if the answer has no data.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        collection: &str,
        rest: impl Serialize,
        action: &str,
        is_idempotent: bool,
    ) -> Result<Option<T>, Error> {
        let body = MilvusBody { database: &self.database, collection, rest };
        let request = self.request(Method::POST, path).action(action).idempotent(is_idempotent).json(&body);
        let answer = request.send().await?;
        self.data(answer, action).await.map_err(|error| match is_idempotent || is_refused(&error) {
            true => error,
            false => doubted(self.requests.link(), error),
        })
    }

    /// The data of this answer.
    async fn data<T: DeserializeOwned>(&self, answer: HttpResponse, action: &str) -> Result<Option<T>, Error> {
        let answer = answer.succeeded().await.map_err(answered)?;
        let MilvusAnswer { code, message, data } = answer.json().await?;
        match code {
            DONE => Ok(data),
            _ => {
                // The words alone are searched for secrets, because the error's own name may be one.
                let message = self.requests.withheld(message).to_string();
                Err(refused(self.requests.link(), action, MilvusError::new(code, message)))
            }
        }
    }
}

impl fmt::Debug for Milvus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Milvus").field("resource", self.session.requests.link().name()).finish_non_exhaustive()
    }
}

/// A Milvus as its slot holds it. It is leased as the one of either facade.
#[derive(Clone)]
pub struct MilvusHandle {
    pub(super) tasks: Milvus,
    pub(super) threads: blocking::Milvus,
    pub(super) probe: Arc<RequestProbe>,
}

leased!(MilvusHandle, Milvus, blocking::Milvus);
