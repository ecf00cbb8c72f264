//! Bytes on connections to a live front, fuzzed (F2): an input is a batch of connections that are open at once.
//!
//! Whatever they send: each gets as many answers as it has requests, or fewer, each of them well-formed, and the server serves
//! on.

use super::answer::{Told, answers, requests};
use super::{Sending, impatient_server, is_well, runtime, talk};
use crate::fuzz::{Shape, Target, fuzz_few, outcome};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A line between two connections.
const NEXT: &[u8] = b"\n====\n";
/// Connections of one input; the rest is left out.
const CONNECTIONS_MAX: usize = 48;

const WORDS: &str = "GET ¦POST ¦HEAD ¦OPTIONS ¦CONNECT ¦PUT ¦PRI * HTTP/2.0¦HTTP/1.1¦HTTP/1.0¦HTTP/0.9¦HTTP/2¦/livez¦/v1/models¦\
    /v1/chat/completions¦/v1/completions¦/v1/messages¦/v1/responses¦/tokenize¦/metrics¦/openapi.json¦/%2e%2e/¦//¦*¦\
    http://localhost/livez¦host: localhost¦host: evil.example¦content-length: ¦content-length: 0¦transfer-encoding: chunked¦\
    transfer-encoding: identity¦connection: close¦connection: keep-alive¦connection: upgrade¦upgrade: h2c¦upgrade: websocket¦\
    http2-settings: AAMAAABkAAQAAP__¦expect: 100-continue¦content-type: application/json¦content-encoding: gzip¦te: trailers¦\
    trailer: x¦\r\n\r\n¦\r\n¦\n\n¦\r¦0\r\n\r\n¦1\r\na\r\n¦ffffffff\r\n¦;ext=1¦chunked¦,¦:¦ ¦\t¦\0¦\u{b}¦{}¦\
    {\"prompt\":\"a\",\"max_tokens\":1}¦{\"prompt\":\"/forever\",\"stream\":true}¦====\n";

/// What an attacker wants the server to take for a request of its own.
const HIDDEN: &str = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
const BODY: &str = r#"{"prompt":"a","max_tokens":1}"#;

fn post(lines: &str, body: &str) -> String {
    format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n\r\n{body}")
}

fn seeds() -> Vec<Vec<u8>> {
    let n = BODY.len();
    let good = post(&format!("content-type: application/json\r\ncontent-length: {n}"), BODY);
    let stream = r#"{"prompt":"/count 20","stream":true,"max_tokens":60}"#;
    let streamed = post(&format!("content-length: {}", stream.len()), stream);
    let chunked = format!("{n:x}\r\n{BODY}\r\n0\r\n\r\n");
    let hidden = format!("{chunked}{HIDDEN}");
    let get = |target: &str, hosts: &str| format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
    let local = "host: localhost\r\n";
    let pipelined = [
        vec![good.clone(), format!("{good}{HIDDEN}"), format!("{HIDDEN}{good}{streamed}{HIDDEN}"), HIDDEN.repeat(30)],
        vec![streamed.clone(), format!("{streamed}{streamed}"), streamed.replace("HTTP/1.1", "HTTP/1.0")],
    ];
    let smuggling = vec![
        post(&format!("content-length: {}\r\ntransfer-encoding: chunked", hidden.len()), &hidden),
        post("transfer-encoding: chunked\r\ncontent-length: 4", &hidden),
        post("transfer-encoding: chunked", &hidden),
        post("transfer-encoding: chunked\r\ntransfer-encoding: chunked", &hidden),
        post("transfer-encoding: identity\r\ntransfer-encoding: chunked", &hidden),
        post("transfer-encoding: xchunked", &hidden),
        post("transfer-encoding:\r\n chunked", &hidden),
        post("transfer-encoding:\u{b}chunked", &hidden),
    ];
    let lengths = [
        format!("content-length: {n}\r\ncontent-length: {}", n + 1),
        format!("content-length: {n}, {}", n + 1),
        format!("content-length: +{n}"),
        "content-length: -1".to_owned(),
        "content-length: 99999999999999999999".to_owned(),
        format!("content-length : {n}"),
        format!("x-a: b\r\n c: d\r\ncontent-length: {n}"),
        format!("x-a: b\rcontent-length: 0\r\ncontent-length: {n}"),
        format!("x-a: b\0\r\ncontent-length: {n}"),
        "content-length: 100".to_owned(),
        format!("expect: 100-continue\r\ncontent-length: {n}"),
    ];
    let lengths = lengths.map(|lines| post(&lines, &format!("{BODY}{HIDDEN}"))).to_vec();
    let heads = vec![
        get("/livez", local),
        get("http://localhost/livez", local),
        get("/livez", ""),
        get("/livez", "host: localhost\r\nhost: evil.example\r\n"),
        get("*", local).replace("GET", "OPTIONS"),
        get("localhost:443", local).replace("GET", "CONNECT"),
        get("/v1/models", local).replace("GET", "HEAD").repeat(3),
        get(
            "/metrics",
            "host: localhost\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        ),
        get("/livez", &format!("{local}{}", "x: y\r\n".repeat(101))),
        get(&format!("/{}", "a".repeat(3000)), local),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\r\n\r\nGET /livez\r\n\r\n".to_owned(),
    ];
    let chunks = ["-1", "0x1d", "1 d", "fffffffffffffffff", "", "1d;a=\"b\r\n\""];
    let chunks =
        chunks.map(|size| post("transfer-encoding: chunked", &format!("{size}\r\n{BODY}\r\n0\r\nx: y\r\n\r\n")));
    let families = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/nope"].map(|path| {
        let body = r#"{"messages":[{"role":"user","content":"hi"}],"input":"hi","max_tokens":4}"#;
        post(&format!("content-length: {}", body.len()), body).replace("/v1/completions", path)
    });
    let groups = [&pipelined[..], &[smuggling, lengths, heads, chunks.to_vec(), families.to_vec()]].concat();
    groups.iter().map(|group| group.join("\n====\n").into_bytes()).collect()
}

fn connections(input: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (input, Vec::new());
    while let Some(at) = rest.windows(NEXT.len()).position(|window| window == NEXT) {
        found.push(&rest[..at]);
        rest = &rest[at + NEXT.len()..];
    }
    found.push(rest);
    found.truncate(CONNECTIONS_MAX);
    found
}

/// Of the bytes alone, so that an input is sent in one way each time.
fn sending(bytes: &[u8], index: usize) -> Sending {
    let mut hasher = DefaultHasher::new();
    (bytes, index).hash(&mut hasher);
    match hasher.finish() % 8 {
        0 => Sending::HalfClosed,
        1 => Sending::Gone,
        n @ 2..=4 => Sending::Pieces(usize::try_from(n * n).expect("few")),
        _ => Sending::Whole,
    }
}

/// Whether the front may take it for HTTP/2 (it looks at the first bytes), which is another target's.
fn is_preface(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
}

fn judge(bytes: &[u8], sending: Sending, answer: &[u8]) -> u64 {
    let asked = requests(bytes);
    let shown = || {
        let (sent, got) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(answer));
        format!(
            "{sending:?} {:?}\n{:?}",
            sent.chars().take(800).collect::<String>(),
            got.chars().take(800).collect::<String>()
        )
    };
    // The server may give up an answer that nobody reads, or whose client has gone.
    let told = answers(answer, &asked, sending == Sending::HalfClosed)
        .unwrap_or_else(|fault| unreachable!("{fault}: {}", shown()));
    let mut came_out = String::new();
    for Told { status, body, kind, .. } in &told {
        assert!(*status != 500, "a fault of ours: {}", shown());
        if kind == "application/json" && !body.is_empty() {
            assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok(), "no JSON: {}", shown());
        }
        // Letters: an outcome has no numbers.
        came_out.extend(status.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')));
        came_out.push(' ');
    }
    outcome(&came_out) ^ told.len() as u64
}

#[test]
fn connections_of_http_1() {
    let runtime = runtime();
    let server = runtime.block_on(impatient_server());
    let words: Vec<&str> = WORDS.split('¦').collect();
    let target = Target { name: "http1", seeds: seeds(), shape: Shape::Text, words: &words };
    fuzz_few(&target, 12, |input| {
        let batch: Vec<&[u8]> = connections(input).into_iter().filter(|bytes| !is_preface(bytes)).collect();
        runtime.block_on(async {
            let talks = batch.iter().enumerate().map(|(index, bytes)| talk(&server, bytes, sending(bytes, index)));
            let answers = futures_util::future::join_all(talks).await;
            let judged = batch.iter().zip(&answers).enumerate();
            let outcome =
                judged.fold(0, |sum, (index, (bytes, answer))| sum ^ judge(bytes, sending(bytes, index), answer));
            is_well(&server).await;
            outcome
        })
    });
}
