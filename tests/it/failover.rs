//! A model here that fails, or takes too long, after it accepted a request and before it said anything: another answers.

use crate::support::cloud::{Act, Cloud, answer, head};
use crate::support::engines::Marked;
use crate::support::governed::{Governed, PRICE};
use crate::support::routed::{Came, End, Routed, chat, route, upstream};
use crate::support::{Events, MODEL, Setup, chat_body, read_until, with};
use hearth::engine::{Event, Failure};
use hearth::gateway::{Caller, Error, Hints, Price, RouteConfig, Running};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

async fn good() -> Cloud {
    Cloud::always(vec![Act::Send(answer(&["from", " afar"]).into())]).await
}

async fn dead() -> Cloud {
    Cloud::always(vec![Act::Send(head(500, ""))]).await
}

/// A model in a process of its own, and `cloud` behind it.
async fn house(marked: &Marked, cloud: &Cloud, change: impl FnOnce(&mut Setup)) -> Routed {
    let url = cloud.base_url();
    Routed::of(|setup| {
        setup.mode = marked.mode();
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![route("a", &[MODEL, "cloud"])];
        change(setup);
    })
    .await
}

/// Each token of a prompt takes so long that a test can come between.
fn slow_prefill(setup: &mut Setup) {
    setup.scripted().prompt_token_us = 2_000;
}

fn is_from_afar(came: &Came, how: &str) {
    assert_eq!((came.text.as_str(), came.served_by(), came.is_done()), ("from afar", "cloud", true), "{how}: {came:?}");
    assert_eq!(came.attempts(), [format!("{MODEL}:transient"), "cloud:ok".to_owned()], "{how}");
}

async fn until_working(routed: &Routed) {
    let since = Instant::now();
    while routed.engine.load().n_slots_free == 4 {
        assert!(since.elapsed() < crate::support::PATIENCE, "it never has a slot");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_engine_that_dies_in_a_prefill_is_replaced() {
    for (signal, stream) in [(Signal::KILL, true), (Signal::SEGV, false), (Signal::ABORT, true)] {
        let (marked, cloud) = (Marked::new(), good().await);
        let routed = house(&marked, &cloud, slow_prefill).await;
        let request = hearth::chat::ChatRequest { stream, ..chat("a", &"long ".repeat(200)) };
        let (came, ()) = tokio::join!(routed.ask(request), async {
            until_working(&routed).await;
            marked.signal(signal);
        });
        is_from_afar(&came, &format!("{signal:?}"));
        assert_eq!(came.model, "cloud", "the answer names who gave it");
        assert_eq!((came.usage.prompt_tokens, came.usage.completion_tokens), (11, 2));
        let page = routed.gateway.metrics_page().await;
        let line = format!("hearth_fallbacks_total{{from=\"{MODEL}\",reason=\"crashed\",to=\"cloud\"}} 1");
        assert!(page.contains(&line), "{page}");
    }
}

#[tokio::test]
async fn an_engine_that_hangs_is_killed_and_replaced() {
    let (marked, cloud) = (Marked::new(), good().await);
    let routed = house(&marked, &cloud, |setup| {
        slow_prefill(setup);
        setup.engine.hang_timeout = Some(Duration::from_secs(3));
    })
    .await;
    let first = marked.pids();
    let (came, stopped) = tokio::join!(routed.ask(chat("a", &"long ".repeat(350))), async {
        until_working(&routed).await;
        marked.signal(Signal::STOP);
        Instant::now()
    });
    is_from_afar(&came, "stopped");
    // A quarter less: it may have spoken last so long before.
    assert!(stopped.elapsed() >= Duration::from_millis(2250), "not before it is silent for long");
    crate::support::ready(&routed.engine).await;
    assert_ne!(marked.pids(), first, "a new process");
    // One that is only slow is left alone: its prompt takes longer than the timeout.
    let came = routed.ask(chat(MODEL, &"slow ".repeat(350))).await;
    assert_eq!((came.text.len(), came.served_by()), (1750, "local"));
    assert_eq!(routed.engine.load().n_restarts, 1);
}

#[tokio::test]
async fn once_there_is_content_nobody_else_is_asked() {
    let (marked, cloud) = (Marked::new(), good().await);
    let routed = house(&marked, &cloud, |setup| setup.scripted().step_us = 1000).await;
    let caller = Caller::default();
    let mut running: Running = routed.gateway.chat(&caller, chat("a", "/forever")).await.expect("it begins");
    while !matches!(running.next().await.expect("it lives").1, Event::Delta(_)) {}
    marked.signal(Signal::KILL);
    let end = loop {
        match running.next().await.expect("an ending").1 {
            Event::Failed(failure) => break failure,
            Event::Delta(_) => {}
            other => unreachable!("{other:?}"),
        }
    };
    assert!(matches!(end, Failure::Crashed { .. }), "{end:?}");
    assert!(running.next().await.is_none());
    assert_eq!((cloud.n_bytes(), caller.trace.told().attempts.len()), (0, 1));
}

#[tokio::test]
async fn what_may_not_leave_fails_here() {
    let (marked, cloud) = (Marked::new(), good().await);
    let routed = house(&marked, &cloud, |_| {}).await;
    let caller = Caller { hints: Hints { never_leaves: true, ..Default::default() }, ..Default::default() };
    let came = routed.ask_as(caller, chat("a", "/crash")).await;
    assert!(matches!(came.end, End::Failed(Failure::Crashed { .. })), "{came:?}");
    assert_eq!((cloud.n_bytes(), cloud.n_connections(), came.told.attempts.len()), (0, 0, 1));
}

#[tokio::test]
async fn where_nobody_can_the_last_failure_is_told_with_a_status() {
    let (marked, cloud) = (Marked::new(), dead().await);
    let routed = house(&marked, &cloud, |_| {}).await;
    let came = routed.ask(chat("a", "/crash")).await;
    assert!(matches!(came.end, End::Refused(Error::Upstream { status: Some(500), .. })), "{came:?}");
    assert_eq!(came.attempts(), [format!("{MODEL}:transient"), "cloud:transient".to_owned()]);
}

const THERE: Price = Price { input: 3_000_000, cached_input: 0, output: 11_000_000 };

#[tokio::test]
async fn heads_and_rows_tell_of_both() {
    let (marked, cloud) = (Marked::new(), good().await);
    let url = cloud.base_url();
    let mode = marked.mode();
    let house = Governed::with(move |setup, _| {
        setup.mode = mode;
        setup.gateway.price = PRICE;
        let routing = &mut setup.gateway.routing;
        routing.may_leave = true;
        let mut there = upstream("cloud", &url);
        there.price = THERE;
        routing.upstreams = vec![there];
        routing.routes = vec![route("a", &[MODEL, "cloud"])];
    })
    .await;
    let (key, _) = house.key(json!({ "egress": "allowed" })).await;
    for (n, stream) in [(1, true), (2, false)] {
        crate::support::ready(&house.server.engine).await;
        // Its own words each time: a request that was there at two crashes is refused.
        let body = chat_body(&format!("/crash {n}"), json!({ "model": "a", "stream": stream }));
        let response = house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
        let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(response.status(), 200);
        assert_eq!((header("x-hearth-served-by"), header("x-hearth-attempts")), ("cloud".into(), "2".into()));
        if stream {
            let events = Events::parse(&read_until(response, |_| false).await);
            assert!(events.is_done && events.text(0, "content") == "from afar");
            assert_eq!(events.chunks[0]["model"], "cloud");
        } else {
            let answer: serde_json::Value = response.json().await.expect("JSON");
            assert_eq!((&answer["model"], &answer["usage"]["completion_tokens"]), (&json!("cloud"), &json!(2)));
        }
        let rows = house.rows(n).await;
        let row = rows.last().expect("a row");
        assert_eq!((row.served_by.as_deref(), row.finish.as_str(), row.status), (Some("cloud"), "stop", 200));
        assert_eq!((row.in_tok, row.out_tok, row.usage_source.as_str()), (11, 2, "upstream"));
        assert_eq!(row.cost_nusd, THERE.cost(11, 0, 2), "what the engine broke is not charged");
        let id = row.id.clone();
        let tried = house.books.store().read(move |conn| {
            let sql = "SELECT target, class, cost_nusd FROM attempt WHERE request_id = ?1 ORDER BY n";
            let mut rows = conn.prepare(sql)?;
            let of = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let all: rusqlite::Result<Vec<(String, String, i64)>> = rows.query_map([id], of)?.collect();
            Ok(all?)
        });
        let cost = THERE.cost(11, 0, 2);
        let expected = [(MODEL.to_owned(), "transient".to_owned(), 0), ("cloud".to_owned(), "ok".to_owned(), cost)];
        assert_eq!(tried.await.expect("rows can be read"), expected);
    }
    house.is_verified().await;
    house.stop().await;
}

/// One slot, and a model that makes a token each 5 ms: `/count 150` takes 2.5 s, `/forever` 20 s.
fn narrow(setup: &mut Setup) {
    setup.scripted().step_us = 5_000;
    setup.engine.n_slots = 1;
}

fn bursting(after: Duration) -> impl FnOnce(&mut Setup) {
    move |setup| {
        narrow(setup);
        let route = route("a", &[MODEL, "cloud"]);
        setup.gateway.routing.routes = vec![RouteConfig { burst_after: Some(after), ..route }];
    }
}

#[tokio::test]
async fn a_wait_that_is_foreseen_bursts_and_a_shorter_one_does_not() {
    let (marked, cloud) = (Marked::new(), good().await);
    let routed = house(&marked, &cloud, bursting(Duration::from_millis(500))).await;
    // What it learns: an answer takes about 2.5 s.
    assert_eq!(routed.ask(chat("a", "/count 150")).await.served_by(), "local");
    let caller = Caller::default();
    let mut held = routed.gateway.chat(&caller, chat("a", "/forever")).await.expect("a slot");
    held.next().await;
    let since = Instant::now();
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!((came.served_by(), came.attempts()), ("cloud", vec![format!("{MODEL}:throttled"), "cloud:ok".into()]));
    assert!(since.elapsed() < Duration::from_secs(5), "at once");
    drop(held);
    let page = routed.gateway.metrics_page().await;
    assert!(page.contains(&format!("from=\"{MODEL}\",reason=\"overloaded\",to=\"cloud\"}} 1")), "{page}");
    let routed = house(&marked, &cloud, bursting(Duration::from_secs(60))).await;
    let before = cloud.n_bytes();
    assert_eq!(routed.ask(chat("a", "/count 20")).await.served_by(), "local");
    let (one, other) = tokio::join!(routed.ask(chat("a", "/count 20")), routed.ask(chat("a", "/count 20")));
    assert_eq!((one.served_by(), other.served_by(), cloud.n_bytes()), ("local", "local", before));
}

#[tokio::test]
async fn a_wait_that_nobody_foresaw_bursts_once_it_is_too_long() {
    let (marked, cloud) = (Marked::new(), good().await);
    let routed = house(&marked, &cloud, bursting(Duration::from_millis(500))).await;
    let caller = Caller::default();
    // Nothing has ended yet, so a wait can only be guessed: as short as this has run by now.
    let mut held = routed.gateway.chat(&caller, chat("a", "/forever")).await.expect("a slot");
    held.next().await;
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!((came.served_by(), came.attempts()), ("cloud", vec![format!("{MODEL}:throttled"), "cloud:ok".into()]));
    drop(held);
}

#[tokio::test]
async fn where_nobody_else_can_a_request_waits_all_the_same() {
    let (marked, cloud) = (Marked::new(), dead().await);
    let routed = house(&marked, &cloud, bursting(Duration::from_millis(500))).await;
    // Both ways into the line: by what was foreseen, and by what was not.
    for n in 0..2 {
        let caller = Caller::default();
        let mut held = routed.gateway.chat(&caller, chat("a", "/count 150")).await.expect("a slot");
        held.next().await;
        let (came, ()) = tokio::join!(routed.ask(chat("a", "patient")), async { while held.next().await.is_some() {} });
        assert_eq!((came.text.as_str(), came.served_by(), came.is_done()), ("patient", "local", true), "{n}: {came:?}");
        assert!(came.attempts().contains(&"cloud:transient".to_owned()), "{came:?}");
    }
}

#[tokio::test]
async fn a_client_that_waits_no_longer_is_told_at_once() {
    let server = crate::support::Server::with(|setup| {
        narrow(setup);
        setup.engine.max_wait = Some(Duration::from_secs(60));
    })
    .await;
    let since = Instant::now();
    assert_eq!(server.chat("/count 150", json!({})).await.status, 200);
    let took = since.elapsed();
    let stream = server.open_stream("/forever").await;
    let ask = |patience: &'static str| {
        let body = with(chat_body("x", json!({})), json!({}));
        let request = server.client.post(server.url("/v1/chat/completions")).header("x-request-timeout-ms", patience);
        async move { crate::support::Answer::of(request.json(&body).send().await.expect("an answer")).await }
    };
    let refused = ask("50").await;
    let (status, _, code, _) = refused.error();
    assert_eq!((status, code.as_deref()), (503, Some("server_is_overloaded")), "{}", refused.text);
    let seconds: u64 = refused.header("retry-after").parse().expect("a number");
    assert!((1..=took.as_secs() + 1).contains(&seconds), "{seconds} s, and an answer took {took:?}");
    let waits = tokio::spawn(ask("50000"));
    server.busy(2).await;
    drop(stream);
    assert_eq!(waits.await.expect("no panic").content(), "x");
    server.stop().await;
}
