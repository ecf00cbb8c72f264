//! Every path, on one page.

use super::error::ApiError;
use super::{App, edge, lora, openai, ops};
use axum::Router;
use axum::routing::{get, post};
use http::{Method, Uri};

pub(super) fn router(app: App) -> Router {
    let mut router = Router::new()
        .route("/", get(ops::root))
        .route("/health", get(ops::health))
        .route("/v1/health", get(ops::health))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/props", get(ops::props))
        .route("/lora-adapters", get(lora::list).post(lora::set))
        .route("/tokenize", post(ops::tokenize))
        .route("/detokenize", post(ops::detokenize))
        .route("/apply-template", post(ops::apply_template))
        .route("/infill", post(openai::infill));
    if app.config.expose_slots {
        router = router.route("/slots", get(ops::slots));
    }
    // llama-server's clients leave the prefix out.
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/chat/completions"), post(openai::chat))
            .route(&format!("{prefix}/chat/completions/input_tokens"), post(openai::input_tokens))
            .route(&format!("{prefix}/completions"), post(openai::complete))
            .route(&format!("{prefix}/models"), get(openai::models))
            .route(&format!("{prefix}/models/{{*id}}"), get(openai::model));
    }
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_url)
        .layer(axum::middleware::from_fn(edge::note_route))
        .with_state(app)
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_url(&method, uri.path())
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::wrong_method(&method)
}
