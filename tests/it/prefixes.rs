//! Prefixes of prompts are computed once: shared while requests run together, saved when they leave the context, never
//! across partitions; for every kind of memory that llama.cpp keeps.

use crate::support::{MODEL, PATIENCE, Server};
use crate::tiny_model::{Answer, GENERATORS, RECURRENT, answer, greedy, path, start, tokens};
use hearth::chat::Prompt;
use hearth::engine::config::{KvLayout, ModelSource};
use hearth::engine::{Engine, EngineConfig, Event, GenerateRequest, Stats};
use serde_json::{Value, json};
use std::pin::pin;

/// Memories that know their present only, or slide: they go on from checkpoints.
fn has_checkpoints(model: &str) -> bool {
    model == "tiny/tiny-gemma2" || RECURRENT.contains(&model)
}

/// About `n` tokens that only this seed makes, and that are the same each time.
pub async fn words(engine: &Engine, n: usize, seed: usize) -> Vec<i32> {
    const WORDS: [&str; 8] = ["river", "house", "garden", "letter", "island", "window", "morning", "people"];
    let text: Vec<&str> = (0..n).map(|i| WORDS[(i * i + i * seed + seed * seed * 7 + i / 3) % WORDS.len()]).collect();
    let mut tokens = tokens(engine, &text.join(" ")).await;
    tokens.truncate(n);
    assert_eq!(tokens.len(), n, "a word is a token at least");
    tokens
}

pub fn asked(tokens: &[i32], max_tokens: u32) -> GenerateRequest {
    let mut request = greedy(Prompt::Tokens(tokens.to_vec()), max_tokens);
    request.sampling.ignore_eos = true;
    request.output.top_logprobs = Some(20);
    request
}

pub async fn ask(engine: &Engine, tokens: &[i32], max_tokens: u32) -> Answer {
    answer(engine, asked(tokens, max_tokens)).await.expect("an answer")
}

pub async fn stats(engine: &Engine) -> Stats {
    engine.stats().await.expect("stats")
}

/// The answer says what it says without anything that was computed before: likelihoods of its first token are those of
/// the same request with nothing cached, but for what the sizes of batches change (a text may part on that).
pub async fn check(engine: &Engine, tokens: &[i32], answer: &Answer, what: &str) {
    let mut request = asked(tokens, 4);
    request.cache_prompt = false;
    let cold = crate::tiny_model::answer(engine, request).await.expect("an answer");
    assert_eq!(cold.usage.cached_tokens, 0);
    // Control tokens are not shown, so the first that is may come later.
    let [found, expected] = [answer, &cold].map(|one| one.logprobs.first().expect("a token that is shown"));
    let all = &found.top;
    for likely in &expected.top[..3] {
        let found = all.iter().find(|other| other.id == likely.id).map_or(f32::NEG_INFINITY, |other| other.logprob);
        assert!((found - likely.logprob).abs() < 0.25, "{what}: {} became {found}", likely.logprob);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_run_together_compute_what_they_share_once() {
    const SHARED: usize = 300;
    const OWN: usize = 12;
    const CLIENTS: usize = 8;
    const WAIT_MIN: usize = 16;
    for model in GENERATORS {
        for layout in [KvLayout::Unified, KvLayout::Split] {
            let engine = start(model, |config| {
                (config.n_slots, config.kv_layout) = (8, layout);
                config.n_ctx = Some(if layout == KvLayout::Split { 8 * 512 } else { 2048 });
                // Several steps, or the first request would be done before the others came.
                config.n_batch = 64;
            })
            .await;
            let (prompts, answers) = at_once(&engine, CLIENTS, SHARED, OWN).await;
            let computed = stats(&engine).await.prompt_tokens_computed as usize;
            // A memory that can't go back is parted from where it was known that prompts part: at the latest by the
            // second request.
            let n_shared = if has_checkpoints(model) { 2 * SHARED } else { SHARED };
            let distinct = n_shared + CLIENTS * (OWN + 1);
            // Whoever comes when less is left than is worth a wait takes what is there, and computes the rest.
            let n_late = (CLIENTS - 1) * WAIT_MIN;
            assert!(computed * 10 <= distinct * 11 + 10 * n_late, "{model} {layout:?}: {computed} of {distinct}");
            let cached: Vec<usize> = answers.iter().map(|answer| answer.usage.cached_tokens as usize).collect();
            let n_cached = cached.iter().filter(|n| **n + WAIT_MIN >= SHARED).count();
            assert!(n_cached >= CLIENTS - 2, "{model} {layout:?}: {cached:?}");
            for (prompt, answer) in prompts.iter().zip(&answers).step_by(3) {
                check(&engine, prompt, answer, &format!("{model} {layout:?}")).await;
            }
        }
    }
}

/// Asks at once for so many clients, whose prompts begin alike; their prompts and answers.
async fn at_once(engine: &Engine, n_clients: usize, n_shared: usize, n_own: usize) -> (Vec<Vec<i32>>, Vec<Answer>) {
    let shared = words(engine, n_shared, 1).await;
    let mut prompts = Vec::new();
    for client in 0..n_clients {
        prompts.push([&shared[..], &words(engine, n_own, client + 2).await].concat());
    }
    let answers = futures_util::future::join_all(prompts.iter().map(|prompt| ask(engine, prompt, 8))).await;
    (prompts, answers)
}

/// Mark 1: "16 clients at once behind a prefix of 1,500 tokens compute at most a tenth more than what is distinct".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_at_once_compute_a_tenth_more_than_what_is_distinct_at_most() {
    const SHARED: usize = 1500;
    const OWN: usize = 50;
    const CLIENTS: usize = 16;
    for (model, layout) in [
        ("hearth-demo", KvLayout::Unified),
        ("tiny/tiny-llama", KvLayout::Unified),
        ("tiny/tiny-llama", KvLayout::Split),
    ] {
        let engine = start(model, |config| {
            (config.n_slots, config.kv_layout) = (16, layout);
            config.n_ctx = Some(if layout == KvLayout::Split { 16 * 2048 } else { 8192 });
        })
        .await;
        let (prompts, answers) = at_once(&engine, CLIENTS, SHARED, OWN).await;
        let computed = stats(&engine).await.prompt_tokens_computed;
        let told: u64 = answers.iter().map(|said| u64::from(said.usage.prompt_tokens - said.usage.cached_tokens)).sum();
        let distinct = (SHARED + CLIENTS * OWN) as u64;
        println!("{model} {layout:?}: {computed} computed, {told} told, {distinct} distinct");
        assert!(computed * 10 <= distinct * 11, "{model} {layout:?}: {computed} computed, {distinct} are distinct");
        assert!(told * 10 <= distinct * 11, "{model} {layout:?}: {told} told, {distinct} are distinct");
        for (prompt, answer) in prompts.iter().zip(&answers).step_by(5) {
            check(&engine, prompt, answer, &format!("{model} {layout:?}")).await;
        }
    }
}

/// Has the second prompt answered while the first is computed, and ends that one once it is waited for; whether it was.
async fn follow(engine: &Engine, prompts: &[Vec<i32>; 2]) -> (Answer, bool) {
    let n_before = stats(engine).await.n_awaited;
    let mut leader = engine.generate(asked(&prompts[0], 8)).expect("a place");
    while !matches!(leader.next().await.expect("it runs"), Event::Progress { n_computed: 1.., .. }) {}
    let mut follower = pin!(answer(engine, asked(&prompts[1], 8)));
    let is_awaited = async {
        while stats(engine).await.n_awaited == n_before {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut follower => return (answer.expect("an answer"), false),
        () = is_awaited => drop(leader),
    }
    (follower.await.expect("an answer"), true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_prefix_goes_on_when_the_one_that_computes_it_leaves() {
    const TRIES: usize = 5;
    for model in ["tiny/tiny-llama", "tiny/tiny-jamba", "tiny/tiny-gemma2"] {
        let engine = start(model, |config| {
            // Many steps, so that the follower comes while there is something to wait for.
            config.n_batch = 16;
            config.n_ctx = Some(4096);
        })
        .await;
        let (mut has_waited, mut seed) = (false, 0);
        // On a busy machine the leader may be done before the follower is there.
        while !has_waited {
            seed += 1;
            assert!(seed <= TRIES, "{model}: the follower came too late, {TRIES} times");
            let shared = words(&engine, 1900, seed).await;
            let prompts = [[&shared[..], &[5, 6, 7]].concat(), [&shared[..], &[7, 8, 9]].concat()];
            let one = follow(&engine, &prompts);
            let answer;
            (answer, has_waited) = tokio::time::timeout(PATIENCE, one).await.expect("nobody waits for ever");
            check(&engine, &prompts[1], &answer, model).await;
        }
    }
}

#[tokio::test]
async fn what_left_the_context_comes_back_without_being_computed() {
    for model in GENERATORS {
        for layout in [KvLayout::Unified, KvLayout::Split] {
            let engine = start(model, |config| (config.n_slots, config.kv_layout) = (1, layout)).await;
            let (first, second) = (words(&engine, 300, 1).await, words(&engine, 300, 2).await);
            let one = ask(&engine, &first, 4).await;
            ask(&engine, &second, 4).await;
            let before = stats(&engine).await;
            let again = ask(&engine, &first, 4).await;
            let after = stats(&engine).await;
            assert!(!one.text.is_empty());
            check(&engine, &first, &again, &format!("{model} {layout:?}")).await;
            let computed = after.prompt_tokens_computed - before.prompt_tokens_computed;
            assert!(computed <= 8, "{model} {layout:?}: {computed} computed");
            assert!(after.prompt_tokens_loaded >= 290 && after.saved_bytes > 0, "{model}: {after:?}");
            assert_eq!(u64::from(again.usage.cached_tokens) + computed, 300, "{model}");
        }
    }
}

#[tokio::test]
async fn nothing_is_saved_where_there_is_no_memory_for_it() {
    let engine = start("tiny/tiny-llama", |config| (config.n_slots, config.saved_bytes) = (1, Some(0))).await;
    let (first, second) = (words(&engine, 300, 1).await, words(&engine, 300, 2).await);
    for prompt in [&first, &second, &first] {
        assert_eq!(ask(&engine, prompt, 4).await.usage.cached_tokens, 0);
    }
    assert_eq!(stats(&engine).await.saved_bytes, 0);
}

#[tokio::test]
async fn each_turn_of_a_chat_computes_what_is_new_in_every_kind_of_memory() {
    const TURNS: usize = 20;
    for model in GENERATORS {
        let engine = start(model, |config| config.n_ctx = Some(2048)).await;
        let mut history = words(&engine, 60, 1).await;
        for turn in 0..TURNS {
            let before = stats(&engine).await.prompt_tokens_computed;
            let mut request = asked(&history, 6);
            request.output.with_tokens = true;
            let mut generation = engine.generate(request).expect("a place");
            let (mut written, mut usage) = (Vec::new(), None);
            while let Some(event) = generation.next().await {
                match event {
                    Event::Delta(delta) => written.extend(delta.tokens),
                    Event::Done(done) => usage = Some(done.usage),
                    other => assert!(!matches!(other, Event::Failed(_)), "{other:?}"),
                }
            }
            let usage = usage.expect("an ending");
            let computed = stats(&engine).await.prompt_tokens_computed - before;
            // What the user wrote, and the answer's last token, which nobody had to compute before.
            let new = if turn == 0 { 60 } else { 10 + 1 };
            assert!(computed <= new, "{model}, turn {turn}: {computed} computed, {usage:?}");
            assert_eq!(written.len(), 6, "{model}");
            history.extend(written);
            history.extend(words(&engine, 10, turn + 2).await);
        }
    }
}

/// Mark 4, as clients have it: the whole history each turn, as text, through the model's own template.
#[tokio::test]
async fn each_turn_of_a_chat_over_http_computes_what_is_new() {
    const TURNS: usize = 20;
    /// The answer's end, which nobody had to compute before, and what a text becomes other tokens of when it is read again.
    const RETOLD: i64 = 4;
    const QUESTIONS: [&str; 7] = [
        "Hello! My name is Anna.",
        "What is the capital of France?",
        "Tell me a joke.",
        "Is 7 greater than 3?",
        "Name three colors.",
        "How many letters are in banana?",
        "What is the opposite of hot?",
    ];
    let server = Server::with(|setup| {
        setup.engine = EngineConfig::new(ModelSource::Gguf(path("hearth-demo")));
        setup.engine.n_threads = Some(1);
    })
    .await;
    let mut messages = Vec::new();
    let (mut n_before, mut n_plain, mut n_thought) = ([0, 0], 0, 0);
    for turn in 0..TURNS {
        messages.push(json!({ "role": "user", "content": QUESTIONS[turn % QUESTIONS.len()] }));
        let body = json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 60 });
        let answer = server.post("/v1/chat/completions", body).await;
        messages.push(json!({ "role": "assistant", "content": answer.content() }));
        let usage = answer.json()["usage"].clone();
        let count = |path: &str| usage.pointer(path).and_then(Value::as_i64).expect("a count");
        let n_prompt = count("/prompt_tokens");
        let computed = n_prompt - count("/prompt_tokens_details/cached_tokens");
        // The template leaves out what was thought, and so the answer behind it stands elsewhere.
        let [n_prompt_before, n_known] = n_before;
        let was_plain = n_known > n_prompt_before || turn == 0;
        let new = n_prompt - if was_plain { n_known } else { n_prompt_before };
        assert!(computed <= new + RETOLD, "turn {turn}: {computed} computed, {new} are new: {usage}");
        *(if was_plain { &mut n_plain } else { &mut n_thought }) += 1;
        let n_thinking = count("/completion_tokens_details/reasoning_tokens");
        n_before = [n_prompt, if n_thinking > 0 { 0 } else { n_prompt + count("/completion_tokens") }];
    }
    assert!(n_plain >= 15 && n_thought > 0, "{n_plain} turns behind plain answers, {n_thought} behind thoughts");
}

#[tokio::test]
async fn a_turn_whose_answer_is_told_otherwise_begins_where_the_prompt_ended() {
    for model in GENERATORS {
        let engine = start(model, |config| config.n_ctx = Some(2048)).await;
        let prompt = words(&engine, 400, 1).await;
        // Longer than any window of these models.
        ask(&engine, &prompt, 200).await;
        let next = [&prompt[..], &words(&engine, 30, 2).await].concat();
        let before = stats(&engine).await.prompt_tokens_computed;
        let answer = ask(&engine, &next, 8).await;
        let computed = stats(&engine).await.prompt_tokens_computed - before;
        assert!(computed <= 30 + 8, "{model}: {computed}");
        check(&engine, &next, &answer, model).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_neither_shares_nor_waits_for_what_another_computes() {
    let engine = start("tiny/tiny-llama", |config| config.n_batch = 16).await;
    let prompt = words(&engine, 500, 1).await;
    let of = |partition: u64| {
        let mut request = asked(&prompt, 4);
        request.partition = partition;
        answer(&engine, request)
    };
    let (one, two) = tokio::join!(of(1), of(2));
    assert_eq!(one.expect("an answer").usage.cached_tokens, 0);
    assert_eq!(two.expect("an answer").usage.cached_tokens, 0);
    let after = stats(&engine).await;
    assert_eq!((after.prompt_tokens_computed, after.n_awaited), (1000, 0));
    assert_eq!(of(2).await.expect("an answer").usage.cached_tokens, 499);
}
