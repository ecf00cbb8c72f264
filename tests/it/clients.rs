//! Clients against a server of the test's own. What the conformance table needs runs in `conformance`.
//!
//! `make test` installs them and sets HEARTH_CLIENTS=1; without that, a client that is not installed is left out.

use crate::support::free_address;
use crate::support::served::{Served, root};
use std::process::Command;

#[test]
fn the_python_client_is_content_with_a_made_key_until_it_is_revoked() {
    is_content("keys_python.py");
}

#[test]
fn litellms_client_for_its_proxy_is_content_with_ours() {
    is_content("litellm_proxy_python.py");
}

/// In Chromium, where there is one (`HEARTH_CHROMIUM` names it; else that of the path). `HEARTH_SHOTS`: a folder for pictures.
#[test]
fn a_browser_is_content_with_the_administrators_page() {
    let named = std::env::var("HEARTH_CHROMIUM").ok();
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let names: Vec<&str> = named.as_deref().map_or(known.to_vec(), |name| vec![name]);
    let answers =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let Some(browser) = names.iter().find(answers) else {
        assert!(named.is_none(), "{names:?} is no browser");
        eprintln!("left out: there is no Chromium here (HEARTH_CHROMIUM names one)");
        return;
    };
    let shots = std::env::var("HEARTH_SHOTS").ok();
    is_content_with("admin_page_python.py", &[browser], shots.as_deref());
}

fn is_content(script: &str) {
    is_content_with(script, &[], None);
}

/// Runs a script against a server with books: it is given what comes `first`, the addresses of both planes, the master key, and
/// what comes `last`.
fn is_content_with(script: &str, first: &[&str], last: Option<&str>) {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", python.display());
        eprintln!("left out: {} is not installed (`make test` installs it)", python.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let admin = free_address().to_string();
    let folder = dir.path().to_str().expect("a path of text");
    let model = ["models/hearth-demo.gguf", "--alias", "hearth-demo"];
    let served = Served::of(&[&model[..], &["--data-dir", folder, "--admin-listen", &admin]].concat());
    let master = std::fs::read_to_string(dir.path().join("master.key")).expect("made at the start");
    let output = Command::new(python)
        .arg(root().join("tests/clients").join(script))
        .args(first)
        .args([&served.url, &format!("http://{admin}"), master.trim()])
        .args(last)
        .output()
        .expect("the client starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(" passed, 0 failed"), "{out}{err}");
}
