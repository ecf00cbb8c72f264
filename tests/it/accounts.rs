//! T-B2 and T-B3: a request is charged by the engine's own count, whichever way it comes and wherever its client leaves.

use crate::support::governed::{Governed, PRICE};
use crate::support::{MODEL, PATIENCE, read_until, with};
use hearth::engine::Stats;
use hearth::gateway::store::RequestRow;
use serde_json::{Value, json};
use std::time::Instant;

/// A way to ask for a text, and how its stream says that things end.
struct Way {
    path: &'static str,
    stream: bool,
    /// What of the stream says how the answer ended.
    finish: &'static str,
    /// What else comes between that and the end of the body; `None`: nothing does, the two places are one.
    last: Option<&'static str>,
}

const fn whole(path: &'static str) -> Way {
    Way { path, stream: false, finish: "", last: None }
}

const fn stream(path: &'static str, finish: &'static str, last: Option<&'static str>) -> Way {
    Way { path, stream: true, finish, last }
}

const WAYS: [Way; 10] = [
    // The usage comes between the finish reason and [DONE].
    stream("/v1/chat/completions", "\"finish_reason\":\"stop\"", Some("\"choices\":[]")),
    stream("/v1/completions", "\"finish_reason\":\"stop\"", Some("\"choices\":[]")),
    // The text's own end, then response.completed, which is the last event.
    stream("/v1/responses", "\"response.output_text.done\"", Some("\"response.output_item.done\"")),
    // Only message_stop comes behind the reason.
    stream("/v1/messages", "\"stop_reason\":\"end_turn\"", None),
    // The reason stands in the last line.
    stream("/api/chat", "\"done\":true", None),
    // An answer in one piece has no place between its last token and its end that a client could see.
    whole("/v1/chat/completions"),
    whole("/v1/completions"),
    whole("/v1/responses"),
    whole("/v1/messages"),
    whole("/api/chat"),
];

impl Way {
    /// `prompt`: what the chat template makes of `text`, for those who speak no messages.
    fn body(&self, text: &str, prompt: &str, n_max: u32) -> Value {
        let messages = json!([{ "role": "user", "content": text }]);
        let usage = self.stream.then(|| json!({ "include_usage": true }));
        let body = match self.path {
            "/v1/chat/completions" => json!({ "messages": messages, "max_tokens": n_max, "stream_options": usage }),
            "/v1/completions" => json!({ "prompt": prompt, "max_tokens": n_max, "stream_options": usage }),
            "/v1/responses" => json!({ "input": text, "max_output_tokens": n_max }),
            "/v1/messages" => json!({ "messages": messages, "max_tokens": n_max }),
            _ => json!({ "messages": messages, "options": { "num_predict": n_max } }),
        };
        with(body, json!({ "model": MODEL, "stream": self.stream }))
    }

    /// (prompt tokens, answer's tokens) as the client is told.
    fn told(&self, answer: &str) -> (u64, u64) {
        let bodies: Vec<Value> = events(answer.as_bytes()).collect();
        let n = |pointer: &str| bodies.iter().rev().find_map(|body| body.pointer(pointer)?.as_u64()).unwrap_or(0);
        match self.path {
            "/v1/chat/completions" | "/v1/completions" => (n("/usage/prompt_tokens"), n("/usage/completion_tokens")),
            "/v1/responses" if self.stream => (n("/response/usage/input_tokens"), n("/response/usage/output_tokens")),
            "/v1/responses" => (n("/usage/input_tokens"), n("/usage/output_tokens")),
            // The stream says the prompt's at its beginning.
            "/v1/messages" if self.stream => {
                (n("/message/usage/input_tokens").max(n("/usage/input_tokens")), n("/usage/output_tokens"))
            }
            "/v1/messages" => (n("/usage/input_tokens"), n("/usage/output_tokens")),
            _ => (n("/prompt_eval_count"), n("/eval_count")),
        }
    }
}

/// The objects of a stream, or of an answer in one piece, as far as it is there.
fn events(bytes: &[u8]) -> impl Iterator<Item = Value> {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let events = lines.into_iter().filter_map(|line| {
        let data = line.strip_prefix(b"data: ").unwrap_or(line);
        serde_json::from_slice(data).ok()
    });
    events.collect::<Vec<Value>>().into_iter()
}

/// The answer's text so far, whatever the dialect.
fn text(bytes: &[u8]) -> String {
    let of_one = |event: &Value| {
        let delta = event["type"] == "response.output_text.delta";
        let places = ["/choices/0/delta/content", "/choices/0/text", "/delta/text", "/message/content"];
        let said = places.iter().find_map(|place| event.pointer(place)?.as_str());
        said.or(delta.then(|| event["delta"].as_str()).flatten()).map(str::to_owned)
    };
    events(bytes).filter_map(|event| of_one(&event)).collect()
}

fn cost(row: &RequestRow) -> i64 {
    PRICE.cost(row.in_tok, row.cached_tok, row.out_tok)
}

/// What the template makes of a message of the user's.
async fn rendered(house: &Governed, key: &str, text: &str) -> String {
    let body = json!({ "messages": [{ "role": "user", "content": text }] });
    house.send(key, "/apply-template", body).await.json()["prompt"].as_str().expect("a prompt").to_owned()
}

/// T-B2. Each with a key of its own, so that nobody finds what another has left in the KV cache.
#[tokio::test]
async fn ten_ways_of_one_request_have_the_same_tokens_and_cost() {
    let house = Governed::with(|setup, _| setup.gateway.price = PRICE).await;
    let asking = "count me, whoever asks";
    let (other, _) = house.key(json!({})).await;
    let prompt = rendered(&house, &other, asking).await;
    let mut first: Option<RequestRow> = None;
    for way in &WAYS {
        let (key, id) = house.key(json!({})).await;
        let answer = house.send(&key, way.path, way.body(asking, &prompt, 64)).await;
        assert_eq!(answer.status, 200, "{}: {}", way.path, answer.text);
        // Committed before the last byte went out, so it is there now without any waiting.
        let row = house.row_of(&answer).await;
        let said = (row.endpoint.as_str(), row.stream, row.status, row.finish.as_str(), row.usage_source.as_str());
        assert_eq!(said, (way.path, way.stream, 200, "stop", "engine"));
        assert_eq!((row.cached_tok, row.out_tok, row.cost_nusd), (0, asking.len() as u64 + 1, cost(&row)));
        assert_eq!(way.told(&answer.text), (row.in_tok, row.out_tok), "{} {}: {}", way.path, way.stream, answer.text);
        let spend = &house.look(&format!("/key/info?key={id}")).await["info"]["spend"];
        assert_eq!(*spend, json!(row.cost_nusd as f64 / 1e9), "{}", way.path);
        let first = first.get_or_insert_with(|| row.clone());
        let counts = |row: &RequestRow| (row.in_tok, row.out_tok, row.cost_nusd);
        assert_eq!(counts(&row), counts(first), "{} {}", way.path, way.stream);
    }
    house.is_verified().await;
    house.stop().await;
}

/// Where a client leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Point {
    Queue,
    Prefill,
    Token1,
    TokenK,
    /// The whole text is there, and nothing that says so.
    LastToken,
    Finish,
    /// Everything but the end of the body.
    BeforeEnd,
}

const POINTS: [Point; 7] =
    [Point::Queue, Point::Prefill, Point::Token1, Point::TokenK, Point::LastToken, Point::Finish, Point::BeforeEnd];
const K: usize = 9;

impl Point {
    /// `None`: this way has no such place, or it is another's.
    fn of(self, way: &Way) -> Option<Self> {
        match self {
            Point::Finish if !way.stream => None,
            Point::BeforeEnd => way.last.map(|_| self),
            _ => Some(self),
        }
    }
}

async fn until(house: &Governed, what: &str, is_there: impl Fn(&Stats) -> bool) {
    let started = Instant::now();
    while !is_there(&house.server.engine.stats().await.expect("the engine lives")) {
        assert!(started.elapsed() < PATIENCE, "never {what}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Waits until nothing runs, and returns the engine's counts: (prompt tokens computed, tokens generated).
async fn counts(house: &Governed) -> (u64, u64) {
    let started = Instant::now();
    while house.server.engine.load().n_in_flight > 0 {
        assert!(started.elapsed() < PATIENCE, "a request is still in flight");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    // The worker tells of its slots, and counts a request's tokens, when it sees that the request is gone.
    until(house, "idle", |stats| stats.slots.iter().all(|slot| slot.state == "idle")).await;
    let stats = house.server.engine.stats().await.expect("the engine lives");
    (stats.prompt_tokens_computed, stats.tokens_generated)
}

/// Asks, and leaves at `point`. Returns when the connection is gone.
async fn leave(house: &Governed, key: &str, way: &Way, point: Point, n: usize) {
    // Texts that have no prefix in common but the template's, and answers without an end where none may be reached.
    let text = match point {
        Point::Queue => format!("{n} waits"),
        Point::Prefill => format!("{n} {}", "and on ".repeat(4000)),
        Point::Token1 | Point::TokenK => format!("/forever {n}"),
        _ => format!("{n} is all there is to say"),
    };
    let prompt = rendered(house, key, &text).await;
    let sending = house.post(key, way.path, &way.body(&text, &prompt, 40_000)).send();
    let whole_text = text.clone();
    let (stream, finish, last) = (way.stream, way.finish, way.last);
    let asking = tokio::spawn(async move {
        let response = sending.await.expect("an answer");
        assert_eq!(response.status(), 200);
        let has = move |bytes: &[u8], mark: &str| bytes.windows(mark.len()).any(|window| window == mark.as_bytes());
        read_until(response, |bytes| match point {
            Point::Token1 if stream => !self::text(bytes).is_empty(),
            Point::TokenK if stream => self::text(bytes).len() >= K,
            Point::LastToken if stream => self::text(bytes) == whole_text,
            Point::Finish => has(bytes, finish),
            Point::BeforeEnd => has(bytes, last.unwrap_or_default()),
            _ => false,
        })
        .await;
    });
    let made = |n: usize| move |stats: &Stats| stats.slots.iter().any(|slot| slot.n_generated as usize >= n);
    match point {
        Point::Queue => until(house, "queued", |stats| stats.n_queued == 1).await,
        Point::Prefill => {
            until(house, "in prefill", |stats| stats.slots[0].n_computed > 0 && stats.n_queued == 0).await;
        }
        _ if stream => return asking.await.expect("read as far"),
        Point::Token1 => until(house, "a token", made(1)).await,
        Point::TokenK => until(house, "k tokens", made(K)).await,
        // Or it is over already, which is as late.
        _ => {
            let n = text.len();
            until(house, "the last token", |stats| made(n)(stats) || asking.is_finished()).await;
        }
    }
    asking.abort();
    let _ = asking.await;
}

/// T-B3: one row each, with the engine's own count of the tokens, and the cost that follows from it.
#[tokio::test]
async fn whoever_leaves_anywhere_is_charged_for_what_the_engine_did() {
    let house = Governed::with(|setup, _| {
        setup.gateway.price = PRICE;
        setup.engine.n_slots = 1;
        setup.engine.n_ctx = Some(60_000);
        setup.engine.n_batch = 256;
        (setup.scripted().step_us, setup.scripted().prompt_token_us) = (1_000, 200);
    })
    .await;
    let (key, _) = house.key(json!({})).await;
    let mut n_rows = 0;
    for (n, (way, point)) in WAYS.iter().flat_map(|way| POINTS.map(|point| (way, point))).enumerate() {
        let Some(point) = point.of(way) else { continue };
        let case = format!("{} {}, {point:?}", way.path, if way.stream { "streamed" } else { "whole" });
        let holder = match point {
            Point::Queue => {
                let body = WAYS[0].body("/forever", "", 50_000);
                let holder = house.post(&key, WAYS[0].path, &body).send().await.expect("an answer");
                until(&house, "busy", |stats| stats.slots[0].n_generated > 0).await;
                Some(holder)
            }
            _ => None,
        };
        let before = if holder.is_some() { (0, 0) } else { counts(&house).await };
        leave(&house, &key, way, point, n).await;
        // The one for the template, and its own.
        n_rows += 2;
        let row = house.rows(n_rows).await.pop().expect("a row");
        assert_eq!((row.endpoint.as_str(), row.stream), (way.path, way.stream), "{case}");
        assert_eq!(row.cost_nusd, cost(&row), "{case}");
        if let Some(holder) = holder {
            assert_eq!((row.finish.as_str(), row.in_tok, row.out_tok), ("aborted", 0, 0), "{case}");
            drop(holder);
            n_rows += 1;
            house.rows(n_rows).await;
            continue;
        }
        let after = counts(&house).await;
        assert_eq!(row.out_tok, after.1 - before.1, "{case}: the engine's own count");
        assert_eq!(row.in_tok - row.cached_tok, after.0 - before.0, "{case}: the engine's own count of the prompt");
        let n_text = u64::try_from(format!("{n} is all there is to say").len()).expect("a short text");
        match point {
            Point::Prefill => assert!(row.finish == "aborted" && row.out_tok == 0 && row.in_tok < 28_000, "{case}"),
            Point::Token1 => assert!(row.finish == "aborted" && row.out_tok >= 1, "{case}: {row:?}"),
            Point::TokenK => assert!(row.finish == "aborted" && row.out_tok >= K as u64, "{case}: {row:?}"),
            // The end of the turn is one more, if the engine came to it.
            Point::LastToken => assert!(
                matches!((row.finish.as_str(), row.out_tok - n_text), ("aborted", 0 | 1) | ("stop", 1)),
                "{case}: {row:?}"
            ),
            _ => assert_eq!((row.finish.as_str(), row.out_tok), ("stop", n_text + 1), "{case}"),
        }
    }
    house.is_verified().await;
    house.stop().await;
}
