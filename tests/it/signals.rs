//! The real binary under signals.

use crate::support::served::Served;
use crate::support::{Answer, Events, PATIENCE, chat_body, read_until};
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};

/// OPS-01: SIGTERM with three open streams: nothing new is taken, they finish, and then the process ends.
#[tokio::test]
async fn ops_01_sigterm_lets_three_streams_finish() {
    let mut served = Served::of(&["scripted:step_us=3000", "--draft-max", "0"]);
    let client = reqwest::Client::builder().timeout(6 * PATIENCE).build().expect("a client");
    let url = format!("{}/v1/chat/completions", served.url);
    let body = chat_body("/count 400", json!({ "model": "default", "stream": true }));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = client.post(&url).json(&body).send().await.expect("an answer");
        stream.chunk().await.expect("the stream lives").expect("a first chunk");
        streams.push(stream);
    }
    let sent = Command::new("kill").args(["-TERM", &served.pid().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let started = Instant::now();
    while served.status("/readyz") == Some(200) {
        assert!(started.elapsed() < PATIENCE, "still ready after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = client.post(&url).json(&chat_body("new", json!({ "model": "default" }))).send().await;
    let refused = Answer::of(refused.expect("an answer")).await;
    assert_eq!((refused.status, refused.header("connection")), (503, "close"), "{}", refused.text);
    for stream in streams {
        let events = Events::parse(&read_until(stream, |_| false).await);
        assert!(events.is_done && events.text(0, "content").ends_with("399 400"));
    }
    assert!(served.ended(PATIENCE), "the process ends by itself");
}
