//! Shows how an engine comes up: a bar on a terminal, log lines otherwise.

use crate::engine::{Description, EngineState};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is shown of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// A bar, where stderr is a terminal.
    Bar,
    /// A bar, or log lines where there is no terminal.
    BarOrLines,
    /// Log lines: several bars would write over each other.
    Lines,
}

/// Waits until the engine is ready. Errors when the model can't be loaded.
pub(super) async fn ready(states: &mut watch::Receiver<EngineState>, show: Show) -> Result<Arc<Description>> {
    let started = Instant::now();
    let mut shown = Shown::new(show);
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            EngineState::Loading { progress } => shown.loading(progress),
            EngineState::Ready(description) => {
                shown.clear();
                if show != Show::Bar {
                    let load_ms = started.elapsed().as_millis() as u64;
                    tracing::info!(load_ms, cpu = %description.cpu, "ready: {}", description.desc);
                }
                return Ok(description);
            }
            // The engine logs its own death.
            EngineState::Restarting { .. } => shown.clear(),
            EngineState::Failed { reason } => {
                shown.clear();
                bail!("the model can't be loaded: {reason}");
            }
            EngineState::Stopped => {
                shown.clear();
                bail!("the engine stopped before it was ready");
            }
        }
        if states.changed().await.is_err() {
            bail!("the engine is gone");
        }
    }
}

/// Follows an engine that was ready; returns why when it is gone for good.
pub(super) async fn gone(states: &mut watch::Receiver<EngineState>) -> Option<String> {
    loop {
        match states.borrow_and_update().clone() {
            EngineState::Failed { reason } => return Some(reason),
            EngineState::Stopped => return None,
            _ => {}
        }
        if states.changed().await.is_err() {
            return None;
        }
    }
}

struct Shown {
    bar: Option<ProgressBar>,
    show: Show,
    /// When the log was last told.
    told: Instant,
}

/// A log line this often at most: a load of seconds says nothing, one of minutes shows that it goes on.
const LINE_EVERY: Duration = Duration::from_secs(2);

impl Shown {
    fn new(show: Show) -> Self {
        let bar = (show != Show::Lines && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(1000);
            if let Ok(style) = ProgressStyle::with_template("loading {bar:40} {percent:>3} %") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, show, told: Instant::now() }
    }

    fn loading(&mut self, progress: f32) {
        #[expect(clippy::cast_sign_loss, reason = "within 0..=1; anything else saturates and only makes the bar wrong")]
        let thousandths = (progress * 1000.0) as u64;
        match &self.bar {
            Some(bar) => bar.set_position(thousandths),
            None if self.show != Show::Bar && self.told.elapsed() >= LINE_EVERY => {
                tracing::info!(percent = thousandths / 10, "loading the model");
                self.told = Instant::now();
            }
            None => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
