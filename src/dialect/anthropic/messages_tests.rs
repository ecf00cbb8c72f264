use super::*;
use serde_json::json;

fn read(body: Value) -> Result<(Vec<Message>, MediaPlaces, Ignored), Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body.to_string().as_bytes())?;
    let mut found = Found { ignored: &mut ignored, media: MediaPlaces::default() };
    let messages = conversation(&mut body, &mut found)?;
    let media = found.media;
    Ok((messages, media, ignored))
}

fn messages(messages: Value) -> Vec<Message> {
    read(json!({ "messages": messages })).unwrap().0
}

fn fault(messages: Value) -> (String, &'static str) {
    let shown = messages.to_string();
    let fault = read(json!({ "messages": messages })).err().unwrap_or_else(|| panic!("{shown} should be refused"));
    (fault.param.unwrap(), fault.code.unwrap())
}

fn user(blocks: Value) -> Value {
    json!([{ "role": "user", "content": blocks }])
}

#[test]
fn blocks_are_the_joined_text() {
    let parts = json!([{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},{"type":"text","text":"b"}]);
    assert_eq!(messages(user(parts.clone())), messages(user(json!("ab"))));
    let with = |system: Value| read(json!({"system":system,"messages":[{"role":"user","content":"x"}]})).unwrap();
    let (as_blocks, _, ignored) = with(parts);
    assert_eq!(as_blocks, with(json!("ab")).0);
    assert_eq!((as_blocks[0].role, ignored.header()), (Role::System, None));
    assert_eq!(with(json!([])).0.len(), 1);
}

#[test]
fn neighbours_of_one_role_are_one_turn() {
    let read = messages(json!([
        {"role":"user","content":"a"},
        {"role":"user","content":[{"type":"text","text":"b"},{"type":"image","source":
            {"type":"base64","media_type":"image/png","data":"AQID"}}]},
        {"role":"assistant","content":"c"},
        {"role":"system","content":"late"},
        {"role":"user","content":"d"},
    ]));
    let shape: Vec<_> = read.iter().map(|it| (it.role, it.content.as_deref().unwrap())).collect();
    assert_eq!(shape, [(Role::User, "a\n\nb"), (Role::Assistant, "c"), (Role::System, "late"), (Role::User, "d")]);
    assert_eq!((read[0].media[0].offset, read[0].media[0].data.as_slice()), (4, [1u8, 2, 3].as_slice()));
}

/// ANTH-13.
#[test]
fn results_come_before_what_is_said_to_them() {
    let read = messages(json!([
        {"role":"user","content":"go"},
        {"role":"assistant","content":[
            {"type":"thinking","thinking":"hm","signature":"any"},{"type":"redacted_thinking","data":"x"},
            {"type":"text","text":"calling"},
            {"type":"tool_use","id":"toolu_1","name":"f","input":{"b":1,"a":2}},
            {"type":"tool_use","id":"other","name":"g","input":{}}]},
        {"role":"user","content":[
            {"type":"text","text":"and?"},
            {"type":"tool_result","tool_use_id":"other","is_error":true,"content":"broken"},
            {"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"one"}]}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"nobody"}]},
    ]));
    let calls: Vec<_> = read[1].tool_calls.iter().map(|it| (it.id.as_str(), it.arguments.as_str())).collect();
    assert_eq!(calls, [("call_1", "{\"b\":1,\"a\":2}"), ("other", "{}")]);
    assert_eq!((read[1].content.as_deref(), read[1].reasoning.as_deref()), (Some("calling"), Some("hm")));
    let rest: Vec<_> = read[2..]
        .iter()
        .map(|it| (it.role, it.tool_call_id.as_deref(), it.name.as_deref(), it.content.as_deref().unwrap()))
        .collect();
    assert_eq!(
        rest,
        [
            (Role::Tool, Some("other"), Some("g"), "Error: broken"),
            (Role::Tool, Some("call_1"), Some("f"), "one"),
            (Role::Tool, Some("nobody"), None, ""),
            (Role::User, None, None, "and?"),
        ]
    );
    let only_result = messages(user(json!([{"type":"tool_result","tool_use_id":"x","content":"r"}])));
    assert_eq!(only_result.len(), 1);
}

#[test]
fn documents_and_search_results_become_text() {
    let read = messages(user(json!([
        {"type":"document","title":"T","context":"C","citations":{"enabled":false},
            "source":{"type":"text","media_type":"text/plain","data":"D"}},
        {"type":"document","source":{"type":"content","content":[{"type":"text","text":"E"}]}},
        {"type":"search_result","title":"S","source":"u","content":[{"type":"text","text":"F"}]},
    ])));
    assert_eq!(read[0].content.as_deref(), Some("T\nC\nDES (u)\nF\n"));
}

/// ANTH-07.
#[test]
fn what_can_not_be_taken_is_named() {
    let image = |source: Value| user(json!([{ "type": "image", "source": source }]));
    let document = |source: Value| user(json!([{ "type": "document", "source": source }]));
    let pdf = json!({"type":"base64","media_type":"application/pdf","data":"JVBERi0="});
    for (messages, param, code) in [
        (json!([]), "messages", "empty_array"),
        (json!("x"), "messages", "invalid_type"),
        (json!([{"content":"x"}]), "messages[0].role", "missing_required_parameter"),
        (json!([{"role":"tool","content":"x"}]), "messages[0].role", "invalid_value"),
        (json!([{"role":"user"}]), "messages[0].content", "missing_required_parameter"),
        (user(json!(5)), "messages[0].content", "invalid_type"),
        (user(json!(["x"])), "messages[0].content[0]", "invalid_type"),
        (user(json!([{"type":"hologram"}])), "messages[0].content[0].type", "invalid_value"),
        (user(json!([{"type":"tool_use"}])), "messages[0].content[0].type", "invalid_value"),
        (document(pdf), "messages[0].content[0].type", "unsupported_content"),
        (document(json!({"type":"url","url":"http://x"})), "messages[0].content[0].type", "unsupported_content"),
        (image(json!({"type":"url","url":"ftp://x/a.png"})), "messages[0].content[0].type", "unsupported_content"),
        (image(json!({"type":"file","file_id":"f"})), "messages[0].content[0].type", "unsupported_content"),
        (
            image(json!({"type":"base64","media_type":"image/tiff","data":"AQID"})),
            "messages[0].content[0].source.media_type",
            "invalid_value",
        ),
        (
            image(json!({"type":"base64","media_type":"image/png","data":"*"})),
            "messages[0].content[0].source.data",
            "invalid_value",
        ),
        (
            user(json!([{"type":"tool_result","content":"r"}])),
            "messages[0].content[0].tool_use_id",
            "missing_required_parameter",
        ),
        (
            json!([{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":"x"}]}]),
            "messages[0].content[0].input",
            "invalid_type",
        ),
        (
            user(json!([{"type":"document","citations":{"enabled":true},"source":{"type":"text","data":"x"}}])),
            "messages[0].content[0].citations.enabled",
            "unsupported_parameter",
        ),
    ] {
        assert_eq!(fault(messages), (param.to_owned(), code));
    }
    let (_, media, _) =
        read(json!({"messages": image(json!({"type":"url","url":"data:image/png;base64,AQID"}))})).unwrap();
    assert_eq!(media.refuse(&[]).unwrap_err().param.as_deref(), Some("messages[0].content[0].type"));
}

#[test]
fn blocks_do_not_nest_without_end() {
    let mut inner = json!([{"type":"text","text":"x"}]);
    for _ in 0..10 {
        inner = json!([{"type":"document","source":{"type":"content","content":inner}}]);
    }
    assert_eq!(fault(user(inner)).1, "invalid_value");
}

#[test]
fn unknown_fields_are_listed_with_their_place() {
    let (_, _, ignored) = read(json!({"messages":[{"role":"user","mood":1,"content":
        [{"type":"tool_result","tool_use_id":"x","content":[{"type":"text","text":"t","odd":1}],"y":2}]}]}))
    .unwrap();
    let expected = "messages[0].content[0].content[0].odd, messages[0].content[0].y, messages[0].mood";
    assert_eq!(ignored.header().as_deref(), Some(expected));
}
