//! Debian's nginx in front, with its defaults: tokens arrive as they are made, and a long prefill outlives its patience.
//! Skipped where there is no nginx (`sh .ci/setup.sh test` installs it).

use crate::support::{PATIENCE, Server, chat_body, free_address};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Nginx {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// `None`: there is none here. `lines` are added to the location.
    async fn before(server: &Server, lines: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().display().to_string();
        let free = free_address();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {path}/{name};\n"))
            .collect();
        let settings = format!(
            "daemon off;\nmaster_process off;\npid {path}/pid;\nerror_log {path}/error.log;\nevents {{}}\n\
             http {{\n{temporary}access_log off;\nserver {{\nlisten {free};\nlocation / {{\n\
             proxy_pass http://{};\n{lines}\n}}\n}}\n}}\n",
            server.address
        );
        std::fs::write(dir.path().join("nginx.conf"), settings).expect("a writable folder");
        let child = Command::new("nginx")
            .env("PATH", format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(["-p", &path, "-c", &format!("{path}/nginx.conf")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: there is no nginx here");
            return None;
        };
        let nginx = Self { child, address: free, _dir: dir };
        let started = Instant::now();
        while tokio::net::TcpStream::connect(free).await.is_err() {
            assert!(started.elapsed() < PATIENCE, "nginx does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When each token of a stream arrived, counted from the request.
async fn arrivals(server: &Server, address: SocketAddr, body: &Value) -> Vec<Duration> {
    let started = Instant::now();
    let request = server.client.post(format!("http://{address}/v1/chat/completions")).json(body);
    let mut response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let (mut text, mut times) = (String::new(), Vec::new());
    while let Some(bytes) = response.chunk().await.expect("the stream lives") {
        text.push_str(&String::from_utf8_lossy(&bytes));
        let n_tokens = text.matches("\"content\":\"").count().saturating_sub(text.matches("\"content\":\"\"").count());
        times.resize(n_tokens.max(times.len()), started.elapsed());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    times
}

/// T-P13 and R16: 100 ms a token; a proxy that holds them back gives them out together at the end.
#[tokio::test]
async fn tokens_arrive_as_they_are_made() {
    let server = Server::with(|setup| setup.scripted().step_us = 100_000).await;
    let Some(nginx) = Nginx::before(&server, "").await else { return };
    let body = chat_body("abcdefghijklmnopqrst", json!({"stream": true}));
    // One after the other: two at once take turns in the engine.
    let direct = arrivals(&server, server.address, &body).await;
    let proxied = arrivals(&server, nginx.address, &body).await;
    assert_eq!((direct.len(), proxied.len()), (20, 20));
    let mut late: Vec<Duration> = proxied.iter().zip(&direct).map(|(by, at)| by.saturating_sub(*at)).collect();
    let first = late[0];
    late.sort();
    eprintln!("behind nginx: the first token {first:?} later, the median one {:?}, the last {:?}", late[10], late[19]);
    // On an idle machine these are a millisecond; what is buffered is as late as the rest of the answer takes: the median
    // one by a second, the first by two.
    assert!(late[10] < Duration::from_millis(500), "{late:?}");
    assert!(first < Duration::from_secs(1), "{first:?}");
    let spread = proxied[19] - proxied[0];
    assert!(spread > Duration::from_millis(1200), "they came together, within {spread:?}");
}

/// T-P13, scaled: a proxy that gives up after 2 s of silence, and a prefill of 6 s.
#[tokio::test]
async fn a_long_prefill_outlives_the_proxys_patience() {
    let server = Server::with(|setup| {
        setup.http.ping_interval = Duration::from_millis(500);
        setup.scripted().prompt_token_us = 60_000;
    })
    .await;
    let Some(nginx) = Nginx::before(&server, "proxy_read_timeout 2s;").await else { return };
    let body = chat_body(&"a".repeat(100), json!({"stream": true, "max_tokens": 4}));
    let times = arrivals(&server, nginx.address, &body).await;
    assert!(times[0] > Duration::from_secs(4), "the prefill took {:?} only", times[0]);
}
