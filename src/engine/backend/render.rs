//! Chats with tools through llama.cpp's templates: whose way of calling is used, and what holds the model to it.

use super::call_grammar::{CallGrammar, CallStart};
use super::calls::{self, Callable};
use super::convertible::Budget;
use super::shape_parser::{ShapeParser, Thinking};
use super::{Grammar, Reading, Token};
use crate::chat::{ChatPrompt, ReasoningFormat, Role, ToolChoice};
use crate::engine::error::Failure;
use crate::llama::{self, Shape, ToolFormat, Trigger};
use serde_json::{Value, json};
use std::borrow::Cow;

/// How the answer may call.
pub(super) enum Way {
    /// Not at all.
    Never,
    /// As the template's own format has it, held by llama.cpp's grammar.
    Native,
    /// When the model likes: once one of the texts has begun a call, our grammar holds it.
    Begun(Begun),
    /// In this shape and nothing else.
    Forced(Shape),
}

/// How calls begin that may come.
pub(super) struct Begun {
    pub starts: Vec<CallStart>,
    /// Texts that begin calls in other ways, which nothing would hold.
    pub banned: Vec<String>,
    /// The template's own parser reads the answer, else ours.
    pub is_native: bool,
}

impl Begun {
    fn ours(shape: Shape, text: &str) -> Self {
        Self { starts: vec![CallStart { text: text.to_owned(), shape }], banned: Vec::new(), is_native: false }
    }

    /// `None`: it isn't known what begins a call, or how its arguments are written.
    fn of(format: &ToolFormat) -> Option<Self> {
        let shape = format.shape.as_ref()?;
        if let Some(starts) = harmony(shape) {
            return Some(Self { starts, banned: Vec::new(), is_native: shape.is_read });
        }
        let marks = || format.starts.iter().map(|start| start.trim()).filter(|start| !start.is_empty());
        let first = marks().find(|start| shape.head.starts_with(start));
        // Another mark may come before the one that llama.cpp waits for.
        let text = match first {
            Some(text) => text,
            None => marks().find_map(|start| Some(shape.head[..shape.head.find(start)?].trim()))?,
        };
        let banned = marks().filter(|start| Some(*start) != first).map(str::to_owned).collect();
        let starts = vec![CallStart { text: text.to_owned(), shape: shape.clone() }];
        (!text.is_empty()).then_some(Self { starts, banned, is_native: shape.is_read })
    }

    /// For tools whose arguments must validate where the template's own way of writing them can't be held to a schema: JSON
    /// behind the mark that begins a call.
    fn strict(format: &ToolFormat) -> Option<Self> {
        let mark = format.starts.iter().map(|start| start.trim()).find(|start| !start.is_empty())?;
        if mark == calls::HERMES_TRIGGER {
            return Some(Self::ours(calls::hermes(), mark));
        }
        let hermes = calls::hermes();
        let head = hermes.head.replace(calls::HERMES_TRIGGER, mark);
        Some(Self::ours(Shape { head, sep: None, tail: "}".into(), ..hermes }, mark))
    }
}

/// gpt-oss names the function in the channel or in the role.
fn harmony(shape: &Shape) -> Option<Vec<CallStart>> {
    let in_channel = "<|channel|>commentary to=functions.";
    if shape.head != in_channel {
        return None;
    }
    let start = |text: &str, mid: &str| CallStart {
        text: text.to_owned(),
        shape: Shape { head: text.to_owned(), mid: mid.to_owned(), ..shape.clone() },
    };
    Some(vec![
        start(in_channel, &shape.mid),
        start("<|channel|>analysis to=functions.", &shape.mid),
        start(" to=functions.", "<|channel|>commentary json<|message|>"),
    ])
}

/// What a chat is to become.
pub(super) struct Plan<'a> {
    /// What the template gets.
    pub shown: Cow<'a, ChatPrompt>,
    pub callable: Vec<Callable<'a>>,
    pub way: Way,
    /// Texts that would begin a call where none may come.
    pub banned: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Errors: `Invalid`, naming the tool whose schema can't be used.
    pub fn new(prompt: &'a ChatPrompt, format: impl FnOnce() -> ToolFormat) -> Result<Self, Failure> {
        if prompt.tools.is_empty() {
            let speaks_of_calls = prompt.messages.iter().any(|m| !m.tool_calls.is_empty() || m.role == Role::Tool);
            let banned = if speaks_of_calls { marks(&format()) } else { Vec::new() };
            return Ok(Self { shown: Cow::Borrowed(prompt), callable: Vec::new(), way: Way::Never, banned });
        }
        let callable = calls::callable(prompt)?;
        let format = format();
        let is_native = format.is_native;
        let wants_strict = callable.iter().any(|one| one.tool.strict);
        let ours = || Begun::ours(calls::hermes(), calls::HERMES_TRIGGER);
        let mut is_text = !is_native;
        let way = match prompt.tool_choice {
            ToolChoice::None => Way::Never,
            _ if callable.is_empty() => Way::Never,
            ToolChoice::Auto if !is_native => Way::Begun(ours()),
            ToolChoice::Auto => match Begun::of(&format) {
                Some(begun) => Way::Begun(begun),
                None if !wants_strict => Way::Native,
                None => Way::Begun(Begun::strict(&format).unwrap_or_else(|| {
                    is_text = true;
                    ours()
                })),
            },
            ToolChoice::Required => {
                Way::Forced(format.shape.clone().filter(|_| is_native).unwrap_or_else(calls::hermes))
            }
        };
        let banned = if matches!(way, Way::Never) { marks(&format) } else { Vec::new() };
        let shown = if is_text { Cow::Owned(calls::as_text(prompt)) } else { Cow::Borrowed(prompt) };
        Ok(Self { shown, callable, way, banned })
    }

    /// What the shim makes a grammar and a parser of: the tools that may be called in the template's own format. A parser
    /// alone needs no schemas, which cost llama.cpp time.
    pub fn native_tools(&self) -> Vec<Value> {
        let mut budget = Budget::default();
        let tool =
            |name: String, parameters: String| json!({ "name": name, "description": "", "parameters": parameters });
        match &self.way {
            Way::Native => self.callable.iter().map(|one| tool(one.name(), one.convertible(&mut budget))).collect(),
            Way::Begun(begun) if begun.is_native => {
                self.callable.iter().map(|one| tool(one.name(), r#"{"type":"object"}"#.to_owned())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Reads answers in `shape`. `mark`: what begins a call, of which nothing is shown.
    pub fn reading(&self, shape: &Shape, mark: &str, rendered: &llama::RenderedChat) -> Reading {
        let thinking = Thinking {
            start: rendered.thinking_start.clone(),
            ends: thinking_ends(rendered),
            opened: rendered.thinking_opened,
            is_inline: self.shown.reasoning_format == ReasoningFormat::Inline,
        };
        let is_forced = matches!(self.way, Way::Forced(_));
        let names = self.callable.iter().map(Callable::name).collect();
        let (shape, mark) = (shape.clone(), mark.to_owned());
        Reading::Parser(Box::new(ShapeParser { shape, mark, names, is_forced, thinking }))
    }

    /// The grammar of calls. `controls`: control tokens by their text.
    pub fn grammar(
        &self,
        starts: Vec<CallStart>,
        rendered: &llama::RenderedChat,
        controls: Vec<(String, Token)>,
    ) -> CallGrammar {
        let (choice, is_parallel) = (self.shown.tool_choice, self.shown.parallel_tool_calls);
        let mut grammar = CallGrammar::new(starts, &self.callable, choice, is_parallel, controls);
        if matches!(self.way, Way::Forced(_)) && rendered.thinking_opened {
            grammar.thinking_ends = thinking_ends(rendered);
        }
        grammar
    }
}

/// What begins a call, in the template's format or, where it has none, in ours.
fn marks(format: &ToolFormat) -> Vec<String> {
    if !format.is_native {
        return vec![calls::HERMES_TRIGGER.to_owned()];
    }
    if let Some(starts) = format.shape.as_ref().and_then(harmony) {
        return starts.into_iter().map(|start| start.text).collect();
    }
    let marks = format.starts.iter().map(|start| start.trim()).filter(|start| !start.is_empty());
    marks.map(str::to_owned).collect()
}

pub(super) fn thinking_ends(rendered: &llama::RenderedChat) -> Vec<String> {
    rendered.thinking_ends.iter().filter(|end| !end.is_empty()).cloned().collect()
}

/// A grammar with the circumstances under which it begins to hold.
pub(super) fn grammar(
    gbnf: String,
    triggers: Vec<Trigger>,
    rendered: &llama::RenderedChat,
    preserved: &[Token],
) -> Box<Grammar> {
    let thinking_start = rendered.thinking_start.clone();
    let (thinking_ends, preserved) = (thinking_ends(rendered), preserved.to_vec());
    let generation_prompt = rendered.generation_prompt.clone();
    Box::new(Grammar { gbnf, triggers, preserved, generation_prompt, thinking_start, thinking_ends })
}
