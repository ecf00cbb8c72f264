//! Drafts of the next tokens: from a text that the answer probably repeats, and from what the request itself said before
//! (prompt lookup: Saxena 2023; Yang et al. 2023, arXiv:2304.04487). Those of a model are `speculation`'s.
//!
//! A draft costs rows in a decode that happens anyway; what the model says about them decides, so the answer is the same
//! with and without.
//!
//! # Design
//! Each source follows the answer whether or not its draft is tried, so how often it is right is known at no cost: a source
//! that was wrong is silent, and speaks again when it would have been right for a while.

use super::backend::Token;
use super::trust::{Odds, Trust};
use rustc_hash::FxHashMap;

/// Tokens that must agree before a place in a text is believed.
const AGREE: usize = 3;
/// Tokens of the prompt, counted from its end, among which a passage is looked for: it bounds what a request costs before
/// its first token (about 20 ns a token) and the memory of its index.
const LOOKBACK: usize = 16 << 10;

/// Where a draft is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client's prediction.
    Prediction,
    /// The prompt and the answer so far.
    History,
    /// A model or heads that draft.
    Model,
}

/// Tokens that probably come next.
#[derive(Debug)]
pub(super) struct Draft {
    pub tokens: Vec<Token>,
    pub source: Source,
}

impl Draft {
    pub fn none() -> Self {
        Self { tokens: Vec::new(), source: Source::History }
    }
}

/// What a source proposes.
pub(super) struct Proposal<'a> {
    /// What comes next, as far as the text goes.
    pub text: &'a [Token],
    pub source: Source,
    /// How probably its first token is right, and each that follows one that was.
    pub odds: f64,
}

#[derive(Debug)]
pub(super) struct Drafter {
    prediction: Option<(Vec<Token>, Follower)>,
    history: Option<Follower>,
    /// Trust in what drafts beside the model; `None` where nothing does, or before the run has a slot.
    pub model: Option<Trust>,
    pub drafted: Drafted,
}

/// Tokens that were tried, and those of them that were right.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried {
    pub n: u32,
    pub n_right: u32,
}

impl Tried {
    fn add(&mut self, n: usize, n_right: usize) {
        self.n += n as u32;
        self.n_right += n_right as u32;
    }
}

/// What a run's drafts came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drafted {
    pub all: Tried,
    /// Those of the client's prediction.
    pub prediction: Tried,
}

/// How often texts were right lately, of all requests of a worker together: a new one begins with it.
#[derive(Debug, Clone)]
pub(super) struct Lately {
    prediction: ByStreak,
    history: ByStreak,
}

impl Default for Lately {
    fn default() -> Self {
        // What three agreeing tokens, or a long passage, are worth before anything is known.
        let odds = [(1.0, 1.0), (3.0, 1.0), (9.0, 1.0)].map(|(right, wrong)| Odds { right, wrong });
        Self { prediction: odds, history: odds }
    }
}

impl Lately {
    /// What a request came to.
    pub fn learn(&mut self, drafter: &Drafter) {
        let prediction = drafter.prediction.as_ref().map(|(_, follower)| (&mut self.prediction, follower));
        let history = drafter.history.as_ref().map(|follower| (&mut self.history, follower));
        for (odds, follower) in prediction.into_iter().chain(history) {
            odds.iter_mut()
                .zip(follower.seen)
                .for_each(|(odds, seen)| odds.take_all(seen.n_right, seen.n - seen.n_right));
        }
    }
}

impl Drafter {
    /// Begins with what is known of others.
    pub fn begin(&mut self, lately: &Lately) {
        let prediction = self.prediction.as_mut().map(|(_, follower)| (follower, &lately.prediction));
        let history = self.history.as_mut().map(|follower| (follower, &lately.history));
        for (follower, odds) in prediction.into_iter().chain(history) {
            follower.begin(odds);
        }
    }

    /// `None` when there is nothing to draft from.
    pub fn new(prediction: Option<Vec<Token>>, has_history: bool) -> Option<Box<Self>> {
        let prediction = prediction.filter(|text| !text.is_empty()).map(|text| {
            let mut follower = Follower::default();
            follower.learn(&text, 0);
            (follower.at, follower.streak) = (Some(0), Follower::SURE);
            (text, follower)
        });
        let history = has_history.then(Follower::default);
        let drafter = Self { prediction, history, model: None, drafted: Drafted::default() };
        (drafter.prediction.is_some() || has_history).then(|| Box::new(drafter))
    }

    /// What probably comes after `tokens` (the prompt and the answer so far), from the source that is surer.
    pub fn propose<'a>(&'a self, tokens: &'a [Token]) -> Option<Proposal<'a>> {
        let prediction = self.prediction.as_ref().and_then(|(text, follower)| {
            let text = text.get(follower.at?..).filter(|text| !text.is_empty())?;
            Some(Proposal { text, source: Source::Prediction, odds: follower.odds() })
        });
        let history = self.history.as_ref().and_then(|follower| {
            let text = tokens.get(follower.at?..)?;
            // Chunks of media are no tokens.
            let end = text.iter().position(|token| *token < 0).unwrap_or(text.len());
            let text = text.get(..end).filter(|text| !text.is_empty())?;
            Some(Proposal { text, source: Source::History, odds: follower.odds() })
        });
        match (prediction, history) {
            (Some(one), Some(other)) => Some(if other.odds > one.odds { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// `tokens`: the prompt and the answer so far, whose last token is new.
    pub fn follow(&mut self, tokens: &[Token], n_prompt: usize) {
        if let Some((text, follower)) = &mut self.prediction {
            follower.follow(text, tokens.get(n_prompt..).unwrap_or_default());
        }
        if let Some(follower) = &mut self.history {
            follower.learn(tokens, n_prompt.saturating_sub(LOOKBACK));
            follower.follow(tokens, tokens);
        }
        if let Some(trust) = &mut self.model {
            trust.pass();
        }
    }

    /// Of a draft of `n` tokens the model said `n_right` first.
    pub fn count(&mut self, source: Source, n: usize, n_right: usize) {
        self.drafted.all.add(n, n_right);
        match source {
            Source::Prediction => self.drafted.prediction.add(n, n_right),
            Source::History => {}
            Source::Model => {
                if let Some(trust) = &mut self.model {
                    trust.take(n, n_right);
                }
            }
        }
    }
}

/// Follows the answer through a text.
#[derive(Debug)]
struct Follower {
    /// Behind each run of `AGREE` tokens, where it stood last.
    index: FxHashMap<[Token; AGREE], u32>,
    /// Tokens of the text that are in the index.
    n_indexed: usize,
    /// Where the answer goes on in the text; `None` while it isn't following it.
    at: Option<usize>,
    /// Tokens in a row that the text foretold, or that stand before its place and end the answer, beyond the `AGREE` by which
    /// the place was found.
    streak: u32,
    odds: ByStreak,
    /// Of this request, as `odds`.
    seen: [Tried; 3],
}

/// By the length of the streak: new, some, `SURE`.
type ByStreak = [Odds; 3];

impl Default for Follower {
    fn default() -> Self {
        let odds = Lately::default().history;
        Self { index: FxHashMap::default(), n_indexed: 0, at: None, streak: 0, odds, seen: [Tried::default(); 3] }
    }
}

impl Follower {
    /// What others came to weighs as so many guesses of its own, by the length of the streak.
    const WEIGHTS: [f64; 3] = [2.0, 4.0, 10.0];
    const SOME: u32 = 4;
    const SURE: u32 = 16;

    fn begin(&mut self, lately: &ByStreak) {
        for ((odds, lately), weight) in self.odds.iter_mut().zip(lately).zip(Self::WEIGHTS) {
            *odds = lately.of_weight(weight);
        }
    }

    fn level(&self) -> usize {
        usize::from(self.streak >= Self::SOME) + usize::from(self.streak >= Self::SURE)
    }

    fn odds(&self) -> f64 {
        self.odds[self.level()].value()
    }

    /// Takes the last token of `answer` in: it is what the text foretold, or the place is looked for anew.
    fn follow(&mut self, text: &[Token], answer: &[Token]) {
        let Some(last) = answer.last() else { return };
        if let Some(foretold) = self.at.and_then(|at| text.get(at)) {
            let is_right = foretold == last;
            let level = self.level();
            self.odds[level].take(is_right);
            self.seen[level].add(1, usize::from(is_right));
            if is_right {
                self.streak += 1;
                self.at = self.at.map(|at| at + 1);
                return;
            }
        }
        self.at = answer.last_chunk().and_then(|end| self.index.get(end)).map(|at| *at as usize);
        // A question asked again says from the first token on what its answer was: what agrees before the place counts
        // as if it had been foretold.
        let before = self.at.and_then(|at| text.get(..at)).unwrap_or_default();
        let agreeing = before.iter().rev().zip(answer.iter().rev()).take(AGREE + Self::SURE as usize);
        let n_agreeing = agreeing.take_while(|(one, other)| one == other).count();
        self.streak = n_agreeing.saturating_sub(AGREE) as u32;
    }

    /// Takes the rest of `text` into the index, of what is not there yet from `from` on; not what ends it, which nothing
    /// follows.
    fn learn(&mut self, text: &[Token], from: usize) {
        let start = self.n_indexed.max(from);
        for (i, window) in text.get(start..).unwrap_or_default().windows(AGREE).enumerate() {
            let behind = start + i + AGREE;
            if behind < text.len() {
                if let Ok(run) = <[Token; AGREE]>::try_from(window) {
                    self.index.insert(run, behind as u32);
                }
                self.n_indexed = start + i + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn says(drafter: &Drafter, tokens: &[Token]) -> Vec<Token> {
        drafter.propose(tokens).map(|proposal| proposal.text.to_vec()).unwrap_or_default()
    }

    #[test]
    fn a_prediction_goes_on_where_the_answer_is() {
        let mut drafter = Drafter::new(Some((1..10).collect()), false).unwrap();
        let mut tokens = vec![70, 71];
        let mut say = |drafter: &mut Drafter, token| {
            tokens.push(token);
            drafter.follow(&tokens, 2);
            says(drafter, &tokens)
        };
        assert_eq!(says(&drafter, &[]), (1..10).collect::<Vec<_>>());
        assert_eq!(say(&mut drafter, 1), (2..10).collect::<Vec<_>>());
        assert!(say(&mut drafter, 42).is_empty(), "lost");
        say(&mut drafter, 5);
        say(&mut drafter, 6);
        assert_eq!(say(&mut drafter, 7), [8, 9], "found again");
    }

    #[test]
    fn a_passage_of_the_prompt_is_found_and_believed_more_the_longer_it_holds() {
        let passage: Vec<Token> = (100..140).collect();
        let mut tokens = passage.clone();
        tokens.extend([1, 2, 3]);
        let n_prompt = tokens.len();
        let mut drafter = Drafter::new(None, true).unwrap();
        let mut odds = Vec::new();
        for token in &passage {
            tokens.push(*token);
            drafter.follow(&tokens, n_prompt);
            if let Some(proposal) = drafter.propose(&tokens) {
                assert_eq!(proposal.source, Source::History);
                assert_eq!(proposal.text.first(), Some(&(token + 1)).filter(|next| **next < 140).or(Some(&1)));
                odds.push(proposal.odds);
            }
        }
        assert_eq!(odds.len(), passage.len() - AGREE + 1, "found by its first {AGREE} tokens");
        assert!(odds[0] <= 0.5 && odds[36] > 0.9, "{odds:?}");
    }

    #[test]
    fn a_question_asked_again_is_believed_from_the_first_token_of_its_answer_on() {
        let (question, answer): (Vec<Token>, Vec<Token>) = ((1..30).collect(), (100..140).collect());
        let again = [&question[..], &answer, &[7, 8], &question].concat();
        let elsewhere = [&question[..], &answer, &[7, 8], &question[27..]].concat();
        for (mut tokens, is_sure) in [(again, true), (elsewhere, false)] {
            let mut drafter = Drafter::new(None, true).unwrap();
            let n_prompt = tokens.len();
            tokens.push(100);
            drafter.follow(&tokens, n_prompt);
            let proposal = drafter.propose(&tokens).unwrap();
            assert_eq!(proposal.text[..39], answer[1..]);
            assert_eq!(proposal.odds >= 0.9, is_sure, "{}", proposal.odds);
        }
    }

    #[test]
    fn a_request_begins_with_what_those_before_it_came_to() {
        let passage: Vec<Token> = (100..160).collect();
        let mut lately = Lately::default();
        let mut run = |is_copied: bool| {
            let mut tokens = [&passage[..], &passage[..30]].concat();
            let n_prompt = tokens.len();
            let mut drafter = Drafter::new(None, true).unwrap();
            drafter.begin(&lately);
            let mut first = None;
            for (i, token) in passage.iter().enumerate().skip(30) {
                tokens.push(if is_copied || i % 5 != 4 { *token } else { 7 });
                drafter.follow(&tokens, n_prompt);
                first = first.or(drafter.propose(&tokens).map(|proposal| proposal.odds));
            }
            lately.learn(&drafter);
            first.unwrap()
        };
        let fresh = run(true);
        run(true);
        let trusted = run(true);
        assert!((fresh - 0.9).abs() < 0.01 && trusted > 0.97, "{fresh}, {trusted}");
        for _ in 0..6 {
            run(false);
        }
        assert!(run(false) < 0.85);
    }

    #[test]
    fn a_source_that_is_wrong_loses_its_odds_and_gets_them_back() {
        // 1 2 3 is followed by something else each time.
        let mut drafter = Drafter::new(None, true).unwrap();
        let mut tokens = Vec::new();
        let mut odds = |drafter: &mut Drafter, next: Token| {
            let mut odds = f64::NAN;
            for token in [1, 2, 3, next] {
                tokens.push(token);
                drafter.follow(&tokens, 0);
                if token == 3 {
                    odds = drafter.propose(&tokens).map_or(odds, |proposal| proposal.odds);
                }
            }
            odds
        };
        for next in 100..130 {
            odds(&mut drafter, next);
        }
        let worst = odds(&mut drafter, 130);
        assert!(worst < 0.3, "{worst}");
        for _ in 0..60 {
            odds(&mut drafter, 5);
        }
        let best = odds(&mut drafter, 5);
        assert!(best > worst, "{best}");
    }

    #[test]
    fn only_predictions_are_counted_as_such() {
        let mut drafter = Drafter::new(Some(vec![1, 2, 3]), true).unwrap();
        drafter.count(Source::Prediction, 4, 1);
        drafter.count(Source::History, 9, 9);
        let Drafted { all, prediction } = drafter.drafted;
        assert_eq!((prediction.n, prediction.n_right, all.n, all.n_right), (4, 1, 13, 10));
        assert!(Drafter::new(Some(Vec::new()), false).is_none());
    }

    proptest! {
        /// What is proposed stands in the text, behind the same tokens that end the answer, or where the last guess was right.
        #[test]
        fn proposals_follow_what_was_said(prompt in prop::collection::vec(0i32..4, 0..60), answer in prop::collection::vec(-1i32..4, 1..60)) {
            let mut drafter = Drafter::new(None, true).unwrap();
            let mut tokens = prompt.clone();
            for token in answer {
                tokens.push(token.max(0));
                drafter.follow(&tokens, prompt.len());
                if let Some(proposal) = drafter.propose(&tokens) {
                    prop_assert!(!proposal.text.is_empty() && (0.0..=Odds::MOST).contains(&proposal.odds));
                    let at = tokens.len() - proposal.text.len();
                    prop_assert!(at >= 1 && tokens[at..] == *proposal.text);
                    prop_assert_eq!(tokens[at - 1], tokens[tokens.len() - 1], "it follows the token that was said");
                }
            }
        }
    }
}
