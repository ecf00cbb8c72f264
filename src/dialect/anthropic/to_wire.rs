//! Whole answers → JSON bytes.

use super::wire_id;
use crate::chat::{Finish, Usage};
use crate::dialect::{Answer, arguments};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an answer begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `msg_…`.
    pub id: String,
    /// The served id, whatever name was asked for.
    pub model: String,
    /// The request's own stop sequences; the template's are not for the client's eyes.
    pub stops: Vec<String>,
}

pub fn message_response(head: &Head, answer: &Answer, usage: &Usage) -> Vec<u8> {
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        let signature = signature(Sha256::new().chain_update(&answer.reasoning));
        content.push(json!({ "type": "thinking", "thinking": answer.reasoning, "signature": signature }));
    }
    if !answer.content.is_empty() {
        content.push(json!({ "type": "text", "text": answer.content }));
    }
    content.extend(answer.tool_calls.iter().map(|call| {
        let input = arguments::object(&call.arguments);
        json!({ "type": "tool_use", "id": wire_id(&call.id), "name": call.name, "input": input })
    }));
    let (reason, sequence) = stop_reason(&answer.finish, !answer.tool_calls.is_empty(), &head.stops);
    let mut message = message(head, content, usage);
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = sequence.into();
    message.to_string().into_bytes()
}

/// The object without a reason to stop.
pub(super) fn message(head: &Head, content: Vec<Value>, usage: &Usage) -> Value {
    json!({
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage_count(usage),
    })
}

/// `input_tokens` and `cache_read_input_tokens` together are the prompt.
pub(super) fn usage_count(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

/// (`stop_reason`, `stop_sequence`). A call that was cut by the limit is no call to make.
pub(super) fn stop_reason<'a>(
    finish: &'a Finish,
    has_calls: bool,
    stops: &[String],
) -> (&'static str, Option<&'a str>) {
    match finish {
        Finish::Length => ("max_tokens", None),
        Finish::Filtered => ("refusal", None),
        _ if has_calls => ("tool_use", None),
        Finish::StopString(text) if stops.contains(text) => ("stop_sequence", Some(text)),
        Finish::StopString(_) | Finish::EndOfTurn => ("end_turn", None),
    }
}

/// Opaque to clients, who send it back with the thinking; nothing here depends on it.
pub(super) fn signature(thinking: Sha256) -> String {
    thinking.finalize().iter().fold("hearth-".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

pub fn count_response(n_tokens: usize) -> Vec<u8> {
    json!({ "input_tokens": n_tokens }).to_string().into_bytes()
}

/// `kind` is Anthropic's name for the error.
pub fn error_body(kind: &str, message: &str, request_id: &str) -> Vec<u8> {
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": request_id })
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolCall;

    fn head() -> Head {
        Head { id: "msg_1".into(), model: "m".into(), stops: vec!["END".into()] }
    }

    #[test]
    fn a_message_has_the_documented_shape() {
        let answer = Answer {
            content: "hi".into(),
            reasoning: "hm".into(),
            tool_calls: vec![ToolCall { id: "call_a1".into(), name: "f".into(), arguments: "{\"x\":1}".into() }],
            finish: Finish::EndOfTurn,
            ..Default::default()
        };
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 3, ..Default::default() };
        let mut body: Value = serde_json::from_slice(&message_response(&head(), &answer, &usage)).unwrap();
        assert!(body["content"][0]["signature"].take().as_str().is_some_and(|text| text.len() > 10));
        assert_eq!(
            body,
            json!({"id":"msg_1","type":"message","role":"assistant","model":"m","content":[
                {"type":"thinking","thinking":"hm","signature":null},{"type":"text","text":"hi"},
                {"type":"tool_use","id":"toolu_a1","name":"f","input":{"x":1}}],
                "stop_reason":"tool_use","stop_sequence":null,
                "usage":{"input_tokens":6,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":3}})
        );
    }

    /// ANTH-01.
    #[test]
    fn stop_reasons() {
        let stops = ["END".to_owned()];
        let met = Finish::StopString("END".into());
        assert_eq!(stop_reason(&met, false, &stops), ("stop_sequence", Some("END")));
        assert_eq!(stop_reason(&Finish::StopString("<|im_end|>".into()), false, &stops), ("end_turn", None));
        assert_eq!(stop_reason(&Finish::EndOfTurn, false, &stops), ("end_turn", None));
        assert_eq!(stop_reason(&Finish::EndOfTurn, true, &stops), ("tool_use", None));
        assert_eq!(stop_reason(&Finish::Length, true, &stops), ("max_tokens", None));
    }

    #[test]
    fn an_empty_answer_has_no_blocks() {
        let body: Value =
            serde_json::from_slice(&message_response(&head(), &Answer::default(), &Usage::default())).unwrap();
        assert_eq!((&body["content"], &body["stop_reason"]), (&json!([]), &json!("max_tokens")));
    }
}
