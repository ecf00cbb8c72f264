//! The thread that writes: groups of jobs, one transaction each, and what it does when the disk says no.

use super::chain::{Act, ChainKeys, Head, epoch_of, note_epoch};
use super::checkpoint::{Checkpoints, Pages};
use super::opening::Opening;
use super::ratchet::Ratchet;
use super::row::{self, Progress, RequestRow};
use super::spill::Spill;
use super::verify::digest_of_rows;
use super::witness::Witness;
use super::{Durability, GROUP_MAX, Health, OnFailure, PROBE_EVERY, StoreConfig, StoreError, open};
use crate::gateway::unix_ms;
use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(super) struct Job {
    pub work: Work,
    /// Its place in the queue.
    pub _permit: Option<OwnedSemaphorePermit>,
}

type Done = oneshot::Sender<Result<(), StoreError>>;
type Apply = Box<dyn FnOnce(&Connection) -> Result<(), StoreError> + Send>;

pub(super) enum Work {
    Open(Box<RequestRow>, Done),
    /// Somebody waits for what waits in [`Opening`].
    Hurry,
    /// A request that is settled before its note was written.
    Covered(Done),
    Settle(Box<RequestRow>, Option<Done>),
    Progress(Vec<Progress>),
    Change(Act, Apply, Done),
    /// Rows and links up to here have arrived elsewhere.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Shipped(i64, i64),
    Flush(oneshot::Sender<()>),
}

/// Signed at the latest after this many links, or this long after one that is not.
const SIGN_LINKS: u64 = 1000;
const SIGN_EVERY: Duration = Duration::from_secs(60);
/// After a try that failed.
const SIGN_RETRY: Duration = Duration::from_secs(5);
/// Tries to write what is left once nobody sends any more.
const LAST_TRIES: u32 = 3;

/// What the store and its writer both look at.
pub(super) struct Shared {
    /// Of the epoch that is running.
    pub keys: Arc<ArcSwap<ChainKeys>>,
    pub health: Arc<Health>,
    pub spill: Arc<Spill>,
    pub is_hurried: Arc<AtomicBool>,
}

pub(super) struct Writer {
    config: StoreConfig,
    keys: Arc<ArcSwap<ChainKeys>>,
    ratchet: Ratchet,
    witness: Option<Witness>,
    /// Not before this is it tried to sign once more.
    unsigned_until: Option<Instant>,
    health: Arc<Health>,
    spill: Arc<Spill>,
    is_hurried: Arc<AtomicBool>,
    /// `None` while the file can't be written: it is opened anew by the probe.
    conn: Option<Connection>,
    head: Head,
    boot: i64,
    /// Of the last row.
    seq: i64,
    signed: Instant,
    opening: Opening,
    pages: Pages,
    checkpoints: Checkpoints,
}

/// What a transaction leads to, once it is committed.
struct Written {
    head: Head,
    seq: i64,
    n_rows: u64,
    checkpoint: Option<String>,
}

impl Writer {
    pub(super) fn open(
        config: StoreConfig,
        ratchet: Ratchet,
        Shared { keys, health, spill, is_hurried }: Shared,
    ) -> Result<Self, StoreError> {
        let pages = Pages::default();
        let mut conn = open::writer(&config.path, config.durability, ratchet.has_begun(), &pages)?;
        let checkpoints = Checkpoints::start(config.path.clone(), Arc::clone(&pages))?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute("UPDATE state SET boot = boot + 1", [])?;
        let (boot, seq) =
            tx.query_row("SELECT boot, request_seq FROM state", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let head = Head::read(&tx)?;
        let n = match epoch_of(&tx)? {
            Some(n) => n,
            None if ratchet.has_begun() => return Err(open::emptied()),
            None => {
                let first = ratchet.oldest()?.n;
                note_epoch(&tx, &ratchet.keys(first)?, 1)?;
                first
            }
        };
        keys.store(Arc::new(ratchet.keys(n)?));
        let witness = config.witness.clone().map(|path| Witness::open(path, &tx)).transpose()?;
        let mut writer = Self {
            head,
            config,
            keys,
            ratchet,
            witness,
            unsigned_until: None,
            health,
            spill,
            is_hurried,
            conn: None,
            boot,
            seq,
            signed: Instant::now(),
            opening: Opening::default(),
            pages,
            checkpoints,
        };
        let left = row::left_behind(&tx, boot)?;
        let n_left = left.len();
        let mut start = writer.begin();
        let rows: Vec<&RequestRow> = left.iter().collect();
        writer.settle(&tx, &mut start, &rows)?;
        let act = Act {
            actor: "server".into(),
            action: "start",
            object: String::new(),
            detail: json!({ "boot": boot, "crashed": n_left }),
        };
        start.head.append(&tx, &writer.keys.load(), unix_ms(), act)?;
        tx.commit()?;
        if !writer.ratchet.has_begun() {
            open::settle(&conn)?;
        }
        writer.ratchet.begin(n)?;
        (writer.head, writer.seq) = (start.head, start.seq);
        if n_left > 0 {
            tracing::warn!(n_requests = n_left, "requests that ran when the server died were settled as crashed");
        }
        writer.conn = Some(conn);
        Ok(writer)
    }

    /// Until every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut probed = Instant::now();
        let mut n_failed = 0;
        loop {
            let patience = match &self.conn {
                None => PROBE_EVERY.saturating_sub(probed.elapsed()),
                Some(_) if !self.spill.is_empty() => Duration::ZERO,
                Some(_) => self.opening.wait().unwrap_or(Duration::from_secs(1)),
            };
            let first = jobs.recv_timeout(patience);
            let is_last = matches!(first, Err(RecvTimeoutError::Disconnected));
            let is_idle = first.is_err();
            let came = first.into_iter().chain(jobs.try_iter().take(GROUP_MAX - 1)).collect();
            let mut group = self.gather(came, is_last);
            if self.conn.is_none() && (is_last || probed.elapsed() >= PROBE_EVERY) {
                probed = Instant::now();
                self.probe();
            }
            if self.conn.is_none() {
                group.drain(..).for_each(|job| self.refuse(job));
                if is_last {
                    break;
                }
                continue;
            }
            let may_sign = is_last || self.unsigned_until.is_none_or(|until| Instant::now() >= until);
            // A chain of the first kind goes over to epochs at once.
            let is_old = self.keys.load().epoch().n == 0;
            let is_due = may_sign
                && (self.head.n_unsigned >= SIGN_LINKS
                    || (self.head.n_unsigned > 0 && (is_last || is_old || self.signed.elapsed() >= SIGN_EVERY)));
            if !group.is_empty() || !self.spill.is_empty() || is_due {
                self.commit(group, is_due);
            }
            if let Some(conn) = &self.conn {
                self.checkpoints.look(conn, is_idle);
            }
            // A file that takes the probe's mark may still not take the rows.
            n_failed += u32::from(is_last && self.conn.is_none());
            if is_last && (self.spill.is_empty() || n_failed >= LAST_TRIES) {
                break;
            }
        }
        if !self.spill.is_empty() {
            tracing::error!(reason = self.health.reason(), "the ledger ends without its last rows");
        }
    }

    /// What is to be written now: of the notes that requests run, those that are due.
    fn gather(&mut self, came: Vec<Job>, is_last: bool) -> Vec<Job> {
        let mut group = Vec::with_capacity(came.len());
        let mut is_asked = is_last || self.conn.is_none();
        for job in came {
            match &job.work {
                Work::Open(row, _) => {
                    let id = row.id.clone();
                    group.extend(self.opening.push(id, job));
                    continue;
                }
                Work::Settle(row, _) => group.extend(self.opening.covered(&row.id)),
                // What has come further is told of a note that is there; an act or a flush comes after what was sent before.
                // Whoever asks from here on is not in this group, and must be heard again.
                Work::Hurry => {
                    self.is_hurried.store(false, Ordering::Release);
                    is_asked = true;
                    continue;
                }
                Work::Progress(_) | Work::Change(..) | Work::Flush(_) => is_asked = true,
                Work::Covered(_) | Work::Shipped(..) => {}
            }
            group.push(job);
        }
        if is_asked || self.opening.is_due() {
            // Before everything else: they were sent before.
            group.splice(0..0, self.opening.drain());
        }
        group
    }

    fn begin(&self) -> Written {
        Written { head: self.head.clone(), seq: self.seq, n_rows: 0, checkpoint: None }
    }

    /// The keys that the next epoch will have, safe in their file; `None`: not now.
    fn prepare(&mut self) -> Option<ChainKeys> {
        let next = self.keys.load().epoch().next().and_then(|next| {
            let n = next.n;
            self.ratchet.prepare(next)?;
            self.ratchet.keys(n)
        });
        next.map_err(|error| {
            self.unsigned_until = Some(Instant::now() + SIGN_RETRY);
            tracing::error!(%error, "the audit chain can't be signed now");
        })
        .ok()
    }

    /// The checkpoint is committed: its epoch has ended.
    fn ended(&mut self, next: ChainKeys, line: &str) {
        self.signed = Instant::now();
        tracing::info!(checkpoint = line, "audit checkpoint");
        if let Err(error) = self.ratchet.erase_before(next.epoch().n) {
            // They are erased with the next.
            tracing::error!(%error, "the secrets of the audit chain's last epoch are not erased");
        }
        self.keys.store(Arc::new(next));
        self.witness.iter_mut().for_each(|witness| witness.tell(line));
    }

    fn commit(&mut self, mut group: Vec<Job>, sign: bool) {
        let started = Instant::now();
        let next = if sign { self.prepare() } else { None };
        let spilled = self.spill.first(GROUP_MAX);
        group.extend(spilled.iter().filter_map(|row| self.opening.covered(&row.id)));
        let Some(mut conn) = self.conn.take() else { return };
        let mut results: Vec<Option<StoreError>> = Vec::with_capacity(group.len());
        match self.transact(&mut conn, &mut group, &spilled, next.as_ref(), &mut results) {
            Ok(written) => {
                (self.head, self.seq) = (written.head, written.seq);
                let head = u64::try_from(self.head.seq).unwrap_or_default();
                self.health.chain_head.store(head, Ordering::Relaxed);
                self.conn = Some(conn);
                self.spill.remove(spilled.len());
                self.health.n_commits.fetch_add(1, Ordering::Relaxed);
                self.health.n_rows.fetch_add(written.n_rows, Ordering::Relaxed);
                if let (Some(next), Some(line)) = (next, written.checkpoint) {
                    self.ended(next, &line);
                }
                if group.iter().any(|job| matches!(&job.work, Work::Change(act, ..) if act.action == "subject.erase")) {
                    self.conn.iter().for_each(|conn| self.checkpoints.empty(conn));
                }
                (self.config.observe)(started.elapsed().as_secs_f64());
                for (job, error) in group.into_iter().zip(results) {
                    finish(job, error.map_or(Ok(()), Err));
                }
            }
            Err(error) => {
                // Opened anew by the probe, so that nothing of a failed transaction is left in it.
                drop(conn);
                self.fail(&error);
                group.into_iter().for_each(|job| self.refuse(job));
            }
        }
    }

    /// All jobs of a group, or none. An act that goes against what is there fails alone.
    fn transact(
        &self,
        conn: &mut Connection,
        group: &mut [Job],
        spilled: &[RequestRow],
        next: Option<&ChainKeys>,
        results: &mut Vec<Option<StoreError>>,
    ) -> Result<Written, StoreError> {
        let (now, keys) = (unix_ms(), self.keys.load());
        // What ends an epoch must not be lost with the machine once that epoch's secrets are gone.
        let is_lasting = next.is_some() && self.config.durability == Durability::Process;
        if is_lasting {
            conn.pragma_update(None, "synchronous", Durability::Power.synchronous())?;
        }
        let mut tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut written = self.begin();
        let mut rows: Vec<&RequestRow> = spilled.iter().collect();
        for job in group.iter_mut() {
            let mut failed = None;
            match &mut job.work {
                Work::Open(row, _) => row.open(&tx, self.boot)?,
                Work::Settle(..) | Work::Flush(_) | Work::Hurry | Work::Covered(_) => {}
                Work::Progress(of) => of.iter().try_for_each(|progress| progress.update(&tx, now))?,
                Work::Shipped(request_seq, audit_seq) => {
                    tx.prepare_cached("UPDATE state SET shipped_request = ?1, shipped_audit = ?2")?
                        .execute([*request_seq, *audit_seq])?;
                }
                Work::Change(act, apply, _) => {
                    let apply = std::mem::replace(apply, Box::new(|_| Ok(())));
                    let act = act.clone();
                    let point = tx.savepoint()?;
                    match apply(&point) {
                        Ok(()) => {
                            written.head.append(&point, &keys, now, act)?;
                            point.commit()?;
                        }
                        Err(error) if error.is_of_the_disk() => return Err(error),
                        // Dropping the savepoint rolls it back.
                        Err(error) => failed = Some(error),
                    }
                }
            }
            results.push(failed);
        }
        // After the changes: a row may name a key that was just made.
        rows.extend(group.iter().filter_map(|job| match &job.work {
            Work::Settle(row, _) => Some(row.as_ref()),
            _ => None,
        }));
        self.settle(&tx, &mut written, &rows)?;
        if let Some(next) = next {
            written.checkpoint = Some(written.head.sign(&tx, &keys, next, now)?);
        }
        tx.commit()?;
        if is_lasting {
            conn.pragma_update(None, "synchronous", self.config.durability.synchronous())?;
        }
        Ok(written)
    }

    /// Inserts rows, and one link over those that are new.
    fn settle(&self, tx: &Connection, written: &mut Written, rows: &[&RequestRow]) -> Result<(), StoreError> {
        let first = written.seq + 1;
        let mut digests = Vec::with_capacity(rows.len());
        for row in rows {
            if row.insert(tx, self.boot, written.seq + 1)? {
                written.seq += 1;
                digests.push(row.digest(written.seq));
            }
            row.close(tx)?;
        }
        if digests.is_empty() {
            return Ok(());
        }
        written.n_rows += digests.len() as u64;
        tx.prepare_cached("UPDATE state SET request_seq = ?1")?.execute([written.seq])?;
        let detail = json!({ "from": first, "to": written.seq, "digest": digest_of_rows(digests.into_iter()) });
        let act = Act { actor: "server".into(), action: "requests", object: String::new(), detail };
        Ok(written.head.append(tx, &self.keys.load(), unix_ms(), act)?)
    }

    fn fail(&self, error: &StoreError) {
        *self.health.lock() = error.to_string();
        if !self.health.failed.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the ledger can't be written");
        }
    }

    /// Opens the file anew and writes a mark. What waits in the spill is written after it.
    fn probe(&mut self) {
        let probed = open::writer(&self.config.path, self.config.durability, self.ratchet.has_begun(), &self.pages)
            .and_then(|conn| {
                conn.execute("UPDATE state SET probe = ?1", [unix_ms()])?;
                // What an earlier transaction came to is read again: its commit may have failed after it was written.
                let head = Head::read(&conn)?;
                let seq = conn.query_row("SELECT request_seq FROM state", [], |row| row.get(0))?;
                let n = epoch_of(&conn)?.unwrap_or_default();
                self.keys.store(Arc::new(self.ratchet.keys(n)?));
                Ok((conn, head, seq))
            });
        match probed {
            Ok((conn, head, seq)) => {
                (self.conn, self.head, self.seq) = (Some(conn), head, seq);
                self.health.failed.store(false, Ordering::Relaxed);
                tracing::info!("the ledger can be written again");
            }
            Err(error) => self.fail(&error),
        }
    }

    /// A job that can't be written now.
    fn refuse(&self, job: Job) {
        let error = || StoreError::Unavailable(self.health.reason());
        match job.work {
            Work::Settle(row, done) => {
                let spilled = self.spill.push(*row).map_err(|_| error());
                let degrades = self.config.on_failure == OnFailure::Degrade;
                if spilled.is_err() && (done.is_none() || degrades) {
                    self.health.n_lost.fetch_add(1, Ordering::Relaxed);
                }
                let result = if degrades { Ok(()) } else { spilled };
                done.into_iter().for_each(|done| drop(done.send(result_of(&result))));
            }
            Work::Open(_, done) | Work::Covered(done) => {
                let result = match self.config.on_failure {
                    OnFailure::Reject => Err(error()),
                    OnFailure::Degrade => Ok(()),
                };
                drop(done.send(result));
            }
            Work::Change(_, _, done) => drop(done.send(Err(error()))),
            Work::Flush(done) => drop(done.send(())),
            Work::Progress(_) | Work::Hurry | Work::Shipped(..) => {}
        }
    }
}

fn result_of(result: &Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

/// Tells whoever waits; an error means that nobody does any more.
fn finish(job: Job, result: Result<(), StoreError>) {
    match job.work {
        Work::Open(_, done) | Work::Covered(done) | Work::Change(_, _, done) => drop(done.send(result)),
        Work::Settle(_, done) => done.into_iter().for_each(|done| drop(done.send(result_of(&result)))),
        Work::Flush(done) => drop(done.send(())),
        Work::Progress(_) | Work::Hurry | Work::Shipped(..) => {}
    }
}
