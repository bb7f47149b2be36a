//! [`Guard`], which every request passes: its host, its rate, its token, and its origin.
//!
//! A name that an attacker's DNS leads here is not among the hosts. A page of another origin is told by its `Origin`, or
//! by `Sec-Fetch-Site`. So a browser does nothing here that the page of this admin did not ask for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::seen::admin::answer::Denial;
use crate::seen::admin::limits::AdminLimits;
use crate::seen::admin::page::FILES;
use crate::seen::admin::rates::Rates;
use crate::seen::admin::sessions::{SessionId, Sessions, of_digits};
use crate::seen::admin::token::Token;

/// The rules of an admin, and the state that they need.
pub(super) struct Guard {
    token: Option<Token>,
    hosts: Vec<String>,
    rates: Rates,
    pub(super) sessions: Sessions,
    pub(super) limits: AdminLimits,
}

/// Proof that a request passed the guard.
#[derive(Clone)]
pub(super) struct Admitted {
    guard: Arc<Guard>,
    pub(super) session: Option<SessionId>,
}

impl Admitted {
    /// Whether the session that the request came with is still open.
    pub(super) fn still(&self) -> bool {
        self.session.is_none_or(|session| self.guard.sessions.has(&session))
    }
}

/// Who may ask for a path.
#[derive(PartialEq)]
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
    pub(super) fn new(token: Option<Token>, hosts: Vec<String>, limits: AdminLimits) -> Arc<Self> {
        let (rates, sessions) = (Rates::new(limits.requests), Sessions::new(limits.sessions, limits.session));
        Arc::new(Guard { token, hosts, rates, sessions, limits })
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Decides on a request.
    fn admit(self: &Arc<Self>, request: &Request) -> Result<Admitted, Denial> {
        let audience = Audience::of(request.uri().path());
        let admitted = |session| Ok(Admitted { guard: Arc::clone(self), session });
        if audience == Audience::Anybody {
            return admitted(None);
        }
        let headers = request.headers();
        let authority = authority(headers, request.uri());
        if !authority.as_deref().is_some_and(|authority| self.is_here(host(authority))) {
            let error = "this host is not known here";
            return Err(Denial::new(
                StatusCode::MISDIRECTED_REQUEST,
                error,
                "ask by an address or localhost, or name the host by `Admin::host`",
            ));
        }
        let address = address(request);
        if !self.rates.request(address) {
            return Err(Denial::new(StatusCode::TOO_MANY_REQUESTS, "too many requests", "ask less often"));
        }
        let bearer = bearer(headers);
        if let (Some(offered), Audience::Operators) = (bearer, &audience) {
            self.offer(address, offered)?;
            // No page of a browser sends the token by itself, so that the origin does not matter.
            return admitted(None);
        }
        self.check_origin(request, &audience, authority.as_deref().unwrap_or_default())?;
        let session = session(headers, authority.as_deref().unwrap_or_default());
        let open = session.filter(|session| self.sessions.has(session));
        if self.has_token() && audience == Audience::Operators && open.is_none() {
            let remedy = "send `Authorization: Bearer TOKEN`, or type the token in on the status page";
            return Err(Denial::new(StatusCode::UNAUTHORIZED, "the token is missing", remedy));
        }
        admitted(if self.has_token() { open } else { None })
    }

    /// Checks a token that somebody offers.
    pub(super) fn offer(&self, address: IpAddr, offered: &str) -> Result<(), Denial> {
        let Some(token) = &self.token else { return Ok(()) };
        if !self.rates.may_offer(address) {
            return Err(Denial::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens", "wait some seconds"));
        }
        if token.is(offered) {
            return Ok(());
        }
        self.rates.wrong(address);
        let remedy = "see RESOURCE_POOL_ADMIN_TOKEN, or the file or code that the program has the token from";
        Err(Denial::new(StatusCode::UNAUTHORIZED, "the token is wrong", remedy))
    }

    /// Checks that no page of another origin has a browser ask this. Only what changes nothing needs no origin.
    fn check_origin(&self, request: &Request, audience: &Audience, authority: &str) -> Result<(), Denial> {
        let text = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let foreign = |error: &str| {
            let remedy = "ask from the page of this admin, or send `Authorization: Bearer TOKEN`";
            Err(Denial::new(StatusCode::FORBIDDEN, error, remedy))
        };
        let is_page = is_read && *audience == Audience::Visitors;
        if let Some(site) = text(&SEC_FETCH_SITE)
            && !is_page
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
        self.hosts.iter().any(|named| named.eq_ignore_ascii_case(host.trim_end_matches('.')))
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The layer of the guard. Each answer, a refusal too, gets the headers that bind a browser.
pub(super) async fn pass(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let mut response = match guard.admit(&request) {
        Ok(admitted) => {
            request.extensions_mut().insert(admitted);
            next.run(request).await
        }
        Err(denial) => {
            let mut response = denial.into_response();
            // One who is refused keeps no place among the connections.
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

/// The address of the one who asks. A server that does not tell it has one for all.
pub(super) fn address(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip())
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
    use super::*;

    #[test]
    fn a_host_is_here_if_it_is_an_address_local_or_named() {
        let guard = Guard::new(None, vec!["pool.example".to_owned()], AdminLimits::default());
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
    fn each_port_has_a_cookie_of_its_own() {
        assert_eq!(cookie_name("127.0.0.1:9099"), "resource_pool_9099");
        assert_eq!(cookie_name("pool.example"), "resource_pool_session");
        assert_eq!(cookie_name("[::1]"), "resource_pool_session");
    }
}
