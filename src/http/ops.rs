//! Health, metrics, and the small endpoints of llama-server and vLLM.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict};
use crate::chat::{MediaKind, Prompt};
use crate::dialect::{Fault, openai};
use crate::engine::{EngineState, Failure, Pressure};
use crate::gateway::{Caller, default_sampling};
use axum::Extension;
use axum::extract::{FromRequestParts, Query, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, header};
use serde_json::{Value, json};

pub(super) async fn root() -> &'static str {
    "hearth is running\n"
}

/// The process lives.
pub(super) async fn livez() -> Response {
    json(br#"{"status":"ok"}"#.to_vec())
}

/// llama-server's health: whether a model is there, not whether there is room.
pub(super) async fn health(State(app): State<App>) -> Response {
    let Some((_, state)) = app.gateway.unready() else { return livez().await };
    let progress = match &state {
        EngineState::Loading { progress } => Some(*progress),
        _ => None,
    };
    let failure = state.refusal().unwrap_or(Failure::ShuttingDown);
    unready(json!({ "status": state_word(&state), "progress": progress }), failure)
}

/// Whether a request would be admitted now, and if not, why. Models that are loaded at a request are ready in this sense.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let load = app.gateway.load();
    let (word, failure) = if app.drain.has_begun() {
        ("shutting_down", Failure::ShuttingDown)
    } else if let Some((_, state)) = app.gateway.unready() {
        (state_word(&state), state.refusal().unwrap_or(Failure::ShuttingDown))
    } else if app.gateway.books().is_some_and(|books| books.ledger().admit().is_err()) {
        ("ledger_unavailable", Failure::NotReady { reason: "the ledger can't be written".into(), retry_after_s: 2 })
    } else if app.gateway.pressure() >= Pressure::New {
        ("short_of_memory", Failure::shed())
    } else if load.n_in_flight < load.n_places || load.n_places == 0 {
        return json(br#"{"ready":true,"state":"ready"}"#.to_vec());
    } else {
        ("full", Failure::Overloaded { n_places: load.n_places, retry_after_s: 1 })
    };
    let body = json!({
        "ready": false,
        "state": word,
        "reason": failure.to_string(),
        "n_in_flight": load.n_in_flight,
        "n_places": load.n_places,
        "n_restarts": load.n_restarts,
    });
    unready(body, failure)
}

fn state_word(state: &EngineState) -> &'static str {
    match state {
        EngineState::Loading { .. } => "loading",
        EngineState::Ready(_) => "ready",
        EngineState::Restarting { .. } => "restarting",
        EngineState::Failed { .. } => "failed",
        EngineState::Stopped => "stopped",
    }
}

/// 503 with `body`'s fields beside the error envelope, and when to come again.
fn unready(mut body: Value, failure: Failure) -> Response {
    let error = ApiError::of(failure.into(), Asked::Nothing);
    let envelope: Value = serde_json::from_slice(&openai::error_body(&error.problem)).unwrap_or_default();
    if let (Some(error), Some(fields)) = (envelope.get("error"), body.as_object_mut()) {
        fields.insert("error".to_owned(), error.clone());
    }
    error.into_response().map(|_| body.to_string().into())
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let mut response = app.gateway.metrics_page().await.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `?model=NAME`, for what has no body or one that is no object.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Which {
    model: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Which {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<Which>::from_request_parts(parts, state).await;
        let fault = || Fault::new("model", "invalid_value", "The query string names the model once: ?model=NAME.");
        query.map(|Query(which)| which).map_err(|_| fault().into())
    }
}

impl Which {
    pub(super) fn name(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// llama-server's properties; of the model's path, only the file's name.
pub(super) async fn props(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    which: Which,
) -> Result<Response, ApiError> {
    let refuse = |error| ApiError::of(error, Asked::Nothing);
    // Asking for properties is no reason to load a model.
    app.gateway.model(&caller, which.name()).map_err(refuse)?;
    let target = app.gateway.target(&caller, which.name()).await.map_err(refuse)?;
    let params = openai::sampling_settings(&default_sampling(&target));
    let model = &target.description;
    let body = json!({
        "default_generation_settings": { "n_ctx": model.n_ctx, "params": params },
        "total_slots": model.n_slots,
        "model_alias": target.id(),
        "model_path": target.config.file_name,
        "chat_template": model.chat_template.as_deref().unwrap_or_default(),
        "bos_token": model.bos_token,
        "eos_token": model.eos_token,
        "modalities": {
            "vision": model.media.contains(&MediaKind::Image),
            "audio": model.media.contains(&MediaKind::Audio),
        },
        "build_info": format!("hearth {} ({})", env!("CARGO_PKG_VERSION"), model.build),
    });
    Ok(json(body.to_string().into_bytes()))
}

/// What each slot does now; counts only, no text.
pub(super) async fn slots(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    which: Which,
) -> Result<Response, ApiError> {
    let stats = app.gateway.stats(&caller, which.name()).await.map_err(|error| ApiError::of(error, Asked::Nothing))?;
    let n_ctx = app.gateway.model(&caller, which.name()).map(|model| model.n_ctx).unwrap_or_default();
    let slots: Value = stats.slots.iter().map(|slot| slot_object(slot, n_ctx)).collect();
    Ok(json(slots.to_string().into_bytes()))
}

pub(super) fn slot_object(slot: &crate::engine::SlotStats, n_ctx: u32) -> Value {
    json!({
        "id": slot.slot,
        "state": slot.state,
        "is_processing": slot.state != "idle",
        "n_prompt_tokens": slot.n_prompt,
        "n_prompt_tokens_processed": slot.n_computed,
        "n_decoded": slot.n_generated,
        "n_kept": slot.n_kept,
        "n_ctx": n_ctx,
    })
}

pub(super) async fn tokenize(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::tokenize_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let openai::Tokenize { model, request, places } = read.request;
    let with_pieces = request.with_pieces;
    let asked = if matches!(request.prompt, Prompt::Chat(_)) { Asked::Messages } else { Asked::Content };
    let tokenized = until_cut(&app, app.gateway.tokenize(&caller, model.as_deref(), request)).await?;
    let (tokenized, n_ctx) = tokenized.map_err(|error| ApiError::of(error, asked).renamed(|name| places.name(name)))?;
    let pieces = with_pieces.then_some(tokenized.pieces.as_slice());
    let mut response = json(openai::tokenize_response(&tokenized.tokens, pieces, n_ctx));
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn detokenize(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::detokenize_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let (model, tokens) = read.request;
    let text = until_cut(&app, app.gateway.detokenize(&caller, model.as_deref(), tokens)).await?;
    let text = text.map_err(|error| ApiError::of(error, Asked::Tokens))?;
    let mut response = json(openai::detokenize_response(&text));
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn apply_template(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::render_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let openai::Render { model, prompt, places } = read.request;
    let prompt = until_cut(&app, app.gateway.render(&caller, model.as_deref(), prompt)).await?;
    let prompt = prompt.map_err(|error| ApiError::of(error, Asked::Messages).renamed(|name| places.name(name)))?;
    let mut response = json(openai::render_response(&prompt));
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}
