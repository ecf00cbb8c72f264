//! Settings taken anew while the server runs: on SIGHUP, when one of their files has changed, and when an administrator asks.
//!
//! # Design
//! Files are looked at each second instead of watched: that works on every filesystem, in containers whose mounts swap
//! links, and for files that come only later. A change is taken up when a second look finds it as the first did, so that
//! half a file, or a certificate whose key is still to come, is not read. Whatever is wrong, the old settings stay, whole.

use super::Flags;
use crate::config::{Config, Raw};
use crate::gateway::{Books, Gateway};
use crate::http::{LiveHttp, ReloadAsk, Settings};
use crate::telemetry;
use anyhow::{Context as _, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What a running server's settings are made of.
pub(super) struct Reload {
    pub flags: Flags,
    /// The settings in use, as written.
    pub raw: Raw,
    pub http: LiveHttp,
    pub gateway: Arc<Gateway>,
    pub books: Option<Arc<Books>>,
    /// What administrators see of them.
    pub settings: Settings,
    /// What administrators ask.
    pub asks: mpsc::Receiver<ReloadAsk>,
}

/// What a look at the files saw: of each the time of its last change, size and inode.
type Look = Vec<(PathBuf, Option<(SystemTime, u64, u64)>)>;

impl Reload {
    /// Reloads until the server stops.
    pub async fn run(mut self, mut hangup: Signal, shutdown: CancellationToken) -> Result<()> {
        self.gateway.metrics().reloaded(true);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut taken, mut last) = (self.look(), None);
        loop {
            let mut ask = None;
            let why = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                signalled = hangup.recv() => {
                    if signalled.is_none() {
                        return Ok(());
                    }
                    "SIGHUP"
                }
                // Without an admin plane nobody ever does.
                Some(asked) = self.asks.recv() => {
                    ask = Some(asked);
                    "an administrator asked"
                }
                _ = looks.tick() => {
                    let now = self.look();
                    let is_settled = last.as_ref() == Some(&now);
                    let is_new = now != taken;
                    last = Some(now);
                    if !is_new || !is_settled {
                        continue;
                    }
                    "a file has changed"
                }
            };
            // What changes from here on is new again.
            taken = self.look();
            let actor = ask.as_ref().map_or("config", |ask| ask.actor.as_str()).to_owned();
            let outcome;
            (self, outcome) = Box::pin(self.reload(why, &actor)).await?;
            if let Some(ask) = ask {
                // Whoever asked may have left.
                let _ = ask.answer.send(outcome);
            }
        }
    }

    /// Reads and checks everything, off the threads that serve. A refusal is logged and leaves all as it was.
    async fn reload(self, why: &'static str, actor: &str) -> Result<(Self, Result<(), String>)> {
        let read = move || {
            let outcome = self.read();
            (self, outcome)
        };
        let (mut this, outcome) = tokio::task::spawn_blocking(read).await?;
        let outcome = match outcome {
            Ok((raw, config)) => this.grant(&config).await.map(|()| this.take(raw, config)),
            Err(error) => Err(error),
        };
        this.gateway.metrics().reloaded(outcome.is_ok());
        let outcome = match outcome {
            Ok(()) => {
                tracing::info!("the settings were read anew ({why})");
                this.note(actor, why).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!("the settings were not read anew ({why}), the old ones stay: {error:#}");
                Err(format!("{error:#}"))
            }
        };
        Ok((this, outcome))
    }

    /// The file's keys and teams, the one part that could still fail.
    async fn grant(&self, config: &Config) -> Result<()> {
        let (Some(books), Some(new)) = (&self.books, &config.books) else { return Ok(()) };
        books.grant(new.granted.clone()).await.context("the keys that there are can't be read")?;
        self.gateway.forget_deleted().await;
        Ok(())
    }

    /// Writes into the audit chain that the rules of the house are others now.
    async fn note(&self, actor: &str, why: &str) {
        let Some(books) = &self.books else { return };
        if let Err(error) = books.note(actor, "config.reload", "", serde_json::json!({ "why": why })).await {
            tracing::error!("the audit chain does not say that the settings were read anew: {error}");
        }
    }

    fn read(&self) -> Result<(Raw, Config)> {
        let raw = self.flags.gather()?;
        self.raw.refuse_restart(&raw)?;
        let config = raw.resolve()?;
        telemetry::logging::check(&config.log)?;
        let has_keys = !config.gateway.api_keys.is_empty() || config.books.is_some();
        if !self.http.now().hosts.iter().all(|host| raw.may_listen(*host, has_keys)) {
            bail!("without a key this server would be open to all who can reach it");
        }
        self.gateway.refuse_unknown_labels(&config.gateway.guardrails).map_err(|error| anyhow!(error))?;
        Ok((raw, config))
    }

    /// From here on nothing can fail.
    fn take(&mut self, raw: Raw, mut config: Config) {
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if let Err(error) = telemetry::logging::set_level(&config.log) {
            tracing::error!("the log level stays: {error}");
        }
        // A port of 0 has become a real one, and systemd's sockets are where they are.
        let now = self.http.now();
        (config.http.hosts, config.http.port) = (now.hosts.clone(), now.port);
        config.http.hands_over = now.hands_over;
        self.http.set(config.http);
        if let Some(tls) = &self.http.now().tls {
            self.gateway.metrics().certificate_expires(tls.expires_unix());
        }
        self.gateway.reload(config.gateway, config.models.into_iter().map(|model| model.config).collect());
        self.settings.show(raw.masked());
        self.raw = raw;
    }

    fn look(&self) -> Look {
        let mut paths = self.raw.files();
        paths.push(self.flags.file());
        // A handful of them: no reason to move to another thread.
        paths.into_iter().map(|path| (path.clone(), seen(&path))).collect()
    }
}

fn seen(path: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
