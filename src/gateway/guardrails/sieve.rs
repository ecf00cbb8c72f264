//! Text that passes list after list while it comes, piece by piece.
//!
//! **Invariant:** what comes out of all pieces together is what would come out of the whole text at once, however it is
//! cut; and a piece waits only for what may still decide a match (at most [`super::patterns::MATCH_BYTES_MAX`] and one
//! character for each list).

use super::patterns::Patterns;
use std::sync::Arc;

/// What is done with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Redact,
    /// The text ends before it.
    Deny,
}

/// A list, and what is done with its matches.
pub(super) type Step = (Act, Arc<Patterns>);

/// One list at work.
#[derive(Debug)]
struct Stage {
    act: Act,
    patterns: Arc<Patterns>,
    /// The character before what is undecided, and what is.
    text: String,
    at: usize,
}

/// All lists of a request at work on one text. Each sees what the ones before it let through: what is redacted is not
/// there any more for those that deny.
#[derive(Debug)]
pub(super) struct Sieve {
    stages: Vec<Stage>,
    is_denied: bool,
    /// Something was replaced or denied.
    has_matched: bool,
}

/// The text ends here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Denied;

impl Sieve {
    pub(super) fn new(steps: &[Step]) -> Self {
        let stage =
            |(act, patterns): &Step| Stage { act: *act, patterns: Arc::clone(patterns), text: String::new(), at: 0 };
        Self { stages: steps.iter().map(stage).collect(), is_denied: false, has_matched: false }
    }

    /// For what can't be rewritten: any match ends it.
    fn strict(steps: &[Step]) -> Self {
        let steps: Vec<Step> = steps.iter().map(|(_, patterns)| (Act::Deny, Arc::clone(patterns))).collect();
        Self::new(&steps)
    }

    /// Takes a piece, and appends to `out` what is decided.
    pub(super) fn push(&mut self, piece: &str, out: &mut String) -> Result<(), Denied> {
        self.run(piece, false, out)
    }

    /// The text is over: appends what is left, and begins anew.
    pub(super) fn finish(&mut self, out: &mut String) -> Result<(), Denied> {
        let done = self.run("", true, out);
        for stage in &mut self.stages {
            stage.text.clear();
            stage.at = 0;
        }
        done
    }

    /// Whether anything waits.
    #[cfg(test)]
    pub(super) fn is_holding(&self) -> bool {
        self.stages.iter().any(|stage| stage.at < stage.text.len())
    }

    pub(super) fn has_matched(&self) -> bool {
        self.has_matched
    }

    fn run(&mut self, piece: &str, is_end: bool, out: &mut String) -> Result<(), Denied> {
        if self.is_denied {
            return Err(Denied);
        }
        let (mut text, mut is_end) = (piece.to_owned(), is_end);
        for stage in &mut self.stages {
            let mut passed = String::with_capacity(text.len());
            stage.text.push_str(&text);
            let (is_denied, has_matched) = stage.pass(is_end, &mut passed);
            // What goes on is all that there will ever be.
            is_end |= is_denied;
            self.is_denied |= is_denied;
            self.has_matched |= has_matched;
            text = passed;
        }
        out.push_str(&text);
        if self.is_denied { Err(Denied) } else { Ok(()) }
    }
}

impl Stage {
    /// Moves what is decided to `out`; whether a match ends the text, and whether there was any.
    fn pass(&mut self, is_end: bool, out: &mut String) -> (bool, bool) {
        let mut has_matched = false;
        loop {
            let undecided = if is_end { self.text.len() } else { self.patterns.undecided(&self.text, self.at) };
            match self.patterns.find(&self.text, self.at).filter(|(span, _)| span.start < undecided) {
                Some((span, replacement)) => {
                    has_matched = true;
                    self.patterns.did(self.act);
                    out.push_str(&self.text[self.at..span.start]);
                    if self.act == Act::Deny {
                        self.text.clear();
                        self.at = 0;
                        return (true, true);
                    }
                    out.push_str(replacement);
                    self.at = span.end;
                }
                None => {
                    out.push_str(&self.text[self.at..undecided]);
                    self.at = undecided;
                    break;
                }
            }
        }
        // One character before is all that a pattern can look back at.
        let before = self.text[..self.at].char_indices().next_back().map_or(0, |(at, _)| at);
        self.text.drain(..before);
        self.at -= before;
        (false, has_matched)
    }
}

/// Whether no list has anything to say of a text that can't be rewritten.
pub(super) fn is_clear(steps: &[Step], text: &str) -> bool {
    Sieve::strict(steps).run(text, true, &mut String::new()).is_ok()
}

/// A whole text, and whether it was changed.
pub(super) fn whole(steps: &[Step], text: &str) -> Result<Option<String>, Denied> {
    let (mut sieve, mut out) = (Sieve::new(steps), String::new());
    sieve.stages.iter_mut().for_each(|stage| stage.text.reserve(text.len()));
    sieve.run(text, true, &mut out)?;
    Ok(sieve.has_matched().then_some(out))
}
