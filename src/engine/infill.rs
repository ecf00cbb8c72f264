//! Prompts that are put together: fill in the middle, as the model was trained for it, and texts between token ids.

use super::backend::{Model, Token};
use super::error::Failure;
use super::prepare::Preparer;
use crate::chat::{Infill, PromptPart};

impl<M: Model> Preparer<M> {
    /// The text around the gap in the model's own form, other files before it as far as they fit.
    /// Source: "Efficient Training of Language Models to Fill in the Middle" (PSM order), and llama-server's `/infill`.
    pub(super) fn infill(&self, infill: &Infill) -> Result<Vec<Token>, Failure> {
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

    pub(super) fn mixed(&self, parts: &[PromptPart]) -> Result<Vec<Token>, Failure> {
        let n_bytes = |part: &PromptPart| if let PromptPart::Text(text) = part { text.len() } else { 0 };
        self.refuse_hopeless(parts.iter().map(n_bytes).sum())?;
        let mut tokens = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            match part {
                PromptPart::Text(text) => tokens.extend(self.model.tokenize(text, i == 0, true)?),
                PromptPart::Token(token) => tokens.push(*token),
            }
        }
        self.checked(tokens)
    }
}
