//! A MongoDB as a resource: how its client connects, proves that a server answers, and closes.
//!
//! The pool calls these functions on its runtime, and `ping` on the prober's. The driver may wait for ever, so each of
//! its answers is awaited within a limit.
//!
//! `close` ends the sessions on the server, lets operations in flight end or refuses further ones, and shuts the
//! clients down. The shutdowns of the users' client and of the probe's are tasks of their own. They go on where `close`
//! stops waiting for them.
//!
//! There is no lock here. The locks of `MongoShared`, `ServerMonitor` and `ConnectionTracker` are never held over an await.

use std::borrow::Cow;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use mongodb::error::ErrorKind;
use mongodb::options::ClientOptions;
use mongodb::sync;

use crate::base::error::Failure;
use crate::base::runtime::within;
use crate::base::secret::Secret;
use crate::kinds::mongo::client::{UnverifiedClient, for_probing, ping, watched};
use crate::kinds::mongo::config::MongoConfig;
use crate::kinds::mongo::errors::is_silence;
use crate::kinds::mongo::handle::{MongoHandle, MongoShared};
use crate::kinds::mongo::hosts::{Hosts, resolve, shown};
use crate::kinds::mongo::monitor::{Gone, ServerMonitor};
use crate::kinds::mongo::sessions::{OpenSessions, SessionFilter, end_sessions};
use crate::kinds::mongo::tracker::{ConnectionTracker, Nudger, OURS};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A MongoDB in the pool.
#[derive(Debug)]
pub struct MongoResource {
    pub(super) name: String,
    pub(super) config: MongoConfig,
    pub(super) hosts: Hosts,
    /// The passwords, in plain text and as the URI encodes them.
    pub(super) secrets: Vec<Secret>,
}

/// How long the server has to end the sessions of a client. Part of the close step's budget, as are the other limits
/// here.
const ABORT: Duration = Duration::from_secs(1);
/// How long operations have to end by themselves, before further ones are refused. Short, because the drain has waited
/// for them already.
const SOON: Duration = Duration::from_millis(100);
/// How long the driver has to notice that the server is frozen. The default heartbeat and connect timeout, of 1 s each,
/// fit into it.
const NOTICE: Duration = Duration::from_secs(2);
/// How long operations have to give their connections back, before the client is shut down.
const CHECK_IN: Duration = Duration::from_secs(3);
/// How long the driver has to shut down, before the close gives it up.
const SHUTDOWN: Duration = Duration::from_secs(3);

impl Resource for MongoResource {
    type Handle = MongoHandle;

    async fn connect(&self, link: &Link) -> Result<MongoHandle, Failure> {
        let tracker = Arc::new(ConnectionTracker::new(link.clone()));
        let session_tag = ObjectId::new().to_hex();
        let options = self.options().await?;
        let monitor = Arc::new(ServerMonitor::new(Some(link.clone()), options.repl_set_name.clone()));
        let watched = watched(&options, &tracker, &monitor, &session_tag);
        let client = UnverifiedClient::open(watched).map_err(|error| self.failure(error))?;
        let limit = time_to_tell(link);
        tokio::select! {
            pinged = ping(&client.client) => match pinged {
                Ok(()) => {}
                Err(error) if monitor.is_incompatible() => return Err(Failure::permanent(self.told(error))),
                Err(error) if matches!(*error.kind, ErrorKind::ConnectionPoolCleared { .. }) => {
                    // The first connections of the pool have failed and cleared it, and this error does not say why. A
                    // client that opens no connections in advance does.
                    let alone = UnverifiedClient::open(for_probing(&options)).map_err(|error| self.failure(error))?;
                    return Err(self.failure(ping(&alone.client).await.err().unwrap_or(error)));
                }
                Err(error) => return Err(self.unreachable(&options, error).await),
            },
            // The driver would go on trying. The pool decides whether to try again.
            gone = monitor.gone() => return Err(match gone {
                Gone::Down(error) => self.unreachable(&options, error).await,
                Gone::Strangers(text, true) => Failure::permanent(text),
                Gone::Strangers(text, false) => Failure::transient(text),
            }),
            () = tokio::time::sleep(limit) => {
                let unfit = monitor.unfit(client.client.selection_criteria());
                return Err(unfit.unwrap_or_else(|| format!("no answer to a ping within {limit:.1?}")).into());
            }
        }
        monitor.follow(link.generation());
        let client = client.proven();
        let nudger = Nudger::start(&tracker, &client);
        let shared = MongoShared::new(options, tracker, monitor, nudger, session_tag);
        Ok(MongoHandle { sync: sync::Client::from(client.clone()), client, shared: Arc::new(shared) })
    }

    /// Keeps the same client: users have clones of it, and its monitor brings it back.
    async fn recover(&self, link: &Link, lost: &MongoHandle) -> Result<bool, Failure> {
        let monitor = &lost.shared.monitor;
        if within(time_to_tell(link), monitor.any_up()).await.is_err() {
            return Err(match monitor.why_gone() {
                Some(Gone::Down(error)) => Failure::transient(self.told(error)),
                Some(Gone::Strangers(text, _)) => Failure::transient(text),
                None => Failure::transient("no server has answered yet"),
            });
        }
        // The users' monitor is asked, because the probe's own may learn of the server a moment later.
        self.asked(lost, monitor).await?;
        monitor.follow(link.generation());
        Ok(true)
    }

    async fn ping(&self, mongo: &MongoHandle) -> Result<(), Failure> {
        let probe = mongo.shared.probe()?;
        self.asked(mongo, &probe.monitor).await?;
        match mongo.shared.tracker.stalled() {
            0 => Ok(()),
            stalled => Err(Failure::limited(format!(
                "{stalled} operations that were given up, or wait behind such, stand in the driver's queue although \
                 connections are idle; it is being cleared"
            ))),
        }
    }

    /// Ends change streams and other cursors that wait for data, which may never come.
    async fn stop_intake(&self, mongo: &MongoHandle) {
        let operations = mongo.shared.tracker.operations_if_quiet();
        if self.end_sessions(mongo, SessionFilter::Waiting).await == Some(OpenSessions::Nothing) {
            mongo.shared.note_nothing_open(operations);
        }
    }

    async fn close(&self, mongo: MongoHandle) -> Result<(), Failure> {
        let shared = &mongo.shared;
        // These sessions have transactions, cursors that users still hold, and operations that outlived the drain.
        if !shared.has_nothing_open(SOON) && self.end_sessions(&mongo, SessionFilter::All).await.is_none() {
            // The server did not answer. A disconnect would make the driver wait for it, unless the driver takes it for
            // gone.
            let _says_goodbye_then = within(NOTICE, shared.monitor.all_down()).await;
        }
        // `shutdown` ends the monitor, and only the monitor ends an operation in flight on a frozen server. So with
        // such an operation `shutdown` would never return. Nor would it return while users go on starting operations.
        if within(SOON, shared.tracker.quiet()).await.is_err() {
            let _goes_on_with_what_is_left = within(CHECK_IN, shared.refuse_operations(&mongo.client)).await;
        }
        // Each shutdown is a task of its own, so that it goes on where this stops waiting.
        let client = mongo.client.clone();
        let shutdown = tokio::spawn(async move { client.shutdown().immediate(true).await });
        let probe =
            shared.close_probe().map(|probe| tokio::spawn(async move { probe.shutdown().immediate(true).await }));
        if within(SHUTDOWN, shutdown).await.is_err() {
            let left = shared.tracker.in_use();
            return Err(Failure::transient(format!(
                "the driver did not shut down within {SHUTDOWN:?}, with {left} operations under way"
            )));
        }
        shared.nudger.end();
        if let Some(probe) = probe {
            let _ends_by_itself = within(SOON, probe).await;
        }
        Ok(())
    }

    fn endpoint(&self) -> String {
        let (scheme, hosts, database) = match &self.hosts {
            Hosts::Known(options) => ("mongodb", shown(&options.hosts), &options.default_database),
            Hosts::Srv { host, database, .. } => ("mongodb+srv", host.clone(), database),
        };
        format!("{scheme}://{hosts}/{}", database.as_deref().unwrap_or(&self.config.database))
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, mongo: &MongoHandle) -> Usage {
        let max = mongo.shared.options.max_pool_size.map(|max| max as usize);
        let min_idle = mongo.shared.options.min_pool_size.map(|min| min as usize);
        Usage { max, min_idle, max_idle: max, ..mongo.shared.tracker.usage() }
    }
}

impl MongoResource {
    /// Pings over the probe's client. Pings over the users' client instead where a server that answers has no room for
    /// the probe.
    async fn asked(&self, mongo: &MongoHandle, monitor: &ServerMonitor) -> Result<(), Failure> {
        let shared = &mongo.shared;
        let probe = shared.probe()?.client;
        // Without a server that fits, the driver would go on looking for one, and the ping would wait with it.
        if let (true, Some(unfit)) = (shared.monitor.is_up(), shared.monitor.unfit(probe.selection_criteria())) {
            return Err(Failure::refused(unfit));
        }
        let error = tokio::select! {
            pinged = ping(&probe) => match pinged {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            error = monitor.all_down() => error,
        };
        if !is_silence(&error) || !shared.monitor.is_up() {
            return Err(self.verdict(error));
        }
        if within(SOON, shared.tracker.has_idle()).await.is_err() {
            // The users' client would have to open a connection, which would fail as it did here. That would end the
            // operations that wait for one.
            return Err(Failure::unasked(self.told(error)));
        }
        OURS.scope((), ping(&mongo.client)).await.map_err(|error| self.verdict(error))
    }

    /// The options of a new client, with the password that its file has now.
    async fn options(&self) -> Result<ClientOptions, Failure> {
        let config = self.config.current().await?;
        let hosts = match &config {
            Cow::Borrowed(_) => None,
            Cow::Owned(config) => Some(config.client_options(&self.name).map_err(Failure::permanent)?),
        };
        match hosts.as_ref().unwrap_or(&self.hosts) {
            Hosts::Known(options) => Ok(ClientOptions::clone(options)),
            Hosts::Srv { uri, .. } => {
                let options = resolve(uri.expose()).await.map_err(|error| self.failure(error))?;
                config.completed(&self.name, options).map_err(Failure::permanent)
            }
        }
    }

    /// Ends sessions on the server, and answers whether there were any. `None` if the server did not answer in time.
    async fn end_sessions(&self, mongo: &MongoHandle, which: SessionFilter) -> Option<OpenSessions> {
        let shared = &mongo.shared;
        // The probe's client asks, because users may have all other connections in use.
        let ended = async {
            let probe = shared.probe()?;
            let has_no_room = async {
                let error = probe.monitor.all_down().await;
                if shared.monitor.is_up() { error } else { pending().await }
            };
            let ended = tokio::select! {
                ended = end_sessions(&probe.client, &shared.tracker.link, &shared.session_tag, which) => ended,
                error = has_no_room => Err(error),
            };
            ended.map_err(|error| self.failure(error))
        };
        match within(ABORT, ended).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the server goes on with what was begun there");
                Some(OpenSessions::Something)
            }
            Err(_elapsed) => None,
        }
    }
}

/// The time after which an attempt to connect tells its findings, shortly before its own limit.
fn time_to_tell(link: &Link) -> Duration {
    link.limit().mul_f32(0.9)
}
