//! The greeting on every new connection, async and blocking: login, database, client name and a `PING`.
//!
//! The crate sends the greeting itself, because the driver's greeting hides the server's words.

use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerError, Value};

use crate::base::secret::Secret;
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::on_connect;
use crate::kinds::redis::session::RedisSession;

/// The commands that greet a server. All are sent at once.
pub(super) struct Greeting<'a> {
    session: &'a RedisSession,
    password: Option<Secret>,
    /// The user to log in as. `None` also after a Redis before 6 refused a login with a user.
    user: Option<&'a str>,
    /// Whether the commands are still to be sent, or to be sent again.
    is_due: bool,
    /// A harmless error reply. If the server then closes the connection, this error is the reason.
    waived: Option<ServerError>,
}

/// One of the commands of a greeting.
#[derive(Clone, Copy)]
pub(super) enum GreetingStep {
    Auth,
    Select,
    Name,
    /// The command of this index in `on_connect`.
    OnConnect(usize),
    Ping,
}

impl<'a> Greeting<'a> {
    /// A greeting with the password that this connection is to log in with.
    pub(super) fn new(session: &'a RedisSession, password: Option<Secret>) -> Self {
        Greeting { session, password, user: session.config.user.as_deref(), is_due: true, waived: None }
    }

    /// The packed commands to send next, and the steps that their replies belong to, in order. `None` once all are
    /// sent.
    pub(super) fn words(&mut self) -> Option<(Vec<GreetingStep>, Vec<u8>)> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        let RedisConfig { db, client_name, on_connect, .. } = &*self.session.config;
        let (mut steps, mut packed) = (Vec::new(), Vec::new());
        let mut say = |step, command: &Cmd| {
            steps.push(step);
            packed.extend(command.get_packed_command());
        };
        if let Some(password) = &self.password {
            let login: Vec<_> = self.user.into_iter().chain([password.expose()]).collect();
            say(GreetingStep::Auth, redis::cmd("AUTH").arg(login));
        }
        if *db != 0 {
            say(GreetingStep::Select, redis::cmd("SELECT").arg(*db));
        }
        say(GreetingStep::Name, redis::cmd("CLIENT").arg("SETNAME").arg(client_name));
        for (index, command) in on_connect.iter().enumerate() {
            say(GreetingStep::OnConnect(index), &on_connect::cmd(command));
        }
        // Only PING shows whether the server is ready. It answers the other commands while it loads its data.
        say(GreetingStep::Ping, &redis::cmd("PING"));
        Some((steps, packed))
    }

    /// Judges the reply to a step. An error means that the connection cannot be used.
    pub(super) fn heard(&mut self, step: GreetingStep, answer: RedisResult<Value>) -> RedisResult<()> {
        let error = match answer {
            Ok(Value::ServerError(error)) => error,
            Ok(_) => return Ok(()),
            Err(error) => {
                return Err(self.waived.take().filter(|_| error.is_io_error()).map_or(error, RedisError::from));
            }
        };
        if self.is_due {
            // All commands are sent again, so the other replies of this round do not count.
            return Ok(());
        }
        let says = |words: &str| error.details().is_some_and(|details| details.starts_with(words));
        match (step, error.code()) {
            (_, "NOAUTH" | "DENIED" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY") => Err(error.into()),
            (_, "ERR") if says("max number of clients") => Err(error.into()),
            // A Redis before 6 has no users.
            (GreetingStep::Auth, "ERR") if self.user.is_some() && says("wrong number of arguments for 'auth'") => {
                self.user = None;
                self.is_due = true;
                Ok(())
            }
            (GreetingStep::Auth, _) => Err((ErrorKind::AuthenticationFailed, "Password authentication failed").into()),
            (GreetingStep::Select, "ERR" | "NOPERM") => {
                let says = error.details().unwrap_or_default().to_owned();
                Err((ErrorKind::InvalidClientConfig, "the server refuses this database", says).into())
            }
            (GreetingStep::Select, _) => Err(error.into()),
            (GreetingStep::OnConnect(index), _) => Err(self.session.config.refused_on_connect(index, error)),
            // A user may lack the right to either command. A server that cannot save its data refuses a PING, and still
            // serves reads.
            (GreetingStep::Name | GreetingStep::Ping, _) => {
                let what = if matches!(step, GreetingStep::Name) { "CLIENT SETNAME" } else { "PING" };
                let told = self.session.config.told(error.clone().into());
                tracing::debug!(resource = %self.session.link.name(), error = %told, "the server refuses {what}, which a connection can do without");
                self.waived = Some(error);
                Ok(())
            }
        }
    }
}
