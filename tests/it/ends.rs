//! T-R12: SIGTERM under 64 streams, with the real binary.

use crate::support::process::Process;
use crate::support::{Events, PATIENCE, chat_body, read_until};
use rustix::process::Signal;
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};

const STREAMS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_r12_a_server_that_is_told_to_stop_settles_every_stream() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let books = dir.path().join("books");
    let settings = format!(
        "data_dir = {:?}\ndrain_timeout = 3\nparallel = 64\nctx_size = 1000000\nmax_connections_per_ip = 0\n",
        books.display()
    );
    let hearth = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hearth")).args(arguments).arg("--data-dir").arg(&books).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let key = hearth(&["keys", "new", "--alias", "all"]);
    let key = key.split_whitespace().find(|word| word.starts_with("sk-")).expect("a key").to_owned();
    let mut server = Process::start(&settings);
    let client = reqwest::Client::builder().timeout(PATIENCE * 2).build().expect("a client");
    let open = |n: usize| {
        // Half of them end within the time that they have.
        let text = if n.is_multiple_of(2) { format!("/count {}", 40 + n) } else { "/forever".to_owned() };
        let body = chat_body(&text, json!({ "model": "scripted", "stream": true }));
        let url = format!("http://{}/v1/chat/completions", server.address);
        let request = client.post(url).bearer_auth(&key).json(&body);
        async move { request.send().await.expect("a head") }
    };
    let ready = format!("http://{}/readyz", server.address);
    while client.get(&ready).send().await.expect("an answer").status() != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let streams = futures_util::future::join_all((0..STREAMS).map(open)).await;
    let statuses: Vec<u16> = streams.iter().map(|response| response.status().as_u16()).collect();
    assert_eq!(statuses, [200; STREAMS]);
    let since = Instant::now();
    server.signal(Signal::TERM);
    let all = streams.into_iter().map(|stream| read_until(stream, |_| false));
    let bodies = futures_util::future::join_all(all).await;
    assert!(server.ended(PATIENCE), "it ends by itself, and well");
    let took = since.elapsed();
    assert!(took < Duration::from_secs(3) + PATIENCE, "{took:?}");
    // Parsing refuses half an event.
    let events: Vec<Events> = bodies.iter().map(|bytes| Events::parse(bytes)).collect();
    let n_whole = events.iter().filter(|events| events.is_done).count();
    for events in events.iter().filter(|events| !events.is_done) {
        assert!(events.chunks.last().expect("an event")["error"].is_object(), "an end without a word");
    }
    assert!((1..STREAMS).contains(&n_whole), "{n_whole}");
    let conn = rusqlite::Connection::open(books.join("hearth.db")).expect("the books");
    let count = |sql: &str| {
        let n = conn.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count");
        usize::try_from(n).expect("a count")
    };
    assert_eq!(count("SELECT count(*) FROM request"), STREAMS);
    assert_eq!(count("SELECT count(*) FROM inflight"), 0);
    assert_eq!(count("SELECT count(*) FROM request WHERE finish = 'stop'"), n_whole);
    assert_eq!(count("SELECT count(*) FROM request WHERE finish = 'shutdown'"), STREAMS - n_whole);
    // What was sent is what was counted: two tokens for each piece of `. `, one for each byte of a count.
    let n_seen: usize = events.iter().map(|events| events.text(0, "content").len()).sum();
    let n_counted = count("SELECT sum(out_tok) FROM request");
    assert!(n_counted >= n_seen, "{n_counted} counted, {n_seen} seen");
    hearth(&["audit", "verify"]);
    println!("{STREAMS} streams: {n_whole} whole, the rest cut, ended after {took:?}");
}
