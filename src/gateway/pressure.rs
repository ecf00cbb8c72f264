//! Memory that runs short: looked at while the server runs, and answered step by step.
//!
//! # Design
//! What is taken by this unit is compared with what it may have (its cgroup's limit, or the machine's memory), and beyond
//! the mark a step of [`Pressure`] is taken with each look, for as long as something really waits for memory: a server
//! that is merely full is left alone, where the kernel tells the two apart. Steps are gone back slowly, and only from well
//! below the mark, so that one that has just helped is not undone by having helped. Running streams go on through all of it.

use super::cache::Cache;
use super::models::Shared;
use super::{Error, Gateway, Target};
use crate::chat::Class;
use crate::engine::{Failure, Pressure};
use crate::model::Shortage;
use crate::telemetry::Metrics;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How memory is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryWatch {
    /// The part in use, 0 to 1, from which on something is given up.
    pub high: f64,
    /// Between two looks.
    pub every: Duration,
    /// Where /proc and /sys are.
    pub root: PathBuf,
}

impl MemoryWatch {
    pub fn new(high: f64) -> Self {
        Self { high, every: Duration::from_secs(1), root: "/".into() }
    }
}

/// Percent of the time in which something waits for memory, for that to count.
const STALLED: f64 = 5.0;
/// So far below the mark a step is gone back.
const BELOW: f64 = 0.05;
/// Looks without trouble before a step is gone back.
const CALM_LOOKS: u32 = 5;

/// From one look to the next.
#[derive(Debug, Default)]
struct Steps {
    pressure: Pressure,
    n_calm: u32,
    n_hits: Option<u64>,
}

impl Steps {
    fn look(&mut self, found: &Shortage, high: f64) -> Pressure {
        let hits = self.n_hits.replace(found.n_hits).is_some_and(|before| found.n_hits > before);
        let stalls = hits || found.stalled.is_none_or(|percent| percent >= STALLED);
        if found.used >= high && stalls {
            self.n_calm = 0;
            self.pressure = self.pressure.more();
        } else if found.used < high - BELOW || !hits && found.stalled.is_some_and(|percent| percent < STALLED / 2.0) {
            self.n_calm += 1;
            if self.n_calm >= CALM_LOOKS {
                self.n_calm = 0;
                self.pressure = self.pressure.less();
            }
        } else {
            self.n_calm = 0;
        }
        self.pressure
    }
}

impl Gateway {
    /// Looks at the memory from now on, until the gateway is gone. Must be called inside a runtime.
    pub fn with_memory_watch(self, watch: MemoryWatch) -> Self {
        let models = Arc::downgrade(&self.models.shared);
        tokio::spawn(run(watch, models, self.cache.clone(), Arc::clone(&self.metrics)));
        self
    }

    /// How short memory is.
    pub fn pressure(&self) -> Pressure {
        self.models.shared.pressure.get()
    }

    /// A model, loaded and held; a load that is refused because memory is short is counted.
    pub(super) async fn opened(&self, idx: usize, class: Class) -> Result<Target, Error> {
        let target = self.models.target(idx).await;
        if let Err(Error::Engine(failure)) = &target {
            self.count_shed(failure, class);
        }
        target
    }

    /// Counts a request that was refused for it.
    pub(super) fn count_shed(&self, failure: &Failure, class: Class) {
        if matches!(failure, Failure::Shed { .. }) {
            self.metrics.shed(if class == Class::Batch { "batch" } else { "new" }, 1);
        }
    }
}

/// **Bound:** one task for each gateway.
async fn run(watch: MemoryWatch, models: Weak<Shared>, cache: Option<Arc<Cache>>, metrics: Arc<Metrics>) {
    let mut steps = Steps::default();
    let mut looks = tokio::time::interval(watch.every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(models) = models.upgrade() else { return };
        // A few files of the kernel's: no reason to move to another thread.
        let Some(found) = Shortage::now(&watch.root) else { continue };
        let before = steps.pressure;
        let pressure = steps.look(&found, watch.high);
        if pressure != before {
            let percent = (found.used * 100.0).round();
            match pressure > before {
                true => tracing::warn!(used_percent = percent, ?pressure, "memory is short: something is given up"),
                false => tracing::info!(used_percent = percent, ?pressure, "memory is less short"),
            }
        }
        models.pressure.set(pressure);
        apply(pressure, &models, cache.as_ref(), &metrics);
        metrics.memory(found.used, pressure as u8);
    }
}

/// With each look, since engines come and go.
fn apply(pressure: Pressure, models: &Shared, cache: Option<&Arc<Cache>>, metrics: &Metrics) {
    if let Some(cache) = cache.filter(|_| pressure >= Pressure::Caches) {
        metrics.shed("caches", cache.leave_memory());
    }
    let engines = (0..models.entries.len()).filter_map(|idx| models.engine(idx));
    let n_sent: usize = engines.map(|engine| engine.set_pressure(pressure)).sum();
    metrics.shed(if pressure == Pressure::Queue { "queue" } else { "batch" }, n_sent);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(used: f64, stalled: Option<f64>) -> Shortage {
        Shortage { used, stalled, n_hits: 0 }
    }

    #[test]
    fn a_step_is_taken_with_each_look_and_gone_back_slowly() {
        let mut steps = Steps::default();
        let taken: Vec<Pressure> = (0..5).map(|_| steps.look(&found(0.96, Some(30.0)), 0.95)).collect();
        let all = [Pressure::Caches, Pressure::Batch, Pressure::New, Pressure::Queue, Pressure::Queue];
        assert_eq!(taken, all);
        // Between the marks nothing changes, however long.
        for _ in 0..3 * CALM_LOOKS {
            assert_eq!(steps.look(&found(0.92, Some(30.0)), 0.95), Pressure::Queue);
        }
        for expected in [Pressure::New, Pressure::Batch, Pressure::Caches, Pressure::None, Pressure::None] {
            let gone: Vec<Pressure> = (0..CALM_LOOKS).map(|_| steps.look(&found(0.5, Some(30.0)), 0.95)).collect();
            assert_eq!(*gone.last().expect("looks"), expected);
        }
        // A look in between begins the wait anew.
        steps.look(&found(0.96, Some(30.0)), 0.95);
        for _ in 0..4 {
            for _ in 1..CALM_LOOKS {
                assert_eq!(steps.look(&found(0.5, None), 0.95), Pressure::Caches);
            }
            assert_eq!(steps.look(&found(0.92, None), 0.95), Pressure::Caches);
        }
    }

    #[test]
    fn a_full_server_that_waits_for_nothing_is_left_alone() {
        let mut steps = Steps::default();
        for _ in 0..20 {
            assert_eq!(steps.look(&found(0.99, Some(0.3)), 0.95), Pressure::None);
        }
        // Unless the kernel says that the limit was run into,
        let hit = |n_hits| Shortage { n_hits, ..found(0.99, Some(0.3)) };
        assert_eq!(steps.look(&hit(7), 0.95), Pressure::Caches);
        assert_eq!(steps.look(&hit(7), 0.95), Pressure::Caches, "once");
        // or can't say who waits.
        assert_eq!(steps.look(&found(0.99, None), 0.95), Pressure::Batch);
        // What it ran into before it was looked at is over.
        assert_eq!(Steps::default().look(&hit(7), 0.95), Pressure::None);
    }
}
