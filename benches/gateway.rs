//! What governing a request costs: the real binary with a scripted engine, which computes nothing, asked at a steady rate by
//! keep-alive clients; bare, with a key and limits, and with the ledger at each durability. The settings take turns in one
//! run. T-P1 of the contract: what keys, limits and a `process` ledger add is p50 <= 0.3 ms, p99 <= 3 ms at 1,000 a second.
//!
//! With `BENCH_ROWS` the ledgers have so many rows before they begin, and the admin plane is asked for reports of them (T-P14:
//! seven days by model <= 100 ms of a million rows, <= 1 s of ten, commits as quick as without).
//!
//! Environment: `BENCH_RATE` (requests a second, default 1000), `BENCH_SECONDS` (of each turn, 8), `BENCH_ROUNDS` (2),
//! `BENCH_CLIENTS` (8), `BENCH_ONLY` (comma-separated names), `BENCH_ROWS` (0), `BENCH_BOOKS` (a folder where the books with these
//! rows are kept between runs), `BENCH_HEARTH` (another binary).

#[path = "load/rows.rs"]
mod rows;
#[path = "load/started.rs"]
mod started;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A way to run the server.
#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    has_key: bool,
    durability: Option<&'static str>,
}

const SETTINGS: [Setting; 4] = [
    Setting { name: "bare", has_key: false, durability: None },
    Setting { name: "limits", has_key: true, durability: None },
    Setting { name: "process", has_key: true, durability: Some("process") },
    Setting { name: "power", has_key: true, durability: Some("power") },
];

/// Every limit counts and none is met.
const LIMITS: &str = "[limits.default]\nrpm = 100000000\ntpm = 100000000000\nmax_parallel = 1000\n\
                      [limits.global]\nrpm = 100000000\n";

/// Books with rows in them, which each server gets a copy of, and the key that was made with them.
struct Before {
    books: PathBuf,
    key: String,
    _dir: Option<tempfile::TempDir>,
}

struct Load {
    rate: u32,
    seconds: u32,
    n_clients: u32,
}

/// Latencies of one setting, from sending to the last byte, in microseconds.
#[derive(Default)]
struct Taken {
    us: Vec<u32>,
    n_failed: usize,
    seconds: f64,
    /// Processor time of the server, per request.
    cpu_us: f64,
}

fn main() -> Outcome<()> {
    let number = |name: &str, default: u32| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let load = Load {
        rate: number("BENCH_RATE", 1000),
        seconds: number("BENCH_SECONDS", 8),
        n_clients: number("BENCH_CLIENTS", 8),
    };
    let rounds = number("BENCH_ROUNDS", 2);
    let only = env::var("BENCH_ONLY").unwrap_or_default();
    let mut all: Vec<(Setting, Taken)> = SETTINGS
        .iter()
        .filter(|setting| only.is_empty() || only.split(',').any(|name| name == setting.name))
        .map(|setting| (*setting, Taken::default()))
        .collect();
    println!("{} requests a second, {} clients, {rounds} turns of {} s each", load.rate, load.n_clients, load.seconds);
    let n_rows = u64::from(number("BENCH_ROWS", 0));
    let before = (n_rows > 0).then(|| before(n_rows)).transpose()?;
    for _ in 0..rounds {
        for (setting, taken) in &mut all {
            turn(setting, before.as_ref(), &load, taken)?;
        }
    }
    let base = all.first().map(|(_, taken)| (quantile(taken, 500), quantile(taken, 990))).unwrap_or_default();
    println!(
        "{:<9} {:>7} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>8} {:>7}",
        "", "rate", "p50 ms", "p90 ms", "p99 ms", "p99.9", "added p50", "added p99", "cpu us", "failed"
    );
    for (setting, taken) in &all {
        let at = |permille: usize| quantile(taken, permille);
        println!(
            "{:<9} {:>7.0} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>10.2} {:>10.2} {:>8.0} {:>7}",
            setting.name,
            taken.us.len() as f64 / taken.seconds,
            at(500),
            at(900),
            at(990),
            at(999),
            at(500) - base.0,
            at(990) - base.1,
            taken.cpu_us / f64::from(rounds),
            taken.n_failed
        );
    }
    Ok(())
}

/// Milliseconds, of the one that so many in a thousand are quicker than.
fn quantile(taken: &Taken, permille: usize) -> f64 {
    let mut us = taken.us.clone();
    us.sort_unstable();
    let idx = (us.len() * permille / 1000).min(us.len().saturating_sub(1));
    us.get(idx).map_or(0.0, |us| f64::from(*us) / 1000.0)
}

/// Books with a key in them, the key.
fn make_books(books: &Path) -> Outcome<String> {
    let made = Command::new(started::hearth())
        .args(["keys", "new", "--budget", "1000000/1mo", "--data-dir"])
        .arg(books)
        .current_dir(env::temp_dir())
        .output()?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into());
    }
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

fn before(n_rows: u64) -> Outcome<Before> {
    let kept = env::var_os("BENCH_BOOKS").map(PathBuf::from);
    let dir = kept.is_none().then(tempfile::tempdir).transpose()?;
    let books = kept.unwrap_or_else(|| dir.as_ref().map(|dir| dir.path().join("books")).unwrap_or_default());
    let note = books.join("bench.key");
    if let Ok(key) = fs::read_to_string(&note) {
        return Ok(Before { books, key, _dir: dir });
    }
    let key = make_books(&books)?;
    let started = Instant::now();
    rows::fill(&books.join("hearth.db"), n_rows)?;
    fs::write(&note, &key)?;
    println!("{n_rows} rows written in {:.0} s", started.elapsed().as_secs_f64());
    Ok(Before { books, key, _dir: dir })
}

struct Server {
    address: SocketAddr,
    key: Option<String>,
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(setting: &Setting, before: Option<&Before>) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let mut settings = "model = \"scripted:step_us=0,prompt_token_us=0\"\nport = 0\n".to_owned();
        let mut key = None;
        if setting.has_key && setting.durability.is_none() {
            settings += "api_key = \"bench\"\n";
            key = Some("bench".to_owned());
        }
        if let Some(durability) = setting.durability {
            let books = dir.path().join("books");
            key = Some(match before {
                Some(before) => {
                    rows::copy(&before.books, &books)?;
                    before.key.clone()
                }
                None => make_books(&books)?,
            });
            settings += &format!("data_dir = \"books\"\ndurability = \"{durability}\"\n");
        }
        if setting.has_key {
            settings += LIMITS;
        }
        fs::write(dir.path().join("hearth.toml"), settings)?;
        let (child, address) = started::serve(dir.path(), &["--in-process", "--config", "hearth.toml"], Stdio::null())?;
        Ok(Self { address, key, child, dir })
    }

    /// User and system time so far, in microseconds.
    fn cpu_us(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().filter_map(|idx| fields.get(*idx)?.parse::<f64>().ok()).sum();
        ticks * 10_000.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn turn(setting: &Setting, before: Option<&Before>, load: &Load, taken: &mut Taken) -> Outcome<()> {
    let server = Server::start(setting, before)?;
    let request = request(&server);
    // What the first requests alone pay for.
    let warm = Load { rate: 200, seconds: 1, n_clients: load.n_clients };
    drive(server.address, &request, &warm)?;
    let cpu = server.cpu_us();
    let started = Instant::now();
    let results = drive(server.address, &request, load)?;
    taken.seconds += started.elapsed().as_secs_f64();
    let n: usize = results.iter().map(|(us, _)| us.len()).sum();
    taken.cpu_us += (server.cpu_us() - cpu) / n.max(1) as f64;
    if before.is_some() && setting.durability.is_some() {
        println!("{}: reports of seven days", setting.name);
        rows::report(&server.dir.path().join("books"))?;
    }
    for (us, n_failed) in results {
        taken.us.extend(us);
        taken.n_failed += n_failed;
    }
    Ok(())
}

/// A chat of a kilobyte that is answered in two words.
fn request(server: &Server) -> Vec<u8> {
    let rules = "Answer in two words, and do not repeat what was asked. ".repeat(16);
    let body = format!(
        r#"{{"model":"scripted","messages":[{{"role":"system","content":"{rules}"}},{{"role":"user","content":"hi"}}],"max_tokens":32}}"#
    );
    let key = server.key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}Content-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    (head + &body).into_bytes()
}

/// Latencies and failures of each client.
fn drive(address: SocketAddr, request: &[u8], load: &Load) -> Outcome<Vec<(Vec<u32>, usize)>> {
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..load.n_clients).map(|n| scope.spawn(move || client(address, request, load, n))).collect();
        clients.into_iter().map(|client| client.join().map_err(|_| "a client panicked")?).collect()
    })
}

fn client(address: SocketAddr, request: &[u8], load: &Load, n: u32) -> Outcome<(Vec<u32>, usize)> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::with_capacity(16 << 10, stream);
    let every = Duration::from_secs(1) * load.n_clients / load.rate;
    let n_requests = load.rate * load.seconds / load.n_clients;
    // Clients are spread over the interval.
    let start = Instant::now() + every * n / load.n_clients;
    let (mut us, mut n_failed) = (Vec::with_capacity(n_requests as usize), 0);
    for i in 0..n_requests {
        thread::sleep((start + every * i).saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        reader.get_mut().write_all(request)?;
        n_failed += usize::from(answer(&mut reader)? != 200);
        us.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok((us, n_failed))
}

/// Reads a whole answer; its status.
fn answer(reader: &mut BufReader<TcpStream>) -> Outcome<u16> {
    let (mut line, mut status, mut n_bytes) = (String::new(), 0, 0);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err("the connection ended".into());
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
            status = rest.get(..3).unwrap_or_default().parse()?;
        }
        if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            n_bytes = value.trim().parse()?;
        }
    }
    let mut body = vec![0; n_bytes];
    reader.read_exact(&mut body)?;
    Ok(status)
}
