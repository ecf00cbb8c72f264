//! Several equal targets of one alias, what is known of their health, and answers that are read on for their count.

use crate::support::cloud::{Act, Cloud, DONE, SSE, Seen, answer, finish, head, text, usage};
use crate::support::governed::Governed;
use crate::support::routed::{Routed, chat, route, upstream};
use crate::support::{PATIENCE, Setup, chat_body};
use hearth::gateway::{BreakerState, HealthConfig, Price, RouteConfig};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn answering(after: Duration) -> Vec<Act> {
    vec![Act::Wait(after), Act::Send(answer(&["well"]).into())]
}

async fn equals(clouds: &[&Cloud], change: impl FnOnce(&mut Setup)) -> Routed {
    let urls: Vec<String> = clouds.iter().map(|cloud| cloud.base_url()).collect();
    Routed::of(|setup| {
        let named = |(n, url): (usize, &String)| upstream(&format!("box{n}"), url);
        setup.gateway.routing.upstreams = urls.iter().enumerate().map(named).collect();
        let others = (1..urls.len()).map(|n| format!("box{n}")).collect();
        setup.gateway.routing.routes = vec![RouteConfig { equals: others, ..route("a", &["box0"]) }];
        change(setup);
    })
    .await
}

#[tokio::test]
async fn the_faster_of_two_gets_nearly_all() {
    let (fast, slow) =
        (Cloud::always(answering(Duration::ZERO)).await, Cloud::always(answering(Duration::from_secs(1))).await);
    let routed = equals(&[&slow, &fast], |_| {}).await;
    for _ in 0..40 {
        assert!(routed.ask(chat("a", "x")).await.is_done());
    }
    assert_eq!(fast.n_requests() + slow.n_requests(), 40, "each is asked of one only");
    assert!(slow.n_requests() <= 4, "{}", slow.n_requests());
}

#[tokio::test]
async fn requests_at_once_are_spread() {
    let (one, other) = (
        Cloud::always(answering(Duration::from_millis(500))).await,
        Cloud::always(answering(Duration::from_millis(500))).await,
    );
    let routed = Arc::new(equals(&[&one, &other], |_| {}).await);
    let asked = (0..40).map(|_| {
        let routed = Arc::clone(&routed);
        async move { routed.ask(chat("a", "x")).await.is_done() }
    });
    assert!(futures_util::future::join_all(asked).await.into_iter().all(|is_done| is_done));
    let counts = (one.n_requests(), other.n_requests());
    assert!(counts.0 >= 12 && counts.1 >= 12, "{counts:?}");
}

#[tokio::test]
async fn a_sick_one_of_two_fails_no_request_and_is_left_alone() {
    let (sick, well) =
        (Cloud::always(vec![Act::Send(head(500, ""))]).await, Cloud::always(answering(Duration::ZERO)).await);
    let routed = equals(&[&sick, &well], |_| {}).await;
    for _ in 0..60 {
        let came = routed.ask(chat("a", "x")).await;
        assert_eq!((came.text.as_str(), came.served_by()), ("well", "box1"));
    }
    let breaker = routed.gateway.upstreams()[0].breaker;
    assert!(sick.n_requests() <= 5 && (sick.n_requests() < 5) == (breaker == BreakerState::Closed), "{breaker:?}");
}

/// Answers its health by `is_well`, and every chat.
async fn probed(is_well: Arc<AtomicBool>) -> Cloud {
    Cloud::of(move |_, seen: &Seen| match seen.head.starts_with("GET /v1/models ") {
        true => vec![Act::Send(head(if is_well.load(Ordering::SeqCst) { 200 } else { 503 }, ""))],
        false => answering(Duration::ZERO),
    })
    .await
}

#[tokio::test]
async fn one_that_says_it_is_not_well_is_not_asked_until_it_is() {
    let is_well = Arc::new(AtomicBool::new(false));
    let cloud = probed(Arc::clone(&is_well)).await;
    let health = HealthConfig { every: Duration::from_millis(20), ..Default::default() };
    let asked = health.clone();
    let routed = equals(&[&cloud], move |setup| setup.gateway.routing.upstreams[0].health = Some(asked)).await;
    let until = async |expected: bool| {
        let since = Instant::now();
        while routed.gateway.upstreams()[0].is_well != Some(expected) {
            assert!(since.elapsed() < PATIENCE, "never {expected}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(false).await;
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!((came.attempts(), came.is_done()), (vec!["box0:transient".to_owned()], false));
    is_well.store(true, Ordering::SeqCst);
    until(true).await;
    assert_eq!(routed.ask(chat("a", "x")).await.text, "well");
    // Where nothing may leave, nobody is asked how they are.
    let untouched = probed(Arc::new(AtomicBool::new(true))).await;
    let stays = equals(&[&untouched], move |setup| {
        setup.gateway.routing.may_leave = false;
        setup.gateway.routing.upstreams[0].health = Some(health);
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((untouched.n_connections(), stays.gateway.upstreams()[0].is_well), (0, Some(true)));
}

#[tokio::test]
async fn a_probe_closes_a_breaker_when_it_is_time_to_try() {
    let is_well = Arc::new(AtomicBool::new(true));
    let n_bad = 5;
    let cloud = Cloud::of(move |n, seen: &Seen| match seen.head.starts_with("GET") {
        true => vec![Act::Send(head(200, ""))],
        false if n < 1000 && is_well.load(Ordering::SeqCst) => vec![Act::Send(head(500, ""))],
        false => answering(Duration::ZERO),
    })
    .await;
    let routed = equals(&[&cloud], |setup| {
        let there = &mut setup.gateway.routing.upstreams[0];
        there.health = Some(HealthConfig { every: Duration::from_millis(20), ..Default::default() });
        there.breaker.open_for = Duration::from_secs(1);
    })
    .await;
    for _ in 1..n_bad {
        assert!(!routed.ask(chat("a", "x")).await.is_done());
    }
    let since = Instant::now();
    assert!(!routed.ask(chat("a", "x")).await.is_done());
    assert_eq!(routed.gateway.upstreams()[0].breaker, BreakerState::Open);
    while routed.gateway.upstreams()[0].breaker != BreakerState::Closed {
        assert!(since.elapsed() < PATIENCE, "no request came, and the probes found it well");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // By chance up to a fifth less.
    assert!(since.elapsed() >= Duration::from_millis(800), "not before its time");
}

const THERE: Price = Price { input: 3_000_000, cached_input: 0, output: 11_000_000 };

#[tokio::test]
async fn an_answer_whose_client_has_left_is_read_on_for_its_count() {
    let script = vec![
        Act::Send((SSE.to_owned() + &text("x")).into()),
        Act::Wait(Duration::from_secs(2)),
        Act::Send((text("yz") + &finish("stop") + &usage(7, 5) + DONE).into()),
    ];
    let cloud = Cloud::always(script).await;
    for (drains, expected) in [(true, ("upstream", 7, 5)), (false, ("estimated", 0, 1))] {
        let url = cloud.base_url();
        let house = Governed::with(move |setup, _| {
            let mut there = upstream("cloud", &url);
            (there.price, there.drains) = (THERE, drains);
            let routing = &mut setup.gateway.routing;
            (routing.may_leave, routing.upstreams, routing.routes) = (true, vec![there], vec![route("a", &["cloud"])]);
        })
        .await;
        let (key, _) = house.key(json!({ "egress": "allowed" })).await;
        let body = chat_body("hi", json!({ "model": "a", "stream": true }));
        let mut response = house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
        assert!(response.chunk().await.expect("it lives").is_some());
        drop(response);
        let rows = tokio::time::timeout(PATIENCE, house.rows(1)).await.expect("its row");
        let row = &rows[0];
        let (source, in_tok, out_tok) = expected;
        assert_eq!((row.finish.as_str(), row.usage_source.as_str(), row.out_tok), ("aborted", source, out_tok));
        assert!(!drains || row.in_tok == in_tok, "{}", row.in_tok);
        assert_eq!(row.cost_nusd, THERE.cost(row.in_tok, 0, out_tok));
        let since = Instant::now();
        while cloud.n_left() != u64::from(!drains) {
            assert!(since.elapsed() < PATIENCE, "where it isn't, the connection is closed before the answer ends");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.stop().await;
    }
}
