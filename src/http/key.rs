//! `GET /v1/key`: what the caller's own key may do and has done.

use super::App;
use super::admin::own_key;
use super::error::ApiError;
use super::openai::json;
use crate::gateway::Caller;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;

/// 404 where the caller has no record: a server without `--data-dir`, or a static key.
pub(super) async fn own(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    let (Some(books), Some(key)) = (app.gateway.books(), caller.principal.key()) else {
        return Err(ApiError::not_found("key_not_found", "This server keeps no record of the key you use."));
    };
    Ok(json(own_key(books, key).await?.to_string().into_bytes()))
}
