//! The audit chain: acts and digests of rows, each link sealed over the one before; signed checkpoints.
//!
//! # Design
//! A link has the digest of the one before, so anybody can tell whether one was changed or taken out. Its mac is an HMAC
//! over its own digest under a key of its epoch, so only the server can put one at the end. A checkpoint names the head at a
//! time and the next epoch's public key, is signed with Ed25519 by its own epoch's, and ends it: those secrets are erased
//! ([`super::ratchet`]). So a thief of the whole folder can forge the chain from the last checkpoint on and not before.
//! Cutting off the chain's end breaks nothing; against that, and against a chain that is made anew from its first link,
//! stand the checkpoints' lines in the log and in a witness file: whoever keeps them elsewhere can tell.
//!
//! Epoch 0 is a chain from before there were epochs: sealed under a key derived from the pepper, each mac over the one before.

use super::StoreError;
use super::ratchet::Epoch;
use crate::gateway::keys::hmac;
use crate::model::lock::hex;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rusqlite::{Connection, OptionalExtension, Result, params};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Something that an administrator, or the server itself, did.
#[derive(Debug, Clone, PartialEq)]
pub struct Act {
    /// `master`, `cli`, `config`, `server`, or the id of an admin's key.
    pub actor: String,
    /// `key.generate`, `team.update`, …
    pub action: &'static str,
    /// What it was done to.
    pub object: String,
    /// Never a secret or a hash.
    pub detail: Value,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub seq: i64,
    /// Unix milliseconds.
    pub ts: i64,
    pub actor: String,
    pub action: String,
    pub object: String,
    /// JSON.
    pub detail: String,
    pub prev: Vec<u8>,
    pub mac: Vec<u8>,
    pub epoch: i64,
}

impl Link {
    /// Without its mac.
    fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.detail.len() + 128);
        text.extend_from_slice(&self.seq.to_le_bytes());
        text.extend_from_slice(&self.ts.to_le_bytes());
        // With their lengths, so that no two links have the same bytes.
        let fields = [&self.actor, &self.action, &self.object, &self.detail].map(|field| field.as_bytes());
        for field in fields.into_iter().chain([self.prev.as_slice()]) {
            text.extend_from_slice(&(field.len() as u64).to_le_bytes());
            text.extend_from_slice(field);
        }
        text
    }

    /// What the next link goes on from.
    pub(super) fn tip(&self) -> Vec<u8> {
        if self.epoch == 0 {
            return self.mac.clone();
        }
        let start = Sha256::new().chain_update(b"hearth link\0").chain_update(self.epoch.to_le_bytes());
        start.chain_update(self.text()).finalize().to_vec()
    }
}

#[derive(Clone)]
pub(super) struct ChainKeys {
    epoch: Epoch,
    /// For seals of epoch 0.
    legacy: [u8; 32],
    signing: Arc<Ed25519KeyPair>,
}

/// What the first link goes on from.
pub(super) const GENESIS: [u8; 32] = [0; 32];

impl ChainKeys {
    /// Errors: a seed that is none, which 32 bytes never are.
    pub(super) fn new(epoch: Epoch, legacy: [u8; 32]) -> std::result::Result<Self, StoreError> {
        let signing = Ed25519KeyPair::from_seed_unchecked(&epoch.seed);
        let signing = signing.map_err(|error| StoreError::Damaged { reason: format!("the signing key: {error}") })?;
        Ok(Self { epoch, legacy, signing: Arc::new(signing) })
    }

    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(super) fn verifying_key(&self) -> Vec<u8> {
        self.signing.public_key().as_ref().to_vec()
    }

    /// The mac of a link of this epoch, or of epoch 0.
    pub(super) fn seal(&self, link: &Link) -> [u8; 32] {
        match link.epoch {
            0 => hmac(&self.legacy, &[b"hearth audit\0", &link.text()]),
            _ => hmac(&self.epoch.mac, &[b"hearth audit 2\0", &link.tip()]),
        }
    }
}

/// What a checkpoint signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub epoch: i64,
    pub seq: i64,
    pub ts: i64,
    pub head: Vec<u8>,
    /// The next epoch's public key; none where there were no epochs yet.
    pub next: Option<Vec<u8>>,
}

impl Checkpoint {
    fn text(&self) -> Vec<u8> {
        let (seq, ts) = (self.seq.to_le_bytes(), self.ts.to_le_bytes());
        match &self.next {
            None => [b"hearth checkpoint\0".as_slice(), &seq, &ts, &self.head].concat(),
            Some(next) => {
                [b"hearth checkpoint 2\0".as_slice(), &self.epoch.to_le_bytes(), &seq, &ts, &self.head, next].concat()
            }
        }
    }

    pub(super) fn is_signed(&self, public: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, public).verify(&self.text(), signature).is_ok()
    }
}

/// The end of the chain, where the writer goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the last link; 0: none yet.
    pub seq: i64,
    pub tip: Vec<u8>,
    /// Links since the last checkpoint.
    pub n_unsigned: u64,
}

impl Head {
    pub(super) fn read(conn: &Connection) -> Result<Self> {
        let last = conn.query_row("SELECT * FROM audit ORDER BY seq DESC LIMIT 1", [], read_link).optional()?;
        let (seq, tip) = last.map_or((0, GENESIS.to_vec()), |link| (link.seq, link.tip()));
        let signed: i64 = conn.query_row("SELECT coalesce(max(seq), 0) FROM checkpoint", [], |row| row.get(0))?;
        Ok(Self { seq, tip, n_unsigned: u64::try_from(seq - signed).unwrap_or_default() })
    }

    pub(super) fn append(&mut self, tx: &Connection, keys: &ChainKeys, now: i64, act: Act) -> Result<()> {
        let mut link = Link {
            seq: self.seq + 1,
            ts: now,
            actor: act.actor,
            action: act.action.to_owned(),
            object: act.object,
            detail: act.detail.to_string(),
            prev: std::mem::take(&mut self.tip),
            mac: Vec::new(),
            epoch: keys.epoch.n,
        };
        link.mac = keys.seal(&link).to_vec();
        tx.prepare_cached(
            "INSERT INTO audit(seq, ts, actor, action, object, detail, prev, mac, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            link.seq,
            link.ts,
            link.actor,
            link.action,
            link.object,
            link.detail,
            link.prev,
            link.mac,
            link.epoch
        ])?;
        *self = Self { seq: link.seq, tip: link.tip(), n_unsigned: self.n_unsigned + 1 };
        Ok(())
    }

    /// Signs where the chain stands, with `keys`, which end here; `next` go on. Returns the line for log and witness.
    pub(super) fn sign(&mut self, tx: &Connection, keys: &ChainKeys, next: &ChainKeys, now: i64) -> Result<String> {
        let public = next.verifying_key();
        let checkpoint = Checkpoint {
            epoch: keys.epoch.n,
            seq: self.seq,
            ts: now,
            head: self.tip.clone(),
            next: Some(public.clone()),
        };
        let signature = keys.signing.sign(&checkpoint.text()).as_ref().to_vec();
        tx.prepare_cached(
            "INSERT INTO checkpoint(seq, ts, head, sig, epoch, next) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT(seq) DO UPDATE SET ts = excluded.ts, sig = excluded.sig, epoch = excluded.epoch,
               next = excluded.next",
        )?
        .execute(params![checkpoint.seq, now, checkpoint.head, signature, checkpoint.epoch, public])?;
        note_epoch(tx, next, self.seq + 1)?;
        self.n_unsigned = 0;
        Ok(line(&checkpoint, &keys.verifying_key(), &signature))
    }
}

/// The public key of an epoch, and the first link that may be of it.
pub(super) fn note_epoch(tx: &Connection, keys: &ChainKeys, from_seq: i64) -> Result<()> {
    tx.prepare_cached("INSERT INTO epoch(n, public, from_seq) VALUES (?1, ?2, ?3)")?.execute(params![
        keys.epoch.n,
        keys.verifying_key(),
        from_seq
    ])?;
    Ok(())
}

/// The epoch that the chain is in; `None`: it knows of none yet.
pub(super) fn epoch_of(conn: &Connection) -> Result<Option<i64>> {
    conn.query_row("SELECT max(n) FROM epoch", [], |row| row.get(0))
}

/// One line of JSON.
pub(super) fn line(checkpoint: &Checkpoint, public: &[u8], signature: &[u8]) -> String {
    json!({
        "seq": checkpoint.seq,
        "ts": checkpoint.ts,
        "epoch": checkpoint.epoch,
        "head": hex(&checkpoint.head),
        "public": hex(public),
        "next": checkpoint.next.as_deref().map(hex),
        "sig": hex(signature),
    })
    .to_string()
}

pub(super) fn read_link(row: &rusqlite::Row) -> Result<Link> {
    Ok(Link {
        seq: row.get("seq")?,
        ts: row.get("ts")?,
        actor: row.get("actor")?,
        action: row.get("action")?,
        object: row.get("object")?,
        detail: row.get("detail")?,
        prev: row.get("prev")?,
        mac: row.get("mac")?,
        epoch: row.get("epoch")?,
    })
}
