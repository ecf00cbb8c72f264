//! Requests of all kinds beside each other: each is answered as it is alone, but for what the shape of a batch changes in
//! llama.cpp.
//!
//! A row is rounded otherwise beside other rows, and where two tokens are as likely as each other the choice may tip over.
//! How far rounding moves a token is measured here with nothing for the scheduler to choose: one request on one slot that
//! echoes its prompt, computed a row at a time and many at once. Answers may part only where the two tokens are no further
//! apart than that.

use crate::prefixes::{stats, words};
use crate::support::{Answer, PATIENCE, Server, with};
use crate::tiny_model::{chat, greedy, path, start, tokens};
use hearth::chat::{ChatPrompt, Message, Prompt, Role, TokenLogprob, Usage};
use hearth::engine::config::{KvLayout, ModelSource};
use hearth::engine::{Engine, EngineConfig, Event, TokenizeRequest};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Instant;

/// Each of a text's tokens, with the likeliest that might have stood there.
async fn echoed(engine: &Engine, text: &[i32]) -> Vec<TokenLogprob> {
    let mut request = greedy(Prompt::Tokens(text.to_vec()), 0);
    (request.output.echo, request.output.top_logprobs, request.cache_prompt) = (true, Some(20), false);
    let mut generation = engine.generate(request).expect("a place");
    let mut entries = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            Event::Delta(delta) => entries.extend(delta.prompt),
            other => assert!(!matches!(other, Event::Failed(_)), "{other:?}"),
        }
    }
    assert_eq!(entries.len(), text.len());
    entries
}

/// The most that the log-probability of a token that may be chosen moves with the number of rows computed at once.
async fn rounding(model: &str, texts: &[Vec<i32>]) -> f32 {
    /// Only among these a choice tips over.
    const LIKELIEST: usize = 3;
    let mut seen: HashMap<(usize, usize, i32), (f32, f32)> = HashMap::new();
    for n_rows in [1, 6, 64, 512] {
        let engine = start(model, |config| {
            (config.n_batch, config.n_ubatch, config.n_slots, config.n_ctx) = (n_rows, n_rows, 1, Some(2048));
        })
        .await;
        for (i, text) in texts.iter().enumerate() {
            for (at, entry) in echoed(&engine, text).await.iter().enumerate().skip(1) {
                for likely in &entry.top[..LIKELIEST] {
                    let range = seen.entry((i, at, likely.id)).or_insert((likely.logprob, likely.logprob));
                    *range = (range.0.min(likely.logprob), range.1.max(likely.logprob));
                }
            }
        }
    }
    let margin = seen.values().map(|(least, most)| most - least).fold(0.0, f32::max);
    assert!(margin < 0.6, "{model}: {margin} is no rounding");
    margin
}

/// How much likelier one token is than the other where two answers part, `None` where they don't; behind an answer's last
/// token comes `end`.
async fn gap(engine: &Engine, prompt: &[i32], answers: [&[i32]; 2], end: i32) -> Option<f32> {
    let [one, other] = answers;
    let n_same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    if n_same == one.len().max(other.len()) {
        return None;
    }
    let pair = answers.map(|answer| answer.get(n_same).copied().unwrap_or(end));
    let text = [prompt, &one[..n_same], &pair[..1]].concat();
    let entry = echoed(engine, &text).await.pop().expect("a token");
    let logprob = |id: i32| entry.top.iter().find(|likely| likely.id == id).map_or(f32::NEG_INFINITY, |it| it.logprob);
    Some((logprob(pair[0]) - logprob(pair[1])).abs())
}

/// A request to `/completion`.
struct Ask {
    prompt: Vec<i32>,
    body: Value,
}

impl Ask {
    async fn new(engine: &Engine, prompt: Prompt, n_predict: u32, more: Value) -> Self {
        let request =
            TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false, partition: 0 };
        let prompt = engine.tokenize(request).await.expect("tokens").tokens;
        let body = json!({ "prompt": prompt, "n_predict": n_predict, "temperature": 0, "return_tokens": true });
        Self { prompt, body: with(body, more) }
    }
}

const PASSAGE: &str = "Lily had a red ball and a blue box. She put the ball in the box. ";

/// Sixteen of all kinds, every second one a stream.
async fn asks(engine: &Engine) -> Vec<Ask> {
    let text = |text: &str| Prompt::Text(text.to_owned());
    let in_shop = |question: &str| {
        let rules = format!("You work in a small shop. {}", PASSAGE.repeat(12));
        Prompt::Chat(ChatPrompt::new(vec![Message::new(Role::System, rules), Message::new(Role::User, question)]))
    };
    let person = "Extract name, age, city and job from the text and answer in JSON.\n\nAmir Popov is 54 years old and lives in \
        Vancouver. Amir works as a builder.";
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "job"], "properties": {
        "name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "job": {"enum": ["teacher", "builder", "driver"]}}});
    let all = [
        (text("Once upon a time"), 60),
        (text("One day, Tim and Tom went"), 150),
        // What repeats itself is drafted from what was said before.
        (text(&PASSAGE.repeat(6)), 96),
        (text(&"a b c ".repeat(30)), 120),
        (text(&PASSAGE.repeat(30)), 72),
        (chat("What is the capital of France?"), 64),
        (chat("How many letters are in banana?"), 96),
        (chat("please write a little story"), 200),
        (chat("Tell me 6 clothes"), 80),
        (chat("Repeat after me: bean snow doll hearth dance bean snow doll hearth dance"), 60),
        (chat("Convert to JSON with title, day, time and place: The game is on Friday at 5:15 in Bacermun."), 100),
        (in_shop("What is the capital of France?"), 24),
        (in_shop("Tell me a joke."), 40),
        (in_shop("Is 7 greater than 3?"), 56),
        (in_shop("What is the opposite of hot?"), 72),
    ];
    let mut asks = Vec::new();
    for (i, (prompt, n_predict)) in all.into_iter().enumerate() {
        // Texts go on where the model would end them, so that something repeats.
        let goes_on = matches!(prompt, Prompt::Text(_));
        let more = json!({ "stream": i % 2 == 0, "ignore_eos": goes_on });
        asks.push(Ask::new(engine, prompt, n_predict, more).await);
    }
    asks.push(Ask::new(engine, chat(person), 120, json!({ "json_schema": schema })).await);
    asks
}

/// As a client reads it.
struct Said {
    text: String,
    tokens: Vec<i32>,
    n_right: u64,
}

async fn say(server: &Server, ask: &Ask) -> Said {
    let request = server.client.post(server.url("/completion")).json(&ask.body).timeout(6 * PATIENCE);
    let answer = Answer::of(request.send().await.expect("an answer")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let parts: Vec<Value> = if ask.body["stream"] == true {
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("an event")).expect("JSON");
        answer.text.split_terminator("\n\n").map(event).collect()
    } else {
        vec![answer.json()]
    };
    let ids = parts.iter().filter_map(|part| part["tokens"].as_array()).flatten();
    Said {
        text: parts.iter().filter_map(|part| part["content"].as_str()).collect(),
        tokens: ids.map(|id| id.as_i64().and_then(|id| i32::try_from(id).ok()).expect("a token")).collect(),
        n_right: parts.last().and_then(|last| last["timings"]["draft_n_accepted"].as_u64()).unwrap_or(0),
    }
}

/// The demo model as `hearth serve` starts it, with room for 16.
async fn demo() -> Server {
    Server::with(|setup| {
        setup.engine = EngineConfig::new(ModelSource::Gguf(path("hearth-demo")));
        (setup.engine.n_slots, setup.engine.n_ctx, setup.engine.n_threads) = (16, Some(8192), Some(1));
    })
    .await
}

/// Mark 9: "greedy output at 16 mixed streams equals each request's output alone, within what batching itself changes".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_mixed_streams_say_what_each_says_alone() {
    let lone = demo().await;
    let asks = asks(&lone.engine).await;
    let lengths = || asks.iter().map(|ask| ask.prompt.len());
    assert!(
        asks.len() == 16 && lengths().min() <= Some(6) && lengths().max() >= Some(500),
        "{:?}",
        lengths().collect::<Vec<_>>()
    );
    let (mut alone, mut n_alone) = (Vec::new(), 0);
    for ask in &asks {
        let fresh = demo().await;
        alone.push(say(&fresh, ask).await);
        n_alone += stats(&fresh.engine).await.n_decode_calls;
    }
    let server = demo().await;
    let together = futures_util::future::join_all(asks.iter().map(|ask| say(&server, ask))).await;
    let n_together = stats(&server.engine).await.n_decode_calls;
    assert!(n_together * 2 < n_alone, "they took turns: {n_together} steps, {n_alone} alone");

    let written = |i: usize| [&asks[i].prompt[..], &alone[i].tokens].concat();
    let margin = rounding("hearth-demo", &[written(1), written(7), written(14), written(15)]).await;
    let end = *tokens(&lone.engine, "<|im_end|>").await.last().expect("a token");
    let mut n_same = 0;
    for (i, ask) in asks.iter().enumerate() {
        let answers = [&alone[i].tokens[..], &together[i].tokens];
        let Some(gap) = gap(&lone.engine, &ask.prompt, answers, end).await else {
            assert_eq!(alone[i].text, together[i].text, "request {i}: the same tokens");
            n_same += 1;
            continue;
        };
        println!("request {i} parts where tokens are {gap} apart: {:?}, {:?}", alone[i].text, together[i].text);
        assert!(
            gap <= margin,
            "request {i}: {gap} apart, rounding is {margin}: {:?}, {:?}",
            alone[i].text,
            together[i].text
        );
    }
    let n_right: [u64; 2] = [&alone, &together].map(|all| all.iter().map(|said| said.n_right).sum());
    println!(
        "{n_same} of 16 the same, rounding {margin}, drafted tokens that were right {n_right:?}, steps {n_together} and {n_alone}"
    );
    assert!(n_same >= 10, "{n_same} of 16 are the same");
    assert!(n_right.iter().all(|n| *n > 8), "drafts were to be tried: {n_right:?}");
}

/// A request at the engine's door.
struct Run {
    tokens: Vec<i32>,
    usage: Usage,
    first: Instant,
    last: Instant,
}

async fn run(engine: &Engine, (prompt, max_tokens): &(Vec<i32>, u32)) -> Run {
    let mut request = greedy(Prompt::Tokens(prompt.clone()), *max_tokens);
    (request.sampling.ignore_eos, request.output.with_tokens) = (true, true);
    let mut generation = engine.generate(request).expect("a place");
    let (mut tokens, mut first) = (Vec::new(), None);
    while let Some(event) = generation.next().await {
        match event {
            Event::Delta(delta) => {
                first.get_or_insert_with(Instant::now);
                tokens.extend(delta.tokens);
            }
            Event::Done(done) => {
                return Run { tokens, usage: done.usage, first: first.expect("a token"), last: Instant::now() };
            }
            other => assert!(!matches!(other, Event::Failed(_)), "{other:?}"),
        }
    }
    unreachable!("a generation has an ending")
}

/// "32 slots of which 2 are long must work": slots of equal size would have 128 cells each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_long_requests_run_beside_thirty_short_ones_in_one_pool() {
    const MODEL: &str = "tiny/tiny-llama";
    const CELLS: u32 = 4096;
    let pool = || {
        start(MODEL, |config| {
            (config.n_slots, config.n_ctx, config.kv_layout) = (32, Some(CELLS), KvLayout::Unified);
        })
    };
    let engine = pool().await;
    let mut all = Vec::new();
    for seed in [1, 2] {
        all.push((words(&engine, 850, seed).await, 250));
    }
    for i in 0..30 {
        all.push((words(&engine, 20 + 3 * i, 10 + i).await, 16 + i as u32));
    }
    let n_wanted: usize = all.iter().map(|(prompt, n)| prompt.len() + *n as usize).sum();
    assert!(n_wanted > CELLS as usize, "{n_wanted}: not all of them fit at once");
    let together = futures_util::future::join_all(all.iter().map(|one| run(&engine, one))).await;
    assert_eq!(stats(&engine).await.kv_cells_total, CELLS);
    for ((prompt, n), run) in all.iter().zip(&together) {
        let usage = run.usage;
        assert_eq!((usage.prompt_tokens as usize, usage.completion_tokens), (prompt.len(), *n), "{usage:?}");
    }
    let [one, other] = [&together[0], &together[1]];
    assert!(one.first < other.last && other.first < one.last, "the long ones run beside each other");
    let last = one.last.max(other.last);
    let n_beside = together[2..].iter().filter(|short| short.last < last).count();
    assert!(n_beside >= 20, "{n_beside} of 30 were done before the long ones: the others waited for them");

    let mut texts = Vec::new();
    for (one, beside) in all.iter().zip(&together).take(2) {
        let fresh = pool().await;
        let alone = run(&fresh, one).await;
        texts.push((one.0.clone(), alone.tokens, beside.tokens.clone(), fresh));
    }
    let written: Vec<Vec<i32>> = texts.iter().map(|(prompt, alone, ..)| [&prompt[..], alone].concat()).collect();
    let margin = rounding(MODEL, &written).await;
    for (prompt, alone, beside, fresh) in &texts {
        let gap = gap(fresh, prompt, [alone, beside], -1).await;
        println!("rounding {margin}, parted at {gap:?}");
        assert!(gap.is_none_or(|gap| gap <= margin), "{gap:?} apart, rounding is {margin}");
    }
}
