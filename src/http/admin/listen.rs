//! The plane's own listeners: a unix socket in the data folder, and an address if one is set.
//!
//! Who can write to the socket is the system's to say. An address has the data plane's certificate, where there is one, as
//! it is at the time of each connection; and since a browser on this machine can reach it too, it answers to no name that
//! is not this server's.

use super::Peer;
use crate::http::{LiveHttp, origin};
use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections of administrators at once; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For one request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// A socket that the plane listens on.
pub struct AdminListener(Socket);

enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, LiveHttp),
}

impl AdminListener {
    /// Listens at `path`, for the owner and the group. A socket that a dead server left there is taken away; whoever calls
    /// holds the folder's lock, so no living one is there.
    pub fn unix(path: &Path) -> Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(Error::new(ErrorKind::AlreadyExists, "something else than a socket is there")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Self(Socket::Unix(listener, path.to_owned())))
    }

    /// Listens at an address, with the certificate and the names of the data plane's settings.
    pub async fn tcp(address: SocketAddr, live: LiveHttp) -> Result<Self> {
        Ok(Self(Socket::Tcp(TcpListener::bind(address).await?, live)))
    }

    /// Where it listens, if that is an address.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Tcp(listener, _) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.0 {
            // An error means that it is gone already.
            let _ = fs::remove_file(path);
        }
    }
}

/// Serves until `shutdown`; connections that are open then are closed.
pub async fn serve_admin(listener: AdminListener, router: Router, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // **Bound:** `CONNECTIONS_MAX` tasks, one permit each.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, from, place)) => {
                let router = router.clone();
                connections.spawn(async move {
                    let _place = place;
                    answer(stream, from, router).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    connections.shutdown().await;
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a connection comes from, if not by the unix socket, and what holds for those.
type From = Option<(IpAddr, LiveHttp)>;
type Accepted = (Box<dyn Stream>, From, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &AdminListener, places: &Arc<Semaphore>) -> Result<Accepted> {
    let place = Arc::clone(places).acquire_owned().await.map_err(Error::other)?;
    Ok(match &listener.0 {
        Socket::Unix(listener, _) => (Box::new(listener.accept().await?.0), None, place),
        Socket::Tcp(listener, live) => {
            let (stream, peer) = listener.accept().await?;
            (Box::new(stream), Some((peer.ip().to_canonical(), live.clone())), place)
        }
    })
}

async fn answer(stream: Box<dyn Stream>, from: From, router: Router) {
    let Some(tls) = from.as_ref().and_then(|(_, live)| live.now().tls.clone()) else {
        return talk(stream, from, router).await;
    };
    match tokio::time::timeout(HEADER_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => talk(Box::new(stream), from, router).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake of an administrator failed"),
        Err(_) => tracing::debug!("a TLS handshake of an administrator took too long"),
    }
}

async fn talk(stream: Box<dyn Stream>, from: From, router: Router) {
    let (peer, live) = from.unzip();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).http2().timer(TokioTimer::new());
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        let foreign = live.as_ref().and_then(|live| origin::check_admin_host(&live.now(), &request).err());
        async move {
            if let Some(error) = foreign {
                return Ok(error.into_response());
            }
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer));
            // A router never fails.
            tokio::time::timeout(REQUEST_TIMEOUT, router.oneshot(request)).await.map(|answer| match answer {
                Ok(answer) => answer,
                Err(never) => match never {},
            })
        }
    });
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "an admin connection ended early");
    }
}
