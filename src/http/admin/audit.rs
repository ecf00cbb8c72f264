//! The audit chain, the database, the models, the state of the plane.

use super::fields::{Fields, Filter, from_one, wrong};
use super::wire::time;
use super::{Identity, Plane, json, refused, to_the_end, typed};
use crate::gateway::store::{self, LINES_MAX, Link};
use crate::gateway::{BooksError, ModelStatus, usd};
use crate::http::error::ApiError;
use crate::model::lock::hex;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::stream;
use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// The first link's number; 1: the whole chain.
    since: Option<i64>,
    limit: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    since: Option<i64>,
    /// `SEQ-HEAD` of a checkpoint that was kept elsewhere.
    checkpoint: Option<String>,
}

fn kept(text: &str) -> Result<(i64, String), ApiError> {
    let parts = text.split_once('-').and_then(|(seq, head)| Some((seq.parse().ok()?, head.to_lowercase())));
    let good =
        parts.filter(|(_, head): &(i64, String)| head.len() == 64 && head.bytes().all(|b| b.is_ascii_hexdigit()));
    good.ok_or_else(|| wrong("checkpoint", "it is a link's number, a dash and the 64 digits of its head"))
}

fn link_object(link: &Link) -> Value {
    json!({
        "seq": link.seq,
        "ts": link.ts,
        "epoch": link.epoch,
        "time": time(link.ts),
        "actor": link.actor,
        "action": link.action,
        "object": link.object,
        // As it was sealed.
        "detail": link.detail,
        "prev": hex(&link.prev),
        "mac": hex(&link.mac),
    })
}

pub(super) async fn events(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(from): Filter<Since>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let (since, limit) = (from.since.unwrap_or(1), from_one("limit", from.limit, 1000, LINES_MAX)?);
    let read = plane.books.store().read(move |conn| store::links(conn, since, limit)).await;
    let links = read.map_err(|error| refused(error.into()))?;
    Ok(json(&Value::Array(links.iter().map(link_object).collect())))
}

/// Recomputes the chain; `ok` is false with the first link that is wrong.
pub(super) async fn verify(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(from): Filter<From>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let kept = from.checkpoint.as_deref().map(kept).transpose()?;
    let found = plane.books.store().verify_with(from.since.unwrap_or(1), kept).await;
    let found = found.map_err(|error| refused(error.into()))?;
    Ok(json(&json!({
        "ok": found.fault.is_none(),
        "links": found.n_links,
        "rows": found.n_rows,
        "checkpoints": found.n_checkpoints,
        "head_seq": found.head_seq,
        "head": found.head,
        "first_bad_seq": found.fault.as_ref().map(|fault| fault.seq),
        "reason": found.fault.map(|fault| fault.reason),
    })))
}

/// All links, one JSON object a line; read page by page, so that it takes little memory however long the chain is.
pub(super) async fn export(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(from): Filter<Since>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let pages = stream::unfold((plane, Some(from.since.unwrap_or(1))), |(plane, next)| async move {
        let since = next?;
        let page = plane.books.store().read(move |conn| store::links(conn, since, LINES_MAX)).await;
        let page = match page {
            Ok(links) if links.is_empty() => return None,
            Ok(links) => links,
            // The body breaks off, which its reader sees.
            Err(error) => return Some((Err(std::io::Error::other(error.to_string())), (plane, None))),
        };
        let next = page.last().map(|link| link.seq + 1);
        let text: String = page.iter().map(|link| format!("{}\n", link_object(link))).collect();
        Some((Ok(text), (plane, next)))
    });
    let mut response = Response::new(Body::from_stream(pages));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    request_id: String,
}

/// What was said in a request, where it was kept; that it was read is in the chain.
pub(super) async fn content(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(of): Filter<Of>,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    let text = plane.books.content(identity.actor(), &of.request_id).await.map_err(refused)?;
    Ok(typed(text, "application/json"))
}

/// Forgets everything that a user said: LiteLLM has no such call.
pub(super) async fn erase(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    body: Bytes,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    let mut fields = Fields::parse(&body)?;
    let subject: String = fields.required("user_id")?;
    fields.finish()?;
    let work = async move {
        let n_cached = match &plane.gateway {
            Some(gateway) => gateway.forget_subject(&subject).await,
            None => 0,
        };
        let (books, actor) = (&plane.books, identity.actor());
        let erased = match books.erase(actor, &subject).await {
            // Nothing else was kept of it.
            Err(BooksError::Missing(_)) if n_cached > 0 => {
                books.note(actor, "subject.erase", &subject, json!({ "cached_answers": n_cached })).await
            }
            other => other,
        };
        erased.map(|()| subject)
    };
    let subject = to_the_end(work).await?.map_err(refused)?;
    Ok(json(&json!({ "erased": subject })))
}

/// SQLite's own look at the whole file.
pub(super) async fn check(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let found = plane.books.store().check().await.map_err(|error| refused(error.into()))?;
    let lag = match plane.books.shipper() {
        Some(shipper) => Some(shipper.lag().await.map_err(|error| refused(error.into()))?),
        None => None,
    };
    let store = lag.map(|lag| {
        json!({
            "place": lag.place, "instance": lag.instance, "connected": lag.is_connected, "rows_behind": lag.n_rows,
            "seconds_behind": lag.seconds, "failures": lag.n_failed, "error": lag.error,
        })
    });
    Ok(json(&json!({ "ok": found.is_empty(), "faults": found, "store": store })))
}

/// LiteLLM's list of models.
pub(super) async fn models(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let models = plane.gateway.as_ref().map(|gateway| gateway.models()).unwrap_or_default();
    let one = |model: &crate::gateway::Listed| {
        let price = model.config.price;
        json!({
            "model_name": model.config.id,
            "model_info": {
                "id": model.config.id,
                "aliases": model.config.aliases,
                "loaded": model.status == ModelStatus::Loaded,
                "usd_per_million_input": usd(price.input),
                "usd_per_million_cached_input": usd(price.cached_input),
                "usd_per_million_output": usd(price.output),
            },
        })
    };
    Ok(json(&json!({ "data": models.iter().map(one).collect::<Vec<_>>() })))
}

pub(super) async fn metrics(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let page = match &plane.gateway {
        Some(gateway) => gateway.metrics_page().await,
        None => String::new(),
    };
    Ok(typed(page, "text/plain; version=0.0.4; charset=utf-8"))
}

pub(super) async fn live() -> Response {
    json(&json!({ "status": "healthy" }))
}

/// Whether requests are taken: the ledger can be written and the models that are to be there are.
pub(super) async fn ready(State(plane): State<Plane>) -> Response {
    let health = plane.books.store().health();
    let unready = plane.gateway.as_ref().and_then(|gateway| gateway.unready()).map(|(model, _)| model);
    let (n_commits, n_rows) = health.commits();
    json(&json!({
        "status": if health.is_failed() || unready.is_some() { "unhealthy" } else { "healthy" },
        "db": if health.is_failed() { "failed" } else { "connected" },
        "model_not_ready": unready,
        "ledger": { "commits": n_commits, "rows": n_rows, "pending": plane.books.store().n_pending(), "lost": health.n_lost() },
    }))
}
