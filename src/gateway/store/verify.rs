//! Whether the audit chain still says what was written.

use super::StoreError;
use super::chain::{ChainKeys, Checkpoint, GENESIS, Link, read_link};
use super::content::content_digest;
use super::row::RequestRow;
use crate::model::lock::hex;
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

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

/// Recomputes every link from `from` on, the rows that each names, and the checkpoints. `keys`: read before `conn`'s look
/// begins, so they are of its last epoch or of one that has just ended.
pub(super) fn verify(conn: &Connection, keys: &ChainKeys, from: i64) -> Result<Verified, StoreError> {
    let mut found = Verified { n_links: 0, n_rows: 0, n_checkpoints: 0, head_seq: 0, head: String::new(), fault: None };
    let mut statement = conn.prepare("SELECT * FROM audit WHERE seq >= ?1 ORDER BY seq")?;
    let mut links = statement.query([from])?;
    let mut before: Option<(i64, Vec<u8>)> = (from <= 1).then(|| (0, GENESIS.to_vec()));
    while let Some(row) = links.next()? {
        let link = read_link(row)?;
        if let Some(fault) = check_link(conn, keys, &link, before.as_ref(), &mut found)? {
            found.fault = Some(fault);
            return Ok(found);
        }
        found.n_links += 1;
        before = Some((link.seq, link.tip()));
    }
    if let Some((seq, tip)) = &before {
        (found.head_seq, found.head) = (*seq, hex(tip));
    }
    found.fault = match check_checkpoints(conn, keys, from, &mut found)? {
        Some(fault) => Some(fault),
        None => check_end(conn, &found)?,
    };
    Ok(found)
}

/// Whether the chain still has this head at this link: what a checkpoint that was kept elsewhere says.
pub(super) fn check_witness(conn: &Connection, (seq, head): (i64, &str)) -> Result<Option<Fault>, StoreError> {
    let link = conn.query_row("SELECT * FROM audit WHERE seq = ?1", [seq], read_link).optional()?;
    let fault = |reason: &str| Some(Fault { seq, reason: reason.to_owned() });
    Ok(match link {
        None => fault("a checkpoint that was kept elsewhere names a link that is not there: the chain was cut"),
        Some(link) if hex(&link.tip()) == head => None,
        Some(_) => fault("a checkpoint that was kept elsewhere does not fit: the chain was made anew"),
    })
}

fn check_link(
    conn: &Connection,
    keys: &ChainKeys,
    link: &Link,
    before: Option<&(i64, Vec<u8>)>,
    found: &mut Verified,
) -> Result<Option<Fault>, StoreError> {
    let fault = |reason: String| Ok(Some(Fault { seq: link.seq, reason }));
    if let Some((seq, tip)) = before {
        if link.seq != seq + 1 {
            return fault(format!("link {} follows {seq}: links are missing", link.seq));
        }
        if link.prev != *tip {
            // Which of the two was changed can't be told; the earlier one is where to look.
            let (seq, reason) = match *seq {
                0 => (link.seq, "it is not the first link"),
                seq => (seq, "the link behind it was made for another one"),
            };
            return Ok(Some(Fault { seq, reason: reason.to_owned() }));
        }
    }
    if [0, keys.epoch().n].contains(&link.epoch) && keys.seal(link).as_slice() != link.mac {
        return fault("its seal does not fit".to_owned());
    }
    if link.action == "requests"
        && let Some(reason) = check_rows(conn, link, found)?
    {
        return fault(reason);
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

/// Every checkpoint is signed by its epoch, and announced the next one; every epoch that has ended has one.
fn check_checkpoints(
    conn: &Connection,
    keys: &ChainKeys,
    from: i64,
    found: &mut Verified,
) -> Result<Option<Fault>, StoreError> {
    let mut epochs = conn.prepare("SELECT n, public, from_seq FROM epoch ORDER BY n")?;
    let epochs = epochs.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    let epochs: BTreeMap<i64, (Vec<u8>, i64)> = epochs.collect::<Result<_, _>>()?;
    let mut statement = conn.prepare("SELECT * FROM checkpoint WHERE seq >= ?1 ORDER BY seq")?;
    let mut rows = statement.query([from])?;
    let mut expected: Option<i64> = None;
    let mut last_seq = 0;
    while let Some(row) = rows.next()? {
        let signature: Vec<u8> = row.get("sig")?;
        let checkpoint = Checkpoint {
            epoch: row.get("epoch")?,
            seq: row.get("seq")?,
            ts: row.get("ts")?,
            head: row.get("head")?,
            next: row.get("next")?,
        };
        let seq = checkpoint.seq;
        let fault = |reason: &str| Ok(Some(Fault { seq, reason: reason.to_owned() }));
        if expected.is_some_and(|expected| expected != checkpoint.epoch) {
            return fault("a checkpoint before it is missing");
        }
        let public = epochs.get(&checkpoint.epoch).map(|(public, _)| public.as_slice()).unwrap_or_default();
        if !checkpoint.is_signed(public, &signature) {
            return fault("the checkpoint's signature does not fit");
        }
        let link = conn.query_row("SELECT * FROM audit WHERE seq = ?1", [seq], read_link).optional()?;
        if link.is_none_or(|link| link.tip() != checkpoint.head) {
            return fault("the checkpoint names a link that is not there: the chain was cut or rewritten");
        }
        if let Some(next) = &checkpoint.next {
            if epochs.get(&(checkpoint.epoch + 1)) != Some(&(next.clone(), seq + 1)) {
                return fault("the epoch behind the checkpoint is not the one that it announced");
            }
            expected = Some(checkpoint.epoch + 1);
        }
        last_seq = seq;
        found.n_checkpoints += 1;
    }
    let announced: Option<i64> =
        conn.query_row("SELECT max(epoch) + 1 FROM checkpoint WHERE next IS NOT NULL", [], |row| row.get(0))?;
    let announced = announced.or_else(|| epochs.keys().next().copied()).unwrap_or_default();
    let own = keys.epoch().n;
    // One more has been announced since the secrets were read, or none has.
    let is_ours = epochs.get(&own).is_some_and(|(public, _)| *public == keys.verifying_key());
    let is_due = epochs.keys().next_back() == Some(&announced) && [own, own + 1].contains(&announced);
    if !is_ours || !is_due {
        let reason = "the secrets in audit.key are not those that the last checkpoint announced".to_owned();
        return Ok(Some(Fault { seq: last_seq, reason }));
    }
    let stray = "SELECT min(a.seq) FROM audit a
                 WHERE a.seq >= ?1 AND a.epoch <> (SELECT max(e.n) FROM epoch e WHERE e.from_seq <= a.seq)";
    let stray: Option<i64> = conn.query_row(stray, [from], |row| row.get(0))?;
    Ok(stray.map(|seq| Fault { seq, reason: "the link is not of the epoch that it stands in".to_owned() }))
}

/// Rows that no link covers.
fn check_end(conn: &Connection, found: &Verified) -> Result<Option<Fault>, StoreError> {
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
