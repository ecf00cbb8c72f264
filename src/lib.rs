//! hearth: one binary that serves a GGUF file as a private, OpenAI-compatible API.

pub mod chat;
pub mod engine;
#[allow(unsafe_code)]
mod llama;
