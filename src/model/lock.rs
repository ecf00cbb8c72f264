//! Which file this is: a digest of all of it, and a cheap fingerprint of its header.

use super::Gguf;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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
}
