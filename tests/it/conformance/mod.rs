//! The conformance table: every row of the wire contract is named by a test here and, where a client can show it, by a check
//! of that client's own script in tests/clients, run against the real binary. What holds is told in README.md and, row by
//! row, in tests/clients/CONFORMANCE.md; both are written from what was run (`HEARTH_BLESS=1` writes them anew).
//!
//! `make test` installs the clients and sets HEARTH_CLIENTS=1; without that, clients that are not installed are left out,
//! and the tables are not compared.

mod named;
mod rows;
mod servers;
mod table;

use crate::support::served::root;
use serde::Deserialize;
use servers::Servers;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A client's script: what runs it, and what it can't run without.
struct Script {
    file: &'static str,
    runs: Runs,
}

#[derive(Clone, Copy)]
enum Runs {
    /// With the newest releases of everything.
    Python,
    /// Instructor's own environment, with the release of `openai` before the newest great one.
    PythonOfInstructor,
    Node,
}

const SCRIPTS: [Script; 15] = [
    Script { file: "openai_python.py", runs: Runs::Python },
    Script { file: "openai_chat_python.py", runs: Runs::Python },
    Script { file: "responses_python.py", runs: Runs::Python },
    Script { file: "openai_python.py", runs: Runs::PythonOfInstructor },
    Script { file: "openai_chat_python.py", runs: Runs::PythonOfInstructor },
    Script { file: "responses_python.py", runs: Runs::PythonOfInstructor },
    Script { file: "openai_node.mjs", runs: Runs::Node },
    Script { file: "responses_node.mjs", runs: Runs::Node },
    Script { file: "anthropic_python.py", runs: Runs::Python },
    Script { file: "anthropic_node.mjs", runs: Runs::Node },
    Script { file: "ollama_python.py", runs: Runs::Python },
    Script { file: "langchain_python.py", runs: Runs::Python },
    Script { file: "litellm_python.py", runs: Runs::Python },
    Script { file: "instructor_python.py", runs: Runs::PythonOfInstructor },
    Script { file: "ai_node.mjs", runs: Runs::Node },
];

impl Runs {
    /// The program, and a file or folder that is there when it is installed.
    fn program(self) -> (PathBuf, PathBuf) {
        let python = |venv: &str| (root().join(venv).join("bin/python"), root().join(venv).join("installed"));
        match self {
            Self::Python => python(".venv"),
            Self::PythonOfInstructor => python(".venv-instructor"),
            Self::Node => (PathBuf::from("node"), root().join("tests/clients/node_modules/installed")),
        }
    }
}

/// A line that a script prints for each of its checks.
#[derive(Debug, Deserialize)]
pub struct Outcome {
    pub client: String,
    pub version: String,
    pub check: String,
    pub rows: Vec<String>,
    /// Why it failed.
    pub fault: Option<String>,
}

/// Runs one script against `servers`; `None` when what it needs is not installed.
fn run(script: &Script, servers: &Servers) -> Option<Vec<Outcome>> {
    let (program, needs) = script.runs.program();
    if !needs.exists() {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is not installed: `make test`", needs.display());
        eprintln!("left out: {} ({} is not there; `make test` installs it)", script.file, needs.display());
        return None;
    }
    let output = Command::new(&program)
        .arg(Path::new("tests/clients").join(script.file))
        .args(servers.arguments())
        .current_dir(root())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| unreachable!("{}: {error}", program.display()));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| unreachable!("{error} in {line}"));
    let outcomes: Vec<Outcome> = out.lines().filter(|line| line.starts_with("{\"client\"")).map(read).collect();
    // A script that ends before its last line has not told everything.
    let whole = out.lines().any(|line| line.ends_with(" failed") && line.contains(" passed, "));
    assert!(whole && !outcomes.is_empty(), "{} ended early: {out}{err}", script.file);
    Some(outcomes)
}

#[test]
fn every_row_is_named_by_a_test_of_ours() {
    let named = named::ids();
    let all = table::ids();
    let missing: Vec<_> = all.iter().filter(|id| !named.contains_key(*id)).collect();
    assert!(missing.is_empty(), "rows that no test in tests/it names: {missing:?}");
    let unknown: Vec<_> = named.iter().filter(|(id, _)| !all.contains(*id)).collect();
    assert!(unknown.is_empty(), "tests name rows that the checklist doesn't have: {unknown:?}");
}

#[test]
fn the_clients_are_content_and_the_tables_say_so() {
    let servers = Servers::start();
    let mut outcomes = Vec::new();
    let mut is_whole = true;
    for script in &SCRIPTS {
        match run(script, &servers) {
            Some(told) => outcomes.extend(told),
            None => is_whole = false,
        }
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter_map(|it| Some(format!("{} {}: {}\n{}", it.client, it.version, it.check, it.fault.as_ref()?)))
        .collect();
    assert!(failed.is_empty(), "{} of {} checks failed:\n{}", failed.len(), outcomes.len(), failed.join("\n"));
    let all = table::ids();
    let unknown: Vec<_> = outcomes.iter().filter(|it| it.rows.iter().any(|id| !all.contains(id))).collect();
    assert!(unknown.is_empty(), "checks of rows that the checklist doesn't have: {unknown:?}");
    if is_whole {
        table::compare(&outcomes);
    }
}
