//! The command line: one file per verb.
//!
//! **Invariant:** what a command answers goes to stdout, everything else (logs, progress, errors) to stderr; the exit code
//! is 0 when it did what was asked, 2 when it was asked wrongly (a flag, a setting, a file), 1 when it failed.
//!
//! # Design
//! Flags follow from `config`'s table of settings, so a setting is declared once. llama-server's spellings are rewritten
//! before clap sees them, since clap has no flags of several letters behind one dash.

mod bench;
mod cache;
mod chat;
mod desk;
mod engine;
mod flags;
mod gpus;
mod harden;
mod heap;
mod inspect;
mod keys;
mod ledger;
mod listen;
mod lookup;
mod notify;
mod plan;
mod progress;
mod reload;
mod run;
mod serve;
mod session;
mod settings;
mod systemd;
mod tokenize;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use flags::Flags;
use std::process::ExitCode;

/// Serves a GGUF file as a private, OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, arg_required_else_help = true, args_override_self = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve a model over HTTP
    Serve(serve::Serve),
    /// Answer one prompt on the terminal, or chat when no prompt is given
    Run(run::Run),
    /// Tell what a model file holds and how much memory it would take, without loading it
    Inspect(inspect::Inspect),
    /// Show the tokens of a text
    Tokenize(tokenize::Tokenize),
    /// Count what follows what in texts that answers may repeat, for --lookup-cache-static
    Lookup(lookup::Lookup),
    /// Measure servers under load, side by side
    Bench(bench::Bench),
    /// Make, list, rotate, block and revoke API keys
    Keys(keys::Keys),
    /// The same for teams
    Teams(keys::Teams),
    /// What was spent, by whom, on what
    Spend(ledger::Spend),
    /// Verify or export the audit chain
    Audit(ledger::Audit),
    /// Check the database
    Db(ledger::Db),
    /// Check or print the settings
    Config(settings::Settings),
    /// Tell which GPUs models can be kept on, and their memory
    Gpus(gpus::Gpus),
    /// Print a hardened unit for systemd
    Systemd(systemd::Systemd),
    /// The engine's own process, started by serve
    #[command(hide = true)]
    Engine(engine::EngineProcess),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match std::env::args_os().map(std::ffi::OsString::into_string).collect::<Result<Vec<_>, _>>() {
        Ok(args) => args,
        Err(arg) => {
            eprintln!("hearth: the argument {arg:?} is not UTF-8");
            return ExitCode::from(2);
        }
    };
    let mut command = Cli::command();
    if args.get(1).is_some_and(|arg| arg == "--version") {
        command = command.long_version(long_version());
    }
    // Clap prints its own errors and help, and exits with 2 or 0.
    let matches = command.get_matches_from(flags::spell_out(args.into_iter()));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = match cli.verb {
        Verb::Serve(verb) => verb.run(),
        Verb::Run(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Tokenize(verb) => verb.run(),
        Verb::Lookup(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Keys(verb) => verb.run(),
        Verb::Teams(verb) => verb.run(),
        Verb::Spend(verb) => verb.run(),
        Verb::Audit(verb) => verb.run(),
        Verb::Db(verb) => verb.run(),
        Verb::Config(verb) => verb.run(),
        Verb::Gpus(verb) => verb.run(),
        Verb::Systemd(verb) => verb.run(),
        Verb::Engine(verb) => return verb.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearth: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// `--version` also tells what models run on; `-V` loads nothing.
fn long_version() -> String {
    let (llama, cpu) = crate::engine::ground();
    let cpu = cpu.unwrap_or_else(|reason| format!("none: {reason}"));
    format!("{}\nllama.cpp {llama}\nCPU code: {cpu}", env!("CARGO_PKG_VERSION"))
}

/// 2 for what the caller can put right before another try, 1 for the rest.
fn exit_code(error: &anyhow::Error) -> u8 {
    let asked_wrongly = error.chain().any(|cause| {
        cause.is::<crate::config::ConfigError>()
            || cause.is::<crate::model::ModelError>()
            || cause.is::<crate::model::FitError>()
    });
    if asked_wrongly { 2 } else { 1 }
}

/// Few threads: the front waits more than it works, and each thread has a stack and an allocator arena of its own.
const RUNTIME_THREADS_MAX: usize = 2;

fn runtime() -> Result<tokio::runtime::Runtime> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(RUNTIME_THREADS_MAX);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(n_threads)
        .enable_all()
        .build()
        .context("the runtime can't be started")
}

/// Writes to stdout; a reader that went away (`hearth … | head`) is no reason to panic.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, $($arg)*);
        let _ = out.flush();
    }};
}
use say;
