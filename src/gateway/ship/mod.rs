//! Rows on their way to a PostgreSQL database, which may be away for hours and may serve many hearths.
//!
//! **Invariant:** a row arrives once and in order; none is dropped because the database is away; no request waits for it.
//!
//! # Design
//! The SQLite file stays the truth of this server: what was answered is committed there, and keys, revocation and budgets
//! are read from there alone. It is also the spool. One task reads what lies behind a cursor and inserts it with the moved
//! cursor in one transaction of the database, so whatever dies in between, the cursor says what arrived. The cursor is kept
//! here too, later, for retention (rows stay until they have arrived) and for reports while the database is away.
//!
//! A server has a random name, made with its file. Its session takes a lock of that name, so that two copies of a data
//! folder can't write as one; and the row under the cursor must be the one that is there, so that a folder out of an old
//! backup, which numbers its new rows as others before, is refused instead of silently merged.

// Without the feature nothing is sent, so nothing is read to be sent.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
mod batch;
#[cfg(feature = "postgres")]
mod postgres;

use super::store::{Store, StoreError};
use std::path::PathBuf;
#[cfg(feature = "postgres")]
use std::sync::Weak;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "postgres")]
use std::time::Duration;

/// Rows of one transaction, at most; and links of the audit chain.
#[cfg(feature = "postgres")]
const BATCH_MAX: u32 = 1000;
/// Between two looks for new rows.
#[cfg(feature = "postgres")]
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Between two tries to reach the database: doubled each time.
#[cfg(feature = "postgres")]
const RETRY_FIRST: Duration = Duration::from_millis(500);
#[cfg(feature = "postgres")]
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Where rows go.
#[derive(Clone, PartialEq, Eq)]
pub struct ShipConfig {
    /// With its password.
    url: String,
    /// Certificates to trust instead of the system's.
    ca: Option<PathBuf>,
    /// Host and database.
    place: String,
}

impl std::fmt::Debug for ShipConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShipConfig").field("place", &self.place).finish_non_exhaustive()
    }
}

impl ShipConfig {
    /// Errors: it is no address of a PostgreSQL database; the text does not repeat it.
    #[cfg(feature = "postgres")]
    pub fn new(url: &str) -> Result<Self, String> {
        postgres::config(url)
    }

    /// Errors: always.
    #[cfg(not(feature = "postgres"))]
    pub fn new(_: &str) -> Result<Self, String> {
        Err("this hearth was built without the feature \"postgres\"".to_owned())
    }
}

/// How far the database is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    pub place: String,
    /// The name of this server there.
    pub instance: String,
    /// The last try went well.
    pub is_connected: bool,
    /// Rows that have not arrived.
    pub n_rows: u64,
    /// Since the first of them ended, in seconds.
    pub seconds: u64,
    /// Tries that failed, since the start.
    pub n_failed: u64,
    /// Of the last try.
    pub error: Option<String>,
}

/// Up to where rows and links have arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    pub request_seq: i64,
    pub audit_seq: i64,
}

pub struct Shipper {
    config: ShipConfig,
    store: Arc<Store>,
    instance: String,
    /// Rows up to here have arrived.
    request_seq: AtomicI64,
    n_failed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_connected: bool,
    error: Option<String>,
}

impl Shipper {
    /// Nothing is sent before [`Shipper::start`].
    pub fn new(config: ShipConfig, store: Arc<Store>) -> Result<Arc<Self>, StoreError> {
        let (instance, cursor) = store.read_now(batch::standing)?;
        store.keep_until_shipped(cursor.request_seq);
        Ok(Arc::new(Self {
            config,
            store,
            instance,
            request_seq: AtomicI64::new(cursor.request_seq),
            n_failed: AtomicU64::new(0),
            state: Mutex::default(),
        }))
    }

    /// Sends until the last holder lets go. Must be called inside a tokio runtime.
    pub fn start(self: &Arc<Self>) {
        #[cfg(feature = "postgres")]
        tokio::spawn(run(Arc::downgrade(self)));
    }

    pub async fn lag(&self) -> Result<Lag, StoreError> {
        let seq = self.request_seq.load(Ordering::Relaxed);
        let (n_rows, oldest) = self.store.read(move |conn| batch::behind(conn, seq)).await?;
        let waited = oldest.map_or(0, |ms| super::unix_ms().saturating_sub(ms).max(0) / 1000);
        let state = self.lock();
        Ok(Lag {
            place: self.config.place.clone(),
            instance: self.instance.clone(),
            is_connected: state.is_connected,
            n_rows,
            seconds: waited.unsigned_abs(),
            n_failed: self.n_failed.load(Ordering::Relaxed),
            error: state.error.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "postgres")]
impl Shipper {
    fn arrived(&self, cursor: Cursor) {
        self.request_seq.store(cursor.request_seq, Ordering::Relaxed);
        self.store.shipped(cursor.request_seq, cursor.audit_seq);
    }

    fn connected(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.is_connected, true) {
            tracing::info!(place = self.config.place, instance = self.instance, "rows go to the database");
        }
        state.error = None;
    }

    fn failed(&self, error: &ShipError) {
        self.n_failed.fetch_add(1, Ordering::Relaxed);
        let (mut state, text) = (self.lock(), error.to_string());
        // Once for each reason, not once for each try.
        if state.is_connected || state.error.as_ref() != Some(&text) {
            tracing::warn!(
                place = self.config.place,
                error = text,
                "rows can't go to the database now; they wait here"
            );
        }
        (state.is_connected, state.error) = (false, Some(text));
    }
}

#[cfg(feature = "postgres")]
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("{0}")]
    Database(String),
    #[error("the database did not answer in time")]
    Late,
    #[error("the database is of version {0}, and this hearth knows up to {1}")]
    Newer(i32, i32),
    #[error("another hearth sends rows under this server's name: is the data folder a copy?")]
    Taken,
    #[error(
        "the database has rows under this server's name that are not its own: the data folder is older than they are"
    )]
    Diverged,
    #[error("rows can't be read: {0}")]
    Store(#[from] StoreError),
}

#[cfg(feature = "postgres")]
async fn run(shipper: Weak<Shipper>) {
    let mut wait = RETRY_FIRST;
    loop {
        let Some(strong) = shipper.upgrade() else { return };
        let failed = match postgres::Session::open(&strong.config, &strong.instance, &strong.store).await {
            Ok(mut session) => {
                strong.connected();
                strong.arrived(session.cursor());
                drop(strong);
                match send(&shipper, &mut session, &mut wait).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let Some(strong) = shipper.upgrade() else { return };
        strong.failed(&failed);
        drop(strong);
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Until the shipper is dropped or something fails.
#[cfg(feature = "postgres")]
async fn send(shipper: &Weak<Shipper>, session: &mut postgres::Session, wait: &mut Duration) -> Result<(), ShipError> {
    loop {
        let Some(strong) = shipper.upgrade() else { return Ok(()) };
        let (from, checked) = (session.cursor(), session.checked());
        let batch = strong.store.read(move |conn| batch::read(conn, from, checked, BATCH_MAX)).await?;
        if batch.is_empty() {
            session.still_there().await?;
        } else {
            session.write(&batch).await?;
            strong.arrived(session.cursor());
            // What has arrived shows that it works, a session that opens does not.
            *wait = RETRY_FIRST;
        }
        drop(strong);
        if !batch.is_full {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
