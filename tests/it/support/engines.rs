//! Engine processes that a test can find among all others, and signal.

use super::PATIENCE;
use hearth::engine::EngineMode;
use rustix::process::{Pid, Signal, kill_process};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Marks the engine processes of one server.
pub struct Marked(String);

impl Marked {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // A log directive of a target that does not exist.
        Self(format!("error,mark_{}_{}=error", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn mode(&self) -> EngineMode {
        EngineMode::Process {
            exe: env!("CARGO_BIN_EXE_hearth").into(),
            args: vec!["--log-level".to_owned(), self.0.clone()],
        }
    }

    pub fn pids(&self) -> Vec<Pid> {
        let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
        let is_marked = |entry: &std::fs::DirEntry| {
            let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            command.split('\0').any(|arg| arg == self.0)
        };
        let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw);
        processes.filter(is_marked).filter_map(pid).collect()
    }

    /// To the one process that there is.
    pub fn signal(&self, signal: Signal) {
        let pids = self.pids();
        assert_eq!(pids.len(), 1, "one engine process");
        kill_process(pids[0], signal).expect("it lives");
        if signal != Signal::SEGV {
            return;
        }
        // Rust's handler of the first one finds no stack overflow, and leaves the next to the system; two that are sent before
        // the first is taken are one.
        let stat = format!("/proc/{}/stat", pids[0].as_raw_nonzero());
        let is_dead = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        let since = Instant::now();
        while !is_dead() {
            assert!(since.elapsed() < PATIENCE, "it lives on");
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(1));
                if is_dead() {
                    return;
                }
            }
            // An error means that it has just gone.
            let _ = kill_process(pids[0], signal);
        }
    }
}
