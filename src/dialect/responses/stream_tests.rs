use super::*;
use crate::chat::{Likely, TokenLogprob, ToolCallDelta};
use crate::dialect::responses::request;
use crate::engine::Timings;
use serde_json::{Value, json};

fn asked(extra: Value) -> Asked {
    let mut body = json!({
        "input": "hi",
        "tools": [{"type":"function","name":"f"},{"type":"custom","name":"patch"},
            {"type":"namespace","name":"ns","tools":[{"type":"function","name":"g"}]}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request(body.to_string().as_bytes()).unwrap().request
}

fn head() -> Head {
    Head { id: "resp_B".into(), created_at: 5, model: "m".into(), clock: || 9 }
}

fn said(content: &str) -> Delta {
    Delta { content: content.into(), ..Default::default() }
}

fn called(index: u32, name: Option<&str>, arguments: &str) -> Delta {
    let opening = name.map(|name| (format!("call_{index}"), name.to_owned()));
    let piece = ToolCallDelta { index, opening, arguments: arguments.into() };
    Delta { tool_calls: vec![piece], ..Default::default() }
}

fn everything() -> Vec<Delta> {
    vec![
        Delta { reasoning: "h".into(), ..Default::default() },
        Delta { reasoning: "m".into(), content: "a".into(), ..Default::default() },
        said("b"),
        said(""),
        called(0, Some("f"), ""),
        called(0, None, "{\"x\""),
        called(0, None, ":1}"),
        called(1, Some("patch"), "{\"input\":\"l1\\"),
        called(1, None, "nl2\"}"),
        called(2, Some("ns__g"), ""),
    ]
}

fn events(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let read = |event: &str| {
        let (kind, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(kind.strip_prefix("event: "), data["type"].as_str());
        assert!(data.get("error").is_none());
        data
    };
    text.split_terminator("\n\n").map(read).collect()
}

fn stream(asked: Asked, deltas: &[Delta], finish: Finish) -> (Vec<Value>, Option<Finished>) {
    let mut chunks = ResponseChunks::new(head(), asked);
    let mut out = Vec::new();
    chunks.open(&mut out);
    deltas.iter().for_each(|delta| chunks.delta(0, delta, &mut out));
    let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 4, ..Default::default() };
    chunks.finish(0, &Done { finish, usage, timings: Timings::default() }, &mut out);
    chunks.end(&usage, &mut out);
    (events(&out), chunks.finished())
}

/// RESP-03, RESP-10 and the order of section 1.9's stream.
#[test]
fn the_events_are_those_of_the_contract() {
    let (events, finished) = stream(asked(json!({})), &everything(), Finish::EndOfTurn);
    let kinds: Vec<&str> =
        events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], n);
    }
    let last = &events.last().unwrap()["response"];
    let done: Vec<&Value> =
        events.iter().filter(|e| e["type"] == "response.output_item.done").map(|e| &e["item"]).collect();
    assert_eq!(done, last["output"].as_array().unwrap().iter().collect::<Vec<_>>());
    let finished = finished.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&finished.object).unwrap(), *last);
    assert_eq!(finished.output.len(), 5);
}

#[test]
fn items_and_events_have_their_keys() {
    let (events, _) = stream(asked(json!({})), &everything(), Finish::EndOfTurn);
    let find = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap().clone();
    assert_eq!(
        find("response.output_text.delta"),
        json!({"type":"response.output_text.delta","sequence_number":11,"item_id":"msg_B01","output_index":1,
            "content_index":0,"delta":"a","logprobs":[]})
    );
    assert_eq!(
        find("response.function_call_arguments.done"),
        json!({"type":"response.function_call_arguments.done","sequence_number":19,"item_id":"fc_B02",
            "output_index":2,"name":"f","arguments":"{\"x\":1}"})
    );
    assert_eq!(find("response.content_part.added")["part"], json!({"type":"reasoning_text","text":""}));
    assert_eq!(
        find("response.output_item.added")["item"],
        json!({"type":"reasoning","id":"rs_B00","summary":[],"content":[],"encrypted_content":null,
            "status":"in_progress"})
    );
    let output = &find("response.completed")["response"]["output"];
    assert_eq!(
        *output,
        json!([
            {"type":"reasoning","id":"rs_B00","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],
             "encrypted_content":null,"status":"completed"},
            {"type":"message","id":"msg_B01","role":"assistant","status":"completed",
             "content":[{"type":"output_text","text":"ab","annotations":[],"logprobs":[]}]},
            {"type":"function_call","id":"fc_B02","call_id":"call_0","name":"f","arguments":"{\"x\":1}",
             "status":"completed"},
            {"type":"custom_tool_call","id":"ctc_B03","call_id":"call_1","name":"patch","input":"l1\nl2",
             "status":"completed"},
            {"type":"function_call","id":"fc_B04","call_id":"call_2","name":"g","arguments":"{}",
             "status":"completed","namespace":"ns"},
        ])
    );
}

/// The object of 1.9: every key, always, from the first event on.
#[test]
fn the_object_has_every_key() {
    let (events, _) = stream(asked(json!({"metadata": {"k": "v"}, "user": "u"})), &[said("x")], Finish::EndOfTurn);
    let mut expected = json!({
        "id":"resp_B","object":"response","created_at":5,"model":"m","output":[],"parallel_tool_calls":true,
        "tool_choice":"auto","status":"in_progress","error":null,"incomplete_details":null,
        "instructions":null,"metadata":{"k":"v"},"temperature":1.0,"top_p":1.0,"max_output_tokens":null,
        "max_tool_calls":null,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},
        "text":{"format":{"type":"text"},"verbosity":"medium"},"truncation":"disabled","store":true,
        "background":false,"service_tier":"default","top_logprobs":0,"user":"u","completed_at":null,"usage":null,
    });
    let without_tools = |event: &Value| {
        let mut response = event["response"].clone();
        assert_eq!(response.as_object_mut().unwrap().shift_remove("tools").unwrap().as_array().unwrap().len(), 3);
        response
    };
    assert_eq!(without_tools(&events[0]), expected);
    assert_eq!(events[0]["response"], events[1]["response"]);
    let last = without_tools(events.last().unwrap());
    expected["status"] = "completed".into();
    expected["completed_at"] = 9.into();
    expected["output"] = last["output"].clone();
    expected["usage"] = json!({"input_tokens":3,"input_tokens_details":{"cached_tokens":1,"cache_write_tokens":0},
        "output_tokens":4,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":7});
    assert_eq!(last, expected);
}

#[test]
fn a_cut_answer_is_incomplete_with_its_last_item() {
    let (events, _) = stream(asked(json!({})), &[said("x"), called(0, Some("f"), "{\"a")], Finish::Length);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    let response = &last["response"];
    assert_eq!((&response["status"], &response["completed_at"]), (&json!("incomplete"), &Value::Null));
    assert_eq!(response["incomplete_details"], json!({"reason":"max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "completed");
    assert_eq!(
        (&response["output"][1]["status"], &response["output"][1]["arguments"]),
        (&json!("incomplete"), &json!("{\"a"))
    );
}

/// RESP-11
#[test]
fn a_failure_ends_the_stream_with_response_failed() {
    let mut chunks = ResponseChunks::new(head(), asked(json!({})));
    let mut out = Vec::new();
    chunks.open(&mut out);
    chunks.delta(0, &said("half"), &mut out);
    let problem = Problem { message: "it broke".into(), kind: "server_error", param: None, code: None };
    chunks.fail(&problem, &mut out);
    assert!(chunks.finished().is_none());
    let events = events(&out);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"], json!({"code":"server_error","message":"it broke"}));
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    assert_eq!(events[events.len() - 2]["type"], "response.output_item.done");
}

#[test]
fn a_whole_response_is_the_streamed_one() {
    for (deltas, finish) in [
        (everything(), Finish::EndOfTurn),
        (everything(), Finish::Length),
        (vec![], Finish::EndOfTurn),
        (vec![said("x")], Finish::StopString("y".into())),
    ] {
        let streamed = stream(asked(json!({})), &deltas, finish.clone()).1.unwrap();
        let mut whole = Whole::new(head(), asked(json!({})));
        deltas.iter().for_each(|delta| whole.delta(delta));
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 4, ..Default::default() };
        let whole = whole.end(finish, &usage);
        assert_eq!((whole.object, whole.output), (streamed.object, streamed.output));
    }
}

#[test]
fn an_answer_that_says_nothing_is_an_empty_message() {
    let (events, _) = stream(asked(json!({})), &[], Finish::EndOfTurn);
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!((&output[0]["type"], &output[0]["content"][0]["text"]), (&json!("message"), &json!("")));
    assert!(events.iter().all(|event| event["type"] != "response.output_text.delta"));
}

#[test]
fn logprobs_come_with_their_text_where_they_are_wanted() {
    let top = vec![Likely { id: 1, bytes: b"x".to_vec(), logprob: -0.5 }];
    let entry = TokenLogprob { id: 1, bytes: b"x".to_vec(), logprob: -0.5, top };
    let delta = Delta { logprobs: vec![entry], ..said("x") };
    let wanted = json!([{"token":"x","logprob":-0.5,"bytes":[120],
        "top_logprobs":[{"token":"x","logprob":-0.5,"bytes":[120]}]}]);
    let (events, _) = stream(asked(json!({"top_logprobs": 1})), std::slice::from_ref(&delta), Finish::EndOfTurn);
    let find = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap();
    assert_eq!(find("response.output_text.delta")["logprobs"], wanted);
    assert_eq!(find("response.output_text.done")["logprobs"], wanted);
    assert_eq!(find("response.completed")["response"]["output"][0]["content"][0]["logprobs"], wanted);
    let (events, _) = stream(asked(json!({})), &[delta], Finish::EndOfTurn);
    assert_eq!(events[4]["logprobs"], json!([]));
}
