//! How far an answer that is computed anew must be the one before.

/// Whether it must be the same: a CPU rounds these models' rows alike beside other rows. A GPU does not.
pub fn is_exact() -> bool {
    !hearth::engine::has_gpu_code()
}

/// The greatest distance of vectors of unit length that may be rounding: `here` on a CPU.
pub fn rounding(here: f32) -> f32 {
    if is_exact() { here } else { here.max(1e-2) }
}

/// Whether two greedy answers may be those of one request. Where they are rounded otherwise a choice may tip over, and all
/// behind it.
pub fn is_alike(one: &str, other: &str) -> bool {
    if is_exact() { one == other } else { one.chars().next() == other.chars().next() }
}
