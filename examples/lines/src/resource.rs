//! The resource, and its handle: what is idle, how many there may be, and the switch that they all are under.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use resource_pool::adapter::{Claim, Quota, Tls, host_port};
use resource_pool::{Error, Failure, KillSwitch, Link, Phase, Resource, Usage};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connection::Open;
use crate::{Connection, LinesConfig};

/// Makes connections to one server of lines.
#[derive(Debug, Clone)]
pub struct LinesResource {
    config: Arc<LinesConfig>,
    tls: Tls,
}

impl LinesResource {
    pub(crate) fn new(config: LinesConfig, tls: Tls) -> Self {
        LinesResource { config: Arc::new(config), tls }
    }

    /// A connection that has proved that the server answers, and serves this user.
    async fn open(&self, switch: &KillSwitch) -> Result<Open, Failure> {
        let LinesConfig { host, port, user, password, .. } = &*self.config;
        let stream = self.tls.dial(host, *port, LinesConfig::KEEPALIVE, switch).await.map_err(Failure::from)?;
        let mut open = Open::new(stream, switch);
        let login = user.as_ref().zip(password.as_ref());
        let login = login.map(|(user, password)| format!("AUTH {user} {}", password.expose()));
        for line in login.iter().map(String::as_str).chain(["PING"]) {
            let answer = open.ask(line).await.map_err(Failure::from)?;
            match answer.strip_prefix('-') {
                None => {}
                Some(told) if told.starts_with("WRONGPASS") || told.starts_with("NOAUTH") => {
                    return Err(Failure::permanent(told));
                }
                Some(told) if told.starts_with("NOPERM") => return Err(Failure::limited(told)),
                // It lives, and cannot serve now.
                Some(told) => return Err(Failure::refused(told)),
            }
        }
        Ok(open)
    }
}

impl Resource for LinesResource {
    type Handle = Lines;

    async fn connect(&self, link: &Link) -> Result<Lines, Failure> {
        let switch = KillSwitch::new();
        let first = self.open(&switch).await?;
        let size = self.config.pool_size;
        Ok(Lines(Arc::new(Inner {
            resource: self.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            quota: Quota::new(link, size, "connections", "pool_size"),
            places: Arc::new(Semaphore::new(size)),
            state: Mutex::new(State { switch, idle: vec![first] }),
        })))
    }

    async fn recover(&self, _: &Link, lost: &Lines) -> Result<bool, Failure> {
        let switch = KillSwitch::new();
        let first = self.open(&switch).await?;
        *lost.0.state.lock() = State { switch, idle: vec![first] };
        Ok(true)
    }

    async fn ping(&self, _: &Lines) -> Result<(), Failure> {
        // A connection of its own, so that no user waits for it.
        self.open(&KillSwitch::new()).await.map(drop)
    }

    async fn close(&self, lines: Lines) -> Result<(), Failure> {
        // From here on whoever still has a connection is told that the resource is closed.
        self.cut(&lines);
        lines.0.places.close();
        lines.0.state.lock().idle.clear();
        Ok(())
    }

    fn cut(&self, lines: &Lines) {
        let switch = lines.0.state.lock().switch.clone();
        switch.cut_because(lines.0.link.why_cut());
    }

    fn endpoint(&self) -> String {
        let LinesConfig { host, port, tls, .. } = &*self.config;
        format!("{}://{}", if tls.is_some() { "liness" } else { "lines" }, host_port(host, *port))
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, lines: &Lines) -> Usage {
        let Inner { resource, places, state, .. } = &*lines.0;
        let (max, idle) = (resource.config.pool_size, state.lock().idle.len());
        let in_use = max - places.available_permits();
        let mut usage = Usage::default();
        (usage.max, usage.in_use, usage.idle, usage.open) = (Some(max), Some(in_use), Some(idle), Some(in_use + idle));
        usage
    }
}

/// The handle, which a lease derefs to.
#[derive(Clone)]
pub struct Lines(Arc<Inner>);

struct Inner {
    resource: LinesResource,
    link: Link,
    runtime: Handle,
    quota: Arc<Quota>,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

/// One generation's.
struct State {
    switch: KillSwitch,
    idle: Vec<Open>,
}

impl Lines {
    /// Checks a connection out.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if none is free within the acquire timeout; [`Error::Lost`] while the connection
    /// is not back; [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the place back.
    #[track_caller]
    pub fn connection(&self) -> impl Future<Output = Result<Connection, Error>> + Send + use<> {
        let (me, claim) = (self.clone(), Claim::shared());
        async move { me.check_out(claim).await }
    }

    pub(crate) async fn check_out(self, claim: Claim) -> Result<Connection, Error> {
        let Inner { link, quota, state, .. } = &*self.0;
        let permit = self.place(claim).await?;
        link.ready().await?;
        let lease = link.lease::<LinesResource, Lines>(quota.claim(claim)).ok_or_else(|| self.closed())?;
        let (idle, switch) = {
            let mut state = state.lock();
            (state.idle.pop(), state.switch.clone())
        };
        let (open, permit) = match idle.filter(Open::is_fit) {
            Some(open) => (open, permit),
            None => self.open(switch, permit).await?,
        };
        Ok(Connection { open: Some(open), lease, _permit: permit })
    }

    /// On the pool's runtime, where the connection lives whoever opened it. The place goes along, so that it is not free while an
    /// opening that nobody waits for goes on.
    async fn open(
        &self,
        switch: KillSwitch,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Open, OwnedSemaphorePermit), Error> {
        let Inner { resource, link, runtime, .. } = &*self.0;
        let (resource, limit) = (resource.clone(), link.acquire_timeout());
        let opening = runtime.spawn(async move {
            let opened = tokio::time::timeout(limit, resource.open(&switch)).await;
            (opened.unwrap_or_else(|elapsed| Err(Failure::transient(elapsed))), permit)
        });
        let (opened, permit) = opening.await.map_err(|_the_runtime_ended| self.closed())?;
        let open = opened.map_err(|failure| {
            let source = failure.into_source();
            let (resource, endpoint) = (Arc::clone(link.name()), Arc::clone(link.endpoint()));
            match Error::behind(&*source) {
                Some(why_cut) => why_cut.clone(),
                None => Error::Lost { resource, endpoint, source: source.into() },
            }
        })?;
        Ok((open, permit))
    }

    /// Waits for a place, and says who has them if none comes free.
    async fn place(&self, claim: Claim) -> Result<OwnedSemaphorePermit, Error> {
        let Inner { link, quota, places, runtime, .. } = &*self.0;
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        let wait = quota.wait(claim)?;
        let (place, limit) = (Arc::clone(places).acquire_owned(), link.acquire_timeout());
        // The pool's runtime has the clock, whoever waits.
        let timed = runtime.spawn(async move { tokio::time::timeout(limit, place).await });
        match timed.await {
            Ok(Ok(Ok(place))) => Ok(place),
            Ok(Err(_elapsed)) => Err(wait.timed_out("", None)),
            Ok(Ok(Err(_))) | Err(_) => Err(self.closed()),
        }
    }

    fn closed(&self) -> Error {
        Error::Closed { resource: Arc::clone(self.0.link.name()) }
    }

    pub(crate) fn give_back(&self, open: Open) {
        let mut state = self.0.state.lock();
        // Under the lock, or closing might have looked already.
        if open.is_fit() {
            state.idle.push(open);
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lines").field(self.0.link.name()).finish()
    }
}
