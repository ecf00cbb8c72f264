//! Who is next: a fair order of owners by the tokens they were served.
//!
//! # Design
//! Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): each owner has a counter
//! of weighted tokens, and the backlogged owner with the least goes first. One that comes back after a pause starts a
//! little below the least of those who wait, so nobody saves up more than that by being away. Of one owner's requests the oldest goes first.
//!
//! Classes share in the same way, above the owners: batch counts twenty times as much, so it gets a twentieth while
//! interactive requests wait and everything while none does.
//!
//! The deadline of a first token, as far as slots go: an interactive request waits an eighth of the time that its prompt takes
//! ([`PATIENCE`]) before one is taken from batch, or from an owner with more than its part. Batch has no deadline, only its floor.
//!
//! A slot is held until its request ends, so owners that hold more than their part may have to give one back: see
//! [`Fair::overdrawn`]. What computing the parked request again costs is charged to whom it was parked for, so nobody can
//! make others lose more than their own part.

use crate::chat::Class;
use rustc_hash::FxHashMap;

/// Weights of a token: a prompt's are computed together, an answer's one by one.
pub const INPUT_WEIGHT: u64 = 1;
pub const OUTPUT_WEIGHT: u64 = 2;

/// How long a request waits for a slot before one is taken from who holds too many, as a part of the time that its prompt
/// takes: its first token then comes within twice the time that it would take alone.
pub const PATIENCE: u32 = 8;

/// How much more a batch token counts, between the classes: 1 / (1 + 19) of the work is its floor.
const BATCH_WEIGHT: u64 = 19;
/// Weighted tokens of interactive requests that a new batch backlog lets go first.
const BATCH_PATIENCE: u64 = 4096;
/// Weighted tokens that an owner who was away, or asks for little, may be ahead of those who wait: a prompt's worth, so
/// that it is computed without a break.
const CREDIT: u64 = 2048;
/// Weighted tokens that a running request counts for before they are served: of several slots that are free at once, not
/// all go to the same owner.
const ANTICIPATED: u64 = 128;
/// Most owners that are remembered; beyond it, those without requests are forgotten.
const OWNERS_MAX: usize = 4096;

/// Counters of one worker.
#[derive(Debug, Default)]
pub struct Fair {
    owners: FxHashMap<(Class, u64), Owner>,
    classes: [Level; 2],
}

#[derive(Debug, Default)]
struct Owner {
    /// Weighted tokens.
    served: u64,
    /// What its requests made others compute again, charged when one of them ends: until then it is in a hurry.
    owed: u64,
    n_waiting: u32,
    n_running: u32,
}

#[derive(Debug, Default)]
struct Level {
    served: u64,
    n_waiting: u32,
    n_running: u32,
    /// Where the owner stood whose request was last taken from the queue.
    last: u64,
}

/// A request that holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub slot: usize,
    pub class: Class,
    pub owner: u64,
    /// Tokens that would be computed again.
    pub n_held: usize,
    /// Order of acceptance.
    pub serial: u64,
}

impl Fair {
    /// A request waits that did not wait before.
    pub fn arrive(&mut self, class: Class, owner: u64) {
        let others = self.owners.iter().filter(|((of, _), other)| *of == class && other.n_waiting > 0);
        let least = others.map(|(_, other)| other.served).min();
        let start = least.unwrap_or(self.classes[index(class)].last).saturating_sub(CREDIT);
        if self.owners.len() >= OWNERS_MAX {
            self.owners.retain(|_, owner| owner.n_waiting + owner.n_running > 0);
        }
        let account = self.owners.entry((class, owner)).or_default();
        if account.n_waiting == 0 {
            account.served = account.served.max(start);
        }
        account.n_waiting += 1;
        self.arrive_class(class);
    }

    fn arrive_class(&mut self, class: Class) {
        let other = &self.classes[1 - index(class)];
        let start = match class {
            _ if other.n_waiting == 0 => 0,
            Class::Interactive => other.served,
            Class::Batch => other.served + BATCH_PATIENCE,
        };
        let level = &mut self.classes[index(class)];
        if level.n_waiting == 0 {
            level.served = level.served.max(start);
        }
        level.n_waiting += 1;
    }

    /// A waiting request has a slot now.
    pub fn start(&mut self, class: Class, owner: u64) {
        self.leave_queue(class, owner);
        let account = self.owners.entry((class, owner)).or_default();
        account.n_running += 1;
        let level = &mut self.classes[index(class)];
        level.n_running += 1;
        level.last = account.served;
    }

    /// A waiting request is gone.
    pub fn leave_queue(&mut self, class: Class, owner: u64) {
        if let Some(account) = self.owners.get_mut(&(class, owner)) {
            account.n_waiting = account.n_waiting.saturating_sub(1);
        }
        let level = &mut self.classes[index(class)];
        level.n_waiting = level.n_waiting.saturating_sub(1);
    }

    /// A request gave its slot back and waits again. It was never away, so its owner stands where it stood.
    pub fn park(&mut self, class: Class, owner: u64) {
        self.end(class, owner);
        self.owners.entry((class, owner)).or_default().n_waiting += 1;
        self.classes[index(class)].n_waiting += 1;
    }

    /// For a request of `owner` another gave its slot back; `n_held` tokens are to be computed again.
    pub fn displace(&mut self, class: Class, owner: u64, n_held: usize) {
        self.owners.entry((class, owner)).or_default().owed += n_held as u64 * INPUT_WEIGHT;
    }

    /// A request with a slot is gone.
    pub fn end(&mut self, class: Class, owner: u64) {
        if let Some(account) = self.owners.get_mut(&(class, owner)) {
            account.n_running = account.n_running.saturating_sub(1);
            account.served += std::mem::take(&mut account.owed);
        }
        let level = &mut self.classes[index(class)];
        level.n_running = level.n_running.saturating_sub(1);
    }

    /// Tokens were computed for an owner.
    pub fn charge(&mut self, class: Class, owner: u64, n_input: u64, n_output: u64) {
        let weighted = n_input * INPUT_WEIGHT + n_output * OUTPUT_WEIGHT;
        self.owners.entry((class, owner)).or_default().served += weighted;
        let per_class = if class == Class::Batch { BATCH_WEIGHT } else { 1 };
        self.classes[index(class)].served += weighted * per_class;
    }

    /// Sorts waiting requests, who is next first: class, owner, age.
    pub fn rank(&self, class: Class, owner: u64, serial: u64) -> (bool, u64, u64) {
        let anticipated =
            self.owners.get(&(class, owner)).map_or(0, |account| u64::from(account.n_running) * ANTICIPATED);
        (class != self.next_class(), self.debt(class, owner) + anticipated, serial)
    }

    /// Sorts prompts that are being computed, who is next first.
    pub fn turn(&self, class: Class, owner: u64) -> (bool, u64) {
        (class != self.next_class(), self.debt(class, owner))
    }

    /// How much was served to an owner already, in weighted tokens.
    pub fn debt(&self, class: Class, owner: u64) -> u64 {
        self.owners.get(&(class, owner)).map_or(0, |account| account.served)
    }

    fn next_class(&self) -> Class {
        let [interactive, batch] = &self.classes;
        let sum = |level: &Level, weight: u64| level.served + u64::from(level.n_running) * ANTICIPATED * weight;
        if sum(interactive, 1) <= sum(batch, BATCH_WEIGHT) { Class::Interactive } else { Class::Batch }
    }

    /// Of `holders`, which hold all slots, the one that must give its slot to a waiting request of this class and owner;
    /// `None`: the request waits until one ends.
    ///
    /// An interactive request takes from batch, unless batch has had less than its floor. Within a class, an owner takes
    /// from one that holds at least two slots more and was served no less. Taken is what is computed again soonest, of
    /// equals the youngest.
    pub fn overdrawn(&self, class: Class, owner: u64, holders: &[Holder]) -> Option<Holder> {
        let soonest = |of: &dyn Fn(&Holder) -> bool| {
            let found = holders.iter().filter(|holder| of(holder));
            found.min_by_key(|holder| (holder.n_held, std::cmp::Reverse(holder.serial))).copied()
        };
        if class == Class::Interactive && self.next_class() == Class::Interactive {
            let batch = soonest(&|holder| holder.class == Class::Batch);
            if batch.is_some() {
                return batch;
            }
        }
        let n_held = |by: u64| holders.iter().filter(|holder| holder.class == class && holder.owner == by).count();
        let (own, debt) = (n_held(owner), self.debt(class, owner));
        let others = holders.iter().filter(|holder| holder.class == class).map(|holder| holder.owner);
        let richest = others
            .map(|other| (n_held(other), self.debt(class, other), other))
            .filter(|(n, served, _)| *n > own + 1 && *served >= debt)
            .max()?;
        soonest(&|holder| holder.class == class && holder.owner == richest.2)
    }
}

fn index(class: Class) -> usize {
    match class {
        Class::Interactive => 0,
        Class::Batch => 1,
    }
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
