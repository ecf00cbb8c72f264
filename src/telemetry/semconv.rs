//! Every name that traces use, on one page.
//!
//! Source: OpenTelemetry's conventions for generative AI and for HTTP. Those for generative AI are still in development, so
//! a name that changes is changed here and nowhere else. What they have no name for begins with `hearth.`

pub mod operation {
    pub const CHAT: &str = "chat";
    pub const TEXT_COMPLETION: &str = "text_completion";
    pub const EMBEDDINGS: &str = "embeddings";
    // The conventions know none of these.
    pub const RERANK: &str = "rerank";
    pub const SCORE: &str = "score";
    pub const CLASSIFY: &str = "classify";
}

/// Spans within a request's; the request's own is named `operation model`.
pub mod span {
    /// A try at a model here, and its phases.
    pub const ENGINE: &str = "engine";
    pub const QUEUE: &str = "queue";
    pub const PREFILL: &str = "prefill";
    pub const DECODE: &str = "decode";
    /// A try at another server.
    pub const UPSTREAM: &str = "upstream";
}

pub mod event {
    pub const FIRST_TOKEN: &str = "hearth.first_token";
}

/// The value of [`attribute::PROVIDER_NAME`].
pub const PROVIDER: &str = "hearth";

pub mod attribute {
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    pub const REQUEST_CHOICE_COUNT: &str = "gen_ai.request.choice.count";
    pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
    pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
    pub const REQUEST_TOP_K: &str = "gen_ai.request.top_k";
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    pub const REQUEST_FREQUENCY_PENALTY: &str = "gen_ai.request.frequency_penalty";
    pub const REQUEST_PRESENCE_PENALTY: &str = "gen_ai.request.presence_penalty";
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    pub const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    pub const USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    pub const USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    pub const USAGE_CACHE_READ: &str = "gen_ai.usage.cache_read.input_tokens";
    pub const USAGE_REASONING: &str = "gen_ai.usage.reasoning.output_tokens";
    /// In no convention, and read by Langfuse: dollars.
    pub const USAGE_COST: &str = "gen_ai.usage.cost";
    pub const ERROR_TYPE: &str = "error.type";
    pub const HTTP_METHOD: &str = "http.request.method";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const HTTP_STATUS: &str = "http.response.status_code";
    pub const REQUEST_ID: &str = "hearth.request.id";
    pub const CLIENT_REQUEST_ID: &str = "hearth.client_request.id";
    pub const KEY_ID: &str = "hearth.key.id";
    pub const TEAM_ID: &str = "hearth.team.id";
    pub const SERVED_BY: &str = "hearth.served_by";
    pub const CACHE: &str = "hearth.cache";
    pub const STREAM: &str = "hearth.stream";
    pub const OUTCOME: &str = "hearth.outcome";
    pub const USAGE_SOURCE: &str = "hearth.usage.source";
    pub const TARGET: &str = "hearth.target";
    pub const CLASS: &str = "hearth.class";
    pub const REPLACED: &str = "hearth.replaced";
}

/// Of the process that sends.
pub mod resource {
    pub const SERVICE_NAME: &str = "service.name";
    pub const SERVICE_VERSION: &str = "service.version";
    pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
}
