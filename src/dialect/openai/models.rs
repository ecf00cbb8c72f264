//! `/v1/models`: one shape that serves OpenAI's, Anthropic's, vLLM's and llama-server's clients.

use super::to_wire::{json, rfc3339};
use super::wire::{ModelMeta, ModelObject, ModelStatus};
use crate::engine::Description;
use serde_json::json;

/// A model, or another name for one.
#[derive(Debug, Clone, Copy)]
pub struct ModelEntry<'a> {
    pub name: &'a str,
    /// The id that answers carry. The same as `name`, unless that is an alias.
    pub id: &'a str,
    pub created: u64,
    /// `None`: nothing is known of it before it is loaded.
    pub description: Option<&'a Description>,
    /// llama-server's word for it: `loaded`, `loading`, `unloaded`, `failed`.
    pub status: &'static str,
}

pub fn model_object(entry: ModelEntry) -> Vec<u8> {
    json(&object(entry))
}

/// `entries`: not empty.
pub fn model_list(entries: &[ModelEntry]) -> Vec<u8> {
    let data: Vec<ModelObject> = entries.iter().map(|entry| object(*entry)).collect();
    json(&json!({
        "object": "list",
        "data": data,
        "has_more": false,
        "first_id": entries.first().map(|entry| entry.name),
        "last_id": entries.last().map(|entry| entry.name),
    }))
}

fn object(entry: ModelEntry) -> ModelObject {
    let meta = |model: &Description| ModelMeta {
        n_ctx: model.n_ctx,
        n_ctx_train: model.n_ctx_train,
        n_vocab: model.n_vocab,
        n_embd: model.n_embd,
        n_params: model.n_params,
        size: model.size_bytes,
        sha256: model.sha256.clone(),
    };
    ModelObject {
        id: entry.name,
        object: "model",
        created: entry.created,
        owned_by: "hearth",
        root: entry.id,
        max_model_len: entry.description.map(|model| model.n_ctx),
        meta: entry.description.map(meta),
        status: ModelStatus { value: entry.status },
        kind: "model",
        display_name: entry.name,
        created_at: rfc3339(entry.created),
        lifecycle: "active",
    }
}
