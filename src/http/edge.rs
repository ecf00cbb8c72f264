//! What every request passes, whatever its path: id, host, origin, key, draining, and the counting of its end.

use super::drain::Working;
use super::error::{ApiError, Asked};
use super::family::Family;
use super::{App, auth, body, hints, origin};
use crate::gateway::{Caller, Trace, random_name};
use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::ServiceExt;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's SDKs read this name only.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");

/// The whole way of one request: every connection's service.
pub(super) async fn answer(app: App, router: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let started = Instant::now();
    let request_id = random_name("req_");
    let mut request = request.map(Body::new);
    tolerate_slash(request.uri_mut());
    let (method, version, family) = (request.method().clone(), request.version(), Family::of(request.uri().path()));
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.clone().filter(|origin| is_allowed(&app, origin));
    // Only posts are work; looking at the server must not hold up its end.
    let working = (method == Method::POST).then(|| app.drain.working());
    let mut trace = Trace::default();
    let response = match admit(&app, &request, &request_id, origin.is_some() && allowed.is_none()) {
        Ok(Admitted::Preflight) => origin::preflight(request.headers()),
        Ok(Admitted::Caller(caller)) => {
            trace = caller.trace.clone();
            request.extensions_mut().insert(caller);
            // A panic is a bug, but this request's alone.
            let routed = AssertUnwindSafe(router.oneshot(request)).catch_unwind().await;
            routed.map_or_else(|_| ApiError::internal().into_response(), |Ok(response)| response)
        }
        Err(error) => {
            let (parts, body) = request.into_parts();
            body::discard(&parts.headers, body, &app);
            error.into_response()
        }
    };
    let mut response = family.recast(response, &request_id);
    if origin.is_some() {
        origin::mark(response.headers_mut(), allowed);
    }
    hints::tell(response.headers_mut(), &trace.told());
    mark(&app, response.headers_mut(), version, &request_id);
    if method == Method::POST && !is_stream(response.headers()) {
        response.headers_mut().insert(PROCESSING_MS, (started.elapsed().as_millis() as u64).into());
    }
    let path = response.extensions().get::<MatchedPath>().cloned();
    let end = End { app, path, status: response.status().as_u16(), started, _working: working };
    Ok(response.map(|inner| Body::new(Counted { inner, _end: end })))
}

enum Admitted {
    Preflight,
    Caller(Caller),
}

/// The checks that need no more than the head, cheapest first.
fn admit(app: &App, request: &Request<Body>, request_id: &str, foreign: bool) -> Result<Admitted, ApiError> {
    if !origin::host_is_allowed(&app.config, request) {
        return Err(ApiError::forbidden("This Host is not served here."));
    }
    if request.method() == Method::OPTIONS {
        return Ok(Admitted::Preflight);
    }
    if foreign && request.method() == Method::POST {
        return Err(ApiError::forbidden("This Origin may not call this server."));
    }
    let principal = if auth::is_public(request.uri().path()) {
        Default::default()
    } else {
        app.gateway
            .authenticate(auth::presented(request.headers()))
            .map_err(|error| ApiError::of(error, Asked::Nothing))?
    };
    if app.drain.has_begun() && request.method() == Method::POST {
        return Err(ApiError::shutting_down());
    }
    let hints = hints::read(request.headers());
    Ok(Admitted::Caller(Caller { principal, request_id: request_id.to_owned(), hints, ..Default::default() }))
}

fn is_allowed(app: &App, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| origin::is_allowed(&app.config, origin))
}

fn is_stream(headers: &HeaderMap) -> bool {
    let is = |kind: &[u8]| kind.starts_with(b"text/event-stream") || kind.starts_with(b"application/x-ndjson");
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| is(kind.as_bytes()))
}

/// Headers of every answer.
fn mark(app: &App, headers: &mut HeaderMap, version: Version, request_id: &str) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id.clone());
        headers.insert(REQUEST_ID, id);
    }
    if version >= Version::HTTP_2 {
        headers.remove(header::CONNECTION);
    } else if app.drain.has_begun() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// One slash at the end of a path means nothing.
fn tolerate_slash(uri: &mut Uri) {
    let Some(path) = uri.path().strip_suffix('/').filter(|path| !path.is_empty()) else { return };
    let shorter = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = shorter.parse::<uri::PathAndQuery>().ok();
    if let Ok(shorter) = Uri::from_parts(parts) {
        *uri = shorter;
    }
}

/// Hands the matched route out to [`answer`], which counts under it: a client's path is no label.
pub(super) async fn note_route(request: axum::extract::Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(path) = path {
        response.extensions_mut().insert(path);
    }
    response
}

/// The end of a request: when its body was sent, or dropped because the client left.
struct End {
    app: App,
    path: Option<MatchedPath>,
    status: u16,
    started: Instant,
    _working: Option<Working>,
}

impl Drop for End {
    fn drop(&mut self) {
        let path = self.path.as_ref().map_or("other", MatchedPath::as_str);
        self.app.gateway.metrics().request(path, self.status, self.started.elapsed());
    }
}

/// A body that counts its end.
struct Counted {
    inner: Body,
    _end: End,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}

/// What an endpoint that lists unknown fields puts into its answer.
pub(super) fn list_ignored(headers: &mut HeaderMap, ignored: Option<String>) {
    if let Some(value) = ignored.and_then(|paths| HeaderValue::try_from(paths).ok()) {
        headers.insert(HeaderName::from_static("x-hearth-ignored"), value);
    }
}

/// `value` waits no longer than the drain allows.
pub(super) async fn until_cut<T>(app: &App, value: impl Future<Output = T>) -> Result<T, ApiError> {
    let cut = app.drain.cut();
    tokio::select! {
        value = value => Ok(value),
        () = cut.cancelled() => Err(ApiError::shutting_down()),
    }
}
