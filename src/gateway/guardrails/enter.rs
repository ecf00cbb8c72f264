//! What comes in: the operator's instruction in front, texts redacted, what is denied refused.
//!
//! # Design
//! Texts that a model only reads are rewritten. What has to stay as it is to mean anything (names, schemas, stop strings,
//! template arguments) is only looked at: where a rule matches there, the request is refused, so nothing passes unseen.
//! Token ids are no text, and what they spell depends on the model, so where rules hold they are refused.

use super::json::JsonSieve;
use super::judge::{Judge, Verdict};
use super::sieve::{Denied, Step, is_clear, whole};
use super::{Border, Placed};
use crate::chat::check::Refusal;
use crate::chat::{ChatPrompt, Constraint, Message, Output, Prompt, PromptPart, Role};
use crate::engine::Failure;
use crate::gateway::Error;
use crate::gateway::asked::Asked;
use serde_json::Value;

/// What stands between the operator's instruction and the client's own.
pub(super) const BETWEEN: &str = "\n\n";

impl Border {
    /// Has this border's classifiers look at what has entered. `but`: a model that is asked itself, and so not before.
    pub(in crate::gateway) async fn judge(
        &self,
        judge: &Judge,
        (tenant, but): (u64, Option<usize>),
        texts: impl FnOnce() -> Vec<String>,
    ) -> Result<(), Error> {
        let checks: Vec<Placed> = self.checks_in().iter().filter(|(_, idx)| Some(*idx) != but).cloned().collect();
        if checks.is_empty() {
            return Ok(());
        }
        match judge.judge(&checks, tenant, &texts()).await? {
            Verdict::Passed | Verdict::Unseen => Ok(()),
            Verdict::Denied => Err(denied(Denied)),
        }
    }

    /// The request as it goes to a model, or why it doesn't. Nothing of what matched is in the error. `wants_logprobs`: the
    /// client does, and not the gateway for itself.
    pub(in crate::gateway) fn enter(&self, mut asked: Asked, wants_logprobs: bool) -> Result<Asked, Error> {
        if self.is_open() {
            return Ok(asked);
        }
        if wants_logprobs && self.screens() {
            return Err(no_logprobs());
        }
        match &mut asked {
            Asked::Chat(request) => {
                self.enter_chat(&mut request.prompt)?;
                self.output(&mut request.output)?;
            }
            Asked::Text(request) => {
                self.refuse_completions()?;
                request.prompts.iter_mut().try_for_each(|prompt| self.enter_prompt(prompt))?;
                self.output(&mut request.output)?;
            }
        }
        Ok(asked)
    }

    /// A raw completion has no place for an instruction, and a client could say there what chats may not.
    fn refuse_completions(&self) -> Result<(), Error> {
        if self.system().is_empty() {
            return Ok(());
        }
        let message = "This model answers chats only here: the server's operator gives it an instruction, and a raw \
                       completion has no place for one.";
        Err(Failure::invalid("model", "unsupported_operation", message).into())
    }

    pub(in crate::gateway) fn enter_chat(&self, prompt: &mut ChatPrompt) -> Result<(), Error> {
        let steps = self.incoming();
        if !steps.is_empty() {
            prompt.messages.iter_mut().try_for_each(|message| enter_message(message, steps))?;
            for tool in &mut prompt.tools {
                rewrite_maybe(&mut tool.description, steps)?;
                fixed(&tool.name, steps)?;
                fixed_json(&tool.parameters, steps)?;
            }
            for (name, value) in &prompt.template_kwargs {
                fixed(name, steps)?;
                fixed_json(value, steps)?;
            }
        }
        self.instruct(prompt);
        Ok(())
    }

    /// Texts of embeddings and the like, too.
    pub(in crate::gateway) fn enter_prompt(&self, prompt: &mut Prompt) -> Result<(), Error> {
        let steps = self.incoming();
        if !self.looks() {
            return Ok(());
        }
        match prompt {
            Prompt::Chat(chat) => chat.messages.iter_mut().try_for_each(|message| enter_message(message, steps)),
            Prompt::Text(text) => rewrite(text, steps),
            Prompt::Infill(infill) => {
                for text in [&mut infill.prefix, &mut infill.suffix, &mut infill.prompt] {
                    rewrite(text, steps)?;
                }
                infill.extra.iter_mut().try_for_each(|(name, text)| rewrite(name, steps).and(rewrite(text, steps)))
            }
            Prompt::Mixed(parts) => match parts.as_mut_slice() {
                [PromptPart::Text(text)] => rewrite(text, steps),
                _ => Err(no_tokens()),
            },
            Prompt::Tokens(_) => Err(no_tokens()),
        }
    }

    pub(in crate::gateway) fn enter_text(&self, text: &mut String) -> Result<(), Error> {
        rewrite(text, self.incoming())
    }

    /// The operator's texts come first, in a message of their own or at the head of the client's system message: many
    /// templates know only one, and it is the first.
    pub(super) fn instruct(&self, prompt: &mut ChatPrompt) {
        let system = self.system();
        if system.is_empty() {
            return;
        }
        match prompt.messages.first_mut() {
            Some(first) if first.role == Role::System => {
                let own = first.content.take().filter(|own| !own.is_empty() || !first.media.is_empty());
                let mut text = system.to_owned();
                if let Some(own) = own {
                    text.push_str(BETWEEN);
                    let n_before = u32::try_from(text.len()).unwrap_or(u32::MAX);
                    first.media.iter_mut().for_each(|media| media.offset = media.offset.saturating_add(n_before));
                    text.push_str(&own);
                }
                first.content = Some(text);
            }
            _ => prompt.messages.insert(0, Message::new(Role::System, system)),
        }
    }

    fn output(&self, output: &mut Output) -> Result<(), Error> {
        let steps = self.incoming();
        if steps.is_empty() {
            return Ok(());
        }
        rewrite_maybe(&mut output.prediction, steps)?;
        output.stop.iter().try_for_each(|stop| fixed(stop, steps))?;
        match &output.constraint {
            None | Some(Constraint::JsonObject) => Ok(()),
            Some(Constraint::JsonSchema(text)) => fixed_json(text, steps),
            Some(Constraint::Gbnf(text) | Constraint::Regex(text) | Constraint::Lark(text)) => fixed(text, steps),
            Some(Constraint::Choice(texts)) => texts.iter().try_for_each(|text| fixed(text, steps)),
        }
    }
}

/// Log-probabilities of tokens would tell what a redacted answer does not.
fn no_logprobs() -> Error {
    let message = "logprobs can't be had here: the server's operator has answers looked at, and the tokens would tell what \
                   was taken out.";
    Error::Refused(Refusal::new("logprobs", "unsupported_parameter", message))
}

fn enter_message(message: &mut Message, steps: &[Step]) -> Result<(), Error> {
    // Each run of text between two images is a text of its own, so that every image stays where it is.
    if let Some(content) = &mut message.content {
        let mut text = String::with_capacity(content.len());
        let mut from = 0;
        for media in &mut message.media {
            let at = (media.offset as usize).clamp(from, content.len());
            text.push_str(&rewritten(content.get(from..at).unwrap_or_default(), steps)?);
            media.offset = u32::try_from(text.len()).unwrap_or(u32::MAX);
            from = at;
        }
        text.push_str(&rewritten(content.get(from..).unwrap_or_default(), steps)?);
        *content = text;
    }
    rewrite_maybe(&mut message.reasoning, steps)?;
    for text in message.name.iter().chain(&message.tool_call_id) {
        fixed(text, steps)?;
    }
    for call in &mut message.tool_calls {
        fixed(&call.name, steps)?;
        fixed(&call.id, steps)?;
        let (mut sieve, mut out) = (JsonSieve::new(steps), String::new());
        sieve.push(&call.arguments, &mut out).and_then(|()| sieve.finish(&mut out)).map_err(denied)?;
        if sieve.has_matched() {
            call.arguments = out;
        }
    }
    Ok(())
}

fn rewritten(text: &str, steps: &[Step]) -> Result<String, Error> {
    Ok(whole(steps, text).map_err(denied)?.unwrap_or_else(|| text.to_owned()))
}

fn rewrite(text: &mut String, steps: &[Step]) -> Result<(), Error> {
    if let Some(other) = whole(steps, text).map_err(denied)? {
        *text = other;
    }
    Ok(())
}

fn rewrite_maybe(text: &mut Option<String>, steps: &[Step]) -> Result<(), Error> {
    text.iter_mut().try_for_each(|text| rewrite(text, steps))
}

/// What can't be rewritten.
fn fixed(text: &str, steps: &[Step]) -> Result<(), Error> {
    if is_clear(steps, text) { Ok(()) } else { Err(denied(Denied)) }
}

/// Every text in it, keys too.
fn fixed_json(text: &str, steps: &[Step]) -> Result<(), Error> {
    match serde_json::from_str(text) {
        Ok(value) => fixed_value(&value, steps),
        Err(_) => fixed(text, steps),
    }
}

fn fixed_value(value: &Value, steps: &[Step]) -> Result<(), Error> {
    match value {
        Value::String(text) => fixed(text, steps),
        Value::Number(number) => fixed(&number.to_string(), steps),
        Value::Array(items) => items.iter().try_for_each(|item| fixed_value(item, steps)),
        Value::Object(fields) => {
            fields.iter().try_for_each(|(key, value)| fixed(key, steps).and_then(|()| fixed_value(value, steps)))
        }
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

/// One text for all, so that it tells nothing about the rules.
fn denied(_: Denied) -> Error {
    let message = "The request was refused by a rule that this server's operator has for what may be asked.";
    Failure::invalid("prompt", "content_policy_violation", message).into()
}

fn no_tokens() -> Error {
    let message = "The prompt must be text: the server's operator has requests looked at, and token ids can't be.";
    Failure::invalid("prompt", "unsupported_parameter", message).into()
}
