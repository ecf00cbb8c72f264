//! The real binary with a settings file of its own, a scripted model, and its log in a file.

use super::served::root;
use super::{Answer, PATIENCE, chat_body, with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A served scripted model with a settings file of its own.
pub struct Process {
    child: Child,
    pub dir: tempfile::TempDir,
    pub address: String,
    client: reqwest::Client,
    /// What its settings file begins with.
    base: &'static str,
}

/// What every settings file begins with; a test's own lines follow from line 4.
const BASE: &str = "model = \"scripted:step_us=500\"\nport = 0\nauth_fail_limit = 0\n";
/// The same with its model in a table, so that there may be others.
const TABLES: &str = "port = 0\nauth_fail_limit = 0\n[[model]]\nname = \"scripted\"\nfile = \"scripted\"\n";

impl Process {
    pub fn start(settings: &str) -> Self {
        Self::with(settings, &[])
    }

    /// With these variables in its environment, too.
    pub fn with(settings: &str, variables: &[(&str, &str)]) -> Self {
        Self::of(BASE, settings, variables)
    }

    /// With tables of its own behind that of the scripted model.
    pub fn with_tables(tables: &str) -> Self {
        Self::of(TABLES, tables, &[])
    }

    fn of(base: &'static str, settings: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, format!("{base}{settings}")).expect("a writable folder");
        let log = std::fs::File::create(dir.path().join("log")).expect("a writable folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .envs(variables.iter().copied())
            // One token a step, however often it was said before.
            .args(["serve", "--draft-max", "0", "--in-process", "--log-format", "json", "--config"])
            .arg(&path)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary under test starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("a first line");
        let address = line.trim().rsplit_once("://").expect("an address").1.to_owned();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { child, dir, address, client, base }
    }

    /// Whether it ended well by itself within `patience`.
    pub fn ended(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process lives");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, settings: &str) {
        replace(&self.path("hearth.toml"), &format!("{}{settings}", self.base));
    }

    pub fn hangup(&self) {
        self.signal(Signal::HUP);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).expect("a log")
    }

    pub async fn chat(&self, key: &str, more: serde_json::Value) -> Answer {
        let request = self.client.post(format!("http://{}/v1/chat/completions", self.address)).bearer_auth(key);
        Answer::of(
            request.json(&with(chat_body("hi", json!({"model": "scripted"})), more)).send().await.expect("an answer"),
        )
        .await
    }

    /// The same, under a name of the client's own.
    pub async fn chat_as(&self, id: &str) -> Answer {
        let request = self.client.post(format!("http://{}/v1/chat/completions", self.address));
        let body = chat_body("hi", json!({"model": "scripted"}));
        Answer::of(request.header("x-request-id", id).json(&body).send().await.expect("an answer")).await
    }

    pub async fn metric(&self, key: &str, name: &str) -> String {
        let request = self.client.get(format!("http://{}/metrics", self.address)).bearer_auth(key);
        let page = Answer::of(request.send().await.expect("an answer")).await.text;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().to_owned()
    }

    /// Waits until a chat with these is answered so.
    pub async fn until(&self, key: &str, more: serde_json::Value, status: u16) {
        let started = Instant::now();
        loop {
            let answer = self.chat(key, more.clone()).await;
            if answer.status == status {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "still {} and not {status}: {}\n{}",
                answer.status,
                answer.text,
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a whole line of the log has these words.
    pub async fn until_logged(&self, words: &str) {
        let started = Instant::now();
        while !self.log().rsplit_once('\n').is_some_and(|(lines, _)| lines.contains(words)) {
            assert!(started.elapsed() < PATIENCE, "{words:?} is not in\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts a file in another's place in one step, as a careful editor does.
pub fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).expect("a writable folder");
    std::fs::rename(&fresh, path).expect("a writable folder");
}
