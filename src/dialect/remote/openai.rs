//! Chunks of OpenAI's chat and text completions, as other servers write them.

use super::{Fault, Reported, Said, count, reported};
use crate::chat::{Delta, Finish, Likely, TokenLogprob, ToolCallDelta, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The id of a token of another vocabulary.
const UNKNOWN: i32 = -1;
/// Calls of one answer.
const CALLS_MAX: u32 = 128;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: Option<u32>,
    #[serde(default)]
    delta: Option<Piece>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize, Default)]
struct Piece {
    #[serde(default)]
    content: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    index: Option<u32>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize, Default)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

/// Of a chat; a text completion's arrays have no `content`, and are not asked for.
#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    content: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(flatten)]
    own: Token,
    #[serde(default)]
    top_logprobs: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    token: String,
    logprob: f32,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    prompt_tokens: Option<f64>,
    #[serde(default)]
    completion_tokens: Option<f64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptCounts>,
    #[serde(default)]
    completion_tokens_details: Option<AnswerCounts>,
}

#[derive(Deserialize)]
struct PromptCounts {
    #[serde(default)]
    cached_tokens: Option<f64>,
}

#[derive(Deserialize)]
struct AnswerCounts {
    #[serde(default)]
    reasoning_tokens: Option<f64>,
}

/// `error` may be an object or a text, and its code a text or a number.
#[derive(Deserialize)]
struct ErrorWords {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<serde_json::Value>,
}

/// What is known of the choices so far.
pub(super) struct Chunks {
    choices: Vec<Progress>,
}

#[derive(Default, Clone)]
struct Progress {
    n_calls: u32,
    has_ended: bool,
}

impl Chunks {
    pub(super) fn new(n_choices: usize) -> Self {
        Self { choices: vec![Progress::default(); n_choices] }
    }

    pub(super) fn read(&mut self, data: &str, out: &mut Vec<Said>) -> Result<(), Fault> {
        if data == "[DONE]" {
            out.push(Said::End);
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|_| Fault::Broken("not_a_chunk"))?;
        if let Some(error) = chunk.error.filter(|error| error.get() != "null") {
            return Err(Fault::Reported(error_kind(error)));
        }
        for choice in chunk.choices.unwrap_or_default() {
            self.choice(choice, out)?;
        }
        out.extend(chunk.usage.and_then(usage).map(Said::Usage));
        Ok(())
    }

    fn choice(&mut self, choice: Choice, out: &mut Vec<Said>) -> Result<(), Fault> {
        let idx = choice.index.unwrap_or(0) as usize;
        let Some(progress) = self.choices.get_mut(idx) else { return Err(Fault::Broken("unknown_choice")) };
        let piece = choice.delta.unwrap_or_default();
        let mut delta = Delta {
            content: piece.content.or(choice.text).unwrap_or_default(),
            reasoning: piece.reasoning_content.unwrap_or_default(),
            ..Default::default()
        };
        delta.content.push_str(&piece.refusal.unwrap_or_default());
        for call in piece.tool_calls.unwrap_or_default() {
            delta.tool_calls.push(progress.call(call)?);
        }
        let entries = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
        delta.logprobs = entries.into_iter().map(Entry::into_chat).collect::<Result<_, _>>()?;
        let shows = !delta.content.is_empty() || !delta.reasoning.is_empty() || !delta.tool_calls.is_empty();
        if shows && progress.has_ended {
            return Err(Fault::Broken("text_after_the_end"));
        }
        if shows {
            // One token a chunk is the rule; where it is not, the usage at the end is right.
            delta.n_tokens = u32::try_from(delta.logprobs.len()).unwrap_or(u32::MAX).max(1);
        }
        out.push(Said::Delta(idx, delta));
        let Some(reason) = choice.finish_reason.filter(|_| !progress.has_ended) else { return Ok(()) };
        progress.has_ended = true;
        out.push(Said::Finish(idx, finish(&reason)?));
        Ok(())
    }
}

impl Progress {
    /// The next piece of the open call, or the first of the next: others would be pieces of two calls at once.
    fn call(&mut self, call: Call) -> Result<ToolCallDelta, Fault> {
        let function = call.function.unwrap_or_default();
        let name = function.name.filter(|name| !name.is_empty());
        let last = self.n_calls.checked_sub(1);
        let index = match (call.index, &name) {
            (Some(index), _) => index,
            // Some servers number no calls: each with a name is one more.
            (None, Some(_)) => self.n_calls,
            (None, None) => last.unwrap_or(0),
        };
        let opening = if index == self.n_calls && index < CALLS_MAX {
            self.n_calls += 1;
            let name = name.ok_or(Fault::Broken("call_without_a_name"))?;
            let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{index}"));
            Some((id, name))
        } else if Some(index) == last {
            // Some repeat the name in every piece.
            None
        } else {
            return Err(Fault::Broken("calls_out_of_order"));
        };
        Ok(ToolCallDelta { index, opening, arguments: function.arguments.unwrap_or_default() })
    }
}

impl Entry {
    fn into_chat(self) -> Result<TokenLogprob, Fault> {
        let likely = |token: Token| {
            let is_number = token.logprob.is_finite();
            let bytes = token.bytes.unwrap_or_else(|| token.token.into_bytes());
            let likely = Likely { id: UNKNOWN, bytes, logprob: token.logprob.min(0.0) };
            is_number.then_some(likely).ok_or(Fault::Broken("logprob"))
        };
        let Likely { id, bytes, logprob } = likely(self.own)?;
        let top = self.top_logprobs.into_iter().map(likely).collect::<Result<_, _>>()?;
        Ok(TokenLogprob { id, bytes, logprob, top })
    }
}

fn finish(reason: &str) -> Result<Finish, Fault> {
    match reason {
        "length" => Ok(Finish::Length),
        "content_filter" => Err(Fault::Reported(Reported::Filtered)),
        // Also `tool_calls`, `function_call` and words of other servers for the same: the calls are there.
        _ => Ok(Finish::EndOfTurn),
    }
}

fn usage(counts: Counts) -> Option<Usage> {
    let prompt_tokens = count(counts.prompt_tokens)?;
    let completion_tokens = count(counts.completion_tokens)?;
    let cached = counts.prompt_tokens_details.and_then(|details| count(details.cached_tokens)).unwrap_or(0);
    let reasoning = counts.completion_tokens_details.and_then(|details| count(details.reasoning_tokens)).unwrap_or(0);
    Some(Usage {
        prompt_tokens,
        cached_tokens: cached.min(prompt_tokens),
        completion_tokens,
        reasoning_tokens: reasoning.min(completion_tokens),
        ..Default::default()
    })
}

fn error_kind(error: &RawValue) -> Reported {
    let Ok(words) = serde_json::from_str::<ErrorWords>(error.get()) else { return Reported::Server };
    let code = words.code.map(|code| code.as_str().map_or_else(|| code.to_string(), str::to_owned));
    match code.as_deref() {
        Some("429" | "503" | "529") => Reported::Throttled,
        Some("400" | "413" | "422") => Reported::Invalid,
        code => reported(&[words.kind.as_deref().unwrap_or_default(), code.unwrap_or_default()]),
    }
}
