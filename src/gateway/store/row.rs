//! Rows of the ledger, and how they are written.

use super::StoreError;
use super::content::Sealed;
use crate::gateway::spec::Price;
use rusqlite::{Connection, Result, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// One request and what became of it. The same fields wait in `inflight` until it is settled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRow {
    /// The name that clients read in `x-request-id`.
    pub id: String,
    pub t0: i64,
    pub t_first: Option<i64>,
    pub t_end: i64,
    pub key_id: Option<String>,
    pub team_id: Option<String>,
    pub user_id: Option<String>,
    /// The end user that the client named.
    pub end_user: Option<String>,
    pub ip: Option<String>,
    /// The route's pattern, not the path that was asked for.
    pub endpoint: String,
    pub model_req: Option<String>,
    pub model: Option<String>,
    pub served_by: Option<String>,
    pub status: u16,
    /// `stop`, `length`, `tool_calls`, `ok` (nothing was generated), `refused`, `aborted`, `failed`, `engine_crash`, `revoked`,
    /// `shutdown`, `crash`.
    pub finish: String,
    pub error_code: Option<String>,
    pub stream: bool,
    pub in_tok: u64,
    pub cached_tok: u64,
    pub out_tok: u64,
    pub reason_tok: u64,
    /// `engine`: counted by the engine · `estimated` · `progress`: what was known a second before a crash · `none`.
    pub usage_source: String,
    pub cost_nusd: i64,
    pub price: Option<Price>,
    pub queue_ms: Option<u64>,
    /// `hit`, `miss`, `bypass`; none without a response cache.
    pub cache: Option<String>,
    pub tags: Vec<String>,
    pub attempts: Vec<Attempt>,
    /// Of the sealed words; they may be gone, it stays.
    pub content_digest: Option<String>,
    /// Of the trace that it is a part of. Left out where there is none, as in rows that are older than it: their digests
    /// in the audit chain stay what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Ids of the shared budgets that it counted for. Left out where there is none, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
    #[serde(skip)]
    pub content: Option<Sealed>,
}

/// One try at a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub target: String,
    pub class: String,
    pub status: Option<u16>,
    pub ms: u64,
    pub in_tok: u64,
    pub out_tok: u64,
    pub cost_nusd: i64,
}

/// What is known of a request that still runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub id: String,
    pub in_tok: u64,
    pub cached_tok: u64,
    pub out_tok: u64,
}

fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl RequestRow {
    /// Bytes it takes while it waits, roughly and never less than half.
    pub fn n_bytes(&self) -> usize {
        let texts =
            [&self.key_id, &self.team_id, &self.user_id, &self.end_user, &self.ip, &self.model_req, &self.model];
        let n: usize = texts.into_iter().flatten().map(String::len).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 24).sum();
        size_of::<Self>()
            + n
            + self.id.len()
            + self.endpoint.len()
            + tags
            + 96 * self.attempts.len()
            + self.content.as_ref().map_or(0, Sealed::n_bytes)
    }

    pub fn is_failed(&self) -> bool {
        self.status >= 400 || matches!(self.finish.as_str(), "failed" | "engine_crash" | "crash")
    }

    /// Inserts it with everything that is summed from it. `false`: it was there already, and nothing was changed.
    pub(super) fn insert(&self, tx: &Connection, boot: i64, seq: i64) -> Result<bool> {
        let price = self.price.map(|price| price_text(&price));
        let tags = serde_json::Value::from(self.tags.clone()).to_string();
        let budgets = serde_json::Value::from(self.budgets.clone()).to_string();
        let budgets = Some(budgets).filter(|_| !self.budgets.is_empty());
        let n = tx
            .prepare_cached(
                "INSERT OR IGNORE INTO request(seq, id, boot, t0, t_first, t_end, key_id, team_id, user_id, end_user, ip,
                   endpoint, model_req, model, served_by, status, finish, error_code, stream, in_tok, cached_tok, out_tok,
                   reason_tok, usage_source, cost_nusd, price, queue_ms, cache, tags, content_digest,
                   trace_id, budgets)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
                   ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)",
            )?
            .execute(params![
                seq,
                self.id,
                boot,
                self.t0,
                self.t_first,
                self.t_end,
                self.key_id,
                self.team_id,
                self.user_id,
                self.end_user,
                self.ip,
                self.endpoint,
                self.model_req,
                self.model,
                self.served_by,
                self.status,
                self.finish,
                self.error_code,
                self.stream,
                int(self.in_tok),
                int(self.cached_tok),
                int(self.out_tok),
                int(self.reason_tok),
                self.usage_source,
                self.cost_nusd,
                price,
                self.queue_ms.map(int),
                self.cache,
                tags,
                self.content_digest,
                self.trace_id,
                budgets,
            ])?;
        if n == 0 {
            return Ok(false);
        }
        self.add_up(tx)?;
        if let Some(content) = &self.content {
            content.insert(tx, &self.id)?;
        }
        for (n, attempt) in (1_i64..).zip(&self.attempts) {
            attempt.insert(tx, &self.id, n)?;
        }
        Ok(true)
    }

    fn add_up(&self, tx: &Connection) -> Result<()> {
        let day = self.t0.div_euclid(86_400_000);
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (n_in, n_cached, n_out) = (int(self.in_tok), int(self.cached_tok), int(self.out_tok));
        tx.prepare_cached(
            "INSERT INTO usage_day(day, key_id, team_id, user_id, model, n, n_failed, in_tok, cached_tok, out_tok, cost_nusd)
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT DO UPDATE SET n = n + 1, n_failed = n_failed + excluded.n_failed, in_tok = in_tok + excluded.in_tok,
               cached_tok = cached_tok + excluded.cached_tok, out_tok = out_tok + excluded.out_tok,
               cost_nusd = cost_nusd + excluded.cost_nusd",
        )?
        .execute(params![
            day,
            text(&self.key_id),
            text(&self.team_id),
            text(&self.user_id),
            text(&self.model),
            self.is_failed(),
            n_in,
            n_cached,
            n_out,
            self.cost_nusd
        ])?;
        for tag in &self.tags {
            tx.prepare_cached(
                "INSERT INTO usage_tag(day, tag, team_id, n, in_tok, out_tok, cost_nusd) VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET n = n + 1, in_tok = in_tok + excluded.in_tok,
                   out_tok = out_tok + excluded.out_tok, cost_nusd = cost_nusd + excluded.cost_nusd",
            )?
            .execute(params![day, tag, text(&self.team_id), n_in, n_out, self.cost_nusd])?;
        }
        for budget in &self.budgets {
            tx.prepare_cached(
                "INSERT INTO usage_budget(day, budget_id, tok, cost_nusd) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET tok = tok + excluded.tok, cost_nusd = cost_nusd + excluded.cost_nusd",
            )?
            .execute(params![day, budget, n_in.saturating_add(n_out), self.cost_nusd])?;
        }
        Ok(())
    }

    /// A digest of what the row says, for the audit chain: the same from memory and from the table.
    pub fn digest(&self, seq: i64) -> [u8; 32] {
        let mut bare = self.clone();
        // Rows of another table.
        bare.attempts.clear();
        let text = serde_json::to_vec(&bare).unwrap_or_default();
        Sha256::new().chain_update(seq.to_le_bytes()).chain_update(text).finalize().into()
    }

    pub(super) fn read(row: &rusqlite::Row) -> Result<Self> {
        let count = |name: &str| row.get::<_, i64>(name).map(|n| u64::try_from(n).unwrap_or_default());
        Ok(Self {
            id: row.get("id")?,
            t0: row.get("t0")?,
            t_first: row.get("t_first")?,
            t_end: row.get("t_end")?,
            key_id: row.get("key_id")?,
            team_id: row.get("team_id")?,
            user_id: row.get("user_id")?,
            end_user: row.get("end_user")?,
            ip: row.get("ip")?,
            endpoint: row.get("endpoint")?,
            model_req: row.get("model_req")?,
            model: row.get("model")?,
            served_by: row.get("served_by")?,
            status: row.get("status")?,
            finish: row.get("finish")?,
            error_code: row.get("error_code")?,
            stream: row.get("stream")?,
            in_tok: count("in_tok")?,
            cached_tok: count("cached_tok")?,
            out_tok: count("out_tok")?,
            reason_tok: count("reason_tok")?,
            usage_source: row.get("usage_source")?,
            cost_nusd: row.get("cost_nusd")?,
            price: row.get::<_, Option<String>>("price")?.and_then(|text| serde_json::from_str(&text).ok()),
            queue_ms: row.get::<_, Option<i64>>("queue_ms")?.and_then(|n| u64::try_from(n).ok()),
            cache: row.get("cache")?,
            tags: serde_json::from_str(&row.get::<_, String>("tags")?).unwrap_or_default(),
            attempts: Vec::new(),
            content_digest: row.get("content_digest")?,
            trace_id: row.get("trace_id")?,
            budgets: row
                .get::<_, Option<String>>("budgets")?
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            content: None,
        })
    }

    /// Notes that it runs.
    pub(super) fn open(&self, tx: &Connection, boot: i64) -> Result<()> {
        let row = serde_json::to_string(self).unwrap_or_default();
        tx.prepare_cached(
            "INSERT OR IGNORE INTO inflight(id, boot, t0, row, in_tok, cached_tok, out_tok, updated)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?3)",
        )?
        .execute(params![
            self.id,
            boot,
            self.t0,
            row,
            int(self.in_tok),
            int(self.cached_tok),
            int(self.out_tok)
        ])?;
        Ok(())
    }

    pub(super) fn close(&self, tx: &Connection) -> Result<()> {
        tx.prepare_cached("DELETE FROM inflight WHERE id = ?1")?.execute([&self.id])?;
        Ok(())
    }
}

impl Progress {
    pub(super) fn update(&self, tx: &Connection, now: i64) -> Result<()> {
        tx.prepare_cached(
            "UPDATE inflight SET in_tok = ?2, cached_tok = ?3, out_tok = ?4, updated = ?5 WHERE id = ?1",
        )?
        .execute(params![self.id, int(self.in_tok), int(self.cached_tok), int(self.out_tok), now])?;
        Ok(())
    }
}

impl Attempt {
    /// Behind the request's name, in the order of the fields.
    fn read(row: &rusqlite::Row) -> Result<Self> {
        let count = |idx: usize| row.get::<_, i64>(idx).map(|n| u64::try_from(n).unwrap_or_default());
        Ok(Self {
            target: row.get(1)?,
            class: row.get(2)?,
            status: row.get(3)?,
            ms: count(4)?,
            in_tok: count(5)?,
            out_tok: count(6)?,
            cost_nusd: row.get(7)?,
        })
    }

    fn insert(&self, tx: &Connection, request_id: &str, n: i64) -> Result<()> {
        tx.prepare_cached(
            "INSERT OR IGNORE INTO attempt(request_id, n, target, class, status, ms, in_tok, out_tok, cost_nusd)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            request_id,
            n,
            self.target,
            self.class,
            self.status,
            int(self.ms),
            int(self.in_tok),
            int(self.out_tok),
            self.cost_nusd
        ])?;
        Ok(())
    }
}

/// Rows behind `seq` with their numbers, in order, without their attempts.
pub fn rows_after(conn: &Connection, seq: i64, most: u32) -> Result<Vec<(i64, RequestRow)>, StoreError> {
    let mut statement = conn.prepare_cached("SELECT * FROM request WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let rows = statement.query_map([seq, most.into()], |row| Ok((row.get("seq")?, RequestRow::read(row)?)))?;
    Ok(rows.collect::<Result<_>>()?)
}

/// The attempts of rows `first..=last`, by the row's name, each in order.
pub fn attempts_of(conn: &Connection, first: i64, last: i64) -> Result<HashMap<String, Vec<Attempt>>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT a.request_id, a.target, a.class, a.status, a.ms, a.in_tok, a.out_tok, a.cost_nusd
         FROM request r JOIN attempt a ON a.request_id = r.id WHERE r.seq BETWEEN ?1 AND ?2 ORDER BY r.seq, a.n",
    )?;
    let mut rows = statement.query([first, last])?;
    let mut all: HashMap<String, Vec<Attempt>> = HashMap::new();
    while let Some(row) = rows.next()? {
        all.entry(row.get(0)?).or_default().push(Attempt::read(row)?);
    }
    Ok(all)
}

pub(super) fn attempts_of_one(conn: &Connection, id: &str) -> Result<Vec<Attempt>> {
    let mut statement = conn.prepare_cached(
        "SELECT request_id, target, class, status, ms, in_tok, out_tok, cost_nusd FROM attempt WHERE request_id = ?1
         ORDER BY n",
    )?;
    statement.query_map([id], Attempt::read)?.collect()
}

fn price_text(price: &Price) -> String {
    serde_json::to_string(price).unwrap_or_default()
}

/// What requests of earlier starts had come to when the process died, as rows to settle.
pub(super) fn left_behind(conn: &Connection, boot: i64) -> Result<Vec<RequestRow>> {
    let mut statement = conn.prepare(
        "SELECT row, in_tok, cached_tok, out_tok, updated, id, t0 FROM inflight WHERE boot < ?1 ORDER BY t0",
    )?;
    let rows = statement.query_map([boot], |line| {
        let mut row: RequestRow = serde_json::from_str(&line.get::<_, String>(0)?).unwrap_or_default();
        let count = |idx: usize| line.get::<_, i64>(idx).map(|n| u64::try_from(n).unwrap_or_default());
        (row.in_tok, row.cached_tok, row.out_tok) = (count(1)?, count(2)?, count(3)?);
        (row.t_end, row.id, row.t0) = (line.get(4)?, line.get(5)?, line.get(6)?);
        row.finish = "crash".to_owned();
        row.usage_source = "progress".to_owned();
        row.cost_nusd = row.price.unwrap_or_default().cost(row.in_tok, row.cached_tok, row.out_tok);
        Ok(row)
    })?;
    rows.collect()
}
