//! Drafts from texts on simulated machines: seeded requests in virtual time, so that what drafts cost is told without noise.
//!
//! # Design
//! What the worker asks for a stream that runs by itself is asked here in the same order. A machine says how long a step takes: rows
//! share its weights, each looks back by itself, and a step of another number of rows than the one before has its graph made anew;
//! what is seen of that is 10 % off, and held up now and then. Texts are drawn: from a source whose tokens follow one another by
//! chance, of phrases that come in any order, or from what the prompt says.

use super::super::cost::StepCost;
use super::{Drafter, Proposal, Tenants, Token};
use std::time::Duration;

/// Requests of each kind.
const REQUESTS: usize = 150;
/// Most tokens of a draft.
const MOST: usize = 63;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> Token {
        Token::try_from(self.next() % n).unwrap()
    }

    fn unit(&mut self) -> f64 {
        self.next() as f64 / f64::from(1u32 << 31)
    }
}

/// Seconds: of so many rows behind nothing, of each row for a token before it (in a step of few rows, and of a tile), and of a
/// graph that is made anew.
struct Machine {
    by_rows: &'static [(usize, f64)],
    look_back: [f64; 2],
    switch: f64,
}

/// A small model on one slow core, as measured: three rows take twice what one takes.
const SMALL: Machine = Machine {
    by_rows: &[(1, 300e-6), (2, 470e-6), (4, 870e-6), (8, 1650e-6), (16, 3100e-6), (64, 12_100e-6)],
    look_back: [0.9e-6, 0.3e-6],
    switch: 260e-6,
};
/// One of 0.5 billion weights on two: eight rows take one and a half times what one takes.
const LARGE: Machine = Machine {
    by_rows: &[(1, 6.5e-3), (2, 6.8e-3), (4, 7.6e-3), (8, 10.2e-3), (16, 16.5e-3), (64, 45e-3)],
    look_back: [1e-6, 0.5e-6],
    switch: 0.3e-3,
};

impl Machine {
    fn time(&self, n_rows: usize, depth: usize) -> f64 {
        let at = self.by_rows.partition_point(|(n, _)| *n < n_rows).max(1);
        let ((from, low), (to, high)) = (self.by_rows[at - 1], self.by_rows[at]);
        let part = (n_rows as f64 - from as f64) / (to - from) as f64;
        low + (high - low) * part + (n_rows * depth) as f64 * self.look_back[usize::from(n_rows >= 48)]
    }

    /// What a start measures.
    fn cost(&self) -> StepCost {
        let mut cost = StepCost::within(Duration::from_millis(500));
        for n in StepCost::PROBES {
            cost.measure(n, Duration::from_secs_f64(self.time(n as usize, 0)));
        }
        for (n, deep) in [(64, 448), (4, 512)] {
            cost.measure_depth(n, deep, self.time(n as usize, deep as usize) - self.time(n as usize, 0));
        }
        cost.measure_switch(Duration::from_secs_f64(self.switch));
        cost
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A prompt and an answer that have nothing in common but the language.
    Free,
    /// The same of a few phrases each: what was said before comes again, and something else behind it.
    Phrases,
    /// The prompt's passage is followed, with a token in fifty another.
    Edited,
    /// A question that was asked before, and answered the same.
    Again,
}

/// A prompt and its answer.
fn request(kind: Kind, random: &mut Random) -> (Vec<Token>, Vec<Token>) {
    // Of 300 tokens each is followed by some, the first of them half of the time, the next a quarter.
    let chance = |random: &mut Random, n: usize| {
        let mut text = vec![random.below(300)];
        while text.len() < n {
            let nth = (random.next() | 1 << 20).trailing_zeros().cast_signed();
            text.push((text[text.len() - 1] * 7 + nth * 31 + 1) % 300);
        }
        text
    };
    let phrases = |random: &mut Random, n: usize| {
        let mut text = Vec::new();
        while text.len() < n {
            let phrase = random.below(40);
            text.extend((0..3 + phrase % 6).map(|i| 1000 + phrase * 10 + i));
        }
        text
    };
    match kind {
        Kind::Free => (chance(random, 420), chance(random, 128)),
        Kind::Phrases => (phrases(random, 420), phrases(random, 128)),
        Kind::Edited => {
            let passage = chance(random, 200);
            let edit = |token: &Token| if random.below(50) == 0 { 999 } else { *token };
            let answer = passage.iter().map(edit).collect();
            (passage, answer)
        }
        Kind::Again => {
            let (question, answer) = (chance(random, 20), chance(random, 250));
            ([&question[..], &answer, &[998], &question].concat(), answer)
        }
    }
}

/// A worker with one slot, and a tenant.
struct Run<'a> {
    machine: &'a Machine,
    cost: StepCost,
    tenants: Tenants,
    random: Random,
    n_rows_before: usize,
}

impl<'a> Run<'a> {
    fn new(machine: &'a Machine) -> Self {
        Self { machine, cost: machine.cost(), tenants: Tenants::default(), random: Random(7), n_rows_before: 1 }
    }

    /// Seconds of an answer, without drafts and with.
    fn answer(&mut self, (prompt, answer): &(Vec<Token>, Vec<Token>)) -> (f64, f64) {
        let mut drafter = Drafter::new(None, true).unwrap();
        drafter.begin(Some(self.tenants.open(1)), false);
        let mut tokens = prompt.clone();
        let (mut plain, mut with) = (0.0, 0.0);
        // The prompt's step says the first.
        let mut n_told = 1;
        let mut done = 0;
        while done + n_told < answer.len() {
            for token in &answer[done..done + n_told] {
                tokens.push(*token);
                drafter.follow(&tokens, prompt.len());
            }
            done += n_told;
            drafter.share(&answer[..done], n_told, self.tenants.pool(1));
            let n_right = self.step(&mut drafter, &tokens, &answer[done..], &mut with);
            n_told = n_right + 1;
            plain += (0..n_told).map(|i| self.machine.time(1, tokens.len() + i)).sum::<f64>();
        }
        self.tenants.lately(1).unwrap().learn(&drafter);
        (plain, with)
    }

    /// A step, whose time is added; how much of its draft came.
    fn step(&mut self, drafter: &mut Drafter, tokens: &[Token], left: &[Token], time: &mut f64) -> usize {
        self.cost.stand(1, tokens.len() as f64);
        let per_token = self.cost.pass(1);
        let (mut n, mut n_right) = (0, 0);
        if let Some(Proposal { text, source, chances, stake, is_proven }) = drafter.propose(tokens) {
            let most = MOST.min(left.len() - 1).min(text.len());
            let odds = if is_proven { chances.next } else { 0.0 };
            let affordable = self.cost.affordable((1, per_token), odds, most, stake);
            n = self.cost.worth((1, 0.0), 1.0, chances, affordable).0;
            let trial = self.cost.trial(1, 1.0, chances, most);
            n = trial.map_or(n, |(n, _)| n);
            n_right = text[..n].iter().zip(left).take_while(|(one, other)| one == other).count();
            let price = self.cost.price(1, n) / per_token;
            if trial.is_some() {
                self.cost.refund(price.min(n_right as f64));
            }
            if n > 0 {
                drafter.count(source, (n, n_right), if trial.is_some() { 0.0 } else { price });
            }
        }
        let switch = if self.n_rows_before == 1 + n { 0.0 } else { self.machine.switch };
        self.n_rows_before = 1 + n;
        let truth = self.machine.time(1 + n, tokens.len()) + switch;
        *time += truth;
        let seen = truth * (0.9 + 0.2 * self.random.unit()) * if self.random.below(100) == 0 { 2.0 } else { 1.0 };
        self.cost.observe(1 + n as u32, Duration::from_secs_f64(seen));
        n_right
    }
}

/// The rate of requests of each kind, which come in turn, of that without drafts.
fn rates(machine: &Machine, kinds: &[Kind]) -> Vec<f64> {
    let (mut run, mut random) = (Run::new(machine), Random(11));
    let mut sums = vec![(0.0, 0.0); kinds.len()];
    for _ in 0..REQUESTS {
        for (kind, sum) in kinds.iter().zip(&mut sums) {
            let (plain, with) = run.answer(&request(*kind, &mut random));
            *sum = (sum.0 + plain, sum.1 + with);
        }
    }
    sums.iter().map(|(plain, with)| plain / with).collect()
}

#[test]
fn what_is_not_followed_costs_next_to_nothing_whatever_else_is_asked() {
    let kinds = [Kind::Free, Kind::Phrases];
    let rest = [Kind::Edited, Kind::Again];
    for (name, machine) in [("small", &SMALL), ("large", &LARGE)] {
        let alone: Vec<f64> = kinds.iter().flat_map(|kind| rates(machine, &[*kind])).collect();
        let mixed = rates(machine, &[kinds, rest].concat());
        println!("{name}: alone {alone:.3?}, mixed {mixed:.3?}");
        assert!(alone.iter().chain(&mixed[..2]).all(|rate| *rate > 0.98), "{name}: {alone:.3?}, {mixed:.3?}");
    }
}

#[test]
fn what_is_followed_pays() {
    for (name, machine, edited, again) in [("small", &SMALL, 1.03, 1.8), ("large", &LARGE, 3.0, 5.0)] {
        let rates = [Kind::Edited, Kind::Again].map(|kind| rates(machine, &[kind])[0]);
        println!("{name}: edited, asked again {rates:.3?}");
        assert!(rates[0] > edited && rates[1] > again, "{name}: {rates:.3?}");
    }
}
