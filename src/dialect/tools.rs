//! Tools that clients offer: what every dialect holds them to.

use super::fields::Object;
use super::{Fault, Ignored, arguments};
use crate::chat::Tool;

/// Tools of one request, members of namespaces included; an agent with several MCP servers has about a hundred.
pub(super) const TOOLS_MAX: usize = 1024;
/// Short enough for every template.
const NAME_CHARS_MAX: usize = 128;

/// A tool's `name`. Errors: none, an empty one, one of more than 128 characters.
pub(super) fn name(tool: &mut Object) -> Result<String, Fault> {
    let name = tool.string("name")?.ok_or_else(|| tool.missing("name"))?;
    let path = tool.path("name");
    match name.chars().count() {
        0 => Err(Fault::new(&path, "empty_string", format!("{path} must not be empty."))),
        n if n > NAME_CHARS_MAX => {
            let message = format!("{path} may have at most {NAME_CHARS_MAX} characters, but it has {n}.");
            Err(Fault::new(path, "string_above_max_length", message))
        }
        _ => Ok(name),
    }
}

/// OpenAI's `function`, whose `parameters` may be left out; `accepted`: keys that mean nothing here and are not reported.
pub(super) fn function(mut function: Object, accepted: &[&str], ignored: &mut Ignored) -> Result<Tool, Fault> {
    let name = name(&mut function)?;
    let description = function.string("description")?;
    let path = function.path("parameters");
    let parameters = match function.take("parameters") {
        None => "{}".to_owned(),
        Some(schema) => arguments::schema(path, &schema)?,
    };
    let strict = function.bool("strict")?.unwrap_or(false);
    function.accept(accepted);
    function.finish(ignored);
    Ok(Tool { name, description, parameters, strict })
}
