//! T-C5: what one tenant's requests left in the KV cache is nothing to another's: not in their answers, not in their
//! counts, and not in their times.

use crate::support::governed::Governed;
use crate::support::{MODEL, Server, chat_body, with};
use hearth::engine::config::{KvLayout, ModelSource};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PREFIX: usize = 2000;

/// Tokens that this seed alone begins with.
fn tokens(seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Of a vocabulary of a few hundred, without its first and special ones.
        10 + u32::try_from(state % 200).expect("a small number")
    };
    (0..PREFIX).map(|_| next()).collect()
}

/// A request as its client and its engine saw it.
struct Seen {
    /// To the first byte of the answer's text.
    first: Duration,
    n_cached: u64,
    n_computed: u64,
}

async fn ask(house: &Governed, key: &str, prompt: &[u32]) -> Seen {
    let computed = async || house.server.engine.stats().await.expect("the engine lives").prompt_tokens_computed;
    let before = computed().await;
    let usage = json!({ "include_usage": true });
    let body = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 1, "stream": true, "stream_options": usage });
    let started = Instant::now();
    let mut response = house.post(key, "/v1/completions", &body).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    let mut first = None;
    while let Some(chunk) = response.chunk().await.expect("the stream lives") {
        text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        first = first.or(text.contains("\"choices\":[{").then(|| started.elapsed()));
    }
    let usage = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    let usage: Vec<serde_json::Value> = usage.filter(|chunk: &serde_json::Value| chunk["usage"].is_object()).collect();
    let n_cached = usage[0]["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    Seen { first: first.expect("a first chunk"), n_cached, n_computed: computed().await - before }
}

/// The probability that two samples of the same size and the same source lie at least as far apart as these: the exact
/// distribution of the two-sample Kolmogorov-Smirnov statistic, P(D ≥ c/n) = 2 Σ (-1)^(j-1) C(2n, n-jc) / C(2n, n).
fn ks(a: &[Duration], b: &[Duration]) -> f64 {
    let n = a.len();
    assert_eq!(n, b.len());
    let below = |sample: &[Duration], at: Duration| sample.iter().filter(|time| **time <= at).count();
    let apart = a.iter().chain(b).map(|at| below(a, *at).abs_diff(below(b, *at))).max().unwrap_or(0);
    if apart == 0 {
        return 1.0;
    }
    let ratio = |c: usize| (1..=c).map(|i| (n - c + i) as f64 / (n + i) as f64).product::<f64>();
    let terms = (1..=n / apart).map(|j| if j % 2 == 1 { ratio(j * apart) } else { -ratio(j * apart) });
    (2.0 * terms.sum::<f64>()).clamp(0.0, 1.0)
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn ks_is_exact() {
    let times = |of: &[u64]| of.iter().map(|n| Duration::from_millis(*n)).collect::<Vec<_>>();
    // All six orders of the ranks but two are nearer.
    assert!((ks(&times(&[1, 2, 3]), &times(&[4, 5, 6])) - 0.1).abs() < 1e-12);
    // Tabled: n = 10, D = 0.7 → p = 0.0123.
    let (a, b): (Vec<u64>, Vec<u64>) = ((0..10).collect(), (7..17).collect());
    assert!((ks(&times(&a), &times(&b)) - 0.012_341).abs() < 1e-5);
    assert_eq!(ks(&times(&a), &times(&a)), 1.0);
}

/// The counts always; the times too with HEARTH_KS=1, which wants a machine with nothing else to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_of_another_tenant_is_as_new_as_any() {
    let is_timed = std::env::var_os("HEARTH_KS").is_some();
    let n = if is_timed { 200 } else { 12 };
    let house = Governed::with(|setup, _| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/tiny-llama.gguf");
        setup.engine.source = ModelSource::Gguf(path.into());
        (setup.engine.n_ctx, setup.engine.n_slots) = (Some(16_384), 2);
        setup.engine.kv_layout = KvLayout::Unified;
    })
    .await;
    let (a, _) = house.key(json!({})).await;
    let (b, _) = house.key(json!({})).await;
    let (c, _) = house.key(json!({})).await;
    let (mut others, mut fresh, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..n {
        let (prefix, new) = (tokens(round), tokens(10_000 + round));
        assert_eq!(ask(&house, &a, &prefix).await.n_cached, 0);
        // In turn, so that neither gains by its place.
        let (theirs, mine) = if round % 2 == 0 {
            let theirs = ask(&house, &b, &prefix).await;
            (theirs, ask(&house, &b, &new).await)
        } else {
            let mine = ask(&house, &b, &new).await;
            (ask(&house, &b, &prefix).await, mine)
        };
        for seen in [&theirs, &mine] {
            assert_eq!((seen.n_cached, seen.n_computed), (0, PREFIX as u64), "round {round}");
        }
        // It was there to be found all the while.
        let again = ask(&house, &a, &prefix).await;
        assert!(again.n_cached > PREFIX as u64 - 64 && again.n_computed < 64, "round {round}: {}", again.n_cached);
        others.push(theirs.first);
        fresh.push(mine.first);
        own.push(again.first);
    }
    // What has left the context for the host's memory in between is nobody else's either.
    for round in 0..n.min(12) {
        let seen = ask(&house, &c, &tokens(round)).await;
        assert_eq!((seen.n_cached, seen.n_computed), (0, PREFIX as u64), "round {round}");
    }
    if is_timed {
        let [p, p_own] = [ks(&others, &fresh), ks(&own, &fresh)];
        let [others, fresh, own] = [&others, &fresh, &own].map(|times| median(times));
        println!("n = {n}: another's {others:?}, fresh {fresh:?}, p = {p:.3}; own {own:?}, p = {p_own:.1e}");
        assert!(p > 0.01, "times tell another's prefix from a fresh one: p = {p}");
        assert!(p_own < 1e-6, "the measure is blind: p = {p_own}");
    }
    house.stop().await;
}

/// llama.cpp #27148: more conversations than slots, which idle, are evicted, saved and restored while others run. Every
/// token of a prompt shows in its answer, as the cells hold it. HEARTH_NONCES: how many requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_its_own_nonce_only() {
    const TENANTS: usize = 5;
    const TALKS: usize = 4;
    const CLIENTS: usize = 6;
    let n: usize = std::env::var("HEARTH_NONCES").map_or(1500, |n| n.parse().expect("HEARTH_NONCES: a number"));
    for layout in [KvLayout::Unified, KvLayout::Split] {
        let server = Server::with(|setup| {
            (0..TENANTS).for_each(|tenant| setup.key(&format!("k{tenant}")));
            setup.engine.kv_layout = layout;
            // Room for a few conversations of the twenty.
            (setup.engine.n_slots, setup.engine.n_ctx) = (2, Some(1024));
            setup.engine.saved_bytes = Some(6 << 10);
        })
        .await;
        let (server, next) = (Arc::new(server), Arc::new(AtomicUsize::new(0)));
        let clients = (0..CLIENTS).map(|_| {
            let (server, next) = (Arc::clone(&server), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n / 2 {
                        return;
                    }
                    // Neither in step with the slots nor with each other.
                    let (tenant, talk) = (i * 7 % TENANTS, i / 3 % TALKS);
                    let begins = format!("tenant {tenant} talk {talk} ").repeat(6);
                    let text = format!("{begins}nonce {:08x}", i.wrapping_mul(2_654_435_761) & 0xFFFF_FFFF);
                    let body = with(chat_body(&text, json!({})), json!({ "temperature": 0 }));
                    let request = server.client.post(server.url("/v1/chat/completions"));
                    let response = request.bearer_auth(format!("k{tenant}")).json(&body).send().await;
                    let answer = crate::support::Answer::of(response.expect("an answer")).await;
                    assert_eq!(answer.content(), text, "{layout:?}, request {i}");
                }
            })
        });
        for client in futures_util::future::join_all(clients).await {
            client.expect("every answer is its own");
        }
        let stats = server.engine.stats().await.expect("the engine lives");
        // It happened: conversations were found again, in the context and in the host's memory.
        assert!(stats.prompt_tokens_cached > 0 && stats.prompt_tokens_loaded > 0, "{stats:?}");
        println!("{layout:?}: {} found, {} loaded", stats.prompt_tokens_cached, stats.prompt_tokens_loaded);
    }
}
