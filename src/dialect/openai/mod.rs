//! OpenAI's API, with the extras that llama.cpp and vLLM clients send, and the tokenizer endpoints of llama-server.
//!
//! Requests: `chat`, `completion`, `tokenizer`, each reading bytes into plain data (`sampling`, `messages` are their shared
//! parts). Answers: `wire` holds the shapes, `to_wire` fills whole answers, `stream` writes chunks.
//!
//! **Invariant:** each documented request field is either honoured, listed as accepted without effect, or refused by name.

mod chat;
mod completion;
mod logprobs;
mod lora;
mod messages;
mod models;
mod sampling;
mod stream;
mod to_wire;
mod tokenizer;
mod wire;

pub use chat::chat_request;
pub use completion::completion_request;
pub use lora::{Scales, lora_request, lora_response};
pub use models::{ModelEntry, model_list, model_object};
pub use stream::{ChatChunks, TextChunks};
pub(in crate::dialect) use to_wire::rfc3339;
pub use to_wire::{Head, chat_response, completion_response, error_body, input_tokens_response};
pub use tokenizer::{
    Render, Tokenize, detokenize_request, detokenize_response, render_request, render_response, tokenize_request,
    tokenize_response,
};
