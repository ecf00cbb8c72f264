//! What happens when the engine's process dies: real processes, real signals.

use crate::support::PATIENCE;
use crate::support::served::Served;
use hearth::chat::{ChatPrompt, Message, Prompt, Role};
use hearth::engine::config::{ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Event, Failure, GenerateRequest, Generation};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tests here measure times after a kill, so they take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn start(source: ModelSource) -> Engine {
    let mut config = EngineConfig::new(source);
    (config.n_slots, config.n_threads) = (8, Some(1));
    let engine = Engine::start(config, EngineMode::child(env!("CARGO_BIN_EXE_hearth")));
    ready(&engine).await;
    engine
}

async fn ready(engine: &Engine) {
    let mut watch = engine.watch();
    let is_ready = watch.wait_for(|state| matches!(state, EngineState::Ready(_)));
    tokio::time::timeout(Duration::from_secs(10), is_ready).await.expect("ready in time").expect("the engine lives");
}

fn chat(text: &str) -> GenerateRequest {
    let mut request = GenerateRequest::new(Prompt::Chat(ChatPrompt::new(vec![Message::new(Role::User, text)])));
    request.sampling.ignore_eos = true;
    request
}

async fn ending(mut generation: Generation) -> Option<Failure> {
    let mut end = None;
    while let Some(event) = generation.next().await {
        if let Event::Failed(failure) = event {
            end = Some(failure);
        }
    }
    end
}

/// Process ids of the `hearth engine` children of process `pid`.
pub fn engines(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("this is Linux").flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> =
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let is_engine = |pid: &String| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.windows(7).any(|window| window == b"\0engine")
    };
    pids.into_iter().filter(is_engine).collect()
}

pub fn kill(pid: &str) {
    let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a process's number");
    kill_process(pid, Signal::KILL).expect("it lives");
}

/// (open descriptors, resident KiB) of a process.
fn footprint(pid: u32) -> (usize, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a VmRSS line");
    let resident = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    (fs::read_dir(format!("/proc/{pid}/fd")).expect("this is Linux").count(), resident)
}

/// Reads a stream to its end; tells when its error came.
async fn error_time(mut stream: reqwest::Response, killed: Instant) -> Duration {
    let (mut text, mut error) = (String::new(), None);
    while let Some(bytes) = stream.chunk().await.expect("the body ends in order") {
        text += &String::from_utf8_lossy(&bytes);
        if error.is_none() && text.contains("\"error\"") {
            error = Some(killed.elapsed());
        }
    }
    assert!(!text.contains("[DONE]"), "{text}");
    error.expect("the stream says that it failed")
}

/// With HEARTH_KILLS the times are held to their bounds, on a machine that does nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_under_eight_streams_hang_nothing_and_leak_nothing() {
    let _turn = TURN.lock().await;
    let served = Arc::new(Served::start());
    let client = reqwest::Client::new();
    let stopping = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (served, stopping) = (Arc::clone(&served), Arc::clone(&stopping));
        std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                assert_eq!(served.status("/livez"), Some(200), "the HTTP side never stops answering");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let mut before = (0, 0);
    let (mut errors_after, mut slowest_ready) = (Vec::new(), Duration::ZERO);
    for round in 0..20 {
        let mut streams = Vec::new();
        for stream in 0..8 {
            // Its own text each: the same one would be refused after two crashes.
            let body = json!({ "prompt": format!("round {round}, stream {stream}"), "stream": true, "ignore_eos": true,
                "max_tokens": 1900 });
            let url = format!("{}/v1/completions", served.url);
            let response = client.post(url).json(&body).send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            streams.push(response);
        }
        let pids = engines(served.pid());
        assert_eq!(pids.len(), 1);
        kill(&pids[0]);
        let killed = Instant::now();
        let errors = streams.into_iter().map(|stream| error_time(stream, killed));
        let slowest = futures_util::future::join_all(errors).await.into_iter().max().unwrap_or_default();
        errors_after.push(slowest);
        served.wait_until_ready();
        slowest_ready = slowest_ready.max(killed.elapsed());
        if round == 4 {
            before = footprint(served.pid());
        }
    }
    stopping.store(true, Ordering::Relaxed);
    watcher.join().expect("it always answered");
    // The last connections close when their bodies are read.
    let since = Instant::now();
    let mut after = footprint(served.pid());
    while after.0 > before.0 + 2 && since.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = footprint(served.pid());
    }
    errors_after.sort();
    println!(
        "errors after {errors_after:?}, slowest ready {slowest_ready:?}, descriptors and KiB {before:?} {after:?}"
    );
    let is_alone = std::env::var_os("HEARTH_KILLS").is_some();
    let error_max = if is_alone { Duration::from_millis(100) } else { Duration::from_secs(1) };
    let ready_max = if is_alone { Duration::from_secs(2) } else { PATIENCE };
    // The kernel may hold one of twenty up while other tests want the cores; the rest may not be late.
    assert!(errors_after[17] < error_max, "{errors_after:?}");
    assert!(slowest_ready < ready_max, "{slowest_ready:?}");
    assert!(after.0 <= before.0 + 2 && after.1 < before.1 + 4 * 1024, "descriptors, KiB: {before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_that_is_killed_leaves_no_engine_behind() {
    let _turn = TURN.lock().await;
    let served = Served::start();
    let pids = engines(served.pid());
    assert_eq!(pids.len(), 1);
    drop(served); // SIGKILL
    for _ in 0..100 {
        if !fs::exists(format!("/proc/{}", pids[0])).unwrap_or(false) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the engine outlived its front by 2 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_the_engine_twice_is_refused_the_third_time() {
    let _turn = TURN.lock().await;
    let engine = start(ModelSource::Scripted(ScriptedConfig::default())).await;
    for _ in 0..2 {
        let failure = ending(engine.generate(chat("/crash")).expect("not refused yet")).await;
        assert!(matches!(&failure, Some(Failure::Crashed { reason }) if reason.contains("SIGABRT")), "{failure:?}");
        ready(&engine).await;
    }
    let refused = engine.generate(chat("/crash")).map(|_| ()).expect_err("refused by its fingerprint");
    assert!(matches!(refused, Failure::Quarantined { crashes: 2, remaining_s: 590..=600 }), "{refused:?}");
    assert_eq!(ending(engine.generate(chat("/count 3")).expect("others are served")).await, None);
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_transports_give_the_same_answers() {
    let _turn = TURN.lock().await;
    let source = ModelSource::Gguf(concat!(env!("CARGO_MANIFEST_DIR"), "/models/hearth-demo.gguf").into());
    let mut answers = Vec::new();
    for mode in [EngineMode::InProcess, EngineMode::child(env!("CARGO_BIN_EXE_hearth"))] {
        let mut config = EngineConfig::new(source.clone());
        (config.n_threads, config.n_draft_max) = (Some(1), 0);
        let engine = Engine::start(config, mode);
        ready(&engine).await;
        let mut request = chat("What is the capital of France?");
        (request.sampling.temperature, request.sampling.ignore_eos) = (0.0, false);
        request.output.top_logprobs = Some(2);
        let mut generation = engine.generate(request).expect("a place");
        let (mut text, mut logprobs, mut usage) = (String::new(), Vec::new(), None);
        while let Some(event) = generation.next().await {
            match event {
                Event::Delta(delta) => {
                    text += &delta.content;
                    logprobs.extend(delta.logprobs);
                }
                Event::Done(done) => usage = Some((done.finish, done.usage)),
                Event::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
        let stats = engine.stats().await.expect("stats");
        answers.push((text, logprobs, usage, stats.tokens_generated));
        engine.close().await;
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_cannot_be_loaded_is_told_and_not_tried_forever() {
    let _turn = TURN.lock().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let config = EngineConfig::new(ModelSource::Gguf(file.path().into()));
    let engine = Engine::start(config, EngineMode::child(env!("CARGO_BIN_EXE_hearth")));
    let mut watch = engine.watch();
    let failed = watch.wait_for(|state| matches!(state, EngineState::Failed { .. }));
    tokio::time::timeout(Duration::from_secs(10), failed).await.expect("in time").expect("the engine lives");
    let refused = engine.generate(chat("hello")).map(|_| ()).expect_err("nothing is loaded");
    assert!(matches!(refused, Failure::NotReady { .. }), "{refused:?}");
    engine.close().await;
}
