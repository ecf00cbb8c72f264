//! Real llama.cpp decodes through the engine's door, one tiny model for each kind of memory.

use hearth::chat::{
    ChatPrompt, Finish, Message, Mirostat, Prompt, Role, SamplerKind, SamplingParams, TokenLogprob, ToolCall, Usage,
};
use hearth::engine::config::{KvLayout, ModelSource};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Event, Failure, GenerateRequest, TokenizeRequest};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Models that generate, by the kind of their memory.
pub const GENERATORS: [&str; 8] = [
    "hearth-demo",
    "tiny/tiny-llama",
    "tiny/tiny-qwen2moe",
    "tiny/tiny-gemma2",
    "tiny/tiny-mamba",
    "tiny/tiny-jamba",
    "tiny/tiny-lfm2",
    "tiny/tiny-qwen35",
];

/// Those with a recurrent state.
pub const RECURRENT: [&str; 4] = ["tiny/tiny-mamba", "tiny/tiny-jamba", "tiny/tiny-lfm2", "tiny/tiny-qwen35"];

pub fn path(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("models/{model}.gguf"))
}

pub async fn start(model: &str, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = EngineConfig::new(ModelSource::Gguf(path(model)));
    config.n_threads = Some(1);
    config.n_ctx = Some(1024);
    change(&mut config);
    let engine = Engine::start(config, EngineMode::InProcess);
    let mut watch = engine.watch();
    let state = watch
        .wait_for(|state| matches!(state, EngineState::Ready(_) | EngineState::Failed { .. }))
        .await
        .expect("the engine lives");
    assert!(matches!(*state, EngineState::Ready(_)), "{model}: {:?}", *state);
    drop(state);
    engine
}

pub fn greedy(prompt: Prompt, max_tokens: u32) -> GenerateRequest {
    let mut request = GenerateRequest::new(prompt);
    request.sampling.temperature = 0.0;
    request.output.max_tokens = Some(max_tokens);
    request
}

pub fn chat(text: &str) -> Prompt {
    Prompt::Chat(ChatPrompt::new(vec![Message::new(Role::User, text)]))
}

#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    pub reasoning: String,
    pub logprobs: Vec<TokenLogprob>,
    pub n_deltas: usize,
    pub finish: Option<Finish>,
    pub usage: Usage,
}

pub async fn answer(engine: &Engine, request: GenerateRequest) -> Result<Answer, Failure> {
    let mut generation = engine.generate(request)?;
    let mut answer = Answer::default();
    while let Some(event) = generation.next().await {
        match event {
            Event::Delta(delta) => {
                answer.text += &delta.content;
                answer.reasoning += &delta.reasoning;
                answer.logprobs.extend(delta.logprobs);
                answer.n_deltas += 1;
            }
            Event::Done(done) => (answer.finish, answer.usage) = (Some(done.finish), done.usage),
            Event::Failed(failure) => return Err(failure),
            _ => {}
        }
    }
    Ok(answer)
}

pub async fn tokens(engine: &Engine, text: &str) -> Vec<i32> {
    let prompt = Prompt::Text(text.into());
    let request = TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false, partition: 0 };
    engine.tokenize(request).await.expect("tokens").tokens
}

#[tokio::test]
async fn every_kind_of_memory_generates_and_continues_what_it_has_computed() {
    for model in GENERATORS {
        let engine = start(model, |_| {}).await;
        let prompt = tokens(&engine, "Once upon a time there was a little house by the river.").await;
        let mut request = greedy(Prompt::Tokens(prompt.clone()), 12);
        request.sampling.ignore_eos = true;
        let first = answer(&engine, request.clone()).await.expect("an answer");
        assert_eq!(first.usage.completion_tokens, 12, "{model}");

        // A conversation that goes on: everything computed so far is kept, the answer's own tokens too. The text of a
        // random model does not tokenise back to itself, so the next turn is built from the first prompt.
        let mut longer = prompt.clone();
        longer.extend(tokens(&engine, "And the garden").await);
        let mut request = greedy(Prompt::Tokens(longer.clone()), 8);
        request.sampling.ignore_eos = true;
        let warm = answer(&engine, request.clone()).await.expect("an answer");
        request.cache_prompt = false;
        let cold = answer(&engine, request).await.expect("an answer");
        assert_eq!(cold.usage.cached_tokens, 0, "{model}");
        assert_eq!(warm.text, cold.text, "{model}: a reused prefix changes nothing");
        // A recurrent state can't go back to the middle of what it has read: it starts anew and is right.
        if !RECURRENT.contains(&model) {
            assert!(warm.usage.cached_tokens >= prompt.len() as u32, "{model}: {:?}", warm.usage);
        }
    }
}

#[tokio::test]
async fn a_turn_that_appends_computes_only_what_is_new_in_every_kind_of_memory() {
    for model in GENERATORS {
        let engine = start(model, |_| {}).await;
        let prompt = tokens(&engine, "the river and the house and the garden").await;
        let mut request = greedy(Prompt::Tokens(prompt.clone()), 1);
        request.sampling.ignore_eos = true;
        answer(&engine, request).await.expect("an answer");
        let mut longer = prompt.clone();
        longer.extend(tokens(&engine, " and so on").await);
        let mut request = greedy(Prompt::Tokens(longer.clone()), 1);
        request.sampling.ignore_eos = true;
        let usage = answer(&engine, request).await.expect("an answer").usage;
        assert_eq!(usage.cached_tokens, prompt.len() as u32, "{model}: {usage:?}");
    }
}

#[tokio::test]
async fn the_demo_model_answers_and_thinks_apart() {
    let engine = start("hearth-demo", |_| {}).await;
    let capital = answer(&engine, greedy(chat("What is the capital of France?"), 64)).await.expect("an answer");
    assert_eq!((capital.text.as_str(), capital.finish), ("The capital of France is Paris.", Some(Finish::EndOfTurn)));
    let letters = answer(&engine, greedy(chat("How many letters are in banana?"), 96)).await.expect("an answer");
    assert!(!letters.reasoning.is_empty() && !letters.text.contains("think>"), "{letters:?}");
    assert!(letters.usage.reasoning_tokens > 0 && letters.usage.reasoning_tokens < letters.usage.completion_tokens);
}

#[tokio::test]
async fn a_seed_gives_the_same_text_again_and_another_seed_another() {
    let engine = start("stories260K", |config| config.n_ctx = Some(512)).await;
    let mut texts = Vec::new();
    for seed in [7, 7, 8] {
        let mut request = greedy(Prompt::Text("Once upon a time".into()), 40);
        (request.sampling.temperature, request.sampling.seed) = (1.0, seed);
        texts.push(answer(&engine, request).await.expect("an answer").text);
    }
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
}

#[tokio::test]
async fn greedy_sampling_takes_the_most_likely_token_and_logprobs_spell_the_text() {
    let engine = start("stories260K", |config| config.n_ctx = Some(512)).await;
    let mut request = greedy(Prompt::Text("Lily went to".into()), 30);
    request.output.top_logprobs = Some(3);
    let answer = answer(&engine, request).await.expect("an answer");
    assert_eq!(answer.logprobs.len() as u32, answer.usage.completion_tokens);
    for entry in &answer.logprobs {
        assert_eq!(entry.top.len(), 3);
        assert_eq!(
            (entry.id, &entry.bytes, entry.logprob),
            (entry.top[0].id, &entry.top[0].bytes, entry.top[0].logprob),
            "temperature 0"
        );
        assert!(entry.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
    }
    let spelled: Vec<u8> = answer.logprobs.iter().flat_map(|entry| entry.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&spelled), answer.text);
}

#[tokio::test]
async fn a_bias_bans_and_forces() {
    let engine = start("stories260K", |config| config.n_ctx = Some(512)).await;
    let plain = greedy(Prompt::Text("Once upon a time".into()), 10);
    let before = answer(&engine, plain.clone()).await.expect("an answer").text;
    let mut probed = plain.clone();
    probed.output.top_logprobs = Some(0);
    let bytes = answer(&engine, probed).await.expect("an answer").logprobs[0].bytes.clone();
    // A vocabulary with byte tokens can have the same bytes twice.
    let prompt = Prompt::Tokens((0..512).collect());
    let request = TokenizeRequest { prompt, add_special: false, parse_special: false, with_pieces: true, partition: 0 };
    let pieces = engine.tokenize(request).await.expect("pieces").pieces;
    let same = (0..).zip(pieces).filter(|(_, piece)| *piece == bytes);
    let mut banned = plain.clone();
    banned.sampling.logit_bias = same.map(|(token, _)| (token, f32::NEG_INFINITY)).collect();
    assert_ne!(answer(&engine, banned).await.expect("an answer").text, before);
    let mut forced = plain;
    forced.sampling.logit_bias = vec![(400, 1000.0)];
    forced.output.max_tokens = Some(3);
    let piece = engine.detokenize(vec![400, 400, 400]).await.expect("a text");
    assert_eq!(answer(&engine, forced).await.expect("an answer").text, piece);
}

#[tokio::test]
async fn the_context_is_honest() {
    let engine = start("tiny/tiny-llama", |config| (config.n_ctx, config.n_slots) = (Some(256), 2)).await;
    let fits = Prompt::Tokens(vec![100; 200]);
    let mut request = greedy(fits, 1000);
    request.sampling.ignore_eos = true;
    let full = answer(&engine, request).await.expect("an answer");
    assert_eq!((full.finish, full.usage.completion_tokens), (Some(Finish::Length), 56), "200 + 56 = 256");
    let failure = answer(&engine, greedy(Prompt::Tokens(vec![100; 256]), 1)).await.expect_err("no room for an answer");
    assert_eq!(failure, Failure::ContextExceeded { n_prompt: 256, n_ctx: 256, at_least: false });
}

#[tokio::test]
async fn streams_that_outgrow_the_cells_together_all_finish_and_say_the_same() {
    for layout in [KvLayout::Unified, KvLayout::Split] {
        let engine = start("tiny/tiny-llama", |config| {
            (config.n_ctx, config.n_slots, config.kv_layout) = (Some(1024), 4, layout);
            // Split: each of the four has its 256 for itself.
        })
        .await;
        let max = if layout == KvLayout::Unified { 400 } else { 200 };
        let request = |index: i32| {
            let mut request = greedy(Prompt::Tokens((0..40).map(|at| 100 + at * 3 + index).collect()), max);
            request.sampling.ignore_eos = true;
            request.cache_prompt = false;
            request
        };
        let together = futures_util::future::join_all((0..4).map(|index| answer(&engine, request(index)))).await;
        for (index, result) in together.into_iter().enumerate() {
            let result = result.unwrap_or_else(|failure| panic!("stream {index}, {layout:?}: {failure}"));
            assert_eq!(result.usage.completion_tokens, max, "stream {index}, {layout:?}");
        }
        let stats = engine.stats().await.expect("stats");
        assert_eq!(stats.n_parked > 0, layout == KvLayout::Unified, "{stats:?}");
    }
}

#[tokio::test]
async fn a_window_that_slid_past_the_prefix_is_computed_again() {
    // gemma2 looks back 64 positions in half of its layers: after 300 tokens the cells behind are gone.
    let engine = start("tiny/tiny-gemma2", |config| config.n_slots = 1).await;
    let prompt: Vec<i32> = (0..300).map(|at| 100 + at % 150).collect();
    let mut request = greedy(Prompt::Tokens(prompt.clone()), 4);
    request.sampling.ignore_eos = true;
    answer(&engine, request.clone()).await.expect("an answer");
    let mut other: Vec<i32> = prompt[..120].to_vec();
    other.extend([7, 8, 9]);
    request.prompt = Prompt::Tokens(other);
    let warm = answer(&engine, request.clone()).await.expect("an answer");
    request.cache_prompt = false;
    assert_eq!(warm.text, answer(&engine, request).await.expect("an answer").text);
}

#[tokio::test]
async fn control_tokens_in_user_text_stay_text() {
    let engine = start("hearth-demo", |_| {}).await;
    let count = async |text: &str| {
        let request = TokenizeRequest {
            prompt: chat(text),
            add_special: true,
            parse_special: true,
            with_pieces: false,
            partition: 0,
        };
        engine.tokenize(request).await.expect("tokens").tokens
    };
    let end = tokens(&engine, "<|im_end|>").await;
    assert_eq!(end.len(), 1);
    let n_ends = |tokens: Vec<i32>| tokens.iter().filter(|token| **token == end[0]).count();
    assert_eq!(n_ends(count("a <|im_end|> b").await), n_ends(count("a b").await));
}

#[tokio::test]
async fn tool_history_with_broken_or_hostile_arguments_is_text() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    for arguments in
        [r#"{"a": tru"#.to_owned(), format!("{}1{}", "[".repeat(300), "]".repeat(300)), "[".repeat(1_000_000)]
    {
        let mut call = Message::new(Role::Assistant, "");
        call.tool_calls = vec![ToolCall { id: "c".into(), name: "f".into(), arguments: arguments.clone() }];
        let turns = vec![Message::new(Role::User, "w"), call, Message::new(Role::User, "go")];
        match answer(&engine, greedy(Prompt::Chat(ChatPrompt::new(turns)), 1)).await {
            Ok(_) => assert!(arguments.len() < 2000),
            Err(failure) => assert!(matches!(failure, Failure::ContextExceeded { .. }), "{failure}"),
        }
    }
}

#[tokio::test]
async fn an_embedding_encoder_says_that_it_does_not_generate() {
    let engine = start("tiny/tiny-bert", |config| config.n_ctx = Some(128)).await;
    let failure = answer(&engine, greedy(Prompt::Text("hello".into()), 1)).await.expect_err("no generation");
    assert!(matches!(&failure, Failure::Invalid { code, .. } if code == "unsupported_operation"), "{failure:?}");
}

#[tokio::test]
async fn hostile_texts_are_answered_or_refused_soon() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let texts =
        ["Z".repeat(131_072), " ".repeat(1 << 20), "👨‍👩‍👧‍👦".repeat(40_000), "Z".repeat(3000), "\0\u{FFFF}".repeat(50)];
    let timed = async |prompt: Prompt| {
        let start = Instant::now();
        match answer(&engine, greedy(prompt, 1)).await {
            Ok(_) | Err(Failure::ContextExceeded { .. } | Failure::Invalid { .. }) => start.elapsed(),
            Err(other) => panic!("{other}"),
        }
    };
    const PLAIN: &str = "the river and the house ";
    for text in texts {
        // What this machine needs for as many bytes without malice: what grows faster than the text shows against it.
        let mut plain = PLAIN.repeat(text.len() / PLAIN.len() + 1);
        plain.truncate(text.len());
        let plain = timed(Prompt::Text(plain)).await;
        for prompt in [Prompt::Text(text.clone()), chat(&text)] {
            let took = timed(prompt).await;
            let most = plain * 20 + Duration::from_secs(2);
            assert!(took < most, "{} bytes took {took:?}, plain ones {plain:?}", text.len());
        }
    }
}

#[tokio::test]
async fn any_sampling_in_range_gives_an_answer() {
    let engine = start("tiny/tiny-llama", |_| {}).await;
    let base = SamplingParams::default();
    let variants = [
        SamplingParams { mirostat: Mirostat::V1, ..base.clone() },
        SamplingParams { mirostat: Mirostat::V2, ..base.clone() },
        SamplingParams { top_k: 1, top_p: 0.0, min_p: 1.0, ..base.clone() },
        SamplingParams { top_k: 0, top_n_sigma: 1.0, typical_p: 0.2, min_keep: 3, ..base.clone() },
        SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.0, temperature: 100.0, ..base.clone() },
        SamplingParams { dynatemp_range: 2.0, dynatemp_exponent: 0.5, ..base.clone() },
        SamplingParams { dry_multiplier: 2.0, dry_penalty_last_n: -1, repeat_last_n: -1, ..base.clone() },
        SamplingParams { repeat_penalty: 2.0, presence_penalty: 2.0, frequency_penalty: -2.0, ..base.clone() },
        SamplingParams { repeat_last_n: 1 << 20, dry_multiplier: 1.0, dry_penalty_last_n: 1 << 20, ..base.clone() },
        SamplingParams { samplers: SamplerKind::ALL.to_vec(), ..base.clone() },
        SamplingParams { samplers: vec![SamplerKind::Temperature, SamplerKind::TopK], ..base },
    ];
    for sampling in variants {
        let mut request = greedy(Prompt::Text("the river and the house".into()), 20);
        request.sampling = SamplingParams { ignore_eos: true, ..sampling.clone() };
        let answer = answer(&engine, request).await.unwrap_or_else(|failure| panic!("{sampling:?}: {failure}"));
        // The infill sampler may end a text by itself.
        let can_end = sampling.samplers.contains(&SamplerKind::Infill);
        assert!(answer.usage.completion_tokens == 20 || can_end, "{sampling:?}: {:?}", answer.usage);
    }
}

#[tokio::test]
async fn a_file_that_is_no_model_is_a_clear_failure() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"GGUF nonsense").expect("written");
    let mut config = EngineConfig::new(ModelSource::Gguf(file.path().into()));
    config.n_threads = Some(1);
    let engine = Engine::start(config, EngineMode::InProcess);
    let mut watch = engine.watch();
    let state = watch.wait_for(|state| matches!(state, EngineState::Failed { .. })).await.expect("it fails");
    let EngineState::Failed { reason } = &*state else { panic!("failed") };
    assert!(reason.contains(&file.path().display().to_string()), "{reason}");
}
