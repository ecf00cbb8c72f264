//! Whole answers → JSON bytes.

use super::{logprobs, wire};
use crate::chat::{Finish, Usage};
use crate::dialect::{Answer, Problem};
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

/// `answers` in the order of their index; `with_logprobs` as the request asked.
pub fn chat_response(head: &Head, answers: &[Answer], usage: &Usage, with_logprobs: bool) -> Vec<u8> {
    let choice = |(index, answer): (usize, &'_ Answer)| {
        json!(wire::ChatChoice {
            index,
            message: wire::ChatMessage {
                role: "assistant",
                content: &answer.content,
                refusal: None,
                annotations: [],
                reasoning_content: &answer.reasoning,
            },
            logprobs: with_logprobs.then(|| logprobs::chat(&answer.logprobs)),
            finish_reason: finish_reason(&answer.finish),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    completion(head, "chat.completion", Some("default"), choices, usage)
}

pub fn completion_response(head: &Head, answers: &[Answer], usage: &Usage, with_logprobs: bool) -> Vec<u8> {
    let choice = |(index, answer): (usize, &'_ Answer)| {
        json!(wire::TextChoice {
            index,
            text: &answer.content,
            logprobs: with_logprobs.then(|| logprobs::text(&answer.logprobs, &mut 0)),
            finish_reason: finish_reason(&answer.finish),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    completion(head, "text_completion", None, choices, usage)
}

fn completion(
    head: &Head,
    object: &'static str,
    service_tier: Option<&'static str>,
    choices: Vec<serde_json::Value>,
    usage: &Usage,
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

pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndOfTurn | Finish::StopString(_) => "stop",
        Finish::Length => "length",
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

pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
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
    use serde_json::Value;

    fn head() -> Head {
        Head { id: "chatcmpl-1".into(), created: 1, model: "m".into(), fingerprint: "fp_1".into() }
    }

    #[test]
    fn a_chat_answer_has_every_required_key() {
        let answer = Answer { content: "hi".into(), finish: Finish::EndOfTurn, ..Default::default() };
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2, ..Default::default() };
        let body: Value = serde_json::from_slice(&chat_response(&head(), &[answer], &usage, false)).unwrap();
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
