//! `messages`: roles, text parts, and the tool calls of earlier turns.

use crate::chat::{Message, Role, ToolCall};
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// Turns of one conversation. Each takes a few tokens at least, so no context holds more.
const MESSAGES_MAX: usize = 65_536;
const ROLES: &str = "system, developer, user, assistant, tool, function";
/// What our own answers and OpenAI's carry beside the text; none of it reaches the template.
const ECHOED: [&str; 6] = ["annotations", "parsed", "cache_control", "prompt_cache_breakpoint", "id", "status"];

pub(super) fn messages(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<Message>, Fault> {
    let values = body.array("messages")?.ok_or_else(|| body.missing("messages"))?;
    if values.is_empty() {
        return Err(empty_array("messages"));
    }
    if values.len() > MESSAGES_MAX {
        return Err(too_many("messages", values.len(), MESSAGES_MAX));
    }
    values.into_iter().enumerate().map(|(i, value)| message(format!("messages[{i}]"), value, ignored)).collect()
}

fn message(path: String, value: Value, ignored: &mut Ignored) -> Result<Message, Fault> {
    let mut fields = Object::at(path, value)?;
    let role_name = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = match role_name.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        other => return Err(invalid_value(fields.path("role"), other, ROLES)),
    };
    let mut content = content(&mut fields, role, ignored)?;
    if role == Role::Assistant {
        let refusal = fields.string("refusal")?;
        content = content.or(refusal);
    } else if content.is_none() && role_name != "function" {
        return Err(fields.missing("content"));
    }
    if fields.take("audio").is_some() {
        return Err(unsupported_part(fields.path("audio"), "audio"));
    }
    let message = Message {
        role,
        content,
        media: Vec::new(),
        reasoning: reasoning(&mut fields)?,
        name: fields.string("name")?,
        tool_calls: tool_calls(&mut fields, ignored)?,
        tool_call_id: fields.string("tool_call_id")?,
    };
    fields.accept(&ECHOED);
    fields.finish(ignored);
    Ok(message)
}

fn reasoning(fields: &mut Object) -> Result<Option<String>, Fault> {
    let long = fields.string("reasoning_content")?;
    let short = fields.string("reasoning")?;
    Ok(long.or(short).filter(|text| !text.is_empty()))
}

/// The text, with parts joined as if the client had sent one string.
pub(in crate::dialect) fn content(
    fields: &mut Object,
    role: Role,
    ignored: &mut Ignored,
) -> Result<Option<String>, Fault> {
    let path = fields.path("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(invalid_type(path, "a string or an array of parts", &other)),
    };
    let mut text = String::new();
    for (i, value) in parts.into_iter().enumerate() {
        let mut part = Object::at(format!("{path}[{i}]"), value)?;
        let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
        let key = match kind.as_str() {
            "text" => "text",
            "refusal" if role == Role::Assistant => "refusal",
            "image_url" | "input_image" | "image" | "input_audio" | "audio" | "audio_url" | "video_url" | "file"
            | "input_file" => return Err(unsupported_part(part.path("type"), &kind)),
            other => return Err(invalid_value(part.path("type"), other, "text")),
        };
        text.push_str(&part.string(key)?.ok_or_else(|| part.missing(key))?);
        part.accept(&["cache_control", "prompt_cache_breakpoint", "annotations"]);
        part.finish(ignored);
    }
    Ok(Some(text))
}

fn unsupported_part(path: String, kind: &str) -> Fault {
    let message = format!("{path}: this server takes text only, but a part of the message is {kind}.");
    Fault::new(path, "unsupported_content", message)
}

/// `tool_calls`, or the older `function_call`, of an assistant's turn.
fn tool_calls(fields: &mut Object, ignored: &mut Ignored) -> Result<Vec<ToolCall>, Fault> {
    let mut calls = Vec::new();
    let path = fields.path("tool_calls");
    for (i, value) in fields.array("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        let mut call = Object::at(format!("{path}[{i}]"), value)?;
        let kind = call.string("type")?;
        if let Some(other) = kind.as_deref().filter(|kind| *kind != "function") {
            return Err(invalid_value(call.path("type"), other, "function"));
        }
        let id = call.string("id")?.unwrap_or_default();
        let function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        calls.push(tool_call(id, function, ignored)?);
        call.accept(&["index"]);
        call.finish(ignored);
    }
    if let Some(function) = fields.object("function_call")? {
        calls.push(tool_call(String::new(), function, ignored)?);
    }
    Ok(calls)
}

fn tool_call(id: String, mut function: Object, ignored: &mut Ignored) -> Result<ToolCall, Fault> {
    let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
    let arguments = function.string("arguments")?.filter(|text| !text.is_empty()).unwrap_or_else(|| "{}".to_owned());
    function.accept(&["parsed_arguments"]);
    function.finish(ignored);
    Ok(ToolCall { id, name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(messages: Value) -> Result<(Vec<Message>, Ignored), Fault> {
        let mut ignored = Ignored::default();
        let body = json!({ "messages": messages }).to_string();
        let mut body = Object::parse(body.as_bytes())?;
        Ok((super::messages(&mut body, &mut ignored)?, ignored))
    }

    fn fault(messages: Value) -> (String, &'static str) {
        let fault = read(messages).expect_err("should be refused");
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn parts_are_the_joined_string() {
        let parts = json!([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]);
        let whole = json!([{"role":"user","content":"ab"}]);
        assert_eq!(read(parts).unwrap().0, read(whole).unwrap().0);
    }

    #[test]
    fn roles_fold_into_those_templates_know() {
        let (messages, _) = read(json!([
            {"role":"developer","content":"d"},
            {"role":"function","name":"f","content":"r"},
        ]))
        .unwrap();
        assert_eq!((messages[0].role, messages[1].role), (Role::System, Role::Tool));
    }

    #[test]
    fn our_own_answer_can_be_sent_back() {
        let (messages, ignored) = read(json!([{
            "role":"assistant","content":"hi","refusal":null,"annotations":[],"audio":null,"function_call":null,
            "parsed":null,"reasoning_content":"hm",
        }]))
        .unwrap();
        assert_eq!((messages[0].content.as_deref(), messages[0].reasoning.as_deref()), (Some("hi"), Some("hm")));
        assert_eq!(ignored.header(), None);
    }

    #[test]
    fn tool_history_is_kept() {
        let (messages, _) = read(json!([
            {"role":"assistant","content":null,"tool_calls":[
                {"id":"call_1","type":"function","function":{"name":"f","arguments":""}},
                {"id":"call_2","type":"function","function":{"name":"g","arguments":"not json"}}]},
            {"role":"tool","tool_call_id":"call_1","content":[{"type":"text","text":"r"}]},
        ]))
        .unwrap();
        assert_eq!(messages[0].content, None);
        assert_eq!(messages[0].tool_calls[0].arguments, "{}");
        assert_eq!(messages[0].tool_calls[1].arguments, "not json");
        assert_eq!(messages[1].tool_call_id.as_deref(), Some("call_1"));
    }

    #[test]
    fn faults_name_the_exact_place() {
        assert_eq!(fault(json!([])), ("messages".into(), "empty_array"));
        assert_eq!(fault(json!("x")), ("messages".into(), "invalid_type"));
        assert_eq!(fault(json!([{"content":"x"}])), ("messages[0].role".into(), "missing_required_parameter"));
        assert_eq!(fault(json!([{"role":"robot","content":"x"}])), ("messages[0].role".into(), "invalid_value"));
        assert_eq!(fault(json!([{"role":"user"}])), ("messages[0].content".into(), "missing_required_parameter"));
        assert_eq!(
            fault(json!([{"role":"user","content":"x"},{"role":"user","content":[{"type":"text","text":1}]}])),
            ("messages[1].content[0].text".into(), "invalid_type")
        );
        assert_eq!(
            fault(json!([{"role":"user","content":[{"type":"text","text":""},{"type":"image_url","image_url":{}}]}])),
            ("messages[0].content[1].type".into(), "unsupported_content")
        );
        assert_eq!(fault(json!(["x"])), ("messages[0]".into(), "invalid_type"));
    }
}
