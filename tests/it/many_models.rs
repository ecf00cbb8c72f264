//! Several models in one server: names, lazy loads, idle unloads, the cap on memory. Scripted models unless a test is
//! about files.

use crate::support::served::root;
use crate::support::{Answer, PATIENCE, Server, Setup, chat_body};
use hearth::engine::config::{ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineConfig, EngineMode};
use hearth::gateway::{Caller, Gateway, KeepAlive, LoadLimits, ModelConfig, ModelSetup, Size};
use hearth::http::HttpConfig;
use hearth::telemetry::Metrics;
use serde_json::json;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A scripted model that is loaded at a request and stays; its streams take eight seconds to fill the context.
pub fn lazy(id: &str) -> ModelSetup {
    let mut engine = EngineConfig::new(ModelSource::Scripted(ScriptedConfig { step_us: 2_000, ..Default::default() }));
    engine.n_threads = Some(1);
    let keep_alive = KeepAlive::For(Duration::from_secs(600));
    let config = ModelConfig { is_lazy: true, keep_alive, ..ModelConfig::new(id) };
    ModelSetup { config, engine }
}

fn scripted(setup: &mut ModelSetup) -> &mut ScriptedConfig {
    match &mut setup.engine.source {
        ModelSource::Scripted(scripted) => scripted,
        ModelSource::Gguf(_) => unreachable!("these models are scripted"),
    }
}

pub struct House {
    server: Server,
    pub gateway: Arc<Gateway>,
}

impl House {
    async fn of(models: Vec<ModelSetup>, limits: LoadLimits) -> Self {
        Self::with(models, limits, EngineMode::InProcess).await
    }

    pub async fn with(models: Vec<ModelSetup>, limits: LoadLimits, mode: EngineMode) -> Self {
        let config = Setup::new().gateway;
        let gateway = Arc::new(Gateway::open(config, models, &mode, limits, Arc::new(Metrics::new())));
        let unused = Engine::start(lazy("unused").engine, EngineMode::InProcess);
        let http = HttpConfig { expose_slots: true, ..HttpConfig::default() };
        let server = Server::of(Arc::clone(&gateway), unused, http).await;
        Self { server, gateway }
    }

    pub async fn ask(&self, model: &str) -> Answer {
        self.server.chat("hi", json!({ "model": model })).await
    }

    /// `(id, status)` of every model.
    async fn statuses(&self) -> Vec<(String, String)> {
        let list = self.server.get("/v1/models").await.json();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let data = list["data"].as_array().expect("a list").clone();
        data.iter().map(|model| (text(&model["id"]), text(&model["status"]["value"]))).collect()
    }

    async fn loaded(&self) -> Vec<String> {
        let all = self.statuses().await.into_iter();
        all.filter(|(_, status)| status == "loaded").map(|(id, _)| id).collect()
    }

    async fn until_loaded(&self, expected: &[&str]) {
        let loaded = async {
            while self.loaded().await != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, loaded).await;
        assert!(in_time.is_ok(), "never {expected:?}, but {:?}", self.statuses().await);
    }

    pub async fn forever(&self, model: &str) -> reqwest::Response {
        let body = chat_body("/forever", json!({ "model": model, "stream": true }));
        let mut stream = self.server.send("/v1/chat/completions", &body).await;
        assert!(stream.chunk().await.expect("the stream lives").is_some());
        stream
    }
}

fn is_overload(answer: &Answer, code: &str) {
    let (status, kind, got, _) = answer.error();
    assert_eq!((status, kind.as_str(), got.as_deref()), (503, "server_error", Some(code)), "{}", answer.text);
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1));
}

#[tokio::test]
async fn two_models_answer_side_by_side_each_under_its_own_name() {
    let (mut chat, mut other) = (lazy("Chat-1"), lazy("Other-1"));
    chat.config.is_lazy = false;
    chat.config.aliases = vec!["gpt-*".into(), "gpt-4o".into()];
    other.config.aliases = vec!["gpt-4*".into(), "second".into()];
    other.config.sampling.temperature = Some(0.5);
    let mode = EngineMode::child(env!("CARGO_BIN_EXE_hearth"));
    let house = House::with(vec![chat, other], LoadLimits::default(), mode).await;
    house.until_loaded(&["Chat-1", "gpt-4o"]).await;
    for (asked, served) in [
        ("chat-1", "Chat-1"),
        ("", "Chat-1"),
        ("default", "Chat-1"),
        ("gpt-5:latest", "Chat-1"),
        ("GPT-4O", "Chat-1"),
        ("gpt-4o-mini", "Other-1"),
        ("second", "Other-1"),
        ("Other-1:latest", "Other-1"),
    ] {
        let answer = house.ask(asked).await;
        assert_eq!((answer.content().as_str(), &answer.json()["model"]), ("hi", &json!(served)), "{asked}");
    }
    assert_eq!(house.ask("nobody").await.status, 404);
    // Streams of both at once; each model has its own counters and slots.
    let streams = [house.forever("Chat-1").await, house.forever("Other-1").await];
    for model in ["Chat-1", "Other-1"] {
        // A worker tells what it does from time to time.
        let both_say_so = async {
            loop {
                let page = house.server.get("/metrics").await.text;
                let slots = house.server.get(&format!("/slots?model={model}")).await.json();
                let busy = slots.as_array().expect("slots").iter().filter(|slot| slot["is_processing"] == true).count();
                assert!(page.contains(&format!("hearth_model_loaded{{model=\"{model}\"}} 1")), "{page}");
                if busy == 1 && page.contains(&format!("hearth_slots{{model=\"{model}\",state=\"busy\"}} 1")) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, both_say_so).await.expect("a slot at work");
    }
    let props = house.server.get("/props?model=second").await.json();
    assert_eq!(props["model_alias"], "Other-1");
    assert_eq!(props["default_generation_settings"]["params"]["temperature"], 0.5);
    house.server.get("/props?model=a&model=b").await.is_refusal("invalid_value", "model");
    drop(streams);
    house.gateway.close().await;
}

#[tokio::test]
async fn mod_01_04_the_list_has_every_name_but_patterns_and_loads_nothing() {
    let (mut a, mut b) = (lazy("a"), lazy("b"));
    a.config.aliases = vec!["x".into(), "gpt-*".into()];
    b.config.n_created = 7;
    let house = House::of(vec![a, b], LoadLimits::default()).await;
    let list = house.server.get("/v1/models").await.json();
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!("a"), &json!("b")));
    let names: Vec<_> = list["data"].as_array().expect("a list").iter().map(|m| (&m["id"], &m["root"])).collect();
    assert_eq!(names, [(&json!("a"), &json!("a")), (&json!("x"), &json!("a")), (&json!("b"), &json!("b"))]);
    for name in ["x", "X:latest", "gpt-anything", "a"] {
        let model = house.server.get(&format!("/v1/models/{name}")).await.json();
        assert_eq!((&model["id"], &model["status"]["value"]), (&json!("a"), &json!("unloaded")), "{name}");
    }
    assert_eq!(house.server.get("/v1/models/b").await.json()["created"], 7);
    assert_eq!(house.server.get("/v1/models/c").await.status, 404);
    // Looking is no reason to load either.
    assert_eq!(house.server.get("/props").await.status, 503);
    assert_eq!(house.server.get("/slots?model=b").await.status, 503);
    // Lazy models are no reason not to be ready.
    assert_eq!((house.server.get("/readyz").await.status, house.server.get("/health").await.status), (200, 200));
    let empty: Vec<String> = Vec::new();
    assert_eq!(house.loaded().await, empty);
    house.ask("x").await.content();
    assert_eq!(house.server.get("/v1/models/x").await.json()["max_model_len"], 4096);
}

#[tokio::test]
async fn concurrent_requests_share_one_load_and_one_that_leaves_leaves_it_to_the_others() {
    let mut slow = lazy("slow");
    scripted(&mut slow).load_ms = 400;
    // A flag that no other test's engine has, of this run or another's, so that this one's processes can be counted.
    let mark = format!("error,shared_load_{}=off", std::process::id());
    let args = vec!["--log-level".to_owned(), mark.clone()];
    let mode = EngineMode::Process { exe: env!("CARGO_BIN_EXE_hearth").into(), args };
    let house = House::with(vec![slow], LoadLimits::default(), mode).await;
    let leaving = tokio::time::timeout(Duration::from_millis(100), house.ask("slow")).await;
    assert!(leaving.is_err(), "the load takes longer");
    let asks = (0..8).map(|_| house.ask("slow"));
    let answers = futures_util::future::join_all(asks).await;
    assert!(answers.iter().all(|answer| answer.content() == "hi"));
    assert_eq!(n_processes(&mark), 1);
    assert!(house.server.get("/metrics").await.text.contains("hearth_engine_restarts_total{model=\"slow\"} 0"));
    house.gateway.close().await;
    assert_eq!(n_processes(&mark), 0);
}

/// Processes with `mark` as an argument.
fn n_processes(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let command = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("cmdline")).ok();
    processes.filter_map(command).filter(|line| line.split('\0').any(|arg| arg == mark)).count()
}

#[tokio::test]
async fn an_idle_model_is_unloaded_and_a_busy_one_is_not() {
    let (mut brief, mut kept) = (lazy("brief"), lazy("kept"));
    brief.config.keep_alive = KeepAlive::For(Duration::from_secs(1));
    kept.config.keep_alive = KeepAlive::Forever;
    kept.config.is_lazy = false;
    let house = House::of(vec![brief, kept], LoadLimits::default()).await;
    let stream = house.forever("brief").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(house.loaded().await, ["brief", "kept"], "a stream holds its model");
    let freed = Instant::now();
    drop(stream);
    house.until_loaded(&["kept"]).await;
    assert!(freed.elapsed() >= Duration::from_secs(1));
    assert_eq!(house.ask("brief").await.content(), "hi");
    assert_eq!(house.loaded().await, ["brief", "kept"]);
    house.until_loaded(&["kept"]).await;
}

#[tokio::test]
async fn a_client_may_say_how_long_a_model_stays_but_not_against_the_operator() {
    let (mut stays, goes) = (lazy("stays"), lazy("goes"));
    stays.config.keep_alive = KeepAlive::Forever;
    let house = House::of(vec![stays, goes], LoadLimits::default()).await;
    for model in ["stays", "goes"] {
        let target = house.gateway.target(&Caller::default(), Some(model)).await.expect("it loads");
        house.gateway.touch(&Caller::default(), Some(model), KeepAlive::For(Duration::ZERO)).expect("a known name");
        assert_eq!(target.id(), model);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(house.loaded().await.contains(&model.to_owned()), "held while the target lives");
    }
    house.until_loaded(&["stays"]).await;
    // Said until the model is unloaded, and no longer.
    house.ask("goes").await.content();
    let listed = house.gateway.listed(&Caller::default(), Some("goes")).expect("a known name");
    assert!(listed.expires_in.is_some_and(|time| time > Duration::from_secs(500)), "{:?}", listed.expires_in);
    assert!(house.gateway.touch(&Caller::default(), Some("nobody"), KeepAlive::Forever).is_err());
}

#[tokio::test]
async fn the_cap_evicts_the_longest_unused_and_never_a_busy_one() {
    let sized = |id: &str| {
        let mut model = lazy(id);
        model.config.size.machine = 4;
        model
    };
    let limits = LoadLimits { loaded_bytes_max: Some(8), ..LoadLimits::default() };
    let house = House::of(vec![sized("a"), sized("b"), sized("c")], limits).await;
    for model in ["a", "b", "a", "c"] {
        house.ask(model).await.content();
    }
    assert_eq!(house.loaded().await, ["a", "c"], "b was used longest ago");
    let at_work = house.forever("a").await;
    house.ask("b").await.content();
    assert_eq!(house.loaded().await, ["a", "b"], "a is at work");
    let also_at_work = house.forever("b").await;
    is_overload(&house.ask("c").await, "model_loading");
    assert_eq!(house.loaded().await, ["a", "b"]);
    drop((at_work, also_at_work));
    let until_room = async {
        while house.ask("c").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until_room).await.expect("room");
}

#[tokio::test]
async fn models_take_turns_on_a_gpu_that_holds_one_of_them() {
    let on = |id: &str, gpu: u64| {
        let mut model = lazy(id);
        model.config.size = Size { machine: 1, gpu };
        model
    };
    let limits = LoadLimits { gpu_bytes_max: Some(10), ..LoadLimits::default() };
    let house = House::of(vec![on("a", 6), on("b", 6), on("on the CPU", 0)], limits).await;
    for model in ["a", "on the CPU", "b"] {
        house.ask(model).await.content();
    }
    assert_eq!(house.loaded().await, ["b", "on the CPU"], "only what lies on the GPU makes room there");
    let at_work = house.forever("b").await;
    is_overload(&house.ask("a").await, "model_loading");
    drop(at_work);
}

#[tokio::test]
async fn a_lazy_model_that_cannot_be_loaded_answers_so_and_harms_nobody() {
    for mode in [EngineMode::InProcess, EngineMode::child(env!("CARGO_BIN_EXE_hearth"))] {
        let mut broken = lazy("broken");
        broken.engine.source = ModelSource::Gguf("/nowhere/private/model.gguf".into());
        let house = House::with(vec![lazy("good"), broken], LoadLimits::default(), mode).await;
        for _ in 0..2 {
            let answer = house.ask("broken").await;
            is_overload(&answer, "model_loading");
            assert!(answer.text.contains("can't be loaded"), "{}", answer.text);
        }
        let statuses = house.statuses().await;
        assert!(statuses.contains(&("broken".into(), "failed".into())), "{statuses:?}");
        assert_eq!(house.ask("good").await.content(), "hi");
        assert_eq!(house.server.get("/readyz").await.status, 200);
        house.gateway.close().await;
    }
}

#[tokio::test]
async fn a_load_is_waited_for_so_long_and_by_so_many() {
    let mut slow = lazy("slow");
    scripted(&mut slow).load_ms = 3_000;
    (slow.engine.n_slots, slow.engine.n_queue) = (1, 1);
    let limits = LoadLimits { load_wait: Duration::from_secs(1), ..LoadLimits::default() };
    let house = House::of(vec![slow], limits).await;
    let answers = futures_util::future::join_all((0..5).map(|_| house.ask("slow"))).await;
    let code = |answer: &Answer| answer.error().2.unwrap_or_default();
    let mut codes: Vec<String> = answers.iter().map(code).collect();
    codes.sort();
    assert_eq!(codes[..2], ["model_loading", "model_loading"], "{codes:?}");
    assert_eq!(codes[2..], ["server_is_overloaded", "server_is_overloaded", "server_is_overloaded"], "{codes:?}");
    house.until_loaded(&["slow"]).await;
    assert_eq!(house.ask("slow").await.content(), "hi", "the load went on");
}

#[tokio::test]
async fn anthropics_names_stand_for_the_first_model_where_asked() {
    let mut first = lazy("first");
    first.config.aliases = vec!["claude-mine".into()];
    let house = House::of(vec![first, lazy("claude-2nd")], LoadLimits::default()).await;
    let name = |text: &str| house.gateway.stand_in(Some(text.to_owned()), "claude-*");
    assert_eq!(name("claude-sonnet-4-5"), None);
    assert_eq!(name("CLAUDE-2ND").as_deref(), Some("CLAUDE-2ND"));
    assert_eq!(name("gpt-4").as_deref(), Some("gpt-4"));
    assert_eq!(house.ask("claude-sonnet-4-5").await.status, 404, "only that API has them");
}

/// `hearth serve` with models in tables; killed when dropped.
struct Binary {
    child: std::process::Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Binary {
    fn start(toml: &str) -> Result<Self, String> {
        use std::io::{BufRead as _, BufReader, Read as _};
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("hearth.toml");
        std::fs::write(&file, toml).expect("a writable folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--port", "0", "--log-level", "warn", "--config"])
            .arg(&file)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary under test starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a first line");
        match line.trim().strip_prefix("hearth listening on ") {
            Some(url) => Ok(Self { child, url: url.to_owned(), _dir: dir }),
            None => {
                let mut errors = String::new();
                child.stderr.take().expect("piped").read_to_string(&mut errors).expect("errors in words");
                let status = child.wait().expect("it ended");
                Err(format!("{:?} {errors}", status.code()))
            }
        }
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn two_files_are_served_by_one_command() {
    let served = Binary::start(
        r#"
        threads = 1
        ctx_size = 512
        parallel = 2

        [[model]]
        name = "demo"
        file = "models/hearth-demo.gguf"
        temp = 0.0

        [[model]]
        file = "models/tiny/tiny-llama.gguf"
        load = "lazy"
        keep_alive = "1h"
        ctx_size = 1024
        parallel = 1
        lora = ["models/tiny/tiny-llama-lora-a.gguf:0.5"]

        [[alias]]
        name = "gpt-*"
        model = "demo"

        [[alias]]
        name = "small"
        model = "tiny-llama"
        "#,
    )
    .expect("it starts");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
    let get = async |path: &str| {
        Answer::of(client.get(format!("{}{path}", served.url)).send().await.expect("an answer")).await
    };
    let started = Instant::now();
    while get("/readyz").await.status != 200 {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let list = get("/v1/models").await.json();
    let shown: Vec<_> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|m| (m["id"].as_str(), m["max_model_len"].as_u64(), m["status"]["value"].as_str()))
        .collect();
    // A lazy model's context is known from its file.
    assert_eq!(
        shown,
        [
            (Some("demo"), Some(512), Some("loaded")),
            (Some("tiny-llama"), Some(1024), Some("unloaded")),
            (Some("small"), Some(1024), Some("unloaded")),
        ]
    );
    let ask = async |model: &str| {
        let body = json!({ "model": model, "max_tokens": 4, "messages": [{ "role": "user", "content": "Hello!" }] });
        let request = client.post(format!("{}/v1/chat/completions", served.url)).json(&body);
        Answer::of(request.send().await.expect("an answer")).await
    };
    for (asked, id) in [("gpt-4o", "demo"), ("small", "tiny-llama"), ("demo", "demo"), ("tiny-llama", "tiny-llama")] {
        let answer = ask(asked).await;
        assert_eq!((answer.status, &answer.json()["model"]), (200, &json!(id)), "{}", answer.text);
    }
    let adapters = get("/lora-adapters?model=small").await.json();
    assert_eq!(adapters, json!([{ "id": 0, "path": "tiny-llama-lora-a.gguf", "scale": 0.5 }]));
    assert_eq!(get("/lora-adapters").await.json(), json!([]));
}

#[test]
fn a_model_that_must_be_there_at_the_start_stops_the_server_and_wrong_tables_are_named() {
    let refusal = |toml: &str| Binary::start(toml).err().expect("to be refused");
    let demo = "file = \"models/hearth-demo.gguf\"\n";
    for (toml, words) in [
        ("[[model]]\nname = \"a\"\n", "line 2: this [[model]] names no file"),
        ("[[model]]\nfile = \"models/none.gguf\"\n", "there is no such file"),
        (&*format!("[[model]]\n{demo}prot = 1\n"), "line 3: unknown key \"prot\""),
        (&*format!("[[model]]\n{demo}port = 1\n"), "port ("),
        (&*format!("[[model]]\n{demo}ctx_size = \"many\"\n"), "ctx_size ("),
        (&*format!("[[model]]\nname = \"x*\"\n{demo}"), "is a pattern"),
        (&*format!("[[model]]\nname = \"x\"\n{demo}[[model]]\nname = \"X\"\n{demo}"), "given to two models"),
        (&*format!("[[model]]\n{demo}[[alias]]\nname = \"x\"\nmodel = \"y\"\n"), "no model or upstream named \"y\""),
        (&*format!("max_loaded_memory = \"1K\"\n[[model]]\n{demo}"), "max_loaded_memory"),
        (&*format!("lora = [\"a.gguf\"]\n[[model]]\n{demo}"), "belongs into its [[model]]"),
        (&*format!("[[model]]\n{demo}lora = [\"models/hearth-demo.gguf\"]\n"), "this is no LoRA adapter"),
    ] {
        let text = refusal(toml);
        assert!(text.starts_with("Some(2) ") && text.contains(words), "{toml}\n{text}");
    }
}
