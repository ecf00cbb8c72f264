//! Models that draft for others, with real decodes: answers stay what they are, wrong drafts are turned down.

use crate::support::exact::is_alike;
use crate::tiny_model::{Answer, answer, greedy, start, tokens};
use hearth::chat::{Constraint, Likely, Prompt};
use hearth::engine::config::{DraftMode, EmbedMode, KvLayout, ModelSource};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, GenerateRequest};
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

/// A request that computes all of its prompt: what others computed of it comes from other batches, which round otherwise.
fn at_most(prompt: Vec<i32>, n: u32) -> GenerateRequest {
    let mut request = greedy(Prompt::Tokens(prompt), n);
    request.sampling.ignore_eos = true;
    request.cache_prompt = false;
    request
}

async fn say(engine: &Engine, prompt: Vec<i32>, n: u32) -> Answer {
    answer(engine, at_most(prompt, n)).await.expect("an answer")
}

/// A prompt, and what an engine says to it as far as that doesn't hang on rounding: a row is not computed to the last bit
/// alike beside other rows, with drafts or without.
struct Sure {
    prompt: Vec<i32>,
    n: u32,
    text: String,
}

async fn sure(plain: &Engine, n: u32) -> Vec<Sure> {
    let mut all = Vec::new();
    for prompt in prompts(plain).await {
        let mut request = at_most(prompt.clone(), n);
        request.output.top_logprobs = Some(2);
        let said = answer(plain, request).await.expect("an answer");
        let is_close = |top: &[Likely]| top.len() == 2 && top[0].logprob - top[1].logprob < 0.02;
        let n_sure = said.logprobs.iter().take_while(|entry| !is_close(&entry.top)).count() as u32;
        if n_sure > 8 {
            let text = say(plain, prompt.clone(), n_sure).await.text;
            all.push(Sure { prompt, n: n_sure, text });
        }
    }
    assert!(all.len() >= 6 && all.iter().map(|one| one.n).sum::<u32>() > 2 * n, "too little to compare");
    all
}

#[tokio::test]
async fn a_model_that_drafts_for_itself_is_right_and_changes_nothing() {
    for model in ["hearth-demo", "tiny/tiny-qwen2moe", "stories260K"] {
        let (plain, drafted) =
            (start(model, |config| config.n_draft_max = 0).await, start(model, drafted_by(model)).await);
        let mut n_tokens = 0;
        for one in sure(&plain, 60).await {
            let said = say(&drafted, one.prompt, one.n).await;
            assert!(is_alike(&said.text, &one.text), "{model}: {:?} and {:?}", said.text, one.text);
            n_tokens += u64::from(one.n);
        }
        // The trained ones would end their answers, which they may not here.
        let least = if model.starts_with("tiny/") { 9 } else { 6 };
        let stats = drafted.stats().await.unwrap();
        let (n_drafted, n_right) = (stats.n_drafted, stats.n_drafted_right);
        assert!(n_right * 10 >= n_drafted * least && n_right * 2 > n_tokens, "{model}: {n_right} of {n_drafted}");
        assert!(stats.n_decode_calls * 2 < n_tokens, "{model}: {stats:?} for {n_tokens} tokens");
    }
}

/// Sampled answers are the same too: each token is drawn from the model's own row.
#[tokio::test]
async fn drafts_change_no_sampled_answer() {
    let model = "stories260K";
    let (plain, drafted) = (start(model, |config| config.n_draft_max = 0).await, start(model, drafted_by(model)).await);
    let mut n_right = 0;
    for (seed, prompt) in prompts(&plain).await.into_iter().enumerate() {
        let mut request = greedy(Prompt::Tokens(prompt), 40);
        request.sampling.temperature = 0.7;
        request.sampling.top_k = 4;
        request.sampling.seed = seed as u32;
        let (one, other) = (answer(&plain, request.clone()).await.unwrap(), answer(&drafted, request).await.unwrap());
        assert!(is_alike(&one.text, &other.text), "{:?} and {:?}", one.text, other.text);
        n_right += other.usage.accepted_draft_tokens;
    }
    assert!(n_right > 40, "{n_right}");
}

/// A constraint is asked ahead of a draft: what it forces inside one is neither chosen nor computed twice.
#[tokio::test]
async fn drafts_inside_a_schema_change_nothing() {
    let text = r#"{"type": "string", "maxLength": 40}"#;
    let schema = format!(
        r#"{{"type": "object", "properties": {{"who": {text}, "kind": {{"enum": ["story", "poem"]}},
        "parts": {{"type": "array", "items": {text}, "minItems": 2, "maxItems": 3}}}},
        "required": ["who", "kind", "parts"], "additionalProperties": false}}"#
    );
    for model in ["hearth-demo", "stories260K"] {
        let (plain, drafted) =
            (start(model, |config| config.n_draft_max = 0).await, start(model, drafted_by(model)).await);
        let (mut n_drafted, mut n_predicted) = (0, 0);
        for (i, prompt) in prompts(&plain).await.into_iter().enumerate() {
            let mut request = greedy(Prompt::Tokens(prompt), 200);
            request.cache_prompt = false;
            request.output.constraint = Some(Constraint::JsonSchema(schema.clone()));
            // With log-probabilities nothing is forced.
            request.output.top_logprobs = i.is_multiple_of(4).then_some(1);
            let one = answer(&plain, request.clone()).await.unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(&one.text).is_ok(), "{}", one.text);
            let other = answer(&drafted, request.clone()).await.unwrap();
            assert!(is_alike(&one.text, &other.text), "{:?} and {:?}", one.text, other.text);
            n_drafted += other.usage.accepted_draft_tokens;
            request.output.prediction = Some(one.text.clone());
            let other = answer(&drafted, request).await.unwrap();
            assert!(is_alike(&one.text, &other.text), "{:?} and {:?}", one.text, other.text);
            n_predicted += other.usage.accepted_prediction_tokens;
        }
        assert!(n_drafted > 100 && n_predicted > 100, "{model}: {n_drafted}, {n_predicted}");
    }
}

#[tokio::test]
async fn a_draft_that_is_wrong_is_turned_down_and_changes_nothing() {
    let plain = start("tiny/tiny-qwen2moe", |config| config.n_draft_max = 0).await;
    let drafted = start("tiny/tiny-qwen2moe", |config| {
        config.draft.model = Some(path("tiny/tiny-llama"));
    })
    .await;
    let all = sure(&plain, 64).await;
    for one in &all {
        assert_eq!(say(&drafted, one.prompt.clone(), one.n).await.text, one.text);
    }
    // It was asked a few times at most, and what one request learnt the next ones know.
    let stats = drafted.stats().await.unwrap();
    let n_tokens: u32 = all.iter().map(|one| one.n).sum();
    assert!(stats.n_drafted < 100 && n_tokens > 200, "{} for {n_tokens}", stats.n_drafted);
    assert!(stats.n_drafted_right * 2 <= stats.n_drafted, "{stats:?}");
}

/// A recurrent state is taken back to where a draft went wrong. A stranger drafts, and answers that are given again are known.
#[tokio::test]
async fn recurrent_states_are_drafted_for_and_taken_back() {
    for model in ["tiny/tiny-lfm2", "tiny/tiny-qwen35"] {
        let plain = start(model, |config| config.n_draft_max = 0).await;
        let all = sure(&plain, 48).await;
        for layout in [KvLayout::Unified, KvLayout::Split] {
            let drafted = start(model, |config| {
                drafted_by("tiny/tiny-llama")(config);
                (config.n_slots, config.kv_layout) = (2, layout);
            })
            .await;
            let (mut n_tried, mut n_right) = (0, 0);
            for _ in 0..3 {
                for one in &all {
                    let mut request = at_most(one.prompt.clone(), one.n);
                    request.cache_prompt = true;
                    let said = answer(&drafted, request).await.expect("an answer");
                    assert_eq!(said.text, one.text, "{model} {layout:?}: {:?}", said.usage);
                    n_tried += said.usage.draft_tokens;
                    n_right += said.usage.accepted_draft_tokens;
                }
            }
            assert!(n_right > 0 && n_tried > n_right, "{model} {layout:?}: {n_right} of {n_tried}");
        }
    }
}

/// Those that begin where another was taken back, and steps of several, in which nothing is drafted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recurrent_states_of_many_slots_stay_apart() {
    for model in ["tiny/tiny-lfm2", "tiny/tiny-qwen35"] {
        many_recurrent(model).await;
    }
}

async fn many_recurrent(model: &str) {
    let plain = start(model, |config| config.n_draft_max = 0).await;
    let all = sure(&plain, 40).await;
    let drafted = start(model, |config| {
        drafted_by("tiny/tiny-llama")(config);
        config.n_slots = 3;
    })
    .await;
    for round in 0..4 {
        // Of three that run together two are given up, so that the last has steps of its own in between.
        for three in all.chunks(3) {
            let said = three.iter().enumerate().map(|(i, one)| {
                let (drafted, prompt) = (&drafted, one.prompt.clone());
                async move {
                    let mut request = at_most(prompt.clone(), one.n);
                    request.cache_prompt = true;
                    if i > 0 {
                        let mut given_up = drafted.generate(request.clone()).expect("a place");
                        (0..=round).for_each(|_| _ = futures_util::FutureExt::now_or_never(given_up.next()));
                        drop(given_up);
                    }
                    (answer(drafted, request).await.expect("an answer").text, &one.text)
                }
            });
            for (said, text) in futures_util::future::join_all(said).await {
                assert_eq!(&said, text, "{model}, round {round}");
            }
        }
    }
}

/// Slots that draft together while others are cancelled, parked for want of cells, and share prefixes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slots_that_draft_together_say_what_each_says_alone() {
    let model = "tiny/tiny-qwen2moe";
    for draft in [model, "tiny/tiny-llama"] {
        many_slots(model, &drafted_by(draft)).await;
    }
}

async fn many_slots(model: &str, change: &impl Fn(&mut EngineConfig)) {
    let plain = start(model, |config| config.n_draft_max = 0).await;
    let all = sure(&plain, 48).await;
    let alone: Vec<&String> = all.iter().map(|one| &one.text).collect();
    let mut is_pool = true;
    let drafted = start(model, |config| {
        // Fewer cells than all want together.
        (config.n_slots, config.n_ctx, config.kv_layout) = (8, Some(256), KvLayout::Unified);
        change(config);
        is_pool = config.kv_layout.is_unified();
    })
    .await;
    let drafted = Arc::new(drafted);
    for _ in 0..2 {
        let each = all.iter().map(|one| {
            let (drafted, prompt, n) = (Arc::clone(&drafted), one.prompt.clone(), one.n);
            async move {
                // One that is given up beside each that is not, and one that outgrows what there was when it began.
                let mut cancelled = drafted.generate(greedy(Prompt::Tokens(prompt.clone()), 48)).expect("a place");
                let long = say(&drafted, prompt.clone(), 100);
                let mut request = at_most(prompt, n);
                request.cache_prompt = true;
                let (said, _) = futures_util::future::join(answer(&drafted, request), long).await;
                cancelled.next().await;
                drop(cancelled);
                said.expect("an answer").text
            }
        });
        let said = futures_util::future::join_all(each).await;
        assert_eq!(said.iter().collect::<Vec<_>>(), alone, "{model}");
    }
    if RECURRENT_HEADS.iter().any(|(recurrent, ..)| *recurrent == model) {
        // Among several none of these is drafted for; one behind them that runs by itself is, though heads left off.
        for one in &all {
            assert_eq!(say(&drafted, one.prompt.clone(), one.n).await.text, one.text, "{model}");
        }
    }
    let stats = drafted.stats().await.expect("stats");
    assert!(stats.n_drafted > 0, "{model}: they were to be drafted for");
    assert!(stats.n_parked > 0 || !is_pool, "{model}: the cells were to run out");
}

/// A model's own heads (MTP) and heads made for it (EAGLE-3, DFlash, DSpark), which read what its decodes left behind.
#[tokio::test]
async fn heads_draft_and_change_nothing() {
    for (model, heads, mode) in HEADS.into_iter().chain(RECURRENT_HEADS) {
        let plain = start(model, |config| config.n_draft_max = 0).await;
        let drafted = start(model, with_heads(heads, mode)).await;
        let all = sure(&plain, 60).await;
        for one in all.iter().take(8) {
            assert_eq!(say(&drafted, one.prompt.clone(), one.n).await.text, one.text, "{model} with {mode:?}");
        }
        // The weights of the others are random; those of two are made so that they are right. Where the answer repeats itself
        // they aren't asked, so they are measured by the rest.
        let stats = drafted.stats().await.unwrap();
        let least = match mode {
            DraftMode::Mtp => stats.n_drafted / 2,
            DraftMode::Dspark => stats.n_drafted / 8,
            _ => 0,
        };
        assert!(stats.n_drafted > 100 && stats.n_drafted_right >= least, "{model} with {mode:?}: {stats:?}");
    }
}

/// Models with heads that draft: their own, or of a file.
const HEADS: [(&str, Option<&str>, DraftMode); 6] = [
    ("tiny/tiny-glm4moe", None, DraftMode::Mtp),
    // They attend over the model's own cells.
    ("tiny/tiny-gemma4", Some("tiny/tiny-gemma4-assistant"), DraftMode::Mtp),
    ("stories260K", Some("tiny/tiny-eagle3"), DraftMode::Eagle3),
    ("stories260K", Some("tiny/tiny-dflash"), DraftMode::Dflash),
    ("stories260K", Some("tiny/tiny-dflash2"), DraftMode::Dflash),
    ("stories260K", Some("tiny/tiny-dspark"), DraftMode::Dspark),
];

/// The same for models whose recurrent states are taken back.
const RECURRENT_HEADS: [(&str, Option<&str>, DraftMode); 3] = [
    ("tiny/tiny-qwen35-mtp", None, DraftMode::Mtp),
    ("tiny/tiny-lfm2", Some("tiny/tiny-eagle3-lfm2"), DraftMode::Eagle3),
    ("tiny/tiny-qwen35", Some("tiny/tiny-dflash-qwen35"), DraftMode::Dflash),
];

fn with_heads(heads: Option<&'static str>, mode: DraftMode) -> impl Fn(&mut EngineConfig) {
    move |config| {
        config.draft.model = heads.map(path);
        config.draft.mode = mode;
        config.draft.always = true;
    }
}

/// As for draft models; where sequences are shared, parked or begin anew the heads' side of them has gaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_draft_for_many_slots_at_once() {
    for (model, heads, mode) in HEADS.into_iter().chain(RECURRENT_HEADS) {
        let change = with_heads(heads, mode);
        many_slots(model, &change).await;
        // Cells of their own for each slot, which llama.cpp computes in other groups.
        many_slots(model, &|config: &mut EngineConfig| {
            change(config);
            (config.n_ctx, config.kv_layout) = (Some(8 * 256), KvLayout::Split);
        })
        .await;
    }
}

/// What `hearth` says, and whether it did what was asked.
fn hearth(args: &[&std::path::Path]) -> (String, bool) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_hearth")).args(args).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), output.status.success())
}

/// What a model says stands in texts of the operator's, so it is drafted from the first answer on.
#[tokio::test]
async fn the_operators_texts_are_drafted_from_and_change_nothing() {
    let model = "hearth-demo";
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plain = start(model, |config| config.n_draft_max = 0).await;
    let all = sure(&plain, 60).await;
    let mut texts = Vec::new();
    for (i, one) in all.iter().enumerate() {
        let text = plain.detokenize(one.prompt.clone()).await.expect("a text") + &one.text;
        texts.push(dir.path().join(format!("{i}.txt")));
        std::fs::write(&texts[i], text).expect("a writable folder");
    }
    let (counts, file) = (dir.path().join("counts.bin"), path(model));
    let mut args = vec!["lookup".as_ref(), file.as_path()];
    args.extend(texts.iter().map(PathBuf::as_path));
    args.extend([std::path::Path::new("-o"), &counts]);
    let (said, is_done) = hearth(&args);
    assert!(is_done && said.contains("keys from"), "{said}");
    assert!(!dir.path().join("counts.bin.part").exists());

    let (mut n_right, mut n_tokens) = ([0, 0], 0);
    for corpus in [None, Some(counts)] {
        let with_corpus = usize::from(corpus.is_some());
        for one in &all {
            // Each by a server of its own: nothing is known of other answers.
            let drafted = start(model, |config| config.draft.corpus = corpus.clone()).await;
            let said = say(&drafted, one.prompt.clone(), one.n).await;
            assert!(is_alike(&said.text, &one.text), "{:?} and {:?}", said.text, one.text);
            n_right[with_corpus] += said.usage.accepted_draft_tokens;
            n_tokens += one.n * with_corpus as u32;
        }
    }
    let [without, with] = n_right;
    assert!(with > without && (with - without) * 4 > n_tokens, "{without} and {with} of {n_tokens}");
}

#[tokio::test]
async fn a_file_that_holds_no_counts_for_the_model_is_refused_at_the_start() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (text, counts) = (dir.path().join("text"), dir.path().join("counts.bin"));
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog.").expect("a writable folder");
    let (said, is_done) = hearth(&["lookup".as_ref(), &path("stories260K"), &text, "-o".as_ref(), &counts]);
    assert!(is_done, "{said}");
    let of = |corpus: &PathBuf| {
        let mut config = EngineConfig::new(ModelSource::Gguf(path("tiny/tiny-llama")));
        config.draft.corpus = Some(corpus.clone());
        state_with(config)
    };
    let flag = |path: &PathBuf| format!("--lookup-cache-static {}: the entry at byte", path.display());
    let said = of(&counts).await;
    assert!(said.contains("Failed") && said.contains(&flag(&counts)), "{said}");
    assert!(said.contains("the file was made for another model"), "{said}");
    let said = of(&text).await;
    assert!(said.contains("Failed") && said.contains(&flag(&text)), "{said}");
    for (bad, why) in [(dir.path().join("missing"), "No such file"), (path("tiny/tiny-llama"), "no text in UTF-8")] {
        let (said, is_done) = hearth(&["lookup".as_ref(), &path("stories260K"), &bad, "-o".as_ref(), &counts]);
        assert!(!is_done && said.contains(why) && said.contains(&bad.display().to_string()), "{said}");
    }
}

/// In which state an engine ends up.
async fn state_of(model: &str, draft: Option<PathBuf>, mode: DraftMode) -> String {
    let mut config = EngineConfig::new(ModelSource::Gguf(path(model)));
    (config.draft.model, config.draft.mode) = (draft, mode);
    state_with(config).await
}

async fn state_with(mut config: EngineConfig) -> String {
    (config.n_threads, config.n_ctx) = (Some(1), Some(256));
    let engine = Engine::start(config, EngineMode::InProcess);
    let mut watch = engine.watch();
    let ends = |state: &EngineState| matches!(state, EngineState::Ready(_) | EngineState::Failed { .. });
    let state = format!("{:?}", *watch.wait_for(ends).await.expect("the engine lives"));
    state
}

#[tokio::test]
async fn what_can_not_draft_is_refused_at_the_start() {
    let (llama, gemma2, assistant) = ("tiny/tiny-llama", "tiny/tiny-gemma2", "tiny/tiny-gemma4-assistant");
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
        ("tiny/tiny-jamba", Some("tiny/tiny-eagle3-lfm2"), auto, "the model's memory can't go back"),
        ("tiny/tiny-lfm2", Some("tiny/tiny-eagle3"), auto, "a vocabulary of 512 tokens, and the model's has 383"),
        ("tiny/tiny-qwen35", None, DraftMode::Mtp, "the model has no heads for several tokens"),
        (llama, Some("missing"), auto, "this is no GGUF file"),
        (llama, Some(llama), DraftMode::Eagle3, "the file is made for draft-simple, not for draft-eagle3"),
        (llama, Some(llama), DraftMode::Mtp, "it has no heads for several tokens"),
        (llama, Some("tiny/tiny-dflash"), auto, "it is made for a model of width 64, and this one's is 128"),
        (llama, Some("tiny/tiny-eagle3"), auto, "it is made for a model of width 64, and this one's is 128"),
        ("tiny/tiny-qwen2moe", Some("tiny/tiny-dspark"), auto, "a vocabulary of 512 tokens, and the model's has 388"),
        ("stories260K", Some("tiny/tiny-dspark"), DraftMode::Dflash, "made for draft-dspark, not for draft-dflash"),
        (llama, None, DraftMode::Mtp, "the model has no heads for several tokens"),
        (
            gemma2,
            Some("tiny/tiny-eagle3-lfm2"),
            auto,
            "tiny-eagle3-lfm2.gguf: heads of its kind (draft-eagle3) read what goes into layer 0, which llama.cpp does not \
             hand out for models of the architecture gemma2",
        ),
        (gemma2, Some("tiny/tiny-dflash-qwen35"), auto, "(draft-dflash) read what goes into layer 1, which"),
        (
            gemma2,
            Some("tiny/tiny-qwen35-mtp"),
            DraftMode::Mtp,
            "(draft-mtp) read the state behind the last layer, which",
        ),
        (gemma2, Some(assistant), auto, "attend over the memory of a gemma4 model, and this one is gemma2"),
        (gemma2, Some(assistant), DraftMode::Mtp, "attend over the memory of a gemma4 model, and this one is gemma2"),
        ("tiny/tiny-gemma4", Some(assistant), DraftMode::Eagle3, "made for draft-mtp, not for draft-eagle3"),
    ] {
        let said = state_of(model, draft.map(path), mode).await;
        assert!(said.contains(why) && said.contains("Failed"), "{model} with {draft:?} as {mode:?}: {said}");
    }
    assert!(state_of(llama, None, auto).await.contains("Ready"));
}

/// Heads that read layers which a model doesn't have, or what comes out of its last where llama.cpp doesn't hand it out.
#[tokio::test]
async fn heads_that_read_beyond_the_model_are_refused_at_the_start() {
    let whole = std::fs::read(path("tiny/tiny-eagle3")).expect("a model of the tree");
    let key = b"eagle3.target_layers";
    let at = whole.windows(key.len()).position(|bytes| bytes == key).expect("its layers") + key.len();
    // Types of the value and its elements, how many they are, and two before the last.
    let last = at + 4 + 4 + 8 + 2 * 4;
    assert_eq!(whole[last], 4);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let heads = dir.path().join("heads.gguf");
    for (layer, why) in [
        (
            5,
            "read the state behind the last layer, which llama.cpp does not hand out for models of the architecture llama",
        ),
        (6, "it reads layer 6 of a model with 5"),
        (200, "it reads layer 200 of a model with 5"),
    ] {
        let mut file = whole.clone();
        file[last] = layer;
        std::fs::write(&heads, file).expect("a writable folder");
        let said = state_of("stories260K", Some(heads.clone()), DraftMode::Auto).await;
        assert!(said.contains("Failed") && said.contains(why) && said.contains("heads.gguf"), "{said}");
    }
}

/// What drafts unasked never keeps a file from starting.
#[tokio::test]
async fn a_files_own_heads_start_wherever_the_file_does() {
    type Change = fn(&mut EngineConfig);
    let changes: [(&str, Change); 7] = [
        ("plain", |_| {}),
        ("one slot", |config| config.n_slots = 1),
        ("small batches", |config| (config.n_batch, config.n_ubatch) = (16, 16)),
        ("one row", |config| (config.n_batch, config.n_slots) = (1, 1)),
        ("few cells", |config| (config.n_ctx, config.n_slots) = (Some(64), 16)),
        ("few cells in one pool", |config| {
            (config.n_ctx, config.n_slots, config.kv_layout) = (Some(64), 16, KvLayout::Unified);
        }),
        ("embeddings", |config| config.embeddings = EmbedMode::On),
    ];
    for (what, change) in changes {
        let engine = start("tiny/tiny-glm4moe", |config| {
            change(config);
            config.draft.always = true;
        })
        .await;
        let said = say(&engine, vec![1, 60, 61], 12).await;
        assert!(said.usage.completion_tokens > 0, "{what}: {said:?}");
    }
}

/// Where batches are small, what a draft's side lacks is more than one of them; and short drafts may be unwanted.
#[tokio::test]
async fn small_batches_and_long_drafts_only_are_drafted_for_too() {
    let model = "stories260K";
    for (n_batch, n_min, n_slots) in [(32, 0, 4), (16, 0, 2), (32, 6, 2)] {
        let drafted = start(model, |config| {
            drafted_by(model)(config);
            (config.n_batch, config.n_ubatch, config.draft.n_min, config.n_slots) = (n_batch, n_batch, n_min, n_slots);
        })
        .await;
        for prompt in prompts(&drafted).await.into_iter().take(4) {
            let usage = say(&drafted, prompt.repeat(5), 80).await.usage;
            assert!(usage.accepted_draft_tokens * 2 > usage.completion_tokens, "-b {n_batch}: {usage:?}");
        }
    }
}

/// The draft's cells run out too: of slots that others had before, and in the middle of answers.
#[tokio::test]
async fn drafts_go_on_where_others_left_their_cells() {
    let model = "stories260K";
    let drafted = start(model, |config| {
        (config.n_slots, config.n_ctx, config.kv_layout) = (4, Some(256), KvLayout::Unified);
        drafted_by(model)(config);
    })
    .await;
    for (i, prompt) in prompts(&drafted).await.into_iter().enumerate() {
        let usage = say(&drafted, prompt, 100).await.usage;
        assert!(usage.accepted_draft_tokens * 3 > usage.completion_tokens, "answer {i}: {usage:?}");
    }
}
