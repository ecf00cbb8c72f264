//! What an operator grants: plain data of keys and teams, as it is kept and as limits read it.
//!
//! Money is in nano-USD (10⁻⁹ USD) as `i64`, never in floats; times are milliseconds since 1970.

use crate::chat::Class;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Nano-USD of one dollar.
pub const NUSD: i64 = 1_000_000_000;
/// The most money that is written anywhere: a billion dollars. Sums of it stay far from the end of `i64`.
pub const NUSD_MAX: i64 = NUSD * 1_000_000_000;

/// What a key may do. Everything that is not said is unlimited, except egress, which is never.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySpec {
    /// A name for people; unique among the keys that are not revoked.
    pub alias: Option<String>,
    /// Names of models, `*` for any run of characters; empty: all. A model's id here grants all its names.
    pub models: Vec<String>,
    pub team: Option<String>,
    /// Who the key was given to; spend is summed by it.
    pub user: Option<String>,
    pub tags: Vec<String>,
    /// Empty: `[Data]`.
    pub roles: Vec<Role>,
    /// Addresses the key may be used from; empty: all.
    pub cidr: Vec<IpNet>,
    /// Unix milliseconds; the key is refused from then on.
    pub expires: Option<i64>,
    pub limits: LimitSpec,
    pub budget: BudgetSpec,
    /// A budget that it shares with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_id: Option<String>,
    pub egress: Egress,
    pub audit: AuditLevel,
    /// Sets of `[guardrails.NAME]` that hold for its requests.
    pub guardrails: Vec<String>,
    /// Whatever the operator wants to find again; never interpreted.
    pub metadata: Map<String, Value>,
}

/// What the keys of a team may do together; a key's own spec narrows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeamSpec {
    pub alias: Option<String>,
    pub models: Vec<String>,
    pub limits: LimitSpec,
    pub budget: BudgetSpec,
    /// A budget that its keys share with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_id: Option<String>,
    pub egress: Egress,
    pub audit: AuditLevel,
    /// Sets of `[guardrails.NAME]` that hold for its keys' requests.
    pub guardrails: Vec<String>,
    /// The team is one tenant: its keys share KV prefixes, stored responses and cached answers. Otherwise each key is one.
    pub shares: bool,
    pub metadata: Map<String, Value>,
}

/// What all keys and teams that name a budget may do together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharedSpec {
    pub limits: LimitSpec,
    pub budget: BudgetSpec,
}

/// Limits of one scope. A value that is not said is the named set's (`[limits.NAME]` of `hearth.toml`), else unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSpec {
    /// A set of `hearth.toml`.
    pub name: Option<String>,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Tokens a minute, prompt and answer.
    pub tpm: Option<u64>,
    /// Requests that run at once.
    pub parallel: Option<u32>,
    /// Requests that wait at once.
    pub queue: Option<u32>,
    /// Most tokens of one answer.
    pub output: Option<u32>,
    /// The queue that its requests wait in.
    pub class: Option<Class>,
}

/// What a scope may spend in a period; with no period, ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSpec {
    pub max_nusd: Option<i64>,
    /// Above this the log warns; nothing is refused.
    pub soft_nusd: Option<i64>,
    /// Prompt and answer tokens.
    pub max_tokens: Option<i64>,
    pub period: Option<Period>,
}

/// How long a budget lasts. Windows are counted from the scope's creation, or, `calendar`, from the epoch's own hours,
/// days, weeks (Monday) and months in `tz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    pub n: u32,
    pub unit: PeriodUnit,
    #[serde(default)]
    pub calendar: bool,
    /// IANA name; `None`: UTC. Only months and calendar windows depend on it.
    #[serde(default)]
    pub tz: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeriodUnit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Requests to models.
    Data,
    /// Everything on the admin plane.
    Admin,
    /// Reading on the admin plane.
    Auditor,
    /// The keys of its own team.
    TeamAdmin,
}

/// Whether requests may be answered by someone else's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    #[default]
    Never,
    Allowed,
}

/// What is written about requests beside their ledger row. Content needs the operator's setting as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditLevel {
    #[default]
    Metadata,
    Content,
}

impl KeySpec {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role) || (self.roles.is_empty() && role == Role::Data)
    }

    /// Whether it may be used from `ip`; an unknown address is no address of a list.
    pub fn admits(&self, ip: Option<IpAddr>) -> bool {
        self.cidr.is_empty() || ip.is_some_and(|ip| self.cidr.iter().any(|net| net.contains(&ip.to_canonical())))
    }
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Data, Role::Admin, Role::Auditor, Role::TeamAdmin];

    pub fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Admin => "admin",
            Role::Auditor => "auditor",
            Role::TeamAdmin => "team-admin",
        }
    }
}

/// `30s`, `5m`, `12h`, `30d`, `2w`, `1mo`: LiteLLM's spelling, weeks added.
impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTS: &str = "a time such as 30s, 5m, 12h, 30d, 2w or 1mo";
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTS)?;
        let n: u32 = text[..at].parse().map_err(|_| EXPECTS)?;
        let unit = match &text[at..] {
            "s" => PeriodUnit::Second,
            "m" => PeriodUnit::Minute,
            "h" => PeriodUnit::Hour,
            "d" => PeriodUnit::Day,
            "w" => PeriodUnit::Week,
            "mo" => PeriodUnit::Month,
            _ => return Err(EXPECTS),
        };
        let period = Self { n, unit, calendar: false, tz: None };
        if n == 0 || period.approximate_ms() > Self::MS_MAX {
            return Err("a time of at least 1s and at most a hundred years");
        }
        Ok(period)
    }
}

impl Period {
    const MS_MAX: i64 = 100 * 366 * 86_400_000;

    /// Its length; of months, with 31 days.
    pub fn approximate_ms(&self) -> i64 {
        i64::from(self.n).saturating_mul(match self.unit {
            PeriodUnit::Second => 1000,
            PeriodUnit::Minute => 60_000,
            PeriodUnit::Hour => 3_600_000,
            PeriodUnit::Day => 86_400_000,
            PeriodUnit::Week => 7 * 86_400_000,
            PeriodUnit::Month => 31 * 86_400_000,
        })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            PeriodUnit::Second => "s",
            PeriodUnit::Minute => "m",
            PeriodUnit::Hour => "h",
            PeriodUnit::Day => "d",
            PeriodUnit::Week => "w",
            PeriodUnit::Month => "mo",
        };
        write!(f, "{}{unit}", self.n)
    }
}

/// Prices of a model in nano-USD for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Price {
    pub input: i64,
    /// Of prompt tokens that were in the KV cache.
    pub cached_input: i64,
    pub output: i64,
}

impl Price {
    /// What these tokens cost, in nano-USD, rounded up. `n_cached` of the `n_input` tokens are charged as cached.
    pub fn cost(&self, n_input: u64, n_cached: u64, n_output: u64) -> i64 {
        let n_cached = n_cached.min(n_input);
        let part = |n: u64, price: i64| i128::from(n) * i128::from(price);
        let sum =
            part(n_input - n_cached, self.input) + part(n_cached, self.cached_input) + part(n_output, self.output);
        i64::try_from((sum + 999_999) / 1_000_000).unwrap_or(i64::MAX)
    }

    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

/// A decimal amount of dollars (`10`, `0.15`, `1e-7` is not one) as nano-USD, exactly; `None`: not such a text, negative,
/// finer than a nano-USD or above [`NUSD_MAX`].
pub fn nusd(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 || whole.len() > 10 {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10_i64.pow(9 - u32::try_from(fraction.len()).ok()?);
    let fraction: i64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(NUSD)?.checked_add(fraction * scale).filter(|n| *n <= NUSD_MAX)
}

/// Nano-USD as a decimal text of dollars, without zeros at its end.
pub fn usd(nusd: i64) -> String {
    let sign = if nusd < 0 { "-" } else { "" };
    let n = nusd.unsigned_abs();
    let (whole, fraction) = (n / NUSD.unsigned_abs(), n % NUSD.unsigned_abs());
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_both_ways() {
        for (text, n) in [
            ("10", 10 * NUSD),
            ("0.15", 150_000_000),
            (".5", 500_000_000),
            ("0.000000001", 1),
            ("1000000000", NUSD_MAX),
            ("3.100", 3_100_000_000),
        ] {
            assert_eq!(nusd(text), Some(n), "{text}");
            assert_eq!(nusd(&usd(n)), Some(n), "{text}");
        }
        for text in ["", ".", "-1", "1e3", "0.0000000001", "1000000000.1", "1 ", "+1", "99999999999999999999"] {
            assert_eq!(nusd(text), None, "{text}");
        }
        assert_eq!((usd(-1_500_000_000).as_str(), usd(0).as_str()), ("-1.5", "0"));
    }

    #[test]
    fn a_price_is_of_a_million_tokens_and_rounds_up() {
        let price = Price { input: 150_000_000, cached_input: 75_000_000, output: 600_000_000 };
        assert_eq!(price.cost(1_000_000, 0, 1_000_000), 750_000_000);
        assert_eq!(price.cost(10, 4, 3), 6 * 150 + 4 * 75 + 3 * 600);
        assert_eq!(Price { input: 1, ..Default::default() }.cost(1, 0, 0), 1);
        assert_eq!(Price::default().cost(u64::MAX, 0, u64::MAX), 0);
        assert!(Price::default().is_free());
        for (input, cached_input, output) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
            assert!(!Price { input, cached_input, output }.is_free());
        }
        assert_eq!(Price { output: NUSD_MAX, ..Default::default() }.cost(0, 0, u64::MAX), i64::MAX);
    }

    #[test]
    fn periods_are_written_as_litellm_has_them() {
        for text in ["30s", "5m", "12h", "30d", "2w", "1mo"] {
            assert_eq!(text.parse::<Period>().expect("a period").to_string(), text);
        }
        for text in ["", "d", "0d", "1y", "-1d", "1.5h", "99999999mo", "30"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        // A hundred years in each unit, and one more.
        for (n, unit) in
            [(3_162_240_000_u64, "s"), (52_704_000, "m"), (878_400, "h"), (36_600, "d"), (5_228, "w"), (1_180, "mo")]
        {
            assert!(format!("{n}{unit}").parse::<Period>().is_ok(), "{n}{unit}");
            assert!(format!("{}{unit}", n + 1).parse::<Period>().is_err(), "{n}{unit} and one");
        }
        assert_eq!("2w".parse::<Period>().map(|period| period.approximate_ms()), Ok(14 * 86_400_000));
    }

    #[test]
    fn a_key_of_no_role_is_for_data_and_a_list_of_addresses_binds() {
        assert_eq!(Role::ALL.map(Role::name), ["data", "admin", "auditor", "team-admin"]);
        for role in Role::ALL {
            let said: Role = serde_json::from_value(role.name().into()).expect("the word that a spec has");
            let key = KeySpec { roles: vec![role], ..KeySpec::default() };
            assert!(said == role && Role::ALL.into_iter().filter(|other| key.has(*other)).eq([role]));
        }
        let key = KeySpec::default();
        assert!(key.has(Role::Data) && !key.has(Role::Admin) && key.admits(None));
        let bound = KeySpec { cidr: vec!["10.0.0.0/8".parse().unwrap()], ..key };
        assert!(bound.admits(Some("10.1.2.3".parse().unwrap())) && !bound.admits(None));
        assert!(bound.admits(Some("::ffff:10.1.2.3".parse().unwrap())));
        assert!(!bound.admits(Some("11.0.0.1".parse().unwrap())));
    }
}
