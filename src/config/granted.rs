//! `[[team]]` and `[[key]]`: keys that the file knows by their digest, and teams for them.

use super::raw::ConfigError;
use super::settings::Raw;
use super::tables::GrantTable;
use crate::gateway::{Granted, GrantedKey, GrantedTeam};
use crate::http::{granted_key, granted_team};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

impl Raw {
    /// What the file grants. Its fields are those of the admin API's `/key/generate` and `/team/new`; a key has a `name` and
    /// the `sha256` of its whole text in hexadecimal, a team an `id`.
    pub(super) fn granted(&self) -> Result<Granted, ConfigError> {
        let tables = &self.tables;
        if let (None, Some(table)) = (&self.data_dir.value, tables.keys.iter().chain(&tables.teams).next()) {
            return Err(refuse(table, "keys and teams need --data-dir"));
        }
        let mut granted = Granted::default();
        let mut names = BTreeSet::new();
        for table in &tables.teams {
            let mut fields = table.fields.clone();
            let id = name(table, &mut fields, "id")?;
            let spec = granted_team(fields).map_err(|message| refuse(table, message))?;
            self.know_guardrails(&spec.guardrails, &table.origin)?;
            if !names.insert(id.clone()) {
                return Err(refuse(table, format!("there are two teams {id:?}")));
            }
            granted.teams.push(GrantedTeam { id, spec });
        }
        let teams = std::mem::take(&mut names);
        for table in &tables.keys {
            let mut fields = table.fields.clone();
            let name = name(table, &mut fields, "name")?;
            let sha256 = fields.shift_remove("sha256");
            let sha256 = sha256.as_ref().and_then(Value::as_str).and_then(digest);
            let sha256 =
                sha256.ok_or_else(|| refuse(table, "sha256 is the SHA-256 of the whole key, 64 hexadecimal digits"))?;
            if fields.contains_key("duration") {
                return Err(refuse(table, "duration counts from a key's making, and this one is made by nobody"));
            }
            let spec = granted_key(fields).map_err(|message| refuse(table, message))?;
            self.know_guardrails(&spec.guardrails, &table.origin)?;
            if let Some(team) = spec.team.as_ref().filter(|team| !teams.contains(*team)) {
                return Err(refuse(table, format!("there is no [[team]] {team:?}")));
            }
            if !names.insert(name.clone()) {
                return Err(refuse(table, format!("there are two keys {name:?}")));
            }
            granted.keys.push(GrantedKey { name, sha256, spec });
        }
        Ok(granted)
    }
}

fn refuse(table: &GrantTable, message: impl Into<String>) -> ConfigError {
    ConfigError::Rule { origin: table.origin.clone(), message: message.into() }
}

fn name(table: &GrantTable, fields: &mut Map<String, Value>, key: &str) -> Result<String, ConfigError> {
    let is_name = |text: &str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let said = fields.shift_remove(key);
    let said = said.as_ref().and_then(Value::as_str).filter(|text| is_name(text));
    let message = || format!("{key} is required, with 1 to 64 letters, digits, -, _ and .");
    said.map(str::to_owned).ok_or_else(|| refuse(table, message()))
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2).filter(|_| is_hex)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    fn granted(text: &str) -> Result<Granted, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, text).unwrap();
        let flags = [("data_dir", vec!["books".to_owned()], Origin::Flag("data-dir".into()))];
        let raw = Raw::gather(Some(&path), |_| None, &flags).map_err(|error| error.to_string())?;
        raw.granted().map_err(|error| error.to_string())
    }

    const KEY: &str = "[[key]]\nname = \"ci\"\nsha256 = \"";

    #[test]
    fn a_key_has_a_digest_and_the_apis_fields() {
        let sha = "ab".repeat(32);
        let text = format!(
            "[[team]]\nid = \"t\"\nmodels = [\"m\"]\nmax_budget = 50.5\nbudget_duration = \"1mo\"\n\
             {KEY}{sha}\"\nteam_id = \"t\"\nrpm_limit = 3\ntags = [\"x\"]\n"
        );
        let granted = granted(&text).expect("good tables");
        assert_eq!(granted.teams[0].spec.budget.max_nusd, Some(50_500_000_000));
        assert_eq!((granted.keys[0].sha256, granted.keys[0].spec.limits.rpm), ([0xab; 32], Some(3)));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let sha = "ab".repeat(32);
        for (text, words) in [
            ("[[key]]\nname = \"ci\"\n".to_owned(), "line 2): sha256 is"),
            (format!("{KEY}xy\"\n"), "sha256 is"),
            (format!("[[key]]\nsha256 = \"{sha}\"\n"), "name is required"),
            (format!("{KEY}{sha}\"\nallowed_routes = []\n"), "\"allowed_routes\" is not a field"),
            (format!("{KEY}{sha}\"\nteam_id = \"nobody\"\n"), "there is no [[team]] \"nobody\""),
            (format!("{KEY}{sha}\"\nduration = \"1d\"\n"), "duration counts"),
            (format!("{KEY}{sha}\"\n{KEY}{sha}\"\n"), "two keys \"ci\""),
            ("[[team]]\nid = \"a b\"\n".to_owned(), "id is required"),
        ] {
            let got = granted(&text).expect_err("a bad table");
            assert!(got.contains(words), "{text}\n{got}\n{words}");
        }
        let mut raw = Raw::default();
        let origin = Origin::Default;
        raw.tables.teams.push(GrantTable { fields: Map::new(), origin });
        assert!(raw.granted().is_err(), "without a folder there is nothing to grant in");
    }
}
