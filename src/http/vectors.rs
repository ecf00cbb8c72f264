//! Handlers of embeddings, rerank, score and classify.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict};
use crate::dialect::{Ignored, openai};
use crate::gateway::{Caller, random_name};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) async fn embeddings(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::embeddings_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let encoding = read.request.encoding;
    let made = until_cut(&app, app.gateway.embed(&caller, read.request.ask)).await?;
    let made = made.map_err(|error| ApiError::of(error, Asked::Input))?;
    let write = move || openai::embeddings_response(&made.model, &made.vectors, made.prompt_tokens, encoding);
    respond(write, &read.ignored).await
}

/// llama-server's own form.
pub(super) async fn embedding(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::embedding_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let made = until_cut(&app, app.gateway.embed(&caller, read.request)).await?;
    let made = made.map_err(|error| ApiError::of(error, Asked::Input))?;
    respond(move || openai::embedding_response(&made.vectors, made.n_per_token), &read.ignored).await
}

pub(super) async fn rerank(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::rerank_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let mut request = read.request;
    let ask = std::mem::take(&mut request.ask);
    let scored = until_cut(&app, app.gateway.rerank(&caller, ask)).await?;
    let asked = if request.is_tei { Asked::Texts } else { Asked::Documents };
    let scored = scored.map_err(|error| ApiError::of(error, asked))?;
    let id = random_name("rerank-");
    let write = move || openai::rerank_response(&id, &scored.model, &request, &scored.scores, scored.prompt_tokens);
    respond(write, &read.ignored).await
}

pub(super) async fn score(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::score_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let scored = until_cut(&app, app.gateway.score(&caller, read.request)).await?;
    let scored = scored.map_err(|error| ApiError::of(error, Asked::Text2))?;
    let (id, created) = (random_name("score-"), now());
    let write = move || openai::score_response((&id, created, &scored.model), &scored.scores, scored.prompt_tokens);
    respond(write, &read.ignored).await
}

pub(super) async fn classify(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::classify_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let made = until_cut(&app, app.gateway.classify(&caller, read.request)).await?;
    let made = made.map_err(|error| ApiError::of(error, Asked::Input))?;
    let (id, created) = (random_name("classify-"), now());
    let write =
        move || openai::classify_response((&id, created, &made.model), &made.outputs, &made.labels, made.prompt_tokens);
    respond(write, &read.ignored).await
}

/// Writes the answer off the threads that serve everybody: two thousand vectors are tens of megabytes of text.
async fn respond(write: impl FnOnce() -> Vec<u8> + Send + 'static, ignored: &Ignored) -> Result<Response, ApiError> {
    let body = tokio::task::spawn_blocking(write).await.map_err(|_| ApiError::internal())?;
    let mut response = json(body);
    list_ignored(response.headers_mut(), ignored.header());
    Ok(response)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
