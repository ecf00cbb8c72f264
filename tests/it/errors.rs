//! Refusals: envelopes, statuses, hostile bodies. Names are the contract's rows.

use crate::support::{Answer, PATIENCE, Server, chat_body, read_quiet, with};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

type Code = (u16, String, Option<String>, Option<String>);

fn code(status: u16, kind: &str, code: &str) -> Code {
    (status, kind.to_owned(), Some(code.to_owned()), None)
}

async fn post_bytes(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = server.client.post(server.url(path)).header("content-type", "application/json").body(body);
    Answer::of(request.send().await.expect("an answer")).await
}

#[tokio::test]
async fn bodies_that_are_no_object_of_json() {
    let server = Server::start().await;
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for body in [
        &b""[..],
        b"[]",
        b"\"x\"",
        b"{",
        b"{} x",
        b"{\"a\":NaN}",
        b"{\"temperature\":1e400}",
        b"{\"a\":\"\xff\xfe\"}",
        b"{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud83d\"}]}",
        b"{\"model\":\"a\",\"model\":\"b\"}",
        deep.as_bytes(),
    ] {
        for path in ["/v1/chat/completions", "/v1/completions", "/tokenize"] {
            let answer = post_bytes(&server, path, body.to_vec()).await;
            let expected = (400, "invalid_request_error".to_owned(), None, None);
            assert_eq!(answer.error(), expected, "{}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        }
    }
}

#[tokio::test]
async fn err_12_odd_numbers_crash_nothing() {
    let server = Server::start().await;
    for number in ["-0", "-0.0", "1e-400", "0.1e1", "1E2"] {
        let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"temperature\":{number}}}");
        assert_eq!(post_bytes(&server, "/v1/chat/completions", body).await.status, 200, "{number}");
    }
}

#[tokio::test]
async fn messages_are_checked_at_their_place() {
    let server = Server::start().await;
    for (messages, code, param) in [
        (json!([]), "empty_array", "messages"),
        (json!("x"), "invalid_type", "messages"),
        (json!([{"content":"x"}]), "missing_required_parameter", "messages[0].role"),
        (json!([{"role":"robot","content":"x"}]), "invalid_value", "messages[0].role"),
        (json!([{"role":"user","content":5}]), "invalid_type", "messages[0].content"),
        (json!([{"role":"user","content":{"a":1}}]), "invalid_type", "messages[0].content"),
        (json!([{"role":"user"}]), "missing_required_parameter", "messages[0].content"),
        (
            json!([{"role":"user","content":[{"text":"x"}]}]),
            "missing_required_parameter",
            "messages[0].content[0].type",
        ),
        (
            json!([{"role":"user","content":"a"},{"role":"user","content":["x"]}]),
            "invalid_type",
            "messages[1].content[0]",
        ),
        (
            json!([{"role":"assistant","tool_calls":[{"id":"a","function":{}}]}]),
            "missing_required_parameter",
            "messages[0].tool_calls[0].function.name",
        ),
    ] {
        server.post("/v1/chat/completions", json!({ "messages": messages })).await.is_refusal(code, param);
    }
    server.post("/v1/chat/completions", json!({})).await.is_refusal("missing_required_parameter", "messages");
}

/// By the server's own clock: a busy machine takes its time to make and send a body of 14 MB.
fn came_soon(answer: &Answer) {
    let ms: u64 = answer.header("openai-processing-ms").parse().expect("a number");
    // A second on a machine of its own; other tests share this one, and what is kept out took minutes.
    assert!(ms < 8000, "{ms} ms: {}", answer.text);
}

/// Each of these brought some server down, or made it work for minutes.
#[tokio::test]
async fn hostile_values_are_refused_soon_and_the_engine_lives() {
    let server = Server::start().await;
    let biases: serde_json::Map<_, _> = (0..1_000_000).map(|id: u32| (id.to_string(), json!(1))).collect();
    for (more, code, param) in [
        (json!({ "n": 1_000_000_000 }), "integer_above_max_value", "n"),
        (json!({ "temperature": 1e308 }), "decimal_above_max_value", "temperature"),
        (json!({ "temperature": -0.1 }), "decimal_below_min_value", "temperature"),
        (json!({ "top_p": 1.01 }), "decimal_above_max_value", "top_p"),
        (json!({ "frequency_penalty": -2.5 }), "decimal_below_min_value", "frequency_penalty"),
        (json!({ "top_k": -5 }), "integer_below_min_value", "top_k"),
        (json!({ "repeat_last_n": 200_000_000 }), "integer_above_max_value", "repeat_last_n"),
        (json!({ "repeat_last_n": 2_000_000_000 }), "integer_above_max_value", "repeat_last_n"),
        (json!({ "dry_penalty_last_n": 2_000_000_000 }), "integer_above_max_value", "dry_penalty_last_n"),
        (json!({ "dry_sequence_breakers": vec!["x"; 1000] }), "array_above_max_length", "dry_sequence_breakers"),
        (json!({ "mirostat": 3 }), "integer_above_max_value", "mirostat"),
        (json!({ "samplers": ["bogus"] }), "invalid_value", "samplers[0]"),
        (json!({ "stop": vec!["x"; 100_000] }), "array_above_max_length", "stop"),
        (json!({ "stop": ["y".repeat(2000)] }), "string_above_max_length", "stop[0]"),
        (json!({ "seed": 1e30 }), "integer_above_max_value", "seed"),
        (
            json!({ "messages": vec![json!({"role":"user","content":""}); 100_000] }),
            "array_above_max_length",
            "messages",
        ),
        (json!({ "messages": vec![0; 1_000_000] }), "array_above_max_length", "messages"),
        (json!({ "logit_bias": biases }), "array_above_max_length", "logit_bias"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "integer_above_max_value", "top_logprobs"),
        (json!({ "chat_template_kwargs": [] }), "invalid_type", "chat_template_kwargs"),
        (
            json!({ "tools": vec![json!({"type":"function","function":{"name":"f"}}); 10_000] }),
            "array_above_max_length",
            "tools",
        ),
    ] {
        let body = with(chat_body("x", json!({})), more).to_string();
        let answer = post_bytes(&server, "/v1/chat/completions", body).await;
        answer.is_refusal(code, param);
        came_soon(&answer);
    }
    let many = format!("{{\"prompt\":[{}0]}}", "0,".repeat(4_000_000));
    let answer = post_bytes(&server, "/v1/completions", many).await;
    assert_eq!(answer.status, 400);
    came_soon(&answer);
    assert_eq!(server.chat("still here", json!({})).await.content(), "still here");
}

#[tokio::test]
async fn hostile_texts_are_refused_soon() {
    let server = Server::start().await;
    for text in ["Z".repeat(131_072), " ".repeat(1 << 20), "\u{1f468}\u{200d}".repeat(150_000), "\0".repeat(5000)] {
        let answer = server.chat(&text, json!({})).await;
        answer.is_refusal("context_length_exceeded", "messages");
        came_soon(&answer);
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/nope").await.error(), code(404, "invalid_request_error", "unknown_url"));
    let wrong = server.get("/v1/chat/completions").await;
    assert_eq!(wrong.error(), code(405, "invalid_request_error", "method_not_supported"));
    assert_eq!(wrong.header("allow"), "POST");
    let wrong = server.post("/v1/models", json!({})).await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, "GET,HEAD"));
}

#[tokio::test]
async fn err_01_a_full_queue_says_when_to_come_again() {
    let server = Server::with(|setup| {
        (setup.engine.n_slots, setup.engine.n_queue) = (1, 1);
        // Longer than anybody waits: only who leaves frees the slot.
        setup.engine.n_ctx = Some(1_000_000);
        setup.scripted().step_us = 500;
    })
    .await;
    let held = (server.open_stream("/forever").await, server.open_stream("/forever").await);
    for stream in [false, true] {
        let answer = server.chat("x", json!({ "stream": stream })).await;
        assert_eq!(answer.error(), code(503, "server_error", "server_is_overloaded"));
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1));
    }
    assert_eq!(server.get("/readyz").await.status, 503);
    drop(held);
    server.idle().await;
    assert_eq!(server.chat("x", json!({})).await.content(), "x");
}

#[tokio::test]
async fn err_02_while_loading_every_api_path_says_so() {
    let server = Server::with(|setup| {
        setup.while_loading = true;
        setup.scripted().load_ms = 3_000;
    })
    .await;
    let body = chat_body("x", json!({}));
    for answer in [
        server.post("/v1/chat/completions", body).await,
        server.post("/v1/completions", json!({ "prompt": "x" })).await,
        server.post("/tokenize", json!({ "content": "x" })).await,
        server.get("/v1/models").await,
        server.get("/v1/models/default").await,
        server.get("/props").await,
    ] {
        assert_eq!(answer.error(), code(503, "server_error", "model_loading"));
        let seconds: u32 = answer.header("retry-after").parse().expect("an integer");
        assert!((1..=5).contains(&seconds));
    }
    crate::support::ready(&server.engine).await;
    assert_eq!(server.chat("x", json!({})).await.content(), "x");
}

#[tokio::test]
async fn err_03_a_body_too_large_is_refused_early() {
    let server = Server::start().await;
    let started = Instant::now();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 68157440\r\n\r\n{";
    let answer = server.raw(head).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("request_too_large"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"));
    assert!(started.elapsed() < Duration::from_secs(8));
    // A client that sends it all still reads the answer, not a reset.
    let answer = post_bytes(&server, "/v1/chat/completions", vec![b' '; 65 << 20]).await;
    assert_eq!(answer.error(), code(413, "invalid_request_error", "request_too_large"));
}

#[tokio::test]
async fn err_03_a_chunked_body_too_large_is_refused_too() {
    let server = Server::with(|setup| setup.http.body_bytes_max = 1 << 20).await;
    let parts = futures_util::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 16])));
    let answer = post_bytes(&server, "/v1/chat/completions", reqwest::Body::wrap_stream(parts)).await;
    assert_eq!(answer.error(), code(413, "invalid_request_error", "request_too_large"));
}

#[tokio::test]
async fn bodies_of_all_requests_together_are_bounded() {
    let server = Server::with(|setup| setup.http.body_bytes_max = 1 << 20).await;
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", 1 << 20);
    let almost = [head.as_bytes(), &vec![b' '; (1 << 20) - 1]].concat();
    // Four fit; of five that each wait for their last byte, one at least is refused. Whoever hears nothing for a second after
    // that is not.
    let one_is_refused = CancellationToken::new();
    let ask = |_| {
        let (server, almost, one_is_refused) = (&server, &almost, &one_is_refused);
        async move {
            let mut socket = server.connect().await;
            // The server may answer and close before it has read everything.
            let _ = socket.write_all(almost).await;
            let silence = async {
                one_is_refused.cancelled().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
            let mut first = [0];
            tokio::select! {
                _ = socket.peek(&mut first) => one_is_refused.cancel(),
                () = silence => return String::new(),
            }
            read_quiet(&mut socket).await
        }
    };
    let answers = tokio::time::timeout(PATIENCE, futures_util::future::join_all((0..5).map(ask))).await;
    let answers = answers.expect("one is refused in time");
    let refused: Vec<&String> = answers.iter().filter(|answer| !answer.is_empty()).collect();
    assert!((1..5).contains(&refused.len()), "{refused:?}");
    assert!(
        refused.iter().all(|answer| answer.starts_with("HTTP/1.1 503 ") && answer.contains("server_is_overloaded"))
    );
    assert_eq!(server.chat("after", json!({})).await.content(), "after");
}

#[tokio::test]
async fn content_types_that_a_web_form_can_send_are_refused() {
    let server = Server::start().await;
    let send = |kind: Option<&'static str>, encoding: Option<&'static str>| {
        let mut request =
            server.client.post(server.url("/v1/chat/completions")).body(chat_body("x", json!({})).to_string());
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    for kind in
        [None, Some("application/json"), Some("Application/JSON; charset=utf-8"), Some("application/vnd.x+json")]
    {
        assert_eq!(send(kind, None).await.status, 200, "{kind:?}");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        assert_eq!(
            send(Some(kind), None).await.error(),
            code(415, "invalid_request_error", "unsupported_content_type")
        );
    }
    assert_eq!(send(None, Some("gzip")).await.status, 415);
}

#[tokio::test]
async fn err_06_either_header_carries_the_key_and_nothing_echoes_it() {
    let server = Server::with(|setup| setup.key("right-key")).await;
    let ask = |name: &'static str, value: &'static str| {
        let request = server.client.get(server.url("/v1/models")).header(name, value);
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    for (name, value) in
        [("authorization", "Bearer right-key"), ("authorization", "bearer right-key"), ("x-api-key", "right-key")]
    {
        assert_eq!(ask(name, value).await.status, 200, "{name}: {value}");
    }
    for (name, value) in [
        ("authorization", "Bearer wrong-key"),
        ("authorization", "Bearer "),
        ("authorization", "Basic right-key"),
        ("x-api-key", "right-keyx"),
        ("x-other", "right-key"),
    ] {
        let answer = ask(name, value).await;
        assert_eq!(answer.error(), code(401, "invalid_request_error", "invalid_api_key"));
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert!(!answer.text.contains("-key"), "{}", answer.text);
    }
}

#[tokio::test]
async fn every_path_but_the_public_ones_needs_the_key() {
    let server = Server::with(|setup| {
        setup.key("k");
        setup.http.expose_slots = true;
    })
    .await;
    for path in ["/", "/health", "/v1/health", "/livez", "/readyz", "/health/"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/metrics", "/props", "/slots", "/v1/models", "/models/x", "/nope", "/v1/chat/completions", "//health"]
    {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    for path in ["/v1/chat/completions", "/completions", "/tokenize", "/detokenize", "/apply-template", "/", "/health"]
    {
        let status = server.post(path, json!({})).await.status;
        assert!(status == 401 || status == 405, "{path}: {status}");
    }
}

#[tokio::test]
async fn err_15_unprefixed_paths_and_one_slash() {
    let server = Server::start().await;
    for path in
        ["/chat/completions", "/v1/chat/completions/", "/chat/completions/?beta=true", "/v1/chat/completions?x=1"]
    {
        assert_eq!(server.post(path, chat_body("hi", json!({}))).await.content(), "hi", "{path}");
    }
    assert_eq!(server.post("/completions/", json!({ "prompt": "hi" })).await.content(), "hi");
    for path in ["/models", "/v1/models/", "/models/"] {
        assert_eq!(server.get(path).await.json()["object"], "list", "{path}");
    }
    assert_eq!(server.get("/v1/models//").await.status, 404);
}

#[tokio::test]
async fn a_generation_cut_by_the_engines_close_is_503() {
    let server = Server::with(|setup| setup.scripted().step_us = 500).await;
    let asking = server.chat("/forever", json!({}));
    let closing = async {
        server.busy(1).await;
        server.engine.close().await;
    };
    let (answer, ()) = tokio::join!(asking, closing);
    assert_eq!(answer.error(), code(503, "server_error", "shutting_down"));
    let after = server.chat("x", json!({})).await;
    assert_eq!(after.status, 503);
    assert_eq!(after.json()["error"]["param"], Value::Null);
}
