//! What happens to a request before a worker sees it: template, tokens, checks, sampler. Runs on threads of its own, so
//! that none of it costs a running stream time.

use super::adapters;
use super::backend::{AnswerFrame, Calls, FENCES, Grammar, Model, Reading, Rendered, Tags, Token};
use super::constraint::Constraints;
use super::drafter::{Corpus, Drafter};
use super::embed::{self, InputShape, Job};
use super::error::Failure;
use super::event::{Event, Pooling};
use super::fence::{fence, message_texts};
use super::gates::{Gates, Terms};
use super::lane::Lane;
use super::media::{self, Cache, Laid, Pending, Shelf, Span};
use super::prefix::SHARED;
use super::reading::Reader;
use super::request::{Command, GenerateRequest, RequestId, TokenizeRequest};
use super::run::{Clock, Echo, Run};
use super::service::{Live, Registry};
use super::text::TextBuilder;
use super::transport::Sink;
use crate::chat::{ChatPrompt, MediaKind, Prompt, SamplingParams};
use crossbeam_channel::{Receiver, SendError, Sender};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A command to prepare or answer.
pub(super) struct Work {
    pub id: RequestId,
    pub live: Arc<Live>,
    pub command: Command,
}

pub(super) struct Preparer<M: Model> {
    pub model: Arc<M>,
    pub lanes: Arc<Vec<Lane<M::Sampler>>>,
    pub registry: Arc<Registry>,
    pub sink: Arc<dyn Sink>,
    /// Order of acceptance over all preparers.
    pub serial: Arc<AtomicU64>,
    /// Most tokens of one request.
    pub n_ctx: u32,
    /// 0: nothing is tried ahead.
    pub n_draft_max: u32,
    /// Texts of the operator's that answers are drafted from.
    pub corpus: Option<Arc<Corpus>>,
    pub piece_bytes_max: u32,
    pub n_vocab: u32,
    /// Default scales of the LoRA adapters.
    pub adapter_scales: Vec<f32>,
    pub constraints: Arc<Constraints<M>>,
    /// `None`: this engine makes no vectors.
    pub embedder: Option<Embedder>,
    /// `None`: the model takes no media.
    pub sight: Option<Sight<M>>,
}

/// The way to the thread that makes vectors.
#[derive(Clone)]
pub(super) struct Embedder {
    pub jobs: Sender<Job>,
    pub shape: Arc<InputShape>,
    pub pooling: Pooling,
}

/// What a model with a projector needs beside.
pub(super) struct Sight<M: Model> {
    pub takes: Vec<MediaKind>,
    /// Most rows of a chunk that must be computed at once.
    pub n_at_once_max: u32,
    pub cache: Arc<Cache>,
    pub jobs: Sender<media::encoder::Job<M>>,
    /// To the preparer that decodes; that one itself has none.
    pub works: Option<Sender<Work>>,
}

/// A prompt, and the chunks in it that are not encoded yet.
type Read<M> = (Ready, Vec<Pending<<M as Model>::Chunk>>);

/// A run, and the chunks that must be encoded before a worker may have it.
type Prepared<M> = (Run<<M as Model>::Sampler>, Vec<Pending<<M as Model>::Chunk>>);

/// A prompt as tokens, and how to read the answer to it.
struct Ready {
    tokens: Vec<Token>,
    media: Vec<Span>,
    reading: Reading,
    stops: Vec<String>,
    preserved: Vec<Token>,
    /// The model was not told to do without thinking.
    may_think: bool,
    calls: Calls,
    thinking: Tags,
    frame: Option<AnswerFrame>,
}

/// Longest text that is tokenised without being generated from, and the longest whose pieces are wanted too: an answer of
/// one number or one piece per token must fit into a frame, and no other request waits long for it.
const TOKENIZE_BYTES_MAX: usize = 8 << 20;
const PIECES_BYTES_MAX: usize = 1 << 20;

/// Text of a chat that the template may leave out; more must at least be able to fit the context.
const BESIDE_BYTES_MAX: usize = 1 << 20;

/// Longest text that goes back to a client in one answer.
const ANSWER_BYTES_MAX: usize = 32 << 20;

impl<M: Model> Preparer<M> {
    /// Until the service drops its end of `works`.
    pub(super) fn run(&self, works: &Receiver<Work>) {
        while let Ok(work) = works.recv() {
            let Some(work) = self.divert(work) else { continue };
            let (id, live) = (work.id, Arc::clone(&work.live));
            let answer = if live.cancelled.load(Ordering::Relaxed) {
                Err(Failure::Cancelled)
            } else {
                let answer = catch_unwind(AssertUnwindSafe(|| self.answer(work)));
                answer
                    .unwrap_or_else(|_| Err(Failure::Internal("preparing the request panicked; this is a bug".into())))
            };
            let event = match answer {
                Ok(Some(event)) => event,
                Ok(None) => continue, // a worker answers
                Err(failure) => Event::Failed(failure),
            };
            self.registry.remove(id);
            self.sink.emit(vec![(id, event)]);
        }
    }

    /// Images take long to decode: they have a preparer of their own, so that nobody else waits for them.
    fn divert(&self, work: Work) -> Option<Work> {
        let prompt = match &work.command {
            Command::Tokenize(request) => Some(&request.prompt),
            Command::Generate(request) => Some(&request.prompt),
            _ => None,
        };
        let has_media = matches!(prompt, Some(Prompt::Chat(chat)) if chat.messages.iter().any(|m| !m.media.is_empty()));
        match self.sight.as_ref().and_then(|sight| sight.works.as_ref()) {
            Some(works) if has_media => works.send(work).err().map(|SendError(work)| work),
            _ => Some(work),
        }
    }

    fn takes(&self) -> &[MediaKind] {
        self.sight.as_ref().map_or(&[], |sight| &sight.takes)
    }

    fn answer(&self, work: Work) -> Result<Option<Event>, Failure> {
        match work.command {
            Command::Tokenize(request) => self.tokenize(request).map(Some),
            Command::Detokenize(tokens) => self.detokenize(&tokens).map(Some),
            Command::RenderChat(prompt) => {
                let marked = media::mark(&prompt, self.takes())?;
                let text = match &marked {
                    None => self.render_folding(&prompt)?.text,
                    Some(marked) => media::show(&self.render_folding(&marked.chat)?.text),
                };
                refuse_long("messages", text.len(), ANSWER_BYTES_MAX)?;
                Ok(Some(Event::Text(text)))
            }
            Command::Generate(request) => {
                let (run, pending) = self.prepare(work.id, work.live, *request)?;
                self.dispatch(run, pending)?;
                Ok(None)
            }
            Command::Embed(request) => {
                let shape = &self.embedder()?.shape;
                let inputs = embed::embed_inputs(&*self.model, shape, request, &work.live)?;
                self.compute(Job { id: work.id, live: work.live, inputs })
            }
            Command::Rerank(request) => {
                let embedder = self.embedder()?;
                if embedder.pooling != Pooling::Rank {
                    return Err(Failure::invalid("model", "unsupported_operation", "this model can't rank documents"));
                }
                let inputs = embed::pair_inputs(&*self.model, &embedder.shape, &request, &work.live)?;
                self.compute(Job { id: work.id, live: work.live, inputs })
            }
            // The service answers these itself.
            Command::Cancel | Command::Shed | Command::Spare(_) | Command::Stats => Ok(None),
        }
    }

    fn embedder(&self) -> Result<&Embedder, Failure> {
        let refusal = || Failure::invalid("model", "unsupported_operation", "this model can't make embeddings");
        self.embedder.as_ref().ok_or_else(refusal)
    }

    fn compute(&self, job: Job) -> Result<Option<Event>, Failure> {
        if job.inputs.is_empty() {
            return Ok(Some(Event::Vectors(Default::default())));
        }
        let n_tokens: usize = job.inputs.iter().map(Vec::len).sum();
        let n_prompt = u32::try_from(n_tokens).unwrap_or(u32::MAX);
        self.sink.emit(vec![(job.id, Event::Accepted { n_prompt })]);
        self.embedder()?.jobs.send(job).map_err(|_| Failure::ShuttingDown)?;
        Ok(None)
    }

    fn tokenize(&self, request: TokenizeRequest) -> Result<Event, Failure> {
        let most = if request.with_pieces { PIECES_BYTES_MAX } else { TOKENIZE_BYTES_MAX };
        match &request.prompt {
            Prompt::Chat(_) => {} // bounded by the context
            Prompt::Text(text) => refuse_long("content", text.len(), most)?,
            Prompt::Tokens(tokens) => refuse_long("prompt", tokens.len(), most)?,
            Prompt::Infill(_) | Prompt::Mixed(_) => {} // bounded by the context
        }
        let mut tokens = match &request.prompt {
            Prompt::Chat(chat) => self.chat_tokens(chat, request.partition)?.0.tokens,
            Prompt::Text(text) => self.model.tokenize(text, request.add_special, request.parse_special)?,
            Prompt::Tokens(tokens) => self.checked(tokens.clone())?,
            Prompt::Infill(infill) => self.infill(infill)?,
            Prompt::Mixed(parts) => self.mixed(parts)?,
        };
        let pieces = if request.with_pieces {
            tokens.iter().map(|token| self.model.piece(*token).to_vec()).collect()
        } else {
            Vec::new()
        };
        // Places of media have no token: LLAMA_TOKEN_NULL, as llama.cpp says it.
        tokens.iter_mut().for_each(|token| *token = (*token).max(-1));
        Ok(Event::Tokens { tokens, pieces })
    }

    fn detokenize(&self, tokens: &[Token]) -> Result<Event, Failure> {
        let tokens = self.checked(tokens.to_vec()).map_err(|failure| match failure {
            Failure::Invalid { code, message, .. } => Failure::Invalid { field: "tokens".into(), code, message },
            other => other,
        })?;
        let n_bytes = tokens.iter().map(|token| self.model.piece(*token).len()).sum();
        refuse_long("tokens", n_bytes, ANSWER_BYTES_MAX)?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.model.piece(*token)).copied().collect();
        Ok(Event::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn prepare(&self, id: RequestId, live: Arc<Live>, request: GenerateRequest) -> Result<Prepared<M>, Failure> {
        if self.lanes.is_empty() {
            return Err(Failure::invalid("model", "unsupported_operation", "this model can't generate text"));
        }
        let mut pending = Vec::new();
        let adapters = adapters::chosen(&self.adapter_scales, request.lora.as_deref())?;
        let mut ready = match request.prompt {
            Prompt::Chat(chat) => {
                let (ready, lacking) = self.chat_tokens(&chat, request.partition)?;
                pending = lacking;
                ready
            }
            Prompt::Text(text) => {
                self.refuse_hopeless(text.len())?;
                Ready::plain(self.model.tokenize(&text, true, true)?)
            }
            Prompt::Tokens(tokens) => Ready::plain(self.checked(tokens)?),
            Prompt::Infill(infill) => Ready::plain(self.infill(&infill)?),
            Prompt::Mixed(parts) => Ready::plain(self.mixed(&parts)?),
        };
        let mut tokens = std::mem::take(&mut ready.tokens);
        if tokens.is_empty() {
            tokens = self.first_token()?;
        }
        let (n_prompt, n_ctx) = (tokens.len(), self.n_ctx);
        if n_prompt >= n_ctx as usize {
            return Err(Failure::ContextExceeded { n_prompt: n_prompt as u64, n_ctx, at_least: false });
        }
        let n_prompt = n_prompt as u32;
        let room = n_ctx - n_prompt;
        // Nothing is generated only where the prompt itself is wanted.
        let least = u32::from(!request.output.echo);
        let n_generate_max = request.output.max_tokens.unwrap_or(room).clamp(least, room);
        let gates = Gates { model: self.model.as_ref(), constraints: &self.constraints, partition: request.partition };
        let hold = gates.hold(Terms {
            constraint: request.output.constraint.as_ref(),
            reading: &ready.reading,
            calls: ready.calls,
            thinking: &ready.thinking,
            frame: ready.frame.as_ref(),
            may_think: ready.may_think,
            forces: request.output.top_logprobs.is_none(),
        })?;
        let gate = hold.gate;
        let prediction = request.output.prediction.as_deref().unwrap_or_default();
        let drafter = if self.n_draft_max > 0 { self.drafter(prediction)? } else { None };
        let with_logprobs = request.output.top_logprobs.is_some();
        let echo = request.output.echo.then(|| Echo { with_logprobs, entries: Vec::new() });
        let mut sampling = request.sampling.clone();
        sampling.logit_bias.extend(hold.banned.iter().map(|token| (*token, f32::NEG_INFINITY)));
        let sampler = self.sampler(&sampling, &tokens, !ready.media.is_empty(), hold.grammar.as_deref())?;
        let mut stops = request.output.stop;
        stops.extend(ready.stops);
        let run = Run {
            id,
            live,
            tokens,
            media: ready.media.into(),
            n_prompt,
            n_cached: 0,
            n_generate_max,
            sampler,
            logit_bias: request.sampling.logit_bias,
            top_logprobs: request.output.top_logprobs,
            with_tokens: request.output.with_tokens,
            text: TextBuilder::new(stops),
            gate,
            drafter,
            echo,
            family: request.family,
            preserved: ready.preserved,
            reader: Some(Box::new(Reader::new(ready.reading))),
            cache_prompt: request.cache_prompt,
            partition: adapters::partition(request.partition, &adapters),
            adapters,
            class: request.class,
            owner: request.owner,
            charged: (0, 0),
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            awaits: None,
            marks: Vec::new(),
            clock: Clock { accepted: Instant::now(), started: None, first_token: None },
            ticket: None,
        };
        Ok((run, pending))
    }

    /// A sampler that has seen the prompt, but for its media, which are no tokens.
    fn sampler(
        &self,
        params: &SamplingParams,
        tokens: &[Token],
        has_media: bool,
        grammar: Option<&Grammar>,
    ) -> Result<M::Sampler, Failure> {
        if !has_media {
            return self.model.sampler(params, tokens, grammar);
        }
        let seen: Vec<Token> = tokens.iter().copied().filter(|token| *token >= 0).collect();
        self.model.sampler(params, &seen, grammar)
    }

    fn drafter(&self, text: &str) -> Result<Option<Box<Drafter>>, Failure> {
        // What can't be part of an answer is no use.
        let most = self.n_ctx as usize * self.piece_bytes_max as usize;
        let is_usable = !text.is_empty() && text.len() <= most.min(TOKENIZE_BYTES_MAX);
        let prediction = is_usable.then(|| self.model.tokenize(text, false, false)).transpose()?;
        Ok(Drafter::new(prediction, true).map(|drafter| drafter.with_corpus(self.corpus.as_ref())))
    }

    fn dispatch(&self, run: Run<M::Sampler>, pending: Vec<Pending<M::Chunk>>) -> Result<(), Failure> {
        // Before the worker can say anything about it.
        self.sink.emit(vec![(run.id, Event::Accepted { n_prompt: run.n_prompt })]);
        let run = Box::new(run);
        match &self.sight {
            Some(sight) if !pending.is_empty() => {
                sight.jobs.send(media::encoder::Job { run, pending }).map_err(|_| Failure::ShuttingDown)
            }
            _ => hand_over(&self.lanes, run),
        }
    }

    /// What a model starts from when it is given nothing: its BOS, or the start of a line.
    fn first_token(&self) -> Result<Vec<Token>, Failure> {
        let tokens = self.model.tokenize("", true, false)?;
        if !tokens.is_empty() {
            return Ok(tokens);
        }
        let tokens = self.model.tokenize("\n", false, false)?;
        if tokens.is_empty() {
            return Err(Failure::invalid(
                "prompt",
                "invalid_value",
                "this model has no token to start an empty prompt with",
            ));
        }
        Ok(tokens)
    }

    /// A text so long that it can't fit whatever its tokens are is not worth tokenising.
    pub(super) fn refuse_hopeless(&self, n_bytes: usize) -> Result<(), Failure> {
        let n_tokens_min = n_bytes as u64 / u64::from(self.piece_bytes_max);
        if n_tokens_min >= u64::from(self.n_ctx) {
            return Err(Failure::ContextExceeded { n_prompt: n_tokens_min, n_ctx: self.n_ctx, at_least: true });
        }
        Ok(())
    }

    pub(super) fn checked(&self, tokens: Vec<Token>) -> Result<Vec<Token>, Failure> {
        let n_vocab = self.n_vocab;
        match tokens.iter().find(|token| u32::try_from(**token).map_or(true, |token| token >= n_vocab)) {
            None => Ok(tokens),
            Some(token) => Err(Failure::invalid(
                "prompt",
                "invalid_value",
                format!("token id {token} is outside the vocabulary (0 to {})", n_vocab.saturating_sub(1)),
            )),
        }
    }

    /// The tokens of a prompt without media.
    pub(super) fn lead_tokens(&self, prompt: &Prompt) -> Result<Vec<Token>, Failure> {
        let (tokens, lacks_media) = match prompt {
            Prompt::Chat(chat) => {
                let (ready, pending) = self.chat_tokens(chat, SHARED)?;
                (ready.tokens, pending.is_empty() && ready.media.is_empty())
            }
            Prompt::Text(text) => (self.model.tokenize(text, true, true)?, true),
            _ => (Vec::new(), true),
        };
        if !lacks_media {
            return Err(Failure::invalid("prefix", "unsupported_operation", "images and sound are no prefix"));
        }
        Ok(tokens)
    }

    /// The chat's tokens, and the chunks among them that are not encoded yet, as far as the partition knows.
    fn chat_tokens(&self, chat: &ChatPrompt, partition: u64) -> Result<Read<M>, Failure> {
        let n_bytes: usize = chat.messages.iter().filter_map(|message| message.content.as_ref()).map(String::len).sum();
        self.refuse_hopeless(n_bytes)?;
        // Thinking, calls and arguments may be left out by the template, but each choice carries a copy of them.
        let beside: usize = chat.messages.iter().flat_map(message_texts).flatten().map(str::len).sum::<usize>()
            - n_bytes
            + chat.template_kwargs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if beside > BESIDE_BYTES_MAX {
            self.refuse_hopeless(beside)?;
        }
        let marked = media::mark(chat, self.takes())?;
        let chat = marked.as_ref().map_or(chat, |marked| &marked.chat);
        let fenced = fence(chat, self.model.control_texts());
        let rendered = self.render_folding(fenced.as_ref().unwrap_or(chat))?;
        let is_fenced = fenced.is_some() && rendered.text.contains(FENCES[0]);
        let tokenize = |text: &str, is_first: bool| {
            if is_fenced { self.tokenize_fenced(text, is_first) } else { self.model.tokenize(text, is_first, true) }
        };
        let laid = match (&marked, &self.sight) {
            (Some(marked), Some(sight)) => {
                let shelf = Shelf { cache: &sight.cache, partition, n_at_once_max: sight.n_at_once_max };
                media::lay_out(self.model.as_ref(), &shelf, &rendered.text, &marked.media, tokenize)?
            }
            _ => Laid::plain(tokenize(&rendered.text, true)?),
        };
        let ready = Ready {
            tokens: laid.tokens,
            media: laid.spans,
            reading: rendered.reading,
            stops: rendered.stops,
            preserved: rendered.preserved,
            may_think: chat.enable_thinking != Some(false),
            calls: rendered.calls,
            thinking: rendered.thinking,
            frame: rendered.frame,
        };
        Ok((ready, laid.pending))
    }

    /// Tokenises what lies between fences as plain text and the rest with its control tokens.
    fn tokenize_fenced(&self, text: &str, mut is_first: bool) -> Result<Vec<Token>, Failure> {
        let mut tokens = Vec::new();
        let mut is_user_text = false;
        for part in text.split(FENCES) {
            if !part.is_empty() {
                tokens.extend(self.model.tokenize(part, is_first, !is_user_text)?);
                is_first = false;
            }
            is_user_text = !is_user_text;
        }
        if is_first {
            tokens.extend(self.model.tokenize("", true, false)?);
        }
        Ok(tokens)
    }

    /// Runs the template; when it refuses the order of roles, folds what templates stumble over and tries again.
    fn render_folding(&self, chat: &ChatPrompt) -> Result<Rendered, Failure> {
        let first = match self.model.render(chat) {
            Ok(rendered) => return Ok(rendered),
            Err(failure) => failure,
        };
        // Faults of tools and the like aren't the messages'.
        if !matches!(&first, Failure::Invalid { field, .. } if field == "messages") {
            return Err(first);
        }
        for messages in super::fold::repairs(&chat.messages) {
            let again = ChatPrompt { messages, ..chat.clone() };
            if let Ok(rendered) = self.model.render(&again) {
                return Ok(rendered);
            }
        }
        Err(first)
    }
}

/// Hands the run to the worker with the fewest; families stay together, since they share a context's cells.
pub(super) fn hand_over<S>(lanes: &[Lane<S>], mut run: Box<Run<S>>) -> Result<(), Failure> {
    let lane = match run.family {
        0 => lanes.iter().min_by_key(|lane| lane.n_runs()),
        family => lanes.get(usize::try_from(family).unwrap_or(0) % lanes.len().max(1)),
    };
    let lane = lane.ok_or(Failure::ShuttingDown)?;
    run.ticket = Some(lane.ticket());
    lane.runs.send(run).map_err(|_| Failure::ShuttingDown)
}

impl Ready {
    fn plain(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            media: Vec::new(),
            reading: Reading::Plain,
            stops: Vec::new(),
            preserved: Vec::new(),
            may_think: false,
            calls: Calls::Never(Vec::new()),
            thinking: Tags::default(),
            frame: None,
        }
    }
}

fn refuse_long(field: &str, n: usize, most: usize) -> Result<(), Failure> {
    if n <= most {
        return Ok(());
    }
    let message = format!("{field} is too long here: {n} bytes or tokens, at most {most}");
    Err(Failure::invalid(field, "invalid_value", message))
}
