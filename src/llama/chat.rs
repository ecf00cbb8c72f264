//! The model's chat template and the parser of its answers, both llama.cpp's `common/chat`.

use super::error::Error;
use super::model::Model;
use super::sampler::Trigger;
use super::sys;
use serde::Deserialize;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct Templates {
    raw: NonNull<sys::hearth_templates>,
    _model: Arc<Model>,
    pub source: String,
    pub supports_thinking: bool,
    /// The template is the model's (or an override), not llama.cpp's fallback.
    pub is_explicit: bool,
}

// SAFETY: constant after its making; llama-server applies one object from many threads.
unsafe impl Send for Templates {}
// SAFETY: as above.
unsafe impl Sync for Templates {}

/// A chat as the model reads it.
#[derive(Debug, Default, Deserialize)]
pub struct RenderedChat {
    pub prompt: String,
    pub stops: Vec<String>,
    /// Texts of tokens that belong to the format and must be shown to the parser.
    pub preserved: Vec<String>,
    pub thinking_start: String,
    pub thinking_ends: Vec<String>,
    /// The prompt ends inside the thinking tags.
    pub thinking_opened: bool,
    /// What the template puts behind the messages for the answer to begin with.
    pub generation_prompt: String,
    /// GBNF of tool calls, which holds from a trigger on; empty where none may come.
    pub grammar: String,
    pub triggers: Vec<Trigger>,
}

/// What a template can do with tools.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ToolFormat {
    /// It shows tools to the model and calls in the history, and answers with calls can be read.
    pub is_native: bool,
    /// `None`: arguments are not written as JSON, or not in a way that could be found.
    pub shape: Option<Shape>,
    /// Texts that begin a call.
    pub starts: Vec<String>,
}

/// What stands around a plain answer in formats that have more than one kind of text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct AnswerFrame {
    /// `None`: the answer can't come without a thought.
    pub head: Option<String>,
    /// The same behind a thought's end tag; `None`: no thought can come first.
    pub after_thought: Option<String>,
    pub tail: String,
}

/// How calls are written: `head name mid arguments (sep name mid arguments)* tail`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Shape {
    pub head: String,
    pub mid: String,
    /// `None`: only one call can be written.
    pub sep: Option<String>,
    pub tail: String,
    /// The template's own parser reads it.
    pub is_read: bool,
}

/// The parser's view of an answer.
#[derive(Debug, Default, Deserialize)]
pub struct ReadAnswer {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<ReadCall>,
}

#[derive(Debug, Default, Deserialize)]
pub struct ReadCall {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl Templates {
    /// Compiles the model's template, or `override_text` in its place. A model without one gets ChatML.
    ///
    /// Errors: the template's syntax error.
    pub fn new(model: &Arc<Model>, override_text: Option<&str>) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Facts {
            source: String,
            supports_thinking: bool,
            is_explicit: bool,
        }
        let text = override_text.map(CString::new).transpose();
        let text = text.map_err(|_| Error::Invalid("the template holds a NUL byte".into()))?;
        let text = text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model lives; the text is NULL or a C string.
        sys::call(|err| unsafe { sys::hearth_templates_new(model.as_ptr(), text, &raw mut raw, err) })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no template and no error".into()))?;
        let mut templates = Self {
            raw,
            _model: Arc::clone(model),
            source: String::new(),
            supports_thinking: false,
            is_explicit: false,
        };
        let mut json = std::ptr::null_mut();
        // SAFETY: the handle lives; the text that comes back is ours to free.
        sys::call(|err| unsafe { sys::hearth_templates_info(raw.as_ptr(), &raw mut json, err) })?;
        // SAFETY: allocated by the shim, taken once.
        let facts: Facts = parse(&unsafe { sys::take(json) })?;
        templates.source = facts.source;
        templates.supports_thinking = facts.supports_thinking;
        templates.is_explicit = facts.is_explicit;
        Ok(templates)
    }

    /// Renders a few probes; milliseconds. Any thread.
    pub fn tool_format(&self) -> Result<ToolFormat, Error> {
        let mut json = std::ptr::null_mut();
        // SAFETY: the handle lives; the text that comes back is ours to free.
        sys::call(|err| unsafe { sys::hearth_templates_tool_format(self.raw.as_ptr(), &raw mut json, err) })?;
        // SAFETY: allocated by the shim, taken once.
        parse(&unsafe { sys::take(json) })
    }

    /// `None` where answers are plain text, or where it can't be told. Renders a few probes; milliseconds. Any thread.
    pub fn answer_frame(&self) -> Result<Option<AnswerFrame>, Error> {
        let mut json = std::ptr::null_mut();
        // SAFETY: the handle lives; the text that comes back is ours to free.
        sys::call(|err| unsafe { sys::hearth_templates_answer_frame(self.raw.as_ptr(), &raw mut json, err) })?;
        // SAFETY: allocated by the shim, taken once.
        parse(&unsafe { sys::take(json) })
    }

    /// Runs the template; `request` is the JSON that the shim's header describes. Any thread.
    ///
    /// Errors: what the template raised.
    pub fn render(&self, request: &str) -> Result<(RenderedChat, Option<AnswerParser>), Error> {
        let request = CString::new(request).map_err(|_| Error::Invalid("the chat holds a NUL byte".into()))?;
        let (mut json, mut parser) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the handle lives; request is a C string; both results are ours.
        sys::call(|err| unsafe {
            sys::hearth_chat_render(self.raw.as_ptr(), request.as_ptr(), &raw mut json, &raw mut parser, err)
        })?;
        let parser = NonNull::new(parser).map(|raw| AnswerParser { raw });
        // SAFETY: allocated by the shim, taken once.
        Ok((parse(&unsafe { sys::take(json) })?, parser))
    }
}

impl Drop for Templates {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::hearth_templates_free(self.raw.as_ptr()) }
    }
}

/// Reads the answers of one rendered chat.
#[derive(Debug)]
pub struct AnswerParser {
    raw: NonNull<sys::hearth_parser>,
}

// SAFETY: plain data after its making.
unsafe impl Send for AnswerParser {}

impl AnswerParser {
    /// What the text so far says. Errors when the text is not of the model's format.
    pub fn parse(&self, text: &str, is_partial: bool) -> Result<ReadAnswer, Error> {
        let mut json = std::ptr::null_mut();
        // SAFETY: the text is described by its length; the result is ours to free.
        sys::call(|err| unsafe {
            sys::hearth_parser_parse(
                self.raw.as_ptr(),
                text.as_ptr().cast(),
                text.len(),
                is_partial,
                &raw mut json,
                err,
            )
        })?;
        // SAFETY: allocated by the shim, taken once.
        parse(&unsafe { sys::take(json) })
    }
}

impl Drop for AnswerParser {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::hearth_parser_free(self.raw.as_ptr()) }
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Exception(format!("the shim's JSON can't be read: {error}")))
}
