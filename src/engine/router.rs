//! Which request an event belongs to, how many are in flight, and which ones to blame for a crash.

use super::error::Failure;
use super::event::Event;
use super::mailbox::Mailbox;
use super::pressure::PressureNow;
use super::promises::Promises;
use super::request::RequestId;
use super::wait::{self, Line};
use crate::chat::Class;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Generations whose times make the mean. Fewer follow a change sooner, and err more for those who come far behind.
const MEAN_OF: u32 = 32;

/// What a request occupies while it is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A generation: takes one of the engine's places (slots and queue).
    Generate {
        /// The request's.
        fingerprint: u64,
        /// With whom it shares its turn.
        owner: u64,
        class: Class,
        /// If it is refused, as it is told.
        comes_back: bool,
    },
    /// Anything short (tokenize, render, stats), with the fingerprint of the text it works on, if any.
    Short(Option<u64>),
}

#[derive(Debug)]
struct Entry {
    mailbox: Arc<Mailbox>,
    place: Place,
    /// It is being worked on: prepared, or in a slot. Only such requests can be to blame for a crash.
    active: bool,
    /// Since when it has a slot, as far as it was heard of since its acceptance.
    slot_since: Option<Instant>,
}

/// The front's table of requests in flight.
///
/// **Invariant:** an entry goes in once, leaves at its ending event, and its place is free again from then on; a dropped
/// receiver doesn't free the place before the engine has confirmed with an ending.
#[derive(Debug)]
pub(super) struct Router {
    state: Mutex<State>,
    next_id: AtomicU64,
    n_places: u32,
    n_slots: u32,
    /// How short memory is, as it was last said.
    pub(super) pressure: PressureNow,
}

#[derive(Debug, Default)]
struct State {
    entries: FxHashMap<RequestId, Entry>,
    n_generate: u32,
    /// Of them, those that have a slot.
    n_running: u32,
    n_short: u32,
    /// Mean time a generation held its slot; the latest `MEAN_OF` count most. 0: none has ended.
    mean_slot_s: f64,
    /// How many have ended, up to `MEAN_OF`.
    n_ended: u32,
    /// Whoever was refused and told when to come again.
    promises: Promises,
    quarantine: Quarantine,
}

impl Router {
    /// Short requests in flight at once; one more is refused as overloaded.
    const SHORT_MAX: u32 = 256;

    pub(super) fn new(n_places: u32, n_slots: u32) -> Self {
        Self {
            state: Mutex::default(),
            next_id: AtomicU64::new(1),
            n_places,
            n_slots,
            pressure: PressureNow::default(),
        }
    }

    /// Gives the request an id, a mailbox and a place, or says why not.
    pub(super) fn admit(&self, place: Place) -> Result<(RequestId, Arc<Mailbox>), Failure> {
        self.admit_at(place, Instant::now())
    }

    pub(super) fn admit_at(&self, place: Place, now: Instant) -> Result<(RequestId, Arc<Mailbox>), Failure> {
        let mut state = self.lock();
        match place {
            Place::Generate { fingerprint, owner, comes_back, .. } => {
                state.quarantine.check(fingerprint, now)?;
                let is_back = state.promises.keep(owner, fingerprint, now);
                let n_theirs = if is_back { 0 } else { self.n_kept(&state, now) };
                if state.n_generate.saturating_add(n_theirs) >= self.n_places {
                    return Err(self.overloaded(&mut state, owner, comes_back.then_some(fingerprint), now));
                }
                state.promises.forget(owner, fingerprint);
                state.n_generate += 1;
            }
            Place::Short(fingerprint) => {
                if let Some(fingerprint) = fingerprint {
                    state.quarantine.check(fingerprint, now)?;
                }
                if state.n_short >= Self::SHORT_MAX {
                    return Err(Failure::Overloaded { n_places: Self::SHORT_MAX, retry_after_s: 1 });
                }
                state.n_short += 1;
            }
        }
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mailbox = Arc::new(Mailbox::default());
        let entry = Entry { mailbox: Arc::clone(&mailbox), place, active: true, slot_since: None };
        state.entries.insert(id, entry);
        Ok((id, mailbox))
    }

    /// Delivers events in order. Events of unknown requests are dropped: they ended before.
    pub(super) fn dispatch(&self, events: Vec<(RequestId, Event)>) {
        self.dispatch_at(events, Instant::now());
    }

    pub(super) fn dispatch_at(&self, events: Vec<(RequestId, Event)>, now: Instant) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for (id, event) in events {
            // With a slot free it starts at once, and may kill the engine before that is told.
            let waits = matches!(event, Event::Accepted { .. }) && state.n_active_but(id) >= self.n_slots as usize;
            let Some(entry) = state.entries.get_mut(&id) else { continue };
            match event {
                // Vectors wait for no slot.
                Event::Accepted { .. } => entry.active = !waits || matches!(entry.place, Place::Short(_)),
                Event::Progress { .. } | Event::Delta(_) => {
                    entry.active = true;
                    if entry.slot_since.is_none() {
                        entry.slot_since = Some(now);
                        state.n_running += 1;
                    }
                }
                _ => {}
            }
            if event.is_end() {
                state.end(id, event, now);
            } else {
                entry.mailbox.push(event);
            }
        }
    }

    /// Ends every request in flight: the engine is gone. With `blame`, those being worked on count a crash.
    pub(super) fn end_all(&self, failure: &Failure, blame: bool) {
        let (mut state, now) = (self.lock(), Instant::now());
        if blame {
            let suspects: Vec<u64> = state
                .entries
                .values()
                .filter(|entry| entry.active)
                .filter_map(|entry| match entry.place {
                    Place::Generate { fingerprint, .. } => Some(fingerprint),
                    Place::Short(fingerprint) => fingerprint,
                })
                .collect();
            for fingerprint in suspects {
                state.quarantine.blame(fingerprint, now);
            }
        }
        let ids: Vec<RequestId> = state.entries.keys().copied().collect();
        for id in ids {
            state.end(id, Event::Failed(failure.clone()), now);
        }
    }

    /// (generations, short requests) in flight.
    pub(super) fn in_flight(&self) -> (u32, u32) {
        let state = self.lock();
        (state.n_generate, state.n_short)
    }

    /// How long a request of `owner` that comes now would wait for a slot.
    pub(super) fn wait(&self, owner: u64) -> Duration {
        self.lock().wait(self.n_slots, owner, Instant::now(), std::iter::empty())
    }

    /// Errors: `Overloaded`, when that is longer than `most`. `which`: the number of a request that will come again if it
    /// is refused, as it is told; it is then let in before those who were not.
    pub(super) fn refuse_longer(
        &self,
        owner: u64,
        which: Option<u64>,
        most: Duration,
        now: Instant,
    ) -> Result<(), Failure> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let is_back = which.is_some_and(|which| state.promises.keep(owner, which, now));
        let before = state.promises.until(now + most).filter(|_| !is_back);
        if state.wait(self.n_slots, owner, now, before) > most {
            return Err(self.overloaded(state, owner, which, now));
        }
        if let Some(which) = which {
            state.promises.forget(owner, which);
        }
        Ok(())
    }

    /// Places kept for those who were told to come now: half of the queue at most, and none where a slot is free, since they may
    /// never come.
    fn n_kept(&self, state: &State, now: Instant) -> u32 {
        if state.n_generate < self.n_slots {
            return 0;
        }
        let most = self.n_places.saturating_sub(self.n_slots) / 2;
        u32::try_from(state.promises.until(now).count()).unwrap_or(u32::MAX).min(most)
    }

    fn overloaded(&self, state: &mut State, owner: u64, which: Option<u64>, now: Instant) -> Failure {
        let retry_after_s = state.promise(self.n_slots, owner, which, now);
        Failure::Overloaded { n_places: self.n_places, retry_after_s }
    }

    /// Generations that have had no slot yet, the oldest first; `class`: only these.
    pub(super) fn waiting(&self, class: Option<Class>) -> Vec<RequestId> {
        let state = self.lock();
        let waits = |(id, entry): (&RequestId, &Entry)| match entry.place {
            Place::Generate { class: of, .. } if entry.slot_since.is_none() => {
                class.is_none_or(|class| class == of).then_some(*id)
            }
            _ => None,
        };
        let mut ids: Vec<RequestId> = state.entries.iter().filter_map(waits).collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn n_places(&self) -> u32 {
        self.n_places
    }

    /// Slots that no generation has; whatever is on its way to one counts as having none.
    pub(super) fn n_slots_free(&self) -> u32 {
        self.n_slots.saturating_sub(self.lock().n_running)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn n_active_but(&self, id: RequestId) -> usize {
        let is_active = |(other, entry): (&RequestId, &Entry)| {
            *other != id && entry.active && matches!(entry.place, Place::Generate { .. })
        };
        self.entries.iter().filter(|pair| is_active(*pair)).count()
    }

    /// Seconds after which one that is refused now had better come again: when all who were told so before it have had
    /// their turn.
    fn promise(&mut self, n_slots: u32, owner: u64, which: Option<u64>, now: Instant) -> u32 {
        if let Some(due) = which.and_then(|which| self.promises.due(owner, which)) {
            // It comes too early, and keeps its turn unless others that did not mind waiting fill the line meanwhile.
            let wait = self.wait(n_slots, owner, now, std::iter::empty());
            if now + wait <= due {
                return whole_seconds(due.saturating_duration_since(now));
            }
        }
        if let Some(which) = which {
            self.promises.forget(owner, which);
        }
        let seconds = whole_seconds(self.wait(n_slots, owner, now, self.promises.owners()));
        if let Some(which) = which {
            self.promises.add(owner, which, now + Duration::from_secs(seconds.into()));
        }
        seconds
    }

    /// `before`: owners of those that come before it, though they are not here.
    fn wait(&self, n_slots: u32, owner: u64, now: Instant, before: impl Iterator<Item = u64>) -> Duration {
        if self.n_running < n_slots && self.n_generate == self.n_running {
            return Duration::ZERO;
        }
        let (mut n_own, mut n_others, mut others) = (0, 0, FxHashSet::default());
        let mut running = Vec::new();
        for entry in self.entries.values() {
            match (entry.place, entry.slot_since) {
                (Place::Generate { .. }, Some(since)) => {
                    running.push(now.saturating_duration_since(since).as_secs_f64());
                }
                (Place::Generate { owner: whose, .. }, None) if whose == owner => n_own += 1,
                (Place::Generate { owner: whose, .. }, None) => {
                    n_others += 1;
                    others.insert(whose);
                }
                (Place::Short(_), _) => {}
            }
        }
        for whose in before {
            if whose == owner {
                n_own += 1;
            } else {
                n_others += 1;
                others.insert(whose);
            }
        }
        let n_ahead = wait::ahead(n_own, n_others, others.len() as u32);
        wait::expected(&Line { n_slots, running, n_ahead, mean_slot_s: self.mean_slot_s })
    }

    fn end(&mut self, id: RequestId, event: Event, now: Instant) {
        let Some(entry) = self.entries.remove(&id) else { return };
        match entry.place {
            Place::Generate { .. } => {
                self.n_generate -= 1;
                if let Some(since) = entry.slot_since {
                    self.n_running -= 1;
                    let held = now.saturating_duration_since(since).as_secs_f64();
                    self.n_ended = (self.n_ended + 1).min(MEAN_OF);
                    self.mean_slot_s += (held - self.mean_slot_s) / f64::from(self.n_ended);
                }
            }
            Place::Short(_) => self.n_short -= 1,
        }
        entry.mailbox.push(event);
    }
}

/// 1..=60: zero would make clients spin, and nobody should plan further ahead than a minute.
pub(super) fn whole_seconds(wait: Duration) -> u32 {
    (1..=60).find(|whole| f64::from(*whole) >= wait.as_secs_f64()).unwrap_or(60)
}

/// Fingerprints of requests that were being worked on when the engine died.
#[derive(Debug, Default)]
struct Quarantine {
    /// Oldest first; at most `SUSPECTS_MAX`, the oldest is forgotten for a new one.
    suspects: VecDeque<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    fingerprint: u64,
    crashes: u32,
    last: Instant,
}

impl Quarantine {
    const SUSPECTS_MAX: usize = 1024;
    const CRASHES_MAX: u32 = 2;
    const TERM: Duration = Duration::from_secs(600);

    fn blame(&mut self, fingerprint: u64, now: Instant) {
        self.forget_old(now);
        let crashes = match self.suspects.iter().position(|suspect| suspect.fingerprint == fingerprint) {
            Some(place) => self.suspects.remove(place).map_or(0, |suspect| suspect.crashes),
            None => 0,
        };
        if self.suspects.len() >= Self::SUSPECTS_MAX {
            self.suspects.pop_front();
        }
        self.suspects.push_back(Suspect { fingerprint, crashes: crashes + 1, last: now });
    }

    fn check(&mut self, fingerprint: u64, now: Instant) -> Result<(), Failure> {
        self.forget_old(now);
        match self.suspects.iter().find(|suspect| suspect.fingerprint == fingerprint) {
            Some(suspect) if suspect.crashes >= Self::CRASHES_MAX => {
                let remaining = Self::TERM.saturating_sub(now.duration_since(suspect.last));
                Err(Failure::Quarantined { crashes: suspect.crashes, remaining_s: remaining.as_secs().max(1) })
            }
            _ => Ok(()),
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.suspects.front().is_some_and(|suspect| now.duration_since(suspect.last) >= Self::TERM) {
            self.suspects.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_after_the_ending() {
        let router = Router::new(1, 1);
        let (id, mailbox) = router
            .admit(Place::Generate { fingerprint: 1, owner: 0, class: Class::Interactive, comes_back: true })
            .expect("a free place");
        assert!(matches!(
            router.admit(Place::Generate { fingerprint: 2, owner: 0, class: Class::Interactive, comes_back: true }),
            Err(Failure::Overloaded { n_places: 1, .. })
        ));
        router.dispatch(vec![(id, Event::Failed(Failure::Cancelled))]);
        assert!(mailbox.has_ended());
        assert!(
            router
                .admit(Place::Generate { fingerprint: 2, owner: 0, class: Class::Interactive, comes_back: true })
                .is_ok()
        );
    }

    #[test]
    fn a_request_in_flight_at_two_crashes_is_refused_others_are_not() {
        let router = Router::new(8, 1);
        let crash = Failure::Crashed { reason: "signal 9".into() };
        for _ in 0..2 {
            router
                .admit(Place::Generate { fingerprint: 7, owner: 0, class: Class::Interactive, comes_back: true })
                .expect("not yet refused");
            let (queued, _) = router
                .admit(Place::Generate { fingerprint: 8, owner: 0, class: Class::Interactive, comes_back: true })
                .expect("free");
            router.dispatch(vec![(queued, Event::Accepted { n_prompt: 1 })]);
            router.end_all(&crash, true);
        }
        assert!(matches!(
            router.admit(Place::Generate { fingerprint: 7, owner: 0, class: Class::Interactive, comes_back: true }),
            Err(Failure::Quarantined { crashes: 2, .. })
        ));
        assert!(
            router
                .admit(Place::Generate { fingerprint: 8, owner: 0, class: Class::Interactive, comes_back: true })
                .is_ok(),
            "it was only waiting"
        );
    }

    #[test]
    fn who_comes_too_early_is_told_its_time_or_how_long_the_line_has_become() {
        let router = Router::new(100, 1);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let run = |fingerprint: u64, now: Instant| {
            let owner = fingerprint;
            let place = Place::Generate { fingerprint, owner, class: Class::Interactive, comes_back: true };
            let (id, _) = router.admit_at(place, now).expect("a place");
            router.dispatch_at(vec![(id, Event::Accepted { n_prompt: 1 })], now);
            id
        };
        let begin = |id, now| {
            let progress = Event::Progress { n_prompt: 1, n_computed: 0, n_cached: 0 };
            router.dispatch_at(vec![(id, progress)], now);
        };
        let asks = |now| match router.refuse_longer(7, Some(9), Duration::from_millis(1), now) {
            Err(Failure::Overloaded { retry_after_s, .. }) => retry_after_s,
            other => unreachable!("{other:?}"),
        };
        // An answer takes two seconds.
        let first = run(1, at(0));
        begin(first, at(0));
        router.dispatch_at(vec![(first, Event::Failed(Failure::Cancelled))], at(2000));
        begin(run(2, at(2000)), at(2000));
        assert_eq!(asks(at(2000)), 2);
        assert_eq!((asks(at(2500)), asks(at(3500))), (2, 1), "its time is told again");
        for n in 3..8 {
            run(n, at(3600));
        }
        assert_eq!(asks(at(3700)), 11, "five others have a place by now, and it has none");
    }

    #[test]
    fn suspects_are_forgotten_after_the_term() {
        let mut quarantine = Quarantine::default();
        let start = Instant::now();
        quarantine.blame(1, start);
        quarantine.blame(1, start);
        assert!(quarantine.check(1, start).is_err());
        assert!(quarantine.check(1, start + Quarantine::TERM).is_ok());
    }
}
