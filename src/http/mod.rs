//! Sockets in, [`Gateway`] calls out: paths, limits, status codes and streams.
//!
//! **Invariant:** only this room knows status codes and headers. A client that leaves drops its handler or its body, and
//! with it everything the request held. Every timeout, size and count has its limit in [`HttpConfig`] or where it is made.
//!
//! # Design
//! An own accept loop over hyper instead of `axum::serve`, which has no header timeout, no connection cap and no way to
//! end streams with a last event. Routing is axum's; everything around it (ids, keys, hosts, addresses, draining) is one
//! function in `edge`, so that no route can be added past it. Settings are one immutable snapshot ([`LiveHttp`]), which a
//! reload replaces whole.

mod admin;
mod anthropic;
mod auth;
mod body;
mod client;
mod connection;
mod docs;
mod drain;
mod edge;
mod error;
mod family;
mod guard;
mod hints;
mod journey;
mod key;
mod limited;
mod lora;
mod native;
mod ollama;
mod openai;
mod ops;
mod origin;
mod responses;
mod router;
mod sse;
mod stall;
mod tls;
mod unread;
mod vectors;

pub use admin::{Admin, AdminListener, ReloadAsk, Settings, admin_router, granted_key, granted_team, serve_admin};
pub use client::ClientRules;
pub use tls::{Tls, TlsError, TlsFiles};

use crate::gateway::Gateway;
use arc_swap::ArcSwap;
use connection::Connection;
use drain::Drain;
use guard::{Guard, OpenFrom};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How the API is offered on the network.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    /// Addresses to listen on, at least one.
    pub hosts: Vec<IpAddr>,
    pub port: u16,
    /// What to prove to clients that this is the server they mean; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Names accepted in `Host` beside loopback's when bound to loopback (a rebound DNS name is refused). Bound to another
    /// address, any name is, unless this lists some.
    pub allowed_hosts: Vec<String>,
    /// Web origins that may call, beside local ones and apps; `*` for all.
    pub cors_origins: Vec<String>,
    /// What is decided by a client's address.
    pub clients: ClientRules,
    /// Largest request body; four of this size are held at once, more are refused as overload.
    pub body_bytes_max: usize,
    /// For the TLS handshake, and for each request's head.
    pub header_timeout: Duration,
    /// For a whole request body.
    pub body_timeout: Duration,
    /// For a connection without a request.
    pub idle_timeout: Duration,
    /// For a client to take the next bytes of its answer.
    pub stall_timeout: Duration,
    /// Longest silence of a stream before a comment is sent.
    pub ping_interval: Duration,
    /// Time that running requests have to finish after a shutdown began.
    pub drain_deadline: Duration,
    /// Connections open at once; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Offer `/slots`, which tells what others are doing.
    pub expose_slots: bool,
    /// The sockets are held by somebody who gives them to the next server: whoever comes once the end has begun waits for
    /// that one, and is not refused.
    pub hands_over: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            hosts: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            port: 8080,
            tls: None,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            clients: ClientRules::default(),
            body_bytes_max: 64 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(15),
            drain_deadline: Duration::from_secs(30),
            connections_max: 4096,
            expose_slots: false,
            hands_over: false,
        }
    }
}

impl HttpConfig {
    /// Whether nobody else can reach the server.
    fn is_local(&self) -> bool {
        self.hosts.iter().all(IpAddr::is_loopback)
    }
}

/// The settings of a running server. Every request takes one snapshot, so a change is seen by the next one whole; host,
/// port, `connections_max`, `expose_slots` and `hands_over` stay as they were at the start.
#[derive(Clone)]
pub struct LiveHttp(Arc<ArcSwap<HttpConfig>>);

impl LiveHttp {
    pub fn now(&self) -> Arc<HttpConfig> {
        self.0.load_full()
    }

    pub fn set(&self, config: HttpConfig) {
        self.0.store(Arc::new(config));
    }
}

impl From<HttpConfig> for LiveHttp {
    fn from(config: HttpConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }
}

/// What every request needs.
struct Shared {
    live: LiveHttp,
    gateway: Arc<Gateway>,
    drain: Drain,
    bodies: body::Budget,
    guard: Guard,
    expose_slots: bool,
}

impl Shared {
    fn config(&self) -> Arc<HttpConfig> {
        self.live.now()
    }
}

type App = Arc<Shared>;

/// Time that connections have to send their last bytes once no request is left.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors, mostly), instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` and the drain after it; every connection is closed when this returns. `listeners`: at least
/// one.
pub async fn serve(
    listeners: Vec<TcpListener>,
    config: impl Into<LiveHttp>,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let live = config.into();
    let config = live.now();
    let places = Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
    let bodies = body::Budget::new(config.body_bytes_max.saturating_mul(4));
    let (drain, expose_slots) = (Drain::new(shutdown.clone(), config.hands_over), config.expose_slots);
    let app: App = Arc::new(Shared { drain, bodies, live, gateway, guard: Guard::default(), expose_slots });
    note_expiry(&app);
    let router = router::router(Arc::clone(&app));
    let close = CancellationToken::new();
    // **Bound:** `connections_max` tasks, one permit each.
    let mut connections = JoinSet::new();
    let drained = app.drain.finished(config.drain_deadline);
    tokio::pin!(drained);
    let mut turn = 0;
    loop {
        let accepts = !(config.hands_over && shutdown.is_cancelled());
        tokio::select! {
            // Before the others, so that nobody is taken in who should wait.
            biased;
            () = shutdown.cancelled(), if accepts && config.hands_over => {}
            () = &mut drained => break,
            accepted = accept(&listeners, &places, &mut turn), if accepts => match accepted {
                Ok((stream, peer, place)) => {
                    if let Some(open) = admit(&app, &stream, peer) {
                        let app = Arc::clone(&app);
                        let connection = Connection { app, router: router.clone(), close: close.clone(), peer };
                        connections.spawn(connection.serve(stream, (place, open)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => log_panic(ended),
        }
    }
    drop(listeners);
    close.cancel();
    let all_closed = async { while connections.join_next().await.is_some() {} };
    // What has not closed by now is closed by force.
    let _ = tokio::time::timeout(CLOSE_WAIT, all_closed).await;
    connections.shutdown().await;
    Ok(())
}

/// The next connection of any listener, once there is a place for it. `turn` says who is asked first: a listener under a
/// flood must not keep the others waiting.
async fn accept(
    listeners: &[TcpListener],
    places: &Arc<Semaphore>,
    turn: &mut usize,
) -> std::io::Result<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    *turn = (*turn + 1) % listeners.len().max(1);
    let (before, first) = listeners.split_at(*turn);
    let accepting = first.iter().chain(before).map(|listener| Box::pin(listener.accept()));
    let (accepted, ..) = futures_util::future::select_all(accepting).await;
    let (stream, peer) = accepted?;
    Ok((stream, client::canonical(peer.ip()), place))
}

/// Whether a connection may go on, by its address alone: nothing was read from it yet. `None`: it is to be dropped.
fn admit(app: &App, stream: &TcpStream, peer: IpAddr) -> Option<OpenFrom> {
    let config = app.config();
    let rules = &config.clients;
    let is_proxy = rules.trusts(peer);
    if !is_proxy && !rules.admits(peer) {
        app.gateway.metrics().rejected("address");
        tracing::debug!(%peer, "a connection from an address that is not admitted was closed");
        return None;
    }
    let open = app.guard.connect(peer, if is_proxy { 0 } else { rules.connections_max });
    if open.is_none() {
        app.gateway.metrics().rejected("connections_per_ip");
        tracing::debug!(%peer, "one connection more than an address may have was closed");
        if config.tls.is_none() {
            // A new socket has room for these bytes; where it has not, closing says enough.
            let _ = stream.try_write(connection::TOO_MANY);
        }
    }
    open
}

/// Tells Prometheus when the certificate ends.
fn note_expiry(app: &App) {
    if let Some(tls) = &app.config().tls {
        app.gateway.metrics().certificate_expires(tls.expires_unix());
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked; this is a bug");
    }
}

#[cfg(test)]
mod fuzz_tests;
