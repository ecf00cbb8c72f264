//! What the answer's text must be: `response_format`, llama.cpp's `grammar` and `json_schema`, vLLM's `guided_…` and
//! `structured_outputs`.

use crate::chat::Constraint;
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored};
use serde_json::Value;

/// Bytes of one grammar, schema or expression; a schema of 200 properties with 3000 values has about 100 KB.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Texts of one `choice`.
const CHOICES_MAX: usize = 4096;

/// What can't be honoured: each changes what the constraint lets through.
const REFUSED: [&str; 2] = ["guided_whitespace_pattern", "structural_tag"];
const REFUSED_OUTPUTS: [&str; 4] =
    ["structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"];

/// A constraint and the field that asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub field: String,
    pub constraint: Constraint,
}

/// The one constraint of a request; two are refused, whatever they say.
pub(super) fn constraint(body: &mut Object, ignored: &mut Ignored) -> Result<Option<Asked>, Fault> {
    for key in REFUSED {
        if body.take(key).is_some_and(|value| asks(&value)) {
            return Err(body.unsupported(key, "this server can't honour it"));
        }
    }
    // Which library compiles a constraint doesn't change what it means.
    body.accept(&["guided_decoding_backend"]);
    let mut asked: Vec<Asked> = Vec::new();
    let mut add = |field: String, constraint: Option<Constraint>| {
        asked.extend(constraint.map(|constraint| Asked { field, constraint }));
    };
    let (field, constraint) = response_format(body, ignored)?;
    add(field, constraint);
    for (key, read) in SIMPLE {
        let path = body.path(key);
        let constraint = body.take(key).map(|value| read(&path, value)).transpose()?.flatten();
        add(path, constraint);
    }
    for (field, constraint) in structured_outputs(body, ignored)? {
        add(field, Some(constraint));
    }
    let mut asked = asked.into_iter();
    match (asked.next(), asked.next()) {
        (Some(first), Some(second)) => {
            let message =
                format!("{} and {} both say what the answer must be; only one of them can.", first.field, second.field);
            Err(Fault::new(second.field, "invalid_value", message))
        }
        (first, _) => Ok(first),
    }
}

/// Where the client wrote what the engine calls `field`: it knows a constraint by its kind only.
pub fn constraint_name(asked: Option<&str>, field: &str) -> String {
    match (asked, field) {
        (Some(path), "response_format" | "grammar" | "regex" | "choice") => path.to_owned(),
        _ => field.to_owned(),
    }
}

type Read = fn(&str, Value) -> Result<Option<Constraint>, Fault>;

const SIMPLE: [(&str, Read); 6] = [
    ("grammar", gbnf),
    ("json_schema", |path, value| schema(path, &value).map(Some)),
    ("guided_json", schema_or_text),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", grammar),
];

/// Whether a value asks for something; `""`, `[]` and `false` say "none" in every field this is used for.
pub(in crate::dialect) fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => true,
    }
}

fn response_format(body: &mut Object, ignored: &mut Ignored) -> Result<(String, Option<Constraint>), Fault> {
    let path = body.path("response_format");
    let Some(mut format) = body.object("response_format")? else { return Ok((path, None)) };
    let kind = format.string("type")?.ok_or_else(|| format.missing("type"))?;
    let (field, constraint) = match kind.as_str() {
        "text" => (path, None),
        "json_object" => match format.take("schema") {
            None => (path, Some(Constraint::JsonObject)),
            Some(value) => (format.path("schema"), Some(schema(&format.path("schema"), &value)?)),
        },
        "json_schema" => {
            let mut inner = format.object("json_schema")?.ok_or_else(|| format.missing("json_schema"))?;
            let path = inner.path("schema");
            let constraint = match inner.take("schema") {
                None => Constraint::JsonObject,
                Some(value) => schema(&path, &value)?,
            };
            inner.string("name")?;
            inner.string("description")?;
            inner.bool("strict")?;
            inner.finish(ignored);
            (path, Some(constraint))
        }
        other => return Err(invalid_value(format.path("type"), other, "text, json_object, json_schema")),
    };
    format.finish(ignored);
    Ok((field, constraint))
}

/// vLLM's object of constraints.
fn structured_outputs(body: &mut Object, ignored: &mut Ignored) -> Result<Vec<(String, Constraint)>, Fault> {
    let Some(mut outputs) = body.object("structured_outputs")? else { return Ok(Vec::new()) };
    for key in REFUSED_OUTPUTS {
        if outputs.take(key).is_some_and(|value| asks(&value)) {
            return Err(outputs.unsupported(key, "this server can't honour it"));
        }
    }
    outputs.accept(&["disable_fallback"]);
    let mut found = Vec::new();
    if outputs.bool("json_object")?.unwrap_or(false) {
        found.push((outputs.path("json_object"), Constraint::JsonObject));
    }
    let readers: [(&str, Read); 4] =
        [("json", schema_or_text), ("regex", regex), ("choice", choice), ("grammar", grammar)];
    for (key, read) in readers {
        let path = outputs.path(key);
        if let Some(constraint) = outputs.take(key).map(|value| read(&path, value)).transpose()?.flatten() {
            found.push((path, constraint));
        }
    }
    outputs.finish(ignored);
    Ok(found)
}

/// A schema is an object, or `true` for any value. Its own rules are the engine's to check.
fn schema(path: &str, value: &Value) -> Result<Constraint, Fault> {
    let fault = |why: &str| Fault::new(path, "invalid_json_schema", format!("{path} {why}."));
    match value {
        Value::Object(_) | Value::Bool(true) => {}
        Value::Bool(false) => return Err(fault("is false, and no answer can satisfy that")),
        other => {
            let kind = crate::dialect::fields::type_name(other);
            return Err(fault(&format!("must be a JSON Schema (an object or true), but it is {kind}")));
        }
    }
    bounded(path, value.to_string()).map(Constraint::JsonSchema)
}

/// vLLM takes a schema as an object or as its text.
fn schema_or_text(path: &str, value: Value) -> Result<Option<Constraint>, Fault> {
    let value = match value {
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => {
            let text = bounded(path, text)?;
            crate::dialect::json::parse_value(text.as_bytes()).map_err(|error| {
                Fault::new(path, "invalid_json_schema", format!("{path} is a text that is not valid JSON: {error}."))
            })?
        }
        other => other,
    };
    schema(path, &value).map(Some)
}

fn text(path: &str, value: Value) -> Result<Option<String>, Fault> {
    match value {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => bounded(path, text).map(Some),
        other => Err(invalid_type(path, "a string", &other)),
    }
}

fn gbnf(path: &str, value: Value) -> Result<Option<Constraint>, Fault> {
    Ok(text(path, value)?.map(Constraint::Gbnf))
}

fn regex(path: &str, value: Value) -> Result<Option<Constraint>, Fault> {
    Ok(text(path, value)?.map(Constraint::Regex))
}

/// vLLM's grammars are GBNF or Lark; only GBNF defines its rules with `::=`.
fn grammar(path: &str, value: Value) -> Result<Option<Constraint>, Fault> {
    let is_gbnf = |text: &str| text.contains("::=");
    Ok(text(path, value)?.map(|text| if is_gbnf(&text) { Constraint::Gbnf(text) } else { Constraint::Lark(text) }))
}

fn choice(path: &str, value: Value) -> Result<Option<Constraint>, Fault> {
    let Value::Array(values) = value else { return Err(invalid_type(path, "an array of strings", &value)) };
    if values.is_empty() {
        return Err(empty_array(path));
    }
    if values.len() > CHOICES_MAX {
        return Err(too_many(path, values.len(), CHOICES_MAX));
    }
    let mut n_bytes = 0;
    let mut texts = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        match value {
            Value::String(text) => {
                n_bytes += text.len();
                texts.push(text);
            }
            other => return Err(invalid_type(format!("{path}[{i}]"), "a string", &other)),
        }
    }
    within(path, n_bytes)?;
    Ok(Some(Constraint::Choice(texts)))
}

fn bounded(path: &str, text: String) -> Result<String, Fault> {
    within(path, text.len())?;
    Ok(text)
}

fn within(path: &str, n_bytes: usize) -> Result<(), Fault> {
    if n_bytes <= TEXT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{path} may have at most {TEXT_BYTES_MAX} bytes, but it has {n_bytes}.");
    Err(Fault::new(path, "string_above_max_length", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Option<(String, Constraint)>, Fault> {
        let mut body = Object::parse(body.to_string().as_bytes())?;
        let asked = constraint(&mut body, &mut Ignored::default())?;
        Ok(asked.map(|asked| (asked.field, asked.constraint)))
    }

    fn fault(body: Value) -> (String, &'static str) {
        let shown = body.to_string();
        let fault = read(body).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn every_way_of_asking() {
        let schema = || Constraint::JsonSchema("{\"b\":1,\"a\":2}".into());
        for (body, field, constraint) in [
            (json!({"response_format":{"type":"json_object"}}), "response_format", Constraint::JsonObject),
            (
                json!({"response_format":{"type":"json_object","schema":{"b":1,"a":2}}}),
                "response_format.schema",
                schema(),
            ),
            (
                json!({"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"b":1,"a":2},"strict":true}}}),
                "response_format.json_schema.schema",
                schema(),
            ),
            (
                json!({"response_format":{"type":"json_schema","json_schema":{"name":"n"}}}),
                "response_format.json_schema.schema",
                Constraint::JsonObject,
            ),
            (json!({"grammar":"root ::= \"a\""}), "grammar", Constraint::Gbnf("root ::= \"a\"".into())),
            (json!({"json_schema":{"b":1,"a":2}}), "json_schema", schema()),
            (json!({"guided_json":{"b":1,"a":2}}), "guided_json", schema()),
            (json!({"guided_json":"{\"b\": 1, \"a\": 2}"}), "guided_json", schema()),
            (json!({"guided_regex":"a+"}), "guided_regex", Constraint::Regex("a+".into())),
            (json!({"guided_choice":["a","b"]}), "guided_choice", Constraint::Choice(vec!["a".into(), "b".into()])),
            (json!({"guided_grammar":"start: \"a\""}), "guided_grammar", Constraint::Lark("start: \"a\"".into())),
            (json!({"structured_outputs":{"json":{"b":1,"a":2}}}), "structured_outputs.json", schema()),
            (
                json!({"structured_outputs":{"json_object":true}}),
                "structured_outputs.json_object",
                Constraint::JsonObject,
            ),
            (json!({"structured_outputs":{"regex":"x"}}), "structured_outputs.regex", Constraint::Regex("x".into())),
            (
                json!({"structured_outputs":{"grammar":"root ::= x"}}),
                "structured_outputs.grammar",
                Constraint::Gbnf("root ::= x".into()),
            ),
        ] {
            assert_eq!(
                read(body).unwrap(),
                Some((field.to_owned(), constraint)),
                "properties keep their order: JSON-09"
            );
        }
    }

    #[test]
    fn what_asks_for_nothing() {
        for body in [
            json!({}),
            json!({"response_format":{"type":"text"},"grammar":"","guided_regex":"","guided_decoding_backend":"x"}),
            json!({"structured_outputs":{"json":null,"json_object":false}}),
        ] {
            assert_eq!(read(body).unwrap(), None);
        }
    }

    #[test]
    fn faults_name_the_field() {
        let schema_path = "response_format.json_schema.schema";
        let format = |schema: Value| json!({"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":schema}}});
        for (body, param, code) in [
            (json!({"response_format":"text"}), "response_format", "invalid_type"),
            (json!({"response_format":{}}), "response_format.type", "missing_required_parameter"),
            (json!({"response_format":{"type":"yaml"}}), "response_format.type", "invalid_value"),
            (
                json!({"response_format":{"type":"json_schema"}}),
                "response_format.json_schema",
                "missing_required_parameter",
            ),
            (format(json!("x")), schema_path, "invalid_json_schema"),
            (format(json!([])), schema_path, "invalid_json_schema"),
            (format(json!(false)), schema_path, "invalid_json_schema"),
            (json!({"json_schema":5}), "json_schema", "invalid_json_schema"),
            (json!({"guided_json":"{"}), "guided_json", "invalid_json_schema"),
            (json!({"guided_choice":[]}), "guided_choice", "empty_array"),
            (json!({"guided_choice":["a",1]}), "guided_choice[1]", "invalid_type"),
            (json!({"guided_choice":vec!["x";5000]}), "guided_choice", "array_above_max_length"),
            (json!({"guided_regex":1}), "guided_regex", "invalid_type"),
            (json!({"grammar":"x".repeat(2 << 20)}), "grammar", "string_above_max_length"),
            (json!({"guided_whitespace_pattern":" "}), "guided_whitespace_pattern", "unsupported_parameter"),
            (
                json!({"structured_outputs":{"regex":"a","whitespace_pattern":" "}}),
                "structured_outputs.whitespace_pattern",
                "unsupported_parameter",
            ),
        ] {
            assert_eq!(fault(body), (param.to_owned(), code));
        }
    }

    #[test]
    fn two_constraints_are_refused_and_both_named() {
        let fault = read(json!({"response_format":{"type":"json_object"},"grammar":"root ::= x"})).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("grammar"));
        assert!(fault.message.contains("response_format and grammar"), "{}", fault.message);
        assert_eq!(
            super::tests::fault(json!({"structured_outputs":{"regex":"a","choice":["b"]}})).0,
            "structured_outputs.choice"
        );
    }
}
