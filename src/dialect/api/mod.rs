//! The shapes of every request and answer as types, for the document at `/openapi.json`.
//!
//! # Design
//! Requests are read by hand (see [`super`]), so nothing can be derived from their readers. These types say the same once
//! more, in the words a client's author reads, and tests hold both to each other: each key that a reader asks for is a
//! property here, each property is asked for by its reader, and real answers have no key that is not here.
//!
//! Two marks on properties: `x-hearth: "no effect"` (accepted, changes nothing) and `x-hearth: "refused"` (known, and a 400
//! that names it unless it is empty).
#![expect(dead_code, reason = "schemars reads these types; no value of them is ever made")]
#![allow(clippy::large_enum_variant, reason = "no value of them is ever made")]

pub mod answers;
pub mod anthropic;
mod conversation;
pub mod native;
pub mod ollama;
pub mod openai;
pub mod responses;
mod sampling;
pub mod vectors;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::borrow::Cow;

/// A field that is accepted and changes nothing, or is refused: whatever its type.
type Any = Option<serde_json::Value>;

/// What is always there and may be null. An `Option` may be left out.
pub struct Nullable<T>(Option<T>);

impl<T: JsonSchema> JsonSchema for Nullable<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Nullable{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Option<T>>()
    }
}

#[cfg(test)]
#[path = "../../../tests/it/support/bodies.rs"]
mod bodies;
#[cfg(test)]
mod tests;
