//! The status page, which is part of the program.

use axum::Extension;
use axum::body::Body;
use axum::extract::NestedPath;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;

const INDEX: &str = include_str!("page/index.html");
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the page: the path, the text and the type of each.
pub(super) static FILES: [(&str, &str, &str); 5] = [
    ("/words.js", include_str!("page/words.js"), SCRIPT),
    ("/view.js", include_str!("page/view.js"), SCRIPT),
    ("/page.js", include_str!("page/page.js"), SCRIPT),
    ("/page.css", include_str!("page/page.css"), "text/css; charset=utf-8"),
    ("/icon.svg", include_str!("page/icon.svg"), "image/svg+xml"),
];

/// The place in the page that says what its links are relative to.
const BASE: &str = r#"<base href="./">"#;

/// The page. Its links are relative, so that it works at whichever path the router is nested.
pub(super) async fn index(nested: Option<Extension<NestedPath>>) -> Response {
    let text = match base(nested.as_deref()) {
        Some(path) => INDEX.replacen(BASE, &format!(r#"<base href="{path}">"#), 1),
        None => INDEX.to_owned(),
    };
    file(text, "text/html; charset=utf-8")
}

/// The path that the router is nested at, with a slash at its end. `None` if it is not nested, or at a path that a
/// request decides.
pub(super) fn base(nested: Option<&NestedPath>) -> Option<String> {
    let path = nested?.as_str().trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    path.chars().all(is_plain).then(|| format!("{path}/"))
}

/// A file as an answer.
pub(super) fn file(text: impl Into<Body>, content_type: &'static str) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_brings_everything_along_and_has_nothing_inline() {
        assert_eq!(INDEX.matches(BASE).count(), 1);
        for text in FILES.iter().map(|(_, text, _)| *text).chain([INDEX]) {
            let mut foreign = text.split("//").skip(1).filter(|rest| !rest.starts_with([' ', '\n']));
            assert!(foreign.all(|rest| rest.starts_with("www.w3.org/2000/svg")), "something comes from elsewhere");
            for unsafe_html in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(unsafe_html), "{unsafe_html}");
            }
        }
        for inline in ["<style", " style=", "onclick", "javascript:", "<script>"] {
            assert!(!INDEX.contains(inline), "{inline}");
        }
    }
}
