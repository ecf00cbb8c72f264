//! Texts through llama.cpp's tokenizers and back, fuzzed (F10), for every kind of vocabulary: those of the models in the tree, and
//! small ones that are written here. FUZZ_VOCABS names a folder of further GGUF files.
//!
//! Whatever a text holds: every token is one of the vocabulary, none is markup where text is only text, and the pieces are the
//! text again where the kind of vocabulary loses nothing.

use super::*;
use crate::fuzz::{Shape as Of, Target, fuzz, outcome};
use std::path::{Path, PathBuf};

const WORDS: &str = "<|im_start|>¦<|im_end|>¦<|endoftext|>¦<s>¦</s>¦<unk>¦<pad>¦[CLS]¦[SEP]¦[UNK]¦[MASK]¦<0x41>¦<0x00>¦<0xff>¦\
    <think>¦</think>¦<tool_call>¦ ¦  ¦\t¦\n¦\r\n¦\u{2581}¦\u{a0}¦\u{3000}¦\u{200b}¦\u{200d}¦\u{301}¦\u{fffd}¦\u{feff}¦ä¦ß¦漢字¦한국어¦\
    العربية¦हिन्दी¦👩‍👩‍👧¦🇩🇪¦'s¦'re¦don't¦123¦1234567890¦##ing¦ing¦the¦The¦ the¦hello¦world¦aaaaaaaa¦ZZZZ¦\u{1f468}¦\u{10ffff}¦\0";

/// Of a text, which goes through each vocabulary three times.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// What the pieces of a text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    /// The text.
    Exact,
    /// The text with a mark for blanks read as a blank, and perhaps a blank before it.
    Blanks,
    /// Another text: accents, cases, unknown signs are lost.
    Lossy,
}

struct Vocab {
    name: String,
    model: Model,
    back: Back,
}

/// A GGUF file of metadata alone.
struct Header {
    n: u64,
    bytes: Vec<u8>,
}

impl Header {
    fn new(kind: &str) -> Self {
        let mut header = Self { n: 0, bytes: Vec::new() };
        header.text("general.architecture", "llama");
        header.text("tokenizer.ggml.model", kind);
        header
    }

    fn put(&mut self, text: &[u8]) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text);
    }

    fn key(&mut self, name: &str, kinds: &[u32]) {
        self.n += 1;
        self.put(name.as_bytes());
        kinds.iter().for_each(|kind| self.bytes.extend(kind.to_le_bytes()));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.key(name, &[8]);
        self.put(value.as_bytes());
    }

    fn number(&mut self, name: &str, value: u32) {
        self.key(name, &[4]);
        self.bytes.extend(value.to_le_bytes());
    }

    /// Tokens with their kinds (1: text, 2: unknown, 3: markup, 6: a byte) and scores.
    fn tokens(&mut self, tokens: &[(String, i32)]) {
        self.key("tokenizer.ggml.tokens", &[9, 8]);
        self.bytes.extend((tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|(text, _)| self.put(text.as_bytes()));
        self.key("tokenizer.ggml.token_type", &[9, 5]);
        self.bytes.extend((tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|(_, kind)| self.bytes.extend(kind.to_le_bytes()));
        self.key("tokenizer.ggml.scores", &[9, 6]);
        self.bytes.extend((tokens.len() as u64).to_le_bytes());
        // Longer ones are liked better.
        tokens.iter().for_each(|(text, _)| self.bytes.extend((text.len() as f32 - 20.0).to_le_bytes()));
    }

    fn write(self, path: &Path) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(0u64.to_le_bytes());
        file.extend(self.n.to_le_bytes());
        file.extend(self.bytes);
        std::fs::write(path, file).expect("a writable folder");
    }
}

fn plain(words: &str) -> Vec<(String, i32)> {
    words.split_whitespace().map(|word| (word.to_owned(), 1)).collect()
}

fn letters() -> String {
    ('a'..='z').chain('A'..='Z').chain('0'..='9').map(|letter| format!("{letter} ")).collect()
}

const PARTS: &str = "the The he hello wor ld world ing in an and er on re don 's ä ß 漢 字 한국 ا 👩 ! ? . , - ( )";

/// A vocabulary of each kind that no model of the tree has.
fn written(dir: &Path) -> Vec<(PathBuf, Back)> {
    let special = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 3)).collect::<Vec<_>>();
    let bytes = || (0..256).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let blanked: Vec<(String, i32)> =
        plain(PARTS).iter().map(|(word, kind)| (format!("\u{2581}{word}"), *kind)).collect();
    let pieces = [plain("\u{2581} \u{2581}\u{2581}"), plain(PARTS), blanked, plain(&letters())].concat();
    let unknown = vec![("<unk>".to_owned(), 2)];

    let mut spm = Header::new("llama");
    let mut tokens = [unknown.clone(), special(&["<s>", "</s>"])].concat();
    tokens.extend(bytes());
    tokens.extend(pieces.clone());
    spm.tokens(&tokens);

    let mut ugm = Header::new("t5");
    ugm.tokens(&[special(&["<pad>", "</s>"]), unknown.clone(), pieces].concat());
    ugm.number("tokenizer.ggml.unknown_token_id", 2);

    let mut wpm = Header::new("bert");
    let inner: Vec<(String, i32)> = plain(&format!("{PARTS} {}", letters()));
    let inner: Vec<(String, i32)> =
        inner.iter().map(|(word, kind)| (format!("\u{2581}{word}"), *kind)).chain(inner.clone()).collect();
    let heads = [("[UNK]".to_owned(), 2)].into_iter().chain(special(&["[CLS]", "[SEP]", "[PAD]", "[MASK]"]));
    wpm.tokens(&heads.chain(inner).collect::<Vec<_>>());
    for (name, id) in [("unknown_token_id", 0), ("cls_token_id", 1), ("seperator_token_id", 2), ("padding_token_id", 3)]
    {
        wpm.number(&format!("tokenizer.ggml.{name}"), id);
    }

    let mut rwkv = Header::new("rwkv");
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let mut tokens = special(&["<s>"]);
    tokens.extend((0..=255u8).map(|byte| (escaped(&[byte]), 1)));
    tokens.extend(
        plain(PARTS).iter().filter(|(word, _)| word.len() > 1).map(|(word, kind)| (escaped(word.as_bytes()), *kind)),
    );
    rwkv.tokens(&tokens);

    let kinds =
        [("spm", spm, Back::Blanks), ("ugm", ugm, Back::Lossy), ("wpm", wpm, Back::Lossy), ("rwkv", rwkv, Back::Exact)];
    let write = |(name, header, back): (&str, Header, Back)| {
        let path = dir.join(format!("{name}.gguf"));
        header.write(&path);
        (path, back)
    };
    kinds.map(write).to_vec()
}

fn vocabularies() -> Vec<Vocab> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut found = written(dir.path());
    found.push((root.join("models/hearth-demo.gguf"), Back::Exact));
    found.push((root.join("models/tiny/tiny-llama.gguf"), Back::Exact));
    found.push((root.join("models/stories260K.gguf"), Back::Blanks));
    // Where `make test` has made it.
    found.extend(Some(root.join(".models/minilm.gguf")).filter(|path| path.exists()).map(|path| (path, Back::Lossy)));
    if let Ok(dir) = std::env::var("FUZZ_VOCABS") {
        let paths = std::fs::read_dir(dir).expect("FUZZ_VOCABS is a folder").flatten().map(|entry| entry.path());
        found.extend(
            paths
                .filter(|path| path.extension().is_some_and(|ending| ending == "gguf"))
                .map(|path| (path, Back::Lossy)),
        );
    }
    let load = |(path, back): (PathBuf, Back)| {
        let model = Model::load_vocab(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Those of others lose nothing where they are made of bytes.
        let kind = model.meta("tokenizer.ggml.model").unwrap_or_default();
        let back = if back == Back::Lossy && kind == "gpt2" { Back::Exact } else { back };
        Vocab { name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), model, back }
    };
    found.into_iter().map(load).collect()
}

fn check(vocab: &Vocab, text: &str) -> u64 {
    let Vocab { name, model, back } = vocab;
    let n_tokens = model.vocab_flags().n_tokens;
    let is_token = |token: &i32| u32::try_from(*token).is_ok_and(|token| token < n_tokens);
    let tokens = model.tokenize(text, false, false).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(tokens.iter().all(is_token), "{name}: {tokens:?}");
    // What stands for a sign that the vocabulary doesn't have is no text in any of them.
    let is_unknown = |token: i32| ["[UNK]", "<unk>"].iter().any(|name| model.piece(token) == name.as_bytes());
    let markup = tokens.iter().find(|token| model.is_control(**token) && !is_unknown(**token));
    assert!(markup.is_none(), "{name}: {markup:?} is markup, and the text is only text");
    assert_eq!(model.tokenize(text, false, false).ok().as_ref(), Some(&tokens), "{name}: other tokens the second time");
    let pieces: Vec<u8> = tokens.iter().flat_map(|token| model.piece(*token)).collect();
    match back {
        Back::Exact => assert!(pieces == text.as_bytes(), "{name}: {:?}", String::from_utf8_lossy(&pieces)),
        Back::Blanks => {
            let (pieces, text) = (String::from_utf8_lossy(&pieces), text.replace('\u{2581}', " "));
            assert!(pieces == text || pieces.strip_prefix(' ') == Some(&text), "{name}: {pieces:?}");
        }
        Back::Lossy => {}
    }
    let special = model.tokenize(text, true, true).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(special.iter().all(is_token), "{name}: {special:?}");
    let n_bytes: usize = special.iter().map(|token| model.piece(*token).len()).sum();
    (tokens.len().min(15) as u64) << 8 | (special.len().min(15) as u64) << 4 | (n_bytes.min(15) as u64)
}

#[test]
fn tokenizers() {
    init().expect("llama.cpp starts");
    let vocabularies = vocabularies();
    let texts = [
        "hello world",
        " The  the\n\n\tdon't re-do 12345 it's",
        "äß 漢字 한국 العربية 👩‍👩‍👧 🇩🇪 e\u{301}",
        "<|im_start|>user\nhi<|im_end|><s></s><unk>[CLS][SEP][UNK]<0x41><think>a</think>",
        "\u{2581}a\u{2581}\u{2581}b\u{a0}c\u{3000}d\u{200b}e\u{fffd}\u{feff}\0",
        "fn main() { println!(\"{}\", 0x1F); } // ZZZZZZZZZZZZZZZZZZZZZZZZ",
    ];
    let seeds = texts.map(|text| text.as_bytes().to_vec()).to_vec();
    let words: Vec<&str> = WORDS.split('¦').collect();
    let target = Target { name: "tokenizers", seeds, shape: Of::Text, words: &words };
    fuzz(&target, |input| {
        let text = String::from_utf8_lossy(&input[..input.len().min(TEXT_BYTES_MAX)]);
        let came = vocabularies.iter().map(|vocab| check(vocab, &text));
        came.fold(outcome(""), |sum, one| sum.rotate_left(7) ^ one)
    });
}

/// Found by fuzzing: llama.cpp takes the square of the number of special tokens, so a text with many is cut; its tokens are the same.
#[test]
fn texts_of_many_special_tokens_are_cut_where_nothing_changes() {
    init().expect("llama.cpp starts");
    for Vocab { name, model, .. } in vocabularies() {
        for unit in ["<s>", "<think> a", "  <|im_end|> b ", "</s>[SEP]", "x<0x41>\n<unk>", "hello"] {
            let text = unit.repeat(2000);
            for (add_special, parse_special) in [(true, true), (false, true), (true, false), (false, false)] {
                let cut = model.tokenize(&text, add_special, parse_special);
                let whole = model.tokenize_piece(&text, add_special, parse_special);
                // There the text of markup is broken on purpose.
                if name != "rwkv" || parse_special {
                    assert!(cut == whole, "{name}: {unit} {add_special} {parse_special}");
                }
            }
        }
    }
    let pieces = |model: &Model| model.specials.pieces(&"<think>".repeat(2000), false).len();
    assert!(vocabularies().iter().any(|vocab| pieces(&vocab.model) > 5), "none is cut");
}
