//! T-L5: the interleavings of three threads, by loom: all of two threads, of three those with at most two preemptions
//! (all of them are more than an hour's work, and the steps between two locks touch nothing that is shared).

use super::core::Core;
use super::limit_tests::{TestClock, scope};
use super::*;
use crate::gateway::spec::BudgetSpec;
use loom::sync::Mutex;

impl Lock for Mutex<Core> {
    fn new(core: Core) -> Self {
        Mutex::new(core)
    }

    fn with<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        work(&mut self.lock().unwrap())
    }
}

/// How a thread ends its request.
#[derive(Debug, Clone, Copy)]
enum End {
    Settled,
    Dropped,
    Refused,
}

fn explore(ends: &'static [End], preemptions_max: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions_max;
    model.check(move || {
        let limiter: Limiter<Mutex<Core>> = Limiter::new(TestClock::default());
        let threads: Vec<_> = ends
            .iter()
            .map(|end| {
                let limiter = limiter.clone();
                loom::thread::spawn(move || request(&limiter, *end))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(limiter.in_use(ScopeKind::Key, "k"), (0, 0));
        let (spent, reserved, _) = limiter.budget(ScopeKind::Key, "k").expect("it was seen");
        assert!(spent.tokens == 0 || spent.tokens == 30);
        assert_eq!(reserved, Spend::default());
    });
}

/// One request of a key that may have two at once and 100 tokens.
fn request(limiter: &Limiter<Mutex<Core>>, end: End) {
    let limits = Limits {
        requests_per_minute: Some(3),
        tokens_per_minute: Some(100),
        n_parallel: Some(2),
        ..Default::default()
    };
    let budget = BudgetSpec { max_tokens: Some(100), ..Default::default() };
    let key = Scope { budget: Some(&budget), ..scope(ScopeKind::Key, "k", limits) };
    let Ok(permit) = limiter.admit(&[key], 0) else { return };
    let n = match end {
        End::Settled => 60,
        End::Dropped => 50,
        End::Refused => 101,
    };
    let reserved = permit.reserve(Spend { tokens: n, nusd: 0 });
    match (end, reserved) {
        (End::Refused, reserved) => assert!(reserved.is_err()),
        (End::Settled, Ok(reserved)) => reserved.settle(Spend { tokens: 30, nusd: 0 }),
        (_, reserved) => drop((permit, reserved.is_ok())),
    }
}

#[test]
fn no_interleaving_of_two_threads_loses_a_place_or_a_token() {
    explore(&[End::Settled, End::Dropped], None);
    explore(&[End::Settled, End::Refused], None);
}

#[test]
fn no_interleaving_of_three_threads_does() {
    explore(&[End::Settled, End::Dropped, End::Refused], Some(2));
}
