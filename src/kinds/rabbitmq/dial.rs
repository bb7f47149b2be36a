//! Connecting to the broker, over streams of this crate's own.
//!
//! `RabbitMqSession::open_generation` dials the connection that all share, and the prober dials its own. The driver runs a
//! thread for each connection, and that thread owns the socket. The socket is under a kill switch from the beginning.
//! `CutOnDrop` throws the switch if a connect is given up, so that neither thread nor socket stays behind.
//!
//! `gone` is cancelled once the driver's thread has ended and its socket is gone. There is no lock here. The driver's
//! thread and its tasks log nothing, because they would log the password.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor};
use async_rs::util::{RuntimeParts, Task};
use async_rs::{Runtime, Tokio};
use futures_core::Stream;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, ConnectionProperties, ErrorKind};
use tokio::runtime::Handle;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use tracing::dispatcher::{self, DefaultGuard, Dispatch};
use tracing::instrument::WithSubscriber;

use crate::base::error::Failure;
use crate::base::runtime::within;
use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::frame::{LARGEST, MORE_THAN_USUAL};
use crate::kinds::rabbitmq::generation::LINGER;
use crate::lifecycle::kind::KindConfig;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{self, Stream as OwnStream, Tls};

/// A new connection. It is cut when it drops, unless it is taken before.
pub(super) struct Dialled {
    pub(super) connection: lapin::Connection,
    pub(super) switch: KillSwitch,
    pub(super) gone: CancellationToken,
    cut: CutOnDrop,
}

impl Dialled {
    pub(super) fn connect(self) -> lapin::Connection {
        self.cut.disarm();
        self.connection
    }
}

/// Throws the switch when it drops, unless it is disarmed. A connect that is given up must not leave its thread and its
/// socket behind.
pub(super) struct CutOnDrop(Option<KillSwitch>);

impl CutOnDrop {
    pub(super) fn new(switch: &KillSwitch) -> Self {
        CutOnDrop(Some(switch.clone()))
    }

    pub(super) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(switch) = &self.0 {
            switch.cut();
        }
    }
}

/// A connection of users. Its frames are as large as the configuration says, or else as the broker allows.
pub(super) async fn dial_for_all(config: &RabbitMqConfig, tls: &Tls, name: &str) -> Result<Dialled, Failure> {
    let dial = |frame_max| dial(config, tls, name, frame_max);
    if config.frame_max != 0 {
        return dial(config.frame_max).await;
    }
    // The driver makes its first buffers before it knows the broker's limit. Buffers that it makes afterwards it fills
    // with zeros, which takes all their memory at once. So the first connect asks for a byte more than usual, and finds
    // out the limit.
    let dialled = dial(MORE_THAN_USUAL).await?;
    if dialled.connection.configuration().frame_max() < MORE_THAN_USUAL {
        return Ok(dialled);
    }
    let disconnect = dialled.connection.close(200, "OK".into());
    let said = within(config.disconnect_timeout, disconnect).await;
    // The driver would call a cut an error, in the log too, so it gets time to end by itself.
    let _ = within(LINGER, dialled.gone.cancelled()).await;
    tracing::debug!(host = %config.host, ?said, "the broker allows larger frames than usual: connecting again for them");
    drop(dialled);
    dial(LARGEST).await
}

/// Connects on the current runtime.
pub(super) async fn dial(config: &RabbitMqConfig, tls: &Tls, name: &str, frame_max: u32) -> Result<Dialled, Failure> {
    let config = &*config.current().await?;
    let switch = KillSwitch::new();
    let cut = CutOnDrop::new(&switch);
    let gone = CancellationToken::new();
    let tokio = Tokio::default().with_handle(Handle::current());
    let kit = RuntimeParts::new(Quiet(tokio.clone()), OwnStreams(tokio));
    // The driver's thread owns this guard, and drops it after the socket as it ends.
    let ended = gone.clone().drop_guard();
    let (under, tls, host, port) = (switch.clone(), tls.clone(), config.host.clone(), config.port);
    let keepalive = config.heartbeat;
    let connect = async move |_: AMQPUri, _: Runtime<Kit>| {
        let _owned = &ended;
        quieten_this_thread();
        tokio::select! {
            // lapin calls a stream plain if it adds nothing to it, so one under TLS of our own is plain too.
            opened = tls.dial(&host, port, keepalive, &under) => Ok(AsyncTcpStream::Plain(opened?.compat())),
            () = under.wait() => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connecting = lapin::Connection::connector(config.uri(frame_max), Runtime::new(kit), connect, properties);
    let connection = connecting.await.map_err(|error| {
        let may_pass = is_refused_login(&error) && config.password_file.is_some();
        let permanent = !may_pass && is_permanent(&error);
        let source = config.redacted(error);
        if permanent { Failure::permanent(source) } else { Failure::transient(source) }
    })?;
    Ok(Dialled { connection, switch, gone, cut })
}

/// Silences the driver's thread, which would log the password, byte by byte, at TRACE. This crate logs the important
/// events itself.
fn quieten_this_thread() {
    thread_local! {
        static QUIET: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
    }
    QUIET.with(|quiet| {
        quiet.borrow_mut().get_or_insert_with(|| dispatcher::set_default(&Dispatch::none()));
    });
}

/// Whether the broker refuses the user or the password. This may pass if a file has the password, because the file may
/// just be replaced.
fn is_refused_login(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)))
}

/// Whether a failure to connect is permanent: a wrong user, password or virtual host, or another protocol. A broker
/// that is full may have room later.
fn is_permanent(error: &lapin::Error) -> bool {
    match error.kind() {
        _ if is_refused_login(error) => true,
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => !is_full(error.get_message().as_str()),
            _ => false,
        },
        ErrorKind::AuthProviderError(_) | ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => true,
        _ => tls::is_permanent(error),
    }
}

/// Whether the server speaks another protocol.
pub(super) fn is_no_amqp(failure: &Failure) -> bool {
    let driver = failure.source().downcast_ref::<lapin::Error>();
    driver.is_some_and(|error| matches!(error.kind(), ErrorKind::ParsingError(_)))
}

/// Whether a user, a virtual host or a node has as many connections as it may. The text has names only before its end,
/// in quotes.
fn is_full(refusal: &str) -> bool {
    refusal.ends_with("is reached")
}

type Kit = RuntimeParts<Quiet, OwnStreams>;

/// Tokio's executor, except that the driver's tasks log nothing. A task that cannot send the login would log it at
/// TRACE.
#[derive(Debug, Clone)]
struct Quiet(Tokio);

impl Executor for Quiet {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        // The driver spawns a task for each acknowledgement. A subscriber made for each of them would have all callsites
        // of the log asked again.
        self.0.spawn(future.with_subscriber(Dispatch::none()))
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, run: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(run)
    }
}

/// Tokio's reactor, except that streams are under a kill switch.
#[derive(Debug, Clone)]
struct OwnStreams(Tokio);

impl Reactor for OwnStreams {
    type TcpStream = Compat<OwnStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[allow(refining_impl_trait, reason = "never used by the driver, so that any stream will do")]
    fn register<H: Read + Write + Send + 'static>(&self, _: H) -> io::Result<Self::TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    #[allow(clippy::manual_async_fn, reason = "an async fn would borrow self")]
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let unused = format!("{address}: every stream is opened by our own connector");
        async move { Err(io::Error::new(io::ErrorKind::Unsupported, unused)) }
    }
}
