//! Server-sent events: a running request as the body of its answer.
//!
//! The head of the answer and the opening chunks go out at once, before the prompt is computed; whenever nothing was sent
//! for a while, a comment keeps proxies and clients from giving up. The body ends after its last event.

use super::App;
use super::error::{ApiError, Asked};
use crate::dialect::Chunks;
use crate::engine::{Event, Failure};
use crate::gateway::Running;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

/// Events that are already there are written together up to this size, so that a burst costs one write.
const WRITE_BYTES: usize = 16 << 10;

/// A request that is streamed.
pub(super) struct Stream<C> {
    pub(super) running: Running,
    pub(super) chunks: C,
    pub(super) asked: Asked,
}

pub(super) fn response<C: Chunks + Send + 'static>(stream: Stream<C>, app: &App) -> Response {
    let events = Events {
        n_running: stream.running.n_choices(),
        running: Some(stream.running),
        chunks: stream.chunks,
        asked: stream.asked,
        has_opened: false,
        pause: Pause::new(app.config().ping_interval),
        cut: app.drain.cut(),
    };
    // Boxed: the state moves with every event otherwise.
    let events = futures_util::stream::unfold(Box::new(events), |mut events| async move {
        events.next().await.map(|bytes| (Ok::<_, Infallible>(bytes), events))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(C::CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Tells nginx not to buffer.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Events<C> {
    /// `None` once the last event was written: the generations are dropped with it.
    running: Option<Running>,
    n_running: usize,
    chunks: C,
    asked: Asked,
    has_opened: bool,
    pause: Pause,
    cut: CancellationToken,
}

enum Next {
    Event(usize, Event),
    Ended,
    Silence,
    Cut,
}

impl<C: Chunks> Events<C> {
    /// The next bytes of the body; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        if !self.has_opened {
            self.has_opened = true;
            self.chunks.open(&mut out);
        }
        while out.is_empty() {
            match self.wait().await? {
                Next::Event(idx, event) => self.write(idx, event, &mut out),
                Next::Ended => self.fail(Failure::Internal("a generation ended without a word".to_owned()), &mut out),
                Next::Silence => {
                    out.extend_from_slice(C::KEEP_ALIVE);
                    self.pause.wrote(); // also where there is nothing that may be said
                }
                Next::Cut => self.fail(Failure::ShuttingDown, &mut out),
            }
        }
        while out.len() < WRITE_BYTES {
            let Some((idx, event)) = self.running.as_mut().and_then(Running::try_next) else { break };
            self.write(idx, event, &mut out);
        }
        self.pause.wrote();
        Some(out.into())
    }

    /// What comes first: an event, the silence that a comment breaks, or the end of the server.
    async fn wait(&mut self) -> Option<Next> {
        let running = self.running.as_mut()?;
        Some(tokio::select! {
            biased;
            event = running.next() => event.map_or(Next::Ended, |(idx, event)| Next::Event(idx, event)),
            () = self.cut.cancelled() => Next::Cut,
            () = self.pause.over() => Next::Silence,
        })
    }

    fn write(&mut self, idx: usize, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Delta(delta) => self.chunks.delta(idx, &delta, out),
            Event::Progress { n_prompt, n_computed, n_cached } => {
                self.chunks.progress(idx, [n_prompt, n_computed, n_cached], out);
            }
            Event::Done(done) => {
                self.chunks.finish(idx, &done, out);
                self.n_running -= 1;
                if self.n_running == 0 {
                    self.end(out);
                }
            }
            Event::Failed(failure) => self.fail(failure, out),
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let Some(running) = self.running.take() else { return };
        self.chunks.end(&running.usage(), out);
    }

    /// The status is long sent, so the failure is an event, and the last one.
    fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) {
        self.running = None;
        self.chunks.fail(&ApiError::of(failure.into(), self.asked).problem, out);
    }
}

/// Measures silence. One timer for the whole stream: it is not set again at every event, only looked at when it fires.
struct Pause {
    limit: Duration,
    last_write: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Pause {
    fn new(limit: Duration) -> Self {
        Self { limit, last_write: Instant::now(), timer: Box::pin(tokio::time::sleep(limit)) }
    }

    fn wrote(&mut self) {
        self.last_write = Instant::now();
    }

    async fn over(&mut self) {
        loop {
            self.timer.as_mut().await;
            let due = self.last_write + self.limit;
            self.timer.as_mut().reset(due.max(Instant::now() + Duration::from_millis(1)));
            if due <= Instant::now() {
                return;
            }
        }
    }
}
