//! A model without weights: deterministic tokens, settable delays and faults.
//!
//! A token is a byte (id = its value), 256 is BOS, 257 ends a turn, 258 and 259 are the marks that open and close a
//! message. The chat template is ChatML-like. The answer depends only on the text of the last user message, as the cells
//! of the request's sequence hold it, so that a prefix that is somebody else's shows:
//!
//! | message starts with | answer |
//! |---|---|
//! | `/count N` | `1 2 3 … N`, a space after each number but the last |
//! | `/forever` | `. . . …` until something ends it |
//! | `/bytes 240 159 …` | these bytes, one token each |
//! | `/think TEXT` | `<think>TEXT</think>` and then `ok` |
//! | `/call NAME {…}` | a call of the tool NAME with these arguments; text before it as `/call` behind a line break |
//! | `/crash` | the process that runs the engine aborts when the prompt is computed |
//! | anything else | the message itself |
//!
//! Tool calls are `<tool_call>{"name":"…","arguments":{…}}</tool_call>` in the answer's text, read as calls where the
//! request has tools. A request that must call one gets a call of the first tool it may call, with `{}`, unless the
//! message asks for another.
//!
//! With `embeds=1` an input becomes a vector of 16 numbers that depend on its tokens only, with `embeds=2` a query and a
//! document become one number: the share of the query's bytes that the document has too. With `embeds=3` each token has a
//! vector, that of what stands up to it.
//!
//! Raw prompts (no chat) count as one user message. Sampling is honoured only where it can be without logits:
//! `logit_bias` of +100 forces its token, and a seed leaves the answer as it is. All logits are equal, so every
//! log-probability is -ln 260 (unless a bias says otherwise).

use super::scripted_calls::{CallParser, calls};
use super::scripted_encoder::ScriptedEncoder;
use super::{
    Calls, Chosen, Context, DecodeError, Grammar, InfillTokens, Interrupt, MediaRows, Model, PairLayout, Pick, Piece,
    Reading, Rendered, Row, Tags, Token, allows,
};
use crate::chat::{ChatPrompt, ReasoningFormat, SamplingParams, Tool, ToolChoice};
use crate::engine::config::{EngineConfig, ScriptedConfig};
use crate::engine::error::Failure;
use crate::engine::event::{Description, Pooling};
use crate::engine::logprobs;
use crate::engine::media::Bitmap;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BOS: Token = 256;
pub(super) const END: Token = 257;
const OPEN: Token = 258;
const CLOSE: Token = 259;
const N_VOCAB: usize = 260;
/// Numbers of a vector.
pub(super) const N_EMBD: usize = 16;

pub struct ScriptedModel {
    pub(super) config: ScriptedConfig,
    pieces: Vec<Vec<u8>>,
    control_texts: Vec<String>,
    n_ctx: u32,
    pub(super) shape: EngineConfig,
}

impl ScriptedModel {
    pub fn load(scripted: &ScriptedConfig, config: &EngineConfig, mut progress: impl FnMut(f32)) -> Self {
        let steps = (scripted.load_ms / 10).max(1);
        for step in 0..steps {
            if scripted.load_ms > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            progress((step + 1) as f32 / steps as f32);
        }
        let mut pieces: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        let specials = ["<s>", "<|end|>", "<|open|>", "<|close|>"];
        pieces.extend(specials.iter().map(|text| text.as_bytes().to_vec()));
        Self {
            config: scripted.clone(),
            pieces,
            control_texts: specials.iter().map(ToString::to_string).collect(),
            n_ctx: config.n_ctx.unwrap_or(4096),
            shape: config.clone(),
        }
    }

    pub(super) fn pooling(&self) -> Option<Pooling> {
        match self.config.embeds {
            0 => None,
            1 => Some(Pooling::Mean),
            2 => Some(Pooling::Rank),
            _ => Some(Pooling::None),
        }
    }

    fn n_ctx_seq(&self) -> u32 {
        if self.shape.kv_layout.is_unified() { self.n_ctx } else { self.n_ctx / self.shape.n_slots.max(1) }
    }
}

/// The rest of one answer.
pub struct Script {
    answer: Answer,
    at: usize,
    forced: Option<Token>,
    /// The answer is to what the context holds; until then to the prompt as it came.
    has_looked: bool,
}

enum Answer {
    Bytes(Vec<u8>),
    Forever,
    Crash,
}

impl Script {
    fn next(&mut self) -> Token {
        if let Some(forced) = self.forced {
            return forced;
        }
        let at = self.at;
        self.at += 1;
        match &self.answer {
            Answer::Bytes(bytes) => bytes.get(at).map_or(END, |byte| Token::from(*byte)),
            Answer::Forever => Token::from(if at.is_multiple_of(2) { b'.' } else { b' ' }),
            Answer::Crash => END,
        }
    }
}

impl Script {
    /// Before the first token: whatever came as a prompt, the answer is to what was computed or found.
    fn look(&mut self, held: impl Iterator<Item = Token>) {
        if !std::mem::replace(&mut self.has_looked, true) {
            self.answer = answer(&held.collect::<Vec<Token>>());
        }
    }

    /// The script's token where the mask allows it, else the one that ends what was begun soonest.
    fn next_of(&mut self, mask: &[u32]) -> Option<Token> {
        let at = self.at;
        let token = self.next();
        if allows(mask, token) {
            return Some(token);
        }
        self.at = at;
        let soon = b"}]\",:0{[".iter().map(|byte| Token::from(*byte));
        let token = std::iter::once(END).chain(soon).chain(0..=CLOSE).find(|token| allows(mask, *token))?;
        self.follow(token);
        Some(token)
    }

    /// Somebody else chose `token`.
    fn follow(&mut self, token: Token) {
        if let Answer::Bytes(bytes) = &self.answer
            && bytes.get(self.at).is_some_and(|byte| Token::from(*byte) == token)
        {
            self.at += 1;
        }
    }
}

fn answer(prompt: &[Token]) -> Answer {
    let message = last_message(prompt);
    match forced_tool(prompt) {
        Some(name) if !message.starts_with("/call ") => Answer::Bytes(calls(&format!("/call {name}")).into_bytes()),
        _ => answer_to(&message),
    }
}

fn answer_to(message: &str) -> Answer {
    let (directive, rest) = message.split_once(' ').unwrap_or((message, ""));
    match directive {
        "/count" => {
            let n: u32 = rest.trim().parse().unwrap_or(0);
            let numbers: Vec<String> = (1..=n.min(1_000_000)).map(|number| number.to_string()).collect();
            Answer::Bytes(numbers.join(" ").into_bytes())
        }
        "/forever" => Answer::Forever,
        "/bytes" => Answer::Bytes(rest.split_whitespace().filter_map(|word| word.parse().ok()).collect()),
        "/think" => Answer::Bytes(format!("<think>{rest}</think>ok").into_bytes()),
        "/call" => Answer::Bytes(calls(message).into_bytes()),
        "/crash" => Answer::Crash,
        _ => Answer::Bytes(message.as_bytes().to_vec()),
    }
}

/// The tool that the prompt says must be called.
fn forced_tool(prompt: &[Token]) -> Option<String> {
    let role: Vec<Token> = b"call\n".iter().map(|byte| Token::from(*byte)).collect();
    let start = prompt.windows(role.len() + 1).rposition(|window| window[0] == OPEN && window[1..] == role[..])?;
    let name = prompt[start + role.len() + 1..].iter().take_while(|token| **token != CLOSE);
    let bytes: Vec<u8> = name.filter_map(|token| u8::try_from(*token).ok()).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last user message of a rendered chat, or all of a raw prompt.
fn last_message(prompt: &[Token]) -> String {
    let user: Vec<Token> = b"user\n".iter().map(|byte| Token::from(*byte)).collect();
    let start = prompt.windows(user.len() + 1).rposition(|window| window[0] == OPEN && window[1..] == user[..]);
    let body = match start {
        Some(start) => {
            let body = &prompt[start + user.len() + 1..];
            &body[..body.iter().position(|token| *token == CLOSE).unwrap_or(body.len())]
        }
        None => prompt,
    };
    let bytes: Vec<u8> = body.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Model for ScriptedModel {
    type Sampler = Script;
    type Context = ScriptedContext;
    type Encoder = ScriptedEncoder;
    type Chunk = std::convert::Infallible;

    fn describe(&self) -> Description {
        Description {
            architecture: "scripted".into(),
            desc: "scripted bytes".into(),
            n_vocab: N_VOCAB as u32,
            n_embd: 1,
            n_layer: 1,
            n_ctx_train: self.n_ctx,
            n_ctx: self.n_ctx_seq(),
            n_slots: self.shape.n_slots * self.shape.n_workers,
            n_batch: self.shape.n_batch,
            n_ubatch: self.shape.n_ubatch,
            n_threads: 1,
            chat_template: Some("scripted".into()),
            supports_thinking: true,
            bos_token: "<s>".into(),
            eos_token: "<|end|>".into(),
            piece_bytes_max: 9,
            generates: true,
            has_tools: true,
            adapters: super::adapters(&self.shape),
            infills: true,
            pooling: self.pooling(),
            n_embd_out: self.pooling().map_or(0, |pooling| if pooling == Pooling::Rank { 1 } else { N_EMBD as u32 }),
            n_embed_max: self.n_ctx_seq(),
            build: "scripted".into(),
            cpu: String::new(),
            ..Default::default()
        }
    }

    fn n_vocab(&self) -> u32 {
        N_VOCAB as u32
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, Failure> {
        let mut tokens = Vec::with_capacity(text.len() + 1);
        if add_special {
            tokens.push(BOS);
        }
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let special = (BOS..=CLOSE).find(|token| parse_special && rest.starts_with(self.piece(*token)));
            match special {
                Some(token) => {
                    tokens.push(token);
                    rest = &rest[self.piece(token).len()..];
                }
                None => {
                    tokens.push(Token::from(*first));
                    rest = after;
                }
            }
        }
        Ok(tokens)
    }

    fn piece(&self, token: Token) -> &[u8] {
        usize::try_from(token).ok().and_then(|index| self.pieces.get(index)).map_or(&[], Vec::as_slice)
    }

    fn is_control(&self, token: Token) -> bool {
        token >= BOS
    }

    fn control_texts(&self) -> &[String] {
        &self.control_texts
    }

    fn is_end(&self, token: Token) -> bool {
        token == END
    }

    /// The marks of messages do as marks of parts: what stands before the gap is opened, what stands behind it closed.
    fn infill_tokens(&self) -> Option<InfillTokens> {
        Some(InfillTokens { prefix: OPEN, suffix: CLOSE, middle: BOS, repo_and_file: None })
    }

    fn render(&self, prompt: &ChatPrompt) -> Result<Rendered, Failure> {
        let mut text = String::new();
        let last = prompt.messages.len().saturating_sub(1);
        for (index, message) in prompt.messages.iter().enumerate() {
            text.push_str("<|open|>");
            text.push_str(message.role.as_str());
            text.push('\n');
            text.push_str(message.content.as_deref().unwrap_or_default());
            if !(prompt.continue_final_message && index == last) {
                text.push_str("<|close|>");
            }
        }
        if prompt.tool_choice == ToolChoice::Required {
            let callable = |tool: &&Tool| prompt.callable.as_ref().is_none_or(|names| names.contains(&tool.name));
            let first = prompt.tools.iter().find(callable);
            let name = first.map(|tool| tool.name.as_str()).unwrap_or_default();
            text.push_str(&format!("<|open|>call\n{name}<|close|>"));
        }
        if prompt.add_generation_prompt && !prompt.continue_final_message {
            text.push_str("<|open|>assistant\n");
        }
        let splits_thinking = prompt.reasoning_format == ReasoningFormat::Separate;
        let reading = match prompt.reasoning_format {
            _ if !prompt.tools.is_empty() && prompt.tool_choice != ToolChoice::None => {
                Reading::Parser(Box::new(CallParser { splits_thinking }))
            }
            ReasoningFormat::Separate => {
                Reading::Tags { start: "<think>".into(), ends: vec!["</think>".into()], opened: false }
            }
            ReasoningFormat::Inline => Reading::Plain,
        };
        let mark = || vec!["<tool_call>".to_owned()];
        let calls = match &reading {
            Reading::Parser(_) => Calls::Lazy { grammar: None, starts: mark() },
            _ if prompt.tools.is_empty() => Calls::Never(Vec::new()),
            _ => Calls::Never(mark()),
        };
        let thinking = match &reading {
            Reading::Tags { start, ends, opened } => Tags { start: start.clone(), ends: ends.clone(), opened: *opened },
            _ => Tags::default(),
        };
        Ok(Rendered { text, reading, stops: Vec::new(), preserved: Vec::new(), calls, thinking, frame: None })
    }

    fn audio_rate(&self) -> Option<u32> {
        None
    }

    fn split_media(&self, _bitmap: &Bitmap) -> Result<Vec<Piece<Self::Chunk>>, String> {
        Err("the model has no projector".into())
    }

    fn encode_media(&self, chunk: &Self::Chunk) -> Result<Vec<f32>, String> {
        match *chunk {}
    }

    fn sampler(&self, params: &SamplingParams, prompt: &[Token], grammar: Option<&Grammar>) -> Result<Script, Failure> {
        if grammar.is_some_and(|grammar| !grammar.gbnf.is_empty()) {
            return Err(Failure::invalid("grammar", "unsupported_operation", "the scripted model reads no GBNF"));
        }
        let forced = params.logit_bias.iter().find(|(_, bias)| *bias >= 100.0).map(|(token, _)| *token);
        Ok(Script { answer: answer(prompt), at: 0, forced, has_looked: false })
    }

    fn context(self: &Arc<Self>, config: &EngineConfig, interrupt: Interrupt) -> Result<ScriptedContext, String> {
        Ok(ScriptedContext {
            config: self.config.clone(),
            n_cells: self.n_ctx,
            n_ctx_seq: self.n_ctx_seq(),
            n_batch: config.n_batch,
            shares_cells: config.kv_layout.is_unified(),
            held: FxHashMap::default(),
            n_holders: FxHashMap::default(),
            next_cell: 0,
            last: Vec::new(),
            n_decodes: 0,
            interrupt,
            logits: vec![0.0; N_VOCAB],
        })
    }

    fn encoder(self: &Arc<Self>, interrupt: Interrupt) -> Result<ScriptedEncoder, String> {
        Ok(ScriptedEncoder::new(Arc::clone(self), interrupt))
    }

    fn pair_layout(&self) -> PairLayout {
        PairLayout::Tokens { before: vec![BOS], between: vec![END], after: vec![END] }
    }
}

pub struct ScriptedContext {
    config: ScriptedConfig,
    n_cells: u32,
    n_ctx_seq: u32,
    n_batch: u32,
    shares_cells: bool,
    /// The cells of each sequence and what they hold, one a position.
    held: FxHashMap<u32, Vec<(u64, Token)>>,
    /// How many sequences hold each cell.
    n_holders: FxHashMap<u64, u32>,
    next_cell: u64,
    /// (sequence, position) of each row of the last decode.
    last: Vec<(u32, u32)>,
    n_decodes: u64,
    interrupt: Interrupt,
    logits: Vec<f32>,
}

/// Sleeps for `time`, unless the interrupt ends it.
pub(super) fn wait(interrupt: &Interrupt, time: Duration) -> Result<(), DecodeError> {
    let until = Instant::now() + time;
    loop {
        if interrupt() {
            return Err(DecodeError::Aborted);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Short steps are slept in one go: sleep granularity would distort them.
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
}

impl ScriptedContext {
    /// Whether a memory that can't be cut can forget positions `from..`; not twice before the next decode.
    fn take_back(&mut self, seq: u32, from: u32) -> bool {
        let n_held = self.held.get(&seq).map_or(0, Vec::len);
        let n = n_held.saturating_sub(from as usize);
        if n == 0 {
            return true;
        }
        let is_alone = self.last.iter().all(|(other, _)| *other == seq);
        let can = is_alone && n < self.last.len() && n as u64 <= self.config.rows_back;
        if can {
            self.last.clear();
        }
        can
    }

    /// The next token of the script behind row `row` of the last decode.
    fn sample(&self, row: usize, sampler: &mut Script, mask: Option<&[u32]>) -> Result<Token, String> {
        let (seq, pos) = *self.last.get(row).ok_or("there is no such row; this is a bug")?;
        let held = self.held.get(&seq).into_iter().flatten();
        sampler.look(held.take(pos as usize + 1).map(|(_, token)| *token));
        if matches!(sampler.answer, Answer::Crash) {
            // In a child process this is what a crash in C++ looks like from outside.
            std::process::abort();
        }
        match mask {
            None => Ok(sampler.next()),
            Some(mask) => sampler.next_of(mask).ok_or_else(|| "the constraint allows no token".into()),
        }
    }
}

impl Context for ScriptedContext {
    type Sampler = Script;

    fn n_batch(&self) -> u32 {
        self.n_batch
    }

    fn n_cells(&self) -> u32 {
        self.n_cells
    }

    fn n_ctx_seq(&self) -> u32 {
        self.n_ctx_seq
    }

    fn shares_cells(&self) -> bool {
        self.shares_cells
    }

    fn set_adapters(&mut self, _adapters: &[(u32, f32)]) -> Result<(), String> {
        Ok(()) // there is nothing they could change
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        assert!(!rows.is_empty() && rows.len() <= self.n_batch as usize, "a batch has 1..=n_batch rows; this is a bug");
        if self.n_holders.len() + rows.len() > self.n_cells as usize {
            return Err(DecodeError::NoKvSlot);
        }
        self.n_decodes += 1;
        if self.n_decodes == self.config.crash_at_decode {
            std::process::abort();
        }
        let n_prompt = rows.len().saturating_sub(rows.iter().filter(|row| row.output).count()) as u64;
        let n_part = rows.len() as u64 % 4;
        let of_rows = n_prompt * self.config.prompt_token_us + n_part * self.config.part_row_us;
        let time = Duration::from_micros(self.config.step_us + of_rows);
        if !time.is_zero() {
            wait(&self.interrupt, time)?;
        }
        self.last = rows.iter().map(|row| (row.seq, row.pos)).collect();
        for row in rows {
            let held = self.held.entry(row.seq).or_default();
            assert_eq!(held.len(), row.pos as usize, "positions of a sequence are contiguous; this is a bug");
            held.push((self.next_cell, row.token));
            self.n_holders.insert(self.next_cell, 1);
            self.next_cell += 1;
        }
        Ok(())
    }

    fn decode_media(&mut self, _rows: MediaRows<'_>) -> Result<(), DecodeError> {
        Err(DecodeError::Broken("the scripted model has no projector".into()))
    }

    fn logits(&mut self, _row: usize) -> Option<&[f32]> {
        Some(&self.logits)
    }

    fn choose(&mut self, picks: &mut [Pick<'_, Script>]) {
        for pick in picks {
            let (row, top) = (pick.row, pick.top);
            let choose = |at: usize, mask: Option<&[u32]>, sampler: &mut Script| {
                let token = self.sample(row + at, sampler, mask)?;
                let told = top.map(|(k, bias)| logprobs::of_row(&self.logits, bias, token, k));
                Ok(Chosen { token, told, is_forced: false })
            };
            pick.run(choose, |sampler, token| {
                sampler.follow(token);
                Ok(())
            });
        }
    }

    fn share(&mut self, from: u32, to: u32, n: u32) -> bool {
        let cells = self.held.get(&from).map(|held| held[..n as usize].to_vec()).unwrap_or_default();
        for (cell, _) in &cells {
            *self.n_holders.entry(*cell).or_default() += 1;
        }
        self.held.insert(to, cells);
        true
    }

    /// Two bytes a token.
    fn save(&mut self, seq: u32, most: usize) -> Option<Vec<u8>> {
        let held = self.held.get(&seq)?;
        let fits = !held.is_empty() && 2 * held.len() <= most;
        // There are fewer tokens than two bytes can tell.
        fits.then(|| {
            held.iter().flat_map(|(_, token)| u16::try_from(*token).unwrap_or_default().to_le_bytes()).collect()
        })
    }

    fn load(&mut self, seq: u32, state: &[u8]) -> bool {
        let tokens = state.as_chunks::<2>().0.iter().map(|bytes| Token::from(u16::from_le_bytes(*bytes)));
        let cells: Vec<(u64, Token)> = (self.next_cell..).zip(tokens).collect();
        if self.n_holders.len() + cells.len() > self.n_cells as usize {
            return false;
        }
        self.next_cell += cells.len() as u64;
        self.n_holders.extend(cells.iter().map(|(cell, _)| (*cell, 1)));
        self.held.insert(seq, cells);
        true
    }

    fn forget(&mut self, seq: u32, from: u32) -> bool {
        if from > 0 && !self.can_cut() && !self.take_back(seq, from) {
            return false;
        }
        let Some(held) = self.held.get_mut(&seq) else { return true };
        for (cell, _) in held.drain((from as usize).min(held.len())..) {
            if let Some(n) = self.n_holders.get_mut(&cell) {
                *n -= 1;
                if *n == 0 {
                    self.n_holders.remove(&cell);
                }
            }
        }
        true
    }

    fn can_resume(&mut self, _seq: u32, _from: u32) -> bool {
        true
    }

    fn can_cut(&self) -> bool {
        self.config.rows_back == 0
    }

    fn goes_back(&self) -> bool {
        self.can_cut()
    }

    fn goes_back_by(&self) -> u32 {
        if self.can_cut() { u32::MAX } else { u32::try_from(self.config.rows_back).unwrap_or(u32::MAX) }
    }
}
