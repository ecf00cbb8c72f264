//! T-P12: clients that leave at any moment. Their slot is free after the step that runs and 50 ms, and nothing is sampled for
//! them after that.
//!
//! HEARTH_CANCELS sets how many leave; with it the times are held to their bound, on a machine that does nothing else.

use crate::support::engines::Marked;
use crate::support::{PATIENCE, Server, chat_body};
use hearth::engine::Load;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

/// Of a step that computes no prompt, and of one with as much of a prompt as a step may have.
const STEP: Duration = Duration::from_millis(10);
const N_BATCH: u32 = 256;
const PROMPT_TOKEN: Duration = Duration::from_micros(100);
const BOUND: Duration = Duration::from_millis(50);

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_p12_whoever_leaves_leaves_its_slot() {
    let said: Option<usize> = std::env::var("HEARTH_CANCELS").ok().and_then(|n| n.parse().ok());
    let marked = Marked::new();
    let server = Server::with(|setup| {
        setup.mode = marked.mode();
        (setup.engine.n_slots, setup.engine.n_ctx) = (2, Some(40_000));
        (setup.engine.n_batch, setup.engine.n_ubatch) = (N_BATCH, N_BATCH);
        let scripted = setup.scripted();
        scripted.step_us = u64::try_from(STEP.as_micros()).expect("a short time");
        scripted.prompt_token_us = u64::try_from(PROMPT_TOKEN.as_micros()).expect("a short time");
    })
    .await;
    let mut rng = StdRng::seed_from_u64(12);
    let (n_rounds, mut took, mut other) = (said.unwrap_or(16), Vec::new(), None);
    for n in 0..n_rounds {
        if n == n_rounds / 2 {
            // A step that another needs is computed to its end; before, one for nobody is broken off.
            other = Some(server.open_stream("/forever other").await);
        }
        let n_others = u32::from(other.is_some());
        let is_gone = |load: Load| load.n_in_flight == n_others && load.n_slots_free == 2 - n_others;
        // About a tenth of a second of prompt, and words without end.
        let text = format!("/forever {}", "word ".repeat(rng.random_range(1..300)));
        let body = chat_body(&text, json!({ "stream": n % 2 == 0, "cache_prompt": false })).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            server.address,
            body.len()
        );
        let mut socket = server.connect().await;
        socket.write_all((head + &body).as_bytes()).await.expect("the server reads");
        until("it never came", || server.engine.load().n_in_flight > n_others).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        assert_eq!(server.engine.load().n_in_flight, n_others + 1, "it has not ended by itself");
        let since = Instant::now();
        drop(socket);
        until("its slot is still taken", || is_gone(server.engine.load())).await;
        took.push(since.elapsed());
        let stats = async || server.engine.stats().await.expect("the engine lives");
        // The worker tells of its slots behind each step.
        let mut before = stats().await;
        while before.slots.iter().filter(|slot| slot.state != "idle").count() != n_others as usize {
            assert!(since.elapsed() < PATIENCE, "{:?}", before.slots);
            before = stats().await;
        }
        if other.is_none() {
            tokio::time::sleep(STEP * 3).await;
            assert_eq!(stats().await.tokens_generated, before.tokens_generated, "sampled for nobody");
        }
    }
    drop(other);
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!("{} left: slot free after {:?} (median), {:?} (99 %), {:?} (worst)", took.len(), at(50), at(99), at(100));
    let most = STEP + PROMPT_TOKEN * N_BATCH + BOUND;
    assert!(said.is_none() || at(99) <= most, "{:?} is more than {most:?}", at(99));
    server.stop().await;
}
