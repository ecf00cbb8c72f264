//! `messages`: roles, and the tool calls of earlier turns.

use super::parts::{Content, Found, content, unsupported};
use crate::chat::{Message, Role, ToolCall};
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored};
use serde_json::{Value, json};

/// Turns of one conversation. Each takes a few tokens at least, so no context holds more.
const MESSAGES_MAX: usize = 65_536;
const ROLES: &str = "system, developer, user, assistant, tool, function";
/// What our own answers and OpenAI's carry beside the text; none of it reaches the template.
const ECHOED: [&str; 6] = ["annotations", "parsed", "cache_control", "prompt_cache_breakpoint", "id", "status"];

pub(super) fn messages(body: &mut Object, found: &mut Found) -> Result<Vec<Message>, Fault> {
    let values = body.array("messages")?.ok_or_else(|| body.missing("messages"))?;
    if values.is_empty() {
        return Err(empty_array("messages"));
    }
    if values.len() > MESSAGES_MAX {
        return Err(too_many("messages", values.len(), MESSAGES_MAX));
    }
    values.into_iter().enumerate().map(|(i, value)| message(format!("messages[{i}]"), value, found)).collect()
}

fn message(path: String, value: Value, found: &mut Found) -> Result<Message, Fault> {
    let mut fields = Object::at(path, value)?;
    let role_name = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = match role_name.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        other => return Err(invalid_value(fields.path("role"), other, ROLES)),
    };
    let Content { text, media } = content(&mut fields, role, found)?;
    let content = match (role, text) {
        (Role::Assistant, None) => fields.string("refusal")?,
        (_, None) if role_name != "function" => return Err(fields.missing("content")),
        (_, text) => text,
    };
    if fields.take("audio").is_some() {
        return Err(unsupported(fields.path("audio"), "no sound of earlier answers is stored here"));
    }
    let message = Message {
        role,
        content,
        media,
        reasoning: reasoning(&mut fields)?,
        name: fields.string("name")?,
        tool_calls: tool_calls(&mut fields, found.ignored)?,
        tool_call_id: fields.string("tool_call_id")?,
    };
    fields.accept(&ECHOED);
    fields.finish(found.ignored);
    Ok(message)
}

fn reasoning(fields: &mut Object) -> Result<Option<String>, Fault> {
    let long = fields.string("reasoning_content")?;
    let short = fields.string("reasoning")?;
    Ok(long.or(short).filter(|text| !text.is_empty()))
}

/// `tool_calls`, or the older `function_call`, of an assistant's turn.
fn tool_calls(fields: &mut Object, ignored: &mut Ignored) -> Result<Vec<ToolCall>, Fault> {
    let mut calls = Vec::new();
    let path = fields.path("tool_calls");
    for (i, value) in fields.array("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        let mut call = Object::at(format!("{path}[{i}]"), value)?;
        let id = call.string("id")?.unwrap_or_default();
        calls.push(match call.string("type")?.as_deref() {
            None | Some("function") => {
                let function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
                tool_call(id, function, ignored)?
            }
            Some("custom") => {
                let custom = call.object("custom")?.ok_or_else(|| call.missing("custom"))?;
                custom_call(id, custom, ignored)?
            }
            Some(other) => return Err(invalid_value(call.path("type"), other, "function, custom")),
        });
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
    // Text is what the model wrote, whether or not it can be read; Ollama's clients send the object itself.
    let arguments = match function.take("arguments") {
        None => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        Some(Value::String(text)) => text,
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(other) => return Err(invalid_type(function.path("arguments"), "a string", &other)),
    };
    function.accept(&["parsed_arguments"]);
    function.finish(ignored);
    Ok(ToolCall { id, name, arguments })
}

/// A call of a custom tool: a function of one text.
fn custom_call(id: String, mut custom: Object, ignored: &mut Ignored) -> Result<ToolCall, Fault> {
    let name = custom.string("name")?.ok_or_else(|| custom.missing("name"))?;
    let input = custom.string("input")?.unwrap_or_default();
    custom.finish(ignored);
    Ok(ToolCall { id, name, arguments: json!({ "input": input }).to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(messages: Value) -> Result<(Vec<Message>, Ignored), Fault> {
        let mut ignored = Ignored::default();
        let body = json!({ "messages": messages }).to_string();
        let mut body = Object::parse(body.as_bytes())?;
        let mut found = Found { ignored: &mut ignored, media: Vec::new() };
        let messages = super::messages(&mut body, &mut found)?;
        Ok((messages, ignored))
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

    /// TOOL-12.
    #[test]
    fn tool_history_is_kept() {
        let (messages, _) = read(json!([
            {"role":"assistant","content":null,"tool_calls":[
                {"id":"call_1","type":"function","function":{"name":"f","arguments":""}},
                {"id":"call_2","type":"function","function":{"name":"g","arguments":"not json"}},
                {"function":{"name":"h","arguments":{"b":1,"a":2}}},
                {"id":"c","type":"custom","custom":{"name":"i","input":"x"}}]},
            {"role":"tool","tool_call_id":"call_1","content":[{"type":"text","text":"r"}]},
        ]))
        .unwrap();
        assert_eq!(messages[0].content, None);
        assert_eq!(messages[0].tool_calls[0].arguments, "{}");
        assert_eq!(messages[0].tool_calls[1].arguments, "not json");
        assert_eq!(messages[0].tool_calls[2].arguments, "{\"b\":1,\"a\":2}");
        assert_eq!(messages[0].tool_calls[3].arguments, "{\"input\":\"x\"}");
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
            fault(json!([{"role":"user","content":[{"type":"text","text":""},{"type":"video_url"}]}])),
            ("messages[0].content[1].type".into(), "unsupported_content")
        );
        assert_eq!(fault(json!(["x"])), ("messages[0]".into(), "invalid_type"));
    }
}
