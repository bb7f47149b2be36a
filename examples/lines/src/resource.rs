//! The resource, its handle, and the opener of connections.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use resource_pool::adapter::{Checkouts, Claim, LeaseAs, Limits, Manage, Quota, Tls, host_port, redacted};
use resource_pool::{Error, Failure, KillSwitch, Link, Phase, Resource, Usage};
use tokio::runtime::Handle;

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
}

impl Resource for LinesResource {
    type Handle = Lines;

    async fn connect(&self, link: &Link) -> Result<Lines, Failure> {
        let max = self.config.pool_size;
        let quota = Quota::new(link, max, "connections", "pool_size");
        let opener = Opener { resource: self.clone(), link: link.clone(), switch: Mutex::new(KillSwitch::new()) };
        let checkouts = Checkouts::new(link, opener, Limits { max, ..Limits::default() }, quota);
        if let Err(failure) = checkouts.open().await {
            let LinesConfig { host, port, .. } = &*self.config;
            return Err(self.tls.or_wanted(failure, host, *port, "use liness://").await);
        }
        Ok(Lines { checkouts: Arc::new(checkouts), runtime: Handle::current() })
    }

    async fn recover(&self, _: &Link, lost: &Lines) -> Result<bool, Failure> {
        *lost.checkouts.manager().switch.lock() = KillSwitch::new();
        lost.checkouts.open().await?;
        Ok(true)
    }

    async fn ping(&self, lines: &Lines) -> Result<(), Failure> {
        lines.checkouts.ping().await
    }

    async fn close(&self, lines: Lines) -> Result<(), Failure> {
        // From here on, users who still have a connection are told that the resource is closed.
        self.cut(&lines);
        lines.checkouts.close().await;
        Ok(())
    }

    fn cut(&self, lines: &Lines) {
        // The checkouts are cut first, so that nobody is given a cut connection.
        lines.checkouts.cut();
        let Opener { link, switch, .. } = lines.checkouts.manager();
        let switch = switch.lock().clone();
        switch.cut_because(link.why_cut());
    }

    fn endpoint(&self) -> String {
        let LinesConfig { host, port, tls, .. } = &*self.config;
        format!("{}://{}", if tls.is_some() { "liness" } else { "lines" }, host_port(host, *port))
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, lines: &Lines) -> Usage {
        lines.checkouts.usage()
    }
}

/// Opens connections, under the kill switch of the current generation.
#[derive(Debug)]
pub struct Opener {
    resource: LinesResource,
    link: Link,
    switch: Mutex<KillSwitch>,
}

impl Manage for Opener {
    type Connection = Open;

    async fn connect(&self) -> Result<Open, Failure> {
        let LinesConfig { host, port, user, password, .. } = &*self.resource.config;
        let switch = self.switch.lock().clone();
        let stream = self.resource.tls.dial(host, *port, LinesConfig::KEEPALIVE, &switch).await?;
        let mut open = Open::new(stream, switch, self.link.clone());
        if let Some((user, password)) = user.as_ref().zip(password.as_ref()) {
            let password = password.expose();
            let answer = open.ask(&format!("AUTH {user} {password}")).await?;
            accepted(&answer, &[password])?;
        }
        Ok(open)
    }

    async fn is_valid(&self, open: &mut Open) -> Result<(), Failure> {
        accepted(&open.ask("PING").await?, &[])
    }

    fn has_broken(&self, open: &mut Open) -> bool {
        !open.is_fit()
    }
}

/// Turns an error reply into a failure. Its words are withheld if they contain a secret.
fn accepted(answer: &str, secrets: &[&str]) -> Result<(), Failure> {
    let Some(told) = answer.strip_prefix('-') else { return Ok(()) };
    let error = redacted(told, true, secrets, &[]);
    Err(match told.split(' ').next() {
        Some("WRONGPASS" | "NOAUTH") => Failure::permanent(error),
        Some("NOPERM") => Failure::limited(error),
        // The server is alive, and cannot serve now.
        _ => Failure::refused(error),
    })
}

/// The handle, which a lease derefs to.
#[derive(Clone)]
pub struct Lines {
    checkouts: Arc<Checkouts<Opener>>,
    runtime: Handle,
}

impl LeaseAs<Checkouts<Opener>> for Lines {
    fn lease_as(&self) -> &Checkouts<Opener> {
        &self.checkouts
    }
}

impl Lines {
    /// Checks a connection out.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if none is free within the acquire timeout; [`Error::Lost`] while the
    /// connection is not back; [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    #[track_caller]
    pub fn connection(&self) -> impl Future<Output = Result<Connection, Error>> + Send + use<> {
        self.check_out(Claim::shared())
    }

    pub(crate) fn check_out(&self, claim: Claim) -> impl Future<Output = Result<Connection, Error>> + Send + use<> {
        let checking = self.checkouts.check_out::<LinesResource>(claim);
        async move { Ok(Connection(checking.await?)) }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.checkouts.manager().link
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lines").field(&self.checkouts).finish()
    }
}
