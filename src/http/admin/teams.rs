//! `/team/…`.

use super::fields::{Filter, Ruling, wrong};
use super::keys::spent_by;
use super::wire::{key_object, team_edit, team_object};
use super::{Identity, Plane, check_sets, json, missing, refused, reset};
use crate::gateway::limits::ScopeKind;
use crate::gateway::{TeamRecord, TeamSpec};
use crate::http::error::ApiError;
use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const TEAMS_AT_ONCE: usize = 1000;

fn find(plane: &Plane, identity: &Identity, id: &str) -> Result<Arc<TeamRecord>, ApiError> {
    let team = plane.books.keyring().snapshot().teams.get(id).cloned();
    team.filter(|team| identity.only_team().is_none_or(|own| own == team.id)).ok_or_else(|| missing("team"))
}

pub(super) async fn new(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let id = fields.new_id("team_id")?;
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(team_edit)?;
    let mut spec = TeamSpec::default();
    edit(&mut spec);
    let team = plane.books.new_team(identity.actor(), id, spec).await.map_err(refused)?;
    Ok(json(&Value::Object(team_object(&team, None))))
}

pub(super) async fn update(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let team = find(&plane, &identity, &fields.required::<String>("team_id")?)?;
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(team_edit)?;
    let change = Box::new(move |spec: &mut TeamSpec| {
        edit(spec);
        Ok(())
    });
    let team = plane.books.update_team(identity.actor(), &team.id, change).await.map_err(refused)?;
    Ok(json(&Value::Object(team_object(&team, None))))
}

/// Deletes teams and revokes their keys.
pub(super) async fn delete(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let mut ids: Vec<String> = fields.required("team_ids")?;
    fields.finish()?;
    if ids.is_empty() || ids.len() > TEAMS_AT_ONCE {
        return Err(wrong("team_ids", "it has 1 to 1000 ids"));
    }
    ids.sort_unstable();
    ids.dedup();
    let (books, deleted) = (Arc::clone(&plane.books), ids.clone());
    plane.deleting(async move { books.delete_teams(identity.actor(), deleted).await }).await?;
    Ok(json(&json!({ "deleted_teams": ids })))
}

/// Blocks a team with all its keys, or opens it again.
pub(super) async fn set_blocked(
    State(plane): State<Plane>,
    Ruling(identity, mut fields): Ruling,
    blocked: bool,
) -> Result<Response, ApiError> {
    let team = find(&plane, &identity, &fields.required::<String>("team_id")?)?;
    fields.finish()?;
    let team = plane.books.block_team(identity.actor(), &team.id, blocked).await.map_err(refused)?;
    Ok(json(&Value::Object(team_object(&team, None))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    team_id: String,
}

/// The team, what it spent, and its keys.
pub(super) async fn info(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(which): Filter<Which>,
) -> Result<Response, ApiError> {
    let team = find(&plane, &identity, &which.team_id)?;
    let spent = spent_by(&plane, "team", &team.id).await?;
    let snapshot = plane.books.keyring().snapshot();
    let of_team = snapshot.keys.values().filter(|entry| entry.record.spec.team.as_ref() == Some(&team.id));
    let keys: Vec<Value> =
        of_team.take(TEAMS_AT_ONCE).map(|entry| Value::Object(key_object(&entry.record, None))).collect();
    let info = team_object(&team, Some(spent));
    Ok(json(&json!({ "team_id": team.id, "team_info": info, "keys": keys })))
}

pub(super) async fn list(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    let snapshot = plane.books.keyring().snapshot();
    let own = identity.only_team();
    let mut teams: Vec<&Arc<TeamRecord>> =
        snapshot.teams.values().filter(|team| own.is_none_or(|own| own == team.id)).collect();
    teams.sort_by(|a, b| a.id.cmp(&b.id));
    let teams: Vec<Value> = teams.into_iter().map(|team| Value::Object(team_object(team, None))).collect();
    Ok(json(&Value::Array(teams)))
}

pub(super) async fn reset_spend(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    identity.may_rule()?;
    let team = find(&plane, &identity, &id)?;
    reset(&plane, &identity, ScopeKind::Team, &team.id).await
}
