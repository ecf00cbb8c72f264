//! Requests against our own reader of the same JSON, and streams against what they must become.

use super::*;
use crate::chat::{Constraint, Output, Prompt, Sampling, TokenLogprob, ToolCallDelta};
use crate::dialect::{Answer, openai};
use serde_json::{Value, json};

fn wire(kind: Kind) -> Wire {
    Wire { kind, model: "there".into(), newer_limit: false }
}

/// A chat as a client of OpenAI's API would send it.
fn chat(more: Value) -> ChatRequest {
    let mut body = json!({ "model": "here", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    openai::chat_request(body.to_string().as_bytes()).unwrap().request.request
}

fn sent(kind: Kind, request: &ChatRequest) -> (Value, Vec<&'static str>) {
    let outgoing = wire(kind).chat(request).expect("it can be said");
    (serde_json::from_slice(&outgoing.body).unwrap(), outgoing.dropped)
}

/// A request with something in every field that another hearth can honour.
fn full() -> ChatRequest {
    let png = "iVBORw0KGgo=";
    chat(json!({
        "messages": [
            { "role": "system", "content": "s" },
            { "role": "user", "content": [
                { "type": "text", "text": "look " },
                { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{png}") } },
                { "type": "text", "text": " here" },
            ], "name": "ann" },
            { "role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                { "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } }] },
            { "role": "tool", "tool_call_id": "call_1", "content": "r" },
        ],
        "tools": [
            { "type": "function", "function": { "name": "f", "description": "d", "strict": true,
                "parameters": { "type": "object" } } },
            { "type": "function", "function": { "name": "g" } },
            { "type": "function", "function": { "name": "h" } },
        ],
        "tool_choice": { "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [
            { "type": "function", "function": { "name": "f" } }, { "type": "function", "function": { "name": "g" } }] } },
        "parallel_tool_calls": false,
        "seed": 7, "temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "top_k": 5, "min_p": 0.1, "typical_p": 0.8, "top_n_sigma": 1.0, "xtc_probability": 0.1, "xtc_threshold": 0.2,
        "dynatemp_range": 0.1, "dynatemp_exponent": 1.5, "min_keep": 1, "repeat_last_n": 3, "repeat_penalty": 1.1,
        "dry_multiplier": 0.1, "dry_base": 2.0, "dry_allowed_length": 3, "dry_penalty_last_n": 4,
        "dry_sequence_breakers": ["x"], "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "ignore_eos": true,
        "samplers": ["top_k", "temperature"],
        "max_tokens": 9, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 2,
        "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "object" } } },
        "prediction": { "type": "content", "content": "p" }, "n": 3, "cache_prompt": false,
        "chat_template_kwargs": { "k": [1], "enable_thinking": false }, "reasoning_effort": "low",
        "reasoning_format": "none",
    }))
}

#[test]
fn another_hearth_reads_the_request_that_was_made() {
    let mut request = full();
    let (body, dropped) = sent(Kind::Hearth, &request);
    assert_eq!(dropped, [""; 0]);
    let read = openai::chat_request(body.to_string().as_bytes()).unwrap();
    assert_eq!(read.ignored.header(), None);
    request.model = Some("there".into());
    (request.stream, request.include_usage) = (true, true);
    assert_eq!(read.request.request, request);
}

#[test]
fn what_openai_has_no_word_for_is_listed_or_refused() {
    let (body, dropped) = sent(Kind::OpenAi, &full());
    for key in ["top_k", "samplers", "mirostat", "chat_template_kwargs", "reasoning_format"] {
        assert!(dropped.contains(&key) && body.get(key).is_none(), "{key}");
    }
    assert!(dropped.iter().all(|key| body.get(*key).is_none()));
    assert_eq!((&body["seed"], &body["temperature"], &body["max_tokens"]), (&json!(7), &json!(0.7), &json!(9)));
    assert_eq!(body["stream_options"], json!({ "include_usage": true }));
    let newer = Wire { newer_limit: true, ..wire(Kind::OpenAi) };
    let body: Value = serde_json::from_slice(&newer.chat(&full()).unwrap().body).unwrap();
    assert_eq!((body.get("max_tokens"), &body["max_completion_tokens"]), (None, &json!(9)));
    let refused = |change: fn(&mut ChatRequest)| {
        let mut request = chat(json!({}));
        change(&mut request);
        wire(Kind::OpenAi).chat(&request).unwrap_err().0
    };
    assert_eq!(refused(|it| it.sampling.logit_bias = Some(vec![(1, 1.0)])), "logit_bias");
    assert_eq!(refused(|it| it.output.constraint = Some(Constraint::Gbnf("x".into()))), "grammar");
    assert_eq!(refused(|it| it.prompt.continue_final_message = true), "continue_final_message");
    assert_eq!(refused(|it| it.lora = Some(vec![(0, 1.0)])), "lora");
}

#[test]
fn anthropic_gets_turns_that_alternate() {
    let request = chat(json!({
        "messages": [
            { "role": "system", "content": "s" },
            { "role": "user", "content": "q" },
            { "role": "assistant", "content": "", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } }] },
            { "role": "tool", "tool_call_id": "c1", "content": "r" },
            { "role": "user", "content": "go on" },
        ],
        "tools": [{ "type": "function", "function": { "name": "f" } }, { "type": "function", "function": { "name": "g" } }],
        "tool_choice": { "type": "function", "function": { "name": "f" } },
        "temperature": 1.5, "top_p": 0.5, "top_k": 3, "stop": "x", "seed": 1, "min_p": 0.1,
    }));
    let (body, dropped) = sent(Kind::Anthropic, &request);
    assert_eq!(dropped, ["temperature", "seed", "min_p"]);
    let text = |text: &str| json!({ "type": "text", "text": text });
    assert_eq!(
        body,
        json!({
            "model": "there", "stream": true, "max_tokens": 4096, "system": "s",
            "messages": [
                { "role": "user", "content": [text("q")] },
                { "role": "assistant", "content": [{ "type": "tool_use", "id": "c1", "name": "f", "input": { "a": 1 } }] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "c1", "content": [text("r")] }, text("go on")] },
            ],
            "stop_sequences": ["x"],
            "tools": [{ "name": "f", "description": "", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "tool", "name": "f" }, "temperature": 1.0, "top_p": 0.5, "top_k": 3,
        })
    );
    let refused = |more: Value| wire(Kind::Anthropic).chat(&chat(more)).unwrap_err().0;
    assert_eq!(refused(json!({ "n": 2 })), "n");
    assert_eq!(refused(json!({ "logprobs": true })), "logprobs");
    assert_eq!(refused(json!({ "response_format": { "type": "json_object" } })), "response_format");
}

/// Of the fuzzer: what these servers would refuse is not sent.
#[test]
fn every_message_has_what_its_reader_wants() {
    let nothing = json!({ "messages": [{ "role": "user", "content": "hi" },
        { "role": "assistant", "content": null, "function_call": { "name": "f", "arguments": "{}" } },
        { "role": "function", "name": "f" }] });
    let (body, _) = sent(Kind::OpenAi, &chat(nothing));
    assert_eq!((&body["messages"][1]["content"], &body["messages"][2]["content"]), (&Value::Null, &json!("")));
    let alone = chat(json!({ "messages": [{ "role": "system", "content": "s" }, { "role": "user", "content": "" }] }));
    assert_eq!(wire(Kind::Anthropic).chat(&alone).unwrap_err().0, "messages");
    assert!(wire(Kind::OpenAi).chat(&alone).is_ok());
}

#[test]
fn completions_are_texts_only() {
    let request = |prompts: Vec<Prompt>| CompletionRequest {
        model: None,
        prompts,
        sampling: Sampling::default(),
        output: Output::default(),
        n: 2,
        best_of: 2,
        stream: false,
        include_usage: false,
        cache_prompt: true,
        lora: None,
        end_user: None,
        cache: Default::default(),
    };
    let text = Prompt::Text("a".into());
    let outgoing = wire(Kind::OpenAi).completion(&request(vec![text.clone(), text.clone()])).unwrap();
    let body: Value = serde_json::from_slice(&outgoing.body).unwrap();
    assert_eq!((outgoing.path, &body["prompt"], &body["n"]), ("/completions", &json!(["a", "a"]), &json!(2)));
    let refused = |kind, request: &CompletionRequest| wire(kind).completion(request).unwrap_err().0;
    assert_eq!(refused(Kind::OpenAi, &request(vec![Prompt::Tokens(vec![1])])), "prompt");
    assert_eq!(refused(Kind::Anthropic, &request(vec![text.clone()])), "prompt");
    assert_eq!(refused(Kind::OpenAi, &CompletionRequest { best_of: 3, ..request(vec![text]) }), "best_of");
}

#[test]
fn media_stand_where_they_stood() {
    let media = |offset: u32| Media { kind: MediaKind::Image, offset, data: b"\x89PNG".to_vec() };
    let shape = |content: &str, offsets: &[u32]| {
        let media: Vec<Media> = offsets.iter().map(|offset| media(*offset)).collect();
        let word = |part: Part| match part {
            Part::Text(text) => text.to_owned(),
            Part::Media(_) => "*".to_owned(),
        };
        parts(content, &media).into_iter().map(word).collect::<Vec<_>>().join("|")
    };
    assert_eq!(shape("ab", &[0, 1, 1, 2]), "*|a|*|*|b|*");
    assert_eq!(shape("ab", &[9]), "ab|*");
    assert_eq!(shape("\u{e9}b", &[1]), "\u{e9}b|*", "inside a character");
    assert_eq!(shape("", &[]), "");
}

/// What a stream becomes: the answer of choice 0, the usage, and whether it ended.
fn read(kind: Kind, stream: &str, n: usize) -> (Answer, Option<Usage>, bool, Option<Fault>) {
    let (mut reader, mut said, mut fault) = (Reader::new(kind, 2), Vec::new(), None);
    for piece in stream.as_bytes().chunks(n) {
        if let Err(error) = reader.push(piece, &mut said) {
            fault = Some(error);
            break;
        }
    }
    let (mut answer, mut usage, mut has_ended) = (Answer::default(), None, false);
    for said in said {
        match said {
            Said::Delta(0, delta) => answer.push(delta),
            Said::Finish(0, finish) => answer.finish = finish,
            Said::Usage(counts) => usage = Some(counts),
            Said::End => has_ended = true,
            _ => {}
        }
    }
    (answer, usage, has_ended, fault)
}

fn data(values: &[Value]) -> String {
    values.iter().map(|value| format!("data: {value}\n\n")).collect()
}

fn delta(delta: Value) -> Value {
    json!({ "id": "x", "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": delta }] })
}

#[test]
fn chunks_of_openai_become_the_answer() {
    let call = |value: Value| delta(json!({ "tool_calls": [value] }));
    let stream = data(&[
        delta(json!({ "role": "assistant", "content": null, "refusal": null })),
        delta(json!({ "reasoning_content": "hm" })),
        json!({ "choices": [{ "index": 0, "delta": { "content": "h\u{e9}" }, "finish_reason": null, "logprobs": {
            "content": [{ "token": "h\u{e9}", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": [
                { "token": "x", "logprob": -1.5 }] }], "refusal": null } }], "usage": null }),
        call(json!({ "index": 0, "id": "call_a", "type": "function", "function": { "name": "f", "arguments": "" } })),
        call(json!({ "index": 0, "function": { "arguments": "{\"a\"" } })),
        call(json!({ "index": 0, "id": "call_a", "function": { "name": "f", "arguments": ":1}" } })),
        call(json!({ "function": { "name": "g", "arguments": "{}" } })),
        json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] }),
        json!({ "choices": [], "usage": { "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
            "prompt_tokens_details": { "cached_tokens": 2 }, "completion_tokens_details": { "reasoning_tokens": 1 } } }),
    ]) + "data: [DONE]\n\n";
    for n in [1, 7, stream.len()] {
        let (answer, usage, has_ended, fault) = read(Kind::OpenAi, &stream, n);
        assert_eq!((answer.content.as_str(), answer.reasoning.as_str(), fault), ("h\u{e9}", "hm", None));
        let calls: Vec<_> = answer.tool_calls.iter().map(|it| (it.name.as_str(), it.arguments.as_str())).collect();
        assert_eq!(calls, [("f", "{\"a\":1}"), ("g", "{}")]);
        let top = vec![crate::chat::Likely { id: -1, bytes: b"x".to_vec(), logprob: -1.5 }];
        assert_eq!(answer.logprobs, [TokenLogprob { id: -1, bytes: "h\u{e9}".into(), logprob: -0.5, top }]);
        let counts = Usage {
            prompt_tokens: 5,
            cached_tokens: 2,
            completion_tokens: 4,
            reasoning_tokens: 1,
            ..Default::default()
        };
        assert_eq!((usage, has_ended, answer.finish), (Some(counts), true, Finish::EndOfTurn));
    }
}

#[test]
fn our_own_chunks_become_the_answer_they_were_made_of() {
    use crate::dialect::Chunks as _;
    let head = openai::Head { id: "i".into(), created: 1, model: "m".into(), fingerprint: "f".into() };
    let style = openai::ChatStyle { include_usage: true, ..Default::default() };
    let mut chunks = openai::ChatChunks::new(&head, 1, style);
    let mut out = Vec::new();
    let piece =
        ToolCallDelta { index: 0, opening: Some(("c".into(), "f".into())), arguments: "{\"x\":\"\u{1f600}\"}".into() };
    let deltas = [
        Delta { reasoning: "r\n".into(), ..Default::default() },
        Delta { content: "a\u{2014}\"b\"".into(), ..Default::default() },
        Delta { tool_calls: vec![piece], ..Default::default() },
    ];
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, ..Default::default() };
    let done = crate::engine::Done { finish: Finish::EndOfTurn, usage, timings: Default::default() };
    let mut expected = Answer::default();
    chunks.open(&mut out);
    for delta in deltas {
        chunks.delta(0, &delta, &mut out);
        expected.push(delta);
    }
    chunks.finish(0, &done, &mut out);
    chunks.end(&usage, &mut out);
    expected.finish = Finish::EndOfTurn;
    let stream = String::from_utf8(out).unwrap();
    for n in [1, 3, 4096] {
        assert_eq!(read(Kind::Hearth, &stream, n), (expected.clone(), Some(usage), true, None));
    }
}

#[test]
fn events_of_anthropic_become_the_answer() {
    let stream = data(&[
        json!({ "type": "message_start", "message": { "usage": {
            "input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 1, "output_tokens": 1 } } }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "thinking", "thinking": "", "signature": "" } }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "thinking_delta", "thinking": "hm" } }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "signature_delta", "signature": "s" } }),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "ping" }),
        json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "text", "text": "" } }),
        json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "text_delta", "text": "hi" } }),
        json!({ "type": "content_block_stop", "index": 1 }),
        json!({ "type": "content_block_start", "index": 2, "content_block": { "type": "tool_use", "id": "t", "name": "f", "input": {} } }),
        json!({ "type": "content_block_stop", "index": 2 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use", "stop_sequence": null }, "usage": { "output_tokens": 7 } }),
        json!({ "type": "message_stop" }),
    ]);
    for n in [1, 13, stream.len()] {
        let (answer, usage, has_ended, fault) = read(Kind::Anthropic, &stream, n);
        assert_eq!((answer.content.as_str(), answer.reasoning.as_str(), has_ended, fault), ("hi", "hm", true, None));
        assert_eq!((answer.tool_calls[0].name.as_str(), answer.tool_calls[0].arguments.as_str()), ("f", "{}"));
        let counts = Usage { prompt_tokens: 9, cached_tokens: 3, completion_tokens: 7, ..Default::default() };
        assert_eq!(usage, Some(counts));
    }
}

#[test]
fn faults_have_their_word() {
    let fault = |kind, text: &str| read(kind, text, 64).3.expect("a fault");
    let openai = |values: &[Value]| fault(Kind::OpenAi, &data(values));
    let call = |index: u32, name: Option<&str>| {
        delta(json!({ "tool_calls": [{ "index": index, "function": { "name": name, "arguments": "x" } }] }))
    };
    let error = |error: Value| openai(&[json!({ "error": error })]);
    for (got, expected) in [
        (fault(Kind::OpenAi, "data: {\"choices\": [\n\n"), Fault::Broken("not_a_chunk")),
        (
            fault(Kind::OpenAi, "data: {\"choices\":[{\"delta\":{\"content\":\"\0\"}}]}\n\n"),
            Fault::Broken("not_a_chunk"),
        ),
        (openai(&[json!({ "choices": [{ "index": 9, "delta": {} }] })]), Fault::Broken("unknown_choice")),
        (openai(&[call(0, Some("f")), call(2, Some("g"))]), Fault::Broken("calls_out_of_order")),
        (openai(&[call(0, Some("f")), call(1, Some("g")), call(0, None)]), Fault::Broken("calls_out_of_order")),
        (openai(&[call(0, None)]), Fault::Broken("call_without_a_name")),
        (
            openai(&[
                json!({ "choices": [{ "delta": { "content": "a" }, "finish_reason": "stop" }] }),
                delta(json!({ "content": "b" })),
            ]),
            Fault::Broken("text_after_the_end"),
        ),
        (error(json!("no")), Fault::Reported(Reported::Server)),
        (error(json!({ "message": "m", "type": "server_error", "code": 500 })), Fault::Reported(Reported::Server)),
        (error(json!({ "type": "rate_limit_exceeded" })), Fault::Reported(Reported::Throttled)),
        (error(json!({ "code": 429 })), Fault::Reported(Reported::Throttled)),
        (error(json!({ "type": "invalid_request_error" })), Fault::Reported(Reported::Invalid)),
        (
            openai(&[json!({ "choices": [{ "delta": {}, "finish_reason": "content_filter" }] })]),
            Fault::Reported(Reported::Filtered),
        ),
        (
            fault(Kind::Anthropic, &data(&[json!({ "type": "error", "error": { "type": "overloaded_error" } })])),
            Fault::Reported(Reported::Throttled),
        ),
        (
            fault(Kind::Anthropic, &data(&[json!({ "type": "content_block_stop", "index": 0 })])),
            Fault::Broken("blocks_out_of_order"),
        ),
    ] {
        assert_eq!(got, expected);
    }
}

#[test]
fn lies_about_usage_are_not_believed() {
    for (prompt, completion) in
        [(json!(-1), json!(1)), (json!(1), json!(9_223_372_036_854_775_808_u64)), (json!(1.5), json!(1))]
    {
        let stream =
            data(&[json!({ "choices": [], "usage": { "prompt_tokens": prompt, "completion_tokens": completion } })]);
        assert_eq!(read(Kind::OpenAi, &stream, 64).1, None);
    }
}
