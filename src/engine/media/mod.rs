//! Images and sound on their way to the model.
//!
//! # Design
//! A chat's media become markers in its text, which travel through the template like any other text; what comes out is cut
//! at the markers again. Each image or sound is decoded here, in pure Rust with bounds (`decode`), and split by the model's
//! projector into text tokens and chunks. In a run's tokens a chunk is a row of placeholders: negative ids made from the
//! content's hash, so that prefixes are compared, kept and shared by content. A thread of its own computes the chunks'
//! embeddings (`encoder`), which takes as long as a long prompt; the worker only feeds the rows to the context.

mod cache;
mod decode;
pub(super) mod encoder;

pub(super) use cache::{Cache, Encoded, EncodedPiece, Key, Rows};
pub use decode::Bitmap;

use super::backend::{ChunkShape, Model, Piece, Token};
use super::error::Failure;
use crate::chat::{ChatPrompt, Media, MediaKind};
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};

/// Images and sounds of one request.
pub const ITEMS_MAX: usize = 64;
/// Bytes of one file.
pub const FILE_BYTES_MAX: usize = 32 << 20;
/// Pixels of one image: 3 bytes each when decoded.
pub const PIXELS_MAX: u64 = 50_000_000;
/// Width and height of an image.
pub const SIDE_MAX: u32 = 20_000;
/// Length of one sound.
pub const SECONDS_MAX: u32 = 600;

/// SHA-256 of a file and its kind.
pub(super) type ContentHash = [u8; 32];

/// A chunk in a run's tokens.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// Index of its first token.
    pub start: u32,
    pub shape: Arc<ChunkShape>,
    /// There before a worker sees the run.
    pub rows: Option<Arc<Rows>>,
}

impl Span {
    /// Where it is, for what outlives the run.
    pub fn without_rows(&self) -> Self {
        Self { rows: None, shape: Arc::clone(&self.shape), ..*self }
    }

    pub fn end(&self) -> u32 {
        self.start + self.shape.n_tokens
    }
}

/// The span that token `at` is in.
pub(super) fn span_at(spans: &[Span], at: usize) -> Option<&Span> {
    let index = spans.partition_point(|span| span.end() as usize <= at);
    spans.get(index).filter(|span| span.start as usize <= at)
}

/// Tokens from `at` on that are in no span.
pub(super) fn text_from(spans: &[Span], at: usize, n_tokens: usize) -> usize {
    let index = spans.partition_point(|span| span.end() as usize <= at);
    spans.get(index).map_or(n_tokens, |span| span.start as usize).saturating_sub(at)
}

/// The largest number of leading tokens, at most `n`, that cuts no span.
pub(super) fn whole(spans: &[Span], n: usize) -> usize {
    match n.checked_sub(1).and_then(|last| span_at(spans, last)) {
        Some(span) if span.end() as usize > n => span.start as usize,
        _ => n,
    }
}

/// The position of token `at`: its index, less what M-RoPE spans before it save. `at` is in no span, or at its start.
pub(super) fn position(spans: &[Span], at: usize) -> u32 {
    let before = spans.iter().take_while(|span| span.end() as usize <= at);
    let saved: u32 = before.map(|span| span.shape.n_tokens - span.shape.n_pos).sum();
    (at as u32).saturating_sub(saved)
}

/// An image or sound that the cache doesn't know: its pieces, and the run's spans that belong to them.
pub(super) struct Pending<C> {
    pub key: Key,
    pub pieces: Vec<Piece<C>>,
    pub first_span: usize,
}

/// A prompt with media, as tokens.
pub(super) struct Laid<C> {
    pub tokens: Vec<Token>,
    pub spans: Vec<Span>,
    pub pending: Vec<Pending<C>>,
}

impl<C> Laid<C> {
    pub fn plain(tokens: Vec<Token>) -> Self {
        Self { tokens, spans: Vec::new(), pending: Vec::new() }
    }

    fn chunk(&mut self, hash: &ContentHash, index: usize, shape: Arc<ChunkShape>, rows: Option<Arc<Rows>>) {
        let start = self.tokens.len() as u32;
        placeholders(hash, index, shape.n_tokens, &mut self.tokens);
        self.spans.push(Span { start, shape, rows });
    }
}

/// A chat whose media have become markers, and the media in the order of the markers' numbers.
pub(super) struct Marked {
    pub chat: ChatPrompt,
    pub media: Vec<Placed>,
}

/// A medium and its number among all of the chat's.
pub(super) struct Placed {
    pub number: usize,
    pub media: Media,
}

impl Placed {
    /// Why this one can't be taken. The field is `media[k]`; where that stands in the body is the dialect's to say.
    pub fn refuse(&self, code: &str, reason: &str) -> Failure {
        let kind = match self.media.kind {
            MediaKind::Image | MediaKind::RemoteImage => "image",
            MediaKind::Audio => "sound",
        };
        Failure::invalid(&format!("media[{}]", self.number), code, format!("The {kind} {reason}."))
    }
}

/// What no user can write: random for each process, and plain letters, which templates leave alone.
fn marker() -> &'static str {
    static MARKER: OnceLock<String> = OnceLock::new();
    MARKER.get_or_init(|| format!("media{:032x}x", rand::random::<u128>()))
}

/// Behind a marker's number.
const MARKER_END: char = 'z';

/// Puts markers into the texts; `None` when the chat has no media.
///
/// Errors: `unsupported_content` for media that `takes` doesn't list, `invalid_value` for too many.
pub(super) fn mark(chat: &ChatPrompt, takes: &[MediaKind]) -> Result<Option<Marked>, Failure> {
    let n: usize = chat.messages.iter().map(|message| message.media.len()).sum();
    if n == 0 {
        return Ok(None);
    }
    if n > ITEMS_MAX {
        let message = format!("the messages hold {n} images and sounds, and at most {ITEMS_MAX} are taken");
        return Err(Failure::invalid("messages", "invalid_value", message));
    }
    let mut chat = chat.clone();
    let mut all = Vec::with_capacity(n);
    for message in &mut chat.messages {
        let content = message.content.take().unwrap_or_default();
        let mut text = String::with_capacity(content.len());
        let mut from = 0;
        for media in std::mem::take(&mut message.media) {
            let placed = Placed { number: all.len(), media };
            if !takes.contains(&placed.media.kind) {
                return Err(placed.refuse("unsupported_content", "can't be read: this model takes none"));
            }
            // An offset inside a character can't come from a dialect; the beginning of the character is as good.
            let mut at = (placed.media.offset as usize).clamp(from, content.len());
            while !content.is_char_boundary(at) {
                at -= 1;
            }
            text.push_str(&content[from..at]);
            text.push_str(&format!("{}{}{MARKER_END}", marker(), all.len()));
            from = at;
            all.push(placed);
        }
        text.push_str(&content[from..]);
        message.content = Some(text);
    }
    Ok(Some(Marked { chat, media: all }))
}

/// A rendered text cut at its markers: texts, and between them the numbers of the media.
pub(super) fn cut(rendered: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = rendered;
    while let Some((before, behind)) = rest.split_once(marker()) {
        let number = behind.split_once(MARKER_END).and_then(|(number, after)| Some((number.parse().ok()?, after)));
        let Some((number, after)) = number else { break };
        parts.push(Part::Text(before));
        parts.push(Part::Media(number));
        rest = after;
    }
    parts.push(Part::Text(rest));
    parts
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Media(usize),
}

/// The rendered text as a client may see it.
pub(super) fn show(rendered: &str) -> String {
    let text = |part: &Part<'_>| match part {
        Part::Text(text) => (*text).to_owned(),
        Part::Media(_) => "<__media__>".to_owned(),
    };
    cut(rendered).iter().map(text).collect()
}

/// Where a prompt's media are looked up, and for whom.
pub(super) struct Shelf<'a> {
    pub cache: &'a Cache,
    pub partition: u64,
    /// Most rows of a chunk that must be computed at once.
    pub n_at_once_max: u32,
}

/// Lays media between the texts of a rendered prompt; `tokenize` is told whether the text is the first.
///
/// Errors: media that the template left out or that can't be decoded.
pub(super) fn lay_out<M: Model>(
    model: &M,
    shelf: &Shelf<'_>,
    rendered: &str,
    media: &[Placed],
    mut tokenize: impl FnMut(&str, bool) -> Result<Vec<Token>, Failure>,
) -> Result<Laid<M::Chunk>, Failure> {
    let parts = cut(rendered);
    for (number, placed) in media.iter().enumerate() {
        if parts.iter().filter(|part| **part == Part::Media(number)).count() != 1 {
            return Err(placed.refuse("unsupported_content", "has no place in the model's chat template"));
        }
    }
    let mut laid = Laid::plain(Vec::new());
    for (index, part) in parts.iter().enumerate() {
        match part {
            // The first text may be empty and still begin with the vocabulary's BOS.
            Part::Text(text) if index == 0 || !text.is_empty() => laid.tokens.extend(tokenize(text, index == 0)?),
            Part::Text(_) => {}
            Part::Media(number) => {
                let placed = media.get(*number).ok_or_else(|| Failure::Internal("a marker without media".into()))?;
                add(model, shelf, placed, &mut laid)?;
            }
        }
    }
    Ok(laid)
}

fn add<M: Model>(model: &M, shelf: &Shelf<'_>, placed: &Placed, laid: &mut Laid<M::Chunk>) -> Result<(), Failure> {
    let (hash, n_at_once_max) = (hash_of(&placed.media), shelf.n_at_once_max);
    let key = Key { partition: shelf.partition, hash };
    if let Some(known) = shelf.cache.get(&key) {
        let mut index = 0;
        for piece in &known.pieces {
            match piece {
                EncodedPiece::Text(tokens) => laid.tokens.extend_from_slice(tokens),
                EncodedPiece::Chunk(rows) => {
                    laid.chunk(&hash, index, Arc::clone(&rows.shape), Some(Arc::clone(rows)));
                    index += 1;
                }
            }
        }
        return Ok(());
    }
    let bitmap = decode::decode(&placed.media, model.audio_rate())
        .map_err(|reason| placed.refuse("invalid_value", &format!("can't be read: {reason}")))?;
    let pieces = model
        .split_media(&bitmap)
        .map_err(|reason| placed.refuse("invalid_value", &format!("can't be used: {reason}")))?;
    let (first_span, mut index) = (laid.spans.len(), 0);
    for piece in &pieces {
        match piece {
            Piece::Text(tokens) => laid.tokens.extend_from_slice(tokens),
            Piece::Chunk { shape, .. } => {
                if shape.is_non_causal && shape.n_tokens > n_at_once_max {
                    let (n, most) = (shape.n_tokens, n_at_once_max);
                    let reason =
                        format!("takes {n} tokens at once, and the server computes at most {most} (ubatch_size)");
                    return Err(placed.refuse("invalid_value", &reason));
                }
                laid.chunk(&hash, index, Arc::clone(shape), None);
                index += 1;
            }
        }
    }
    laid.pending.push(Pending { key, pieces, first_span });
    Ok(())
}

fn hash_of(media: &Media) -> ContentHash {
    let mut hasher = Sha256::new();
    hasher.update([match media.kind {
        MediaKind::Image | MediaKind::RemoteImage => 1u8,
        MediaKind::Audio => 2,
    }]);
    hasher.update(&media.data);
    hasher.finalize().into()
}

/// Appends `n` ids below -1 that no other content has (30 bits of the hash in each).
fn placeholders(hash: &ContentHash, chunk: usize, n: u32, tokens: &mut Vec<Token>) {
    let mut block = 0u64;
    let end = tokens.len() + n as usize;
    while tokens.len() < end {
        let mut hasher = Sha256::new();
        hasher.update(hash);
        hasher.update((chunk as u64).to_le_bytes());
        hasher.update(block.to_le_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        for word in digest.chunks_exact(4).take(end - tokens.len()) {
            let word = word.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) & 0x3fff_ffff;
            tokens.push(-2 - word.cast_signed());
        }
        block += 1;
    }
}

#[cfg(test)]
mod fuzz_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Role};

    fn shape(n_tokens: u32, n_pos: u32) -> Arc<ChunkShape> {
        Arc::new(ChunkShape { n_tokens, n_pos, is_non_causal: false, grid: Vec::new() })
    }

    fn spans() -> Vec<Span> {
        vec![
            Span { start: 2, shape: shape(6, 3), rows: None },
            Span { start: 8, shape: shape(4, 4), rows: None },
            Span { start: 20, shape: shape(5, 2), rows: None },
        ]
    }

    #[test]
    fn spans_are_found_and_never_cut() {
        let spans = spans();
        assert_eq!(text_from(&spans, 0, 30), 2);
        assert_eq!(text_from(&spans, 2, 30), 0);
        assert_eq!(text_from(&spans, 12, 30), 8);
        assert_eq!(text_from(&spans, 25, 30), 5);
        assert_eq!(span_at(&spans, 7).map(|span| span.start), Some(2));
        assert_eq!(span_at(&spans, 8).map(|span| span.start), Some(8));
        assert!(span_at(&spans, 12).is_none());
        let cut: Vec<usize> = [0, 2, 3, 7, 8, 9, 12, 13, 24, 25].iter().map(|n| whole(&spans, *n)).collect();
        assert_eq!(cut, [0, 2, 2, 2, 8, 8, 12, 13, 20, 25]);
    }

    #[test]
    fn positions_leave_out_what_a_grid_saves() {
        let spans = spans();
        let positions: Vec<u32> = [0, 2, 8, 12, 20, 25, 26].iter().map(|at| position(&spans, *at)).collect();
        assert_eq!(positions, [0, 2, 5, 9, 17, 19, 20]);
    }

    #[test]
    fn markers_go_through_a_template_and_come_out_in_order() {
        let mut message = Message::new(Role::User, "aé b");
        let media = |offset| Media { kind: MediaKind::Image, offset, data: vec![1] };
        message.media = vec![media(0), media(3), media(4)];
        let chat = ChatPrompt::new(vec![message]);
        assert!(mark(&chat, &[MediaKind::Audio]).is_err(), "a kind that the projector doesn't take");
        let marked = mark(&chat, &[MediaKind::Image]).expect("fits").expect("has media");
        let text = marked.chat.messages[0].content.clone().expect("text");
        let parts = cut(&text);
        let texts = [Part::Text(""), Part::Media(0), Part::Text("aé"), Part::Media(1), Part::Text(" ")];
        assert_eq!(parts[..5], texts);
        assert_eq!(parts[5..], [Part::Media(2), Part::Text("b")]);
        assert_eq!(show(&text), "<__media__>aé<__media__> <__media__>b");
        assert!(marked.chat.messages[0].media.is_empty());
        assert_eq!(marked.media.len(), 3);
    }

    #[test]
    fn placeholders_tell_contents_apart_and_are_no_tokens() {
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        placeholders(&[1; 32], 0, 19, &mut a);
        placeholders(&[1; 32], 1, 19, &mut b);
        placeholders(&[1; 32], 0, 19, &mut c);
        assert_eq!((a.len(), &a), (19, &c));
        assert!(a.iter().zip(&b).all(|(a, b)| a != b));
        assert!(a.iter().all(|token| *token < -1));
    }
}
