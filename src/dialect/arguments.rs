//! A call's arguments as a JSON object, for the clients that want one instead of text, and the schema that they follow.

use super::Fault;
use super::fields::invalid_type;
use serde_json::{Map, Value};

/// The text of a tool's schema, at `path`. Whether it can be honoured is the engine's to say; that it describes an object is
/// seen here, whoever answers.
pub(super) fn schema(path: String, schema: &Value) -> Result<String, Fault> {
    let Value::Object(fields) = schema else { return Err(invalid_type(path, "an object (a JSON Schema)", schema)) };
    let is_object = match fields.get("type") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name == "object",
        Some(Value::Array(names)) => names.iter().any(|name| name == "object"),
        Some(_) => false,
    };
    if !is_object {
        let message = format!("{path} must be the schema of an object: its `type` must be \"object\".");
        return Err(Fault::new(path, "invalid_json_schema", message));
    }
    Ok(schema.to_string())
}

/// The object that `text` spells. Of a text that was cut (by a token limit), everything that is complete; of anything
/// else that is no object, nothing.
pub(super) fn object(text: &str) -> Map<String, Value> {
    let parse = |text: &str| match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    };
    parse(text).or_else(|| parse(&closed(text)?)).unwrap_or_default()
}

/// The longest beginning of `text` that ends behind a complete value, with what is open there closed.
fn closed(text: &str) -> Option<String> {
    /// serde_json reads no deeper.
    const DEPTH_MAX: usize = 128;
    let mut open: Vec<char> = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    // Where the text may end, and what would close it there.
    let mut end: Option<(usize, Vec<char>)> = None;
    for (at, c) in text.char_indices() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            '"' => in_string = true,
            '{' | '[' if open.len() == DEPTH_MAX => return None,
            '{' | '[' => {
                open.push(if c == '{' { '}' } else { ']' });
                end = Some((at + 1, open.clone()));
            }
            ',' => end = Some((at, open.clone())),
            '}' | ']' => {
                open.pop().filter(|closer| *closer == c)?;
                end = Some((at + 1, open.clone()));
            }
            _ => {}
        }
    }
    let (at, open) = end?;
    Some(text[..at].chars().chain(open.into_iter().rev()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_arguments_are_what_they_say() {
        assert_eq!(Value::Object(object(r#"{"a":[1,{"b":"}"}]}"#)), json!({"a":[1,{"b":"}"}]}));
        assert!(object("{}").is_empty() && object("").is_empty() && object("[1]").is_empty() && object("x").is_empty());
    }

    #[test]
    fn cut_arguments_keep_what_is_complete() {
        let text = r#"{"a":"x\"y","b":[1,2,{"c":true}],"d":"unfinis"#;
        assert_eq!(Value::Object(object(text)), json!({"a":"x\"y","b":[1,2,{"c":true}]}));
        assert_eq!(Value::Object(object(r#"{"a":1,"b":[1,2"#)), json!({"a":1,"b":[1]}));
        assert_eq!(Value::Object(object(r#"{"a":{"#)), json!({"a":{}}));
        for n in (0..text.len()).filter(|n| text.is_char_boundary(*n)) {
            object(&text[..n]);
        }
        assert!(object(&"[".repeat(100_000)).is_empty());
    }
}
