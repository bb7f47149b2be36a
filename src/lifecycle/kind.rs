//! A kind of resource as the core knows it: a configuration that can be compared, told and made a resource of.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::base::environment::Environment;
use crate::base::error::{Error, Remedies};
use crate::base::origins::Origins;
use crate::base::secret::Secret;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::context::Context;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::net::parts::{Names, Part, Protection};
use crate::net::tls::TlsOptions;

/// The configuration of a kind: what a pool has to know of it to read it from TOML, from the environment and from code,
/// and to make a resource of it.
///
/// Its fields are those of its TOML section, whose name is [`KIND`](KindConfig::KIND). A section may have some of them, so that
/// it wants `#[serde(default, deny_unknown_fields)]`. `Debug` is in the log of `warm_up`, so that what is secret is a
/// [`Secret`].
pub trait KindConfig: Default + Clone + PartialEq + fmt::Debug + DeserializeOwned + Send + Sync + 'static {
    /// The name of the default resource, of its TOML section, and of the kind.
    const KIND: &'static str;
    /// What the environment calls the fields.
    const NAMES: Names;
    /// Whether its code is the crate's own, which never blocks a thread of the pool's.
    #[doc(hidden)]
    const IS_OURS: bool = false;
    /// What it makes.
    type Resource: Resource;

    /// The field that a URL is in.
    fn url_mut(&mut self) -> &mut Option<Secret>;
    /// The options of TLS, if it is on.
    fn tls_mut(&mut self) -> &mut Option<TlsOptions>;
    /// Whether the fields have another login than the defaults.
    fn has_login(&self) -> bool;
    /// Takes user and password back to their defaults.
    fn forget_login(&mut self);
    /// Sets one part, in the URL if that cannot be taken apart. `key` is the variable that says it.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error>;
    /// Moves what the URL says into the other fields, as far as they can say it, or only checks it. What the URL does
    /// not name stays as the fields have it. `key` is what says the URL.
    ///
    /// # Errors
    /// [`Error::Config`] of this key.
    fn take_apart(&mut self, key: &str) -> Result<(), Error>;
    /// A URL that is not taken apart is told whether TLS is on.
    fn switch_tls(&mut self, _on: bool) {}
    /// Checks the fields, and brings them into shape. A kind whose URL is not taken apart checks it with them, in
    /// [`settled`](KindConfig::settled).
    ///
    /// # Errors
    /// [`Error::Config`] of the field, as in `redis.pool_size`.
    fn check(&mut self, _name: &str) -> Result<(), Error> {
        Ok(())
    }
    /// The field that is missing beside the others, and what is wrong with that, before a URL is taken apart. `is_said` tells
    /// which fields were said. What code brings along is for [`check`](KindConfig::check) to look at.
    fn is_half(&self, _is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        None
    }
    /// The resource of this name that it describes, once it is [`settled`](KindConfig::settled), which is for this to call.
    /// Connects nothing yet.
    ///
    /// # Errors
    /// [`Error::Config`], as [`settled`](KindConfig::settled) answers it.
    fn resource(&self, name: &str) -> Result<Self::Resource, Error>;

    /// What protects it, whether a URL or a part says so; nothing if the URL cannot be used.
    fn protection(&self) -> Protection {
        let mut config = self.clone();
        match config.take_apart("") {
            Ok(()) => Protection { tls: config.tls_mut().is_some(), login: config.has_login() },
            Err(_told_where_it_is_used) => Protection::default(),
        }
    }

    /// The configuration as it counts, taken apart and checked. Reads TLS's files, and does no other I/O.
    ///
    /// # Errors
    /// Those of [`take_apart`](KindConfig::take_apart) and [`check`](KindConfig::check).
    fn settled(&self, name: &str) -> Result<Self, Error> {
        let mut config = self.clone();
        config.take_apart(&format!("{name}.{}", Self::NAMES.url.0))?;
        config.check(name)?;
        Ok(config)
    }

    /// What a pool would take without any code: the defaults, and over them what this process's environment says.
    ///
    /// # Errors
    /// [`Error::Config`] for a variable that cannot be used.
    fn from_env() -> Result<Self, Error> {
        let (mut config, mut origins) = (Self::default(), Origins::default());
        config.apply(&Environment::process(), &mut origins)?;
        config.settled(Self::KIND).map_err(|error| origins.blame(error))?;
        Ok(config)
    }
}

/// How the environment comes over a configuration, the same for every kind.
pub(crate) trait FromEnvironment: KindConfig {
    /// Lets the environment override what TOML or the defaults said.
    ///
    /// A URL replaces place, login and TLS, and the parts beside it only complete it. Without a URL each part replaces
    /// that part alone, so that the login and TLS of a URL in TOML stay.
    fn apply(&mut self, environment: &Environment, origins: &mut Origins) -> Result<(), Error> {
        let Names { url: (url_field, _), parts, tls: [switch, files @ ..], .. } = Self::NAMES;
        let key = |field: &str| format!("{}.{field}", Self::KIND);
        let below = self.clone();
        let url = Self::NAMES.url(environment)?;
        let is_named = |part: Part| url.as_ref().is_some_and(|(_, url)| part.is_named_by(url));
        let mut said = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| !is_named(*part)) {
            said.extend(Self::NAMES.part(environment, part)?.map(|(variable, text)| (part, variable, text)));
        }
        let on = environment.switch(switch)?;
        let by_file = environment.first(&files)?.is_some();
        match &url {
            Some((variable, url)) => {
                self.forget_login();
                *self.url_mut() = None;
                if Self::NAMES.is_plain(url) {
                    *self.tls_mut() = None;
                }
                for field in parts.iter().map(|(field, _)| *field).chain([url_field]) {
                    origins.variable(key(field), variable);
                }
            }
            None if said.is_empty() && on.is_none() && !by_file => return Ok(()),
            None => self.take_apart(&key(url_field))?,
        }
        for (part, variable, text) in said {
            self.set(part, variable, &text)?;
            origins.variable(key(parts[part as usize].0), variable);
        }
        TlsOptions::apply(self.tls_mut(), environment, Self::NAMES.tls)?;
        for (field, variable) in
            ["tls", "tls.ca_file", "tls.cert_file", "tls.key_file", "tls.server_name"].iter().zip(Self::NAMES.tls)
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
        let by = |variable| url.as_ref().map_or(variable, |(variable, _)| *variable);
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

/// The configuration of one resource, whatever its kind. Every `…Config` turns into one.
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

    /// The configuration as it counts, for the log.
    pub(crate) fn effective(&self, name: &str) -> Result<String, Error> {
        self.0.effective(name)
    }

    /// What URLs, parts and the environment call its fields.
    pub(crate) fn names(&self) -> &'static Names {
        self.0.names()
    }

    /// A resource of this configuration.
    pub(crate) fn slot(
        &self,
        name: &str,
        remedies: Remedies,
        context: &Arc<Context>,
    ) -> Result<Arc<dyn AnySlot>, Error> {
        self.0.slot(name, remedies, context)
    }

    /// [`KindConfig::is_half`].
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

/// [`KindConfig`] without its types.
trait AnyConfig: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn kind(&self) -> &'static str;
    fn is_same(&self, other: &dyn AnyConfig) -> bool;
    fn effective(&self, name: &str) -> Result<String, Error>;
    fn names(&self) -> &'static Names;
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

    fn slot(&self, name: &str, remedies: Remedies, context: &Arc<Context>) -> Result<Arc<dyn AnySlot>, Error> {
        Ok(Slot::configured(name, C::KIND, C::IS_OURS, self.resource(name)?, remedies, Arc::clone(context)))
    }

    fn is_half(&self, is_said: &dyn Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
        KindConfig::is_half(self, is_said)
    }
}
