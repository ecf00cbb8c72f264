//! Which file this is: a digest of all of it, and a cheap fingerprint of its header.

use super::{Gguf, ModelError, ModelFile};
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// A model whose files are what the operator pinned them to be, as they lay on disk then.
///
/// What is loaded is what was looked at, unless somebody who may write in these folders puts others in place of a whole
/// folder while it is loaded, and the old ones back; and what a running engine computes with, unless somebody writes into the
/// files later, which are mapped and not read again (but with `--mmap false`). So they belong to the operator, as the
/// executable does.
#[derive(Debug)]
pub struct Pinned {
    path: PathBuf,
    files: Vec<(PathBuf, Found)>,
}

/// What is found under a path: itself, and where it is a link, what that leads to.
type Found = (Mark, Mark);

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

/// What changes with a file's content or with the file itself: its size, which inode of which device it is, and its times,
/// that of the inode's last change among them, which nobody can set and which renaming changes, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    n_bytes: u64,
    inode: [u64; 2],
    modified: Option<SystemTime>,
    changed: [i64; 2],
}

impl Mark {
    #[cfg(unix)]
    pub fn of(file: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            n_bytes: file.len(),
            inode: [file.dev(), file.ino()],
            modified: file.modified().ok(),
            changed: [file.ctime(), file.ctime_nsec()],
        }
    }

    #[cfg(not(unix))]
    pub fn of(file: &Metadata) -> Self {
        Self { n_bytes: file.len(), inode: [0; 2], modified: file.modified().ok(), changed: [0; 2] }
    }

    /// What of it is the same at the next start, as text: without the device, whose number may be another once its volume
    /// was mounted again.
    pub fn lasting(&self) -> String {
        let Self { n_bytes, inode: [_device, inode], modified, changed } = self;
        format!("{n_bytes} {inode} {modified:?} {changed:?}")
    }
}

fn look(path: &Path) -> io::Result<Found> {
    Ok((Mark::of(&std::fs::symlink_metadata(path)?), Mark::of(&std::fs::metadata(path)?)))
}

/// `path` with no links in it. Of a split model only the folder is: its files find each other by their names, which those
/// that they are links to need not have.
fn without_links(path: &Path, is_split: bool) -> io::Result<PathBuf> {
    match (is_split, path.parent(), path.file_name()) {
        (true, Some(dir), Some(name)) => Ok(Path::new(".").join(dir).canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

impl Pinned {
    /// Compares the digests of the model at `path`, and of its further files when it is split, with `expected`: lower-case
    /// hex, one for each file. Reads all of them; where none is expected, nothing is pinned, and nothing is read.
    pub fn check(path: &Path, expected: &[String]) -> Result<Self, PinError> {
        if expected.is_empty() {
            return Ok(Self { path: path.to_owned(), files: Vec::new() });
        }
        let real = without_links(path, expected.len() > 1);
        let real = real.map_err(|error| PinError::Io { file: name(path), error })?;
        let paths = ModelFile::open(&real)?.paths();
        if paths.len() != expected.len() {
            let (n_files, n_pinned) = (paths.len(), expected.len());
            return Err(PinError::Count { file: name(path), n_files, n_pinned });
        }
        let mut files = Vec::with_capacity(paths.len());
        for (path, expected) in paths.into_iter().zip(expected) {
            let refuse = |error| PinError::Io { file: name(&path), error };
            let before = look(&path).map_err(refuse)?;
            let found = sha256(&path, |_| {}).map_err(refuse)?;
            if found != *expected {
                return Err(PinError::Other { file: name(&path), found, expected: expected.clone() });
            }
            files.push((path, before));
        }
        Ok(Self { path: real, files })
    }

    /// What is to be loaded: the same file, whatever becomes of the links that led to it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// To be asked once the model is loaded: what was loaded is what was looked at.
    pub fn check_unchanged(&self) -> Result<(), PinError> {
        for (path, before) in &self.files {
            let now = look(path).map_err(|error| PinError::Io { file: name(path), error })?;
            if now != *before {
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

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
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

    #[test]
    #[cfg(unix)]
    fn a_link_that_leads_elsewhere_for_a_while_changes_nothing() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name);
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/tiny-llama.gguf");
        std::fs::create_dir(at("right")).expect("a writable folder");
        std::fs::copy(tiny, at("right/blob")).expect("a writable folder");
        let lead = |to: &str, link: &str| {
            symlink(to, at("new")).expect("a writable folder");
            std::fs::rename(at("new"), at(link)).expect("a writable folder");
        };
        lead("right", "folder");
        lead("folder/blob", "m.gguf");
        let digest = sha256(&at("m.gguf"), |_| {}).expect("a readable file");
        let pinned = Pinned::check(&at("m.gguf"), std::slice::from_ref(&digest)).expect("it is the one");
        // Of those that come and go, none is what is loaded.
        lead("wrong/blob", "m.gguf");
        lead("wrong", "folder");
        assert_eq!(sha256(pinned.path(), |_| {}).expect("a readable file"), digest);
        lead("folder/blob", "m.gguf");
        lead("right", "folder");
        pinned.check_unchanged().expect("the file is as it was");
        // Another file in its place for a while is one too many.
        std::fs::rename(at("right/blob"), at("right/aside")).expect("a writable folder");
        std::fs::rename(at("right/aside"), at("right/blob")).expect("a writable folder");
        assert!(pinned.check_unchanged().is_err());
        // Links that lie beside each other, as caches of downloads have them.
        std::fs::create_dir(at("split")).expect("a writable folder");
        lead("../right/blob", "split/a-00001-of-00002.gguf");
        let part = without_links(&at("split/a-00001-of-00002.gguf"), true).expect("a folder");
        assert!(part.ends_with("split/a-00001-of-00002.gguf"), "{}", part.display());
        let before = look(&part).expect("a link");
        lead("../right/blob", "split/a-00001-of-00002.gguf");
        assert_ne!(look(&part).expect("a link"), before);
    }
}
