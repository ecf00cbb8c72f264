//! Streams of `POST /v1/chat/completions`. Names are the contract's rows.

use crate::support::{Events, MODEL, Server, chat_body, read_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// FAULT-01, FAULT-02, FAULT-04.
#[tokio::test]
async fn events_come_in_the_order_of_1_3_2() {
    let server = Server::start().await;
    let events = server.stream_chat("hello", json!({})).await;
    assert!(events.is_done);
    let first = &events.chunks[0];
    assert_eq!(
        first["choices"],
        json!([{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}])
    );
    for chunk in &events.chunks {
        for key in ["id", "object", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[key], first[key]);
        }
        assert!(chunk.get("error").is_none() && chunk.get("usage").is_none());
        assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1), "no chunk without a choice");
    }
    assert_eq!((&first["object"], &first["model"]), (&json!("chat.completion.chunk"), &json!(MODEL)));
    let n_roles = events.choices(0).filter(|choice| choice["delta"].get("role").is_some()).count();
    assert_eq!(n_roles, 1, "the role never comes again");
    assert_eq!((events.text(0, "content").as_str(), events.finish(0)), ("hello", vec!["stop"]));
    let last = events.chunks.last().expect("chunks");
    assert_eq!(last["choices"][0]["delta"], json!({}));
}

#[tokio::test]
async fn a_stream_spells_what_the_whole_answer_says() {
    let server = Server::start().await;
    for text in ["/count 300", "plain", "/think why", "/bytes 226 130 172 255 240 159", "\u{1f600}e\u{301}"] {
        let whole = server.chat(text, json!({ "seed": 1 })).await.json();
        let events = server.stream_chat(text, json!({ "seed": 1 })).await;
        let message = &whole["choices"][0]["message"];
        assert_eq!(message["content"], events.text(0, "content"));
        assert_eq!(message["reasoning_content"].as_str().unwrap_or_default(), events.text(0, "reasoning_content"));
        assert_eq!(whole["choices"][0]["finish_reason"], events.finish(0)[0]);
    }
}

/// FAULT-05.
#[tokio::test]
async fn usage_comes_once_at_the_end_and_only_if_asked_for() {
    let server = Server::start().await;
    let asked = json!({ "stream_options": { "include_usage": true } });
    let events = server.stream_chat("hello", asked.clone()).await;
    let last = events.chunks.last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    let whole = server.chat("hello", json!({})).await.json();
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert_eq!(events.chunks.iter().filter(|chunk| chunk["usage"].is_object()).count(), 1);
    assert_eq!(server.chat("hello", asked).await.content(), "hello", "options without a stream are ignored");
}

/// FAULT-03.
#[tokio::test]
async fn several_choices_open_in_order_and_end_each_once() {
    let server = Server::start().await;
    let events = server.stream_chat("/count 40", json!({ "n": 6 })).await;
    let opened: Vec<u64> =
        events.chunks.iter().take(6).filter_map(|chunk| chunk["choices"][0]["index"].as_u64()).collect();
    assert_eq!(opened, [0, 1, 2, 3, 4, 5]);
    for index in 0..6 {
        assert!(events.text(index, "content").ends_with("39 40"));
        assert_eq!(events.finish(index), ["stop"]);
    }
    assert!(events.is_done);
}

#[tokio::test]
async fn strm_03_the_role_comes_before_half_a_code_point() {
    let server = Server::start().await;
    let events = server.stream_chat("/bytes 240 159 152 128", json!({})).await;
    assert_eq!(events.chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events.text(0, "content"), "\u{1f600}");
    let broken = server.stream_chat("/bytes 240 159", json!({})).await;
    assert_eq!(broken.text(0, "content"), "\u{fffd}", "a half at the end is replaced");
}

#[tokio::test]
async fn strm_05_a_bad_type_is_a_plain_400() {
    let server = Server::start().await;
    server.chat("x", json!({ "temperature": "hot", "stream": true })).await.is_refusal("invalid_type", "temperature");
    server.chat("x", json!({ "stream": "yes" })).await.is_refusal("invalid_type", "stream");
}

#[tokio::test]
async fn strm_06_leaving_after_one_chunk_frees_the_slot() {
    let server = Server::with(|setup| {
        (setup.engine.n_slots, setup.engine.n_queue) = (1, 1);
        setup.engine.n_ctx = Some(1_000_000);
        setup.scripted().step_us = 200;
    })
    .await;
    let soon = Duration::from_secs(3);
    for _ in 0..50 {
        drop(server.open_stream("/forever").await);
        assert!(tokio::time::timeout(soon, server.idle()).await.is_ok(), "it goes on for {soon:?}");
    }
    let started = Instant::now();
    assert_eq!(server.chat("next", json!({})).await.content(), "next");
    assert!(started.elapsed() < soon, "{:?}", started.elapsed());
}

#[tokio::test]
async fn strm_06_leaving_a_request_without_a_stream_frees_the_slot() {
    let server = Server::with(|setup| {
        setup.engine.n_slots = 1;
        setup.engine.n_ctx = Some(1_000_000);
        setup.scripted().step_us = 200;
    })
    .await;
    for _ in 0..5 {
        let body = chat_body("/forever", json!({}));
        let asking = server.send("/v1/chat/completions", &body);
        assert!(tokio::time::timeout(Duration::from_millis(50), asking).await.is_err());
        server.idle().await;
    }
    assert_eq!(server.chat("next", json!({})).await.content(), "next");
}

#[tokio::test]
async fn strm_06_leaving_during_the_prefill_or_the_queue_frees_both() {
    let server = Server::with(|setup| {
        setup.engine.n_slots = 1;
        // Half a minute for each: none is done before the wait for their end is over.
        setup.scripted().prompt_token_us = 10_000;
    })
    .await;
    let long = "x".repeat(3000);
    let computing = server.open_stream(&long).await;
    let waiting = server.open_stream(&long).await;
    server.busy(2).await;
    drop((computing, waiting));
    server.idle().await;
}

#[tokio::test]
async fn strm_08_the_role_is_sent_before_the_prefill_ends_and_comments_while_it_runs() {
    let server = Server::with(|setup| {
        setup.http.ping_interval = Duration::from_millis(40);
        setup.scripted().prompt_token_us = 1_000;
    })
    .await;
    let started = Instant::now();
    let mut response =
        server.send("/v1/chat/completions", &chat_body(&"x".repeat(1500), json!({ "stream": true }))).await;
    let first = response.chunk().await.expect("the stream lives").expect("a first chunk");
    let opened = started.elapsed();
    let rest = read_until(response, |bytes| bytes.ends_with(b"[DONE]\n\n")).await;
    let ended = started.elapsed();
    assert!(opened * 3 < ended, "the role after {opened:?}, the end after {ended:?}");
    let events = Events::parse(&[first.to_vec(), rest].concat());
    assert!(events.n_comments >= 3, "{} comments in {ended:?}", events.n_comments);
    assert_eq!(events.text(0, "content").len(), 1500);
}

#[tokio::test]
async fn comments_also_come_while_a_request_waits_for_a_slot() {
    let server = Server::with(|setup| {
        setup.engine.n_slots = 1;
        setup.engine.n_ctx = Some(1_000_000);
        setup.http.ping_interval = Duration::from_millis(20);
        setup.scripted().step_us = 300;
    })
    .await;
    let running = server.open_stream("/forever").await;
    let waiting = server.open_stream("hello").await;
    let comments = read_until(waiting, |bytes| bytes.len() > 3 * ": keep-alive\n\n".len()).await;
    assert!(comments.starts_with(b": keep-alive\n\n: keep-alive\n\n"));
    drop(running);
}

#[tokio::test]
async fn strm_09_a_failure_inside_ends_the_stream_with_an_error_event() {
    let server = Server::with(|setup| setup.scripted().step_us = 500).await;
    let response = server.open_stream("/forever").await;
    server.engine.close().await;
    let bytes = read_until(response, |_| false).await;
    let events = Events::parse(&bytes);
    assert!(!events.is_done && events.finish(0).is_empty());
    let last = events.chunks.last().expect("an error event");
    assert_eq!((&last["error"]["type"], &last["error"]["param"]), (&json!("server_error"), &Value::Null));
    assert!(last["error"]["code"].is_string() && last["error"]["message"].is_string());
}

#[tokio::test]
async fn strm_10_no_part_of_a_stop_string_leaks() {
    let server = Server::start().await;
    let events = server.stream_chat("/count 20", json!({ "stop": ["5 6"] })).await;
    assert_eq!((events.text(0, "content").as_str(), events.finish(0)), ("1 2 3 4 ", vec!["stop"]));
    let near = server.stream_chat("Observ: Obser", json!({ "stop": ["Observation"] })).await;
    assert_eq!(near.text(0, "content"), "Observ: Obser", "what was held back comes out at the end");
}

#[tokio::test]
async fn strm_11_each_chunk_has_the_logprobs_of_its_own_tokens() {
    let server = Server::start().await;
    let events = server.stream_chat("h\u{e9}llo \u{1f600}", json!({ "logprobs": true, "top_logprobs": 1 })).await;
    for choice in events.choices(0) {
        let Some(content) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) else { continue };
        let entries = choice["logprobs"]["content"].as_array().expect("entries beside text");
        let bytes: Vec<u64> = entries
            .iter()
            .flat_map(|entry| entry["bytes"].as_array().expect("bytes"))
            .filter_map(Value::as_u64)
            .collect();
        assert_eq!(bytes, content.bytes().map(u64::from).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn strm_12_thinking_comes_first_and_apart() {
    let server = Server::start().await;
    let events = server.stream_chat("/think a b c", json!({})).await;
    assert_eq!((events.text(0, "reasoning_content"), events.text(0, "content")), ("a b c".into(), "ok".into()));
    let mut has_answered = false;
    for choice in events.choices(0) {
        let delta = choice["delta"].as_object().expect("a delta");
        assert!(!(delta.contains_key("reasoning_content") && delta.contains_key("content")), "{delta:?}");
        has_answered |= delta.get("content").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        assert!(!(has_answered && delta.contains_key("reasoning_content")), "thinking after the answer");
    }
}

#[tokio::test]
async fn strm_15_obfuscation_is_ignored() {
    let server = Server::start().await;
    let events = server.stream_chat("hi", json!({ "stream_options": { "include_obfuscation": true } })).await;
    assert!(events.chunks.iter().all(|chunk| chunk.get("obfuscation").is_none()));
}

#[tokio::test]
async fn strm_14_ops_06_a_stream_is_never_compressed_or_buffered() {
    let server = Server::start().await;
    let request =
        server.client.post(server.url("/v1/chat/completions")).header("accept-encoding", "gzip, deflate, zstd");
    let response = request.json(&chat_body("hi", json!({ "stream": true }))).send().await.expect("an answer");
    let headers = response.headers().clone();
    assert!(!headers.contains_key("content-encoding") && !headers.contains_key("content-length"));
    assert_eq!(
        (&headers["cache-control"], &headers["x-accel-buffering"]),
        (&"no-cache".parse().unwrap(), &"no".parse().unwrap())
    );
    assert!(Events::parse(&response.bytes().await.expect("a stream")).is_done);
}

#[tokio::test]
async fn a_reader_who_is_behind_gets_the_same_text() {
    let server = Server::start().await;
    let mut response = server.open_stream("/count 700").await;
    let mut bytes = Vec::new();
    while let Some(more) = response.chunk().await.expect("the stream lives") {
        bytes.extend_from_slice(&more);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let text = Events::parse(&bytes).text(0, "content");
    assert!(text.ends_with("699 700"), "{text}");
}
