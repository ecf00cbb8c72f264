//! The official OpenAI clients against the real binary and the demo model.
//!
//! `make test` installs them and sets HEARTH_CLIENTS=1; without that, a client that is not installed is skipped.

use crate::support::served::{Served, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs one client's script; `program` and `needs` are what it can't run without.
fn check(program: &Path, needs: &Path, script: &str) {
    let is_there = needs.exists() && Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", needs.display());
        eprintln!("skipped: {} is not installed (`make test` installs it)", needs.display());
        return;
    }
    let served = Served::start();
    let output = Command::new(program)
        .arg(root().join("tests/clients").join(script))
        .arg(&served.url)
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
