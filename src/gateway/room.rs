//! Whether a model may be loaded beside the others: the arithmetic only.

use std::time::Instant;

/// Bytes that a model takes once it is loaded; zeros: unknown, and never in the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Of the machine's memory.
    pub machine: u64,
    /// Of the GPUs' own.
    pub gpu: u64,
}

impl Size {
    pub fn total(self) -> u64 {
        self.machine.saturating_add(self.gpu)
    }

    pub fn plus(self, other: Self) -> Self {
        Self { machine: self.machine.saturating_add(other.machine), gpu: self.gpu.saturating_add(other.gpu) }
    }
}

/// What there is for models; `None`: not looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// For all that are loaded together, wherever they lie.
    pub all: Option<u64>,
    /// What the machine has free now.
    pub machine_free: Option<u64>,
    /// What the GPUs have for all models together. Not what is free now: a driver gives memory back some time after its
    /// process, so that what closed models held would be missed.
    pub gpu: Option<u64>,
}

/// A model that takes memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub idx: usize,
    pub size: Size,
    /// It is being unloaded; its memory is as good as free.
    pub is_closing: bool,
    /// It is loaded, nobody needs it now, and it can be loaded again.
    pub is_idle: bool,
    pub last_used: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    There,
    /// Once those that are leaving have left.
    Wait,
    /// Once these have left too.
    Evict(Vec<usize>),
    /// Not even then.
    None,
}

/// Room for a model of `wanted` beside those that are `held`.
/// Of idle models those that were used longest ago go first, and none goes where it would not help.
pub(super) fn room(wanted: Size, limits: Limits, mut held: Vec<Held>) -> Room {
    let used = held.iter().map(|held| held.size).fold(Size::default(), Size::plus);
    let within = |used: u64, given_back: u64, wanted: u64, most: Option<u64>| {
        wanted == 0 || most.is_none_or(|most| used.saturating_sub(given_back).saturating_add(wanted) <= most)
    };
    let fits = |back: Size| {
        within(used.total(), back.total(), wanted.total(), limits.all)
            && within(used.gpu, back.gpu, wanted.gpu, limits.gpu)
            && limits.machine_free.is_none_or(|free| wanted.machine <= free.saturating_add(back.machine))
    };
    if fits(Size::default()) {
        return Room::There;
    }
    let mut given_back =
        held.iter().filter(|held| held.is_closing).map(|held| held.size).fold(Size::default(), Size::plus);
    if fits(given_back) {
        return Room::Wait;
    }
    held.retain(|held| held.is_idle && held.size.total() > 0);
    held.sort_by_key(|held| held.last_used);
    let mut evicted = Vec::new();
    for idle in held {
        given_back = given_back.plus(idle.size);
        evicted.push(idle);
        if fits(given_back) {
            return Room::Evict(spare(evicted, given_back, fits));
        }
    }
    Room::None
}

/// Of models that make room together, those that it takes: one that only gives back what is not short stays.
fn spare(evicted: Vec<Held>, mut given_back: Size, fits: impl Fn(Size) -> bool) -> Vec<usize> {
    let mut needed = Vec::new();
    for held in evicted {
        let others = Size {
            machine: given_back.machine.saturating_sub(held.size.machine),
            gpu: given_back.gpu.saturating_sub(held.size.gpu),
        };
        if fits(others) {
            given_back = others;
        } else {
            needed.push(held.idx);
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// In each: bytes of the machine and of the GPU, whether it is closing, whether it is idle, when it was used.
    fn held(models: &[(u64, u64, bool, bool, u64)]) -> Vec<Held> {
        let start = Instant::now();
        let one = |(idx, &(machine, gpu, is_closing, is_idle, used))| Held {
            idx,
            size: Size { machine, gpu },
            is_closing,
            is_idle,
            last_used: start + Duration::from_secs(used),
        };
        models.iter().enumerate().map(one).collect()
    }

    fn of(machine: u64) -> Size {
        Size { machine, gpu: 0 }
    }

    fn cap(all: u64) -> Limits {
        Limits { all: Some(all), ..Limits::default() }
    }

    #[test]
    fn without_a_cap_there_is_room() {
        assert_eq!(room(of(1 << 60), Limits::default(), held(&[(1 << 60, 0, false, false, 0)])), Room::There);
        let none = Limits { all: Some(1), machine_free: Some(0), gpu: Some(0) };
        assert_eq!(room(of(0), none, held(&[(5, 5, false, false, 0)])), Room::There);
    }

    #[test]
    fn the_longest_unused_idle_models_leave_and_no_more_than_needed() {
        let models = [(4, 0, false, true, 3), (4, 0, false, true, 1), (4, 0, false, true, 2)];
        assert_eq!(room(of(4), cap(12), held(&models)), Room::Evict(vec![1]));
        assert_eq!(room(of(8), cap(12), held(&models)), Room::Evict(vec![1, 2]));
        assert_eq!(room(of(12), cap(12), held(&models)), Room::Evict(vec![1, 2, 0]));
        assert_eq!(room(of(13), cap(12), held(&models)), Room::None);
        assert_eq!(room(of(4), cap(16), held(&models)), Room::There);
        // A small one that was used longest ago is left where a large one has to go anyway.
        let models = [(1, 0, false, true, 1), (8, 0, false, true, 2)];
        assert_eq!(room(of(8), cap(9), held(&models)), Room::Evict(vec![1]));
    }

    #[test]
    fn models_at_work_stay_and_leaving_ones_are_waited_for() {
        assert_eq!(room(of(4), cap(8), held(&[(4, 0, false, false, 0), (4, 0, true, false, 0)])), Room::Wait);
        assert_eq!(room(of(4), cap(8), held(&[(4, 0, false, false, 0), (4, 0, false, false, 1)])), Room::None);
        // The idle one alone would not be enough, so it is left in peace.
        assert_eq!(room(of(8), cap(8), held(&[(4, 0, false, false, 0), (4, 0, false, true, 1)])), Room::None);
    }

    #[test]
    fn the_machine_counts_too() {
        let free = |free| Limits { machine_free: Some(free), ..Limits::default() };
        assert_eq!(room(of(4), free(3), held(&[(4, 0, false, true, 0)])), Room::Evict(vec![0]));
        let both = Limits { all: Some(100), ..free(3) };
        assert_eq!(room(of(4), both, held(&[(4, 0, false, false, 0)])), Room::None);
        // What it takes of a GPU is not the machine's.
        assert_eq!(room(Size { machine: 3, gpu: 90 }, free(3), Vec::new()), Room::There);
    }

    #[test]
    fn a_gpu_is_shared_by_what_lies_on_it() {
        let gpu = Limits { gpu: Some(10), ..Limits::default() };
        let wanted = Size { machine: 1, gpu: 6 };
        let models = [(9, 0, false, true, 1), (1, 6, false, true, 2)];
        assert_eq!(room(wanted, gpu, held(&models)), Room::Evict(vec![1]), "the one on the CPU gives the GPU nothing");
        assert_eq!(room(wanted, gpu, held(&[(1, 6, false, false, 1)])), Room::None);
        assert_eq!(room(wanted, gpu, held(&[(1, 4, false, false, 1)])), Room::There);
        assert_eq!(room(wanted, gpu, held(&[(1, 6, true, false, 1)])), Room::Wait);
        // What goes to the CPU alone does not ask the GPU, even where more lies there than was planned.
        assert_eq!(room(of(6), gpu, held(&[(1, 16, false, false, 1)])), Room::There);
    }
}
