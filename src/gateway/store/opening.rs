//! Requests that were let in a moment ago and whose notes wait for the disk.
//!
//! # Design
//! What a short request would write down when it begins is gone again when it ends. So a note waits for [`WAIT`]: it is
//! written then, or when somebody asks for its commit (the first token of a stream), and a request that is settled before
//! writes its row alone. What a kill in that time loses is a request of which nobody has seen a word.

use super::writer::{Job, Work};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a note waits at most, from the first of those that wait.
const WAIT: Duration = Duration::from_millis(5);

/// **Bound:** each job holds its place in the queue.
#[derive(Default)]
pub(super) struct Opening {
    jobs: HashMap<String, Job>,
    since: Option<Instant>,
}

impl Opening {
    /// `job`: an `Open`.
    pub(super) fn push(&mut self, id: String, job: Job) -> Option<Job> {
        self.since.get_or_insert_with(Instant::now);
        self.jobs.insert(id, job)
    }

    /// Its row comes instead: what is left is to tell whoever waits.
    pub(super) fn covered(&mut self, id: &str) -> Option<Job> {
        let job = self.jobs.remove(id)?;
        if self.jobs.is_empty() {
            self.since = None;
        }
        let Job { work, _permit } = job;
        let Work::Open(_, done) = work else { return None };
        Some(Job { work: Work::Covered(done), _permit })
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.since = None;
        std::mem::take(&mut self.jobs).into_values()
    }

    /// Until they are due; `None`: nothing waits.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.since.map(|since| WAIT.saturating_sub(since.elapsed()))
    }

    pub(super) fn is_due(&self) -> bool {
        self.wait().is_some_and(|wait| wait.is_zero())
    }
}
