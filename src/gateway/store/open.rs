//! The database file: how it is opened, what version it has, whether it is whole.

use super::checkpoint::Pages;
use super::{Durability, StoreError};
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// `hrth` in the file's header: this database is ours.
const APPLICATION_ID: i32 = 0x6872_7468;
/// Each step leads from its index to the next version. A database of a newer one is refused.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema.sql"),
    "ALTER TABLE request ADD COLUMN trace_id TEXT;",
    // The name of this server where many send their rows, and up to where they have arrived.
    "ALTER TABLE state ADD COLUMN instance TEXT NOT NULL DEFAULT '';
     ALTER TABLE state ADD COLUMN shipped_request INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE state ADD COLUMN shipped_audit INTEGER NOT NULL DEFAULT 0;
     UPDATE state SET instance = lower(hex(randomblob(8)));",
    include_str!("budgets.sql"),
    // Epochs of the audit chain: public keys, and the first link of each.
    "CREATE TABLE epoch(n INTEGER PRIMARY KEY, public BLOB NOT NULL, from_seq INTEGER NOT NULL) STRICT;
     ALTER TABLE audit ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE checkpoint ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE checkpoint ADD COLUMN next BLOB;",
];
/// A damaged page of a larger file is found by `hearth db check`, not at every start.
const QUICK_CHECK_BYTES: i64 = 64 << 20;
/// Waiting for another connection's lock; the only other writers are SQLite's own tools.
const BUSY: Duration = Duration::from_secs(5);

/// The one connection that writes.
///
/// Errors: the file is no database of ours, is of a newer version, is damaged, or can't be written.
///
/// `has_begun`: there was a chain in it, so it is no new one. `pages` is told at each commit how many pages the write-ahead
/// log has; nobody but [`super::checkpoint`] copies it back.
pub(super) fn writer(
    path: &Path,
    durability: Durability,
    has_begun: bool,
    pages: &Pages,
) -> Result<Connection, StoreError> {
    let mut conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    guard(&conn)?;
    // A statement for each of a row's tables, and the rare ones.
    conn.set_prepared_statement_cache_capacity(32);
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", durability.synchronous())?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    // Bytes that the WAL keeps after a checkpoint.
    conn.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // KiB; what the indexes of a month's rows are written to is found here.
    conn.pragma_update(None, "cache_size", -8192)?;
    migrate(&mut conn, has_begun)?;
    conn.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    let pages = Arc::clone(pages);
    conn.wal_hook(Some(move |_: &mut Wal, n: i32| {
        pages.store(u32::try_from(n).unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    }))?;
    Ok(conn)
}

/// A connection that copies the write-ahead log into the file and does nothing else.
pub(super) fn copier(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    guard(&conn)?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    Ok(conn)
}

/// A connection for reports, which can change nothing.
pub(super) fn reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    guard(&conn)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn guard(conn: &Connection) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY)?;
    // A schema that was tampered with must not call functions.
    conn.pragma_update(None, "trusted_schema", false)?;
    Ok(())
}

/// What is said of a database that has nothing in it, and had.
pub(super) fn emptied() -> StoreError {
    let reason = "it is empty, and audit.key beside it says that it was not; put the database back, or move both away to \
                  begin anew";
    StoreError::Damaged { reason: reason.to_owned() }
}

fn migrate(conn: &mut Connection, has_begun: bool) -> Result<(), StoreError> {
    let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (id, version) = (number("application_id")?, number("user_version")?);
    let n_tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let newest = MIGRATIONS.len();
    match usize::try_from(version) {
        Ok(0) if n_tables == 0 && has_begun => return Err(emptied()),
        Ok(0) if n_tables == 0 => {}
        _ if id != APPLICATION_ID => return Err(StoreError::Foreign),
        Ok(known) if known <= newest => check_quickly(conn)?,
        _ => return Err(StoreError::Newer { version, newest: i32::try_from(newest).unwrap_or(i32::MAX) }),
    }
    let tx = conn.transaction()?;
    for step in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(newest)) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", i32::try_from(newest).unwrap_or(i32::MAX))?;
    tx.commit()?;
    if usize::try_from(version) != Ok(newest) {
        settle(conn)?;
    }
    Ok(())
}

/// So that the file alone is never an empty database, whatever becomes of the log beside it.
pub(super) fn settle(conn: &Connection) -> Result<(), StoreError> {
    Ok(conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
}

fn check_quickly(conn: &Connection) -> Result<(), StoreError> {
    let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("page_count")?.saturating_mul(number("page_size")?) > QUICK_CHECK_BYTES {
        return Ok(());
    }
    match damage(conn, "quick_check(1)")?.into_iter().next() {
        Some(reason) => Err(StoreError::Damaged { reason }),
        None => Ok(()),
    }
}

/// What is wrong with the file; empty: nothing. `check`: `integrity_check`, or the quicker `quick_check`.
pub(super) fn damage(conn: &Connection, check: &str) -> Result<Vec<String>, StoreError> {
    let mut statement = conn.prepare(&format!("PRAGMA {check}"))?;
    let found: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(found.into_iter().filter(|line| line != "ok").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_file_has_the_schema_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth.db");
        for _ in 0..2 {
            let conn = writer(&path, Durability::Power, false, &Pages::default()).expect("opens");
            let boot: i64 = conn.query_row("SELECT boot FROM state", [], |row| row.get(0)).unwrap();
            assert_eq!(boot, 0);
            let setting = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
            assert_eq!(setting("journal_mode"), "wal");
            let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!((number("synchronous"), number("secure_delete"), number("trusted_schema")), (2, 1, 0));
        }
        let reads = reader(&path).expect("opens");
        assert!(reads.execute("UPDATE state SET boot = 9", []).is_err());
    }

    #[test]
    fn what_is_not_ours_or_newer_or_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs(x)").unwrap();
        assert!(matches!(writer(&path, Durability::Power, false, &Pages::default()), Err(StoreError::Foreign)));
        let path = dir.path().join("newer.db");
        writer(&path, Durability::Power, false, &Pages::default())
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(matches!(
            writer(&path, Durability::Power, false, &Pages::default()),
            Err(StoreError::Newer { version: 99, .. })
        ));
        let path = dir.path().join("text.db");
        std::fs::write(&path, "no database at all, but long enough to have a header of one".repeat(40)).unwrap();
        assert!(writer(&path, Durability::Power, false, &Pages::default()).is_err());
        let path = dir.path().join("damaged.db");
        drop(writer(&path, Durability::Power, false, &Pages::default()).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let page = 4096;
        bytes[page..2 * page].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        assert!(writer(&path, Durability::Power, false, &Pages::default()).is_err());
    }
}
