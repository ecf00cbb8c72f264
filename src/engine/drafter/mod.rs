//! Drafts of the next tokens: from a text that the answer probably repeats, from what the request itself said before
//! (prompt lookup: Saxena 2023; Yang et al. 2023, arXiv:2304.04487), and from other answers. Those of a model are
//! `speculation`'s.
//!
//! A draft costs rows in a decode that happens anyway; what the model says about them decides, so the answer is the same
//! with and without.
//!
//! # Design
//! Each source follows the answer whether or not its draft is tried, so how often it is right is known at no cost: a source
//! that was wrong is silent, and speaks again when it would have been right for a while. Each has odds of its own, and the
//! surest is asked.
//!
//! Odds say what pays on average, and texts are not average: an answer either repeats its prompt or does not, and of a long
//! draft that is wrong a short answer feels a tenth. So each answer has a `Purse` out of which its drafts are paid, with little
//! in it at first: what it can lose is bounded, whatever other answers came to, and what is right fills it within a few steps.
//!
//! llama.cpp's kinds of prompt lookup, and what stands for them here: `ngram-simple` and `ngram-map-k` are `History`,
//! `ngram-map-k4v` is `Majority`, `ngram-mod` is `Answers`, but for one tenant and with odds, `ngram-cache` with a static file is
//! `Corpus`, but for keys of up to four tokens and with odds. Its dynamic file, which answers are written into, is left out: it
//! would tell every tenant what others were answered.
//!
//! A draft is as long as the memory can go back at most: any length where it can be cut; where it holds a recurrent state, the
//! rows that states are kept for (`model::rows_back`), in steps of one sequence; nothing where none are kept.

mod answers;
mod corpus;
mod guesses;
mod purse;
mod reciter;
mod tenants;
mod text;

pub(super) use corpus::Corpus;
pub(super) use tenants::{Lately, Tenants};

use super::backend::Token;
use super::cost::Chances;
use super::trust::Trust;
use crate::model::ngrams::KEY_MAX;
use answers::Pool;
use guesses::{Guesses, UNKNOWN};
use purse::Purse;
use reciter::Reciter;
use std::sync::Arc;
use text::{Follower, Index};

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
    /// The prompt and the answer so far: what came next the last time.
    History,
    /// The same, where what came next differed: what came most often.
    Majority,
    /// Answers of the same partition.
    Answers,
    /// Texts that the operator chose.
    Corpus,
    /// A model or heads that draft.
    Model,
}

/// Tokens that probably come next.
#[derive(Debug)]
pub(super) struct Draft {
    pub tokens: Vec<Token>,
    pub source: Source,
    /// What they cost if all are wrong, in tokens that the answer would get in that time.
    pub price: f64,
    /// All requests pay for it; see `StepCost::trial`.
    pub is_trial: bool,
}

impl Draft {
    pub fn none() -> Self {
        Self { tokens: Vec::new(), source: Source::History, price: 0.0, is_trial: false }
    }
}

/// What a source proposes.
pub(super) struct Proposal<'a> {
    /// What comes next, as far as the text goes.
    pub text: &'a [Token],
    pub source: Source,
    pub chances: Chances,
    /// Most that may be lost with a draft of it, in tokens that the answer would get in that time.
    pub stake: f64,
    /// What is at stake is counted by its odds; see `Guesses::is_proven`.
    pub is_proven: bool,
}

#[derive(Debug)]
pub(super) struct Drafter {
    purse: Purse,
    prediction: Option<Prediction>,
    history: Option<History>,
    /// `None`: other answers are not to be known of this one, nor it of them.
    answers: Option<Reciter>,
    corpus: Option<Recital>,
    /// Trust in what drafts beside the model; `None` where nothing does, or before the run has a slot.
    pub model: Option<Trust>,
    pub drafted: Drafted,
}

#[derive(Debug)]
struct Prediction {
    text: Vec<Token>,
    index: Index,
    follower: Follower,
}

/// A way through the operator's texts.
#[derive(Debug)]
struct Recital {
    corpus: Arc<Corpus>,
    reciter: Reciter,
}

/// Ways through the prompt and the answer so far.
#[derive(Debug, Default)]
struct History {
    index: Index,
    last: Follower,
    majority: Follower,
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

impl Drafter {
    /// A request begins with what is known of others of its partition. `has_model`: something drafts beside the model.
    pub fn begin(&mut self, mut lately: Option<&mut Lately>, has_model: bool) {
        if has_model {
            self.model = Some(lately.as_mut().map_or_else(Trust::new, |lately| lately.trust()));
        }
        let Some(lately) = lately else { return };
        if let Some(prediction) = &mut self.prediction {
            prediction.follower.guesses.begin(&lately.prediction);
        }
        if let Some(history) = &mut self.history {
            history.last.guesses.begin(&lately.history);
            history.majority.guesses.begin(&lately.majority);
        }
        if let Some(Recital { reciter, .. }) = &mut self.corpus {
            reciter.guesses.begin(&lately.corpus);
        }
        self.answers = Some(Reciter::new(answers::AGREE, &lately.answers));
    }

    /// `None` when there is nothing to draft from.
    pub fn new(prediction: Option<Vec<Token>>, has_history: bool) -> Option<Box<Self>> {
        let prediction = prediction.filter(|text| !text.is_empty()).map(|text| {
            let mut index = Index::default();
            index.learn(&text, 0);
            Prediction { text, index, follower: Follower::at_start() }
        });
        let history = has_history.then(History::default);
        let (purse, answers, corpus, model) = (Purse::default(), None, None, None);
        let drafter = Self { purse, prediction, history, answers, corpus, model, drafted: Drafted::default() };
        (drafter.prediction.is_some() || has_history).then(|| Box::new(drafter))
    }

    /// From the operator's texts too.
    pub fn with_corpus(mut self: Box<Self>, corpus: Option<&Arc<Corpus>>) -> Box<Self> {
        self.corpus = corpus.map(|corpus| {
            let reciter = Reciter::new(KEY_MAX, &UNKNOWN);
            Recital { corpus: Arc::clone(corpus), reciter }
        });
        self
    }

    /// What probably comes after `tokens` (the prompt and the answer so far), from the source that is surest.
    pub fn propose<'a>(&'a self, tokens: &'a [Token]) -> Option<Proposal<'a>> {
        let worth = |text, source, guesses: &Guesses| {
            let (n, chances) = (guesses.n_foretold(), guesses.chances());
            Proposal { text, source, chances, stake: self.purse.stake(n), is_proven: guesses.is_proven() }
        };
        let prediction = self.prediction.as_ref().and_then(|prediction| {
            let text = prediction.follower.ahead(&prediction.text)?;
            Some(worth(text, Source::Prediction, &prediction.follower.guesses))
        });
        let of_history = |follower: &Follower, source| {
            let text = follower.ahead(tokens)?;
            // Chunks of media are no tokens.
            let end = text.iter().position(|token| *token < 0).unwrap_or(text.len());
            let text = text.get(..end).filter(|text| !text.is_empty())?;
            Some(worth(text, source, &follower.guesses))
        };
        let history = self.history.as_ref();
        let answers = self.answers.as_ref().and_then(|answers| {
            let text = answers.ahead()?;
            Some(worth(text, Source::Answers, &answers.guesses))
        });
        let corpus = self.corpus.as_ref().and_then(|Recital { reciter, .. }| {
            let text = reciter.ahead()?;
            Some(worth(text, Source::Corpus, &reciter.guesses))
        });
        let proposals = [
            prediction,
            history.and_then(|history| of_history(&history.last, Source::History)),
            history.and_then(|history| of_history(&history.majority, Source::Majority)),
            answers,
            corpus,
        ];
        // Of several that are as sure the first.
        let sure = |proposal: &Proposal| proposal.chances.first * proposal.chances.next;
        let surer = |one: Proposal<'a>, other: Proposal<'a>| if sure(&other) > sure(&one) { other } else { one };
        proposals.into_iter().flatten().reduce(surer)
    }

    /// `tokens`: the prompt and the answer so far, whose last token is new. Other answers follow in `share`.
    pub fn follow(&mut self, tokens: &[Token], n_prompt: usize) {
        let answer = tokens.get(n_prompt..).unwrap_or_default();
        self.purse.pass();
        if let Some(Prediction { text, index, follower }) = &mut self.prediction {
            follower.follow(text, answer, |end| index.last(end));
        }
        if let Some(History { index, last, majority }) = &mut self.history {
            index.learn(tokens, n_prompt.saturating_sub(LOOKBACK));
            last.follow(tokens, tokens, |end| index.last(end));
            majority.follow(tokens, tokens, |end| index.majority(end));
        }
        if let Some(Recital { corpus, reciter }) = &mut self.corpus {
            reciter.follow(tokens, |said| corpus.next(said));
        }
        if let Some(trust) = &mut self.model {
            trust.pass();
        }
    }

    /// The last `n_new` tokens of `answer` become known to other answers of its partition, as theirs to it.
    pub fn share(&mut self, answer: &[Token], n_new: usize, pool: Option<&mut Pool>) {
        match (&mut self.answers, pool) {
            (Some(answers), Some(pool)) => {
                for n in answer.len().saturating_sub(n_new) + 1..=answer.len() {
                    answers.follow(&answer[..n], |said| pool.next(said));
                    pool.learn(&answer[..n]);
                }
            }
            // Others took the pool's room.
            (Some(_), None) => self.answers = None,
            (None, _) => {}
        }
    }

    /// Of a draft of `n` tokens, at this price, the model said `n_right` first.
    pub fn count(&mut self, source: Source, (n, n_right): (usize, usize), price: f64) {
        self.drafted.all.add(n, n_right);
        if source == Source::Prediction {
            self.drafted.prediction.add(n, n_right);
        }
        match source {
            Source::Prediction | Source::History | Source::Majority | Source::Answers | Source::Corpus => {
                self.purse.settle(n_right, price);
            }
            Source::Model => {
                if let Some(trust) = &mut self.model {
                    trust.take(n, n_right);
                }
            }
        }
    }
}

#[cfg(test)]
mod simulation_tests;

#[cfg(test)]
mod tests {
    use super::super::trust::Odds;
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
                odds.push(proposal.chances.next);
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
            assert_eq!(proposal.chances.next >= 0.9, is_sure, "{}", proposal.chances.next);
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
            drafter.begin(Some(&mut lately), false);
            let mut first = None;
            for (i, token) in passage.iter().enumerate().skip(30) {
                tokens.push(if is_copied || i % 5 != 4 { *token } else { 7 });
                drafter.follow(&tokens, n_prompt);
                first = first.or(drafter.propose(&tokens).map(|proposal| proposal.chances.next));
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
                    odds = drafter.propose(&tokens).map_or(odds, |proposal| proposal.chances.next);
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
    fn where_what_followed_differs_the_source_that_is_right_more_often_is_asked() {
        let mut drafter = Drafter::new(None, true).unwrap();
        let (mut tokens, mut random) = (Vec::new(), 1u32);
        let (mut n_right, mut n_right_last, mut n_of_majority) = (0, 0, 0);
        for turn in 0..400 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let next = if random >> 24 < 60 { 9 } else { 5 };
            // What comes between is never the same, so that no passage goes on from one to the next.
            for token in [1000 + turn, 1, 2, 3] {
                tokens.push(token);
                drafter.follow(&tokens, 0);
            }
            if turn >= 200 {
                let last = drafter.history.as_ref().and_then(|history| history.last.ahead(&tokens)).unwrap();
                n_right_last += usize::from(last[0] == next);
                let proposal = drafter.propose(&tokens).unwrap();
                n_right += usize::from(proposal.text[0] == next);
                n_of_majority += usize::from(proposal.source == Source::Majority);
            }
            tokens.push(next);
            drafter.follow(&tokens, 0);
        }
        assert!(n_right > n_right_last + 10 && n_of_majority > 20, "{n_right}, {n_right_last}, {n_of_majority}");
    }

    #[test]
    fn another_answer_is_drafted_from_where_the_own_text_says_nothing() {
        let mut tenants = Tenants::default();
        let answer: Vec<Token> = (100..200).collect();
        let mut says_of = |partition: Option<u64>, question: Token| {
            let mut drafter = Drafter::new(None, true).unwrap();
            drafter.begin(partition.map(|partition| tenants.open(partition)), false);
            let (mut tokens, mut n_foretold) = (vec![question], 0);
            for token in &answer {
                tokens.push(*token);
                drafter.follow(&tokens, 1);
                drafter.share(&tokens[1..], 1, partition.and_then(|partition| tenants.pool(partition)));
                let source = drafter.propose(&tokens).map(|proposal| proposal.source);
                n_foretold += usize::from(source == Some(Source::Answers));
            }
            n_foretold
        };
        assert_eq!(says_of(None, 1), 0);
        assert_eq!(says_of(Some(1), 2), 0, "whoever shares nothing is not learnt from");
        assert!(says_of(Some(1), 3) > 90);
        assert_eq!((says_of(Some(2), 4), says_of(None, 5)), (0, 0));
    }

    #[test]
    fn the_operators_texts_are_drafted_from_for_everybody() {
        let text: Vec<Token> = (100..200).collect();
        let corpus = corpus::tests::corpus(&[&text]);
        let mut lately = Lately::default();
        let mut says = |answer: &[Token], corpus: Option<&Arc<Corpus>>| {
            let mut drafter = Drafter::new(None, true).unwrap().with_corpus(corpus);
            drafter.begin(Some(&mut lately), false);
            let (mut tokens, mut found) = (vec![7, 8], Vec::new());
            for token in answer {
                tokens.push(*token);
                drafter.follow(&tokens, 2);
                let Some(proposal) = drafter.propose(&tokens) else { continue };
                let at = tokens.len() - 2;
                assert_eq!((proposal.source, proposal.text), (Source::Corpus, &text[at..(at + 64).min(100)]));
                found.push(proposal.chances.next);
            }
            lately.learn(&drafter);
            found
        };
        assert!(says(&text, None).is_empty());
        let first = says(&text, Some(&corpus));
        // From the third token on, until nothing is left.
        assert_eq!(first.len(), 97);
        assert!(first[0] <= 0.5 && first[90] > 0.9, "{first:?}");
        let again = says(&text, Some(&corpus));
        assert!(again[0] > first[0], "what was right for one is believed for the next");
    }

    #[test]
    fn only_predictions_are_counted_as_such() {
        let mut drafter = Drafter::new(Some(vec![1, 2, 3]), true).unwrap();
        drafter.count(Source::Prediction, (4, 1), 1.0);
        drafter.count(Source::History, (9, 9), 2.0);
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
                    prop_assert!(!proposal.text.is_empty() && (0.0..=Odds::MOST).contains(&proposal.chances.next));
                    let at = tokens.len() - proposal.text.len();
                    prop_assert!(at >= 1 && tokens[at..] == *proposal.text);
                    prop_assert_eq!(tokens[at - 1], tokens[tokens.len() - 1], "it follows the token that was said");
                }
            }
        }
    }
}
