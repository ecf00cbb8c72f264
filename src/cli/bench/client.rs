//! One request as a client makes it, and what it took.

use crate::gateway::{HttpClient, HttpClientBody};
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Buf as _, BytesMut};
use clap::ValueEnum;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// A request that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of one event, or of a whole answer that is not streamed.
const BYTES_MAX: usize = 64 << 20;

/// Which of OpenAI's APIs generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dialect {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
}

/// A prompt and how its answer is bounded.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    /// What many requests begin with.
    pub system: Option<String>,
    pub prompt: String,
    pub max_tokens: u32,
    /// A JSON Schema that the answer must fit.
    pub schema: Option<Value>,
    pub is_greedy: bool,
    /// `Some`: it is a chat whatever `--api` says, behind these turns (question, answer), and ends where the model ends it.
    pub turns: Option<Vec<(String, String)>>,
}

/// What one streamed answer took.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub first: Option<Duration>,
    pub last: Option<Duration>,
    pub total: Duration,
    pub n_prompt: u64,
    /// Of those, not computed anew.
    pub n_cached: u64,
    pub n_completion: u64,
}

impl Measured {
    /// Tokens per second from the first on.
    pub fn decode_rate(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) if last > first => (self.n_generated() - 1.0) / (last - first).as_secs_f64(),
            _ => f64::NAN,
        }
    }

    /// Tokens of the answer; NaN: the server does not tell (it sends no `usage` with a stream).
    pub fn n_generated(&self) -> f64 {
        if self.n_prompt + self.n_completion == 0 { f64::NAN } else { self.n_completion as f64 }
    }

    /// Tokens of the prompt that were not in a cache.
    pub fn n_new_prompt(&self) -> u64 {
        self.n_prompt.saturating_sub(self.n_cached)
    }

    /// Tokens computed for it, prompt and answer; NaN: the server does not tell.
    pub fn n_computed(&self) -> f64 {
        self.n_generated() + self.n_new_prompt() as f64
    }
}

/// Sends to one server.
pub(super) struct Client {
    pub http: HttpClient,
    /// `http://127.0.0.1:8080`, without a path's end.
    pub base: String,
    pub model: String,
    pub key: Option<HeaderValue>,
    pub api: Dialect,
    pub is_plain: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Choice {
    /// A token may have no text of its own (half a character); it is not an arrival that a reader would see.
    fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        let said = [
            self.text.as_ref(),
            delta.and_then(|delta| delta.content.as_ref()),
            delta.and_then(|delta| delta.reasoning_content.as_ref()),
            delta.and_then(|delta| delta.reasoning.as_ref()),
        ];
        said.into_iter().flatten().any(|text| !text.is_empty())
    }
}

impl Client {
    fn body(&self, ask: &Ask) -> (&'static str, Value) {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model));
        let path = match if ask.turns.is_some() { Dialect::Chat } else { self.api } {
            Dialect::Chat => {
                let message = |role: &str, text: &String| json!({ "role": role, "content": text });
                let mut messages: Vec<Value> = ask.system.iter().map(|text| message("system", text)).collect();
                for (question, answer) in ask.turns.iter().flatten() {
                    messages.extend([message("user", question), message("assistant", answer)]);
                }
                messages.push(message("user", &ask.prompt));
                body.insert("messages".to_owned(), Value::Array(messages));
                "/v1/chat/completions"
            }
            Dialect::Completions => {
                let system = ask.system.iter().map(String::as_str);
                let parts: Vec<&str> = system.chain([ask.prompt.as_str()]).collect();
                body.insert("prompt".to_owned(), json!(parts.join(" ")));
                "/v1/completions"
            }
        };
        body.insert("max_tokens".to_owned(), json!(ask.max_tokens));
        body.insert("temperature".to_owned(), json!(if ask.is_greedy { 0.0 } else { 0.8 }));
        body.insert("seed".to_owned(), json!(7));
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        match &ask.schema {
            Some(schema) => {
                let named = json!({ "name": "bench", "schema": schema, "strict": true });
                body.insert("response_format".to_owned(), json!({ "type": "json_schema", "json_schema": named }));
            }
            // Answers of one length, whatever the model would say; a constrained one must be able to end.
            None if !self.is_plain && ask.turns.is_none() => {
                body.insert("ignore_eos".to_owned(), json!(true));
            }
            None => {}
        }
        (path, Value::Object(body))
    }

    /// Streams an answer to its end.
    pub async fn stream(&self, ask: &Ask) -> Result<Measured> {
        let (path, body) = self.body(ask);
        tokio::time::timeout(PATIENCE, self.streamed(path, &body))
            .await
            .unwrap_or_else(|_| bail!("no end of an answer in {} s", PATIENCE.as_secs()))
    }

    /// What a chat's answer says, and its tokens per second: as the server measured them (`timings`, which hearth and
    /// llama-server send), or else as they came when it is asked once more, streaming.
    pub async fn told(&self, ask: &Ask) -> Result<(String, f64)> {
        let (path, mut body) = self.body(ask);
        body["stream"] = json!(false);
        if let Some(body) = body.as_object_mut() {
            body.remove("stream_options");
        }
        let answer = self.json(Method::POST, path, Some(&body)).await?;
        let text = answer["choices"][0]["message"]["content"].as_str().context("the answer has no text")?.to_owned();
        let rate = match answer["timings"]["predicted_per_second"].as_f64() {
            Some(rate) => rate,
            None => self.stream(ask).await?.decode_rate(),
        };
        Ok((text, rate))
    }

    async fn streamed(&self, path: &str, body: &Value) -> Result<Measured> {
        let started = Instant::now();
        let mut answer = self.send(Method::POST, path, Some(body)).await?;
        let mut measured = Measured::default();
        let mut buffer = BytesMut::new();
        let mut is_done = false;
        while let Some(frame) = answer.frame().await {
            let Ok(bytes) = frame.context("the answer broke off")?.into_data() else { continue };
            let now = started.elapsed();
            buffer.extend_from_slice(&bytes);
            while let Some(end) = memchr::memchr(b'\n', &buffer) {
                is_done |= read_line(&buffer[..end], now, &mut measured)?;
                buffer.advance(end + 1);
            }
            if buffer.len() > BYTES_MAX {
                bail!("an event of more than {BYTES_MAX} bytes");
            }
        }
        if !is_done {
            bail!("the answer has no end");
        }
        measured.total = started.elapsed();
        Ok(measured)
    }

    /// A JSON answer that is not streamed.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let read = async {
            let answer = self.send(method, path, body).await?;
            let bytes = http_body_util::Limited::new(answer, BYTES_MAX).collect().await;
            let bytes = bytes.map_err(|error| anyhow!("the answer can't be read: {error}"))?.to_bytes();
            serde_json::from_slice(&bytes).context("the answer is not JSON")
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| bail!("no answer in {} s", PATIENCE.as_secs()))
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let request = request.body(HttpClientBody::from(bytes))?;
        let response = self.http.request(request).await.with_context(|| format!("{} does not answer", self.base))?;
        let status = response.status();
        if status != StatusCode::OK {
            let bytes = http_body_util::Limited::new(response.into_body(), 64 << 10).collect().await;
            let text = bytes.map(|bytes| bytes.to_bytes()).unwrap_or_default();
            bail!("{path}: {status}: {}", reason(&text));
        }
        Ok(response.into_body())
    }
}

/// What a refusal says, on one line.
fn reason(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    let text = error["message"].as_str().or(error.as_str()).unwrap_or("no reason given");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// Takes one line of the event stream in; true: it was the last.
fn read_line(line: &[u8], now: Duration, measured: &mut Measured) -> Result<bool> {
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(false) };
    if data == b"[DONE]" {
        return Ok(true);
    }
    let chunk: Chunk = serde_json::from_slice(data).context("an event is not a chunk of a completion")?;
    if let Some(error) = chunk.error {
        bail!("the answer failed: {}", error["message"].as_str().unwrap_or("no reason given"));
    }
    if chunk.choices.iter().any(Choice::has_text) {
        measured.first.get_or_insert(now);
        measured.last = Some(now);
    }
    if let Some(usage) = chunk.usage {
        measured.n_prompt = usage.prompt_tokens;
        measured.n_completion = usage.completion_tokens;
        measured.n_cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_counted_where_a_reader_would_see_text() {
        let mut measured = Measured::default();
        let mut read = |line: &str, ms| read_line(line.as_bytes(), Duration::from_millis(ms), &mut measured);
        assert!(!read(r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#, 1).unwrap());
        assert!(!read(": ping", 2).unwrap());
        assert!(!read(r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":null}"#, 3).unwrap());
        assert!(!read(r#"data: {"choices":[{"text":"b"}]}"#, 7).unwrap());
        let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        assert!(!read(usage, 8).unwrap());
        assert!(read("data: [DONE]\r", 9).unwrap());
        assert!(read(r#"data: {"error":{"message":"no"}}"#, 9).is_err());
        assert_eq!((measured.n_prompt, measured.n_cached, measured.n_completion), (9, 4, 3));
        assert!((measured.decode_rate() - 500.0).abs() < 1e-9, "two more tokens in 4 ms");
    }

    #[test]
    fn without_usage_there_is_a_time_and_no_rate() {
        let at = |ms| Some(Duration::from_millis(ms));
        let silent = Measured { first: at(3), last: at(7), ..Measured::default() };
        assert!(silent.decode_rate().is_nan() && silent.n_computed().is_nan());
        let told = Measured { n_prompt: 9, n_cached: 12, n_completion: 3, ..silent };
        assert_eq!((told.n_new_prompt(), told.n_computed()), (0, 3.0), "a count that can't be is none");
    }

    #[test]
    fn a_refusal_is_one_line() {
        assert_eq!(reason(br#"{"error":{"message":"no\nsuch model"}}"#), "no such model");
        assert_eq!(reason(b"<html>"), "no reason given");
    }
}
