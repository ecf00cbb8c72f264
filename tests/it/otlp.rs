//! Traces as a collector gets them, over real HTTP.

use crate::support::cloud::{self, Act, Cloud};
use crate::support::collector::{Collector, attribute, hex, protobuf, took};
use crate::support::process::Process;
use crate::support::routed::{route, upstream};
use crate::support::{Answer, MODEL, Server, Setup, chat_body};
use axum::response::IntoResponse;
use http::StatusCode;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Verdict;
use rustix::process::Signal;
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Must not be found anywhere.
const CANARY: &str = "canary-5e1f";

async fn traced(collector: &Collector, ratio: f64, change: impl FnOnce(&mut Setup)) -> Server {
    let endpoint = collector.endpoint.clone();
    Server::with(|setup| {
        setup.otlp = Some((endpoint, ratio));
        change(setup);
    })
    .await
}

/// Everything that was done has been sent, or dropped.
async fn flush(server: &Server) {
    server.exporter.as_ref().expect("an exporter").close().await;
}

async fn post(server: &Server, path: &str, body: Value, parent: &str) -> Answer {
    let request = server.client.post(server.url(path)).header("traceparent", parent).json(&body);
    Answer::of(request.send().await.expect("an answer")).await
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    let names = || spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{name} among {:?}", names());
    found[0]
}

fn says(span: &Span, key: &str) -> Value {
    attribute(&span.attributes, key)
}

fn is_within(inner: &Span, outer: &Span) {
    let times = |span: &Span| (span.start_time_unix_nano, span.end_time_unix_nano);
    let ((a, b), (c, d)) = (times(inner), times(outer));
    assert!(c <= a && a <= b && b <= d, "{} {a}..{b} is not within {} {c}..{d}", inner.name, outer.name);
}

/// The number of a series on the Prometheus page, 0 where it isn't there.
async fn series(server: &Server, name: &str) -> u64 {
    let page = server.metrics().await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |n| n.parse().expect("a number"))
}

#[tokio::test]
async fn a_chat_is_a_span_with_its_phases_below_it() {
    let collector = Collector::start().await;
    let server = traced(&collector, 0.0, |_| {}).await;
    let body = chat_body(
        &format!("say {CANARY}"),
        json!({ "temperature": 0.7, "top_p": 0.5, "max_tokens": 18, "seed": 7, "stop": [format!("not {CANARY}")], "user": CANARY,
                "metadata": { "a": CANARY }, "frequency_penalty": 0.25 }),
    );
    let answer = post(&server, "/v1/chat/completions", body, PARENT).await;
    assert!(answer.content().contains(CANARY), "{}", answer.text);
    let usage = answer.json()["usage"].clone();
    let spans = collector.spans(5).await;
    let chat = named(&spans, &format!("chat {MODEL}"));
    for (key, value) in [
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("hearth")),
        ("gen_ai.request.model", json!(MODEL)),
        ("gen_ai.response.model", json!(MODEL)),
        ("gen_ai.request.temperature", json!(0.7)),
        ("gen_ai.request.top_p", json!(0.5)),
        ("gen_ai.request.max_tokens", json!(18)),
        ("gen_ai.request.seed", json!(7)),
        ("gen_ai.request.frequency_penalty", json!(0.25)),
        ("gen_ai.usage.input_tokens", usage["prompt_tokens"].clone()),
        ("gen_ai.usage.output_tokens", usage["completion_tokens"].clone()),
        ("gen_ai.response.finish_reasons", json!(["stop"])),
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("hearth.request.id", json!(answer.header("x-request-id"))),
        ("hearth.served_by", json!("local")),
        ("hearth.stream", json!(false)),
        ("hearth.usage.source", json!("engine")),
        ("error.type", Value::Null),
    ] {
        assert_eq!(says(chat, key), value, "{key}");
    }
    let header: Vec<&str> = answer.header("traceparent").split('-').collect();
    assert_eq!((hex(&chat.trace_id).as_str(), hex(&chat.span_id).as_str()), (TRACE, header[2]));
    assert_eq!(hex(&chat.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((chat.kind(), chat.flags), (SpanKind::Server, 0x301), "sampled, and its parent is elsewhere");
    assert_eq!(chat.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["hearth.first_token"]);
    let engine = named(&spans, &format!("engine {MODEL}"));
    assert_eq!((&engine.parent_span_id, engine.kind()), (&chat.span_id, SpanKind::Internal));
    let phases = ["queue", "prefill", "decode"].map(|name| named(&spans, name));
    for phase in phases {
        assert_eq!((&phase.parent_span_id, hex(&phase.trace_id).as_str()), (&engine.span_id, TRACE));
        is_within(phase, chat);
    }
    is_within(engine, chat);
    assert!(phases.windows(2).all(|pair| pair[0].end_time_unix_nano == pair[1].start_time_unix_nano));
    collector.look(|got| {
        assert_eq!(attribute(&got.resource, "service.name"), "hearth-test");
        assert_eq!(attribute(&got.resource, "service.version"), env!("CARGO_PKG_VERSION"));
        assert!(!String::from_utf8_lossy(&got.bytes).contains(CANARY), "words of the request");
    });
    // A collector has spans before the exporter has its answer, which is what counts them.
    flush(&server).await;
    assert_eq!(series(&server, "hearth_otlp_spans_exported_total").await, 5);
}

#[tokio::test]
async fn every_operation_has_its_name_and_refusals_say_why() {
    let collector = Collector::start().await;
    let server = traced(&collector, 1.0, |setup| setup.scripted().embeds = 1).await;
    let events = server.stream_chat("hi", json!({})).await;
    assert!(events.is_done);
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "a", "n": 2, "model": "house/Model" })),
        ("/v1/embeddings", json!({ "input": ["a", "b"] })),
        ("/v1/messages", json!({ "model": MODEL, "max_tokens": 3, "messages": [{ "role": "user", "content": "a" }] })),
        ("/api/chat", json!({ "model": MODEL, "stream": false, "messages": [{ "role": "user", "content": "a" }] })),
        ("/v1/responses", json!({ "model": MODEL, "input": "a" })),
    ] {
        assert_eq!(server.post(path, body).await.status, 200, "{path}");
    }
    let unknown = server.chat("hi", json!({ "model": CANARY })).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(server.post("/v1/completions", json!({ "prompt": 3.5 })).await.status, 400);
    assert_eq!(server.post("/v1/rerank", json!({ "query": "a", "documents": ["b"] })).await.status, 400);
    // Nothing is made there.
    assert_eq!(server.post("/tokenize", json!({ "content": "a" })).await.status, 200);
    server.get("/v1/models").await;
    flush(&server).await;
    let spans = collector.look(|got| got.spans.clone());
    let requests: Vec<&Span> = spans.iter().filter(|span| span.kind() == SpanKind::Server).collect();
    let mut told: Vec<String> = requests
        .iter()
        .map(|span| format!("{} {} {}", says(span, "http.route"), span.name, says(span, "http.response.status_code")))
        .map(|line| line.replace('"', ""))
        .collect();
    told.sort();
    let mut expected = [
        format!("/v1/chat/completions chat {MODEL} 200"),
        "/v1/completions text_completion house/Model 200".to_owned(),
        format!("/v1/embeddings embeddings {MODEL} 200"),
        format!("/v1/messages chat {MODEL} 200"),
        format!("/api/chat chat {MODEL} 200"),
        format!("/v1/responses chat {MODEL} 200"),
        "/v1/chat/completions chat 404".to_owned(),
        "/v1/completions text_completion 400".to_owned(),
        format!("/v1/rerank rerank {MODEL} 400"),
    ];
    expected.sort();
    assert_eq!(told, expected);
    assert!(requests.iter().all(|span| span.parent_span_id.is_empty()), "their traces begin here");
    let refused = requests.iter().find(|span| says(span, "http.response.status_code") == 404).expect("a refusal");
    assert_eq!(says(refused, "error.type"), "model_not_found");
    assert_eq!(refused.status.as_ref().map(|status| status.code()), Some(Verdict::Unset), "the client's fault");
    let embedded = requests.iter().find(|span| says(span, "gen_ai.operation.name") == "embeddings").expect("one");
    assert!(says(embedded, "gen_ai.usage.input_tokens").as_u64() > Some(0));
    assert_eq!(says(embedded, "gen_ai.usage.output_tokens"), Value::Null);
    let two = requests.iter().find(|span| says(span, "gen_ai.request.choice.count") == 2).expect("two choices");
    assert_eq!(says(two, "gen_ai.response.finish_reasons"), json!(["stop", "stop"]));
    assert_eq!(says(two, "gen_ai.response.model"), MODEL);
    collector.look(|got| assert!(!String::from_utf8_lossy(&got.bytes).contains(CANARY), "a name that means nothing"));
}

#[tokio::test]
async fn tries_at_other_servers_are_spans_that_those_hear_of() {
    let collector = Collector::start().await;
    let dead = Cloud::always(vec![Act::Send(cloud::head(500, ""))]).await;
    let cloud = Cloud::always(vec![Act::Send(cloud::answer(&["from", " afar"]).into())]).await;
    let server = traced(&collector, 1.0, |setup| {
        setup.gateway.routing.may_leave = true;
        setup.gateway.routing.upstreams =
            vec![upstream("dead", &dead.base_url()), upstream("cloud", &cloud.base_url())];
        setup.gateway.routing.routes = vec![route("far", &["dead", "cloud"])];
    })
    .await;
    assert_eq!(server.chat("hi", json!({ "model": "far" })).await.status, 200);
    let spans = collector.spans(3).await;
    let chat = named(&spans, "chat far");
    assert_eq!((says(chat, "gen_ai.response.model"), says(chat, "hearth.served_by")), (json!("cloud"), json!("cloud")));
    assert_eq!(says(chat, "gen_ai.usage.output_tokens"), 2);
    for (name, there, class, verdict) in
        [("upstream dead", &dead, "transient", Verdict::Error), ("upstream cloud", &cloud, "ok", Verdict::Unset)]
    {
        let tried = named(&spans, name);
        let told = format!("00-{}-{}-03", hex(&chat.trace_id), hex(&tried.span_id));
        assert_eq!(there.last().header("traceparent"), Some(told.as_str()));
        assert_eq!((&tried.parent_span_id, tried.kind()), (&chat.span_id, SpanKind::Client));
        assert_eq!(says(tried, "hearth.class"), class);
        assert_eq!(tried.status.as_ref().map(|status| status.code()), Some(verdict));
        is_within(tried, chat);
    }
    assert_eq!(says(named(&spans, "upstream dead"), "http.response.status_code"), 500);
}

#[tokio::test]
async fn parents_decide_what_is_recorded_and_of_the_rest_the_ratio() {
    let collector = Collector::start().await;
    let server = traced(&collector, 0.0, |_| {}).await;
    let path = "/v1/completions";
    for parent in [&PARENT.replace("-01", "-00"), "nonsense"] {
        let answer = post(&server, path, json!({ "prompt": "a" }), parent).await;
        assert!(answer.header("traceparent").ends_with("-00") || answer.header("traceparent").ends_with("-02"));
    }
    post(&server, path, json!({ "prompt": "a" }), PARENT).await;
    flush(&server).await;
    let traces = |got: &crate::support::collector::Got| {
        got.spans
            .iter()
            .filter(|span| span.kind() == SpanKind::Server)
            .map(|span| hex(&span.trace_id))
            .collect::<Vec<_>>()
    };
    assert_eq!(collector.look(traces), [TRACE]);

    let collector = Collector::start().await;
    let server = traced(&collector, 0.5, |_| {}).await;
    let mut expected = Vec::new();
    for _ in 0..60 {
        let answer = server.complete(json!("a"), json!({})).await;
        let parts: Vec<String> = answer.header("traceparent").split('-').map(str::to_owned).collect();
        if parts[3] == "03" {
            expected.push(parts[1].clone());
        }
    }
    post(&server, path, json!({ "prompt": "a" }), &PARENT.replace("-01", "-00")).await;
    flush(&server).await;
    assert!((10..50).contains(&expected.len()), "{} of 60", expected.len());
    assert_eq!(collector.look(traces), expected, "what the header says is what is recorded");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_but_the_spans() {
    // A port that nobody listens on, and one where nobody answers.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let gone = format!("http://{}", closed.local_addr().expect("a bound socket"));
    drop(closed);
    let silent = Cloud::always(vec![Act::Hang]).await;
    for endpoint in [gone, format!("http://{}", silent.address)] {
        let server = Server::with(|setup| setup.otlp = Some((endpoint, 1.0))).await;
        for _ in 0..20 {
            let answer = server.complete(json!("hello"), json!({})).await;
            assert_eq!((answer.status, answer.content().as_str()), (200, "hello"));
        }
        assert_eq!(series(&server, "hearth_otlp_spans_exported_total").await, 0);
        server.stop().await;
    }
    let server = Server::with(|setup| setup.otlp = Some((format!("http://{}", silent.address), 1.0))).await;
    // What waits has a bound: more than that is dropped at once, and counted.
    let exporter = server.exporter.as_ref().expect("an exporter");
    let span = || hearth::telemetry::spans::Span {
        context: hearth::telemetry::context::TraceContext::fresh(1.0),
        id: hearth::telemetry::context::SpanId::fresh(),
        parent: None,
        name: "x".to_owned(),
        kind: hearth::telemetry::spans::SpanKind::Internal,
        start: std::time::SystemTime::now(),
        end: std::time::SystemTime::now(),
        attributes: Vec::new(),
        events: Vec::new(),
        has_failed: false,
    };
    (0..5000).for_each(|_| exporter.send(vec![span(), span()]));
    let dropped = series(&server, "hearth_otlp_spans_dropped_total{reason=\"queue_full\"}").await;
    assert!((2 * (5000 - 2048 - 256)..=2 * (5000 - 2048)).contains(&dropped), "{dropped} of 10,000");
    assert_eq!(server.complete(json!("hello"), json!({})).await.status, 200);
}

#[tokio::test]
async fn what_a_collector_puts_off_is_sent_again_and_what_it_refuses_is_not() {
    let later = |n: usize| match n {
        0 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response(),
        1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
        2 => took(n),
        3 => StatusCode::BAD_REQUEST.into_response(),
        _ => protobuf(Some(2)),
    };
    let collector = Collector::answering(later).await;
    let server = traced(&collector, 1.0, |_| {}).await;
    let dropped =
        async |reason: &str| series(&server, &format!("hearth_otlp_spans_dropped_total{{reason=\"{reason}\"}}")).await;
    server.complete(json!("a"), json!({})).await;
    collector.spans(5).await;
    assert_eq!(collector.look(|got| got.n_requests), 3, "it came once, at the third try");
    server.complete(json!("a"), json!({})).await;
    while dropped("refused").await < 5 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    server.complete(json!("a"), json!({})).await;
    flush(&server).await;
    assert_eq!((dropped("refused").await, dropped("rejected").await, dropped("undelivered").await), (5, 2, 0));
    assert_eq!(series(&server, "hearth_otlp_spans_exported_total").await, 5 + 3);
    assert_eq!(collector.look(|got| got.n_requests), 5);
}

#[tokio::test]
async fn the_binary_sends_what_it_knows_before_it_ends_and_nothing_unasked() {
    let collector = Collector::start().await;
    // Variables of OpenTelemetry's own are no setting of this server.
    let unasked = Process::with("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str())]);
    unasked.until("", json!({}), 200).await;
    unasked.signal(Signal::TERM);
    unasked.until_logged("stopped").await;
    assert_eq!(collector.look(|got| got.n_requests), 0);

    let dir = tempfile::tempdir().expect("a temporary folder");
    let headers = dir.path().join("headers");
    std::fs::write(&headers, "Authorization=Basic%20cGstbGY6c2stbGY=\n").expect("a writable folder");
    let settings = format!(
        "[telemetry]\nlog_level = \"trace\"\notlp_endpoint = \"{}/v1/traces\"\notlp_headers = \"file:{}\"\notlp_service = \"house\"\n",
        collector.endpoint,
        headers.display()
    );
    let server = Process::start(&settings);
    server.until("", json!({}), 200).await;
    let n_before = collector.look(|got| got.spans.len());
    let answer = server.chat("", json!({})).await;
    server.signal(Signal::TERM);
    server.until_logged("stopped").await;
    collector.look(|got| {
        assert!(got.spans.len() >= n_before + 5, "the last request's, too");
        assert_eq!(got.headers["authorization"], "Basic cGstbGY6c2stbGY=");
        assert_eq!(attribute(&got.resource, "service.name"), "house");
        let id = json!(answer.header("x-request-id"));
        assert!(got.spans.iter().any(|span| says(span, "hearth.request.id") == id));
    });
    let log = server.log();
    assert!(!log.contains("cGstbGY6c2stbGY"), "the collector's password is in the log");
}
