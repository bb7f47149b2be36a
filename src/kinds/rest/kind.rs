//! [`RestKind`], by which the shared part knows a kind.

use std::future::ready;
use std::sync::Arc;

use reqwest::Url;

use crate::base::error::{Error, Failure};
use crate::base::secret::Secret;
use crate::kinds::rest::fields::RestLimits;
use crate::kinds::rest::resource::RestResource;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestSettings, Requests};

/// The configuration of a kind whose server speaks HTTP. Only the crate implements it.
pub trait RestKind: KindConfig<Resource = RestResource<Self>> {
    /// The handle that the slot holds.
    #[doc(hidden)]
    type Handle: Clone + Send + Sync + 'static;

    /// The phase in which the kind closes.
    #[doc(hidden)]
    const PHASE: Phase;

    /// The URL that the paths of requests are below. `None` if there is none, and no default either.
    #[doc(hidden)]
    fn base(&self) -> Option<Url>;

    /// The limits of the client.
    #[doc(hidden)]
    fn limits(&self) -> RestLimits;

    /// The proxy, and whether those of the environment are used.
    #[doc(hidden)]
    fn proxies(&self) -> (Option<&Secret>, bool) {
        (None, false)
    }

    /// Adds the login, and all else that only this kind sends, to the settings of the resource of this name.
    #[doc(hidden)]
    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error>;

    /// Whether a file has the login. A login that is refused may pass then, because the file may just be replaced.
    #[doc(hidden)]
    fn is_by_file(&self) -> bool {
        self.password_file().is_some()
    }

    /// Makes the handle, whose server nobody has asked yet.
    #[doc(hidden)]
    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<Self::Handle, Failure>;

    /// The requests of a handle.
    #[doc(hidden)]
    fn requests(handle: &Self::Handle) -> &Requests;

    /// Has the questions for health asked with these settings from now on.
    #[doc(hidden)]
    fn renew(handle: &Self::Handle, settings: &RequestSettings) -> Result<(), Failure>;

    /// Asks whether the server serves this user, as the pool connects and as it brings a lost server back.
    #[doc(hidden)]
    fn prove(
        &self,
        handle: &Self::Handle,
        settings: &RequestSettings,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether this failure says that another sort of server answers. While a server restarts, one may do so in its
    /// place.
    #[doc(hidden)]
    fn is_foreign(_failure: &Failure) -> bool {
        false
    }

    /// The question of health checks.
    #[doc(hidden)]
    fn ping(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The prober's question.
    #[doc(hidden)]
    fn probe(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        self.ping(handle)
    }

    /// Sends what is buffered, as the drain begins.
    #[doc(hidden)]
    fn flush(_handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        ready(Ok(()))
    }

    /// Ends what the server holds for this client, before the requests end.
    #[doc(hidden)]
    fn end(_handle: &Self::Handle) -> impl Future<Output = ()> + Send {
        ready(())
    }
}
