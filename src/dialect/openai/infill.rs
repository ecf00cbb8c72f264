//! llama-server's `POST /infill`: text for the gap between `input_prefix` and `input_suffix`, in its answer's shape.

use super::format::constraint;
use super::lora::lora;
use super::native::Native;
use super::native_answer::{NativeStyle, settings};
use super::sampling::{Limit, sampling, stop, token_limit};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{CompletionRequest, Infill, Output, Prompt};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, too_many};
use crate::dialect::{Fault, Ignored, Read, Wanted};
use serde_json::Value;

/// Other files of one request; what does not fit the context is left out by the engine.
const EXTRA_MAX: usize = 1024;

pub fn infill_request(body: &[u8]) -> Result<Read<Native>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let infill = Infill {
        prefix: body.string("input_prefix")?.ok_or_else(|| body.missing("input_prefix"))?,
        suffix: body.string("input_suffix")?.ok_or_else(|| body.missing("input_suffix"))?,
        prompt: body.string("prompt")?.unwrap_or_default(),
        extra: extra(&mut body, &mut ignored)?,
    };
    let sampling = sampling(&mut body)?;
    let (field, constraint) = constraint(&mut body, &mut ignored)?.map(|asked| (asked.field, asked.constraint)).unzip();
    let (own, openai) = (token_limit(&mut body, "n_predict", 0)?, token_limit(&mut body, "max_tokens", 0)?);
    let n_probs = body.integer("n_probs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok());
    let stream = body.bool("stream")?.unwrap_or(false);
    let return_tokens = body.bool("return_tokens")?.unwrap_or(false);
    let output = Output {
        max_tokens: own.or(openai).and_then(Limit::tokens),
        stop: stop(&mut body)?,
        top_logprobs: n_probs.filter(|k| *k > 0),
        with_tokens: stream || return_tokens,
        constraint,
        ..Default::default()
    };
    check::output(&output)?;
    // Which slot answers is the scheduler's to say.
    body.accept(&["id_slot", "user"]);
    let style = NativeStyle {
        n: 1,
        wanted: Wanted::read(&mut body)?,
        settings: settings(&output, stream),
        ..Default::default()
    };
    let request = CompletionRequest {
        model: body.string("model")?,
        prompts: vec![Prompt::Infill(infill)],
        sampling,
        output,
        n: 1,
        best_of: 1,
        stream,
        include_usage: false,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        cache: cache(&mut body, &mut ignored)?,
    };
    body.finish(&mut ignored);
    Ok(Read { request: Native { request, biased_texts: Vec::new(), style, constraint: field }, ignored })
}

/// `[{"filename", "text"}]`.
fn extra(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<(String, String)>, Fault> {
    let values = body.array("input_extra")?.unwrap_or_default();
    if values.len() > EXTRA_MAX {
        return Err(too_many("input_extra", values.len(), EXTRA_MAX));
    }
    let file = |(i, value): (usize, Value)| {
        let mut file = Object::at(format!("input_extra[{i}]"), value)?;
        let text = file.string("text")?.ok_or_else(|| file.missing("text"))?;
        let name = file.string("filename")?.unwrap_or_else(|| "tmp".to_owned());
        file.accept(&["time"]);
        file.finish(ignored);
        Ok((name, text))
    };
    values.into_iter().enumerate().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(more: Value) -> Result<CompletionRequest, Fault> {
        let mut body = json!({"input_prefix":"a","input_suffix":"b"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        infill_request(body.to_string().as_bytes()).map(|read| read.request.request)
    }

    fn read(more: Value) -> Result<Prompt, Fault> {
        request(more).map(|mut request| request.prompts.remove(0))
    }

    #[test]
    fn a_gap_has_two_sides_and_files_around_it() {
        let files = json!([{"filename":"x.h","text":"int x;"},{"text":"y"}]);
        let extra = vec![("x.h".to_owned(), "int x;".to_owned()), ("tmp".to_owned(), "y".to_owned())];
        let expected = Infill { prefix: "a".into(), suffix: "b".into(), prompt: "c".into(), extra };
        assert_eq!(read(json!({"prompt":"c","input_extra":files})), Ok(Prompt::Infill(expected)));
        for (more, param) in [
            (json!({"input_prefix":null}), "input_prefix"),
            (json!({"input_suffix":5}), "input_suffix"),
            (json!({"prompt":[1]}), "prompt"),
            (json!({"input_extra":{}}), "input_extra"),
            (json!({"input_extra":[{}]}), "input_extra[0].text"),
            (json!({"input_extra":[{"filename":"ok"}]}), "input_extra[0].text"),
            (json!({"input_extra":[{"filename":123,"text":"abc"}]}), "input_extra[0].filename"),
            (json!({"input_extra":[{"filename":"a","text":456}]}), "input_extra[0].text"),
            (json!({"n_probs":21}), "n_probs"),
        ] {
            assert_eq!(read(more).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn limits_have_llama_servers_name() {
        let limit = |more: Value| request(more).unwrap().output.max_tokens;
        assert_eq!(
            (limit(json!({})), limit(json!({"n_predict":5})), limit(json!({"n_predict":-1}))),
            (None, Some(5), None)
        );
    }
}
