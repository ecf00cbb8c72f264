//! A file elsewhere that has the checkpoints' lines: against a chain that was cut, or made anew by whoever has its secrets.

use super::StoreError;
use super::chain::{Checkpoint, line};
use rusqlite::Connection;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Of the file's end, where its last line is.
const TAIL_BYTES: u64 = 8192;

pub(super) struct Witness {
    path: PathBuf,
    file: File,
}

impl Witness {
    /// Lines that are missing, because the process died before it wrote them, are written now.
    pub(super) fn open(path: PathBuf, conn: &Connection) -> Result<Self, StoreError> {
        let opened = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path);
        let io = |error| StoreError::Io { path: path.clone(), error };
        let mut file = opened.map_err(io)?;
        let (last, is_whole) = last_seq(&mut file).map_err(io)?;
        if !is_whole {
            file.write_all(b"\n").map_err(io)?;
        }
        let mut statement = conn.prepare(
            "SELECT c.*, e.public FROM checkpoint c JOIN epoch e ON e.n = c.epoch WHERE c.seq > ?1 ORDER BY c.seq",
        )?;
        let mut rows = statement.query([last])?;
        while let Some(row) = rows.next()? {
            let checkpoint = Checkpoint {
                epoch: row.get("epoch")?,
                seq: row.get("seq")?,
                ts: row.get("ts")?,
                head: row.get("head")?,
                next: row.get("next")?,
            };
            let (public, signature): (Vec<u8>, Vec<u8>) = (row.get("public")?, row.get("sig")?);
            writeln!(file, "{}", line(&checkpoint, &public, &signature)).map_err(io)?;
        }
        file.sync_data().map_err(io)?;
        Ok(Self { path, file })
    }

    /// What can't be written now is written at the next start; the log has it too.
    pub(super) fn tell(&mut self, line: &str) {
        // In one call, so that a line is whole or was cut by a crash, and then the next start ends it.
        let text = format!("{line}\n");
        if let Err(error) = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()) {
            tracing::error!(%error, "the audit witness {} can't be written", self.path.display());
        }
    }
}

/// The link of the last line that can be read, and whether the file ends with a whole line.
fn last_seq(file: &mut File) -> std::io::Result<(i64, bool)> {
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let seq = |line: &str| serde_json::from_str::<Value>(line).ok()?["seq"].as_i64();
    Ok((text.lines().rev().find_map(seq).unwrap_or_default(), text.is_empty() || text.ends_with('\n')))
}
