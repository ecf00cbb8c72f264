//! Which file this is: a digest of all of it, and a cheap fingerprint of its header.

use super::{Gguf, ModelError, ModelFile};
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes read at once; large enough that hashing, not system calls, takes the time.
const CHUNK_BYTES: usize = 1 << 20;

/// SHA-256 of a whole file, in lower-case hex. `on_bytes` is told after each chunk how many bytes are done.
pub fn sha256(path: &Path, mut on_bytes: impl FnMut(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut n_done = 0;
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&chunk[..n]);
        n_done += n as u64;
        on_bytes(n_done);
    }
}

/// The files of a model that are what the operator pinned them to be, as they lay on disk then.
#[derive(Debug)]
pub struct Pinned(Vec<(PathBuf, Mark)>);

/// Why a model is not the one that was pinned. Files are named without their folders: clients read this too.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{file}: its SHA-256 is {found}, and {expected} is pinned (--sha256): this is another file")]
    Other { file: String, found: String, expected: String },
    #[error("{file}: the model has {n_files} files, and {n_pinned} digests are pinned (--sha256)")]
    Count { file: String, n_files: usize, n_pinned: usize },
    #[error("{file} changed between the look at its digest and the end of its load")]
    Changed { file: String },
    #[error("{file}: its digest can't be taken: {error}")]
    Io { file: String, error: io::Error },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What changes with a file's content or with the file itself. The time is that of the last change of the inode, which
/// nobody can set.
#[derive(Debug, PartialEq, Eq)]
struct Mark(u64, [u64; 4]);

impl Mark {
    #[cfg(unix)]
    fn of(file: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let (seconds, nanos) = (file.ctime().cast_unsigned(), file.ctime_nsec().cast_unsigned());
        Self(file.len(), [file.dev(), file.ino(), seconds, nanos])
    }

    #[cfg(not(unix))]
    fn of(file: &Metadata) -> Self {
        let changed = file.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let changed = changed.unwrap_or_default();
        Self(file.len(), [0, 0, changed.as_secs(), changed.subsec_nanos().into()])
    }
}

impl Pinned {
    /// Compares the digests of the model at `path`, and of its further files when it is split, with `expected`: lower-case
    /// hex, one for each file. Reads all of them; where none is expected, nothing is pinned, and nothing is read.
    pub fn check(path: &Path, expected: &[String]) -> Result<Self, PinError> {
        if expected.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let paths = ModelFile::open(path)?.paths();
        if paths.len() != expected.len() {
            let (n_files, n_pinned) = (paths.len(), expected.len());
            return Err(PinError::Count { file: name(path), n_files, n_pinned });
        }
        let mut files = Vec::with_capacity(paths.len());
        for (path, expected) in paths.into_iter().zip(expected) {
            let refuse = |error| PinError::Io { file: name(&path), error };
            let mark = Mark::of(&std::fs::metadata(&path).map_err(refuse)?);
            let found = sha256(&path, |_| {}).map_err(refuse)?;
            if found != *expected {
                return Err(PinError::Other { file: name(&path), found, expected: expected.clone() });
            }
            files.push((path, mark));
        }
        Ok(Self(files))
    }

    /// To be asked once the model is loaded: what was loaded is what was looked at.
    pub fn check_unchanged(&self) -> Result<(), PinError> {
        for (path, mark) in &self.0 {
            let now = std::fs::metadata(path).map_err(|error| PinError::Io { file: name(path), error })?;
            if Mark::of(&now) != *mark {
                return Err(PinError::Changed { file: name(path) });
            }
        }
        Ok(())
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Tells files apart without reading their weights: SHA-256 over the size and the header, the first 128 bits in hex.
/// Two quantisations of one model differ in it; a changed weight alone does not show.
pub fn fingerprint(path: &Path, gguf: &Gguf) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(gguf.file_bytes.to_le_bytes());
    // `data_offset` is at most the bound that the reader puts on headers.
    io::copy(&mut File::open(path)?.take(gguf.data_offset), &mut HashWriter(&mut hasher))?;
    Ok(hex(&hasher.finalize()[..16]))
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_digest() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").expect("a writable folder");
        let mut seen = 0;
        let digest = sha256(&path, |n| seen = n).expect("a readable file");
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_model_that_is_another_or_changes_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("m.gguf");
        let tiny = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name);
        std::fs::copy(tiny("tiny-llama.gguf"), &path).expect("a writable folder");
        let digest = sha256(&path, |_| {}).expect("a readable file");
        let pinned = Pinned::check(&path, std::slice::from_ref(&digest)).expect("it is the one");
        pinned.check_unchanged().expect("nobody has touched it");
        let refusal = |expected: &[String]| Pinned::check(&path, expected).expect_err("another").to_string();
        let other = "0".repeat(64);
        let text = refusal(std::slice::from_ref(&other));
        assert!(text.starts_with("m.gguf: ") && text.contains(&digest) && text.contains(&other), "{text}");
        let text = refusal(&[digest.clone(), other]);
        assert!(text.contains("has 1 files, and 2 digests"), "{text}");
        // The same bytes in another file: between two looks it might have been any.
        let copy = dir.path().join("copy.gguf");
        std::fs::copy(&path, &copy).expect("a writable folder");
        std::fs::rename(&copy, &path).expect("a writable folder");
        assert!(pinned.check_unchanged().expect_err("changed").to_string().contains("m.gguf changed"));
    }
}
