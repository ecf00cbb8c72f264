//! The types against the readers: whoever adds a field to one and forgets the other is told its path here.

use super::bodies::Schemas;
use super::{anthropic as anthropic_api, native as native_api, ollama as ollama_api};
use super::{openai as api, responses as responses_api, vectors};
use crate::dialect::{anthropic, fields, ollama, openai, responses};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use std::collections::BTreeSet;

/// `[3]` → `[]`.
fn without_indexes(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| path + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn check<T: JsonSchema, R>(read: impl Fn(&[u8]) -> R) {
    check_but::<T, R>(read, |_| false);
}

fn check_but<T: JsonSchema, R>(read: impl Fn(&[u8]) -> R, is_excepted: impl Fn(&str) -> bool) {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let schema = generator.root_schema_for::<T>().to_value();
    let schemas = Schemas(&schema);
    let documented = schemas.paths(&schema);
    let bodies: Vec<Value> = schemas.values(&schema);
    let asked: BTreeSet<String> = fields::asked::during(|| {
        for body in &bodies {
            read(body.to_string().as_bytes());
        }
    });
    let asked: BTreeSet<String> = asked.iter().map(|path| without_indexes(path)).collect();
    let missing: Vec<_> = asked.difference(&documented).filter(|path| !is_excepted(path)).collect();
    let invented: Vec<_> = documented.difference(&asked).filter(|path| !is_excepted(path)).collect();
    let name = T::schema_name();
    assert!(missing.is_empty(), "{name} does not describe what its reader knows: {missing:?}");
    assert!(invented.is_empty(), "{name} describes what its reader never asks for: {invented:?}");
}

#[test]
fn chat() {
    check::<api::ChatCompletionRequest, _>(openai::chat_request);
}

#[test]
fn completion() {
    check::<api::CompletionRequest, _>(openai::completion_request);
}

#[test]
fn llama_servers_own() {
    check::<native_api::NativeCompletionRequest, _>(openai::native_request);
    check::<native_api::InfillRequest, _>(openai::infill_request);
}

#[test]
fn tokenizer() {
    check::<api::TokenizeRequest, _>(openai::tokenize_request);
    check::<api::DetokenizeRequest, _>(openai::detokenize_request);
    check::<api::ApplyTemplateRequest, _>(openai::render_request);
    // In an array, they are read as if it were the field of an object.
    check_but::<api::AdapterScales, _>(openai::lora_request, |path| path.starts_with("[]."));
}

#[test]
fn messages() {
    check::<anthropic_api::MessagesRequest, _>(anthropic::messages_request);
    check::<anthropic_api::CountTokensRequest, _>(anthropic::count_request);
}

#[test]
fn native() {
    check::<ollama_api::OllamaChatRequest, _>(ollama::chat_request);
    check::<ollama_api::OllamaGenerateRequest, _>(ollama::generate_request);
    check::<ollama_api::OllamaEmbedRequest, _>(ollama::embed_request);
    check::<ollama_api::OllamaEmbeddingsRequest, _>(ollama::embeddings_request);
    check::<ollama_api::OllamaShowRequest, _>(ollama::named_request);
    check::<ollama_api::OllamaPullRequest, _>(ollama::pull_request);
}

/// Parts of items are translated into the chat's before they are read, so their names can't be seen here.
#[test]
fn response() {
    let is_part = |path: &str| path.starts_with("input[].content[].") || path.starts_with("input[].output[].");
    check_but::<responses_api::ResponseRequest, _>(responses::request, is_part);
}

#[test]
fn vectors_and_ranks() {
    check::<vectors::EmbeddingsRequest, _>(openai::embeddings_request);
    check::<vectors::EmbeddingRequest, _>(openai::embedding_request);
    check::<vectors::RerankRequest, _>(openai::rerank_request);
    check::<vectors::ScoreRequest, _>(openai::score_request);
    check::<vectors::ClassifyRequest, _>(openai::classify_request);
}
