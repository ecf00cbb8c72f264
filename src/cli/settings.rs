//! `hearth config`: check the settings, or print what they come to.

use super::{Flags, plan, say};
use crate::config::{ConfigError, Origin, Raw};
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
            What::Print(given) => {
                print(&given.flags.gather()?);
                Ok(())
            }
        }
    }
}

fn check(flags: &Flags) -> Result<()> {
    let raw = flags.gather()?;
    let has_model = raw.model.value.is_some();
    // Everything else can be checked without a model as well.
    let raw = if has_model { raw } else { flags.clone().with("model", Some("scripted")).gather()? };
    let mut config = raw.resolve()?;
    Flags::misspelt().iter().chain(&config.warnings).for_each(|warning| eprintln!("hearth: warning: {warning}"));
    if let Some(model) = plan::model(&config.engine)? {
        plan::settle(&mut config, &model)?;
    }
    if has_model {
        say!("the settings are good");
    } else {
        say!("the settings are good, but {}", ConfigError::NoModel);
    }
    Ok(())
}

fn print(raw: &Raw) {
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
}
