//! Conversations and tools through chat templates, fuzzed (F7).

use super::llama::LlamaModel;
use super::{Calls, Model as _};
use crate::chat::{ChatPrompt, Message, Role, Tool, ToolCall, ToolChoice};
use crate::engine::config::{EngineConfig, ModelSource};
use crate::engine::constraint::Constraints;
use crate::engine::error::Failure;
use crate::engine::gates::{Gates, Terms};
use crate::engine::service::PREPARER_STACK_BYTES;
use crate::fuzz::{Shape, Target, fuzz, on_stack, outcome};
use std::path::Path;
use std::sync::Arc;

const WORDS: &str = "{{ 7*7 }}¦{% for i in range(999999999) %}¦<|im_start|>¦<|im_end|>¦<tool_call>¦</tool_call>¦<think>¦\
    </think>¦[INST]¦<s>¦</s>¦get_weather¦{\"city\":\"x\"}¦{\"type\":\"object\"}¦properties¦type¦string¦\
    integer¦required¦enum¦anyOf¦$ref¦#¦pattern¦^[a-z]+$¦minLength¦user¦assistant¦system¦tool¦low¦high¦true¦\
    [1]¦{}¦null";

fn models() -> Vec<Arc<LlamaModel>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let load = |path: &str, template: Option<String>| {
        let path = root.join(path);
        let mut config = EngineConfig::new(ModelSource::Gguf(path.clone()));
        config.chat_template = template;
        Arc::new(LlamaModel::load(&path, &config, |_| {}).expect("a good model"))
    };
    let mut models = vec![load("models/hearth-demo.gguf", None), load("models/tiny/tiny-llama.gguf", None)];
    // Formats of calls that differ, where `make test` has fetched the templates.
    for name in ["Qwen3-Coder", "Kimi-K2-Instruct", "openai-gpt-oss-120b", "meta-llama-Llama-3.1-8B-Instruct"] {
        let text = std::fs::read_to_string(root.join(format!("tests/clients/templates/{name}.jinja")));
        models.extend(text.ok().map(|text| load("models/tiny/tiny-llama.gguf", Some(text))));
    }
    models
}

fn seeds() -> Vec<Vec<u8>> {
    let plain = ChatPrompt::new(vec![Message::new(Role::System, "s"), Message::new(Role::User, "hi")]);
    let mut called = Message::new(Role::Assistant, "");
    let arguments = r#"{"city":"x","days":2}"#.to_owned();
    called.tool_calls = vec![ToolCall { id: "call_1".into(), name: "get_weather".into(), arguments }];
    let mut result = Message::new(Role::Tool, "sun");
    result.tool_call_id = Some("call_1".into());
    let mut tools =
        ChatPrompt::new(vec![Message::new(Role::User, "hi"), called, result, Message::new(Role::User, "x")]);
    let parameters = r##"{"type":"object","properties":{"city":{"type":"string","pattern":"^[a-z]+$"},"days":{"type":"integer"},
        "kind":{"anyOf":[{"enum":["a","b"]},{"$ref":"#/$defs/k"}]}},"required":["city"],"$defs":{"k":{"type":"null"}}}"##;
    let tool = |name: &str, strict| Tool {
        name: name.into(),
        description: Some("d".into()),
        parameters: parameters.into(),
        strict,
    };
    tools.tools = vec![tool("get_weather", false), tool("other", true)];
    tools.template_kwargs = vec![("k".into(), "[1]".into())];
    tools.enable_thinking = Some(false);
    let forced = ChatPrompt { tool_choice: ToolChoice::Required, ..tools.clone() };
    let never = ChatPrompt { tool_choice: ToolChoice::None, reasoning_effort: Some("low".into()), ..tools.clone() };
    [plain, tools, forced, never].iter().map(|prompt| serde_json::to_vec(prompt).expect("it is encoded")).collect()
}

/// A conversation is rendered and what holds its answer is made, or it is refused by the field at fault.
#[test]
fn templates() {
    on_stack(PREPARER_STACK_BYTES, templates_on_it);
}

fn templates_on_it() {
    let models = models();
    let constraints: Vec<_> = models.iter().map(|model| Constraints::new(Arc::clone(model))).collect();
    let target =
        Target { name: "templates", seeds: seeds(), shape: Shape::Json, words: &WORDS.split('¦').collect::<Vec<_>>() };
    fuzz(&target, |input| {
        let Ok(prompt) = serde_json::from_slice::<ChatPrompt>(input) else { return 0 };
        if prompt.messages.is_empty() || prompt.messages.iter().any(|message| !message.media.is_empty()) {
            return 1;
        }
        let mut all = prompt.tools.len() as u64;
        for (n, (model, constraints)) in models.iter().zip(&constraints).enumerate() {
            // One of them by turns: each takes its milliseconds.
            if input.len() % models.len() != n {
                continue;
            }
            let held = model.render(&prompt).and_then(|mut rendered| {
                let calls = std::mem::replace(&mut rendered.calls, Calls::Never(Vec::new()));
                let (reading, thinking, frame) = (&rendered.reading, &rendered.thinking, rendered.frame.as_ref());
                let terms = Terms { constraint: None, reading, calls, thinking, frame, may_think: true, forces: true };
                let hold = Gates { model: model.as_ref(), constraints, partition: 0 }.hold(terms)?;
                model.sampler(&Default::default(), &[], hold.grammar.as_deref()).map(|_| rendered.text.len())
            });
            all = all.wrapping_mul(31)
                ^ match held {
                    Ok(n_bytes) => u64::from(n_bytes.checked_ilog2().unwrap_or(0)),
                    Err(Failure::Invalid { field, message, .. }) => {
                        assert!(message.len() < 4096, "{message:.200}");
                        outcome(&format!("{field} {message}"))
                    }
                    Err(other) => panic!("{other:?}"),
                };
        }
        all
    });
}
