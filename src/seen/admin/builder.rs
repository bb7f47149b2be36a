//! [`Admin`], which users make a router or a listener of.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, mpsc};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::Events;
use crate::ResourcePool;
use crate::base::environment::Environment;
use crate::base::secret::{Secret, SecretFile};
use crate::seen::admin::aside::Aside;
use crate::seen::admin::guard::{Guard, GuardRules};
use crate::seen::admin::hub::Hub;
use crate::seen::admin::limits::AdminLimits;
use crate::seen::admin::listener;
use crate::seen::admin::routes::{self, Renderer, Routes};
use crate::seen::admin::token::{Token, TokenSource};

/// The admin of a pool. [`router`](Admin::router) makes a part of a web service of it, and [`listen`](Admin::listen) a
/// listener of its own.
///
/// Without [`token`](Admin::token) and [`token_file`](Admin::token_file), the variables `RESOURCE_POOL_ADMIN_TOKEN` and
/// `RESOURCE_POOL_ADMIN_TOKEN_FILE` have the token. It has at least 16 characters.
///
/// An admin keeps its pool open. The global pool closes at the end of the process all the same, and any pool closes by
/// `close_all`. Its listener goes on while the pool closes, and ends last.
///
/// ```no_run
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::SocketAddr;
///
/// use resource_pool::ResourcePool;
/// use resource_pool::admin::Admin;
///
/// let admin = Admin::new(ResourcePool::global()).token_file("/run/secrets/admin").host("pool.example").router()?;
/// let app = axum::Router::<()>::new().nest("/pool", admin);
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
/// # Ok(()) }
/// ```
#[must_use = "an admin does nothing until `router` or `listen`"]
pub struct Admin {
    pool: ResourcePool,
    token: Option<TokenSource>,
    rules: GuardRules,
    renderer: Option<Renderer>,
    limits: AdminLimits,
}

impl Admin {
    /// An admin of this pool.
    pub fn new(pool: &ResourcePool) -> Self {
        let (token, rules, renderer, limits) = (None, GuardRules::default(), None, AdminLimits::default());
        Admin { pool: pool.clone(), token, rules, renderer, limits }
    }

    /// Sets the token. It replaces an earlier [`token_file`](Self::token_file), and the other way round.
    pub fn token(mut self, token: impl Into<Secret>) -> Self {
        self.token = Some(TokenSource::Text(token.into()));
        self
    }

    /// Reads the token from this file, and again every 4 s, so that it can change. Within 5 s a new token counts, and the
    /// sessions and streams of the old one are over. While the file cannot be read, or has no token that can be used,
    /// the last token stays.
    pub fn token_file(mut self, path: impl Into<SecretFile>) -> Self {
        self.token = Some(TokenSource::File(path.into()));
        self
    }

    /// Serves the metrics that this closure renders, at `/metrics`. It runs for each request and must not block.
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.renderer = Some(Arc::new(render));
        self
    }

    /// Allows requests for a further host, without a port. By default the host is an address, `localhost`, or a name
    /// under `.localhost`. Other names are refused, because anybody's DNS can lead a name here.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.rules.hosts.push(host.into());
        self
    }

    /// Says that a reverse proxy at this address stands between the admin and those who ask. By default there is none.
    /// Several calls say so of several proxies.
    ///
    /// A request from there counts for the last address in its `X-Forwarded-For` that is no such proxy. Each proxy must
    /// add the address of its peer. Unless the program names it, all who come through a proxy share the limits of one
    /// address: the wrong tokens of a stranger have everybody wait who offers a token through it, while sessions that
    /// are open go on.
    ///
    /// With a proxy [`listen`](Self::listen) needs a token on loopback too, because anybody may come through the proxy.
    /// A [`router`](Self::router) needs its service to tell addresses by `ConnectInfo`, or a named proxy does nothing.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), resource_pool::Error> {
    /// use std::net::Ipv4Addr;
    ///
    /// use resource_pool::ResourcePool;
    /// use resource_pool::admin::{ADDRESS, Admin};
    ///
    /// let admin = Admin::new(ResourcePool::global()).token_file("/run/secrets/admin").host("pool.example");
    /// admin.behind_proxy(Ipv4Addr::LOCALHOST).listen(ADDRESS)?;
    /// # Ok(()) }
    /// ```
    pub fn behind_proxy(mut self, proxy: impl Into<IpAddr>) -> Self {
        self.rules.proxies.push(proxy.into().to_canonical());
        self
    }

    /// Sets the most that the admin serves at the same time.
    pub fn limits(mut self, limits: AdminLimits) -> Self {
        self.limits = limits;
        self
    }

    /// A router to nest into a web service at a path, or to merge into one. Who reaches it is up to that service, so that
    /// it needs a token.
    ///
    /// A router to merge has the paths of the [module's table](crate::admin), `/` among them. Merging panics if the service
    /// has a route at one of them. Other paths are answered by the service's fallback.
    ///
    /// Requests count by the address that axum's `ConnectInfo` tells. A service without it has one address for all: the
    /// wrong tokens of one stranger then have everybody wait who offers a token, and
    /// [`behind_proxy`](Self::behind_proxy) does nothing. So serve with
    /// `into_make_service_with_connect_info::<SocketAddr>()`; the log has a warning once if a request comes without.
    ///
    /// A router that is served by the pool's own runtime ends with it, and so cannot show the whole of a close;
    /// [`listen`](Self::listen) can.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no token, or it cannot be used; [`Error::Connect`] if the process can have no more
    /// threads.
    ///
    /// ```no_run
    /// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::net::SocketAddr;
    ///
    /// use axum::Router;
    /// use resource_pool::ResourcePool;
    /// use resource_pool::admin::Admin;
    ///
    /// let admin = || Admin::new(ResourcePool::global()).token_file("/run/secrets/admin").router();
    /// let nested = Router::<()>::new().nest("/pool", admin()?);
    /// let merged = Router::<()>::new().merge(admin()?);
    /// # drop(merged);
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    /// axum::serve(listener, nested.into_make_service_with_connect_info::<SocketAddr>()).await?;
    /// # Ok(()) }
    /// ```
    pub fn router(self) -> Result<Router, Error> {
        let token = Token::open(self.token.clone(), &Environment::process())?;
        if token.is_none() {
            let problem = "is missing, and nobody knows who reaches a router; set it by `Admin::token` or \
                 RESOURCE_POOL_ADMIN_TOKEN, or use `Admin::listen`";
            return Err(Error::config("admin.token", problem));
        }
        let (routes, thread) = self.open(token);
        thread.start(None)?;
        Ok(routes::router(routes))
    }

    /// Listens at this address, on a thread of its own, until the pool has closed. Returns the address, with the port
    /// that the system chose for the port 0.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no token and the address is not on loopback or a proxy is named, if the address cannot
    /// be listened at, or if the token cannot be used; [`Error::Connect`] if the process can have no more threads.
    pub fn listen(self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        let token = Token::open(self.token.clone(), &Environment::process())?;
        let refused = |problem: String| Error::config("admin.listen", problem);
        let addresses = address
            .to_socket_addrs()
            .map_err(|error| refused(format!("is no address ({error}); it has the form 127.0.0.1:9099")))?;
        let addresses: Vec<_> = addresses.collect();
        if token.is_none()
            && let Some(open) = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback())
        {
            return Err(refused(format!(
                "{open} can be reached from other machines, and there is no token; set RESOURCE_POOL_ADMIN_TOKEN, or \
                 listen at 127.0.0.1"
            )));
        }
        if token.is_none()
            && let Some(proxy) = self.rules.proxies.first()
        {
            return Err(refused(format!(
                "anybody can come through the proxy at {proxy}, and there is no token; set RESOURCE_POOL_ADMIN_TOKEN, or \
                 leave `Admin::behind_proxy` out"
            )));
        }
        let bound = TcpListener::bind(&*addresses).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (bound, listener) = bound.map_err(|error| {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let remedy = "choose another port, or end the program that has this one";
            refused(format!("{} cannot be listened at ({error}); {remedy}", addresses.join(", ")))
        })?;
        let (routes, thread) = self.open(token);
        let limits = routes.guard.limits.clone();
        thread.start(Some((listener, routes::whole(routes), limits)))?;
        Ok(bound)
    }

    /// The parts of an admin that nothing refuses any more, so that a refused one leaves nothing in the pool.
    fn open(self, token: Option<Token>) -> (Routes, AdminThread) {
        let (events, alive) = (self.pool.events(), CancellationToken::new());
        let hub = Hub::new(&self.pool, &self.limits);
        let rendering = Aside::new("the renderer", self.limits.patience);
        let guard = Guard::new(token, self.rules, self.limits);
        let thread = AdminThread { hub: Arc::clone(&hub), guard: Arc::clone(&guard), events, alive: alive.clone() };
        (Routes { hub, guard, renderer: self.renderer, rendering, _alive: alive.drop_guard() }, thread)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("rules", &self.rules).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The thread of an admin, before it starts.
struct AdminThread {
    hub: Arc<Hub>,
    guard: Arc<Guard>,
    events: Events,
    /// Tells the thread that no router is left.
    alive: CancellationToken,
}

impl AdminThread {
    /// Starts the thread, which follows the pool and serves the listener. It ends with the pool or, without a listener,
    /// with the last router.
    fn start(self, listener: Option<(TcpListener, Router, AdminLimits)>) -> Result<(), Error> {
        let (told, started) = mpsc::channel::<io::Result<()>>();
        let AdminThread { hub, guard, events, alive } = self;
        let followed = Arc::clone(&hub);
        let run = move || {
            let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match built {
                Ok(runtime) => runtime,
                Err(error) => return drop(told.send(Err(error))),
            };
            runtime.block_on(async {
                let over = hub.is_over.clone();
                tokio::spawn(Arc::clone(&hub).follow(events));
                tokio::spawn(Arc::clone(&hub).tell());
                tokio::spawn(hub.check());
                match listener {
                    None => {
                        let _ = told.send(Ok(()));
                        alive.cancelled().await;
                    }
                    Some((listener, router, limits)) => match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => {
                            let _ = told.send(Ok(()));
                            listener::serve(listener, router, limits, over).await;
                        }
                        Err(error) => drop(told.send(Err(error))),
                    },
                }
            });
        };
        let name = Arc::from("admin");
        let spawn = || std::thread::Builder::new().name("resource-pool-admin".to_owned()).spawn(run);
        let gone = |_| Err(io::Error::other("the admin's thread ended"));
        // A listener must not begin to serve without one who follows its token.
        let spawned = guard.follow_token().and_then(|()| spawn());
        let started = spawned.and_then(|_thread| started.recv().unwrap_or_else(gone));
        started.map_err(|error| Error::no_threads(&name, error))?;
        followed.delay_the_end();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_admin_leaves_nothing_in_the_pool() {
        let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
        let registered = || {
            let context = &pool.registry().context;
            (context.on_report().len(), context.observers.are_there())
        };
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = || Admin::new(&pool);
        for _ in 0..3 {
            admin().listen(taken.local_addr().unwrap()).unwrap_err();
            admin().listen("no address").unwrap_err();
            admin().listen("0.0.0.0:0").unwrap_err();
            admin().token("short").listen("127.0.0.1:0").unwrap_err();
            admin().behind_proxy([127, 0, 0, 1]).listen("127.0.0.1:0").unwrap_err();
            admin().router().unwrap_err();
        }
        assert_eq!(registered(), (0, false));
        admin().listen("127.0.0.1:0").unwrap();
        assert_eq!(registered(), (1, true));
    }
}
