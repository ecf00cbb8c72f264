//! placeholder
pub struct LlamaModel;
