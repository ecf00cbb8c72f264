//! How models are served: what the settings say of each, and of loading them.

pub use super::room::Size;
use super::spec::Price;
use crate::chat::Sampling;
use crate::engine::{Description, EngineConfig};
use std::sync::Arc;
use std::time::Duration;

/// How long a model stays loaded after its last request. Ollama's `keep_alive`: negative is `Forever`, 0 is at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    Forever,
    For(Duration),
}

/// How one model is served.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The name under which it is served; every answer carries it.
    pub id: String,
    /// Further names, also patterns such as `gpt-*`.
    pub aliases: Vec<String>,
    /// The operator's sampling defaults: under the client's, over the model's. Checked by whoever reads them.
    pub sampling: Sampling,
    /// Most tokens of an answer where a request says nothing; `None`: as many as fit.
    pub n_predict: Option<u32>,
    /// Whether the model thinks where a request says nothing; `None`: as its template has it.
    pub thinks: Option<bool>,
    /// The name of its file, without the folder; empty for a pretended model.
    pub file_name: String,
    /// When the model began to be served, in unix seconds.
    pub n_created: u64,
    /// Load at the first request instead of at the start.
    pub is_lazy: bool,
    /// `Forever` is the operator's word and can't be changed by clients.
    pub keep_alive: KeepAlive,
    /// What its tokens cost.
    pub price: Price,
    /// Sets of `[guardrails.NAME]` that hold for its requests.
    pub guardrails: Vec<String>,
    /// Estimated memory once loaded.
    pub size: Size,
    /// What its file says of it before it is loaded.
    pub outline: Option<Arc<Description>>,
}

impl ModelConfig {
    /// A model by its name alone, always loaded.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            aliases: Vec::new(),
            sampling: Sampling::default(),
            n_predict: None,
            thinks: None,
            file_name: String::new(),
            n_created: 0,
            is_lazy: false,
            keep_alive: KeepAlive::Forever,
            price: Price::default(),
            guardrails: Vec::new(),
            size: Size::default(),
            outline: None,
        }
    }
}

/// A model with the means to load it.
#[derive(Debug, Clone)]
pub struct ModelSetup {
    pub config: ModelConfig,
    pub engine: EngineConfig,
}

/// What loading at request may take.
#[derive(Debug, Clone)]
pub struct LoadLimits {
    /// Most bytes of all loaded models together; `None`: no cap.
    pub loaded_bytes_max: Option<u64>,
    /// Bytes that the GPUs have for all loaded models together; `None`: they have no memory of their own, or there are none.
    pub gpu_bytes_max: Option<u64>,
    /// Whether a model must also fit the memory that the machine has at that time.
    pub watch_machine: bool,
    /// Longest wait of a request for its model's load.
    pub load_wait: Duration,
}

impl Default for LoadLimits {
    fn default() -> Self {
        Self { loaded_bytes_max: None, gpu_bytes_max: None, watch_machine: false, load_wait: Duration::from_secs(300) }
    }
}
