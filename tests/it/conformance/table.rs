//! The tables: one line a group in README.md, one line a row in tests/clients/CONFORMANCE.md.

use super::Outcome;
use super::rows::{GROUPS, Group};
use crate::support::served::root;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

const BEGIN: &str = "<!-- conformance: written by tests/it/conformance -->\n";
const END: &str = "<!-- /conformance -->\n";
const PAGE: &str = "tests/clients/CONFORMANCE.md";

fn id(group: &Group, number: u8) -> String {
    format!("{}-{number:02}", group.prefix)
}

/// The ids of all rows.
pub fn ids() -> BTreeSet<String> {
    GROUPS.iter().flat_map(|group| group.rows.iter().map(|(number, _)| id(group, *number))).collect()
}

/// A client, whatever its scripts and versions.
#[derive(Default)]
struct Column {
    /// Newest last.
    versions: BTreeSet<String>,
    n_checks: BTreeMap<String, usize>,
    rows: BTreeSet<String>,
}

/// The clients in the order in which they ran.
fn columns(outcomes: &[Outcome]) -> Vec<(&str, Column)> {
    let mut columns: Vec<(&str, Column)> = Vec::new();
    for outcome in outcomes {
        let at = columns.iter().position(|(client, _)| *client == outcome.client).unwrap_or_else(|| {
            columns.push((&outcome.client, Column::default()));
            columns.len() - 1
        });
        let column = &mut columns[at].1;
        column.versions.insert(outcome.version.clone());
        *column.n_checks.entry(outcome.version.clone()).or_default() += 1;
        column.rows.extend(outcome.rows.iter().cloned());
    }
    columns
}

/// Compares both tables with what was run, or writes them where HEARTH_BLESS is set.
pub fn compare(outcomes: &[Outcome]) {
    let columns = columns(outcomes);
    let readme = root().join("README.md");
    let text = fs::read_to_string(&readme).expect("README.md can be read");
    let (before, rest) = text.split_once(BEGIN).expect("README.md has the table's begin");
    let (_, after) = rest.split_once(END).expect("README.md has the table's end");
    let wanted =
        [(readme, format!("{before}{BEGIN}{}{END}{after}", summary(&columns))), (root().join(PAGE), page(&columns))];
    for (path, wanted) in wanted {
        if std::env::var_os("HEARTH_BLESS").is_some() {
            fs::write(&path, &wanted).expect("the tree can be written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} does not say what was run; HEARTH_BLESS=1 writes:\n{wanted}", path.display());
    }
}

/// One line a group: how many of its rows each client has shown.
fn summary(columns: &[(&str, Column)]) -> String {
    let mut out = String::from("\n| | wire test | ");
    let joined = |all: Vec<String>| all.join(" | ") + " |\n";
    out += &joined(columns.iter().map(|(client, _)| (*client).to_owned()).collect());
    out += &format!("|---|---|{}\n", "---|".repeat(columns.len()));
    out += "| *version* | | ";
    out += &joined(columns.iter().map(|(_, it)| it.versions.iter().cloned().collect::<Vec<_>>().join(", ")).collect());
    for group in &GROUPS {
        let n_rows = group.rows.len();
        let _ = write!(out, "| {} | {n_rows} of {n_rows} | ", group.title);
        let n_shown = |column: &Column| group.rows.iter().filter(|(n, _)| column.rows.contains(&id(group, *n))).count();
        let shown = |n: usize| if n == 0 { String::new() } else { n.to_string() };
        out += &joined(columns.iter().map(|(_, column)| shown(n_shown(column))).collect());
    }
    let n_rows: usize = GROUPS.iter().map(|group| group.rows.len()).sum();
    let _ = write!(out, "| *all rows* | {n_rows} of {n_rows} | ");
    out += &joined(columns.iter().map(|(_, column)| column.rows.len().to_string()).collect());
    out += "| *checks run* | | ";
    let n_checks = |column: &Column| column.n_checks.values().sum::<usize>().to_string();
    out += &joined(columns.iter().map(|(_, column)| n_checks(column)).collect());
    out.push('\n');
    out
}

/// One line a row: which clients have shown it.
fn page(columns: &[(&str, Column)]) -> String {
    let mut out = String::from(
        "# Conformance\n\n\
         The rows of hearth's wire contract, each with what is sent and what must come back. Every row is tested over HTTP in \
         `tests/it` (`grep` its id there); a client's column is marked where a check of that client's own script, in this \
         folder, shows it too, against the real binary. Written by `tests/it/conformance` from what was run; a row that \
         fails fails the build.\n\n",
    );
    for (client, column) in columns {
        let versions: Vec<_> = column.n_checks.iter().map(|(version, n)| format!("{version} ({n} checks)")).collect();
        let _ = writeln!(out, "- {client} {}", versions.join(", "));
    }
    for group in &GROUPS {
        let shows = |column: &Column| group.rows.iter().any(|(n, _)| column.rows.contains(&id(group, *n)));
        let names: Vec<_> = columns.iter().filter(|(_, column)| shows(column)).collect();
        let _ = write!(out, "\n## {}\n\n| id | what |", group.title);
        out += &names.iter().map(|(client, _)| format!(" {client} |")).collect::<String>();
        let _ = writeln!(out, "\n|---|---|{}", "---|".repeat(names.len()));
        for (number, what) in group.rows {
            let id = id(group, *number);
            let _ = write!(out, "| {id} | {what} |");
            for (_, column) in &names {
                out += if column.rows.contains(&id) { " ✓ |" } else { " |" };
            }
            out.push('\n');
        }
    }
    out
}
