//! `hearth config`: check the settings, or print what they come to.

use super::{Flags, plan, say};
use crate::config::{ConfigError, GrantTable, Origin, Raw, guardrail_lines, limit_lines};
use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(super) struct Settings {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say whether a server could start with these settings; loads nothing
    Check(Given),
    /// Print every setting with its value and where that is from, as a hearth.toml
    Print(Given),
}

#[derive(Debug, Args)]
struct Given {
    #[command(flatten)]
    flags: Flags,
}

impl Settings {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Check(given) => check(&given.flags),
            What::Print(given) => print(&given.flags.gather()?),
        }
    }
}

fn check(flags: &Flags) -> Result<()> {
    let raw = flags.gather()?;
    let has_model = raw.model.value.is_some() || !raw.tables.models.is_empty();
    // Everything else can be checked without a model as well.
    let raw = if has_model { raw } else { flags.clone().with("model", Some("scripted")).gather()? };
    let mut config = raw.resolve()?;
    Flags::misspelt().iter().chain(&config.warnings).for_each(|warning| eprintln!("hearth: warning: {warning}"));
    plan::settle_all(&mut config)?;
    if has_model {
        say!("the settings are good");
    } else {
        say!("the settings are good, but {}", ConfigError::NoModel);
    }
    Ok(())
}

fn print(raw: &Raw) -> Result<()> {
    let mut group = "";
    for (setting, value, origin) in raw.shown() {
        if setting.group != group {
            group = setting.group;
            say!("\n# {group}");
        }
        let value = match value {
            Some(_) if setting.is_secret => Some("\"***\"".to_owned()),
            value => value.map(|value| value.to_string()),
        };
        match value {
            Some(value) if *origin == Origin::Default => say!("{} = {value}", setting.key),
            Some(value) => say!("{} = {value}  # {origin}", setting.key),
            None => say!("# {} =", setting.key),
        }
    }
    for table in &raw.tables.models {
        say!("\n[[model]]  # {}", table.origin);
        if let Some(name) = &table.name {
            say!("name = {}", toml::Value::from(name.as_str()));
        }
        say!("file = {}", toml::Value::from(table.file.as_str()));
        let said = |key: &str| table.settings.iter().any(|(setting, ..)| setting.key == key);
        for (setting, value, _) in raw.of_table(table)?.shown() {
            if let (true, Some(value)) = (said(setting.key), value) {
                say!("{} = {value}", setting.key);
            }
        }
    }
    for (kind, table) in granted(raw) {
        say!("\n[[{kind}]]  # {}", table.origin);
        for (name, value) in &table.fields {
            if let Ok(value) = toml::Value::try_from(value) {
                say!("{name} = {value}");
            }
        }
    }
    for alias in &raw.tables.aliases {
        say!("\n[[alias]]  # {}", alias.origin);
        say!("name = {}", toml::Value::from(alias.name.as_str()));
        say!("model = {}", toml::Value::from(alias.model.as_str()));
    }
    for (name, set) in &raw.tables.limits {
        say!("\n[limits.{}]", toml::Value::from(name.as_str()));
        for (key, value) in limit_lines(set) {
            say!("{key} = {value}");
        }
    }
    for table in &raw.tables.guardrails {
        say!("\n[guardrails.{}]", toml::Value::from(table.name.as_str()));
        for (key, value) in guardrail_lines(table) {
            say!("{key} = {value}");
        }
    }
    Ok(())
}

fn granted(raw: &Raw) -> impl Iterator<Item = (&'static str, &GrantTable)> {
    let teams = raw.tables.teams.iter().map(|table| ("team", table));
    teams.chain(raw.tables.keys.iter().map(|table| ("key", table)))
}
