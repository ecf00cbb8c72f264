//! Embeddings, rerank, score and classify.

use super::Any;
use super::openai::TokenId;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"input": ["hello", "goodbye"]}]))]
pub struct EmbeddingsRequest {
    model: Option<String>,
    /// None of them empty; at most 2048.
    input: VectorInput,
    encoding_format: Option<Encoding>,
    /// Cut each vector to this many numbers and normalise it again.
    #[schemars(range(min = 1, max = u32::MAX))]
    dimensions: Option<u32>,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    user: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum VectorInput {
    Text(#[schemars(length(min = 1))] String),
    Tokens(#[schemars(length(min = 1))] Vec<MixedPart>),
    Several(#[schemars(length(min = 1, max = 2048))] Vec<VectorEntry>),
    String(TextObject),
    Parts(TextOfParts),
}

/// llama-server's form of a text.
#[derive(JsonSchema)]
pub struct TextObject {
    #[schemars(length(min = 1))]
    prompt_string: String,
    /// Embeddings are made of text.
    #[schemars(extend("x-hearth" = "refused"))]
    multimodal_data: Any,
}

/// A text in parts, which are joined.
#[derive(JsonSchema)]
pub struct TextOfParts {
    #[schemars(length(min = 1))]
    content: Vec<TextPart>,
}

#[derive(JsonSchema)]
pub struct TextPart {
    #[schemars(rename = "type")]
    kind: TextKind,
    #[schemars(length(min = 1))]
    text: String,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum TextKind {
    Text,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum VectorEntry {
    Text(#[schemars(length(min = 1))] String),
    Tokens(#[schemars(length(min = 1))] Vec<MixedPart>),
    String(TextObject),
    Parts(TextOfParts),
}

/// Of one input, which is a list of its own or begins with a token id.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum MixedPart {
    Token(TokenId),
    Text(String),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Encoding {
    Float,
    /// Little-endian f32.
    Base64,
}

/// llama-server's own form.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"content": "hello"}, {"input": "hello"}]))]
pub struct EmbeddingRequest {
    model: Option<String>,
    content: Option<VectorInput>,
    /// Another name of `content`.
    input: Option<VectorInput>,
    /// -1: as the model made it; 0: by the largest number; 2: Euclid's length; others: that p-norm.
    #[schemars(range(min = -1, max = 64))]
    embd_normalize: Option<i32>,
}

/// As Cohere, Jina and vLLM ask, or as TEI does.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum RerankRequest {
    Documents(RerankDocuments),
    Texts(RerankTexts),
}

#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"query": "a", "documents": ["b", "c"]}]))]
pub struct RerankDocuments {
    #[schemars(length(min = 1, max = 2048))]
    documents: Vec<RankedDocument>,
    #[schemars(flatten)]
    rest: RerankRest,
    #[schemars(extend("x-hearth" = "no effect"))]
    raw_scores: Option<bool>,
}

/// TEI's form; the answer is an array.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"query": "a", "texts": ["b", "c"]}]))]
pub struct RerankTexts {
    #[schemars(length(min = 1, max = 2048))]
    texts: Vec<RankedDocument>,
    /// Another name of `return_documents`.
    return_text: Option<bool>,
    /// `true` is refused: use `max_tokens_per_doc`.
    #[schemars(extend("x-hearth" = "refused"))]
    truncate: Option<bool>,
    /// Scores are the model's own: `false` is refused.
    #[schemars(extend("x-hearth" = "refused"))]
    raw_scores: Option<bool>,
    #[schemars(flatten)]
    rest: RerankRest,
}

#[derive(JsonSchema)]
pub struct RerankRest {
    model: Option<String>,
    query: String,
    /// Results wanted.
    #[schemars(range(min = 1))]
    top_n: Option<i64>,
    /// Give the documents back with their scores.
    return_documents: Option<bool>,
    /// Cut documents to this many tokens.
    #[schemars(range(min = 1, max = u32::MAX))]
    max_tokens_per_doc: Option<u32>,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    user: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum RankedDocument {
    Text(String),
    Object { text: String },
}

/// Pairs of texts: one with each, or pair by pair.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"text_1": "a", "text_2": ["b", "c"]}]))]
pub struct ScoreRequest {
    model: Option<String>,
    text_1: ScoreTexts,
    text_2: ScoreTexts,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum ScoreTexts {
    One(String),
    Several(#[schemars(length(min = 1, max = 2048))] Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"input": ["hello", "goodbye"]}]))]
pub struct ClassifyRequest {
    model: Option<String>,
    input: VectorInput,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    user: Any,
}

#[derive(JsonSchema)]
pub struct Embeddings {
    object: String,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: PromptUsage,
}

#[derive(JsonSchema)]
pub struct EmbeddingObject {
    object: String,
    index: u32,
    embedding: Vector,
}

/// Numbers, or base64 where that was asked for.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(JsonSchema)]
pub struct PromptUsage {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: Option<u64>,
}

/// llama-server's form: each vector in an array of its own.
#[derive(JsonSchema)]
pub struct LlamaEmbedding {
    index: u32,
    embedding: Vec<Vec<f32>>,
}

/// TEI's clients, which send `texts`, get an array.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Reranked {
    Object(RerankedObject),
    Array(Vec<TeiRank>),
}

#[derive(JsonSchema)]
pub struct RerankedObject {
    id: String,
    object: String,
    model: String,
    /// Best first.
    results: Vec<Ranked>,
    usage: PromptUsage,
    meta: BTreeMap<String, Value>,
}

#[derive(JsonSchema)]
pub struct Ranked {
    index: u32,
    relevance_score: f32,
    document: Option<BTreeMap<String, String>>,
}

#[derive(JsonSchema)]
pub struct TeiRank {
    index: u32,
    score: f32,
    text: Option<String>,
}

#[derive(JsonSchema)]
pub struct Scores {
    id: String,
    object: String,
    created: u64,
    model: String,
    data: Vec<Score>,
    usage: PromptUsage,
}

#[derive(JsonSchema)]
pub struct Score {
    index: u32,
    object: String,
    score: f32,
}

#[derive(JsonSchema)]
pub struct Classes {
    id: String,
    object: String,
    created: u64,
    model: String,
    data: Vec<Class>,
    usage: PromptUsage,
}

#[derive(JsonSchema)]
pub struct Class {
    index: u32,
    label: String,
    num_classes: u32,
    probs: Vec<f32>,
}
