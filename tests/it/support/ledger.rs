//! The real binary with books, its command line, and clients that remember what they were answered.

use super::governed::books_config;
use super::served::Served;
use super::{PATIENCE, chat_body};
use hearth::gateway::Books;
use hearth::gateway::store::{LogFilter, RequestRow, logs};
use hearth::telemetry::Metrics;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const MODEL: &str = "scripted:step_us=300,prompt_token_us=5";

pub async fn open(dir: &Path) -> Arc<Books> {
    let started = Instant::now();
    loop {
        match Books::open(books_config(dir), &Arc::new(Metrics::new())) {
            Ok(books) => return books,
            // The killed process may still be on its way out.
            Err(hearth::gateway::BooksError::Locked { .. }) if started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => unreachable!("{error}"),
        }
    }
}

pub async fn rows(books: &Arc<Books>) -> Vec<RequestRow> {
    let mut all = Vec::new();
    loop {
        let n = u32::try_from(all.len()).expect("few rows");
        let page = books.store().read(move |conn| logs(conn, &LogFilter::default(), (5000, n))).await;
        let page = page.expect("rows can be read");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// `hearth ARGS… --data-dir DIR`; its stdout.
pub fn hearth(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .env_remove("HEARTH_DATA_DIR")
        .current_dir(dir)
        .output()
        .expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

pub fn serve(dir: &Path) -> Served {
    serve_with(dir, &[])
}

pub fn serve_with(dir: &Path, more: &[&str]) -> Served {
    let dir = dir.to_str().expect("a path of text");
    let words = [&[MODEL, "--data-dir", dir, "-np", "8", "--alias", "Scripted-1"], more].concat();
    Served::of(&words)
}

/// What the clients of one life saw: ids of requests that were answered to their end, and how many tokens each got.
pub type Finished = Arc<std::sync::Mutex<BTreeMap<String, u64>>>;

/// Asks until told to stop or the server is gone.
pub async fn client(url: String, key: String, seed: usize, finished: Finished, stop: Arc<AtomicBool>) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let mut n = seed;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let stream = n.is_multiple_of(2);
        let text = format!("/count {}", 3 + n % 30);
        let body = chat_body(
            &text,
            json!({ "stream": stream, "stream_options": stream.then(|| json!({ "include_usage": true })) }),
        );
        let sent = client.post(format!("{url}/v1/chat/completions")).bearer_auth(&key).json(&body).send().await;
        let Ok(response) = sent else { return };
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let is_good = response.status() == 200;
        // Some leave in the middle.
        if n.is_multiple_of(7) {
            continue;
        }
        let Ok(text) = response.text().await else { return };
        let usage = match stream {
            true => text.lines().rev().find_map(|line| {
                let chunk: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
                chunk["usage"]["completion_tokens"].as_u64()
            }),
            false => {
                serde_json::from_str::<Value>(&text).ok().and_then(|body| body["usage"]["completion_tokens"].as_u64())
            }
        };
        let is_whole = !stream || text.trim_end().ends_with("data: [DONE]");
        if let (true, true, Some(usage)) = (is_good, is_whole, usage) {
            finished.lock().expect("a lock").insert(id, usage);
        }
    }
}
