//! Server-sent events: a running request as the body of its answer.
//!
//! The head of the answer and the opening chunks go out at once, before the prompt is computed; whenever nothing was sent
//! for a while, a comment keeps proxies and clients from giving up. The body ends after its last event.

use super::App;
use super::error::{ApiError, Asked};
use crate::dialect::Chunks;
use crate::engine::{Event, Failure};
use crate::gateway::{self, Running};
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
    let revoked = stream.running.cut();
    let events = Events {
        n_running: stream.running.n_choices(),
        running: Some(stream.running),
        chunks: stream.chunks,
        asked: stream.asked,
        has_opened: false,
        pause: Pause::new(app.config().ping_interval),
        cut: app.drain.cut(),
        revoked,
        over: None,
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
    /// The key was taken away.
    revoked: CancellationToken,
    /// How the stream ends, once it does.
    over: Option<Over>,
}

/// How a stream ends.
enum Over {
    Well,
    /// The word is for the request's row, the error for the client.
    Failed(&'static str, gateway::Error),
}

enum Next {
    Event(usize, Event),
    Ended,
    Silence,
    Cut,
    Revoked,
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
                Next::Ended => {
                    let failure = Failure::Internal("a generation ended without a word".to_owned());
                    self.over = Some(Over::Failed("failed", failure.into()));
                }
                Next::Silence => {
                    out.extend_from_slice(C::KEEP_ALIVE);
                    self.pause.wrote(); // also where there is nothing that may be said
                }
                Next::Cut => self.over = Some(Over::Failed("shutdown", Failure::ShuttingDown.into())),
                Next::Revoked => self.over = Some(Over::Failed("revoked", gateway::Error::Unauthorized)),
            }
            self.end(&mut out).await;
        }
        while out.len() < WRITE_BYTES {
            let Some((idx, event)) = self.running.as_mut().and_then(Running::try_next) else { break };
            self.write(idx, event, &mut out);
            self.end(&mut out).await;
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
            () = self.revoked.cancelled() => Next::Revoked,
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
                    self.over = Some(Over::Well);
                }
            }
            Event::Failed(failure) => {
                let error = match &self.running {
                    Some(running) => running.error(failure),
                    None => failure.into(),
                };
                self.over = Some(Over::Failed("failed", error));
            }
            _ => {}
        }
    }

    /// Writes the last bytes, if it is time for them, and before them the request's row: a stream whose row can't be written
    /// did not end well.
    async fn end(&mut self, out: &mut Vec<u8>) {
        let Some(over) = self.over.take() else { return };
        let Some(mut running) = self.running.take() else { return };
        let (word, error) = match over {
            Over::Well => match running.settle("stop").await {
                Ok(()) => return self.chunks.end(&running.usage(), out),
                Err(error) => ("failed", error),
            },
            Over::Failed(word, error) => (word, error),
        };
        // The status is long sent, so the failure is an event, and the last one.
        let problem = ApiError::of(error, self.asked).problem;
        if let Some(trace) = running.trace() {
            trace.failed_with(problem.code.as_deref());
        }
        if let Some(entry) = running.entry() {
            // Written once the engine has said what it came to.
            entry.end(word);
            entry.failed_with(problem.code.as_deref());
        }
        drop(running);
        self.chunks.fail(&problem, out);
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
