//! [`Admin`], which users make a router or a listener of.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, mpsc};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::Events;
use crate::ResourcePool;
use crate::base::environment::Environment;
use crate::base::secret::{Secret, SecretFile};
use crate::seen::admin::guard::Guard;
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
/// use resource_pool::ResourcePool;
/// use resource_pool::admin::Admin;
///
/// let admin = Admin::new(ResourcePool::global()).token_file("/run/secrets/admin").host("pool.example").router()?;
/// let app = axum::Router::<()>::new().nest("/pool", admin);
/// # drop(app);
/// # Ok(()) }
/// ```
#[must_use = "an admin does nothing until `router` or `listen`"]
pub struct Admin {
    pool: ResourcePool,
    token: Option<TokenSource>,
    hosts: Vec<String>,
    renderer: Option<Renderer>,
    limits: AdminLimits,
}

impl Admin {
    /// An admin of this pool.
    pub fn new(pool: &ResourcePool) -> Self {
        let (token, hosts, renderer, limits) = (None, Vec::new(), None, AdminLimits::default());
        Admin { pool: pool.clone(), token, hosts, renderer, limits }
    }

    /// Sets the token. It replaces an earlier [`token_file`](Self::token_file), and the other way round.
    pub fn token(mut self, token: impl Into<Secret>) -> Self {
        self.token = Some(TokenSource::Text(token.into()));
        self
    }

    /// Reads the token from this file, and again when it is some seconds old, so that it can change.
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
        self.hosts.push(host.into());
        self
    }

    /// Sets the most that the admin serves at the same time.
    pub fn limits(mut self, limits: AdminLimits) -> Self {
        self.limits = limits;
        self
    }

    /// A router to merge into a web service, or to nest at a path. Who reaches it is up to that service, so that it needs
    /// a token.
    ///
    /// Requests count by the address that axum's `ConnectInfo` tells, if the service has that. A router that is served
    /// by the pool's own runtime ends with it, and so cannot show the whole of a close; [`listen`](Self::listen) can.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no token, or it cannot be used; [`Error::Connect`] if the process can have no more
    /// threads.
    pub fn router(self) -> Result<Router, Error> {
        let (routes, thread) = self.open()?;
        if !routes.guard.has_token() {
            let problem = "is missing, and nobody knows who reaches a router; set it by `Admin::token` or \
                 RESOURCE_POOL_ADMIN_TOKEN, or use `Admin::listen`";
            return Err(Error::config("admin.token", problem));
        }
        thread.start(None)?;
        Ok(routes::router(routes))
    }

    /// Listens at this address, on a thread of its own, until the pool has closed. Returns the address, with the port
    /// that the system chose for the port 0.
    ///
    /// # Errors
    /// [`Error::Config`] if the address is not on loopback and there is no token, if it cannot be listened at, or if the
    /// token cannot be used; [`Error::Connect`] if the process can have no more threads.
    pub fn listen(self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        let (routes, thread) = self.open()?;
        let refused = |problem: String| Error::config("admin.listen", problem);
        let addresses = address
            .to_socket_addrs()
            .map_err(|error| refused(format!("is no address ({error}); it has the form 127.0.0.1:9099")))?;
        let addresses: Vec<_> = addresses.collect();
        if !routes.guard.has_token()
            && let Some(open) = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback())
        {
            return Err(refused(format!(
                "{open} can be reached from other machines, and there is no token; set RESOURCE_POOL_ADMIN_TOKEN, or \
                 listen at 127.0.0.1"
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
        let limits = routes.guard.limits.clone();
        thread.start(Some((listener, routes::router(routes), limits)))?;
        Ok(bound)
    }

    fn open(self) -> Result<(Routes, AdminThread), Error> {
        let token = Token::open(self.token, &Environment::process())?;
        let (events, alive) = (self.pool.events(), CancellationToken::new());
        let hub = Hub::new(&self.pool, self.limits.streams);
        let guard = Guard::new(token, self.hosts, self.limits);
        let thread = AdminThread { hub: Arc::clone(&hub), events, alive: alive.clone() };
        Ok((Routes { hub, guard, renderer: self.renderer, _alive: alive.drop_guard() }, thread))
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("hosts", &self.hosts).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The thread of an admin, before it starts.
struct AdminThread {
    hub: Arc<Hub>,
    events: Events,
    /// Set once no router is left.
    alive: CancellationToken,
}

impl AdminThread {
    /// Starts the thread, which follows the pool and serves the listener. It ends with the pool or, without a listener,
    /// with the last router.
    fn start(self, listener: Option<(TcpListener, Router, AdminLimits)>) -> Result<(), Error> {
        let (told, started) = mpsc::channel::<io::Result<()>>();
        let run = move || {
            let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match built {
                Ok(runtime) => runtime,
                Err(error) => return drop(told.send(Err(error))),
            };
            runtime.block_on(async {
                let AdminThread { hub, events, alive } = self;
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
        let spawned = std::thread::Builder::new().name("resource-pool-admin".to_owned()).spawn(run);
        let gone = |_| Err(io::Error::other("the admin's thread ended"));
        spawned.and_then(|_thread| started.recv().unwrap_or_else(gone)).map_err(|error| Error::no_threads(&name, error))
    }
}
