//! Requests in Anthropic's JSON.

use super::openai_body::decimal;
use super::{Outgoing, Part, Unsupported, Wire, mime, parts};
use crate::chat::{ChatPrompt, ChatRequest, Media, MediaKind, Message, Output, Role, Sampling, Tool, ToolChoice};
use crate::dialect::arguments;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// Its API wants a limit in every request; this one where the client named none.
const MAX_TOKENS: u32 = 4096;

pub(super) fn chat(wire: &Wire, request: &ChatRequest) -> Result<Outgoing, Unsupported> {
    let ChatRequest {
        model: _,
        prompt,
        sampling,
        output,
        n,
        stream: _,
        include_usage: _,
        cache_prompt: _,
        lora,
        // Who it is stays here.
        end_user: _,
        cache: _,
        // The queue is ours; not every upstream has such a tier.
        class: _,
    } = request;
    let Output { max_tokens, stop, top_logprobs, echo: _, with_tokens: _, constraint, prediction: _ } = output;
    let unsupported = [
        ("n", *n > 1),
        ("lora", lora.is_some()),
        ("logprobs", top_logprobs.is_some()),
        ("response_format", constraint.is_some()),
        ("add_generation_prompt", !prompt.add_generation_prompt && !prompt.continue_final_message),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, is_asked)| *is_asked) {
        return Err(Unsupported(field));
    }
    let mut fields = Map::new();
    fields.insert("model".to_owned(), wire.model.as_str().into());
    fields.insert("stream".to_owned(), true.into());
    fields.insert("max_tokens".to_owned(), max_tokens.unwrap_or(MAX_TOKENS).into());
    let (system, messages) = conversation(&prompt.messages)?;
    // Instructions alone, or empty texts, are nothing that it answers.
    if messages.is_empty() {
        return Err(Unsupported("messages"));
    }
    if !system.is_empty() {
        fields.insert("system".to_owned(), system.into());
    }
    fields.insert("messages".to_owned(), messages.into());
    if !stop.is_empty() {
        fields.insert("stop_sequences".to_owned(), stop.clone().into());
    }
    set_tools(&mut fields, prompt)?;
    let dropped = set_sampling(&mut fields, sampling, prompt)?;
    Ok(Outgoing { path: "/messages", body: Value::Object(fields).to_string().into_bytes(), dropped })
}

/// The system text, and turns that alternate.
fn conversation(messages: &[Message]) -> Result<(String, Vec<Value>), Unsupported> {
    let mut system: Vec<&str> = Vec::new();
    let mut turns: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for message in messages {
        let text = message.content.as_deref().unwrap_or_default();
        let (role, blocks) = match message.role {
            Role::System => {
                system.push(text);
                continue;
            }
            Role::User => ("user", blocks(text, &message.media)?),
            Role::Tool => {
                let id = message.tool_call_id.as_deref().ok_or(Unsupported("messages"))?;
                let content = blocks(text, &message.media)?;
                ("user", vec![json!({ "type": "tool_result", "tool_use_id": id, "content": content })])
            }
            Role::Assistant => {
                let mut content = blocks(text, &[])?;
                content.extend(message.tool_calls.iter().map(|call| {
                    let input = arguments::object(&call.arguments);
                    json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input })
                }));
                ("assistant", content)
            }
        };
        match turns.last_mut() {
            Some((last, content)) if *last == role => content.extend(blocks),
            _ => turns.push((role, blocks)),
        }
    }
    // A turn without anything is refused there.
    turns.retain(|(_, content)| !content.is_empty());
    let turns = turns.into_iter().map(|(role, content)| json!({ "role": role, "content": content }));
    Ok((system.join("\n\n"), turns.collect()))
}

fn blocks(text: &str, media: &[Media]) -> Result<Vec<Value>, Unsupported> {
    let block = |part: Part| match part {
        Part::Text(text) => Ok(json!({ "type": "text", "text": text })),
        Part::Media(item) if item.kind == MediaKind::RemoteImage => {
            let url = String::from_utf8_lossy(&item.data);
            Ok(json!({ "type": "image", "source": { "type": "url", "url": url } }))
        }
        Part::Media(item) => {
            let kind = mime(item).filter(|kind| kind.starts_with("image/")).ok_or(Unsupported("messages"))?;
            let data = STANDARD.encode(&item.data);
            Ok(json!({ "type": "image", "source": { "type": "base64", "media_type": kind, "data": data } }))
        }
    };
    parts(text, media).into_iter().map(block).collect()
}

fn set_tools(fields: &mut Map<String, Value>, prompt: &ChatPrompt) -> Result<(), Unsupported> {
    if prompt.tools.is_empty() {
        return Ok(());
    }
    let tool = |tool: &Tool| {
        let mut schema: Value = serde_json::from_str(&tool.parameters).map_err(|_| Unsupported("tools"))?;
        if let Some(schema) = schema.as_object_mut().filter(|schema| !schema.contains_key("type")) {
            schema.insert("type".to_owned(), "object".into());
        }
        Ok(json!({ "name": tool.name, "description": tool.description.as_deref().unwrap_or_default(),
            "input_schema": schema }))
    };
    // There is no word for "some of these"; those that may not be called are not shown.
    let may_call = |tool: &&Tool| prompt.callable.as_ref().is_none_or(|names| names.contains(&tool.name));
    let tools = prompt.tools.iter().filter(may_call).map(tool).collect::<Result<Vec<_>, _>>()?;
    fields.insert("tools".to_owned(), tools.into());
    let mut choice = match (prompt.tool_choice, prompt.callable.as_deref()) {
        (ToolChoice::None, _) => json!({ "type": "none" }),
        (ToolChoice::Auto, _) => json!({ "type": "auto" }),
        (ToolChoice::Required, Some([one])) => json!({ "type": "tool", "name": one }),
        (ToolChoice::Required, _) => json!({ "type": "any" }),
    };
    if !prompt.parallel_tool_calls && prompt.tool_choice != ToolChoice::None {
        choice["disable_parallel_tool_use"] = true.into();
    }
    fields.insert("tool_choice".to_owned(), choice);
    Ok(())
}

/// Returns what has no word there.
fn set_sampling(
    fields: &mut Map<String, Value>,
    sampling: &Sampling,
    prompt: &ChatPrompt,
) -> Result<Vec<&'static str>, Unsupported> {
    let mut dropped = Vec::new();
    let Sampling { temperature, top_p, top_k, logit_bias, .. } = sampling;
    if logit_bias.as_ref().is_some_and(|entries| !entries.is_empty()) {
        return Err(Unsupported("logit_bias"));
    }
    if let Some(value) = temperature {
        if *value > 1.0 {
            dropped.push("temperature");
        }
        fields.insert("temperature".to_owned(), decimal(value.min(1.0)));
    }
    if let Some(value) = top_p {
        fields.insert("top_p".to_owned(), decimal(*value));
    }
    if let Some(value) = top_k.filter(|k| *k > 0) {
        fields.insert("top_k".to_owned(), value.into());
    }
    let rest = Sampling { temperature: None, top_p: None, top_k: None, logit_bias: None, ..sampling.clone() };
    dropped.extend(said(&rest));
    if prompt.reasoning_effort.is_some() {
        dropped.push("reasoning_effort");
    }
    if prompt.enable_thinking.is_some() || !prompt.template_kwargs.is_empty() {
        dropped.push("chat_template_kwargs");
    }
    Ok(dropped)
}

/// The names of the fields that say something.
fn said(sampling: &Sampling) -> Vec<&'static str> {
    let Ok(Value::Object(fields)) = serde_json::to_value(sampling) else { return Vec::new() };
    let is_said = |key: &str| fields.get(key).is_some_and(|value| !value.is_null());
    Sampling::FIELDS.iter().copied().filter(|key| is_said(key)).collect()
}
