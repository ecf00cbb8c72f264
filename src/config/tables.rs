//! `[[model]]`, `[[alias]]` and `[[upstream]]` in `hearth.toml`: several models in one server, more names for them, and
//! other servers that may answer.
//!
//! # Design
//! A model's table is the top-level settings with some of them said anew, so it is resolved by the same code. What says
//! which model it is (the group "Model", and with it the kind of its drafts) belongs to the top-level `model` alone and is not
//! handed down. What a table says wins over flags and variables, which speak for all models.

use super::guardrails::{GuardrailTable, KEY};
use super::prefixes::{PrefixTable, prefix_table};
use super::raw::{ConfigError, Origin, article, nearest};
use super::settings::{Raw, SETTINGS};
use super::upstreams::{AliasRouting, UpstreamTable, alias_entry, upstream_table};
use super::value::toml_texts;
use super::{Said, Setting};
use crate::engine::config::DraftMode;
use crate::gateway::{LimitSpec, MODELS_MAX, NAMES_MAX, UPSTREAMS_MAX};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Keys that may be arrays of tables.
pub(super) const KINDS: [&str; 6] = ["model", "alias", "upstream", "prefix", "team", "key"];

/// What the file says in tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables {
    pub models: Vec<ModelTable>,
    pub aliases: Vec<AliasTable>,
    /// `[limits.NAME]`.
    pub limits: BTreeMap<String, LimitSpec>,
    pub upstreams: Vec<UpstreamTable>,
    pub prefixes: Vec<PrefixTable>,
    pub teams: Vec<GrantTable>,
    pub keys: Vec<GrantTable>,
    /// `[guardrails.NAME]`.
    pub guardrails: Vec<GuardrailTable>,
}

/// One `[[team]]` or `[[key]]`: its fields as the admin API has them.
#[derive(Debug, Clone, PartialEq)]
pub struct GrantTable {
    pub fields: serde_json::Map<String, serde_json::Value>,
    pub origin: Origin,
}

/// One `[[model]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelTable {
    /// Its name in the API; the file's name when it has none.
    pub name: Option<String>,
    pub file: String,
    /// Where `name` is written, or else the table's first key.
    pub origin: Origin,
    file_origin: Origin,
    /// `egress = "never"`: its requests are answered here or not at all.
    pub never_leaves: bool,
    /// Sets of rules that hold for its requests.
    pub guardrails: Vec<String>,
    /// Settings of this model: key, texts, origin.
    pub settings: Vec<(&'static Setting, Vec<String>, Origin)>,
}

/// One `[[alias]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasTable {
    pub name: String,
    /// A model or an upstream.
    pub model: String,
    pub routing: AliasRouting,
    pub origin: Origin,
}

pub(super) type Table = BTreeMap<Spanned<String>, toml::Value>;

pub(super) fn is_tables(value: &toml::Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(toml::Value::is_table))
}

/// Whether a `[[model]]` may say it: the server's own settings are said once.
fn is_of_a_model(setting: &Setting) -> bool {
    !matches!(
        setting.group,
        "Server" | "Log" | "Traces" | "Metrics" | "Keys and ledger" | "Cache of answers" | "Upstreams"
    ) && !["model", "in_process", "load_timeout", "max_loaded_memory", "memory_high"].contains(&setting.key)
}

impl Raw {
    /// Reads the tables among `entries`, which were parsed from `text`.
    pub(super) fn add_tables(&mut self, path: &Path, text: &str, entries: &Table) -> Result<(), ConfigError> {
        /// Read anew, for the places of the keys inside.
        #[derive(Deserialize)]
        struct Models {
            model: Vec<Table>,
        }
        #[derive(Deserialize)]
        struct Aliases {
            alias: Vec<Table>,
        }
        #[derive(Deserialize)]
        struct Upstreams {
            upstream: Vec<Table>,
        }
        let has = |kind: &str| entries.iter().any(|(key, value)| key.get_ref() == kind && is_tables(value));
        let broken = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        };
        if entries.iter().any(|(key, value)| key.get_ref() == super::limits::KEY && value.is_table()) {
            self.add_limits(path, text)?;
        }
        if entries.iter().any(|(key, value)| key.get_ref() == super::guardrails::KEY && value.is_table()) {
            self.add_guardrails(path, text)?;
        }
        if has("model") {
            let models: Models = toml::from_str(text).map_err(broken)?;
            let tables = models.model.into_iter().map(|table| model_table(path, text, table));
            self.tables.models = tables.collect::<Result<_, _>>()?;
        }
        if has("alias") {
            let aliases: Aliases = toml::from_str(text).map_err(broken)?;
            let tables = aliases.alias.into_iter().map(|table| alias_table(path, text, table));
            self.tables.aliases = tables.collect::<Result<_, _>>()?;
        }
        if has("upstream") {
            let upstreams: Upstreams = toml::from_str(text).map_err(broken)?;
            let tables = upstreams.upstream.into_iter().map(|table| {
                let (entries, place) = read(path, text, "upstream", table);
                upstream_table(entries, &place)
            });
            self.tables.upstreams = tables.collect::<Result<_, _>>()?;
        }
        #[derive(Deserialize)]
        struct Prefixes {
            prefix: Vec<Table>,
        }
        if has("prefix") {
            let prefixes: Prefixes = toml::from_str(text).map_err(broken)?;
            let tables = prefixes.prefix.into_iter().map(|table| {
                let (entries, place) = read(path, text, "prefix", table);
                prefix_table(entries, place)
            });
            self.tables.prefixes = tables.collect::<Result<_, _>>()?;
        }
        #[derive(Deserialize)]
        struct Teams {
            team: Vec<Table>,
        }
        #[derive(Deserialize)]
        struct Keys {
            key: Vec<Table>,
        }
        if has("team") {
            let teams: Teams = toml::from_str(text).map_err(broken)?;
            self.tables.teams = teams.team.into_iter().map(|table| grant_table(path, text, "team", table)).collect();
        }
        if has("key") {
            let keys: Keys = toml::from_str(text).map_err(broken)?;
            self.tables.keys = keys.key.into_iter().map(|table| grant_table(path, text, "key", table)).collect();
        }
        let (n_models, n_aliases) = (self.tables.models.len(), self.tables.aliases.len());
        if n_models > MODELS_MAX || n_aliases > NAMES_MAX || self.tables.upstreams.len() > UPSTREAMS_MAX {
            let message =
                format!("more than {MODELS_MAX} [[model]], {NAMES_MAX} [[alias]] or {UPSTREAMS_MAX} [[upstream]]");
            return Err(ConfigError::Syntax { path: path.to_owned(), line: 1, message });
        }
        Ok(())
    }

    /// The settings of one table's model.
    pub fn of_table(&self, table: &ModelTable) -> Result<Raw, ConfigError> {
        let mut raw = self.clone();
        let unsaid = Raw::default();
        // Said of the top-level model, not of this one: the whole group "Model".
        raw.alias = unsaid.alias;
        raw.sha256 = unsaid.sha256;
        raw.chat_template_file = unsaid.chat_template_file;
        raw.chat_template = unsaid.chat_template;
        raw.mmproj = unsaid.mmproj;
        raw.lora = unsaid.lora;
        raw.embeddings = unsaid.embeddings;
        raw.pooling = unsaid.pooling;
        raw.rerank = unsaid.rerank;
        raw.model_draft = unsaid.model_draft;
        raw.lookup_cache_static = unsaid.lookup_cache_static;
        // What drafts is said of the top-level model, if there is one; that nothing does is a rule for all.
        if self.model.value.is_some() && raw.spec_type.value != Some(DraftMode::None) {
            raw.spec_type = unsaid.spec_type;
        }
        raw.tables = Tables::default();
        raw.model = Said { value: Some(table.file.clone()), origin: table.file_origin.clone() };
        for (setting, texts, origin) in &table.settings {
            raw.set(setting.key, texts, origin.clone())?;
        }
        Ok(raw)
    }
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

fn model_table(path: &Path, text: &str, table: Table) -> Result<ModelTable, ConfigError> {
    let line = first_line(text, &table);
    let (mut name, mut file, mut settings, mut never_leaves) = (None, None, Vec::new(), false);
    let mut guardrails = Vec::new();
    for (key, value) in table {
        let line = line_of(text, key.span().start);
        let origin = |key: &'static str| Origin::File { path: path.to_owned(), line, key };
        match key.get_ref().as_str() {
            "name" => name = Some((text_of(&value, origin("name"))?, origin("name"))),
            "egress" => {
                let mut entry = Entry { key: "egress".to_owned(), value, path: path.to_owned(), line, kind: "egress" };
                never_leaves = entry.word(&["never", "allowed"])? == "never";
            }
            "guardrails" => {
                let mut entry = Entry { key: KEY.to_owned(), value, path: path.to_owned(), line, kind: KEY };
                guardrails = entry.texts()?;
            }
            "file" => file = Some((text_of(&value, origin("file"))?, origin("file"))),
            other => {
                let Some(setting) = SETTINGS.iter().find(|setting| setting.key == other) else {
                    let near = nearest(&other.replace('-', "_"));
                    return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key: other.to_owned(), near });
                };
                if !is_of_a_model(setting) {
                    let message = "this is said once for the server, not in [[model]]".to_owned();
                    return Err(ConfigError::Rule { origin: origin(setting.key), message });
                }
                let texts = toml_texts(&value, setting.is_list);
                let texts = texts.ok_or_else(|| misplaced(&value, origin(setting.key)))?;
                settings.push((setting, texts, origin(setting.key)));
            }
        }
    }
    let Some((file, file_origin)) = file else {
        let message = "this [[model]] names no file".to_owned();
        return Err(ConfigError::Syntax { path: path.to_owned(), line, message });
    };
    let (name, origin) = match name {
        Some((name, origin)) => (Some(name), origin),
        None => (None, file_origin.clone()),
    };
    Ok(ModelTable { name, file, origin, file_origin, never_leaves, guardrails, settings })
}

fn alias_table(path: &Path, text: &str, table: Table) -> Result<AliasTable, ConfigError> {
    let (entries, place) = read(path, text, "alias", table);
    let (mut name, mut model, mut routing) = (None, None, AliasRouting::default());
    for mut entry in entries {
        match entry.key.as_str() {
            "name" => name = Some((entry.text()?, entry.origin("name"))),
            // `model` is the older word.
            "model" | "target" => model = Some(entry.text()?),
            "targets" => {
                let mut all = entry.texts()?.into_iter();
                model = all.next();
                routing.equals = all.collect();
            }
            _ => alias_entry(&mut routing, &mut entry)?.ok_or_else(|| entry.unknown())?,
        }
    }
    match (name, model) {
        (Some((name, origin)), Some(model)) => Ok(AliasTable { name, model, routing, origin }),
        _ => Err(place.fault("an [[alias]] has a name and a model")),
    }
}

/// One key of a table that is no setting, with where it stands.
pub(super) struct Entry {
    pub key: String,
    pub value: toml::Value,
    path: PathBuf,
    line: usize,
    /// The table it is in, or its setting.
    kind: &'static str,
}

/// Where a table begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    path: PathBuf,
    line: usize,
}

pub(super) fn read(path: &Path, text: &str, kind: &'static str, table: Table) -> (Vec<Entry>, Place) {
    let place = Place { path: path.to_owned(), line: first_line(text, &table) };
    let entry = |(key, value): (Spanned<String>, toml::Value)| {
        let line = line_of(text, key.span().start);
        Entry { key: key.into_inner(), value, path: path.to_owned(), line, kind }
    };
    (table.into_iter().map(entry).collect(), place)
}

impl Place {
    pub(super) fn fault(&self, message: &str) -> ConfigError {
        ConfigError::Syntax { path: self.path.clone(), line: self.line, message: message.to_owned() }
    }
}

impl Entry {
    pub(super) fn origin(&self, key: &'static str) -> Origin {
        Origin::File { path: self.path.clone(), line: self.line, key }
    }

    pub(super) fn fault(&self, message: String) -> ConfigError {
        let message = if self.key == self.kind { message } else { format!("{}: {message}", self.key) };
        ConfigError::Rule { origin: self.origin(self.kind), message }
    }

    pub(super) fn unknown(&self) -> ConfigError {
        ConfigError::UnknownKey { path: self.path.clone(), line: self.line, key: self.key.clone(), near: None }
    }

    pub(super) fn text(&mut self) -> Result<String, ConfigError> {
        text_of(&self.value, self.origin(self.kind))
    }

    pub(super) fn text_or_empty(&mut self) -> Result<String, ConfigError> {
        if self.value.as_str() == Some("") { Ok(String::new()) } else { self.text() }
    }

    pub(super) fn texts(&mut self) -> Result<Vec<String>, ConfigError> {
        let texts = toml_texts(&self.value, true).filter(|texts| texts.iter().all(|text| !text.is_empty()));
        let texts = texts.ok_or_else(|| misplaced(&self.value, self.origin(self.kind)))?;
        if texts.len() > NAMES_MAX {
            return Err(self.fault(format!("more than {NAMES_MAX} names")));
        }
        Ok(texts)
    }

    /// The keys of an inline table.
    pub(super) fn inner(&mut self) -> Result<Vec<Entry>, ConfigError> {
        match std::mem::replace(&mut self.value, toml::Value::Boolean(false)) {
            toml::Value::Table(table) => Ok(self.entries(table)),
            other => Err(misplaced(&other, self.origin(self.kind))),
        }
    }

    /// The keys of each inline table of an array.
    pub(super) fn tables(&mut self, max: usize) -> Result<Vec<Vec<Entry>>, ConfigError> {
        let items = match std::mem::replace(&mut self.value, toml::Value::Boolean(false)) {
            toml::Value::Array(items) if items.len() <= max => items,
            toml::Value::Array(_) => return Err(self.fault(format!("more than {max} entries"))),
            other => return Err(misplaced(&other, self.origin(self.kind))),
        };
        let table = |item: toml::Value| match item {
            toml::Value::Table(table) => Ok(self.entries(table)),
            other => Err(misplaced(&other, self.origin(self.kind))),
        };
        items.into_iter().map(table).collect()
    }

    fn entries(&self, table: toml::Table) -> Vec<Entry> {
        let entry = |(key, value)| Entry { key, value, path: self.path.clone(), line: self.line, kind: self.kind };
        table.into_iter().map(entry).collect()
    }
}

fn grant_table(path: &Path, text: &str, key: &'static str, table: Table) -> GrantTable {
    let origin = Origin::File { path: path.to_owned(), line: first_line(text, &table), key };
    let json = |value| serde_json::to_value(value).unwrap_or_default();
    let fields = table.into_iter().map(|(key, value)| (key.into_inner(), json(value))).collect();
    GrantTable { fields, origin }
}

fn first_line(text: &str, table: &Table) -> usize {
    table.keys().map(|key| line_of(text, key.span().start)).min().unwrap_or(1)
}

fn text_of(value: &toml::Value, origin: Origin) -> Result<String, ConfigError> {
    match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        Some(_) => Err(ConfigError::Rule { origin, message: "an empty text".to_owned() }),
        None => Err(misplaced(value, origin)),
    }
}

pub(super) fn misplaced(value: &toml::Value, origin: Origin) -> ConfigError {
    let message = format!("{} {} does not belong here", article(value.type_str()), value.type_str());
    ConfigError::Rule { origin, message }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Origin, Raw};
    use crate::engine::EngineConfig;
    use crate::engine::config::{DraftMode, EmbedMode};
    use crate::gateway::KeepAlive;
    use std::time::Duration;

    fn resolve(text: &str, flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, text).expect("a writable folder");
        let flags: Vec<_> =
            flags.iter().map(|(key, text)| (*key, vec![(*text).to_owned()], Origin::Flag((*key).to_owned()))).collect();
        Raw::gather(Some(&path), |_| None, &flags)?.resolve()
    }

    const TWO: &str = r#"
        parallel = 2
        temp = 0.5
        [[model]]
        name = "chat"
        file = "scripted"
        alias = ["gpt-*", "c"]
        [[model]]
        name = "side"
        file = "scripted:load_ms=5"
        parallel = 8
        temp = 0
        load = "lazy"
        [[alias]]
        name = "gpt-4o"
        model = "SIDE"
    "#;

    #[test]
    fn a_table_is_the_top_level_said_anew() {
        let config = resolve(TWO, &[("ctx_size", "4096")]).expect("two models");
        let [chat, side] = config.models.as_slice() else { unreachable!("two models") };
        assert_eq!((chat.config.id.as_str(), side.config.id.as_str()), ("chat", "side"));
        assert_eq!((chat.engine.n_slots, side.engine.n_slots), (2, 8));
        assert_eq!((chat.engine.n_ctx, side.engine.n_ctx), (Some(4096), Some(4096)));
        assert_eq!((chat.config.sampling.temperature, side.config.sampling.temperature), (Some(0.5), Some(0.0)));
        assert_eq!((chat.config.is_lazy, side.config.is_lazy), (false, true));
        assert_eq!(chat.config.keep_alive, KeepAlive::Forever);
        assert_eq!(side.config.keep_alive, KeepAlive::For(Duration::from_secs(300)));
        assert_eq!(
            (&chat.config.aliases[..], &side.config.aliases[..]),
            (&["gpt-*".into(), "c".into()][..], &["gpt-4o".into()][..])
        );
        assert_eq!(config.gateway.model_id, "chat");
        // A model on the command line is one more, and the first.
        let three = resolve(TWO, &[("model", "scripted"), ("alias", "mine")]).expect("three models");
        assert_eq!(
            three.models.iter().map(|model| model.config.id.as_str()).collect::<Vec<_>>(),
            ["mine", "chat", "side"]
        );
        assert_eq!((three.models[0].engine.n_slots, three.models[0].config.aliases.len()), (2, 0));
    }

    #[test]
    fn what_is_said_of_the_first_model_is_not_of_the_others() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "x").expect("a writable folder");
            path.to_str().expect("a plain path").to_owned()
        };
        let (projector, draft, corpus) = (file("p.gguf"), file("d.gguf"), file("c.bin"));
        let files = format!("mmproj = '{projector}'\nmodel_draft = '{draft}'\nlookup_cache_static = '{corpus}'\n");
        let top = format!("{files}embeddings = \"on\"\npooling = \"mean\"\n");
        let tables = "[[model]]\nname = \"side\"\nfile = \"scripted\"\n";
        let engines = |kind: &str, own: &str| {
            let text = format!("{top}spec_type = \"{kind}\"\n{tables}{own}");
            let config = resolve(&text, &[("model", "scripted"), ("alias", "first")]).expect("two models");
            config.models.into_iter().map(|model| model.engine).collect::<Vec<_>>()
        };
        let of_draft = |engine: &EngineConfig| (engine.draft.mode, engine.draft.model.is_some());
        let [first, side] = &engines("draft-simple", "")[..] else { unreachable!("two models") };
        assert!(first.mmproj.is_some() && first.pooling.is_some() && first.embeddings == EmbedMode::On);
        assert!(side.mmproj.is_none() && side.pooling.is_none() && side.embeddings == EmbedMode::Auto);
        assert!(first.draft.corpus.is_some() && side.draft.corpus.is_none());
        assert_eq!(of_draft(first), (DraftMode::Simple, true));
        assert_eq!(of_draft(side), (DraftMode::Auto, false));
        let own = format!("lookup_cache_static = '{corpus}'\n");
        assert!(engines("none", &own).iter().all(|engine| engine.draft.corpus.is_some()), "texts draft in any case");
        let own = format!("model_draft = '{draft}'\nspec_type = \"draft-eagle3\"\n");
        assert_eq!(of_draft(&engines("draft-simple", &own)[1]), (DraftMode::Eagle3, true));
        assert_eq!(of_draft(&engines("none", "")[1]), (DraftMode::None, false));
        // Without a first model it is what all of them have, but for files.
        let all = resolve(&format!("spec_type = \"draft-mtp\"\n{tables}"), &[]).expect("a model");
        assert_eq!(of_draft(&all.models[0].engine), (DraftMode::Mtp, false));
        let orphan = resolve(&format!("model_draft = '{draft}'\n{tables}"), &[]).expect_err("whose?").to_string();
        assert!(orphan.contains("this belongs into its [[model]]"), "{orphan}");
    }

    #[test]
    fn a_pattern_is_no_name() {
        let config = resolve("", &[("model", "scripted"), ("alias", "gpt-*,real")]).expect("one model");
        assert_eq!(config.models[0].config.id, "scripted");
        assert_eq!(config.models[0].config.aliases, ["gpt-*", "real"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let message = |text: &str| resolve(text, &[]).expect_err("a bad file").to_string();
        let model = "[[model]]\nfile = \"scripted\"\n";
        for (text, words) in [
            ("[[model]]\nname = \"x\"\n".to_owned(), "line 2: this [[model]] names no file"),
            (format!("{model}prt = 1\n"), "line 3: unknown key \"prt\""),
            (format!("{model}port = 1\n"), "line 3): this is said once for the server"),
            (format!("{model}parallel = {{}}\n"), "line 3): a table does not belong here"),
            (format!("{model}parallel = 0\n"), "line 3): 0 is not within 1..=256"),
            (format!("{model}name = \"\"\n"), "line 3): an empty text"),
            (format!("{model}name = \"a b\"\n"), "has spaces"),
            (format!("{model}{model}"), "\"scripted\" is given to two models"),
            (format!("{model}[[alias]]\nname = \"x\"\n"), "an [[alias]] has a name and a model"),
            (
                format!("{model}[[alias]]\nname = \"x\"\nmodel = \"y\"\n"),
                "line 4): there is no model or upstream named \"y\"",
            ),
            (format!("{model}[[alias]]\nname = \"x\"\nmodle = \"y\"\n"), "line 5: unknown key \"modle\""),
            (format!("alias = \"a\"\n{model}"), "this belongs into its [[model]]"),
            ("[model]\nfile = \"scripted\"\n".to_owned(), "a table does not belong here"),
            (model.repeat(65), "more than 64 [[model]]"),
        ] {
            let got = message(&text);
            assert!(got.contains(words), "{text}\n{got}\n{words}");
        }
    }
}
