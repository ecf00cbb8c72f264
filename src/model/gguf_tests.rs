//! The reader against headers that are right, cut, mutated and hostile.

use super::*;
use proptest::prelude::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A header of two tensors with one value of every type, and room for its data.
fn header() -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend(6u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "llama.block_count");
    out.extend(4u32.to_le_bytes());
    out.extend(2u32.to_le_bytes());
    text(&mut out, "general.alignment");
    out.extend(4u32.to_le_bytes());
    out.extend(64u32.to_le_bytes());
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text(&mut out, "a");
    text(&mut out, "bcd");
    text(&mut out, "llama.attention.head_count_kv");
    out.extend(9u32.to_le_bytes());
    out.extend(5u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend(4i32.to_le_bytes());
    out.extend(0i32.to_le_bytes());
    text(&mut out, "scale");
    out.extend(6u32.to_le_bytes());
    out.extend(0.25f32.to_le_bytes());
    for (name, kind, offset) in [("first", 0u32, 0u64), ("second", 8, 128)] {
        text(&mut out, name);
        out.extend(1u32.to_le_bytes());
        out.extend(32u64.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    let start = out.len().next_multiple_of(64);
    out.resize(start + 128 + 34, 0);
    out
}

fn read(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::read(bytes, bytes.len() as u64)
}

/// The header with `find` replaced by `put`, which is as long.
fn with(find: &[u8], put: &[u8]) -> Vec<u8> {
    let mut bytes = header();
    let at = bytes.windows(find.len()).position(|window| window == find).expect("the bytes to replace");
    bytes[at..at + put.len()].copy_from_slice(put);
    bytes
}

#[test]
fn a_whole_header_is_read() {
    let gguf = read(&header()).expect("a good header");
    assert_eq!(gguf.uint("llama.block_count"), Some(2));
    assert_eq!(gguf.float("scale"), Some(0.25));
    assert_eq!(gguf.list("tokenizer.ggml.tokens").map(|list| (list.len, list.longest)), Some((2, 3)));
    assert_eq!(gguf.list("llama.attention.head_count_kv").map(|list| list.numbers.clone()), Some(vec![4, 0]));
    assert_eq!(gguf.tensor("second").map(|tensor| (tensor.n_bytes, tensor.kind)), Some((34, "q8_0")));
    assert_eq!(gguf.alignment, 64);
}

#[test]
fn every_cut_is_refused() {
    let bytes = header();
    for n in 0..bytes.len() {
        assert!(read(&bytes[..n]).is_err(), "cut at {n}");
    }
}

#[test]
fn a_file_shorter_than_it_says_is_an_error_not_a_panic() {
    let bytes = header();
    assert!(Gguf::read(&bytes[..100], bytes.len() as u64).is_err());
}

#[test]
fn counts_are_refused_before_anything_is_read() {
    let refused = |at: usize, n: u64| {
        let mut bytes = header();
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        read(&bytes).expect_err("an absurd count").to_string()
    };
    assert!(refused(8, u64::MAX).contains("tensors: 18446744073709551615"));
    assert!(refused(16, 1 << 40).contains("metadata entries"));
    assert!(refused(8, 60_000).contains("ends inside 60000 tensors"));
}

#[test]
fn each_fault_is_named() {
    let message = |bytes: Vec<u8>| read(&bytes).expect_err("a bad header").to_string();
    assert!(message(b"PK\x03\x04".to_vec()).contains("not a GGUF file"));
    assert!(message(with(b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0")).contains("version 1 is not supported"));
    assert!(message(with(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03")).contains("big-endian"));
    assert!(message(with(b"second", b"secon\xff")).contains("not UTF-8"));
    assert!(message(with(b"\x04\0\0\0\x40\0\0\0", b"\x04\0\0\0\x41\0\0\0")).contains("general.alignment is 65"));
    assert!(message(with(b"\x80\0\0\0\0\0\0\0", b"\x81\0\0\0\0\0\0\0")).contains("starts at 129, where 128"));
    let mut cut = header();
    cut.pop();
    assert!(message(cut).contains("\"second\": its data ends at byte"));
}

#[test]
fn arrays_of_arrays_are_refused() {
    let bytes = with(b"\x09\0\0\0\x05\0\0\0", b"\x09\0\0\0\x09\0\0\0");
    assert!(read(&bytes).expect_err("a nested array").to_string().contains("unknown type 9"));
}

#[test]
fn a_tensor_whose_size_overflows_is_refused() {
    let mut find = b"second".to_vec();
    find.extend(1u32.to_le_bytes());
    find.extend(32u64.to_le_bytes());
    let mut put = b"second".to_vec();
    put.extend(1u32.to_le_bytes());
    put.extend((u64::MAX - 31).to_le_bytes());
    assert!(read(&with(&find, &put)).expect_err("too large").to_string().contains("overflows"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No panic and no large allocation, whatever a header says; bytes it was not told of are not read.
    #[test]
    fn mutated_headers_are_read_or_refused(changes in prop::collection::vec((0usize..600, any::<u8>()), 1..12)) {
        let mut bytes = header();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(gguf) = read(&bytes) {
            let end = gguf.data_offset + gguf.tensors.iter().map(|tensor| tensor.offset + tensor.n_bytes).max().unwrap_or(0);
            prop_assert!(end <= bytes.len() as u64);
        }
    }

    #[test]
    fn extreme_numbers_are_read_or_refused(at in 0usize..560, n in prop::sample::select(vec![0, 1, 0x7fff_ffff_ffff_ffff, u64::MAX, 1 << 32, 1 << 24, 1 << 20])) {
        let mut bytes = header();
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        let _ = read(&bytes);
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        if let Ok(gguf) = read(&bytes) {
            prop_assert!(gguf.tensors.is_empty() || gguf.data_offset <= bytes.len() as u64);
        }
    }
}
