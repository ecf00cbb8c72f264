//! Which tests name which rows: in their own name (`chat_14_16_parts…`), in the comment above them or in their body (`CHAT-14`).

use super::rows::GROUPS;
use crate::support::served::root;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The tests in tests/it that name each row.
pub fn ids() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources(&root().join("tests/it")) {
        let text = fs::read_to_string(&path).expect("a file of the tree can be read");
        let module = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        for (test, ids) in of_source(&text) {
            for id in ids {
                found.entry(id).or_default().push(format!("{module}::{test}"));
            }
        }
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("the tree can be read").flatten() {
        match entry.path() {
            // This folder talks about rows without testing them.
            path if path.ends_with("conformance") => {}
            path if path.is_dir() => all.extend(sources(&path)),
            path => all.push(path),
        }
    }
    all
}

/// Each test of a source, and the rows it names.
fn of_source(text: &str) -> Vec<(String, Vec<String>)> {
    let mut tests = Vec::new();
    let mut lines = text.lines().peekable();
    // The comment above, the attribute and the name, and the body up to the brace at the line's begin.
    let mut above = String::new();
    while let Some(line) = lines.next() {
        if line.starts_with("///") {
            above.push_str(line);
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            let Some(head) = lines.by_ref().find(|line| line.contains("fn ")) else { break };
            let name = head.split("fn ").nth(1).unwrap_or_default().split('(').next().unwrap_or_default().to_owned();
            let mut whole = std::mem::take(&mut above);
            whole.extend(lines.by_ref().take_while(|line| *line != "}"));
            let mut ids = in_name(&name);
            ids.extend(in_text(&whole));
            ids.sort();
            ids.dedup();
            tests.push((name, ids));
        } else {
            above.clear();
        }
    }
    tests
}

/// `strm_14_ops_06_a_stream…` names STRM-14 and OPS-06, `chat_14_16_parts…` CHAT-14 and CHAT-16.
fn in_name(name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut prefix = None;
    for word in name.split('_') {
        let group = GROUPS.iter().find(|group| group.prefix.eq_ignore_ascii_case(word));
        match (group, prefix) {
            (Some(group), _) => prefix = Some(group.prefix),
            (None, Some(prefix)) if word.len() == 2 && word.bytes().all(|b| b.is_ascii_digit()) => {
                ids.push(format!("{prefix}-{word}"));
            }
            _ => prefix = None,
        }
    }
    ids
}

fn in_text(text: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for group in &GROUPS {
        for (at, _) in text.match_indices(group.prefix) {
            let rest = &text[at + group.prefix.len()..];
            let is_id =
                rest.len() >= 3 && rest.starts_with('-') && rest[1..].bytes().take(2).all(|b| b.is_ascii_digit());
            let is_word = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            if is_id && is_word {
                ids.push(format!("{}{}", group.prefix, &rest[..3]));
            }
        }
    }
    ids
}

#[test]
fn ids_are_read_in_names_comments_and_bodies() {
    let text = "/// EMB-04 and more.\n#[tokio::test]\nasync fn strm_14_ops_06_a_stream() {\n    // TOOL-11\n}\n\n\
                /// OPS-01\nfn no_test() {}\n\n#[test]\nfn chat_14_16_parts_of_2024_01() {\n}\n";
    let found = of_source(text);
    assert_eq!(found[0].1, ["EMB-04", "OPS-06", "STRM-14", "TOOL-11"]);
    assert_eq!(found[1], ("chat_14_16_parts_of_2024_01".to_owned(), vec!["CHAT-14".to_owned(), "CHAT-16".to_owned()]));
    assert_eq!(found.len(), 2);
}
