//! The words of requests, kept where the operator and the key both allow it.

use super::{Books, BooksError};
use crate::chat::{ChatPrompt, Delta, Prompt, PromptPart};
use crate::gateway::keys::KeyRecord;
use crate::gateway::spec::AuditLevel;
use crate::gateway::store::{Act, Dek, Sealed, content, dek, erase, make_dek};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes that are kept of a prompt, and of an answer; what is longer is cut and says so.
const BYTES_MAX: usize = 256 << 10;

/// What one request said and was told, until its row is written.
#[derive(Debug)]
pub struct Capture {
    dek: Dek,
    prompt: Vec<Value>,
    answers: BTreeMap<usize, Told>,
    n_left: [usize; 2],
    is_cut: bool,
}

#[derive(Debug, Default)]
struct Told {
    content: String,
    reasoning: String,
    /// Name and arguments of each call.
    calls: BTreeMap<u32, (String, String)>,
}

impl Capture {
    fn new(dek: Dek) -> Self {
        Self { dek, prompt: Vec::new(), answers: BTreeMap::new(), n_left: [BYTES_MAX; 2], is_cut: false }
    }

    /// As much of `text` as there is room for.
    fn room<'a>(&mut self, side: usize, text: &'a str) -> &'a str {
        let mut n = text.len().min(self.n_left[side]);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.is_cut |= n < text.len();
        self.n_left[side] -= n;
        &text[..n]
    }

    /// Images and sound are counted and not kept.
    pub(super) fn ask(&mut self, prompt: &Prompt) {
        let said = match prompt {
            Prompt::Chat(chat) => self.messages(chat),
            Prompt::Text(text) => json!({ "text": self.room(0, text) }),
            Prompt::Tokens(tokens) => json!({ "n_tokens": tokens.len() }),
            Prompt::Mixed(parts) => {
                let part = |part: &PromptPart| match part {
                    PromptPart::Text(text) => json!(self.room(0, text)),
                    PromptPart::Token(token) => json!(token),
                };
                json!({ "parts": parts.iter().map(part).collect::<Vec<_>>() })
            }
            Prompt::Infill(gap) => json!({ "prefix": self.room(0, &gap.prefix), "suffix": self.room(0, &gap.suffix) }),
        };
        self.prompt.push(said);
    }

    fn messages(&mut self, chat: &ChatPrompt) -> Value {
        let mut messages = Vec::new();
        for message in &chat.messages {
            let text = self.room(0, message.content.as_deref().unwrap_or_default()).to_owned();
            let calls: Vec<Value> = message
                .tool_calls
                .iter()
                .map(|call| json!({ "name": call.name, "arguments": self.room(0, &call.arguments) }))
                .collect();
            messages.push(json!({
                "role": format!("{:?}", message.role).to_lowercase(),
                "content": text,
                "tool_calls": calls,
                "n_media": message.media.len(),
            }));
        }
        Value::from(messages)
    }

    pub(super) fn tell(&mut self, choice: usize, delta: &Delta) {
        let content = self.room(1, &delta.content);
        let reasoning = self.room(1, &delta.reasoning);
        let told = self.answers.entry(choice).or_default();
        told.content.push_str(content);
        told.reasoning.push_str(reasoning);
        for call in &delta.tool_calls {
            let arguments = self.room(1, &call.arguments).to_owned();
            let entry = self.answers.entry(choice).or_default().calls.entry(call.index).or_default();
            if let Some((_, name)) = &call.opening {
                entry.0.clone_from(name);
            }
            entry.1.push_str(&arguments);
        }
    }

    pub(super) fn untell(&mut self) {
        self.answers.clear();
        self.n_left[1] = BYTES_MAX;
    }

    pub(super) fn seal(self, request_id: &str) -> Option<Sealed> {
        let answer = |told: Told| {
            let calls =
                told.calls.into_values().map(|(name, arguments)| json!({ "name": name, "arguments": arguments }));
            let calls: Vec<Value> = calls.collect();
            json!({ "content": told.content, "reasoning": told.reasoning, "tool_calls": calls })
        };
        let answers: Vec<Value> = self.answers.into_values().map(answer).collect();
        let text = json!({ "prompts": self.prompt, "answers": answers, "cut": self.is_cut }).to_string();
        self.dek.seal(request_id, text.as_bytes())
    }
}

impl Books {
    /// The start of keeping a request's words; `None` where they are not to be kept. The subject is the key's user, else the
    /// key itself; one that is new gets its key now. Errors: that can't be written.
    pub async fn capture(self: &Arc<Self>, key: &KeyRecord) -> Result<Option<Capture>, BooksError> {
        let allows = |level: AuditLevel| level == AuditLevel::Content;
        let of_team = key.team.as_ref().is_none_or(|team| allows(team.spec.audit));
        let Some(kek) = self.kek.filter(|_| allows(key.spec.audit) && of_team) else { return Ok(None) };
        let subject = key.spec.user.clone().unwrap_or_else(|| key.id.clone());
        if let Some(dek) = self.dek_of(kek, &subject).await? {
            return Ok(Some(Capture::new(dek)));
        }
        let act = Act { actor: "server".into(), action: "subject.key", object: subject.clone(), detail: json!({}) };
        let made = subject.clone();
        self.store.change(act, move |conn| make_dek(conn, &kek, &made)).await?;
        Ok(self.dek_of(kek, &subject).await?.map(Capture::new))
    }

    async fn dek_of(&self, kek: [u8; 32], subject: &str) -> Result<Option<Dek>, BooksError> {
        let subject = subject.to_owned();
        Ok(self.store.read(move |conn| dek(conn, &kek, &subject)).await?)
    }

    /// What was kept of a request's words, as JSON text, and that somebody looked.
    pub async fn content(self: &Arc<Self>, actor: &str, request_id: &str) -> Result<String, BooksError> {
        let kek = self.kek.ok_or(BooksError::Missing("content"))?;
        let id = request_id.to_owned();
        let found = self.store.read(move |conn| content(conn, &kek, &id)).await?;
        let text = found.ok_or(BooksError::Missing("content"))?;
        self.note(actor, "content.read", request_id, json!({})).await?;
        Ok(text)
    }

    /// Forgets all words of a subject for ever.
    pub async fn erase(self: &Arc<Self>, actor: &str, subject: &str) -> Result<(), BooksError> {
        let (actor, object, gone) = (actor.to_owned(), subject.to_owned(), subject.to_owned());
        let act = Act { actor, action: "subject.erase", object, detail: json!({}) };
        Ok(self.store.change(act, move |conn| erase(conn, &gone)).await?)
    }
}
