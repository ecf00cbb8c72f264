//! What was said, sealed: each subject has a key of its own, and forgetting the key forgets the words.
//!
//! # Design
//! A request's words are sealed (ChaCha20-Poly1305) under its subject's key, which is sealed under a master key that lies in
//! a file beside the database. Erasing a subject deletes its key and its words. The audit chain covers the digest of the
//! sealed words in the request's row, so it goes on whether they are there or not. A key is committed before anything is
//! sealed with it, and words whose key is gone by the time they are written are not written.

use super::StoreError;
use crate::gateway::seal::{NONCE_LEN, seal, unseal};
use crate::model::lock::hex;
use rusqlite::{Connection, OptionalExtension, Result, params};
use sha2::{Digest, Sha256};
use std::fmt;

/// One request's words, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub dek_id: i64,
    nonce: [u8; NONCE_LEN],
    ciphertext: Vec<u8>,
}

/// A subject's key.
#[derive(Clone)]
pub struct Dek {
    pub id: i64,
    key: [u8; 32],
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dek({})", self.id)
    }
}

impl Dek {
    pub fn seal(&self, request_id: &str, text: &[u8]) -> Option<Sealed> {
        let (nonce, ciphertext) = seal(&self.key, request_id.as_bytes(), text)?;
        Some(Sealed { dek_id: self.id, nonce, ciphertext })
    }
}

impl Sealed {
    pub fn n_bytes(&self) -> usize {
        self.ciphertext.len()
    }

    /// For the request's row.
    pub fn digest(&self) -> String {
        hex(&Sha256::new().chain_update(self.nonce).chain_update(&self.ciphertext).finalize())
    }

    /// Only where its key still is: a subject that was erased meanwhile stays erased.
    pub(super) fn insert(&self, tx: &Connection, request_id: &str) -> Result<()> {
        tx.prepare_cached(
            "INSERT OR IGNORE INTO content(request_id, dek_id, nonce, ct)
             SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM dek WHERE id = ?2)",
        )?
        .execute(params![request_id, self.dek_id, self.nonce.as_slice(), self.ciphertext])?;
        Ok(())
    }
}

/// The key of `subject`, if it has one.
pub fn dek(conn: &Connection, kek: &[u8; 32], subject: &str) -> std::result::Result<Option<Dek>, StoreError> {
    let row: Option<(i64, Vec<u8>, Vec<u8>)> = conn
        .prepare_cached("SELECT id, nonce, wrapped FROM dek WHERE subject = ?1")?
        .query_row([subject], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    row.map(|(id, nonce, wrapped)| unwrap(kek, subject, id, nonce, &wrapped)).transpose()
}

fn unwrap(
    kek: &[u8; 32],
    subject: &str,
    id: i64,
    nonce: Vec<u8>,
    wrapped: &[u8],
) -> std::result::Result<Dek, StoreError> {
    let damaged = || StoreError::Damaged { reason: format!("the content key {id} can't be opened with content.key") };
    let nonce = nonce.try_into().map_err(|_| damaged())?;
    let key = unseal(kek, subject.as_bytes(), nonce, wrapped).ok_or_else(damaged)?;
    Ok(Dek { id, key: key.try_into().map_err(|_| damaged())? })
}

/// Makes a key for `subject`, unless it has one.
pub fn make_dek(tx: &Connection, kek: &[u8; 32], subject: &str) -> std::result::Result<(), StoreError> {
    let none = || StoreError::Unavailable("the system has no randomness to give".to_owned());
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| none())?;
    let (nonce, wrapped) = seal(kek, subject.as_bytes(), &key).ok_or_else(none)?;
    tx.execute(
        "INSERT OR IGNORE INTO dek(subject, nonce, wrapped) VALUES (?1, ?2, ?3)",
        params![subject, nonce.as_slice(), wrapped],
    )?;
    Ok(())
}

/// Deletes the subject's key and its words. `Missing`: nothing was kept of it.
pub fn erase(tx: &Connection, subject: &str) -> std::result::Result<(), StoreError> {
    tx.execute("DELETE FROM content WHERE dek_id IN (SELECT id FROM dek WHERE subject = ?1)", [subject])?;
    match tx.execute("DELETE FROM dek WHERE subject = ?1", [subject])? {
        0 => Err(StoreError::Missing("subject")),
        _ => Ok(()),
    }
}

/// Of the sealed words that are there; `None`: none are.
pub(super) fn content_digest(conn: &Connection, request_id: &str) -> Result<Option<String>> {
    let row: Option<(i64, Vec<u8>, Vec<u8>)> = conn
        .prepare_cached("SELECT dek_id, nonce, ct FROM content WHERE request_id = ?1")?
        .query_row([request_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(row.map(|(dek_id, nonce, ciphertext)| {
        // A nonce of another length is another nonce.
        let nonce = nonce.try_into().unwrap_or_default();
        Sealed { dek_id, nonce, ciphertext }.digest()
    }))
}

/// The words of a request, as JSON text; `None`: none are kept, or no more.
pub fn content(conn: &Connection, kek: &[u8; 32], request_id: &str) -> std::result::Result<Option<String>, StoreError> {
    type Row = (String, i64, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);
    let row: Option<Row> = conn
        .prepare_cached(
            "SELECT d.subject, d.id, d.nonce, d.wrapped, c.nonce, c.ct FROM content c JOIN dek d ON d.id = c.dek_id
             WHERE c.request_id = ?1",
        )?
        .query_row([request_id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
        })
        .optional()?;
    let Some((subject, id, dek_nonce, wrapped, nonce, sealed)) = row else { return Ok(None) };
    let dek = unwrap(kek, &subject, id, dek_nonce, &wrapped)?;
    let damaged = || StoreError::Damaged { reason: format!("the content of {request_id} can't be opened") };
    let text = unseal(&dek.key, request_id.as_bytes(), nonce.try_into().map_err(|_| damaged())?, &sealed)
        .ok_or_else(damaged)?;
    String::from_utf8(text).map(Some).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_open_with_their_key_in_their_place_only() {
        let dek = Dek { id: 1, key: [7; 32] };
        let sealed = dek.seal("req_1", b"words").unwrap();
        assert_eq!(unseal(&dek.key, b"req_1", sealed.nonce, &sealed.ciphertext).unwrap(), b"words");
        assert!(unseal(&dek.key, b"req_2", sealed.nonce, &sealed.ciphertext).is_none());
        assert!(unseal(&[8; 32], b"req_1", sealed.nonce, &sealed.ciphertext).is_none());
        assert_ne!(sealed.digest(), dek.seal("req_1", b"words").unwrap().digest());
        assert_eq!(format!("{dek:?}"), "Dek(1)");
    }
}
