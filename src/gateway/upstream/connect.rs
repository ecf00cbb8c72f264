//! Connections to upstreams: TCP, with TLS where the address says so.
//!
//! # Design
//! hyper-util's pooled client over this connector rather than reqwest: what reqwest adds (redirects, cookies, proxies out
//! of the environment, decompression, addresses in error texts) is what must not happen here, and hyper, hyper-util, rustls
//! and the system's certificates are in the binary already. HTTP/1.1 only: one connection carries one answer, so dropping
//! the answer closes the connection, which is how an upstream learns that nobody listens.

use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_native_certs::load_native_certs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

pub(crate) type Body = http_body_util::Full<bytes::Bytes>;
pub(crate) type HttpClient = Client<Connector, Body>;

/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long a connection is kept for the next request.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// `idle`: most connections kept for later.
pub(crate) fn client(connector: Connector, idle: usize) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(idle)
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .build(connector)
}

#[derive(Clone)]
pub(crate) struct Connector {
    timeout: Duration,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// `ca`: certificates to trust instead of the system's. Errors say what the operator has to look at.
    pub(crate) fn new(is_tls: bool, ca: Option<&Path>, timeout: Duration) -> Result<Self, String> {
        let tls = if is_tls { Some(TlsConnector::from(Arc::new(tls(ca)?))) } else { None };
        Ok(Self { timeout, tls })
    }

    async fn connect(self, uri: Uri) -> io::Result<Conn> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let connect = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let io: Box<dyn Duplex> = match &self.tls {
                None => Box::new(stream),
                Some(tls) => {
                    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                    Box::new(tls.connect(name, stream).await?)
                }
            };
            Ok(Conn(TokioIo::new(io)))
        };
        tokio::time::timeout(self.timeout, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Conn;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Conn>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// `ca`: certificates to trust instead of the system's. Errors say what the operator has to look at.
pub(crate) fn tls(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let broken = |error| format!("{}: {error}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(broken)? {
                roots.add(certificate.map_err(broken)?).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("there are no certificates to check its server with; name some with ca".to_owned());
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(crate) struct Conn(TokioIo<Box<dyn Duplex>>);

impl Connection for Conn {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
