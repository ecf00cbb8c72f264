//! A loaded model, held for one request.

use super::models::{KeepAlive, Known, ModelConfig, Shared};
use crate::engine::{Description, Engine};
use std::sync::Arc;
use std::time::Instant;

/// What a name means, loaded and ready. The model is not unloaded while this lives.
pub struct Target {
    pub engine: Engine,
    pub description: Arc<Description>,
    pub config: Arc<ModelConfig>,
    pin: Pin,
}

impl Target {
    pub(super) fn new(engine: Engine, description: Arc<Description>, pin: Pin) -> Self {
        let config = Arc::clone(&pin.shared.entries[pin.idx].config);
        Self { engine, description, config, pin }
    }

    /// The id under which the model is served; answers carry it.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Scales of the model's LoRA adapters by index, where a request says nothing.
    pub fn adapter_scales(&self) -> Vec<f32> {
        let changed = self.pin.shared.lock()[self.pin.idx].adapter_scales.clone();
        changed.unwrap_or_else(|| self.description.adapters.iter().map(|adapter| adapter.scale).collect())
    }

    /// Sets those scales until the server stops; one for each adapter.
    pub(super) fn set_adapter_scales(&self, scales: Vec<f32>) {
        self.pin.shared.lock()[self.pin.idx].adapter_scales = Some(scales);
    }

    pub(super) fn known(&self) -> Known {
        Known {
            config: Arc::clone(&self.config),
            description: Arc::clone(&self.description),
            adapter_scales: self.adapter_scales(),
        }
    }

    pub(super) fn into_pin(self) -> Pin {
        self.pin
    }
}

/// Keeps a model from being unloaded.
pub(super) struct Pin {
    shared: Arc<Shared>,
    idx: usize,
}

impl Pin {
    pub(super) fn new(shared: &Arc<Shared>, idx: usize) -> Self {
        shared.lock()[idx].n_pins += 1;
        Self { shared: Arc::clone(shared), idx }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut states = self.shared.lock();
        let state = &mut states[self.idx];
        state.n_pins -= 1;
        state.last_used = Instant::now();
        // Whoever unloads idle models, or waits for room, wants to know; a model that stays has nobody who does.
        let matters = state.n_pins == 0 && state.keep_alive != KeepAlive::Forever;
        drop(states);
        if matters {
            self.shared.tell();
        }
    }
}
