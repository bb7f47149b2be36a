//! The connection for threads. It runs one command or pipeline at a time, over a socket that the pool opens.
//!
//! It is written by hand because a `redis::Connection` does not give access to its socket. The kill switch must shut
//! that socket down while a thread waits on it, since a timeout would end slow commands instead. `redis::Parser` reads
//! the replies and keeps no more than has arrived, whatever length a reply announces. `packed.rs` reads the commands.
//!
//! Invariant: `reply_pending` is true from the first byte of a command until its last reply. A call that fails in
//! between leaves a connection that is never used again. Each connection has one user at a time, so this file has no
//! locks.

use std::fmt;
use std::io;
use std::io::Write;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::{Cmd, RedisError, RedisResult, ServerError, Value};

use crate::base::process::ForkGuarded;
use crate::base::runtime::deadline;
use crate::kinds::redis::commands::{
    first_name_packed, is_harmless, is_silence, silenced, unsafe_twice_packed, waits_packed,
};
use crate::kinds::redis::config::RedisConfig;
use crate::kinds::redis::errors::{Reply, ended, refused};
use crate::kinds::redis::greeting::Greeting;
use crate::kinds::redis::packed::each_command;
use crate::kinds::redis::resource::RedisResource;
use crate::kinds::redis::session::RedisSession;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::{Adapted, Checkouts};
use crate::lifecycle::lease::{Claim, Lease};
use crate::net::kill_switch::{Guarded, KillSwitch};
use crate::net::tls::Blocking;

/// How long a thread waits for the server's reason after a write failed. It is short, because the server sent that
/// reason before it closed the connection.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Opens and tests the connections for threads.
pub(crate) struct Manager(pub(super) Weak<RedisSession>);

impl r2d2::ManageConnection for Manager {
    type Connection = BlockingConnection;
    type Error = RedisError;

    fn connect(&self) -> RedisResult<BlockingConnection> {
        match self.0.upgrade() {
            Some(session) => {
                let switch = session.switch.read().clone();
                BlockingConnection::connect(&session, switch)
            }
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "closed").into()),
        }
    }

    fn is_valid(&self, connection: &mut BlockingConnection) -> RedisResult<()> {
        let end = deadline(connection.config.test_limit);
        connection.with_deadline(end, |connection| connection.ping())
    }

    fn has_broken(&self, connection: &mut BlockingConnection) -> bool {
        connection.is_spent()
    }
}

/// A blocking connection that the kill switch can cut while a thread waits on it.
pub(crate) struct BlockingConnection {
    session: Weak<RedisSession>,
    config: Arc<RedisConfig>,
    stream: ForkGuarded<Blocking>,
    parser: redis::Parser,
    switch: KillSwitch,
    _guarded: Guarded,
    state: ConnectionState,
    /// Whether a command was begun and is not answered in full.
    reply_pending: bool,
}

/// The changes that commands have made to the connection. Only a connection without changes is handed out again.
#[derive(Debug, Default, PartialEq)]
struct ConnectionState {
    in_multi: bool,
    watching: bool,
    other_db: bool,
    /// Whether the connection may be in a mode that only a new connection leaves for sure.
    altered: bool,
}

impl BlockingConnection {
    fn connect(session: &Arc<RedisSession>, switch: KillSwitch) -> RedisResult<Self> {
        let RedisConfig { host, port, keepalive, connect_timeout, socket, .. } = &*session.config;
        let end = deadline(*connect_timeout);
        let (stream, guarded) = match socket {
            Some(path) => session.tls.dial_socket_blocking(path, &switch, end)?,
            None => session.tls.dial_blocking(host, *port, *keepalive, &switch, end)?,
        };
        let config = Arc::clone(&session.config);
        let mut connection = BlockingConnection::over(Arc::downgrade(session), config, stream, guarded, switch);
        connection.with_deadline(end, |connection| connection.greet(session))?;
        Ok(connection)
    }

    fn over(
        session: Weak<RedisSession>,
        config: Arc<RedisConfig>,
        stream: Blocking,
        guarded: Guarded,
        switch: KillSwitch,
    ) -> Self {
        BlockingConnection {
            session,
            config,
            stream: ForkGuarded::new(stream),
            parser: redis::Parser::new(),
            switch,
            _guarded: guarded,
            state: ConnectionState::default(),
            reply_pending: false,
        }
    }

    fn greet(&mut self, session: &RedisSession) -> RedisResult<()> {
        let RedisConfig { password, password_file, .. } = &*session.config;
        let password = match password_file {
            Some(file) => Some(file.read_again()?),
            None => password.clone(),
        };
        let mut greeting = Greeting::new(session, password);
        while let Some((steps, packed)) = greeting.words() {
            // If the write fails, the read fails too, but it first returns the reply of a server that refuses the
            // connection.
            let _ = self.stream.write_all(&packed).and_then(|()| self.stream.flush());
            for step in steps {
                greeting.heard(step, self.reply())?;
            }
        }
        Ok(())
    }

    /// The reason why nothing can be sent any more. `None` if something can.
    pub(crate) fn gone(&self) -> Option<RedisError> {
        let cause = match (self.switch.is_cut(), self.reply_pending) {
            (true, _) => ended(&self.switch),
            (false, true) => "an earlier command on this connection was cut short".into(),
            (false, false) => return None,
        };
        Some(match ForkGuarded::check(&self.stream) {
            Ok(()) => self.unsent(io::Error::new(io::ErrorKind::ConnectionAborted, cause).into()),
            Err(forked) => refused(forked),
        })
    }

    /// The error of a call whose connection was gone before anything was sent.
    pub(crate) fn unsent(&self, error: RedisError) -> RedisError {
        match self.session.upgrade() {
            Some(session) => session.unsent(error),
            None => error,
        }
    }

    /// A lease that lists the connection as a checkout that closing does not wait for. `None` once the resource is
    /// gone.
    pub(crate) fn idle_lease(&self, claim: Claim) -> Option<Lease<Checkouts<Adapted<Manager>>>> {
        let session = self.session.upgrade()?;
        session.link.lease::<RedisResource, _>(session.threads.quota.idle_claim(claim))
    }

    /// Ends the operation. If its reply is lost, the error says whether the command may have run.
    pub(crate) fn answered<T: Reply>(&self, mut busy: Busy, answer: RedisResult<T>, packed: &[u8]) -> RedisResult<T> {
        match self.session.upgrade() {
            Some(session) => session.answered(&mut busy, answer, || unsafe_twice_packed(packed)),
            None => answer,
        }
    }

    /// Runs a call within the operation timeout. `None` if its answer has not come by then, and the connection can then
    /// not be used again. Commands that wait by themselves have no limit.
    pub(crate) fn in_limit<T>(
        &mut self,
        packed: &[u8],
        call: impl FnOnce(&mut Self) -> RedisResult<T>,
    ) -> Option<RedisResult<T>> {
        let limit = self.config.operation_timeout;
        // In a forked child the call is refused, and the socket's limits are the parent's.
        if limit.is_zero() || ForkGuarded::check(&self.stream).is_err() || waits_packed(packed) {
            return Some(call(self));
        }
        let end = deadline(limit);
        if let Err(error) = self.stream.end_by(Some(end)) {
            return Some(Err(error.into()));
        }
        let answer = call(self);
        match &answer {
            Err(error) if error.is_timeout() && Instant::now() >= end => return None,
            _ if self.reply_pending => {}
            _ => {
                if let Err(error) = self.stream.end_by(None) {
                    return Some(Err(error.into()));
                }
            }
        }
        Some(answer)
    }

    /// The error of a call whose answer did not come within the operation timeout.
    pub(crate) fn late(&self, packed: &[u8]) -> RedisError {
        match self.session.upgrade() {
            Some(session) => session.late(&first_name_packed(packed), unsafe_twice_packed(packed)),
            None => io::Error::from(io::ErrorKind::TimedOut).into(),
        }
    }

    /// Whether the connection must not be handed out again.
    fn is_spent(&self) -> bool {
        self.reply_pending || self.switch.is_cut() || self.state != ConnectionState::default()
    }

    /// Runs something on the connection that must end by this deadline.
    fn with_deadline(&mut self, end: Instant, run: impl FnOnce(&mut Self) -> RedisResult<()>) -> RedisResult<()> {
        self.stream.end_by(Some(end))?;
        run(self)?;
        Ok(self.stream.end_by(None)?)
    }

    /// Sends packed commands, and records their changes to the connection.
    fn send(&mut self, packed: &[u8]) -> RedisResult<()> {
        ForkGuarded::check(&self.stream).map_err(refused)?;
        if let Some(gone) = self.gone() {
            return Err(gone);
        }
        let mut silences = false;
        let is_whole = each_command(packed, |[name, first, second]| {
            silences |= name.eq_ignore_ascii_case(b"CLIENT") && is_silence(first, second);
            self.state.observe(name, first, self.config.db);
        });
        if silences {
            return Err(silenced());
        }
        // Redis also accepts a command as a bare line, which may do anything.
        self.state.altered |= !is_whole;
        self.reply_pending = true;
        let sent = self.stream.write_all(packed).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.last_words().map_or(error.into(), RedisError::from))
    }

    /// The error that a server sends before it closes the connection on a command that is too large.
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

    /// The next message, a reply or a push.
    pub(crate) fn receive(&mut self) -> RedisResult<Value> {
        // A forked child would read the parent's replies.
        ForkGuarded::check(&self.stream).map_err(refused)?;
        self.parser.parse_value(&mut *self.stream)
    }

    /// Sends a `PING`. Any reply will do, since an error reply also proves that the connection works.
    fn ping(&mut self) -> RedisResult<()> {
        redis::ConnectionLike::req_packed_command(self, &redis::cmd("PING").get_packed_command()).map(drop)
    }

    /// The next reply. Pushes before it are skipped.
    fn reply(&mut self) -> RedisResult<Value> {
        loop {
            match self.receive()? {
                Value::Push { .. } => {}
                value => return Ok(value),
            }
        }
    }

    /// Sends a command whose replies are read one by one. The connection is not handed out again.
    pub(crate) fn subscribe(&mut self, command: &Cmd) -> RedisResult<()> {
        self.send(&command.get_packed_command())?;
        self.state.altered = true;
        Ok(())
    }
}

impl redis::ConnectionLike for BlockingConnection {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.send(packed)?;
        let value = self.reply()?;
        self.reply_pending = false;
        Ok(value)
    }

    fn req_packed_commands(&mut self, packed: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.send(packed)?;
        let mut refused = None;
        let mut values = Vec::with_capacity(count);
        // Every reply is read, even after an error, so that none is left for the next command.
        for index in 0..offset + count {
            match self.reply()? {
                value if index >= offset => values.push(value),
                value => refused = refused.or(value.extract_error().err()),
            }
        }
        self.reply_pending = false;
        refused.map_or(Ok(values), Err)
    }

    fn get_db(&self) -> i64 {
        self.config.db
    }

    fn check_connection(&mut self) -> bool {
        self.ping().is_ok()
    }

    fn is_open(&self) -> bool {
        !self.reply_pending && !self.switch.is_cut()
    }
}

impl fmt::Debug for BlockingConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingConnection").field("state", &self.state).finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Weak};
    use std::thread;
    use std::time::Duration;

    use redis::{ConnectionLike, ErrorKind, PushKind, Value, VerbatimFormat};

    use super::BlockingConnection;
    use crate::base::runtime::deadline;
    use crate::kinds::redis::config::RedisConfig;
    use crate::net::kill_switch::KillSwitch;
    use crate::net::tls::Tls;

    /// A connection to a server that sends these bytes in pieces of this size, and then ends its direction.
    fn wire_in_pieces(says: &[u8], size: usize) -> BlockingConnection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let says = says.to_vec();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            for piece in says.chunks(size) {
                stream.write_all(piece).unwrap();
            }
            end(stream);
        });
        let (config, switch) = (Arc::new(RedisConfig::default()), KillSwitch::new());
        let tls = Tls::new("redis", None, "127.0.0.1").unwrap();
        let end = deadline(Duration::from_secs(20));
        let (stream, guarded) = tls.dial_blocking("127.0.0.1", port, config.keepalive, &switch, end).unwrap();
        BlockingConnection::over(Weak::new(), config, stream, guarded, switch)
    }

    /// Ends the server's direction, and reads to the end of the client's, so that closing sends no reset.
    fn end(mut stream: TcpStream) {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }

    fn connection(says: &[u8]) -> BlockingConnection {
        wire_in_pieces(says, says.len().max(1))
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn replies() -> Vec<(&'static [u8], Value)> {
        let (a, one) = (Value::SimpleString("a".to_owned()), Value::Int(1));
        vec![
            (b"+OK\r\n", Value::Okay),
            (b"+\r\n", Value::SimpleString(String::new())),
            (b"+PONG\r\n", Value::SimpleString("PONG".to_owned())),
            (b":0\r\n", Value::Int(0)),
            (b":-9223372036854775808\r\n", Value::Int(i64::MIN)),
            (b"$0\r\n\r\n", bulk("")),
            (b"$4\r\n\r\n\r\n\r\n", bulk("\r\n\r\n")),
            (b"$-1\r\n", Value::Nil),
            (b"*-1\r\n", Value::Nil),
            (b"*0\r\n", Value::Array(vec![])),
            (b"*2\r\n$-1\r\n*2\r\n:1\r\n*0\r\n", {
                Value::Array(vec![Value::Nil, Value::Array(vec![one.clone(), Value::Array(vec![])])])
            }),
            // RESP3 replies, which `HELLO 3` on a connection of one's own switches on.
            (b"_\r\n", Value::Nil),
            (b"#t\r\n", Value::Boolean(true)),
            (b",-1.5e3\r\n", Value::Double(-1500.0)),
            (b"=5\r\ntxt:a\r\n", Value::VerbatimString { format: VerbatimFormat::Text, text: "a".to_owned() }),
            (b"~2\r\n+a\r\n:1\r\n", Value::Set(vec![a.clone(), one.clone()])),
            (b"%1\r\n+a\r\n:1\r\n", Value::Map(vec![(a.clone(), one.clone())])),
            (b"|1\r\n+a\r\n:1\r\n:1\r\n", Value::Attribute { data: Box::new(one.clone()), attributes: vec![(a, one)] }),
        ]
    }

    #[test]
    fn replies_of_every_type_are_read_however_they_arrive() {
        let all: Vec<u8> = replies().iter().flat_map(|(bytes, _)| bytes.to_vec()).collect();
        for size in [all.len(), 7, 1] {
            let mut connection = wire_in_pieces(&all, size);
            for (bytes, expected) in replies() {
                let reply = connection.reply().unwrap();
                assert_eq!(reply, expected, "{:?} in pieces of {size}", bytes.escape_ascii().to_string());
            }
            assert!(connection.reply().unwrap_err().is_io_error(), "there is no more");
        }
    }

    /// The type of the value depends on the driver's features.
    #[test]
    fn big_numbers_are_read() {
        let mut connection = wire_in_pieces(b"(-12345678901234567890\r\n:1\r\n", 1);
        assert!(matches!(connection.reply().unwrap(), Value::BigNumber(_)));
        assert_eq!(connection.reply().unwrap(), Value::Int(1));
    }

    #[test]
    fn errors_of_the_server_are_replies() {
        for says in [&b"-WRONGTYPE of key\r\n:1\r\n"[..], b"!16\r\nWRONGTYPE of key\r\n:1\r\n"] {
            let mut connection = connection(says);
            let Value::ServerError(error) = connection.req_packed_command(&ping()).unwrap() else { panic!("no error") };
            assert_eq!((error.code(), error.details()), ("WRONGTYPE", Some("of key")));
            assert_eq!(connection.req_packed_command(&ping()).unwrap(), Value::Int(1));
            assert!(!connection.is_spent());
        }
    }

    #[test]
    fn pushes_are_no_replies() {
        let mut connection =
            connection(b">2\r\n+invalidate\r\n*0\r\n>2\r\n+invalidate\r\n*0\r\n:1\r\n>2\r\n$3\r\nnew\r\n:2\r\n");
        assert_eq!(connection.reply().unwrap(), Value::Int(1));
        let push = Value::Push { kind: PushKind::Other("new".to_owned()), data: vec![Value::Int(2)] };
        assert_eq!(connection.receive().unwrap(), push);
    }

    fn ping() -> Vec<u8> {
        redis::cmd("PING").get_packed_command()
    }

    #[test]
    fn every_reply_of_a_pipeline_is_read_whatever_one_of_them_says() {
        let mut connection = connection(b"+OK\r\n-ERR one\r\n-ERR two\r\n:3\r\n:4\r\n-ERR five\r\n:6\r\n");
        let refused = connection.req_packed_commands(&ping(), 3, 1).unwrap_err();
        assert_eq!(refused.detail(), Some("one"));
        let values = connection.req_packed_commands(&ping(), 1, 2).unwrap();
        assert!(matches!(&values[..], [Value::ServerError(five), Value::Int(6)] if five.details() == Some("five")));
        assert!(!connection.is_spent());
    }

    /// After a broken reply no later byte can be trusted.
    #[test]
    fn a_reply_that_is_broken_spends_the_connection() {
        let nested = b"*1\r\n".repeat(200);
        for says in [
            &b"?1\r\n"[..],
            b"\0\r\n",
            b"\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b":one\r\n",
            b":9223372036854775808\r\n",
            b"$one\r\n",
            b"$1\r\nab\r\n",
            b"*1\r\n?\r\n",
            b"#x\r\n",
            b",one\r\n",
            b"%-1\r\n:1\r\n",
            b"=1\r\na\r\n",
            b">1\r\n:1\r\n",
            b"+\xff\r\n",
            &nested,
        ] {
            let mut connection = connection(says);
            let error = connection.req_packed_command(&ping()).unwrap_err();
            let says = says.escape_ascii().to_string();
            assert_eq!(error.kind(), ErrorKind::Parse, "{says}: {error}");
            assert!(connection.is_spent() && connection.gone().is_some(), "{says}");
        }
    }

    /// An announced length is not trusted. Nothing is reserved for it, and the end of the connection ends the wait for
    /// the rest.
    #[test]
    fn a_reply_that_is_longer_than_what_comes_spends_the_connection() {
        for says in [
            &b""[..],
            b"+OK",
            b"$3\r\nab",
            b"*2\r\n:1\r\n",
            b"$9223372036854775807\r\nabc\r\n",
            b"*9223372036854775807\r\n:1\r\n",
            b"%4611686018427387904\r\n:1\r\n",
            b"~9223372036854775807\r\n:1\r\n",
            b"=-1\r\ntxt:a\r\n",
        ] {
            let mut connection = connection(says);
            let error = connection.req_packed_command(&ping()).unwrap_err();
            let says = says.escape_ascii().to_string();
            assert!(error.is_io_error(), "{says}: {error}");
            assert!(connection.is_spent() && connection.gone().is_some(), "{says}");
        }
    }

    #[test]
    fn negative_lengths_are_nil() {
        let mut connection = connection(b"$-9223372036854775808\r\n*-2\r\n~-2\r\n");
        for _ in 0..3 {
            assert_eq!(connection.reply().unwrap(), Value::Nil);
        }
    }

    #[test]
    fn a_command_that_cannot_be_read_keeps_the_connection_from_others() {
        let mut connection = connection(b"+OK\r\n");
        assert_eq!(connection.req_packed_command(b"SELECT 3\r\n").unwrap(), Value::Okay);
        assert!(connection.is_spent());
    }
}
