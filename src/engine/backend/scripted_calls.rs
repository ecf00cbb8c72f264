//! The scripted model's way of writing tool calls.

use super::{AnswerParser, Parsed, ParsedCall};

/// Each line that begins with `/call` as a call, the others as they are.
pub(super) fn calls(message: &str) -> String {
    let line = |line: &str| match line.strip_prefix("/call ") {
        None => line.to_owned(),
        Some(call) => {
            let (name, arguments) = call.split_once(' ').unwrap_or((call, "{}"));
            format!("<tool_call>{{\"name\":\"{name}\",\"arguments\":{arguments}}}</tool_call>")
        }
    };
    message.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Bytes at the end of `text` that `tag` begins with.
fn beginning_of(tag: &str, text: &str) -> usize {
    (1..tag.len()).rev().find(|n| text.ends_with(&tag[..*n])).unwrap_or(0)
}

/// Reads `<think>`, text and `<tool_call>`.
pub(super) struct CallParser {
    pub splits_thinking: bool,
}

impl AnswerParser for CallParser {
    fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
        let mut parsed = Parsed::default();
        let mut rest = text;
        if self.splits_thinking
            && let Some(thought) = rest.strip_prefix("<think>")
        {
            let (reasoning, after) = thought.split_once("</think>").unwrap_or((thought, ""));
            parsed.reasoning = reasoning.to_owned();
            rest = after;
        }
        while let Some((before, call)) = rest.split_once("<tool_call>") {
            parsed.content.push_str(before);
            let (body, after) = match call.split_once("</tool_call>") {
                Some((body, after)) => (body.strip_suffix('}')?, after),
                None => (&call[..call.len() - beginning_of("}</tool_call>", call)], ""),
            };
            let (name, arguments) = body.strip_prefix("{\"name\":\"")?.split_once("\",\"arguments\":")?;
            let call = ParsedCall { id: String::new(), name: name.to_owned(), arguments: arguments.to_owned() };
            parsed.calls.push(call);
            rest = after;
        }
        // What may become a tag is not told yet.
        let held = if is_partial { beginning_of("<tool_call>", rest) } else { 0 };
        parsed.content.push_str(&rest[..rest.len() - held]);
        Some(parsed)
    }
}
