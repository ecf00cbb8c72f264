//! llama-server's `POST /infill`: text for the gap between `input_prefix` and `input_suffix`, in its answer's shape.

use super::completion::Completion;
use super::completion::TextStyle;
use super::format::constraint;
use super::lora::lora;
use super::sampling::{Limit, sampling, stop, token_limit};
use super::stream::write_problem;
use super::to_wire::json;
use crate::chat::check;
use crate::chat::{CompletionRequest, Delta, Finish, Infill, Output, Prompt, Usage};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, too_many};
use crate::dialect::{Answer, Chunks, Fault, Ignored, Problem, Read};
use crate::engine::Done;
use serde_json::{Value, json};

/// Other files of one request; what does not fit the context is left out by the engine.
const EXTRA_MAX: usize = 1024;

pub fn infill_request(body: &[u8]) -> Result<Read<Completion>, Fault> {
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
    if body.integer("n_probs", 0, i64::MAX)?.is_some_and(|n| n > 0) {
        return Err(body.unsupported("n_probs", "ask /v1/completions with logprobs"));
    }
    let output = Output {
        max_tokens: own.or(openai).and_then(Limit::tokens),
        stop: stop(&mut body)?,
        constraint,
        ..Default::default()
    };
    check::output(&output)?;
    // Which slot answers is the scheduler's to say.
    body.accept(&["id_slot", "user"]);
    let request = CompletionRequest {
        model: body.string("model")?,
        prompts: vec![Prompt::Infill(infill)],
        sampling,
        output,
        n: 1,
        best_of: 1,
        stream: body.bool("stream")?.unwrap_or(false),
        include_usage: false,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        cache: cache(&mut body, &mut ignored)?,
    };
    body.finish(&mut ignored);
    Ok(Read { request: Completion { request, style: TextStyle::default(), constraint: field }, ignored })
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

/// The last word about an answer: the whole of it, or the end of a stream (whose `content` is empty).
fn ending(content: &str, has_new_line: bool, model: &str, finish: &Finish, usage: &Usage) -> Value {
    let (stop_type, stopping_word) = match finish {
        Finish::EndOfTurn => ("eos", ""),
        Finish::StopString(text) => ("word", text.as_str()),
        Finish::Length => ("limit", ""),
    };
    json!({
        "index": 0,
        "content": content,
        "tokens": [],
        "id_slot": -1,
        "stop": true,
        "model": model,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "has_new_line": has_new_line,
        "truncated": false,
        "stop_type": stop_type,
        "stopping_word": stopping_word,
    })
}

pub fn infill_response(model: &str, answer: &Answer, usage: &Usage) -> Vec<u8> {
    json(&ending(&answer.content, answer.content.contains('\n'), model, &answer.finish, usage))
}

/// Chunks of `/infill`; the last one says how it ended, and no `[DONE]` follows.
pub struct InfillChunks {
    model: String,
    n_tokens: u32,
    has_new_line: bool,
}

impl InfillChunks {
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), n_tokens: 0, has_new_line: false }
    }
}

fn event(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend(json(value));
    out.extend_from_slice(b"\n\n");
}

impl Chunks for InfillChunks {
    /// There is nothing to announce.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn delta(&mut self, _choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.n_tokens += delta.n_tokens;
        self.has_new_line |= delta.content.contains('\n');
        if !delta.content.is_empty() {
            let n_tokens = self.n_tokens;
            let chunk = json!({ "index": 0, "content": delta.content, "tokens": [], "stop": false, "id_slot": -1,
                "tokens_predicted": n_tokens });
            event(&chunk, out);
        }
    }

    fn finish(&mut self, _choice: usize, done: &Done, out: &mut Vec<u8>) {
        event(&ending("", self.has_new_line, &self.model, &done.finish, &done.usage), out);
    }

    fn end(&mut self, _usage: &Usage, _out: &mut Vec<u8>) {}

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (json!({"n_probs":2}), "n_probs"),
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
