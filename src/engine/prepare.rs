//! What happens to a request before a worker sees it: template, tokens, checks, sampler. Runs on threads of its own, so
//! that none of it costs a running stream time.

use super::adapters;
use super::backend::{FENCES, Forced, Grammar, Model, Reading, Rendered, Token, Trigger, tool_refusal};
use super::constraint::{Constraints, Gate, Opening};
use super::drafter::Drafter;
use super::embed::{self, InputShape, Job};
use super::error::Failure;
use super::event::{Event, Pooling};
use super::reading::Reader;
use super::request::{Command, GenerateRequest, RequestId, TokenizeRequest};
use super::run::{Clock, Echo, Run};
use super::service::{Lane, Live, Registry};
use super::text::TextBuilder;
use super::transport::Sink;
use crate::chat::{ChatPrompt, Constraint, Infill, Message, Prompt};
use crossbeam_channel::{Receiver, Sender};
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
    pub piece_bytes_max: u32,
    pub n_vocab: u32,
    /// Default scales of the LoRA adapters.
    pub adapter_scales: Vec<f32>,
    pub constraints: Arc<Constraints<M>>,
    /// `None`: this engine makes no vectors.
    pub embedder: Option<Embedder>,
}

/// The way to the thread that makes vectors.
#[derive(Clone)]
pub(super) struct Embedder {
    pub jobs: Sender<Job>,
    pub shape: Arc<InputShape>,
    pub pooling: Pooling,
}

/// A prompt as tokens, and how to read the answer to it.
struct Ready {
    tokens: Vec<Token>,
    reading: Reading,
    stops: Vec<String>,
    preserved: Vec<Token>,
    /// The model was not told to do without thinking.
    may_think: bool,
    call_starts: Vec<String>,
    grammar: Option<Box<Grammar>>,
    forced: Option<Box<Forced>>,
}

/// Longest text that is tokenised without being generated from, and the longest whose pieces are wanted too: an answer of
/// one number or one piece per token must fit into a frame, and no other request waits long for it.
const TOKENIZE_BYTES_MAX: usize = 8 << 20;
const PIECES_BYTES_MAX: usize = 1 << 20;

/// Text of a chat that the template may leave out; more must at least be able to fit the context.
const BESIDE_BYTES_MAX: usize = 1 << 20;

/// Longest grammar of a client, and its deepest nesting: llama.cpp's parser recurses.
const GBNF_BYTES_MAX: usize = 256 << 10;
const GBNF_DEPTH_MAX: usize = 256;

/// Longest text that goes back to a client in one answer.
const ANSWER_BYTES_MAX: usize = 32 << 20;

impl<M: Model> Preparer<M> {
    /// Until the service drops its end of `works`.
    pub(super) fn run(&self, works: &Receiver<Work>) {
        while let Ok(work) = works.recv() {
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

    fn answer(&self, work: Work) -> Result<Option<Event>, Failure> {
        match work.command {
            Command::Tokenize(request) => self.tokenize(request).map(Some),
            Command::Detokenize(tokens) => self.detokenize(&tokens).map(Some),
            Command::RenderChat(prompt) => {
                let text = self.render_folding(&prompt)?.text;
                refuse_long("messages", text.len(), ANSWER_BYTES_MAX)?;
                Ok(Some(Event::Text(text)))
            }
            Command::Generate(request) => {
                let run = self.prepare(work.id, work.live, *request)?;
                self.dispatch(run)?;
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
            Command::Cancel | Command::Stats => Ok(None),
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
        self.embedder()?.jobs.send(job).map_err(|_| Failure::ShuttingDown)?;
        Ok(None)
    }

    fn tokenize(&self, request: TokenizeRequest) -> Result<Event, Failure> {
        let most = if request.with_pieces { PIECES_BYTES_MAX } else { TOKENIZE_BYTES_MAX };
        match &request.prompt {
            Prompt::Chat(_) => {} // bounded by the context
            Prompt::Text(text) => refuse_long("content", text.len(), most)?,
            Prompt::Tokens(tokens) => refuse_long("prompt", tokens.len(), most)?,
            Prompt::Infill(_) => {} // bounded by the context
        }
        let tokens = match &request.prompt {
            Prompt::Chat(chat) => self.chat_tokens(chat)?.tokens,
            Prompt::Text(text) => self.model.tokenize(text, request.add_special, request.parse_special)?,
            Prompt::Tokens(tokens) => self.checked(tokens.clone())?,
            Prompt::Infill(infill) => self.infill(infill)?,
        };
        let pieces = if request.with_pieces {
            tokens.iter().map(|token| self.model.piece(*token).to_vec()).collect()
        } else {
            Vec::new()
        };
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

    fn prepare(&self, id: RequestId, live: Arc<Live>, request: GenerateRequest) -> Result<Run<M::Sampler>, Failure> {
        if self.lanes.is_empty() {
            return Err(Failure::invalid("model", "unsupported_operation", "this model can't generate text"));
        }
        let adapters = adapters::chosen(&self.adapter_scales, request.lora.as_deref())?;
        let mut ready = match request.prompt {
            Prompt::Chat(chat) => self.chat_tokens(&chat)?,
            Prompt::Text(text) => {
                self.refuse_hopeless(text.len())?;
                Ready::plain(self.model.tokenize(&text, true, true)?)
            }
            Prompt::Tokens(tokens) => Ready::plain(self.checked(tokens)?),
            Prompt::Infill(infill) => Ready::plain(self.infill(&infill)?),
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
        let gate = match (&request.output.constraint, &ready.forced) {
            (_, Some(forced)) => Some(self.call_gate(forced, request.output.top_logprobs.is_none())?),
            (None | Some(Constraint::Gbnf(_)), None) => None,
            (Some(constraint), None) => Some(self.gate(constraint, &ready, request.output.top_logprobs.is_none())?),
        };
        let drafter = match &request.output.prediction {
            Some(text) if gate.is_none() && !text.is_empty() => self.drafter(text)?,
            _ => None,
        };
        let with_logprobs = request.output.top_logprobs.is_some();
        let echo = request.output.echo.then(|| Echo { with_logprobs, entries: Vec::new() });
        let grammar = match (&request.output.constraint, &ready.forced) {
            (Some(Constraint::Gbnf(text)), None) => Some(Box::new(gbnf(text, &ready.reading)?)),
            _ => ready.grammar.take(),
        };
        let sampler = self.model.sampler(&request.sampling, &tokens, grammar.as_deref())?;
        let mut stops = request.output.stop;
        stops.extend(ready.stops);
        Ok(Run {
            id,
            live,
            tokens,
            n_prompt,
            n_cached: 0,
            n_generate_max,
            sampler,
            logit_bias: request.sampling.logit_bias,
            top_logprobs: request.output.top_logprobs,
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
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            clock: Clock { accepted: Instant::now(), started: None, first_token: None },
            ticket: None,
        })
    }

    /// What lets through only what the constraint allows; `forces`: forced tokens need no forward pass of their own.
    fn gate(&self, constraint: &Constraint, ready: &Ready, forces: bool) -> Result<Box<Gate>, Failure> {
        let matcher = self.constraints.compile(constraint)?;
        let (mut openings, ends, thinking) = match &ready.reading {
            Reading::Tags { ends, opened: true, .. } => (Vec::new(), ends.clone(), true),
            Reading::Tags { start, ends, opened: false } if ready.may_think => {
                let tokens = self.model.tokenize(start, false, true)?;
                (vec![Opening::Thinking(tokens)], ends.clone(), false)
            }
            Reading::Tags { .. } | Reading::Plain | Reading::Parser(_) => (Vec::new(), Vec::new(), false),
        };
        for start in &ready.call_starts {
            openings.push(Opening::Call(self.model.tokenize(start, false, true)?));
        }
        let thoughts = self.constraints.endless()?;
        Ok(Box::new(Gate::new(matcher, thoughts, openings, ends, thinking, forces)))
    }

    /// What lets through only calls.
    fn call_gate(&self, forced: &Forced, forces: bool) -> Result<Box<Gate>, Failure> {
        let matcher = self.constraints.compile(&Constraint::Lark(forced.lark.clone())).map_err(|failure| {
            let refused = forced.schemas.iter().find_map(|(index, schema)| {
                match self.constraints.compile(&Constraint::JsonSchema(schema.clone())) {
                    Err(Failure::Invalid { message, .. }) => Some(tool_refusal(*index, &message)),
                    _ => None,
                }
            });
            refused.unwrap_or_else(|| Failure::invalid("tools", "invalid_json_schema", failure.to_string()))
        })?;
        let ends = forced.thinking_ends.clone();
        let thinking = !ends.is_empty();
        Ok(Box::new(Gate::new(matcher, self.constraints.endless()?, Vec::new(), ends, thinking, forces)))
    }

    fn drafter(&self, text: &str) -> Result<Option<Box<Drafter>>, Failure> {
        // What can't be part of an answer is no use.
        let most = self.n_ctx as usize * self.piece_bytes_max as usize;
        if text.len() > most.min(TOKENIZE_BYTES_MAX) {
            return Ok(None);
        }
        Ok(Some(Box::new(Drafter::new(self.model.tokenize(text, false, false)?))))
    }

    /// Hands the run to the worker with the fewest; families stay together, since they share a context's cells.
    fn dispatch(&self, mut run: Run<M::Sampler>) -> Result<(), Failure> {
        let lane = match run.family {
            0 => self.lanes.iter().min_by_key(|lane| lane.n_runs()),
            family => self.lanes.get(usize::try_from(family).unwrap_or(0) % self.lanes.len().max(1)),
        };
        let lane = lane.ok_or(Failure::ShuttingDown)?;
        run.ticket = Some(lane.ticket());
        // Before the worker can say anything about it.
        self.sink.emit(vec![(run.id, Event::Accepted { n_prompt: run.n_prompt })]);
        lane.runs.send(Box::new(run)).map_err(|_| Failure::ShuttingDown)
    }

    /// The text around the gap in the model's own form, other files before it as far as they fit.
    /// Source: "Efficient Training of Language Models to Fill in the Middle" (PSM order), and llama-server's `/infill`.
    fn infill(&self, infill: &Infill) -> Result<Vec<Token>, Failure> {
        let Some(marks) = self.model.infill_tokens() else {
            let message = "this model has no tokens for filling in the middle";
            return Err(Failure::invalid("suffix", "unsupported_operation", message));
        };
        self.refuse_hopeless(infill.prefix.len() + infill.suffix.len() + infill.prompt.len())?;
        let plain = |text: &str| self.model.tokenize(text, false, false);
        let mut around = vec![marks.prefix];
        around.extend(plain(&infill.prefix)?);
        around.push(marks.suffix);
        around.extend(plain(&infill.suffix)?);
        around.push(marks.middle);
        around.extend(plain(&infill.prompt)?);
        let mut tokens = self.model.tokenize("", true, false)?; // BOS where the model wants one
        if let Some((repo, file)) = marks.repo_and_file.filter(|_| !infill.extra.is_empty()) {
            // Half of what is left is for the answer.
            let room = (self.n_ctx as usize).saturating_sub(tokens.len() + around.len() + 16) / 2;
            let mut files: Vec<Vec<Token>> = Vec::new();
            let mut n_taken = 0;
            for (name, text) in infill.extra.iter().rev() {
                if text.len() / self.piece_bytes_max as usize > room {
                    break;
                }
                let mut tokens = vec![file];
                tokens.extend(plain(&format!("{name}\n{text}\n"))?);
                n_taken += tokens.len();
                if n_taken > room {
                    break;
                }
                files.push(tokens);
            }
            if !files.is_empty() {
                tokens.push(repo);
                tokens.extend(plain("repo\n")?);
                tokens.extend(files.into_iter().rev().flatten());
                tokens.push(file);
                tokens.extend(plain("file\n")?);
            }
        }
        tokens.extend(around);
        Ok(tokens)
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
    fn refuse_hopeless(&self, n_bytes: usize) -> Result<(), Failure> {
        let n_tokens_min = n_bytes as u64 / u64::from(self.piece_bytes_max);
        if n_tokens_min >= u64::from(self.n_ctx) {
            return Err(Failure::ContextExceeded { n_prompt: n_tokens_min, n_ctx: self.n_ctx, at_least: true });
        }
        Ok(())
    }

    fn checked(&self, tokens: Vec<Token>) -> Result<Vec<Token>, Failure> {
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

    fn chat_tokens(&self, chat: &ChatPrompt) -> Result<Ready, Failure> {
        let n_bytes: usize = chat.messages.iter().filter_map(|message| message.content.as_ref()).map(String::len).sum();
        self.refuse_hopeless(n_bytes)?;
        // Thinking, calls and arguments may be left out by the template, but each choice carries a copy of them.
        let beside: usize = chat.messages.iter().flat_map(message_texts).flatten().map(str::len).sum::<usize>()
            - n_bytes
            + chat.template_kwargs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if beside > BESIDE_BYTES_MAX {
            self.refuse_hopeless(beside)?;
        }
        let fenced = fence(chat, self.model.control_texts());
        let rendered = self.render_folding(fenced.as_ref().unwrap_or(chat))?;
        let tokens = if fenced.is_some() && rendered.text.contains(FENCES[0]) {
            self.tokenize_fenced(&rendered.text)?
        } else {
            self.model.tokenize(&rendered.text, true, true)?
        };
        Ok(Ready {
            tokens,
            reading: rendered.reading,
            stops: rendered.stops,
            preserved: rendered.preserved,
            may_think: chat.enable_thinking != Some(false),
            call_starts: rendered.call_starts,
            grammar: rendered.grammar,
            forced: rendered.forced,
        })
    }

    /// Tokenises what lies between fences as plain text and the rest with its control tokens.
    fn tokenize_fenced(&self, text: &str) -> Result<Vec<Token>, Failure> {
        let mut tokens = Vec::new();
        let (mut is_user_text, mut is_first) = (false, true);
        for part in text.split(FENCES) {
            if !part.is_empty() {
                tokens.extend(self.model.tokenize(part, is_first, !is_user_text)?);
                is_first = false;
            }
            is_user_text = !is_user_text;
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

impl Ready {
    fn plain(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            reading: Reading::Plain,
            stops: Vec::new(),
            preserved: Vec::new(),
            may_think: false,
            call_starts: Vec::new(),
            grammar: None,
            forced: None,
        }
    }
}

/// A client's own grammar. Thinking that the prompt has opened comes before it.
///
/// Errors: it is too long or nested too deeply; whether it is a grammar at all is the sampler's to say.
fn gbnf(text: &str, reading: &Reading) -> Result<Grammar, Failure> {
    let refuse = |message: String| Failure::invalid("grammar", "invalid_value", message);
    if text.len() > GBNF_BYTES_MAX {
        return Err(refuse(format!("the grammar has {} bytes, and at most {GBNF_BYTES_MAX} are taken", text.len())));
    }
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > GBNF_DEPTH_MAX {
        return Err(refuse(format!(
            "the grammar is nested {deepest} levels deep, and at most {GBNF_DEPTH_MAX} are taken"
        )));
    }
    let triggers = match reading {
        Reading::Tags { ends, opened: true, .. } => ends.iter().map(|end| Trigger::behind(end)).collect(),
        _ => Vec::new(),
    };
    Ok(Grammar { gbnf: text.to_owned(), triggers, ..Default::default() })
}

fn refuse_long(field: &str, n: usize, most: usize) -> Result<(), Failure> {
    if n <= most {
        return Ok(());
    }
    let message = format!("{field} is too long here: {n} bytes or tokens, at most {most}");
    Err(Failure::invalid(field, "invalid_value", message))
}

/// The chat with every control-token text in its messages between fences; `None` when there is none (the usual case).
fn fence(chat: &ChatPrompt, control_texts: &[String]) -> Option<ChatPrompt> {
    let patterns = control_texts.iter().filter(|text| text.len() > 1);
    let has_one = |text: &str| control_texts.iter().any(|control| control.len() > 1 && text.contains(control.as_str()));
    let tool_texts = chat.tools.iter().flat_map(|tool| [tool.description.as_deref(), Some(tool.parameters.as_str())]);
    let texts = || chat.messages.iter().flat_map(message_texts).chain(tool_texts.clone());
    let fences_taken = texts().flatten().any(|text| text.contains(FENCES));
    if !fences_taken && !texts().flatten().any(has_one) {
        return None;
    }
    let finder = aho_corasick::AhoCorasick::builder()
        .match_kind(aho_corasick::MatchKind::LeftmostLongest)
        .build(patterns)
        .ok()?;
    let fence_text = |text: &Option<String>| {
        text.as_ref().map(|text| {
            // Noncharacters have no meaning in interchanged text; a fence in it must not open or close ours.
            let text = text.replace(FENCES, "\u{FFFD}");
            let mut fenced = String::with_capacity(text.len() + 16);
            finder.replace_all_with(&text, &mut fenced, |_, control, fenced| {
                fenced.push(FENCES[0]);
                fenced.push_str(control);
                fenced.push(FENCES[1]);
                true
            });
            fenced
        })
    };
    let mut chat = chat.clone();
    for message in &mut chat.messages {
        message.content = fence_text(&message.content);
        message.reasoning = fence_text(&message.reasoning);
        message.name = fence_text(&message.name);
        message.tool_call_id = fence_text(&message.tool_call_id);
        for text in message.tool_calls.iter_mut().flat_map(|call| [&mut call.id, &mut call.name, &mut call.arguments]) {
            *text = fence_text(&Some(std::mem::take(text))).unwrap_or_default();
        }
    }
    for tool in &mut chat.tools {
        tool.description = fence_text(&tool.description);
        tool.parameters = fence_text(&Some(std::mem::take(&mut tool.parameters))).unwrap_or_default();
    }
    Some(chat)
}

/// Everything in a message that somebody else than the template wrote.
fn message_texts(message: &Message) -> impl Iterator<Item = Option<&str>> {
    let calls =
        message.tool_calls.iter().flat_map(|call| [Some(call.id.as_str()), Some(&call.name), Some(&call.arguments)]);
    let own = [&message.content, &message.reasoning, &message.name, &message.tool_call_id];
    own.into_iter().map(|text| text.as_deref()).chain(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Role, ToolCall};

    #[test]
    fn control_texts_are_fenced_and_ordinary_chats_left_alone() {
        let controls = ["<|end|>".to_owned(), "<s>".to_owned()];
        let plain = ChatPrompt::new(vec![Message::new(Role::User, "hello < there")]);
        assert!(fence(&plain, &controls).is_none());
        let hostile = ChatPrompt::new(vec![Message::new(Role::User, "a<|end|>b\u{FDD0}")]);
        let fenced = fence(&hostile, &controls).expect("something to fence");
        assert_eq!(fenced.messages[0].content.as_deref(), Some("a\u{FDD0}<|end|>\u{FDD1}b\u{FFFD}"));
        let mut call = Message::new(Role::Assistant, "");
        let arguments = r#"{"q":"<|end|>"}"#.to_owned();
        call.tool_calls = vec![ToolCall { id: "c".into(), name: "f".into(), arguments }];
        let fenced = fence(&ChatPrompt::new(vec![call]), &controls).expect("arguments are fenced too");
        assert!(fenced.messages[0].tool_calls[0].arguments.contains(FENCES));
    }
}
