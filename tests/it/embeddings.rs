//! Embeddings over HTTP: the contract's section 1.7 with the scripted model, and real vectors of the tiny ones.

use crate::support::exact::{is_exact, rounding};
use crate::support::served::{Served, root};
use crate::support::{PATIENCE, Server, Setup};
use hearth::engine::Pooling;
use hearth::engine::config::{EmbedMode, FlashAttn, ModelSource};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

async fn scripted() -> Server {
    Server::with(|setup| setup.scripted().embeds = 1).await
}

/// A tiny model as the server's, with one thread.
pub fn tiny(setup: &mut Setup, name: &str) {
    setup.engine.source = ModelSource::Gguf(root().join(format!("models/tiny/{name}.gguf")));
    setup.engine.n_ctx = Some(1024);
    setup.gateway.model_id = name.to_owned();
    setup.gateway.any_model = true;
}

async fn embed(server: &Server, input: Value) -> Vec<Vec<f32>> {
    let answer = server.post("/v1/embeddings", json!({ "input": input })).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    let data = body["data"].as_array().expect("a list");
    let vector = |(index, entry): (usize, &Value)| {
        assert_eq!((&entry["index"], &entry["object"]), (&json!(index), &json!("embedding")));
        serde_json::from_value(entry["embedding"].clone()).expect("numbers")
    };
    data.iter().enumerate().map(vector).collect()
}

/// Waits until the engine has `n` requests for vectors.
async fn queued(server: &Server, n: u32) {
    let since = Instant::now();
    while server.engine.stats().await.expect("stats").n_queued != n {
        assert!(since.elapsed() < PATIENCE, "never {n} requests for vectors");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// 1.7: the shape, usage, and every path.
#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = scripted().await;
    for path in ["/v1/embeddings", "/embeddings", "/v1/embeddings/"] {
        let answer = server.post(path, json!({"model": "default", "input": ["ab", "c"], "user": "u"})).await;
        let body = answer.json();
        assert_eq!((answer.status, &body["object"], &body["model"]), (200, &json!("list"), &json!("Scripted-1")));
        // BOS and two bytes, BOS and one.
        assert_eq!(body["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
        assert_eq!(body["data"].as_array().expect("a list").len(), 2);
        assert_eq!(answer.header("x-hearth-ignored"), "");
    }
    let answer = server.post("/v1/embeddings", json!({"input": "x", "colour": 1})).await;
    assert_eq!(answer.header("x-hearth-ignored"), "colour");
    let page = server.get("/metrics").await.text;
    assert!(page.contains("hearth_prompt_tokens_total{model=\"Scripted-1\"} 17"), "{page}");
}

/// 1.7: base64 is the same numbers, little-endian; `dimensions` cuts and normalises again.
/// FAULT-15: base64 is little-endian.
#[tokio::test]
async fn vectors_are_normalised_cut_and_encoded() {
    let server = scripted().await;
    let whole = embed(&server, json!("some text")).await.remove(0);
    assert!((length(&whole) - 1.0).abs() < 1e-5);
    let answer = server.post("/v1/embeddings", json!({"input": "some text", "dimensions": 4})).await.json();
    let short: Vec<f32> = serde_json::from_value(answer["data"][0]["embedding"].clone()).expect("numbers");
    assert!(short.len() == 4 && (length(&short) - 1.0).abs() < 1e-5);
    let scale = length(&whole[..4]);
    assert!(distance(&short, &whole[..4].iter().map(|x| x / scale).collect::<Vec<_>>()) < 1e-6);
    server
        .post("/v1/embeddings", json!({"input": "x", "dimensions": 17}))
        .await
        .is_refusal("integer_above_max_value", "dimensions");
    server
        .post("/v1/embeddings", json!({"input": "x", "dimensions": 0}))
        .await
        .is_refusal("integer_below_min_value", "dimensions");
    server
        .post("/v1/embeddings", json!({"input": "x", "encoding_format": "int8"}))
        .await
        .is_refusal("invalid_value", "encoding_format");

    use base64::Engine as _;
    let body = json!({"input": "some text", "encoding_format": "base64"});
    let answer = server.post("/v1/embeddings", body).await.json();
    let text = answer["data"][0]["embedding"].as_str().expect("text").to_owned();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(numbers, whole);
}

/// EMB-03: a model that can't embed is the request's fault, which no SDK tries again.
#[tokio::test]
async fn a_chat_model_refuses_to_embed() {
    let server = Server::start().await;
    for path in ["/v1/embeddings", "/embedding", "/v1/classify"] {
        server.post(path, json!({"input": "x"})).await.is_refusal("unsupported_operation", "model");
    }
}

/// EMB-04: token ids of another vocabulary are refused, not embedded as garbage.
#[tokio::test]
async fn token_ids_are_inputs_and_checked() {
    let server = scripted().await;
    let text = embed(&server, json!("ab")).await;
    assert_eq!(embed(&server, json!([256, 97, 98])).await, text);
    assert_eq!(embed(&server, json!([[256, 97, 98], [99]])).await[0], text[0]);
    for input in [json!([9906, 1917]), json!([[97], [100_257]])] {
        server.post("/v1/embeddings", json!({ "input": input })).await.is_refusal("invalid_value", "input");
    }
}

/// EMB-05: too many inputs, one over-long of ten, and inputs of nothing.
#[tokio::test]
async fn inputs_have_limits() {
    let server = scripted().await;
    let refused = |input: Value| server.post("/v1/embeddings", json!({ "input": input }));
    refused(json!(vec!["x"; 2049])).await.is_refusal("array_above_max_length", "input");
    let mut ten = vec!["x".to_owned(); 10];
    ten[6] = "y".repeat(5000);
    refused(json!(ten)).await.is_refusal("context_length_exceeded", "input");
    for input in [json!(""), json!([""]), json!(["a", ""])] {
        refused(input).await.is_refusal("invalid_value", "input");
    }
    refused(json!([])).await.is_refusal("empty_array", "input");
    server.post("/v1/embeddings", json!({})).await.is_refusal("missing_required_parameter", "input");
    assert_eq!(embed(&server, json!(vec!["x"; 2048])).await.len(), 2048);
}

/// llama-server's own form.
#[tokio::test]
async fn llama_servers_form_is_answered() {
    let server = scripted().await;
    let body = server.post("/embedding", json!({"content": ["ab", "c"], "embd_normalize": -1})).await.json();
    assert_eq!((&body[1]["index"], body[0]["embedding"][0].as_array().map(Vec::len)), (&json!(1), Some(16)));
}

/// A client that leaves takes its inputs along, and another's single input does not wait for thousands.
#[tokio::test]
async fn requests_take_turns_and_leave() {
    let server = Server::with(|setup| {
        setup.scripted().embeds = 1;
        setup.scripted().step_us = 50_000;
    })
    .await;
    // 8 inputs a batch: 2048 of them take longer than anybody waits.
    let (client, url) = (server.client.clone(), server.url("/v1/embeddings"));
    let large = tokio::spawn(client.post(url).json(&json!({ "input": vec!["xy"; 2048] })).send());
    queued(&server, 1).await;
    embed(&server, json!("z")).await;
    assert!(!large.is_finished(), "the single input waited for the many");
    large.abort();
    queued(&server, 0).await;
}

/// EMB-01: a batch of 300 comes in order and equals single calls to 1e-4.
#[tokio::test]
async fn a_batch_of_300_equals_single_calls() {
    let server = Server::with(|setup| tiny(setup, "tiny-bert")).await;
    let text = |i: usize| format!("Text {i} {}", "of the river and the house by it ".repeat(i % 9));
    let texts: Vec<String> = (0..300).map(text).collect();
    let batch = embed(&server, json!(texts)).await;
    assert_eq!((batch.len(), batch[0].len()), (300, 64));
    for (i, vector) in batch.iter().enumerate().step_by(7) {
        let single = embed(&server, json!(texts[i])).await.remove(0);
        assert!(distance(vector, &single) < rounding(1e-4), "text {i}");
        assert!((length(&single) - 1.0).abs() < 1e-4);
    }
    assert!(distance(&batch[1], &batch[2]) > 1e-3, "texts differ and so do vectors");
    // An encoder does not chat, and its limit is its own.
    server.chat("hello", json!({})).await.is_refusal("unsupported_operation", "model");
    server.complete(json!("hello"), json!({})).await.is_refusal("unsupported_operation", "model");
    let long = server.post("/v1/embeddings", json!({"input": ["a", "b ".repeat(3000)]})).await;
    long.is_refusal("context_length_exceeded", "input");
    assert!(long.text.contains("maximum context length is 512 tokens"), "{}", long.text);
}

/// Flash attention rounds keys and values to F16; a text alone, which is too short for it, is rounded so as well.
#[tokio::test]
async fn a_text_alone_is_rounded_as_in_company() {
    if !is_exact() {
        return;
    }
    let (rounded, exact) = futures_util::future::join(
        Server::with(|setup| tiny(setup, "tiny-bert")),
        Server::with(|setup| {
            tiny(setup, "tiny-bert");
            setup.engine.flash_attn = FlashAttn::Off;
        }),
    )
    .await;
    let texts: Vec<String> = (0..24).map(|i| format!("{i} {}", "of the river and the house ".repeat(i % 4))).collect();
    let company = embed(&rounded, json!(texts)).await;
    let (mut by_company, mut by_rounding) = (0.0_f32, 0.0_f32);
    for (text, in_company) in texts.iter().zip(&company) {
        let alone = embed(&rounded, json!(text)).await.remove(0);
        by_company = by_company.max(distance(&alone, in_company));
        by_rounding = by_rounding.max(distance(&alone, &embed(&exact, json!(text)).await[0]));
    }
    assert!(by_rounding > 0.0 && by_company < by_rounding, "company {by_company:e}, rounding {by_rounding:e}");
}

/// llama-server's form: among token ids, a text stands for its own tokens, without those that every text begins with.
#[tokio::test]
async fn a_text_among_token_ids_is_its_tokens() {
    let server = Server::with(|setup| tiny(setup, "tiny-bert")).await;
    let tokens = server.post("/tokenize", json!({ "content": "hello there" })).await.json()["tokens"].clone();
    let spelt: Vec<Value> = tokens.as_array().expect("tokens").clone();
    let all: Vec<Value> = [vec![json!(2)], spelt, vec![json!(3)]].concat();
    let vectors = embed(&server, json!([all, [2, "hello there", 3]])).await;
    assert!(distance(&vectors[0], &vectors[1]) < rounding(1e-4));
    let alone = embed(&server, json!([2, "hello there", 3])).await;
    assert!(alone.len() == 1 && distance(&alone[0], &vectors[0]) < rounding(1e-4));
}

/// Requests that share batches get what they get alone.
#[tokio::test]
async fn requests_beside_each_other_do_not_mix() {
    let server = Server::with(|setup| tiny(setup, "tiny-bert")).await;
    let texts: Vec<String> = (0..24).map(|i| format!("{i} {}", "word ".repeat(i * 5))).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.push(embed(&server, json!(text)).await.remove(0));
    }
    let together =
        futures_util::future::join_all(texts.iter().map(|text| embed(&server, json!([text, "x", text])))).await;
    for (alone, together) in alone.iter().zip(&together) {
        let most = rounding(1e-4);
        assert!(distance(alone, &together[0]) < most && distance(alone, &together[2]) < most);
    }
}

/// One file chats and embeds; long inputs of a causal model are computed in parts.
#[tokio::test]
async fn a_chat_model_embeds_when_asked_to() {
    for name in ["tiny-llama", "tiny-gemma2", "tiny-mamba", "tiny-jamba"] {
        let server = Server::with(|setup| {
            tiny(setup, name);
            setup.engine.embeddings = EmbedMode::On;
        })
        .await;
        let long = "the house by the river ".repeat(40);
        let texts = json!(["a", long.clone(), "b c", format!("{long} x"), "d"]);
        let batch = embed(&server, texts.clone()).await;
        for (i, vector) in batch.iter().enumerate() {
            let single = embed(&server, texts[i].clone()).await.remove(0);
            assert!(distance(vector, &single) < rounding(2e-3), "{name}, text {i}: {}", distance(vector, &single));
        }
        let answer = server.chat("hello", json!({"max_tokens": 4})).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
    }
}

/// The operator's pooling wins; what the file can't do fails the load by name.
#[tokio::test]
async fn pooling_is_as_the_operator_says() {
    let mean = Server::with(|setup| tiny(setup, "tiny-bert")).await;
    let cls = Server::with(|setup| {
        tiny(setup, "tiny-bert");
        setup.engine.pooling = Some(Pooling::Cls);
    })
    .await;
    let (a, b) = (embed(&mean, json!("some words")).await, embed(&cls, json!("some words")).await);
    assert!(distance(&a[0], &b[0]) > 1e-3);
    let off = Server::with(|setup| {
        tiny(setup, "tiny-bert");
        setup.engine.embeddings = EmbedMode::Off;
    })
    .await;
    off.post("/v1/embeddings", json!({"input": "x"})).await.is_refusal("unsupported_operation", "model");
}

/// Without pooling `/embedding` gives each token's vector as the model made it, also of inputs computed in parts; their mean
/// is what mean pooling gives. No other endpoint has vectors then.
#[tokio::test]
async fn without_pooling_every_token_has_its_vector() {
    let start = |name: &'static str, pooling: Pooling| {
        Server::with(move |setup| {
            tiny(setup, name);
            setup.engine.embeddings = EmbedMode::On;
            setup.engine.pooling = Some(pooling);
        })
    };
    for (name, pooled) in [("tiny-bert", Pooling::Mean), ("tiny-llama", Pooling::Last)] {
        let (each, one) = (start(name, Pooling::None).await, start(name, pooled).await);
        let texts = json!(["some words", "the house by the river ".repeat(30), "x"]);
        let answer = each.post("/embedding", json!({ "input": texts })).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answer = answer.json();
        let raw = one.post("/embedding", json!({ "input": texts, "embd_normalize": -1 })).await.json();
        for (i, text) in texts.as_array().expect("texts").iter().enumerate() {
            let ask = json!({ "content": text, "add_special": true });
            let n_tokens = each.post("/tokenize", ask).await.json()["count"].as_u64().expect("a count") as usize;
            let vectors: Vec<Vec<f32>> = serde_json::from_value(answer[i]["embedding"].clone()).expect("vectors");
            assert_eq!(vectors.len(), n_tokens, "{name}, text {i}");
            let whole: Vec<Vec<f32>> = serde_json::from_value(raw[i]["embedding"].clone()).expect("one vector");
            let expected: Vec<f32> = match pooled {
                Pooling::Last => vectors.last().expect("a token").clone(),
                _ => (0..whole[0].len()).map(|k| vectors.iter().map(|v| v[k]).sum::<f32>() / n_tokens as f32).collect(),
            };
            let size = expected.iter().map(|x| x.abs()).fold(1.0, f32::max);
            let far = whole[0].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 2e-3 * size, "{name}, text {i}: {far}");
        }
        for (path, body) in [("/v1/embeddings", json!({"input": "x"})), ("/embeddings", json!({"input": "x"}))] {
            each.post(path, body).await.is_refusal("unsupported_operation", "model");
        }
        assert_eq!(each.post("/api/embed", json!({"input": "x"})).await.status, 400);
    }
}

/// A real encoder: cosine similarity of at least 0.999 with the reference of the package that carries it, for 100 texts,
/// in single calls and in batches. `make test` makes the model.
#[test]
fn minilm_has_the_vectors_of_its_package() {
    let (model, python) = (root().join(".models/minilm.gguf"), root().join(".venv/bin/python"));
    if !model.exists() || !python.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not there: `make test`", model.display());
        eprintln!("skipped: {} is not there (`make test` makes it)", model.display());
        return;
    }
    let served = Served::of(&[".models/minilm.gguf"]);
    let script = root().join("tests/clients/minilm.py");
    let output = Command::new(python).arg(script).arg("check").arg(&served.url).output().expect("python starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(" passed, 0 failed"), "{out}{err}");
}
