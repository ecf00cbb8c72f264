//! Constrained answers over HTTP: what is refused before any work. What the constraints let through is shown with a model
//! of weights. Names are the contract's rows.

use crate::support::Server;
use serde_json::{Value, json};

#[tokio::test]
async fn a_format_that_can_not_be_read_is_refused_at_its_field() {
    let server = Server::start().await;
    let schema_path = "response_format.json_schema.schema";
    let schema = |schema: Value| json!({"type":"json_schema","json_schema":{"name":"n","schema":schema}});
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
