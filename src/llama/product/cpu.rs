//! The instructions that products are written for.

/// A kind of CPU: it exists only where its instructions do.
pub trait Cpu: Copy {
    /// Some numbers, each of another row.
    type Vector: Copy;
    /// How many.
    const LANES: usize;
    fn zero(self) -> Self::Vector;
    /// `from` holds at least `LANES`.
    fn load(self, from: &[f32]) -> Self::Vector;
    fn store(self, vector: Self::Vector, to: &mut [f32]);
    /// sum + a × b, rounded once.
    fn add_product(self, sum: Self::Vector, a: Self::Vector, b: f32) -> Self::Vector;
    /// Asks for the line of the cache that holds it, where Rust has a way to.
    fn prefetch(self, _number: &f32) {}
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use super::Cpu;
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    macro_rules! cpu {
        ($name:ident, $vector:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $set:ident, $fma:ident) => {
            #[derive(Clone, Copy)]
            pub struct $name(());

            // SAFETY (of all calls): a value exists only where `detect` found the instructions.
            impl Cpu for $name {
                type Vector = $vector;
                const LANES: usize = $lanes;

                #[inline(always)]
                fn zero(self) -> $vector {
                    // SAFETY: above.
                    unsafe { $zero() }
                }

                #[inline(always)]
                fn load(self, from: &[f32]) -> $vector {
                    // SAFETY: above; the numbers are there.
                    unsafe { $load(from[..$lanes].as_ptr()) }
                }

                #[inline(always)]
                fn store(self, vector: $vector, to: &mut [f32]) {
                    // SAFETY: above; there is place for them.
                    unsafe { $store(to[..$lanes].as_mut_ptr(), vector) }
                }

                #[inline(always)]
                fn add_product(self, sum: $vector, a: $vector, b: f32) -> $vector {
                    // SAFETY: above.
                    unsafe { $fma(a, $set(b), sum) }
                }

                #[inline(always)]
                fn prefetch(self, number: &f32) {
                    // SAFETY: a hint, of any address.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *number).cast()) }
                }
            }
        };
    }

    cpu!(Avx512, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps);
    cpu!(Avx2, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);

    impl Avx512 {
        pub fn detect() -> Option<Self> {
            is_x86_feature_detected!("avx512f").then_some(Self(()))
        }
    }

    impl Avx2 {
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub mod arm {
    use super::Cpu;
    use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_n_f32, vld1q_f32, vst1q_f32};

    /// Its instructions are part of every CPU that Rust's aarch64 targets are for.
    #[derive(Clone, Copy)]
    pub struct Neon;

    // SAFETY (of all calls): above.
    impl Cpu for Neon {
        type Vector = float32x4_t;
        const LANES: usize = 4;

        #[inline(always)]
        fn zero(self) -> float32x4_t {
            // SAFETY: above.
            unsafe { vdupq_n_f32(0.0) }
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> float32x4_t {
            // SAFETY: above; the numbers are there.
            unsafe { vld1q_f32(from[..4].as_ptr()) }
        }

        #[inline(always)]
        fn store(self, vector: float32x4_t, to: &mut [f32]) {
            // SAFETY: above; there is place for them.
            unsafe { vst1q_f32(to[..4].as_mut_ptr(), vector) }
        }

        #[inline(always)]
        fn add_product(self, sum: float32x4_t, a: float32x4_t, b: f32) -> float32x4_t {
            // SAFETY: above.
            unsafe { vfmaq_n_f32(sum, a, b) }
        }
    }
}
