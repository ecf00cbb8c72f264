//! The grammars of calls, in Lark, for llguidance.
//!
//! **Invariant:** a call that is begun validates against its parameters' schema whatever the model says, since all that
//! follows is the grammar's; what is read from it is what the grammar let through. Only where a call *may* come and its
//! tool is not strict is a schema that llguidance can't express loosened.

use super::Token;
use super::calls::Callable;
use crate::chat::ToolChoice;
use crate::engine::constraint::{lark_literal, schema};
use crate::llama::Shape;
use serde_json::Value;

/// What calls in an answer must be.
#[derive(Debug, Clone)]
pub struct CallGrammar {
    pub starts: Vec<CallStart>,
    pub tools: Vec<CallTool>,
    /// Tags of which one ends the thinking that the prompt began, where calls must come; none when it began none.
    pub thinking_ends: Vec<String>,
    is_parallel: bool,
    /// Control tokens in the shapes, by their texts.
    controls: Vec<(String, Token)>,
}

/// A text that begins calls, and how they are written.
#[derive(Debug, Clone)]
pub struct CallStart {
    /// The beginning of the shape's head; empty: calls begin with the answer.
    pub text: String,
    pub shape: Shape,
}

/// A tool that may be called.
#[derive(Debug, Clone)]
pub struct CallTool {
    /// Its number in the request.
    pub index: usize,
    /// Its arguments validate, or the request is refused.
    pub is_strict: bool,
    name: String,
    schema: Value,
    closed: Value,
}

/// How much of a schema is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All of it, and no properties that aren't named.
    Closed,
    /// All of it: closing objects that are composed of several may leave nothing that fits.
    Open,
    /// But for keywords that can't be expressed.
    Relaxed,
    /// A JSON object.
    Any,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::Relaxed, Self::Any];

    /// Whether what fits is valid.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Closed | Self::Open)
    }
}

impl CallTool {
    /// The schema as llguidance reads it.
    pub fn schema(&self, level: Level) -> String {
        let schema = match level {
            Level::Closed => self.closed.clone(),
            Level::Open => schema::normalise(&self.schema, false),
            Level::Relaxed => schema::normalise(&schema::relaxed(&self.schema), false),
            Level::Any => schema::object(),
        };
        schema.to_string()
    }
}

impl CallGrammar {
    pub(super) fn new(
        starts: Vec<CallStart>,
        tools: &[Callable<'_>],
        choice: ToolChoice,
        is_parallel: bool,
        controls: Vec<(String, Token)>,
    ) -> Self {
        let one = |one: &Callable<'_>| CallTool {
            index: one.index,
            is_strict: one.tool.strict || choice == ToolChoice::Required,
            name: one.name(),
            schema: one.schema().clone(),
            closed: one.exact(),
        };
        Self { starts, tools: tools.iter().map(one).collect(), thinking_ends: Vec::new(), is_parallel, controls }
    }

    /// What follows the text of `start`; `levels` has one entry for each tool.
    pub fn lark(&self, start: &CallStart, levels: &[Level]) -> String {
        let literal = |text: &str| lark_literal(text, &self.controls);
        let shape = &start.shape;
        let space = if self.thinking_ends.is_empty() { "" } else { "SPACE? " };
        let more = match &shape.sep {
            Some(sep) if self.is_parallel => format!(" ({} call)*", literal(sep)),
            _ => String::new(),
        };
        let head = shape.head.strip_prefix(&start.text).unwrap_or_default();
        let rules: Vec<String> = (0..self.tools.len()).map(|i| format!("call_{i}")).collect();
        let mut lark = format!("start: {space}{} call{more} {}\n", literal(head), literal(&shape.tail));
        lark += &format!("call: {}\n", rules.join(" | "));
        if !space.is_empty() {
            lark += "SPACE: /[ \\n]{1,4}/\n";
        }
        for (i, (tool, level)) in self.tools.iter().zip(levels).enumerate() {
            let opening = literal(&format!("{}{}", tool.name, shape.mid));
            lark += &format!("call_{i}: {opening} args_{i}\nargs_{i}: %json {}\n", tool.schema(*level));
        }
        lark
    }
}
