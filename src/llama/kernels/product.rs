//! Products of rows with a matrix of weights in F32. No copy of the weights is made, and few rows are as quick as many. An output
//! is summed up in the order of its inputs, in parts of [`DEPTH`], however many rows there are.

use super::Turns;
use super::cpu::{self, Cpu};
use super::tile::{accumulate, transpose};
use crate::llama::sys;
use std::cell::RefCell;
use std::ops::Range;

/// Rows that a thread copies at once, with all their inputs.
const ROWS: usize = 144;
/// Inputs that are summed up at once; with as many rows, 288 KiB: meant for the cache of a core.
const DEPTH: usize = 512;
/// Outputs that a thread takes at once: a multiple of what a tile has, on every kind of CPU.
const TURN: usize = 48;
/// Most lanes of a tile.
const TILE_LANES: usize = 48;

/// A thread's share of a product.
///
/// # Safety
/// The shapes and strides are those of memory that lives during the call, and `out` is no one else's.
pub unsafe fn share(p: &sys::hearth_product, turns: &Turns) {
    let span = |n: usize, stride: usize| n.saturating_sub(1) * stride + p.n_in;
    // SAFETY: as the caller vouches: the last row ends with its width.
    let (weights, rows) = unsafe {
        (
            std::slice::from_raw_parts(p.weights, span(p.n_out, p.weights_stride)),
            std::slice::from_raw_parts(p.rows, span(p.n_rows, p.rows_stride)),
        )
    };
    let product = Product {
        weights: Matrix { numbers: weights, stride: p.weights_stride },
        rows: Matrix { numbers: rows, stride: p.rows_stride },
        out: Out { numbers: p.out, stride: p.out_stride, n_rows: p.n_rows, n_columns: p.n_out },
        n_in: p.n_in,
    };
    COPIED.with_borrow_mut(|copied| product.compute(turns, copied));
}

thread_local! {
    /// What a thread copies into: [`ROWS`] rows at most.
    static COPIED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Numbers of a matrix, row by row.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    numbers: &'a [f32],
    stride: usize,
}

impl<'a> Matrix<'a> {
    /// `n` numbers of a row, from `at` on.
    #[inline(always)]
    fn part(self, row: usize, at: usize, n: usize) -> &'a [f32] {
        &self.numbers[row * self.stride + at..][..n]
    }
}

/// Where outputs go: a thread writes only the columns whose turn it took.
#[derive(Clone, Copy)]
struct Out {
    numbers: *mut f32,
    stride: usize,
    n_rows: usize,
    n_columns: usize,
}

impl Out {
    /// Writes or adds `numbers` to a row, from a column on.
    #[inline(always)]
    fn put(self, row: usize, column: usize, numbers: &[f32], adds: bool) {
        assert!(row < self.n_rows && column + numbers.len() <= self.n_columns, "outside of the product; this is a bug");
        // SAFETY: within the matrix, in columns that no other thread touches, and nobody reads meanwhile.
        let to = unsafe { std::slice::from_raw_parts_mut(self.numbers.add(row * self.stride + column), numbers.len()) };
        if adds {
            to.iter_mut().zip(numbers).for_each(|(to, number)| *to += number);
        } else {
            to.copy_from_slice(numbers);
        }
    }
}

/// Rows that were copied: panels of as many vectors as a tile has, then of one vector each.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Block {
    row: usize,
    n_rows: usize,
}

impl Block {
    fn n_vectors<C: Cpu>(self) -> usize {
        self.n_rows.div_ceil(C::LANES)
    }

    /// The first row of each panel, from the block's first, and its vectors.
    fn panels<C: Cpu, const VECTORS: usize>(self) -> impl Iterator<Item = (usize, usize)> {
        let n_vectors = self.n_vectors::<C>();
        let n_wide = n_vectors / VECTORS * VECTORS;
        let wide = (0..n_wide).step_by(VECTORS).map(|at| (at * C::LANES, VECTORS));
        wide.chain((n_wide..n_vectors).map(|at| (at * C::LANES, 1)))
    }
}

/// Outputs of a tile: those from a column on, of the rows from `row` on, as far as there are any.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    n_rows: usize,
    column: usize,
    n_columns: usize,
    /// Whether they are added to what is there.
    adds: bool,
}

struct Product<'a> {
    weights: Matrix<'a>,
    rows: Matrix<'a>,
    out: Out,
    n_in: usize,
}

impl Product<'_> {
    fn compute(&self, turns: &Turns, copied: &mut Vec<f32>) {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(cpu) = cpu::x86::Avx512::detect() {
                // SAFETY: detected.
                return unsafe { self.avx512(cpu, turns, copied) };
            }
            if let Some(cpu) = cpu::x86::Avx2::detect() {
                // SAFETY: detected.
                unsafe { self.avx2(cpu, turns, copied) }
            }
        }
        #[cfg(target_arch = "aarch64")]
        // 24 sums, 3 vectors of rows and one of weights: 28 of 32 registers.
        self.run::<_, 3, 8>(cpu::arm::Neon, turns, copied);
    }

    // 24 sums, 3 vectors of rows and a weight: 28 of 32 registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(&self, cpu: cpu::x86::Avx512, turns: &Turns, copied: &mut Vec<f32>) {
        self.run::<_, 3, 8>(cpu, turns, copied);
    }

    // 12 sums, 2 vectors of rows and a weight: 15 of 16 registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(&self, cpu: cpu::x86::Avx2, turns: &Turns, copied: &mut Vec<f32>) {
        self.run::<_, 2, 6>(cpu, turns, copied);
    }

    /// Takes turns until there are none: all outputs of a block of rows, then those of the next.
    #[inline(always)]
    fn run<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(&self, cpu: C, turns: &Turns, copied: &mut Vec<f32>) {
        let n_turns = self.out.n_columns.div_ceil(TURN).max(1);
        let mut of = None;
        loop {
            let turn = turns.take();
            let (row, column) = (turn / n_turns * ROWS, turn % n_turns * TURN);
            if row >= self.out.n_rows {
                return;
            }
            let block = Block { row, n_rows: ROWS.min(self.out.n_rows - row) };
            if of != Some(block) {
                self.copy::<C, VECTORS>(block, copied);
                of = Some(block);
            }
            let end = (column + TURN).min(self.out.n_columns);
            self.outputs::<C, VECTORS, OUTPUTS>(cpu, copied, block, column..end);
        }
    }

    /// Parts of [`DEPTH`] inputs, one behind the other, and in each the panels.
    #[inline(always)]
    fn copy<C: Cpu, const VECTORS: usize>(&self, block: Block, to: &mut Vec<f32>) {
        let n_lanes = block.n_vectors::<C>() * C::LANES;
        to.resize(n_lanes * self.n_in, 0.0);
        for input in (0..self.n_in).step_by(DEPTH) {
            let depth = DEPTH.min(self.n_in - input);
            let part = &mut to[n_lanes * input..][..n_lanes * depth];
            for (row, n_vectors) in block.panels::<C, VECTORS>() {
                let lines = (row..(row + n_vectors * C::LANES).min(block.n_rows))
                    .map(|row| self.rows.part(block.row + row, input, depth));
                let width = n_vectors * C::LANES;
                transpose(lines, &mut part[row * depth..][..width * depth], width, depth);
            }
        }
    }

    #[inline(always)]
    fn outputs<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(
        &self,
        cpu: C,
        copied: &[f32],
        block: Block,
        columns: Range<usize>,
    ) {
        let n_lanes = block.n_vectors::<C>() * C::LANES;
        for input in (0..self.n_in).step_by(DEPTH) {
            let depth = DEPTH.min(self.n_in - input);
            let part = &copied[n_lanes * input..][..n_lanes * depth];
            for column in columns.clone().step_by(OUTPUTS) {
                // Where outputs are fewer than a tile has, the last one is computed again.
                let line = |o: usize| self.weights.part((column + o).min(columns.end - 1), input, depth);
                let weights: [&[f32]; OUTPUTS] = std::array::from_fn(line);
                let mut next = (column + OUTPUTS < columns.end).then(|| std::array::from_fn(|o| line(OUTPUTS + o)));
                for (row, n_vectors) in block.panels::<C, VECTORS>() {
                    let panel = &part[row * depth..][..n_vectors * C::LANES * depth];
                    let place = Place {
                        row: block.row + row,
                        n_rows: block.n_rows - row,
                        column,
                        n_columns: columns.end - column,
                        adds: input > 0,
                    };
                    if n_vectors == VECTORS {
                        tile::<C, VECTORS, OUTPUTS>(cpu, panel, weights, next.take(), place, self.out);
                    } else {
                        tile::<C, 1, OUTPUTS>(cpu, panel, weights, next.take(), place, self.out);
                    }
                }
            }
        }
    }
}

/// Outputs of a panel of VECTORS vectors; meanwhile the weights of the `next` ones are asked for.
#[inline(always)]
fn tile<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(
    cpu: C,
    panel: &[f32],
    weights: [&[f32]; OUTPUTS],
    next: Option<[&[f32]; OUTPUTS]>,
    place: Place,
    out: Out,
) {
    let sums = accumulate(cpu, panel, weights, next, [[cpu.all(0.0); VECTORS]; OUTPUTS]);
    let mut columns = [[0.0; TILE_LANES]; OUTPUTS];
    for (column, sums) in columns.iter_mut().zip(sums) {
        for (v, sum) in sums.into_iter().enumerate() {
            cpu.store(sum, &mut column[v * C::LANES..]);
        }
    }
    let rows = (0..place.n_rows.min(VECTORS * C::LANES)).map(|row| (row, columns.each_ref().map(|column| column[row])));
    for (row, numbers) in rows {
        if place.n_columns >= OUTPUTS {
            // A length that the compiler knows.
            out.put(place.row + row, place.column, &numbers, place.adds);
        } else {
            out.put(place.row + row, place.column, &numbers[..place.n_columns], place.adds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows, outputs, inputs: less and more than a tile, a turn, a block and a part have, and one of each.
    const SHAPES: [(usize, usize, usize); 7] =
        [(1, 1, 1), (3, 7, 5), (17, 50, 100), (47, 8, 16), (145, 97, 513), (300, 49, 1100), (16, 200, 1536)];

    /// Numbers between -1 and 1.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 129) as f32 / 64.0 - 1.0).collect()
    }

    struct Case {
        n_rows: usize,
        n_out: usize,
        n_in: usize,
        rows: Vec<f32>,
        weights: Vec<f32>,
    }

    impl Case {
        fn new((n_rows, n_out, n_in): (usize, usize, usize)) -> Self {
            Self { n_rows, n_out, n_in, rows: numbers(n_rows * n_in, 1), weights: numbers(n_out * n_in, 2) }
        }

        /// By the definition.
        fn wanted(&self, row: usize, output: usize) -> f64 {
            let (a, b) = (&self.rows[row * self.n_in..][..self.n_in], &self.weights[output * self.n_in..][..self.n_in]);
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        }

        fn check(&self, out: &[f32], stride: usize) {
            for row in 0..self.n_rows {
                for output in 0..self.n_out {
                    let (got, wanted) = (f64::from(out[row * stride + output]), self.wanted(row, output));
                    assert!((got - wanted).abs() < 1e-3, "{row}, {output} of {self}: {got} {wanted}");
                }
            }
        }

        fn product(&self, out: &mut [f32]) -> Product<'_> {
            Product {
                weights: Matrix { numbers: &self.weights, stride: self.n_in },
                rows: Matrix { numbers: &self.rows, stride: self.n_in },
                out: Out { numbers: out.as_mut_ptr(), stride: self.n_out, n_rows: self.n_rows, n_columns: self.n_out },
                n_in: self.n_in,
            }
        }
    }

    impl std::fmt::Display for Case {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} rows, {} outputs, {} inputs", self.n_rows, self.n_out, self.n_in)
        }
    }

    #[test]
    fn a_product_is_what_the_definition_says() {
        for case in SHAPES.map(Case::new) {
            let mut out = vec![f32::NAN; case.n_rows * case.n_out];
            case.product(&mut out).compute(&Turns::default(), &mut Vec::new());
            case.check(&out, case.n_out);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn cpus_without_avx512_compute_the_same() {
        let Some(cpu) = cpu::x86::Avx2::detect() else { return };
        for case in SHAPES.map(Case::new) {
            let mut out = vec![f32::NAN; case.n_rows * case.n_out];
            // SAFETY: detected.
            unsafe { case.product(&mut out).avx2(cpu, &Turns::default(), &mut Vec::new()) };
            case.check(&out, case.n_out);
        }
    }
}
