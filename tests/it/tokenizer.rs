//! `/tokenize`, `/detokenize`, `/apply-template`. Names are the contract's rows.

use crate::support::Server;
use serde_json::{Value, json};

#[tokio::test]
async fn texts_become_tokens_under_both_names() {
    let server = Server::start().await;
    let content = server.post("/tokenize", json!({ "content": "hi" })).await.json();
    assert_eq!(content, json!({ "tokens": [104, 105], "count": 2, "max_model_len": 4096 }));
    let prompt = server.post("/tokenize", json!({ "prompt": "hi" })).await.json();
    assert_eq!(prompt["tokens"], json!([256, 104, 105]), "vLLM's field has BOS by default");
    let plain = server.post("/tokenize", json!({ "prompt": "hi", "add_special_tokens": false })).await.json();
    assert_eq!(plain["tokens"], content["tokens"]);
    server.post("/tokenize", json!({})).await.is_refusal("missing_required_parameter", "content");
    server.post("/tokenize", json!({ "content": 5 })).await.is_refusal("invalid_type", "content");
    assert_eq!(server.post("/tokenize", json!({ "content": "", "model": "nope" })).await.status, 404);
}

#[tokio::test]
async fn pieces_are_text_or_bytes() {
    let server = Server::start().await;
    let answer = server.post("/tokenize", json!({ "content": "a\u{e9}", "with_pieces": true })).await.json();
    assert_eq!(answer["tokens"], json!([{"id":97,"piece":"a"},{"id":195,"piece":[195]},{"id":169,"piece":[169]}]));
}

#[tokio::test]
async fn tok_02_specials_are_text_if_so_wanted() {
    let server = Server::start().await;
    let special = server.post("/tokenize", json!({ "content": "<|end|>" })).await.json();
    let text = server.post("/tokenize", json!({ "content": "<|end|>", "parse_special": false })).await.json();
    assert_eq!((&special["tokens"], &text["count"]), (&json!([257]), &json!(7)));
}

#[tokio::test]
async fn tok_03_a_bad_id_is_refused() {
    let server = Server::start().await;
    for tokens in [json!([999_999]), json!([-1]), json!([1.5]), json!(["a"]), json!("a")] {
        let answer = server.post("/detokenize", json!({ "tokens": tokens })).await;
        let (status, _, _, param) = answer.error();
        assert!(status == 400 && param.is_some_and(|param| param.starts_with("tokens")), "{}", answer.text);
    }
    server.post("/detokenize", json!({})).await.is_refusal("missing_required_parameter", "tokens");
}

#[tokio::test]
async fn detokenize_undoes_tokenize() {
    let server = Server::start().await;
    for text in ["", "hello", "\u{1f600} e\u{301}\n"] {
        let tokens = server.post("/tokenize", json!({ "content": text })).await.json()["tokens"].clone();
        let back = server.post("/detokenize", json!({ "tokens": tokens })).await.json();
        assert_eq!(back, json!({ "content": text, "prompt": text }));
    }
}

#[tokio::test]
async fn a_rendered_chat_has_the_tokens_of_its_usage() {
    let server = Server::start().await;
    let messages = json!([{"role":"system","content":"be brief"},{"role":"user","content":"hi"}]);
    let rendered = server.post("/apply-template", json!({ "messages": messages })).await.json();
    let text = rendered["prompt"].as_str().expect("a prompt").to_owned();
    let tokens = server.post("/tokenize", json!({ "content": text, "add_special": true })).await.json();
    let counted = server.post("/tokenize", json!({ "messages": messages })).await.json();
    let chat = server.post("/v1/chat/completions", json!({ "messages": messages })).await.json();
    assert_eq!(tokens["count"], chat["usage"]["prompt_tokens"]);
    assert_eq!(counted["count"], chat["usage"]["prompt_tokens"]);
    let open = server.post("/apply-template", json!({ "messages": messages, "add_generation_prompt": false })).await;
    assert!(
        open.json()["prompt"].as_str().is_some_and(|shorter| text.starts_with(shorter) && shorter.len() < text.len())
    );
    let tools = json!([{"type":"function","function":{"name":"f"}}]);
    let body = json!({ "messages": messages, "tools": tools, "tool_choice": "required" });
    let forced = server.post("/apply-template", body.clone()).await.json();
    let tokens = server.post("/tokenize", json!({ "content": forced["prompt"], "add_special": true })).await.json();
    assert_eq!(tokens["count"], server.post("/v1/chat/completions", body).await.json()["usage"]["prompt_tokens"]);
    let nameless =
        server.post("/apply-template", json!({ "messages": messages, "tools": [{"type":"function"}] })).await;
    nameless.is_refusal("missing_required_parameter", "tools[0].function");
    assert_eq!(
        server.post("/apply-template", json!({ "messages": [] })).await.json()["error"]["code"],
        Value::from("empty_array")
    );
}
