//! The golden set: every chat template that llama.cpp ships, with a model of random weights behind the engine's door.
//! What the families' own parsers read is tested beside them, in `src/engine/backend/families.rs`.

use crate::tiny_model::start;
use crate::tools_real::{call, request, tool};
use hearth::chat::{Finish, Message, Prompt, Role, ToolCall, ToolChoice};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// (family, template); empty where `make test` hasn't fetched them.
fn families() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/templates");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is missing: run `make test`", dir.display());
        eprintln!("skipped: `make test` fetches the templates");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    assert!(paths.len() >= 25, "the issue asks for 25 families, {} are there", paths.len());
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("a template"))).collect()
}

/// Whatever the template: a required call comes, and validates; a whole conversation with calls is taken; auto answers.
#[tokio::test]
async fn every_family_calls() {
    let schema = json!({"type": "object", "required": ["city", "days"], "additionalProperties": false, "properties": {
        "city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}});
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut faults = Vec::new();
    for (family, template) in families() {
        let engine = start("tiny/tiny-llama", |config| {
            config.chat_template = Some(template);
            config.n_ctx = Some(8192);
        })
        .await;
        let mut history = vec![Message::new(Role::System, "Be brief."), Message::new(Role::User, "Weather?")];
        let mut asked = Message::new(Role::Assistant, "");
        let arguments = r#"{"city": "Oslo", "days": 2}"#.to_owned();
        asked.tool_calls = vec![ToolCall { id: "call_1".into(), name: "get_weather".into(), arguments }];
        let mut told = Message::new(Role::Tool, "Rain.");
        told.tool_call_id = Some("call_1".into());
        history.extend([asked, told]);
        for (choice, with_history, n) in
            [(ToolChoice::Required, false, 600), (ToolChoice::Required, true, 600), (ToolChoice::Auto, true, 24)]
        {
            let mut request = request(vec![tool("get_weather", &schema)], choice, n, 5);
            if let Prompt::Chat(chat) = &mut request.prompt {
                chat.parallel_tool_calls = false;
                if with_history {
                    chat.messages = history.clone();
                }
            }
            let mut longer = request.clone();
            longer.output.max_tokens = Some(4 * n);
            let said = match call(&engine, request).await {
                // It thought so long that no room was left for all of the call.
                Ok(said) if said.finish == Some(Finish::Length) && !said.calls.is_empty() => {
                    call(&engine, longer).await
                }
                said => said,
            };
            let said = match said {
                Ok(said) => said,
                Err(failure) => {
                    faults.push(format!("{family} {choice:?} {with_history}: {failure}"));
                    continue;
                }
            };
            // A template that opens thinking whatever it is told is left to think.
            let thinks = said.finish == Some(Finish::Length) && said.calls.is_empty() && said.content.is_empty();
            if choice == ToolChoice::Auto || thinks {
                continue;
            }
            let arguments = said.calls.first().and_then(|call| serde_json::from_str::<Value>(&call.2).ok());
            if said.calls.len() != 1 || !arguments.is_some_and(|arguments| validator.is_valid(&arguments)) {
                faults.push(format!("{family} {choice:?} {with_history}: {said:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// CHAT-05: whatever the template, any order of roles is a prompt: what it can't say is folded into what it can.
#[tokio::test]
async fn every_family_takes_any_order_of_roles() {
    use Role::{Assistant, System, User};
    let orders: [&[Role]; 7] = [
        &[System, User],
        &[User, System],
        &[System, System, User],
        &[User, User],
        &[Assistant, User],
        &[User, Assistant, Assistant, System, User],
        &[System],
    ];
    let mut faults = Vec::new();
    for (family, template) in families() {
        let engine = start("tiny/tiny-llama", |config| {
            config.chat_template = Some(template);
            config.n_ctx = Some(4096);
        })
        .await;
        for order in orders {
            let mut request = request(Vec::new(), ToolChoice::Auto, 1, 1);
            if let Prompt::Chat(chat) = &mut request.prompt {
                let say = |(i, role): (usize, &Role)| Message::new(*role, format!("word{i}"));
                chat.messages = order.iter().enumerate().map(say).collect();
            }
            if let Err(failure) = call(&engine, request).await {
                faults.push(format!("{family} {order:?}: {failure}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
