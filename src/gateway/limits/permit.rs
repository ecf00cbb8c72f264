//! The core behind its lock, and what a request holds of it.

use super::budget::Spend;
use super::core::{Core, Standing, Ticket};
use super::period::PeriodWindow;
use super::refusal::LimitRefusal;
use super::scope::{Scope, ScopeKind};
use super::window::Mono;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For limits: never jumps.
    pub mono: Mono,
    /// For budgets: unix milliseconds, as the wall has it.
    pub wall_ms: i64,
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct WallClock {
    started: Instant,
}

impl Default for WallClock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for WallClock {
    fn now(&self) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now { mono: self.started.elapsed(), wall_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX) }
    }
}

/// How the core is locked; a type of its own so that a model checker can put another in.
pub trait Lock: Send + Sync {
    fn new(core: Core) -> Self;
    fn with<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R;
}

impl Lock for Mutex<Core> {
    fn new(core: Core) -> Self {
        Mutex::new(core)
    }

    fn with<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        // Nothing in the core panics between two changes that belong together, so a poisoned one is whole.
        work(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All limits of a server. Cheap to clone.
pub struct Limiter<L: Lock = Mutex<Core>> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    core: L,
    clock: Box<dyn Clock>,
}

impl<L: Lock> Clone for Limiter<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L: Lock> Limiter<L> {
    pub fn new(clock: impl Clock + 'static) -> Self {
        Self { shared: Arc::new(Shared { core: L::new(Core::default()), clock: Box::new(clock) }) }
    }

    /// Takes one request and one place of every scope, before any work was done for it. `n_slots_free`: how many
    /// requests would not have to wait.
    pub fn admit(&self, scopes: &[Scope<'_>], n_slots_free: u32) -> Result<Permit<L>, LimitRefusal> {
        let now = self.now();
        let ticket = if scopes.is_empty() {
            None
        } else {
            Some(self.shared.core.with(|core| core.admit(now, scopes, n_slots_free))?)
        };
        Ok(Permit { ticket, limiter: self.clone() })
    }

    /// What is left for a caller of these scopes.
    pub fn standing(&self, scopes: &[Scope<'_>]) -> Standing {
        let now = self.now();
        self.shared.core.with(|core| core.standing(now, scopes))
    }

    /// The scopes of which it must still be told what they spent before; see [`Limiter::tell_history`].
    pub fn lacks_history<'a>(&self, scopes: &[Scope<'a>]) -> Vec<(Scope<'a>, PeriodWindow)> {
        if scopes.iter().all(|scope| scope.budget.is_none()) {
            return Vec::new();
        }
        let now = self.now();
        self.shared.core.with(|core| core.lacks_history(now, scopes))
    }

    pub fn tell_history(&self, kind: ScopeKind, id: &str, window: PeriodWindow, spent: Spend) {
        self.shared.core.with(|core| core.tell_history(kind, id, window, spent));
    }

    /// Forgets what a scope spent in its window, as an operator asked.
    pub fn forgive(&self, kind: ScopeKind, id: &str) {
        self.shared.core.with(|core| core.forgive(kind, id));
    }

    /// (spent, reserved, window) of a scope that has a budget and was seen.
    pub fn budget(&self, kind: ScopeKind, id: &str) -> Option<(Spend, Spend, PeriodWindow)> {
        self.shared.core.with(|core| core.budget(kind, id))
    }

    /// (running, waiting) requests of a scope.
    pub fn in_use(&self, kind: ScopeKind, id: &str) -> (u32, u32) {
        self.shared.core.with(|core| core.in_use(kind, id))
    }

    fn now(&self) -> Now {
        self.shared.clock.now()
    }
}

/// A scope that has spent more than its soft limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub kind: ScopeKind,
    pub id: Box<str>,
}

/// What one request holds. Dropping it, as a refusal does, gives back everything.
#[must_use]
pub struct Permit<L: Lock = Mutex<Core>> {
    /// `None`: nothing limits this request, or it has ended.
    ticket: Option<Ticket>,
    limiter: Limiter<L>,
}

impl<L: Lock> Permit<L> {
    /// Whether anything limits this request.
    pub fn is_limited(&self) -> bool {
        self.ticket.is_some()
    }

    /// Takes what the request may cost at most; to be called at most once. After an error the permit is to be dropped.
    pub fn reserve(&mut self, estimate: Spend) -> Result<(), LimitRefusal> {
        let now = self.limiter.now();
        let Some(ticket) = &mut self.ticket else { return Ok(()) };
        self.limiter.shared.core.with(|core| core.reserve(now, ticket, estimate))
    }

    /// The most tokens that a reservation may have; `None`: no end.
    pub fn tokens_left(&self) -> Option<u64> {
        let now = self.limiter.now();
        let ticket = self.ticket.as_ref()?;
        self.limiter.shared.core.with(|core| core.tokens_left(now, ticket))
    }

    /// It has a slot: it no longer counts as waiting.
    pub fn start(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            self.limiter.shared.core.with(|core| core.start(ticket));
        }
    }

    /// The request has ended and this is what it was; it counts as a request.
    pub fn settle(mut self, actual: Spend) {
        let Some(mut ticket) = self.ticket.take() else { return };
        let warnings = self.limiter.shared.core.with(|core| {
            core.settle(&mut ticket, actual);
            core.release(ticket);
            core.take_warnings()
        });
        for Warning { kind, id } in warnings {
            tracing::warn!(scope = kind.name(), id = &*id, "the soft limit of a budget is passed");
        }
    }
}

impl<L: Lock> Drop for Permit<L> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.limiter.shared.core.with(|core| core.release(ticket));
        }
    }
}
