//! T-L1 to T-L3 and T-L6: exact limits, in virtual time.

use super::*;
use crate::gateway::limits::core::{Core, SCOPES_MAX};
use rand::RngExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A clock that stands where a test puts it.
#[derive(Clone, Default)]
pub struct TestClock(Arc<Mutex<Now>>);

impl Clock for TestClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

impl TestClock {
    pub fn pass(&self, time: Duration) {
        let mut now = self.0.lock().unwrap();
        now.mono += time;
        now.wall_ms += i64::try_from(time.as_millis()).unwrap();
    }

    pub fn set_wall(&self, wall_ms: i64) {
        self.0.lock().unwrap().wall_ms = wall_ms;
    }
}

pub fn scope(kind: ScopeKind, id: &str, limits: Limits) -> Scope<'_> {
    Scope { kind, id, limits, budget: None, created_ms: 0 }
}

fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), wall_ms: i64::try_from(ms).unwrap() }
}

fn tokens(tokens: u64) -> Spend {
    Spend { tokens, nusd: 0 }
}

fn rng() -> (u64, rand::rngs::StdRng) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    (seed, rand::SeedableRng::seed_from_u64(seed))
}

/// T-R8: the wall's clock jumps by hours, back and forth; limits go by the other one.
#[test]
fn limits_are_unmoved_by_the_walls_clock() {
    let decisions = |jumps: bool| {
        let clock = TestClock::default();
        let limiter: Limiter = Limiter::new(clock.clone());
        let limits = Limits { requests_per_minute: Some(3), tokens_per_minute: Some(50), ..Default::default() };
        let mut made = Vec::new();
        for n in 0..200usize {
            clock.pass(Duration::from_secs(7));
            if jumps {
                clock.set_wall([-3_600_000, 3_600_000, 0, i64::MAX / 2][n % 4]);
            }
            let scopes = [scope(ScopeKind::Key, "k", limits)];
            let admitted = limiter.admit(&scopes, 0).and_then(|permit| {
                permit.reserve(tokens(20)).map(|reserved| reserved.settle(tokens(10 + n as u64 % 10)))
            });
            made.push(admitted.map_err(|refusal| refusal.kind).is_ok());
        }
        made
    };
    let steady = decisions(false);
    assert!(steady.contains(&true) && steady.contains(&false));
    assert_eq!(decisions(true), steady);
}

/// T-L1: 100 tokens a minute, five requests of 58 to 175 tokens at once, again and again.
#[test]
fn no_minute_ever_holds_more_than_its_tokens() {
    let (seed, mut rng) = rng();
    let limits = Limits { tokens_per_minute: Some(100), ..Default::default() };
    let key = [scope(ScopeKind::Key, "k", limits)];
    let mut core = Core::default();
    let mut spent: Vec<(u64, u64)> = Vec::new();
    let mut running: Vec<(u64, Ticket, Held, u64)> = Vec::new();
    let mut n_too_large = 0;
    for ms in (0..20 * 60_000u64).step_by(250) {
        while let Some(at) = running.iter().position(|(end, ..)| *end <= ms) {
            let (_, mut ticket, held, n) = running.swap_remove(at);
            core.settle(held, tokens(n));
            ticket.keep();
            core.release(ticket);
        }
        while running.len() < 5 {
            let estimate = rng.random_range(58..=175);
            let ticket = core.admit(at(ms), &key, 0).expect("no limit of requests");
            match core.reserve(at(ms), &ticket, tokens(estimate)) {
                Ok(held) => {
                    let actual = rng.random_range(1..=estimate);
                    spent.push((ms, actual));
                    running.push((ms + rng.random_range(100..5000), ticket, held, actual));
                }
                Err(refusal) => {
                    assert_eq!((refusal.kind, refusal.limit), (LimitKind::Tokens, 100), "seed {seed}");
                    n_too_large += u32::from(refusal.retry_after.is_none());
                    assert_eq!(refusal.retry_after.is_none(), estimate > 100, "seed {seed}");
                    core.release(ticket);
                    break;
                }
            }
        }
        let in_minute: u64 = spent.iter().filter(|(began, _)| began + 60_000 > ms).map(|(_, n)| n).sum();
        assert!(in_minute <= 100, "{in_minute} tokens in the minute before {ms}, seed {seed}");
    }
    let sum: u64 = spent.iter().map(|(_, n)| n).sum();
    assert!(sum > 1000 && n_too_large > 0, "seed {seed}: {sum} tokens in 20 minutes, {n_too_large} too large");
}

/// T-L2: who asks for a little more than the limit, steadily, gets 98 to 100 % of it.
#[test]
fn a_steady_load_gets_all_of_its_limit() {
    for (limit, n, every_ms) in [(500_000, 100, 10), (500_000, 4096, 300), (60, 1, 1000), (60, 1, 700), (600, 7, 90)] {
        let limits = Limits { tokens_per_minute: Some(limit), ..Default::default() };
        let key = [scope(ScopeKind::Key, "k", limits)];
        let mut core = Core::default();
        let minutes = 10;
        let mut sum = 0;
        // The first minute holds a burst; what counts is the rate after it.
        for ms in (0..(minutes + 1) * 60_000).step_by(every_ms) {
            let ticket = core.admit(at(ms), &key, 0).unwrap();
            let held = core.reserve(at(ms), &ticket, tokens(n));
            let got = held.is_ok();
            if let Ok(held) = held {
                core.settle(held, tokens(n));
            }
            core.release(ticket);
            sum += if got && ms >= 60_000 { n } else { 0 };
        }
        let of_limit = sum as f64 / (limit * minutes) as f64;
        // What does not divide the limit leaves a rest that is less than one request.
        let least = 0.98 - n as f64 / limit as f64;
        assert!((least..=1.0).contains(&of_limit), "{limit} a minute, {n} every {every_ms} ms: {of_limit}");
    }
}

/// T-L3: A runs, B is refused for the place and costs nothing, C may go on once A has ended and its minute is over.
#[test]
fn a_refused_request_costs_nothing() {
    let limits = Limits { requests_per_minute: Some(1), n_parallel: Some(1), ..Default::default() };
    let key = [scope(ScopeKind::Key, "k", limits)];
    let mut core = Core::default();
    let mut a = core.admit(at(0), &key, 0).expect("A");
    let held = core.reserve(at(10), &a, tokens(10)).expect("no limit of tokens");
    let refusal = core.admit(at(1000), &key, 0).expect_err("B");
    assert_eq!((refusal.kind, refusal.retry_after), (LimitKind::Requests, Some(Duration::from_secs(59))));
    core.settle(held, tokens(10));
    a.keep();
    core.release(a);
    assert_eq!(core.admit(at(59_999), &key, 0).expect_err("too early").used, 1);
    let c = core.admit(at(60_000), &key, 0).expect("C, though B was refused a second ago");
    // C ends before anything was reserved, as a bad request does: it costs nothing either.
    core.release(c);
    let d = core.admit(at(60_001), &key, 0).expect("D");
    let refusal = core.admit(at(120_100), &key, 0).expect_err("D runs");
    assert_eq!((refusal.kind, refusal.limit, refusal.used), (LimitKind::Parallel, 1, 1));
    core.release(d);
    assert_eq!(core.in_use(ScopeKind::Key, "k"), (0, 0));
}

#[test]
fn all_scopes_agree_or_none_is_touched() {
    let free = Limits { requests_per_minute: Some(10), tokens_per_minute: Some(1000), ..Default::default() };
    let tight = Limits { tokens_per_minute: Some(50), ..free };
    let scopes = [scope(ScopeKind::Key, "k", free), scope(ScopeKind::Team, "t", tight)];
    let mut core = Core::default();
    let ticket = core.admit(at(0), &scopes, 0).unwrap();
    let refusal = core.reserve(at(0), &ticket, tokens(51)).expect_err("the team's");
    assert_eq!((refusal.scope, refusal.kind, refusal.requested), (ScopeKind::Team, LimitKind::Tokens, 51));
    core.release(ticket);
    let standing = core.standing(at(1), &scopes[..1]);
    assert_eq!(standing.requests.map(|rate| rate.remaining), Some(10));
    assert_eq!(standing.tokens.map(|rate| rate.remaining), Some(1000));
    // While a request runs, what it reserved is gone; afterwards what it did not need is back.
    let mut ticket = core.admit(at(2), &scopes, 0).unwrap();
    let held = core.reserve(at(2), &ticket, tokens(40)).unwrap();
    let standing = core.standing(at(3), &scopes);
    assert_eq!(standing.requests.map(|rate| (rate.limit, rate.remaining)), Some((10, 9)));
    assert_eq!(standing.tokens.map(|rate| (rate.limit, rate.remaining)), Some((50, 10)));
    // A second try of the same request is one more reservation.
    let again = core.reserve(at(3), &ticket, tokens(10)).unwrap();
    assert!(core.reserve(at(3), &ticket, tokens(1)).is_err());
    core.settle(again, tokens(0));
    core.settle(held, tokens(12));
    ticket.keep();
    core.release(ticket);
    assert_eq!(core.standing(at(4), &scopes).tokens.map(|rate| rate.remaining), Some(38));
}

/// What is told to who asks by headers, by metrics and by errors.
#[test]
fn kinds_have_their_words() {
    let kinds = ["key", "end_user", "user", "team", "budget", "ip", "global"];
    assert_eq!(ScopeKind::ALL.map(ScopeKind::name), kinds);
    assert!(ScopeKind::ALL.is_sorted());
    let limits = ["rpm", "tpm", "parallel", "queue", "budget_usd", "budget_tokens"];
    assert_eq!(LimitKind::ALL.map(LimitKind::name), limits);
    assert_eq!(LimitKind::ALL.map(LimitKind::is_budget), [false, false, false, false, true, true]);
}

#[test]
fn the_refusal_that_lasts_longest_is_told_and_of_equals_the_first() {
    let refusal = |seconds: Option<u64>| LimitRefusal {
        scope: ScopeKind::Key,
        kind: LimitKind::Requests,
        limit: 1,
        used: 1,
        requested: 1,
        retry_after: seconds.map(Duration::from_secs),
    };
    let outlasts = |one, other| refusal(one).outlasts(&refusal(other));
    assert!(outlasts(None, Some(1)) && outlasts(Some(2), Some(1)));
    assert!(
        !outlasts(None, None) && !outlasts(Some(1), None) && !outlasts(Some(1), Some(1)) && !outlasts(Some(1), Some(2))
    );
    let narrow = Limits { n_parallel: Some(0), ..Default::default() };
    let mut core = Core::default();
    let scopes = [scope(ScopeKind::Team, "t", narrow), scope(ScopeKind::Global, "", narrow)];
    assert_eq!(core.admit(at(0), &scopes, 0).expect_err("neither has a place").scope, ScopeKind::Team);
}

#[test]
fn a_permit_knows_what_holds_for_all_of_its_scopes() {
    let clock = TestClock::default();
    let limiter: Limiter = Limiter::new(clock.clone());
    let free = limiter.admit(&[], 0).expect("nothing limits it");
    assert!(!free.counts() && free.output_cap().is_none() && free.tokens_left().is_none());
    free.start();
    free.keep();
    free.reserve(tokens(u64::MAX)).expect("nothing limits it").settle(tokens(u64::MAX));
    assert!(limiter.lacks_history(&[scope(ScopeKind::Key, "k", Limits::default())]).is_empty());
    let limits = |n_output, rpm| Limits { n_output, requests_per_minute: rpm, n_queue: Some(1), ..Default::default() };
    let scopes = [
        scope(ScopeKind::Key, "k", limits(Some(50), Some(10))),
        scope(ScopeKind::Team, "t", limits(Some(30), Some(3))),
        scope(ScopeKind::Global, "", limits(None, None)),
    ];
    let left = || limiter.standing(&scopes).requests.map(|rate| (rate.limit, rate.remaining));
    assert_eq!(left(), Some((3, 3)), "of a scope that nobody has seen yet");
    let permit = limiter.admit(&scopes, 0).expect("a place");
    assert_eq!((permit.output_cap(), permit.counts(), left()), (Some(30), false, Some((3, 2))));
    assert_eq!(limiter.admit(&scopes, 0).map(drop).expect_err("one waits").kind, LimitKind::Queue);
    permit.start();
    assert_eq!(limiter.in_use(ScopeKind::Team, "t"), (1, 0));
    // A request that spends nothing is one if it is kept, and none if not.
    permit.keep();
    drop(permit);
    assert_eq!(left(), Some((3, 2)));
    drop(limiter.admit(&scopes, 0).expect("a place"));
    assert_eq!((left(), limiter.in_use(ScopeKind::Team, "t")), (Some((3, 2)), (0, 0)));
    // A copy is the same limiter.
    let other = limiter.clone();
    other.admit(&scopes, 0).expect("a place").keep();
    assert_eq!(left(), Some((3, 1)));
    clock.pass(Duration::from_secs(60));
    assert_eq!(left(), Some((3, 3)));
}

/// Of each kind the scope with the least, with the time until all of it is back; of equals the smaller limit.
#[test]
fn what_stands_is_the_least_that_is_left() {
    let rpm = |n| Limits { requests_per_minute: Some(n), ..Default::default() };
    let mut core = Core::default();
    let [wide, narrow] = [scope(ScopeKind::Key, "k", rpm(5)), scope(ScopeKind::Team, "t", rpm(4))];
    let mut take = |ms, scopes: &[Scope<'_>]| {
        let mut ticket = core.admit(at(ms), scopes, 0).expect("a place");
        ticket.keep();
        core.release(ticket);
        [[wide, narrow], [narrow, wide]].map(|scopes| core.standing(at(ms), &scopes).requests.expect("a limit"))
    };
    let rate = |limit, remaining, seconds| [Rate { limit, remaining, reset: Duration::from_secs(seconds) }; 2];
    assert_eq!(take(0, &[narrow]), rate(4, 3, 60));
    assert_eq!(take(1000, &[wide]), rate(4, 3, 59));
    assert_eq!(take(2000, &[wide]), rate(4, 3, 58), "as many are left of both");
    assert_eq!(take(3000, &[wide]), rate(5, 2, 60));
}

fn named(id: &str, limits: Limits) -> [Scope<'_>; 1] {
    [scope(ScopeKind::EndUser, id, limits)]
}

/// A new name has four others looked at; those that are as if they were new make room.
#[test]
fn a_scope_is_kept_while_anything_of_it_matters() {
    let limits = Limits { requests_per_minute: Some(5), tokens_per_minute: Some(9), ..Default::default() };
    // One whose place is held, one that took tokens late, one that did nothing since its first moment.
    let held = |core: &mut Core| core.admit(at(0), &named("a", limits), 0).expect("a place");
    let n_after = |core: &mut Core, ms| {
        let new = core.admit(at(ms), &named("new", limits), 0).expect("a place");
        core.release(new);
        core.n_scopes()
    };
    for (ms, n) in [(59_999, 2), (60_000, 1), (600_000, 1)] {
        let mut core = Core::default();
        let mut ticket = held(&mut core);
        ticket.keep();
        core.release(ticket);
        assert_eq!(n_after(&mut core, ms), n, "{ms}");
    }
    let mut core = Core::default();
    let ticket = held(&mut core);
    assert_eq!(n_after(&mut core, 600_000), 2, "it runs");
    core.release(ticket);
    for (ms, n) in [(60_000, 2), (109_999, 2), (110_000, 1)] {
        let mut core = Core::default();
        let ticket = held(&mut core);
        let reserved = core.reserve(at(50_000), &ticket, tokens(9)).expect("there are tokens");
        core.settle(reserved, tokens(1));
        core.release(ticket);
        assert_eq!(n_after(&mut core, ms), n, "{ms}");
    }
    // Whose history is asked for is not held by that.
    let budget = crate::gateway::spec::BudgetSpec { max_tokens: Some(9), ..Default::default() };
    let mut core = Core::default();
    let asked = [Scope { budget: Some(&budget), ..named("a", limits)[0] }];
    assert_eq!(core.lacks_history(at(0), &asked).len(), 1);
    assert_eq!(n_after(&mut core, 600_000), 1);
    let mut core = Core::default();
    for id in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] {
        let ticket = core.admit(at(0), &named(id, limits), 0).expect("a place");
        core.release(ticket);
    }
    let mut sweeps = |id: &str| {
        let ticket = core.admit(at(600_000), &named(id, limits), 0).expect("a place");
        core.release(ticket);
        core.n_scopes()
    };
    assert_eq!(["a", "b", "b", "c", "d"].map(&mut sweeps), [7, 4, 4, 3, 4], "each is looked at in its turn");
}

#[test]
fn the_machines_clock_tells_both_times() {
    let unix_ms = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        i64::try_from(since.as_millis()).expect("before the year 292 million")
    };
    let (before, clock) = (unix_ms(), WallClock::default());
    let first = clock.now();
    while clock.now().mono == first.mono {
        std::hint::spin_loop();
    }
    let (then, after) = (clock.now(), unix_ms());
    assert!(then.mono > first.mono);
    assert!(before <= first.wall_ms && first.wall_ms <= then.wall_ms && then.wall_ms <= after);
}

#[test]
fn long_names_are_cut_between_two_letters() {
    let limits = Limits { n_parallel: Some(1), ..Default::default() };
    let mut core = Core::default();
    let mut running = Vec::new();
    let mut is_free = |id: &str| {
        let admitted = core.admit(at(0), &[scope(ScopeKind::EndUser, id, limits)], 0);
        let is_in = admitted.is_ok();
        running.extend(admitted);
        is_in
    };
    let long = "x".repeat(255);
    assert!(is_free(&long) && !is_free(&long));
    assert!(is_free(&format!("{long}y")), "256 bytes");
    assert!(!is_free(&format!("{long}yz")), "the 257th tells nobody apart");
    // An é has two bytes, of which only one has room.
    assert!(!is_free(&format!("{long}é")) && !is_free(&format!("{long}ü")));
}

#[test]
fn a_queue_has_its_share_beyond_the_free_slots() {
    let limits = Limits { n_queue: Some(2), ..Default::default() };
    let key = [scope(ScopeKind::Key, "k", limits)];
    let mut core = Core::default();
    let mut held: Vec<Ticket> = (0..5).map(|_| core.admit(at(0), &key, 3).unwrap()).collect();
    assert_eq!(core.admit(at(0), &key, 3).expect_err("full").kind, LimitKind::Queue);
    for ticket in &mut held[..3] {
        core.start(ticket);
        core.start(ticket);
    }
    assert_eq!(core.in_use(ScopeKind::Key, "k"), (5, 2));
    assert_eq!(core.admit(at(0), &key, 0).expect_err("two wait").kind, LimitKind::Queue);
    held.into_iter().for_each(|ticket| core.release(ticket));
    assert_eq!(core.in_use(ScopeKind::Key, "k"), (0, 0));
}

#[test]
fn a_try_starts_its_request_and_gives_back_what_it_took() {
    let limits = Limits { tokens_per_minute: Some(10), n_queue: Some(1), ..Default::default() };
    let key = [scope(ScopeKind::Key, "k", limits)];
    let limiter: Limiter = Limiter::new(TestClock::default());
    let permit = limiter.admit(&key, 0).expect("a place");
    assert!(permit.counts(), "tokens are limited");
    let tried = permit.reserve(tokens(10)).expect("all there are");
    assert_eq!(permit.reserve(tokens(1)).map(drop).expect_err("none is left").kind, LimitKind::Tokens);
    assert_eq!(limiter.in_use(ScopeKind::Key, "k"), (1, 1));
    tried.start();
    assert_eq!(limiter.in_use(ScopeKind::Key, "k"), (1, 0), "it has a slot");
    drop(tried);
    assert!(permit.reserve(tokens(10)).is_ok(), "for the next try");
}

/// T-L6: whatever ends a request, its places come back.
#[test]
fn ten_thousand_requests_of_any_fate_leave_nothing_in_use() {
    let (seed, mut rng) = rng();
    let clock = TestClock::default();
    let limiter: Limiter = Limiter::new(clock.clone());
    let limits = Limits {
        requests_per_minute: Some(1000),
        tokens_per_minute: Some(100_000),
        n_parallel: Some(20),
        n_queue: Some(15),
        ..Default::default()
    };
    let (mut held, mut n_ended) = (Vec::new(), 0);
    std::panic::set_hook(Box::new(|_| {}));
    while n_ended < 10_000 {
        clock.pass(Duration::from_millis(rng.random_range(0..50)));
        let names: Vec<String> = (0..3).map(|_| rng.random_range(0..4).to_string()).collect();
        let scopes = [
            scope(ScopeKind::Key, &names[0], limits),
            scope(ScopeKind::Team, &names[1], limits),
            scope(ScopeKind::Global, "", limits),
        ];
        if let Ok(permit) = limiter.admit(&scopes, rng.random_range(0..4)) {
            held.push(permit);
        } else {
            n_ended += 1;
        }
        let n_kept = rng.random_range(0..30);
        while held.len() > n_kept {
            let permit = held.swap_remove(rng.random_range(0..held.len()));
            n_ended += 1;
            let fate = rng.random_range(0..5);
            let estimate = tokens(rng.random_range(1..500));
            let end = AssertUnwindSafe(|| {
                if fate == 0 {
                    return; // before it was accepted
                }
                let Ok(reservation) = permit.reserve(estimate) else { return };
                if fate > 1 {
                    reservation.start();
                }
                match fate {
                    2 => panic!("in the middle"),
                    3 => drop((permit, reservation)), // the client left
                    _ => reservation.settle(tokens(estimate.tokens / 2)),
                }
            });
            let _ = catch_unwind(end);
        }
    }
    let _ = std::panic::take_hook();
    drop(held);
    for n in 0..4 {
        for kind in [ScopeKind::Key, ScopeKind::Team] {
            assert_eq!(limiter.in_use(kind, &n.to_string()), (0, 0), "seed {seed}");
        }
    }
    assert_eq!(limiter.in_use(ScopeKind::Global, ""), (0, 0), "seed {seed}");
}

#[test]
fn scopes_that_clients_name_are_bounded_and_idle_ones_forgotten() {
    let limits = Limits { requests_per_minute: Some(5), ..Default::default() };
    let mut core = Core::default();
    let held: Vec<Ticket> = (0..SCOPES_MAX + 100)
        .map(|n| core.admit(at(0), &[scope(ScopeKind::EndUser, &n.to_string(), limits)], 0))
        .filter_map(Result::ok)
        .collect();
    // Those beyond share one, which is soon out of requests.
    assert_eq!((core.n_scopes(), held.len()), (SCOPES_MAX + 1, SCOPES_MAX + 5));
    assert!(core.admit(at(0), &[scope(ScopeKind::EndUser, "late", limits)], 0).is_err());
    // Names that the operator gives stand apart however many there are.
    for name in ["key", "another"] {
        let all: Vec<Ticket> =
            (0..5).filter_map(|_| core.admit(at(0), &[scope(ScopeKind::Key, name, limits)], 0).ok()).collect();
        assert_eq!(all.len(), 5, "{name}");
        all.into_iter().for_each(|ticket| core.release(ticket));
    }
    held.into_iter().for_each(|ticket| core.release(ticket));
    for n in 0..SCOPES_MAX {
        let ticket = core.admit(at(200_000), &[scope(ScopeKind::Ip, "10.0.0.1", limits)], 0).map_err(|_| n);
        // One name costs no search; new ones do.
        if let Ok(ticket) = ticket {
            core.release(ticket);
        }
        if n % 2 == 0 {
            let name = format!("10.1.{}.{}", n / 256, n % 256);
            core.admit(at(200_000), &[scope(ScopeKind::Ip, &name, limits)], 0)
                .map(|ticket| core.release(ticket))
                .expect("a new address");
        }
    }
    assert!(core.n_scopes() < SCOPES_MAX * 3 / 4, "{}", core.n_scopes());
    // Places that were given up are there for new ones, which share nothing.
    let names: Vec<String> = (0..100).map(|n| format!("10.9.0.{n}")).collect();
    let fresh = names.iter().map(|name| core.admit(at(200_000), &[scope(ScopeKind::Ip, name, limits)], 0));
    let fresh: Vec<Ticket> = fresh.filter_map(Result::ok).collect();
    assert_eq!(fresh.len(), names.len());
    fresh.into_iter().for_each(|ticket| core.release(ticket));
}
