//! What a server with `--data-dir` knows and keeps: its keys and teams, its ledger, its audit chain, in one folder.
//!
//! **Invariant:** a change of keys and teams is committed before it holds, and holds before it is answered; what was
//! answered is there after a restart.
//!
//! # Design
//! Keys and teams live in memory ([`Keyring`]) and on disk; requests only ever read memory. Acts are done one after
//! another under one lock, each in a task of its own, so that an administrator who hangs up in the middle leaves memory
//! and disk as they belong together.

mod acts;
mod budgets;
mod capture;
mod files;
#[cfg(test)]
mod fuzz_tests;
mod ledger;
mod load;

pub use acts::{KeyChange, Made, TeamChange};
pub use budgets::BudgetChange;
pub use capture::Capture;
pub use files::{MASTER, SOCKET, read_master};
pub use ledger::{Entry, EntryHead, Ledger};

use super::keys::{ApiKey, Keyring, Pepper, Snapshot};
use super::ship::{ShipConfig, Shipper};
use super::spec::{KeySpec, TeamSpec};
use super::store::{Act, Durability, OnFailure, Store, StoreConfig, StoreError};
use crate::telemetry::Metrics;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Keys and teams of `hearth.toml`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Granted {
    pub keys: Vec<GrantedKey>,
    pub teams: Vec<GrantedTeam>,
}

/// A key that the file knows by its digest.
#[derive(Debug, Clone, PartialEq)]
pub struct GrantedKey {
    /// Its id in rows.
    pub name: String,
    /// Of the whole key.
    pub sha256: [u8; 32],
    /// Its team, if any, is one of the file's.
    pub spec: KeySpec,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GrantedTeam {
    pub id: String,
    pub spec: TeamSpec,
}

/// How the books are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct BooksConfig {
    pub dir: PathBuf,
    pub durability: Durability,
    pub on_failure: OnFailure,
    /// Running streams end when their key is revoked or blocked.
    pub revoke_cuts_streams: bool,
    /// How long rows of requests are kept; `None`: for ever. Sums by day stay.
    pub retention: Option<Duration>,
    /// Words of requests are kept where keys allow it.
    pub audit_content: bool,
    /// What this server broke (its engine crashed, say) costs nothing.
    pub refund_on_server_fault: bool,
    /// A file elsewhere that has a line for each checkpoint of the audit chain.
    pub witness: Option<PathBuf>,
    /// Where rows go besides; `None`: nowhere.
    pub ship: Option<ShipConfig>,
    pub granted: Granted,
}

impl BooksConfig {
    /// Books in `dir` as they are kept where the settings say nothing else.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            durability: Durability::default(),
            on_failure: OnFailure::default(),
            revoke_cuts_streams: true,
            retention: None,
            audit_content: false,
            refund_on_server_fault: true,
            witness: None,
            ship: None,
            granted: Granted::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{} is used by another hearth", dir.display())]
    Locked { dir: PathBuf },
    #[error("the system has no randomness to give")]
    NoRandomness,
    #[error("{} is missing, and the database beside it needs it: no key would open any more", path.display())]
    LostSecret { path: PathBuf },
    #[error("{} does not hold such a secret", path.display())]
    BadSecret { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Store { path: PathBuf, error: StoreError },
    /// An act that can't be done; the text is for the administrator.
    #[error("{0}")]
    Refused(String),
    #[error("there is no such {0}")]
    Missing(&'static str),
    /// Nothing was done, or it is not known: the file can't be written now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for BooksError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(text) => BooksError::Refused(text),
            StoreError::Missing(what) => BooksError::Missing(what),
            other => BooksError::Unavailable(other.to_string()),
        }
    }
}

pub struct Books {
    config: BooksConfig,
    store: Arc<Store>,
    keyring: Arc<Keyring>,
    ledger: Arc<Ledger>,
    shipper: Option<Arc<Shipper>>,
    master: ApiKey,
    /// What the subjects' keys are sealed under; `None`: no words are kept.
    kek: Option<[u8; 32]>,
    /// Whether the master key was made at this start.
    is_new: bool,
    /// What the file grants now.
    granted: std::sync::Mutex<Granted>,
    /// Held while keys and teams are changed.
    changing: Arc<Mutex<()>>,
    _lock: File,
}

impl Books {
    /// Opens the folder, or makes it with everything in it. Must be called inside a tokio runtime.
    pub fn open(config: BooksConfig, metrics: &Arc<Metrics>) -> Result<Arc<Self>, BooksError> {
        let dir = &config.dir;
        let lock = files::lock(dir)?;
        let path = dir.join(files::DATABASE);
        let is_first = !path.exists();
        let pepper = Pepper::new(files::secret(dir, files::PEPPER, is_first)?);
        let audit_key = dir.join(files::AUDIT);
        if !is_first && !audit_key.exists() {
            return Err(BooksError::LostSecret { path: audit_key });
        }
        let (master, is_new) = files::master(dir)?;
        let master = ApiKey::new(&master).ok_or_else(|| BooksError::BadSecret { path: dir.join(MASTER) })?;
        let kek = config.audit_content.then(|| files::secret(dir, files::CONTENT, true)).transpose()?;
        let refuse = |error| BooksError::Store { path: path.clone(), error };
        let observed = Arc::clone(metrics);
        let store = Store::open(StoreConfig {
            path: path.clone(),
            durability: config.durability,
            on_failure: config.on_failure,
            chain_key: pepper.derive("audit chain"),
            audit_key,
            witness: config.witness.clone(),
            observe: Box::new(move |seconds| observed.ledger_committed(seconds)),
        })
        .map_err(refuse)?;
        let store = Arc::new(store);
        let snapshot = store.read_now(|conn| load::snapshot(conn, &config.granted)).map_err(refuse)?;
        let keyring = Arc::new(Keyring::new(pepper, snapshot, config.revoke_cuts_streams));
        let shipper =
            config.ship.clone().map(|ship| Shipper::new(ship, Arc::clone(&store))).transpose().map_err(refuse)?;
        let ledger = Ledger::start(Arc::clone(&store), config.retention, config.refund_on_server_fault);
        let changing = Arc::default();
        let granted = config.granted.clone().into();
        Ok(Arc::new(Self {
            config,
            store,
            keyring,
            ledger,
            shipper,
            master,
            kek,
            is_new,
            granted,
            changing,
            _lock: lock,
        }))
    }

    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// What sends rows on to a database, where one was named.
    pub fn shipper(&self) -> Option<&Arc<Shipper>> {
        self.shipper.as_ref()
    }

    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether `presented` is the master key.
    pub fn is_master(&self, presented: &str) -> bool {
        ApiKey::new(presented).is_some_and(|presented| bool::from(presented.ct_eq(&self.master)))
    }

    /// Takes another file's keys and teams in place of the last one's. Requests of keys that are not among them any more are
    /// told. Errors: the books can't be read, and all stays as it was.
    pub async fn grant(&self, granted: Granted) -> Result<(), BooksError> {
        let _changing = Arc::clone(&self.changing).lock_owned().await;
        let known = || self.granted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *known() == granted {
            return Ok(());
        }
        let of_file = granted.clone();
        let next = self.store.read(move |conn| load::snapshot(conn, &of_file)).await?;
        self.keyring.replace(next.following(&self.keyring.snapshot()));
        *known() = granted;
        Ok(())
    }

    /// Returns when every request that has ended has its row, or after a few seconds.
    pub async fn close(&self) {
        self.ledger.close().await;
        self.store.flush().await;
    }

    /// Commits a change, then lets it hold.
    async fn commit(
        self: &Arc<Self>,
        changing: OwnedMutexGuard<()>,
        next: Snapshot,
        act: Act,
        apply: impl FnOnce(&rusqlite::Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), BooksError> {
        let books = Arc::clone(self);
        let done = tokio::spawn(async move {
            let _changing = changing;
            books.store.change(act, apply).await?;
            books.keyring.replace(next);
            Ok(())
        });
        done.await.unwrap_or_else(|_| Err(BooksError::Unavailable("the act panicked; this is a bug".to_owned())))
    }
}
