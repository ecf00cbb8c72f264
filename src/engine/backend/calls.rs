//! Tool calls that hearth itself asks for and reads: where a call must come, and where a template knows no tools.
//!
//! **Invariant:** a call that is forced validates against its parameters' schema whatever the model says, since the whole
//! answer is a grammar's; what is read from it is what the grammar let through.
//!
//! # Design
//! A [`Shape`] is the text around names and arguments. The template's own is used where its way of writing calls could be
//! found (the model has learnt it, and the next turn's prompt repeats it token by token), and Hermes' otherwise, which most
//! models have seen. llama.cpp's own grammars are for calls that may come: they don't know all of JSON Schema, and let
//! prose come first where a call is required.

use super::{AnswerParser, Parsed, ParsedCall, Token};
use crate::chat::{ChatPrompt, Message, Role, Tool};
use crate::engine::constraint::schema;
use crate::engine::error::Failure;
use crate::engine::reading::partial_tag;
use crate::llama::Shape;
use serde_json::{Value, json};

/// Most bytes of all tools of a request.
const TOOLS_BYTES_MAX: usize = 4 << 20;
/// Largest schema that llama.cpp makes a grammar of, in its values, and the longest repetitions it unrolls.
const GBNF_NODES_MAX: usize = 4_000;
const GBNF_REPEAT_MAX: u64 = 256;
/// Most ways that a value may go on: llama.cpp follows all of them, for every token of the vocabulary.
const GBNF_CHOICES_MAX: usize = 256;
/// White space that may be the markup before a call; more of it is text.
const HELD_SPACE_MAX: usize = 256;

/// The shape of Hermes 2, Qwen 2.5 and many others.
pub(super) fn hermes() -> Shape {
    Shape {
        head: "<tool_call>\n{\"name\": \"".into(),
        mid: "\", \"arguments\": ".into(),
        sep: Some("}\n</tool_call>\n<tool_call>\n{\"name\": \"".into()),
        tail: "}\n</tool_call>".into(),
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
    for (index, tool) in prompt.tools.iter().enumerate() {
        let text: String = tool.parameters.replace(super::FENCES, "");
        let parsed = serde_json::from_str(&text).map_err(|error| error.to_string());
        let schema = parsed.and_then(|schema| object_schema(&schema)).map_err(|reason| refusal(index, &reason))?;
        all.push(Callable { index, tool, schema });
    }
    if let Some(names) = &prompt.callable {
        all.retain(|one| names.contains(&one.tool.name));
    }
    Ok(all)
}

pub(in crate::engine) fn refusal(index: usize, reason: &str) -> Failure {
    let message = format!("the JSON schema can't be used: {reason}");
    Failure::invalid(&format!("tools[{index}].function.parameters"), "invalid_json_schema", message)
}

/// Arguments are an object whether the schema says so or not.
fn object_schema(given: &Value) -> Result<Value, String> {
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
    schema::check(&schema)?;
    Ok(schema)
}

impl Callable<'_> {
    pub fn name(&self) -> String {
        self.tool.name.replace(super::FENCES, "")
    }

    /// For llguidance: every keyword counts, or it is refused.
    fn exact(&self) -> String {
        schema::normalise(&self.schema, true).to_string()
    }

    /// For llama.cpp's converter: what it can't express is left out, so that an argument is JSON in any case.
    pub fn convertible(&self) -> String {
        let mut n_nodes = 0;
        let converted = convertible(&self.schema, 0, &mut n_nodes);
        if n_nodes <= GBNF_NODES_MAX {
            return converted.to_string();
        }
        let names = self.schema.get("properties").and_then(Value::as_object);
        let names = names.into_iter().flatten().take(GBNF_NODES_MAX);
        let properties: serde_json::Map<String, Value> = names.map(|(name, _)| (name.clone(), json!({}))).collect();
        json!({ "type": "object", "properties": properties }).to_string()
    }
}

fn too_many_properties(members: &serde_json::Map<String, Value>) -> bool {
    members.get("properties").and_then(Value::as_object).is_some_and(|inner| inner.len() > GBNF_CHOICES_MAX)
}

fn convertible(schema: &Value, depth: usize, n_nodes: &mut usize) -> Value {
    *n_nodes += 1;
    if *n_nodes > GBNF_NODES_MAX {
        return Value::Null;
    }
    match schema {
        Value::Array(members) => members.iter().map(|member| convertible(member, depth + 1, n_nodes)).collect(),
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
                    ("properties", Value::Object(inner)) if depth > 0 && inner.len() > GBNF_CHOICES_MAX => continue,
                    ("required", _) if too_many_properties(members) && depth > 0 => continue,
                    ("description" | "title" | "default" | "$schema" | "$comment", Value::String(_)) => {
                        continue;
                    }
                    _ => convertible(value, depth + 1, n_nodes),
                };
                out.insert(key.clone(), value);
            }
            Value::Object(out)
        }
        other => other.clone(),
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

/// A call that must come: the answer's grammar in Lark, for llguidance.
pub struct Forced {
    pub lark: String,
    /// Tags of which one ends the thinking that the prompt began; none when it began none.
    pub thinking_ends: Vec<String>,
    /// Number and schema of every tool in the grammar, to tell which one is refused.
    pub schemas: Vec<(usize, String)>,
}

impl Forced {
    /// `controls`: the control tokens in the shape, by their texts.
    pub(super) fn new(
        shape: &Shape,
        tools: &[Callable<'_>],
        parallel: bool,
        thinking_ends: Vec<String>,
        controls: &[(String, Token)],
    ) -> Self {
        let literal = |text: &str| lark_literal(text, controls);
        let space = if thinking_ends.is_empty() { "" } else { "SPACE? " };
        let more = match &shape.sep {
            Some(sep) if parallel => format!(" ({} call)*", literal(sep)),
            _ => String::new(),
        };
        let rules: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let mut lark = format!("start: {space}{} call{more} {}\n", literal(&shape.head), literal(&shape.tail));
        lark += &format!("call: {}\n", rules.join(" | "));
        if !space.is_empty() {
            lark += "SPACE: /[ \\n]{1,4}/\n";
        }
        let mut schemas = Vec::with_capacity(tools.len());
        for (i, tool) in tools.iter().enumerate() {
            let opening = literal(&format!("{}{}", tool.name(), shape.mid));
            let schema = tool.exact();
            lark += &format!("call_{i}: {opening} args_{i}\nargs_{i}: %json {schema}\n");
            schemas.push((tool.index, schema));
        }
        Self { lark, thinking_ends, schemas }
    }
}

/// The text as Lark: control tokens by their id, the rest as strings.
fn lark_literal(text: &str, controls: &[(String, Token)]) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let next = controls.iter().filter_map(|(control, token)| Some((rest.find(control.as_str())?, control, token)));
        let next = next.min_by_key(|(at, control, _)| (*at, std::cmp::Reverse(control.len())));
        let end = next.as_ref().map_or(rest.len(), |(at, ..)| *at);
        if end > 0 {
            parts.push(Value::from(&rest[..end]).to_string());
        }
        rest = &rest[end..];
        if let Some((_, control, token)) = next {
            parts.push(format!("<[{token}]>"));
            rest = &rest[control.len()..];
        }
    }
    parts.join(" ")
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

/// Where thinking stands in an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Thinking {
    /// Empty: it can't begin in the answer.
    pub start: String,
    pub ends: Vec<String>,
    pub opened: bool,
    /// It stays in the content, tags and all.
    pub is_inline: bool,
}

/// Reads answers in a shape.
pub(super) struct ShapeParser {
    pub shape: Shape,
    pub names: Vec<String>,
    /// The answer is calls and nothing else.
    pub is_forced: bool,
    pub thinking: Thinking,
}

impl AnswerParser for ShapeParser {
    fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
        let mut parsed = Parsed::default();
        if let Some(rest) = self.think(text, is_partial, &mut parsed) {
            self.read(rest, is_partial, &mut parsed);
        }
        Some(parsed)
    }
}

impl ShapeParser {
    /// What follows the thinking; `None` while it goes on, or may still begin.
    fn think<'a>(&self, text: &'a str, is_partial: bool, parsed: &mut Parsed) -> Option<&'a str> {
        let Thinking { start, ends, opened, is_inline } = &self.thinking;
        let body = if *opened {
            text
        } else if start.is_empty() || ends.is_empty() {
            return Some(text);
        } else {
            let begun = text.trim_start();
            if is_partial && start.starts_with(begun) {
                return None;
            }
            match begun.strip_prefix(start.as_str()) {
                Some(body) => body,
                None => return Some(text),
            }
        };
        let end = ends.iter().filter_map(|end| body.find(end.as_str()).map(|at| (at, end.len()))).min();
        let Some((at, n)) = end else {
            let held = if is_partial { partial_tag(body, ends) } else { 0 };
            let thought = &body[..body.len() - held];
            if *is_inline {
                parsed.content = text[..text.len() - held].to_owned();
            } else {
                parsed.reasoning = if is_partial { thought.trim() } else { thought.trim_start() }.to_owned();
            }
            return None;
        };
        let rest = &body[at + n..];
        if *is_inline {
            parsed.content = text[..text.len() - rest.len()].to_owned();
        } else {
            parsed.reasoning = body[..at].trim().to_owned();
        }
        Some(rest.trim_start())
    }

    fn read(&self, text: &str, is_partial: bool, parsed: &mut Parsed) {
        let head = self.shape.head.as_str();
        let (said, calls) = match text.find(head) {
            Some(at) => (text[..at].trim_end(), Some(&text[at + head.len()..])),
            None if is_partial => {
                let held = partial_tag(text, &[head.to_owned()]);
                let said = &text[..text.len() - held];
                let space = said.len() - said.trim_end().len();
                (if space <= HELD_SPACE_MAX { said.trim_end() } else { said }, None)
            }
            None => (text, None),
        };
        if !(self.is_forced && said.trim().is_empty()) {
            parsed.content.push_str(said);
        }
        let Some(mut rest) = calls else { return };
        loop {
            let name = self.names.iter().find_map(|name| {
                let behind = rest.strip_prefix(name.as_str())?.strip_prefix(self.shape.mid.as_str())?;
                Some((name, behind))
            });
            let Some((name, behind)) = name else {
                let is_whole = |name: &&String| {
                    let behind = rest.strip_prefix(name.as_str());
                    behind.is_some_and(|behind| !behind.is_empty() && self.shape.mid.starts_with(behind))
                };
                if let Some(name) = self.names.iter().find(is_whole).filter(|_| !is_partial) {
                    parsed.calls.push(ParsedCall { name: name.clone(), ..Default::default() });
                } else if !is_partial && parsed.calls.is_empty() {
                    // Cut before the name was whole: what there is of it is all that can be told.
                    parsed.content.push_str(&text[said.len()..]);
                }
                return;
            };
            let end = object_end(behind);
            let arguments = behind[..end.unwrap_or(behind.len())].to_owned();
            parsed.calls.push(ParsedCall { id: String::new(), name: name.clone(), arguments });
            let Some(after) = end.map(|end| &behind[end..]) else { return };
            match self.shape.sep.as_deref().and_then(|sep| after.strip_prefix(sep)) {
                Some(next) => rest = next,
                None => return,
            }
        }
    }
}

/// Bytes of the JSON object that `text` begins with; `None` while it is open.
fn object_end(text: &str) -> Option<usize> {
    let (mut depth, mut is_string, mut is_escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parser(is_forced: bool) -> ShapeParser {
        let thinking = Thinking { start: "<think>".into(), ends: vec!["</think>".into()], ..Default::default() };
        ShapeParser { shape: hermes(), names: vec!["f".into(), "ff".into()], is_forced, thinking }
    }

    #[test]
    fn two_calls_are_read_behind_thought_and_prose() {
        let shape = hermes();
        let sep = shape.sep.clone().expect("it has one");
        let calls = format!("{}ff{}{{\"a\": \"}}{{\"}}{sep}f{}{{}}{}", shape.head, shape.mid, shape.mid, shape.tail);
        let text = format!("<think>hm</think>\n\nSure.\n{calls}");
        let read = parser(false).parse(&text, false).expect("it reads");
        assert_eq!((read.reasoning.as_str(), read.content.as_str()), ("hm", "Sure."));
        let calls: Vec<_> = read.calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("ff", "{\"a\": \"}{\"}"), ("f", "{}")]);
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        let read = parser(false).parse("a <tool_ca", false).expect("it reads");
        assert_eq!(read.content, "a <tool_ca");
        let read = parser(false).parse("a <tool_ca", true).expect("it reads");
        assert_eq!(read.content, "a");
    }

    #[test]
    fn patterns_that_would_be_read_otherwise_are_left_out() {
        assert_eq!(plain_pattern(r"^\d{4}-\w+$").as_deref(), Some("^[0-9]{4}-[A-Za-z0-9_]+$"));
        assert_eq!(plain_pattern("^.*$"), None, "a quote would end the string");
        assert_eq!(plain_pattern("^(a{1,9}){1,9}$"), None);
        assert_eq!(plain_pattern("abc"), None);
        assert_eq!(plain_pattern("^a{1,100000}$"), None);
        assert_eq!(plain_pattern(r#"^[^"]*$"#), None);
    }

    #[test]
    fn parameters_that_are_no_object_are_refused_by_their_place() {
        let tool = |parameters: &str| Tool { name: "f".into(), description: None, parameters: parameters.into() };
        let mut prompt = ChatPrompt::new(Vec::new());
        prompt.tools = vec![tool("{}"), tool(r#"{"type": "string"}"#)];
        match callable(&prompt).map(|all| all.len()) {
            Err(Failure::Invalid { field, code, .. }) => {
                assert_eq!((field.as_str(), code.as_str()), ("tools[1].function.parameters", "invalid_json_schema"));
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// What a part shows, the whole shows too.
        #[test]
        fn nothing_is_taken_back(text in "(<think>|</think>|<tool_call>\n|\\{\"name\": \"|f\", \"arguments\": |\\{|\\}|\n</tool_call>| |a|\n){0,14}", is_forced: bool) {
            let mut parser = parser(is_forced);
            let whole = parser.parse(&text, false).expect("it reads");
            for (at, _) in text.char_indices() {
                let part = parser.parse(&text[..at], true).expect("it reads");
                prop_assert!(whole.reasoning.starts_with(&part.reasoning));
                if whole.calls.is_empty() || part.calls.is_empty() {
                    prop_assert!(whole.content.starts_with(&part.content), "{:?} {:?}", part, whole);
                }
                prop_assert!(part.calls.len() <= whole.calls.len());
                for (before, after) in part.calls.iter().zip(&whole.calls) {
                    prop_assert!(before.name == after.name && after.arguments.starts_with(&before.arguments));
                }
            }
        }
    }
}
