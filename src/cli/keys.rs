//! `hearth keys` and `hearth teams`: who may ask, with the server up or down.

use super::desk::{Call, Place};
use super::say;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub(super) struct Keys {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: KeyVerb,
}

#[derive(Debug, Subcommand)]
enum KeyVerb {
    /// Make a key and print it, once; everything else goes to stderr
    #[command(visible_alias = "create")]
    New(Box<NewKey>),
    /// List the keys
    List {
        #[arg(long)]
        team: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a key with what it spent
    Show { id: String },
    /// Give a key a new secret and print it
    Rotate {
        id: String,
        /// How long the secret before opens too, such as 24h
        #[arg(long, value_name = "TIME")]
        grace: Option<String>,
    },
    /// Refuse a key until it is unblocked
    Block { id: String },
    /// Let a blocked key in again
    Unblock { id: String },
    /// Refuse keys for ever
    Revoke {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Let a key's budget count anew
    Reset { id: String },
}

/// What is granted to a key or a team.
#[derive(Debug, Args)]
struct Grants {
    /// Models that may be used, after commas; * for any run of characters [default: all]
    #[arg(long, value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// Dollars, and the time in which they may be spent: 10, 10/30d, 10/1mo
    #[arg(long, value_name = "USD[/TIME]")]
    budget: Option<String>,
    /// Tokens that may be spent, and the time: 1000000, 1000000/1d
    #[arg(long, value_name = "N[/TIME]")]
    tokens: Option<String>,
    /// A budget that is shared with others
    #[arg(long, value_name = "ID")]
    budget_id: Option<String>,
    /// Sets of rules of hearth.toml, after commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    guardrails: Option<Vec<String>>,
    /// A named set of limits of hearth.toml
    #[arg(long, value_name = "NAME")]
    limits: Option<String>,
    /// Requests a minute
    #[arg(long, value_name = "N")]
    rpm: Option<u64>,
    /// Tokens a minute
    #[arg(long, value_name = "N")]
    tpm: Option<u64>,
    /// Requests that run at once
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,
    /// Most tokens of one answer
    #[arg(long, value_name = "N")]
    max_output_tokens: Option<u32>,
}

#[derive(Debug, Args)]
struct NewKey {
    /// A name for people
    #[arg(long)]
    alias: Option<String>,
    #[arg(long)]
    team: Option<String>,
    /// Who gets it
    #[arg(long)]
    user: Option<String>,
    /// Tags its spend is summed by, after commas
    #[arg(long, value_delimiter = ',')]
    tags: Option<Vec<String>>,
    /// data (the default), admin, auditor, team-admin; after commas
    #[arg(long, value_delimiter = ',')]
    roles: Option<Vec<String>>,
    /// Addresses or networks it may be used from, after commas
    #[arg(long, value_delimiter = ',')]
    cidr: Option<Vec<String>>,
    /// When it ends, from now: 30d
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    grants: Grants,
}

#[derive(Debug, Args)]
pub(super) struct Teams {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: TeamVerb,
}

#[derive(Debug, Subcommand)]
enum TeamVerb {
    /// Make a team
    New(TeamSaid),
    /// Change what is said of a team
    Update(TeamSaid),
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a team with its keys and what it spent
    Show { id: String },
    /// Refuse all keys of a team until it is unblocked
    Block { id: String },
    /// Let the keys of a blocked team in again
    Unblock { id: String },
    /// Delete teams and revoke their keys
    Delete {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Let a team's budget count anew
    Reset { id: String },
}

#[derive(Debug, Args)]
struct TeamSaid {
    id: String,
    #[arg(long)]
    alias: Option<String>,
    /// The team's keys share KV prefixes, stored responses and cached answers
    #[arg(long)]
    shares: Option<bool>,
    #[command(flatten)]
    grants: Grants,
}

/// Adds what was said.
fn put(body: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

impl Grants {
    fn add_to(self, body: &mut Map<String, Value>) -> Result<()> {
        put(body, "models", self.models);
        put(body, "limits", self.limits);
        put(body, "budget_id", self.budget_id);
        put(body, "guardrails", self.guardrails);
        put(body, "rpm_limit", self.rpm);
        put(body, "tpm_limit", self.tpm);
        put(body, "max_parallel_requests", self.parallel);
        put(body, "max_output_tokens", self.max_output_tokens);
        let mut times = Vec::new();
        for (name, said) in [("max_budget", self.budget), ("max_tokens_budget", self.tokens)] {
            let Some(said) = said else { continue };
            let (amount, time) = said.split_once('/').map_or((said.as_str(), None), |(n, time)| (n, Some(time)));
            // Money goes as text, which is exact.
            let value = if name == "max_budget" { Value::from(amount) } else { Value::from(amount.parse::<i64>()?) };
            body.insert(name.to_owned(), value);
            times.extend(time.map(str::to_owned));
        }
        times.dedup();
        if times.len() > 1 {
            bail!("a budget has one time for its dollars and its tokens");
        }
        put(body, "budget_duration", times.pop());
        Ok(())
    }
}

impl Keys {
    pub fn run(self) -> Result<()> {
        let place = self.place;
        match self.what {
            KeyVerb::New(new) => {
                let answer = place.call(Call::post("/key/generate", new.body()?))?.json()?;
                reveal(&answer);
            }
            KeyVerb::Rotate { id, grace } => {
                let body = grace.map_or_else(|| json!({}), |grace| json!({ "grace_period": grace }));
                reveal(&place.call(Call::post(format!("/key/{}/regenerate", segment(&id)?), body))?.json()?);
            }
            KeyVerb::List { team, json } => {
                let team = team.map(|team| format!("&team_id={}", encoded(&team))).unwrap_or_default();
                let mut keys = Vec::new();
                for page in 1.. {
                    let answer = place.call(Call::get(format!("/key/list?size=1000&page={page}{team}")))?.json()?;
                    keys.extend(answer["keys"].as_array().cloned().unwrap_or_default());
                    if answer["total_pages"].as_u64().is_none_or(|n| page >= n) {
                        break;
                    }
                }
                if json { say!("{:#}", Value::from(keys)) } else { list(&keys) }
            }
            KeyVerb::Show { id } => {
                let answer = place.call(Call::get(format!("/key/info?key={}", encoded(&id))))?.json()?;
                say!("{:#}", answer["info"]);
            }
            KeyVerb::Block { id } => done(&place, "/key/block", json!({ "key": id }), "blocked")?,
            KeyVerb::Unblock { id } => done(&place, "/key/unblock", json!({ "key": id }), "open again")?,
            KeyVerb::Revoke { ids } => done(&place, "/key/delete", json!({ "keys": ids }), "revoked")?,
            KeyVerb::Reset { id } => {
                done(&place, &format!("/key/{}/reset_spend", segment(&id)?), json!({}), "counts anew")?;
            }
        }
        Ok(())
    }
}

impl NewKey {
    fn body(self) -> Result<Value> {
        let mut body = Map::new();
        put(&mut body, "key_alias", self.alias);
        put(&mut body, "team_id", self.team);
        put(&mut body, "user_id", self.user);
        put(&mut body, "tags", self.tags);
        put(&mut body, "roles", self.roles);
        put(&mut body, "allowed_cidrs", self.cidr);
        put(&mut body, "duration", self.expires);
        self.grants.add_to(&mut body)?;
        Ok(Value::Object(body))
    }
}

impl Teams {
    pub fn run(self) -> Result<()> {
        let place = self.place;
        match self.what {
            TeamVerb::New(said) => done(&place, "/team/new", said.body()?, "made")?,
            TeamVerb::Update(said) => done(&place, "/team/update", said.body()?, "changed")?,
            TeamVerb::List { json } => {
                let teams = place.call(Call::get("/team/list"))?.json()?;
                if json {
                    say!("{teams:#}");
                } else {
                    for team in teams.as_array().into_iter().flatten() {
                        let state = if team["blocked"] == true { "blocked" } else { "open" };
                        say!("{:<20} {:<8} {}", text(&team["team_id"]), state, text(&team["team_alias"]));
                    }
                }
            }
            TeamVerb::Show { id } => {
                say!("{:#}", place.call(Call::get(format!("/team/info?team_id={}", encoded(&id))))?.json()?);
            }
            TeamVerb::Block { id } => done(&place, "/team/block", json!({ "team_id": id }), "blocked")?,
            TeamVerb::Unblock { id } => done(&place, "/team/unblock", json!({ "team_id": id }), "open again")?,
            TeamVerb::Delete { ids } => done(&place, "/team/delete", json!({ "team_ids": ids }), "deleted")?,
            TeamVerb::Reset { id } => {
                done(&place, &format!("/team/{}/reset_spend", segment(&id)?), json!({}), "counts anew")?;
            }
        }
        Ok(())
    }
}

impl TeamSaid {
    fn body(self) -> Result<Value> {
        let mut body = Map::new();
        put(&mut body, "team_id", Some(self.id));
        put(&mut body, "team_alias", self.alias);
        put(&mut body, "shares", self.shares);
        self.grants.add_to(&mut body)?;
        Ok(Value::Object(body))
    }
}

fn done(place: &Place, path: &str, body: Value, word: &str) -> Result<()> {
    place.call(Call::post(path, body))?;
    say!("{word}");
    Ok(())
}

/// The key alone on stdout, so that `KEY=$(hearth keys new)` works.
fn reveal(answer: &Value) {
    say!("{}", text(&answer["key"]));
    eprintln!("id {}; the key is shown this once", text(&answer["key_id"]));
}

fn list(keys: &[Value]) {
    say!("{:<13} {:<20} {:<16} {:<8} {}", "id", "alias", "team", "state", "expires");
    for key in keys {
        let state = if key["blocked"] == true { "blocked" } else { "open" };
        say!(
            "{:<13} {:<20} {:<16} {:<8} {}",
            text(&key["key_id"]),
            text(&key["key_alias"]),
            text(&key["team_id"]),
            state,
            text(&key["expires"])
        );
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// A piece of a path.
fn segment(text: &str) -> Result<String> {
    if text.is_empty() {
        bail!("an id is empty");
    }
    Ok(encoded(text))
}

/// Percent-encoded, so that it can stand in a path or a query.
pub(super) fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
