//! Faults of engine processes (gateway reference, 4.2): T-R4, T-R6, T-R7. The front lives, others are served, and the
//! engine comes back.

use crate::many_models::{House, lazy};
use crate::support::engines::Marked;
use crate::support::served::{Served, root};
use crate::support::{Answer, Events, MODEL, PATIENCE, Server, chat_body, read_until, with};
use hearth::engine::EngineState;
use hearth::gateway::LoadLimits;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const HANG: Duration = Duration::from_secs(3);
/// Rounds of each signal in each phase, unless HEARTH_KILLS says how many; all of it takes about 40 s. With that the times
/// are held to their bounds, on a machine that does nothing else.
const ROUNDS: usize = 6;

async fn until_ready(server: &Server) {
    let mut watch = server.engine.watch();
    let ready = watch.wait_for(|state| matches!(state, EngineState::Ready(_)));
    tokio::time::timeout(PATIENCE, ready).await.expect("ready again").expect("it lives");
}

/// Reads a stream to its end, which must be an error's event; tells when that came.
async fn broken_off(stream: reqwest::Response, since: Instant) -> Duration {
    let bytes = read_until(stream, |_| false).await;
    let took = since.elapsed();
    let events = Events::parse(&bytes);
    let (n, last) = (events.chunks.len(), events.chunks.last());
    assert!(!events.is_done && events.finish(0).is_empty(), "it ended well, with {n} events, at last {last:?}");
    assert_eq!(events.chunks.last().expect("an event")["error"]["type"], "server_error");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_r4_whatever_kills_an_engine_nobody_else_feels_it() {
    let marked = Marked::new();
    let server = Server::with(|setup| {
        setup.mode = marked.mode();
        (setup.scripted().step_us, setup.scripted().prompt_token_us) = (1000, 200);
        setup.engine.hang_timeout = Some(HANG);
        setup.gateway.routing.cache.enabled = true;
    })
    .await;
    let cached = chat_body("kept", json!({ "temperature": 0 }));
    assert_eq!(server.post("/v1/chat/completions", cached.clone()).await.content(), "kept");
    let (stopping, n_served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let bystander = tokio::spawn({
        let (stopping, n_served) = (Arc::clone(&stopping), Arc::clone(&n_served));
        let (client, url) = (server.client.clone(), server.url(""));
        async move {
            while !stopping.load(Ordering::Relaxed) {
                let live = client.get(format!("{url}/livez")).send().await.expect("the front lives");
                assert_eq!(live.status(), 200);
                let hit =
                    client.post(format!("{url}/v1/chat/completions")).json(&cached).send().await.expect("an answer");
                assert_eq!((hit.status().as_u16(), hit.headers()["x-hearth-cache"].as_bytes()), (200, &b"hit"[..]));
                n_served.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let said: Option<usize> = std::env::var("HEARTH_KILLS").ok().and_then(|n| n.parse().ok());
    let (mut errors, mut back, mut n_rounds) = (Vec::new(), Vec::new(), 0);
    for signal in [Signal::KILL, Signal::SEGV, Signal::ABORT, Signal::STOP] {
        for decodes in [false, true] {
            // A hang takes its time to be one.
            let n = if signal == Signal::STOP { ROUNDS / 3 } else { ROUNDS };
            for round in 0..said.unwrap_or(n) {
                until_ready(&server).await;
                // Its own words each time: a request that was there at two crashes is refused.
                let words = format!("{signal:?} {decodes} {round}");
                let text = if decodes { format!("/forever {words}") } else { words + &" and on".repeat(400) };
                let body = chat_body(&text, json!({ "stream": true }));
                let mut stream = server.send("/v1/chat/completions", &body).await;
                if decodes {
                    for _ in 0..3 {
                        assert!(stream.chunk().await.expect("it lives").is_some());
                    }
                } else {
                    while server.engine.load().n_slots_free == 4 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                marked.signal(signal);
                let since = Instant::now();
                let took = broken_off(stream, since).await;
                if signal == Signal::STOP {
                    assert!(took < HANG * 3, "{took:?}");
                } else {
                    errors.push(took);
                }
                let dead = Instant::now();
                until_ready(&server).await;
                back.push(dead.elapsed());
                n_rounds += 1;
            }
        }
    }
    stopping.store(true, Ordering::Relaxed);
    bystander.await.expect("no request of others failed");
    errors.sort();
    back.sort();
    let at = |all: &[Duration], percent: usize| all[(all.len() - 1) * percent / 100];
    println!(
        "{n_rounds} rounds: errors after {:?} (median), {:?} (worst); ready again {:?}, {:?}; {} requests of others",
        at(&errors, 50),
        at(&errors, 100),
        at(&back, 50),
        at(&back, 100),
        n_served.load(Ordering::Relaxed)
    );
    let error_max = if said.is_some() { Duration::from_millis(100) } else { Duration::from_secs(1) };
    let ready_max = if said.is_some() { Duration::from_secs(2) } else { PATIENCE };
    assert!(at(&errors, 50) < error_max, "{errors:?}");
    assert!(at(&back, 90) < ready_max, "{back:?}");
    assert_eq!(server.engine.load().n_restarts, n_rounds);
    server.stop().await;
}

#[tokio::test]
async fn t_r4_another_models_engine_goes_on() {
    let marked = Marked::new();
    let mut models = vec![lazy("one"), lazy("other")];
    models.iter_mut().for_each(|model| model.config.is_lazy = false);
    let house = House::with(models, LoadLimits::default(), marked.mode()).await;
    let since = Instant::now();
    while house.ask("one").await.status != 200 || house.ask("other").await.status != 200 {
        assert!(since.elapsed() < PATIENCE, "never loaded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let streams = [house.forever("one").await, house.forever("other").await];
    let pids = marked.pids();
    assert_eq!(pids.len(), 2);
    rustix::process::kill_process(pids[0], Signal::KILL).expect("it lives");
    let ends = streams.map(|stream| async move {
        // The other goes on for a second at least, which is longer than a death takes to be told.
        let enough = |bytes: &[u8]| bytes.windows(7).any(|window| window == b"\"error\"") || bytes.len() > 60_000;
        String::from_utf8(read_until(stream, enough).await).expect("text").contains("\"error\"")
    });
    let failed = futures_util::future::join_all(ends).await;
    assert_eq!(failed.iter().filter(|failed| **failed).count(), 1, "{failed:?}");
    house.gateway.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_r6_a_file_that_is_cut_under_the_engine_ends_the_engine_alone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let whole = std::fs::read(root().join("models/hearth-demo.gguf")).expect("the demo model");
    std::fs::write(&path, &whole).expect("a writable folder");
    let served = Served::of(&[path.to_str().expect("text"), "--alias", "m"]);
    let client = reqwest::Client::builder().timeout(PATIENCE * 3).build().expect("a client");
    let ask = async || {
        let body = with(
            json!({ "model": "m", "max_tokens": 4, "temperature": 0, "cache_prompt": false }),
            json!({
            "prompt": "Once upon a time there was a house" }),
        );
        let response =
            client.post(format!("{}/v1/completions", served.url)).json(&body).send().await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a body"))
    };
    let text = |body: &str| {
        let value: serde_json::Value = serde_json::from_str(body).expect("JSON");
        value["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
    };
    let (status, first) = ask().await;
    assert_eq!(status, 200, "{first}");
    // Deleted, then replaced beside: what is mapped stays.
    std::fs::remove_file(&path).expect("it is there");
    let (status, second) = ask().await;
    assert_eq!((status, text(&second)), (200, text(&first)));
    std::fs::write(&path, &whole).expect("a writable folder");
    // Cut in place: pages that the engine has mapped are gone.
    let served_again = Served::of(&[path.to_str().expect("text"), "--alias", "m"]);
    let url = served_again.url.clone();
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it is there");
    file.set_len(4096).expect("it can be cut");
    let body = json!({ "model": "m", "prompt": "Once upon a time", "max_tokens": 4 });
    let mut statuses = Vec::new();
    let since = Instant::now();
    // The engine dies at the first page that it misses, and can't load what is left of the file.
    while since.elapsed() < PATIENCE && !statuses.contains(&503) {
        let response = client.post(format!("{url}/v1/completions")).json(&body).send().await.expect("the front lives");
        statuses.push(response.status().as_u16());
        assert_eq!(served_again.status("/livez"), Some(200));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(statuses.contains(&503), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 500, 503].contains(status)), "{statuses:?}");
    assert_eq!(served_again.status("/readyz"), Some(503));
    std::fs::write(&path, &whole).expect("a writable folder");
    served_again.wait_until_ready();
    let response = client.post(format!("{url}/v1/completions")).json(&body).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "the whole file is loaded again");
    drop(served);
}

#[tokio::test]
async fn t_r7_an_engine_without_memory_dies_alone_and_first() {
    let marked = Marked::new();
    let server = Server::with(|setup| setup.mode = marked.mode()).await;
    let pid = marked.pids()[0];
    let score =
        |pid: Pid| std::fs::read_to_string(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero())).expect("Linux");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("Linux");
    let number = |text: &str| text.trim().parse::<i32>().expect("a number");
    assert!(number(&score(pid)) > number(&own) || number(&own) >= 500, "the kernel takes the engine before the front");
    // No byte more than it has: what it holds stays, and whatever it asks the kernel for is refused.
    let maximum = getrlimit(Resource::As).maximum;
    prlimit(Some(pid), Resource::As, Rlimit { current: Some(1 << 20), maximum }).expect("one's own child");
    // The frame and the text in it are 60 MB each, read by one thread: an arena of glibc's, whose 64 MiB count as taken from its
    // start on, holds both of 30 MB.
    let large = "word ".repeat(12_000_000);
    let client = reqwest::Client::builder().timeout(PATIENCE * 3).build().expect("a client");
    let asked = client.post(server.url("/v1/completions")).json(&json!({ "model": MODEL, "prompt": large }));
    let answer = Answer::of(asked.send().await.expect("an answer")).await;
    // 503: it died of another thread's allocation, before it took this.
    assert!([400, 500, 503].contains(&answer.status), "{}", answer.text);
    assert_eq!(server.get("/livez").await.status, 200);
    let since = Instant::now();
    while server.chat("after", json!({})).await.status != 200 {
        assert!(since.elapsed() < PATIENCE, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.engine.load().n_restarts, 1);
    assert_ne!(marked.pids(), [pid]);
    server.stop().await;
}
