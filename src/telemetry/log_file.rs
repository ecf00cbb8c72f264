//! A log in a file that does not grow without end: begun anew each day (UTC) and whenever it is too large, the older ones
//! beside it as `FILE.1` (the newest) to `FILE.N`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing_subscriber::fmt::MakeWriter;

const DAY_S: u64 = 86_400;

/// **Bound:** `keep` + 1 files of `bytes_max` and one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFileConfig {
    pub path: PathBuf,
    pub bytes_max: u64,
    /// Older files.
    pub keep: u32,
}

#[derive(Clone)]
pub(super) struct LogFile(Arc<Mutex<Open>>);

struct Open {
    config: LogFileConfig,
    file: File,
    n_bytes: u64,
    day: u64,
}

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / DAY_S)
}

fn open(path: &Path) -> io::Result<(File, u64, u64)> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / DAY_S);
    Ok((file, metadata.len(), changed))
}

impl LogFile {
    /// Goes on with the file that is there. Errors: it can't be written.
    pub(super) fn open(config: LogFileConfig) -> io::Result<Self> {
        let (file, n_bytes, changed) = open(&config.path)?;
        let day = if n_bytes == 0 { today() } else { changed };
        Ok(Self(Arc::new(Mutex::new(Open { config, file, n_bytes, day }))))
    }
}

impl Open {
    fn turn(&mut self, today: u64) -> io::Result<()> {
        let name = |n: u32| {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.config.keep).rev() {
            // One that isn't there yet.
            let _ = std::fs::rename(name(n), name(n + 1));
        }
        match self.config.keep {
            0 => std::fs::remove_file(&self.config.path)?,
            _ => std::fs::rename(&self.config.path, name(1))?,
        }
        (self.file, self.n_bytes, _) = open(&self.config.path)?;
        self.day = today;
        Ok(())
    }
}

/// A line is written whole, in one piece.
impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let today = today();
        let is_full = open.n_bytes > 0 && open.n_bytes + line.len() as u64 > open.config.bytes_max;
        // Where it can't be begun anew, the old one goes on.
        if (is_full || (open.day != today && open.n_bytes > 0)) && open.turn(today).is_err() {
            open.day = today;
        }
        open.file.write_all(line)?;
        open.n_bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_turn_by_size_and_day_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("log");
        let config = LogFileConfig { path: path.clone(), bytes_max: 10, keep: 2 };
        let log = LogFile::open(config.clone()).expect("it opens");
        let write = |text: &str| (&log).write_all(text.as_bytes()).expect("it writes");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        for n in 0..5 {
            write(&format!("line {n}\n"));
        }
        assert_eq!(
            (read("log"), read("log.1"), read("log.2")),
            ("line 4\n".into(), "line 3\n".into(), "line 2\n".into())
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 3);
        write("a line that is longer than a file may be\n");
        assert_eq!(read("log.1"), "line 4\n", "a long line has a file of its own");
        // Yesterday's is put aside at the first line of today.
        let log = LogFile::open(LogFileConfig { bytes_max: 1000, ..config }).expect("it goes on");
        log.0.lock().expect("no panic").day -= 1;
        (&log).write_all(b"today\n").expect("it writes");
        assert!(read("log") == "today\n" && read("log.1").starts_with("a line"));
    }
}
