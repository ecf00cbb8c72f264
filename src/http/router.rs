//! Every path, on one page.

use super::error::ApiError;
use super::{App, anthropic, docs, edge, key, lora, native, ollama, openai, ops, responses, vectors};
use axum::Router;
use axum::routing::{any, delete, get, post};
use http::{Method, Uri};

pub(super) fn router(app: App) -> Router {
    routes(app.expose_slots)
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_url)
        .layer(axum::middleware::from_fn(edge::note_route))
        .with_state(app)
}

/// Whoever adds one describes it in `docs::operations`.
pub(super) fn routes(expose_slots: bool) -> Router<App> {
    let mut router = Router::new()
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .route("/", get(ops::root))
        .route("/health", get(ops::health))
        .route("/v1/health", get(ops::health))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/props", get(ops::props))
        .route("/v1/key", get(key::own))
        .route("/lora-adapters", get(lora::list).post(lora::set))
        .route("/embedding", post(vectors::embedding))
        .route("/v2/rerank", post(vectors::rerank))
        .route("/tokenize", post(ops::tokenize))
        .route("/detokenize", post(ops::detokenize))
        .route("/apply-template", post(ops::apply_template))
        .route("/completion", post(native::completion))
        .route("/infill", post(native::infill));
    if expose_slots {
        router = router.route("/slots", get(ops::slots));
    }
    // llama-server's clients leave the prefix out.
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/chat/completions"), post(openai::chat))
            .route(&format!("{prefix}/chat/completions/input_tokens"), post(openai::input_tokens))
            .route(&format!("{prefix}/completions"), post(openai::complete))
            .route(&format!("{prefix}/responses"), post(responses::create))
            .route(&format!("{prefix}/responses/input_tokens"), post(responses::input_tokens))
            .route(&format!("{prefix}/responses/{{id}}"), get(responses::retrieve).delete(responses::remove))
            .route(&format!("{prefix}/responses/{{id}}/input_items"), get(responses::input_items))
            .route(&format!("{prefix}/responses/{{id}}/cancel"), post(responses::cancel))
            .route(&format!("{prefix}/embeddings"), post(vectors::embeddings))
            .route(&format!("{prefix}/rerank"), post(vectors::rerank))
            .route(&format!("{prefix}/reranking"), post(vectors::rerank))
            .route(&format!("{prefix}/score"), post(vectors::score))
            .route(&format!("{prefix}/classify"), post(vectors::classify))
            .route(&format!("{prefix}/models"), get(openai::models))
            .route(&format!("{prefix}/models/{{*id}}"), get(openai::model));
    }
    with_ollama(router)
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
}

fn with_ollama(router: Router<App>) -> Router<App> {
    router
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/api/pull", post(ollama::pull))
        .route("/api/create", post(ollama::refuse))
        .route("/api/copy", post(ollama::refuse))
        .route("/api/push", post(ollama::refuse))
        .route("/api/delete", delete(ollama::refuse).post(ollama::refuse))
        .route("/api/blobs/{*digest}", any(ollama::refuse))
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_url(&method, uri.path())
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::wrong_method(&method)
}
