//! A body → [`ChatRequest`].

use super::messages::{Found, conversation};
use super::tools::tools;
use crate::chat::check;
use crate::chat::{ChatPrompt, ChatRequest, Class, Constraint, Output, Role, Sampling, ToolChoice};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, integer, invalid_type, invalid_value, name_of, too_many};
use crate::dialect::media::MediaPlaces;
use crate::dialect::{Fault, Ignored, Read};
use serde_json::Value;

/// Accepted without effect: bookkeeping and routing of Anthropic's own platform.
const ACCEPTED: [&str; 7] =
    ["service_tier", "speed", "cache_control", "container", "context_management", "inference_geo", "diagnostics"];
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// A request as read.
#[derive(Debug, Clone, PartialEq)]
pub struct Messages {
    pub request: ChatRequest,
    pub media: MediaPlaces,
}

pub fn messages_request(body: &[u8]) -> Result<Read<Messages>, Fault> {
    read(body, true)
}

/// The same body, whose answer is only counted: `max_tokens` may be missing.
pub fn count_request(body: &[u8]) -> Result<Read<Messages>, Fault> {
    read(body, false)
}

/// What this API calls the engine's `field`.
pub fn field_name(field: &str) -> String {
    if field == "constraint" || field.starts_with("response_format") {
        return "output_config.format.schema".to_owned();
    }
    match field.split_once(".function.") {
        Some((tool, "parameters")) => format!("{tool}.input_schema"),
        Some((tool, rest)) => format!("{tool}.{rest}"),
        None => field.replacen("stop", "stop_sequences", usize::from(field.starts_with("stop"))),
    }
}

fn read(body: &[u8], needs_limit: bool) -> Result<Read<Messages>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let mut found = Found { ignored: &mut ignored, media: MediaPlaces::default() };
    let messages = conversation(&mut body, &mut found)?;
    let media = found.media;
    let mut prompt = prefilled(messages)?;
    tools(&mut body, &mut prompt, &mut ignored)?;
    thinking(&mut body, &mut prompt, &mut ignored)?;
    let format = output_config(&mut body, &mut prompt, &mut ignored)?;
    // A constraint is about the answer's text, and an answer that must be a call has none.
    let constraint = format.filter(|_| prompt.tool_choice != ToolChoice::Required);
    body.accept(&ACCEPTED);
    if body.array("mcp_servers")?.is_some_and(|servers| !servers.is_empty()) {
        return Err(body.unsupported("mcp_servers", "this server calls no other"));
    }
    let max_tokens = max_tokens(&mut body)?;
    if needs_limit && max_tokens.is_none() {
        return Err(body.missing("max_tokens"));
    }
    let output = Output { max_tokens, stop: stop_sequences(&mut body)?, constraint, ..Default::default() };
    check::output(&output).map_err(|refusal| {
        let field = refusal.field.replacen("stop", "stop_sequences", 1);
        Fault { param: Some(field), ..refusal.into() }
    })?;
    // Nothing else in it has an effect, so its shape is the client's own.
    let end_user = body.take("metadata").as_ref().and_then(|metadata| name_of(metadata.get("user_id")?));
    let request = ChatRequest {
        model: body.string("model")?,
        prompt,
        sampling: sampling(&mut body)?,
        output,
        n: 1,
        stream: body.bool("stream")?.unwrap_or(false),
        include_usage: true,
        cache_prompt: true,
        lora: None,
        end_user,
        cache: cache(&mut body, &mut ignored)?,
        // None of its tiers may wait: `auto` and `standard_only` are what all have.
        class: Class::default(),
    };
    body.finish(&mut ignored);
    Ok(Read { request: Messages { request, media }, ignored })
}

/// An assistant's turn at the end is the beginning of the answer.
fn prefilled(mut messages: Vec<crate::chat::Message>) -> Result<ChatPrompt, Fault> {
    let is_last = |message: &crate::chat::Message| message.role == Role::Assistant;
    let Some(last) = messages.last().filter(|message| is_last(message)) else { return Ok(ChatPrompt::new(messages)) };
    if !last.tool_calls.is_empty() {
        let message = "messages ends with a tool_use block; its tool_result must follow.";
        return Err(Fault::new("messages", "invalid_value", message));
    }
    let says_nothing = last.content.as_deref().is_none_or(str::is_empty);
    if says_nothing && messages.len() > 1 {
        messages.pop();
        return Ok(ChatPrompt::new(messages));
    }
    let mut prompt = ChatPrompt::new(messages);
    (prompt.continue_final_message, prompt.add_generation_prompt) = (!says_nothing, says_nothing);
    Ok(prompt)
}

/// Any budget is the same switch: the template has one, and `max_tokens` limits both.
fn thinking(body: &mut Object, prompt: &mut ChatPrompt, ignored: &mut Ignored) -> Result<(), Fault> {
    let Some(mut thinking) = body.object("thinking")? else { return Ok(()) };
    let kind = thinking.string("type")?.ok_or_else(|| thinking.missing("type"))?;
    prompt.enable_thinking = match kind.as_str() {
        "enabled" | "adaptive" | "between_tools" => Some(true),
        "disabled" => Some(false),
        other => {
            return Err(invalid_value(thinking.path("type"), other, "enabled, adaptive, between_tools, disabled"));
        }
    };
    thinking.integer("budget_tokens", 0, i64::MAX)?;
    thinking.finish(ignored);
    Ok(())
}

/// `output_config`, and `output_format` as it was called before.
fn output_config(
    body: &mut Object,
    prompt: &mut ChatPrompt,
    ignored: &mut Ignored,
) -> Result<Option<Constraint>, Fault> {
    let older = body.object("output_format")?.map(|format| constraint(format, ignored)).transpose()?.flatten();
    let Some(mut config) = body.object("output_config")? else { return Ok(older) };
    if let Some(effort) = config.string("effort")? {
        if !EFFORTS.contains(&effort.as_str()) {
            return Err(invalid_value(config.path("effort"), &effort, &EFFORTS.join(", ")));
        }
        prompt.reasoning_effort = Some(effort);
    }
    let newer = config.object("format")?.map(|format| constraint(format, ignored)).transpose()?.flatten();
    config.finish(ignored);
    Ok(newer.or(older))
}

fn constraint(mut format: Object, ignored: &mut Ignored) -> Result<Option<Constraint>, Fault> {
    let kind = format.string("type")?.ok_or_else(|| format.missing("type"))?;
    if kind != "json_schema" {
        return Err(invalid_value(format.path("type"), &kind, "json_schema"));
    }
    let path = format.path("schema");
    let schema = match format.take("schema") {
        None => return Err(format.missing("schema")),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => schema.to_string(),
        Some(other) => return Err(invalid_type(path, "an object (a JSON Schema)", &other)),
    };
    format.accept(&["name"]);
    format.finish(ignored);
    Ok(Some(Constraint::JsonSchema(schema)))
}

fn max_tokens(body: &mut Object) -> Result<Option<u32>, Fault> {
    let Some(value) = body.take("max_tokens") else { return Ok(None) };
    // What no integer of ours holds is as much as possible, too.
    let value = value.as_u64().map_or(value, |wide| wide.min(u32::MAX.into()).into());
    let n = integer("max_tokens".to_owned(), &value, 1, i64::MAX)?;
    Ok(Some(u32::try_from(n).unwrap_or(u32::MAX)))
}

fn stop_sequences(body: &mut Object) -> Result<Vec<String>, Fault> {
    let values = body.array("stop_sequences")?.unwrap_or_default();
    if values.len() > check::STOPS_MAX {
        return Err(too_many("stop_sequences", values.len(), check::STOPS_MAX));
    }
    let mut stops = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        match value {
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => stops.push(text),
            other => return Err(invalid_type(format!("stop_sequences[{i}]"), "a string", &other)),
        }
    }
    Ok(stops)
}

fn sampling(body: &mut Object) -> Result<Sampling, Fault> {
    let said = Sampling {
        temperature: body.decimal("temperature")?,
        top_p: body.decimal("top_p")?,
        top_k: body.int32("top_k")?,
        ..Default::default()
    };
    check::sampling(&said)?;
    Ok(said)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
