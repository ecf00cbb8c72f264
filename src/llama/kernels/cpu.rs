//! The instructions that kernels are written for.

/// A kind of CPU: a value of it exists only where its instructions do.
pub trait Cpu: Copy {
    /// Some numbers, each of another row.
    type Vector: Copy;
    /// How many.
    const LANES: usize;
    /// `LANES` times the same number.
    fn all(self, number: f32) -> Self::Vector;
    /// `from` holds at least `LANES`.
    fn load(self, from: &[f32]) -> Self::Vector;
    fn store(self, vector: Self::Vector, to: &mut [f32]);
    fn subtract(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where it is not a number.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// sum + a × b, rounded once.
    fn add_product(self, sum: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The lowest nine bits of each lane as sign and exponent.
    fn as_exponent(self, vector: Self::Vector) -> Self::Vector;
    /// 0 where `x` is below `lowest`, or else `number`: also where `x` is not a number.
    fn where_not_below(self, x: Self::Vector, lowest: Self::Vector, number: Self::Vector) -> Self::Vector;
    /// Asks for the line of the cache that holds it, where Rust has a way to.
    fn prefetch<T>(self, _at: &T) {}

    /// e^x of numbers that are not above 0, within 3e-7 of it; 0 below -87. Of what is not a number it is none either.
    ///
    /// e^x = 2^n × e^r with a whole n and |r| <= ln(2)/2, which is taken off in two steps so that it is exact (Cody and Waite,
    /// "Software Manual for the Elementary Functions", 1980), and a Taylor series for e^r.
    #[inline(always)]
    fn exp(self, x: Self::Vector) -> Self::Vector {
        const LOWEST: f32 = -87.0;
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        // Added to a number, it leaves a whole one in the lowest bits; 127 more are the exponent's bias.
        const WHOLE: f32 = 12_582_912.0;
        let lowest = self.all(LOWEST);
        let bounded = self.max(lowest, x);
        let shifted = self.add_product(self.all(WHOLE + 127.0), bounded, self.all(std::f32::consts::LOG2_E));
        let n = self.subtract(shifted, self.all(WHOLE + 127.0));
        let r = self.add_product(bounded, n, self.all(-LN_2_HIGH));
        let r = self.add_product(r, n, self.all(-LN_2_LOW));
        let mut sum = self.all(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = self.add_product(self.all(coefficient), sum, r);
        }
        self.where_not_below(x, lowest, self.multiply(sum, self.as_exponent(shifted)))
    }
}

/// Each operation is a call of intrinsics, and their SAFETY the same: the instructions are there, since the value is.
macro_rules! operations {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $out:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $type),*) $(-> $out)? {
                // SAFETY: above; slices are as long as is read or written.
                unsafe { $body }
            }
        )*
    };
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use super::Cpu;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(());

    impl Avx512 {
        pub fn detect() -> Option<Self> {
            is_x86_feature_detected!("avx512f").then_some(Self(()))
        }
    }

    impl Cpu for Avx512 {
        type Vector = __m512;
        const LANES: usize = 16;
        operations! {
            all(number: f32) -> __m512 = _mm512_set1_ps(number);
            load(from: &[f32]) -> __m512 = _mm512_loadu_ps(from[..16].as_ptr());
            store(vector: __m512, to: &mut [f32]) = _mm512_storeu_ps(to[..16].as_mut_ptr(), vector);
            subtract(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            multiply(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            add_product(sum: __m512, a: __m512, b: __m512) -> __m512 = _mm512_fmadd_ps(a, b, sum);
            as_exponent(vector: __m512) -> __m512 =
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(vector)));
            where_not_below(x: __m512, lowest: __m512, number: __m512) -> __m512 =
                _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, lowest), number);
        }

        #[inline(always)]
        fn prefetch<T>(self, at: &T) {
            // SAFETY: a hint, of any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *at).cast()) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }
    }

    impl Cpu for Avx2 {
        type Vector = __m256;
        const LANES: usize = 8;
        operations! {
            all(number: f32) -> __m256 = _mm256_set1_ps(number);
            load(from: &[f32]) -> __m256 = _mm256_loadu_ps(from[..8].as_ptr());
            store(vector: __m256, to: &mut [f32]) = _mm256_storeu_ps(to[..8].as_mut_ptr(), vector);
            subtract(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            multiply(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            add_product(sum: __m256, a: __m256, b: __m256) -> __m256 = _mm256_fmadd_ps(a, b, sum);
            as_exponent(vector: __m256) -> __m256 =
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(vector)));
            where_not_below(x: __m256, lowest: __m256, number: __m256) -> __m256 =
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, lowest), number);
        }

        #[inline(always)]
        fn prefetch<T>(self, at: &T) {
            // SAFETY: a hint, of any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *at).cast()) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub mod arm {
    use super::Cpu;
    use std::arch::aarch64::*;

    /// Its instructions are part of every CPU that Rust's aarch64 targets are for.
    #[derive(Clone, Copy)]
    pub struct Neon;

    impl Cpu for Neon {
        type Vector = float32x4_t;
        const LANES: usize = 4;
        operations! {
            all(number: f32) -> float32x4_t = vdupq_n_f32(number);
            load(from: &[f32]) -> float32x4_t = vld1q_f32(from[..4].as_ptr());
            store(vector: float32x4_t, to: &mut [f32]) = vst1q_f32(to[..4].as_mut_ptr(), vector);
            subtract(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
            multiply(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
            max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmaxq_f32(a, b);
            add_product(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t = vfmaq_f32(sum, a, b);
            as_exponent(vector: float32x4_t) -> float32x4_t =
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(vector)));
            where_not_below(x: float32x4_t, lowest: float32x4_t, number: float32x4_t) -> float32x4_t =
                vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(number), vcltq_f32(x, lowest)));
        }
    }
}
