//! `[limits.NAME]` in `hearth.toml`: named sets of limits, which keys and teams refer to.

use super::raw::{ConfigError, Origin};
use super::settings::Raw;
use super::tables::{line_of, misplaced};
use crate::chat::Class;
use crate::gateway::LimitSpec;
use crate::gateway::limits::{LimitSets, ScopeKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;

/// The key under which the sets stand.
pub(super) const KEY: &str = "limits";

/// Longest name of a set.
const NAME_BYTES_MAX: usize = 64;

/// A table with the places of its keys.
type Table = BTreeMap<Spanned<String>, toml::Value>;

impl Raw {
    /// Reads the sets that `text` has, if any.
    pub(super) fn add_limits(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        #[derive(Deserialize)]
        struct Sets {
            limits: BTreeMap<Spanned<String>, Table>,
        }
        let syntax = |line, message| ConfigError::Syntax { path: path.to_owned(), line, message };
        let sets: Sets = toml::from_str(text).map_err(|error: toml::de::Error| {
            syntax(line_of(text, error.span().map_or(0, |span| span.start)), error.message().to_owned())
        })?;
        if sets.limits.len() > LimitSets::SETS_MAX {
            return Err(syntax(1, format!("more than {} sets of limits", LimitSets::SETS_MAX)));
        }
        for (name, table) in sets.limits {
            let line = line_of(text, name.span().start);
            let name = name.into_inner();
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!("[limits.…] has a name of 1 to {NAME_BYTES_MAX} plain characters without spaces");
                return Err(syntax(line, message));
            }
            let set = set(path, text, &name, table)?;
            self.tables.limits.insert(name, set);
        }
        Ok(())
    }
}

fn set(path: &Path, text: &str, name: &str, table: Table) -> Result<LimitSpec, ConfigError> {
    let mut set = LimitSpec::default();
    let is_of_kind = ScopeKind::ALL.iter().any(|kind| kind.name() == name);
    for (key, value) in table {
        let line = line_of(text, key.span().start);
        let origin = |key: &'static str| Origin::File { path: path.to_owned(), line, key };
        match key.get_ref().as_str() {
            "rpm" => set.rpm = Some(count(&value, origin("rpm"))?),
            "tpm" => set.tpm = Some(count(&value, origin("tpm"))?),
            "max_parallel" => set.parallel = Some(count(&value, origin("max_parallel"))?),
            "max_queue" => set.queue = Some(count(&value, origin("max_queue"))?),
            "max_output_tokens" => set.output = Some(count(&value, origin("max_output_tokens"))?),
            "class" if is_of_kind => {
                let message = "only a key's or a team's own set says this".to_owned();
                return Err(ConfigError::Rule { origin: origin("class"), message });
            }
            "class" => set.class = Some(class(&value, origin("class"))?),
            other => {
                let key = other.to_owned();
                return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key, near: None });
            }
        }
    }
    Ok(set)
}

/// What a set says, as the file has it.
pub fn limit_lines(set: &LimitSpec) -> Vec<(&'static str, toml::Value)> {
    let number = |n: u64| toml::Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    let class = set.class.map(|class| match class {
        Class::Interactive => toml::Value::from("interactive"),
        Class::Batch => toml::Value::from("batch"),
    });
    let said = [
        ("rpm", set.rpm.map(number)),
        ("tpm", set.tpm.map(number)),
        ("max_parallel", set.parallel.map(u64::from).map(number)),
        ("max_queue", set.queue.map(u64::from).map(number)),
        ("max_output_tokens", set.output.map(u64::from).map(number)),
        ("class", class),
    ];
    said.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn count<T: TryFrom<i64>>(value: &toml::Value, origin: Origin) -> Result<T, ConfigError> {
    let Some(n) = value.as_integer() else { return Err(misplaced(value, origin)) };
    T::try_from(n).map_err(|_| ConfigError::Value {
        origin,
        given: n.to_string(),
        expects: "a whole number, 0 (no limit) or more",
    })
}

fn class(value: &toml::Value, origin: Origin) -> Result<Class, ConfigError> {
    match value.as_str() {
        Some("interactive") => Ok(Class::Interactive),
        Some("batch") => Ok(Class::Batch),
        Some(other) => Err(ConfigError::Value { origin, given: format!("{other:?}"), expects: "interactive or batch" }),
        None => Err(misplaced(value, origin)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Result<Raw, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a writable file");
        Raw::gather(Some(file.path()), |_| None, &[])
    }

    #[test]
    fn sets_are_read_beside_everything_else() {
        let text = "model = \"scripted\"\n[limits.pro]\nrpm = 60\ntpm = 100000\nmax_parallel = 4\nclass = \"batch\"\n\
                    [limits.default]\nmax_queue = 16\nmax_output_tokens = 4096\n";
        let config = raw(text).expect("a good file").resolve().expect("a good configuration");
        let pro = LimitSpec {
            rpm: Some(60),
            tpm: Some(100_000),
            parallel: Some(4),
            class: Some(Class::Batch),
            ..Default::default()
        };
        let default = LimitSpec { queue: Some(16), output: Some(4096), ..Default::default() };
        let sets = LimitSets::new([("pro".to_owned(), pro), ("default".to_owned(), default)].into());
        assert_eq!(config.gateway.limits, sets);
        let lines = limit_lines(&raw(text).expect("a good file").tables.limits["pro"]);
        let lines: Vec<String> = lines.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        assert_eq!(lines.concat(), "rpm = 60\ntpm = 100000\nmax_parallel = 4\nclass = \"batch\"\n");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, words) in [
            ("[limits.a]\nrpn = 1\n", "line 2: unknown key \"rpn\""),
            ("[limits.a]\nrpm = -1\n", "rpm ("),
            ("[limits.a]\nrpm = \"60\"\n", "a string does not belong here"),
            ("[limits.a]\nmax_parallel = 5000000000\n", "5000000000 is not a whole number, 0 (no limit) or more"),
            ("[limits.a]\nclass = \"slow\"\n", "\"slow\" is not interactive or batch"),
            ("[limits.ip]\nclass = \"batch\"\n", "only a key's or a team's own set says this"),
            ("[limits.\"a b\"]\nrpm = 1\n", "line 1: [limits.…] has a name"),
            ("[limits]\nrpm = 1\n", "invalid type: integer"),
            ("limits = 3\n", "limits"),
        ] {
            let got = raw(text).expect_err(text).to_string();
            assert!(got.contains(words), "{text}\n{got}\n{words}");
        }
    }
}
