//! The one point that every request passes, whatever its endpoint and dialect: limits before any work, a reservation
//! before any token, the true count at the end.
//!
//! # Design
//! A request's scopes are its key, the key's user and team, whom its client acts for, its address and the whole server, as
//! far as each has limits or a budget; see [`super::limits`]. What a budget spent before this process is asked of the books
//! the first time that it is met, so starting is quick and nothing is summed for keys that never come.

use super::keys::{BudgetRecord, Snapshot};
use super::limits::{
    LimitRefusal, LimitSets, Limiter, Limits, Permit, Reservation, Scope, ScopeKind, Spend, Standing, WallClock,
};
use super::spec::BudgetSpec;
use super::store;
use super::work::{self, Work};
use super::{Caller, Error, Gateway, Target};
use crate::chat::Class;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

/// Most tokens of an answer whose client names no number, where a limit or a budget counts.
const OUTPUT_TOKENS: u32 = 4096;

/// Teams that the metrics name, so that their series are bounded.
const TEAMS_SHOWN_MAX: usize = 200;

/// Where everybody stands.
pub(super) fn limiter() -> Limiter {
    Limiter::new(WallClock::default())
}

/// Names of scopes that have none by themselves.
struct Names {
    key: String,
    ip: String,
    /// Empty: nobody in particular.
    end_user: String,
}

impl Names {
    fn of(caller: &Caller) -> Self {
        Self {
            // A static key, by a number that tells nothing about it.
            key: format!("static-{:016x}", caller.principal.partition()),
            ip: caller.client_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            // Two keys may use the same name for different people.
            end_user: caller
                .trace
                .end_user()
                .map_or_else(String::new, |name| format!("{:016x}/{name}", caller.principal.partition())),
        }
    }
}

/// Budgets that are shared, by their ids.
type Budgets<'a> = Option<&'a HashMap<String, Arc<BudgetRecord>>>;

/// What limits this caller. Scopes without a limit are left out.
fn scopes<'a>(sets: &LimitSets, budgets: Budgets<'a>, caller: &'a Caller, names: &'a Names) -> Vec<Scope<'a>> {
    let mut scopes = Vec::new();
    let mut add = |kind, id: &'a str, limits: Limits, budget: Option<&'a BudgetSpec>, created_ms| {
        let budget = budget.filter(|budget| budget.max_nusd.is_some() || budget.max_tokens.is_some());
        if !limits.is_none() || budget.is_some() {
            scopes.push(Scope { kind, id, limits, budget, created_ms });
        }
    };
    if let Some(key) = caller.principal.key() {
        let limits = sets.settle(&key.spec.limits, Some(LimitSets::DEFAULT));
        add(ScopeKind::Key, &key.id, limits, Some(&key.spec.budget), key.created);
        if let (Some(user), Some(limits)) = (&key.spec.user, sets.of_kind(ScopeKind::User)) {
            add(ScopeKind::User, user, limits, None, 0);
        }
        if let Some(team) = &key.team {
            let limits = sets.settle(&team.spec.limits, None);
            add(ScopeKind::Team, &team.id, limits, Some(&team.spec.budget), team.created);
        }
        let shared = caller.principal.shared_budgets().filter_map(|id| budgets?.get(id));
        for BudgetRecord { id, spec, created } in shared.map(Arc::as_ref) {
            add(ScopeKind::Budget, id, sets.settle(&spec.limits, None), Some(&spec.budget), *created);
        }
    } else if caller.principal.partition() != 0 {
        add(ScopeKind::Key, &names.key, sets.settle(&Default::default(), Some(LimitSets::DEFAULT)), None, 0);
    }
    if let (false, Some(limits)) = (names.end_user.is_empty(), sets.of_kind(ScopeKind::EndUser)) {
        add(ScopeKind::EndUser, &names.end_user, limits, None, 0);
    }
    if let (Some(_), Some(limits)) = (caller.client_ip, sets.of_kind(ScopeKind::Ip)) {
        add(ScopeKind::Ip, &names.ip, limits, None, 0);
    }
    if let Some(limits) = sets.of_kind(ScopeKind::Global) {
        add(ScopeKind::Global, "", limits, None, 0);
    }
    scopes
}

impl Gateway {
    /// The model that `name` means, and the caller's permit to use it: limits first, since loading a model is work. A
    /// permit without a settled reservation costs nothing. `end_user`: whom the client says that it acts for.
    pub(super) async fn let_in(
        &self,
        caller: &Caller,
        name: Option<&str>,
        end_user: Option<&str>,
    ) -> Result<(Target, Permit), Error> {
        let idx = self.find(&caller.principal, name)?;
        let permit = self.admit(caller, Some(idx), &self.models.shared.entries[idx].config().id, end_user).await?;
        Ok((self.target(caller, name).await?, permit))
    }

    /// Takes the caller's place and request, before anything is done for it. `home`: the model here that is asked first;
    /// `name`: what to call the target in a refusal.
    ///
    /// Errors: `Limited` · `LedgerUnavailable` when what a budget spent before can't be read.
    pub(super) async fn admit(
        &self,
        caller: &Caller,
        home: Option<usize>,
        name: &str,
        end_user: Option<&str>,
    ) -> Result<Permit, Error> {
        if let Some(end_user) = end_user {
            caller.trace.acts_for(end_user);
        }
        if let (Some(entry), Some(end_user)) = (&caller.entry, end_user) {
            entry.of_end_user(end_user);
        }
        let (config, names) = (self.config(), Names::of(caller));
        let snapshot = self.granted();
        let scopes = scopes(&config.limits, snapshot.as_deref().map(|all| &all.budgets), caller, &names);
        for (scope, window) in self.limiter.lacks_history(&scopes) {
            let spent = self.spent(scope.kind, scope.id, (window.start_ms, window.end_ms)).await?;
            self.limiter.tell_history(scope.kind, scope.id, window, spent);
        }
        let engine = home.and_then(|idx| self.models.engine(idx));
        let n_slots_free = engine.map_or(u32::MAX, |engine| engine.load().n_slots_free);
        self.limiter.admit(&scopes, n_slots_free).map_err(|refusal| self.refused(refusal, name))
    }

    /// Takes the most that a try at a target can cost.
    pub(super) fn reserve(&self, permit: &Permit, target: &str, most: Spend) -> Result<Reservation, Error> {
        permit.reserve(most).map_err(|refusal| self.refused(refusal, target))
    }

    fn refused(&self, refusal: LimitRefusal, model: &str) -> Error {
        self.metrics.limited(refusal.scope.name(), refusal.kind.name());
        Error::Limited { refusal, model: model.to_owned() }
    }

    /// What was spent before this process, as the books have it; nothing without books.
    async fn spent(&self, kind: ScopeKind, id: &str, window: (i64, i64)) -> Result<Spend, Error> {
        let Some(books) = &self.books else { return Ok(Spend::default()) };
        let (scope, id) = (kind.name(), id.to_owned());
        let read = books.store().read(move |conn| store::spent(conn, scope, &id, window)).await;
        let (nusd, tokens) = read.map_err(|error| {
            tracing::error!(%error, "what a budget has spent can't be read");
            Error::LedgerUnavailable
        })?;
        Ok(Spend { tokens, nusd: nusd.max(0) })
    }

    /// The most tokens of an answer: what was said, within the cap of the caller's scopes; where nobody says, and tokens or
    /// money are counted, there is an end all the same.
    pub(super) fn length(permit: &Permit, said: Option<u32>) -> Option<u32> {
        match (said, permit.output_cap()) {
            (Some(said), Some(cap)) => Some(said.min(cap)),
            (said, cap) => said.or(cap).or_else(|| permit.counts().then_some(OUTPUT_TOKENS)),
        }
    }

    /// The queue that the caller's requests wait in, and whose they are there.
    pub(super) fn share_of(&self, caller: &Caller) -> (Class, u64) {
        let Some(key) = caller.principal.key() else { return (Class::default(), caller.principal.partition()) };
        let config = self.config();
        let own = config.limits.settle(&key.spec.limits, Some(LimitSets::DEFAULT)).class;
        let of_team = || key.team.as_ref().and_then(|team| config.limits.settle(&team.spec.limits, None).class);
        let owner = BuildHasherDefault::<DefaultHasher>::default().hash_one(&key.id);
        (own.or_else(of_team).unwrap_or_default(), owner)
    }

    /// What the caller has left, also while its requests run; `None` where nothing limits it.
    pub fn standing(&self, caller: &Caller) -> Option<Standing> {
        let (config, names) = (self.config(), Names::of(caller));
        let snapshot = self.granted();
        let scopes = scopes(&config.limits, snapshot.as_deref().map(|all| &all.budgets), caller, &names);
        let standing = (!scopes.is_empty()).then(|| self.limiter.standing(&scopes))?;
        (standing.requests.is_some() || standing.tokens.is_some()).then_some(standing)
    }

    /// Keys, teams and budgets of this moment.
    fn granted(&self) -> Option<Arc<Snapshot>> {
        Some(self.books.as_ref()?.keyring().snapshot())
    }

    /// Whether anything limits the caller, or whom it may turn out to act for.
    pub fn may_limit(&self, caller: &Caller) -> bool {
        self.config().limits.of_kind(ScopeKind::EndUser).is_some() || self.standing(caller).is_some()
    }

    /// (team, nano-USD) that teams with budgets have left, of those that asked for something since the start.
    pub(super) fn budgets_left(&self) -> Vec<(String, i64)> {
        let Some(books) = &self.books else { return Vec::new() };
        let snapshot = books.keyring().snapshot();
        let left = snapshot.teams.values().filter_map(|team| {
            let max = team.spec.budget.max_nusd?;
            let (spent, reserved, _) = self.limiter.budget(ScopeKind::Team, &team.id)?;
            Some((team.id.clone(), max.saturating_sub(spent.nusd).saturating_sub(reserved.nusd)))
        });
        left.take(TEAMS_SHOWN_MAX).collect()
    }

    /// Whether there is a set of limits of this name.
    pub fn has_limits(&self, name: &str) -> bool {
        self.config().limits.has(name)
    }

    /// Forgets what a key or team spent in its budget's window of now.
    pub fn forgive(&self, kind: ScopeKind, id: &str) {
        self.limiter.forgive(kind, id);
    }
}

/// Cuts an answer whose client named no length to what limits and budgets leave; whether it was cut. What a client asks for
/// is never cut to what is left: it is refused instead.
pub(super) async fn cut_to_what_is_left(
    caller: &Caller,
    work: &mut Work,
    target: &Target,
    permit: &Permit,
) -> Result<bool, Error> {
    let Some(left) = permit.tokens_left().filter(|_| !work.is_length_said) else { return Ok(false) };
    let n_choices = work.n_choices() as u64;
    if left >= u64::from(target.description.n_ctx).saturating_mul(n_choices) {
        return Ok(false);
    }
    let mut n_prompts = 0;
    for prompt in &work.prompts {
        n_prompts += work::count(caller, prompt.clone(), target).await? as u64;
    }
    let each = left.saturating_sub(n_prompts) / n_choices.max(1);
    let each = u32::try_from(each).unwrap_or(u32::MAX).max(1);
    let is_cut = work.output.max_tokens.is_none_or(|most| most > each);
    if is_cut {
        work.output.max_tokens = Some(each);
    }
    Ok(is_cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::spec::LimitSpec;
    use crate::gateway::{KeyRecord, KeySpec, Principal, TeamRecord, TeamSpec};

    fn sets(sets: &[(&str, LimitSpec)]) -> LimitSets {
        LimitSets::new(sets.iter().map(|(name, set)| ((*name).to_owned(), set.clone())).collect())
    }

    fn rpm(n: u64) -> LimitSpec {
        LimitSpec { rpm: Some(n), ..Default::default() }
    }

    fn kinds(sets: &LimitSets, caller: &Caller) -> Vec<(ScopeKind, String, Option<u64>)> {
        let names = Names::of(caller);
        let scopes = scopes(sets, None, caller, &names);
        scopes.iter().map(|scope| (scope.kind, scope.id.to_owned(), scope.limits.requests_per_minute)).collect()
    }

    #[test]
    fn a_request_is_limited_by_all_that_it_belongs_to() {
        let all = sets(&[("default", rpm(1)), ("pro", rpm(2)), ("user", rpm(3)), ("ip", rpm(4)), ("global", rpm(5))]);
        let team = TeamSpec { limits: rpm(6), ..Default::default() };
        let team = Arc::new(TeamRecord { id: "t".into(), spec: team, created: 0, blocked: false });
        let limits = LimitSpec { name: Some("pro".into()), ..Default::default() };
        let spec = KeySpec { user: Some("u".into()), limits, ..Default::default() };
        let key = Arc::new(KeyRecord::new("k".into(), spec, Some(team), 0, false));
        let caller = Caller { principal: Principal::of(key), client_ip: "10.0.0.1".parse().ok(), ..Default::default() };
        let expected = [
            (ScopeKind::Key, "k", Some(2)),
            (ScopeKind::User, "u", Some(3)),
            (ScopeKind::Team, "t", Some(6)),
            (ScopeKind::Ip, "10.0.0.1", Some(4)),
            (ScopeKind::Global, "", Some(5)),
        ];
        assert_eq!(kinds(&all, &caller), expected.map(|(kind, id, rpm)| (kind, id.to_owned(), rpm)));
        assert_eq!(kinds(&sets(&[]), &caller).len(), 1, "of the named sets only the team's own values are left");
        assert!(kinds(&sets(&[("default", rpm(1))]), &Caller::default()).is_empty(), "an open server has no keys");
    }
}
