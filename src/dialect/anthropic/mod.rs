//! Anthropic's Messages API: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! `request` reads a body (`messages` and `tools` are its parts); `to_wire` writes whole answers and errors, `stream`
//! writes events.
//!
//! **Invariant:** each documented request field is either honoured, listed as accepted without effect, or refused by name.

mod messages;
mod request;
mod stream;
mod to_wire;
mod tools;

pub use request::{Messages, count_request, field_name, messages_request};
pub use stream::MessageChunks;
pub use to_wire::{Head, count_response, error_body, message_response};

/// The engine's name of a call as this API writes it.
fn wire_id(id: &str) -> String {
    match id.strip_prefix("call_") {
        Some(rest) => format!("toolu_{rest}"),
        None => id.to_owned(),
    }
}

/// The name of a call in a client's history as the engine gave it, so that the prompt stays what it was.
fn engine_id(id: String) -> String {
    match id.strip_prefix("toolu_") {
        Some(rest) => format!("call_{rest}"),
        None => id,
    }
}
