//! Scrolls, which read all hits of a search page by page. The server keeps a scroll open, and is told when it is done.
//!
//! A [`Scroll`] has an `OpenScroll` from its first page to its last. As that drops, a task tells the server to close it.
//! [`OpenScrolls`] lists those that are open, so that closing the pool can do the same. Its lock is held for a look only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::base::error::Error;
use crate::base::runtime::within;
use crate::kinds::elastic::answer::{Page, SearchAnswer, SearchHit};
use crate::kinds::elastic::errors::refused;
use crate::kinds::elastic::session::{Ask, Effect, ElasticSession};
use crate::lifecycle::work::Work;

/// The word for a page in errors.
const PAGE: &str = "a page of a scroll";

/// How long closing a scroll on the server may take. A server that is told nothing closes it by itself, after
/// `scroll_keep`.
const GOODBYE: Duration = Duration::from_secs(1);

/// The hits of a search, page by page, all as they were when the search began.
///
/// The server keeps the scroll until the last page, or until this drops, and is then told to close it. It closes it by
/// itself if no page is asked for within [`scroll_keep`](crate::config::ElasticConfig::scroll_keep). Closing the pool does
/// not wait for a scroll between two pages, but closes it.
#[must_use = "a scroll is open on the server until its last page or until this drops"]
pub struct Scroll<T> {
    session: Arc<ElasticSession>,
    /// `None` once it has ended.
    open: Option<OpenScroll>,
    /// The page that opened it, until it is given.
    first: Option<Vec<SearchHit<T>>>,
    /// Set if the future dropped that waited for the last page.
    lost_page: bool,
    /// How many hits it may still give.
    left: usize,
}

impl<T: DeserializeOwned> Scroll<T> {
    pub(super) async fn open<B: Serialize + ?Sized>(
        session: &Arc<ElasticSession>,
        index: &str,
        body: &B,
        limit: usize,
    ) -> Result<Self, Error> {
        let action = format!("a scroll of {index:?}");
        let link = session.requests.link();
        let body = serde_json::to_value(body).map_err(|error| refused(link, &action, error))?;
        let Value::Object(mut body) = body else {
            return Err(refused(link, &action, "the body of a search must be a JSON object"));
        };
        let size = body.entry("size").or_insert_with(|| session.config.scroll_size.into());
        if size.as_u64().is_some_and(|size| size > limit as u64) {
            *size = limit.max(1).into();
        }
        let path = format!("{}?scroll={}", session.path(&action, &[index, "_search"])?, keep(session));
        let ask = Ask { body: session.json(&action, &body)?, ..Ask::new(&action, Method::POST, path) };
        let answer = session.ask(&ask).await?;
        // A scroll whose first hits are no `T` is open on the server all the same.
        let close = |_: &Error| drop(opened(&answer).map(|id| OpenScroll::new(session, &id)));
        let page: Page<T> = session.parse(&ask, &answer).inspect_err(close)?;
        let mut scroll =
            Scroll { session: Arc::clone(session), open: None, first: None, lost_page: false, left: limit };
        scroll.first = Some(scroll.take(&action, page)?);
        Ok(scroll)
    }

    /// The next page, which has at least one hit. `None` after the last one, or once the limit is reached.
    ///
    /// # Errors
    /// [`Error::Operation`] with the server's answer, which also says that the scroll was closed because too much time
    /// passed, and for a page that lacks hits because a shard failed or was too late, or that lacks the scroll's name;
    /// [`Error::Lost`]; [`Error::Timeout`]; [`Error::Closed`]. No page comes after an error. Without one, `None` proves that
    /// no hit is missing.
    ///
    /// # Cancel safety
    /// Not cancel-safe: the page that is on its way is lost, so the scroll ends. The next call tells that by an error.
    pub async fn next(&mut self) -> Option<Result<Vec<SearchHit<T>>, Error>> {
        let page = match self.first.take() {
            Some(first) => Ok(first),
            None if std::mem::take(&mut self.lost_page) => {
                let text = "the page before was given up on its way, so the scroll has ended";
                Err(refused(self.session.requests.link(), PAGE, text))
            }
            None => {
                // It is taken out while the server is awaited, so that a scroll that lost a page ends.
                let open = self.open.take()?;
                self.lost_page = true;
                let page = self.turn(open).await;
                self.lost_page = false;
                page
            }
        };
        match page {
            Ok(page) if page.is_empty() => {
                self.open = None;
                None
            }
            page => Some(page),
        }
    }

    async fn turn(&mut self, open: OpenScroll) -> Result<Vec<SearchHit<T>>, Error> {
        // In a forked child a thread of the parent may hold the lock for ever.
        self.session.requests.link().check_process()?;
        let id = open.id().ok_or_else(|| Error::closed(self.session.requests.link().name()))?;
        let body = json!({ "scroll": keep(&self.session), "scroll_id": id });
        let ask = Ask {
            body: self.session.json(PAGE, &body)?,
            effect: Effect::Once,
            ..Ask::new(PAGE, Method::POST, "/_search/scroll".to_owned())
        };
        let page: Page<T> = self.session.ask_for(&ask).await?;
        self.open = Some(open);
        self.take(PAGE, page)
    }

    /// Takes the hits of a page as far as the limit allows, and the scroll's name, which may change with each page.
    fn take(&mut self, action: &str, page: Page<T>) -> Result<Vec<SearchHit<T>>, Error> {
        // Every page has it, the last one too.
        let Some(id) = page.scroll_id.as_deref().filter(|id| !id.is_empty()) else {
            self.open = None;
            let text = "the page has no `_scroll_id`, so the next one cannot be asked for";
            return Err(refused(self.session.requests.link(), action, text));
        };
        match &self.open {
            Some(open) => open.rename(id),
            None => self.open = Some(OpenScroll::new(&self.session, id)),
        }
        let answer = SearchAnswer::from(page);
        if !answer.is_whole() {
            self.open = None;
            let text = match answer.failed_shards {
                0 => "the page lacks hits: shards or remote clusters were too late, or were left out".to_owned(),
                failed => format!("the page lacks hits: {failed} shards failed"),
            };
            return Err(refused(self.session.requests.link(), action, text));
        }
        let mut hits = answer.hits;
        hits.truncate(self.left);
        self.left -= hits.len();
        if self.left == 0 {
            self.open = None;
        }
        Ok(hits)
    }
}

impl<T> Scroll<T> {
    /// Ends it, so that no page comes any more. Answers whether it was still open.
    pub(super) fn end(&mut self) -> bool {
        let was_open = self.open.is_some() || self.first.is_some() || self.lost_page;
        (self.open, self.first, self.lost_page) = (None, None, false);
        was_open
    }

    pub(super) fn session(&self) -> Arc<ElasticSession> {
        Arc::clone(&self.session)
    }
}

impl<T> fmt::Debug for Scroll<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scroll")
            .field("left", &self.left)
            .field("is_open", &self.open.is_some())
            .finish_non_exhaustive()
    }
}

/// The name of the scroll that this answer opens, whatever else is in it.
fn opened(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OpenedScroll {
        #[serde(rename = "_scroll_id")]
        id: String,
    }
    serde_json::from_slice(answer).ok().map(|OpenedScroll { id }| id)
}

/// How long the server keeps a scroll, in its own words.
fn keep(session: &ElasticSession) -> String {
    format!("{}ms", session.config.scroll_keep.as_millis())
}

/// A scroll that is open on the server.
struct OpenScroll {
    session: Arc<ElasticSession>,
    number: u64,
}

impl OpenScroll {
    fn new(session: &Arc<ElasticSession>, id: &str) -> Self {
        let mut open = session.scrolls.0.lock();
        let number = open.next;
        open.next += 1;
        open.ids.insert(number, id.to_owned());
        OpenScroll { session: Arc::clone(session), number }
    }

    fn rename(&self, id: &str) {
        if let Some(known) = self.session.scrolls.0.lock().ids.get_mut(&self.number) {
            id.clone_into(known);
        }
    }

    /// Its present name. `None` once closing the pool has closed it.
    fn id(&self) -> Option<String> {
        self.session.scrolls.0.lock().ids.get(&self.number).cloned()
    }
}

impl Drop for OpenScroll {
    fn drop(&mut self) {
        // A forked child must not touch its parent's runtime.
        if self.session.requests.link().check_process().is_err() {
            return;
        }
        if let Some(id) = self.session.scrolls.0.lock().ids.remove(&self.number) {
            let session = Arc::clone(&self.session);
            self.session.requests.runtime().spawn(async move { close(&session, vec![id]).await });
        }
    }
}

/// The scrolls that are open on the server, by their numbers here.
#[derive(Default)]
pub(super) struct OpenScrolls(Mutex<NumberedScrolls>);

#[derive(Default)]
struct NumberedScrolls {
    next: u64,
    ids: BTreeMap<u64, String>,
}

impl OpenScrolls {
    /// Closes all that are open, and counts them as closed.
    pub(super) async fn end(&self, session: &ElasticSession) {
        let ids: Vec<String> = std::mem::take(&mut self.0.lock().ids).into_values().collect();
        let count = ids.len();
        if count > 0 && close(session, ids).await {
            session.requests.link().ended(Work::Cursor, count);
        }
    }
}

/// Tells the server to close these scrolls, and returns whether it has. One that it has closed already is as good.
async fn close(session: &ElasticSession, ids: Vec<String>) -> bool {
    let request = session.requests.request(Method::DELETE, "/_search/scroll").action("closing a scroll");
    let asked = async {
        let answer = request.json(&json!({ "scroll_id": ids })).send().await?;
        let status = answer.status();
        answer.bytes().await.map(|_read_for_its_connection| status.is_success() || status == StatusCode::NOT_FOUND)
    };
    within(GOODBYE, asked).await.is_ok_and(|closed: Result<bool, Error>| closed.unwrap_or(false))
}
