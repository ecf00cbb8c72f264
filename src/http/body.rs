//! Request bodies: their type, size and time.

use super::{App, error::ApiError, family::Family};
use crate::dialect::{Fault, Read};
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of request bodies held at once over all connections; what does not fit is refused as overload.
pub(super) struct Budget {
    n_used: Arc<AtomicUsize>,
    max: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self { n_used: Arc::default(), max }
    }

    fn open(&self) -> Share {
        Share { n_used: Arc::clone(&self.n_used), n: 0, max: self.max }
    }
}

/// A part of the budget, given back on drop.
struct Share {
    n_used: Arc<AtomicUsize>,
    n: usize,
    max: usize,
}

impl Share {
    fn grow(&mut self, more: usize) -> Result<(), ApiError> {
        let n_used = self.n_used.fetch_add(more, Ordering::Relaxed);
        self.n += more;
        if n_used.saturating_add(more) > self.max { Err(ApiError::bodies_full()) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.n_used.fetch_sub(self.n, Ordering::Relaxed);
    }
}

/// A whole body of JSON, not yet parsed. Counts against the budget while it lives.
pub(super) struct JsonBody {
    bytes: Bytes,
    _share: Share,
}

impl JsonBody {
    /// Reading a body of this size takes a few milliseconds; larger ones are read off the threads that serve everybody.
    const INLINE_BYTES_MAX: usize = 256 << 10;

    /// What `reader` makes of the body, which is given back to the budget then.
    pub(super) async fn read<T: Send + 'static>(
        self,
        reader: fn(&[u8]) -> Result<Read<T>, Fault>,
    ) -> Result<Read<T>, ApiError> {
        if self.bytes.len() <= Self::INLINE_BYTES_MAX {
            return Ok(reader(&self.bytes)?);
        }
        let read = tokio::task::spawn_blocking(move || reader(&self.bytes)).await;
        Ok(read.map_err(|_| ApiError::internal())??)
    }
}

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        // Ollama's clients may send anything (`curl -d` sends a form's type); pages of a browser say where they are from.
        let takes_any = Family::of(parts.uri.path()) == Family::Ollama && !parts.headers.contains_key(header::ORIGIN);
        let config = app.config();
        check_head(&parts.headers, config.body_bytes_max)?;
        if !takes_any {
            check_type(&parts.headers)?;
        }
        match tokio::time::timeout(config.body_timeout, read(body, app)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::body_timeout()),
        }
    }
}

async fn read(mut body: Body, app: &App) -> Result<JsonBody, ApiError> {
    let max = app.config().body_bytes_max;
    let mut share = app.bodies.open();
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::broken_body())?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(ApiError::too_large(max));
        }
        share.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(JsonBody { bytes: bytes.freeze(), _share: share })
}

fn check_head(headers: &HeaderMap, max: usize) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > max as u64) {
        return Err(ApiError::too_large(max));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::content_type(
            "Compressed request bodies are not taken; send it without Content-Encoding.",
        ));
    }
    Ok(())
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default()) {
        Some(kind) if !is_json(kind) => Err(ApiError::content_type(
            "The Content-Type of the request must be application/json (curl: -H 'Content-Type: application/json').",
        )),
        _ => Ok(()),
    }
}

/// `application/json`, or any `+json`, in any case and with any parameters. A form's type is refused, which keeps web
/// pages from posting here without a preflight.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_many_names() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(kind), "{kind}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"] {
            assert!(!is_json(kind), "{kind}");
        }
    }

    #[test]
    fn the_budget_is_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.open();
        assert!(first.grow(8).is_ok());
        assert!(budget.open().grow(3).is_err());
        drop(first);
        assert!(budget.open().grow(10).is_ok());
    }
}
