//! What surrounds every request: ids, hosts, origins, connections, slow and broken clients. Names are the contract's rows.

use crate::support::served::{Served, http_status};
use crate::support::{Answer, Events, PATIENCE, Server, chat_body, read_quiet};
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn request(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Every address that was asked for is served, on one port.
#[cfg(target_os = "linux")] // elsewhere 127.0.0.2 needs setting up
#[test]
fn several_addresses_are_listened_on() {
    let served = Served::of(&["scripted:", "--host", "127.0.0.1", "--host", "127.0.0.2"]);
    let port = served.url.rsplit(':').next().expect("a port");
    for host in ["127.0.0.1", "127.0.0.2"] {
        assert_eq!(http_status(&format!("{host}:{port}"), "/v1/models"), Some(200), "{host}");
    }
    assert_eq!(http_status(&format!("127.0.0.3:{port}"), "/v1/models"), None);
}

#[tokio::test]
async fn every_answer_has_a_fresh_id_under_both_names() {
    let server = Server::start().await;
    let mut ids = HashSet::new();
    for answer in [
        server.get("/livez").await,
        server.get("/nope").await,
        server.chat("x", json!({})).await,
        server.chat("x", json!({ "n": 0 })).await,
        server.chat("x", json!({ "stream": true })).await,
    ] {
        let id = answer.header("x-request-id").to_owned();
        assert_eq!(id, answer.header("request-id"));
        assert!(id.strip_prefix("req_").is_some_and(|rest| rest.len() >= 24), "{id}");
        ids.insert(id);
    }
    assert_eq!(ids.len(), 5);
}

#[tokio::test]
async fn err_10_a_rebound_host_is_refused() {
    let server = Server::with(|setup| setup.http.allowed_hosts.push("box.lan".into())).await;
    let get = |host: &str| server.raw(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
    for host in ["localhost", "127.0.0.1:8080", "[::1]", "box.lan:80"] {
        assert!(get(host).await.starts_with("HTTP/1.1 200 "), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:8080"] {
        let answer = get(host).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("insufficient_permissions"), "{answer}");
    }
}

#[tokio::test]
async fn err_10_a_foreign_origin_may_not_post() {
    let server = Server::with(|setup| setup.http.cors_origins.push("https://chat.example".into())).await;
    let post = |origin: &'static str| {
        let request = server.client.post(server.url("/v1/chat/completions")).json(&chat_body("x", json!({})));
        async move { Answer::of(request.header("origin", origin).send().await.expect("an answer")).await }
    };
    for origin in ["http://localhost:3000", "https://chat.example", "app://obsidian.md", "vscode-webview://x"] {
        let answer = post(origin).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, origin));
        assert_eq!(answer.header("vary"), "Origin");
        assert!(answer.header("access-control-expose-headers").contains("x-request-id"));
    }
    for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
        let answer = post(origin).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
    }
}

#[tokio::test]
async fn a_preflight_needs_no_key() {
    let server = Server::with(|setup| setup.key("k")).await;
    let preflight = |origin: &'static str| {
        let request = server.client.request(reqwest::Method::OPTIONS, server.url("/v1/chat/completions"));
        let request = request.header("origin", origin).header("access-control-request-headers", "x-custom");
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    let answer = preflight("http://localhost:5173").await;
    assert_eq!((answer.status, answer.text.as_str()), (204, ""));
    assert_eq!(answer.header("access-control-allow-origin"), "http://localhost:5173");
    assert_eq!(answer.header("access-control-allow-methods"), "GET, POST, DELETE, OPTIONS");
    assert_eq!(answer.header("access-control-max-age"), "600");
    let names = answer.header("access-control-allow-headers");
    assert!(
        ["x-custom", "authorization", "content-type", "x-api-key"].iter().all(|name| names.contains(name)),
        "{names}"
    );
    let foreign = preflight("https://evil.example").await;
    assert!(foreign.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
}

/// FAULT-06, FAULT-17.
#[tokio::test]
async fn a_connection_serves_again_after_answers_errors_and_streams() {
    let server = Server::start().await;
    let mut socket = server.connect().await;
    let stream = chat_body("hello", json!({ "stream": true })).to_string();
    for (body, status, end) in [
        (chat_body("hi", json!({})).to_string(), "200", "}"),
        ("{".to_owned(), "400", "}"),
        (stream.clone(), "200", "0\r\n\r\n"),
        (stream, "200", "0\r\n\r\n"),
    ] {
        socket.write_all(request("/v1/chat/completions", &body).as_bytes()).await.expect("the connection lives");
        let (mut answer, mut buffer) = (String::new(), [0; 65_536]);
        while !(answer.contains("\r\n\r\n") && answer.ends_with(end)) {
            let n = socket.read(&mut buffer).await.expect("the connection lives");
            assert!(n > 0, "closed after {answer}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("connection: close"));
    }
}

/// One answer with a Content-Length, read off a connection that may stay open.
async fn read_answer(socket: &mut TcpStream) -> String {
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    let is_whole = |answer: &str| {
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        length.is_none_or(|length: usize| body.len() >= length)
    };
    while !is_whole(&answer) {
        let n = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.expect("an answer in time");
        let n = n.expect("the connection lives");
        assert!(n > 0, "closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    answer
}

fn says_close(answer: &str) -> bool {
    answer.to_ascii_lowercase().contains("connection: close\r\n")
}

/// What is refused before its body is read leaves a connection that serves on.
#[tokio::test]
async fn a_refusal_that_reads_no_body_leaves_the_connection_usable() {
    let server = Server::with(|setup| setup.key("k")).await;
    let key = "authorization: Bearer k\r\n";
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    let body = chat_body(&"x".repeat(100_000), json!({})).to_string();
    let mut socket = server.connect().await;
    for (line, headers, status) in [
        ("POST /v1/nope", key.to_owned(), 404),
        ("PUT /nope", key.to_owned(), 404),
        ("POST /v1/messages/nope", key.to_owned(), 404),
        ("POST /api/nope", key.to_owned(), 404),
        ("POST /v1/models", key.to_owned(), 405),
        ("DELETE /v1/chat/completions", key.to_owned(), 405),
        ("POST /v1/chat/completions", String::new(), 401),
        ("POST /v1/messages", String::new(), 401),
        ("POST /v1/chat/completions", format!("{key}origin: https://evil.example\r\n"), 403),
        ("POST /v1/chat/completions", format!("{key}{form}"), 415),
        ("POST /v1/chat/completions", format!("{key}content-encoding: gzip\r\n"), 415),
        ("POST /v1/responses/resp_x/cancel", key.to_owned(), 400),
        ("POST /api/create", key.to_owned(), 403),
        ("OPTIONS /v1/chat/completions", String::new(), 204),
        ("GET /livez", String::new(), 200),
        ("GET /v1/models", key.to_owned(), 200),
    ] {
        let whole = format!("content-length: {}\r\n\r\n{body}", body.len());
        let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        for sent in [whole, chunked] {
            let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}{sent}");
            socket.write_all(request.as_bytes()).await.expect("the connection lives");
            let answer = read_answer(&mut socket).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
            // Chunks are the last thing on a connection; see `smuggling`.
            assert_eq!(says_close(&answer), sent.starts_with("transfer"), "{line}: {answer}");
            if sent.starts_with("transfer") {
                socket = server.connect().await;
            }
        }
    }
}

/// A connection that will not serve on says so, and is closed then.
#[tokio::test]
async fn a_refusal_of_a_body_that_does_not_come_says_close() {
    let server = Server::start().await;
    for rest in [
        "content-length: 100\r\n\r\n{",
        "content-length: 100000000\r\n\r\n{",
        "transfer-encoding: chunked\r\n\r\n5\r\n{",
        "transfer-encoding: chunked\r\n\r\nnonsense\r\n",
        "expect: 100-continue\r\ncontent-length: 100\r\n\r\n",
    ] {
        for (line, status) in [("POST /nope", 404), ("POST /health", 405)] {
            let mut socket = server.connect().await;
            let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{rest}");
            socket.write_all(request.as_bytes()).await.expect("sent");
            let answer = read_answer(&mut socket).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && says_close(&answer), "{rest:?}: {answer}");
        }
    }
    assert_eq!(server.chat("after", json!({})).await.content(), "after");
}

#[tokio::test]
async fn ops_04_expect_100_continue() {
    let server = Server::start().await;
    let body = chat_body("x", json!({ "metadata": { "pad": "p".repeat(2 << 20) } })).to_string();
    let mut socket = server.connect().await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    let mut first = [0; 25];
    let waited = tokio::time::timeout(PATIENCE, socket.read_exact(&mut first)).await;
    waited.expect("100 before the body").expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(body.as_bytes()).await.expect("sent");
    assert!(read_quiet(&mut socket).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn err_14_slow_clients_time_out_and_hold_no_slot() {
    let server = Server::with(|setup| {
        setup.http.header_timeout = Duration::from_millis(200);
        setup.http.body_timeout = Duration::from_millis(200);
    })
    .await;
    for sent in ["", "P", "POST /v1/chat/completions HTTP/1.1\r\nhost: loc", "PRI * HTTP/2.0\r\n\r\n"] {
        let started = Instant::now();
        let mut socket = server.connect().await;
        socket.write_all(sent.as_bytes()).await.expect("sent");
        let mut rest = Vec::new();
        // Half of what it would have by default.
        let closed = tokio::time::timeout(PATIENCE / 2, socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{sent:?} still open after {:?}", started.elapsed());
    }
    let started = Instant::now();
    let answer =
        server.raw("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"pro").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("x-should-retry: false"), "{answer}");
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(server.engine.load().n_in_flight, 0);
}

#[tokio::test]
async fn err_14_a_body_that_ends_early_starts_nothing() {
    let server = Server::start().await;
    let mut socket = server.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"prompt\":";
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.shutdown().await.expect("half closed");
    read_quiet(&mut socket).await;
    assert_eq!(server.engine.load().n_in_flight, 0);
}

#[tokio::test]
async fn broken_http_is_refused_by_closing() {
    let server = Server::start().await;
    for bytes in [&b"\x00\x01\x02\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 200_000]] {
        let answer = server.raw(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let two = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}";
    assert!(!server.raw(two).await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn connections_past_the_limit_wait_and_are_served_then() {
    let server = Server::with(|setup| setup.http.connections_max = 2).await;
    let held = [server.connect().await, server.connect().await];
    let waiting = server.get("/livez");
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    drop(held);
    assert_eq!(waiting.await.status, 200);
}

#[tokio::test]
async fn head_works_where_get_does() {
    let server = Server::start().await;
    for path in ["/health", "/v1/models", "/metrics", "/"] {
        let response = server.client.head(server.url(path)).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.bytes().await.expect("no body").len(), 0);
    }
}

#[tokio::test]
async fn chunked_bodies_and_http_1_0_are_served() {
    let server = Server::start().await;
    let body = chat_body("hi", json!({})).to_string();
    let chunked = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert!(server.raw(chunked).await.starts_with("HTTP/1.1 200 "));
    let old = format!("POST /v1/chat/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert!(server.raw(old).await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go() {
    let server = Server::with(|setup| {
        setup.http.stall_timeout = Duration::from_millis(300);
        setup.engine.n_ctx = Some(4_000_000);
    })
    .await;
    let mut socket = server.connect().await;
    let body = chat_body("/forever", json!({ "stream": true })).to_string();
    socket.write_all(request("/v1/chat/completions", &body).as_bytes()).await.expect("sent");
    server.busy(1).await;
    let let_go = async {
        while server.engine.load().n_in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(9), let_go).await.expect("the generation is cancelled");
}

/// One HTTP/2 connection without TLS, its driver on a task of its own.
async fn http2(server: &Server) -> h2::client::SendRequest<bytes::Bytes> {
    let (client, connection) = h2::client::handshake(server.connect().await).await.expect("a handshake");
    tokio::spawn(async move {
        // It ends when the test drops the client.
        let _ = connection.await;
    });
    client.ready().await.expect("a connection")
}

fn http2_chat(client: &mut h2::client::SendRequest<bytes::Bytes>, text: &str) -> h2::client::ResponseFuture {
    let request = http::Request::post("http://localhost/v1/chat/completions").body(()).expect("a request");
    let (response, mut sending) = client.send_request(request, false).expect("a stream");
    let body = chat_body(text, json!({ "stream": true })).to_string();
    sending.send_data(body.into(), true).expect("sent");
    response
}

#[tokio::test]
async fn http_2_serves_streams_side_by_side_and_a_reset_cancels_one() {
    let server = Server::with(|setup| {
        // So slow that the stream nobody reads does not fill the window that both share.
        setup.scripted().step_us = 5_000;
        setup.engine.n_ctx = Some(1_000_000);
    })
    .await;
    let mut client = http2(&server).await;
    let forever = http2_chat(&mut client, "/forever").await.expect("an answer");
    let counted = http2_chat(&mut client, "/count 9").await.expect("an answer");
    assert_eq!((forever.status().as_u16(), counted.status().as_u16()), (200, 200));
    let (mut body, mut bytes) = (counted.into_body(), Vec::new());
    while let Some(data) = body.data().await {
        let data = data.expect("the stream lives");
        body.flow_control().release_capacity(data.len()).expect("within the window");
        bytes.extend_from_slice(&data);
    }
    assert_eq!(Events::parse(&bytes).text(0, "content"), "1 2 3 4 5 6 7 8 9");
    drop(forever);
    server.idle().await;
}
