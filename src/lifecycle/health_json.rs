//! A health report in the format `application/health+json`
//! ([draft-inadarei-api-health-check](https://datatracker.ietf.org/doc/html/draft-inadarei-api-health-check-06)).

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::base::json::Millis;
use crate::lifecycle::health::{Health, HealthEntry, HealthReport};

/// A [`HealthReport`] as `application/health+json`, for any serializer. The format has no word for `Health::Unknown`,
/// so a check with this verdict has no status.
#[derive(Debug, Clone, Copy)]
pub struct HealthJson<'a> {
    report: &'a HealthReport,
    is_full: bool,
}

impl HealthReport {
    /// The report for everybody. It has only the status, which is [`readiness`](HealthReport::readiness).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = resource_pool::ResourcePool::builder().build()?;
    /// let report = pool.health_check().await;
    /// assert_eq!(serde_json::to_string(&report.public_json())?, r#"{"status":"pass"}"#);
    /// # Ok(()) }
    /// ```
    pub fn public_json(&self) -> HealthJson<'_> {
        HealthJson { report: self, is_full: false }
    }

    /// The report for readers who may see endpoints and errors. It has each resource's check, with the time that its
    /// answer took.
    pub fn full_json(&self) -> HealthJson<'_> {
        HealthJson { report: self, is_full: true }
    }
}

impl Serialize for HealthJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let HealthJson { report, is_full } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", &report.readiness())?;
        if *is_full {
            let notes = [("closing", report.closing), ("readiness was lowered", report.lowered)];
            let notes: Vec<_> = notes.into_iter().filter(|(_, holds)| *holds).map(|(note, _)| note).collect();
            if !notes.is_empty() {
                map.serialize_entry("notes", &notes)?;
            }
            map.serialize_entry("checks", &JsonChecks(&report.entries))?;
        }
        map.end()
    }
}

/// The checks by `resource:responseTime`. Each is a list, as the format wants it, with one check in it.
struct JsonChecks<'a>(&'a [HealthEntry]);

impl Serialize for JsonChecks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|entry| (format!("{}:responseTime", entry.name), [Check(entry)])))
    }
}

struct Check<'a>(&'a HealthEntry);

impl Serialize for Check<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let HealthEntry { name, health, latency, error, nodes, .. } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("componentId", name)?;
        map.serialize_entry("componentType", "datastore")?;
        if *health != Health::Unknown {
            map.serialize_entry("status", health)?;
        }
        if let Some(latency) = latency {
            map.serialize_entry("observedValue", &Millis::from(*latency))?;
            map.serialize_entry("observedUnit", "ms")?;
        }
        let endpoints: Vec<_> = nodes.iter().map(|node| &node.endpoint).filter(|place| !place.is_empty()).collect();
        if !endpoints.is_empty() {
            map.serialize_entry("endpoints", &endpoints)?;
        }
        if let Some(error) = error {
            map.serialize_entry("output", error)?;
        }
        map.end()
    }
}
