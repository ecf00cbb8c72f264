//! llama-server's own `/completion`, as its scripts and front ends use it.

use crate::support::{Server, with};
use serde_json::{Value, json};

fn body(more: Value) -> Value {
    with(json!({ "prompt": "one\n", "n_predict": 3 }), more)
}

async fn ask(server: &Server, more: Value) -> Value {
    let answer = server.post("/completion", body(more)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn stream(server: &Server, more: Value) -> Vec<Value> {
    let response = server.send("/completion", &with(body(more), json!({ "stream": true }))).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.expect("a stream");
    let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("an event")).expect("JSON");
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn an_answer_has_llama_servers_fields() {
    let server = Server::start().await;
    let answer = ask(&server, json!({ "seed": 7, "temperature": 0.5 })).await;
    for (key, value) in [
        ("index", json!(0)),
        ("content", json!("one")),
        ("tokens", json!([])),
        ("stop", json!(true)),
        ("stop_type", json!("limit")),
        ("stopping_word", json!("")),
        ("has_new_line", json!(false)),
        ("truncated", json!(false)),
        ("tokens_predicted", json!(3)),
        ("tokens_evaluated", json!(5)),
        ("prompt", json!("one\n")),
        ("model", json!("Scripted-1")),
    ] {
        assert_eq!(answer[key], value, "{key}");
    }
    assert_eq!((&answer["timings"]["prompt_n"], &answer["timings"]["predicted_n"]), (&json!(5), &json!(3)));
    let settings = &answer["generation_settings"];
    assert_eq!(
        (&settings["n_predict"], &settings["seed"], &settings["temperature"]),
        (&json!(3), &json!(7), &json!(0.5))
    );
    let whole = ask(&server, json!({ "n_predict": -1, "return_tokens": true })).await;
    assert_eq!((&whole["stop_type"], &whole["content"]), (&json!("eos"), &json!("one\n")));
    assert_eq!((&whole["tokens"], &whole["has_new_line"]), (&json!(b"one\n"), &json!(true)));
    let stopped = ask(&server, json!({ "n_predict": -1, "stop": ["e"] })).await;
    assert_eq!((&stopped["stop_type"], &stopped["stopping_word"]), (&json!("word"), &json!("e")));
    let full = ask(&server, json!({ "prompt": "/forever", "n_predict": -1 })).await;
    assert_eq!((&full["truncated"], &full["stop_type"]), (&json!(true), &json!("limit")), "the context is full");
    let cut = ask(&server, json!({ "response_fields": ["content", "generation_settings/n_predict"] })).await;
    assert_eq!(cut, json!({ "content": "one", "generation_settings/n_predict": 3 }));
}

#[tokio::test]
async fn a_prompt_may_be_text_tokens_or_both_and_there_may_be_several() {
    let server = Server::start().await;
    let plain = ask(&server, json!({})).await;
    for prompt in [json!(b"one\n"), json!(["one", 10]), json!([111, "ne\n"]), json!({ "prompt_string": "one\n" })] {
        assert_eq!(ask(&server, json!({ "prompt": prompt.clone() })).await["content"], plain["content"], "{prompt}");
    }
    // Only a text at the beginning gets BOS.
    let counted = |prompt: Value| {
        let server = &server;
        async move { ask(server, json!({ "prompt": prompt })).await["tokens_evaluated"].clone() }
    };
    assert_eq!((counted(json!(["one", 10])).await, counted(json!([111, "ne\n"])).await), (json!(5), json!(4)));
    let several = ask(&server, json!({ "prompt": ["one\n", [116, 119, 111], ["t", 119, "o"]], "n": 2 })).await;
    let several = several.as_array().expect("an array");
    let said: Vec<&str> = several.iter().filter_map(|answer| answer["content"].as_str()).collect();
    assert_eq!(said, ["one", "one", "two", "two", "two", "two"]);
    let indexes: Vec<u64> = several.iter().filter_map(|answer| answer["index"].as_u64()).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4, 5]);
    let answer = server.post("/completion", json!({ "prompt": [111, "x", 100_000_000] })).await;
    answer.is_refusal("invalid_value", "prompt");
    let answer = server.post("/completion", json!({ "prompt": [1, "x".repeat(100_000)] })).await;
    answer.is_refusal("context_length_exceeded", "prompt");
    let media = json!({ "prompt_string": "x", "multimodal_data": ["AQID"] });
    let answer = server.post("/completion", json!({ "prompt": media })).await;
    answer.is_refusal("unsupported_content", "prompt.multimodal_data");
}

#[tokio::test]
async fn a_stream_adds_up_to_the_whole_answer() {
    let server = Server::start().await;
    let more = json!({ "prompt": "h\u{e9}y\n", "n_predict": -1, "n_probs": 2, "return_tokens": true });
    let whole = ask(&server, more.clone()).await;
    let events = stream(&server, more).await;
    let (last, pieces) = events.split_last().expect("events");
    assert!(pieces.iter().all(|event| event["stop"] == false && event.get("stop_type").is_none()));
    assert_eq!((&last["stop"], &last["content"], &last["stop_type"]), (&json!(true), &json!(""), &json!("eos")));
    let joined = |key: &str| -> Vec<Value> {
        events.iter().filter_map(|event| event[key].as_array()).flatten().cloned().collect()
    };
    let said: String = events.iter().filter_map(|event| event["content"].as_str()).collect();
    assert_eq!(said, whole["content"]);
    assert_eq!(joined("tokens"), whole["tokens"].as_array().expect("ids").as_slice());
    assert_eq!(
        joined("completion_probabilities"),
        whole["completion_probabilities"].as_array().expect("entries").as_slice()
    );
    let ids: Vec<&Value> =
        whole["completion_probabilities"].as_array().expect("entries").iter().map(|it| &it["id"]).collect();
    assert_eq!(json!(ids), whole["tokens"]);
    assert_eq!(last["timings"]["predicted_n"], whole["timings"]["predicted_n"]);
    let told = stream(&server, json!({ "timings_per_token": true, "return_progress": true })).await;
    assert!(told[0]["prompt_progress"]["total"].is_u64(), "{}", told[0]);
    assert!(told.iter().all(|event| event["timings"]["prompt_n"].is_u64()));
}

/// SillyTavern and scripts ban words by their text.
#[tokio::test]
async fn a_bias_may_be_of_a_text() {
    let server = Server::start().await;
    let banned = ask(&server, json!({ "logit_bias": [["e", false]], "n_probs": 1 })).await;
    let by_id = ask(&server, json!({ "logit_bias": [[101, -100]], "n_probs": 1 })).await;
    let as_object = ask(&server, json!({ "logit_bias": { "e": -100 }, "n_probs": 1 })).await;
    assert_eq!(banned["completion_probabilities"], by_id["completion_probabilities"]);
    assert_eq!(banned["completion_probabilities"], as_object["completion_probabilities"]);
    let long = server.post("/completion", body(json!({ "logit_bias": [["x".repeat(2000), 1]] }))).await;
    long.is_refusal("array_above_max_length", "logit_bias");
    let refused = server.post("/completion", body(json!({ "post_sampling_probs": true }))).await;
    refused.is_refusal("unsupported_parameter", "post_sampling_probs");
    let grammar = server.post("/completion", body(json!({ "grammar": "root ::= (" }))).await;
    assert_eq!(grammar.error().3.as_deref(), Some("grammar"));
}
