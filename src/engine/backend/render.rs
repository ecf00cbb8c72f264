//! Chats with tools through llama.cpp's templates: whose way of calling is used, and what holds the model to it.

use super::calls::{self, Callable, Forced, ShapeParser, Thinking};
use super::{Grammar, Reading, Token};
use crate::chat::{ChatPrompt, ReasoningFormat, ToolChoice};
use crate::engine::error::Failure;
use crate::llama::{self, Shape, ToolFormat, Trigger};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Grammars of our own that are kept, and their bytes together.
const KEPT_MAX: usize = 16;
const KEPT_BYTES_MAX: usize = 16 << 20;

/// How the answer may call.
pub(super) enum Way {
    /// Not at all.
    Never,
    /// As the template's own format has it.
    Native,
    /// In our shape, when the model likes.
    Ours(Shape),
    /// In this shape and nothing else.
    Forced(Shape),
}

/// What a chat with tools is to become.
pub(super) struct Plan<'a> {
    /// What the template gets.
    pub shown: Cow<'a, ChatPrompt>,
    pub callable: Vec<Callable<'a>>,
    pub way: Way,
}

impl<'a> Plan<'a> {
    /// Errors: `Invalid`, naming the tool whose schema can't be used.
    pub fn new(prompt: &'a ChatPrompt, format: impl FnOnce() -> ToolFormat) -> Result<Self, Failure> {
        if prompt.tools.is_empty() {
            return Ok(Self { shown: Cow::Borrowed(prompt), callable: Vec::new(), way: Way::Never });
        }
        let callable = calls::callable(prompt)?;
        let ToolFormat { is_native, shape } = format();
        let way = match prompt.tool_choice {
            ToolChoice::None => Way::Never,
            _ if callable.is_empty() => Way::Never,
            ToolChoice::Auto if is_native => Way::Native,
            ToolChoice::Auto => Way::Ours(calls::hermes()),
            ToolChoice::Required => Way::Forced(shape.filter(|_| is_native).unwrap_or_else(calls::hermes)),
        };
        let shown = if is_native { Cow::Borrowed(prompt) } else { Cow::Owned(calls::as_text(prompt)) };
        Ok(Self { shown, callable, way })
    }

    /// What the shim makes a grammar and a parser of: the tools that may be called in the template's own format.
    pub fn native_tools(&self) -> Vec<Value> {
        if matches!(self.way, Way::Native) { self.tools_json() } else { Vec::new() }
    }

    fn tools_json(&self) -> Vec<Value> {
        let one =
            |one: &Callable<'_>| json!({ "name": one.name(), "description": "", "parameters": one.convertible() });
        self.callable.iter().map(one).collect()
    }

    fn names(&self) -> Vec<String> {
        self.callable.iter().map(Callable::name).collect()
    }

    /// Reads answers in `shape`.
    pub fn reading(&self, shape: &Shape, rendered: &llama::RenderedChat) -> Reading {
        let thinking = Thinking {
            start: rendered.thinking_start.clone(),
            ends: thinking_ends(rendered),
            opened: rendered.thinking_opened,
            is_inline: self.shown.reasoning_format == ReasoningFormat::Inline,
        };
        let is_forced = matches!(self.way, Way::Forced(_));
        Reading::Parser(Box::new(ShapeParser { shape: shape.clone(), names: self.names(), is_forced, thinking }))
    }

    /// The grammar of an answer that must be calls. `controls`: control tokens by their text.
    pub fn forced(&self, shape: &Shape, rendered: &llama::RenderedChat, controls: &[(String, Token)]) -> Box<Forced> {
        let ends = if rendered.thinking_opened { thinking_ends(rendered) } else { Vec::new() };
        Box::new(Forced::new(shape, &self.callable, self.shown.parallel_tool_calls, ends, controls))
    }
}

fn thinking_ends(rendered: &llama::RenderedChat) -> Vec<String> {
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

/// Grammars of tools in our shape, by the request that made them.
#[derive(Default)]
pub(super) struct OwnGrammars {
    /// Newest last.
    kept: Mutex<VecDeque<(String, Arc<str>)>>,
}

impl OwnGrammars {
    /// Errors: a tool that llama.cpp can't make a grammar of.
    pub fn get(&self, plan: &Plan<'_>, shape: &Shape) -> Result<Arc<str>, Failure> {
        let request = json!({
            "tools": plan.tools_json(),
            "head": shape.head,
            "mid": shape.mid,
            "sep": shape.sep.as_deref().unwrap_or_default(),
            "tail": shape.tail,
            "parallel_tool_calls": plan.shown.parallel_tool_calls && shape.sep.is_some(),
        });
        let request = request.to_string();
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = lock().iter().find(|(known, _)| *known == request) {
            return Ok(Arc::clone(found));
        }
        let made = llama::tools_grammar(&request).map_err(|error| {
            Failure::invalid("tools", "invalid_json_schema", format!("no grammar can be made of the tools: {error}"))
        })?;
        let made: Arc<str> = made.into();
        let mut kept = lock();
        kept.push_back((request, Arc::clone(&made)));
        let n_bytes = |kept: &VecDeque<(String, Arc<str>)>| kept.iter().map(|(a, b)| a.len() + b.len()).sum::<usize>();
        while kept.len() > KEPT_MAX || n_bytes(&kept) > KEPT_BYTES_MAX {
            kept.pop_front();
        }
        Ok(made)
    }
}
