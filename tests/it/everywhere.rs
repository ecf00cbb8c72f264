//! Rules of the contract's sections 1.1 and 1.8 that hold for every endpoint, so that each new one is held to them.

use crate::support::bodies::Schemas;
use crate::support::{Answer, Server, with};
use serde_json::{Map, Value, json};

/// (path, request schema) of every route that takes a body; the same route under another path is left out.
async fn posts(server: &Server) -> (Value, Vec<(String, Value)>) {
    let document = server.get("/openapi.json").await.json();
    let mut posts = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let operation = &item["post"];
        let schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
        let is_refused = ["/api/create", "/api/copy", "/api/push", "/api/delete"].contains(&path.as_str());
        if schema.is_object() && operation.get("x-hearth-alias-of").is_none() && !is_refused {
            posts.push((path.clone(), schema));
        }
    }
    assert!(posts.len() > 20, "{posts:?}");
    (document, posts)
}

/// The least body that a route takes.
fn least(document: &Value, path: &str, schema: &Value) -> Map<String, Value> {
    let body = match path {
        "/lora-adapters" => json!({ "lora": [{ "id": 0, "scale": 1.0 }] }),
        "/tokenize" => json!({ "content": "x" }),
        _ => Schemas(document).least(schema),
    };
    let mut body = body.as_object().unwrap_or_else(|| unreachable!("{path}: {body}")).clone();
    if body.contains_key("stream") {
        body["stream"] = json!(false);
    }
    body
}

/// "Absent" includes `null`, on every API.
#[tokio::test]
async fn every_optional_field_may_be_null() {
    let server = Server::start().await;
    let (document, posts) = posts(&server).await;
    for (path, schema) in posts {
        let plain = least(&document, &path, &schema);
        let expected = server.post(&path, plain.clone().into()).await;
        let mut body = plain.clone();
        let keys = Schemas(&document).paths(&schema).into_iter().filter(|key| !key.contains(['.', '[']));
        for key in keys.filter(|key| !plain.contains_key(key)) {
            body.insert(key, Value::Null);
        }
        let answer = server.post(&path, body.clone().into()).await;
        assert_eq!(answer.status, expected.status, "{path}: {body:?}\n{}\n{}", answer.text, expected.text);
        assert_eq!(answer.header("x-hearth-ignored"), "", "{path}");
    }
}

/// A field that nobody knows is listed, wherever it stands, and refused by a strict server.
#[tokio::test]
async fn unknown_fields_are_listed_or_refused() {
    let server = Server::start().await;
    let strict = Server::with(|setup| setup.gateway.strict = true).await;
    let (document, posts) = posts(&server).await;
    for (path, schema) in posts {
        let mut body = least(&document, &path, &schema);
        let plain = server.post(&path, body.clone().into()).await;
        body.insert("no_such_field".to_owned(), json!({ "a": 1 }));
        let answer = server.post(&path, body.clone().into()).await;
        assert_eq!(answer.status, plain.status, "{path}: {}", answer.text);
        if answer.status == 200 {
            assert_eq!(answer.header("x-hearth-ignored"), "no_such_field", "{path}");
        }
        let refused = strict.post(&path, body.into()).await;
        assert!(refused.status == 400 && refused.text.contains("no_such_field"), "{path}: {}", refused.text);
    }
    let inner = |key: &str, value: Value| {
        with(json!({ "messages": [{ "role": "user", "content": "x" }] }), json!({ key: value }))
    };
    for (path, body, listed) in [
        ("/v1/chat/completions", inner("stream_options", json!({ "odd": 1 })), "stream_options.odd"),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "x", "odd": 1 }] }),
            "messages[0].odd",
        ),
        ("/v1/responses", json!({ "input": [{ "role": "user", "content": "x", "odd": 1 }] }), "input[0].odd"),
        (
            "/v1/messages",
            with(inner("max_tokens", json!(1)), json!({ "system": [{ "type": "text", "text": "s", "odd": 1 }] })),
            "system[0].odd",
        ),
        ("/api/chat", with(inner("stream", json!(false)), json!({ "options": { "odd": 1 } })), "options.odd"),
    ] {
        assert_eq!(server.post(path, body).await.header("x-hearth-ignored"), listed, "{path}");
    }
}

/// Streams are told to proxies as such, say their type, and have no time that would be a lie.
#[tokio::test]
async fn streams_have_the_headers_of_streams() {
    let server = Server::start().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let sse = "text/event-stream; charset=utf-8";
    for (path, body, kind) in [
        ("/v1/chat/completions", json!({ "messages": messages }), sse),
        ("/v1/completions", json!({ "prompt": "hi" }), sse),
        ("/completion", json!({ "prompt": "hi" }), sse),
        ("/infill", json!({ "input_prefix": "a", "input_suffix": "b" }), sse),
        ("/v1/responses", json!({ "input": "hi" }), sse),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 3 }), sse),
        ("/api/chat", json!({ "messages": messages }), "application/x-ndjson"),
        ("/api/generate", json!({ "prompt": "hi" }), "application/x-ndjson"),
    ] {
        let request = server.client.post(server.url(path)).header("accept-encoding", "zstd, gzip, deflate, br");
        let sent = request.json(&with(body.clone(), json!({ "stream": true }))).send().await.expect("an answer");
        let answer = Answer::of(sent).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{path}: {}", answer.text);
        assert_eq!((answer.header("cache-control"), answer.header("x-accel-buffering")), ("no-cache", "no"), "{path}");
        assert_eq!((answer.header("content-encoding"), answer.header("openai-processing-ms")), ("", ""), "{path}");
        let whole = server.post(path, with(body, json!({ "stream": false }))).await;
        assert!(whole.header("openai-processing-ms").parse::<u64>().is_ok(), "{path}");
        assert!(whole.header("content-type").starts_with("application/json"), "{path}");
    }
}

/// llama-server's clients leave `/v1` out; its and others' names for ranking.
#[tokio::test]
async fn other_paths_mean_the_same() {
    let server = Server::start().await;
    let ranks = Server::with(|setup| setup.scripted().embeds = 2).await;
    let embeds = Server::with(|setup| setup.scripted().embeds = 1).await;
    let rank = json!({ "query": "a", "documents": ["a b", "c"] });
    for (server, paths, body) in [
        (&ranks, &["/v1/rerank", "/rerank", "/v2/rerank", "/reranking", "/v1/reranking"][..], rank),
        (&embeds, &["/v1/embeddings", "/embeddings", "/v1/embeddings/"], json!({ "input": "x" })),
        (&server, &["/v1/responses", "/responses", "/responses/?x=1"], json!({ "input": "x" })),
    ] {
        for path in paths {
            let answer = server.post(path, body.clone()).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        }
    }
}

/// Each family reads its own errors on its paths, whatever refused the request.
#[tokio::test]
async fn errors_have_the_shape_of_their_family() {
    let server = Server::with(|setup| setup.key("k")).await;
    let send = |method: &str, path: &str, headers: &[(&str, &str)], body: &'static str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = server.client.request(method, server.url(path)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    let (key, json_type) = (("x-api-key", "k"), ("content-type", "application/json"));
    for (status, method, end, headers, body) in [
        (401, "POST", "", vec![json_type], "{}"),
        (403, "POST", "", vec![key, json_type, ("origin", "https://evil.example")], "{}"),
        (404, "GET", "/nope", vec![key], ""),
        (405, "PUT", "", vec![key], "{}"),
        (415, "POST", "", vec![key, ("content-type", "text/plain"), ("origin", "http://localhost")], "{}"),
        (400, "POST", "", vec![key, json_type], "{"),
        (413, "POST", "", vec![key, json_type, ("content-length", "100000000")], ""),
    ] {
        for root in ["/v1/chat/completions", "/v1/messages", "/api/chat"] {
            let path = format!("{root}{end}");
            if status == 413 {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\ncontent-length: 100000000\r\n\r\n{{"
                );
                let answer = server.raw(head).await;
                let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
                assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
                is_of_family(root, &serde_json::from_str(body).expect("a body of JSON"));
                continue;
            }
            let answer = send(method, &path, &headers, body).await;
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
            is_of_family(root, &answer.json());
        }
    }
}

fn is_of_family(root: &str, body: &Value) {
    match root {
        "/api/chat" => assert!(body["error"].is_string(), "{body}"),
        "/v1/messages" => {
            assert_eq!(body["type"], "error", "{body}");
            assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string(), "{body}");
            assert!(body["request_id"].as_str().is_some_and(|id| id.starts_with("req_")), "{body}");
        }
        _ => {
            let keys: Vec<&String> = body["error"].as_object().expect("an error").keys().collect();
            assert_eq!(keys, ["message", "type", "param", "code"], "{body}");
            assert!(body["error"]["code"].is_string() || body["error"]["code"].is_null(), "{body}");
        }
    }
}

/// `HEAD` works wherever `GET` does, with the same headers and no body.
#[tokio::test]
async fn head_is_get_without_a_body() {
    let server = Server::with(|setup| setup.http.expose_slots = true).await;
    let document = server.get("/openapi.json").await.json();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        if item.get("get").is_none() {
            continue;
        }
        let path = path.replace("{id}", "default").replace("{digest}", "x");
        let get = server.get(&path).await;
        let head = server.client.head(server.url(&path)).send().await.expect("an answer");
        assert_eq!(head.status().as_u16(), get.status, "{path}");
        let kind = head.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        assert_eq!(kind, Some(get.header("content-type")), "{path}");
        assert!(head.bytes().await.expect("no body").is_empty(), "{path}");
    }
}

/// A BOM is refused or skipped, also where a client's text editor put one; so is UTF-16.
#[tokio::test]
async fn byte_order_marks_are_no_5xx() {
    let server = Server::start().await;
    let body = "{\"prompt\":\"x\"}";
    let wide: Vec<u8> = body.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [[b"\xef\xbb\xbf", body.as_bytes()].concat(), [b"\xff\xfe", wide.as_slice()].concat(), wide] {
        let request = server.client.post(server.url("/v1/completions")).header("content-type", "application/json");
        let answer = Answer::of(request.body(bytes).send().await.expect("an answer")).await;
        assert_eq!(answer.error(), (400, "invalid_request_error".to_owned(), None, None));
    }
}
