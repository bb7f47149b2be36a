//! The registry's part in closing: the verbs that begin it, and the pool as closing sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Registry;
use crate::base::error::Error;
use crate::base::holder::Holder;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::application::Application;
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::pool::{Hook, Pool};
use crate::lifecycle::close::report::{CloseReport, Closing, Outcome, Reason};
use crate::lifecycle::close::run;
use crate::lifecycle::close::state::CloseRun;
use crate::lifecycle::context::Context;
use crate::lifecycle::exit;
use crate::lifecycle::status::{PoolStatus, Usage};

impl Registry {
    /// The flag that closing sets. In a forked child it is set from the start.
    pub(crate) fn closing(&self) -> Closing {
        if self.context.process.is_current() {
            return self.context.close.closing();
        }
        let closing = CancellationToken::new();
        closing.cancel();
        Closing(closing)
    }

    pub(crate) fn lower_readiness(&self) {
        // In a forked child the lock may be held for ever, and there readiness fails anyway.
        if self.context.process.is_current() {
            self.context.close.lower_readiness();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        !self.context.process.is_current() || self.context.close.is_closing()
    }

    /// Starts closing the whole pool, unless that was started before.
    ///
    /// # Errors
    /// If the caller cannot wait for the report: [`Error::Forked`], and [`Error::Closing`] on a thread that the close
    /// itself runs on.
    pub(crate) fn start_closing(
        self: &Arc<Self>,
        reason: Reason,
        deadline: Option<Duration>,
    ) -> Result<Arc<CloseRun>, Error> {
        self.context.check_process()?;
        run::start(&self.as_pool(), reason, deadline)
    }

    /// Closes the pool. Returns its report, or one that says why there is none.
    pub(crate) async fn close_all(self: &Arc<Self>, reason: Reason, deadline: Option<Duration>) -> CloseReport {
        match self.start_closing(reason, deadline) {
            Ok(run) => CloseReport::clone(&*run.wait().await),
            Err(error) => CloseReport::of(&**self, reason, Outcome::Failed(error.to_string())),
        }
    }

    pub(crate) async fn close_one(self: &Arc<Self>, name: &str) -> Result<Arc<CloseReport>, Error> {
        let slot = self.slot(name)?;
        Ok(self.start_closing_one(&slot)?.wait().await)
    }

    /// Starts closing this resource, unless that is under way.
    ///
    /// # Errors
    /// [`Error::Closed`] if its name is another resource's by now, and [`Error::Closing`] on a thread that the close
    /// itself runs on.
    pub(super) fn start_closing_one(self: &Arc<Self>, slot: &Arc<dyn AnySlot>) -> Result<Arc<CloseRun>, Error> {
        // Closes are known by name.
        match self.made(slot.name()) {
            Some(known) if Arc::ptr_eq(&known, slot) => {
                run::start_one(&self.as_pool(), Arc::clone(slot), Reason::Requested)
            }
            _ => Err(Error::closed(slot.name())),
        }
    }

    /// Opens the pool again after `close_all`.
    pub(crate) fn reopen(&self) -> Result<(), Error> {
        self.context.check_process()?;
        if self.context.close.report().is_some() {
            for slot in self.slots() {
                slot.reopen();
            }
        }
        self.context.close.reopen(exit::is_ending)?;
        self.hooks.lock().begin_again();
        Ok(())
    }
}

/// The pool as closing and the end of the process use it.
impl Pool for Registry {
    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn main(&self) -> &Arc<Activity> {
        &self.main
    }

    fn application(&self) -> &Application {
        &self.application
    }

    fn slots(&self) -> Vec<Arc<dyn AnySlot>> {
        Registry::slots(self)
    }

    fn holders(&self) -> Vec<Holder> {
        Registry::holders(self)
    }

    fn status_with(&self, usage: fn(&dyn AnySlot) -> Usage) -> PoolStatus {
        Registry::status_with(self, usage)
    }

    fn take_hooks(&self, is_last: bool) -> (Vec<Hook>, Vec<Hook>) {
        self.hooks.lock().take(is_last)
    }

    fn edges(&self) -> Edges {
        self.edges.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::base::error::Failure;
    use crate::base::runtime::park_on;
    use crate::lifecycle::close::phase::Phase;
    use crate::lifecycle::close::pool::HookRun;
    use crate::lifecycle::link::Link;
    use crate::lifecycle::resource::Resource;
    use crate::lifecycle::settings::Settings;
    use crate::lifecycle::status::State;

    /// A resource whose connect never ends, and delays closing until the receiver drops what it is sent.
    struct Starts(mpsc::Sender<Option<Box<dyn Send>>>);

    impl Resource for Starts {
        type Handle = ();

        async fn connect(&self, link: &Link) -> Result<(), Failure> {
            self.0.send(link.delay_closing()).unwrap();
            link.going_on("starting", std::future::pending()).await
        }

        async fn ping(&self, (): &()) -> Result<(), Failure> {
            Ok(())
        }

        async fn close(&self, (): ()) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// The thread that starts a process goes on although the attempt is given up.
    #[test]
    fn closing_waits_for_what_an_attempt_has_begun() {
        let mut settings = Settings::default();
        settings.options.close.step = Duration::from_millis(20);
        let registry = Registry::new(Ok(settings), Box::new(()), None);
        registry.arm(&Arc::from("starts")).unwrap();
        let (begin, begun) = mpsc::channel();
        let slot = registry.made_of("starts", "test", Starts(begin), |_, _| true).unwrap();
        AnySlot::try_again(Arc::clone(&slot) as Arc<dyn AnySlot>);
        let delay = begun.recv().unwrap();
        assert!(delay.is_some());
        let closing = registry.start_closing(Reason::Requested, None).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while AnySlot::state(&*slot) != State::Closed {
            assert!(Instant::now() < until, "it does not close");
            std::thread::yield_now();
        }
        assert!(!slot.has_disconnected() && closing.report().is_none());
        drop(delay);
        assert_eq!(park_on(closing.wait()).steps.len(), 1);
    }

    /// Nobody would end a runtime that starts once the last hooks are taken.
    #[test]
    fn a_client_that_is_refused_starts_no_runtime() {
        let registry = Registry::new(Ok(Settings::default()), Box::new(()), None);
        let adopt = |name| {
            let run = HookRun::Async(Box::new(|| Box::pin(async { Ok(()) })));
            registry.adopt(name, Phase::Files, run, || true)
        };
        drop(registry.take_hooks(true));
        let refused = adopt("late").unwrap_err();
        assert!(matches!(refused, Error::Closed { .. }), "{refused}");
        assert!(registry.context.runtime.current().is_none());
        registry.hooks.lock().begin_again();
        adopt("in time").unwrap();
        assert!(registry.context.runtime.current().is_some());
    }
}
