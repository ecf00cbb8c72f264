//! `hearth bench` of the real binary, against itself.

use crate::support::served::Served;
use serde_json::Value;
use std::fs;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hearth")).arg("bench").args(args).output().expect("hearth runs")
}

/// A server started by the bench beside one given by address; what one of them can't do is said and costs no more.
#[test]
fn servers_are_measured_side_by_side() {
    let dir = tempfile::tempdir().expect("a folder");
    let (svg, json) = (dir.path().join("plot.svg"), dir.path().join("figures.json"));
    let served = Served::of(&["scripted:step_us=100", "--api-key", "sk-bench"]);
    let key = dir.path().join("key");
    fs::write(&key, "sk-bench\n").expect("a file");
    let shown = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let output = bench(&[
        "demo=models/hearth-demo.gguf",
        &format!("told={}/v1", served.url),
        "--api-key-file",
        &shown(&key),
        "--serve-arg=--embeddings=on",
        "--only=single,sweep,copy,embeddings",
        "--rounds=2",
        "--streams=1,3",
        "--words=10",
        "--tokens=8",
        "-t1",
        "--parallel=4",
        "-c1024",
        "--plot",
        &shown(&svg),
        "--json",
        &shown(&json),
    ]);
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}{errors}");
    let head = table.lines().next().unwrap_or_default();
    assert!(head.contains("demo") && head.contains("told") && head.contains("1st/2nd"), "{table}");
    assert!(table.contains("not told: /v1/embeddings: 400"), "{table}");

    let figures: Value = serde_json::from_str(&fs::read_to_string(&json).expect("figures")).expect("JSON");
    let scenarios = figures["scenarios"].as_array().expect("scenarios");
    assert_eq!(scenarios.len(), 4);
    for (scenario, n_figures) in scenarios.iter().zip([2, 6, 7, 2]) {
        let rows = scenario["figures"].as_array().expect("figures");
        assert_eq!(rows.len(), n_figures, "{scenario}");
        for row in rows {
            let demo = &row["values"][0];
            assert_eq!(demo["rounds"].as_array().map(Vec::len), Some(2), "{row}");
            assert!(demo["median"].as_f64().is_some_and(|value| value > 0.0), "{row}");
        }
    }
    let svg = fs::read_to_string(&svg).expect("a picture");
    assert!(svg.starts_with("<svg") && svg.contains("demo") && svg.contains("not measured"), "{svg}");
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let output = bench(&["http://127.0.0.1:9"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("http://127.0.0.1:9 does not answer"), "{errors}");
    let output = bench(&["http://127.0.0.1:9", "--only=nothing"]);
    assert_eq!(output.status.code(), Some(2));
}
