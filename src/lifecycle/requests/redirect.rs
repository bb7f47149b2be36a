//! Redirects, which the client follows itself. So the secrets of a request stay at its server, and its error tells
//! whether a server had the request before.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    HeaderName, LOCATION, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Request, Response, Url};

use crate::lifecycle::requests::core::RequestClient;

/// The headers of a request that another server gets too. All others may have secrets in them.
const OPEN: [HeaderName; 9] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    RANGE,
    USER_AGENT,
];

/// The headers that tell of a body.
const OF_BODY: [HeaderName; 5] = [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING];

/// The error of a request that got no answer, or none that can be followed.
pub(super) struct SendError {
    pub(super) cause: SendFault,
    /// Whether a server had the request, and answered by a redirect.
    pub(super) was_sent: bool,
}

pub(super) enum SendFault {
    Driver(reqwest::Error),
    /// The client may not send to this URL, or not follow this redirect.
    Refused {
        problem: String,
        /// Whether a server has answered by a redirect that it sends once a request is done.
        was_done: bool,
    },
}

impl RequestClient {
    /// Sends a request with the login and the headers, and follows redirects as the settings allow. A body that cannot be
    /// sent twice is not sent again, so the redirect is then the answer.
    pub(super) async fn execute(&self, mut request: Request) -> Result<Response, SendError> {
        let max = self.settings.max_redirects;
        let (mut hop, mut was_done) = (0, false);
        self.check(request.url()).map_err(|problem| {
            let cause = SendFault::Refused { problem: problem.to_owned(), was_done };
            SendError { cause, was_sent: false }
        })?;
        loop {
            self.add_headers(request.headers_mut());
            let again = (max > 0).then(|| Again::of(&request));
            let failed = |cause| SendError { cause, was_sent: hop > 0 };
            let answer = self.http.execute(request).await.map_err(|error| failed(SendFault::Driver(error)))?;
            let Some((again, to)) = again.and_then(|again| again.place(&answer).map(|to| (again, to))) else {
                return Ok(answer);
            };
            was_done |= again.is_done(answer.status());
            let refused = |problem: &str| {
                let problem = format!("a redirect cannot be followed: {problem}");
                SendError { cause: SendFault::Refused { problem, was_done }, was_sent: true }
            };
            if hop >= max {
                return Err(refused("there are too many of them"));
            }
            if !matches!(to.scheme(), "http" | "https") {
                return Err(refused("it leads to a URL that is none of HTTP"));
            }
            self.check(&to).map_err(|problem| refused(&format!("it leads to another server: {problem}")))?;
            match again.next(answer.status(), to) {
                Some(next) => request = next,
                None => return Ok(answer),
            }
            hop += 1;
        }
    }

    /// Adds the headers that go along with every request, but for those that the request has itself.
    fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.settings.headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

/// A request as it may be sent again.
struct Again {
    method: Method,
    url: Url,
    headers: HeaderMap,
    /// The request with its body. `None` if the body cannot be sent twice.
    whole: Option<Request>,
}

impl Again {
    fn of(request: &Request) -> Self {
        let (method, url, headers) = (request.method().clone(), request.url().clone(), request.headers().clone());
        Again { method, url, headers, whole: request.try_clone() }
    }

    /// The place that this answer redirects to. `None` if it is no redirect.
    fn place(&self, answer: &Response) -> Option<Url> {
        use StatusCode as Status;
        let is_redirect = matches!(
            answer.status(),
            Status::MOVED_PERMANENTLY
                | Status::FOUND
                | Status::SEE_OTHER
                | Status::TEMPORARY_REDIRECT
                | Status::PERMANENT_REDIRECT
        );
        let place = answer.headers().get(LOCATION).filter(|_| is_redirect)?;
        let mut to = self.url.join(std::str::from_utf8(place.as_bytes()).ok()?).ok()?;
        // A login that a server puts there is none of ours. The place of a URL without a host has none.
        let _is_without_login = to.set_username("").and_then(|()| to.set_password(None));
        Some(to)
    }

    /// Whether a server answers by this redirect once the request is done, so that a GET follows.
    fn is_done(&self, status: StatusCode) -> bool {
        match status {
            StatusCode::SEE_OTHER => true,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        }
    }

    /// The request that follows. `None` if its body cannot be sent twice.
    fn next(self, status: StatusCode, to: Url) -> Option<Request> {
        let is_get = self.is_done(status);
        let Again { method, url, mut headers, whole } = self;
        if to.origin() != url.origin() {
            headers = headers_for_others(&headers);
        }
        let mut next = match whole {
            _ if is_get => {
                OF_BODY.iter().for_each(|name| drop(headers.remove(name)));
                let method = if method == Method::HEAD { Method::HEAD } else { Method::GET };
                Request::new(method, to)
            }
            Some(mut whole) => {
                *whole.url_mut() = to;
                whole
            }
            None => return None,
        };
        *next.headers_mut() = headers;
        Some(next)
    }
}

/// The headers that another server may get.
fn headers_for_others(headers: &HeaderMap) -> HeaderMap {
    let open = headers.iter().filter(|(name, value)| OPEN.contains(name) && !value.is_sensitive());
    open.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(method: Method) -> Request {
        let mut request = Request::new(method, "http://h/a".parse().unwrap());
        *request.body_mut() = Some("text".into());
        let headers = [("content-type", "text/plain"), ("x-key", "s3cret"), ("cookie", "s3cret")];
        request
            .headers_mut()
            .extend(headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))));
        request
    }

    fn next(method: Method, status: u16, to: &str) -> Request {
        let again = Again::of(&request(method));
        again.next(StatusCode::from_u16(status).unwrap(), to.parse().unwrap()).unwrap()
    }

    #[test]
    fn own_headers_stay_at_their_server() {
        let same = next(Method::POST, 307, "http://h/b");
        assert_eq!((same.headers().len(), same.method()), (3, &Method::POST));
        assert_eq!(same.body().and_then(reqwest::Body::as_bytes), Some(&b"text"[..]));
        for elsewhere in ["http://other/b", "https://h/b", "http://h:81/b"] {
            let other = next(Method::POST, 307, elsewhere);
            assert_eq!(other.headers().keys().collect::<Vec<_>>(), ["content-type"], "{elsewhere}");
        }
    }

    #[test]
    fn a_get_follows_a_post_that_was_done() {
        for status in [301, 302, 303] {
            let next = next(Method::POST, status, "http://h/b");
            assert_eq!((next.method(), next.body().is_none()), (&Method::GET, true));
            assert!(!next.headers().contains_key(CONTENT_TYPE) && next.headers().contains_key("x-key"));
        }
        assert_eq!(next(Method::HEAD, 303, "http://h/b").method(), Method::HEAD);
        assert_eq!(next(Method::PUT, 302, "http://h/b").method(), Method::PUT);
    }
}
