//! Attention of many rows over keys and values of F16.
//!
//! # Design
//! Lanes are rows of queries, of all heads that share a head of keys and values, so that these are converted once for all of them;
//! both products of a block of cells are tiles of [`accumulate`]. The softmax is taken block by block (Milakov and Gimelshein,
//! "Online normalizer calculation for softmax", 2018). What ggml does from 64 rows on, with the same roundings: keys and values
//! in F16, all sums in F32. Also as there, a row that sees a score that is infinite or not a number has outputs that are no
//! numbers: its weight is none, and all sums take it in. A model whose keys overflow F16 must not seem to answer.

use super::Turns;
use super::cpu::{self, Cpu};
use super::tile::{accumulate, transpose};
use crate::llama::sys;
use std::cell::RefCell;

/// Lanes of a turn: rows of queries times the heads that share keys.
const LANES: usize = 144;
/// Cells of a block.
const CELLS: usize = 64;
/// Bits of F16's negative infinity: a cell that a row doesn't see.
const HIDDEN: u16 = 0xFC00;
/// Where a maximum begins: below every score, and a number, so that no infinity is taken from another.
const LOW: f32 = -1e30;

/// A thread's share.
///
/// # Safety
/// The shapes and strides are those of memory that lives during the call, and `out` is no one else's.
pub unsafe fn share(raw: &sys::hearth_attention, turns: &Turns) {
    BUFFERS.with_borrow_mut(|buffers| Attention { raw }.compute(turns, buffers));
}

/// What a thread copies into and computes in, all as numbers of F32.
#[derive(Default)]
struct Buffers {
    /// Panels of lanes, n_in numbers of each: queries, scaled.
    queries: Vec<f32>,
    /// CELLS × n_in.
    keys: Vec<f32>,
    /// CELLS × n_out, and the same as n_out × CELLS.
    values: Vec<f32>,
    columns: Vec<f32>,
    /// Of one panel: its scores, CELLS numbers of each lane, and what hides cells from them.
    scores: Vec<f32>,
    mask: Vec<f32>,
    /// Panels of sums, n_out numbers of each lane.
    sums: Vec<f32>,
    /// Of each lane: the highest score, and the sum of all weights.
    highest: Vec<f32>,
    totals: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The number that bits of IEEE 754's binary16 stand for: exact, and without branches, so that it is done in vectors.
#[inline(always)]
fn number(half: u16) -> f32 {
    let (bits, exponent) = (u32::from(half), u32::from(half) & 0x7C00);
    let normal = ((bits & 0x7FFF) << 13) + (112 << 23);
    // A multiple of 2^-24: what a float between 1/2 and 1 counts in.
    let subnormal = (f32::from_bits((126 << 23) | (bits & 0x3FF)) - 0.5).to_bits();
    let size = if exponent == 0 { subnormal } else { normal };
    let size = if exponent == 0x7C00 { normal | 0x7F80_0000 } else { size };
    f32::from_bits(size | ((bits & 0x8000) << 16))
}

struct Attention<'a> {
    raw: &'a sys::hearth_attention,
}

/// Lanes that are computed together: some rows of a stream, each with all heads of a group.
#[derive(Clone, Copy)]
struct Part {
    stream: usize,
    /// Of keys and values.
    head: usize,
    /// The first lane of the stream's and head's, and how many there are.
    first: usize,
    n_lanes: usize,
}

/// What lanes see of a block of cells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    All,
    Some,
    None,
}

impl Attention<'_> {
    fn compute(&self, turns: &Turns, buffers: &mut Buffers) {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(cpu) = cpu::x86::Avx512::detect() {
                // SAFETY: detected.
                return unsafe { self.avx512(cpu, turns, buffers) };
            }
            if let Some(cpu) = cpu::x86::Avx2::detect() {
                // SAFETY: detected.
                unsafe { self.avx2(cpu, turns, buffers) }
            }
        }
        #[cfg(target_arch = "aarch64")]
        self.run::<_, 3, 8>(cpu::arm::Neon, turns, buffers);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(&self, cpu: cpu::x86::Avx512, turns: &Turns, buffers: &mut Buffers) {
        self.run::<_, 3, 8>(cpu, turns, buffers);
    }

    // 4 outputs at once: 6 would not divide a block's cells.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(&self, cpu: cpu::x86::Avx2, turns: &Turns, buffers: &mut Buffers) {
        self.run::<_, 3, 4>(cpu, turns, buffers);
    }

    /// Heads of queries that share one of keys and values.
    fn n_group(&self) -> usize {
        self.raw.n_heads / self.raw.n_kv_heads
    }

    #[inline(always)]
    fn run<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(&self, cpu: C, turns: &Turns, buffers: &mut Buffers) {
        let n_lanes = self.raw.n_rows * self.n_group();
        let n_parts = n_lanes.div_ceil(LANES);
        loop {
            let turn = turns.take();
            // The last rows first: they see most cells.
            let (part, rest) = (n_parts - 1 - turn % n_parts, turn / n_parts);
            let (head, stream) = (rest % self.raw.n_kv_heads, rest / self.raw.n_kv_heads);
            if stream >= self.raw.n_streams {
                return;
            }
            let first = part * LANES;
            let part = Part { stream, head, first, n_lanes: LANES.min(n_lanes - first) };
            self.part::<C, VECTORS, OUTPUTS>(cpu, part, buffers);
        }
    }

    #[inline(always)]
    fn part<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(&self, cpu: C, part: Part, b: &mut Buffers) {
        let (n_in, n_out) = (self.raw.n_in, self.raw.n_out);
        let n_vectors = part.n_lanes.div_ceil(C::LANES);
        let n_wide = n_vectors / VECTORS * VECTORS;
        let wide = (0..n_wide).step_by(VECTORS).map(|at| (at * C::LANES, VECTORS));
        // The first lane of each panel, and its vectors.
        let panels = wide.chain((n_wide..n_vectors).map(|at| (at * C::LANES, 1)));
        b.make_room(n_vectors * C::LANES, n_in, n_out, VECTORS * C::LANES);
        for (lane, n) in panels.clone() {
            let width = n * C::LANES;
            let lines = (lane..(lane + width).min(part.n_lanes)).map(|lane| self.query(part, lane));
            let to = &mut b.queries[lane * n_in..][..width * n_in];
            transpose(lines, to, width, n_in);
            to.iter_mut().for_each(|number| *number *= self.raw.scale);
        }
        for cell in (0..self.raw.n_cells).step_by(CELLS) {
            let n_cells = CELLS.min(self.raw.n_cells - cell);
            let mut is_converted = false;
            for (lane, n) in panels.clone() {
                let lanes = lane..(lane + n * C::LANES).min(part.n_lanes);
                let sight = self.sight(part, lanes.start, lanes.end, cell, n_cells);
                if sight == Sight::None {
                    continue;
                }
                if !is_converted {
                    self.convert(part, cell, n_cells, b);
                    is_converted = true;
                }
                if sight == Sight::Some {
                    self.hide(part, lanes.start, lanes.end, cell, n_cells, n * C::LANES, &mut b.mask);
                }
                let hides = sight == Sight::Some;
                if n == VECTORS {
                    panel::<C, VECTORS, OUTPUTS>(cpu, b, lane, n_in, n_out, n_cells, hides);
                } else {
                    panel::<C, 1, OUTPUTS>(cpu, b, lane, n_in, n_out, n_cells, hides);
                }
            }
        }
        for (lane, n) in panels {
            let width = n * C::LANES;
            for at in 0..width.min(part.n_lanes - lane) {
                let total = b.totals[lane + at];
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let sums = b.sums[lane * n_out + at..].iter().step_by(width);
                self.put(part, lane + at, sums.map(|sum| sum * factor));
            }
        }
    }

    /// Row and head of queries.
    #[inline(always)]
    fn place(&self, part: Part, lane: usize) -> (usize, usize) {
        let lane = part.first + lane;
        (lane / self.n_group(), part.head * self.n_group() + lane % self.n_group())
    }

    #[inline(always)]
    fn query(&self, part: Part, lane: usize) -> &[f32] {
        let (raw, (row, head)) = (self.raw, self.place(part, lane));
        // SAFETY: a row of the queries, as long as the caller says.
        unsafe {
            let at =
                raw.queries.add(part.stream * raw.queries_stream + head * raw.queries_head + row * raw.queries_row);
            std::slice::from_raw_parts(at, raw.n_in)
        }
    }

    /// Outputs lie as [stream][row][head][n_out].
    #[inline(always)]
    fn put(&self, part: Part, lane: usize, numbers: impl Iterator<Item = f32>) {
        let (raw, (row, head)) = (self.raw, self.place(part, lane));
        let at = ((part.stream * raw.n_rows + row) * raw.n_heads + head) * raw.n_out;
        // SAFETY: as long as the caller says, and no other thread's.
        let to = unsafe { std::slice::from_raw_parts_mut(raw.out.add(at), raw.n_out) };
        to.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
    }

    #[inline(always)]
    fn mask(&self, part: Part, row: usize, cell: usize, n_cells: usize) -> &[u16] {
        // SAFETY: a row of the mask.
        unsafe {
            let at = self.raw.mask.add(part.stream * self.raw.mask_stream + row * self.raw.mask_row + cell);
            std::slice::from_raw_parts(at, n_cells)
        }
    }

    #[inline(always)]
    fn sight(&self, part: Part, first: usize, end: usize, cell: usize, n_cells: usize) -> Sight {
        if self.raw.mask.is_null() {
            return Sight::All;
        }
        let (mut sees_all, mut sees_none) = (true, true);
        for row in self.place(part, first).0..=self.place(part, end - 1).0 {
            let mask = self.mask(part, row, cell, n_cells);
            // Over all, not up to the first: that is done in vectors.
            sees_all &= mask.iter().fold(0, |seen, bits| seen | bits) == 0;
            sees_none &= mask.iter().fold(0, |seen, bits| seen | (bits ^ HIDDEN)) == 0;
            if !sees_all && !sees_none {
                return Sight::Some;
            }
        }
        if sees_none { Sight::None } else { Sight::All }
    }

    /// Lays the mask of some lanes out as their scores lie.
    #[inline(always)]
    #[expect(clippy::too_many_arguments)]
    fn hide(&self, part: Part, first: usize, end: usize, cell: usize, n_cells: usize, width: usize, to: &mut [f32]) {
        for (at, lane) in (first..end).enumerate() {
            let mask = self.mask(part, self.place(part, lane).0, cell, n_cells);
            for (to, bits) in to[at..].iter_mut().step_by(width).zip(mask) {
                *to = number(*bits);
            }
        }
    }

    /// Keys and values of a cell.
    #[inline(always)]
    fn cell(&self, part: Part, cell: usize) -> (&[u16], &[u16]) {
        let raw = self.raw;
        // SAFETY: as long as the caller says.
        unsafe {
            let keys = raw.keys.add(part.stream * raw.keys_stream + part.head * raw.keys_head + cell * raw.keys_row);
            let values =
                raw.values.add(part.stream * raw.values_stream + part.head * raw.values_head + cell * raw.values_row);
            (std::slice::from_raw_parts(keys, raw.n_in), std::slice::from_raw_parts(values, raw.n_out))
        }
    }

    #[inline(always)]
    fn convert(&self, part: Part, cell: usize, n_cells: usize, b: &mut Buffers) {
        let (n_in, n_out) = (self.raw.n_in, self.raw.n_out);
        for (i, (keys, values)) in b.keys.chunks_exact_mut(n_in).zip(b.values.chunks_exact_mut(n_out)).enumerate() {
            if i >= n_cells {
                keys.fill(0.0);
                values.fill(0.0);
                continue;
            }
            let from = self.cell(part, cell + i);
            keys.iter_mut().zip(from.0).for_each(|(to, half)| *to = number(*half));
            values.iter_mut().zip(from.1).for_each(|(to, half)| *to = number(*half));
        }
        transpose(b.values.chunks_exact(n_out), &mut b.columns, CELLS, n_out);
    }
}

impl Buffers {
    #[inline(always)]
    fn make_room(&mut self, n_lanes: usize, n_in: usize, n_out: usize, width: usize) {
        self.queries.resize(n_lanes * n_in, 0.0);
        self.keys.resize(CELLS * n_in, 0.0);
        self.values.resize(CELLS * n_out, 0.0);
        self.columns.resize(CELLS * n_out, 0.0);
        self.scores.resize(CELLS * width, 0.0);
        self.mask.clear();
        self.mask.resize(CELLS * width, 0.0);
        self.sums.clear();
        self.sums.resize(n_lanes * n_out, 0.0);
        self.highest.clear();
        self.highest.resize(n_lanes, LOW);
        self.totals.clear();
        self.totals.resize(n_lanes, 0.0);
    }
}

/// A block of cells for one panel of lanes.
#[inline(always)]
fn panel<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(
    cpu: C,
    b: &mut Buffers,
    lane: usize,
    n_in: usize,
    n_out: usize,
    n_cells: usize,
    hides: bool,
) {
    let width = VECTORS * C::LANES;
    let queries = &b.queries[lane * n_in..][..width * n_in];
    let sums = &mut b.sums[lane * n_out..][..width * n_out];
    let (highest, totals) = (&mut b.highest[lane..][..width], &mut b.totals[lane..][..width]);
    let scores = &mut b.scores[..CELLS * width];
    // Loops, here and below: calls of a closure are not always inlined, and then have none of the instructions.
    let mut before = [cpu.all(0.0); VECTORS];
    for (v, before) in before.iter_mut().enumerate() {
        *before = cpu.load(&highest[v * C::LANES..]);
    }
    let mut high = before;
    for cell in (0..CELLS).step_by(OUTPUTS) {
        let keys: [&[f32]; OUTPUTS] = std::array::from_fn(|o| &b.keys[(cell + o) * n_in..][..n_in]);
        let all = accumulate(cpu, queries, keys, None, [[cpu.all(0.0); VECTORS]; OUTPUTS]);
        for (o, all) in all.into_iter().enumerate() {
            for (v, score) in all.into_iter().enumerate() {
                let at = (cell + o) * width + v * C::LANES;
                let score = match hides {
                    _ if cell + o >= n_cells => cpu.all(f32::NEG_INFINITY),
                    true => {
                        // A hidden cell may be another sequence's, so whatever its score is must not count.
                        let mask = cpu.load(&b.mask[at..]);
                        cpu.add_product(cpu.where_not_below(mask, cpu.all(LOW), score), mask, cpu.all(1.0))
                    }
                    false => score,
                };
                high[v] = cpu.max(high[v], score);
                cpu.store(score, &mut scores[at..]);
            }
        }
    }
    let (mut factors, mut total) = ([cpu.all(0.0); VECTORS], [cpu.all(0.0); VECTORS]);
    for v in 0..VECTORS {
        factors[v] = cpu.exp(cpu.subtract(before[v], high[v]));
        total[v] = cpu.multiply(factors[v], cpu.load(&totals[v * C::LANES..]));
    }
    for weights in scores.chunks_exact_mut(width) {
        for v in 0..VECTORS {
            let weight = cpu.exp(cpu.subtract(cpu.load(&weights[v * C::LANES..]), high[v]));
            total[v] = cpu.add_product(total[v], weight, cpu.all(1.0));
            cpu.store(weight, &mut weights[v * C::LANES..]);
        }
    }
    for v in 0..VECTORS {
        cpu.store(high[v], &mut highest[v * C::LANES..]);
        cpu.store(total[v], &mut totals[v * C::LANES..]);
    }
    for (out, sums) in sums.chunks_mut(OUTPUTS * width).enumerate() {
        let n = sums.len() / width;
        // Where outputs are fewer than a tile has, the last one is computed again.
        let columns: [&[f32]; OUTPUTS] =
            std::array::from_fn(|o| &b.columns[(out * OUTPUTS + o.min(n - 1)) * CELLS..][..CELLS]);
        let mut scaled = [[cpu.all(0.0); VECTORS]; OUTPUTS];
        for (o, scaled) in scaled.iter_mut().enumerate() {
            for (v, scaled) in scaled.iter_mut().enumerate() {
                *scaled = cpu.multiply(factors[v], cpu.load(&sums[o.min(n - 1) * width + v * C::LANES..]));
            }
        }
        let all = accumulate(cpu, scores, columns, None, scaled);
        for (sums, all) in sums.chunks_exact_mut(width).zip(all) {
            for (v, sum) in all.into_iter().enumerate() {
                cpu.store(sum, &mut sums[v * C::LANES..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_the_number_that_ggml_takes_it_for() {
        for bits in 0..=u16::MAX {
            // SAFETY: takes a number, whatever its bits.
            let wanted = unsafe { sys::ggml_fp16_to_fp32(bits) };
            let number = number(bits);
            assert!(
                number.to_bits() == wanted.to_bits() || number.is_nan() && wanted.is_nan(),
                "{bits:#x}: {number} {wanted}"
            );
        }
    }

    struct Case {
        n_streams: usize,
        n_rows: usize,
        n_cells: usize,
        n_heads: usize,
        n_kv_heads: usize,
        n_in: usize,
        n_out: usize,
        queries: Vec<f32>,
        keys: Vec<u16>,
        values: Vec<u16>,
        mask: Vec<u16>,
    }

    /// Bits of halves between 1/64 and 2 of either sign.
    fn halves(n: usize, seed: usize) -> Vec<u16> {
        (0..n)
            .map(|i| (i * 7919 + seed * 104_729) as u32 % 7168)
            .map(|x| (x as u16 % 7168 + 0x2400) | ((x as u16 & 1) << 15))
            .collect()
    }

    impl Case {
        /// Each row of a stream sees the cells up to its own, and none of the first `hidden` ones.
        fn new(
            n_streams: usize,
            n_rows: usize,
            n_cells: usize,
            heads: (usize, usize),
            dims: (usize, usize),
            hidden: usize,
        ) -> Self {
            let ((n_heads, n_kv_heads), (n_in, n_out)) = (heads, dims);
            let mut mask = vec![HIDDEN; n_streams * n_rows * n_cells];
            for (i, row) in mask.chunks_mut(n_cells).enumerate() {
                let last = n_cells - n_rows + i % n_rows;
                row[hidden.min(last)..=last].fill(0);
            }
            Self {
                n_streams,
                n_rows,
                n_cells,
                n_heads,
                n_kv_heads,
                n_in,
                n_out,
                queries: halves(n_streams * n_rows * n_heads * n_in, 1).into_iter().map(number).collect(),
                keys: halves(n_streams * n_cells * n_kv_heads * n_in, 2),
                values: halves(n_streams * n_cells * n_kv_heads * n_out, 3),
                mask,
            }
        }

        fn raw(&self, out: &mut [f32]) -> sys::hearth_attention {
            sys::hearth_attention {
                queries: self.queries.as_ptr(),
                queries_row: self.n_heads * self.n_in,
                queries_head: self.n_in,
                queries_stream: self.n_rows * self.n_heads * self.n_in,
                keys: self.keys.as_ptr(),
                keys_row: self.n_kv_heads * self.n_in,
                keys_head: self.n_in,
                keys_stream: self.n_cells * self.n_kv_heads * self.n_in,
                values: self.values.as_ptr(),
                values_row: self.n_kv_heads * self.n_out,
                values_head: self.n_out,
                values_stream: self.n_cells * self.n_kv_heads * self.n_out,
                mask: self.mask.as_ptr(),
                mask_row: self.n_cells,
                mask_stream: self.n_rows * self.n_cells,
                out: out.as_mut_ptr(),
                scale: 0.25,
                n_in: self.n_in,
                n_out: self.n_out,
                n_rows: self.n_rows,
                n_cells: self.n_cells,
                n_heads: self.n_heads,
                n_kv_heads: self.n_kv_heads,
                n_streams: self.n_streams,
            }
        }

        fn new_out(&self) -> Vec<f32> {
            vec![f32::NAN; self.n_streams * self.n_rows * self.n_heads * self.n_out]
        }

        /// By the definition.
        fn check(&self, out: &[f32]) {
            for (i, out) in out.chunks(self.n_out).enumerate() {
                let (place, head) = (i / self.n_heads, i % self.n_heads);
                let stream = place / self.n_rows;
                let kv = |cell: usize| {
                    (stream * self.n_cells + cell) * self.n_kv_heads + head / (self.n_heads / self.n_kv_heads)
                };
                let query = &self.queries[i * self.n_in..][..self.n_in];
                let weights: Vec<f64> = (0..self.n_cells)
                    .map(|cell| {
                        let key = &self.keys[kv(cell) * self.n_in..][..self.n_in];
                        let score: f64 =
                            query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(number(*b))).sum();
                        (score * 0.25 + f64::from(number(self.mask[place * self.n_cells + cell]))).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (o, got) in out.iter().enumerate() {
                    let of = |cell: usize| f64::from(number(self.values[kv(cell) * self.n_out + o]));
                    let wanted =
                        weights.iter().enumerate().map(|(cell, weight)| weight * of(cell)).sum::<f64>() / total;
                    assert!((f64::from(*got) - wanted).abs() < 1e-5, "{i}, {o}: {got} {wanted}");
                }
            }
        }
    }

    fn cases() -> [Case; 5] {
        [
            Case::new(1, 64, 64, (4, 4), (32, 32), 0),
            Case::new(2, 70, 300, (14, 2), (64, 64), 0),
            Case::new(1, 65, 1000, (8, 4), (16, 24), 400),
            Case::new(1, 100, 100, (1, 1), (5, 3), 0),
            Case::new(3, 1, 65, (3, 1), (128, 100), 64),
        ]
    }

    #[test]
    fn attention_is_what_the_definition_says() {
        let mut buffers = Buffers::default();
        for case in cases() {
            let mut out = case.new_out();
            Attention { raw: &case.raw(&mut out) }.compute(&Turns::default(), &mut buffers);
            case.check(&out);
        }
    }

    /// Bits of F16's infinity and of one that is not a number.
    const NO_NUMBERS: [u16; 2] = [0x7C00, 0x7E00];

    /// Scores that are no finite numbers spoil the rows that see them, in whichever block, and no others.
    fn spoils_rows_that_see_it(compute: impl Fn(&Attention<'_>)) {
        for (bits, spoilt) in NO_NUMBERS.into_iter().flat_map(|bits| [3, 63, 64, 130, 190].map(|cell| (bits, cell))) {
            let mut case = Case::new(1, 70, 200, (4, 2), (16, 24), 0);
            // One that is positive in every row: the sum of the others is finite.
            case.queries.iter_mut().for_each(|number| *number = number.abs());
            case.keys[(spoilt * case.n_kv_heads + 1) * case.n_in] = bits;
            let mut out = case.new_out();
            compute(&Attention { raw: &case.raw(&mut out) });
            for (i, out) in out.chunks(case.n_out).enumerate() {
                let (row, head) = (i / case.n_heads, i % case.n_heads);
                let sees = spoilt <= case.n_cells - case.n_rows + row && head >= 2;
                let is_as_it_should = |number: &f32| if sees { number.is_nan() } else { number.is_finite() };
                assert!(out.iter().all(is_as_it_should), "{bits:#x}, cell {spoilt}, row {row}, head {head}: {out:?}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden_from_rows_that_see_it() {
        spoils_rows_that_see_it(|attention| attention.compute(&Turns::default(), &mut Buffers::default()));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn nor_is_it_on_cpus_without_avx512() {
        let Some(cpu) = cpu::x86::Avx2::detect() else { return };
        // SAFETY: detected.
        spoils_rows_that_see_it(|it| unsafe { it.avx2(cpu, &Turns::default(), &mut Buffers::default()) });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn cpus_without_avx512_compute_the_same() {
        let Some(cpu) = cpu::x86::Avx2::detect() else { return };
        for case in cases() {
            let mut out = case.new_out();
            // SAFETY: detected.
            unsafe { Attention { raw: &case.raw(&mut out) }.avx2(cpu, &Turns::default(), &mut Buffers::default()) };
            case.check(&out);
        }
    }
}
