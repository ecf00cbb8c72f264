//! What is kept of tenants, and goes with them: cached answers.

use super::cache::{CacheScope, Owner};
use super::keys::Snapshot;
use super::{Gateway, KeyRecord, Principal};
use std::collections::HashSet;
use std::sync::Arc;

/// The folder of answers, in that of the books.
const FOLDER: &str = "cache";

impl Gateway {
    /// Answers outlive a restart from now on, where the operator wants that and there are books. Where not, what an earlier
    /// server kept goes. Errors: their folder can't be used, or not be removed.
    pub fn keep_cache_on_disk(&self) -> std::io::Result<()> {
        let Some(books) = &self.books else { return Ok(()) };
        let Some(cache) = self.cache.as_ref().filter(|cache| cache.config().persist) else {
            return match std::fs::remove_dir_all(books.dir().join(FOLDER)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let keyring = books.keyring();
        let secret = keyring.pepper().derive("response cache");
        cache.keep_on_disk(books.dir().join(FOLDER), secret, owners(&keyring.snapshot()))
    }

    /// Returns when what was answered is written for the next start, or after a few seconds.
    pub(super) async fn close_cache(&self) {
        if let Some(cache) = &self.cache {
            cache.close().await;
        }
    }

    /// Forgets all cached answers; returns how many there were.
    pub async fn flush_cache(&self) -> usize {
        match &self.cache {
            Some(cache) => cache.flush().await,
            None => 0,
        }
    }

    /// Forgets the cached answers of keys and teams that are not there any more. To be called where some were deleted.
    pub async fn forget_deleted(&self) {
        if let (Some(cache), Some(books)) = (&self.cache, &self.books) {
            cache.forget_others(owners(&books.keyring().snapshot())).await;
        }
    }

    /// Forgets the cached answers of a subject (a user of keys, or a key without one), and of all who share with it; returns
    /// how many there were.
    pub async fn forget_subject(&self, subject: &str) -> usize {
        let (Some(cache), Some(books)) = (&self.cache, &self.books) else { return 0 };
        let snapshot = books.keyring().snapshot();
        let is_subject = |key: &&Arc<KeyRecord>| key.spec.user.as_deref().unwrap_or(&key.id) == subject;
        let owners: HashSet<Owner> = keys(&snapshot)
            .filter(is_subject)
            .map(|key| owner(cache.config().scope, &Principal::of(Arc::clone(key))))
            .collect();
        match owners.is_empty() {
            true => 0,
            false => cache.forget_of(owners).await,
        }
    }
}

/// With whom the answers of a request go.
pub(super) fn owner(scope: CacheScope, principal: &Principal) -> Owner {
    match (principal.team().filter(|_| scope == CacheScope::Team), principal.key()) {
        (Some(team), _) => Owner::team(team),
        (None, Some(_)) => Owner::Key(principal.partition()),
        (None, None) => Owner::Fixed(principal.partition()),
    }
}

fn keys(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<KeyRecord>> {
    snapshot.keys.values().map(|entry| &entry.record).chain(snapshot.fixed.keys.values())
}

/// All there are, whichever the scope is.
fn owners(snapshot: &Snapshot) -> HashSet<Owner> {
    let of_keys = keys(snapshot).map(|key| owner(CacheScope::Key, &Principal::of(Arc::clone(key))));
    of_keys.chain(snapshot.teams.keys().map(|team| Owner::team(team))).collect()
}
