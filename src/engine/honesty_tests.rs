//! T-P6: what requests are told when they are refused is when they had better come again. A server of a few slots and its
//! clients, simulated in virtual time, with the router as it is.

use super::error::Failure;
use super::event::{Done, Event, Timings};
use super::request::RequestId;
use super::router::{Place, Router};
use crate::chat::{Class, Finish, Usage};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// What happens, by its time in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ends(usize, RequestId),
    /// A client, and how often it was refused before.
    Comes(usize, u32),
}

struct World {
    n_slots: usize,
    /// Longest wait that is taken.
    most: Option<Duration>,
    /// When each client comes, and how long its answer takes.
    clients: Vec<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Seen {
    /// (client, when, told seconds) of first refusals.
    refused: Vec<(usize, u64, u32)>,
    /// Tries of clients that came when they were told to, and those of them that were let in.
    n_again: u32,
    n_let_in: u32,
    /// When each client got its slot.
    started: Vec<u64>,
}

fn random(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

impl World {
    /// `n` clients within `seconds`, each of an owner of its own or all of one.
    fn new(seed: u64, n: usize, seconds: f64, most: Duration) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let micros = |s: f64| u64::try_from(Duration::from_secs_f64(s).as_micros()).expect("minutes");
        let client = |_| (micros(random(&mut state) * seconds), micros(0.2 + 0.4 * random(&mut state)));
        let mut clients: Vec<(u64, u64)> = (0..n).map(client).collect();
        clients.sort_unstable();
        Self { n_slots: 4, most: Some(most), clients }
    }

    fn run(&self) -> Seen {
        let router = Router::new(10_000, self.n_slots as u32);
        let base = Instant::now();
        let at = |micros: u64| base + Duration::from_micros(micros);
        let mut seen = Seen { started: vec![0; self.clients.len()], ..Seen::default() };
        let mut queue: VecDeque<(usize, RequestId)> = VecDeque::new();
        let mut n_running = 0;
        let mut events: BinaryHeap<Reverse<(u64, What)>> = BinaryHeap::new();
        for (client, (comes, _)) in self.clients.iter().enumerate() {
            events.push(Reverse((*comes, What::Comes(client, 0))));
        }
        while let Some(Reverse((now, what))) = events.pop() {
            match what {
                What::Ends(_, id) => {
                    let (usage, timings) = (Usage::default(), Timings::default());
                    router
                        .dispatch_at(vec![(id, Event::Done(Done { finish: Finish::Length, usage, timings }))], at(now));
                    n_running -= 1;
                }
                What::Comes(client, n_before) => {
                    let place = Place::Generate {
                        fingerprint: client as u64,
                        owner: 7,
                        class: Class::Interactive,
                        comes_back: true,
                    };
                    let let_in =
                        self.most.map_or(Ok(()), |most| router.refuse_longer(7, Some(client as u64), most, at(now)));
                    match let_in.and_then(|()| router.admit_at(place, at(now))) {
                        Ok((id, _)) => {
                            router.dispatch_at(vec![(id, Event::Accepted { n_prompt: 1 })], at(now));
                            queue.push_back((client, id));
                            seen.n_let_in += u32::from(n_before > 0);
                        }
                        Err(Failure::Overloaded { retry_after_s, .. }) => {
                            if n_before == 0 {
                                seen.refused.push((client, now, retry_after_s));
                            }
                            let again = now + u64::from(retry_after_s) * 1_000_000;
                            events.push(Reverse((again, What::Comes(client, n_before + 1))));
                        }
                        Err(other) => unreachable!("{other}"),
                    }
                    seen.n_again += u32::from(n_before > 0);
                }
            }
            while n_running < self.n_slots
                && let Some((client, id)) = queue.pop_front()
            {
                let progress = Event::Progress { n_prompt: 1, n_computed: 0, n_cached: 0 };
                router.dispatch_at(vec![(id, progress)], at(now));
                n_running += 1;
                seen.started[client] = now;
                events.push(Reverse((now + self.clients[client].1, What::Ends(client, id))));
            }
        }
        seen
    }
}

#[test]
fn who_comes_when_it_was_told_to_is_let_in() {
    // Four slots answer ten a second: three and six times as many come, for a while.
    for (n, seconds) in [(90, 3.0), (180, 3.0)] {
        let (mut errors, mut n_again, mut n_let_in) = (Vec::new(), 0, 0);
        for seed in 1..=20 {
            let world = World::new(seed, n, seconds, Duration::from_secs(1));
            let seen = world.run();
            assert!(seen.refused.len() > n / 4, "{} of {n} were refused", seen.refused.len());
            // Had all waited, in the order that they came: when would each have got its slot?
            let patient = World { most: None, clients: world.clients.clone(), ..world }.run();
            for (client, when, told) in seen.refused {
                let actual = (patient.started[client] - when) as f64 / 1e6;
                errors.push((f64::from(told) - actual).abs() / actual);
            }
            (n_again, n_let_in) = (n_again + seen.n_again, n_let_in + seen.n_let_in);
        }
        errors.sort_by(f64::total_cmp);
        let (median, part) = (errors[errors.len() / 2], f64::from(n_let_in) / f64::from(n_again));
        println!("{n} in {seconds} s: {} refused, median error {median:.2}, {part:.3} let in at once", errors.len());
        assert!(median <= 0.30, "{n}: median error {median}");
        assert!(part >= 0.95, "{n}: {n_let_in} of {n_again} were let in");
    }
}

/// Those who wait elsewhere are not in the way of others: a light owner is told its own wait.
#[test]
fn what_one_owner_was_promised_is_not_anothers_wait() {
    let (router, now) = (Router::new(100, 1), Instant::now());
    let place = |owner: u64| Place::Generate { fingerprint: owner, owner, class: Class::Interactive, comes_back: true };
    let mut last = RequestId(0);
    for _ in 0..3 {
        let (id, _) = router.admit_at(place(1), now).expect("a place");
        router.dispatch_at(vec![(id, Event::Accepted { n_prompt: 1 })], now);
        last = id;
    }
    let progress = Event::Progress { n_prompt: 1, n_computed: 0, n_cached: 0 };
    router.dispatch_at(vec![(last, progress)], now);
    let done = Done { finish: Finish::Length, usage: Usage::default(), timings: Timings::default() };
    // An answer takes a second.
    let now = now + Duration::from_secs(1);
    router.dispatch_at(vec![(last, Event::Done(done))], now);
    let told = |owner: u64, which: u64| match router.refuse_longer(owner, Some(which), Duration::ZERO, now) {
        Err(Failure::Overloaded { retry_after_s, .. }) => retry_after_s,
        other => unreachable!("{other:?}"),
    };
    let heavy: Vec<u32> = (0..10).map(|which| told(1, which)).collect();
    assert!(heavy.is_sorted() && heavy[9] >= heavy[0] + 8, "each comes behind the one before: {heavy:?}");
    assert!(told(2, 0) <= 2, "{heavy:?}");
    assert_eq!(told(1, 3), heavy[3], "who asks again too early keeps its place");
}

/// Whoever never comes again leaves no slot empty, and only half of the queue for a moment.
#[test]
fn those_who_do_not_come_keep_no_slot_from_others() {
    let (router, start) = (Router::new(8, 2), Instant::now());
    let place = |owner: u64, which: u64| Place::Generate {
        fingerprint: which,
        owner,
        class: Class::Interactive,
        comes_back: true,
    };
    let mut ids: Vec<RequestId> = Vec::new();
    for which in 0..8 {
        ids.push(router.admit_at(place(1, which), start).expect("a place").0);
    }
    for which in 100..2000 {
        assert!(router.admit_at(place(1, which), start).is_err(), "all places are taken");
    }
    let gone = |id: RequestId, now: Instant| {
        router.dispatch_at(vec![(id, Event::Failed(Failure::Cancelled))], now);
    };
    // Who goes elsewhere instead is not expected.
    let elsewhere =
        |which| Place::Generate { fingerprint: which, owner: 3, class: Class::Interactive, comes_back: false };
    assert!((0..3000).all(|which| router.admit_at(elsewhere(which), start).is_err()));
    ids.drain(..).for_each(|id| gone(id, start));
    // Nothing is known of times, so all were told to come after a second.
    let due = start + Duration::from_secs(1);
    let let_in = |now: Instant| {
        let tries = (0..20u64).filter_map(|n| router.admit_at(place(2, 5000 + n), now).ok());
        tries.map(|(id, _)| id).collect::<Vec<_>>()
    };
    let few = let_in(due);
    assert_eq!(few.len(), 2 + 3, "both slots and half of the queue");
    few.into_iter().for_each(|id| gone(id, due));
    assert_eq!(let_in(due + Duration::from_secs(3)).len(), 8, "nobody waits for them any more");
}
