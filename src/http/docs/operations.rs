//! Every operation, on one page; a test holds it against the router.

use crate::dialect::api::{answers, anthropic, native, ollama, openai, responses, vectors};
use schemars::{JsonSchema, Schema, SchemaGenerator};

type Shape = fn(&mut SchemaGenerator) -> Schema;

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

#[derive(Clone, Copy)]
pub(super) enum Answer {
    Json(Shape),
    /// Of this content type.
    Text(&'static str),
    /// The path is known and always refused.
    Refused,
}

/// How a family of clients reads errors.
#[derive(Clone, Copy)]
pub(super) enum Envelope {
    Openai,
    Anthropic,
    Ollama,
}

impl Envelope {
    pub(super) const ALL: [Envelope; 3] = [Envelope::Openai, Envelope::Anthropic, Envelope::Ollama];

    pub(super) fn name(self) -> &'static str {
        match self {
            Envelope::Openai => "Openai",
            Envelope::Anthropic => "Anthropic",
            Envelope::Ollama => "Ollama",
        }
    }

    pub(super) fn schema(self, generator: &mut SchemaGenerator) -> Schema {
        match self {
            Envelope::Openai => shape::<answers::OpenaiError>(generator),
            Envelope::Anthropic => shape::<anthropic::AnthropicError>(generator),
            Envelope::Ollama => shape::<ollama::OllamaError>(generator),
        }
    }
}

pub(super) struct Operation {
    pub(super) method: &'static str,
    /// As the router has it.
    pub(super) path: &'static str,
    /// Paths that mean the same.
    pub(super) aliases: Vec<&'static str>,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) about: &'static str,
    pub(super) query: Vec<(&'static str, &'static str)>,
    pub(super) request: Option<Shape>,
    pub(super) answer: Answer,
    /// The content type of a stream and the shape of each of its events.
    pub(super) events: Option<(&'static str, Shape)>,
    pub(super) errors: Option<Envelope>,
    pub(super) is_public: bool,
}

fn operation(tag: &'static str, method: &'static str, path: &'static str, summary: &'static str) -> Operation {
    Operation {
        method,
        path,
        aliases: Vec::new(),
        tag,
        summary,
        about: "",
        query: Vec::new(),
        request: None,
        answer: Answer::Text("text/plain"),
        events: None,
        errors: Some(Envelope::Openai),
        is_public: false,
    }
}

fn get(tag: &'static str, path: &'static str, summary: &'static str) -> Operation {
    operation(tag, "get", path, summary)
}

fn post(tag: &'static str, path: &'static str, summary: &'static str) -> Operation {
    operation(tag, "post", path, summary)
}

impl Operation {
    fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    fn also(mut self, aliases: &[&'static str]) -> Self {
        self.aliases.extend(aliases);
        self
    }

    fn takes<T: JsonSchema>(mut self) -> Self {
        self.request = Some(shape::<T>);
        self
    }

    fn gives<T: JsonSchema>(mut self) -> Self {
        self.answer = Answer::Json(shape::<T>);
        self
    }

    fn gives_text(mut self, kind: &'static str) -> Self {
        self.answer = Answer::Text(kind);
        self
    }

    fn streams<T: JsonSchema>(mut self) -> Self {
        self.events = Some(("text/event-stream", shape::<T>));
        self
    }

    fn streams_lines<T: JsonSchema>(mut self) -> Self {
        self.events = Some(("application/x-ndjson", shape::<T>));
        self
    }

    fn refused(mut self) -> Self {
        self.answer = Answer::Refused;
        self
    }

    fn errors(mut self, envelope: Envelope) -> Self {
        self.errors = Some(envelope);
        self
    }

    fn query(mut self, name: &'static str, about: &'static str) -> Self {
        self.query.push((name, about));
        self
    }

    fn public(mut self) -> Self {
        self.is_public = true;
        self
    }
}

pub(super) fn operations() -> Vec<Operation> {
    [
        openai_operations(),
        responses_operations(),
        anthropic_operations(),
        ollama_operations(),
        vector_operations(),
        llama_server(),
        serving(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const OPENAI: &str = "OpenAI";
const RESPONSES: &str = "OpenAI Responses";
const ANTHROPIC: &str = "Anthropic";
const OLLAMA: &str = "Ollama";
const LLAMA_SERVER: &str = "llama-server and vLLM";
const SERVER: &str = "Server";

fn openai_operations() -> Vec<Operation> {
    vec![
        post(OPENAI, "/v1/chat/completions", "Answer a conversation")
            .takes::<openai::ChatCompletionRequest>()
            .gives::<answers::ChatCompletion>()
            .streams::<answers::ChatCompletionChunk>()
            .also(&["/chat/completions"]),
        post(OPENAI, "/v1/chat/completions/input_tokens", "Count a conversation's tokens")
            .takes::<openai::ChatCompletionRequest>()
            .gives::<answers::InputTokens>()
            .also(&["/chat/completions/input_tokens"]),
        post(OPENAI, "/v1/completions", "Continue a text")
            .takes::<openai::CompletionRequest>()
            .gives::<answers::TextCompletion>()
            .streams::<answers::TextCompletion>()
            .also(&["/completions"]),
        get(OPENAI, "/v1/models", "List the models and their other names")
            .gives::<answers::ModelList>()
            .also(&["/models"]),
        get(OPENAI, "/v1/models/{*id}", "One model").gives::<answers::Model>().also(&["/models/{*id}"]),
    ]
}

fn vector_operations() -> Vec<Operation> {
    vec![
        post(OPENAI, "/v1/embeddings", "Texts → vectors")
            .takes::<vectors::EmbeddingsRequest>()
            .gives::<vectors::Embeddings>()
            .also(&["/embeddings"]),
        post(LLAMA_SERVER, "/embedding", "Texts → vectors, as llama-server writes them")
            .takes::<vectors::EmbeddingRequest>()
            .gives::<Vec<vectors::LlamaEmbedding>>(),
        post(LLAMA_SERVER, "/v1/rerank", "Order documents by how well they answer a query")
            .takes::<vectors::RerankRequest>()
            .gives::<vectors::Reranked>()
            .also(&["/rerank", "/v1/reranking", "/reranking", "/v2/rerank"]),
        post(LLAMA_SERVER, "/v1/score", "Score pairs of texts")
            .takes::<vectors::ScoreRequest>()
            .gives::<vectors::Scores>()
            .also(&["/score"]),
        post(LLAMA_SERVER, "/v1/classify", "Texts → classes, where the model has a head")
            .takes::<vectors::ClassifyRequest>()
            .gives::<vectors::Classes>()
            .also(&["/classify"]),
    ]
}

fn responses_operations() -> Vec<Operation> {
    let by_id = "/v1/responses/{id}";
    vec![
        post(RESPONSES, "/v1/responses", "Answer input items")
            .takes::<responses::ResponseRequest>()
            .gives::<responses::ResponseObject>()
            .streams::<responses::ResponseEvent>()
            .also(&["/responses"]),
        post(RESPONSES, "/v1/responses/input_tokens", "Count the tokens of input items")
            .takes::<responses::ResponseRequest>()
            .gives::<responses::ResponseInputTokens>()
            .also(&["/responses/input_tokens"]),
        get(RESPONSES, by_id, "A stored response")
            .gives::<responses::ResponseObject>()
            .query("stream", "`true` is refused: a response that has ended is sent whole.")
            .also(&["/responses/{id}"]),
        operation(RESPONSES, "delete", by_id, "Forget a stored response")
            .gives::<responses::ResponseDeleted>()
            .also(&["/responses/{id}"]),
        get(RESPONSES, "/v1/responses/{id}/input_items", "The input of a stored response")
            .gives::<responses::ItemList>()
            .query("order", "`asc`, or `desc` when left out.")
            .query("limit", "1 to 100; 20 when left out.")
            .query("after", "The id of the item before the first.")
            .also(&["/responses/{id}/input_items"]),
        post(RESPONSES, "/v1/responses/{id}/cancel", "Always refused: there are no background responses")
            .refused()
            .also(&["/responses/{id}/cancel"]),
    ]
}

fn anthropic_operations() -> Vec<Operation> {
    let all = vec![
        post(ANTHROPIC, "/v1/messages", "Answer a conversation")
            .takes::<anthropic::MessagesRequest>()
            .gives::<anthropic::MessageAnswer>()
            .streams::<anthropic::MessageEvent>(),
        post(ANTHROPIC, "/v1/messages/count_tokens", "Count a conversation's tokens")
            .takes::<anthropic::CountTokensRequest>()
            .gives::<answers::InputTokens>(),
    ];
    all.into_iter().map(|operation| operation.errors(Envelope::Anthropic)).collect()
}

fn ollama_operations() -> Vec<Operation> {
    let mut all = vec![
        post(OLLAMA, "/api/chat", "Answer a conversation")
            .takes::<ollama::OllamaChatRequest>()
            .gives::<ollama::OllamaRow>()
            .streams_lines::<ollama::OllamaRow>(),
        post(OLLAMA, "/api/generate", "Answer or continue a prompt")
            .takes::<ollama::OllamaGenerateRequest>()
            .gives::<ollama::OllamaRow>()
            .streams_lines::<ollama::OllamaRow>(),
        post(OLLAMA, "/api/embed", "Texts → vectors of length 1")
            .takes::<ollama::OllamaEmbedRequest>()
            .gives::<ollama::OllamaEmbeddings>(),
        post(OLLAMA, "/api/embeddings", "A text → its vector")
            .takes::<ollama::OllamaEmbeddingsRequest>()
            .gives::<ollama::OllamaEmbedding>(),
        get(OLLAMA, "/api/tags", "List the models").gives::<ollama::OllamaModels>(),
        get(OLLAMA, "/api/ps", "List the models that are loaded").gives::<ollama::OllamaModels>(),
        post(OLLAMA, "/api/show", "One model's properties")
            .takes::<ollama::OllamaShowRequest>()
            .gives::<ollama::OllamaShown>(),
        get(OLLAMA, "/api/version", "The version of Ollama whose API this is").gives::<ollama::OllamaVersion>(),
        post(OLLAMA, "/api/pull", "Says that a served model is there")
            .takes::<ollama::OllamaPullRequest>()
            .gives::<ollama::OllamaStatus>()
            .streams_lines::<ollama::OllamaStatus>(),
    ];
    let refused = "Always refused: models are the operator's to choose";
    for path in ["/api/create", "/api/copy", "/api/push", "/api/delete"] {
        all.push(post(OLLAMA, path, refused).refused());
    }
    all.push(operation(OLLAMA, "delete", "/api/delete", refused).refused());
    for method in ["get", "head", "post", "put", "patch", "delete"] {
        all.push(operation(OLLAMA, method, "/api/blobs/{*digest}", refused).refused());
    }
    all.into_iter().map(|operation| operation.errors(Envelope::Ollama)).collect()
}

fn llama_server() -> Vec<Operation> {
    let model = "Which model, where there are several.";
    vec![
        post(LLAMA_SERVER, "/completion", "Continue a text")
            .takes::<native::NativeCompletionRequest>()
            .gives::<answers::NativeAnswers>()
            .streams::<answers::NativeAnswer>(),
        post(LLAMA_SERVER, "/infill", "Fill the gap between two texts")
            .takes::<native::InfillRequest>()
            .gives::<answers::NativeAnswer>()
            .streams::<answers::NativeAnswer>(),
        post(LLAMA_SERVER, "/tokenize", "Text or a conversation → token ids")
            .takes::<openai::TokenizeRequest>()
            .gives::<answers::Tokenized>(),
        post(LLAMA_SERVER, "/detokenize", "Token ids → text")
            .takes::<openai::DetokenizeRequest>()
            .gives::<answers::Detokenized>(),
        post(LLAMA_SERVER, "/apply-template", "A conversation → the model's prompt")
            .takes::<openai::ApplyTemplateRequest>()
            .gives::<answers::AppliedTemplate>(),
        get(LLAMA_SERVER, "/lora-adapters", "List the LoRA adapters")
            .gives::<Vec<answers::Adapter>>()
            .query("model", model),
        post(LLAMA_SERVER, "/lora-adapters", "Set the adapters' scales where requests say nothing")
            .about("Adapters that are not named are off from now on.")
            .takes::<openai::AdapterScales>()
            .gives::<answers::Success>()
            .query("model", model),
        get(LLAMA_SERVER, "/props", "The model's properties and default settings")
            .gives::<answers::Props>()
            .query("model", model),
        get(LLAMA_SERVER, "/slots", "What each slot does now")
            .about("Only where the server is started with `--slots`.")
            .gives::<Vec<answers::Slot>>()
            .query("model", model),
    ]
}

fn serving() -> Vec<Operation> {
    vec![
        get(SERVER, "/", "Says that hearth is running").gives_text("text/plain").public(),
        get(SERVER, "/health", "Whether a model is there")
            .about("503 while it is loading; the answer then has `status` beside the error.")
            .gives::<answers::Health>()
            .also(&["/v1/health"])
            .public(),
        get(SERVER, "/livez", "Whether the process lives").gives::<answers::Health>().public(),
        get(SERVER, "/readyz", "Whether a request would be admitted now")
            .about("503 with the reason when not.")
            .gives::<answers::Ready>()
            .public(),
        get(SERVER, "/v1/key", "What your own key may do and has done")
            .about("404 where the server keeps no record of keys (`--data-dir`).")
            .gives::<answers::OwnKey>(),
        get(SERVER, "/metrics", "Counters for Prometheus").gives_text("text/plain"),
        get(SERVER, "/openapi.json", "This description")
            .gives::<std::collections::BTreeMap<String, serde_json::Value>>()
            .public(),
        get(SERVER, "/docs", "This description as a page").gives_text("text/html").public(),
    ]
}
