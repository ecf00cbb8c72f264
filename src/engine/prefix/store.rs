//! States that left the context, or that it could not go back to, in the host's memory.

use super::super::backend::Token;
use super::super::media::Span;
use super::worth;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// What a sequence held when it was saved.
#[derive(Debug, Clone)]
pub struct Saved {
    pub partition: u64,
    pub tokens: Vec<Token>,
    /// Chunks of media among the tokens.
    pub media: Arc<[Span]>,
    /// As `Context::save` made it; all workers have the same of what is pinned.
    pub state: Arc<Vec<u8>>,
    /// Not 0: only for choices of this family, whose requests said that nothing is to be kept.
    pub family: u64,
    /// Stays whatever else is to be kept.
    pub is_pinned: bool,
}

#[derive(Debug)]
struct Kept {
    saved: Saved,
    used_at: u64,
}

/// Most states, however small they are: each request looks at all that begin like it.
const STATES_MAX: usize = 512;

/// **Bound:** `n_bytes_max` of states, and `STATES_MAX` of them, besides the pinned ones, of which there are as many as the operator named. One more
/// makes room by what is worth least: the time that it would take to compute it again, by size and by how long nobody asked.
#[derive(Debug)]
pub struct Store {
    kept: FxHashMap<u32, Kept>,
    /// What isn't pinned.
    n_bytes: usize,
    n_movable: usize,
    /// What only a family's choices may go on from.
    n_of_families: usize,
    n_bytes_max: usize,
    next: u32,
    clock: u64,
    /// What is being loaded, and stays as what is pinned does.
    loading: Option<u32>,
}

impl Store {
    pub fn new(n_bytes_max: usize) -> Self {
        Self {
            kept: FxHashMap::default(),
            n_bytes: 0,
            n_movable: 0,
            n_of_families: 0,
            n_bytes_max,
            next: 0,
            clock: 0,
            loading: None,
        }
    }

    /// Bytes of what isn't pinned.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Largest state that can be kept.
    pub fn n_bytes_max(&self) -> usize {
        self.n_bytes_max
    }

    /// Keeps a state; `None` when it is larger than what may make room for it. Also returns which ones did.
    pub fn put(&mut self, saved: Saved) -> (Option<u32>, Vec<u32>) {
        let mut evicted = Vec::new();
        if !saved.is_pinned {
            // Looked at first: nothing goes for what then has no room.
            let stays = self.loading.and_then(|id| self.get(id)).filter(|saved| !saved.is_pinned);
            let n_bytes_stay = stays.map_or(0, |saved| saved.state.len());
            if saved.state.len() > self.n_bytes_max - n_bytes_stay {
                return (None, evicted);
            }
            while self.n_bytes + saved.state.len() > self.n_bytes_max || self.n_movable >= STATES_MAX {
                let Some(id) = self.least_worth() else { return (None, evicted) };
                self.remove(id);
                evicted.push(id);
            }
            self.n_bytes += saved.state.len();
            self.n_movable += 1;
        }
        self.clock += 1;
        self.n_of_families += usize::from(saved.family != 0);
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.kept.insert(id, Kept { saved, used_at: self.clock });
        (Some(id), evicted)
    }

    pub fn get(&self, id: u32) -> Option<&Saved> {
        self.kept.get(&id).map(|kept| &kept.saved)
    }

    /// This one is being loaded from now on, or none: what is saved meanwhile does not take its place.
    pub fn set_loading(&mut self, id: Option<u32>) {
        self.loading = id;
    }

    pub fn is_loading(&self, id: u32) -> bool {
        self.loading == Some(id)
    }

    /// Somebody asked for it.
    pub fn touch(&mut self, id: u32) {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.used_at = self.clock;
        }
    }

    pub fn remove(&mut self, id: u32) -> Option<Saved> {
        let Kept { saved, .. } = self.kept.remove(&id)?;
        self.n_of_families -= usize::from(saved.family != 0);
        if !saved.is_pinned {
            self.n_bytes -= saved.state.len();
            self.n_movable -= 1;
        }
        Some(saved)
    }

    /// What isn't pinned.
    pub fn movable(&self) -> Vec<u32> {
        self.kept.iter().filter(|(_, kept)| !kept.saved.is_pinned).map(|(id, _)| *id).collect()
    }

    /// What only a family's choices may go on from, and the family.
    pub fn of_families(&self) -> Vec<(u32, u64)> {
        // Asked at each step, and seldom of use.
        if self.n_of_families == 0 {
            return Vec::new();
        }
        let of_families = self.kept.iter().filter(|(_, kept)| kept.saved.family != 0);
        of_families.map(|(id, kept)| (*id, kept.saved.family)).collect()
    }

    fn least_worth(&self) -> Option<u32> {
        let movable = self.kept.iter().filter(|(id, kept)| !kept.saved.is_pinned && !self.is_loading(**id));
        let ranked = movable.map(|(id, kept)| {
            let worth = worth(kept.saved.tokens.len(), kept.saved.state.len(), self.clock - kept.used_at + 1);
            (worth, kept.used_at, *id)
        });
        ranked.min_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))).map(|(_, _, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn saved(n_tokens: usize, n_bytes: usize, is_pinned: bool) -> Saved {
        Saved {
            partition: 0,
            tokens: vec![1; n_tokens],
            media: Arc::new([]),
            state: Arc::new(vec![0; n_bytes]),
            family: 0,
            is_pinned,
        }
    }

    #[test]
    fn of_equal_states_the_one_asked_for_longest_ago_goes() {
        let mut store = Store::new(30);
        let ids: Vec<_> = (0..3).map(|_| store.put(saved(10, 10, false)).0.expect("room")).collect();
        store.touch(ids[0]);
        assert_eq!(store.put(saved(10, 10, false)).1, [ids[1]]);
        assert_eq!(store.put(saved(10, 31, false)), (None, vec![]), "more than the store holds");
    }

    #[test]
    fn what_is_being_loaded_makes_no_room() {
        let mut store = Store::new(30);
        let ids: Vec<_> = (0..3).map(|_| store.put(saved(10, 10, false)).0.expect("room")).collect();
        store.set_loading(Some(ids[0]));
        assert_eq!(store.put(saved(10, 21, false)), (None, vec![]), "nothing goes for what has no room beside it");
        assert_eq!(store.put(saved(1000, 20, false)).1, [ids[1], ids[2]]);
        store.set_loading(None);
        assert_eq!(store.put(saved(10, 10, false)).1, [ids[0]]);
    }

    #[test]
    fn there_are_never_more_than_can_be_looked_at() {
        let mut store = Store::new(usize::MAX);
        (0..STATES_MAX).for_each(|_| assert!(store.put(saved(1, 1, false)).1.is_empty()));
        assert_eq!(store.put(saved(1, 1, false)).1, [0]);
        assert!(store.put(saved(1, 1, true)).1.is_empty());
    }

    #[test]
    fn what_is_costlier_to_compute_for_its_size_stays() {
        let mut store = Store::new(20);
        let dear = store.put(saved(1000, 10, false)).0;
        let cheap = store.put(saved(10, 10, false)).0.expect("room");
        assert_eq!(store.put(saved(10, 10, false)).1, [cheap]);
        assert!(store.get(dear.expect("room")).is_some());
    }

    #[test]
    fn nothing_is_kept_where_there_is_no_room_but_for_what_is_pinned() {
        let mut store = Store::new(0);
        assert_eq!(store.put(saved(10, 1, false)).0, None);
        let pinned = store.put(saved(10, 10, true)).0.expect("it stays");
        assert_eq!((store.n_bytes(), store.get(pinned).is_some()), (0, true));
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bound_and_lets_go_what_a_list_would(
            ops in prop::collection::vec((0usize..3, 1usize..50, 0usize..40, any::<bool>()), 0..60),
        ) {
            let mut store = Store::new(100);
            // (id, tokens, bytes, used, pinned), and the clock beside the store's.
            let mut list: Vec<(u32, usize, usize, u64, bool)> = Vec::new();
            let mut clock = 0u64;
            for (op, n_tokens, n_bytes, pinned) in ops {
                match op {
                    0 if !list.is_empty() => {
                        let at = n_tokens % list.len();
                        clock += 1;
                        list[at].3 = clock;
                        store.touch(list[at].0);
                    }
                    1 if !list.is_empty() => {
                        let (id, ..) = list.remove(n_tokens % list.len());
                        prop_assert!(store.remove(id).is_some());
                    }
                    _ => {
                        let (id, evicted) = store.put(saved(n_tokens, n_bytes, pinned));
                        let mut expected = Vec::new();
                        let used = |list: &[(u32, usize, usize, u64, bool)]| -> usize {
                            list.iter().filter(|one| !one.4).map(|one| one.2).sum()
                        };
                        while !pinned && used(&list) + n_bytes > 100 {
                            let worth = |one: &(u32, usize, usize, u64, bool)| worth(one.1, one.2, clock - one.3 + 1);
                            let movable = list.iter().enumerate().filter(|(_, one)| !one.4);
                            let least = movable.min_by(|(_, a), (_, b)| worth(a).total_cmp(&worth(b)).then((a.3, a.0).cmp(&(b.3, b.0))));
                            let at = least.expect("something to let go").0;
                            expected.push(list.remove(at).0);
                        }
                        prop_assert_eq!(evicted, expected);
                        clock += 1;
                        list.push((id.expect("40 bytes always fit"), n_tokens, n_bytes, clock, pinned));
                    }
                }
                prop_assert!(store.n_bytes() <= 100);
                prop_assert!(list.iter().all(|one| store.get(one.0).is_some()));
                prop_assert_eq!(store.kept.len(), list.len());
            }
        }
    }
}
