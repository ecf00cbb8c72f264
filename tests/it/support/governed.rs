//! A server with books in a folder of its own, and its admin plane on a port.

use super::{Answer, PATIENCE, Server, Setup, ready};
use hearth::engine::Engine;
use hearth::gateway::store::{Durability, LogFilter, OnFailure, RequestRow, logs};
use hearth::gateway::{Books, BooksConfig, Gateway, Price, read_master};
use hearth::http::{Admin, AdminListener, HttpConfig, LiveHttp, Settings, admin_router, serve_admin};
use hearth::telemetry::Metrics;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Dollars for a million tokens: chosen so that a request's cost tells its counts.
pub const PRICE: Price = Price { input: 1_000_000, cached_input: 500_000, output: 7_000_000 };

pub struct Governed {
    pub server: Server,
    pub books: Arc<Books>,
    pub master: String,
    admin: String,
    ends: CancellationToken,
    _dir: tempfile::TempDir,
}

pub fn books_config(dir: &Path) -> BooksConfig {
    BooksConfig { durability: Durability::Process, on_failure: OnFailure::Reject, ..BooksConfig::new(dir.to_owned()) }
}

impl Governed {
    pub async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Setup, &mut BooksConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (mut setup, mut config) = (Setup::new(), books_config(dir.path()));
        change(&mut setup, &mut config);
        let place = config.dir.clone();
        let engine = Engine::start(setup.engine, setup.mode);
        ready(&engine).await;
        let metrics = Arc::new(Metrics::of(setup.metrics));
        let books = Books::open(config, &metrics).expect("fresh books");
        let mut gateway = Gateway::new(setup.gateway, engine.clone(), metrics).with_books(Arc::clone(&books));
        if let Some(watch) = setup.memory {
            gateway = gateway.with_memory_watch(watch);
        }
        let gateway = Arc::new(gateway);
        let listener = AdminListener::tcp(([127, 0, 0, 1], 0).into(), LiveHttp::from(HttpConfig::default())).await;
        let listener = listener.expect("a free port");
        let admin = format!("http://{}", listener.address().expect("a bound socket"));
        let drain = CancellationToken::new();
        let (settings, mut asks) = Settings::new(json!({ "settings": {} }));
        tokio::spawn(async move {
            while let Some(ask) = asks.recv().await {
                let _ = ask.answer.send(Ok(()));
            }
        });
        let admin_parts = Admin {
            books: Arc::clone(&books),
            gateway: Some(Arc::clone(&gateway)),
            drain: drain.clone(),
            settings: Some(settings),
            ui: true,
        };
        let router = admin_router(Arc::new(admin_parts));
        let ends = CancellationToken::new();
        tokio::spawn(serve_admin(listener, router, ends.clone()));
        let server = Server::of(gateway, engine, setup.http).await;
        let shutdown = server.shutdown.clone();
        tokio::spawn(async move {
            drain.cancelled().await;
            shutdown.cancel();
        });
        let master = read_master(&place).expect("made at the start");
        Self { server, books, master, admin, ends, _dir: dir }
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    async fn ask(request: RequestBuilder) -> Answer {
        Answer::of(request.send().await.expect("an answer")).await
    }

    /// A POST on the admin plane with this key.
    pub async fn act_as(&self, key: &str, path: &str, body: Value) -> Answer {
        Self::ask(self.server.client.post(self.admin_url(path)).bearer_auth(key).json(&body)).await
    }

    pub async fn look_as(&self, key: &str, path: &str) -> Answer {
        Self::ask(self.server.client.get(self.admin_url(path)).bearer_auth(key)).await
    }

    /// With the master key; must be done.
    pub async fn act(&self, path: &str, body: Value) -> Value {
        let answer = self.act_as(&self.master, path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    }

    pub async fn look(&self, path: &str) -> Value {
        let answer = self.look_as(&self.master, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    }

    /// A fresh key and its id.
    pub async fn key(&self, body: Value) -> (String, String) {
        let made = self.act("/key/generate", body).await;
        let text = |name: &str| made[name].as_str().unwrap_or_else(|| unreachable!("{name} in {made}")).to_owned();
        (text("key"), text("key_id"))
    }

    /// A POST on the data plane.
    pub fn post(&self, key: &str, path: &str, body: &Value) -> RequestBuilder {
        self.server.client.post(self.server.url(path)).bearer_auth(key).json(body)
    }

    pub async fn send(&self, key: &str, path: &str, body: Value) -> Answer {
        Self::ask(self.post(key, path, &body)).await
    }

    pub async fn chat(&self, key: &str, text: &str) -> Answer {
        self.send(key, "/v1/chat/completions", super::chat_body(text, json!({}))).await
    }

    /// All rows, the oldest first, once there are `n` of them.
    pub async fn rows(&self, n: usize) -> Vec<RequestRow> {
        let read = async {
            loop {
                self.books.store().flush().await;
                let read = self.books.store().read(|conn| logs(conn, &LogFilter::default(), (1000, 0))).await;
                let mut rows = read.expect("rows can be read");
                if rows.len() >= n {
                    rows.reverse();
                    return rows;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let rows = tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| unreachable!("never {n} rows"));
        assert_eq!(rows.len(), n, "{rows:#?}");
        rows
    }

    /// The row of a request that was answered with this header.
    pub async fn row_of(&self, answer: &Answer) -> RequestRow {
        let filter = LogFilter { request_id: Some(answer.header("x-request-id").to_owned()), ..Default::default() };
        let read = self.books.store().read(move |conn| logs(conn, &filter, (10, 0))).await;
        let mut rows = read.expect("rows can be read");
        assert_eq!(rows.len(), 1, "{}", answer.text);
        rows.remove(0)
    }

    pub async fn is_verified(&self) {
        let found = self.books.store().verify(1).await.expect("the chain can be read");
        assert_eq!(found.fault, None);
    }

    pub async fn stop(self) {
        self.server.stop().await;
        self.books.close().await;
        self.ends.cancel();
    }
}
