//! Vectors: a thread and a context of their own, so that embedding never touches the slots that chats use.
//!
//! [`inputs`] turns a command into token lists on a preparer thread; [`worker`] computes them.

mod inputs;
mod worker;

pub(super) use inputs::{InputShape, embed_inputs, pair_inputs};
pub(super) use worker::{Parts, Worker, warm_up};

use super::backend::Token;
use super::request::RequestId;
use super::service::Live;
use std::sync::Arc;

/// One request's inputs, checked.
pub(super) struct Job {
    pub id: RequestId,
    pub live: Arc<Live>,
    /// None of them empty, none longer than the model takes.
    pub inputs: Vec<Vec<Token>>,
}
