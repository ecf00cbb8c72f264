//! Text in, text out: the one door to a model. See [`Engine`].
//!
//! **Invariant:** the front reaches llama.cpp through [`Engine`] only, and what passes it is owned, bounded, serialisable
//! data. Every request ends exactly once. Nothing here knows HTTP, JSON dialects, keys or tenants' names.
//!
//! # Design
//! Two transports stand behind the door. `Threads` runs the service in this process; `Process` runs it in a child (the
//! same executable as `hearth engine`), because ordinary requests are known to kill llama.cpp and neither SIGSEGV nor an
//! abort can be caught. Both deliver events through the same router, so the front cannot tell them apart but by what
//! survives. The receiving half of a generation is a mailbox that merges text deltas when its reader is slow: it is
//! bounded by the length of the answer and never makes the engine wait.

pub mod config;

mod adapters;
mod backend;
mod cells;
mod constraint;
mod cost;
mod drafter;
mod embed;
mod error;
mod event;
mod fair;
mod fence;
mod fold;
mod gates;
mod handle;
mod infill;
mod lane;
mod logprobs;
mod mailbox;
pub mod media;
mod output;
mod pace;
mod prefix;
mod prepare;
mod pressure;
mod promises;
mod reading;
mod request;
mod router;
mod run;
mod scheduler;
mod service;
mod slope;
mod slot;
mod speculation;
mod text;
mod transport;
mod trust;
mod turns;
mod vocabulary;
mod wait;
mod worker;

pub use adapters::chosen as choose_adapters;
pub use backend::llama::{Gpu, gpus, ground, has_gpu_code, unloadable};
pub use config::EngineConfig;
pub use error::Failure;
pub use event::{Adapter, Description, Done, Event, Pooling, SlotStats, Stats, Timings, Vectors};
pub use handle::{Canceller, Engine, EngineState, Generation, Load, Tokenized, Vectorizing};
pub use pressure::{Pressure, PressureNow};
pub use request::{Command, EmbedRequest, GenerateRequest, RequestId, RerankRequest, TokenizeRequest, fresh_family};
pub use transport::{EngineMode, run_child};
pub use vocabulary::Vocabulary;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod honesty_tests;
#[cfg(test)]
mod simulation_tests;
#[cfg(test)]
mod tests;
