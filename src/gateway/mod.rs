//! The one door between clients' requests and engines: who asks, for which model, under which defaults, and what it cost.
//!
//! **Invariant:** nothing here knows JSON or status codes. A request that leaves for the engine has its sampling settled
//! and checked, and everything it holds comes back when its [`Running`] is dropped, whatever ended it.
//!
//! # Design
//! [`Gateway::chat`] returns only when every choice was accepted by the engine: validated, rendered, tokenised, fitting the
//! context and queued. Until then a failure is a plain error; after it, only the engine can fail the request. Choices of
//! one prompt start in two steps, the first alone: it proves that the prompt fits before it is copied for the others.

mod choices;
mod error;
mod fetch;
mod keys;
mod meter;
mod names;
mod running;

pub use error::Error;
pub use fetch::MediaHost;
pub use keys::{ApiKey, Principal};
pub use running::Running;

use crate::chat::check::{self, Refusal};
use crate::chat::{
    ChatPrompt, ChatRequest, CompletionRequest, Finish, MediaKind, Output, Prompt, Sampling, SamplingParams, Usage,
};
use crate::engine::{
    Description, Done, Engine, EngineState, Event, Failure, GenerateRequest, Generation, Load, Stats, Timings,
    TokenizeRequest, Tokenized, fresh_family,
};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{ModelLabels, Reading};
use choices::Choices;
use fetch::Fetcher;
use meter::Meter;
use names::Names;
use running::Keep;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// What the operator decides about the API, independent of sockets.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The name under which the model is served; every answer carries it.
    pub model_id: String,
    /// Further names that clients may use.
    pub aliases: Vec<String>,
    /// Keys that open the API; none: it is open.
    pub api_keys: Vec<ApiKey>,
    /// Refuse requests with fields that nobody knows, instead of listing them in a header.
    pub strict: bool,
    /// Serve whatever model name is asked for.
    pub any_model: bool,
    /// The operator's sampling defaults: under the client's, over the model's. Checked by whoever reads them.
    pub sampling: Sampling,
    /// When the model began to be served, in unix seconds.
    pub n_created: u64,
    /// Where images may be fetched from; none: nowhere.
    pub media_hosts: Vec<MediaHost>,
}

/// Who asks, and under which name the log knows the request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub principal: Principal,
    pub request_id: String,
}

pub struct Gateway {
    config: GatewayConfig,
    names: Names,
    engine: Engine,
    metrics: Arc<Metrics>,
    fetcher: Fetcher,
}

/// What all choices of one request have in common.
struct Work {
    prompts: Vec<Prompt>,
    sampling: SamplingParams,
    output: Output,
    /// Choices generated for each prompt, and how many of them are the answer.
    n: u32,
    n_kept: u32,
    cache_prompt: bool,
    lora: Option<Vec<(u32, f32)>>,
}

/// Longest wait for the engine's counters at a scrape; an engine deep in a decode answers after it.
const STATS_WAIT: Duration = Duration::from_secs(2);

impl Gateway {
    pub fn new(config: GatewayConfig, engine: Engine, metrics: Arc<Metrics>) -> Self {
        let names = Names::new(&config.model_id, &config.aliases);
        let fetcher = Fetcher::new(config.media_hosts.clone());
        Self { config, names, engine, metrics, fetcher }
    }

    /// Whether `presented` opens the API.
    pub fn authenticate(&self, presented: Option<&str>) -> Result<Principal, Error> {
        keys::authenticate(&self.config.api_keys, presented)
    }

    /// Starts a chat; returns when it is certain to run.
    pub async fn chat(&self, caller: &Caller, mut request: ChatRequest) -> Result<Running, Error> {
        let description = self.model(request.model.as_deref())?;
        self.admit_media(&mut request.prompt, request.n, &description).await?;
        let work = Work {
            sampling: self.settle(request.sampling, &description),
            prompts: vec![Prompt::Chat(request.prompt)],
            output: request.output,
            n: request.n,
            n_kept: request.n,
            cache_prompt: request.cache_prompt,
            lora: request.lora,
        };
        self.start(caller, work, &description).await
    }

    /// Starts a text completion; returns when it is certain to run. Choice `p × n + i` is the `i`-th of prompt `p`.
    pub async fn complete(&self, caller: &Caller, request: CompletionRequest) -> Result<Running, Error> {
        let description = self.model(request.model.as_deref())?;
        let mut output = request.output;
        if request.best_of > request.n {
            // What the choices are ranked by.
            output.top_logprobs = output.top_logprobs.or(Some(0));
        }
        let work = Work {
            sampling: self.settle(request.sampling, &description),
            prompts: request.prompts,
            output,
            n: request.best_of.max(request.n),
            n_kept: request.n,
            cache_prompt: request.cache_prompt,
            lora: request.lora,
        };
        self.start(caller, work, &description).await
    }

    pub async fn tokenize(&self, model: Option<&str>, mut request: TokenizeRequest) -> Result<(Tokenized, u32), Error> {
        let description = self.model(model)?;
        if let Prompt::Chat(prompt) = &mut request.prompt {
            self.admit_media(prompt, 1, &description).await?;
        }
        Ok((self.engine.tokenize(request).await?, description.n_ctx))
    }

    pub async fn detokenize(&self, model: Option<&str>, tokens: Vec<i32>) -> Result<String, Error> {
        self.model(model)?;
        Ok(self.engine.detokenize(tokens).await?)
    }

    pub async fn render(&self, model: Option<&str>, mut prompt: ChatPrompt) -> Result<String, Error> {
        let description = self.model(model)?;
        self.admit_media(&mut prompt, 1, &description).await?;
        Ok(self.engine.render(prompt).await?)
    }

    /// Refuses media that the model doesn't take, then fetches those that stand elsewhere.
    async fn admit_media(
        &self,
        prompt: &mut ChatPrompt,
        n_choices: u32,
        description: &Description,
    ) -> Result<(), Error> {
        refuse_media(prompt, n_choices, description)?;
        self.fetcher.resolve(prompt).await?;
        refuse_media(prompt, n_choices, description)
    }

    /// What is loaded, if `name` (or no name) means it.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Description>, Error> {
        match name {
            Some(name) if !self.config.any_model && !self.names.serves(name) => Err(Error::unknown_model(name)),
            _ => self.description(),
        }
    }

    /// What is loaded, whatever it is called.
    pub fn description(&self) -> Result<Arc<Description>, Error> {
        match self.engine.state() {
            EngineState::Ready(description) => Ok(description),
            other => Err(other.refusal().unwrap_or(Failure::ShuttingDown).into()),
        }
    }

    pub fn config(&self) -> &GatewayConfig {
        &self.config
    }

    pub fn state(&self) -> EngineState {
        self.engine.state()
    }

    pub fn load(&self) -> Load {
        self.engine.load()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub async fn stats(&self) -> Result<Stats, Error> {
        match tokio::time::timeout(STATS_WAIT, self.engine.stats()).await {
            Ok(stats) => Ok(stats?),
            Err(_) => Err(Failure::NotReady { reason: "the engine is busy".to_owned(), retry_after_s: 1 }.into()),
        }
    }

    /// The Prometheus page. An engine that can't be asked leaves its gauges at 0.
    pub async fn metrics_page(&self) -> String {
        let mut reading = Reading { n_restarts: self.load().n_restarts.into(), ..Default::default() };
        if let Ok(stats) = self.stats().await {
            reading.n_queued = stats.n_queued.into();
            reading.n_slots = stats.slots.len() as u64;
            reading.n_slots_busy = stats.slots.iter().filter(|slot| slot.state != "idle").count() as u64;
            reading.kv_used_ratio = f64::from(stats.kv_cells_used) / f64::from(stats.kv_cells_total.max(1));
        }
        if let Ok(description) = self.description() {
            reading.model = Some(ModelLabels {
                model: self.config.model_id.clone(),
                quant: description.desc.clone(),
                n_ctx: description.n_ctx,
            });
        }
        self.metrics.page(&reading)
    }

    /// Sampling as the engine gets it when a client says nothing.
    pub fn default_sampling(&self, description: &Description) -> SamplingParams {
        self.settle(Sampling::default(), description)
    }

    /// The client over the operator over the model over the built-in defaults.
    fn settle(&self, said: Sampling, description: &Description) -> SamplingParams {
        let said = said.over(&self.config.sampling);
        // The model's suggestions come from a file that nobody here wrote.
        let said = match check::sampling(&description.sampling) {
            Ok(()) => said.over(&description.sampling),
            Err(refusal) => {
                tracing::warn!(field = refusal.field, "the model's sampling suggestions are out of range and unused");
                said
            }
        };
        let mut params = said.settle();
        if params.top_p <= 0.0 {
            // Nothing but the most likely token is left: greedy, without asking the sampler to divide by nothing.
            params.temperature = 0.0;
        }
        params
    }

    async fn start(&self, caller: &Caller, work: Work, description: &Description) -> Result<Running, Error> {
        if !description.generates {
            return Err(Failure::invalid("model", "unsupported_operation", "This model can't generate text.").into());
        }
        let n_choices = work.prompts.len() * work.n as usize;
        self.refuse_more_than_fits(n_choices, &work)?;
        let meter = Meter::new(Arc::clone(&self.metrics), caller, work.n as usize, n_choices);
        let keep = Keep { of: work.n as usize, n: work.n_kept as usize };
        let (choices, accepted) = match work.output.max_tokens {
            Some(0) if !work.output.echo => self.count_only(work, description).await?,
            _ => self.generate(caller, work).await?,
        };
        let model = self.config.model_id.clone();
        Ok(Running::new(choices, accepted, keep, meter, model, self.fingerprint(description)))
    }

    /// A request of more choices than the engine has places could wait for ever.
    fn refuse_more_than_fits(&self, n_choices: usize, work: &Work) -> Result<(), Error> {
        let n_places = self.load().n_places;
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

    /// Starts the first choice of every prompt, waits until each is accepted, then starts and awaits the others.
    async fn generate(&self, caller: &Caller, work: Work) -> Result<(Choices, Vec<u32>), Error> {
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
            class: Default::default(),
            family,
            lora: work.lora.clone(),
        };
        let mut generations: Vec<Option<Generation>> = (0..work.prompts.len() * n).map(|_| None).collect();
        let mut accepted = vec![0; generations.len()];
        for step in [0..1, 1..n] {
            for (p, prompt) in work.prompts.iter().enumerate() {
                for choice in step.clone() {
                    let request = request(prompt.clone(), choice, families[p]);
                    generations[p * n + choice] = Some(self.engine.generate(request)?);
                }
            }
            for (p, choice) in (0..work.prompts.len()).flat_map(|p| step.clone().map(move |choice| (p, choice))) {
                let idx = p * n + choice;
                if let Some(generation) = &mut generations[idx] {
                    accepted[idx] = await_acceptance(generation).await?;
                }
            }
        }
        Ok((Choices::new(generations.into_iter().flatten().collect()), accepted))
    }

    /// `max_tokens: 0` asks for nothing but the prompt's token count, which needs no slot.
    async fn count_only(&self, work: Work, description: &Description) -> Result<(Choices, Vec<u32>), Error> {
        let (mut accepted, mut ends) = (Vec::new(), Vec::new());
        for prompt in work.prompts {
            let request = TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false };
            let n_prompt = self.engine.tokenize(request).await?.tokens.len();
            if n_prompt >= description.n_ctx as usize {
                let (n_prompt, n_ctx) = (n_prompt as u64, description.n_ctx);
                return Err(Failure::ContextExceeded { n_prompt, n_ctx, at_least: false }.into());
            }
            let usage = Usage { prompt_tokens: n_prompt as u32, ..Default::default() };
            let done = Done { finish: Finish::Length, usage, timings: Timings::default() };
            for _ in 0..work.n {
                accepted.push(usage.prompt_tokens);
                ends.push(Event::Done(done.clone()));
            }
        }
        Ok((Choices::ended(ends), accepted))
    }

    /// Stable for the same build, model and settings, so that a client can tell when answers may differ.
    fn fingerprint(&self, description: &Description) -> String {
        let d = description;
        let shape = (d.n_params, d.size_bytes, d.n_ctx, d.n_slots, d.n_batch, d.n_ubatch);
        let text = format!(
            "{}\0{}\0{}\0{}\0{shape:?}\0{:?}\0{:?}",
            env!("CARGO_PKG_VERSION"),
            d.build,
            d.architecture,
            d.desc,
            self.config.sampling,
            d.sampling
        );
        let digest = Sha256::digest(text.as_bytes());
        digest.iter().take(4).fold("fp_".to_owned(), |name, byte| name + &format!("{byte:02x}"))
    }
}

/// Bytes of images and sounds of all choices together: each choice carries its own copy to the engine.
const MEDIA_BYTES_MAX: usize = 256 << 20;

/// A model without a projector for it can't see an image or hear a sound. The field is `media[k]` with k counted over all
/// messages; where that stands in the body is the dialect's to say.
fn refuse_media(prompt: &ChatPrompt, n_choices: u32, description: &Description) -> Result<(), Error> {
    let (mut n_bytes, mut k) = (0, 0);
    for media in prompt.messages.iter().flat_map(|message| &message.media) {
        let (kind, what) = match media.kind {
            MediaKind::Image | MediaKind::RemoteImage => (MediaKind::Image, "images"),
            MediaKind::Audio => (MediaKind::Audio, "sound"),
        };
        if !description.media.contains(&kind) {
            let message = format!("This model takes no {what}, and a part of the message is one.");
            return Err(Refusal::new(format!("media[{k}]"), "unsupported_content", message).into());
        }
        n_bytes += media.data.len();
        k += 1;
    }
    if n_bytes.saturating_mul(n_choices as usize) <= MEDIA_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "The images and sounds of all choices may have at most {MEDIA_BYTES_MAX} bytes, but {n_choices} choices of \
         {n_bytes} bytes are more."
    );
    Err(Refusal::new("n", "integer_above_max_value", message).into())
}

/// The engine's first word about a request: its prompt's tokens, or why it is refused.
async fn await_acceptance(generation: &mut Generation) -> Result<u32, Error> {
    match generation.next().await {
        Some(Event::Accepted { n_prompt }) => Ok(n_prompt),
        Some(Event::Failed(failure)) => Err(failure.into()),
        _ => Err(Failure::Internal("a generation began without being accepted; this is a bug".to_owned()).into()),
    }
}

/// A fresh name: `prefix` and 24 letters or digits (142 bits).
pub fn random_name(prefix: &str) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letters = (0..24).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    prefix.chars().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fresh_and_of_one_length() {
        let (a, b) = (random_name("req_"), random_name("req_"));
        assert_ne!(a, b);
        assert_eq!(a.len(), 28);
        assert!(a.starts_with("req_") && a[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
