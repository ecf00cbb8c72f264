use super::*;

fn read(body: Value) -> Result<(Tools, Choice, Ignored), Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body.to_string().as_bytes())?;
    let tools = tools(&mut body, &mut ignored)?;
    let choice = choice(&mut body, &tools, &mut ignored)?;
    Ok((tools, choice, ignored))
}

fn fault(body: Value) -> (String, &'static str) {
    let fault = read(body).expect_err("should be refused");
    (fault.param.unwrap(), fault.code.unwrap())
}

fn some() -> Value {
    json!([
        {"type":"function","name":"f","description":"d","parameters":{"type":"object"},"strict":true},
        {"type":"custom","name":"apply_patch","description":null,"format":{"type":"text"}},
        {"type":"web_search_preview_2025_03_11"},
        {"type":"namespace","name":"crm","description":"n","tools":[
            {"type":"function","name":"get","parameters":null},{"type":"custom","name":"note"}]},
    ])
}

#[test]
fn every_kind_of_tool_becomes_a_function_and_can_be_told_back() {
    let (tools, choice, ignored) = read(json!({"tools": some()})).unwrap();
    let names: Vec<&str> = tools.offered.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["f", "apply_patch", "crm__get", "crm__note"]);
    assert_eq!(tools.offered[2].parameters, "{}");
    assert!(tools.offered[1].parameters.contains("\"required\":[\"input\"]"));
    let note = Called { name: "note".into(), namespace: Some("crm".into()), is_custom: true };
    assert_eq!(tools.called["crm__note"], note);
    assert_eq!(Value::Array(tools.echo), some());
    assert_eq!(choice, Choice { choice: ToolChoice::Auto, callable: None, echo: "auto".into() });
    assert_eq!(ignored.header(), None);
}

/// RESP-04
#[test]
fn hosted_tools_are_left_out_and_refused_when_chosen() {
    let hosted = [
        "web_search",
        "web_search_preview",
        "file_search",
        "code_interpreter",
        "image_generation",
        "mcp",
        "computer_use_preview",
        "computer",
        "local_shell",
        "shell",
        "apply_patch",
        "tool_search",
    ];
    for kind in hosted {
        let tools = json!([{"type": kind, "server_label": "x"}]);
        for choice in [json!("auto"), json!("none"), Value::Null] {
            let (tools, _, ignored) = read(json!({"tools": tools, "tool_choice": choice})).unwrap();
            assert!(tools.offered.is_empty() && tools.echo.len() == 1 && ignored.header().is_none(), "{kind}");
        }
        assert_eq!(fault(json!({"tools": tools, "tool_choice": {"type": kind}})).0, "tool_choice", "{kind}");
        assert_eq!(fault(json!({"tools": tools, "tool_choice": "required"})).0, "tool_choice", "{kind}");
    }
    let allowed = json!({"type":"allowed_tools","mode":"auto","tools":[{"type":"mcp","server_label":"x"}]});
    assert_eq!(read(json!({"tools": [{"type":"mcp"}], "tool_choice": allowed})).unwrap().1.choice, ToolChoice::None);
}

#[test]
fn a_choice_narrows_what_may_be_called() {
    let chosen = |choice: Value| {
        let read = read(json!({"tools": some(), "tool_choice": choice})).unwrap().1;
        assert_eq!(read.echo, choice);
        (read.choice, read.callable.map(|names| names.join(",")))
    };
    assert_eq!(chosen(json!("none")), (ToolChoice::None, None));
    assert_eq!(chosen(json!("required")), (ToolChoice::Required, None));
    assert_eq!(chosen(json!({"type":"function","name":"f"})), (ToolChoice::Required, Some("f".into())));
    assert_eq!(chosen(json!({"type":"custom","name":"apply_patch"})).1, Some("apply_patch".into()));
    assert_eq!(chosen(json!({"type":"function","name":"get","namespace":"crm"})).1, Some("crm__get".into()));
    let allowed = |mode: &str| {
        json!({"type":"allowed_tools","mode":mode,"tools":[
            {"type":"function","name":"f"},{"type":"web_search"},{"type":"custom","name":"apply_patch"}]})
    };
    assert_eq!(chosen(allowed("auto")), (ToolChoice::Auto, Some("f,apply_patch".into())));
    assert_eq!(chosen(allowed("required")).0, ToolChoice::Required);
}

#[test]
fn wrong_tools_are_refused_by_name() {
    let tools = |tool: Value| fault(json!({"tools": [{"type":"function","name":"f"}, tool]}));
    assert_eq!(tools(json!({"name":"g"})), ("tools[1].type".into(), "missing_required_parameter"));
    assert_eq!(tools(json!({"type":"robot","name":"g"})), ("tools[1].type".into(), "invalid_value"));
    assert_eq!(tools(json!({"type":"function"})), ("tools[1].name".into(), "missing_required_parameter"));
    assert_eq!(tools(json!({"type":"function","name":""})), ("tools[1].name".into(), "empty_string"));
    assert_eq!(tools(json!({"type":"function","name":"x".repeat(129)})).0, "tools[1].name");
    assert_eq!(tools(json!({"type":"function","name":"f"})), ("tools[1].name".into(), "invalid_value"));
    assert_eq!(tools(json!({"type":"function","name":"g","parameters":[]})).0, "tools[1].parameters");
    let text = json!({"type":"function","name":"g","parameters":{"type":"string"}});
    assert_eq!(tools(text), ("tools[1].parameters".into(), "invalid_json_schema"));
    let grammar = json!({"type":"grammar","syntax":"lark","definition":"start: /x/"});
    let custom = tools(json!({"type":"custom","name":"g","format":grammar}));
    assert_eq!(custom, ("tools[1].format".into(), "unsupported_parameter"));
    let member = json!({"type":"namespace","name":"n","tools":[{"type":"web_search","name":"x"}]});
    assert_eq!(tools(member).0, "tools[1].tools[0].type");
    assert_eq!(fault(json!({"tools": {}})), ("tools".into(), "invalid_type"));
    let choice = |choice: Value| fault(json!({"tools": some(), "tool_choice": choice})).0;
    assert_eq!(choice(json!("sometimes")), "tool_choice");
    assert_eq!(choice(json!(1)), "tool_choice");
    assert_eq!(choice(json!({"type":"function","name":"nope"})), "tool_choice");
    assert_eq!(choice(json!({"type":"function"})), "tool_choice.name");
    assert_eq!(choice(json!({"type":"allowed_tools","mode":"none","tools":[]})), "tool_choice.mode");
    assert_eq!(choice(json!({"type":"robot"})), "tool_choice.type");
    assert_eq!(fault(json!({"tool_choice":"required"})).0, "tool_choice");
}
