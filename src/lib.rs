//! hearth: one binary that serves a GGUF file as a private, OpenAI-compatible API.
//!
//! # Two roles
//!
//! ```text
//! clients ── http ── dialect ── gateway ── Engine (handle)         front: pure Rust, tokio
//!                                             │ frames on the child's stdin and stdout, or calls
//!                                             ▼
//!                        service ─ preparers ─ workers ─ output    engine: threads, llama.cpp behind `llama`
//! ```
//!
//! `hearth serve` is the front; it starts `hearth engine` from its own executable and supervises it, because requests
//! are known to kill llama.cpp and nothing catches a SIGSEGV. `--in-process` runs the engine's threads in the front.
//!
//! # A chat, down and up
//!
//! | room | what comes in → what goes on | where it runs |
//! |---|---|---|
//! | [`http`] edge, auth | bytes and headers → principal | async task |
//! | [`dialect`] | wire JSON → [`chat::ChatRequest`] | async task |
//! | [`gateway`] | name → target and permit, sampling settled → [`engine::GenerateRequest`] | async task |
//! | [`engine`] prepare | template, tokens, sampler → run | preparer threads |
//! | [`engine`] worker | slots → plan → batch → decode → sample → text | worker thread, owner of the context |
//! | [`engine`] output | text → [`chat::Delta`] (thinking apart) | output thread |
//! | [`engine`] handle | [`engine::Event`], one ending each | mailbox; dropping it cancels |
//! | [`gateway`] meter | events counted as they pass; permit settled at the end | async task |
//! | [`gateway`] books, store | what it came to → a row, committed before the last byte | writer thread, owner of the database |
//! | [`gateway`] report, [`telemetry`] | what is known of it at its end → a line of the log, spans | the last who lets go; exporter task |
//! | [`http`] sse, [`dialect`] | delta → chunk → bytes | async task |
//!
//! # Invariants
//!
//! 1. Imports run one way: cli → config → http → gateway → dialect → engine → model → llama; `chat` is plain data that
//!    any of them may use, `telemetry` a leaf. `tests/tidy.rs` checks it. Only `llama` has `unsafe`.
//! 2. Only `dialect` knows a client's JSON, only `http` knows status codes, only `llama` knows pointers.
//! 3. Every request ends exactly once, and everything it held comes back by drop, whatever ended it.
//! 4. Every queue, buffer, cache and retry has a bound, written where it is made.
//! 5. Nothing is silent: an unknown field is listed in a response header, a known one that can't be honoured is refused.
//! 6. Prompts, answers and keys never reach logs, metrics or error texts. (Sealed in the books, where all concerned say so,
//!    and in a cache of answers on disk, where the operator does.)
//! 7. No network access of its own, but for images at hosts that the operator listed (`--media-host`), for upstreams, where
//!    the operator, the alias, the model, the key and the request all allow it, and for the collector of traces that the
//!    operator named (`--otlp-endpoint`), which gets no words of requests.
//! 8. The same request with the same seed, alone, gives the same answer.

pub mod cli;
pub mod config;
pub mod http;

pub mod gateway;

pub mod dialect;

pub mod chat;

pub mod engine;
pub mod model;

// The one room that talks to C.
#[allow(unsafe_code)]
mod llama;

pub mod telemetry;

#[cfg(test)]
#[path = "../tests/fuzz/mod.rs"]
mod fuzz;
