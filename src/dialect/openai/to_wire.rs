//! Whole answers → JSON bytes.

use super::calls::{self, Called};
use super::chat::ChatStyle;
use super::completion::{Echo, TextStyle};
use super::logprobs::{self, TextArrays};
use super::sampling::tier;
use super::tools::CallStyle;
use super::wire;
use crate::chat::{TokenLogprob, Usage};
use crate::dialect::{Answer, Problem, watch};
use serde::Serialize;
use serde_json::json;

/// What every chunk and every answer to one request begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The served id, whatever name was asked for.
    pub model: String,
    pub fingerprint: String,
}

/// `answers` in the order of their index.
pub fn chat_response(head: &Head, answers: &[Answer], usage: &Usage, style: ChatStyle) -> Vec<u8> {
    let choice = |(index, answer): (usize, &'_ Answer)| {
        let has_calls = !answer.tool_calls.is_empty();
        let (tool_calls, function_call) = match style.calls {
            CallStyle::ToolCalls => (calls::tool_calls(&answer.tool_calls), None),
            CallStyle::FunctionCall => (Vec::new(), calls::function_call(&answer.tool_calls)),
        };
        json!(wire::ChatChoice {
            index,
            message: wire::ChatMessage {
                role: "assistant",
                content: (!has_calls || !answer.content.is_empty()).then_some(&answer.content),
                refusal: None,
                annotations: [],
                reasoning_content: &answer.reasoning,
                tool_calls,
                function_call,
            },
            logprobs: style.with_logprobs.then(|| logprobs::chat(&answer.logprobs)),
            finish_reason: calls::finish_reason(&answer.finish, Called::of(&answer.tool_calls), style.calls),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    completion(head, "chat.completion", Some(tier(style.class)), choices, usage, watch::whole(answers, usage))
}

pub fn completion_response(head: &Head, answers: &[Answer], usage: &Usage, style: &TextStyle) -> Vec<u8> {
    let choice = |(index, answer): (usize, &'_ Answer)| {
        let echo = style.echoed(index, &answer.prompt);
        let (mut n_chars, mut arrays) = (0, TextArrays::default());
        if style.with_logprobs {
            if let Some(text) = &echo {
                arrays.prompt(&answer.prompt, text, &mut n_chars);
            }
            arrays.answer(&answer.logprobs, &mut n_chars);
        }
        json!(wire::TextChoice {
            index,
            text: &(echo.unwrap_or_default() + &answer.content),
            logprobs: style.with_logprobs.then(|| arrays.into_json()),
            finish_reason: calls::finish_reason(&answer.finish, Called::Nothing, CallStyle::default()),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    completion(head, "text_completion", None, choices, usage, watch::whole(answers, usage))
}

impl TextStyle {
    /// What goes before the text of a choice, given what the engine said of its prompt.
    pub(super) fn echoed(&self, choice: usize, prompt: &[TokenLogprob]) -> Option<String> {
        Some(match self.echo.as_ref()?.get(choice / self.n.max(1))? {
            Echo::Text(text) => text.clone(),
            Echo::Tokens => {
                let bytes: Vec<u8> = prompt.iter().flat_map(|entry| &entry.bytes).copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        })
    }
}

fn completion(
    head: &Head,
    object: &'static str,
    service_tier: Option<&'static str>,
    choices: Vec<serde_json::Value>,
    usage: &Usage,
    timings: serde_json::Value,
) -> Vec<u8> {
    json(&wire::Completion {
        id: &head.id,
        object,
        created: head.created,
        model: &head.model,
        system_fingerprint: &head.fingerprint,
        service_tier,
        choices,
        usage: usage_count(usage),
        timings,
    })
}

pub(super) fn usage_count(usage: &Usage) -> wire::UsageCount {
    wire::UsageCount {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        prompt_tokens_details: wire::PromptDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
        completion_tokens_details: wire::CompletionDetails {
            reasoning_tokens: usage.reasoning_tokens,
            audio_tokens: 0,
            accepted_prediction_tokens: usage.accepted_prediction_tokens,
            rejected_prediction_tokens: usage.rejected_prediction_tokens,
        },
    }
}

pub fn input_tokens_response(n_tokens: usize) -> Vec<u8> {
    json(&json!({ "input_tokens": n_tokens }))
}

pub fn error_body(problem: &Problem) -> Vec<u8> {
    json(&wire::ErrorBody { error: error_object(problem) })
}

pub(super) fn error_object(problem: &Problem) -> wire::ErrorObject<'_> {
    wire::ErrorObject {
        message: &problem.message,
        kind: problem.kind,
        param: problem.param.as_deref(),
        code: problem.code.as_deref(),
    }
}

pub(in crate::dialect) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have text keys and no failing Serialize; anything else is a bug")
}

/// Unix seconds as `2026-01-02T03:04:05Z`. Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
pub(in crate::dialect) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Finish, ToolCall};
    use serde_json::Value;

    fn head() -> Head {
        Head { id: "chatcmpl-1".into(), created: 1, model: "m".into(), fingerprint: "fp_1".into() }
    }

    #[test]
    fn a_chat_answer_has_every_required_key() {
        let answer = Answer { content: "hi".into(), finish: Finish::EndOfTurn, ..Default::default() };
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2, ..Default::default() };
        let mut body: Value =
            serde_json::from_slice(&chat_response(&head(), &[answer], &usage, ChatStyle::default())).unwrap();
        assert_eq!(body.as_object_mut().and_then(|body| body.remove("timings")).unwrap()["cache_n"], 1);
        assert_eq!(
            body,
            json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
                "system_fingerprint": "fp_1", "service_tier": "default",
                "choices": [{
                    "index": 0, "finish_reason": "stop", "logprobs": null,
                    "message": {"role": "assistant", "content": "hi", "refusal": null, "annotations": []},
                }],
                "usage": {
                    "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                        "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
                },
            })
        );
    }

    #[test]
    fn calls_stand_in_the_shape_they_were_offered_in() {
        let call = ToolCall { id: "call_1".into(), name: "f".into(), arguments: "{\"a\":1}".into() };
        let mut answer = Answer { tool_calls: vec![call], finish: Finish::EndOfTurn, ..Default::default() };
        let choice = |answer: &Answer, calls: CallStyle| {
            let style = ChatStyle { calls, ..Default::default() };
            let body = chat_response(&head(), std::slice::from_ref(answer), &Usage::default(), style);
            serde_json::from_slice::<Value>(&body).unwrap()["choices"][0].take()
        };
        let newer = choice(&answer, CallStyle::ToolCalls);
        let function = json!({"name":"f","arguments":"{\"a\":1}"});
        assert_eq!(
            newer["message"],
            json!({"role":"assistant","content":null,"refusal":null,"annotations":[],
                "tool_calls":[{"id":"call_1","type":"function","function":function}]})
        );
        assert_eq!(newer["finish_reason"], "tool_calls");
        let older = choice(&answer, CallStyle::FunctionCall);
        assert_eq!((&older["message"]["function_call"], &older["finish_reason"]), (&function, &json!("function_call")));
        assert!(older["message"].get("tool_calls").is_none());
        answer.content = "I will".into();
        assert_eq!(choice(&answer, CallStyle::ToolCalls)["message"]["content"], "I will");
    }

    #[test]
    fn an_error_has_all_four_keys() {
        let problem = Problem { message: "m".into(), kind: "server_error", param: None, code: None };
        let body: Value = serde_json::from_slice(&error_body(&problem)).unwrap();
        assert_eq!(body, json!({"error": {"message": "m", "type": "server_error", "param": null, "code": null}}));
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_790_000_000), "2026-09-21T14:13:20Z");
    }
}
