//! Clients that are slow on purpose, many at once: each is cut at its limit, and everybody else is served meanwhile.

use crate::support::served::Served;
use crate::support::{Answer, MODEL, PATIENCE, Server, chat_body};
use serde_json::json;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Sends `text` a byte at a time, again and again, until the server hangs up. Returns what it said, and when it did.
async fn drip(address: SocketAddr, at_once: String, drops: &'static [u8], pause: Duration) -> (String, Duration) {
    let started = Instant::now();
    let mut socket = TcpStream::connect(address).await.expect("the server listens");
    socket.write_all(at_once.as_bytes()).await.expect("sent");
    let (mut reading, mut writing) = socket.into_split();
    let dripping = tokio::spawn(async move {
        for byte in drops.iter().cycle() {
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    });
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut bytes)).await.expect("cut in time");
    dripping.abort();
    (String::from_utf8_lossy(&bytes).into_owned(), started.elapsed())
}

/// Asks for something ordinary all the while; returns how often it was answered.
async fn others(server: &Server, slow: &mut JoinSet<(String, Duration)>) -> (Vec<(String, Duration)>, usize) {
    let (mut ended, mut n_served) = (Vec::new(), 0);
    // Kept from turn to turn: a client that is cut must not end it.
    let mut running = pin!(server.chat("hello", json!({})));
    loop {
        tokio::select! {
            biased;
            next = slow.join_next() => match next {
                Some(one) => ended.push(one.expect("no panic")),
                None => return (ended, n_served),
            },
            answer = &mut running => {
                assert_eq!(answer.content(), "hello");
                n_served += 1;
                running.set(server.chat("hello", json!({})));
            }
        }
    }
}

/// T-P10, scaled: heads that never end, on fresh connections and on ones that were used.
#[tokio::test]
async fn heads_that_drip_are_cut_and_others_are_served() {
    let server = Server::with(|setup| setup.http.header_timeout = Duration::from_millis(500)).await;
    let mut slow = JoinSet::new();
    for n in 0..200 {
        let used = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nx-pad: ";
        let at_once = if n % 2 == 0 { String::new() } else { used.to_owned() };
        slow.spawn(drip(server.address, at_once, b"GET / HTTP/1.1\r\nx: ", Duration::from_millis(100)));
    }
    let (ended, n_served) = others(&server, &mut slow).await;
    assert_eq!(ended.len(), 200);
    assert!(n_served > 0);
    for (said, after) in ended {
        assert!(!said.contains("HTTP/1.1 5"), "{said}");
        assert!(after >= Duration::from_millis(450), "cut after {after:?}");
    }
}

/// T-P10, scaled: bodies that never end.
#[tokio::test]
async fn bodies_that_drip_are_cut_and_others_are_served() {
    let server = Server::with(|setup| setup.http.body_timeout = Duration::from_millis(500)).await;
    let mut slow = JoinSet::new();
    for _ in 0..200 {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\n\r\n{\"prompt\":\"";
        slow.spawn(drip(server.address, head.to_owned(), b"a", Duration::from_millis(100)));
    }
    let (ended, n_served) = others(&server, &mut slow).await;
    assert!(n_served > 0);
    for (said, _) in &ended {
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("connection: close"), "{said}");
    }
    assert_eq!(ended.len(), 200);
    server.idle().await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_and_one_with_a_long_answer_is_not() {
    let server = Server::with(|setup| {
        setup.http.idle_timeout = Duration::from_millis(400);
        setup.http.header_timeout = Duration::from_millis(1500);
        setup.scripted().step_us = 20_000;
    })
    .await;
    let started = Instant::now();
    let mut socket = server.connect().await;
    socket.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut said = String::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut said)).await;
    read.expect("closed in time").expect("closed well");
    assert!(said.starts_with("HTTP/1.1 200 "));
    assert!(started.elapsed() >= Duration::from_millis(350), "closed after {:?}", started.elapsed());
    // Longer than any of these limits, in silence from the client.
    let long = server.stream_chat("/count 45", json!({})).await;
    assert!(long.text(0, "content").ends_with(" 45"));

    let (client, connection) = h2::client::handshake(server.connect().await).await.expect("a handshake");
    let mut client = client.ready().await.expect("a connection");
    let request = http::Request::get("http://localhost/livez").body(()).expect("a request");
    let driver = tokio::spawn(connection);
    let (answer, _) = client.send_request(request, true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
    let closed = tokio::time::timeout(PATIENCE, driver).await.expect("closed in time");
    closed.expect("no panic").expect("closed well");
}

/// HTTP/2's rapid reset: streams opened and taken back faster than they can be served.
#[tokio::test]
async fn streams_taken_back_at_once_hold_nothing() {
    let server = Server::start().await;
    let (client, connection) = h2::client::handshake(server.connect().await).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    let client = client.ready().await.expect("a connection");
    for n in 0..5000 {
        // The server ends the connection when it has seen enough.
        let Ok(mut one) = client.clone().ready().await else { break };
        let request = http::Request::post("http://localhost/v1/chat/completions").body(()).expect("a request");
        let Ok((_, mut sending)) = one.send_request(request, false) else { break };
        let body = chat_body("/forever", json!({"stream": true})).to_string();
        let _ = sending.send_data(body.into(), n % 2 == 0);
        sending.send_reset(h2::Reason::CANCEL);
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(client);
    driver.abort();
    server.idle().await;
    assert_eq!(server.chat("hello", json!({})).await.content(), "hello");
}

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the process lives");
    let n_pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    n_pages * 4096
}

/// Requests that have a slot, by the server's own page.
async fn n_running(client: &reqwest::Client, url: &str) -> usize {
    let page = client.get(format!("{url}/metrics")).send().await.expect("an answer").text().await.expect("a page");
    let series = format!("hearth_requests_running{{model=\"{MODEL}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| unreachable!("{series}\n{page}")).parse().expect("a number")
}

/// T-P9, scaled: clients that read a byte now and then.
#[tokio::test]
async fn slow_readers_cost_little_and_are_cut() {
    const N: usize = 32;
    // The real binary, whose engine is another process: what is measured is the front, and nothing of the tests beside it.
    let model = ["scripted:step_us=1000", "--alias", MODEL, "--draft-max", "0", "-c", "16000000"];
    let served = Served::of(&[&model[..], &["-np", &N.to_string(), "--write-stall-timeout", "700ms"]].concat());
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let hello = async || {
        let request = client.post(format!("{}/v1/chat/completions", served.url)).json(&chat_body("hello", json!({})));
        Answer::of(request.send().await.expect("an answer")).await.content()
    };
    // What is there from the first request on is nobody's alone.
    assert_eq!((hello().await.as_str(), n_running(&client, &served.url).await), ("hello", 0));
    let before = resident_bytes(served.pid());
    let address: SocketAddr = served.url.strip_prefix("http://").and_then(|it| it.parse().ok()).expect("an address");
    let mut readers = JoinSet::new();
    for _ in 0..N {
        readers.spawn(async move {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_recv_buffer_size(4096).expect("a small buffer");
            let mut socket = socket.connect(address).await.expect("the server listens");
            let body = chat_body("/forever", json!({"stream": true})).to_string();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
            let mut byte = [0];
            while let Ok(1) = socket.read(&mut byte).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let busy = async {
        while n_running(&client, &served.url).await < N {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, busy).await.expect("a slot for each reader");
    let (mut most, mut n_held) = (0, N);
    let freed = async {
        while n_held > 0 {
            most = most.max(resident_bytes(served.pid()));
            tokio::time::sleep(Duration::from_millis(20)).await;
            n_held = n_running(&client, &served.url).await;
        }
    };
    let is_freed = tokio::time::timeout(Duration::from_secs(40), freed).await.is_ok();
    assert!(is_freed, "{n_held} of {N} slots are still held");
    let each = most.saturating_sub(before) / N;
    eprintln!("{N} slow readers: {each} bytes each, cut and their slots freed");
    assert!(each < 1 << 20, "{each} bytes for each reader");
    assert_eq!(hello().await, "hello");
    readers.abort_all();
}
