//! Rows that are older than they are kept. Their links stay, so the chain goes on, and a link says which rows are gone.

use super::StoreError;
use super::chain::Act;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

/// Groups of one step.
const GROUPS_MAX: i64 = 50;

/// Rows to remove: all up to `to`, which ends a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Old {
    /// The last link of those groups.
    link: i64,
    to: i64,
    pub has_more: bool,
}

/// The oldest groups that are not removed yet, were committed before `before` and hold no row behind `kept_from`.
pub(super) fn old(conn: &Connection, before: i64, kept_from: i64) -> Result<Option<Old>, StoreError> {
    let last: Option<String> = conn
        .prepare_cached("SELECT detail FROM audit WHERE action = 'retention' ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let last: Value = last.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let from = last["link"].as_i64().unwrap_or(0);
    let mut statement = conn.prepare_cached(
        "SELECT seq, json_extract(detail, '$.to') FROM audit WHERE seq > ?1 AND action = 'requests' AND ts < ?2
           AND json_extract(detail, '$.to') <= ?4
         ORDER BY seq LIMIT ?3",
    )?;
    let groups =
        statement.query_map(params![from, before, GROUPS_MAX, kept_from], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let groups: Vec<(i64, i64)> = groups.collect::<Result<_, _>>()?;
    let has_more = i64::try_from(groups.len()) == Ok(GROUPS_MAX);
    Ok(groups.last().map(|(link, to)| Old { link: *link, to: *to, has_more }))
}

impl Old {
    pub(super) fn act(&self) -> Act {
        let detail = json!({ "link": self.link, "to": self.to });
        Act { actor: "server".into(), action: "retention", object: String::new(), detail }
    }

    pub(super) fn remove(&self, tx: &Connection) -> Result<(), StoreError> {
        tx.execute("DELETE FROM attempt WHERE request_id IN (SELECT id FROM request WHERE seq <= ?1)", [self.to])?;
        tx.execute("DELETE FROM content WHERE request_id IN (SELECT id FROM request WHERE seq <= ?1)", [self.to])?;
        tx.execute("DELETE FROM request WHERE seq <= ?1", [self.to])?;
        Ok(())
    }
}
