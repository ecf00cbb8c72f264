//! The core behind its lock, and what a request holds of it.

use super::budget::Spend;
use super::core::{Core, Held, Standing, Ticket};
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
        Ok(Permit { place: Arc::new(Place { ticket: Mutex::new(ticket), limiter: self.clone() }) })
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

/// What one request holds of its scopes, shared by all its tries. When the last part of it is dropped, the place goes back,
/// and the request itself unless it was kept or settled: a refusal costs nothing.
#[must_use]
pub struct Permit<L: Lock = Mutex<Core>> {
    place: Arc<Place<L>>,
}

struct Place<L: Lock> {
    /// `None`: nothing limits this request. Its lock is only ever held while the core's is taken.
    ticket: Mutex<Option<Ticket>>,
    limiter: Limiter<L>,
}

/// What one try of a request may cost. Dropping it gives that back.
#[must_use]
pub struct Reservation<L: Lock = Mutex<Core>> {
    /// `None`: nothing counts it, or it has ended.
    held: Option<Held>,
    /// Behind `held`, which goes back first.
    place: Arc<Place<L>>,
}

impl<L: Lock> Place<L> {
    fn with<R>(&self, work: impl FnOnce(&mut Core, &mut Ticket) -> R) -> Option<R> {
        let mut ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = ticket.as_mut()?;
        Some(self.limiter.shared.core.with(|core| work(core, ticket)))
    }
}

impl<L: Lock> Permit<L> {
    /// Whether anything counts what the request spends.
    pub fn counts(&self) -> bool {
        self.place.with(|core, ticket| core.counts(ticket)).unwrap_or(false)
    }

    /// The most tokens of an answer that all of the request's scopes allow; `None`: no cap.
    pub fn output_cap(&self) -> Option<u32> {
        self.place.with(|core, ticket| core.output_cap(ticket)).flatten()
    }

    /// Takes what a try may cost at most.
    pub fn reserve(&self, most: Spend) -> Result<Reservation<L>, LimitRefusal> {
        let now = self.place.limiter.now();
        let held = self.place.with(|core, ticket| core.reserve(now, ticket, most)).transpose()?;
        Ok(Reservation { held, place: Arc::clone(&self.place) })
    }

    /// The most tokens that a reservation may have; `None`: no end.
    pub fn tokens_left(&self) -> Option<u64> {
        let now = self.place.limiter.now();
        self.place.with(|core, ticket| core.tokens_left(now, ticket)).flatten()
    }

    /// It counts as a request though nothing is spent.
    pub fn keep(&self) {
        self.place.with(|_, ticket| ticket.keep());
    }

    /// It does not wait for a slot.
    pub fn start(&self) {
        self.place.with(|core, ticket| core.start(ticket));
    }
}

impl<L: Lock> Reservation<L> {
    /// It has a slot: its request no longer counts as waiting.
    pub fn start(&self) {
        self.place.with(|core, ticket| core.start(ticket));
    }

    /// The try has ended and this is what it was; its request counts as one.
    pub fn settle(mut self, actual: Spend) {
        let Some(held) = self.held.take() else { return };
        let warnings = self.place.with(|core, ticket| {
            core.settle(held, actual);
            ticket.keep();
            core.take_warnings()
        });
        for Warning { kind, id } in warnings.into_iter().flatten() {
            tracing::warn!(scope = kind.name(), id = &*id, "the soft limit of a budget is passed");
        }
    }
}

impl<L: Lock> Drop for Reservation<L> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.place.limiter.shared.core.with(|core| core.settle(held, Spend::default()));
        }
    }
}

impl<L: Lock> Drop for Place<L> {
    fn drop(&mut self) {
        let ticket = self.ticket.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ticket) = ticket {
            self.limiter.shared.core.with(|core| core.release(ticket));
        }
    }
}
