//! `hearth run`: one answer, or a chat, on the terminal.

use super::session::{self, Session};
use super::{Flags, chat, runtime};
use crate::chat::{ChatPrompt, Delta, Finish, Message, Prompt, Role};
use anyhow::{Result, bail};
use clap::Args;
use std::io::{IsTerminal as _, Write as _};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The GGUF file
    #[arg(value_name = "MODEL")]
    file: Option<String>,
    /// What to answer; `-` reads it from stdin; without it lines are read and answered one by one
    prompt: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer [default: until the model ends it or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long, requires = "prompt", conflicts_with = "system")]
    raw: bool,
    /// Ask the model to answer without thinking first
    #[arg(long, conflicts_with = "raw")]
    no_think: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Run {
    pub fn run(self) -> Result<()> {
        let flags = self.flags.clone().with("model", self.file.as_deref());
        let mut served = session::configure(&flags)?;
        // One person, one answer at a time.
        served.engine.n_slots = 1;
        served.engine.n_workers = 1;
        runtime()?.block_on(async {
            let session = Session::open(served).await?;
            let done = match &self.prompt {
                Some(prompt) => self.answer_one(&session, prompt).await,
                None => chat::chat(&session, self.opening(), self.max_tokens, self.thinking()).await,
            };
            session.engine.close().await;
            done
        })
    }

    fn opening(&self) -> Vec<Message> {
        self.system.iter().map(|text| Message::new(Role::System, text)).collect()
    }

    fn thinking(&self) -> Option<bool> {
        self.no_think.then_some(false)
    }

    async fn answer_one(&self, session: &Session, prompt: &str) -> Result<()> {
        let text = session::text_or_stdin(prompt)?;
        let prompt = if self.raw || session.description.chat_template.is_none() {
            Prompt::Text(text)
        } else {
            let mut messages = self.opening();
            messages.push(Message::new(Role::User, text));
            Prompt::Chat(ChatPrompt { enable_thinking: self.thinking(), ..ChatPrompt::new(messages) })
        };
        let mut printer = Printer::new();
        let finish = tokio::select! {
            finish = session.answer(prompt, self.max_tokens, |delta| printer.print(delta)) => finish,
            _ = tokio::signal::ctrl_c() => {
                printer.end();
                bail!("stopped");
            }
        };
        printer.end();
        note(&finish?);
        Ok(())
    }
}

/// Says on stderr when an answer was cut short.
pub(super) fn note(finish: &Finish) {
    if *finish == Finish::Length {
        eprintln!("hearth: the answer ends here because --max-tokens or the context was reached");
    }
}

/// Prints an answer while it comes: the content to stdout; the thinking dimly to a terminal's stderr, or nowhere.
pub(super) struct Printer {
    shows_thinking: bool,
    in_thinking: bool,
    ends_in_newline: bool,
}

impl Printer {
    pub fn new() -> Self {
        let shows_thinking = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self { shows_thinking, in_thinking: false, ends_in_newline: true }
    }

    pub fn print(&mut self, delta: &Delta) {
        if self.shows_thinking && !delta.reasoning.is_empty() {
            if !self.in_thinking {
                eprint!("\x1b[2m");
                self.in_thinking = true;
            }
            eprint!("{}", delta.reasoning);
        }
        if delta.content.is_empty() {
            return;
        }
        self.end_thinking();
        // A reader that is gone is found out by nobody but the next write; the answer is harmless without it.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(delta.content.as_bytes()).and_then(|()| out.flush());
        self.ends_in_newline = delta.content.ends_with('\n');
    }

    /// Ends the last line, if the answer did not.
    pub fn end(&mut self) {
        self.end_thinking();
        if !self.ends_in_newline {
            super::say!();
            self.ends_in_newline = true;
        }
    }

    fn end_thinking(&mut self) {
        if std::mem::take(&mut self.in_thinking) {
            eprintln!("\x1b[0m");
        }
    }
}
