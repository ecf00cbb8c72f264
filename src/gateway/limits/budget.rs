//! Money and tokens of a period.

use super::period::{PeriodWindow, window};
use super::refusal::LimitKind;
use crate::gateway::spec::{BudgetSpec, Period};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a request costs, or may cost at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spend {
    pub tokens: u64,
    /// Not negative.
    pub nusd: i64,
}

impl Spend {
    fn add(&mut self, other: Spend) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.nusd = self.nusd.saturating_add(other.nusd);
    }

    fn sub(&mut self, other: Spend) {
        self.tokens = self.tokens.saturating_sub(other.tokens);
        self.nusd = self.nusd.saturating_sub(other.nusd).max(0);
    }

    fn plus(mut self, other: Spend) -> Self {
        self.add(other);
        self
    }
}

/// A budget as it stands.
///
/// What is spent counts in the window in which its reservation was made, so a request that runs over the boundary leaves
/// the new window alone. The window only ever moves forward: a wall clock that is set back doesn't give a spent budget
/// anew. One that was far ahead and is set back by more than a period would lock the budget up to then, so the window
/// follows it, with all that was spent.
#[derive(Debug, Clone)]
pub struct Budget {
    period: Option<Period>,
    created_ms: i64,
    window: PeriodWindow,
    era: Era,
    spent: Spend,
    reserved: Spend,
    /// What was spent before this process is in it.
    has_history: bool,
}

/// One stay of one budget in one window. A clock that is set back may come to the same window twice; what was reserved at
/// the first stay is none of the second's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era(u64);

impl Era {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why a budget says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    pub kind: LimitKind,
    pub limit: u64,
    pub used: u64,
    pub requested: u64,
    /// When the next window begins, in unix milliseconds; `None`: never.
    pub until_ms: Option<i64>,
}

impl Budget {
    pub fn new(spec: &BudgetSpec, created_ms: i64, now_ms: i64) -> Self {
        Self {
            window: window_of(spec.period.as_ref(), created_ms, now_ms),
            era: Era::next(),
            period: spec.period.clone(),
            created_ms,
            spent: Spend::default(),
            reserved: Spend::default(),
            has_history: false,
        }
    }

    /// Brings the budget to the window of `now_ms`, and to the period that `spec` has now.
    pub fn roll(&mut self, spec: &BudgetSpec, created_ms: i64, now_ms: i64) {
        if self.period != spec.period || self.created_ms != created_ms {
            // What runs now belongs to no window of the new period.
            *self = Self::new(spec, created_ms, now_ms);
        } else if now_ms >= self.window.end_ms {
            self.window = window_of(self.period.as_ref(), created_ms, now_ms);
            self.era = Era::next();
            self.spent = Spend::default();
            self.reserved = Spend::default();
            // The store has nothing of a window that has just begun.
            self.has_history = true;
        } else if now_ms < self.window.start_ms {
            let len_ms = self.window.end_ms.saturating_sub(self.window.start_ms);
            if now_ms < self.window.start_ms.saturating_sub(len_ms) {
                self.window = window_of(self.period.as_ref(), created_ms, now_ms);
                // What runs settles in an era that is gone: count all of it now.
                self.era = Era::next();
                self.spent.add(std::mem::take(&mut self.reserved));
            }
        }
    }

    /// The window whose earlier spending must still be told; `None`: it is known.
    pub fn lacks_history(&self) -> Option<PeriodWindow> {
        (!self.has_history).then_some(self.window)
    }

    /// Tells what was spent in `window` before this process. Told twice, the first counts.
    pub fn tell_history(&mut self, window: PeriodWindow, spent: Spend) {
        if !self.has_history && self.window == window {
            self.has_history = true;
            self.spent.add(spent);
        }
    }

    /// `spent + reserved + estimate <= max`, or why not. What costs nothing needs no room.
    pub fn check(&self, spec: &BudgetSpec, estimate: Spend) -> Result<(), Spent> {
        let used = self.spent.plus(self.reserved);
        let until_ms = self.period.is_some().then_some(self.window.end_ms);
        // More than the whole budget never fits, whatever window comes.
        let until = |is_possible: bool| until_ms.filter(|_| is_possible);
        if let Some(max) = spec.max_tokens.map(amount)
            && estimate.tokens > 0
            && used.tokens.saturating_add(estimate.tokens) > max
        {
            let until_ms = until(estimate.tokens <= max);
            let kind = LimitKind::BudgetTokens;
            return Err(Spent { kind, limit: max, used: used.tokens, requested: estimate.tokens, until_ms });
        }
        if let Some(max) = spec.max_nusd
            && estimate.nusd > 0
            && used.nusd.saturating_add(estimate.nusd) > max
        {
            let until_ms = until(estimate.nusd <= max);
            let (limit, used, requested) = (amount(max), amount(used.nusd), amount(estimate.nusd));
            return Err(Spent { kind: LimitKind::Money, limit, used, requested, until_ms });
        }
        Ok(())
    }

    /// Tokens that can still be reserved; `None`: any number.
    pub fn tokens_left(&self, spec: &BudgetSpec) -> Option<u64> {
        let used = self.spent.tokens.saturating_add(self.reserved.tokens);
        spec.max_tokens.map(|max| amount(max).saturating_sub(used))
    }

    /// Returns the era that the reservation belongs to.
    pub fn reserve(&mut self, estimate: Spend) -> Era {
        self.reserved.add(estimate);
        self.era
    }

    /// Ends a reservation of `era`: what it was counts as spent. Of an old one nothing is left to count.
    pub fn settle(&mut self, era: Era, estimate: Spend, actual: Spend) {
        if self.era == era {
            self.reserved.sub(estimate);
            self.spent.add(actual);
        }
    }

    pub fn created_ms(&self) -> i64 {
        self.created_ms
    }

    pub fn spent(&self) -> Spend {
        self.spent
    }

    pub fn reserved(&self) -> Spend {
        self.reserved
    }

    pub fn window(&self) -> PeriodWindow {
        self.window
    }

    /// Forgets what was spent in this window, as an operator asked.
    pub fn forgive(&mut self) {
        self.spent = Spend::default();
        self.has_history = true;
    }
}

fn window_of(period: Option<&Period>, created_ms: i64, now_ms: i64) -> PeriodWindow {
    period.map_or(PeriodWindow::EVER, |period| window(period, created_ms, now_ms))
}

fn amount(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
