//! The tools of a request, checked, and the way of calling that most models have seen.
//!
//! # Design
//! A [`Shape`] is the text around names and arguments. The template's own is used where its way of writing calls could be
//! found (the model has learnt it, and the next turn's prompt repeats it token by token), and Hermes' otherwise. Whatever
//! the shape, llguidance holds the call to its schema from its first token on (see `call_grammar`); llama.cpp's own grammars
//! are left for formats whose arguments are not JSON: they don't know all of JSON Schema.

use crate::chat::{ChatPrompt, Message, Role, Tool};
use crate::engine::constraint::schema;
use crate::engine::error::Failure;
use crate::llama::Shape;
use serde_json::{Value, json};

/// Most bytes of all tools of a request.
const TOOLS_BYTES_MAX: usize = 1 << 20;
/// Most values in all schemas of a request: templates walk through them slowly. 12,000 tokens of schemas have some 3,000.
const TOOLS_VALUES_MAX: usize = 12_000;
/// The shape of Hermes 2, Qwen 2.5 and many others.
pub(super) fn hermes() -> Shape {
    Shape {
        head: "<tool_call>\n{\"name\": \"".into(),
        mid: "\", \"arguments\": ".into(),
        sep: Some("}\n</tool_call>\n<tool_call>\n{\"name\": \"".into()),
        tail: "}\n</tool_call>".into(),
        is_read: false,
    }
}

/// What starts a call of Hermes' shape.
pub(super) const HERMES_TRIGGER: &str = "<tool_call>";

/// A tool that may be called, with its number in the request.
pub(super) struct Callable<'a> {
    pub index: usize,
    pub tool: &'a Tool,
    schema: Value,
}

/// The tools that may be called, their schemas read.
///
/// Errors: `Invalid`, naming the first tool whose parameters are not a JSON Schema of an object.
pub(super) fn callable(prompt: &ChatPrompt) -> Result<Vec<Callable<'_>>, Failure> {
    let n_bytes: usize = prompt.tools.iter().map(|tool| tool.parameters.len() + tool.name.len()).sum();
    if n_bytes > TOOLS_BYTES_MAX {
        let message = format!("the tools have {n_bytes} bytes, and at most {TOOLS_BYTES_MAX} are taken");
        return Err(Failure::invalid("tools", "invalid_value", message));
    }
    let mut all = Vec::with_capacity(prompt.tools.len());
    let (mut n_values, mut n_pairs) = (0, 0);
    for (index, tool) in prompt.tools.iter().enumerate() {
        let text: String = tool.parameters.replace(super::FENCES, "");
        let given: Value = serde_json::from_str(&text).map_err(|error| refusal(index, &error.to_string()))?;
        n_values += count(&given);
        if n_values > TOOLS_VALUES_MAX {
            let message = format!("the tools' schemas have more than {TOOLS_VALUES_MAX} values");
            return Err(Failure::invalid("tools", "invalid_value", message));
        }
        let (schema, cost) = object_schema(&given).map_err(|reason| refusal(index, &reason))?;
        n_pairs += cost.n_pairs;
        if n_pairs > schema::PAIRS_MAX {
            let most = schema::PAIRS_MAX;
            return Err(refusal(
                index,
                &format!("the tools have more than {most} pairs of properties that are not required"),
            ));
        }
        all.push(Callable { index, tool, schema });
    }
    if let Some(names) = &prompt.callable {
        all.retain(|one| names.contains(&one.tool.name));
    }
    Ok(all)
}

/// Values in a JSON text; its depth is bounded by its parser.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(members) => members.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

pub(in crate::engine) fn refusal(index: usize, reason: &str) -> Failure {
    let message = format!("the JSON schema can't be used: {reason}");
    Failure::invalid(&format!("tools[{index}].function.parameters"), "invalid_json_schema", message)
}

/// Arguments are an object whether the schema says so or not.
fn object_schema(given: &Value) -> Result<(Value, schema::Cost), String> {
    let Value::Object(given) = given else { return Err("it must be an object".into()) };
    let mut schema = given.clone();
    match schema.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) if name == "object" => {}
        Some(Value::Array(names)) if names.iter().any(|name| name == "object") => {}
        Some(_) => return Err("its type must be \"object\"".into()),
    }
    schema.insert("type".into(), json!("object"));
    let schema = Value::Object(schema);
    let cost = schema::check(&schema)?;
    Ok((schema, cost))
}

impl Callable<'_> {
    pub fn name(&self) -> String {
        self.tool.name.replace(super::FENCES, "")
    }

    /// For llguidance: every keyword counts, or it is refused.
    pub fn exact(&self) -> Value {
        schema::normalise(&self.schema, true)
    }

    pub fn schema(&self) -> &Value {
        &self.schema
    }
}

/// Tools, calls and results as text, for templates that know none of them.
pub(super) fn as_text(prompt: &ChatPrompt) -> ChatPrompt {
    let mut text = String::from(
        "# Tools\n\nYou can call functions to help with the user's request. Their names, and their parameters as JSON \
         Schema:\n<tools>\n",
    );
    for tool in &prompt.tools {
        let (name, description) = (json!(tool.name), json!(tool.description.as_deref().unwrap_or_default()));
        text += &format!("{{\"name\": {name}, \"description\": {description}, \"parameters\": {}}}\n", tool.parameters);
    }
    text += "</tools>\n\nTo call a function, answer with its name and its arguments, like this:\n<tool_call>\n\
             {\"name\": \"the function's name\", \"arguments\": {\"a parameter\": \"its value\"}}\n</tool_call>";
    let mut messages = crate::engine::fold::calls_as_text(&prompt.messages);
    match messages.first_mut() {
        Some(first) if first.role == Role::System => {
            let content = first.content.get_or_insert_default();
            if !content.is_empty() {
                content.push_str("\n\n");
            }
            content.push_str(&text);
        }
        _ => messages.insert(0, Message::new(Role::System, text)),
    }
    ChatPrompt { messages, tools: Vec::new(), ..prompt.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_no_object_are_refused_by_their_place() {
        let tool = |parameters: &str| Tool {
            name: "f".into(),
            description: None,
            parameters: parameters.into(),
            strict: false,
        };
        let mut prompt = ChatPrompt::new(Vec::new());
        prompt.tools = vec![tool("{}"), tool(r#"{"type": "string"}"#)];
        match callable(&prompt).map(|all| all.len()) {
            Err(Failure::Invalid { field, code, .. }) => {
                assert_eq!((field.as_str(), code.as_str()), ("tools[1].function.parameters", "invalid_json_schema"));
            }
            other => panic!("{other:?}"),
        }
    }
}
