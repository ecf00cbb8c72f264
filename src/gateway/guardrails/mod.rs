//! What an operator lets in and out: an instruction in front of every chat, words and patterns that are refused or taken
//! out, of requests and of answers. Off unless a set of `hearth.toml` says otherwise.
//!
//! **Invariant:** nothing of a rule, nor of what it matched, is in an answer, an error, a log or a metric; the instruction is
//! in nothing that a client can read but the model's own words. A set that is named and not there lets nothing pass.
//!
//! # Design
//! Sets are compiled once, with the configuration. Those that hold for a request at a target make its [`Border`]: of the
//! server (`default`), the alias, the target, the team and the key, in this order. Prompts are looked at whole. Answers are
//! looked at as they come, by a [`Screen`] between an engine's events and everything that counts, keeps or writes them, so
//! that no dialect and no cache sees what was taken out. Redactions come first, of all sets; what denies looks at what is
//! left, and a classifier, which a [`Judge`] asks, at what the lists let through: of an answer when it is whole, so a
//! [`Hold`] keeps it until then.

mod check;
mod enter;
mod hold;
mod json;
mod judge;
mod patterns;
mod screen;
mod sieve;
mod texts;
mod windows;

pub use check::ClassifySpec;
pub(super) use check::Placed;
pub(super) use hold::Hold;
pub(super) use judge::Judge;
pub(super) use screen::Screen;
pub(super) use texts::texts_of;

use super::Error;
use crate::chat::{ChatPrompt, Constraint, Output};
use crate::telemetry::Metrics;
use check::Check;
use patterns::{Patterns, Source};
use sha2::{Digest, Sha256};
use sieve::{Act, Step};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One `[guardrails.NAME]`, as written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuardrailSpec {
    /// In front of every chat; clients can't see, change or leave it out.
    pub system: Option<String>,
    /// Of what comes in.
    pub input: RuleSpec,
    /// Of what goes out.
    pub output: RuleSpec,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSpec {
    /// Whole words, in any case.
    pub deny_words: Vec<String>,
    /// Regular expressions.
    pub deny: Vec<String>,
    /// Regular expressions, and what stands in a match's place.
    pub redact: Vec<(String, String)>,
    /// A model of this server that looks at it, too.
    pub classify: Option<ClassifySpec>,
}

/// All sets of a server, compiled. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guardrails {
    sets: Arc<BTreeMap<String, Set>>,
}

impl PartialEq for Guardrails {
    fn eq(&self, other: &Self) -> bool {
        let digests = |all: &Self| all.sets.iter().map(|(name, set)| (name.clone(), set.digest)).collect::<Vec<_>>();
        digests(self) == digests(other)
    }
}

#[derive(Debug)]
struct Set {
    system: Option<String>,
    input: Rules,
    output: Rules,
    digest: [u8; 32],
}

#[derive(Debug)]
struct Rules {
    redact: Option<Arc<Patterns>>,
    deny: Option<Arc<Patterns>>,
    check: Option<Arc<Check>>,
}

impl Guardrails {
    /// The set that holds for every request.
    pub const DEFAULT: &str = "default";
    pub const SETS_MAX: usize = 64;
    /// Longest instruction of one set.
    pub const SYSTEM_BYTES_MAX: usize = 64 << 10;
    /// Longest text in a match's place.
    pub const REPLACEMENT_BYTES_MAX: usize = 256;

    /// Errors: the set, the list in it, and what is wrong.
    pub fn new(specs: &BTreeMap<String, GuardrailSpec>) -> Result<Self, (String, &'static str, String)> {
        let mut sets = BTreeMap::new();
        for (name, spec) in specs {
            let fault = |list: &'static str| move |error: String| (name.clone(), list, error);
            if spec.system.as_ref().is_some_and(|system| system.len() > Self::SYSTEM_BYTES_MAX) {
                let message = format!("more than {} bytes", Self::SYSTEM_BYTES_MAX);
                return Err(fault("system")(message));
            }
            let input = Rules::new(name, &spec.input, false).map_err(fault("input"))?;
            let output = Rules::new(name, &spec.output, true).map_err(fault("output"))?;
            let text = format!("{name:?} {spec:?}");
            let digest = Sha256::digest(text.as_bytes()).into();
            sets.insert(name.clone(), Set { system: spec.system.clone(), input, output, digest });
        }
        Ok(Self { sets: Arc::new(sets) })
    }

    /// What is done by these sets is counted there from now on; each list has its series from the start.
    pub(super) fn count_in(&self, metrics: &Metrics) {
        for (name, set) in self.sets.iter() {
            for (rules, direction) in [(&set.input, "in"), (&set.output, "out")] {
                let lists = [(&rules.redact, true), (&rules.deny, false)];
                for (patterns, redacts) in
                    lists.into_iter().filter_map(|(list, redacts)| Some((list.as_ref()?, redacts)))
                {
                    patterns.count_in(metrics.guardrail(name, direction, redacts));
                }
                rules.check.iter().for_each(|check| check.count_in(metrics.classifier(name, direction)));
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.sets.contains_key(name)
    }

    /// Refuses classifiers whose models lack a label that they deny. `labels`: of a model by its name, as far as they are
    /// known; empty: they are not. Errors: for the operator.
    pub fn refuse_unknown_labels(&self, labels: impl Fn(&str) -> Vec<String>) -> Result<(), String> {
        for (name, set) in self.sets.iter() {
            for (rules, list) in [(&set.input, "input"), (&set.output, "output")] {
                let Some(spec) = rules.check.as_ref().map(|check| &check.spec) else { continue };
                spec.refuse_unknown(&labels(&spec.model))
                    .map_err(|error| format!("[guardrails.{name}]: {list}: classify: {error}"))?;
            }
        }
        Ok(())
    }

    /// The names of all classifiers' models.
    pub fn classifiers(&self) -> impl Iterator<Item = &str> {
        let checks = self.sets.values().flat_map(|set| [&set.input.check, &set.output.check]);
        checks.flatten().map(|check| check.spec.model.as_str())
    }

    /// Puts in front of a chat what all requests have there that name a target with these sets, as [`Border::enter`] does.
    pub fn instruct(&self, target: &[String], prompt: &mut ChatPrompt) {
        // A set that is missing is refused where it is named; classifiers have no part in this.
        if let Ok(border) = self.border(target.iter(), |_| Some(0)) {
            border.instruct(prompt);
        }
    }

    /// Whether an alias, a team or a key may put more in front of a target with these sets.
    pub fn may_instruct_more(&self, target: &[String]) -> bool {
        let is_more = |name: &String| name != Self::DEFAULT && !target.contains(name);
        self.sets.iter().any(|(name, set)| set.system.is_some() && is_more(name))
    }

    /// What holds where these sets are named, beside the one for all. `find`: a model's place by its name. Errors: one of
    /// them is not there.
    pub(super) fn border<'a>(
        &self,
        names: impl Iterator<Item = &'a String>,
        find: impl Fn(&str) -> Option<usize>,
    ) -> Result<Border, Error> {
        let mut found: Vec<(&str, &Set)> = Vec::new();
        if let Some((name, set)) = self.sets.get_key_value(Self::DEFAULT) {
            found.push((name, set));
        }
        for name in names {
            let Some((name, set)) = self.sets.get_key_value(name) else {
                tracing::error!(guardrail = name, "a request is refused: this guardrail is named and not configured");
                return Err(Error::Unguarded);
            };
            if !found.iter().any(|(known, _)| *known == name.as_str()) {
                found.push((name, set));
            }
        }
        let place = |check: &Arc<Check>| match find(&check.spec.model) {
            Some(idx) => Ok((Arc::clone(check), idx)),
            None => {
                let (guardrail, model) = (check.set.as_str(), check.spec.model.as_str());
                tracing::error!(guardrail, model, "a request is refused: there is no such model to classify with");
                Err(Error::Unguarded)
            }
        };
        let placed = |rules: fn(&Set) -> &Rules| -> Result<Arc<[Placed]>, Error> {
            found.iter().filter_map(|(_, set)| rules(set).check.as_ref()).map(place).collect()
        };
        let (checks_in, checks_out) = (placed(|set| &set.input)?, placed(|set| &set.output)?);
        Ok(Border { checks_in, checks_out, ..Border::new(&found) })
    }
}

impl Rules {
    fn new(set: &str, spec: &RuleSpec, comes: bool) -> Result<Self, String> {
        let quoted = |text: &str, error: String| format!("{text:?}: {error}");
        let word = |text: &String| Source::word(text).map_err(|error| quoted(text, error));
        let deny = |text: &String| Source::regex(text, String::new()).map_err(|error| quoted(text, error));
        let redact = |(text, with): &(String, String)| {
            if with.len() > Guardrails::REPLACEMENT_BYTES_MAX {
                return Err(format!("a replacement has at most {} bytes", Guardrails::REPLACEMENT_BYTES_MAX));
            }
            Source::regex(text, with.clone()).map_err(|error| quoted(text, error))
        };
        let denied: Vec<Source> =
            spec.deny_words.iter().map(word).chain(spec.deny.iter().map(deny)).collect::<Result<_, _>>()?;
        let redacted: Vec<Source> = spec.redact.iter().map(redact).collect::<Result<_, _>>()?;
        Ok(Self {
            redact: Patterns::new(redacted, comes)?.map(Arc::new),
            deny: Patterns::new(denied, comes)?.map(Arc::new),
            check: spec.classify.as_ref().map(|spec| Check::new(set, spec)),
        })
    }
}

/// What holds for one request at one target.
#[derive(Debug, Clone, Default)]
pub(super) struct Border {
    system: String,
    incoming: Vec<Step>,
    outgoing: Vec<Step>,
    checks_in: Arc<[Placed]>,
    checks_out: Arc<[Placed]>,
    digest: [u8; 32],
}

impl Border {
    fn new(sets: &[(&str, &Set)]) -> Self {
        let steps = |rules: fn(&Set) -> &Rules| {
            let of = |act, list: fn(&Rules) -> &Option<Arc<Patterns>>| {
                let lists = sets.iter().filter_map(move |(_, set)| list(rules(set)).clone());
                lists.map(move |patterns| (act, patterns))
            };
            of(Act::Redact, |rules| &rules.redact).chain(of(Act::Deny, |rules| &rules.deny)).collect::<Vec<Step>>()
        };
        let systems: Vec<&str> = sets.iter().filter_map(|(_, set)| set.system.as_deref()).collect();
        let digest = match sets.is_empty() {
            true => [0; 32],
            false => {
                sets.iter().fold(Sha256::new(), |digest, (_, set)| digest.chain_update(set.digest)).finalize().into()
            }
        };
        Self {
            system: systems.join("\n\n"),
            incoming: steps(|set| &set.input),
            outgoing: steps(|set| &set.output),
            checks_in: Arc::default(),
            checks_out: Arc::default(),
            digest,
        }
    }

    /// Nothing is asked of requests.
    pub(super) fn is_open(&self) -> bool {
        self.system.is_empty() && !self.looks() && self.outgoing.is_empty() && self.checks_out.is_empty()
    }

    /// Whether requests are looked at.
    fn looks(&self) -> bool {
        !self.incoming.is_empty() || !self.checks_in.is_empty()
    }

    /// Who looks at requests.
    pub(super) fn checks_in(&self) -> &[Placed] {
        &self.checks_in
    }

    /// What makes it another, for keys of cached answers; zeros where nothing holds.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether answers are looked at by lists.
    pub(super) fn screens(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// For an answer to a request of this output; `None`: there is nothing to look for.
    pub(super) fn screen(&self, output: &Output, accepted: &[u32]) -> Option<Screen> {
        let is_json = matches!(output.constraint, Some(Constraint::JsonObject | Constraint::JsonSchema(_)));
        self.screens().then(|| Screen::new(self.outgoing.clone(), is_json, accepted))
    }

    /// For an answer of so many choices; `None`: no classifier looks at it. `tenant`: whose it is.
    pub(super) fn hold(&self, judge: &Arc<Judge>, tenant: u64, n_choices: usize) -> Option<Hold> {
        (!self.checks_out.is_empty()).then(|| Hold::new(judge, &self.checks_out, tenant, n_choices))
    }

    /// Refuses an answer that its classifiers could not look at when it is done.
    pub(super) async fn expect(&self, judge: &Judge) -> Result<(), Error> {
        judge.expect(&self.checks_out).await
    }

    fn system(&self) -> &str {
        &self.system
    }

    fn incoming(&self) -> &[Step] {
        &self.incoming
    }
}

#[cfg(test)]
mod tests;
