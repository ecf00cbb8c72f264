//! Requests in OpenAI's JSON.

use super::{Kind, Outgoing, Part, Unsupported, Wire, mime, parts};
use crate::chat::{
    ChatPrompt, ChatRequest, CompletionRequest, Constraint, MediaKind, Message, Mirostat, Output, Prompt,
    ReasoningFormat, Role, SamplerKind, Sampling, Tool, ToolChoice,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// A body that is put together field by field. What is not said is not sent.
struct Body<'a> {
    wire: &'a Wire,
    fields: Map<String, Value>,
    dropped: Vec<&'static str>,
}

impl<'a> Body<'a> {
    fn new(wire: &'a Wire) -> Self {
        let mut body = Self { wire, fields: Map::new(), dropped: Vec::new() };
        body.set("model", Some(wire.model.as_str()));
        body.set("stream", Some(true));
        body.fields.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        body
    }

    fn set(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.fields.insert(key.to_owned(), value.into());
        }
    }

    /// A field that OpenAI's own API has no word for: another hearth gets it, others not.
    fn extra(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        match (value, self.wire.kind) {
            (None, _) => {}
            (Some(value), Kind::Hearth) => self.set(key, Some(value)),
            (Some(_), _) => self.dropped.push(key),
        }
    }

    fn send(self, path: &'static str) -> Outgoing {
        let body = Value::Object(self.fields).to_string().into_bytes();
        Outgoing { path, body, dropped: self.dropped }
    }
}

pub(super) fn chat(wire: &Wire, request: &ChatRequest) -> Result<Outgoing, Unsupported> {
    // Named one by one: a new field has to be thought of here.
    let ChatRequest {
        model: _,
        prompt,
        sampling,
        output,
        n,
        stream: _,
        include_usage: _,
        cache_prompt,
        lora,
        // Who it is stays here.
        end_user: _,
        cache: _,
        // The queue is ours; not every upstream has such a tier.
        class: _,
    } = request;
    if lora.is_some() {
        return Err(Unsupported("lora"));
    }
    let mut body = Body::new(wire);
    messages(&mut body, prompt)?;
    tools(&mut body, prompt)?;
    set_sampling(&mut body, sampling)?;
    // Token ids mean something else to another vocabulary; only llama-server's endpoints ask for them.
    let Output { max_tokens, stop, top_logprobs, echo: _, with_tokens: _, constraint, prediction } = output;
    let limit = if wire.newer_limit { "max_completion_tokens" } else { "max_tokens" };
    body.set(limit, *max_tokens);
    body.set("stop", (!stop.is_empty()).then(|| stop.clone()));
    body.set("logprobs", top_logprobs.map(|_| true));
    body.set("top_logprobs", *top_logprobs);
    body.set("response_format", constraint.as_ref().map(response_format).transpose()?);
    // A hint; only OpenAI's own servers and ours know what to do with it.
    let hint = prediction.as_ref().filter(|_| wire.newer_limit || wire.kind == Kind::Hearth);
    body.set("prediction", hint.map(|text| json!({ "type": "content", "content": text })));
    body.set("n", (*n > 1).then_some(*n));
    if wire.kind == Kind::Hearth {
        body.set("cache_prompt", (!cache_prompt).then_some(false));
    }
    Ok(body.send("/chat/completions"))
}

pub(super) fn completion(wire: &Wire, request: &CompletionRequest) -> Result<Outgoing, Unsupported> {
    let CompletionRequest {
        model: _,
        prompts,
        sampling,
        output,
        n,
        best_of,
        stream: _,
        include_usage: _,
        cache_prompt: _,
        lora,
        // Who it is stays here.
        end_user: _,
        cache: _,
    } = request;
    let Output { max_tokens, stop, top_logprobs, echo, with_tokens, constraint, prediction: _ } = output;
    let unsupported = [
        ("lora", lora.is_some()),
        ("best_of", best_of != n),
        ("logprobs", top_logprobs.is_some()),
        ("echo", *echo),
        ("response_format", constraint.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, is_asked)| *is_asked) {
        return Err(Unsupported(field));
    }
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => Ok(Value::from(text.as_str())),
        // Token ids mean something else to another vocabulary.
        Prompt::Tokens(_) | Prompt::Mixed(_) | Prompt::Infill(_) | Prompt::Chat(_) => Err(Unsupported("prompt")),
    };
    let mut texts: Vec<Value> = prompts.iter().map(text).collect::<Result<_, _>>()?;
    let mut body = Body::new(wire);
    if *with_tokens {
        body.dropped.push("return_tokens");
    }
    let prompt = if texts.len() == 1 { texts.pop() } else { Some(Value::Array(texts)) };
    body.set("prompt", prompt);
    set_sampling(&mut body, sampling)?;
    // Their own default is 16; ours is as many as fit.
    body.set("max_tokens", Some(max_tokens.unwrap_or(4096)));
    body.set("stop", (!stop.is_empty()).then(|| stop.clone()));
    body.set("n", (*n > 1).then_some(*n));
    Ok(body.send("/completions"))
}

fn messages(body: &mut Body, prompt: &ChatPrompt) -> Result<(), Unsupported> {
    let ChatPrompt {
        messages,
        template_kwargs,
        enable_thinking,
        reasoning_effort,
        reasoning_format,
        add_generation_prompt,
        continue_final_message,
        tools: _,
        tool_choice: _,
        callable: _,
        parallel_tool_calls: _,
    } = prompt;
    let is_hearth = body.wire.kind == Kind::Hearth;
    if !is_hearth && *continue_final_message {
        return Err(Unsupported("continue_final_message"));
    }
    if !is_hearth && !add_generation_prompt {
        return Err(Unsupported("add_generation_prompt"));
    }
    let all = messages.iter().map(|it| message(it, is_hearth)).collect::<Result<Vec<_>, _>>()?;
    body.set("messages", Some(all));
    body.set("reasoning_effort", reasoning_effort.as_deref());
    if is_hearth {
        body.set("continue_final_message", continue_final_message.then_some(true));
        let opens = *add_generation_prompt || *continue_final_message;
        body.set("add_generation_prompt", (!opens).then_some(false));
    }
    let inline = (*reasoning_format == ReasoningFormat::Inline).then_some("none");
    body.extra("reasoning_format", inline);
    let mut kwargs: Map<String, Value> = Map::new();
    for (name, text) in template_kwargs {
        kwargs.insert(name.clone(), serde_json::from_str(text).unwrap_or(Value::Null));
    }
    if let Some(thinks) = enable_thinking {
        kwargs.insert("enable_thinking".to_owned(), Value::Bool(*thinks));
    }
    body.extra("chat_template_kwargs", (!kwargs.is_empty()).then_some(Value::Object(kwargs)));
    Ok(())
}

fn message(message: &Message, is_hearth: bool) -> Result<Value, Unsupported> {
    let Message { role, content, media, reasoning, name, tool_calls, tool_call_id } = message;
    let mut fields = Map::new();
    fields.insert("role".to_owned(), role.as_str().into());
    let text = content.as_deref();
    fields.insert(
        "content".to_owned(),
        match (text, media.is_empty()) {
            // Only an answer may be nothing but calls; of the others a text is wanted.
            (None, true) if *role == Role::Assistant => Value::Null,
            (None, true) => "".into(),
            (Some(text), true) => text.into(),
            (_, false) if *role != Role::User => return Err(Unsupported("messages")),
            (text, false) => content_parts(text.unwrap_or_default(), media)?,
        },
    );
    if let Some(name) = name {
        fields.insert("name".to_owned(), name.as_str().into());
    }
    if let Some(id) = tool_call_id {
        fields.insert("tool_call_id".to_owned(), id.as_str().into());
    }
    if !tool_calls.is_empty() {
        let call = |call: &crate::chat::ToolCall| {
            json!({ "id": call.id, "type": "function",
                "function": { "name": call.name, "arguments": call.arguments } })
        };
        fields.insert("tool_calls".to_owned(), tool_calls.iter().map(call).collect());
    }
    if let Some(reasoning) = reasoning.as_deref().filter(|_| is_hearth) {
        fields.insert("reasoning_content".to_owned(), reasoning.into());
    }
    Ok(Value::Object(fields))
}

fn content_parts(text: &str, media: &[crate::chat::Media]) -> Result<Value, Unsupported> {
    let part = |part: Part| {
        let item = match part {
            Part::Text(text) => return Ok(json!({ "type": "text", "text": text })),
            Part::Media(item) => item,
        };
        let url = match item.kind {
            MediaKind::RemoteImage => String::from_utf8_lossy(&item.data).into_owned(),
            _ => {
                let kind = mime(item).ok_or(Unsupported("messages"))?;
                let data = STANDARD.encode(&item.data);
                if let Some(format) = kind.strip_prefix("audio/") {
                    return Ok(json!({ "type": "input_audio", "input_audio": { "data": data, "format": format } }));
                }
                format!("data:{kind};base64,{data}")
            }
        };
        Ok(json!({ "type": "image_url", "image_url": { "url": url } }))
    };
    parts(text, media).into_iter().map(part).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn tools(body: &mut Body, prompt: &ChatPrompt) -> Result<(), Unsupported> {
    if prompt.tools.is_empty() {
        return Ok(());
    }
    let tool = |tool: &Tool| {
        let mut function = Map::new();
        function.insert("name".to_owned(), tool.name.as_str().into());
        if let Some(description) = &tool.description {
            function.insert("description".to_owned(), description.as_str().into());
        }
        function.insert("parameters".to_owned(), schema(&tool.parameters).ok_or(Unsupported("tools"))?);
        if tool.strict {
            function.insert("strict".to_owned(), true.into());
        }
        Ok(json!({ "type": "function", "function": function }))
    };
    let all = prompt.tools.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    body.set("tools", Some(all));
    let named = |name: &String| json!({ "type": "function", "function": { "name": name } });
    let choice = match (prompt.tool_choice, prompt.callable.as_deref()) {
        (ToolChoice::None, _) => Some(Value::from("none")),
        (ToolChoice::Auto, None) => None,
        (ToolChoice::Required, None) => Some("required".into()),
        (ToolChoice::Required, Some([one])) => Some(named(one)),
        (choice, Some(names)) => {
            let mode = if choice == ToolChoice::Required { "required" } else { "auto" };
            let tools: Vec<Value> = names.iter().map(named).collect();
            Some(json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": tools } }))
        }
    };
    body.set("tool_choice", choice);
    body.set("parallel_tool_calls", (!prompt.parallel_tool_calls).then_some(false));
    Ok(())
}

/// JSON text as a value; numbers keep their digits on the way through `RawValue` only where nothing is read.
fn schema(text: &str) -> Option<Value> {
    // Checked once when the request was read, so this fails on a bug only, and then the target is left out.
    let raw: Box<RawValue> = serde_json::from_str(text).ok()?;
    serde_json::from_str(raw.get()).ok()
}

fn response_format(constraint: &Constraint) -> Result<Value, Unsupported> {
    match constraint {
        Constraint::JsonObject => Ok(json!({ "type": "json_object" })),
        Constraint::JsonSchema(text) => {
            let schema = schema(text).ok_or(Unsupported("response_format"))?;
            Ok(json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } }))
        }
        // Named by the engine's words for them, which the dialects turn into the client's.
        Constraint::Gbnf(_) | Constraint::Lark(_) => Err(Unsupported("grammar")),
        Constraint::Regex(_) => Err(Unsupported("regex")),
        Constraint::Choice(_) => Err(Unsupported("choice")),
    }
}

/// What the client said about sampling; the operator's defaults are those of a local model.
fn set_sampling(body: &mut Body, sampling: &Sampling) -> Result<(), Unsupported> {
    let Sampling {
        seed,
        temperature,
        dynatemp_range,
        dynatemp_exponent,
        top_k,
        top_p,
        min_p,
        typical_p,
        top_n_sigma,
        xtc_probability,
        xtc_threshold,
        min_keep,
        repeat_last_n,
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        dry_multiplier,
        dry_base,
        dry_allowed_length,
        dry_penalty_last_n,
        dry_sequence_breakers,
        mirostat,
        mirostat_tau,
        mirostat_eta,
        logit_bias,
        ignore_eos,
        samplers,
    } = sampling;
    if logit_bias.as_ref().is_some_and(|entries| !entries.is_empty()) {
        return Err(Unsupported("logit_bias"));
    }
    body.set("seed", seed.filter(|seed| *seed != u32::MAX));
    body.set("temperature", temperature.map(decimal));
    body.set("top_p", top_p.map(decimal));
    body.set("presence_penalty", presence_penalty.map(decimal));
    body.set("frequency_penalty", frequency_penalty.map(decimal));
    for (key, value) in [
        ("dynatemp_range", dynatemp_range),
        ("dynatemp_exponent", dynatemp_exponent),
        ("min_p", min_p),
        ("typical_p", typical_p),
        ("top_n_sigma", top_n_sigma),
        ("xtc_probability", xtc_probability),
        ("xtc_threshold", xtc_threshold),
        ("repeat_penalty", repeat_penalty),
        ("dry_multiplier", dry_multiplier),
        ("dry_base", dry_base),
        ("mirostat_tau", mirostat_tau),
        ("mirostat_eta", mirostat_eta),
    ] {
        body.extra(key, value.map(decimal));
    }
    for (key, value) in [
        ("top_k", top_k),
        ("repeat_last_n", repeat_last_n),
        ("dry_allowed_length", dry_allowed_length),
        ("dry_penalty_last_n", dry_penalty_last_n),
    ] {
        body.extra(key, *value);
    }
    body.extra("min_keep", *min_keep);
    body.extra("dry_sequence_breakers", dry_sequence_breakers.clone());
    let version = |mirostat: &Mirostat| match mirostat {
        Mirostat::Off => 0,
        Mirostat::V1 => 1,
        Mirostat::V2 => 2,
    };
    body.extra("mirostat", mirostat.as_ref().map(version));
    body.extra("ignore_eos", *ignore_eos);
    let names = |kinds: &Vec<SamplerKind>| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>();
    body.extra("samplers", samplers.as_ref().map(names));
    Ok(())
}

/// With its own digits, not those of the nearest double.
pub(super) fn decimal(value: f32) -> Value {
    crate::dialect::openai::logprobs::number(value)
}
