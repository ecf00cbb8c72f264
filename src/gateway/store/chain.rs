//! The audit chain: acts and digests of rows, each link sealed over the one before; signed checkpoints.
//!
//! # Design
//! A link's mac is an HMAC over its fields and the mac before it, under a key derived from the pepper, so a change of any
//! link, or one taken out, breaks every link after it for whoever has the pepper. Cutting off the chain's end breaks
//! nothing; against that stand the checkpoints, which name the head at a time, are signed with Ed25519 by a key of their
//! own and are also written to the log: whoever keeps those lines elsewhere can tell. The keys are not ratcheted:
//! verification needs them, so a thief of the whole folder can forge all of it but those lines.

use super::StoreError;
use crate::gateway::keys::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rusqlite::{Connection, OptionalExtension, Result, params};
use serde_json::Value;
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
}

#[derive(Clone)]
pub(super) struct ChainKeys {
    mac: [u8; 32],
    signing: Arc<Ed25519KeyPair>,
}

/// What the first link goes on from.
pub(super) const GENESIS: [u8; 32] = [0; 32];

impl ChainKeys {
    /// Errors: a seed that is none, which 32 bytes never are.
    pub(super) fn new(mac: [u8; 32], seed: [u8; 32]) -> std::result::Result<Self, StoreError> {
        let signing = Ed25519KeyPair::from_seed_unchecked(&seed);
        let signing = signing.map_err(|error| StoreError::Damaged { reason: format!("the signing key: {error}") })?;
        Ok(Self { mac, signing: Arc::new(signing) })
    }

    pub(super) fn verifying_key(&self) -> Vec<u8> {
        self.signing.public_key().as_ref().to_vec()
    }

    pub(super) fn seal(&self, link: &Link) -> [u8; 32] {
        let mut text = Vec::with_capacity(link.detail.len() + 128);
        text.extend_from_slice(&link.seq.to_le_bytes());
        text.extend_from_slice(&link.ts.to_le_bytes());
        // With their lengths, so that no two links have the same bytes.
        let fields = [&link.actor, &link.action, &link.object, &link.detail].map(|field| field.as_bytes());
        for field in fields.into_iter().chain([link.prev.as_slice()]) {
            text.extend_from_slice(&(field.len() as u64).to_le_bytes());
            text.extend_from_slice(field);
        }
        hmac(&self.mac, &[b"hearth audit\0", &text])
    }

    pub(super) fn sign(&self, seq: i64, ts: i64, head: &[u8]) -> Vec<u8> {
        self.signing.sign(&checkpoint_text(seq, ts, head)).as_ref().to_vec()
    }

    pub(super) fn is_signed(&self, seq: i64, ts: i64, head: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.signing.public_key().as_ref());
        key.verify(&checkpoint_text(seq, ts, head), signature).is_ok()
    }
}

fn checkpoint_text(seq: i64, ts: i64, head: &[u8]) -> Vec<u8> {
    [b"hearth checkpoint\0".as_slice(), &seq.to_le_bytes(), &ts.to_le_bytes(), head].concat()
}

/// The end of the chain, where the writer goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the last link; 0: none yet.
    pub seq: i64,
    pub mac: Vec<u8>,
    /// Links since the last checkpoint.
    pub n_unsigned: u64,
}

impl Head {
    pub(super) fn read(conn: &Connection) -> Result<Self> {
        let last = conn
            .query_row("SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (seq, mac) = last.unwrap_or((0, GENESIS.to_vec()));
        let signed: i64 = conn.query_row("SELECT coalesce(max(seq), 0) FROM checkpoint", [], |row| row.get(0))?;
        Ok(Self { seq, mac, n_unsigned: u64::try_from(seq - signed).unwrap_or_default() })
    }

    pub(super) fn append(&mut self, tx: &Connection, keys: &ChainKeys, now: i64, act: Act) -> Result<()> {
        let mut link = Link {
            seq: self.seq + 1,
            ts: now,
            actor: act.actor,
            action: act.action.to_owned(),
            object: act.object,
            detail: act.detail.to_string(),
            prev: std::mem::take(&mut self.mac),
            mac: Vec::new(),
        };
        link.mac = keys.seal(&link).to_vec();
        tx.prepare_cached(
            "INSERT INTO audit(seq, ts, actor, action, object, detail, prev, mac) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            link.seq, link.ts, link.actor, link.action, link.object, link.detail, link.prev, link.mac
        ])?;
        *self = Self { seq: link.seq, mac: link.mac, n_unsigned: self.n_unsigned + 1 };
        Ok(())
    }

    /// Signs where the chain stands. Returns the line for the log.
    pub(super) fn sign(&mut self, tx: &Connection, keys: &ChainKeys, now: i64) -> Result<String> {
        let signature = keys.sign(self.seq, now, &self.mac);
        tx.prepare_cached("INSERT OR REPLACE INTO checkpoint(seq, ts, head, sig) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![self.seq, now, self.mac, signature])?;
        self.n_unsigned = 0;
        Ok(format!("{} {now} {} {}", self.seq, hex(&self.mac), hex(&signature)))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
