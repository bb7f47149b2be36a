//! The status page, which is part of the program.

use axum::Extension;
use axum::extract::NestedPath;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;

const INDEX: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/page.js");
const WORDS: &str = include_str!("page/words.js");
const ICON: &str = include_str!("page/icon.svg");
const STYLE: &str = include_str!("page/page.css");

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

pub(super) async fn script() -> Response {
    file(SCRIPT.to_owned(), "text/javascript; charset=utf-8")
}

pub(super) async fn words() -> Response {
    file(WORDS.to_owned(), "text/javascript; charset=utf-8")
}

pub(super) async fn style() -> Response {
    file(STYLE.to_owned(), "text/css; charset=utf-8")
}

pub(super) async fn icon() -> Response {
    file(ICON.to_owned(), "image/svg+xml")
}

/// The path that the router is nested at, with a slash at its end. `None` if it is not nested, or at a path that a
/// request decides.
pub(super) fn base(nested: Option<&NestedPath>) -> Option<String> {
    let path = nested?.as_str().trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    path.chars().all(is_plain).then(|| format!("{path}/"))
}

fn file(text: String, content_type: &'static str) -> Response {
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
        for text in [INDEX, SCRIPT, WORDS, STYLE] {
            let foreign = text
                .split("//")
                .skip(1)
                .filter(|rest| !rest.starts_with(' ') && !rest.starts_with("www.w3.org/2000/svg"));
            assert_eq!(foreign.count(), 0, "something comes from elsewhere");
        }
        for inline in ["<style", " style=", "onclick", "javascript:", "<script>"] {
            assert!(!INDEX.contains(inline), "{inline}");
        }
        for unsafe_html in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(unsafe_html), "{unsafe_html}");
        }
    }
}
