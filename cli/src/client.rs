//! The client of an admin address: HTTP/1.1 without TLS, with the token, and with a limit on every wait and size.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::arguments::AddressArguments;
use crate::error::Problem;
use crate::stream::Stream;

/// The variables that have the token, and the file with it.
const TOKEN: &str = "RESOURCE_POOL_ADMIN_TOKEN";
const TOKEN_FILE: &str = "RESOURCE_POOL_ADMIN_TOKEN_FILE";

/// The largest answer. The status of 1,000 resources with all their holders takes less.
const LARGEST: usize = 16 << 20;

/// Asks one admin.
#[derive(Debug)]
pub(crate) struct Client {
    /// The address without a slash at its end.
    base: String,
    token: Option<HeaderValue>,
    limit: Duration,
    connections: Connections<HttpConnector, Empty<Bytes>>,
}

impl Client {
    pub(crate) fn new(asked: &AddressArguments) -> Result<Self, Problem> {
        let base = address(&asked.admin)?;
        let connections = Connections::builder(TokioExecutor::new()).build_http();
        Ok(Client { base, token: token(asked)?, limit: asked.timeout, connections })
    }

    /// The address, without secrets.
    pub(crate) fn address(&self) -> &str {
        &self.base
    }

    /// The JSON at this path, as it is.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Problem> {
        let (status, text) = timeout(self.limit, async {
            let answer = self.ask(path, "application/json").await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| self.broken(&format!("the answer broke off: {error}")))?;
            Ok::<_, Problem>((status, body.to_bytes()))
        })
        .await
        .map_err(|_| self.silent())??;
        if !status.is_success() {
            return Err(self.refused(status, &text));
        }
        serde_json::from_slice(&text).map_err(|error| self.foreign(&error.to_string()))
    }

    /// The value of JSON that [`get`](Client::get) returned.
    pub(crate) fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Problem> {
        serde_json::from_value(value).map_err(|error| self.foreign(&error.to_string()))
    }

    /// The stream of events.
    pub(crate) async fn stream(&self) -> Result<Stream, Problem> {
        let answer =
            timeout(self.limit, self.ask("/events", "text/event-stream")).await.map_err(|_| self.silent())??;
        let status = answer.status();
        if !status.is_success() {
            let body = timeout(self.limit, Limited::new(answer.into_body(), LARGEST).collect()).await;
            let text = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            return Err(self.refused(status, &text));
        }
        let is_stream = |value: &HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
        match answer.headers().get(hyper::header::CONTENT_TYPE).is_some_and(is_stream) {
            true => Ok(Stream::new(answer.into_body())),
            false => Err(self.foreign("it sends no events")),
        }
    }

    async fn ask(&self, path: &str, accept: &'static str) -> Result<Response<Incoming>, Problem> {
        let mut request = Request::get(format!("{}{path}", self.base)).header(ACCEPT, accept);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Empty::new()).map_err(|error| self.broken(&error.to_string()))?;
        self.connections.request(request).await.map_err(|error| {
            let causes = causes(&error);
            match error.is_connect() {
                true => Problem::failed(
                    format!("nobody answers at {}: {causes}", self.base),
                    "is the program running, with the feature `admin`? Else set --admin, or RESOURCE_POOL_ADMIN",
                ),
                false => self.foreign(&causes),
            }
        })
    }

    fn silent(&self) -> Problem {
        Problem::failed(
            format!("{} gave no answer within {:?}", self.base, self.limit),
            "raise --timeout, or look whether the program hangs",
        )
    }

    /// The problem with a connection that ended too early.
    pub(crate) fn broken(&self, why: &str) -> Problem {
        Problem::failed(format!("{}: {why}", self.base), "look whether the program still runs, and try again")
    }

    fn foreign(&self, why: &str) -> Problem {
        Problem::failed(
            format!("{} is no admin of a resource-pool: {why}", self.base),
            "set --admin or RESOURCE_POOL_ADMIN to the admin's address, with the path at which it is nested",
        )
    }

    /// The problem in an answer that is an error.
    fn refused(&self, status: StatusCode, text: &[u8]) -> Problem {
        let told: Value = serde_json::from_slice(text).unwrap_or_default();
        let (error, remedy) = (told["error"].as_str(), told["remedy"].as_str());
        match (status, &self.token) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, token) => Problem::failed(
                format!(
                    "{} refuses: {}",
                    self.base,
                    error.unwrap_or(match token {
                        Some(_) => "the token is wrong",
                        None => "it wants a token",
                    })
                ),
                format!("set {TOKEN}, {TOKEN_FILE} or --token-file to the token that the program has"),
            ),
            _ => match error {
                Some(error) => {
                    Problem::failed(format!("{}: {error}", self.base), remedy.unwrap_or("see the log of the program"))
                }
                None => self.foreign(&format!("it answers {status}")),
            },
        }
    }
}

/// The address in the form that paths are appended to. The problem shows no part of a login.
fn address(text: &str) -> Result<String, Problem> {
    let remedy = "write it as http://127.0.0.1:9099";
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let wrong = |what: &str| Err(Problem::wrong(format!("the admin's address {what}"), remedy));
    let Ok(uri) = with_scheme.trim_end_matches('/').parse::<Uri>() else { return wrong("is no URL") };
    match (uri.scheme_str(), uri.authority()) {
        (_, Some(authority)) if authority.as_str().contains('@') => {
            wrong("has a login, which does not belong there: the token is in RESOURCE_POOL_ADMIN_TOKEN")
        }
        (Some("https"), _) => Err(Problem::wrong(
            "the admin's address is https, but the admin speaks HTTP without TLS",
            "reach it on its own machine, or through a tunnel (ssh -L 9099:127.0.0.1:9099 HOST), by http://127.0.0.1:9099",
        )),
        (Some("http"), Some(authority)) => Ok(format!("http://{authority}{}", uri.path().trim_end_matches('/'))),
        _ => wrong("is no http URL"),
    }
}

/// The token as a header. The file that an argument names comes first.
fn token(asked: &AddressArguments) -> Result<Option<HeaderValue>, Problem> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let (by_file, plain) = (variable(TOKEN_FILE), variable(TOKEN));
    let token = match (&asked.token_file, by_file, plain) {
        (Some(path), ..) => token_in(path)?,
        (None, Some(_), Some(_)) => {
            return Err(Problem::wrong(format!("{TOKEN} and {TOKEN_FILE} are both set"), "leave out one of them"));
        }
        (None, Some(path), None) => token_in(path.as_ref())?,
        (None, None, Some(token)) => token.into_string().unwrap_or_default(),
        (None, None, None) => return Ok(None),
    };
    let mut header =
        HeaderValue::try_from(format!("Bearer {}", token.trim_end_matches(['\r', '\n']))).map_err(|_| {
            Problem::wrong(
                "the token has characters that no token has",
                "use the token that the program has, on one line",
            )
        })?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn token_in(path: &Path) -> Result<String, Problem> {
    fs::read_to_string(path).map_err(|error| {
        Problem::wrong(
            format!("the token's file {} cannot be read: {error}", path.display()),
            "correct its path, or let this user read it",
        )
    })
}

/// The error and its causes, each once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_have_one_form() {
        for text in ["127.0.0.1:9099", "http://127.0.0.1:9099", "http://127.0.0.1:9099/"] {
            assert_eq!(address(text).unwrap(), "http://127.0.0.1:9099");
        }
        assert_eq!(address("http://[::1]:80/admin/").unwrap(), "http://[::1]:80/admin");
    }

    #[test]
    fn a_wrong_address_is_not_repeated() {
        for text in ["http://me:hunter2@host", "ftp://me:hunter2@x", "http://hunter2 x", "https://hunter2"] {
            let problem = address(text).unwrap_err();
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
    }
}
