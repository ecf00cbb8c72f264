//! The cost of the server itself: the scripted backend computes nothing, so what is left is planning, text, events.

use hearth::chat::{ChatPrompt, Message, Prompt, Role};
use hearth::engine::config::{ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Event, GenerateRequest};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for n_streams in [1u32, 8, 32] {
        for (name, mode) in
            [("in-process", EngineMode::InProcess), ("child", EngineMode::child(env!("CARGO_BIN_EXE_hearth")))]
        {
            let (steps, tokens) = runtime.block_on(measure(mode, n_streams))?;
            println!("{name:<12} {n_streams:>3} streams: {steps:>9.0} step/s {tokens:>9.0} token/s");
        }
    }
    Ok(())
}

/// (decode steps per second, tokens per second).
async fn measure(mode: EngineMode, n_streams: u32) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let mut config = EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()));
    config.n_slots = n_streams;
    config.n_ctx = Some(65_536);
    let engine = Engine::start(config, mode);
    engine.watch().wait_for(|state| matches!(state, EngineState::Ready(_))).await?;
    let before = engine.stats().await?;
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..n_streams {
        let chat = ChatPrompt::new(vec![Message::new(Role::User, "/forever")]);
        let mut request = GenerateRequest::new(Prompt::Chat(chat));
        request.output.max_tokens = Some(2000);
        let mut generation = engine.generate(request)?;
        tasks.push(tokio::spawn(async move {
            while let Some(event) = generation.next().await {
                if let Event::Failed(failure) = event {
                    return Err(failure);
                }
            }
            Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let time = start.elapsed().as_secs_f64();
    let after = engine.stats().await?;
    engine.close().await;
    let steps = (after.n_decode_calls - before.n_decode_calls) as f64;
    let tokens = (after.tokens_generated - before.tokens_generated) as f64;
    Ok((steps / time, tokens / time))
}
