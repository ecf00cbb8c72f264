//! Which request an event belongs to, how many are in flight, and which ones to blame for a crash.

use super::error::Failure;
use super::event::Event;
use super::mailbox::Mailbox;
use super::pressure::PressureNow;
use super::request::RequestId;
use super::wait::{self, Line};
use crate::chat::Class;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    /// Mean time a generation held its slot; the latest count most. 0: none has ended.
    mean_slot_s: f64,
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
        let mut state = self.lock();
        match place {
            Place::Generate { fingerprint, owner, .. } => {
                state.quarantine.check(fingerprint, Instant::now())?;
                if state.n_generate >= self.n_places {
                    let wait = state.wait(self.n_slots, owner, Instant::now());
                    return Err(Failure::Overloaded { n_places: self.n_places, retry_after_s: whole_seconds(wait) });
                }
                state.n_generate += 1;
            }
            Place::Short(fingerprint) => {
                if let Some(fingerprint) = fingerprint {
                    state.quarantine.check(fingerprint, Instant::now())?;
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
                        entry.slot_since = Some(Instant::now());
                        state.n_running += 1;
                    }
                }
                _ => {}
            }
            if event.is_end() {
                state.end(id, event);
            } else {
                entry.mailbox.push(event);
            }
        }
    }

    /// Ends every request in flight: the engine is gone. With `blame`, those being worked on count a crash.
    pub(super) fn end_all(&self, failure: &Failure, blame: bool) {
        let mut state = self.lock();
        if blame {
            let now = Instant::now();
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
            state.end(id, Event::Failed(failure.clone()));
        }
    }

    /// (generations, short requests) in flight.
    pub(super) fn in_flight(&self) -> (u32, u32) {
        let state = self.lock();
        (state.n_generate, state.n_short)
    }

    /// How long a request of `owner` that comes now would wait for a slot.
    pub(super) fn wait(&self, owner: u64) -> Duration {
        self.lock().wait(self.n_slots, owner, Instant::now())
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

    fn wait(&self, n_slots: u32, owner: u64, now: Instant) -> Duration {
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
        let n_ahead = wait::ahead(n_own, n_others, others.len() as u32);
        wait::expected(&Line { n_slots, running, n_ahead, mean_slot_s: self.mean_slot_s })
    }

    fn end(&mut self, id: RequestId, event: Event) {
        let Some(entry) = self.entries.remove(&id) else { return };
        match entry.place {
            Place::Generate { .. } => {
                self.n_generate -= 1;
                if let Some(since) = entry.slot_since {
                    self.n_running -= 1;
                    let held = since.elapsed().as_secs_f64();
                    let weight = if self.mean_slot_s > 0.0 { 0.1 } else { 1.0 };
                    self.mean_slot_s += (held - self.mean_slot_s) * weight;
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
            .admit(Place::Generate { fingerprint: 1, owner: 0, class: Class::Interactive })
            .expect("a free place");
        assert!(matches!(
            router.admit(Place::Generate { fingerprint: 2, owner: 0, class: Class::Interactive }),
            Err(Failure::Overloaded { n_places: 1, .. })
        ));
        router.dispatch(vec![(id, Event::Failed(Failure::Cancelled))]);
        assert!(mailbox.has_ended());
        assert!(router.admit(Place::Generate { fingerprint: 2, owner: 0, class: Class::Interactive }).is_ok());
    }

    #[test]
    fn a_request_in_flight_at_two_crashes_is_refused_others_are_not() {
        let router = Router::new(8, 1);
        let crash = Failure::Crashed { reason: "signal 9".into() };
        for _ in 0..2 {
            router
                .admit(Place::Generate { fingerprint: 7, owner: 0, class: Class::Interactive })
                .expect("not yet refused");
            let (queued, _) =
                router.admit(Place::Generate { fingerprint: 8, owner: 0, class: Class::Interactive }).expect("free");
            router.dispatch(vec![(queued, Event::Accepted { n_prompt: 1 })]);
            router.end_all(&crash, true);
        }
        assert!(matches!(
            router.admit(Place::Generate { fingerprint: 7, owner: 0, class: Class::Interactive }),
            Err(Failure::Quarantined { crashes: 2, .. })
        ));
        assert!(
            router.admit(Place::Generate { fingerprint: 8, owner: 0, class: Class::Interactive }).is_ok(),
            "it was only waiting"
        );
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
