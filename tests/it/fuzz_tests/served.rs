//! Answers to mutated requests against what the API's own description and the official SDKs' types say they are, fuzzed (F16):
//! every field's type, the order of events, one ending each.
//!
//! The SDKs' types are those that `make test` installs; without them, the description alone is asked.

use super::{is_well, runtime};
use crate::fuzz::{Shape, Target, corpus, fuzz_few, headed, outcome};
use crate::support::bodies::Schemas;
use crate::support::served::root;
use crate::support::{Answer, Events, PATIENCE, Server};
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::process::Command;

const WORDS: &str = "model¦messages¦role¦content¦user¦assistant¦system¦tool¦stream¦stream_options¦include_usage¦n¦max_tokens¦\
    max_completion_tokens¦max_output_tokens¦stop¦logprobs¦top_logprobs¦echo¦tools¦tool_choice¦required¦auto¦none¦f¦\
    function¦parameters¦response_format¦json_object¦json_schema¦thinking¦reasoning_effort¦input¦instructions¦store¦metadata¦\
    seed¦temperature¦user¦prompt¦suffix¦best_of¦/count 5¦/think a b¦/call f {}¦/bytes 240 159 152 128¦/bytes 255 10¦include¦\
    message.output_text.logprobs¦encoding_format¦base64¦return_progress¦timings_per_token¦n_probs¦stop_sequences¦options¦\
    num_predict¦think¦format¦json¦parallel_tool_calls¦continuous_usage_stats¦return_tokens_as_token_ids";

/// By the names that the corpus has them under.
const PATHS: [(&str, &str); 19] = [
    ("chat", "/v1/chat/completions"),
    ("completion", "/v1/completions"),
    ("responses", "/v1/responses"),
    ("messages", "/v1/messages"),
    ("count", "/v1/messages/count_tokens"),
    ("native", "/completion"),
    ("infill", "/infill"),
    ("tokenize", "/tokenize"),
    ("detokenize", "/detokenize"),
    ("render", "/apply-template"),
    ("embeddings", "/v1/embeddings"),
    ("embedding", "/embedding"),
    ("ollama-chat", "/api/chat"),
    ("ollama-generate", "/api/generate"),
    ("ollama-embed", "/api/embed"),
    ("ollama-embeddings", "/api/embeddings"),
    ("ollama-named", "/api/show"),
    ("lora", "/lora-adapters"),
    ("rerank", "/v1/rerank"),
];

fn seeds() -> Vec<Vec<u8>> {
    let say = |text: &str| json!([{ "role": "user", "content": text }]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let own = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
    let flat = json!([{ "type": "function", "name": "f", "parameters": { "type": "object" } }]);
    let usage = json!({ "include_usage": true });
    let mut seeds = vec![
        ("chat", json!({ "messages": say("hello"), "logprobs": true, "top_logprobs": 2, "n": 2 })),
        ("chat", json!({ "messages": say("/think a b"), "stream": true, "stream_options": usage })),
        ("chat", json!({ "messages": say("/call f {\"a\":1}"), "tools": tools, "stream": true })),
        ("chat", json!({ "messages": say("/call f {}"), "tools": tools, "tool_choice": "required" })),
        (
            "chat",
            json!({ "messages": say("/bytes 240 159 152 128"), "stream": true, "n": 2, "logprobs": true, "max_tokens": 3 }),
        ),
        ("chat", json!({ "messages": say("/count 9"), "stream": true, "stop": ["5"], "seed": 1 })),
        ("completion", json!({ "prompt": ["a", "b"], "n": 2, "logprobs": 1, "echo": true, "max_tokens": 3 })),
        ("completion", json!({ "prompt": "hello", "stream": true, "stream_options": usage, "logprobs": 1 })),
        ("responses", json!({ "input": "hello", "stream": true, "store": false })),
        ("responses", json!({ "input": "/think a b", "stream": true, "include": ["message.output_text.logprobs"] })),
        ("responses", json!({ "input": "/call f {}", "tools": flat, "stream": true, "max_output_tokens": 20 })),
        ("responses", json!({ "input": say("/call f {\"a\":1}"), "tools": flat, "metadata": { "a": "b" } })),
        ("messages", json!({ "max_tokens": 20, "messages": say("hello"), "stream": true })),
        ("messages", json!({ "max_tokens": 2, "messages": say("/think a b"), "thinking": { "type": "adaptive" } })),
        ("messages", json!({ "max_tokens": 99, "messages": say("/call f {\"a\":1}"), "tools": own, "stream": true })),
        (
            "messages",
            json!({ "max_tokens": 99, "messages": say("/call f {}"), "tools": own, "tool_choice": { "type": "any" } }),
        ),
        ("ollama-chat", json!({ "messages": say("hello") })),
        ("ollama-generate", json!({ "prompt": "hello", "stream": true })),
        ("native", json!({ "prompt": "hello", "n_predict": 3, "stream": true, "n_probs": 2 })),
        ("embeddings", json!({ "input": ["a", "b"] })),
    ];
    // Whole and in pieces.
    let other = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = json!(body["stream"] != true);
        body
    };
    let turned: Vec<(&str, Value)> =
        seeds.iter().filter(|(name, _)| *name != "embeddings").map(|(name, body)| (*name, other(body))).collect();
    seeds.extend(turned);
    seeds.iter().map(|(name, body)| format!("{name}\n{body}").into_bytes()).collect()
}

/// What answers are held against.
struct Judge {
    document: Value,
    validators: HashMap<String, Option<Validator>>,
    official: HashMap<String, Validator>,
}

impl Judge {
    async fn of(server: &Server) -> Self {
        let document = server.get("/openapi.json").await.json();
        Self { document, validators: HashMap::new(), official: official() }
    }

    /// Against what the document says at `pointer`, if it says something.
    fn fits(&mut self, pointer: &str, value: &Value) {
        let schema = self.document.pointer(pointer).filter(|schema| schema.is_object()).cloned();
        let validator = self.validators.entry(pointer.to_owned()).or_insert_with(|| {
            let mut whole = schema.clone()?;
            whole["components"] = self.document["components"].clone();
            Some(jsonschema::validator_for(&whole).expect("a schema"))
        });
        let (Some(validator), Some(schema)) = (validator, schema) else {
            unreachable!("nothing is said at {pointer}: {value}")
        };
        no_errors(validator, pointer, value);
        assert_eq!(Schemas(&self.document).undescribed(&schema, value, ""), Vec::<String>::new(), "{pointer}: {value}");
    }

    /// Against the official type of that name, where there is one.
    fn is_official(&self, name: &str, value: &Value) {
        let Some(validator) = self.official.get(name) else { return };
        if !name.starts_with("completion") {
            return no_errors(validator, name, value);
        }
        // OpenAI's own completions have null where an answer goes on and before an echoed prompt's first token; its types don't.
        let mut value = value.clone();
        for choice in value["choices"].as_array_mut().into_iter().flatten() {
            if choice["finish_reason"].is_null() {
                choice["finish_reason"] = json!("stop");
            }
            for (list, filler) in [("token_logprobs", json!(0.0)), ("top_logprobs", json!({}))] {
                if let Some(first) = choice.pointer_mut(&format!("/logprobs/{list}/0")).filter(|first| first.is_null())
                {
                    *first = filler;
                }
            }
        }
        no_errors(validator, name, &value);
    }

    /// Where the document describes an answer, its references followed.
    fn described(&self, path: &str, status: u16) -> String {
        let pointer = format!("/paths/{}/post/responses/{status}", path.replace('/', "~1"));
        match self.document.pointer(&pointer).and_then(|response| response["$ref"].as_str()) {
            Some(target) => target.trim_start_matches('#').to_owned(),
            None => pointer,
        }
    }
}

fn no_errors(validator: &Validator, name: &str, value: &Value) {
    let errors: Vec<String> =
        validator.iter_errors(value).take(3).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {value}");
}

/// What the SDKs that are installed hold answers to be.
fn official() -> HashMap<String, Validator> {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", python.display());
        eprintln!("left out: {} is not installed (`make test` installs it)", python.display());
        return HashMap::new();
    }
    let output = Command::new(python).arg(root().join("tests/clients/schemas.py")).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let schemas: HashMap<String, Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    schemas.into_iter().map(|(name, schema)| (name, jsonschema::validator_for(&schema).expect("a schema"))).collect()
}

/// A stream with names of events (Responses, Messages).
fn named_events(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n") && !text.contains("[DONE]"), "{text}");
    let events = text.split_terminator("\n\n").filter(|event| *event != ": keep-alive");
    events
        .map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("a line of JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "{data}");
            data
        })
        .collect()
}

fn text_of<'e>(events: impl Iterator<Item = &'e Value>, pointer: &str) -> String {
    events.filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

/// Chats and completions: chunks of one answer, whose choices end once each; then what was used, if that was asked for.
fn choices_end_once(events: &Events) {
    assert!(events.is_done, "no [DONE]: {events:?}");
    let is_error = events.chunks.last().is_some_and(|chunk| chunk["error"].is_object());
    let chunks: Vec<&Value> = events.chunks.iter().filter(|chunk| chunk["choices"].is_array()).collect();
    let ids: std::collections::HashSet<&Value> = chunks.iter().map(|chunk| &chunk["id"]).collect();
    assert!(ids.len() <= 1, "{ids:?}");
    let n_choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().into_iter().flatten());
    let indexes: std::collections::BTreeSet<u64> = n_choices.filter_map(|choice| choice["index"].as_u64()).collect();
    for index in indexes {
        let of: Vec<&Value> = events.choices(index).collect();
        let ends: Vec<usize> = (0..of.len()).filter(|at| !of[*at]["finish_reason"].is_null()).collect();
        assert!(is_error || ends == [of.len() - 1], "choice {index} ends at {ends:?} of {}", of.len());
        let roles = of.iter().filter(|choice| choice["delta"]["role"].is_string()).count();
        assert!(roles <= 1, "choice {index} has {roles} roles");
    }
    if let Some(at) = chunks
        .iter()
        .position(|chunk| chunk["choices"].as_array().is_some_and(Vec::is_empty) && chunk["usage"].is_object())
    {
        assert_eq!(at, chunks.len() - 1, "what was used comes last");
    }
}

/// Responses: numbered; items one after another, each opened, told and closed; one ending.
fn items_close(events: &[Value]) {
    let kind = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert!(numbers.iter().copied().eq(0..events.len() as u64), "{numbers:?}");
    assert!(events.len() > 2 && kind(&events[0]) == "response.created" && kind(&events[1]) == "response.in_progress");
    let is_last = |event: &Value| {
        matches!(kind(event).as_str(), "response.completed" | "response.incomplete" | "response.failed")
    };
    let last: Vec<usize> = (0..events.len()).filter(|at| is_last(&events[*at])).collect();
    assert_eq!(last, [events.len() - 1], "one ending");
    let (mut open, mut n_items) = (None, 0);
    for event in &events[2..events.len() - 1] {
        let (kind, index) = (kind(event), event["output_index"].as_u64());
        match kind.as_str() {
            "response.output_item.added" => {
                assert_eq!((open, index), (None, Some(n_items)), "{event}");
                open = index;
            }
            "response.output_item.done" => {
                assert_eq!(open, index, "{event}");
                (open, n_items) = (None, n_items + 1);
            }
            "error" => {}
            _ => assert_eq!(open, index, "{event}"),
        }
    }
    let end = &events[events.len() - 1];
    let items: Vec<&Value> =
        events.iter().filter(|event| kind(event) == "response.output_item.done").map(|event| &event["item"]).collect();
    if kind(end) != "response.failed" {
        assert!(open.is_none(), "an item is left open");
        assert_eq!(items, end["response"]["output"].as_array().expect("items").iter().collect::<Vec<_>>());
    }
    for (delta, done, field) in [
        ("response.output_text.delta", "response.output_text.done", "/text"),
        ("response.function_call_arguments.delta", "response.function_call_arguments.done", "/arguments"),
        ("response.reasoning_text.delta", "response.reasoning_text.done", "/text"),
    ] {
        let of = |wanted: &'static str| events.iter().filter(move |event| event["type"] == wanted);
        if kind(end) != "response.failed" {
            assert_eq!(text_of(of(delta), "/delta"), text_of(of(done), field), "{delta}");
        }
    }
}

/// Messages: blocks one after another between the message's start and its end.
fn blocks_close(events: &[Value]) {
    let kinds: Vec<&str> =
        events.iter().filter_map(|event| event["type"].as_str()).filter(|kind| *kind != "ping").collect();
    assert_eq!(kinds.first(), Some(&"message_start"), "{kinds:?}");
    if kinds.last() == Some(&"error") {
        return;
    }
    assert_eq!(kinds[kinds.len() - 2..], ["message_delta", "message_stop"], "{kinds:?}");
    let (mut open, mut n_blocks) = (None, 0);
    for event in &events[1..] {
        let index = event["index"].as_u64();
        match event["type"].as_str().unwrap_or_default() {
            "content_block_start" => {
                assert_eq!((open, index), (None, Some(n_blocks)), "{event}");
                open = index;
            }
            "content_block_delta" => assert!(open.is_some() && open == index, "{event}"),
            "content_block_stop" => {
                assert_eq!(open, index, "{event}");
                (open, n_blocks) = (None, n_blocks + 1);
            }
            "message_delta" | "message_stop" => assert!(open.is_none(), "{event}"),
            "ping" => {}
            kind => unreachable!("{kind} in the middle"),
        }
    }
    for kind in ["message_start", "message_delta", "message_stop"] {
        assert_eq!(kinds.iter().filter(|known| **known == kind).count(), 1, "{kind}");
    }
}

fn judge(judge: &mut Judge, name: &str, path: &str, answer: &Answer) {
    let kind = answer.header("content-type");
    let place = judge.described(path, answer.status);
    if kind.starts_with("text/event-stream") {
        let event = format!("{place}/content/text~1event-stream/schema/x-event");
        let events = match name {
            "responses" | "messages" => named_events(&answer.text),
            "native" | "infill" => {
                let lines = answer.text.split_terminator("\n\n").filter(|event| *event != ": keep-alive");
                let lines =
                    lines.map(|line| line.strip_prefix("data: ").or(line.strip_prefix("error: ")).expect("data"));
                lines.filter(|line| *line != "[DONE]").map(|line| serde_json::from_str(line).expect("JSON")).collect()
            }
            _ => {
                let events = Events::parse(answer.text.as_bytes());
                choices_end_once(&events);
                events.chunks
            }
        };
        match name {
            "responses" => items_close(&events),
            "messages" => blocks_close(&events),
            "native" | "infill" => {
                let ends: Vec<usize> = (0..events.len()).filter(|at| events[*at]["stop"] == true).collect();
                let is_error = events.last().is_some_and(|event| event["error"].is_object());
                assert!(is_error || ends == [events.len() - 1], "{ends:?} of {}", events.len());
            }
            _ => {}
        }
        for value in
            events.iter().filter(|value| value.get("error").is_none_or(Value::is_null) && value["type"] != "error")
        {
            if judge.document.pointer(&event).is_some() {
                judge.fits(&event, value);
            }
            judge.is_official(&format!("{name} event"), value);
        }
    } else if kind == "application/x-ndjson" {
        let event = format!("{place}/content/application~1x-ndjson/schema/x-event");
        let lines: Vec<Value> =
            answer.text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        let ends: Vec<usize> = (0..lines.len()).filter(|at| lines[*at]["done"] == true).collect();
        let is_error = lines.last().is_some_and(|line| line.get("error").is_some());
        assert!(is_error || ends == [lines.len() - 1], "{ends:?} of {}", lines.len());
        lines.iter().filter(|line| line.get("error").is_none()).for_each(|line| judge.fits(&event, line));
    } else {
        assert!(["application/json", "application/json; charset=utf-8"].contains(&kind), "{kind}: {}", answer.text);
        let value = answer.json();
        judge.fits(&format!("{place}/content/application~1json/schema"), &value);
        if answer.status == 200 {
            judge.is_official(name, &value);
        }
    }
}

#[test]
fn answers_are_as_described() {
    let runtime = runtime();
    let server = runtime.block_on(Server::with(|setup| {
        setup.engine.n_ctx = Some(512);
        setup.scripted().step_us = 0;
        setup.http.body_bytes_max = 1 << 20;
    }));
    let mut held = runtime.block_on(Judge::of(&server));
    let all = [seeds(), corpus("requests")].concat();
    let words: Vec<&str> = WORDS.split('¦').collect();
    let target = Target { name: "served", seeds: all, shape: Shape::Json, words: &words };
    let mut n_good = 0u64;
    fuzz_few(&target, 400, |input| {
        let (name, body) = headed(input);
        let Some((_, path)) = PATHS.iter().find(|(known, _)| *known == name) else { return 0 };
        let answer = runtime.block_on(async {
            // A measurement may stop this process for minutes.
            let sent = server.client.post(server.url(path)).timeout(30 * PATIENCE);
            let sent = sent.header("content-type", "application/json").body(body.to_vec());
            let answer = Answer::of(sent.send().await.expect("an answer")).await;
            if answer.status >= 500 {
                is_well(&server).await;
            }
            answer
        });
        n_good += u64::from(answer.status == 200);
        judge(&mut held, name, path, &answer);
        // The kinds of what came, in their order.
        let kinds = answer
            .text
            .match_indices("\"type\":\"")
            .map(|(at, _)| answer.text[at + 8..].split('"').next().unwrap_or_default());
        let mut seen = kinds.take(40).collect::<Vec<_>>();
        seen.dedup();
        let fault = answer.status != 200;
        outcome(&format!("{path} {} {}", seen.join(" "), if fault { &answer.text } else { "" }))
            ^ u64::from(answer.status)
    });
    // Where this target runs at all.
    if std::env::var_os("FUZZ_ONLY").is_none() {
        assert!(n_good > 20, "{n_good} requests were answered");
    }
}
