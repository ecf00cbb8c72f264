//! T-P4, loosely, so that it holds on any machine: a server that nobody asks. `benches/overload.rs` has the figures.

use crate::support::served::{Served, http_status};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn it_answers_soon_and_holds_little_when_nobody_asks() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let books = dir.path().join("books");
    let served = Served::of(&["models/hearth-demo.gguf", "--data-dir", books.to_str().expect("a path of text")]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.pid())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    // The mark is 40 MiB of an optimised build; whatever a build has besides, the model is not in this process.
    assert!(kib < 80 << 10, "the front holds {kib} KiB");
}

#[test]
fn the_listener_does_not_wait_for_the_model() {
    // A model that takes far longer to load than anything else at the start.
    let dir = tempfile::tempdir().expect("a temporary folder");
    let since = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["serve", "scripted:load_ms=60000", "--port", "0"])
        .current_dir(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a first line");
    let address = line.trim().rsplit_once("://").expect("an address").1.to_owned();
    let (live, ready) = (http_status(&address, "/livez"), http_status(&address, "/readyz"));
    let took = since.elapsed();
    // An error means that it is gone already.
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!((live, ready), (Some(200), Some(503)));
    assert!(took < Duration::from_secs(30), "{took:?}");
}
