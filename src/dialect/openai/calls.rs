//! Tool calls as OpenAI's clients read them, and the finish reason that goes with them.

use super::tools::CallStyle;
use crate::chat::{Finish, ToolCall};
use serde_json::{Value, json};

/// Follows the text of a JSON object as it comes, to say whether its last brace has closed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Braces {
    n_open: usize,
    has_begun: bool,
    in_string: bool,
    is_escaped: bool,
}

impl Braces {
    pub(super) fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => {
                    self.n_open += 1;
                    self.has_begun = true;
                }
                b'}' | b']' if !self.in_string => self.n_open = self.n_open.saturating_sub(1),
                _ => {}
            }
        }
    }

    pub(super) fn are_closed(&self) -> bool {
        self.has_begun && self.n_open == 0
    }
}

/// What an answer has of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Called {
    Nothing,
    /// The last call's arguments are cut.
    Partly,
    Wholly,
}

impl Called {
    pub(super) fn of(calls: &[ToolCall]) -> Self {
        let Some(last) = calls.last() else { return Called::Nothing };
        let mut braces = Braces::default();
        braces.push(&last.arguments);
        if braces.are_closed() { Called::Wholly } else { Called::Partly }
    }
}

/// A call that a stop string cut is none that can be run, so the answer doesn't claim one.
pub(super) fn finish_reason(finish: &Finish, called: Called, style: CallStyle) -> &'static str {
    match (finish, called) {
        (Finish::Length, _) => "length",
        (Finish::Filtered, _) => "content_filter",
        (_, Called::Nothing) | (Finish::StopString(_), Called::Partly) => "stop",
        _ if style == CallStyle::FunctionCall => "function_call",
        _ => "tool_calls",
    }
}

pub(super) fn tool_calls(calls: &[ToolCall]) -> Vec<Value> {
    let call = |call: &ToolCall| {
        let function = json!({ "name": call.name, "arguments": call.arguments });
        json!({ "id": call.id, "type": "function", "function": function })
    };
    calls.iter().map(call).collect()
}

/// The older shape, which has room for the first call only; its requests allow no second one.
pub(super) fn function_call(calls: &[ToolCall]) -> Option<Value> {
    calls.first().map(|call| json!({ "name": call.name, "arguments": call.arguments }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_texts_do_not_count() {
        let closed = |text: &str| {
            let mut braces = Braces::default();
            // However it is cut.
            for c in text.chars() {
                braces.push(c.encode_utf8(&mut [0; 4]));
            }
            braces.are_closed()
        };
        assert!(closed("{}") && closed(r#" {"a":{"b":["}",1]},"c":"\"}"} "#));
        assert!(!closed("") && !closed("{") && !closed(r#"{"a":"}"#) && !closed(r#"{"a":"\"}"#));
    }

    #[test]
    fn only_whole_calls_are_claimed() {
        let call = |arguments: &str| vec![ToolCall { id: "c".into(), name: "f".into(), arguments: arguments.into() }];
        let reason =
            |finish: Finish, calls: &[ToolCall]| finish_reason(&finish, Called::of(calls), CallStyle::ToolCalls);
        assert_eq!(reason(Finish::EndOfTurn, &call("{}")), "tool_calls");
        assert_eq!(reason(Finish::StopString("x".into()), &call("{}")), "tool_calls");
        assert_eq!(reason(Finish::StopString("x".into()), &call("{\"a\":")), "stop");
        assert_eq!(reason(Finish::Length, &call("{}")), "length");
        assert_eq!(reason(Finish::EndOfTurn, &[]), "stop");
        let older = finish_reason(&Finish::EndOfTurn, Called::Wholly, CallStyle::FunctionCall);
        assert_eq!(older, "function_call");
    }
}
