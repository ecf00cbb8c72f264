//! llama-server's own `POST /completion`: body → [`Native`]. Its answers are in `native_answer`.

use super::completion::token_ids;
use super::format::constraint;
use super::lora::lora;
use super::native_answer::NativeStyle;
use super::sampling::{Limit, choices, clamp_bias, prediction, sampling, stop, token_limit};
use crate::chat::check::{self, LOGIT_BIAS_MAX, TOP_LOGPROBS_MAX};
use crate::chat::{CompletionRequest, Output, Prompt, PromptPart};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, empty_array, integer, invalid_type, invalid_value, too_many};
use crate::dialect::media::unsupported;
use crate::dialect::{Fault, Ignored, Read, Wanted};
use serde_json::Value;

/// Prompts of one request, and the parts of one prompt of texts and token ids in turn.
const PROMPTS_MAX: usize = 2048;
const PARTS_MAX: usize = 65_536;
/// Texts in `logit_bias`: each is tokenised on its own before the request starts.
const BIAS_TEXTS_MAX: usize = 256;
const RESPONSE_FIELDS_MAX: usize = 64;
/// Which slot answers, how a context is shifted that is never shifted here, and what only changes the speed.
const ACCEPTED: [&str; 6] = ["id_slot", "slot_id", "n_keep", "n_discard", "n_cache_reuse", "backend_sampling"];

/// A completion as read, with what the form of its answer depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Native {
    pub request: CompletionRequest,
    /// Texts whose tokens get a bias beside those of the request's sampling.
    pub biased_texts: Vec<(String, f32)>,
    pub style: NativeStyle,
    /// The field that holds the constraint, which the engine knows by another name.
    pub constraint: Option<String>,
}

pub fn native_request(body: &[u8]) -> Result<Read<Native>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let (prompts, shown) = prompts(&mut body, &mut ignored)?.into_iter().unzip();
    let (bias, biased_texts) = logit_bias(&mut body)?;
    let mut sampling = sampling(&mut body)?;
    sampling.logit_bias = bias;
    let (field, constraint) = constraint(&mut body, &mut ignored)?.map(|asked| (asked.field, asked.constraint)).unzip();
    let (own, openai) = (token_limit(&mut body, "n_predict", 0)?, token_limit(&mut body, "max_tokens", 0)?);
    let n_probs = body.integer("n_probs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok());
    refuse(&mut body)?;
    let stream = body.bool("stream")?.unwrap_or(false);
    let return_tokens = body.bool("return_tokens")?.unwrap_or(false);
    let output = Output {
        max_tokens: own.or(openai).and_then(Limit::tokens),
        stop: stop(&mut body)?,
        top_logprobs: n_probs.filter(|k| *k > 0),
        // llama-server's streams always have them.
        with_tokens: stream || return_tokens,
        constraint,
        prediction: prediction(&mut body, &mut ignored)?,
        echo: false,
    };
    check::output(&output)?;
    let n = choices(&mut body)?;
    let style = NativeStyle {
        n: n as usize,
        prompts: shown,
        fields: response_fields(&mut body)?,
        wanted: Wanted::read(&mut body)?,
        settings: super::native_answer::settings(&output, stream),
        ..Default::default()
    };
    let request = CompletionRequest {
        model: body.string("model")?,
        prompts,
        sampling,
        output,
        n,
        best_of: n,
        stream,
        include_usage: false,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        end_user: body.user(),
        cache: cache(&mut body, &mut ignored)?,
    };
    body.accept(&ACCEPTED);
    body.finish(&mut ignored);
    Ok(Read { request: Native { request, biased_texts, style, constraint: field }, ignored })
}

/// What this server knows of llama-server and does not do. Nothing, and what switches it off, is fine.
fn refuse(body: &mut Object) -> Result<(), Fault> {
    if body.bool("post_sampling_probs")?.unwrap_or(false) {
        return Err(body.unsupported("post_sampling_probs", "probabilities are those before sampling"));
    }
    for (key, why) in [
        ("n_indent", "lines are not measured by their indentation"),
        ("t_max_predict_ms", "answers are limited by tokens, not by time"),
        ("t_max_prompt_ms", "answers are limited by tokens, not by time"),
    ] {
        if body.integer(key, i64::MIN, i64::MAX)?.is_some_and(|n| n > 0) {
            return Err(body.unsupported(key, why));
        }
    }
    Ok(())
}

/// A prompt, and its text as the client sent it; empty where it was no text.
type Shown = (Prompt, String);

/// One prompt, or an array of prompts. An array with a number in it is one prompt.
fn prompts(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<Shown>, Fault> {
    match body.take("prompt") {
        None => Err(body.missing("prompt")),
        Some(Value::Array(values)) if values.is_empty() => Err(empty_array("prompt")),
        Some(Value::Array(values)) if !values.iter().any(Value::is_number) => {
            if values.len() > PROMPTS_MAX {
                return Err(too_many("prompt", values.len(), PROMPTS_MAX));
            }
            let prompts = values.into_iter().enumerate();
            prompts.map(|(i, value)| prompt(format!("prompt[{i}]"), value, ignored)).collect()
        }
        Some(value) => Ok(vec![prompt("prompt".to_owned(), value, ignored)?]),
    }
}

/// A text, token ids, both in turn, or an object with a text.
fn prompt(path: String, value: Value, ignored: &mut Ignored) -> Result<Shown, Fault> {
    match value {
        Value::String(text) => Ok((Prompt::Text(text.clone()), text)),
        Value::Array(parts) if parts.is_empty() => Err(empty_array(path)),
        Value::Array(ids) if ids.iter().all(Value::is_number) => {
            Ok((Prompt::Tokens(token_ids(&path, &ids)?), String::new()))
        }
        Value::Array(parts) => Ok((Prompt::Mixed(mixed(&path, parts)?), String::new())),
        Value::Object(_) => {
            let mut prompt = Object::at(path, value)?;
            let text = prompt.string("prompt_string")?.ok_or_else(|| prompt.missing("prompt_string"))?;
            let media = prompt.path("multimodal_data");
            if prompt.array("multimodal_data")?.is_some_and(|media| !media.is_empty()) {
                return Err(unsupported(&media, "send images and sounds in the messages of a chat"));
            }
            prompt.finish(ignored);
            Ok((Prompt::Text(text.clone()), text))
        }
        other => Err(invalid_type(path, "a string, an array or an object", &other)),
    }
}

/// Token ids and texts in turn.
pub(super) fn mixed(path: &str, parts: Vec<Value>) -> Result<Vec<PromptPart>, Fault> {
    if parts.len() > PARTS_MAX {
        return Err(too_many(path, parts.len(), PARTS_MAX));
    }
    let part = |(i, value): (usize, Value)| match value {
        Value::String(text) => Ok(PromptPart::Text(text)),
        value @ Value::Number(_) => token_id(format!("{path}[{i}]"), &value).map(PromptPart::Token),
        other => Err(invalid_type(format!("{path}[{i}]"), "a token id or a string", &other)),
    };
    parts.into_iter().enumerate().map(part).collect()
}

fn token_id(path: String, value: &Value) -> Result<i32, Fault> {
    if value.is_f64() {
        return Err(invalid_type(path, "a token id", value));
    }
    integer(path, value, 0, i32::MAX.into()).map(|id| id as i32)
}

/// Biases of tokens, and of texts.
type Biases = (Option<Vec<(i32, f32)>>, Vec<(String, f32)>);

/// `[[token or text, bias], …]`, or an object of the same; a bias of `false` bans.
fn logit_bias(body: &mut Object) -> Result<Biases, Fault> {
    let path = body.path("logit_bias");
    let entries: Vec<(String, Value, Value)> = match body.take("logit_bias") {
        None => return Ok((None, Vec::new())),
        Some(Value::Object(entries)) => {
            let entry = |(key, bias): (String, Value)| (format!("{path}.{key}"), key.into(), bias);
            entries.into_iter().map(entry).collect()
        }
        Some(Value::Array(entries)) => {
            let entry = |(i, value): (usize, Value)| match value {
                Value::Array(mut pair) if pair.len() == 2 => {
                    let bias = pair.pop().unwrap_or_default();
                    Ok((format!("{path}[{i}]"), pair.pop().unwrap_or_default(), bias))
                }
                other => Err(invalid_type(format!("{path}[{i}]"), "a pair of a token and its bias", &other)),
            };
            entries.into_iter().enumerate().map(entry).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(invalid_type(path, "an array of pairs or an object", &other)),
    };
    if entries.len() > LOGIT_BIAS_MAX {
        return Err(too_many(path, entries.len(), LOGIT_BIAS_MAX));
    }
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for (at, token, bias) in entries {
        let bias = match &bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            Value::Number(bias) => clamp_bias(bias.as_f64().unwrap_or_default()),
            other => return Err(invalid_type(at, "a number or false", other)),
        };
        match token {
            Value::Number(_) => ids.push((token_id(at, &token)?, bias)),
            Value::String(text) => match text.parse::<i32>() {
                Ok(id @ 0..) => ids.push((id, bias)),
                // No vocabulary has it.
                Ok(_) => {}
                Err(_) => texts.push((text, bias)),
            },
            other => return Err(invalid_type(at, "a token id or a string", &other)),
        }
    }
    if texts.len() > BIAS_TEXTS_MAX {
        return Err(too_many(path, texts.len(), BIAS_TEXTS_MAX));
    }
    Ok((Some(ids), texts))
}

/// Paths such as `generation_settings/n_predict`; none: everything.
fn response_fields(body: &mut Object) -> Result<Vec<String>, Fault> {
    let values = body.array("response_fields")?.unwrap_or_default();
    if values.len() > RESPONSE_FIELDS_MAX {
        return Err(too_many("response_fields", values.len(), RESPONSE_FIELDS_MAX));
    }
    let field = |(i, value): (usize, Value)| match value {
        Value::String(path) if !path.is_empty() => Ok(path),
        Value::String(path) => Err(invalid_value(format!("response_fields[{i}]"), &path, "names of fields")),
        other => Err(invalid_type(format!("response_fields[{i}]"), "a string", &other)),
    };
    values.into_iter().enumerate().map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Native, Fault> {
        native_request(body.to_string().as_bytes()).map(|read| read.request)
    }

    fn fault(body: Value) -> (String, &'static str) {
        let shown = body.to_string();
        let fault = read(body).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn a_prompt_is_text_tokens_both_or_an_object_and_there_may_be_several() {
        let prompts = |prompt: Value| read(json!({ "prompt": prompt })).unwrap().request.prompts;
        let text = |text: &str| Prompt::Text(text.into());
        let mixed = Prompt::Mixed(vec![PromptPart::Token(1), PromptPart::Text("a".into()), PromptPart::Token(2)]);
        assert_eq!(prompts(json!("a")), [text("a")]);
        assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([1, "a", 2])), std::slice::from_ref(&mixed));
        assert_eq!(prompts(json!({"prompt_string":"a"})), [text("a")]);
        assert_eq!(prompts(json!({"prompt_string":"a","multimodal_data":[]})), [text("a")]);
        assert_eq!(
            prompts(json!(["a", [1, 2], [1, "a", 2], {"prompt_string":"b"}])),
            [text("a"), Prompt::Tokens(vec![1, 2]), mixed, text("b")]
        );
        for (prompt, param, code) in [
            (json!([]), "prompt", "empty_array"),
            (json!([[]]), "prompt[0]", "empty_array"),
            (json!(5), "prompt", "invalid_type"),
            (json!([1.5]), "prompt[0]", "invalid_type"),
            (json!([-1]), "prompt[0]", "integer_below_min_value"),
            (json!(["a", [1, true]]), "prompt[1][1]", "invalid_type"),
            (json!({}), "prompt.prompt_string", "missing_required_parameter"),
            (json!({"prompt_string":"a","multimodal_data":["AQID"]}), "prompt.multimodal_data", "unsupported_content"),
            (json!([{"prompt_string":1}]), "prompt[0].prompt_string", "invalid_type"),
        ] {
            assert_eq!(fault(json!({ "prompt": prompt })), (param.to_owned(), code));
        }
        assert_eq!(fault(json!({})), ("prompt".into(), "missing_required_parameter"));
    }

    #[test]
    fn biases_are_of_tokens_and_of_texts() {
        let read = |bias: Value| {
            let read = read(json!({"prompt": "x", "logit_bias": bias})).unwrap();
            (read.request.sampling.logit_bias.unwrap(), read.biased_texts)
        };
        let ban = f32::NEG_INFINITY;
        assert_eq!(read(json!([[5, 1.5], [6, false], ["7", -2]])).0, [(5, 1.5), (6, ban), (7, -2.0)]);
        assert_eq!(read(json!([[" a ", -100]])), (Vec::new(), vec![(" a ".into(), ban)]));
        assert_eq!(read(json!({"8": 3, "b": 1})), (vec![(8, 3.0)], vec![("b".into(), 1.0)]));
        for (bias, param) in [
            (json!(5), "logit_bias"),
            (json!([5]), "logit_bias[0]"),
            (json!([[5]]), "logit_bias[0]"),
            (json!([[5, true]]), "logit_bias[0]"),
            (json!([[null, 1]]), "logit_bias[0]"),
            (json!({"a": "b"}), "logit_bias.a"),
            (json!(vec![json!(["a", 1]); 257]), "logit_bias"),
            (json!(vec![json!([1, 1]); 1025]), "logit_bias"),
        ] {
            assert_eq!(fault(json!({"prompt": "x", "logit_bias": bias})).0, param);
        }
    }

    #[test]
    fn what_llama_server_knows_is_honoured_accepted_or_refused() {
        let plain = read(json!({"prompt":"x"})).unwrap().request;
        assert_eq!((plain.output.max_tokens, plain.output.with_tokens, plain.cache_prompt), (None, false, true));
        let all = json!({"prompt":"x","n_predict":5,"return_tokens":true,"n_probs":3,"id_slot":1,"n_keep":4,
            "post_sampling_probs":false,"t_max_predict_ms":-1,"n_indent":0});
        let read = native_request(all.to_string().as_bytes()).unwrap();
        assert_eq!(read.ignored.header(), None);
        let output = read.request.request.output;
        assert_eq!((output.max_tokens, output.with_tokens, output.top_logprobs), (Some(5), true, Some(3)));
        for (more, param, code) in [
            (json!({"post_sampling_probs":true}), "post_sampling_probs", "unsupported_parameter"),
            (json!({"t_max_predict_ms":10}), "t_max_predict_ms", "unsupported_parameter"),
            (json!({"n_indent":2}), "n_indent", "unsupported_parameter"),
            (json!({"n_probs":21}), "n_probs", "integer_above_max_value"),
            (json!({"n_predict":-2}), "n_predict", "integer_below_min_value"),
            (json!({"response_fields":[1]}), "response_fields[0]", "invalid_type"),
            (json!({"response_fields":[""]}), "response_fields[0]", "invalid_value"),
        ] {
            let mut body = json!({"prompt":"x"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(fault(body), (param.to_owned(), code));
        }
    }
}
