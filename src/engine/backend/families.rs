//! Every template family that llama.cpp ships, against its own format: what `make test` fetches is read here.

use super::llama::LlamaModel;
use super::{Model, Reading, Rendered};
use crate::chat::{ChatPrompt, Delta, Message, Role, Tool, ToolCall, ToolChoice};
use crate::engine::config::{EngineConfig, ModelSource};
use crate::engine::reading::Reader;
use crate::engine::text::Released;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// (family, template), in order of their names.
fn families() -> Vec<(String, String)> {
    let dir = root().join("tests/clients/templates");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is missing: run `make test`", dir.display());
        eprintln!("skipped: `make test` fetches the templates");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("a template"))).collect()
}

fn load(template: &str) -> LlamaModel {
    let path = root().join("models/tiny/tiny-llama.gguf");
    let mut config = EngineConfig::new(ModelSource::Gguf(path.clone()));
    config.chat_template = Some(template.to_owned());
    LlamaModel::load(&path, &config, |_| {}).expect("the template compiles")
}

fn weather() -> Tool {
    let parameters = r#"{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city","days"]}"#;
    Tool {
        name: "get_weather".into(),
        description: Some("The weather of a city".into()),
        parameters: parameters.into(),
    }
}

fn prompt(messages: Vec<Message>) -> ChatPrompt {
    let mut prompt = ChatPrompt::new(messages);
    prompt.tools = vec![weather()];
    prompt.enable_thinking = Some(false);
    prompt
}

fn called() -> Message {
    let mut message = Message::new(Role::Assistant, "");
    let arguments = r#"{"city": "Oslo", "days": 2}"#.to_owned();
    message.tool_calls = vec![ToolCall { id: "call00001".into(), name: "get_weather".into(), arguments }];
    message
}

fn read(rendered: Rendered, pieces: &[&str]) -> Vec<Delta> {
    let mut reader = Reader::new(rendered.reading);
    let last = pieces.len() - 1;
    let released = |text: &str| Released { text: text.to_owned(), ..Default::default() };
    pieces.iter().enumerate().map(|(i, piece)| reader.push(released(piece), 1, i == last)).collect()
}

/// (content, [(name, arguments)]) of all deltas together.
fn sum(deltas: &[Delta]) -> (String, Vec<(String, String)>) {
    let mut calls: Vec<(String, String)> = Vec::new();
    for piece in deltas.iter().flat_map(|delta| &delta.tool_calls) {
        if let Some((_, name)) = &piece.opening {
            calls.push((name.clone(), String::new()));
        }
        calls[piece.index as usize].1 += &piece.arguments;
    }
    (deltas.iter().map(|delta| delta.content.as_str()).collect(), calls)
}

fn is_the_call(calls: &[(String, String)]) -> bool {
    let arguments = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let expected = arguments(r#"{"city": "Oslo", "days": 2}"#);
    calls.len() == 1 && calls[0].0 == "get_weather" && arguments(&calls[0].1) == expected
}

/// The call as the template writes it into the history, which is how the model has learnt to write it: what follows the
/// prompt of the question, up to the end of the turn.
fn written(model: &LlamaModel) -> Option<String> {
    let question = vec![Message::new(Role::User, "Weather?")];
    let asked = model.render(&prompt(question.clone())).ok()?;
    let mut history = prompt([question, vec![called()]].concat());
    history.add_generation_prompt = false;
    let answered = model.render(&history).ok()?;
    let text = answered.text.strip_prefix(&asked.text)?;
    // A plain answer shows how a turn ends.
    let mut spoken = history;
    spoken.messages[1] = Message::new(Role::Assistant, "plain text");
    let spoken = model.render(&spoken).ok()?.text;
    let turn_end = &spoken[spoken.rfind("plain text")? + "plain text".len()..];
    let text = text.strip_suffix(turn_end).unwrap_or(text);
    let ends =
        ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<|end|>", "<|call|>", "<|END_OF_TURN_TOKEN|>", "<|calls|>"];
    let end = ends.iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
    Some(text[..end].trim().to_owned())
}

/// Every family: tools are rendered with a grammar that compiles, a call is read whole and in pieces of any size, and what
/// was shown of a part is never taken back. TOOL-02, and the issue's golden set.
#[test]
fn calls_are_read_whole_and_in_part() {
    let (mut n_read, mut faults) = (0, Vec::new());
    let families = families();
    let n_families = families.len();
    for (name, template) in families {
        let model = load(&template);
        let ask = || prompt(vec![Message::new(Role::User, "Weather?")]);
        let rendered = match model.render(&ask()) {
            Ok(rendered) => rendered,
            Err(failure) => {
                faults.push(format!("{name}: {failure}"));
                continue;
            }
        };
        if !rendered.text.contains("get_weather") {
            faults.push(format!("{name}: the prompt shows no tools"));
        }
        match rendered.grammar.as_deref() {
            Some(grammar) => {
                if let Err(failure) = model.sampler(&Default::default(), &[], Some(grammar)) {
                    faults.push(format!("{name}: {failure}"));
                }
            }
            None => faults.push(format!("{name}: no grammar of calls")),
        }
        let Some(text) = written(&model) else { continue };
        let again = || model.render(&ask()).expect("as before");
        let whole = sum(&read(again(), &[&text]));
        if !is_the_call(&whole.1) {
            println!("{name}: not read as written: {text:?} {whole:?}");
            continue;
        }
        n_read += 1;
        let mut pieces: Vec<&str> = text.split_inclusive(|_: char| true).collect();
        pieces.push("");
        let streamed = sum(&read(again(), &pieces));
        if streamed != whole {
            faults.push(format!("{name}: {streamed:?} in pieces, {whole:?} whole"));
        }
        for (cut, _) in text.char_indices().skip(1).step_by(3) {
            let (content, _) = sum(&read(again(), &[&text[..cut], ""]));
            if content.contains("get_weather") && !whole.0.contains("get_weather") {
                println!("{name}: cut at {cut} shows markup: {content:?}");
                break;
            }
        }
    }
    println!("{n_read} of {n_families} families read calls as their template writes them");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(n_families == 0 || n_read >= 25, "{n_read} families read their own calls");
}

/// What is forced is what the parser reads, in the template's shape where it has one.
#[test]
fn shapes_are_found_and_read() {
    let mut n_native = 0;
    for (name, template) in families() {
        let model = load(&template);
        let format = model.format_for_test();
        println!("{name}: native {} {:?}", format.is_native, format.shape);
        n_native += usize::from(format.is_native);
        let mut forced = prompt(vec![Message::new(Role::User, "Weather?")]);
        forced.tool_choice = ToolChoice::Required;
        let rendered = model.render(&forced).expect("it renders");
        let shape = format.shape.filter(|_| format.is_native).unwrap_or_else(super::calls::hermes);
        let arguments = r#"{"city": "Oslo", "days": 2}"#;
        assert!(rendered.forced.is_some() && matches!(rendered.reading, Reading::Parser(_)), "{name}");
        if rendered.forced.as_ref().is_some_and(|forced| !forced.thinking_ends.is_empty()) {
            continue;
        }
        let text = format!("{}get_weather{}{arguments}{}", shape.head, shape.mid, shape.tail);
        let (content, calls) = sum(&read(rendered, &[&text]));
        assert!(content.is_empty() && is_the_call(&calls), "{name}: {content:?} {calls:?}");
    }
    println!("{n_native} families have a format of their own");
}
