//! The source checks itself: what no compiler knows and every reviewer would have to remember.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from left to right: a room may use those to its right, and `telemetry`, which uses none.
const ROOMS: [&str; 9] = ["cli", "config", "http", "gateway", "dialect", "chat", "engine", "model", "llama"];
const LEAF: &str = "telemetry";
/// One pair goes both ways on paper and one way in truth. `chat` is the conversation as plain data, and the engine's
/// requests are made of it, so `engine` may use `chat`; in return `chat` may use nothing at all of the engine's side.
const ALSO: [(&str, &str); 1] = [("engine", "chat")];
const NOT: [(&str, &str); 3] = [("chat", "engine"), ("chat", "model"), ("chat", "llama")];

const LINES_MAX: usize = 600;
/// Files that may be longer, each with its reason.
const LONG: [(&str, &str); 0] = [];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "manager", "misc", "types"];

/// What may lie at the top of the tree, besides dot-files and what is not in git.
const TOP: [&str; 15] = [
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "vendor",
    "src",
    "tests",
    "benches",
    "deploy",
    "models",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "target",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` with one of these endings, in a stable order. Vendored and installed code is not ours.
fn files(dir: &str, endings: &[&str]) -> Vec<PathBuf> {
    const NOT_OURS: [&str; 3] = ["node_modules", "target", "crates"];
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !NOT_OURS.contains(&name.as_str()) {
                    dirs.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a file of the tree can be read")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The room a source file belongs to; `None` for `lib.rs` and `main.rs`.
fn room(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root().join("src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_string_lossy().into_owned();
    (!first.ends_with(".rs")).then_some(first)
}

/// Rust source with comments and the insides of string and character literals blanked; lines stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let find = |from: usize, stop: &str| {
        let stop: Vec<char> = stop.chars().collect();
        (from..rest.len()).find(|i| rest[*i..].starts_with(&stop)).map_or(rest.len(), |i| i + stop.len())
    };
    let is_word = |i: usize| at > 0 && i == 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match rest {
        ['/', '/', ..] => at + find(0, "\n").saturating_sub(1).max(1),
        ['/', '*', ..] => at + find(2, "*/"),
        ['r', '#', '"', ..] if !is_word(0) => at + find(3, "\"#"),
        ['r', '"', ..] if !is_word(0) => at + find(2, "\""),
        ['"', ..] => at + string_end(rest),
        ['\'', '\\', ..] => at + find(3, "'"),
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}

/// Length of a quoted text with its quotes.
fn string_end(rest: &[char]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// The code before the unit tests at a file's bottom.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |at| &code[..at])
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"))
}

/// Rooms named after `crate::` in code, `crate::{a, b::c}` included.
fn rooms_used(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(group_heads(group)),
            None => used.push(head(rest)),
        }
    }
    used
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of a braced group's members.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut starts = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            c if starts && !c.is_whitespace() => {
                heads.push(head(&group[at..]));
                starts = false;
            }
            _ => {}
        }
    }
    heads
}

fn may_use(room: &str, other: &str) -> bool {
    if other == LEAF || room == other || ALSO.contains(&(room, other)) {
        return true;
    }
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    match (place(room), place(other)) {
        (Some(from), Some(to)) => from < to && !NOT.contains(&(room, other)),
        _ => false,
    }
}

fn fail_with(title: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{title}:\n  {}", faults.join("\n  "));
}

#[test]
fn rooms_use_only_rooms_to_their_right() {
    let mut faults = Vec::new();
    for path in files("src", &[".rs"]) {
        let Some(room) = room(&path) else { continue };
        if room != LEAF && !ROOMS.contains(&room.as_str()) {
            faults.push(format!("{}: {room:?} is no room of the house", shown(&path)));
        }
        for other in rooms_used(&code(&read(&path))) {
            let is_room = other == LEAF || ROOMS.contains(&other.as_str());
            if is_room && !may_use(&room, &other) {
                faults.push(format!("{}: {room} uses {other}", shown(&path)));
            }
        }
    }
    fail_with("imports against the order of rooms", &faults);
}

#[test]
fn only_llama_has_unsafe_code() {
    let mut faults = Vec::new();
    for path in files("src", &[".rs"]) {
        let code = code(&read(&path));
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if room(&path).as_deref() != Some("llama") && words.into_iter().any(|word| word == "unsafe") {
            faults.push(shown(&path));
        }
    }
    fail_with("unsafe code outside src/llama", &faults);
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut faults = Vec::new();
    for path in files("src", &[".rs"]).into_iter().filter(|path| !is_test_file(path)) {
        let code = code(&read(&path));
        for (n, line) in without_tests(&code).lines().enumerate() {
            if line.contains(".unwrap()") {
                faults.push(format!("{}:{}", shown(&path), n + 1));
            }
        }
    }
    fail_with(".unwrap() that user input might reach", &faults);
}

#[test]
fn nothing_is_left_for_later() {
    let mut faults = Vec::new();
    for path in ["src", "tests", "benches"].iter().flat_map(|dir| files(dir, &[".rs", ".cpp", ".h", ".py", ".mjs"])) {
        let text = read(&path);
        for (n, (line, code)) in text.lines().zip(code(&text).lines()).enumerate() {
            let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
            let macros = ["todo!", "unimplemented!", "#[ignore"];
            if marks.iter().any(|mark| line.contains(mark)) || macros.iter().any(|name| code.contains(name)) {
                faults.push(format!("{}:{}", shown(&path), n + 1));
            }
        }
    }
    fail_with("left for later", &faults);
}

/// rustdoc takes an indented block after an empty line for Rust, compiles it at the very end of `make test`, and fails there.
#[test]
fn blocks_in_docs_say_what_they_are() {
    let faults: Vec<String> = files("src", &[".rs"])
        .iter()
        .flat_map(|path| {
            let text = read(path);
            let lines: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
            let is_block = |i: usize| {
                i > 0
                    && ["//!", "///"].iter().any(|mark| {
                        lines[i - 1] == *mark && lines[i].strip_prefix(mark).is_some_and(|doc| doc.starts_with("     "))
                    })
            };
            let blocks: Vec<usize> = (0..lines.len()).filter(|i| is_block(*i)).collect();
            blocks
                .into_iter()
                .map(|i| format!("{}:{}: fence it, with its language", shown(path), i + 1))
                .collect::<Vec<_>>()
        })
        .collect();
    fail_with("indented blocks in docs", &faults);
}

#[test]
fn files_stay_short() {
    let mut faults = Vec::new();
    for path in ["src", "tests", "benches"].iter().flat_map(|dir| files(dir, &[".rs", ".cpp", ".h"])) {
        let n = read(&path).lines().count();
        let is_excepted = LONG.iter().any(|(name, _)| *name == shown(&path));
        if n > LINES_MAX && !is_excepted {
            faults.push(format!("{}: {n} lines", shown(&path)));
        }
        if n <= LINES_MAX && is_excepted {
            faults.push(format!("{}: {n} lines, needs no exception any more", shown(&path)));
        }
    }
    fail_with("files longer than 600 lines", &faults);
}

#[test]
fn every_room_says_what_it_is_for() {
    let mut faults = Vec::new();
    for path in files("src", &["mod.rs", "lib.rs", "main.rs"]) {
        if !read(&path).starts_with("//! ") {
            faults.push(shown(&path));
        }
    }
    fail_with("does not open with //!", &faults);
}

#[test]
fn names_say_what_is_inside() {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let faults: Vec<String> = files("src", &[".rs"])
        .iter()
        .filter(|path| EMPTY_NAMES.contains(&stem(path).as_str()))
        .map(|path| shown(path))
        .collect();
    fail_with("names that say nothing", &faults);
}

#[test]
fn the_top_level_is_what_it_is_said_to_be() {
    let mut faults = Vec::new();
    for entry in fs::read_dir(root()).expect("the tree can be read").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            faults.push(name);
        }
    }
    fail_with("does not belong at the top", &faults);
}

/// Links of Markdown files, and paths in backticks that begin with one of the tree's folders.
#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for path in files(".", &[".md"]) {
        let text = read(&path);
        let here = path.parent().unwrap_or(root());
        for (at, _) in text.match_indices("](") {
            let link: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') && !here.join(target).exists() {
                faults.push(format!("{}: {link}", shown(&path)));
            }
        }
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_ours = ["src/", "tests/", "models/", "benches/", ".ci/"].iter().any(|dir| quoted.starts_with(dir));
            let is_plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_ours && is_plain && !root().join(quoted).exists() && !here.join(quoted).exists() {
                faults.push(format!("{}: `{quoted}`", shown(&path)));
            }
        }
    }
    fail_with("links to nowhere", &faults);
}

#[test]
fn models_are_what_their_table_says() {
    let listed = read(&root().join("models/SHA256SUMS"));
    let tables = read(&root().join("models/README.md")) + &read(&root().join("models/tiny/README.md"));
    let mut faults = Vec::new();
    for path in files("models", &[".gguf"]) {
        let line = listed.lines().find(|line| line.ends_with(&shown(&path)));
        match line.and_then(|line| line.split_whitespace().next()) {
            Some(digest) if tables.contains(digest) => {}
            Some(_) => faults.push(format!("{}: its digest is in no README", shown(&path))),
            None => faults.push(format!("{}: not in SHA256SUMS", shown(&path))),
        }
    }
    fail_with("models without origin", &faults);
}

#[test]
fn the_checks_see_code_and_not_text() {
    let text =
        "let a = \"unsafe // \\\" x\"; // unsafe\nlet b = 'u'; let c: &'static str = r#\"unsafe\"#; /* unsafe */ d";
    let code = code(text);
    assert!(!code.contains("unsafe"), "{code}");
    assert!(code.contains("let b =") && code.contains("&'static str") && code.ends_with('d'), "{code}");
    assert_eq!(code.lines().count(), 2);
    assert_eq!(rooms_used("use crate::{chat::{A, B}, engine}; crate::model::X"), ["chat", "engine", "model"]);
    assert!(may_use("engine", "chat") && !may_use("chat", "engine") && !may_use("model", "engine"));
    assert!(may_use("llama", "telemetry") && !may_use("telemetry", "chat"));
}
