//! The prober's questions to the broker: on a connection of its own, and on the shared one where its own has no answer.
//!
//! `RabbitMqResource::ping` calls `RabbitMqSession::ask` on the prober's runtime, where the prober's connection and its tasks
//! live.
//!
//! The async lock of a `Prober` is held while its connection is being opened, so `RabbitMqResource::close` waits for
//! that. No other lock is held with it. The opening is a task, so it goes on if the ping is given up. `closed` is set
//! before `close` takes this lock, and is looked at under it. So no connection is opened after `close` has taken the
//! last one.
//!
//! Each connection disconnects in a task of its own. `RabbitMqSession::probes` counts the connections, and `probes_given_up`
//! cuts them short.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapin::options::BasicQosOptions;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::base::error::Failure;
use crate::base::runtime::within;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::dial::{CutOnDrop, dial};
use crate::kinds::rabbitmq::errors::answered;
use crate::kinds::rabbitmq::generation::{Generation, LINGER};
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::net::count::Counted;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::Tls;

/// The prober's own connection, beside that of a generation.
#[derive(Default)]
pub(super) struct Prober {
    pub(super) probe: Option<Arc<ProbeConnection>>,
    /// The moment from which it may try again to open one. `None` if it may try at once.
    again: Option<Instant>,
}

/// How long the prober's own connection has to be opened, and then to answer, before the shared one is asked. Twice
/// that is within the limit of a health check, 500 ms.
const HEAD_START: Duration = Duration::from_millis(200);

/// How long the prober goes without a connection of its own after opening one failed. Each attempt is a line in the
/// broker's log.
const PAUSE: Duration = Duration::from_secs(10);

impl RabbitMqSession {
    /// Asks the broker whether it lives.
    pub(super) async fn ask(&self, generation: &Arc<Generation>) -> Result<(), Failure> {
        let Ok(Ok(probe)) = within(HEAD_START, self.probe(generation)).await else {
            return generation.round_trip().await;
        };
        let mut asked = pin!(probe.round_trip());
        match within(HEAD_START, &mut asked).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                tracing::debug!(resource = %self.link.name(), error = %self.config.redacted(error), "the prober's connection");
                generation.prober.lock().await.probe.take_if(|gone| Arc::ptr_eq(gone, &probe));
                return generation.round_trip().await;
            }
            Err(_elapsed) => {}
        }
        let mut own = pin!(async {
            if asked.await.is_err() {
                pending::<()>().await;
            }
        });
        tokio::select! {
            // The prober's own answer comes first, because it is enough whatever the shared connection says.
            biased;
            () = &mut own => Ok(()),
            answer = generation.round_trip() => match answer {
                // The shared connection could not be asked. The prober's own, which is never blocked, is silent so far.
                Err(failure) if failure.is_unasked() => {
                    own.await;
                    Ok(())
                }
                answer => answer,
            },
        }
    }

    /// The prober's own connection, opened if there is none.
    async fn probe(&self, generation: &Arc<Generation>) -> Result<Arc<ProbeConnection>, Failure> {
        let mut prober = Arc::clone(&generation.prober).lock_owned().await;
        if let Some(probe) = &prober.probe {
            return Ok(Arc::clone(probe));
        }
        if self.closed.load(Ordering::SeqCst) || prober.again.is_some_and(|again| Instant::now() < again) {
            return Err(Failure::unasked("the prober has no connection of its own"));
        }
        let (counted, given_up) = (Counted::new(&self.probes), self.probes_given_up.clone());
        let opening = ProbeConnection::open(Arc::clone(&self.config), self.tls.clone(), counted, given_up);
        let resource = Arc::clone(self.link.name());
        // The task goes on if the ping is given up. Otherwise the broker's log would have a connection cut off in the
        // middle.
        let opened = tokio::spawn(async move {
            let probe = opening.await.map(Arc::new).inspect_err(|error| {
                tracing::info!(%resource, %error, "the prober has no connection of its own and asks on the resource's");
                prober.again = Some(Instant::now() + PAUSE);
            })?;
            prober.probe = Some(Arc::clone(&probe));
            Ok(probe)
        });
        opened.await?
    }
}

impl Generation {
    /// Asks the broker over this connection, on a channel of the verbs if one is idle. A broker that has no room for
    /// another channel may end the connection.
    async fn round_trip(self: &Arc<Self>) -> Result<(), Failure> {
        let mut blocked = self.blocked.subscribe();
        let is_blocked = || Failure::unasked(format!("it could not be asked{}", self.why_blocked()));
        if blocked.borrow_and_update().is_some() {
            return Err(is_blocked());
        }
        let ask = async {
            let mut guard = match self.idle_channel() {
                Some(guard) => guard,
                None => {
                    let Some(place) = self.channels.try_place() else {
                        return Err(Failure::unasked("the connection has no room for one more channel"));
                    };
                    let guard = ChannelGuard::open(self, place, None, None).await;
                    guard.map_err(answered)?.confirming().await.map_err(answered)?
                }
            };
            let channel = Arc::clone(&guard.channel);
            // The verbs that share the channel consume nothing, so this prefetch means nothing to them.
            let asked = guard.ask("a ping", channel.basic_qos(1, BasicQosOptions::default())).await;
            asked.map_err(answered)
        };
        tokio::select! {
            // An answer that has come counts, even if the broker blocks the connection at the same moment.
            biased;
            answer = ask => answer,
            // A broker that blocks the connection does not answer on it.
            _ = blocked.wait_for(Option::is_some) => Err(is_blocked()),
        }
    }
}

/// The prober's own connection, on its own runtime, with a channel kept open. It disconnects in the background when it
/// drops, because a ping may be given up at any time.
pub(super) struct ProbeConnection {
    config: Arc<RabbitMqConfig>,
    channel: lapin::Channel,
    runtime: Handle,
    disconnect: Option<ProbeDisconnect>,
}

struct ProbeDisconnect {
    connection: lapin::Connection,
    switch: KillSwitch,
    gone: CancellationToken,
    given_up: CancellationToken,
    _counted: Counted,
}

impl ProbeConnection {
    /// Opens the connection within the operation timeout. `given_up` cuts short both this and the later disconnect.
    async fn open(
        config: Arc<RabbitMqConfig>,
        tls: Tls,
        counted: Counted,
        given_up: CancellationToken,
    ) -> Result<Self, Failure> {
        let opening = async {
            let dialled = dial(&config, &tls, &format!("{} probe", config.connection_name), PROBE_FRAME_MAX).await?;
            let (switch, gone) = (dialled.switch.clone(), dialled.gone.clone());
            let cut = CutOnDrop::new(&switch);
            let connection = dialled.connect();
            let opened = connection.create_channel().await;
            let channel = opened.map_err(|error| Failure::transient(config.redacted(error)))?;
            cut.disarm();
            Ok::<_, Failure>((channel, connection, switch, gone))
        };
        let (channel, connection, switch, gone) = tokio::select! {
            opened = within(config.operation_timeout, opening) => opened??,
            () = given_up.cancelled() => return Err(Failure::transient("the prober has ended")),
        };
        let disconnect = Some(ProbeDisconnect { connection, switch, gone, given_up, _counted: counted });
        Ok(ProbeConnection { config, channel, runtime: Handle::current(), disconnect })
    }

    /// Goes to the broker's channel process and back, which needs no permission.
    async fn round_trip(&self) -> lapin::Result<()> {
        self.channel.basic_qos(1, BasicQosOptions::default()).await
    }
}

impl Drop for ProbeConnection {
    fn drop(&mut self) {
        let Some(disconnect) = self.disconnect.take() else { return };
        let (config, channel) = (Arc::clone(&self.config), self.channel.clone());
        self.runtime.spawn(async move {
            // The task takes it as a whole. A field not named here would drop, and no longer count, before the task
            // runs.
            let disconnect = disconnect;
            let cut = CutOnDrop::new(&disconnect.switch);
            let said = async {
                channel.close(200, "OK".into()).await?;
                disconnect.connection.close(200, "OK".into()).await
            };
            let said = tokio::select! {
                said = within(config.disconnect_timeout.saturating_mul(2), said) => Some(said),
                () = disconnect.given_up.cancelled() => None,
            };
            tracing::trace!(host = %config.host, ?said, "the prober's connection is closed");
            // After the disconnect the driver ends in microseconds, and would call a cut an error. If it does not end,
            // it is cut.
            if matches!(said, Some(Ok(Ok(())))) {
                let _ = within(LINGER, disconnect.gone.cancelled()).await;
            }
            drop(cut);
            let _ = within(LINGER, disconnect.gone.cancelled()).await;
        });
    }
}

/// The smallest frame that AMQP allows, because probes are small.
const PROBE_FRAME_MAX: u32 = 4096;
