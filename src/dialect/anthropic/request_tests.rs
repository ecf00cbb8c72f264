use super::*;
use serde_json::json;

fn read_with(extra: Value) -> Result<Read<Messages>, Fault> {
    let mut body = json!({"max_tokens":16,"messages":[{"role":"user","content":"hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    messages_request(body.to_string().as_bytes())
}

fn request(extra: Value) -> ChatRequest {
    read_with(extra).unwrap().request.request
}

fn fault(extra: Value) -> (String, &'static str) {
    let shown = extra.to_string();
    let fault = read_with(extra).err().unwrap_or_else(|| panic!("{shown} should be refused"));
    (fault.param.unwrap(), fault.code.unwrap())
}

fn tool(name: &str) -> Value {
    json!({"name":name,"description":"d","input_schema":{"$schema":"http://json-schema.org/draft-07/schema#","type":"object"},
        "cache_control":{"type":"ephemeral"},"strict":true})
}

#[test]
fn what_claude_code_sends_is_taken_without_a_word() {
    let read = read_with(json!({
        "model": "claude-sonnet-4", "max_tokens": 32000, "temperature": 1, "stream": true,
        "system": [{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},{"type":"text","text":"b"}],
        "tools": [tool("Bash"), tool("mcp__x.y")], "tool_choice": {"type":"auto"},
        "thinking": {"type":"enabled","budget_tokens":31999}, "metadata": {"user_id":"u"},
        "context_management": {"edits":[]}, "service_tier": "auto", "speed": "fast", "container": null,
        "inference_geo": "eu", "diagnostics": {}, "mcp_servers": [],
    }))
    .unwrap();
    assert_eq!(read.ignored.header(), None);
    let request = read.request.request;
    assert_eq!((request.output.max_tokens, request.stream), (Some(32_000), true));
    assert_eq!(request.prompt.enable_thinking, Some(true));
    assert_eq!(request.prompt.tools.len(), 2);
}

#[test]
fn every_optional_field_may_be_null_and_unknown_ones_are_listed() {
    let keys = "model system stop_sequences stream tools tool_choice thinking output_config output_format temperature \
        top_p top_k metadata service_tier container context_management mcp_servers vendor";
    let nulls = keys.split_whitespace().map(|key| (key.to_owned(), Value::Null)).collect();
    let read = read_with(Value::Object(nulls)).unwrap();
    assert_eq!((read.ignored.header(), read.request.request.sampling), (None, Sampling::default()));
    assert_eq!(read_with(json!({"vendor":1})).unwrap().ignored.header().as_deref(), Some("vendor"));
}

#[test]
fn max_tokens_is_required_and_large_ones_are_fine() {
    assert_eq!(fault(json!({"max_tokens":null})), ("max_tokens".into(), "missing_required_parameter"));
    assert_eq!(fault(json!({"max_tokens":0})), ("max_tokens".into(), "integer_below_min_value"));
    assert_eq!(fault(json!({"max_tokens":-1})).1, "integer_below_min_value");
    assert_eq!(fault(json!({"max_tokens":"9"})).1, "invalid_type");
    assert_eq!(request(json!({"max_tokens":18_446_744_073_709_551_615u64})).output.max_tokens, Some(u32::MAX));
    assert_eq!(request(json!({"max_tokens":1})).output.max_tokens, Some(1));
    let body = json!({"messages":[{"role":"user","content":"hi"}]}).to_string();
    assert!(count_request(body.as_bytes()).is_ok());
}

/// ANTH-05.
#[test]
fn a_last_assistant_message_is_continued() {
    let messages =
        |last: Value| json!({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":last}]});
    let prompt = request(messages(json!("b"))).prompt;
    assert_eq!((prompt.continue_final_message, prompt.add_generation_prompt), (true, false));
    let prompt = request(messages(json!(""))).prompt;
    assert_eq!((prompt.messages.len(), prompt.continue_final_message, prompt.add_generation_prompt), (1, false, true));
    let call = json!([{"type":"tool_use","id":"x","name":"f","input":{}}]);
    assert_eq!(fault(messages(call)), ("messages".into(), "invalid_value"));
    assert_eq!(fault(json!({"messages":[]})).1, "empty_array");
}

#[test]
fn tool_choices() {
    let with = |choice: Value| request(json!({"tools":[tool("f"),tool("g")],"tool_choice":choice})).prompt;
    assert_eq!(with(json!(null)).tool_choice, ToolChoice::Auto);
    assert_eq!(with(json!({"type":"none"})).tool_choice, ToolChoice::None);
    let any = with(json!({"type":"any","disable_parallel_tool_use":true}));
    assert_eq!((any.tool_choice, any.callable, any.parallel_tool_calls), (ToolChoice::Required, None, false));
    let named = with(json!({"type":"tool","name":"g"}));
    assert_eq!((named.tool_choice, named.callable), (ToolChoice::Required, Some(vec!["g".to_owned()])));
    assert!(named.parallel_tool_calls);
    for (extra, param, code) in [
        (json!({"tool_choice":{"type":"any"}}), "tool_choice", "invalid_value"),
        (json!({"tools":[tool("f")],"tool_choice":{"type":"tool","name":"h"}}), "tool_choice.name", "invalid_value"),
        (json!({"tools":[tool("f")],"tool_choice":{"type":"tool"}}), "tool_choice.name", "missing_required_parameter"),
        (json!({"tool_choice":{"type":"maybe"}}), "tool_choice.type", "invalid_value"),
        (json!({"tool_choice":"auto"}), "tool_choice", "invalid_type"),
        (json!({"tools":[tool("f"),tool("f")]}), "tools[1].name", "invalid_value"),
        (json!({"tools":[tool("")]}), "tools[0].name", "empty_string"),
        (json!({"tools":[tool(&"n".repeat(129))]}), "tools[0].name", "string_above_max_length"),
        (json!({"tools":[{"name":"f"}]}), "tools[0].input_schema", "missing_required_parameter"),
        (json!({"tools":[{"name":"f","input_schema":"x"}]}), "tools[0].input_schema", "invalid_type"),
        (json!({"tools":{}}), "tools", "invalid_type"),
    ] {
        assert_eq!(fault(extra), (param.to_owned(), code));
    }
    assert!(with(json!({"type":"auto"})).tools[0].parameters.contains("draft-07"));
}

/// ANTH-11.
#[test]
fn server_tools_are_refused_by_their_name() {
    for kind in ["web_search_20250305", "bash_20250124", "text_editor_20250728", "computer_20250124"] {
        let fault = read_with(json!({"tools":[{"type":kind,"name":"x"}]})).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("tools[0].type"));
        assert!(fault.message.contains(kind), "{}", fault.message);
    }
    assert!(read_with(json!({"tools":[{"type":"custom","name":"x","input_schema":{}}]})).is_ok());
    let fault = read_with(json!({"tools":[{"name":"x","input_schema":{"type":["string"]}}]})).unwrap_err();
    assert_eq!((fault.param.as_deref(), fault.code), (Some("tools[0].input_schema"), Some("invalid_json_schema")));
}

#[test]
fn thinking_and_effort_reach_the_template() {
    let prompt = |extra| request(extra).prompt;
    for (kind, on) in [("enabled", true), ("adaptive", true), ("between_tools", true), ("disabled", false)] {
        assert_eq!(prompt(json!({"thinking":{"type":kind}})).enable_thinking, Some(on));
    }
    assert_eq!(prompt(json!({})).enable_thinking, None);
    assert_eq!(prompt(json!({"output_config":{"effort":"low"}})).reasoning_effort.as_deref(), Some("low"));
    assert_eq!(fault(json!({"thinking":{"type":"hard"}})), ("thinking.type".into(), "invalid_value"));
    assert_eq!(fault(json!({"thinking":{"type":"enabled","budget_tokens":"x"}})).0, "thinking.budget_tokens");
    assert_eq!(fault(json!({"output_config":{"effort":"huge"}})), ("output_config.effort".into(), "invalid_value"));
}

#[test]
fn output_formats_constrain_the_answer() {
    let schema = Constraint::JsonSchema("{\"type\":\"object\"}".into());
    let format = json!({"type":"json_schema","schema":{"type":"object"}});
    let constraint = |extra| request(extra).output.constraint;
    assert_eq!(constraint(json!({"output_config":{"format":format}})), Some(schema.clone()));
    assert_eq!(constraint(json!({ "output_format": format })), Some(schema));
    let forced = json!({"output_config":{"format":format},"tools":[tool("f")],"tool_choice":{"type":"any"}});
    assert_eq!(constraint(forced), None, "a call has no text");
    for (format, param, code) in [
        (json!({"type":"xml"}), "output_config.format.type", "invalid_value"),
        (json!({"type":"json_schema"}), "output_config.format.schema", "missing_required_parameter"),
        (json!({"type":"json_schema","schema":"x"}), "output_config.format.schema", "invalid_type"),
        (json!("json"), "output_config.format", "invalid_type"),
    ] {
        assert_eq!(fault(json!({"output_config":{"format":format}})), (param.to_owned(), code));
    }
}

#[test]
fn the_rest_is_checked_by_name() {
    assert_eq!(request(json!({"stop_sequences":["a","","b"]})).output.stop, ["a", "b"]);
    for (extra, param) in [
        (json!({"stop_sequences":"a"}), "stop_sequences"),
        (json!({"stop_sequences":[1]}), "stop_sequences[0]"),
        (json!({"stop_sequences":["x".repeat(5000)]}), "stop_sequences[0]"),
        (json!({"temperature":-1}), "temperature"),
        (json!({"top_p":2}), "top_p"),
        (json!({"top_k":1.5}), "top_k"),
        (json!({"stream":"yes"}), "stream"),
        (json!({"mcp_servers":[{"type":"url"}]}), "mcp_servers"),
    ] {
        assert_eq!(fault(extra).0, param);
    }
    assert_eq!(field_name("tools[3].function.parameters"), "tools[3].input_schema");
    assert_eq!(field_name("response_format.json_schema"), "output_config.format.schema");
    assert_eq!((field_name("stop[1]"), field_name("messages")), ("stop_sequences[1]".into(), "messages".into()));
}
