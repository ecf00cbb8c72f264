//! Words and regular expressions, compiled to look at text that is still coming.
//!
//! # Design
//! All patterns of a list are one automaton of `regex-automata`, the engine of the `regex` crate: linear in the text,
//! whatever the pattern. A second automaton is made of the first one's syntax tree: it matches every *beginning* of a match
//! at the end of the text. The leftmost place where it matches is the first one that what comes next could still decide,
//! so everything before it may go out, and nothing else has to wait. A match may end at a place that depends on the
//! character behind it (`\b`, `$`); such a match is a beginning, too, until that character is there.

use super::sieve::Act;
use crate::telemetry::metrics::RuleSeries;
use regex_automata::meta::Regex;
use regex_automata::{Input, Span};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind, Repetition};
use std::sync::OnceLock;

/// Longest match, in bytes, where text is looked at as it comes: what may have to be held back.
pub(super) const MATCH_BYTES_MAX: usize = 512;
/// Longest text of a pattern.
const PATTERN_BYTES_MAX: usize = 1024;
/// Longest word.
const WORD_CHARS_MAX: usize = 64;
/// Words and patterns of one list.
pub(super) const PATTERNS_MAX: usize = 1000;
/// Memory of one automaton.
const AUTOMATON_BYTES_MAX: usize = 8 << 20;

/// One list.
#[derive(Debug)]
pub(super) struct Patterns {
    regex: Regex,
    /// Beginnings of matches at the end of the text; `None`: only whole texts are looked at.
    beginnings: Option<Regex>,
    /// What stands in a match's place, by its pattern.
    replacements: Vec<String>,
    /// Where what is done with matches is counted, once there is a server.
    series: OnceLock<RuleSeries>,
}

/// A pattern, what stands in its place, and what to call it in an error.
pub(super) struct Source {
    pub hir: Hir,
    pub replacement: String,
}

impl Source {
    /// A word, in whatever case, not inside of another.
    pub(super) fn word(text: &str) -> Result<Self, String> {
        let n_chars = text.chars().count();
        if text.trim().is_empty() || n_chars > WORD_CHARS_MAX {
            return Err(format!("a word has 1 to {WORD_CHARS_MAX} characters"));
        }
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let edge = |c: Option<char>| if is_word(c) { r"\b" } else { "" };
        let (start, end) = (edge(text.chars().next()), edge(text.chars().last()));
        Self::regex(&format!("(?i:{start}{}{end})", regex_syntax::escape(text)), String::new())
    }

    /// Errors: what is wrong with the pattern, for the operator.
    pub(super) fn regex(text: &str, replacement: String) -> Result<Self, String> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"));
        }
        let parsed = ParserBuilder::new().nest_limit(64).build().parse(text);
        let hir = parsed.map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())?;
        match hir.properties().minimum_len() {
            None => Err("it can never match".to_owned()),
            Some(0) => Err("it matches the empty text".to_owned()),
            Some(_) => Ok(Self { hir, replacement }),
        }
    }
}

impl Patterns {
    /// `comes`: text will be looked at as it comes, so matches must have a bound. `None` of no sources.
    pub(super) fn new(sources: Vec<Source>, comes: bool) -> Result<Option<Self>, String> {
        if sources.is_empty() {
            return Ok(None);
        }
        if sources.len() > PATTERNS_MAX {
            return Err(format!("more than {PATTERNS_MAX} words and patterns"));
        }
        let is_bounded = |source: &Source| source.hir.properties().maximum_len().is_some_and(|n| n <= MATCH_BYTES_MAX);
        if comes && !sources.iter().all(is_bounded) {
            return Err(format!(
                "a match of it has no bound, or may be longer than {MATCH_BYTES_MAX} bytes: answers are looked at as they \
                 come, so say how long a match can be, as {{1,64}} instead of + or *"
            ));
        }
        let beginnings = comes.then(|| {
            let all = sources.iter().map(|source| beginning(&source.hir)).collect();
            let end = Hir::look(regex_syntax::hir::Look::End);
            build(&[Hir::concat(vec![Hir::alternation(all), end])])
        });
        let (hirs, replacements): (Vec<Hir>, Vec<String>) =
            sources.into_iter().map(|source| (source.hir, source.replacement)).unzip();
        Ok(Some(Self {
            regex: build(&hirs)?,
            beginnings: beginnings.transpose()?,
            replacements,
            series: OnceLock::new(),
        }))
    }

    /// The first match in `text` that begins at or behind `from`; what is before `from` is only looked back at. Of several
    /// that begin at one place, that of the pattern that was named first.
    pub(super) fn find(&self, text: &str, from: usize) -> Option<(Span, &str)> {
        let found = self.regex.search(&Input::new(text).range(from..))?;
        let replacement = self.replacements.get(found.pattern().as_usize()).map_or("", String::as_str);
        Some((found.span(), replacement))
    }

    /// From now on matches are counted there, if they were not counted anywhere before.
    pub(super) fn count_in(&self, series: RuleSeries) {
        // A reload that leaves the list as it was finds it counted.
        let _ = self.series.set(series);
    }

    /// This was done with a match.
    pub(super) fn did(&self, act: Act) {
        match (self.series.get(), act) {
            (Some(series), Act::Redact) => series.redacted(),
            (Some(series), Act::Deny) => series.denied(),
            (None, _) => {}
        }
    }

    #[cfg(test)]
    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The first place at or behind `from` where more text could still make or change a match.
    pub(super) fn undecided(&self, text: &str, from: usize) -> usize {
        let Some(beginnings) = &self.beginnings else { return from };
        beginnings.search(&Input::new(text).range(from..)).map_or(text.len(), |found| found.start())
    }
}

fn build(hirs: &[Hir]) -> Result<Regex, String> {
    let config = Regex::config().nfa_size_limit(Some(AUTOMATON_BYTES_MAX)).hybrid_cache_capacity(1 << 20);
    let too_large = |_| format!("together they need more than {} MiB", AUTOMATON_BYTES_MAX >> 20);
    Regex::builder().configure(config).build_many_from_hir(hirs).map_err(too_large)
}

/// What matches every beginning of a match, the empty one and the whole one too. A look at what comes next is always
/// undecided at the end of the text, so it asks for nothing there.
fn beginning(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Hir::empty(),
        HirKind::Literal(literal) => match std::str::from_utf8(&literal.0) {
            Ok(text) => text.chars().rev().fold(Hir::empty(), |rest, c| {
                let mut bytes = [0; 4];
                maybe(Hir::concat(vec![Hir::literal(c.encode_utf8(&mut bytes).as_bytes()), rest]))
            }),
            Err(_) => maybe(hir.clone()),
        },
        HirKind::Class(_) => maybe(hir.clone()),
        HirKind::Capture(capture) => beginning(&capture.sub),
        HirKind::Repetition(repetition) => match repetition.max {
            Some(0) => Hir::empty(),
            max => {
                let max = max.map(|max| max - 1);
                let whole = Repetition { min: 0, max, greedy: true, sub: repetition.sub.clone() };
                Hir::concat(vec![Hir::repetition(whole), beginning(&repetition.sub)])
            }
        },
        HirKind::Alternation(all) => Hir::alternation(all.iter().map(beginning).collect()),
        HirKind::Concat(parts) => parts.iter().rev().fold(Hir::empty(), |rest, part| {
            Hir::alternation(vec![Hir::concat(vec![part.clone(), rest]), beginning(part)])
        }),
    }
}

fn maybe(hir: Hir) -> Hir {
    Hir::alternation(vec![hir, Hir::empty()])
}
