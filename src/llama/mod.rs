//! llama.cpp as safe, owned Rust: the only room with `unsafe`.
//!
//! **Invariant:** no pointer leaves this room; one owner per C object, freed once in `Drop`; a [`Context`] keeps its
//! [`Model`] alive; no C++ exception and no Rust panic crosses the border.
//!
//! # Design
//! Calls that can throw or assert go through our own C++ shim (`shim/`), which turns both into a status and a text.
//! Plain getters are called in the sys crate directly. The safe crate `llama-cpp-2` is not used: its contexts borrow the
//! model, and it lacks the abort callback, thread pools, chat templates and llama.cpp's sampler chain.
//!
//! Some operations of a graph are computed by [`kernels`] instead of ggml, on its threads.
//!
//! Samplers read rows of logits and never a context, so that several choose at once, those with grammars too; tests hold them
//! to llama.cpp's own, which reads its row in the context.

mod chat;
mod context;
mod cpu;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod gpu;
mod heap;
mod kernels;
mod log;
mod memory;
mod model;
mod mtmd;
mod sampler;
mod specials;
mod speculator;
mod sys;
mod team;

pub use chat::{AnswerFrame, AnswerParser, ReadAnswer, ReadCall, RenderedChat, Shape, Templates, ToolFormat};
pub use context::{Batch, Context, ContextParams, Decoded, EmbeddingRows, KvElement, PoolingType};
pub use cpu::{VARIABLE as BACKENDS_VARIABLE, cpu};
pub use error::Error;
pub use gpu::{Gpu, gpus, has_gpu_code, unloadable};
pub use heap::trim_heap;
pub use kernels::KernelChoice;
pub use log::init;
pub use model::{Model, ModelParams};
pub use mtmd::{Chunk, Piece, Projector};
#[cfg(test)]
pub use sampler::Reference;
pub use sampler::{Grammar, Sampler, SamplerParams, Trigger};
pub use speculator::{DraftAsk, DraftKind, DraftParams};

/// llama.cpp's version, as it calls itself.
pub fn version() -> String {
    // SAFETY: takes nothing and returns a static C string.
    unsafe { sys::text(sys::llama_version()) }
}

/// Whether this build can keep layers on a GPU. Source: llama_supports_gpu_offload, llama.h.
pub fn offloads() -> bool {
    // SAFETY: takes nothing.
    unsafe { sys::llama_supports_gpu_offload() }
}
