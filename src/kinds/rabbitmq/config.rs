//! The configuration of a RabbitMQ: its fields, defaults and limits, and the driver's URI for them.

use std::sync::Arc;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use serde::Deserialize;

use crate::base::attribute;
use crate::base::error::{BoxError, Error, redacted};
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::rabbitmq::frame::LARGEST;
use crate::kinds::rabbitmq::resource::RabbitMqResource;
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{Tls, TlsOptions};
use crate::net::url::{LOGIN, ParsedUrl, host, port};

/// The schemes of a URL: plain, and over TLS.
pub(super) const SCHEMES: [&str; 2] = ["amqp", "amqps"];
/// The broker's own user, and that user's password.
const GUEST: &str = "guest";

/// How to reach a RabbitMQ; `[rabbitmq]` or `[named.rabbitmq.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RabbitMqConfig {
    /// `amqp://user:password@host:port/vhost`, instead of the parts. A part that the URL does not name keeps the value
    /// of its field, and `…/%2f` is the virtual host `/`. The URL may end in
    /// `?heartbeat=10&frame_max=131072&channel_max=2047`. `amqps://` uses TLS, at port 5671 unless the URL names one.
    /// `amqp://` without a port uses 5672. Environment: `AMQP_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `RABBITMQ_HOST`, `QAPUBSUB_IP`.
    pub host: String,
    /// Defaults to 5672. Environment: `RABBITMQ_PORT`, `QAPUBSUB_PORT`.
    pub port: u16,
    /// Defaults to `guest`, RabbitMQ's own (QUANTAXIS's is `admin`). Environment: `RABBITMQ_USER`, `QAPUBSUB_USER`.
    pub user: String,
    /// Defaults to `guest`, RabbitMQ's own (QUANTAXIS's is `admin`). Environment: `RABBITMQ_PASSWORD`, `QAPUBSUB_PWD`.
    pub password: Secret,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `RABBITMQ_PASSWORD_FILE`, `QAPUBSUB_PWD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The virtual host. Defaults to `/`. Environment: `RABBITMQ_VHOST`.
    pub vhost: String,
    /// The name that RabbitMQ's management shows. Defaults to `resource-pool`. The consumers' connection has
    /// ` consumers` added, and the prober's ` probe`.
    pub connection_name: String,
    /// The interval of heartbeats, in whole seconds, from 1 to 32,767. It is TCP's keepalive too. Defaults to 10 s. The
    /// lower of this and the broker's value counts.
    #[serde(rename = "heartbeat_ms", with = "millis")]
    pub heartbeat: Duration,
    /// The largest frame in bytes, 4096 to 1048576, or 0 (default) for the broker's own limit. That is 131072 unless
    /// the broker is told otherwise. The driver's two buffers are 64 times as large, but take only the memory that has
    /// been in use. With all else a connection begins with 0.2 MiB, and takes 8 MiB once 4 MiB have passed each way. A
    /// lower limit saves that memory at a price. A message whose headers do not fit into one frame ends the connection
    /// that all share, each time that it is delivered, whoever published it.
    pub frame_max: u32,
    /// The most channels on each connection. A consumer takes one. Defaults to 2047, the broker's own limit. The
    /// lower of this and the broker's value counts. A caller that wants one more waits at most the pool's acquire
    /// timeout.
    pub channel_max: u16,
    /// The most channels checked out at a time. [`channel`](crate::RabbitMq::channel) checks one out until it drops.
    /// Every other verb but [`consume`](crate::RabbitMq::consume) checks one out for as long as it takes. Defaults to
    /// 64, or to `channel_max` where that is less. A checkout waits at most the pool's acquire timeout.
    pub max_channels: usize,
    /// How many deliveries a consumer may have in hand, unless it sets its own prefetch. Defaults to 100.
    pub prefetch: u16,
    /// How many messages of a batch may be unconfirmed, and so in memory, at a time. Defaults to 4096. With fewer the
    /// broker writes persistent messages more slowly (the bench `publish`).
    pub confirm_window: usize,
    /// How many bytes of a batch may be unconfirmed at a time, with headers. Defaults to 16777216, 16 MiB. The driver
    /// has a copy of them until they are written. A single message may be larger, and is then in flight alone.
    pub confirm_window_bytes: usize,
    /// How long the broker may take to confirm a message. Defaults to 10 s.
    #[serde(rename = "confirm_timeout_ms", with = "millis")]
    pub confirm_timeout: Duration,
    /// How long the broker may take to answer anything else. Defaults to 10 s.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// How long the broker may take to answer the goodbye on a connection. Then the pool cuts the connection. Defaults
    /// to 2 s. Twice this time and half a second fit into `close.step`, which is 5 s, so raise both.
    #[serde(rename = "disconnect_timeout_ms", with = "millis")]
    pub disconnect_timeout: Duration,
    /// The options of TLS. Defaults to none: plain, unless the URL is an `amqps://`. Environment: `RABBITMQ_TLS`,
    /// `RABBITMQ_TLS_CA_FILE`, `RABBITMQ_TLS_CERT_FILE`, `RABBITMQ_TLS_KEY_FILE`, `RABBITMQ_TLS_SERVER_NAME`.
    pub tls: Option<TlsOptions>,
}

impl Default for RabbitMqConfig {
    fn default() -> Self {
        RabbitMqConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 5672,
            user: GUEST.to_owned(),
            password: GUEST.into(),
            password_file: None,
            vhost: "/".to_owned(),
            connection_name: "resource-pool".to_owned(),
            heartbeat: Duration::from_secs(10),
            frame_max: 0,
            channel_max: 2047,
            max_channels: 64,
            prefetch: 100,
            confirm_window: 4096,
            confirm_window_bytes: 16 << 20,
            confirm_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            disconnect_timeout: Duration::from_secs(2),
            tls: None,
        }
    }
}

impl RabbitMqConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        RabbitMqConfig { url: Some(url.into()), ..RabbitMqConfig::default() }
    }

    /// Sets the file that has the password, which is read again at every connect.
    pub fn password_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.password_file = Some(file.into());
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the name that RabbitMQ's management shows.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.connection_name = name.into();
        self
    }

    /// Sets the most channels checked out at a time.
    pub fn max_channels(mut self, max_channels: usize) -> Self {
        self.max_channels = max_channels;
        self
    }

    /// Sets how many deliveries a consumer may have in hand.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Sets how long the broker may take to confirm a message.
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.confirm_timeout = limit;
        self
    }

    /// Sets how long the broker may take to answer anything else.
    pub fn operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// The driver's error, without the password.
    pub(super) fn redacted(&self, error: lapin::Error) -> BoxError {
        let told = !matches!(
            error.kind(),
            lapin::ErrorKind::IOError(_)
                | lapin::ErrorKind::InvalidConnectionState(_)
                | lapin::ErrorKind::InvalidChannelState(..)
                | lapin::ErrorKind::MissingHeartbeatError
        );
        let by_file = self.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        let secrets: Vec<_> = [&self.password].into_iter().chain(&by_file).map(Secret::expose).collect();
        redacted(error, told, &secrets, &[&self.user, &self.vhost])
    }

    /// The URI for the driver. It is built from parts, because the driver's parser loses IPv6 addresses and takes `/`
    /// for the vhost "".
    pub(super) fn uri(&self, frame_max: u32) -> AMQPUri {
        let userinfo = AMQPUserInfo { username: self.user.clone(), password: self.password.expose().to_owned() };
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo, host: self.host.clone(), port: self.port },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(frame_max),
                channel_max: Some(self.channel_max),
                heartbeat: Some(u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX)),
                ..AMQPQueryString::default()
            },
        }
    }
}

impl RabbitMqConfig {
    setters! {
        plain {
            /// Sets the port.
            port: u16,
            /// Sets the interval of heartbeats, in whole seconds.
            heartbeat: Duration,
            /// Sets the largest frame in bytes, or 0 for the broker's own limit.
            frame_max: u32,
            /// Sets the most channels on the connection.
            channel_max: u16,
            /// Sets how many messages of a batch may be unconfirmed at a time.
            confirm_window: usize,
            /// Sets how many bytes of a batch may be unconfirmed at a time.
            confirm_window_bytes: usize,
            /// Sets how long the broker may take to answer the goodbye on a connection.
            disconnect_timeout: Duration,
        }
        text {
            /// Sets the host.
            host: String,
            /// Sets the user.
            user: String,
            /// Sets the password.
            password: Secret,
            /// Sets the virtual host.
            vhost: String,
        }
    }
}

impl KindConfig for RabbitMqConfig {
    const KIND: &'static str = "rabbitmq";
    const SYSTEM: (&'static str, &'static str) = (attribute::MESSAGING_SYSTEM, "rabbitmq");
    const IS_OURS: bool = true;
    type Resource = RabbitMqResource;

    const NAMES: Names = Names {
        url: ("url", &["AMQP_URL"]),
        parts: [
            ("host", &["RABBITMQ_HOST", "QAPUBSUB_IP"]),
            ("port", &["RABBITMQ_PORT", "QAPUBSUB_PORT"]),
            ("user", &["RABBITMQ_USER", "QAPUBSUB_USER"]),
            ("password", &["RABBITMQ_PASSWORD", "QAPUBSUB_PWD"]),
            ("vhost", &["RABBITMQ_VHOST"]),
        ],
        plain: &["amqp"],
        tls: [
            "RABBITMQ_TLS",
            "RABBITMQ_TLS_CA_FILE",
            "RABBITMQ_TLS_CERT_FILE",
            "RABBITMQ_TLS_KEY_FILE",
            "RABBITMQ_TLS_SERVER_NAME",
        ],
    };

    fn is_half(&self, is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        let is_half = self.user != GUEST
            && is_said("user")
            && !is_said("password")
            && self.password_file.is_none()
            && self.url.is_none();
        is_half.then_some(("user", "is without a password"))
    }

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.user != GUEST || self.password != GUEST.into() || self.password_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (GUEST.to_owned(), GUEST.into());
    }

    fn forget_password(&mut self) -> bool {
        std::mem::replace(&mut self.password, GUEST.into()) != GUEST.into()
    }

    fn password_file(&self) -> Option<&SecretFile> {
        self.password_file.as_ref()
    }

    fn set_password_file(&mut self, file: Option<SecretFile>) {
        self.password_file = file;
    }

    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::Host => host(key, text)?.clone_into(&mut self.host),
            Part::Port => self.port = port(key, text)?,
            Part::User => text.clone_into(&mut self.user),
            Part::Password => self.password = text.into(),
            Part::Place => text.clone_into(&mut self.vhost),
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(url) = self.url.take() else { return Ok(()) };
        let url = ParsedUrl::new(key, &url, &SCHEMES)?;
        TlsOptions::agree(&mut self.tls, key, url.scheme(), SCHEMES)?;
        self.host = url.host().to_owned();
        self.port = url.port().unwrap_or(if self.tls.is_some() { 5671 } else { 5672 });
        let (user, password) = (url.user(key)?, url.password(key)?);
        let has_password = password.is_some() || self.password != GUEST.into() || self.password_file.is_some();
        if user.as_ref().is_some_and(|user| user != GUEST) && !has_password {
            return Err(Error::config(key, format!("has a user without a password; expected amqp://{LOGIN}")));
        }
        self.user = user.unwrap_or(std::mem::take(&mut self.user));
        if let Some(password) = password {
            self.password = password;
        }
        if let Some(vhost) = Some(url.path(key)?).filter(|vhost| !vhost.is_empty()) {
            self.vhost = vhost;
        }
        for (name, value) in url.parameters() {
            let bad = || Error::config(key, format!("has a parameter `{name}` that is not a number in range"));
            match &*name {
                "heartbeat" => self.heartbeat = Duration::from_secs(value.parse::<u16>().map_err(|_| bad())?.into()),
                "frame_max" => self.frame_max = value.parse().map_err(|_| bad())?,
                "channel_max" => self.channel_max = value.parse().map_err(|_| bad())?,
                _ => {
                    return Err(Error::config(
                        key,
                        format!("has the unknown parameter `{name}`; known are heartbeat, frame_max, channel_max"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        checks.limits(&[
            ("confirm_timeout_ms", self.confirm_timeout),
            ("operation_timeout_ms", self.operation_timeout),
            ("disconnect_timeout_ms", self.disconnect_timeout),
        ])?;
        checks
            .counts(&[("confirm_window", self.confirm_window), ("confirm_window_bytes", self.confirm_window_bytes)])?;
        let fail = |field: &str, problem: &str| checks.fail(field, problem);
        match self {
            Self { heartbeat, .. } if !(1..=32_767).contains(&heartbeat.as_secs()) => {
                fail("heartbeat_ms", "must be from 1000 to 32767999: it is TCP's keepalive too, of up to 32767 s")
            }
            Self { frame_max, .. } if *frame_max != 0 && !(4096..=LARGEST).contains(frame_max) => fail(
                "frame_max",
                "must be from 4096 to 1048576, as the driver's buffers take 64 times as much, or 0 for the broker's own",
            ),
            Self { channel_max: 0, .. } => fail("channel_max", "must be at least 1"),
            Self { prefetch: 0, .. } => {
                fail("prefetch", "must be at least 1: with 0 the broker would send without a bound")
            }
            Self { max_channels: 0, .. } => fail("max_channels", "must be at least 1"),
            Self { user, .. } if user.contains('\0') => fail("user", "has a NUL in it, which would end it"),
            Self { password, .. } if password.expose().contains('\0') => {
                fail("password", "has a NUL in it, which the broker takes for its beginning")
            }
            Self { vhost, .. } if vhost.len() > 255 => fail("vhost", "is longer than 255 bytes"),
            _ => Ok(()),
        }
    }

    fn resource(&self, name: &str) -> Result<RabbitMqResource, Error> {
        let config = self.settled(name)?;
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(RabbitMqResource { config: Arc::new(config), tls })
    }
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPSoftError};

    use super::RabbitMqConfig;
    use crate::base::secret::SecretFile;

    #[test]
    fn a_password_that_the_file_had_before_is_withheld() {
        let config = RabbitMqConfig::default().password_file(SecretFile::that_had(&["first", "second", "third"]));
        let told = |words: &str| {
            let error = AMQPError::new(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND), words.into());
            config.redacted(ErrorKind::ProtocolError(error).into()).to_string()
        };
        assert!(told("no queue 'first'").contains("withheld"));
        assert!(told("no queue 'second'").contains("withheld"));
        assert!(told("no queue 'fourth'").contains("fourth"));
    }
}
