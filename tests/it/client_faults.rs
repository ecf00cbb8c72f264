//! What breaks real clients, where one fault may come from many places: the contract's section 6.2 and the rows near it. The
//! other faults of that section are named by the tests of their endpoints.

use crate::support::{Answer, Events, Server, chat_body, with};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// One request for each kind of refusal: method, path, body, header, status.
type Refused = (&'static str, &'static str, String, (&'static str, &'static str), u16);

fn refusals() -> Vec<Refused> {
    let chat = |more: Value| chat_body("x", more).to_string();
    let json = ("content-type", "application/json");
    let path = "/v1/chat/completions";
    vec![
        ("POST", path, "{".to_owned(), json, 400),
        ("POST", path, chat(json!({ "temperature": "hot" })), json, 400),
        ("POST", path, chat(json!({ "max_tokens": 0, "stream": true })), json, 400),
        ("POST", path, chat(json!({ "messages": [{ "role": "user", "content": "x".repeat(9_000) }] })), json, 400),
        ("POST", path, chat(json!({ "tool_choice": "required" })), json, 400),
        ("POST", path, chat(json!({})), ("authorization", "Bearer wrong"), 401),
        ("POST", path, chat(json!({})), ("origin", "http://evil.example"), 403),
        ("POST", path, chat(json!({ "model": "none" })), json, 404),
        ("POST", "/v1/nowhere", "{}".to_owned(), json, 404),
        ("GET", path, String::new(), json, 405),
        ("POST", path, chat(json!({ "metadata": { "pad": "x".repeat(70_000) } })), json, 413),
        ("POST", path, chat(json!({})), ("content-type", "text/plain"), 415),
        ("POST", "/v1/embeddings", json!({ "input": "x" }).to_string(), json, 400),
        ("POST", "/v1/completions", json!({ "prompt": [] }).to_string(), json, 400),
        ("GET", "/v1/models/none", String::new(), json, 404),
        ("GET", "/v1/responses/resp_none", String::new(), json, 404),
    ]
}

/// ERR-16: no SDK tries again what a retry can't cure (they do at 408, 409, 429, 500 and above, and where a header says
/// so). FAULT-09: the code of an error is a text or null, for clients type it so.
#[tokio::test]
async fn refusals_are_final_and_their_codes_are_texts() {
    let server = Server::with(|setup| {
        setup.key("k");
        setup.http.body_bytes_max = 64 << 10;
    })
    .await;
    for (method, path, body, (name, value), status) in refusals() {
        let method = method.parse().expect("a method");
        let mut request = server.client.request(method, server.url(path)).body(body);
        if name != "authorization" {
            request = request.header("authorization", "Bearer k");
        }
        if name != "content-type" {
            request = request.header("content-type", "application/json");
        }
        let answer = Answer::of(request.header(name, value).send().await.expect("an answer")).await;
        assert_eq!(answer.status, status, "{path} {name}: {value}: {}", answer.text);
        assert!(![408, 409, 429].contains(&answer.status) && answer.status < 500);
        assert!(answer.headers.get("retry-after").is_none() && answer.header("x-should-retry") != "true");
        let code = &answer.json()["error"]["code"];
        assert!(code.is_string() || code.is_null(), "{}", answer.text);
        assert_eq!(answer.error().1, "invalid_request_error");
    }
}

/// FAULT-12: openai-node's accumulator throws at a type that it doesn't know.
#[tokio::test]
async fn responses_tell_events_of_known_types_only() {
    const KNOWN: [&str; 20] = [
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.refusal.delta",
        "response.refusal.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "error",
    ];
    let server = Server::with(|setup| setup.http.ping_interval = std::time::Duration::from_millis(5)).await;
    let tools = json!([
        { "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} }, "strict": false },
        { "type": "custom", "name": "patch" },
        { "type": "web_search_preview" },
    ]);
    for (input, more) in [
        ("text", json!({})),
        ("/think of it", json!({ "include": ["reasoning.encrypted_content"] })),
        ("so:\n/call f {}\n/call patch {\"input\":\"a\"}", json!({ "tools": tools })),
        ("/count 100", json!({ "max_output_tokens": 5 })),
        ("x", json!({ "top_logprobs": 1, "include": ["message.output_text.logprobs"] })),
    ] {
        let body = with(json!({ "input": input, "stream": true }), more);
        let text = server.send("/v1/responses", &body).await.text().await.expect("a whole stream");
        let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert!(kinds.len() > 5, "{text}");
        assert!(kinds.iter().all(|kind| KNOWN.contains(kind)), "{kinds:?}");
    }
}

/// FAULT-18: what no parser can read is text; a 500 would be asked for twice more and fail again.
#[tokio::test]
async fn output_that_can_not_be_read_is_text() {
    let server = Server::start().await;
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    for broken in [
        "<tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":",
        "<tool_call>no JSON at all</tool_call>",
        "<tool_call>{\"name\":7}</tool_call> and more",
        "<think>without an end",
        "</think></tool_call>",
    ] {
        for (path, body) in [
            ("/v1/chat/completions", chat_body(broken, json!({ "tools": tools }))),
            (
                "/v1/messages",
                chat_body(broken, json!({ "max_tokens": 200, "tools": [{ "name": "f", "input_schema": {} }] })),
            ),
            ("/api/chat", chat_body(broken, json!({ "stream": false, "tools": tools }))),
            (
                "/v1/responses",
                json!({ "input": broken, "tools": [{ "type": "function", "name": "f", "strict": false }] }),
            ),
        ] {
            let answer = server.post(path, with(body.clone(), json!({ "model": "default" }))).await;
            assert_eq!(answer.status, 200, "{path} {broken}: {}", answer.text);
        }
        // A call that was begun is brought to its end by the grammar: it can be run, or there is none.
        let chat = server.chat(broken, json!({ "tools": tools })).await.json();
        let choice = &chat["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let arguments = |call: &Value| serde_json::from_str::<Value>(call["function"]["arguments"].as_str()?).ok();
        assert!(calls.iter().all(|call| arguments(call).is_some_and(|it| it.is_object())), "{broken}: {chat}");
        let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
        assert_eq!(choice["finish_reason"], finish, "{broken}");
        let events = server.stream_chat(broken, json!({ "tools": tools })).await;
        assert!(events.is_done && events.finish(0) == [finish], "{broken}");
    }
}

/// STRM-14: what nginx asks for in its own name: HTTP/1.0, a connection for one answer, gzip. Each event passes when it
/// comes, as it is, and the end of the connection is the end of the body.
#[tokio::test]
async fn a_proxy_of_http_1_0_gets_each_event_at_once() {
    let server = Server::with(|setup| {
        setup.scripted().step_us = 2_000;
        setup.engine.n_ctx = Some(100_000);
    })
    .await;
    let body = chat_body("/count 300", json!({ "stream": true })).to_string();
    let mut socket = server.connect().await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\
         X-Forwarded-For: 10.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    let (mut seen, mut buffer, mut n_reads) = (Vec::new(), [0; 65_536], 0);
    loop {
        let n = socket.read(&mut buffer).await.expect("the connection lives");
        if n == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[..n]);
        n_reads += 1;
    }
    let text = String::from_utf8(seen).expect("a stream of UTF-8");
    let (head, events) = text.split_once("\r\n\r\n").expect("headers");
    let head = head.to_ascii_lowercase();
    assert!(!head.contains("content-encoding") && !head.contains("transfer-encoding"), "{head}");
    assert!(head.contains("x-accel-buffering: no"), "{head}");
    let events = Events::parse(events.as_bytes());
    assert!(events.is_done && events.text(0, "content").ends_with("299 300"));
    assert!(n_reads > 10, "{n_reads} reads: the stream was held back");
}
