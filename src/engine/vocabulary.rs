//! A model's vocabulary without its weights, for texts that are tokenised beforehand.

use super::backend::Token;
use super::service::PREPARER_STACK_BYTES;
use crate::llama;
use std::path::Path;

/// Most bytes that are tokenised at once: some tokenizers take forty times a text's memory.
const PIECE_BYTES: usize = 64 << 10;

pub struct Vocabulary {
    model: llama::Model,
}

impl Vocabulary {
    /// Errors: what llama.cpp said of the file.
    pub fn open(path: &Path) -> Result<Self, String> {
        llama::init().map_err(|error| error.to_string())?;
        let model = llama::Model::load_vocab(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { model })
    }

    /// The tokens of a text as it stands in the middle of another: none are added, and none of its texts is a control token.
    /// Long ones are tokenised in pieces, so that at a few places the tokens are not those of the whole.
    pub fn tokenize(&self, text: &str) -> Result<Vec<Token>, String> {
        let tokenize = || {
            let mut tokens = Vec::new();
            let mut rest = text;
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(piece_end(rest));
                tokens.extend(self.model.tokenize(piece, false, false).map_err(|error| error.to_string())?);
                rest = behind;
            }
            Ok(tokens)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(PREPARER_STACK_BYTES).spawn_scoped(scope, tokenize);
            let thread = thread.map_err(|error| format!("no thread can be started: {error}"))?;
            thread.join().map_err(|_| "the tokenizer panicked; this is a bug".to_owned())?
        })
    }
}

/// Where the piece at the beginning of `text` ends: before a line that doesn't begin with a space, which hardly a token goes
/// over.
fn piece_end(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    // A character has at most four bytes.
    let most = (PIECE_BYTES - 3..=PIECE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let begins = |at: &usize| text[*at..].starts_with(|first: char| !first.is_whitespace());
    text[..most].rmatch_indices('\n').map(|(at, _)| at + 1).find(begins).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_lines_and_else_between_characters() {
        assert_eq!(piece_end("short"), 5);
        let line = "a line\n  and one that is set in\n";
        let text = line.repeat(4 * PIECE_BYTES / line.len());
        let end = piece_end(&text);
        assert!(end <= PIECE_BYTES && end > PIECE_BYTES - line.len() && end.is_multiple_of(line.len()), "{end}");
        let letters = "ä€".repeat(PIECE_BYTES);
        assert!((PIECE_BYTES - 3..=PIECE_BYTES).contains(&piece_end(&letters)));
    }

    #[test]
    fn a_vocabulary_tokenises_as_its_model_does() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-demo.gguf");
        let vocabulary = Vocabulary::open(&path).expect("the demo model");
        let line = "The quick brown fox, and 17 others.\nAnother line.\n";
        let (one, long) = (vocabulary.tokenize(line).expect("tokens"), line.repeat(3 * PIECE_BYTES / line.len()));
        let many = vocabulary.tokenize(&long).expect("tokens");
        assert!(one.len() > 10 && many.chunks(one.len()).all(|chunk| chunk == one));
        assert!(Vocabulary::open(Path::new("Cargo.toml")).is_err());
    }
}
