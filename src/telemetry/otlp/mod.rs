//! Spans to a collector, over OTLP (HTTP, protobuf).
//!
//! **Invariant:** whoever hands spans over never waits and never fails: the queue has a bound, and what does not fit, or
//! can't be delivered, is counted and dropped.
//!
//! # Design
//! The messages are opentelemetry-proto's; queue and delivery are ours rather than opentelemetry_sdk's, whose batch
//! processor runs a thread of its own, says how much it dropped in a log line only, and would bring a second HTTP client.
//! How bytes reach the collector is the caller's ([`Post`]), so that this room opens no connection.

#[cfg(feature = "otlp")]
mod wire;

use super::spans::Span;
use futures_util::future::BoxFuture;
use prometheus::{IntCounter, IntCounterVec};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Whether this build can send anything.
pub const IS_BUILT: bool = cfg!(feature = "otlp");

/// Requests whose spans wait; those of one more are dropped.
const QUEUE_MAX: usize = 2048;
/// Requests whose spans go out together, and how long the first of them waits for the others.
const BATCH_MAX: usize = 256;
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// Times that a batch is sent before it is dropped, and the pauses between, each twice the one before.
const TRIES_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that a collector can ask for.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a server that stops waits for the last spans.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Sends one request to the collector. Bounds its time and the answer's bytes.
pub trait Post: Send + Sync + 'static {
    fn post(&self, body: Vec<u8>) -> BoxFuture<'_, Result<Posted, &'static str>>;
}

/// A collector's answer.
#[derive(Debug, Clone, Default)]
pub struct Posted {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

/// What the spans of this process have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpConfig {
    /// Part of new traces that are recorded, 0 to 1; of traces that began elsewhere their maker decides.
    pub ratio: f64,
    pub service: String,
}

/// How many spans went where.
#[derive(Clone)]
pub struct OtlpSeries {
    pub(crate) exported: IntCounter,
    /// By reason.
    pub(crate) dropped: IntCounterVec,
}

impl OtlpSeries {
    /// Why a span is dropped.
    pub(crate) const REASONS: [&str; 4] = ["queue_full", "undelivered", "refused", "rejected"];

    fn drop(&self, reason: &str, n: usize) {
        self.dropped.with_label_values(&[reason]).inc_by(n as u64);
    }
}

pub struct Exporter {
    ratio: f64,
    queue: mpsc::Sender<Vec<Span>>,
    series: OtlpSeries,
    closing: CancellationToken,
    sending: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Must be called inside a tokio runtime.
    pub fn start(config: OtlpConfig, post: impl Post, series: OtlpSeries) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (ratio, closing) = (config.ratio, CancellationToken::new());
        let instance = super::context::SpanId::fresh().to_string();
        let sender = Sender { config, instance, post, series: series.clone(), closing: closing.clone(), is_well: true };
        let sending = Mutex::new(Some(tokio::spawn(sender.run(waiting))));
        Self { ratio, queue, series, closing, sending }
    }

    /// Part of new traces that are recorded.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Takes the spans of one request, or drops them.
    pub fn send(&self, spans: Vec<Span>) {
        if let Err(mpsc::error::TrySendError::Full(spans) | mpsc::error::TrySendError::Closed(spans)) =
            self.queue.try_send(spans)
        {
            self.series.drop("queue_full", spans.len());
        }
    }

    /// Sends what waits; returns when it is sent, or after [`CLOSE_WAIT`].
    pub async fn close(&self) {
        self.closing.cancel();
        let Some(mut sending) = self.sending.lock().await.take() else { return };
        if tokio::time::timeout(CLOSE_WAIT, &mut sending).await.is_err() {
            sending.abort();
            tracing::warn!("the collector did not take the last spans in time; they are dropped");
        }
    }
}

struct Sender<P> {
    config: OtlpConfig,
    /// Tells this process from others of the same service.
    instance: String,
    post: P,
    series: OtlpSeries,
    closing: CancellationToken,
    /// Whether the last batch was taken: the log tells of changes only.
    is_well: bool,
}

impl<P: Post> Sender<P> {
    async fn run(mut self, mut waiting: mpsc::Receiver<Vec<Span>>) {
        let closing = self.closing.clone();
        let mut traces = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                n = waiting.recv_many(&mut traces, BATCH_MAX) => if n == 0 { return },
                () = closing.cancelled() => break,
            }
            let until = Instant::now() + BATCH_WAIT;
            while traces.len() < BATCH_MAX {
                tokio::select! {
                    n = waiting.recv_many(&mut traces, BATCH_MAX) => if n == 0 { break },
                    () = tokio::time::sleep_until(until) => break,
                    () = closing.cancelled() => break,
                }
            }
            self.deliver(traces.drain(..).flatten().collect()).await;
        }
        // Whoever comes later is told that the queue is full.
        waiting.close();
        while waiting.recv_many(&mut traces, BATCH_MAX).await > 0 {
            self.deliver(traces.drain(..).flatten().collect()).await;
        }
    }

    /// Sends a batch as often as it may be; counts what becomes of it.
    async fn deliver(&mut self, spans: Vec<Span>) {
        let Some(body) = encode(&self.config, &self.instance, &spans) else { return };
        let mut pause = PAUSE;
        for n in 1..=TRIES_MAX {
            let (reason, status, wait) = match self.post.post(body.clone()).await {
                Ok(posted) if (200..300).contains(&posted.status) => return self.took(&spans, &posted.body),
                Ok(posted) if matches!(posted.status, 429 | 502..=504) => {
                    ("it asks to wait", Some(posted.status), posted.retry_after)
                }
                Ok(posted) => {
                    self.failed(&spans, "refused", "it refuses", Some(posted.status));
                    return;
                }
                Err(reason) => (reason, None, None),
            };
            // A server that stops has no time for a second try.
            if n == TRIES_MAX || self.closing.is_cancelled() {
                self.failed(&spans, "undelivered", reason, status);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or(pause).min(PAUSE_MAX)) => {}
                () = self.closing.cancelled() => {}
            }
            pause *= 2;
        }
    }

    fn took(&mut self, spans: &[Span], answer: &[u8]) {
        let n_rejected = rejected(answer).min(spans.len());
        self.series.exported.inc_by((spans.len() - n_rejected) as u64);
        if n_rejected > 0 {
            self.series.drop("rejected", n_rejected);
        }
        if !std::mem::replace(&mut self.is_well, true) {
            tracing::info!("the collector takes spans again");
        }
    }

    fn failed(&mut self, spans: &[Span], word: &'static str, reason: &'static str, status: Option<u16>) {
        self.series.drop(word, spans.len());
        if std::mem::replace(&mut self.is_well, false) {
            tracing::warn!(reason, status, "the collector took no spans; until it does they are dropped");
        }
    }
}

#[cfg(feature = "otlp")]
fn encode(config: &OtlpConfig, instance: &str, spans: &[Span]) -> Option<Vec<u8>> {
    Some(wire::request(&config.service, instance, spans))
}

#[cfg(not(feature = "otlp"))]
fn encode(_: &OtlpConfig, _: &str, _: &[Span]) -> Option<Vec<u8>> {
    None
}

/// How many spans of a batch that it took a collector did not like.
#[cfg(feature = "otlp")]
fn rejected(answer: &[u8]) -> usize {
    wire::rejected(answer)
}

#[cfg(not(feature = "otlp"))]
fn rejected(_: &[u8]) -> usize {
    0
}
