//! Keys and teams in the admin plane's JSON: LiteLLM's names.
//!
//! # Design
//! It stands here and not in `dialect`, because no other plane speaks it. The same fields make a key and change one: a field
//! that is missing says nothing, `null` takes back what was said.

use super::super::error::ApiError;
use super::fields::{Fields, wrong};
use super::refused;
use crate::gateway::store::spent;
use crate::gateway::{
    Books, BudgetRecord, BudgetSpec, KeyRecord, KeySpec, LimitSpec, NUSD, Period, SharedSpec, TeamRecord, TeamSpec,
    masked, unix_ms,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What a body says about a key; applied to a spec that is there or to an empty one.
pub(super) type KeyEdit = Box<dyn FnOnce(&mut KeySpec) + Send>;
pub(super) type SharedEdit = Box<dyn FnOnce(&mut SharedSpec) + Send>;
pub(super) type TeamEdit = Box<dyn FnOnce(&mut TeamSpec) + Send>;
type Edit<T> = Vec<Box<dyn FnOnce(&mut T) + Send>>;

/// Adds an edit of one field, if it was said.
macro_rules! edit {
    ($edits:ident, $said:expr, |$spec:ident, $value:ident| $set:expr) => {
        if let Some($value) = $said {
            $edits.push(Box::new(move |$spec| $set));
        }
    };
}

pub(super) fn key_edit(fields: &mut Fields) -> Result<KeyEdit, ApiError> {
    let mut edits: Edit<KeySpec> = Vec::new();
    edit!(edits, fields.take("key_alias")?, |spec, alias| spec.alias = alias);
    edit!(edits, fields.take("models")?, |spec, models| spec.models = all_or(models));
    edit!(edits, fields.take("team_id")?, |spec, team| spec.team = team);
    edit!(edits, fields.take("budget_id")?, |spec, id| spec.budget_id = id);
    edit!(edits, fields.take("user_id")?, |spec, user| spec.user = user);
    edit!(edits, fields.take::<Vec<String>>("tags")?, |spec, tags| spec.tags = tags.unwrap_or_default());
    edit!(edits, fields.take::<Vec<_>>("roles")?, |spec, roles| spec.roles = roles.unwrap_or_default());
    let cidrs = fields.take::<Vec<String>>("allowed_cidrs")?;
    if let Some(cidrs) = cidrs {
        let read = |text: &String| {
            let net = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
            net.map_err(|_| wrong("allowed_cidrs", &format!("{text:?} is no address and no network")))
        };
        let nets = cidrs.unwrap_or_default().iter().map(read).collect::<Result<Vec<_>, _>>()?;
        edits.push(Box::new(move |spec| spec.cidr = nets));
    }
    let expires = fields.text("duration", |text| period(text).map(|period| after(unix_ms(), &period)))?;
    edit!(edits, expires, |spec, expires| spec.expires = expires);
    edit!(edits, fields.take("egress")?, |spec, egress| spec.egress = egress.unwrap_or_default());
    edit!(edits, fields.take("audit")?, |spec, audit| spec.audit = audit.unwrap_or_default());
    edit!(edits, fields.take::<Vec<_>>("guardrails")?, |spec, names| spec.guardrails = names.unwrap_or_default());
    edit!(edits, fields.take::<Map<_, _>>("metadata")?, |spec, metadata| spec.metadata = metadata.unwrap_or_default());
    let (limits, budget) = (limit_edits(fields)?, budget_edits(fields)?);
    Ok(Box::new(move |spec| {
        edits.into_iter().for_each(|edit| edit(spec));
        limits.into_iter().for_each(|edit| edit(&mut spec.limits));
        budget.into_iter().for_each(|edit| edit(&mut spec.budget));
    }))
}

pub(super) fn team_edit(fields: &mut Fields) -> Result<TeamEdit, ApiError> {
    let mut edits: Edit<TeamSpec> = Vec::new();
    edit!(edits, fields.take("team_alias")?, |spec, alias| spec.alias = alias);
    edit!(edits, fields.take("budget_id")?, |spec, id| spec.budget_id = id);
    edit!(edits, fields.take("models")?, |spec, models| spec.models = all_or(models));
    edit!(edits, fields.take("egress")?, |spec, egress| spec.egress = egress.unwrap_or_default());
    edit!(edits, fields.take("audit")?, |spec, audit| spec.audit = audit.unwrap_or_default());
    edit!(edits, fields.take::<Vec<_>>("guardrails")?, |spec, names| spec.guardrails = names.unwrap_or_default());
    edit!(edits, fields.take("shares")?, |spec, shares| spec.shares = shares.unwrap_or_default());
    edit!(edits, fields.take::<Map<_, _>>("metadata")?, |spec, metadata| spec.metadata = metadata.unwrap_or_default());
    let (limits, budget) = (limit_edits(fields)?, budget_edits(fields)?);
    Ok(Box::new(move |spec| {
        edits.into_iter().for_each(|edit| edit(spec));
        limits.into_iter().for_each(|edit| edit(&mut spec.limits));
        budget.into_iter().for_each(|edit| edit(&mut spec.budget));
    }))
}

/// What a body says about a shared budget.
pub(super) fn shared_edit(fields: &mut Fields) -> Result<SharedEdit, ApiError> {
    let (limits, budget) = (limit_edits(fields)?, budget_edits(fields)?);
    Ok(Box::new(move |spec| {
        limits.into_iter().for_each(|edit| edit(&mut spec.limits));
        budget.into_iter().for_each(|edit| edit(&mut spec.budget));
    }))
}

/// The spec that these fields of `/key/generate` come to. Errors: what is wrong with them, for people.
pub fn granted_key(fields: Map<String, Value>) -> Result<KeySpec, String> {
    let mut fields = Fields::of(fields);
    let edit = key_edit(&mut fields).and_then(|edit| fields.finish().map(|()| edit));
    let mut spec = KeySpec::default();
    edit.map_err(|error| error.problem.message)?(&mut spec);
    Ok(spec)
}

/// The same for `/team/new`.
pub fn granted_team(fields: Map<String, Value>) -> Result<TeamSpec, String> {
    let mut fields = Fields::of(fields);
    let edit = team_edit(&mut fields).and_then(|edit| fields.finish().map(|()| edit));
    let mut spec = TeamSpec::default();
    edit.map_err(|error| error.problem.message)?(&mut spec);
    Ok(spec)
}

fn limit_edits(fields: &mut Fields) -> Result<Edit<LimitSpec>, ApiError> {
    let mut edits: Edit<LimitSpec> = Vec::new();
    edit!(edits, fields.take("limits")?, |spec, name| spec.name = name);
    edit!(edits, fields.take("rpm_limit")?, |spec, n| spec.rpm = n);
    edit!(edits, fields.take("tpm_limit")?, |spec, n| spec.tpm = n);
    edit!(edits, fields.take("max_parallel_requests")?, |spec, n| spec.parallel = n);
    edit!(edits, fields.take("max_queued_requests")?, |spec, n| spec.queue = n);
    edit!(edits, fields.take("max_output_tokens")?, |spec, n| spec.output = n);
    Ok(edits)
}

fn budget_edits(fields: &mut Fields) -> Result<Edit<BudgetSpec>, ApiError> {
    let mut edits: Edit<BudgetSpec> = Vec::new();
    edit!(edits, fields.money("max_budget")?, |spec, nusd| spec.max_nusd = nusd);
    edit!(edits, fields.money("soft_budget")?, |spec, nusd| spec.soft_nusd = nusd);
    edit!(edits, fields.take("max_tokens_budget")?, |spec, n| spec.max_tokens = n);
    edit!(edits, fields.text("budget_duration", period)?, |spec, period| spec.period = period);
    let calendar = fields.optional::<bool>("budget_calendar")?;
    edit!(edits, calendar, |spec, calendar| spec.period.iter_mut().for_each(|period| period.calendar = calendar));
    edit!(edits, fields.take("budget_timezone")?, |spec, tz| if let Some(period) = &mut spec.period {
        period.tz = tz;
    });
    Ok(edits)
}

/// LiteLLM's words for no restriction.
fn all_or(models: Option<Vec<String>>) -> Vec<String> {
    let models = models.unwrap_or_default();
    let is_all = |name: &String| ["all-proxy-models", "all-team-models"].contains(&name.as_str());
    if models.iter().any(is_all) { Vec::new() } else { models }
}

pub(super) fn period(text: &str) -> Result<Period, String> {
    text.parse().map_err(str::to_owned)
}

/// A period later; months of 31 days at most, and of a key's life nobody counts them.
pub(super) fn after(now: i64, period: &Period) -> i64 {
    now.saturating_add(period.approximate_ms())
}

/// Dollars as JSON has them.
pub(super) fn dollars(nusd: i64) -> Value {
    json!(nusd as f64 / NUSD as f64)
}

pub(super) fn time(ms: i64) -> Value {
    Timestamp::from_millisecond(ms).map_or(Value::Null, |time| Value::from(time.to_string()))
}

/// What the holder of a key may know of it.
pub(in crate::http) async fn own_key(books: &Books, key: &KeyRecord) -> Result<Value, ApiError> {
    let id = key.id.clone();
    let read = books.store().read(move |conn| spent(conn, "key", &id, (0, i64::MAX))).await;
    let mut object = key_object(key, Some(read.map_err(|error| refused(error.into()))?));
    // The operator's notes and rules are not the holder's.
    object.shift_remove("metadata");
    object.shift_remove("guardrails");
    Ok(Value::Object(object))
}

/// A key as it may be shown: never its secret, never its hash.
pub(super) fn key_object(key: &KeyRecord, spent: Option<(i64, u64)>) -> Map<String, Value> {
    let spec = &key.spec;
    let mut object = object(json!({
        "key_id": key.id,
        "key_name": masked(&key.id),
        "key_alias": spec.alias,
        "models": spec.models,
        "team_id": spec.team,
        "budget_id": spec.budget_id,
        "user_id": spec.user,
        "tags": spec.tags,
        "roles": spec.roles,
        "allowed_cidrs": spec.cidr,
        "created_at": time(key.created),
        "expires": spec.expires.map(time),
        "blocked": key.blocked,
        "egress": spec.egress,
        "audit": spec.audit,
        "guardrails": spec.guardrails,
        "metadata": spec.metadata,
    }));
    object.extend(grants(&spec.limits, &spec.budget));
    object.extend(spend(spent));
    object
}

pub(super) fn team_object(team: &TeamRecord, spent: Option<(i64, u64)>) -> Map<String, Value> {
    let spec = &team.spec;
    let mut object = object(json!({
        "team_id": team.id,
        "team_alias": spec.alias,
        "budget_id": spec.budget_id,
        "models": spec.models,
        "created_at": time(team.created),
        "blocked": team.blocked,
        "egress": spec.egress,
        "audit": spec.audit,
        "guardrails": spec.guardrails,
        "shares": spec.shares,
        "metadata": spec.metadata,
    }));
    object.extend(grants(&spec.limits, &spec.budget));
    object.extend(spend(spent));
    object
}

pub(super) fn budget_object(budget: &BudgetRecord, spent: Option<(i64, u64)>) -> Map<String, Value> {
    let mut object = object(json!({ "budget_id": budget.id, "created_at": time(budget.created) }));
    object.extend(grants(&budget.spec.limits, &budget.spec.budget));
    object.extend(spend(spent));
    object
}

fn grants(limits: &LimitSpec, budget: &BudgetSpec) -> Map<String, Value> {
    let period = budget.period.as_ref();
    object(json!({
        "limits": limits.name,
        "rpm_limit": limits.rpm,
        "tpm_limit": limits.tpm,
        "max_parallel_requests": limits.parallel,
        "max_queued_requests": limits.queue,
        "max_output_tokens": limits.output,
        "max_budget": budget.max_nusd.map(dollars),
        "soft_budget": budget.soft_nusd.map(dollars),
        "max_tokens_budget": budget.max_tokens,
        "budget_duration": period.map(Period::to_string),
        "budget_calendar": period.map(|period| period.calendar),
        "budget_timezone": period.and_then(|period| period.tz.clone()),
    }))
}

fn spend(spent: Option<(i64, u64)>) -> Map<String, Value> {
    match spent {
        Some((nusd, n_tokens)) => object(json!({ "spend": dollars(nusd), "spent_tokens": n_tokens })),
        None => Map::new(),
    }
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
