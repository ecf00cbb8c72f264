//! A model's vocabulary as llguidance wants it.

use crate::engine::backend::{Model, Token};
use llguidance::Matcher;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::sync::Arc;

/// The trie of all tokens, and a tokenizer for text that is forced.
struct Vocabulary<M: Model> {
    model: Arc<M>,
    trie: TokTrie,
    /// The tokenizer puts a space before every text, so forced text is tokenised behind a line break.
    adds_space: bool,
}

/// Errors when the vocabulary is empty or has no end-of-turn token.
pub(super) fn environment<M: Model>(model: &Arc<M>) -> Result<TokEnv, String> {
    let n_vocab = model.n_vocab();
    let ends: Vec<TokenId> = ids(n_vocab).filter(|token| model.is_end(*token)).map(i32::cast_unsigned).collect();
    let Some(first_end) = ends.first() else { return Err("this model has no token that ends an answer".into()) };
    let words: Vec<Vec<u8>> = ids(n_vocab)
        .map(|token| {
            let piece = model.piece(token);
            if model.is_control(token) || model.is_end(token) {
                // Never part of a text; llguidance's mark for special tokens.
                [&[TokTrie::SPECIAL_TOKEN_MARKER], piece].concat()
            } else {
                piece.to_vec()
            }
        })
        .collect();
    let info = TokRxInfo::new(n_vocab, *first_end);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
    let probe = model.tokenize("{", false, false).map_err(|failure| failure.to_string())?;
    let adds_space = probe.iter().flat_map(|token| model.piece(*token)).next() == Some(&b' ');
    Ok(Arc::new(Vocabulary { model: Arc::clone(model), trie, adds_space }))
}

/// A vocabulary's tokens in the order of their bytes, for texts that tokens may begin or hold.
pub(super) struct Words {
    pub env: TokEnv,
    order: Vec<TokenId>,
}

impl Words {
    pub fn new(env: TokEnv) -> Self {
        let trie = env.tok_trie();
        let mut order: Vec<TokenId> = (0..u32::try_from(trie.vocab_size()).unwrap_or(u32::MAX)).collect();
        order.sort_by(|a, b| trie.token(*a).cmp(trie.token(*b)));
        Self { env, order }
    }

    /// Tokens that begin with `text`, and what they say beyond it.
    pub fn beginning_with<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (TokenId, &'a [u8])> + 'a {
        let trie = self.env.tok_trie();
        let first = self.order.partition_point(|token| trie.token(*token) < text);
        self.order[first..].iter().map_while(move |token| Some((*token, trie.token(*token).strip_prefix(text)?)))
    }

    /// Whether `bytes` may come next.
    pub fn fits(&self, matcher: &mut Matcher, bytes: &[u8]) -> bool {
        let tokens = self.env.tok_trie().greedy_tokenize(bytes);
        tokens.is_empty() || matcher.validate_tokens(&tokens).is_ok_and(|n| n == tokens.len())
    }

    /// Tokens that hold all of `text`, control tokens too, and what they say behind it. Looks at the whole vocabulary.
    pub fn holding<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (TokenId, &'a [u8])> {
        let trie = self.env.tok_trie();
        let finder = memchr::memmem::Finder::new(text).into_owned();
        self.order.iter().filter_map(move |token| {
            let piece = trie.token(*token);
            finder.find(piece).map(|at| (*token, &piece[at + text.len()..]))
        })
    }
}

fn ids(n_vocab: u32) -> impl Iterator<Item = Token> {
    (0..n_vocab).filter_map(|id| Token::try_from(id).ok())
}

impl<M: Model> Vocabulary<M> {
    /// `None` when the model's tokenizer can't give tokens that spell exactly `text`.
    fn canonical(&self, text: &str) -> Option<Vec<TokenId>> {
        let lead = if self.adds_space { "\n" } else { "" };
        let tokens = self.model.tokenize(&format!("{lead}{text}"), false, false).ok()?;
        // Everything that spells the lead (and the space before it) goes.
        let mut n_lead = if self.adds_space { " \n".len() } else { 0 };
        let mut rest = tokens.iter();
        while n_lead > 0 {
            n_lead = n_lead.checked_sub(self.model.piece(*rest.next()?).len())?;
        }
        let tokens: Vec<TokenId> = rest.map(|token| token.cast_unsigned()).collect();
        let spelled: Vec<u8> = tokens.iter().flat_map(|token| self.model.piece(token.cast_signed())).copied().collect();
        (spelled == text.as_bytes()).then_some(tokens)
    }
}

impl<M: Model> TokenizerEnv for Vocabulary<M> {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let canonical = std::str::from_utf8(bytes).ok().and_then(|text| self.canonical(text));
        canonical.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
