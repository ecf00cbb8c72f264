//! Which tokens are computed already, and where they lie.
//!
//! **Invariant:** nothing is found across partitions. What is in use is never let go.
//!
//! # Design
//! One radix tree (`tree`) names, for each prefix of tokens, the sequences of the context that hold it and the states of
//! it that are saved in the host's memory (`store`). A request takes the longest prefix that it can go on from: cells of
//! another sequence, shared in place where all draw from one pool and copied where each has its own; or a saved state.
//! While a prefix is being computed by one request, others wait for it instead of computing it too: see `worker::shared`.
//!
//! A state is saved when a sequence gives up what only it has (its slot or its cells are needed), which costs a
//! five-hundredth of computing it, and, in memories that know their present only (recurrent, hybrid, sliding windows), at
//! the points where known prompts part and near each prompt's end: those are their checkpoints.
//!
//! Idle prefixes don't stay in the pool in sequences of their own: attention looks at every cell in use, so on CPU 1,500
//! idle cells cost each token of each stream a twentieth, and come back from the store in a few milliseconds.

mod disk;
mod named;
mod store;
mod tree;

pub use disk::Folder;
pub use named::{Named, SHARED, n_bytes, warm};
pub use store::Saved;
pub use tree::{Holder, Match};

use super::backend::Token;
use store::Store;
use tree::Tree;

/// Tokens that a saved state must have beyond what can be shared, for loading it to be worth more than computing them. It
/// comes in cells of its own.
pub const LOAD_MIN: usize = 64;

/// What keeping something is worth: rows that would be computed again, by its size and by how long nobody asked for it.
pub fn worth(n_rows: usize, size: usize, age: u64) -> f64 {
    (n_rows as f64 + 1.0) / (size.max(1) as f64 * age.max(1) as f64)
}

/// What one worker's context and its store hold.
#[derive(Debug)]
pub struct Prefixes {
    tree: Tree,
    store: Store,
}

impl Prefixes {
    /// `n_bytes_max`: of the store; 0 keeps nothing there.
    pub fn new(n_bytes_max: usize) -> Self {
        Self { tree: Tree::default(), store: Store::new(n_bytes_max) }
    }

    /// With states that are there from the start.
    pub fn with(n_bytes_max: usize, states: Vec<Saved>) -> Self {
        let mut prefixes = Self::new(n_bytes_max);
        for saved in states {
            prefixes.save(saved, false);
        }
        prefixes
    }

    /// A sequence holds `kept` now: as before, and perhaps more.
    pub fn follow(&mut self, seq: usize, partition: u64, kept: &[Token]) {
        let holder = Holder::Seq(seq as u32);
        let n = self.tree.len(holder);
        if kept.len() > n {
            self.tree.extend(holder, partition, &kept[n..]);
        }
    }

    /// A sequence holds its first `n` tokens only.
    pub fn cut(&mut self, seq: usize, n: usize) {
        self.tree.truncate(Holder::Seq(seq as u32), n);
    }

    /// Who has leading tokens in common with `tokens`, the most first.
    pub fn matches(&self, partition: u64, tokens: &[Token]) -> Vec<Match> {
        self.tree.matches(partition, tokens)
    }

    /// Last tokens of a sequence that no other sequence and no saved state has.
    pub fn n_unique(&self, seq: usize) -> usize {
        self.tree.n_unique(Holder::Seq(seq as u32))
    }

    pub fn saved(&self, id: u32) -> Option<&Saved> {
        self.store.get(id)
    }

    pub fn touch(&mut self, id: u32) {
        self.store.touch(id);
    }

    /// This state is being loaded from now on, or none: it stays, whatever is saved meanwhile.
    pub fn set_loading(&mut self, id: Option<u32>) {
        self.store.set_loading(id);
    }

    /// Largest state that can be saved.
    pub fn n_bytes_max(&self) -> usize {
        self.store.n_bytes_max()
    }

    /// Bytes of saved states, without the pinned ones.
    pub fn n_bytes(&self) -> usize {
        self.store.n_bytes()
    }

    /// Keeps a state; false where there is no room for it. `supersedes`: what goes on from here can begin earlier too, so
    /// states of its own prefixes are of no more use.
    pub fn save(&mut self, saved: Saved, supersedes: bool) -> bool {
        if saved.state.len() > self.store.n_bytes_max() && !saved.is_pinned {
            return false;
        }
        let (partition, tokens, family) = (saved.partition, saved.tokens.clone(), saved.family);
        if supersedes {
            for found in self.tree.matches(partition, &tokens) {
                let Holder::Saved(id) = found.holder else { continue };
                let is_prefix = self
                    .store
                    .get(id)
                    .is_some_and(|other| other.tokens.len() == found.n && other.family == family && !other.is_pinned);
                if is_prefix && !self.store.is_loading(id) {
                    self.forget(id);
                }
            }
        }
        let (id, evicted) = self.store.put(saved);
        for id in evicted {
            self.tree.remove(Holder::Saved(id));
        }
        if let Some(id) = id {
            self.tree.extend(Holder::Saved(id), partition, &tokens);
        }
        id.is_some()
    }

    /// Memory is short: nothing stays saved but what is pinned.
    pub fn drop_saved(&mut self) {
        if self.store.n_bytes() == 0 {
            return;
        }
        for id in self.store.movable() {
            self.forget(id);
        }
    }

    /// Families that have ended leave nothing: nobody else may go on from what was saved for them.
    pub fn drop_families(&mut self, is_there: impl Fn(u64) -> bool) {
        for (id, family) in self.store.of_families() {
            if !is_there(family) {
                self.forget(id);
            }
        }
    }

    /// A saved state turned out to be of no use.
    pub fn forget(&mut self, id: u32) {
        self.store.remove(id);
        self.tree.remove(Holder::Saved(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn saved(partition: u64, tokens: &[Token]) -> Saved {
        let state = Arc::new(vec![0; tokens.len()]);
        Saved { partition, tokens: tokens.to_vec(), media: Arc::new([]), state, family: 0, is_pinned: false }
    }

    #[test]
    fn a_sequence_is_followed_and_what_it_loses_is_gone() {
        let mut prefixes = Prefixes::new(0);
        prefixes.follow(0, 1, &[1, 2]);
        prefixes.follow(0, 1, &[1, 2, 3]);
        assert_eq!(prefixes.matches(1, &[1, 2, 3, 4])[0].n, 3);
        prefixes.cut(0, 1);
        prefixes.follow(0, 1, &[1, 5]);
        assert_eq!(prefixes.matches(1, &[1, 2, 3])[0].n, 1);
        assert_eq!(prefixes.matches(2, &[1]), []);
    }

    #[test]
    fn a_longer_state_supersedes_its_prefixes_of_the_same_partition() {
        let mut prefixes = Prefixes::new(100);
        for (partition, tokens) in [(0, &[1, 2][..]), (9, &[1, 2]), (0, &[1, 7]), (0, &[1, 2, 3])] {
            assert!(prefixes.save(saved(partition, tokens), true));
        }
        assert_eq!(prefixes.n_bytes(), 2 + 2 + 3);
        assert_eq!(prefixes.matches(0, &[1, 2, 3]).len(), 2);
        assert!(prefixes.save(saved(0, &[1, 2]), false), "a checkpoint before it");
        assert_eq!(prefixes.matches(0, &[1, 2, 3]).len(), 3);
    }

    #[test]
    fn what_is_being_loaded_stays_though_a_longer_one_is_saved() {
        let mut prefixes = Prefixes::new(6);
        assert!(prefixes.save(saved(0, &[1, 2]), true));
        let Holder::Saved(id) = prefixes.matches(0, &[1, 2])[0].holder else { panic!("it is saved") };
        prefixes.set_loading(Some(id));
        assert!(prefixes.save(saved(0, &[1, 2, 3, 4]), true), "it goes on from the same tokens");
        assert!(prefixes.save(saved(0, &[5, 6, 7]), true), "the other one made room");
        assert_eq!(prefixes.saved(id).map(|saved| saved.tokens.len()), Some(2));
        prefixes.set_loading(None);
        assert!(prefixes.save(saved(0, &[1, 2, 8]), true));
        assert!(prefixes.saved(id).is_none());
    }

    #[test]
    fn what_was_saved_for_a_family_goes_with_it() {
        let mut prefixes = Prefixes::new(100);
        for family in [0, 7, 8] {
            assert!(prefixes.save(Saved { family, ..saved(0, &[1, 2, 3]) }, false));
        }
        let n_left = |prefixes: &Prefixes| (prefixes.n_bytes(), prefixes.matches(0, &[1, 2, 3]).len());
        prefixes.drop_families(|_| true);
        assert_eq!(n_left(&prefixes), (9, 3));
        prefixes.drop_families(|family| family == 8);
        assert_eq!(n_left(&prefixes), (6, 2));
        prefixes.drop_families(|_| false);
        assert_eq!(n_left(&prefixes), (3, 1), "what is everybody's stays");
    }

    #[test]
    fn what_makes_room_is_found_no_more() {
        let mut prefixes = Prefixes::new(4);
        assert!(prefixes.save(saved(0, &[1, 2, 3]), true) && prefixes.save(saved(0, &[5, 6]), true));
        assert_eq!(prefixes.matches(0, &[1, 2, 3]), []);
        assert!(!prefixes.save(saved(0, &[1, 2, 3, 4, 5]), true), "more than the store");
    }
}
