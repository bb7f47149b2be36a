//! [`Recent`], which remembers for a page that is opened later: the last events, the latencies of the last minutes, and a
//! close under way.
//!
//! [`Recent`] orders and paces by the monotonic clock, since the time of day may be set back. Each caller brings the time
//! along.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;

use crate::Health;
use crate::State;
use crate::seen::admin::answer;
use crate::seen::admin::limits::{EVENT_BYTES, EVENTS, EVENTS_PER_SECOND, POINTS};
use crate::{Event, What};

/// A message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) bytes: Bytes,
    /// Whether nothing follows, since the pool has closed.
    pub(super) is_last: bool,
}

/// A moment in milliseconds since the admin began, and the latency in milliseconds. `None` if there was no answer.
pub(super) type Point = (f64, Option<f64>);

/// [`Recent`] has the last events, the latencies and the messages of a close.
pub(super) struct Recent {
    began: Instant,
    /// The number of the next event.
    next: u64,
    /// The events from the oldest to the newest.
    events: VecDeque<KeptEvent>,
    /// How many events were not told, because there were too many in a second.
    left_out: u64,
    second: Instant,
    in_second: u32,
    latency: BTreeMap<Arc<str>, LatencySeries>,
    verdicts: BTreeMap<Arc<str>, Health>,
    /// The messages of a close of the whole pool, from its beginning.
    close: Vec<Bytes>,
    is_closed: bool,
}

/// The latencies of one resource.
#[derive(Default)]
struct LatencySeries {
    /// The points from the oldest to the newest.
    points: VecDeque<Point>,
    /// How many of the newest points streams were not told yet.
    untold: usize,
}

/// An event that is kept as JSON.
struct KeptEvent {
    json: Arc<str>,
    resource: Option<Arc<str>>,
    /// The sort of its news, if a later event like it makes it old.
    repeats: Option<Repeats>,
}

/// The events that a resource which cannot be reached has again and again.
#[derive(PartialEq)]
enum Repeats {
    State(State, State),
    Connecting,
    AttemptFailed,
    ConnectFailed,
    ProbeFailed,
}

impl Repeats {
    fn of(what: &What) -> Option<Self> {
        match what {
            What::StateChanged { from, to, .. } => Some(Repeats::State(*from, *to)),
            What::Connecting => Some(Repeats::Connecting),
            What::AttemptFailed { .. } => Some(Repeats::AttemptFailed),
            What::ConnectFailed { .. } => Some(Repeats::ConnectFailed),
            What::ProbeFailed { .. } => Some(Repeats::ProbeFailed),
            _ => None,
        }
    }
}

impl Recent {
    pub(super) fn new(now: Instant) -> Self {
        Recent {
            began: now,
            next: 1,
            events: VecDeque::new(),
            left_out: 0,
            second: now,
            in_second: 0,
            latency: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            close: Vec::new(),
            is_closed: false,
        }
    }

    /// The milliseconds since the admin began, by which the points of latency are in order.
    pub(super) fn clock(&self, now: Instant) -> f64 {
        now.duration_since(self.began).as_secs_f64() * 1e3
    }

    /// Remembers an event. Returns the messages for those who listen.
    pub(super) fn hear(&mut self, event: Event, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        let closing = match &event.what {
            // Each checkout that waits ends such a wait, so that there may be thousands in a second.
            What::Waited { .. } => return told,
            What::Checked { entry } => {
                let point = (self.clock(now), entry.latency.map(|latency| latency.as_secs_f64() * 1e3));
                self.latency.entry(Arc::clone(&entry.name)).or_default().add(point);
                let before = self.verdicts.insert(Arc::clone(&entry.name), entry.health);
                // A verdict like the one before is no news.
                if before.unwrap_or(Health::Pass) == entry.health
                    || (before.is_none() && entry.health == Health::Unknown)
                {
                    return told;
                }
                None
            }
            What::Closing { reason } if event.resource.is_none() => {
                self.begin_close();
                answer::text(reason).ok().map(|json| message("closing", None, &json))
            }
            What::StepEnded { step } if !self.close.is_empty() => {
                answer::text(step).ok().map(|json| message("step", None, &json))
            }
            What::Closed { report } => {
                self.is_closed = true;
                answer::text(&**report).ok().map(|json| message("closed", None, &json))
            }
            _ => None,
        };
        let is_closing = matches!(event.what, What::Closing { .. } | What::StepEnded { .. } | What::Closed { .. });
        let (resource, repeats) = (event.resource.clone(), Repeats::of(&event.what));
        if let Some(json) = self.may_tell(is_closing, now).then(|| shown(event)).flatten() {
            told.push(Told { bytes: message("event", Some(self.next), &json), is_last: false });
            self.next += 1;
            self.keep(KeptEvent { json: json.into(), resource, repeats });
        }
        if let Some(bytes) = closing {
            self.close.push(bytes.clone());
            told.push(Told { bytes, is_last: self.is_closed });
        }
        told
    }

    /// Keeps an event in the place of one that it repeats, so that a server which is down for an hour does not push out
    /// how it was lost.
    fn keep(&mut self, event: KeptEvent) {
        let mut same = self.events.iter().enumerate().rev().filter(|(_, other)| other.resource == event.resource);
        let mut since_news = same.by_ref().take_while(|(_, other)| other.repeats.is_some());
        let old = since_news.find(|(_, other)| event.repeats.is_some() && other.repeats == event.repeats);
        if let Some((old, _)) = old {
            self.events.remove(old);
        } else if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Whether there is room for one more event in this second.
    fn may_tell(&mut self, always: bool, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.in_second) = (now, 0);
        }
        let may = always || self.in_second < EVENTS_PER_SECOND;
        if may {
            self.in_second += 1;
        } else {
            self.left_out += 1;
        }
        may
    }

    fn begin_close(&mut self) {
        self.forget_close();
        // An empty list means that no close is under way.
        self.close.push(Bytes::new());
    }

    /// Forgets a close of a pool that is open again.
    pub(super) fn forget_close(&mut self) {
        self.close.clear();
        self.is_closed = false;
    }

    /// Forgets the resources that are gone.
    pub(super) fn keep_only(&mut self, is_there: impl Fn(&str) -> bool) {
        self.latency.retain(|name, _| is_there(name));
        self.verdicts.retain(|name, _| is_there(name));
    }

    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The last events as a list of JSON, at most so many.
    pub(super) fn events(&self, last: usize) -> Vec<Arc<str>> {
        self.events.iter().skip(self.events.len().saturating_sub(last)).map(|event| Arc::clone(&event.json)).collect()
    }

    /// All points of latency.
    pub(super) fn latency(&self) -> BTreeMap<Arc<str>, Vec<Point>> {
        let points = |series: &LatencySeries| series.points.iter().copied().collect();
        self.latency.iter().map(|(name, series)| (Arc::clone(name), points(series))).collect()
    }

    /// The points of latency that came since this was last asked.
    pub(super) fn new_latency(&mut self) -> BTreeMap<Arc<str>, Vec<Point>> {
        let new = self.latency.iter_mut().filter(|(_, series)| series.untold > 0);
        new.map(|(name, series)| (Arc::clone(name), series.tell())).collect()
    }

    /// The messages of the close under way, for a stream that begins now.
    pub(super) fn close(&self) -> (Vec<Bytes>, bool) {
        (self.close.clone(), self.is_closed)
    }
}

impl LatencySeries {
    fn add(&mut self, point: Point) {
        self.points.push_back(point);
        if self.points.len() > POINTS {
            self.points.pop_front();
        }
        self.untold = self.points.len().min(self.untold + 1);
    }

    fn tell(&mut self) -> Vec<Point> {
        let untold = std::mem::take(&mut self.untold);
        self.points.iter().skip(self.points.len() - untold).copied().collect()
    }
}

/// An event as JSON. Shows and drops it, both of which may run a user's code.
fn shown(event: Event) -> Option<String> {
    let text = catch_unwind(AssertUnwindSafe(move || answer::text(&event))).ok()?.ok()?;
    if text.len() <= EVENT_BYTES {
        return Some(text);
    }
    let mut value: serde_json::Value = serde_json::from_str(&text).ok()?;
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| value.to_string().len() <= EVENT_BYTES / 16);
        fields.insert("shortened".to_owned(), true.into());
    }
    Some(value.to_string())
}

/// A message of `text/event-stream`. JSON has no line breaks of its own.
pub(super) fn message(kind: &str, id: Option<u64>, json: &str) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    Bytes::from(format!("{id}event: {kind}\ndata: {json}\n\n"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{Criticality, HealthEntry, Reason};

    fn warned(message: &str) -> Event {
        Event::of_pool(Some(Arc::from("plain")), What::Warned { message: message.to_owned(), error: None })
    }

    #[test]
    fn a_flood_of_events_is_counted_and_takes_bounded_room() {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        let told: usize = (0..10_000).map(|number| recent.hear(warned(&number.to_string()), now).len()).sum();
        assert_eq!((told, recent.left_out()), (EVENTS_PER_SECOND as usize, 10_000 - u64::from(EVENTS_PER_SECOND)));
        assert_eq!(recent.events(usize::MAX).len(), EVENTS);
        assert_eq!(recent.events(3).len(), 3);
        let waited = What::Waited { waiting_for: "a free connection".to_owned(), waited: Duration::ZERO };
        assert!(recent.hear(Event::of_pool(None, waited), now).is_empty());
        let told = recent.hear(Event::of_pool(None, What::Closing { reason: Reason::Requested }), now);
        assert_eq!(told.len(), 2, "closing is told in any flood");
        assert_eq!(recent.close().0.len(), 2);
    }

    #[test]
    fn a_server_that_is_down_for_long_does_not_push_out_how_it_was_lost() {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        let event = |name: &str, what| Event::of_pool(Some(Arc::from(name)), what);
        recent.hear(warned("the news"), now);
        for _ in 0..EVENTS_PER_SECOND / 2 {
            recent.hear(event("plain", What::Connecting), now);
            let (from, to, after) = (State::Connecting, State::Broken, Duration::ZERO);
            recent.hear(event("plain", What::StateChanged { from, to, after }), now);
            recent.hear(event("other", What::Connecting), now);
        }
        let events = recent.events(usize::MAX);
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(events[0].contains("the news"), "{events:?}");
    }

    #[test]
    fn a_long_event_is_told_without_its_long_details() {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        let told = recent.hear(warned(&"x".repeat(2 * EVENT_BYTES)), now);
        let text = String::from_utf8_lossy(&told[0].bytes).into_owned();
        assert!(text.len() < EVENT_BYTES && text.contains("\"what\":\"warned\""), "{text}");
        assert!(text.starts_with("id: 1\nevent: event\ndata: {") && text.ends_with("}\n\n"), "{text}");
        assert!(text.contains("\"shortened\":true") && text.contains("\"resource\":\"plain\""), "{text}");
    }

    /// The verdict of a health check at this time of day.
    fn checked(name: &str, latency: u64, at: SystemTime) -> Event {
        let name: Arc<str> = Arc::from(name);
        let entry = HealthEntry {
            name: Arc::clone(&name),
            health: Health::Pass,
            latency: Some(Duration::from_millis(latency)),
            state: State::Ready,
            since: Duration::ZERO,
            generation: 1,
            error: None,
            criticality: Criticality::Required,
            nodes: Vec::new(),
        };
        Event { at, ..Event::of_pool(Some(name), What::Checked { entry }) }
    }

    #[test]
    fn a_time_of_day_that_is_set_back_stops_neither_charts_nor_events() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut recent = Recent::new(began);
        let today = SystemTime::now();
        let yesterday = today - Duration::from_secs(86_400);
        recent.hear(checked("redis", 1, today), after(1));
        assert_eq!(recent.new_latency()["redis"], [(1e3, Some(1.0))]);
        recent.hear(checked("redis", 2, yesterday), after(2));
        recent.hear(checked("redis", 3, yesterday), after(3));
        assert_eq!(recent.new_latency()["redis"], [(2e3, Some(2.0)), (3e3, Some(3.0))]);
        assert!(recent.new_latency().is_empty(), "each point is told once");
        assert_eq!(recent.latency()["redis"].len(), 3);
        assert_eq!(recent.clock(after(4)), 4e3);

        let flood = |recent: &mut Recent, at| {
            let flood = (0..2 * EVENTS_PER_SECOND).map(|number| Event { at, ..warned(&number.to_string()) });
            flood.map(|event| recent.hear(event, after(5)).len()).sum::<usize>()
        };
        assert_eq!(flood(&mut recent, today), EVENTS_PER_SECOND as usize);
        assert_eq!(flood(&mut recent, yesterday), 0, "it is the same second");
        assert_eq!(recent.hear(Event { at: yesterday, ..warned("later") }, after(6)).len(), 1);
    }

    #[test]
    fn points_that_nobody_was_told_take_bounded_room() {
        let began = Instant::now();
        let mut recent = Recent::new(began);
        for number in 0..3 * POINTS as u64 {
            recent.hear(checked("redis", number, SystemTime::now()), began + Duration::from_secs(number));
        }
        let told = recent.new_latency();
        assert_eq!(told["redis"].len(), POINTS);
        assert_eq!(told["redis"].last().unwrap().1, Some(3.0 * POINTS as f64 - 1.0));
    }
}
