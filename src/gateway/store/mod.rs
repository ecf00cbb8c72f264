//! The books on disk: one SQLite file, one thread that writes it, a few connections that read it.
//!
//! **Invariant:** what was answered with success is in the file, by the durability that was asked for; nothing else than
//! the writer's thread changes it; nothing waits without a bound.
//!
//! # Design
//! Rows come as jobs. The writer takes all that wait, up to [`GROUP_MAX`], and commits them in one transaction: while one
//! fsync runs the next group gathers, so a busy server pays one fsync for many rows, and an idle one waits for nothing but
//! its own. A place in the queue is a permit, held until the job's commit: when all [`QUEUE_MAX`] are taken, requests wait
//! for one, and rows that can't wait (their client has left) go to the spill. The spill also takes rows of requests that
//! were running when the file could no longer be written; it is bounded, and written when a probe finds the file well.

mod chain;
mod checkpoint;
mod content;
mod forget;
mod open;
mod opening;
mod ratchet;
mod reports;
mod row;
mod spill;
mod verify;
mod witness;
mod writer;

pub use chain::{Act, Link};
pub use content::{Dek, Sealed, content, dek, erase, make_dek};
pub use reports::{
    DayRow, GroupBy, LINES_MAX, LogFilter, Part, SpendRow, TagRow, TargetRow, days, links, logs, spend, spent, tags,
    targets,
};
pub use row::{Attempt, Progress, RequestRow, attempts_of, rows_after};
pub use verify::{Fault, Verified};

use arc_swap::ArcSwap;
use chain::ChainKeys;
use crossbeam_channel::{Receiver, Sender};
use ratchet::Ratchet;
use rusqlite::{Connection, ErrorCode};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use writer::{Job, Shared, Work, Writer};

/// Jobs that wait for the writer, at most.
pub const QUEUE_MAX: usize = 4096;
/// Jobs of one transaction, at most.
pub const GROUP_MAX: usize = 256;
/// Connections for reports.
const READERS_MAX: usize = 2;

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: each commit is an fsync.
    #[default]
    Power,
    /// The end of the process, `kill -9` too; the last moments may be lost with the machine.
    Process,
}

impl Durability {
    fn synchronous(self) -> &'static str {
        match self {
            Durability::Power => "FULL",
            Durability::Process => "NORMAL",
        }
    }
}

/// What happens to new requests while rows can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// They are refused with 503.
    #[default]
    Reject,
    /// They are answered; rows beyond the spill are lost, and counted.
    Degrade,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("this is no database of hearth")]
    Foreign,
    #[error("the database is of version {version}, and this hearth knows up to {newest}")]
    Newer { version: i32, newest: i32 },
    #[error("the database is damaged: {reason}")]
    Damaged { reason: String },
    /// Not now: the disk is full, say. It is tried again.
    #[error("the ledger can't be written: {0}")]
    Unavailable(String),
    /// What an admin act asks for goes against what is there.
    #[error("{0}")]
    Conflict(String),
    #[error("there is no such {0}")]
    Missing(&'static str),
    #[error("the database refused: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

impl StoreError {
    /// The file's or the disk's fault, not the statement's: every other row would fail the same way.
    fn is_of_the_disk(&self) -> bool {
        let StoreError::Sql(rusqlite::Error::SqliteFailure(failure, _)) = self else { return false };
        !matches!(failure.code, ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    }
}

/// How the writer fares, for refusals, `/readyz` and metrics.
#[derive(Debug, Default)]
pub struct Health {
    failed: AtomicBool,
    /// Rows that were given up: only with [`OnFailure::Degrade`], or where a client left while the spill was full.
    n_lost: AtomicU64,
    n_commits: AtomicU64,
    n_rows: AtomicU64,
    chain_head: AtomicU64,
    reason: Mutex<String>,
}

impl Health {
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn n_lost(&self) -> u64 {
        self.n_lost.load(Ordering::Relaxed)
    }

    /// Commits so far and the rows in them.
    pub fn commits(&self) -> (u64, u64) {
        (self.n_commits.load(Ordering::Relaxed), self.n_rows.load(Ordering::Relaxed))
    }

    /// Number of the audit chain's last link, once something was committed.
    pub fn chain_head(&self) -> u64 {
        self.chain_head.load(Ordering::Relaxed)
    }

    pub fn reason(&self) -> String {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store needs to know.
pub struct StoreConfig {
    pub path: PathBuf,
    pub durability: Durability,
    pub on_failure: OnFailure,
    /// Of an audit chain from before it had epochs.
    pub chain_key: [u8; 32],
    /// The audit chain's secrets, made if they are missing.
    pub audit_key: PathBuf,
    /// A file that has a line for each checkpoint.
    pub witness: Option<PathBuf>,
    /// Each commit's time, in seconds.
    pub observe: Box<dyn Fn(f64) + Send>,
}

pub struct Store {
    path: PathBuf,
    on_failure: OnFailure,
    jobs: Option<Sender<Job>>,
    places: Arc<Semaphore>,
    health: Arc<Health>,
    spill: Arc<spill::Spill>,
    readers: Mutex<Vec<Connection>>,
    reading: Semaphore,
    /// The writer was told to hurry and has not looked yet.
    is_hurried: Arc<AtomicBool>,
    /// Rows behind it stay until they have arrived elsewhere; [`i64::MAX`]: they go nowhere.
    kept_from: AtomicI64,
    keys: Arc<ArcSwap<ChainKeys>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens or makes the file, and settles what an earlier process left behind.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let ratchet = Ratchet::open(config.audit_key.clone(), config.chain_key)?;
        // The writer says which epoch it is.
        let keys = Arc::new(ArcSwap::from_pointee(ratchet.keys(ratchet.oldest()?.n)?));
        let health = Arc::new(Health::default());
        let spill = Arc::new(spill::Spill::default());
        // **Bound:** every job but a hurry holds one of `QUEUE_MAX` permits, and there is one hurry at a time.
        let (jobs, receiver): (Sender<Job>, Receiver<Job>) = crossbeam_channel::unbounded();
        let (path, on_failure) = (config.path.clone(), config.on_failure);
        let is_hurried = Arc::new(AtomicBool::new(false));
        let shared = Shared {
            keys: Arc::clone(&keys),
            health: Arc::clone(&health),
            spill: Arc::clone(&spill),
            is_hurried: Arc::clone(&is_hurried),
        };
        let writer = Writer::open(config, ratchet, shared)?;
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| StoreError::Io { path: path.clone(), error })?;
        Ok(Self {
            path,
            on_failure,
            jobs: Some(jobs),
            places: Arc::new(Semaphore::new(QUEUE_MAX)),
            health,
            spill,
            readers: Mutex::new(Vec::new()),
            reading: Semaphore::new(READERS_MAX),
            is_hurried,
            kept_from: AtomicI64::new(i64::MAX),
            keys,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Rows and acts that wait for a commit now, those in the spill with them.
    pub fn n_pending(&self) -> usize {
        QUEUE_MAX - self.places.available_permits() + self.spill.len()
    }

    /// The key that checkpoints are signed with, to verify them elsewhere.
    pub fn verifying_key(&self) -> Vec<u8> {
        self.keys.load().verifying_key()
    }

    /// Whether a new request may begin. Errors: `Unavailable`.
    pub fn admit(&self) -> Result<(), StoreError> {
        match self.health.is_failed() && self.on_failure == OnFailure::Reject {
            true => Err(StoreError::Unavailable(self.health.reason())),
            false => Ok(()),
        }
    }

    /// Notes that a request runs, within a few milliseconds, or once [`Noting::committed`] is awaited.
    pub async fn open_row(self: &Arc<Self>, row: RequestRow) -> Result<Noting, StoreError> {
        let (done, receiver) = oneshot::channel();
        self.send(Work::Open(Box::new(row), done)).await?;
        Ok(Noting { store: Arc::clone(self), receiver, is_hurried: false })
    }

    fn hurry(&self) {
        if !self.is_hurried.swap(true, Ordering::AcqRel) {
            self.put(Work::Hurry, None);
        }
    }

    /// Settles a request; returns when its row is committed, or safe in the spill. Whoever stops waiting has settled it too.
    pub async fn settle(&self, row: RequestRow) -> Result<(), StoreError> {
        let mut unsent = Unsent { store: self, row: Some(row) };
        let permit = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        let (done, receiver) = oneshot::channel();
        if let Some(row) = unsent.row.take() {
            self.put(Work::Settle(Box::new(row), Some(done)), Some(permit));
        }
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Settles a request whose client has left. Does not wait; a row that finds no place goes to the spill.
    pub fn settle_later(&self, row: RequestRow) {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => self.put(Work::Settle(Box::new(row), None), Some(permit)),
            Err(_) => self.spill_or_lose(row),
        }
    }

    fn spill_or_lose(&self, row: RequestRow) {
        if self.spill.push(row).is_err() {
            self.health.n_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What runs now has come so far. Not waited for; skipped where the queue is full, since the next comes in a second.
    pub fn progress(&self, of: Vec<Progress>) {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            self.put(Work::Progress(of), Some(permit));
        }
    }

    /// Changes keys, teams or budgets in a transaction with the act's audit link; returns when it is committed.
    pub async fn change(
        &self,
        act: Act,
        apply: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (done, receiver) = oneshot::channel();
        self.send(Work::Change(act, Box::new(apply), done)).await?;
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// From now on rows behind `seq` are not too old, however old they are.
    pub(in crate::gateway) fn keep_until_shipped(&self, seq: i64) {
        self.kept_from.store(seq, Ordering::Relaxed);
    }

    /// Rows and links up to these numbers have arrived elsewhere. Noted with other work; skipped where the queue is full, since
    /// the next one says more.
    #[cfg(feature = "postgres")]
    pub(in crate::gateway) fn shipped(&self, request_seq: i64, audit_seq: i64) {
        self.keep_until_shipped(request_seq);
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            self.put(Work::Shipped(request_seq, audit_seq), Some(permit));
        }
    }

    /// Removes rows of groups that were committed before `before` (unix milliseconds), the oldest first and only whole groups,
    /// with a link that says so. `true`: there are more.
    pub async fn forget(self: &Arc<Self>, before: i64) -> Result<bool, StoreError> {
        let kept_from = self.kept_from.load(Ordering::Relaxed);
        let Some(old) = self.read(move |conn| forget::old(conn, before, kept_from)).await? else { return Ok(false) };
        let has_more = old.has_more;
        self.change(old.act(), move |conn| old.remove(conn)).await.map(|()| has_more)
    }

    /// Returns when everything that was sent before is committed or spilled.
    pub async fn flush(&self) {
        let (done, receiver) = oneshot::channel();
        if self.send(Work::Flush(done)).await.is_ok() {
            // An error means that the writer has gone, after writing what it had.
            let _ = receiver.await;
        }
    }

    async fn send(&self, work: Work) -> Result<(), StoreError> {
        let permit = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        self.put(work, Some(permit));
        Ok(())
    }

    fn put(&self, work: Work, permit: Option<OwnedSemaphorePermit>) {
        if let Some(jobs) = &self.jobs {
            // An error means that the writer has gone; whoever waits sees its end of the channel dropped.
            let _ = jobs.send(Job { work, _permit: permit });
        }
    }

    /// Reads, on a thread for blocking work and a connection that can't write.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _turn = self.reading.acquire().await.map_err(|_| closed())?;
        let store = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || store.read_now(query));
        read.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The same on this thread.
    pub fn read_now<T>(&self, query: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => open::reader(&self.path)?,
        };
        let read = query(&conn);
        // A connection that failed is not used again.
        if read.is_ok() {
            self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
        }
        read
    }

    /// What is wrong with the file; empty: nothing.
    pub async fn check(self: &Arc<Self>) -> Result<Vec<String>, StoreError> {
        self.read(|conn| open::damage(conn, "integrity_check")).await
    }

    /// Recomputes the audit chain from `from` on.
    pub async fn verify(self: &Arc<Self>, from: i64) -> Result<Verified, StoreError> {
        self.verify_with(from, None).await
    }

    /// The same; and whether it has the head at the link that a checkpoint says which was kept elsewhere.
    pub async fn verify_with(self: &Arc<Self>, from: i64, kept: Option<(i64, String)>) -> Result<Verified, StoreError> {
        let keys = self.keys.load_full();
        self.read(move |conn| {
            // One look, whatever is committed meanwhile.
            let tx = conn.unchecked_transaction()?;
            let mut found = verify::verify(&tx, &keys, from)?;
            if let (None, Some((seq, head))) = (&found.fault, &kept) {
                found.fault = verify::check_witness(&tx, (*seq, head))?;
            }
            Ok(found)
        })
        .await
    }
}

/// A note that a request runs, on its way to the disk.
pub struct Noting {
    store: Arc<Store>,
    receiver: oneshot::Receiver<Result<(), StoreError>>,
    is_hurried: bool,
}

impl std::fmt::Debug for Noting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Noting").finish_non_exhaustive()
    }
}

impl Noting {
    /// Returns when it is committed. Cancel-safe; not to be awaited again once it has returned.
    pub async fn committed(&mut self) -> Result<(), StoreError> {
        if !std::mem::replace(&mut self.is_hurried, true) {
            self.store.hurry();
        }
        (&mut self.receiver).await.unwrap_or_else(|_| Err(closed()))
    }
}

/// A row that waits for a place: if its request is dropped meanwhile, it goes without waiting.
struct Unsent<'a> {
    store: &'a Store,
    row: Option<RequestRow>,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.row.take().into_iter().for_each(|row| self.store.settle_later(row));
    }
}

impl Drop for Store {
    /// Writes what was sent, then ends the thread. Readers go first: the last connection that closes empties the
    /// write-ahead log into the file, and a reader can't.
    fn drop(&mut self) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.jobs = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's thread panicked; this is a bug");
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the ledger is closed".to_owned())
}

/// Between two tries to write a file that could not be written.
const PROBE_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod row_tests;
#[cfg(test)]
pub(super) mod tests;
