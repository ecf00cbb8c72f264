//! Schemas for llama.cpp's converter, which makes the grammars of formats whose arguments are not JSON.

use super::calls::Callable;
use serde_json::{Value, json};

/// Largest schemas of a request that llama.cpp makes a grammar of, in their values, and the longest repetitions it unrolls.
const GBNF_NODES_MAX: usize = 20_000;
const GBNF_REPEAT_MAX: u64 = 256;
/// Most ways that a value may go on: llama.cpp follows all of them, for every token of the vocabulary.
const GBNF_CHOICES_MAX: usize = 256;
/// Most properties of the arguments where not all can be told, and most pairs of properties in all objects.
const GBNF_NAMES_MAX: usize = 64;
const GBNF_PAIRS_MAX: usize = 40_000;
impl Callable<'_> {
    /// For llama.cpp's converter: what it can't express is left out, so that an argument is JSON in any case.
    pub fn convertible(&self, budget: &mut Budget) -> String {
        let before = *budget;
        if let Some(converted) = convertible(self.schema(), budget) {
            return converted.to_string();
        }
        *budget = before;
        let names = self.schema().get("properties").and_then(Value::as_object);
        let names = names.into_iter().flatten().take(GBNF_NAMES_MAX);
        let properties: serde_json::Map<String, Value> = names.map(|(name, _)| (name.clone(), json!({}))).collect();
        let named = json!({ "type": "object", "properties": properties });
        convertible(&named, budget).unwrap_or_else(|| json!({ "type": "object" })).to_string()
    }
}

/// What the conversion of a request's tools may still cost.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    n_nodes: usize,
    /// llama.cpp's converter takes time with the square of an object's properties.
    n_pairs: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { n_nodes: GBNF_NODES_MAX, n_pairs: GBNF_PAIRS_MAX }
    }
}

/// `None`: it costs more than the budget holds.
fn convertible(schema: &Value, budget: &mut Budget) -> Option<Value> {
    budget.n_nodes = budget.n_nodes.checked_sub(1)?;
    match schema {
        Value::Array(members) => members.iter().map(|member| convertible(member, budget)).collect(),
        Value::Object(members) => {
            let mut out = serde_json::Map::with_capacity(members.len());
            for (key, value) in members {
                let value = match (key.as_str(), value) {
                    ("pattern", Value::String(pattern)) => match plain_pattern(pattern) {
                        Some(pattern) => json!(pattern),
                        None => continue,
                    },
                    ("minLength" | "maxLength" | "minItems" | "maxItems", Value::Number(n))
                        if n.as_u64().is_none_or(|n| n > GBNF_REPEAT_MAX) =>
                    {
                        continue;
                    }
                    ("enum" | "anyOf" | "oneOf", Value::Array(choices)) if choices.len() > GBNF_CHOICES_MAX => continue,
                    ("properties", Value::Object(inner)) => {
                        budget.n_pairs = budget.n_pairs.checked_sub(inner.len().saturating_mul(inner.len()))?;
                        convertible(value, budget)?
                    }
                    ("description" | "title" | "default" | "$schema" | "$comment", Value::String(_)) => continue,
                    _ => convertible(value, budget)?,
                };
                out.insert(key.clone(), value);
            }
            Some(Value::Object(out))
        }
        other => Some(other.clone()),
    }
}

/// A pattern that llama.cpp's converter turns into what it means; others it takes for any string, or lets quotes through.
fn plain_pattern(pattern: &str) -> Option<String> {
    let inner = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let (mut out, mut is_class) = (String::from("^"), false);
    let mut rest = inner.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\\' => match (rest.next()?, is_class) {
                ('d', true) => out.push_str("0-9"),
                ('d', false) => out.push_str("[0-9]"),
                ('w', true) => out.push_str("A-Za-z0-9_"),
                ('w', false) => out.push_str("[A-Za-z0-9_]"),
                (escaped @ ('.' | '(' | ')' | '+' | '*' | '?'), false) => out.extend(['\\', escaped]),
                _ => return None,
            },
            '[' if !is_class && rest.peek() != Some(&'^') => {
                is_class = true;
                out.push('[');
            }
            ']' if is_class => {
                is_class = false;
                out.push(']');
            }
            '-' if is_class => out.push('-'),
            '(' | ')' | '|' | '+' | '*' | '?' | '{' | '}' | ',' if !is_class => out.push(letter),
            letter if letter.is_ascii_alphanumeric() || "_-/:@ #%&=;!~".contains(letter) => out.push(letter),
            _ => return None,
        }
    }
    let repeats = out.split('{').skip(1).flat_map(|part| part.split('}').next()).flat_map(|part| part.split(','));
    let is_small = repeats.filter_map(|n| n.parse::<u64>().ok()).all(|n| n <= GBNF_REPEAT_MAX);
    // A repeated group can match in more ways than can be followed.
    let is_plain = [")*", ")+", "){"].iter().all(|repeat| !out.contains(repeat));
    (!is_class && is_small && is_plain).then(|| out + "$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_would_be_read_otherwise_are_left_out() {
        assert_eq!(plain_pattern(r"^\d{4}-\w+$").as_deref(), Some("^[0-9]{4}-[A-Za-z0-9_]+$"));
        assert_eq!(plain_pattern("^.*$"), None, "a quote would end the string");
        assert_eq!(plain_pattern("^(a{1,9}){1,9}$"), None);
        assert_eq!(plain_pattern("abc"), None);
        assert_eq!(plain_pattern("^a{1,100000}$"), None);
        assert_eq!(plain_pattern(r#"^[^"]*$"#), None);
    }
}
