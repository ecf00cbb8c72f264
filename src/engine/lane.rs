//! The way to a worker.

use super::run::Run;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs on one worker, and how many there are.
pub(super) struct Lane<S> {
    pub runs: Sender<Box<Run<S>>>,
    n_runs: Arc<AtomicU32>,
}

impl<S> Lane<S> {
    pub(super) fn new(runs: Sender<Box<Run<S>>>) -> Self {
        Self { runs, n_runs: Arc::default() }
    }

    pub(super) fn n_runs(&self) -> u32 {
        self.n_runs.load(Ordering::Relaxed)
    }

    /// Counts a run in for as long as the ticket lives.
    pub(super) fn ticket(&self) -> Ticket {
        self.n_runs.fetch_add(1, Ordering::Relaxed);
        Ticket { n_runs: Arc::clone(&self.n_runs) }
    }
}

/// A run's place on its worker.
pub(super) struct Ticket {
    n_runs: Arc<AtomicU32>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.n_runs.fetch_sub(1, Ordering::Relaxed);
    }
}
