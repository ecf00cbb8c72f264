//! Settings taken anew by the real binary: on SIGHUP, on a file's change, and never by halves.

use crate::support::PATIENCE;
use crate::support::process::{Process, replace};
use crate::support::tls::{Authority, shown};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_hangup_takes_keys_names_and_rules_anew() {
    let server = Process::start("api_key = \"one\"\n");
    server.until("one", json!({}), 200).await;
    assert_eq!(server.metric("one", "hearth_config_last_reload_success").await, "1");
    server.write("api_key = \"two\"\nstrict = true\nstrict = true\n");
    server.hangup();
    // The same is said twice: the file is no TOML, and the old settings stay.
    server.until_logged("hearth.toml line 6").await;
    assert_eq!(server.metric("one", "hearth_config_last_reload_success").await, "0");
    assert_eq!(server.chat("one", json!({})).await.status, 200);

    server.write("api_key = \"two\"\nstrict = true\nn_predict = 1\nany_model = true\n");
    server.hangup();
    server.until("two", json!({}), 200).await;
    assert_eq!(server.chat("one", json!({})).await.status, 401);
    assert_eq!(server.chat("two", json!({"model": "whatever"})).await.status, 200);
    assert_eq!(server.chat("two", json!({"foo": 1})).await.status, 400);
    assert_eq!(server.chat("two", json!({})).await.content(), "h");
    assert_eq!(server.metric("two", "hearth_config_last_reload_success").await, "1");

    server.write("api_key = \"two\"\nip_deny = \"127.0.0.0/8\"\ntrusted_proxy = \"127.0.0.1\"\n");
    server.hangup();
    server.until("two", json!({}), 403).await;
    server.write("api_key = \"two\"\n[[alias]]\nname = \"late\"\nmodel = \"scripted\"\n");
    server.hangup();
    server.until("two", json!({"model": "late"}), 200).await;
    assert_eq!(server.chat("two", json!({"model": "whatever"})).await.status, 404);
    assert_eq!(server.chat("two", json!({"foo": 1})).await.status, 200);
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_by_name_and_nothing_else_is_taken() {
    let server = Process::start("api_key = \"one\"\n");
    server.until("one", json!({}), 200).await;
    for (line, words) in [
        ("ctx_size = 1024", "ctx_size ("),
        ("parallel = 2", "parallel ("),
        ("host = \"127.0.0.2\"", "host ("),
        ("max_connections = 10", "max_connections ("),
        ("queue = 1", "queue ("),
    ] {
        server.write(&format!("api_key = \"two\"\n{line}\n"));
        server.hangup();
        server.until_logged(words).await;
        assert!(server.log().contains("line 5): another value needs a restart"), "{}", server.log());
        assert_eq!(server.chat("one", json!({})).await.status, 200);
        assert_eq!(server.chat("two", json!({})).await.status, 401);
    }
    server.write("api_key = \"two\"\n[[alias]]\nname = \"kept\"\nmodel = \"scripted\"\negress = \"never\"\n");
    server.hangup();
    server.until_logged("an [[alias]] with targets of its own, needs a restart").await;
    assert_eq!(server.chat("two", json!({})).await.status, 401);
    // A door that would be open to all is not opened.
    server.write("api_key_file = \"/nowhere/keys\"\n");
    server.hangup();
    server.until_logged("/nowhere/keys").await;
    assert_eq!(server.chat("one", json!({})).await.status, 200);
    assert!(!server.log().contains("\"two\""), "a key is in the log");
}

#[tokio::test]
async fn a_file_that_changes_is_read_without_being_asked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "one\n").expect("a writable folder");
    let server = Process::start(&format!("api_key_file = {:?}\n", keys.to_str().expect("a plain path")));
    server.until("one", json!({}), 200).await;
    replace(&keys, "two\nthree\n");
    server.until("three", json!({}), 200).await;
    assert_eq!(server.chat("one", json!({})).await.status, 401);
    // An empty one would open the door: refused, and the keys stay.
    replace(&keys, "# none\n");
    server.until_logged("holds no key").await;
    assert_eq!(server.chat("two", json!({})).await.status, 200);
    assert_eq!(server.chat("one", json!({})).await.status, 401);
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_used() {
    let authority = Authority::new();
    let files = authority.issue("server", &["localhost"]);
    let quoted = |path: &Path| format!("{:?}", path.to_str().expect("a plain path"));
    let server = Process::start(&format!("tls_cert = {}\ntls_key = {}\n", quoted(&files.cert), quoted(&files.key)));
    let address = server.address.parse().expect("an address");
    let client = authority.client();
    let before = shown(&client.connect(address).await.expect("a handshake"));
    // First the certificate alone, which fits no key: nobody may be served a broken pair.
    let key = std::fs::read(&files.key).expect("a key");
    authority.issue("server", &["localhost"]);
    let fresh_key = std::fs::read(&files.key).expect("a key");
    std::fs::write(&files.key, key).expect("a writable folder");
    server.hangup();
    server.until_logged("not a key of the certificate").await;
    assert_eq!(shown(&client.connect(address).await.expect("a handshake")), before);
    std::fs::write(&files.key, fresh_key).expect("a writable folder");
    let started = Instant::now();
    while shown(&client.connect(address).await.expect("a handshake")) == before {
        assert!(started.elapsed() < PATIENCE, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// T-R11, scaled: 20 hangups a second, a third of the files bad, under load. `HEARTH_SOAK_S` makes it as long as you like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_reloads_fails_no_request() {
    let seconds = std::env::var("HEARTH_SOAK_S").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let server = Arc::new(Process::start("api_key = \"one\"\n"));
    server.until("one", json!({}), 200).await;
    let (is_over, n_asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = |n: u32| {
        let (server, is_over, n_asked) = (Arc::clone(&server), Arc::clone(&is_over), Arc::clone(&n_asked));
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let answer = server.chat("one", json!({"stream": n.is_multiple_of(2)})).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
                assert!(!n.is_multiple_of(2) || answer.text.contains("data: [DONE]"), "{}", answer.text);
                n_asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let loads: Vec<_> = (0..4).map(load).collect();
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        match n % 3 {
            0 => server.write("api_key = [\"one\", \"two\"]\ntemp = 0.5\n"),
            1 => server.write("api_key = \"one\"\nnonsense = 1\n"),
            _ => server.write("api_key = [\"one\", \"three\"]\nstrict = true\n"),
        }
        server.hangup();
        n += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.expect("no request failed");
    }
    assert!(n_asked.load(Ordering::Relaxed) > 20, "too few requests to mean anything");
    server.write("api_key = \"last\"\n");
    server.hangup();
    server.until("last", json!({}), 200).await;
    let log = server.log();
    let (n_taken, n_refused) = (log.matches("were read anew").count(), log.matches("were not read anew").count());
    assert!(n_taken > 0 && n_refused > 0, "{n_taken} taken, {n_refused} refused");
    eprintln!("{n} hangups, {n_taken} taken, {n_refused} refused, {} requests", n_asked.load(Ordering::Relaxed));
}
