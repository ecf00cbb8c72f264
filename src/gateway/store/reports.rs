//! What was spent, by whom, on what.

use super::StoreError;
use super::chain::{Link, read_link};
use super::row::{RequestRow, attempts_of_one};

use rusqlite::{Connection, OptionalExtension, ToSql, params};

/// Most lines of one report; more are asked for page by page.
pub const LINES_MAX: u32 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    Key,
    Team,
    User,
    Model,
    Day,
    /// Whom clients said that they ask for.
    EndUser,
}

/// Which requests are meant; everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Unix milliseconds, inclusive; of sums, whole days.
    pub since: Option<i64>,
    /// Exclusive.
    pub until: Option<i64>,
    pub key_id: Option<String>,
    pub team_id: Option<String>,
    pub user_id: Option<String>,
    pub model: Option<String>,
    pub request_id: Option<String>,
}

/// A sum over requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpendRow {
    /// What it is of: an id, a name, or a day (days since 1970).
    pub group: String,
    pub n: i64,
    pub n_failed: i64,
    pub in_tok: i64,
    pub cached_tok: i64,
    pub out_tok: i64,
    pub cost_nusd: i64,
}

/// A day of one key with one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayRow {
    pub day: i64,
    pub key_id: String,
    pub team_id: String,
    pub user_id: String,
    pub model: String,
    pub sum: SpendRow,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRow {
    pub tag: String,
    pub n: i64,
    pub in_tok: i64,
    pub out_tok: i64,
    pub cost_nusd: i64,
}

/// A WHERE clause with its values. Columns come from here alone; what a client says is only ever a value.
struct Where {
    text: String,
    values: Vec<Box<dyn ToSql>>,
}

impl Where {
    fn new() -> Self {
        Self { text: "1".to_owned(), values: Vec::new() }
    }

    fn add<T: ToSql + Clone + 'static>(&mut self, condition: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.values.push(Box::new(value.clone()));
            self.text += &format!(" AND {condition} ?{}", self.values.len());
        }
    }

    fn values(&self) -> Vec<&dyn ToSql> {
        self.values.iter().map(Box::as_ref).collect()
    }
}

const DAY_MS: i64 = 86_400_000;

fn day_filter(filter: &LogFilter) -> Where {
    let mut of = Where::new();
    of.add("day >=", filter.since.map(|ms| ms.div_euclid(DAY_MS)).as_ref());
    // The day in which the time lies counts, unless it only just begins.
    of.add("day <=", filter.until.map(|ms| (ms - 1).div_euclid(DAY_MS)).as_ref());
    of.add("team_id =", filter.team_id.as_ref());
    of
}

fn usage_filter(filter: &LogFilter) -> Where {
    let mut of = day_filter(filter);
    of.add("key_id =", filter.key_id.as_ref());
    of.add("user_id =", filter.user_id.as_ref());
    of.add("model =", filter.model.as_ref());
    of
}

const SUMS: &str = "sum(n), sum(n_failed), sum(in_tok), sum(cached_tok), sum(out_tok), sum(cost_nusd)";

fn sums(row: &rusqlite::Row, from: usize, group: String) -> rusqlite::Result<SpendRow> {
    Ok(SpendRow {
        group,
        n: row.get(from)?,
        n_failed: row.get(from + 1)?,
        in_tok: row.get(from + 2)?,
        cached_tok: row.get(from + 3)?,
        out_tok: row.get(from + 4)?,
        cost_nusd: row.get(from + 5)?,
    })
}

/// What a scope spent on requests that began in a time, `[from, until)` in unix milliseconds, and have ended: (nano-USD,
/// tokens). `scope`: `key`, `team`, `user` or `budget`; of any
/// other, nothing is known.
///
/// Whole days are read from their sums and the rest from rows, so it is quick however long the time is, and exact.
pub fn spent(conn: &Connection, scope: &str, id: &str, (from, until): (i64, i64)) -> Result<(i64, u64), StoreError> {
    let column = match scope {
        "key" => "key_id",
        "team" => "team_id",
        "user" => "user_id",
        "budget" => "budget_id",
        _ => return Ok((0, 0)),
    };
    let reset: Option<i64> = conn
        .prepare_cached("SELECT at FROM reset WHERE scope = ?1 AND scope_id = ?2")?
        .query_row([scope, id], |row| row.get(0))
        .optional()?;
    let from = from.max(reset.unwrap_or(0)).max(0);
    let until = until.min(i64::MAX - DAY_MS);
    let (first, last) = ((from + DAY_MS - 1).div_euclid(DAY_MS), until.div_euclid(DAY_MS));
    let mut sum = (0_i64, 0_i64);
    let mut add = |text: &str, (a, b): (i64, i64)| -> Result<(), StoreError> {
        let part: (i64, i64) =
            conn.prepare_cached(text)?.query_row(params![id, a, b], |row| Ok((row.get(0)?, row.get(1)?)))?;
        sum = (sum.0.saturating_add(part.0), sum.1.saturating_add(part.1));
        Ok(())
    };
    const SUMS: &str = "coalesce(sum(cost_nusd), 0), coalesce(sum(in_tok + out_tok), 0)";
    let (rows, days) = match scope {
        "budget" => (
            // A row may count for several.
            format!(
                "SELECT {SUMS} FROM request, json_each(request.budgets) AS its WHERE its.value = ?1 AND t0 >= ?2 AND t0 < ?3"
            ),
            "SELECT coalesce(sum(cost_nusd), 0), coalesce(sum(tok), 0) FROM usage_budget
             WHERE budget_id = ?1 AND day >= ?2 AND day < ?3"
                .to_owned(),
        ),
        _ => (
            format!("SELECT {SUMS} FROM request WHERE {column} = ?1 AND t0 >= ?2 AND t0 < ?3"),
            format!("SELECT {SUMS} FROM usage_day WHERE {column} = ?1 AND day >= ?2 AND day < ?3"),
        ),
    };
    if first >= last {
        add(&rows, (from, until))?;
    } else {
        add(&days, (first, last))?;
        add(&rows, (from, first * DAY_MS))?;
        add(&rows, (last * DAY_MS, until))?;
    }
    Ok((sum.0, u64::try_from(sum.1).unwrap_or_default()))
}

/// Requests with their attempts, the latest first.
pub fn logs(conn: &Connection, filter: &LogFilter, (limit, offset): (u32, u32)) -> Result<Vec<RequestRow>, StoreError> {
    let mut of = Where::new();
    of.add("t0 >=", filter.since.as_ref());
    of.add("t0 <", filter.until.as_ref());
    of.add("key_id =", filter.key_id.as_ref());
    of.add("team_id =", filter.team_id.as_ref());
    of.add("user_id =", filter.user_id.as_ref());
    of.add("model =", filter.model.as_ref());
    of.add("id =", filter.request_id.as_ref());
    let limit = limit.min(LINES_MAX);
    let text =
        format!("SELECT * FROM request WHERE {} ORDER BY t0 DESC, seq DESC LIMIT {limit} OFFSET {offset}", of.text);
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), RequestRow::read)?;
    let mut rows: Vec<RequestRow> = rows.collect::<Result<_, _>>()?;
    for row in &mut rows {
        row.attempts = attempts_of_one(conn, &row.id)?;
    }
    Ok(rows)
}

fn request_filter(filter: &LogFilter) -> Where {
    let mut of = Where::new();
    of.add("r.t0 >=", filter.since.as_ref());
    of.add("r.t0 <", filter.until.as_ref());
    of.add("r.key_id =", filter.key_id.as_ref());
    of.add("r.team_id =", filter.team_id.as_ref());
    of.add("r.user_id =", filter.user_id.as_ref());
    of.add("r.model =", filter.model.as_ref());
    of
}

const FAILED: &str = "(r.status >= 400 OR r.finish IN ('failed', 'engine_crash', 'crash'))";

/// Sums by the people whom clients said that they ask for, the dearest first; of no one in particular under an empty name.
/// Read from rows, so what retention removed is not in it.
fn end_users(conn: &Connection, filter: &LogFilter) -> Result<Vec<SpendRow>, StoreError> {
    let of = request_filter(filter);
    let text = format!(
        "SELECT coalesce(r.end_user, ''), count(*), sum({FAILED}), sum(r.in_tok), sum(r.cached_tok), sum(r.out_tok),
           sum(r.cost_nusd)
         FROM request r WHERE {} GROUP BY 1 ORDER BY sum(r.cost_nusd) DESC, count(*) DESC LIMIT {LINES_MAX}",
        of.text
    );
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), |row| sums(row, 1, row.get(0)?))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Tries at one target that ended alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRow {
    /// An upstream's name, or a model here.
    pub target: String,
    /// `ok`, `transient`, `throttled`, …; `replaced`: it was good, and another was asked all the same.
    pub class: String,
    pub n: i64,
    /// Of all of them.
    pub ms: i64,
    pub in_tok: i64,
    pub out_tok: i64,
    pub cost_nusd: i64,
}

/// Tries by target and how they ended. A request with one try, at a model here, is that try.
pub fn targets(conn: &Connection, filter: &LogFilter) -> Result<Vec<TargetRow>, StoreError> {
    let of = request_filter(filter);
    let text = format!(
        "SELECT target, class, count(*), sum(ms), sum(in_tok), sum(out_tok), sum(cost_nusd) FROM (
           SELECT a.target, a.class, a.ms, a.in_tok, a.out_tok, a.cost_nusd
           FROM request r JOIN attempt a ON a.request_id = r.id WHERE {0}
           UNION ALL
           SELECT r.model, CASE WHEN r.finish IN ('failed', 'engine_crash', 'crash') THEN 'transient'
             WHEN r.finish IN ('aborted', 'revoked', 'shutdown') THEN 'cancelled'
             WHEN r.status >= 400 THEN 'client_fault' ELSE 'ok' END,
             r.t_end - r.t0, r.in_tok, r.out_tok, r.cost_nusd
           FROM request r WHERE {0} AND r.model IS NOT NULL AND coalesce(r.served_by, '') <> 'cache'
             AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.request_id = r.id))
         GROUP BY target, class ORDER BY target, count(*) DESC LIMIT {LINES_MAX}",
        of.text
    );
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), |row| {
        Ok(TargetRow {
            target: row.get(0)?,
            class: row.get(1)?,
            n: row.get(2)?,
            ms: row.get(3)?,
            in_tok: row.get(4)?,
            out_tok: row.get(5)?,
            cost_nusd: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Sums by one thing, the dearest first; of days, in their order.
pub fn spend(conn: &Connection, filter: &LogFilter, by: GroupBy) -> Result<Vec<SpendRow>, StoreError> {
    let (column, order) = match by {
        GroupBy::Key => ("key_id", "sum(cost_nusd) DESC, sum(n) DESC"),
        GroupBy::Team => ("team_id", "sum(cost_nusd) DESC, sum(n) DESC"),
        GroupBy::User => ("user_id", "sum(cost_nusd) DESC, sum(n) DESC"),
        GroupBy::Model => ("model", "sum(cost_nusd) DESC, sum(n) DESC"),
        GroupBy::Day => ("day", "day"),
        GroupBy::EndUser => return end_users(conn, filter),
    };
    let of = usage_filter(filter);
    let text = format!(
        "SELECT CAST({column} AS TEXT), {SUMS} FROM usage_day WHERE {} GROUP BY {column} ORDER BY {order} LIMIT {LINES_MAX}",
        of.text
    );
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), |row| sums(row, 1, row.get(0)?))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Everything that is summed, line by line.
pub fn days(conn: &Connection, filter: &LogFilter) -> Result<Vec<DayRow>, StoreError> {
    let of = usage_filter(filter);
    let text = format!(
        "SELECT day, key_id, team_id, user_id, model, {SUMS} FROM usage_day WHERE {}
         GROUP BY day, key_id, team_id, user_id, model ORDER BY day, key_id LIMIT {LINES_MAX}",
        of.text
    );
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), |row| {
        Ok(DayRow {
            day: row.get(0)?,
            key_id: row.get(1)?,
            team_id: row.get(2)?,
            user_id: row.get(3)?,
            model: row.get(4)?,
            sum: sums(row, 5, String::new())?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub fn tags(conn: &Connection, filter: &LogFilter) -> Result<Vec<TagRow>, StoreError> {
    let of = day_filter(filter);
    let text = format!(
        "SELECT tag, sum(n), sum(in_tok), sum(out_tok), sum(cost_nusd) FROM usage_tag WHERE {}
         GROUP BY tag ORDER BY sum(cost_nusd) DESC, sum(n) DESC LIMIT {LINES_MAX}",
        of.text
    );
    let mut statement = conn.prepare(&text)?;
    let rows = statement.query_map(of.values().as_slice(), |row| {
        Ok(TagRow {
            tag: row.get(0)?,
            n: row.get(1)?,
            in_tok: row.get(2)?,
            out_tok: row.get(3)?,
            cost_nusd: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Links of the audit chain from `from` on, in their order.
pub fn links(conn: &Connection, from: i64, limit: u32) -> Result<Vec<Link>, StoreError> {
    let mut statement = conn.prepare_cached("SELECT * FROM audit WHERE seq >= ?1 ORDER BY seq LIMIT ?2")?;
    let rows = statement.query_map([from, i64::from(limit.min(LINES_MAX))], read_link)?;
    Ok(rows.collect::<Result<_, _>>()?)
}
