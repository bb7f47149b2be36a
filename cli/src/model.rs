//! The parts of an admin's answers that are shown. A field that a server leaves out is empty.

use std::collections::{BTreeMap, BTreeSet};

use resource_pool::{Health, Outcome};
use serde::Deserialize;
use serde_json::Value;

use crate::table::millis;

/// The answer of `/status`, and the data of the events `snapshot` and `status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Page {
    pub(crate) closing: bool,
    pub(crate) readiness: String,
    pub(crate) status: Status,
    /// `None` until the health was checked for the first time.
    pub(crate) health: Option<Verdicts>,
    pub(crate) holders: Option<Vec<Held>>,
    /// Of each resource, the time in milliseconds since the admin began and the latency of each answer.
    pub(crate) latency: BTreeMap<String, Vec<(f64, Option<f64>)>>,
}

impl Page {
    /// The health of this resource.
    pub(crate) fn verdict(&self, name: &str) -> Option<&Verdict> {
        self.health.as_ref()?.entries.iter().find(|entry| entry.name == name)
    }
}

/// The status of the pool.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) resources: Vec<Resource>,
}

/// The status of one resource.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resource {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) state: String,
    pub(crate) since_ms: f64,
    pub(crate) leases: u64,
    pub(crate) checkouts: u64,
    pub(crate) leaks: u64,
    pub(crate) connecting: u64,
    pub(crate) usage: Usage,
    pub(crate) error: Option<Failure>,
    pub(crate) nodes: Vec<Node>,
}

/// One server of a resource.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) endpoint: String,
    pub(crate) state: String,
}

/// How full a resource is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    pub(crate) max: Option<u64>,
    pub(crate) open: Option<u64>,
    pub(crate) in_use: Option<u64>,
    pub(crate) idle: Option<u64>,
    pub(crate) waiting: Option<u64>,
}

/// An error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Failure {
    pub(crate) message: String,
}

/// The health of the pool.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Verdicts {
    pub(crate) entries: Vec<Verdict>,
}

/// The health of one resource.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) health: String,
    pub(crate) latency_ms: Option<f64>,
    pub(crate) message: Option<String>,
}

/// A holder of a lease or checkout.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Held {
    pub(crate) resource: String,
    pub(crate) site: String,
    pub(crate) held_ms: f64,
    pub(crate) exclusive: bool,
    pub(crate) owner: Option<String>,
    pub(crate) suspected: bool,
}

/// A step of closing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) phase: String,
    pub(crate) outcome: String,
    pub(crate) message: Option<String>,
    pub(crate) took_ms: f64,
}

/// The report of a close.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) reason: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) took_ms: f64,
}

/// Passes over events that only repeat what was told: the verdicts of health checks, of which there is one every second
/// while somebody watches, and the attempts to connect to a server that stays away. They would hide all else.
#[derive(Debug, Default)]
pub(crate) struct Repetitions {
    verdicts: BTreeMap<String, String>,
    /// The events that were told of each resource since it was connected or lost.
    told: BTreeMap<String, BTreeSet<String>>,
}

impl Repetitions {
    /// Whether the event tells anything new.
    pub(crate) fn is_news(&mut self, event: &Value) -> bool {
        let resource = event["resource"].as_str().unwrap_or_default().to_owned();
        match event["what"].as_str().unwrap_or_default() {
            "checked" => {
                let verdict = event["entry"]["health"].as_str().unwrap_or_default().to_owned();
                self.verdicts.insert(resource, verdict.clone()) != Some(verdict)
            }
            "connected" | "lost" => {
                self.told.remove(&resource);
                true
            }
            what @ ("state_changed" | "connecting" | "attempt_failed" | "connect_failed") => {
                let told = format!("{what} {} {}", event["from"], event["to"]);
                self.told.entry(resource).or_default().insert(told)
            }
            _ => true,
        }
    }
}

/// An event as a line.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) at_ms: f64,
    pub(crate) resource: String,
    /// The kind of event in words.
    pub(crate) what: String,
    pub(crate) text: String,
    /// The state by which the line is painted.
    pub(crate) state: &'static str,
}

impl Told {
    pub(crate) fn of(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let time = |key: &str| millis(event[key].as_f64().unwrap_or(f64::NAN));
        let what = event["what"].as_str().unwrap_or_default();
        let error = || text(&event["error"]["message"]);
        let holder = || {
            let holder = &event["holder"];
            format!("{} held for {}", text(&holder["site"]), millis(holder["held_ms"].as_f64().unwrap_or(f64::NAN)))
        };
        let counts = || format!("{} held, {} allowed", event["held"], event["allowed"]);
        let (state, text) = match what {
            "state_changed" => {
                let (from, to) = (text(&event["from"]), text(&event["to"]));
                let state = match &*to {
                    "ready" => "ready",
                    "broken" => "broken",
                    "connecting" | "draining" => "connecting",
                    _ => "",
                };
                (state, format!("{from} to {to} after {}", time("after_ms")))
            }
            "attempt_failed" => ("warn", format!("{}; again in {}", error(), time("pause_ms"))),
            "connect_failed" | "lost" | "timed_out" | "deadlocked" | "outcome_unknown" => ("fail", error()),
            "connected" => ("ready", format!("took {}", time("took_ms"))),
            "probe_failed" => ("warn", text(&event["message"])),
            "waited" => ("", format!("{} for {}", time("waited_ms"), text(&event["waiting_for"]))),
            "repeated" => ("warn", text(&event["action"])),
            "warned" => {
                let cause = event["error"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
                ("warn", text(&event["message"]) + &cause)
            }
            "leak" => ("warn", holder()),
            "leak_returned" => ("", holder()),
            "crowded" => ("warn", counts()),
            "uncrowded" => ("", counts()),
            "cycle" => ("fail", "callers wait for one another".to_owned()),
            "checked" => {
                let entry = &event["entry"];
                let verdicts = [Health::Pass, Health::Warn, Health::Fail].map(Health::code);
                let state = verdicts.into_iter().find(|verdict| entry["health"] == **verdict).unwrap_or_default();
                (state, format!("{} {}", text(&entry["health"]), text(&entry["message"])).trim_end().to_owned())
            }
            "closing" => ("draining", text(&event["reason"])),
            "step_ended" => {
                let step = &event["step"];
                let took = millis(step["took_ms"].as_f64().unwrap_or(f64::NAN));
                let closed = Outcome::Closed.code();
                let state = if step["outcome"] == closed { closed } else { Health::Fail.code() };
                (state, format!("{} after {took}", text(&step["outcome"])))
            }
            "closed" => {
                let report = &event["report"];
                ("closed", format!("took {}", millis(report["took_ms"].as_f64().unwrap_or(f64::NAN))))
            }
            _ => ("", String::new()),
        };
        Told {
            at_ms: event["at_ms"].as_f64().unwrap_or_default(),
            resource: event["resource"].as_str().unwrap_or("pool").to_owned(),
            what: what.replace('_', " "),
            text,
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Repetitions;

    #[test]
    fn an_outage_is_told_once() {
        let mut repetitions = Repetitions::default();
        let failed = json!({ "what": "attempt_failed", "resource": "redis" });
        let lost = json!({ "what": "lost", "resource": "redis" });
        let other = json!({ "what": "attempt_failed", "resource": "mongo" });
        let news = [&failed, &failed, &other, &lost, &failed, &failed, &lost].map(|event| repetitions.is_news(event));
        assert_eq!(news, [true, false, true, true, true, false, true]);
        let checked = |health| json!({ "what": "checked", "resource": "redis", "entry": { "health": health } });
        let news = ["pass", "pass", "fail", "fail", "pass"].map(|health| repetitions.is_news(&checked(health)));
        assert_eq!(news, [true, false, true, false, true]);
    }
}
