//! The thread that owns an embeddings context: pack inputs of all waiting requests into one pass, give vectors back.
//!
//! **Invariant:** every job that comes in leaves with exactly one ending event; a batch never exceeds `n_batch` rows or
//! `n_seqs` inputs, nor `n_rows_aim` rows with more than one input.
//!
//! # Design
//! Requests take turns: each batch starts with another one and takes one input of each in turn, so that two thousand
//! inputs of one client delay another's single one by at most the batch that runs. Where the model lets an input come in
//! parts, at most one is in the middle of that; it goes on first, which bounds the cells it needs.
//!
//! A text takes several times less in a full pass than alone, and clients that were answered together ask again within
//! moments of each other: the next pass waits for as many as there were, briefly (see `gather`).

use super::Job;
use crate::engine::backend::{DecodeError, Encoder, Row};
use crate::engine::error::Failure;
use crate::engine::event::{Event, Vectors};
use crate::engine::service::{Cancels, Registry, WorkerStats};
use crate::engine::transport::Sink;
use crossbeam_channel::{Receiver, TryRecvError};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A pass waits so much of the last one's time for those who were answered with it, and no longer than `GATHER_MAX`.
const GATHER_SHARE: u32 = 4;
const GATHER_MAX: Duration = Duration::from_millis(5);
/// Where they did not come, so many passes at most go by before they are waited for again.
const VAIN_MAX: u32 = 64;

/// A request that is being worked on.
struct Task {
    job: Job,
    /// Inputs before it are computed or in the running batch.
    next: usize,
    /// As long as `inputs`; empty (or too short, where each token has its vector) where one is missing.
    vectors: Vec<Vec<f32>>,
    n_missing: usize,
}

/// A part of an input in the running batch.
#[derive(Clone, Copy)]
struct Piece {
    task: usize,
    input: usize,
    from: usize,
    to: usize,
    seq: u32,
}

/// The input that is computed in part.
#[derive(Clone, Copy)]
struct Partial {
    input: usize,
    n_computed: usize,
    seq: u32,
}

pub(in crate::engine) struct Parts<E> {
    pub encoder: E,
    /// Makes a new context when the old one broke.
    pub reopen: Box<dyn FnMut() -> Result<E, String> + Send>,
    pub incoming: Receiver<Job>,
    pub cancels: Arc<Cancels>,
    pub registry: Arc<Registry>,
    pub sink: Arc<dyn Sink>,
    pub stats: Arc<Mutex<WorkerStats>>,
}

pub(in crate::engine) struct Worker<E> {
    parts: Parts<E>,
    /// Who begins the next batch is in front.
    tasks: VecDeque<Task>,
    /// Belongs to the task in front.
    partial: Option<Partial>,
    rows: Vec<Row>,
    swept: u64,
    company: Company,
}

/// Whether those who were answered together come back together.
#[derive(Debug, Default)]
struct Company {
    /// Requests that there were when the last pass ended, those that it answered with them.
    n: usize,
    /// How long they are waited for, once one is there.
    patience: Option<Duration>,
    /// Passes that go by without a wait, and how many did after the last wait in vain.
    n_skipped: u32,
    n_vain: u32,
}

impl Company {
    /// A pass ended after `time`, of `n` requests that are here.
    fn ended(&mut self, n: usize, time: Duration) {
        self.n = n;
        self.patience = (n > 1 && self.n_skipped == 0).then(|| (time / GATHER_SHARE).min(GATHER_MAX));
        self.n_skipped = self.n_skipped.saturating_sub(1);
    }

    /// All of them were there in time, or not.
    fn came(&mut self, all: bool) {
        self.n_vain = if all { 0 } else { (2 * self.n_vain).clamp(1, VAIN_MAX) };
        self.n_skipped = self.n_vain;
    }
}

impl<E: Encoder> Worker<E> {
    pub(in crate::engine) fn new(parts: Parts<E>) -> Self {
        let company = Company::default();
        Self { parts, tasks: VecDeque::new(), partial: None, rows: Vec::new(), swept: 0, company }
    }

    /// Until the service drops its end, or the context can't be made anew (the error says why).
    pub(in crate::engine) fn run(mut self) -> Result<(), String> {
        while self.take_incoming() {
            self.sweep_cancelled();
            let pieces = self.plan();
            self.publish();
            if pieces.is_empty() {
                continue;
            }
            if let Err(reason) = self.compute(&pieces) {
                self.fail_all(&Failure::Internal("the model's computation failed".into()));
                return Err(reason);
            }
        }
        self.fail_all(&Failure::ShuttingDown);
        Ok(())
    }

    /// Blocks only when there is nothing to do. False: stop.
    fn take_incoming(&mut self) -> bool {
        if self.tasks.is_empty() {
            self.publish();
            self.parts.cancels.rest();
            match self.parts.incoming.recv() {
                Ok(job) => self.enqueue(job),
                Err(_) => return false,
            }
        }
        if !self.take_waiting() {
            return false;
        }
        self.gather();
        self.parts.cancels.step();
        !self.parts.cancels.stopping.load(Ordering::Relaxed)
    }

    /// False: nobody will ever send another.
    fn take_waiting(&mut self) -> bool {
        loop {
            match self.parts.incoming.try_recv() {
                Ok(job) => self.enqueue(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Waits for those who were here when the last pass ended, where the next one has room for them.
    fn gather(&mut self) {
        let Some(patience) = self.company.patience.take() else { return };
        let until = Instant::now() + patience;
        let n_aim = self.parts.encoder.n_rows_aim() as usize;
        let is_full = |tasks: &VecDeque<Task>| {
            let inputs = |task: &Task| task.job.inputs[task.next..].iter().map(Vec::len).sum::<usize>();
            tasks.iter().map(inputs).sum::<usize>() >= n_aim
        };
        while self.tasks.len() < self.company.n && !is_full(&self.tasks) {
            match self.parts.incoming.recv_deadline(until) {
                Ok(job) => self.enqueue(job),
                // A lost sender is found by who looks next.
                Err(_) => return self.company.came(false),
            }
        }
        self.company.came(true);
    }

    fn enqueue(&mut self, job: Job) {
        let n = job.inputs.len();
        self.tasks.push_back(Task { job, next: 0, vectors: vec![Vec::new(); n], n_missing: n });
    }

    fn sweep_cancelled(&mut self) {
        let count = self.parts.cancels.count();
        if count == self.swept {
            return;
        }
        self.swept = count;
        let is_cancelled = |task: &Task| task.job.live.cancelled.load(Ordering::Relaxed);
        if self.tasks.front().is_some_and(is_cancelled) {
            self.drop_partial();
        }
        for index in (0..self.tasks.len()).rev() {
            if is_cancelled(&self.tasks[index]) {
                self.end(index, Event::Failed(Failure::Cancelled));
            }
        }
    }

    fn drop_partial(&mut self) {
        if let Some(partial) = self.partial.take() {
            self.parts.encoder.forget(partial.seq);
        }
    }

    /// One input of each task in turn, until rows or sequences run out.
    fn plan(&mut self) -> Vec<Piece> {
        let (n_batch, n_seqs) = (self.parts.encoder.n_batch() as usize, self.parts.encoder.n_seqs());
        let above_aim = n_batch.saturating_sub(self.parts.encoder.n_rows_aim() as usize);
        let whole = self.parts.encoder.takes_whole_inputs();
        let mut pieces = Vec::new();
        let mut room = n_batch;
        let mut free_seqs = (0..n_seqs).filter(|seq| self.partial.is_none_or(|partial| partial.seq != *seq));
        let mut has_open = false;
        if let (Some(partial), Some(task)) = (self.partial, self.tasks.front()) {
            let n = (task.job.inputs[partial.input].len() - partial.n_computed).min(room);
            let to = partial.n_computed + n;
            pieces.push(Piece { task: 0, input: partial.input, from: partial.n_computed, to, seq: partial.seq });
            room -= n;
            has_open = to < task.job.inputs[partial.input].len();
        }
        loop {
            let mut went_on = false;
            for (index, task) in self.tasks.iter_mut().enumerate() {
                let Some(len) = task.job.inputs.get(task.next).map(Vec::len) else { continue };
                // An input that is cut must be its task's, in front, to go on with the next batch.
                let may_cut = !whole && !has_open && index == 0;
                let n = if len <= room.saturating_sub(above_aim) || (len <= room && pieces.is_empty()) {
                    len
                } else if may_cut {
                    room.min(len)
                } else {
                    0
                };
                if n == 0 {
                    continue;
                }
                let Some(seq) = free_seqs.next() else { return pieces };
                pieces.push(Piece { task: index, input: task.next, from: 0, to: n, seq });
                has_open |= n < len;
                room -= n;
                task.next += 1;
                went_on = true;
            }
            if !went_on {
                return pieces;
            }
        }
    }

    fn compute(&mut self, pieces: &[Piece]) -> Result<(), String> {
        self.rows.clear();
        for piece in pieces {
            let tokens = &self.tasks[piece.task].job.inputs[piece.input];
            let row = |pos: usize| Row { token: tokens[pos], pos: pos as u32, seq: piece.seq, output: true };
            self.rows.extend((piece.from..piece.to).map(row));
        }
        let lives = pieces.iter().map(|piece| &self.tasks[piece.task].job.live);
        self.parts.cancels.begin_batch(lives, self.swept);
        let start = Instant::now();
        match self.parts.encoder.encode(&self.rows) {
            Ok(()) => {
                self.count();
                // Before anybody is answered: those who come again are not here yet.
                self.take_waiting();
                self.company.ended(self.tasks.len(), start.elapsed());
                self.collect(pieces);
                Ok(())
            }
            Err(DecodeError::Aborted) => {
                // All of its requests are cancelled, or the service stops: either way their inputs are not wanted.
                self.forget(pieces);
                Ok(())
            }
            Err(DecodeError::NoKvSlot) => {
                self.forget(pieces);
                self.fail_tasks(pieces, &Failure::Internal("the embeddings context has no room for a batch".into()));
                Ok(())
            }
            Err(DecodeError::Broken(reason)) => {
                tracing::error!(reason, "an embeddings pass failed; the context is made anew");
                self.partial = None;
                self.fail_tasks(pieces, &Failure::Internal("the model's computation failed".into()));
                self.parts.encoder = (self.parts.reopen)()?;
                Ok(())
            }
        }
    }

    /// Takes the vectors of what is complete, and lets another task begin the next batch.
    fn collect(&mut self, pieces: &[Piece]) {
        self.partial = None;
        let is_pooled = self.parts.encoder.is_pooled();
        let mut row = 0;
        for piece in pieces {
            let task = &mut self.tasks[piece.task];
            let rows = row..row + piece.to - piece.from;
            row = rows.end;
            let vector = &mut task.vectors[piece.input];
            for row in rows.filter(|_| !is_pooled) {
                vector.extend_from_slice(self.parts.encoder.row_vector(row).unwrap_or_default());
            }
            if piece.to < task.job.inputs[piece.input].len() {
                self.partial = Some(Partial { input: piece.input, n_computed: piece.to, seq: piece.seq });
                continue;
            }
            if is_pooled {
                vector.extend_from_slice(self.parts.encoder.vector(piece.seq).unwrap_or_default());
            }
            if !vector.is_empty() {
                task.n_missing -= 1;
            }
            self.parts.encoder.forget(piece.seq);
        }
        // What has all its vectors is answered; what was computed and has none never will.
        for index in (0..self.tasks.len()).rev() {
            let task = &mut self.tasks[index];
            let is_open = index == 0 && self.partial.is_some();
            if task.n_missing == 0 {
                let vectors = std::mem::take(&mut task.vectors);
                let n_tokens = task.job.inputs.iter().map(|input| input.len() as u32).collect();
                self.end(index, Event::Vectors(Vectors { vectors, n_tokens }));
            } else if task.next == task.job.inputs.len() && !is_open {
                self.end(index, Event::Failed(Failure::Internal("the model made no vector of an input".into())));
            }
        }
        if self.partial.is_none() && !self.tasks.is_empty() {
            self.tasks.rotate_left(1);
        }
    }

    fn forget(&mut self, pieces: &[Piece]) {
        self.partial = None;
        for piece in pieces {
            self.parts.encoder.forget(piece.seq);
            // Should the task live on after all, its inputs are computed again.
            let task = &mut self.tasks[piece.task];
            task.next = task.next.min(piece.input);
            task.vectors[piece.input].clear();
        }
    }

    fn fail_tasks(&mut self, pieces: &[Piece], failure: &Failure) {
        let mut indices: Vec<usize> = pieces.iter().map(|piece| piece.task).collect();
        indices.sort_unstable();
        indices.dedup();
        for index in indices.into_iter().rev() {
            self.end(index, Event::Failed(failure.clone()));
        }
    }

    fn fail_all(&mut self, failure: &Failure) {
        let waiting: Vec<Job> = self.parts.incoming.try_iter().collect();
        waiting.into_iter().for_each(|job| self.enqueue(job));
        while !self.tasks.is_empty() {
            self.end(0, Event::Failed(failure.clone()));
        }
    }

    fn end(&mut self, index: usize, event: Event) {
        if let Some(task) = self.tasks.remove(index) {
            self.parts.registry.remove(task.job.id);
            self.parts.sink.emit(vec![(task.job.id, event)]);
        }
    }

    fn count(&self) {
        let mut stats = self.lock_stats();
        stats.n_decode_calls += 1;
        stats.n_decode_rows += self.rows.len() as u64;
        stats.prompt_tokens_computed += self.rows.len() as u64;
    }

    fn publish(&self) {
        self.lock_stats().n_waiting = (self.tasks.len() + self.parts.incoming.len()) as u32;
    }

    fn lock_stats(&self) -> std::sync::MutexGuard<'_, WorkerStats> {
        self.parts.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One small pass: it pages the weights in, and shows now what would fail at the first request.
pub(in crate::engine) fn warm_up(encoder: &mut impl Encoder) -> Result<(), String> {
    let n_rows = 16.min(encoder.n_batch());
    let rows: Vec<Row> = (0..n_rows).map(|pos| Row { token: 0, pos, seq: 0, output: true }).collect();
    match encoder.encode(&rows) {
        Ok(()) | Err(DecodeError::Aborted) => {}
        Err(DecodeError::NoKvSlot) => return Err("the embeddings context has no room for the warm-up".into()),
        Err(DecodeError::Broken(reason)) => return Err(reason),
    }
    encoder.forget(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_is_waited_for_and_who_does_not_seldom() {
        let mut company = Company::default();
        let ms = Duration::from_millis;
        company.ended(1, ms(8));
        assert_eq!(company.patience, None, "one alone waits for nobody");
        company.ended(8, ms(8));
        assert_eq!(company.patience, Some(ms(2)));
        company.ended(8, ms(1000));
        assert_eq!(company.patience, Some(GATHER_MAX));
        company.came(true);
        // In vain: one pass goes by, then two, and never more than the bound.
        let mut waits = Vec::new();
        for n_pass in 0..1000 {
            company.ended(8, ms(8));
            if company.patience.take().is_some() {
                waits.push(n_pass);
                company.came(false);
            }
        }
        assert_eq!(waits[..5], [0, 2, 5, 10, 19]);
        assert!(waits.windows(2).all(|pair| pair[1] - pair[0] <= VAIN_MAX as usize + 1) && waits.len() > 12);
        company.came(true);
        company.ended(8, ms(8));
        assert!(company.patience.is_some());
    }
}
