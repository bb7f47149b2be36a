//! A slot without its type, as its pool and its links use it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::error::{Error, Failure, OneLine, ReconnectAsked, Source};
use crate::base::future::BoxFuture;
use crate::base::holder::Holder;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::condition::Condition;
use crate::lifecycle::event::What;
use crate::lifecycle::leak::Leaks;
use crate::lifecycle::lease::Held;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::slot::acquiring::CONNECTING;
use crate::lifecycle::slot::connecting::Disconnect;
use crate::lifecycle::spans::TaskSpan;
use crate::lifecycle::status::{Counters, NodeStatus, ResourceStatus, State, Usage};
use crate::lifecycle::transition::{LossAction, Recovery};

impl<R: Resource> AnySlot for Slot<R> {
    fn activity(&self) -> &Arc<Activity> {
        &self.life.activity
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn state(&self) -> State {
        self.life.state()
    }

    fn condition(&self) -> Condition {
        self.life.condition()
    }

    fn generation_or_next(&self) -> u64 {
        self.life.generation_or_next()
    }

    fn is_users(&self) -> bool {
        self.pings.is_some()
    }

    fn usage(&self) -> Usage {
        let (handle, turn) = self.life.handle_in_turn();
        let usage = handle.and_then(|handle| self.guarded("usage", || self.resource.usage(&handle)));
        let usage = usage.unwrap_or_default();
        Usage { counters: self.life.count(turn, usage.counters), ..usage }
    }

    fn counted(&self) -> Counters {
        self.life.counted()
    }

    fn status(&self, usage: Usage) -> ResourceStatus {
        let holders = self.holders();
        let Condition { state, since, generation, waiting, failure, .. } = self.life.condition();
        ResourceStatus {
            name: Arc::clone(self.name()),
            kind: self.activity().kind,
            system: self.activity().traced.software(),
            endpoint: Arc::clone(&self.activity().endpoint),
            state,
            since,
            generation,
            leases: holders.iter().filter(|holder| !holder.exclusive).count(),
            checkouts: holders.iter().filter(|holder| holder.exclusive).count(),
            leaks: holders.iter().filter(|holder| holder.suspected).count() + self.life.table.leaks.exceeded(),
            leaks_total: self.life.table.leaks.total(),
            work: self.activity().counters.now(),
            connecting: waiting,
            usage,
            error: failure,
            nodes: vec![NodeStatus { endpoint: Arc::clone(&self.activity().endpoint), state }],
        }
    }

    fn holders(&self) -> Vec<Holder> {
        self.life.table.holders(self.name())
    }

    fn is_held(&self, counts: Held) -> bool {
        self.life.table.is_held(counts)
    }

    fn leaks(&self) -> &Leaks {
        &self.life.table.leaks
    }

    fn suspect(&self, age: Duration) -> Vec<Holder> {
        self.life.table.suspect(self.name(), age)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        Box::pin(self.begin_waiting(self.context.options.acquire_timeout, self.caller(false), CONNECTING))
    }

    fn wait_back(self: Arc<Self>, limit: Duration) -> BoxFuture<Result<(), Error>> {
        Box::pin(self.begin_waiting(limit, self.caller(true), CONNECTING))
    }

    fn try_again(self: Arc<Self>) {
        drop(self.begin_waiting(self.context.options.acquire_timeout, self.caller(false), None));
    }

    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>> {
        let handle = self.life.handle()?;
        let me = Arc::clone(&self);
        Some(self.asked(async move { me.resource.ping(&handle).await }))
    }

    fn probe(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>> {
        let handle = self.life.handle()?;
        let me = Arc::clone(&self);
        Some(self.asked(async move { me.resource.probe(&handle).await }))
    }

    fn lost(self: Arc<Self>, link: Option<u64>, generation: u64, cause: Source) {
        match self.life.lost(link, generation, cause) {
            LossAction::Recover(Recovery { attempt, died_young }) => {
                let pause = self.context.options.retry.pause_after(died_young);
                self.recover(attempt, pause, TaskSpan::none());
            }
            LossAction::Cut => match self.pings {
                // A user's code may block, so it is cut on a thread of its own.
                None => self.cut(),
                Some(_) => {
                    if let Some(runtime) = self.context.runtime.current() {
                        drop(runtime.spawn(self.cut_aside()));
                    }
                }
            },
            LossAction::Noted => {}
        }
    }

    fn progress(&self, attempt: u64, told: Arc<str>) {
        self.life.progress(attempt, told);
    }

    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        if let Some(attempt) = self.life.reconnect(Arc::new(ReconnectAsked)) {
            Arc::clone(&self).recover(attempt, Duration::ZERO, TaskSpan::current());
        }
        self.wait_ready()
    }

    fn refresh(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        Box::pin(self.begin_refreshing())
    }

    fn resize(&self, max: usize) -> Result<(), Error> {
        self.set_size(max)
    }

    fn begin_settling(&self) -> bool {
        self.life.begin_settling()
    }

    fn settled(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move { self.life.settled().await })
    }

    fn begin_close(&self) -> bool {
        self.life.begin_close()
    }

    fn stop_intake(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move {
            if let Some(handle) = self.life.handle() {
                self.resource.stop_intake(&handle).await;
            }
        })
    }

    fn flush(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move {
            let Some(handle) = self.life.handle() else { return };
            if let Err(failure) = self.resource.flush(&handle).await {
                let error = Some(OneLine(&failure).to_string());
                self.life.tell(What::Warned { message: "flushing failed".to_owned(), error });
                self.life.close_error(failure.source.into());
            }
        })
    }

    fn stop_leasing_outside(&self) {
        self.life.stop_leasing_outside();
    }

    fn stop_leasing(&self) {
        self.life.stop_leasing();
    }

    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>> {
        Box::pin(async move {
            // The prober ran until here, since it ends work that is stuck in the drain.
            if let Some(probing) = self.life.take_watch() {
                probing.end().await;
            }
            let closed = match self.life.handle() {
                Some(handle) => self.resource.close(handle).await,
                None => Ok(()),
            };
            // `closed` says that the server heard the disconnect and that nothing was cut short. A lost connection can
            // say neither, even if its driver has no disconnect that could fail.
            match self.life.take_close_error() {
                Some(close_error) => Err(Failure::transient(close_error)),
                None => closed,
            }
        })
    }

    fn cut(&self) {
        if let Some(handle) = self.life.handle() {
            self.guarded("cut", || self.resource.cut(&handle));
        }
    }

    fn finish_close(&self) -> Result<(), String> {
        self.life.finish_close()
    }

    fn has_disconnected(&self) -> bool {
        // Pairs with the `Release` in `Disconnect::drop`, so that closing sees all that the disconnects did.
        self.disconnects.load(Ordering::Acquire) == 0
    }

    fn delay_closing(self: Arc<Self>) -> Box<dyn Send> {
        Box::new(Disconnect::new(&self))
    }

    fn is_closing(&self) -> bool {
        let close = &self.context.close;
        self.activity().is_draining() || close.is_closing() || close.is_lowered()
    }

    fn retire(&self) -> bool {
        self.life.retire()
    }

    fn reopen(&self) {
        self.life.reopen();
    }
}
