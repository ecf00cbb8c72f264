//! What users of llama-server know beside OpenAI's shapes: its telemetry in answers, and settings of the same names.
//! Its own test suite is run outside of the repository.

use crate::support::served::Served;
use crate::support::{Answer, Server, chat_body, with};
use serde_json::{Value, json};

/// `timings` has no null, no negative number, and the rates follow from the counts.
fn check(timings: &Value, completion_tokens: &Value) {
    let all = timings.as_object().expect("timings");
    assert_eq!(all.len(), 9, "{timings}");
    assert!(all.values().all(|value| value.as_f64().is_some_and(|n| n >= 0.0 && n.is_finite())), "{timings}");
    assert_eq!(&timings["predicted_n"], completion_tokens);
}

#[tokio::test]
async fn whole_answers_and_counted_streams_have_timings() {
    let server = Server::start().await;
    let chat = server.chat("/count 4", json!({})).await.json();
    check(&chat["timings"], &chat["usage"]["completion_tokens"]);
    let counts = |key: &str| chat["timings"][key].as_u64().expect("a count");
    assert_eq!(counts("prompt_n") + counts("cache_n"), chat["usage"]["prompt_tokens"].as_u64().expect("a count"));
    let text = server.complete(json!("/count 4"), json!({})).await.json();
    check(&text["timings"], &text["usage"]["completion_tokens"]);
    let plain = server.stream_chat("/count 4", json!({})).await;
    assert!(plain.chunks.iter().all(|chunk| chunk.get("timings").is_none()), "nobody asked");
    let counted = server.stream_chat("/count 4", json!({"stream_options": {"include_usage": true}})).await;
    let last = counted.chunks.last().expect("a usage chunk");
    check(&last["timings"], &last["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn a_stream_tells_its_timings_and_its_progress_where_asked() {
    let server = Server::with(|setup| setup.engine.n_batch = 16).await;
    let more = json!({"timings_per_token": true, "return_progress": true});
    let system = "A good deal of text, which takes more than one batch of sixteen tokens to read.";
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": "/count 3"}]);
    let events = server.stream("/v1/chat/completions", with(json!({ "messages": messages }), more)).await;
    let progress: Vec<&Value> = events.chunks.iter().filter_map(|chunk| chunk.get("prompt_progress")).collect();
    let number = |value: &Value, key: &str| value[key].as_u64().expect("a number");
    let (first, last) = (progress.first().expect("progress"), progress.last().expect("progress"));
    assert_eq!(number(first, "processed"), number(first, "cache"), "first what was cached");
    assert_eq!(number(last, "processed"), number(last, "total"), "last the whole prompt");
    assert!(progress.windows(2).all(|pair| number(pair[0], "processed") < number(pair[1], "processed")));
    let with_text = events.chunks.iter().filter(|chunk| chunk["choices"][0]["delta"]["content"] != "");
    let timed: Vec<&Value> = with_text.filter_map(|chunk| chunk.get("timings")).collect();
    assert!(timed.len() > 2);
    let text = server.stream("/v1/completions", json!({"prompt": "/count 3", "return_progress": true})).await;
    assert!(text.chunks.iter().any(|chunk| chunk["prompt_progress"].is_object()));
    for field in ["timings_per_token", "return_progress"] {
        server.chat("hi", json!({ field: "yes" })).await.is_refusal("invalid_type", field);
    }
}

#[tokio::test]
async fn responses_tell_them_too() {
    let server = Server::start().await;
    let body = json!({"input": "/count 3", "stream": true, "timings_per_token": true, "return_progress": true});
    let text = Answer::of(server.send("/v1/responses", &body).await).await.text;
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let of = |kind: &str, key: &str| events.iter().any(|event| event["type"] == kind && event[key].is_object());
    assert!(of("response.in_progress", "prompt_progress"));
    assert!(of("response.output_text.delta", "timings"));
    assert!(of("response.completed", "timings"));
}

/// `--n-predict`, `--chat-template NAME`, `--reasoning`, and `/props`.
#[tokio::test]
async fn settings_stand_in_for_what_a_request_does_not_say() {
    let served =
        Served::of(&["models/stories260K.gguf", "--n-predict", "5", "--chat-template", "llama3", "--any-model"]);
    let client = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let sent = client.post(format!("{}{path}", served.url)).json(&body).send().await;
        sent.expect("an answer").json::<Value>().await.expect("JSON")
    };
    let count = |answer: &Value| answer["usage"]["completion_tokens"].as_u64();
    let chat = post("/v1/chat/completions", chat_body("Hi", json!({"ignore_eos": true}))).await;
    assert_eq!((count(&chat), &chat["choices"][0]["finish_reason"]), (Some(5), &json!("length")));
    let longer = post("/v1/chat/completions", chat_body("Hi", json!({"ignore_eos": true, "max_tokens": 9}))).await;
    assert_eq!(count(&longer), Some(9), "a default, not a limit");
    let shown = post("/apply-template", chat_body("Hi", json!({}))).await;
    let expected =
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(shown["prompt"], expected);
    // A template in llama.cpp's code can't show tools, so they are text; it can't leave a turn open either.
    let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]);
    let shown = post("/apply-template", chat_body("Hi", json!({ "tools": tools }))).await;
    assert!(shown["prompt"].as_str().is_some_and(|prompt| prompt.contains("look_up")), "{shown}");
    let open = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]);
    let open = post("/v1/chat/completions", json!({"messages": open, "continue_final_message": true})).await;
    assert_eq!(
        (&open["error"]["type"], &open["error"]["param"]),
        (&json!("invalid_request_error"), &json!("messages"))
    );
    let props = client.get(format!("{}/props", served.url)).send().await.expect("an answer");
    assert_eq!(props.json::<Value>().await.expect("JSON")["model_path"], "stories260K.gguf");
}

/// The operator's word on thinking, and the client's over it.
#[tokio::test]
async fn thinking_is_off_where_the_operator_says_so() {
    let template = "{{ messages[-1].content }}{% if enable_thinking %}[on]{% else %}[off]{% endif %}";
    let served =
        Served::of(&["models/stories260K.gguf", "--chat-template", template, "--reasoning", "off", "--any-model"]);
    let client = reqwest::Client::new();
    for (more, end) in [
        (json!({}), "[off]"),
        (json!({"reasoning_effort": "high"}), "[on]"),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), "[on]"),
    ] {
        let sent = client.post(format!("{}/apply-template", served.url)).json(&chat_body("Hi", more)).send().await;
        let shown: Value = sent.expect("an answer").json().await.expect("JSON");
        assert!(shown["prompt"].as_str().is_some_and(|prompt| prompt.ends_with(end)), "{shown}");
    }
}
