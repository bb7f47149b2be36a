//! The series of all resources, by name. Their number is bounded.
//!
//! The thread that counts events, the work that ends, and each scrape look series up. `pages` is the only lock, and
//! nothing else is locked under it but the recorder's own.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::series::Series;

/// See [`Metrics::MAX_RESOURCES`](super::Metrics::MAX_RESOURCES).
pub(super) const MAX_RESOURCES: usize = 100;

/// The series of all resources.
#[derive(Default)]
pub(super) struct Book {
    pages: RwLock<Pages>,
}

#[derive(Default)]
struct Pages {
    known: HashMap<Arc<str>, Arc<Series>>,
    /// How many series were ever made. A recorder keeps them all.
    made: usize,
    /// The series of all resources beyond the limit.
    other: Option<Arc<Series>>,
}

impl Book {
    /// The series of this resource. An event of which only the name is known has an empty endpoint.
    pub(super) fn series(&self, name: &Arc<str>, kind: Option<&'static str>, endpoint: &Arc<str>) -> Arc<Series> {
        let fits = |series: &&Arc<Series>| endpoint.is_empty() || series.endpoint == *endpoint;
        if let Some(series) = self.pages.read().known.get(name).filter(fits) {
            return Arc::clone(series);
        }
        let mut pages = self.pages.write();
        if let Some(series) = pages.known.get(name).filter(fits) {
            return Arc::clone(series);
        }
        if pages.made >= MAX_RESOURCES {
            return Arc::clone(pages.other.get_or_insert_with(|| Arc::new(Series::other())));
        }
        pages.made += 1;
        let series = Arc::new(Series::new(name, kind, endpoint));
        pages.known.insert(Arc::clone(name), Arc::clone(&series));
        series
    }
}
