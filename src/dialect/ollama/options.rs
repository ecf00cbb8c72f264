//! What chat and generate share: `options`, `format`, `think`, `logprobs`, `images`.

use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{ChatPrompt, Constraint, Media, MediaKind, Mirostat, Output, Sampling};
use crate::dialect::fields::{Object, integer, invalid_type, invalid_value, too_many};
use crate::dialect::media::{MediaPlaces, data_url, decode, unsupported};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// Options of how a model is loaded, which was done long ago, and of samplers that llama.cpp no longer has.
const ACCEPTED: [&str; 16] = [
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_thread",
    "num_gqa",
    "num_keep",
    "main_gpu",
    "numa",
    "low_vram",
    "f16_kv",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "draft_num_predict",
    "penalize_newline",
    "tfs_z",
];
const THOUGHTS: [&str; 4] = ["low", "medium", "high", "max"];

/// `options`, `format` and `logprobs`, read and checked.
pub(super) fn settings(body: &mut Object, ignored: &mut Ignored) -> Result<(Sampling, Output), Fault> {
    let (sampling, max_tokens, stop) = match body.object("options")? {
        None => Default::default(),
        Some(options) => options_of(options, ignored)?,
    };
    let output =
        Output { max_tokens, stop, top_logprobs: top_logprobs(body)?, constraint: format(body)?, ..Default::default() };
    check::sampling(&sampling).and_then(|()| check::output(&output)).map_err(|refusal| {
        let field = format!("options.{}", refusal.field);
        let message = format!("options.{}", refusal.message);
        Fault::new(field, refusal.code, message)
    })?;
    Ok((sampling, output))
}

type Settings = (Sampling, Option<u32>, Vec<String>);

fn options_of(mut options: Object, ignored: &mut Ignored) -> Result<Settings, Fault> {
    let sampling = Sampling {
        seed: options.integer("seed", i64::MIN, i64::MAX)?.map(check::fold_seed),
        temperature: options.decimal("temperature")?,
        top_k: options.int32("top_k")?,
        top_p: options.decimal("top_p")?,
        min_p: options.decimal("min_p")?,
        typical_p: options.decimal("typical_p")?,
        repeat_last_n: options.int32("repeat_last_n")?,
        repeat_penalty: options.decimal("repeat_penalty")?,
        presence_penalty: options.decimal("presence_penalty")?,
        frequency_penalty: options.decimal("frequency_penalty")?,
        mirostat: mirostat(&mut options)?,
        mirostat_tau: options.decimal("mirostat_tau")?,
        mirostat_eta: options.decimal("mirostat_eta")?,
        ..Default::default()
    };
    let max_tokens = num_predict(&mut options)?;
    let stop = stop(&mut options)?;
    options.accept(&ACCEPTED);
    options.finish(ignored);
    Ok((sampling, max_tokens, stop))
}

fn mirostat(options: &mut Object) -> Result<Option<Mirostat>, Fault> {
    Ok(options.integer("mirostat", 0, 2)?.map(|version| match version {
        0 => Mirostat::Off,
        1 => Mirostat::V1,
        _ => Mirostat::V2,
    }))
}

/// -1 and -2 (until the context is full) are no limit; 0 counts the prompt and says nothing.
fn num_predict(options: &mut Object) -> Result<Option<u32>, Fault> {
    let path = options.path("num_predict");
    let Some(value) = options.take("num_predict") else { return Ok(None) };
    let value = value.as_u64().map_or(value, |wide| wide.min(u32::MAX.into()).into());
    match integer(path, &value, -2, i64::MAX)? {
        n @ 0.. => Ok(Some(u32::try_from(n).unwrap_or(u32::MAX))),
        _ => Ok(None),
    }
}

/// A string, or an array of strings; empty ones mean nothing.
fn stop(options: &mut Object) -> Result<Vec<String>, Fault> {
    let path = options.path("stop");
    let entries = match options.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(many)) => many,
        Some(other) => return Err(invalid_type(path, "a string or an array of strings", &other)),
    };
    if entries.len() > check::STOPS_MAX {
        return Err(too_many(path, entries.len(), check::STOPS_MAX));
    }
    let texts = entries.into_iter().enumerate().map(|(i, entry)| match entry {
        Value::String(text) => Ok(text),
        other => Err(invalid_type(format!("{path}[{i}]"), "a string", &other)),
    });
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

fn top_logprobs(body: &mut Object) -> Result<Option<u8>, Fault> {
    let wanted = body.bool("logprobs")?.unwrap_or(false);
    let top = body.integer("top_logprobs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok());
    match top {
        // Ollama's own clients send 0 for "not given".
        Some(1..) if !wanted => {
            Err(Fault::new("top_logprobs", "invalid_value", "top_logprobs needs logprobs to be true, and it is not."))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

/// `"json"`, or a JSON Schema; an empty text is none.
fn format(body: &mut Object) -> Result<Option<Constraint>, Fault> {
    match body.take("format") {
        None => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(Constraint::JsonObject)),
        Some(Value::String(other)) => Err(invalid_value("format", &other, "json, or a JSON schema")),
        Some(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema.to_string()))),
        Some(other) => Err(invalid_type("format", "\"json\" or an object (a JSON Schema)", &other)),
    }
}

/// On a model that doesn't think it has no effect.
pub(super) fn think(body: &mut Object, prompt: &mut ChatPrompt) -> Result<(), Fault> {
    match body.take("think") {
        None => {}
        Some(Value::Bool(on)) => prompt.enable_thinking = Some(on),
        Some(Value::String(word)) if word.is_empty() => {}
        Some(Value::String(word)) if THOUGHTS.contains(&word.as_str()) => {
            prompt.enable_thinking = Some(true);
            prompt.reasoning_effort = Some(word);
        }
        Some(Value::String(other)) => return Err(invalid_value("think", &other, &THOUGHTS.join(", "))),
        Some(other) => return Err(invalid_type("think", "a boolean or a string", &other)),
    }
    Ok(())
}

/// Base64 of images, which stand before the text.
pub(super) fn images(fields: &mut Object, places: &mut MediaPlaces) -> Result<Vec<Media>, Fault> {
    let path = fields.path("images");
    let mut media = Vec::new();
    for (i, value) in fields.array("images")?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let Value::String(text) = &value else { return Err(invalid_type(path, "a string of base64", &value)) };
        // Base64 has no colon, so this is an address whatever its scheme.
        let data = match data_url(text) {
            Some((_, data)) => data,
            None if text.contains("://") => {
                return Err(unsupported(&path, "an address is not taken here; send the image itself as base64"));
            }
            None => text,
        };
        let data = decode(&path, data)?;
        places.add(MediaKind::Image, path)?;
        media.push(Media { kind: MediaKind::Image, offset: 0, data });
    }
    Ok(media)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<(Sampling, Output, Ignored), Fault> {
        let mut ignored = Ignored::default();
        let (sampling, output) = settings(&mut Object::at("", body)?, &mut ignored)?;
        Ok((sampling, output, ignored))
    }

    fn fault(body: Value) -> (String, &'static str) {
        let shown = body.to_string();
        let fault = read(body).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    /// OLLA-07 and OLLA-14.
    #[test]
    fn options_are_honoured_accepted_or_listed() {
        let (sampling, output, ignored) = read(json!({"options": {
            "temperature": 0.5, "top_k": 20, "seed": -1, "stop": "x", "num_predict": -1, "mirostat": 2,
            "num_ctx": 1_000_000, "num_gpu": 99, "num_thread": 8, "low_vram": true, "my_option": 1,
        }}))
        .unwrap();
        assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (Some(0.5), Some(20), Some(u32::MAX)));
        assert_eq!((sampling.mirostat, output.max_tokens), (Some(Mirostat::V2), None));
        assert_eq!(output.stop, ["x"]);
        assert_eq!(ignored.header().as_deref(), Some("options.my_option"));
        let limit = |n: Value| read(json!({"options":{"num_predict":n}})).unwrap().1.max_tokens;
        assert_eq!((limit(json!(-2)), limit(json!(0)), limit(json!(7.0))), (None, Some(0), Some(7)));
        assert_eq!(limit(json!(u64::MAX)), Some(u32::MAX));
    }

    #[test]
    fn wrong_ones_are_named() {
        for (body, param, code) in [
            (json!({"options":[]}), "options", "invalid_type"),
            (json!({"options":{"temperature":"hot"}}), "options.temperature", "invalid_type"),
            (json!({"options":{"temperature":-1}}), "options.temperature", "decimal_below_min_value"),
            (json!({"options":{"top_k":1.5}}), "options.top_k", "invalid_type"),
            (json!({"options":{"num_predict":-3}}), "options.num_predict", "integer_below_min_value"),
            (json!({"options":{"stop":[1]}}), "options.stop[0]", "invalid_type"),
            (json!({"options":{"stop":["x".repeat(5000)]}}), "options.stop[0]", "string_above_max_length"),
            (json!({"options":{"mirostat":3}}), "options.mirostat", "integer_above_max_value"),
            (json!({"format":"yaml"}), "format", "invalid_value"),
            (json!({"format":7}), "format", "invalid_type"),
            (json!({"logprobs":true,"top_logprobs":21}), "top_logprobs", "integer_above_max_value"),
            (json!({"top_logprobs":3}), "top_logprobs", "invalid_value"),
        ] {
            assert_eq!(fault(body), (param.to_owned(), code));
        }
    }

    #[test]
    fn formats() {
        let constraint = |body| read(body).unwrap().1.constraint;
        assert_eq!(constraint(json!({"format":""})), None);
        assert_eq!(constraint(json!({"format":null})), None);
        assert_eq!(constraint(json!({"format":"json"})), Some(Constraint::JsonObject));
        let schema = constraint(json!({"format":{"type":"object"}}));
        assert_eq!(schema, Some(Constraint::JsonSchema("{\"type\":\"object\"}".into())));
    }

    /// OLLA-06.
    #[test]
    fn think_is_a_switch_or_a_word() {
        let read = |value: Value| {
            let mut prompt = ChatPrompt::new(Vec::new());
            think(&mut Object::at("", json!({ "think": value })).unwrap(), &mut prompt)?;
            Ok::<_, Fault>((prompt.enable_thinking, prompt.reasoning_effort))
        };
        assert_eq!(read(json!(true)), Ok((Some(true), None)));
        assert_eq!(read(json!(false)), Ok((Some(false), None)));
        assert_eq!(read(json!("low")), Ok((Some(true), Some("low".into()))));
        assert_eq!(read(Value::Null), Ok((None, None)));
        assert_eq!(read(json!("a lot")).unwrap_err().code, Some("invalid_value"));
        assert_eq!(read(json!(1)).unwrap_err().code, Some("invalid_type"));
    }
}
