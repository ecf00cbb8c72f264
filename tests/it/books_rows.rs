//! One row for each request, whatever its endpoint, dialect and end, with the engine's own counts.

use crate::support::governed::{Governed, PRICE};
use crate::support::{Events, MODEL, chat_body, read_until, with};
use hearth::engine::EngineMode;
use hearth::gateway::store::RequestRow;
use serde_json::json;
use std::time::Duration;

async fn priced() -> Governed {
    Governed::with(|setup, _| setup.gateway.price = PRICE).await
}

fn cost(row: &RequestRow) -> i64 {
    PRICE.cost(row.in_tok, row.cached_tok, row.out_tok)
}

/// What each dialect's requests come to is what every report of the admin plane sums up (T-B2 itself: `accounts.rs`).
#[tokio::test]
async fn every_dialect_is_counted_alike_streamed_or_whole() {
    let house = priced().await;
    let (key, id) = house.key(json!({ "tags": ["a", "b"], "user_id": "u" })).await;
    let messages = json!([{ "role": "user", "content": "count me" }]);
    let mut n = 0;
    for (path, body) in [
        ("/v1/chat/completions", json!({ "messages": messages, "cache_prompt": false })),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 64 })),
        ("/v1/responses", json!({ "input": "count me" })),
        ("/api/chat", json!({ "messages": messages })),
    ] {
        for stream in [false, true] {
            let body = with(body.clone(), json!({ "model": MODEL, "stream": stream }));
            let response = house.post(&key, path, &body).send().await.expect("an answer");
            assert_eq!(response.status(), 200, "{path}");
            let request_id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
            response.text().await.expect("a whole answer");
            n += 1;
            // Committed before the last byte went out, so it is there now without any waiting.
            let rows = house.rows(n).await;
            let row = rows.last().expect("a row");
            assert_eq!((row.id.as_str(), row.endpoint.as_str(), row.stream), (request_id.as_str(), path, stream));
            assert_eq!((row.status, row.finish.as_str(), row.usage_source.as_str()), (200, "stop", "engine"), "{path}");
            assert_eq!((row.in_tok, row.out_tok), (rows[0].in_tok, rows[0].out_tok), "{path} {stream}");
            assert_eq!(row.out_tok, 9, "eight bytes and the end of the turn");
            assert_eq!(row.cost_nusd, cost(row));
            assert_eq!((row.key_id.as_deref(), row.user_id.as_deref()), (Some(id.as_str()), Some("u")));
            assert_eq!((row.model.as_deref(), row.ip.as_deref()), (Some(MODEL), Some("127.0.0.1")));
        }
    }
    let rows = house.rows(n).await;
    let spent: i64 = rows.iter().map(|row| row.cost_nusd).sum();
    let usd = |nusd: i64| json!(nusd as f64 / 1e9);
    assert_eq!(house.look(&format!("/key/info?key={id}")).await["info"]["spend"], usd(spent));
    assert_eq!(house.look("/global/spend/report?group_by=model").await[0]["spend"], usd(spent));
    assert_eq!(house.look("/spend/tags").await[1]["total_spend"], usd(spent));
    assert_eq!(house.look("/spend/logs?summarize=true").await[0]["users"]["u"], usd(spent));
    let csv = house.server.client.get(house.admin_url("/spend/keys")).bearer_auth(&house.master);
    let csv = csv.header("accept", "text/csv").send().await.expect("an answer").text().await.expect("text");
    assert!(csv.starts_with("api_key,requests,") && csv.contains(&format!("{id},8,0,")), "{csv}");
    house.act(&format!("/key/{id}/reset_spend"), json!({})).await;
    assert_eq!(house.look(&format!("/key/info?key={id}")).await["info"]["spend"], json!(0.0));
    assert_eq!(house.rows(n).await.len(), n, "the rows stay");
    house.is_verified().await;
    house.stop().await;
}

#[tokio::test]
async fn every_other_endpoint_and_every_refusal_has_its_row() {
    let house = Governed::with(|setup, _| setup.scripted().embeds = 1).await;
    let (key, _) = house.key(json!({})).await;
    let unknown = json!({ "model": "nobody", "messages": [{ "role": "user", "content": "x" }] });
    for (n, (path, body, status, code)) in [
        ("/v1/embeddings", json!({ "model": MODEL, "input": ["ab", "cde"] }), 200, None),
        ("/tokenize", json!({ "content": "hi" }), 200, None),
        ("/apply-template", json!({ "messages": [{ "role": "user", "content": "hi" }] }), 200, None),
        ("/v1/chat/completions/input_tokens", chat_body("hi", json!({})), 200, None),
        ("/v1/chat/completions", json!({ "model": MODEL, "messages": "none" }), 400, Some("invalid_type")),
        ("/v1/chat/completions", unknown, 404, Some("model_not_found")),
        ("/v1/chat/completions", chat_body(&"long ".repeat(2000), json!({})), 400, Some("context_length_exceeded")),
        ("/api/delete", json!({ "model": MODEL }), 403, Some("insufficient_permissions")),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = house.send(&key, path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        let row = house.row_of(&answer).await;
        let finish = if status == 200 { "ok" } else { "refused" };
        assert_eq!((row.endpoint.as_str(), row.status, row.finish.as_str()), (path, status, finish));
        assert_eq!((row.in_tok > 0, row.out_tok, row.error_code.as_deref()), (n == 0, 0, code), "{path}");
    }
    // What is no request to a model has none: no key, no path, nothing to post.
    assert_eq!(house.chat("sk-none", "hi").await.status, 401);
    assert_eq!(house.send(&key, "/v1/nowhere", json!({})).await.status, 404);
    assert_eq!(house.server.get("/health").await.status, 200);
    house.rows(8).await;
    house.stop().await;
}

#[tokio::test]
async fn a_crash_of_the_engine_is_not_charged_and_choices_are_counted_together() {
    let house = Governed::with(|setup, _| {
        setup.gateway.price = PRICE;
        setup.mode = EngineMode::child(env!("CARGO_BIN_EXE_hearth"));
    })
    .await;
    let (key, _) = house.key(json!({})).await;
    let several = house.send(&key, "/v1/chat/completions", chat_body("three", json!({ "n": 3 }))).await;
    let row = house.row_of(&several).await;
    let usage = several.json()["usage"].clone();
    assert_eq!(json!([row.in_tok, row.out_tok]), json!([usage["prompt_tokens"], usage["completion_tokens"]]));
    assert_eq!(row.out_tok, 3 * 6);
    for stream in [false, true] {
        let body = chat_body("/crash", json!({ "stream": stream }));
        let response = house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let text = response.text().await.expect("a whole answer");
        assert!(text.contains("internal_error"), "{text}");
        let rows = house.rows(if stream { 3 } else { 2 }).await;
        let row = rows.iter().find(|row| row.id == id).expect("its row");
        assert_eq!((row.finish.as_str(), row.cost_nusd), ("engine_crash", 0), "{row:?}");
        assert_eq!(row.error_code.as_deref(), Some("internal_error"));
        crate::support::ready(&house.server.engine).await;
    }
    house.stop().await;
}

#[tokio::test]
async fn what_the_server_breaks_is_charged_where_the_operator_says_so() {
    let house = Governed::with(|setup, books| {
        setup.gateway.price = PRICE;
        setup.mode = EngineMode::child(env!("CARGO_BIN_EXE_hearth"));
        // Slow enough that what was made before has arrived.
        setup.scripted().step_us = 5_000;
        setup.scripted().crash_at_decode = 50;
        books.refund_on_server_fault = false;
    })
    .await;
    let (key, _) = house.key(json!({ "max_budget": 1000, "budget_duration": "1d" })).await;
    let crashed = house.send(&key, "/v1/chat/completions", chat_body("/count 30", json!({}))).await;
    assert_eq!(crashed.status, 500, "{}", crashed.text);
    let row = house.rows(1).await.remove(0);
    assert_eq!(row.finish, "engine_crash");
    assert_eq!(row.cost_nusd, PRICE.cost(row.in_tok, row.cached_tok, row.out_tok));
    assert!(row.cost_nusd > 0, "{row:?}");
    house.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_leaves_no_request_without_its_row() {
    let house = Governed::with(|setup, _| {
        setup.scripted().step_us = 5_000;
        setup.engine.n_ctx = Some(16_384);
        setup.http.drain_deadline = Duration::from_millis(100);
    })
    .await;
    let (key, _) = house.key(json!({})).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let body = chat_body("/forever", json!({ "stream": true, "max_tokens": 3000 }));
        let mut stream = house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("\"content\":\".") {
            text.extend(stream.chunk().await.expect("it lives").expect("it goes on"));
        }
        streams.push((text, stream));
    }
    let Governed { server, books, .. } = house;
    let reading =
        streams.into_iter().map(|(text, rest)| async move { [text, read_until(rest, |_| false).await].concat() });
    let (texts, ()) = tokio::join!(futures_util::future::join_all(reading), server.stop());
    for text in texts {
        let events = Events::parse(&text);
        assert_eq!(events.chunks.last().expect("an event")["error"]["code"], "shutting_down");
    }
    books.close().await;
    let rows = books.store().read(|conn| hearth::gateway::store::logs(conn, &Default::default(), (10, 0))).await;
    let rows = rows.expect("rows can be read");
    assert!(rows.len() == 4 && rows.iter().all(|row| row.finish == "shutdown" && row.out_tok > 0), "{rows:#?}");
}

/// Without books nothing of them exists.
#[tokio::test]
async fn a_server_without_books_is_as_before() {
    let server = crate::support::Server::start().await;
    assert_eq!(server.chat("hi", json!({})).await.content(), "hi");
    assert_eq!(server.get("/v1/key").await.error().2.as_deref(), Some("key_not_found"));
    server.stop().await;
}
