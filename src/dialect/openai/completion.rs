//! `POST /v1/completions`: body → [`Completion`].

use super::format::{asks, constraint};
use super::lora::lora;
use super::sampling::{Limit, accept_or_refuse, choices, prediction, sampling, stop, stream, token_limit};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{CompletionRequest, Infill, Output, Prompt};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, empty_array, integer, invalid_type, too_many};
use crate::dialect::{Fault, Ignored, Read, Wanted};
use serde_json::Value;

/// Generated when the client names no limit; OpenAI's default.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Prompts of one request; each is a generation (or more) of its own.
const PROMPTS_MAX: usize = 2048;

/// A completion as read, with what the form of its answer depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    pub request: CompletionRequest,
    pub style: TextStyle,
    /// The field that holds the constraint, which the engine knows by another name.
    pub constraint: Option<String>,
}

/// How the answer to a completion is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextStyle {
    pub with_logprobs: bool,
    /// Only for a stream; a whole answer always has its usage.
    pub include_usage: bool,
    /// Choices of each prompt.
    pub n: usize,
    /// What goes before each choice's text.
    pub echo: Option<Vec<Echo>>,
    pub wanted: Wanted,
}

/// A prompt that is repeated before its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Echo {
    /// As the client wrote it.
    Text(String),
    /// The client sent token ids: what the engine says of them.
    Tokens,
}

pub fn completion_request(body: &[u8]) -> Result<Read<Completion>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let prompts = prompts(&mut body)?;
    let echo = echo(&mut body, &prompts)?;
    let prompts = infill(&mut body, prompts, echo.is_some())?;
    refuse_tools(&mut body)?;
    accept_or_refuse(&mut body)?;
    let sampling = sampling(&mut body)?;
    let (field, constraint) = constraint(&mut body, &mut ignored)?.map(|asked| (asked.field, asked.constraint)).unzip();
    let limit = token_limit(&mut body, "max_tokens", 0)?.unwrap_or(Limit::Tokens(MAX_TOKENS_DEFAULT));
    let output = Output {
        max_tokens: limit.tokens(),
        stop: stop(&mut body)?,
        top_logprobs: body.integer("logprobs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok()),
        echo: echo.is_some(),
        with_tokens: false,
        constraint,
        prediction: prediction(&mut body, &mut ignored)?,
    };
    check::output(&output)?;
    let n = choices(&mut body)?;
    let (stream, include_usage) = stream(&mut body, &mut ignored)?;
    let best_of = best_of(&mut body, n, stream)?;
    let style = TextStyle {
        with_logprobs: output.top_logprobs.is_some(),
        include_usage,
        n: n as usize,
        echo,
        wanted: Wanted::read(&mut body)?,
    };
    let request = CompletionRequest {
        model: body.string("model")?,
        prompts,
        sampling,
        output,
        n,
        best_of,
        stream,
        include_usage,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        cache: cache(&mut body, &mut ignored)?,
    };
    body.finish(&mut ignored);
    Ok(Read { request: Completion { request, style, constraint: field }, ignored })
}

fn echo(body: &mut Object, prompts: &[Prompt]) -> Result<Option<Vec<Echo>>, Fault> {
    if !body.bool("echo")?.unwrap_or(false) {
        return Ok(None);
    }
    let echo = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => Echo::Text(text.clone()),
        _ => Echo::Tokens,
    };
    Ok(Some(prompts.iter().map(echo).collect()))
}

/// With a `suffix`, the prompts become what stands before a gap.
fn infill(body: &mut Object, prompts: Vec<Prompt>, has_echo: bool) -> Result<Vec<Prompt>, Fault> {
    let Some(suffix) = body.string("suffix")?.filter(|suffix| !suffix.is_empty()) else { return Ok(prompts) };
    let fault = |why: &str| Fault::new("suffix", "invalid_value", format!("suffix {why}."));
    if has_echo {
        return Err(fault("and echo can't both be given"));
    }
    let gap = |prompt: Prompt| match prompt {
        Prompt::Text(prefix) => Ok(Prompt::Infill(Infill { prefix, suffix: suffix.clone(), ..Default::default() })),
        _ => Err(fault("needs a prompt of text, not of token ids")),
    };
    prompts.into_iter().map(gap).collect()
}

fn refuse_tools(body: &mut Object) -> Result<(), Fault> {
    for key in ["tools", "functions"] {
        if body.take(key).is_some_and(|value| asks(&value)) {
            return Err(body.unsupported(key, "text completions have no tools"));
        }
    }
    Ok(())
}

/// Choices to generate for each prompt, of which the best `n` are the answer.
fn best_of(body: &mut Object, n: u32, stream: bool) -> Result<u32, Fault> {
    let Some(best_of) = body.integer("best_of", i64::MIN, i64::MAX)? else { return Ok(n) };
    if best_of < i64::from(n) {
        let message = format!("best_of must be at least n, but best_of is {best_of} and n is {n}.");
        return Err(Fault::new("best_of", "integer_below_min_value", message));
    }
    if stream && best_of > i64::from(n) {
        let message = format!("best_of must equal n in a stream, but best_of is {best_of} and n is {n}.");
        return Err(Fault::new("best_of", "invalid_value", message));
    }
    if best_of > i64::from(check::CHOICES_MAX) {
        let message = format!("best_of must be at most {}, but it is {best_of}.", check::CHOICES_MAX);
        return Err(Fault::new("best_of", "integer_above_max_value", message));
    }
    Ok(u32::try_from(best_of).unwrap_or(check::CHOICES_MAX))
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
        completion_request(body.to_string().as_bytes()).map(|read| read.request.request)
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

    /// COMP-02.
    #[test]
    fn a_suffix_makes_a_gap() {
        let gap =
            |prefix: &str| Prompt::Infill(Infill { prefix: prefix.into(), suffix: "s".into(), ..Default::default() });
        assert_eq!(read(json!({"prompt":["a","b"],"suffix":"s"})).unwrap().prompts, [gap("a"), gap("b")]);
        assert_eq!(read(json!({"prompt":"a","suffix":""})).unwrap().prompts, [Prompt::Text("a".into())]);
        assert_eq!(fault(json!({"prompt":[1],"suffix":"s"})), ("suffix".into(), "invalid_value"));
    }

    #[test]
    fn the_prompt_is_repeated_as_it_was_written() {
        let echo = |body: Value| completion_request(body.to_string().as_bytes()).unwrap().request.style.echo;
        assert_eq!(
            echo(json!({"prompt":["a","b"],"echo":true})),
            Some(vec![Echo::Text("a".into()), Echo::Text("b".into())])
        );
        assert_eq!(echo(json!({"prompt":[1],"echo":true})), Some(vec![Echo::Tokens]));
        assert_eq!(echo(json!({"prompt":"a","echo":false})), None);
        assert!(read(json!({"prompt":"a","echo":true})).unwrap().output.echo);
    }

    #[test]
    fn best_of_is_at_least_n() {
        let best = |body: Value| read(body).map(|request| (request.n, request.best_of));
        assert_eq!(best(json!({"prompt":"x"})), Ok((1, 1)));
        assert_eq!(best(json!({"prompt":"x","n":2,"best_of":5})), Ok((2, 5)));
        assert_eq!(best(json!({"prompt":"x","n":2,"best_of":2,"stream":true})), Ok((2, 2)));
        assert_eq!(fault(json!({"prompt":"x","n":3,"best_of":2})), ("best_of".into(), "integer_below_min_value"));
        assert_eq!(fault(json!({"prompt":"x","best_of":2,"stream":true})), ("best_of".into(), "invalid_value"));
        assert_eq!(fault(json!({"prompt":"x","best_of":129})), ("best_of".into(), "integer_above_max_value"));
    }

    #[test]
    fn tools_are_not_for_completions() {
        assert_eq!(fault(json!({"prompt":"x","tools":[{}]})), ("tools".into(), "unsupported_parameter"));
        assert!(read(json!({"prompt":"x","tools":[]})).is_ok());
    }
}
