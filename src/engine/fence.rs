//! Control-token texts that somebody wrote into a message, kept apart from the template's own on their way through it.

use super::backend::FENCES;
use crate::chat::{ChatPrompt, Message};

/// The chat with every control-token text in its messages between fences; `None` when there is none (the usual case).
pub(super) fn fence(chat: &ChatPrompt, control_texts: &[String]) -> Option<ChatPrompt> {
    let patterns = control_texts.iter().filter(|text| text.len() > 1);
    let has_one = |text: &str| control_texts.iter().any(|control| control.len() > 1 && text.contains(control.as_str()));
    let tool_texts = chat.tools.iter().flat_map(|tool| [tool.description.as_deref(), Some(tool.parameters.as_str())]);
    let texts = || chat.messages.iter().flat_map(message_texts).chain(tool_texts.clone());
    let fences_taken = texts().flatten().any(|text| text.contains(FENCES));
    if !fences_taken && !texts().flatten().any(has_one) {
        return None;
    }
    let finder = aho_corasick::AhoCorasick::builder()
        .match_kind(aho_corasick::MatchKind::LeftmostLongest)
        .build(patterns)
        .ok()?;
    let fence_text = |text: &Option<String>| {
        text.as_ref().map(|text| {
            // Noncharacters have no meaning in interchanged text; a fence in it must not open or close ours.
            let text = text.replace(FENCES, "\u{FFFD}");
            let mut fenced = String::with_capacity(text.len() + 16);
            finder.replace_all_with(&text, &mut fenced, |_, control, fenced| {
                fenced.push(FENCES[0]);
                fenced.push_str(control);
                fenced.push(FENCES[1]);
                true
            });
            fenced
        })
    };
    let mut chat = chat.clone();
    for message in &mut chat.messages {
        message.content = fence_text(&message.content);
        message.reasoning = fence_text(&message.reasoning);
        message.name = fence_text(&message.name);
        message.tool_call_id = fence_text(&message.tool_call_id);
        for text in message.tool_calls.iter_mut().flat_map(|call| [&mut call.id, &mut call.name, &mut call.arguments]) {
            *text = fence_text(&Some(std::mem::take(text))).unwrap_or_default();
        }
    }
    for tool in &mut chat.tools {
        tool.description = fence_text(&tool.description);
        tool.parameters = fence_text(&Some(std::mem::take(&mut tool.parameters))).unwrap_or_default();
    }
    Some(chat)
}

/// Everything in a message that somebody else than the template wrote.
pub(super) fn message_texts(message: &Message) -> impl Iterator<Item = Option<&str>> {
    let calls =
        message.tool_calls.iter().flat_map(|call| [Some(call.id.as_str()), Some(&call.name), Some(&call.arguments)]);
    let own = [&message.content, &message.reasoning, &message.name, &message.tool_call_id];
    own.into_iter().map(|text| text.as_deref()).chain(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Role, ToolCall};

    #[test]
    fn control_texts_are_fenced_and_ordinary_chats_left_alone() {
        let controls = ["<|end|>".to_owned(), "<s>".to_owned()];
        let plain = ChatPrompt::new(vec![Message::new(Role::User, "hello < there")]);
        assert!(fence(&plain, &controls).is_none());
        let hostile = ChatPrompt::new(vec![Message::new(Role::User, "a<|end|>b\u{FDD0}")]);
        let fenced = fence(&hostile, &controls).expect("something to fence");
        assert_eq!(fenced.messages[0].content.as_deref(), Some("a\u{FDD0}<|end|>\u{FDD1}b\u{FFFD}"));
        let mut call = Message::new(Role::Assistant, "");
        let arguments = r#"{"q":"<|end|>"}"#.to_owned();
        call.tool_calls = vec![ToolCall { id: "c".into(), name: "f".into(), arguments }];
        let fenced = fence(&ChatPrompt::new(vec![call]), &controls).expect("arguments are fenced too");
        assert!(fenced.messages[0].tool_calls[0].arguments.contains(FENCES));
    }
}
