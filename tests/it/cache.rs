//! The cache of answers: T-C1, T-C3 and T-C4 of the gateway's contract (T-C2 is beside the key).

use crate::support::routed::{Routed, chat};
use crate::support::{Answer, Server, Setup, chat_body, with};
use hearth::gateway::{CacheScope, Caller};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn on(setup: &mut Setup) {
    setup.gateway.routing.cache.enabled = true;
}

/// A request whose answer may be kept.
fn steady(text: &str, more: Value) -> Value {
    with(chat_body(text, json!({ "temperature": 0 })), more)
}

async fn ask(server: &Server, key: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = server.client.post(server.url("/v1/chat/completions")).bearer_auth(key);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request.json(body).send().await.expect("an answer")).await
}

/// Without what differs between two live answers that are the same: ids, times, and what was in the KV cache.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let (start, data) = line.strip_prefix("data: ").map_or(("", line), |data| ("data: ", data));
        match serde_json::from_str::<Value>(data) {
            Ok(mut value) => {
                scrub(&mut value);
                out.push_str(&format!("{start}{value}\n"));
            }
            Err(_) => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

fn scrub(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for key in ["id", "created", "timings", "cached_tokens"] {
                fields.remove(key);
            }
            fields.values_mut().for_each(scrub);
        }
        Value::Array(items) => items.iter_mut().for_each(scrub),
        _ => {}
    }
}

#[tokio::test]
async fn t_c1_no_answer_crosses_from_one_key_to_another() {
    let server = Server::with(|setup| {
        on(setup);
        setup.key("sk-a");
        setup.key("sk-b");
    })
    .await;
    let body = steady("hello", json!({}));
    let said = |answer: &Answer| (answer.content(), answer.header("x-hearth-cache").to_owned());
    assert_eq!(said(&ask(&server, "sk-a", &[], &body).await), ("hello".into(), "miss".into()));
    assert_eq!(said(&ask(&server, "sk-b", &[], &body).await), ("hello".into(), "miss".into()));
    let hit = ask(&server, "sk-a", &[], &body).await;
    assert_eq!(said(&hit), ("hello".into(), "hit".into()));
    assert_eq!(hit.header("x-hearth-served-by"), "cache");
    // Nor from one namespace to another.
    let spaced = steady("hello", json!({ "cache": { "namespace": "n" } }));
    for (cache, _) in [("miss", 1), ("hit", 2)] {
        assert_eq!(ask(&server, "sk-a", &[], &spaced).await.header("x-hearth-cache"), cache);
    }
    assert_eq!(ask(&server, "sk-b", &[], &spaced).await.header("x-hearth-cache"), "miss");
}

#[tokio::test]
async fn t_c1_keys_of_a_team_share_where_that_is_the_scope() {
    use hearth::gateway::{Credential, KeyEntry, KeyRecord, KeySpec, Keyring, Pepper, Snapshot, TeamRecord, TeamSpec};
    let pepper = Pepper::new([7; 32]);
    let mut snapshot = Snapshot::default();
    let mut key = |team: &str| {
        let credential = Credential::generate().expect("chance");
        let team = TeamRecord { id: team.into(), spec: TeamSpec::default(), created: 0, blocked: false };
        let record = KeyRecord::new(credential.id().to_owned(), KeySpec::default(), Some(Arc::new(team)), 0, false);
        let hash = pepper.hash(credential.secret());
        let entry = KeyEntry { record: Arc::new(record), hash, previous: None };
        snapshot.keys.insert(credential.id().to_owned(), entry);
        credential.reveal()
    };
    let keys = [key("red"), key("red"), key("blue")];
    let keyring = Keyring::new(pepper, snapshot, true);
    let caller = |n: usize| {
        let principal = keyring.authenticate(&keys[n], None, 0).expect("a good key");
        Caller { principal, ..Default::default() }
    };
    let mut request = chat("", "hello");
    request.sampling.temperature = Some(0.0);
    for (scope, hits) in [(CacheScope::Key, [false, false, false]), (CacheScope::Team, [false, true, false])] {
        let routed = Routed::of(|setup| {
            on(setup);
            setup.gateway.routing.cache.scope = scope;
        })
        .await;
        for (n, hit) in hits.into_iter().enumerate() {
            let came = routed.ask_as(caller(n), request.clone()).await;
            assert_eq!((came.text.as_str(), came.served_by() == "cache"), ("hello", hit), "{scope:?} {n}");
        }
    }
}

#[tokio::test]
async fn t_c3_a_hit_is_the_live_answer_once_more_in_the_form_that_is_asked_for() {
    let server = Server::with(|setup| {
        on(setup);
        setup.gateway.routing.cache.tool_calls = true;
    })
    .await;
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    for (name, text, more) in [
        ("text", "/count 5", json!({})),
        ("length", "/count 50", json!({ "max_tokens": 7 })),
        ("stop", "/count 9", json!({ "stop": "4" })),
        ("thinking", "/think why", json!({})),
        ("calls", "/call f {\"a\":1}", json!({ "tools": tools })),
        ("choices", "/count 2", json!({ "n": 3, "logprobs": true, "top_logprobs": 2 })),
    ] {
        let ask = |stream: bool, cache: Value| {
            let streamed = json!({ "stream": stream, "cache": cache });
            let streamed =
                if stream { with(streamed, json!({ "stream_options": { "include_usage": true } })) } else { streamed };
            steady(text, with(more.clone(), streamed))
        };
        let post = |body: Value| server.post("/v1/chat/completions", body);
        let apart = post(ask(false, json!({ "no-store": true, "no-cache": true }))).await;
        assert_eq!(apart.header("x-hearth-cache"), "bypass", "{name}");
        let kept = post(ask(true, json!({}))).await;
        assert_eq!(kept.header("x-hearth-cache"), "miss", "{name}");
        for (stream, live) in [(false, &apart), (true, &kept)] {
            let hit = post(ask(stream, json!({}))).await;
            assert_eq!((hit.status, hit.header("x-hearth-cache")), (200, "hit"), "{name}");
            assert_eq!(hit.header("content-type"), live.header("content-type"));
            assert_eq!(plain(&hit.text), plain(&live.text), "{name}, stream {stream}");
        }
    }
}

#[tokio::test]
async fn every_dialect_finds_the_answer() {
    let server = Server::with(on).await;
    let message =
        json!({ "model": "m", "temperature": 0, "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] });
    let paths = [
        ("/v1/messages", with(message.clone(), json!({ "model": "house/Model" }))),
        (
            "/api/chat",
            json!({ "model": "house/Model", "stream": false, "options": { "temperature": 0, "num_predict": 9 },
            "messages": [{ "role": "user", "content": "hi" }] }),
        ),
        ("/v1/responses", json!({ "model": "house/Model", "temperature": 0, "max_output_tokens": 9, "input": "hi" })),
        ("/v1/completions", json!({ "model": "house/Model", "temperature": 0, "prompt": "hi" })),
    ];
    for (path, body) in paths {
        let first = server.post(path, body.clone()).await;
        assert_eq!(first.status, 200, "{path} {}", first.text);
        let again = server.post(path, body).await;
        assert_eq!(again.header("x-hearth-cache"), "hit", "{path}");
        assert!(again.text.contains("hi"), "{path} {}", again.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_c4_a_thousand_at_once_are_one_run_for_each_tenant() {
    const REQUESTS: usize = 1000;
    let routed = Routed::of(|setup| {
        on(setup);
        setup.key("sk-a");
        setup.key("sk-b");
        setup.scripted().step_us = 5000;
    })
    .await;
    let routed = Arc::new(routed);
    let mut request = chat("", "/count 9");
    request.sampling.temperature = Some(0.0);
    let run = |key: Option<&'static str>, n: usize| {
        let principal = routed.gateway.authenticate(key, None).expect("a good key");
        let asks = (0..n).map(|_| {
            let (routed, request, principal) = (Arc::clone(&routed), request.clone(), principal.clone());
            tokio::spawn(async move { routed.ask_as(Caller { principal, ..Default::default() }, request).await })
        });
        asks.collect::<Vec<_>>()
    };
    let tokens_of_one = 18;
    let mut n_runs = 0;
    for (asks, runs) in [(run(Some("sk-a"), REQUESTS), 1), (run(Some("sk-b"), REQUESTS / 2), 1)] {
        for ask in asks {
            let came = ask.await.expect("no panic");
            assert_eq!((came.text.as_str(), came.usage.completion_tokens), ("1 2 3 4 5 6 7 8 9", tokens_of_one));
        }
        n_runs += runs;
    }
    let page = routed.gateway.metrics_page().await;
    let line = format!("hearth_generation_tokens_total{{model=\"Scripted-1\"}} {}", n_runs * tokens_of_one);
    assert!(page.contains(&line), "{line}\n{page}");
    let stats = routed.engine.stats().await.expect("counters");
    assert_eq!(stats.tokens_generated, u64::from(n_runs * tokens_of_one), "the engine's own count");
    assert!(
        page.contains("hearth_cache_requests_total{result=\"miss\"} 2") && page.contains("result=\"hit\"} 1498"),
        "{page}"
    );
    assert_eq!(routed.gateway.flush_cache().await, 2);
}

#[tokio::test]
async fn only_what_asks_for_the_same_answer_is_kept_and_clients_have_a_say() {
    let server = Server::with(on).await;
    let cache = |answer: Answer| answer.header("x-hearth-cache").to_owned();
    for _ in 0..2 {
        assert_eq!(cache(server.chat("hi", json!({})).await), "bypass", "a fresh answer each time");
    }
    for expected in ["miss", "hit"] {
        assert_eq!(cache(server.chat("hi", json!({ "seed": 5 })).await), expected);
    }
    let ask = |name: &'static str, value: &'static str| ask_with(&server, name, value);
    assert_eq!(cache(ask("x-nothing", "1").await), "miss");
    assert_eq!(cache(ask("cache-control", "no-cache").await), "bypass");
    assert_eq!(cache(ask("cache-control", "max-age=60").await), "hit");
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(cache(ask("cache-control", "max-age=0").await), "miss");
    assert_eq!(cache(ask("cache-control", "no-store").await), "hit");
    // What is about the answer's form alone is no difference.
    let form = json!({ "user": "u", "metadata": { "a": "b" }, "cache_prompt": false });
    assert_eq!(cache(server.post("/v1/chat/completions", steady("say", form)).await), "hit");
    let off = Server::start().await;
    assert_eq!(cache(off.post("/v1/chat/completions", steady("say", json!({}))).await), "");
}

async fn ask_with(server: &Server, name: &'static str, value: &'static str) -> Answer {
    let request = server.client.post(server.url("/v1/chat/completions")).header(name, value);
    Answer::of(request.json(&steady("say", json!({}))).send().await.expect("an answer")).await
}

#[tokio::test]
async fn an_answer_that_was_cut_is_not_kept_and_one_engine_that_is_down_still_has_its_answers() {
    let routed = Routed::of(|setup| {
        on(setup);
        setup.scripted().step_us = 1000;
    })
    .await;
    let mut request = chat("", "/count 200");
    request.sampling.temperature = Some(0.0);
    let caller = Caller::default();
    let mut running = routed.gateway.chat(&caller, request.clone()).await.expect("it begins");
    assert!(running.next().await.is_some());
    drop(running);
    assert_eq!(routed.gateway.flush_cache().await, 0);
    let mut short = chat("", "short");
    short.sampling.temperature = Some(0.0);
    assert_eq!(routed.ask(short.clone()).await.served_by(), "local");
    routed.engine.close().await;
    assert_eq!((routed.ask(short).await.text.as_str(), routed.ask(request).await.is_done()), ("short", false));
}
