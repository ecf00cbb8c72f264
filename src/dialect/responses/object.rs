//! The response object, lists of items, and the small answers.

use super::items::Item;
use crate::chat::{Class, Usage};
use crate::dialect::Fault;
use crate::dialect::fields::{integer, invalid_type, invalid_value};
use crate::dialect::openai::logprobs::number;
use crate::dialect::openai::sampling::tier;
use crate::dialect::openai::to_wire::json;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What the objects of one response begin with.
#[derive(Debug, Clone)]
pub struct Head {
    /// `resp_…`
    pub id: String,
    /// Unix seconds.
    pub created_at: u64,
    /// The served id, whatever name was asked for.
    pub model: String,
    /// Unix seconds when it is called: an answer says when it was complete.
    pub clock: fn() -> u64,
}

impl Head {
    /// What ids of this response's items are made of.
    pub fn base(&self) -> &str {
        self.id.strip_prefix("resp_").unwrap_or(&self.id)
    }
}

/// What a response repeats of its request.
#[derive(Debug, Clone)]
pub struct Echo {
    pub instructions: Option<String>,
    pub tools: Vec<Value>,
    pub tool_choice: Value,
    pub parallel_tool_calls: bool,
    /// As said; the server's own where nothing was said, once it is known.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub max_output_tokens: Option<u32>,
    pub max_tool_calls: Option<i64>,
    pub previous_response_id: Option<String>,
    pub effort: Option<String>,
    pub summary: Option<String>,
    pub format: Value,
    pub verbosity: String,
    pub truncation: String,
    pub store: bool,
    pub metadata: Map<String, Value>,
    pub top_logprobs: u8,
    pub user: Option<String>,
    pub class: Class,
}

/// How far a response is.
#[derive(Debug)]
pub(super) struct State<'a> {
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    pub output: &'a [Value],
    pub usage: Option<&'a Usage>,
    /// Why it failed, in the client's words.
    pub error: Option<&'a str>,
    /// Why it is incomplete: `max_output_tokens` or `content_filter`.
    pub cut: Option<&'static str>,
}

/// Every key is always there.
#[derive(Serialize)]
struct Object<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    model: &'a str,
    output: &'a [Value],
    parallel_tool_calls: bool,
    tool_choice: &'a Value,
    tools: &'a [Value],
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    instructions: Option<&'a str>,
    metadata: &'a Map<String, Value>,
    temperature: Value,
    top_p: Value,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<i64>,
    previous_response_id: Option<&'a str>,
    reasoning: Value,
    text: Value,
    truncation: &'a str,
    store: bool,
    background: bool,
    service_tier: &'static str,
    top_logprobs: u8,
    user: Option<&'a str>,
    completed_at: Option<u64>,
    usage: Option<Value>,
}

/// The response as JSON text.
pub(super) fn object(head: &Head, echo: &Echo, state: &State) -> Vec<u8> {
    json(&Object {
        id: &head.id,
        object: "response",
        created_at: head.created_at,
        model: &head.model,
        output: state.output,
        parallel_tool_calls: echo.parallel_tool_calls,
        tool_choice: &echo.tool_choice,
        tools: &echo.tools,
        status: state.status,
        error: state.error.map(|message| json!({ "code": "server_error", "message": message })),
        incomplete_details: state.cut.map(|reason| json!({ "reason": reason })),
        instructions: echo.instructions.as_deref(),
        metadata: &echo.metadata,
        temperature: number(echo.temperature.unwrap_or(1.0)),
        top_p: number(echo.top_p.unwrap_or(1.0)),
        max_output_tokens: echo.max_output_tokens,
        max_tool_calls: echo.max_tool_calls,
        previous_response_id: echo.previous_response_id.as_deref(),
        reasoning: json!({ "effort": echo.effort, "summary": echo.summary }),
        text: json!({ "format": echo.format, "verbosity": echo.verbosity }),
        truncation: &echo.truncation,
        store: echo.store,
        background: false,
        service_tier: tier(echo.class),
        top_logprobs: echo.top_logprobs,
        user: echo.user.as_deref(),
        completed_at: (state.status == "completed").then(head.clock),
        usage: state.usage.map(usage_count),
    })
}

fn usage_count(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning_tokens },
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

pub fn input_tokens(n_tokens: usize) -> Vec<u8> {
    json(&json!({ "object": "response.input_tokens", "input_tokens": n_tokens }))
}

pub fn deleted(id: &str) -> Vec<u8> {
    json(&json!({ "id": id, "object": "response.deleted", "deleted": true }))
}

/// Only background responses can be cancelled, and there are none.
pub fn cancelled_refusal() -> Fault {
    Fault {
        param: None,
        code: Some("unsupported_operation"),
        message: "Only background responses can be cancelled, and this server has none; close the connection instead."
            .to_owned(),
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub is_ascending: bool,
    pub limit: usize,
    pub after: Option<String>,
}

/// Reads the query of a listing; what else it has means nothing here.
pub fn page<'a>(query: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Page, Fault> {
    let mut page = Page { is_ascending: false, limit: 20, after: None };
    for (key, value) in query {
        match (key, value) {
            ("order", "asc") => page.is_ascending = true,
            ("order", "desc") => page.is_ascending = false,
            ("order", other) => return Err(invalid_value("order", other, "asc, desc")),
            ("limit", text) => {
                let limit: i64 = text.parse().map_err(|_| invalid_type("limit", "an integer", &text.into()))?;
                page.limit = integer("limit".to_owned(), &limit.into(), 1, 100)?.unsigned_abs() as usize;
            }
            ("after", id) => page.after = Some(id.to_owned()),
            _ => {}
        }
    }
    Ok(page)
}

/// One page of items, newest first unless asked otherwise.
pub fn item_list(items: &[Arc<Item>], page: &Page) -> Result<Vec<u8>, Fault> {
    let mut all: Vec<&Arc<Item>> = items.iter().collect();
    if !page.is_ascending {
        all.reverse();
    }
    let start = match &page.after {
        None => 0,
        Some(after) => match all.iter().position(|item| item.id == *after) {
            Some(at) => at + 1,
            None => return Err(Fault::new("after", "invalid_value", "after: this response has no such input item.")),
        },
    };
    let rest = &all[start..];
    let shown = &rest[..rest.len().min(page.limit)];
    Ok(json(&json!({
        "object": "list",
        "data": shown.iter().map(|item| &item.json).collect::<Vec<_>>(),
        "first_id": shown.first().map(|item| &item.id),
        "last_id": shown.last().map(|item| &item.id),
        "has_more": shown.len() < rest.len(),
    })))
}
