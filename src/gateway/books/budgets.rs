//! Budgets that keys and teams share: what administrators do to them.

use super::acts::{act, check_bounds};
use super::{Books, BooksError, load};
use crate::gateway::keys::{BudgetRecord, KEYS_MAX, Snapshot};
use crate::gateway::spec::SharedSpec;
use crate::gateway::unix_ms;
use serde_json::json;
use std::sync::Arc;

pub type BudgetChange = Box<dyn FnOnce(&mut SharedSpec) -> Result<(), BooksError> + Send>;

impl Books {
    /// Errors: `Refused` for an id that is there or is none, and for a spec out of bounds.
    pub async fn new_budget(
        self: &Arc<Self>,
        actor: &str,
        id: String,
        spec: SharedSpec,
    ) -> Result<Arc<BudgetRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        if next.budgets.contains_key(&id) {
            return Err(BooksError::Refused(format!("there is a budget {id:?} already")));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_name) {
            return Err(BooksError::Refused("a budget's id has 1 to 64 letters, digits, -, _ and .".to_owned()));
        }
        if next.budgets.len() >= KEYS_MAX {
            return Err(BooksError::Refused(format!("there are {KEYS_MAX} budgets already")));
        }
        let budget = BudgetRecord { id, spec, created: unix_ms() };
        self.put_budget(changing, next, (actor, "budget.new"), budget).await
    }

    pub async fn update_budget(
        self: &Arc<Self>,
        actor: &str,
        id: &str,
        change: BudgetChange,
    ) -> Result<Arc<BudgetRecord>, BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let next = Snapshot::clone(&self.keyring.snapshot());
        let known = next.budgets.get(id).ok_or(BooksError::Missing("budget"))?;
        let mut budget = BudgetRecord::clone(known);
        change(&mut budget.spec)?;
        self.put_budget(changing, next, (actor, "budget.update"), budget).await
    }

    async fn put_budget(
        self: &Arc<Self>,
        changing: tokio::sync::OwnedMutexGuard<()>,
        mut next: Snapshot,
        (actor, action): (&str, &'static str),
        budget: BudgetRecord,
    ) -> Result<Arc<BudgetRecord>, BooksError> {
        check_bounds(&budget.spec.limits, &budget.spec.budget)?;
        let budget = Arc::new(budget);
        next.budgets.insert(budget.id.clone(), Arc::clone(&budget));
        let act = act(actor, action, &budget.id, json!({ "spec": budget.spec }));
        let row = Arc::clone(&budget);
        self.commit(changing, next, act, move |conn| load::write_budget(conn, &row)).await?;
        Ok(budget)
    }

    /// Errors: `Refused` while a key or team names it, since without it they would have no end.
    pub async fn delete_budget(self: &Arc<Self>, actor: &str, id: &str) -> Result<(), BooksError> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let mut next = Snapshot::clone(&self.keyring.snapshot());
        next.budgets.remove(id).ok_or(BooksError::Missing("budget"))?;
        let (n_keys, n_teams) = named(&next, id);
        if n_keys + n_teams > 0 {
            let message = format!("the budget {id:?} is named by {n_keys} keys and {n_teams} teams");
            return Err(BooksError::Refused(message));
        }
        let (act, owned, now) = (act(actor, "budget.delete", id, json!({})), id.to_owned(), unix_ms());
        self.commit(changing, next, act, move |conn| load::delete_budget(conn, &owned, now)).await
    }
}

/// Keys and teams that name a budget.
fn named(snapshot: &Snapshot, id: &str) -> (usize, usize) {
    let own = snapshot.keys.values().map(|entry| &entry.record).chain(snapshot.fixed.keys.values());
    let n_keys = own.filter(|key| key.spec.budget_id.as_deref() == Some(id)).count();
    let n_teams = snapshot.teams.values().filter(|team| team.spec.budget_id.as_deref() == Some(id)).count();
    (n_keys, n_teams)
}
