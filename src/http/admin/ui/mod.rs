//! The admin plane as a page, in the binary: no build step, nothing from anywhere else.
//!
//! **Invariant:** it holds no data and is served without a key; every number on it comes from the plane's API, asked with the
//! key that is typed in and kept in the page's memory. Its policy lets it load its own two files, ask its own server, and
//! nothing else; no text from the API is read as HTML.

use super::typed;
use axum::Router;
use axum::response::{Redirect, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/ui") }))
        .route("/ui", get(|| async { file(include_str!("page.html"), "text/html; charset=utf-8") }))
        .route("/ui/page.css", get(|| async { file(include_str!("page.css"), "text/css; charset=utf-8") }))
        .route("/ui/page.js", get(|| async { file(include_str!("page.js"), "text/javascript; charset=utf-8") }))
}

fn file(text: &'static str, kind: &'static str) -> Response {
    let mut response = typed(text.to_owned(), kind);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    response
}
