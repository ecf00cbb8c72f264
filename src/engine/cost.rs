//! What a step of few rows costs, as measured, and so how many draft tokens pay.
//!
//! # Design
//! A draft's rows ride in a decode that happens anyway, but they are not free: on a CPU that is short of arithmetic a
//! step of eight rows may take four times one of a single row. So a draft is as long as the measured time of the longer
//! step, and the odds that its tokens are right, make it the fastest way to get on, and empty where nothing is.
//!
//! Each row also looks at all tokens before it, and on a CPU rows don't share that: a step of the demo model takes 390 us behind
//! 100 tokens and 690 behind 500, one of 16 rows 3.6 ms and 7.5. So a step is known by its rows and by how deep they are, see
//! `Slope`; without, drafts that were right were slower than none behind a long prompt.
//!
//! And llama.cpp uses the graph of the last step again where a step has as many rows, and makes it anew where not: a plain step of
//! the demo model takes 76 us more behind a longer one at the start, and 260 of 900 where both are 450 tokens deep. A draft pays
//! that twice, for itself and for the plain step behind it; see `switch`.

use super::scheduler::TILE_FILL;
use super::slope::Slope;
use std::time::Duration;

/// Rows of the largest step that is told apart; with more there is no slack that a draft could use.
const ROWS_MAX: usize = 64;
/// A step that took this many times what it took before was held up by something else.
const OUTLIER: f64 = 3.0;
/// A step with a draft must promise this much more, since the odds are a guess.
const MARGIN: f64 = 1.02;
/// Of the time that a text's draft takes, what it must promise to save: of drafts that just seem to pay, those are tried whose
/// odds are guessed too well.
const GAIN: f64 = 1.2;
/// So much more where a draft that is wrong also costs the steps around it; see `StepCost::set_detour`.
const DETOUR_MARGIN: f64 = 1.5;
/// Steps of as many rows that are not yet what repeating them takes, where a GPU records what is repeated.
const UNSETTLED: u32 = 2;
/// A step without rows that nobody wants must take this many times one with them.
const PAD_MARGIN: f64 = 1.03;
/// Of what rows take for the tokens before them, the least that they may take in a tile: a quarter to a half was seen.
const TILE_PART: f64 = 0.25;
/// Of a step, the part that it takes whatever its depth, and whatever came before it.
const REST_MIN: f64 = 0.1;
/// What a step that shows what switching takes weighs against all before it.
const SWITCH_WEIGHT: f64 = 0.05;
/// What the last step of some number of rows weighs at least against all before it.
const WEIGHT_MIN: f64 = 0.1;
/// Of the time of steps, what trying out longer drafts may cost.
const TRIAL_PART: f64 = 0.005;
/// Seconds that trials may have saved up.
const TRIAL_MAX: f64 = 4.0;
/// Of what a longer step takes beside a plain one, the part that a trial hopes for: a start that was held up measures it too dear.
const TRIAL_HOPE: f64 = 0.1;

/// How probably the tokens of a draft are right.
#[derive(Debug, Clone, Copy)]
pub struct Chances {
    /// The first.
    pub first: f64,
    /// Each that follows one that was.
    pub next: f64,
}

/// What steps take, by their number of rows, where they [`stand`](Self::stand).
#[derive(Debug, Clone)]
pub struct StepCost {
    /// Tokens before a row, on average.
    depth: f64,
    /// Of steps of few rows, and of those that take a tile of them at once.
    slopes: [Slope; 2],
    /// Seconds behind no tokens, where the steps before had as many rows; 0: not measured.
    times: [f64; ROWS_MAX + 1],
    /// Seconds of a step of so many rows where it stands, as it follows from the above; infinite: there is nothing to guess from.
    /// It is asked for each length of a draft, and changes once a step.
    curve: [f64; ROWS_MAX + 1],
    /// Steps that were measured.
    n_seen: [u32; ROWS_MAX + 1],
    /// Seconds that trials may cost now; see [`trial`](Self::trial).
    credit: f64,
    /// Seconds that one step of another number of rows takes beside its own time; see [`set_detour`](Self::set_detour).
    detour: f64,
    /// Seconds that a step takes longer behind one of another number of rows; see [`measure_switch`](Self::measure_switch).
    switch: f64,
    /// Rows of a step without drafts, where it stands.
    n_plain: usize,
    /// Rows of the last step, and how many before it had as many, one after another.
    last: (usize, u32),
    /// Seconds that a step with a draft may take; see [`within`](Self::within).
    longest: f64,
}

impl Default for StepCost {
    fn default() -> Self {
        Self {
            depth: 0.0,
            slopes: Default::default(),
            times: [0.0; ROWS_MAX + 1],
            curve: [f64::INFINITY; ROWS_MAX + 1],
            n_seen: [0; ROWS_MAX + 1],
            credit: 0.0,
            detour: 0.0,
            switch: 0.0,
            n_plain: 0,
            last: (0, 0),
            longest: f64::INFINITY,
        }
    }
}

/// Of `StepCost::slopes`.
fn tile(n_rows: usize) -> usize {
    usize::from(n_rows >= TILE_FILL as usize)
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

    /// From here on steps have `n_plain` rows and their drafts', with so many tokens before each on average.
    pub fn stand(&mut self, n_plain: usize, depth: f64) {
        (self.n_plain, self.depth) = (n_plain, depth);
        self.draw();
    }

    /// A step of `n_rows` took so long behind another of as many.
    pub fn measure(&mut self, n_rows: u32, time: Duration) {
        self.last = (n_rows as usize, 0);
        self.observe(n_rows, time);
    }

    /// A step takes `longer` behind one of another number of rows: its graph is made anew.
    pub fn measure_switch(&mut self, longer: Duration) {
        self.switch = longer.as_secs_f64();
    }

    /// A step of `n_rows` takes `longer` seconds where it stands so many tokens deeper.
    pub fn measure_depth(&mut self, n_rows: u32, deeper: u32, longer: f64) {
        self.slopes[tile(n_rows as usize)].begin(f64::from(n_rows) * f64::from(deeper), longer);
        self.draw();
    }

    /// Between the numbers of rows that were measured, and so that a step takes no longer than one with more rows.
    fn draw(&mut self) {
        self.curve = [f64::INFINITY; ROWS_MAX + 1];
        let mut below: Option<(usize, f64)> = None;
        for (at, time) in self.times.into_iter().enumerate().filter(|(_, time)| *time > 0.0) {
            let (from, before) = below.unwrap_or((at, time));
            let per_row = (time - before) / (at - from).max(1) as f64;
            for n in from..=at {
                self.curve[n] = before + per_row * (n - from) as f64 + self.looking_back(n);
            }
            below = Some((at, time));
        }
        let mut least = f64::INFINITY;
        for time in self.curve.iter_mut().rev() {
            least = least.min(*time);
            // Above what was measured nothing is known, and nothing below it.
            *time = if time.is_finite() { least } else { *time };
        }
    }

    /// Seconds that `n_rows` take for the tokens before them.
    fn looking_back(&self, n_rows: usize) -> f64 {
        let reach = n_rows as f64 * self.depth;
        let [few, tile_of] = &self.slopes;
        match tile(n_rows) {
            0 => few.seconds(reach),
            _ => tile_of.seconds(reach).max(few.seconds(reach) * TILE_PART),
        }
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
        if n > ROWS_MAX || !counts {
            return;
        }
        let mut time = time.min(most);
        if n != last && self.detour == 0.0 {
            self.learn_switch(n, time);
            time = (time - self.switch).max(time * REST_MIN);
        }
        self.slopes[tile(n)].observe(n, n as f64 * self.depth, time);
        // Whatever is thought of the depth, something is left for the rest.
        let time = (time - self.looking_back(n)).max(time * REST_MIN);
        let (known, n_seen) = (&mut self.times[n], &mut self.n_seen[n]);
        *n_seen = n_seen.saturating_add(1);
        // What holds a step up only makes it longer: of the first few the shorter ones count.
        let is_news = *n_seen == 1 || time < *known;
        let weight = if is_news { (1.0 / f64::from(*n_seen)).max(WEIGHT_MIN) } else { WEIGHT_MIN };
        *known += (time - *known) * weight;
        self.draw();
    }

    /// From plain steps behind one with a draft, of which most come behind others of their kind.
    fn learn_switch(&mut self, n_rows: usize, time: f64) {
        if let Some(usual) = self.time(n_rows).filter(|_| n_rows == self.n_plain) {
            let longer = (time - usual).clamp(-usual, usual);
            self.switch = (self.switch + (longer - self.switch) * SWITCH_WEIGHT).max(0.0);
        }
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

    /// Seconds that a step of `n_rows` and the one behind it take for following others; `again`: as probably that one has as many.
    fn switching(&self, n_rows: usize, again: f64) -> f64 {
        let before = if n_rows == self.last.0 { 0.0 } else { self.switch };
        let behind = if n_rows == self.n_plain { 0.0 } else { self.switch * (1.0 - again) };
        before + behind
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

    /// Nanoseconds of a row for each token before it.
    pub fn ns_per_token(&self) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a time")]
        let ns = (self.slopes[0].seconds(1.0) * 1e9) as u64;
        ns
    }

    pub fn detour_us(&self) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a time")]
        let us = (self.detour * 1e6) as u64;
        us
    }

    pub fn switch_us(&self) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a time")]
        let us = (self.switch * 1e6) as u64;
        us
    }

    /// Seconds of a step with `n_rows`; `None`: there is nothing to guess from.
    pub(super) fn time(&self, n_rows: usize) -> Option<f64> {
        self.curve.get(n_rows).copied().filter(|time| time.is_finite())
    }

    /// Seconds of a pass over `n_rows`; none at all if nothing was measured.
    pub fn pass(&self, n_rows: usize) -> f64 {
        self.time(n_rows).unwrap_or(0.0)
    }

    /// How many draft tokens to add to a step of `beside.0` rows, and `beside.1` seconds apart from them, that gets
    /// `n_useful` tokens on: between 0 and `most`, with the tokens that are expected to be right.
    pub fn worth(&self, beside: (usize, f64), n_useful: f64, chances: Chances, most: usize) -> (usize, f64) {
        self.fastest(beside, n_useful, chances, most, 1.0)
    }

    /// How many of `most` draft tokens a step of `n_rows` may have so that about `stake` tokens can be lost with them, of which
    /// the stream gets one in `per_token` seconds. `odds`: of each; 0 where nothing is known of this text.
    pub fn affordable(&self, (n_rows, per_token): (usize, f64), odds: f64, most: usize, stake: f64) -> usize {
        let risk = |n: usize| {
            let price = self.price(n_rows, n) / per_token;
            // What is lost at most, as probably as fewer than that are right: more than is lost on average.
            price * (1.0 - odds.powf(price.min(n as f64)))
        };
        (1..=most).take_while(|n| risk(*n) <= stake).count()
    }

    /// Seconds that a step of `n_rows` takes longer with `n` draft tokens: what they cost if all are wrong.
    pub fn price(&self, n_rows: usize, n: usize) -> f64 {
        let time = |n_rows: usize| Some(self.time(n_rows)? + self.switching(n_rows, 0.0));
        let plain = if n_rows == 0 { Some(0.0) } else { time(n_rows) };
        time(n_rows + n).zip(plain).map_or(f64::INFINITY, |(with, plain)| with - plain)
    }

    /// A longer draft than pays by what is known, in a step without a part of its own; with the tokens that are expected to be
    /// right. Steps that were measured too dear would never be measured again, so now and then one is made that would pay if they
    /// were a tenth as dear: what it takes is a small part of the time of all steps, whatever its odds were, but for what was right
    /// in it, see [`refund`](Self::refund).
    pub fn trial(&mut self, n_rows: usize, n_useful: f64, chances: Chances, most: usize) -> Option<(usize, f64)> {
        if self.detour > 0.0 {
            return None;
        }
        let beside = (n_rows, 0.0);
        let (n_known, _) = self.fastest(beside, n_useful, chances, most, 1.0);
        let (n, expected) = self.fastest(beside, n_useful, chances, most, TRIAL_HOPE);
        let price = self.price(n_rows, n);
        if n <= n_known || price > self.credit {
            return None;
        }
        self.credit -= price;
        Some((n, expected))
    }

    /// A trial brought so many tokens, which would have taken a plain step each.
    pub fn refund(&mut self, n_tokens: f64) {
        let per_token = self.pass(self.n_plain) / self.n_plain.max(1) as f64;
        self.credit = (self.credit + n_tokens * per_token).min(TRIAL_MAX);
    }

    /// As `worth`; only the part `dear` counts of what longer steps take beside a plain one.
    fn fastest(&self, beside: (usize, f64), n_useful: f64, chances: Chances, most: usize, dear: f64) -> (usize, f64) {
        let (n_rows, apart) = beside;
        // What others' drafts of the step take behind it they take whatever comes after.
        let again = |right: f64| if n_rows == self.n_plain { right } else { 0.0 };
        let time = |n: usize, right: f64| match n {
            0 => Some(apart),
            n => Some(apart + self.time(n)? + self.switching(n, again(right))),
        };
        let Some(plain) = time(n_rows, 0.0).filter(|time| *time > 0.0) else { return (0, 0.0) };
        let (mut best, mut best_rate) = ((0, 0.0), n_useful / plain * self.margin());
        let (mut right, mut expected) = (1.0, 0.0);
        for n in 1..=most {
            right *= if n == 1 { chances.first } else { chances.next };
            expected += right;
            let Some(time) = time(n_rows + n, right).filter(|time| self.fits(*time, plain)) else { break };
            let time = plain + (time - plain) * dear;
            let rate = (n_useful + expected) / (time + self.detour(right));
            if rate > best_rate && expected * plain >= (time - plain) * n_useful * GAIN {
                (best, best_rate) = ((n, expected), rate);
            }
        }
        best
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

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
