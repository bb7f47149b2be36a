//! Chroma for threads, which block on the futures of the one for tasks.

use crate::base::error::Error;
use crate::kinds::chroma::collection::ChromaCollection as AsyncCollection;
use crate::kinds::chroma::handle::Chroma as AsyncChroma;
use crate::kinds::chroma::query::{ChromaMatch, ChromaQuery};
use crate::kinds::chroma::record::ChromaRecord;
use crate::kinds::chroma::spec::ChromaSpec;

/// A Chroma for threads. Cheap to clone.
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ChromaQuery, blocking::ResourcePool};
///
/// let stocks = ResourcePool::global().chroma()?.collection("stocks")?;
/// for found in stocks.query(ChromaQuery::new(&[0.2, 0.8], 10))? {
///     println!("{} at {}", found.id, found.distance);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Chroma {
    tasks: AsyncChroma,
}

impl Chroma {
    pub(super) fn new(tasks: &AsyncChroma) -> Self {
        Chroma { tasks: tasks.clone() }
    }

    /// Creates a collection.
    ///
    /// # Errors
    /// Those of [the async method](crate::Chroma::create), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn create(&self, spec: impl Into<ChromaSpec>) -> Result<ChromaCollection, Error> {
        self.collection_of(self.tasks.create(spec))
    }

    /// The collection of this name. It is created if there is none.
    ///
    /// # Errors
    /// Those of [the async method](crate::Chroma::get_or_create), and [`Error::InAsyncContext`] on a current-thread
    /// runtime.
    pub fn get_or_create(&self, spec: impl Into<ChromaSpec>) -> Result<ChromaCollection, Error> {
        self.collection_of(self.tasks.get_or_create(spec))
    }

    /// The collection of this name.
    ///
    /// # Errors
    /// Those of [the async method](crate::Chroma::collection), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn collection(&self, name: &str) -> Result<ChromaCollection, Error> {
        self.collection_of(self.tasks.collection(name))
    }

    /// Deletes the collection of this name with all its records.
    ///
    /// # Errors
    /// Those of [the async method](crate::Chroma::delete), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        self.tasks.session.requests.wait(self.tasks.delete(name))?
    }

    fn collection_of(
        &self,
        found: impl Future<Output = Result<AsyncCollection, Error>>,
    ) -> Result<ChromaCollection, Error> {
        let tasks = self.tasks.session.requests.wait(found)??;
        Ok(ChromaCollection { tasks })
    }
}

/// A collection for threads. Everything that is said of the [async one](crate::ChromaCollection) holds here as well. On a
/// current-thread runtime each call that waits answers [`Error::InAsyncContext`].
#[derive(Debug, Clone)]
pub struct ChromaCollection {
    tasks: AsyncCollection,
}

impl ChromaCollection {
    /// The name.
    pub fn name(&self) -> &str {
        self.tasks.name()
    }

    /// The id that the server gave it.
    pub fn id(&self) -> &str {
        self.tasks.id()
    }

    /// Stores records, all of them or none. A record takes the place of one of the same id.
    ///
    /// # Errors
    /// Those of [the async method](crate::ChromaCollection::upsert).
    pub fn upsert(&self, records: &[ChromaRecord<'_>]) -> Result<(), Error> {
        self.wait(self.tasks.upsert(records))
    }

    /// The records whose vectors are nearest to the query's, the nearest first.
    ///
    /// # Errors
    /// Those of [the async method](crate::ChromaCollection::query).
    pub fn query(&self, query: ChromaQuery<'_>) -> Result<Vec<ChromaMatch>, Error> {
        self.wait(self.tasks.query(query))
    }

    /// Deletes the records of these ids.
    ///
    /// # Errors
    /// Those of [the async method](crate::ChromaCollection::delete).
    pub fn delete(&self, ids: &[&str]) -> Result<(), Error> {
        self.wait(self.tasks.delete(ids))
    }

    /// The number of records.
    ///
    /// # Errors
    /// Those of [the async method](crate::ChromaCollection::count).
    pub fn count(&self) -> Result<u64, Error> {
        self.wait(self.tasks.count())
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.tasks.session.requests.wait(answer)?
    }
}
