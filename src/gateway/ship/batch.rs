//! What is read for one transaction of the database.

use super::Cursor;
use crate::gateway::store::{StoreError, attempts_of, links, rows_after};
use crate::model::lock::hex;
use rusqlite::Connection;
use serde_json::{Value, json};

/// Lines for each table, as JSON arrays of objects.
#[derive(Debug)]
pub(super) struct Batch {
    pub requests: Value,
    pub links: Value,
    pub checkpoints: Value,
    /// The last checkpoint among them, or the last that was there before.
    pub checked: i64,
    /// Keys and teams, where something was done to them.
    pub keys: Option<Value>,
    pub teams: Option<Value>,
    /// Where it ends.
    pub to: Cursor,
    /// There may be more.
    pub is_full: bool,
    n: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// The name of this server, and up to where rows had arrived when it was last noted.
pub(super) fn standing(conn: &Connection) -> Result<(String, Cursor), StoreError> {
    Ok(conn.query_row("SELECT instance, shipped_request, shipped_audit FROM state", [], |row| {
        Ok((row.get(0)?, Cursor { request_seq: row.get(1)?, audit_seq: row.get(2)? }))
    })?)
}

/// Rows behind `seq`, and when the first of them ended.
pub(super) fn behind(conn: &Connection, seq: i64) -> Result<(u64, Option<i64>), StoreError> {
    let last: i64 = conn.query_row("SELECT request_seq FROM state", [], |row| row.get(0))?;
    let mut statement = conn.prepare_cached("SELECT t_end FROM request WHERE seq > ?1 ORDER BY seq LIMIT 1")?;
    let oldest = statement.query_map([seq], |row| row.get(0))?.next().transpose()?;
    Ok((u64::try_from(last - seq).unwrap_or_default(), oldest))
}

/// The row with this number: its name, if it is there; and the last number that was given.
#[cfg(feature = "postgres")]
pub(super) fn row_at(conn: &Connection, seq: i64) -> Result<(Option<String>, i64), StoreError> {
    let mut statement = conn.prepare_cached("SELECT id FROM request WHERE seq = ?1")?;
    let id = statement.query_map([seq], |row| row.get(0))?.next().transpose()?;
    Ok((id, conn.query_row("SELECT request_seq FROM state", [], |row| row.get(0))?))
}

/// `checked`: the last checkpoint that has arrived; it may be signed long after its link was sent.
pub(super) fn read(conn: &Connection, from: Cursor, checked: i64, most: u32) -> Result<Batch, StoreError> {
    let rows = rows_after(conn, from.request_seq, most)?;
    let chain = links(conn, from.audit_seq + 1, most)?;
    let to = Cursor {
        request_seq: rows.last().map_or(from.request_seq, |(seq, _)| *seq),
        audit_seq: chain.last().map_or(from.audit_seq, |link| link.seq),
    };
    let attempts = attempts_of(conn, from.request_seq + 1, to.request_seq)?;
    let is_full = [rows.len(), chain.len()].contains(&(most as usize));
    // The first batch of all, or one with an act in it.
    let has_acts = from == Cursor::default() || chain.iter().any(|link| link.action != "requests");
    let (checkpoints, checked, n_checkpoints) = checkpoints(conn, checked, to.audit_seq)?;
    let n = rows.len() + chain.len() + n_checkpoints;
    let requests = rows.into_iter().map(|(seq, mut row)| {
        row.attempts = attempts.get(&row.id).cloned().unwrap_or_default();
        let mut line = serde_json::to_value(&row).unwrap_or_default();
        line["seq"] = seq.into();
        without_nul(&mut line);
        line
    });
    let requests = requests.collect();
    let link = |link: &crate::gateway::store::Link| {
        let (prev, mac) = (hex(&link.prev), hex(&link.mac));
        let mut line = json!({
            "seq": link.seq, "ts": link.ts, "actor": link.actor, "action": link.action, "object": link.object,
            "detail": link.detail, "prev": prev, "mac": mac, "epoch": link.epoch,
        });
        without_nul(&mut line);
        line
    };
    Ok(Batch {
        requests,
        links: chain.iter().map(link).collect(),
        checkpoints,
        checked,
        keys: has_acts.then(|| keys(conn)).transpose()?,
        teams: has_acts.then(|| teams(conn)).transpose()?,
        to,
        is_full,
        n,
    })
}

/// Those behind `checked` whose links have arrived or are about to, the last of them, and how many.
fn checkpoints(conn: &Connection, checked: i64, to: i64) -> Result<(Value, i64, usize), StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT c.seq, c.ts, c.head, c.sig, c.epoch, e.public, c.next FROM checkpoint c JOIN epoch e ON e.n = c.epoch
         WHERE c.seq > ?1 AND c.seq <= ?2 ORDER BY c.seq LIMIT 1000",
    )?;
    let mut last = checked;
    let lines = statement.query_map([checked, to], |row| {
        let (head, sig): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        let (seq, ts, epoch): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(4)?);
        let (public, next): (Vec<u8>, Option<Vec<u8>>) = (row.get(5)?, row.get(6)?);
        last = seq;
        Ok(json!({
            "seq": seq, "ts": ts, "head": hex(&head), "sig": hex(&sig), "epoch": epoch, "public": hex(&public),
            "next": next.as_deref().map(hex),
        }))
    })?;
    let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
    let n = lines.len();
    Ok((Value::from(lines), last, n))
}

/// Never a hash.
fn keys(conn: &Connection) -> Result<Value, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT id, alias, team_id, json_extract(spec, '$.user'), created, blocked, deleted FROM key ORDER BY id",
    )?;
    let lines = statement.query_map([], |row| {
        let (id, created, blocked): (String, i64, bool) = (row.get(0)?, row.get(4)?, row.get(5)?);
        let (alias, team): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
        let (user, deleted): (Option<String>, Option<i64>) = (row.get(3)?, row.get(6)?);
        let mut line = json!({
            "id": id, "alias": alias, "team_id": team, "user_id": user, "created": created, "blocked": blocked,
            "deleted": deleted,
        });
        without_nul(&mut line);
        Ok(line)
    })?;
    Ok(lines.collect::<Result<_, _>>()?)
}

fn teams(conn: &Connection) -> Result<Value, StoreError> {
    let mut statement = conn
        .prepare_cached("SELECT id, json_extract(spec, '$.alias'), created, blocked, deleted FROM team ORDER BY id")?;
    let lines = statement.query_map([], |row| {
        let (id, alias): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        let (created, blocked, deleted): (i64, bool, Option<i64>) = (row.get(2)?, row.get(3)?, row.get(4)?);
        let mut line = json!({ "id": id, "alias": alias, "created": created, "blocked": blocked, "deleted": deleted });
        without_nul(&mut line);
        Ok(line)
    })?;
    Ok(lines.collect::<Result<_, _>>()?)
}

/// PostgreSQL's texts can't hold a NUL, which a client may put into a name.
fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(without_nul),
        Value::Object(fields) => fields.values_mut().for_each(without_nul),
        _ => {}
    }
}
