//! The resource of a client of HTTP: making it, proving that its server serves, bringing that back, and closing.
//!
//! A client outlives its server. So a recovery keeps the handle, and lets its requests be sent again once the server has
//! proved itself.

use std::fmt;
use std::sync::Arc;

use reqwest::StatusCode;

use crate::base::error::{Failure, causes};
use crate::kinds::rest::kind::RestKind;
use crate::kinds::rest::settings;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{HttpStatusError, RequestSettings};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A server that is reached by HTTP, in the pool.
pub struct RestResource<C: RestKind> {
    config: Arc<C>,
}

impl<C: RestKind> RestResource<C> {
    pub(crate) fn new(config: C) -> Self {
        RestResource { config: Arc::new(config) }
    }

    /// The configuration and the settings with the login and the certificates that their files have now. All else was checked
    /// before. So an error is one of a file, which may just be replaced, and may pass.
    async fn settings(&self, link: &Link) -> Result<(Arc<C>, RequestSettings), Failure> {
        let config = Arc::new(self.config.current().await?.into_owned());
        let (read, name) = (Arc::clone(&config), Arc::clone(link.name()));
        // The files of TLS are read, and those of the machine's authorities.
        let settings = tokio::task::spawn_blocking(move || settings::settings(&*read, &name)).await??;
        Ok((config, settings))
    }

    /// Asks the server for its proof. A login of a file that is refused may pass.
    async fn prove(&self, handle: &C::Handle, settings: &RequestSettings) -> Result<(), Failure> {
        self.config.prove(handle, settings).await.map_err(|failure| match self.config.is_by_file() {
            true if is_unknown_login(&failure) => failure.with_permanent(false),
            _ => failure,
        })
    }
}

/// Whether the server does not know the login.
fn is_unknown_login(failure: &Failure) -> bool {
    let mut told = causes(failure.source()).filter_map(|cause| cause.downcast_ref::<HttpStatusError>());
    told.any(|error| error.status == StatusCode::UNAUTHORIZED)
}

impl<C: RestKind> Resource for RestResource<C> {
    type Handle = C::Handle;

    async fn connect(&self, link: &Link) -> Result<C::Handle, Failure> {
        let (config, settings) = self.settings(link).await?;
        let handle = C::open(&config, link, settings.clone())?;
        self.prove(&handle, &settings).await?;
        Ok(handle)
    }

    async fn recover(&self, link: &Link, lost: &C::Handle) -> Result<bool, Failure> {
        let (_, settings) = self.settings(link).await?;
        C::renew(lost, &settings)?;
        self.prove(lost, &settings).await.map_err(|failure| {
            let permanent = failure.is_permanent() && !C::is_foreign(&failure);
            failure.with_permanent(permanent)
        })?;
        let requests = C::requests(lost);
        requests.replace(settings)?;
        requests.restore();
        Ok(true)
    }

    async fn ping(&self, handle: &C::Handle) -> Result<(), Failure> {
        self.config.ping(handle).await
    }

    async fn probe(&self, handle: &C::Handle) -> Result<(), Failure> {
        self.config.probe(handle).await
    }

    async fn flush(&self, handle: &C::Handle) -> Result<(), Failure> {
        C::flush(handle).await
    }

    async fn close(&self, handle: C::Handle) -> Result<(), Failure> {
        C::end(&handle).await;
        C::requests(&handle).end().await
    }

    async fn refresh(&self, handle: &C::Handle) -> Result<bool, Failure> {
        let requests = C::requests(handle);
        let (_, settings) = self.settings(requests.link()).await?;
        C::renew(handle, &settings)?;
        requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &C::Handle) {
        C::requests(handle).cut();
    }

    fn endpoint(&self) -> String {
        settings::server(&*self.config)
    }

    fn phase(&self) -> Phase {
        C::PHASE
    }

    fn usage(&self, handle: &C::Handle) -> Usage {
        Usage { max_idle: Some(self.config.limits().max_idle), ..C::requests(handle).usage() }
    }
}

impl<C: RestKind> fmt::Debug for RestResource<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestResource")
            .field("kind", &C::KIND)
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}
