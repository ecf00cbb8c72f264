//! Every series that the README and the dashboard name is on the page of a server that has seen some requests.

use crate::support::cloud::{Act, Cloud, answer, head};
use crate::support::governed::{Governed, PRICE};
use crate::support::routed::{route, upstream};
use crate::support::served::root;
use crate::support::{MODEL, PATIENCE, chat_body};
use hearth::gateway::{ClassifySpec, GuardrailSpec, Guardrails, RuleSpec};
use hearth::telemetry::metrics::{Compat, MetricsConfig};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const CANARY: &str = "canary-5e1f";

/// Takes numbers of cards out of what comes in, and of what goes out.
fn guarded() -> Guardrails {
    let redact = || RuleSpec { redact: vec![(r"\b\d{4}-\d{4}\b".into(), "[card]".into())], ..Default::default() };
    let spec = GuardrailSpec { input: redact(), output: redact(), ..Default::default() };
    let classify = ClassifySpec {
        model: MODEL.into(),
        deny: vec!["x".into()],
        above: 0.5,
        n_windows_max: 1,
        passes_on_error: false,
    };
    let unused =
        GuardrailSpec { input: RuleSpec { classify: Some(classify), ..Default::default() }, ..Default::default() };
    let sets = [(Guardrails::DEFAULT.to_owned(), spec), ("unused".to_owned(), unused)];
    Guardrails::new(&sets.into()).expect("good sets")
}

/// A server with books, a cache and two upstreams, after requests of every outcome.
async fn busy(metrics: MetricsConfig) -> (Governed, String) {
    let cloud = Cloud::always(vec![Act::Send(answer(&["from", " afar"]).into())]).await;
    let dead = Cloud::always(vec![Act::Send(head(500, ""))]).await;
    let house = Governed::with(|setup, _| {
        setup.metrics = metrics;
        // An answer without end would be at the end of its context before its client's leaving is seen.
        setup.scripted().step_us = 500;
        setup.gateway.price = PRICE;
        setup.gateway.guardrails = guarded();
        let routing = &mut setup.gateway.routing;
        (routing.may_leave, routing.cache.enabled) = (true, true);
        let mut twice = upstream("dead", &dead.base_url());
        twice.retry.attempts = 2;
        routing.upstreams = vec![twice, upstream("cloud", &cloud.base_url())];
        routing.routes = vec![route("far", &["dead", "cloud"])];
    })
    .await;
    house.act("/team/new", json!({ "team_id": "red", "max_budget": 5, "egress": "allowed" })).await;
    let (key, id) = house.key(json!({ "team_id": "red", "egress": "allowed" })).await;
    let (slow, _) = house.key(json!({ "rpm_limit": 1 })).await;
    let path = "/v1/chat/completions";
    for (key, more, status) in [
        (&key, json!({}), 200),
        (&key, json!({ "stream": true }), 200),
        (&key, json!({ "max_tokens": 1 }), 200),
        (&key, json!({ "seed": 1 }), 200),
        (&key, json!({ "seed": 1 }), 200),
        (&key, json!({ "model": "far" }), 200),
        (&key, json!({ "model": CANARY }), 404),
        (&slow, json!({}), 200),
        (&slow, json!({}), 429),
    ] {
        let answer = house.send(key, path, chat_body(&format!("say {CANARY}"), more)).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    // A client that leaves.
    let mut left = house.post(&key, path, &chat_body("/forever", json!({ "stream": true }))).send().await.expect("one");
    left.chunk().await.expect("it lives").expect("a first chunk");
    drop(left);
    // The eleventh wrong key at the latest, and nobody from here comes in any more.
    for _ in 0..13 {
        house.send(&format!("sk-{CANARY}"), path, json!({})).await;
    }
    (house, id)
}

/// The page, once the client that left is noticed.
async fn page(house: &Governed) -> String {
    let started = std::time::Instant::now();
    loop {
        let page = house.server.metrics().await;
        let has = |line: &str| page.lines().any(|it| it == line);
        if has("hearth_client_disconnects_total 1") && has(&format!("hearth_requests_running{{model=\"{MODEL}\"}} 0")) {
            return page;
        }
        assert!(started.elapsed() < PATIENCE, "{page}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The families of a page that is as Prometheus's text format has it.
/// Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
fn families(page: &str) -> BTreeMap<String, String> {
    let (mut types, mut helped, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has words");
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a word");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two types");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series.to_owned()), "{series} is there twice");
            let name = series.split('{').next().unwrap_or_default();
            let first = name.bytes().next().unwrap_or_default();
            assert!(first.is_ascii_lowercase(), "{line}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte)), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let kind = types.get(name).or_else(|| types.get(family?).filter(|kind| *kind == "histogram"));
            let kind = kind.unwrap_or_else(|| unreachable!("{line} has no type before it"));
            assert!(kind != "counter" || name.ends_with("_total"), "a counter's name ends with _total: {line}");
        }
    }
    assert!(types.keys().all(|name| helped.contains(name)));
    types
}

/// Names of ours in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let is_name = |word: &&str| ["hearth_", "process_", "llamacpp:", "vllm:"].iter().any(|it| word.starts_with(it));
    words.filter(is_name).map(str::to_owned).collect()
}

/// A series whose family, or part of one, this is.
fn has(families: &BTreeMap<String, String>, name: &str) -> bool {
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    families.contains_key(name) || of_histogram.is_some_and(|it| families.get(it).is_some_and(|it| it == "histogram"))
}

#[tokio::test]
async fn what_the_readme_and_the_dashboard_name_is_there() {
    let (house, _) = busy(MetricsConfig::default()).await;
    let page = page(&house).await;
    let families = families(&page);
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let table = readme.split("<!-- metrics").nth(1).and_then(|it| it.split("<!-- /metrics").next()).expect("a table");
    let listed = names(table);
    assert!(listed.len() > 45, "{}", listed.len());
    let missing: Vec<_> = listed.iter().filter(|name| !has(&families, name)).collect();
    assert!(missing.is_empty(), "named in the README and not on the page: {missing:?}\n{page}");
    // And what is on the page is named there.
    let silent: Vec<_> =
        families.keys().filter(|name| !name.starts_with("process_") && !listed.contains(*name)).collect();
    assert!(silent.is_empty(), "on the page and not in the README: {silent:?}");

    let dashboard = std::fs::read_to_string(root().join("deploy/grafana.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let asked: BTreeSet<String> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .chain(dashboard["annotations"]["list"].as_array().expect("annotations"))
        .map(|target| target["expr"].as_str().expect("an expression"))
        .chain(
            dashboard["templating"]["list"]
                .as_array()
                .expect("variables")
                .iter()
                .filter_map(|it| it["definition"].as_str()),
        )
        .flat_map(names)
        .collect();
    assert!(asked.len() > 30, "{asked:?}");
    let missing: Vec<_> = asked.iter().filter(|name| !has(&families, name)).collect();
    assert!(missing.is_empty(), "asked by the dashboard and not on the page: {missing:?}");

    for line in [
        "hearth_requests_finished_total{finish_reason=\"length\",model=\"Scripted-1\"} 1",
        "hearth_requests_finished_total{finish_reason=\"aborted\",model=\"Scripted-1\"} 1",
        "hearth_http_requests_total{code=\"404\",endpoint=\"/v1/chat/completions\"} 1",
        "hearth_upstream_requests_total{class=\"transient\",target=\"dead\"} 2",
        "hearth_retries_total{target=\"dead\"} 1",
        "hearth_cache_requests_total{result=\"hit\"} 1",
        "hearth_engine_up{model=\"Scripted-1\"} 1",
        "hearth_slots{model=\"Scripted-1\",state=\"idle\"} 4",
        "hearth_queue_tokens{model=\"Scripted-1\"} 0",
    ] {
        assert!(page.lines().any(|it| it == line), "{line}\n{page}");
    }
    let value = |series: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| unreachable!("{series}\n{page}")).parse::<f64>().expect("a number")
    };
    let (spent, left) =
        (value("hearth_spend_usd_total{team=\"red\"}"), value("hearth_budget_remaining_usd{team=\"red\"}"));
    assert!(spent > 0.0 && (spent + left - 5.0).abs() < 1e-6, "{spent} and {left} of 5");
    assert!(value("hearth_audit_chain_head") > 3.0);
    assert!(!page.contains(CANARY), "a client's words on the page");
    assert!(!page.contains("hearth_key_") && !page.contains("llamacpp:") && !page.contains("vllm:"), "not asked for");
}

#[tokio::test]
async fn other_names_and_keys_are_there_if_they_are_asked_for() {
    let compat = Compat { llamacpp: true, vllm: true };
    let (house, id) = busy(MetricsConfig { compat, by_key: true }).await;
    let page = page(&house).await;
    let families = families(&page);
    for name in [
        "llamacpp:prompt_tokens_total",
        "llamacpp:tokens_predicted_total",
        "llamacpp:prompt_tokens_seconds",
        "llamacpp:predicted_tokens_seconds",
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
        "llamacpp:n_decode_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds",
        "vllm:request_success_total",
    ] {
        assert!(has(&families, name), "{name}\n{page}");
    }
    let value = |series: String| {
        let line = page.lines().find_map(|line| line.strip_prefix(&series)?.strip_prefix(' '));
        line.unwrap_or_else(|| unreachable!("{series}\n{page}")).parse::<f64>().expect("a number")
    };
    // All but the two of the other key, the client that left among them.
    assert_eq!(value(format!("hearth_key_requests_total{{key=\"{id}\"}}")), 8.0);
    assert!(value(format!("hearth_key_generation_tokens_total{{key=\"{id}\"}}")) > 0.0);
    assert!(value(format!("hearth_key_spend_usd_total{{key=\"{id}\"}}")) > 0.0);
    assert!(value("vllm:request_success_total{finished_reason=\"length\",model_name=\"Scripted-1\"}".into()) >= 1.0);
    assert!(value("llamacpp:tokens_predicted_total{model=\"Scripted-1\"}".into()) > 0.0);
    assert!(!page.contains(CANARY), "a client's words on the page");
}
