//! hearth: one binary that serves a GGUF file as a private, OpenAI-compatible API.

pub mod chat;
pub mod dialect;
pub mod engine;
pub mod gateway;
pub mod http;
#[allow(unsafe_code)]
mod llama;
pub mod telemetry;
