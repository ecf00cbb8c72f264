//! What administrators do to keys and teams. Each act is one transaction with its link in the audit chain.

use super::{Books, BooksError, load};
use crate::gateway::keys::{Credential, KEYS_MAX, KeyEntry, KeyRecord, Snapshot, TeamRecord};
use crate::gateway::limits::is_zone;
use crate::gateway::spec::{BudgetSpec, KeySpec, LimitSpec, NUSD_MAX, TeamSpec};
use crate::gateway::store::Act;
use crate::gateway::unix_ms;
use serde_json::{Value, json};
use std::sync::Arc;

/// A key that was just made; its secret is never to be seen again.
pub struct Made {
    pub credential: Credential,
    pub record: Arc<KeyRecord>,
}

/// Changes a spec, or says why not.
pub type KeyChange = Box<dyn FnOnce(&mut KeySpec) -> Result<(), BooksError> + Send>;
pub type TeamChange = Box<dyn FnOnce(&mut TeamSpec) -> Result<(), BooksError> + Send>;

const NAME_CHARS_MAX: usize = 256;
const LIST_MAX: usize = 256;
const METADATA_BYTES_MAX: usize = 16 << 10;

impl Books {
    /// Makes a key. Errors: `Refused` for a spec that goes against what is there or out of bounds.
    pub async fn generate_key(self: &Arc<Self>, actor: &str, spec: KeySpec) -> Result<Made, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        if next.keys.len() >= KEYS_MAX {
            return Err(BooksError::Refused(format!("there are {KEYS_MAX} keys already")));
        }
        check_key(&spec, &next, None)?;
        let credential = Credential::generate().map_err(|_| BooksError::NoRandomness)?;
        let id = credential.id().to_owned();
        let team = team_of(&spec, &next);
        let record = Arc::new(KeyRecord::new(id.clone(), spec, team, unix_ms(), false));
        let hash = self.keyring.pepper().hash(credential.secret());
        let entry = KeyEntry { record: Arc::clone(&record), hash, previous: None };
        next.keys.insert(id.clone(), entry.clone());
        let act = act(actor, "key.generate", &id, shown(&record.spec));
        self.commit(changing, next, act, move |conn| load::write_key(conn, &entry)).await?;
        Ok(Made { credential, record })
    }

    pub async fn update_key(
        self: &Arc<Self>,
        actor: &str,
        id: &str,
        change: KeyChange,
    ) -> Result<Arc<KeyRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        let mut entry = next.keys.get(id).cloned().ok_or(BooksError::Missing("key"))?;
        let mut spec = entry.record.spec.clone();
        change(&mut spec)?;
        check_key(&spec, &next, Some(id))?;
        let team = team_of(&spec, &next);
        entry.record = Arc::new(entry.record.changed(spec, team, entry.record.blocked));
        next.keys.insert(id.to_owned(), entry.clone());
        let record = Arc::clone(&entry.record);
        let act = act(actor, "key.update", id, shown(&record.spec));
        self.commit(changing, next, act, move |conn| load::write_key(conn, &entry)).await?;
        Ok(record)
    }

    /// Blocks a key, or opens it again.
    pub async fn block_key(
        self: &Arc<Self>,
        actor: &str,
        id: &str,
        blocked: bool,
    ) -> Result<Arc<KeyRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        let mut entry = next.keys.get(id).cloned().ok_or(BooksError::Missing("key"))?;
        let (spec, team) = (entry.record.spec.clone(), entry.record.team.clone());
        entry.record = Arc::new(entry.record.changed(spec, team, blocked));
        next.keys.insert(id.to_owned(), entry.clone());
        let record = Arc::clone(&entry.record);
        let act = act(actor, if blocked { "key.block" } else { "key.unblock" }, id, json!({}));
        self.commit(changing, next, act, move |conn| load::write_key(conn, &entry)).await?;
        Ok(record)
    }

    /// Revokes keys for good: all of them, or none.
    pub async fn revoke_keys(self: &Arc<Self>, actor: &str, ids: Vec<String>) -> Result<(), BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        for id in &ids {
            next.keys.remove(id).ok_or(BooksError::Missing("key"))?;
        }
        let act = act(actor, "key.delete", &ids.join(","), json!({}));
        let now = unix_ms();
        self.commit(changing, next, act, move |conn| ids.iter().try_for_each(|id| load::revoke_key(conn, id, now)))
            .await
    }

    /// A new secret for a key; the one before opens for `grace_ms` more.
    pub async fn regenerate_key(self: &Arc<Self>, actor: &str, id: &str, grace_ms: i64) -> Result<Made, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        let mut entry = next.keys.get(id).cloned().ok_or(BooksError::Missing("key"))?;
        let credential = Credential::regenerate(id).map_err(|_| BooksError::NoRandomness)?;
        let until = unix_ms().saturating_add(grace_ms.max(0));
        entry.previous = (grace_ms > 0).then_some((entry.hash, until));
        entry.hash = self.keyring.pepper().hash(credential.secret());
        next.keys.insert(id.to_owned(), entry.clone());
        let record = Arc::clone(&entry.record);
        let act = act(actor, "key.regenerate", id, json!({ "grace_ms": grace_ms.max(0) }));
        self.commit(changing, next, act, move |conn| load::write_key(conn, &entry)).await?;
        Ok(Made { credential, record })
    }

    /// Writes an act into the audit chain that changes nothing in the books.
    pub async fn note(&self, actor: &str, action: &'static str, object: &str, detail: Value) -> Result<(), BooksError> {
        Ok(self.store.change(act(actor, action, object, detail), |_| Ok(())).await?)
    }

    /// From now on a scope's budget counts anew; the rows stay. `scope`: `key`, `team`, `budget` or `user`.
    pub async fn reset_spend(self: &Arc<Self>, actor: &str, scope: &'static str, id: &str) -> Result<(), BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        let is_there = match scope {
            "budget" => next.budgets.contains_key(id),
            "key" => next.keys.contains_key(id),
            "team" => next.teams.contains_key(id),
            _ => true,
        };
        if !is_there {
            return Err(BooksError::Missing(scope));
        }
        let (owned, now) = (id.to_owned(), unix_ms());
        let act = act(actor, "spend.reset", id, json!({ "scope": scope }));
        self.commit(changing, next, act, move |conn| load::reset_spend(conn, (scope, &owned), now)).await
    }

    pub async fn new_team(
        self: &Arc<Self>,
        actor: &str,
        id: String,
        spec: TeamSpec,
    ) -> Result<Arc<TeamRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        if next.teams.contains_key(&id) {
            return Err(BooksError::Refused(format!("there is a team {id:?} already")));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_name) {
            return Err(BooksError::Refused("a team's id has 1 to 64 letters, digits, -, _ and .".to_owned()));
        }
        if next.teams.len() >= KEYS_MAX {
            return Err(BooksError::Refused(format!("there are {KEYS_MAX} teams already")));
        }
        check_team(&spec, &next)?;
        let team = TeamRecord { id, spec, created: unix_ms(), blocked: false };
        self.put_team(changing, next, (actor, "team.new"), team).await
    }

    pub async fn update_team(
        self: &Arc<Self>,
        actor: &str,
        id: &str,
        change: TeamChange,
    ) -> Result<Arc<TeamRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        refuse_fixed(&next, id)?;
        let mut team = next.teams.get(id).map(|team| TeamRecord::clone(team)).ok_or(BooksError::Missing("team"))?;
        change(&mut team.spec)?;
        check_team(&team.spec, &next)?;
        self.put_team(changing, next, (actor, "team.update"), team).await
    }

    /// Blocks a team with all its keys, or opens it again.
    pub async fn block_team(
        self: &Arc<Self>,
        actor: &str,
        id: &str,
        blocked: bool,
    ) -> Result<Arc<TeamRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        refuse_fixed(&next, id)?;
        let mut team = next.teams.get(id).map(|team| TeamRecord::clone(team)).ok_or(BooksError::Missing("team"))?;
        team.blocked = blocked;
        let action = if blocked { "team.block" } else { "team.unblock" };
        self.put_team(changing, next, (actor, action), team).await
    }

    /// Puts a team in place, in its keys too.
    async fn put_team(
        self: &Arc<Self>,
        changing: tokio::sync::OwnedMutexGuard<()>,
        mut next: Snapshot,
        (actor, action): (&str, &'static str),
        team: TeamRecord,
    ) -> Result<Arc<TeamRecord>, BooksError> {
        let team = Arc::new(team);
        for entry in next.keys.values_mut().filter(|entry| entry.record.spec.team.as_ref() == Some(&team.id)) {
            let (spec, blocked) = (entry.record.spec.clone(), entry.record.blocked);
            entry.record = Arc::new(entry.record.changed(spec, Some(Arc::clone(&team)), blocked));
        }
        next.teams.insert(team.id.clone(), Arc::clone(&team));
        let act = act(actor, action, &team.id, json!({ "spec": team.spec, "blocked": team.blocked }));
        let row = Arc::clone(&team);
        self.commit(changing, next, act, move |conn| load::write_team(conn, &row)).await?;
        Ok(team)
    }

    /// Deletes teams and revokes their keys: all, or none.
    pub async fn delete_teams(self: &Arc<Self>, actor: &str, ids: Vec<String>) -> Result<(), BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        for id in &ids {
            refuse_fixed(&next, id)?;
            next.teams.remove(id).ok_or(BooksError::Missing("team"))?;
        }
        let is_theirs = |entry: &KeyEntry| entry.record.spec.team.as_ref().is_some_and(|team| ids.contains(team));
        let keys: Vec<String> =
            next.keys.iter().filter(|(_, entry)| is_theirs(entry)).map(|(id, _)| id.clone()).collect();
        keys.iter().for_each(|id| drop(next.keys.remove(id)));
        let act = act(actor, "team.delete", &ids.join(","), json!({ "revoked_keys": keys }));
        let now = unix_ms();
        let apply = move |conn: &rusqlite::Connection| {
            keys.iter().try_for_each(|id| load::revoke_key(conn, id, now))?;
            ids.iter().try_for_each(|id| load::delete_team(conn, id, now))
        };
        self.commit(changing, next, act, apply).await
    }
}

pub(super) fn act(actor: &str, action: &'static str, object: &str, detail: Value) -> Act {
    Act { actor: actor.to_owned(), action, object: object.to_owned(), detail }
}

/// A spec as the audit chain keeps it: without the operator's metadata, which may be about people.
fn shown(spec: &KeySpec) -> Value {
    let bare = KeySpec { metadata: serde_json::Map::new(), ..spec.clone() };
    json!({ "spec": bare })
}

/// What the file says is changed in the file.
fn refuse_fixed(snapshot: &Snapshot, team: &str) -> Result<(), BooksError> {
    match snapshot.fixed.teams.contains(team) {
        true => Err(BooksError::Refused(format!("the team {team:?} is said in hearth.toml and changed there"))),
        false => Ok(()),
    }
}

fn team_of(spec: &KeySpec, snapshot: &Snapshot) -> Option<Arc<TeamRecord>> {
    spec.team.as_ref().and_then(|team| snapshot.teams.get(team).cloned())
}

fn check_key(spec: &KeySpec, snapshot: &Snapshot, own: Option<&str>) -> Result<(), BooksError> {
    let refuse = |text: &str| Err(BooksError::Refused(text.to_owned()));
    if let Some(alias) = &spec.alias {
        let is_taken = |(id, entry): (&String, &KeyEntry)| {
            Some(id.as_str()) != own && entry.record.spec.alias.as_ref() == Some(alias)
        };
        if snapshot.keys.iter().any(is_taken) {
            return Err(BooksError::Refused(format!("there is a key named {alias:?} already")));
        }
    }
    if let Some(team) = spec.team.as_ref().filter(|team| !snapshot.teams.contains_key(*team)) {
        return Err(BooksError::Refused(format!("there is no team {team:?}")));
    }
    know_budget(spec.budget_id.as_ref(), snapshot)?;
    let is_long = |name: &Option<String>| {
        name.as_ref().is_some_and(|name| name.is_empty() || name.chars().count() > NAME_CHARS_MAX)
    };
    if is_long(&spec.alias) || is_long(&spec.user) {
        return refuse("a name has 1 to 256 characters");
    }
    let is_list = |list: &[String]| {
        list.len() <= LIST_MAX && list.iter().all(|item| !item.is_empty() && item.chars().count() <= NAME_CHARS_MAX)
    };
    if !is_list(&spec.models) || !is_list(&spec.tags) || spec.cidr.len() > LIST_MAX {
        return refuse("a list has at most 256 entries of 1 to 256 characters");
    }
    check_metadata(&spec.metadata)?;
    check_bounds(&spec.limits, &spec.budget)
}

fn check_team(spec: &TeamSpec, snapshot: &Snapshot) -> Result<(), BooksError> {
    know_budget(spec.budget_id.as_ref(), snapshot)?;
    let is_long = |name: &String| name.is_empty() || name.chars().count() > NAME_CHARS_MAX;
    if spec.alias.as_ref().is_some_and(is_long) || spec.models.len() > LIST_MAX || spec.models.iter().any(is_long) {
        return Err(BooksError::Refused("a name has 1 to 256 characters, a list at most 256 of them".to_owned()));
    }
    check_metadata(&spec.metadata)?;
    check_bounds(&spec.limits, &spec.budget)
}

/// A budget that is not there would be no end.
fn know_budget(id: Option<&String>, snapshot: &Snapshot) -> Result<(), BooksError> {
    match id.filter(|id| !snapshot.budgets.contains_key(*id)) {
        Some(id) => Err(BooksError::Refused(format!("there is no budget {id:?}"))),
        None => Ok(()),
    }
}

fn check_metadata(metadata: &serde_json::Map<String, Value>) -> Result<(), BooksError> {
    let n = serde_json::to_string(metadata).map_or(usize::MAX, |text| text.len());
    if n <= METADATA_BYTES_MAX {
        return Ok(());
    }
    Err(BooksError::Refused(format!("metadata has {n} bytes as JSON, more than {METADATA_BYTES_MAX}")))
}

pub(super) fn check_bounds(limits: &LimitSpec, budget: &BudgetSpec) -> Result<(), BooksError> {
    let is_zero = [limits.rpm, limits.tpm].contains(&Some(0)) || [limits.parallel, limits.output].contains(&Some(0));
    if is_zero {
        return Err(BooksError::Refused("a limit of 0 lets nothing through: block the key instead".to_owned()));
    }
    let is_money = |nusd: &Option<i64>| nusd.is_none_or(|nusd| (0..=NUSD_MAX).contains(&nusd));
    if !is_money(&budget.max_nusd) || !is_money(&budget.soft_nusd) || budget.max_tokens.is_some_and(|n| n < 0) {
        return Err(BooksError::Refused("a budget is 0 or more, and at most a billion dollars".to_owned()));
    }
    match budget.period.as_ref().and_then(|period| period.tz.as_deref()) {
        Some(tz) if !is_zone(tz) => Err(BooksError::Refused("there is no such time zone".to_owned())),
        _ => Ok(()),
    }
}
