//! Tool calls by models with random weights: what the grammar guarantees it guarantees whatever the model says.

use crate::tiny_model::start;
use hearth::chat::{ChatPrompt, Finish, Message, Prompt, Role, Tool, ToolCall, ToolCallDelta, ToolChoice};
use hearth::engine::{Engine, Event, Failure, GenerateRequest, TokenizeRequest};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Called {
    pub content: String,
    pub calls: Vec<(String, String, String)>,
    pub finish: Option<Finish>,
}

pub fn tool(name: &str, parameters: &Value) -> Tool {
    let description = Some(format!("Does {name}"));
    Tool { name: name.into(), description, parameters: parameters.to_string(), strict: false }
}

pub fn request(tools: Vec<Tool>, choice: ToolChoice, max_tokens: u32, seed: u32) -> GenerateRequest {
    let mut prompt = ChatPrompt::new(vec![Message::new(Role::User, "Hello")]);
    prompt.tools = tools;
    prompt.tool_choice = choice;
    prompt.enable_thinking = Some(false);
    let mut request = GenerateRequest::new(Prompt::Chat(prompt));
    request.sampling.temperature = 1.0;
    request.sampling.seed = seed;
    request.output.max_tokens = Some(max_tokens);
    request
}

/// The answer, its deltas put together as a client would.
pub async fn call(engine: &Engine, request: GenerateRequest) -> Result<Called, Failure> {
    let mut generation = engine.generate(request)?;
    let mut called = Called::default();
    while let Some(event) = generation.next().await {
        match event {
            Event::Delta(delta) => {
                called.content += &delta.content;
                for ToolCallDelta { index, opening, arguments } in delta.tool_calls {
                    if let Some((id, name)) = opening {
                        assert_eq!(index as usize, called.calls.len(), "calls come in order");
                        called.calls.push((id, name, String::new()));
                    }
                    let last = called.calls.len() - 1;
                    assert_eq!(index as usize, last, "TOOL-08: a call is complete before the next");
                    called.calls[last].2 += &arguments;
                }
            }
            Event::Done(done) => called.finish = Some(done.finish),
            Event::Failed(failure) => return Err(failure),
            _ => {}
        }
    }
    Ok(called)
}

fn schemas() -> Vec<(&'static str, Value)> {
    let color = json!({"enum": ["red", "green"]});
    vec![
        ("nothing", json!({})),
        ("empty", json!({"type": "object", "properties": {}})),
        ("plain", json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})),
        (
            "enums",
            json!({"type": "object", "properties": {"color": color, "size": {"const": 3}}, "required": ["color", "size"]}),
        ),
        (
            "numbers",
            json!({"type": "object", "required": ["x", "y"], "properties": {
            "x": {"type": "number", "minimum": 0.5, "maximum": 2}, "y": {"type": "integer", "minimum": -3, "exclusiveMaximum": 9}}}),
        ),
        (
            "patterns",
            json!({"type": "object", "required": ["when", "any"], "properties": {
            "when": {"type": "string", "pattern": "^\\d{4}-\\d\\d$"}, "any": {"type": "string", "pattern": "^.{2,4}$"}}}),
        ),
        (
            "arrays",
            json!({"type": "object", "required": ["list"], "properties": {
            "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}}}),
        ),
        (
            "nested",
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "object", "required": ["b"],
            "properties": {"b": {"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["c"], "properties": {"c": color}}}}}}}),
        ),
        (
            "refs",
            json!({"type": "object", "required": ["p"], "properties": {"p": {"$ref": "#/$defs/P"}},
            "$defs": {"P": {"type": "object", "required": ["k"], "properties": {"k": color}}}}),
        ),
        // TOOL-11
        (
            "unions",
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": ["v"], "properties": {
            "v": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5, "format": "email-like"}], "default": null}}}),
        ),
    ]
}

/// "required … always yields a call that validates", from the first token, whatever the model. TOOL-04, TOOL-11.
#[tokio::test]
async fn a_required_call_comes_and_validates() {
    for model in ["hearth-demo", "tiny/tiny-gemma2"] {
        let engine = start(model, |config| config.n_ctx = Some(2048)).await;
        for (name, schema) in schemas() {
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            for seed in 0..2 {
                let mut request = request(vec![tool(name, &schema)], ToolChoice::Required, 500, seed);
                if let Prompt::Chat(chat) = &mut request.prompt {
                    chat.parallel_tool_calls = false;
                }
                let said = call(&engine, request).await.expect("an answer");
                assert_eq!(said.finish, Some(Finish::EndOfTurn), "{model} {name}: {said:?}");
                assert_eq!((said.content.as_str(), said.calls.len()), ("", 1), "{model} {name}: {said:?}");
                let arguments: Value = serde_json::from_str(&said.calls[0].2).expect("JSON");
                assert!(arguments.is_object() && validator.is_valid(&arguments), "{model} {name}: {said:?}");
                assert_eq!(said.calls[0].1, name);
            }
        }
    }
}

/// The token that begins a call of the demo model's.
async fn mark(engine: &Engine) -> i32 {
    let prompt = Prompt::Text("<tool_call>".into());
    let request = TokenizeRequest { prompt, add_special: false, parse_special: true, with_pieces: false, partition: 0 };
    let tokens = engine.tokenize(request).await.expect("tokens").tokens;
    assert_eq!(tokens.len(), 1, "the test needs a token of its own");
    tokens[0]
}

/// TOOL-04: what the model begins of its own accord validates too, whatever it says from there on. A bias makes it begin.
#[tokio::test]
async fn a_call_that_is_begun_validates() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let mark = mark(&engine).await;
    // Where any string may come, the bias would fill it without end.
    for (name, schema) in schemas().into_iter().filter(|(name, _)| *name != "nothing") {
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        for (seed, with_logprobs) in [(0, false), (1, false), (2, true)] {
            let mut request = request(vec![tool(name, &schema)], ToolChoice::Auto, 500, seed);
            request.sampling.logit_bias = vec![(mark, 100.0)];
            request.output.top_logprobs = with_logprobs.then_some(1);
            if let Prompt::Chat(chat) = &mut request.prompt {
                chat.parallel_tool_calls = false;
                chat.tools[0].strict = seed == 1;
            }
            let said = call(&engine, request).await.expect("an answer");
            assert_eq!(said.finish, Some(Finish::EndOfTurn), "{name}: {said:?}");
            assert_eq!((said.content.as_str(), said.calls.len()), ("", 1), "{name}: {said:?}");
            let arguments: Value = serde_json::from_str(&said.calls[0].2).expect("JSON");
            assert!(arguments.is_object() && validator.is_valid(&arguments), "{name}: {said:?}");
        }
    }
}

/// TOOL-02: where no call may come none begins, however much the model wants to; neither does one without tools whose
/// history has calls.
#[tokio::test]
async fn a_call_that_may_not_come_does_not_begin() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let mark = mark(&engine).await;
    let mut asked = Message::new(Role::Assistant, "");
    asked.tool_calls = vec![ToolCall { id: "a".into(), name: "f".into(), arguments: "{}".into() }];
    let history = vec![Message::new(Role::User, "go"), asked, Message::new(Role::Tool, "42")];
    for with_tools in [true, false] {
        let tools = if with_tools { vec![tool("f", &json!({}))] } else { Vec::new() };
        let mut request = request(tools, ToolChoice::None, 40, 1);
        request.sampling.logit_bias = vec![(mark, 100.0)];
        if let Prompt::Chat(chat) = &mut request.prompt {
            chat.messages.clone_from(&history);
        }
        let said = call(&engine, request).await.expect("an answer");
        assert!(said.calls.is_empty() && !said.content.contains("<tool_call>"), "{said:?}");
    }
}

/// A call that needn't be strict is asked for as much of its schema as can be expressed; a strict one is refused by name.
#[tokio::test]
async fn a_schema_that_can_not_be_expressed_is_loosened_or_refused() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let mark = mark(&engine).await;
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", "y"]}}, "not": {"required": ["b"]}});
    for strict in [false, true] {
        let mut request = request(vec![tool("f", &schema)], ToolChoice::Auto, 200, 1);
        request.sampling.logit_bias = vec![(mark, 100.0)];
        if let Prompt::Chat(chat) = &mut request.prompt {
            chat.tools[0].strict = strict;
        }
        match call(&engine, request).await {
            Ok(said) => {
                let arguments: Value = serde_json::from_str(&said.calls[0].2).expect("JSON");
                assert!(!strict && ["x", "y"].contains(&arguments["a"].as_str().unwrap_or_default()), "{said:?}");
            }
            Err(Failure::Invalid { field, .. }) => {
                assert!(strict && field == "tools[0].function.parameters", "{field}")
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// A named choice: all tools are shown, one may be called.
#[tokio::test]
async fn a_named_tool_is_the_one_that_is_called() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let schema = json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]});
    for seed in 0..4 {
        let tools = vec![tool("one", &schema), tool("two", &schema), tool("three", &schema)];
        let mut request = request(tools, ToolChoice::Required, 400, seed);
        if let Prompt::Chat(chat) = &mut request.prompt {
            chat.callable = Some(vec!["two".into()]);
        }
        let said = call(&engine, request).await.expect("an answer");
        assert!(!said.calls.is_empty() && said.calls.iter().all(|(_, name, _)| name == "two"), "{said:?}");
    }
}

/// TOOL-02: never raw markup; TOOL-07: a call cut by the limit is no fault.
#[tokio::test]
async fn cut_calls_and_free_answers_end_well() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let schema =
        json!({"type": "object", "properties": {"text": {"type": "string", "minLength": 200}}, "required": ["text"]});
    for n in [1, 5, 20, 60, 120] {
        let said =
            call(&engine, request(vec![tool("write", &schema)], ToolChoice::Required, n, 1)).await.expect("an answer");
        assert_eq!(said.finish, Some(Finish::Length), "{said:?}");
        assert!(said.calls.is_empty() || said.content.is_empty(), "{said:?}");
        let said =
            call(&engine, request(vec![tool("write", &schema)], ToolChoice::Auto, n, 1)).await.expect("an answer");
        assert!(!said.content.contains("<tool_call>"), "{said:?}");
    }
}

/// TOOL-05: 40 tools with 12,000 tokens of schemas.
#[tokio::test]
async fn forty_tools_are_taken() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(32768)).await;
    let many: serde_json::Map<String, Value> = (0..12)
        .map(|i| (format!("property_{i}"), json!({"type": "string", "maxLength": 8, "description": "What it is for"})))
        .collect();
    let schema = json!({"type": "object", "properties": many, "required": ["property_0"]});
    let tools: Vec<Tool> = (0..40).map(|i| tool(&format!("tool_{i}"), &schema)).collect();
    for choice in [ToolChoice::Auto, ToolChoice::Required] {
        let said = call(&engine, request(tools.clone(), choice, 400, 3)).await.expect("an answer");
        if choice == ToolChoice::Required {
            assert!(!said.calls.is_empty(), "{said:?}");
        }
    }
}

/// TOOL-10 and bounds: what no one can mean is refused by name, what is merely huge doesn't hold the engine up.
#[tokio::test]
async fn hostile_tools_are_refused_or_answered_soon() {
    let engine = start("hearth-demo", |config| config.n_ctx = Some(2048)).await;
    let deep = (0..100).fold(json!({}), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    let refused = [
        json!({"type": "string"}),
        json!({"type": "object", "properties": {"a": {"type": "strange"}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}),
        deep,
    ];
    for schema in refused {
        for choice in [ToolChoice::Auto, ToolChoice::Required] {
            let tools = vec![tool("fine", &json!({})), tool("bad", &schema)];
            match call(&engine, request(tools, choice, 5, 1)).await {
                Err(Failure::Invalid { field, code, .. }) => {
                    assert_eq!(
                        (field.as_str(), code.as_str()),
                        ("tools[1].function.parameters", "invalid_json_schema")
                    );
                }
                other => panic!("{other:?} for {schema}"),
            }
        }
    }
    let wide: serde_json::Map<String, Value> = (0..5000).map(|i| (format!("p{i}"), json!({"enum": [i]}))).collect();
    let hostile = [
        json!({"type": "object", "properties": wide}),
        json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 1_000_000}}}),
        json!({"type": "object", "properties": {"a": {"type": "array", "minItems": 90_000, "items": {"type": "string", "minLength": 90_000}}}}),
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^((((a{1,99}){1,99}){1,99}){1,99}){1,99}$"}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        json!({"not": {}}),
    ];
    for schema in hostile {
        for choice in [ToolChoice::Auto, ToolChoice::Required] {
            let started = Instant::now();
            let said = call(&engine, request(vec![tool("t", &schema)], choice, 4, 1)).await;
            assert!(!matches!(said, Err(Failure::Internal(_))), "{said:?}");
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{:?} for {:.80}",
                started.elapsed(),
                schema.to_string()
            );
        }
    }
}

/// Tool history in any shape: TOOL-12 and section 1.2.1.
#[tokio::test]
async fn any_history_is_rendered() {
    let call_of = |id: &str, arguments: &str| ToolCall { id: id.into(), name: "f".into(), arguments: arguments.into() };
    let assistant = |content: Option<&str>, calls: Vec<ToolCall>| {
        let mut message = Message::new(Role::Assistant, "");
        message.content = content.map(str::to_owned);
        message.tool_calls = calls;
        message
    };
    let result = |id: Option<&str>| {
        let mut message = Message::new(Role::Tool, "42");
        message.tool_call_id = id.map(str::to_owned);
        message
    };
    let user = || Message::new(Role::User, "go");
    let histories = [
        vec![user(), assistant(None, vec![call_of("a", "")]), result(Some("a"))],
        vec![user(), assistant(Some(""), vec![call_of("", "{\"x\":1}")]), result(None), user()],
        vec![user(), assistant(None, vec![call_of("a", "no json {"), call_of("a", "[1]")]), result(Some("b"))],
        vec![result(Some("lost"))],
        vec![assistant(None, vec![]), user()],
        vec![assistant(None, vec![call_of("a", "null")])],
        vec![user(), result(None), result(None), assistant(Some("x"), vec![call_of("a", "3")]), user()],
    ];
    for model in ["hearth-demo", "tiny/tiny-gemma2"] {
        let engine = start(model, |config| config.n_ctx = Some(2048)).await;
        for (i, history) in histories.iter().enumerate() {
            for with_tools in [false, true] {
                let tools = if with_tools { vec![tool("f", &json!({}))] } else { Vec::new() };
                let mut request = request(tools, ToolChoice::Auto, 3, 1);
                if let Prompt::Chat(chat) = &mut request.prompt {
                    chat.messages = history.clone();
                }
                let said = call(&engine, request).await;
                assert!(said.is_ok(), "{model} {i} {with_tools}: {said:?}");
            }
        }
    }
}
