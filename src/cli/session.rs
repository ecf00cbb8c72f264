//! An engine for one command on the terminal: no HTTP, no other users.

use super::gpus::GpuMemory;
use super::{Flags, plan, progress};
use crate::chat::{Delta, Finish, Prompt, SamplingParams};
use crate::config::{Origin, ServedModel};
use crate::engine::{Description, Engine, EngineMode, Event, Failure, GenerateRequest};
use crate::telemetry;
use anyhow::{Context as _, Result, anyhow};
use std::sync::Arc;

pub(super) struct Session {
    pub engine: Engine,
    pub description: Arc<Description>,
    pub sampling: SamplingParams,
}

/// The checked settings of a command on the terminal, for its one model. Its logs show what goes wrong and no more, unless asked otherwise.
pub(super) fn configure(flags: &Flags) -> Result<ServedModel> {
    let raw = flags.gather()?;
    let mut log = raw.log();
    if raw.log_level.origin == Origin::Default {
        "warn".clone_into(&mut log.level);
    }
    telemetry::logging::init(&log)?;
    let config = raw.resolve()?;
    Flags::misspelt().iter().chain(&config.warnings).for_each(|warning| tracing::warn!("{warning}"));
    Ok(config.into_first())
}

impl Session {
    /// Loads the model; must be called inside a runtime.
    pub async fn open(mut served: ServedModel) -> Result<Self> {
        if let Some(model) = plan::model(&served.engine)? {
            plan::settle(&mut served, &model, &GpuMemory::now(), 0)?.check(&model, 0)?;
        }
        let engine = Engine::start(served.engine, EngineMode::InProcess);
        let description = progress::ready(&mut engine.watch(), progress::Show::Bar).await?;
        let sampling = served.config.sampling.over(&description.sampling).settle();
        Ok(Self { engine, description, sampling })
    }

    /// Generates an answer and hands its pieces to `on_delta` as they come.
    pub async fn answer(
        &self,
        prompt: Prompt,
        max_tokens: Option<u32>,
        mut on_delta: impl FnMut(&Delta),
    ) -> Result<Finish, Failure> {
        let mut request = GenerateRequest::new(prompt);
        request.sampling = self.sampling.clone();
        request.output.max_tokens = max_tokens;
        let mut generation = self.engine.generate(request)?;
        while let Some(event) = generation.next().await {
            match event {
                Event::Delta(delta) => on_delta(&delta),
                Event::Done(done) => return Ok(done.finish),
                Event::Failed(failure) => return Err(failure),
                _ => {}
            }
        }
        Err(Failure::Internal("the answer has no ending; this is a bug".into()))
    }
}

/// The text of an argument, where `-` stands for all of stdin.
pub(super) fn text_or_stdin(argument: &str) -> Result<String> {
    /// More than any context holds.
    const STDIN_BYTES_MAX: u64 = 64 << 20;
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    let mut input = std::io::Read::take(std::io::stdin().lock(), STDIN_BYTES_MAX + 1);
    std::io::Read::read_to_string(&mut input, &mut text).context("stdin can't be read as UTF-8")?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return Err(anyhow!("more than {STDIN_BYTES_MAX} bytes on stdin"));
    }
    Ok(text)
}
