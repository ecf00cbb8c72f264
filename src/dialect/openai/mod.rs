//! OpenAI's API, with the extras that llama.cpp and vLLM clients send, and the tokenizer endpoints of llama-server.
//!
//! Requests: `chat`, `completion`, `tokenizer`, each reading bytes into plain data (`sampling`, `messages` are their shared
//! parts). Answers: `wire` holds the shapes, `to_wire` fills whole answers, `stream` writes chunks.
//!
//! **Invariant:** each documented request field is either honoured, listed as accepted without effect, or refused by name.

mod chat;
mod completion;
mod embeddings;
mod logprobs;
mod messages;
mod rerank;
mod sampling;
mod stream;
mod to_wire;
mod tokenizer;
mod wire;

pub use chat::chat_request;
pub use completion::completion_request;
pub use embeddings::{
    Embeddings, Encoding, classify_request, classify_response, embedding_request, embedding_response,
    embeddings_request, embeddings_response,
};
pub use rerank::{Rerank, rerank_request, rerank_response, score_request, score_response};
pub use stream::{ChatChunks, TextChunks};
pub use to_wire::{
    Head, chat_response, completion_response, error_body, input_tokens_response, model_list, model_object,
};
pub use tokenizer::{
    Render, Tokenize, detokenize_request, detokenize_response, render_request, render_response, tokenize_request,
    tokenize_response,
};
