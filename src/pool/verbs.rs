//! The methods that neither block nor await. Both facades have them.

macro_rules! synchronous_verbs {
    () => {
        /// The same pool with another acquire timeout: `pool.within(limit).mongo()`.
        pub fn within(&self, acquire_timeout: Duration) -> Self {
            Self::over(self.acquirer().within(acquire_timeout))
        }

        /// The current status of every resource.
        pub fn status(&self) -> PoolStatus {
            self.registry().status()
        }

        /// The holders of all leases and checkouts, with the line and the time of each; the oldest first.
        pub fn holders(&self) -> Vec<Holder> {
            self.registry().holders()
        }

        /// The holders of every resource that has more than `threshold` leases and checkouts out. The pool logs this
        /// once, and once more when no more than that are out again.
        pub fn check_leak(&self, threshold: usize) -> Vec<Holder> {
            self.registry().leaks(threshold)
        }

        /// A signal that closing has started: a future, and a flag for loops.
        pub fn closing(&self) -> Closing {
            self.registry().closing()
        }

        /// Whether closing has started.
        pub fn is_closing(&self) -> bool {
            self.registry().is_closing()
        }

        /// Opens the pool again after `close_all`. Resources connect on their next use.
        ///
        /// # Errors
        /// [`Error::Closing`] while the pool is being closed, and once the process is ending.
        pub fn reopen(&self) -> Result<(), Error> {
            self.registry().reopen()
        }

        /// Adds a resource of a kind of one's own. It connects on first use.
        ///
        /// # Errors
        /// [`Error::NameTaken`], [`Error::Closing`], [`Error::Closed`].
        pub fn register<R: Resource>(&self, name: &str, resource: R) -> Result<(), Error> {
            self.registry().register(name, resource)
        }

        /// Sets the most connections that a resource may have from now on, at least 1. If it has more, idle ones are closed
        /// now, and others as they come back. If it may have more, callers who wait get them. `status` shows the new
        /// number. It lasts until the resource is closed; after that the configuration holds again.
        ///
        /// This is the number that `max_size` sets for an [`R2d2`](crate::R2d2), `pool_size` for the connections of
        /// Redis for threads, and `pool_size` and `max_overflow` together for PostgreSQL, MySQL and SQLite. Kinds of
        /// one's own can have it by [`Resource::resize`].
        ///
        /// # Errors
        /// [`Error::UnknownName`]; [`Error::Operation`] for 0, for a kind that cannot do this, and before the first
        /// connect; [`Error::Closing`] and [`Error::Closed`].
        pub fn resize(&self, name: &str, max: usize) -> Result<(), Error> {
            self.registry().slot(name)?.resize(max)
        }

        /// Makes `dependant` close before `dependency`, within their phases.
        ///
        /// # Errors
        /// [`Error::UnknownName`]; [`Error::Order`] for a cycle or an edge against the phases.
        pub fn depends_on(&self, dependant: &str, dependency: &str) -> Result<(), Error> {
            self.registry().depends_on(dependant, dependency)
        }

        /// Runs a closure once, in this phase of closing, on a thread of its own.
        ///
        /// # Errors
        /// [`Error::Closing`], [`Error::Closed`].
        pub fn on_close(
            &self,
            name: &str,
            phase: Phase,
            run: impl FnOnce() -> Result<(), BoxError> + Send + 'static,
        ) -> Result<(), Error> {
            self.registry().on_close(name, phase, HookRun::Blocking(Box::new(run)))
        }

        /// Runs an async closure once, in this phase of closing, in the context of the pool's runtime.
        ///
        /// # Errors
        /// [`Error::Closing`], [`Error::Closed`], and [`Error::Connect`] if the process can have no more threads.
        pub fn on_close_async<F>(
            &self,
            name: &str,
            phase: Phase,
            run: impl FnOnce() -> F + Send + 'static,
        ) -> Result<(), Error>
        where
            F: Future<Output = Result<(), BoxError>> + Send + 'static,
        {
            self.registry().check_open()?;
            // The runtime must be there for the hook, even if nothing was ever connected.
            self.registry().context.runtime.handle(&Arc::from(name))?;
            let run = HookRun::Async(Box::new(|| Box::pin(run())));
            self.registry().on_close(name, phase, run)
        }

        /// Holds closing up until the guard drops: the drain of `close_all`, of a signal and of the process's end waits
        /// for it, up to `close.drain`. `name` stands in the report, with the line of this call. Takes some hundred
        /// nanoseconds.
        ///
        /// ```no_run
        /// # async fn answer() {}
        /// # async fn doc(pool: resource_pool::ResourcePool) {
        /// let _hold = pool.hold("request");
        /// answer().await;
        /// # }
        /// ```
        #[track_caller]
        pub fn hold(&self, name: impl Into<Cow<'static, str>>) -> Hold {
            self.registry().hold(name, Location::caller())
        }

        /// Lets [`readiness`](HealthReport::readiness) fail from now on, so that no more work is sent to this process.
        /// Nothing else changes. [`reopen`](Self::reopen) after closing undoes it.
        pub fn lower_readiness(&self) {
            self.registry().lower_readiness();
        }

        /// Tells systemd that this service serves now, as a service of `Type=notify` must. The pool itself tells systemd
        /// when the process stops, and asks for the time of [`worst_case`](Self::worst_case). Without the variable
        /// `NOTIFY_SOCKET` it does nothing.
        ///
        /// # Errors
        /// When the socket cannot be written.
        #[cfg(all(feature = "systemd", target_os = "linux"))]
        pub fn notify_ready(&self) -> std::io::Result<()> {
            crate::base::systemd::ready()
        }

        /// Runs a background task on the pool's runtime. The closure gets a [`Closing`], which tells the task when to
        /// end. `close_all`, a signal and the end of the process wait for it in the phase tasks, up to
        /// `close.long_step`, and then abort it. Until then it may use every resource, while others may not any more.
        /// A panic is logged. Tasks of one name are one step of the report.
        ///
        /// A task that keeps a clone of the pool keeps the pool open. The global one closes at the end of the process all
        /// the same, and any pool closes by `close_all`.
        ///
        /// # Errors
        /// [`Error::Closing`], [`Error::Closed`], and [`Error::Connect`] if the process can have no more threads.
        ///
        /// ```no_run
        /// # fn doc(pool: resource_pool::ResourcePool) -> Result<(), resource_pool::Error> {
        /// use std::time::Duration;
        ///
        /// pool.spawn("ticker", |closing| async move {
        ///     while !closing.is_set() {
        ///         // work
        ///         tokio::select! {
        ///             () = closing.wait() => {}
        ///             () = tokio::time::sleep(Duration::from_secs(1)) => {}
        ///         }
        ///     }
        /// })?;
        /// # Ok(()) }
        /// ```
        #[track_caller]
        pub fn spawn<F>(
            &self,
            name: &str,
            task: impl FnOnce(Closing) -> F,
        ) -> Result<tokio::task::JoinHandle<F::Output>, Error>
        where
            F: Future<Output: Send> + Send + 'static,
        {
            self.registry().spawn(name, Location::caller(), task)
        }

        /// Runs a background thread, which is awaited as a task of [`spawn`](Self::spawn) is. A thread cannot be
        /// aborted, so one that does not end in time is reported as timed out.
        ///
        /// # Errors
        /// Those of [`spawn`](Self::spawn).
        #[track_caller]
        pub fn spawn_thread<T: Send + 'static>(
            &self,
            name: &str,
            run: impl FnOnce(Closing) -> T + Send + 'static,
        ) -> Result<std::thread::JoinHandle<T>, Error> {
            self.registry().spawn_thread(name, Location::caller(), run)
        }

        /// Holds a weak reference to a client of the user. The client is closed in this phase if it is still alive
        /// then, and forgotten if it was dropped. A client that is made while the pool closes can be adopted too. If its
        /// phase is over by then, it is closed next.
        ///
        /// # Errors
        /// [`Error::Closed`] once the last step of closing has ended, and [`Error::Closing`] if the pool is first used while
        /// the process ends.
        pub fn adopt<T: Send + Sync + 'static>(
            &self,
            name: &str,
            client: &Arc<T>,
            phase: Phase,
            close: impl FnOnce(Arc<T>) -> Result<(), BoxError> + Send + 'static,
        ) -> Result<(), Error> {
            let (client, alive) = (Arc::downgrade(client), Arc::downgrade(client));
            let run = move || client.upgrade().map_or(Ok(()), close);
            self.registry().adopt(name, phase, HookRun::Blocking(Box::new(run)), move || alive.strong_count() > 0)
        }

        /// Holds a weak reference to a client of the user as [`adopt`](Self::adopt) does, and closes it by an async
        /// closure, in the context of the pool's runtime.
        ///
        /// # Errors
        /// Those of [`adopt`](Self::adopt), and [`Error::Connect`] if the process can have no more threads.
        pub fn adopt_async<T: Send + Sync + 'static, F>(
            &self,
            name: &str,
            client: &Arc<T>,
            phase: Phase,
            close: impl FnOnce(Arc<T>) -> F + Send + 'static,
        ) -> Result<(), Error>
        where
            F: Future<Output = Result<(), BoxError>> + Send + 'static,
        {
            let (client, alive) = (Arc::downgrade(client), Arc::downgrade(client));
            let run = HookRun::Async(Box::new(move || {
                Box::pin(async move {
                    match client.upgrade() {
                        Some(client) => close(client).await,
                        None => Ok(()),
                    }
                })
            }));
            self.registry().adopt(name, phase, run, move || alive.strong_count() > 0)
        }

        /// Calls this listener with every report of closing the whole pool, on the closer's thread.
        pub fn on_report(&self, listener: impl Fn(&CloseReport) + Send + Sync + 'static) {
            self.registry().on_report(listener);
        }

        /// Calls this listener with every piece of work and every exclusive checkout that has ended, and the time that it
        /// took. A lease is not measured. From then on the pool reads the clock twice for each of them.
        ///
        /// The listener runs where the work ends, so it must be quick, and must not use the pool. A panic of it is
        /// caught. In a forked child it is not called.
        ///
        /// # Errors
        /// [`Error::Config`] if the pool has such a listener already, such as one of [`metrics`](crate::metrics).
        #[cfg(feature = "metrics")]
        pub fn on_measured(
            &self,
            listener: impl Fn(&crate::lifecycle::measured::Measured<'_>) + Send + Sync + 'static,
        ) -> Result<(), Error> {
            match self.registry().context.observers.set_meter(crate::lifecycle::measured::Meter::new(listener)) {
                true => Ok(()),
                false => Err(Error::config(
                    "on_measured",
                    "this pool measures for a listener already; install its metrics once, and share them",
                )),
            }
        }

        /// The events of all resources from now on: changes of state, losses, waits, timeouts, leaks, health and the
        /// steps of closing. Each call is a subscription of its own.
        pub fn events(&self) -> Events {
            self.registry().context.observers.subscribe().into()
        }

        /// The longest time that closing can take, to size a grace period by.
        pub fn worst_case(&self) -> Duration {
            self.registry().context.options.close.worst_case()
        }
    };
}

pub(crate) use synchronous_verbs;
