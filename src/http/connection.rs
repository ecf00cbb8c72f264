//! One client connection: its handshake, its protocol, and its end.
//!
//! # Design
//! Four clocks run over a connection: the handshake and the first head, each further head, silence between requests, and
//! bytes that the client doesn't take (`stall`). hyper has one timer for the heads and the silence of HTTP/1 together and
//! none for HTTP/2, so what a connection is doing is noted in [`Activity`] as bytes and requests pass, and looked at a few
//! times in each limit. That costs no timer for each request.

use super::guard::OpenFrom;
use super::stall::Stall;
use super::{App, HttpConfig, edge};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Bytes buffered in each direction of one connection, by us and by the kernel for sending; also the limit of a request's
/// head, which hyper allows 100 fields. A slow reader costs no more than these.
const BUFFER_BYTES: usize = 64 << 10;
const SEND_BYTES: usize = 256 << 10;
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 128;
/// How often in each limit a connection is looked at: it is closed at most a quarter later than it should be.
const LOOKS: u32 = 4;
const LOOK_MIN: Duration = Duration::from_millis(10);

/// What a client with too many connections is told, where that is possible: no request was read, so the family of its
/// errors is not known.
pub(super) const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-length: 127\r\n\r\n\
    {\"error\":{\"message\":\"This address has too many connections open.\",\"type\":\"requests\",\"param\":null,\
    \"code\":\"rate_limit_exceeded\"}}";

pub(super) struct Connection {
    pub(super) app: App,
    pub(super) router: axum::Router,
    pub(super) close: CancellationToken,
    pub(super) peer: IpAddr,
}

impl Connection {
    /// Serves until either side ends it; `places` are given back then.
    pub(super) async fn serve(self, stream: TcpStream, places: (OwnedSemaphorePermit, OpenFrom)) {
        let _places = places;
        let _open = Open::new(&self.app);
        // Small writes (one token each) must not wait for each other's acknowledgement.
        let prepared = stream.set_nodelay(true).and_then(|()| {
            rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BYTES).map_err(std::io::Error::from)
        });
        if let Err(error) = prepared {
            tracing::debug!(%error, "a connection was gone before it began");
            return;
        }
        let config = self.app.config();
        let activity = Arc::new(Activity::new(Some(&self.app)));
        let stream = Stall::new(stream, config.stall_timeout, Arc::clone(&activity));
        let Some(tls) = &config.tls else { return self.talk(TokioIo::new(stream), activity, &config).await };
        match tokio::time::timeout(config.header_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.talk(TokioIo::new(stream), activity, &config).await,
            Ok(Err(error)) => {
                self.app.gateway.metrics().rejected("tls_handshake");
                tracing::debug!(%error, "a TLS handshake failed");
            }
            Err(_) => self.app.gateway.metrics().rejected("tls_handshake"),
        }
    }

    async fn talk<S>(self, stream: S, activity: Arc<Activity>, config: &HttpConfig)
    where
        S: Read + Write + Unpin + Send + 'static,
    {
        let Self { app, router, close, peer } = self;
        let service = hyper::service::service_fn({
            let activity = Arc::clone(&activity);
            move |request: http::Request<hyper::body::Incoming>| {
                let via = edge::Via { peer, busy: Busy::new(&activity, request.version()) };
                edge::answer(Arc::clone(&app), router.clone(), via, request)
            }
        });
        let builder = builder(config);
        let connection = builder.serve_connection(stream, service);
        tokio::pin!(connection);
        let mut looks = tokio::time::interval((config.header_timeout.min(config.idle_timeout) / LOOKS).max(LOOK_MIN));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_closing = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended early");
                    }
                    return;
                }
                _ = looks.tick() => match activity.judge(config) {
                    Verdict::Fine => {}
                    Verdict::Slow => return,
                    Verdict::Idle if is_closing => return,
                    Verdict::Idle => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                },
                () = close.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn builder(config: &HttpConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // It runs through the silence before a head as well; `Activity` knows them apart.
        .header_read_timeout(config.idle_timeout + config.header_timeout)
        .max_buf_size(BUFFER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES as u32)
        .max_send_buf_size(BUFFER_BYTES)
        .keep_alive_interval(Some(config.header_timeout))
        .keep_alive_timeout(config.header_timeout);
    builder
}

/// What a connection is doing. Times are milliseconds since it was opened.
pub(super) struct Activity {
    /// Where it is counted.
    app: Option<App>,
    opened: Instant,
    n_running: AtomicU32,
    has_asked: AtomicBool,
    is_http2: AtomicBool,
    idle_since: AtomicU64,
    /// When the first byte of a head came, plus 1; 0: none is on its way.
    head_since: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// A head takes too long: closed at once.
    Slow,
    /// No request for too long: closed in a way that loses none.
    Idle,
}

impl Activity {
    pub(super) fn new(app: Option<&App>) -> Self {
        Self {
            app: app.map(Arc::clone),
            opened: Instant::now(),
            n_running: AtomicU32::new(0),
            has_asked: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes came in.
    pub(super) fn read(&self) {
        // HTTP/2 has frames that are no requests; its heads are bounded by the library's own window.
        let is_head = self.has_asked.load(Ordering::Relaxed)
            && !self.is_http2.load(Ordering::Relaxed)
            && self.n_running.load(Ordering::Relaxed) == 0;
        if is_head && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    fn judge(&self, config: &HttpConfig) -> Verdict {
        let now = self.now();
        let is_over = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) >= limit.as_millis();
        if !self.has_asked.load(Ordering::Relaxed) {
            return if is_over(0, config.header_timeout) { Verdict::Slow } else { Verdict::Fine };
        }
        if self.n_running.load(Ordering::Relaxed) > 0 {
            return Verdict::Fine;
        }
        match self.head_since.load(Ordering::Relaxed) {
            0 if is_over(self.idle_since.load(Ordering::Relaxed), config.idle_timeout) => Verdict::Idle,
            0 => Verdict::Fine,
            since if is_over(since - 1, config.header_timeout) => Verdict::Slow,
            _ => Verdict::Fine,
        }
    }
}

/// A request from its head to the end of its answer.
pub(super) struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>, version: http::Version) -> Self {
        if activity.n_running.fetch_add(1, Ordering::Relaxed) == 0 {
            activity.app.iter().for_each(|app| app.gateway.metrics().connection_works());
        }
        activity.head_since.store(0, Ordering::Relaxed);
        activity.is_http2.store(version >= http::Version::HTTP_2, Ordering::Relaxed);
        activity.has_asked.store(true, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        if self.0.n_running.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.app.iter().for_each(|app| app.gateway.metrics().connection_rests());
        }
    }
}

/// Counts a connection as long as it lives.
struct Open(App);

impl Open {
    fn new(app: &App) -> Self {
        app.gateway.metrics().connection_opened();
        Self(Arc::clone(app))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.gateway.metrics().connection_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
    }

    #[test]
    fn each_clock_runs_in_its_time() {
        let limits = |header_ms, idle_ms| HttpConfig {
            header_timeout: Duration::from_millis(header_ms),
            idle_timeout: Duration::from_millis(idle_ms),
            ..Default::default()
        };
        let (now, later) = (limits(0, 0), limits(60_000, 60_000));
        let activity = Arc::new(Activity::new(None));
        activity.read();
        assert_eq!((activity.judge(&now), activity.judge(&later)), (Verdict::Slow, Verdict::Fine));
        let busy = Busy::new(&activity, http::Version::HTTP_11);
        activity.read();
        assert_eq!(activity.judge(&now), Verdict::Fine, "a body is not a head");
        drop(busy);
        assert_eq!((activity.judge(&limits(0, 60_000)), activity.judge(&now)), (Verdict::Fine, Verdict::Idle));
        activity.read();
        assert_eq!((activity.judge(&limits(0, 60_000)), activity.judge(&later)), (Verdict::Slow, Verdict::Fine));
        drop(Busy::new(&activity, http::Version::HTTP_2));
        activity.read();
        assert_eq!(activity.judge(&limits(0, 60_000)), Verdict::Fine, "a ping is not a head");
    }
}
