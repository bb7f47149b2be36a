//! The core of a pool, which both facades are views of: its resources by name.
//!
//! No two of the locks `in_vain`, `entries`, `hooks` and `edges` are held at once. The close state, or the runtime's own
//! lock, may be taken under `hooks`. No user code runs under them: a resource is made before `entries` is locked for it,
//! and the closures of gone clients drop once `hooks` is free.

mod changing;

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Weak};

use once_cell::sync::OnceCell;
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;

use crate::base::error::{Error, breaks};
use crate::base::holder::Holder;
use crate::base::process::Process;
use crate::base::runtime::{self, DriverRuntime};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::application::{Application, Hold};
use crate::lifecycle::close::closer::{self, drop_aside};
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::{Hook, HookRun, Pool};
use crate::lifecycle::close::report::{CloseReport, Closing, Reason};
use crate::lifecycle::close::run;
use crate::lifecycle::close::state::CloseState;
use crate::lifecycle::context::Context;
use crate::lifecycle::exit;
use crate::lifecycle::health::{Health, HealthReport};
use crate::lifecycle::health_check::{Found, HealthCheck};
use crate::lifecycle::hooks::Hooks;
use crate::lifecycle::kind::{KindConfig, ResourceConfig};
use crate::lifecycle::leak_scan;
use crate::lifecycle::observers::Observers;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::settings::Settings;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::status::{PoolStatus, State, Usage};

mod closing;

/// All resources of a pool, by name.
pub(crate) struct Registry {
    me: Weak<Registry>,
    pub(crate) context: Arc<Context>,
    health: Arc<HealthCheck>,
    /// The futures and closures given to `run`, for the drain.
    pub(crate) main: Arc<Activity>,
    /// The configuration, or why it cannot be used.
    settings: Result<Settings, Error>,
    /// The names of resources that were asked for and cannot be made.
    in_vain: Mutex<BTreeSet<Arc<str>>>,
    pub(crate) application: Application,
    entries: RwLock<BTreeMap<Arc<str>, Entry>>,
    hooks: Mutex<Hooks>,
    edges: Mutex<Edges>,
    armed: OnceCell<()>,
    is_global: OnceCell<()>,
    /// The state that the facades keep here, such as the default resource of each kind.
    defaults: Box<dyn Any + Send + Sync>,
}

/// The name of a resource, and the resource or why it cannot be made.
type Configured = (Arc<str>, Result<Arc<dyn AnySlot>, Error>);

/// A resource, and the configuration that it was made from. A registered resource has none.
struct Entry {
    slot: Arc<dyn AnySlot>,
    config: Option<ResourceConfig>,
}

impl Entry {
    fn parts(&self) -> (Arc<dyn AnySlot>, Option<ResourceConfig>) {
        (Arc::clone(&self.slot), self.config.clone())
    }
}

impl Registry {
    pub(crate) fn new(
        settings: Result<Settings, Error>,
        defaults: Box<dyn Any + Send + Sync>,
        runtime: Option<tokio::runtime::Handle>,
    ) -> Arc<Self> {
        let options = settings.as_ref().map(|settings| settings.options.clone()).unwrap_or_default();
        let observers = Arc::new(Observers::new(options.events));
        let runtime = DriverRuntime::new(runtime, options.worker_threads);
        let main = Activity::new("main", None, String::new(), &observers);
        let application = Application::new(&observers);
        let context = Arc::new(Context {
            options,
            runtime,
            close: CloseState::default(),
            listeners: Mutex::default(),
            observers,
            process: Process::current(),
            used_elsewhere: OnceCell::new(),
        });
        Arc::new_cyclic(|me| Registry {
            me: me.clone(),
            context,
            health: Arc::default(),
            main,
            settings,
            in_vain: Mutex::default(),
            application,
            entries: RwLock::default(),
            hooks: Mutex::default(),
            edges: Mutex::default(),
            armed: OnceCell::new(),
            is_global: OnceCell::new(),
            defaults,
        })
    }

    /// The state that the facades keep here. They know its type.
    #[inline]
    pub(crate) fn defaults<T: 'static>(&self) -> Result<&T, Error> {
        // Checked first: in a forked child a cell in it may be half-made by a thread of the parent.
        self.context.check_process()?;
        Ok(self.defaults.downcast_ref().unwrap_or_else(|| unreachable!("the facades made it")))
    }

    fn as_pool(self: &Arc<Self>) -> Arc<dyn Pool> {
        Arc::clone(self) as Arc<dyn Pool>
    }

    /// Makes this the process's own pool, whose first use installs the signal handlers.
    pub(crate) fn set_global(&self) {
        self.is_global.get_or_init(|| ());
    }

    /// Prepares all that closing needs, before the first connection, so that every connection can be closed.
    ///
    /// # Errors
    /// [`Error::Connect`] if the process can have no more threads, [`Error::Closing`] once it is ending. The next call
    /// tries again.
    pub(crate) fn arm(&self, name: &Arc<str>) -> Result<(), Error> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        self.armed.get_or_try_init(|| {
            let threads = closer::arm().and_then(|()| runtime::background().map(drop));
            threads.map_err(|error| Error::no_threads(name, error))?;
            if let Some(me) = self.me.upgrade() {
                exit::arm(&me.as_pool(), self.is_global.get().is_some() && self.context.options.signals)?;
                let pool = Weak::clone(&self.me);
                leak_scan::watch(self.context.options.leaks.clone(), move || Some(pool.upgrade()?.slots()));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Checks and prepares the pool before an acquire of a resource that is not ready.
    pub(crate) fn before_connecting(&self, slot: &dyn AnySlot) -> Result<(), Error> {
        if self.context.close.report().is_some() {
            return Err(Error::closed(slot.name()));
        }
        self.settings.iter().for_each(|settings| settings.tell_default(slot.name()));
        self.arm(slot.name())
    }

    /// The resource of this name and kind, made from its configuration on first use.
    pub(crate) fn named<C: KindConfig>(&self, name: &str) -> Result<Arc<Slot<C::Resource>>, Error> {
        self.context.check_process()?;
        if let Some(slot) = self.existing::<C::Resource>(name)? {
            return Ok(slot);
        }
        self.asked(name, |known| match known.get(name) {
            Some(config) => match config.of::<C>() {
                Some(config) => self.with(name, config.clone()),
                None => Err(taken(name, format!("it is a {}, not a {}", config.kind(), C::KIND))),
            },
            None => Err(self.unknown(name)),
        })
    }

    /// Makes a resource that a caller asks for. The health check remembers the name of one that cannot be made.
    fn asked<T>(&self, name: &str, make: impl FnOnce(&Settings) -> Result<T, Error>) -> Result<T, Error> {
        let settings = self.settings()?;
        let made = settings.usable(name).and_then(|()| make(settings));
        if let Err(Error::Config { .. }) = made {
            self.in_vain.lock().insert(Arc::from(name));
        }
        made
    }

    /// The resource of this name, made from this configuration unless it already exists with the same one.
    pub(crate) fn with<C: KindConfig>(&self, name: &str, config: C) -> Result<Arc<Slot<C::Resource>>, Error> {
        let slot = self.open(name, &config.into())?;
        downcast(&slot).ok_or_else(|| taken(name, "it is of another type"))
    }

    fn open(&self, name: &str, config: &ResourceConfig) -> Result<Arc<dyn AnySlot>, Error> {
        self.context.check_process()?;
        check_name(name)?;
        let known = self.settings.as_ref().map_or_else(|_| Cow::default(), Cow::Borrowed);
        if known.get(name).is_some_and(|other| other != config) {
            return Err(taken(name, "it is configured differently"));
        }
        // The code of a user's kind may run here, so no lock is held.
        let taken_by = |(slot, other): (Arc<dyn AnySlot>, Option<ResourceConfig>)| match other.as_ref() == Some(config)
        {
            true => Ok(slot),
            false => Err(taken(name, "a resource with another configuration has this name")),
        };
        if let Some(entry) = self.entry(name) {
            return taken_by(entry);
        }
        let slot =
            config.slot(name, known.remedies(name, config), &self.context).map_err(|error| known.blame(error))?;
        let mut entries = self.entries.write();
        // Another thread may have been faster.
        if let Some(other) = entries.get(name).map(Entry::parts) {
            drop(entries);
            return taken_by(other);
        }
        let entry = Entry { slot: Arc::clone(&slot), config: Some(config.clone()) };
        entries.insert(Arc::clone(slot.name()), entry);
        Ok(slot)
    }

    fn entry(&self, name: &str) -> Option<(Arc<dyn AnySlot>, Option<ResourceConfig>)> {
        self.entries.read().get(name).map(Entry::parts)
    }

    /// Adds a resource of a kind of the user's own.
    pub(crate) fn register<R: Resource>(&self, name: &str, resource: R) -> Result<(), Error> {
        self.check_open()?;
        check_name(name)?;
        let is_configured = self.is_configured(name);
        // Made before the lock, since this asks the resource for its endpoint and phase, which may use the pool.
        let slot = Slot::of_user(name, resource, Arc::clone(&self.context));
        let mut entries = self.entries.write();
        if entries.contains_key(name) || is_configured {
            drop(entries);
            return Err(taken(name, "a resource has this name already"));
        }
        entries.insert(Arc::clone(slot.name()), Entry { slot, config: None });
        Ok(())
    }

    /// The registered resource of this name and type.
    pub(crate) fn get<R: Resource>(&self, name: &str) -> Result<Arc<Slot<R>>, Error> {
        self.existing(name)?.ok_or_else(|| self.unknown(name))
    }

    fn settings(&self) -> Result<&Settings, Error> {
        self.settings.as_ref().map_err(Error::clone)
    }

    fn existing<R: Resource>(&self, name: &str) -> Result<Option<Arc<Slot<R>>>, Error> {
        self.context.check_process()?;
        match self.entries.read().get(name) {
            Some(entry) => downcast(&entry.slot).map(Some).ok_or_else(|| taken(name, "it is of another type")),
            None => Ok(None),
        }
    }

    /// The resource of this name, of any kind, made from its configuration on first use.
    pub(crate) fn slot(&self, name: &str) -> Result<Arc<dyn AnySlot>, Error> {
        self.context.check_process()?;
        match self.made(name) {
            Some(slot) => Ok(slot),
            None => self.asked(name, |settings| self.look_up(name, settings)),
        }
    }

    fn made(&self, name: &str) -> Option<Arc<dyn AnySlot>> {
        self.entries.read().get(name).map(|entry| Arc::clone(&entry.slot))
    }

    fn look_up(&self, name: &str, known: &Settings) -> Result<Arc<dyn AnySlot>, Error> {
        if let Some(slot) = self.made(name) {
            return Ok(slot);
        }
        known.usable(name)?;
        match known.get(name) {
            Some(config) => self.open(name, config),
            None => Err(self.unknown(name)),
        }
    }

    /// Every resource that exists. None in a forked child, where a lock may be held for ever.
    pub(crate) fn slots(&self) -> Vec<Arc<dyn AnySlot>> {
        if !self.context.process.is_current() {
            return Vec::new();
        }
        self.entries.read().values().map(|entry| Arc::clone(&entry.slot)).collect()
    }

    /// Every resource that is configured or registered, or why it cannot be made.
    fn configured(&self) -> Vec<Configured> {
        if let Err(forked) = self.context.check_process() {
            return vec![(Arc::from("the pool"), Err(forked))];
        }
        let settings = match &self.settings {
            Ok(settings) => settings,
            Err(error) => return vec![(Arc::from("configuration"), Err(error.clone()))],
        };
        let names = settings.names().map(Arc::from);
        let mut all: BTreeMap<Arc<str>, _> =
            names.map(|name: Arc<str>| (Arc::clone(&name), self.look_up(&name, settings))).collect();
        all.extend(self.slots().into_iter().map(|slot| (Arc::clone(slot.name()), Ok(slot))));
        all.into_iter().collect()
    }

    pub(crate) fn status(&self) -> PoolStatus {
        self.status_with(AnySlot::usage)
    }

    /// The status of the pool. `usage` tells how full each resource is.
    pub(crate) fn status_with(&self, usage: impl Fn(&dyn AnySlot) -> Usage) -> PoolStatus {
        let slots = self.configured().into_iter().filter_map(|(_, slot)| slot.ok());
        let resources = slots.map(|slot| slot.status(usage(&*slot))).collect();
        let (holds, tasks) = self.application.counts(&self.context);
        let used_elsewhere = self.context.used_elsewhere.get().is_some();
        PoolStatus { closing: self.is_closing(), resources, holds, tasks, used_elsewhere }
    }

    pub(crate) fn holders(&self) -> Vec<Holder> {
        let mut holders: Vec<_> = self.slots().iter().flat_map(|slot| slot.holders()).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// The holders of each resource that has more than this many leases and checkouts out.
    pub(crate) fn leaks(&self, threshold: usize) -> Vec<Holder> {
        self.slots().iter().flat_map(|slot| leak_scan::more_than(threshold, &**slot)).collect()
    }

    pub(crate) fn on_close(&self, name: &str, phase: Phase, run: HookRun) -> Result<(), Error> {
        self.check_open()?;
        self.hook(name, phase, run, |_| self.check_open(), || true)
    }

    /// Holds a client weakly. One that is made while the pool closes is closed too, until the last step has ended.
    pub(crate) fn adopt(
        &self,
        name: &str,
        phase: Phase,
        run: HookRun,
        alive: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let needs_runtime = matches!(run, HookRun::Async(_));
        let check = |hooks: &Hooks| match hooks.are_over() {
            true => Err(Error::closed(&Arc::from(name))),
            // An async closure needs one, even if nothing was ever connected. It starts before the last hooks are taken,
            // so that closing ends it.
            false if needs_runtime => self.context.runtime.handle(&Arc::from(name)).map(drop),
            false => Ok(()),
        };
        self.hook(name, phase, run, check, alive)
    }

    /// Adds a hook. `check` is asked under the lock, since a close takes the hooks once it has begun.
    fn hook(
        &self,
        name: &str,
        phase: Phase,
        run: HookRun,
        check: impl FnOnce(&Hooks) -> Result<(), Error>,
        alive: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Error> {
        self.context.check_process()?;
        check_name(name)?;
        self.arm(&Arc::from(name))?;
        let hook = Hook { name: Arc::from(name), phase, run };
        let mut hooks = self.hooks.lock();
        check(&hooks)?;
        let gone = hooks.add(hook, Box::new(alive));
        drop(hooks);
        drop(drop_aside(gone));
        Ok(())
    }

    /// Runs a task of the application on the pool's runtime.
    pub(crate) fn spawn<F>(
        &self,
        name: &str,
        site: &'static Location<'static>,
        task: impl FnOnce(Closing) -> F,
    ) -> Result<JoinHandle<F::Output>, Error>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.before_task(name)?;
        self.application.spawn(&self.context, name, site, || task(self.closing()))
    }

    /// Runs a thread of the application.
    pub(crate) fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        site: &'static Location<'static>,
        run: impl FnOnce(Closing) -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>, Error> {
        self.before_task(name)?;
        let closing = self.closing();
        self.application.spawn_thread(&self.context, name, site, move || run(closing))
    }

    /// Checks and prepares the pool, so that closing can wait for a task of this name.
    fn before_task(&self, name: &str) -> Result<(), Error> {
        let named = Arc::from(name);
        self.context.check_open(&named)?;
        check_name(name)?;
        self.arm(&named)
    }

    /// Holds closing up. The pool is prepared for a signal and the end of the process, which wait for the hold.
    pub(crate) fn hold(&self, name: impl Into<Cow<'static, str>>, site: &'static Location<'static>) -> Hold {
        if self.armed.get().is_none()
            && let Err(error) = self.arm(&Arc::from("application"))
        {
            tracing::warn!(%error, "the end of this process will not wait for the application");
        }
        self.application.hold(&self.context, name, site)
    }

    pub(crate) fn on_report(&self, listener: impl Fn(&CloseReport) + Send + Sync + 'static) {
        if !self.context.process.is_current() {
            return;
        }
        self.context.listeners.lock().push(Arc::new(listener));
    }

    /// Has `dependant` close before `dependency`.
    pub(crate) fn depends_on(&self, dependant: &str, dependency: &str) -> Result<(), Error> {
        self.context.check_process()?;
        let (first, second) = (self.phase(dependant)?, self.phase(dependency)?);
        if first > second {
            return Err(Error::Order(format!(
                "{dependant:?} closes in phase {first}, after {dependency:?} in phase {second}, so it cannot depend on it"
            )));
        }
        // Their phases order these two already. Resources that share a phase close side by side.
        if first < second {
            return Ok(());
        }
        self.edges.lock().add(dependant, dependency)
    }

    fn phase(&self, name: &str) -> Result<Phase, Error> {
        let hooked = self.hooks.lock().phase(name);
        match hooked {
            Some(phase) => Ok(phase),
            None => Ok(self.slot(name)?.phase()),
        }
    }

    pub(crate) async fn reconnect(&self, name: &str) -> Result<(), Error> {
        self.check_open()?;
        let slot = self.slot(name)?;
        self.arm(slot.name())?;
        slot.reconnect().await
    }

    /// Checks every resource as code and TOML configure it. A bad variable fails only the callers that ask for its
    /// resource.
    pub(crate) fn check_config(&self) -> Result<(), Error> {
        let settings = self.settings()?;
        for name in settings.names() {
            match self.look_up(name, settings) {
                Err(Error::Config { key, .. }) if settings.is_variable(&key) => {}
                checked => drop(checked?),
            }
        }
        Ok(())
    }

    /// Refuses once closing has begun.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.context.check_open(&Arc::from("the pool"))
    }

    /// Whether this resource answers a round trip now. One that was never used does not.
    pub(crate) async fn is_healthy(&self, name: &str) -> bool {
        let Ok(report) = self.check_health().await else { return false };
        report
            .entry(name)
            .is_some_and(|entry| matches!(entry.health, Health::Pass | Health::Warn) && entry.state == State::Ready)
    }

    /// The health report. If there could be no check, it says so.
    pub(crate) async fn health_report(&self) -> HealthReport {
        let checked = self.check_health().await;
        checked.map_or_else(|error| HealthReport::failed(&error), |report| HealthReport::clone(&report))
    }

    async fn check_health(&self) -> Result<Arc<HealthReport>, Error> {
        self.context.check_process()?;
        let me = self.me.upgrade().ok_or_else(|| Error::closed(&Arc::from("the pool")))?;
        let find = move || {
            let found = |(name, slot): Configured| {
                let was_asked_for = slot.is_err() && me.in_vain.lock().contains(&name);
                Found { name, slot, was_asked_for }
            };
            me.configured().into_iter().map(found).collect()
        };
        Arc::clone(&self.health).report(&self.context, find).await
    }

    pub(crate) fn effective_config(&self, name: &str) -> Option<String> {
        self.settings.as_ref().ok()?.effective(name)
    }

    fn unknown(&self, name: &str) -> Error {
        let configured = self.settings.iter().flat_map(Settings::names);
        let mut known: Vec<String> = configured.map(str::to_owned).collect();
        known.extend(self.entries.read().keys().map(|name| name.to_string()));
        known.sort();
        known.dedup();
        Error::UnknownName { name: name.to_owned(), known: known.join(", ") }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: BTreeMap<_, _> = self.slots().iter().map(|slot| (Arc::clone(slot.name()), slot.state())).collect();
        f.debug_struct("ResourcePool").field("resources", &states).finish_non_exhaustive()
    }
}

/// The part that a user's handles to a pool share. When the last handle drops, the pool closes.
pub(crate) struct PoolHandle(pub(crate) Arc<Registry>);

impl Drop for PoolHandle {
    fn drop(&mut self) {
        if !self.0.context.process.is_current() {
            // Leaked: the connections in it are the parent's, and a driver's drop would disconnect them.
            std::mem::forget(Arc::clone(&self.0));
        } else if self.0.armed.get().is_some() {
            // A pool that is not armed never connected, so it has nothing to close.
            let _nobody_waits = run::start(&self.0.as_pool(), Reason::Dropped, None);
        }
    }
}

fn downcast<R: Resource>(slot: &Arc<dyn AnySlot>) -> Option<Arc<Slot<R>>> {
    Arc::clone(slot).as_any().downcast().ok()
}

/// Refuses control characters, since names are printed in tables, line by line.
fn check_name(name: &str) -> Result<(), Error> {
    match name.contains(breaks) {
        true => Err(Error::config(name, "is no name: it has a control character in it")),
        false => Ok(()),
    }
}

fn taken(name: &str, problem: impl Into<String>) -> Error {
    Error::NameTaken { name: name.to_owned(), problem: problem.into() }
}
