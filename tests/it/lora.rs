//! LoRA adapters over HTTP, on a tiny random model with two tiny random adapters.

use crate::support::exact::{is_alike, is_exact};
use crate::support::{Answer, Server, with};
use futures_util::future::join_all;
use hearth::engine::EngineMode;
use hearth::engine::config::{KvLayout, LoraConfig, ModelSource};
use serde_json::{Value, json};
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name)
}

/// Adapters `a` and `b`, with the scales given.
async fn serve(scales: &[f32], mode: EngineMode) -> Server {
    Server::with(|setup| {
        setup.engine.source = ModelSource::Gguf(file("tiny-llama.gguf"));
        setup.engine.n_ctx = Some(2048);
        setup.engine.kv_layout = KvLayout::Unified;
        let adapters = ["tiny-llama-lora-a.gguf", "tiny-llama-lora-b.gguf"].into_iter().zip(scales);
        setup.engine.lora = adapters.map(|(name, scale)| LoraConfig { path: file(name), scale: *scale }).collect();
        setup.mode = mode;
    })
    .await
}

const PROMPT: &str = "Once upon a time there was a little house by the river, and in it there lived";

async fn say(server: &Server, more: Value) -> Answer {
    let fields = json!({ "temperature": 0, "max_tokens": 24, "ignore_eos": true });
    server.complete(json!(PROMPT), with(fields, more)).await
}

fn one(id: u32, scale: f64) -> Value {
    json!({ "lora": [{ "id": id, "scale": scale }] })
}

#[tokio::test]
async fn each_request_chooses_its_adapters_and_prefixes_are_not_shared_across_them() {
    let server = serve(&[0.0, 0.0], EngineMode::InProcess).await;
    let plain = say(&server, json!({})).await.content();
    let a = say(&server, one(0, 1.0)).await;
    assert_eq!(a.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "cells of other adapters are of no use");
    let b = say(&server, one(1, 1.0)).await.content();
    let both = json!({ "lora": [{ "id": 0, "scale": 1 }, { "id": 1, "scale": 1 }] });
    let both = say(&server, both).await.content();
    let texts = [&plain, &a.content(), &b, &both];
    for (i, text) in texts.iter().enumerate() {
        assert!(texts[..i].iter().all(|other| other != text), "adapters change the answer: {texts:?}");
    }
    // The same set again finds its own cells and says the same; scale 0 is no adapter at all.
    let again = say(&server, one(0, 1.0)).await;
    assert_eq!(again.content(), a.content());
    assert!(again.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().is_some_and(|n| n > 10));
    assert_eq!(say(&server, one(0, 0.0)).await.content(), plain);
    assert_eq!(say(&server, json!({})).await.content(), plain);
}

#[tokio::test]
async fn streams_with_different_adapters_run_at_once_and_say_what_they_say_alone() {
    let server = serve(&[0.0, 0.0], EngineMode::InProcess).await;
    let sets = [json!({}), one(0, 1.0), one(1, 1.0), one(0, 0.5)];
    let alone: Vec<String> = join_all(sets.iter().map(|set| async {
        let fresh = with(set.clone(), json!({ "cache_prompt": false }));
        say(&server, fresh).await.content()
    }))
    .await;
    for set in 0..sets.len() {
        let again = say(&server, with(sets[set].clone(), json!({ "cache_prompt": false }))).await.content();
        let same = again.chars().zip(alone[set].chars()).take_while(|(a, b)| a == b).count();
        assert!(same >= 5 || !is_exact(), "set {set}: {again:?}, before {:?}", alone[set]);
    }
    let mixed = join_all((0..8).map(|i| say(&server, sets[i % sets.len()].clone()))).await;
    // Random weights differ by rounding between batches, and a greedy choice may tip over after a while.
    let n_same = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    for (i, answer) in mixed.iter().enumerate() {
        let (said, alone) = (answer.content(), &alone[i % sets.len()]);
        assert!(n_same(&said, alone) >= 5 || !is_exact(), "request {i}: {said:?}, alone {alone:?}");
    }
}

#[tokio::test]
async fn the_servers_scales_are_listed_and_set() {
    let server = serve(&[1.0, 0.0], EngineMode::child(env!("CARGO_BIN_EXE_hearth"))).await;
    let listed = |a: f64, b: f64| {
        json!([
            { "id": 0, "path": "tiny-llama-lora-a.gguf", "scale": a },
            { "id": 1, "path": "tiny-llama-lora-b.gguf", "scale": b },
        ])
    };
    assert_eq!(server.get("/lora-adapters").await.json(), listed(1.0, 0.0));
    let with_a = say(&server, json!({})).await.json();
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().expect("a text").to_owned();
    let plain = say(&server, json!({ "lora": [] })).await.json();
    assert_ne!(text(&with_a), text(&plain));
    assert!(is_alike(&text(&with_a), &text(&say(&server, one(0, 1.0)).await.json())));

    let set = server.post("/lora-adapters", json!([{ "id": 1, "scale": 0.5 }])).await;
    assert_eq!((set.status, set.json()), (200, json!({ "success": true })));
    assert_eq!(server.get("/lora-adapters").await.json(), listed(0.0, 0.5));
    let with_b = say(&server, json!({})).await.json();
    assert!(is_alike(&text(&with_b), &text(&say(&server, one(1, 0.5)).await.json())));
    assert_ne!(with_a["system_fingerprint"], with_b["system_fingerprint"], "clients can tell that answers may differ");

    // A refused change changes nothing.
    server
        .post("/lora-adapters", json!([{ "id": 0, "scale": 1 }, { "id": 2, "scale": 1 }]))
        .await
        .is_refusal("invalid_value", "lora[1].id");
    server
        .post("/lora-adapters", json!([{ "id": 0, "scale": 1000 }]))
        .await
        .is_refusal("invalid_value", "lora[0].scale");
    server.post("/lora-adapters", json!([{ "id": 0 }])).await.is_refusal("missing_required_parameter", "lora[0].scale");
    server.post("/lora-adapters", json!({})).await.is_refusal("missing_required_parameter", "lora");
    assert_eq!(server.get("/lora-adapters").await.json(), listed(0.0, 0.5));
}

#[tokio::test]
async fn what_a_request_gets_wrong_is_named() {
    let server = serve(&[1.0, 0.0], EngineMode::InProcess).await;
    say(&server, one(2, 1.0)).await.is_refusal("invalid_value", "lora[0].id");
    let twice = json!({ "lora": [{ "id": 1, "scale": 1 }, { "id": 1, "scale": 2 }] });
    say(&server, twice).await.is_refusal("invalid_value", "lora[1].id");
    say(&server, json!({ "lora": 3 })).await.is_refusal("invalid_type", "lora");
    say(&server, json!({ "lora": [{ "id": "a", "scale": 1 }] })).await.is_refusal("invalid_type", "lora[0].id");
    say(&server, json!({ "lora": [{ "id": 0, "scale": 1e9 }] })).await.is_refusal("invalid_value", "lora[0].scale");
    let none = Server::start().await;
    none.chat("hi", one(0, 1.0)).await.is_refusal("invalid_value", "lora[0].id");
    assert_eq!(none.chat("hi", json!({ "lora": [] })).await.content(), "hi");
    assert_eq!(none.get("/lora-adapters").await.json(), json!([]));
}
