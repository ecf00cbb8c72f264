//! `POST /api/chat`: body → [`ChatRequest`].

use super::keep_alive::{KeepAlive, keep_alive};
use super::options::{images, settings, think};
use crate::chat::{CacheAsk, ChatPrompt, ChatRequest, Class, Message, Role, Tool, ToolCall};
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::media::MediaPlaces;
use crate::dialect::tools::{self, TOOLS_MAX};
use crate::dialect::{Fault, Ignored, Read};
use serde_json::Value;

/// Turns of one conversation. Each takes a few tokens at least, so no context holds more.
const MESSAGES_MAX: usize = 65_536;
const ROLES: &str = "system, user, assistant, tool";

/// A chat as read. Without messages it only asks for the model to be loaded (or unloaded).
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    pub request: ChatRequest,
    pub media: MediaPlaces,
    pub keep_alive: Option<KeepAlive>,
}

pub fn chat_request(body: &[u8]) -> Result<Read<Chat>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let mut media = MediaPlaces::default();
    let mut prompt = ChatPrompt::new(messages(&mut body, &mut media, &mut ignored)?);
    prompt.tools = tools(&mut body, &mut ignored)?;
    think(&mut body, &mut prompt)?;
    let (sampling, output) = settings(&mut body, &mut ignored)?;
    let request = ChatRequest {
        model: super::model(&mut body)?,
        prompt,
        sampling,
        output,
        n: 1,
        stream: body.bool("stream")?.unwrap_or(true),
        include_usage: true,
        cache_prompt: true,
        lora: None,
        end_user: None,
        cache: CacheAsk::default(),
        class: Class::default(),
    };
    let keep_alive = keep_alive(&mut body)?;
    overflow(&mut body)?;
    body.finish(&mut ignored);
    Ok(Read { request: Chat { request, media, keep_alive }, ignored })
}

/// Prompts are never cut and contexts never shifted: what does not fit is refused, whatever these say.
pub(super) fn overflow(body: &mut Object) -> Result<(), Fault> {
    body.bool("truncate")?;
    body.bool("shift")?;
    Ok(())
}

fn messages(body: &mut Object, places: &mut MediaPlaces, ignored: &mut Ignored) -> Result<Vec<Message>, Fault> {
    let values = body.array("messages")?.unwrap_or_default();
    if values.len() > MESSAGES_MAX {
        return Err(too_many("messages", values.len(), MESSAGES_MAX));
    }
    values.into_iter().enumerate().map(|(i, value)| message(format!("messages[{i}]"), value, places, ignored)).collect()
}

fn message(path: String, value: Value, places: &mut MediaPlaces, ignored: &mut Ignored) -> Result<Message, Fault> {
    let mut fields = Object::at(path, value)?;
    let role = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = match role.to_ascii_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => return Err(invalid_value(fields.path("role"), &role, ROLES)),
    };
    let tool_calls = tool_calls(&mut fields, ignored)?;
    let content = fields.string("content")?;
    let message = Message {
        role,
        content: if tool_calls.is_empty() { Some(content.unwrap_or_default()) } else { content },
        media: images(&mut fields, places)?,
        reasoning: fields.string("thinking")?.filter(|text| !text.is_empty()),
        name: fields.string("tool_name")?,
        tool_calls,
        tool_call_id: fields.string("tool_call_id")?,
    };
    fields.finish(ignored);
    Ok(message)
}

/// Arguments are an object; clients that send its text mean the same.
fn tool_calls(fields: &mut Object, ignored: &mut Ignored) -> Result<Vec<ToolCall>, Fault> {
    let path = fields.path("tool_calls");
    let mut calls = Vec::new();
    for (i, value) in fields.array("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        let mut call = Object::at(format!("{path}[{i}]"), value)?;
        let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
        let arguments = match function.take("arguments") {
            None => "{}".to_owned(),
            Some(arguments @ Value::Object(_)) => arguments.to_string(),
            Some(Value::String(text)) if text.is_empty() => "{}".to_owned(),
            Some(Value::String(text)) => text,
            Some(other) => return Err(invalid_type(function.path("arguments"), "an object", &other)),
        };
        function.accept(&["index"]);
        function.finish(ignored);
        calls.push(ToolCall { id: call.string("id")?.unwrap_or_default(), name, arguments });
        call.accept(&["type"]);
        call.finish(ignored);
    }
    Ok(calls)
}

fn tools(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<Tool>, Fault> {
    let values = body.array("tools")?.unwrap_or_default();
    if values.len() > TOOLS_MAX {
        return Err(too_many("tools", values.len(), TOOLS_MAX));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut entry = Object::at(format!("tools[{i}]"), value)?;
        if let Some(other) = entry.string("type")?.filter(|kind| kind != "function") {
            return Err(invalid_value(entry.path("type"), &other, "function"));
        }
        let function = entry.object("function")?.ok_or_else(|| entry.missing("function"))?;
        entry.finish(ignored);
        let path = function.path("name");
        let tool = tools::function(function, &[], ignored)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let message = format!("{path} is {:?}, and another tool has that name already.", tool.name);
            return Err(Fault::new(path, "invalid_value", message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{MediaKind, ToolChoice};
    use serde_json::json;
    use std::time::Duration;

    fn read(body: Value) -> Result<Read<Chat>, Fault> {
        chat_request(body.to_string().as_bytes())
    }

    fn fault(body: Value) -> (String, &'static str) {
        let shown = body.to_string();
        let fault = read(body).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn defaults_are_ollamas() {
        let chat = read(json!({"name":"m","messages":[{"role":"USER","content":"x"}],"tools":[],"stream":null}));
        let Read { request: Chat { request, keep_alive, .. }, ignored } = chat.unwrap();
        assert!(request.stream && keep_alive.is_none() && ignored.header().is_none());
        assert_eq!((request.model.as_deref(), request.prompt.tool_choice), (Some("m"), ToolChoice::Auto));
        let chat = read(json!({"keep_alive":"5m","stream":false})).unwrap().request;
        assert!(chat.request.prompt.messages.is_empty() && !chat.request.stream);
        assert_eq!(chat.keep_alive, Some(KeepAlive::For(Duration::from_secs(300))));
    }

    #[test]
    fn history_with_tools_thinking_and_images_is_kept() {
        let read = read(json!({"messages":[
            {"role":"user","content":"see","images":["AQID","data:image/png;base64,AQI="]},
            {"role":"assistant","content":"","thinking":"hm","tool_calls":[
                {"id":"c1","type":"function","function":{"index":0,"name":"f","arguments":{"b":1,"a":2}}},
                {"function":{"name":"g","arguments":"{}"}}]},
            {"role":"tool","tool_name":"f","tool_call_id":"c1","content":"r"},
        ]}))
        .unwrap();
        assert_eq!(read.ignored.header(), None);
        let messages = read.request.request.prompt.messages;
        let media: Vec<_> = messages[0].media.iter().map(|it| (it.kind, it.offset, it.data.len())).collect();
        assert_eq!(media, [(MediaKind::Image, 0, 3), (MediaKind::Image, 0, 2)]);
        assert_eq!(messages[1].tool_calls[0].arguments, "{\"b\":1,\"a\":2}");
        assert_eq!((messages[1].reasoning.as_deref(), messages[1].tool_calls.len()), (Some("hm"), 2));
        assert_eq!((messages[2].name.as_deref(), messages[2].tool_call_id.as_deref()), (Some("f"), Some("c1")));
        // OLLA-08
        let refused = read.request.media.refuse(&[]).unwrap_err();
        assert_eq!(
            (refused.param.as_deref(), refused.code),
            (Some("messages[0].images[0]"), Some("unsupported_content"))
        );
    }

    #[test]
    fn faults_name_the_exact_place() {
        let tool = |name: &str| json!({"type":"function","function":{"name":name,"parameters":{"type":"object"}}});
        for (body, param, code) in [
            (json!({"messages":"x"}), "messages", "invalid_type"),
            (json!({"messages":[{"content":"x"}]}), "messages[0].role", "missing_required_parameter"),
            (json!({"messages":[{"role":"robot"}]}), "messages[0].role", "invalid_value"),
            (json!({"messages":[{"role":"user","content":[]}]}), "messages[0].content", "invalid_type"),
            (json!({"messages":[{"role":"user","images":["*"]}]}), "messages[0].images[0]", "invalid_value"),
            (json!({"messages":[{"role":"user","images":[1]}]}), "messages[0].images[0]", "invalid_type"),
            (
                json!({"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[]}}]}]}),
                "messages[0].tool_calls[0].function.arguments",
                "invalid_type",
            ),
            (json!({"tools":[{"type":"web"}]}), "tools[0].type", "invalid_value"),
            (json!({"tools":[{"type":"function"}]}), "tools[0].function", "missing_required_parameter"),
            (json!({"tools":[tool("")]}), "tools[0].function.name", "empty_string"),
            (json!({"tools":[tool("f"),tool("f")]}), "tools[1].function.name", "invalid_value"),
            (json!({"stream":"no"}), "stream", "invalid_type"),
            (json!({"keep_alive":"soon"}), "keep_alive", "invalid_value"),
        ] {
            assert_eq!(fault(body), (param.to_owned(), code));
        }
    }
}
