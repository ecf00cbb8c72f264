//! The texts of a request and of an answer, as a classifier reads them.
//!
//! # Design
//! The same that lists look at, after redaction and without the operator's own instruction: each message, thought, call,
//! tool, prompt and document is a text of its own, since a classifier knows one speaker's words and not a heap of many.
//! Arguments and schemas are read as the words in them, so that an escape hides nothing. What is small and bound to its
//! place (names, stop strings, template arguments, schemas of answers) is one text together. Ids of calls are none, as long
//! as they look like ids. Images are not text.

use super::Border;
use super::enter::BETWEEN;
use crate::chat::{ChatPrompt, Constraint, Delta, Message, Output, Prompt, PromptPart, Tool};
use crate::gateway::asked::Asked;
use serde_json::Value;
use std::collections::BTreeMap;

/// Longest id of a call that is no text.
const ID_BYTES_MAX: usize = 64;

impl Border {
    /// Of a request that has entered.
    pub(in crate::gateway) fn texts(&self, asked: &Asked) -> Vec<String> {
        let mut texts = Texts::default();
        match asked {
            Asked::Chat(request) => {
                texts.chat(&request.prompt, self.system());
                texts.output(&request.output);
            }
            Asked::Text(request) => {
                request.prompts.iter().for_each(|prompt| texts.prompt(prompt));
                texts.output(&request.output);
            }
        }
        texts.done()
    }

    pub(in crate::gateway) fn texts_of_chat(&self, prompt: &ChatPrompt) -> Vec<String> {
        let mut texts = Texts::default();
        texts.chat(prompt, self.system());
        texts.done()
    }
}

/// Of inputs that become vectors.
pub(in crate::gateway) fn texts_of(prompts: &[Prompt]) -> Vec<String> {
    let mut texts = Texts::default();
    prompts.iter().for_each(|prompt| texts.prompt(prompt));
    texts.done()
}

#[derive(Default)]
struct Texts {
    all: Vec<String>,
    /// What is small.
    rest: String,
}

impl Texts {
    fn done(mut self) -> Vec<String> {
        self.all.push(self.rest);
        self.all.retain(|text| !text.trim().is_empty());
        self.all
    }

    fn small(&mut self, text: &str) {
        line(&mut self.rest, text);
    }

    fn chat(&mut self, prompt: &ChatPrompt, instruction: &str) {
        for (i, message) in prompt.messages.iter().enumerate() {
            self.message(message, if i == 0 { instruction } else { "" });
        }
        for Tool { name, description, parameters, strict: _ } in &prompt.tools {
            let mut text = name.clone();
            line(&mut text, description.as_deref().unwrap_or_default());
            words(&mut text, parameters);
            self.all.push(text);
        }
        for (name, value) in &prompt.template_kwargs {
            self.small(name);
            words(&mut self.rest, value);
        }
    }

    fn message(&mut self, message: &Message, instruction: &str) {
        if let Some(content) = &message.content {
            let own = content.strip_prefix(instruction).unwrap_or(content);
            let own = if instruction.is_empty() { own } else { own.strip_prefix(BETWEEN).unwrap_or(own) };
            self.all.push(own.to_owned());
        }
        self.all.extend(message.reasoning.clone());
        let ids = message.tool_call_id.iter().chain(message.tool_calls.iter().map(|call| &call.id));
        ids.filter(|id| !is_plain(id)).for_each(|id| line(&mut self.rest, id));
        message.name.iter().for_each(|name| line(&mut self.rest, name));
        for call in &message.tool_calls {
            let mut text = call.name.clone();
            words(&mut text, &call.arguments);
            self.all.push(text);
        }
    }

    fn prompt(&mut self, prompt: &Prompt) {
        match prompt {
            Prompt::Chat(chat) => self.chat(chat, ""),
            Prompt::Text(text) => self.all.push(text.clone()),
            Prompt::Infill(infill) => {
                self.all.extend([&infill.prefix, &infill.suffix, &infill.prompt].map(String::clone));
                self.all.extend(infill.extra.iter().map(|(name, text)| format!("{name}\n{text}")));
            }
            // Token ids were refused where the request came in.
            Prompt::Mixed(parts) => self.all.extend(parts.iter().filter_map(|part| match part {
                PromptPart::Text(text) => Some(text.clone()),
                PromptPart::Token(_) => None,
            })),
            Prompt::Tokens(_) => {}
        }
    }

    fn output(&mut self, output: &Output) {
        self.all.extend(output.prediction.clone());
        output.stop.iter().for_each(|stop| line(&mut self.rest, stop));
        match &output.constraint {
            None | Some(Constraint::JsonObject) => {}
            Some(Constraint::JsonSchema(text)) => words(&mut self.rest, text),
            Some(Constraint::Gbnf(text) | Constraint::Regex(text) | Constraint::Lark(text)) => self.small(text),
            Some(Constraint::Choice(texts)) => texts.iter().for_each(|text| line(&mut self.rest, text)),
        }
    }
}

/// One choice's answer: its thoughts, its text, and each call.
#[derive(Debug, Default)]
pub(super) struct Said {
    reasoning: String,
    content: String,
    calls: BTreeMap<u32, (String, String)>,
}

impl Said {
    pub(super) fn push(&mut self, delta: &Delta) {
        self.reasoning.push_str(&delta.reasoning);
        self.content.push_str(&delta.content);
        for piece in &delta.tool_calls {
            let (name, arguments) = self.calls.entry(piece.index).or_default();
            if let Some((_, opened)) = &piece.opening {
                name.clone_from(opened);
            }
            arguments.push_str(&piece.arguments);
        }
    }

    pub(super) fn texts(self) -> Vec<String> {
        let call = |(mut text, arguments): (String, String)| {
            words(&mut text, &arguments);
            text
        };
        let all = [self.reasoning, self.content].into_iter().chain(self.calls.into_values().map(call));
        all.filter(|text| !text.trim().is_empty()).collect()
    }
}

fn line(out: &mut String, text: &str) {
    if !out.is_empty() && !text.is_empty() {
        out.push('\n');
    }
    out.push_str(text);
}

/// Each text and number in JSON, keys too; what is none as it is.
fn words(out: &mut String, json: &str) {
    match serde_json::from_str::<Value>(json) {
        Ok(value) => words_of(out, &value),
        Err(_) => line(out, json),
    }
}

fn words_of(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => line(out, text),
        Value::Number(number) => line(out, &number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| words_of(out, item)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            line(out, key);
            words_of(out, value);
        }),
        Value::Null | Value::Bool(_) => {}
    }
}

fn is_plain(id: &str) -> bool {
    id.len() <= ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Role, ToolCall, ToolCallDelta};
    use crate::gateway::guardrails::{GuardrailSpec, Guardrails};

    fn message(content: &str) -> Message {
        Message::new(Role::User, content)
    }

    #[test]
    fn each_speaker_and_tool_is_a_text_and_the_small_ones_are_one() {
        let mut called = message("calls");
        called.content = None;
        called.reasoning = Some("hm".into());
        let arguments = r#"{"a": "\u0061urora", "n": [1, "x\ny"]}"#.to_owned();
        called.tool_calls = vec![ToolCall { id: "call_1".into(), name: "pay".into(), arguments }];
        let mut answered = message("paid");
        answered.tool_call_id = Some("say aurora".into());
        let mut named = message("hi");
        named.name = Some("Ada".into());
        let mut prompt = ChatPrompt::new(vec![named, called, answered, message(" ")]);
        let parameters = r#"{"properties":{"a":{"description":"what"}}}"#.to_owned();
        prompt.tools = vec![Tool { name: "pay".into(), description: Some("pays".into()), parameters, strict: false }];
        prompt.template_kwargs = vec![("k".into(), "\"v\"".into())];
        let mut texts = Texts::default();
        texts.chat(&prompt, "");
        let constraint = Some(Constraint::Choice(vec!["yes".into(), "no".into()]));
        let stop = vec!["end".into()];
        texts.output(&Output { constraint, stop, prediction: Some("guess".into()), ..Output::default() });
        let expected = [
            "hi",
            "hm",
            "pay\na\naurora\nn\n1\nx\ny",
            "paid",
            "pay\npays\nproperties\na\ndescription\nwhat",
            "guess",
            "Ada\nsay aurora\nk\nv\nend\nyes\nno",
        ];
        assert_eq!(texts.done(), expected);
    }

    #[test]
    fn the_operators_instruction_is_not_the_clients_text() {
        let spec = GuardrailSpec { system: Some("be kind".into()), ..Default::default() };
        let sets = Guardrails::new(&[("default".to_owned(), spec)].into()).expect("a good set");
        let border = sets.border([].iter(), |_| None).expect("there");
        for (own, expected) in [(None, vec!["hi"]), (Some("own"), vec!["own", "hi"])] {
            let system = own.map(|own| Message::new(Role::System, own));
            let mut prompt = ChatPrompt::new(system.into_iter().chain([message("hi")]).collect());
            border.enter_chat(&mut prompt).expect("nothing is denied");
            assert_eq!(border.texts_of_chat(&prompt), expected);
        }
    }

    #[test]
    fn prompts_and_answers_have_texts() {
        let infill = Prompt::Infill(crate::chat::Infill {
            prefix: "p".into(),
            suffix: String::new(),
            prompt: "m".into(),
            extra: vec![("f.rs".into(), "text".into())],
        });
        let mixed = Prompt::Mixed(vec![PromptPart::Text("mixed".into())]);
        assert_eq!(texts_of(&[Prompt::Text("a".into()), infill, mixed]), ["a", "p", "m", "f.rs\ntext", "mixed"]);
        let mut said = Said::default();
        let call = |index, opening: Option<&str>, arguments: &str| {
            let opening = opening.map(|name| ("id".to_owned(), name.to_owned()));
            let piece = ToolCallDelta { index, opening, arguments: arguments.into() };
            Delta { tool_calls: vec![piece], ..Delta::default() }
        };
        for delta in [
            Delta { reasoning: "th".into(), ..Delta::default() },
            Delta { reasoning: "ink".into(), content: "te".into(), ..Delta::default() },
            Delta { content: "xt".into(), ..Delta::default() },
            call(0, Some("one"), "{\"a\":"),
            call(1, Some("two"), "{"),
            call(0, None, "\"\\u0062\"}"),
        ] {
            said.push(&delta);
        }
        assert_eq!(said.texts(), ["think", "text", "one\na\nb", "two\n{"]);
    }
}
