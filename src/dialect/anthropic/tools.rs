//! `tools` and `tool_choice`.

use crate::chat::{ChatPrompt, Tool, ToolChoice};
use crate::dialect::fields::{Object, invalid_value, too_many};
use crate::dialect::tools::{self, TOOLS_MAX};
use crate::dialect::{Fault, Ignored, arguments};

pub(super) fn tools(body: &mut Object, prompt: &mut ChatPrompt, ignored: &mut Ignored) -> Result<(), Fault> {
    let values = body.array("tools")?.unwrap_or_default();
    if values.len() > TOOLS_MAX {
        return Err(too_many("tools", values.len(), TOOLS_MAX));
    }
    for (i, value) in values.into_iter().enumerate() {
        let entry = Object::at(format!("tools[{i}]"), value)?;
        let name_path = entry.path("name");
        let tool = tool(entry, ignored)?;
        if prompt.tools.iter().any(|other| other.name == tool.name) {
            let message = format!("{name_path} is {:?}, and another tool has that name already.", tool.name);
            return Err(Fault::new(name_path, "invalid_value", message));
        }
        prompt.tools.push(tool);
    }
    choice(body, prompt, ignored)
}

fn tool(mut entry: Object, ignored: &mut Ignored) -> Result<Tool, Fault> {
    // A type is a tool that Anthropic runs (or whose schema its models know), except for this one.
    if let Some(kind) = entry.string("type")?.filter(|kind| kind != "custom") {
        let kind: String = kind.chars().take(64).collect();
        let path = entry.path("type");
        let message = format!("{path}: the tool {kind:?} is not available on this server; only custom tools are.");
        return Err(Fault::new(path, "unsupported_parameter", message));
    }
    let name = tools::name(&mut entry)?;
    let description = entry.string("description")?;
    let path = entry.path("input_schema");
    let parameters = match entry.take("input_schema") {
        None => return Err(entry.missing("input_schema")),
        Some(schema) => arguments::schema(path, &schema)?,
    };
    let strict = entry.bool("strict")?.unwrap_or(false);
    // Arguments are always streamed as they come; every tool is shown from the start.
    entry.accept(&["cache_control", "eager_input_streaming", "defer_loading", "allowed_callers", "input_examples"]);
    entry.finish(ignored);
    Ok(Tool { name, description, parameters, strict })
}

fn choice(body: &mut Object, prompt: &mut ChatPrompt, ignored: &mut Ignored) -> Result<(), Fault> {
    let Some(mut choice) = body.object("tool_choice")? else { return Ok(()) };
    let kind = choice.string("type")?.ok_or_else(|| choice.missing("type"))?;
    prompt.tool_choice = match kind.as_str() {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "any" | "tool" => ToolChoice::Required,
        other => return Err(invalid_value(choice.path("type"), other, "auto, any, tool, none")),
    };
    if prompt.tool_choice == ToolChoice::Required && prompt.tools.is_empty() {
        let message = format!("tool_choice is {kind:?}, but no tools are given.");
        return Err(Fault::new("tool_choice", "invalid_value", message));
    }
    if kind == "tool" {
        let name = choice.string("name")?.ok_or_else(|| choice.missing("name"))?;
        if !prompt.tools.iter().any(|tool| tool.name == name) {
            let names: Vec<&str> = prompt.tools.iter().take(16).map(|tool| tool.name.as_str()).collect();
            return Err(invalid_value(choice.path("name"), &name, &names.join(", ")));
        }
        prompt.callable = Some(vec![name]);
    }
    prompt.parallel_tool_calls = !choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
    choice.finish(ignored);
    Ok(())
}
