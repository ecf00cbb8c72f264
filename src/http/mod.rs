//! Sockets in, [`Gateway`] calls out: paths, limits, status codes and streams.
//!
//! **Invariant:** only this room knows status codes and headers. A client that leaves drops its handler or its body, and
//! with it everything the request held. Every timeout, size and count has its limit in [`HttpConfig`] or where it is made.
//!
//! # Design
//! An own accept loop over hyper instead of `axum::serve`, which has no header timeout, no connection cap and no way to
//! end streams with a last event. Routing is axum's; everything around it (ids, keys, hosts, draining) is one function in
//! `edge`, so that no route can be added past it.

mod anthropic;
mod auth;
mod body;
mod docs;
mod drain;
mod edge;
mod error;
mod family;
mod hints;
mod lora;
mod ollama;
mod openai;
mod ops;
mod origin;
mod responses;
mod router;
mod sse;
mod stall;
mod vectors;

use crate::gateway::Gateway;
use drain::Drain;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use stall::Stall;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How the API is offered on the network.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    pub host: IpAddr,
    pub port: u16,
    /// Names accepted in `Host` beside loopback's when bound to loopback (a rebound DNS name is refused).
    pub allowed_hosts: Vec<String>,
    /// Web origins that may call, beside local ones and apps; `*` for all.
    pub cors_origins: Vec<String>,
    /// Largest request body; four of this size are held at once, more are refused as overload.
    pub body_bytes_max: usize,
    /// For a request's head, and for an idle connection.
    pub header_timeout: Duration,
    /// For a whole request body, and for a client to take the next bytes of its answer.
    pub body_timeout: Duration,
    /// Longest silence of a stream before a comment is sent.
    pub ping_interval: Duration,
    /// Time that running requests have to finish after a shutdown began.
    pub drain_deadline: Duration,
    /// Connections open at once; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Offer `/slots`, which tells what others are doing.
    pub expose_slots: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            body_bytes_max: 64 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(15),
            drain_deadline: Duration::from_secs(30),
            connections_max: 1024,
            expose_slots: false,
        }
    }
}

/// What every request needs.
struct Shared {
    config: HttpConfig,
    gateway: Arc<Gateway>,
    drain: Drain,
    bodies: body::Budget,
}

type App = Arc<Shared>;

/// Time that connections have to send their last bytes once no request is left.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors, mostly), instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes buffered in each direction of one connection; also the limit of a request's head.
const BUFFER_BYTES: usize = 64 << 10;
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 128;

/// Serves until `shutdown` and the drain after it; every connection is closed when this returns.
pub async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
    let bodies = body::Budget::new(config.body_bytes_max.saturating_mul(4));
    let app: App = Arc::new(Shared { drain: Drain::new(shutdown), bodies, config, gateway });
    let router = router::router(Arc::clone(&app));
    let close = CancellationToken::new();
    // **Bound:** `connections_max` tasks, one permit each.
    let mut connections = JoinSet::new();
    let drained = app.drain.finished(app.config.drain_deadline);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            accepted = accept(&listener, &places) => match accepted {
                Ok((stream, place)) => {
                    let connection = Connection { app: Arc::clone(&app), router: router.clone(), close: close.clone() };
                    connections.spawn(connection.serve(stream, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => log_panic(ended),
        }
    }
    drop(listener);
    close.cancel();
    let all_closed = async { while connections.join_next().await.is_some() {} };
    // What has not closed by now is closed by force.
    let _ = tokio::time::timeout(CLOSE_WAIT, all_closed).await;
    connections.shutdown().await;
    Ok(())
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked; this is a bug");
    }
}

/// One client connection.
struct Connection {
    app: App,
    router: axum::Router,
    close: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let _place = place;
        let _open = Open::new(&self.app);
        // Small writes (one token each) must not wait for each other's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it began");
            return;
        }
        let header_timeout = self.app.config.header_timeout;
        let stream = Stall::new(TokioIo::new(stream), self.app.config.body_timeout);
        let builder = builder(header_timeout);
        let has_asked = Arc::new(AtomicBool::new(false));
        let service = hyper::service::service_fn({
            let has_asked = Arc::clone(&has_asked);
            move |request| {
                has_asked.store(true, Ordering::Relaxed);
                edge::answer(Arc::clone(&self.app), self.router.clone(), request)
            }
        });
        let connection = builder.serve_connection(stream, service);
        tokio::pin!(connection);
        // hyper's header timeout begins once it knows the protocol; this one also ends those who never say it.
        let silent = tokio::time::sleep(header_timeout);
        tokio::pin!(silent);
        let (mut is_watched, mut is_closing) = (true, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended early");
                    }
                    return;
                }
                () = silent.as_mut(), if is_watched => {
                    is_watched = false;
                    if !has_asked.load(Ordering::Relaxed) {
                        return;
                    }
                }
                () = self.close.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(BUFFER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES as u32)
        .keep_alive_interval(Some(header_timeout))
        .keep_alive_timeout(header_timeout);
    builder
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
