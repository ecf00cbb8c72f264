//! `hearth bench`: what a server makes of load, alone or beside others.
//!
//! **Invariant:** servers are measured in turn within each round, never at once, with the same texts; what a server cannot
//! do is a line that says so, never a figure.
//!
//! # Design
//! Load is sent as any client would send it, over HTTP, and everything is measured where a client is: a token counts when
//! its bytes arrive. Prompts differ in their first words, round by round, so that no cache but the one under test helps.

mod client;
mod plot;
mod report;
mod scenario;
mod target;
mod text;

use super::{runtime, say};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use client::Dialect;
use report::{Entry, Report};
use scenario::{Load, Scenario};
use std::path::{Path, PathBuf};
use target::{Launch, Target};

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// What to measure: an address (http://127.0.0.1:8080), or a GGUF file, which this binary then serves; NAME=… names it
    #[arg(value_name = "TARGET", required = true, num_args = 1..=6)]
    targets: Vec<String>,
    /// Also start this llama-server, with the first GGUF file among the targets and the same settings
    #[arg(long, value_name = "FILE")]
    llama_server: Option<PathBuf>,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// How often each is measured; the table has medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Streams at once in the sweep
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16", value_parser = clap::value_parser!(u32).range(1..=1024))]
    streams: Vec<u32>,
    /// Words of a prompt
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    words: u32,
    /// Tokens of an answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tokens: u32,
    /// The API to ask
    #[arg(long, value_enum, default_value_t = Dialect::Chat)]
    api: Dialect,
    /// The model's name at every target [default: the first it lists]
    #[arg(long)]
    model: Option<String>,
    /// A file with the key to send
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Send no field that OpenAI's API lacks (answers then end where the model ends them)
    #[arg(long)]
    plain: bool,
    /// Threads of the servers started here [default: theirs]
    #[arg(long, short = 't')]
    threads: Option<u32>,
    /// Slots of the servers started here
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    parallel: u32,
    /// Context of the servers started here
    #[arg(long, short = 'c', default_value_t = 8192)]
    ctx_size: u32,
    /// A further argument for the hearth started here; may be given again
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    serve_arg: Vec<String>,
    /// A further argument for the llama-server started here; may be given again
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    peer_arg: Vec<String>,
    /// Write a picture, SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write every figure of every round, JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        runtime()?.block_on(self.measure())
    }

    async fn measure(self) -> Result<()> {
        let mut targets = self.open().await?;
        let load = Load { words: self.words as usize, tokens: self.tokens, streams: self.streams.clone() };
        let scenarios = if self.only.is_empty() { Scenario::value_variants().to_vec() } else { self.only.clone() };
        let mut report = Report::new(&targets, self.rounds);
        say!("{}", report.head());
        for scenario in scenarios {
            if scenario == Scenario::Embeddings && self.only != [Scenario::Embeddings] && self.llama_server.is_some() {
                // It serves embeddings where it was told to, and then nothing else.
                if let Some(generating) = targets.pop() {
                    generating.close().await;
                }
                targets.push(self.peer(&["--embeddings".into()]).await?);
            }
            let entry = self.entry(scenario, &targets, &load).await;
            say!("{}", report.rows(&entry));
            report.add(entry);
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report.json())?;
            std::fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))?;
        }
        if let Some(path) = &self.plot {
            plot::draw(&report, path).with_context(|| format!("{} can't be written", path.display()))?;
        }
        for target in targets {
            target.close().await;
        }
        if report.is_empty() {
            bail!("nothing could be measured");
        }
        Ok(())
    }

    /// One scenario, round by round, each target in turn; the first refusal ends a target's part in it.
    async fn entry(&self, scenario: Scenario, targets: &[Target], load: &Load) -> Entry {
        let mut entry = Entry::new(scenario, targets.len());
        for round in 0..self.rounds {
            for (at, target) in targets.iter().enumerate() {
                if entry.is_out(at) {
                    continue;
                }
                // No two processes make the same texts, so that a server that stays up has none of them in its cache.
                let seed = text::mixed(u64::from(std::process::id()) << 32 | u64::from(round) << 16 | scenario as u64);
                match scenario.run(target, load, seed).await {
                    Ok(figures) => entry.add(at, figures),
                    Err(error) => entry.leave(at, format!("{error:#}")),
                }
            }
        }
        entry
    }

    async fn open(&self) -> Result<Vec<Target>> {
        let launch = self.launch()?;
        let mut targets = Vec::new();
        for text in &self.targets {
            targets.push(launch.open(text, &self.serve_arg).await?);
        }
        if self.llama_server.is_some() {
            let args = if self.only == [Scenario::Embeddings] { &["--embeddings".to_owned()][..] } else { &[] };
            targets.push(self.peer(args).await?);
        }
        Ok(targets)
    }

    fn launch(&self) -> Result<Launch> {
        let key = match &self.api_key_file {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => None,
        };
        Ok(Launch {
            threads: self.threads,
            parallel: self.parallel,
            ctx_size: self.ctx_size,
            api: self.api,
            model: self.model.clone(),
            key,
            is_plain: self.plain,
        })
    }

    /// The llama-server of `--llama-server`, with further arguments.
    async fn peer(&self, args: &[String]) -> Result<Target> {
        let Some(file) = self.targets.iter().find_map(|text| target::file(text)) else {
            bail!("--llama-server needs a GGUF file among the targets, to serve the same");
        };
        let binary = self.llama_server.as_deref().unwrap_or(Path::new("llama-server"));
        let args: Vec<String> = self.peer_arg.iter().chain(args).cloned().collect();
        self.launch()?.peer(binary, &file, &args).await
    }
}
