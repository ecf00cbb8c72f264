//! The tables of fields in the contract's sections 1 to 4: what is taken, and what is refused at which field. The forms of
//! answers are in each surface's own file.

use crate::support::{Answer, Server, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const OLLAMA: &str = "/api/chat";

fn user() -> Value {
    json!([{ "role": "user", "content": "hi" }])
}

/// The least request of a path with further fields.
fn body(path: &str, more: Value) -> Value {
    let least = match path {
        CHAT => json!({ "messages": user(), "max_tokens": 8 }),
        TEXT => json!({ "prompt": "x", "max_tokens": 2 }),
        RESPONSES => json!({ "input": "hi", "max_output_tokens": 16 }),
        MESSAGES => json!({ "messages": user(), "max_tokens": 8 }),
        OLLAMA => json!({ "messages": user(), "stream": false, "options": { "num_predict": 4 } }),
        _ => json!({}),
    };
    with(least, more)
}

async fn ask(server: &Server, path: &str, more: Value) -> Answer {
    server.post(path, body(path, more)).await
}

/// Each is answered, and nothing of it is unknown.
async fn all_taken(server: &Server, path: &str, bodies: Vec<Value>) {
    for more in bodies {
        let answer = ask(server, path, more.clone()).await;
        assert_eq!(answer.status, 200, "{path} {more}: {}", answer.text);
        assert_eq!(answer.header("x-hearth-ignored"), "", "{path} {more}");
    }
}

/// Each is a 400 whose parameter (or text, where the family has none) names the field.
async fn all_refused(server: &Server, path: &str, bodies: Vec<(Value, &str)>) {
    for (more, field) in bodies {
        let answer = ask(server, path, more.clone()).await;
        let shown: String = answer.text.chars().take(300).collect();
        assert_eq!(answer.status, 400, "{path} {more}: {shown}");
        let error = &answer.json()["error"];
        let named =
            error["param"].as_str().or(error["message"].as_str()).or(error.as_str()).unwrap_or_default().to_owned();
        assert!(named.contains(field), "{path} {more}: {field} is not named: {shown}");
    }
}

fn tool(name: &str) -> Value {
    json!([{ "type": "function", "function": { "name": name } }])
}

/// 1.2 and 1.4.
#[tokio::test]
async fn chats() {
    let server = Server::start().await;
    let turns = |middle: Value| json!({ "messages": [user()[0], middle, user()[0]] });
    let called = json!([{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "not json" } }]);
    let history = json!({ "messages": [user()[0], { "role": "assistant", "tool_calls": called },
        { "role": "tool", "tool_call_id": "another", "content": [{ "type": "text", "text": "r" }] }] });
    let mut taken: Vec<Value> = [-5, -1, 0, i64::MAX, i64::MIN].map(|seed| json!({ "seed": seed })).into();
    taken.extend(
        ["system", "developer", "user", "assistant", "tool", "function"]
            .map(|role| turns(json!({ "role": role, "content": "x", "name": "bob" }))),
    );
    taken.extend([
        json!({ "temperature": 0 }),
        json!({ "temperature": 3 }),
        json!({ "top_p": 0 }),
        json!({ "frequency_penalty": -2, "presence_penalty": 2 }),
        json!({ "logit_bias": { "5": 500, "6": -1000 } }),
        json!({ "modalities": ["text"] }),
        json!({ "audio": { "voice": "x", "format": "wav" } }),
        turns(json!({ "role": "assistant", "content": null })),
        turns(json!({ "role": "assistant" })),
        turns(json!({ "role": "assistant", "content": null, "function_call": { "name": "f", "arguments": "{}" } })),
        json!({ "messages": [{ "role": "user", "content": "" }] }),
        history,
        json!({ "tool_choice": "auto" }),
        json!({ "tool_choice": "none" }),
        json!({ "tools": tool("f") }),
        json!({ "tools": tool("mcp.server-1_x") }),
        json!({ "tools": tool(&"n".repeat(128)) }),
        json!({ "stream_options": { "include_usage": true } }),
        json!({ "stop": ["", "zzz"] }),
        json!({ "verbosity": "high", "service_tier": "priority", "n": 2, "logprobs": false }),
    ]);
    all_taken(&server, CHAT, taken).await;
    let named = json!({ "type": "function", "function": { "name": "f" } });
    let lark = json!([{ "type": "custom", "custom": { "name": "c", "format": { "type": "grammar",
        "grammar": { "syntax": "lark", "definition": "x" } } } }]);
    all_refused(
        &server,
        CHAT,
        vec![
            (json!({ "top_p": 1.1 }), "top_p"),
            (json!({ "top_p": -0.1 }), "top_p"),
            (json!({ "presence_penalty": 2.1 }), "presence_penalty"),
            (json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
            (json!({ "stop": [5] }), "stop[0]"),
            (json!({ "stream": 1 }), "stream"),
            (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
            (json!({ "logprobs": false, "top_logprobs": 1 }), "top_logprobs"),
            (json!({ "modalities": ["text", "audio"], "audio": { "voice": "x", "format": "wav" } }), "modalities"),
            (json!({ "tool_choice": "required" }), "tool_choice"),
            (json!({ "tool_choice": named }), "tool_choice"),
            (json!({ "tool_choice": "maybe", "tools": tool("f") }), "tool_choice"),
            (json!({ "tools": tool(&"n".repeat(129)) }), "tools[0].function.name"),
            (json!({ "tools": tool("") }), "tools[0].function.name"),
            (json!({ "tools": lark }), "tools[0]"),
            (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        ],
    )
    .await;
}

/// 1.6 and 1.7.
#[tokio::test]
async fn texts_and_vectors() {
    let server = Server::start().await;
    let fields = json!([{ "logprobs": 20 }, { "logprobs": 0 }, { "max_tokens": -1 }, { "n": 3 }, { "suffix": "" },
        { "echo": true }, { "best_of": 2 }, { "prompt": "" }, { "prompt": [104, 105] }, { "prompt": [[104], [105]] }]);
    all_taken(&server, TEXT, fields.as_array().expect("an array").clone()).await;
    all_refused(
        &server,
        TEXT,
        vec![
            (json!({ "logprobs": 21 }), "logprobs"),
            (json!({ "n": 2, "best_of": 1 }), "best_of"),
            (json!({ "prompt": ["a", 1] }), "prompt"),
            (json!({ "prompt": [] }), "prompt"),
            (json!({ "prompt": [1.5] }), "prompt"),
            (json!({ "prompt": [-1] }), "prompt"),
            (json!({ "prompt": [100_000_000] }), "prompt"),
            (json!({ "prompt": null }), "prompt"),
        ],
    )
    .await;
    let embeds = Server::with(|setup| setup.scripted().embeds = 1).await;
    let inputs = json!([{ "input": "x" }, { "input": ["x", "y"] }, { "input": [104] }, { "input": [[104], [105]] },
        { "input": "x", "dimensions": 1 }, { "input": "x", "encoding_format": "base64", "user": "u" }]);
    all_taken(&embeds, "/v1/embeddings", inputs.as_array().expect("an array").clone()).await;
    all_refused(
        &embeds,
        "/v1/embeddings",
        vec![
            (json!({ "input": "x", "dimensions": 0 }), "dimensions"),
            (json!({ "input": "x", "dimensions": 100_000 }), "dimensions"),
            (json!({ "input": "x", "encoding_format": "int8" }), "encoding_format"),
            (json!({ "input": ["x", 1] }), "input"),
            (json!({}), "input"),
        ],
    )
    .await;
}

/// 1.9.
#[tokio::test]
async fn responses() {
    let server = Server::start().await;
    let many = json!({
        "metadata": { "a": "b" }, "user": "u", "truncation": "auto", "include": ["file_search_call.results"],
        "max_tool_calls": 3, "service_tier": "flex", "stream_options": { "include_obfuscation": true },
        "prompt_cache_key": "k", "safety_identifier": "s", "text": { "verbosity": "low" },
        "reasoning": { "effort": "low", "summary": "auto" }, "context_management": [],
    });
    let answer = ask(&server, RESPONSES, many.clone()).await.json();
    for key in ["metadata", "user", "truncation", "max_tool_calls"] {
        assert_eq!(answer[key], many[key], "{key} is echoed");
    }
    assert_eq!(answer["service_tier"], "flex");
    let hosted =
        ["web_search", "file_search", "code_interpreter", "mcp", "local_shell", "apply_patch", "image_generation"];
    let hosted: Vec<Value> = hosted.iter().map(|kind| json!({ "type": kind })).collect();
    all_taken(
        &server,
        RESPONSES,
        vec![
            many,
            json!({ "background": false, "conversation": null }),
            json!({ "tools": hosted }),
            json!({ "input": [{ "role": "developer", "content": "d" }, { "type": "message", "role": "user", "content": "x" }] }),
        ],
    )
    .await;
    all_refused(
        &server,
        RESPONSES,
        vec![
            (json!({ "background": true }), "background"),
            (json!({ "conversation": "c" }), "conversation"),
            (json!({ "prompt": { "id": "x" } }), "prompt"),
            (json!({ "moderation": { "a": 1 } }), "moderation"),
            (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
            (json!({ "input": null }), "input"),
            (json!({ "input": [{ "type": "hologram" }] }), "input[0].type"),
            (json!({ "input": [{ "role": "tool", "content": "x" }] }), "input[0].role"),
            (json!({ "top_logprobs": 21 }), "top_logprobs"),
            (json!({ "previous_response_id": "resp_no" }), "previous_response_id"),
            (json!({ "truncation": "maybe" }), "truncation"),
            (json!({ "tools": [{ "type": "web_search" }], "tool_choice": { "type": "web_search" } }), "tool_choice"),
        ],
    )
    .await;
}

/// 2.
#[tokio::test]
async fn messages() {
    let server = Server::start().await;
    let of = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let tools =
        json!([{ "name": "f", "input_schema": { "type": "object" }, "cache_control": { "type": "ephemeral" } }]);
    let mut taken: Vec<Value> = ["enabled", "adaptive", "disabled", "between_tools"]
        .map(|kind| json!({ "thinking": { "type": kind, "budget_tokens": 1024 } }))
        .into();
    taken.extend(
        [
            json!({ "type": "auto" }),
            json!({ "type": "any" }),
            json!({ "type": "tool", "name": "f" }),
            json!({ "type": "none" }),
            json!({ "type": "auto", "disable_parallel_tool_use": true }),
        ]
        .map(|choice| json!({ "tools": tools, "tool_choice": choice, "max_tokens": 40 })),
    );
    let called =
        json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": {} }] });
    let thought = json!({ "role": "assistant", "content": [{ "type": "redacted_thinking", "data": "x" },
        { "type": "thinking", "thinking": "h", "signature": "any" }, { "type": "text", "text": "a", "citations": null }] });
    taken.extend([
        json!({ "metadata": { "user_id": "u" }, "service_tier": "auto", "speed": "fast", "container": "c",
            "context_management": {}, "inference_geo": "eu", "diagnostics": {}, "mcp_servers": [],
            "cache_control": { "type": "ephemeral" }, "temperature": 1, "top_p": 0.9, "top_k": 5 }),
        json!({ "system": [{ "type": "text", "text": "s", "cache_control": { "type": "ephemeral" } }] }),
        json!({ "messages": [{ "role": "system", "content": "x" }, user()[0]] }),
        of(json!([{ "type": "search_result", "title": "t", "source": "s", "content": [{ "type": "text", "text": "x" }] },
            { "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "d" } }])),
        json!({ "messages": [user()[0], called, { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t" }] }] }),
        json!({ "messages": [user()[0], thought, user()[0]] }),
        json!({ "max_tokens": 1_000_000, "stop_sequences": ["zzz"] }),
    ]);
    all_taken(&server, MESSAGES, taken).await;
    let pdf = json!([{ "type": "document", "source": { "type": "base64", "media_type": "application/pdf", "data": "JVBERi0=" } }]);
    all_refused(
        &server,
        MESSAGES,
        vec![
            (json!({ "thinking": { "type": "odd" } }), "thinking.type"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (json!({ "max_tokens": null }), "max_tokens"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].role"),
            (of(json!([{ "type": "odd" }])), "messages[0].content[0].type"),
            (of(pdf), "messages[0].content[0]"),
            (json!({ "mcp_servers": [{ "url": "x" }] }), "mcp_servers"),
            (json!({ "tool_choice": { "type": "any" } }), "tool_choice"),
        ],
    )
    .await;
}

/// 3.
#[tokio::test]
async fn ollama() {
    let server = Server::start().await;
    let mut taken: Vec<Value> = [json!(""), json!(null), json!("json"), json!({ "type": "object" })]
        .map(|format| json!({ "format": format }))
        .into();
    taken.extend(
        [json!("5m"), json!(-1), json!(0), json!(1800), json!("1h30m"), json!("-1")]
            .map(|time| json!({ "keep_alive": time })),
    );
    taken.extend([json!(true), json!(false), json!("low"), json!("high")].map(|think| json!({ "think": think })));
    taken.push(json!({ "options": { "num_ctx": 1_000_000_000, "stop": "x", "num_predict": -2, "num_gpu": 99 } }));
    all_taken(&server, OLLAMA, taken).await;
    all_refused(
        &server,
        OLLAMA,
        vec![
            (json!({ "format": "xml" }), "format"),
            (json!({ "think": "hard" }), "think"),
            (json!({ "keep_alive": "soon" }), "keep_alive"),
            (json!({ "options": { "temperature": "hot" } }), "options.temperature"),
            (json!({ "messages": [{ "content": "x" }] }), "messages[0].role"),
        ],
    )
    .await;
    for (more, reason) in [(json!({ "keep_alive": 0 }), "unload"), (json!({}), "load")] {
        let answer = ask(&server, OLLAMA, with(json!({ "messages": [] }), more)).await.json();
        assert_eq!((&answer["done_reason"], &answer["done"]), (&json!(reason), &json!(true)));
    }
    for (method, path, status) in [
        ("POST", "/api/create", 403),
        ("POST", "/api/copy", 403),
        ("POST", "/api/push", 403),
        ("DELETE", "/api/delete", 403),
        ("POST", "/api/blobs/sha256:x", 403),
        ("GET", "/api/nope", 404),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let sent = server.client.request(method, server.url(path)).json(&json!({ "model": "x" })).send().await;
        let answer = Answer::of(sent.expect("an answer")).await;
        assert!(
            answer.status == status && answer.json()["error"].is_string(),
            "{path}: {} {}",
            answer.status,
            answer.text
        );
    }
}

/// 4.
#[tokio::test]
async fn ranks_and_tokens() {
    let ranks = Server::with(|setup| setup.scripted().embeds = 2).await;
    let rank = |more: Value| with(json!({ "query": "a b", "documents": ["a", { "text": "b" }, "c"] }), more);
    all_taken(
        &ranks,
        "/v1/rerank",
        vec![
            rank(json!({})),
            rank(json!({ "top_n": 99 })),
            rank(json!({ "return_documents": true, "max_tokens_per_doc": 5 })),
        ],
    )
    .await;
    all_refused(
        &ranks,
        "/v1/rerank",
        vec![
            (rank(json!({ "documents": [] })), "documents"),
            (rank(json!({ "documents": null })), "documents"),
            (rank(json!({ "query": null })), "query"),
            (rank(json!({ "top_n": 0 })), "top_n"),
            (rank(json!({ "documents": ["a", 5] })), "documents[1]"),
            (rank(json!({ "documents": ["a", {}] })), "documents[1].text"),
        ],
    )
    .await;
    let server = Server::start().await;
    all_taken(
        &server,
        "/tokenize",
        vec![
            json!({ "content": "x" }),
            json!({ "prompt": "x", "add_special_tokens": false }),
            json!({ "messages": user() }),
        ],
    )
    .await;
    all_refused(&server, "/tokenize", vec![(json!({}), "content"), (json!({ "content": 5 }), "content")]).await;
    all_refused(&server, "/detokenize", vec![(json!({}), "tokens"), (json!({ "tokens": "x" }), "tokens")]).await;
}
