//! A context's threads, for the items of a slice between two decodes: samplers, each with its own state, or rows of logits.
//!
//! # Design
//! They spin for a while after each decode, so as to be there at once for the next; threads of another pool would wait for
//! a core behind them (measured on two cores: nothing was won).

use super::sys;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The threads, while their context computes nothing.
pub struct Team<'a> {
    pool: Option<NonNull<sys::hearth_pool>>,
    context: PhantomData<&'a mut ()>,
}

/// What each thread does: take items until there are none.
struct Errand<'a> {
    body: &'a (dyn Fn() + Sync),
    has_panicked: AtomicBool,
}

unsafe extern "C" fn run(user: *mut c_void) {
    // SAFETY: the errand that `each` handed over, which waits for all calls.
    let errand = unsafe { &*user.cast::<Errand<'_>>() };
    if catch_unwind(AssertUnwindSafe(errand.body)).is_err() {
        errand.has_panicked.store(true, Ordering::Relaxed);
    }
}

impl Team<'_> {
    /// Threads of a pool, whose context is borrowed as long.
    pub(super) fn of(pool: Option<NonNull<sys::hearth_pool>>) -> Self {
        Self { pool, context: PhantomData }
    }

    /// Calls `body` once for each item, on this thread and others, up to `n_threads` in all, and returns when all are done.
    ///
    /// # Panics
    /// Where `body` did.
    pub fn each<T: Send>(&mut self, items: &mut [T], n_threads: usize, body: impl Fn(&mut T) + Sync) {
        let n_threads = i32::try_from(n_threads.min(items.len())).unwrap_or(i32::MAX);
        let Some(pool) = self.pool.filter(|_| n_threads > 1) else { return items.iter_mut().for_each(body) };
        let (n, next, items) = (items.len(), AtomicUsize::new(0), Items(items.as_mut_ptr()));
        let take = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= n {
                    return;
                }
                // SAFETY: below the slice's length, and each place is handed out once.
                body(unsafe { items.at(at) });
            }
        };
        let errand = Errand { body: &take, has_panicked: AtomicBool::new(false) };
        let user: *const Errand<'_> = &raw const errand;
        // SAFETY: the pool lives, and its context computes nothing while it is borrowed; the errand outlives the call, which
        // returns when every thread is through with it.
        let ran = sys::call(|err| unsafe {
            sys::hearth_pool_run(pool.as_ptr(), n_threads, Some(run), user.cast_mut().cast(), err)
        });
        if let Err(error) = ran {
            tracing::debug!(%error, "a context's threads did not help");
            take();
        }
        assert!(!errand.has_panicked.load(Ordering::Relaxed), "work between two decodes panicked; this is a bug");
    }
}

/// The items, which helpers take one by one.
struct Items<T>(*mut T);

// SAFETY: each item is used by one thread only, to which it may go.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    /// # Safety
    /// `at` is below the length, and asked for once.
    #[expect(clippy::mut_from_ref, reason = "each place is handed out once")]
    unsafe fn at(&self, at: usize) -> &mut T {
        // SAFETY: as the caller sees to.
        unsafe { &mut *self.0.add(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::speculator::tests::{model, params};
    use super::super::{Context, ContextParams};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn each_item_is_seen_once_by_whoever_has_time_and_a_panic_comes_back() {
        for n_threads in [1, 2] {
            let params = ContextParams { n_threads, n_threads_batch: n_threads, ..params() };
            let mut context = Context::new(&model("stories260K"), params, Arc::new(|| false)).expect("a context");
            let (_, mut team) = context.rows(std::iter::empty());
            for n in [0, 1, 2, 64] {
                let mut items: Vec<usize> = (0..n).collect();
                team.each(&mut items, 2, |item| *item += 1);
                assert_eq!(items, (1..=n).collect::<Vec<_>>());
            }
            let mut items = [1, 2, 3];
            let failed = catch_unwind(AssertUnwindSafe(|| team.each(&mut items, 2, |item| assert_ne!(*item, 2))));
            assert!(failed.is_err());
            if n_threads > 1 {
                // Two that wait for one another: neither thread could do both.
                let (both, mut threads) = (std::sync::Barrier::new(2), [None; 2]);
                team.each(&mut threads, 2, |thread| {
                    both.wait();
                    *thread = Some(std::thread::current().id());
                });
                assert!(threads[0].is_some() && threads[0] != threads[1]);
            }
        }
    }
}
