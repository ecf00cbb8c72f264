//! What was spent, by whom, on what.

use super::StoreError;
use super::chain::{Link, read_link};
use super::row::{RequestRow, attempts_of_one};

use rusqlite::{Connection, OptionalExtension, ToSql, params};

/// Most lines of one report; more are asked for page by page.
pub const LINES_MAX: u32 = 10_000;
/// Most names of each kind in one day of a summary.
const NAMES_MAX: usize = 1000;

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

/// A day, and what it cost by model, user and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayRow {
    pub day: i64,
    /// Of everything, whatever is left out of the parts.
    pub sum: SpendRow,
    pub models: Part,
    pub users: Part,
    pub keys: Part,
}

/// Nano-USD by name, the dearest first. **Bound:** [`NAMES_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    pub names: Vec<(String, i64)>,
    pub n_left_out: usize,
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

/// Sums by day, in their order, each with its models, users and keys.
pub fn days(conn: &Connection, filter: &LogFilter) -> Result<Vec<DayRow>, StoreError> {
    let of = usage_filter(filter);
    let text =
        format!("SELECT day, {SUMS} FROM usage_day WHERE {} GROUP BY day ORDER BY day LIMIT {LINES_MAX}", of.text);
    let mut statement = conn.prepare(&text)?;
    let day = |row: &rusqlite::Row| {
        let (models, users, keys) = Default::default();
        Ok(DayRow { day: row.get(0)?, sum: sums(row, 1, String::new())?, models, users, keys })
    };
    let read = statement.query_map(of.values().as_slice(), day)?;
    let mut days: Vec<DayRow> = read.collect::<Result<_, _>>()?;
    for column in ["model", "user_id", "key_id"] {
        let text = format!(
            "SELECT day, {column}, sum(cost_nusd) FROM usage_day WHERE {} GROUP BY day, {column} ORDER BY day, 3 DESC, 2",
            of.text
        );
        let mut statement = conn.prepare(&text)?;
        let mut rows = statement.query(of.values().as_slice())?;
        let mut idx = 0;
        while let Some(row) = rows.next()? {
            let day: i64 = row.get(0)?;
            // Both are in the order of days.
            while days.get(idx).is_some_and(|known| known.day < day) {
                idx += 1;
            }
            let Some(known) = days.get_mut(idx).filter(|known| known.day == day) else { break };
            let part = match column {
                "model" => &mut known.models,
                "user_id" => &mut known.users,
                _ => &mut known.keys,
            };
            match part.names.len() < NAMES_MAX {
                true => part.names.push((row.get(1)?, row.get(2)?)),
                false => part.n_left_out += 1,
            }
        }
    }
    Ok(days)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_exact_however_many_keys_there_are() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(include_str!("schema.sql")).unwrap();
        // More lines than any report has, of keys that cost more and more.
        conn.execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 11999)
             INSERT INTO usage_day SELECT 100 + i / 4000, 'key' || (i % 4000), '', 'u', CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END,
               2, 1, 10, 4, 5, i % 4000 FROM n",
        )
        .unwrap();
        let all = days(&conn, &LogFilter::default()).unwrap();
        assert_eq!(all.iter().map(|day| day.day).collect::<Vec<_>>(), [100, 101, 102]);
        for day in &all {
            let sum = SpendRow {
                group: String::new(),
                n: 8000,
                n_failed: 4000,
                in_tok: 40_000,
                cached_tok: 16_000,
                out_tok: 20_000,
                cost_nusd: 4000 * 3999 / 2,
            };
            assert_eq!(day.sum, sum);
            assert_eq!(day.models.names, [("b".to_owned(), 4_000_000), ("a".to_owned(), 3_998_000)]);
            assert_eq!(day.users.names, [("u".to_owned(), sum.cost_nusd)]);
            assert_eq!((day.keys.names.len(), day.keys.n_left_out, day.users.n_left_out), (1000, 3000, 0));
            assert_eq!(day.keys.names[0], ("key3999".to_owned(), 3999), "the dearest are named");
        }
        let some = LogFilter { since: Some(101 * DAY_MS), key_id: Some("key7".into()), ..Default::default() };
        let some = days(&conn, &some).unwrap();
        assert_eq!(some.iter().map(|day| (day.day, day.sum.cost_nusd)).collect::<Vec<_>>(), [(101, 7), (102, 7)]);
    }
}
