//! The answers of llama-server's own `/completion` and `/infill`, whole and streamed.

use super::logprobs::number;
use super::stream::write_problem;
use super::to_wire::json;
use crate::chat::{Delta, Finish, Mirostat, Output, SamplerKind, SamplingParams, TokenLogprob, Usage};
use crate::dialect::{Answer, Chunks, Problem, Wanted, watch};
use crate::engine::{Done, Timings};
use serde_json::{Map, Value, json};

/// How an answer is written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NativeStyle {
    /// Choices of each prompt.
    pub n: usize,
    /// Texts of the prompts.
    pub prompts: Vec<String>,
    /// Paths of the fields that a whole answer has; none: all.
    pub fields: Vec<String>,
    pub wanted: Wanted,
    /// What the request said of its output, as llama-server's `generation_settings` has it.
    pub settings: Map<String, Value>,
    /// As it was settled; known once the model is, like the size of its context.
    pub sampling: SamplingParams,
    pub n_ctx: u32,
}

/// The part of `generation_settings` that is no sampling.
pub(super) fn settings(output: &Output, stream: bool) -> Map<String, Value> {
    let n_predict = output.max_tokens.map_or(-1, i64::from);
    let settings = json!({
        "n_predict": n_predict,
        "max_tokens": n_predict,
        "stream": stream,
        "stop": output.stop,
        "n_probs": output.top_logprobs.unwrap_or(0),
        "n_keep": 0,
        "n_discard": 0,
        "post_sampling_probs": false,
    });
    settings.as_object().cloned().unwrap_or_default()
}

/// Names as llama-server's `params`.
pub fn sampling_settings(p: &SamplingParams) -> Value {
    json!({
        "seed": p.seed,
        "temperature": p.temperature,
        "dynatemp_range": p.dynatemp_range,
        "dynatemp_exponent": p.dynatemp_exponent,
        "top_k": p.top_k,
        "top_p": p.top_p,
        "min_p": p.min_p,
        "typical_p": p.typical_p,
        "top_n_sigma": p.top_n_sigma,
        "xtc_probability": p.xtc_probability,
        "xtc_threshold": p.xtc_threshold,
        "repeat_last_n": p.repeat_last_n,
        "repeat_penalty": p.repeat_penalty,
        "presence_penalty": p.presence_penalty,
        "frequency_penalty": p.frequency_penalty,
        "dry_multiplier": p.dry_multiplier,
        "dry_base": p.dry_base,
        "dry_allowed_length": p.dry_allowed_length,
        "dry_penalty_last_n": p.dry_penalty_last_n,
        "dry_sequence_breakers": p.dry_sequence_breakers,
        "mirostat": match p.mirostat { Mirostat::Off => 0, Mirostat::V1 => 1, Mirostat::V2 => 2 },
        "mirostat_tau": p.mirostat_tau,
        "mirostat_eta": p.mirostat_eta,
        "min_keep": p.min_keep,
        // llama.cpp's adaptive sampling is not among the samplers here: off.
        "adaptive_target": -1.0,
        "adaptive_decay": 0.0,
        "ignore_eos": p.ignore_eos,
        "samplers": p.samplers.iter().map(|kind| SamplerKind::name(*kind)).collect::<Vec<_>>(),
    })
}

/// One entry a token. `top_logprobs` is what `n_probs` asked for.
fn probabilities(entries: &[TokenLogprob]) -> Value {
    let token = |id: i32, bytes: &[u8], logprob: f32| json!({ "id": id, "token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": number(logprob) });
    let entry = |entry: &TokenLogprob| {
        let mut value = token(entry.id, &entry.bytes, entry.logprob);
        value["top_logprobs"] = entry.top.iter().map(|it| token(it.id, &it.bytes, it.logprob)).collect();
        value
    };
    entries.iter().map(entry).collect()
}

/// What is said of a choice at its end.
struct Ending<'a> {
    finish: &'a Finish,
    usage: &'a Usage,
    timings: &'a Timings,
    has_new_line: bool,
}

impl NativeStyle {
    /// The last word about a choice: the whole of it, or the end of a stream (whose `content` is empty).
    fn ending(&self, choice: usize, model: &str, content: &str, ending: &Ending) -> Value {
        let (stop_type, stopping_word) = match ending.finish {
            Finish::EndOfTurn => ("eos", ""),
            Finish::StopString(text) => ("word", text.as_str()),
            Finish::Length => ("limit", ""),
            Finish::Filtered => ("content_filter", ""),
        };
        let mut settings = sampling_settings(&self.sampling);
        if let Some(fields) = settings.as_object_mut() {
            fields.extend(self.settings.clone());
        }
        let usage = ending.usage;
        let mut value = json!({
            "index": choice,
            "content": content,
            "tokens": [],
            "id_slot": -1,
            "stop": true,
            "model": model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "generation_settings": settings,
            "prompt": self.prompts.get(choice / self.n.max(1)).map_or("", String::as_str),
            "has_new_line": ending.has_new_line,
            // The context was full before anything else ended the answer.
            "truncated": *ending.finish == Finish::Length && usage.prompt_tokens + usage.completion_tokens >= self.n_ctx,
            "stop_type": stop_type,
            "stopping_word": stopping_word,
        });
        if !self.wanted.timings_per_token {
            value["timings"] = watch::timings(usage, 1, ending.timings);
        }
        value
    }

    fn whole(&self, choice: usize, model: &str, answer: &Answer) -> Value {
        let has_new_line = answer.content.contains('\n');
        let ending = Ending { finish: &answer.finish, usage: &answer.usage, timings: &answer.timings, has_new_line };
        let mut value = self.ending(choice, model, &answer.content, &ending);
        value["tokens"] = answer.tokens.as_slice().into();
        value["timings"] = watch::timings(&answer.usage, 1, &answer.timings);
        if !answer.logprobs.is_empty() {
            value["completion_probabilities"] = probabilities(&answer.logprobs);
        }
        self.cut(value)
    }

    /// The fields that were asked for, each under its path.
    fn cut(&self, value: Value) -> Value {
        if self.fields.is_empty() {
            return value;
        }
        let at = |path: &String| path.split('/').try_fold(&value, |value, key| value.get(key)).cloned();
        self.fields.iter().filter_map(|path| Some((path.clone(), at(path)?))).collect::<Map<_, _>>().into()
    }
}

/// One object, or an array of them where the request has several choices.
pub fn native_response(model: &str, answers: &[Answer], style: &NativeStyle) -> Vec<u8> {
    match answers {
        [one] => json(&style.whole(0, model, one)),
        several => {
            let all = several.iter().enumerate().map(|(choice, answer)| style.whole(choice, model, answer));
            json(&all.collect::<Vec<Value>>())
        }
    }
}

/// Chunks of both endpoints; the last one of each choice says how it ended, and no `[DONE]` follows.
pub struct NativeChunks {
    model: String,
    style: NativeStyle,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    n_tokens: u32,
    has_new_line: bool,
    /// Tokens whose text has not come out yet.
    tokens: Vec<i32>,
    entries: Vec<TokenLogprob>,
}

impl NativeChunks {
    pub fn new(model: &str, n_choices: usize, style: NativeStyle) -> Self {
        Self { model: model.to_owned(), style, choices: vec![Choice::default(); n_choices] }
    }
}

fn event(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend(json(value));
    out.extend_from_slice(b"\n\n");
}

fn chunk(choice: usize, content: &str, state: &mut Choice) -> Value {
    let mut chunk = json!({
        "index": choice,
        "content": content,
        "tokens": std::mem::take(&mut state.tokens),
        "stop": false,
        "id_slot": -1,
        "tokens_predicted": state.n_tokens,
    });
    if !state.entries.is_empty() {
        chunk["completion_probabilities"] = probabilities(&std::mem::take(&mut state.entries));
    }
    chunk
}

impl Chunks for NativeChunks {
    /// There is nothing to announce.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn progress(&mut self, choice: usize, _counts: [u32; 3], out: &mut Vec<u8>) {
        event(&chunk(choice, "", &mut Choice::default()), out);
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice) else { return };
        state.n_tokens = state.n_tokens.saturating_add(delta.n_tokens);
        state.has_new_line |= delta.content.contains('\n');
        state.tokens.extend(&delta.tokens);
        state.entries.extend(delta.logprobs.iter().cloned());
        if !delta.content.is_empty() {
            event(&chunk(choice, &delta.content, state), out);
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice) else { return };
        let (usage, timings) = (&done.usage, &done.timings);
        let ending = Ending { finish: &done.finish, usage, timings, has_new_line: state.has_new_line };
        let mut last = self.style.ending(choice, &self.model, "", &ending);
        last["tokens"] = std::mem::take(&mut state.tokens).into();
        if !state.entries.is_empty() {
            last["completion_probabilities"] = probabilities(&std::mem::take(&mut state.entries));
        }
        event(&last, out);
    }

    fn end(&mut self, _usage: &Usage, _out: &mut Vec<u8>) {}

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Likely;

    fn parse(out: &[u8]) -> Vec<Value> {
        let events = std::str::from_utf8(out).unwrap().split_terminator("\n\n");
        events.map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    #[test]
    fn tokens_without_text_wait_for_it() {
        let mut chunks = NativeChunks::new("m", 1, NativeStyle::default());
        let mut out = Vec::new();
        for (content, tokens) in [("", vec![7]), ("é\n", vec![8]), ("", vec![9])] {
            let delta = Delta { content: content.into(), n_tokens: 1, tokens, ..Default::default() };
            chunks.delta(0, &delta, &mut out);
        }
        let usage = Usage { prompt_tokens: 4, completion_tokens: 3, ..Default::default() };
        chunks.finish(0, &Done { finish: Finish::Length, usage, timings: Timings::default() }, &mut out);
        let events = parse(&out);
        assert_eq!(events.len(), 2);
        assert_eq!((&events[0]["tokens"], &events[0]["stop"]), (&json!([7, 8]), &json!(false)));
        assert_eq!((&events[1]["tokens"], &events[1]["has_new_line"]), (&json!([9]), &json!(true)));
        assert_eq!((&events[1]["timings"]["predicted_n"], &events[1]["stop_type"]), (&json!(3), &json!("limit")));
    }

    #[test]
    fn a_whole_answer_has_what_was_asked_for() {
        let top = vec![Likely { id: 5, bytes: b"b".to_vec(), logprob: -0.25 }];
        let entry = TokenLogprob { id: 4, bytes: b"a".to_vec(), logprob: -1.5, top };
        let answer = Answer { content: "a".into(), tokens: vec![4], logprobs: vec![entry], ..Default::default() };
        let style = NativeStyle { n: 1, prompts: vec!["p".into(), "q".into()], n_ctx: 64, ..Default::default() };
        let read = |answers: &[Answer], style: &NativeStyle| -> Value {
            serde_json::from_slice(&native_response("m", answers, style)).unwrap()
        };
        let one = read(std::slice::from_ref(&answer), &style);
        assert_eq!((&one["tokens"], &one["prompt"], &one["stop"]), (&json!([4]), &json!("p"), &json!(true)));
        let expected = json!([{"id": 4, "token": "a", "bytes": [97], "logprob": -1.5,
            "top_logprobs": [{"id": 5, "token": "b", "bytes": [98], "logprob": -0.25}]}]);
        assert_eq!(one["completion_probabilities"], expected);
        let two = read(&[answer.clone(), answer.clone()], &style);
        assert_eq!((&two[1]["index"], &two[1]["prompt"]), (&json!(1), &json!("q")));
        let fields = vec!["content".into(), "generation_settings/temperature".into(), "nothing".into()];
        let cut = read(&[answer], &NativeStyle { fields, ..style });
        assert_eq!(cut.as_object().unwrap().keys().collect::<Vec<_>>(), ["content", "generation_settings/temperature"]);
    }
}
