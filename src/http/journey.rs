//! A request from its head to the last byte of its answer: which trace it belongs to, what it is counted as, how it ended.

use super::App;
use super::connection::Busy;
use super::drain::Working;
use super::error::Told;
use crate::gateway::{EndOfAnswer, Entry, Head, Trace};
use crate::telemetry::context::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::telemetry::semconv::operation;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Nginx's number for a client that left before its answer.
const CLIENT_LEFT: u16 = 499;

/// The trace that a request's head names, or a new one.
pub(super) fn context(headers: &HeaderMap, ratio: f64) -> TraceContext {
    let lines = |name: &'static str| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    TraceContext::read(lines(TRACEPARENT), lines(TRACESTATE), ratio)
}

/// The usual methods; any other is a client's word.
pub(super) fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// What a model does for a POST at this route.
pub(super) fn operation(path: &str) -> Option<&'static str> {
    Some(match path.strip_prefix("/v1").unwrap_or(path) {
        "/chat/completions" | "/responses" | "/messages" | "/api/chat" => operation::CHAT,
        "/completions" | "/completion" | "/infill" | "/api/generate" => operation::TEXT_COMPLETION,
        "/embeddings" | "/embedding" | "/api/embed" | "/api/embeddings" => operation::EMBEDDINGS,
        "/rerank" | "/reranking" | "/v2/rerank" => operation::RERANK,
        "/score" => operation::SCORE,
        "/classify" => operation::CLASSIFY,
        _ => return None,
    })
}

/// The end of a request, made at its begin: it comes when the answer's body was sent, or is dropped because the client
/// left, before its answer or in the midst of it.
pub(super) struct End {
    app: App,
    trace: Trace,
    started: Instant,
    told: EndOfAnswer,
    /// Only posts are work.
    is_post: bool,
    was_sent: bool,
    /// The last of its holders: a body that is dropped ends the request's row.
    pub(super) entry: Option<Arc<Entry>>,
    _working: Option<Working>,
    _busy: Busy,
}

impl End {
    /// To be held from the request's begin on.
    pub(super) fn of(app: &App, trace: &Trace, head: &Head, busy: Busy) -> Self {
        let is_post = head.method == "POST";
        Self {
            app: Arc::clone(app),
            trace: trace.clone(),
            started: Instant::now(),
            told: EndOfAnswer { status: CLIENT_LEFT, ..EndOfAnswer::default() },
            is_post,
            was_sent: false,
            entry: None,
            // Looking at the server must not hold up its end.
            _working: is_post.then(|| app.drain.working()),
            _busy: busy,
        }
    }

    pub(super) fn is_post(&self) -> bool {
        self.is_post
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The answer's head is known; an error in it is named with what the client reads.
    pub(super) fn answers(&mut self, response: &Response, is_stream: bool) {
        self.told.status = response.status().as_u16();
        self.told.is_stream = is_stream;
        if let Some(Told { problem, .. }) = response.extensions().get::<Told>() {
            self.told.error_code = problem.code.as_deref().map(str::to_owned);
        }
    }

    /// The body whose end it is.
    pub(super) fn with(mut self, inner: Body) -> Body {
        self.was_sent = hyper::body::Body::is_end_stream(&inner);
        Body::new(Counted { inner, end: self })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        told.took = self.started.elapsed();
        // Those that the server's own end cuts off did not leave.
        told.was_cut = self.is_post && !self.was_sent && !self.app.drain.has_begun();
        let path = self.trace.endpoint();
        self.app.gateway.metrics().request(path.as_deref().unwrap_or("other"), told.status, told.took);
        self.trace.ended(told);
    }
}

/// A body that knows its end.
struct Counted {
    inner: Body,
    end: End,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            self.end.was_sent = matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}
