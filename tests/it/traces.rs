//! W3C's trace context: which trace a request belongs to, and who is told.

use crate::support::cloud::{Act, Cloud, answer};
use crate::support::governed::Governed;
use crate::support::process::Process;
use crate::support::routed::{route, upstream};
use crate::support::{Answer, MODEL, Server, chat_body};
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// (trace, span, flags) of a header that is as it should be.
fn parts(header: &str) -> (String, String, String) {
    let parts: Vec<&str> = header.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { unreachable!("{header:?}") };
    let is_hex = |text: &str, n: usize| {
        text.len() == n && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    assert!(version == "00" && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2), "{header:?}");
    assert!(trace != "0".repeat(32) && span != "0".repeat(16), "{header:?}");
    (trace.to_owned(), span.to_owned(), flags.to_owned())
}

async fn asked(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = server.client.post(server.url(path)).json(&chat_body("hi", json!({})));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Answer::of(request.send().await.expect("an answer")).await
}

#[tokio::test]
async fn a_trace_goes_on_here_and_every_answer_says_where() {
    let server = Server::start().await;
    for path in ["/v1/chat/completions", "/v1/nowhere", "/v1/messages", "/tokenize"] {
        let answer = asked(&server, path, &[("traceparent", PARENT)]).await;
        let (trace, span, flags) = parts(answer.header("traceparent"));
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"), "{path}");
        assert_ne!(span, "00f067aa0ba902b7", "a span of our own");
        let again = asked(&server, path, &[("traceparent", PARENT)]).await;
        assert_ne!(parts(again.header("traceparent")).1, span, "another one for each request");
    }
    let (trace, ..) = parts(server.get("/health").await.header("traceparent"));
    assert_ne!(trace, TRACE);
    let unsampled = asked(&server, "/v1/chat/completions", &[("traceparent", &PARENT.replace("-01", "-00"))]).await;
    assert_eq!(parts(unsampled.header("traceparent")).2, "00");
}

#[tokio::test]
async fn what_is_no_trace_begins_a_new_one() {
    let server = Server::start().await;
    let mut seen = Vec::new();
    for bad in [
        "".to_owned(),
        "nonsense".to_owned(),
        PARENT.to_uppercase(),
        format!("{PARENT}-more"),
        PARENT.replace(TRACE, &"0".repeat(32)),
        PARENT.replacen("00", "ff", 1),
    ] {
        let answer = asked(&server, "/v1/chat/completions", &[("traceparent", &bad), ("tracestate", "a=b")]).await;
        assert_eq!(answer.status, 200, "{bad:?} is no fault of the request");
        let (trace, _, flags) = parts(answer.header("traceparent"));
        assert_eq!(flags, "02", "random, and recorded by nobody here");
        assert!(trace != TRACE && !seen.contains(&trace), "{bad:?}");
        seen.push(trace);
    }
    let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
    assert_ne!(parts(asked(&server, "/v1/chat/completions", &twice).await.header("traceparent")).0, TRACE);
}

#[tokio::test]
async fn upstreams_are_told_and_rows_remember() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["from", " afar"]).into())]).await;
    let url = cloud.base_url();
    let house = Governed::with(move |setup, _| {
        setup.gateway.routing.may_leave = true;
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![route("far", &["cloud"])];
    })
    .await;
    let (key, _) = house.key(json!({ "egress": "allowed" })).await;
    let ask = |model: &str, headers: &[(&str, &str)]| {
        let body = chat_body("hi", json!({ "model": model }));
        let request = house.post(&key, "/v1/chat/completions", &body);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=x,other=y"), ("baggage", "secret=1")];
    let answer = Answer::of(ask("far", &headers).await.expect("an answer")).await;
    assert_eq!(answer.header("x-hearth-served-by"), "cloud");
    let (trace, ours, _) = parts(answer.header("traceparent"));
    let sent = cloud.last();
    let (sent_trace, theirs, flags) = parts(sent.header("traceparent").expect("a trace"));
    assert_eq!((trace.as_str(), sent_trace.as_str(), flags.as_str()), (TRACE, TRACE, "01"));
    assert!(theirs != ours && theirs != "00f067aa0ba902b7", "each attempt is a span of its own");
    assert_eq!((sent.header("tracestate"), sent.header("baggage")), (Some("vendor=x,other=y"), None));
    assert_eq!(house.row_of(&answer).await.trace_id.as_deref(), Some(TRACE));

    let answer = Answer::of(ask(MODEL, &[]).await.expect("an answer")).await;
    let (trace, ..) = parts(answer.header("traceparent"));
    assert_eq!(house.row_of(&answer).await.trace_id, Some(trace.clone()));
    let logs = house.look("/spend/logs").await;
    assert!(logs.to_string().contains(&trace), "{logs}");
    let answer = Answer::of(ask("far", &[]).await.expect("an answer")).await;
    let (trace, ..) = parts(answer.header("traceparent"));
    assert_eq!(parts(cloud.last().header("traceparent").expect("a trace")).0, trace);
    assert_eq!(cloud.last().header("tracestate"), None);
    house.is_verified().await;
}

#[tokio::test]
async fn the_log_has_one_line_for_each_request() {
    let server = Process::start("log_level = \"debug\"\n");
    server.until("", json!({}), 200).await;
    let answer = server.chat("", json!({ "max_tokens": 1 })).await;
    let id = answer.header("x-request-id").to_owned();
    server.until_logged(&id).await;
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let line: serde_json::Value = serde_json::from_str(lines[0]).expect("a line of JSON");
    let (trace, ..) = parts(answer.header("traceparent"));
    for (field, value) in [
        ("level", json!("INFO")),
        ("message", json!("request")),
        ("trace_id", json!(trace)),
        ("method", json!("POST")),
        ("endpoint", json!("/v1/chat/completions")),
        ("model", json!("scripted")),
        ("served_by", json!("local")),
        ("status", json!(200)),
        ("stream", json!(false)),
        ("outcome", json!("done")),
        ("finish", json!("length")),
        ("prompt_tokens", answer.json()["usage"]["prompt_tokens"].clone()),
        ("completion_tokens", json!(1)),
        ("usage_source", json!("engine")),
    ] {
        assert_eq!(line[field], value, "{field} in {line:#}");
    }
    for field in ["queue_ms", "ttft_ms", "total_ms"] {
        assert!(line[field].is_u64(), "{field} in {line:#}");
    }
    // A refusal has one, too.
    let answer = server.chat("", json!({ "model": "gone" })).await;
    assert_eq!(answer.status, 404);
    let id = answer.header("x-request-id").to_owned();
    server.until_logged(&id).await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains(&id)).expect("a line");
    let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
    assert_eq!((&line["status"], &line["error_code"]), (&json!(404), &json!("model_not_found")));
    assert!(line.get("model").is_none() && !line.to_string().contains("gone"), "{line:#}");
}
