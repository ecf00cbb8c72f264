//! A scripted upstream: it answers each request byte by byte as it is told, counts what reaches it, and knows when its
//! client has left.

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One thing that the server does.
#[derive(Debug, Clone)]
pub enum Act {
    Send(Vec<u8>),
    /// One write for each byte group of this size.
    Drip(Vec<u8>, usize, Duration),
    Wait(Duration),
    /// Closes with a reset instead of an end.
    Reset,
    /// Says nothing more and keeps the connection until its client leaves.
    Hang,
}

/// What reached the server.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub head: String,
    pub body: String,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("a body of JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }
}

#[derive(Default)]
struct Counts {
    n_bytes: AtomicU64,
    n_requests: AtomicU64,
    n_connections: AtomicU64,
    /// Clients that closed before their answer's script was over.
    n_left: AtomicU64,
    last: Mutex<Seen>,
}

type Script = Arc<dyn Fn(u64, &Seen) -> Vec<Act> + Send + Sync>;

pub struct Cloud {
    pub address: SocketAddr,
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

impl Cloud {
    /// `script`: what is done for the n-th request, from 0.
    pub async fn of(script: impl Fn(u64, &Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (counts, script): (Arc<Counts>, Script) = (Arc::default(), Arc::new(script));
        let serving = tokio::spawn({
            let counts = Arc::clone(&counts);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    counts.n_connections.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve(stream, Arc::clone(&counts), Arc::clone(&script)));
                }
            }
        });
        Self { address, counts, serving }
    }

    /// The same for every request.
    pub async fn always(acts: Vec<Act>) -> Self {
        Self::of(move |_, _| acts.clone()).await
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Bytes of all requests.
    pub fn n_bytes(&self) -> u64 {
        self.counts.n_bytes.load(Ordering::SeqCst)
    }

    pub fn n_requests(&self) -> u64 {
        self.counts.n_requests.load(Ordering::SeqCst)
    }

    pub fn n_connections(&self) -> u64 {
        self.counts.n_connections.load(Ordering::SeqCst)
    }

    pub fn n_left(&self) -> u64 {
        self.counts.n_left.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Seen {
        self.counts.last.lock().expect("no panic").clone()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>, script: Script) {
    let _ = stream.set_nodelay(true);
    while let Some(seen) = read_request(&mut stream, &counts).await {
        let n = counts.n_requests.fetch_add(1, Ordering::SeqCst);
        counts.last.lock().expect("no panic").clone_from(&seen);
        let acts = script(n, &seen);
        // Chunked answers keep the connection.
        let keeps = acts.iter().any(|act| matches!(act, Act::Send(bytes) if bytes.ends_with(b"\r\n0\r\n\r\n")));
        let resets = acts.iter().any(|act| matches!(act, Act::Reset));
        if !perform(&mut stream, acts).await {
            counts.n_left.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if resets {
            return;
        }
        if !keeps {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// `false`: the client left before it was over.
async fn perform(stream: &mut TcpStream, acts: Vec<Act>) -> bool {
    for act in acts {
        let is_there = match act {
            Act::Send(bytes) => stream.write_all(&bytes).await.is_ok(),
            Act::Drip(bytes, n, pause) => drip(stream, &bytes, n, pause).await,
            Act::Wait(time) => !leaves_within(stream, time).await,
            Act::Hang => !leaves_within(stream, Duration::from_secs(60)).await,
            Act::Reset => {
                let _ = rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
                return true;
            }
        };
        if !is_there {
            return false;
        }
    }
    true
}

async fn drip(stream: &mut TcpStream, bytes: &[u8], n: usize, pause: Duration) -> bool {
    for piece in bytes.chunks(n) {
        if stream.write_all(piece).await.is_err() || (!pause.is_zero() && leaves_within(stream, pause).await) {
            return false;
        }
        if pause.is_zero() {
            tokio::task::yield_now().await;
        }
    }
    true
}

async fn leaves_within(stream: &mut TcpStream, time: Duration) -> bool {
    let mut buffer = [0; 64];
    matches!(tokio::time::timeout(time, stream.read(&mut buffer)).await, Ok(Ok(0) | Err(_)))
}

async fn read_request(stream: &mut TcpStream, counts: &Counts) -> Option<Seen> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        counts.n_bytes.fetch_add(n as u64, Ordering::SeqCst);
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let seen = Seen { body: String::from_utf8_lossy(&bytes[end + 4..]).into_owned(), head };
        let length = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return Some(seen);
        }
    }
}

/// The head of a stream that ends with its connection.
pub const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

pub fn head(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Odd\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n").into_bytes()
}

pub fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

pub fn role() -> String {
    event(&json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] }))
}

pub fn text(text: &str) -> String {
    event(&json!({ "choices": [{ "index": 0, "delta": { "content": text } }] }))
}

pub fn finish(reason: &str) -> String {
    event(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }))
}

pub fn usage(prompt: impl Into<Value>, completion: impl Into<Value>) -> String {
    event(
        &json!({ "choices": [], "usage": { "prompt_tokens": prompt.into(), "completion_tokens": completion.into() } }),
    )
}

pub const DONE: &str = "data: [DONE]\n\n";

/// A whole good answer of these pieces.
pub fn answer(pieces: &[&str]) -> String {
    let texts: String = pieces.iter().map(|piece| text(piece)).collect();
    let n = pieces.len();
    format!("{SSE}{}{texts}{}{}{DONE}", role(), finish("stop"), usage(11, n))
}

/// The same in one chunk of a chunked body, which keeps the connection.
pub fn kept_answer(pieces: &[&str]) -> Vec<u8> {
    let whole = answer(pieces);
    let body = whole.strip_prefix(SSE).expect("a body behind the head");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes()
}
