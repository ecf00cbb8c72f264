//! `POST /v1/messages` and `/v1/messages/count_tokens`. Names are the contract's rows (ANTH-), and section 2's rules.

use crate::support::{Answer, MODEL, Server, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn body(text: &str, more: Value) -> Value {
    with(json!({ "model": MODEL, "max_tokens": 1000, "messages": [{ "role": "user", "content": text }] }), more)
}

fn tools(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "name": name, "input_schema": { "type": "object" } })).collect()
}

/// (status, type) of an error in Anthropic's envelope.
fn error(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), "application/json", "{}", answer.text);
    let body = answer.json();
    assert_eq!(
        body.as_object().map(|it| it.keys().cloned().collect()),
        Some(vec!["type".to_owned(), "error".to_owned(), "request_id".to_owned()])
    );
    assert_eq!(body["type"], "error");
    assert_eq!(body["request_id"], answer.header("request-id"));
    assert!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    (answer.status, body["error"]["type"].as_str().unwrap_or_default().to_owned())
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// The events of a stream; each must have its `event:` line.
async fn events(server: &Server, body: Value) -> Vec<Value> {
    let response = server.send(PATH, &with(body, json!({ "stream": true }))).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    parse(&response.text().await.expect("a whole stream"))
}

fn parse(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n") && !text.contains("[DONE]"), "{text}");
    let read = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(Some(name), data["type"].as_str().map(|kind| format!("event: {kind}")).as_deref());
        data
    };
    text.split_terminator("\n\n").map(read).collect()
}

/// What a client puts together from the events: the message of a whole answer.
fn assembled(events: &[Value]) -> Value {
    let mut message = events[0]["message"].clone();
    let mut inputs: Vec<String> = Vec::new();
    for event in &events[1..] {
        let index = event["index"].as_u64().unwrap_or(0) as usize;
        let delta = &event["delta"];
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert_eq!(message["content"].as_array().map(Vec::len), Some(index), "blocks in order");
                message["content"].as_array_mut().expect("content").push(event["content_block"].clone());
                inputs.push(String::new());
            }
            "content_block_delta" => {
                assert_eq!(index + 1, inputs.len(), "the last block is the open one");
                let block = &mut message["content"][index];
                for key in ["text", "thinking", "signature"] {
                    if let Some(more) = delta[key].as_str() {
                        block[key] = format!("{}{more}", block[key].as_str().expect("a text")).into();
                    }
                }
                inputs[index].push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            "content_block_stop" if !inputs[index].is_empty() => {
                message["content"][index]["input"] = serde_json::from_str(&inputs[index]).expect("the input's JSON");
            }
            "message_delta" => {
                message["stop_reason"] = delta["stop_reason"].clone();
                message["stop_sequence"] = delta["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    assert_eq!(events.last().expect("events")["type"], "message_stop");
    message
}

#[tokio::test]
async fn a_message_has_the_shape_of_section_2() {
    let server = Server::start().await;
    let answer = server.post(&format!("{PATH}?beta=true"), body("hello", json!({}))).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert!(answer.header("request-id").starts_with("req_"));
    let mut message = answer.json();
    assert!(message["id"].take().as_str().is_some_and(|id| id.starts_with("msg_") && id.len() == 28));
    let n = message["usage"]["input_tokens"].take();
    assert_eq!(
        message,
        json!({"id":null,"type":"message","role":"assistant","model":MODEL,"content":[{"type":"text","text":"hello"}],
            "stop_reason":"end_turn","stop_sequence":null,
            "usage":{"input_tokens":null,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":6}})
    );
    let counted = server.post(COUNT, json!({"messages":[{"role":"user","content":"hello"}]})).await;
    assert_eq!(counted.json(), json!({ "input_tokens": n }), "count_tokens is the usage of the real call");
    let empty = server.post(PATH, body("/count 0", json!({}))).await.json();
    assert_eq!((&empty["content"], &empty["stop_reason"]), (&json!([]), &json!("end_turn")));
}

#[tokio::test]
async fn usage_splits_the_cached_part() {
    let server = Server::start().await;
    let text = "long ".repeat(200);
    let first = server.post(PATH, body(&text, json!({}))).await.json()["usage"].clone();
    let second = server.post(PATH, body(&text, json!({}))).await.json()["usage"].clone();
    let count = |usage: &Value, key: &str| usage[key].as_u64().expect("a count");
    assert!(count(&second, "cache_read_input_tokens") > 500);
    let sum = count(&second, "input_tokens") + count(&second, "cache_read_input_tokens");
    assert_eq!(sum, count(&first, "input_tokens"));
}

#[tokio::test]
async fn anth_01_stop_sequences() {
    let server = Server::start().await;
    for stream in [false, true] {
        let asked = body("/count 9", json!({ "stop_sequences": ["zzz", " 4"] }));
        let message =
            if stream { assembled(&events(&server, asked).await) } else { server.post(PATH, asked).await.json() };
        assert_eq!(message["content"], json!([{"type":"text","text":"1 2 3"}]));
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!(" 4")));
    }
    let cut = server.post(PATH, body("abcdef", json!({ "max_tokens": 3 }))).await.json();
    assert_eq!((&cut["stop_reason"], &cut["content"][0]["text"]), (&json!("max_tokens"), &json!("abc")));
    let clamped = server.post(PATH, body("/forever", json!({ "max_tokens": 1_000_000 }))).await.json();
    assert_eq!(clamped["stop_reason"], "max_tokens", "clamped to the context");
    let probe = server.post(PATH, body("quota", json!({ "max_tokens": 1 }))).await.json();
    assert_eq!((&probe["content"][0]["text"], &probe["usage"]["output_tokens"]), (&json!("q"), &json!(1)));
}

/// FAULT-10, FAULT-11: `parse` wants the `event:` line, `assembled` the start first, also before half a code point.
#[tokio::test]
async fn a_stream_is_the_whole_message() {
    let server = Server::start().await;
    let two = "so:\n/call f {\"x\": [1, \"\u{e9}\"]}\n/call g {}";
    let bytes = "/bytes 240 159 152 128 33";
    for (text, more) in [
        ("hello", json!({})),
        ("/think deep thought", json!({})),
        ("/count 0", json!({})),
        (bytes, json!({})),
        (two, json!({ "tools": tools(&["f", "g"]) })),
    ] {
        let events = events(&server, body(text, more.clone())).await;
        assert_eq!(events[0]["type"], "message_start", "first, always");
        assert_eq!(events[0]["message"]["content"], json!([]));
        let whole = server.post(PATH, body(text, more)).await.json();
        let mut streamed = assembled(&events);
        for key in ["id", "usage"] {
            streamed[key] = whole[key].clone();
        }
        // Every answer's calls have ids of their own.
        let mut expected = whole.clone();
        for (i, block) in expected["content"].as_array_mut().expect("content").iter_mut().enumerate() {
            if block["type"] == "tool_use" {
                block["id"] = streamed["content"][i]["id"].clone();
            }
        }
        assert_eq!(streamed, expected, "{text}");
    }
}

#[tokio::test]
async fn anth_04_thinking_has_a_signature_and_is_taken_back() {
    let server = Server::start().await;
    let asked = body("/think deep", json!({ "thinking": { "type": "enabled", "budget_tokens": 2048 } }));
    let message = assembled(&events(&server, asked).await);
    let content = message["content"].clone();
    assert_eq!((&content[0]["type"], &content[0]["thinking"]), (&json!("thinking"), &json!("deep")));
    assert!(content[0]["signature"].as_str().is_some_and(|text| !text.is_empty()));
    assert_eq!(content[1], json!({"type":"text","text":"ok"}));
    let messages = json!([{"role":"user","content":"a"}, message, {"role":"user","content":"b"}]);
    let again = server.post(PATH, json!({ "max_tokens": 9, "messages": messages })).await;
    assert_eq!((again.status, again.header("x-hearth-ignored")), (200, ""), "{}", again.text);
    assert_eq!(again.json()["content"][0]["text"], "b");
    for thinking in ["adaptive", "disabled", "between_tools"] {
        assert_eq!(server.post(PATH, body("x", json!({ "thinking": { "type": thinking } }))).await.status, 200);
    }
    let wrong = server.post(PATH, body("x", json!({ "thinking": { "type": "hard" } }))).await;
    assert_eq!(error(&wrong), (400, "invalid_request_error".into()));
    assert!(self::message(&wrong).contains("thinking.type"));
}

#[tokio::test]
async fn anth_05_a_prefill_is_continued_and_not_repeated() {
    let server = Server::start().await;
    let messages = json!([{"role":"user","content":"one"},{"role":"assistant","content":"two"}]);
    let count = |messages: Value| {
        let server = &server;
        async move { server.post(COUNT, json!({ "messages": messages })).await.json()["input_tokens"].as_u64() }
    };
    let answer = server.post(PATH, json!({ "max_tokens": 99, "messages": messages })).await;
    // The scripted model answers the last user message; the assistant's words are not in it again.
    assert_eq!(answer.json()["content"], json!([{"type":"text","text":"one"}]));
    let closed =
        json!([{"role":"user","content":"one"},{"role":"assistant","content":"two"},{"role":"user","content":""}]);
    assert!(count(messages).await < count(closed).await, "the turn stays open");
}

#[tokio::test]
async fn anth_06_pings_while_nothing_is_said() {
    let server = Server::with(|setup| {
        setup.http.ping_interval = std::time::Duration::from_millis(30);
        setup.scripted().prompt_token_us = 2000;
    })
    .await;
    let events = events(&server, body(&"x".repeat(200), json!({}))).await;
    assert_eq!(events[0]["type"], "message_start");
    assert!(events.iter().any(|event| *event == json!({"type":"ping"})));
    let others: Vec<Value> = events.into_iter().filter(|event| event["type"] != "ping").collect();
    assert_eq!(assembled(&others)["content"][0]["text"], "x".repeat(200));
}

#[tokio::test]
async fn anth_07_images_and_documents_that_can_not_be_read() {
    let server = Server::start().await;
    let image = |source: Value| json!({ "type": "image", "source": source });
    let pdf = json!({"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0="}});
    let png = json!({"type":"base64","media_type":"image/png","data":"AQID"});
    let result = json!({"type":"tool_result","tool_use_id":"toolu_1","content":[image(png.clone())]});
    for (block, place) in [
        (image(png), "messages[0].content[1].type"),
        (image(json!({"type":"url","url":"http://127.0.0.1:1/x.png"})), "messages[0].content[1].type"),
        (pdf, "messages[0].content[1].type"),
        (result, "messages[0].content[1].content[0].type"),
    ] {
        let messages = json!([{"role":"user","content":[{"type":"text","text":"see"}, block]}]);
        for (path, stream) in [(PATH, false), (PATH, true), (COUNT, false)] {
            let answer = server.post(path, json!({"max_tokens":9,"messages":messages,"stream":stream})).await;
            assert_eq!(error(&answer), (400, "invalid_request_error".into()));
            assert!(message(&answer).contains(place), "{}", answer.text);
        }
    }
    let plain = json!({"type":"document","source":{"type":"text","media_type":"text/plain","data":"inline"}});
    let answer = server.post(PATH, json!({"max_tokens":99,"messages":[{"role":"user","content":[plain]}]})).await;
    assert_eq!(answer.json()["content"][0]["text"], "inline");
}

#[tokio::test]
async fn anth_09_claude_names_mean_what_is_served() {
    let server = Server::start().await;
    for name in ["claude-sonnet-4-5", "Claude-3-5-haiku-latest", "scripted-1:latest", "default"] {
        let answer = server.post(PATH, body("x", json!({ "model": name }))).await;
        assert_eq!((answer.status, &answer.json()["model"]), (200, &json!(MODEL)), "{name}");
        assert_eq!(server.post(COUNT, body("x", json!({ "model": name }))).await.status, 200);
    }
    let unknown = server.post(PATH, body("x", json!({ "model": "gpt-4o" }))).await;
    assert_eq!(error(&unknown), (404, "not_found_error".into()));
    assert_eq!(server.chat("x", json!({ "model": "claude-sonnet-4-5" })).await.status, 404, "only on this path");
}

#[tokio::test]
async fn anth_11_server_tools_are_refused_by_name() {
    let server = Server::start().await;
    for kind in ["web_search_20250305", "bash_20250124", "text_editor_20250728", "computer_20250124"] {
        let answer = server.post(PATH, body("x", json!({"tools":[{"type":kind,"name":"x"}]}))).await;
        assert_eq!(error(&answer), (400, "invalid_request_error".into()));
        assert!(message(&answer).contains(kind) && message(&answer).contains("tools[0].type"));
    }
}

#[tokio::test]
async fn anth_13_two_calls_then_their_results() {
    let server = Server::start().await;
    let more = json!({ "tools": tools(&["f", "g"]), "tool_choice": { "type": "auto" } });
    let asked = body("/call f {\"b\":1,\"a\":2}\n/call g {}", more.clone());
    let message = assembled(&events(&server, asked).await);
    assert_eq!(message["stop_reason"], "tool_use");
    let calls: Vec<&Value> =
        message["content"].as_array().expect("content").iter().filter(|it| it["type"] == "tool_use").collect();
    assert_eq!((&calls[0]["name"], &calls[1]["name"]), (&json!("f"), &json!("g")));
    assert_eq!((calls[0]["input"].to_string().as_str(), &calls[1]["input"]), ("{\"b\":1,\"a\":2}", &json!({})));
    assert!(calls.iter().all(|call| call["id"].as_str().is_some_and(|id| id.starts_with("toolu_"))));
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let result = |i: usize| json!({"type":"tool_result","tool_use_id":calls[i]["id"],"content":format!("result {i}")});
    let messages = json!([
        {"role":"user","content":"go"},
        {"role":"assistant","content":message["content"]},
        {"role":"user","content":[result(0), result(1), {"type":"text","text":"and now?"}]},
    ]);
    let answer = server.post(PATH, with(json!({ "max_tokens": 99, "messages": messages }), more)).await;
    assert_eq!((answer.status, &answer.json()["content"][0]["text"]), (200, &json!("and now?")), "{}", answer.text);
}

#[tokio::test]
async fn forced_calls_and_one_at_most() {
    let server = Server::start().await;
    let call = |choice: Value| {
        let asked = body("please", json!({ "tools": tools(&["f", "g"]), "tool_choice": choice }));
        let server = &server;
        async move { server.post(PATH, asked).await.json() }
    };
    let any = call(json!({"type":"any"})).await;
    assert_eq!((&any["stop_reason"], &any["content"][0]["name"]), (&json!("tool_use"), &json!("f")));
    let named = call(json!({"type":"tool","name":"g","disable_parallel_tool_use":true})).await;
    assert_eq!(named["content"][0]["name"], "g");
    assert_eq!(named["content"].as_array().map(Vec::len), Some(1));
    let none = call(json!({"type":"none"})).await;
    assert_eq!((&none["stop_reason"], &none["content"][0]["text"]), (&json!("end_turn"), &json!("please")));
}

#[tokio::test]
async fn anth_14_loading_full_and_errors_of_every_kind() {
    let loading = Server::with(|setup| {
        setup.while_loading = true;
        setup.scripted().load_ms = 60_000;
    })
    .await;
    for path in [PATH, COUNT] {
        let answer = loading.post(path, body("x", json!({}))).await;
        assert_eq!(error(&answer), (529, "overloaded_error".into()));
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| (1..=5).contains(&seconds)));
    }
    let server = Server::with(|setup| {
        setup.key("k");
        (setup.engine.n_slots, setup.engine.n_queue) = (1, 1);
        setup.scripted().step_us = 10_000;
    })
    .await;
    let ask = |path: &'static str, body: Value| {
        let request = server.client.post(server.url(path)).header("x-api-key", "k").json(&body);
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    let keyless = server.post(PATH, body("x", json!({}))).await;
    assert_eq!(error(&keyless), (401, "authentication_error".into()));
    assert_eq!(keyless.header("www-authenticate"), "Bearer");
    assert_eq!(error(&ask("/v1/messages/batches", json!({})).await), (404, "not_found_error".into()));
    let get = server.client.get(server.url(PATH)).bearer_auth("k").send().await.expect("an answer");
    let get = Answer::of(get).await;
    assert_eq!((error(&get), get.header("allow")), ((405, "invalid_request_error".into()), "POST"));
    let too_long = ask(PATH, body(&"x".repeat(9000), json!({}))).await;
    assert_eq!(error(&too_long), (400, "invalid_request_error".into()));
    let text = message(&too_long);
    assert!(text.starts_with("prompt is too long: ") && text.ends_with(" tokens > 4096 maximum"), "{text}");
    let held = |_| {
        let body = body("/forever", json!({ "stream": true }));
        let request = server.client.post(server.url(PATH)).bearer_auth("k").json(&body);
        async { request.send().await.expect("a stream") }
    };
    let held = (held(0).await, held(1).await);
    let full = ask(PATH, body("x", json!({}))).await;
    assert_eq!(error(&full), (529, "overloaded_error".into()));
    assert!(full.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1));
    drop(held);
}

#[tokio::test]
async fn wrong_bodies_are_refused_by_name_before_any_stream() {
    let server = Server::start().await;
    for (more, named) in [
        (json!({"max_tokens":null}), "max_tokens"),
        (json!({"max_tokens":0}), "max_tokens"),
        (json!({"messages":[]}), "messages"),
        (json!({"temperature":"hot"}), "temperature"),
        (json!({"stop_sequences":"x"}), "stop_sequences"),
        (json!({"tool_choice":{"type":"any"}}), "tool_choice"),
        (json!({"mcp_servers":[{"type":"url","url":"x","name":"y"}]}), "mcp_servers"),
        (json!({"messages":[{"role":"user","content":[{"type":"hologram"}]}]}), "messages[0].content[0].type"),
        (json!({"system":[{"type":"image"}]}), "system[0].type"),
    ] {
        let answer = server.post(PATH, body("x", with(more, json!({ "stream": true })))).await;
        assert_eq!(error(&answer), (400, "invalid_request_error".into()));
        assert!(message(&answer).contains(named), "{}", answer.text);
    }
    for raw in ["", "[]", "{", "{\"max_tokens\":1e999}"] {
        let request = server.client.post(server.url(PATH)).header("content-type", "application/json").body(raw);
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        assert_eq!(error(&answer), (400, "invalid_request_error".into()));
    }
    let form = server.client.post(server.url(PATH)).header("content-type", "text/plain").body("{}");
    let answer = Answer::of(form.send().await.expect("an answer")).await;
    assert_eq!(error(&answer), (415, "invalid_request_error".into()));
    let vendor = server.post(PATH, body("x", json!({ "vendor": 1, "metadata": { "user_id": "u" } }))).await;
    assert_eq!((vendor.status, vendor.header("x-hearth-ignored")), (200, "vendor"));
    let strict = Server::with(|setup| setup.gateway.strict = true).await;
    assert_eq!(error(&strict.post(PATH, body("x", json!({ "vendor": 1 }))).await).0, 400);
}

#[tokio::test]
async fn system_blocks_and_the_role_system() {
    let server = Server::start().await;
    let count = |body: Value| {
        let server = &server;
        async move { server.post(COUNT, body).await.json()["input_tokens"].as_u64().expect("a count") }
    };
    let user = json!({"role":"user","content":"x"});
    let blocks =
        json!([{"type":"text","text":"be ","cache_control":{"type":"ephemeral"}},{"type":"text","text":"brief"}]);
    let as_blocks = count(json!({"system":blocks,"messages":[user]})).await;
    assert_eq!(as_blocks, count(json!({"system":"be brief","messages":[user]})).await);
    assert_eq!(as_blocks, count(json!({"messages":[{"role":"system","content":"be brief"}, user]})).await);
    assert!(as_blocks > count(json!({ "messages": [user] })).await);
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event_and_the_end() {
    let server = Server::with(|setup| setup.scripted().step_us = 10_000).await;
    let asking = async {
        let response = server.send(PATH, &body("/forever", json!({ "stream": true }))).await;
        parse(&response.text().await.expect("a whole stream"))
    };
    let closing = async {
        server.busy(1).await;
        server.engine.close().await;
    };
    let (events, ()) = tokio::join!(asking, closing);
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert!(!events.iter().any(|event| event["type"] == "message_stop"));
}

#[tokio::test]
async fn output_config_constrains_the_text() {
    let server = Server::start().await;
    let refused = json!({"output_config":{"format":{"type":"json_schema","schema":{"type":"oddity"}}}});
    let answer = server.post(PATH, body("x", refused)).await;
    assert_eq!(error(&answer), (400, "invalid_request_error".into()));
    assert!(message(&answer).contains("output_config.format"), "{}", answer.text);
}
