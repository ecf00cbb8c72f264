//! `tools` and `tool_choice` in their flat shapes, and how the names that a model calls map back to them.

use crate::chat::{Tool, ToolChoice};
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::tools::{self, TOOLS_MAX};
use crate::dialect::{Fault, Ignored, arguments};
use serde_json::{Value, json};
use std::collections::HashMap;

const TYPES: &str = "function, custom, namespace";
/// Tools that OpenAI runs itself. Clients send some of them always, so they are left out unless they are chosen.
const HOSTED: [&str; 11] = [
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "mcp",
    "computer",
    "local_shell",
    "shell",
    "apply_patch",
    "tool_search",
    "programmatic_tool_calling",
];

/// What a call of a tool looks like to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Called {
    pub name: String,
    pub namespace: Option<String>,
    /// Its argument is a text, not JSON.
    pub is_custom: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As the model sees them.
    pub offered: Vec<Tool>,
    pub called: HashMap<String, Called>,
    /// Paths of those in the body, as many.
    pub paths: Vec<String>,
    /// As received.
    pub echo: Vec<Value>,
}

/// The name under which the model sees a namespace's member.
pub(super) fn full_name(namespace: &str, name: &str) -> String {
    format!("{namespace}__{name}")
}

/// Whether a type is one of OpenAI's own tools, in any version (`web_search_preview_2025_03_11`, `computer_use_preview`).
fn is_hosted(kind: &str) -> bool {
    HOSTED.iter().any(|hosted| kind.strip_prefix(hosted).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')))
}

pub(super) fn tools(body: &mut Object, ignored: &mut Ignored) -> Result<Tools, Fault> {
    let values = body.array("tools")?.unwrap_or_default();
    if values.len() > TOOLS_MAX {
        return Err(too_many("tools", values.len(), TOOLS_MAX));
    }
    let mut tools = Tools { echo: values.clone(), ..Default::default() };
    for (i, value) in values.into_iter().enumerate() {
        let mut fields = Object::at(format!("tools[{i}]"), value)?;
        let kind = fields.string("type")?.ok_or_else(|| fields.missing("type"))?;
        match kind.as_str() {
            "namespace" => tools.namespace(fields, ignored)?,
            hosted if is_hosted(hosted) => {}
            _ => tools.tool(fields, &kind, None, ignored)?,
        }
    }
    Ok(tools)
}

impl Tools {
    fn namespace(&mut self, mut fields: Object, ignored: &mut Ignored) -> Result<(), Fault> {
        let namespace = tools::name(&mut fields)?;
        let path = fields.path("tools");
        for (j, value) in fields.array("tools")?.unwrap_or_default().into_iter().enumerate() {
            let mut member = Object::at(format!("{path}[{j}]"), value)?;
            let kind = member.string("type")?.ok_or_else(|| member.missing("type"))?;
            self.tool(member, &kind, Some(&namespace), ignored)?;
        }
        fields.accept(&["description"]);
        fields.finish(ignored);
        Ok(())
    }

    fn tool(
        &mut self,
        mut fields: Object,
        kind: &str,
        namespace: Option<&str>,
        ignored: &mut Ignored,
    ) -> Result<(), Fault> {
        let parameters = match kind {
            "function" => parameters(&mut fields)?,
            "custom" => custom_parameters(&mut fields, ignored)?,
            other => return Err(invalid_value(fields.path("type"), other, TYPES)),
        };
        let name = tools::name(&mut fields)?;
        let full = namespace.map_or_else(|| name.clone(), |namespace| full_name(namespace, &name));
        if self.called.contains_key(&full) {
            let path = fields.path("name");
            return Err(Fault::new(path.clone(), "invalid_value", format!("{path}: another tool has this name.")));
        }
        if self.offered.len() == TOOLS_MAX {
            return Err(too_many("tools", self.offered.len() + 1, TOOLS_MAX));
        }
        let description = fields.string("description")?;
        let strict = fields.bool("strict")?.unwrap_or(false);
        fields.accept(&["defer_loading", "allowed_callers", "output_schema", "async", "cache_control"]);
        self.paths.push(fields.path("").trim_end_matches('.').to_owned());
        fields.finish(ignored);
        let called = Called { name, namespace: namespace.map(str::to_owned), is_custom: kind == "custom" };
        self.called.insert(full.clone(), called);
        self.offered.push(Tool { name: full, description, parameters, strict });
        Ok(())
    }

    /// The model's name for the tool that a choice means.
    fn find(&self, path: &str, fields: &mut Object) -> Result<String, Fault> {
        let name = fields.string("name")?.ok_or_else(|| fields.missing("name"))?;
        let full = fields.string("namespace")?.map_or(name.clone(), |namespace| full_name(&namespace, &name));
        if !self.called.contains_key(&full) {
            let shown: String = name.chars().take(64).collect();
            return Err(Fault::new(path, "invalid_value", format!("{path}: there is no tool {shown:?} in tools.")));
        }
        Ok(full)
    }
}

fn parameters(fields: &mut Object) -> Result<String, Fault> {
    match fields.take("parameters") {
        None => Ok("{}".to_owned()),
        Some(schema) => arguments::schema(fields.path("parameters"), &schema),
    }
}

/// One string. A grammar for it can't be written as JSON Schema, so asking for one is refused.
fn custom_parameters(fields: &mut Object, ignored: &mut Ignored) -> Result<String, Fault> {
    if let Some(mut format) = fields.object("format")? {
        let kind = format.string("type")?.ok_or_else(|| format.missing("type"))?;
        match kind.as_str() {
            "text" => {}
            "grammar" => return Err(fields.unsupported("format", "a custom tool's text can't follow a grammar here")),
            other => return Err(invalid_value(format.path("type"), other, "text")),
        }
        format.finish(ignored);
    }
    let schema = json!({
        "type": "object",
        "properties": { super::custom::ARGUMENT: { "type": "string" } },
        "required": [super::custom::ARGUMENT],
        "additionalProperties": false,
    });
    Ok(schema.to_string())
}

/// What was chosen.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    pub choice: ToolChoice,
    pub callable: Option<Vec<String>>,
    /// As received, `auto` when not.
    pub echo: Value,
}

const PARAM: &str = "tool_choice";

pub(super) fn choice(body: &mut Object, tools: &Tools, ignored: &mut Ignored) -> Result<Choice, Fault> {
    let Some(value) = body.take(PARAM) else {
        return Ok(Choice { choice: ToolChoice::Auto, callable: None, echo: "auto".into() });
    };
    let echo = value.clone();
    let (choice, callable) = match value {
        Value::String(word) => (mode(PARAM, &word, "none, auto, required")?, None),
        Value::Object(_) => chosen(Object::at(PARAM, value)?, tools, ignored)?,
        other => return Err(invalid_type(PARAM, "a string or an object", &other)),
    };
    let n_callable = callable.as_ref().map_or(tools.offered.len(), Vec::len);
    if choice == ToolChoice::Required && n_callable == 0 {
        return Err(Fault::new(PARAM, "invalid_value", "tool_choice asks for a call, but no tool can be called here."));
    }
    Ok(Choice { choice, callable, echo })
}

fn mode(path: &str, word: &str, allowed: &str) -> Result<ToolChoice, Fault> {
    match word {
        "auto" => Ok(ToolChoice::Auto),
        "required" => Ok(ToolChoice::Required),
        "none" if path == PARAM => Ok(ToolChoice::None),
        other => Err(invalid_value(path, other, allowed)),
    }
}

type Chosen = (ToolChoice, Option<Vec<String>>);

fn chosen(mut fields: Object, tools: &Tools, ignored: &mut Ignored) -> Result<Chosen, Fault> {
    let kind = fields.string("type")?.ok_or_else(|| fields.missing("type"))?;
    let chosen = match kind.as_str() {
        "function" | "custom" => (ToolChoice::Required, Some(vec![tools.find(PARAM, &mut fields)?])),
        "allowed_tools" => {
            let word = fields.string("mode")?.ok_or_else(|| fields.missing("mode"))?;
            let choice = mode("tool_choice.mode", &word, "auto, required")?;
            let values = fields.array("tools")?.ok_or_else(|| fields.missing("tools"))?;
            let names = allowed(values, tools)?;
            let none_is_left = choice == ToolChoice::Auto && names.is_empty();
            (if none_is_left { ToolChoice::None } else { choice }, Some(names))
        }
        hosted if is_hosted(hosted) => {
            let message = format!("tool_choice: this server has no tool {hosted} of its own.");
            return Err(Fault::new(PARAM, "unsupported_parameter", message));
        }
        other => return Err(invalid_value("tool_choice.type", other, "function, custom, allowed_tools")),
    };
    fields.finish(ignored);
    Ok(chosen)
}

fn allowed(values: Vec<Value>, tools: &Tools) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    for (j, value) in values.into_iter().enumerate() {
        let mut fields = Object::at(format!("tool_choice.tools[{j}]"), value)?;
        let kind = fields.string("type")?.ok_or_else(|| fields.missing("type"))?;
        if !is_hosted(&kind) {
            names.push(tools.find(&fields.path("name"), &mut fields)?);
        }
    }
    Ok(names)
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
