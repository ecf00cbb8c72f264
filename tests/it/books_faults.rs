//! What the books promise when the process is killed and when the disk says no: the real binary, real signals.

use crate::support::ledger::{Finished, MODEL, client, hearth, open, rows, serve, serve_with};
use crate::support::served::Served;
use crate::support::{PATIENCE, chat_body};
use hearth::gateway::store::RequestRow;
use hearth::gateway::{KeySpec, SOCKET};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// T-R1. HEARTH_KILLS sets how often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_no_answer_is_without_its_row() {
    let n_kills: usize = std::env::var("HEARTH_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let key = hearth(dir.path(), &["keys", "new", "--alias", "clients"]).expect("made with the server down");
    let finished = Finished::default();
    let (mut made, mut revoked) = (BTreeSet::new(), BTreeSet::new());
    for kill in 0..n_kills {
        let served = serve(dir.path());
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..8)
            .map(|n| tokio::spawn(client(served.url.clone(), key.clone(), n, Arc::clone(&finished), Arc::clone(&stop))))
            .collect();
        // Acts that were acknowledged before the kill.
        let id = format!("k{kill}");
        let new = hearth(dir.path(), &["keys", "new", "--alias", &id]).expect("made with the server up");
        made.insert(new.clone());
        if kill % 2 == 1 {
            hearth(dir.path(), &["keys", "revoke", &new]).expect("revoked");
            revoked.insert(new);
        }
        tokio::time::sleep(Duration::from_millis(30 + 137 * kill as u64 % 400)).await;
        let killed = Command::new("kill").args(["-9", &served.pid().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        drop(served);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("a client does not panic");
        }
        let books = open(dir.path()).await;
        let rows = rows(&books).await;
        let by_id: BTreeMap<&str, &RequestRow> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
        assert_eq!(by_id.len(), rows.len(), "I2: no row twice");
        for (id, out_tok) in finished.lock().expect("a lock").iter() {
            let row = by_id.get(id.as_str()).unwrap_or_else(|| unreachable!("I1: {id} was answered and has no row"));
            assert_eq!((row.out_tok, row.status), (*out_tok, 200), "{id}");
        }
        assert_eq!(books.store().check().await.expect("it can be read"), [""; 0], "I4");
        let verified = books.store().verify(1).await.expect("it can be read");
        assert_eq!(verified.fault, None, "I5");
        assert_eq!(verified.n_rows, rows.len() as u64);
        for key in &made {
            assert_eq!(books.keyring().find(key, 0).is_some(), !revoked.contains(key), "I6");
        }
        let left = books
            .store()
            .read(|conn| Ok(conn.query_row("SELECT count(*) FROM inflight", [], |row| row.get::<_, i64>(0))?));
        assert_eq!(left.await.expect("it can be read"), 0, "what ran was settled as crashed");
        books.close().await;
    }
    assert!(finished.lock().expect("a lock").len() > n_kills, "clients were served");
    assert!(hearth(dir.path(), &["audit", "verify"]).expect("with the server down").starts_with("ok: "));
    assert_eq!(hearth(dir.path(), &["db", "check"]).as_deref(), Ok("ok"));
}

/// T-R3: the files may not grow beyond a limit, which is then lifted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_new_requests_and_recovers_without_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let key = hearth(dir.path(), &["keys", "new"]).expect("made with the server down");
    let folder = dir.path().to_str().expect("a path of text").to_owned();
    // A signal would kill the process at the limit; ignored, the write fails, as on a full disk.
    let command = "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" \"$@\"";
    let served =
        Served::through(&["bash", "-c", command], &[MODEL, "--data-dir", &folder, "-np", "4", "--alias", "Scripted-1"]);
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let ask = |text: &str, stream: bool| {
        let body = chat_body(text, json!({ "stream": stream }));
        client.post(format!("{}/v1/chat/completions", served.url)).bearer_auth(&key).json(&body).send()
    };
    let mut answered = BTreeSet::new();
    let mut refusal = None;
    let mut long = ask("/count 600", true).await.expect("an answer");
    assert!(long.chunk().await.expect("it lives").is_some());
    answered.insert(long.headers()["x-request-id"].to_str().expect("text").to_owned());
    for _ in 0..2000 {
        let response = ask("hi", false).await.expect("an answer");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        match response.status().as_u16() {
            200 => drop(answered.insert(id)),
            503 => {
                refusal = Some(response.text().await.expect("text"));
                break;
            }
            other => unreachable!("{other}: {}", response.text().await.unwrap_or_default()),
        }
    }
    assert!(refusal.expect("the limit is met").contains("ledger_unavailable"));
    assert_eq!(served.status("/readyz"), Some(503));
    assert_eq!(served.status("/livez"), Some(200));
    // The stream that ran before ends well: its row waits in memory.
    let mut text = String::new();
    while let Some(bytes) = long.chunk().await.expect("it lives") {
        text += &String::from_utf8_lossy(&bytes);
    }
    assert!(text.trim_end().ends_with("data: [DONE]"), "{}", &text[text.len().saturating_sub(300)..]);
    let act = hearth(dir.path(), &["keys", "new"]);
    assert!(act.is_err(), "an act that can't be kept is not done: {act:?}");
    let lifted = Command::new("prlimit").args(["--fsize=unlimited", "--pid", &served.pid().to_string()]).status();
    assert!(lifted.expect("prlimit runs").success());
    let started = Instant::now();
    let next = loop {
        let response = ask("hi", false).await.expect("an answer");
        if response.status() == 200 {
            break response.headers()["x-request-id"].to_str().expect("text").to_owned();
        }
        assert!(started.elapsed() < PATIENCE, "it recovers by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    answered.insert(next);
    drop(served);
    let books = open(dir.path()).await;
    let found: BTreeSet<String> = rows(&books).await.into_iter().map(|row| row.id).collect();
    let lost: Vec<&String> = answered.difference(&found).collect();
    assert!(lost.is_empty(), "{} of {} answers have no row", lost.len(), answered.len());
    assert_eq!(books.store().verify(1).await.expect("it can be read").fault, None);
    assert_eq!(books.store().check().await.expect("it can be read"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_works_with_the_server_up_and_down() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path();
    assert_eq!(hearth(path, &["teams", "new", "core", "--budget", "50/1mo"]).as_deref(), Ok("made"));
    let key = hearth(path, &["keys", "new", "--team", "core", "--rpm", "60", "--budget", "5/30d"]).expect("a key");
    let id = &key["sk-hearth-".len().."sk-hearth-".len() + 12];
    let shown = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    for is_up in [false, true] {
        let served = is_up.then(|| serve(path));
        assert_eq!(path.join(SOCKET).exists(), is_up);
        let key_shown = shown(&hearth(path, &["keys", "show", id]).expect("shown"));
        assert_eq!(
            (&key_shown["team_id"], &key_shown["rpm_limit"], &key_shown["max_budget"]),
            (&json!("core"), &json!(60), &json!(5.0))
        );
        assert!(hearth(path, &["keys", "list"]).expect("a list").contains(id));
        let json = shown(&hearth(path, &["keys", "list", "--team", "core", "--json"]).expect("a list"));
        assert_eq!(json.as_array().map(Vec::len), Some(1));
        assert!(hearth(path, &["keys", "show", "nobody"]).expect_err("unknown").contains("no such key"));
        assert_eq!(hearth(path, &["keys", "block", id]).as_deref(), Ok("blocked"));
        assert!(hearth(path, &["keys", "list"]).expect("a list").contains("blocked"));
        assert_eq!(hearth(path, &["keys", "unblock", id]).as_deref(), Ok("open again"));
        assert!(hearth(path, &["teams", "show", "core"]).expect("shown").contains(id));
        assert!(hearth(path, &["audit", "verify"]).expect("verified").starts_with("ok: "));
        assert_eq!(hearth(path, &["db", "check"]).as_deref(), Ok("ok"));
        if let Some(served) = &served {
            let client = reqwest::Client::new();
            let rotated = hearth(path, &["keys", "rotate", id]).expect("a key");
            for (key, status) in [(&rotated, 200), (&key, 401)] {
                let body = chat_body("hello", json!({}));
                let answer = client.post(format!("{}/v1/chat/completions", served.url)).bearer_auth(key).json(&body);
                assert_eq!(answer.send().await.expect("an answer").status(), status);
            }
            assert!(hearth(path, &["spend", "--by", "team"]).expect("a table").contains("core"));
            let csv = hearth(path, &["spend", "--by", "key", "--csv"]).expect("a table");
            assert!(csv.lines().nth(1).is_some_and(|line| line.starts_with(&format!("{id},1,0,"))), "{csv}");
        }
        drop(served);
    }
    assert_eq!(hearth(path, &["keys", "revoke", id]).as_deref(), Ok("revoked"));
    let export = hearth(path, &["audit", "export"]).expect("lines");
    assert!(export.lines().all(|line| shown(line)["mac"].is_string()) && export.contains("key.delete"));
    assert!(hearth(path, &["audit", "verify"]).expect("verified").starts_with("ok: "));
}

/// Ends the server as an operator does: its last checkpoint is written then.
fn stop(mut served: Served) {
    let sent = Command::new("kill").args(["-TERM", &served.pid().to_string()]).status().expect("kill runs");
    assert!(sent.success() && served.ended(PATIENCE), "the process ends by itself");
}

/// `hearth audit verify --from-checkpoint`: a folder that fits itself, and not what stands elsewhere.
#[test]
fn a_checkpoint_that_was_kept_elsewhere_tells_of_another_chain() {
    let (dir, copy, anew) = (tempfile::tempdir(), tempfile::tempdir(), tempfile::tempdir());
    let [dir, copy, anew] = [&dir, &copy, &anew].map(|dir| dir.as_ref().expect("a temporary folder").path());
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| elsewhere.path().join(name).to_str().expect("text").to_owned();
    let (witness, log) = (file("witness"), file("log"));
    let verify = |dir: &Path, from: &str| hearth(dir, &["audit", "verify", "--from-checkpoint", from]);
    let life = || {
        let served = serve_with(dir, &["--witness", &witness]);
        hearth(dir, &["keys", "new"]).expect("a key");
        stop(served);
        fs::read_to_string(&witness).expect("a witness").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = life();
    assert!(!first.is_empty());
    assert!(verify(dir, &witness).expect("it is the one").starts_with("ok: "));
    // What a backup has, whoever plays it back.
    for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a kind").is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).expect("a writable folder");
        }
    }
    assert!(verify(copy, &witness).expect("nothing came after it").starts_with("ok: "));
    let lines = life();
    assert!(lines.len() > first.len() && lines[..first.len()] == first);
    assert!(verify(dir, &witness).expect("it is the one").starts_with("ok: "));
    assert!(hearth(copy, &["audit", "verify"]).expect("by itself it fits").starts_with("ok: "));
    let told = verify(copy, &witness).expect_err("the end is missing");
    // Another one by now: each look from the command line is a start, which is a link.
    assert!(told.contains("kept elsewhere does not fit") || told.contains("the chain was cut"), "{told}");
    // Made anew, and as long.
    for _ in 0..20 {
        hearth(anew, &["keys", "new"]).expect("a key");
    }
    assert!(hearth(anew, &["audit", "verify"]).expect("by itself it fits").starts_with("ok: "));
    let told = verify(anew, &witness).expect_err("it is another");
    assert!(told.contains("the chain was made anew"), "{told}");
    // The log's lines do as well: the last whole one that has a checkpoint.
    let last = lines.last().expect("a line");
    let line = json!({ "level": "INFO", "message": "audit checkpoint", "checkpoint": last }).to_string();
    let other = json!({ "level": "INFO", "message": "something else" }).to_string();
    fs::write(&log, format!("{other}\n{line}\n{other}\n{}", &line[..line.len() / 2])).expect("a writable folder");
    assert!(verify(dir, &log).expect("it is the one").starts_with("ok: "));
    assert!(verify(copy, &log).expect_err("the end is missing").contains("a checkpoint that was kept elsewhere"));
    fs::write(&log, json!({ "seq": 9999, "head": "0".repeat(64) }).to_string()).expect("a writable folder");
    assert!(verify(dir, &log).expect_err("no such link").contains("link 9999 is wrong"));
    fs::write(&log, other).expect("a writable folder");
    assert!(verify(dir, &log).expect_err("nothing to hold it against").contains("has no checkpoint"));
    assert!(verify(dir, &file("nowhere")).expect_err("no file").contains("nowhere"));
}

/// The spec of a key is plain data, and stays readable.
#[test]
fn a_spec_is_kept_as_it_is() {
    let text =
        r#"{"alias":"a","models":["m"],"limits":{"rpm":3},"budget":{"max_nusd":5,"period":{"n":1,"unit":"month"}}}"#;
    let spec: KeySpec = serde_json::from_str(text).expect("a spec");
    assert_eq!(spec.budget.period.as_ref().map(ToString::to_string).as_deref(), Some("1mo"));
    let again: KeySpec = serde_json::from_str(&serde_json::to_string(&spec).expect("text")).expect("a spec");
    assert_eq!(again, spec);
    assert!(serde_json::from_str::<KeySpec>(r#"{"allowed_routes":["*"]}"#).is_err());
}
