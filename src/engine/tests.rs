//! The engine's promises, on the scripted backend and threads of this process.

use super::config::{KvLayout, ModelSource, PrefixConfig, PrefixText, ScriptedConfig};
use super::*;
use crate::chat::{ChatPrompt, Delta, Finish, Message, Output, Prompt, Role, Tool, ToolChoice, Usage};
use std::time::Duration;

async fn start(scripted: ScriptedConfig, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = EngineConfig::new(ModelSource::Scripted(scripted));
    change(&mut config);
    let engine = Engine::start(config, EngineMode::InProcess);
    engine.watch().wait_for(|state| matches!(state, EngineState::Ready(_))).await.expect("it loads");
    engine
}

fn chat(text: &str) -> GenerateRequest {
    GenerateRequest::new(Prompt::Chat(ChatPrompt::new(vec![Message::new(Role::User, text)])))
}

/// Everything a generation says: its text, thinking, and how it ended.
async fn collect(mut generation: Generation) -> (String, String, Result<(Finish, Usage), Failure>) {
    let (mut content, mut reasoning, mut ending) = (String::new(), String::new(), None);
    while let Some(event) = generation.next().await {
        assert!(ending.is_none(), "nothing follows the ending");
        match event {
            Event::Delta(Delta { content: more, reasoning: thought, .. }) => {
                content += &more;
                reasoning += &thought;
            }
            Event::Done(done) => ending = Some(Ok((done.finish, done.usage))),
            Event::Failed(failure) => ending = Some(Err(failure)),
            _ => {}
        }
    }
    (content, reasoning, ending.expect("exactly one ending"))
}

#[tokio::test]
async fn a_chat_is_answered_and_its_tokens_counted() {
    let engine = start(ScriptedConfig::default(), |_| {}).await;
    let (content, _, ending) = collect(engine.generate(chat("/count 3")).expect("a place")).await;
    assert_eq!(content, "1 2 3");
    let (finish, usage) = ending.expect("it ends well");
    assert_eq!(finish, Finish::EndOfTurn);
    assert_eq!(usage.completion_tokens, 6, "five bytes and the end");
    assert_eq!(engine.load().n_in_flight, 0);
}

#[tokio::test]
async fn thinking_is_separated_and_counted() {
    let engine = start(ScriptedConfig::default(), |_| {}).await;
    let (content, reasoning, ending) = collect(engine.generate(chat("/think hm")).expect("a place")).await;
    assert_eq!((content.as_str(), reasoning.as_str()), ("ok", "hm"));
    assert!(ending.expect("it ends well").1.reasoning_tokens >= 2);
}

#[tokio::test]
async fn limits_and_stop_strings_end_an_answer() {
    let engine = start(ScriptedConfig::default(), |_| {}).await;
    let mut request = chat("/forever");
    request.output = Output { max_tokens: Some(7), ..Default::default() };
    let (content, _, ending) = collect(engine.generate(request).expect("a place")).await;
    assert_eq!((content.as_str(), ending.expect("well").0), (". . . .", Finish::Length));
    let mut request = chat("/count 20");
    request.output.stop = vec!["7 8".into()];
    let (content, _, ending) = collect(engine.generate(request).expect("a place")).await;
    assert_eq!((content.as_str(), ending.expect("well").0), ("1 2 3 4 5 6 ", Finish::StopString("7 8".into())));
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let engine = start(ScriptedConfig::default(), |config| config.n_ctx = Some(64)).await;
    let (_, _, ending) = collect(engine.generate(chat(&"x".repeat(100))).expect("a place")).await;
    assert!(
        matches!(ending, Err(Failure::ContextExceeded { n_ctx: 64, n_prompt: 100.., at_least: false })),
        "{ending:?}"
    );
    let (_, _, ending) = collect(engine.generate(chat(&"x".repeat(100_000))).expect("a place")).await;
    assert!(matches!(ending, Err(Failure::ContextExceeded { at_least: true, .. })), "{ending:?}");
}

#[tokio::test]
async fn a_continued_conversation_reuses_its_prefix() {
    let engine = start(ScriptedConfig::default(), |_| {}).await;
    let first = Message::new(Role::User, "tell me something long enough to be worth keeping");
    let (answer, _, _) = collect(engine.generate(chat(first.content.as_deref().unwrap())).expect("a place")).await;
    let messages = vec![first, Message::new(Role::Assistant, answer), Message::new(Role::User, "more")];
    let request = GenerateRequest::new(Prompt::Chat(ChatPrompt::new(messages)));
    let (_, _, ending) = collect(engine.generate(request).expect("a place")).await;
    let usage = ending.expect("well").1;
    assert!(usage.cached_tokens > 100 && usage.cached_tokens < usage.prompt_tokens, "{usage:?}");
}

#[tokio::test]
async fn another_partition_never_reuses_a_prefix() {
    let engine = start(ScriptedConfig::default(), |config| config.n_slots = 1).await;
    for (partition, hits) in [(1, false), (1, true), (2, false)] {
        let mut request = chat("the same words from two tenants");
        request.partition = partition;
        let usage = collect(engine.generate(request).expect("a place")).await.2.expect("well").1;
        assert_eq!(usage.cached_tokens > 0, hits, "partition {partition}: {usage:?}");
    }
}

#[tokio::test]
async fn named_prefixes_take_their_memory_once_and_are_counted() {
    let text = "a beginning that many prompts have, long enough to be worth a state of its own".to_owned();
    let n_tokens = text.len() as u64;
    for n_workers in [1, 3] {
        let engine = start(ScriptedConfig::default(), |config| {
            let text = PrefixText::Prompt(text.clone());
            config.prefixes = vec![PrefixConfig { name: "one".into(), text }];
            (config.n_workers, config.saved_bytes) = (n_workers, Some(0));
        })
        .await;
        let n_bytes = engine.stats().await.expect("stats").saved_bytes;
        assert!((2 * n_tokens - 4..=2 * n_tokens + 4).contains(&n_bytes), "{n_workers} workers: {n_bytes}");
    }
}

/// Of a memory that can't go back, the first choice's state is saved for the others.
#[tokio::test]
async fn choices_of_which_nothing_is_to_be_kept_leave_nothing() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/tiny-mamba.gguf");
    let mut config = EngineConfig::new(ModelSource::Gguf(path));
    (config.n_threads, config.n_ctx, config.saved_bytes) = (Some(1), Some(2048), Some(64 << 20));
    let engine = Engine::start(config, EngineMode::InProcess);
    engine.watch().wait_for(|state| matches!(state, EngineState::Ready(_))).await.expect("it loads");
    let prompt = "Once upon a time there was a house. ".repeat(12);
    for (cache_prompt, leaves) in [(false, false), (true, true)] {
        let family = fresh_family();
        let request = || {
            let mut request = GenerateRequest::new(Prompt::Text(prompt.clone()));
            (request.cache_prompt, request.family) = (cache_prompt, family);
            (request.output.max_tokens, request.sampling.ignore_eos) = (Some(8), true);
            collect(engine.generate(request).expect("a place"))
        };
        let ((.., one), (.., other)) = tokio::join!(request(), request());
        assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
        // The worker tells a moment after the ending went out.
        let saved = async || engine.stats().await.expect("stats").saved_bytes;
        for _ in 0..100 {
            if (saved().await > 0) == leaves {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(saved().await > 0, leaves, "kept: {cache_prompt}");
    }
}

#[tokio::test]
async fn an_answer_is_drafted_from_what_the_same_partition_was_told_before() {
    let slow = ScriptedConfig { step_us: 300, ..Default::default() };
    let engine = start(slow, |config| config.n_slots = 1).await;
    let ask = async |partition: u64, cache_prompt: bool| {
        let mut request = chat("/count 150");
        (request.partition, request.cache_prompt) = (partition, cache_prompt);
        let (content, _, ending) = collect(engine.generate(request).expect("a place")).await;
        assert!(content.ends_with("149 150"));
        ending.expect("well").1.accepted_draft_tokens
    };
    // What it says repeats itself a little.
    let alone = [ask(1, false).await, ask(1, true).await, ask(2, true).await, ask(1, false).await];
    let again = ask(1, true).await;
    assert!(alone.iter().all(|n| *n + 50 < again), "{alone:?}, {again}");
}

#[tokio::test]
async fn text_that_is_only_watched_is_drafted_for_and_stays_the_same() {
    let slow = || ScriptedConfig { step_us: 300, ..Default::default() };
    let plain = start(slow(), |config| config.n_draft_max = 0).await;
    let drafted = start(slow(), |_| {}).await;
    let count = (1..60).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let tag = format!("{count} <tool <b> <tool_call> {count} <tool_call>");
    for (text, answer) in [("/count 59", &count), (tag.as_str(), &tag)] {
        let request = || {
            let mut prompt = ChatPrompt::new(vec![Message::new(Role::User, text)]);
            let (name, parameters) = ("f".into(), "{}".into());
            prompt.tools = vec![Tool { name, description: None, parameters, strict: false }];
            prompt.tool_choice = ToolChoice::None;
            let mut request = GenerateRequest::new(Prompt::Chat(prompt));
            request.output.prediction = Some(answer.clone());
            request
        };
        let (expected, _, _) = collect(plain.generate(request()).expect("a place")).await;
        let (content, _, ending) = collect(drafted.generate(request()).expect("a place")).await;
        assert_eq!(content, expected);
        let usage = ending.expect("well").1;
        assert!(usage.accepted_draft_tokens > 100, "{usage:?}");
    }
}

/// A memory that can't be cut, but taken back by some rows: no draft is longer, and what was wrong costs its own rows only.
#[tokio::test]
async fn a_memory_that_is_taken_back_by_some_rows_is_drafted_for_within_them() {
    const ROWS: u64 = 4;
    let scripted = || ScriptedConfig { step_us: 300, rows_back: ROWS, ..Default::default() };
    let engine = start(scripted(), |config| config.n_slots = 1).await;
    let count = (1..200).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let mut request = chat("/count 199");
    // Wrong now and then, so that some drafts are.
    request.output.prediction = Some(count.replace("5 ", "x "));
    let before = engine.stats().await.expect("stats");
    let (content, _, ending) = collect(engine.generate(request).expect("a place")).await;
    let usage = ending.expect("well").1;
    let after = engine.stats().await.expect("stats");
    assert_eq!(content, count);
    assert!(usage.accepted_draft_tokens > 100 && usage.draft_tokens > usage.accepted_draft_tokens, "{usage:?}");
    let n_steps = after.n_decode_calls - before.n_decode_calls;
    let n_tokens = u64::from(usage.completion_tokens);
    assert!(n_steps * (ROWS + 1) >= n_tokens && n_steps + 100 < n_tokens, "{n_steps} steps: {usage:?}");
    // A row for each token of the prompt, each that was chosen but the last, and each that was tried in vain; what was tried
    // beyond the answer's end is not told.
    let n_vain = u64::from(usage.draft_tokens - usage.accepted_draft_tokens);
    let n_rows = after.n_decode_rows - before.n_decode_rows;
    let n_told = u64::from(usage.prompt_tokens) + n_tokens - 1 + n_vain;
    assert!((n_told..=n_told + ROWS).contains(&n_rows), "{n_rows} rows: {usage:?}");

    let plain = start(scripted(), |config| (config.n_slots, config.n_draft_max) = (1, 0)).await;
    let said = collect(plain.generate(chat("/count 199")).expect("a place")).await.2.expect("well").1;
    assert_eq!((said.draft_tokens, said.completion_tokens), (0, usage.completion_tokens));
}

#[tokio::test]
async fn dropping_the_receiver_frees_the_slot() {
    let engine = start(ScriptedConfig { step_us: 1000, ..Default::default() }, |config| config.n_slots = 1).await;
    let mut hog = engine.generate(chat("/forever")).expect("a place");
    while !matches!(hog.next().await, Some(Event::Delta(_))) {}
    drop(hog);
    let next = tokio::time::timeout(Duration::from_millis(200), collect(engine.generate(chat("hi")).expect("a place")));
    assert_eq!(next.await.expect("the slot is free").0, "hi");
}

#[tokio::test]
async fn a_cancel_ends_a_long_decode_at_once() {
    let slow = ScriptedConfig { prompt_token_us: 20_000, ..Default::default() };
    let engine = start(slow, |config| config.n_slots = 1).await;
    let hog = engine.generate(chat(&"x".repeat(500))).expect("a place");
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(hog);
    let begin = std::time::Instant::now();
    while engine.load().n_in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_full_queue_is_refused_not_grown() {
    let slow = ScriptedConfig { step_us: 500, ..Default::default() };
    let engine = start(slow, |config| (config.n_slots, config.n_queue) = (2, 3)).await;
    let held: Vec<Generation> = (0..5).map(|_| engine.generate(chat("/forever")).expect("a place")).collect();
    assert!(matches!(engine.generate(chat("hi")), Err(Failure::Overloaded { n_places: 5, retry_after_s: 1.. })));
    drop(held);
    while engine.load().n_in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(engine.generate(chat("hi")).is_ok());
}

#[tokio::test]
async fn streams_that_outgrow_the_cells_together_all_finish() {
    let engine = start(ScriptedConfig::default(), |config| config.n_ctx = Some(600)).await;
    let requests: Vec<Generation> = (0..4)
        .map(|index| {
            let mut request = chat(&format!("/count {}", 100 + index));
            request.output.max_tokens = Some(400);
            engine.generate(request).expect("a place")
        })
        .collect();
    for (index, generation) in requests.into_iter().enumerate() {
        let (content, _, ending) = collect(generation).await;
        let numbers: Vec<String> = (1..=100 + index).map(|number| number.to_string()).collect();
        assert_eq!(content, numbers.join(" "), "nothing lost, nothing doubled");
        assert_eq!(ending.expect("none fails for another's sake").0, Finish::EndOfTurn);
    }
    assert!(engine.stats().await.expect("stats").n_parked > 0, "they did not fit together");
}

#[tokio::test]
async fn rows_are_added_where_a_part_of_a_group_takes_longer_and_nobody_notices() {
    for layout in [KvLayout::Unified, KvLayout::Split] {
        let slow = ScriptedConfig { part_row_us: 3_000, ..Default::default() };
        let engine = start(slow, |config| {
            (config.n_slots, config.kv_layout, config.n_ctx) = (8, layout, Some(8 * 512));
        })
        .await;
        // Lengths apart, so that all numbers of streams come up; more requests than slots, so that slots are taken again.
        let texts: Vec<String> = (0..20).map(|i| format!("/count {}", 5 + i * 3 % 17)).collect();
        let mut stats = engine.stats().await.expect("stats");
        // Times are measured: on a machine that is busy with other things, more of them.
        for _ in 0..10 {
            let answers = texts.iter().map(|text| collect(engine.generate(chat(text)).expect("a place")));
            for (text, (said, _, ending)) in texts.iter().zip(futures_util::future::join_all(answers).await) {
                ending.expect("it ends well");
                let n: u32 = text[7..].parse().expect("a number");
                assert_eq!(said, (1..=n).map(|i| i.to_string()).collect::<Vec<_>>().join(" "), "{layout:?}");
            }
            stats = engine.stats().await.expect("stats");
            if stats.n_pad_rows > 10 {
                break;
            }
        }
        assert!(stats.n_pad_rows > 10, "{layout:?}: {stats:?}");
        assert!(stats.n_pad_rows < stats.n_decode_rows, "{layout:?}: {stats:?}");
    }
}

#[tokio::test]
async fn control_tokens_in_user_text_are_text() {
    let engine = start(ScriptedConfig::default(), |_| {}).await;
    let (content, _, _) = collect(engine.generate(chat("a<|close|>b")).expect("a place")).await;
    assert_eq!(content, "a<|close|>b");
}

#[tokio::test]
async fn closing_ends_what_is_in_flight() {
    let engine = start(ScriptedConfig { step_us: 500, ..Default::default() }, |_| {}).await;
    let generation = engine.generate(chat("/forever")).expect("a place");
    tokio::time::sleep(Duration::from_millis(20)).await;
    engine.close().await;
    assert_eq!(collect(generation).await.2, Err(Failure::ShuttingDown));
    assert!(matches!(engine.generate(chat("hi")), Err(Failure::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_with_random_cancels_leave_nothing_behind() {
    use rand::RngExt;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let engine =
        start(ScriptedConfig::default(), |config| (config.n_slots, config.n_queue, config.n_workers) = (8, 64, 2))
            .await;
    let mut tasks = tokio::task::JoinSet::new();
    let (mut n_started, mut n_refused) = (0, 0);
    while n_started < 10_000 {
        let text = if rng.random_bool(0.3) { "/forever".into() } else { format!("/count {}", rng.random_range(1..20)) };
        let patience: u32 = if text == "/forever" { rng.random_range(0..40) } else { rng.random_range(0..200) };
        match engine.generate(chat(&text)) {
            Ok(mut generation) => {
                n_started += 1;
                tasks.spawn(async move {
                    for _ in 0..patience {
                        if generation.next().await.is_none() {
                            break;
                        }
                    }
                });
            }
            Err(Failure::Overloaded { .. }) => {
                n_refused += 1;
                tokio::task::yield_now().await;
                while tasks.try_join_next().is_some() {}
            }
            Err(other) => panic!("{other}"),
        }
    }
    while tasks.join_next().await.is_some() {}
    for _ in 0..2000 {
        if engine.load().n_in_flight == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stats = engine.stats().await.expect("stats");
    assert_eq!((engine.load().n_in_flight, stats.n_queued), (0, 0), "seed {seed}, {n_refused} refused");
    assert!(stats.slots.iter().all(|slot| slot.state == "idle"), "seed {seed}: {stats:?}");
}

/// An engine with cells for each slot that computes a prompt of 1,300 tokens, in four seconds; and that prompt's generation.
async fn busy_with_a_long_prompt() -> (Engine, Generation) {
    let slow = ScriptedConfig { prompt_token_us: 3000, ..Default::default() };
    let engine = start(slow, |config| {
        (config.n_slots, config.kv_layout, config.n_ctx) = (4, KvLayout::Split, Some(4 * 4096));
    });
    let engine = engine.await;
    let mut request = chat(&"x".repeat(1300));
    request.output.max_tokens = Some(1);
    let mut long = engine.generate(request).expect("a place");
    while !matches!(long.next().await, Some(Event::Progress { n_computed: 1.., .. })) {}
    (engine, long)
}

#[tokio::test]
async fn who_asks_again_at_once_is_not_held_up_by_a_piece_of_a_long_prompt() {
    let (engine, mut long) = busy_with_a_long_prompt().await;
    // Steps from asking to the end of an answer of three tokens: its prompt, a token, a piece of the long prompt, a token.
    let mut steps = Vec::new();
    let all = async {
        loop {
            let before = engine.stats().await.expect("stats").n_decode_calls;
            let mut request = chat("hi");
            (request.output.max_tokens, request.cache_prompt) = (Some(3), false);
            collect(engine.generate(request).expect("a place")).await.2.expect("well");
            steps.push(engine.stats().await.expect("stats").n_decode_calls - before);
        }
    };
    let ended = async { while long.next().await.is_some() {} };
    tokio::select! { () = all => {}, () = ended => {} }
    // The last one may have had the engine for itself.
    steps.pop();
    assert!(steps.len() > 1, "{steps:?}: the long prompt left no room");
    // On a busy machine a request may come too late for the moment that the worker waits, but not each of them.
    assert!(steps.contains(&4), "{steps:?}");
}
