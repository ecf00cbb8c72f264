//! The official OpenAI clients against the real binary and the demo model.
//!
//! `make test` installs them and sets HEARTH_CLIENTS=1; without that, a client that is not installed is skipped.

use crate::support::served::{Served, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs one client's script; `program` and `needs` are what it can't run without.
fn check(program: &Path, needs: &Path, script: &str) {
    check_with(program, needs, script, || (Served::start(), Vec::new()));
}

/// The same against a server of the test's own, with further arguments for the script.
fn check_with(program: &Path, needs: &Path, script: &str, start: impl FnOnce() -> (Served, Vec<String>)) {
    let is_there = needs.exists() && Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", needs.display());
        eprintln!("skipped: {} is not installed (`make test` installs it)", needs.display());
        return;
    }
    let (served, more) = start();
    let output = Command::new(program)
        .arg(root().join("tests/clients").join(script))
        .arg(&served.url)
        .args(more)
        .output()
        .expect("the client starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {out}{err}");
    assert!(out.contains(" passed, 0 failed"), "{script}: {out}{err}");
}

#[test]
fn the_python_client_is_content() {
    let python = root().join(".venv/bin/python");
    check(&python, &python, "openai_python.py");
}

#[test]
fn the_python_client_is_content_with_a_made_key_until_it_is_revoked() {
    let python = root().join(".venv/bin/python");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let admin = free.expect("a free port").to_string();
    check_with(&python, &python, "keys_python.py", || {
        let folder = dir.path().to_str().expect("a path of text");
        let model = ["models/hearth-demo.gguf", "--alias", "hearth-demo"];
        let served = Served::of(&[&model[..], &["--data-dir", folder, "--admin-listen", &admin]].concat());
        let master = std::fs::read_to_string(dir.path().join("master.key")).expect("made at the start");
        (served, vec![format!("http://{admin}"), master.trim().to_owned()])
    });
}

#[test]
fn the_node_client_is_content() {
    let node = PathBuf::from("node");
    check(&node, &root().join("tests/clients/node_modules/openai"), "openai_node.mjs");
}

#[test]
fn anthropics_python_client_is_content() {
    let python = root().join(".venv/bin/python");
    check(&python, &python, "anthropic_python.py");
}

#[test]
fn anthropics_node_client_is_content() {
    let node = PathBuf::from("node");
    check(&node, &root().join("tests/clients/node_modules/@anthropic-ai/sdk"), "anthropic_node.mjs");
}

#[test]
fn ollamas_python_client_is_content() {
    let python = root().join(".venv/bin/python");
    check(&python, &python, "ollama_python.py");
}

#[test]
fn the_python_client_is_content_with_responses() {
    let python = root().join(".venv/bin/python");
    check(&python, &python, "responses_python.py");
}

#[test]
fn the_node_client_is_content_with_responses() {
    let node = PathBuf::from("node");
    check(&node, &root().join("tests/clients/node_modules/openai"), "responses_node.mjs");
}
