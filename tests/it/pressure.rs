//! Memory that runs short (a unit's files, laid out by the test): what is given up and in which order, what goes on, and how
//! it ends.

use crate::many_models::lazy;
use crate::support::governed::Governed;
use crate::support::{MODEL, PATIENCE, Server, Setup, chat_body, with};
use hearth::chat::Class;
use hearth::engine::{Engine, EngineMode};
use hearth::gateway::limits::LimitSets;
use hearth::gateway::{Gateway, LimitSpec, LoadLimits, MemoryWatch};
use hearth::http::HttpConfig;
use hearth::telemetry::Metrics;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the kernel would say of a unit that may have 1000 bytes.
struct Unit {
    root: tempfile::TempDir,
}

impl Unit {
    fn new() -> Self {
        let unit = Self { root: tempfile::tempdir().expect("a temporary folder") };
        let group = unit.root.path().join("sys/fs/cgroup/unit");
        std::fs::create_dir_all(&group).expect("a writable folder");
        std::fs::create_dir_all(unit.root.path().join("proc/self")).expect("a writable folder");
        std::fs::write(unit.root.path().join("proc/self/cgroup"), "0::/unit\n").expect("a writable folder");
        std::fs::write(group.join("memory.max"), "1000\n").expect("a writable folder");
        unit.uses(500, 0.0);
        unit
    }

    /// Page cache is no use of memory.
    fn uses(&self, n_bytes: u32, stalled: f64) {
        let put = |name: &str, text: String| {
            let path = self.root.path().join("sys/fs/cgroup/unit").join(name);
            // In one step: somebody is reading.
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, text).expect("a writable folder");
            std::fs::rename(&fresh, path).expect("a writable folder");
        };
        put("memory.stat", "anon 1\ninactive_file 3000\nactive_file 0\n".to_owned());
        put("memory.current", format!("{}\n", n_bytes + 3000));
        put("memory.pressure", format!("some avg10={stalled:.2} avg60=0.00 avg300=0.00 total=1\n"));
    }

    fn watch(&self) -> MemoryWatch {
        MemoryWatch {
            every: Duration::from_millis(5),
            root: Path::to_owned(self.root.path()),
            ..MemoryWatch::new(0.95)
        }
    }
}

async fn house(unit: &Unit) -> Governed {
    Governed::with(|setup, _| {
        setup.memory = Some(unit.watch());
        setup.gateway.routing.cache.enabled = true;
        let batch = LimitSpec { class: Some(Class::Batch), ..Default::default() };
        setup.gateway.limits = LimitSets::new([("slow".to_owned(), batch)].into());
        (setup.engine.n_slots, setup.engine.n_ctx) = (1, Some(80_000));
        setup.engine.saved_bytes = Some(1 << 20);
        setup.scripted().step_us = 1_000;
    })
    .await
}

/// The value of a series.
async fn value(house: &Governed, series: &str) -> f64 {
    let page = house.server.metrics().await;
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| unreachable!("{series}\n{page}")).parse().expect("a number")
}

async fn until(house: &Governed, series: &str, is_so: impl Fn(f64) -> bool) {
    let started = Instant::now();
    loop {
        let value = value(house, series).await;
        if is_so(value) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{series} is still {value}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn queued(house: &Governed, n: u32) {
    let started = Instant::now();
    while house.server.engine.stats().await.expect("the engine lives").n_queued != n {
        assert!(started.elapsed() < PATIENCE, "never {n} in the queue");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const PATH: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_and_what_is_new_is_given_up_and_what_runs_is_not() {
    let unit = Unit::new();
    let house = house(&unit).await;
    let (key, _) = house.key(json!({})).await;
    let (slow, _) = house.key(json!({ "limits": "slow" })).await;
    // A cached answer, and a conversation that leaves the context for the host's memory.
    let steady = chat_body("keep this", json!({ "temperature": 0 }));
    assert_eq!(house.send(&key, PATH, steady.clone()).await.status, 200);
    assert_eq!(house.send(&key, PATH, steady.clone()).await.header("x-hearth-cache"), "hit");
    for text in ["first ", "other "] {
        assert_eq!(house.chat(&key, &text.repeat(40)).await.status, 200);
    }
    // It outlasts the test, and the client's limit for a whole answer.
    let endless = chat_body("/forever", json!({ "stream": true, "max_tokens": 60_000 }));
    let request = house.post(&key, PATH, &endless).timeout(12 * PATIENCE);
    let mut stream = request.send().await.expect("an answer");
    assert!(stream.chunk().await.expect("it lives").is_some());
    let saved = house.server.engine.stats().await.expect("the engine lives").saved_bytes;
    assert!(saved > 0 && value(&house, "hearth_cache_bytes").await > 0.0);
    let waits = |key: &str, body: Value| {
        let request = house.post(key, PATH, &body);
        tokio::spawn(async move { crate::support::Answer::of(request.send().await.expect("an answer")).await })
    };
    let batch = waits(&slow, chat_body("batch", json!({})));
    queued(&house, 1).await;
    let normal = waits(&key, chat_body("normal", json!({})));
    queued(&house, 2).await;
    // Full, but nobody waits for memory: all stays as it is.
    unit.uses(960, 1.0);
    until(&house, "hearth_memory_used_ratio", |used| used == 0.96).await;
    assert_eq!(value(&house, "hearth_memory_pressure").await, 0.0);
    queued(&house, 2).await;

    unit.uses(990, 40.0);
    let answers = [batch.await.expect("it is answered"), normal.await.expect("it is answered")];
    // Four were answered before.
    house.rows(6).await;
    for answer in answers {
        let code = answer.error().2;
        assert_eq!((answer.status, code.as_deref()), (503, Some("server_is_overloaded")), "{}", answer.text);
        let again: u32 = answer.header("retry-after").parse().expect("seconds");
        assert!((8..=12).contains(&again), "{again}");
        let row = house.row_of(&answer).await;
        assert_eq!((row.in_tok, row.out_tok, row.cost_nusd), (0, 0, 0), "{row:?}");
    }
    until(&house, "hearth_memory_pressure", |step| step == 4.0).await;
    until(&house, "hearth_cache_bytes", |n| n == 0.0).await;
    until(&house, "hearth_prefix_store_bytes{model=\"Scripted-1\"}", |n| n == 0.0).await;
    for (path, body, status) in [
        (PATH, chat_body("new", json!({})), 503),
        (PATH, chat_body("new", json!({ "stream": true })), 503),
        (PATH, steady.clone(), 503),
        // Anthropic's word for it.
        ("/v1/messages", with(chat_body("new", json!({})), json!({ "max_tokens": 9 })), 529),
        ("/api/chat", chat_body("new", json!({})), 503),
    ] {
        let refused = house.send(&key, path, body).await;
        assert!(refused.status == status && refused.text.contains("short of memory"), "{path}: {}", refused.text);
        assert!(!refused.header("retry-after").is_empty(), "{path}");
    }
    // What costs next to nothing goes on, and so does what runs.
    assert_eq!(house.send(&key, "/tokenize", json!({ "content": "hi" })).await.status, 200);
    let ready = house.server.get("/readyz").await;
    assert!(ready.status == 503 && ready.json()["state"] == "short_of_memory", "{}", ready.text);
    assert_eq!(house.server.get("/health").await.status, 200);
    for _ in 0..3 {
        assert!(stream.chunk().await.expect("it lives").is_some());
    }
    for (what, least) in [("caches", 1.0), ("batch", 1.0), ("queue", 1.0), ("new", 5.0)] {
        let n = value(&house, &format!("hearth_memory_shed_total{{what=\"{what}\"}}")).await;
        assert!(n >= least, "{what}: {n}");
    }

    unit.uses(500, 0.0);
    until(&house, "hearth_memory_pressure", |step| step == 0.0).await;
    assert_eq!(house.server.get("/readyz").await.status, 200);
    let back = waits(&key, chat_body("back again", json!({})));
    queued(&house, 1).await;
    assert!(stream.chunk().await.expect("it lives").is_some());
    drop(stream);
    assert_eq!(back.await.expect("it is answered").content(), "back again");
    house.is_verified().await;
    house.stop().await;
}

/// A model that would have to be loaded first is not; and who was told so is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_refused_is_counted() {
    let unit = Unit::new();
    let models = vec![lazy("late")];
    let metrics = Arc::new(Metrics::new());
    let gateway = Gateway::open(Setup::new().gateway, models, &EngineMode::InProcess, LoadLimits::default(), metrics);
    let unused = Engine::start(lazy("unused").engine, EngineMode::InProcess);
    let gateway = Arc::new(gateway.with_memory_watch(unit.watch()));
    let server = Server::of(gateway, unused, HttpConfig::default()).await;
    unit.uses(990, 40.0);
    let started = Instant::now();
    while !server.metrics().await.contains("hearth_memory_pressure 4") {
        assert!(started.elapsed() < PATIENCE, "memory is not short");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for n in 1..=2 {
        let refused = server.chat("hi", json!({ "model": "late" })).await;
        assert_eq!((refused.status, refused.error().2.as_deref()), (503, Some("server_is_overloaded")));
        let page = server.metrics().await;
        let counted = format!("hearth_memory_shed_total{{what=\"new\"}} {n}\n");
        assert!(page.contains(&counted), "{page}");
    }
    server.stop().await;
}

/// Vectors are something new, too; and a unit that has just enough is not disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_refused_until_it_is_over() {
    let unit = Unit::new();
    let house = Governed::with(|setup, _| {
        setup.memory = Some(unit.watch());
        setup.scripted().embeds = 1;
    })
    .await;
    let (key, _) = house.key(json!({})).await;
    let ask = json!({ "model": MODEL, "input": "x" });
    assert_eq!(house.send(&key, "/v1/embeddings", ask.clone()).await.status, 200);
    unit.uses(970, 30.0);
    until(&house, "hearth_memory_pressure", |step| step >= 3.0).await;
    let refused = house.send(&key, "/v1/embeddings", ask.clone()).await;
    assert_eq!(refused.error().2.as_deref(), Some("server_is_overloaded"), "{}", refused.text);
    unit.uses(600, 30.0);
    until(&house, "hearth_memory_pressure", |step| step == 0.0).await;
    assert_eq!(house.send(&key, "/v1/embeddings", ask).await.status, 200);
    house.stop().await;
}
