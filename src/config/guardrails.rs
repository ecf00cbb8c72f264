//! `[guardrails.NAME]` in `hearth.toml`: what the operator puts in front of requests, and what may be in them and in answers.

use super::ServedModel;
use super::raw::{ConfigError, Origin};
use super::settings::Raw;
use super::tables::{Entry, Table, line_of, read};
use crate::gateway::{ClassifySpec, GuardrailSpec, Guardrails, RuleSpec, is_wild};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The key under which the sets stand.
pub(super) const KEY: &str = "guardrails";
/// Longest name of a set.
const NAME_BYTES_MAX: usize = 64;
/// Sets named in one place.
const NAMED_MAX: usize = 16;
/// Entries of one list; the gateway has a bound of its own for what they come to.
const RULES_MAX: usize = 1000;

/// One set, its file not yet read.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardrailTable {
    pub name: String,
    /// A text, or `file:PATH`.
    pub system: Option<String>,
    pub input: RuleSpec,
    pub output: RuleSpec,
    /// Where the table begins.
    pub origin: Origin,
}

impl Raw {
    /// Reads the sets that `text` has.
    pub(super) fn add_guardrails(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        #[derive(Deserialize)]
        struct Sets {
            guardrails: BTreeMap<Spanned<String>, Table>,
        }
        let syntax = |line, message| ConfigError::Syntax { path: path.to_owned(), line, message };
        let sets: Sets = toml::from_str(text).map_err(|error: toml::de::Error| {
            syntax(line_of(text, error.span().map_or(0, |span| span.start)), error.message().to_owned())
        })?;
        if sets.guardrails.len() > Guardrails::SETS_MAX {
            return Err(syntax(1, format!("more than {} sets of guardrails", Guardrails::SETS_MAX)));
        }
        for (name, table) in sets.guardrails {
            let line = line_of(text, name.span().start);
            let name = name.into_inner();
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message =
                    format!("[guardrails.…] has a name of 1 to {NAME_BYTES_MAX} plain characters without spaces");
                return Err(syntax(line, message));
            }
            let (entries, _) = read(path, text, KEY, table);
            let origin = Origin::File { path: path.to_owned(), line, key: KEY };
            let mut table = GuardrailTable {
                name,
                system: None,
                input: RuleSpec::default(),
                output: RuleSpec::default(),
                origin: origin.clone(),
            };
            for mut entry in entries {
                match entry.key.as_str() {
                    "system" => table.system = Some(entry.text()?),
                    "input" => table.input = rules(entry.inner()?)?,
                    "output" => table.output = rules(entry.inner()?)?,
                    _ => return Err(entry.unknown()),
                }
            }
            self.tables.guardrails.push(table);
        }
        Ok(())
    }

    /// All sets, compiled. Errors: with the line of the set.
    pub(super) fn guardrails(&self, models: &[ServedModel]) -> Result<Guardrails, ConfigError> {
        let mut specs = BTreeMap::new();
        for table in &self.tables.guardrails {
            let refuse = |message: String| ConfigError::Rule { origin: table.origin.clone(), message };
            for (rules, list) in [(&table.input, "input"), (&table.output, "output")] {
                let Some(spec) = rules.classify.as_ref().filter(|spec| !is_served(models, &spec.model)) else {
                    continue;
                };
                let message = format!(
                    "{}: {list}: classify: there is no model named {:?} on this server (texts are classified here and \
                     nowhere else)",
                    table.name, spec.model
                );
                return Err(refuse(message));
            }
            let system = table.system.as_deref().map(|text| system(text).map_err(refuse)).transpose()?;
            let (input, output) = (table.input.clone(), table.output.clone());
            specs.insert(table.name.clone(), GuardrailSpec { system, input, output });
        }
        Guardrails::new(&specs).map_err(|(name, list, error)| {
            let table = self.tables.guardrails.iter().find(|table| table.name == name);
            let origin = table.map_or(Origin::Default, |table| table.origin.clone());
            ConfigError::Rule { origin, message: format!("{name}: {list}: {error}") }
        })
    }

    /// Refuses names of sets that are not there.
    pub(super) fn know_guardrails(&self, names: &[String], origin: &Origin) -> Result<(), ConfigError> {
        let is_there = |name: &String| self.tables.guardrails.iter().any(|table| table.name == *name);
        match names.iter().find(|name| !is_there(name)) {
            None if names.len() <= NAMED_MAX => Ok(()),
            None => {
                let message = format!("guardrails: more than {NAMED_MAX} names");
                Err(ConfigError::Rule { origin: origin.clone(), message })
            }
            Some(name) => {
                let message = format!("there is no [guardrails.{name}]");
                Err(ConfigError::Rule { origin: origin.clone(), message })
            }
        }
    }

    /// Files that instructions are read from.
    pub(super) fn guardrail_files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let systems = self.tables.guardrails.iter().filter_map(|table| table.system.as_deref());
        systems.filter_map(|text| text.strip_prefix("file:")).map(PathBuf::from)
    }
}

fn system(text: &str) -> Result<String, String> {
    let Some(path) = text.strip_prefix("file:") else { return Ok(text.to_owned()) };
    let refuse = |what: String| format!("system: {path}: {what}");
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > Guardrails::SYSTEM_BYTES_MAX as u64 {
        return Err(refuse(format!("not a file of at most {} bytes", Guardrails::SYSTEM_BYTES_MAX)));
    }
    let read = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let text = read.trim();
    if text.is_empty() { Err(refuse("empty".to_owned())) } else { Ok(text.to_owned()) }
}

/// By its name or one of its aliases, not by a pattern.
fn is_served(models: &[ServedModel], name: &str) -> bool {
    let names = models.iter().flat_map(|model| std::iter::once(&model.config.id).chain(&model.config.aliases));
    names.into_iter().any(|known| known.eq_ignore_ascii_case(name) && !is_wild(known))
}

fn rules(entries: Vec<Entry>) -> Result<RuleSpec, ConfigError> {
    let mut rules = RuleSpec::default();
    for mut entry in entries {
        match entry.key.as_str() {
            "deny_words" => rules.deny_words = entry.texts()?,
            "deny" => rules.deny = entry.texts()?,
            "redact" => {
                for rule in entry.tables(RULES_MAX)? {
                    rules.redact.push(redaction(rule, &entry)?);
                }
            }
            "classify" => rules.classify = Some(classifier(entry.inner()?, &entry)?),
            _ => return Err(entry.unknown()),
        }
    }
    Ok(rules)
}

fn classifier(entries: Vec<Entry>, whole: &Entry) -> Result<ClassifySpec, ConfigError> {
    let (mut model, mut deny, mut passes_on_error) = (None, Vec::new(), false);
    let (mut above, mut n_windows_max) = (ClassifySpec::ABOVE, ClassifySpec::WINDOWS);
    for mut entry in entries {
        match entry.key.as_str() {
            "model" => model = Some(entry.text()?),
            "deny" => deny = entry.texts()?,
            "above" => above = entry.decimal(0.0, 1.0)? as f32,
            "windows" => n_windows_max = entry.whole(1, ClassifySpec::WINDOWS_MAX.into())?,
            "on_error" => passes_on_error = entry.word(&["refuse", "pass"])? == "pass",
            _ => return Err(entry.unknown()),
        }
    }
    match model {
        Some(model) if !deny.is_empty() => Ok(ClassifySpec { model, deny, above, n_windows_max, passes_on_error }),
        _ => Err(whole.fault("a classifier has a model, and labels that it is to deny".to_owned())),
    }
}

fn redaction(entries: Vec<Entry>, whole: &Entry) -> Result<(String, String), ConfigError> {
    let (mut pattern, mut with) = (None, None);
    for mut entry in entries {
        match entry.key.as_str() {
            "match" => pattern = Some(entry.text()?),
            "with" => with = Some(entry.text_or_empty()?),
            _ => return Err(entry.unknown()),
        }
    }
    let both = pattern.zip(with);
    both.ok_or_else(|| whole.fault("a redaction has a match and a with".to_owned()))
}

/// What a set says, as the file has it.
pub fn guardrail_lines(table: &GuardrailTable) -> Vec<(&'static str, toml::Value)> {
    let texts = |texts: &[String]| toml::Value::Array(texts.iter().map(|text| text.as_str().into()).collect());
    let rules = |rules: &RuleSpec| {
        let redact = rules.redact.iter().map(|(pattern, with)| {
            let pair = [("match", pattern), ("with", with)];
            toml::Value::Table(pair.into_iter().map(|(key, text)| (key.to_owned(), text.as_str().into())).collect())
        });
        let lists = [
            ("deny_words", texts(&rules.deny_words)),
            ("deny", texts(&rules.deny)),
            ("redact", toml::Value::Array(redact.collect())),
        ];
        let said = lists.into_iter().filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()));
        let classify = rules.classify.as_ref().map(|spec| ("classify", classifier_line(spec)));
        toml::Value::Table(said.chain(classify).map(|(key, list)| (key.to_owned(), list)).collect())
    };
    let system = table.system.as_deref().map(|text| ("system", toml::Value::from(text)));
    let lists = [("input", rules(&table.input)), ("output", rules(&table.output))];
    let said = lists.into_iter().filter(|(_, rules)| rules.as_table().is_some_and(|rules| !rules.is_empty()));
    system.into_iter().chain(said).collect()
}

fn classifier_line(spec: &ClassifySpec) -> toml::Value {
    let deny = spec.deny.iter().map(|label| label.as_str().into()).collect();
    let said = [
        ("model", spec.model.as_str().into()),
        ("deny", toml::Value::Array(deny)),
        ("above", shortest(spec.above).into()),
        ("windows", i64::from(spec.n_windows_max).into()),
        ("on_error", if spec.passes_on_error { "pass" } else { "refuse" }.into()),
    ];
    toml::Value::Table(said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// As it was written, and not as what is closest to it in half the bits.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (path, system) = (dir.path().join("hearth.toml"), dir.path().join("system.txt"));
        std::fs::write(&system, "be kind\n").expect("a writable folder");
        std::fs::write(&path, text.replace("SYSTEM", &system.display().to_string())).expect("a writable folder");
        let raw = Raw::gather(Some(&path), |_| None, &[])?;
        if text.contains("SYSTEM") {
            assert!(raw.files().contains(&system));
        }
        raw.resolve()
    }

    const MODEL: &str = "[[model]]\nname = \"m\"\nfile = \"scripted\"\n";

    #[test]
    fn sets_are_read_and_named_where_they_hold() {
        let text = format!(
            "egress = \"allowed\"\n{}guardrails = [\"a\"]\n{}",
            MODEL,
            r#"
            [[upstream]]
            name = "u"
            base_url = "http://h/v1"
            model = "x"
            guardrails = ["b"]
            [[alias]]
            name = "al"
            target = "m"
            guardrails = ["a", "b"]
            [guardrails.a]
            system = "file:SYSTEM"
            input = { deny_words = ["aurora"], deny = ['(?i)drop\s+table'] }
            output = { redact = [{ match = '\b\d{16}\b', with = "[card]" }, { match = 'x{3}', with = "" }] }
            [guardrails.b]
            system = "b"
            "#
        );
        let config = resolve(&text).expect("a good file");
        assert!(config.gateway.guardrails.has("a") && !config.gateway.guardrails.has("c"));
        assert_eq!(config.models[0].config.guardrails, ["a"]);
        assert_eq!(config.gateway.routing.upstreams[0].guardrails, ["b"]);
        assert_eq!(config.gateway.routing.routes[0].guardrails, ["a", "b"], "an alias with rules is a route");
    }

    #[test]
    fn what_is_printed_is_what_was_read() {
        let text = "model = \"scripted\"\n[guardrails.a]\nsystem = \"s\"\n\
                    input = { deny = [\"a\\\\d\"], classify = { model = \"m\", deny = [\"x\"], above = 0.7 } }\n\
                    output = { redact = [{ match = \"x\", with = \"\" }] }\n";
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a writable file");
        let raw = Raw::gather(Some(file.path()), |_| None, &[]).expect("a good file");
        let lines = guardrail_lines(&raw.tables.guardrails[0]);
        let lines: Vec<String> = lines.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        std::fs::write(file.path(), format!("model = \"scripted\"\n[guardrails.a]\n{}", lines.concat()))
            .expect("a file");
        let again = Raw::gather(Some(file.path()), |_| None, &[]).expect("a good file");
        assert_eq!(raw.tables.guardrails, again.tables.guardrails);
    }

    fn classify(spec: &str) -> String {
        format!("{MODEL}[guardrails.a]\ninput = {{ classify = {spec} }}\n")
    }

    #[test]
    fn a_classifier_is_a_model_of_this_server() {
        let alias = "[[alias]]\nname = \"judge\"\nmodel = \"m\"\n";
        for name in ["m", "M", "judge"] {
            let text = format!("{}{alias}", classify(&format!("{{ model = '{name}', deny = ['x'] }}")));
            let config = resolve(&text).expect("a good file");
            assert_eq!(config.gateway.guardrails.classifiers().collect::<Vec<_>>(), [name]);
        }
        let table = |text: &str| {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            std::fs::write(file.path(), text).expect("a writable file");
            Raw::gather(Some(file.path()), |_| None, &[]).expect("a good file").tables.guardrails.remove(0)
        };
        let read = |text: &str| table(text).input.classify.expect("a classifier");
        let said = read(&classify("{ model = 'm', deny = ['x', 'y'], above = 0.7, windows = 9, on_error = 'pass' }"));
        assert_eq!((said.deny.len(), said.above, said.n_windows_max, said.passes_on_error), (2, 0.7, 9, true));
        let unsaid = read(&classify("{ model = 'm', deny = ['x'] }"));
        assert_eq!((unsaid.above, unsaid.n_windows_max), (0.5, 256));
        assert!(!unsaid.passes_on_error, "what it can't look at is refused");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, words) in [
            (format!("{MODEL}[guardrails.a]\nsytem = \"x\"\n"), "line 5: unknown key \"sytem\""),
            (format!("{MODEL}[guardrails.a]\nsystem = \"\"\n"), "an empty text"),
            (format!("{MODEL}[guardrails.a]\nsystem = \"file:/nowhere\"\n"), "/nowhere"),
            (format!("{MODEL}[guardrails.a]\noutput = {{ deny = ['a+'] }}\n"), "a: output: a match of it has no bound"),
            (format!("{MODEL}[guardrails.a]\noutput = {{ deny = ['a{{600}}'] }}\n"), "longer than 512 bytes"),
            (format!("{MODEL}[guardrails.a]\ninput = {{ deny = ['(a'] }}\n"), "a: input: \"(a\""),
            (format!("{MODEL}[guardrails.a]\ninput = {{ deny = ['a*'] }}\n"), "it matches the empty text"),
            (format!("{MODEL}[guardrails.a]\ninput = {{ deny = ['(?:\\w{{100}}){{100}}'] }}\n"), "more than 8 MiB"),
            (format!("{MODEL}[guardrails.a]\ninput = {{ deny_words = [' '] }}\n"), "a word has 1 to 64"),
            (format!("{MODEL}[guardrails.a]\ninput = {{ redact = [{{ match = 'a' }}] }}\n"), "a match and a with"),
            (classify("{ model = 'no', deny = ['x'] }"), "line 4): a: input: classify: there is no model named \"no\""),
            (classify("{ model = 'm', deny = [] }"), "classify: a classifier has a model, and labels"),
            (classify("{ model = 'm' }"), "classify: a classifier has a model, and labels"),
            (classify("{ deny = ['x'] }"), "classify: a classifier has a model, and labels"),
            (classify("{ model = 'm', deny = ['x'], above = 1.1 }"), "above: a number within 0..=1 is expected"),
            (classify("{ model = 'm', deny = ['x'], above = nan }"), "above: a number within 0..=1 is expected"),
            (classify("{ model = 'm', deny = ['x'], windows = 0 }"), "windows: a whole number within 1..=4096"),
            (classify("{ model = 'm', deny = ['x'], on_error = 'ignore' }"), "\"ignore\" is none of refuse, pass"),
            (classify("{ model = 'm', deny = ['x'], abov = 1 }"), "line 5: unknown key \"abov\""),
            (classify("'m'"), "a string does not belong here"),
            (
                format!("{MODEL}alias = [\"w*\"]\n{}", &classify("{ model = 'w*', deny = ['x'] }")[MODEL.len()..]),
                "no model",
            ),
            (format!("{MODEL}[guardrails]\nsystem = \"x\"\n"), "invalid type"),
            (format!("{MODEL}guardrails = [\"no\"]\n"), "there is no [guardrails.no]"),
            (
                format!("{MODEL}[[alias]]\nname = \"x\"\nmodel = \"m\"\nguardrails = [\"no\"]\n"),
                "there is no [guardrails.no]",
            ),
        ] {
            let got = resolve(&text).expect_err(&text).to_string();
            assert!(got.contains(words), "{text}\n{got}\n{words}");
        }
    }
}
