//! Whether the time of a refusal tells anything of a key: wrong keys of several kinds in random order, over one connection to
//! the real binary, and Welch's t of each kind against keys that nobody has (Reparaz, Balasch, Verbauwhede 2017, "Dude, is my
//! code constant time?"). Alone on a machine, |t| stays below 4.5 where nothing is to be seen.
//!
//! Environment: `BENCH_SAMPLES` (of each kind, 100,000), `BENCH_HEARTH` (another binary).

#[path = "load/started.rs"]
mod started;

use hearth::gateway::Credential;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is seen as a difference. Source: the paper.
const LIMIT: f64 = 4.5;

const KINDS: [&str; 5] = [
    "nobody's",
    "nobody's, again",
    "a key's name, another secret",
    "a key's name, its secret but for the end",
    "a blocked key, as it is",
];
/// Keys of a kind.
const KEYS: usize = 64;

fn main() -> Outcome<()> {
    let n: usize = std::env::var("BENCH_SAMPLES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let dir = tempfile::tempdir()?;
    let kinds = keys(dir.path())?;
    std::fs::write(
        dir.path().join("hearth.toml"),
        "model = \"scripted\"\nport = 0\ndata_dir = \"books\"\nlog_level = \"error\"\nauth_fail_limit = 0\n",
    )?;
    let (mut child, address) = started::serve(dir.path(), &["--config", "hearth.toml"], Stdio::null())?;
    let measured = measure(TcpStream::connect(address)?, &kinds, n);
    // An error means that it is gone already.
    let _ = child.kill();
    child.wait()?;
    let mut samples = measured?;
    let mut all: Vec<f64> = samples.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    // The slowest tenth are interrupts.
    let most = all[all.len() / 10 * 9];
    for of in &mut samples {
        of.retain(|time| *time <= most);
    }
    let mut is_seen = false;
    for (name, of) in KINDS.iter().zip(&samples) {
        let t = welch(of, &samples[0]);
        is_seen |= t.abs() >= LIMIT;
        println!("{name:<42} {:>7} samples, mean {:>7.2} us, t {t:>6.2}", of.len(), mean(of).0);
    }
    if is_seen { Err(format!("|t| of {LIMIT} or more: the time of a refusal tells something").into()) } else { Ok(()) }
}

/// Microseconds of `n` refusals of each kind, in random order.
fn measure(stream: TcpStream, kinds: &[Vec<String>], n: usize) -> Outcome<Vec<Vec<f64>>> {
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut samples = vec![Vec::new(); kinds.len()];
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    while samples.iter().any(|of| of.len() < n) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let kind = (seed >> 20) as usize % kinds.len();
        let key = &kinds[kind][(seed >> 40) as usize % KEYS];
        let request = format!("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n");
        let start = Instant::now();
        stream.write_all(request.as_bytes())?;
        let status = answer(&mut answers)?;
        let time = start.elapsed();
        if status != 401 {
            return Err(format!("{status}, not 401, for a key of the kind: {}", KINDS[kind]).into());
        }
        samples[kind].push(time.as_secs_f64() * 1e6);
    }
    Ok(samples)
}

/// Reads an answer to its end; its status.
fn answer(from: &mut impl BufRead) -> Outcome<u16> {
    let (mut status, mut n_body) = (0, 0);
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest.split(' ').next().unwrap_or_default().parse()?;
        } else if let Some(length) = line.strip_prefix("content-length:") {
            n_body = length.trim().parse()?;
        } else if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; n_body];
    from.read_exact(&mut body)?;
    Ok(status)
}

/// Keys of each kind, for books that have `KEYS` keys and as many that are blocked.
fn keys(dir: &Path) -> Outcome<Vec<Vec<String>>> {
    let hearth = |args: &[&str]| -> Outcome<String> {
        let output = Command::new(started::hearth())
            .arg("keys")
            .args(args)
            .args(["--data-dir", "books"])
            .current_dir(dir)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let mut kinds = vec![Vec::new(); KINDS.len()];
    for _ in 0..KEYS {
        let (open, blocked) = (hearth(&["new"])?, hearth(&["new"])?);
        let parsed = |text: &str| Credential::parse(text).ok_or("a key that is none");
        hearth(&["block", parsed(&blocked)?.id()])?;
        let open = parsed(&open)?;
        let (head, last) = open.secret().split_at(open.secret().len() - 1);
        let other = if last == "A" { "B" } else { "A" };
        let of_kinds = [
            Credential::generate()?.reveal(),
            Credential::generate()?.reveal(),
            Credential::regenerate(open.id())?.reveal(),
            checked(&format!("sk-hearth-{}-{head}{other}", open.id())),
            blocked,
        ];
        for (kind, key) in kinds.iter_mut().zip(of_kinds) {
            kind.push(key);
        }
    }
    Ok(kinds)
}

/// With the check digits that a key ends with, so that it isn't refused as mistyped.
fn checked(key: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut n = crc32fast::hash(key.as_bytes());
    let mut digits = [0; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(n % 62) as usize];
        n /= 62;
    }
    digits.iter().fold(key.to_owned(), |key, digit| key + &char::from(*digit).to_string())
}

/// Mean and variance.
fn mean(of: &[f64]) -> (f64, f64) {
    let n = of.len() as f64;
    let mean = of.iter().sum::<f64>() / n;
    (mean, of.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0))
}

fn welch(a: &[f64], b: &[f64]) -> f64 {
    let ((mean_a, var_a), (mean_b, var_b)) = (mean(a), mean(b));
    let error = (var_a / a.len() as f64 + var_b / b.len() as f64).sqrt();
    if error > 0.0 { (mean_a - mean_b) / error } else { 0.0 }
}
