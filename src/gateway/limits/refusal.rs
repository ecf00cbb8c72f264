//! How a limit says no.

use super::scope::ScopeKind;
use std::time::Duration;

/// Which of a scope's limits was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    Requests,
    Tokens,
    Parallel,
    Queue,
    /// Of the budget, in nano-USD.
    Money,
    /// Of the budget.
    BudgetTokens,
}

impl LimitKind {
    pub const ALL: [LimitKind; 6] = [
        LimitKind::Requests,
        LimitKind::Tokens,
        LimitKind::Parallel,
        LimitKind::Queue,
        LimitKind::Money,
        LimitKind::BudgetTokens,
    ];

    /// A label's word.
    pub fn name(self) -> &'static str {
        match self {
            LimitKind::Requests => "rpm",
            LimitKind::Tokens => "tpm",
            LimitKind::Parallel => "parallel",
            LimitKind::Queue => "queue",
            LimitKind::Money => "budget_usd",
            LimitKind::BudgetTokens => "budget_tokens",
        }
    }

    pub fn is_budget(self) -> bool {
        matches!(self, LimitKind::Money | LimitKind::BudgetTokens)
    }
}

/// The one limit that keeps a request out the longest. Amounts are requests, tokens or nano-USD, as `kind` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRefusal {
    pub scope: ScopeKind,
    pub kind: LimitKind,
    pub limit: u64,
    pub used: u64,
    pub requested: u64,
    /// When the same request can go on, if nothing else comes between; `None`: never.
    pub retry_after: Option<Duration>,
}

impl LimitRefusal {
    /// Whether this one keeps the request out longer than `other`.
    pub(super) fn outlasts(&self, other: &Self) -> bool {
        match (self.retry_after, other.retry_after) {
            (None, other) => other.is_some(),
            (Some(_), None) => false,
            (Some(mine), Some(other)) => mine > other,
        }
    }
}
