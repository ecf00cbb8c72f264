//! Choosing for several slots at once, held to llama.cpp's own sampler.

use super::super::{Grammar, Listener, Model as _, Place, Trigger, llama::LlamaModel};
use super::*;
use crate::chat::{Mirostat, SamplerKind, SamplingParams};
use crate::engine::EngineConfig;
use crate::engine::config::ModelSource;
use std::path::Path;
use std::sync::Arc;

const N_SLOTS: u32 = 8;

/// Holds in each row.
struct Mask<'a>(&'a [u32]);

impl Listener for Mask<'_> {
    fn place(&self, _at: usize) -> Option<Place<'_>> {
        Some(Place::Chosen(Some(self.0)))
    }

    fn take(&mut self, _: &mut Vec<Result<Chosen, String>>, _: &mut dyn FnMut(Token) -> Result<(), String>) {}
}

fn pick<'a, S>(
    row: usize,
    draft: &'a [Token],
    sampler: &'a mut S,
    mask: &'a mut Option<Mask<'_>>,
    top: Option<(usize, &'a [(Token, f32)])>,
) -> Pick<'a, S> {
    let listener = mask.as_mut().map(|mask| mask as &mut dyn Listener);
    Pick { row, draft, sampler, listener, top, chosen: Vec::new() }
}

/// Kinds of `sampling`.
const N_KINDS: u32 = 26;
/// The kind that penalises nearly all tokens.
const LONG_MEMORY: u32 = 24;

fn sampling(slot: u32, kind: u32) -> SamplingParams {
    let plain = SamplingParams { seed: slot * 31 + 7, temperature: 1.0, ..SamplingParams::default() };
    match kind {
        0 => plain,
        1 => SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, ..plain },
        2 => SamplingParams { top_k: 0, top_p: 0.7, repeat_penalty: 1.3, presence_penalty: 0.5, ..plain },
        3 => SamplingParams { mirostat: Mirostat::V2, ..plain },
        4 => SamplingParams { logit_bias: vec![(300, 4.0), (301, f32::NEG_INFINITY)], ..plain },
        5 => SamplingParams { temperature: 0.0, ..plain },
        6 => SamplingParams { logit_bias: (280..310).map(|id| (id, (id - 295) as f32)).collect(), top_k: 5, ..plain },
        // EOS has two biases.
        7 => SamplingParams { logit_bias: vec![(2, 9.0), (300, 2.0)], ignore_eos: true, top_k: 5, ..plain },
        8..=15 => greedy(SamplingParams { temperature: 0.0, ..plain }, kind - 8),
        _ => penalised(plain, kind - 16),
    }
}

/// Chains whose penalties move some of the candidates.
fn penalised(plain: SamplingParams, kind: u32) -> SamplingParams {
    use SamplerKind::{Penalties, Temperature, TopK, TopP};
    let penalties =
        SamplingParams { repeat_penalty: 1.3, frequency_penalty: 0.5, presence_penalty: 0.5, ..plain.clone() };
    let rewards = SamplingParams { frequency_penalty: -0.8, presence_penalty: -0.5, ..plain };
    let greedy = |params: SamplingParams| SamplingParams { temperature: 0.0, ..params };
    // 60 and 61 stand in the prompt, 62 does not.
    let bias = vec![(60, 5.0), (61, f32::NEG_INFINITY), (62, 3.0), (300, 4.0)];
    match kind {
        0 => penalties,
        1 => rewards,
        2 => greedy(penalties),
        3 => greedy(rewards),
        4 => SamplingParams { logit_bias: bias, top_k: 5, ..penalties },
        5 => greedy(SamplingParams { logit_bias: bias, ignore_eos: true, ..penalties }),
        // Tokens leave the window.
        6 => SamplingParams { repeat_last_n: 2, top_k: 3, ..penalties },
        // What drops some comes first.
        7 => greedy(SamplingParams { samplers: vec![TopP, Penalties, Temperature], top_p: 0.5, ..penalties }),
        8 => SamplingParams { repeat_last_n: 500, ..penalties },
        _ => SamplingParams { samplers: vec![Penalties, TopK, Penalties, Temperature], top_k: 4, ..rewards },
    }
}

/// Chains of temperature 0 that end with the greatest logit, and such as don't.
fn greedy(plain: SamplingParams, kind: u32) -> SamplingParams {
    use SamplerKind::{Penalties, Temperature, TopK};
    match kind {
        0 => SamplingParams { top_n_sigma: 1.0, logit_bias: vec![(300, 4.0), (301, -2.0)], ..plain },
        1 => SamplingParams { typical_p: 0.3, ..plain },
        2 => SamplingParams { xtc_probability: 0.7, xtc_threshold: 0.05, ..plain },
        3 => SamplingParams { samplers: vec![TopK, Penalties, Temperature], repeat_penalty: 1.8, top_k: 3, ..plain },
        4 => SamplingParams { dynatemp_range: 1.5, ..plain },
        5 => SamplingParams { dry_multiplier: 2.0, dry_allowed_length: 1, ..plain },
        6 => SamplingParams { samplers: vec![TopK], top_k: 4, ..plain },
        _ => SamplingParams { samplers: vec![Temperature, TopK], ignore_eos: true, ..plain },
    }
}

fn loaded(n_threads: u32) -> (Arc<LlamaModel>, LlamaContext) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories260K.gguf");
    let mut config = EngineConfig::new(ModelSource::Gguf(path.clone()));
    (config.n_threads, config.n_slots, config.n_ctx) = (Some(n_threads), N_SLOTS, Some(512));
    let model = Arc::new(LlamaModel::load(&path, &config, |_| {}).expect("a model"));
    let context = model.context(&config, Arc::new(|| false)).expect("a context");
    (model, context)
}

/// Chooses as llama.cpp's own sampler does, in the context.
fn sample(
    context: &mut LlamaContext,
    row: usize,
    theirs: &mut llama::Reference,
    mask: Option<&[u32]>,
) -> Result<Token, String> {
    let raw = context.logits(row).expect("a row").to_vec();
    let place = context.place(row);
    for (token, logit) in context.context.logits_mut(place).expect("a row").iter_mut().enumerate() {
        if mask.is_some_and(|mask| mask[token / 32] >> (token % 32) & 1 == 0) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let token = theirs.sample(&mut context.context, place).map_err(|error| error.to_string());
    context.context.logits_mut(place).expect("a row").copy_from_slice(&raw);
    token
}

/// Slots that choose together, on all threads, choose what llama.cpp's own sampler chooses for each, with masks, drafts
/// and log-probabilities. Answers what each slot said behind the first token.
fn choose_both_ways(
    (model, context): (&LlamaModel, &mut LlamaContext),
    (kind, n_steps): (u32, u32),
    grammar: impl Fn(u32) -> Option<Grammar>,
    mask: &[u32],
) -> Vec<Vec<Token>> {
    let prompt: Vec<Token> = if kind == LONG_MEMORY { (1..500).collect() } else { vec![1, 60, 61] };
    let sampler = |slot| model.sampler(&sampling(slot, kind), &prompt, grammar(slot).as_ref()).expect("a sampler");
    let theirs = |slot| model.reference(&sampling(slot, kind), &prompt, grammar(slot).as_ref()).expect("a sampler");
    let mut samplers: Vec<_> = (0..N_SLOTS).map(sampler).collect();
    let mut references: Vec<_> = (0..N_SLOTS).map(theirs).collect();
    let mut last: Vec<Token> = (0..N_SLOTS).map(|slot| (60 + slot * 9).cast_signed()).collect();
    let mut said = vec![Vec::new(); N_SLOTS as usize];
    for pos in 0..n_steps {
        let row = |seq: u32| Row { token: last[seq as usize], pos, seq, output: true };
        context.decode(&(0..N_SLOTS).map(row).collect::<Vec<_>>()).expect("a decode");
        let mask = |slot: usize| (slot % 4 == 1).then_some(mask);
        let bias = [(300, 4.0)];
        let top = |slot: usize| (slot % 4 < 2).then_some((3, bias.as_slice()));
        let drafts: Vec<Vec<Token>> = (0..N_SLOTS).map(|slot| vec![300; (slot == 2).into()]).collect();
        let mut masks: Vec<_> = (0..samplers.len()).map(|slot| mask(slot).map(Mask)).collect();
        let mut picks: Vec<_> = (samplers.iter_mut().zip(&mut masks).zip(&drafts).enumerate())
            .map(|(row, ((sampler, mask), draft))| pick(row, draft, sampler, mask, top(row)))
            .collect();
        // Whatever they took before, all threads are asked.
        context.per_pick = Duration::from_secs(1);
        context.choose(&mut picks);
        let chosen: Vec<_> = picks.into_iter().map(|pick| pick.chosen).collect();
        for (row, theirs) in references.iter_mut().enumerate() {
            let (top, mut mask) = (top(row), mask(row).map(Mask));
            let mut pick = pick(row, &drafts[row], theirs, &mut mask, top);
            let choose = |at: usize, mask: Option<&[u32]>, theirs: &mut llama::Reference| {
                let token = sample(context, row + at, theirs, mask)?;
                let told =
                    top.map(|(k, bias)| logprobs::of_row(context.logits(row + at).expect("a row"), bias, token, k));
                Ok(Chosen { token, told, is_forced: false })
            };
            pick.run(choose, |_, token| Err(format!("{token} is forced")));
            assert!(pick.chosen.iter().all(Result::is_ok), "{:?}", pick.chosen);
            assert_eq!(chosen[row], pick.chosen, "kind {kind}, step {pos}, slot {row}");
            let tokens = chosen[row].iter().flatten().map(|chosen| chosen.token);
            said[row].extend(tokens);
            last[row] = *said[row].last().expect("a token");
        }
    }
    (0..N_SLOTS).for_each(|slot| _ = context.forget(slot, 0));
    said
}

#[test]
fn slots_that_choose_together_choose_what_each_would_alone() {
    let (model, mut context) = loaded(1);
    let some: Vec<u32> = (0..16).map(|word| if word % 3 == 1 { 0xf0f0_1234 } else { 0 }).collect();
    // 60, 61 and 300: fewer than most chains keep.
    let mut few = vec![0; 16];
    (few[1], few[9]) = (3 << 28, 1 << 12);
    for kind in 0..N_KINDS {
        let mut run = |mask: &[u32]| _ = choose_both_ways((&model, &mut context), (kind, 20), |_| None, mask);
        run(&some);
        run(&most());
        if kind >= 16 {
            run(&few);
        }
    }
}

#[test]
fn what_is_told_of_rows_together_is_what_each_says() {
    let (_, mut context) = loaded(2);
    let row = |seq: u32| Row { token: (60 + seq * 9).cast_signed(), pos: 0, seq, output: true };
    context.decode(&(0..N_SLOTS).map(row).collect::<Vec<_>>()).expect("a decode");
    let ask = |row: usize| Ask { row, token: signed(row * 31), k: row, told: None };
    let mut asks: Vec<Ask> = (0..N_SLOTS as usize).rev().map(ask).collect();
    // However short they are, both threads are asked.
    context.per_ask = Duration::from_secs(1);
    context.tell(&mut asks);
    for ask in asks {
        let logits = context.logits(ask.row).expect("a row");
        assert_eq!(ask.told, Some(logprobs::of_row(logits, &[], ask.token, ask.k)));
    }
}

/// Grammars that hold from the first token on, from a word on, from a token on, and from a word on outside of thinking.
fn grammars(model: &LlamaModel) -> [Grammar; 4] {
    let trigger = |text: &str| vec![Trigger { kind: Trigger::WORD, value: text.into() }];
    let gbnf = |first: &str| format!(r"root ::= {first} [^0-9]{{0,12}} ([0-9]{{1,3}} [a-e ]{{1,4}})*");
    let strict = Grammar { gbnf: gbnf(r#"("a" | "the") " ""#), ..Grammar::default() };
    let by_word = Grammar { gbnf: gbnf(r#""e""#), triggers: trigger("e"), ..Grammar::default() };
    let preserved = model.tokenize("was", false, true).expect("tokens");
    assert_eq!(preserved.len(), 1, "else it is no token that triggers");
    let by_token = Grammar { gbnf: gbnf(r#"" "? "was""#), triggers: trigger("was"), preserved, ..Grammar::default() };
    let outside = Grammar {
        generation_prompt: "he".into(),
        thinking_start: "he".into(),
        thinking_ends: vec!["to".into(), "a".into()],
        ..by_word.clone()
    };
    [strict, by_word, by_token, outside]
}

/// All tokens but every seventh.
fn most() -> Vec<u32> {
    let word = |word: u32| (0..32).filter(|bit| !(word * 32 + bit).is_multiple_of(7)).map(|bit| 1 << bit).sum();
    (0..16).map(word).collect()
}

#[test]
fn grammars_choose_what_llama_cpp_chooses() {
    let (model, mut context) = loaded(1);
    for (which, grammar) in grammars(&model).iter().enumerate() {
        let run = |kind| choose_both_ways((&model, &mut context), (kind, 32), |_| Some(grammar.clone()), &most());
        let said: Vec<Vec<Token>> = [0, 2, 5].into_iter().flat_map(run).collect();
        let is_number = |token: &Token| model.piece(*token).iter().any(u8::is_ascii_digit);
        let n_held = said.iter().filter(|said| said.iter().any(is_number)).count();
        assert!(n_held > 2, "stories have no numbers: grammar {which} held in {n_held} of {}", said.len());
    }
}

#[test]
fn grammars_of_several_slots_choose_on_several_threads() {
    let (model, mut context) = loaded(2);
    let grammars = grammars(&model);
    let grammar = |slot: u32| grammars.get(slot as usize % 5).cloned();
    _ = choose_both_ways((&model, &mut context), (0, 24), grammar, &most());
}

#[test]
fn what_only_a_bias_forbids_ends_an_answer_whose_grammar_is_through() {
    let (model, mut context) = loaded(1);
    context.decode(&[Row { token: 1, pos: 0, seq: 0, output: true }]).expect("a decode");
    let grammar = Grammar { gbnf: "root ::= [0-9]".into(), ..Grammar::default() };
    for kind in [0, 2, 5] {
        let params = SamplingParams { ignore_eos: true, ..sampling(0, kind) };
        let mut sampler = model.sampler(&params, &[1], Some(&grammar)).expect("a sampler");
        let mut next = || {
            let mut none = None;
            let mut pick = pick(0, &[], &mut sampler, &mut none, None);
            context.choose(std::slice::from_mut(&mut pick));
            pick.chosen.remove(0).expect("a token").token
        };
        assert!(model.piece(next()).iter().all(u8::is_ascii_digit));
        assert!(model.is_end(next()));
    }
}

#[test]
fn a_mask_and_a_grammar_that_leave_nothing_are_an_error() {
    let (model, mut context) = loaded(1);
    let grammar = Grammar { gbnf: "root ::= [0-9]+".into(), ..Grammar::default() };
    let mut sampler = model.sampler(&sampling(0, 0), &[1], Some(&grammar)).expect("a sampler");
    context.decode(&[Row { token: 1, pos: 0, seq: 0, output: true }]).expect("a decode");
    let is_letter = |token: usize| model.piece(signed(token)).iter().all(u8::is_ascii_alphabetic);
    let mask: Vec<u32> =
        (0..16).map(|word| (0..32).filter(|bit| is_letter(word * 32 + bit)).map(|bit| 1 << bit).sum()).collect();
    let mut choose = |mask: Option<&[u32]>| {
        let mut mask = mask.map(Mask);
        let mut pick = pick(0, &[], &mut sampler, &mut mask, None);
        context.choose(std::slice::from_mut(&mut pick));
        pick.chosen.remove(0)
    };
    assert!(choose(Some(mask.as_slice())).is_err_and(|error| error.contains("allows no token")));
    let token = choose(None).expect("a number").token;
    assert!(model.piece(token).iter().all(u8::is_ascii_digit));
}
