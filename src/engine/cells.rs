//! Whose KV cells are whose, where all sequences draw them from one pool.
//!
//! llama.cpp counts a cell once however many sequences hold it, but tells nobody how many are free; a decode that finds
//! none fails as a whole. So the worker keeps the count: each token a sequence holds names its cell here.

/// One cell of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CellId(u32);

/// **Bound:** as many cells as the context has.
#[derive(Debug)]
pub(super) struct Cells {
    /// How many sequences hold each cell.
    n_holders: Vec<u16>,
    free: Vec<CellId>,
}

impl Cells {
    pub fn new(n_cells: u32) -> Self {
        Self { n_holders: vec![0; n_cells as usize], free: (0..n_cells).rev().map(CellId).collect() }
    }

    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    pub fn n_used(&self) -> usize {
        self.n_holders.len() - self.free.len()
    }

    /// Adds `n` cells to what a sequence holds. The caller has seen to it that they are free.
    pub fn take(&mut self, n: usize, held: &mut Vec<CellId>) {
        for _ in 0..n {
            let Some(cell) = self.free.pop() else {
                debug_assert!(false, "more rows were planned than cells are free");
                return;
            };
            self.n_holders[cell.0 as usize] = 1;
            held.push(cell);
        }
    }

    /// A second sequence holds the first `n` cells of `donor` too.
    pub fn share(&mut self, donor: &[CellId], n: usize) -> Vec<CellId> {
        let shared = donor[..n.min(donor.len())].to_vec();
        for cell in &shared {
            self.n_holders[cell.0 as usize] += 1;
        }
        shared
    }

    /// A sequence lets go of everything from `keep` on.
    pub fn release(&mut self, held: &mut Vec<CellId>, keep: usize) {
        for cell in held.drain(keep.min(held.len())..) {
            let n_holders = &mut self.n_holders[cell.0 as usize];
            *n_holders -= 1;
            if *n_holders == 0 {
                self.free.push(cell);
            }
        }
    }

    /// Of a sequence's cells, those that nobody else holds.
    pub fn n_only(&self, held: &[CellId]) -> usize {
        held.iter().filter(|cell| self.n_holders[cell.0 as usize] == 1).count()
    }

    /// Cells that at least one of these sequences holds.
    pub fn count<'a>(&self, held: impl Iterator<Item = &'a [CellId]>) -> usize {
        let mut seen = vec![false; self.n_holders.len()];
        let mut n = 0;
        for cell in held.flatten() {
            n += usize::from(!std::mem::replace(&mut seen[cell.0 as usize], true));
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_cell_is_free_when_its_last_holder_lets_go() {
        let mut cells = Cells::new(4);
        let mut a = Vec::new();
        cells.take(3, &mut a);
        let mut b = cells.share(&a, 2);
        assert_eq!((cells.n_free(), cells.count([a.as_slice(), &b].into_iter())), (1, 3));
        assert_eq!((cells.n_only(&a), cells.n_only(&b)), (1, 0));
        cells.release(&mut a, 0);
        assert_eq!((cells.n_free(), cells.n_used()), (2, 2));
        cells.release(&mut b, 1);
        assert_eq!((cells.n_free(), b.len()), (3, 1));
    }
}
