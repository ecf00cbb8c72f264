//! Keys and teams between the database and memory.

use super::{Granted, GrantedKey};
use crate::gateway::keys::{BudgetRecord, Fixed, KeyEntry, KeyHash, KeyRecord, Snapshot, TeamRecord};
use crate::gateway::spec::{KeySpec, TeamSpec};
use crate::gateway::store::StoreError;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::sync::Arc;

/// Everything that is not revoked.
///
/// What `hearth.toml` says is laid over it; a team of that name in the database stands back.
pub(super) fn snapshot(conn: &Connection, fixed: &Granted) -> Result<Snapshot, StoreError> {
    let mut teams = teams(conn)?;
    for team in &fixed.teams {
        let record = TeamRecord { id: team.id.clone(), spec: team.spec.clone(), created: 0, blocked: false };
        teams.insert(team.id.clone(), Arc::new(record));
    }
    let budgets = budgets(conn)?;
    // A budget that is not there would be no end.
    let is_boundless = |id: &Option<String>| id.as_ref().is_some_and(|id| !budgets.contains_key(id));
    let lacks_budget = |spec: &KeySpec, team: &Option<Arc<TeamRecord>>| {
        is_boundless(&spec.budget_id) || team.as_ref().is_some_and(|team| is_boundless(&team.spec.budget_id))
    };
    let record = |key: &GrantedKey| {
        let team = key.spec.team.as_ref().and_then(|team| teams.get(team).cloned());
        let blocked = lacks_budget(&key.spec, &team);
        if blocked {
            tracing::error!(key = key.name, "a key of the file names a budget that is not there, and opens nothing");
        }
        (key.sha256, Arc::new(KeyRecord::new(key.name.clone(), key.spec.clone(), team, 0, blocked)))
    };
    let fixed_keys = fixed.keys.iter().map(record).collect();
    let mut statement =
        conn.prepare("SELECT id, hash, spec, created, blocked, prev_hash, prev_until FROM key WHERE deleted IS NULL")?;
    let mut rows = statement.query([])?;
    let mut keys = HashMap::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let hash = hash(row.get(1)?)?;
        let spec: KeySpec = parse(&id, &row.get::<_, String>(2)?)?;
        let team = spec.team.as_ref().and_then(|team| teams.get(team).cloned());
        // What bound the key is gone with its team, so it opens nothing.
        let is_orphan = spec.team.is_some() && team.is_none() || lacks_budget(&spec, &team);
        let previous: (Option<Vec<u8>>, Option<i64>) = (row.get(5)?, row.get(6)?);
        let previous = match previous {
            (Some(bytes), Some(until)) => Some((self::hash(bytes)?, until)),
            _ => None,
        };
        let blocked = row.get::<_, bool>(4)? || is_orphan;
        let record = KeyRecord::new(id.clone(), spec, team, row.get(3)?, blocked);
        keys.insert(id, KeyEntry { record: Arc::new(record), hash, previous });
    }
    Ok(Snapshot {
        keys,
        teams,
        budgets,
        fixed: Arc::new(Fixed { teams: fixed.teams.iter().map(|team| team.id.clone()).collect(), keys: fixed_keys }),
    })
}

fn teams(conn: &Connection) -> Result<HashMap<String, Arc<TeamRecord>>, StoreError> {
    let mut statement = conn.prepare("SELECT id, spec, created, blocked FROM team WHERE deleted IS NULL")?;
    let mut rows = statement.query([])?;
    let mut teams = HashMap::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let spec: TeamSpec = parse(&id, &row.get::<_, String>(1)?)?;
        let record = TeamRecord { id: id.clone(), spec, created: row.get(2)?, blocked: row.get(3)? };
        teams.insert(id, Arc::new(record));
    }
    Ok(teams)
}

fn budgets(conn: &Connection) -> Result<HashMap<String, Arc<BudgetRecord>>, StoreError> {
    let mut statement = conn.prepare("SELECT id, spec, created FROM budget WHERE deleted IS NULL")?;
    let mut rows = statement.query([])?;
    let mut budgets = HashMap::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let spec = parse(&id, &row.get::<_, String>(1)?)?;
        let record = BudgetRecord { id: id.clone(), spec, created: row.get(2)? };
        budgets.insert(id, Arc::new(record));
    }
    Ok(budgets)
}

fn parse<T: serde::de::DeserializeOwned>(id: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged { reason: format!("the spec of {id}: {error}") })
}

fn hash(bytes: Vec<u8>) -> Result<KeyHash, StoreError> {
    let bytes = <[u8; 32]>::try_from(bytes);
    bytes.map(KeyHash).map_err(|_| StoreError::Damaged { reason: "a hash of another length".to_owned() })
}

fn text<T: serde::Serialize>(spec: &T) -> Result<String, StoreError> {
    serde_json::to_string(spec).map_err(|error| StoreError::Conflict(format!("the spec can't be written: {error}")))
}

/// Inserts or updates a key's row.
pub(super) fn write_key(conn: &Connection, entry: &KeyEntry) -> Result<(), StoreError> {
    let record = &entry.record;
    let (prev_hash, prev_until) = match &entry.previous {
        Some((hash, until)) => (Some(hash.0.to_vec()), Some(*until)),
        None => (None, None),
    };
    conn.execute(
        "INSERT INTO key(id, hash, alias, team_id, spec, created, blocked, prev_hash, prev_until)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT(id) DO UPDATE SET hash = excluded.hash, alias = excluded.alias, team_id = excluded.team_id,
           spec = excluded.spec, blocked = excluded.blocked, prev_hash = excluded.prev_hash,
           prev_until = excluded.prev_until",
        params![
            record.id,
            entry.hash.0.as_slice(),
            record.spec.alias,
            record.spec.team,
            text(&record.spec)?,
            record.created,
            record.blocked,
            prev_hash,
            prev_until
        ],
    )?;
    Ok(())
}

/// The row stays, for the names of what was spent; what proves the key is overwritten.
pub(super) fn revoke_key(conn: &Connection, id: &str, now: i64) -> Result<(), StoreError> {
    conn.execute(
        "UPDATE key SET deleted = ?2, hash = zeroblob(32), prev_hash = NULL, prev_until = NULL
         WHERE id = ?1 AND deleted IS NULL",
        params![id, now],
    )?;
    Ok(())
}

pub(super) fn write_team(conn: &Connection, team: &TeamRecord) -> Result<(), StoreError> {
    conn.execute(
        "INSERT INTO team(id, spec, created, blocked) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(id) DO UPDATE SET spec = excluded.spec, blocked = excluded.blocked, created = excluded.created,
           deleted = NULL",
        params![team.id, text(&team.spec)?, team.created, team.blocked],
    )?;
    Ok(())
}

pub(super) fn delete_team(conn: &Connection, id: &str, now: i64) -> Result<(), StoreError> {
    conn.execute("UPDATE team SET deleted = ?2 WHERE id = ?1 AND deleted IS NULL", params![id, now])?;
    Ok(())
}

pub(super) fn write_budget(conn: &Connection, budget: &BudgetRecord) -> Result<(), StoreError> {
    conn.execute(
        "INSERT INTO budget(id, spec, created) VALUES (?1, ?2, ?3)
         ON CONFLICT(id) DO UPDATE SET spec = excluded.spec, created = excluded.created, deleted = NULL",
        params![budget.id, text(&budget.spec)?, budget.created],
    )?;
    Ok(())
}

pub(super) fn delete_budget(conn: &Connection, id: &str, now: i64) -> Result<(), StoreError> {
    conn.execute("UPDATE budget SET deleted = ?2 WHERE id = ?1 AND deleted IS NULL", params![id, now])?;
    Ok(())
}

pub(super) fn reset_spend(conn: &Connection, (scope, id): (&str, &str), now: i64) -> Result<(), StoreError> {
    conn.execute(
        "INSERT INTO reset(scope, scope_id, at) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET at = excluded.at",
        params![scope, id, now],
    )?;
    Ok(())
}
