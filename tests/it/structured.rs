//! Constrained answers over HTTP. The scripted model says what it would say anyway wherever the constraint lets it; models
//! of random weights are in `decoding`. Names are the contract's rows.

use crate::support::{Server, chat_body, with};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A chat whose answer must be JSON; returns it parsed.
async fn parsed(server: &Server, text: &str, more: Value) -> Value {
    let answer = server.chat(text, more).await;
    let content = answer.content();
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop", "{content}");
    serde_json::from_str(&content).unwrap_or_else(|error| unreachable!("{error} in {content}"))
}

fn schema(schema: Value) -> Value {
    json!({"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":schema,"strict":true}}})
}

fn is_valid(schema: &Value, value: &Value) -> bool {
    jsonschema::validator_for(schema).expect("a schema").is_valid(value)
}

/// What pydantic and openai-python make of nested models, Optional, enum and list.
#[tokio::test]
async fn json_02_09_nested_models_in_the_order_of_the_schema() {
    let server = Server::start().await;
    let given = json!({
        "title": "Report", "type": "object", "additionalProperties": false, "required": ["why", "kind", "items", "note"],
        "properties": {
            "why": {"title":"Why","type":"string"},
            "kind": {"$ref":"#/$defs/Kind"},
            "items": {"type":"array","items":{"$ref":"#/$defs/Item"},"minItems":2,"maxItems":3},
            "note": {"anyOf":[{"type":"string"},{"type":"null"}]},
        },
        "$defs": {
            "Kind": {"enum":["a","b"],"type":"string"},
            "Item": {"type":"object","additionalProperties":false,"required":["n"],"properties":{"n":{"type":"integer"}}},
        },
    });
    for text in ["hello", "{\"why\": \"w\", \"kind\": \"b\"", "/forever", "\u{1f600}"] {
        let answer = server.chat(text, with(schema(given.clone()), json!({ "max_tokens": 600 }))).await;
        if answer.json()["choices"][0]["finish_reason"] == "length" {
            continue;
        }
        let value: Value = serde_json::from_str(&answer.content()).expect("JSON");
        assert!(is_valid(&given, &value), "{value}");
        let order: Vec<&String> = value.as_object().expect("an object").keys().collect();
        assert_eq!(order, ["why", "kind", "items", "note"]);
    }
}

/// JSON-03 (bounds), JSON-04 (a sibling schema), and every other way of asking.
#[tokio::test]
async fn json_03_04_every_way_of_asking_is_honoured() {
    let server = Server::start().await;
    let bounded = json!({"type":"object","properties":{
        "n":{"type":"integer","minimum":10,"maximum":12},"c":{"const":"x"},"p":{"type":"string","pattern":"^[a-c]{2}$"}},
        "required":["n","c","p"]});
    for more in [
        schema(bounded.clone()),
        json!({"response_format":{"type":"json_object","schema":bounded}}),
        json!({ "json_schema": bounded }),
        json!({ "guided_json": bounded.to_string() }),
        json!({"structured_outputs":{"json":bounded}}),
    ] {
        let value = parsed(&server, "prose", more).await;
        assert!(is_valid(&bounded, &value), "{value}");
    }
    assert!(parsed(&server, "prose", json!({"response_format":{"type":"json_object"}})).await.is_object());
    let choice = json!({"guided_choice":["yes","no"]});
    assert_eq!(server.chat("no", choice.clone()).await.content(), "no");
    assert_eq!(server.complete(json!("yes"), choice).await.content(), "yes");
    let regex = json!({"structured_outputs":{"regex":"[0-9]{3}"}});
    assert_eq!(server.chat("123456", regex).await.content(), "123");
}

#[tokio::test]
async fn json_06_a_schema_beside_tools_gives_one_of_the_two() {
    let server = Server::start().await;
    let given = json!({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]});
    let tools = json!({"tools":[{"type":"function","function":{"name":"f"}}]});
    let value = parsed(&server, "{\"a\": 7}", with(schema(given.clone()), tools.clone())).await;
    assert!(is_valid(&given, &value), "{value}");
    let forced = with(with(schema(given), tools), json!({"tool_choice":"required"}));
    let answer = server.chat("prose", forced).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "a forced call has no text to constrain");
}

#[tokio::test]
async fn json_07_an_answer_that_was_cut_says_length() {
    let server = Server::start().await;
    let given = json!({"type":"object","properties":{"text":{"type":"string"}},"required":["text"]});
    let answer = server.chat("x", with(schema(given), json!({ "max_tokens": 5 }))).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn json_08_a_large_schema_is_compiled_or_refused_soon() {
    let server = Server::start().await;
    let values: Vec<String> = (0..3000).map(|i| format!("value number {i}")).collect();
    let mut properties = serde_json::Map::new();
    for i in 0..200 {
        properties.insert(format!("property_{i}"), json!({"type":["string","null"],"maxLength":20}));
    }
    properties.insert("kind".to_owned(), json!({ "enum": values }));
    let given = json!({ "type": "object", "properties": properties, "required": ["kind"] });
    let started = Instant::now();
    let answer = server.chat("x", with(schema(given), json!({ "max_tokens": 3 }))).await;
    // A second on a machine of its own; other tests share this one.
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(answer.status == 200 || answer.status == 400, "{}", answer.text);
}

#[tokio::test]
async fn strm_13_four_choices_are_each_whole() {
    let server = Server::start().await;
    let given =
        json!({"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"],"additionalProperties":false});
    let events = server.stream_chat("prose", with(schema(given.clone()), json!({ "n": 4 }))).await;
    for index in 0..4 {
        let value: Value = serde_json::from_str(&events.text(index, "content")).expect("JSON");
        assert!(is_valid(&given, &value), "{value}");
        assert_eq!(events.finish(index), ["stop"]);
    }
}

/// The engine's refusals carry the name of the field that the client used.
#[tokio::test]
async fn a_schema_that_can_not_be_honoured_is_refused_at_its_field() {
    let server = Server::start().await;
    for bad in [
        json!({"type":"hiccup"}),
        json!({"type":"object","properties":{"a":{"$ref":"#/$defs/nowhere"}}}),
        json!({"$ref":"https://example.com/schema.json"}),
        json!({"type":"object","properties":[]}),
    ] {
        for stream in [false, true] {
            let more = with(schema(bad.clone()), json!({ "stream": stream }));
            server.chat("x", more).await.is_refusal("invalid_json_schema", "response_format.json_schema.schema");
        }
        let more = json!({ "guided_json": bad });
        server.complete(json!("x"), more).await.is_refusal("invalid_json_schema", "guided_json");
    }
    server.chat("x", json!({ "guided_regex": "(" })).await.is_refusal("invalid_value", "guided_regex");
    let body = chat_body("x", json!({ "structured_outputs": {"grammar": "start: nowhere"} }));
    let answer = server.post("/v1/chat/completions", body).await;
    answer.is_refusal("invalid_value", "structured_outputs.grammar");
}

#[tokio::test]
async fn a_format_that_can_not_be_read_is_refused_at_its_field() {
    let server = Server::start().await;
    let schema_path = "response_format.json_schema.schema";
    let schema = |given: Value| schema(given)["response_format"].take();
    for (format, code, param) in [
        (json!("json"), "invalid_type", "response_format"),
        (json!({}), "missing_required_parameter", "response_format.type"),
        (json!({"type":"yaml"}), "invalid_value", "response_format.type"),
        (json!({"type":"json_schema"}), "missing_required_parameter", "response_format.json_schema"),
        (schema(json!("x")), "invalid_json_schema", schema_path),
        (schema(json!(false)), "invalid_json_schema", schema_path),
    ] {
        for stream in [false, true] {
            let more = json!({ "response_format": format, "stream": stream });
            server.chat("x", more).await.is_refusal(code, param);
        }
    }
    assert_eq!(server.chat("x", json!({ "response_format": {"type":"text"} })).await.content(), "x");
}

#[tokio::test]
async fn two_constraints_are_refused() {
    let server = Server::start().await;
    let more = json!({ "response_format": {"type":"json_object"}, "guided_regex": "a+" });
    let answer = server.chat("x", more).await;
    answer.is_refusal("invalid_value", "guided_regex");
    assert!(answer.text.contains("response_format"), "both are named: {}", answer.text);
    let more = json!({ "grammar": "root ::= \"a\"", "json_schema": {} });
    server.complete(json!("x"), more).await.is_refusal("invalid_value", "json_schema");
}

#[tokio::test]
async fn what_a_constraint_can_not_be_is_refused_by_name() {
    let server = Server::start().await;
    for (more, code, param) in [
        (json!({ "guided_choice": [] }), "empty_array", "guided_choice"),
        (json!({ "guided_json": "{" }), "invalid_json_schema", "guided_json"),
        (json!({ "grammar": 5 }), "invalid_type", "grammar"),
        (json!({ "structural_tag": {} }), "unsupported_parameter", "structural_tag"),
        (json!({ "structured_outputs": {"regex": 5} }), "invalid_type", "structured_outputs.regex"),
    ] {
        server.chat("x", more.clone()).await.is_refusal(code, param);
        server.complete(json!("x"), more).await.is_refusal(code, param);
    }
}
