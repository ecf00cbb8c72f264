//! Fuzzing on a stable compiler: mutated inputs against a parser, in the unit tests of the room that has it.
//!
//! A target is a unit test that calls [`fuzz`] with a function of bytes. `cargo test` gives each about a second, always with
//! the same inputs; `make fuzz` gives each FUZZ_SECONDS, each time with others, and there a case must also stay below
//! [`CPU_MAX`] and the process below [`RSS_MAX`]. What a case may not do is panic, and what its target asserts. Targets with
//! sockets or processes are in tests/it/fuzz_tests and call [`fuzz_few`].
//!
//! # Design
//! No coverage is measured, which would need a nightly compiler or llama.cpp compiled anew: a case says in a number how it
//! came out (which words of ours an error has, say), and an input with a new outcome joins those that are mutated on. The
//! mutations know what they mutate: JSON by its values, text by its lines, bytes by their numbers; see [`mutate`].
//!
//! A crash of the whole process leaves its input under FUZZ_DIR; FUZZ_INPUT runs one again.

mod mutate;

pub use mutate::Shape;

use mutate::Mutator;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time on the CPU that one case may take.
const CPU_MAX: Duration = Duration::from_secs(1);
/// Memory that a target may add to the process, whose allocator keeps some of what those before it had.
const RSS_MAX: u64 = 512 << 20;
/// What a run without FUZZ_SECONDS does, whichever comes first.
const SHORT: Duration = Duration::from_secs(1);
const SHORT_CASES: u64 = 4000;
/// Of a run without FUZZ_SECONDS, however much else the machine does.
const SHORT_WALL: Duration = Duration::from_secs(3);
/// A case that takes longer never ends; the process does then.
const HANG: Duration = Duration::from_secs(240);
/// Inputs that are mutated on, bytes of one that joins them, and outcomes that are told apart.
const POOL_MAX: usize = 2048;
const POOL_BYTES_MAX: usize = 16 << 10;
const OUTCOMES_MAX: usize = 1 << 16;
/// Kinds of failures after which a run ends.
const FAILURES_MAX: usize = 8;

/// What is fuzzed.
pub struct Target<'a> {
    /// Of its folder in tests/fuzz/corpus too, where it has one.
    pub name: &'static str,
    /// Inputs to begin with, beside those of the corpus.
    pub seeds: Vec<Vec<u8>>,
    pub shape: Shape,
    /// Texts that mean something to the parser.
    pub words: &'a [&'a str],
}

/// A text as an outcome: its words, without the numbers and names that an input brings in.
pub fn outcome(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 2).take(8).for_each(|word| {
        word.hash(&mut hasher);
    });
    hasher.finish()
}

/// What stands in an input's first line, and the rest.
pub fn headed(input: &[u8]) -> (&str, &[u8]) {
    let at = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    (std::str::from_utf8(&input[..at]).unwrap_or_default(), &input[(at + 1).min(input.len())..])
}

/// Runs `case` with the target's inputs and with what mutation makes of them.
///
/// Panics where a case panicked, took too long or too much, with the file that holds its input.
pub fn fuzz(target: &Target, case: impl FnMut(&[u8]) -> u64) {
    fuzz_few(target, SHORT_CASES, case);
}

/// The same for cases that wait for others than this thread: a run without FUZZ_SECONDS has `n_cases`.
pub fn fuzz_few(target: &Target, n_cases: u64, mut case: impl FnMut(&[u8]) -> u64) {
    let setting = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    if setting("FUZZ_ONLY").is_some_and(|only| !only.split(',').any(|name| name == target.name)) {
        return;
    }
    if let Some(path) = setting("FUZZ_INPUT") {
        case(&std::fs::read(&path).expect("FUZZ_INPUT is a file"));
        return;
    }
    let long = setting("FUZZ_SECONDS").map(|text| Duration::from_secs(text.parse().expect("FUZZ_SECONDS is a number")));
    let seed = setting("FUZZ_SEED").map(|text| text.parse().expect("FUZZ_SEED is a number"));
    let seed = seed.unwrap_or(if long.is_some() { rand::random() } else { 1 });
    // Of this target and process alone: others end while it runs.
    let own = format!("hearth-fuzz-{}-{}", target.name, std::process::id());
    let place = setting("FUZZ_DIR").map_or_else(|| std::env::temp_dir().join(own), PathBuf::from);
    let mut run = Run::begin(target.name, place, long, seed);
    run.n_cases_max = n_cases;
    let mut mutator = Mutator::new(seed, target.shape, target.words);
    let mut pool = target.seeds.clone();
    pool.extend(corpus(target.name));
    assert!(!pool.is_empty(), "{}: nothing to begin with", target.name);
    let n_seeds = pool.len();
    let mut seen = HashSet::new();
    for input in &pool {
        seen.extend(run.case(input, &mut case));
    }
    while run.goes_on() {
        let input = mutator.mutated(&pool);
        let Some(outcome) = run.case(&input, &mut case) else { continue };
        if seen.len() < OUTCOMES_MAX && seen.insert(outcome) && input.len() <= POOL_BYTES_MAX {
            if pool.len() < POOL_MAX {
                pool.push(input);
            } else if n_seeds < pool.len() {
                let at = mutator.below(pool.len() - n_seeds) + n_seeds;
                pool[at] = input;
            }
        }
    }
    run.end(seen.len());
}

/// Runs `body` on a thread with a stack of so many bytes, as the parser has it outside of tests.
pub fn on_stack(n_bytes: usize, body: fn()) {
    let thread = std::thread::Builder::new().stack_size(n_bytes).spawn(body).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The committed inputs of a target.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus can be read")).collect()
}

/// One target's run: what it did and found.
struct Run {
    name: &'static str,
    place: PathBuf,
    /// The input of the case that runs, on disk: what kills the process is found there.
    current: PathBuf,
    long: Option<Duration>,
    seed: u64,
    began: Instant,
    cpu_began: Duration,
    rss_began: u64,
    n_cases: u64,
    /// Of a short run.
    n_cases_max: u64,
    slowest: Duration,
    failures: Vec<String>,
    watch: Arc<AtomicU64>,
}

impl Run {
    fn begin(name: &'static str, place: PathBuf, long: Option<Duration>, seed: u64) -> Self {
        std::fs::create_dir_all(&place).expect("a place for what is found");
        let current = place.join(format!("{name}-current-{}", std::process::id()));
        if long.is_some() {
            // The highest mark is this target's from here on.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        }
        let watch = Arc::new(AtomicU64::new(0));
        watch_over(Arc::clone(&watch), name, current.clone());
        let (began, cpu_began) = (Instant::now(), cpu_time());
        Self {
            name,
            place,
            current,
            long,
            seed,
            began,
            cpu_began,
            rss_began: status("VmRSS:"),
            n_cases: 0,
            n_cases_max: SHORT_CASES,
            slowest: Duration::ZERO,
            failures: Vec::new(),
            watch,
        }
    }

    fn goes_on(&self) -> bool {
        if self.failures.len() >= FAILURES_MAX {
            return false;
        }
        match self.long {
            Some(time) => self.began.elapsed() < time,
            None => {
                let is_short = cpu_time() - self.cpu_began < SHORT && self.began.elapsed() < SHORT_WALL;
                self.n_cases < self.n_cases_max && is_short
            }
        }
    }

    /// Most that the process had since the target began, without what it had then.
    fn peak_rss(&self) -> u64 {
        status("VmHWM:").saturating_sub(self.rss_began)
    }

    /// How the case came out; `None`: badly.
    fn case(&mut self, input: &[u8], case: &mut impl FnMut(&[u8]) -> u64) -> Option<u64> {
        std::fs::write(&self.current, input).expect("the input can be kept");
        self.n_cases += 1;
        self.watch.store(self.n_cases, Ordering::Relaxed);
        let (began, wall_began) = (cpu_time(), Instant::now());
        let outcome = catch_unwind(AssertUnwindSafe(|| case(input)));
        let took = cpu_time() - began;
        let is_slowest = took > self.slowest;
        self.slowest = self.slowest.max(took);
        if let Err(panic) = &outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            self.failed(input, text.unwrap_or("it panicked"));
            return None;
        }
        if self.long.is_some() {
            if is_slowest && took > CPU_MAX {
                self.failed(input, &format!("it took {took:?}"));
            }
            // Memory by the hundred megabytes takes its time too.
            if wall_began.elapsed() > Duration::from_millis(5) && self.peak_rss() > RSS_MAX {
                self.failed(input, &format!("{} MiB were in use", self.peak_rss() >> 20));
                let _ = std::fs::write("/proc/self/clear_refs", "5");
            }
        }
        outcome.ok()
    }

    fn failed(&mut self, input: &[u8], what: &str) {
        let path = self.place.join(format!("{}-{:016x}", self.name, outcome(what)));
        let shown = path.display().to_string();
        if self.failures.iter().any(|known| known.starts_with(&shown)) {
            return;
        }
        std::fs::write(&path, input).expect("the input can be kept");
        let what: String = what.chars().take(600).collect();
        let line = format!("{shown} ({} bytes): {what}", input.len());
        eprintln!("{}: {line}", self.name);
        self.failures.push(line);
    }

    fn end(self, n_outcomes: usize) {
        self.watch.store(u64::MAX, Ordering::Relaxed);
        let _ = std::fs::remove_file(&self.current);
        // Where nothing was found.
        let _ = std::fs::remove_dir(&self.place);
        let Self { name, n_cases, seed, slowest, .. } = &self;
        let (time, rss) = (self.began.elapsed().as_secs_f64(), self.peak_rss() >> 20);
        println!(
            "\nfuzz {name}: {n_cases} cases in {time:.1} s, {n_outcomes} outcomes, slowest {:.1} ms, {rss} MiB, seed {seed}",
            slowest.as_secs_f64() * 1e3
        );
        assert!(self.failures.is_empty(), "{name}, seed {seed}:\n  {}", self.failures.join("\n  "));
    }
}

/// Ends the process when a case doesn't end.
fn watch_over(watch: Arc<AtomicU64>, name: &'static str, current: PathBuf) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            match watch.load(Ordering::Relaxed) {
                u64::MAX => return,
                n if n != last => (last, since) = (n, Instant::now()),
                _ if since.elapsed() > HANG => {
                    eprintln!("fuzz {name}: {} never ends", current.display());
                    std::process::abort();
                }
                _ => {}
            }
        }
    });
}

/// Of this thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Bytes that a line of the process's status tells.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}
