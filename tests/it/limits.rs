//! Limits over HTTP: refusals in each API's own words, what is left in every head, and nothing counted twice.

use crate::support::{Answer, PATIENCE, Server, chat_body, with};
use hearth::gateway::LimitSpec;
use hearth::gateway::limits::LimitSets;
use serde_json::{Value, json};

/// A server whose keys `one` and `two` have this set each.
async fn limited(set: LimitSpec) -> Server {
    limited_with(set, |_| {}).await
}

async fn limited_with(set: LimitSpec, change: impl FnOnce(&mut crate::support::Setup)) -> Server {
    Server::with(|setup| {
        setup.key("one");
        setup.key("two");
        setup.gateway.limits = LimitSets::new([("default".to_owned(), set)].into());
        change(setup);
    })
    .await
}

/// `/forever` takes longer than anybody waits.
fn endless(setup: &mut crate::support::Setup) {
    setup.engine.n_ctx = Some(1_000_000);
    setup.scripted().step_us = 500;
}

async fn send(server: &Server, key: &str, path: &str, body: &Value) -> reqwest::Response {
    let request = server.client.post(server.url(path)).bearer_auth(key).json(body);
    request.send().await.expect("an answer")
}

async fn post(server: &Server, key: &str, path: &str, body: Value) -> Answer {
    Answer::of(send(server, key, path, &body).await).await
}

async fn chat(server: &Server, key: &str, text: &str, more: Value) -> Answer {
    post(server, key, "/v1/chat/completions", chat_body(text, more)).await
}

fn left(answer: &Answer, kind: &str) -> u64 {
    answer.header(&format!("x-ratelimit-remaining-{kind}")).parse().expect("a number")
}

/// What a key has left, asked for without taking of it.
async fn standing(server: &Server, key: &str, kind: &str) -> u64 {
    let request = server.client.get(server.url("/v1/models")).bearer_auth(key);
    left(&Answer::of(request.send().await.expect("an answer")).await, kind)
}

#[tokio::test]
async fn a_key_has_its_requests_of_a_minute_and_no_other_keys() {
    let server = limited(LimitSpec { rpm: Some(2), ..Default::default() }).await;
    let first = chat(&server, "one", "hi", json!({})).await;
    assert_eq!((first.status, first.header("x-ratelimit-limit-requests"), left(&first, "requests")), (200, "2", 1));
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "", "tokens are not limited");
    // What is refused for itself is no request.
    let bad = chat(&server, "one", "hi", json!({ "temperature": -1 })).await;
    assert_eq!((bad.status, left(&bad, "requests")), (400, 1));
    let long = chat(&server, "one", &"x".repeat(5000), json!({})).await;
    assert_eq!((long.status, left(&long, "requests")), (400, 1), "counted by the engine, and too long");
    let unknown = chat(&server, "one", "hi", json!({ "model": "nobody" })).await;
    assert_eq!((unknown.status, left(&unknown, "requests")), (404, 1));
    assert_eq!(chat(&server, "one", "hi", json!({})).await.status, 200);
    let refused = chat(&server, "one", "hi", json!({})).await;
    assert_eq!(refused.error(), (429, "requests".into(), Some("rate_limit_exceeded".into()), None));
    let message = refused.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.contains("requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in "),
        "{message}"
    );
    let (seconds, ms): (u64, u64) =
        (refused.header("retry-after").parse().unwrap(), refused.header("retry-after-ms").parse().unwrap());
    assert!((55..=60).contains(&seconds) && ms.div_ceil(1000) == seconds, "{seconds} {ms}");
    assert!(refused.header("x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(chat(&server, "two", "hi", json!({})).await.status, 200, "another key has its own");
    let page = Answer::of(server.client.get(server.url("/metrics")).bearer_auth("one").send().await.unwrap()).await;
    assert!(page.text.contains("hearth_ratelimit_rejections_total{kind=\"rpm\",scope=\"key\"} 1"), "{}", page.text);
}

#[tokio::test]
async fn every_api_says_it_in_its_own_words() {
    let server =
        limited_with(LimitSpec { rpm: Some(1), ..Default::default() }, |setup| setup.scripted().embeds = 1).await;
    assert_eq!(chat(&server, "one", "hi", json!({})).await.status, 200);
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let anthropic = json!({ "model": "default", "max_tokens": 5, "messages": messages });
    let refused = post(&server, "one", "/v1/messages", anthropic.clone()).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(refused.header("anthropic-ratelimit-requests-remaining"), "0");
    assert!(!refused.header("retry-after").is_empty());
    let ollama = post(&server, "one", "/api/chat", json!({ "model": "default", "messages": messages })).await;
    assert_eq!(ollama.status, 429);
    assert!(ollama.json()["error"].as_str().is_some_and(|text| text.starts_with("Rate limit reached")));
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "hi" })),
        ("/v1/responses", json!({ "input": "hi" })),
        ("/v1/embeddings", json!({ "input": "hi" })),
        ("/embedding", json!({ "content": "hi" })),
        ("/infill", json!({ "input_prefix": "a", "input_suffix": "b" })),
    ] {
        let refused = post(&server, "one", path, with(body, json!({ "model": "default" }))).await;
        assert_eq!((path, refused.error().0), (path, 429));
    }
    let embed = post(&server, "one", "/api/embed", json!({ "model": "default", "input": "hi" })).await;
    assert_eq!(embed.status, 429);
    let stream = chat(&server, "one", "hi", json!({ "stream": true })).await;
    assert_eq!(stream.error().0, 429, "before the stream begins");
}

#[tokio::test]
async fn tokens_are_taken_for_the_most_and_given_back_at_the_end() {
    let server = limited(LimitSpec { tpm: Some(600), ..Default::default() }).await;
    let large = chat(&server, "one", "hi", json!({ "max_tokens": 600 })).await;
    assert_eq!(large.error(), (429, "tokens".into(), Some("rate_limit_exceeded".into()), None));
    assert_eq!(large.header("x-should-retry"), "false");
    assert_eq!(standing(&server, "one", "tokens").await, 600);
    let first = chat(&server, "one", "/count 9", json!({ "max_tokens": 300 })).await;
    let usage = first.json()["usage"].clone();
    let spent = usage["total_tokens"].as_u64().expect("a count");
    assert_eq!(standing(&server, "one", "tokens").await, 600 - spent);
    // While a stream runs, the most that it may come to is taken.
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    let body = chat_body("/forever", json!({ "stream": true, "max_tokens": 200 }));
    let response = send(&server, "one", "/v1/chat/completions", &body).await;
    let taken =
        600 - spent - response.headers()["x-ratelimit-remaining-tokens"].to_str().unwrap().parse::<u64>().unwrap();
    assert!((200..200 + prompt + 20).contains(&taken), "{taken}");
    let refused = chat(&server, "one", "hi", json!({ "max_tokens": 400 })).await;
    assert_eq!((refused.error().0, refused.header("x-should-retry")), (429, ""));
    assert!(refused.json()["error"]["message"].as_str().is_some_and(|text| text.contains("tokens per min (TPM)")));
    let text = response.text().await.expect("a whole stream");
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert_eq!(standing(&server, "one", "tokens").await, 600 - spent - taken, "it needed all of it");
    // An answer of a client that names no length is bounded by the limit, not by the context.
    let unnamed = chat(&server, "two", "/forever", json!({})).await;
    assert_eq!(unnamed.json()["choices"][0]["finish_reason"], "length");
    assert_eq!((unnamed.json()["usage"]["total_tokens"].as_u64(), left(&unnamed, "tokens")), (Some(600), 0));
    let spent = chat(&server, "two", "hi", json!({ "max_tokens": 1 })).await;
    assert_eq!(spent.error().0, 429);
}

#[tokio::test]
async fn vectors_count_by_the_engines_own_count() {
    let set = LimitSpec { tpm: Some(100), ..Default::default() };
    let server = limited_with(set, |setup| setup.scripted().embeds = 1).await;
    let made = post(&server, "one", "/v1/embeddings", json!({ "model": "default", "input": ["abc", "defgh"] })).await;
    let spent = made.json()["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!((made.status, left(&made, "tokens")), (200, 100 - spent));
    let large = post(&server, "one", "/v1/embeddings", json!({ "model": "default", "input": "x".repeat(200) })).await;
    assert_eq!((large.error().0, large.header("x-should-retry")), (429, "false"));
    assert_eq!(standing(&server, "one", "tokens").await, 100 - spent, "what was refused costs nothing");
    let ranking = limited_with(LimitSpec { tpm: Some(500), ..Default::default() }, |setup| {
        setup.scripted().embeds = 2;
    })
    .await;
    let body = json!({ "model": "default", "query": "ab", "documents": ["abc", "xyz"] });
    let ranked = post(&ranking, "one", "/v1/rerank", body).await;
    assert_eq!(ranked.status, 200, "{}", ranked.text);
    assert!(left(&ranked, "tokens") < 500);
    let scored =
        post(&ranking, "one", "/v1/score", json!({ "model": "default", "text_1": "ab", "text_2": ["abc", "b"] })).await;
    assert_eq!(scored.status, 200, "{}", scored.text);
    let classified =
        post(&ranking, "one", "/v1/classify", json!({ "model": "default", "input": "x".repeat(600) })).await;
    assert_eq!(classified.status, 429, "{}", classified.text);
}

#[tokio::test]
async fn places_come_back_whatever_ends_a_request() {
    let set = LimitSpec { parallel: Some(1), rpm: Some(100), ..Default::default() };
    let server = limited_with(set, endless).await;
    for round in 0..3 {
        let body = chat_body("/forever", json!({ "stream": true }));
        let mut response = send(&server, "one", "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200, "round {round}");
        response.chunk().await.expect("it lives").expect("a chunk");
        let refused = chat(&server, "one", "hi", json!({})).await;
        assert_eq!(refused.error().0, 429);
        assert!(
            refused.json()["error"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("requests at once: Limit 1, Used 1"))
        );
        assert_eq!(refused.header("retry-after"), "1");
        drop(response);
        let is_free = async { while chat(&server, "one", "hi", json!({})).await.status != 200 {} };
        tokio::time::timeout(PATIENCE, is_free).await.expect("the place is free again");
    }
    server.idle().await;
    // Six that ran and count, and none of those that were refused.
    assert_eq!(standing(&server, "one", "requests").await, 94);
}

#[tokio::test]
async fn a_key_may_wait_with_so_many_requests_and_is_told_that_the_server_is_busy() {
    let set = LimitSpec { queue: Some(1), ..Default::default() };
    let server = limited_with(set, |setup| {
        endless(setup);
        setup.engine.n_slots = 1;
    })
    .await;
    let body = chat_body("/forever", json!({ "stream": true }));
    let mut running = send(&server, "one", "/v1/chat/completions", &body).await;
    // Its first text: from then on it has the slot, and waits no longer.
    let mut text = String::new();
    while !text.contains(r#""content":"."#) {
        text += &String::from_utf8_lossy(&running.chunk().await.expect("it lives").expect("a chunk"));
    }
    let waiting = send(&server, "one", "/v1/chat/completions", &body).await;
    assert_eq!(waiting.status(), 200);
    let refused = chat(&server, "one", "hi", json!({})).await;
    assert_eq!(refused.error(), (503, "server_error".into(), Some("server_is_overloaded".into()), None));
    assert!(!refused.header("retry-after").is_empty());
    let other = send(&server, "two", "/v1/chat/completions", &body).await;
    assert_eq!(other.status(), 200, "the queue has room for others");
    drop((running, waiting, other));
    server.idle().await;
}

#[tokio::test]
async fn whom_a_client_acts_for_is_limited_by_itself() {
    let server = Server::with(|setup| {
        setup.key("one");
        let set = LimitSpec { rpm: Some(1), ..Default::default() };
        setup.gateway.limits = LimitSets::new([("end_user".to_owned(), set)].into());
    })
    .await;
    let ask = async |name: &str| chat(&server, "one", "hi", json!({ "user": name })).await.status;
    assert_eq!((ask("ann").await, ask("ann").await, ask("bob").await), (200, 429, 200));
    // What is left is told of the person, too, and of nobody else.
    let answer = chat(&server, "one", "hi", json!({ "user": "cid" })).await;
    assert_eq!((answer.status, left(&answer, "requests")), (200, 0));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "1");
    assert_eq!(chat(&server, "one", "hi", json!({})).await.header("x-ratelimit-limit-requests"), "");
    let responses = async |more: Value| {
        post(&server, "one", "/v1/responses", with(json!({ "model": "default", "input": "hi" }), more)).await.status
    };
    assert_eq!(responses(json!({ "safety_identifier": "bob" })).await, 429);
    let anthropic = json!({
        "model": "default", "max_tokens": 5, "messages": [{ "role": "user", "content": "hi" }],
        "metadata": { "user_id": "ann" },
    });
    assert_eq!(post(&server, "one", "/v1/messages", anthropic).await.status, 429);
    assert_eq!(chat(&server, "one", "hi", json!({})).await.status, 200, "nobody in particular is not limited");
}

#[tokio::test]
async fn an_answer_is_never_longer_than_the_cap() {
    let server = limited(LimitSpec { output: Some(5), ..Default::default() }).await;
    for more in [json!({}), json!({ "max_tokens": 50 })] {
        let answer = chat(&server, "one", "/count 50", more).await;
        assert_eq!(
            (answer.content().as_str(), &answer.json()["choices"][0]["finish_reason"]),
            ("1 2 3", &json!("length"))
        );
        assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
    }
    assert_eq!(chat(&server, "one", "/count 50", json!({ "max_tokens": 2 })).await.content(), "1 ");
}

/// Every kind of set has a cap, also of those for whom a client acts and of addresses.
#[tokio::test]
async fn a_cap_holds_for_every_kind_of_scope() {
    for (kind, more, n) in [
        ("default", json!({}), 5),
        ("end_user", json!({ "user": "ann" }), 5),
        ("end_user", json!({}), 9),
        ("ip", json!({}), 5),
        ("global", json!({}), 5),
    ] {
        let server = Server::with(|setup| {
            setup.key("one");
            let set = LimitSpec { output: Some(5), ..Default::default() };
            setup.gateway.limits = LimitSets::new([(kind.to_owned(), set)].into());
        })
        .await;
        let answer = chat(&server, "one", "/count 50", with(more, json!({ "max_tokens": 9 }))).await;
        assert_eq!(answer.json()["usage"]["completion_tokens"], n, "{kind}");
    }
}

/// What the cache answers is a request, and its tokens were counted when they were made.
#[tokio::test]
async fn an_answer_from_the_cache_is_a_request_and_no_tokens() {
    let set = LimitSpec { rpm: Some(3), tpm: Some(5000), ..Default::default() };
    let server = limited_with(set, |setup| setup.gateway.routing.cache.enabled = true).await;
    let ask = async || chat(&server, "one", "/count 3", json!({ "temperature": 0, "max_tokens": 50 })).await;
    let made = ask().await;
    let again = ask().await;
    assert_eq!((made.header("x-hearth-cache"), again.header("x-hearth-cache")), ("miss", "hit"));
    assert_eq!((left(&made, "requests"), left(&again, "requests")), (2, 1));
    assert_eq!(left(&made, "tokens"), left(&again, "tokens"));
    assert_eq!((ask().await.status, ask().await.status), (200, 429));
}

/// One key with many streams and one with a single one at a time share the tokens, not the streams.
#[tokio::test]
async fn a_key_with_many_streams_does_not_slow_another() {
    let server = limited_with(LimitSpec::default(), |setup| {
        endless(setup);
        setup.engine.n_slots = 4;
        setup.scripted().step_us = 1000;
    })
    .await;
    let body = chat_body("/forever", json!({ "stream": true }));
    let mut many = Vec::new();
    for _ in 0..60 {
        many.push(send(&server, "one", "/v1/chat/completions", &body).await);
    }
    server.busy(60).await;
    for _ in 0..5 {
        let answer = chat(&server, "two", "/count 5", json!({}));
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        assert_eq!(answer.expect("it waits for none of them to end").content(), "1 2 3 4 5");
        assert_eq!(server.engine.load().n_in_flight, 60);
    }
    drop(many);
    server.idle().await;
}
