//! `hearth tokenize`: the tokens of a text.

use super::session::{self, Session};
use super::{Flags, runtime, say};
use crate::chat::Prompt;
use crate::engine::TokenizeRequest;
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Tokenize {
    /// The GGUF file
    #[arg(value_name = "MODEL")]
    file: String,
    /// The text; `-` reads it from stdin
    text: String,
    /// Only the ids, as a JSON array
    #[arg(long)]
    ids: bool,
    /// Add no BOS or EOS token
    #[arg(long)]
    no_bos: bool,
    /// Take the text of special tokens for ordinary text
    #[arg(long)]
    no_parse_special: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Tokenize {
    pub fn run(self) -> Result<()> {
        let mut served = session::configure(&self.flags.clone().with("model", Some(&self.file)))?;
        let text = session::text_or_stdin(&self.text)?;
        // Nothing is decoded, so the smallest context there is will do.
        served.engine.n_ctx = Some(256);
        served.engine.n_slots = 1;
        served.engine.n_workers = 1;
        served.engine.n_ubatch = served.engine.n_ubatch.min(32);
        served.ctx_from_model = false;
        runtime()?.block_on(async {
            let session = Session::open(served).await?;
            let request = TokenizeRequest {
                prompt: Prompt::Text(text),
                add_special: !self.no_bos,
                parse_special: !self.no_parse_special,
                with_pieces: !self.ids,
                partition: 0,
            };
            let tokenized = session.engine.tokenize(request).await?;
            session.engine.close().await;
            if self.ids {
                say!("{}", serde_json::to_string(&tokenized.tokens)?);
            } else {
                for (token, piece) in tokenized.tokens.iter().zip(&tokenized.pieces) {
                    say!("{token:>8}  {}", shown(piece));
                }
            }
            Ok(())
        })
    }
}

/// A piece on one line: quoted text, or its bytes where they are no whole characters.
fn shown(piece: &[u8]) -> String {
    match std::str::from_utf8(piece) {
        Ok(text) => format!("{text:?}"),
        Err(_) => piece.iter().map(|byte| format!("<{byte:02x}>")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_stay_on_one_line() {
        assert_eq!(shown(b"a\n"), "\"a\\n\"");
        assert_eq!(shown(b"\xf0\x9f"), "<f0><9f>");
    }
}
