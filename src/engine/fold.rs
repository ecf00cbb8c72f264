//! A conversation in the shape that strict chat templates accept.

use crate::chat::{Message, Role};

/// System texts joined into the first place, neighbours of one role joined, and a user turn at the start: what templates
/// raise on when it is missing. Messages with tool calls or results stay as they are.
pub(super) fn fold(messages: &[Message]) -> Vec<Message> {
    let is_system = |message: &&Message| message.role == Role::System;
    let system: Vec<&str> =
        messages.iter().filter(is_system).filter_map(|message| message.content.as_deref()).collect();
    let mut folded: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    for message in messages.iter().filter(|message| message.role != Role::System) {
        match folded.last_mut() {
            Some(last) if can_join(last, message) => {
                let more = message.content.as_deref().unwrap_or_default();
                let content = last.content.get_or_insert_default();
                if !content.is_empty() && !more.is_empty() {
                    content.push_str("\n\n");
                }
                content.push_str(more);
            }
            _ => folded.push(message.clone()),
        }
    }
    if folded.first().is_none_or(|first| first.role != Role::User) {
        folded.insert(0, Message::new(Role::User, ""));
    }
    if !system.is_empty() {
        // Templates without a place for a system message get it from llama.cpp's own workaround.
        folded.insert(0, Message::new(Role::System, system.join("\n\n")));
    }
    folded
}

/// Ever plainer forms of a conversation, for templates that refuse it as it is.
pub(super) fn repairs(messages: &[Message]) -> Vec<Vec<Message>> {
    let folded = fold(messages);
    let mended = mend(&folded);
    // System texts in front, since what a tool answered becomes a user's turn.
    let plain = fold(&calls_as_text(messages));
    let mut forms: Vec<Vec<Message>> = Vec::new();
    for form in [mend(messages), folded, mended, plain] {
        if form != messages && !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// Calls as strict templates want them: ids of nine letters and digits (Mistral's), arguments that are objects, and every
/// result behind the call it belongs to.
fn mend(messages: &[Message]) -> Vec<Message> {
    let mut mended = messages.to_vec();
    let mut open: Vec<String> = Vec::new();
    for message in &mut mended {
        for (index, call) in message.tool_calls.iter_mut().enumerate() {
            call.id = strict_id(if call.id.is_empty() { format!("{index}") } else { call.id.clone() }.as_str());
            call.arguments = match serde_json::from_str::<serde_json::Value>(&call.arguments) {
                Ok(arguments) if arguments.is_object() => std::mem::take(&mut call.arguments),
                Ok(serde_json::Value::Null) => "{}".into(),
                Ok(arguments) => serde_json::json!({ "arguments": arguments }).to_string(),
                Err(_) if call.arguments.trim().is_empty() => "{}".into(),
                Err(_) => serde_json::json!({ "arguments": call.arguments }).to_string(),
            };
        }
        match message.role {
            Role::Assistant if !message.tool_calls.is_empty() => {
                open = message.tool_calls.iter().map(|call| call.id.clone()).collect();
            }
            Role::Tool => {
                let id = message.tool_call_id.as_deref().filter(|id| !id.is_empty()).map(strict_id);
                let at = id.as_ref().and_then(|id| open.iter().position(|known| known == id));
                // Results without an id come in the order of the calls.
                let found = at.or((!open.is_empty()).then_some(0)).map(|at| open.remove(at));
                message.tool_call_id = Some(found.or(id).unwrap_or_else(|| strict_id("")));
            }
            _ => {}
        }
    }
    mended
}

/// The same id for the same text. FNV-1a in base 36.
fn strict_id(id: &str) -> String {
    if id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let digit = |n: u32| char::from_digit((hash / 36u64.pow(n) % 36) as u32, 36).unwrap_or('0');
    (0..9).map(digit).collect()
}

/// Calls and their results as text, in the form that most models have seen (Hermes').
pub(super) fn calls_as_text(messages: &[Message]) -> Vec<Message> {
    let text = |message: &Message| {
        let mut message = message.clone();
        for call in std::mem::take(&mut message.tool_calls) {
            let content = message.content.get_or_insert_default();
            if !content.is_empty() {
                content.push('\n');
            }
            let name = serde_json::json!(call.name);
            let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
            content.push_str(&format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>"));
        }
        if message.role == Role::Tool {
            message.role = Role::User;
            message.tool_call_id = None;
            let result = message.content.take().unwrap_or_default();
            message.content = Some(format!("<tool_response>\n{result}\n</tool_response>"));
        }
        message
    };
    messages.iter().map(text).collect()
}

fn can_join(last: &Message, next: &Message) -> bool {
    last.role == next.role
        && matches!(last.role, Role::User | Role::Assistant)
        && last.tool_calls.is_empty()
        && next.tool_calls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolCall;

    #[test]
    fn calls_are_mended_for_strict_templates() {
        let mut asked = Message::new(Role::Assistant, "");
        let call =
            |id: &str, arguments: &str| ToolCall { id: id.into(), name: "f".into(), arguments: arguments.into() };
        asked.tool_calls = vec![call("call_1", ""), call("", "no json")];
        let mut told = Message::new(Role::Tool, "x");
        told.tool_call_id = Some("call_1".into());
        let mended = mend(&[asked, told, Message::new(Role::Tool, "y")]);
        let calls = &mended[0].tool_calls;
        assert!(
            calls.iter().all(|call| call.id.len() == 9 && call.id.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        );
        assert_eq!((calls[0].arguments.as_str(), calls[1].arguments.as_str()), ("{}", r#"{"arguments":"no json"}"#));
        assert_eq!(mended[1].tool_call_id.as_deref(), Some(calls[0].id.as_str()));
        assert_eq!(mended[2].tool_call_id.as_deref(), Some(calls[1].id.as_str()));
    }

    #[test]
    fn late_system_texts_and_neighbours_are_joined() {
        let messages = [
            Message::new(Role::Assistant, "hello"),
            Message::new(Role::User, "a"),
            Message::new(Role::System, "be brief"),
            Message::new(Role::User, "b"),
        ];
        let folded = fold(&messages);
        let shape: Vec<_> =
            folded.iter().map(|message| (message.role, message.content.as_deref().unwrap_or(""))).collect();
        let expected =
            [(Role::System, "be brief"), (Role::User, ""), (Role::Assistant, "hello"), (Role::User, "a\n\nb")];
        assert_eq!(shape, expected);
    }
}
