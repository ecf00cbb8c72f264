//! Facts about a model file, found without loading it: what its header says, how much memory it will want, its digest.
//!
//! **Invariant:** every byte read here may be hostile. Nothing is allocated on a file's word alone, nothing recurses,
//! nothing panics. Tensor data is never read (but by [`lock::sha256`], which looks at bytes and not at meaning).
//!
//! # Design
//! llama.cpp has its own GGUF reader, and it runs again when the model is loaded. This one runs first and in Rust, so
//! that a broken or malicious header is refused with a sentence that names the fault instead of an abort in C++, and so
//! that `hearth inspect` and the memory plan cost milliseconds. It is deliberately as strict as llama.cpp (tensor offsets
//! without gaps, unique names) and stricter where a count has no sane use at its limit.

pub mod beside;
mod cgroup;
pub mod fit;
mod ggml;
pub mod gguf;
pub mod lock;
pub mod ngrams;
mod offload;
mod rollback;
mod shape;

pub use cgroup::Shortage;
pub use fit::{Ask, CacheType, FitError, Memory, Plan};
pub use gguf::{Gguf, GgufError, List, Tensor, Value};
pub use offload::Offload;
pub use rollback::rows_back;
pub use shape::{Layer, Shape, ShapeError};

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// A model on disk: the header of its file, and of the further files when it is split.
#[derive(Debug)]
pub struct ModelFile {
    pub path: PathBuf,
    pub gguf: Gguf,
    /// The second and later parts of a split model, in order.
    pub parts: Vec<Gguf>,
}

/// Why a path could not be opened as a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: there is no such file", path.display())]
    Missing { path: PathBuf },
    #[error("{}: this is a directory; name the .gguf file in it", path.display())]
    Directory { path: PathBuf },
    #[error("{}: not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: no permission to read it", path.display())]
    Forbidden { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: {fault}", path.display())]
    Gguf { path: PathBuf, fault: GgufError },
    #[error("{}: part {part} of {n_parts}; name the first part", path.display())]
    NotFirstPart { path: PathBuf, part: u64, n_parts: u64 },
    #[error("{}: the model says that it is split into {n_parts} files, but this name does not end in -00001-of-{n_parts:05}.gguf", path.display())]
    PartName { path: PathBuf, n_parts: u64 },
}

/// Most files one model may be split into; llama.cpp counts them in 16 bits, real ones have a few dozen.
const PARTS_MAX: u64 = 512;

impl ModelFile {
    /// Reads the header, or the headers of all parts of a split model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let gguf = read_header(path)?;
        let n_parts = gguf.uint("split.count").unwrap_or(1).max(1);
        let part = gguf.uint("split.no").unwrap_or(0);
        if part != 0 || n_parts > PARTS_MAX {
            return Err(ModelError::NotFirstPart { path: path.to_owned(), part: part.saturating_add(1), n_parts });
        }
        let mut parts = Vec::new();
        for part in 2..=n_parts {
            let next = part_path(path, part, n_parts)
                .ok_or_else(|| ModelError::PartName { path: path.to_owned(), n_parts })?;
            parts.push(read_header(&next)?);
        }
        Ok(Self { path: path.to_owned(), gguf, parts })
    }

    /// The files that it lies in, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        let n_parts = self.parts.len() as u64 + 1;
        // The parts were found by these names.
        let further = (2..=n_parts).filter_map(|part| part_path(&self.path, part, n_parts));
        std::iter::once(self.path.clone()).chain(further).collect()
    }

    /// Tensors of all parts.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.gguf).chain(&self.parts).flat_map(|part| &part.tensors)
    }

    /// Bytes of all tensors: what the weights take in memory.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.n_bytes).fold(0, u64::saturating_add)
    }

    /// Sizes of all parts on disk.
    pub fn file_bytes(&self) -> u64 {
        std::iter::once(&self.gguf).chain(&self.parts).map(|part| part.file_bytes).fold(0, u64::saturating_add)
    }

    pub fn n_params(&self) -> u64 {
        self.tensors().map(Tensor::n_elements).fold(0, u64::saturating_add)
    }

    /// Quantisations with their tensor counts and bytes, most bytes first.
    pub fn quantisations(&self) -> Vec<(&'static str, u64, u64)> {
        let mut kinds: Vec<(&'static str, u64, u64)> = Vec::new();
        for tensor in self.tensors() {
            match kinds.iter_mut().find(|(name, ..)| *name == tensor.kind) {
                Some((_, n, bytes)) => {
                    *n += 1;
                    *bytes = bytes.saturating_add(tensor.n_bytes);
                }
                None => kinds.push((tensor.kind, 1, tensor.n_bytes)),
            }
        }
        kinds.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        kinds
    }
}

fn read_header(path: &Path) -> Result<Gguf, ModelError> {
    let io_error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        io::ErrorKind::PermissionDenied => ModelError::Forbidden { path: path.to_owned() },
        _ => ModelError::Io { path: path.to_owned(), error },
    };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(io_error)?;
    if metadata.is_dir() {
        return Err(ModelError::Directory { path: path.to_owned() });
    }
    if !metadata.is_file() {
        return Err(ModelError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io_error)?;
    let reader = BufReader::with_capacity(64 * 1024, file);
    Gguf::read(reader, metadata.len()).map_err(|fault| ModelError::Gguf { path: path.to_owned(), fault })
}

/// `name-00001-of-00003.gguf` → `name-00002-of-00003.gguf`; `None` when the name is not of that form.
fn part_path(first: &Path, part: u64, n_parts: u64) -> Option<PathBuf> {
    let name = first.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{n_parts:05}.gguf"))?;
    Some(first.with_file_name(format!("{stem}-{part:05}-of-{n_parts:05}.gguf")))
}

#[cfg(test)]
mod fuzz_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
    }

    #[test]
    fn the_demo_model_is_described_by_its_header() {
        let file = ModelFile::open(&model("hearth-demo.gguf")).expect("the demo model is in the tree");
        assert_eq!(file.gguf.text("general.architecture"), Some("llama"));
        assert_eq!(file.n_params(), 4_066_560);
        assert_eq!(file.gguf.tensors.len(), 56);
        assert_eq!(file.quantisations()[0].0, "q8_0");
        assert!(file.weight_bytes() < file.file_bytes());
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let message = |path: &Path| ModelFile::open(path).expect_err("not a model").to_string();
        assert!(message(&dir.join("nowhere.gguf")).contains("no such file"));
        assert!(message(dir).contains("directory"));
        assert!(message(&dir.join("Cargo.toml")).contains("not a GGUF file"));
        assert!(message(Path::new("/dev/null")).contains("not a regular file"));
    }

    #[test]
    fn further_parts_are_found_by_name() {
        let first = Path::new("/m/big-00001-of-00003.gguf");
        assert_eq!(part_path(first, 2, 3), Some(PathBuf::from("/m/big-00002-of-00003.gguf")));
        assert_eq!(part_path(Path::new("/m/big.gguf"), 2, 3), None);
    }
}
