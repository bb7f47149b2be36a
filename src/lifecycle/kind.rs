//! A kind of resource as the core knows it: a configuration that can be compared and printed, and that makes a
//! resource.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::base::attribute;
use crate::base::environment::{Environment, SHARED_URL};
use crate::base::error::{Error, Remedies};
use crate::base::origins::Origins;
use crate::base::secret::{Secret, SecretFile};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::context::Context;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::net::parts::{Field, Names, Part, Protection};
use crate::net::tls::TlsOptions;
use crate::net::variables::Variables;

/// The configuration of a kind of resource. A pool reads it from TOML, from the environment and from code, and makes a
/// resource of it.
///
/// Its fields are those of its TOML section, whose name is [`KIND`](KindConfig::KIND). A section may have only some of
/// them, so the type needs `#[serde(default, deny_unknown_fields)]`. `warm_up` writes its `Debug` to the log, so a
/// secret field is a [`Secret`].
pub trait KindConfig: Default + Clone + PartialEq + fmt::Debug + DeserializeOwned + Send + Sync + 'static {
    /// The name of the default resource, of its TOML section, and of the kind.
    const KIND: &'static str;
    /// The names of the fields in the environment.
    const NAMES: Names;
    /// Further fields that have variables. [`set_more`](KindConfig::set_more) sets them. Defaults to none.
    const MORE: &'static [Field] = &[];
    /// The name that OpenTelemetry has for the server's software, below the attribute that has it in spans:
    /// [`DATABASE_SYSTEM`](attribute::DATABASE_SYSTEM) or [`MESSAGING_SYSTEM`](attribute::MESSAGING_SYSTEM). Metrics
    /// have the name too. Defaults to a database by the name of the kind.
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, Self::KIND);
    /// The words that name the kind in variables that several kinds may read: the schemes of `DATABASE_URL`, and the
    /// values of `DB_KIND`, without which nobody reads `DB_HOST` and the like. Defaults to none.
    const SHARED_BY: &'static [&'static str] = &[];
    /// The schemes of `DATABASE_URL` that the crate's own kinds read, each with the feature that has its kind, and whether
    /// that feature is on. Any other scheme is an error.
    #[doc(hidden)]
    const SHARED_SCHEMES: &'static [(&'static str, &'static str, bool)] = &[];
    /// Whether its code is the crate's own, which never blocks a thread of the pool.
    #[doc(hidden)]
    const IS_OURS: bool = false;
    /// The resource that it makes.
    type Resource: Resource;

    /// The field for a URL.
    fn url_mut(&mut self) -> &mut Option<Secret>;
    /// The options of TLS. `None` if it is off.
    fn tls_mut(&mut self) -> &mut Option<TlsOptions>;
    /// Whether the fields have a login that differs from the defaults.
    fn has_login(&self) -> bool;
    /// Resets user and password to their defaults.
    fn forget_login(&mut self);
    /// Resets the password alone to its default. Answers whether it differed from that. A kind that reads no file may
    /// leave this out.
    fn forget_password(&mut self) -> bool {
        false
    }
    /// The field for the file that has the password, which is named as the password's and `_file`. `None` also for a kind
    /// that reads no file.
    fn password_file(&self) -> Option<&SecretFile> {
        None
    }
    /// Sets the field for the file that has the password. A kind that reads no file leaves this out.
    fn set_password_file(&mut self, _file: Option<SecretFile>) {}
    /// Sets one part. If the URL cannot be taken apart, the part is set in the URL. `key` is the variable that has the
    /// part.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error>;
    /// Sets one of the [further fields](KindConfig::MORE). `key` is the variable that has the text.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    fn set_more(&mut self, _field: &str, _key: &str, _text: &str) -> Result<(), Error> {
        Ok(())
    }
    /// Moves the parts of the URL into the other fields, as far as these can hold them, or only checks the URL. Parts
    /// that the URL does not name stay as they are in the fields. `key` is the key or variable that has the URL.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    fn take_apart(&mut self, key: &str) -> Result<(), Error>;
    /// Switches TLS on or off in a URL that is not taken apart.
    fn switch_tls(&mut self, _on: bool) {}
    /// Checks the fields and normalizes them. A kind whose URL is not taken apart checks the URL with them, in
    /// [`settled`](KindConfig::settled).
    ///
    /// # Errors
    /// [`Error::Config`] of the field, as in `redis.pool_size`.
    fn check(&mut self, _name: &str) -> Result<(), Error> {
        Ok(())
    }
    /// The field that lacks its other half, and the problem with that. The pool asks this before a URL is taken
    /// apart. `is_said` tells which fields TOML or the environment sets. Fields that code sets are left to
    /// [`check`](KindConfig::check).
    fn is_half(&self, _is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        None
    }
    /// Makes the resource of this name, and connects nothing yet. The implementation calls
    /// [`settled`](KindConfig::settled) first.
    ///
    /// # Errors
    /// [`Error::Config`], as from [`settled`](KindConfig::settled).
    fn resource(&self, name: &str) -> Result<Self::Resource, Error>;

    /// The protection that a URL or the parts ask for. None of it if the URL cannot be used.
    fn protection(&self) -> Protection {
        let mut config = self.clone();
        match config.take_apart("") {
            Ok(()) => Protection { tls: config.tls_mut().is_some(), login: config.has_login() },
            Err(_told_where_it_is_used) => Protection::default(),
        }
    }

    /// The configuration as it takes effect, taken apart and checked. This reads the files of TLS and of the password,
    /// and does no other I/O.
    ///
    /// # Errors
    /// Those of [`take_apart`](KindConfig::take_apart) and [`check`](KindConfig::check), and [`Error::Config`] of
    /// `password_file` if it cannot be read or stands beside a password.
    fn settled(&self, name: &str) -> Result<Self, Error> {
        let mut config = self.clone();
        config.take_apart(&format!("{name}.{}", Self::NAMES.url.0))?;
        config.read_password(name)?;
        config.check(name)?;
        Ok(config)
    }

    /// Reads the password's file, if there is one, and sets the password.
    ///
    /// # Errors
    /// [`Error::Config`] of the file's field if it cannot be read or stands beside a password.
    fn read_password(&mut self, name: &str) -> Result<(), Error> {
        let Some(file) = self.password_file().cloned() else { return Ok(()) };
        let key = format!("{name}.{}", Self::NAMES.password_file());
        if self.forget_password() {
            return Err(Error::config(key, "is set beside a password: leave out one of them"));
        }
        let password = file.read().map_err(|error| Error::config(&key, error))?;
        self.set(Part::Password, &key, password.expose())
    }

    /// The configuration with the password that its file has now, for a new connection. It is this configuration
    /// itself if there is no such file. The file is read on a thread of the runtime that may block.
    ///
    /// # Errors
    /// The file cannot be read. The error says what to do.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    fn current(&self) -> impl Future<Output = io::Result<Cow<'_, Self>>> + Send {
        async move {
            let Some(file) = self.password_file().cloned() else { return Ok(Cow::Borrowed(self)) };
            let read = tokio::task::spawn_blocking(move || file.read_again());
            let password = read.await.map_err(io::Error::other)??;
            let mut config = self.clone();
            config.set(Part::Password, &Self::NAMES.password_file(), password.expose()).map_err(io::Error::other)?;
            Ok(Cow::Owned(config))
        }
    }

    /// The configuration that a pool uses without any code: the defaults, overridden by this process's environment.
    ///
    /// # Errors
    /// [`Error::Config`] for a variable that cannot be used.
    fn from_env() -> Result<Self, Error> {
        let (mut config, mut origins) = (Self::default(), Origins::default());
        config.apply(
            Self::KIND,
            &Variables::of_kind(&Self::NAMES, Self::MORE),
            &Environment::process(),
            &mut origins,
        )?;
        config.settled(Self::KIND).map_err(|error| origins.blame(error))?;
        Ok(config)
    }
}

/// Applies the environment to a configuration, in the same way for every kind.
pub(crate) trait FromEnvironment: KindConfig {
    /// Whether the kind has a field for a password's file.
    fn reads_password_files() -> bool {
        let mut config = Self::default();
        config.set_password_file(Some(SecretFile::from("")));
        config.password_file().is_some()
    }

    /// Lets these variables of the environment override TOML and the defaults, for the resource of this name.
    ///
    /// A URL replaces address, login and TLS, and the parts beside it only complete it. Without a URL, each part
    /// replaces only itself, so the login and TLS of a URL in TOML stay. A shared URL whose scheme no kind reads is an
    /// error, unless TOML, code or another variable says where this resource is.
    fn apply(
        &mut self,
        name: &str,
        variables: &Variables,
        environment: &Environment,
        origins: &mut Origins,
    ) -> Result<(), Error> {
        let Names { url: (url_field, _), parts, .. } = Self::NAMES;
        let [switch, files @ ..] = &variables.tls;
        let key = |field: &str| format!("{name}.{field}");
        let below = self.clone();
        let environment = &environment.shared_by(Self::SHARED_BY, Self::SHARED_SCHEMES);
        let url = variables.url(environment)?;
        let is_named = |part: Part| url.as_ref().is_some_and(|(_, url)| part.is_named_by(url));
        let mut said = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| !is_named(*part)) {
            said.extend(variables.part(environment, part)?.map(|(variable, text)| (part, variable, text)));
        }
        let by_file = Self::reads_password_files() && !is_named(Part::Password);
        let password_file = if by_file { variables.password_file(environment)? } else { None };
        let has_password = said.iter().find(|(part, ..)| *part == Part::Password);
        if let (Some((file, _)), Some((_, password, _))) = (&password_file, has_password) {
            return Err(Error::config(*file, format!("is set beside {password}: leave out one of them")));
        }
        let more = variables.more(environment)?;
        let on = environment.switch(switch)?;
        let tls_by_file = environment.first(files)?.is_some();
        if url.is_none()
            && variables.all().any(|variable| variable == SHARED_URL)
            && let Err(error) = environment.check_shared_url()
        {
            // A file has no host.
            let place = if parts[Part::Host as usize].0.is_empty() { Part::Place } else { Part::Host };
            let is_noted = [url_field, parts[place as usize].0].iter().any(|field| origins.has(name, field));
            if !is_noted && !origins.is_by_code(name) && said.iter().all(|(part, ..)| *part != place) {
                return Err(error);
            }
            tracing::warn!("{error}; `{name}` has its place elsewhere, and goes without it");
        }
        match &url {
            Some((variable, url)) => {
                self.forget_login();
                self.set_password_file(None);
                *self.url_mut() = None;
                if Self::NAMES.is_plain(url) {
                    *self.tls_mut() = None;
                }
                for field in parts.iter().map(|(field, _)| *field).chain([url_field]) {
                    origins.variable(key(field), variable);
                }
            }
            None if said.is_empty() && password_file.is_none() && more.is_empty() && on.is_none() && !tls_by_file => {
                return Ok(());
            }
            None => {
                note_url(self, name, origins);
                self.take_apart(&key(url_field))?;
            }
        }
        for (part, variable, text) in said {
            if part == Part::Password {
                self.set_password_file(None);
            }
            self.set(part, variable, &text)?;
            origins.variable(key(parts[part as usize].0), variable);
        }
        if let Some((variable, path)) = password_file {
            self.forget_password();
            self.set_password_file(Some(path.into()));
            origins.variable(key(&Self::NAMES.password_file()), variable);
        }
        for (field, variable, text) in more {
            self.set_more(field, variable, &text)?;
            origins.variable(key(field), variable);
        }
        TlsOptions::apply(self.tls_mut(), environment, &variables.tls)?;
        for (field, variable) in
            ["tls", "tls.ca_file", "tls.cert_file", "tls.key_file", "tls.server_name"].iter().zip(&variables.tls)
        {
            if environment.get(variable)?.is_some() {
                origins.variable(key(field), variable);
            }
        }
        if let Some((variable, url)) = &url {
            *self.url_mut() = Some(url.as_str().into());
            self.take_apart(variable)?;
            if on == Some(false) && self.protection().tls {
                return Err(Error::config(switch, format!("is `false`, but {variable} asks for TLS")));
            }
        } else if let Some(on) = on {
            self.switch_tls(on);
        }
        let (before, after) = (below.protection(), self.protection());
        let from = |field| if below.clone().url_mut().is_some() { key(url_field) } else { key(field) };
        let by = |variable: &str| url.as_ref().map_or(variable, |(variable, _)| variable).to_owned();
        if before.tls && !after.tls {
            tracing::warn!("{} takes away the TLS that {} asks for", by(switch), from("tls"));
        }
        if before.login && !after.login {
            tracing::warn!("{} takes away the login that {} has", by("a URL"), from("password"));
        }
        Ok(())
    }
}

impl<C: KindConfig> FromEnvironment for C {}

/// Notes which fields the URL sets, before it is taken apart.
fn note_url<C: KindConfig>(config: &C, name: &str, origins: &mut Origins) {
    let Names { url: (url_field, _), parts, .. } = C::NAMES;
    let Some(url) = config.clone().url_mut().take() else { return };
    let parts = Part::ALL.into_iter().filter(|part| part.is_named_by(url.expose())).map(|part| parts[part as usize].0);
    let tls = (!C::NAMES.is_plain(url.expose())).then_some("tls");
    origins.derived(name, url_field, parts.chain(tls));
}

/// The configuration of one resource of any kind. Every `…Config` converts into it.
#[derive(Clone)]
pub struct ResourceConfig(Arc<dyn AnyConfig>);

impl ResourceConfig {
    /// The configuration, if it is of this kind.
    pub(crate) fn of<C: KindConfig>(&self) -> Option<&C> {
        self.0.as_any().downcast_ref()
    }

    /// The kind's name.
    pub(crate) fn kind(&self) -> &'static str {
        self.0.kind()
    }

    /// The configuration as it takes effect, for the log.
    pub(crate) fn effective(&self, name: &str) -> Result<String, Error> {
        self.0.effective(name)
    }

    /// The names of its fields, for URLs, parts and the environment.
    pub(crate) fn names(&self) -> &'static Names {
        self.0.names()
    }

    /// The variables of the resource of this name.
    pub(crate) fn variables(&self, name: &str) -> Variables {
        self.0.variables(name)
    }

    /// The same configuration with its URL [taken apart](KindConfig::take_apart), for the resource of this name.
    pub(crate) fn taken_apart(&self, name: &str) -> Result<ResourceConfig, Error> {
        self.0.taken_apart(name)
    }

    /// Notes which fields the URL of this resource sets.
    pub(crate) fn note_url(&self, name: &str, origins: &mut Origins) {
        self.0.note_url(name, origins);
    }

    /// Whether a file has the password.
    pub(crate) fn has_password_file(&self) -> bool {
        self.0.has_password_file()
    }

    /// Makes a resource of this configuration.
    pub(crate) fn slot(
        &self,
        name: &str,
        remedies: Remedies,
        context: &Arc<Context>,
    ) -> Result<Arc<dyn AnySlot>, Error> {
        self.0.slot(name, remedies, context)
    }

    /// Calls [`KindConfig::is_half`].
    pub(crate) fn is_half(&self, is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        self.0.is_half(is_said)
    }
}

impl<C: KindConfig> From<C> for ResourceConfig {
    fn from(config: C) -> Self {
        ResourceConfig(Arc::new(config))
    }
}

impl PartialEq for ResourceConfig {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_same(&*other.0)
    }
}

impl fmt::Debug for ResourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// [`KindConfig`] without its type, so that one map can hold all kinds.
trait AnyConfig: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn kind(&self) -> &'static str;
    fn is_same(&self, other: &dyn AnyConfig) -> bool;
    fn effective(&self, name: &str) -> Result<String, Error>;
    fn names(&self) -> &'static Names;
    fn variables(&self, name: &str) -> Variables;
    fn taken_apart(&self, name: &str) -> Result<ResourceConfig, Error>;
    fn note_url(&self, name: &str, origins: &mut Origins);
    fn has_password_file(&self) -> bool;
    fn slot(&self, name: &str, remedies: Remedies, context: &Arc<Context>) -> Result<Arc<dyn AnySlot>, Error>;
    fn is_half(&self, is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)>;
}

impl<C: KindConfig> AnyConfig for C {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn kind(&self) -> &'static str {
        C::KIND
    }

    fn is_same(&self, other: &dyn AnyConfig) -> bool {
        other.as_any().downcast_ref() == Some(self)
    }

    fn effective(&self, name: &str) -> Result<String, Error> {
        self.settled(name).map(|config| format!("{config:?}"))
    }

    fn names(&self) -> &'static Names {
        &C::NAMES
    }

    fn variables(&self, name: &str) -> Variables {
        match name == C::KIND {
            true => Variables::of_kind(&C::NAMES, C::MORE),
            false => Variables::of_named(C::KIND, &C::NAMES, C::MORE, name),
        }
    }

    fn taken_apart(&self, name: &str) -> Result<ResourceConfig, Error> {
        let mut config = self.clone();
        config.take_apart(&format!("{name}.{}", C::NAMES.url.0))?;
        Ok(config.into())
    }

    fn note_url(&self, name: &str, origins: &mut Origins) {
        note_url(self, name, origins);
    }

    fn has_password_file(&self) -> bool {
        self.password_file().is_some()
    }

    fn slot(&self, name: &str, remedies: Remedies, context: &Arc<Context>) -> Result<Arc<dyn AnySlot>, Error> {
        Ok(Slot::configured(
            name,
            (C::KIND, C::SYSTEM),
            C::IS_OURS,
            self.resource(name)?,
            remedies,
            Arc::clone(context),
        ))
    }

    fn is_half(&self, is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        KindConfig::is_half(self, is_said)
    }
}
