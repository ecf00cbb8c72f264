//! T-P11: the real binary for a while under a mixed load: streams and whole answers, the same and other questions, clients that
//! leave in the middle, an engine that is killed, settings that are read anew. What it holds must not grow, and what its
//! ledger says must be what clients were told, request by request.
//!
//! Environment: `BENCH_SECONDS` (default 20), `BENCH_RATE` (requests a second, 200), `BENCH_HEARTH` (another binary).

#[path = "load/started.rs"]
mod started;

use futures_util::StreamExt;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(60);
/// One client in so many leaves in the middle of a stream.
const LEAVES: u64 = 20;
/// An engine that dies five times in ten minutes stays down.
const KILLS_MAX: u32 = 4;
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// Idle connections and threads are gone by then.
const REST: Duration = Duration::from_secs(12);

/// What became of a request, as its client saw it.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Tokens of the prompt and of the answer.
    Whole(i64, i64),
    Left,
    /// Refused, or broken off by the engine's end.
    Failed(u16),
}

type Ends = Arc<Mutex<BTreeMap<String, End>>>;

struct Server {
    child: Child,
    url: String,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Outcome<(Self, Vec<String>)> {
        let dir = tempfile::tempdir()?;
        let mut keys = Vec::new();
        for _ in 0..3 {
            let made = Command::new(started::hearth())
                .args(["keys", "new", "--data-dir"])
                .arg(dir.path().join("books"))
                .current_dir(dir.path())
                .output()?;
            keys.push(String::from_utf8(made.stdout)?.trim().to_owned());
        }
        settings(dir.path(), 0)?;
        let (child, address) = started::serve(dir.path(), &["--config", "hearth.toml"], Stdio::null())?;
        Ok((Self { child, url: format!("http://{address}"), dir }, keys))
    }

    fn signal(&self, name: &str) -> Outcome<()> {
        Command::new("kill").args([name, &self.child.id().to_string()]).status()?;
        Ok(())
    }

    fn engine(&self) -> Option<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?.flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).next()
    }

    /// Of the front: MiB that are its own, MiB of files (the executable's pages, which come in as they are used), open files,
    /// threads.
    fn held(&self) -> [f64; 4] {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let n_files = fs::read_dir(proc.join("fd")).map_or(0, |files| files.count());
        [number("RssAnon:") / 1024.0, number("RssFile:") / 1024.0, n_files as f64, number("Threads:")]
    }

    async fn ready(&self, client: &reqwest::Client) -> Outcome<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if client.get(format!("{}/readyz", self.url)).send().await.is_ok_and(|answer| answer.status() == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("never ready".into())
    }

    /// Ends it as an operator does.
    fn stop(mut self) -> Outcome<tempfile::TempDir> {
        self.signal("-TERM")?;
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                return Err("it does not end".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // What is left of it must not be removed with the process.
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir()?);
        Ok(dir)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `n`-th version of the settings.
fn settings(dir: &Path, n: u32) -> Outcome<()> {
    let text = format!(
        "model = \"scripted:step_us=300,prompt_token_us=2\"\nport = 0\nparallel = 16\ndata_dir = \"books\"\ncache = true\n\
         cache_bytes = \"4MiB\"\ncache_persist = true\nlog_level = \"error\"\n[limits.default]\nrpm = {}\n",
        10_000_000 + n
    );
    Ok(fs::write(dir.join("hearth.toml"), text)?)
}

/// One request, the `n`-th.
async fn ask(client: reqwest::Client, url: String, key: String, n: u64, ends: Ends) {
    let stream = n.is_multiple_of(2);
    // One in ten is a question that was asked before; the others are their own, so that none is two crashes' witness.
    let text = if n % 10 == 3 { format!("/count {}", 5 + n % 7) } else { format!("say {n} {}", "word ".repeat(20)) };
    let mut body = json!({
        "model": "default", "messages": [{ "role": "user", "content": text }], "stream": stream, "temperature": 0,
        "max_tokens": 40,
    });
    if stream {
        body["stream_options"] = json!({ "include_usage": true });
    }
    let sent = client.post(format!("{url}/v1/chat/completions")).bearer_auth(key).json(&body).send().await;
    let Ok(answer) = sent else { return };
    let name = |name: &str| answer.headers().get(name).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let (id, status) = (name("x-request-id"), answer.status().as_u16());
    let note = |end| drop(ends.lock().map(|mut ends| ends.insert(id.clone(), end)));
    if status != 200 {
        return note(End::Failed(status));
    }
    if stream && n % LEAVES == 4 {
        let mut stream = answer.bytes_stream();
        let _ = stream.next().await;
        return note(End::Left);
    }
    let Ok(text) = answer.text().await else { return note(End::Failed(0)) };
    let usage = |text: &str| {
        let usage = serde_json::from_str::<Value>(text).ok()?["usage"].clone();
        Some((usage["prompt_tokens"].as_i64()?, usage["completion_tokens"].as_i64()?))
    };
    let told = match stream {
        true if !text.trim_end().ends_with("data: [DONE]") => None,
        true => text.lines().rev().find_map(|line| usage(line.strip_prefix("data: ")?)),
        false => usage(&text),
    };
    note(told.map_or(End::Failed(status), |(prompt, answer)| End::Whole(prompt, answer)));
}

/// Per ten minutes, by least squares over one sample a second.
fn slope(samples: &[f64]) -> f64 {
    let n = samples.len() as f64;
    let (mean_x, mean_y) = ((n - 1.0) / 2.0, samples.iter().sum::<f64>() / n);
    let pairs = || samples.iter().enumerate().map(|(x, y)| (x as f64 - mean_x, y - mean_y));
    let (xy, xx) = pairs().fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + x * y, xx + x * x));
    if xx == 0.0 { 0.0 } else { xy / xx * 600.0 }
}

/// What the ledger says of the requests that clients know of.
fn compare(database: &Path, ends: &BTreeMap<String, End>) -> Outcome<()> {
    let conn = Connection::open(database)?;
    let mut statement = conn.prepare("SELECT id, in_tok, out_tok FROM request")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    let rows: BTreeMap<String, (i64, i64)> = rows.collect::<Result<_, _>>()?;
    let (mut n_missing, mut n_other, mut told, mut booked) = (0, 0, (0, 0), (0, 0));
    for (id, end) in ends {
        let Some(row) = rows.get(id) else {
            n_missing += 1;
            continue;
        };
        if let End::Whole(prompt, answer) = end {
            told = (told.0 + prompt, told.1 + answer);
            booked = (booked.0 + row.0, booked.1 + row.1);
            n_other += usize::from(*row != (*prompt, *answer));
        }
    }
    println!(
        "ledger: {} rows; without one {n_missing}; whole answers: {told:?} tokens told, {booked:?} booked, {n_other} requests \
         differ",
        rows.len()
    );
    let open: i64 = conn.query_row("SELECT count(*) FROM inflight", [], |row| row.get(0))?;
    if n_missing + n_other > 0 || told != booked || open != 0 {
        return Err(format!("the ledger is not what clients were told ({open} left open)").into());
    }
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Outcome<()> {
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (time, rate) = (Duration::from_secs(number("BENCH_SECONDS", 20)), number("BENCH_RATE", 200));
    let (server, keys) = Server::start()?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    server.ready(&client).await?;
    let ends = Ends::default();
    let mut tasks = tokio::task::JoinSet::new();
    let (mut samples, mut n_kills, mut n_reloads) = (Vec::new(), 0, 0);
    let kills = KILLS_MAX.min(u32::try_from(time.as_secs() / 5)?);
    let idle = server.held();
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    let mut n = 0;
    while started.elapsed() < time {
        tick.tick().await;
        n += 1;
        let key = keys[usize::try_from(n)? % keys.len()].clone();
        tasks.spawn(ask(client.clone(), server.url.clone(), key, n, Arc::clone(&ends)));
        while tasks.try_join_next().is_some() {}
        let elapsed = started.elapsed();
        if elapsed.as_secs() as usize > samples.len() {
            samples.push(server.held());
        }
        if elapsed > time * (n_kills + 1) / (kills + 1) && n_kills < kills {
            n_kills += 1;
            if let Some(pid) = server.engine() {
                Command::new("kill").args(["-9", &pid.to_string()]).status()?;
            }
        }
        if elapsed > RELOAD_EVERY * (n_reloads + 1) {
            n_reloads += 1;
            settings(server.dir.path(), n_reloads)?;
            server.signal("-HUP")?;
        }
    }
    while tasks.join_next().await.is_some() {}
    drop(client);
    tokio::time::sleep(REST).await;
    let after = server.held();
    let ends = std::mem::take(&mut *ends.lock().map_err(|_| "a client panicked")?);
    let count = |is: fn(&End) -> bool| ends.values().filter(|end| is(end)).count();
    println!(
        "{n} requests in {} s, {n_kills} kills, {n_reloads} reloads: {} whole, {} left by their clients, {} refused or broken off, \
         {} without an answer",
        time.as_secs(),
        count(|end| matches!(end, End::Whole(..))),
        count(|end| *end == End::Left),
        count(|end| matches!(end, End::Failed(_))),
        usize::try_from(n)? - ends.len()
    );
    let tenths: Vec<String> =
        samples.chunks((samples.len() / 10).max(1)).map(|part| format!("{:.1}", part[part.len() - 1][0])).collect();
    println!("resident MiB of its own, tenth by tenth: {}", tenths.join(" "));
    let warm = &samples[samples.len() / 3..];
    for (idx, name) in
        ["resident MiB of its own", "resident MiB of files", "open files", "threads"].into_iter().enumerate()
    {
        let of: Vec<f64> = warm.iter().map(|sample| sample[idx]).collect();
        println!(
            "{name}: idle before {:.0}, idle after {:.0}; under load after a third of the time {:.1}, at the end {:.1}, slope \
             {:+.2} in 10 minutes",
            idle[idx],
            after[idx],
            of.first().copied().unwrap_or(0.0),
            of.last().copied().unwrap_or(0.0),
            slope(&of)
        );
    }
    let dir = server.stop()?;
    compare(&dir.path().join("books/hearth.db"), &ends)
}
