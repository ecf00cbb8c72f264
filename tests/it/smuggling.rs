//! Requests that two servers in a row could read differently, and heads that are no heads: over raw sockets, since no
//! client would send them. Each is refused or read in the one way that the standard leaves.

use crate::support::Server;

const GOOD: &str = r#"{"prompt":"a","max_tokens":1}"#;
/// What an attacker wants the server to take for a request of its own.
const HIDDEN: &str = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
}

fn n_answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

/// A completion with these lines in its head.
fn post(lines: &str, body: &str) -> String {
    format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n\r\n{body}")
}

#[tokio::test]
async fn what_hides_behind_a_body_is_not_answered() {
    let server = Server::start().await;
    let n = GOOD.len();
    let chunked = format!("{n:x}\r\n{GOOD}\r\n0\r\n\r\n{HIDDEN}");
    for (name, lines) in [
        ("CL.TE", format!("content-length: {}\r\ntransfer-encoding: chunked", chunked.len())),
        ("TE.CL", "transfer-encoding: chunked\r\ncontent-length: 4".to_owned()),
        ("TE alone", "transfer-encoding: chunked".to_owned()),
        ("TE.TE", "transfer-encoding: chunked\r\ntransfer-encoding: chunked".to_owned()),
        ("TE.TE of two kinds", "transfer-encoding: identity\r\ntransfer-encoding: chunked".to_owned()),
    ] {
        let answer = server.raw(post(&lines, &chunked)).await;
        assert!(n_answers(&answer) <= 1, "{name}: {answer}");
        assert!(matches!(status(&answer), None | Some(200 | 400)), "{name}: {answer}");
        if status(&answer) == Some(200) {
            assert!(answer.contains("connection: close"), "{name}: {answer}");
        }
    }
}

#[tokio::test]
async fn lengths_and_encodings_that_are_not_clear_are_refused() {
    let server = Server::start().await;
    let n = GOOD.len();
    for (name, lines) in [
        ("two lengths", format!("content-length: {n}\r\ncontent-length: {}", n + 1)),
        ("a list of lengths", format!("content-length: {n}, {}", n + 1)),
        ("a signed length", format!("content-length: +{n}")),
        ("a negative length", "content-length: -1".to_owned()),
        ("a hexadecimal length", format!("content-length: 0x{n:x}")),
        ("a length too long", "content-length: 99999999999999999999".to_owned()),
        ("chunked is not last", "transfer-encoding: chunked, identity".to_owned()),
        ("an unknown coding", "transfer-encoding: xchunked".to_owned()),
        ("a vertical tab", "transfer-encoding:\x0bchunked".to_owned()),
        ("a space before the colon", format!("content-length : {n}")),
        ("a folded line", format!("x-a: b\r\n c: d\r\ncontent-length: {n}")),
        ("a folded encoding", "transfer-encoding:\r\n chunked".to_owned()),
        ("a bare CR", format!("x-a: b\rcontent-length: 0\r\ncontent-length: {n}")),
        ("a NUL", format!("x-a: b\0\r\ncontent-length: {n}")),
        ("a line without a colon", format!("nonsense\r\ncontent-length: {n}")),
        ("a name with a space", format!("x a: b\r\ncontent-length: {n}")),
    ] {
        let answer = server.raw(post(&lines, &format!("{GOOD}{HIDDEN}"))).await;
        assert!(n_answers(&answer) <= 1, "{name}: {answer}");
        assert!(matches!(status(&answer), None | Some(400)), "{name}: {answer}");
    }
    // The same length twice is one length.
    let same = post(&format!("content-length: {n}\r\ncontent-length: {n}\r\nconnection: close"), GOOD);
    assert_eq!(status(&server.raw(same).await), Some(200));
    // And a chunk's size is a number.
    for size in ["-1", "0x1d", "1 d", "fffffffffffffffff", ""] {
        let answer = server.raw(post("transfer-encoding: chunked", &format!("{size}\r\n{GOOD}\r\n0\r\n\r\n"))).await;
        assert!(matches!(status(&answer), None | Some(400)), "{size}: {answer}");
    }
    let old = "POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(!server.raw(old).await.contains(" 200 "));
    assert_eq!(server.engine.load().n_in_flight, 0);
}

#[tokio::test]
async fn a_request_has_one_host() {
    let server = Server::start().await;
    let get = |target: &str, hosts: &str| format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
    for (target, hosts, wanted) in [
        ("/livez", "host: localhost\r\n", 200),
        ("http://localhost/livez", "host: localhost\r\n", 200),
        ("/livez", "", 400),
        ("/livez", "host: localhost\r\nhost: localhost\r\n", 400),
        ("/livez", "host: localhost\r\nhost: evil.example\r\n", 400),
        ("http://evil.example/livez", "host: localhost\r\n", 400),
        ("http://localhost/livez", "host: evil.example\r\n", 400),
        ("http://evil.example/livez", "host: evil.example\r\n", 403),
        ("/livez", "host: evil.example\r\n", 403),
        ("/livez", "host: user@localhost\r\n", 400),
        ("/livez", "host: localhost/evil.example\r\n", 400),
        ("/livez", "host:\r\n", 400),
    ] {
        let answer = server.raw(get(target, hosts)).await;
        assert_eq!(status(&answer), Some(wanted), "{target} {hosts:?}: {answer}");
    }
    // Another host is another matter where others can reach the server, if the operator says which are ours.
    let open = Server::with(|setup| {
        setup.http.hosts = vec!["0.0.0.0".parse().expect("an address")];
        setup.http.allowed_hosts = vec!["api.example".into()];
    })
    .await;
    for (host, wanted) in [("api.example", 200), ("127.0.0.1:80", 200), ("evil.example", 421)] {
        let answer = open.raw(get("/livez", &format!("host: {host}\r\n"))).await;
        assert_eq!(status(&answer), Some(wanted), "{host}: {answer}");
    }
}

#[tokio::test]
async fn http_2_has_the_same_rule_for_hosts() {
    let server = Server::start().await;
    for (uri, host, wanted) in [
        ("http://localhost/livez", None, 200),
        ("http://localhost/livez", Some("localhost"), 200),
        ("http://localhost/livez", Some("evil.example"), 400),
        ("http://evil.example/livez", None, 403),
    ] {
        let (client, connection) = h2::client::handshake(server.connect().await).await.expect("a handshake");
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.expect("a connection");
        let mut request = http::Request::get(uri).body(()).expect("a request");
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().expect("a value"));
        }
        let (answer, _) = client.send_request(request, true).expect("sent");
        assert_eq!(answer.await.expect("an answer").status().as_u16(), wanted, "{uri} {host:?}");
        driver.abort();
    }
}

#[tokio::test]
async fn heads_have_a_size() {
    let server = Server::start().await;
    let get = |lines: String| format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{lines}connection: close\r\n\r\n");
    let fields = |n: usize| (0..n).map(|i| format!("x-{i}: y\r\n")).collect::<String>();
    assert_eq!(status(&server.raw(get(fields(90))).await), Some(200));
    for (name, lines) in [
        ("many fields", fields(101)),
        ("a long field", format!("x-a: {}\r\n", "y".repeat(70_000))),
        ("a long name", format!("{}: y\r\n", "x".repeat(70_000))),
    ] {
        let answer = server.raw(get(lines)).await;
        assert!(matches!(status(&answer), None | Some(400 | 431)), "{name}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "a".repeat(70_000));
    assert!(matches!(status(&server.raw(long).await), None | Some(414 | 431)));
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_compressed_are_refused() {
    let server = Server::start().await;
    for encoding in ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"] {
        let lines = format!("content-encoding: {encoding}\r\ncontent-length: {}", GOOD.len());
        assert_eq!(status(&server.raw(post(&lines, GOOD)).await), Some(415), "{encoding}");
    }
    let lines = format!("content-encoding: identity\r\ncontent-length: {}\r\nconnection: close", GOOD.len());
    assert_eq!(status(&server.raw(post(&lines, GOOD)).await), Some(200));
}
