//! What a worker needs of a model: [`Model`] is shared and read by many threads, [`Context`] belongs to one worker.
//!
//! Two exist: `llama` is real, `scripted` makes deterministic tokens for tests and for measuring the server itself.

mod call_grammar;
mod calls;
mod convertible;
mod cores;
mod draft;
mod encode;
#[cfg(test)]
mod families;
#[cfg(test)]
mod fuzz_tests;
pub mod llama;
mod llama_context;
mod params;
mod pick;
mod projector;
mod render;
mod rollback;
pub mod scripted;
mod scripted_calls;
mod scripted_encoder;
mod shape_parser;

use super::config::{EngineConfig, LoraConfig};
use super::error::Failure;
use super::event::{Adapter, Description};
use super::logprobs;
use super::media::Bitmap;
use crate::chat::{ChatPrompt, SamplingParams};
use std::sync::Arc;

pub use crate::llama::{AnswerFrame, Grammar, Trigger};
pub(super) use call_grammar::{CallGrammar, Level};
pub(super) use calls::refusal as tool_refusal;
pub use pick::{Ask, Chosen, Listener, Pick, Place};

/// Two characters that Unicode reserves for internal use and forbids in interchange; they fence control-token texts that
/// a user wrote, on their way through the template. Grammars and parsers are made without them.
pub const FENCES: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];

/// A token id; below `n_vocab` once checked.
pub type Token = i32;

/// A chat turned into the text the model reads, and how to read what it writes.
pub struct Rendered {
    pub text: String,
    pub reading: Reading,
    /// Strings that end the answer, as the template's format asks.
    pub stops: Vec<String>,
    /// Tokens whose text is part of the format (tags) and shown though they are control tokens.
    pub preserved: Vec<Token>,
    pub calls: Calls,
    /// Where thinking stands, whatever reads it.
    pub thinking: Tags,
    /// What stands around the answer in formats that have more than one kind of text; `None`: nothing, or it isn't known.
    pub frame: Option<AnswerFrame>,
}

/// Whether and how an answer may call tools.
pub enum Calls {
    /// Not at all: none of these texts may come.
    Never(Vec<String>),
    /// When the model likes; the sampler's grammar, where there is one, holds calls. Each of `starts` begins one.
    Lazy { grammar: Option<Box<Grammar>>, starts: Vec<String> },
    /// When the model likes; once begun, calls are the grammar's. Texts that may not come beside.
    Begun(Box<CallGrammar>, Vec<String>),
    /// It is calls and nothing else.
    Forced(Box<CallGrammar>),
}

/// Tags around thinking.
#[derive(Debug, Clone, Default)]
pub struct Tags {
    /// Empty: no thinking begins in the answer.
    pub start: String,
    pub ends: Vec<String>,
    /// The prompt ended inside them.
    pub opened: bool,
}

/// How the text of an answer is taken apart into thinking and content.
pub enum Reading {
    /// All of it is content.
    Plain,
    /// Thinking stands between tags.
    Tags { start: String, ends: Vec<String>, opened: bool },
    /// The format needs the model's own parser.
    Parser(Box<dyn AnswerParser>),
}

/// Takes the text of an answer apart. Implementations look at the whole text so far.
pub trait AnswerParser: Send {
    /// `None` when `text` can't be read (the caller falls back to plain text).
    fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed>;
}

/// An answer, or what there is of it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<ParsedCall>,
}

/// A tool call, or the beginning of one. `arguments` is JSON text as far as it goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedCall {
    /// The model's own id, empty where its format has none.
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// A part of an image or sound: text tokens around it, or something to encode.
#[derive(Debug)]
pub enum Piece<C> {
    Text(Vec<Token>),
    Chunk { chunk: C, shape: Arc<ChunkShape> },
}

/// What a chunk becomes in the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkShape {
    /// Rows of embeddings, and cells that they take; at least 1.
    pub n_tokens: u32,
    /// Positions that the chunk takes: `n_tokens`, or fewer in models that count them in several dimensions.
    pub n_pos: u32,
    /// Every row sees every other, so all must be in one decode.
    pub is_non_causal: bool,
    /// (time, row, column) of each token from the chunk's first position on; empty where they just count on.
    pub grid: Vec<[i32; 3]>,
}

/// What stands before each part of a fill-in-the-middle prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfillTokens {
    pub prefix: Token,
    pub suffix: Token,
    pub middle: Token,
    /// Before the repository's name, and before the name of each of its files; without them only the text around the
    /// gap can be shown.
    pub repo_and_file: Option<(Token, Token)>,
}

/// Weights and vocabulary. Everything here may be called from any thread.
pub trait Model: Send + Sync + 'static {
    type Sampler: Send + 'static;
    type Context: Context<Sampler = Self::Sampler> + Send + 'static;
    type Encoder: Encoder + Send + 'static;
    /// Preprocessed pixels or samples.
    type Chunk: Send + 'static;

    fn describe(&self) -> Description;

    fn n_vocab(&self) -> u32;

    /// Text to tokens. Errors only when the tokenizer itself fails.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, Failure>;

    /// The token's exact bytes, control tokens included. Empty for ids outside the vocabulary.
    fn piece(&self, token: Token) -> &[u8];

    /// Whether the token is markup rather than text (and so not part of an answer).
    fn is_control(&self, token: Token) -> bool;

    /// Texts of the control tokens, which must not be recognised in what a user wrote.
    fn control_texts(&self) -> &[String];

    /// Whether the token ends the model's turn.
    fn is_end(&self, token: Token) -> bool;

    /// Tokens of fill-in-the-middle, where the vocabulary has them.
    fn infill_tokens(&self) -> Option<InfillTokens>;

    /// Runs the chat template.
    fn render(&self, prompt: &ChatPrompt) -> Result<Rendered, Failure>;

    /// Samples per second that the projector wants; `None` when it takes no sound.
    fn audio_rate(&self) -> Option<u32>;

    /// Cuts an image or sound into what the projector encodes. Errors: the reason, as the end of a sentence.
    fn split_media(&self, bitmap: &Bitmap) -> Result<Vec<Piece<Self::Chunk>>, String>;

    /// The chunk's rows, n_tokens × n_embd. Slow; one at a time.
    fn encode_media(&self, chunk: &Self::Chunk) -> Result<Vec<f32>, String>;

    /// A sampler that has seen `prompt`. `params` are in range; what can still fail names the field. Without triggers the
    /// grammar holds from the first token on.
    fn sampler(
        &self,
        params: &SamplingParams,
        prompt: &[Token],
        grammar: Option<&Grammar>,
    ) -> Result<Self::Sampler, Failure>;

    /// A context of its own for one worker. `interrupt` is asked often during a decode; true ends it.
    fn context(self: &Arc<Self>, config: &EngineConfig, interrupt: Interrupt) -> Result<Self::Context, String>;

    /// A context that makes vectors, for models whose description has a `pooling`.
    fn encoder(self: &Arc<Self>, interrupt: Interrupt) -> Result<Self::Encoder, String>;

    /// How a query and a document become one input of a model that ranks.
    fn pair_layout(&self) -> PairLayout;
}

/// A query and a document as one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairLayout {
    /// A text with `{query}` and `{document}` in it.
    Template(String),
    /// Tokens around the query's and the document's own.
    Tokens { before: Vec<Token>, between: Vec<Token>, after: Vec<Token> },
}

/// Inputs to vectors; one worker thread owns it. Holds nothing between inputs.
pub trait Encoder {
    /// Most rows of one batch.
    fn n_batch(&self) -> u32;
    /// Rows of a batch above which a further input makes all slower.
    fn n_rows_aim(&self) -> u32;
    /// Most inputs in one batch; sequences are below it.
    fn n_seqs(&self) -> u32;
    /// Whether all rows of an input must be in one batch; else those of one input at a time may come in several.
    fn takes_whole_inputs(&self) -> bool;

    /// One forward pass. Rows are 1..=n_batch, positions of a sequence contiguous with what it holds.
    fn encode(&mut self, rows: &[Row]) -> Result<(), DecodeError>;

    /// Whether the vectors of an input's tokens become one; else each token has its own.
    fn is_pooled(&self) -> bool;
    /// The vector of a sequence as of the last pass.
    fn vector(&mut self, seq: u32) -> Option<&[f32]>;
    /// The vector of one row of the last pass, where they are not pooled.
    fn row_vector(&mut self, row: usize) -> Option<&[f32]>;

    /// Forgets what a sequence holds.
    fn forget(&mut self, seq: u32);
}

/// The configured adapters, as they are described.
fn adapters(config: &EngineConfig) -> Vec<Adapter> {
    let adapter = |lora: &LoraConfig| Adapter { path: lora.path.display().to_string(), scale: lora.scale };
    config.lora.iter().map(adapter).collect()
}

/// Asked during a decode whether to give up.
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

/// The control tokens in a text, by their own texts.
pub fn controls_in<M: Model>(model: &M, text: &str) -> Vec<(String, Token)> {
    let is_in = |control: &&String| control.len() > 1 && text.contains(control.as_str());
    let found = model.control_texts().iter().filter(is_in);
    let token = |control: &String| {
        let tokens = model.tokenize(control, false, true).ok()?;
        (tokens.len() == 1).then(|| (control.clone(), tokens[0]))
    };
    found.filter_map(token).collect()
}

/// Whether a mask allows a token; see `Gate::mask`.
pub fn allows(mask: &[u32], token: Token) -> bool {
    let index = usize::try_from(token).unwrap_or(usize::MAX);
    mask.get(index / 32).is_some_and(|word| word >> (index % 32) & 1 == 1)
}

/// Output rows of a batch beyond one for each sequence: drafts, and prompts whose log-probabilities are wanted.
pub const EXTRA_OUTPUTS: u32 = 64;

/// One row of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub token: Token,
    pub pos: u32,
    pub seq: u32,
    /// Whether logits of this row are wanted.
    pub output: bool,
}

/// Rows of a chunk, in a decode of their own.
#[derive(Debug, Clone, Copy)]
pub struct MediaRows<'a> {
    /// n × n_embd.
    pub rows: &'a [f32],
    pub n_rows: u32,
    /// Position of the chunk's first token.
    pub pos: u32,
    /// Number of the first of these rows in the chunk.
    pub first: u32,
    pub shape: &'a ChunkShape,
    pub seq: u32,
    /// Whether logits of the last row are wanted.
    pub output: bool,
}

/// Why a decode did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// No free KV cells for the batch; nothing changed.
    NoKvSlot,
    /// The interrupt said so; rows may be computed in part.
    Aborted,
    /// The context can't be used any more.
    Broken(String),
}

/// What drafts for a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftTraits {
    /// It reads what decodes of the target left behind, so it takes in each as it is, or starts a sequence anew. Else it
    /// reads tokens, whenever it likes.
    pub follows: bool,
    /// Every draft takes as long as one of `n_max` tokens.
    pub is_fixed: bool,
    /// Most tokens of one draft.
    pub n_max: u32,
    /// Drafts of fewer come back empty.
    pub n_min: u32,
    /// Tokens from this one on are unknown to it.
    pub n_vocab: u32,
}

/// A draft that is wanted: what comes after `last`, which stands at `pos` and is computed by nobody yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftAsk {
    pub seq: u32,
    pub pos: u32,
    pub last: Token,
    pub n_max: u32,
}

/// The KV cache and the forward pass; one worker thread owns it.
pub trait Context {
    type Sampler;

    /// Most rows of one batch.
    fn n_batch(&self) -> u32;
    /// KV cells in all.
    fn n_cells(&self) -> u32;
    /// Most positions of one sequence.
    fn n_ctx_seq(&self) -> u32;

    /// Whether all sequences draw their cells from one pool.
    fn shares_cells(&self) -> bool;

    /// Whether a step of as many rows as the one before takes less time than others: a GPU that repeats a step has it recorded.
    fn records_steps(&self) -> bool {
        false
    }

    /// The LoRA adapters (index and scale) that later decodes are computed with, in place of those before. Setting the
    /// same ones again costs nothing. Indexes are those of [`Description::adapters`].
    fn set_adapters(&mut self, adapters: &[(u32, f32)]) -> Result<(), String>;

    /// One forward pass. Rows are 1..=n_batch, positions of a sequence contiguous with what it holds.
    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError>;

    /// One forward pass over a chunk's rows: all of them where the chunk is not causal, at most n_batch.
    fn decode_media(&mut self, rows: MediaRows<'_>) -> Result<(), DecodeError>;

    /// The logits of row `row` of the last decode; it must have been an output row.
    fn logits(&mut self, row: usize) -> Option<&[f32]>;

    /// Chooses for several slots at once from rows of the last decode, each with its own sampler, which is told, and fills
    /// `chosen`. With a mask, only tokens whose bit is set (see `Gate::mask`) may be chosen.
    fn choose(&mut self, picks: &mut [Pick<'_, Self::Sampler>]);

    /// Tells of several tokens at once, from rows of the last decode that were output rows.
    fn tell(&mut self, asks: &mut [Ask]) {
        for ask in asks {
            ask.told = self.logits(ask.row).map(|row| logprobs::of_row(row, &[], ask.token, ask.k));
        }
    }

    /// Lets sequence `to`, which holds nothing, hold the first `n` positions of `from` too. `false`: it can't.
    fn share(&mut self, from: u32, to: u32, n: u32) -> bool;

    /// A copy of what a sequence holds, at most `most` bytes, for [`load`](Self::load).
    fn save(&mut self, _seq: u32, _most: usize) -> Option<Vec<u8>> {
        None
    }

    /// Lets sequence `seq`, which holds nothing, hold what was saved. `false`: it can't, and holds nothing.
    fn load(&mut self, _seq: u32, _state: &[u8]) -> bool {
        false
    }

    /// Whether a sequence can forget its last positions and keep the others, whenever they were computed.
    fn can_cut(&self) -> bool {
        true
    }

    /// Whether a sequence can go on from any position that it has passed: no recurrent state, no sliding window.
    fn goes_back(&self) -> bool {
        true
    }

    /// Most rows of its last decode that a sequence can be taken back by with `forget`; `u32::MAX`: it can be cut anywhere.
    /// Where it can't be cut the decode must have been this sequence's alone, and its first row stays.
    fn goes_back_by(&self) -> u32 {
        if self.can_cut() { u32::MAX } else { 0 }
    }

    /// Forgets positions `from..` of a sequence. `false`: this memory can't cut there, and the caller must forget the
    /// whole sequence.
    fn forget(&mut self, seq: u32, from: u32) -> bool;

    /// Whether the sequence can go on at position `from` after forgetting what lies behind it (a sliding window may have
    /// dropped what is needed, an aborted decode may have spoiled it).
    fn can_resume(&mut self, seq: u32, from: u32) -> bool;

    /// What drafts for it. Its side of a sequence is apart from what this context holds of it.
    fn drafts(&self) -> Option<DraftTraits> {
        None
    }

    /// What drafts takes in rows, those of a sequence together: of the caller's choice, or, where it follows, those of the
    /// last decode. What its side of a sequence holds from the first of them on is forgotten; with a gap before it, all
    /// is. `false`: it could not, and its side of these sequences is empty.
    fn draft_feed(&mut self, _rows: &[Row]) -> bool {
        false
    }

    /// Drafts for several sequences in one go, in the order of `asks`; empty where there is none. Positions from each
    /// ask's on are forgotten before and may be held after. `None`: there was no room for the ask's token, and what its
    /// side of the sequence holds is unknown.
    fn draft(&mut self, asks: &[DraftAsk]) -> Vec<Option<Vec<Token>>> {
        vec![None; asks.len()]
    }

    /// Where it follows: of a sequence's rows in the last decode `n` behind the first were kept.
    fn draft_accept(&mut self, _seq: u32, _n: u32) {}

    /// Its side of sequence `to` holds the first `n` positions of `from` and nothing else. `false`: it holds nothing.
    fn draft_share(&mut self, _from: u32, _to: u32, _n: u32) -> bool {
        false
    }

    /// Its side of a sequence is emptied. `false`: it was empty.
    fn draft_clear(&mut self, _seq: u32) -> bool {
        false
    }
}
