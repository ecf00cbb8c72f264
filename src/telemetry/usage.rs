//! What requests came to: how they ended, what teams spent, and, where the operator asks for it, the same by key.

use super::metrics::add;
use prometheus::{CounterVec, IntCounter, IntCounterVec, Opts, Registry};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Teams, and keys, that have series of their own; what the rest comes to is in `other`. They are not removed, since a counter
/// must not go back.
const NAMES_MAX: usize = 200;
const OTHER: &str = "other";

/// One request's end, as far as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub model: Option<&'a str>,
    /// Words of ours, one for each choice that was made.
    pub finishes: &'a [&'static str],
    pub key: Option<&'a str>,
    pub team: Option<&'a str>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cost_nusd: i64,
    pub client_left: bool,
}

pub(super) struct Usage {
    finished: IntCounterVec,
    vllm_success: Option<IntCounterVec>,
    client_disconnects: IntCounter,
    spend: CounterVec,
    teams: Names,
    by_key: Option<ByKey>,
}

struct ByKey {
    names: Names,
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    spend: CounterVec,
}

/// Labels that were given out. **Bound:** [`NAMES_MAX`].
#[derive(Default)]
struct Names(Mutex<HashSet<String>>);

impl Names {
    fn label<'a>(&self, name: &'a str) -> &'a str {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return name;
        }
        if known.len() == NAMES_MAX {
            return OTHER;
        }
        known.insert(name.to_owned());
        name
    }
}

impl Usage {
    pub(super) fn new(r: &Registry, by_key: bool, is_vllm: bool) -> Self {
        let whole = |name: &str, help: &str, labels: &[&str]| add(r, IntCounterVec::new(Opts::new(name, help), labels));
        let dollars = |name: &str, help: &str, label: &str| add(r, CounterVec::new(Opts::new(name, help), &[label]));
        Self {
            finished: whole(
                "hearth_requests_finished_total",
                "Generations that ended, by how.",
                &["model", "finish_reason"],
            ),
            vllm_success: is_vllm.then(|| {
                let help = "Generations that ended by themselves.";
                whole("vllm:request_success_total", help, &["model_name", "finished_reason"])
            }),
            client_disconnects: add(
                r,
                IntCounter::new(
                    "hearth_client_disconnects_total",
                    "Requests whose client left before all of the answer was sent.",
                ),
            ),
            spend: dollars("hearth_spend_usd_total", "What requests of teams cost.", "team"),
            teams: Names::default(),
            by_key: by_key.then(|| ByKey {
                names: Names::default(),
                requests: whole("hearth_key_requests_total", "Requests of a key.", &["key"]),
                prompt_tokens: whole("hearth_key_prompt_tokens_total", "Their prompt tokens.", &["key"]),
                generation_tokens: whole("hearth_key_generation_tokens_total", "Tokens generated for them.", &["key"]),
                spend: dollars("hearth_key_spend_usd_total", "What they cost.", "key"),
            }),
        }
    }

    pub(super) fn ended(&self, ended: &Ended<'_>) {
        if let Some(model) = ended.model {
            for finish in ended.finishes {
                self.finished.with_label_values(&[model, finish]).inc();
                if let (Some(success), "stop" | "length" | "tool_calls") = (&self.vllm_success, *finish) {
                    success.with_label_values(&[model, finish]).inc();
                }
            }
        }
        if ended.client_left {
            self.client_disconnects.inc();
        }
        let dollars = ended.cost_nusd.max(0) as f64 / 1e9;
        if let Some(team) = ended.team {
            self.spend.with_label_values(&[self.teams.label(team)]).inc_by(dollars);
        }
        if let (Some(by_key), Some(key)) = (&self.by_key, ended.key) {
            let label = [by_key.names.label(key)];
            by_key.requests.with_label_values(&label).inc();
            by_key.prompt_tokens.with_label_values(&label).inc_by(ended.prompt_tokens);
            by_key.generation_tokens.with_label_values(&label).inc_by(ended.completion_tokens);
            by_key.spend.with_label_values(&label).inc_by(dollars);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_end() {
        let names = Names::default();
        for n in 0..NAMES_MAX {
            let name = format!("key{n}");
            assert_eq!(names.label(&name), name);
        }
        assert_eq!(names.label("one more"), OTHER);
        assert_eq!(names.label("key7"), "key7");
    }
}
