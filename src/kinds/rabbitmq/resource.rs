//! A RabbitMQ as a resource: how its session connects, answers to pings, and closes.
//!
//! The pool calls these functions on its runtime, and `ping` on the prober's.
//!
//! `close` sets `closed` before it cancels `intake`, so that a closed session is never taken for one that is closing.
//! Then it disconnects the connections of users, and the prober's beside them.
//!
//! There is no lock here. That of `current` is never held over an await. `cut` and `usage` hold it while they throw the
//! switch and read the counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::error::Failure;
use crate::base::runtime::within;
use crate::kinds::rabbitmq::config::{RabbitMqConfig, SCHEMES};
use crate::kinds::rabbitmq::dial;
use crate::kinds::rabbitmq::generation::LINGER;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::kinds::rabbitmq::verbs::RabbitMq;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::net::count::none;
use crate::net::tls::Tls;
use crate::net::url::host_port;

/// A RabbitMQ in the pool.
#[derive(Debug)]
pub struct RabbitMqResource {
    pub(super) config: Arc<RabbitMqConfig>,
    pub(super) tls: Tls,
}

impl Resource for RabbitMqResource {
    type Handle = RabbitMq;

    async fn connect(&self, link: &Link) -> Result<RabbitMq, Failure> {
        let session = Arc::new(RabbitMqSession::new(&self.config, &self.tls, link));
        if let Err(failure) = session.open_generation(link).await {
            let RabbitMqConfig { host, port, .. } = &*self.config;
            // An answer that is not AMQP may come from a port of TLS, which is found out first. Otherwise no further
            // attempt mends it.
            let is_no_amqp = dial::is_no_amqp(&failure);
            let permanent = failure.is_permanent() && !is_no_amqp;
            let failure = failure.with_permanent(permanent);
            let failure = self.tls.or_wanted(failure, host, *port, "use amqps://").await;
            let permanent = failure.is_permanent() || is_no_amqp;
            return Err(failure.with_permanent(permanent));
        }
        Ok(RabbitMq::over(session))
    }

    async fn recover(&self, link: &Link, lost: &RabbitMq) -> Result<bool, Failure> {
        let old = lost.session.current.write().take();
        if let Some(old) = old {
            old.cut_because(lost.session.link.why_cut());
        }
        lost.session.open_generation(link).await?;
        Ok(true)
    }

    async fn ping(&self, rabbit: &RabbitMq) -> Result<(), Failure> {
        let generation = rabbit.session.alive().ok_or_else(|| Failure::transient("the connection is gone"))?;
        rabbit.session.ask(&generation).await?;
        generation.why_shared().map_or(Ok(()), |why| Err(Failure::limited(why)))
    }

    async fn close(&self, rabbit: RabbitMq) -> Result<(), Failure> {
        let session = &rabbit.session;
        session.closed.store(true, Ordering::SeqCst);
        session.intake.cancel();
        let generation = session.current.read().clone();
        // The prober's connection disconnects at the same time as the shared one, unless a ping has it.
        if let Some(Ok(mut prober)) = generation.as_ref().map(|generation| generation.prober.try_lock()) {
            drop(prober.probe.take());
        }
        let disconnect = match &generation {
            Some(generation) => generation.close().await,
            None => Ok(()),
        };
        let no_probe = async || {
            if let Some(generation) = &generation {
                drop(generation.prober.lock().await.probe.take());
            }
            none(&session.probes).await;
        };
        // The prober's disconnect takes a moment. If the shared connection did not disconnect, this waits hardly longer
        // than that.
        let prober_goodbye = self.config.disconnect_timeout.saturating_mul(2).saturating_add(LINGER);
        let patience = if generation.is_some() && disconnect.is_ok() { prober_goodbye } else { LINGER };
        if within(patience, no_probe()).await.is_err() {
            session.probes_given_up.cancel();
            // Connections that are cut are gone in microseconds.
            let _ = within(LINGER, no_probe()).await;
        }
        session.current.write().take();
        disconnect
    }

    fn cut(&self, rabbit: &RabbitMq) {
        if let Some(generation) = &*rabbit.session.current.read() {
            generation.cut_because(rabbit.session.link.why_cut());
        }
    }

    async fn stop_intake(&self, rabbit: &RabbitMq) {
        rabbit.session.intake.cancel();
        none(&rabbit.session.consumers).await;
    }

    fn endpoint(&self) -> String {
        let vhost = percent_encoding::utf8_percent_encode(&self.config.vhost, percent_encoding::NON_ALPHANUMERIC);
        let scheme = SCHEMES[usize::from(self.config.tls.is_some())];
        format!("{scheme}://{}/{vhost}", host_port(&self.config.host, self.config.port))
    }

    fn phase(&self) -> Phase {
        Phase::RabbitMq
    }

    fn usage(&self, rabbit: &RabbitMq) -> Usage {
        let mut usage = Usage { max: Some(self.config.max_channels), ..Usage::default() };
        if let Some(generation) = &*rabbit.session.current.read() {
            let max = self.config.max_channels.min(generation.channels.max);
            let idle = generation.channels.idle();
            let in_use = max.saturating_sub(generation.permits.available_permits());
            usage.max = Some(max);
            usage.in_use = Some(in_use);
            usage.idle = Some(idle);
            usage.open = Some(in_use + idle);
            usage.waiting = Some(generation.waiting.load(Ordering::Relaxed));
        }
        usage
    }
}
