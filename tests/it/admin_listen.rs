//! The admin plane on an address: the data plane's certificate, and no name but this server's.

use crate::support::PATIENCE;
use crate::support::governed::books_config;
use crate::support::tls::Authority;
use hearth::gateway::{Books, read_master};
use hearth::http::{Admin, AdminListener, HttpConfig, LiveHttp, Tls, admin_router, serve_admin};
use hearth::telemetry::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

struct Desk {
    address: SocketAddr,
    master: String,
    live: LiveHttp,
    ends: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Desk {
    async fn of(config: HttpConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let books = Books::open(books_config(dir.path()), &Arc::new(Metrics::new())).expect("fresh books");
        let master = read_master(dir.path()).expect("a key");
        let (live, ends) = (LiveHttp::from(config), CancellationToken::new());
        let admin = Admin { books, gateway: None, drain: CancellationToken::new(), settings: None, ui: true };
        let listener = AdminListener::tcp(([127, 0, 0, 1], 0).into(), live.clone()).await.expect("a free port");
        let address = listener.address().expect("a bound socket");
        tokio::spawn(serve_admin(listener, admin_router(Arc::new(admin)), ends.clone()));
        Self { address, master, live, ends, _dir: dir }
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// One request with this host; the status, 0 where there was no HTTP.
    async fn ask(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, host: &str) -> u16 {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            self.master
        );
        let mut bytes = Vec::new();
        let asked = async {
            stream.write_all(request.as_bytes()).await?;
            stream.read_to_end(&mut bytes).await
        };
        // A connection that is cut has no status either.
        let _ = tokio::time::timeout(PATIENCE, asked).await.expect("an end in time");
        let text = String::from_utf8_lossy(&bytes);
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

#[tokio::test]
async fn a_name_that_was_rebound_reaches_nothing() {
    let desk = Desk::of(HttpConfig { allowed_hosts: vec!["box.lan".into()], ..Default::default() }).await;
    for path in ["/key/list", "/ui"] {
        for host in ["localhost:9090", "127.0.0.1", "[::1]:1", "192.0.2.1", "BOX.lan"] {
            assert_eq!(desk.ask(desk.plain().await, path, host).await, 200, "{path} {host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:9090"] {
            assert_eq!(desk.ask(desk.plain().await, path, host).await, 421, "{path} {host}");
        }
        assert_eq!(desk.ask(desk.plain().await, path, "localhost\r\nhost: evil.example").await, 400, "{path}");
    }
}

#[tokio::test]
async fn it_has_the_data_planes_certificate_as_it_is_now() {
    let authority = Authority::new();
    let desk = Desk::of(HttpConfig { tls: Some(authority.server()), ..Default::default() }).await;
    assert_eq!(desk.ask(desk.plain().await, "/key/list", "localhost").await, 0, "plain HTTP is not spoken");
    let stream = authority.client().connect(desk.address).await.expect("a handshake");
    assert_eq!(desk.ask(stream, "/key/list", "localhost").await, 200);
    let stream = authority.client().connect(desk.address).await.expect("a handshake");
    assert_eq!(desk.ask(stream, "/key/list", "evil.example").await, 421);

    // Settings that were taken anew hold from the next connection on: clients need a certificate now.
    let mut files = authority.issue("next", &["localhost"]);
    files.client_ca = Some(authority.path("ca.pem"));
    let tls = Tls::load(&files).expect("a good pair");
    desk.live.set(HttpConfig { tls: Some(tls), ..Default::default() });
    let status = match authority.client().connect(desk.address).await {
        // With TLS 1.3 the client learns it from its first read.
        Ok(stream) => desk.ask(stream, "/key/list", "localhost").await,
        Err(_) => 0,
    };
    assert_eq!(status, 0, "nobody asks without a certificate");
    let mut known = authority.client();
    known.own = Some(authority.issue("admin", &["admin"]));
    let stream = known.connect(desk.address).await.expect("a handshake");
    assert_eq!(desk.ask(stream, "/key/list", "localhost").await, 200);
}
