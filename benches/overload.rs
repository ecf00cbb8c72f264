//! The real binary under more than it can do, with a scripted engine that computes nothing: what it still does, how soon it
//! says no, and how soon it is well again (T-P2 to T-P6 of the fault plan). Requests come at a steady rate
//! whatever the server does, each on a connection of its own, as from many clients.
//!
//! Environment: `BENCH_SECONDS` (of each load, default 10), `BENCH_ONLY` (comma-separated: idle, streams, overload, rate, waits),
//! `BENCH_HEARTH` (another binary).

#[path = "load/started.rs"]
mod started;

use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for an answer's next bytes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that the generator has open at once; one more is not sent and counted.
const OPEN_MAX: usize = 20_000;

struct Server {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(model: &str, flags: &[&str]) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let args = [&[model, "--port", "0", "--log-level", "error"], flags].concat();
        let (child, address) = started::serve(dir.path(), &args, Stdio::inherit())?;
        Ok(Self { child, address, _dir: dir })
    }

    async fn ready(&self) -> Outcome<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if get(self.address, "/readyz").await.is_ok_and(|status| status == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("never ready".into())
    }

    /// The front and its engine.
    fn processes(&self) -> Vec<u32> {
        let front = self.child.id();
        let tasks = std::fs::read_dir(format!("/proc/{front}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let engines: Vec<u32> = lists
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        std::iter::once(front).chain(engines).collect()
    }

    /// Seconds of processor time by now, of the front and of its engine.
    fn cpu(&self) -> Vec<f64> {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
            let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            (ticks(11) + ticks(12)) / 100.0
        };
        self.processes().into_iter().map(of).collect()
    }

    /// KiB of the front.
    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..200 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn get(address: SocketAddr, path: &str) -> Outcome<u16> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut text)).await??;
    status_of(&text)
}

fn status_of(answer: &[u8]) -> Outcome<u16> {
    let head = answer.get(9..12).ok_or("no head")?;
    Ok(std::str::from_utf8(head)?.parse()?)
}

/// One request, on a connection of its own.
async fn open(address: SocketAddr, prompt: &str, stream: bool) -> Outcome<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    // More than any of these scripts has: without a number it would be 16.
    let body = format!(r#"{{"prompt":"{prompt}","stream":{stream},"max_tokens":3000}}"#);
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// What came of one request.
struct Came {
    status: u16,
    took: Duration,
}

async fn whole(address: SocketAddr, prompt: String) -> Outcome<Came> {
    let since = Instant::now();
    let mut socket = open(address, &prompt, false).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await??;
    Ok(Came { status: status_of(&answer)?, took: since.elapsed() })
}

/// Sends `rate` requests a second for `time`, and waits for all of them.
async fn offer(address: SocketAddr, rate: f64, time: Duration, prompt: &str) -> (Vec<Came>, usize, f64) {
    let places = Arc::new(Semaphore::new(OPEN_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    let (since, mut n, mut n_lost) = (Instant::now(), 0u32, 0);
    while since.elapsed() < time {
        let due = since + Duration::from_secs_f64(f64::from(n) / rate);
        tokio::time::sleep_until(due.into()).await;
        n += 1;
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let prompt = prompt.to_owned();
                tasks.spawn(async move {
                    let came = whole(address, prompt).await;
                    drop(place);
                    came
                });
            }
            Err(_) => n_lost += 1,
        }
    }
    let seconds = since.elapsed().as_secs_f64();
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(Ok(came)) => all.push(came),
            _ => n_lost += 1,
        }
    }
    (all, n_lost, seconds)
}

fn percentile(mut times: Vec<Duration>, percent: usize) -> f64 {
    times.sort();
    times.get((times.len().saturating_sub(1)) * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

fn times(all: &[Came], status: u16) -> Vec<Duration> {
    all.iter().filter(|came| came.status == status).map(|came| came.took).collect()
}

/// T-P5: eight slots, answers of a tenth of a second, so about eighty a second; then twice, five and ten times as many.
async fn overload(time: Duration) -> Outcome<()> {
    const MAX_WAIT: Duration = Duration::from_secs(1);
    let server = Server::start("scripted:step_us=5000", &["--parallel", "8", "--queue", "64", "--max-wait", "1"])?;
    server.ready().await?;
    const PROMPT: &str = "/count 10";
    let base = {
        let mut base = Vec::new();
        for _ in 0..20 {
            base.push(whole(server.address, PROMPT.to_owned()).await?.took);
        }
        percentile(base, 50)
    };
    // The most that it does: as many at once as it has slots.
    let until = Instant::now() + time;
    let workers = (0..8).map(|_| async {
        let mut n = 0u32;
        while Instant::now() < until {
            n += u32::from(whole(server.address, PROMPT.to_owned()).await.is_ok_and(|came| came.status == 200));
        }
        n
    });
    let peak = f64::from(futures_util::future::join_all(workers).await.into_iter().sum::<u32>()) / time.as_secs_f64();
    println!("peak {peak:.1} answers/s, one alone takes {base:.0} ms; --queue 64 --max-wait 1");
    println!(
        "{:>8} {:>9} {:>9} {:>8} {:>10} {:>10} {:>11} {:>11} {:>6}",
        "offered", "answered", "of peak", "refused", "no p50 ms", "no p99 ms", "yes p50 ms", "yes p99 ms", "lost"
    );
    for times_over in [1.0, 2.0, 5.0, 10.0] {
        let (all, n_lost, seconds) = offer(server.address, peak * times_over, time, PROMPT).await;
        let (yes, no) = (times(&all, 200), times(&all, 503));
        let goodput = yes.len() as f64 / (seconds + MAX_WAIT.as_secs_f64().min(percentile(yes.clone(), 99) / 1000.0));
        println!(
            "{times_over:>7}x {goodput:>9.1} {:>9.2} {:>8} {:>10.2} {:>10.2} {:>11.0} {:>11.0} {:>6}",
            goodput / peak,
            no.len(),
            percentile(no.clone(), 50),
            percentile(no, 99),
            percentile(yes.clone(), 50),
            percentile(yes, 99),
            n_lost + all.iter().filter(|came| ![200, 503].contains(&came.status)).count()
        );
        let since = Instant::now();
        while whole(server.address, PROMPT.to_owned()).await?.took.as_secs_f64() * 1000.0 > base * 1.5 + 5.0 {
            if since.elapsed() > PATIENCE {
                return Err("it never recovers".into());
            }
        }
        println!("{:>8} back to the time of one alone after {:.0} ms", "", since.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}

/// T-P4: how soon it answers, what it holds while nobody asks, and how large it is.
async fn idle() -> Outcome<()> {
    const ROUNDS: usize = 9;
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hearth-demo.gguf");
    for (name, model, flags) in [
        ("scripted model", "scripted", &[][..]),
        ("scripted model, books", "scripted", &["--data-dir", "books"][..]),
        ("demo model, books", demo, &["--data-dir", "books"][..]),
    ] {
        let (mut starts, mut held) = (Vec::new(), 0.0f64);
        for _ in 0..ROUNDS {
            let since = Instant::now();
            let server = Server::start(model, flags)?;
            get(server.address, "/livez").await?;
            starts.push(since.elapsed());
            server.ready().await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            held = held.max(server.resident() / 1024.0);
        }
        let (median, worst) = (percentile(starts.clone(), 50), percentile(starts, 100));
        println!("{name}: answers after {median:.0} ms (worst {worst:.0}); the front holds {held:.1} MiB when idle");
    }
    let binary = started::hearth();
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("hearth");
    std::fs::copy(&binary, &copy)?;
    let mib = |path: &std::path::Path| std::fs::metadata(path).map_or(0.0, |file| file.len() as f64 / 1048576.0);
    let whole = mib(&copy);
    match Command::new("strip").arg(&copy).status() {
        Ok(status) if status.success() => {
            println!("binary: {:.1} MiB stripped, {whole:.1} MiB with its lines", mib(&copy))
        }
        _ => println!("binary: {whole:.1} MiB with its lines; there is no strip here"),
    }
    Ok(())
}

/// T-P3: a thousand streams of twenty tokens a second at once.
async fn streams(time: Duration) -> Outcome<()> {
    const STREAMS: usize = 1000;
    let flags = ["--workers", "4", "--parallel", "250", "--ctx-size", "1000000", "--max-connections", "5000"];
    let server = Server::start("scripted:step_us=50000", &flags)?;
    server.ready().await?;
    let before = server.resident();
    let connecting = (0..STREAMS).map(|_| open(server.address, "/forever", true));
    let sockets = futures_util::future::try_join_all(connecting).await?;
    let tasks: Vec<_> = sockets.into_iter().map(|socket| tokio::spawn(arrivals(socket, time))).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu, since) = (server.cpu(), Instant::now());
    tokio::time::sleep(time.saturating_sub(Duration::from_secs(3))).await;
    let seconds = since.elapsed().as_secs_f64();
    let used: Vec<f64> = server.cpu().iter().zip(&cpu).map(|(after, before)| (after - before) / seconds).collect();
    let resident = (server.resident() - before) / STREAMS as f64;
    let (mut gaps, mut n_events, mut n_open) = (Vec::new(), 0, 0);
    for task in tasks {
        let (n, own) = task.await?;
        n_events += n;
        n_open += usize::from(n > 0);
        gaps.extend(own);
    }
    let late = |percent: usize| percentile(gaps.clone(), percent) - 50.0;
    println!(
        "{n_open} of {STREAMS} streams at once: {:.0} events/s; a token later than its 50 ms: p50 {:.1}, p99 {:.1} ms; \
         cores: front {:.2}, engine {:.2}; {resident:.0} KiB of the front for each",
        n_events as f64 / time.as_secs_f64(),
        late(50),
        late(99),
        used.first().copied().unwrap_or(0.0),
        used.iter().skip(1).sum::<f64>()
    );
    Ok(())
}

/// Events of one stream within `time`, and the pauses between them, of its second half.
async fn arrivals(mut socket: TcpStream, time: Duration) -> (usize, Vec<Duration>) {
    let since = Instant::now();
    let (mut n, mut gaps, mut last) = (0, Vec::new(), None);
    let mut buffer = vec![0; 16 << 10];
    while let Some(left) = time.checked_sub(since.elapsed()) {
        let Ok(Ok(n_bytes @ 1..)) = tokio::time::timeout(left, socket.read(&mut buffer)).await else { break };
        let n_new = buffer[..n_bytes].windows(6).filter(|window| *window == b"data: ").count();
        if n_new == 0 {
            continue;
        }
        n += n_new;
        let now = Instant::now();
        if let Some(last) = last.replace(now)
            && since.elapsed() > time / 2
        {
            gaps.push(now.saturating_duration_since(last));
        }
    }
    (n, gaps)
}

/// T-P2: as many short answers as it gives, by the ledger's durability.
async fn rate(time: Duration) -> Outcome<()> {
    const CLIENTS: usize = 32;
    const KEY: &str = "sk-bench-0123456789";
    for durability in [None, Some("process"), Some("power")] {
        let mut flags = vec!["--parallel", "64"];
        if let Some(durability) = durability {
            // A key of its own, which has no record, and rows all the same.
            flags.extend(["--data-dir", "books", "--api-key", KEY, "--durability", durability]);
        }
        let server = Server::start("scripted", &flags)?;
        server.ready().await?;
        let until = Instant::now() + time;
        let address = server.address;
        let clients = (0..CLIENTS).map(|_| {
            tokio::spawn(async move {
                let (mut n, mut took) = (0usize, Vec::new());
                let mut socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                let body = r#"{"prompt":"hello","max_tokens":5}"#;
                let request = format!(
                    "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
                     Authorization: Bearer {KEY}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let mut buffer = vec![0; 16 << 10];
                while Instant::now() < until {
                    let since = Instant::now();
                    socket.write_all(request.as_bytes()).await?;
                    let mut have = 0;
                    // The body is one object, and its end is the answer's.
                    while have == 0 || buffer[have - 1] != b'}' {
                        let n_bytes = socket.read(&mut buffer[have..]).await?;
                        if n_bytes == 0 {
                            return Err("it hung up".into());
                        }
                        have += n_bytes;
                    }
                    n += usize::from(status_of(&buffer)? == 200);
                    took.push(since.elapsed());
                }
                Outcome::Ok((n, took))
            })
        });
        let (mut n, mut took) = (0, Vec::new());
        for client in futures_util::future::join_all(clients).await {
            let (own, times) = client??;
            n += own;
            took.extend(times);
        }
        let what = durability.unwrap_or("no ledger");
        println!(
            "{what}: {:.0} answers/s of {CLIENTS} clients, p50 {:.1}, p99 {:.1} ms",
            n as f64 / time.as_secs_f64(),
            percentile(took.clone(), 50),
            percentile(took, 99)
        );
    }
    Ok(())
}

/// T-P6: how long requests were told to wait, and how soon a place was theirs: 24 requests come to four slots, and each
/// further one asks with a patience that is too short, so that it is told the wait at once.
async fn waits(_: Duration) -> Outcome<()> {
    let server = Server::start("scripted:step_us=10000", &["--parallel", "4"])?;
    server.ready().await?;
    let address = server.address;
    // It learns how long an answer takes: 1.5 s.
    let first = (0..4).map(|_| whole(address, "/count 65".to_owned()));
    futures_util::future::try_join_all(first).await?;
    let (mut errors, mut n_right) = (Vec::new(), 0);
    const ROUNDS: usize = 3;
    for _ in 0..ROUNDS {
        let running: Vec<_> = (0..12).map(|_| tokio::spawn(whole(address, "/count 65".to_owned()))).collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let told = told_wait(address).await?;
        let since = Instant::now();
        // A stream says when it has its slot: its first token.
        let mut socket = open(address, "x", true).await?;
        let mut seen = Vec::new();
        while !seen.windows(8).any(|window| window == b"\"text\":\"") {
            let mut buffer = [0; 4096];
            let n = socket.read(&mut buffer).await?;
            if n == 0 {
                return Err("no token".into());
            }
            seen.extend_from_slice(&buffer[..n]);
        }
        let took = since.elapsed();
        errors.push((told.as_secs_f64() - took.as_secs_f64()).abs() / took.as_secs_f64() * 100.0);
        // Whoever comes back after what it was told is let in.
        n_right += usize::from(told + Duration::from_secs(1) >= took);
        println!("told {:.1} s, waited {:.1} s", told.as_secs_f64(), took.as_secs_f64());
        for task in running {
            task.await??;
        }
    }
    errors.sort_by(f64::total_cmp);
    println!("median error {:.0} %, {n_right} of {ROUNDS} would be let in within a second of it", errors[ROUNDS / 2]);
    Ok(())
}

/// `Retry-After` of a request that waits for no slot.
async fn told_wait(address: SocketAddr) -> Outcome<Duration> {
    let mut socket = TcpStream::connect(address).await?;
    let body = r#"{"prompt":"x"}"#;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         x-request-timeout-ms: 1\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let line = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).ok_or("no Retry-After")?;
    Ok(Duration::from_secs(line.trim().parse()?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let seconds = env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let (time, only) = (Duration::from_secs(seconds), env::var("BENCH_ONLY").unwrap_or_default());
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|one| one == name);
    if wanted("idle") {
        idle().await?;
    }
    if wanted("rate") {
        rate(time).await?;
    }
    if wanted("streams") {
        streams(time).await?;
    }
    if wanted("overload") {
        overload(time).await?;
    }
    if wanted("waits") {
        waits(time).await?;
    }
    Ok(())
}
