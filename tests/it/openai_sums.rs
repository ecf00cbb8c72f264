//! A stream says what the whole answer says: seeded random requests of every kind, each asked both ways.

use crate::support::{Events, Server, with};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};

const N_REQUESTS: u64 = 500;

/// SplitMix64: the requests are the same in every run, and a failure names its number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % n
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.roll(of.len() as u64)).unwrap_or(0)]
    }

    fn text(&mut self) -> String {
        const BITS: [&str; 14] = [
            "word ",
            "\u{1f600}",
            "e\u{301}",
            "\n",
            "  ",
            "\"quoted\" \\",
            "\u{4f60}\u{597d}",
            "<think>",
            "STOP",
            "ST",
            "}",
            "<tool",
            "\u{0}",
            "1 2 3",
        ];
        (0..1 + self.roll(12)).map(|_| *self.pick(&BITS)).collect()
    }

    fn arguments(&mut self) -> Value {
        let mut map = Map::new();
        for i in 0..self.roll(4) {
            let text = self.text();
            let value = match self.roll(3) {
                0 => json!(text),
                1 => json!([text, { "n": self.roll(1000) }]),
                _ => json!({ "deep": { "deeper": [null, true, text] } }),
            };
            map.insert(format!("key{i}"), value);
        }
        Value::Object(map)
    }

    fn message(&mut self) -> String {
        match self.roll(7) {
            0 => format!("/count {}", self.roll(60)),
            1 => format!("/think {}", self.text()),
            2 => {
                let bytes: Vec<String> = (0..self.roll(20)).map(|_| self.roll(256).to_string()).collect();
                format!("/bytes {}", bytes.join(" "))
            }
            3 | 4 => {
                let calls: Vec<String> = (0..1 + self.roll(3))
                    .map(|_| format!("/call {} {}", self.pick(&["f", "g"]), self.arguments()))
                    .collect();
                calls.join("\n")
            }
            _ => self.text(),
        }
    }

    /// Path and body.
    fn request(&mut self) -> (&'static str, Value) {
        let mut more = json!({ "seed": self.roll(1000), "max_tokens": 400 });
        let mut also = |fields: Value| more = with(more.take(), fields);
        if self.roll(3) == 0 {
            also(json!({ "max_tokens": 1 + self.roll(60) }));
        }
        if self.roll(3) == 0 {
            also(
                json!({ "stop": self.pick(&[json!("STOP"), json!(["}", "\u{1f600}"]), json!("4"), json!([" w", "1 2 3"])]) }),
            );
        }
        if self.roll(3) == 0 {
            also(json!({ "n": 1 + self.roll(4) }));
        }
        if self.roll(4) == 0 {
            also(json!({ "prompt": self.text() }));
            match self.roll(3) {
                0 => also(json!({ "echo": true, "logprobs": self.roll(3) })),
                1 => also(json!({ "echo": true })),
                _ => also(json!({ "logprobs": self.roll(3) })),
            }
            return ("/v1/completions", more);
        }
        if self.roll(4) == 0 {
            let object =
                json!({"type":"object","properties":{"a":{"type":"string","maxLength":9},"b":{"enum":[1,null]}}});
            also(match self.roll(4) {
                0 => json!({ "response_format": {"type":"json_object"} }),
                1 => json!({ "guided_regex": "[a-c]{1,9}\u{e9}?" }),
                _ => json!({ "json_schema": object }),
            });
        }
        if self.roll(3) == 0 {
            also(json!({ "logprobs": true, "top_logprobs": self.roll(3) }));
        }
        if self.roll(5) == 0 {
            also(json!({ "reasoning_format": "none" }));
        }
        let function = |name: &str| json!({"type":"function","function":{"name":name}});
        match self.roll(6) {
            0 => also(json!({ "functions": [{"name":"f"},{"name":"g"}] })),
            1 => {}
            2 => {
                let parameters = json!({"type":"object","required":["k"],"properties":{
                    "k":{"enum":["a","\u{e9}"]},"l":{"type":"array","maxItems":2,"items":{"type":"string","maxLength":3}}}});
                let tool = json!({"type":"function","function":{"name":"f","parameters":parameters,"strict":true}});
                also(
                    json!({ "tools": [tool], "tool_choice": self.pick(&["auto", "required"]), "parallel_tool_calls": false }),
                );
            }
            _ => {
                let choice = self.pick(&[json!("auto"), json!("none"), json!("required"), function("g")]).clone();
                also(json!({ "tools": [function("f"), function("g")], "tool_choice": choice }));
            }
        }
        also(json!({ "messages": [{ "role": "user", "content": self.message() }] }));
        ("/v1/chat/completions", more)
    }
}

/// What a client makes of one choice, whichever way it came. Ids are fresh in each answer.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    text: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    function_call: Option<(String, String)>,
    logprobs: Vec<Value>,
    finish: String,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn named(function: &Value) -> (String, String) {
    (text(&function["name"]).to_owned(), text(&function["arguments"]).to_owned())
}

/// Chat: an array of entries; text completions: parallel arrays.
fn entries(logprobs: &Value) -> Vec<Value> {
    if let Some(entries) = logprobs["content"].as_array() {
        return entries.clone();
    }
    let n = logprobs["tokens"].as_array().map_or(0, Vec::len);
    let keys = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    (0..n).map(|i| keys.map(|key| logprobs[key][i].clone()).to_vec().into()).collect()
}

impl Sum {
    fn whole(choice: &Value) -> Self {
        let message = &choice["message"];
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        Self {
            text: message["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned(),
            reasoning: text(&message["reasoning_content"]).to_owned(),
            calls: calls.iter().map(|call| named(&call["function"])).collect(),
            function_call: message["function_call"].is_object().then(|| named(&message["function_call"])),
            logprobs: entries(&choice["logprobs"]),
            finish: text(&choice["finish_reason"]).to_owned(),
        }
    }

    fn streamed(events: &Events, index: u64) -> Self {
        let mut sum = Self::default();
        for choice in events.choices(index) {
            let delta = &choice["delta"];
            sum.text += delta["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            sum.reasoning += text(&delta["reasoning_content"]);
            for piece in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = piece["index"].as_u64().and_then(|at| usize::try_from(at).ok()).expect("an index");
                sum.calls.resize(sum.calls.len().max(at + 1), Default::default());
                let (name, arguments) = named(&piece["function"]);
                sum.calls[at].0 += &name;
                sum.calls[at].1 += &arguments;
            }
            if delta["function_call"].is_object() {
                let (name, arguments) = named(&delta["function_call"]);
                let call = sum.function_call.get_or_insert_default();
                call.0 += &name;
                call.1 += &arguments;
            }
            sum.logprobs.extend(entries(&choice["logprobs"]));
            sum.finish += text(&choice["finish_reason"]);
        }
        sum
    }
}

/// Asks both ways; returns what was in the answers, so that the test can show that it saw all kinds.
async fn both_ways(server: &Server, number: u64) -> Vec<Sum> {
    let (path, body) = Dice(number).request();
    let whole = server.post(path, body.clone()).await;
    assert_eq!(whole.status, 200, "request {number}: {body}: {}", whole.text);
    let counted = with(body.clone(), json!({ "stream_options": { "include_usage": true } }));
    let events = server.stream(path, counted).await;
    assert!(events.is_done);
    let whole = whole.json();
    let choices = whole["choices"].as_array().expect("choices");
    let mut sums = Vec::new();
    for (index, choice) in (0..).zip(choices) {
        let sum = Sum::whole(choice);
        assert_eq!(Sum::streamed(&events, index), sum, "request {number}, choice {index}: {body}");
        // Within JSON the same letters are a string's.
        let is_free =
            body["tool_choice"] == "none" && body["response_format"].is_null() && body["json_schema"].is_null();
        assert!(!is_free || !sum.text.contains("<tool_call>"), "TOOL-02: request {number}: {body}: {sum:?}");
        let is_call = !sum.calls.is_empty() || sum.function_call.is_some();
        assert!(choice["message"]["content"].is_string() || choice["text"].is_string() || is_call, "{choice}");
        sums.push(sum);
    }
    let usage = &events.chunks.last().expect("a usage chunk")["usage"];
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[key], whole["usage"][key], "request {number}: {body}");
    }
    sums
}

#[tokio::test]
async fn five_hundred_random_streams_add_up_to_the_whole_answer() {
    let server = Server::start().await;
    let asked = futures_util::stream::iter((0..N_REQUESTS).map(|number| both_ways(&server, number)));
    let sums: Vec<Sum> = asked.buffer_unordered(4).collect::<Vec<_>>().await.into_iter().flatten().collect();
    let has = |wanted: fn(&Sum) -> bool| sums.iter().filter(|sum| wanted(sum)).count();
    for (kind, n) in [
        ("thinking", has(|sum| !sum.reasoning.is_empty())),
        ("calls", has(|sum| sum.calls.len() > 1)),
        ("older calls", has(|sum| sum.finish == "function_call")),
        ("log-probabilities", has(|sum| !sum.logprobs.is_empty())),
        ("cut", has(|sum| sum.finish == "length")),
        ("calls that were cut", has(|sum| sum.finish == "length" && !sum.calls.is_empty())),
        ("stopped", has(|sum| sum.finish == "stop")),
        ("not ASCII", has(|sum| !sum.text.is_ascii())),
    ] {
        assert!(n >= 5, "only {n} answers with {kind}");
    }
}
