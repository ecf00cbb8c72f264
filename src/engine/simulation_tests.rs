//! The planner on simulated machines: thousands of seeded workloads in virtual time.
//!
//! # Design
//! What the worker asks in each step is asked here in the same order ([`Fair`], [`Pace`], [`Turns`], [`plan`]), and a machine that
//! computes nothing says how long a step takes: weights are read once a pass, a row costs more the deeper it is and more in
//! passes below a tile, as measured (see `scheduler`), times are 10 % off now and then. The planner knows none of this but
//! the times. Each seed draws the machine, the layout of its cells, the gap target and the requests.

use super::fair::Fair;
use super::pace::{Pace, Prefill};
use super::scheduler::{Share, Want, plan};
use super::turns::{Facts, Times, Turns};
use crate::chat::Class;
use std::time::{Duration, Instant};

/// Seeds of each kind of workload.
const SEEDS: u64 = 1000;
/// Rows of a tile, below which a row costs more.
const TILE: u32 = 64;
const SLOW: f64 = 1.7;
/// Prompts that count as short ones.
const SHORT: u32 = 48;

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, from: u32, to: u32) -> u32 {
        from + (self.next() % u64::from(to - from + 1)) as u32
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Debug, Clone)]
struct Request {
    at: f64,
    class: Class,
    owner: u64,
    n_prompt: u32,
    n_answer: u32,
    serial: u64,
    n_held: u32,
    n_generated: u32,
    served_at: u64,
    /// When it had its last token, and its first.
    last: f64,
    first: f64,
}

impl Request {
    fn gap(&self) -> u32 {
        self.n_prompt + self.n_generated - self.n_held
    }
}

/// What computes: seconds.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// Reading the weights.
    pass: f64,
    row: f64,
    stream: f64,
    /// Each sequence has cells of its own.
    is_apart: bool,
    max_gap: f64,
    n_slots: usize,
}

impl Machine {
    /// One with at least so many slots.
    fn draw(random: &mut Random, n_slots_min: usize) -> Self {
        let row = 0.0001 * 80.0_f64.powf(random.unit());
        Self {
            row,
            pass: row * (1.5 + 2.5 * random.unit()),
            stream: row * (0.5 + random.unit()),
            is_apart: random.within(0, 1) == 1,
            max_gap: [0.15, 0.3, 0.5][random.within(0, 2) as usize],
            n_slots: (random.within(2, 32) as usize).max(n_slots_min),
        }
    }

    fn depth(n: u32) -> f64 {
        1.0 + f64::from(n) / 2000.0
    }

    fn rows(&self, n_rows: u32, from: u32, n_of_pass: u32) -> f64 {
        let slow = if n_of_pass < TILE { SLOW } else { 1.0 };
        self.row * f64::from(n_rows) * Self::depth(from + n_rows / 2) * slow
    }

    fn streams(&self, n: usize) -> f64 {
        self.pass + self.stream * n as f64
    }
}

struct Simulation {
    machine: Machine,
    random: Random,
    base: Instant,
    now: f64,
    busy: f64,
    step: u64,
    fair: Fair,
    pace: Pace,
    turns: Turns,
    waiting: Vec<Request>,
    slots: Vec<Option<Request>>,
    done: Vec<Request>,
    /// Gaps between tokens, seconds, beyond a request's second token.
    gaps: Vec<f64>,
    longest_step: f64,
    n_asked: u64,
}

impl Simulation {
    fn new(machine: Machine, random: Random) -> Self {
        Self {
            machine,
            random,
            base: Instant::now(),
            now: 0.0,
            busy: 0.0,
            step: 0,
            fair: Fair::default(),
            pace: Pace::new(Duration::from_secs_f64(machine.max_gap), 2048, 512),
            turns: Turns::default(),
            waiting: Vec::new(),
            slots: vec![None; machine.n_slots],
            done: Vec::new(),
            gaps: Vec::new(),
            longest_step: 0.0,
            n_asked: 0,
        }
    }

    fn ask(&mut self, class: Class, owner: u64, n_prompt: u32, n_answer: u32) {
        self.n_asked += 1;
        self.fair.arrive(class, owner);
        self.waiting.push(Request {
            at: self.now,
            class,
            owner,
            n_prompt,
            n_answer,
            serial: self.n_asked,
            n_held: 0,
            n_generated: 0,
            served_at: 0,
            last: 0.0,
            first: 0.0,
        });
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    fn n_open(&self, owner: u64) -> usize {
        self.waiting.iter().chain(self.slots.iter().flatten()).filter(|request| request.owner == owner).count()
    }

    fn fill(&mut self) {
        while let Some(free) = self.slots.iter().position(Option::is_none) {
            let ranks = self.waiting.iter().map(|one| self.fair.rank(one.class, one.owner, one.serial));
            let Some((_, at)) = ranks.enumerate().map(|(at, rank)| (rank, at)).min() else { return };
            let mut request = self.waiting.remove(at);
            self.fair.start(request.class, request.owner);
            request.served_at = self.step;
            self.slots[free] = Some(request);
        }
    }

    fn instant(&self, at: f64) -> Instant {
        self.base + Duration::from_secs_f64(at)
    }

    fn plan(&mut self) -> Vec<Share> {
        let want = |(slot, held): (usize, &Option<Request>)| {
            let held = held.as_ref()?;
            let is_decode = held.n_generated > 0 && held.gap() == 1;
            let turn = if is_decode { (false, 0) } else { self.fair.turn(held.class, held.owner) };
            Some(Want {
                slot,
                depth: held.n_held,
                gap: held.gap(),
                is_decode,
                cap: u32::MAX,
                served_at: held.served_at,
                turn,
            })
        };
        let mut wants: Vec<Want> = self.slots.iter().enumerate().filter_map(want).collect();
        let depth = wants.iter().filter(|want| !want.is_decode).map(|want| want.depth).max().unwrap_or(0);
        let mut budget = self.pace.budget(u32::MAX, depth);
        if self.machine.is_apart {
            let (slots, base) = (&self.slots, self.base);
            let instant = |at: f64| base + Duration::from_secs_f64(at);
            let times = |slot: usize| {
                let held = slots[slot].as_ref()?;
                let began = (held.n_generated == 1).then(|| instant(held.first));
                Some(Times { accepted: instant(held.at), began })
            };
            let machine = self.machine;
            let pass = |n: usize| machine.streams(n);
            let facts = Facts { pace: &self.pace, times: &times, pass: &pass, now: instant(self.now) };
            self.turns.take(&mut wants, &mut budget, &facts);
        }
        let shares = plan(&wants, budget);
        let n_rows: u32 = shares.iter().map(|share| share.n_rows).sum();
        assert!(n_rows <= budget.n_batch && n_rows > 0, "a step that does something, within the batch: {shares:?}");
        shares
    }

    /// Seconds that the machine takes; rows of streams; rows of prompts.
    fn compute(&mut self, shares: &[Share]) -> (f64, u32, u32) {
        let (mut n_decode, mut n_prefill, mut time) = (0, 0, 0.0);
        let n_all: u32 = shares.iter().map(|share| share.n_rows).sum();
        for share in shares {
            let Some(held) = &self.slots[share.slot] else { panic!("a share of an empty slot") };
            assert!((1..=held.gap()).contains(&share.n_rows), "no more than is wanted");
            if held.n_generated > 0 {
                n_decode += 1;
                time += self.machine.stream;
            } else {
                n_prefill += share.n_rows;
                let n_of_pass = if self.machine.is_apart { share.n_rows } else { n_all };
                time += self.machine.rows(share.n_rows, held.n_held, n_of_pass);
                time += if self.machine.is_apart { self.machine.pass } else { 0.0 };
            }
        }
        if !self.machine.is_apart || n_decode > 0 {
            time += self.machine.pass;
        }
        (time * (0.95 + 0.1 * self.random.unit()), n_decode, n_prefill)
    }

    /// Tokens before the middle row of prompts.
    fn depth(&self, shares: &[Share]) -> u32 {
        let prompts = shares.iter().filter_map(|share| Some((share.n_rows, self.slots[share.slot].as_ref()?)));
        let prompts = prompts.filter(|(_, held)| held.n_generated == 0);
        let (n, sum) = prompts.fold((0, 0), |(n, sum), (rows, held)| (n + rows, sum + rows * (held.n_held + rows / 2)));
        sum.checked_div(n).unwrap_or(0)
    }

    fn step(&mut self) {
        self.fill();
        self.step += 1;
        let shares = self.plan();
        let depth = self.depth(&shares);
        let (time, n_decode, n_prefill) = self.compute(&shares);
        self.now += time;
        self.busy += time;
        self.longest_step = self.longest_step.max(time);
        self.pace.observe(n_decode, Prefill { n_rows: n_prefill, depth }, Duration::from_secs_f64(time));
        let mut all_whole = n_prefill > 0;
        for share in &shares {
            let Some(held) = &mut self.slots[share.slot] else { continue };
            held.n_held += share.n_rows;
            held.served_at = self.step;
            if held.n_generated == 0 {
                self.fair.charge(held.class, held.owner, share.n_rows.into(), 0);
            }
            if held.n_held < held.n_prompt + held.n_generated {
                all_whole = false;
                continue;
            }
            match held.n_generated {
                0 => held.first = self.now,
                1 => {}
                _ => self.gaps.push(self.now - held.last),
            }
            held.last = self.now;
            held.n_generated += 1;
            self.fair.charge(held.class, held.owner, 0, 1);
            if held.n_generated == held.n_answer {
                self.fair.end(held.class, held.owner);
                self.done.extend(self.slots[share.slot].take());
            }
        }
        let now = self.instant(self.now);
        self.turns.end(self.step, n_decode > 0, all_whole, now);
    }

    /// The least that a machine could take for these: prompts in whole tiles, all slots always full.
    fn least(&self) -> f64 {
        let prompts = self.done.iter().map(|one| self.machine.rows(one.n_prompt, 0, TILE));
        let n_tokens: u32 = self.done.iter().map(|one| one.n_answer - 1).sum();
        let longest = self.done.iter().map(|one| one.n_answer - 1).max().unwrap_or(0);
        let n = self.machine.n_slots.min(self.done.len());
        let streams = f64::from(n_tokens) * self.machine.streams(n) / n as f64;
        prompts.sum::<f64>() + streams.max(f64::from(longest) * self.machine.streams(1))
    }
}

fn draw_request(random: &mut Random) -> (u32, u32) {
    let n_prompt = match random.within(0, 19) {
        0..=11 => random.within(4, SHORT),
        12..=16 => random.within(60, 400),
        _ => random.within(400, 3000),
    };
    (n_prompt, random.within(1, 100))
}

fn part(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Requests that come at once or over some time are all answered, in little more than the least time that the machine could take.
#[test]
fn whatever_comes_is_done_in_little_more_than_the_least_time() {
    let mut of_least = Vec::new();
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let machine = Machine::draw(&mut random, 2);
        let n = random.within(5, 60);
        let n_owners = random.within(1, 6);
        let mut coming: Vec<_> = (0..n).map(|_| draw_request(&mut random)).collect();
        let (is_at_once, rate) = (random.within(0, 1) == 0, random.unit());
        let mut simulation = Simulation::new(machine, random);
        while !coming.is_empty() || !simulation.is_idle() {
            while let Some((n_prompt, n_answer)) =
                coming.pop_if(|_| is_at_once || simulation.is_idle() || simulation.random.unit() < rate)
            {
                let class = if simulation.random.within(0, 9) == 0 { Class::Batch } else { Class::Interactive };
                let owner = u64::from(simulation.random.within(1, n_owners));
                simulation.ask(class, owner, n_prompt, n_answer);
            }
            simulation.step();
            assert!(simulation.step < 100_000, "seed {seed} comes to an end");
        }
        assert_eq!(simulation.done.len(), n as usize, "seed {seed}: nobody is lost");
        assert!(simulation.done.iter().all(|one| one.n_generated == one.n_answer && one.n_held >= one.n_prompt));
        if is_at_once {
            of_least.push(simulation.busy / simulation.least());
        }
    }
    let of_least = sorted(of_least);
    let (middle, most) = (part(&of_least, 50), part(&of_least, 95));
    println!("makespan, of the least: median {middle:.2}, 95 % {most:.2}, worst {:.2}", part(&of_least, 100));
    assert!(middle < 1.15 && most < 1.8 && part(&of_least, 100) < 2.2, "{middle} {most}");
}

/// Running streams have their next token within the gap target beside prompts that come without pause, where the machine can.
#[test]
fn gaps_stay_near_the_target_beside_prompts_without_pause() {
    let (mut over, mut n_gaps, mut worst) = (0, 0, Vec::new());
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let machine = Machine::draw(&mut random, 4);
        // The target is beyond a machine that takes longer for a step without prompts, or for a few rows of one.
        let least = machine.streams(machine.n_slots) + machine.rows(16, 3000, 1) + machine.pass;
        let mut simulation = Simulation::new(machine, random);
        for step in 0..400 {
            while simulation.n_open(1) < machine.n_slots / 2 {
                simulation.ask(Class::Interactive, 1, 20, 200);
            }
            while simulation.n_open(2) < 2 {
                let n_prompt = simulation.random.within(400, 3000);
                simulation.ask(Class::Interactive, 2, n_prompt, 2);
            }
            if step == 100 {
                simulation.gaps.clear(); // the speed is known by now
            }
            simulation.step();
        }
        let target = machine.max_gap.max(least);
        n_gaps += simulation.gaps.len();
        over += simulation.gaps.iter().filter(|gap| **gap > 1.5 * target).count();
        worst.push(simulation.gaps.iter().copied().fold(0.0, f64::max) / target);
    }
    let worst = sorted(worst);
    let share = over as f64 / n_gaps as f64;
    println!(
        "worst gap of a workload, of the target: median {:.2}, 95 % {:.2}, worst {:.2}; {:.2} % of all gaps above 1.5",
        part(&worst, 50),
        part(&worst, 95),
        part(&worst, 100),
        share * 100.0
    );
    assert!(part(&worst, 50) < 1.1 && part(&worst, 95) < 1.9 && part(&worst, 100) < 2.6 && share < 0.006);
}

/// A short prompt that finds a free slot waits for the step that runs and few more, whatever long ones are there.
#[test]
fn short_prompts_do_not_wait_behind_long_ones() {
    let mut steps = Vec::new();
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let machine = Machine::draw(&mut random, 6);
        let mut simulation = Simulation::new(machine, random);
        for step in 0..200 {
            while simulation
                .slots
                .iter()
                .flatten()
                .chain(&simulation.waiting)
                .filter(|one| one.n_prompt > SHORT)
                .count()
                < 3
            {
                let n_prompt = simulation.random.within(1000, 3000);
                simulation.ask(Class::Interactive, 1, n_prompt, 4);
            }
            if step > 20 && step % 10 == 0 && simulation.n_open(1) < machine.n_slots {
                let n_prompt = simulation.random.within(4, SHORT);
                simulation.ask(Class::Interactive, 1, n_prompt, 4);
            }
            simulation.step();
        }
        let short = simulation.done.iter().filter(|one| one.n_prompt <= SHORT);
        steps.extend(short.map(|one| (one.first - one.at) / simulation.longest_step));
    }
    let steps = sorted(steps);
    println!(
        "first token of short prompts, in longest steps: median {:.2}, 95 % {:.2}, worst {:.2}",
        part(&steps, 50),
        part(&steps, 95),
        part(&steps, 100)
    );
    assert!(part(&steps, 95) < 1.8 && part(&steps, 100) < 5.0);
}

/// Owners that always have something to do get the same, whatever they ask.
#[test]
fn owners_with_work_get_the_same() {
    let mut indices = Vec::new();
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let machine = Machine::draw(&mut random, 4);
        let n_owners = random.within(2, 4);
        let asks: Vec<_> =
            (0..n_owners).map(|_| (random.within(4, 600), random.within(1, 100), random.within(2, 12))).collect();
        let mut simulation = Simulation::new(machine, random);
        for _ in 0..1500 {
            for (owner, (n_prompt, n_answer, n)) in (1..).zip(&asks) {
                while simulation.n_open(owner) < machine.n_slots + *n as usize {
                    simulation.ask(Class::Interactive, owner, *n_prompt, *n_answer);
                }
            }
            simulation.step();
        }
        let served: Vec<f64> =
            (1..=u64::from(n_owners)).map(|owner| simulation.fair.debt(Class::Interactive, owner) as f64).collect();
        let (sum, squares): (f64, f64) = (served.iter().sum(), served.iter().map(|n| n * n).sum());
        indices.push(sum * sum / (served.len() as f64 * squares));
    }
    let indices = sorted(indices);
    println!(
        "Jain's index of owners: worst {:.3}, 5 % {:.3}, median {:.3}",
        part(&indices, 0),
        part(&indices, 5),
        part(&indices, 50)
    );
    assert!(part(&indices, 0) > 0.99);
}
