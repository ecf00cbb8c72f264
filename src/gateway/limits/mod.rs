//! Limits, budgets and their one lock: who may go on, and when to come back.
//!
//! A request meets the [`Limiter`] twice. [`Limiter::admit`] takes a request of the minute and a place, before any work;
//! [`Permit::reserve`], once the engine has counted the prompt, takes the most tokens and money it can cost. Then
//! [`Reservation::settle`] replaces what was reserved by what it was. Dropping both instead gives back everything, the
//! request of the minute too, since a refusal costs nothing. A request that tries several targets reserves for each.
//!
//! **Invariant:** all scopes of a request agree or none of them is touched; within any minute a scope's requests and
//! tokens stay under its limit; `spent + reserved` stays under the budget; every place comes back.
//!
//! # Design
//! Everything is counted in one [`Core`] behind one mutex: a request has up to six scopes, and what was decided under
//! six locks would need as many ways back. The core does no I/O and asks no clock: it is told the time, once on a clock
//! that never jumps (limits) and once on the wall (budgets). State of minutes dies with the process; budgets are told
//! what was spent before (see [`Limiter::lacks_history`]).

mod budget;
mod core;
mod period;
mod permit;
mod refusal;
mod scope;
mod window;

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod model_tests;

pub use budget::Spend;
pub use core::{Core, Held, Rate, SCOPES_MAX, Standing, Ticket};
pub use period::{PeriodWindow, is_zone, window};
pub use permit::{Clock, Limiter, Lock, Now, Permit, Reservation, WallClock, Warning};
pub use refusal::{LimitKind, LimitRefusal};
pub use scope::{LimitSets, Limits, Scope, ScopeKind};
