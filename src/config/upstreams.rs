//! `[[upstream]]`, and what makes an `[[alias]]` more than a name.

use super::raw::ConfigError;
use super::settings::Raw;
use super::tables::{AliasTable, Entry, Place};
use super::value::{Seconds, Written};
use super::{Origin, ServedModel};
use crate::dialect::remote::{Kind, Wire};
use crate::gateway::{
    BaseUrl, BreakerConfig, Condition, HealthConfig, Price, RULES_MAX, RetryConfig, RouteConfig, Secret, Timeouts,
    UpstreamConfig, nusd,
};
use std::path::PathBuf;
use std::time::Duration;

const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
const CONCURRENCY_MAX: i64 = 65_536;

/// One `[[upstream]]`, its secrets not yet read.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTable {
    pub name: String,
    pub base_url: String,
    /// `env:NAME` or `file:PATH`.
    pub api_key: Option<String>,
    pub model: String,
    pub kind: Option<String>,
    ca: Option<PathBuf>,
    timeouts: Timeouts,
    retry: RetryConfig,
    breaker: BreakerConfig,
    pub max_concurrency: u32,
    pub price: Price,
    pub guardrails: Vec<String>,
    health: Option<HealthConfig>,
    drains: bool,
    /// Where `name` is written.
    pub origin: Origin,
}

/// What an `[[alias]]` says beside its name and target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AliasRouting {
    /// Of `targets`, all but the first.
    pub equals: Vec<String>,
    pub fallbacks: Vec<String>,
    pub rules: Vec<(Condition, String)>,
    pub never_leaves: bool,
    pub min_logprob: Option<f32>,
    pub burst_after: Option<Duration>,
    pub reports_alias: bool,
    pub guardrails: Vec<String>,
}

pub(super) fn upstream_table(entries: Vec<Entry>, place: &Place) -> Result<UpstreamTable, ConfigError> {
    let mut origin = None;
    let (mut name, mut base_url, mut model) = (None, None, None);
    let mut table = UpstreamTable {
        name: String::new(),
        base_url: String::new(),
        api_key: None,
        model: String::new(),
        kind: None,
        ca: None,
        timeouts: Timeouts::default(),
        retry: RetryConfig::default(),
        breaker: BreakerConfig::default(),
        max_concurrency: 32,
        price: Price::default(),
        guardrails: Vec::new(),
        health: None,
        drains: false,
        origin: Origin::Default,
    };
    for mut entry in entries {
        match entry.key.as_str() {
            "name" => {
                origin = Some(entry.origin("name"));
                name = Some(entry.text()?);
            }
            "base_url" => base_url = Some(entry.text()?),
            "model" => model = Some(entry.text()?),
            "api_key" => table.api_key = Some(entry.text()?),
            "kind" => table.kind = Some(entry.word(&["openai", "anthropic", "hearth"])?),
            "ca" => table.ca = Some(entry.text()?.into()),
            "max_concurrency" => table.max_concurrency = entry.whole(1, CONCURRENCY_MAX)?,
            "guardrails" => table.guardrails = entry.texts()?,
            "price" => price(&mut table.price, entry.inner()?)?,
            "health" => table.health = Some(health(entry.inner()?)?),
            "on_abort" => table.drains = entry.word(&["close", "drain"])? == "drain",
            "timeouts" => timeouts(&mut table.timeouts, entry.inner()?)?,
            "retry" => retry(&mut table.retry, entry.inner()?)?,
            "breaker" => breaker(&mut table.breaker, entry.inner()?)?,
            _ => return Err(entry.unknown()),
        }
    }
    let missing = || place.fault("an [[upstream]] has a name, a base_url and a model");
    (table.name, table.base_url) = (name.ok_or_else(missing)?, base_url.ok_or_else(missing)?);
    (table.model, table.origin) = (model.ok_or_else(missing)?, origin.ok_or_else(missing)?);
    Ok(table)
}

/// Dollars for a million tokens, as numbers or, to be exact, as texts.
fn price(price: &mut Price, entries: Vec<Entry>) -> Result<(), ConfigError> {
    for entry in entries {
        let part = match entry.key.as_str() {
            "input" => &mut price.input,
            "cached_input" => &mut price.cached_input,
            "output" => &mut price.output,
            _ => return Err(entry.unknown()),
        };
        let text = super::value::toml_texts(&entry.value, false).and_then(|texts| texts.into_iter().next());
        let amount = text.and_then(|text| nusd(&text));
        *part = amount.ok_or_else(|| entry.fault("dollars for a million tokens are expected, as 0.15".to_owned()))?;
    }
    Ok(())
}

fn timeouts(timeouts: &mut Timeouts, entries: Vec<Entry>) -> Result<(), ConfigError> {
    for entry in entries {
        let time = match entry.key.as_str() {
            "connect" => &mut timeouts.connect,
            "first_byte" => &mut timeouts.first_byte,
            "idle" => &mut timeouts.idle,
            "total" => &mut timeouts.total,
            _ => return Err(entry.unknown()),
        };
        *time = entry.time()?;
    }
    Ok(())
}

fn health(entries: Vec<Entry>) -> Result<HealthConfig, ConfigError> {
    let mut health = HealthConfig::default();
    for mut entry in entries {
        match entry.key.as_str() {
            "path" => {
                health.path = entry.text()?;
                if !health.path.starts_with('/') || !health.path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(entry.fault("a path behind the base address is expected, as /models".to_owned()));
                }
            }
            "every" => health.every = entry.time()?,
            "timeout" => health.timeout = entry.time()?,
            "failures" => health.failures = entry.whole(1, 100)?,
            _ => return Err(entry.unknown()),
        }
    }
    Ok(health)
}

fn retry(retry: &mut RetryConfig, entries: Vec<Entry>) -> Result<(), ConfigError> {
    for entry in entries {
        match entry.key.as_str() {
            "attempts" => retry.attempts = entry.whole(1, 10)?,
            "base" => retry.base = entry.time()?,
            "factor" => retry.factor = entry.decimal(1.0, 10.0)?,
            "max" => retry.max = entry.time()?,
            "budget_percent" => retry.budget_percent = entry.whole(0, 100)?,
            "min_per_sec" => retry.min_per_sec = entry.whole(0, 1000)?,
            _ => return Err(entry.unknown()),
        }
    }
    Ok(())
}

fn breaker(breaker: &mut BreakerConfig, entries: Vec<Entry>) -> Result<(), ConfigError> {
    for entry in entries {
        match entry.key.as_str() {
            "consecutive_failures" => breaker.consecutive_failures = entry.whole(1, 1000)?,
            "error_rate" => breaker.error_rate = entry.decimal(0.01, 1.0)?,
            "min_samples" => breaker.min_samples = entry.whole(1, 1000)?,
            "window" => breaker.window = entry.time()?,
            "open_for" => breaker.open_for = entry.time()?,
            "max_open" => breaker.max_open = entry.time()?,
            // One request at a time tries; more would only be more failures.
            "probes" => {
                entry.whole(1, 1)?;
            }
            _ => return Err(entry.unknown()),
        }
    }
    Ok(())
}

/// One key of an `[[alias]]`; `None`: it is none of these.
pub(super) fn alias_entry(routing: &mut AliasRouting, entry: &mut Entry) -> Result<Option<()>, ConfigError> {
    match entry.key.as_str() {
        "fallbacks" => routing.fallbacks = entry.texts()?,
        "guardrails" => routing.guardrails = entry.texts()?,
        "egress" => routing.never_leaves = entry.word(&["never", "allowed"])? == "never",
        "burst_after" => routing.burst_after = Some(entry.time()?),
        "min_logprob" => routing.min_logprob = Some(entry.decimal(-100.0, 0.0)? as f32),
        "report_model_as" => routing.reports_alias = entry.word(&["alias", "target"])? == "alias",
        "route" => {
            for rule in entry.tables(RULES_MAX)? {
                routing.rules.push(rule_of(rule, entry)?);
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(()))
}

fn rule_of(entries: Vec<Entry>, whole: &Entry) -> Result<(Condition, String), ConfigError> {
    let (mut when, mut target) = (None, None);
    for mut entry in entries {
        match entry.key.as_str() {
            "when" => {
                let text = entry.text()?;
                when = Some(Condition::parse(&text).map_err(|error| entry.fault(format!("{text:?}: {error}")))?);
            }
            "target" => target = Some(entry.text()?),
            _ => return Err(entry.unknown()),
        }
    }
    when.zip(target).ok_or_else(|| whole.fault("a route has a when and a target".to_owned()))
}

impl Raw {
    /// All upstreams, their keys read.
    pub(super) fn upstreams(
        &self,
        models: &[ServedModel],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<UpstreamConfig>, ConfigError> {
        let mut upstreams: Vec<UpstreamConfig> = Vec::new();
        for table in &self.tables.upstreams {
            let refuse = |message: String| ConfigError::Rule { origin: table.origin.clone(), message };
            let is_taken = models.iter().any(|model| model.config.id.eq_ignore_ascii_case(&table.name))
                || upstreams.iter().any(|upstream| upstream.name.eq_ignore_ascii_case(&table.name));
            if is_taken {
                return Err(refuse(format!("the name {:?} is given twice", table.name)));
            }
            if !table.name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(refuse(format!("{:?} is not plain ASCII without spaces", table.name)));
            }
            let base_url = BaseUrl::new(&table.base_url)
                .ok_or_else(|| refuse("base_url is no plain http(s) address such as https://host/v1".to_owned()))?;
            let kind = match table.kind.as_deref() {
                Some("anthropic") => Kind::Anthropic,
                Some("hearth") => Kind::Hearth,
                _ => Kind::OpenAi,
            };
            let newer_limit = kind == Kind::OpenAi && base_url.host().eq_ignore_ascii_case("api.openai.com");
            let upstream = UpstreamConfig {
                name: table.name.clone(),
                wire: Wire { kind, model: table.model.clone(), newer_limit },
                api_key: table.api_key.as_deref().map(|key| secret(key, &variable).map_err(refuse)).transpose()?,
                base_url,
                timeouts: table.timeouts.clone(),
                retry: table.retry.clone(),
                breaker: table.breaker.clone(),
                max_concurrency: table.max_concurrency,
                price: table.price,
                ca: table.ca.clone(),
                guardrails: table.guardrails.clone(),
                health: table.health.clone(),
                drains: table.drains,
            };
            self.know_guardrails(&table.guardrails, &table.origin)?;
            upstream.check().map_err(refuse)?;
            upstreams.push(upstream);
        }
        Ok(upstreams)
    }

    /// Files that upstreams' keys and certificates are read from.
    pub(super) fn upstream_files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let files = |table: &UpstreamTable| {
            let key = table.api_key.as_deref().and_then(|key| key.strip_prefix("file:"));
            key.map(PathBuf::from).into_iter().chain(table.ca.clone()).collect::<Vec<_>>()
        };
        self.tables.upstreams.iter().flat_map(files)
    }

    /// The aliases that are routes, every target there.
    pub(super) fn routes(
        &self,
        models: &[ServedModel],
        upstreams: &[UpstreamConfig],
    ) -> Result<Vec<RouteConfig>, ConfigError> {
        let is_model = |name: &str| models.iter().any(|model| model.config.id.eq_ignore_ascii_case(name));
        let is_upstream = |name: &str| upstreams.iter().any(|upstream| upstream.name.eq_ignore_ascii_case(name));
        let mut routes = Vec::new();
        for AliasTable { name, model, routing, origin } in &self.tables.aliases {
            let targets = std::iter::once(model)
                .chain(&routing.equals)
                .chain(&routing.fallbacks)
                .chain(routing.rules.iter().map(|(_, to)| to));
            for target in targets {
                if !is_model(target) && !is_upstream(target) {
                    let message = format!("there is no model or upstream named {target:?}");
                    return Err(ConfigError::Rule { origin: origin.clone(), message });
                }
            }
            self.know_guardrails(&routing.guardrails, origin)?;
            if *routing == AliasRouting::default() && is_model(model) {
                continue; // a name, and no more
            }
            routes.push(RouteConfig {
                name: name.clone(),
                target: model.clone(),
                equals: routing.equals.clone(),
                fallbacks: routing.fallbacks.clone(),
                rules: routing.rules.clone(),
                never_leaves: routing.never_leaves,
                min_logprob: routing.min_logprob,
                burst_after: routing.burst_after,
                reports_alias: routing.reports_alias,
                guardrails: routing.guardrails.clone(),
            });
        }
        Ok(routes)
    }
}

/// Errors never hold the key.
fn secret(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Secret, String> {
    let found = secret_text("api_key", text, variable)?;
    Secret::new(found.trim()).ok_or_else(|| "api_key: empty, or not plain ASCII without spaces".to_owned())
}

/// Secrets are not written into the file: `key` says where one is. Errors never hold it.
pub(super) fn secret_text(key: &str, text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    Ok(if let Some(name) = text.strip_prefix("env:") {
        variable(name).ok_or_else(|| format!("{key}: the variable {name} is not set"))?
    } else if let Some(path) = text.strip_prefix("file:") {
        let refuse = |what: String| format!("{key}: {path}: {what}");
        let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > KEY_FILE_BYTES_MAX {
            return Err(refuse(format!("not a file of at most {KEY_FILE_BYTES_MAX} bytes")));
        }
        std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?
    } else {
        return Err(format!("{key} is env:NAME or file:PATH, not the key itself"));
    })
}

impl Entry {
    fn time(&self) -> Result<Duration, ConfigError> {
        let texts = super::value::toml_texts(&self.value, false);
        let time = texts.and_then(|texts| Seconds::from_texts(&texts)).map(|Seconds(time)| time);
        let least = Duration::from_millis(1);
        time.filter(|time| *time >= least).ok_or_else(|| self.fault(format!("{} is expected", Seconds::EXPECTS)))
    }

    pub(super) fn whole(&self, min: i64, max: i64) -> Result<u32, ConfigError> {
        let number = self.value.as_integer().filter(|n| (min..=max).contains(n));
        let number = number.and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.fault(format!("a whole number within {min}..={max} is expected")))
    }

    pub(super) fn decimal(&self, min: f64, max: f64) -> Result<f64, ConfigError> {
        let number = self.value.as_float().or_else(|| self.value.as_integer().map(|n| n as f64));
        let number = number.filter(|n| (min..=max).contains(n));
        number.ok_or_else(|| self.fault(format!("a number within {min}..={max} is expected")))
    }

    pub(super) fn word(&mut self, allowed: &[&str]) -> Result<String, ConfigError> {
        let word = self.text()?;
        if allowed.contains(&word.as_str()) {
            return Ok(word);
        }
        Err(self.fault(format!("{word:?} is none of {}", allowed.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Raw};
    use crate::dialect::remote::Kind;
    use crate::gateway::Price;
    use std::time::Duration;

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("hearth.toml");
        let secret = dir.path().join("key");
        std::fs::write(&secret, "sk-file\n").expect("a writable folder");
        let text = text.replace("KEYFILE", &secret.display().to_string());
        std::fs::write(&path, text).expect("a writable folder");
        Raw::gather(Some(&path), |_| None, &[])?.resolve()
    }

    const MODEL: &str = "model = \"scripted\"\n";

    #[test]
    fn upstreams_and_routes_are_read_whole() {
        let text = format!(
            "{MODEL}egress = \"allowed\"\n{}",
            r#"
            cache = true
            cache_ttl = "1m"
            [[upstream]]
            name = "cloud"
            base_url = "https://api.openai.com/v1"
            api_key = "file:KEYFILE"
            model = "gpt-4o-mini"
            timeouts = { connect = "1s", first_byte = 9, idle = "200ms", total = "1m" }
            retry = { attempts = 2, base = "1ms", factor = 1.5, max = "2s", budget_percent = 10, min_per_sec = 0 }
            breaker = { consecutive_failures = 3, error_rate = 0.25, min_samples = 4, window = "5s", open_for = "6s", max_open = "7s", probes = 1 }
            max_concurrency = 7
            health = { path = "/health", every = "1s", timeout = "100ms", failures = 3 }
            on_abort = "drain"
            price = { input = 0.15, cached_input = "0.075", output = 1 }
            [[upstream]]
            name = "box"
            base_url = "http://10.0.0.2:8080/v1"
            model = "big"
            kind = "hearth"
            [[alias]]
            name = "gpt-4o-mini"
            target = "scripted"
            fallbacks = ["box", "cloud"]
            min_logprob = -0.5
            burst_after = "2s"
            report_model_as = "alias"
            route = [{ when = "prompt_tokens > 6000", target = "cloud" }]
            [[alias]]
            name = "plain"
            model = "scripted"
            [[alias]]
            name = "away"
            targets = ["box", "cloud"]
            egress = "never"
            "#
        );
        let routing = resolve(&text).expect("a good file").gateway.routing;
        assert!(routing.may_leave && routing.cache.enabled && routing.cache.ttl == Duration::from_secs(60));
        let [cloud, there] = routing.upstreams.as_slice() else { unreachable!("two upstreams") };
        assert_eq!((cloud.wire.kind, cloud.wire.newer_limit, cloud.max_concurrency), (Kind::OpenAi, true, 7));
        let price = Price { input: 150_000_000, cached_input: 75_000_000, output: 1_000_000_000 };
        assert_eq!((cloud.price, there.price), (price, Price::default()));
        let health = cloud.health.as_ref().expect("it is asked");
        assert_eq!((health.path.as_str(), health.every, health.failures), ("/health", Duration::from_secs(1), 3));
        assert!(cloud.drains && !there.drains && there.health.is_none());
        assert!(cloud.api_key.is_some() && there.api_key.is_none());
        assert_eq!((cloud.timeouts.connect, cloud.timeouts.idle), (Duration::from_secs(1), Duration::from_millis(200)));
        assert_eq!((cloud.retry.attempts, cloud.breaker.consecutive_failures, there.retry.attempts), (2, 3, 3));
        assert_eq!((there.wire.kind, there.wire.newer_limit), (Kind::Hearth, false));
        let [mini, away] = routing.routes.as_slice() else { unreachable!("a plain alias is no route") };
        assert_eq!((mini.target.as_str(), mini.fallbacks.len(), mini.rules.len()), ("scripted", 2, 1));
        assert_eq!((mini.min_logprob, mini.reports_alias, away.never_leaves), (Some(-0.5), true, true));
        assert_eq!((away.target.as_str(), away.equals.as_slice()), ("box", &["cloud".to_owned()][..]));
        assert_eq!((mini.burst_after, away.burst_after), (Some(Duration::from_secs(2)), None));
        assert!(!resolve(MODEL).expect("a good file").gateway.routing.may_leave);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let upstream = "[[upstream]]\nname = \"u\"\nbase_url = \"http://h/v1\"\nmodel = \"m\"\n";
        let message = |text: String| resolve(&text).expect_err("a bad file").to_string();
        for (text, words) in [
            (format!("{MODEL}[[upstream]]\nname = \"u\"\n"), "an [[upstream]] has a name, a base_url and a model"),
            (format!("{MODEL}{upstream}nam = 1\n"), "line 6: unknown key \"nam\""),
            (format!("{MODEL}{upstream}{upstream}"), "line 7): the name \"u\" is given twice"),
            (format!("{MODEL}{}", upstream.replace("\"u\"", "\"scripted\"")), "is given twice"),
            (format!("{MODEL}{}", upstream.replace("http:", "ftp:")), "no plain http(s) address"),
            (format!("{MODEL}{upstream}api_key = \"sk-1\"\n"), "not the key itself"),
            (format!("{MODEL}{upstream}api_key = \"env:HEARTH_TEST_NOTHING\"\n"), "HEARTH_TEST_NOTHING is not set"),
            (format!("{MODEL}{upstream}kind = \"grpc\"\n"), "\"grpc\" is none of openai, anthropic, hearth"),
            (format!("{MODEL}{upstream}retry = {{ attempts = 11 }}\n"), "within 1..=10"),
            (format!("{MODEL}{upstream}timeouts = {{ idle = 0 }}\n"), "a time such as"),
            (format!("{MODEL}{upstream}breaker = {{ odd = 0 }}\n"), "unknown key \"odd\""),
            (format!("{MODEL}{upstream}health = {{ path = \"models\" }}\n"), "behind the base address"),
            (format!("{MODEL}[[alias]]\nname = \"a\"\ntargets = []\n"), "an [[alias]] has a name and a model"),
            (format!("{MODEL}{upstream}breaker = 5\n"), "does not belong here"),
            (format!("{MODEL}[[alias]]\nname = \"a\"\ntarget = \"x\"\n"), "no model or upstream named \"x\""),
            (format!("{MODEL}[[alias]]\nname = \"a\"\ntarget = \"scripted\"\nfallbacks = [\"x\"]\n"), "named \"x\""),
            (
                format!(
                    "{MODEL}[[alias]]\nname = \"a\"\ntarget = \"scripted\"\nroute = [{{ when = \"x > 1\", target = \"scripted\" }}]\n"
                ),
                "is none of prompt_tokens",
            ),
            (
                format!(
                    "{MODEL}[[alias]]\nname = \"a\"\ntarget = \"scripted\"\nroute = [{{ target = \"scripted\" }}]\n"
                ),
                "a when and",
            ),
            (format!("{MODEL}{upstream}price = {{ input = -1 }}\n"), "dollars for a million"),
            (format!("{MODEL}egress = \"sometimes\"\n"), "allowed or never"),
        ] {
            let got = message(text.clone());
            assert!(got.contains(words), "{text}\n{got}\n{words}");
            assert!(!got.contains("sk-1"), "{got}");
        }
    }
}
