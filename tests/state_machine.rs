//! Runs random histories of a pool with two resources, and compares it after each step with a small model.
//!
//! Time is paused, and the test lets it pass by hand. Tokio would let it pass whenever no task can go on, which is also
//! so while a thread of the pool is about to wake one. A limit of the pool could pass in that moment.

#![allow(missing_docs)]

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::poll;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use resource_pool::config::Options;
use resource_pool::{Error, Health, Lease, Outcome, ResourcePool, State};
use scripted::{Does, Scripted, Verb};

const NAMES: [&str; 2] = ["view", "store"];
/// The number of attempts of one connect.
const ATTEMPTS: usize = 2;
/// The duration of a circuit. It is longer than the time between two steps.
const CIRCUIT: Duration = Duration::from_secs(60);
/// The time that passes at once, and how often it does in one step. In all it is longer than any pause of the pool, and
/// shorter than the limit of an acquire, of a health check and of a step of closing.
const TICK: Duration = Duration::from_millis(1);
const TICKS: usize = 3000;
/// How long a step may wait for the pool's threads, in real time.
const SOON: Duration = Duration::from_secs(30);

/// One step. `at` is 0 for "view", which depends on "store" and connects anew after a loss. It is 1 for "store", which
/// recovers in place.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Acquires a lease and drops it.
    Acquire {
        at: usize,
    },
    /// Acquires a lease and keeps it.
    Hold {
        at: usize,
    },
    /// Drops the lease that has been kept longest.
    Drop,
    /// Begins to acquire and gives up.
    GiveUp {
        at: usize,
    },
    /// Reports the loss of the present generation.
    Lose {
        at: usize,
    },
    /// Reports the loss of another generation.
    LoseOther {
        at: usize,
    },
    /// From now on connecting works, or it fails.
    Connecting {
        at: usize,
        works: bool,
    },
    /// From now on pings are answered, or they fail. Then checks the health.
    Health {
        at: usize,
        works: bool,
    },
    Reconnect {
        at: usize,
    },
    Close {
        at: usize,
    },
    CloseAll,
    Reopen,
    /// Passes more time than any circuit lasts.
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..NAMES.len();
    prop_oneof![
        4 => at.clone().prop_map(|at| Step::Acquire { at }),
        2 => at.clone().prop_map(|at| Step::Hold { at }),
        2 => Just(Step::Drop),
        1 => at.clone().prop_map(|at| Step::GiveUp { at }),
        3 => at.clone().prop_map(|at| Step::Lose { at }),
        1 => at.clone().prop_map(|at| Step::LoseOther { at }),
        3 => (at.clone(), any::<bool>()).prop_map(|(at, works)| Step::Connecting { at, works }),
        1 => (at.clone(), any::<bool>()).prop_map(|(at, works)| Step::Health { at, works }),
        2 => at.clone().prop_map(|at| Step::Reconnect { at }),
        1 => at.prop_map(|at| Step::Close { at }),
        1 => Just(Step::CloseAll),
        2 => Just(Step::Reopen),
        1 => Just(Step::Pass),
    ]
}

/// The state of a resource once everything has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Idle,
    Ready,
    /// The pool tries to recover it, without success.
    Recovering,
    /// The pool has given up. With a circuit it answers the same failure again for a while.
    Broken {
        circuit: bool,
    },
    Closed,
}

/// The answer of an acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Lease { generation: u64, handle: usize },
    Failed,
    Closed,
}

#[derive(Debug, Clone)]
struct Model {
    in_place: bool,
    is: Is,
    generation: u64,
    /// The open handle, which the pool will have to close.
    handle: Option<usize>,
    made: usize,
    works: bool,
    answers_pings: bool,
    held: usize,
}

impl Model {
    fn new(in_place: bool) -> Self {
        Model {
            in_place,
            is: Is::Idle,
            generation: 0,
            handle: None,
            made: 0,
            works: true,
            answers_pings: true,
            held: 0,
        }
    }

    /// A caller or the recovery connects the resource.
    fn connect(&mut self, otherwise: Is) {
        if !self.in_place {
            self.handle = None;
        }
        if self.works {
            self.generation += 1;
            if self.handle.is_none() {
                self.handle = Some(self.made);
                self.made += 1;
            }
            self.is = Is::Ready;
        } else {
            self.is = otherwise;
        }
    }

    fn acquire(&mut self) -> Answer {
        if matches!(self.is, Is::Idle | Is::Broken { circuit: false }) {
            self.connect(Is::Broken { circuit: true });
        }
        match (self.is, self.handle) {
            (Is::Ready, Some(handle)) => Answer::Lease { generation: self.generation, handle },
            (Is::Closed, _) => Answer::Closed,
            _ => Answer::Failed,
        }
    }

    fn lose(&mut self) {
        if self.is == Is::Ready {
            self.connect(Is::Recovering);
        }
    }

    fn reconnect(&mut self) -> Answer {
        match self.is {
            Is::Ready => self.lose(),
            Is::Recovering => self.connect(Is::Recovering),
            _ => self.is = Is::Idle,
        }
        self.acquire()
    }

    /// Whether an attempt may be in flight as closing begins. Closing then has a step although there was nothing to
    /// close.
    fn may_be_in_flight(&self) -> bool {
        self.is == Is::Recovering
    }

    /// Closes the model. Returns whether there was something to close.
    fn close(&mut self) -> bool {
        self.is = Is::Closed;
        self.handle.take().is_some()
    }

    fn state(&self, seen: State) -> bool {
        match self.is {
            Is::Idle => seen == State::Idle,
            Is::Ready => seen == State::Ready,
            Is::Recovering => matches!(seen, State::Broken | State::Connecting),
            Is::Broken { .. } => seen == State::Broken,
            Is::Closed => seen == State::Closed,
        }
    }

    /// By handle, how often the pool closed it.
    fn goodbyes(&self) -> Vec<usize> {
        (0..self.made).map(|handle| usize::from(self.handle != Some(handle))).collect()
    }

    fn health(&self) -> Health {
        match self.is {
            Is::Idle => Health::Unknown,
            Is::Ready if self.answers_pings => Health::Pass,
            _ => Health::Fail,
        }
    }
}

/// The pool, its model, and the leases held.
struct Both {
    pool: ResourcePool,
    resources: [Scripted; 2],
    models: [Model; 2],
    closed: bool,
    held: VecDeque<(usize, Answer, Lease<usize>)>,
}

impl Both {
    fn new() -> Self {
        let mut options = Options::default();
        options.probe.enabled = false;
        options.health.cache = Duration::ZERO;
        options.health.each = Duration::from_secs(5);
        options.health.all = Duration::from_secs(5);
        options.health.slow = Duration::from_secs(5);
        options.circuit = CIRCUIT;
        options.retry.attempts = ATTEMPTS;
        options.retry.base = Duration::from_millis(10);
        options.retry.cap = Duration::from_secs(1);
        // Time passes between two steps, in which a resource may fail very often.
        options.retry.recovery = Duration::MAX;
        options.close.held = Duration::from_millis(1);
        let pool = ResourcePool::builder()
            .environment([("", ""); 0])
            .options(options)
            .runtime(tokio::runtime::Handle::current())
            .build()
            .unwrap();
        let resources = [Scripted::default(), Scripted { in_place: true, ..Scripted::default() }];
        for (name, resource) in NAMES.into_iter().zip(&resources) {
            pool.register(name, resource.clone()).unwrap();
        }
        pool.depends_on("view", "store").unwrap();
        let models = [Model::new(false), Model::new(true)];
        Both { pool, resources, models, closed: false, held: VecDeque::new() }
    }

    async fn acquire(&mut self, at: usize) -> Option<(Answer, Lease<usize>)> {
        let before = self.resources[at].script.began(Verb::Connect);
        let was = self.models[at].clone();
        let expected = self.models[at].acquire();
        let acquired = in_time(self.pool.get::<Scripted>(NAMES[at])).await;
        assert_eq!(answer(&acquired), expected, "{acquired:?}");
        if was.is == Is::Idle && was.handle.is_none() {
            let attempts = if was.works { 1 } else { ATTEMPTS };
            assert_eq!(self.resources[at].script.began(Verb::Connect) - before, attempts, "attempts");
        }
        acquired.ok().map(|lease| (expected, lease))
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Acquire { at } => drop(self.acquire(at).await),
            Step::Hold { at } => {
                if let Some((answer, lease)) = self.acquire(at).await {
                    self.models[at].held += 1;
                    self.held.push_back((at, answer, lease));
                }
            }
            Step::Drop => {
                if let Some((at, taken, lease)) = self.held.pop_front() {
                    assert_eq!(answer(&Ok(lease)), taken, "a lease stays what it was");
                    self.models[at].held -= 1;
                }
            }
            Step::GiveUp { at } => {
                let _connects_all_the_same = self.models[at].acquire();
                let mut acquiring = Box::pin(self.pool.get::<Scripted>(NAMES[at]));
                drop(poll!(acquiring.as_mut()));
            }
            Step::Lose { at } => {
                self.models[at].lose();
                self.lose(at, 0);
            }
            Step::LoseOther { at } => {
                self.lose(at, 1);
            }
            Step::Connecting { at, works } => {
                let does = if works { Does::Work } else { Does::Fail };
                self.resources[at].script.set(Verb::Connect, does);
                self.resources[at].script.set(Verb::Recover, does);
                self.models[at].works = works;
                if self.models[at].is == Is::Recovering {
                    self.models[at].connect(Is::Recovering);
                }
            }
            Step::Health { at, works } => {
                self.resources[at].script.set(Verb::Ping, if works { Does::Work } else { Does::Fail });
                self.models[at].answers_pings = works;
                let report = in_time(self.pool.health_check()).await;
                for (name, model) in NAMES.into_iter().zip(&mut self.models) {
                    assert_eq!(report.entry(name).unwrap().health, model.health(), "{report}");
                    // The health check connects a broken resource again.
                    if matches!(model.is, Is::Broken { .. }) {
                        model.acquire();
                    }
                }
                assert_eq!(report.closing, self.closed);
            }
            Step::Reconnect { at } => {
                let expected = if self.closed { Answer::Closed } else { self.models[at].reconnect() };
                match in_time(self.pool.reconnect(NAMES[at])).await {
                    Ok(()) => assert!(matches!(expected, Answer::Lease { .. }), "{expected:?}"),
                    // The waiter may get the loss that it asked for as its answer.
                    Err(Error::Lost { .. }) => assert_ne!(expected, Answer::Closed),
                    Err(error) => assert_eq!(answer(&Err(error)), expected),
                }
            }
            Step::Close { at } => {
                let report = in_time(self.pool.close(NAMES[at])).await.unwrap();
                if !self.closed {
                    let may = self.models[at].may_be_in_flight();
                    let closes = self.models[at].close();
                    assert!(report.steps.len() == usize::from(closes) || may && report.steps.len() == 1, "{report}");
                    assert!(report.all_closed(), "{report}");
                }
            }
            Step::CloseAll => {
                let report = in_time(self.pool.close_all()).await;
                if !std::mem::replace(&mut self.closed, true) {
                    let steps: Vec<_> = report.steps.iter().map(|step| &*step.name).collect();
                    // Dependants close first.
                    let closes = NAMES.into_iter().zip(&mut self.models).filter_map(|(name, model)| {
                        let was_in_flight = model.may_be_in_flight() && steps.contains(&name);
                        (model.close() || was_in_flight).then_some(name)
                    });
                    let closes: Vec<_> = closes.collect();
                    assert_eq!(steps, closes, "{report}");
                    assert!(report.steps.iter().all(|step| step.outcome == Outcome::Closed), "{report}");
                }
            }
            Step::Reopen => {
                self.pool.reopen().unwrap();
                if std::mem::take(&mut self.closed) {
                    self.models.iter_mut().for_each(|model| model.is = Is::Idle);
                }
            }
            Step::Pass => self.pass().await,
        }
        self.settle().await;
    }

    fn lose(&self, at: usize, off: u64) {
        if let Some(link) = self.resources[at].script.link() {
            let generation = self.pool.status().resource(NAMES[at]).unwrap().generation;
            link.lost(generation - off.min(generation), "lost");
            if off > 0 && self.models[at].is == Is::Ready {
                link.lost(generation + off, "to be lost");
            }
        }
    }

    fn is_settled(&self) -> bool {
        let status = self.pool.status();
        NAMES.iter().zip(&self.models).zip(&self.resources).all(|((name, model), resource)| {
            let seen = status.resource(name).unwrap();
            let is = model.state(seen.state) && seen.generation == model.generation;
            is && seen.connecting == 0 && resource.script.goodbyes() == model.goodbyes()
        })
    }

    async fn pass(&mut self) {
        tokio::time::advance(CIRCUIT * 2).await;
        for model in &mut self.models {
            if let Is::Broken { circuit } = &mut model.is {
                *circuit = false;
            }
        }
    }

    /// Waits until the pool has the model's state, and compares all of it.
    async fn settle(&self) {
        // Tasks that the step has spawned begin in the state that it left.
        tokio::time::advance(TICK).await;
        let settled = std::future::poll_fn(|_| if self.is_settled() { Poll::Ready(()) } else { Poll::Pending });
        // The assertions below tell what has not settled.
        let _in_time = by_hand(settled).await;
        let status = self.pool.status();
        assert_eq!(status.closing, self.closed);
        for ((name, model), resource) in NAMES.iter().zip(&self.models).zip(&self.resources) {
            let seen = status.resource(name).unwrap();
            assert!(model.state(seen.state), "{name} is {:?}, not {:?}", seen.state, model.is);
            assert_eq!((seen.generation, seen.leases, seen.connecting), (model.generation, model.held, 0), "{name}");
            let goodbyes = resource.script.goodbyes();
            assert_eq!(goodbyes, model.goodbyes(), "of {name}'s handles, of which {:?} is in use", model.handle);
        }
    }
}

/// Awaits, and lets time pass by hand meanwhile. Then it waits for the pool's threads alone. `None` if they are late.
async fn by_hand<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let started = Instant::now();
    for tick in 0.. {
        if let Poll::Ready(output) = poll!(future.as_mut()) {
            return Some(output);
        }
        if tick < TICKS {
            tokio::time::advance(TICK).await;
        } else if started.elapsed() < SOON {
            thread::sleep(TICK);
            tokio::task::yield_now().await;
        } else {
            break;
        }
    }
    None
}

async fn in_time<F: Future>(future: F) -> F::Output {
    by_hand(future).await.expect("done in time")
}

fn answer(acquired: &Result<Lease<usize>, Error>) -> Answer {
    match acquired {
        Ok(lease) => Answer::Lease { generation: Lease::generation(lease), handle: **lease },
        Err(Error::Connect(_) | Error::Lost { .. }) => Answer::Failed,
        Err(error) if error.is_closed() => Answer::Closed,
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn pool_is_as_its_model(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            // Tokio keeps a paused clock while a blocking task runs.
            let (clock, kept) = mpsc::channel::<Infallible>();
            let keeping = tokio::task::spawn_blocking(move || kept.recv());
            let mut both = Both::new();
            for step in steps {
                both.step(step).await;
            }
            both.step(Step::CloseAll).await;
            drop(clock);
            assert!(keeping.await.unwrap().is_err(), "the clock is free again");
        });
    }
}
