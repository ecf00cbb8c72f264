//! The audit chain: epochs, what each kind of forger can and can't do.

use super::tests::config;
use super::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn open(dir: &Path) -> Arc<Store> {
    let config = StoreConfig { witness: Some(dir.join("witness")), ..config(dir, Durability::Process) };
    Arc::new(Store::open(config).expect("it opens"))
}

async fn act(store: &Store, n: usize) {
    let act = Act { actor: "test".into(), action: "test.act", object: n.to_string(), detail: json!({ "n": n }) };
    store.change(act, |_| Ok(())).await.expect("done");
}

/// Three lives, each an epoch.
async fn three_epochs(dir: &Path) {
    for life in 0..3 {
        let store = open(dir);
        for n in 0..4 {
            act(&store, life * 4 + n).await;
        }
        store.flush().await;
    }
}

async fn fault(dir: &Path) -> Option<Fault> {
    open(dir).verify(1).await.expect("it can be read").fault
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in fs::read_dir(from).unwrap().flatten() {
        fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

fn change(dir: &Path, sql: &str) {
    Connection::open(dir.join("hearth.db")).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn each_checkpoint_ends_an_epoch_and_every_change_is_found_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path()).await;
    // As it is, without the link that an opening adds.
    let verified = |dir: &Path| {
        let keys = ratchet::Ratchet::open(dir.join("audit.key"), [1; 32]).unwrap().keys(4).unwrap();
        verify::verify(&open::reader(&dir.join("hearth.db")).unwrap(), &keys, 1).unwrap()
    };
    let found = verified(dir.path());
    assert_eq!((found.fault, found.n_links, found.n_checkpoints), (None, 15, 3));
    // Link 3 is of the first epoch, whose secrets are gone.
    for (sql, at, word) in [
        ("UPDATE audit SET detail = '{}' WHERE seq = 3", 3, "made for another one"),
        ("UPDATE audit SET epoch = 3 WHERE seq = 3", 3, ""),
        ("DELETE FROM audit WHERE seq = 3", 4, "missing"),
        ("DELETE FROM audit WHERE seq >= 12", 15, "cut"),
        ("DELETE FROM checkpoint WHERE seq = 10", 15, "a checkpoint before it is missing"),
        ("DELETE FROM checkpoint WHERE seq = 15", 10, "not those that the last checkpoint announced"),
        ("UPDATE checkpoint SET ts = ts + 1 WHERE seq = 10", 10, "signature"),
        ("UPDATE epoch SET public = zeroblob(32) WHERE n = 2", 5, "announced"),
        ("UPDATE epoch SET from_seq = 9 WHERE n = 2", 5, "announced"),
        ("INSERT INTO epoch(n, public, from_seq) VALUES (5, zeroblob(32), 17)", 15, "announced"),
    ] {
        let other = copy(dir.path());
        change(other.path(), sql);
        let found = verified(other.path()).fault.unwrap_or_else(|| unreachable!("{sql}"));
        assert!(found.seq == at && found.reason.contains(word), "{sql}: {found:?}");
    }
}

/// Whoever takes the whole folder has this epoch's secrets alone.
#[tokio::test]
async fn a_thief_of_the_folder_can_not_write_what_came_before_anew() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path()).await;
    let keys = ratchet::Ratchet::open(dir.path().join("audit.key"), [1; 32]).unwrap();
    assert!((0..4).all(|n| keys.keys(n).is_err()) && keys.keys(4).is_ok());
    // With those, a link of the past is written anew and all behind it: up to the checkpoint that nobody can sign again.
    let (dir, keys) = (copy(dir.path()), keys.keys(4).unwrap());
    let conn = Connection::open(dir.path().join("hearth.db")).unwrap();
    let chain = links(&conn, 1, 100).unwrap();
    let mut tip = chain[1].tip();
    conn.execute_batch("DELETE FROM audit WHERE seq > 2").unwrap();
    for mut link in chain.into_iter().skip(2) {
        link.prev = std::mem::take(&mut tip);
        link.actor = "somebody else".to_owned();
        link.mac = keys.seal(&link).to_vec();
        tip = link.tip();
        conn.execute(
            "INSERT INTO audit(seq, ts, actor, action, object, detail, prev, mac, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            rusqlite::params![
                link.seq,
                link.ts,
                link.actor,
                link.action,
                link.object,
                link.detail,
                link.prev,
                link.mac,
                link.epoch
            ],
        )
        .unwrap();
    }
    let found = verify::verify(&conn, &keys, 1).unwrap().fault.expect("found out");
    assert!(found.seq == 5 && found.reason.contains("cut or rewritten"), "{found:?}");
}

/// A chain that was made anew from its first link fits itself, and not the lines that were kept elsewhere.
#[tokio::test]
async fn a_witness_tells_a_chain_that_was_cut_or_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path()).await;
    let text = fs::read_to_string(dir.path().join("witness")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["seq"].as_i64().unwrap()).collect::<Vec<_>>(), [5, 10, 15]);
    assert!(lines.windows(2).all(|two| two[0]["next"] == two[1]["public"]));
    let kept = (15, lines[2]["head"].as_str().unwrap().to_owned());
    let store = open(dir.path());
    assert_eq!(store.verify_with(1, Some(kept.clone())).await.unwrap().fault, None);
    drop(store);
    let anew = tempfile::tempdir().unwrap();
    three_epochs(anew.path()).await;
    let store = open(anew.path());
    assert_eq!(store.verify(1).await.unwrap().fault, None);
    let found = store.verify_with(1, Some(kept.clone())).await.unwrap().fault.expect("found out");
    assert!(found.seq == 15 && found.reason.contains("made anew"), "{found:?}");
    let early = store.verify_with(1, Some((999, kept.1))).await.unwrap().fault.expect("found out");
    assert!(early.reason.contains("cut"), "{early:?}");
    // Lines that a crash kept from the file are there after the next start, and its half of a line is no harm.
    drop(store);
    fs::write(anew.path().join("witness"), "{\"seq\":5,\"head\":\"x\"}\n{\"seq\":10,\"he").unwrap();
    drop(open(anew.path()));
    let text = fs::read_to_string(anew.path().join("witness")).unwrap();
    let seqs: Vec<i64> =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seq"].as_i64()).collect();
    assert_eq!(seqs[..3], [5, 10, 15], "{text}");
}

/// Wherever the process dies between two epochs, the file has the secrets that the database wants.
#[tokio::test]
async fn a_crash_between_two_epochs_loses_neither() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path()).await;
    let before = copy(dir.path());
    // The next epoch was prepared, and its checkpoint never committed.
    let mut keys = ratchet::Ratchet::open(before.path().join("audit.key"), [1; 32]).unwrap();
    let next = keys.keys(4).unwrap().epoch().next().unwrap();
    keys.prepare(next).unwrap();
    let both = fs::read(before.path().join("audit.key")).unwrap();
    assert_eq!(fault(before.path()).await, None);
    assert_ne!(fs::read(before.path().join("audit.key")).unwrap(), both, "what was not used is replaced");
    // It was committed, and the last epoch's secrets not yet erased.
    let store = open(dir.path());
    store.flush().await;
    let old = ratchet::Ratchet::open(dir.path().join("audit.key"), [1; 32]).unwrap().keys(4).unwrap();
    drop(store);
    let mut keys = ratchet::Ratchet::open(dir.path().join("audit.key"), [1; 32]).unwrap();
    let now = keys.keys(5).unwrap().epoch().clone();
    keys.restore(vec![old.epoch().clone(), now]).unwrap();
    assert_eq!(fault(dir.path()).await, None);
    let keys = ratchet::Ratchet::open(dir.path().join("audit.key"), [1; 32]).unwrap();
    assert!(keys.keys(4).is_err(), "erased at the next start");
    // Secrets of another chain open nothing.
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()));
    fs::copy(other.path().join("audit.key"), dir.path().join("audit.key")).unwrap();
    let refused = Store::open(config(dir.path(), Durability::Process));
    assert!(matches!(refused, Err(StoreError::Damaged { .. })));
}

/// A chain from before there were epochs goes on, and is sealed as it was.
#[tokio::test]
async fn an_old_chain_goes_over_to_epochs() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("audit.key"), [7; 32]).unwrap();
    let store = open(dir.path());
    for n in 0..3 {
        act(&store, n).await;
    }
    store.flush().await;
    drop(store);
    let store = open(dir.path());
    let (chain, found) = tokio::join!(store.read(|conn| links(conn, 1, 100)), store.verify(1));
    let epochs: Vec<i64> = chain.unwrap().iter().map(|link| link.epoch).collect();
    assert!(epochs[0] == 0 && epochs.is_sorted() && *epochs.last().unwrap() > 1, "{epochs:?}");
    assert_eq!(found.unwrap().fault, None);
    drop(store);
    change(dir.path(), "UPDATE audit SET actor = 'nobody' WHERE seq = 1");
    assert_eq!(fault(dir.path()).await.map(|fault| fault.seq), Some(1));
}
