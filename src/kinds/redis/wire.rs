//! The connection of threads.

use std::fmt;
use std::io;
use std::io::Write;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::{Cmd, RedisError, RedisResult, ServerError, Value};

use crate::base::process::Process;
use crate::base::runtime::deadline;
use crate::kinds::redis::commands::{is_harmless, is_silence, silenced, unsafe_twice_packed};
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::errors::{Answer, ended, refused};
use crate::kinds::redis::greeting::Greeting;
use crate::kinds::redis::packed::each_command;
use crate::kinds::redis::resource::RedisResource;
use crate::kinds::redis::session::Session;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::lease::{Claim, Lease};
use crate::net::kill_switch::{Guarded, KillSwitch};
use crate::net::tls::Blocking;

/// How long a thread waits for the server's words on what it did not take, which have been sent by then.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Opens and tests the connections for threads.
pub(crate) struct Manager(pub(super) Weak<Session>);

impl r2d2::ManageConnection for Manager {
    type Connection = Wire;
    type Error = RedisError;

    fn connect(&self) -> RedisResult<Wire> {
        match self.0.upgrade() {
            Some(session) => {
                let switch = session.switch.read().clone();
                Wire::connect(&session, switch)
            }
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "closed").into()),
        }
    }

    fn is_valid(&self, wire: &mut Wire) -> RedisResult<()> {
        let end = deadline(wire.config.test_limit);
        wire.limited(end, |wire| wire.ping())
    }

    fn has_broken(&self, wire: &mut Wire) -> bool {
        wire.is_spent()
    }
}

/// A blocking connection over a stream of our own, which the kill switch can cut while a thread
/// waits on it; the `redis` crate's own does not show its socket.
pub(crate) struct Wire {
    session: Weak<Session>,
    config: Arc<RedisConfig>,
    stream: Blocking,
    parser: redis::Parser,
    switch: KillSwitch,
    process: &'static Process,
    _guarded: Guarded,
    state: ConnectionState,
    /// A command was begun and has not been answered in full.
    midway: bool,
}

/// What commands have done to the connection.
#[derive(Debug, Default, PartialEq)]
struct ConnectionState {
    in_multi: bool,
    watching: bool,
    other_db: bool,
    /// In a mode that nothing but a new connection leaves for sure.
    altered: bool,
}

impl Wire {
    fn connect(session: &Arc<Session>, switch: KillSwitch) -> RedisResult<Self> {
        let RedisConfig { host, port, keepalive, connect_timeout, .. } = &*session.config;
        let end = deadline(*connect_timeout);
        let (stream, guarded) = session.tls.dial_blocking(host, *port, *keepalive, &switch, end)?;
        let mut wire = Wire {
            session: Arc::downgrade(session),
            config: Arc::clone(&session.config),
            stream,
            parser: redis::Parser::new(),
            switch,
            process: Process::current(),
            _guarded: guarded,
            state: ConnectionState::default(),
            midway: false,
        };
        wire.limited(end, |wire| wire.greet(session))?;
        Ok(wire)
    }

    fn greet(&mut self, session: &Session) -> RedisResult<()> {
        let mut greeting = Greeting::new(session);
        while let Some((steps, packed)) = greeting.words() {
            // Reading tells what keeps this from being written, and what the server says to whom it does not take in.
            let _ = self.stream.write_all(&packed).and_then(|()| self.stream.flush());
            for step in steps {
                greeting.heard(step, self.reply())?;
            }
        }
        Ok(())
    }

    /// Why nothing can be sent any more, if so.
    pub(crate) fn gone(&self) -> Option<RedisError> {
        let cause = match (self.switch.is_cut(), self.midway) {
            (true, _) => ended(&self.switch),
            (false, true) => "an earlier command on this connection was cut short".into(),
            (false, false) => return None,
        };
        Some(match self.process.check() {
            Ok(()) => self.unsent(io::Error::new(io::ErrorKind::ConnectionAborted, cause).into()),
            Err(forked) => refused(forked),
        })
    }

    /// The error of a call before which the connection went.
    pub(crate) fn unsent(&self, error: RedisError) -> RedisError {
        match self.session.upgrade() {
            Some(session) => session.unsent(error),
            None => error,
        }
    }

    /// A lease by which it is known as a checkout that closing does not wait for.
    pub(crate) fn idle_lease(&self, claim: Claim) -> Option<Lease<Checkouts<Manager>>> {
        let session = self.session.upgrade()?;
        session.link.lease::<RedisResource, _>(session.threads.quota.idle_claim(claim))
    }

    /// What became of a call.
    pub(crate) fn answered<T: Answer>(&self, busy: Busy, answer: RedisResult<T>, packed: &[u8]) -> RedisResult<T> {
        match self.session.upgrade() {
            Some(session) => session.answered(busy, answer, || unsafe_twice_packed(packed)),
            None => answer,
        }
    }

    /// Whether it must not be handed out again.
    fn is_spent(&self) -> bool {
        self.midway || self.switch.is_cut() || self.state != ConnectionState::default()
    }

    fn limited(&mut self, end: Instant, run: impl FnOnce(&mut Self) -> RedisResult<()>) -> RedisResult<()> {
        self.stream.end_by(Some(end))?;
        run(self)?;
        Ok(self.stream.end_by(None)?)
    }

    fn send(&mut self, packed: &[u8]) -> RedisResult<()> {
        self.process.check().map_err(refused)?;
        if let Some(gone) = self.gone() {
            return Err(gone);
        }
        let mut silenced_now = false;
        each_command(packed, |[name, first, second]| {
            silenced_now |= name.eq_ignore_ascii_case(b"CLIENT") && is_silence(first, second);
            self.state.observe(name, first, self.config.db);
        });
        if silenced_now {
            return Err(silenced());
        }
        self.midway = true;
        let sent = self.stream.write_all(packed).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.last_words().map_or(error.into(), RedisError::from))
    }

    /// What the server said before it hung up on what it was being sent: that it is too large.
    fn last_words(&mut self) -> Option<ServerError> {
        self.stream.end_by(Some(deadline(LAST_WORDS))).ok()?;
        loop {
            match self.receive().ok()? {
                Value::ServerError(error) if error.details().is_some_and(|said| said.starts_with("Protocol error")) => {
                    return Some(error);
                }
                _ => {}
            }
        }
    }

    /// The next message, be it a reply or a push.
    pub(crate) fn receive(&mut self) -> RedisResult<Value> {
        // A forked child would read the parent's replies.
        self.process.check().map_err(refused)?;
        self.parser.parse_value(&mut self.stream)
    }

    /// Any answer will do: an error is no fault of the connection's.
    fn ping(&mut self) -> RedisResult<()> {
        redis::ConnectionLike::req_packed_command(self, &redis::cmd("PING").get_packed_command()).map(drop)
    }

    fn reply(&mut self) -> RedisResult<Value> {
        loop {
            match self.receive()? {
                Value::Push { .. } => {}
                value => return Ok(value),
            }
        }
    }

    /// Sends a command whose replies are read one by one; the connection is not handed out again.
    pub(crate) fn subscribe(&mut self, command: &Cmd) -> RedisResult<()> {
        self.send(&command.get_packed_command())?;
        self.state.altered = true;
        Ok(())
    }
}

impl redis::ConnectionLike for Wire {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.send(packed)?;
        let value = self.reply()?;
        self.midway = false;
        Ok(value)
    }

    fn req_packed_commands(&mut self, packed: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.send(packed)?;
        let mut refused = None;
        let mut values = Vec::with_capacity(count);
        // Every reply is read, whatever one of them says, so that none is left for the next command.
        for index in 0..offset + count {
            match self.reply()? {
                value if index >= offset => values.push(value),
                value => refused = refused.or(value.extract_error().err()),
            }
        }
        self.midway = false;
        refused.map_or(Ok(values), Err)
    }

    fn get_db(&self) -> i64 {
        self.config.db
    }

    fn check_connection(&mut self) -> bool {
        self.ping().is_ok()
    }

    fn is_open(&self) -> bool {
        !self.midway && !self.switch.is_cut()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ConnectionState {
    fn observe(&mut self, name: &[u8], first: &[u8], home: i64) {
        match name.to_ascii_uppercase().as_slice() {
            b"MULTI" => self.in_multi = true,
            b"WATCH" => self.watching = true,
            b"EXEC" | b"DISCARD" => (self.in_multi, self.watching) = (false, false),
            b"UNWATCH" => self.watching = false,
            b"SELECT" => self.other_db = first != home.to_string().as_bytes(),
            b"CLIENT" => self.altered |= !is_harmless(first),
            b"AUTH" | b"HELLO" | b"RESET" | b"QUIT" | b"MONITOR" | b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE"
            | b"READONLY" | b"ASKING" => self.altered = true,
            _ => {}
        }
    }
}
