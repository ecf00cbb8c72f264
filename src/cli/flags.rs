//! The settings as command-line flags, and llama-server's spellings of them.

use crate::config::{Origin, Raw, SETTINGS, misspelt};
use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::path::PathBuf;

/// Every setting of `config`, as it was given on the command line.
#[derive(Debug, Clone, Default)]
pub(super) struct Flags {
    config: Option<PathBuf>,
    given: Vec<(&'static str, Vec<String>, Origin)>,
}

impl Flags {
    /// Adds what was given as a positional argument.
    pub fn with(mut self, key: &'static str, value: Option<&str>) -> Self {
        self.given.extend(value.map(|value| (key, vec![value.to_owned()], Origin::Argument)));
        self
    }

    /// The settings file, whether it is there or not.
    pub fn file(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| PathBuf::from("hearth.toml"))
    }

    /// Flags over variables over the file.
    pub fn gather(&self) -> Result<Raw> {
        let variable = |name: &str| std::env::var(name).ok();
        Ok(Raw::gather(self.config.as_deref(), variable, &self.given)?)
    }

    /// Variables that are no settings but nearly spell one, for the log.
    pub fn misspelt() -> Vec<String> {
        misspelt(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
            .into_iter()
            .map(|(name, near)| format!("{name} is not a setting (did you mean {near}?)"))
            .collect()
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("Settings file [default: ./hearth.toml, if it exists] [env: HEARTH_CONFIG]")
            .help_heading("Settings")
            .value_parser(clap::value_parser!(PathBuf));
        SETTINGS.iter().fold(command.arg(file), |command, setting| {
            let default = setting.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
            let help = format!("{}{default} [env: {}]", setting.help.trim(), setting.variable());
            let mut arg = Arg::new(setting.key)
                .long(setting.flag())
                .value_name(setting.shown)
                .help(help)
                .help_heading(setting.group)
                .action(ArgAction::Append)
                .allow_hyphen_values(true);
            if let Some(short) = setting.short {
                arg = arg.short(short);
            }
            if setting.is_switch {
                // `--strict prompt` must not take the prompt for its value.
                arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = SETTINGS
            .iter()
            .filter_map(|setting| {
                let texts: Vec<String> = matches.get_many::<String>(setting.key)?.cloned().collect();
                Some((setting.key, texts, Origin::Flag(setting.flag())))
            })
            .collect();
        let variable = || std::env::var_os("HEARTH_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { config: matches.get_one::<PathBuf>("config").cloned().or_else(variable), given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// llama-server's flags of several letters behind one dash, which clap does not know.
const SPELLINGS: [(&str, &str); 18] = [
    ("-np", "--parallel"),
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-ngl", "--n-gpu-layers"),
    ("-ngld", "--n-gpu-layers-draft"),
    ("-md", "--model-draft"),
    ("--spec-draft-model", "--model-draft"),
    ("-lcs", "--lookup-cache-static"),
    ("--spec-draft-n-max", "--draft-max"),
    ("--spec-draft-n-min", "--draft-min"),
    ("--spec-draft-p-min", "--draft-p-min"),
    ("-fa", "--flash-attn"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-kvu", "--kv-unified"),
    ("-no-kvu", "--kv-unified=false"),
    ("--embedding", "--embeddings"),
    ("--reranking", "--rerank"),
];

/// The command line with llama-server's spellings (`-ngl 20`) and `--no-SWITCH` written as clap knows them. Nothing is
/// changed after `--`.
pub(super) fn spell_out(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut verbatim = false;
    args.map(|arg| {
        verbatim |= arg == "--";
        if verbatim { arg } else { spelt_out(arg) }
    })
    .collect()
}

fn spelt_out(arg: String) -> String {
    if let Some((_, long)) = SPELLINGS.iter().find(|(short, _)| *short == arg) {
        return (*long).to_owned();
    }
    let switch = arg.strip_prefix("--no-");
    match switch.and_then(|name| SETTINGS.iter().find(|setting| setting.is_switch && setting.flag() == name)) {
        Some(setting) => format!("--{}=false", setting.flag()),
        None => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(args: &[&str]) -> Vec<String> {
        spell_out(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn llama_servers_spellings_are_understood() {
        assert_eq!(
            spelt(&["-np", "2", "-no-kvu", "--no-mmap"]),
            ["--parallel", "2", "--kv-unified=false", "--mmap=false"]
        );
        assert_eq!(spelt(&["--no-thing", "--", "-np"]), ["--no-thing", "--", "-np"]);
    }
}
