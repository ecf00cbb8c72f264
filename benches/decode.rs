//! Tokens per second through the engine's door, without HTTP: a real model (`BENCH_MODEL`, default the demo model), 1 and
//! 8 streams, in this process and in a child. The difference to `serve` is what HTTP costs, the difference between the
//! two rows what the pipe costs.

use hearth::chat::{Finish, Prompt};
use hearth::engine::config::ModelSource;
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Event, GenerateRequest};
use std::env;
use std::path::PathBuf;
use std::time::Instant;

const ROUNDS: usize = 7;
const N_TOKENS: u32 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = env::var_os("BENCH_MODEL").map_or_else(|| "models/hearth-demo.gguf".into(), PathBuf::from);
    let n_threads = env::var("BENCH_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("model {}, {n_threads} threads, {N_TOKENS} tokens a stream, medians of {ROUNDS}", model.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for (name, mode) in
        [("in-process", EngineMode::InProcess), ("child", EngineMode::child(env!("CARGO_BIN_EXE_hearth")))]
    {
        for n_streams in [1u32, 8] {
            let mut config = EngineConfig::new(ModelSource::Gguf(model.clone()));
            config.n_slots = n_streams;
            config.n_threads = Some(n_threads);
            let rate = runtime.block_on(measure(config, mode.clone(), n_streams))?;
            println!("{name:<12} {n_streams} streams: {rate:>9.0} generated token/s");
        }
    }
    Ok(())
}

async fn measure(config: EngineConfig, mode: EngineMode, n_streams: u32) -> Result<f64, Box<dyn std::error::Error>> {
    let engine = Engine::start(config, mode);
    engine.watch().wait_for(|state| matches!(state, EngineState::Ready(_) | EngineState::Failed { .. })).await?;
    let mut rates = Vec::new();
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let mut generations = Vec::new();
        for stream in 0..n_streams {
            let text = format!("round {round} stream {stream} {}", "the river and the house ".repeat(8));
            let mut request = GenerateRequest::new(Prompt::Text(text));
            request.sampling.ignore_eos = true;
            request.output.max_tokens = Some(N_TOKENS);
            request.cache_prompt = false;
            generations.push(engine.generate(request)?);
        }
        let tasks = generations.into_iter().map(|mut generation| {
            tokio::spawn(async move {
                while let Some(event) = generation.next().await {
                    match event {
                        Event::Done(done) => assert_eq!(done.finish, Finish::Length),
                        Event::Failed(failure) => return Err(failure),
                        _ => {}
                    }
                }
                Ok(())
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await??;
        }
        // The first round warms up.
        if round > 0 {
            rates.push(f64::from(n_streams * N_TOKENS) / start.elapsed().as_secs_f64());
        }
    }
    engine.close().await;
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}
