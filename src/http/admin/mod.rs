//! The admin plane: keys, teams, spend and the audit chain, on a socket of its own.
//!
//! **Invariant:** none of its routes is on the data plane, and every one wants the master key or a key with a role; what an
//! identity may not see is as unknown to it as what isn't there.
//!
//! # Design
//! Names and fields are LiteLLM's where it has them, so that calls people have scripted keep working. The plane has its own
//! listener (a unix socket, or an address if one is set), its own few connections and its own bodies: a flooded data plane
//! does not lock the administrator out, and budgets do not either. The command line uses the same router, over the socket or,
//! with the server down, without one.

mod audit;
mod budgets;
mod fields;
mod keys;
mod listen;
mod server;
mod settings;
mod spend;
mod teams;
mod ui;
mod wire;

pub use listen::{AdminListener, serve_admin};
pub use settings::{ReloadAsk, Settings};
pub(super) use wire::own_key;
pub use wire::{granted_key, granted_team};

use super::auth;
use super::error::{ApiError, Asked};
use crate::gateway::limits::ScopeKind;
use crate::gateway::{Books, BooksError, Gateway, KeyRecord, Role, unix_ms};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde_json::Value;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the plane acts on.
pub struct Admin {
    pub books: Arc<Books>,
    /// `None` on the command line, where no model is served.
    pub gateway: Option<Arc<Gateway>>,
    /// Cancelled to end the server, running answers first.
    pub drain: CancellationToken,
    /// `None` where no server runs.
    pub settings: Option<Settings>,
    /// Serve the page, too.
    pub ui: bool,
}

type Plane = Arc<Admin>;

impl Admin {
    /// Deletes keys or teams by `delete`, and with them what is kept of them elsewhere.
    async fn deleting<T: Send + 'static>(
        self: &Arc<Self>,
        delete: impl Future<Output = Result<T, BooksError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let plane = Arc::clone(self);
        let work = async move {
            let deleted = delete.await?;
            if let Some(gateway) = &plane.gateway {
                gateway.forget_deleted().await;
            }
            Ok(deleted)
        };
        to_the_end(work).await?.map_err(refused)
    }
}

/// Work of several steps that must not stop between them: it is done to its end also when the client has left.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ApiError> {
    // An error means that it panicked, which the log says.
    tokio::spawn(work).await.map_err(|_| ApiError::internal())
}

/// Who asks.
#[derive(Debug, Clone)]
enum Identity {
    Master,
    Key(Arc<KeyRecord>),
}

/// Where a request comes from; a unix socket has no address.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<std::net::IpAddr>);

/// Largest body of an administrator.
const BODY_BYTES_MAX: usize = 1 << 20;

pub fn admin_router(admin: Arc<Admin>) -> Router {
    let page = if admin.ui { ui::routes() } else { Router::new() };
    let plane = routes()
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_url)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), identify))
        .with_state(admin);
    // What it holds is no secret, and nobody has typed in a key before it is there.
    plane.merge(page)
}

/// Every path of the plane.
fn routes() -> Router<Plane> {
    Router::new()
        .route("/key/generate", post(keys::generate))
        .route("/key/update", post(keys::update))
        .route("/key/delete", post(keys::delete))
        .route("/key/block", post(|plane, act| keys::set_blocked(plane, act, true)))
        .route("/key/unblock", post(|plane, act| keys::set_blocked(plane, act, false)))
        .route("/key/info", get(keys::info))
        .route("/key/list", get(keys::list))
        .route("/key/{id}/regenerate", post(keys::regenerate))
        .route("/key/{id}/reset_spend", post(keys::reset_spend))
        .route("/team/new", post(teams::new))
        .route("/team/update", post(teams::update))
        .route("/team/delete", post(teams::delete))
        .route("/team/block", post(|plane, act| teams::set_blocked(plane, act, true)))
        .route("/team/unblock", post(|plane, act| teams::set_blocked(plane, act, false)))
        .route("/team/info", get(teams::info))
        .route("/team/list", get(teams::list))
        .route("/team/{id}/reset_spend", post(teams::reset_spend))
        .route("/budget/new", post(budgets::new))
        .route("/budget/update", post(budgets::update))
        .route("/budget/delete", post(budgets::delete))
        .route("/budget/info", get(budgets::info).post(budgets::infos))
        .route("/budget/list", get(budgets::list))
        .route("/budget/{id}/reset_spend", post(budgets::reset_spend))
        .route("/spend/logs", get(spend::logs))
        .route("/spend/keys", get(spend::keys))
        .route("/spend/teams", get(spend::teams))
        .route("/spend/tags", get(spend::tags))
        .route("/global/spend/report", get(spend::report))
        .route("/audit/events", get(audit::events))
        .route("/audit/verify", get(audit::verify))
        .route("/audit/export", get(audit::export))
        .route("/audit/content", get(audit::content))
        .route("/subject/erase", post(audit::erase))
        .route("/db/check", get(audit::check))
        .route("/model/info", get(audit::models))
        .route("/v1/model/info", get(audit::models))
        .route("/model/load", post(server::load))
        .route("/model/unload", post(server::unload))
        .route("/upstreams", get(server::upstreams))
        .route("/cache/flush", post(server::flush_cache))
        .route("/admin/slots", get(server::slots))
        .route("/admin/drain", post(server::drain))
        .route("/config", get(settings::shown))
        .route("/config/reload", post(settings::reload))
        .route("/metrics", get(audit::metrics))
        .route("/health/liveliness", get(audit::live))
        .route("/health/readiness", get(audit::ready))
}

impl Identity {
    /// Of the audit chain.
    fn actor(&self) -> &str {
        match self {
            Identity::Master => "master",
            Identity::Key(key) => &key.id,
        }
    }

    fn has(&self, role: Role) -> bool {
        match self {
            Identity::Master => true,
            Identity::Key(key) => key.spec.has(role),
        }
    }

    /// The one team it may act on; `None`: all of them.
    fn only_team(&self) -> Option<&str> {
        match self {
            Identity::Key(key) if !key.spec.has(Role::Admin) && !key.spec.has(Role::Auditor) => {
                key.spec.team.as_deref()
            }
            _ => None,
        }
    }

    /// Everything may be changed.
    fn may_rule(&self) -> Result<(), ApiError> {
        if self.has(Role::Admin) { Ok(()) } else { Err(ApiError::forbidden("This needs an admin's key.")) }
    }

    /// Everything may be read.
    fn may_look(&self) -> Result<(), ApiError> {
        match self.has(Role::Admin) || self.has(Role::Auditor) {
            true => Ok(()),
            false => Err(ApiError::forbidden("This needs an admin's or an auditor's key.")),
        }
    }

    /// Keys of some team may be changed.
    fn may_manage(&self) -> Result<(), ApiError> {
        match self.has(Role::Admin) || (self.has(Role::TeamAdmin) && self.only_team().is_some()) {
            true => Ok(()),
            false => Err(ApiError::forbidden("This needs an admin's or a team admin's key.")),
        }
    }

    /// Something may be read: everything, or what is of its team.
    fn may_see(&self) -> Result<(), ApiError> {
        self.may_look().or_else(|_| self.may_manage())
    }
}

/// Lets in who has the master key, or a key with a role of this plane.
async fn identify(State(admin): State<Plane>, mut request: Request, next: Next) -> Response {
    let presented = auth::presented(request.headers()).unwrap_or_default();
    let identity = if admin.books.is_master(presented) {
        Some(Identity::Master)
    } else {
        let ip = request.extensions().get::<Peer>().and_then(|peer| peer.0);
        admin.books.keyring().find(presented, unix_ms()).filter(|key| key.spec.admits(ip)).map(Identity::Key)
    };
    let Some(identity) = identity else {
        return ApiError::of(crate::gateway::Error::Unauthorized, Asked::Nothing).into_response();
    };
    if let Err(error) = identity.may_see() {
        return error.into_response();
    }
    request.extensions_mut().insert(identity);
    next.run(request).await
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_url(&method, uri.path())
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::wrong_method(&method)
}

/// Refuses sets of limits and rules that `hearth.toml` does not have: a misspelt one would be no limit. A team's admin has no
/// say over rules.
fn check_sets(plane: &Plane, identity: &Identity, fields: &fields::Fields) -> Result<(), ApiError> {
    let guardrails = fields.peek_list("guardrails");
    if guardrails.is_some() && identity.only_team().is_some() {
        return Err(ApiError::forbidden("A team's admin has no say over guardrails."));
    }
    if fields.has("budget_id") && identity.only_team().is_some() {
        return Err(ApiError::forbidden("A team's admin has no say over budgets that are shared."));
    }
    let Some(gateway) = &plane.gateway else { return Ok(()) };
    if fields.peek("limits").is_some_and(|name| !gateway.has_limits(name)) {
        return Err(fields::wrong("limits", "hearth.toml has no such set of limits"));
    }
    if guardrails.unwrap_or_default().into_iter().any(|name| !gateway.has_guardrail(name)) {
        return Err(fields::wrong("guardrails", "hearth.toml has no such set of guardrails"));
    }
    Ok(())
}

/// From now on the budget of a key, a team or of those who share one counts anew.
async fn reset(plane: &Plane, identity: &Identity, kind: ScopeKind, id: &str) -> Result<Response, ApiError> {
    plane.books.reset_spend(identity.actor(), kind.name(), id).await.map_err(refused)?;
    if let Some(gateway) = &plane.gateway {
        gateway.forgive(kind, id);
    }
    Ok(json(&serde_json::json!({ format!("{}_id", kind.name()): id, "spend": wire::dollars(0) })))
}

fn refused(error: BooksError) -> ApiError {
    match error {
        BooksError::Refused(message) => ApiError::refused(StatusCode::BAD_REQUEST, "invalid_value", message),
        BooksError::Missing(what) => missing(what),
        BooksError::Unavailable(reason) => {
            tracing::warn!(reason, "an act of an administrator was not done");
            ApiError::of(crate::gateway::Error::LedgerUnavailable, Asked::Nothing)
        }
        other => {
            tracing::error!(error = %other, "an act of an administrator failed");
            ApiError::internal()
        }
    }
}

fn missing(what: &str) -> ApiError {
    ApiError::not_found("not_found", format!("There is no such {what}."))
}

fn json(value: &Value) -> Response {
    typed(value.to_string(), "application/json")
}

fn typed(body: String, kind: &'static str) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn what_was_begun_is_done_when_the_client_has_left() {
        let (step, n_steps) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicU32::new(0)));
        let (go, count) = (Arc::clone(&step), Arc::clone(&n_steps));
        let work = async move {
            for _ in 0..2 {
                go.notified().await;
                count.fetch_add(1, Ordering::Relaxed);
            }
            go.notify_one();
        };
        let mut asked = Box::pin(to_the_end(work));
        assert!(futures_util::poll!(asked.as_mut()).is_pending());
        drop(asked);
        let done = async {
            while n_steps.load(Ordering::Relaxed) < 2 {
                step.notify_one();
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), done).await.expect("both steps");
    }
}
