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

fn can_join(last: &Message, next: &Message) -> bool {
    last.role == next.role
        && matches!(last.role, Role::User | Role::Assistant)
        && last.tool_calls.is_empty()
        && next.tool_calls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

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
