//! A local classifier at the border, over HTTP: a tiny model with a real head looks at what comes in and goes out of a
//! scripted one.

use crate::guardrails::{dialects, said};
use crate::many_models::lazy;
use crate::support::cloud::{Act, Cloud, answer};
use crate::support::governed::books_config;
use crate::support::process::Process;
use crate::support::routed::{route, upstream};
use crate::support::served::root;
use crate::support::{Answer, Events, MODEL, PATIENCE, Server, Setup, chat_body, with};
use hearth::engine::config::{ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineConfig, EngineMode};
use hearth::gateway::store::{LogFilter, logs};
use hearth::gateway::{
    ApiKey, Books, ClassifySpec, Gateway, GatewayConfig, GuardrailSpec, Guardrails, LoadLimits, ModelSetup, RuleSpec,
};
use hearth::http::HttpConfig;
use hearth::telemetry::Metrics;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const KEY: &str = "sk-classifiers";
const LABEL: &str = "relevant";
/// Single words, of which any number is a text. The head's weights are random, so which of them it likes is found out.
const WORDS: [&str; 8] = ["river", "lamp", "seven", "green", "music", "stone", "window", "paper"];

fn model(id: &str, file: PathBuf) -> ModelSetup {
    let mut setup = lazy(id);
    setup.engine = EngineConfig::new(ModelSource::Gguf(file));
    (setup.engine.n_threads, setup.engine.n_ctx) = (Some(1), Some(1024));
    setup
}

fn classify(model: &str, label: &str, above: f64) -> ClassifySpec {
    let (model, deny, above) = (model.to_owned(), vec![label.to_owned()], above as f32);
    ClassifySpec { model, deny, above, n_windows_max: 40, passes_on_error: false }
}

fn passing(spec: ClassifySpec) -> ClassifySpec {
    ClassifySpec { passes_on_error: true, ..spec }
}

fn input(spec: ClassifySpec) -> GuardrailSpec {
    GuardrailSpec { input: RuleSpec { classify: Some(spec), ..Default::default() }, ..Default::default() }
}

fn output(spec: ClassifySpec) -> GuardrailSpec {
    GuardrailSpec { output: RuleSpec { classify: Some(spec), ..Default::default() }, ..Default::default() }
}

fn scripted(id: &str, change: impl FnOnce(&mut ScriptedConfig)) -> ModelSetup {
    let mut setup = lazy(id);
    match &mut setup.engine.source {
        ModelSource::Scripted(scripted) => change(scripted),
        ModelSource::Gguf(_) => unreachable!("it is scripted"),
    }
    setup
}

/// A scripted model, one that classifies (`judge`), one whose file is not there (`broken`), and one that is never loaded
/// (`loading`).
async fn house(change: impl FnOnce(&mut GatewayConfig)) -> Server {
    house_with(change, None, Arc::new(Metrics::new())).await
}

async fn house_with(
    change: impl FnOnce(&mut GatewayConfig),
    books: Option<Arc<Books>>,
    metrics: Arc<Metrics>,
) -> Server {
    let mut chat = scripted(MODEL, |scripted| scripted.step_us = 0);
    chat.engine.n_ctx = Some(1 << 16);
    let mut slow = scripted("slow", |scripted| scripted.step_us = 500);
    (slow.engine.n_ctx, slow.engine.n_slots) = (Some(4096), 1);
    let mut loading = scripted("loading", |scripted| (scripted.load_ms, scripted.embeds) = (3_600_000, 2));
    loading.config.is_lazy = false;
    let judge = model("judge", root().join("models/tiny/tiny-rank.gguf"));
    let broken = model("broken", root().join("models/nowhere.gguf"));
    let models = vec![chat, judge, broken, scripted("embedder", |scripted| scripted.embeds = 1), loading, slow];
    let mut config = Setup::new().gateway;
    change(&mut config);
    let mut gateway = Gateway::open(config, models, &EngineMode::InProcess, LoadLimits::default(), metrics);
    if let Some(books) = books {
        gateway = gateway.with_books(books);
    }
    let unused = Engine::start(lazy("unused").engine, EngineMode::InProcess);
    Server::of(Arc::new(gateway), unused, HttpConfig::default()).await
}

/// Others rules from now on, for every request.
fn rule(server: &Server, spec: GuardrailSpec) {
    rules(server, &[(Guardrails::DEFAULT, spec)]);
}

fn rules(server: &Server, specs: &[(&str, GuardrailSpec)]) {
    let specs = specs.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
    let mut config = (*server.gateway.config()).clone();
    config.guardrails = Guardrails::new(&specs).expect("good sets");
    let models = server.gateway.models().into_iter().map(|listed| (*listed.config).clone()).collect();
    server.gateway.reload(config, models);
}

/// What the head says of each text; also while it is asked at the border.
async fn probabilities(server: &Server, texts: &[String]) -> Vec<f64> {
    let answer = server.post("/v1/classify", json!({ "model": "judge", "input": texts })).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    let of = |entry: &Value| entry["probs"][0].as_f64().expect("a number");
    body["data"].as_array().expect("data").iter().map(of).collect()
}

/// Of texts of `n` times one word: the one that the head likes most, the one that it likes least, and what is between.
async fn extremes(server: &Server, n: usize) -> (String, String, f64) {
    let texts: Vec<String> = WORDS.iter().map(|word| vec![*word; n].join(" ")).collect();
    let mut all: Vec<(f64, String)> = probabilities(server, &texts).await.into_iter().zip(texts).collect();
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let ((least, good), (most, bad)) = (all.remove(0), all.pop().expect("two texts"));
    assert!(most - least > 1e-3, "the head tells them apart: {least} {most}");
    (bad, good, (least + most) / 2.0)
}

fn counter(page: &str, series: &str) -> u64 {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or_default()
}

fn is_unavailable(answer: &Answer) {
    let (status, kind, code, _) = answer.error();
    assert_eq!((status, kind.as_str(), code.as_deref()), (503, "server_error", Some("guardrail_unavailable")));
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1), "{:?}", answer.headers);
}

#[tokio::test]
async fn what_a_classifier_denies_comes_in_by_no_dialect() {
    let server = house(|_| {}).await;
    let (bad, good, above) = extremes(&server, 3).await;
    rule(&server, input(classify("judge", LABEL, above)));
    for (path, body, _) in dialects(&good) {
        let answer = server.post(path, body).await;
        assert_eq!((answer.status, said(path, &answer.json())), (200, good.clone()), "{path}: {}", answer.text);
    }
    for (path, body, _) in dialects(&bad) {
        for stream in [false, true] {
            let refused = server.post(path, with(body.clone(), json!({ "stream": stream }))).await;
            assert_eq!(refused.status, 400, "{path}: {}", refused.text);
            for word in [WORDS.as_slice(), &["judge", LABEL, "default\""]].concat() {
                assert!(!refused.text.contains(word), "{path}: {}", refused.text);
            }
            let error = refused.json();
            match path {
                "/v1/messages" => assert_eq!(error["error"]["type"], "invalid_request_error"),
                "/api/chat" | "/api/generate" => assert!(error["error"].is_string(), "{error}"),
                _ => assert_eq!(error["error"]["code"], "content_policy_violation", "{error}"),
            }
        }
    }
    server.complete(json!([good, bad]), json!({})).await.is_refusal("content_policy_violation", "prompt");
    server.complete(json!([1, 2]), json!({})).await.is_refusal("unsupported_parameter", "prompt");
    let own = json!({ "messages": [{ "role": "system", "content": bad }, { "role": "user", "content": good }] });
    server.chat("", own).await.is_refusal("content_policy_violation", "messages");
    // In arguments, in a schema, behind escapes.
    let escaped: String = bad.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let tool = |word: &str| {
        let parameters = json!({ "type": "object", "description": word });
        json!({ "tools": [{ "type": "function", "function": { "name": "x", "parameters": parameters } }] })
    };
    let alone = probabilities(&server, &["x\ntype\nobject\ndescription\n".to_owned() + &bad]).await[0];
    assert_eq!(server.chat(&good, tool(&bad)).await.status, if alone >= above { 400 } else { 200 });
    let call = json!([{ "id": "call_1", "type": "function",
        "function": { "name": "x", "arguments": format!("{{\"a\":\"{escaped}\"}}") } }]);
    let messages = json!([{ "role": "user", "content": good }, { "role": "assistant", "tool_calls": call },
        { "role": "tool", "tool_call_id": "call_1", "content": good }]);
    let called = probabilities(&server, &[format!("x\na\n{bad}")]).await[0];
    let answer = server.chat("", json!({ "messages": messages })).await;
    assert_eq!(answer.status, if called >= above { 400 } else { 200 }, "{called} {above}: {}", answer.text);
    for path in ["/v1/messages/count_tokens", "/v1/chat/completions/input_tokens"] {
        assert_eq!(server.post(path, chat_body(&bad, json!({}))).await.status, 400, "{path}");
        assert_eq!(server.post(path, chat_body(&good, json!({}))).await.status, 200, "{path}");
    }
    let embed = |text: &str| json!({ "model": "embedder", "input": [text] });
    server.post("/v1/embeddings", embed(&bad)).await.is_refusal("content_policy_violation", "input");
    assert_eq!(server.post("/v1/embeddings", embed(&good)).await.status, 200);
    let page = server.metrics().await;
    let denied = r#"hearth_guardrail_matches_total{action="classify",direction="in",guardrail="default"}"#;
    assert!(counter(&page, denied) >= 14, "{page}");
    // What is looked at is what /v1/classify looks at, with all that the vocabulary puts around a text.
    for text in [&bad, &good] {
        let p = probabilities(&server, std::slice::from_ref(text)).await[0];
        for (above, status) in [(p - 1e-3, 400), (p + 1e-3, 200)] {
            rule(&server, input(classify("judge", LABEL, above)));
            assert_eq!(server.chat(text, json!({})).await.status, status, "{p} {above}");
        }
    }
    assert!(counter(&page, r#"hearth_prompt_tokens_total{model="judge"}"#) > 0, "{page}");
    let looks = r#"hearth_guardrail_classifier_seconds_count{direction="in",guardrail="default"}"#;
    assert!(counter(&page, looks) >= 19, "{page}");
}

/// The highest probability of `label` in any window of a text, by what lets it pass.
async fn highest(server: &Server, label: &str, text: &str) -> f64 {
    let (mut denied, mut passed) = (0.0, 1.0);
    for _ in 0..8 {
        let above = (denied + passed) / 2.0;
        rule(server, input(classify("judge", label, above)));
        match server.chat(text, json!({ "max_tokens": 1 })).await.status {
            200 => passed = above,
            _ => denied = above,
        }
    }
    passed
}

#[tokio::test]
async fn a_long_text_is_looked_at_to_its_last_word() {
    let server = house(|_| {}).await;
    let times = |word: &str, n: usize| vec![word; n].join(" ");
    let too_long = server.post("/v1/classify", json!({ "model": "judge", "input": times("river", 800) })).await;
    too_long.is_refusal("context_length_exceeded", "input");
    // Windows begin anywhere in a word, so what the head says of each word is between two numbers.
    let mut between = Vec::new();
    for word in ["river", "stone", "lamp", "window"] {
        let text = times(word, 800);
        let most = highest(&server, LABEL, &text).await;
        between.push((1.0 - highest(&server, "beside the point", &text).await, most, word));
    }
    let (least, _, bad) = *between.iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("words");
    let (_, most, good) = *between.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("words");
    assert!(most + 0.02 < least, "the head tells two of them apart: {between:?}");
    rule(&server, input(classify("judge", LABEL, (least + most) / 2.0)));
    let clean = times(good, 900);
    let ask = |text: String| {
        let messages = json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 1 });
        server.chat("", messages)
    };
    assert_eq!(ask(clean.clone()).await.status, 200);
    ask(format!("{clean} {}", times(bad, 600))).await.is_refusal("content_policy_violation", "messages");
    ask(format!("{} {clean}", times(bad, 600))).await.is_refusal("content_policy_violation", "messages");
    ask(format!("{clean} {} {clean}", times(bad, 1000))).await.is_refusal("content_policy_violation", "messages");
    // What was looked at is known when the conversation goes on.
    let looked = |page: &str| counter(page, r#"hearth_prompt_tokens_total{model="judge"}"#);
    let before = looked(&server.metrics().await);
    assert_eq!(ask(clean.clone()).await.status, 200);
    assert_eq!(looked(&server.metrics().await), before);
    assert_eq!(ask(format!("{clean} {good}")).await.status, 200);
    assert!(looked(&server.metrics().await) > before + 1000, "another text");
    // Too much to look at is not let through, however it is spread, and whether or not some of it is known.
    ask(".".repeat(20_000)).await.is_refusal("string_above_max_length", "messages");
    let all = |n| (0..n).map(|_| json!({ "role": "user", "content": good })).collect::<Vec<_>>();
    let many = |n| server.chat("", json!({ "messages": all(n), "max_tokens": 1 }));
    for _ in 0..2 {
        assert_eq!(many(40).await.status, 200);
        many(41).await.is_refusal("string_above_max_length", "messages");
    }
}

#[tokio::test]
async fn a_denied_answer_is_held_back_streamed_and_whole() {
    let server = house(|_| {}).await;
    let (bad, good, above) = extremes(&server, 3).await;
    rule(&server, output(classify("judge", LABEL, above)));
    for (path, body, _) in dialects(&good) {
        assert_eq!(said(path, &server.post(path, body.clone()).await.json()), good, "{path}");
        let streamed = server.send(path, &with(body, json!({ "stream": true }))).await.text().await.expect("a stream");
        assert!(streamed.contains(&good) && !streamed.contains("filter"), "{path}: {streamed}");
    }
    for (path, body, _) in dialects(&bad) {
        let answer = server.post(path, body.clone()).await.json();
        assert_eq!(said(path, &answer), "", "{path}: {answer}");
        let word = if path == "/v1/messages" { "refusal" } else { "content_filter" };
        assert!(answer.to_string().contains(word), "{path}: {answer}");
        let streamed = server.send(path, &with(body, json!({ "stream": true }))).await.text().await.expect("a stream");
        assert!(streamed.contains(word) && !streamed.contains("\"error\":{"), "{path}: {streamed}");
        // The Responses API repeats no input.
        WORDS.iter().for_each(|word| assert!(!streamed.contains(word), "{path}: {streamed}"));
    }
    // The tokens were generated, and are counted.
    let usage = server.chat(&bad, json!({})).await.json()["usage"]["completion_tokens"].as_u64();
    assert_eq!(usage, Some(bad.len() as u64 + 1));
    let events = server.stream_chat(&good, json!({ "stream_options": { "include_usage": true } })).await;
    assert_eq!((events.text(0, "content"), events.finish(0)), (good.clone(), vec!["stop"]));
    // Each choice by itself, with what was counted of it.
    let both = server.complete(json!([bad, good]), json!({ "max_tokens": 90 })).await.json();
    let reasons = [&both["choices"][0]["finish_reason"], &both["choices"][1]["finish_reason"]];
    assert_eq!((reasons, &both["choices"][1]["text"]), ([&json!("content_filter"), &json!("stop")], &json!(good)));
    let thought = server.chat(&format!("/think {bad}"), json!({})).await.json();
    assert_eq!(thought["choices"][0]["finish_reason"], "content_filter", "{thought}");
    let tools = json!({ "tools": [{ "type": "function", "function": { "name": "x" } }], "stream": true });
    let body = chat_body("/call x {\"a\": 1}", tools);
    let called = Events::parse(&server.send("/v1/chat/completions", &body).await.bytes().await.expect("a stream"));
    let refused = probabilities(&server, &["x\na\n1".to_owned()]).await[0] >= above;
    assert_eq!(called.finish(0), [if refused { "content_filter" } else { "tool_calls" }]);
    let page = server.metrics().await;
    let denied = r#"hearth_guardrail_matches_total{action="classify",direction="out",guardrail="default"}"#;
    assert!(counter(&page, denied) >= 13, "{page}");
}

#[tokio::test]
async fn a_classifier_that_can_not_answer_lets_nothing_pass_unless_it_may() {
    let server = house(|config| config.routing.cache.enabled = true).await;
    let ask = |more: Value| server.chat("hello", with(json!({ "temperature": 0 }), more));
    rule(&server, input(classify("broken", LABEL, 0.5)));
    for (path, body, _) in dialects("hello") {
        let refused = server.post(path, body).await;
        // Anthropic's clients know their own number for it.
        let status = if path == "/v1/messages" { 529 } else { 503 };
        assert_eq!(refused.status, status, "{path}: {}", refused.text);
        assert!(!refused.text.contains("hello") && !refused.text.contains("broken"), "{path}: {}", refused.text);
    }
    is_unavailable(&ask(json!({})).await);
    rule(&server, input(classify("loading", LABEL, 0.5)));
    is_unavailable(&ask(json!({})).await);
    rule(&server, output(classify("broken", LABEL, 0.5)));
    is_unavailable(&ask(json!({})).await);
    // It is known before anything is generated.
    is_unavailable(&ask(json!({ "stream": true })).await);
    rule(&server, input(passing(classify("broken", LABEL, 0.5))));
    for cache in ["miss", "hit"] {
        let answer = ask(json!({})).await;
        assert_eq!((answer.content().as_str(), answer.header("x-hearth-cache")), ("hello", cache));
    }
    // An answer that nobody saw is given, and not kept.
    rule(&server, output(passing(classify("broken", LABEL, 0.5))));
    for _ in 0..2 {
        let answer = ask(json!({})).await;
        assert_eq!((answer.content().as_str(), answer.header("x-hearth-cache")), ("hello", "miss"));
    }
    let page = server.metrics().await;
    for (action, direction, n) in [("refuse", "in", 7), ("refuse", "out", 2), ("pass", "in", 2), ("pass", "out", 2)] {
        let series = format!(
            "hearth_guardrail_classifier_failures_total{{action=\"{action}\",direction=\"{direction}\",guardrail=\"default\"}}"
        );
        assert_eq!(counter(&page, &series), n, "{series}\n{page}");
    }
    // What doesn't fit the model is no failure that may pass.
    let unfit = [classify("judge", "nothing", 0.5), classify(MODEL, LABEL, 0.5), classify("unknown", LABEL, 0.5)];
    for spec in unfit.into_iter().map(passing).flat_map(|spec| [input(spec.clone()), output(spec)]) {
        rule(&server, spec);
        let refused = ask(json!({})).await;
        assert_eq!(
            (refused.status, refused.error().2.as_deref()),
            (503, Some("guardrail_missing")),
            "{}",
            refused.text
        );
    }
}

#[tokio::test]
async fn answers_that_nobody_saw_are_counted_and_a_classifier_has_no_row() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let metrics = Arc::new(Metrics::new());
    let books = Books::open(books_config(dir.path()), &metrics).expect("fresh books");
    let key = |config: &mut GatewayConfig| config.api_keys.extend(ApiKey::new(KEY));
    let mut server = house_with(key, Some(Arc::clone(&books)), metrics).await;
    let bearer = format!("Bearer {KEY}").parse().expect("a header");
    let headers = [(AUTHORIZATION, bearer)].into_iter().collect();
    server.client = reqwest::Client::builder().default_headers(headers).timeout(PATIENCE).build().expect("a client");
    let (bad, good, above) = extremes(&server, 3).await;
    let both = || Some(classify("judge", LABEL, above));
    let lists = |classify| RuleSpec { classify, ..Default::default() };
    rule(&server, GuardrailSpec { input: lists(both()), ..Default::default() });
    let denied = server.chat(&bad, json!({})).await;
    denied.is_refusal("content_policy_violation", "messages");
    assert_eq!(server.chat(&good, json!({})).await.content(), good);
    rule(&server, GuardrailSpec { output: lists(both()), ..Default::default() });
    assert_eq!(server.chat(&bad, json!({})).await.json()["choices"][0]["finish_reason"], "content_filter");
    // One that leaves while its answer is still held back.
    let body = chat_body("/forever", json!({ "model": "slow", "stream": true }));
    let left = server.send("/v1/chat/completions", &body).await;
    let n_cells = async || {
        let page = server.metrics().await;
        let ratio = page.lines().find_map(|line| line.strip_prefix("hearth_kv_cache_usage_ratio{model=\"slow\"} "));
        ratio.and_then(|ratio| ratio.parse::<f64>().ok()).unwrap_or_default() * 4096.0
    };
    let before = n_cells().await;
    let grows = async {
        while n_cells().await < before + 40.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, grows).await.expect("it generates");
    drop(left);
    let rows = async {
        loop {
            let read = books.store().read(move |conn| logs(conn, &LogFilter::default(), (10, 0))).await;
            let mut rows = read.expect("rows can be read");
            rows.retain(|row| row.endpoint == "/v1/chat/completions");
            if rows.len() == 4 && rows.iter().all(|row| row.finish != "running") {
                rows.sort_by(|a, b| a.finish.cmp(&b.finish));
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let rows = tokio::time::timeout(PATIENCE, rows).await.expect("four rows, none of a classifier");
    let said: Vec<_> = rows.iter().map(|row| (row.finish.as_str(), row.status, row.in_tok > 0, row.out_tok)).collect();
    let n_of = |text: &str| text.len() as u64 + 1;
    assert!(said.contains(&("content_filter", 200, true, n_of(&bad))), "{said:?}");
    assert!(said.contains(&("stop", 200, true, n_of(&good))), "{said:?}");
    let aborted = rows.iter().find(|row| row.finish == "aborted").expect("one that was left");
    assert!(aborted.out_tok >= 5, "{aborted:?}");
    let refused = rows.iter().find(|row| row.status == 400).expect("one that was refused");
    assert_eq!((refused.in_tok, refused.out_tok, refused.cost_nusd), (0, 0, 0));
    books.close().await;
}

/// A slot that is taken until the answer is done, and a classifier that many ask at once: nobody waits for ever.
#[tokio::test]
async fn many_answers_wait_for_one_classifier() {
    let server = house(|_| {}).await;
    let (bad, good, above) = extremes(&server, 3).await;
    let both = RuleSpec { classify: Some(classify("judge", LABEL, above)), ..Default::default() };
    rule(&server, GuardrailSpec { input: RuleSpec::default(), output: both, ..Default::default() });
    let asks = (0..48).map(|i| {
        let text = format!("{} {}", if i % 2 == 0 { &bad } else { &good }, "x".repeat(i % 7));
        let (server, more) = (&server, json!({ "model": "slow", "stream": i % 3 == 0 }));
        async move {
            let answer = server.post("/v1/chat/completions", chat_body(&text, more)).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    });
    futures_util::future::join_all(asks).await;
}

#[tokio::test]
async fn what_is_denied_is_sent_nowhere_and_comes_from_nowhere() {
    let probe = house(|_| {}).await;
    let (bad, good, above) = extremes(&probe, 3).await;
    let cloud = Cloud::always(vec![Act::Send(answer(&[&bad[..2], &bad[2..]]).into())]).await;
    let server = house(|config| {
        config.routing.may_leave = true;
        config.routing.upstreams = vec![upstream("cloud", &cloud.base_url())];
        config.routing.routes = vec![route("in", &["cloud"]), route("out", &["cloud", MODEL])];
        config.routing.routes[0].guardrails = vec!["in".into()];
        config.routing.routes[1].guardrails = vec!["out".into()];
    })
    .await;
    let spec = || classify("judge", LABEL, above);
    rules(&server, &[("in", input(spec())), ("out", output(spec()))]);
    server.chat(&bad, json!({ "model": "in" })).await.is_refusal("content_policy_violation", "messages");
    assert_eq!(cloud.n_requests(), 0);
    assert_eq!(server.chat(&good, json!({ "model": "in" })).await.content(), bad);
    let denied = server.chat(&bad, json!({ "model": "out" })).await.json();
    assert_eq!(denied["choices"][0]["finish_reason"], "content_filter", "{denied}");
    assert_eq!(denied["choices"][0]["message"]["content"], "", "{denied}");
    let events = server.stream_chat(&good, json!({ "model": "out" })).await;
    assert_eq!((events.text(0, "content").as_str(), events.finish(0)), ("", vec!["content_filter"]));
    // A verdict that can't be had sends the request nowhere else.
    rules(&server, &[("in", input(spec())), ("out", output(classify("broken", LABEL, 0.5)))]);
    let n = cloud.n_requests();
    is_unavailable(&server.chat(&good, json!({ "model": "out" })).await);
    assert_eq!(cloud.n_requests(), n);
}

#[tokio::test]
async fn a_settings_file_has_classifiers_and_takes_others_anew() {
    let of = |spec: &str| {
        format!(
            "[[model]]\nname = \"judge\"\nfile = \"models/tiny/tiny-rank.gguf\"\nthreads = 1\n\
             [guardrails.default]\ninput = {{ classify = {spec} }}\n"
        )
    };
    let denies = |above: &str| of(&format!("{{ model = 'judge', deny = ['relevant'], above = {above} }}"));
    let process = Process::with_tables(&denies("1.0"));
    process.until("", json!({}), 200).await;
    process.write(&denies("0.0"));
    process.hangup();
    process.until("", json!({}), 400).await;
    process.write(&of("{ model = 'judge', deny = ['irrelevant'] }"));
    process.hangup();
    process.until_logged("has no label \\\"irrelevant\\\", only \\\"relevant\\\", \\\"beside the point\\\"").await;
    assert_eq!(process.chat("", json!({})).await.status, 400, "the old rules stay");
    // The same is found before a server starts.
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("hearth.toml");
    for (settings, words) in [
        (
            of("{ model = 'judge', deny = ['irrelevant'] }"),
            "[guardrails.default]: input: classify: the model judge has no",
        ),
        (of("{ model = 'nobody', deny = ['relevant'] }"), "there is no model named \"nobody\" on this server"),
        (denies("0.5").replace("tiny-rank", "tiny-bert"), "judge has no classification head in use"),
    ] {
        std::fs::write(&path, format!("port = 0\n[[model]]\nfile = \"scripted\"\n{settings}"))
            .expect("a writable folder");
        let serve = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--in-process", "--config"])
            .arg(&path)
            .current_dir(root())
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&serve.stderr).into_owned();
        assert!(!serve.status.success() && said.contains(words), "{words}\n{said}");
    }
}
