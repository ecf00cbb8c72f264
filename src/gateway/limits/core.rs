//! The arithmetic of all scopes together; whoever holds it holds the only lock.

use super::budget::{Budget, Era, Spend};
use super::period::PeriodWindow;
use super::refusal::{LimitKind, LimitRefusal};
use super::scope::{Limits, Scope, ScopeKind};
use super::window::{EntryId, Mono, Window};
use super::{Now, Warning};
use crate::gateway::spec::BudgetSpec;
use std::collections::HashMap;
use std::time::Duration;

/// Most scopes that are kept. Of those whose names clients choose, what comes beyond shares one.
pub const SCOPES_MAX: usize = 1 << 16;
/// Scopes that are looked at for being idle whenever one is made.
const SWEPT_AT_ONCE: usize = 4;
/// A budget may be forgotten once the store knows all of it.
const IDLE_MIN: Duration = Duration::from_secs(60);
/// When a place may be free again; nobody knows, and an SDK that waits longer than it must is no help.
const PARALLEL_RETRY: Duration = Duration::from_secs(1);
/// Longest scope name that is kept as it is.
const ID_BYTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub struct Core {
    /// By kind: name to place.
    index: [HashMap<Box<str>, u32>; 7],
    scopes: Vec<State>,
    free: Vec<u32>,
    /// Where the search for idle scopes goes on.
    hand: usize,
    /// What an operator should read, until it is taken. **Bound:** one each for a settled request's scopes.
    warnings: Vec<Warning>,
}

#[derive(Debug)]
struct State {
    kind: ScopeKind,
    id: Box<str>,
    /// Tickets that name it.
    n_pins: u32,
    limits: Limits,
    requests: Window,
    tokens: Window,
    n_running: u32,
    n_waiting: u32,
    budget: Option<(BudgetSpec, Budget)>,
    used_at: Mono,
}

/// What a request holds. Must go back by [`Core::release`].
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    parts: Vec<Part>,
    is_waiting: bool,
    /// It counts as a request of its minute.
    is_kept: bool,
}

#[derive(Debug)]
struct Part {
    at: u32,
    request: Option<EntryId>,
}

/// What was reserved for one try of a request. Must go back by [`Core::settle`], before its ticket does.
#[derive(Debug)]
#[must_use]
pub struct Held {
    parts: Vec<HeldPart>,
    most: Spend,
}

#[derive(Debug)]
struct HeldPart {
    at: u32,
    tokens: Option<EntryId>,
    era: Option<Era>,
}

impl Ticket {
    /// It is no refusal: it counts as a request, whatever becomes of it.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

/// What is left for a caller: of each kind the scope with the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    pub requests: Option<Rate>,
    pub tokens: Option<Rate>,
}

impl Core {
    /// Takes one request and one place of every scope, or of none. `n_slots_free`: requests that would not have to wait.
    pub fn admit(&mut self, now: Now, scopes: &[Scope<'_>], n_slots_free: u32) -> Result<Ticket, LimitRefusal> {
        let parts = scopes.iter().map(|scope| self.pin(now, scope));
        let parts = parts.map(|at| Part { at, request: None }).collect();
        let mut ticket = Ticket { parts, is_waiting: false, is_kept: false };
        let refusals = ticket.parts.iter().filter_map(|part| self.state(part.at).refuse_request(now, n_slots_free));
        if let Some(refusal) = longest(refusals) {
            self.unpin(&ticket);
            return Err(refusal);
        }
        for part in &mut ticket.parts {
            let state = &mut self.scopes[part.at as usize];
            part.request = state.limits.requests_per_minute.map(|_| state.requests.take(now.mono, 1));
            state.n_running += 1;
            state.n_waiting += 1;
        }
        ticket.is_waiting = true;
        Ok(ticket)
    }

    /// Takes what a try of the request may cost at most, from every scope or from none.
    pub fn reserve(&mut self, now: Now, ticket: &Ticket, most: Spend) -> Result<Held, LimitRefusal> {
        for part in &ticket.parts {
            self.state(part.at).roll(now);
        }
        let refusals = ticket.parts.iter().filter_map(|part| self.state(part.at).refuse_spend(now, most));
        if let Some(refusal) = longest(refusals) {
            return Err(refusal);
        }
        let parts = ticket.parts.iter().map(|part| {
            let state = &mut self.scopes[part.at as usize];
            HeldPart {
                at: part.at,
                tokens: state.limits.tokens_per_minute.map(|_| state.tokens.take(now.mono, most.tokens)),
                era: state.budget.as_mut().map(|(_, budget)| budget.reserve(most)),
            }
        });
        Ok(Held { parts: parts.collect(), most })
    }

    /// Replaces what was reserved by what it was.
    pub fn settle(&mut self, held: Held, actual: Spend) {
        for part in held.parts {
            let state = &mut self.scopes[part.at as usize];
            if let Some(id) = part.tokens {
                state.tokens.amend(id, held.most.tokens, actual.tokens);
            }
            if let (Some((spec, budget)), Some(era)) = (&mut state.budget, part.era) {
                let before = budget.spent().nusd;
                budget.settle(era, held.most, actual);
                if spec.soft_nusd.is_some_and(|soft| before < soft && budget.spent().nusd >= soft) {
                    self.warnings.push(Warning { kind: state.kind, id: state.id.clone() });
                }
            }
        }
    }

    /// It has a slot.
    pub fn start(&mut self, ticket: &mut Ticket) {
        if std::mem::take(&mut ticket.is_waiting) {
            for part in &ticket.parts {
                self.scopes[part.at as usize].n_waiting -= 1;
            }
        }
    }

    /// Gives the place back, and the request itself unless it is kept.
    pub fn release(&mut self, mut ticket: Ticket) {
        self.start(&mut ticket);
        for part in &ticket.parts {
            let state = &mut self.scopes[part.at as usize];
            state.n_running -= 1;
            if let (Some(id), false) = (part.request, ticket.is_kept) {
                state.requests.amend(id, 1, 0);
            }
        }
        self.unpin(&ticket);
    }

    /// What is left for a caller of these scopes.
    pub fn standing(&mut self, now: Now, scopes: &[Scope<'_>]) -> Standing {
        let mut standing = Standing::default();
        for scope in scopes {
            let at = self.index[scope.kind as usize].get(cut(scope.id)).copied();
            let mut state = at.map(|at| &mut self.scopes[at as usize]);
            let (requests, tokens) = match &mut state {
                Some(state) => (Some(&mut state.requests), Some(&mut state.tokens)),
                None => (None, None),
            };
            least(&mut standing.requests, scope.limits.requests_per_minute, requests, now.mono);
            least(&mut standing.tokens, scope.limits.tokens_per_minute, tokens, now.mono);
        }
        standing
    }

    /// Tokens that are left of the budgets, over all scopes; `None`: no end. Also the most that a minute can hold, since
    /// a request of more is never let in.
    pub fn tokens_left(&mut self, now: Now, ticket: &Ticket) -> Option<u64> {
        let left = ticket.parts.iter().filter_map(|part| {
            let state = &mut self.scopes[part.at as usize];
            state.roll(now);
            let of_budget = state.budget.as_ref().and_then(|(spec, budget)| budget.tokens_left(spec));
            [state.limits.tokens_per_minute, of_budget].into_iter().flatten().min()
        });
        left.min()
    }

    /// Whether any of the scopes counts what is spent, in a minute or of a budget.
    pub fn counts(&mut self, ticket: &Ticket) -> bool {
        ticket.parts.iter().any(|part| {
            let state = self.state(part.at);
            state.limits.tokens_per_minute.is_some() || state.budget.is_some()
        })
    }

    /// The most tokens of an answer that all of the scopes allow; `None`: no cap.
    pub fn output_cap(&mut self, ticket: &Ticket) -> Option<u32> {
        ticket.parts.iter().filter_map(|part| self.state(part.at).limits.n_output).min()
    }

    /// The scopes whose earlier spending is not known yet, with the window that it counts in.
    pub fn lacks_history<'a>(&mut self, now: Now, scopes: &[Scope<'a>]) -> Vec<(Scope<'a>, PeriodWindow)> {
        let mut lacking = Vec::new();
        for scope in scopes.iter().filter(|scope| scope.budget.is_some()) {
            let at = self.pin(now, scope) as usize;
            self.scopes[at].n_pins -= 1;
            let window = self.scopes[at].budget.as_ref().and_then(|(_, budget)| budget.lacks_history());
            lacking.extend(window.map(|window| (*scope, window)));
        }
        lacking
    }

    /// Tells what a scope spent in `window` before this process began.
    pub fn tell_history(&mut self, kind: ScopeKind, id: &str, window: PeriodWindow, spent: Spend) {
        if let Some((_, budget)) = self.find(kind, id).and_then(|state| state.budget.as_mut()) {
            budget.tell_history(window, spent);
        }
    }

    /// Forgets what a scope spent in the window of now.
    pub fn forgive(&mut self, kind: ScopeKind, id: &str) {
        if let Some((_, budget)) = self.find(kind, id).and_then(|state| state.budget.as_mut()) {
            budget.forgive();
        }
    }

    /// What a scope has spent and reserved in its window, where it has a budget and was seen.
    pub fn budget(&mut self, kind: ScopeKind, id: &str) -> Option<(Spend, Spend, PeriodWindow)> {
        let (_, budget) = self.find(kind, id)?.budget.as_ref()?;
        Some((budget.spent(), budget.reserved(), budget.window()))
    }

    /// (running, waiting) requests of a scope.
    pub fn in_use(&mut self, kind: ScopeKind, id: &str) -> (u32, u32) {
        self.find(kind, id).map_or((0, 0), |state| (state.n_running, state.n_waiting))
    }

    pub fn n_scopes(&self) -> usize {
        self.scopes.len() - self.free.len()
    }

    pub(super) fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    fn state(&mut self, at: u32) -> &mut State {
        &mut self.scopes[at as usize]
    }

    fn find(&mut self, kind: ScopeKind, id: &str) -> Option<&mut State> {
        let at = *self.index[kind as usize].get(cut(id))?;
        Some(&mut self.scopes[at as usize])
    }

    /// The place of a scope, made if it is new, which stays until it is unpinned.
    fn pin(&mut self, now: Now, scope: &Scope<'_>) -> u32 {
        let found = self.index[scope.kind as usize].get(cut(scope.id)).copied();
        let at = found.unwrap_or_else(|| self.make(now, scope));
        let state = &mut self.scopes[at as usize];
        state.n_pins += 1;
        state.used_at = now.mono;
        state.limits = scope.limits;
        match (scope.budget, &mut state.budget) {
            (None, had) => *had = None,
            (Some(spec), Some((was, budget))) => {
                budget.roll(spec, scope.created_ms, now.wall_ms);
                if was != spec {
                    was.clone_from(spec);
                }
            }
            (Some(spec), none) => *none = Some((spec.clone(), Budget::new(spec, scope.created_ms, now.wall_ms))),
        }
        at
    }

    fn unpin(&mut self, ticket: &Ticket) {
        for part in &ticket.parts {
            self.scopes[part.at as usize].n_pins -= 1;
        }
    }

    fn make(&mut self, now: Now, scope: &Scope<'_>) -> u32 {
        self.sweep(now);
        let names = &mut self.index[scope.kind as usize];
        let mut id = cut(scope.id);
        if scope.kind.is_endless() && self.scopes.len() - self.free.len() >= SCOPES_MAX {
            // No client has an empty name.
            id = "";
            if let Some(shared) = names.get(id) {
                return *shared;
            }
        }
        let state = State {
            kind: scope.kind,
            id: id.into(),
            n_pins: 0,
            limits: scope.limits,
            requests: Window::default(),
            tokens: Window::default(),
            n_running: 0,
            n_waiting: 0,
            budget: None,
            used_at: now.mono,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.scopes[at as usize] = state;
                at
            }
            None => {
                self.scopes.push(state);
                self.scopes.len() as u32 - 1
            }
        };
        names.insert(id.into(), at);
        at
    }

    /// Forgets a few scopes that are as if they were new. Each new one pays for looking at `SWEPT_AT_ONCE`, so the table
    /// follows what is in use.
    fn sweep(&mut self, now: Now) {
        for _ in 0..SWEPT_AT_ONCE.min(self.scopes.len()) {
            self.hand = (self.hand + 1) % self.scopes.len();
            let state = &mut self.scopes[self.hand];
            // A place that is free already is in no index.
            let is_listed = self.index[state.kind as usize].get(&state.id) == Some(&(self.hand as u32));
            if is_listed && state.is_idle(now.mono) {
                self.index[state.kind as usize].remove(&state.id);
                self.free.push(self.hand as u32);
            }
        }
    }
}

impl State {
    /// Whether one made anew would be the same. What its budget had spent is in the store by then.
    fn is_idle(&mut self, now: Mono) -> bool {
        self.n_pins == 0 && now >= self.used_at + IDLE_MIN && self.requests.is_empty(now) && self.tokens.is_empty(now)
    }

    fn roll(&mut self, now: Now) {
        if let Some((spec, budget)) = &mut self.budget {
            let created_ms = budget.created_ms();
            budget.roll(spec, created_ms, now.wall_ms);
        }
    }

    fn refuse_request(&mut self, now: Now, n_slots_free: u32) -> Option<LimitRefusal> {
        let Limits { requests_per_minute, n_parallel, n_queue, .. } = self.limits;
        let scope = self.kind;
        let refusal = |kind, limit: u64, used: u64, retry_after| {
            Some(LimitRefusal { scope, kind, limit, used, requested: 1, retry_after })
        };
        // A place comes back sooner than a minute's request or a budget.
        let by_place = match (n_parallel, n_queue) {
            (Some(limit), _) if self.n_running >= limit => {
                refusal(LimitKind::Parallel, limit.into(), self.n_running.into(), Some(PARALLEL_RETRY))
            }
            (_, Some(limit)) if self.n_waiting >= limit.saturating_add(n_slots_free) => {
                refusal(LimitKind::Queue, limit.into(), self.n_waiting.into(), Some(PARALLEL_RETRY))
            }
            _ => None,
        };
        let by_minute = requests_per_minute.and_then(|limit| {
            let used = self.requests.used(now.mono);
            let wait = self.requests.wait(now.mono, 1, limit);
            if used < limit { None } else { refusal(LimitKind::Requests, limit, used, wait) }
        });
        // Any request costs a token.
        let by_budget = self.refuse_budget(now, Spend { tokens: 1, nusd: 0 });
        longest([by_place, by_minute, by_budget].into_iter().flatten())
    }

    fn refuse_spend(&mut self, now: Now, estimate: Spend) -> Option<LimitRefusal> {
        let by_minute = self.limits.tokens_per_minute.and_then(|limit| {
            let used = self.tokens.used(now.mono);
            let retry_after = self.tokens.wait(now.mono, estimate.tokens, limit);
            let refusal = LimitRefusal {
                scope: self.kind,
                kind: LimitKind::Tokens,
                limit,
                used,
                requested: estimate.tokens,
                retry_after,
            };
            if used.saturating_add(estimate.tokens) <= limit { None } else { Some(refusal) }
        });
        longest([by_minute, self.refuse_budget(now, estimate)].into_iter().flatten())
    }

    fn refuse_budget(&self, now: Now, estimate: Spend) -> Option<LimitRefusal> {
        let (spec, budget) = self.budget.as_ref()?;
        let spent = budget.check(spec, estimate).err()?;
        let wait = |until_ms: i64| u64::try_from(until_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
        Some(LimitRefusal {
            scope: self.kind,
            kind: spent.kind,
            limit: spent.limit,
            used: spent.used,
            requested: spent.requested,
            retry_after: spent.until_ms.map(|until_ms| Duration::from_millis(wait(until_ms))),
        })
    }
}

/// Names of any length are the client's; their beginning tells them apart well enough.
fn cut(id: &str) -> &str {
    let end = (0..=ID_BYTES_MAX.min(id.len())).rev().find(|at| id.is_char_boundary(*at));
    &id[..end.unwrap_or(0)]
}

/// The refusal that keeps the request out the longest; of equals the first.
fn longest(refusals: impl Iterator<Item = LimitRefusal>) -> Option<LimitRefusal> {
    refusals.reduce(|longest, next| if next.outlasts(&longest) { next } else { longest })
}

fn least(held: &mut Option<Rate>, limit: Option<u64>, window: Option<&mut Window>, now: Mono) {
    let Some(limit) = limit else { return };
    let (used, reset) = window.map_or((0, Duration::ZERO), |window| (window.used(now), window.reset(now)));
    let rate = Rate { limit, remaining: limit.saturating_sub(used), reset };
    if held.is_none_or(|other| (rate.remaining, rate.limit) < (other.remaining, other.limit)) {
        *held = Some(rate);
    }
}
