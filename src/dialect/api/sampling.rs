//! Sampling fields and constraints, shared by all requests that generate.

use super::Any;
use crate::chat::check;
use schemars::JsonSchema;
use std::collections::BTreeMap;

/// How the next token is chosen. What is left out is the operator's default, then the model's, then the built-in one.
#[derive(JsonSchema)]
pub struct Sampling {
    /// The same request with the same seed gives the same answer. -1: a fresh seed.
    seed: Option<i64>,
    /// 0 always takes the most likely token.
    #[schemars(range(min = 0.0, max = 100.0))]
    temperature: Option<f32>,
    /// Temperature moves by up to this much with the entropy of the candidates. 0: off.
    #[schemars(range(min = 0.0, max = 100.0))]
    dynatemp_range: Option<f32>,
    #[schemars(range(min = 0.0, max = 100.0))]
    dynatemp_exponent: Option<f32>,
    /// Keep the k most likely tokens. 0 or -1: all.
    #[schemars(range(min = -1, max = check::TOP_K_MAX))]
    top_k: Option<i32>,
    /// Keep the most likely tokens that together have this probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    top_p: Option<f32>,
    /// Drop tokens less likely than this share of the best one's probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    min_p: Option<f32>,
    /// Locally typical sampling. 1: off.
    #[schemars(range(min = 0.0, max = 1.0))]
    typical_p: Option<f32>,
    /// Keep logits within this many standard deviations of the best. Negative: off.
    #[schemars(range(min = -1.0, max = 100.0))]
    top_n_sigma: Option<f32>,
    /// Chance of dropping all but the least of the tokens above `xtc_threshold`. 0: off.
    #[schemars(range(min = 0.0, max = 1.0))]
    xtc_probability: Option<f32>,
    #[schemars(range(min = 0.0, max = 1.0))]
    xtc_threshold: Option<f32>,
    /// Least candidates that the truncating samplers leave.
    #[schemars(range(min = 0, max = check::TOP_K_MAX))]
    min_keep: Option<u32>,
    /// Tokens the penalties look back. -1: the whole context.
    #[schemars(range(min = -1, max = check::LAST_N_MAX))]
    repeat_last_n: Option<i32>,
    /// Above 1, tokens of the last `repeat_last_n` get less likely.
    #[schemars(range(min = 0.01, max = 100.0))]
    repeat_penalty: Option<f32>,
    #[schemars(range(min = -2.0, max = 2.0))]
    presence_penalty: Option<f32>,
    #[schemars(range(min = -2.0, max = 2.0))]
    frequency_penalty: Option<f32>,
    /// Strength of the penalty on repeated sequences (DRY). 0: off.
    #[schemars(range(min = 0.0, max = 100.0))]
    dry_multiplier: Option<f32>,
    #[schemars(range(min = 0.0, max = 100.0))]
    dry_base: Option<f32>,
    #[schemars(range(min = 0, max = check::LAST_N_MAX))]
    dry_allowed_length: Option<i32>,
    /// Tokens DRY looks back. -1: the whole context.
    #[schemars(range(min = -1, max = check::LAST_N_MAX))]
    dry_penalty_last_n: Option<i32>,
    /// Strings that end a sequence for DRY, of at most 64 bytes each.
    #[schemars(length(max = check::DRY_BREAKERS_MAX))]
    dry_sequence_breakers: Option<Vec<String>>,
    /// Mirostat's version. 0: off.
    #[schemars(range(min = 0, max = 2))]
    mirostat: Option<i32>,
    #[schemars(range(min = 0.0, max = 1000.0))]
    mirostat_tau: Option<f32>,
    #[schemars(range(min = 0.0, max = 100.0))]
    mirostat_eta: Option<f32>,
    /// Token id → value added to its logit; -100 and less bans the token.
    #[schemars(extend("maxProperties" = check::LOGIT_BIAS_MAX, "propertyNames" = {"pattern": "^-?[0-9]+$"}))]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Go on after the model's end of turn, up to the token limit.
    ignore_eos: Option<bool>,
    /// The order of the chain.
    #[schemars(length(max = check::SAMPLERS_MAX))]
    samplers: Option<Vec<Sampler>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Sampler {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    TypP,
    TypicalP,
    TopP,
    MinP,
    Xtc,
    Temperature,
    Infill,
}

/// What the answer's text must be. At most one of these; a constraint that can't be honoured is refused.
#[derive(JsonSchema)]
pub struct Constraints {
    /// OpenAI's form.
    response_format: Option<ResponseFormat>,
    /// llama.cpp's GBNF.
    #[schemars(example = "root ::= \"yes\" | \"no\"")]
    grammar: Option<String>,
    /// llama.cpp's form of a schema.
    json_schema: Option<Schema>,
    /// A schema, or its text (vLLM).
    guided_json: Option<SchemaOrText>,
    /// A regular expression for the whole answer (vLLM).
    #[schemars(example = "[a-z]+")]
    guided_regex: Option<String>,
    /// The answer is one of these texts (vLLM).
    #[schemars(length(min = 1, max = 4096))]
    guided_choice: Option<Vec<String>>,
    /// GBNF, or Lark where no rule has `::=` (vLLM).
    #[schemars(example = "start: \"yes\" | \"no\"")]
    guided_grammar: Option<String>,
    #[schemars(extend("x-hearth" = "no effect"))]
    guided_decoding_backend: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    guided_whitespace_pattern: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    structural_tag: Any,
    /// vLLM's newer form.
    structured_outputs: Option<StructuredOutputs>,
}

/// A JSON Schema, of at most 1 MiB.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Schema {
    Object(#[schemars(extend("examples" = [{"type": "object"}]))] BTreeMap<String, serde_json::Value>),
    /// `true`: any value.
    Anything(#[schemars(extend("const" = true))] bool),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum SchemaOrText {
    Schema(Schema),
    Text(#[schemars(extend("examples" = ["{\"type\": \"object\"}"]))] String),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// No constraint.
    Text,
    /// Any JSON object, or one of `schema` (llama.cpp).
    JsonObject {
        schema: Option<Schema>,
    },
    JsonSchema {
        json_schema: NamedSchema,
    },
}

#[derive(JsonSchema)]
pub struct NamedSchema {
    /// Without it, any JSON object.
    schema: Option<Schema>,
    name: Option<String>,
    description: Option<String>,
    /// Answers always fit the schema, whether or not this is true.
    #[schemars(extend("x-hearth" = "no effect"))]
    strict: Option<bool>,
}

#[derive(JsonSchema)]
pub struct StructuredOutputs {
    /// Any JSON object.
    json_object: Option<bool>,
    json: Option<SchemaOrText>,
    regex: Option<String>,
    #[schemars(length(min = 1, max = 4096))]
    choice: Option<Vec<String>>,
    /// GBNF, or Lark where no rule has `::=`.
    grammar: Option<String>,
    #[schemars(extend("x-hearth" = "no effect"))]
    disable_fallback: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    structural_tag: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    whitespace_pattern: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    disable_any_whitespace: Any,
    #[schemars(extend("x-hearth" = "refused"))]
    disable_additional_properties: Any,
}

/// What is wanted of the server's cache of answers, where it has one (LiteLLM's words).
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"no-cache": true}]))]
pub struct Caching {
    /// Seconds for which the answer may be kept.
    #[schemars(range(min = 0, max = u32::MAX))]
    ttl: Option<u32>,
    /// Oldest answer that will do, in seconds.
    #[schemars(rename = "s-maxage", range(min = 0, max = u32::MAX))]
    s_maxage: Option<u32>,
    /// Make the answer anew.
    #[schemars(rename = "no-cache")]
    no_cache: Option<bool>,
    /// Don't keep the answer.
    #[schemars(rename = "no-store")]
    no_store: Option<bool>,
    /// Share answers only with requests of the same namespace, within the tenant.
    #[schemars(length(max = 256))]
    namespace: Option<String>,
}

/// The scale of an adapter; adapters that are not named are off.
#[derive(JsonSchema)]
pub struct AdapterScale {
    /// As `GET /lora-adapters` lists it.
    #[schemars(range(min = 0, max = u32::MAX))]
    id: u32,
    scale: f32,
    #[schemars(extend("x-hearth" = "no effect"))]
    path: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    task_name: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_prefix: Any,
}
