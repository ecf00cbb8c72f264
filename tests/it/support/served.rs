//! The real binary, served on a port of its own.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A served model; killed when dropped.
pub struct Served {
    child: Child,
    pub url: String,
}

impl Served {
    pub fn start() -> Self {
        Self::of(&["models/hearth-demo.gguf", "--alias", "hearth-demo"])
    }

    /// `hearth serve` with these arguments.
    pub fn of(arguments: &[&str]) -> Self {
        Self::through(&[], arguments)
    }

    /// The same by way of another program, whose last arguments are the binary's path and its arguments.
    pub fn through(before: &[&str], arguments: &[&str]) -> Self {
        let words: Vec<&str> = before.iter().copied().chain([env!("CARGO_BIN_EXE_hearth")]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg("serve")
            .args(arguments)
            .args(["--port", "0"])
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process ended well by itself within `patience`.
    pub fn ended(&mut self, patience: std::time::Duration) -> bool {
        let until = std::time::Instant::now() + patience;
        while std::time::Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        false
    }

    /// The status of a GET, `None` when there is no answer.
    pub fn status(&self, path: &str) -> Option<u16> {
        let address = self.url.strip_prefix("http://").expect("an http address");
        http_status(address, path)
    }

    pub fn wait_until_ready(&self) {
        let is_ready = (0..3000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            self.status("/readyz") == Some(200)
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

/// The status of a GET at `HOST:PORT`, `None` when there is no answer.
pub fn http_status(address: &str, path: &str) -> Option<u16> {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}
