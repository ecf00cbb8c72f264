//! A real Prometheus reads the real binary. Skipped where there is none (`sh .ci/setup.sh test` installs it).

use crate::support::served::Served;
use crate::support::{PATIENCE, chat_body, free_address};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Prometheus {
    child: Child,
    url: String,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// One that scrapes `target`, `HOST:PORT`, each second. `None`: there is none here.
    fn of(target: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let settings = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n  - job_name: hearth\n    \
             static_configs:\n      - targets: ['{target}']\n"
        );
        let path = dir.path().join("prometheus.yml");
        std::fs::write(&path, settings).expect("a writable folder");
        let free = free_address();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: there is no prometheus here");
            return None;
        };
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Some(Self { child, url: format!("http://{free}"), client, _dir: dir })
    }

    /// The value of an expression that has one; asked until `is_good` likes it.
    async fn value(&self, expression: &str, is_good: impl Fn(f64) -> bool) -> f64 {
        let started = Instant::now();
        let mut last = Value::Null;
        loop {
            let asked = utf8_percent_encode(expression, NON_ALPHANUMERIC);
            if let Ok(answer) = self.client.get(format!("{}/api/v1/query?query={asked}", self.url)).send().await {
                last = answer.json().await.unwrap_or_default();
                let value = last["data"]["result"][0]["value"][1].as_str().and_then(|text| text.parse().ok());
                if let Some(value) = value.filter(|value| is_good(*value)) {
                    return value;
                }
            }
            assert!(started.elapsed() < 6 * PATIENCE, "{expression}: {last}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn prometheus_scrapes_the_binary_and_answers_of_it() {
    let server = Served::start();
    let address = server.url.strip_prefix("http://").expect("an http address");
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    for _ in 0..3 {
        let body = chat_body("Hello!", json!({ "model": "hearth-demo", "max_tokens": 8 }));
        let answer = client.post(format!("{}/v1/chat/completions", server.url)).json(&body).send().await;
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    let Some(prometheus) = Prometheus::of(address) else { return };
    prometheus.value("up{job=\"hearth\"}", |up| up == 1.0).await;
    prometheus.value("hearth_engine_up{model=\"hearth-demo\"}", |up| up == 1.0).await;
    let chats = "hearth_http_requests_total{endpoint=\"/v1/chat/completions\",code=\"200\"}";
    prometheus.value(chats, |n| n == 3.0).await;
    prometheus.value("sum(hearth_generation_tokens_total)", |n| (1.0..=24.0).contains(&n)).await;
    for (name, most) in [
        ("hearth_request_duration_seconds", 600.0),
        ("hearth_time_to_first_token_seconds", 120.0),
        ("hearth_prefill_time_seconds", 120.0),
    ] {
        let quantile = format!("histogram_quantile(0.95, sum by (le) ({name}_bucket))");
        prometheus.value(&quantile, |seconds| seconds > 0.0 && seconds <= most).await;
    }
    // Its own judge of pages.
    let page = client.get(format!("{}/metrics", server.url)).send().await.expect("a page");
    assert_eq!(page.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let page = page.bytes().await.expect("a page");
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else { return };
    promtool.stdin.take().expect("a pipe").write_all(&page).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}
