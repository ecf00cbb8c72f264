//! The servers under test: given by address, or started here and ended again.

use super::client::{Client, Dialect};
use crate::gateway::{HttpConnector, http_client};
use anyhow::{Context as _, Result, anyhow, bail};
use http::{HeaderValue, Method, Uri};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a server may take to load its model.
const START_MAX: Duration = Duration::from_secs(300);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a server may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(10);
/// Connections kept open between requests, where a new one costs a handshake. Others are not reused: some servers close
/// those that idle, and a request that meets the closing is lost.
const IDLE_CONNECTIONS: usize = 1024;

/// A server under test.
pub(super) struct Target {
    pub name: String,
    pub client: Client,
    child: Option<Child>,
}

/// How servers are started and asked.
pub(super) struct Launch {
    pub threads: Option<u32>,
    pub parallel: u32,
    pub ctx_size: u32,
    pub api: Dialect,
    pub model: Option<String>,
    pub key: Option<String>,
    pub is_plain: bool,
}

/// `NAME=REST`, where NAME is none of an address or a path.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !name.contains(['/', ':', '.', '?']) => (Some(name), rest),
        _ => (None, text),
    }
}

/// The GGUF file that a target names; `None`: an address.
pub(super) fn file(text: &str) -> Option<PathBuf> {
    let (_, rest) = split(text);
    (!rest.contains("://")).then(|| PathBuf::from(rest))
}

impl Launch {
    /// An address, or this binary with a file.
    pub async fn open(&self, text: &str, args: &[String]) -> Result<Target> {
        let (name, rest) = split(text);
        let Some(path) = file(text) else {
            let base = rest.trim_end_matches('/').trim_end_matches("/v1").to_owned();
            let uri: Uri = base.parse().with_context(|| format!("{base:?} is no address"))?;
            let name = name.or(uri.host()).unwrap_or("server").to_owned();
            return self.reach(name, base, None).await;
        };
        let binary = std::env::current_exe().context("this binary can't be found")?;
        let mut command = Command::new(binary);
        command.arg("serve").arg(&path).args(args);
        self.start(name.unwrap_or("hearth").to_owned(), command).await
    }

    /// llama-server with a file.
    pub async fn peer(&self, binary: &Path, file: &Path, args: &[String]) -> Result<Target> {
        let mut command = Command::new(binary);
        command.arg("-m").arg(file).args(args);
        self.start("llama-server".to_owned(), command).await
    }

    async fn start(&self, name: String, mut command: Command) -> Result<Target> {
        // Free now; whoever takes it in between makes the server leave, which is told.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let settings = [("--port", u32::from(port)), ("-c", self.ctx_size), ("-np", self.parallel)];
        let threads = self.threads.map(|n| ("-t", n));
        for (flag, value) in settings.into_iter().chain(threads) {
            command.arg(flag).arg(value.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{name} can't be started"))?;
        self.reach(name, format!("http://127.0.0.1:{port}"), Some(child)).await
    }

    /// Waits until the server lists its models and, where it was started here, has loaded them.
    async fn reach(&self, name: String, base: String, mut child: Option<Child>) -> Result<Target> {
        let is_tls = base.starts_with("https:");
        let connector = HttpConnector::new(is_tls, None, CONNECT_MAX).map_err(|why| anyhow!(why))?;
        let key = self.key.as_ref().map(|key| HeaderValue::from_str(&format!("Bearer {key}"))).transpose();
        let mut key = key.context("the key can't be sent in a header")?;
        if let Some(key) = &mut key {
            key.set_sensitive(true);
        }
        let http = http_client(connector, if is_tls { IDLE_CONNECTIONS } else { 0 });
        let mut client = Client { http, base, model: String::new(), key, api: self.api, is_plain: self.is_plain };
        let started = Instant::now();
        loop {
            let is_loaded = child.is_none() || client.json(Method::GET, "/health", None).await.is_ok();
            let found = client.json(Method::GET, "/v1/models", None).await;
            match (found, &mut child) {
                (Ok(list), _) if is_loaded => {
                    let first = list["data"][0]["id"].as_str();
                    let model = self.model.as_deref().or(first);
                    client.model =
                        model.with_context(|| format!("{name} lists no model; name one with --model"))?.to_owned();
                    return Ok(Target { name, client, child });
                }
                (Err(error), None) => return Err(error),
                (_, Some(child)) => {
                    if let Some(status) = child.try_wait()? {
                        bail!("{name} left with {status} before it was ready");
                    }
                }
                (Ok(_), None) => {}
            }
            if started.elapsed() > START_MAX {
                bail!("{name} is not ready after {} s", START_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Target {
    /// Ends a server that was started here: politely, then not.
    pub async fn close(mut self) {
        let Some(child) = &mut self.child else { return };
        let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            // It may have left already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(END_MAX, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_file_or_an_address_with_or_without_a_name() {
        assert_eq!(split("old=http://a:1/v1"), (Some("old"), "http://a:1/v1"));
        assert_eq!(split("http://a/?x=1"), (None, "http://a/?x=1"));
        assert_eq!(file("new=models/a.gguf"), Some(PathBuf::from("models/a.gguf")));
        assert_eq!(file("./a=b.gguf"), Some(PathBuf::from("./a=b.gguf")));
        assert_eq!(file("x=https://a"), None);
    }
}
