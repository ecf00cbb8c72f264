//! `[[prefix]]` in `hearth.toml`: beginnings of prompts that are computed at start and shared by all tenants.
//!
//! ```toml
//! [[prefix]]
//! name = "support"
//! system = "You are …"          # or prompt = "…" for raw completions, or request_file = "chat.json"
//! model = "chat"                # only for this one
//! ```
//!
//! `request_file` is the body of an OpenAI chat: its messages and tools are the prefix. What guardrails put in front of every chat
//! with a model comes before them, or no chat would begin as they do.

use super::ServedModel;
use super::raw::ConfigError;
use super::resolve::rule;
use super::settings::Raw;
use super::tables::{Entry, Place};
use crate::chat::{ChatPrompt, Message, Role};
use crate::dialect::openai;
use crate::engine::config::{EngineConfig, PrefixConfig, PrefixText};
use std::path::PathBuf;

/// Bytes of one text.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// One `[[prefix]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixTable {
    name: String,
    /// Every model's, where it isn't said.
    model: Option<String>,
    text: PrefixText,
    /// Where it is written, for what only all tables together tell.
    place: Place,
}

pub(super) fn prefix_table(entries: Vec<Entry>, place: Place) -> Result<PrefixTable, ConfigError> {
    let (mut name, mut model, mut texts) = (None, None, Vec::new());
    for mut entry in entries {
        match entry.key.as_str() {
            "name" => name = Some(entry.text()?),
            "model" => model = Some(entry.text()?),
            "system" => {
                let message = Message::new(Role::System, entry.text()?);
                texts.push(PrefixText::Chat(ChatPrompt::new(vec![message])));
            }
            "prompt" => texts.push(PrefixText::Prompt(entry.text()?)),
            "request_file" => {
                let path = PathBuf::from(entry.text()?);
                let body = read(&path).map_err(|reason| entry.fault(format!("{}: {reason}", path.display())))?;
                let read = openai::chat_request(&body);
                let read = read.map_err(|fault| entry.fault(format!("{}: {}", path.display(), fault.message)))?;
                texts.push(PrefixText::Chat(read.request.request.prompt));
            }
            _ => return Err(entry.unknown()),
        }
    }
    match (name, texts.pop()) {
        (Some(name), Some(text)) if texts.is_empty() => Ok(PrefixTable { name, model, text, place }),
        _ => Err(place.fault("a [[prefix]] has a name and one of system, prompt and request_file")),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > TEXT_BYTES_MAX {
        return Err(format!("not a file of at most {TEXT_BYTES_MAX} bytes"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

impl Raw {
    /// Gives each model its prefixes.
    pub(super) fn add_prefixes(
        &self,
        models: &mut [ServedModel],
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let most = EngineConfig::PREFIXES_MAX;
        if self.tables.prefixes.is_empty() && self.prefix_store.value.is_none() {
            return Ok(());
        }
        let guardrails = self.guardrails(models)?;
        for (at, table) in self.tables.prefixes.iter().enumerate() {
            if at >= most {
                return Err(table.place.fault(&format!("more than {most} [[prefix]]")));
            }
            if self.tables.prefixes[..at].iter().any(|other| other.name == table.name) {
                return Err(table.place.fault(&format!("another [[prefix]] has the name {:?} already", table.name)));
            }
            let is_meant = |model: &&mut ServedModel| {
                table.model.as_ref().is_none_or(|name| model.config.id.eq_ignore_ascii_case(name))
            };
            let mut n = 0;
            for model in models.iter_mut().filter(is_meant) {
                let mut text = table.text.clone();
                if let PrefixText::Chat(chat) = &mut text {
                    guardrails.instruct(&model.config.guardrails, chat);
                    if guardrails.may_instruct_more(&model.config.guardrails) {
                        warnings.push(format!(
                            "[[prefix]] {:?}: chats with {:?} whose alias, team or key has guardrails with a system of \
                             their own don't begin with it",
                            table.name, model.config.id
                        ));
                    }
                }
                model.engine.prefixes.push(PrefixConfig { name: table.name.clone(), text });
                n += 1;
            }
            if n == 0 {
                let name = table.model.as_deref().unwrap_or_default();
                return Err(table.place.fault(&format!("there is no model named {name:?}")));
            }
        }
        if self.prefix_store.value.is_some() && self.tables.prefixes.is_empty() {
            return Err(rule(&self.prefix_store, "it keeps each [[prefix]] of hearth.toml, and there is none"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a writable file");
        Raw::gather(Some(file.path()), |_| None, &[])?.resolve()
    }

    fn refusal(text: &str) -> String {
        resolve(text).expect_err("to be refused").to_string()
    }

    const TWO: &str = "[[model]]\nname = \"a\"\nfile = \"scripted\"\n[[model]]\nname = \"b\"\nfile = \"scripted\"\n";

    #[test]
    fn a_prefix_is_every_models_or_one_models() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("chat.json");
        let body =
            r#"{"messages":[{"role":"system","content":"Hi"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
        std::fs::write(&file, body).expect("a writable folder");
        let text = format!(
            "{TWO}[[prefix]]\nname = \"s\"\nsystem = \"You are\"\n[[prefix]]\nname = \"f\"\nmodel = \"B\"\nrequest_file = \"{}\"\n",
            file.display()
        );
        let config = resolve(&text).expect("a good file");
        let names = |n: usize| -> Vec<&str> {
            config.models[n].engine.prefixes.iter().map(|prefix| prefix.name.as_str()).collect()
        };
        assert_eq!((names(0), names(1)), (vec!["s"], vec!["s", "f"]));
        let PrefixText::Chat(chat) = &config.models[1].engine.prefixes[1].text else { panic!("a chat") };
        assert_eq!((chat.messages.len(), chat.tools.len()), (1, 1));
    }

    #[test]
    fn a_chat_begins_with_what_guardrails_put_in_front_of_all_of_them() {
        let text = "[guardrails.default]\nsystem = \"D\"\n[guardrails.b]\nsystem = \"B\"\n\
            [[model]]\nname = \"a\"\nfile = \"scripted\"\n\
            [[model]]\nname = \"b\"\nfile = \"scripted\"\nguardrails = [\"b\"]\n\
            [[prefix]]\nname = \"s\"\nsystem = \"You are\"\n[[prefix]]\nname = \"p\"\nprompt = \"You are\"\n";
        let config = resolve(text).expect("a good file");
        for (n, wanted) in [(0, "D\n\nYou are"), (1, "D\n\nB\n\nYou are")] {
            let prefixes = &config.models[n].engine.prefixes;
            let PrefixText::Chat(chat) = &prefixes[0].text else { panic!("a chat") };
            assert_eq!((chat.messages.len(), chat.messages[0].content.as_deref()), (1, Some(wanted)));
            assert_eq!(prefixes[1].text, PrefixText::Prompt("You are".into()), "raw completions have no place for it");
        }
        let warned: Vec<_> = config.warnings.iter().filter(|warning| warning.starts_with("[[prefix]] \"s\"")).collect();
        assert!(warned.len() == 1 && warned[0].contains("chats with \"a\""), "a key may name b: {warned:?}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, what) in [
            ("name = \"s\"\n", "a name and one of"),
            ("system = \"x\"\n", "a name and one of"),
            ("name = \"s\"\nsystem = \"x\"\nprompt = \"y\"\n", "a name and one of"),
            ("name = \"s\"\nsystem = \"x\"\nmodel = \"c\"\n", "there is no model named \"c\""),
            ("name = \"s\"\nsystm = \"x\"\n", "unknown key \"systm\""),
            ("name = \"s\"\nrequest_file = \"/nowhere\"\n", "No such file"),
            ("name = \"s\"\nsystem = \"x\"\n[[prefix]]\nname = \"s\"\nprompt = \"y\"\n", "already"),
        ] {
            let message = refusal(&format!("{TWO}[[prefix]]\n{text}"));
            assert!(message.contains(what), "{message}");
        }
        let message = refusal("model = \"scripted\"\nprefix_store = \"/tmp\"\n");
        assert!(message.starts_with("prefix_store (") && message.ends_with("there is none"), "{message}");
    }
}
