//! T-R3, T-R9, T-R10: the disk fails at every call in turn, or for a while; files that were cut, damaged or are another's.

use crate::support::disk::{Disk, OPEN, READ, SYNC, TRUNCATE, WRITE};
use crate::support::ledger::{MODEL, hearth, open, rows};
use crate::support::served::Served;
use crate::support::{PATIENCE, chat_body};
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Runs the command line on a disk that fails; its stdout, or what it said.
fn hearth_on(disk: &Disk, dir: &Path, args: &[&str]) -> Result<String, String> {
    let words = disk.before(dir, false);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .arg(env!("CARGO_BIN_EXE_hearth"))
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .current_dir(dir)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(said),
    }
}

/// T-R3. A key is made while the k-th call of each kind fails, once or from then on, until none is left to fail: what was
/// said to be made is there, nothing is damaged, and the next try on a good disk works.
#[tokio::test]
async fn an_act_fails_or_is_done_at_whichever_call_the_disk_fails() {
    let Some(disk) = Disk::new() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    hearth(dir.path(), &["keys", "new"]).expect("a first one");
    let (mut made, mut n_refused, mut n_hits) = (BTreeSet::new(), 0, 0);
    let forever = i32::MAX / 2;
    for (op, error, times, step) in [
        (OPEN, Errno::MFILE, 1, 1),
        (OPEN, Errno::ROFS, forever, 1),
        (WRITE, Errno::IO, 1, 1),
        (WRITE, Errno::NOSPC, forever, 3),
        (SYNC, Errno::IO, 1, 1),
        (SYNC, Errno::IO, forever, 2),
        (TRUNCATE, Errno::IO, 1, 1),
        (READ, Errno::IO, 1, 4),
    ] {
        for k in (0..300).step_by(step) {
            disk.fail(op, error.raw_os_error(), k, times);
            let said = hearth_on(&disk, dir.path(), &["keys", "new"]);
            let hits = disk.hits();
            disk.heal();
            let books = open(dir.path()).await;
            match said {
                Ok(key) => drop(made.insert(key)),
                Err(_) => n_refused += 1,
            }
            n_hits += hits;
            for key in &made {
                assert!(books.keyring().find(key, 0).is_some(), "call {k} of kind {op}: a key that was made is gone");
            }
            assert_eq!(books.store().check().await.expect("it can be read"), [""; 0], "call {k} of kind {op}");
            let verified = books.store().verify(1).await.expect("it can be read");
            assert_eq!(verified.fault, None, "call {k} of kind {op}");
            books.close().await;
            if hits == 0 {
                break;
            }
        }
    }
    assert!(n_refused > 20 && n_hits > 40 && made.len() > 5, "{n_refused} refused, {n_hits} hits, {} made", made.len());
}

/// What clients were answered.
#[derive(Default)]
struct Seen {
    answered: BTreeSet<String>,
    n_refused: usize,
}

impl Seen {
    fn note(&mut self, answered: Option<String>) {
        match answered {
            Some(id) => drop(self.answered.insert(id)),
            None => self.n_refused += 1,
        }
    }
}

async fn client(url: String, key: String, every: Duration, seen: Arc<Mutex<Seen>>, stop: Arc<AtomicBool>) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let mut due = Instant::now();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let stream = n % 3 == 0;
        let body = chat_body("/count 4", json!({ "stream": stream }));
        let sent = client.post(format!("{url}/v1/chat/completions")).bearer_auth(&key).json(&body).send().await;
        let response = sent.expect("the server lives");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let status = response.status();
        let text = response.text().await.expect("a whole answer");
        let is_whole = status == 200 && (!stream || text.trim_end().ends_with("data: [DONE]"));
        // Either the answer, or the word that says why not.
        assert!(is_whole || text.contains("ledger_unavailable"), "{status}: {text}");
        seen.lock().expect("a lock").note(is_whole.then_some(id));
        due += every;
        tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
    }
}

/// Resident memory, in KiB.
fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

struct House {
    dir: tempfile::TempDir,
    key: String,
    served: Served,
    disk: Disk,
}

impl House {
    fn start(more: &[&str]) -> Option<Self> {
        let disk = Disk::new()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let key = hearth(dir.path(), &["keys", "new"]).expect("made with the server down");
        let before = disk.before(dir.path(), false);
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let folder = dir.path().to_str().expect("text").to_owned();
        let words = [&[MODEL, "--data-dir", &folder, "-np", "8", "--alias", "Scripted-1"], more].concat();
        let served = Served::through(&before, &words);
        Some(Self { dir, key, served, disk })
    }

    async fn metric(&self, name: &str) -> u64 {
        let client = reqwest::Client::new();
        let page = client.get(format!("{}/metrics", self.served.url)).bearer_auth(&self.key).send().await;
        let page = page.expect("an answer").text().await.expect("a page");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().parse().unwrap_or_default()
    }

    async fn until_ready(&self) {
        let started = Instant::now();
        while self.served.status("/readyz") != Some(200) {
            assert!(started.elapsed() < PATIENCE, "it recovers by itself");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_zero(&self, name: &str) {
        let started = Instant::now();
        while self.metric(name).await > 0 {
            assert!(started.elapsed() < PATIENCE, "{name}: it recovers by itself");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it; the ids of all rows, each once, in books that are whole.
    async fn ids(self) -> BTreeSet<String> {
        drop(self.served);
        let books = open(self.dir.path()).await;
        let rows = rows(&books).await;
        let found: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
        assert_eq!(found.len(), rows.len(), "a row is there twice");
        assert_eq!(books.store().check().await.expect("it can be read"), [""; 0]);
        assert_eq!(books.store().verify(1).await.expect("it can be read").fault, None);
        books.close().await;
        found
    }
}

/// T-R3 under load: whatever fails and however long, no answer is without its row, and a good disk is enough to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_for_a_while_costs_no_row_and_no_restart() {
    let Some(house) = House::start(&[]) else { return };
    let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let one = || {
        let (url, key) = (house.served.url.clone(), house.key.clone());
        tokio::spawn(client(url, key, Duration::from_millis(5), Arc::clone(&seen), Arc::clone(&stop)))
    };
    let clients: Vec<_> = (0..6).map(|_| one()).collect();
    for (ops, error) in [
        (SYNC, Errno::IO),
        (WRITE, Errno::NOSPC),
        (WRITE | OPEN, Errno::ROFS),
        (OPEN | SYNC, Errno::MFILE),
        (READ | WRITE, Errno::IO),
    ] {
        let before = seen.lock().expect("a lock").n_refused;
        house.disk.fail(ops, error.raw_os_error(), 3, i32::MAX / 2);
        let started = Instant::now();
        while seen.lock().expect("a lock").n_refused == before {
            assert!(started.elapsed() < PATIENCE, "{error} is noticed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        house.disk.heal();
        house.until_ready().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client is answered in words");
    }
    assert_eq!(house.metric("hearth_ledger_rows_lost").await, 0);
    let found = house.ids().await;
    let seen = seen.lock().expect("a lock");
    let lost: Vec<&String> = seen.answered.difference(&found).collect();
    assert!(lost.is_empty() && seen.n_refused > 5, "{} of {} answers have no row", lost.len(), seen.answered.len());
}

/// T-R9, for HEARTH_LEDGER_DOWN seconds: 200 requests a second that are answered though no row can be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_that_are_away_cost_memory_up_to_a_bound_and_the_counters_are_right() {
    let seconds: u64 = std::env::var("HEARTH_LEDGER_DOWN").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let Some(house) = House::start(&["--on-store-failure", "degrade"]) else { return };
    let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let one = || {
        let (url, key) = (house.served.url.clone(), house.key.clone());
        tokio::spawn(client(url, key, Duration::from_millis(40), Arc::clone(&seen), Arc::clone(&stop)))
    };
    let clients: Vec<_> = (0..8).map(|_| one()).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = rss_kib(house.served.pid());
    house.disk.fail(WRITE, Errno::NOSPC.raw_os_error(), 0, i32::MAX / 2);
    let (started, mut most) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(rss_kib(house.served.pid()).saturating_sub(before));
    }
    assert_eq!(house.metric("hearth_ledger_failed").await, 1);
    house.disk.heal();
    house.until_ready().await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client is answered in words");
    }
    house.until_zero("hearth_ledger_failed").await;
    // What waits in memory would go with the process.
    house.until_zero("hearth_ledger_pending").await;
    let n_lost = house.metric("hearth_ledger_rows_lost").await;
    // The spill, and what the allocator keeps of it.
    assert!(most < (16 + 16) << 10, "{most} KiB more");
    let (answered, n_refused) = {
        let seen = seen.lock().expect("a lock");
        (seen.answered.clone(), seen.n_refused)
    };
    assert_eq!(n_refused, 0, "degrade answers all the same");
    let found = house.ids().await;
    let n_missing = answered.difference(&found).count() as u64;
    eprintln!("{} answers, {n_lost} rows lost, {most} KiB more", answered.len());
    assert!(n_missing == n_lost && answered.len() > 50, "{n_missing} rows are missing, {n_lost} are said to be lost");
}

/// T-R10: a log that was cut, or is another's, or has bits of its own: what opens is a beginning of what was written, and all
/// else is refused or found out.
#[tokio::test]
async fn a_log_that_was_cut_or_changed_gives_a_beginning_or_a_word() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let key = hearth(dir.path(), &["keys", "new"]).expect("made with the server down");
    let served = crate::support::ledger::serve(dir.path());
    let client = reqwest::Client::new();
    for _ in 0..30 {
        let body = chat_body("hello", json!({}));
        let sent = client.post(format!("{}/v1/chat/completions", served.url)).bearer_auth(&key).json(&body);
        assert_eq!(sent.send().await.expect("an answer").status(), 200);
    }
    drop(served);
    let wal = fs::read(dir.path().join("hearth.db-wal")).expect("killed, so its log is there");
    assert!(wal.len() > 100_000);
    let other = tempfile::tempdir().expect("a temporary folder");
    hearth(other.path(), &["keys", "new"]).expect("another's");
    let (mut n_refused, mut n_opened, mut fewest) = (0, 0, usize::MAX);
    let whole = {
        let books = copy(dir.path(), &wal);
        let opened = open(books.path()).await;
        let all = rows(&opened).await;
        opened.close().await;
        all.into_iter().rev().map(|row| (row.id, row.out_tok)).collect::<Vec<_>>()
    };
    assert_eq!(whole.len(), 30);
    for n in 0..60_usize {
        let mut bytes = wal.clone();
        match n % 3 {
            0 => bytes.truncate(wal.len() * n / 60),
            1 => bytes[(n * 7_919 * 31) % wal.len()] ^= 1 << (n % 8),
            _ => bytes[32 + (n * 104_729) % 4096..][..512].fill(0x5a),
        }
        let books = copy(dir.path(), &bytes);
        let check = hearth(books.path(), &["db", "check"]);
        let verify = hearth(books.path(), &["audit", "verify"]);
        if check.is_err() || verify.is_err() {
            n_refused += 1;
            continue;
        }
        n_opened += 1;
        let opened = open(books.path()).await;
        let found: Vec<_> = rows(&opened).await.into_iter().rev().map(|row| (row.id, row.out_tok)).collect();
        opened.close().await;
        let found: Vec<_> = found.into_iter().filter(|row| whole.contains(row)).collect();
        assert!(whole.starts_with(&found), "case {n}: rows are missing in the middle");
        fewest = fewest.min(found.len());
    }
    assert!(n_opened > 20 && fewest < 30, "{n_opened} opened, {n_refused} refused, {fewest} rows at least");
    // Another's log, whose salts do not fit a header that was made before it.
    let books = copy(dir.path(), &wal);
    fs::copy(other.path().join("hearth.db"), books.path().join("hearth.db")).expect("a file");
    let check = hearth(books.path(), &["db", "check"]);
    let verify = hearth(books.path(), &["audit", "verify"]);
    assert!(check.is_err() || verify.is_err(), "{check:?} {verify:?}");
}

/// A folder's secrets and database with another log.
fn copy(dir: &Path, wal: &[u8]) -> tempfile::TempDir {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    for name in ["pepper", "audit.key", "master.key", "hearth.db"] {
        fs::copy(dir.join(name), fresh.path().join(name)).expect("a file");
    }
    fs::write(fresh.path().join("hearth.db-wal"), wal).expect("a writable folder");
    fresh
}
