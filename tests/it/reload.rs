//! Settings taken anew by the real binary: on SIGHUP, on a file's change, and never by halves.

use crate::support::cloud::{Act, Cloud, answer};
use crate::support::process::{Process, replace};
use crate::support::tls::{Authority, shown};
use crate::support::{Answer, Events, PATIENCE};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_hangup_takes_keys_names_and_rules_anew() {
    let server = Process::start("api_key = \"one\"\n");
    server.until("one", json!({}), 200).await;
    assert_eq!(server.metric("one", "hearth_config_last_reload_success").await, "1");
    server.write("api_key = \"two\"\nstrict = true\nstrict = true\n");
    server.hangup();
    // The same is said twice: the file is no TOML, and the old settings stay.
    server.until_logged("hearth.toml line 6").await;
    assert_eq!(server.metric("one", "hearth_config_last_reload_success").await, "0");
    assert_eq!(server.chat("one", json!({})).await.status, 200);

    server.write("api_key = \"two\"\nstrict = true\nn_predict = 1\nany_model = true\n");
    server.hangup();
    server.until("two", json!({}), 200).await;
    // Settings are taken first and counted then.
    server.until_logged("were read anew").await;
    assert_eq!(server.chat("one", json!({})).await.status, 401);
    assert_eq!(server.chat("two", json!({"model": "whatever"})).await.status, 200);
    assert_eq!(server.chat("two", json!({"foo": 1})).await.status, 400);
    assert_eq!(server.chat("two", json!({})).await.content(), "h");
    assert_eq!(server.metric("two", "hearth_config_last_reload_success").await, "1");

    server.write("api_key = \"two\"\nip_deny = \"127.0.0.0/8\"\ntrusted_proxy = \"127.0.0.1\"\n");
    server.hangup();
    server.until("two", json!({}), 403).await;
    server.write("api_key = \"two\"\n[[alias]]\nname = \"late\"\nmodel = \"scripted\"\n");
    server.hangup();
    server.until("two", json!({"model": "late"}), 200).await;
    assert_eq!(server.chat("two", json!({"model": "whatever"})).await.status, 404);
    assert_eq!(server.chat("two", json!({"foo": 1})).await.status, 200);
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_by_name_and_nothing_else_is_taken() {
    let server = Process::start("api_key = \"one\"\n");
    server.until("one", json!({}), 200).await;
    for (line, words) in [
        ("ctx_size = 1024", "ctx_size ("),
        ("parallel = 2", "parallel ("),
        ("host = \"127.0.0.2\"", "host ("),
        ("max_connections = 10", "max_connections ("),
        ("queue = 1", "queue ("),
    ] {
        server.write(&format!("api_key = \"two\"\n{line}\n"));
        server.hangup();
        server.until_logged(words).await;
        assert!(server.log().contains("line 5): another value needs a restart"), "{}", server.log());
        assert_eq!(server.chat("one", json!({})).await.status, 200);
        assert_eq!(server.chat("two", json!({})).await.status, 401);
    }
    server.write("api_key = \"two\"\ncache = true\n");
    server.hangup();
    server.until_logged("cache (").await;
    assert_eq!(server.chat("two", json!({})).await.status, 401);
    // A door that would be open to all is not opened.
    server.write("api_key_file = \"/nowhere/keys\"\n");
    server.hangup();
    server.until_logged("/nowhere/keys").await;
    assert_eq!(server.chat("one", json!({})).await.status, 200);
    assert!(!server.log().contains("\"two\""), "a key is in the log");
}

#[tokio::test]
async fn a_file_that_changes_is_read_without_being_asked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "one\n").expect("a writable folder");
    let server = Process::start(&format!("api_key_file = {:?}\n", keys.to_str().expect("a plain path")));
    server.until("one", json!({}), 200).await;
    replace(&keys, "two\nthree\n");
    server.until("three", json!({}), 200).await;
    assert_eq!(server.chat("one", json!({})).await.status, 401);
    // An empty one would open the door: refused, and the keys stay.
    replace(&keys, "# none\n");
    server.until_logged("holds no key").await;
    assert_eq!(server.chat("two", json!({})).await.status, 200);
    assert_eq!(server.chat("one", json!({})).await.status, 401);
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_used() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let quoted = |path: &Path| format!("{:?}", path.to_str().expect("a plain path"));
    let server = Process::start(&format!("tls_cert = {}\ntls_key = {}\n", quoted(&files.cert), quoted(&files.key)));
    let address = server.address.parse().expect("an address");
    let client = authority.client();
    let before = shown(&client.connect(address).await.expect("a handshake"));
    // First the certificate alone, which fits no key: nobody may be served a broken pair.
    let key = std::fs::read(&files.key).expect("a key");
    authority.issue("server", &["localhost"]);
    let fresh_key = std::fs::read(&files.key).expect("a key");
    std::fs::write(&files.key, key).expect("a writable folder");
    server.hangup();
    server.until_logged("not a key of the certificate").await;
    assert_eq!(shown(&client.connect(address).await.expect("a handshake")), before);
    std::fs::write(&files.key, fresh_key).expect("a writable folder");
    let started = Instant::now();
    while shown(&client.connect(address).await.expect("a handshake")) == before {
        assert!(started.elapsed() < PATIENCE, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// T-R11, scaled: 20 hangups a second, a third of the files bad, under load. `HEARTH_SOAK_S` makes it as long as you like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_reloads_fails_no_request() {
    let seconds = std::env::var("HEARTH_SOAK_S").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let server = Arc::new(Process::start("api_key = \"one\"\n"));
    server.until("one", json!({}), 200).await;
    let (is_over, n_asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = |n: u32| {
        let (server, is_over, n_asked) = (Arc::clone(&server), Arc::clone(&is_over), Arc::clone(&n_asked));
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let answer = server.chat("one", json!({"stream": n.is_multiple_of(2)})).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
                assert!(!n.is_multiple_of(2) || answer.text.contains("data: [DONE]"), "{}", answer.text);
                n_asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let loads: Vec<_> = (0..4).map(load).collect();
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        match n % 3 {
            0 => server.write("api_key = [\"one\", \"two\"]\ntemp = 0.5\n"),
            1 => server.write("api_key = \"one\"\nnonsense = 1\n"),
            _ => server.write("api_key = [\"one\", \"three\"]\nstrict = true\n"),
        }
        server.hangup();
        n += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.expect("no request failed");
    }
    assert!(n_asked.load(Ordering::Relaxed) > 20, "too few requests to mean anything");
    server.write("api_key = \"last\"\n");
    server.hangup();
    server.until("last", json!({}), 200).await;
    let log = server.log();
    let (n_taken, n_refused) = (log.matches("were read anew").count(), log.matches("were not read anew").count());
    assert!(n_taken > 0 && n_refused > 0, "{n_taken} taken, {n_refused} refused");
    eprintln!("{n} hangups, {n_taken} taken, {n_refused} refused, {} requests", n_asked.load(Ordering::Relaxed));
}

/// A server with books, and its admin plane on a port.
struct Governed {
    server: Process,
    admin: String,
    master: String,
    client: reqwest::Client,
    _books: tempfile::TempDir,
    base: String,
}

impl Governed {
    async fn start(settings: &str) -> Self {
        let books = tempfile::tempdir().expect("a temporary folder");
        let base =
            format!("data_dir = {:?}\nadmin_listen = \"127.0.0.1:0\"\n", books.path().to_str().expect("a plain path"));
        let server = Process::start(&format!("{base}{settings}"));
        server.until_logged("the admin API, also").await;
        let log = server.log();
        let line = log.lines().find(|line| line.contains("the admin API, also")).expect("it is logged");
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let address = line["address"].as_str().or(line["fields"]["address"].as_str()).expect("an address");
        let master = std::fs::read_to_string(books.path().join("master.key")).expect("a key").trim().to_owned();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let ready = format!("http://{}/readyz", server.address);
        let is_ready = async {
            while client.get(&ready).send().await.expect("an answer").status() != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_ready).await.expect("ready in time");
        Self { admin: format!("http://{address}"), server, master, client, _books: books, base }
    }

    async fn ask(&self, method: reqwest::Method, path: &str) -> Answer {
        let request = self.client.request(method, format!("{}{path}", self.admin)).bearer_auth(&self.master);
        Answer::of(request.send().await.expect("an answer")).await
    }

    /// Writes the file and has it read; the answer.
    async fn reload(&self, settings: &str) -> Answer {
        self.server.write(&format!("{}{settings}", self.base));
        self.ask(reqwest::Method::POST, "/config/reload").await
    }

    async fn act(&self, path: &str, body: Value) -> Answer {
        let request = self.client.post(format!("{}{path}", self.admin)).bearer_auth(&self.master);
        Answer::of(request.json(&body).send().await.expect("an answer")).await
    }

    async fn take(&self, settings: &str) {
        let answer = self.reload(settings).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "{\"status\":\"reloaded\"}"), "{}", self.server.log());
    }
}

fn key(name: &str, text: &str, more: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[key]]\nname = {name:?}\nsha256 = {digest:?}\n{more}\n")
}

#[tokio::test]
async fn an_administrator_has_every_kind_of_table_taken_anew() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["from afar"]).into())]).await;
    let house = Governed::start("").await;
    let status = async |text: &str, more| house.server.chat(text, more).await.status;
    assert_eq!(status("sk-ci-key", json!({})).await, 401);
    house.take(&key("ci", "sk-ci-key", "")).await;
    assert_eq!(status("sk-ci-key", json!({})).await, 200, "at once");
    // A team, and what it may do.
    let of_team = key("ci", "sk-ci-key", "team_id = \"t\"");
    house.take(&format!("{of_team}[[team]]\nid = \"t\"\nmodels = [\"nothing\"]\n")).await;
    assert_eq!(status("sk-ci-key", json!({})).await, 404);
    house.take(&format!("{of_team}[[team]]\nid = \"t\"\n")).await;
    assert_eq!(status("sk-ci-key", json!({})).await, 200);
    // Limits, rules, prices.
    let plain = key("ci", "sk-ci-key", "");
    house.take(&format!("{plain}[limits.default]\nmax_output_tokens = 1\n")).await;
    assert_eq!(house.server.chat("sk-ci-key", json!({})).await.content(), "h");
    house
        .take(&format!("{plain}[guardrails.default]\noutput = {{ redact = [{{ match = \"i\", with = \"ello\" }}] }}\n"))
        .await;
    assert_eq!(house.server.chat("sk-ci-key", json!({})).await.content(), "hello");
    house.take(&format!("price_output = 1000\n{plain}")).await;
    house.server.chat("sk-ci-key", json!({})).await.content();
    let spent = house.ask(reqwest::Method::GET, "/key/info?key=ci").await.json()["info"]["spend"].clone();
    assert_eq!(spent, json!(0.003), "three tokens at the new price");
    // An upstream, and a way to it.
    let away = format!(
        "egress = \"allowed\"\n{}[[upstream]]\nname = \"cloud\"\nbase_url = {:?}\nmodel = \"there\"\n\
         [[alias]]\nname = \"away\"\ntarget = \"cloud\"\n",
        key("ci", "sk-ci-key", "egress = \"allowed\""),
        cloud.base_url()
    );
    house.take(&away).await;
    let answer = house.server.chat("sk-ci-key", json!({ "model": "away" })).await;
    assert_eq!((answer.content().as_str(), answer.header("x-hearth-served-by")), ("from afar", "cloud"));
    house.take(&plain).await;
    assert_eq!(status("sk-ci-key", json!({ "model": "away" })).await, 404);
    assert_eq!(house.ask(reqwest::Method::GET, "/upstreams").await.json()["data"], json!([]));
    // A key that is gone from the file opens nothing.
    house.take("").await;
    assert_eq!(status("sk-ci-key", json!({})).await, 401);
    let events = house.ask(reqwest::Method::GET, "/audit/events").await.json();
    let is_reload = |event: &&Value| event["action"] == "config.reload" && event["actor"] == "master";
    assert_eq!(events.as_array().expect("a list").iter().filter(is_reload).count(), 9, "{events}");
    assert_eq!(house.ask(reqwest::Method::GET, "/audit/verify").await.status, 200);
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_with_its_reason_and_settings_are_shown_without_secrets() {
    let house = Governed::start(&key("ci", "sk-ci-key", "")).await;
    for (settings, words) in [
        ("[limits.default]\nrpm = -1\n", "whole number"),
        ("[guardrails.default]\noutput = { deny = [\"a+\"] }\n", "has no bound"),
        ("[[alias]]\nname = \"x\"\ntarget = \"nobody\"\n", "no model or upstream named"),
        ("[[key]]\nname = \"other\"\nsha256 = \"short\"\n", "sha256 is"),
        ("ctx_size = 64\n", "needs a restart"),
        ("nonsense", "hearth.toml"),
    ] {
        let refused = house.reload(&format!("{settings}{}", key("late", "sk-late-key", ""))).await;
        assert_eq!((refused.status, refused.error().2.as_deref()), (400, Some("invalid_config")), "{}", refused.text);
        assert!(refused.text.contains(words), "{}", refused.text);
        assert_eq!(house.server.chat("sk-late-key", json!({})).await.status, 401, "nothing of it is taken");
        assert_eq!(house.server.chat("sk-ci-key", json!({})).await.status, 200);
    }
    house.take(&format!("api_key = \"sk-static\"\n{}[limits.pro]\nrpm = 7\n", key("ci", "sk-ci-key", ""))).await;
    let shown = house.ask(reqwest::Method::GET, "/config").await;
    assert!(
        shown.status == 200 && !shown.text.contains("sk-static") && !shown.text.contains("sk-ci"),
        "{}",
        shown.text
    );
    let shown = shown.json();
    assert_eq!((&shown["settings"]["api_key"]["value"], &shown["limits"]["pro"]["rpm"]), (&json!("***"), &json!(7)));
    assert_eq!((&shown["keys"][0]["name"], &shown["keys"][0]["sha256"]), (&json!("ci"), &json!("***")));
}

#[tokio::test]
async fn a_running_stream_keeps_what_it_began_with() {
    let key = key("ci", "sk-ci-key", "");
    let house = Governed::start(&key).await;
    let body =
        json!({ "model": "scripted", "stream": true, "messages": [{ "role": "user", "content": "/count 600" }] });
    let url = format!("http://{}/v1/chat/completions", house.server.address);
    let request = house.client.post(url).bearer_auth("sk-ci-key").json(&body);
    let mut response = request.send().await.expect("an answer");
    let first = response.chunk().await.expect("the stream lives").expect("a first chunk");
    let rules = "[guardrails.default]\ninput = { deny_words = [\"count\"] }\noutput = { deny_words = [\"599\"] }\n";
    house.take(&format!("{key}{rules}")).await;
    let rest = response.bytes().await.expect("the rest");
    let events = Events::parse(&[first, rest].concat());
    assert!(events.text(0, "content").ends_with("599 600") && events.finish(0) == ["stop"], "{events:?}");
    let more = json!({ "messages": [{ "role": "user", "content": "/count 600" }] });
    assert_eq!(house.server.chat("sk-ci-key", more).await.status, 400);
}

#[tokio::test]
async fn models_of_the_settings_are_loaded_and_unloaded() {
    let house = Governed::start(&key("ci", "sk-ci-key", "")).await;
    let loaded = async || {
        let all = house.ask(reqwest::Method::GET, "/model/info").await.json();
        all["data"][0]["model_info"]["loaded"] == true
    };
    let status = async |path: &str, model: &str| house.act(path, json!({ "model": model })).await.status;
    house.server.until("sk-ci-key", json!({}), 200).await;
    for _ in 0..2 {
        assert!(loaded().await);
        assert_eq!(status("/model/unload", "scripted").await, 200);
        assert!(!loaded().await);
        assert_eq!(status("/model/unload", "scripted").await, 200, "it is gone already");
        let answer = house.act("/model/load", json!({ "model": "scripted" })).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "model": "scripted", "status": "loaded" })));
        assert!(loaded().await);
        assert_eq!(status("/model/unload", "SCRIPTED").await, 200);
        // The next request loads it.
        assert_eq!(house.server.chat("sk-ci-key", json!({})).await.status, 200);
    }
    let body = json!({ "model": "scripted", "stream": true, "messages": [{ "role": "user", "content": "/forever" }] });
    let url = format!("http://{}/v1/chat/completions", house.server.address);
    let mut running = house.client.post(url).bearer_auth("sk-ci-key").json(&body).send().await.expect("an answer");
    running.chunk().await.expect("the stream lives");
    let busy = house.act("/model/unload", json!({ "model": "scripted" })).await;
    assert_eq!((busy.status, busy.error().2.as_deref()), (409, Some("model_busy")), "{}", busy.text);
    for path in ["/model/load", "/model/unload"] {
        assert_eq!(status(path, "/etc/passwd").await, 404, "only what the settings name");
        assert_eq!(house.act(path, json!({ "model": "scripted", "path": "x" })).await.status, 400);
    }
}
