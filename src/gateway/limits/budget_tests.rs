//! T-B1 and T-B4: budgets are never overspent and begin anew once.

use super::limit_tests::{TestClock, scope};
use super::*;
use crate::gateway::spec::{BudgetSpec, Period};
use jiff::Timestamp;
use rand::RngExt;
use std::time::Duration;

fn tokens(tokens: u64) -> Spend {
    Spend { tokens, nusd: 0 }
}

fn of_tokens(max: i64, period: Option<Period>) -> BudgetSpec {
    BudgetSpec { max_tokens: Some(max), period, ..Default::default() }
}

fn calendar(text: &str, tz: &str) -> Option<Period> {
    Some(Period { calendar: true, tz: Some(tz.to_owned()), ..text.parse().unwrap() })
}

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

fn key(budget: &BudgetSpec) -> [Scope<'_>; 1] {
    [Scope { budget: Some(budget), ..scope(ScopeKind::Key, "k", Limits::default()) }]
}

/// Takes and ends a request of `n` tokens; whether it was let in.
fn spend(limiter: &Limiter, budget: &BudgetSpec, n: u64) -> bool {
    let Ok(permit) = limiter.admit(&key(budget), 0) else { return false };
    permit.reserve(tokens(n)).map(|reserved| reserved.settle(tokens(n))).is_ok()
}

fn spent(limiter: &Limiter) -> u64 {
    limiter.budget(ScopeKind::Key, "k").map_or(0, |(spent, ..)| spent.tokens)
}

/// T-B1: 64 clients race for 10,000 tokens.
#[test]
fn a_budget_is_never_overspent() {
    let budget = of_tokens(10_000, None);
    let limiter: Limiter = Limiter::new(WallClock::default());
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let refusals: Vec<LimitRefusal> = std::thread::scope(|threads| {
        let client = |n: u64| {
            let (limiter, budget) = (&limiter, &budget);
            move || {
                let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(seed ^ n);
                let mut refusals = Vec::new();
                for _ in 0..200 {
                    let estimate = rng.random_range(1..400);
                    let admitted = limiter.admit(&key(budget), 0);
                    let reserved = admitted.and_then(|permit| permit.reserve(tokens(estimate)));
                    let (spent, reserved_now, _) = limiter.budget(ScopeKind::Key, "k").expect("seen");
                    assert!(spent.tokens + reserved_now.tokens <= 10_000, "seed {seed}");
                    match reserved {
                        Ok(reserved) => reserved.settle(tokens(rng.random_range(1..=estimate))),
                        Err(refusal) => refusals.push(refusal),
                    }
                }
                refusals
            }
        };
        let clients: Vec<_> = (0..64).map(|n| threads.spawn(client(n))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert!(!refusals.is_empty() && refusals.iter().all(|refusal| refusal.kind == LimitKind::BudgetTokens));
    assert!(refusals.iter().all(|refusal| refusal.retry_after.is_none()), "there is no next period");
    let left = 10_000 - spent(&limiter);
    // All of it can be spent, to the last token.
    assert!(spend(&limiter, &budget, left) || left == 0);
    assert_eq!(spent(&limiter), 10_000);
    assert!(limiter.admit(&key(&budget), 0).is_err(), "a spent budget refuses before any work");
}

#[test]
fn money_is_reserved_too_and_what_is_free_needs_none() {
    let budget = BudgetSpec { max_nusd: Some(1000), soft_nusd: Some(500), ..Default::default() };
    let limiter: Limiter = Limiter::new(TestClock::default());
    let ask = |tokens, nusd| limiter.admit(&key(&budget), 0).unwrap().reserve(Spend { tokens, nusd });
    let first = ask(5, 900).unwrap();
    let refusal = ask(5, 101).map(drop).expect_err("too dear");
    let expected = (LimitKind::Money, 1000, 900, 101);
    assert_eq!((refusal.kind, refusal.limit, refusal.used, refusal.requested), expected);
    drop(ask(1_000_000, 0).map_err(|_| "it is free").unwrap());
    // An upstream's answer may cost more than was thought; the budget remembers, and what is free goes on.
    first.settle(Spend { tokens: 5, nusd: 1300 });
    assert_eq!(limiter.budget(ScopeKind::Key, "k").map(|(spent, ..)| spent.nusd), Some(1300));
    assert!(ask(1, 1).is_err() && ask(9, 0).is_ok());
    // So it is with tokens, for whom was let in before they were spent.
    let budget = of_tokens(10, None);
    let limiter: Limiter = Limiter::new(TestClock::default());
    let (first, second) = (limiter.admit(&key(&budget), 0).unwrap(), limiter.admit(&key(&budget), 0).unwrap());
    let reservation = first.reserve(Spend { tokens: 10, nusd: 0 }).unwrap();
    reservation.settle(Spend { tokens: 15, nusd: 0 });
    assert!(second.reserve(Spend::default()).is_ok());
}

#[test]
fn a_soft_limit_is_told_once_when_it_is_come_to() {
    let budget = BudgetSpec { max_nusd: Some(1000), soft_nusd: Some(500), ..Default::default() };
    let now = Now { mono: std::time::Duration::ZERO, wall_ms: 0 };
    let mut core = Core::default();
    let mut warned = |nusd| {
        let ticket = core.admit(now, &key(&budget), 0).expect("it is let in");
        let held = core.reserve(now, &ticket, Spend { tokens: 1, nusd: 100 }).expect("there is money");
        core.settle(held, Spend { tokens: 1, nusd });
        core.release(ticket);
        core.take_warnings().iter().map(|warning| (warning.kind, warning.id.to_string())).collect::<Vec<_>>()
    };
    assert_eq!((warned(400), warned(99)), (vec![], vec![]), "499 are spent");
    assert_eq!(warned(1), [(ScopeKind::Key, "k".to_owned())], "and now 500");
    assert_eq!((warned(0), warned(100)), (vec![], vec![]));
}

#[test]
fn what_is_left_is_the_least_of_all_that_counts() {
    let now = Now { mono: std::time::Duration::ZERO, wall_ms: 0 };
    let budget = of_tokens(100, None);
    let rate = |n| Limits { tokens_per_minute: Some(n), ..Default::default() };
    let cases = [
        (Limits::default(), None, None),
        (rate(50), None, Some(50)),
        (rate(150), Some(&budget), Some(93)),
        (rate(50), Some(&budget), Some(50)),
        (Limits::default(), Some(&budget), Some(93)),
    ];
    for (limits, budget, left) in cases {
        let mut core = Core::default();
        let scopes = [Scope { kind: ScopeKind::Key, id: "k", limits, budget, created_ms: 0 }];
        let ticket = core.admit(now, &scopes, 0).expect("it is let in");
        let held = core.reserve(now, &ticket, tokens(7)).expect("there are tokens");
        assert_eq!((core.tokens_left(now, &ticket), core.counts(&ticket)), (left, left.is_some()));
        core.settle(held, tokens(7));
        core.release(ticket);
        assert_eq!(core.in_use(ScopeKind::Key, "k"), (0, 0));
    }
}

/// T-B4: one reset at the zone's own midnight, in a night of 23 hours, one of 25, and at the end of a leap February.
#[test]
fn a_calendar_budget_begins_anew_once() {
    for (period, tz, before, boundary) in [
        ("1d", "Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T22:00:00Z"),
        ("1d", "Europe/Berlin", "2026-10-24T22:30:00Z", "2026-10-25T23:00:00Z"),
        ("1mo", "UTC", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("1w", "America/New_York", "2026-11-01T12:00:00Z", "2026-11-02T05:00:00Z"),
    ] {
        let budget = of_tokens(100, calendar(period, tz));
        let clock = TestClock::default();
        let limiter: Limiter = Limiter::new(clock.clone());
        let mut n_resets = 0;
        let mut last = 0;
        clock.set_wall(ms(before));
        assert!(spend(&limiter, &budget, 100));
        let end = ms(boundary);
        let mut at = ms(before);
        while at < end + 3_600_000 {
            at += 600_000;
            clock.set_wall(at);
            let is_in = spend(&limiter, &budget, 1);
            assert_eq!(is_in, at >= end, "{period} {tz} at {at}, the boundary is {end}");
            n_resets += u32::from(spent(&limiter) < last);
            last = spent(&limiter);
        }
        assert_eq!(n_resets, 1, "{period} {tz}");
    }
}

/// T-B4: a wall clock that is set forward and back by an hour around midnight gives the budget anew once.
#[test]
fn clock_steps_give_nothing_twice() {
    let budget = of_tokens(100, calendar("1d", "UTC"));
    let clock = TestClock::default();
    let limiter: Limiter = Limiter::new(clock.clone());
    let go = |text: &str| clock.set_wall(ms(text));
    go("2026-05-01T23:30:00Z");
    assert!(spend(&limiter, &budget, 100) && !spend(&limiter, &budget, 1));
    go("2026-05-02T00:30:00Z");
    assert!(spend(&limiter, &budget, 60));
    go("2026-05-01T23:30:00Z");
    assert!(!spend(&limiter, &budget, 41), "the new day's spending stays");
    assert!(spend(&limiter, &budget, 30));
    go("2026-05-02T00:10:00Z");
    assert!(!spend(&limiter, &budget, 11), "and midnight gives nothing again");
    assert!(spend(&limiter, &budget, 10));
    // Set a year ahead by mistake: the budget does not wait for that year to come back.
    go("2027-05-02T00:10:00Z");
    assert!(spend(&limiter, &budget, 100));
    go("2026-05-02T01:00:00Z");
    assert!(!spend(&limiter, &budget, 1), "nothing is forgotten");
    go("2026-05-03T00:00:00Z");
    assert!(spend(&limiter, &budget, 100));
}

/// A clock that is set back by exactly a period is waited for; by more, it is followed.
#[test]
fn a_budget_follows_a_clock_that_is_set_back_by_more_than_a_period() {
    let budget = of_tokens(100, calendar("1d", "UTC"));
    let clock = TestClock::default();
    let limiter: Limiter = Limiter::new(clock.clone());
    let start = ms("2026-05-02T00:00:00Z");
    clock.set_wall(start);
    assert!(spend(&limiter, &budget, 10));
    let window = || limiter.budget(ScopeKind::Key, "k").map(|(.., window)| window.start_ms);
    for (by_ms, day) in [(1, 0), (86_400_000, 0), (86_400_001, -2)] {
        clock.set_wall(start - by_ms);
        assert!(spend(&limiter, &budget, 1));
        assert_eq!(window(), Some(start + day * 86_400_000), "back by {by_ms} ms");
    }
    assert_eq!(spent(&limiter), 13, "nothing is forgotten");
}

#[test]
fn another_period_or_another_scope_of_the_same_name_begins_anew() {
    let day = of_tokens(100, calendar("1d", "UTC"));
    let week = of_tokens(100, calendar("1w", "UTC"));
    let larger = of_tokens(200, calendar("1w", "UTC"));
    let limiter: Limiter = Limiter::new(TestClock::default());
    let made_at = |created_ms, n| {
        let scopes = [Scope { created_ms, ..key(&larger)[0] }];
        let permit = limiter.admit(&scopes, 0).expect("it is let in");
        permit.reserve(tokens(n)).map(|reserved| reserved.settle(tokens(n))).is_ok()
    };
    assert!(spend(&limiter, &day, 60) && !spend(&limiter, &day, 41));
    assert!(spend(&limiter, &week, 80) && !spend(&limiter, &week, 21), "the week knows nothing of the day");
    assert!(spend(&limiter, &larger, 21), "another limit of the same period leaves what was spent");
    assert!(!made_at(0, 100) && made_at(1, 200));
    assert_eq!(spent(&limiter), 200);
}

/// T-B4: what was spent before a restart counts in its own window only.
#[test]
fn a_restart_remembers_the_window_of_now() {
    let budget = of_tokens(100, calendar("1d", "UTC"));
    let rows = [("2026-05-01T22:00:00Z", 70), ("2026-05-02T09:00:00Z", 25)];
    for (at, left) in [("2026-05-01T23:59:59Z", 30), ("2026-05-02T10:00:00Z", 75), ("2026-05-03T00:00:00Z", 100)] {
        let clock = TestClock::default();
        clock.set_wall(ms(at));
        let limiter: Limiter = Limiter::new(clock.clone());
        for (scope, window) in limiter.lacks_history(&key(&budget)) {
            let rows = rows.iter().filter(|(at, _)| window.holds(ms(at)));
            let sum = tokens(rows.map(|(_, n)| n).sum());
            limiter.tell_history(scope.kind, scope.id, window, sum);
            // Two requests may ask at once: the second answer counts for nothing.
            limiter.tell_history(scope.kind, scope.id, window, sum);
        }
        assert!(limiter.lacks_history(&key(&budget)).is_empty());
        assert!(!spend(&limiter, &budget, left + 1) && spend(&limiter, &budget, left), "at {at}");
    }
}

/// T-B4: a request that runs over the boundary is of the window in which it began.
#[test]
fn spending_counts_where_it_was_reserved() {
    let budget = of_tokens(100, calendar("1h", "UTC"));
    let clock = TestClock::default();
    clock.set_wall(ms("2026-05-01T10:59:00Z"));
    let limiter: Limiter = Limiter::new(clock.clone());
    let ask = |n| limiter.admit(&key(&budget), 0).unwrap().reserve(tokens(n)).ok();
    let long = ask(80).expect("room");
    clock.pass(Duration::from_secs(120));
    let next = ask(100).expect("the new hour is whole");
    long.settle(tokens(75));
    assert_eq!(limiter.budget(ScopeKind::Key, "k").map(|(s, r, _)| (s.tokens, r.tokens)), Some((0, 100)));
    next.settle(tokens(40));
    assert_eq!(spent(&limiter), 40);
    limiter.forgive(ScopeKind::Key, "k");
    assert!(spend(&limiter, &budget, 100));
}

#[test]
fn what_exceeds_a_whole_budget_is_never_let_in_and_the_rest_is_told_when() {
    let budget = of_tokens(100, calendar("1d", "UTC"));
    let clock = TestClock::default();
    clock.set_wall(ms("2026-05-01T23:00:00Z"));
    let limiter: Limiter = Limiter::new(clock);
    let permit = limiter.admit(&key(&budget), 0).unwrap();
    assert_eq!(permit.reserve(tokens(101)).map(drop).expect_err("too much").retry_after, None);
    assert!(spend(&limiter, &budget, 60));
    let refusal = permit.reserve(tokens(41)).map(drop).expect_err("not today");
    assert_eq!((refusal.used, refusal.retry_after), (60, Some(Duration::from_secs(3600))));
    assert_eq!(permit.tokens_left(), Some(40));
    let money = BudgetSpec { max_nusd: Some(100), period: calendar("1d", "UTC"), ..Default::default() };
    let permit = limiter.admit(&key(&money), 0).unwrap();
    let ask = |nusd| permit.reserve(Spend { tokens: 1, nusd });
    let _most = ask(60).unwrap();
    let wait = |nusd| ask(nusd).map(drop).expect_err("not today").retry_after;
    assert_eq!([41, 100, 101].map(wait), [Some(Duration::from_secs(3600)), Some(Duration::from_secs(3600)), None]);
    assert!(ask(40).is_ok(), "all of it can be spent");
}

#[test]
fn a_window_that_is_come_to_twice_knows_nothing_of_the_first_stay() {
    let budget = of_tokens(100, calendar("1h", "UTC"));
    let clock = TestClock::default();
    let limiter: Limiter = Limiter::new(clock.clone());
    clock.set_wall(ms("2026-05-01T10:30:00Z"));
    let ask = |n| limiter.admit(&key(&budget), 0).unwrap().reserve(tokens(n)).ok();
    let old = ask(50).expect("room");
    clock.set_wall(ms("2026-05-01T20:30:00Z"));
    assert!(spend(&limiter, &budget, 10));
    clock.set_wall(ms("2026-05-01T10:40:00Z"));
    let new = ask(60).expect("room");
    old.settle(tokens(50));
    assert_eq!(limiter.budget(ScopeKind::Key, "k").map(|(s, r, _)| (s.tokens, r.tokens)), Some((10, 60)));
    drop(new);
}
