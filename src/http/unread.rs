//! What an answer leaves unread of its request's body.
//!
//! **Invariant:** a connection that can't be used again after an answer says so in it (`Connection: close`); a client that
//! is still sending reads the answer, not a reset.
//!
//! # Design
//! Whoever refuses early (the router, a check of the head, an extractor) drops the body, and hyper would then close the
//! connection without a word. So the body that handlers get is lent: dropped before its end, it comes back here. A little
//! of it is read before the answer goes out, which is all there is to most of them.

use super::App;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes, and time for them, that an answer waits for.
const WAIT_BYTES_MAX: usize = 1 << 20;
const WAIT: Duration = Duration::from_millis(250);
/// Time for what is read behind the answer's back.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// A body that was let go, and whether any of it was read.
type Place = Arc<Mutex<Option<(Incoming, bool)>>>;

/// A request's body in the hands of whoever answers.
pub(super) struct Lent {
    inner: Option<Incoming>,
    is_begun: bool,
    back: Place,
}

/// Where a body comes back to.
pub(super) struct Unread {
    back: Place,
    waits_for_continue: bool,
}

pub(super) fn lend(headers: &HeaderMap, body: Incoming) -> (Lent, Unread) {
    let back = Place::default();
    let unread = Unread { back: Arc::clone(&back), waits_for_continue: headers.contains_key(header::EXPECT) };
    (Lent { inner: Some(body), is_begun: false, back }, unread)
}

impl Unread {
    /// Reads what is left, as far as that is little and there. Returns whether the connection can be used again.
    pub(super) async fn settle(self, app: &App) -> bool {
        let left = self.back.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut body, is_begun)) = left else { return true };
        if self.waits_for_continue && !is_begun {
            // The client is not sending, and may never do.
            return false;
        }
        if body.size_hint().lower() <= WAIT_BYTES_MAX as u64 {
            match tokio::time::timeout(WAIT, discard(&mut body, WAIT_BYTES_MAX)).await {
                Ok(Rest::None) => return true,
                Ok(Rest::Broken) => return false,
                Ok(Rest::Some) | Err(_) => {}
            }
        }
        // **Bound:** one task a connection, which has no other request meanwhile.
        let n_max = app.config().body_bytes_max.saturating_mul(2);
        tokio::spawn(async move { tokio::time::timeout(DISCARD_TIME_MAX, discard(&mut body, n_max)).await });
        false
    }
}

enum Rest {
    None,
    Some,
    Broken,
}

/// Reads and throws away until `n_max` bytes are passed.
async fn discard(body: &mut Incoming, n_max: usize) -> Rest {
    let mut n = 0;
    while n <= n_max {
        match body.frame().await {
            None => return Rest::None,
            Some(Err(_)) => return Rest::Broken,
            Some(Ok(frame)) => n += frame.data_ref().map_or(0, Bytes::len),
        }
    }
    Rest::Some
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.is_begun = true;
        match &mut self.inner {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.inner.take().filter(|body| !body.is_end_stream()) {
            *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some((body, self.is_begun));
        }
    }
}
