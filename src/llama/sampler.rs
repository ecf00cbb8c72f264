//! llama.cpp's sampler chain.

use super::error::Error;
use super::model::Model;
use super::sys;
use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::sync::Arc;

/// The values of `common_params_sampling` (common/common.h) that hearth sets; ranges are the caller's business.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    pub seed: u32,
    pub min_keep: i32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    pub top_n_sigma: f32,
    pub xtc_probability: f32,
    pub xtc_threshold: f32,
    pub temperature: f32,
    pub dynatemp_range: f32,
    pub dynatemp_exponent: f32,
    pub penalty_last_n: i32,
    pub penalty_repeat: f32,
    pub penalty_frequency: f32,
    pub penalty_presence: f32,
    pub dry_multiplier: f32,
    pub dry_base: f32,
    pub dry_allowed_length: i32,
    pub dry_penalty_last_n: i32,
    pub mirostat: i32,
    pub mirostat_tau: f32,
    pub mirostat_eta: f32,
    pub ignore_eos: bool,
    pub dry_breakers: Vec<String>,
    pub logit_bias: Vec<(i32, f32)>,
    /// Names of `common_sampler_types_from_names`, in order.
    pub samplers: Vec<&'static str>,
}

/// A grammar of the answer, and when it begins to hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grammar {
    pub gbnf: String,
    /// Lazy where there are any: it holds from the first match on, thinking excepted.
    pub triggers: Vec<Trigger>,
    /// Tokens that are part of the format.
    pub preserved: Vec<i32>,
    /// The end of the prompt, which tells whether thinking is open.
    pub generation_prompt: String,
    pub thinking_start: String,
    pub thinking_ends: Vec<String>,
}

/// What makes a lazy grammar hold. Source: common_grammar_trigger, common/common.h.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Trigger {
    pub kind: i32,
    pub value: String,
}

impl Trigger {
    pub const WORD: i32 = 1;

    /// The grammar holds behind `text`, not with it; only with others of this kind.
    pub fn behind(text: &str) -> Self {
        Self { kind: sys::HEARTH_TRIGGER_BEHIND.cast_signed(), value: text.to_owned() }
    }
}

/// A request's chain with its random state, and its grammar.
#[derive(Debug)]
pub struct Sampler {
    raw: NonNull<sys::hearth_sampler>,
    /// The chain points into the vocabulary.
    _model: Arc<Model>,
}

// SAFETY: neither a chain nor a grammar has thread-local state, and no two share anything but the vocabulary, which is only
// read; each is used by one thread at a time, which `&mut self` ensures.
unsafe impl Send for Sampler {}

impl SamplerParams {
    /// Calls `make` with these parameters as the shim reads them, which it copies.
    fn with_raw<T>(
        &self,
        grammar: Option<&Grammar>,
        make: impl FnOnce(*const sys::hearth_sampler_params) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let params = self;
        let c_texts = |texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>, Error> {
            let texts =
                texts.map(|text| CString::new(text).map_err(|_| Error::Invalid("a text holds a NUL byte".into())));
            texts.collect()
        };
        let breakers = c_texts(&mut params.dry_breakers.iter().map(String::as_str))?;
        let samplers = c_texts(&mut params.samplers.iter().copied())?;
        let breakers_raw: Vec<*const c_char> = breakers.iter().map(|text| text.as_ptr()).collect();
        let samplers_raw: Vec<*const c_char> = samplers.iter().map(|text| text.as_ptr()).collect();
        let bias: Vec<sys::llama_logit_bias> = params
            .logit_bias
            .iter()
            .map(|(token, bias)| sys::llama_logit_bias { token: *token, bias: *bias })
            .collect();
        let none = Grammar::default();
        let rules = grammar.unwrap_or(&none);
        let rule_texts = [&rules.gbnf, &rules.generation_prompt, &rules.thinking_start];
        let rule_texts = c_texts(&mut rule_texts.into_iter().map(String::as_str))?;
        let values = c_texts(&mut rules.triggers.iter().map(|trigger| trigger.value.as_str()))?;
        let triggers: Vec<sys::hearth_trigger> = (rules.triggers.iter().zip(&values))
            .map(|(trigger, value)| sys::hearth_trigger { kind: trigger.kind, value: value.as_ptr() })
            .collect();
        let thinking_ends = c_texts(&mut rules.thinking_ends.iter().map(String::as_str))?;
        let thinking_ends_raw: Vec<*const c_char> = thinking_ends.iter().map(|text| text.as_ptr()).collect();
        let raw_params = sys::hearth_sampler_params {
            seed: params.seed,
            min_keep: params.min_keep,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            typical_p: params.typical_p,
            top_n_sigma: params.top_n_sigma,
            xtc_probability: params.xtc_probability,
            xtc_threshold: params.xtc_threshold,
            temperature: params.temperature,
            dynatemp_range: params.dynatemp_range,
            dynatemp_exponent: params.dynatemp_exponent,
            penalty_last_n: params.penalty_last_n,
            penalty_repeat: params.penalty_repeat,
            penalty_frequency: params.penalty_frequency,
            penalty_presence: params.penalty_presence,
            dry_multiplier: params.dry_multiplier,
            dry_base: params.dry_base,
            dry_allowed_length: params.dry_allowed_length,
            dry_penalty_last_n: params.dry_penalty_last_n,
            mirostat: params.mirostat,
            mirostat_tau: params.mirostat_tau,
            mirostat_eta: params.mirostat_eta,
            ignore_eos: params.ignore_eos,
            dry_breakers: breakers_raw.as_ptr(),
            n_dry_breakers: breakers_raw.len(),
            logit_bias: bias.as_ptr(),
            n_logit_bias: bias.len(),
            samplers: samplers_raw.as_ptr(),
            n_samplers: samplers_raw.len(),
            grammar: if grammar.is_some() { rule_texts[0].as_ptr() } else { std::ptr::null() },
            triggers: triggers.as_ptr(),
            n_triggers: triggers.len(),
            preserved: rules.preserved.as_ptr(),
            n_preserved: rules.preserved.len(),
            generation_prompt: rule_texts[1].as_ptr(),
            thinking_start: rule_texts[2].as_ptr(),
            thinking_ends: thinking_ends_raw.as_ptr(),
            n_thinking_ends: thinking_ends_raw.len(),
        };
        make(&raw const raw_params)
    }
}

impl Sampler {
    /// Errors: `Invalid` for a value that llama.cpp itself refuses. Source: common_sampler_init, common/sampling.h.
    pub fn new(model: &Arc<Model>, params: &SamplerParams, grammar: Option<&Grammar>) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        params.with_raw(grammar, |params| {
            // SAFETY: every array outlives the call and is described by its length; the shim copies them.
            sys::call(|err| unsafe { sys::hearth_sampler_new(model.as_ptr(), params, &raw mut raw, err) })
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no sampler and no error".into()))?;
        Ok(Self { raw, _model: Arc::clone(model) })
    }

    /// Shows it tokens of the prompt, which penalties count.
    pub fn accept(&mut self, tokens: &[i32]) -> Result<(), Error> {
        // SAFETY: the array is described by its length.
        sys::call(|err| unsafe {
            sys::hearth_sampler_accept(self.raw.as_ptr(), tokens.as_ptr(), tokens.len(), false, err)
        })
    }

    /// Shows it a token of the answer that it did not choose. Errors: the grammar doesn't allow it.
    pub fn follow(&mut self, token: i32) -> Result<(), Error> {
        // SAFETY: one token.
        sys::call(|err| unsafe { sys::hearth_sampler_accept(self.raw.as_ptr(), &raw const token, 1, true, err) })
    }

    /// Chooses from a row, of the tokens whose bits are set in the mask and that the grammar allows, and accepts the choice.
    ///
    /// Shapes: n_vocab logits; a bit for each in the mask. Errors: `Invalid` with a short mask, or where nothing is allowed.
    /// Source: common_sampler_sample, common/sampling.h.
    pub fn choose(&mut self, row: &[f32], mask: Option<&[u32]>) -> Result<i32, Error> {
        if mask.is_some_and(|mask| mask.len() * 32 < row.len()) {
            return Err(Error::Invalid("the mask is too short".into()));
        }
        let mask = mask.map_or(std::ptr::null(), <[u32]>::as_ptr);
        let mut token = 0;
        // SAFETY: the row is described by its length, and the mask has a bit for each of it.
        sys::call(|err| unsafe {
            sys::hearth_sampler_choose(self.raw.as_ptr(), row.as_ptr(), row.len(), mask, &raw mut token, err)
        })?;
        Ok(token)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::hearth_sampler_free(self.raw.as_ptr()) }
    }
}

/// llama.cpp's own sampler of the same parameters, which chooses in the context: what `Sampler` is held to.
#[cfg(test)]
pub struct Reference {
    raw: NonNull<sys::hearth_reference>,
    _model: Arc<Model>,
}

#[cfg(test)]
impl Reference {
    pub fn new(model: &Arc<Model>, params: &SamplerParams, grammar: Option<&Grammar>) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        params.with_raw(grammar, |params| {
            // SAFETY: as in `Sampler::new`.
            sys::call(|err| unsafe { sys::hearth_reference_new(model.as_ptr(), params, &raw mut raw, err) })
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no sampler and no error".into()))?;
        Ok(Self { raw, _model: Arc::clone(model) })
    }

    pub fn accept(&mut self, tokens: &[i32]) -> Result<(), Error> {
        // SAFETY: the array is described by its length.
        sys::call(|err| unsafe { sys::hearth_reference_accept(self.raw.as_ptr(), tokens.as_ptr(), tokens.len(), err) })
    }

    /// Chooses from output row `row` of the context's last decode, and accepts the choice.
    pub fn sample(&mut self, context: &mut super::Context, row: i32) -> Result<i32, Error> {
        let mut token = 0;
        // SAFETY: both objects live and are used by this thread only.
        sys::call(|err| unsafe {
            sys::hearth_reference_sample(self.raw.as_ptr(), context.as_ptr(), row, &raw mut token, err)
        })?;
        Ok(token)
    }
}

#[cfg(test)]
impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::hearth_reference_free(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::speculator::tests::model;
    use super::*;

    /// Of the demo model.
    const N_VOCAB: usize = 2048;

    /// Greedy, with a grammar that waits for a text.
    struct Said {
        model: Arc<Model>,
        sampler: Sampler,
    }

    impl Said {
        fn new(texts: &[&str], gbnf: &str) -> Self {
            let params = SamplerParams {
                seed: 1,
                min_keep: 0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                typical_p: 1.0,
                top_n_sigma: -1.0,
                xtc_probability: 0.0,
                xtc_threshold: 0.1,
                temperature: 0.0,
                dynatemp_range: 0.0,
                dynatemp_exponent: 1.0,
                penalty_last_n: 64,
                penalty_repeat: 1.0,
                penalty_frequency: 0.0,
                penalty_presence: 0.0,
                dry_multiplier: 0.0,
                dry_base: 1.75,
                dry_allowed_length: 2,
                dry_penalty_last_n: 0,
                mirostat: 0,
                mirostat_tau: 5.0,
                mirostat_eta: 0.1,
                ignore_eos: false,
                dry_breakers: Vec::new(),
                logit_bias: Vec::new(),
                samplers: vec!["temperature"],
            };
            let triggers = texts.iter().map(|text| Trigger::behind(text)).collect();
            let grammar = Grammar { gbnf: gbnf.to_owned(), triggers, ..Grammar::default() };
            let model = model("hearth-demo");
            let sampler = Sampler::new(&model, &params, Some(&grammar)).expect("a sampler");
            Self { model, sampler }
        }

        fn tokens(&self, text: &str) -> Vec<i32> {
            self.model.tokenize(text, false, true).expect("tokens")
        }

        /// What is chosen where the model would say the one token of `text`.
        fn say(&mut self, text: &str) -> Result<String, Error> {
            let tokens = self.tokens(text);
            assert_eq!(tokens.len(), 1, "{text:?} is one token");
            let mut row = vec![0.0; N_VOCAB];
            row[usize::try_from(tokens[0]).expect("an id")] = 9.0;
            let token = self.sampler.choose(&row, None)?;
            Ok(String::from_utf8_lossy(&self.model.piece(token)).into_owned())
        }

        fn holds(&mut self) -> bool {
            self.say("b").expect("a token").bytes().all(|byte| byte.is_ascii_digit())
        }
    }

    #[test]
    fn a_grammar_holds_behind_the_text_that_it_waits_for() {
        let mut said = Said::new(&["<end>", "}"], "root ::= [0-9]+");
        assert!(!said.holds());
        assert_eq!(said.say("}").expect("a token"), "}");
        assert!(said.holds());
        // Of tokens that were forced, and in parts.
        let mut said = Said::new(&["}", "<end>"], "root ::= [0-9]+");
        let tokens = said.tokens("a <end <end>");
        assert!(tokens.len() > 3);
        for token in tokens {
            said.sampler.follow(token).expect("any token");
        }
        assert!(said.holds());
    }

    #[test]
    fn what_stands_in_the_same_token_is_the_grammars_but_for_line_breaks() {
        let mut said = Said::new(&[">"], "root ::= [0-9]+");
        assert_eq!(said.say(">\n\n").expect("a token"), ">\n\n");
        assert!(said.holds());
        let mut said = Said::new(&["}"], r#"root ::= "}" [0-9]+"#);
        assert_eq!(said.say("}}").expect("a token"), "}}");
        assert!(said.holds());
        assert!(Said::new(&["}"], "root ::= [0-9]+").say("}}").is_err(), "the grammar can't go on");
    }

    /// A pattern of llama.cpp's would be a call deeper for each of these characters.
    #[test]
    fn a_grammar_may_wait_behind_a_long_thought() {
        let mut said = Said::new(&["<end>"], "root ::= [0-9]+");
        let thought = said.tokens(&"And then I think of another thing. ".repeat(100));
        for token in thought.iter().cycle().take(100_000) {
            said.sampler.follow(*token).expect("any token");
        }
        assert!(!said.holds());
        for token in said.tokens("<end>") {
            said.sampler.follow(token).expect("any token");
        }
        assert!(said.holds());
    }
}
