//! OpenAI's Responses API: the dialect of the AI SDK's default provider, of Codex and of newer LangChain modes.
//!
//! Requests: `request` reads the body, `tools` what may be called, `items` the input and how it becomes turns. Answers:
//! `output` turns deltas into items (and events), `object` holds the shapes of whole answers, `stream` the event stream,
//! `custom` the text argument of custom tools.
//!
//! **Invariant:** a streamed answer and a whole one pass through the same state machine, so that both have the same items.
//!
//! # Design
//! A request may lean on what the server keeps: an earlier response, or single items of one. Reading stays pure: the body
//! is read completely first ([`request`]), then whoever has the store hands in what was asked for ([`Asked::resolve`],
//! [`Asked::converse`]). Items are kept as the JSON a client may list again, and are read once more when they are used.
//! Ids of items are derived from their response's id, so nothing here needs a source of chance.

mod custom;
mod items;
mod object;
mod output;
mod request;
mod stream;
mod tools;

pub use items::Item;
pub use object::{Echo, Head, Page, cancelled_refusal, deleted, input_tokens, item_list, page};
pub use request::{Asked, MissingItem, Places, request};
pub use stream::{Finished, ResponseChunks, Whole};
