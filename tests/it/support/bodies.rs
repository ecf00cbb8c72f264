//! Bodies made from the schemas of `/openapi.json`: one for every property and every form it may have.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A document, for looking up its references.
#[derive(Clone, Copy)]
pub struct Schemas<'a>(pub &'a Value);

impl<'a> Schemas<'a> {
    /// The schema that a chain of references ends at, or the first that has properties beside its reference.
    fn resolve(self, mut schema: &'a Value) -> &'a Value {
        while schema.get("properties").is_none()
            && let Some(target) = self.target(schema)
        {
            schema = target;
        }
        schema
    }

    fn target(self, schema: &'a Value) -> Option<&'a Value> {
        let pointer = schema["$ref"].as_str()?;
        let target = self.0.pointer(pointer.trim_start_matches('#'));
        Some(target.unwrap_or_else(|| unreachable!("{pointer} leads nowhere")))
    }

    fn forms(self, schema: &'a Value) -> impl Iterator<Item = &'a Value> {
        let listed = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
        listed.chain(self.target(schema))
    }

    /// The paths of all properties, as `messages[].content[].text`.
    pub fn paths(self, schema: &'a Value) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.collect(schema, "", &mut found);
        found
    }

    fn collect(self, schema: &'a Value, path: &str, found: &mut BTreeSet<String>) {
        assert!(path.len() < 400, "a schema holds itself: {path}");
        let schema = self.resolve(schema);
        for form in self.forms(schema) {
            self.collect(form, path, found);
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            self.collect(property, &path, found);
            found.insert(path);
        }
        if schema.get("items").is_some() {
            self.collect(&schema["items"], &format!("{path}[]"), found);
        }
    }

    /// The least that satisfies a schema.
    pub fn least(self, schema: &'a Value) -> Value {
        let schema = self.resolve(schema);
        if let Some(example) = schema["examples"].get(0).or(schema.get("const")) {
            return example.clone();
        }
        if let Some(first) = schema["enum"].get(0) {
            return first.clone();
        }
        if let Some(form) = self.forms(schema).find(|form| form["type"] != "null") {
            return self.with_own(schema, self.least(form));
        }
        match type_of(schema) {
            "object" => self.with_own(schema, json!({})),
            "array" if schema["minItems"].as_u64() > Some(0) => json!([self.least(&schema["items"])]),
            "array" => json!([]),
            "string" => json!("x"),
            "integer" => json!(schema["minimum"].as_f64().map_or(1, |min| min.max(1.0) as i64)),
            "number" => json!(schema["minimum"].as_f64().unwrap_or(0.0).max(0.0)),
            "boolean" => json!(true),
            _ => json!({}),
        }
    }

    fn with_own(self, schema: &'a Value, mut value: Value) -> Value {
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(fields) = value.as_object_mut() {
                fields.insert(key.to_owned(), self.least(&schema["properties"][key]));
            }
        }
        value
    }

    /// Values that together have every property, in each of its forms, at least once.
    pub fn values(self, schema: &'a Value) -> Vec<Value> {
        let schema = self.resolve(schema);
        let mut values: Vec<Value> = schema["examples"].as_array().into_iter().flatten().cloned().collect();
        if let Some(only) = schema.get("const") {
            return vec![only.clone()];
        }
        if let Some(all) = schema["enum"].as_array() {
            return all.iter().filter(|value| !value.is_null()).cloned().collect();
        }
        for form in self.forms(schema).filter(|form| form["type"] != "null") {
            values.extend(self.values(form).into_iter().map(|value| self.with_own(schema, value)));
        }
        let bases: Vec<Value> = match schema.get("properties") {
            Some(_) if values.is_empty() => vec![self.with_own(schema, json!({}))],
            Some(_) => values.clone(),
            None => Vec::new(),
        };
        values.extend(bases.clone());
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            for value in self.values(property) {
                for base in bases.iter().filter_map(Value::as_object) {
                    let mut fields: Map<String, Value> = base.clone();
                    fields.insert(key.clone(), value.clone());
                    values.push(fields.into());
                }
            }
        }
        if schema.get("items").is_some() {
            values.extend(self.values(&schema["items"]).into_iter().map(|value| json!([value])));
        }
        if values.is_empty() { vec![self.least(schema)] } else { values }
    }

    /// Every property with a value of a type that it doesn't have: (the path, the body).
    pub fn wrong_types(self, schema: &'a Value) -> Vec<(String, Value)> {
        let mut wrong = Vec::new();
        let schema = self.resolve(schema);
        // What one kind of array doesn't hold may be what another does.
        let n_arrays = self.forms(schema).filter(|form| form.get("items").is_some()).count();
        for form in self.forms(schema) {
            let own = |(path, value)| (path, self.with_own(schema, value));
            let these = self.wrong_types(form).into_iter().filter(|(path, _)| n_arrays < 2 || !path.starts_with('['));
            wrong.extend(these.map(own));
        }
        let mut base = self.least(schema);
        if base.as_object().is_none() {
            base = json!({});
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let mut put = |path: String, value: Value| {
                let mut body = base.clone();
                body[key.as_str()] = value;
                wrong.push((path, body));
            };
            for (path, value) in self.wrong_types(property) {
                let dot = if path.starts_with('[') { "" } else { "." };
                put(format!("{key}{dot}{path}"), value);
            }
            for value in self.foreign(property) {
                put(key.clone(), value);
            }
        }
        if schema.get("items").is_some() {
            for (path, value) in self.wrong_types(&schema["items"]) {
                wrong.push((
                    if path.starts_with('[') { format!("[0]{path}") } else { format!("[0].{path}") },
                    json!([value]),
                ));
            }
            for value in self.foreign(&schema["items"]) {
                wrong.push(("[0]".to_owned(), json!([value])));
            }
        }
        wrong
    }

    /// Values of types that the schema doesn't allow; none where it allows any.
    fn foreign(self, schema: &'a Value) -> Vec<Value> {
        let allowed = self.types(schema);
        if allowed.contains("any") {
            return Vec::new();
        }
        let one_of_each = [
            ("boolean", json!(true)),
            ("integer", json!(7)),
            ("number", json!(0.5)),
            ("string", json!("no such thing")),
            ("array", json!([null])),
            ("object", json!({"no such": "thing"})),
        ];
        let is_foreign = |name: &str| !(allowed.contains(name) || name == "integer" && allowed.contains("number"));
        one_of_each.into_iter().filter(|(name, _)| is_foreign(name)).map(|(_, value)| value).collect()
    }

    fn types(self, schema: &'a Value) -> BTreeSet<&'a str> {
        let schema = self.resolve(schema);
        let mut types: BTreeSet<&'a str> = self.forms(schema).flat_map(|form| self.types(form)).collect();
        match &schema["type"] {
            Value::String(name) => drop(types.insert(name)),
            Value::Array(names) => types.extend(names.iter().filter_map(Value::as_str)),
            _ => types.extend(
                schema["enum"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .chain(schema.get("const"))
                    .map(|value| kind(value) as &str),
            ),
        }
        if types.is_empty() {
            types.insert("any");
        }
        types
    }

    /// Paths of what a value has and its schema doesn't describe.
    pub fn undescribed(self, schema: &'a Value, value: &Value, path: &str) -> Vec<String> {
        let schema = self.resolve(schema);
        let known = schema["properties"].as_object();
        let mut missing = Vec::new();
        let mut rest = value.clone();
        for (key, property) in known.into_iter().flatten() {
            if let Some(value) = rest.as_object_mut().and_then(|fields| fields.shift_remove(key)) {
                missing.extend(self.undescribed(property, &value, &format!("{path}.{key}")));
            }
        }
        if let Value::Array(values) = value
            && schema.get("items").is_some()
        {
            missing.extend(
                values.iter().flat_map(|value| self.undescribed(&schema["items"], value, &format!("{path}[]"))),
            );
        }
        let fitting = self.forms(schema).filter(|form| self.fits(form, value));
        if let Some(best) = fitting.map(|form| self.undescribed(form, &rest, path)).min_by_key(Vec::len) {
            missing.extend(best);
        } else if let Value::Object(fields) = &rest {
            let is_open = schema.get("additionalProperties").is_some_and(|more| *more != false)
                || (known.is_none() && schema.get("additionalProperties").is_none());
            if !is_open {
                missing.extend(fields.keys().map(|key| format!("{path}.{key}")));
            }
        }
        missing
    }

    fn fits(self, schema: &'a Value, value: &Value) -> bool {
        let types = self.types(schema);
        let kind = kind(value);
        types.contains("any") || types.contains(kind) || (kind == "integer" && types.contains("number"))
    }
}

fn type_of(schema: &Value) -> &str {
    match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("any"),
        name => name.as_str().unwrap_or("any"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
