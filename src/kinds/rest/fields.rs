//! The code that each of these kinds would write alike: the fields of its configuration, the methods that go with them, and
//! how its handle is leased.

use std::time::Duration;

/// The limits of a client.
#[derive(Debug, Clone, Copy)]
pub struct RestLimits {
    /// The limit for opening a connection, with DNS and TLS.
    pub connect_timeout: Duration,
    /// How long the server may be silent.
    pub read_timeout: Duration,
    /// The limit of a whole request, its answer included. Zero is none.
    pub operation_timeout: Duration,
    /// The most requests at a time.
    pub max_requests: usize,
    /// The most idle connections that are kept.
    pub max_idle: usize,
    /// The time after which an idle connection is closed.
    pub idle_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins.
    pub keepalive: Duration,
    /// The most bytes of an answer that is read as a whole.
    pub max_body: usize,
}

/// Makes the limits of the fields that have their names.
macro_rules! limits {
    ($config:expr) => {
        $crate::kinds::rest::RestLimits {
            connect_timeout: $config.connect_timeout,
            read_timeout: $config.read_timeout,
            operation_timeout: $config.operation_timeout,
            max_requests: $config.max_requests,
            max_idle: $config.max_idle,
            idle_timeout: $config.idle_timeout,
            keepalive: $config.keepalive,
            max_body: $config.max_body,
        }
    };
}

/// Makes the setters of the limits, within the `impl` of a configuration.
macro_rules! limit_setters {
    () => {
        $crate::base::setters::setters! {
            plain {
                /// Sets the limit for opening a connection.
                connect_timeout: std::time::Duration,
                /// Sets how long the server may be silent.
                read_timeout: std::time::Duration,
                /// Sets the limit of a whole request, its answer included. Zero is none.
                operation_timeout: std::time::Duration,
                /// Sets the most requests at a time.
                max_requests: usize,
                /// Sets the most idle connections that are kept.
                max_idle: usize,
                /// Sets the time after which an idle connection is closed.
                idle_timeout: std::time::Duration,
                /// Sets the time without traffic after which TCP keepalive begins.
                keepalive: std::time::Duration,
                /// Sets the most bytes of an answer that is read as a whole.
                max_body: usize,
            }
        }
    };
}

/// Makes the methods of `KindConfig` for a kind that logs in by one secret, within its `impl`: a token or a key, or the
/// file that has it. Headers may have secrets too.
#[cfg(any(feature = "chroma", feature = "llm", feature = "milvus"))]
macro_rules! one_secret {
    ($url:ident, $secret:ident, $file:ident $(, $headers:ident)?) => {
        fn url_mut(&mut self) -> &mut Option<$crate::base::secret::Secret> {
            &mut self.$url
        }

        fn tls_mut(&mut self) -> &mut Option<$crate::net::tls::TlsOptions> {
            &mut self.tls
        }

        fn has_login(&self) -> bool {
            self.$secret.is_some() || self.$file.is_some() $(|| !self.$headers.is_empty())?
        }

        fn forget_login(&mut self) {
            self.$secret = None;
            $(self.$headers.clear();)?
        }

        fn forget_password(&mut self) -> bool {
            self.$secret.take().is_some()
        }

        fn password_file(&self) -> Option<&$crate::base::secret::SecretFile> {
            self.$file.as_ref()
        }

        fn set_password_file(&mut self, file: Option<$crate::base::secret::SecretFile>) {
            self.$file = file;
        }

        /// Sets the secret, which alone is a part that has a variable.
        fn set(&mut self, _: $crate::net::parts::Part, _: &str, text: &str) -> Result<(), $crate::base::error::Error> {
            self.$secret = Some(text.into());
            Ok(())
        }

        fn switch_tls(&mut self, on: bool) {
            use $crate::net::base_url::BaseUrl;
            self.$url = self.$url.as_ref().map(|url| BaseUrl::with_tls(url, on));
        }
    };
}

/// Makes the methods of `KindConfig` for a kind that logs in by a user and a password, within its `impl`.
macro_rules! user_and_password {
    () => {
        fn url_mut(&mut self) -> &mut Option<$crate::base::secret::Secret> {
            &mut self.url
        }

        fn tls_mut(&mut self) -> &mut Option<$crate::net::tls::TlsOptions> {
            &mut self.tls
        }

        fn forget_password(&mut self) -> bool {
            self.password.take().is_some()
        }

        fn password_file(&self) -> Option<&$crate::base::secret::SecretFile> {
            self.password_file.as_ref()
        }

        fn set_password_file(&mut self, file: Option<$crate::base::secret::SecretFile>) {
            self.password_file = file;
        }

        fn set(
            &mut self,
            part: $crate::net::parts::Part,
            _: &str,
            text: &str,
        ) -> Result<(), $crate::base::error::Error> {
            use $crate::net::parts::Part;
            match part {
                Part::User => text.clone_into(&mut self.user),
                Part::Password => self.password = Some(text.into()),
                // They have no variables.
                Part::Host | Part::Port | Part::Place => {}
            }
            Ok(())
        }

        /// Moves the login out of the URL.
        fn take_apart(&mut self, key: &str) -> Result<(), $crate::base::error::Error> {
            use $crate::net::base_url::BaseUrl;
            let Some(text) = &self.url else { return Ok(()) };
            let BaseUrl { url, user, password } = BaseUrl::new(key, text, &mut self.tls)?;
            self.url = Some(url);
            if let Some(user) = user {
                self.user = user;
            }
            self.password = password.or(self.password.take());
            Ok(())
        }
    };
}

/// Has a handle leased as the client of either facade.
macro_rules! leased {
    ($handle:ident, $tasks:ty, $threads:ty) => {
        impl $crate::lifecycle::lease::LeaseAs<$tasks> for $handle {
            fn lease_as(&self) -> &$tasks {
                &self.tasks
            }
        }

        impl $crate::lifecycle::lease::LeaseAs<$threads> for $handle {
            fn lease_as(&self) -> &$threads {
                &self.threads
            }
        }

        impl std::fmt::Debug for $handle {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($handle)).field(&self.tasks).finish()
            }
        }
    };
}

#[cfg(any(feature = "chroma", feature = "llm", feature = "milvus"))]
pub(crate) use one_secret;
pub(crate) use {leased, limit_setters, limits, user_and_password};
