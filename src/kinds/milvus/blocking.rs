//! Milvus for threads, which block on the futures of the one for tasks.

use crate::base::error::Error;
use crate::kinds::milvus::collection::MilvusCollection as AsyncCollection;
use crate::kinds::milvus::handle::Milvus as AsyncMilvus;
use crate::kinds::milvus::query::{MilvusMatch, MilvusQuery};
use crate::kinds::milvus::row::MilvusRow;
use crate::kinds::milvus::spec::MilvusSpec;

/// A Milvus for threads. Cheap to clone.
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{MilvusQuery, blocking::ResourcePool};
///
/// let stocks = ResourcePool::global().milvus()?.collection("stocks");
/// for found in stocks.query(MilvusQuery::new(&[0.2, 0.8], 10))? {
///     println!("{} at {}", found.id, found.distance);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Milvus {
    tasks: AsyncMilvus,
}

impl Milvus {
    pub(super) fn new(tasks: &AsyncMilvus) -> Self {
        Milvus { tasks: tasks.clone() }
    }

    /// Creates a collection, with an index, and loads it. If there is one of this name with the same dimensions and
    /// measure, nothing is changed.
    ///
    /// # Errors
    /// Those of [the async method](crate::Milvus::create), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn create(&self, spec: MilvusSpec) -> Result<MilvusCollection, Error> {
        let tasks = self.tasks.session.requests.wait(self.tasks.create(spec))??;
        Ok(MilvusCollection { tasks })
    }

    /// The collection of this name. The server is not asked whether it has it.
    pub fn collection(&self, name: &str) -> MilvusCollection {
        MilvusCollection { tasks: self.tasks.collection(name) }
    }

    /// Deletes the collection of this name with all its rows.
    ///
    /// # Errors
    /// Those of [the async method](crate::Milvus::delete), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        self.tasks.session.requests.wait(self.tasks.delete(name))?
    }
}

/// A collection for threads. Everything that is said of the [async one](crate::MilvusCollection) holds here as well. On a
/// current-thread runtime each call that waits answers [`Error::InAsyncContext`].
#[derive(Debug, Clone)]
pub struct MilvusCollection {
    tasks: AsyncCollection,
}

impl MilvusCollection {
    /// The name.
    pub fn name(&self) -> &str {
        self.tasks.name()
    }

    /// Stores rows, and answers the ids that the server gave them.
    ///
    /// # Errors
    /// Those of [the async method](crate::MilvusCollection::insert).
    pub fn insert(&self, rows: &[MilvusRow<'_>]) -> Result<Vec<i64>, Error> {
        self.wait(self.tasks.insert(rows))
    }

    /// Stores rows with ids of the caller's, in a collection whose ids the server does not give.
    ///
    /// # Errors
    /// Those of [the async method](crate::MilvusCollection::upsert).
    pub fn upsert(&self, rows: &[MilvusRow<'_>]) -> Result<Vec<i64>, Error> {
        self.wait(self.tasks.upsert(rows))
    }

    /// The rows whose vectors are nearest to the query's, the nearest first.
    ///
    /// # Errors
    /// Those of [the async method](crate::MilvusCollection::query).
    pub fn query(&self, query: MilvusQuery<'_>) -> Result<Vec<MilvusMatch>, Error> {
        self.wait(self.tasks.query(query))
    }

    /// Deletes the rows of these ids.
    ///
    /// # Errors
    /// Those of [the async method](crate::MilvusCollection::delete).
    pub fn delete(&self, ids: &[i64]) -> Result<(), Error> {
        self.wait(self.tasks.delete(ids))
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.tasks.session.requests.wait(answer)?
    }
}
