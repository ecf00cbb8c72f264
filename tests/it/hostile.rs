//! Hostile bodies for every POST route that the document lists: a 4xx in the dialect's shape, soon, that names the field.

use crate::support::bodies::Schemas;
use crate::support::{Answer, Server};
use serde_json::{Value, json};

/// (path, request schema) of every route that takes a body; the same route under another path is left out.
fn posts(document: &Value) -> Vec<(String, Value)> {
    let mut posts = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let operation = &item["post"];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_object() && operation.get("x-hearth-alias-of").is_none() {
            posts.push((path.clone(), schema.clone()));
        }
    }
    assert!(posts.len() > 10, "{posts:?}");
    posts
}

async fn post(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = server.client.post(server.url(path)).header("content-type", "application/json").body(body);
    let answer = Answer::of(request.send().await.expect("an answer")).await;
    if let Ok(ms) = answer.header("openai-processing-ms").parse::<u64>() {
        // A second on a machine of its own; other tests share this one, and what is kept out took minutes.
        assert!(ms < 8000, "{path}: {ms} ms: {}", answer.text);
    }
    answer
}

/// (the message, the parameter where the family has one) of a refusal in the path's own shape.
fn refusal(path: &str, answer: &Answer) -> (String, Option<String>) {
    let shown: String = answer.text.chars().take(300).collect();
    assert!((400..500).contains(&answer.status), "{path}: {} {shown}", answer.status);
    let body = answer.json();
    if path.starts_with("/api/") {
        return (body["error"].as_str().unwrap_or_else(|| unreachable!("{path}: {shown}")).to_owned(), None);
    }
    let error = &body["error"];
    let message = error["message"].as_str().unwrap_or_else(|| unreachable!("{path}: {shown}")).to_owned();
    if path.starts_with("/v1/messages") {
        assert_eq!(body["type"], "error", "{path}: {shown}");
        assert!(error["type"].is_string() && body["request_id"].is_string(), "{path}: {shown}");
        return (message, None);
    }
    assert_eq!(error.as_object().map_or(0, serde_json::Map::len), 4, "{path}: {shown}");
    (message, error["param"].as_str().map(str::to_owned))
}

/// ERR-12 and the corpus of bodies that are no object of JSON at all.
#[tokio::test]
async fn bodies_that_can_not_be_read() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    for (path, _) in posts(&document) {
        for body in [
            &b""[..],
            b"3",
            b"null",
            b"\"x\"",
            b"{",
            b"{} x",
            b"{\"a\":NaN}",
            b"{\"a\":Infinity}",
            b"{\"a\":1e400}",
            b"{\"a\":\"\xff\xfe\"}",
            b"{\"a\":\"\\ud83d\"}",
            b"{\"a\":\"\0\"}",
            b"{\"model\":\"a\",\"model\":\"b\"}",
            b"{\"a\":[{\"b\":1,\"b\":1}]}",
            b"\xef\xbb\xbf{}",
            deep.as_bytes(),
            deep_objects.as_bytes(),
        ] {
            let answer = post(&server, &path, body.to_vec()).await;
            let (_, param) = refusal(&path, &answer);
            assert_eq!((answer.status, param), (400, None), "{path}: {}", answer.text);
        }
    }
    assert_eq!(server.chat("still here", json!({})).await.content(), "still here");
}

/// Every property of every request with a value of each type that it doesn't have: a 400 that names it.
#[tokio::test]
async fn wrong_types_are_refused_by_name() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    let mut faults = Vec::new();
    for (path, schema) in posts(&document) {
        for (field, body) in Schemas(&document).wrong_types(&schema) {
            let answer = post(&server, &path, body.to_string()).await;
            // What the rest of the body leaves no place for is listed.
            let root = field.split(['.', '[']).next().unwrap_or_default();
            if answer.status == 200 && answer.header("x-hearth-ignored").contains(root) {
                continue;
            }
            if answer.status == 200 {
                faults.push(format!("{path} takes {field} in {body}"));
                continue;
            }
            let (message, param) = refusal(&path, &answer);
            let named = param.unwrap_or(message);
            if !names(&named, &field) {
                faults.push(format!("{path}: {field}: {named:?} for {body}"));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Whether a refusal is about a field, or about one that holds it or stands in it.
fn names(named: &str, field: &str) -> bool {
    let root: &str = field.split(['.', '[']).next().unwrap_or(field);
    named.contains(field) || named.starts_with(root) || named.contains(&format!(" {root}"))
}

/// Every form of every property: whatever becomes of it, it is no fault of the server's.
#[tokio::test]
async fn bodies_of_every_form_break_nothing() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    for (path, schema) in posts(&document) {
        for mut body in Schemas(&document).values(&schema) {
            if let Some(fields) = body.as_object_mut() {
                fields.entry("max_tokens").or_insert(json!(4));
            }
            let answer = post(&server, &path, body.to_string()).await;
            if answer.status != 200 {
                refusal(&path, &answer);
            }
        }
    }
    assert_eq!(server.chat("still here", json!({})).await.content(), "still here");
}

/// Values that are of the right type and far too large, or nonsense.
#[tokio::test]
async fn large_and_odd_values_break_nothing() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    let megabyte = "x".repeat(1 << 20);
    for (path, schema) in posts(&document) {
        let least = Schemas(&document).least(&schema);
        let Value::Object(least) = least else { continue };
        let keys: Vec<String> =
            Schemas(&document).paths(&schema).into_iter().filter(|key| !key.contains(['.', '['])).collect();
        for key in keys {
            for value in [
                json!(1e308),
                json!(-1e308),
                json!(u64::MAX),
                json!(i64::MIN),
                json!(-1),
                json!(vec![0; 100_000]),
                json!(megabyte),
                json!("\u{0}\u{202e}<|im_start|>"),
                json!({ "\u{0}": null, "": [[[[]]]] }),
            ] {
                let mut body = least.clone();
                body.insert(key.clone(), value);
                body.entry("max_tokens").or_insert(json!(4));
                if body["max_tokens"].as_i64().is_none_or(|n| n < 0) && key != "max_tokens" {
                    body["max_tokens"] = json!(4);
                }
                // A streamed answer to a body like this may be long; what matters is that it begins.
                let sent = server.client.post(server.url(&path)).json(&body).send().await.expect("an answer");
                assert!(sent.status().as_u16() < 500 || sent.status() == 501, "{path}: {key}: {}", sent.status());
            }
        }
    }
    server.idle().await;
    assert_eq!(server.chat("still here", json!({})).await.content(), "still here");
}
