//! The prober, which notices a server that stopped answering.
//!
//! A slot starts a [`Watch`] with each generation. Its task on the prober's runtime pings after each pause, and reports
//! the connection as lost after too many pings without an answer. Each ping runs in a task of its own, so that its
//! panic does not end the prober. During a pause the task holds its slot weakly, so it does not keep a dropped pool
//! alive. This file has no lock.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::base::error::{Failure, NoAnswer, OneLine, Proof, Source, panic_message};
use crate::base::future::BoxFuture;
use crate::base::millis;
use crate::base::runtime::{self, within};
use crate::base::setters::setters;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::event::What;

/// How a ready resource is probed. With the defaults, a frozen server is noticed within 3.7 s.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeOptions {
    /// Whether to probe at all. Defaults to `true`. Without probes only the driver can notice a frozen server, and for
    /// most operations it never does.
    pub enabled: bool,
    /// The pause between two probes, at least 1 ms. Defaults to 500 ms.
    #[serde(rename = "interval_ms", with = "millis")]
    pub interval: Duration,
    /// How long one probe may take, at least 1 ms. Defaults to 1 s.
    #[serde(rename = "limit_ms", with = "millis")]
    pub limit: Duration,
    /// How many probes in a row must get no answer before the connection counts as lost, at least 1. Defaults to 3.
    pub strikes: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions { enabled: true, interval: Duration::from_millis(500), limit: Duration::from_secs(1), strikes: 3 }
    }
}

impl ProbeOptions {
    setters! {
        plain {
            /// Sets whether to probe at all.
            enabled: bool,
            /// Sets the pause between two probes.
            interval: Duration,
            /// Sets how long one probe may take.
            limit: Duration,
            /// Sets how many probes in a row must get no answer before the connection counts as lost.
            strikes: u32,
        }
    }
}

impl ProbeOptions {
    /// The pause before the next probe. After a strike it is short, since the limit that has passed was a pause too.
    fn pause(&self, strikes: u32) -> Duration {
        if strikes == 0 { self.interval } else { self.interval / 5 }
    }

    /// The longest that a server may be silent before its connection is cut. It froze right after an answer.
    #[cfg(test)]
    pub(crate) fn silence(&self) -> Duration {
        (0..self.strikes).map(|strikes| self.pause(strikes) + self.limit).sum()
    }
}

/// Starts to probe one generation, until it is lost or the [`Watch`] is ended or dropped. `None` if probing is off, or
/// the process can have no more threads.
pub(crate) fn watch(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions) -> Option<Watch> {
    if !options.enabled {
        return None;
    }
    match runtime::background() {
        Ok(prober) => {
            let (end, ended) = oneshot::channel();
            Some(Watch { task: prober.spawn(probe(slot, generation, options, ended)), end: Some(end) })
        }
        Err(error) => {
            tracing::error!(%error, "not probing");
            None
        }
    }
}

/// The task that probes a generation. Dropping this aborts it.
pub(crate) struct Watch {
    task: JoinHandle<()>,
    end: Option<oneshot::Sender<()>>,
}

impl Watch {
    /// Ends probing after the ping in flight, so that no ping is cut off half-way.
    pub(crate) async fn end(mut self) {
        // The drop of the sender is the signal.
        drop(self.end.take());
        if let Err(error) = (&mut self.task).await {
            tracing::debug!(%error, "the prober's task");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe(slot: Weak<dyn AnySlot>, generation: u64, options: ProbeOptions, mut ended: oneshot::Receiver<()>) {
    let mut strikes = 0;
    loop {
        if within(options.pause(strikes), &mut ended).await.is_ok() {
            return;
        }
        let Some(alive) = slot.upgrade() else { return };
        let Some(question) = Arc::clone(&alive).probe() else { return };
        let asked = Instant::now();
        let answer = answer(question, options.limit).await;
        drop(alive);
        let Err(failure) = answer else {
            strikes = 0;
            continue;
        };
        let Some(slot) = slot.upgrade() else { return };
        // Only silence is a strike. A server that answers is alive, and one that was not asked may be alive.
        strikes = match failure.proof() {
            Proof::Silent => strikes + 1,
            Proof::Refused | Proof::Limited => 0,
            Proof::Unasked => strikes,
        };
        slot.activity().traced.probe_failed(strikes, asked.elapsed()).failed(failure.proof().code(), &failure);
        slot.activity().tell(generation, What::ProbeFailed { strikes, message: OneLine(&failure).to_string() });
        if strikes >= options.strikes {
            return slot.lost(None, generation, Source::from(failure.source));
        }
    }
}

/// The answer to a ping within a limit. The ping runs in a task of its own, so that its panic is an answer too.
pub(crate) async fn answer(ping: BoxFuture<Result<(), Failure>>, limit: Duration) -> Result<(), Failure> {
    let mut task = JoinSet::new();
    task.spawn(ping);
    let started = Instant::now();
    match within(limit, task.join_next()).await {
        Ok(Some(Ok(answer))) => answer,
        Ok(Some(Err(join))) if join.is_panic() => {
            Err(Failure::refused(format!("the ping panicked: {}", panic_message(&*join.into_panic()))))
        }
        Ok(_) => Err(Failure::unasked("the prober has ended")),
        Err(_elapsed) => Err(Failure::transient(NoAnswer(started.elapsed()))),
    }
}
