//! A request's choices on their way to the engine: bounded by what limits leave, reserved for before a token is made.

use super::choices::Choices;
use super::limits::{Permit, Spend};
use super::{Caller, Error, Gateway, Target, Work};
use crate::chat::check;
use crate::chat::{Finish, Prompt, SamplingParams, Usage};
use crate::engine::{Done, Event, Failure, GenerateRequest, Generation, Timings, TokenizeRequest, fresh_family};

/// Most tokens of an answer whose client names no number, where a limit or a budget counts tokens.
const OUTPUT_TOKENS: u32 = 4096;

impl Gateway {
    /// The most tokens of each answer: the client's word or the operator's, the caller's cap, and, where nobody says, no
    /// more than a budget has left. What a client asks for is never cut to what is left: it is refused instead.
    pub(super) async fn bound_output(
        &self,
        caller: &Caller,
        work: &mut Work,
        target: &Target,
        permit: &Permit,
    ) -> Result<(), Error> {
        let output = &mut work.output;
        let is_said = output.max_tokens.is_some();
        output.max_tokens = output.max_tokens.or(target.config.n_predict);
        if let Some(cap) = self.output_cap(caller) {
            output.max_tokens = Some(output.max_tokens.unwrap_or(cap).min(cap));
        }
        let Some(left) = permit.tokens_left().filter(|_| !is_said) else { return Ok(()) };
        let mut most = output.max_tokens.unwrap_or(OUTPUT_TOKENS);
        let n_choices = work.prompts.len() as u64 * u64::from(work.n);
        if left < u64::from(target.description.n_ctx) * n_choices {
            let mut n_prompts = 0;
            for prompt in &work.prompts {
                n_prompts += count(prompt.clone(), target).await?;
            }
            let each = left.saturating_sub(n_prompts) / n_choices.max(1);
            most = most.min(u32::try_from(each).unwrap_or(u32::MAX)).max(1);
        }
        output.max_tokens = Some(most);
        Ok(())
    }

    /// Starts the first choice of every prompt, waits until each is accepted and reserves what all choices may cost, then
    /// starts and awaits the others. A refusal drops, and so cancels, what was started.
    pub(super) async fn generate(
        &self,
        caller: &Caller,
        work: Work,
        target: &Target,
        permit: &mut Permit,
    ) -> Result<(Choices, Vec<u32>), Error> {
        if work.output.max_tokens == Some(0) && !work.output.echo {
            return self.count_only(work, target, permit).await;
        }
        let n = work.n as usize;
        let families: Vec<u64> = work.prompts.iter().map(|_| if n > 1 { fresh_family() } else { 0 }).collect();
        let (class, owner) = self.share_of(caller);
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
        };
        let mut generations: Vec<Option<Generation>> = (0..work.prompts.len() * n).map(|_| None).collect();
        let mut accepted = vec![0; generations.len()];
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
            if step.start == 0 {
                let n_prompts = accepted.iter().step_by(n);
                self.reserve(permit, target, most(&work, target, n_prompts.copied()))?;
            }
        }
        Ok((Choices::new(generations.into_iter().flatten().collect()), accepted))
    }

    /// `max_tokens: 0` asks for nothing but the prompt's token count, which needs no slot.
    async fn count_only(&self, work: Work, target: &Target, permit: &mut Permit) -> Result<(Choices, Vec<u32>), Error> {
        let (mut accepted, mut ends) = (Vec::new(), Vec::new());
        for prompt in work.prompts {
            let n_prompt = count(prompt, target).await?;
            if n_prompt >= u64::from(target.description.n_ctx) {
                let n_ctx = target.description.n_ctx;
                return Err(Failure::ContextExceeded { n_prompt, n_ctx, at_least: false }.into());
            }
            let usage = Usage { prompt_tokens: n_prompt as u32, ..Default::default() };
            let done = Done { finish: Finish::Length, usage, timings: Timings::default() };
            for _ in 0..work.n {
                accepted.push(usage.prompt_tokens);
                ends.push(Event::Done(done.clone()));
            }
        }
        let n_prompts: u64 = accepted.iter().step_by(work.n.max(1) as usize).map(|n| u64::from(*n)).sum();
        self.reserve(permit, target, Spend { tokens: n_prompts, nusd: target.config.price.cost(n_prompts, 0, 0) })?;
        Ok((Choices::ended(ends), accepted))
    }
}

/// The most that the choices of these prompts can come to: each prompt once, none of it cached, and every answer as long
/// as it may get. The engine stops there, so it is never more.
fn most(work: &Work, target: &Target, n_prompts: impl Iterator<Item = u32>) -> Spend {
    let (mut n_input, mut n_output) = (0u64, 0u64);
    for n_prompt in n_prompts {
        let room = target.description.n_ctx.saturating_sub(n_prompt);
        let least = u32::from(!work.output.echo).min(room);
        n_input += u64::from(n_prompt);
        n_output += u64::from(work.output.max_tokens.unwrap_or(room).clamp(least, room)) * u64::from(work.n);
    }
    Spend { tokens: n_input + n_output, nusd: target.config.price.cost(n_input, 0, n_output) }
}

async fn count(prompt: Prompt, target: &Target) -> Result<u64, Error> {
    let request = TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false };
    Ok(target.engine.tokenize(request).await?.tokens.len() as u64)
}

/// The engine's first word about a request: its prompt's tokens, or why it is refused.
async fn await_acceptance(generation: &mut Generation) -> Result<u32, Error> {
    match generation.next().await {
        Some(Event::Accepted { n_prompt }) => Ok(n_prompt),
        Some(Event::Failed(failure)) => Err(failure.into()),
        _ => Err(Failure::Internal("a generation began without being accepted; this is a bug".to_owned()).into()),
    }
}
