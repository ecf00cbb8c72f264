//! A chat on the terminal: lines in, answers out.

use super::run::{Printer, note};
use super::session::Session;
use crate::chat::{ChatPrompt, Finish, Message, Prompt, Role};
use crate::engine::Failure;
use anyhow::{Result, bail};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use tokio::sync::mpsc;

/// A line longer than this is not typed by anybody; it ends the chat.
const LINE_BYTES_MAX: u64 = 8 << 20;

/// Reads lines until the end of input or `/quit`. Ctrl-C stops an answer; at the prompt it ends the chat.
pub(super) async fn chat(
    session: &Session,
    opening: Vec<Message>,
    max_tokens: Option<u32>,
    enable_thinking: Option<bool>,
) -> Result<()> {
    if session.description.chat_template.is_none() {
        bail!("the model has no chat template: give a prompt (with --raw), or --chat-template-file");
    }
    let asks = std::io::stdin().is_terminal();
    if asks {
        eprintln!("/clear forgets the conversation, /quit ends it; Ctrl-C stops an answer");
    }
    let mut lines = lines();
    let mut messages = opening.clone();
    loop {
        if asks {
            eprint!("> ");
            let _ = std::io::stderr().flush();
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        match line?.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/clear" => messages.clone_from(&opening),
            text => {
                messages.push(Message::new(Role::User, text));
                turn(session, &mut messages, max_tokens, enable_thinking).await?;
            }
        }
    }
    Ok(())
}

/// One answer to the last message. What was answered becomes part of `messages`, also when it was stopped.
async fn turn(
    session: &Session,
    messages: &mut Vec<Message>,
    max_tokens: Option<u32>,
    enable_thinking: Option<bool>,
) -> Result<()> {
    let prompt = Prompt::Chat(ChatPrompt { enable_thinking, ..ChatPrompt::new(messages.clone()) });
    let mut printer = Printer::new();
    let mut answer = String::new();
    let finish = {
        let answered = session.answer(prompt, max_tokens, |delta| {
            printer.print(delta);
            answer.push_str(&delta.content);
        });
        tokio::select! {
            finish = answered => finish,
            _ = tokio::signal::ctrl_c() => Ok(Finish::EndOfTurn),
        }
    };
    printer.end();
    match finish {
        Ok(finish) => {
            note(&finish);
            messages.push(Message::new(Role::Assistant, answer));
            Ok(())
        }
        // The conversation is as it was before, so the user may ask something shorter or /clear.
        Err(failure @ (Failure::ContextExceeded { .. } | Failure::Invalid { .. })) => {
            messages.pop();
            eprintln!("hearth: {failure}");
            Ok(())
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Lines of stdin, read on a thread of their own: a read can't be waited for without one.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            let read = std::io::Read::take(&mut input, LINE_BYTES_MAX).read_line(&mut line);
            let end = match read {
                Ok(0) => break,
                Ok(_) => sender.blocking_send(Ok(line)).is_err(),
                Err(error) => {
                    let _ = sender.blocking_send(Err(error));
                    true
                }
            };
            if end {
                break;
            }
        }
    });
    receiver
}
