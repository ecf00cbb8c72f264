//! The store as a whole: groups, crashes, failures, sums.

use super::*;
use crate::gateway::spec::Price;
use serde_json::json;
use std::path::Path;

const DAY: i64 = 86_400_000;

/// A store in `dir`, as its tests have it.
pub(super) fn config(dir: &Path, durability: Durability) -> StoreConfig {
    StoreConfig {
        path: dir.join("hearth.db"),
        durability,
        on_failure: OnFailure::Reject,
        chain_key: [1; 32],
        audit_key: dir.join("audit.key"),
        witness: None,
        observe: Box::new(|_| {}),
    }
}

pub(super) fn open(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(config(dir, Durability::Power)).expect("it opens"))
}

pub(in crate::gateway) fn row(n: u64) -> RequestRow {
    RequestRow {
        id: format!("req_{n}"),
        t0: DAY + i64::try_from(n).expect("few"),
        t_end: DAY + 1,
        key_id: Some("k".into()),
        team_id: Some("t".into()),
        endpoint: "/v1/chat/completions".into(),
        model: Some("m".into()),
        status: 200,
        finish: "stop".into(),
        in_tok: 10,
        out_tok: n,
        cost_nusd: 3,
        tags: vec!["tag".into()],
        price: Some(Price { input: 1, cached_input: 1, output: 1 }),
        ..RequestRow::default()
    }
}

async fn count(store: &Arc<Store>, table: &'static str) -> i64 {
    let read =
        store.read(move |conn| Ok(conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?));
    read.await.expect("it can be read")
}

#[tokio::test]
async fn rows_that_come_together_share_a_commit_and_come_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let all = (0..400).map(|n| store.settle(row(n % 200)));
    let settled = futures_util::future::join_all(all).await;
    assert!(settled.into_iter().all(|result| result.is_ok()));
    assert_eq!(count(&store, "request").await, 200, "a row that is there is not written again");
    let (n_commits, n_rows) = store.health().commits();
    assert_eq!(n_rows, 200);
    assert!(n_commits < 200, "{n_commits}");
    let sums = store.read(|conn| spend(conn, &LogFilter::default(), GroupBy::Key)).await.expect("sums");
    assert_eq!((sums[0].group.as_str(), sums[0].n, sums[0].in_tok, sums[0].cost_nusd), ("k", 200, 2000, 600));
    let tagged = store.read(|conn| tags(conn, &LogFilter::default())).await.expect("tags");
    assert_eq!((tagged[0].tag.as_str(), tagged[0].n), ("tag", 200));
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
}

#[tokio::test]
async fn what_ran_when_the_process_died_is_settled_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut waits = store.open_row(RequestRow { finish: String::new(), ..row(1) }).await.expect("sent");
    waits.committed().await.expect("committed");
    store.progress(vec![Progress { id: "req_1".into(), in_tok: 2_000_000, cached_tok: 0, out_tok: 7 }]);
    let mut done = store.open_row(row(2)).await.expect("sent");
    done.committed().await.expect("committed");
    store.settle(row(2)).await.expect("settled");
    store.flush().await;
    drop(store);
    let store = open(dir.path());
    assert_eq!(count(&store, "inflight").await, 0);
    let rows = store.read(|conn| logs(conn, &LogFilter::default(), (10, 0))).await.expect("rows");
    let crashed = rows.iter().find(|row| row.id == "req_1").expect("its row");
    assert_eq!((crashed.finish.as_str(), crashed.in_tok, crashed.out_tok), ("crash", 2_000_000, 7));
    assert_eq!(crashed.cost_nusd, 3, "two million at 1, and a bit");
    assert_eq!(rows.len(), 2);
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
    drop(store);
    assert_eq!(count(&open(dir.path()), "request").await, 2, "settled once");
}

#[tokio::test]
async fn a_note_is_written_when_it_is_due_and_never_for_what_is_settled_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let before = store.health().commits().0;
    let mut note = store.open_row(row(1)).await.expect("sent");
    store.settle(row(1)).await.expect("settled");
    note.committed().await.expect("its row says it");
    assert_eq!(count(&store, "inflight").await, 0);
    assert_eq!(store.health().commits().0, before + 1, "one commit for both, and the hurry found nothing");
    // Nobody asks: a few milliseconds later it is there all the same.
    let _note = store.open_row(row(2)).await.expect("sent");
    let written = async {
        while count(&store, "inflight").await == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.expect("it is written by itself");
    store.settle(row(2)).await.expect("settled");
    assert_eq!((count(&store, "inflight").await, count(&store, "request").await), (0, 2));
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
}

/// Commits never wait for a checkpoint, and the log does not grow without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_copied_back_beside_the_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), Durability::Process));
    let store = Arc::new(store.expect("it opens"));
    let wal = dir.path().join("hearth.db-wal");
    let mut longest = 0;
    // Each row is a commit of some ten pages: five times the log's bound in all.
    for n in 0..8_000 {
        store.settle(row(n)).await.expect("settled");
        longest = longest.max(std::fs::metadata(&wal).map_or(0, |file| file.len()));
    }
    assert!((1 << 20..96 << 20).contains(&longest), "{longest}");
    let main = std::fs::metadata(dir.path().join("hearth.db")).unwrap().len();
    assert!(main > 1 << 20, "{main}: the file itself grew meanwhile");
    store.flush().await;
    drop(store);
    assert!(!wal.exists(), "nothing is left in it at the end");
    assert_eq!(count(&open(dir.path()), "request").await, 8_000);
}

#[tokio::test]
async fn books_of_version_1_get_their_new_columns_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("hearth.db")).unwrap();
    conn.execute_batch(include_str!("schema.sql")).unwrap();
    conn.execute_batch("PRAGMA application_id = 0x68727468; PRAGMA user_version = 1;").unwrap();
    drop(conn);
    std::fs::write(dir.path().join("audit.key"), [7; 32]).unwrap();
    let store = open(dir.path());
    let trace_id = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
    for n in 0..5 {
        store.settle(RequestRow { trace_id: trace_id.clone().filter(|_| n == 4), ..row(n) }).await.expect("settled");
    }
    let rows = store.read(|conn| logs(conn, &LogFilter::default(), (10, 0))).await.expect("rows");
    let with_one: Vec<_> = rows.iter().filter(|row| row.trace_id.is_some()).collect();
    assert_eq!((rows.len(), with_one.len(), &with_one[0].trace_id), (5, 1, &trace_id));
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
}

#[tokio::test]
async fn an_act_that_conflicts_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let act = || Act { actor: "test".into(), action: "test.act", object: String::new(), detail: json!({}) };
    let bad = store.change(act(), |conn| {
        conn.execute("INSERT INTO team(id, spec, created) VALUES ('x', '{}', 0)", [])?;
        Err(StoreError::Conflict("no".into()))
    });
    let good = store.change(act(), |conn| {
        conn.execute("INSERT INTO team(id, spec, created) VALUES ('y', '{}', 0)", [])?;
        Ok(())
    });
    let (bad, settled, good) = tokio::join!(bad, store.settle(row(1)), good);
    assert!(matches!(bad, Err(StoreError::Conflict(_))) && settled.is_ok() && good.is_ok());
    assert_eq!(count(&store, "team").await, 1);
    assert_eq!(count(&store, "audit").await, 3, "the start, the act that was done, the row");
}

#[tokio::test]
async fn spending_is_exact_whatever_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // A row each six hours, of ten days.
    for n in 0..40 {
        let row = RequestRow { t0: n * DAY / 4, cost_nusd: 1 << (n % 30), ..row(u64::try_from(n).unwrap()) };
        store.settle(row).await.expect("settled");
    }
    let sum = |from: i64, until: i64| -> i64 {
        (0..40).filter(|n| (from..until).contains(&(n * DAY / 4))).map(|n| 1_i64 << (n % 30)).sum()
    };
    for (from, until) in [
        (0, i64::MAX),
        (i64::MIN, i64::MAX),
        (0, DAY),
        (1, DAY),
        (DAY / 4, DAY / 2),
        (DAY / 4 + 1, 3 * DAY + 5),
        (DAY, 7 * DAY),
        (DAY - 1, 7 * DAY + 1),
        (20 * DAY, 30 * DAY),
    ] {
        for (scope, id) in [("key", "k"), ("team", "t")] {
            let got = store.read(move |conn| spent(conn, scope, id, (from, until))).await.expect("a sum");
            assert_eq!(got.0, sum(from, until), "{scope} {from} {until}");
        }
    }
    let other = store.read(|conn| spent(conn, "key", "other", (0, i64::MAX))).await.expect("a sum");
    assert_eq!(other, (0, 0));
}

#[tokio::test]
async fn a_file_that_can_not_be_written_refuses_spills_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.settle(row(1)).await.expect("settled");
    // Somebody holds the file's lock for longer than the writer waits: a failure of its kind.
    let blocker = Connection::open(dir.path().join("hearth.db")).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(store.settle(row(2)).await.is_ok(), "kept in the spill");
    assert!(store.n_pending() >= 1, "it waits for a commit, if not in the queue");
    assert!(store.health().is_failed() && store.admit().is_err());
    assert!(store.open_row(row(3)).await.expect("sent").committed().await.is_err(), "no new request");
    let act = Act { actor: "test".into(), action: "test.act", object: String::new(), detail: json!({}) };
    assert!(store.change(act, |_| Ok(())).await.is_err());
    store.settle_later(row(4));
    blocker.execute_batch("ROLLBACK").unwrap();
    drop(blocker);
    let recovered = async {
        while store.health().is_failed() || store.n_pending() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), recovered).await.expect("it recovers");
    assert!(store.admit().is_ok() && store.spill.is_empty());
    assert_eq!(count(&store, "request").await, 3);
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
}

/// A file that takes a probe's mark and no rows: the last tries have a bound.
#[tokio::test]
async fn a_store_ends_though_its_last_rows_can_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let spoil = Connection::open(dir.path().join("hearth.db")).unwrap();
    spoil.execute_batch("ALTER TABLE request RENAME TO gone").unwrap();
    store.settle(row(1)).await.expect("kept in the spill");
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(store);
        ended.send(()).expect("somebody waits");
    });
    ends.recv_timeout(Duration::from_secs(60)).expect("it ends");
}

#[tokio::test]
async fn rows_that_are_too_old_go_and_the_chain_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..70 {
        store.settle(row(n)).await.expect("settled");
    }
    let cutoff = crate::gateway::unix_ms() + 1;
    tokio::time::sleep(Duration::from_millis(5)).await;
    for n in 70..75 {
        store.settle(row(n)).await.expect("settled");
    }
    assert!(!store.forget(0).await.expect("nothing is that old"));
    assert!(store.forget(cutoff).await.expect("a step"), "a step takes fifty groups");
    assert_eq!(count(&store, "request").await, 25);
    while store.forget(cutoff).await.expect("a step") {}
    assert_eq!(count(&store, "request").await, 5);
    assert!(!store.forget(cutoff).await.expect("nothing is left"));
    assert_eq!(store.verify(1).await.expect("verified").fault, None);
    let sums = store.read(|conn| spend(conn, &LogFilter::default(), GroupBy::Key)).await.expect("sums");
    assert_eq!(sums[0].n, 75, "sums stay");
    store.settle(row(80)).await.expect("settled");
    drop(store);
    let store = open(dir.path());
    let conn = Connection::open(dir.path().join("hearth.db")).unwrap();
    conn.execute("DELETE FROM request WHERE id = 'req_72'", []).unwrap();
    let fault = store.verify(1).await.expect("verified").fault;
    assert!(fault.is_some(), "what goes without a word is missed");
}

/// T-R10: a damaged file is refused, or found out by a check, or reads as it was written; never silently otherwise.
#[tokio::test]
async fn no_flipped_bit_changes_a_row_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..40 {
        store.settle(row(n)).await.expect("settled");
    }
    let all = |store: &Arc<Store>| {
        let store = Arc::clone(store);
        async move { store.read(|conn| logs(conn, &LogFilter::default(), (100, 0))).await }
    };
    let written = all(&store).await.expect("rows");
    drop(store);
    assert!(!dir.path().join("hearth.db-wal").exists(), "the log is empty once the store is closed");
    let whole = std::fs::read(dir.path().join("hearth.db")).unwrap();
    let mut found = 0;
    for n in 0..150 {
        let damaged = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        // Spread over the file by a multiplier that shares no factor with its length.
        let at = (n * 7_919 * 31) % bytes.len();
        bytes[at] ^= 1 << (n % 8);
        std::fs::write(damaged.path().join("hearth.db"), bytes).unwrap();
        std::fs::copy(dir.path().join("audit.key"), damaged.path().join("audit.key")).unwrap();
        let opened = Store::open(config(damaged.path(), Durability::Process));
        let Ok(store) = opened.map(Arc::new) else {
            found += 1;
            continue;
        };
        let said = store.check().await.is_ok_and(|faults| faults.is_empty())
            && store.verify(1).await.is_ok_and(|verified| verified.fault.is_none());
        match said {
            false => found += 1,
            true => assert!(all(&store).await.expect("rows") == written, "bit {} of byte {at}", n % 8),
        }
    }
    // Most of a small file is room that nothing is written in.
    assert!(found >= 10, "{found} of 150 were noticed");
}

/// Found by fuzzing: a database that was cut to nothing was taken for a new one, and all keys and rows were gone without a word.
#[tokio::test]
async fn a_database_that_was_emptied_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join("hearth.db");
    let refusal = || {
        let refused = Store::open(config(dir.path(), Durability::Power)).err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|text| text.contains("audit.key")), "{refused:?}");
    };
    std::fs::write(&path, b"").unwrap();
    refusal();
    // What was written on the way to the refusal is not taken for the database either.
    refusal();
    std::fs::remove_file(&path).unwrap();
    refusal();
    // One of a first start that came no further than its tables.
    std::fs::remove_file(&path).unwrap();
    drop(open::writer(&path, Durability::Power, false, &checkpoint::Pages::default()).unwrap());
    refusal();
    for name in ["hearth.db", "audit.key"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!(count(&open(dir.path()), "request").await, 0, "begun anew");
}
