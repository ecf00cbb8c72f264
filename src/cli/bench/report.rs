//! Figures, as a table, as JSON.

use super::scenario::Scenario;
use super::target::Target;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Whether more of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sense {
    More,
    Less,
}

/// One value of one round.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// Streams at once, where the scenario sweeps over them.
    pub n_streams: Option<u32>,
    pub name: &'static str,
    pub unit: &'static str,
    pub sense: Sense,
    pub value: f64,
}

impl Figure {
    pub fn new(name: &'static str, unit: &'static str, sense: Sense, value: f64) -> Self {
        Self { n_streams: None, name, unit, sense, value }
    }

    pub fn of(n_streams: u32, name: &'static str, unit: &'static str, sense: Sense, value: f64) -> Self {
        Self { n_streams: Some(n_streams), ..Self::new(name, unit, sense, value) }
    }

    pub fn label(&self) -> String {
        match self.n_streams {
            Some(n) => format!("{n}: {} ({})", self.name, self.unit),
            None => format!("{} ({})", self.name, self.unit),
        }
    }
}

/// A figure with what each target made of it, round by round.
pub(super) struct Row {
    pub figure: Figure,
    pub values: Vec<Vec<f64>>,
}

impl Row {
    pub fn median(&self, target: usize) -> f64 {
        median(&self.values[target])
    }
}

/// A scenario's figures.
pub(super) struct Entry {
    pub scenario: Scenario,
    pub rows: Vec<Row>,
    /// Why a target has none.
    refusals: Vec<Option<String>>,
}

impl Entry {
    pub fn new(scenario: Scenario, n_targets: usize) -> Self {
        Self { scenario, rows: Vec::new(), refusals: vec![None; n_targets] }
    }

    pub fn is_out(&self, target: usize) -> bool {
        self.refusals[target].is_some()
    }

    /// A scenario gives the same figures in the same order each time.
    pub fn add(&mut self, target: usize, figures: Vec<Figure>) {
        for (at, figure) in figures.into_iter().enumerate() {
            if at == self.rows.len() {
                let values = vec![Vec::new(); self.refusals.len()];
                self.rows.push(Row { figure: figure.clone(), values });
            }
            self.rows[at].values[target].push(figure.value);
        }
    }

    pub fn leave(&mut self, target: usize, why: String) {
        self.refusals[target] = Some(why);
    }
}

/// All that was measured.
pub(super) struct Report {
    pub targets: Vec<String>,
    pub entries: Vec<Entry>,
    n_rounds: u32,
}

const LABEL_WIDTH: usize = 48;
const VALUE_WIDTH: usize = 14;

impl Report {
    pub fn new(targets: &[Target], n_rounds: u32) -> Self {
        Self { targets: targets.iter().map(|target| target.name.clone()).collect(), entries: Vec::new(), n_rounds }
    }

    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.rows.is_empty())
    }

    /// With two targets or more, the last column is the first over the second.
    pub fn head(&self) -> String {
        let mut line = format!("{:<LABEL_WIDTH$}", format!("medians of {}", self.n_rounds));
        for name in &self.targets {
            let _ = write!(line, " {:>VALUE_WIDTH$}", name.chars().take(VALUE_WIDTH).collect::<String>());
        }
        if self.targets.len() > 1 {
            let _ = write!(line, " {:>8}", "1st/2nd");
        }
        line
    }

    pub fn rows(&self, entry: &Entry) -> String {
        let mut text = entry.scenario.title().to_owned();
        for row in &entry.rows {
            let _ = write!(text, "\n  {:<width$}", row.figure.label(), width = LABEL_WIDTH - 2);
            for target in 0..self.targets.len() {
                let _ = write!(text, " {:>VALUE_WIDTH$}", shown(row.median(target)));
            }
            if self.targets.len() > 1 {
                let _ = write!(text, " {:>8}", shown(row.median(0) / row.median(1)));
            }
        }
        for (name, why) in self.targets.iter().zip(&entry.refusals) {
            if let Some(why) = why {
                let _ = write!(text, "\n  not {name}: {why}");
            }
        }
        text
    }

    pub fn json(&self) -> Value {
        let values = |row: &Row| {
            let each = self.targets.iter().zip(&row.values);
            each.map(|(name, values)| json!({ "target": name, "median": median(values), "rounds": values })).collect()
        };
        let row = |row: &Row| {
            let values: Vec<Value> = values(row);
            let is_better = if row.figure.sense == Sense::More { "more" } else { "less" };
            json!({
                "name": row.figure.name, "unit": row.figure.unit, "better": is_better,
                "streams": row.figure.n_streams, "values": values,
            })
        };
        let entry = |entry: &Entry| {
            let each = self.targets.iter().zip(&entry.refusals);
            let refusals: Vec<Value> =
                each.filter_map(|(name, why)| Some(json!({ "target": name, "reason": why.as_ref()? }))).collect();
            json!({
                "scenario": entry.scenario.title(),
                "figures": entry.rows.iter().map(row).collect::<Vec<_>>(),
                "not_measured": refusals,
            })
        };
        json!({ "rounds": self.n_rounds, "scenarios": self.entries.iter().map(entry).collect::<Vec<_>>() })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(values[n / 2 - 1], values[n / 2]),
        n => values[n / 2],
    }
}

/// Three digits that say something; nothing of what was not measured.
pub(super) fn shown(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report { targets: vec!["a".to_owned(), "b".to_owned()], entries: Vec::new(), n_rounds: 3 }
    }

    #[test]
    fn a_table_has_medians_a_ratio_and_what_was_not_measured() {
        let mut entry = Entry::new(Scenario::Single, 2);
        for value in [10.0, 40.0, 20.0] {
            entry.add(0, vec![Figure::new("decode", "token/s", Sense::More, value)]);
            entry.add(1, vec![Figure::new("decode", "token/s", Sense::More, value / 4.0)]);
        }
        let report = report();
        let text = report.rows(&entry);
        assert!(text.contains("decode (token/s)") && text.ends_with("20.0           5.00     4.00"), "{text}");
        entry.leave(1, "no".to_owned());
        assert!(entry.is_out(1) && report.rows(&entry).ends_with("not b: no"));
    }

    #[test]
    fn json_has_every_round() {
        let mut entry = Entry::new(Scenario::Sweep, 2);
        entry.add(0, vec![Figure::of(4, "first token, median", "ms", Sense::Less, 2.0)]);
        let mut report = report();
        report.add(entry);
        let json = report.json();
        let figure = &json["scenarios"][0]["figures"][0];
        assert_eq!((figure["streams"].as_u64(), figure["better"].as_str()), (Some(4), Some("less")));
        assert_eq!(figure["values"][0]["rounds"], json!([2.0]));
        assert!(figure["values"][1]["median"].is_null(), "nothing was measured");
    }
}
