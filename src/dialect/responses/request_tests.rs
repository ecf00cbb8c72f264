use super::*;
use crate::chat::{ReasoningFormat, ToolChoice};

fn read(extra: Value) -> Result<Read<Asked>, Fault> {
    let mut body = json!({ "input": "hi" });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request(body.to_string().as_bytes())
}

fn fault(extra: Value) -> (String, &'static str) {
    let shown = extra.to_string();
    let fault = read(extra).err().unwrap_or_else(|| panic!("{shown} should be refused"));
    (fault.param.unwrap(), fault.code.unwrap())
}

fn chat(extra: Value) -> ChatRequest {
    read(extra).unwrap().request.converse(&[], "b").unwrap().0
}

#[test]
fn every_optional_field_may_be_null() {
    let keys = [
        "instructions",
        "model",
        "max_output_tokens",
        "temperature",
        "top_p",
        "stream",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "reasoning",
        "previous_response_id",
        "store",
        "metadata",
        "top_logprobs",
        "include",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "truncation",
        "max_tool_calls",
        "stream_options",
        "context_management",
        "background",
        "conversation",
        "prompt",
        "moderation",
        "anything",
    ];
    let nulls: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    let read = read(Value::Object(nulls)).unwrap();
    assert_eq!(read.ignored.header(), None);
    assert!(read.request.echo.store && !read.request.stream());
}

#[test]
fn accepted_fields_have_no_effect_and_unknown_ones_are_listed() {
    let accepted = json!({
        "include": ["reasoning.encrypted_content", "file_search_call.results"], "user": "u", "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {}, "service_tier": "flex",
        "truncation": "auto", "max_tool_calls": 3, "stream_options": {"include_obfuscation": true},
        "context_management": [], "background": false, "text": {"verbosity": "low"},
    });
    let known = read(accepted).unwrap();
    assert_eq!(known.ignored.header(), None);
    let plain = chat(json!({}));
    assert_eq!(chat(json!({"user":"u","truncation":"auto","max_tool_calls":3})), plain);
    let odd = read(json!({"provider": {}, "text": {"odd": 1}, "reasoning": {"mood": 1}})).unwrap();
    assert_eq!(odd.ignored.header().as_deref(), Some("text.odd, reasoning.mood, provider"));
}

/// RESP-08, and the other fields of 1.9 marked R.
#[test]
fn what_is_not_done_here_is_refused_by_name() {
    for (extra, param) in [
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"conversation": {"id": "conv_1"}}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"moderation": {"model": "x"}}), "moderation"),
    ] {
        assert_eq!(fault(extra), (param.to_owned(), "unsupported_parameter"));
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let missing = request(b"{}").unwrap_err();
    assert_eq!((missing.param.as_deref(), missing.code), (Some("input"), Some("missing_required_parameter")));
    for (extra, param, code) in [
        (json!({"input": []}), "input", "empty_array"),
        (json!({"input": 5}), "input", "invalid_type"),
        (json!({"max_output_tokens": 0}), "max_output_tokens", "integer_below_min_value"),
        (json!({"temperature": "hot"}), "temperature", "invalid_type"),
        (json!({"top_p": 2}), "top_p", "decimal_above_max_value"),
        (json!({"stream": "yes"}), "stream", "invalid_type"),
        (json!({"store": 1}), "store", "invalid_type"),
        (json!({"top_logprobs": 21}), "top_logprobs", "integer_above_max_value"),
        (json!({"include": "x"}), "include", "invalid_type"),
        (json!({"include": [1]}), "include[0]", "invalid_type"),
        (json!({"text": {"format": {"type": "yaml"}}}), "text.format.type", "invalid_value"),
        (json!({"text": {"format": {}}}), "text.format.type", "missing_required_parameter"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.name", "missing_required_parameter"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": 1}}}),
            "text.format.schema",
            "invalid_type",
        ),
        (json!({"text": {"verbosity": "loud"}}), "text.verbosity", "invalid_value"),
        (json!({"reasoning": {"effort": "a lot"}}), "reasoning.effort", "invalid_value"),
        (json!({"reasoning": {"summary": 1}}), "reasoning.summary", "invalid_type"),
        (json!({"truncation": "middle"}), "truncation", "invalid_value"),
        (json!({"metadata": {"k": 1}}), "metadata.k", "invalid_type"),
        (json!({"metadata": {"k": "x".repeat(513)}}), "metadata.k", "string_above_max_length"),
        (json!({"instructions": 7}), "instructions", "invalid_type"),
        (json!({"previous_response_id": 7}), "previous_response_id", "invalid_type"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "invalid_type"),
    ] {
        assert_eq!(fault(extra), (param.to_owned(), code));
    }
    let many: Map<String, Value> = (0..17).map(|i| (i.to_string(), "v".into())).collect();
    assert_eq!(fault(json!({ "metadata": many })).0, "metadata");
}

#[test]
fn fields_reach_the_chat() {
    let request = chat(json!({
        "instructions": "be brief", "model": "m", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25,
        "parallel_tool_calls": false, "reasoning": {"effort": "none"}, "stream": true,
        "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}}},
        "top_logprobs": 2, "include": ["message.output_text.logprobs"],
        "tools": [{"type": "function", "name": "f"}], "tool_choice": "required",
    }));
    let (output, prompt) = (&request.output, &request.prompt);
    assert_eq!(prompt.messages, [Message::new(Role::System, "be brief"), Message::new(Role::User, "hi")]);
    assert_eq!((output.max_tokens, output.top_logprobs), (Some(7), Some(2)));
    assert_eq!(output.constraint, None, "an answer that must be a call has no text");
    assert_eq!((request.sampling.temperature, request.sampling.top_p), (Some(0.5), Some(0.25)));
    assert_eq!((prompt.enable_thinking, prompt.parallel_tool_calls), (Some(false), false));
    assert_eq!((prompt.tool_choice, prompt.tools.len()), (ToolChoice::Required, 1));
    assert_eq!((request.model.as_deref(), request.stream, request.n), (Some("m"), true, 1));
    assert_eq!(prompt.reasoning_format, ReasoningFormat::Separate);
    let logprobs = |extra: Value| chat(extra).output.top_logprobs;
    assert_eq!(logprobs(json!({"include": ["message.output_text.logprobs"]})), Some(0));
    assert_eq!(logprobs(json!({"top_logprobs": 0})), None);
    let object = json!({"text": {"format": {"type": "json_object"}}});
    assert_eq!(chat(object).output.constraint, Some(Constraint::JsonObject));
}

/// RESP-07 and RESP-12, as far as they are this room's.
#[test]
fn a_conversation_is_instructions_then_prior_items_then_input() {
    let prior = Arc::new(Item::new("msg_0".into(), json!({"role":"assistant","content":"before","id":"msg_0"})));
    let body = json!({
        "instructions": "new", "previous_response_id": "resp_1",
        "input": [{"type":"item_reference","id":"msg_9"}, {"role":"user","content":"now"}],
    });
    let mut asked = read(body.clone()).unwrap().request;
    asked
        .resolve(|id| {
            (id == "msg_9").then(|| Arc::new(Item::new(id.into(), json!({"role":"user","content":"r","id":id}))))
        })
        .unwrap();
    let (chat, listed) = asked.converse(&[prior], "b").unwrap();
    let texts: Vec<_> = chat.prompt.messages.iter().map(|message| message.content.as_deref().unwrap()).collect();
    assert_eq!(texts, ["new", "before", "r", "now"]);
    assert_eq!(listed.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["msg_9", "msg_bi01"]);
    let missing = read(body).unwrap().request.resolve(|_| None).unwrap_err();
    assert_eq!(missing, MissingItem { param: "input[0].id".into(), id: "msg_9".into() });
}

#[test]
fn an_input_of_thoughts_alone_can_not_be_answered() {
    let thoughts = json!({"input": [{"type":"reasoning","summary":[]}]});
    assert_eq!(read(thoughts).unwrap().request.converse(&[], "b").unwrap_err().param.as_deref(), Some("input"));
}

#[test]
fn refusals_of_the_engine_name_the_clients_fields() {
    let png = "data:image/png;base64,iVBORw0KGgo=";
    let asked = read(json!({
        "input": [{"role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_image","image_url":png}]}],
        "tools": [{"type":"web_search"},{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"}]}],
    }));
    let mut asked = asked.unwrap().request;
    asked.converse(&[], "b").unwrap();
    let places = asked.places;
    assert_eq!(places.name("media[0]"), "input[0].content[1].type");
    assert_eq!(places.name("media[7]"), "input");
    assert_eq!(places.name("tools[0].function.parameters"), "tools[1].tools[0].parameters");
    assert_eq!(places.name("response_format"), "text.format");
    assert_eq!((places.name("messages"), places.name("model")), ("input".to_owned(), "model".to_owned()));
}
