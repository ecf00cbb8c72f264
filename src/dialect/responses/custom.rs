//! The text of a custom tool: one string argument, decoded while its JSON comes in.

use serde_json::Value;

/// The argument's name, in the schema the model sees and in the history.
pub(super) const ARGUMENT: &str = "input";

/// Reads `{"input":"…"}` piece by piece.
#[derive(Debug, Default)]
pub(super) struct CustomInput {
    /// All of it as the model wrote it: what is not of this form is told as it is.
    raw: String,
    /// Bytes of `raw` that are decoded.
    n_read: usize,
    state: State,
    text: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the quote that opens the value.
    #[default]
    Before,
    Inside,
    After,
}

impl CustomInput {
    /// Takes a piece of the arguments; returns the text that is known through it.
    pub(super) fn push(&mut self, piece: &str) -> String {
        self.raw.push_str(piece);
        if self.state == State::Before
            && let Some(start) = value_start(&self.raw)
        {
            self.n_read = start;
            self.state = State::Inside;
        }
        let from = self.text.len();
        while self.state == State::Inside {
            match next_char(&self.raw[self.n_read..]) {
                Next::Char(c, n) => {
                    self.text.push(c);
                    self.n_read += n;
                }
                Next::Quote => self.state = State::After,
                Next::More => break,
            }
        }
        self.text[from..].to_owned()
    }

    /// The whole text, and what of it was not told before.
    pub(super) fn finish(self) -> (String, String) {
        if self.state != State::Before {
            return (self.text, String::new());
        }
        let object: Option<Value> = serde_json::from_str(&self.raw).ok();
        let text = match object.as_ref().map(|object| &object[ARGUMENT]) {
            Some(Value::String(text)) => text.clone(),
            _ if self.raw.trim() == "{}" => String::new(),
            _ => self.raw,
        };
        (text.clone(), text)
    }
}

/// Where the value's text begins, if the arguments are of the usual form and that far.
fn value_start(raw: &str) -> Option<usize> {
    let rest = raw.trim_start().strip_prefix('{')?.trim_start();
    let rest = rest.strip_prefix('"')?.strip_prefix(ARGUMENT)?.strip_prefix('"')?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(raw.len() - rest.len())
}

enum Next {
    /// A character and the bytes it took.
    Char(char, usize),
    Quote,
    /// Cut in the middle of an escape.
    More,
}

fn next_char(rest: &str) -> Next {
    let mut chars = rest.chars();
    match chars.next() {
        None => Next::More,
        Some('"') => Next::Quote,
        Some('\\') => match chars.next() {
            None => Next::More,
            Some('u') => unicode(rest),
            Some('n') => Next::Char('\n', 2),
            Some('t') => Next::Char('\t', 2),
            Some('r') => Next::Char('\r', 2),
            Some('b') => Next::Char('\u{8}', 2),
            Some('f') => Next::Char('\u{c}', 2),
            Some(c) => Next::Char(c, 1 + c.len_utf8()),
        },
        Some(c) => Next::Char(c, c.len_utf8()),
    }
}

/// `\uHHHH`, or two of them for one character; a half alone is U+FFFD.
fn unicode(rest: &str) -> Next {
    const LOST: char = char::REPLACEMENT_CHARACTER;
    let unit = |at: usize| rest.get(at..at + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    if rest.len() < 6 {
        return Next::More;
    }
    let Some(high) = unit(2) else { return Next::Char(LOST, 2) };
    if !(0xd800..0xdc00).contains(&high) {
        return Next::Char(char::from_u32(high).unwrap_or(LOST), 6);
    }
    match rest.get(6..) {
        Some(after) if after.starts_with("\\u") && after.len() >= 6 => match unit(8) {
            Some(low) if (0xdc00..0xe000).contains(&low) => {
                let c = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                Next::Char(char::from_u32(c).unwrap_or(LOST), 12)
            }
            _ => Next::Char(LOST, 6),
        },
        Some(after) if after.len() < 6 && "\\u".starts_with(&after[..after.len().min(2)]) => Next::More,
        _ => Next::Char(LOST, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (String, String) {
        let mut input = CustomInput::default();
        let mut told: String = pieces.iter().map(|piece| input.push(piece)).collect();
        let (whole, rest) = input.finish();
        told.push_str(&rest);
        (whole, told)
    }

    /// RESP-10: the deltas add up, however the JSON is cut.
    #[test]
    fn the_text_is_decoded_however_it_is_cut() {
        let text = "*** Begin\n\"\\é\u{1f600}\ttab";
        for json in [
            serde_json::json!({ ARGUMENT: text }).to_string(),
            r#" { "input" : "*** Begin\n\"\\\u00e9\ud83d\ude00\ttab" }"#.to_owned(),
        ] {
            assert_eq!(read(&[&json]), (text.to_owned(), text.to_owned()), "{json}");
            let chars: Vec<String> = json.chars().map(String::from).collect();
            let pieces: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(read(&pieces), (text.to_owned(), text.to_owned()), "{json}");
        }
    }

    #[test]
    fn other_forms_are_told_as_they_are() {
        assert_eq!(read(&["{}"]).0, "");
        assert_eq!(read(&["{\"other\":1}"]).1, "{\"other\":1}");
        assert_eq!(read(&[r#"{"a":1,"input":"x"}"#]), ("x".to_owned(), "x".to_owned()));
        assert_eq!(read(&[r#"{"input":"cut \"#]).0, "cut ");
        assert_eq!(read(&[r#"{"input":"\ud83dx\uzzzz"}"#]).0, "\u{fffd}x\u{fffd}zzzz");
    }
}
