//! What is served, described: `GET /openapi.json` for programs, `GET /docs` for people.
//!
//! # Design
//! Both need no key, like vLLM's and Ollama's: they say what the program can do, the same for everybody who runs this
//! version, and nothing of its models, keys or users; and a browser that opens a page has no way to send a key. The page
//! is written here, from the document, as one file without scripts or links to other hosts: it works on a machine
//! without a network, and its Content-Security-Policy allows nothing but its own style.

mod document;
mod operations;
mod page;

use super::App;
use super::openai::json;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use http::{HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The document's bytes and the page: without and with `/slots`.
static WRITTEN: LazyLock<[(Vec<u8>, String); 2]> = LazyLock::new(|| {
    [false, true].map(|expose_slots| {
        let document = document::document(expose_slots);
        (document.to_string().into_bytes(), page::page(&document))
    })
});

pub(super) async fn openapi(State(app): State<App>) -> Response {
    let mut response = json(WRITTEN[usize::from(app.expose_slots)].0.clone());
    // Editors and viewers on other sites may read it: it has no secrets, and GET changes nothing.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

pub(super) async fn page(State(app): State<App>) -> Response {
    let mut response = Response::new(WRITTEN[usize::from(app.expose_slots)].1.clone().into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Nothing may be loaded or run; the one style is allowed by its digest.
fn policy() -> String {
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(page::STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
