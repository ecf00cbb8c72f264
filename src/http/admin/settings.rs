//! `/config`: what the server runs with, and taking it anew.

use super::{Identity, Plane, json};
use crate::http::error::ApiError;
use arc_swap::ArcSwap;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Reloads that may wait for one that is being done.
const RELOADS_MAX: usize = 4;

/// The settings of the running process, as the plane knows them.
#[derive(Clone)]
pub struct Settings {
    /// Those in use, without secrets.
    shown: Arc<ArcSwap<Value>>,
    asks: mpsc::Sender<ReloadAsk>,
}

/// Somebody wants the settings to be read anew.
pub struct ReloadAsk {
    /// For the audit chain.
    pub actor: String,
    /// Done, or why nothing was changed.
    pub answer: oneshot::Sender<Result<(), String>>,
}

impl Settings {
    /// With the receiving end of what is asked. **Bound:** `RELOADS_MAX` wait; one more is refused.
    pub fn new(shown: Value) -> (Self, mpsc::Receiver<ReloadAsk>) {
        let (asks, asked) = mpsc::channel(RELOADS_MAX);
        (Self { shown: Arc::new(ArcSwap::from_pointee(shown)), asks }, asked)
    }

    pub fn show(&self, shown: Value) {
        self.shown.store(Arc::new(shown));
    }
}

fn settings(plane: &Plane) -> Result<&Settings, ApiError> {
    plane.settings.as_ref().ok_or_else(|| ApiError::not_found("not_found", "No server runs that has settings."))
}

pub(super) async fn shown(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    Ok(json(&settings(&plane)?.shown.load()))
}

/// Answers when the settings hold, or with the reason why the old ones stay.
pub(super) async fn reload(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    body: Bytes,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    super::fields::Fields::parse(&body)?.finish()?;
    let (answer, answered) = oneshot::channel();
    let ask = ReloadAsk { actor: identity.actor().to_owned(), answer };
    let busy = |_| ApiError::unavailable("server_is_overloaded", "The settings are being read; please try again.", 1);
    settings(&plane)?.asks.try_send(ask).map_err(busy)?;
    match answered.await {
        Ok(Ok(())) => Ok(json(&json!({ "status": "reloaded" }))),
        Ok(Err(reason)) => Err(ApiError::refused(StatusCode::BAD_REQUEST, "invalid_config", reason)),
        Err(_) => Err(ApiError::shutting_down()),
    }
}
