//! Who answers when: the cache, a model here, other servers; and what never leaves.

use crate::support::cloud::{Act, Cloud, SSE, answer, event, head, kept_answer, role, text};
use crate::support::routed::{End, Routed, chat, route, upstream};
use crate::support::{MODEL, PATIENCE, Server, Setup, chat_body};
use hearth::dialect::remote::Kind;
use hearth::gateway::{
    BreakerState, Caller, Class, Condition, Error, Hints, Principal, RetryConfig, RouteConfig, UsageSource,
};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn good() -> Vec<Act> {
    vec![Act::Send(answer(&["from", " afar"]).into())]
}

/// A model here, and `cloud` behind it.
async fn burst(cloud: &Cloud, change: impl FnOnce(&mut Setup)) -> Routed {
    let url = cloud.base_url();
    Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![route("a", &[MODEL, "cloud"])];
        change(setup);
    })
    .await
}

fn loading(setup: &mut Setup) {
    setup.scripted().load_ms = 600_000;
    setup.while_loading = true;
}

fn hinted(hints: Hints) -> Caller {
    Caller { hints, ..Default::default() }
}

#[tokio::test]
async fn own_hardware_comes_first_and_others_only_when_it_cannot() {
    let cloud = Cloud::always(good()).await;
    let routed = burst(&cloud, |_| {}).await;
    for n in 0..300 {
        let came = routed.ask(chat("a", "here")).await;
        assert_eq!((came.text.as_str(), came.served_by(), came.is_done()), ("here", "local", true), "{n}");
    }
    assert_eq!(cloud.n_bytes(), 0, "an idle model here, and no call there");
    let routed = burst(&cloud, loading).await;
    let came = routed.ask(chat("a", "here")).await;
    assert_eq!((came.text.as_str(), came.served_by(), came.model.as_str()), ("from afar", "cloud", "cloud"));
    assert_eq!(came.attempts(), ["cloud:ok"]);
    assert_eq!((came.usage.prompt_tokens, came.usage.completion_tokens), (11, 2));
    assert_eq!(came.told.attempts[0].source, UsageSource::Upstream);
    let sent = cloud.last();
    assert_eq!((sent.json()["model"].clone(), sent.header("x-hearth-hop")), (json!("there"), Some("1")));
    let page = routed.gateway.metrics_page().await;
    for line in [
        "hearth_fallbacks_total{from=\"Scripted-1\",reason=\"not_ready\",to=\"cloud\"} 1",
        "hearth_upstream_requests_total{class=\"ok\",target=\"cloud\"} 1",
        "hearth_upstream_breaker_state{target=\"cloud\"} 0",
        "hearth_generation_tokens_total{model=\"cloud\"} 2",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_full_queue_bursts() {
    let cloud = Cloud::always(good()).await;
    let routed = burst(&cloud, |setup| {
        setup.scripted().step_us = 1000;
        (setup.engine.n_slots, setup.engine.n_queue) = (1, 1);
    })
    .await;
    let caller = Caller::default();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(routed.gateway.chat(&caller, chat(MODEL, "/forever")).await.expect("a place"));
    }
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!((came.served_by(), came.attempts()), ("cloud", vec![format!("{MODEL}:throttled"), "cloud:ok".into()]));
    assert!(matches!(routed.ask(chat(MODEL, "x")).await.end, End::Refused(Error::Engine(_))), "no alias, no burst");
}

#[tokio::test]
async fn where_egress_is_never_nothing_is_sent() {
    let cloud = Cloud::always(good()).await;
    let never = |change: fn(&mut Setup)| {
        burst(&cloud, move |setup| {
            loading(setup);
            change(setup);
        })
    };
    let header = hinted(Hints { never_leaves: true, ..Default::default() });
    for (name, routed, caller) in [
        ("the server", never(|setup| setup.gateway.routing.may_leave = false).await, Caller::default()),
        ("the alias", never(|setup| setup.gateway.routing.routes[0].never_leaves = true).await, Caller::default()),
        ("the model", never(|setup| setup.gateway.routing.kept = vec![MODEL.into()]).await, Caller::default()),
        ("the request", never(|_| {}).await, header.clone()),
        ("three hops", never(|_| {}).await, hinted(Hints { hop: 3, ..Default::default() })),
    ] {
        let came = routed.ask_as(caller, chat("a", "secret")).await;
        assert!(matches!(came.end, End::Refused(Error::Engine(_))), "{name}: the model's own refusal: {came:?}");
    }
    let routed = never(|setup| setup.gateway.routing.routes = vec![route("a", &["cloud"])]).await;
    assert_eq!(routed.ask_as(header, chat("a", "secret")).await.end, End::Refused(Error::Stays));
    assert_eq!((cloud.n_bytes(), cloud.n_connections()), (0, 0));
    let caller = hinted(Hints { hop: 2, ..Default::default() });
    assert_eq!(routed.ask_as(caller, chat("a", "x")).await.served_by(), "cloud", "and where it is allowed it is sent");
    assert_eq!(cloud.last().header("x-hearth-hop"), Some("3"));
}

#[tokio::test]
async fn rules_choose_by_size_and_header() {
    let (cloud, other) = (Cloud::always(good()).await, Cloud::always(good()).await);
    let (cloud_url, other_url) = (cloud.base_url(), other.base_url());
    let routed = Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("cloud", &cloud_url), upstream("other", &other_url)];
        let rule = |when: &str, to: &str| (Condition::parse(when).expect(when), to.to_owned());
        let rules = vec![rule("prompt_tokens > 100", "cloud"), rule("header.x-hearth-task == 'reasoning'", "other")];
        setup.gateway.routing.routes = vec![RouteConfig { rules, ..route("a", &[MODEL]) }];
    })
    .await;
    let task =
        |task: &str| hinted(Hints { headers: vec![("x-hearth-task".into(), task.into())], ..Default::default() });
    assert_eq!(routed.ask(chat("a", "hi")).await.served_by(), "local");
    assert_eq!(routed.ask(chat("a", &"word ".repeat(100))).await.served_by(), "cloud");
    assert_eq!(routed.ask_as(task("reasoning"), chat("a", "hi")).await.served_by(), "other");
    assert_eq!(routed.ask_as(task("chat"), chat("a", "hi")).await.served_by(), "local");
}

#[tokio::test]
async fn the_breaker_opens_at_the_fifth_failure_and_lets_one_probe_through() {
    let dead = Cloud::of(|n, _| if n < 6 { vec![Act::Send(head(500, ""))] } else { good() }).await;
    let spare = Cloud::always(good()).await;
    let routed = Routed::of(|setup| {
        let mut first = upstream("dead", &dead.base_url());
        first.breaker.open_for = Duration::from_secs(2);
        setup.gateway.routing.upstreams = vec![first, upstream("spare", &spare.base_url())];
        setup.gateway.routing.routes = vec![route("a", &["dead", "spare"])];
    })
    .await;
    let state = || routed.gateway.upstreams()[0].breaker;
    let mut since = Instant::now();
    for n in 0..5 {
        assert_eq!((state(), dead.n_requests()), (BreakerState::Closed, n));
        since = Instant::now();
        assert_eq!(routed.ask(chat("a", "x")).await.attempts(), ["dead:transient", "spare:ok"]);
    }
    assert_eq!(state(), BreakerState::Open);
    // Open for 1.6 s to 2.4 s: what is asked later than that may be a try.
    for n in 0..20 {
        let came = routed.ask(chat("a", "x")).await;
        if since.elapsed() >= Duration::from_millis(1600) {
            assert!(n > 0, "no answer within {:?}", since.elapsed());
            break;
        }
        assert_eq!(came.served_by(), "spare");
        assert_eq!(dead.n_requests(), 5, "nothing reaches a target that is taken to be dead");
    }
    // Then one try, which fails, and twice as long.
    let since = Instant::now();
    while dead.n_requests() == 5 && since.elapsed() < PATIENCE {
        routed.ask(chat("a", "x")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((dead.n_requests(), state()), (6, BreakerState::Open));
    let since = Instant::now();
    while state() != BreakerState::Closed && since.elapsed() < PATIENCE {
        routed.ask(chat("a", "x")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(dead.n_requests(), 7, "the second probe was well");
    assert_eq!(routed.ask(chat("a", "x")).await.attempts(), ["dead:ok"]);
    assert_eq!(routed.gateway.upstreams()[0].last_class, Some(Class::Ok));
}

#[tokio::test]
async fn retries_of_a_dead_target_stay_within_their_budget() {
    let dead = Cloud::always(vec![Act::Send(head(502, ""))]).await;
    let routed = Routed::of(|setup| {
        let mut first = upstream("dead", &dead.base_url());
        first.retry = RetryConfig { attempts: 3, base: Duration::from_micros(10), ..Default::default() };
        first.breaker.consecutive_failures = u32::MAX;
        first.breaker.min_samples = u32::MAX;
        setup.gateway.routing.upstreams = vec![first];
        setup.gateway.routing.routes = vec![route("a", &["dead"])];
    })
    .await;
    const REQUESTS: u64 = 500;
    let mut n_most = 0;
    for _ in 0..REQUESTS {
        let came = routed.ask(chat("a", "x")).await;
        assert!(matches!(came.end, End::Refused(Error::Upstream { class: Class::Transient, status: Some(502), .. })));
        n_most = n_most.max(came.told.attempts.len());
    }
    let sent = dead.n_requests();
    println!("{sent} attempts for {REQUESTS} requests");
    // One retry a second is always allowed, so a slow machine has some more.
    assert!(sent > REQUESTS && sent <= REQUESTS * 12 / 10 + 10, "{sent}");
    assert_eq!(n_most, 3);
    // At the same target again, and well.
    let shaky = Cloud::of(|n, _| if n == 0 { vec![Act::Reset] } else { good() }).await;
    let routed = Routed::of(|setup| {
        let mut first = upstream("shaky", &shaky.base_url());
        first.retry.attempts = 2;
        setup.gateway.routing.upstreams = vec![first];
        setup.gateway.routing.routes = vec![route("a", &["shaky"])];
    })
    .await;
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!((came.attempts(), came.text.as_str()), (vec!["shaky:transient".into(), "shaky:ok".into()], "from afar"));
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept_where_there_is_no_other() {
    let busy =
        Cloud::of(|n, _| if n == 0 { vec![Act::Send(head(429, "retry-after-ms: 80\r\n"))] } else { good() }).await;
    let routed = Routed::of(|setup| {
        let mut first = upstream("busy", &busy.base_url());
        first.retry.attempts = 2;
        setup.gateway.routing.upstreams = vec![first];
        setup.gateway.routing.routes = vec![route("a", &["busy"])];
    })
    .await;
    let since = Instant::now();
    let came = routed.ask(chat("a", "x")).await;
    assert_eq!(came.attempts(), ["busy:throttled", "busy:ok"]);
    assert!(since.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn the_clients_patience_is_the_deadline_of_all_attempts() {
    let slow = Cloud::always(vec![Act::Hang]).await;
    let routed = Routed::of(|setup| {
        let mut first = upstream("slow", &slow.base_url());
        first.retry.attempts = 5;
        first.timeouts.first_byte = Duration::from_millis(350);
        setup.gateway.routing.upstreams = vec![first];
        setup.gateway.routing.routes = vec![route("a", &["slow"])];
    })
    .await;
    let since = Instant::now();
    let patience = Some(Duration::from_secs(1));
    let came = routed.ask_as(hinted(Hints { patience, ..Default::default() }), chat("a", "x")).await;
    assert!(matches!(came.end, End::Refused(Error::Upstream { .. })), "{came:?}");
    assert!((2..=3).contains(&slow.n_requests()), "{}", slow.n_requests());
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    // Also of a stream that has begun.
    let forever: Vec<Act> = std::iter::once(Act::Send(SSE.into()))
        .chain((0..400).flat_map(|_| [Act::Send(text("x").into()), Act::Wait(Duration::from_millis(10))]))
        .collect();
    let endless = Cloud::always(forever).await;
    let routed = Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("endless", &endless.base_url())];
        setup.gateway.routing.routes = vec![route("a", &["endless"])];
    })
    .await;
    let came = routed.ask_as(hinted(Hints { patience, ..Default::default() }), chat("a", "x")).await;
    assert!(!came.text.is_empty() && matches!(came.end, End::Failed(_)), "{came:?}");
    assert_eq!(came.told.attempts[0].class, Class::Cancelled);
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_upstreams_connection() {
    let cloud = Cloud::always(vec![Act::Send((SSE.to_owned() + &text("x")).into()), Act::Hang]).await;
    let routed = Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("cloud", &cloud.base_url())];
        setup.gateway.routing.routes = vec![route("a", &["cloud"])];
    })
    .await;
    let caller = Caller::default();
    let mut running = routed.gateway.chat(&caller, chat("a", "x")).await.expect("it begins");
    assert!(running.next().await.is_some());
    assert_eq!((cloud.n_left(), routed.gateway.upstreams()[0].n_in_flight), (0, 1));
    drop(running);
    let since = Instant::now();
    while cloud.n_left() == 0 && since.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((cloud.n_left(), routed.gateway.upstreams()[0].n_in_flight), (1, 0));
    let attempt = &caller.trace.told().attempts[0];
    assert_eq!(
        (attempt.class, attempt.source, attempt.usage.completion_tokens),
        (Class::Cancelled, UsageSource::Estimated, 1)
    );
}

#[tokio::test]
async fn connections_are_used_again() {
    let cloud = Cloud::always(vec![Act::Send(kept_answer(&["a", "b"]))]).await;
    let routed = Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("cloud", &cloud.base_url())];
        setup.gateway.routing.routes = vec![route("a", &["cloud"])];
    })
    .await;
    for _ in 0..20 {
        assert_eq!(routed.ask(chat("a", "x")).await.text, "ab");
    }
    assert_eq!(cloud.n_requests(), 20);
    assert!(cloud.n_connections() <= 4, "{}", cloud.n_connections());
}

#[tokio::test]
async fn a_whole_answer_that_is_not_sure_is_asked_of_the_next_and_both_are_counted() {
    let cloud = Cloud::always(good()).await;
    let at_least = |least: f32| {
        let url = cloud.base_url();
        Routed::of(move |setup| {
            setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
            setup.gateway.routing.routes =
                vec![RouteConfig { min_logprob: Some(least), ..route("a", &[MODEL, "cloud"]) }];
        })
    };
    // Every token of the scripted model has -ln 260, about -5.6.
    let whole = |text: &str| hearth::chat::ChatRequest { stream: false, ..chat("a", text) };
    let sure = at_least(-6.0).await;
    let came = sure.ask(whole("/count 3")).await;
    assert_eq!((came.text.as_str(), came.served_by(), cloud.n_bytes()), ("1 2 3", "local", 0));
    assert_eq!(came.usage.completion_tokens, 6);
    let unsure = at_least(-1.0).await;
    let came = unsure.ask(whole("/count 3")).await;
    assert_eq!((came.text.as_str(), came.served_by()), ("from afar", "cloud"));
    assert_eq!(came.attempts(), [format!("{MODEL}:ok"), "cloud:ok".to_owned()]);
    let [first, second] = came.told.attempts.as_slice() else { unreachable!("two attempts") };
    assert_eq!((first.was_replaced, first.usage.completion_tokens, second.usage.completion_tokens), (true, 6, 2));
    let page = unsure.gateway.metrics_page().await;
    for line in [
        "hearth_generation_tokens_total{model=\"Scripted-1\"} 6",
        "hearth_generation_tokens_total{model=\"cloud\"} 2",
        "hearth_fallbacks_total{from=\"Scripted-1\",reason=\"unsure\",to=\"cloud\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    assert_eq!(unsure.ask(chat("a", "streamed")).await.served_by(), "local", "a stream can't be taken back");
    // Nobody better: the answer that is there.
    let dead = Cloud::always(vec![Act::Send(head(500, ""))]).await;
    let url = dead.base_url();
    let alone = Routed::of(|setup| {
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![RouteConfig { min_logprob: Some(-1.0), ..route("a", &[MODEL, "cloud"]) }];
    })
    .await;
    let came = alone.ask(whole("/count 3")).await;
    assert_eq!((came.text.as_str(), came.usage.completion_tokens, dead.n_requests()), ("1 2 3", 6, 1));
}

#[tokio::test]
async fn what_a_target_has_no_word_for_is_told_or_asked_elsewhere() {
    let cloud = Cloud::always(good()).await;
    let url = cloud.base_url();
    let setup = |strict: bool, targets: &'static [&'static str]| {
        let url = url.clone();
        Routed::of(move |setup| {
            setup.gateway.strict = strict;
            setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
            setup.gateway.routing.routes = vec![route("a", targets)];
        })
    };
    let mut request = chat("a", "x");
    request.sampling.top_k = Some(3);
    let came = setup(false, &["cloud"]).await.ask(request.clone()).await;
    assert_eq!((came.served_by(), came.told.dropped.as_slice()), ("cloud", &["top_k"][..]));
    let came = setup(true, &["cloud"]).await.ask(request).await;
    let End::Refused(Error::Refused(refusal)) = came.end else { unreachable!("{came:?}") };
    assert_eq!((refusal.field.as_str(), refusal.code), ("top_k", "unsupported_parameter"));
    let mut request = chat("a", "here");
    request.sampling.logit_bias = Some(vec![(5, 1.0)]);
    assert_eq!(setup(false, &["cloud", MODEL]).await.ask(request).await.served_by(), "local");
}

/// A second hearth behind the first: every dialect reaches it.
#[tokio::test]
async fn all_dialects_are_answered_by_another_hearth() {
    let behind = Server::with(|setup| setup.key("sk-behind")).await;
    let url = behind.url("/v1");
    let front = Server::with(|setup| {
        let mut there = upstream("box", &url);
        there.wire.kind = Kind::Hearth;
        there.wire.model = MODEL.to_owned();
        there.api_key = hearth::gateway::Secret::new("sk-behind");
        setup.gateway.routing.may_leave = true;
        setup.gateway.routing.upstreams = vec![there];
        setup.gateway.routing.routes = vec![RouteConfig { reports_alias: true, ..route("far", &["box"]) }];
    })
    .await;
    let ask = |text: &str| json!({ "model": "far", "messages": [{ "role": "user", "content": text }] });
    let whole = front.post("/v1/chat/completions", ask("/count 4")).await;
    assert_eq!((whole.content().as_str(), whole.header("x-hearth-served-by")), ("1 2 3 4", "box"));
    assert_eq!((&whole.json()["model"], &whole.json()["usage"]["completion_tokens"]), (&json!("far"), &json!(8)));
    let events = front.stream("/v1/chat/completions", ask("/think why")).await;
    assert_eq!((events.text(0, "reasoning_content").as_str(), events.text(0, "content").as_str()), ("why", "ok"));
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let mut call = ask("/call f {\"a\":1}");
    call["tools"] = tools;
    let called = front.post("/v1/chat/completions", call).await.json();
    assert_eq!(called["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
    assert_eq!(called["choices"][0]["finish_reason"], "tool_calls");
    let mut message = ask("hello");
    message["max_tokens"] = json!(50);
    let message = front.post("/v1/messages", message).await.json();
    assert_eq!((&message["content"][0]["text"], &message["usage"]["output_tokens"]), (&json!("hello"), &json!(6)));
    let row = front
        .post(
            "/api/chat",
            json!({ "model": "far", "stream": false, "keep_alive": 5,
        "messages": [{ "role": "user", "content": "hello" }] }),
        )
        .await
        .json();
    assert_eq!(row["message"]["content"], "hello");
    let response = front.post("/v1/responses", json!({ "model": "far", "input": "hello" })).await.json();
    assert_eq!((&response["output"][0]["content"][0]["text"], &response["model"]), (&json!("hello"), &json!("far")));
    let text = front.post("/v1/completions", json!({ "model": "far", "prompt": ["a", "b"], "n": 2 })).await.json();
    let texts: Vec<&str> =
        text["choices"].as_array().expect("choices").iter().filter_map(|it| it["text"].as_str()).collect();
    assert_eq!(texts, ["a", "a", "b", "b"]);
    let two = front
        .post("/v1/chat/completions", {
            let mut two = ask("x");
            two["n"] = json!(2);
            two["logprobs"] = json!(true);
            two
        })
        .await
        .json();
    assert_eq!(two["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(two["choices"][1]["logprobs"]["content"][0]["token"], "x");
    let names = front.get("/v1/models").await.json();
    assert!(names["data"].as_array().expect("a list").iter().any(|model| model["id"] == "far"));
    let refused = front.client.post(front.url("/v1/chat/completions")).header("x-hearth-egress", "never");
    let refused = crate::support::Answer::of(refused.json(&ask("x")).send().await.expect("an answer")).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].clone()), (403, json!("insufficient_permissions")));
    assert_eq!(
        front.post("/v1/chat/completions", chat_body("x", json!({}))).await.header("x-hearth-served-by"),
        "local"
    );
}

#[tokio::test]
async fn failures_are_told_without_a_word_of_the_upstreams() {
    const CANARY: &str = "canary-7f3a";
    let body = format!("{{\"error\":{{\"message\":\"{CANARY}\"}}}}");
    let with = |status: u16, headers: &str| {
        let head = format!(
            "HTTP/1.1 {status} {CANARY}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
            body.len()
        );
        vec![Act::Send((head + &body).into())]
    };
    let late = SSE.to_owned() + &role() + &text("ab") + &event(&json!({ "error": { "message": CANARY } }));
    for (acts, status, code) in [
        (with(400, ""), 400, "upstream_refused"),
        (with(401, ""), 502, "upstream_error"),
        (with(429, "retry-after: 9\r\n"), 503, "server_is_overloaded"),
        (with(500, ""), 502, "upstream_error"),
    ] {
        let cloud = Cloud::always(acts).await;
        let url = cloud.base_url();
        let front = Server::with(|setup| {
            setup.gateway.routing.may_leave = true;
            setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
            setup.gateway.routing.routes = vec![route("a", &["cloud"])];
        })
        .await;
        let answer = front.chat("x", json!({ "model": "a" })).await;
        let (got, _, got_code, _) = answer.error();
        assert_eq!((got, got_code.as_deref()), (status, Some(code)));
        assert!(!answer.text.contains(CANARY), "{}", answer.text);
        if status == 503 {
            assert_eq!(answer.header("retry-after"), "9");
        }
    }
    let cloud = Cloud::always(vec![Act::Send(late.into())]).await;
    let url = cloud.base_url();
    let front = Server::with(|setup| {
        setup.gateway.routing.may_leave = true;
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![route("a", &["cloud"])];
    })
    .await;
    let events = front.stream_chat("x", json!({ "model": "a" })).await;
    assert_eq!((events.text(0, "content").as_str(), events.is_done), ("ab", false));
    let last = events.chunks.last().expect("an error event");
    assert_eq!(last["error"]["code"], "upstream_error");
    assert!(!last.to_string().contains(CANARY));
}

/// A key's own word on leaving.
#[tokio::test]
async fn a_key_that_may_not_leave_stays() {
    use hearth::gateway::{
        Credential, Egress, KeyEntry, KeyRecord, KeySpec, Keyring, Pepper, Snapshot, TeamRecord, TeamSpec,
    };
    let cloud = Cloud::always(good()).await;
    let pepper = Pepper::new([7; 32]);
    let mut snapshot = Snapshot::default();
    let mut key = |egress: Egress, team: Option<Egress>| {
        let credential = Credential::generate().expect("chance");
        let team = team.map(|egress| {
            let spec = TeamSpec { egress, ..Default::default() };
            Arc::new(TeamRecord { id: "t".into(), spec, created: 0, blocked: false })
        });
        let spec = KeySpec { egress, ..Default::default() };
        let record = Arc::new(KeyRecord::new(credential.id().to_owned(), spec, team, 0, false));
        let hash = pepper.hash(credential.secret());
        snapshot.keys.insert(credential.id().to_owned(), KeyEntry { record, hash, previous: None });
        credential.reveal()
    };
    let keys = [
        (key(Egress::Never, None), false),
        (key(Egress::Allowed, None), true),
        (key(Egress::Allowed, Some(Egress::Never)), false),
        (key(Egress::Allowed, Some(Egress::Allowed)), true),
    ];
    let routed = burst(&cloud, loading).await;
    let keyring = Keyring::new(pepper, snapshot, true);
    for (key, may_leave) in keys {
        let before = cloud.n_bytes();
        let principal: Principal = keyring.authenticate(&key, None, 0).expect("a good key");
        let came = routed.ask_as(Caller { principal, ..Default::default() }, chat("a", "x")).await;
        assert_eq!((came.is_done(), cloud.n_bytes() > before), (may_leave, may_leave), "{came:?}");
    }
}
