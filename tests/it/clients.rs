//! Clients against a server of the test's own. What the conformance table needs runs in `conformance`.
//!
//! `make test` installs them and sets HEARTH_CLIENTS=1; without that, a client that is not installed is left out.

use crate::support::served::{Served, root};
use std::process::Command;

#[test]
fn the_python_client_is_content_with_a_made_key_until_it_is_revoked() {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", python.display());
        eprintln!("left out: {} is not installed (`make test` installs it)", python.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let admin = free.expect("a free port").to_string();
    let folder = dir.path().to_str().expect("a path of text");
    let model = ["models/hearth-demo.gguf", "--alias", "hearth-demo"];
    let served = Served::of(&[&model[..], &["--data-dir", folder, "--admin-listen", &admin]].concat());
    let master = std::fs::read_to_string(dir.path().join("master.key")).expect("made at the start");
    let output = Command::new(python)
        .arg(root().join("tests/clients/keys_python.py"))
        .args([&served.url, &format!("http://{admin}"), master.trim()])
        .output()
        .expect("the client starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(" passed, 0 failed"), "{out}{err}");
}
