//! `tools`, `tool_choice`, `parallel_tool_calls`, and their older form `functions`, `function_call`.

use crate::chat::{ChatPrompt, ToolChoice};
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::tools::{self, TOOLS_MAX};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// The form in which a client offered its tools, and so expects the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallStyle {
    #[default]
    ToolCalls,
    /// `functions`: `message.function_call`, at most one.
    FunctionCall,
}

/// Reads both forms into `prompt`; giving both is refused.
pub(super) fn tools(body: &mut Object, prompt: &mut ChatPrompt, ignored: &mut Ignored) -> Result<CallStyle, Fault> {
    let tools = body.array("tools")?.unwrap_or_default();
    let functions = body.array("functions")?.unwrap_or_default();
    let style = match (tools.is_empty(), functions.is_empty()) {
        (false, false) => return Err(contradiction("functions", "tools")),
        (true, false) => CallStyle::FunctionCall,
        _ => CallStyle::ToolCalls,
    };
    let (key, values) = if functions.is_empty() { ("tools", tools) } else { ("functions", functions) };
    if values.len() > TOOLS_MAX {
        return Err(too_many(key, values.len(), TOOLS_MAX));
    }
    for (i, value) in values.into_iter().enumerate() {
        let path = format!("{key}[{i}]");
        let function = match style {
            CallStyle::ToolCalls => wrapped(path, value, ignored)?,
            CallStyle::FunctionCall => Object::at(path, value)?,
        };
        let name_path = function.path("name");
        let tool = tools::function(function, &["cache_control"], ignored)?;
        if prompt.tools.iter().any(|other| other.name == tool.name) {
            let message = format!("{name_path} is {:?}, and another tool has that name already.", tool.name);
            return Err(Fault::new(name_path, "invalid_value", message));
        }
        prompt.tools.push(tool);
    }
    choice(body, prompt, ignored)?;
    // The older form has room for one call in an answer.
    let parallel = body.bool("parallel_tool_calls")?.unwrap_or(true);
    prompt.parallel_tool_calls = parallel && style == CallStyle::ToolCalls;
    Ok(style)
}

fn contradiction(key: &str, other: &str) -> Fault {
    Fault::new(key, "invalid_value", format!("{key} and {other} can't both be given."))
}

/// The `function` in an entry of `tools`.
fn wrapped(path: String, value: Value, ignored: &mut Ignored) -> Result<Object, Fault> {
    let mut entry = Object::at(path, value)?;
    let kind = entry.string("type")?.ok_or_else(|| entry.missing("type"))?;
    if kind != "function" {
        return Err(invalid_value(entry.path("type"), &kind, "function"));
    }
    let function = entry.object("function")?.ok_or_else(|| entry.missing("function"))?;
    entry.accept(&["cache_control"]);
    entry.finish(ignored);
    Ok(function)
}

fn choice(body: &mut Object, prompt: &mut ChatPrompt, ignored: &mut Ignored) -> Result<(), Fault> {
    let (newer, older) = (body.take("tool_choice"), body.take("function_call"));
    let (key, value) = match (newer, older) {
        (Some(_), Some(_)) => return Err(contradiction("function_call", "tool_choice")),
        (Some(value), None) => ("tool_choice", value),
        (None, Some(value)) => ("function_call", value),
        (None, None) => return Ok(()),
    };
    let chosen = match value {
        Value::String(word) => {
            let words = if key == "tool_choice" { "none, auto, required" } else { "none, auto" };
            prompt.tool_choice = match word.as_str() {
                "none" => ToolChoice::None,
                "auto" => ToolChoice::Auto,
                "required" if key == "tool_choice" => ToolChoice::Required,
                other => return Err(invalid_value(key, other, words)),
            };
            None
        }
        Value::Object(_) => {
            let object = Object::at(key, value)?;
            let (choice, names) = if key == "tool_choice" { chosen(object, ignored)? } else { named(object, ignored)? };
            prompt.tool_choice = choice;
            Some(names)
        }
        other => return Err(invalid_type(key, "a string or an object", &other)),
    };
    let fault = |message: String| Fault::new(key, "invalid_value", message);
    if prompt.tools.is_empty() && (prompt.tool_choice == ToolChoice::Required || chosen.is_some()) {
        return Err(fault(format!("{key} asks for a call, but no tools are given.")));
    }
    let Some(names) = chosen else { return Ok(()) };
    for name in &names {
        if !prompt.tools.iter().any(|tool| tool.name == *name) {
            let shown: String = name.chars().take(64).collect();
            return Err(fault(format!("{key} names {shown:?}, and no tool of the request has that name.")));
        }
    }
    // The only tool there is, is chosen without a word about the others.
    prompt.callable = (names.len() < prompt.tools.len()).then_some(names);
    Ok(())
}

/// A named function, or some of the tools.
fn chosen(mut object: Object, ignored: &mut Ignored) -> Result<(ToolChoice, Vec<String>), Fault> {
    let kind = object.string("type")?.ok_or_else(|| object.missing("type"))?;
    let inner = match kind.as_str() {
        "function" | "allowed_tools" => object.object(&kind)?.ok_or_else(|| object.missing(&kind))?,
        other => return Err(invalid_value(object.path("type"), other, "function, allowed_tools")),
    };
    object.finish(ignored);
    if kind == "function" { named(inner, ignored) } else { allowed(inner, ignored) }
}

fn named(mut function: Object, ignored: &mut Ignored) -> Result<(ToolChoice, Vec<String>), Fault> {
    let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
    function.finish(ignored);
    Ok((ToolChoice::Required, vec![name]))
}

fn allowed(mut object: Object, ignored: &mut Ignored) -> Result<(ToolChoice, Vec<String>), Fault> {
    let choice = match object.string("mode")?.as_deref() {
        Some("auto") => ToolChoice::Auto,
        Some("required") => ToolChoice::Required,
        Some(other) => return Err(invalid_value(object.path("mode"), other, "auto, required")),
        None => return Err(object.missing("mode")),
    };
    let path = object.path("tools");
    let values = object.array("tools")?.ok_or_else(|| object.missing("tools"))?;
    if values.is_empty() {
        return Err(crate::dialect::fields::empty_array(path));
    }
    if values.len() > TOOLS_MAX {
        return Err(too_many(path, values.len(), TOOLS_MAX));
    }
    let mut names: Vec<String> = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut function = wrapped(format!("{path}[{i}]"), value, ignored)?;
        let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
        function.finish(ignored);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    object.finish(ignored);
    Ok((choice, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Role};
    use serde_json::json;

    fn read(body: Value) -> Result<(ChatPrompt, CallStyle), Fault> {
        let mut prompt = ChatPrompt::new(vec![Message::new(Role::User, "x")]);
        let mut body = Object::parse(body.to_string().as_bytes())?;
        let style = tools(&mut body, &mut prompt, &mut Ignored::default())?;
        Ok((prompt, style))
    }

    fn fault(body: Value) -> (String, &'static str) {
        let shown = body.to_string();
        let fault = read(body).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type":"function","function":{"name":name}})
    }

    fn with_choice(choice: Value) -> Value {
        json!({"tools":[function("f"), function("g")], "tool_choice": choice})
    }

    #[test]
    fn tools_are_kept_with_their_schemas_text() {
        let schema =
            json!({"$schema":"http://x","type":"object","properties":{"a":{"format":"date","anyOf":[{}],"default":1}}});
        let (prompt, style) = read(json!({"tools":[
            {"type":"function","function":{"name":"a.b-c","description":"d","parameters":schema,"strict":true}},
            function("g"),
        ]}))
        .unwrap();
        assert_eq!((style, prompt.tool_choice, prompt.callable), (CallStyle::ToolCalls, ToolChoice::Auto, None));
        assert_eq!(prompt.tools[0].parameters, schema.to_string(), "TOOL-11");
        assert_eq!((prompt.tools[0].name.as_str(), prompt.tools[0].description.as_deref()), ("a.b-c", Some("d")));
        assert_eq!(prompt.tools[1].parameters, "{}");
        assert!(
            prompt.parallel_tool_calls && !read(json!({"parallel_tool_calls":false})).unwrap().0.parallel_tool_calls
        );
    }

    /// TOOL-10.
    #[test]
    fn bad_tools_are_refused_at_their_place() {
        let one = |tool: Value| fault(json!({"tools":[function("ok"), tool]}));
        let with = |name: Value, parameters: Value| json!({"type":"function","function":{"name":name,"parameters":parameters}});
        for (tool, param, code) in [
            (json!(1), "tools[1]", "invalid_type"),
            (json!({"function":{"name":"f"}}), "tools[1].type", "missing_required_parameter"),
            (json!({"type":"custom","custom":{"name":"f"}}), "tools[1].type", "invalid_value"),
            (json!({"type":"web_search"}), "tools[1].type", "invalid_value"),
            (json!({"type":"function"}), "tools[1].function", "missing_required_parameter"),
            (json!({"type":"function","function":{}}), "tools[1].function.name", "missing_required_parameter"),
            (with(json!(""), json!({})), "tools[1].function.name", "empty_string"),
            (with(json!("x".repeat(129)), json!({})), "tools[1].function.name", "string_above_max_length"),
            (with(json!("ok"), json!({})), "tools[1].function.name", "invalid_value"),
            (with(json!("f"), json!("{}")), "tools[1].function.parameters", "invalid_type"),
            (with(json!("f"), json!({"type":"string"})), "tools[1].function.parameters", "invalid_json_schema"),
        ] {
            assert_eq!(one(tool), (param.to_owned(), code));
        }
        assert_eq!(fault(json!({"tools":{}})), ("tools".into(), "invalid_type"));
        assert_eq!(fault(json!({"tools":vec![function("f"); 2000]})), ("tools".into(), "array_above_max_length"));
        assert_eq!(fault(json!({"tools":[function("f")],"functions":[{"name":"f"}]})).0, "functions");
    }

    #[test]
    fn every_form_of_choice() {
        let chosen = |choice: Value| {
            let prompt = read(with_choice(choice)).unwrap().0;
            (prompt.tool_choice, prompt.callable)
        };
        assert_eq!(chosen(json!(null)), (ToolChoice::Auto, None));
        assert_eq!(chosen(json!("none")), (ToolChoice::None, None));
        assert_eq!(chosen(json!("required")), (ToolChoice::Required, None));
        assert_eq!(chosen(function("g")), (ToolChoice::Required, Some(vec!["g".into()])));
        let allowed = |mode: &str, names: &[&str]| {
            let tools: Vec<Value> = names.iter().map(|name| function(name)).collect();
            json!({"type":"allowed_tools","allowed_tools":{"mode":mode,"tools":tools}})
        };
        assert_eq!(chosen(allowed("auto", &["f"])), (ToolChoice::Auto, Some(vec!["f".into()])));
        assert_eq!(chosen(allowed("required", &["g", "f", "g"])), (ToolChoice::Required, None));
        for choice in [
            json!("any"),
            json!(5),
            json!({}),
            json!({"type":"custom","custom":{"name":"f"}}),
            json!({"type":"function"}),
            function("h"),
            allowed("maybe", &["f"]),
            allowed("auto", &[]),
            allowed("auto", &["h"]),
        ] {
            let (param, _) = fault(with_choice(choice));
            assert!(param.starts_with("tool_choice"), "{param}");
        }
    }

    #[test]
    fn a_choice_without_tools() {
        for choice in [json!("auto"), json!("none"), json!(null)] {
            assert!(read(json!({"tools":[],"tool_choice":choice,"function_call":null})).is_ok());
        }
        assert_eq!(fault(json!({"tool_choice":"required"})), ("tool_choice".into(), "invalid_value"));
        assert_eq!(fault(json!({"tool_choice":function("f")})).0, "tool_choice");
        assert_eq!(fault(json!({"function_call":{"name":"f"}})).0, "function_call");
    }

    /// TOOL-09.
    #[test]
    fn the_older_form_is_one_call() {
        let (prompt, style) =
            read(json!({"functions":[{"name":"f"},{"name":"g"}],"function_call":{"name":"g"}})).unwrap();
        assert_eq!(
            (style, prompt.tool_choice, prompt.callable),
            (CallStyle::FunctionCall, ToolChoice::Required, Some(vec!["g".into()]))
        );
        assert!(!prompt.parallel_tool_calls);
        assert_eq!(fault(json!({"functions":[{"name":"f"},{}]})).0, "functions[1].name");
        assert_eq!(fault(json!({"functions":[{"name":"f"}],"function_call":"required"})).0, "function_call");
    }
}
