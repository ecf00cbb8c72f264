//! Embeddings of images and sounds that were seen before: a conversation sends them again with every turn.
//!
//! **Invariant:** nothing is found across partitions, as in the prefix tree: what another tenant sent would come sooner, and
//! whoever sends a guess could tell by it.

use super::ContentHash;
use crate::engine::backend::{ChunkShape, Token};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of embeddings that are kept for later requests: some hundred images of a large model.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Bytes of embeddings that runs may hold beside those before the encoder waits for runs to end.
const HELD_BYTES_MAX: usize = 512 << 20;

/// The rows of one chunk.
#[derive(Debug)]
pub(in crate::engine) struct Rows {
    pub shape: Arc<ChunkShape>,
    /// n_tokens × n_embd.
    pub rows: Vec<f32>,
    n_alive: Arc<AtomicUsize>,
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.n_alive.fetch_sub(self.rows.len() * size_of::<f32>(), Ordering::Relaxed);
    }
}

/// One image or sound, ready for the model.
#[derive(Debug)]
pub(in crate::engine) struct Encoded {
    pub pieces: Vec<EncodedPiece>,
}

#[derive(Debug)]
pub(in crate::engine) enum EncodedPiece {
    Text(Vec<Token>),
    Chunk(Arc<Rows>),
}

impl Encoded {
    fn n_bytes(&self) -> usize {
        let bytes = |piece: &EncodedPiece| match piece {
            EncodedPiece::Text(tokens) => tokens.len() * size_of::<Token>(),
            EncodedPiece::Chunk(rows) => rows.rows.len() * size_of::<f32>(),
        };
        // The entry itself counts too, or tiny ones would be free.
        256 + self.pieces.iter().map(bytes).sum::<usize>()
    }
}

/// Whose image or sound, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::engine) struct Key {
    pub partition: u64,
    pub hash: ContentHash,
}

/// **Bound:** `KEPT_BYTES_MAX`, the least recently used go first.
#[derive(Debug, Default)]
pub(in crate::engine) struct Cache {
    kept: Mutex<Kept>,
    /// Bytes of all rows that exist, kept or held by runs.
    n_alive: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: FxHashMap<Key, (u64, Arc<Encoded>)>,
    n_bytes: usize,
    clock: u64,
}

impl Cache {
    pub fn get(&self, key: &Key) -> Option<Arc<Encoded>> {
        let mut kept = self.lock();
        kept.clock += 1;
        let now = kept.clock;
        let (used, encoded) = kept.entries.get_mut(key)?;
        *used = now;
        Some(Arc::clone(encoded))
    }

    pub fn put(&self, key: Key, encoded: &Arc<Encoded>) {
        let n_bytes = encoded.n_bytes();
        if n_bytes > KEPT_BYTES_MAX / 2 {
            return; // it would push out everything else
        }
        let mut kept = self.lock();
        kept.clock += 1;
        let now = kept.clock;
        if let Some((_, old)) = kept.entries.insert(key, (now, Arc::clone(encoded))) {
            kept.n_bytes -= old.n_bytes();
        }
        kept.n_bytes += n_bytes;
        while kept.n_bytes > KEPT_BYTES_MAX {
            let Some(oldest) = kept.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key) else {
                break;
            };
            if let Some((_, old)) = kept.entries.remove(&oldest) {
                kept.n_bytes -= old.n_bytes();
            }
        }
    }

    /// Rows that count as alive until they are dropped.
    pub fn rows(&self, shape: Arc<ChunkShape>, rows: Vec<f32>) -> Arc<Rows> {
        self.n_alive.fetch_add(rows.len() * size_of::<f32>(), Ordering::Relaxed);
        Arc::new(Rows { shape, rows, n_alive: Arc::clone(&self.n_alive) })
    }

    /// Whether runs hold so much that no more should be made now.
    pub fn is_full(&self) -> bool {
        self.n_alive.load(Ordering::Relaxed) > KEPT_BYTES_MAX + HELD_BYTES_MAX
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(cache: &Cache, n_bytes: usize) -> Arc<Encoded> {
        let shape = Arc::new(ChunkShape { n_tokens: 1, n_pos: 1, is_non_causal: false, grid: Vec::new() });
        let rows = cache.rows(shape, vec![0.0; n_bytes / 4]);
        Arc::new(Encoded { pieces: vec![EncodedPiece::Chunk(rows)] })
    }

    fn key(name: u8) -> Key {
        Key { partition: 0, hash: [name; 32] }
    }

    #[test]
    fn what_one_partition_sent_no_other_finds() {
        let cache = Cache::default();
        cache.put(key(1), &encoded(&cache, 64));
        assert!(cache.get(&key(1)).is_some());
        assert!(cache.get(&Key { partition: 7, ..key(1) }).is_none());
    }

    #[test]
    fn the_least_recently_used_go_first_and_bytes_are_counted() {
        let cache = Cache::default();
        let third = KEPT_BYTES_MAX / 3;
        for name in 0..3u8 {
            let one = encoded(&cache, third - 1024);
            cache.put(key(name), &one);
        }
        assert!(cache.get(&key(0)).is_some());
        let one = encoded(&cache, third - 1024);
        cache.put(key(3), &one);
        drop(one);
        assert!(cache.get(&key(1)).is_none(), "the one used longest ago");
        assert!([0, 2, 3].iter().all(|name| cache.get(&key(*name)).is_some()));
        assert!(cache.n_alive.load(Ordering::Relaxed) <= KEPT_BYTES_MAX);
        let held = encoded(&cache, HELD_BYTES_MAX + third);
        cache.put(key(4), &held);
        assert!(cache.get(&key(4)).is_none(), "too large to keep");
        assert!(cache.is_full());
        drop(held);
        assert!(!cache.is_full());
    }
}
