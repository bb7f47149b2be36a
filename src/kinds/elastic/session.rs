//! The state that the verbs of an Elasticsearch need, and how they ask: once, or once more after a loss. Here is decided what
//! an answer proves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Method;
use serde::de::DeserializeOwned;

use crate::base::error::{BoxError, Error};
use crate::base::runtime::timer;
use crate::kinds::elastic::bulk::BulkWriters;
use crate::kinds::elastic::config::ElasticConfig;
use crate::kinds::elastic::errors::{ElasticError, advised, is_repeated, refused};
use crate::kinds::elastic::health::ClusterProbe;
use crate::kinds::elastic::scroll::OpenScrolls;
use crate::kinds::rest::doubted;
use crate::lifecycle::requests::Requests;

/// The bytes that cannot stand in a segment of a path.
const SEGMENT: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'<').add(b'>').add(b'?').add(b'\\');

/// The pause between two questions whether the server is back.
const PAUSE: Duration = Duration::from_millis(100);

/// The state that the verbs need.
pub(super) struct ElasticSession {
    pub(super) requests: Requests,
    pub(super) config: Arc<ElasticConfig>,
    pub(super) probe: ClusterProbe,
    pub(super) writers: BulkWriters,
    pub(super) scrolls: OpenScrolls,
}

/// The effect of a request that is sent twice.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Effect {
    /// None, or none but the first one's.
    Harmless,
    /// It changes nothing more, and yet its answer is another one: the next page of a scroll, or that there was no such
    /// document. So it is sent again only if it never left.
    Once,
    /// It may do harm.
    Changes,
}

/// A request, as it is sent, and perhaps sent again.
pub(super) struct Ask<'a> {
    /// The word for it in errors and events.
    pub(super) action: &'a str,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) content_type: &'static str,
    /// Empty for none.
    pub(super) body: Bytes,
    pub(super) effect: Effect,
}

impl<'a> Ask<'a> {
    /// A request without a body that does no harm twice.
    pub(super) fn new(action: &'a str, method: Method, path: String) -> Self {
        Ask { action, method, path, content_type: "application/json", body: Bytes::new(), effect: Effect::Harmless }
    }
}

impl ElasticSession {
    /// The whole answer, whose status is no error. The request is sent once more after a loss, as the option `repeat`
    /// allows.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Bytes, Error> {
        let answer = self.ask_once(ask).await;
        if let Err(error) = &answer
            && self.is_asked_again(ask, error).await
        {
            return self.ask_once(ask).await;
        }
        answer
    }

    /// The whole answer as a `T`.
    pub(super) async fn ask_for<T: DeserializeOwned>(&self, ask: &Ask<'_>) -> Result<T, Error> {
        let answer = self.ask(ask).await?;
        self.parse(ask, &answer)
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, ask: &Ask<'_>, answer: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(answer).map_err(|error| self.unfit(ask, self.requests.withheld(error)))
    }

    /// The whole answer to a request that is sent once.
    pub(super) async fn ask_once(&self, ask: &Ask<'_>) -> Result<Bytes, Error> {
        let request = self.requests.request(ask.method.clone(), &ask.path).action(ask.action);
        let mut request = request.idempotent(ask.effect != Effect::Changes);
        if !ask.body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(ask.content_type)).body(ask.body.clone());
        }
        let answer = match request.send().await?.succeeded().await {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(advised(error)),
        };
        answer.map_err(|error| self.doubted(ask, error))
    }

    /// Tells if a request that failed so is sent once more. If so, it waits until the server is back.
    pub(super) async fn is_asked_again(&self, ask: &Ask<'_>, error: &Error) -> bool {
        let link = self.requests.link();
        if !is_repeated(link.repeat(), ask.effect, error) {
            return false;
        }
        let is_back = tokio::select! {
            is_back = self.is_back() => is_back,
            () = timer(link.patience()) => false,
        };
        if is_back {
            link.repeated(ask.action);
        }
        is_back
    }

    /// The error of a request whose answer has come and cannot be used.
    pub(super) fn unfit(&self, ask: &Ask<'_>, problem: impl Into<BoxError>) -> Error {
        self.doubted(ask, refused(self.requests.link(), ask.action, problem))
    }

    /// The error of a request that was answered so. If it may do harm twice, a status from 400 to 499 alone proves that it
    /// changed nothing. A proxy may answer another one after the server has got it.
    fn doubted(&self, ask: &Ask<'_>, error: Error) -> Error {
        let is_refused = ElasticError::of(&error).is_some_and(|told| told.status.is_client_error());
        if ask.effect == Effect::Changes && !is_refused { doubted(self.requests.link(), error) } else { error }
    }

    /// Waits until the server answers again. The prober may not have seen the loss yet, so the state of the resource is
    /// not enough. `false` if it is being closed.
    async fn is_back(&self) -> bool {
        loop {
            if self.requests.link().ready().await.is_err() {
                return false;
            }
            if self.probe.answers().await.is_ok() {
                return true;
            }
            timer(PAUSE).await;
        }
    }

    /// The path of an index, and of what is below it.
    ///
    /// # Errors
    /// A name that cannot be part of a URL. `.` and `..` would lead elsewhere.
    pub(super) fn path(&self, action: &str, segments: &[&str]) -> Result<String, Error> {
        let mut path = String::new();
        for segment in segments {
            if matches!(*segment, "" | "." | "..") {
                let text = format!("{segment:?} cannot be the name of an index, or an id");
                return Err(refused(self.requests.link(), action, text));
            }
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        Ok(path)
    }

    /// A body as JSON.
    pub(super) fn json<T: serde::Serialize + ?Sized>(&self, action: &str, body: &T) -> Result<Bytes, Error> {
        let body = serde_json::to_vec(body).map_err(|error| refused(self.requests.link(), action, error))?;
        Ok(body.into())
    }
}
