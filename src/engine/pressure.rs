//! Memory is short: what an engine gives up, step by step, until it is not. Running streams are never touched.

use super::error::Failure;
use super::handle::Engine;
use super::request::{Command, RequestId};
use crate::chat::Class;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How short it is. Each step is taken beside the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pressure {
    #[default]
    None,
    /// What can be computed again is dropped, and not kept.
    Caches,
    /// Requests of the batch class are refused, and those that wait are sent away.
    Batch,
    /// All that would begin something new are refused.
    New,
    /// Those that wait are sent away, the oldest first.
    Queue,
}

impl Pressure {
    const ALL: [Self; 5] = [Self::None, Self::Caches, Self::Batch, Self::New, Self::Queue];

    pub fn more(self) -> Self {
        Self::ALL[(self as usize + 1).min(Self::ALL.len() - 1)]
    }

    pub fn less(self) -> Self {
        Self::ALL[(self as usize).saturating_sub(1)]
    }

    /// Whether a request of this class is refused.
    pub fn refuses(self, class: Class) -> bool {
        self >= Self::New || self == Self::Batch && class == Class::Batch
    }
}

/// The same, for many threads to look at.
#[derive(Debug, Default)]
pub struct PressureNow(AtomicU8);

impl PressureNow {
    pub fn get(&self) -> Pressure {
        Pressure::ALL[usize::from(self.0.load(Ordering::Relaxed)) % Pressure::ALL.len()]
    }

    pub fn set(&self, pressure: Pressure) {
        self.0.store(pressure as u8, Ordering::Relaxed);
    }
}

/// The part of those that wait who are sent away with one look, at the last step.
const PART: usize = 4;

impl Engine {
    /// Says how short memory is. To be said again while it lasts: an engine that was started anew knows nothing of it. Returns
    /// how many requests that waited were told to go; one that gets its slot meanwhile stays.
    pub fn set_pressure(&self, pressure: Pressure) -> usize {
        let (router, transport) = self.parts();
        let before = router.pressure.get();
        router.pressure.set(pressure);
        let is_tight = pressure >= Pressure::Caches;
        if is_tight || before >= Pressure::Caches {
            // An error means that the engine is gone, and what it kept with it.
            let _ = transport.send(RequestId(0), Command::Spare(is_tight));
        }
        let mut waiting = match pressure {
            Pressure::None | Pressure::Caches => Vec::new(),
            Pressure::Batch | Pressure::New => router.waiting(Some(Class::Batch)),
            Pressure::Queue => router.waiting(None),
        };
        if pressure == Pressure::Queue {
            waiting.truncate(waiting.len().div_ceil(PART));
        }
        for id in &waiting {
            let _ = transport.send(*id, Command::Shed); // as above
        }
        waiting.len()
    }

    /// Errors: `Shed`, where requests of this class are refused now.
    pub(super) fn refuse_under_pressure(&self, class: Class) -> Result<(), Failure> {
        if self.parts().0.pressure.get().refuses(class) { Err(Failure::shed()) } else { Ok(()) }
    }
}

/// Whether a worker is to keep nothing that it can compute again; it is woken to hear of it.
#[derive(Debug)]
pub(super) struct Spare {
    is_on: AtomicBool,
    wake: Sender<()>,
    /// **Bound:** one; who is called twice wakes once.
    pub woken: Receiver<()>,
}

impl Default for Spare {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self { is_on: AtomicBool::new(false), wake, woken }
    }
}

impl Spare {
    pub fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
        // Full: it will wake anyway.
        let _ = self.wake.try_send(());
    }

    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_up_and_down_and_no_further() {
        let up: Vec<Pressure> = std::iter::successors(Some(Pressure::None), |it| Some(it.more())).take(6).collect();
        assert_eq!(up[..5], Pressure::ALL);
        assert_eq!((up[5], Pressure::None.less(), Pressure::Queue.less()), (up[4], up[0], Pressure::New));
        let now = PressureNow::default();
        for pressure in up {
            now.set(pressure);
            assert_eq!(now.get(), pressure);
        }
        let refused = |pressure: Pressure| [Class::Interactive, Class::Batch].map(|class| pressure.refuses(class));
        assert_eq!(Pressure::ALL.map(refused), [[false; 2], [false; 2], [false, true], [true; 2], [true; 2]]);
    }
}
