//! What a client's address decides: connections, rate, lists, proxies, lock-out. Every address here is in 127.0.0.0/8.

use crate::support::{Answer, PATIENCE, Server, chat_body, read_quiet};
use hearth::http::ClientRules;
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

async fn with(change: impl FnOnce(&mut ClientRules)) -> Server {
    Server::with(|setup| {
        setup.key("good");
        change(&mut setup.http.clients);
    })
    .await
}

/// A connection from 127.0.0.`host`.
async fn connect_from(server: &Server, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, host], 0).into()).expect("an address of this machine");
    socket.connect(server.address).await.expect("the server listens")
}

async fn livez_from(server: &Server, host: u8) -> String {
    let mut socket = connect_from(server, host).await;
    let _ = socket.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    read_quiet(&mut socket).await
}

/// A request with these headers, as a proxy would send it.
async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = server.client.get(server.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request.send().await.expect("an answer")).await
}

fn retry_after(answer: &Answer, seconds: RangeInclusive<u32>) -> bool {
    answer.header("retry-after").parse::<u32>().is_ok_and(|told| seconds.contains(&told))
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

/// T-P8: one address with 200 connections, twenty with two.
#[tokio::test]
async fn the_65th_connection_of_an_address_is_closed_and_others_are_served() {
    let server = with(|rules| rules.connections_max = 64).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(connect_from(&server, 2).await);
    }
    for host in 10..30 {
        assert!(livez_from(&server, host).await.starts_with("HTTP/1.1 200 "), "127.0.0.{host}");
        assert!(livez_from(&server, host).await.starts_with("HTTP/1.1 200 "), "127.0.0.{host}");
    }
    let refused = livez_from(&server, 2).await;
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 429 "), "{refused}");
    let page = server.metrics().await;
    let n_refused =
        page.lines().find_map(|line| line.strip_prefix("hearth_rejections_total{reason=\"connections_per_ip\"} "));
    assert_eq!(n_refused, Some("137"), "{page}");
    // What is refused was closed at once, and what is closed makes room.
    let last = held.pop().expect("200 connections");
    let answer = read_closed(last).await;
    assert!(answer.is_empty() || answer.contains("rate_limit_exceeded"), "{answer}");
    drop(held);
    for _ in 0..100 {
        if livez_from(&server, 2).await.starts_with("HTTP/1.1 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("closed connections still count");
}

/// What a connection says that the server has closed.
async fn read_closed(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut bytes);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("closed in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_trusted_proxy_may_have_any_number_of_connections() {
    let server = with(|rules| {
        rules.connections_max = 2;
        rules.trusted_proxies = nets(&["127.0.0.3/32"]);
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(connect_from(&server, 3).await);
    }
    assert!(livez_from(&server, 3).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn lists_of_addresses_admit_and_refuse() {
    let server = with(|rules| {
        rules.allow = nets(&["127.0.0.0/28"]);
        rules.deny = nets(&["127.0.0.5/32"]);
        rules.trusted_proxies = nets(&["127.0.0.1/32"]);
    })
    .await;
    assert!(livez_from(&server, 2).await.starts_with("HTTP/1.1 200 "));
    for host in [5, 200] {
        assert_eq!(livez_from(&server, host).await, "", "127.0.0.{host}");
    }
    // Behind the proxy each request has an address of its own.
    for (client, wanted) in [("127.0.0.2", 200), ("127.0.0.5", 403), ("203.0.113.9", 403)] {
        let answer = get(&server, "/v1/models", &[("x-forwarded-for", client), ("x-api-key", "good")]).await;
        assert_eq!(answer.status, wanted, "{client}: {}", answer.text);
    }
    let refused = get(&server, "/api/tags", &[("x-forwarded-for", "203.0.113.9")]).await;
    assert!(refused.json()["error"].is_string(), "{}", refused.text);
    // A stranger's word is nothing.
    let request = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-api-key: good\r\nx-forwarded-for: 203.0.113.9\r\nconnection: close\r\n\r\n";
    let mut socket = connect_from(&server, 2).await;
    socket.write_all(request.as_bytes()).await.expect("sent");
    assert!(read_quiet(&mut socket).await.starts_with("HTTP/1.1 200 "));
}

/// ERR-01, of a caller over its own limit.
#[tokio::test]
async fn requests_of_one_address_have_a_rate() {
    let server = with(|rules| {
        rules.requests_per_second = 0.1;
        rules.burst = 3;
        rules.trusted_proxies = nets(&["127.0.0.1/32"]);
    })
    .await;
    let ask =
        async |client: &str| get(&server, "/v1/models", &[("x-forwarded-for", client), ("x-api-key", "good")]).await;
    for _ in 0..3 {
        assert_eq!(ask("203.0.113.1").await.status, 200);
    }
    let refused = ask("203.0.113.1").await;
    assert_eq!(refused.error().2.as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(refused.status, 429);
    assert!(retry_after(&refused, 9..=10), "{}", refused.text);
    assert_eq!(ask("203.0.113.2").await.status, 200);
    // Whoever watches the server's health is not held up.
    for _ in 0..10 {
        assert_eq!(get(&server, "/livez", &[("x-forwarded-for", "203.0.113.1")]).await.status, 200);
    }
}

const BAN: Duration = Duration::from_secs(3);

/// ERR-01 and ANTH-14, of a caller over its own limit.
#[tokio::test]
async fn wrong_keys_lock_an_address_out_in_every_dialect() {
    let server = with(|rules| {
        rules.failures_max = 10;
        rules.ban = BAN;
        rules.trusted_proxies = nets(&["127.0.0.1/32"]);
    })
    .await;
    let ask = async |client: &str, path: &str, key: &str| {
        let body: Value = chat_body("x", json!({"max_tokens": 4}));
        let request = server.client.post(server.url(path)).json(&body).header("x-forwarded-for", client);
        Answer::of(request.bearer_auth(key).send().await.expect("an answer")).await
    };
    let mut refusals = Vec::new();
    for n in 0..10 {
        let answer = ask("203.0.113.7", "/v1/chat/completions", &format!("guess-{n}")).await;
        assert_eq!(answer.status, 401, "{}", answer.text);
        refusals.push(answer.text);
    }
    let banned = Instant::now();
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "every wrong key gets the same answer");
    // From now on the address learns nothing, not even from the right key.
    for key in ["guess-11", "good"] {
        let openai = ask("203.0.113.7", "/v1/chat/completions", key).await;
        let (status, kind, code, _) = openai.error();
        assert_eq!((status, kind.as_str(), code.as_deref()), (429, "requests", Some("rate_limit_exceeded")));
        assert!(retry_after(&openai, 1..=3), "{}", openai.text);
        let anthropic = ask("203.0.113.7", "/v1/messages", key).await;
        assert_eq!((anthropic.status, &anthropic.json()["error"]["type"]), (429, &json!("rate_limit_error")));
        let ollama = ask("203.0.113.7", "/api/chat", key).await;
        assert_eq!((ollama.status, ollama.json()["error"].is_string()), (429, true));
        assert!(!openai.text.contains(key));
    }
    assert_eq!(ask("203.0.113.8", "/v1/chat/completions", "good").await.status, 200, "others are not meant");
    assert_eq!(get(&server, "/livez", &[("x-forwarded-for", "203.0.113.7")]).await.status, 200);
    tokio::time::sleep((BAN + Duration::from_millis(100)).saturating_sub(banned.elapsed())).await;
    assert_eq!(ask("203.0.113.7", "/v1/chat/completions", "good").await.status, 200, "a ban ends");
    let page = server.metrics().await;
    assert!(page.contains("hearth_auth_failures_total{reason=\"wrong\"} 10"), "{page}");
    assert!(page.contains("hearth_rejections_total{reason=\"locked_out\"} 6"), "{page}");
}

#[tokio::test]
async fn asking_without_a_key_is_no_guess() {
    let server = with(|rules| rules.failures_max = 2).await;
    for _ in 0..10 {
        assert_eq!(server.get("/v1/models").await.status, 401);
    }
    assert_eq!(get(&server, "/v1/models", &[("x-api-key", "good")]).await.status, 200);
}

#[tokio::test]
async fn every_answer_says_that_it_is_what_it_says_and_the_askers_alone() {
    let server = with(|_| {}).await;
    for (path, cache) in
        [("/v1/models", "no-store"), ("/livez", "no-store"), ("/nope", "no-store"), ("/docs", "no-cache")]
    {
        let answer = get(&server, path, &[("x-api-key", "good")]).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), cache, "{path}");
        assert_eq!(answer.header("server"), "", "{path}");
    }
}
