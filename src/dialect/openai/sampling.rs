//! Fields that chat and text completions share: sampling, stop strings, limits, and what is refused in both.

use super::format::asks;
use crate::chat::check;
use crate::chat::{Class, Mirostat, SamplerKind, Sampling};
use crate::dialect::fields::{Object, integer, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// Accepted without effect: bookkeeping of OpenAI's own platform, and hints.
const ACCEPTED: [&str; 8] = [
    "store",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "cache_control",
    "service_tier",
    "verbosity",
];

/// The queue that `service_tier` asks for: `flex` is OpenAI's word for what may wait. All other tiers are the one that all have.
pub(in crate::dialect) fn class(body: &mut Object) -> Class {
    match body.take("service_tier") {
        Some(Value::String(tier)) if tier == FLEX => Class::Batch,
        _ => Class::Interactive,
    }
}

/// The tier that an answer says it had.
pub(in crate::dialect) fn tier(class: Class) -> &'static str {
    match class {
        Class::Interactive => "default",
        Class::Batch => FLEX,
    }
}

const FLEX: &str = "flex";

/// Bytes of a prediction that are kept: it is a hint, and no answer is longer.
const PREDICTION_BYTES_MAX: usize = 1 << 20;

/// Reads all sampling fields and checks their ranges.
pub(in crate::dialect) fn sampling(body: &mut Object) -> Result<Sampling, Fault> {
    let said = Sampling {
        seed: body.integer("seed", i64::MIN, i64::MAX)?.map(check::fold_seed),
        temperature: body.decimal("temperature")?,
        dynatemp_range: body.decimal("dynatemp_range")?,
        dynatemp_exponent: body.decimal("dynatemp_exponent")?,
        top_k: body.int32("top_k")?,
        top_p: body.decimal("top_p")?,
        min_p: body.decimal("min_p")?,
        typical_p: body.decimal("typical_p")?,
        top_n_sigma: body.decimal("top_n_sigma")?,
        xtc_probability: body.decimal("xtc_probability")?,
        xtc_threshold: body.decimal("xtc_threshold")?,
        min_keep: body.integer("min_keep", 0, u32::MAX.into())?.and_then(|n| u32::try_from(n).ok()),
        repeat_last_n: body.int32("repeat_last_n")?,
        repeat_penalty: body.decimal("repeat_penalty")?,
        presence_penalty: body.decimal("presence_penalty")?,
        frequency_penalty: body.decimal("frequency_penalty")?,
        dry_multiplier: body.decimal("dry_multiplier")?,
        dry_base: body.decimal("dry_base")?,
        dry_allowed_length: body.int32("dry_allowed_length")?,
        dry_penalty_last_n: body.int32("dry_penalty_last_n")?,
        dry_sequence_breakers: strings(body, "dry_sequence_breakers", check::DRY_BREAKERS_MAX)?,
        mirostat: mirostat(body)?,
        mirostat_tau: body.decimal("mirostat_tau")?,
        mirostat_eta: body.decimal("mirostat_eta")?,
        logit_bias: logit_bias(body)?,
        ignore_eos: body.bool("ignore_eos")?,
        samplers: samplers(body)?,
    };
    check::sampling(&said)?;
    Ok(said)
}

fn mirostat(body: &mut Object) -> Result<Option<Mirostat>, Fault> {
    Ok(body.integer("mirostat", 0, 2)?.map(|version| match version {
        0 => Mirostat::Off,
        1 => Mirostat::V1,
        _ => Mirostat::V2,
    }))
}

fn samplers(body: &mut Object) -> Result<Option<Vec<SamplerKind>>, Fault> {
    let Some(names) = strings(body, "samplers", check::SAMPLERS_MAX)? else { return Ok(None) };
    let known = || SamplerKind::ALL.map(SamplerKind::name).join(", ");
    let kinds = names.iter().enumerate().map(|(i, name)| {
        SamplerKind::from_name(name)
            .ok_or_else(|| invalid_value(format!("{}[{i}]", body.path("samplers")), name, &known()))
    });
    kinds.collect::<Result<_, _>>().map(Some)
}

/// Token ids outside the vocabulary have no effect, so ids that no vocabulary can have are left out here already.
fn logit_bias(body: &mut Object) -> Result<Option<Vec<(i32, f32)>>, Fault> {
    let entries = match body.take("logit_bias") {
        None => return Ok(None),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(invalid_type("logit_bias", "an object", &other)),
    };
    if entries.len() > check::LOGIT_BIAS_MAX {
        return Err(too_many("logit_bias", entries.len(), check::LOGIT_BIAS_MAX));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (key, value) in &entries {
        let digits = key.strip_prefix('-').unwrap_or(key);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid_value("logit_bias", key, "keys that are decimal token ids"));
        }
        let bias = value.as_f64().ok_or_else(|| invalid_type(format!("logit_bias.{key}"), "a number", value))?;
        if let Ok(token @ 0..) = key.parse::<i32>() {
            biases.push((token, clamp_bias(bias)));
        }
    }
    Ok(Some(biases))
}

/// -100 and less bans a token, and +100 is enough to force one; between them the value is added to the logit.
pub(super) fn clamp_bias(bias: f64) -> f32 {
    let max = check::LOGIT_BIAS_ABS_MAX;
    let bias = (bias as f32).min(max);
    if bias <= -max { f32::NEG_INFINITY } else { bias }
}

/// A string, or an array of strings; empty ones mean nothing.
pub(in crate::dialect) fn stop(body: &mut Object) -> Result<Vec<String>, Fault> {
    let entries = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(many)) => many,
        Some(other) => return Err(invalid_type("stop", "a string or an array of strings", &other)),
    };
    if entries.len() > check::STOPS_MAX {
        return Err(too_many("stop", entries.len(), check::STOPS_MAX));
    }
    let mut stops = Vec::with_capacity(entries.len());
    for (i, entry) in entries.into_iter().enumerate() {
        match entry {
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => stops.push(text),
            other => return Err(invalid_type(format!("stop[{i}]"), "a string", &other)),
        }
    }
    Ok(stops)
}

fn strings(body: &mut Object, key: &str, max: usize) -> Result<Option<Vec<String>>, Fault> {
    let Some(values) = body.array(key)? else { return Ok(None) };
    let path = body.path(key);
    if values.len() > max {
        return Err(too_many(path, values.len(), max));
    }
    let texts = values.into_iter().enumerate().map(|(i, value)| match value {
        Value::String(text) => Ok(text),
        other => Err(invalid_type(format!("{path}[{i}]"), "a string", &other)),
    });
    texts.collect::<Result<_, _>>().map(Some)
}

/// A token limit: at least `min`, or -1 for none. What no context can hold is left to the engine's clamp.
pub(in crate::dialect) fn token_limit(body: &mut Object, key: &str, min: i64) -> Result<Option<Limit>, Fault> {
    let path = body.path(key);
    let Some(value) = body.take(key) else { return Ok(None) };
    // 2^63 and more are "as much as possible" as well, so they must not fail as integers.
    let value = match value.as_u64() {
        Some(wide) if wide > u64::from(u32::MAX) => u32::MAX.into(),
        _ => value,
    };
    match integer(path.clone(), &value, i64::MIN, i64::MAX)? {
        -1 => Ok(Some(Limit::None)),
        n if n < min => {
            let message = format!("{path} must be at least {min} (or -1 for no limit), but it is {n}.");
            Err(Fault::new(path, "integer_below_min_value", message))
        }
        n => Ok(Some(Limit::Tokens(u32::try_from(n).unwrap_or(u32::MAX)))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dialect) enum Limit {
    None,
    Tokens(u32),
}

impl Limit {
    pub(in crate::dialect) fn tokens(self) -> Option<u32> {
        match self {
            Limit::None => None,
            Limit::Tokens(n) => Some(n),
        }
    }
}

pub(super) fn choices(body: &mut Object) -> Result<u32, Fault> {
    let n = body.integer("n", i64::MIN, i64::MAX)?.unwrap_or(1);
    Ok(check::choices(n)?)
}

/// Returns (stream, include usage). Options without `stream` have no effect, as with OpenAI.
pub(super) fn stream(body: &mut Object, ignored: &mut Ignored) -> Result<(bool, bool), Fault> {
    let stream = body.bool("stream")?.unwrap_or(false);
    let Some(mut options) = body.object("stream_options")? else { return Ok((stream, false)) };
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    options.accept(&["include_obfuscation"]);
    options.finish(ignored);
    Ok((stream, stream && include_usage))
}

/// Takes what has no effect, and refuses what both endpoints know but can't do.
pub(super) fn accept_or_refuse(body: &mut Object) -> Result<(), Fault> {
    body.accept(&ACCEPTED);
    if body.take("moderation").is_some_and(|value| asks(&value)) {
        return Err(body.unsupported("moderation", "this server has no moderation"));
    }
    if body.take("web_search_options").is_some() {
        return Err(body.unsupported("web_search_options", "this server can't search the web"));
    }
    Ok(())
}

/// What the answer will probably be: `{"type": "content", "content": text or text parts}`.
pub(super) fn prediction(body: &mut Object, ignored: &mut Ignored) -> Result<Option<String>, Fault> {
    let Some(mut prediction) = body.object("prediction")? else { return Ok(None) };
    match prediction.string("type")?.as_deref() {
        Some("content") => {}
        Some(other) => return Err(invalid_value(prediction.path("type"), other, "content")),
        None => return Err(prediction.missing("type")),
    }
    let path = prediction.path("content");
    let mut text = match prediction.take("content") {
        None => return Err(prediction.missing("content")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, value) in parts.into_iter().enumerate() {
                let mut part = Object::at(format!("{path}[{i}]"), value)?;
                match part.string("type")?.as_deref() {
                    Some("text") => text.push_str(&part.string("text")?.ok_or_else(|| part.missing("text"))?),
                    Some(other) => return Err(invalid_value(part.path("type"), other, "text")),
                    None => return Err(part.missing("type")),
                }
                part.finish(ignored);
            }
            text
        }
        Some(other) => return Err(invalid_type(path, "a string or an array of text parts", &other)),
    };
    prediction.finish(ignored);
    let end = (0..=PREDICTION_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    Ok((!text.is_empty()).then_some(text))
}
