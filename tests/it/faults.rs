//! Upstreams that misbehave in every way known: each fault has its class, and no character is lost or doubled.

use crate::support::cloud::{Act, Cloud, DONE, SSE, answer, event, finish, head, role, text, usage};
use crate::support::routed::{End, Routed, chat, route, upstream};
use crate::support::tls::Authority;
use hearth::chat::Finish;
use hearth::gateway::{Class, RetryConfig, UsageSource};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// What one fault must come to.
struct Fault {
    name: &'static str,
    acts: Vec<Act>,
    class: Class,
    /// What the client has seen of it.
    text: &'static str,
}

fn fault(name: &'static str, bytes: impl AsRef<[u8]>, class: Class, text: &'static str) -> Fault {
    Fault { name, acts: vec![Act::Send(bytes.as_ref().to_vec())], class, text }
}

fn acts(name: &'static str, acts: Vec<Act>, class: Class, text: &'static str) -> Fault {
    Fault { name, acts, class, text }
}

fn of_heads() -> Vec<Fault> {
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>";
    let error = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"error\":{}}";
    let zipped = SSE.replacen("connection", "content-encoding: gzip\r\nconnection", 1) + "\x1f";
    let status = |name, status, headers: &str, class| fault(name, head(status, headers), class, "");
    let endless = "x-pad: 0123456789\r\n".repeat(20_000);
    let slow = b"HTTP/1.1 200 OK\r\n".to_vec();
    vec![
        status("400", 400, "", Class::ClientFault),
        status("401", 401, "", Class::ClientFault),
        status("404", 404, "", Class::ClientFault),
        status("408", 408, "", Class::Transient),
        status("409", 409, "", Class::Transient),
        status("429", 429, "", Class::Throttled),
        status("429, seconds", 429, "retry-after: 7\r\n", Class::Throttled),
        status("429, ms", 429, "retry-after-ms: 1\r\n", Class::Throttled),
        status("429, date", 429, "retry-after: Sun, 06 Nov 2094 08:49:37 GMT\r\n", Class::Throttled),
        status("429, garbage", 429, "retry-after: soon\r\n", Class::Throttled),
        status("429, 1e9", 429, "retry-after: 1000000000\r\n", Class::Throttled),
        status("500", 500, "", Class::Transient),
        status("502", 502, "", Class::Transient),
        status("503", 503, "", Class::Transient),
        status("503, seconds", 503, "retry-after: 1\r\n", Class::Throttled),
        status("529", 529, "", Class::Transient),
        status("redirect", 302, "location: http://169.254.169.254/latest\r\n", Class::Transient),
        fault("html", html, Class::Transient, ""),
        fault("a JSON error with 200", error, Class::Transient, ""),
        fault("gzip", zipped, Class::Transient, ""),
        fault("no HTTP", "SSH-2.0-OpenSSH\r\n", Class::Transient, ""),
        fault("endless headers", format!("HTTP/1.1 200 OK\r\n{endless}"), Class::Transient, ""),
        acts("reset at once", vec![Act::Reset], Class::Transient, ""),
        acts("closed at once", vec![], Class::Transient, ""),
        acts("silence", vec![Act::Hang], Class::Transient, ""),
        acts("slow headers", vec![Act::Drip(slow, 1, Duration::from_millis(40)), Act::Hang], Class::Transient, ""),
        acts("silence behind the head", vec![Act::Send(SSE.into()), Act::Hang], Class::Transient, ""),
    ]
}

fn of_streams() -> Vec<Fault> {
    let sse = |body: &str| format!("{SSE}{body}");
    let some = |n: usize| (0..n).map(|_| text("ab")).collect::<String>();
    let long = format!("data: {}\n\n", "x".repeat(1 << 20));
    let error = event(&json!({ "error": { "message": "secret", "type": "server_error", "code": "500" } }));
    let overloaded = event(&json!({ "error": { "type": "overloaded_error" } }));
    let end = format!("{}{}{DONE}", finish("stop"), usage(5, 3));
    let filtered = format!("{}{}", text("ab"), finish("content_filter"));
    let other = event(&json!({ "choices": [{ "index": 1, "delta": { "content": "b" } }] }));
    let length = |n: usize, body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {n}\r\n\r\n{body}")
    };
    vec![
        fault("error behind the role", sse(&(role() + &error)), Class::Transient, ""),
        fault("overload behind the role", sse(&(role() + &overloaded)), Class::Throttled, ""),
        fault("cut behind the role", sse(&role()), Class::Transient, ""),
        fault("only roles", sse(&role().repeat(80)), Class::Transient, ""),
        fault("only comments", sse(&": ping, and more\n\n".repeat(20_000)), Class::Transient, ""),
        fault("a line without end", sse(&long), Class::Transient, ""),
        fault("NUL", sse("data: {\"choices\":[{\"delta\":{\"content\":\"\0\"}}]}\n\n"), Class::Transient, ""),
        fault("not UTF-8", [SSE.as_bytes(), b"data: \xff\xfe\n\n"].concat(), Class::Transient, ""),
        fault("no JSON", sse("data: hello\n\n"), Class::Transient, ""),
        fault("a choice nobody asked for", sse(&other), Class::Transient, ""),
        fault("filtered at once", sse(&finish("content_filter")), Class::PolicyStop, ""),
        fault(
            "error after 20 tokens",
            sse(&(some(20) + &error)),
            Class::Transient,
            "abababababababababababababababababababab",
        ),
        fault("filtered later", sse(&filtered), Class::PolicyStop, "ab"),
        fault("a line without end, later", sse(&(some(1) + &long)), Class::Transient, "ab"),
        fault("no finish_reason", sse(&(some(2) + DONE)), Class::Transient, "abab"),
        fault("neither end nor finish_reason", sse(&some(2)), Class::Transient, "abab"),
        fault("text behind the end", sse(&(some(1) + &finish("stop") + &text("c") + DONE)), Class::Transient, "ab"),
        fault("too short a length", length(some(1).len() - 3, &some(1)), Class::Transient, ""),
        fault("too long a length", length(9999, &some(1)), Class::Transient, "ab"),
        acts(
            "reset later",
            vec![Act::Send(sse(&some(1)).into()), Act::Wait(Duration::from_millis(30)), Act::Reset],
            Class::Transient,
            "ab",
        ),
        acts("silence later", vec![Act::Send(sse(&some(1)).into()), Act::Hang], Class::Stall, "ab"),
        fault("no [DONE]", sse(&(some(1) + &finish("stop") + &usage(5, 3))), Class::Ok, "ab"),
        fault("two [DONE]", sse(&(some(1) + &end + DONE)), Class::Ok, "ab"),
        fault("no usage", sse(&(some(1) + &finish("stop") + DONE)), Class::Ok, "ab"),
        fault("negative usage", sse(&(some(1) + &finish("stop") + &usage(-1, -5) + DONE)), Class::Ok, "ab"),
        fault("usage of 2^63", sse(&(some(1) + &finish("stop") + &usage(1, 1_u64 << 63) + DONE)), Class::Ok, "ab"),
        fault("CRLF", sse(&(some(1) + &end)).replace('\n', "\r\n").replace("\r\r", "\r"), Class::Ok, "ab"),
        fault("CR", sse("") + &(some(1) + &end).replace('\n', "\r"), Class::Ok, "ab"),
        acts(
            "characters cut in two",
            vec![Act::Drip(answer(&["\u{e9}\u{1f600}", "\u{2014}"]).into(), 1, Duration::ZERO)],
            Class::Ok,
            "\u{e9}\u{1f600}\u{2014}",
        ),
        fault("nothing to say", sse(&(role() + &end)), Class::Ok, ""),
    ]
}

#[tokio::test]
async fn every_fault_has_its_class_and_nothing_is_retried_behind_the_first_content() {
    for Fault { name, acts, class, text } in of_heads().into_iter().chain(of_streams()) {
        // Whoever is slow on a busy machine has not hung.
        let hangs = acts.iter().any(|act| matches!(act, Act::Hang));
        let (first_byte, idle) = if hangs { (1000, 500) } else { (5000, 5000) };
        let cloud = Cloud::always(acts).await;
        let spare = Cloud::always(vec![Act::Send(answer(&["spare"]).into())]).await;
        let routed = Routed::of(|setup| {
            let mut first = upstream("first", &cloud.base_url());
            first.timeouts.first_byte = Duration::from_millis(first_byte);
            first.timeouts.idle = Duration::from_millis(idle);
            setup.gateway.routing.upstreams = vec![first, upstream("spare", &spare.base_url())];
            setup.gateway.routing.routes = vec![route("a", &["first", "spare"])];
        })
        .await;
        let came = routed.ask(chat("a", "hi")).await;
        let first = came.told.attempts.first().unwrap_or_else(|| unreachable!("{name}: nothing was tried"));
        assert_eq!((first.target.as_str(), first.class), ("first", class), "{name}: {came:?}");
        assert!(cloud.n_connections() <= 1, "{name}");
        let moves_on = text.is_empty() && matches!(class, Class::Throttled | Class::Transient | Class::Stall);
        if moves_on {
            assert_eq!((came.text.as_str(), came.served_by(), came.is_done()), ("spare", "spare", true), "{name}");
            continue;
        }
        assert_eq!((came.text.as_str(), spare.n_bytes()), (text, 0), "{name}");
        match class {
            Class::Ok => assert_eq!(came.end, End::Done(Finish::EndOfTurn), "{name}"),
            _ if text.is_empty() => assert!(matches!(came.end, End::Refused(_)), "{name}: {came:?}"),
            _ => assert!(matches!(came.end, End::Failed(_)), "{name}: {came:?}"),
        }
        let is_counted = ["no [DONE]", "two [DONE]", "CRLF", "CR", "characters cut in two", "nothing to say"];
        let source = if is_counted.contains(&name) { UsageSource::Upstream } else { UsageSource::Estimated };
        assert_eq!(first.source, source, "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_transient() {
    let authority = Authority::new();
    let files = authority.issue("other", &["other.example"]);
    let tls = tokio_rustls::TlsAcceptor::from(acceptor(&files));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = tls.accept(stream).await;
        }
    });
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("a bound socket").port()
    };
    for (name, url, ca) in [
        ("refused", format!("http://127.0.0.1:{closed}/v1"), None),
        ("a name that is not there", "http://nowhere.invalid/v1".to_owned(), None),
        ("a certificate of another name", format!("https://localhost:{port}/v1"), Some(authority.path("ca.pem"))),
        ("no TLS at all", format!("http://127.0.0.1:{port}/v1"), None),
    ] {
        let routed = Routed::of(|setup| {
            let mut first = upstream("first", &url);
            first.ca = ca;
            setup.gateway.routing.upstreams = vec![first];
            setup.gateway.routing.routes = vec![route("a", &["first"])];
        })
        .await;
        let came = routed.ask(chat("a", "hi")).await;
        assert_eq!(came.attempts(), ["first:transient"], "{name}: {came:?}");
        assert!(matches!(came.end, End::Refused(_)), "{name}");
    }
}

fn acceptor(files: &hearth::http::TlsFiles) -> Arc<tokio_rustls::rustls::ServerConfig> {
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificates = CertificateDer::pem_file_iter(&files.cert).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let config = tokio_rustls::rustls::ServerConfig::builder().with_no_client_auth();
    Arc::new(config.with_single_cert(certificates.expect("certificates"), key).expect("a pair"))
}

/// The true text of a target, different from the first character on.
fn truth(target: &str) -> Vec<String> {
    (0..12).map(|n| format!("{target}{n}\u{e9} ")).collect()
}

/// A good answer, spoilt somewhere by chance.
fn spoilt(target: &str, seed: u64) -> Vec<Act> {
    let mut rng = StdRng::seed_from_u64(seed);
    let pieces = truth(target);
    let whole = answer(&pieces.iter().map(String::as_str).collect::<Vec<_>>()).into_bytes();
    let cut = rng.random_range(0..=whole.len());
    let step = rng.random_range(1..=whole.len());
    let drip = |bytes: &[u8]| Act::Drip(bytes.to_vec(), step, Duration::ZERO);
    let noise = event(&json!({ "error": { "type": "server_error" } }));
    match rng.random_range(0..12) {
        0..=2 => vec![drip(&whole)],
        3 | 4 => vec![drip(&whole[..cut])],
        5 => vec![drip(&whole[..cut]), Act::Reset],
        6 => vec![drip(&whole[..cut]), Act::Send(noise.into())],
        7 => vec![drip(&whole[..cut]), Act::Send(b"\n\ndata: {\xff\n\n".to_vec())],
        8 => vec![Act::Send(head(if seed.is_multiple_of(2) { 500 } else { 429 }, ""))],
        9 => vec![Act::Send(SSE.into()), Act::Send(role().into()), Act::Send(noise.into())],
        10 => vec![drip(&whole), drip(&whole)],
        _ => vec![drip(&whole[..cut]), Act::Hang],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_faulted_streams_lose_and_double_nothing() {
    const REQUESTS: u64 = 10_000;
    const AT_ONCE: u64 = 64;
    let a = Cloud::of(|n, _| spoilt("a", 2 * n)).await;
    let b = Cloud::of(|n, _| spoilt("b", 2 * n + 1)).await;
    let routed = Routed::of(|setup| {
        let calm = |name: &str, url: &str| {
            let mut config = upstream(name, url);
            config.retry =
                RetryConfig { attempts: 2, base: Duration::from_micros(10), budget_percent: 100, ..Default::default() };
            config.breaker.consecutive_failures = u32::MAX;
            config.breaker.min_samples = u32::MAX;
            (config.timeouts.first_byte, config.timeouts.idle) =
                (Duration::from_millis(250), Duration::from_millis(250));
            config
        };
        setup.gateway.routing.upstreams = vec![calm("a", &a.base_url()), calm("b", &b.base_url())];
        setup.gateway.routing.routes = vec![route("ab", &["a", "b"])];
    })
    .await;
    let routed = Arc::new(routed);
    let (whole_a, whole_b) = (truth("a").concat(), truth("b").concat());
    let (mut n_done, mut n_cut, mut n_refused) = (0, 0, 0);
    let mut running = tokio::task::JoinSet::new();
    for n in 0..REQUESTS + AT_ONCE {
        if n >= AT_ONCE {
            let came: crate::support::routed::Came = running.join_next().await.expect("one runs").expect("no panic");
            assert!(whole_a.starts_with(&came.text) || whole_b.starts_with(&came.text), "{came:?}");
            match came.end {
                End::Done(_) => {
                    assert!(came.text == whole_a || came.text == whole_b, "{came:?}");
                    n_done += 1;
                }
                End::Failed(_) => n_cut += 1,
                End::Refused(_) => {
                    assert_eq!(came.text, "");
                    n_refused += 1;
                }
            }
        }
        if n < REQUESTS {
            let routed = Arc::clone(&routed);
            running.spawn(async move { routed.ask(chat("ab", "hi")).await });
        }
    }
    println!("{n_done} whole, {n_cut} cut, {n_refused} refused; {} + {} requests sent", a.n_requests(), b.n_requests());
    assert_eq!(n_done + n_cut + n_refused, REQUESTS);
    assert!(n_done > REQUESTS / 10 && n_cut > REQUESTS / 20, "the faults are faults: {n_done} {n_cut}");
}
