//! What kernels share: a tile of sums in registers, and rows as columns.

use super::cpu::Cpu;

/// Numbers of a cache line.
pub const LINE: usize = 16;
/// Most rows that are transposed at once.
const LINES_MAX: usize = 64;

/// Adds to OUTPUTS × VECTORS vectors of sums: for each input, that of all lanes (VECTORS vectors of a panel, one input behind the
/// other) times the weight of each output. Lines of weights are as long as the panel has inputs, at least. Meanwhile lines that
/// are wanted `next` are asked for.
#[inline(always)]
pub fn accumulate<C: Cpu, const VECTORS: usize, const OUTPUTS: usize>(
    cpu: C,
    panel: &[f32],
    weights: [&[f32]; OUTPUTS],
    next: Option<[&[f32]; OUTPUTS]>,
    mut sums: [[C::Vector; VECTORS]; OUTPUTS],
) -> [[C::Vector; VECTORS]; OUTPUTS] {
    let depth = panel.len() / (VECTORS * C::LANES);
    let weights = weights.map(|line| &line[..depth]);
    for (input, lanes) in panel.chunks_exact(VECTORS * C::LANES).enumerate() {
        let mut rows = [cpu.all(0.0); VECTORS];
        for (v, rows) in rows.iter_mut().enumerate() {
            *rows = cpu.load(&lanes[v * C::LANES..]);
        }
        if let Some(next) = next.as_ref().filter(|_| input % LINE == 0) {
            next.iter().filter_map(|line| line.get(input)).for_each(|number| cpu.prefetch(number));
        }
        for o in 0..OUTPUTS {
            // SAFETY: every line is as long as the depth, which is how many chunks the panel has.
            let weight = cpu.all(unsafe { *weights[o].get_unchecked(input) });
            for v in 0..VECTORS {
                sums[o][v] = cpu.add_product(sums[o][v], rows[v], weight);
            }
        }
    }
    sums
}

/// Copies lines of `depth` numbers, `width` at most, so that the first ones of all lie side by side, then the second ones and so
/// on; lines that are missing are zeros.
#[inline(always)]
pub fn transpose<'a>(lines: impl Iterator<Item = &'a [f32]>, to: &mut [f32], width: usize, depth: usize) {
    let mut all: [&[f32]; LINES_MAX] = [&[]; LINES_MAX];
    let n_lines = all.iter_mut().zip(lines).map(|(to, line)| *to = line).count();
    for first in (0..width).step_by(LINE) {
        let n = LINE.min(width - first);
        let lines = &all[first..][..n];
        // Squares of whole lines of the cache, where there are as many.
        let in_squares = if n == LINE && first + n <= n_lines { depth / LINE * LINE } else { 0 };
        for at in (0..in_squares).step_by(LINE) {
            let mut square = [[0.0; LINE]; LINE];
            for (to, line) in square.iter_mut().zip(lines) {
                to.copy_from_slice(&line[at..][..LINE]);
            }
            for k in 0..LINE {
                let side: [f32; LINE] = std::array::from_fn(|i| square[i][k]);
                to[(at + k) * width + first..][..LINE].copy_from_slice(&side);
            }
        }
        for at in in_squares..depth {
            for (to, line) in to[at * width + first..][..n].iter_mut().zip(lines) {
                *to = line.get(at).copied().unwrap_or(0.0);
            }
        }
    }
}
