//! The body of `POST /v1/responses` and of `/v1/responses/input_tokens`.

use super::items::{self, Item, Turn};
use super::object::Echo;
use super::tools::{self, Called};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{ChatPrompt, ChatRequest, Constraint, Message, Output, Role, ToolChoice};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, name_of, too_many};
use crate::dialect::openai::chat::EFFORTS;
use crate::dialect::openai::format::{asks, constraint_name};
use crate::dialect::openai::lora::lora;
use crate::dialect::openai::parts::Found;
use crate::dialect::openai::sampling::{Limit, class, sampling, stop, token_limit};
use crate::dialect::{Fault, Ignored, Read, Wanted};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Items of one input. Each takes a few tokens at least, so no context holds more.
const ITEMS_MAX: usize = 65_536;
/// Limits of OpenAI's own.
const METADATA_MAX: usize = 16;
const METADATA_KEY_MAX: usize = 64;
const METADATA_VALUE_MAX: usize = 512;
const LOGPROBS: &str = "message.output_text.logprobs";
/// Bookkeeping of OpenAI's own platform, and hints.
const ACCEPTED: [&str; 6] = [
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "stream_options",
    "context_management",
    "cache_control",
];

/// A request as read, before what the server keeps is looked up.
#[derive(Debug)]
pub struct Asked {
    /// Complete but for its messages, of which only the instructions are there.
    chat: ChatRequest,
    input: Vec<Given>,
    pub(super) called: HashMap<String, Called>,
    pub echo: Echo,
    pub places: Places,
    pub wanted: Wanted,
}

/// Paths in the body of what only the engine or the model can judge.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The type of each image's and sound's part of the input, in order.
    media: Vec<String>,
    /// Images and sounds of earlier responses, which come before.
    n_prior_media: usize,
    /// Each tool that the model sees.
    tools: Vec<String>,
}

impl Places {
    /// Where the client wrote what the engine or the gateway calls `field`.
    pub fn name(&self, field: &str) -> String {
        let indexed = |prefix: &str| {
            let (index, rest) = field.strip_prefix(prefix)?.split_once(']')?;
            Some((index.parse::<usize>().ok()?, rest))
        };
        if let Some((index, _)) = indexed("media[") {
            let own = index.checked_sub(self.n_prior_media).and_then(|index| self.media.get(index));
            return own.cloned().unwrap_or_else(|| "input".to_owned());
        }
        if let Some((tool, rest)) = indexed("tools[").and_then(|(index, rest)| Some((self.tools.get(index)?, rest))) {
            return format!("{tool}{}", rest.strip_prefix(".function").unwrap_or(rest));
        }
        match field {
            "messages" => "input".to_owned(),
            _ => constraint_name(Some("text.format"), field),
        }
    }
}

/// An item as sent, with what it means.
#[derive(Debug)]
struct Given {
    value: Value,
    turn: Turn,
    /// The path of each image's and sound's type in it.
    media: Vec<String>,
}

/// An item that the input refers to and nobody knows.
#[derive(Debug, PartialEq, Eq)]
pub struct MissingItem {
    pub param: String,
    /// As the client wrote it, cut to a readable length.
    pub id: String,
}

pub fn request(body: &[u8]) -> Result<Read<Asked>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    refuse(&mut body)?;
    let input = input(&mut body, &mut ignored)?;
    let instructions = body.string("instructions")?;
    let tools = tools::tools(&mut body, &mut ignored)?;
    let choice = tools::choice(&mut body, &tools, &mut ignored)?;
    let parallel_tool_calls = body.bool("parallel_tool_calls")?.unwrap_or(true);
    let text = text(&mut body, &mut ignored)?;
    let (effort, summary) = reasoning(&mut body, &mut ignored)?;
    let max_tokens = token_limit(&mut body, "max_output_tokens", 1)?.and_then(Limit::tokens);
    let (top, top_logprobs) = logprobs(&mut body)?;
    let sampling = sampling(&mut body)?;
    // A constraint is about the answer's text, and an answer that must be a call has none.
    let constraint = text.constraint.filter(|_| choice.choice != ToolChoice::Required);
    let output = Output { max_tokens, stop: stop(&mut body)?, top_logprobs, constraint, ..Default::default() };
    check::output(&output)?;
    let instructions_turn = instructions.clone().map(|text| Message::new(Role::System, text));
    let prompt = ChatPrompt {
        tools: tools.offered,
        tool_choice: choice.choice,
        callable: choice.callable,
        parallel_tool_calls,
        enable_thinking: (effort.as_deref() == Some("none")).then_some(false),
        reasoning_effort: effort.clone(),
        ..ChatPrompt::new(instructions_turn.into_iter().collect())
    };
    let user = body.string("user")?;
    let named = body.take("safety_identifier").as_ref().and_then(name_of);
    let end_user = named.or_else(|| name_of(&Value::from(user.clone()?)));
    let echo = Echo {
        instructions,
        tools: tools.echo,
        tool_choice: choice.echo,
        parallel_tool_calls,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        max_output_tokens: max_tokens,
        max_tool_calls: body.integer("max_tool_calls", 1, i64::MAX)?,
        previous_response_id: body.string("previous_response_id")?,
        effort,
        summary,
        format: text.format,
        verbosity: text.verbosity,
        truncation: word(&mut body, "truncation", &["disabled", "auto"])?.unwrap_or_else(|| "disabled".to_owned()),
        store: body.bool("store")?.unwrap_or(true),
        metadata: metadata(&mut body)?,
        top_logprobs: top,
        user,
        class: class(&mut body),
    };
    let chat = ChatRequest {
        model: body.string("model")?.filter(|name| !name.is_empty()),
        prompt,
        sampling,
        output,
        n: 1,
        stream: body.bool("stream")?.unwrap_or(false),
        include_usage: true,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        end_user,
        cache: cache(&mut body, &mut ignored)?,
        class: echo.class,
    };
    let wanted = Wanted::read(&mut body)?;
    body.accept(&ACCEPTED);
    body.finish(&mut ignored);
    let places = Places { media: Vec::new(), n_prior_media: 0, tools: tools.paths };
    Ok(Read { request: Asked { chat, input, called: tools.called, echo, places, wanted }, ignored })
}

impl Asked {
    pub fn stream(&self) -> bool {
        self.chat.stream
    }

    pub(super) fn with_logprobs(&self) -> bool {
        self.chat.output.top_logprobs.is_some()
    }

    pub fn model(&self) -> Option<&str> {
        self.chat.model.as_deref()
    }

    /// Puts stored items where the input refers to them.
    pub fn resolve(&mut self, find: impl Fn(&str) -> Option<Arc<Item>>) -> Result<(), MissingItem> {
        for (i, Given { value, turn, media }) in self.input.iter_mut().enumerate() {
            let Turn::Reference(id) = turn else { continue };
            let missing = || MissingItem { param: format!("input[{i}].id"), id: id.chars().take(128).collect() };
            let item = find(id).ok_or_else(missing)?;
            let mut ignored = Ignored::default();
            let mut found = Found { ignored: &mut ignored, media: Vec::new() };
            let known = items::read(String::new(), item.json.clone(), &mut found);
            *turn = known.map_err(|_| missing())?;
            *value = item.json.clone();
            *media = vec![format!("input[{i}]"); found.media.len()];
        }
        Ok(())
    }

    /// The whole conversation: the instructions, what was said in earlier responses (`prior`), and the input; with the
    /// input's items as they are listed. `base` makes their ids; see [`super::Head::base`].
    pub fn converse(&mut self, prior: &[Arc<Item>], base: &str) -> Result<(ChatRequest, Vec<Arc<Item>>), Fault> {
        let mut turns = Vec::with_capacity(prior.len() + self.input.len());
        let mut ignored = Ignored::default();
        let mut found = Found { ignored: &mut ignored, media: Vec::new() };
        for item in prior {
            turns.push(items::read("previous_response_id".to_owned(), item.json.clone(), &mut found)?);
        }
        self.places.n_prior_media = found.media.len();
        let mut listed = Vec::with_capacity(self.input.len());
        for (n, Given { value, turn, media }) in std::mem::take(&mut self.input).into_iter().enumerate() {
            turns.push(turn);
            self.places.media.extend(media);
            listed.push(items::complete(value, base, n));
        }
        let mut chat = self.chat.clone();
        chat.prompt.messages.extend(items::messages(turns));
        if chat.prompt.messages.is_empty() {
            return Err(Fault::new("input", "invalid_value", "input holds nothing that can be answered."));
        }
        Ok((chat, listed))
    }
}

/// What this server does not do. `false` and nothing are fine.
fn refuse(body: &mut Object) -> Result<(), Fault> {
    for (key, why) in [
        ("background", "responses are computed while their client waits"),
        ("conversation", "this server keeps no conversations; use previous_response_id"),
        ("prompt", "this server keeps no prompt templates"),
        ("moderation", "this server has no moderation"),
    ] {
        if body.take(key).is_some_and(|value| asks(&value)) {
            return Err(body.unsupported(key, why));
        }
    }
    Ok(())
}

fn input(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<Given>, Fault> {
    let values = match body.take("input") {
        None => return Err(body.missing("input")),
        Some(Value::String(text)) => vec![json!({ "type": "message", "role": "user", "content": text })],
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type("input", "a string or an array of items", &other)),
    };
    if values.is_empty() {
        return Err(empty_array("input"));
    }
    if values.len() > ITEMS_MAX {
        return Err(too_many("input", values.len(), ITEMS_MAX));
    }
    let mut found = Found { ignored, media: Vec::new() };
    let mut items: Vec<Given> = Vec::with_capacity(values.len());
    let mut n_media = 0;
    for (i, value) in values.into_iter().enumerate() {
        let turn = items::read(format!("input[{i}]"), value.clone(), &mut found)?;
        let media = found.media[n_media..].to_vec();
        n_media = found.media.len();
        items.push(Given { value, turn, media });
    }
    Ok(items)
}

/// What the answer's text must be.
struct Text {
    constraint: Option<Constraint>,
    /// As received.
    format: Value,
    verbosity: String,
}

fn text(body: &mut Object, ignored: &mut Ignored) -> Result<Text, Fault> {
    let mut text = Text { constraint: None, format: json!({ "type": "text" }), verbosity: "medium".to_owned() };
    let Some(mut fields) = body.object("text")? else { return Ok(text) };
    if let Some(value) = fields.take("format") {
        text.format = value.clone();
        text.constraint = format(Object::at(fields.path("format"), value)?, ignored)?;
    }
    text.verbosity = word(&mut fields, "verbosity", &["low", "medium", "high"])?.unwrap_or(text.verbosity);
    fields.finish(ignored);
    Ok(text)
}

fn format(mut fields: Object, ignored: &mut Ignored) -> Result<Option<Constraint>, Fault> {
    let kind = fields.string("type")?.ok_or_else(|| fields.missing("type"))?;
    let constraint = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::JsonObject),
        "json_schema" => {
            fields.string("name")?.ok_or_else(|| fields.missing("name"))?;
            fields.string("description")?;
            fields.bool("strict")?;
            match fields.take("schema") {
                None => Some(Constraint::JsonObject),
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Some(Constraint::JsonSchema(schema.to_string())),
                Some(other) => return Err(invalid_type(fields.path("schema"), "an object", &other)),
            }
        }
        other => return Err(invalid_value(fields.path("type"), other, "text, json_object, json_schema")),
    };
    fields.finish(ignored);
    Ok(constraint)
}

/// (effort, summary). A model's own thinking is told as it is, so a summary is only echoed.
fn reasoning(body: &mut Object, ignored: &mut Ignored) -> Result<(Option<String>, Option<String>), Fault> {
    let Some(mut fields) = body.object("reasoning")? else { return Ok((None, None)) };
    let effort = word(&mut fields, "effort", &EFFORTS)?;
    let kinds = ["auto", "concise", "detailed", "none"];
    let older = word(&mut fields, "generate_summary", &kinds)?;
    let summary = word(&mut fields, "summary", &kinds)?.or(older);
    fields.finish(ignored);
    Ok((effort, summary))
}

/// One of the words.
fn word(fields: &mut Object, key: &str, allowed: &[&str]) -> Result<Option<String>, Fault> {
    match fields.string(key)? {
        Some(given) if !allowed.contains(&given.as_str()) => {
            Err(invalid_value(fields.path(key), &given, &allowed.join(", ")))
        }
        given => Ok(given),
    }
}

/// (`top_logprobs` as said, what the engine is asked for). Either field asks.
fn logprobs(body: &mut Object) -> Result<(u8, Option<u8>), Fault> {
    let top = body.integer("top_logprobs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok()).unwrap_or(0);
    let mut wanted = top > 0;
    for (i, value) in body.array("include")?.unwrap_or_default().iter().enumerate() {
        match value.as_str() {
            Some(name) => wanted |= name == LOGPROBS,
            None => return Err(invalid_type(format!("include[{i}]"), "a string", value)),
        }
    }
    Ok((top, wanted.then_some(top)))
}

fn metadata(body: &mut Object) -> Result<Map<String, Value>, Fault> {
    let entries = match body.take("metadata") {
        None => return Ok(Map::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(invalid_type("metadata", "an object", &other)),
    };
    if entries.len() > METADATA_MAX {
        return Err(too_many("metadata", entries.len(), METADATA_MAX));
    }
    for (key, value) in &entries {
        let shown: String = key.chars().take(METADATA_KEY_MAX).collect();
        let path = format!("metadata.{shown}");
        let text = value.as_str().ok_or_else(|| invalid_type(path.clone(), "a string", value))?;
        if key.chars().count() > METADATA_KEY_MAX || text.chars().count() > METADATA_VALUE_MAX {
            let message = format!(
                "{path}: a key may have {METADATA_KEY_MAX} characters and a value {METADATA_VALUE_MAX}, but one has more."
            );
            return Err(Fault::new(path, "string_above_max_length", message));
        }
    }
    Ok(entries)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
