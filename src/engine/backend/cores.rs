//! How many threads a decode should have.

use std::collections::HashSet;
use std::fs;

/// Threads for each of `n_workers` contexts: the physical cores this process may use, shared among them.
///
/// More threads than cores are worse than none: ggml's barriers spin, and a spinning thread without a core costs the
/// others a scheduler's slice per graph node.
pub(super) fn for_decode(n_workers: u32) -> u32 {
    // Honours affinity and the cgroup's CPU quota.
    let allowed = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let physical = physical().unwrap_or(allowed);
    (allowed.min(physical) / n_workers.max(1)).max(1)
}

/// Distinct sets of sibling threads; `None` where the system doesn't tell.
fn physical() -> Option<u32> {
    let mut siblings = HashSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let list = entry.path().join("topology/thread_siblings_list");
        if let Ok(list) = fs::read_to_string(list) {
            siblings.insert(list.trim().to_owned());
        }
    }
    u32::try_from(siblings.len()).ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_always_a_thread_and_never_more_than_allowed() {
        let alone = super::for_decode(1);
        let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        assert!(alone >= 1 && alone as usize <= allowed);
        assert_eq!(super::for_decode(10_000), 1);
    }
}
