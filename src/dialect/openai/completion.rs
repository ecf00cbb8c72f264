//! `POST /v1/completions`: body → [`CompletionRequest`].

use super::lora::lora;
use super::sampling::{Limit, accept_or_refuse, asks, choices, sampling, stop, stream, token_limit};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{CompletionRequest, Output, Prompt};
use crate::dialect::fields::{Object, empty_array, integer, invalid_type, too_many};
use crate::dialect::{Fault, Ignored, Read};
use serde_json::Value;

/// Generated when the client names no limit; OpenAI's default.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Prompts of one request; each is a generation (or more) of its own.
const PROMPTS_MAX: usize = 2048;

pub fn completion_request(body: &[u8]) -> Result<Read<CompletionRequest>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let prompts = prompts(&mut body)?;
    refuse_unbuilt(&mut body)?;
    accept_or_refuse(&mut body)?;
    let sampling = sampling(&mut body)?;
    let limit = token_limit(&mut body, "max_tokens", 0)?.unwrap_or(Limit::Tokens(MAX_TOKENS_DEFAULT));
    let output = Output {
        max_tokens: limit.tokens(),
        stop: stop(&mut body)?,
        top_logprobs: body.integer("logprobs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok()),
        ..Default::default()
    };
    check::output(&output)?;
    let n = choices(&mut body)?;
    best_of(&mut body, n)?;
    let (stream, include_usage) = stream(&mut body, &mut ignored)?;
    let request = CompletionRequest {
        model: body.string("model")?,
        prompts,
        sampling,
        output,
        n,
        best_of: n,
        stream,
        include_usage,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
    };
    body.finish(&mut ignored);
    Ok(Read { request, ignored })
}

fn refuse_unbuilt(body: &mut Object) -> Result<(), Fault> {
    if body.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(body.unsupported("suffix", "infill is not available on this server"));
    }
    if body.bool("echo")?.unwrap_or(false) {
        return Err(body.unsupported("echo", "the prompt is not returned by this server"));
    }
    for key in ["tools", "functions"] {
        if body.take(key).is_some_and(|value| asks(&value)) {
            return Err(body.unsupported(key, "text completions have no tools"));
        }
    }
    Ok(())
}

fn best_of(body: &mut Object, n: u32) -> Result<(), Fault> {
    match body.integer("best_of", i64::MIN, i64::MAX)? {
        None => Ok(()),
        Some(best_of) if best_of == i64::from(n) => Ok(()),
        Some(best_of) if best_of < i64::from(n) => {
            let message = format!("best_of must be at least n, but best_of is {best_of} and n is {n}.");
            Err(Fault::new("best_of", "integer_below_min_value", message))
        }
        Some(_) => Err(body.unsupported("best_of", "choices are not ranked by this server, so it must equal n")),
    }
}

/// A text, several texts, token ids, or several lists of token ids.
fn prompts(body: &mut Object) -> Result<Vec<Prompt>, Fault> {
    let values = match body.take("prompt") {
        None => return Err(body.missing("prompt")),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type("prompt", "a string or an array", &other)),
    };
    match values.first() {
        None => Err(empty_array("prompt")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(token_ids("prompt", &values)?)]),
        Some(_) if values.len() > PROMPTS_MAX => Err(too_many("prompt", values.len(), PROMPTS_MAX)),
        Some(Value::String(_)) => {
            let texts = values.into_iter().enumerate().map(|(i, value)| match value {
                Value::String(text) => Ok(Prompt::Text(text)),
                other => Err(invalid_type(format!("prompt[{i}]"), "a string like the first entry", &other)),
            });
            texts.collect()
        }
        Some(_) => values.iter().enumerate().map(|(i, value)| token_list(format!("prompt[{i}]"), value)).collect(),
    }
}

fn token_list(path: String, value: &Value) -> Result<Prompt, Fault> {
    match value {
        Value::Array(ids) if ids.is_empty() => Err(empty_array(path)),
        Value::Array(ids) => Ok(Prompt::Tokens(token_ids(&path, ids)?)),
        other => Err(invalid_type(path, "a string or an array of token ids", other)),
    }
}

/// Token ids as the engine takes them; whether the vocabulary has them is the engine's to say.
pub(super) fn token_ids(path: &str, values: &[Value]) -> Result<Vec<i32>, Fault> {
    let ids = values.iter().enumerate().map(|(i, value)| {
        let path = format!("{path}[{i}]");
        if value.is_f64() {
            return Err(invalid_type(path, "a token id", value));
        }
        integer(path, value, 0, i32::MAX.into()).map(|id| id as i32)
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<CompletionRequest, Fault> {
        completion_request(body.to_string().as_bytes()).map(|read| read.request)
    }

    fn fault(body: Value) -> (String, &'static str) {
        let fault = read(body).expect_err("should be refused");
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn a_prompt_has_four_forms() {
        let prompts = |prompt: Value| read(json!({ "prompt": prompt })).unwrap().prompts;
        assert_eq!(prompts(json!("")), [Prompt::Text(String::new())]);
        assert_eq!(prompts(json!(["a", "b"])), [Prompt::Text("a".into()), Prompt::Text("b".into())]);
        assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2])]);
    }

    #[test]
    fn other_forms_are_refused_at_their_place() {
        for (prompt, param, code) in [
            (json!([]), "prompt", "empty_array"),
            (json!([[]]), "prompt[0]", "empty_array"),
            (json!(5), "prompt", "invalid_type"),
            (json!([1, "a"]), "prompt[1]", "invalid_type"),
            (json!(["a", 1]), "prompt[1]", "invalid_type"),
            (json!([1.5]), "prompt[0]", "invalid_type"),
            (json!([1.0]), "prompt[0]", "invalid_type"),
            (json!([-1]), "prompt[0]", "integer_below_min_value"),
            (json!([{}]), "prompt[0]", "invalid_type"),
        ] {
            assert_eq!(fault(json!({ "prompt": prompt })), (param.to_owned(), code));
        }
        assert_eq!(fault(json!({})), ("prompt".into(), "missing_required_parameter"));
    }

    #[test]
    fn defaults_are_openais() {
        let request = read(json!({"prompt": "x"})).unwrap();
        assert_eq!((request.output.max_tokens, request.n, request.stream), (Some(16), 1, false));
        assert_eq!(read(json!({"prompt": "x", "max_tokens": -1})).unwrap().output.max_tokens, None);
        assert_eq!(read(json!({"prompt": "x", "max_tokens": 0})).unwrap().output.max_tokens, Some(0));
    }

    #[test]
    fn what_can_not_be_done_yet_is_refused_by_name() {
        assert_eq!(fault(json!({"prompt":"x","suffix":"y"})), ("suffix".into(), "unsupported_parameter"));
        assert_eq!(fault(json!({"prompt":"x","echo":true})), ("echo".into(), "unsupported_parameter"));
        assert_eq!(fault(json!({"prompt":"x","n":1,"best_of":2})), ("best_of".into(), "unsupported_parameter"));
        assert_eq!(fault(json!({"prompt":"x","n":3,"best_of":2})), ("best_of".into(), "integer_below_min_value"));
        assert!(read(json!({"prompt":"x","n":2,"best_of":2,"echo":false,"suffix":""})).is_ok());
    }
}
