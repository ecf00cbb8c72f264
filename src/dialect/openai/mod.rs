//! OpenAI's API, with the extras that llama.cpp and vLLM clients send, and the tokenizer endpoints of llama-server.
//!
//! Requests: `chat`, `completion`, `native`, `infill`, `tokenizer`, each reading bytes into plain data (`sampling`, `messages` with
//! `parts`, `tools` and `format` are their shared parts). Answers: `wire` holds the shapes, `to_wire` fills whole
//! answers, `stream` writes chunks, `calls` knows the shapes of tool calls.
//!
//! **Invariant:** each documented request field is either honoured, listed as accepted without effect, or refused by name.

mod calls;
pub(super) mod chat;
mod completion;
mod embeddings;
pub(super) mod format;
mod infill;
pub(super) mod logprobs;
pub(super) mod lora;
mod messages;
mod models;
mod native;
mod native_answer;
pub(super) mod parts;
mod rerank;
pub(super) mod sampling;
mod stream;
pub(super) mod to_wire;
mod tokenizer;
mod tools;
mod wire;

pub use chat::{Chat, ChatStyle, Places, chat_request};
pub use completion::{Completion, Echo, TextStyle, completion_request};
pub use embeddings::{
    Embeddings, Encoding, classify_request, classify_response, embedding_request, embedding_response,
    embeddings_request, embeddings_response, probabilities,
};
pub use format::constraint_name;
pub use infill::infill_request;
pub use lora::{Scales, lora_request, lora_response};
pub use models::{ModelEntry, model_list, model_object};
pub use native::{Native, native_request};
pub use native_answer::{NativeChunks, native_response, sampling_settings};
pub use rerank::{Rerank, rerank_request, rerank_response, score_request, score_response};
pub use stream::{ChatChunks, TextChunks};
pub(in crate::dialect) use to_wire::rfc3339;
pub use to_wire::{Head, chat_response, completion_response, error_body, input_tokens_response};
pub use tokenizer::{
    Render, Tokenize, detokenize_request, detokenize_response, render_request, render_response, tokenize_request,
    tokenize_response,
};
pub use tools::CallStyle;
