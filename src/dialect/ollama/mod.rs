//! Ollama's native API, `/api/*`.
//!
//! Requests: `chat`, `generate`, `embed` (`options` and `keep_alive` are their shared parts). Answers: `rows` writes whole
//! answers and NDJSON rows, `models` the lists and descriptions of models.
//!
//! **Invariant:** each documented request field is either honoured, listed as accepted without effect, or refused by name.
//! Every line of a stream is one JSON object, and no line is blank.

mod chat;
mod embed;
mod generate;
mod keep_alive;
mod models;
mod options;
mod rows;

pub use chat::{Chat, chat_request};
pub use embed::{Embed, EmbedForm, embed_request, embed_response, embeddings_request, embeddings_response};
pub use generate::{Generate, Wanted, generate_request};
pub use keep_alive::KeepAlive;
pub use models::{
    Served, named_request, ps_response, pull_request, pull_rows, show_response, tags_response, version_response,
};
pub use rows::{Head, Rows, Shape, idle_response, whole_response};

use crate::dialect::Fault;
use crate::dialect::fields::Object;

/// The type of a stream: one JSON object a line.
pub const NDJSON: &str = "application/x-ndjson";

/// What this API calls the engine's `field`.
pub fn field_name(field: &str) -> String {
    if field == "constraint" || field.starts_with("response_format") { "format".to_owned() } else { field.to_owned() }
}

/// `{"error":"…"}`: always a text, never an object.
pub fn error_body(message: &str) -> Vec<u8> {
    serde_json::json!({ "error": message }).to_string().into_bytes()
}

/// `model`, or `name` as old clients write it.
fn model(body: &mut Object) -> Result<Option<String>, Fault> {
    let (model, name) = (body.string("model")?, body.string("name")?);
    Ok(model.or(name))
}
