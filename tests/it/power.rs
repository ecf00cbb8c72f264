//! T-R2: the power goes. Everything that the server did to its database is on record; at a moment of that record the disk has
//! what was synced, and of the rest any of its sectors. What had been answered by then must be there.

use crate::support::disk::{Disk, Done, record};
use crate::support::governed::books_config;
use crate::support::ledger::{MODEL, hearth, rows};
use crate::support::served::Served;
use crate::support::{PATIENCE, chat_body};
use hearth::gateway::Books;
use hearth::gateway::store::RequestRow;
use hearth::telemetry::Metrics;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECTOR: usize = 512;

/// Something that was answered, and how long the record was then.
struct Answered {
    at: u64,
    what: What,
}

enum What {
    Row(String, u64),
    Made(String),
    Revoked(String),
}

type Answers = Arc<Mutex<Vec<Answered>>>;

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

async fn client(url: String, key: String, n: usize, log: PathBuf, answers: Answers, stop: Arc<AtomicBool>) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
    let mut n = n;
    // Fewer than an epoch of the audit chain has links: its secrets are not on the record.
    while !stop.load(Ordering::Relaxed) && answers.lock().expect("a lock").len() < 500 {
        n += 3;
        let stream = n.is_multiple_of(2);
        let options = stream.then(|| json!({ "include_usage": true }));
        let body = chat_body(&format!("/count {}", 2 + n % 9), json!({ "stream": stream, "stream_options": options }));
        let sent = client.post(format!("{url}/v1/chat/completions")).bearer_auth(&key).json(&body).send().await;
        let Ok(response) = sent else { return };
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let is_good = response.status() == 200;
        let Ok(text) = response.text().await else { return };
        let at = length(&log);
        let last = text.lines().rev().find_map(|line| {
            let chunk: Value = serde_json::from_str(line.strip_prefix("data: ").unwrap_or(line)).ok()?;
            chunk["usage"]["completion_tokens"].as_u64()
        });
        if let (true, Some(n_out)) = (is_good && (!stream || text.contains("data: [DONE]")), last) {
            answers.lock().expect("a lock").push(Answered { at, what: What::Row(id, n_out) });
        }
    }
}

/// A file as the disk may have it: what is sure, and what was done since.
#[derive(Default, Clone)]
struct File {
    sure: Vec<u8>,
    since: Vec<usize>,
}

fn write(file: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if file.len() < offset + data.len() {
        file.resize(offset + data.len(), 0);
    }
    file[offset..offset + data.len()].copy_from_slice(data);
}

impl File {
    fn apply(content: &mut Vec<u8>, done: &Done) {
        match done.op {
            b'w' => write(content, done.offset, &done.data),
            b't' => content.resize(done.offset, 0),
            _ => content.clear(),
        }
    }

    fn sync(&mut self, all: &[Done]) {
        for i in std::mem::take(&mut self.since) {
            Self::apply(&mut self.sure, &all[i]);
        }
    }

    /// After a crash: of what is not sure, some sectors, or only the first so many calls.
    fn crashed(&self, all: &[Done], rng: &mut StdRng) -> Vec<u8> {
        let mut content = self.sure.clone();
        let until = if rng.random_bool(0.5) { rng.random_range(0..=self.since.len()) } else { self.since.len() };
        let lost = [0.0, 0.05, 0.5, 0.95, 1.0][rng.random_range(0..5)];
        for i in &self.since[..until] {
            let done = &all[*i];
            if done.op != b'w' {
                if !rng.random_bool(lost) {
                    Self::apply(&mut content, done);
                }
                continue;
            }
            for (k, sector) in done.data.chunks(SECTOR).enumerate() {
                if !rng.random_bool(lost) {
                    write(&mut content, done.offset + k * SECTOR, sector);
                }
            }
        }
        content
    }
}

/// Opens what is left and looks for what was answered. Errors: what is missing.
async fn look(dir: &Path, answers: &[Answered], at: u64) -> Result<usize, String> {
    let opened = Books::open(books_config(dir), &Arc::new(Metrics::new()));
    let books = opened.map_err(|error| format!("the books can't be opened: {error}"))?;
    let found = rows(&books).await;
    let by_id: BTreeMap<&str, &RequestRow> = found.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut missing = Vec::new();
    if by_id.len() != found.len() {
        missing.push("a row is there twice".to_owned());
    }
    let faults = books.store().check().await.expect("it can be read");
    missing.extend(faults);
    let verified = books.store().verify(1).await.expect("it can be read");
    missing.extend(verified.fault.map(|fault| format!("link {}: {}", fault.seq, fault.reason)));
    let mut n = 0;
    for Answered { what, .. } in answers.iter().filter(|answered| answered.at <= at) {
        n += 1;
        match what {
            What::Row(id, n_out) => match by_id.get(id.as_str()) {
                Some(row) if row.out_tok == *n_out && row.status == 200 => {}
                other => missing.push(format!("{id} was answered, and its row is {other:?}")),
            },
            What::Made(key) if books.keyring().find(key, 0).is_none() => {
                let is_revoked = |it: &Answered| matches!(&it.what, What::Revoked(other) if other == key);
                // A revocation that was not answered yet may be there all the same.
                if !answers.iter().any(is_revoked) {
                    missing.push("a key that was made is gone".to_owned());
                }
            }
            What::Revoked(key) if books.keyring().find(key, 0).is_some() => {
                missing.push("a key that was revoked opens again".to_owned());
            }
            _ => {}
        }
    }
    books.close().await;
    if missing.is_empty() { Ok(n) } else { Err(missing.join("; ")) }
}

/// A folder in memory where there is one: thousands of them are opened.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// HEARTH_CRASHES sets how many images are looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_the_loss_of_power() {
    let Some(disk) = Disk::new() else { return };
    let n_crashes: usize = std::env::var("HEARTH_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let key = hearth(data, &["keys", "new", "--alias", "clients"]).expect("made with the server down");
    let base = fs::read(data.join("hearth.db")).expect("a database");
    let (log, answers) = (disk.log(), Answers::default());
    let before = disk.before(data, true);
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let folder = data.to_str().expect("text");
    let served = Served::through(&before, &[MODEL, "--data-dir", folder, "-np", "8", "--alias", "Scripted-1"]);
    let stop = Arc::new(AtomicBool::new(false));
    let one = |n| client(served.url.clone(), key.clone(), n, log.clone(), Arc::clone(&answers), Arc::clone(&stop));
    let clients: Vec<_> = (0..6).map(|n| tokio::spawn(one(n))).collect();
    let note = |what| answers.lock().expect("a lock").push(Answered { at: length(&log), what });
    for n in 0..4 {
        let made = hearth(data, &["keys", "new", "--alias", &format!("k{n}")]).expect("made with the server up");
        note(What::Made(made.clone()));
        if n % 2 == 1 {
            hearth(data, &["keys", "revoke", &made]).expect("revoked");
            note(What::Revoked(made));
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(Command::new("kill").args(["-9", &served.pid().to_string()]).status().expect("kill runs").success());
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client does not panic");
    }
    drop(served);
    let all = record(&fs::read(&log).expect("a record"));
    let answers = std::mem::take(&mut *answers.lock().expect("a lock"));
    assert!(answers.len() > 50 && all.iter().filter(|done| done.op == b's').count() > 50, "{}", all.len());
    let mut rng = StdRng::seed_from_u64(7);
    let mut points: Vec<usize> = (0..n_crashes).map(|_| rng.random_range(0..=all.len())).collect();
    points.sort_unstable();
    let (mut n_checked, mut n_lost, started) = (0, 0, Instant::now());
    // A disk that lies about syncs must be found out, or this test proves nothing.
    for is_honest in [true, false] {
        let mut files = [File { sure: base.clone(), since: Vec::new() }, File::default()];
        let mut next = 0;
        for (k, point) in points.iter().enumerate().filter(|(k, _)| is_honest || k % 5 == 0) {
            for (i, done) in all.iter().enumerate().take(*point).skip(next) {
                let Some(file) = files.get_mut(done.file) else { continue };
                match done.op {
                    b's' if is_honest => file.sync(&all),
                    b's' => {}
                    _ => file.since.push(i),
                }
            }
            next = next.max(*point);
            let dir = scratch();
            for secret in ["pepper", "audit.key", "master.key"] {
                fs::copy(data.join(secret), dir.path().join(secret)).expect("a secret");
            }
            for (file, name) in files.iter().zip(["hearth.db", "hearth.db-wal"]) {
                let mut rng = StdRng::seed_from_u64(k as u64 * 31 + 11);
                fs::write(dir.path().join(name), file.crashed(&all, &mut rng)).expect("a writable folder");
            }
            let at = point.checked_sub(1).map_or(0, |last| all[last].end);
            match (look(dir.path(), &answers, at).await, is_honest) {
                (Ok(n), true) => n_checked += n,
                (Err(what), true) => unreachable!("seed {k}, after {point} of {} calls: {what}", all.len()),
                (found, false) => n_lost += usize::from(found.is_err()),
            }
        }
    }
    eprintln!(
        "{n_crashes} crashes, {n_checked} answers found again in {:?}; {n_lost} losses of a lying disk",
        started.elapsed()
    );
    assert!(n_checked > n_crashes && n_lost > 0, "{n_checked} {n_lost}");
}
