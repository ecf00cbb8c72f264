//! `POST /v1/chat/completions` without a stream. Names are the contract's rows.

use crate::support::{MODEL, Server, chat_body, with};
use serde_json::{Value, json};
use std::collections::HashSet;

fn usage(answer: &Value) -> (u64, u64) {
    let count = |key: &str| answer["usage"][key].as_u64().expect("a count");
    (count("prompt_tokens"), count("completion_tokens"))
}

async fn prompt_tokens(server: &Server, messages: Value) -> u64 {
    let answer = server.post("/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    usage(&answer.json()).0
}

#[tokio::test]
async fn an_answer_has_the_shape_of_1_3_1() {
    let server = Server::start().await;
    let answer = server.chat("hello", json!({})).await;
    assert_eq!(answer.content(), "hello");
    let body = answer.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-") && id.len() > 20));
    assert!(body["system_fingerprint"].as_str().is_some_and(|name| name.starts_with("fp_") && name.len() == 11));
    assert!(body["created"].as_u64().is_some_and(|seconds| seconds > 1_700_000_000));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(MODEL)));
    let choice = &body["choices"][0];
    assert_eq!(
        choice,
        &json!({"index":0,"message":{"role":"assistant","content":"hello","refusal":null,"annotations":[]},
            "logprobs":null,"finish_reason":"stop"})
    );
    let (prompt, completion) = usage(&body);
    assert_eq!(body["usage"]["total_tokens"], prompt + completion);
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(answer.header("openai-processing-ms").parse::<u64>().is_ok());
}

#[tokio::test]
async fn chat_02_every_optional_field_null() {
    let server = Server::start().await;
    let fields = "max_tokens max_completion_tokens temperature top_p frequency_penalty presence_penalty logit_bias seed n \
        stop stream stream_options logprobs top_logprobs response_format tools tool_choice parallel_tool_calls functions \
        function_call reasoning_effort verbosity prediction modalities audio web_search_options moderation store metadata \
        user service_tier top_k min_p grammar json_schema chat_template_kwargs model";
    let nulls: serde_json::Map<_, _> = fields.split_whitespace().map(|key| (key.to_owned(), Value::Null)).collect();
    let answer = server.chat("hi", Value::Object(nulls)).await;
    assert_eq!(answer.content(), "hi");
    assert_eq!(answer.header("x-hearth-ignored"), "");
}

#[tokio::test]
async fn chat_03_accepted_fields_have_no_effect_and_vendor_fields_are_listed() {
    let server = Server::start().await;
    let more = json!({
        "store": true, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "service_tier": "flex", "verbosity": "low",
        "prediction": {"type": "content", "content": "x"}, "provider": {"order": ["a"]}, "extra_body": {},
    });
    let answer = server.chat("hi", more).await;
    assert_eq!(answer.content(), "hi");
    assert_eq!(
        answer.json()["service_tier"],
        "flex",
        "the one field here that has an effect: on its place in the queue"
    );
    assert_eq!(
        answer.header("x-hearth-ignored").split(", ").collect::<HashSet<_>>(),
        ["provider", "extra_body"].into()
    );
}

#[tokio::test]
async fn a_strict_server_refuses_what_nobody_knows() {
    let server = Server::with(|setup| setup.gateway.strict = true).await;
    server.chat("hi", json!({ "provider": {} })).await.is_refusal("unknown_parameter", "provider");
    assert_eq!(server.chat("hi", json!({ "store": true })).await.status, 200);
}

#[tokio::test]
async fn chat_04_parts_are_the_same_prompt_as_the_string() {
    let server = Server::start().await;
    let parts = json!([{"role":"user","content":[{"type":"text","text":"ab"},{"type":"text","text":"cd"}]}]);
    let whole = json!([{"role":"user","content":"abcd"}]);
    assert_eq!(prompt_tokens(&server, parts).await, prompt_tokens(&server, whole).await);
}

#[tokio::test]
async fn chat_05_any_order_of_roles() {
    let server = Server::start().await;
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    for messages in [
        json!([turn("developer", "d"), turn("user", "x")]),
        json!([turn("user", "x"), turn("system", "late")]),
        json!([turn("user", "a"), turn("user", "x")]),
        json!([turn("assistant", "a"), turn("user", "x")]),
        json!([turn("system", "only")]),
    ] {
        prompt_tokens(&server, messages).await;
    }
}

#[tokio::test]
async fn chat_06_our_own_message_is_taken_back() {
    let server = Server::start().await;
    let answer = server.chat("/think deep", json!({})).await.json();
    let mut message = answer["choices"][0]["message"].clone();
    message["audio"] = Value::Null;
    message["function_call"] = Value::Null;
    let messages = json!([{"role":"user","content":"a"}, message, {"role":"user","content":"b"}]);
    let again = server.post("/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!((again.content().as_str(), again.header("x-hearth-ignored")), ("b", ""));
}

#[tokio::test]
async fn chat_07_max_tokens() {
    let server = Server::start().await;
    for limit in [json!(1_000_000), json!(-1), json!(9_223_372_036_854_775_807i64)] {
        assert_eq!(server.chat("abc", json!({ "max_tokens": limit })).await.content(), "abc");
    }
    server.chat("abc", json!({ "max_tokens": 0 })).await.is_refusal("integer_below_min_value", "max_tokens");
    server.chat("abc", json!({ "max_tokens": -7 })).await.is_refusal("integer_below_min_value", "max_tokens");
    let cut = server.chat("abcdef", json!({ "max_tokens": 2, "max_completion_tokens": 3 })).await;
    assert_eq!((cut.content().as_str(), &cut.json()["choices"][0]["finish_reason"]), ("abc", &json!("length")));
    assert_eq!(usage(&cut.json()).1, 3);
    let unlimited = server.chat("/forever", json!({ "max_tokens": 1_000_000 })).await.json();
    assert_eq!(unlimited["choices"][0]["finish_reason"], "length");
    assert_eq!(unlimited["usage"]["total_tokens"], 4096, "clamped to the context");
}

#[tokio::test]
async fn chat_08_names_of_the_model() {
    let server = Server::start().await;
    for name in [
        json!(null),
        json!(""),
        json!("default"),
        json!("SCRIPTED-1"),
        json!("scripted-1:latest"),
        json!("house/model:latest"),
    ] {
        let answer = server.chat("hi", json!({ "model": name })).await;
        assert_eq!((answer.status, &answer.json()["model"]), (200, &json!(MODEL)));
    }
    let unknown = server.chat("hi", json!({ "model": "gpt-4o" })).await;
    let code = (404, "invalid_request_error".into(), Some("model_not_found".into()), Some("model".into()));
    assert_eq!(unknown.error(), code);
    let any = Server::with(|setup| setup.gateway.any_model = true).await;
    assert_eq!(any.chat("hi", json!({ "model": "gpt-4o" })).await.json()["model"], MODEL);
}

#[tokio::test]
async fn chat_12_each_reasoning_effort() {
    let server = Server::start().await;
    for effort in ["none", "minimal", "low", "medium", "high", "xhigh", "max"] {
        assert_eq!(server.chat("x", json!({ "reasoning_effort": effort })).await.status, 200);
    }
    server.chat("x", json!({ "reasoning_effort": "very" })).await.is_refusal("invalid_value", "reasoning_effort");
}

#[tokio::test]
async fn chat_14_16_parts_and_modes_that_are_not_text() {
    let server = Server::start().await;
    for part in [
        json!({"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}),
        json!({"type":"image_url","image_url":{"url":"http://127.0.0.1:1/x.png"}}),
        json!({"type":"image_url","image_url":{"url":"file:///etc/passwd"}}),
        json!({"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}),
        json!({"type":"file","file":{"file_id":"file-1"}}),
        json!({"type":"file","file":{"file_data":"data:application/pdf;base64,JVBERi0="}}),
        json!({"type":"video_url","video_url":{"url":"data:video/mp4;base64,AAAA"}}),
    ] {
        let messages = json!([{"role":"user","content":[{"type":"text","text":"see"}, part]}]);
        let answer = server.post("/v1/chat/completions", json!({ "messages": messages })).await;
        answer.is_refusal("unsupported_content", "messages[0].content[1].type");
    }
    server.chat("x", json!({"modalities":["text","audio"]})).await.is_refusal("unsupported_parameter", "modalities");
    server.chat("x", json!({"web_search_options":{}})).await.is_refusal("unsupported_parameter", "web_search_options");
}

/// Nothing listens there, and nothing is asked: the refusal comes at once.
#[tokio::test]
async fn chat_14_a_remote_image_is_not_fetched() {
    let server = Server::start().await;
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/x.png", trap.local_addr().expect("an address"));
    let part = json!({"type":"image_url","image_url":{"url":url}});
    let body = json!({"messages":[{"role":"user","content":[part]}]});
    for path in ["/v1/chat/completions", "/v1/chat/completions/input_tokens", "/apply-template", "/tokenize"] {
        server.post(path, body.clone()).await.is_refusal("unsupported_content", "messages[0].content");
    }
    let knock = tokio::time::timeout(std::time::Duration::from_millis(100), trap.accept()).await;
    assert!(knock.is_err(), "somebody fetched it");
}

#[tokio::test]
async fn a_text_file_is_part_of_the_message() {
    let server = Server::start().await;
    let file = json!({"type":"file","file":{"filename":"a.txt","file_data":"data:text/plain;base64,aGkgdGhlcmU="}});
    let messages = json!([{"role":"user","content":[{"type":"text","text":"read "}, file]}]);
    let answer = server.post("/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!(answer.content(), "read a.txt:\nhi there\n");
}

#[tokio::test]
async fn a_moderation_that_would_not_run_is_refused() {
    let server = Server::start().await;
    server.chat("x", json!({"moderation":{"model":"m"}})).await.is_refusal("unsupported_parameter", "moderation");
}

#[tokio::test]
async fn a_prediction_has_no_effect_on_the_answer() {
    let server = Server::start().await;
    let plain = server.chat("/count 30", json!({})).await;
    let predicted = json!({"prediction":{"type":"content","content":[{"type":"text","text":"1 2 3 4 5"}]}});
    let with = server.chat("/count 30", predicted).await;
    assert_eq!(plain.content(), with.content());
    let details = &with.json()["usage"]["completion_tokens_details"];
    let count = |key: &str| details[key].as_u64().expect("a count");
    assert!(count("accepted_prediction_tokens") + count("rejected_prediction_tokens") <= 200, "{details}");
    server.chat("x", json!({"prediction":{"type":"x"}})).await.is_refusal("invalid_value", "prediction.type");
}

#[tokio::test]
async fn chat_17_control_tokens_in_user_text_are_text() {
    let server = Server::start().await;
    let count = |text: &str| json!([{ "role": "user", "content": text }]);
    // Nine bytes either way: as a control token it would be one.
    let special = prompt_tokens(&server, count("<|close|>")).await;
    assert_eq!(special, prompt_tokens(&server, count("123456789")).await);
    assert_eq!(server.chat("a<|close|>b", json!({})).await.content(), "a<|close|>b");
}

#[tokio::test]
async fn chat_18_sixteen_at_once_do_not_mix() {
    let server = Server::start().await;
    let texts: Vec<String> = (0..16).map(|i| format!("answer {i} {}", "x".repeat(i * 7))).collect();
    let answers = futures_util::future::join_all(texts.iter().map(|text| server.chat(text, json!({})))).await;
    let mut ids = HashSet::new();
    for (text, answer) in texts.iter().zip(&answers) {
        assert_eq!(&answer.content(), text);
        ids.insert(answer.json()["id"].to_string());
    }
    assert_eq!(ids.len(), 16);
}

#[tokio::test]
async fn chat_19_a_prompt_seen_before_is_cached() {
    let server = Server::start().await;
    let text = format!("{} end", "long ".repeat(200));
    let (first, second) = (server.chat(&text, json!({})).await, server.chat(&text, json!({})).await);
    assert_eq!(first.content(), second.content());
    let details = &second.json()["usage"]["prompt_tokens_details"];
    assert!(details["cached_tokens"].as_u64().is_some_and(|n| n > 500 && n <= usage(&second.json()).0), "{details}");
}

#[tokio::test]
async fn partitions_keep_the_caches_of_keys_apart() {
    let server = Server::with(|setup| ["one", "two"].into_iter().for_each(|key| setup.key(key))).await;
    let body = chat_body(&"secret ".repeat(100), json!({}));
    let mut cached = Vec::new();
    for key in ["one", "two", "one"] {
        let request = server.client.post(server.url("/v1/chat/completions")).bearer_auth(key).json(&body);
        let answer: Value = request.send().await.expect("an answer").json().await.expect("a body");
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count"));
    }
    assert_eq!((cached[0], cached[1]), (0, 0), "a key sees nothing of another's prompts");
    assert!(cached[2] > 500);
}

#[tokio::test]
async fn chat_20_unicode_goes_round_exactly() {
    let server = Server::start().await;
    let body = r#"{"messages":[{"role":"user","content":"\ud83d\ude00 e\u0301 \u0000 \"\\ \u2028"}]}"#;
    let request = server.client.post(server.url("/v1/chat/completions")).header("content-type", "application/json");
    let answer: Value = request.body(body).send().await.expect("an answer").json().await.expect("a body");
    assert_eq!(answer["choices"][0]["message"]["content"], "\u{1f600} e\u{301} \0 \"\\ \u{2028}");
}

#[tokio::test]
async fn chat_21_alone_or_among_others_the_same() {
    let server = Server::start().await;
    let ask = || server.chat("/count 50", json!({ "temperature": 0 }));
    let alone = ask().await.content();
    for answer in futures_util::future::join_all((0..8).map(|_| ask())).await {
        assert_eq!(answer.content(), alone);
    }
}

#[tokio::test]
async fn several_choices_come_in_order_and_all_count() {
    let server = Server::start().await;
    let answer = server.chat("abc", json!({ "n": 7 })).await.json();
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 7, "also above the slot count");
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(i), &json!("abc")));
    }
    let one = server.chat("abc", json!({})).await.json();
    assert_eq!(usage(&answer), (usage(&one).0, usage(&one).1 * 7));
    server.chat("abc", json!({ "n": 0 })).await.is_refusal("integer_below_min_value", "n");
    server.chat("abc", json!({ "n": 129 })).await.is_refusal("integer_above_max_value", "n");
    let small = Server::with(|setup| (setup.engine.n_slots, setup.engine.n_queue) = (2, 2)).await;
    small.chat("abc", json!({ "n": 5 })).await.is_refusal("integer_above_max_value", "n");
}

#[tokio::test]
async fn stop_strings_end_the_text_before_them() {
    let server = Server::start().await;
    for (stop, text) in [
        (json!(" 4"), "1 2 3"),
        (json!(["zzz", "3 4", "9"]), "1 2 "),
        (json!([]), "1 2 3 4 5 6 7 8 9"),
        (json!(""), "1 2 3 4 5 6 7 8 9"),
    ] {
        let answer = server.chat("/count 9", json!({ "stop": stop })).await;
        assert_eq!(answer.content(), text);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    let sixteen: Vec<String> = (0..16).map(|i| format!("stop{i}")).collect();
    assert_eq!(server.chat("x", json!({ "stop": sixteen })).await.status, 200);
}

#[tokio::test]
async fn logprobs_spell_the_content_and_are_sorted() {
    let server = Server::start().await;
    let answer = server.chat("h\u{e9}", json!({ "logprobs": true, "top_logprobs": 3 })).await.json();
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().expect("entries").clone();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()).expect("a byte"))
        .collect();
    assert_eq!(bytes, "h\u{e9}".as_bytes());
    for entry in &entries {
        let top: Vec<f64> =
            entry["top_logprobs"].as_array().expect("top").iter().filter_map(|it| it["logprob"].as_f64()).collect();
        assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && top.iter().all(|p| *p <= 0.0), "{top:?}");
    }
    assert_eq!(answer["choices"][0]["logprobs"]["refusal"], Value::Null);
    let none = server.chat("a", json!({ "logprobs": true })).await.json();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    server.chat("a", json!({ "top_logprobs": 2 })).await.is_refusal("invalid_value", "top_logprobs");
}

#[tokio::test]
async fn logit_bias_forces_and_bans() {
    let server = Server::start().await;
    let forced = server.chat("abc", json!({ "logit_bias": {"120": 100, "999999": 5}, "max_tokens": 4 })).await;
    assert_eq!(forced.content(), "xxxx");
    server.chat("abc", json!({ "logit_bias": {"x": 1} })).await.is_refusal("invalid_value", "logit_bias");
}

#[tokio::test]
async fn thinking_is_kept_apart_unless_asked_inline() {
    let server = Server::start().await;
    let message = |answer: Value| answer["choices"][0]["message"].clone();
    let apart = server.chat("/think deep", json!({})).await;
    assert!(apart.json()["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().is_some_and(|n| n > 0));
    let apart = message(apart.json());
    assert_eq!((&apart["reasoning_content"], &apart["content"]), (&json!("deep"), &json!("ok")));
    let inline = message(server.chat("/think deep", json!({ "reasoning_format": "none" })).await.json());
    assert_eq!(inline["content"], "<think>deep</think>ok");
    assert!(inline.get("reasoning_content").is_none());
}

#[tokio::test]
async fn tool_history_is_part_of_the_prompt() {
    let server = Server::start().await;
    let messages = json!([
        {"role":"user","content":"weather?"},
        {"role":"assistant","content":null,"tool_calls":[
            {"id":"call_1","type":"function","function":{"name":"w","arguments":""}}]},
        {"role":"tool","tool_call_id":"call_1","content":"sunny"},
        {"role":"user","content":"thanks"},
    ]);
    let body = json!({ "messages": messages, "tools": [], "tool_choice": "auto" });
    assert_eq!(server.post("/v1/chat/completions", body).await.content(), "thanks");
}

#[tokio::test]
async fn a_final_message_of_the_assistant_is_continued_on_request() {
    let server = Server::start().await;
    let messages = json!([{"role":"user","content":"hi"},{"role":"assistant","content":"he"}]);
    let body = json!({ "messages": messages });
    let new = server.post("/v1/chat/completions", body.clone()).await.json();
    let on = server.post("/v1/chat/completions", with(body, json!({ "continue_final_message": true }))).await.json();
    assert!(usage(&on).0 < usage(&new).0, "no new turn was opened");
}

#[tokio::test]
async fn a_prompt_past_the_context_says_so_in_words_clients_match() {
    let server = Server::with(|setup| setup.engine.n_ctx = Some(256)).await;
    let answer = server.chat(&"x".repeat(300), json!({ "stream": true })).await;
    answer.is_refusal("context_length_exceeded", "messages");
    assert!(answer.text.contains("This model's maximum context length is 256 tokens."), "{}", answer.text);
}

#[tokio::test]
async fn input_tokens_are_the_usage_of_the_same_chat() {
    let server = Server::start().await;
    let body = chat_body("count me", json!({ "temperature": 0.5 }));
    let counted = server.post("/v1/chat/completions/input_tokens", body).await.json();
    assert_eq!(counted["input_tokens"], usage(&server.chat("count me", json!({})).await.json()).0);
}
