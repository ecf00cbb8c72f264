//! `/lora-adapters` of llama-server: which adapters there are, and their scales where requests say nothing.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict};
use super::ops::Which;
use crate::dialect::openai;
use crate::gateway::{Caller, Role};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;

pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    which: Which,
) -> Result<Response, ApiError> {
    let target = until_cut(&app, app.gateway.target(&caller, which.name())).await?;
    let target = target.map_err(|error| ApiError::of(error, Asked::Nothing))?;
    Ok(json(openai::lora_response(&target.description.adapters, &target.adapter_scales())))
}

/// Adapters that are not named are off from now on, as in llama-server. That is so for everybody, so a key that is limited
/// to requests may not.
pub(super) async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    which: Which,
    body: JsonBody,
) -> Result<Response, ApiError> {
    if caller.principal.key().is_some_and(|key| !key.spec.has(Role::Admin)) {
        return Err(ApiError::forbidden("This API key may not change what holds for everybody."));
    }
    let read = body.read(openai::lora_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let set = until_cut(&app, app.gateway.set_adapter_scales(&caller, which.name(), &read.request)).await?;
    set.map_err(|error| ApiError::of(error, Asked::Nothing))?;
    let mut response = json(br#"{"success":true}"#.to_vec());
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}
