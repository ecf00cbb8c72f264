//! The header of a GGUF file, versions 2 and 3. Source: ggml/include/gguf.h, ggml/src/gguf.cpp.

use super::ggml;
use std::collections::HashSet;
use std::io::{self, Read};

/// Bounds of a header. Real ones stay far below: the largest vocabularies make headers of about 20 MiB, the models with
/// the most tensors have some ten thousand.
const HEADER_BYTES_MAX: u64 = 256 << 20;
const METADATA_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: u64 = 1 << 10;
/// The longest text worth having is a chat template.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// All texts together that are kept.
const KEPT_BYTES_MAX: u64 = 32 << 20;
const ARRAY_LEN_MAX: u64 = 1 << 24;
/// Arrays up to this length are kept whole if they hold numbers: per-layer settings.
const KEPT_NUMBERS_MAX: u64 = 1 << 10;
/// Arrays of texts up to this length are kept: tags, languages.
const KEPT_TEXTS_MAX: u64 = 32;
const KEPT_ELEMENT_BYTES_MAX: u64 = 256;
/// ggml's GGML_MAX_NAME, its terminating zero included.
const TENSOR_NAME_MAX: u64 = 64;
const DIMS_MAX: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Uint(u64),
    Int(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// What is kept of an array.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// Element type as GGUF names it (`u32`, `str`, …).
    pub kind: &'static str,
    pub len: u64,
    /// The elements, where they are whole numbers or booleans and few.
    pub numbers: Vec<i64>,
    /// The elements, where they are texts, few and short.
    pub texts: Vec<String>,
    /// Bytes of the longest text.
    pub longest: u64,
}

/// One tensor's place and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    /// Elements of each dimension, fastest first.
    pub dims: Vec<u64>,
    /// ggml's name of the type.
    pub kind: &'static str,
    /// From the start of the tensor data.
    pub offset: u64,
    pub n_bytes: u64,
}

impl Tensor {
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().fold(1, |n, dim| n.saturating_mul(*dim))
    }
}

/// Why a header is refused. Each message names the part at fault.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a GGUF file (it does not begin with \"GGUF\")")]
    Magic,
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    #[error("the file was written for big-endian machines")]
    BigEndian,
    #[error("the file ends inside {what} ({need} more bytes needed, {left} left): an incomplete download?")]
    Truncated { what: String, need: u64, left: u64 },
    #[error("{what}: {n}, more than {max}")]
    TooMany { what: String, n: u64, max: u64 },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: String },
    #[error("{what} has the unknown type {kind}")]
    UnknownType { what: String, kind: u32 },
    #[error("{what} is empty")]
    Empty { what: String },
    #[error("{what} occurs twice")]
    Twice { what: String },
    #[error("general.alignment is {0}, not a power of two (as a u32)")]
    Alignment(String),
    #[error("tensor {name:?}: {fault}")]
    Tensor { name: String, fault: TensorFault },
}

/// What is wrong with a tensor.
#[derive(Debug, thiserror::Error)]
pub enum TensorFault {
    #[error("{0} dimensions, more than {DIMS_MAX}")]
    Dims(u32),
    #[error("its size overflows")]
    Overflow,
    #[error("a row of {row} elements is not a whole number of {kind} blocks of {block}")]
    Row { row: u64, kind: &'static str, block: u64 },
    #[error("its data starts at {found}, where {expected} is expected")]
    Offset { found: u64, expected: u64 },
    #[error("its data ends at byte {end} and the file has {file_bytes}: an incomplete download?")]
    BeyondEnd { end: u64, file_bytes: u64 },
}

/// A checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    pub version: u32,
    pub alignment: u64,
    pub file_bytes: u64,
    /// Where tensor data starts in the file.
    pub data_offset: u64,
    /// In file order.
    pub metadata: Vec<(String, Value)>,
    /// In file order; every one lies inside the file.
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    /// Reads and checks the header of a file of `file_bytes` bytes. `reader` should be buffered.
    pub fn read(reader: impl Read, file_bytes: u64) -> Result<Self, GgufError> {
        let mut source = Source { reader, left: file_bytes.min(HEADER_BYTES_MAX), used: 0, kept: 0 };
        let version = read_version(&mut source)?;
        let n_tensors = source.u64(&|| "the tensor count".into())?;
        let n_metadata = source.u64(&|| "the metadata count".into())?;
        // The smallest entry: a length, one byte of key, a type and one byte of value; a length, dimensions, a type and
        // an offset. So a count that the file cannot hold is refused before anything is read.
        source.check_count("metadata entries", n_metadata, METADATA_MAX, 14)?;
        source.check_count("tensors", n_tensors, TENSORS_MAX, 24)?;
        let metadata = read_metadata(&mut source, n_metadata)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::new();
        for index in 0..n_tensors {
            tensors.push(read_tensor(&mut source, index)?);
        }
        check_names(&tensors)?;
        let data_offset = if tensors.is_empty() { source.used } else { source.used.next_multiple_of(alignment) };
        place(&tensors, alignment, data_offset, file_bytes)?;
        Ok(Self { version, alignment, file_bytes, data_offset, metadata, tensors })
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A whole number that is not negative, of whatever width it was written in.
    pub fn uint(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Uint(n) => Some(*n),
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::F32(n) => Some(f64::from(*n)),
            Value::F64(n) => Some(*n),
            _ => None,
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self, key: &str) -> Option<&List> {
        match self.value(key)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// What a failing read was about; only called when it fails.
type What<'a> = &'a dyn Fn() -> String;

/// The file from its beginning, with what may still be read of it.
struct Source<R> {
    reader: R,
    left: u64,
    used: u64,
    /// Bytes of text kept so far.
    kept: u64,
}

impl<R: Read> Source<R> {
    fn take(&mut self, n: u64, what: What) -> Result<(), GgufError> {
        if n > self.left {
            return Err(GgufError::Truncated { what: what(), need: n, left: self.left });
        }
        self.left -= n;
        self.used += n;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: What) -> Result<[u8; N], GgufError> {
        self.take(N as u64, what)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: What) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: What) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A text of at most `max` bytes, kept.
    fn text(&mut self, max: u64, what: What) -> Result<String, GgufError> {
        let n = self.u64(what)?;
        if n > max {
            return Err(GgufError::TooMany { what: format!("bytes in {}", what()), n, max });
        }
        self.take(n, what)?;
        self.kept += n;
        if self.kept > KEPT_BYTES_MAX {
            return Err(GgufError::TooMany { what: "bytes of text".into(), n: self.kept, max: KEPT_BYTES_MAX });
        }
        // At most `max`, which is checked above and small, and at most what the file has.
        let mut bytes = vec![0; usize::try_from(n).unwrap_or(0)];
        self.reader.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what: what() })
    }

    fn skip(&mut self, n: u64, what: What) -> Result<(), GgufError> {
        self.take(n, what)?;
        let copied = io::copy(&mut (&mut self.reader).take(n), &mut io::sink())?;
        if copied < n {
            return Err(GgufError::Truncated { what: what(), need: n, left: copied });
        }
        Ok(())
    }

    /// Refuses a count that is out of bounds or whose smallest form (`each` bytes) is more than is left.
    fn check_count(&self, what: &str, n: u64, max: u64, each: u64) -> Result<(), GgufError> {
        if n > max {
            return Err(GgufError::TooMany { what: what.to_owned(), n, max });
        }
        let need = n.saturating_mul(each);
        if need > self.left {
            return Err(GgufError::Truncated { what: format!("{n} {what}"), need, left: self.left });
        }
        Ok(())
    }
}

fn read_version(source: &mut Source<impl Read>) -> Result<u32, GgufError> {
    let magic: [u8; 4] = match source.bytes(&|| "the first four bytes".into()) {
        Err(GgufError::Truncated { .. }) => return Err(GgufError::Magic),
        other => other?,
    };
    if &magic != b"GGUF" {
        return Err(GgufError::Magic);
    }
    let version = source.u32(&|| "the version".into())?;
    match version {
        2 | 3 => Ok(version),
        other if other.swap_bytes() <= 3 => Err(GgufError::BigEndian),
        other => Err(GgufError::Version(other)),
    }
}

fn read_metadata(source: &mut Source<impl Read>, n: u64) -> Result<Vec<(String, Value)>, GgufError> {
    let mut metadata: Vec<(String, Value)> = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..n {
        let key = source.text(KEY_BYTES_MAX, &|| format!("the name of metadata entry {index}"))?;
        if key.is_empty() {
            return Err(GgufError::Empty { what: format!("the name of metadata entry {index}") });
        }
        if !seen.insert(key.clone()) {
            return Err(GgufError::Twice { what: format!("metadata {key:?}") });
        }
        let value = read_value(source, &key)?;
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn read_value(source: &mut Source<impl Read>, key: &str) -> Result<Value, GgufError> {
    let what = || format!("metadata {key:?}");
    let kind = source.u32(&what)?;
    Ok(match kind {
        8 => Value::Text(source.text(TEXT_BYTES_MAX, &what)?),
        9 => Value::List(read_list(source, key)?),
        kind => read_scalar(source, kind, &what)?,
    })
}

/// A value of fixed size. `kind`: GGUF_TYPE_* except string and array.
fn read_scalar(source: &mut Source<impl Read>, kind: u32, what: What) -> Result<Value, GgufError> {
    Ok(match kind {
        0 => Value::Uint(u64::from(source.bytes::<1>(what)?[0])),
        1 => Value::Int(i64::from(i8::from_le_bytes(source.bytes(what)?))),
        2 => Value::Uint(u64::from(u16::from_le_bytes(source.bytes(what)?))),
        3 => Value::Int(i64::from(i16::from_le_bytes(source.bytes(what)?))),
        4 => Value::Uint(u64::from(source.u32(what)?)),
        5 => Value::Int(i64::from(i32::from_le_bytes(source.bytes(what)?))),
        6 => Value::F32(f32::from_le_bytes(source.bytes(what)?)),
        7 => Value::Bool(source.bytes::<1>(what)?[0] != 0),
        10 => Value::Uint(source.u64(what)?),
        11 => Value::Int(i64::from_le_bytes(source.bytes(what)?)),
        12 => Value::F64(f64::from_le_bytes(source.bytes(what)?)),
        kind => return Err(GgufError::UnknownType { what: what(), kind }),
    })
}

/// Name and size of an element; `None` for arrays of arrays and for unknown types.
fn element(kind: u32) -> Option<(&'static str, u64)> {
    let names = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "", "u64", "i64", "f64"];
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8];
    let at = usize::try_from(kind).ok()?;
    let (name, size) = (*names.get(at)?, *sizes.get(at)?);
    (size > 0).then_some((name, size))
}

fn read_list(source: &mut Source<impl Read>, key: &str) -> Result<List, GgufError> {
    let what = || format!("the array {key:?}");
    let kind_id = source.u32(&what)?;
    let (kind, size) = element(kind_id).ok_or_else(|| GgufError::UnknownType { what: what(), kind: kind_id })?;
    let len = source.u64(&what)?;
    source.check_count(&format!("elements of the array {key:?}"), len, ARRAY_LEN_MAX, size)?;
    let mut list = List { kind, len, numbers: Vec::new(), texts: Vec::new(), longest: 0 };
    if kind == "str" {
        for _ in 0..len {
            read_element_text(source, &mut list, &what)?;
        }
    } else if len <= KEPT_NUMBERS_MAX && kind != "f32" && kind != "f64" {
        for _ in 0..len {
            list.numbers.push(match read_scalar(source, kind_id, &what)? {
                Value::Uint(n) => i64::try_from(n).unwrap_or(i64::MAX),
                Value::Int(n) => n,
                Value::Bool(yes) => i64::from(yes),
                // `kind` is none of the others.
                _ => 0,
            });
        }
    } else {
        source.skip(len * size, &what)?;
    }
    Ok(list)
}

fn read_element_text(source: &mut Source<impl Read>, list: &mut List, what: What) -> Result<(), GgufError> {
    let n = source.u64(what)?;
    list.longest = list.longest.max(n);
    if list.len > KEPT_TEXTS_MAX || n > KEPT_ELEMENT_BYTES_MAX {
        return source.skip(n, what);
    }
    let mut bytes = [0; KEPT_ELEMENT_BYTES_MAX as usize];
    source.take(n, what)?;
    let bytes = &mut bytes[..usize::try_from(n).unwrap_or(0)];
    source.reader.read_exact(bytes)?;
    // For people to read, so a broken one is shown as well as it can be; a vocabulary is never kept.
    list.texts.push(String::from_utf8_lossy(bytes).into_owned());
    Ok(())
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, GgufError> {
    match metadata.iter().find(|(key, _)| key == "general.alignment").map(|(_, value)| value) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Uint(n)) if n.is_power_of_two() && *n <= u64::from(u32::MAX) => Ok(*n),
        Some(Value::Uint(n)) => Err(GgufError::Alignment(n.to_string())),
        Some(_) => Err(GgufError::Alignment("something else".into())),
    }
}

fn read_tensor(source: &mut Source<impl Read>, index: u64) -> Result<Tensor, GgufError> {
    let name = source.text(TENSOR_NAME_MAX - 1, &|| format!("the name of tensor {index}"))?;
    let what = || format!("tensor {name:?}");
    let fault = |fault| GgufError::Tensor { name: name.clone(), fault };
    let n_dims = source.u32(&what)?;
    if n_dims > DIMS_MAX {
        return Err(fault(TensorFault::Dims(n_dims)));
    }
    let mut dims = Vec::new();
    for _ in 0..n_dims {
        dims.push(source.u64(&what)?);
    }
    let kind_id = source.u32(&what)?;
    let kind = ggml::kind(kind_id).ok_or_else(|| GgufError::UnknownType { what: what(), kind: kind_id })?;
    let offset = source.u64(&what)?;
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block_elements) {
        return Err(fault(TensorFault::Row { row, kind: kind.name, block: kind.block_elements }));
    }
    // ggml counts elements in i64, so anything beyond is refused though it would fit u64.
    let n_elements = dims
        .iter()
        .try_fold(1u64, |n, dim| n.checked_mul(*dim).filter(|n| i64::try_from(*n).is_ok()))
        .ok_or_else(|| fault(TensorFault::Overflow))?;
    let n_bytes = (n_elements / kind.block_elements)
        .checked_mul(kind.block_bytes)
        .filter(|n| i64::try_from(*n).is_ok())
        .ok_or_else(|| fault(TensorFault::Overflow))?;
    Ok(Tensor { name, dims, kind: kind.name, offset, n_bytes })
}

fn check_names(tensors: &[Tensor]) -> Result<(), GgufError> {
    let mut seen = HashSet::new();
    match tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        Some(tensor) => Err(GgufError::Twice { what: format!("tensor {:?}", tensor.name) }),
        None => Ok(()),
    }
}

/// Checks that tensor data lies as llama.cpp expects it: in order, without gaps but for alignment, inside the file.
fn place(tensors: &[Tensor], alignment: u64, data_offset: u64, file_bytes: u64) -> Result<(), GgufError> {
    let mut expected = 0u64;
    for tensor in tensors {
        let fault = |fault| GgufError::Tensor { name: tensor.name.clone(), fault };
        if tensor.offset != expected {
            return Err(fault(TensorFault::Offset { found: tensor.offset, expected }));
        }
        let end = data_offset
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.n_bytes))
            .ok_or_else(|| fault(TensorFault::Overflow))?;
        if end > file_bytes {
            return Err(fault(TensorFault::BeyondEnd { end, file_bytes }));
        }
        // `n_bytes` is below `file_bytes` and `alignment` below 2^32, so this needs a file of almost 2^64 bytes to fail.
        let padded = tensor.n_bytes.checked_next_multiple_of(alignment);
        expected = padded.and_then(|n| expected.checked_add(n)).ok_or_else(|| fault(TensorFault::Overflow))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
