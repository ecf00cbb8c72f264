//! The description of the API, against the API: routes, answers, and the page.

use crate::support::bodies::Schemas;
use crate::support::served::{Served, root};
use crate::support::{Server, chat_body};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;

async fn document(server: &Server) -> Value {
    let answer = server.get("/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

#[tokio::test]
async fn every_method_of_every_path_is_described_and_no_other() {
    let server = Server::with(|setup| setup.http.expose_slots = true).await;
    let document = document(&server).await;
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().expect("paths") {
        let described: BTreeSet<String> =
            item.as_object().into_iter().flatten().map(|(method, _)| method.to_uppercase()).collect();
        let real = path.replace("{id}", "x").replace("{digest}", "x");
        let wrong = server.client.request(Method::TRACE, server.url(&real)).send().await.expect("an answer");
        if wrong.status() != 405 {
            // One that takes any method; whether it exists the router's own test says.
            assert!(path.starts_with("/api/blobs/"), "{path}: {}", wrong.status());
            continue;
        }
        let allow = wrong.headers()["allow"].to_str().expect("text").to_owned();
        let served: BTreeSet<String> = allow.split(',').map(|method| method.trim().to_owned()).collect();
        let served: BTreeSet<String> = served.into_iter().filter(|method| method != "HEAD").collect();
        assert_eq!(described, served, "{path}");
    }
}

/// Real answers have no key that the document doesn't describe, and all that it requires.
#[tokio::test]
async fn answers_are_as_described() {
    let server = Server::with(|setup| setup.http.expose_slots = true).await;
    let document = document(&server).await;
    let tools = json!([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]);
    let calls = json!({"tools": tools, "logprobs": true, "top_logprobs": 2});
    let anthropic = json!({"max_tokens": 8, "messages": [{"role":"user","content":"/think a b"}]});
    for (path, body) in [
        ("/v1/chat/completions", chat_body("hello", json!({"logprobs": true, "top_logprobs": 2}))),
        ("/v1/chat/completions", chat_body("/think a b", json!({}))),
        ("/v1/chat/completions", chat_body("/call f {}", calls)),
        ("/v1/chat/completions/input_tokens", chat_body("hello", json!({}))),
        ("/v1/completions", json!({"prompt": "hello", "logprobs": 2, "echo": true})),
        ("/v1/responses", json!({"input": "hello"})),
        ("/v1/responses/input_tokens", json!({"input": "hello"})),
        ("/v1/messages", anthropic.clone()),
        ("/v1/messages/count_tokens", anthropic),
        ("/api/chat", json!({"messages": [{"role":"user","content":"hello"}], "stream": false, "logprobs": true})),
        ("/api/generate", json!({"prompt": "hello", "stream": false})),
        ("/api/show", json!({})),
        ("/api/pull", json!({"stream": false})),
        ("/tokenize", json!({"content": "hello"})),
        ("/tokenize", json!({"content": "hello", "with_pieces": true})),
        ("/detokenize", json!({"tokens": [104, 105]})),
        ("/apply-template", chat_body("hello", json!({}))),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        conforms(&document, path, "post", "200", &answer.json());
    }
    for path in [
        "/v1/models",
        "/health",
        "/livez",
        "/readyz",
        "/props",
        "/slots",
        "/lora-adapters",
        "/api/tags",
        "/api/ps",
        "/api/version",
        "/openapi.json",
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        conforms(&document, path, "get", "200", &answer.json());
    }
    for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/tokenize"] {
        let answer = server.post(path, json!({"model": 5, "messages": 5, "input": 5})).await;
        conforms(&document, path, "post", "400", &answer.json());
    }
}

/// So have the events of streams.
#[tokio::test]
async fn events_are_as_described() {
    let server = Server::start().await;
    let document = document(&server).await;
    let event = |path: &str, kind: &str| {
        document["paths"][path]["post"]["responses"]["200"]["content"][kind]["schema"]["x-event"].clone()
    };
    let tools = json!([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]);
    let usage = json!({"include_usage": true});
    for (path, body) in [
        ("/v1/chat/completions", chat_body("/think a b", json!({"stream_options": usage, "logprobs": true}))),
        ("/v1/chat/completions", chat_body("/call f {\"a\":1}", json!({"tools": tools}))),
        ("/v1/completions", json!({"prompt": "hello", "logprobs": 1, "stream_options": usage})),
    ] {
        for chunk in server.stream(path, body).await.chunks {
            fits(&document, &event(path, "text/event-stream"), path, &chunk);
        }
    }
    let lines = server.post("/api/chat", json!({"messages": [{"role":"user","content":"hello"}]})).await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    for line in lines.text.lines() {
        let row = serde_json::from_str(line).expect("a line of JSON");
        fits(&document, &event("/api/chat", "application/x-ndjson"), "/api/chat", &row);
    }
}

fn conforms(document: &Value, path: &str, method: &str, status: &str, value: &Value) {
    let mut response = &document["paths"][path][method]["responses"][status];
    if let Some(target) = response["$ref"].as_str() {
        response = document.pointer(target.trim_start_matches('#')).expect("the response is there");
    }
    let schema = &response["content"]["application/json"]["schema"];
    fits(document, schema, path, value);
}

fn fits(document: &Value, schema: &Value, path: &str, value: &Value) {
    assert!(schema.is_object(), "{path}: no schema");
    assert_eq!(Schemas(document).undescribed(schema, value, ""), Vec::<String>::new(), "{path}: {value}");
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&whole).expect("a schema");
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{path}: {errors:?} in {value}");
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere_and_no_key() {
    let server = Server::with(|setup| setup.key("secret")).await;
    assert_eq!(server.get("/openapi.json").await.status, 200);
    let page = server.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(page.text.contains("/v1/chat/completions") && !page.text.contains("<script"), "{}", page.text);
    assert_eq!(server.get("/v1/models").await.status, 401);
}

/// schemathesis makes bodies from the document, good and bad ones: no 5xx, no other status or type than described, and
/// soon. `make test` installs it and sets HEARTH_CLIENTS=1; without that, it is skipped where it is not installed.
#[test]
fn fuzzing_finds_nothing() {
    let python = root().join(".venv-fuzz/bin/python");
    if !python.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", python.display());
        eprintln!("skipped: {} is not installed (`make test` installs it)", python.display());
        return;
    }
    let served = Served::of(&["scripted:"]);
    let output = Command::new(&python)
        .arg(root().join("tests/clients/fuzz_openapi.py"))
        .arg(&served.url)
        .output()
        .expect("the fuzzer starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(served.status("/readyz"), Some(200));
}
