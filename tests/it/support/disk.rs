//! A disk that fails on demand, and one whose every write is on record (see `disk.c`, preloaded into the server).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const OPEN: i32 = 1;
pub const WRITE: i32 = 2;
pub const SYNC: i32 = 4;
pub const READ: i32 = 8;
pub const TRUNCATE: i32 = 16;

pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`: there is no C compiler, or this is no Linux.
    pub fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/disk.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(dir.path().join("disk.so"))
            .arg(source)
            .args(["-ldl", "-lpthread"])
            .status();
        if !cfg!(target_os = "linux") || !built.is_ok_and(|status| status.success()) {
            eprintln!("skipped: nothing can be preloaded here");
            return None;
        }
        fs::write(dir.path().join("control"), [0; 20]).expect("a writable folder");
        Some(Self { dir })
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Words to begin a command with. `is_recorded`: its syncs reach the record and not the disk.
    pub fn before(&self, data: &Path, is_recorded: bool) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut words = vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", path("disk.so")),
            format!("HEARTH_DISK_DIR={}", data.display()),
            format!("HEARTH_DISK_CTL={}", path("control")),
        ];
        if is_recorded {
            words.push(format!("HEARTH_DISK_LOG={}", path("log")));
        }
        words
    }

    /// From now on: `skip` of these calls go well, then `times` fail.
    pub fn fail(&self, ops: i32, error: i32, skip: i32, times: i32) {
        let control = OpenOptions::new().write(true).open(self.dir.path().join("control")).expect("made above");
        let set = |numbers: [i32; 5]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
            control.write_all_at(&bytes, 0).expect("a small file");
        };
        set([0; 5]);
        set([ops, error, skip, times, 0]);
    }

    pub fn heal(&self) {
        self.fail(0, 0, 0, 0);
    }

    /// Calls that have failed.
    pub fn hits(&self) -> i32 {
        let bytes = fs::read(self.dir.path().join("control")).expect("made above");
        i32::from_ne_bytes(bytes[16..20].try_into().expect("four bytes"))
    }
}

/// What was done to a file.
#[derive(Debug)]
pub struct Done {
    pub op: u8,
    /// 0: the database, 1: its write-ahead log.
    pub file: usize,
    pub offset: usize,
    pub data: Vec<u8>,
    /// Bytes of the record up to its end.
    pub end: u64,
}

/// The whole record, in order.
pub fn record(bytes: &[u8]) -> Vec<Done> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 16) {
        let n = u32::from_le_bytes(head[4..8].try_into().expect("four bytes")) as usize;
        let offset = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes")) as usize;
        let Some(data) = bytes.get(at + 16..at + 16 + n) else { break };
        at += 16 + n;
        all.push(Done { op: head[0], file: head[1].into(), offset, data: data.to_vec(), end: at as u64 });
    }
    all
}
