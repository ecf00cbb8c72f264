//! JSON Schema as clients send it → JSON Schema as llguidance reads it.
//!
//! What differs: clients expect closed objects where `additionalProperties` isn't said (OpenAI's strict mode, and what a
//! model is meant to fill in), `nullable` from OpenAPI, formats that are no more than a name, and `allOf` as inheritance.

use serde_json::{Map, Value, json};

/// Deepest nesting, and most subschemas, of a schema.
const DEPTH_MAX: usize = 64;
const NODES_MAX: usize = 20_000;
/// Most pairs of properties that needn't be there, in all objects: each may follow each, which takes llguidance a third of a
/// microsecond. A thousand in one object.
pub(in crate::engine) const PAIRS_MAX: usize = 1_000_000;
/// Most bytes of all patterns.
const PATTERNS_MAX: usize = 32 << 10;
/// `$ref`s that an `allOf` is followed through.
const REFS_MAX: usize = 16;
/// Longest string or list that may be demanded: each unit is a state of the lexer or an item of the grammar.
const LENGTH_MAX: f64 = 100_000.0;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Formats that are checked; others are names without effect, as JSON Schema says.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// What parsers of dates really take: llguidance's own patterns allow the 29th of every February, the year 0 and a 60th
/// second at any time.
const TIME: &str =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const YEAR: &str = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])";
const DAYS: &str = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|\
    02-(?:0[1-9]|1[0-9]|2[0-8]))";
const LEAP: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29";

/// The pattern that stands for a format.
fn pattern_of(format: &str) -> Option<String> {
    let date = format!("(?:{YEAR}-{DAYS}|{LEAP})");
    match format {
        "date" => Some(format!("^{date}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{date}T{TIME}$")),
        _ => None,
    }
}

/// Keywords whose values are schemas by name, lists of schemas, and one schema.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const SINGLE: [&str; 3] = ["items", "additionalProperties", "additionalItems"];

/// Any JSON object.
pub(in crate::engine) fn object() -> Value {
    json!({ "type": "object", "x-guidance": options() })
}

fn options() -> Value {
    json!({ "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false, "coerce_one_of": true })
}

/// What no one can mean: unknown types, remote or dangling references, sizes out of reach. The text says where.
pub(in crate::engine) fn check(schema: &Value) -> Result<Cost, String> {
    let mut cost = Cost::default();
    check_at(schema, schema, "", 0, &mut cost)?;
    Ok(cost)
}

/// What makes a schema slow to compile.
#[derive(Debug, Default)]
pub(in crate::engine) struct Cost {
    n_nodes: usize,
    /// See `PAIRS_MAX`.
    pub n_pairs: usize,
    n_pattern_bytes: usize,
}

impl Cost {
    fn add(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        let n_properties = object.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        let n_required = object.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        let n_optional = n_properties.saturating_sub(n_required);
        self.n_pairs += n_optional.saturating_mul(n_optional);
        self.n_pattern_bytes += object.get("pattern").and_then(Value::as_str).map_or(0, str::len);
        let patterns = object.get("patternProperties").and_then(Value::as_object);
        self.n_pattern_bytes += patterns.map_or(0, |patterns| patterns.keys().map(String::len).sum());
        if self.n_pairs > PAIRS_MAX {
            return Err(format!("it has more than {PAIRS_MAX} pairs of properties that are not required"));
        }
        if self.n_pattern_bytes > PATTERNS_MAX {
            return Err(format!("its patterns have more than {PATTERNS_MAX} bytes"));
        }
        Ok(())
    }
}

fn check_at(root: &Value, schema: &Value, path: &str, depth: usize, cost: &mut Cost) -> Result<(), String> {
    let place = if path.is_empty() { "the schema" } else { path };
    cost.n_nodes += 1;
    if depth > DEPTH_MAX {
        return Err(format!("{} is nested deeper than {DEPTH_MAX} levels", cut(place)));
    }
    if cost.n_nodes > NODES_MAX {
        return Err(format!("it has more than {NODES_MAX} parts"));
    }
    let object = match schema {
        Value::Bool(false) if depth == 0 => return Err("nothing fits it".into()),
        Value::Bool(_) => return Ok(()),
        Value::Object(object) => object,
        _ => return Err(format!("{} must be an object or a boolean", cut(place))),
    };
    check_type(object, place)?;
    cost.add(object)?;
    if let Some(reference) = object.get("$ref") {
        let text = reference.as_str().ok_or_else(|| format!("{}.$ref must be a string", cut(place)))?;
        if resolve(root, text).is_none() {
            return Err(format!("{}.$ref points to nothing in the schema: {:?}", cut(place), cut(text)));
        }
    }
    for key in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
        if let Some(n) = object.get(key) {
            let n = n.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0);
            let n = n.ok_or_else(|| format!("{}.{key} must be an integer of at least 0", cut(place)))?;
            if n > LENGTH_MAX && key.starts_with("min") {
                return Err(format!("{}.{key} may be at most {LENGTH_MAX}", cut(place)));
            }
        }
    }
    for key in NAMED {
        match object.get(key) {
            None => {}
            Some(Value::Object(members)) => {
                for (name, member) in members {
                    check_at(root, member, &format!("{path}.{key}.{name}"), depth + 1, cost)?;
                }
            }
            Some(_) => return Err(format!("{}.{key} must be an object", cut(place))),
        }
    }
    for key in LISTS {
        match object.get(key) {
            None => {}
            Some(Value::Array(members)) => {
                for (i, member) in members.iter().enumerate() {
                    check_at(root, member, &format!("{path}.{key}[{i}]"), depth + 1, cost)?;
                }
            }
            Some(_) => return Err(format!("{}.{key} must be an array", cut(place))),
        }
    }
    for key in SINGLE {
        match object.get(key) {
            Some(Value::Array(members)) if key == "items" => {
                for (i, member) in members.iter().enumerate() {
                    check_at(root, member, &format!("{path}.{key}[{i}]"), depth + 1, cost)?;
                }
            }
            Some(member) => check_at(root, member, &format!("{path}.{key}"), depth + 1, cost)?,
            None => {}
        }
    }
    Ok(())
}

fn check_type(object: &Map<String, Value>, place: &str) -> Result<(), String> {
    let one = |value: &Value| match value.as_str() {
        Some(name) if TYPES.contains(&name) => Ok(()),
        Some(name) => Err(format!("{}.type has the unknown value {:?}", cut(place), cut(name))),
        None => Err(format!("{}.type must be a string or an array of strings", cut(place))),
    };
    match object.get("type") {
        None => Ok(()),
        Some(Value::Array(types)) => types.iter().try_for_each(one),
        Some(value) => one(value),
    }
}

/// A path is made of the client's names: enough of it to find the place.
fn cut(path: &str) -> String {
    path.trim_start_matches('.').chars().take(120).collect()
}

/// What a reference inside the document means. Source: RFC 6901.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(pointer)
}

/// `close`: objects with properties and nothing said about others have no others.
pub(in crate::engine) fn normalise(schema: &Value, close: bool) -> Value {
    let mut schema = match schema {
        Value::Object(_) => convert(schema, schema, close, false),
        // A boolean has no room for options.
        Value::Bool(true) => json!({}),
        other => other.clone(), // refused by `check`
    };
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".into(), options());
    }
    schema
}

/// `composed`: the schema is one part of an object's description, so what it doesn't name may be named elsewhere.
fn convert(root: &Value, schema: &Value, close: bool, composed: bool) -> Value {
    let Value::Object(given) = schema else { return schema.clone() };
    let merged = merge_all_of(root, given);
    let given = merged.as_ref().unwrap_or(given);
    let mut out = Map::with_capacity(given.len() + 1);
    let is_composition = ["anyOf", "oneOf", "allOf", "$ref"].iter().any(|key| given.contains_key(*key));
    let describes = given.contains_key("properties") || given.contains_key("$ref");
    for (key, value) in given {
        let value = match (key.as_str(), value) {
            (key, Value::Object(members)) if NAMED.contains(&key) => {
                let converted =
                    members.iter().map(|(name, member)| (name.clone(), convert(root, member, close, false)));
                Value::Object(converted.collect())
            }
            (key, Value::Array(members)) if LISTS.contains(&key) || key == "items" => {
                let inner = match key {
                    "allOf" => true,
                    "anyOf" | "oneOf" => composed || describes,
                    _ => false,
                };
                Value::Array(members.iter().map(|member| convert(root, member, close, inner)).collect())
            }
            (key, Value::Object(_)) if SINGLE.contains(&key) => convert(root, value, close, false),
            ("format", Value::String(name)) if !given.contains_key("pattern") && pattern_of(name).is_some() => {
                out.insert("pattern".into(), pattern_of(name).into());
                continue;
            }
            ("format", Value::String(name)) if !FORMATS.contains(&name.as_str()) => continue,
            ("uniqueItems" | "deprecated", Value::Bool(false)) | ("nullable" | "x-guidance", _) => continue,
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    let closes = close && !composed && !is_composition && given.contains_key("properties");
    if closes && !given.contains_key("additionalProperties") && !given.contains_key("patternProperties") {
        out.insert("additionalProperties".into(), Value::Bool(false));
    }
    if given.get("nullable") == Some(&Value::Bool(true)) {
        return json!({ "anyOf": [Value::Object(out), { "type": "null" }] });
    }
    Value::Object(out)
}

/// Keywords that llguidance can't express.
const BEYOND: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "pattern",
    "multipleOf",
    "format",
];

/// The schema without keywords that can't be expressed, or only for some values; what is valid stays so.
pub(in crate::engine) fn relaxed(schema: &Value) -> Value {
    let Value::Object(given) = schema else { return schema.clone() };
    let mut out = Map::with_capacity(given.len());
    for (key, value) in given.iter().filter(|(key, _)| !BEYOND.contains(&key.as_str())) {
        let value = match (key.as_str(), value) {
            (key, Value::Object(members)) if NAMED.contains(&key) => {
                Value::Object(members.iter().map(|(name, member)| (name.clone(), relaxed(member))).collect())
            }
            (key, Value::Array(members)) if LISTS.contains(&key) || key == "items" => {
                Value::Array(members.iter().map(relaxed).collect())
            }
            (key, _) if SINGLE.contains(&key) => relaxed(value),
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    Value::Object(out)
}

/// An `allOf` of plain objects as one object; `None` where there is none, or it says more than that.
fn merge_all_of(root: &Value, given: &Map<String, Value>) -> Option<Map<String, Value>> {
    let members = given.get("allOf")?.as_array()?;
    let mut out = given.clone();
    out.remove("allOf");
    let mut n_refs = 0;
    for member in members {
        merge_into(&mut out, root, member, &mut n_refs)?;
    }
    Some(out)
}

fn merge_into(out: &mut Map<String, Value>, root: &Value, member: &Value, n_refs: &mut usize) -> Option<()> {
    let member = member.as_object()?;
    for (key, value) in member {
        match (key.as_str(), value) {
            ("$ref", Value::String(reference)) => {
                *n_refs += 1;
                if *n_refs > REFS_MAX {
                    return None;
                }
                merge_into(out, root, resolve(root, reference)?, n_refs)?;
            }
            ("allOf", Value::Array(members)) => {
                for member in members {
                    merge_into(out, root, member, n_refs)?;
                }
            }
            ("properties", Value::Object(properties)) => {
                let known = out.entry("properties").or_insert_with(|| json!({})).as_object_mut()?;
                for (name, property) in properties {
                    if known.insert(name.clone(), property.clone()).is_some_and(|before| before != *property) {
                        return None; // described twice: both must hold
                    }
                }
            }
            ("required", Value::Array(names)) => {
                let known = out.entry("required").or_insert_with(|| json!([])).as_array_mut()?;
                let more: Vec<Value> = names.iter().filter(|name| !known.contains(name)).cloned().collect();
                known.extend(more);
            }
            ("type", value) => {
                if out.entry("type").or_insert_with(|| value.clone()) != value {
                    return None;
                }
            }
            ("title" | "description" | "default" | "examples" | "$defs" | "definitions" | "$comment", _) => {
                out.entry(key.clone()).or_insert_with(|| value.clone());
            }
            // Closing one part would close it against the others.
            ("additionalProperties", Value::Bool(false)) => {}
            _ => return None,
        }
    }
    Some(())
}
