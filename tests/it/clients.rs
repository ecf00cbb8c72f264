//! The official OpenAI clients against the real binary and the demo model.
//!
//! `make test` installs them and sets HEARTH_CLIENTS=1; without that, a client that is not installed is skipped.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A served demo model; killed when dropped.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "models/hearth-demo.gguf", "--alias", "hearth-demo", "--port", "0"])
            // One thread: on a busy machine more of them mostly wait for each other.
            .args(["--threads", "1", "--log-level", "warn"])
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary under test starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let url =
            line.trim().strip_prefix("hearth listening on ").expect("the first line names the address").to_owned();
        let served = Self { child, url };
        served.wait_until_ready();
        served
    }

    fn wait_until_ready(&self) {
        let address = self.url.strip_prefix("http://").expect("an http address");
        let is_ready = (0..600).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            http_status(address, "/readyz") == Some(200)
        });
        assert!(is_ready, "{} is not ready after 30 s", self.url);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn http_status(address: &str, path: &str) -> Option<u16> {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

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
