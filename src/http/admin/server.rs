//! The server itself, seen and steered from the admin plane: slots, upstreams, the cache of answers, the end.

use super::fields::Fields;
use super::{Identity, Plane, json, missing, refused};
use crate::gateway::{Gateway, Unloading};
use crate::http::error::{ApiError, Asked};
use crate::http::ops::slot_object;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

/// What each slot of each loaded model does now; counts only, no text.
pub(super) async fn slots(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let gateway = plane.gateway.as_ref().ok_or_else(|| missing("running server"))?;
    let models = gateway.slots().await.into_iter().map(|(model, n_ctx, stats)| {
        let slots: Vec<_> = stats.slots.iter().map(|slot| slot_object(slot, n_ctx)).collect();
        json!({ "model": model, "waiting": stats.n_queued, "slots": slots })
    });
    Ok(json(&json!({ "data": models.collect::<Vec<_>>() })))
}

/// Ends the server as SIGTERM does: nothing new is taken, running answers finish within the drain's time.
pub(super) async fn drain(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    plane.gateway.as_ref().ok_or_else(|| missing("running server"))?;
    plane.books.note(identity.actor(), "server.drain", "server", json!({})).await.map_err(refused)?;
    plane.drain.cancel();
    Ok(json(&json!({ "status": "draining" })))
}

/// How the servers stand that may be asked in place of this one.
pub(super) async fn upstreams(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let upstreams = plane.gateway.as_ref().map(|gateway| gateway.upstreams()).unwrap_or_default();
    let one = |upstream: &crate::gateway::UpstreamStatus| {
        json!({
            "name": upstream.name,
            "breaker": upstream.breaker.as_str(),
            "in_flight": upstream.n_in_flight,
            "healthy": upstream.is_well,
            "last_class": upstream.last_class.map(|class| class.as_str()),
        })
    };
    Ok(json(&json!({ "data": upstreams.iter().map(one).collect::<Vec<_>>() })))
}

/// Loads a model of the configuration; answers when it is there.
pub(super) async fn load(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (gateway, model) = meant(&plane, &identity, &body)?;
    gateway.load_model(&model).await.map_err(|error| ApiError::of(error, Asked::Nothing))?;
    plane.books.note(identity.actor(), "model.load", &model, json!({})).await.map_err(refused)?;
    Ok(json(&json!({ "model": model, "status": "loaded" })))
}

/// Frees a model's memory, until a request asks for it again.
pub(super) async fn unload(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (gateway, model) = meant(&plane, &identity, &body)?;
    match gateway.unload_model(&model).await.map_err(|error| ApiError::of(error, Asked::Nothing))? {
        Unloading::Busy => {
            let message = "Requests are at work with this model; it can be unloaded when they have ended.";
            Err(ApiError::refused(StatusCode::CONFLICT, "model_busy", message))
        }
        Unloading::Done => {
            plane.books.note(identity.actor(), "model.unload", &model, json!({})).await.map_err(refused)?;
            Ok(json(&json!({ "model": model, "status": "unloaded" })))
        }
    }
}

/// Whoever may, and the model that the body names.
fn meant<'a>(plane: &'a Plane, identity: &Identity, body: &[u8]) -> Result<(&'a Gateway, String), ApiError> {
    identity.may_rule()?;
    let mut fields = Fields::parse(body)?;
    let model = fields.required("model")?;
    fields.finish()?;
    let gateway = plane.gateway.as_deref().ok_or_else(|| missing("model"))?;
    Ok((gateway, model))
}

/// Forgets all cached answers.
pub(super) async fn flush_cache(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    plane.books.note(identity.actor(), "cache.flush", "cache", json!({})).await.map_err(refused)?;
    let n_flushed = match &plane.gateway {
        Some(gateway) => gateway.flush_cache().await,
        None => 0,
    };
    Ok(json(&json!({ "flushed": n_flushed })))
}
