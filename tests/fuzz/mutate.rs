//! What is done to an input to make another.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Number, Value, json};

/// Bytes of a mutated input.
const INPUT_BYTES_MAX: usize = 256 << 10;

/// What inputs are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One JSON value, behind a line with the name of what reads it.
    Json,
    /// Text of lines.
    Text,
    Bytes,
}

/// Numbers at which something ends.
const NUMBERS: [i128; 24] = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    (1 << 24) - 1,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 31) + 1,
    -(1 << 31) - 1,
    (1 << 32) - 1,
    1 << 32,
    (1 << 32) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 1,
    -(1 << 63),
    (1 << 64) - 1,
];

const TEXTS: [&str; 20] = [
    "",
    " ",
    "\0",
    "\u{feff}",
    "\u{2028}",
    "é",
    "👩‍👩‍👧‍👦",
    "\u{202e}",
    "\r\n",
    "null",
    "true",
    "-0",
    "1e400",
    "NaN",
    "<|im_start|>",
    "</s>",
    "{{",
    "../../etc/passwd",
    "\"",
    "\\",
];

const OPENINGS: [(&str, &str); 8] =
    [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("{", "}"), ("<", ">"), ("\"", "\""), ("[[", "]]"), ("(?:", ")")];

pub(super) struct Mutator<'a> {
    rng: StdRng,
    shape: Shape,
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    pub fn new(seed: u64, shape: Shape, words: &'a [&'a str]) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), shape, words }
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn is(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// One of `pool`, changed once or a few times.
    pub fn mutated(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let at = self.below(pool.len());
        let other = self.below(pool.len());
        let (mut input, other) = (pool[at].clone(), &pool[other]);
        let n = 1 + self.below(4) + if self.is(8) { self.below(16) } else { 0 };
        if self.shape == Shape::Json
            && !self.is(8)
            && let (head, Ok(mut value)) = self.json(&input)
        {
            let (other_head, other) = self.json(other);
            let other = other.unwrap_or_default();
            (0..n).for_each(|_| self.value(&mut value, &other));
            input = if self.is(16) { other_head } else { head }.to_vec();
            input.extend(value.to_string().into_bytes());
        } else {
            for _ in 0..n {
                if self.shape != Shape::Bytes && !self.is(3) {
                    self.lines(&mut input, other);
                } else {
                    self.bytes(&mut input, other);
                }
                input.truncate(INPUT_BYTES_MAX);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    /// The line that says what reads it, and the value.
    fn json<'b>(&self, input: &'b [u8]) -> (&'b [u8], serde_json::Result<Value>) {
        let at = input.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        (&input[..at], serde_json::from_slice(&input[at..]))
    }

    fn text(&mut self) -> String {
        match self.below(6) {
            0..=2 if !self.words.is_empty() => self.one(self.words).to_owned(),
            3 => self.one(&NUMBERS).to_string(),
            4 => self.one(&TEXTS).repeat(1 + self.below(3)),
            _ => {
                let n = self.below(9);
                (0..n).map(|_| char::from(self.rng.random_range(b' '..=b'~'))).collect()
            }
        }
    }

    /// Much of little.
    fn long(&mut self) -> String {
        let of = if self.is(2) { self.text() } else { self.one(&TEXTS).to_owned() };
        let n = self.one(&[10, 100, 1000, 10_000]);
        of.repeat(n.min(INPUT_BYTES_MAX / 2 / of.len().max(1)))
    }

    fn range(&mut self, n: usize) -> std::ops::Range<usize> {
        let start = self.below(n + 1);
        let most = if self.is(4) { n - start } else { (n - start).min(16) };
        start..start + self.below(most + 1)
    }

    fn bytes(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let range = self.range(input.len());
        match self.below(14) {
            0 if !input.is_empty() => {
                let (at, bit) = (self.below(input.len()), self.below(8));
                input[at] ^= 1 << bit;
            }
            1 if !input.is_empty() => {
                let at = self.below(input.len());
                input[at] = self.rng.random();
            }
            2 => {
                let new: Vec<u8> = (0..self.below(16)).map(|_| self.rng.random()).collect();
                input.splice(range, new);
            }
            3 => drop(input.drain(range)),
            4 => {
                let piece = input[range].to_vec();
                let at = self.below(input.len() + 1);
                input.splice(at..at, piece);
            }
            5 => input.truncate(range.start),
            6 => {
                let piece = other[self.range(other.len())].to_vec();
                input.splice(range, piece);
            }
            7..=9 => self.number(input),
            10 => {
                let text = self.text();
                input.splice(range, text.into_bytes());
            }
            11 => {
                let text = self.long();
                input.splice(range, text.into_bytes());
            }
            12 => {
                let piece = &input[range.clone()];
                let n = self.one(&[2, 10, 100, 1000]);
                let many = piece.repeat(n.min(INPUT_BYTES_MAX / 2 / piece.len().max(1)));
                input.splice(range, many);
            }
            _ => self.nest(input, range),
        }
    }

    /// Puts a number where it has a meaning, as bytes or as digits.
    fn number(&mut self, input: &mut Vec<u8>) {
        let n = self.one(&NUMBERS) + if self.is(4) { self.below(64) as i128 - 32 } else { 0 };
        let digits: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
        if !digits.is_empty() && self.shape != Shape::Bytes {
            let start = self.one(&digits);
            let end = (start..input.len()).find(|at| !input[*at].is_ascii_digit()).unwrap_or(input.len());
            input.splice(start..end, n.to_string().into_bytes());
            return;
        }
        let width = self.one(&[1usize, 2, 4, 8]).min(input.len());
        let at = self.below(input.len() - width + 1);
        let mut bytes = n.to_le_bytes()[..width].to_vec();
        if self.is(4) {
            bytes.reverse();
        }
        input[at..at + width].copy_from_slice(&bytes);
    }

    /// Puts many brackets around a piece, sometimes without their ends.
    fn nest(&mut self, input: &mut Vec<u8>, range: std::ops::Range<usize>) {
        let (open, close) = self.one(&OPENINGS);
        let n = self.one(&[1, 10, 70, 130, 1000, 10_000]).min(INPUT_BYTES_MAX / 4 / open.len());
        let mut nested = open.repeat(n).into_bytes();
        nested.extend_from_slice(&input[range.clone()]);
        if !self.is(3) {
            nested.extend_from_slice(close.repeat(n).as_bytes());
        }
        input.splice(range, nested);
    }

    fn lines(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let split = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (mut lines, others) = (split(input), split(other));
        let n = lines.len();
        if n == 0 {
            return self.bytes(input, other);
        }
        let at = self.below(n);
        match self.below(7) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let to = self.below(n);
                lines.swap(at, to);
            }
            3 if !others.is_empty() => {
                let from = self.below(others.len());
                lines.insert(at, others[from].clone());
            }
            4 => {
                let line = lines[at].clone();
                let n = self.one(&[2, 20, 300]);
                (0..n).for_each(|_| lines.insert(at, line.clone()));
            }
            5 => {
                let word = self.text();
                let line = &lines[at];
                let words: Vec<usize> = (0..line.len()).filter(|at| !line[*at].is_ascii_alphanumeric()).collect();
                let start = if words.is_empty() { 0 } else { self.one(&words) };
                let end = (start + 1..line.len()).find(|at| !line[*at].is_ascii_alphanumeric()).unwrap_or(line.len());
                lines[at].splice((start + 1).min(end)..end, word.into_bytes());
            }
            _ => {
                let mut line = std::mem::take(&mut lines[at]);
                self.bytes(&mut line, other);
                lines[at] = line;
            }
        }
        *input = lines.concat();
    }

    /// Changes one of the values in `root`, chosen by chance.
    fn value(&mut self, root: &mut Value, other: &Value) {
        let n = n_values(root);
        let at = self.below(n);
        let Some(place) = nth(root, &mut at.clone()) else { return };
        match (self.below(12), place) {
            (0..=2, Value::Object(fields)) => self.fields(fields, other),
            (0..=2, Value::Array(items)) => self.items(items, other),
            (0..=2, Value::String(text)) => {
                let mut bytes = std::mem::take(text).into_bytes();
                self.bytes(&mut bytes, b"");
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            (3, place) => {
                let n = n_values(other);
                let mut other = other.clone();
                if let Some(from) = nth(&mut other, &mut self.below(n)) {
                    *place = from.take();
                }
            }
            (4, place) => {
                let n = self.one(&[1, 3, 40, 70, 120]);
                let wrap = self.below(3);
                for _ in 0..n {
                    let inner = place.take();
                    *place = match wrap {
                        0 => json!([inner]),
                        1 => json!({ "a": inner }),
                        _ => json!({ "type": "object", "properties": { "a": inner } }),
                    };
                }
            }
            (_, place) => *place = self.fresh(),
        }
    }

    fn fresh(&mut self) -> Value {
        match self.below(14) {
            0 => Value::Null,
            1 => Value::Bool(true),
            2 => Value::Bool(false),
            3 => json!([]),
            4 => json!({}),
            5..=7 => {
                let n = self.one(&NUMBERS);
                Number::from_i128(n).map_or(Value::Null, Value::Number)
            }
            8 => json!(self.one(&[0.5, -0.0, 1e308, -1e308, 5e-324, 0.1, 1.0000001, 1e38])),
            9 => Value::String(self.long()),
            10 => Value::Array(vec![Value::String(self.text()); self.one(&[1, 5, 130, 2000])]),
            _ => Value::String(self.text()),
        }
    }

    fn fields(&mut self, fields: &mut Map<String, Value>, other: &Value) {
        let keys: Vec<String> = fields.keys().cloned().collect();
        match (self.below(4), keys.is_empty()) {
            (0, false) => {
                let at = self.below(keys.len());
                fields.remove(&keys[at]);
            }
            (1, false) => {
                let at = self.below(keys.len());
                let value = fields.remove(&keys[at]).unwrap_or_default();
                fields.insert(self.text(), value);
            }
            (2, _) if other.as_object().is_some_and(|other| !other.is_empty()) => {
                let other = other.as_object().expect("an object, as was seen");
                let at = self.below(other.len());
                fields.extend(other.iter().nth(at).map(|(key, value)| (key.clone(), value.clone())));
            }
            _ => {
                let value = self.fresh();
                fields.insert(self.text(), value);
            }
        }
    }

    fn items(&mut self, items: &mut Vec<Value>, other: &Value) {
        let at = self.below(items.len() + 1);
        match (self.below(4), items.get(at).cloned()) {
            (0, Some(_)) => drop(items.remove(at)),
            (1, Some(item)) => {
                let n = self.one(&[1, 3, 70, 300]);
                items.extend(vec![item; n]);
            }
            (2, _) => {
                let n = n_values(other);
                let mut other = other.clone();
                items.extend(nth(&mut other, &mut self.below(n)).map(Value::take));
            }
            _ => {
                let value = self.fresh();
                items.insert(at, value);
            }
        }
    }
}

fn n_values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(n_values).sum(),
        Value::Object(fields) => fields.values().map(n_values).sum(),
        _ => 0,
    }
}

/// The value that is reached after `left` others.
fn nth<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(fields) => fields.values_mut().find_map(|item| nth(item, left)),
        _ => None,
    }
}
