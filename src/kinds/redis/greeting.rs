//! The greeting on every new connection, of async code as of threads: login, database, name and a PING.
//!
//! It is by hand because the driver's own hides the server's words.

use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerError, Value};

use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::session::Session;

/// The commands that greet a server, all sent at once.
pub(super) struct Greeting<'a> {
    session: &'a Session,
    user: Option<&'a str>,
    is_due: bool,
    /// An error that does no harm. If the server hangs up after it, it says why.
    waived: Option<ServerError>,
}

/// One of the commands of a greeting.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Auth,
    Select,
    Name,
    Ping,
}

impl<'a> Greeting<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Greeting { session, user: session.config.user.as_deref(), is_due: true, waived: None }
    }

    /// The commands to send next, packed, and the steps that their replies answer in turn.
    pub(super) fn words(&mut self) -> Option<(Vec<Step>, Vec<u8>)> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        let RedisConfig { password, db, client_name, .. } = &*self.session.config;
        let (mut steps, mut packed) = (Vec::new(), Vec::new());
        let mut say = |step, command: &Cmd| {
            steps.push(step);
            packed.extend(command.get_packed_command());
        };
        if let Some(password) = password {
            let login: Vec<_> = self.user.into_iter().chain([password.expose()]).collect();
            say(Step::Auth, redis::cmd("AUTH").arg(login));
        }
        if *db != 0 {
            say(Step::Select, redis::cmd("SELECT").arg(*db));
        }
        say(Step::Name, redis::cmd("CLIENT").arg("SETNAME").arg(client_name));
        // It alone tells whether the server serves: the others are answered while it loads.
        say(Step::Ping, &redis::cmd("PING"));
        Some((steps, packed))
    }

    /// Judges the reply to a step.
    pub(super) fn heard(&mut self, step: Step, answer: RedisResult<Value>) -> RedisResult<()> {
        let error = match answer {
            Ok(Value::ServerError(error)) => error,
            Ok(_) => return Ok(()),
            Err(error) => {
                return Err(self.waived.take().filter(|_| error.is_io_error()).map_or(error, RedisError::from));
            }
        };
        if self.is_due {
            // The whole greeting is sent again.
            return Ok(());
        }
        let says = |words: &str| error.details().is_some_and(|details| details.starts_with(words));
        match (step, error.code()) {
            (_, "NOAUTH" | "DENIED" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY") => Err(error.into()),
            (_, "ERR") if says("max number of clients") => Err(error.into()),
            // A Redis before 6 has no users.
            (Step::Auth, "ERR") if self.user.is_some() && says("wrong number of arguments for 'auth'") => {
                self.user = None;
                self.is_due = true;
                Ok(())
            }
            (Step::Auth, _) => Err((ErrorKind::AuthenticationFailed, "Password authentication failed").into()),
            (Step::Select, "ERR" | "NOPERM") => {
                let says = error.details().unwrap_or_default().to_owned();
                Err((ErrorKind::InvalidClientConfig, "the server refuses this database", says).into())
            }
            (Step::Select, _) => Err(error.into()),
            // A user may lack the right to either. A server that cannot save its data refuses a PING, and still serves reads.
            (Step::Name | Step::Ping, _) => {
                let what = if matches!(step, Step::Name) { "CLIENT SETNAME" } else { "PING" };
                let told = self.session.config.told(error.clone().into());
                tracing::debug!(resource = %self.session.link.name(), error = %told, "the server refuses {what}, which a connection can do without");
                self.waived = Some(error);
                Ok(())
            }
        }
    }
}
