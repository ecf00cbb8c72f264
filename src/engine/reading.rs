//! The text of an answer, taken apart into thinking and content as it comes.
//!
//! **Invariant:** every byte of the answer ends up in exactly one of the two, or is markup (tags and the white space
//! around them); however the text is cut, the result is the same. Nothing is lost when the format was not kept.

use super::backend::{AnswerParser, Parsed, ParsedCall, Reading};
use super::text::Released;
use crate::chat::{Delta, TokenLogprob, ToolCallDelta};
use std::collections::VecDeque;

/// White space that may turn out to be markup; more of it is text.
const HELD_SPACE_MAX: usize = 256;

/// Reads one answer.
pub struct Reader {
    kind: Kind,
    /// Text not yet attributed: at most a tag's length and white space for `Tags`.
    pending: String,
    /// Offset of `pending` in the answer.
    offset: usize,
    /// Entries of tokens in `pending`, with their offset in the answer.
    logprobs: VecDeque<(usize, TokenLogprob)>,
    n_reasoning_tokens: u32,
    /// The answer ended in the middle of what it was saying.
    is_cut: bool,
}

enum Kind {
    Plain,
    Tags {
        start: String,
        ends: Vec<String>,
        place: Place,
    },
    /// `told`: bytes of `whole` up to which it is known what was content.
    Parser {
        parser: Box<dyn AnswerParser>,
        whole: String,
        parsed: usize,
        told: usize,
        shown: Parsed,
    },
}

/// Where in the format the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space so far: thinking may open.
    Start,
    /// Inside the tags; `fresh` until the first character that isn't white space.
    Thinking {
        fresh: bool,
    },
    /// Behind the end tag: white space is markup.
    Closed,
    Content,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Content,
    Reasoning,
    Markup,
}

impl Reader {
    pub fn new(reading: Reading) -> Self {
        let kind = match reading {
            Reading::Plain => Kind::Plain,
            Reading::Tags { start, ends, opened } => {
                Kind::Tags { start, ends, place: if opened { Place::Thinking { fresh: true } } else { Place::Start } }
            }
            Reading::Parser(parser) => {
                Kind::Parser { parser, whole: String::new(), parsed: 0, told: 0, shown: Default::default() }
            }
        };
        let (pending, logprobs) = (String::new(), VecDeque::new());
        Self { kind, pending, offset: 0, logprobs, n_reasoning_tokens: 0, is_cut: false }
    }

    /// The answer is over but not complete: markup that it had begun is not text.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Tokens spent on thinking so far.
    pub fn n_reasoning_tokens(&self) -> u32 {
        self.n_reasoning_tokens
    }

    /// Takes what `n_tokens` tokens released; with `last`, nothing is held back any more.
    pub fn push(&mut self, released: Released, n_tokens: u32, last: bool) -> Delta {
        let mut delta = Delta { n_tokens, ..Default::default() };
        if matches!(self.kind, Kind::Plain) {
            delta.content = released.text;
            delta.logprobs = released.logprobs.into_iter().map(|(_, entry)| entry).collect();
            return delta;
        }
        let was_thinking = self.is_thinking();
        let base = match &self.kind {
            Kind::Parser { whole, .. } => whole.len(),
            _ => self.offset + self.pending.len(),
        };
        self.logprobs.extend(released.logprobs.into_iter().map(|(at, entry)| (base + at, entry)));
        match &mut self.kind {
            Kind::Parser { whole, parsed, .. } => {
                whole.push_str(&released.text);
                // Each parse looks at the whole text; parsing only when it has grown by a share of itself keeps the
                // total linear in the answer's length.
                let grown = whole.len() - *parsed;
                if last || grown > whole.len() / 64 {
                    self.parse(&mut delta, last);
                }
            }
            _ => {
                self.pending.push_str(&released.text);
                while self.step(&mut delta, last) {}
            }
        }
        if was_thinking || self.is_thinking() {
            self.n_reasoning_tokens += n_tokens;
        }
        delta
    }

    fn is_thinking(&self) -> bool {
        match &self.kind {
            Kind::Tags { place, .. } => matches!(place, Place::Thinking { .. }),
            Kind::Parser { shown, .. } => {
                !shown.reasoning.is_empty() && shown.content.is_empty() && shown.calls.is_empty()
            }
            Kind::Plain => false,
        }
    }

    /// Attributes some of `pending`; false when more text is needed.
    fn step(&mut self, delta: &mut Delta, last: bool) -> bool {
        let Kind::Tags { start, ends, place } = &self.kind else { return false };
        let pending = self.pending.as_str();
        if pending.is_empty() {
            return false;
        }
        let space = pending.len() - pending.trim_start().len();
        let (n, part, next) = match *place {
            Place::Start => {
                let text = &pending[space..];
                if text.starts_with(start.as_str()) {
                    (space + start.len(), Part::Markup, Place::Thinking { fresh: true })
                } else if start.starts_with(text) && !last && space <= HELD_SPACE_MAX {
                    return false;
                } else {
                    (pending.len(), Part::Content, Place::Content)
                }
            }
            Place::Thinking { fresh: true } if space > 0 => (space, Part::Markup, *place),
            Place::Thinking { .. } => {
                let end = ends.iter().filter_map(|end| pending.find(end.as_str()).map(|at| (at, end.len()))).min();
                match end {
                    Some((0, length)) => (length, Part::Markup, Place::Closed),
                    Some((at, _)) => {
                        let text = pending[..at].trim_end().len();
                        // The white space before the end tag is markup, taken in the next round.
                        if text == 0 {
                            (at, Part::Markup, Place::Thinking { fresh: false })
                        } else {
                            (text, Part::Reasoning, Place::Thinking { fresh: false })
                        }
                    }
                    None => {
                        let held = if last { 0 } else { partial_tag(pending, ends) };
                        let text = pending[..pending.len() - held].trim_end().len();
                        // White space without end is text: holding it back would be looked at again for every token.
                        let is_over = last || pending.len() - held > HELD_SPACE_MAX;
                        let text = if is_over { pending.len() - held } else { text };
                        if text == 0 {
                            return false;
                        }
                        (text, Part::Reasoning, Place::Thinking { fresh: false })
                    }
                }
            }
            Place::Closed if space == pending.len() && !last && space <= HELD_SPACE_MAX => return false,
            Place::Closed => (space, Part::Markup, Place::Content),
            Place::Content => (pending.len(), Part::Content, Place::Content),
        };
        if let Kind::Tags { place, .. } = &mut self.kind {
            *place = next;
        }
        self.take(n, part, delta);
        true
    }

    fn take(&mut self, n: usize, part: Part, delta: &mut Delta) {
        let text: String = self.pending.drain(..n).collect();
        self.offset += n;
        while self.logprobs.front().is_some_and(|(at, _)| *at < self.offset) {
            let entry = self.logprobs.pop_front();
            if let (Part::Content, Some((_, entry))) = (part, entry) {
                delta.logprobs.push(entry);
            }
        }
        match part {
            Part::Content => delta.content.push_str(&text),
            Part::Reasoning => delta.reasoning.push_str(&text),
            Part::Markup => {}
        }
    }

    fn parse(&mut self, delta: &mut Delta, last: bool) {
        let Kind::Parser { parser, whole, parsed, told, shown } = &mut self.kind else { return };
        *parsed = whole.len();
        let has_calls = !shown.calls.is_empty();
        let read = match parser.parse(whole, !last) {
            Some(read) => read,
            None if !last => return,
            // Cut by the limit inside a call: that far it can be read.
            None => match (self.is_cut || has_calls).then(|| parser.parse(whole, true)).flatten() {
                Some(read) => read,
                None if has_calls => shown.clone(),
                // A finished answer is never lost: what can't be read is content as it stands.
                None => Parsed { content: format!("{}{}", shown.content, unread(whole, shown)), ..shown.clone() },
            },
        };
        // A parser may take back what it said of an unfinished text; what was shown stays, and what follows is not lost.
        let reasoning = beyond(&read.reasoning, &shown.reasoning, last);
        let content = beyond(&read.content, &shown.content, last);
        if let (Some(reasoning), Some(content)) = (reasoning, content) {
            delta.reasoning.push_str(reasoning);
            delta.content.push_str(content);
            let calls = next_calls(&mut shown.calls, &read, last, delta);
            if !content.is_empty() {
                *told = spelled(&mut self.logprobs, whole, *told, content, &mut delta.logprobs);
            }
            *shown = Parsed { calls, ..read };
        }
    }
}

/// Moves the entries of the tokens that spelled `content`, which stands somewhere in `whole` behind `from`, to `out`, and
/// drops those before it, which are markup's. Returns where it ends.
fn spelled(
    entries: &mut VecDeque<(usize, TokenLogprob)>,
    whole: &str,
    from: usize,
    content: &str,
    out: &mut Vec<TokenLogprob>,
) -> usize {
    let is_start = |at: usize| entries.iter().any(|(start, _)| *start == at);
    let mut places = whole[from..].match_indices(content).map(|(at, _)| from + at);
    let first = places.next();
    // Markup may hold the same letters; content mostly begins with a token.
    let at = first.filter(|at| is_start(*at)).or_else(|| places.find(|at| is_start(*at))).or(first);
    // A parser may say it in other words than the model.
    let (start, end) = at.map_or((from, whole.len()), |at| (at, at + content.len()));
    while let Some((at, entry)) = entries.front()
        && *at < end
    {
        let is_content = at + entry.bytes.len() > start;
        if let Some((_, entry)) = entries.pop_front().filter(|_| is_content) {
            out.push(entry);
        }
    }
    end
}

/// What `read` says of calls beyond `shown`; returns what is shown of them afterwards.
fn next_calls(shown: &mut Vec<ParsedCall>, read: &Parsed, last: bool, delta: &mut Delta) -> Vec<ParsedCall> {
    let mut calls = std::mem::take(shown);
    for (index, call) in read.calls.iter().enumerate() {
        // A name is whole once something follows it.
        let is_named = !call.name.is_empty() && (last || !call.arguments.is_empty() || index + 1 < read.calls.len());
        if !is_named || index > calls.len() {
            break;
        }
        let mut piece = ToolCallDelta { index: index as u32, ..Default::default() };
        if index == calls.len() {
            piece.opening = Some((call_id(), call.name.clone()));
            calls.push(ParsedCall { name: call.name.clone(), ..Default::default() });
        }
        let known = &mut calls[index].arguments;
        let arguments = if last && call.arguments.is_empty() { "{}" } else { &call.arguments };
        if let Some(more) = arguments.strip_prefix(known.as_str()) {
            piece.arguments.push_str(more);
            known.push_str(more);
        }
        if piece.opening.is_some() || !piece.arguments.is_empty() {
            delta.tool_calls.push(piece);
        }
    }
    calls
}

/// 142 random bits, so unique while the process lives and after.
fn call_id() -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letters = (0..24).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    "call_".chars().chain(letters).collect()
}

/// The part of an answer that follows the last text that was shown of it; all of it when nothing was.
fn unread<'a>(whole: &'a str, shown: &Parsed) -> &'a str {
    if shown.content.is_empty() {
        return whole;
    }
    whole.rfind(shown.content.as_str()).map_or(whole, |at| &whole[at + shown.content.len()..])
}

/// What `now` says beyond `shown`; `None` while it doesn't continue it and more text may come.
fn beyond<'a>(now: &'a str, shown: &str, last: bool) -> Option<&'a str> {
    if let Some(rest) = now.strip_prefix(shown) {
        return Some(rest);
    }
    let same: usize = now.chars().zip(shown.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    last.then(|| &now[same..])
}

/// Bytes at the end of `text` that may be the beginning of one of `tags`.
pub(super) fn partial_tag(text: &str, tags: &[String]) -> usize {
    let starts = |from: usize| tags.iter().any(|tag| tag.starts_with(&text[from..]));
    let longest = tags.iter().map(String::len).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest);
    (from..text.len()).filter(|at| text.is_char_boundary(*at)).find(|at| starts(*at)).map_or(0, |at| text.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tags(opened: bool) -> Reading {
        Reading::Tags { start: "<think>".into(), ends: vec!["</think>".into()], opened }
    }

    fn read(reading: Reading, pieces: &[&str]) -> (String, String) {
        let mut reader = Reader::new(reading);
        let (mut reasoning, mut content) = (String::new(), String::new());
        let last = pieces.len() - 1;
        for (index, piece) in pieces.iter().enumerate() {
            let released = Released { text: (*piece).to_owned(), ..Default::default() };
            let delta = reader.push(released, 1, index == last);
            reasoning += &delta.reasoning;
            content += &delta.content;
        }
        (reasoning, content)
    }

    #[test]
    fn thinking_goes_apart_and_the_tags_go_nowhere() {
        let read = read(tags(false), &["\n<th", "ink>\nlet me", " see </", "think>\n", "\nit is 4\n"]);
        assert_eq!(read, ("let me see".into(), "it is 4\n".into()));
    }

    #[test]
    fn a_template_that_opened_the_tag_starts_inside() {
        assert_eq!(read(tags(true), &["hm", "m</think>", "ok"]), ("hmm".into(), "ok".into()));
    }

    #[test]
    fn answers_without_thinking_are_all_content() {
        assert_eq!(read(tags(false), &["  <thin", "g> is", " a tag"]), ("".into(), "  <thing> is a tag".into()));
        assert_eq!(read(tags(false), &["<thi"]), ("".into(), "<thi".into()), "cut in what may have become a tag");
    }

    #[test]
    fn thinking_cut_by_the_limit_is_reasoning() {
        assert_eq!(read(tags(false), &["<think>so", " far </th"]), ("so far </th".into(), "".into()));
    }

    /// Reads everything before `!` as content and nothing behind it.
    struct Fussy;

    impl AnswerParser for Fussy {
        fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
            let content = |text: &str| Some(Parsed { content: text.into(), ..Default::default() });
            match text.find('!') {
                Some(at) if is_partial => content(&text[..at]),
                Some(_) => None,
                None => content(text),
            }
        }
    }

    #[test]
    fn an_answer_that_leaves_its_format_is_not_lost() {
        let pieces = ["so", " far", " good", "!", " and", " more"];
        assert_eq!(read(Reading::Parser(Box::new(Fussy)), &pieces), ("".into(), "so far good! and more".into()));
    }

    #[test]
    fn logprobs_belong_to_the_content_only() {
        let mut reader = Reader::new(tags(false));
        let mut spelled = Vec::new();
        for piece in ["<think>", "a", "</think>", "\n", "b", "c"] {
            let entry = TokenLogprob { id: 0, bytes: piece.as_bytes().to_vec(), logprob: 0.0, top: Vec::new() };
            let released = Released { text: piece.into(), logprobs: vec![(0, entry)], stop: None };
            spelled.extend(reader.push(released, 1, piece == "c").logprobs.into_iter().flat_map(|entry| entry.bytes));
        }
        assert_eq!(spelled, b"bc");
        assert_eq!(reader.n_reasoning_tokens(), 3);
    }

    /// Reads `<x>` and `</x>` as markup around content.
    struct Marked;

    impl AnswerParser for Marked {
        fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
            let held = if is_partial { partial_tag(text, &["<x>".into(), "</x>".into()]) } else { 0 };
            let content = text[..text.len() - held].replace("<x>", "").replace("</x>", "");
            Some(Parsed { content, ..Default::default() })
        }
    }

    #[test]
    fn logprobs_of_markup_are_not_the_contents() {
        let mut reader = Reader::new(Reading::Parser(Box::new(Marked)));
        let mut spelled = Vec::new();
        for piece in ["<", "x", ">", "x", " <", "b", "</x>", "c"] {
            let entry = TokenLogprob { id: 0, bytes: piece.as_bytes().to_vec(), logprob: 0.0, top: Vec::new() };
            let released = Released { text: piece.into(), logprobs: vec![(0, entry)], stop: None };
            let delta = reader.push(released, 1, piece == "c");
            spelled.extend(delta.logprobs.into_iter().map(|entry| String::from_utf8(entry.bytes).unwrap()));
        }
        assert_eq!(spelled, ["x", " <", "b", "c"]);
    }

    #[test]
    fn an_answer_that_was_cut_shows_no_markup() {
        for (is_cut, expected) in [(true, "good"), (false, "good! and")] {
            let mut reader = Reader::new(Reading::Parser(Box::new(Fussy)));
            let released = |text: &str| Released { text: text.into(), ..Default::default() };
            let mut content = reader.push(released("good"), 1, false).content;
            if is_cut {
                reader.cut();
            }
            content += &reader.push(released("! and"), 1, true).content;
            assert_eq!(content, expected);
        }
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_cuts(text in "(<think>|</think>|[ab< \n]){0,12}", cuts in prop::collection::vec(1usize..5, 1..40)) {
            let whole = read(tags(false), &[text.as_str()]);
            let mut pieces = Vec::new();
            let (mut rest, mut cuts) = (text.as_str(), cuts.into_iter());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.next().unwrap_or(2).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push("");
            prop_assert_eq!(read(tags(false), &pieces), whole);
        }
    }
}
