//! How the command line does what the admin API does: over the socket of a server that runs, or on the folder itself.

use super::runtime;
use crate::config::Raw;
use crate::gateway::{Books, BooksConfig, SOCKET, read_master};
use crate::http::{Admin, admin_router};
use crate::telemetry::Metrics;
use anyhow::{Context as _, Result, anyhow, bail};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;
use tower::ServiceExt;

/// Which books are meant.
#[derive(Debug, Clone, Args)]
pub(super) struct Place {
    /// The server's data folder [env: HEARTH_DATA_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Settings file that names it [default: ./hearth.toml, if it exists] [env: HEARTH_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl Place {
    fn books(&self) -> Result<BooksConfig> {
        let variable = |name: &str| std::env::var(name).ok();
        let config =
            self.config.clone().or_else(|| variable("HEARTH_CONFIG").filter(|s| !s.is_empty()).map(Into::into));
        let mut raw = Raw::gather(config.as_deref(), variable, &[])?;
        if let Some(dir) = &self.data_dir {
            raw.data_dir.value = Some(dir.clone());
        }
        // Where rows go besides is the server's secret; whoever administers it may not have it.
        let books = raw.books().or_else(|_| {
            raw.store.value = None;
            raw.books()
        });
        books?.ok_or_else(|| anyhow!("no data folder was named: give --data-dir, HEARTH_DATA_DIR or the key data_dir"))
    }

    /// One call, from start to end.
    pub(super) fn call(&self, call: Call) -> Result<Answer> {
        let books = self.books()?;
        runtime()?.block_on(async {
            let desk = Desk::open(books).await?;
            let answer = desk.call(call).await;
            desk.close().await;
            answer
        })
    }
}

pub(super) struct Call {
    pub method: Method,
    /// With its query.
    pub path: String,
    pub body: Option<Value>,
    pub csv: bool,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, csv: false }
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body), csv: false }
    }
}

/// A good answer's body.
pub(super) struct Answer(Bytes);

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.0).context("the answer is no JSON")
    }
}

enum Desk {
    /// A server runs.
    Up { socket: PathBuf, master: String },
    /// None does, and the folder is ours as long as this lives.
    Down { books: Arc<Books>, router: Router, master: String },
}

impl Desk {
    async fn open(config: BooksConfig) -> Result<Self> {
        let socket = config.dir.join(SOCKET);
        if UnixStream::connect(&socket).await.is_ok() {
            let master = read_master(&config.dir).context("the running server's master key can't be read")?;
            return Ok(Desk::Up { socket, master });
        }
        let dir = config.dir.clone();
        let books = Books::open(config, &Arc::new(Metrics::new()))?;
        let router = admin_router(Arc::new(Admin {
            books: Arc::clone(&books),
            gateway: None,
            drain: Default::default(),
            settings: None,
            ui: false,
        }));
        Ok(Desk::Down { books, router, master: read_master(&dir)? })
    }

    async fn call(&self, call: Call) -> Result<Answer> {
        let (Desk::Up { master, .. } | Desk::Down { master, .. }) = self;
        let body = call.body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, "hearth")
            .header(header::AUTHORIZATION, format!("Bearer {master}"))
            .header(header::ACCEPT, if call.csv { "text/csv" } else { "application/json" })
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))?;
        let (status, body) = match self {
            Desk::Up { socket, .. } => over(socket, request).await?,
            Desk::Down { router, .. } => {
                let response = router.clone().oneshot(request).await?;
                (response.status(), response.into_body().collect().await?.to_bytes())
            }
        };
        if status.is_success() {
            return Ok(Answer(body));
        }
        let message = serde_json::from_slice::<Value>(&body).ok();
        let message = message.as_ref().and_then(|body| body["error"]["message"].as_str());
        bail!("{}", message.map_or_else(|| format!("the server answered {status}"), str::to_owned));
    }

    async fn close(self) {
        if let Desk::Down { books, .. } = &self {
            books.close().await;
        }
    }
}

async fn over(socket: &PathBuf, request: Request<Body>) -> Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.context("the server's admin socket can't be reached")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}
