//! Operations of llama.cpp's graphs that are computed here instead of in ggml, on a CPU: where that was measured to be faster.
//!
//! # Design
//! ggml computes a number as the sum of a vector's lanes. Here lanes are rows: a tile of them by a few outputs stays in registers
//! while the other operand is read as it lies, one number for all lanes (the microkernel of Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", 2008, with the roles such that only rows are copied, which are fewer than weights).
//!
//! The shim (`shim/hearth_graph.cpp`) hands nodes over before they are computed; ggml's threads run them as any other, each of them
//! every node, with a barrier after it. They take work by turns, since one may have less of its core than another. Figures in
//! benches/README.md.

mod attention;
mod cpu;
mod product;
mod tile;

use super::sys;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What computes such operations for a context, which it outlives.
pub(super) struct Kernels {
    raw: Box<sys::hearth_kernels>,
    _turns: Box<Turns>,
}

// SAFETY: the pointers are to what it owns, which any thread may use.
unsafe impl Send for Kernels {}

/// Which operations.
#[derive(Debug, Clone, Copy)]
pub struct KernelChoice {
    /// Products with matrices of F32.
    pub products: bool,
    /// Attention over keys and values of F16, where a sequence has many rows.
    pub attention: bool,
}

impl Kernels {
    /// `None` where the CPU is none of the kinds that they are written for.
    pub(super) fn new(choice: KernelChoice) -> Option<Self> {
        if !is_supported() {
            return None;
        }
        let turns = Box::<Turns>::default();
        let user: *const Turns = &raw const *turns;
        let raw = Box::new(sys::hearth_kernels {
            multiply: choice.products.then_some(multiply as _),
            attend: choice.attention.then_some(attend as _),
            user: user.cast_mut().cast(),
        });
        Some(Self { raw, _turns: turns })
    }

    pub(super) fn as_ptr(&self) -> *const sys::hearth_kernels {
        &raw const *self.raw
    }
}

fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return cpu::x86::Avx2::detect().is_some();
    #[cfg(target_arch = "aarch64")]
    return true;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Whose turn it is, for one operation after another.
#[derive(Default)]
struct Turns {
    next: AtomicUsize,
    n_done: AtomicUsize,
}

impl Turns {
    fn take(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// This thread takes no more; the last one lays out the turns of the next operation, which begins after ggml's barrier.
    fn end(&self, n_threads: i32) {
        if self.n_done.fetch_add(1, Ordering::AcqRel) + 1 == usize::try_from(n_threads).unwrap_or(1) {
            self.n_done.store(0, Ordering::Relaxed);
            self.next.store(0, Ordering::Release);
        }
    }
}

/// # Safety
/// The shapes and strides are those of memory that lives during the call, `out` is no one else's, and `user` is a [`Turns`].
unsafe extern "C" fn multiply(product: *const sys::hearth_product, n_threads: i32, user: *mut c_void) {
    // SAFETY: as the caller vouches.
    let turns = unsafe { &*user.cast::<Turns>() };
    // SAFETY: the same.
    unsafe { product::share(&*product, turns) };
    turns.end(n_threads);
}

/// # Safety
/// As [`multiply`]'s.
unsafe extern "C" fn attend(attention: *const sys::hearth_attention, n_threads: i32, user: *mut c_void) {
    // SAFETY: as the caller vouches.
    let turns = unsafe { &*user.cast::<Turns>() };
    // SAFETY: the same.
    unsafe { attention::share(&*attention, turns) };
    turns.end(n_threads);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::speculator::tests::{model, params};
    use crate::llama::{Batch, Context, ContextParams, Decoded, PoolingType};
    use std::sync::Arc;

    /// As a graph calls it: every thread for every node, with a barrier between nodes; rows of `out` lie apart.
    #[test]
    fn threads_share_one_product_after_another() {
        const N_THREADS: i32 = 3;
        struct Shared(*const sys::hearth_kernels, *mut f32);
        // SAFETY: threads write different columns, and read nothing before all are done.
        unsafe impl Sync for Shared {}
        let Some(kernels) = Kernels::new(KernelChoice { products: true, attention: false }) else { return };
        let barrier = std::sync::Barrier::new(N_THREADS as usize);
        for (n_rows, n_out, n_in) in [(1, 1, 1), (17, 50, 100), (145, 97, 513), (300, 49, 70)] {
            let (rows, weights) = (vec![0.5; n_rows * n_in], vec![2.0; n_out * n_in]);
            let stride = n_out + 5;
            let mut out = vec![f32::NAN; n_rows * stride];
            let shared = Shared(kernels.as_ptr(), out.as_mut_ptr());
            std::thread::scope(|scope| {
                for _ in 0..N_THREADS {
                    scope.spawn(|| {
                        let shared = &shared;
                        let product = sys::hearth_product {
                            weights: weights.as_ptr(),
                            rows: rows.as_ptr(),
                            out: shared.1,
                            n_in,
                            n_out,
                            n_rows,
                            weights_stride: n_in,
                            rows_stride: n_in,
                            out_stride: stride,
                        };
                        for _ in 0..3 {
                            // SAFETY: all of it lives, and has these shapes; the kernels are there.
                            unsafe { multiply(&raw const product, N_THREADS, (*shared.0).user) };
                            barrier.wait();
                        }
                    });
                }
            });
            for row in out.chunks(stride) {
                assert!(row[..n_out].iter().all(|sum| *sum == n_in as f32), "{n_rows}, {n_out}, {n_in}");
                assert!(row[n_out..].iter().all(|i| i.is_nan()), "{n_rows}, {n_out}, {n_in}");
            }
        }
    }

    /// Vectors or logits of the last of `n_rows` rows, by a context of a real model.
    fn last_row(name: &str, n_rows: i32, pooling: Option<PoolingType>, kernels: Option<KernelChoice>) -> Vec<f32> {
        let params = ContextParams {
            n_ctx: 512,
            n_batch: 512,
            n_ubatch: 512,
            n_seq_max: 1,
            n_outputs_max: 512,
            n_threads: 2,
            n_threads_batch: 2,
            flash_attn: Some(true),
            kv_unified: true,
            pooling,
            kernels,
            ..params()
        };
        let mut context = Context::new(&model(name), params, Arc::new(|| false)).expect("a context");
        let mut batch = Batch::default();
        for position in 0..n_rows {
            batch.push(1 + position * 7 % 200, position, 0, pooling.is_some() || position == n_rows - 1);
        }
        // Twice, the second time over a graph that was changed already where llama.cpp keeps it.
        for _ in 0..2 {
            context.seq_rm(0, 0).expect("room");
            assert_eq!(context.decode(&mut batch).expect("a decode"), Decoded::Done);
        }
        match pooling {
            Some(_) => context.pooled(0).expect("a vector").to_vec(),
            None => context.logits(n_rows - 1).expect("logits").to_vec(),
        }
    }

    #[test]
    fn models_answer_as_with_ggmls_own() {
        let all = Some(KernelChoice { products: true, attention: true });
        let cases = [
            // Of F32: where activations are rounded to 8 bits on the way, a last bit becomes more.
            ("stories260K", 64, None),
            ("stories260K", 200, None),
            ("tiny/tiny-bert", 64, Some(PoolingType::Mean)),
            ("tiny/tiny-bert", 3, Some(PoolingType::Mean)),
        ];
        for (name, n_rows, pooling) in cases {
            let (ours, ggmls) = (last_row(name, n_rows, pooling, all), last_row(name, n_rows, pooling, None));
            let scale = ggmls.iter().fold(0_f32, |most, x| most.max(x.abs()));
            let apart = ours.iter().zip(&ggmls).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart < 2e-3 * scale, "{name}, {n_rows} rows: {apart} of {scale} apart");
            // Sums in another order are never all the same: the kernels were used.
            assert!(apart > 0.0 || !is_supported(), "{name}, {n_rows} rows: computed by ggml");
        }
    }
}
