//! Whether the audit chain still says what was written.

use super::StoreError;
use super::chain::{ChainKeys, GENESIS, Link, hex};
use super::content::content_digest;
use super::row::RequestRow;
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What a look at the whole chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub n_links: u64,
    pub n_rows: u64,
    pub n_checkpoints: u64,
    /// Of the last link.
    pub head_seq: i64,
    pub head: String,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Of the link, the checkpoint, or the link whose rows changed.
    pub seq: i64,
    pub reason: String,
}

/// The digest of a group of rows, as its link has it.
pub(super) fn digest_of_rows(digests: impl Iterator<Item = [u8; 32]>) -> String {
    hex(&digests.fold(Sha256::new(), |sum, digest| sum.chain_update(digest)).finalize())
}

/// Recomputes every link from `from` on, the rows that each names, and the checkpoints.
pub(super) fn verify(conn: &Connection, keys: &ChainKeys, from: i64) -> Result<Verified, StoreError> {
    let mut found = Verified { n_links: 0, n_rows: 0, n_checkpoints: 0, head_seq: 0, head: String::new(), fault: None };
    let mut statement = conn
        .prepare("SELECT seq, ts, actor, action, object, detail, prev, mac FROM audit WHERE seq >= ?1 ORDER BY seq")?;
    let mut links = statement.query([from])?;
    let mut before: Option<(i64, Vec<u8>)> = (from <= 1).then(|| (0, GENESIS.to_vec()));
    while let Some(row) = links.next()? {
        let link = read_link(row)?;
        let fault = check_link(conn, keys, &link, before.as_ref(), &mut found)?;
        if let Some(reason) = fault {
            found.fault = Some(Fault { seq: link.seq, reason });
            return Ok(found);
        }
        found.n_links += 1;
        before = Some((link.seq, link.mac));
    }
    if let Some((seq, mac)) = &before {
        (found.head_seq, found.head) = (*seq, hex(mac));
    }
    found.fault = check_end(conn, keys, from, &mut found)?;
    Ok(found)
}

fn check_link(
    conn: &Connection,
    keys: &ChainKeys,
    link: &Link,
    before: Option<&(i64, Vec<u8>)>,
    found: &mut Verified,
) -> Result<Option<String>, StoreError> {
    if let Some((seq, mac)) = before {
        if link.seq != seq + 1 {
            return Ok(Some(format!("link {} follows {seq}: links are missing", link.seq)));
        }
        if link.prev != *mac {
            return Ok(Some("it does not go on from the link before".to_owned()));
        }
    }
    if keys.seal(link).as_slice() != link.mac {
        return Ok(Some("its seal does not fit".to_owned()));
    }
    if link.action == "requests" {
        return check_rows(conn, link, found);
    }
    Ok(None)
}

/// Rows that retention has removed are named by a later link; a whole group may be gone, never a part of it.
fn check_rows(conn: &Connection, link: &Link, found: &mut Verified) -> Result<Option<String>, StoreError> {
    let detail: Value = serde_json::from_str(&link.detail).unwrap_or_default();
    let (Some(first), Some(last)) = (detail["from"].as_i64(), detail["to"].as_i64()) else {
        return Ok(Some("it names no rows".to_owned()));
    };
    let mut statement = conn.prepare_cached("SELECT * FROM request WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq")?;
    let rows = statement.query_map([first, last], |row| Ok((row.get::<_, i64>("seq")?, RequestRow::read(row)?)))?;
    let rows: Vec<(i64, RequestRow)> = rows.collect::<Result<_, _>>()?;
    if rows.is_empty() && last <= purged_to(conn)? {
        return Ok(None);
    }
    found.n_rows += rows.len() as u64;
    let digest = digest_of_rows(rows.iter().map(|(seq, row)| row.digest(*seq)));
    let is_same = detail["digest"].as_str() == Some(&digest);
    for (_, row) in rows.iter().filter(|(_, row)| row.content_digest.is_some()) {
        let kept = content_digest(conn, &row.id)?;
        if kept.is_some() && kept != row.content_digest {
            return Ok(Some(format!("the content of {} is not what was kept", row.id)));
        }
    }
    Ok((!is_same).then(|| format!("request rows {first} to {last} are not those that were written")))
}

/// The last row that retention removed, by the sealed link that says so.
fn purged_to(conn: &Connection) -> Result<i64, StoreError> {
    let detail: Option<String> = conn
        .query_row("SELECT detail FROM audit WHERE action = 'retention' ORDER BY seq DESC LIMIT 1", [], |row| {
            row.get(0)
        })
        .optional()?;
    let detail: Option<Value> = detail.and_then(|text| serde_json::from_str(&text).ok());
    Ok(detail.and_then(|detail| detail["to"].as_i64()).unwrap_or_default())
}

/// The checkpoints, and rows that no link covers.
fn check_end(
    conn: &Connection,
    keys: &ChainKeys,
    from: i64,
    found: &mut Verified,
) -> Result<Option<Fault>, StoreError> {
    let mut statement = conn.prepare(
        "SELECT c.seq, c.ts, c.head, c.sig, a.mac FROM checkpoint c LEFT JOIN audit a ON a.seq = c.seq
         WHERE c.seq >= ?1 ORDER BY c.seq",
    )?;
    let mut checkpoints = statement.query([from])?;
    while let Some(row) = checkpoints.next()? {
        let (seq, ts): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (head, signature): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        if !keys.is_signed(seq, ts, &head, &signature) {
            return Ok(Some(Fault { seq, reason: "the checkpoint's signature does not fit".to_owned() }));
        }
        let sealed: Option<Vec<u8>> = row.get(4)?;
        if sealed.as_ref() != Some(&head) {
            let reason = "the checkpoint names a link that is not there: the chain was cut or rewritten".to_owned();
            return Ok(Some(Fault { seq, reason }));
        }
        found.n_checkpoints += 1;
    }
    let covered: i64 = conn.query_row(
        "SELECT coalesce(max(json_extract(detail, '$.to')), 0) FROM audit WHERE action IN ('requests', 'retention')",
        [],
        |row| row.get(0),
    )?;
    let last: i64 = conn.query_row("SELECT coalesce(max(seq), 0) FROM request", [], |row| row.get(0))?;
    if last > covered {
        let reason = format!("request rows {} to {last} are in no link", covered + 1);
        return Ok(Some(Fault { seq: found.head_seq, reason }));
    }
    Ok(None)
}

pub(super) fn read_link(row: &rusqlite::Row) -> rusqlite::Result<Link> {
    Ok(Link {
        seq: row.get("seq")?,
        ts: row.get("ts")?,
        actor: row.get("actor")?,
        action: row.get("action")?,
        object: row.get("object")?,
        detail: row.get("detail")?,
        prev: row.get("prev")?,
        mac: row.get("mac")?,
    })
}
