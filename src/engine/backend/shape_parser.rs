//! Reads answers with calls in a [`Shape`].

use super::{AnswerParser, Parsed, ParsedCall};
use crate::engine::reading::partial_tag;
use crate::llama::Shape;

/// White space that may be the markup before a call; more of it is text.
const HELD_SPACE_MAX: usize = 256;

/// Where thinking stands in an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Thinking {
    /// Empty: it can't begin in the answer.
    pub start: String,
    pub ends: Vec<String>,
    pub opened: bool,
    /// It stays in the content, tags and all.
    pub is_inline: bool,
}

/// Reads answers in a shape.
pub(super) struct ShapeParser {
    pub shape: Shape,
    /// What begins a call: with it the text ends, whether or not more of the shape follows.
    pub mark: String,
    pub names: Vec<String>,
    /// The answer is calls and nothing else.
    pub is_forced: bool,
    pub thinking: Thinking,
}

impl AnswerParser for ShapeParser {
    fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
        let mut parsed = Parsed::default();
        if let Some(rest) = self.think(text, is_partial, &mut parsed) {
            self.read(rest, is_partial, &mut parsed);
        }
        Some(parsed)
    }
}

impl ShapeParser {
    /// What follows the thinking; `None` while it goes on, or may still begin.
    fn think<'a>(&self, text: &'a str, is_partial: bool, parsed: &mut Parsed) -> Option<&'a str> {
        let Thinking { start, ends, opened, is_inline } = &self.thinking;
        let body = if *opened {
            text
        } else if start.is_empty() || ends.is_empty() {
            return Some(text);
        } else {
            let begun = text.trim_start();
            if is_partial && start.starts_with(begun) {
                return None;
            }
            match begun.strip_prefix(start.as_str()) {
                Some(body) => body,
                None => return Some(text),
            }
        };
        let end = ends.iter().filter_map(|end| body.find(end.as_str()).map(|at| (at, end.len()))).min();
        let Some((at, n)) = end else {
            let held = if is_partial { partial_tag(body, ends) } else { 0 };
            let thought = &body[..body.len() - held];
            if *is_inline {
                parsed.content = text[..text.len() - held].to_owned();
            } else {
                parsed.reasoning = if is_partial { thought.trim() } else { thought.trim_start() }.to_owned();
            }
            return None;
        };
        // In some formats a call may end a thought.
        let n = if !self.mark.is_empty() && body[at..].starts_with(&self.mark) { 0 } else { n };
        let rest = &body[at + n..];
        if *is_inline {
            parsed.content = text[..text.len() - rest.len()].to_owned();
        } else {
            parsed.reasoning = body[..at].trim().to_owned();
        }
        Some(rest.trim_start())
    }

    fn read(&self, text: &str, is_partial: bool, parsed: &mut Parsed) {
        let head = self.shape.head.as_str();
        let mark = if self.mark.is_empty() { head } else { &self.mark };
        let (said, calls) = match text.find(mark) {
            Some(at) => (text[..at].trim_end(), text[at..].strip_prefix(head)),
            None if is_partial => {
                let held = partial_tag(text, &[mark.to_owned()]);
                let said = &text[..text.len() - held];
                let space = said.len() - said.trim_end().len();
                (if space <= HELD_SPACE_MAX { said.trim_end() } else { said }, None)
            }
            None => (text, None),
        };
        if !(self.is_forced && said.trim().is_empty()) {
            parsed.content.push_str(said);
        }
        let Some(mut rest) = calls else { return };
        loop {
            let name = self.names.iter().find_map(|name| {
                let behind = rest.strip_prefix(name.as_str())?.strip_prefix(self.shape.mid.as_str())?;
                Some((name, behind))
            });
            let Some((name, behind)) = name else {
                let is_whole = |name: &&String| {
                    let behind = rest.strip_prefix(name.as_str());
                    behind.is_some_and(|behind| !behind.is_empty() && self.shape.mid.starts_with(behind))
                };
                // Cut before the name was whole, there is nothing to tell.
                if let Some(name) = self.names.iter().find(is_whole).filter(|_| !is_partial) {
                    parsed.calls.push(ParsedCall { name: name.clone(), ..Default::default() });
                }
                return;
            };
            let end = object_end(behind);
            let arguments = behind[..end.unwrap_or(behind.len())].to_owned();
            parsed.calls.push(ParsedCall { id: String::new(), name: name.clone(), arguments });
            let Some(after) = end.map(|end| &behind[end..]) else { return };
            match self.shape.sep.as_deref().and_then(|sep| after.strip_prefix(sep)) {
                Some(next) => rest = next,
                None => return,
            }
        }
    }
}

/// Bytes of the JSON object that `text` begins with; `None` while it is open.
fn object_end(text: &str) -> Option<usize> {
    let (mut depth, mut is_string, mut is_escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::calls::{HERMES_TRIGGER, hermes};
    use super::*;
    use proptest::prelude::*;

    fn parser(is_forced: bool) -> ShapeParser {
        let thinking = Thinking { start: "<think>".into(), ends: vec!["</think>".into()], ..Default::default() };
        ShapeParser {
            shape: hermes(),
            mark: HERMES_TRIGGER.into(),
            names: vec!["f".into(), "ff".into()],
            is_forced,
            thinking,
        }
    }

    #[test]
    fn two_calls_are_read_behind_thought_and_prose() {
        let shape = hermes();
        let sep = shape.sep.clone().expect("it has one");
        let calls = format!("{}ff{}{{\"a\": \"}}{{\"}}{sep}f{}{{}}{}", shape.head, shape.mid, shape.mid, shape.tail);
        let text = format!("<think>hm</think>\n\nSure.\n{calls}");
        let read = parser(false).parse(&text, false).expect("it reads");
        assert_eq!((read.reasoning.as_str(), read.content.as_str()), ("hm", "Sure."));
        let calls: Vec<_> = read.calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("ff", "{\"a\": \"}{\"}"), ("f", "{}")]);
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        let read = parser(false).parse("a <tool_ca", false).expect("it reads");
        assert_eq!(read.content, "a <tool_ca");
        let read = parser(false).parse("a <tool_ca", true).expect("it reads");
        assert_eq!(read.content, "a");
    }

    proptest! {
        /// What a part shows, the whole shows too.
        #[test]
        fn nothing_is_taken_back(text in "(<think>|</think>|<tool_call>\n|\\{\"name\": \"|f\", \"arguments\": |\\{|\\}|\n</tool_call>| |a|\n){0,14}", is_forced: bool) {
            let mut parser = parser(is_forced);
            let whole = parser.parse(&text, false).expect("it reads");
            for (at, _) in text.char_indices() {
                let part = parser.parse(&text[..at], true).expect("it reads");
                prop_assert!(whole.reasoning.starts_with(&part.reasoning));
                if whole.calls.is_empty() || part.calls.is_empty() {
                    prop_assert!(whole.content.starts_with(&part.content), "{:?} {:?}", part, whole);
                }
                prop_assert!(part.calls.len() <= whole.calls.len());
                for (before, after) in part.calls.iter().zip(&whole.calls) {
                    prop_assert!(before.name == after.name && after.arguments.starts_with(&before.arguments));
                }
            }
        }
    }
}
