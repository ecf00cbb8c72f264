//! `/budget/…`: what keys and teams share.

use super::fields::{Fields, Filter, Ruling, wrong};
use super::wire::{budget_object, shared_edit};
use super::{Identity, Plane, check_sets, json, missing, refused, reset};
use crate::gateway::limits::ScopeKind;
use crate::gateway::{BudgetRecord, SharedSpec};
use crate::http::error::ApiError;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Budgets of one question.
const BUDGETS_AT_ONCE: usize = 1000;

fn find(plane: &Plane, id: &str) -> Result<Arc<BudgetRecord>, ApiError> {
    plane.books.keyring().snapshot().budgets.get(id).cloned().ok_or_else(|| missing("budget"))
}

async fn shown(plane: &Plane, budget: &BudgetRecord) -> Result<Value, ApiError> {
    let spent = super::keys::spent_by(plane, "budget", &budget.id).await?;
    Ok(Value::Object(budget_object(budget, Some(spent))))
}

pub(super) async fn new(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let id = fields.new_id("budget_id")?;
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(shared_edit)?;
    let mut spec = SharedSpec::default();
    edit(&mut spec);
    let budget = plane.books.new_budget(identity.actor(), id, spec).await.map_err(refused)?;
    Ok(json(&Value::Object(budget_object(&budget, None))))
}

pub(super) async fn update(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let budget = find(&plane, &fields.required::<String>("budget_id")?)?;
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(shared_edit)?;
    let change = Box::new(move |spec: &mut SharedSpec| {
        edit(spec);
        Ok(())
    });
    let budget = plane.books.update_budget(identity.actor(), &budget.id, change).await.map_err(refused)?;
    Ok(json(&Value::Object(budget_object(&budget, None))))
}

/// Of one that nobody names.
pub(super) async fn delete(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let id: String = fields.required("id")?;
    fields.finish()?;
    let budget = find(&plane, &id)?;
    plane.books.delete_budget(identity.actor(), &id).await.map_err(refused)?;
    Ok(json(&Value::Object(budget_object(&budget, None))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    budget_id: String,
}

pub(super) async fn info(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(which): Filter<Which>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let budget = find(&plane, &which.budget_id)?;
    Ok(json(&shown(&plane, &budget).await?))
}

/// LiteLLM asks by POST, for several.
pub(super) async fn infos(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    body: Bytes,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let mut fields = Fields::parse(&body)?;
    let ids: Vec<String> = fields.required("budgets")?;
    fields.finish()?;
    if ids.is_empty() || ids.len() > BUDGETS_AT_ONCE {
        return Err(wrong("budgets", "it has 1 to 1000 ids"));
    }
    let mut all = Vec::new();
    for id in &ids {
        let budget = find(&plane, id)?;
        all.push(shown(&plane, &budget).await?);
    }
    Ok(json(&Value::Array(all)))
}

pub(super) async fn list(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    identity.may_look()?;
    let snapshot = plane.books.keyring().snapshot();
    let mut budgets: Vec<&Arc<BudgetRecord>> = snapshot.budgets.values().collect();
    budgets.sort_by(|a, b| a.id.cmp(&b.id));
    let budgets = budgets.into_iter().map(|budget| Value::Object(budget_object(budget, None)));
    Ok(json(&Value::Array(budgets.collect())))
}

pub(super) async fn reset_spend(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    let budget = find(&plane, &id)?;
    reset(&plane, &identity, ScopeKind::Budget, &budget.id).await
}
