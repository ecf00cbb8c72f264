//! The server as systemd runs it: told, passed a socket, described by a unit.

use crate::support::PATIENCE;
use crate::support::process::Process;
use crate::support::served::root;
use rustix::process::Signal;
use serde_json::json;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Instant;

#[tokio::test]
async fn systemd_hears_when_the_server_is_ready_alive_and_stopping() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("notify");
    let ear = UnixDatagram::bind(&path).expect("a socket");
    ear.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let heard = || {
        let mut buffer = [0; 64];
        let n = ear.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let socket = path.to_str().expect("a plain path");
    let server = Process::with("", &[("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "200000")]);
    let mut said = vec![heard(), heard(), heard()];
    said.sort();
    assert_eq!(said, ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    server.until("", json!({}), 200).await;
    server.signal(Signal::TERM);
    let started = Instant::now();
    while heard() != "STOPPING=1" {
        assert!(started.elapsed() < PATIENCE, "never told that it stops");
    }
}

/// The client's own name for a request is in the log beside ours, if a log can take it.
#[tokio::test]
async fn a_request_is_logged_under_both_names() {
    let server = Process::start("");
    server.until("", json!({}), 200).await;
    for (id, is_logged) in [("trace-1.A_b", true), ("has space", false), ("quote\"", false), (&"x".repeat(129), false)]
    {
        let answer = server.chat_as(id).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let ours = answer.header("x-request-id").to_owned();
        assert!(ours.starts_with("req_"), "{ours}");
        server.until_logged(&ours).await;
        let log = server.log();
        let line = log.lines().find(|line| line.contains(&ours)).expect("a line");
        assert_eq!(line.contains(&format!("\"client_request_id\":\"{id}\"")), is_logged, "{line}");
        assert_eq!(line.contains("client_request_id"), is_logged, "{line}");
    }
}

fn hearth(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hearth")).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// systemd itself reads the unit, where it is installed; nothing has to run.
#[test]
fn the_unit_is_good_and_tight() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let service = dir.path().join("hearth.service");
    std::fs::write(&service, hearth(&["systemd"])).expect("a writable folder");
    std::fs::write(dir.path().join("hearth.socket"), hearth(&["systemd", "--socket", "127.0.0.1:8080"]))
        .expect("a writable folder");
    let analyze = |arguments: &[&str]| {
        let command = Command::new("systemd-analyze").args(arguments).arg(&service).current_dir(root()).output();
        command.ok().map(|output| {
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
    };
    // 25 of 100: the contract's 2.5.
    let Some((is_tight, report)) = analyze(&["security", "--offline=true", "--threshold=25", "--no-pager"]) else {
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    };
    let overall = report.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default().trim();
    eprintln!("{overall}");
    assert!(is_tight, "{report}");
    let (_, faults) = analyze(&["verify", "--man=false", "--recursive-errors=no"]).expect("it is installed");
    assert!(!faults.contains("hearth.service:"), "{faults}");
}
