//! OpenAI's Responses API. Names are the contract's rows where it has one; the rest are rules of its section 1.9.

use crate::support::{Answer, MODEL, PATIENCE, Server, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

async fn create(server: &Server, input: Value, more: Value) -> Answer {
    server.post(PATH, with(json!({ "model": MODEL, "input": input }), more)).await
}

async fn created(server: &Server, input: Value, more: Value) -> Value {
    let answer = create(server, input, more).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The whole stream, checked as every stream has to be.
async fn stream(server: &Server, input: Value, more: Value) -> Vec<Value> {
    let body = with(json!({ "model": MODEL, "input": input, "stream": true }), more);
    let response = server.send(PATH, &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let events = parse(&response.text().await.expect("a stream of UTF-8"));
    let last = events.last().expect("a terminal event");
    let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
    let items: Vec<&Value> = done.map(|event| &event["item"]).collect();
    assert_eq!(items, last["response"]["output"].as_array().expect("items").iter().collect::<Vec<_>>());
    events
}

fn parse(text: &str) -> Vec<Value> {
    let mut events: Vec<Value> = Vec::new();
    assert!(text.ends_with("\n\n") && !text.contains("[DONE]"), "{text}");
    for event in text.split_terminator("\n\n").filter(|event| *event != ": keep-alive") {
        let (kind, data) = event.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(kind.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], events.len(), "without gaps");
        assert!(data.get("error").is_none());
        events.push(data);
    }
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("response.created"), &json!("response.in_progress")));
    let n_terminal = events.iter().filter(|event| is_terminal(event)).count();
    assert!(n_terminal == 1 && events.last().is_some_and(is_terminal), "the last event alone is terminal");
    events
}

fn is_terminal(event: &Value) -> bool {
    ["response.completed", "response.incomplete", "response.failed"].iter().any(|kind| event["type"] == *kind)
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

fn deltas(events: &[Value], kind: &str) -> String {
    events.iter().filter(|event| event["type"] == kind).filter_map(|event| event["delta"].as_str()).collect()
}

fn text(response: &Value) -> &str {
    let items = response["output"].as_array().expect("items");
    let message = items.iter().find(|item| item["type"] == "message").expect("a message");
    message["content"][0]["text"].as_str().expect("text")
}

fn id(response: &Value) -> &str {
    response["id"].as_str().expect("an id")
}

/// Without what differs between two answers to the same request.
fn timeless(response: &Value) -> Value {
    let text = response.to_string().replace(id(response).trim_start_matches("resp_"), "ID");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    for key in ["created_at", "completed_at"] {
        assert!(value[key].is_u64() || value[key].is_null());
        value[key] = Value::Null;
    }
    // The second time more of the prompt is in the cache.
    value["usage"]["input_tokens_details"]["cached_tokens"] = 0.into();
    for item in value["output"].as_array_mut().expect("items") {
        if item.get("call_id").is_some() {
            item["call_id"] = "call".into();
        }
    }
    value
}

fn functions() -> Value {
    json!([
        {"type":"function","name":"get_weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}}},"strict":false},
        {"type":"custom","name":"apply_patch","description":"d"},
    ])
}

#[tokio::test]
async fn the_object_is_complete() {
    let server = Server::start().await;
    let response =
        created(&server, json!("hello"), json!({"metadata": {"k": "v"}, "user": "u", "temperature": 0.5})).await;
    let keys: Vec<&str> = response.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "id",
            "object",
            "created_at",
            "model",
            "output",
            "parallel_tool_calls",
            "tool_choice",
            "tools",
            "status",
            "error",
            "incomplete_details",
            "instructions",
            "metadata",
            "temperature",
            "top_p",
            "max_output_tokens",
            "max_tool_calls",
            "previous_response_id",
            "reasoning",
            "text",
            "truncation",
            "store",
            "background",
            "service_tier",
            "top_logprobs",
            "user",
            "completed_at",
            "usage",
        ]
    );
    assert!(id(&response).starts_with("resp_") && response["object"] == "response" && response["model"] == MODEL);
    assert_eq!((text(&response), &response["status"]), ("hello", &json!("completed")));
    assert_eq!((&response["metadata"], &response["user"]), (&json!({"k":"v"}), &json!("u")));
    assert_eq!((&response["temperature"], &response["top_p"]), (&json!(0.5), &json!(0.95)));
    let message = &response["output"][0];
    assert!(message["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    let usage = &response["usage"];
    assert_eq!(usage["total_tokens"].as_u64(), Some(usage["input_tokens"].as_u64().unwrap_or(0) + 6));
    assert_eq!(usage["output_tokens"], 6);
    let unprefixed = server.post("/responses/", json!({"input": "hello"})).await;
    assert_eq!(text(&unprefixed.json()), "hello");
}

/// FAULT-13.
#[tokio::test]
async fn a_stream_adds_up_to_the_whole_response() {
    let server = Server::start().await;
    for (input, more) in [
        ("hello \u{1f600}", json!({})),
        ("/think so it is", json!({})),
        ("/count 50", json!({"max_output_tokens": 20})),
        ("/call get_weather {\"city\":\"Rome\"}", json!({"tools": functions()})),
        ("text\n/call get_weather {}\n/call apply_patch {\"input\":\"a\\nb\"}", json!({"tools": functions()})),
        ("x", json!({"tools": functions(), "tool_choice": "required"})),
    ] {
        let whole = created(&server, json!(input), more.clone()).await;
        let events = stream(&server, json!(input), more).await;
        let first = &events[0]["response"];
        assert_eq!(
            (&first["status"], &first["output"], &first["usage"]),
            (&json!("in_progress"), &json!([]), &Value::Null)
        );
        assert_eq!(timeless(&events[events.len() - 1]["response"]), timeless(&whole), "{input}");
    }
}

#[tokio::test]
async fn text_is_streamed_in_the_order_of_the_contract() {
    let server = Server::start().await;
    let events = stream(&server, json!("ab"), json!({})).await;
    let mut kinds = kinds(&events);
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    assert_eq!(deltas(&events, "response.output_text.delta"), "ab");
    assert!(events.iter().filter(|e| e["type"] == "response.output_text.delta").all(|e| e["logprobs"] == json!([])));
}

#[tokio::test]
async fn a_limit_makes_it_incomplete() {
    let server = Server::start().await;
    let response = created(&server, json!("/count 100"), json!({"max_output_tokens": 5})).await;
    assert_eq!((&response["status"], &response["completed_at"]), (&json!("incomplete"), &Value::Null));
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!((&response["output"][0]["status"], text(&response)), (&json!("incomplete"), "1 2 3"));
    let events = stream(&server, json!("/count 100"), json!({"max_output_tokens": 5})).await;
    assert_eq!(events[events.len() - 1]["type"], "response.incomplete");
}

#[tokio::test]
async fn resp_03_reasoning_comes_before_the_message() {
    let server = Server::start().await;
    let events =
        stream(&server, json!("/think well"), json!({"reasoning": {"effort": "high", "summary": "auto"}})).await;
    let kinds = kinds(&events);
    let at = |kind: &str| kinds.iter().position(|it| *it == kind).expect("the event is there");
    assert!(at("response.reasoning_text.delta") < at("response.reasoning_text.done"));
    assert!(at("response.reasoning_text.done") < at("response.output_text.delta"));
    assert_eq!(deltas(&events, "response.reasoning_text.delta"), "well");
    let response = &events[events.len() - 1]["response"];
    let types: Vec<_> = response["output"].as_array().expect("items").iter().map(|item| &item["type"]).collect();
    assert_eq!(types, ["reasoning", "message"]);
    assert_eq!(response["output"][0]["content"], json!([{"type": "reasoning_text", "text": "well"}]));
    assert_eq!(response["reasoning"], json!({"effort": "high", "summary": "auto"}));
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
}

#[tokio::test]
async fn functions_are_called_and_their_results_taken() {
    let server = Server::start().await;
    let ask = json!([{"role": "user", "content": "/call get_weather {\"city\":\"Rome\"}"}]);
    let events = stream(&server, ask.clone(), json!({"tools": functions()})).await;
    assert_eq!(deltas(&events, "response.function_call_arguments.delta"), "{\"city\":\"Rome\"}");
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").expect("done");
    assert_eq!((&done["name"], &done["arguments"]), (&json!("get_weather"), &json!("{\"city\":\"Rome\"}")));
    let response = &events[events.len() - 1]["response"];
    let call = &response["output"][0];
    assert!(call["call_id"].as_str().is_some_and(|id| id.starts_with("call_")) && call["id"] != call["call_id"]);
    assert_eq!(response["tools"], functions());
    let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "20 degrees"});
    let all = json!([ask[0], call, result, {"role": "user", "content": "so?"}]);
    assert_eq!(text(&created(&server, all, json!({"tools": functions()})).await), "so?");
    let by_id = json!({"previous_response_id": response["id"], "tools": functions()});
    assert_eq!(create(&server, json!([result]), by_id).await.status, 200);
}

#[tokio::test]
async fn resp_04_hosted_tools_are_dropped_unless_chosen() {
    let server = Server::start().await;
    let tools = json!([{"type": "web_search"}, {"type": "image_generation"}, {"type": "function", "name": "f", "parameters": {}}]);
    for choice in [json!("auto"), json!("none"), Value::Null] {
        let answer = create(&server, json!("hi"), json!({"tools": tools, "tool_choice": choice})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["tools"], tools);
    }
    let chosen = create(&server, json!("hi"), json!({"tools": tools, "tool_choice": {"type": "web_search"}})).await;
    chosen.is_refusal("unsupported_parameter", "tool_choice");
}

#[tokio::test]
async fn tool_choice_is_kept() {
    let server = Server::start().await;
    let named = json!({"tools": functions(), "tool_choice": {"type": "custom", "name": "apply_patch"}});
    let response = created(&server, json!("hi"), named).await;
    assert_eq!(
        (&response["output"][0]["type"], &response["output"][0]["name"]),
        (&json!("custom_tool_call"), &json!("apply_patch"))
    );
    assert_eq!(response["tool_choice"], json!({"type": "custom", "name": "apply_patch"}));
    let allowed =
        json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]});
    let response = created(&server, json!("hi"), json!({"tools": functions(), "tool_choice": allowed})).await;
    assert_eq!(response["output"][0]["name"], "get_weather");
    let none = json!({"tools": functions(), "tool_choice": "none"});
    let response = created(&server, json!("/call get_weather {}"), none).await;
    assert_eq!(response["output"][0]["type"], "message");
    create(&server, json!("hi"), json!({"tool_choice": "required"})).await.is_refusal("invalid_value", "tool_choice");
}

#[tokio::test]
async fn resp_10_a_custom_tool_gets_its_text() {
    let server = Server::start().await;
    let ask = "/call apply_patch {\"input\":\"*** Begin Patch\\n+\\u00e9\\n\"}";
    let events = stream(&server, json!(ask), json!({"tools": functions()})).await;
    let input = "*** Begin Patch\n+é\n";
    assert_eq!(deltas(&events, "response.custom_tool_call_input.delta"), input);
    let done = events.iter().find(|e| e["type"] == "response.custom_tool_call_input.done").expect("done");
    assert_eq!(done["input"], input);
    let call = &events[events.len() - 1]["response"]["output"][0];
    assert_eq!((&call["type"], &call["input"]), (&json!("custom_tool_call"), &json!(input)));
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("ctc_")));
    let result = json!({"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"});
    let all = json!([{"role": "user", "content": ask}, call, result, {"role": "user", "content": "then?"}]);
    assert_eq!(text(&created(&server, all, json!({"tools": functions()})).await), "then?");
}

#[tokio::test]
async fn a_namespaces_member_is_called_by_its_own_name() {
    let server = Server::start().await;
    let tools = json!([{"type": "namespace", "name": "crm", "description": "d", "tools": [{"type": "function", "name": "get", "parameters": {}}]}]);
    let response = created(&server, json!("/call crm__get {}"), json!({"tools": tools})).await;
    let call = &response["output"][0];
    assert_eq!((&call["name"], &call["namespace"]), (&json!("get"), &json!("crm")));
}

#[tokio::test]
async fn previous_responses_are_gone_on_from() {
    let server = Server::start().await;
    let first = created(&server, json!("one"), json!({})).await;
    let second = created(&server, json!("two"), json!({"previous_response_id": first["id"]})).await;
    let third = created(&server, json!("three"), json!({"previous_response_id": second["id"]})).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let by_hand = json!([
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]);
    let whole = created(&server, by_hand, json!({})).await;
    assert_eq!(third["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    // What a response goes on from stays with it.
    assert_eq!(delete(&server, id(&first)).await.status, 200);
    let fourth = created(&server, json!("three"), json!({"previous_response_id": second["id"]})).await;
    assert_eq!(fourth["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
}

#[tokio::test]
async fn resp_12_old_instructions_are_not_carried() {
    let server = Server::start().await;
    let with_instructions = created(&server, json!("one"), json!({"instructions": "be very brief"})).await;
    let without = created(&server, json!("one"), json!({})).await;
    assert_eq!(with_instructions["instructions"], "be very brief");
    assert!(with_instructions["usage"]["input_tokens"].as_u64() > without["usage"]["input_tokens"].as_u64());
    let after = |previous: &Value| json!({"previous_response_id": previous["id"]});
    let a = created(&server, json!("two"), after(&with_instructions)).await;
    let b = created(&server, json!("two"), after(&without)).await;
    assert_eq!(a["usage"]["input_tokens"], b["usage"]["input_tokens"]);
    assert_eq!(a["instructions"], Value::Null);
}

async fn delete(server: &Server, id: &str) -> Answer {
    Answer::of(server.client.delete(server.url(&format!("{PATH}/{id}"))).send().await.expect("an answer")).await
}

#[tokio::test]
async fn stored_responses_are_got_and_deleted() {
    let server = Server::start().await;
    let response = created(&server, json!("keep me"), json!({})).await;
    let path = format!("{PATH}/{}", id(&response));
    assert_eq!(server.get(&path).await.json(), response);
    assert_eq!(server.get(&format!("/responses/{}/", id(&response))).await.json(), response);
    server.get(&format!("{path}?stream=true")).await.is_refusal("unsupported_parameter", "stream");
    let gone = delete(&server, id(&response)).await;
    assert_eq!(gone.json(), json!({"id": response["id"], "object": "response.deleted", "deleted": true}));
    for answer in [
        server.get(&path).await,
        delete(&server, id(&response)).await,
        server.get(&format!("{path}/input_items")).await,
    ] {
        let (status, kind, ..) = answer.error();
        assert_eq!((status, kind.as_str()), (404, "invalid_request_error"));
    }
    let refused = create(&server, json!("x"), json!({"previous_response_id": response["id"]})).await;
    refused.is_refusal("previous_response_not_found", "previous_response_id");
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let server = Server::start().await;
    let response = created(&server, json!("secret"), json!({"store": false})).await;
    assert_eq!(response["store"], false);
    assert_eq!(server.get(&format!("{PATH}/{}", id(&response))).await.status, 404);
    let refused = create(&server, json!("x"), json!({"previous_response_id": response["id"]})).await;
    refused.is_refusal("previous_response_not_found", "previous_response_id");
    let off = Server::with(|setup| setup.gateway.responses.count_max = 0).await;
    assert_eq!(created(&off, json!("x"), json!({})).await["store"], false);
    let small = Server::with(|setup| setup.gateway.responses.bytes_max = 1000).await;
    create(&small, json!("x".repeat(600)), json!({})).await.is_refusal("invalid_value", "store");
}

#[tokio::test]
async fn a_stream_is_stored_when_it_completes_and_only_then() {
    let server = Server::with(|setup| (setup.scripted().step_us, setup.engine.n_ctx) = (500, Some(1_000_000))).await;
    let events = stream(&server, json!("stream"), json!({})).await;
    let response = &events[events.len() - 1]["response"];
    assert_eq!(server.get(&format!("{PATH}/{}", id(response))).await.json(), *response);
    let mut left = server.send(PATH, &json!({"input": "/forever", "stream": true})).await;
    let first = left.chunk().await.expect("the stream lives").expect("a chunk");
    let text = String::from_utf8_lossy(&first).into_owned();
    let at = text.find("resp_").expect("an id");
    let id = &text[at..at + 29];
    drop(left);
    server.idle().await;
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.status, 404);
}

#[tokio::test]
async fn input_items_are_listed_with_ids_in_pages() {
    let server = Server::start().await;
    let input = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}], "id": "msg_mine"},
        {"role": "user", "content": [{"type": "input_text", "text": "c"}]},
    ]);
    let response = created(&server, input, json!({})).await;
    let path = format!("{PATH}/{}/input_items", id(&response));
    let list = server.get(&format!("{path}?order=asc")).await.json();
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    let items = list["data"].as_array().expect("items");
    assert_eq!(items[0]["content"], json!([{"type": "input_text", "text": "a"}]));
    assert!(
        items.iter().all(|item| item["type"] == "message" && item["status"] == "completed" && item["id"].is_string())
    );
    assert_eq!((&list["first_id"], &list["last_id"]), (&items[0]["id"], &items[2]["id"]));
    assert_eq!(items[1]["id"], "msg_mine");
    let newest = server.get(&path).await.json();
    assert_eq!(newest["data"], json!([items[2], items[1], items[0]]));
    let page = server.get(&format!("{path}?limit=1&after=msg_mine&order=asc")).await.json();
    assert_eq!((&page["data"], &page["has_more"]), (&json!([items[2]]), &json!(false)));
    let page = server.get(&format!("{path}?limit=1")).await.json();
    assert_eq!((&page["last_id"], &page["has_more"]), (&items[2]["id"], &json!(true)));
    server.get(&format!("{path}?limit=0")).await.is_refusal("integer_below_min_value", "limit");
    server.get(&format!("{path}?limit=x")).await.is_refusal("invalid_type", "limit");
    server.get(&format!("{path}?order=up")).await.is_refusal("invalid_value", "order");
    server.get(&format!("{path}?after=nope")).await.is_refusal("invalid_value", "after");
}

#[tokio::test]
async fn nothing_can_be_cancelled() {
    let server = Server::start().await;
    let response = created(&server, json!("x"), json!({})).await;
    let answer = server.post(&format!("{PATH}/{}/cancel", id(&response)), json!({})).await;
    let (status, kind, ..) = answer.error();
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
}

#[tokio::test]
async fn input_tokens_are_those_of_the_real_call() {
    let server = Server::start().await;
    let first = created(&server, json!("one"), json!({})).await;
    for (input, more) in [
        (json!("hello"), json!({})),
        (json!("hello"), json!({"instructions": "i", "previous_response_id": first["id"]})),
        (json!([{"role": "user", "content": "x"}]), json!({"tools": functions(), "tool_choice": "required"})),
    ] {
        let counted =
            server.post("/v1/responses/input_tokens", with(json!({"input": input}), more.clone())).await.json();
        let real = created(&server, input, more).await;
        assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": real["usage"]["input_tokens"]}));
    }
    server.post("/v1/responses/input_tokens", json!({})).await.is_refusal("missing_required_parameter", "input");
}

#[tokio::test]
async fn resp_07_references_are_resolved() {
    let server = Server::start().await;
    let first = created(&server, json!("/think hm"), json!({})).await;
    let reference = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let output = &first["output"];
    let ask = json!({"role": "user", "content": "and?"});
    let referred = created(&server, json!([reference(&output[0]), reference(&output[1]), ask]), json!({})).await;
    let spelled = created(&server, json!([output[0], output[1], ask]), json!({"store": false})).await;
    assert_eq!(referred["usage"]["input_tokens"], spelled["usage"]["input_tokens"]);
    let listed = server.get(&format!("{PATH}/{}/input_items?order=asc", id(&referred))).await.json();
    assert_eq!(listed["data"][1], output[1]);
    let unknown = create(&server, json!([ask, {"id": "msg_nope"}]), json!({})).await;
    let (status, kind, _, param) = unknown.error();
    assert_eq!((status, kind.as_str(), param.as_deref()), (404, "invalid_request_error", Some("input[1].id")));
}

#[tokio::test]
async fn resp_08_what_is_not_done_is_refused_by_name() {
    let server = Server::start().await;
    for (more, param) in [
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"moderation": {"model": "m"}}), "moderation"),
    ] {
        create(&server, json!("x"), more).await.is_refusal("unsupported_parameter", param);
    }
}

#[tokio::test]
async fn faults_are_plain_errors_also_for_streams() {
    let server = Server::start().await;
    for (body, code, param) in [
        (json!({}), "missing_required_parameter", "input"),
        (json!({"input": []}), "empty_array", "input"),
        (json!({"input": [{"type": "computer_call"}]}), "invalid_value", "input[0].type"),
        (json!({"input": "x", "temperature": "hot", "stream": true}), "invalid_type", "temperature"),
        (json!({"input": "x".repeat(10_000), "stream": true}), "context_length_exceeded", "input"),
        (json!({"input": "x", "max_output_tokens": 0}), "integer_below_min_value", "max_output_tokens"),
    ] {
        server.post(PATH, body).await.is_refusal(code, param);
    }
    let unknown = server.post(PATH, json!({"input": "x", "model": "nope"})).await;
    assert_eq!(unknown.error().0, 404);
    let odd = server.post(PATH, json!({"input": "x", "vendor": 1, "include": ["reasoning.encrypted_content"]})).await;
    assert_eq!((odd.status, odd.header("x-hearth-ignored")), (200, "vendor"));
    let strict = Server::with(|setup| setup.gateway.strict = true).await;
    strict.post(PATH, json!({"input": "x", "vendor": 1})).await.is_refusal("unknown_parameter", "vendor");
}

#[tokio::test]
async fn log_probabilities_come_where_they_are_asked_for() {
    let server = Server::start().await;
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let response = created(&server, json!("ab"), more.clone()).await;
    let entries = response["output"][0]["content"][0]["logprobs"].as_array().expect("entries");
    assert_eq!(entries.iter().map(|entry| entry["token"].as_str().unwrap_or("")).collect::<String>(), "ab");
    assert!(entries.iter().all(|entry| entry["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    let events = stream(&server, json!("ab"), more).await;
    let told =
        events.iter().filter(|e| e["type"] == "response.output_text.delta").flat_map(|e| e["logprobs"].as_array());
    assert_eq!(told.flatten().collect::<Vec<_>>(), entries.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn resp_11_a_failure_is_the_last_event() {
    let server = Server::with(|setup| {
        (setup.scripted().step_us, setup.http.drain_deadline) = (2000, std::time::Duration::from_millis(100));
    })
    .await;
    let mut response = server.send(PATH, &json!({"input": "/forever", "stream": true})).await;
    let mut text = String::new();
    while !text.contains("response.output_text.delta") {
        text += &String::from_utf8_lossy(&response.chunk().await.expect("it lives").expect("a chunk"));
    }
    server.shutdown.cancel();
    text += &tokio::time::timeout(PATIENCE, response.text()).await.expect("an end").expect("a whole stream");
    let last = parse(&text).pop().expect("events");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn resp_13_three_hundred_responses_push_out_the_oldest() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(id(&created(&server, json!("x"), json!({})).await).to_owned());
    }
    assert_eq!(server.get(&format!("{PATH}/{}", ids[43])).await.status, 404);
    assert_eq!(server.get(&format!("{PATH}/{}", ids[44])).await.status, 200);
    let refused = create(&server, json!("x"), json!({"previous_response_id": ids[0]})).await;
    refused.is_refusal("previous_response_not_found", "previous_response_id");
}

#[tokio::test]
async fn resp_14_a_restart_forgets_unless_there_is_a_folder() {
    let first = Server::start().await;
    let forgotten = created(&first, json!("x"), json!({})).await;
    first.stop().await;
    let second = Server::start().await;
    let refused = create(&second, json!("x"), json!({"previous_response_id": forgotten["id"]})).await;
    refused.is_refusal("previous_response_not_found", "previous_response_id");

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_owned();
    let first = Server::with(|setup| setup.gateway.responses.dir = Some(path.clone())).await;
    let kept = created(&first, json!("kept"), json!({})).await;
    let deleted = created(&first, json!("deleted"), json!({})).await;
    assert_eq!(delete(&first, id(&deleted)).await.status, 200);
    first.stop().await;
    let file = path.join(format!("{}.json", id(&kept)));
    let is_written = async {
        while !file.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_written).await.expect("written in time");
    let second = Server::with(|setup| setup.gateway.responses.dir = Some(path)).await;
    assert_eq!(kept, second.get(&format!("{PATH}/{}", id(&kept))).await.json());
    assert_eq!(second.get(&format!("{PATH}/{}", id(&deleted))).await.status, 404);
    let after = create(&second, json!("x"), json!({"previous_response_id": kept["id"]})).await;
    assert_eq!(after.status, 200, "{}", after.text);
}

#[tokio::test]
async fn nobody_reads_what_another_key_stored() {
    let server = Server::with(|setup| ["one", "two"].iter().for_each(|key| setup.key(key))).await;
    let send = |method: reqwest::Method, path: String, key: &'static str, body: Value| {
        let request = server.client.request(method, server.url(&path)).bearer_auth(key);
        async move { Answer::of(request.json(&body).send().await.expect("an answer")).await }
    };
    let post = reqwest::Method::POST;
    let response = send(post.clone(), PATH.into(), "one", json!({"input": "mine"})).await.json();
    let path = format!("{PATH}/{}", id(&response));
    for (method, path) in [
        (reqwest::Method::GET, path.clone()),
        (reqwest::Method::GET, format!("{path}/input_items")),
        (reqwest::Method::DELETE, path.clone()),
    ] {
        assert_eq!(send(method, path, "two", json!({})).await.status, 404);
    }
    let on = json!({"input": "x", "previous_response_id": response["id"]});
    send(post.clone(), PATH.into(), "two", on.clone()).await.is_refusal("previous_response_not_found", "previous");
    let referred = json!({"input": [{"type": "item_reference", "id": response["output"][0]["id"]}]});
    assert_eq!(send(post.clone(), PATH.into(), "two", referred.clone()).await.status, 404);
    assert_eq!(send(post.clone(), PATH.into(), "one", on).await.status, 200);
    assert_eq!(send(post, PATH.into(), "one", referred).await.status, 200);
    assert_eq!(send(reqwest::Method::GET, path, "one", json!({})).await.status, 200);
}
