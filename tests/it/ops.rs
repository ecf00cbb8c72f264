//! Health, metrics, draining. Names are the contract's rows.

use crate::support::{Events, MODEL, PATIENCE, Server, chat_body, idle, read_until};
use serde_json::json;
use std::time::{Duration, Instant};

fn counter(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn ops_02_probes_while_loading_and_after() {
    let server = Server::with(|setup| {
        setup.while_loading = true;
        setup.scripted().load_ms = 3000;
    })
    .await;
    assert_eq!(server.get("/livez").await.status, 200);
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["state"]), (503, &json!("loading")));
    assert!(ready.json()["reason"].as_str().is_some_and(|reason| reason.contains("loading")));
    for path in ["/health", "/v1/health"] {
        let health = server.get(path).await;
        let body = health.json();
        assert_eq!(
            (health.status, &body["status"], &body["error"]["code"]),
            (503, &json!("loading"), &json!("model_loading"))
        );
        assert!(body["progress"].as_f64().is_some_and(|progress| (0.0..=1.0).contains(&progress)));
        assert!(health.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1));
    }
    crate::support::ready(&server.engine).await;
    for path in ["/health", "/v1/health", "/livez"] {
        assert_eq!(server.get(path).await.text, r#"{"status":"ok"}"#);
    }
    assert_eq!(server.get("/readyz").await.json()["ready"], true);
}

#[tokio::test]
async fn ops_03_counters_grow_and_the_page_is_clean() {
    let server = Server::start().await;
    let before = server.get("/metrics").await;
    assert_eq!(before.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let answer = server.chat("/count 20", json!({})).await.json();
    server.chat("private words", json!({ "temperature": "hot" })).await;
    server.get("/v1/models/some-private-name").await;
    server.get("/private/path").await;
    let page = server.get("/metrics").await.text;
    for (series, least) in [
        ("hearth_http_requests_total{code=\"200\",endpoint=\"/v1/chat/completions\"}", 1.0),
        ("hearth_http_requests_total{code=\"400\",endpoint=\"/v1/chat/completions\"}", 1.0),
        ("hearth_http_requests_total{code=\"404\",endpoint=\"/v1/models/{*id}\"}", 1.0),
        ("hearth_http_requests_total{code=\"404\",endpoint=\"other\"}", 1.0),
        ("hearth_time_to_first_token_seconds_count{model=\"Scripted-1\"}", 1.0),
        ("hearth_request_duration_seconds_count{endpoint=\"/v1/chat/completions\"}", 2.0),
        ("hearth_slots{model=\"Scripted-1\",state=\"idle\"}", 4.0),
    ] {
        assert!(counter(&page, series) >= least, "{series} in\n{page}");
    }
    let usage = |key: &str| answer["usage"][key].as_f64().expect("a count");
    assert!(
        (counter(&page, "hearth_generation_tokens_total{model=\"Scripted-1\"}") - usage("completion_tokens")).abs()
            < 0.5,
        "{page}"
    );
    assert!(
        (counter(&page, "hearth_prompt_tokens_total{model=\"Scripted-1\"}") - usage("prompt_tokens")).abs() < 0.5,
        "{page}"
    );
    assert!(page.lines().any(|line| {
        line.starts_with(&format!("hearth_model_info{{model=\"{MODEL}\",n_ctx=\"4096\",params=\""))
            && line.ends_with("quant=\"scripted bytes\",sha256=\"\"} 1")
    }));
    assert!(!page.contains("private"), "nothing of a client's text is a label");
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let family = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
        assert!(page.contains(&format!("# HELP {family} ")) && page.contains(&format!("# TYPE {family} ")), "{name}");
    }
}

#[tokio::test]
async fn metrics_need_the_key_and_health_does_not() {
    let server = Server::with(|setup| setup.key("k")).await;
    assert_eq!(server.get("/metrics").await.status, 401);
    let with_key = server.client.get(server.url("/metrics")).bearer_auth("k").send().await.expect("an answer");
    assert_eq!(with_key.status(), 200);
}

#[tokio::test]
async fn props_tell_defaults_and_no_path() {
    let server = Server::with(|setup| setup.gateway.sampling.temperature = Some(0.25)).await;
    let props = server.get("/props").await.json();
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(4), &json!(MODEL)));
    let settings = &props["default_generation_settings"];
    assert_eq!((&settings["n_ctx"], &settings["params"]["temperature"]), (&json!(4096), &json!(0.25)));
    assert_eq!(props["modalities"], json!({ "vision": false, "audio": false }));
    assert!(props["chat_template"].is_string() && props["model_path"] == "");
}

#[tokio::test]
async fn slots_are_shown_only_on_request() {
    let hidden = Server::start().await;
    assert_eq!(hidden.get("/slots").await.status, 404);
    let server = Server::with(|setup| {
        setup.http.expose_slots = true;
        setup.scripted().step_us = 500;
    })
    .await;
    let running = server.open_stream("/forever").await;
    let one_works = async {
        loop {
            let slots = server.get("/slots").await.json();
            let slots = slots.as_array().expect("an array");
            assert_eq!(slots.len(), 4);
            if slots.iter().filter(|slot| slot["is_processing"] == true).count() == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, one_works).await.expect("a slot at work");
    drop(running);
}

#[tokio::test]
async fn ops_01_a_drain_refuses_new_work_and_lets_streams_finish() {
    let server = Server::with(|setup| setup.scripted().step_us = 2_000).await;
    let streams = [
        server.open_stream("/count 400").await,
        server.open_stream("/count 400").await,
        server.open_stream("/count 400").await,
    ];
    server.shutdown.cancel();
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["state"]), (503, &json!("shutting_down")));
    assert_eq!((server.get("/livez").await.status, server.get("/health").await.status), (200, 200));
    let refused = server.chat("new", json!({})).await;
    let expected = (503, "server_error".into(), Some("shutting_down".into()), None);
    assert_eq!((refused.error(), refused.header("connection")), (expected, "close"));
    for stream in streams {
        let bytes = read_until(stream, |_| false).await;
        let events = Events::parse(&bytes);
        assert!(events.is_done && events.text(0, "content").ends_with("399 400"));
    }
    let address = server.address;
    server.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn ops_01_after_the_deadline_streams_end_with_an_error_event() {
    let server = Server::with(|setup| {
        setup.http.drain_deadline = Duration::from_millis(100);
        setup.engine.n_ctx = Some(1_000_000);
        setup.scripted().step_us = 2_000;
    })
    .await;
    let stream = server.open_stream("/forever").await;
    let whole = tokio::spawn(
        server.client.post(server.url("/v1/chat/completions")).json(&chat_body("/forever", json!({}))).send(),
    );
    server.busy(2).await;
    let engine = server.engine.clone();
    let stopping = tokio::spawn(server.stop());
    let events = Events::parse(&read_until(stream, |_| false).await);
    assert!(!events.is_done);
    assert_eq!(events.chunks.last().map(|chunk| &chunk["error"]["code"]), Some(&json!("shutting_down")));
    let whole = whole.await.expect("no panic").expect("an answer");
    assert_eq!((whole.status().as_u16(), whole.headers()["connection"].to_str().ok()), (503, Some("close")));
    tokio::time::timeout(PATIENCE, stopping).await.expect("in time").expect("no panic");
    // What was cut is cancelled.
    idle(&engine).await;
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let server = Server::start().await;
    let idle = server.connect().await;
    let used = server.get("/livez").await;
    assert_eq!(used.status, 200);
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    drop(idle);
}
