//! What every request passes, whatever its path: id, host, address, origin, key, draining, and the counting of its end.

use super::connection::Busy;
use super::error::{ApiError, Asked, Told};
use super::family::Family;
use super::journey::{self, End};
use super::{App, HttpConfig, auth, hints, limited, origin, unread};
use crate::gateway::{Caller, Entry, EntryHead, Error, Head, Principal, Trace, request_name};
use crate::telemetry::context::TRACEPARENT;
use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, uri};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;
use tower::ServiceExt;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's SDKs read this name only.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");

/// The connection that a request came by.
pub(super) struct Via {
    /// Who is at its other end; behind a proxy that is not the client.
    pub(super) peer: IpAddr,
    /// Dropped with the last of the answer.
    pub(super) busy: Busy,
}

/// The whole way of one request: every connection's service.
pub(super) async fn answer(
    app: App,
    router: Router,
    via: Via,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let config = app.config();
    let request_id = request_name();
    let (parts, body) = request.into_parts();
    let (body, unread) = unread::lend(&parts.headers, body);
    let mut request = Request::from_parts(parts, Body::new(body));
    tolerate_slash(request.uri_mut());
    let (version, family) = (request.version(), Family::of(request.uri().path()));
    let head = Head {
        request_id: request_id.clone(),
        client_request_id: client_request_id(request.headers()),
        method: journey::method_name(request.method()),
        ..Head::default()
    };
    let trace = app.gateway.trace(journey::context(request.headers(), app.gateway.trace_ratio()), head.clone());
    let mut end = End::of(&app, &trace, &head, via.busy);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.clone().filter(|origin| is_allowed(&config, origin));
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let client_ip = config.clients.address(via.peer, request.headers());
    let foreign = origin.is_some() && allowed.is_none();
    let asking = Asking { app: &app, config: &config, client_ip, foreign, head: &head, trace: &trace };
    let mut limited = None;
    let response = match asking.admit(&request) {
        Ok(Admitted::Preflight) => {
            let preflight = origin::preflight(request.headers());
            drop(request);
            preflight
        }
        Ok(Admitted::Caller(caller)) => {
            let cut = caller.principal.cut();
            end.entry.clone_from(&caller.entry);
            limited = app.gateway.may_limit(&caller).then(|| caller.clone());
            request.extensions_mut().insert(caller);
            // A panic is a bug, but this request's alone.
            let routed = AssertUnwindSafe(router.oneshot(request)).catch_unwind();
            tokio::select! {
                routed = routed => routed.map_or_else(|_| ApiError::internal().into_response(), |Ok(response)| response),
                () = cut.cancelled() => revoked(end.entry.as_deref()),
            }
        }
        Err(error) => {
            drop(request);
            error.into_response()
        }
    };
    let response = match &end.entry {
        Some(entry) => record(entry, response).await,
        None => response,
    };
    let is_reusable = unread.settle(&app).await;
    let is_streamed = is_stream(response.headers());
    end.answers(&response, is_streamed);
    let mut response = family.recast(response, &request_id);
    if origin.is_some() {
        origin::mark(response.headers_mut(), allowed);
    }
    hints::tell(response.headers_mut(), &trace.told());
    // A length beside the chunks was thrown away; whoever believed it takes the rest for another request. So no other is
    // read here.
    let is_last = !is_reusable || is_chunked || app.drain.has_begun();
    mark(response.headers_mut(), version, &request_id, is_last);
    let context = trace.context();
    if let Ok(parent) = HeaderValue::from_str(&context.traceparent(context.span)) {
        response.headers_mut().insert(TRACEPARENT, parent);
    }
    if let Some(standing) = limited.and_then(|caller| app.gateway.standing(&caller)) {
        limited::mark(response.headers_mut(), &standing, family);
    }
    if end.is_post() && !is_streamed {
        response.headers_mut().insert(PROCESSING_MS, (end.started().elapsed().as_millis() as u64).into());
    }
    Ok(response.map(|inner| end.with(inner)))
}

enum Admitted {
    Preflight,
    Caller(Caller),
}

/// A request at the door, with what is decided about it.
struct Asking<'a> {
    app: &'a App,
    config: &'a HttpConfig,
    client_ip: IpAddr,
    /// A web page asks that may not.
    foreign: bool,
    head: &'a Head,
    trace: &'a Trace,
}

impl Asking<'_> {
    /// The checks that need no more than the head, cheapest first.
    fn admit(&self, request: &Request<Body>) -> Result<Admitted, ApiError> {
        origin::check_host(self.config, request)?;
        if !self.config.clients.admits(self.client_ip) {
            self.app.gateway.metrics().rejected("address");
            return Err(ApiError::forbidden("Requests from this address are not taken."));
        }
        let is_public = auth::is_public(request.uri().path());
        if !is_public {
            self.admit_rate()?;
        }
        if request.method() == Method::OPTIONS {
            return Ok(Admitted::Preflight);
        }
        if self.foreign && request.method() == Method::POST {
            return Err(ApiError::forbidden("This Origin may not call this server."));
        }
        let principal = if is_public { Default::default() } else { self.authenticate(request.headers())? };
        if self.app.drain.refuses() && request.method() == Method::POST {
            return Err(ApiError::shutting_down());
        }
        if let Some(key) = principal.key() {
            self.trace.of_key(&key.id, key.spec.team.as_deref());
        }
        let request_id = self.head.request_id.as_str();
        let entry = match self.app.gateway.books() {
            Some(books) if request.method() == Method::POST && !is_public => {
                let refuse = |error| ApiError::of(error, Asked::Nothing);
                books.ledger().admit().map_err(refuse)?;
                let head = EntryHead { request_id, principal: &principal, ip: Some(self.client_ip) };
                let entry = books.ledger().enter(head);
                entry.follow(self.trace.clone());
                Some(entry)
            }
            _ => None,
        };
        Ok(Admitted::Caller(Caller {
            principal,
            request_id: request_id.to_owned(),
            client_ip: Some(self.client_ip),
            hints: hints::read(request.headers()),
            trace: self.trace.clone(),
            entry,
        }))
    }

    /// Refuses what comes too fast from one address, and everything from one that was locked out.
    fn admit_rate(&self) -> Result<(), ApiError> {
        let now = Instant::now();
        if let Some(wait) = self.app.guard.banned(self.client_ip, now) {
            self.app.gateway.metrics().rejected("locked_out");
            return Err(ApiError::too_many("Too many wrong keys came from this address.", wait));
        }
        self.app.guard.request(self.client_ip, &self.config.clients, now).map_err(|wait| {
            self.app.gateway.metrics().rejected("requests_per_ip");
            ApiError::too_many("Too many requests come from this address.", wait)
        })
    }

    /// Who asks. A wrong key counts against its address; a missing one is a mistake, not a guess.
    fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        let presented = auth::presented(headers);
        self.app.gateway.authenticate(presented, Some(self.client_ip)).map_err(|error| {
            // A right key in the wrong place is no guess.
            if error != Error::Unauthorized {
                return ApiError::of(error, Asked::Nothing);
            }
            let reason = if presented.is_some() { "wrong" } else { "missing" };
            self.app.gateway.metrics().auth_failed(reason);
            let rules = &self.config.clients;
            if presented.is_some() && self.app.guard.failed(self.client_ip, rules, Instant::now()) {
                let (client, ban_s) = (self.client_ip, rules.ban.as_secs());
                tracing::warn!(
                    %client,
                    ban_s,
                    "too many wrong keys: this address is locked out (if it is a proxy's, name it with --trusted-proxy)"
                );
            }
            ApiError::of(error, Asked::Nothing)
        })
    }
}

/// The key was taken away while its request ran.
fn revoked(entry: Option<&Entry>) -> Response {
    if let Some(entry) = entry {
        entry.end("revoked");
    }
    ApiError::of(Error::Unauthorized, Asked::Nothing).into_response()
}

/// Writes the row of a request that is answered whole, before its answer goes out; a stream writes its own before its last
/// event.
async fn record(entry: &Entry, response: Response<Body>) -> Response<Body> {
    let path = response.extensions().get::<MatchedPath>().cloned();
    if path.is_none() && response.status() == StatusCode::NOT_FOUND {
        entry.discard();
        return response;
    }
    let stream = is_stream(response.headers());
    let code = response.extensions().get::<Told>().and_then(|told| told.problem.code.as_deref());
    entry.answered(response.status().as_u16(), code, stream);
    if code_is(&response, "shutting_down") {
        entry.end("shutdown");
    }
    // A generation that was cut goes on until the engine has said what it came to; its last holder writes the row.
    if stream || (entry.is_running() && !response.status().is_success()) {
        return response;
    }
    match entry.settle().await {
        Ok(()) => response,
        Err(error) => {
            let mut refusal = ApiError::of(error, Asked::Nothing).into_response();
            path.into_iter().for_each(|path| drop(refusal.extensions_mut().insert(path)));
            refusal
        }
    }
}

fn code_is(response: &Response<Body>, code: &str) -> bool {
    response.extensions().get::<Told>().is_some_and(|told| told.problem.code.as_deref() == Some(code))
}

/// The client's name for its request, if it is one that a log can take.
pub(super) fn client_request_id(headers: &HeaderMap) -> Option<String> {
    const BYTES_MAX: usize = 128;
    let id = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    (is_plain && (1..=BYTES_MAX).contains(&id.len())).then(|| id.to_owned())
}

pub(super) fn is_allowed(config: &HttpConfig, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| origin::is_allowed(config, origin))
}

fn is_stream(headers: &HeaderMap) -> bool {
    let is = |kind: &[u8]| kind.starts_with(b"text/event-stream") || kind.starts_with(b"application/x-ndjson");
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| is(kind.as_bytes()))
}

/// Headers of every answer.
fn mark(headers: &mut HeaderMap, version: Version, request_id: &str, is_last: bool) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id.clone());
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // What was answered is the asker's alone; streams and documents say so themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if version >= Version::HTTP_2 {
        headers.remove(header::CONNECTION);
    } else if is_last {
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
    if let (Some(caller), Some(path)) = (request.extensions().get::<Caller>(), &path) {
        let operation = journey::operation(path.as_str()).filter(|_| request.method() == Method::POST);
        caller.trace.at(path.as_str(), operation);
        if let Some(entry) = &caller.entry {
            entry.at(path.as_str());
        }
    }
    let mut response = next.run(request).await;
    if let Some(path) = path {
        response.extensions_mut().insert(path);
    }
    response
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
