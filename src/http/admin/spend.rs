//! `/spend/…` and `/global/spend/report`: what was spent, as JSON or, with `Accept: text/csv`, as CSV.

use super::fields::{Filter, from_one, wrong};
use super::wire::{dollars, time};
use super::{Identity, Plane, missing, refused, typed};
use crate::gateway::store::{
    self, Attempt, DayRow, GroupBy, LogFilter, Part, RequestRow, SpendRow, StoreError, TargetRow,
};
use crate::gateway::{Credential, usd};
use crate::http::error::ApiError;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, header};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// A day (`2026-11-25`, UTC) or an instant (RFC 3339). The end's day is included.
    start_date: Option<String>,
    end_date: Option<String>,
    /// A key's id, or a whole key.
    api_key: Option<String>,
    team_id: Option<String>,
    user_id: Option<String>,
    model: Option<String>,
    request_id: Option<String>,
    /// Sums by day instead of requests; the default where dates are given, as in LiteLLM.
    summarize: Option<bool>,
    group_by: Option<String>,
    page: Option<u32>,
    page_size: Option<u32>,
}

impl Asked {
    fn filter(&self, identity: &Identity) -> Result<LogFilter, ApiError> {
        let team_id = match (identity.only_team(), &self.team_id) {
            (Some(own), Some(asked)) if own != asked => return Err(missing("team")),
            (Some(own), _) => Some(own.to_owned()),
            (None, asked) => asked.clone(),
        };
        let key = |text: &String| Credential::parse(text).map_or_else(|| text.clone(), |key| key.id().to_owned());
        Ok(LogFilter {
            since: self.start_date.as_deref().map(|text| instant("start_date", text, 0)).transpose()?,
            until: self.end_date.as_deref().map(|text| instant("end_date", text, 1)).transpose()?,
            key_id: self.api_key.as_ref().map(key),
            team_id,
            user_id: self.user_id.clone(),
            model: self.model.clone(),
            request_id: self.request_id.clone(),
        })
    }
}

/// Unix milliseconds of an instant, or of the start of the day `more_days` after the one that is named.
fn instant(name: &str, text: &str, more_days: i64) -> Result<i64, ApiError> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant.as_millisecond());
    }
    let start = |date: Date| {
        let date = date.checked_add(Span::new().days(more_days)).ok()?;
        Some(date.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp().as_millisecond())
    };
    let day = text.parse::<Date>().ok().and_then(start);
    day.ok_or_else(|| wrong(name, "it is a day such as 2026-11-25 or an instant such as 2026-11-25T10:00:00Z"))
}

/// `2026-11-25`.
fn day_text(day: i64) -> String {
    let at = day.saturating_mul(86_400).min(i64::from(i32::MAX) * 86_400);
    Timestamp::from_second(at)
        .map_or_else(|_| day.to_string(), |at| at.to_zoned_datetime(TimeZone::UTC).date().to_string())
}

async fn read<T: Send + 'static>(
    plane: &Plane,
    query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    plane.books.store().read(query).await.map_err(|error| refused(error.into()))
}

pub(super) async fn logs(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    Filter(asked): Filter<Asked>,
) -> Result<Response, ApiError> {
    let filter = asked.filter(&identity)?;
    if asked.summarize.unwrap_or(asked.start_date.is_some() && asked.request_id.is_none()) {
        let days = read(&plane, move |conn| store::days(conn, &filter)).await?;
        return Ok(table(&headers, summary(&days), |row| row));
    }
    let size = from_one("page_size", asked.page_size, 100, store::LINES_MAX)?;
    let page = (size, (from_one("page", asked.page, 1, u32::MAX)? - 1).saturating_mul(size));
    let rows = read(&plane, move |conn| store::logs(conn, &filter, page)).await?;
    Ok(table(&headers, rows.iter().map(request_object).collect(), |row| row))
}

/// One request with LiteLLM's names, and those it has no name for.
fn request_object(row: &RequestRow) -> Map<String, Value> {
    super::wire::object(json!({
        "request_id": row.id,
        "call_type": row.endpoint,
        "api_key": row.key_id,
        "team_id": row.team_id,
        "user": row.user_id,
        "end_user": row.end_user,
        "model": row.model,
        "model_requested": row.model_req,
        "served_by": row.served_by,
        "status_code": row.status,
        "finish": row.finish,
        "error_code": row.error_code,
        "stream": row.stream,
        "spend": dollars(row.cost_nusd),
        "total_tokens": row.in_tok + row.out_tok,
        "prompt_tokens": row.in_tok,
        "cached_tokens": row.cached_tok,
        "completion_tokens": row.out_tok,
        "reasoning_tokens": row.reason_tok,
        "usage_source": row.usage_source,
        "startTime": time(row.t0),
        "completionStartTime": row.t_first.map(time),
        "endTime": time(row.t_end),
        "queue_ms": row.queue_ms,
        "trace_id": row.trace_id,
        "cache_hit": row.cache,
        "request_tags": row.tags,
        "requester_ip_address": row.ip,
        "attempts": row.attempts.iter().map(attempt_object).collect::<Vec<_>>(),
    }))
}

/// One try at a target; a request that a model here answered at once has none but itself.
fn attempt_object(attempt: &Attempt) -> Value {
    json!({
        "target": attempt.target,
        "class": attempt.class,
        "status_code": attempt.status,
        "ms": attempt.ms,
        "prompt_tokens": attempt.in_tok,
        "completion_tokens": attempt.out_tok,
        "spend": dollars(attempt.cost_nusd),
    })
}

/// LiteLLM's summary: a line for each day, with the spend of each model, user and key in it; and, where there are too many of
/// them, how many are left out.
fn summary(days: &[DayRow]) -> Vec<Map<String, Value>> {
    let named = |part: &Part| part.names.iter().map(|(name, n)| (name.clone(), dollars(*n))).collect::<Map<_, _>>();
    let line = |of: &DayRow| {
        let mut line = super::wire::object(json!({
            "startTime": day_text(of.day),
            "spend": dollars(of.sum.cost_nusd),
            "requests": of.sum.n,
            "total_tokens": of.sum.in_tok + of.sum.out_tok,
            "models": named(&of.models),
            "users": named(&of.users),
            "api_keys": named(&of.keys),
        }));
        let parts = [("models", &of.models), ("users", &of.users), ("api_keys", &of.keys)];
        let left_out = parts.iter().filter(|(_, part)| part.n_left_out > 0);
        let left_out: Map<_, _> = left_out.map(|(name, part)| ((*name).to_owned(), part.n_left_out.into())).collect();
        if !left_out.is_empty() {
            line.insert("left_out".to_owned(), left_out.into());
        }
        line
    };
    days.iter().map(line).collect()
}

pub(super) async fn keys(
    plane: State<Plane>,
    identity: Extension<Identity>,
    headers: HeaderMap,
    asked: Filter<Asked>,
) -> Result<Response, ApiError> {
    sums(plane, identity, headers, asked, ("api_key", GroupBy::Key)).await
}

pub(super) async fn teams(
    plane: State<Plane>,
    identity: Extension<Identity>,
    headers: HeaderMap,
    asked: Filter<Asked>,
) -> Result<Response, ApiError> {
    sums(plane, identity, headers, asked, ("team_id", GroupBy::Team)).await
}

pub(super) async fn tags(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    Filter(asked): Filter<Asked>,
) -> Result<Response, ApiError> {
    let filter = asked.filter(&identity)?;
    let tags = read(&plane, move |conn| store::tags(conn, &filter)).await?;
    let line = |tag: &store::TagRow| {
        super::wire::object(json!({
            "individual_request_tag": tag.tag,
            "log_count": tag.n,
            "prompt_tokens": tag.in_tok,
            "completion_tokens": tag.out_tok,
            "total_spend": dollars(tag.cost_nusd),
        }))
    };
    Ok(table(&headers, tags.iter().map(line).collect(), |row| row))
}

pub(super) async fn report(
    plane: State<Plane>,
    identity: Extension<Identity>,
    headers: HeaderMap,
    asked: Filter<Asked>,
) -> Result<Response, ApiError> {
    let by = match asked.0.group_by.as_deref() {
        None | Some("team") => ("team_id", GroupBy::Team),
        Some("api_key") => ("api_key", GroupBy::Key),
        Some("user" | "internal_user_id") => ("user_id", GroupBy::User),
        Some("model") => ("model", GroupBy::Model),
        Some("day") => ("day", GroupBy::Day),
        Some("end_user" | "customer") => ("end_user", GroupBy::EndUser),
        Some("target") => return tries(plane, identity, headers, asked).await,
        Some(_) => {
            let words = "it is one of team, api_key, user, end_user, model, target and day";
            return Err(wrong("group_by", words));
        }
    };
    sums(plane, identity, headers, asked, by).await
}

/// By target and how its tries ended.
async fn tries(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    Filter(asked): Filter<Asked>,
) -> Result<Response, ApiError> {
    let filter = asked.filter(&identity)?;
    let is_csv = wants_csv(&headers);
    let rows = read(&plane, move |conn| store::targets(conn, &filter)).await?;
    let line = |row: &TargetRow| {
        super::wire::object(json!({
            "target": row.target,
            "class": row.class,
            "attempts": row.n,
            "mean_ms": row.ms / row.n.max(1),
            "prompt_tokens": row.in_tok,
            "completion_tokens": row.out_tok,
            "total_tokens": row.in_tok + row.out_tok,
            "spend": if is_csv { Value::from(usd(row.cost_nusd)) } else { json!(dollars(row.cost_nusd)) },
        }))
    };
    Ok(table(&headers, rows.iter().map(line).collect(), |row| row))
}

async fn sums(
    State(plane): State<Plane>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    Filter(asked): Filter<Asked>,
    (name, by): (&'static str, GroupBy),
) -> Result<Response, ApiError> {
    let filter = asked.filter(&identity)?;
    let rows = read(&plane, move |conn| store::spend(conn, &filter, by)).await?;
    let line = |row: &SpendRow| {
        let group = match by {
            GroupBy::Day => row.group.parse().map_or_else(|_| row.group.clone(), day_text),
            _ => row.group.clone(),
        };
        super::wire::object(json!({
            name: group,
            "requests": row.n,
            "failed": row.n_failed,
            "prompt_tokens": row.in_tok,
            "cached_tokens": row.cached_tok,
            "completion_tokens": row.out_tok,
            "total_tokens": row.in_tok + row.out_tok,
            "spend": dollars(row.cost_nusd),
        }))
    };
    let mut lines: Vec<(Map<String, Value>, i64)> = rows.iter().map(|row| (line(row), row.cost_nusd)).collect();
    if wants_csv(&headers) {
        // A spreadsheet adds these up: all decimals, no float.
        lines.iter_mut().for_each(|(line, nusd)| drop(line.insert("spend".to_owned(), Value::from(usd(*nusd)))));
    }
    Ok(table(&headers, lines, |(line, _)| line))
}

fn wants_csv(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/csv"))
}

fn table<T>(headers: &HeaderMap, rows: Vec<T>, object: impl Fn(T) -> Map<String, Value>) -> Response {
    let rows = rows.into_iter().map(object);
    if wants_csv(headers) {
        return typed(csv(&rows.collect::<Vec<_>>()), "text/csv; charset=utf-8");
    }
    typed(Value::Array(rows.map(Value::Object).collect()).to_string(), "application/json")
}

/// RFC 4180, with the first row's names on top.
fn csv(rows: &[Map<String, Value>]) -> String {
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        text += &cells.map(|cell| quoted(&cell)).collect::<Vec<_>>().join(",");
        text += "\r\n";
    };
    if let Some(first) = rows.first() {
        line(&mut first.keys().cloned());
    }
    for row in rows {
        line(&mut row.values().map(|value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }));
    }
    text
}

/// A text that a spreadsheet would compute (`=…`) is one that somebody else wrote: it is marked as text.
fn quoted(cell: &str) -> String {
    let is_number = cell.parse::<f64>().is_ok();
    let cell = if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    if cell.contains([',', '"', '\r', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_quoted_and_computes_nothing() {
        let row = |a: &str, b: Value| super::super::wire::object(json!({ "a,b": a, "n": b }));
        let text = csv(&[row("x \"y\"\n", json!(1.5)), row("=HYPERLINK(1)", Value::Null), row("-1", json!(-2))]);
        assert_eq!(text, "\"a,b\",n\r\n\"x \"\"y\"\"\n\",1.5\r\n'=HYPERLINK(1),\r\n-1,-2\r\n");
        assert_eq!(csv(&[]), "");
    }

    #[test]
    fn days_and_instants_are_understood() {
        assert_eq!(instant("d", "1970-01-02", 0).ok(), Some(86_400_000));
        assert_eq!(instant("d", "1970-01-02", 1).ok(), Some(2 * 86_400_000));
        assert_eq!(instant("d", "1970-01-01T00:00:01Z", 1).ok(), Some(1000));
        assert!(instant("d", "yesterday", 0).is_err());
        assert_eq!(day_text(1), "1970-01-02");
    }
}
