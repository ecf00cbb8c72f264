//! Whom limits are for, and which ones.

use crate::chat::Class;
use crate::gateway::spec::{BudgetSpec, LimitSpec};
use std::collections::BTreeMap;

/// What kind of thing is limited. The order is that of a request's scopes, the narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScopeKind {
    Key,
    /// The person or program that the client says it acts for.
    EndUser,
    User,
    Team,
    /// Keys and teams that share a budget.
    Budget,
    Ip,
    /// Everybody together.
    Global,
}

impl ScopeKind {
    pub const ALL: [ScopeKind; 7] = [
        ScopeKind::Key,
        ScopeKind::EndUser,
        ScopeKind::User,
        ScopeKind::Team,
        ScopeKind::Budget,
        ScopeKind::Ip,
        ScopeKind::Global,
    ];

    /// A label's word.
    pub fn name(self) -> &'static str {
        match self {
            ScopeKind::Key => "key",
            ScopeKind::EndUser => "end_user",
            ScopeKind::User => "user",
            ScopeKind::Team => "team",
            ScopeKind::Budget => "budget",
            ScopeKind::Ip => "ip",
            ScopeKind::Global => "global",
        }
    }

    /// Whether clients choose the names: such scopes may come in any number.
    pub(super) fn is_endless(self) -> bool {
        matches!(self, ScopeKind::EndUser | ScopeKind::Ip)
    }
}

/// Limits of one scope, settled. `None`: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub n_parallel: Option<u32>,
    /// Requests without a slot, beyond the slots that are free.
    pub n_queue: Option<u32>,
    /// Most tokens of one answer.
    pub n_output: Option<u32>,
    /// The queue that requests wait in; no limit, but it goes with them.
    pub class: Option<Class>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        Self { class: None, ..*self } == Self::default()
    }
}

/// One scope of a request.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub kind: ScopeKind,
    pub id: &'a str,
    pub limits: Limits,
    /// `None`: it has none.
    pub budget: Option<&'a BudgetSpec>,
    /// From when on rolling periods count, in unix milliseconds.
    pub created_ms: i64,
}

/// The named sets of `hearth.toml`.
///
/// Some names speak by themselves: `default` is for keys that name no set, `user`, `end_user` and `ip` for each user, end
/// user and address, `global` for the whole server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitSets {
    sets: BTreeMap<String, LimitSpec>,
}

impl LimitSets {
    pub const DEFAULT: &'static str = "default";
    /// Most sets of one server.
    pub const SETS_MAX: usize = 256;

    pub fn new(sets: BTreeMap<String, LimitSpec>) -> Self {
        Self { sets }
    }

    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    pub fn has(&self, name: &str) -> bool {
        self.sets.contains_key(name)
    }

    /// The set that every scope of this kind has by itself, if any.
    pub fn of_kind(&self, kind: ScopeKind) -> Option<Limits> {
        let set = self.sets.get(kind.name())?;
        Some(settle(set, None)).filter(|limits| !limits.is_none())
    }

    /// What a key's or team's own values say over those of the set they name; `fallback`: the set where they name none, or
    /// one that is gone. A 0 means no limit, also over a set's.
    pub fn settle(&self, own: &LimitSpec, fallback: Option<&str>) -> Limits {
        let find = |name: Option<&str>| name.and_then(|name| self.sets.get(name));
        settle(own, find(own.name.as_deref()).or_else(|| find(fallback)))
    }
}

fn settle(own: &LimitSpec, set: Option<&LimitSpec>) -> Limits {
    fn over<T: Copy + PartialEq + Default>(own: Option<T>, set: Option<T>) -> Option<T> {
        own.or(set).filter(|n| *n != T::default())
    }
    let of_set = |pick: fn(&LimitSpec) -> Option<u64>| set.and_then(pick);
    let small = |pick: fn(&LimitSpec) -> Option<u32>| set.and_then(pick);
    Limits {
        requests_per_minute: over(own.rpm, of_set(|set| set.rpm)),
        tokens_per_minute: over(own.tpm, of_set(|set| set.tpm)),
        n_parallel: over(own.parallel, small(|set| set.parallel)),
        n_queue: over(own.queue, small(|set| set.queue)),
        n_output: over(own.output, small(|set| set.output)),
        class: own.class.or_else(|| set.and_then(|set| set.class)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_values_win_over_the_named_set_and_zero_lifts_a_limit() {
        let pro = LimitSpec { rpm: Some(60), tpm: Some(1000), parallel: Some(4), ..Default::default() };
        let default = LimitSpec { rpm: Some(3), ..Default::default() };
        let sets = LimitSets::new([("pro".to_owned(), pro), ("default".to_owned(), default)].into());
        let named = |name: &str| LimitSpec { name: Some(name.to_owned()), ..Default::default() };
        let own = LimitSpec { rpm: Some(5), tpm: Some(0), ..named("pro") };
        let limits = sets.settle(&own, Some("default"));
        assert_eq!((limits.requests_per_minute, limits.tokens_per_minute, limits.n_parallel), (Some(5), None, Some(4)));
        assert_eq!(sets.settle(&LimitSpec::default(), Some("default")).requests_per_minute, Some(3));
        assert!(sets.settle(&LimitSpec::default(), None).is_none());
        assert_eq!(sets.settle(&named("gone"), Some("default")).requests_per_minute, Some(3));
        assert!(sets.of_kind(ScopeKind::Ip).is_none());
        assert!(sets.has("pro") && !sets.has("gone") && !sets.is_empty() && LimitSets::default().is_empty());
    }

    #[test]
    fn each_value_is_a_keys_own_or_its_sets() {
        let all = LimitSpec {
            name: None,
            rpm: Some(1),
            tpm: Some(2),
            parallel: Some(3),
            queue: Some(4),
            output: Some(5),
            class: Some(Class::Batch),
        };
        let limits = Limits {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(2),
            n_parallel: Some(3),
            n_queue: Some(4),
            n_output: Some(5),
            class: Some(Class::Batch),
        };
        let class = LimitSpec { class: Some(Class::Batch), ..Default::default() };
        let sets = LimitSets::new([("ip".to_owned(), all.clone()), ("user".to_owned(), class)].into());
        assert_eq!(sets.settle(&LimitSpec::default(), Some("ip")), limits);
        assert_eq!(sets.settle(&all, None), limits);
        assert_eq!(sets.of_kind(ScopeKind::Ip), Some(limits));
        assert_eq!(sets.of_kind(ScopeKind::User), None, "a queue alone limits nobody");
        let zeros = LimitSpec {
            name: None,
            rpm: Some(0),
            tpm: Some(0),
            parallel: Some(0),
            queue: Some(0),
            output: Some(0),
            class: Some(Class::Interactive),
        };
        let lifted = sets.settle(&zeros, Some("ip"));
        assert!(lifted.is_none() && lifted.class == Some(Class::Interactive));
    }
}
