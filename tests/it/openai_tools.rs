//! Tools of `POST /v1/chat/completions`. Names are the contract's rows.

use crate::support::{Events, Server, with};
use serde_json::{Value, json};
use std::collections::HashSet;

fn tool(name: &str) -> Value {
    json!({"type":"function","function":{"name":name,"description":"d","parameters":{"type":"object","properties":{}}}})
}

fn tools(more: Value) -> Value {
    with(json!({ "tools": [tool("f"), tool("g")] }), more)
}

fn choice(answer: &crate::support::Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["choices"][0].clone()
}

/// (name, arguments) of each call of a message.
fn calls(message: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let calls = message["tool_calls"].as_array().expect("calls");
    calls.iter().map(|call| (text(&call["function"]["name"]), text(&call["function"]["arguments"]))).collect()
}

/// The calls of a streamed choice put together as openai-python does; shapes are checked on the way.
fn streamed_calls(events: &Events, index: u64) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    let pieces = events.choices(index).filter_map(|choice| choice["delta"]["tool_calls"].as_array()).flatten();
    for piece in pieces {
        let at = piece["index"].as_u64().and_then(|at| usize::try_from(at).ok()).expect("an index");
        assert!(piece["function"]["arguments"].is_string(), "a function in every delta: {piece}");
        if at == calls.len() {
            assert!(piece["id"].as_str().is_some_and(|id| id.starts_with("call_") && id.len() == 29), "{piece}");
            assert_eq!((&piece["type"], &piece["function"]["arguments"]), (&json!("function"), &json!("")));
            calls.push(piece.clone());
        } else {
            assert_eq!(at + 1, calls.len(), "a call begins when the one before it is complete: {piece}");
            assert!(piece.get("id").is_none() && piece.get("type").is_none(), "{piece}");
            assert!(piece["function"].get("name").is_none(), "{piece}");
            let known = calls[at]["function"]["arguments"].as_str().unwrap_or_default();
            calls[at]["function"]["arguments"] =
                json!(known.to_owned() + piece["function"]["arguments"].as_str().unwrap_or_default());
        }
    }
    for call in &mut calls {
        call.as_object_mut().expect("an object").remove("index");
    }
    calls
}

#[tokio::test]
async fn tool_02_auto_is_a_call_or_text() {
    let server = Server::start().await;
    let answer = server.chat("/call g {\"city\": \"Par\\u00eds\"}", tools(json!({}))).await;
    let called = choice(&answer);
    assert_eq!((&called["finish_reason"], &called["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let call = &called["message"]["tool_calls"][0];
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_") && id.len() == 29), "{call}");
    assert_eq!(call["type"], "function");
    assert_eq!(calls(&called["message"]), [("g".to_owned(), "{\"city\": \"Par\\u00eds\"}".to_owned())]);
    let text = choice(&server.chat("just text", tools(json!({}))).await);
    assert_eq!((&text["finish_reason"], &text["message"]["content"]), (&json!("stop"), &json!("just text")));
    assert!(text["message"].get("tool_calls").is_none(), "absent, not empty");
}

/// FAULT-07.
#[tokio::test]
async fn a_streamed_call_has_the_shape_of_1_3_2() {
    let server = Server::start().await;
    let arguments = r#"{"a":"x\n\"y\"","b":[1,{"c":"\u{1f600}"}]}"#;
    let events = server.stream_chat(&format!("/call f {arguments}"), tools(json!({}))).await;
    let calls = streamed_calls(&events, 0);
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["function"], json!({"name":"f","arguments":arguments}));
    assert_eq!((events.finish(0), events.text(0, "content").as_str()), (vec!["tool_calls"], ""));
    for choice in events.choices(0) {
        let delta = choice["delta"].as_object().expect("a delta");
        assert!(delta.len() <= 1 || delta.contains_key("role"), "no fillers: {delta:?}");
    }
    assert!(events.is_done);
}

/// FAULT-08.
#[tokio::test]
async fn forced_choices_are_calls_and_say_so() {
    let server = Server::start().await;
    let named = json!({"type":"function","function":{"name":"g"}});
    let allowed = |mode: &str| {
        let tools = json!([{"type":"function","function":{"name":"g"}}]);
        json!({"type":"allowed_tools","allowed_tools":{"mode":mode,"tools":tools}})
    };
    for (choice, name) in [(json!("required"), "f"), (named, "g"), (allowed("required"), "g")] {
        let more = tools(json!({ "tool_choice": choice }));
        let answer = server.chat("prose please", more.clone()).await.json();
        let answer = &answer["choices"][0];
        assert_eq!((&answer["finish_reason"], &answer["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        assert_eq!(calls(&answer["message"]), [(name.to_owned(), "{}".to_owned())]);
        let events = server.stream_chat("prose please", more).await;
        let first = &events.chunks[0]["choices"][0]["delta"];
        assert_eq!(first, &json!({"role":"assistant","content":null,"refusal":null}));
        assert_eq!(streamed_calls(&events, 0)[0]["function"], json!({"name":name,"arguments":"{}"}));
        assert_eq!(events.finish(0), ["tool_calls"]);
    }
    let text = server.chat("prose please", tools(json!({ "tool_choice": allowed("auto") }))).await;
    assert_eq!(text.content(), "prose please");
    let none = choice(&server.chat("/call f {}", tools(json!({ "tool_choice": "none" }))).await);
    assert!(none["message"].get("tool_calls").is_none() && none["finish_reason"] == "stop");
    assert!(!none["message"]["content"].to_string().contains("<tool_call>"), "TOOL-02: {none}");
}

#[tokio::test]
async fn tool_05_forty_tools_and_the_second_call_hits_the_cache() {
    let server = Server::start().await;
    let many: Vec<Value> = (0..40).map(|i| tool(&format!("mcp.server-{i}_tool"))).collect();
    let text = format!("{} end", "long ".repeat(200));
    let ask = || server.chat(&text, json!({ "tools": many }));
    let (first, second) = (ask().await, ask().await);
    assert_eq!(first.content(), second.content());
    let details = &second.json()["usage"]["prompt_tokens_details"];
    assert!(details["cached_tokens"].as_u64().is_some_and(|n| n > 500), "{details}");
}

#[tokio::test]
async fn tool_07_a_call_cut_by_the_limit() {
    let server = Server::start().await;
    let text = "/call f {\"long\":\"0123456789\"}";
    for n in 1..60 {
        let more = tools(json!({ "max_tokens": n }));
        let answer = server.chat(text, more.clone()).await;
        assert_eq!(choice(&answer)["finish_reason"], "length");
        let events = server.stream_chat(text, more).await;
        assert_eq!(events.finish(0), ["length"]);
    }
    let stopped = choice(&server.chat(text, tools(json!({ "stop": "456" }))).await);
    assert_eq!(stopped["finish_reason"], "stop", "no call that can't be run is claimed: {stopped}");
}

#[tokio::test]
async fn tool_08_calls_come_one_after_the_other() {
    let server = Server::start().await;
    let text = "/call f {\"a\":1}\n/call g {\"b\":2}\n/call f {}";
    let expected = [("f", "{\"a\":1}"), ("g", "{\"b\":2}"), ("f", "{}")].map(|(f, a)| (f.to_owned(), a.to_owned()));
    let whole = choice(&server.chat(text, tools(json!({}))).await);
    assert_eq!(calls(&whole["message"]), expected);
    let events = server.stream_chat(text, tools(json!({ "n": 2 }))).await;
    let mut ids = HashSet::new();
    for index in 0..2 {
        let streamed = streamed_calls(&events, index);
        assert_eq!(calls(&json!({ "tool_calls": streamed })), expected);
        ids.extend(streamed.iter().map(|call| call["id"].to_string()));
        assert_eq!(events.finish(index), ["tool_calls"]);
    }
    assert_eq!(ids.len(), 6, "every call has an id of its own");
}

#[tokio::test]
async fn tool_09_functions_are_answered_in_their_own_shape() {
    let server = Server::start().await;
    let functions = |more: Value| with(json!({ "functions": [{"name":"f"},{"name":"g"}] }), more);
    let whole = choice(&server.chat("/call g {\"a\":1}", functions(json!({}))).await);
    assert_eq!(whole["message"]["function_call"], json!({"name":"g","arguments":"{\"a\":1}"}));
    assert_eq!((&whole["finish_reason"], &whole["message"]["content"]), (&json!("function_call"), &Value::Null));
    assert!(whole["message"].get("tool_calls").is_none());
    let forced = functions(json!({ "function_call": { "name": "g" } }));
    let events = server.stream_chat("prose", forced).await;
    let deltas: Vec<&Value> = events.choices(0).map(|choice| &choice["delta"]).collect();
    assert_eq!(deltas[0]["content"], Value::Null);
    assert_eq!(deltas[1]["function_call"], json!({"name":"g","arguments":""}));
    let arguments: String =
        deltas[2..].iter().filter_map(|delta| delta["function_call"]["arguments"].as_str()).collect();
    assert_eq!((arguments.as_str(), events.finish(0)), ("{}", vec!["function_call"]));
    assert_eq!(server.chat("prose", functions(json!({ "function_call": "none" }))).await.content(), "prose");
    let history = json!([
        {"role":"user","content":"a"},
        {"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},
        {"role":"function","name":"f","content":"r"},
        {"role":"user","content":"b"},
    ]);
    let body = functions(json!({ "messages": history }));
    assert_eq!(server.post("/v1/chat/completions", body).await.content(), "b");
}

#[tokio::test]
async fn tool_10_bad_tools_are_refused_at_their_place() {
    let server = Server::start().await;
    let function = |function: Value| json!({"type":"function","function":function});
    for (second, code, param) in [
        (function(json!({})), "missing_required_parameter", "tools[1].function.name"),
        (function(json!({"name":"f"})), "invalid_value", "tools[1].function.name"),
        (function(json!({"name":""})), "empty_string", "tools[1].function.name"),
        (function(json!({"name":"x".repeat(129)})), "string_above_max_length", "tools[1].function.name"),
        (function(json!({"name":"g","parameters":"x"})), "invalid_type", "tools[1].function.parameters"),
        (function(json!({"name":"g","parameters":{"type":"array"}})), "invalid_json_schema", "tools[1].function"),
        (json!({"type":"code_interpreter"}), "invalid_value", "tools[1].type"),
        (json!({"type":"custom","custom":{"name":"g"}}), "invalid_value", "tools[1].type"),
        (json!({"type":"function"}), "missing_required_parameter", "tools[1].function"),
    ] {
        server.chat("x", json!({ "tools": [tool("f"), second] })).await.is_refusal(code, param);
    }
    for choice in [json!("always"), json!({"type":"function","function":{"name":"h"}}), json!({"type":"x"}), json!(1)] {
        let answer = server.chat("x", tools(json!({ "tool_choice": choice }))).await;
        let (status, _, _, param) = answer.error();
        assert!(status == 400 && param.is_some_and(|param| param.starts_with("tool_choice")), "{}", answer.text);
    }
    server.chat("x", json!({ "tool_choice": "required" })).await.is_refusal("invalid_value", "tool_choice");
    assert_eq!(server.chat("x", json!({ "tools": [], "tool_choice": "auto" })).await.content(), "x");
}

#[tokio::test]
async fn tool_04_11_schemas_as_zod_pydantic_and_mcp_write_them() {
    let server = Server::start().await;
    let parameters = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "title": "T",
        "properties": {
            "day": {"type":"string","format":"date","default":"2026-01-01"},
            "unit": {"enum":["c","f"]},
            "list": {"type":"array","items":{"anyOf":[{"type":"string"},{"type":"null"}]}},
        },
        "required": ["day"], "additionalProperties": false,
    });
    let tool =
        json!({"type":"function","function":{"name":"f","parameters":parameters,"strict":true},"cache_control":null});
    let answer = server.chat("/call f {\"day\":\"2026-01-02\"}", json!({ "tools": [tool] })).await;
    assert_eq!(choice(&answer)["finish_reason"], "tool_calls");
    assert_eq!(answer.header("x-hearth-ignored"), "");
}

#[tokio::test]
async fn tool_12_histories_as_clients_send_them() {
    let server = Server::start().await;
    for call in [
        json!({"id":"call_1","type":"function","function":{"name":"f","arguments":""}}),
        json!({"id":"call_1","type":"function","function":{"name":"f","arguments":"not json"}}),
        json!({"function":{"name":"f","arguments":{"a":1}}}),
        json!({"id":null,"type":null,"index":0,"function":{"name":"f","arguments":null}}),
    ] {
        for content in [Value::Null, json!(""), json!([])] {
            let messages = json!([
                {"role":"user","content":"a"},
                {"role":"assistant","content":content,"tool_calls":[call]},
                {"role":"tool","tool_call_id":"other","content":[{"type":"text","text":"r"}]},
                {"role":"tool","content":"r"},
                {"role":"user","content":"b"},
            ]);
            let answer = server.post("/v1/chat/completions", tools(json!({ "messages": messages }))).await;
            assert_eq!((answer.content().as_str(), answer.header("x-hearth-ignored")), ("b", ""));
        }
    }
    let bad = json!([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[1]}}]}]);
    let answer = server.post("/v1/chat/completions", json!({ "messages": bad })).await;
    answer.is_refusal("invalid_type", "messages[0].tool_calls[0].function.arguments");
}
