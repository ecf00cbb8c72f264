//! Models that draft for others, with real decodes: answers stay what they are, wrong drafts are turned down.

use crate::tiny_model::{Answer, answer, greedy, start, tokens};
use hearth::chat::Prompt;
use hearth::engine::config::{DraftMode, KvLayout, ModelSource};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState};
use std::path::PathBuf;
use std::sync::Arc;

fn path(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("models/{model}.gguf"))
}

/// As an operator would, but that drafts are made whatever they cost here.
fn drafted_by(draft: &str) -> impl Fn(&mut EngineConfig) {
    let draft = path(draft);
    move |config| {
        config.draft.model = Some(draft.clone());
        config.draft.always = true;
        config.n_draft_max = 8;
    }
}

async fn prompts(engine: &Engine) -> Vec<Vec<i32>> {
    let mut prompts = Vec::new();
    for i in 0..12 {
        let names = ["Tim", "Lily", "Anna", "Ben"];
        let text = format!("Once upon a time {} had {} red balls and", names[i % 4], i + 2);
        prompts.push(tokens(engine, &text.repeat(1 + i % 3)).await);
    }
    prompts
}

async fn say(engine: &Engine, prompt: Vec<i32>, n: u32) -> Answer {
    let mut request = greedy(Prompt::Tokens(prompt), n);
    request.sampling.ignore_eos = true;
    answer(engine, request).await.expect("an answer")
}

#[tokio::test]
async fn a_model_that_drafts_for_itself_is_right_and_changes_nothing() {
    for model in ["hearth-demo", "tiny/tiny-llama", "tiny/tiny-gemma2"] {
        let (plain, drafted) =
            (start(model, |config| config.n_draft_max = 0).await, start(model, drafted_by(model)).await);
        let (mut n_drafted, mut n_right) = (0, 0);
        for prompt in prompts(&plain).await.into_iter().take(3) {
            let (one, other) = (say(&plain, prompt.clone(), 60).await, say(&drafted, prompt, 60).await);
            assert_eq!(one.text, other.text, "{model}");
            (n_drafted, n_right) = (n_drafted + other.usage.draft_tokens, n_right + other.usage.accepted_draft_tokens);
        }
        // Some are of its text, which it repeats no further than it does.
        assert!(n_right * 10 >= n_drafted * 8 && n_right > 100, "{model}: {n_right} of {n_drafted}");
        let decodes = |engine: Engine| async move { engine.stats().await.unwrap().n_decode_calls };
        let (n_plain, n_fewer) = (decodes(plain).await, decodes(drafted).await);
        assert!(n_fewer * 3 < n_plain, "{model}: {n_fewer} decodes with drafts, {n_plain} without");
    }
}

/// Sampled answers are the same too: each token is drawn from the model's own row.
#[tokio::test]
async fn drafts_change_no_sampled_answer() {
    let model = "tiny/tiny-llama";
    let (plain, drafted) = (start(model, |config| config.n_draft_max = 0).await, start(model, drafted_by(model)).await);
    let mut n_right = 0;
    for (seed, prompt) in prompts(&plain).await.into_iter().enumerate() {
        let mut request = greedy(Prompt::Tokens(prompt), 40);
        request.sampling.temperature = 0.7;
        request.sampling.top_k = 4;
        request.sampling.seed = seed as u32;
        let (one, other) = (answer(&plain, request.clone()).await.unwrap(), answer(&drafted, request).await.unwrap());
        assert_eq!(one.text, other.text);
        n_right += other.usage.accepted_draft_tokens;
    }
    assert!(n_right > 40, "{n_right}");
}

#[tokio::test]
async fn a_draft_that_is_wrong_is_turned_down_and_changes_nothing() {
    let plain = start("tiny/tiny-llama", |config| config.n_draft_max = 0).await;
    let drafted = start("tiny/tiny-llama", |config| {
        config.draft.model = Some(path("tiny/tiny-gemma2"));
    })
    .await;
    let mut tried = Vec::new();
    for prompt in prompts(&plain).await.into_iter().take(6) {
        let (one, other) = (say(&plain, prompt.clone(), 100).await, say(&drafted, prompt, 100).await);
        assert_eq!(one.text, other.text);
        tried.push(other.usage.draft_tokens);
    }
    // Each was asked a few times at most, and what one learnt the next ones know.
    assert!(tried[1..].iter().all(|n| *n < 40), "{tried:?}");
}

/// Slots that draft together while others are cancelled, parked for want of cells, and share prefixes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slots_that_draft_together_say_what_each_says_alone() {
    let model = "tiny/tiny-qwen2moe";
    for draft in [model, "tiny/tiny-llama"] {
        let plain = start(model, |config| config.n_draft_max = 0).await;
        let prompts = prompts(&plain).await;
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.push(say(&plain, prompt.clone(), 48).await.text);
        }
        let change = drafted_by(draft);
        let drafted = start(model, |config| {
            change(config);
            // Fewer cells than all want together.
            (config.n_slots, config.n_ctx, config.kv_layout) = (8, Some(256), KvLayout::Unified);
        })
        .await;
        let drafted = Arc::new(drafted);
        for _ in 0..2 {
            let each = prompts.iter().map(|prompt| {
                let (drafted, prompt) = (Arc::clone(&drafted), prompt.clone());
                async move {
                    // One that is given up beside each that is not.
                    let mut cancelled = drafted.generate(greedy(Prompt::Tokens(prompt.clone()), 48)).expect("a place");
                    let said = say(&drafted, prompt, 48).await.text;
                    cancelled.next().await;
                    drop(cancelled);
                    said
                }
            });
            assert_eq!(futures_util::future::join_all(each).await, alone, "drafted by {draft}");
        }
        let stats = drafted.stats().await.unwrap();
        assert!(stats.n_parked > 0, "the cells were to run out");
    }
}

#[tokio::test]
async fn what_can_not_draft_is_refused_at_the_start() {
    let failure = |model: &'static str, draft: Option<PathBuf>, mode: DraftMode| async move {
        let mut config = EngineConfig::new(ModelSource::Gguf(path(model)));
        (config.n_threads, config.n_ctx) = (Some(1), Some(256));
        (config.draft.model, config.draft.mode) = (draft, mode);
        let engine = Engine::start(config, EngineMode::InProcess);
        let mut watch = engine.watch();
        let ends = |state: &EngineState| matches!(state, EngineState::Ready(_) | EngineState::Failed { .. });
        let state = format!("{:?}", *watch.wait_for(ends).await.expect("the engine lives"));
        state
    };
    let llama = "tiny/tiny-llama";
    let auto = DraftMode::Auto;
    for (model, draft, mode, why) in [
        (
            llama,
            Some("stories260K"),
            auto,
            "its vocabulary is not the model's: their tokenizers are of different kinds",
        ),
        (llama, Some("hearth-demo"), auto, "its vocabulary is not the model's: the model has 383 tokens"),
        (llama, Some("tiny/tiny-mamba"), auto, "can't go back, so it can't draft"),
        ("tiny/tiny-jamba", Some(llama), auto, "the model's memory can't go back"),
        (llama, Some("missing"), auto, "this is no GGUF file"),
        (llama, Some(llama), DraftMode::Eagle3, "the file is made for draft-simple, not for draft-eagle3"),
        (llama, Some(llama), DraftMode::Mtp, "it has no heads for several tokens"),
        (llama, None, DraftMode::Mtp, "the model has no heads for several tokens"),
    ] {
        let said = failure(model, draft.map(path), mode).await;
        assert!(said.contains(why) && said.contains("Failed"), "{model} with {draft:?} as {mode:?}: {said}");
    }
    assert!(failure(llama, None, auto).await.contains("Ready"));
}
