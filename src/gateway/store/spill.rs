//! Rows that can't be written now, in memory.

use super::RequestRow;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most bytes of waiting rows.
pub(super) const SPILL_BYTES_MAX: usize = 16 << 20;

/// **Bound:** [`SPILL_BYTES_MAX`]; a row beyond it is handed back.
#[derive(Default)]
pub(super) struct Spill(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    rows: VecDeque<RequestRow>,
    n_bytes: usize,
}

impl Spill {
    pub(super) fn push(&self, row: RequestRow) -> Result<(), Box<RequestRow>> {
        let mut waiting = self.lock();
        let n = row.n_bytes();
        if waiting.n_bytes + n > SPILL_BYTES_MAX {
            return Err(Box::new(row));
        }
        waiting.n_bytes += n;
        waiting.rows.push_back(row);
        Ok(())
    }

    /// The oldest rows, at most `n`; they stay until they are [removed](Self::remove).
    pub(super) fn first(&self, n: usize) -> Vec<RequestRow> {
        self.lock().rows.iter().take(n).cloned().collect()
    }

    pub(super) fn remove(&self, n: usize) {
        let mut waiting = self.lock();
        for _ in 0..n {
            let Some(row) = waiting.rows.pop_front() else { return };
            waiting.n_bytes -= row.n_bytes();
        }
        if waiting.rows.is_empty() {
            waiting.rows.shrink_to(64);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.lock().rows.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spill_is_bounded_and_keeps_order() {
        let spill = Spill::default();
        let row = |n: usize| RequestRow { id: format!("{n:04}").repeat(25_000), ..Default::default() };
        let mut n = 0;
        while spill.push(row(n)).is_ok() {
            n += 1;
        }
        assert!((100..168).contains(&n), "{n}");
        assert!(spill.first(2).iter().zip(0..).all(|(got, n)| *got == row(n)));
        spill.remove(2);
        assert!(spill.push(row(n)).is_ok() && spill.first(1)[0] == row(2));
        spill.remove(usize::MAX);
        assert!(spill.is_empty() && spill.lock().n_bytes == 0);
    }
}
