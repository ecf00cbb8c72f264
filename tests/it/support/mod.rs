//! A whole server over real HTTP, with the scripted model behind the engine's door (see `src/engine/backend/scripted.rs`:
//! a token is a byte, the answer repeats the last user message unless that begins with a directive).

pub mod bodies;
pub mod cloud;
#[cfg(feature = "postgres")]
pub mod cluster;
#[cfg(feature = "otlp")]
pub mod collector;
pub mod disk;
pub mod engines;
pub mod exact;
pub mod governed;
pub mod ledger;
pub mod process;
pub mod routed;
pub mod served;
pub mod tls;

use futures_util::StreamExt;
use hearth::engine::config::{ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState};
use hearth::gateway::{ApiKey, BaseUrl, Collector, CollectorConfig, Gateway, GatewayConfig, MemoryWatch};
use hearth::http::{self, HttpConfig, LiveHttp};
use hearth::telemetry::Metrics;
use hearth::telemetry::metrics::MetricsConfig;
use hearth::telemetry::otlp::{Exporter, OtlpConfig};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything; what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const MODEL: &str = "Scripted-1";

/// What a test may change before the server starts.
pub struct Setup {
    pub engine: EngineConfig,
    pub http: HttpConfig,
    pub gateway: GatewayConfig,
    pub mode: EngineMode,
    /// Address of a collector of traces, and the part of new ones that it gets.
    pub otlp: Option<(String, f64)>,
    pub metrics: MetricsConfig,
    /// `None`: nobody looks at the memory.
    pub memory: Option<MemoryWatch>,
    /// Return before the model is loaded.
    pub while_loading: bool,
}

impl Setup {
    pub fn new() -> Self {
        let mut engine = EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()));
        // One token a step, however often it was said before.
        engine.n_draft_max = 0;
        engine.n_threads = Some(1);
        let gateway = GatewayConfig {
            model_id: MODEL.to_owned(),
            aliases: vec!["house/Model".to_owned()],
            api_keys: Vec::new(),
            strict: false,
            any_model: false,
            sampling: Default::default(),
            price: Default::default(),
            n_created: 1_790_000_000,
            media_hosts: Vec::new(),
            media_path: None,
            responses: Default::default(),
            limits: Default::default(),
            guardrails: Default::default(),
            routing: Default::default(),
        };
        Self {
            engine,
            http: HttpConfig::default(),
            gateway,
            mode: EngineMode::InProcess,
            otlp: None,
            metrics: Default::default(),
            memory: None,
            while_loading: false,
        }
    }

    pub fn scripted(&mut self) -> &mut ScriptedConfig {
        match &mut self.engine.source {
            ModelSource::Scripted(scripted) => scripted,
            ModelSource::Gguf(_) => unreachable!("these servers are scripted"),
        }
    }

    pub fn key(&mut self, key: &str) {
        self.gateway.api_keys.extend(ApiKey::new(key));
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub engine: Engine,
    pub gateway: Arc<Gateway>,
    pub live: LiveHttp,
    pub shutdown: CancellationToken,
    pub client: reqwest::Client,
    pub exporter: Option<Arc<Exporter>>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

/// A complete answer.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("a whole body") }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| unreachable!("{error} in {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of text"))
    }

    /// The first choice's text, whichever endpoint answered.
    pub fn content(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text);
        let choice = &self.json()["choices"][0];
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        text.unwrap_or_else(|| unreachable!("no text in {choice}")).to_owned()
    }

    /// (status, type, code, param) of an error; all four keys must be there.
    pub fn error(&self) -> (u16, String, Option<String>, Option<String>) {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text);
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| unreachable!("no error in {}", self.text));
        assert_eq!(error.keys().map(String::as_str).collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(!error["message"].as_str().unwrap_or_default().is_empty(), "{}", self.text);
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        (self.status, text("type").unwrap_or_default(), text("code"), text("param"))
    }

    /// A 400 for the client to cure: `code` at a `param` that begins with `param`.
    pub fn is_refusal(&self, code: &str, param: &str) {
        let (status, kind, got_code, got_param) = self.error();
        assert_eq!(
            (status, kind.as_str(), got_code.as_deref()),
            (400, "invalid_request_error", Some(code)),
            "{}",
            self.text
        );
        let got_param = got_param.unwrap_or_default();
        assert!(got_param.starts_with(param), "{got_param} is not {param}: {}", self.text);
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new();
        change(&mut setup);
        let engine = Engine::start(setup.engine, setup.mode);
        if !setup.while_loading {
            ready(&engine).await;
        }
        let mut gateway = Gateway::new(setup.gateway, engine.clone(), Arc::new(Metrics::of(setup.metrics)));
        if let Some(watch) = setup.memory {
            gateway = gateway.with_memory_watch(watch);
        }
        let exporter = setup.otlp.map(|(endpoint, ratio)| exporter(&gateway, &endpoint, ratio));
        if let Some(exporter) = &exporter {
            gateway = gateway.with_traces(Arc::clone(exporter));
        }
        let mut server = Self::of(Arc::new(gateway), engine, setup.http).await;
        server.exporter = exporter;
        server
    }

    /// Serves what `gateway` has; `engine` is the one that the waiting methods look at.
    pub async fn of(gateway: Arc<Gateway>, engine: Engine, http: HttpConfig) -> Self {
        let listener = TcpListener::bind((http.hosts[0], 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let shutdown = CancellationToken::new();
        let live = LiveHttp::from(http);
        let served = http::serve(vec![listener], live.clone(), Arc::clone(&gateway), shutdown.clone());
        let serving = tokio::spawn(served);
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { address, engine, gateway, live, shutdown, client, exporter: None, serving: Some(serving) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The Prometheus page, without asking over HTTP.
    pub async fn metrics(&self) -> String {
        self.gateway.metrics_page().await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.client.get(self.url(path)).send().await.expect("an answer")).await
    }

    pub async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(self.url(path)).json(body).send().await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.send(path, &body).await).await
    }

    /// A chat of one user message, with further fields.
    pub async fn chat(&self, text: &str, more: Value) -> Answer {
        self.post("/v1/chat/completions", chat_body(text, more)).await
    }

    pub async fn complete(&self, prompt: Value, more: Value) -> Answer {
        self.post("/v1/completions", with(json!({ "prompt": prompt }), more)).await
    }

    /// A streamed request, read to its end.
    pub async fn stream(&self, path: &str, body: Value) -> Events {
        let response = self.send(path, &with(body, json!({ "stream": true }))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert!(!response.headers().contains_key("content-encoding"));
        Events::parse(&response.bytes().await.expect("a whole stream"))
    }

    pub async fn stream_chat(&self, text: &str, more: Value) -> Events {
        self.stream("/v1/chat/completions", chat_body(text, more)).await
    }

    /// Opens a stream and reads until the first event has come; the rest is for the caller.
    pub async fn open_stream(&self, text: &str) -> reqwest::Response {
        let body = chat_body(text, json!({ "stream": true }));
        // The client's limit is for a whole answer; this one is held open.
        let request = self.client.post(self.url("/v1/chat/completions")).json(&body).timeout(6 * PATIENCE);
        let mut response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let first = response.chunk().await.expect("the stream lives").expect("a first chunk");
        assert!(first.starts_with(b"data: "));
        response
    }

    /// Bytes in, bytes out until the server closes or goes quiet: for what no client would send.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect().await;
        // The server may answer and close before it has read everything.
        let _ = socket.write_all(bytes.as_ref()).await;
        read_quiet(&mut socket).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the server listens")
    }

    /// Waits until the engine has no request in flight.
    pub async fn idle(&self) {
        idle(&self.engine).await;
    }

    /// Waits until `n` requests are in flight.
    pub async fn busy(&self, n: u32) {
        let all_there = async {
            while self.engine.load().n_in_flight < n {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, all_there).await.is_ok(), "never {n} requests in flight");
    }

    /// Shuts down and waits until `serve` has returned.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let serving = self.serving.take().expect("stopped once");
        let served = tokio::time::timeout(PATIENCE, serving).await.expect("serve returns in time");
        served.expect("serve does not panic").expect("serve ends well");
    }
}

pub fn exporter(gateway: &Gateway, endpoint: &str, ratio: f64) -> Arc<Exporter> {
    let endpoint = BaseUrl::new(endpoint).expect("an address");
    let config = CollectorConfig { endpoint, headers: HeaderMap::new(), ca: None };
    let collector = Collector::new(&config).expect("a collector");
    let config = OtlpConfig { ratio, service: "hearth-test".to_owned() };
    Arc::new(Exporter::start(config, collector, gateway.metrics().otlp()))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

pub async fn ready(engine: &Engine) {
    let mut watch = engine.watch();
    let is_ready = watch.wait_for(|state| matches!(state, EngineState::Ready(_)));
    tokio::time::timeout(PATIENCE, is_ready).await.expect("ready in time").expect("the engine lives");
}

/// Waits until it has no request in flight.
pub async fn idle(engine: &Engine) {
    let all_gone = async {
        while engine.load().n_in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, all_gone).await.is_ok(), "a request is still in flight after {PATIENCE:?}");
}

/// For a program that can't say which port it took: free now, and below those that the kernel gives to outgoing connections,
/// so that nobody takes it meanwhile. Begins elsewhere in each process, and no test is given another's.
pub fn free_address() -> SocketAddr {
    const FIRST: u32 = 15_000;
    const N: u32 = 17_000;
    static N_GIVEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id() % N * 64;
    let next = |_| {
        let port = FIRST + (start + N_GIVEN.fetch_add(1, Ordering::Relaxed)) % N;
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).expect("below 32000")))
    };
    (0..N).map(next).find(|address| std::net::TcpListener::bind(address).is_ok()).expect("a free port")
}

pub fn chat_body(text: &str, more: Value) -> Value {
    with(json!({ "model": MODEL, "messages": [{ "role": "user", "content": text }] }), more)
}

/// `body` with the fields of `more` over it.
pub fn with(mut body: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (body.as_object_mut(), more) {
        fields.extend(more);
    }
    body
}

/// What comes until the peer closes, or is silent: for five seconds before it says anything, then for one.
pub async fn read_quiet(socket: &mut TcpStream) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 65_536]);
    let mut silence = Duration::from_secs(5);
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(silence, socket.read(&mut buffer)).await {
        bytes.extend_from_slice(&buffer[..n]);
        silence = Duration::from_secs(1);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The events of one stream, and how it ended.
#[derive(Debug)]
pub struct Events {
    pub chunks: Vec<Value>,
    pub is_done: bool,
    pub n_comments: usize,
}

impl Events {
    /// Parses strictly: UTF-8, one line of JSON an event, nothing after `[DONE]`.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).expect("a stream of UTF-8");
        assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is cut: {text:?}");
        assert!(!text.contains('\r'));
        let mut events = Self { chunks: Vec::new(), is_done: false, n_comments: 0 };
        for event in text.split_terminator("\n\n") {
            assert!(!events.is_done, "{event:?} after [DONE]");
            match event.strip_prefix("data: ") {
                Some("[DONE]") => events.is_done = true,
                Some(data) => events.chunks.push(serde_json::from_str(data).expect("a line of JSON")),
                None => {
                    assert_eq!(event, ": keep-alive");
                    events.n_comments += 1;
                }
            }
        }
        events
    }

    /// All of one choice's values of `field` (`content`, `reasoning_content`) put together.
    pub fn text(&self, choice: u64, field: &str) -> String {
        self.choices(choice).filter_map(|it| it["delta"][field].as_str().or(it[field].as_str())).collect()
    }

    pub fn choices(&self, index: u64) -> impl Iterator<Item = &Value> {
        let all = self.chunks.iter().filter_map(|chunk| chunk["choices"].as_array()).flatten();
        all.filter(move |choice| choice["index"] == index)
    }

    pub fn finish(&self, index: u64) -> Vec<&str> {
        self.choices(index).filter_map(|choice| choice["finish_reason"].as_str()).collect()
    }
}

/// Reads a response's body chunk by chunk until `enough` of it is there.
pub async fn read_until(response: reqwest::Response, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut body = response.bytes_stream();
    while !enough(&bytes) {
        let next = tokio::time::timeout(PATIENCE, body.next()).await.expect("bytes in time");
        match next {
            Some(Ok(more)) => bytes.extend_from_slice(&more),
            Some(Err(_)) | None => break,
        }
    }
    bytes
}
