//! Which targets a request is offered to, in which order, and whether any of them may be somebody else's.
//!
//! **Invariant:** every level that has a say on leaving this server must allow it: the server, the alias, the models of its
//! chain, the key and its team, the request itself. Nothing said is "no" for the server and for keys, and "as the server
//! has it" for aliases and models. An upstream that may not be asked is not in the chain at all.

use super::cache::CacheConfig;
use super::models::Known;
use super::names::{fits, is_wild};
use super::settle::settle;
use super::upstream::{UpstreamConfig, UpstreamStatus};
use super::{Caller, Gateway, Hints, Principal};
use crate::chat::{Sampling, SamplingParams};
use std::sync::Arc;
use std::time::Duration;

/// Targets of one request, its alternatives included.
pub const CHAIN_MAX: usize = 4;
/// Servers like this one that a request may come through.
pub const HOPS_MAX: u8 = 3;
/// Most rules of one alias, and fallbacks.
pub const RULES_MAX: usize = 32;

/// What the operator says about where requests go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoutingConfig {
    pub cache: CacheConfig,
    /// Whether requests may be answered by upstreams at all.
    pub may_leave: bool,
    /// Models whose requests never leave, whatever alias they came under.
    pub kept: Vec<String>,
    pub upstreams: Vec<UpstreamConfig>,
    pub routes: Vec<RouteConfig>,
}

/// An alias that is more than a name. Targets are ids of models or names of upstreams; a model comes first where both are.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// May be a pattern.
    pub name: String,
    pub target: String,
    /// Targets that are as good as the first: each request is asked of the better of two taken by chance.
    pub equals: Vec<String>,
    /// Asked in this order when the target can't answer.
    pub fallbacks: Vec<String>,
    /// The first that holds names the target instead.
    pub rules: Vec<(Condition, String)>,
    pub never_leaves: bool,
    /// A whole answer whose tokens' mean log-probability is below this is asked of the next target, too.
    pub min_logprob: Option<f32>,
    /// A model here that would have the request wait longer than this for a slot is passed over, as long as others are
    /// left; `None`: only a full queue is.
    pub burst_after: Option<Duration>,
    /// Answers carry the name that was asked for instead of the target's.
    pub reports_alias: bool,
    /// Sets of `[guardrails.NAME]` that hold for its requests, whoever answers them.
    pub guardrails: Vec<String>,
}

/// Tests that must all hold: `prompt_tokens > 6000 and header.x-hearth-task == 'reasoning'`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Vec<Test>);

#[derive(Debug, Clone, PartialEq)]
struct Test {
    subject: Subject,
    relation: Relation,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Subject {
    /// An estimate, a token for four bytes: the decision must not wait for a tokenizer.
    PromptTokens,
    Header(String),
    Key,
    Team,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Relation {
    Is,
    IsNot,
    Below,
    Above,
    AtMost,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
}

impl Condition {
    /// Errors: what was expected, for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words = words(text)?;
        let mut tests = Vec::new();
        for words in words.split(|word| *word == Word::Plain("and")) {
            tests.push(test(words)?);
        }
        Ok(Self(tests))
    }

    fn holds(&self, prompt_bytes: usize, caller: &Caller) -> bool {
        self.0.iter().all(|test| test.holds(prompt_bytes, caller))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Word<'a> {
    Plain(&'a str),
    Quoted(&'a str),
}

fn words(text: &str) -> Result<Vec<Word<'_>>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = if first == '\'' || first == '"' {
            let end = rest[1..].find(first).ok_or("a quote that is not closed")?;
            (Word::Quoted(&rest[1..=end]), &rest[end + 2..])
        } else {
            let is_sign = |c: char| "=!<>".contains(c);
            let ends = |c: char| c.is_whitespace() || c == '\'' || c == '"' || is_sign(c) != is_sign(first);
            let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
            (Word::Plain(word), after)
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

fn test(words: &[Word]) -> Result<Test, String> {
    let [Word::Plain(subject), Word::Plain(relation), value] = words else {
        return Err("a test has three words, as in prompt_tokens > 6000".to_owned());
    };
    let relation = match *relation {
        "==" => Relation::Is,
        "!=" => Relation::IsNot,
        "<" => Relation::Below,
        ">" => Relation::Above,
        "<=" => Relation::AtMost,
        ">=" => Relation::AtLeast,
        other => return Err(format!("{other:?} is none of == != < > <= >=")),
    };
    let subject = match *subject {
        "prompt_tokens" => Subject::PromptTokens,
        "key" => Subject::Key,
        "team" => Subject::Team,
        other => match other.strip_prefix("header.").map(str::to_ascii_lowercase) {
            Some(name) if name.starts_with(Hints::HEADER_PREFIX) => Subject::Header(name),
            Some(_) => return Err(format!("only headers that begin with {} can be looked at", Hints::HEADER_PREFIX)),
            None => return Err(format!("{other:?} is none of prompt_tokens, header.NAME, key, team")),
        },
    };
    let value = match (&subject, value) {
        (Subject::PromptTokens, Word::Plain(text)) => {
            Value::Number(text.parse().map_err(|_| format!("{text:?} is not a whole number"))?)
        }
        (Subject::PromptTokens, Word::Quoted(_)) => return Err("prompt_tokens is compared with a number".to_owned()),
        (_, Word::Quoted(text)) if matches!(relation, Relation::Is | Relation::IsNot) => {
            Value::Text((*text).to_owned())
        }
        (_, Word::Quoted(_)) => return Err("texts are only compared by == and !=".to_owned()),
        (_, Word::Plain(text)) => return Err(format!("{text:?} has no quotes")),
    };
    Ok(Test { subject, relation, value })
}

impl Test {
    fn holds(&self, prompt_bytes: usize, caller: &Caller) -> bool {
        match &self.value {
            Value::Number(number) => {
                let n_tokens = (prompt_bytes / 4) as u64;
                match self.relation {
                    Relation::Is => n_tokens == *number,
                    Relation::IsNot => n_tokens != *number,
                    Relation::Below => n_tokens < *number,
                    Relation::Above => n_tokens > *number,
                    Relation::AtMost => n_tokens <= *number,
                    Relation::AtLeast => n_tokens >= *number,
                }
            }
            Value::Text(text) => {
                let given: [Option<&str>; 2] = match &self.subject {
                    Subject::Header(name) => [caller.hints.header(name), None],
                    Subject::Key => caller.principal.key_names(),
                    Subject::Team => [caller.principal.team(), None],
                    Subject::PromptTokens => [None, None],
                };
                given.iter().flatten().any(|given| given == text) == (self.relation == Relation::Is)
            }
        }
    }
}

/// Where a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hop {
    /// By index among the models.
    Home(usize),
    /// By index among the upstreams.
    Away(usize),
}

/// All routes of a server.
#[derive(Default)]
pub(super) struct Routes {
    may_leave: bool,
    /// Indexes of models whose requests never leave.
    kept: Vec<usize>,
    routes: Vec<Route>,
}

pub(super) struct Route {
    pub config: Arc<RouteConfig>,
    target: Hop,
    equals: Vec<Hop>,
    fallbacks: Vec<Hop>,
    rules: Vec<(Condition, Hop)>,
}

impl Routes {
    /// Targets that are not there are left out; whoever reads the configuration has refused them.
    pub(super) fn new(config: &RoutingConfig, models: &[&str]) -> Self {
        let model = |name: &str| models.iter().position(|id| id.eq_ignore_ascii_case(name));
        let upstream = |name: &str| config.upstreams.iter().position(|it| it.name.eq_ignore_ascii_case(name));
        let hop = |name: &String| model(name).map(Hop::Home).or_else(|| upstream(name).map(Hop::Away));
        let route = |route: &RouteConfig| {
            Some(Route {
                target: hop(&route.target)?,
                equals: route.equals.iter().filter_map(hop).collect(),
                fallbacks: route.fallbacks.iter().filter_map(hop).collect(),
                rules: route.rules.iter().filter_map(|(when, to)| Some((when.clone(), hop(to)?))).collect(),
                config: Arc::new(route.clone()),
            })
        };
        Self {
            may_leave: config.may_leave,
            kept: config.kept.iter().filter_map(|name| model(name)).collect(),
            routes: config.routes.iter().filter_map(route).collect(),
        }
    }

    /// The route that `name` means: one of this very name, else the pattern that says most.
    pub(super) fn find(&self, name: &str) -> Option<&Route> {
        let fitting = self.routes.iter().filter(|route| fits(&route.config.name, name));
        fitting.max_by_key(|route| route.weight())
    }

    /// The targets of a request in their order; empty where all of them are elsewhere and it may not leave. `balance`
    /// orders those that are equals.
    pub(super) fn chain(
        &self,
        route: &Route,
        prompt_bytes: usize,
        caller: &Caller,
        balance: impl FnOnce(&mut Vec<Hop>),
    ) -> Vec<Hop> {
        let may_leave = self.may_leave(route, caller);
        let is_open = |hop: &Hop| may_leave || matches!(hop, Hop::Home(_));
        let ruled = route.rules.iter().filter(|(_, hop)| is_open(hop));
        let first = ruled.into_iter().find(|(when, _)| when.holds(prompt_bytes, caller)).map(|(_, hop)| *hop);
        let mut equals: Vec<Hop> =
            std::iter::once(route.target).chain(route.equals.iter().copied()).filter(is_open).collect();
        balance(&mut equals);
        // There is room for two of them at least, and for the fallbacks before more.
        equals.truncate(CHAIN_MAX.saturating_sub(route.fallbacks.len()).max(2));
        let mut chain: Vec<Hop> = Vec::with_capacity(CHAIN_MAX);
        for hop in first.into_iter().chain(equals).chain(route.fallbacks.iter().copied()).filter(is_open) {
            if chain.len() < CHAIN_MAX && !chain.contains(&hop) {
                chain.push(hop);
            }
        }
        chain
    }

    fn may_leave(&self, route: &Route, caller: &Caller) -> bool {
        let rules = route.rules.iter().map(|(_, hop)| *hop);
        let mut all = rules.chain([route.target]).chain(route.equals.iter().chain(&route.fallbacks).copied());
        self.may_leave
            && !route.config.never_leaves
            && !caller.hints.never_leaves
            && caller.hints.hop < HOPS_MAX
            && caller.principal.may_leave()
            && !all.any(|hop| matches!(hop, Hop::Home(idx) if self.kept.contains(&idx)))
    }
}

impl Route {
    /// Whether a key may use it: granted by the alias's name, or by its target's.
    pub(super) fn is_open_to(&self, principal: &Principal, name: &str) -> bool {
        principal.may_use(&self.config.target, name) || principal.may_use(&self.config.name, name)
    }

    /// Whether the target is a model here.
    pub(super) fn has_home(&self) -> bool {
        matches!(self.target, Hop::Home(_))
    }

    /// Names before patterns, and those that say more before others.
    pub(super) fn weight(&self) -> (bool, usize) {
        let name = &self.config.name;
        (!is_wild(name), name.bytes().filter(|byte| *byte != b'*').count())
    }
}

impl Gateway {
    /// Whether the name is one of an alias with targets of its own: which of them answers, a request's answer tells.
    pub fn is_routed(&self, name: Option<&str>) -> bool {
        self.live.load().route(name).is_some()
    }

    /// Sampling of the model that answers to a name, where a request says this, as far as the model is known now.
    pub fn shown_sampling(&self, caller: &Caller, name: Option<&str>, said: Sampling) -> SamplingParams {
        match self.known(caller, name) {
            Some(known) => settle(said, &known.config, &known.description),
            None => said.settle(),
        }
    }

    /// Tokens of the context of that model; of one that is not known, more than there are.
    pub fn shown_context(&self, caller: &Caller, name: Option<&str>) -> u32 {
        self.known(caller, name).map_or(u32::MAX, |known| known.description.n_ctx)
    }

    /// What is known of the model here that a name means first.
    fn known(&self, caller: &Caller, name: Option<&str>) -> Option<Known> {
        let home = match self.live.load().route(name) {
            Some(Route { target: Hop::Home(idx), .. }) => Some(*idx),
            Some(_) => None,
            None => self.find(&caller.principal, name).ok(),
        };
        home.and_then(|idx| self.models.known(idx))
    }

    /// Names of aliases that no model here answers to, for lists.
    pub fn remote_names(&self, principal: &Principal) -> Vec<String> {
        let is_remote = |route: &&Route| {
            let name = &route.config.name;
            matches!(route.target, Hop::Away(_)) && !is_wild(name) && route.is_open_to(principal, name)
        };
        let live = self.live.load();
        live.routes.routes.iter().filter(is_remote).map(|route| route.config.name.clone()).collect()
    }

    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.live.load().upstreams.iter().map(|upstream| upstream.status()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::upstream::BaseUrl;

    fn upstream(name: &str) -> UpstreamConfig {
        use crate::dialect::remote::{Kind, Wire};
        UpstreamConfig {
            name: name.to_owned(),
            base_url: BaseUrl::new("http://127.0.0.1:1/v1").expect("an address"),
            api_key: None,
            wire: Wire { kind: Kind::OpenAi, model: "m".into(), newer_limit: false },
            timeouts: Default::default(),
            retry: Default::default(),
            breaker: Default::default(),
            max_concurrency: 1,
            price: Default::default(),
            ca: None,
            guardrails: Vec::new(),
            health: None,
            drains: false,
        }
    }

    fn route(name: &str, target: &str, fallbacks: &[&str], rules: &[(&str, &str)]) -> RouteConfig {
        let rule = |(when, to): &(&str, &str)| (Condition::parse(when).expect("a condition"), (*to).to_owned());
        RouteConfig {
            name: name.to_owned(),
            target: target.to_owned(),
            equals: Vec::new(),
            fallbacks: fallbacks.iter().map(|name| (*name).to_owned()).collect(),
            rules: rules.iter().map(rule).collect(),
            never_leaves: false,
            min_logprob: None,
            burst_after: None,
            reports_alias: false,
            guardrails: Vec::new(),
        }
    }

    fn config(routes: Vec<RouteConfig>) -> RoutingConfig {
        let upstreams = vec![upstream("cloud"), upstream("other"), upstream("third")];
        RoutingConfig { may_leave: true, upstreams, routes, ..Default::default() }
    }

    fn with_header(value: &str) -> Caller {
        let hints = Hints { headers: vec![("x-hearth-task".into(), value.into())], ..Default::default() };
        Caller { hints, ..Default::default() }
    }

    #[test]
    fn conditions_are_read_or_refused_with_a_reason() {
        let holds = |text: &str, n_bytes: usize, task: &str| {
            Condition::parse(text).expect(text).holds(n_bytes, &with_header(task))
        };
        assert!(holds("prompt_tokens > 6000", 24_004, "") && !holds("prompt_tokens>6000", 24_003, ""));
        assert!(holds("prompt_tokens<=1 and header.X-Hearth-Task=='a b'", 4, "a b"));
        assert!(!holds("prompt_tokens <= 1 and header.x-hearth-task == \"a\"", 4, "b"));
        assert!(holds("header.x-hearth-other != 'x'", 0, "") && !holds("header.x-hearth-other == 'x'", 0, ""));
        assert!(!holds("key == 'k'", 0, "") && holds("team != 't'", 0, ""));
        for (text, words) in [
            ("", "three words"),
            ("prompt_tokens >", "three words"),
            ("prompt_tokens > 1 and", "three words"),
            ("prompt_tokens ~ 1", "is none of =="),
            ("prompt_tokens = 1", "is none of =="),
            ("prompt_tokens > many", "not a whole number"),
            ("prompt_tokens > '1'", "a number"),
            ("tokens > 1", "is none of prompt_tokens"),
            ("header.authorization == 'x'", "begin with x-hearth-"),
            ("header.x-hearth-task == x", "has no quotes"),
            ("header.x-hearth-task > 'x'", "only compared by"),
            ("header.x-hearth-task == 'x", "not closed"),
        ] {
            let error = Condition::parse(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn rules_name_the_first_target_and_the_rest_follows() {
        let rules = [("prompt_tokens > 10", "other"), ("header.x-hearth-task == 'hard'", "cloud")];
        let config = config(vec![route("a", "home", &["cloud", "other", "third", "home"], &rules)]);
        let routes = Routes::new(&config, &["home"]);
        let chain =
            |n_bytes, task: &str| routes.chain(routes.find("A").expect("a route"), n_bytes, &with_header(task), |_| {});
        let (home, cloud, other, third) = (Hop::Home(0), Hop::Away(0), Hop::Away(1), Hop::Away(2));
        assert_eq!(chain(0, "easy"), [home, cloud, other, third]);
        assert_eq!(chain(0, "hard"), [cloud, home, other, third]);
        assert_eq!(chain(44, "hard"), [other, home, cloud, third], "the first rule that holds");
    }

    #[test]
    fn equals_are_ordered_by_others_and_leave_room_for_fallbacks() {
        let mut it = route("a", "home", &["third"], &[]);
        it.equals = vec!["cloud".into(), "other".into()];
        let config = config(vec![it]);
        let routes = Routes::new(&config, &["home", "spare"]);
        let chain = |hints: Hints| {
            let caller = Caller { hints, ..Default::default() };
            routes.chain(routes.find("a").expect("a route"), 0, &caller, |equals| equals.reverse())
        };
        let (home, cloud, other, third) = (Hop::Home(0), Hop::Away(0), Hop::Away(1), Hop::Away(2));
        assert_eq!(chain(Hints::default()), [other, cloud, home, third]);
        assert_eq!(chain(Hints { never_leaves: true, ..Default::default() }), [home]);
    }

    #[test]
    fn one_no_is_enough_to_stay() {
        let base = || config(vec![route("a", "home", &["cloud"], &[("prompt_tokens >= 0", "cloud")])]);
        let chain = |config: &RoutingConfig, caller: &Caller| {
            let routes = Routes::new(config, &["home", "safe"]);
            routes.chain(routes.find("a").expect("a route"), 0, caller, |_| {})
        };
        let caller = Caller::default();
        assert_eq!(chain(&base(), &caller), [Hop::Away(0), Hop::Home(0)]);
        let stays = [Hop::Home(0)];
        assert_eq!(chain(&RoutingConfig { may_leave: false, ..base() }, &caller), stays);
        assert_eq!(chain(&RoutingConfig { kept: vec!["HOME".into()], ..base() }, &caller), stays);
        let mut never = base();
        never.routes[0].never_leaves = true;
        assert_eq!(chain(&never, &caller), stays);
        let asks = |hints: Hints| Caller { hints, ..Default::default() };
        assert_eq!(chain(&base(), &asks(Hints { never_leaves: true, ..Default::default() })), stays);
        assert_eq!(chain(&base(), &asks(Hints { hop: 3, ..Default::default() })), stays);
        let mut away = base();
        (away.routes[0].target, away.may_leave) = ("cloud".into(), false);
        away.routes[0].fallbacks.clear();
        assert_eq!(chain(&away, &caller), [], "nothing is left");
    }

    #[test]
    fn the_name_that_says_most_wins() {
        let routes =
            Routes::new(&config(vec![route("*", "home", &[], &[]), route("gpt-*", "cloud", &[], &[])]), &["home"]);
        let target = |name: &str| routes.find(name).expect("a route").target;
        assert_eq!((target("gpt-4o"), target("x")), (Hop::Away(0), Hop::Home(0)));
        let exact =
            Routes::new(&config(vec![route("gpt-*", "home", &[], &[]), route("gpt-4", "cloud", &[], &[])]), &["home"]);
        assert_eq!(exact.find("GPT-4:latest").expect("a route").target, Hop::Away(0));
        assert!(exact.find("claude").is_none());
    }
}
