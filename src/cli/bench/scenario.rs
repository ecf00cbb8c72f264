//! What is measured. Each scenario sends its load to one server and gives figures in a fixed order.

use super::client::{Ask, Measured};
use super::report::{Figure, Sense};
use super::target::Target;
use super::text::words;
use anyhow::{Result, bail};
use clap::ValueEnum;
use futures_util::future::try_join_all;
use http::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The size of the load, where a scenario leaves it open.
pub(super) struct Load {
    pub words: usize,
    pub tokens: u32,
    /// Streams at once in the sweep.
    pub streams: Vec<u32>,
}

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// One stream alone
    Single,
    /// More and more streams at once
    Sweep,
    /// 16 requests that begin with the same 1,500 tokens, from cold
    Prefix,
    /// Short chats while prompts of 3,000 tokens are computed without pause
    Beside,
    /// An answer that repeats its prompt
    Copy,
    /// 8 streams under JSON Schemas
    Schema,
    /// 256 short texts embedded
    Embeddings,
}

impl Scenario {
    pub async fn run(self, target: &Target, load: &Load, seed: u64) -> Result<Vec<Figure>> {
        // Weights, threads and connections warm.
        if self != Self::Embeddings {
            target.client.stream(&ask(8, 4, seed ^ 0xA5A5)).await?;
        }
        match self {
            Self::Single => single(target, load, seed).await,
            Self::Sweep => sweep(target, load, seed).await,
            Self::Prefix => prefix(target, seed).await,
            Self::Beside => beside(target, seed).await,
            Self::Copy => copy(target, seed).await,
            Self::Schema => schema(target, seed).await,
            Self::Embeddings => embeddings(target, seed).await,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Single => "one stream",
            Self::Sweep => "streams at once",
            Self::Prefix => "16 requests share 1,500 tokens, from cold",
            Self::Beside => "short chats beside 3,000-token prompts",
            Self::Copy => "an answer that repeats its prompt",
            Self::Schema => "8 streams under a schema",
            Self::Embeddings => "256 texts embedded",
        }
    }
}

fn ask(n_words: usize, max_tokens: u32, seed: u64) -> Ask {
    Ask { prompt: words(n_words, seed), max_tokens, ..Ask::default() }
}

fn millis(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// The value below which `share` of all lie (nearest rank); NaN of none.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_sign_loss, reason = "a share of a length")]
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

fn firsts(measured: &[Measured]) -> Vec<f64> {
    measured.iter().map(|one| millis(one.first)).collect()
}

/// All at once; what each took, and the time until the last had ended.
async fn together(target: &Target, asks: &[Ask]) -> Result<(Vec<Measured>, Duration)> {
    let started = Instant::now();
    let measured = try_join_all(asks.iter().map(|ask| target.client.stream(ask))).await?;
    Ok((measured, started.elapsed()))
}

/// Words that make about `n` tokens of this model.
async fn words_of(target: &Target, n: usize, seed: u64) -> Result<usize> {
    let (short, long) = (ask(8, 1, seed ^ 0x11), ask(208, 1, seed ^ 0x12));
    let (short, long) = (target.client.stream(&short).await?.n_prompt, target.client.stream(&long).await?.n_prompt);
    if long <= short {
        bail!("the server does not tell how many tokens a prompt has (usage of a stream)");
    }
    Ok(n * 200 / (long - short) as usize)
}

async fn single(target: &Target, load: &Load, seed: u64) -> Result<Vec<Figure>> {
    let one = target.client.stream(&ask(load.words, load.tokens.max(128), seed)).await?;
    Ok(vec![
        Figure::new("decode", "token/s", Sense::More, one.decode_rate()),
        Figure::new("first token", "ms", Sense::Less, millis(one.first)),
    ])
}

/// Waves of requests at each width, all begun together.
async fn sweep(target: &Target, load: &Load, seed: u64) -> Result<Vec<Figure>> {
    /// A fast model's wave ends too soon to be measured alone.
    const TIME_MIN: Duration = Duration::from_secs(1);
    const WAVES_MAX: u64 = 16;
    let mut figures = Vec::new();
    for (at, n) in load.streams.iter().enumerate() {
        let (mut all, mut time, mut wave) = (Vec::new(), Duration::ZERO, 0);
        while wave < WAVES_MAX && (wave == 0 || time < TIME_MIN) {
            let seed = seed ^ (at as u64 + 1) << 40 ^ wave << 8;
            let asks: Vec<Ask> = (0..u64::from(*n)).map(|i| ask(load.words, load.tokens, seed ^ i << 20)).collect();
            let (measured, took) = together(target, &asks).await?;
            all.extend(measured);
            time += took;
            wave += 1;
        }
        let rate = all.iter().map(Measured::n_computed).sum::<f64>() / time.as_secs_f64();
        figures.push(Figure::of(*n, "computed: prompt + generated", "token/s", Sense::More, rate));
        figures.push(Figure::of(*n, "first token, median", "ms", Sense::Less, quantile(firsts(&all), 0.5)));
        figures.push(Figure::of(*n, "first token, 95 %", "ms", Sense::Less, quantile(firsts(&all), 0.95)));
    }
    Ok(figures)
}

async fn prefix(target: &Target, seed: u64) -> Result<Vec<Figure>> {
    const CLIENTS: u64 = 16;
    const SHARED: usize = 1500;
    const OWN: usize = 50;
    let n_words = words_of(target, SHARED, seed).await?;
    let system = words(n_words, seed ^ 0x77);
    let n_own = (OWN * n_words / SHARED).max(1);
    let asks: Vec<Ask> =
        (0..CLIENTS).map(|i| Ask { system: Some(system.clone()), ..ask(n_own, 64, seed ^ (i + 1) << 20) }).collect();
    let (measured, took) = together(target, &asks).await?;
    let n_prompt: u64 = measured.iter().map(|one| one.n_prompt).sum();
    let n_computed: u64 = measured.iter().map(Measured::n_new_prompt).sum();
    let Some(n_distinct) = n_prompt.checked_sub((CLIENTS - 1) * SHARED as u64) else {
        bail!("the server counts {n_prompt} prompt tokens where {CLIENTS} times {SHARED} were sent: it cuts prompts");
    };
    Ok(vec![
        Figure::new("requests", "1/s", Sense::More, CLIENTS as f64 / took.as_secs_f64()),
        Figure::new("first token, 95 %", "ms", Sense::Less, quantile(firsts(&measured), 0.95)),
        Figure::new("prompt tokens computed, of distinct", "×", Sense::Less, n_computed as f64 / n_distinct as f64),
    ])
}

async fn beside(target: &Target, seed: u64) -> Result<Vec<Figure>> {
    const LONG: usize = 3000;
    const CHATS: u64 = 4;
    // New requests begin for so long; those that run are waited for. A number of chats instead of a time would take one
    // that answers them at 7 s a token a quarter of an hour.
    const BEGINNING: Duration = Duration::from_secs(40);
    // The first prompt is ahead of the chats: a server that computes it in a few long steps answers those that came before it at
    // once, and no more of them in all this time.
    const AHEAD: Duration = Duration::from_secs(1);
    let n_words = words_of(target, LONG, seed).await?;
    let started = Instant::now();
    let prompts = async {
        let mut all = Vec::new();
        while started.elapsed() < BEGINNING {
            all.push(target.client.stream(&ask(n_words, 1, seed ^ (all.len() as u64 + 1) << 44)).await?);
        }
        anyhow::Ok(all)
    };
    let chat = |i: u64| async move {
        let mut all = Vec::new();
        tokio::time::sleep(AHEAD).await;
        while started.elapsed() < BEGINNING {
            let turn = all.len() as u64;
            all.push(target.client.stream(&ask(20, 16, seed ^ (i + 1) << 20 ^ (turn + 1) << 28)).await?);
        }
        anyhow::Ok(all)
    };
    let chats = try_join_all((0..CHATS).map(chat));
    let (prompts, chats): (Result<Vec<Measured>>, _) = futures_util::future::join(prompts, chats).await;
    let (prompts, chats) = (prompts?, chats?.concat());
    let n_tokens: f64 = prompts.iter().chain(&chats).map(Measured::n_computed).sum();
    Ok(vec![
        Figure::new("chats: first token, 95 %", "ms", Sense::Less, quantile(firsts(&chats), 0.95)),
        Figure::new("all: prompt + generated", "token/s", Sense::More, n_tokens / started.elapsed().as_secs_f64()),
    ])
}

async fn copy(target: &Target, seed: u64) -> Result<Vec<Figure>> {
    // So often that models which follow nothing else go on with it.
    let prompt = format!("{}. ", words(8, seed ^ 0x33)).repeat(30);
    let repeats = Ask { prompt, max_tokens: 128, is_greedy: true, ..Ask::default() };
    let free = Ask { max_tokens: 128, ..ask(240, 128, seed ^ 0x34) };
    let free = target.client.stream(&free).await?.decode_rate();
    let repeated = target.client.stream(&repeats).await?.decode_rate();
    let (first, again, same) = asked_again(target).await?;
    Ok(vec![
        Figure::new("decode, a text of its own", "token/s", Sense::More, free),
        Figure::new("decode, after a repeated passage", "token/s", Sense::More, repeated),
        Figure::new("of a text of its own", "×", Sense::More, repeated / free),
        Figure::new("decode, an answer told first", "token/s", Sense::More, first),
        Figure::new("decode, asked the same again", "token/s", Sense::More, again),
        Figure::new("of the answer told first", "×", Sense::More, again / first),
        Figure::new("said again, of the first answer's text", "×", Sense::More, same),
    ])
}

/// What is asked: the first of them of which the answer is said again. Which these are differs by CPU, as the rounding does.
const ASKED: [&str; 3] = ["Write a story about a brave knight", "Write a story about a lost key", "Tell me a story"];
/// An answer of which this much, from its beginning, is said again repeats its prompt.
const SAID_AGAIN: f64 = 0.95;

/// A chat that asks what it has asked before: a model that says the same again repeats its prompt. Tokens per second of both
/// answers, and how much of the first, from its beginning, the second says again.
async fn asked_again(target: &Target) -> Result<(f64, f64, f64)> {
    let mut best = (0.0, 0.0, -1.0);
    for question in ASKED {
        let ask = |turns| Ask {
            prompt: question.to_owned(),
            max_tokens: 256,
            is_greedy: true,
            turns: Some(turns),
            ..Ask::default()
        };
        let (answer, first) = target.client.told(&ask(Vec::new())).await?;
        let (same, again) = target.client.told(&ask(vec![(question.to_owned(), answer.clone())])).await?;
        let n_same = answer.bytes().zip(same.bytes()).take_while(|(one, other)| one == other).count();
        let same = n_same as f64 / answer.len().max(1) as f64;
        if same > best.2 {
            best = (first, again, same);
        }
        if same >= SAID_AGAIN {
            break;
        }
    }
    Ok(best)
}

async fn schema(target: &Target, seed: u64) -> Result<Vec<Figure>> {
    const STREAMS: u64 = 8;
    let mut rates = Vec::new();
    for (at, schema) in [None, Some(list_schema()), Some(large_schema())].into_iter().enumerate() {
        let asks: Vec<Ask> = (0..STREAMS)
            .map(|i| Ask { schema: schema.clone(), ..ask(20, 96, seed ^ (i + 1) << 20 ^ (at as u64 + 1) << 28) })
            .collect();
        // The first answer compiles the schema.
        together(target, &asks[..1]).await?;
        let (measured, took) = together(target, &asks).await?;
        rates.push(measured.iter().map(Measured::n_generated).sum::<f64>() / took.as_secs_f64());
    }
    Ok(vec![
        Figure::new("no schema", "token/s", Sense::More, rates[0]),
        Figure::new("a list of objects", "token/s", Sense::More, rates[1]),
        Figure::new("200 properties and enums", "token/s", Sense::More, rates[2]),
    ])
}

/// Long enough that no answer ends before its limit.
fn list_schema() -> Value {
    let item = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 24 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "kind": { "enum": ["north", "south", "east"] },
            "tags": { "type": "array", "maxItems": 3, "items": { "type": "string", "maxLength": 12 } },
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
    });
    json!({ "type": "array", "minItems": 200, "items": item })
}

fn large_schema() -> Value {
    let property = |i: usize| match i % 3 {
        // Bounded, or a model might write one string to the end.
        0 => json!({ "type": "string", "maxLength": 12 }),
        1 => json!({ "type": "integer", "minimum": 0, "maximum": 999 }),
        _ => json!({ "enum": [format!("value {i}"), format!("other value {i}"), format!("{i} is the third")] }),
    };
    let names: Vec<String> = (0..200).map(|i| format!("property_{i}")).collect();
    let properties: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(i, name)| (name.clone(), property(i))).collect();
    json!({ "type": "object", "properties": properties, "required": names, "additionalProperties": false })
}

async fn embeddings(target: &Target, seed: u64) -> Result<Vec<Figure>> {
    const TEXTS: u64 = 256;
    const CLIENTS: u64 = 8;
    let embed = |texts: Vec<String>| async move {
        let n = texts.len();
        let body = json!({ "model": target.client.model, "input": texts });
        let answer = target.client.json(Method::POST, "/v1/embeddings", Some(&body)).await?;
        let n_given = answer["data"].as_array().map_or(0, Vec::len);
        if n_given != n {
            bail!("{n_given} embeddings of {n} texts");
        }
        Ok(())
    };
    let texts = |round: u64| (0..TEXTS).map(move |i| words(12, seed ^ (i + 1) << 20 ^ round << 40)).collect::<Vec<_>>();
    embed(texts(1)[..4].to_vec()).await?;
    let started = Instant::now();
    embed(texts(2)).await?;
    let whole = TEXTS as f64 / started.elapsed().as_secs_f64();
    let singles = texts(3);
    let started = Instant::now();
    let client = |texts: Vec<String>| async move {
        for text in texts {
            embed(vec![text]).await?;
        }
        anyhow::Ok(())
    };
    try_join_all(singles.chunks((TEXTS / CLIENTS) as usize).map(|texts| client(texts.to_vec()))).await?;
    let single = TEXTS as f64 / started.elapsed().as_secs_f64();
    Ok(vec![
        Figure::new("in one request", "text/s", Sense::More, whole),
        Figure::new("one a request, 8 clients", "text/s", Sense::More, single),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!((quantile(values.clone(), 0.5), quantile(values, 0.95)), (10.0, 19.0));
        assert_eq!(quantile(vec![4.0], 0.95), 4.0);
        assert!(quantile(Vec::new(), 0.5).is_nan());
    }
}
