//! JSON text that stays JSON: each of its strings, and each number, is a text of its own.
//!
//! # Design
//! Arguments of calls, and answers that a schema binds, are read by programs, so a replacement is written where the string
//! was, escaped, and a number that matches becomes a string. A match never spans two values, nor a value and what is around
//! it. Strings are written anew, with the shortest escapes; their values are the same.

use super::sieve::{Denied, Sieve, Step};

/// Longest number that is looked at as it came; a longer one is none that anybody reads, and is written as `null`.
const LITERAL_BYTES_MAX: usize = 512;

#[derive(Debug)]
pub(super) struct JsonSieve {
    sieve: Sieve,
    place: Place,
    /// A number or a word outside of strings.
    literal: String,
    is_overlong: bool,
    /// The first half of a character that two escapes write.
    surrogate: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Outside,
    Inside,
    /// Behind a backslash.
    Escape,
    /// Behind `\u`: how many of its four digits came, and what they are so far.
    Code(u8, u32),
}

impl JsonSieve {
    pub(super) fn new(steps: &[Step]) -> Self {
        let sieve = Sieve::new(steps);
        Self { sieve, place: Place::Outside, literal: String::new(), is_overlong: false, surrogate: None }
    }

    pub(super) fn push(&mut self, piece: &str, out: &mut String) -> Result<(), Denied> {
        let mut plain = String::new();
        for c in piece.chars() {
            match self.place.clone() {
                Place::Outside if c == '"' => {
                    self.end_literal(out)?;
                    out.push('"');
                    self.place = Place::Inside;
                }
                Place::Outside if c.is_alphanumeric() || "+-._".contains(c) => {
                    self.is_overlong |= self.literal.len() >= LITERAL_BYTES_MAX;
                    if !self.is_overlong {
                        self.literal.push(c);
                    }
                }
                Place::Outside => {
                    self.end_literal(out)?;
                    out.push(c);
                }
                Place::Inside if c == '"' => {
                    self.lone(&mut plain);
                    self.write(&plain, out)?;
                    plain.clear();
                    self.end_string(out)?;
                    out.push('"');
                    self.place = Place::Outside;
                }
                Place::Inside if c == '\\' => self.place = Place::Escape,
                Place::Inside => {
                    self.lone(&mut plain);
                    plain.push(c);
                }
                Place::Escape if c == 'u' => self.place = Place::Code(0, 0),
                Place::Escape => {
                    self.lone(&mut plain);
                    plain.push(match c {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        other => other,
                    });
                    self.place = Place::Inside;
                }
                Place::Code(n, code) => {
                    let code = code * 16 + c.to_digit(16).unwrap_or(0);
                    self.place = if n == 3 { Place::Inside } else { Place::Code(n + 1, code) };
                    if n == 3 {
                        self.unit(code, &mut plain);
                    }
                }
            }
        }
        self.write(&plain, out)
    }

    /// The text is over, complete or not.
    pub(super) fn finish(&mut self, out: &mut String) -> Result<(), Denied> {
        if self.place == Place::Outside {
            return self.end_literal(out);
        }
        let mut plain = String::new();
        self.lone(&mut plain);
        self.write(&plain, out)?;
        self.place = Place::Outside;
        self.end_string(out)
    }

    pub(super) fn has_matched(&self) -> bool {
        self.sieve.has_matched()
    }

    /// A UTF-16 unit that was written as an escape.
    fn unit(&mut self, unit: u32, plain: &mut String) {
        match (self.surrogate.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                let code = 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00);
                plain.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            (before, _) => {
                if before.is_some() {
                    plain.push(char::REPLACEMENT_CHARACTER);
                }
                match unit {
                    0xd800..=0xdbff => self.surrogate = Some(unit),
                    _ => plain.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
        }
    }

    /// Half a character whose other half did not come.
    fn lone(&mut self, plain: &mut String) {
        if self.surrogate.take().is_some() {
            plain.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn write(&mut self, plain: &str, out: &mut String) -> Result<(), Denied> {
        if plain.is_empty() {
            return Ok(());
        }
        let mut passed = String::new();
        let done = self.sieve.push(plain, &mut passed);
        escape(&passed, out);
        done
    }

    fn end_string(&mut self, out: &mut String) -> Result<(), Denied> {
        let mut passed = String::new();
        let done = self.sieve.finish(&mut passed);
        escape(&passed, out);
        done
    }

    fn end_literal(&mut self, out: &mut String) -> Result<(), Denied> {
        let literal = std::mem::take(&mut self.literal);
        if std::mem::take(&mut self.is_overlong) {
            out.push_str("null");
            return Ok(());
        }
        if literal.is_empty() {
            return Ok(());
        }
        let mut passed = String::new();
        self.sieve.push(&literal, &mut passed)?;
        self.sieve.finish(&mut passed)?;
        if passed == literal {
            out.push_str(&literal);
        } else {
            out.push('"');
            escape(&passed, out);
            out.push('"');
        }
        Ok(())
    }
}

/// As the inside of a JSON string.
fn escape(text: &str, out: &mut String) {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    out.push_str(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default());
}
