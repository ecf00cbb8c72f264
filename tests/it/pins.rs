//! `--sha256`: a model that is not the pinned one is not loaded, at the start, on request, and after a crash (T-R6).

use crate::crash::{engines, kill};
use crate::support::served::{Served, root};
use crate::support::{Answer, PATIENCE};
use hearth::model::lock::sha256;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder with one model under the name `m.gguf`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        place.put("tiny-llama");
        place
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("m.gguf")
    }

    /// Another file in its place, in one step, as a careful administrator does it, or a careful thief.
    fn put(&self, model: &str) {
        let fresh = self.dir.path().join("fresh");
        std::fs::copy(source(model), &fresh).expect("a writable folder");
        std::fs::rename(&fresh, self.model()).expect("a writable folder");
    }
}

fn source(model: &str) -> PathBuf {
    root().join(format!("models/tiny/{model}.gguf"))
}

fn digest(path: &Path) -> String {
    sha256(path, |_| {}).expect("a readable file")
}

async fn complete(url: &str) -> Answer {
    let body = json!({ "model": "m", "prompt": "a", "max_tokens": 2 });
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    Answer::of(client.post(format!("{url}/v1/completions")).json(&body).send().await.expect("an answer")).await
}

async fn get(url: &str, path: &str) -> String {
    reqwest::get(format!("{url}{path}")).await.expect("an answer").text().await.expect("text")
}

/// Asks until the answer is of this status.
async fn until(url: &str, status: u16) -> Answer {
    let started = Instant::now();
    loop {
        let answer = complete(url).await;
        if answer.status == status {
            return answer;
        }
        assert!(started.elapsed() < 2 * PATIENCE, "still {}: {}", answer.status, answer.text);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn another_file_than_the_pinned_one_is_refused_at_the_start() {
    let (place, pinned) = (Place::new(), digest(&source("tiny-qwen2moe")));
    let serve = |model: &Path, pin: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .arg("serve")
            .arg(model)
            .args(["--port", "0", "--threads", "1", "--sha256", pin])
            .current_dir(root())
            .stdin(Stdio::null())
            .output()
            .expect("the binary under test starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_good, text) = serve(&place.model(), &pinned);
    let found = digest(&place.model());
    assert!(!is_good && ["m.gguf", &pinned, &found].iter().all(|part| text.contains(part)), "{text}");
    let (is_good, text) = serve(&place.model(), &format!("{found},{found}"));
    assert!(!is_good && text.contains("has 1 files, and 2 digests"), "{text}");
    let (is_good, text) = serve(&place.model(), "abc");
    assert!(!is_good && text.contains("--sha256: \"abc\" is not a SHA-256"), "{text}");
    let (is_good, text) = serve(Path::new("scripted"), &found);
    assert!(!is_good && text.contains("has no file"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_was_replaced_does_not_come_back_after_a_crash() {
    let place = Place::new();
    let (model, pinned) = (place.model(), digest(&place.model()));
    // Written as others write it.
    let pin = pinned.to_uppercase();
    let served = Served::of(&[model.to_str().expect("a path of text"), "--sha256", &pin, "-c", "256"]);
    assert_eq!(complete(&served.url).await.status, 200);
    let models: Value = serde_json::from_str(&get(&served.url, "/v1/models").await).expect("JSON");
    assert_eq!(models["data"][0]["meta"]["sha256"], json!([pinned]));
    let metrics = get(&served.url, "/metrics").await;
    let info = metrics.lines().find(|line| line.starts_with("hearth_model_info{")).expect("a line");
    assert!(info.contains(&format!("sha256=\"{pinned}\"")), "{info}");

    place.put("tiny-qwen2moe");
    let found = digest(&model);
    // What is loaded stays loaded: its file is still the old one.
    assert_eq!(complete(&served.url).await.status, 200);
    let pids = engines(served.pid());
    assert_eq!(pids.len(), 1);
    kill(&pids[0]);
    let started = Instant::now();
    loop {
        let ready = get(&served.url, "/readyz").await;
        if ready.contains(&pinned) && ready.contains(&found) && ready.contains("m.gguf") {
            assert!(!ready.contains(place.dir.path().to_str().expect("text")), "clients read this: {ready}");
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{ready}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = until(&served.url, 503).await;
    assert_eq!(refused.error().2.as_deref(), Some("model_loading"), "{}", refused.text);
    // The right file comes back, and the model with it.
    place.put("tiny-llama");
    until(&served.url, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_was_replaced_is_not_loaded_on_request() {
    let place = Place::new();
    let settings = place.dir.path().join("hearth.toml");
    let (model, pinned) = (place.model(), digest(&place.model()));
    let table = |name: &str, file: &Path, pin: &str| {
        format!("[[model]]\nname = \"{name}\"\nfile = \"{}\"\nctx_size = 256\n{pin}", file.display())
    };
    let pin = format!("sha256 = \"{pinned}\"\nload = \"lazy\"\nkeep_alive = 0\n");
    let text = table("other", &source("tiny-qwen2moe"), "") + &table("m", &model, &pin);
    std::fs::write(&settings, text).expect("a writable folder");
    let served = Served::of(&["--config", settings.to_str().expect("a path of text")]);
    assert_eq!(complete(&served.url).await.status, 200);
    let started = Instant::now();
    // Each request loads it anew, once it is gone.
    while get(&served.url, "/metrics").await.contains("hearth_model_loaded{model=\"m\"} 1") {
        assert!(started.elapsed() < PATIENCE, "never unloaded");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    place.put("tiny-qwen2moe");
    let refused = complete(&served.url).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    let found = digest(&model);
    assert!(["m.gguf", &pinned, &found].iter().all(|part| refused.text.contains(part)), "{}", refused.text);
    // The other model is served as before.
    let body = json!({ "model": "other", "prompt": "a", "max_tokens": 2 });
    let other = reqwest::Client::new().post(format!("{}/v1/completions", served.url)).json(&body).send().await;
    assert_eq!(other.expect("an answer").status(), 200);
}
