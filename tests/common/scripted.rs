//! A resource that does what a test tells it, and records how often each handle was closed.
//!
//! Every field of [`Script`] has a lock of its own. No lock is held while another is taken, or across an `await`.

#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use resource_pool::{Failure, Link, Phase, Resource};

/// The behaviour of a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Does {
    #[default]
    Work,
    Fail,
    Slow,
    Never,
    Panic,
}

impl Does {
    pub(crate) const ALL: [Does; 5] = [Does::Work, Does::Fail, Does::Slow, Does::Never, Does::Panic];
}

/// The calls that the pool makes on the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Connect,
    Recover,
    Ping,
    StopIntake,
    Flush,
    Close,
}

impl Verb {
    pub(crate) const ALL: [Verb; 6] =
        [Verb::Connect, Verb::Recover, Verb::Ping, Verb::StopIntake, Verb::Flush, Verb::Close];
}

/// The duration of a slow verb. It is short beside the tests' limits.
pub(crate) const SLOW: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(crate) struct Script {
    does: Mutex<BTreeMap<Verb, Does>>,
    began: Mutex<BTreeMap<Verb, usize>>,
    link: Mutex<Option<Link>>,
    /// By handle, how often the pool closed it.
    goodbyes: Mutex<Vec<usize>>,
}

impl Script {
    pub(crate) fn set(&self, verb: Verb, does: Does) {
        self.does.lock().insert(verb, does);
    }

    /// Makes every verb work from now on.
    pub(crate) fn clear(&self) {
        self.does.lock().clear();
    }

    /// How often the pool began this verb.
    pub(crate) fn began(&self, verb: Verb) -> usize {
        self.began.lock().get(&verb).copied().unwrap_or(0)
    }

    /// The link that the last connect was given.
    pub(crate) fn link(&self) -> Option<Link> {
        self.link.lock().clone()
    }

    /// By handle, how often the pool closed it.
    pub(crate) fn goodbyes(&self) -> Vec<usize> {
        self.goodbyes.lock().clone()
    }

    async fn act(&self, verb: Verb) -> Result<(), Failure> {
        *self.began.lock().entry(verb).or_default() += 1;
        let does = self.does.lock().get(&verb).copied().unwrap_or_default();
        match does {
            Does::Work => Ok(()),
            Does::Fail => Err(Failure::transient("as scripted")),
            Does::Slow => {
                tokio::time::sleep(SLOW).await;
                Ok(())
            }
            Does::Never => std::future::pending().await,
            // This skips the panic hook. The hook prints a backtrace and so may take longer than a test's limits.
            Does::Panic => std::panic::resume_unwind(Box::new("as scripted")),
        }
    }
}

/// A resource that follows its script. Its handles are numbers, counted from 0.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    pub(crate) script: Arc<Script>,
    /// Whether the resource recovers under the same handle.
    pub(crate) in_place: bool,
}

impl Resource for Scripted {
    type Handle = usize;

    async fn connect(&self, link: &Link) -> Result<usize, Failure> {
        *self.script.link.lock() = Some(link.clone());
        self.script.act(Verb::Connect).await?;
        let mut goodbyes = self.script.goodbyes.lock();
        goodbyes.push(0);
        Ok(goodbyes.len() - 1)
    }

    async fn recover(&self, _: &Link, _: &usize) -> Result<bool, Failure> {
        if self.in_place {
            self.script.act(Verb::Recover).await?;
        }
        Ok(self.in_place)
    }

    async fn ping(&self, _: &usize) -> Result<(), Failure> {
        self.script.act(Verb::Ping).await
    }

    async fn stop_intake(&self, _: &usize) {
        // `stop_intake` has no result, so a scripted failure means nothing here. A scripted panic does.
        let _ = self.script.act(Verb::StopIntake).await;
    }

    async fn flush(&self, _: &usize) -> Result<(), Failure> {
        self.script.act(Verb::Flush).await
    }

    async fn close(&self, handle: usize) -> Result<(), Failure> {
        self.script.goodbyes.lock()[handle] += 1;
        self.script.act(Verb::Close).await
    }

    fn phase(&self) -> Phase {
        Phase::Models
    }
}
