use super::*;
use crate::dialect::Ignored;

fn turn(value: Value) -> Result<Turn, Fault> {
    read("input[0]".to_owned(), value, &mut Found { ignored: &mut Ignored::default(), media: Vec::new() })
}

fn fault(value: Value) -> (String, &'static str) {
    let fault = turn(value).expect_err("should be refused");
    (fault.param.unwrap(), fault.code.unwrap())
}

fn fold(items: Value) -> Vec<Message> {
    let items = items.as_array().unwrap().iter();
    messages(items.map(|item| turn(item.clone()).unwrap()).collect())
}

#[test]
fn messages_need_no_type_and_have_parts() {
    for item in [
        json!({"role":"user","content":"ab"}),
        json!({"type":"message","role":"user","id":"msg_1","status":"completed","content":[
            {"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]}),
    ] {
        assert_eq!(turn(item), Ok(Turn::Message(Message::new(Role::User, "ab"))));
    }
    let ours = json!({"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[
        {"type":"output_text","text":"x","annotations":[],"logprobs":[]},{"type":"refusal","refusal":"y"}]});
    assert_eq!(turn(ours), Ok(Turn::Message(Message::new(Role::Assistant, "xy"))));
    let roles = fold(json!([{"role":"developer","content":"d"},{"role":"system","content":"s"}]));
    assert!(roles.iter().all(|message| message.role == Role::System));
}

#[test]
fn faults_name_the_exact_place() {
    assert_eq!(fault(json!("x")), ("input[0]".into(), "invalid_type"));
    assert_eq!(fault(json!({"type":"web_search_call","id":"x"})), ("input[0].type".into(), "invalid_value"));
    assert_eq!(fault(json!({"content":"x"})), ("input[0].type".into(), "missing_required_parameter"));
    assert_eq!(fault(json!({"role":"robot","content":"x"})), ("input[0].role".into(), "invalid_value"));
    assert_eq!(fault(json!({"role":"user"})), ("input[0].content".into(), "missing_required_parameter"));
    assert_eq!(fault(json!({"role":"user","content":1})), ("input[0].content".into(), "invalid_type"));
    let part = |part: Value| fault(json!({"role":"user","content":[{"type":"input_text","text":"x"}, part]}));
    assert_eq!(part(json!({"type":"video"})), ("input[0].content[1].type".into(), "invalid_value"));
    assert_eq!(part(json!({"text":"x"})), ("input[0].content[1].type".into(), "missing_required_parameter"));
    assert_eq!(part(json!({"type":"input_text"})).0, "input[0].content[1].text");
    assert_eq!(part(json!({"type":"input_image","file_id":"f"})).1, "unsupported_content");
    assert_eq!(part(json!({"type":"input_file","file_url":"http://x/"})).0, "input[0].content[1].type");
    assert_eq!(fault(json!({"type":"function_call","name":"f"})).0, "input[0].call_id");
    assert_eq!(fault(json!({"type":"custom_tool_call","call_id":"c","name":"f"})).0, "input[0].input");
    assert_eq!(fault(json!({"type":"function_call_output","call_id":"c"})).0, "input[0].output");
    let output = json!({"type":"function_call_output","call_id":"c","output":[{"type":"input_text","text":2}]});
    assert_eq!(fault(output).0, "input[0].output[0].text");
    assert_eq!(fault(json!({"type":"reasoning","content":[{"type":"x","text":"y"}]})).0, "input[0].content[0].type");
}

/// 1.9: a call, its message neighbours and reasoning belong to one assistant turn.
#[test]
fn what_the_assistant_did_between_two_turns_is_one_message() {
    let messages = fold(json!([
        {"role":"user","content":"q"},
        {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],
         "encrypted_content":null,"status":"completed"},
        {"role":"assistant","content":[{"type":"output_text","text":"let me see"}]},
        {"type":"function_call","call_id":"c1","name":"f","arguments":""},
        {"type":"custom_tool_call","call_id":"c2","name":"patch","input":"*** \"x\"","namespace":"ns"},
        {"type":"function_call_output","call_id":"c1","output":"1"},
        {"type":"custom_tool_call_output","call_id":"c2","output":[{"type":"input_text","text":"2"}]},
        {"type":"reasoning","summary":[{"type":"summary_text","text":"s"}],"encrypted_content":"gAAA"},
        {"role":"assistant","content":"done"},
        {"role":"assistant","content":"really"},
    ]));
    let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "assistant", "assistant"]);
    let turn = &messages[1];
    assert_eq!((turn.content.as_deref(), turn.reasoning.as_deref()), (Some("let me see"), Some("hm")));
    let calls: Vec<_> = turn.tool_calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
    assert_eq!(calls, [("f", "{}"), ("ns__patch", r#"{"input":"*** \"x\""}"#)]);
    assert_eq!((messages[2].name.as_deref(), messages[2].tool_call_id.as_deref()), (Some("f"), Some("c1")));
    assert_eq!(messages[3].content.as_deref(), Some("2"));
    assert_eq!(messages[4].reasoning.as_deref(), Some("s"));
}

#[test]
fn text_after_a_call_stays_in_its_turn() {
    let messages = fold(json!([
        {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
        {"role":"assistant","content":"a"},
        {"role":"assistant","content":"b"},
        {"type":"reasoning","content":[{"type":"reasoning_text","text":"left over"}]},
        {"role":"user","content":"u"},
    ]));
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].content.as_deref(), Some("a\nb"));
    assert_eq!(messages[1], Message::new(Role::User, "u"));
}

#[test]
fn references_are_told_by_their_type_or_by_having_nothing_else() {
    for item in [json!({"type":"item_reference","id":"msg_1"}), json!({"type":null,"id":"msg_1"})] {
        assert_eq!(turn(item), Ok(Turn::Reference("msg_1".to_owned())));
    }
}

#[test]
fn listed_items_are_complete() {
    let item = complete(json!({"role":"user","content":"x"}), "AbC", 3);
    assert_eq!(item.id, "msg_AbCi03");
    assert_eq!(
        item.json,
        json!({"role":"user","content":[{"type":"input_text","text":"x"}],"type":"message","id":"msg_AbCi03",
            "status":"completed"})
    );
    assert_eq!(item.n_bytes, item.json.to_string().len());
    let item = complete(json!({"type":"function_call_output","call_id":"c","output":"1","id":"mine"}), "b", 0);
    assert_eq!((item.id.as_str(), &item.json["status"]), ("mine", &json!("completed")));
    assert!(complete(json!({"type":"reasoning"}), "b", 0).json["summary"].is_array());
    assert_eq!(complete(json!({"role":"assistant","content":"x"}), "b", 0).json["content"][0]["type"], "output_text");
}
