//! `hearth spend`, `hearth audit`, `hearth db`: what was spent, whether the books are as they were written.

use super::desk::{Call, Place};
use super::keys::encoded;
use super::say;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct Spend {
    #[command(flatten)]
    place: Place,
    /// What to sum by
    #[arg(long, value_enum, default_value_t = By::Key)]
    by: By,
    /// First day, such as 2026-11-25 (UTC)
    #[arg(long, value_name = "DAY")]
    since: Option<String>,
    /// Last day
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// Of this key alone
    #[arg(long)]
    key: Option<String>,
    /// Of this team alone
    #[arg(long)]
    team: Option<String>,
    /// As CSV
    #[arg(long)]
    csv: bool,
    /// As JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Key,
    Team,
    User,
    Model,
    Day,
    Tag,
    /// Whom clients said that they ask for
    EndUser,
    /// Tries at models and upstreams, by how they ended
    Target,
}

impl Spend {
    pub fn run(self) -> Result<()> {
        let (path, group) = match self.by {
            By::Key => ("/global/spend/report?group_by=api_key", "api_key"),
            By::Team => ("/global/spend/report?group_by=team", "team_id"),
            By::User => ("/global/spend/report?group_by=user", "user_id"),
            By::Model => ("/global/spend/report?group_by=model", "model"),
            By::Day => ("/global/spend/report?group_by=day", "day"),
            By::Tag => ("/spend/tags?page=1", "individual_request_tag"),
            By::EndUser => ("/global/spend/report?group_by=end_user", "end_user"),
            By::Target => ("/global/spend/report?group_by=target", "target"),
        };
        let mut path = path.to_owned();
        let said =
            [("start_date", self.since), ("end_date", self.until), ("api_key", self.key), ("team_id", self.team)];
        for (name, value) in said {
            if let Some(value) = value {
                path += &format!("&{name}={}", encoded(&value));
            }
        }
        let answer = self.place.call(Call { csv: self.csv, ..Call::get(path) })?;
        if self.csv {
            say!("{}", answer.text().trim_end());
            return Ok(());
        }
        let rows = answer.json()?;
        if self.json {
            say!("{rows:#}");
            return Ok(());
        }
        say!("{:<20} {:>10} {:>12} {:>12} {:>14}", group, "requests", "prompt", "completion", "USD");
        for row in rows.as_array().into_iter().flatten() {
            let n = |names: [&str; 3]| names.iter().find_map(|name| row[*name].as_i64()).unwrap_or_default();
            let usd = row["spend"].as_f64().or(row["total_spend"].as_f64()).unwrap_or_default();
            let name = row[group].as_str().filter(|name| !name.is_empty()).unwrap_or("-");
            let name = match row["class"].as_str() {
                Some(class) => format!("{name} {class}"),
                None => name.to_owned(),
            };
            let (n_in, n_out) = (n(["prompt_tokens", "", ""]), n(["completion_tokens", "", ""]));
            say!("{name:<20} {:>10} {n_in:>12} {n_out:>12} {usd:>14.6}", n(["requests", "log_count", "attempts"]));
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: AuditVerb,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// Recompute the chain; fails with the first link that is wrong
    Verify {
        /// Also against the last checkpoint in this file: the witness's, or the log's lines that have one
        #[arg(long, value_name = "FILE")]
        from_checkpoint: Option<PathBuf>,
    },
    /// Print what was said in a request, where that is kept (--audit-content)
    Content { request_id: String },
    /// Forget for ever what a user (or a key without one) said
    Erase { user: String },
    /// Print every link, one JSON object a line
    Export {
        /// First link
        #[arg(long, default_value_t = 1)]
        since: i64,
    },
}

impl Audit {
    pub fn run(self) -> Result<()> {
        match self.what {
            AuditVerb::Verify { from_checkpoint } => {
                let mut path = "/audit/verify".to_owned();
                if let Some(file) = from_checkpoint {
                    let (seq, head) = last_checkpoint(&file)?;
                    path += &format!("?checkpoint={seq}-{}", encoded(&head));
                }
                let found = self.place.call(Call::get(path))?.json()?;
                if found["ok"] != true {
                    let reason = found["reason"].as_str().unwrap_or("it does not fit");
                    bail!("link {} is wrong: {reason}", found["first_bad_seq"]);
                }
                let n = |name: &str| found[name].clone();
                say!("ok: {} links, {} rows, {} checkpoints", n("links"), n("rows"), n("checkpoints"));
                say!("head {} {}", n("head_seq"), found["head"].as_str().unwrap_or_default());
            }
            AuditVerb::Content { request_id } => {
                let path = format!("/audit/content?request_id={}", encoded(&request_id));
                say!("{:#}", self.place.call(Call::get(path))?.json()?);
            }
            AuditVerb::Erase { user } => {
                self.place.call(Call::post("/subject/erase", json!({ "user_id": user })))?;
                say!("erased");
            }
            AuditVerb::Export { since } => {
                let text = self.place.call(Call::get(format!("/audit/export?since={since}")))?.text();
                say!("{}", text.trim_end());
            }
        }
        Ok(())
    }
}

/// Link and head of the last whole line that tells of a checkpoint.
fn last_checkpoint(file: &Path) -> Result<(i64, String)> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let read = |line: &str| {
        let found: Value = serde_json::from_str(line).ok()?;
        let found = match found["checkpoint"].as_str() {
            Some(inner) => serde_json::from_str(inner).ok()?,
            None => found,
        };
        Some((found["seq"].as_i64()?, found["head"].as_str()?.to_owned()))
    };
    text.lines().rev().find_map(read).ok_or_else(|| anyhow!("{} has no checkpoint", file.display()))
}

#[derive(Debug, Args)]
pub(super) struct Db {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: DbVerb,
}

#[derive(Debug, Subcommand)]
enum DbVerb {
    /// SQLite's look at the whole file; fails with what is wrong
    Check,
}

impl Db {
    pub fn run(self) -> Result<()> {
        let DbVerb::Check = self.what;
        let found = self.place.call(Call::get("/db/check"))?.json()?;
        if found["ok"] == true {
            say!("ok");
            let store = &found["store"];
            if store.is_object() {
                let place = store["place"].as_str().unwrap_or_default();
                let (n, seconds) = (&store["rows_behind"], &store["seconds_behind"]);
                say!("{place}: {n} rows behind, the first for {seconds} s (this server is {})", store["instance"]);
                if let Some(error) = store["error"].as_str() {
                    say!("{place}: {error}");
                }
            }
            return Ok(());
        }
        let faults = found["faults"].as_array().into_iter().flatten().filter_map(Value::as_str);
        bail!("the database is damaged: {}", faults.collect::<Vec<_>>().join("; "));
    }
}
