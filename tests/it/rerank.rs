//! Rerank, score and classify over HTTP: the contract's section 4.

use crate::embeddings::tiny;
use crate::support::Server;
use serde_json::{Value, json};

const PATHS: [&str; 6] = ["/v1/rerank", "/rerank", "/v2/rerank", "/reranking", "/v1/reranking", "/v1/rerank/"];

async fn scripted() -> Server {
    Server::with(|setup| setup.scripted().embeds = 2).await
}

/// RANK-01: sorted, the request's indices, documents where asked for; the same under every path.
#[tokio::test]
async fn documents_are_sorted_by_score() {
    let server = scripted().await;
    // The scripted score: the share of the query's bytes (and BOS) that the document has.
    let body = json!({
        "model": "default", "query": "abc", "documents": ["xyz", "abc", "ab"], "top_n": 2, "return_documents": true,
    });
    for path in PATHS {
        let answer = server.post(path, body.clone()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let body = answer.json();
        assert!(body["id"].as_str().is_some_and(|id| id.starts_with("rerank-")));
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("Scripted-1")));
        let results = body["results"].as_array().expect("results");
        assert_eq!(results.len(), 2);
        assert_eq!((&results[0]["index"], &results[0]["document"]), (&json!(1), &json!({"text": "abc"})));
        assert_eq!((&results[1]["index"], &results[1]["relevance_score"]), (&json!(2), &json!(0.5)));
        // BOS, query, END, document, END.
        assert_eq!(body["usage"], json!({"prompt_tokens": 26, "total_tokens": 26}));
        assert_eq!(body["meta"]["billed_units"]["search_units"], 1);
    }
    let answer = server.post("/v1/rerank", json!({"query": "abc", "documents": ["x", "b"], "top_n": 9})).await.json();
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer["results"][0].get("document"), None);
    let cut = json!({"query": "b", "documents": ["aab"], "max_tokens_per_doc": 2});
    assert_eq!(server.post("/v1/rerank", cut).await.json()["results"][0]["relevance_score"], 0.0);
}

/// RANK-02: documents as objects score the same; TEI's client gets a bare array.
#[tokio::test]
async fn objects_and_teis_form_score_the_same() {
    let server = scripted().await;
    let scores = |body: Value, key: &'static str| {
        let results =
            body.as_array().cloned().unwrap_or_else(|| body["results"].as_array().cloned().unwrap_or_default());
        results.iter().map(|entry| (entry["index"].clone(), entry[key].clone())).collect::<Vec<_>>()
    };
    let plain = json!({"query": "abc", "documents": ["a", "abc"]});
    let objects = json!({"query": "abc", "documents": [{"text": "a"}, {"text": "abc"}]});
    let plain = scores(server.post("/v1/rerank", plain).await.json(), "relevance_score");
    assert_eq!(scores(server.post("/v1/rerank", objects).await.json(), "relevance_score"), plain);
    let tei = server.post("/rerank", json!({"query": "abc", "texts": ["a", "abc"], "return_text": true})).await.json();
    assert_eq!(tei[0]["text"], "abc");
    assert_eq!(scores(tei, "score"), plain);
}

/// RANK-04: what LiteLLM's provider for Cohere sends, and what it reads of the answer.
#[tokio::test]
async fn litellms_form_is_answered() {
    let server = scripted().await;
    let body = json!({
        "model": "default", "query": "abc", "top_n": 2, "documents": ["xyz", "abc", "ab"], "return_documents": true,
    });
    let answer = server.post("/v1/rerank", body).await;
    assert_eq!((answer.status, answer.header("x-hearth-ignored")), (200, ""));
    let body = answer.json();
    assert!(body["id"].is_string() && body["meta"]["api_version"]["version"] == "1");
    let results = body["results"].as_array().expect("results");
    for (result, (index, text)) in results.iter().zip([(1, "abc"), (2, "ab")]) {
        assert_eq!((&result["index"], &result["document"]), (&json!(index), &json!({ "text": text })));
        assert!(result["relevance_score"].is_number());
    }
}

/// RANK-03: nothing to rank, and models that can't.
#[tokio::test]
async fn what_can_not_be_ranked_is_refused() {
    let server = scripted().await;
    let refused = |body: Value| server.post("/v1/rerank", body);
    refused(json!({"query": "q", "documents": []})).await.is_refusal("empty_array", "documents");
    refused(json!({"query": "q"})).await.is_refusal("missing_required_parameter", "documents");
    refused(json!({"documents": ["a"]})).await.is_refusal("missing_required_parameter", "query");
    refused(json!({"query": "q", "documents": ["a"], "top_n": 0})).await.is_refusal("integer_below_min_value", "top_n");
    let long = json!({"query": "q", "documents": ["a", "b".repeat(5000)]});
    refused(long).await.is_refusal("context_length_exceeded", "documents");
    // A reranker makes no embeddings, an embedder and a chat model don't rank.
    server.post("/v1/embeddings", json!({"input": "x"})).await.is_refusal("unsupported_operation", "model");
    let embedder = Server::with(|setup| setup.scripted().embeds = 1).await;
    for server in [embedder, Server::start().await] {
        let body = json!({"query": "q", "documents": ["a"]});
        server.post("/v1/rerank", body).await.is_refusal("unsupported_operation", "model");
        let body = json!({"text_1": "q", "text_2": "a"});
        server.post("/v1/score", body).await.is_refusal("unsupported_operation", "model");
    }
}

/// vLLM's score: one with each, or pair by pair.
#[tokio::test]
async fn scores_come_in_the_order_of_the_texts() {
    let server = scripted().await;
    let scores = async |body: Value| {
        let answer = server.post("/v1/score", body).await.json();
        answer["data"].as_array().expect("data").iter().map(|entry| entry["score"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(scores(json!({"text_1": "abc", "text_2": ["xyz", "abc"]})).await, [json!(0.0), json!(0.75)]);
    assert_eq!(scores(json!({"text_1": ["abc", "x"], "text_2": ["abc", "y"]})).await, [json!(0.75), json!(0.0)]);
    server.post("/score", json!({"text_1": ["a", "b"], "text_2": ["c"]})).await.is_refusal("invalid_value", "text_1");
}

/// A real head: scores do not depend on what shares the batch, and classes have the model's labels.
#[tokio::test]
async fn a_real_head_ranks_and_classifies() {
    let server = Server::with(|setup| tiny(setup, "tiny-rank")).await;
    let documents: Vec<String> = (0..40).map(|i| format!("Document {i} {}", "of rivers ".repeat(i % 12))).collect();
    let answer = server.post("/v1/rerank", json!({"query": "Which river?", "documents": documents})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    let results = body["results"].as_array().expect("results");
    let score = |entry: &Value| entry["relevance_score"].as_f64().expect("a number");
    assert!(results.windows(2).all(|pair| score(&pair[0]) >= score(&pair[1])));
    assert!(score(&results[0]) - score(&results[39]) > 1e-3, "the documents do not score alike");
    for entry in results.iter().step_by(9) {
        let document = &documents[entry["index"].as_u64().expect("an index") as usize];
        let single = server.post("/v1/rerank", json!({"query": "Which river?", "documents": [document]})).await.json();
        assert!((score(&single["results"][0]) - score(entry)).abs() < 1e-4);
    }
    let answer = server.post("/classify", json!({"input": ["some text", "another"]})).await.json();
    let first = &answer["data"][0];
    assert_eq!((&first["num_classes"], &answer["object"]), (&json!(2), &json!("list")));
    assert!(["relevant", "beside the point"].contains(&first["label"].as_str().expect("a label")));
    let sum: f64 = first["probs"].as_array().expect("probs").iter().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-5);
    server.chat("hello", json!({})).await.is_refusal("unsupported_operation", "model");
}

/// A model without a head can't be made to rank.
#[tokio::test]
async fn ranking_needs_a_head() {
    use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Pooling};
    let path = crate::support::served::root().join("models/tiny/tiny-bert.gguf");
    let mut config = EngineConfig::new(hearth::engine::config::ModelSource::Gguf(path));
    config.pooling = Some(Pooling::Rank);
    let engine = Engine::start(config, EngineMode::InProcess);
    let mut watch = engine.watch();
    let state = watch.wait_for(|state| matches!(state, EngineState::Failed { .. } | EngineState::Ready(_))).await;
    let state = state.expect("the engine lives").clone();
    assert!(matches!(&state, EngineState::Failed { reason } if reason.contains("classification head")), "{state:?}");
}
