//! The write-ahead log back into the file, beside the commits.
//!
//! # Design
//! SQLite would do it in the commit that makes the log long, and everybody behind that commit would wait for two fsyncs. So a
//! thread with a connection of its own copies what is committed ([`START_PAGES`]), while commits go on. Since they do, the
//! log never stands still long enough to begin at its head again; once it is long ([`RESTART_PAGES`]) the writer itself copies
//! the few pages that came since the thread was last done, and its next commit begins at the head.

use super::{StoreError, open};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Pages in the log that are worth a copy.
const START_PAGES: u32 = 1000;
/// Pages of a log that has to end: 64 MiB.
const RESTART_PAGES: u32 = 16_000;
/// Pages at which the writer copies whatever the thread has left, however long that takes: 80 MiB.
const BOUND_PAGES: u32 = 20_000;
/// Passes over such a log. Each leaves what came while it ran, so they get shorter, and the writer's own is a short one.
const PASSES: usize = 4;

/// Pages in the log, as the writer's connection was last told at a commit.
pub(super) type Pages = Arc<AtomicU32>;

pub(super) struct Checkpoints {
    pages: Pages,
    /// Pages when the copy was last asked for.
    asked: u32,
    /// **Bound:** one request; another changes nothing.
    ask: Option<SyncSender<()>>,
    /// The thread was done since the writer last looked.
    is_done: Arc<AtomicBool>,
    /// Held while anybody copies.
    turn: Arc<Mutex<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    pub(super) fn start(path: PathBuf, pages: Pages) -> Result<Self, StoreError> {
        let (ask, asked) = sync_channel(1);
        let (is_done, turn) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let copying = Copying {
            path: path.clone(),
            pages: Arc::clone(&pages),
            turn: Arc::clone(&turn),
            is_done: Arc::clone(&is_done),
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || copying.run(&asked))
            .map_err(|error| StoreError::Io { path, error })?;
        Ok(Self { pages, asked: 0, ask: Some(ask), is_done, turn, thread: Some(thread) })
    }

    /// After a commit, or when nothing has come for a while.
    pub(super) fn look(&mut self, conn: &Connection, is_idle: bool) {
        let n = self.pages.load(Ordering::Relaxed);
        if n < self.asked {
            // It has begun at its head again.
            self.asked = 0;
        }
        if n >= RESTART_PAGES && (self.is_done.swap(false, Ordering::Relaxed) || n >= BOUND_PAGES) {
            self.copy_here(conn, "PASSIVE");
            self.asked = n;
        } else if n >= self.asked + START_PAGES || (is_idle && n > self.asked) {
            self.asked = n;
            // Full: it is at it, and looks once more.
            let _ = self.ask.as_ref().map(|ask| ask.try_send(()));
        }
    }

    /// All of the log is in the file, and the log empty. Somebody who reads at this moment keeps it until the next time.
    pub(super) fn empty(&self, conn: &Connection) {
        self.copy_here(conn, "TRUNCATE");
    }

    fn copy_here(&self, conn: &Connection, how: &str) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = copy(conn, how) {
            tracing::warn!(%error, "the write-ahead log could not be copied into the database");
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.ask = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the checkpoints' thread panicked; this is a bug");
        }
    }
}

/// What the thread has.
struct Copying {
    path: PathBuf,
    pages: Pages,
    turn: Arc<Mutex<()>>,
    is_done: Arc<AtomicBool>,
}

impl Copying {
    fn run(&self, asked: &Receiver<()>) {
        let mut conn: Option<Connection> = None;
        while asked.recv().is_ok() {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let copied = match conn.take() {
                Some(open) => Ok(open),
                None => open::copier(&self.path),
            }
            .and_then(|open| self.copy(&open).map(|()| open));
            match copied {
                Ok(open) => conn = Some(open),
                // The writer meets the same disk, and says so where it matters. The log stays until it goes.
                Err(error) => tracing::debug!(%error, "the write-ahead log could not be copied into the database"),
            }
            self.is_done.store(true, Ordering::Relaxed);
        }
    }

    fn copy(&self, conn: &Connection) -> Result<(), StoreError> {
        let n = if self.pages.load(Ordering::Relaxed) < RESTART_PAGES { 1 } else { PASSES };
        (0..n).try_for_each(|_| copy(conn, "PASSIVE"))
    }
}

fn copy(conn: &Connection, how: &str) -> Result<(), StoreError> {
    Ok(conn.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()))?)
}
