//! Answers that outlive the server (`--cache-persist`): the real binary, started again over the same folder.

use crate::support::ledger::hearth;
use crate::support::served::{Served, root};
use crate::support::{Answer, PATIENCE, chat_body};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the model says again, so that it is in the answer, too.
const WORDS: &str = "canaryAnswerAtRest";

fn serve(dir: &Path, model: &str, more: &[&str]) -> Served {
    let dir = dir.to_str().expect("a path of text");
    let words = [model, "--alias", "m", "--data-dir", dir, "--cache=true", "--cache-persist=true", "--cache-ttl", "1h"];
    Served::of(&[&words, more].concat())
}

/// Ends the server as an operator does, and waits for it.
fn stop(mut served: Served) {
    let sent = Command::new("kill").args(["-TERM", &served.pid().to_string()]).status().expect("kill runs");
    assert!(sent.success() && served.ended(PATIENCE), "the process ends by itself");
}

/// The answer, and what the cache did.
async fn ask(served: &Served, key: &str, text: &str) -> (String, String) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let body = chat_body(text, json!({ "model": "m", "temperature": 0, "max_tokens": 40 }));
    let sent = client.post(format!("{}/v1/chat/completions", served.url)).bearer_auth(key).json(&body).send().await;
    let answer = Answer::of(sent.expect("an answer")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    (answer.content(), answer.header("x-hearth-cache").to_owned())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn holds(dir: &Path, words: &str) -> bool {
    let bytes = |path: &PathBuf| fs::read(path).unwrap_or_default();
    files(dir).iter().any(|path| bytes(path).windows(words.len()).any(|part| part == words.as_bytes()))
}

#[tokio::test]
async fn an_answer_outlives_the_server_and_nobody_else_has_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (dir, kept) = (dir.path(), dir.path().join("cache"));
    let ada = hearth(dir, &["keys", "new", "--alias", "ada"]).expect("a key");
    let eve = hearth(dir, &["keys", "new", "--alias", "eve"]).expect("a key");
    let served = serve(dir, "scripted", &[]);
    let (answer, first) = ask(&served, &ada, WORDS).await;
    assert_eq!((answer.as_str(), first.as_str()), (WORDS, "miss"));
    stop(served);
    assert_eq!(files(&kept).len(), 1);
    assert!(!holds(dir, WORDS), "words lie open in the folder");

    // Another's question first: it neither has the answer nor takes it away.
    let served = serve(dir, "scripted", &[]);
    assert_eq!(ask(&served, &eve, WORDS).await, (WORDS.into(), "miss".into()));
    assert_eq!(ask(&served, &ada, WORDS).await, (WORDS.into(), "hit".into()));
    stop(served);

    // One bit of each file: made anew, and an answer all the same.
    for path in files(&kept) {
        let mut bytes = fs::read(&path).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).expect("a writable file");
    }
    let served = serve(dir, "scripted", &[]);
    assert_eq!(ask(&served, &ada, WORDS).await, (WORDS.into(), "miss".into()));
    assert_eq!(ask(&served, &eve, WORDS).await, (WORDS.into(), "miss".into()));
    stop(served);

    // Under other settings it would be another answer.
    for other in [["--ctx-size", "2048"], ["-ctk", "q8_0"]] {
        let served = serve(dir, "scripted", &other);
        assert_eq!(ask(&served, &ada, WORDS).await.1, "miss", "{other:?}");
        stop(served);
    }

    // What is kept of a key goes with it, whether a server runs or not.
    assert_eq!(files(&kept).len(), 4);
    hearth(dir, &["keys", "revoke", &eve]).expect("revoked with the server down");
    let served = serve(dir, "scripted", &[]);
    let started = Instant::now();
    while files(&kept).len() > 3 {
        assert!(started.elapsed() < PATIENCE, "what was eve's is still there");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&served, &ada, WORDS).await.1, "hit");
    hearth(dir, &["keys", "revoke", &ada]).expect("revoked with the server up");
    assert!(files(&kept).is_empty(), "what was ada's is still there");
    stop(served);
}

#[tokio::test]
async fn another_file_of_the_model_is_another_model() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (dir, model) = (dir.path(), dir.path().join("model.gguf"));
    fs::copy(root().join("models/stories260K.gguf"), &model).expect("a model");
    let served = || serve(dir, model.to_str().expect("text"), &["--ctx-size", "512", "-np", "1"]);
    let key = hearth(dir, &["keys", "new"]).expect("a key");
    let one = served();
    let (answer, first) = ask(&one, &key, "Once upon a time").await;
    assert_eq!(first, "miss");
    stop(one);
    let one = served();
    assert_eq!(ask(&one, &key, "Once upon a time").await, (answer.clone(), "hit".into()));
    stop(one);
    // The same bytes, written anew: nobody says that they are the same.
    let bytes = fs::read(&model).expect("a model");
    let times = fs::metadata(&model).expect("a model").modified().expect("a time");
    fs::write(&model, bytes).expect("a writable file");
    let file = fs::File::options().write(true).open(&model).expect("a model");
    file.set_modified(times).expect("times can be set back");
    let one = served();
    assert_eq!(ask(&one, &key, "Once upon a time").await, (answer, "miss".into()));
    stop(one);
    // No answers are wanted on disk any more: those that are there go.
    assert!(!files(&dir.join("cache")).is_empty());
    stop(Served::of(&["scripted", "--data-dir", dir.to_str().expect("text"), "--cache=true"]));
    assert!(!dir.join("cache").exists());
}
