//! What needs a socket or a process to be fuzzed; the harness is tests/fuzz, the parsers are fuzzed in their rooms.

mod answer;
mod gguf;
mod gguf_edit;
mod http1;
mod http2;
mod served;

use crate::support::{PATIENCE, Server};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Threads of a fuzzed server: what panics on one of them is found, whoever catches it.
const THREAD: &str = "fuzzed-server";
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn n_panics() -> usize {
    PANICS.load(Ordering::Relaxed)
}

/// A runtime whose panics are counted.
fn runtime() -> tokio::runtime::Runtime {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() == Some(THREAD) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(panic);
        }));
    });
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name(THREAD).enable_all().build().expect("a runtime")
}

/// A server for connections that end by its clocks, soon.
async fn impatient_server() -> Server {
    Server::with(|setup| {
        let soon = Duration::from_millis(200);
        setup.http.header_timeout = soon;
        setup.http.body_timeout = soon;
        setup.http.idle_timeout = soon;
        setup.http.stall_timeout = Duration::from_secs(1);
        setup.http.body_bytes_max = 1 << 20;
        setup.engine.n_ctx = Some(512);
        setup.scripted().step_us = 0;
    })
    .await
}

/// How an input is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Whole,
    /// In so many pieces, each of which the server reads alone.
    Pieces(usize),
    /// With the end of the sending half behind it.
    HalfClosed,
    /// Closed before the answer is read.
    Gone,
}

/// What comes back until the server closes. Panics if it never does.
async fn talk(server: &Server, bytes: &[u8], sending: Sending) -> Vec<u8> {
    let mut socket = server.connect().await;
    socket.set_nodelay(true).expect("a socket");
    let (mut reading, mut writing) = socket.split();
    let send = async {
        let n = if let Sending::Pieces(n) = sending { n } else { 1 };
        for piece in bytes.chunks(bytes.len().div_ceil(n).max(1)) {
            // The server may answer and close before it has read everything.
            if writing.write_all(piece).await.is_err() {
                break;
            }
            if n > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        if sending == Sending::HalfClosed {
            let _ = writing.shutdown().await;
        }
    };
    if sending == Sending::Gone {
        send.await;
        return Vec::new();
    }
    let mut answer = Vec::new();
    let receive = async {
        // A reset is an end, too; what came before it is here.
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = reading.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..n]);
        }
    };
    let both = async { tokio::join!(send, receive) };
    tokio::time::timeout(3 * PATIENCE, both).await.expect("the server closes");
    answer
}

/// After a batch: an ordinary request is answered, no connection and no request is left, nothing panicked.
async fn is_well(server: &Server) {
    let since = Instant::now();
    loop {
        // Its clocks are short; on a busy machine a good request may meet one.
        let mut socket = TcpStream::connect(server.address).await.expect("the server listens");
        let request = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let mut answer = Vec::new();
        let sent = socket.write_all(request).await;
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("it ends");
        if sent.is_ok() && read.is_ok() && answer.starts_with(b"HTTP/1.1 200 OK\r\n") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{:?}", String::from_utf8_lossy(&answer));
    }
    loop {
        let page = server.metrics().await;
        let open = page.lines().filter(|line| line.starts_with("hearth_connections{"));
        let n_open: u64 = open.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
        let n_in_flight = server.engine.load().n_in_flight;
        if (n_open, n_in_flight) == (0, 0) {
            break;
        }
        assert!(since.elapsed() < 3 * PATIENCE, "{n_open} connections, {n_in_flight} requests are left");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(n_panics(), 0, "something panicked in the server");
}
