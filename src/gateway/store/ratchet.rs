//! The chain's secrets, of this epoch alone.
//!
//! # Design
//! Each checkpoint ends an epoch. The next one's key for seals comes from the last one's by a function that can't be turned
//! round, its key for signatures is fresh and was announced, signed, by the checkpoint; then the file is written without the
//! last one's. So whoever takes the folder can go on with the chain, and can't write what came before anew.
//!
//! The database says which epoch it is. Before a checkpoint is committed the file holds both epochs, after it the next one
//! alone: whenever the process dies, the one that the database wants is there.
//!
//! The file says as well whether a chain has been begun with it, so that a database that was emptied is not taken for a new one.

use super::StoreError;
use super::chain::ChainKeys;
use crate::gateway::keys::hmac;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"hearth audit epochs 1\n";
/// Once the database has its first epoch.
const BEGUN: &[u8] = b"hearth audit epochs 2\n";
const EPOCH_BYTES: usize = 8 + 32 + 32;

/// The secrets of one epoch.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Epoch {
    pub n: i64,
    pub mac: [u8; 32],
    pub seed: [u8; 32],
}

impl Epoch {
    fn first() -> Result<Self, StoreError> {
        Ok(Self { n: 1, mac: random()?, seed: random()? })
    }

    pub(super) fn next(&self) -> Result<Self, StoreError> {
        Ok(Self { n: self.n + 1, mac: hmac(&self.mac, &[b"hearth audit ratchet\0"]), seed: random()? })
    }
}

fn random() -> Result<[u8; 32], StoreError> {
    let mut bytes = [0; 32];
    let failed = |_| StoreError::Unavailable("the system has no randomness to give".to_owned());
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

pub(super) struct Ratchet {
    path: PathBuf,
    /// For seals of a chain from before there were epochs.
    legacy: [u8; 32],
    epochs: Vec<Epoch>,
    has_begun: bool,
}

impl Ratchet {
    /// Reads the file, or makes it where there is none. `legacy`: see there.
    pub(super) fn open(path: PathBuf, legacy: [u8; 32]) -> Result<Self, StoreError> {
        match fs::read(&path) {
            Ok(bytes) => {
                let epochs = parse(&bytes, legacy).ok_or_else(|| damaged(&path))?;
                // A second epoch begins with a checkpoint of the first.
                let has_begun = bytes.starts_with(BEGUN) || epochs.iter().any(|epoch| epoch.n > 1);
                Ok(Self { path, legacy, epochs, has_begun })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let fresh = Self { path, legacy, epochs: vec![Epoch::first()?], has_begun: false };
                fresh.save()?;
                Ok(fresh)
            }
            Err(error) => Err(StoreError::Io { path, error }),
        }
    }

    /// Whether the database had its first epoch, on the disk, before now.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The database has all epochs from `n` on; what is before is forgotten for ever.
    pub(super) fn begin(&mut self, n: i64) -> Result<(), StoreError> {
        self.has_begun = true;
        self.erase_before(n)
    }

    /// The only epoch of a chain that has none yet.
    pub(super) fn oldest(&self) -> Result<&Epoch, StoreError> {
        self.epochs.first().ok_or_else(|| damaged(&self.path))
    }

    pub(super) fn keys(&self, n: i64) -> Result<ChainKeys, StoreError> {
        let epoch = self.epochs.iter().find(|epoch| epoch.n == n).ok_or_else(|| damaged(&self.path))?;
        ChainKeys::new(epoch.clone(), self.legacy)
    }

    /// Keeps `next` beside the epoch before it.
    pub(super) fn prepare(&mut self, next: Epoch) -> Result<(), StoreError> {
        self.epochs.retain(|epoch| epoch.n == next.n - 1);
        self.epochs.push(next);
        self.save()
    }

    /// Forgets all before `n`, for ever.
    pub(super) fn erase_before(&mut self, n: i64) -> Result<(), StoreError> {
        self.epochs.retain(|epoch| epoch.n >= n);
        self.save()
    }

    /// As a crash leaves it.
    #[cfg(test)]
    pub(super) fn restore(&mut self, epochs: Vec<Epoch>) -> Result<(), StoreError> {
        self.epochs = epochs;
        self.save()
    }

    /// Written beside and moved, so that a crash leaves no half of it.
    fn save(&self) -> Result<(), StoreError> {
        let mut bytes = if self.has_begun { BEGUN } else { MAGIC }.to_vec();
        for epoch in &self.epochs {
            bytes.extend_from_slice(&epoch.n.to_le_bytes());
            bytes.extend_from_slice(&epoch.mac);
            bytes.extend_from_slice(&epoch.seed);
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        let io = |error| StoreError::Io { path: self.path.clone(), error };
        let beside = self.path.with_extension("part");
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&beside).map_err(io)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&beside, &self.path).map_err(io)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
    }
}

fn damaged(path: &Path) -> StoreError {
    StoreError::Damaged { reason: format!("{} does not belong to this database", path.display()) }
}

fn parse(bytes: &[u8], legacy: [u8; 32]) -> Option<Vec<Epoch>> {
    if let Ok(seed) = <[u8; 32]>::try_from(bytes) {
        return Some(vec![Epoch { n: 0, mac: legacy, seed }]);
    }
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(body).as_slice() != sum {
        return None;
    }
    let lines = body.strip_prefix(MAGIC).or(body.strip_prefix(BEGUN))?.chunks(EPOCH_BYTES);
    lines
        .map(|line| {
            Some(Epoch {
                n: i64::from_le_bytes(line.get(..8)?.try_into().ok()?),
                mac: line.get(8..40)?.try_into().ok()?,
                seed: line.get(40..72)?.try_into().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_this_epoch_and_for_a_moment_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.key");
        let mut ratchet = Ratchet::open(path.clone(), [0; 32]).unwrap();
        assert!(!ratchet.has_begun() && !Ratchet::open(path.clone(), [0; 32]).unwrap().has_begun());
        ratchet.begin(1).unwrap();
        assert!(Ratchet::open(path.clone(), [0; 32]).unwrap().has_begun());
        let first = ratchet.oldest().unwrap().clone();
        let next = first.next().unwrap();
        ratchet.prepare(next.clone()).unwrap();
        assert!(Ratchet::open(path.clone(), [0; 32]).unwrap().epochs == [first.clone(), next.clone()]);
        // A checkpoint that was not committed is tried again.
        ratchet.prepare(first.next().unwrap()).unwrap();
        ratchet.prepare(next.clone()).unwrap();
        ratchet.erase_before(2).unwrap();
        let bytes = fs::read(&path).unwrap();
        for secret in [first.mac, first.seed] {
            assert!(!bytes.windows(32).any(|window| window == secret), "what is past is gone");
        }
        assert!(Ratchet::open(path.clone(), [0; 32]).unwrap().keys(1).is_err());
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            fs::write(&path, other).unwrap();
            assert!(Ratchet::open(path.clone(), [0; 32]).is_err(), "byte {at}");
        }
        fs::write(&path, [7; 32]).unwrap();
        let old = Ratchet::open(path, [9; 32]).unwrap();
        assert!(old.epochs == [Epoch { n: 0, mac: [9; 32], seed: [7; 32] }]);
    }
}
