//! A classifier at the border: which model of this server looks, and which of its labels refuse.
//!
//! # Design
//! Only what follows from the settings and from what is known of the model; [`super::judge`] asks it. Labels are a model's
//! own words. One without names for them has `LABEL_0`, `LABEL_1` and so on, as `/v1/classify` calls them.

use crate::engine::{Description, Pooling};
use crate::telemetry::metrics::CheckSeries;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// `classify` of a list, as written.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifySpec {
    /// A model of this server, by its name or one of its aliases.
    pub model: String,
    /// Labels that refuse.
    pub deny: Vec<String>,
    /// From which probability of one of them on, 0 to 1.
    pub above: f32,
    /// Most windows of one request or answer, 1 to [`ClassifySpec::WINDOWS_MAX`]; what needs more is refused.
    pub n_windows_max: u32,
    /// What the model can't answer for passes unseen, instead of being refused.
    pub passes_on_error: bool,
}

impl ClassifySpec {
    /// Where the settings say nothing.
    pub const ABOVE: f32 = 0.5;
    /// The same of windows: where a model takes 512 tokens, some 98,000 of them.
    pub const WINDOWS: u32 = 256;
    /// More is a typing mistake: with 512 tokens each they are a million and a half.
    pub const WINDOWS_MAX: u32 = 4096;

    /// Which outputs of the model have the denied labels. Errors: what the operator has to mend.
    pub(super) fn columns(&self, description: &Description) -> Result<Vec<usize>, String> {
        if description.pooling != Some(Pooling::Rank) {
            return Err(format!("the model {} has no classification head in use (rerank = true)", self.model));
        }
        let labels = named(&description.labels, description.n_embd_out as usize);
        self.find(&labels)
    }

    /// Errors: a denied label that is none of `labels`.
    fn find(&self, labels: &[String]) -> Result<Vec<usize>, String> {
        let place = |label: &String| {
            labels
                .iter()
                .position(|known| known == label)
                .ok_or_else(|| format!("the model {} has no label {label:?}, only {}", self.model, shown(labels)))
        };
        self.deny.iter().map(place).collect()
    }

    /// Refuses labels that a file doesn't have, as far as it names any.
    pub(super) fn refuse_unknown(&self, labels: &[String]) -> Result<(), String> {
        if labels.is_empty() { Ok(()) } else { self.find(labels).map(|_| ()) }
    }
}

/// The labels of all `n` outputs.
fn named(labels: &[String], n: usize) -> Vec<String> {
    (0..n.max(labels.len())).map(|i| labels.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"))).collect()
}

/// For an error; a head may have very many.
fn shown(labels: &[String]) -> String {
    const SHOWN_MAX: usize = 16;
    let some: Vec<String> = labels.iter().take(SHOWN_MAX).map(|label| format!("{label:?}")).collect();
    let rest = if labels.len() > SHOWN_MAX { ", …" } else { "" };
    format!("{}{rest}", some.join(", "))
}

/// One `classify` of one set.
#[derive(Debug)]
pub(in crate::gateway) struct Check {
    /// The set it is of, for the operator.
    pub(super) set: String,
    pub(super) spec: ClassifySpec,
    series: OnceLock<CheckSeries>,
}

impl Check {
    pub(super) fn new(set: &str, spec: &ClassifySpec) -> Arc<Self> {
        Arc::new(Self { set: set.to_owned(), spec: spec.clone(), series: OnceLock::new() })
    }

    pub(super) fn count_in(&self, series: CheckSeries) {
        self.series.get_or_init(|| series);
    }

    pub(super) fn denied(&self) {
        self.series.get().iter().for_each(|series| series.denied());
    }

    /// What it took to look, or to know that it was looked at before.
    pub(super) fn took(&self, time: Duration) {
        self.series.get().iter().for_each(|series| series.took(time));
    }

    /// The model could not answer.
    pub(super) fn failed(&self) {
        self.series.get().iter().for_each(|series| series.failed(self.spec.passes_on_error));
    }
}

/// A check, and the place of its model among all.
pub(in crate::gateway) type Placed = (Arc<Check>, usize);

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(deny: &[&str]) -> ClassifySpec {
        let deny = deny.iter().map(|label| (*label).to_owned()).collect();
        ClassifySpec { model: "m".into(), deny, above: 0.5, n_windows_max: 1, passes_on_error: false }
    }

    #[test]
    fn labels_are_the_models_own_or_numbered() {
        let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let head = |labels, n_embd_out| Description {
            pooling: Some(Pooling::Rank),
            labels,
            n_embd_out,
            ..Description::default()
        };
        let own = head(labels(&["safe", "unsafe"]), 2);
        assert_eq!(spec(&["unsafe"]).columns(&own), Ok(vec![1]));
        assert_eq!(spec(&["LABEL_2", "LABEL_0"]).columns(&head(Vec::new(), 3)), Ok(vec![2, 0]));
        let unknown = spec(&["unsafe", "Unsafe"]).columns(&own).expect_err("labels are taken as they are written");
        assert_eq!(unknown, "the model m has no label \"Unsafe\", only \"safe\", \"unsafe\"");
        assert!(spec(&["LABEL_3"]).columns(&head(Vec::new(), 3)).is_err());
        let chat = Description { generates: true, ..Description::default() };
        assert!(spec(&["unsafe"]).columns(&chat).expect_err("no head").contains("no classification head"));
        assert!(spec(&["x"]).refuse_unknown(&[]).is_ok(), "a file that names none is asked later");
        assert!(spec(&["x"]).refuse_unknown(&labels(&["safe"])).is_err());
        let many = (0..40).map(|i| format!("l{i}")).collect::<Vec<_>>();
        assert!(spec(&["x"]).refuse_unknown(&many).expect_err("unknown").ends_with("\"l15\", …"));
    }
}
