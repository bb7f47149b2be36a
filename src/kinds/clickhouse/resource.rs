//! A ClickHouse in the pool: connecting, asking whether it lives, bringing it back, and closing.
//!
//! The pool calls these functions on its runtime, and `ping` and `probe` on the prober's. There are two transports. The
//! users' traffic runs on the pool's runtime, and pings and cancelling run on the prober's.
//!
//! `recover` keeps the client. It waits until the server has proved itself, and then lets the traffic's transport open
//! connections again.
//!
//! There is no lock here; that of `Transport` is never held over an await. The one task that begins here pings over a
//! connection of the users', which has to be read to its end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::clickhouse::error::Error as DriverError;
use hyper::Uri;
use hyper::body::Body;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::base::error::Failure;
use crate::base::runtime::{self, within};
use crate::kinds::clickhouse::blocking;
use crate::kinds::clickhouse::cancel::Cancel;
use crate::kinds::clickhouse::config::ClickHouseConfig;
use crate::kinds::clickhouse::errors::{UNCHANGEABLE, failure, has_code, is_foreign, is_unreachable};
use crate::kinds::clickhouse::handle::{Connected, Inner};
use crate::kinds::clickhouse::inserter::Inserters;
use crate::kinds::clickhouse::transport::{HttpClient, Purpose, Transport};
use crate::kinds::clickhouse::verbs::ClickHouseSession;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::net::count::none;
use crate::net::tls::Tls;

/// A ClickHouse in the pool.
#[derive(Debug)]
pub struct ClickHouseResource {
    config: Arc<ClickHouseConfig>,
    tls: Tls,
}

impl Resource for ClickHouseResource {
    type Handle = Connected;

    async fn connect(&self, link: &Link) -> Result<Connected, Failure> {
        let config = self.current().await?;
        let (settings, version) = match self.introduce(&config, link).await {
            Ok(proved) => proved,
            Err(failure) => {
                let ClickHouseConfig { host, port, .. } = &*self.config;
                return Err(self.tls.or_wanted(failure, host, *port, "use https://").await);
            }
        };
        let validation = self.config.validation.unwrap_or(version >= KNOWS_NAMES_AND_TYPES);
        let prober = runtime::background()?;
        let probe = self.transport(&config, link, prober.clone(), Purpose::Probe, None);
        let pings = probe.client(&BTreeMap::new());
        let cancel = self.config.cancel_dropped.then(|| Cancel::start(pings.clone(), prober));
        let traffic = self.transport(&config, link, Handle::current(), Purpose::Traffic, cancel);
        let client = traffic.client(&settings).with_validation(validation);
        let session = Arc::new(ClickHouseSession {
            client: client.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            config,
            inserters: Inserters::default(),
        });
        let ping_url = format!("{}ping", self.config.base_url());
        Ok(Connected(Arc::new(Inner {
            threads: blocking::ClickHouse::new(Arc::clone(&session)),
            session,
            settings,
            pings,
            raw_pings: probe.http(),
            shared_pings: client.clone().with_url(&ping_url),
            ping_uri: ping_url.parse().map_err(Failure::permanent)?,
            client,
            traffic,
            probe,
        })))
    }

    async fn recover(&self, link: &Link, lost: &Connected) -> Result<bool, Failure> {
        let config = self.current().await?;
        if config.password != lost.0.session.config.password {
            // The lost clients send the old password with each request, so there have to be new ones.
            return Ok(false);
        }
        // Users wait until the server has proved itself, because a query that is sent before that could hang.
        self.prove(&config, link, &lost.0.settings).await.map_err(|error| {
            // While a server restarts, something else may answer in its place.
            let is_foreign = is_foreign(&error);
            let failure = failure(&self.config, error, &lost.0.settings);
            let permanent = failure.is_permanent() && !is_foreign;
            failure.with_permanent(permanent)
        })?;
        lost.0.traffic.restore();
        Ok(true)
    }

    async fn ping(&self, connected: &Connected) -> Result<(), Failure> {
        let Inner { pings, .. } = &*connected.0;
        // A server with more work than it can take is slow to take a query. So after a while an easier question counts
        // too.
        let life = async {
            tokio::time::sleep(PATIENCE).await;
            self.probe(connected).await
        };
        tokio::select! {
            // The query's answer comes first, because it tells more than a sign of life does.
            biased;
            answer = pings.query("SELECT 1").execute() => match answer {
                // Perhaps there was only no room for one more connection.
                Err(DriverError::Network(_)) => self.probe(connected).await,
                answer => answer.map_err(|error| failure(&self.config, error, &BTreeMap::new())),
            },
            Ok(()) = life => Ok(()),
        }
    }

    /// Asks whether the server lives, at no cost to the user's quota.
    async fn probe(&self, connected: &Connected) -> Result<(), Failure> {
        let Inner { raw_pings, ping_uri, shared_pings, traffic, .. } = &*connected.0;
        // An answer to another caller proves as well that the server lives.
        let answered = traffic.answered.notified();
        tokio::pin!(answered);
        answered.as_mut().enable();
        let asked = async {
            let Err(error) = ask(raw_pings, ping_uri).await else { return Ok(()) };
            let error = DriverError::from(error);
            let count = |count: &watch::Sender<usize>| *count.borrow();
            if count(&traffic.open) > count(&traffic.busy) {
                // Without room for one more connection, an idle connection of the users' is enough. The ping is a task
                // of its own, so that it is read to its end and the connection can be used again.
                let _answered_or_not = tokio::spawn(within(PATIENCE, shared_pings.query("SELECT 1").execute())).await;
            }
            match (count(&traffic.busy) > 0, is_unreachable(&error)) {
                // A server or proxy that is full hangs up, while users still wait for their answers.
                (true, false) => return Err(Failure::unasked(error)),
                (true, true) => tokio::time::sleep(PATIENCE).await,
                (false, _) => {}
            }
            Err(Failure::transient(error))
        };
        tokio::select! {
            // `answered` comes first, because the question's own answer may be an error although the server has
            // answered another one.
            biased;
            () = answered => Ok(()),
            answer = asked => answer,
        }
    }

    async fn flush(&self, connected: &Connected) -> Result<(), Failure> {
        let ClickHouseSession { link, inserters, config, .. } = &*connected.0.session;
        inserters.flush(link, config.flush_timeout).await
    }

    async fn close(&self, connected: Connected) -> Result<(), Failure> {
        let Inner { traffic, probe, .. } = &*connected.0;
        // Calls in flight end here. The drain has waited for them.
        traffic.end();
        probe.end();
        let gone = async { tokio::join!(none(&traffic.open), none(&probe.open)) };
        match runtime::within(LINGER, gone).await {
            Ok(_) => Ok(()),
            Err(_elapsed) => {
                let left = *traffic.open.borrow() + *probe.open.borrow();
                Err(Failure::transient(format!("{left} connections are held by calls that nobody polls any more")))
            }
        }
    }

    fn cut(&self, connected: &Connected) {
        connected.0.traffic.cut();
    }

    fn endpoint(&self) -> String {
        format!("{}{}", self.config.base_url(), self.config.database)
    }

    fn phase(&self) -> Phase {
        Phase::ClickHouse
    }

    fn usage(&self, connected: &Connected) -> Usage {
        let Transport { open, busy, waiting, .. } = &*connected.0.traffic;
        let (open, busy) = (*open.borrow(), *busy.borrow());
        Usage {
            max: Some(self.config.max_connections),
            open: Some(open),
            in_use: Some(busy),
            idle: Some(open.saturating_sub(busy)),
            waiting: Some(*waiting.borrow()),
            max_idle: Some(self.config.max_idle),
            ..Usage::default()
        }
    }
}

/// The first version that knows both `RowBinaryWithNamesAndTypes` and the setting by which the
/// driver asks for a table's columns.
const KNOWS_NAMES_AND_TYPES: (u32, u32) = (21, 11);

/// The time that connections get to end once they are cut, which takes them microseconds.
const LINGER: Duration = Duration::from_secs(1);

/// The time that a ping gives the server to answer another caller. It is below the 500 ms that a health check may
/// take by default.
const PATIENCE: Duration = Duration::from_millis(300);

impl ClickHouseResource {
    pub(super) fn new(config: ClickHouseConfig, tls: Tls) -> Self {
        ClickHouseResource { config: Arc::new(config), tls }
    }

    /// The configuration with the password that its file has now.
    async fn current(&self) -> io::Result<Arc<ClickHouseConfig>> {
        Ok(match self.config.current().await? {
            Cow::Borrowed(_) => Arc::clone(&self.config),
            Cow::Owned(config) => Arc::new(config),
        })
    }

    fn transport(
        &self,
        config: &Arc<ClickHouseConfig>,
        link: &Link,
        runtime: Handle,
        purpose: Purpose,
        cancel: Option<Cancel>,
    ) -> Arc<Transport> {
        Transport::new(config, &self.tls, link, runtime, purpose, cancel)
    }

    /// Finds out which settings this user may send, and the server's version.
    async fn introduce(
        &self,
        config: &Arc<ClickHouseConfig>,
        link: &Link,
    ) -> Result<(BTreeMap<String, String>, (u32, u32)), Failure> {
        let all = self.config.effective_settings();
        let chosen = self.config.chosen_settings();
        match self.prove(config, link, &all).await {
            Err(error) if has_code(&error, &UNCHANGEABLE) && chosen.len() < all.len() => {
                let version =
                    self.prove(config, link, &chosen).await.map_err(|error| failure(&self.config, error, &chosen))?;
                tracing::info!(resource = %link.name(), "the server's own sizes hold, as this user may not change them");
                Ok((chosen, version))
            }
            Ok(version) => Ok((all, version)),
            Err(error) => Err(failure(&self.config, error, &all)),
        }
    }

    /// Asks the server for its version, with all the settings that queries will carry, over a connection that ends with
    /// this.
    async fn prove(
        &self,
        config: &Arc<ClickHouseConfig>,
        link: &Link,
        settings: &BTreeMap<String, String>,
    ) -> Result<(u32, u32), DriverError> {
        let transport = self.transport(config, link, Handle::current(), Purpose::Probe, None);
        let client = transport.client(settings).with_validation(false);
        let version: String = client.query("SELECT version()").fetch_one().await?;
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        Ok((parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
    }
}

/// Asks whether the server lives, which any answer proves. The answer is read to its end, so that the connection can be
/// used again.
async fn ask(client: &HttpClient<String>, uri: &Uri) -> Result<(), hyper_util::client::legacy::Error> {
    let mut body = client.get(uri.clone()).await?.into_body();
    let rest =
        async { while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some_and(|frame| frame.is_ok()) {} };
    let _what_does_not_end_is_closed = within(PATIENCE, rest).await;
    Ok(())
}
