//! `/key/…`.

use super::fields::{Fields, Filter, Managing, Ruling, from_one, wrong};
use super::wire::{key_edit, key_object, object, period};
use super::{Identity, Plane, check_sets, json, missing, refused, reset};
use crate::gateway::limits::ScopeKind;
use crate::gateway::store::spent;
use crate::gateway::{BooksError, Credential, KeyRecord, KeySpec, Made, Role};
use crate::http::error::ApiError;
use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Keys of one call, and of one page.
const KEYS_AT_ONCE: usize = 1000;

/// The id that a client means: an id, or a whole key.
fn id_of(text: &str) -> String {
    Credential::parse(text).map_or_else(|| text.to_owned(), |key| key.id().to_owned())
}

/// The key, if `identity` may know of it.
fn find(plane: &Plane, identity: &Identity, text: &str) -> Result<Arc<KeyRecord>, ApiError> {
    let snapshot = plane.books.keyring().snapshot();
    let record = snapshot.keys.get(&id_of(text)).map(|entry| Arc::clone(&entry.record));
    let is_theirs = |record: &Arc<KeyRecord>| match identity.only_team() {
        Some(team) => record.spec.team.as_deref() == Some(team),
        None => true,
    };
    record.filter(is_theirs).ok_or_else(|| missing("key"))
}

/// A key of the file, which can be looked at and not changed.
fn find_fixed(plane: &Plane, identity: &Identity, name: &str) -> Option<Arc<KeyRecord>> {
    let snapshot = plane.books.keyring().snapshot();
    let key = snapshot.fixed.keys.values().find(|key| key.id == name).cloned();
    key.filter(|key| identity.only_team().is_none_or(|team| key.spec.team.as_deref() == Some(team)))
}

/// What a team's admin may not touch or give: another team, and keys with a role.
fn check_grant(identity: &Identity, spec: &KeySpec) -> Result<(), ApiError> {
    let Some(team) = identity.only_team() else { return Ok(()) };
    if spec.team.as_deref() != Some(team) {
        // The same words as for a team that isn't there.
        return Err(missing("team"));
    }
    let is_data = spec.roles.iter().all(|role| *role == Role::Data);
    if is_data { Ok(()) } else { Err(ApiError::forbidden("A team's admin has no say over keys with a role.")) }
}

pub(super) async fn generate(
    State(plane): State<Plane>,
    Managing(identity, fields): Managing,
) -> Result<Response, ApiError> {
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(key_edit)?;
    let mut spec = KeySpec::default();
    edit(&mut spec);
    if let (None, Some(team)) = (&spec.team, identity.only_team()) {
        spec.team = Some(team.to_owned());
    }
    check_grant(&identity, &spec)?;
    let made = plane.books.generate_key(identity.actor(), spec).await.map_err(refused)?;
    Ok(json(&Value::Object(shown_once(&made))))
}

/// The one answer that holds a key.
fn shown_once(made: &Made) -> Map<String, Value> {
    let mut answer = object(json!({ "key": made.credential.reveal() }));
    answer.extend(key_object(&made.record, None));
    answer
}

pub(super) async fn update(
    State(plane): State<Plane>,
    Managing(identity, mut fields): Managing,
) -> Result<Response, ApiError> {
    let key = find(&plane, &identity, &fields.required::<String>("key")?)?;
    check_grant(&identity, &key.spec)?;
    check_sets(&plane, &identity, &fields)?;
    let edit = fields.whole(key_edit)?;
    let (asker, (sender, receiver)) = (identity.clone(), std::sync::mpsc::channel());
    let change = Box::new(move |spec: &mut KeySpec| {
        edit(spec);
        check_grant(&asker, spec).map_err(|error| {
            let text = error.problem.message.clone();
            // Handed over as it is; an error means that nobody waits for it.
            let _ = sender.send(error);
            BooksError::Refused(text)
        })
    });
    let updated = plane.books.update_key(identity.actor(), &key.id, change).await;
    let updated = updated.map_err(|error| receiver.try_recv().unwrap_or_else(|_| refused(error)))?;
    Ok(json(&Value::Object(key_object(&updated, None))))
}

/// The ids of a body's `keys`, each known to `identity`.
fn listed(plane: &Plane, identity: &Identity, mut fields: Fields) -> Result<Vec<String>, ApiError> {
    let keys: Vec<String> = fields.optional("keys")?.unwrap_or_default();
    let aliases: Vec<String> = fields.optional("key_aliases")?.unwrap_or_default();
    fields.finish()?;
    if keys.is_empty() == aliases.is_empty() || keys.len() + aliases.len() > KEYS_AT_ONCE {
        return Err(wrong("keys", "either keys or key_aliases, with 1 to 1000 of them, is required"));
    }
    let snapshot = plane.books.keyring().snapshot();
    let by_alias = |alias: &String| {
        let found = snapshot.keys.values().find(|entry| entry.record.spec.alias.as_ref() == Some(alias));
        found.map_or_else(|| alias.clone(), |entry| entry.record.id.clone())
    };
    let named = keys.iter().map(|key| id_of(key)).chain(aliases.iter().map(by_alias));
    let manageable = |id: String| {
        let key = find(plane, identity, &id)?;
        check_grant(identity, &key.spec)?;
        Ok(key.id.clone())
    };
    let mut ids: Vec<String> = named.map(manageable).collect::<Result<_, ApiError>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

pub(super) async fn delete(
    State(plane): State<Plane>,
    Managing(identity, fields): Managing,
) -> Result<Response, ApiError> {
    let ids = listed(&plane, &identity, fields)?;
    let (books, revoked) = (Arc::clone(&plane.books), ids.clone());
    plane.deleting(async move { books.revoke_keys(identity.actor(), revoked).await }).await?;
    Ok(json(&json!({ "deleted_keys": ids })))
}

/// Blocks a key, or opens it again.
pub(super) async fn set_blocked(
    State(plane): State<Plane>,
    Managing(identity, mut fields): Managing,
    blocked: bool,
) -> Result<Response, ApiError> {
    let key = find(&plane, &identity, &fields.required::<String>("key")?)?;
    fields.finish()?;
    check_grant(&identity, &key.spec)?;
    let changed = plane.books.block_key(identity.actor(), &key.id, blocked).await.map_err(refused)?;
    Ok(json(&Value::Object(key_object(&changed, None))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    key: String,
}

pub(super) async fn info(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(which): Filter<Which>,
) -> Result<Response, ApiError> {
    let key =
        find(&plane, &identity, &which.key).or_else(|error| find_fixed(&plane, &identity, &which.key).ok_or(error))?;
    let spent = spent_by(&plane, "key", &key.id).await?;
    Ok(json(&json!({ "key": key.id, "info": key_object(&key, Some(spent)) })))
}

/// What a scope spent since it was last reset.
pub(super) async fn spent_by(plane: &Plane, scope: &'static str, id: &str) -> Result<(i64, u64), ApiError> {
    let id = id.to_owned();
    let read = plane.books.store().read(move |conn| spent(conn, scope, &id, (0, i64::MAX))).await;
    read.map_err(|error| refused(error.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    team_id: Option<String>,
    user_id: Option<String>,
    key_alias: Option<String>,
    page: Option<usize>,
    size: Option<usize>,
    /// LiteLLM's: `false` lists ids alone.
    return_full_object: Option<bool>,
}

pub(super) async fn list(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    Filter(page): Filter<Page>,
) -> Result<Response, ApiError> {
    let team = match (identity.only_team(), &page.team_id) {
        (Some(own), Some(asked)) if own != asked => return Err(missing("team")),
        (Some(own), _) => Some(own.to_owned()),
        (None, asked) => asked.clone(),
    };
    let snapshot = plane.books.keyring().snapshot();
    let is_meant = |asked: &Option<String>, got: &Option<String>| asked.is_none() || asked == got;
    let mut keys: Vec<&Arc<KeyRecord>> = snapshot
        .keys
        .values()
        .map(|entry| &entry.record)
        .chain(snapshot.fixed.keys.values())
        .filter(|key| is_meant(&team, &key.spec.team) && is_meant(&page.user_id, &key.spec.user))
        .filter(|key| is_meant(&page.key_alias, &key.spec.alias))
        .collect();
    keys.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    let size = from_one("size", page.size, 100, KEYS_AT_ONCE)?;
    let n_page = from_one("page", page.page, 1, usize::MAX)?;
    let (n, n_pages) = (keys.len(), keys.len().div_ceil(size));
    let shown = keys.into_iter().skip((n_page - 1).saturating_mul(size)).take(size);
    let is_full = page.return_full_object.unwrap_or(true);
    let show = |key: &Arc<KeyRecord>| match is_full {
        true => Value::Object(key_object(key, None)),
        false => Value::from(key.id.as_str()),
    };
    let shown: Vec<Value> = shown.map(show).collect();
    Ok(json(&json!({ "keys": shown, "total_count": n, "current_page": n_page, "total_pages": n_pages })))
}

pub(super) async fn regenerate(
    State(plane): State<Plane>,
    Path(id): Path<String>,
    Managing(identity, mut fields): Managing,
) -> Result<Response, ApiError> {
    let key = find(&plane, &identity, &id)?;
    check_grant(&identity, &key.spec)?;
    let grace = fields.text("grace_period", period)?.flatten();
    fields.finish()?;
    let grace_ms = grace.map_or(0, |period| period.approximate_ms());
    let made = plane.books.regenerate_key(identity.actor(), &key.id, grace_ms).await.map_err(refused)?;
    Ok(json(&Value::Object(shown_once(&made))))
}

pub(super) async fn reset_spend(
    State(plane): State<Plane>,
    Path(id): Path<String>,
    Ruling(identity, mut fields): Ruling,
) -> Result<Response, ApiError> {
    let key = find(&plane, &identity, &id)?;
    let to = fields.money("reset_to")?.flatten().unwrap_or(0);
    fields.finish()?;
    if to != 0 {
        return Err(wrong("reset_to", "spend is reset to 0 only"));
    }
    reset(&plane, &identity, ScopeKind::Key, &key.id).await
}
