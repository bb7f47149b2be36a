//! [`Book`], which has the series of all resources by name. Their number is bounded.
//!
//! The thread that counts events, the work that ends, and each scrape look series up. `Book::pages` is the only lock
//! here. Under it a new series registers its counters, for which the recorder may take locks of its own.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::series::Series;

/// The most resources that have series of their own, as [`Metrics::MAX_RESOURCES`](super::Metrics::MAX_RESOURCES) tells
/// users.
pub(super) const MAX_RESOURCES: usize = 100;

/// The series of all resources.
#[derive(Default)]
pub(super) struct Book {
    pages: RwLock<Pages>,
}

#[derive(Default)]
struct Pages {
    known: HashMap<Arc<str>, Arc<Series>>,
    /// How many series were ever made. `known` forgets those that others replaced, but a recorder keeps them all.
    made: usize,
    /// The series that all resources beyond the limit share.
    other: Option<Arc<Series>>,
}

impl Book {
    /// The series of the resource of this name at this endpoint. An empty endpoint means that only the name is known,
    /// and fits every series of that name.
    pub(super) fn series(&self, name: &Arc<str>, system: Option<&'static str>, endpoint: &Arc<str>) -> Arc<Series> {
        let fits = |series: &&Arc<Series>| endpoint.is_empty() || series.endpoint == *endpoint;
        if let Some(series) = self.pages.read().known.get(name).filter(fits) {
            return Arc::clone(series);
        }
        let mut pages = self.pages.write();
        // Another thread may have made them meanwhile.
        if let Some(series) = pages.known.get(name).filter(fits) {
            return Arc::clone(series);
        }
        if pages.made >= MAX_RESOURCES {
            return Arc::clone(pages.other.get_or_insert_with(|| Arc::new(Series::other())));
        }
        pages.made += 1;
        let series = Arc::new(Series::new(name, system, endpoint));
        pages.known.insert(Arc::clone(name), Arc::clone(&series));
        series
    }
}
