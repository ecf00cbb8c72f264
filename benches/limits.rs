//! What the limiter costs a request: its four calls, for a request of six scopes, with one thread and with two.

use hearth::gateway::BudgetSpec;
use hearth::gateway::limits::{Limiter, Limits, Scope, ScopeKind, Spend, WallClock};
use std::time::Instant;

const ROUNDS: u32 = 200_000;

fn main() {
    let limiter: Limiter = Limiter::new(WallClock::default());
    let budget = BudgetSpec {
        max_nusd: Some(i64::MAX / 4),
        max_tokens: Some(i64::MAX / 4),
        period: "1mo".parse().ok(),
        ..Default::default()
    };
    for n_threads in [1, 2] {
        let sums: Vec<[u64; 4]> = std::thread::scope(|threads| {
            let work = || threads.spawn(|| rounds(&limiter, &budget));
            let workers: Vec<_> = (0..n_threads).map(|_| work()).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
        });
        for (n, name) in ["admit", "reserve", "standing", "settle"].iter().enumerate() {
            let ns: u64 = sums.iter().map(|sum| sum[n]).sum::<u64>() / (u64::from(ROUNDS) * n_threads);
            println!("{n_threads} thread(s), 6 scopes: {name:<9} {ns:>5} ns");
        }
    }
}

/// Nanoseconds spent in each call.
fn rounds(limiter: &Limiter, budget: &BudgetSpec) -> [u64; 4] {
    let limits = Limits {
        requests_per_minute: Some(u64::MAX / 4),
        tokens_per_minute: Some(u64::MAX / 4),
        n_parallel: Some(1 << 20),
        n_queue: Some(1 << 20),
        n_output: None,
        class: None,
    };
    let names: Vec<String> = (0..1000).map(|n| format!("key-{n:012}")).collect();
    let mut sums = [0u64; 4];
    for round in 0..ROUNDS {
        let name = &names[round as usize % names.len()];
        let scopes = ScopeKind::ALL.map(|kind| Scope {
            kind,
            id: if kind == ScopeKind::Global { "" } else { name },
            limits,
            budget: matches!(kind, ScopeKind::Key | ScopeKind::Team).then_some(budget),
            created_ms: 0,
        });
        let mut at = Instant::now();
        let mut lap = |n: usize| {
            let now = Instant::now();
            sums[n] += u64::try_from((now - at).as_nanos()).unwrap_or(0);
            at = now;
        };
        let Ok(permit) = limiter.admit(&scopes, 0) else { continue };
        lap(0);
        let reserved = permit.reserve(Spend { tokens: 900, nusd: 1000 });
        lap(1);
        limiter.standing(&scopes);
        lap(2);
        if let Ok(reserved) = reserved {
            reserved.settle(Spend { tokens: 700, nusd: 900 });
        }
        drop(permit);
        lap(3);
    }
    sums
}
