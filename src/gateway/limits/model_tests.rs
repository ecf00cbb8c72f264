//! T-L4: the limiter against a reference that remembers everything and works everything out anew, over 100,000 random
//! operations.

use super::core::Core;
use super::*;
use crate::gateway::spec::BudgetSpec;
use proptest::prelude::*;
use std::time::Duration;

const KINDS: [ScopeKind; 3] = [ScopeKind::Key, ScopeKind::Team, ScopeKind::Global];
const MINUTE_MS: u64 = 60_000;
/// What a request took comes back within this time, however long it waited to reserve: tests end it sooner.
const HELD_MS_MAX: u64 = 40 * MINUTE_MS;

#[derive(Debug, Clone, Copy)]
enum Op {
    Admit {
        key: usize,
        n_slots_free: u32,
    },
    Reserve {
        which: usize,
        tokens: u64,
        nusd: i64,
    },
    /// Per cent of the reservation; more than 100: an upstream that said more than was thought.
    Settle {
        which: usize,
        percent: u64,
    },
    Start {
        which: usize,
    },
    /// Crash, cancel or refusal: whatever ends a request without its count.
    Drop {
        which: usize,
    },
    Pass {
        ms: u64,
    },
    SetWall {
        by_ms: i64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..4, 0u32..4).prop_map(|(key, n_slots_free)| Op::Admit { key, n_slots_free }),
        4 => (any::<usize>(), 0u64..150, 0i64..400).prop_map(|(which, tokens, nusd)| Op::Reserve { which, tokens, nusd }),
        3 => (any::<usize>(), 0u64..130).prop_map(|(which, percent)| Op::Settle { which, percent }),
        2 => any::<usize>().prop_map(|which| Op::Start { which }),
        2 => any::<usize>().prop_map(|which| Op::Drop { which }),
        5 => (0u64..4000).prop_map(|ms| Op::Pass { ms }),
        1 => (-4_000_000i64..4_000_000).prop_map(|by_ms| Op::SetWall { by_ms }),
    ]
}

/// The names and limits of one request's scopes.
struct World {
    budget: BudgetSpec,
    limits: [Limits; 3],
}

impl World {
    fn new() -> Self {
        let limits = |rpm, tpm, parallel, queue| Limits {
            requests_per_minute: rpm,
            tokens_per_minute: tpm,
            n_parallel: parallel,
            n_queue: queue,
            n_output: None,
            class: None,
        };
        Self {
            budget: BudgetSpec {
                max_nusd: Some(9_000),
                max_tokens: Some(3_000),
                period: Some("1h".parse().unwrap()),
                soft_nusd: None,
            },
            limits: [
                limits(Some(20), Some(500), Some(6), None),
                limits(Some(40), None, None, Some(5)),
                limits(None, Some(1200), Some(15), None),
            ],
        }
    }

    fn scopes<'a>(&'a self, names: &'a [String; 3]) -> [Scope<'a>; 3] {
        std::array::from_fn(|i| Scope {
            kind: KINDS[i],
            id: &names[i],
            limits: self.limits[i],
            budget: (i < 2).then_some(&self.budget),
            created_ms: 1_234_567,
        })
    }
}

/// Four keys in two teams.
fn names(key: usize) -> [String; 3] {
    [format!("key{key}"), format!("team{}", key / 2), String::new()]
}

/// A request as the reference remembers it.
struct Remembered {
    names: [String; 3],
    began_ms: u64,
    is_running: bool,
    is_waiting: bool,
    counts: bool,
    /// Where what it took lies, of each scope's requests and tokens.
    groups: [[Option<usize>; 2]; 3],
    has_reserved: bool,
    /// Of the key's and the team's budget: the window it counts in, if that is still looked at.
    windows: [Option<PeriodWindow>; 2],
    /// Whether the key's and the team's budget count it as spent, and as how much.
    is_settled: [bool; 2],
    charged: [Spend; 2],
    spend: Spend,
}

#[derive(Default)]
struct Reference {
    requests: Vec<Remembered>,
    windows: std::collections::BTreeMap<String, PeriodWindow>,
    /// (first, last) times of what was taken close together, of a scope's requests or tokens.
    groups: std::collections::BTreeMap<(String, bool), Vec<(u64, u64)>>,
}

impl Reference {
    /// Remembers that something was taken: what begins within half a second of a group's first comes back with its last.
    fn take(&mut self, name: &str, of_tokens: bool, now_ms: u64) -> usize {
        let groups = self.groups.entry((name.to_owned(), of_tokens)).or_default();
        match groups.last_mut() {
            Some((opened, latest)) if now_ms < *opened + 500 => *latest = now_ms,
            _ => groups.push((now_ms, now_ms)),
        }
        groups.len() - 1
    }

    /// (amount, when it comes back) of everything that a scope's window holds.
    fn held(&self, name: &str, of_tokens: bool, now_ms: u64) -> Vec<(u64, u64)> {
        let Some(groups) = self.groups.get(&(name.to_owned(), of_tokens)) else { return Vec::new() };
        let recent = self.requests.iter().rev().take_while(|request| request.began_ms + HELD_MS_MAX > now_ms);
        let of_scope = recent.filter_map(|request| {
            let i = request.names.iter().position(|n| n == name)?;
            let group = request.groups[i][usize::from(of_tokens)]?;
            let amount = if of_tokens { request.spend.tokens } else { u64::from(request.counts) };
            Some((amount, groups[group].1 + MINUTE_MS))
        });
        of_scope.filter(|(_, returns_ms)| *returns_ms > now_ms).collect()
    }

    fn rate(&self, name: &str, of_tokens: bool, now_ms: u64, n: u64, limit: u64) -> (u64, Option<Duration>) {
        let held = self.held(name, of_tokens, now_ms);
        let used = held.iter().map(|(n, _)| n).sum();
        let mut times: Vec<u64> = held.iter().map(|(_, at)| *at).chain([now_ms]).collect();
        times.sort_unstable();
        let left_at = |at: u64| held.iter().filter(|(_, returns)| *returns > at).map(|(n, _)| n).sum::<u64>();
        let first = times.into_iter().find(|at| left_at(*at) + n <= limit);
        (used, first.map(|at| Duration::from_millis(at - now_ms)))
    }

    fn roll(&mut self, name: &str, world: &World, wall_ms: i64) {
        let period = world.budget.period.as_ref().unwrap();
        let fresh = window(period, 1_234_567, wall_ms);
        let held = *self.windows.entry(name.to_owned()).or_insert(fresh);
        let is_far_back = wall_ms < held.start_ms - (held.end_ms - held.start_ms);
        if fresh.start_ms <= held.start_ms && !is_far_back {
            return;
        }
        self.windows.insert(name.to_owned(), fresh);
        for request in &mut self.requests {
            for i in 0..2 {
                if request.names[i] == name && request.windows[i] == Some(held) {
                    // Gone with its window, or carried over as it is and not looked at again.
                    request.windows[i] = is_far_back.then_some(fresh);
                    request.is_settled[i] |= is_far_back;
                }
            }
        }
    }

    fn budget_used(&self, i: usize, name: &str) -> (Spend, Spend) {
        let (mut spent, mut reserved) = (Spend::default(), Spend::default());
        for request in self.requests.iter().filter(|request| request.names[i] == name) {
            if request.windows[i].is_some() && request.windows[i] == self.windows.get(name).copied() {
                let sum = if request.is_settled[i] { &mut spent } else { &mut reserved };
                sum.tokens += request.charged[i].tokens;
                sum.nusd += request.charged[i].nusd;
            }
        }
        (spent, reserved)
    }

    fn refuse_budget(&self, world: &World, i: usize, name: &str, wall_ms: i64, ask: Spend) -> Option<LimitRefusal> {
        let (spent, reserved) = self.budget_used(i, name);
        let retry = self.windows[name].end_ms - wall_ms;
        let retry = |fits: bool| fits.then(|| Duration::from_millis(u64::try_from(retry).unwrap()));
        let (max_tokens, max_nusd) = (world.budget.max_tokens.unwrap(), world.budget.max_nusd.unwrap());
        let (max_tokens, money) = (u64::try_from(max_tokens).unwrap(), u64::try_from(max_nusd).unwrap());
        let used = spent.tokens + reserved.tokens;
        let used_nusd = u64::try_from(spent.nusd + reserved.nusd).unwrap();
        let nusd = u64::try_from(ask.nusd).unwrap();
        let refusal = |kind, limit, used, requested, retry_after| {
            Some(LimitRefusal { scope: KINDS[i], kind, limit, used, requested, retry_after })
        };
        if ask.tokens > 0 && used + ask.tokens > max_tokens {
            let retry = retry(ask.tokens <= max_tokens);
            return refusal(LimitKind::BudgetTokens, max_tokens, used, ask.tokens, retry);
        }
        if nusd > 0 && used_nusd + nusd > money {
            return refusal(LimitKind::Money, money, used_nusd, nusd, retry(nusd <= money));
        }
        None
    }

    fn in_use(&self, i: usize, name: &str) -> (u32, u32) {
        let of_scope = || self.requests.iter().filter(|request| request.names[i] == name);
        let n_running = of_scope().filter(|request| request.is_running).count();
        (n_running as u32, of_scope().filter(|request| request.is_waiting).count() as u32)
    }
}

/// Both in step.
struct Pair {
    world: World,
    core: Core,
    reference: Reference,
    now: Now,
    tickets: Vec<(usize, Ticket, Option<Held>)>,
}

impl Pair {
    fn now_ms(&self) -> u64 {
        self.now.mono.as_millis() as u64
    }

    fn admit(&mut self, key: usize, n_slots_free: u32) {
        let names = names(key);
        let got = self.core.admit(self.now, &self.world.scopes(&names), n_slots_free);
        let mut refusals = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if i < 2 {
                self.reference.roll(name, &self.world, self.now.wall_ms);
            }
            let limits = self.world.limits[i];
            let (n_running, n_waiting) = self.reference.in_use(i, name);
            let second = Some(Duration::from_secs(1));
            let refusal = |kind, limit: u64, used: u64, retry_after| LimitRefusal {
                scope: KINDS[i],
                kind,
                limit,
                used,
                requested: 1,
                retry_after,
            };
            if let Some(most) = limits.n_parallel.filter(|most| n_running >= *most) {
                refusals.push(refusal(LimitKind::Parallel, most.into(), n_running.into(), second));
            } else if let Some(most) = limits.n_queue.filter(|most| n_waiting >= most + n_slots_free) {
                refusals.push(refusal(LimitKind::Queue, most.into(), n_waiting.into(), second));
            }
            if let Some(most) = limits.requests_per_minute {
                let (used, wait) = self.reference.rate(name, false, self.now_ms(), 1, most);
                if used >= most {
                    refusals.push(refusal(LimitKind::Requests, most, used, wait));
                }
            }
            if i < 2 {
                let one = Spend { tokens: 1, nusd: 0 };
                refusals.extend(self.reference.refuse_budget(&self.world, i, name, self.now.wall_ms, one));
            }
        }
        assert_eq!(got.as_ref().err().copied(), longest(&refusals), "admit at {:?}", self.now);
        let Ok(ticket) = got else { return };
        let began_ms = self.now_ms();
        let groups = std::array::from_fn(|i| {
            let limit = self.world.limits[i].requests_per_minute;
            [limit.map(|_| self.reference.take(&names[i], false, began_ms)), None]
        });
        self.tickets.push((self.reference.requests.len(), ticket, None));
        self.reference.requests.push(Remembered {
            names,
            began_ms,
            is_running: true,
            is_waiting: true,
            counts: true,
            groups,
            has_reserved: false,
            windows: [None; 2],
            is_settled: [false; 2],
            charged: [Spend::default(); 2],
            spend: Spend::default(),
        });
    }

    fn reserve(&mut self, which: usize, ask: Spend) {
        let Some(which) = which.checked_rem(self.tickets.len()) else { return };
        let (idx, now_ms) = (self.tickets[which].0, self.now_ms());
        if self.reference.requests[idx].has_reserved {
            return;
        }
        let got = self.core.reserve(self.now, &self.tickets[which].1, ask);
        let names = self.reference.requests[idx].names.clone();
        let mut refusals = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if let Some(limit) = self.world.limits[i].tokens_per_minute {
                let (used, retry_after) = self.reference.rate(name, true, now_ms, ask.tokens, limit);
                if used + ask.tokens > limit {
                    let (scope, kind, requested) = (KINDS[i], LimitKind::Tokens, ask.tokens);
                    refusals.push(LimitRefusal { scope, kind, limit, used, requested, retry_after });
                }
            }
            if i < 2 {
                self.reference.roll(name, &self.world, self.now.wall_ms);
                refusals.extend(self.reference.refuse_budget(&self.world, i, name, self.now.wall_ms, ask));
            }
        }
        assert_eq!(got.as_ref().err().copied(), longest(&refusals), "reserve at {:?}", self.now);
        let Ok(held) = got else { return };
        self.tickets[which].2 = Some(held);
        for (i, name) in names.iter().enumerate() {
            if self.world.limits[i].tokens_per_minute.is_some() {
                let group = self.reference.take(name, true, now_ms);
                self.reference.requests[idx].groups[i][1] = Some(group);
            }
        }
        let request = &mut self.reference.requests[idx];
        request.has_reserved = true;
        request.spend = ask;
        request.charged = [ask; 2];
        request.windows = std::array::from_fn(|i| Some(self.reference.windows[&names[i]]));
    }

    /// Ends a request; `None`: without its count.
    fn end(&mut self, which: usize, percent: Option<u64>) {
        if self.tickets.is_empty() {
            return;
        }
        let (idx, mut ticket, held) = self.tickets.swap_remove(which % self.tickets.len());
        let request = &mut self.reference.requests[idx];
        let part = percent.unwrap_or(0);
        let actual = Spend {
            tokens: request.spend.tokens * part / 100,
            nusd: request.spend.nusd * i64::try_from(part).unwrap() / 100,
        };
        if percent.is_some() {
            ticket.keep();
        }
        if let Some(held) = held {
            self.core.settle(held, actual);
        }
        self.core.release(ticket);
        (request.is_running, request.is_waiting) = (false, false);
        request.counts = percent.is_some();
        request.spend = actual;
        for i in 0..2 {
            if !request.is_settled[i] {
                request.is_settled[i] = true;
                request.charged[i] = actual;
            }
        }
    }

    fn check(&mut self) {
        for key in 0..4 {
            let names = names(key);
            let mut standing = Standing::default();
            for (i, name) in names.iter().enumerate() {
                if i < 2 && self.reference.windows.contains_key(name) {
                    let (spent, reserved, _) = self.core.budget(KINDS[i], name).expect("seen");
                    assert_eq!((spent, reserved), self.reference.budget_used(i, name), "{name}");
                }
                assert_eq!(self.core.in_use(KINDS[i], name), self.reference.in_use(i, name));
                let now_ms = self.now_ms();
                let rate = |of_tokens, limit: Option<u64>| {
                    limit.map(|limit| {
                        let (used, _) = self.reference.rate(name, of_tokens, now_ms, 0, limit);
                        (limit.saturating_sub(used), limit)
                    })
                };
                let limits = self.world.limits[i];
                let least = |had: Option<Rate>, new: Option<(u64, u64)>| match (had, new) {
                    (Some(had), Some((remaining, limit))) if (remaining, limit) >= (had.remaining, had.limit) => {
                        Some(had)
                    }
                    (had, None) => had,
                    (_, Some((remaining, limit))) => Some(Rate { limit, remaining, reset: Duration::ZERO }),
                };
                standing.requests = least(standing.requests, rate(false, limits.requests_per_minute));
                standing.tokens = least(standing.tokens, rate(true, limits.tokens_per_minute));
            }
            let got = self.core.standing(self.now, &self.world.scopes(&names));
            let plain = |rate: Option<Rate>| rate.map(|rate| (rate.limit, rate.remaining));
            assert_eq!(plain(got.requests), plain(standing.requests));
            assert_eq!(plain(got.tokens), plain(standing.tokens));
        }
    }
}

fn longest(refusals: &[LimitRefusal]) -> Option<LimitRefusal> {
    let length = |refusal: &LimitRefusal| refusal.retry_after.unwrap_or(Duration::MAX);
    let most = refusals.iter().map(length).max()?;
    refusals.iter().find(|refusal| length(refusal) == most).copied()
}

proptest! {
    // 40 runs of 2,500 operations.
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 2000, ..Default::default() })]
    #[test]
    fn decisions_are_those_of_a_reference_that_remembers_everything(
        ops in prop::collection::vec(op(), 2500),
    ) {
        let mut pair = Pair {
            world: World::new(),
            core: Core::default(),
            reference: Reference::default(),
            now: Now { mono: Duration::ZERO, wall_ms: 1_790_000_000_000 },
            tickets: Vec::new(),
        };
        for key in 0..4 {
            // Made before the first minute is over, or an idle one might be forgotten, which no budget here survives.
            pair.core.lacks_history(pair.now, &pair.world.scopes(&names(key)));
            names(key)[..2].iter().for_each(|name| pair.reference.roll(name, &pair.world, pair.now.wall_ms));
        }
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Admit { key, n_slots_free } => pair.admit(key, n_slots_free),
                Op::Reserve { which, tokens, nusd } => pair.reserve(which, Spend { tokens, nusd }),
                Op::Settle { which, percent } => pair.end(which, Some(percent)),
                Op::Drop { which } => pair.end(which, None),
                Op::Start { which } => {
                    if !pair.tickets.is_empty() {
                        let which = which % pair.tickets.len();
                        let (idx, ticket, _) = &mut pair.tickets[which];
                        pair.core.start(ticket);
                        pair.reference.requests[*idx].is_waiting = false;
                    }
                }
                Op::Pass { ms } => {
                    pair.now.mono += Duration::from_millis(ms);
                    pair.now.wall_ms += i64::try_from(ms).unwrap();
                }
                Op::SetWall { by_ms } => pair.now.wall_ms += by_ms,
            }
            if n % 25 == 0 {
                pair.check();
            }
        }
        while !pair.tickets.is_empty() {
            pair.end(0, None);
        }
        for i in 0..4 {
            prop_assert_eq!(pair.core.in_use(ScopeKind::Key, &format!("key{i}")), (0, 0));
        }
    }
}
