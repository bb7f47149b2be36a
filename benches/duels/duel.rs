//! One row of the table: the same work by several contestants, side by side in one run.
//!
//! Every round measures each contestant once, and each round has its own order. So the machine's other work, and the
//! state that one contestant leaves to the next, meet all alike. A claim compares figures within a round. Its value is
//! the median over the rounds.

use std::cell::RefCell;
use std::fmt;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::peers::CROWDS;
use crate::session::Session;

/// The unit of the figures. A lower figure is better in each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum Unit {
    /// The processor's time for one operation.
    CpuNanoseconds,
    /// The time on the clock for one operation.
    Nanoseconds,
    /// The time on the clock for the whole work.
    Milliseconds,
    Mebibytes,
    Count,
    /// One figure over another.
    Ratio,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::CpuNanoseconds => "ns CPU",
            Unit::Nanoseconds => "ns",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::Count => "",
            Unit::Ratio => "×",
        })
    }
}

/// An even number, so that each of two contestants begins as often as the other.
const ROUNDS: usize = 16;

/// The prefix of our own contestants' names.
const OURS: &str = "resource_pool";

/// The contestants, and the claims about them.
pub(crate) struct Duel<'a> {
    id: &'static str,
    what: String,
    unit: Unit,
    contestants: Vec<(String, Box<dyn FnMut() -> f64 + 'a>)>,
    claims: Vec<Claim>,
    note: Option<String>,
}

/// A limit for a figure. `must` is the limit that holds now, and `aim` the one that it is to become.
struct Claim {
    subject: String,
    kind: Kind,
    must: f64,
    aim: Option<f64>,
    reason: Option<&'static str>,
}

enum Kind {
    /// The subject's own figure.
    AtMost,
    /// The other's figure over the subject's. `None` means the best contestant that is not ours.
    TimesFaster(Option<String>),
    /// The subject's figure over the other's.
    Grows(String),
    /// The subject's figure less the other's.
    Adds(String),
}

/// The row as the bench writes it down. `cargo xtask bench` makes the table and the plot of it.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    what: &'a str,
    unit: String,
    rounds: usize,
    contestants: Vec<Measured>,
    claims: Vec<Judged>,
    note: Option<String>,
}

#[derive(Serialize)]
struct Measured {
    name: String,
    samples: Vec<f64>,
    median: f64,
}

#[derive(Serialize)]
struct Judged {
    claim: String,
    aim: Option<f64>,
    value: f64,
    /// The unit of the value and the aim.
    unit: String,
    /// The contestant whose figure must be below this limit, for the plot.
    limit: Option<(String, f64)>,
    verdict: &'static str,
    reason: Option<&'static str>,
}

impl<'a> Duel<'a> {
    /// `id` names the duel's files, and `what` stands in the table.
    pub(crate) fn new(id: &'static str, what: impl Into<String>, unit: Unit) -> Self {
        Duel { id, what: what.into(), unit, contestants: Vec::new(), claims: Vec::new(), note: None }
    }

    /// Adds a contestant. The closure does the work once and returns its cost in the duel's unit.
    pub(crate) fn contestant(mut self, name: impl Into<String>, measure: impl FnMut() -> f64 + 'a) -> Self {
        self.contestants.push((name.into(), Box::new(measure)));
        self
    }

    /// Adds a contestant for each size of crowd.
    pub(crate) fn crowds(self, name: &str, measure: impl Fn(usize) -> f64 + Copy + 'a) -> Self {
        let one = |duel: Self, crowd| duel.contestant(format!("{name}, {crowd}"), move || measure(crowd));
        CROWDS.into_iter().fold(self, one)
    }

    pub(crate) fn at_most(self, subject: &str, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claim(subject, Kind::AtMost, must, aim)
    }

    pub(crate) fn times_faster_than(self, subject: &str, other: &str, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claim(subject, Kind::TimesFaster(Some(other.to_owned())), must, aim)
    }

    /// Claims to be faster than the fastest contestant that is not ours.
    pub(crate) fn times_faster_than_all(self, subject: &str, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claim(subject, Kind::TimesFaster(None), must, aim)
    }

    pub(crate) fn at_most_times(self, subject: &str, other: &str, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claim(subject, Kind::Grows(other.to_owned()), must, aim)
    }

    pub(crate) fn adds_at_most(self, subject: &str, other: &str, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claim(subject, Kind::Adds(other.to_owned()), must, aim)
    }

    /// The reason why the last claim is missed, if it is.
    pub(crate) fn because(mut self, reason: &'static str) -> Self {
        self.claims.last_mut().expect("a claim").reason = Some(reason);
        self
    }

    /// A note for the reader of the table.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    fn claim(mut self, subject: &str, kind: Kind, must: f64, aim: impl Into<Option<f64>>) -> Self {
        self.claims.push(Claim { subject: subject.to_owned(), kind, must, aim: aim.into(), reason: None });
        self
    }

    /// Runs the rounds, prints the row and keeps it for the session's file.
    pub(crate) fn run(mut self, session: &Session) {
        let rounds = if session.is_smoke() { 1 } else { ROUNDS };
        let count = self.contestants.len();
        let mut samples = vec![Vec::with_capacity(rounds); count];
        let shown = ProgressBar::new((rounds * count) as u64).with_message(self.id);
        if shown.is_hidden() {
            eprintln!("{}: {rounds} rounds of {count} contestants", self.id);
        }
        shown.set_style(ProgressStyle::with_template("{elapsed:>4} {bar:40} {pos}/{len} {msg}").expect("a template"));
        for round in 0..rounds {
            for index in order(round, count) {
                let measured = (self.contestants[index].1)();
                assert!(measured.is_finite() && measured >= 0.0, "{}: {measured}", self.id);
                samples[index].push(measured);
                shown.inc(1);
            }
        }
        shown.finish_and_clear();
        let named = self.contestants.iter().zip(&samples);
        let measured: Vec<_> = named
            .map(|((name, _), samples)| Measured {
                name: name.clone(),
                samples: samples.clone(),
                median: median(samples.clone()),
            })
            .collect();
        let claims = self.claims.iter().map(|claim| claim.judge(self.unit, &measured)).collect();
        let row = Row {
            id: self.id,
            what: &self.what,
            unit: self.unit.to_string(),
            rounds,
            contestants: measured,
            claims,
            note: self.note,
        };
        println!("{row}");
        session.keep(serde_json::to_string(&row).expect("plain data"));
    }
}

/// The order of this round. The first contestant changes with the round, and so does the one that follows on each.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    // A step with no common divisor visits all contestants.
    let steps: Vec<_> = (1..=count).filter(|step| gcd(*step, count) == 1).collect();
    let step = steps[round % steps.len()];
    (0..count).map(move |turn| (round + turn * step) % count)
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// The results of one contestant's rounds, kept so that further rows can tell more of the same rounds.
#[derive(Debug)]
pub(crate) struct Rounds<T>(RefCell<Vec<T>>);

impl<T> Rounds<T> {
    pub(crate) fn new() -> Self {
        Rounds(RefCell::default())
    }

    /// Keeps the result of the round that just ended, and returns its figure.
    pub(crate) fn keep(&self, left: T, figure: impl Fn(&T) -> f64) -> f64 {
        let figured = figure(&left);
        self.0.borrow_mut().push(left);
        figured
    }

    /// Returns another figure of the kept rounds, one round with each call.
    pub(crate) fn again(&self, figure: impl Fn(&T) -> f64) -> impl FnMut() -> f64 {
        let mut rounds = 0..;
        move || rounds.next().and_then(|round| self.0.borrow().get(round).map(&figure)).expect("as many rounds")
    }
}

impl Claim {
    fn judge(&self, unit: Unit, all: &[Measured]) -> Judged {
        let find =
            |name: &str| all.iter().find(|one| one.name == *name).unwrap_or_else(|| panic!("no contestant {name}"));
        let ours = find(&self.subject);
        let per_round = |of: &dyn Fn(usize) -> f64| median((0..ours.samples.len()).map(of).collect());
        let least = |round: usize| {
            let others = all.iter().filter(|one| !one.name.starts_with(OURS)).map(|one| one.samples[round]);
            others.fold(f64::INFINITY, f64::min)
        };
        let must = format!("{} {unit}", self.must);
        let must = must.trim_end();
        let (value, text) = match &self.kind {
            Kind::AtMost => (ours.median, format!("{}: at most {must}", self.subject)),
            Kind::TimesFaster(Some(other)) => {
                let theirs = find(other);
                let ratio = per_round(&|round| theirs.samples[round] / ours.samples[round]);
                (ratio, format!("{}: at least {} × as fast as {other}", self.subject, self.must))
            }
            Kind::TimesFaster(None) => {
                let ratio = per_round(&|round| least(round) / ours.samples[round]);
                (ratio, format!("{}: at least {} × as fast as any other", self.subject, self.must))
            }
            Kind::Grows(other) => {
                let theirs = find(other);
                let ratio = per_round(&|round| ours.samples[round] / theirs.samples[round]);
                (ratio, format!("{}: at most {} × {other}", self.subject, self.must))
            }
            Kind::Adds(other) => {
                let theirs = find(other);
                let more = per_round(&|round| ours.samples[round] - theirs.samples[round]);
                (more, format!("{}: at most {must} more than {other}", self.subject))
            }
        };
        let meets = |limit: f64| match self.kind {
            Kind::TimesFaster(_) => value >= limit,
            _ => value <= limit,
        };
        let (unit, limit) = match self.kind {
            Kind::AtMost => (unit.to_string(), Some((self.subject.clone(), self.must))),
            Kind::Adds(_) => (unit.to_string(), None),
            Kind::TimesFaster(_) | Kind::Grows(_) => ("×".to_owned(), None),
        };
        let verdict = match (self.aim, meets(self.must)) {
            (_, false) => "misses",
            (Some(aim), true) if meets(aim) => "meets the aim",
            (_, true) => "meets",
        };
        let reason = self.reason.filter(|_| verdict == "misses");
        Judged { claim: text, aim: self.aim, value, unit, limit, verdict, reason }
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.id, self.what)?;
        for Measured { name, samples, median } in &self.contestants {
            let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = samples.iter().copied().fold(0.0, f64::max);
            writeln!(f, "  {name:<40} {median:>12.1} {}   ({least:.1} to {most:.1})", self.unit)?;
        }
        for Judged { claim, value, verdict, .. } in &self.claims {
            writeln!(f, "  {verdict}: {claim}: {value:.2}")?;
        }
        Ok(())
    }
}

pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len().is_multiple_of(2) { (samples[middle - 1] + samples[middle]) / 2.0 } else { samples[middle] }
}
