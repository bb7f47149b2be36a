//! [`Guard`], which every request passes: its host, its rate, its token, and its origin.
//!
//! A name that an attacker's DNS leads here is not among the hosts. A page of another origin is told by its `Origin`, or
//! by `Sec-Fetch-Site`. So a browser does nothing here that the page of this admin did not ask for.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Notify, Semaphore};

use crate::base::runtime::background;
use crate::base::sync::until;
use crate::seen::admin::answer::Denial;
use crate::seen::admin::clients::ClientPlace;
use crate::seen::admin::limits::{AdminLimits, LOGINS};
use crate::seen::admin::page::FILES;
use crate::seen::admin::peer;
use crate::seen::admin::rates::Rates;
use crate::seen::admin::sessions::{SessionId, Sessions, of_digits};
use crate::seen::admin::token::{REREAD, Token, TokenVersion};

/// The rules of an admin, and the state that they need.
pub(super) struct Guard {
    token: Option<Token>,
    rules: GuardRules,
    rates: Rates,
    sessions: Sessions,
    pub(super) limits: AdminLimits,
    /// The permits of requests to log in that keep their places.
    logins: Semaphore,
    /// Whether the log has that the service tells no addresses.
    is_warned: AtomicBool,
    /// Wakes the streams, because a session has ended or the token has changed.
    ended: Notify,
}

/// The rules that a program sets.
#[derive(Debug, Default)]
pub(super) struct GuardRules {
    /// The names by which the admin may be asked, beside addresses and `localhost`.
    pub(super) hosts: Vec<String>,
    /// The reverse proxies whose `X-Forwarded-For` counts.
    pub(super) proxies: Vec<IpAddr>,
}

/// Proof that a request passed the guard.
#[derive(Clone)]
pub(super) struct Admitted {
    guard: Arc<Guard>,
    /// The address that the request counts for. `None` if the service tells none.
    pub(super) from: Option<IpAddr>,
    audience: Audience,
    /// The token that the request, or its session, was admitted by. `None` if the admin has no token.
    token: Option<TokenVersion>,
    pub(super) session: Option<SessionId>,
}

impl Admitted {
    /// Whether somebody asks who has the token, or a session by it. Without a token that is everybody.
    fn is_of_operator(&self) -> bool {
        self.audience == Audience::Operators || self.session.is_some()
    }

    /// Whether the token has not changed since, and the session that the request came with is still open.
    pub(super) fn still(&self) -> bool {
        self.token == self.guard.token_version()
            && self.session.is_none_or(|session| self.guard.sessions.has(&session, self.token))
    }

    /// Waits until the token has changed or the session was ended. The end of a session by time alone wakes nobody.
    pub(super) async fn over(&self) {
        until(&self.guard.ended, || (!self.still()).then_some(())).await;
    }
}

/// Who may ask for a path.
#[derive(Clone, Copy, PartialEq)]
enum Audience {
    /// Everybody, by any name of this host. The answer is a verdict and nothing else.
    Anybody,
    /// Everybody. There are no data in the answer.
    Visitors,
    /// Those who have the token.
    Operators,
}

impl Audience {
    fn of(path: &str) -> Self {
        match path {
            "/livez" | "/readyz" | "/startupz" => Audience::Anybody,
            "/" | "/session" => Audience::Visitors,
            _ if FILES.iter().any(|(file, ..)| *file == path) => Audience::Visitors,
            _ => Audience::Operators,
        }
    }
}

impl Guard {
    pub(super) fn new(token: Option<Token>, rules: GuardRules, limits: AdminLimits) -> Arc<Self> {
        let (rates, sessions) = (Rates::new(limits.requests), Sessions::new(&limits));
        let logins = Semaphore::new(LOGINS.min(limits.connections / 4));
        let (is_warned, ended) = (AtomicBool::new(false), Notify::new());
        Arc::new(Guard { token, rules, rates, sessions, limits, logins, is_warned, ended })
    }

    fn has_token(&self) -> bool {
        self.token.is_some()
    }

    fn token_version(&self) -> Option<TokenVersion> {
        self.token.as_ref().map(Token::version)
    }

    /// Follows a token in a file until no guard is left. Runs on the crate's background runtime.
    pub(super) fn follow_token(self: &Arc<Self>) -> io::Result<()> {
        if self.token.as_ref().is_some_and(Token::may_change) {
            background()?.spawn(follow_token(Arc::downgrade(self)));
        }
        Ok(())
    }

    /// Reads the token again, and ends the streams of one that has changed. The version of the token ends its sessions.
    fn read_token_again(&self) {
        if self.token.as_ref().is_some_and(Token::read_again) {
            tracing::info!("the admin's token has changed, so the sessions of the last one are over");
            self.ended.notify_waiters();
        }
    }

    /// The address that a request counts for. The log has once that a service tells none.
    fn address(&self, request: &Request) -> Option<IpAddr> {
        let from = peer::address(request, &self.rules.proxies);
        if from.is_none() && !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the service that has the admin's router tells no addresses, so that all who ask share the limits of \
                 one; serve it with `into_make_service_with_connect_info::<SocketAddr>()`"
            );
        }
        from
    }

    /// Decides on a request. A page of another origin and a wrong host cost nobody's requests, because any page can have
    /// a browser ask here.
    fn admit(self: &Arc<Self>, request: &Request) -> Result<Admitted, Denial> {
        let audience = Audience::of(request.uri().path());
        let from = self.address(request);
        let admitted = |token, session| Ok(Admitted { guard: Arc::clone(self), from, audience, token, session });
        let token = self.token_version();
        if audience == Audience::Anybody {
            return admitted(token, None);
        }
        let headers = request.headers();
        let authority = authority(headers, request.uri()).unwrap_or_default();
        if !self.is_here(host(&authority)) {
            let error = "this host is not known here";
            return Err(Denial::new(
                StatusCode::MISDIRECTED_REQUEST,
                error,
                "ask by an address or localhost, or name the host by `Admin::host`",
            ));
        }
        let counted = |is_left: bool| {
            let denied = || Denial::new(StatusCode::TOO_MANY_REQUESTS, "too many requests", "ask less often");
            is_left.then_some(()).ok_or_else(denied)
        };
        if let (Some(offered), Audience::Operators) = (bearer(headers), audience) {
            // No page of a browser sends the token by itself, so that the origin does not matter.
            let token = self.offer(from, offered)?;
            // The token has requests of its own, and wrong ones have the limit of `offer`.
            counted(if token.is_some() { self.rates.request_with_token(from) } else { self.rates.request(from) })?;
            return admitted(token, None);
        }
        self.check_origin(request, audience, &authority)?;
        // An open session has requests of its own. Strangers behind the same proxy cannot use them up, and nobody can
        // guess its 256 bits.
        let session = session(headers, &authority).filter(|_| self.has_token());
        let open = session.and_then(|id| Some((id, self.sessions.request(&id, token)?)));
        counted(open.map_or_else(|| self.rates.request(from), |(_, is_left)| is_left))?;
        let open = open.map(|(id, _)| id);
        if self.has_token() && audience == Audience::Operators && open.is_none() {
            let remedy = "send `Authorization: Bearer TOKEN`, or type the token in on the status page";
            return Err(Denial::new(StatusCode::UNAUTHORIZED, "the token is missing", remedy));
        }
        admitted(token, open)
    }

    /// Checks a token that somebody at this address offers. `None` if the admin has no token.
    fn offer(&self, from: Option<IpAddr>, offered: &str) -> Result<Option<TokenVersion>, Denial> {
        let Some(token) = &self.token else { return Ok(None) };
        if !self.rates.may_offer(from) {
            return Err(Denial::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens", "wait some seconds"));
        }
        if let Some(version) = token.is(offered) {
            return Ok(Some(version));
        }
        self.rates.wrong(from);
        let remedy = "see RESOURCE_POOL_ADMIN_TOKEN, or the file or code that the program has the token from";
        Err(Denial::new(StatusCode::UNAUTHORIZED, "the token is wrong", remedy))
    }

    /// Exchanges a token that somebody at this address offers for a session.
    pub(super) fn begin_session(&self, from: Option<IpAddr>, offered: &str) -> Result<SessionId, Denial> {
        let token = self.offer(from, offered)?;
        let begun = self.sessions.begin(token).map_err(|error| {
            let error = format!("the system gives no random bits: {error}");
            Denial::new(StatusCode::INTERNAL_SERVER_ERROR, error, "use `Authorization: Bearer TOKEN`")
        });
        // The oldest session may have ended for it.
        self.ended.notify_waiters();
        begun
    }

    pub(super) fn end_session(&self, id: &SessionId) {
        self.sessions.end(id);
        self.ended.notify_waiters();
    }

    /// Checks that no page of another origin has a browser ask this. Only what changes nothing needs no origin, and only
    /// a person who follows a link comes to the status page from another site.
    fn check_origin(&self, request: &Request, audience: Audience, authority: &str) -> Result<(), Denial> {
        let text = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let foreign = |error: &str| {
            let remedy = "ask from the page of this admin, or send `Authorization: Bearer TOKEN`";
            Err(Denial::new(StatusCode::FORBIDDEN, error, remedy))
        };
        let is_link = || is_read && audience == Audience::Visitors && text(&SEC_FETCH_DEST) == Some("document");
        if let Some(site) = text(&SEC_FETCH_SITE)
            && !is_link()
            && !matches!(site, "same-origin" | "none")
        {
            return foreign("a page of another origin asks");
        }
        match text(&ORIGIN).map(|origin| origin.split_once("://")) {
            None if is_read => Ok(()),
            None => foreign("the header `Origin` is missing"),
            Some(Some((_, from))) if from.eq_ignore_ascii_case(authority) || self.is_named(from) => Ok(()),
            Some(_) => foreign("a page of another origin asks"),
        }
    }

    /// Whether a request for this host is meant for this program. Nobody's DNS can lead an address elsewhere.
    fn is_here(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        let is_local =
            |host: &str| host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
        host.parse::<IpAddr>().is_ok() || is_local(host) || self.is_named(host)
    }

    fn is_named(&self, host: &str) -> bool {
        self.rules.hosts.iter().any(|named| named.eq_ignore_ascii_case(host.trim_end_matches('.')))
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Reads the token of this guard again and again. The file may be slow, so that a thread for blocking calls reads it, one
/// at a time.
async fn follow_token(guard: Weak<Guard>) {
    loop {
        tokio::time::sleep(REREAD).await;
        let Some(guard) = guard.upgrade() else { return };
        // A read that panics is one that tells nothing.
        let _ = tokio::task::spawn_blocking(move || guard.read_token_again()).await;
    }
}

/// The layer of the guard. Each answer, a refusal too, gets the headers that bind a browser.
pub(super) async fn pass(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let mut response = match guard.admit(&request) {
        Ok(admitted) => {
            let place = request.extensions_mut().remove::<Arc<ClientPlace>>();
            let is_login = request.method() == Method::POST && request.uri().path() == "/session";
            let login = is_login.then(|| guard.logins.try_acquire().ok()).flatten();
            let is_kept = admitted.is_of_operator() || login.is_some();
            let in_use = place.filter(|_| is_kept).map(ClientPlace::keep);
            request.extensions_mut().insert(admitted);
            let response = next.run(request).await;
            match in_use {
                Some(in_use) => response.map(|body| in_use.until_the_end_of(body)),
                None => response,
            }
        }
        Err(denial) => {
            let mut response = denial.into_response();
            // A client that is refused keeps no place among the connections.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    let policy = "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";
    let headers = [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The name of the cookie that has the session. Programs on other ports of the same host have other ones, since a browser
/// sends cookies to all ports.
pub(super) fn cookie_name(authority: &str) -> String {
    let port =
        authority.rsplit_once(':').map(|(_, port)| port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    format!("resource_pool_{}", port.unwrap_or("session"))
}

/// The host and the port that a request is for. `None` if it tells none, or two.
pub(super) fn authority(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().map(str::to_owned),
        (None, None) => uri.authority().map(ToString::to_string),
        _ => None,
    }
}

/// The host without the port, and an address of IPv6 without its brackets.
fn host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn session(headers: &HeaderMap, authority: &str) -> Option<SessionId> {
    let name = cookie_name(authority);
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, digits)| of_digits(digits))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::base::environment::Environment;
    use crate::seen::admin::sessions::digits;
    use crate::seen::admin::token::TokenSource;

    #[test]
    fn a_host_is_here_if_it_is_an_address_local_or_named() {
        let rules = GuardRules { hosts: vec!["pool.example".to_owned()], proxies: Vec::new() };
        let guard = Guard::new(None, rules, AdminLimits::default());
        for here in ["127.0.0.1:9099", "[::1]:9099", "localhost", "LOCALHOST:1", "a.localhost", "pool.example.:80"] {
            assert!(guard.is_here(host(here)), "{here}");
        }
        for elsewhere in
            ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "xlocalhost", "pool.example.evil"]
        {
            assert!(!guard.is_here(host(elsewhere)), "{elsewhere}");
        }
    }

    #[test]
    fn the_page_of_an_open_session_is_asked_for_by_an_operator() {
        let source = TokenSource::Text("0123456789abcdef".into());
        let token = Token::open(Some(source), &Environment::fixed([])).unwrap();
        let guard = Guard::new(token, GuardRules::default(), AdminLimits::default());
        let is_of_operator = |id: &SessionId| {
            let cookie = format!("{}={}", cookie_name("127.0.0.1"), digits(id));
            let request = Request::get("http://127.0.0.1/").header(COOKIE, cookie).body(Body::empty()).unwrap();
            guard.admit(&request).unwrap().is_of_operator()
        };
        let id = guard.sessions.begin(guard.token_version()).unwrap();
        assert!(is_of_operator(&id) && !is_of_operator(&[0; 32]));
        guard.end_session(&id);
        assert!(!is_of_operator(&id));
    }

    #[test]
    fn each_port_has_a_cookie_of_its_own() {
        assert_eq!(cookie_name("127.0.0.1:9099"), "resource_pool_9099");
        assert_eq!(cookie_name("pool.example"), "resource_pool_session");
        assert_eq!(cookie_name("[::1]"), "resource_pool_session");
    }
}
