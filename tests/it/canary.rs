//! What clients and operators entrust to the server is found in nothing that it writes or shows: unique words in keys,
//! prompts, answers, tool arguments and headers, looked for everywhere, at the most talkative level.

use crate::support::cloud::{Act, Cloud, answer};
use crate::support::served::root;
use crate::support::{Answer, PATIENCE, with};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Each is a word of its own kind, so that a find says where it came from.
const PROMPT: &str = "canaryPrompt7f3a";
const ANSWER: &str = "canaryAnswer91bc";
const TOOL: &str = "canaryTool55de";
const USER: &str = "canaryStop20aa";
const STATIC_KEY: &str = "sk-canaryStatic8c1e";
const WRONG_KEY: &str = "sk-canaryWrong4d2f";
const UPSTREAM_KEY: &str = "sk-canaryUpstream66ab";
const QUERY: &str = "canaryQuery3e9c";
const PATH: &str = "canaryPath1b7d";
const VARIABLE: &str = "canaryVariable0f42";

struct House {
    child: Child,
    address: String,
    client: reqwest::Client,
    dir: tempfile::TempDir,
}

impl House {
    /// The real binary with an engine process of its own, books, an upstream, and logs of everything.
    fn start(cloud: &Cloud) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("upstream.key"), UPSTREAM_KEY).expect("a writable folder");
        std::fs::write(path("static.keys"), STATIC_KEY).expect("a writable folder");
        let settings = format!(
            "model = \"scripted\"\nport = 0\nlog_level = \"trace\"\nlog_format = \"json\"\nlog_file = \"{}\"\n\
             data_dir = \"{}\"\napi_key_file = \"{}\"\negress = \"allowed\"\nmetrics_per_key = true\n\
             [[upstream]]\nname = \"cloud\"\nbase_url = \"{}\"\nmodel = \"there\"\napi_key = \"file:{}\"\n\
             [[alias]]\nname = \"far\"\ntarget = \"cloud\"\n",
            path("log"),
            path("books"),
            path("static.keys"),
            cloud.base_url(),
            path("upstream.key"),
        );
        std::fs::write(path("hearth.toml"), settings).expect("a writable folder");
        let errors = std::fs::File::create(path("stderr")).expect("a writable folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--config", &path("hearth.toml")])
            .env("SOME_OTHER_SECRET", VARIABLE)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("the binary under test starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a first line");
        let address = line.trim().rsplit_once("://").expect("an address").1.to_owned();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { child, address, client, dir }
    }

    async fn post(&self, key: &str, path: &str, body: &Value) -> Answer {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.post(url).bearer_auth(key).header("x-hearth-note", PROMPT).header("baggage", PROMPT);
        Answer::of(request.json(body).send().await.expect("an answer")).await
    }

    async fn ready(&self) {
        let started = Instant::now();
        while self.client.get(format!("http://{}/readyz", self.address)).send().await.is_ok_and(|it| it.status() != 200)
        {
            assert!(started.elapsed() < PATIENCE, "it does not get ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of a process's children.
fn children(pid: u32) -> Vec<u32> {
    let stat = |entry: std::fs::DirEntry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (parent == pid).then_some(id)
    };
    std::fs::read_dir("/proc").expect("a /proc").flatten().filter_map(stat).collect()
}

fn clean(what: &str, bytes: &[u8], words: &[&str]) {
    let text = String::from_utf8_lossy(bytes);
    for word in words {
        if let Some(at) = text.find(word) {
            let from = text[..at].rfind('\n').map_or(0, |it| it + 1);
            let line = text[from..].lines().next().unwrap_or_default();
            unreachable!("{word} is in {what}: {line}");
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn secrets_and_words_are_in_no_log_metric_error_row_or_process() {
    let cloud = Cloud::always(vec![Act::Send(answer(&[ANSWER]).into())]).await;
    let house = House::start(&cloud);
    house.ready().await;
    let master = String::from_utf8(house.read("books/master.key")).expect("text").trim().to_owned();
    let chat = |more: Value| {
        let messages = json!([{ "role": "user", "content": format!("{PROMPT} {ANSWER}") }]);
        with(
            json!({ "model": "scripted", "messages": messages, "user": USER, "stop": [USER], "metadata": { "a": USER } }),
            more,
        )
    };
    let parameters = json!({ "type": "object", "properties": { TOOL: { "type": "string" } } });
    let tools = json!([{ "type": "function", "function": { "name": TOOL, "parameters": parameters } }]);
    let call = json!([{ "role": "user", "content": format!("/call {TOOL} {{\"{TOOL}\":\"{TOOL}\"}}") }]);
    let path = "/v1/chat/completions";
    let mut errors = Vec::new();
    for (key, path, body, status) in [
        (STATIC_KEY, path, chat(json!({})), 200),
        (STATIC_KEY, path, chat(json!({ "stream": true })), 200),
        (STATIC_KEY, path, chat(json!({ "model": "far" })), 200),
        (STATIC_KEY, path, chat(json!({ "tools": tools, "messages": call })), 200),
        (STATIC_KEY, "/v1/completions", json!({ "model": "scripted", "prompt": PROMPT }), 200),
        (STATIC_KEY, "/v1/responses", json!({ "model": "scripted", "input": PROMPT }), 200),
        (STATIC_KEY, "/tokenize", json!({ "content": PROMPT }), 200),
        (STATIC_KEY, path, chat(json!({ "temperature": PROMPT })), 400),
        (STATIC_KEY, path, chat(json!({ "max_tokens": 1, "messages": [{ "role": PROMPT, "content": "" }] })), 400),
        (STATIC_KEY, path, json!({ "model": "scripted", "messages": PROMPT }), 400),
        (STATIC_KEY, path, chat(json!({ "messages": [{ "role": "user", "content": PROMPT.repeat(4000) }] })), 400),
        (WRONG_KEY, path, chat(json!({})), 401),
        (master.as_str(), path, chat(json!({})), 401),
    ] {
        let answer = house.post(key, path, &body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        if status >= 400 {
            errors.push(answer.text);
        }
    }
    let lost = house.post(STATIC_KEY, &format!("/v1/{PATH}?{QUERY}={QUERY}"), &json!({})).await;
    assert_eq!(lost.status, 404);
    let page = house.client.get(format!("http://{}/metrics", house.address)).bearer_auth(STATIC_KEY);
    let page = Answer::of(page.send().await.expect("a page")).await;
    assert_eq!(page.status, 200);

    let keys = [STATIC_KEY, WRONG_KEY, UPSTREAM_KEY, &master];
    let words = [PROMPT, ANSWER, TOOL, USER, QUERY, PATH];
    let all: Vec<&str> = keys.iter().chain(&words).copied().collect();
    clean("/metrics", page.text.as_bytes(), &all);
    // What a client wrote may be named to itself; keys and answers never.
    errors.iter().for_each(|error| clean("an error", error.as_bytes(), &[keys.as_slice(), &[ANSWER]].concat()));
    // Both processes, as this user sees them (root sees even what is not dumpable).
    let engine = children(house.child.id());
    assert_eq!(engine.len(), 1, "an engine process");
    for pid in [house.child.id(), engine[0]] {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            if let Ok(bytes) = std::fs::read(&path) {
                clean(&path, &bytes, &all);
            }
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        // What is not dumpable belongs to root, whoever runs it; for root itself the kernel says it nowhere.
        let owner =
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/environ")).expect("it"));
        assert_eq!(owner, 0);
    }
    if let Ok(bytes) = std::fs::read(format!("/proc/{}/environ", engine[0])) {
        clean("the engine's environment", &bytes, &[VARIABLE]);
    }
    // The logs of both, and the books, once all of it is written.
    rustix::process::kill_process(rustix::process::Pid::from_child(&house.child), rustix::process::Signal::TERM)
        .expect("it lives");
    let started = Instant::now();
    while !String::from_utf8_lossy(&house.read("log")).contains("stopped") {
        assert!(started.elapsed() < PATIENCE, "it does not stop");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = house.read("log");
    assert!(String::from_utf8_lossy(&log).matches("\"message\":\"request\"").count() >= 14, "a line for each request");
    clean("the log", &log, &all);
    clean("stderr", &house.read("stderr"), &all);
    clean("the settings", &house.read("hearth.toml"), &keys);
    // `user` names whom a client acts for, and is meant for the ledger; a model's name, too.
    let kept: Vec<&str> = all.iter().copied().filter(|word| *word != USER).collect();
    let books = std::fs::read_dir(house.dir.path().join("books")).expect("a folder").flatten();
    let mut n_files = 0;
    for file in books.map(|entry| entry.path()).filter(|path| path.is_file() && !is_key(path)) {
        clean(&file.display().to_string(), &std::fs::read(&file).expect("a file"), &kept);
        n_files += 1;
    }
    assert!(n_files > 0, "a database");
}

/// The one place where the master key is.
fn is_key(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "master.key")
}
