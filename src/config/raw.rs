//! What was written, before it is checked: flags, variables, the file, and which of them wins.

use super::settings::{Raw, SETTINGS};
use super::value::{Written, toml_texts};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// A setting's declaration.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// In `hearth.toml`; flag and variable follow from it.
    pub key: &'static str,
    pub group: &'static str,
    pub short: Option<char>,
    /// What stands for the value in the help.
    pub shown: &'static str,
    pub help: &'static str,
    pub default: Option<&'static str>,
    pub is_switch: bool,
    pub is_list: bool,
    /// Never shown, not even in errors.
    pub is_secret: bool,
}

impl Setting {
    /// `--ctx-size`, without the dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// `HEARTH_CTX_SIZE`.
    pub fn variable(&self) -> String {
        format!("HEARTH_{}", self.key.to_uppercase())
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    #[default]
    Default,
    File {
        path: PathBuf,
        line: usize,
        key: &'static str,
    },
    Variable(String),
    Flag(String),
    /// The positional argument MODEL.
    Argument,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line, key } => write!(f, "{key} ({} line {line})", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "--{name}"),
            Origin::Argument => f.write_str("MODEL"),
        }
    }
}

/// A value, if there is one, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said<T> {
    pub value: Option<T>,
    pub origin: Origin,
}

impl<T: Written> Said<T> {
    pub(super) fn default_from(text: Option<&str>) -> Self {
        Self { value: text.and_then(|text| T::from_texts(&[text.to_owned()])), origin: Origin::Default }
    }

    pub(super) fn set(&mut self, texts: &[String], origin: Origin, is_secret: bool) -> Result<(), ConfigError> {
        let Some(value) = T::from_texts(texts) else {
            let given = if is_secret { "the value".to_owned() } else { format!("{:?}", texts.join(",")) };
            return Err(ConfigError::Value { origin, given, expects: T::EXPECTS });
        };
        *self = Self { value: Some(value), origin };
        Ok(())
    }
}

/// Why there is no configuration. Every text names the setting as it was written and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} line {line}: {}", path.display(), cut(message, MESSAGE_CHARS_MAX))]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{} line {line}: unknown key {:?}{}", path.display(), cut(key, KEY_CHARS_MAX), did_you_mean(near))]
    UnknownKey { path: PathBuf, line: usize, key: String, near: Option<&'static str> },
    #[error("{origin}: {} is not {expects}", cut(given, GIVEN_CHARS_MAX))]
    Value { origin: Origin, given: String, expects: &'static str },
    #[error("{origin}: {}", cut(message, MESSAGE_CHARS_MAX))]
    Rule { origin: Origin, message: String },
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    #[error("{0}")]
    Unfit(String),
    #[error("no model was named: give MODEL, --model, HEARTH_MODEL or the key model in hearth.toml")]
    NoModel,
}

impl ConfigError {
    /// What only a look into the model's file could tell.
    pub fn unfit(message: String) -> Self {
        ConfigError::Unfit(message)
    }
}

fn did_you_mean(near: &Option<&'static str>) -> String {
    near.map(|key| format!(" (did you mean {key:?}?)")).unwrap_or_default()
}

/// A configuration file larger than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How much is repeated of a key that nobody knows, of a value that won't do, and of what a rule says of it: a word of the
/// file, not a page.
const KEY_CHARS_MAX: usize = 64;
const GIVEN_CHARS_MAX: usize = 256;
const MESSAGE_CHARS_MAX: usize = 2048;

fn cut(text: &str, n_chars_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(n_chars_max) {
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

impl Raw {
    /// Lays the file under the variables and those under the flags. Also returns what looks like a mistake but is no
    /// error. `path`: the file asked for; `None` takes `./hearth.toml` if there is one.
    pub fn gather(
        path: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
        flags: &[(&'static str, Vec<String>, Origin)],
    ) -> Result<Self, ConfigError> {
        let mut raw = Raw::default();
        match path {
            Some(path) => raw.add_file(path)?,
            None if Path::new("hearth.toml").exists() => raw.add_file(Path::new("hearth.toml"))?,
            None => {}
        }
        raw.add_variables(variable)?;
        for (key, texts, origin) in flags {
            raw.set(key, texts, origin.clone())?;
        }
        Ok(raw)
    }

    /// Variables over defaults, for a process that gets its settings no other way.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut raw = Raw::default();
        raw.add_variables(variable)?;
        Ok(raw)
    }

    fn add_variables(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        for setting in SETTINGS {
            // An empty variable counts as unset, as in a compose file with a blank.
            if let Some(text) = variable(&setting.variable()).filter(|text| !text.is_empty()) {
                self.set(setting.key, &[text], Origin::Variable(setting.variable()))?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let io_error = |error| ConfigError::Read { path: path.to_owned(), error };
        let n_bytes = std::fs::metadata(path).map_err(io_error)?.len();
        if n_bytes > FILE_BYTES_MAX {
            let message = format!("{n_bytes} bytes, more than {FILE_BYTES_MAX}");
            return Err(ConfigError::Syntax { path: path.to_owned(), line: 1, message });
        }
        let text = std::fs::read_to_string(path).map_err(io_error)?;
        self.add_toml(path, &text)
    }

    fn add_toml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let entries: BTreeMap<Spanned<String>, toml::Value> =
            toml::from_str(text).map_err(|error| ConfigError::Syntax {
                path: path.to_owned(),
                line: line_of(error.span().map_or(0, |span| span.start)),
                message: error.message().to_owned(),
            })?;
        self.add_tables(path, text, &entries)?;
        let is_telemetry = |key: &str, value: &toml::Value| key == super::telemetry::KEY && value.is_table();
        if entries.iter().any(|(key, value)| is_telemetry(key.get_ref(), value)) {
            self.add_telemetry(path, text)?;
        }
        for (key, value) in entries {
            if super::tables::is_tables(&value) && super::tables::KINDS.contains(&key.get_ref().as_str())
                || value.is_table() && [super::limits::KEY, super::guardrails::KEY].contains(&key.get_ref().as_str())
                || is_telemetry(key.get_ref(), &value)
            {
                continue;
            }
            let line = line_of(key.span().start);
            let key = key.into_inner();
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                let near = nearest(&key.replace('-', "_"));
                return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key, near });
            };
            let origin = Origin::File { path: path.to_owned(), line, key: setting.key };
            match toml_texts(&value, setting.is_list) {
                Some(texts) => self.set(setting.key, &texts, origin)?,
                None => {
                    let message = format!("{} {} does not belong here", article(value.type_str()), value.type_str());
                    return Err(ConfigError::Rule { origin, message });
                }
            }
        }
        Ok(())
    }
}

pub(super) fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Variables that look like settings with a typing mistake: each with the one it probably means.
pub fn misspelt(names: impl Iterator<Item = String>) -> Vec<(String, String)> {
    names
        .filter_map(|name| {
            let key = name.strip_prefix("HEARTH_")?.to_lowercase();
            let near = nearest(&key)?;
            (near != key).then(|| (name, format!("HEARTH_{}", near.to_uppercase())))
        })
        .collect()
}

/// The key that differs in at most two letters.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    SETTINGS
        .iter()
        .map(|setting| (distance(key, setting.key), setting.key))
        .min()
        .filter(|(n, near)| *n <= 2 && *n < near.len())
        .map(|(_, near)| near)
}

/// Edit distance. Long names are cut, since it costs the product of both lengths.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(40).collect(), b.chars().take(40).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_toml(text: &str) -> Result<Raw, ConfigError> {
        let mut raw = Raw::default();
        raw.add_toml(Path::new("hearth.toml"), text)?;
        Ok(raw)
    }

    fn message(text: &str) -> String {
        from_toml(text).expect_err("a bad file").to_string()
    }

    #[test]
    fn flags_win_over_variables_and_those_over_the_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, "port = 1\nparallel = 2\nctx_size = 3\n").expect("a writable folder");
        let variable = |name: &str| match name {
            "HEARTH_PORT" => Some("10".to_owned()),
            "HEARTH_PARALLEL" => Some("20".to_owned()),
            "HEARTH_HOST" => Some(String::new()),
            _ => None,
        };
        let flags = [("port", vec!["100".to_owned()], Origin::Flag("port".into()))];
        let raw = Raw::gather(Some(&path), variable, &flags).expect("a good configuration");
        assert_eq!((raw.port.value, raw.parallel.value, raw.ctx_size.value), (Some(100), Some(20), Some(3)));
        assert_eq!(raw.batch_size.value, Some(2048));
        assert_eq!(raw.parallel.origin.to_string(), "HEARTH_PARALLEL");
        assert!(raw.ctx_size.origin.to_string().ends_with("hearth.toml line 3)"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        assert_eq!(
            message("port = 1\n\nprot = 2\n"),
            "hearth.toml line 3: unknown key \"prot\" (did you mean \"port\"?)"
        );
        assert_eq!(message("[server]\nport = 1\n"), "hearth.toml line 1: unknown key \"server\"");
        assert_eq!(
            message("ctx-sise = 1"),
            "hearth.toml line 1: unknown key \"ctx-sise\" (did you mean \"ctx_size\"?)"
        );
    }

    /// Of the fuzzer.
    #[test]
    fn a_page_is_no_key() {
        let text = message(&format!("{} = 1", "k".repeat(100_000)));
        assert!(text.contains("kkk") && text.len() < 200, "{} bytes", text.len());
        let text = message(&format!("port = \"{}\"", "é".repeat(100_000)));
        assert!(text.contains("éé…") && text.len() < 800, "{} bytes", text.len());
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        assert_eq!(
            message("\nport = 70000"),
            "port (hearth.toml line 2): \"70000\" is not a whole number from 0 to 65535"
        );
        assert_eq!(message("port = [1]"), "port (hearth.toml line 1): an array does not belong here");
        assert!(message("port = ").starts_with("hearth.toml line 1: "));
        assert!(message("port = 1\nport = 2").starts_with("hearth.toml line 2: "));
    }

    #[test]
    fn secrets_are_not_repeated_in_errors() {
        let text = message("api_key = [\"sk-1\", \"\"]");
        assert!(!text.contains("sk-1"), "{text}");
    }

    #[test]
    fn misspelt_variables_are_noticed() {
        let names = ["HEARTH_PROT", "HEARTH_CLIENTS", "HEARTH_PORT", "PATH"].map(str::to_owned);
        assert_eq!(misspelt(names.into_iter()), [("HEARTH_PROT".to_owned(), "HEARTH_PORT".to_owned())]);
    }
}
