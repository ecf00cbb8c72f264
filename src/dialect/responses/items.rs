//! Input items, and how they become the turns that templates know.

use crate::chat::{Message, Role, ToolCall};
use crate::dialect::Fault;
use crate::dialect::fields::{Object, invalid_type, invalid_value};
use crate::dialect::openai::parts::{Found, content};
use serde_json::{Value, json};
use std::sync::Arc;

const TYPES: &str = "message, function_call, function_call_output, custom_tool_call, custom_tool_call_output, reasoning, \
                     item_reference";
const PARTS: &str = "input_text, output_text, refusal, input_image, input_file";

/// An item of a conversation as clients list it: complete, with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub id: String,
    pub json: Value,
    /// Bytes of its JSON text.
    pub n_bytes: usize,
}

impl Item {
    pub fn new(id: String, json: Value) -> Self {
        let n_bytes = json.to_string().len();
        Self { id, json, n_bytes }
    }

    /// An item as it was kept; `None` when it has no id.
    pub fn from_json(json: Value) -> Option<Self> {
        Some(Self::new(json["id"].as_str()?.to_owned(), json))
    }
}

/// What an item is to the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Turn {
    /// A turn, or the assistant's part of one.
    Message(Message),
    Call(ToolCall),
    Result {
        call_id: String,
        message: Message,
    },
    Thought(String),
    /// Stands for the stored item of this id.
    Reference(String),
}

/// One item as sent, with what it means.
pub(super) fn read(path: String, value: Value, found: &mut Found) -> Result<Turn, Fault> {
    let mut fields = Object::at(path, value)?;
    let kind = match fields.string("type")? {
        Some(kind) => kind,
        None if fields.has("role") => "message".to_owned(),
        // The SDKs' type of a reference may leave its type out.
        None if fields.has("id") => "item_reference".to_owned(),
        None => return Err(fields.missing("type")),
    };
    let turn = match kind.as_str() {
        "message" => Turn::Message(message(&mut fields, found)?),
        "function_call" => {
            let arguments = fields.string("arguments")?.filter(|text| !text.is_empty());
            call(&mut fields, arguments.unwrap_or_else(|| "{}".to_owned()))?
        }
        "custom_tool_call" => {
            let input = required(&mut fields, "input")?;
            call(&mut fields, json!({ super::custom::ARGUMENT: input }).to_string())?
        }
        "function_call_output" | "custom_tool_call_output" => result(&mut fields, found)?,
        "reasoning" => Turn::Thought(thought(&mut fields, found)?),
        "item_reference" => Turn::Reference(required(&mut fields, "id")?),
        other => return Err(invalid_value(fields.path("type"), other, TYPES)),
    };
    fields.accept(&["id", "status", "phase", "caller"]);
    fields.finish(found.ignored);
    Ok(turn)
}

fn required(fields: &mut Object, key: &str) -> Result<String, Fault> {
    fields.string(key)?.ok_or_else(|| fields.missing(key))
}

fn message(fields: &mut Object, found: &mut Found) -> Result<Message, Fault> {
    let role = match required(fields, "role")?.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => return Err(invalid_value(fields.path("role"), other, "user, assistant, system, developer")),
    };
    if !fields.has("content") {
        return Err(fields.missing("content"));
    }
    text_and_media(fields, "content", role, found)
}

/// The text and media of `key`. The parts have other names than a chat's and are otherwise the same, so they are read by
/// the chat's reader.
fn text_and_media(fields: &mut Object, key: &str, role: Role, found: &mut Found) -> Result<Message, Fault> {
    let path = fields.path(key);
    let value = match fields.take(key) {
        Some(Value::Array(parts)) => {
            let translated = parts.into_iter().enumerate().map(|(j, part)| translate(format!("{path}[{j}]"), part));
            Value::Array(translated.collect::<Result<_, _>>()?)
        }
        Some(text @ Value::String(_)) => text,
        None => return Err(fields.missing(key)),
        Some(other) => return Err(invalid_type(path, "a string or an array of parts", &other)),
    };
    let parent = path.strip_suffix(".content").or(path.strip_suffix(".output")).unwrap_or(&path).to_owned();
    let mut chat = Object::at(parent, json!({ "content": value }))?;
    let n_before = found.media.len();
    let read = content(&mut chat, role, found).map_err(|fault| renamed(fault, key))?;
    for path in &mut found.media[n_before..] {
        *path = path.replacen("].content", &format!("].{key}"), 1);
    }
    Ok(Message { media: read.media, ..Message::new(role, read.text.unwrap_or_default()) })
}

/// The chat's reader knows the field as `content`.
fn renamed(mut fault: Fault, key: &str) -> Fault {
    if key != "content" {
        let new = |text: &str| text.replacen("].content", &format!("].{key}"), 1);
        fault.param = fault.param.as_deref().map(new);
        fault.message = new(&fault.message);
    }
    fault
}

/// A part under the chat API's name for it.
fn translate(path: String, part: Value) -> Result<Value, Fault> {
    let mut part = match part {
        Value::Object(part) => part,
        other => return Err(invalid_type(path, "an object", &other)),
    };
    let kind = match part.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        None | Some(Value::Null) => return Err(Object::at(path, Value::Object(part))?.missing("type")),
        Some(other) => return Err(invalid_type(format!("{path}.type"), "a string", other)),
    };
    let refuse = |what: &str| {
        let path = format!("{path}.type");
        Err(Fault::new(path.clone(), "unsupported_content", format!("{path}: this server has no {what}.")))
    };
    let is_given = |key: &str| part.get(key).is_some_and(|value| !value.is_null());
    match kind.as_str() {
        "input_text" | "output_text" | "text" => {
            // Output that is sent back brings its log-probabilities along.
            part.swap_remove("logprobs");
            part.insert("type".to_owned(), "text".into());
        }
        "refusal" => {}
        "input_image" | "input_file" if is_given("file_id") => return refuse("stored files"),
        "input_file" if is_given("file_url") => return refuse("access to files elsewhere"),
        "input_image" => {
            let url = part.swap_remove("image_url").unwrap_or_default();
            let detail = part.swap_remove("detail").unwrap_or_default();
            let image = json!({ "url": url, "detail": detail });
            part.insert("type".to_owned(), "image_url".into());
            part.insert("image_url".to_owned(), image);
            part.swap_remove("file_id");
        }
        "input_file" => {
            let mut file = serde_json::Map::new();
            for key in ["file_data", "filename"] {
                file.extend(part.swap_remove(key).map(|value| (key.to_owned(), value)));
            }
            part.insert("type".to_owned(), "file".into());
            part.insert("file".to_owned(), file.into());
            for key in ["file_id", "file_url", "detail"] {
                part.swap_remove(key);
            }
        }
        other => return Err(invalid_value(format!("{path}.type"), other, PARTS)),
    }
    Ok(Value::Object(part))
}

fn call(fields: &mut Object, arguments: String) -> Result<Turn, Fault> {
    let id = required(fields, "call_id")?;
    let name = required(fields, "name")?;
    let name = match fields.string("namespace")? {
        Some(namespace) => super::tools::full_name(&namespace, &name),
        None => name,
    };
    Ok(Turn::Call(ToolCall { id, name, arguments }))
}

fn result(fields: &mut Object, found: &mut Found) -> Result<Turn, Fault> {
    let call_id = required(fields, "call_id")?;
    let message = text_and_media(fields, "output", Role::Tool, found)?;
    fields.accept(&["name", "namespace"]);
    Ok(Turn::Result { call_id, message })
}

/// What was thought, or else its summary. Encrypted content is another server's and says nothing here.
fn thought(fields: &mut Object, found: &mut Found) -> Result<String, Fault> {
    let content = thought_parts(fields, "content", "reasoning_text", found)?;
    let summary = thought_parts(fields, "summary", "summary_text", found)?;
    fields.accept(&["encrypted_content"]);
    Ok(if content.is_empty() { summary } else { content })
}

fn thought_parts(fields: &mut Object, key: &str, kind: &str, found: &mut Found) -> Result<String, Fault> {
    let path = fields.path(key);
    let mut texts = Vec::new();
    for (j, value) in fields.array(key)?.unwrap_or_default().into_iter().enumerate() {
        let mut part = Object::at(format!("{path}[{j}]"), value)?;
        let given = required(&mut part, "type")?;
        if given != kind && given != "text" {
            return Err(invalid_value(part.path("type"), &given, kind));
        }
        texts.push(required(&mut part, "text")?);
        part.finish(found.ignored);
    }
    Ok(texts.join("\n"))
}

/// Items as messages. What the assistant thought, said and called between two turns of others is one message.
pub(super) fn messages(turns: Vec<Turn>) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    let mut thoughts: Vec<String> = Vec::new();
    for turn in turns {
        match turn {
            Turn::Thought(text) => thoughts.push(text),
            Turn::Reference(_) => {}
            Turn::Message(message) if message.role == Role::Assistant => {
                let said = message.content.unwrap_or_default();
                // Text after text is another message; text after calls belongs to them.
                let joins = |open: &Message| open.content.is_none() || !open.tool_calls.is_empty();
                let open = assistant(&mut messages, &mut thoughts, joins);
                open.content = Some(open.content.take().map_or(said.clone(), |before| format!("{before}\n{said}")));
            }
            Turn::Call(call) => assistant(&mut messages, &mut thoughts, |_| true).tool_calls.push(call),
            Turn::Message(message) => {
                thoughts.clear();
                messages.push(message);
            }
            Turn::Result { call_id, message } => {
                thoughts.clear();
                let calls = messages.iter().rev().flat_map(|message| &message.tool_calls);
                // Some templates want the tool's name beside its result.
                let name = calls.into_iter().find(|call| call.id == call_id).map(|call| call.name.clone());
                messages.push(Message { name, tool_call_id: Some(call_id), ..message });
            }
        }
    }
    messages
}

/// The assistant's message that the next item belongs to: the last one if it `joins` it, or a new one.
fn assistant<'a>(
    messages: &'a mut Vec<Message>,
    thoughts: &mut Vec<String>,
    joins: impl Fn(&Message) -> bool,
) -> &'a mut Message {
    let is_open = messages.last().is_some_and(|last| last.role == Role::Assistant && joins(last));
    if !is_open {
        messages.push(Message { content: None, ..Message::new(Role::Assistant, "") });
    }
    let last = messages.len() - 1;
    let open = &mut messages[last];
    let texts = open.reasoning.take().into_iter().chain(thoughts.drain(..)).filter(|text| !text.is_empty());
    let reasoning = texts.collect::<Vec<_>>().join("\n");
    open.reasoning = (!reasoning.is_empty()).then_some(reasoning);
    open
}

/// An item of the input as clients list it: with its type, id and status, and content in parts. `base` and `n` make the
/// id where the client gave none.
pub(super) fn complete(value: Value, base: &str, n: usize) -> Arc<Item> {
    let Value::Object(mut item) = value else { return Arc::new(Item::new(String::new(), value)) };
    let kind = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
    item.entry("type").or_insert_with(|| kind.clone().into());
    if kind == "message"
        && let Some(Value::String(text)) = item.get("content")
    {
        let is_output = item.get("role").is_some_and(|role| role == "assistant");
        let part = if is_output {
            json!([{ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }])
        } else {
            json!([{ "type": "input_text", "text": text }])
        };
        item.insert("content".to_owned(), part);
    }
    if kind == "reasoning" && item.get("summary").is_none_or(Value::is_null) {
        item.insert("summary".to_owned(), json!([]));
    }
    let prefix = match kind.as_str() {
        "function_call" => "fc",
        "function_call_output" => "fco",
        "custom_tool_call" => "ctc",
        "custom_tool_call_output" => "ctco",
        "reasoning" => "rs",
        _ => "msg",
    };
    let given = item.get("id").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let id = given.unwrap_or_else(|| format!("{prefix}_{base}i{n:02}"));
    item.insert("id".to_owned(), id.clone().into());
    if item.get("status").is_none_or(Value::is_null) {
        item.insert("status".to_owned(), "completed".into());
    }
    Arc::new(Item::new(id, Value::Object(item)))
}

#[cfg(test)]
#[path = "items_tests.rs"]
mod tests;
