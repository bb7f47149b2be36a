//! A collection that is to be created.

use serde::Serialize;

/// A collection that is to be created: its name, the dimensions of its vectors, and its measure of distance. The server
/// gives the vectors an index and ids of its own.
///
/// ```
/// use resource_pool::{MilvusMetric, MilvusSpec};
///
/// let spec = MilvusSpec::new("bars", 128).metric(MilvusMetric::Cosine);
/// assert_eq!(spec.dimension, 128);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MilvusSpec {
    /// The name: letters, digits and `_`.
    #[serde(skip)]
    pub name: String,
    /// The dimensions of the vectors.
    pub dimension: u32,
    /// The measure of distance. Defaults to [`MilvusMetric::L2`].
    #[serde(rename = "metricType")]
    pub metric: MilvusMetric,
}

/// The measure of distance of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum MilvusMetric {
    /// The square of the Euclidean distance. The nearest has the smallest.
    L2,
    /// The inner product of the vectors. The nearest has the greatest.
    #[serde(rename = "IP")]
    InnerProduct,
    /// The cosine of the angle between the vectors. The nearest has the greatest.
    #[serde(rename = "COSINE")]
    Cosine,
}

impl MilvusSpec {
    /// A collection of this name, whose vectors have so many dimensions.
    pub fn new(name: impl Into<String>, dimension: u32) -> Self {
        MilvusSpec { name: name.into(), dimension, metric: MilvusMetric::L2 }
    }

    /// Sets the measure of distance.
    pub fn metric(mut self, metric: MilvusMetric) -> Self {
        self.metric = metric;
        self
    }
}
