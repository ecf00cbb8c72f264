//! `hearth serve`: listen, plan, load, answer, drain.

use super::heap;
use super::listen;
use super::notify::Notify;
use super::plan::{self, Model};
use super::progress::{self, Show};
use super::reload::Reload;
use super::{Flags, runtime, say};
use crate::config::{Config, Raw};
use crate::engine::{EngineMode, EngineState};
use crate::gateway::{Books, Collector, Gateway, MASTER, ModelSetup, SOCKET};
use crate::http::{self, Admin, AdminListener, LiveHttp, Settings};
use crate::telemetry::otlp::Exporter;
use crate::telemetry::{self, Metrics};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The GGUF file to serve [env: HEARTH_MODEL]
    #[arg(value_name = "MODEL")]
    file: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

impl Serve {
    pub fn run(self) -> Result<()> {
        let flags = self.flags.with("model", self.file.as_deref());
        let raw = flags.gather()?;
        let log = raw.log();
        telemetry::logging::init(&log)?;
        super::harden::keep_memory_private();
        let has_keys = raw.api_key.value.is_some() || raw.api_key_file.value.is_some() || raw.data_dir.value.is_some();
        let config = raw.resolve()?;
        Flags::misspelt().iter().chain(&config.warnings).for_each(|warning| tracing::warn!("{warning}"));
        let runtime = runtime()?;
        let served = runtime.block_on(serve(flags, raw, config, has_keys));
        // A task that does not end (a blocked name look-up, say) must not keep the process.
        runtime.shutdown_background();
        served
    }
}

async fn serve(flags: Flags, raw: Raw, mut config: Config, has_keys: bool) -> Result<()> {
    // First of all, so that a port that is taken is found before anything costs time.
    let listeners = listen::listen(&mut config.http).await?;
    // From here on it means a reload; until then it ends the process, as it does by default.
    let hangup = signal(SignalKind::hangup())?;
    listen::allow_files(config.http.connections_max);
    // systemd's sockets may be others than the settings say.
    if let Some(open) = config.http.hosts.iter().find(|host| !raw.may_listen(**host, has_keys)) {
        bail!("{open} can be reached by others and no key is set: give --api-key, --api-key-file or --insecure");
    }
    let model = plan::settle_all(&mut config)?;
    announce(&config, model.as_ref(), has_keys);
    drop(model);

    let mode = if config.in_process {
        EngineMode::InProcess
    } else {
        let exe = std::env::current_exe().context("hearth can't find its own executable")?;
        EngineMode::Process { exe, args: super::engine::log_args(&raw.log()) }
    };
    let live = LiveHttp::from(config.http.clone());
    let (admin_listen, admin_ui) = (config.admin_listen, config.admin_ui);
    let house = House::open(config, &mode)?;
    let gateway = Arc::clone(&house.gateway);
    let shutdown = CancellationToken::new();
    // Served until the last row is written, so that a draining server can still be looked at.
    let admin_ends = CancellationToken::new();
    let mut planes = JoinSet::new();
    let (settings, asks) = Settings::new(raw.masked());
    if let Some(books) = &house.books {
        let admin = Admin {
            books: Arc::clone(books),
            gateway: Some(Arc::clone(&gateway)),
            drain: shutdown.clone(),
            settings: Some(settings.clone()),
            ui: admin_ui,
        };
        serve_admin(&mut planes, admin, admin_listen.map(|address| (address, live.clone())), &admin_ends).await?;
    }
    // **Bound:** the four below; they end with the server.
    let mut beside = JoinSet::new();
    beside.spawn(drain_on_signal(shutdown.clone()));
    // **Bound:** one task for each model that is loaded at the start.
    let mut watchers = JoinSet::new();
    let started = gateway.started();
    let show = if started.len() > 1 { Show::Lines } else { Show::BarOrLines };
    for (id, states) in started {
        watchers.spawn(watch_engine(id, states, show, shutdown.clone()));
    }
    let books = house.books.clone();
    let reload = Reload { flags, raw, http: live.clone(), gateway: Arc::clone(&gateway), books, settings, asks };
    beside.spawn(reload.run(hangup, shutdown.clone()));
    let until = shutdown.clone();
    beside.spawn(async move {
        heap::keep_trimmed(until).await;
        Ok(())
    });
    let notify = Notify::from(|name| std::env::var(name).ok());
    notify.ready();
    let until = shutdown.clone();
    beside.spawn(async move {
        notify.live(until).await;
        notify.stopping();
        Ok(())
    });
    let served = http::serve(listeners, live, gateway, shutdown.clone()).await;
    // Set by whoever asked to stop; a listener that failed by itself stops the rest too.
    shutdown.cancel();
    house.close().await;
    admin_ends.cancel();
    while planes.join_next().await.is_some() {}
    beside.abort_all();
    served.context("the server failed")?;
    while let Some(watched) = watchers.join_next().await {
        watched.unwrap_or_else(|error| Err(anyhow!("an engine's watcher ended: {error}")))?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// The gateway, and what it writes to.
struct House {
    gateway: Arc<Gateway>,
    books: Option<Arc<Books>>,
    exporter: Option<Arc<Exporter>>,
}

impl House {
    /// Must be called inside a runtime. Errors: books, answers or a collector that can't be opened.
    fn open(config: Config, mode: &EngineMode) -> Result<Self> {
        let setups = config.models.into_iter().map(|model| ModelSetup { config: model.config, engine: model.engine });
        let metrics = Arc::new(Metrics::of(config.metrics));
        let books = config.books.map(|books| Books::open(books, &metrics)).transpose()?;
        if let Some(shipper) = books.as_ref().and_then(|books| books.shipper()) {
            shipper.start();
        }
        let mut gateway = Gateway::open(config.gateway, setups.collect(), mode, config.limits, metrics);
        if let Some(books) = &books {
            gateway = gateway.with_books(Arc::clone(books));
            gateway.keep_cache_on_disk().context("answers can't be kept on disk")?;
        }
        if let Some(watch) = config.memory {
            gateway = gateway.with_memory_watch(watch);
        }
        let exporter = match &config.otlp {
            Some(otlp) => {
                let collector = Collector::new(&otlp.collector).map_err(|error| anyhow!("the collector: {error}"))?;
                Some(Arc::new(Exporter::start(otlp.exporter.clone(), collector, gateway.metrics().otlp())))
            }
            None => None,
        };
        if let Some(exporter) = &exporter {
            gateway = gateway.with_traces(Arc::clone(exporter));
        }
        Ok(Self { gateway: Arc::new(gateway), books, exporter })
    }

    /// Engines first: what they still answer has its row and its span.
    async fn close(&self) {
        self.gateway.close().await;
        if let Some(books) = &self.books {
            books.close().await;
        }
        if let Some(exporter) = &self.exporter {
            exporter.close().await;
        }
    }
}

/// Starts the admin plane. **Bound:** one task for each of its at most two listeners.
async fn serve_admin(
    planes: &mut JoinSet<()>,
    admin: Admin,
    address: Option<(SocketAddr, LiveHttp)>,
    ends: &CancellationToken,
) -> Result<()> {
    let books = Arc::clone(&admin.books);
    let socket = books.dir().join(SOCKET);
    let listener =
        AdminListener::unix(&socket).with_context(|| format!("{} can't be listened on", socket.display()))?;
    let router = http::admin_router(Arc::new(admin));
    planes.spawn(http::serve_admin(listener, router.clone(), ends.clone()));
    let master = books.dir().join(MASTER);
    tracing::info!(socket = %socket.display(), key = %master.display(), is_new = books.is_new(), "the admin API");
    if let Some((address, live)) = address {
        let is_sealed = live.now().tls.is_some();
        let listener = AdminListener::tcp(address, live).await;
        let listener = listener.with_context(|| format!("{address} can't be listened on"))?;
        let address = listener.address().unwrap_or(address);
        tracing::info!(%address, tls = is_sealed, "the admin API, also");
        planes.spawn(http::serve_admin(listener, router, ends.clone()));
    }
    Ok(())
}

/// Prints where the server is and a line that tries it. The key is never printed: the line takes it from a variable.
fn announce(config: &Config, model: Option<&Model>, has_keys: bool) {
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let addresses: Vec<SocketAddr> =
        config.http.hosts.iter().map(|host| SocketAddr::new(*host, config.http.port)).collect();
    addresses.iter().for_each(|address| say!("hearth listening on {scheme}://{address}"));
    let Some(reachable) = addresses.first().map(|it| SocketAddr::new(reachable(it.ip()), it.port())) else { return };
    let key = if has_keys { " -H \"Authorization: Bearer $HEARTH_API_KEY\"" } else { "" };
    let (path, body) = first_request(config, model);
    // A quote in the model's name would end the shell's.
    let body = body.replace('\'', "'\\''");
    say!("curl {scheme}://{reachable}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'");
}

/// What the model is made for: the path behind /v1 and a body.
fn first_request(config: &Config, model: Option<&Model>) -> (&'static str, String) {
    let name = serde_json::Value::from(config.gateway.model_id.as_str());
    let engine = &config.models[0].engine;
    let meta = |key: &str| model.and_then(|model| model.file.gguf.text(key));
    if let Some(encoder) = model.filter(|model| model.shape.encoder) {
        if plan::has_head(engine, encoder) {
            let documents = r#"["a river","a lamp"]"#;
            return ("rerank", format!(r#"{{"model":{name},"query":"water","documents":{documents}}}"#));
        }
        return ("embeddings", format!(r#"{{"model":{name},"input":"Once upon a time"}}"#));
    }
    if model.is_none() || meta("tokenizer.chat_template").is_some() || engine.chat_template.is_some() {
        return (
            "chat/completions",
            format!(r#"{{"model":{name},"messages":[{{"role":"user","content":"Hello!"}}]}}"#),
        );
    }
    ("completions", format!(r#"{{"model":{name},"prompt":"Once upon a time","max_tokens":64}}"#))
}

/// An address a client on this machine can use.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// The first SIGTERM or SIGINT drains, the second ends the process at once.
#[expect(
    clippy::exit,
    reason = "at once is what a second signal asks for; the engine's process leaves when its stdin ends"
)]
async fn drain_on_signal(shutdown: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name}: no new requests; running answers may finish (a second signal stops at once)");
    shutdown.cancel();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("a second signal: stopping at once");
    std::process::exit(130);
}

/// Shows the load, then waits for the engine to fail for good, which stops the server with an error: whoever supervises
/// this process must see it.
///
/// An engine that stops because its model was unloaded is no reason to end.
async fn watch_engine(
    id: String,
    mut states: watch::Receiver<EngineState>,
    show: Show,
    shutdown: CancellationToken,
) -> Result<()> {
    let failed = match progress::ready(&mut states, show).await {
        Ok(_) => progress::gone(&mut states).await.map(|reason| anyhow!("the model can't be loaded: {reason}")),
        Err(_) if shutdown.is_cancelled() => None,
        Err(error) => Some(error),
    };
    let Some(error) = failed else { return Ok(()) };
    shutdown.cancel();
    Err(error.context(id))
}
