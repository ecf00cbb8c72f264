//! `POST /v1/completions`. Names are the contract's rows.

use crate::support::{Server, with};
use serde_json::{Value, json};

#[tokio::test]
async fn an_answer_has_the_shape_of_1_6() {
    let server = Server::start().await;
    let body = server.complete(json!("hello"), json!({})).await.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"], json!([{"index":0,"text":"hello","logprobs":null,"finish_reason":"stop"}]));
    assert!(body["system_fingerprint"].is_string() && body["usage"]["prompt_tokens"].is_u64());
}

#[tokio::test]
async fn sixteen_tokens_unless_more_are_asked_for() {
    let server = Server::start().await;
    let answer = server.complete(json!("/forever"), json!({})).await.json();
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
    let unlimited = server.complete(json!("/count 30"), json!({ "max_tokens": -1 })).await;
    assert!(unlimited.content().ends_with("29 30"));
}

#[tokio::test]
async fn no_tokens_at_all_counts_the_prompt() {
    let server = Server::start().await;
    let one = server.complete(json!("abc"), json!({ "max_tokens": 1 })).await.json();
    let none = server.complete(json!("abc"), json!({ "max_tokens": 0 })).await.json();
    assert_eq!(none["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(none["usage"]["completion_tokens"], 0);
    assert_eq!(none["choices"], json!([{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]));
    let events = server.stream("/v1/completions", json!({ "prompt": "abc", "max_tokens": 0 })).await;
    assert!(events.is_done && events.finish(0) == ["length"]);
    let long = server.complete(json!("x".repeat(5000)), json!({ "max_tokens": 0 })).await;
    long.is_refusal("context_length_exceeded", "prompt");
}

#[tokio::test]
async fn comp_01_stop_seed_and_temperature_as_in_a_chat() {
    let server = Server::start().await;
    let more = json!({ "stop": " 4", "seed": -5, "temperature": 0, "max_tokens": 100 });
    assert_eq!(server.complete(json!("/count 9"), more).await.content(), "1 2 3");
}

/// The scripted model repeats what it was shown: both sides of the gap.
#[tokio::test]
async fn comp_02_a_suffix_makes_a_gap_to_fill() {
    let server = Server::start().await;
    let body = server.complete(json!(["a", "b"]), json!({ "suffix": "z" })).await.json();
    assert_eq!((&body["choices"][0]["text"], &body["choices"][1]["text"]), (&json!("az"), &json!("bz")));
    server.complete(json!([1]), json!({ "suffix": "y" })).await.is_refusal("invalid_value", "suffix");
    let more = json!({ "suffix": "y", "echo": true });
    server.complete(json!("x"), more).await.is_refusal("invalid_value", "suffix");
    let long = server.complete(json!("x"), json!({ "suffix": "y".repeat(5000) })).await;
    long.is_refusal("context_length_exceeded", "prompt");
}

#[tokio::test]
async fn infill_answers_as_llama_server_does() {
    let server = Server::start().await;
    let body = json!({ "input_prefix": "one\n", "input_suffix": "two", "n_predict": 5, "stop": [] });
    let answer = server.post("/infill", body.clone()).await.json();
    for (key, value) in [
        ("content", json!("one\nt")),
        ("stop", json!(true)),
        ("stop_type", json!("limit")),
        ("stopping_word", json!("")),
        ("has_new_line", json!(true)),
        ("tokens_predicted", json!(5)),
        ("tokens_evaluated", json!(11)),
        ("truncated", json!(false)),
    ] {
        assert_eq!(answer[key], value, "{key}");
    }
    let stopped = server.post("/infill", with(body.clone(), json!({ "stop": ["tw"], "n_predict": -1 }))).await.json();
    assert_eq!((&stopped["stop_type"], &stopped["stopping_word"]), (&json!("word"), &json!("tw")));
    let response = server.send("/infill", &with(body.clone(), json!({ "stream": true }))).await;
    let text = response.text().await.expect("a stream");
    let chunks: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("an event")).expect("a line of JSON"))
        .collect();
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["content"].as_str()).collect();
    assert_eq!(streamed, "one\nt");
    let stops: Vec<&Value> = chunks.iter().map(|chunk| &chunk["stop"]).collect();
    assert!(stops.iter().rev().skip(1).all(|stop| **stop == false), "{stops:?}");
    let last = chunks.last().expect("chunks");
    assert_eq!((&last["stop"], &last["tokens_predicted"], &last["content"]), (&json!(true), &json!(5), &json!("")));
    for extra in [
        json!({}),
        json!({"filename": "ok"}),
        json!({"filename": 123}),
        json!({"filename": 123, "text": "abc"}),
        json!({"filename": 123, "text": 456}),
    ] {
        let answer = server.post("/infill", with(body.clone(), json!({ "input_extra": [extra] }))).await;
        let (status, _, _, param) = answer.error();
        assert!(status == 400 && param.is_some_and(|param| param.starts_with("input_extra[0].")), "{}", answer.text);
    }
    server
        .post("/infill", json!({ "input_prefix": "a" }))
        .await
        .is_refusal("missing_required_parameter", "input_suffix");
}

/// What lm-evaluation-harness asks for.
#[tokio::test]
async fn the_prompts_tokens_are_scored_on_request() {
    let server = Server::start().await;
    for (prompt, max_tokens) in [(json!("h\u{e9}y"), 0), (json!("h\u{e9}y"), 1), (json!([104, 195, 169, 121]), 0)] {
        let more = json!({ "echo": true, "logprobs": 1, "max_tokens": max_tokens });
        let answer = server.complete(prompt.clone(), more.clone()).await.json();
        let choice = &answer["choices"][0];
        let said = ["", "h"][max_tokens];
        assert_eq!(choice["text"], format!("h\u{e9}y{said}"));
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
        let logprobs = &choice["logprobs"];
        let n = answer["usage"]["prompt_tokens"].as_u64().and_then(|n| usize::try_from(n).ok()).expect("a count");
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[key].as_array().map(Vec::len), Some(n + max_tokens), "{key}");
        }
        assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        let known = logprobs["token_logprobs"].as_array().expect("an array");
        assert!(known[1..].iter().all(|p| p.as_f64().is_some_and(|p| p < 0.0)), "{known:?}");
        let offsets: Vec<u64> =
            logprobs["text_offset"].as_array().expect("an array").iter().filter_map(Value::as_u64).collect();
        let expected = [0, 0, 1, 1, 2, 3];
        let bos = usize::from(prompt.is_array());
        assert_eq!(offsets, expected[bos..bos + n + max_tokens], "BOS has the place of what follows it");
        let body = with(json!({ "prompt": prompt }), more);
        let events = server.stream("/v1/completions", body).await;
        assert_eq!(events.text(0, "text"), format!("h\u{e9}y{said}"));
    }
}

#[tokio::test]
async fn the_prompt_is_repeated_on_request() {
    let server = Server::start().await;
    let answer = server.complete(json!(["h\u{e9}", "b"]), json!({ "echo": true, "n": 2 })).await.json();
    let texts: Vec<&Value> = answer["choices"].as_array().expect("choices").iter().map(|it| &it["text"]).collect();
    assert_eq!(texts, ["h\u{e9}h\u{e9}", "h\u{e9}h\u{e9}", "bb", "bb"]);
    let events = server.stream("/v1/completions", json!({ "prompt": ["h\u{e9}", "b"], "echo": true })).await;
    assert_eq!((events.text(0, "text").as_str(), events.text(1, "text").as_str()), ("h\u{e9}h\u{e9}", "bb"));
    let none = server.complete(json!("abc"), json!({ "echo": true, "max_tokens": 0 })).await;
    assert_eq!((none.content().as_str(), &none.json()["usage"]["completion_tokens"]), ("abc", &json!(0)));
}

#[tokio::test]
async fn the_best_of_several_are_the_answer() {
    let server = Server::start().await;
    let more = json!({ "n": 2, "best_of": 5, "logprobs": 1 });
    let answer = server.complete(json!(["aa", "b"]), more).await.json();
    let choices = answer["choices"].as_array().expect("choices");
    let texts: Vec<(&Value, &Value)> = choices.iter().map(|it| (&it["index"], &it["text"])).collect();
    let expected = [json!(0), json!(1), json!(2), json!(3)];
    for (i, (index, text)) in texts.iter().enumerate() {
        assert_eq!((*index, *text), (&expected[i], &json!(if i < 2 { "aa" } else { "b" })));
    }
    assert_eq!(choices.len(), 4);
    let one = server.complete(json!(["aa", "b"]), json!({})).await.json();
    let count = |answer: &Value, key: &str| answer["usage"][key].as_u64().expect("a count");
    assert_eq!(count(&answer, "completion_tokens"), count(&one, "completion_tokens") * 5, "all are counted");
    assert_eq!(count(&answer, "prompt_tokens"), count(&one, "prompt_tokens"));
    let hidden = server.complete(json!("aa"), json!({ "best_of": 3 })).await.json();
    assert_eq!(hidden["choices"], json!([{"index":0,"text":"aa","logprobs":null,"finish_reason":"stop"}]));
    server.complete(json!("x"), json!({ "n": 3, "best_of": 2 })).await.is_refusal("integer_below_min_value", "best_of");
    server.complete(json!("x"), json!({ "best_of": 2, "stream": true })).await.is_refusal("invalid_value", "best_of");
}

#[tokio::test]
async fn comp_04_an_empty_prompt_is_a_prompt() {
    let server = Server::start().await;
    assert_eq!(server.complete(json!(""), json!({})).await.status, 200);
}

#[tokio::test]
async fn comp_05_over_the_context() {
    let server = Server::with(|setup| setup.engine.n_ctx = Some(256)).await;
    for prompt in [json!("x".repeat(256)), json!("x".repeat(100_000)), json!(vec![65; 256])] {
        let answer = server.complete(prompt, json!({})).await;
        answer.is_refusal("context_length_exceeded", "prompt");
        assert!(answer.text.contains("maximum context length is 256 tokens"));
    }
    assert_eq!(server.complete(json!("x".repeat(254)), json!({})).await.json()["usage"]["total_tokens"], 256);
}

#[tokio::test]
async fn comp_07_tokens_that_are_not_text_have_keys_of_their_own() {
    let server = Server::start().await;
    let answer = server.complete(json!("a\u{e9}b"), json!({ "logprobs": 2 })).await.json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["token_logprobs"].as_array().map(Vec::len), Some(4));
    for top in logprobs["top_logprobs"].as_array().expect("an array") {
        assert!(top.as_object().is_some_and(|top| top.len() >= 2), "{top}");
    }
}

#[tokio::test]
async fn many_prompts_and_choices_are_numbered_prompt_first() {
    let server = Server::start().await;
    let answer = server.complete(json!(["aa", "bb", "cc"]), json!({ "n": 2 })).await.json();
    let texts: Vec<(&Value, &Value)> =
        answer["choices"].as_array().expect("choices").iter().map(|it| (&it["index"], &it["text"])).collect();
    let expected = ["aa", "aa", "bb", "bb", "cc", "cc"].map(|text| json!(text));
    for (i, (index, text)) in texts.iter().enumerate() {
        assert_eq!((*index, *text), (&json!(i), &expected[i]));
    }
    let single = server.complete(json!("aa"), json!({})).await.json();
    let count = |answer: &Value, key: &str| answer["usage"][key].as_u64().expect("a count");
    assert_eq!(count(&answer, "prompt_tokens"), count(&single, "prompt_tokens") * 3);
    assert_eq!(count(&answer, "completion_tokens"), count(&single, "completion_tokens") * 6);
}

#[tokio::test]
async fn token_ids_are_used_as_they_are() {
    let server = Server::start().await;
    let ids = json!([104, 105]);
    let answer = server.complete(ids, json!({})).await;
    assert_eq!((answer.content().as_str(), &answer.json()["usage"]["prompt_tokens"]), ("hi", &json!(2)));
    let two = server.complete(json!([[104], [105, 106]]), json!({})).await.json();
    assert_eq!((&two["choices"][0]["text"], &two["choices"][1]["text"]), (&json!("h"), &json!("ij")));
    for (prompt, code) in [
        (json!([]), "empty_array"),
        (json!([1, "a"]), "invalid_type"),
        (json!([1.5]), "invalid_type"),
        (json!([-1]), "integer_below_min_value"),
        (json!([999_999]), "invalid_value"),
        (json!(true), "invalid_type"),
    ] {
        server.complete(prompt, json!({})).await.is_refusal(code, "prompt");
    }
}

#[tokio::test]
async fn a_stream_has_text_chunks_and_an_end_for_each_choice() {
    let server = Server::start().await;
    let body = json!({ "prompt": ["one", "two"], "stream_options": { "include_usage": true }, "logprobs": 0 });
    let events = server.stream("/v1/completions", body).await;
    assert!(events.is_done);
    assert!(events.chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    for (index, text) in [(0, "one"), (1, "two")] {
        assert_eq!((events.text(index, "text").as_str(), events.finish(index)), (text, vec!["stop"]));
        let offsets: Vec<u64> = events
            .choices(index)
            .filter_map(|choice| choice["logprobs"]["text_offset"].as_array())
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        assert_eq!(offsets, [0, 1, 2]);
    }
    assert_eq!(events.chunks.last().map(|chunk| &chunk["choices"]), Some(&json!([])));
}
