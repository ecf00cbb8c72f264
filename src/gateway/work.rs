//! One request at a model of our own: its choices started, and certain to run.

use super::choices::Choices;
use super::limits::{Reservation, Spend};
use super::running::Keep;
use super::{Caller, Error, Target};
use crate::chat::check::{self, Refusal};
use crate::chat::{Class, Finish, Output, Prompt, SamplingParams, Usage};
use crate::engine::{
    Done, Engine, Event, Failure, GenerateRequest, Generation, Timings, TokenizeRequest, fresh_family,
};
use sha2::{Digest, Sha256};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// What all choices of one request have in common.
#[derive(Clone)]
pub(super) struct Work {
    pub prompts: Vec<Prompt>,
    pub sampling: SamplingParams,
    pub output: Output,
    /// The client said how long an answer may be.
    pub is_length_said: bool,
    /// Choices generated for each prompt, and how many of them are the answer.
    pub n: u32,
    pub n_kept: u32,
    pub cache_prompt: bool,
    pub lora: Option<Vec<(u32, f32)>>,
    /// The queue that the client is content with.
    pub class: Class,
}

impl Work {
    /// A number by which the same request is known when it comes again.
    pub(super) fn mark(&self) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(&self.prompts)
    }

    /// Of all prompts.
    pub(super) fn n_choices(&self) -> usize {
        self.prompts.len() * self.n as usize
    }

    pub(super) fn keep(&self) -> Keep {
        Keep { of: self.n as usize, n: self.n_kept as usize }
    }

    /// The most that the choices of these prompts can come to: each prompt once, none of it cached, and every answer as
    /// long as it may get. The engine stops there, so it is never more.
    fn most(&self, target: &Target, n_prompts: impl Iterator<Item = u32>) -> Spend {
        let (mut n_input, mut n_output) = (0u64, 0u64);
        for n_prompt in n_prompts {
            let room = target.description.n_ctx.saturating_sub(n_prompt);
            let least = u32::from(!self.output.echo).min(room);
            n_input += u64::from(n_prompt);
            n_output += u64::from(self.output.max_tokens.unwrap_or(room).clamp(least, room)) * u64::from(self.n);
        }
        Spend { tokens: n_input + n_output, nusd: target.config.price.cost(n_input, 0, n_output) }
    }
}

/// A request of more choices than the engine has places could wait for ever.
pub(super) fn refuse_more_than_fits(n_choices: usize, work: &Work, engine: &Engine) -> Result<(), Error> {
    let n_places = engine.load().n_places;
    if n_choices <= n_places as usize {
        return Ok(());
    }
    let field = match work.prompts.len() {
        2.. => "prompt",
        _ if work.n_kept < work.n => "best_of",
        _ => "n",
    };
    let message = format!("The request has {n_choices} choices, and this server takes at most {n_places} at once.");
    Err(Error::Refused(Refusal::new(field, "integer_above_max_value", message)))
}

/// Choices that are certain to run, the tokens of each one's prompt, and what is reserved for them.
type Begun = (Choices, Vec<u32>, Reservation);

/// Starts the first choice of every prompt, waits until each is accepted and reserves what all can cost, then starts and
/// awaits the others. A refusal drops, and so cancels, what was started.
pub(super) async fn generate(
    caller: &Caller,
    (class, owner): (Class, u64),
    comes_back: bool,
    work: Work,
    target: &Target,
    reserve: impl Fn(Spend) -> Result<Reservation, Error>,
) -> Result<Begun, Error> {
    let n = work.n as usize;
    let families: Vec<u64> = work.prompts.iter().map(|_| if n > 1 { fresh_family() } else { 0 }).collect();
    let request = |prompt: Prompt, choice: usize, family: u64| GenerateRequest {
        prompt,
        sampling: SamplingParams {
            seed: check::choice_seed(work.sampling.seed, choice as u32),
            ..work.sampling.clone()
        },
        output: work.output.clone(),
        cache_prompt: work.cache_prompt,
        partition: caller.principal.partition(),
        class,
        owner,
        family,
        lora: work.lora.clone(),
        comes_back,
    };
    let mut generations: Vec<Option<Generation>> = (0..work.prompts.len() * n).map(|_| None).collect();
    let mut accepted = vec![0; generations.len()];
    let mut reserved = None;
    for step in [0..1, 1..n] {
        for (p, prompt) in work.prompts.iter().enumerate() {
            for choice in step.clone() {
                let request = request(prompt.clone(), choice, families[p]);
                generations[p * n + choice] = Some(target.engine.generate(request)?);
            }
        }
        for (p, choice) in (0..work.prompts.len()).flat_map(|p| step.clone().map(move |choice| (p, choice))) {
            let idx = p * n + choice;
            if let Some(generation) = &mut generations[idx] {
                accepted[idx] = await_acceptance(generation).await?;
            }
        }
        if reserved.is_none() {
            let n_prompts = accepted.iter().step_by(n.max(1)).copied();
            reserved = Some(reserve(work.most(target, n_prompts))?);
        }
    }
    let bug = || Failure::Internal("a request without choices was started; this is a bug".to_owned());
    Ok((Choices::new(generations.into_iter().flatten().collect()), accepted, reserved.ok_or_else(bug)?))
}

/// `max_tokens: 0` asks for nothing but the prompt's token count, which needs no slot.
pub(super) async fn count_only(
    caller: &Caller,
    work: Work,
    target: &Target,
    reserve: impl Fn(Spend) -> Result<Reservation, Error>,
) -> Result<Begun, Error> {
    let (mut accepted, mut ends) = (Vec::new(), Vec::new());
    for prompt in work.prompts {
        let n_prompt = count(caller, prompt, target).await?;
        if n_prompt >= target.description.n_ctx as usize {
            let (n_prompt, n_ctx) = (n_prompt as u64, target.description.n_ctx);
            return Err(Failure::ContextExceeded { n_prompt, n_ctx, at_least: false }.into());
        }
        let usage = Usage { prompt_tokens: n_prompt as u32, ..Default::default() };
        let done = Done { finish: Finish::Length, usage, timings: Timings::default() };
        for _ in 0..work.n {
            accepted.push(usage.prompt_tokens);
            ends.push(Event::Done(done.clone()));
        }
    }
    let n_prompts = accepted.iter().step_by(work.n.max(1) as usize).map(|n| u64::from(*n)).sum();
    let reserved = reserve(Spend { tokens: n_prompts, nusd: target.config.price.cost(n_prompts, 0, 0) })?;
    Ok((Choices::ended(ends), accepted, reserved))
}

/// Tokens of a prompt.
pub(super) async fn count(caller: &Caller, prompt: Prompt, target: &Target) -> Result<usize, Error> {
    let partition = caller.principal.partition();
    let request = TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false, partition };
    Ok(target.engine.tokenize(request).await?.tokens.len())
}

/// Stable for the same build, model and settings, so that a client can tell when answers may differ.
pub(super) fn fingerprint(target: &Target) -> String {
    let d = &target.description;
    let shape = (d.n_params, d.size_bytes, d.n_ctx, d.n_slots, d.n_batch, d.n_ubatch);
    let text = format!(
        "{}\0{}\0{}\0{}\0{}\0{shape:?}\0{:?}\0{:?}\0{:?}",
        env!("CARGO_PKG_VERSION"),
        d.build,
        d.cpu,
        d.architecture,
        d.desc,
        target.config.sampling,
        d.sampling,
        (&d.adapters, target.adapter_scales()),
    );
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(4).fold("fp_".to_owned(), |name, byte| name + &format!("{byte:02x}"))
}

/// The engine's first word about a request: its prompt's tokens, or why it is refused.
async fn await_acceptance(generation: &mut Generation) -> Result<u32, Error> {
    match generation.next().await {
        Some(Event::Accepted { n_prompt }) => Ok(n_prompt),
        Some(Event::Failed(failure)) => Err(failure.into()),
        _ => Err(Failure::Internal("a generation began without being accepted; this is a bug".to_owned()).into()),
    }
}
