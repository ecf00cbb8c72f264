//! What a step of few rows costs, as measured, and so how many draft tokens pay.
//!
//! # Design
//! A draft's rows ride in a decode that happens anyway, but they are not free: on a CPU that is short of arithmetic a
//! step of eight rows may take four times one of a single row. So a draft is as long as the measured time of the longer
//! step, and the odds that its tokens are right, make it the fastest way to get on, and empty where nothing is.

use std::time::Duration;

/// Rows of the largest step that is told apart; with more there is no slack that a draft could use.
const ROWS_MAX: usize = 64;
/// A step that took this many times what it took before was held up by something else.
const OUTLIER: f64 = 3.0;
/// A draft must promise this much more, since the odds are a guess.
const MARGIN: f64 = 1.02;
/// So much more where a draft that is wrong also costs the steps around it; see `StepCost::set_detour`.
const DETOUR_MARGIN: f64 = 1.5;
/// Steps of as many rows that are not yet what repeating them takes, where a GPU records what is repeated.
const UNSETTLED: u32 = 2;
/// A step without rows that nobody wants must take this many times one with them.
const PAD_MARGIN: f64 = 1.03;
/// What the last step of some number of rows weighs at least against all before it.
const WEIGHT_MIN: f64 = 0.1;
/// Of the time of steps, what trying out longer drafts may cost.
const TRIAL_PART: f64 = 0.005;
/// Seconds that trials may have saved up.
const TRIAL_MAX: f64 = 4.0;
/// Of what a longer step takes beside a plain one, the part that a trial hopes for: a start that was held up measures it too dear.
const TRIAL_HOPE: f64 = 0.1;

/// What steps take, by their number of rows.
#[derive(Debug, Clone)]
pub struct StepCost {
    /// Seconds, where the steps before had as many rows; 0: not measured.
    times: [f64; ROWS_MAX + 1],
    /// Steps that were measured.
    n_seen: [u32; ROWS_MAX + 1],
    /// Seconds that trials may cost now; see [`trial`](Self::trial).
    credit: f64,
    /// Seconds that one step of another number of rows takes beside its own time; see [`set_detour`](Self::set_detour).
    detour: f64,
    /// Rows of the last step, and how many before it had as many, one after another.
    last: (usize, u32),
    /// Seconds that a step with a draft may take; see [`within`](Self::within).
    longest: f64,
}

impl Default for StepCost {
    fn default() -> Self {
        Self {
            times: [0.0; ROWS_MAX + 1],
            n_seen: [0; ROWS_MAX + 1],
            credit: 0.0,
            detour: 0.0,
            last: (0, 0),
            longest: f64::INFINITY,
        }
    }
}

impl StepCost {
    /// Numbers of rows that a warm-up should measure; what lies between is interpolated.
    pub const PROBES: [u32; 4] = [1, 4, 16, 64];

    /// Drafts make no step longer than `max_gap`, or than two without where that is more: what is right comes in one piece, and
    /// what is wrong has held up all streams for nothing.
    pub fn within(max_gap: Duration) -> Self {
        Self { longest: max_gap.as_secs_f64(), ..Self::default() }
    }

    fn fits(&self, time: f64, plain: f64) -> bool {
        time <= self.longest.max(2.0 * plain)
    }

    /// Takes the time of a step into account.
    pub fn observe(&mut self, n_rows: u32, time: Duration) {
        let (last, n_before) = self.last;
        let n_before = if last == n_rows as usize { n_before.saturating_add(1) } else { 0 };
        self.last = (n_rows as usize, n_before);
        let counts = n_before >= UNSETTLED || self.detour == 0.0;
        let time = time.as_secs_f64();
        self.credit = (self.credit + time * TRIAL_PART).min(TRIAL_MAX);
        let (n, most) = (n_rows as usize, self.time(n_rows as usize).map_or(f64::INFINITY, |time| time * OUTLIER));
        let Some(known) = self.times.get_mut(n).filter(|_| counts) else { return };
        let n_seen = &mut self.n_seen[n];
        *n_seen = n_seen.saturating_add(1);
        // What holds a step up only makes it longer: of the first few the shorter ones count.
        let is_news = *n_seen == 1 || time < *known;
        let weight = if is_news { (1.0 / f64::from(*n_seen)).max(WEIGHT_MIN) } else { WEIGHT_MIN };
        *known += (time.min(most) - *known) * weight;
    }

    /// A step came between of which nothing is learnt, with rows of prompts or in several passes.
    pub fn interrupt(&mut self) {
        self.last = (0, 0);
    }

    /// Where a step that is like the one before it is faster, and one with a draft loses that for itself and for those behind
    /// it: a GPU has steps recorded that are repeated. On an H100, 3.3 ms a step of an 8B model, a draft of three tokens took
    /// 5.3 and the two steps behind it 4.3 and 4.6; held against repeated steps alone, drafts cost it 8 % of its rate. Only texts
    /// are wrong now and then: a model drafts in each step, so that steps with its drafts are repeated too.
    pub fn set_detour(&mut self, detour: Duration) {
        self.detour = detour.as_secs_f64();
    }

    /// How much more than none a draft must promise.
    fn margin(&self) -> f64 {
        if self.detour > 0.0 { DETOUR_MARGIN } else { MARGIN }
    }

    /// Seconds that a step with a draft of a text takes beside its rows, when the next one has one as long with these odds.
    fn detour(&self, again: f64) -> f64 {
        self.detour * (1.0 - again)
    }

    /// The largest step that was measured.
    fn largest(&self) -> Option<(usize, f64)> {
        self.times.iter().copied().enumerate().rev().find(|(_, time)| *time > 0.0)
    }

    /// Microseconds of the steps that were probed, for the log.
    pub fn probed_us(&self) -> [u64; Self::PROBES.len()] {
        #[expect(clippy::cast_sign_loss, reason = "a time")]
        Self::PROBES.map(|n| (self.times[n as usize] * 1e6) as u64)
    }

    pub fn detour_us(&self) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a time")]
        let us = (self.detour * 1e6) as u64;
        us
    }

    /// Seconds of a step with `n_rows`, which takes no longer than one with more; `None`: there is nothing to guess from.
    pub(super) fn time(&self, n_rows: usize) -> Option<f64> {
        let known = |at: usize| (self.times[at] > 0.0).then_some((at as f64, self.times[at]));
        if n_rows > ROWS_MAX {
            return None;
        }
        let below = (1..=n_rows).rev().find_map(known)?;
        let mut above = (n_rows..=ROWS_MAX).filter_map(known);
        let next = above.next()?;
        let share = if next.0 > below.0 { (n_rows as f64 - below.0) / (next.0 - below.0) } else { 0.0 };
        let between = below.1 + (next.1 - below.1) * share;
        Some(above.map(|(_, time)| time).fold(between, f64::min))
    }

    /// Seconds of a pass over `n_rows`; none at all if nothing was measured.
    pub fn pass(&self, n_rows: usize) -> f64 {
        self.time(n_rows).unwrap_or(0.0)
    }

    /// How many draft tokens to add to a step of `beside.0` rows, and `beside.1` seconds apart from them, that gets
    /// `n_useful` tokens on, where each is right with `odds` if those before it were: between 0 and `most`, with the tokens
    /// that are expected to be right.
    pub fn worth(&self, beside: (usize, f64), n_useful: f64, odds: f64, most: usize) -> (usize, f64) {
        let (n, expected, _) = self.fastest(beside, n_useful, odds, most, 1.0);
        (n, expected)
    }

    /// How many of `most` draft tokens a step of `n_rows` may have so that it takes at most `stake` seconds longer.
    pub fn affordable(&self, n_rows: usize, most: usize, stake: f64) -> usize {
        (1..=most).take_while(|n| self.price(n_rows, *n) <= stake).count()
    }

    /// Seconds that a step of `n_rows` takes longer with `n` draft tokens: what they cost if all are wrong.
    pub fn price(&self, n_rows: usize, n: usize) -> f64 {
        let plain = if n_rows == 0 { Some(0.0) } else { self.time(n_rows) };
        self.time(n_rows + n).zip(plain).map_or(f64::INFINITY, |(with, plain)| with - plain)
    }

    /// A longer draft than pays by what is known, in a step without a part of its own; with the tokens that are expected to be
    /// right. Steps that were measured too dear would never be measured again, so now and then one is made that would pay if
    /// they were a tenth as dear: what it loses, by what is known, is a small part of the time of all steps.
    pub fn trial(&mut self, n_rows: usize, n_useful: f64, odds: f64, most: usize) -> Option<(usize, f64)> {
        if self.detour > 0.0 {
            return None;
        }
        let beside = (n_rows, 0.0);
        let (n_known, _, rate) = self.fastest(beside, n_useful, odds, most, 1.0);
        let (n, expected, _) = self.fastest(beside, n_useful, odds, most, TRIAL_HOPE);
        let loss = self.time(n_rows + n)? - (n_useful + expected) / rate;
        if n <= n_known || loss > self.credit {
            return None;
        }
        self.credit -= loss;
        Some((n, expected))
    }

    /// As `worth`, with the rate in tokens a second; only the part `dear` counts of what longer steps take beside a plain one.
    fn fastest(&self, beside: (usize, f64), n_useful: f64, odds: f64, most: usize, dear: f64) -> (usize, f64, f64) {
        let (n_rows, apart) = beside;
        let time = |n: usize| if n == 0 { Some(apart) } else { self.time(n).map(|time| apart + time) };
        let Some(plain) = time(n_rows).filter(|time| *time > 0.0) else { return (0, 0.0, 0.0) };
        let (mut best, mut best_rate) = ((0, 0.0), n_useful / plain * self.margin());
        let (mut right, mut expected) = (1.0, 0.0);
        for n in 1..=most {
            right *= odds;
            expected += right;
            let Some(time) = time(n_rows + n).filter(|time| self.fits(*time, plain)) else { break };
            let time = plain + (time - plain) * dear;
            let rate = (n_useful + expected) / (time + self.detour(right));
            if rate > best_rate {
                (best, best_rate) = ((n, expected), rate);
            }
        }
        (best.0, best.1, best_rate)
    }

    /// The number of rows from `n_rows` on whose step takes the least time, where kernels take rows in these groups. What
    /// was not measured is tried once.
    pub fn padded(&self, n_rows: usize, groups: &[usize]) -> usize {
        let plain = match self.times.get(n_rows) {
            Some(time) if *time > 0.0 => *time,
            _ => return n_rows,
        };
        let (mut best, mut best_time) = (n_rows, plain / PAD_MARGIN);
        for n in groups.iter().map(|group| n_rows.next_multiple_of(*group)).filter(|n| *n > n_rows) {
            match self.times.get(n) {
                Some(0.0) => return n,
                Some(time) if *time < best_time => (best, best_time) = (n, *time),
                _ => {}
            }
        }
        best
    }
}

/// Seconds that drafts of a model take.
#[derive(Debug, Clone, Default)]
pub(super) struct DraftCost {
    /// A token for so many sequences at once; a whole draft where each takes as long as the longest.
    pub round: StepCost,
    /// Taking so many rows in.
    pub feed: StepCost,
    pub is_fixed: bool,
    /// Rows of the target's steps are taken in too.
    pub follows: bool,
    /// Drafts are made whatever they cost.
    pub is_ignored: bool,
    /// Shorter drafts come back empty.
    pub least: usize,
}

/// A sequence that could be drafted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bid {
    pub odds: f64,
    /// Most tokens.
    pub most: usize,
}

impl Bid {
    /// How many of `len` tokens, or as many as may be, are expected to be right.
    fn right(&self, len: usize) -> f64 {
        let n = i32::try_from(self.most.min(len)).unwrap_or(i32::MAX);
        self.odds * (1.0 - self.odds.powi(n)) / (1.0 - self.odds)
    }
}

/// What is drafted in a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Choice {
    /// The first so many bids; 0: a plain step is faster.
    pub n_seqs: usize,
    pub len: usize,
    /// Seconds saved for each token of the step, drafted or not.
    pub saved: f64,
}

impl DraftCost {
    /// Seconds of taking in `n_rows`, in as many goes as a batch allows.
    pub fn feeding(&self, n_rows: usize) -> Option<f64> {
        if n_rows == 0 {
            return Some(0.0);
        }
        self.feed.time(n_rows).or_else(|| {
            let (most, time) = self.feed.largest()?;
            Some(time * (n_rows as f64 / most as f64).max(1.0))
        })
    }

    /// Seconds of drafts of `len` tokens for `n_seqs` sequences.
    fn drafting(&self, n_seqs: usize, len: usize) -> Option<f64> {
        Some(self.round.time(n_seqs)? * if self.is_fixed { 1.0 } else { len as f64 })
    }

    /// For how many of `bids`, which fall in their odds, to draft how many tokens, in a step of `n_rows` that gets as many
    /// tokens on without: what gets on fastest, by the measured times of the step and of the drafts. `is_apart`: drafts are
    /// verified in a pass of their own.
    pub fn choose(&self, step: &StepCost, (n_rows, is_apart): (usize, bool), bids: &[Bid]) -> Choice {
        let mut best = Choice::default();
        if self.is_ignored {
            let len = bids.iter().map(|bid| bid.most).max().unwrap_or(0);
            return Choice { n_seqs: bids.len(), len, saved: f64::MAX };
        }
        let Some(plain) = step.time(n_rows).filter(|time| *time > 0.0) else { return best };
        let n_useful = n_rows as f64;
        let mut best_rate = n_useful / plain * MARGIN;
        for n_seqs in 1..=bids.len() {
            let bids = &bids[..n_seqs];
            let longest = bids.iter().map(|bid| bid.most).max().unwrap_or(0);
            for len in self.least.max(1)..=longest {
                let n_drafted: usize = bids.iter().map(|bid| bid.most.min(len)).sum();
                let apart = if is_apart { step.time(n_rows) } else { Some(0.0) };
                let n_beside = if is_apart { 0 } else { n_rows };
                let verified = self.time_with(step, n_beside + n_drafted, n_seqs, len);
                let time = verified.zip(apart).map(|(a, b)| a + b);
                let Some(time) = time.filter(|time| step.fits(*time, plain)) else { break };
                let rate = (n_useful + bids.iter().map(|bid| bid.right(len)).sum::<f64>()) / time;
                if rate > best_rate {
                    best_rate = rate;
                    best = Choice { n_seqs, len, saved: plain / n_useful - 1.0 / rate };
                }
            }
        }
        best
    }

    fn time_with(&self, step: &StepCost, n_rows: usize, n_seqs: usize, len: usize) -> Option<f64> {
        let follow = if self.follows { self.feeding(n_rows)? } else { 0.0 };
        Some(step.time(n_rows)? + self.drafting(n_seqs, len)? + follow)
    }
}

/// What it costs to save what a sequence holds, as measured: nearly nothing in main memory, and much where each cell is
/// fetched from a GPU by itself. A hundred tokens of the 0.5B model in cells that are strewn over a pool took an H200 30 ms
/// to save, and 5 to compute.
#[derive(Debug, Default)]
pub struct SaveCost {
    /// Seconds for each token of the last ones.
    last: Vec<f64>,
    /// How often it was too dear since.
    n_refused: u32,
}

impl SaveCost {
    /// As many must have been dear, so that one that was held up decides nothing.
    const MEASURED: usize = 3;
    /// Takes too little time to matter.
    const FREE_S: f64 = 0.002;
    /// Of what it saves to compute, the part that saving may take: most of what is saved is never asked for again.
    const PART: f64 = 0.25;
    /// As often it is left out before it is measured again.
    const REFUSED_MAX: u32 = 256;

    /// Takes the time of saving so many tokens into account.
    pub fn observe(&mut self, n_tokens: usize, time: Duration) {
        if self.last.len() == Self::MEASURED {
            self.last.remove(0);
        }
        self.last.push(time.as_secs_f64() / n_tokens.max(1) as f64);
    }

    /// Whether to save a sequence of `n_tokens`, of which those that would be lost take `time_of_lost` to compute.
    pub fn pays(&mut self, n_tokens: usize, time_of_lost: Duration) -> bool {
        if self.last.len() < Self::MEASURED {
            return true;
        }
        let least = self.last.iter().copied().fold(f64::INFINITY, f64::min) * n_tokens as f64;
        let pays = least <= Self::FREE_S.max(time_of_lost.as_secs_f64() * Self::PART);
        self.n_refused = if pays { 0 } else { self.n_refused + 1 };
        if self.n_refused == Self::REFUSED_MAX {
            *self = Self::default();
        }
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(of: impl Fn(u32) -> f64) -> StepCost {
        let mut cost = StepCost::default();
        for n in StepCost::PROBES {
            cost.observe(n, Duration::from_secs_f64(of(n)));
        }
        cost
    }

    #[test]
    fn nothing_is_drafted_before_anything_was_measured() {
        assert_eq!(StepCost::default().worth((1, 0.0), 1.0, 0.9, 16).0, 0);
    }

    #[test]
    fn free_rows_are_filled_and_dear_ones_are_not() {
        assert_eq!(cost(|_| 0.01).worth((1, 0.0), 1.0, 0.9, 12).0, 12, "as on a GPU");
        assert_eq!(cost(f64::from).worth((1, 0.0), 1.0, 0.9, 12).0, 0, "each row costs as much as a step");
        let (n, expected) = cost(|n| 1.0 + 0.3 * f64::from(n)).worth((1, 0.0), 1.0, 0.9, 12);
        assert!((3..12).contains(&n) && expected > 2.0, "{n}, {expected}");
    }

    #[test]
    fn a_draft_costs_no_more_than_what_may_be_lost() {
        let cost = cost(|n| 1.0 + 0.5 * f64::from(n));
        assert_eq!((cost.affordable(1, 12, 2.2), cost.affordable(1, 3, 2.2), cost.affordable(1, 12, 0.4)), (4, 3, 0));
        assert_eq!(cost.affordable(0, 12, 2.2), 2, "a pass of its own");
        assert_eq!(StepCost::default().affordable(1, 12, 9.0), 0);
    }

    #[test]
    fn poor_odds_and_full_steps_get_no_draft() {
        let cost = cost(|n| 1.0 + 0.3 * f64::from(n));
        assert_eq!(cost.worth((1, 0.0), 1.0, 0.15, 12).0, 0);
        assert_eq!(cost.worth((12, 0.0), 12.0, 0.7, 4).0, 0, "twelve streams use the step already");
    }

    #[test]
    fn a_draft_makes_no_step_longer_than_the_gap_between_tokens_may_be() {
        let steps = |max_gap: u64| {
            let mut cost = StepCost::within(Duration::from_secs(max_gap));
            StepCost::PROBES.iter().for_each(|n| cost.observe(*n, Duration::from_secs_f64(1.0 + 0.1 * f64::from(*n))));
            cost
        };
        assert_eq!(steps(60).worth((1, 0.0), 1.0, 0.99, 30).0, 30);
        assert_eq!(steps(3).worth((1, 0.0), 1.0, 0.99, 30).0, 19, "20 rows take 3 s");
        assert_eq!(steps(0).worth((1, 0.0), 1.0, 0.99, 30).0, 11, "a step is longer by itself: twice its 1.1 s");
        let bid = [Bid { odds: 0.99, most: 30 }];
        assert!((1..20).contains(&draft_cost(0.01).choose(&steps(3), (1, false), &bid).len));
    }

    #[test]
    fn a_draft_apart_pays_for_a_pass_of_its_own() {
        let cost = cost(|n| 1.0 + 0.1 * f64::from(n));
        assert_eq!(cost.worth((0, cost.pass(8)), 8.0, 0.5, 4).0, 0);
        assert_eq!(cost.worth((0, cost.pass(2)), 2.0, 0.97, 12).0, 12);
    }

    #[test]
    fn a_part_of_a_group_is_filled_where_the_whole_is_faster() {
        let mut cost = StepCost::default();
        assert_eq!(cost.padded(15, &[4, 16]), 15, "it may be fast enough");
        cost.observe(15, Duration::from_millis(44));
        assert_eq!(cost.padded(15, &[4, 16]), 16, "unknown: tried");
        cost.observe(16, Duration::from_millis(30));
        assert_eq!(cost.padded(15, &[4, 16]), 16);
        for (n, ms) in [(9, 25), (12, 29), (13, 34)] {
            cost.observe(n, Duration::from_millis(ms));
        }
        assert_eq!((cost.padded(13, &[4, 16]), cost.padded(9, &[4, 16])), (16, 9));
        assert_eq!((cost.padded(ROWS_MAX, &[4, 16]), cost.padded(ROWS_MAX + 9, &[4, 16])), (ROWS_MAX, ROWS_MAX + 9));
    }

    /// Drafts whose every token takes `of` for one sequence and for sixteen.
    fn draft_cost(of: f64) -> DraftCost {
        let mut cost = DraftCost::default();
        cost.round.observe(1, Duration::from_secs_f64(of));
        cost.round.observe(16, Duration::from_secs_f64(of * 1.5));
        cost
    }

    #[test]
    fn cheap_drafts_that_are_right_are_long_and_dear_or_wrong_ones_are_not_made() {
        let step = cost(|n| 1.0 + 0.05 * f64::from(n));
        let bids = |odds: f64| [Bid { odds, most: 12 }; 4];
        let good = draft_cost(0.05).choose(&step, (1, false), &bids(0.9)[..1]);
        assert!(good.n_seqs == 1 && (4..=12).contains(&good.len) && good.saved > 0.3, "{good:?}");
        assert_eq!(draft_cost(0.05).choose(&step, (1, false), &bids(0.05)[..1]).n_seqs, 0, "always wrong");
        assert_eq!(draft_cost(1.0).choose(&step, (1, false), &bids(0.9)[..1]).n_seqs, 0, "as dear as the model itself");
        let shared = draft_cost(0.05).choose(&step, (4, false), &bids(0.9));
        assert!(shared.n_seqs == 4 && shared.len >= 3, "four share the cost of a draft: {shared:?}");
        let mut mixed = bids(0.9);
        (mixed[2].odds, mixed[3].odds) = (0.05, 0.02);
        assert_eq!(draft_cost(0.05).choose(&step, (4, false), &mixed).n_seqs, 2, "the poor ones are left out");
        let fixed = DraftCost { is_fixed: true, ..draft_cost(0.3) };
        assert_eq!(fixed.choose(&step, (1, false), &bids(0.9)[..1]).len, 12, "the rest of a draft costs rows only");
    }

    #[test]
    fn drafts_are_not_shorter_than_what_comes_back_and_feeding_beyond_a_small_batch_has_a_price() {
        let step = cost(|n| 1.0 + 0.2 * f64::from(n));
        let bid = [Bid { odds: 0.4, most: 12 }];
        let free = DraftCost { feed: cost(|_| 0.01), ..draft_cost(0.05) };
        assert_eq!(free.choose(&step, (1, false), &bid).len, 1);
        let long = DraftCost { least: 6, ..free.clone() };
        assert_eq!(long.choose(&step, (1, false), &bid).n_seqs, 0, "six at once don't pay");
        let sure = [Bid { odds: 0.98, most: 12 }];
        assert!(long.choose(&step, (1, false), &sure).len >= 6);
        let mut small = DraftCost::default();
        (1..=32).for_each(|n| small.feed.observe(n, Duration::from_millis(n.into())));
        assert!((small.feeding(320).unwrap() - 0.32).abs() < 1e-9 && (small.feeding(8).unwrap() - 0.008).abs() < 1e-9);
        assert_eq!(DraftCost::default().feeding(5), None);
    }

    #[test]
    fn where_repeated_steps_are_faster_a_draft_pays_for_leaving_them() {
        let ms = |n: u32| 3.3 + 0.2 * f64::from(n - 1);
        let mut gpu = cost(|n| ms(n) / 1e3);
        assert!(gpu.worth((1, 0.0), 1.0, 0.4, 8).0 > 0, "rows are nearly free");
        gpu.set_detour(Duration::from_millis(4));
        assert_eq!(gpu.worth((1, 0.0), 1.0, 0.75, 3).0, 0, "wrong ones cost the steps around them");
        assert_eq!(gpu.worth((1, 0.0), 1.0, 0.98, 8).0, 8, "right ones follow one another");
        let bid = [Bid { odds: 0.4, most: 8 }];
        assert_eq!(draft_cost(1e-4).choose(&gpu, (1, false), &bid).n_seqs, 1, "a model drafts in each step");
        // Only steps that repeat those before say what it is to repeat them.
        let before = gpu.time(1);
        for n in [4, 1, 1, 16, 1, 1] {
            gpu.observe(n, Duration::from_millis(9));
        }
        gpu.interrupt();
        for _ in 0..2 {
            gpu.observe(1, Duration::from_millis(9));
        }
        assert_eq!(gpu.time(1), before);
        gpu.observe(1, Duration::from_millis(9));
        assert!(gpu.time(1) > before);
    }

    #[test]
    fn a_step_that_was_held_up_counts_little() {
        let mut cost = cost(|_| 0.01);
        cost.observe(1, Duration::from_secs(5));
        assert!(cost.time(1).unwrap() < 0.013);
        cost.observe(ROWS_MAX as u32 + 1, Duration::from_secs(1));
        assert!(cost.time(ROWS_MAX + 1).is_none());
    }

    #[test]
    fn what_a_start_measured_too_dear_is_tried_again_at_little_cost() {
        let truth = |n: usize| 0.01 + 0.001 * n as f64;
        let of_few = cost(|n| truth(n as usize) * if n == 4 { 9.0 } else { 1.0 });
        assert!(of_few.time(4).unwrap() <= truth(16), "a step takes no longer than one with more rows");
        let mut cost = cost(|n| truth(n as usize) * if n > 1 { 8.0 } else { 1.0 });
        assert_eq!(cost.worth((1, 0.0), 1.0, 0.95, 8).0, 0, "by what is known nothing pays");
        let (mut n_steps, mut time, mut n_trials) = (0, 0.0, 0);
        while cost.worth((1, 0.0), 1.0, 0.95, 8).0 == 0 {
            let n = cost.trial(1, 1.0, 0.95, 8).map_or(0, |(n, _)| n);
            n_trials += usize::from(n > 0);
            cost.observe(1 + n as u32, Duration::from_secs_f64(truth(1 + n)));
            (n_steps, time) = (n_steps + 1, time + truth(1 + n));
            assert!(n_steps < 10_000, "never found out");
        }
        assert!(n_trials <= 8 && time < 60.0, "{n_trials} trials in {time} s");
    }

    #[test]
    fn trials_where_everything_is_known_cost_a_small_part() {
        // Rows are dear, and it is so.
        let truth = |n: usize| 0.01 * (n as f64).powf(0.8);
        let mut cost = cost(|n| truth(n as usize));
        let (mut time, mut right, n_steps) = (0.0, 0.0, 10_000);
        for _ in 0..n_steps {
            let known = cost.worth((1, 0.0), 1.0, 0.5, 8).0;
            let n = cost.trial(1, 1.0, 0.5, 8).map_or(known, |(n, _)| n);
            cost.observe(1 + n as u32, Duration::from_secs_f64(truth(1 + n)));
            time += truth(1 + n);
            right += (1..=n).map(|at| 0.5f64.powf(at as f64)).sum::<f64>();
        }
        let rate = (f64::from(n_steps) + right) / time * truth(1);
        assert!(rate > 1.0 - 2.0 * TRIAL_PART, "{rate}");
    }

    #[test]
    fn saving_is_left_out_where_computing_is_cheaper_and_tried_again() {
        let ms = Duration::from_millis;
        let mut cost = SaveCost::default();
        assert!(cost.pays(100, ms(5)), "nothing is known");
        cost.observe(100, ms(30));
        cost.observe(100, ms(30));
        assert!(cost.pays(100, ms(5)), "two may have been held up");
        cost.observe(100, ms(28));
        assert!(!cost.pays(100, ms(5)) && cost.pays(100, ms(200)), "28 ms for 5, and for 200");
        assert!(cost.pays(7, ms(0)), "1.96 ms are nothing");
        assert_eq!((0..300).filter(|_| cost.pays(100, ms(5))).count(), 300 - 256, "then it is measured again");
        (0..3).for_each(|_| cost.observe(100, ms(30)));
        cost.observe(100, ms(1));
        assert!(cost.pays(100, ms(5)), "one that was quick shows what it costs");
    }
}
