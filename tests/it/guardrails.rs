//! What the operator lets in and out, over HTTP: every dialect, streamed and whole, here and elsewhere.

use crate::support::cloud::{Act, Cloud, SSE, answer, role, text};
use crate::support::governed::Governed;
use crate::support::routed::{route, upstream};
use crate::support::{Answer, Events, MODEL, Server, Setup, chat_body, with};
use hearth::gateway::{GatewayConfig, GuardrailSpec, Guardrails, RuleSpec};
use serde_json::{Value, json};

const SYSTEM: &str = "Speak only of gardening.";

fn sets(specs: &[(&str, GuardrailSpec)]) -> Guardrails {
    let specs = specs.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
    Guardrails::new(&specs).expect("good sets")
}

fn instructs() -> GuardrailSpec {
    GuardrailSpec { system: Some(SYSTEM.into()), ..Default::default() }
}

fn rules(deny_words: &[&str], redact: &[(&str, &str)]) -> RuleSpec {
    RuleSpec {
        deny_words: deny_words.iter().map(|word| (*word).to_owned()).collect(),
        redact: redact.iter().map(|(pattern, with)| ((*pattern).to_owned(), (*with).to_owned())).collect(),
        ..Default::default()
    }
}

fn output(deny_words: &[&str], redact: &[(&str, &str)]) -> GuardrailSpec {
    GuardrailSpec { output: rules(deny_words, redact), ..Default::default() }
}

fn input(deny_words: &[&str], redact: &[(&str, &str)]) -> GuardrailSpec {
    GuardrailSpec { input: rules(deny_words, redact), ..Default::default() }
}

async fn guarded(spec: GuardrailSpec) -> Server {
    Server::with(|setup| setup.gateway.guardrails = sets(&[("default", spec)])).await
}

/// The same question in each dialect: path, body, and where the answer counts its prompt.
pub fn dialects(text: &str) -> Vec<(&'static str, Value, &'static str)> {
    let messages = json!([{ "role": "user", "content": text }]);
    vec![
        ("/v1/chat/completions", json!({ "model": MODEL, "messages": messages }), "/usage/prompt_tokens"),
        ("/v1/responses", json!({ "model": MODEL, "input": text }), "/usage/input_tokens"),
        ("/v1/messages", json!({ "model": MODEL, "messages": messages, "max_tokens": 500 }), "/usage/input_tokens"),
        ("/api/chat", json!({ "model": MODEL, "messages": messages, "stream": false }), "/prompt_eval_count"),
        ("/api/generate", json!({ "model": MODEL, "prompt": text, "stream": false }), "/prompt_eval_count"),
    ]
}

pub fn said(path: &str, answer: &Value) -> String {
    let place = match path {
        "/v1/chat/completions" => "/choices/0/message/content",
        "/v1/responses" => "/output/0/content/0/text",
        "/v1/messages" => "/content/0/text",
        "/api/chat" => "/message/content",
        _ => "/response",
    };
    answer.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_instruction_is_counted_everywhere_and_seen_nowhere() {
    let (plain, server) = (Server::start().await, guarded(instructs()).await);
    for (path, body, counted) in dialects("hello") {
        let count = |answer: &Answer| {
            let of = |place: &str| answer.json().pointer(place).and_then(Value::as_u64).unwrap_or_default();
            // Anthropic counts what is cached apart.
            let cached = if path == "/v1/messages" { of("/usage/cache_read_input_tokens") } else { 0 };
            of(counted) + cached
        };
        let (before, after) = (plain.post(path, body.clone()).await, server.post(path, body.clone()).await);
        assert_eq!((after.status, said(path, &after.json()).as_str()), (200, "hello"), "{path}: {}", after.text);
        assert!(count(&after) >= count(&before) + SYSTEM.len() as u64, "{path}: {} {}", before.text, after.text);
        assert!(!after.text.contains("gardening"), "{path}: {}", after.text);
        // A client's own instruction stands behind it and takes nothing away.
        let own = match path {
            "/v1/responses" => json!({ "instructions": "own" }),
            "/v1/messages" | "/api/generate" => json!({ "system": "own" }),
            _ => {
                json!({ "messages": [{ "role": "system", "content": "own" }, { "role": "user", "content": "hello" }] })
            }
        };
        let owned = server.post(path, with(body, own)).await;
        assert_eq!(owned.status, 200, "{}", owned.text);
        assert!(count(&owned) > count(&before) + SYSTEM.len() as u64, "{path}: {}", owned.text);
    }
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let chat = json!({ "model": MODEL, "messages": messages });
    for path in ["/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"] {
        let n = server.post(path, chat.clone()).await.json()["input_tokens"].as_u64().unwrap_or_default();
        assert!(n > SYSTEM.len() as u64, "{path}: {n}");
    }
    for path in ["/apply-template", "/tokenize"] {
        let (before, after) = (plain.post(path, chat.clone()).await, server.post(path, chat.clone()).await);
        assert_eq!((before.status, before.text), (200, after.text), "{path} tells what it told");
    }
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "x" })),
        ("/completion", json!({ "prompt": "x" })),
        ("/infill", json!({ "input_prefix": "x", "input_suffix": "y" })),
        ("/api/generate", json!({ "model": MODEL, "prompt": "x", "raw": true })),
    ] {
        let refused = server.post(path, body).await;
        assert!(refused.status == 400 && refused.text.contains("answers chats only"), "{path}: {}", refused.text);
    }
}

#[tokio::test]
async fn an_instruction_is_in_no_stored_response_no_error_and_no_slot() {
    let server = Server::with(|setup| {
        setup.gateway.guardrails = sets(&[("default", instructs())]);
        setup.http.expose_slots = true;
        setup.engine.n_ctx = Some(256);
    })
    .await;
    let made = server.post("/v1/responses", json!({ "model": MODEL, "input": "hello", "instructions": "own" })).await;
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    for path in
        [format!("/v1/responses/{id}"), format!("/v1/responses/{id}/input_items"), "/slots".into(), "/props".into()]
    {
        let shown = server.get(&path).await;
        assert!(shown.status == 200 && !shown.text.contains("gardening"), "{path}: {}", shown.text);
    }
    let next = json!({ "model": MODEL, "input": "again", "previous_response_id": id });
    assert_eq!(said("/v1/responses", &server.post("/v1/responses", next).await.json()), "again");
    let long = server.chat(&"x".repeat(400), json!({})).await;
    assert!(long.status == 400 && !long.text.contains("gardening"), "{}", long.text);
    // Nor can the template be given another conversation.
    for name in ["messages", "bos_token"] {
        let kwargs = json!({ "chat_template_kwargs": { name: [] } });
        server.chat("x", kwargs).await.is_refusal("invalid_value", &format!("chat_template_kwargs.{name}"));
    }
}

#[tokio::test]
async fn what_is_denied_comes_in_by_no_dialect() {
    let server = guarded(input(&["aurora"], &[])).await;
    for (path, body, _) in dialects("tell me of Aurora, please") {
        let refused = server.post(path, body).await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.text);
        assert!(!refused.text.to_lowercase().contains("aurora"), "{path}: {}", refused.text);
        let error = refused.json();
        match path {
            "/v1/messages" => assert_eq!(error["error"]["type"], "invalid_request_error"),
            "/api/chat" | "/api/generate" => assert!(error["error"].is_string(), "{error}"),
            _ => assert_eq!(error["error"]["code"], "content_policy_violation", "{error}"),
        }
    }
    server.complete(json!("an aurora"), json!({})).await.is_refusal("content_policy_violation", "prompt");
    server.complete(json!([1, 2]), json!({})).await.is_refusal("unsupported_parameter", "prompt");
    server.chat("auroras", json!({})).await.content();
    let tool = json!({ "type": "function", "function": { "name": "aurora" } });
    server.chat("x", json!({ "tools": [tool] })).await.is_refusal("content_policy_violation", "messages");
}

#[tokio::test]
async fn what_comes_in_is_redacted_before_a_model_sees_it() {
    // The scripted model says what it was told.
    let server = guarded(input(&[], &[(r"\b\d{4}-\d{4}\b", "[card]")])).await;
    for (path, body, _) in dialects("pay with 1234-5678!") {
        let answer = server.post(path, body).await;
        assert_eq!(said(path, &answer.json()), "pay with [card]!", "{path}: {}", answer.text);
    }
    assert_eq!(server.complete(json!("1234-5678"), json!({})).await.content(), "[card]");
    let echoed = server.complete(json!("1234-5678"), json!({ "echo": true, "max_tokens": 2 })).await;
    assert_eq!(echoed.content(), "1234-5678[c", "an echo is of the client's own words");
}

fn redacts() -> GuardrailSpec {
    output(&[], &[(r"\b\d{4}-\d{4}\b", "[card]"), ("(?i)project x{1,3}", "P")])
}

#[tokio::test]
async fn answers_are_redacted_streamed_and_whole() {
    let server = guarded(redacts()).await;
    let (text, redacted) = ("a 1234-5678, Project XX and 12345-6789; 8765-4321", "a [card], P and 12345-6789; [card]");
    for (path, body, _) in dialects(text) {
        assert_eq!(said(path, &server.post(path, body.clone()).await.json()), redacted, "{path}");
        let streamed = server.send(path, &with(body, json!({ "stream": true }))).await.text().await.expect("a stream");
        let mut all = String::new();
        for line in streamed.lines() {
            let data = line.strip_prefix("data: ").unwrap_or(line);
            let Ok(value) = serde_json::from_str::<Value>(data) else { continue };
            let piece = match path {
                "/v1/chat/completions" => value.pointer("/choices/0/delta/content"),
                "/v1/responses" if value["type"] == "response.output_text.delta" => value.get("delta"),
                "/v1/messages" => value.pointer("/delta/text"),
                "/api/chat" => value.pointer("/message/content"),
                "/api/generate" => value.get("response"),
                _ => None,
            };
            all.push_str(piece.and_then(Value::as_str).unwrap_or_default());
        }
        assert_eq!(all, redacted, "{path}: {streamed}");
        assert!(!streamed.contains("1234-") && !streamed.contains("-4321"), "{path}: {streamed}");
    }
    assert_eq!(server.complete(json!(text), json!({ "max_tokens": 90 })).await.content(), redacted);
    let native = server.post("/completion", json!({ "prompt": text, "return_tokens": true })).await.json();
    assert_eq!((native["content"].as_str(), &native["tokens"]), (Some(redacted), &json!([])));
    let thought = server.chat("/think of 1234-5678", json!({})).await.json();
    assert_eq!(thought["choices"][0]["message"]["reasoning_content"], "of [card]");
    let events = server.stream_chat("/think of 1234-5678", json!({})).await;
    assert_eq!((events.text(0, "reasoning_content").as_str(), events.text(0, "content").as_str()), ("of [card]", "ok"));
    // The counts are the engine's, whatever was taken out.
    let usage = server.chat("1234-5678", json!({})).await.json()["usage"]["completion_tokens"].clone();
    assert_eq!(usage, 10);
}

#[tokio::test]
async fn arguments_of_calls_stay_json() {
    let server = guarded(redacts()).await;
    let tools = json!({ "tools": [{ "type": "function", "function": { "name": "pay" } }] });
    let ask = "/call pay {\"card\": \"1234-5678\", \"to\": \"é\\\"\", \"n\": 3}";
    let expected = json!({ "card": "[card]", "to": "é\"", "n": 3 });
    let whole = server.chat(ask, tools.clone()).await.json();
    let call = &whole["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!(arguments(call["arguments"].as_str().expect("a text")), expected);
    let events = server.stream_chat(ask, tools).await;
    let pieces = events.choices(0).filter_map(|it| it["delta"]["tool_calls"][0]["function"]["arguments"].as_str());
    assert_eq!(arguments(&pieces.collect::<String>()), expected);
    assert_eq!(events.finish(0), ["tool_calls"]);
    let message = json!({ "model": MODEL, "max_tokens": 200, "messages": [{ "role": "user", "content": ask }],
        "tools": [{ "name": "pay", "input_schema": { "type": "object" } }] });
    let message = server.post("/v1/messages", message).await.json();
    assert_eq!(message["content"][0]["input"], expected, "{message}");
}

#[tokio::test]
async fn a_denied_answer_ends_in_its_dialects_words() {
    let server = guarded(output(&["secret"], &[])).await;
    for (path, body, _) in dialects("it is a secret that nobody may know") {
        let answer = server.post(path, body.clone()).await.json();
        assert_eq!(said(path, &answer), "it is a ", "{path}: {answer}");
        let end = |value: &Value| match path {
            "/v1/chat/completions" => value.pointer("/choices/0/finish_reason").cloned(),
            "/v1/responses" => value.pointer("/incomplete_details/reason").cloned(),
            "/v1/messages" => value.get("stop_reason").cloned(),
            _ => value.get("done_reason").cloned(),
        };
        let word = if path == "/v1/messages" { "refusal" } else { "content_filter" };
        assert_eq!(end(&answer), Some(json!(word)), "{path}: {answer}");
        let streamed = server.send(path, &with(body, json!({ "stream": true }))).await.text().await.expect("a stream");
        assert!(streamed.contains(word) && !streamed.contains("secret"), "{path}: {streamed}");
        assert!(!streamed.contains("\"error\":{"), "{path}: {streamed}");
    }
    let native = server.post("/completion", json!({ "prompt": "a secret" })).await.json();
    assert_eq!((native["content"].as_str(), native["stop_type"].as_str()), (Some("a "), Some("content_filter")));
    let text = server.complete(json!(["a secret", "fine"]), json!({})).await.json();
    let reasons = [&text["choices"][0]["finish_reason"], &text["choices"][1]["finish_reason"]];
    assert_eq!((reasons, &text["choices"][1]["text"]), ([&json!("content_filter"), &json!("stop")], &json!("fine")));
    server.chat("x", json!({ "logprobs": true })).await.is_refusal("unsupported_parameter", "logprobs");
    server.complete(json!("x"), json!({ "logprobs": 1 })).await.is_refusal("unsupported_parameter", "logprobs");
    server.idle().await;
}

#[tokio::test]
async fn a_denied_answer_is_stopped_settled_and_in_the_ledger() {
    let governed = Governed::with(|setup, _| {
        setup.gateway.guardrails = sets(&[("strict", output(&["two"], &[])), ("in", input(&["two"], &[]))]);
    })
    .await;
    let (key, _) = governed.key(json!({ "guardrails": ["strict"] })).await;
    let answer = governed.chat(&key, "one two three four five six seven eight").await;
    assert_eq!((answer.status, answer.content().as_str()), (200, "one "), "{}", answer.text);
    let row = governed.row_of(&answer).await;
    assert_eq!((row.finish.as_str(), row.status), ("content_filter", 200));
    assert!((7..=40).contains(&row.out_tok) && row.in_tok > 0 && row.cost_nusd >= 0, "{row:?}");
    assert_eq!(answer.json()["usage"]["completion_tokens"], row.out_tok);
    // Denied on its way in: a row with the reason, and nothing charged.
    let (inward, _) = governed.key(json!({ "guardrails": ["in"] })).await;
    let refused = governed.chat(&inward, "one two").await;
    refused.is_refusal("content_policy_violation", "messages");
    let row = governed.row_of(&refused).await;
    assert_eq!((row.error_code.as_deref(), row.in_tok, row.out_tok), (Some("content_policy_violation"), 0, 0));
    assert_eq!(governed.chat(&key, "fine").await.content(), "fine");
    governed.server.idle().await;
    governed.is_verified().await;
    governed.stop().await;
}

#[tokio::test]
async fn keys_and_teams_name_sets_that_are_there() {
    let governed = Governed::with(|setup, _| {
        setup.gateway.guardrails = sets(&[("no-cards", redacts()), ("strict", output(&["two"], &[]))]);
    })
    .await;
    let unknown = governed.act_as(&governed.master, "/key/generate", json!({ "guardrails": ["no-card"] })).await;
    unknown.is_refusal("invalid_value", "guardrails");
    governed.act("/team/new", json!({ "team_id": "t", "guardrails": ["no-cards"] })).await;
    let (key, id) = governed.key(json!({ "team_id": "t", "guardrails": ["strict"] })).await;
    assert_eq!(governed.chat(&key, "1234-5678 one two").await.content(), "[card] one ");
    let own = Answer::of(
        governed.server.client.get(governed.server.url("/v1/key")).bearer_auth(&key).send().await.expect("an answer"),
    )
    .await;
    assert!(own.status == 200 && !own.text.contains("guardrails") && !own.text.contains("strict"), "{}", own.text);
    assert_eq!(governed.look(&format!("/key/info?key={id}")).await["info"]["guardrails"], json!(["strict"]));
    // A team's admin can't take them off.
    let (admin, _) = governed.key(json!({ "team_id": "t", "roles": ["team-admin"] })).await;
    let (data, data_id) = governed.key(json!({ "team_id": "t", "guardrails": ["strict"] })).await;
    let off = governed.act_as(&admin, "/key/update", json!({ "key": data_id, "guardrails": [] })).await;
    assert_eq!(off.status, 403, "{}", off.text);
    governed.act("/key/update", json!({ "key": data_id, "guardrails": null })).await;
    assert_eq!(governed.chat(&data, "two 1234-5678").await.content(), "two [card]");
    // A set that is gone lets nothing pass.
    let mut config = (*governed.server.gateway.config()).clone();
    config.guardrails = sets(&[("no-cards", redacts())]);
    let models = governed.server.gateway.models().into_iter().map(|listed| (*listed.config).clone()).collect();
    governed.server.gateway.reload(config, models);
    let refused = governed.chat(&key, "hello").await;
    assert_eq!((refused.status, refused.error().2.as_deref()), (503, Some("guardrail_missing")), "{}", refused.text);
    assert!(!refused.text.contains("strict"), "{}", refused.text);
    assert_eq!(governed.chat(&data, "fine").await.content(), "fine");
    governed.stop().await;
}

#[tokio::test]
async fn what_is_denied_now_comes_from_no_cache() {
    let server = Server::with(|setup| setup.gateway.routing.cache.enabled = true).await;
    let ask = || server.chat("a secret of 1234-5678", json!({ "temperature": 0 }));
    let reload = |spec: Option<GuardrailSpec>| {
        let mut config = (*server.gateway.config()).clone();
        config.guardrails = spec.map(|spec| sets(&[("default", spec)])).unwrap_or_default();
        let models = server.gateway.models().into_iter().map(|listed| (*listed.config).clone()).collect();
        server.gateway.reload(config, models);
    };
    assert_eq!(ask().await.header("x-hearth-cache"), "miss");
    assert_eq!(ask().await.header("x-hearth-cache"), "hit");
    reload(Some(redacts()));
    for cache in ["miss", "hit"] {
        let answer = ask().await;
        assert_eq!((answer.content().as_str(), answer.header("x-hearth-cache")), ("a secret of [card]", cache));
    }
    reload(Some(output(&["secret"], &[])));
    for _ in 0..2 {
        let answer = ask().await;
        assert_eq!(
            (answer.content().as_str(), answer.header("x-hearth-cache")),
            ("a ", "miss"),
            "filtered is never kept"
        );
    }
    reload(Some(instructs()));
    assert_eq!(ask().await.header("x-hearth-cache"), "miss", "another instruction, another answer");
    reload(None);
    assert_eq!(ask().await.content(), "a secret of 1234-5678");
}

async fn beside(cloud: &Cloud, change: impl FnOnce(&mut Setup)) -> Server {
    let url = cloud.base_url();
    Server::with(|setup| {
        setup.gateway.routing.may_leave = true;
        setup.gateway.routing.upstreams = vec![upstream("cloud", &url)];
        setup.gateway.routing.routes = vec![route("away", &["cloud"]), route("both", &[MODEL, "cloud"])];
        change(setup);
    })
    .await
}

#[tokio::test]
async fn upstreams_get_and_give_what_the_rules_let_through() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["call 1234", "-5", "678 now, ", "pro", "ject x"]).into())]).await;
    let server = beside(&cloud, |setup| {
        let mut spec = redacts();
        spec.system = Some(SYSTEM.into());
        spec.input = rules(&["aurora"], &[(r"\d{3}", "###")]);
        setup.gateway.guardrails = sets(&[("a", spec), ("b", output(&["now"], &[]))]);
        setup.gateway.routing.routes[0].guardrails = vec!["a".into()];
    })
    .await;
    let ask = |text: &str, stream| chat_body(text, json!({ "model": "away", "stream": stream }));
    let answer = server.post("/v1/chat/completions", ask("my pin is 123", false)).await;
    assert_eq!(answer.content(), "call [card] now, P");
    let sent = cloud.last().json();
    assert_eq!(sent["messages"][0], json!({ "role": "system", "content": SYSTEM }));
    assert_eq!(sent["messages"][1]["content"], "my pin is ###");
    let streamed = server.send("/v1/chat/completions", &ask("x", true)).await.bytes().await.expect("a stream");
    assert_eq!(Events::parse(&streamed).text(0, "content"), "call [card] now, P");
    let n = cloud.n_requests();
    let refused = server.post("/v1/chat/completions", ask("Aurora", false)).await;
    refused.is_refusal("content_policy_violation", "messages");
    assert_eq!(cloud.n_requests(), n, "what is denied is sent nowhere");
    // Only the alias has rules: the other way to the same server has none.
    let free = server.post("/v1/chat/completions", chat_body("x", json!({ "model": "both" }))).await;
    assert_eq!(free.content(), "x");
}

#[tokio::test]
async fn an_upstream_that_says_what_is_denied_is_hung_up_on() {
    let start = format!("{SSE}{}{}{}", role(), text("all is well, but the sec"), text("ret is"));
    let cloud = Cloud::always(vec![Act::Send(start.into_bytes()), Act::Hang]).await;
    let server = beside(&cloud, |setup| {
        setup.gateway.guardrails = sets(&[("u", output(&["secret"], &[]))]);
        setup.gateway.routing.upstreams[0].guardrails = vec!["u".into()];
    })
    .await;
    let body = chat_body("x", json!({ "model": "away", "stream": true }));
    let streamed = server.send("/v1/chat/completions", &body).await.bytes().await.expect("a stream");
    let events = Events::parse(&streamed);
    assert_eq!(
        (events.text(0, "content").as_str(), events.finish(0)),
        ("all is well, but the ", vec!["content_filter"])
    );
    assert!(events.is_done);
    let left = async {
        while cloud.n_left() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, left).await.expect("the connection is closed");
}

#[tokio::test]
async fn answers_are_weighed_where_they_are_looked_at() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["surely 1234-5678"]).into())]).await;
    let server = beside(&cloud, |setup| {
        setup.gateway.guardrails = sets(&[("default", redacts())]);
        // The scripted model is never sure.
        setup.gateway.routing.routes[1].min_logprob = Some(-0.5);
    })
    .await;
    let unsure = server.post("/v1/chat/completions", chat_body("1234-5678", json!({ "model": "both" }))).await;
    assert_eq!(unsure.content(), "surely [card]");
    assert_eq!(unsure.header("x-hearth-served-by"), "cloud");
}

#[tokio::test]
async fn vectors_are_made_of_what_may_come_in() {
    let spec = GuardrailSpec { input: rules(&["aurora"], &[(r"\d{4}", "#")]), ..Default::default() };
    let server = Server::with(|setup| {
        setup.scripted().embeds = 1;
        setup.gateway.guardrails = sets(&[("default", spec)]);
    })
    .await;
    let embed = |input: Value| server.post("/v1/embeddings", json!({ "model": MODEL, "input": input }));
    let vector = |answer: Answer| answer.json()["data"][0]["embedding"].clone();
    assert_eq!(vector(embed(json!("pin 1234")).await), vector(embed(json!("pin #")).await));
    embed(json!(["fine", "AURORA"])).await.is_refusal("content_policy_violation", "input");
    embed(json!([[1, 2]])).await.is_refusal("unsupported_parameter", "input");
}

#[tokio::test]
async fn what_rules_do_is_counted_by_set_act_and_direction() {
    let spec = || GuardrailSpec {
        input: rules(&["aurora"], &[(r"\d{4}", "#")]),
        output: rules(&["secret"], &[("ab-cd", "[card]")]),
        ..Default::default()
    };
    let quiet = || GuardrailSpec { input: rules(&["never"], &[]), ..Default::default() };
    let both = move || sets(&[("default", spec()), ("quiet", quiet())]);
    let server = Server::with(|setup| setup.gateway.guardrails = both()).await;
    let counted = async || {
        let page = server.metrics().await;
        let lines = page.lines().filter_map(|line| line.strip_prefix("hearth_guardrail_matches_total{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let line = |act: &str, direction: &str, n: u32| {
        format!("action=\"{act}\",direction=\"{direction}\",guardrail=\"default\"}} {n}")
    };
    let are = |counts: [u32; 4]| {
        let of = [("deny", "in"), ("deny", "out"), ("redact", "in"), ("redact", "out")];
        let mut lines: Vec<String> = of.iter().zip(counts).map(|((act, way), n)| line(act, way, n)).collect();
        lines.insert(1, "action=\"deny\",direction=\"in\",guardrail=\"quiet\"} 0".to_owned());
        lines
    };
    // All are there before anything has happened, so that a first match shows as an increase.
    assert_eq!(counted().await, are([0, 0, 0, 0]));
    assert_eq!(server.chat("pins 1234 and 5678", json!({})).await.content(), "pins # and #");
    assert_eq!(counted().await, are([0, 0, 2, 0]));
    server.chat("the Aurora of 1234", json!({})).await.is_refusal("content_policy_violation", "messages");
    assert_eq!(counted().await, are([1, 0, 3, 0]));
    // What would be taken out where nothing can be: refused, once.
    let tools = json!([{ "type": "function", "function": { "name": "t_1234_5678", "parameters": {} } }]);
    server.chat("x", json!({ "tools": tools })).await.is_refusal("content_policy_violation", "");
    assert_eq!(counted().await, are([2, 0, 3, 0]));
    let denied = server.chat("a secret, a secret", json!({})).await;
    assert_eq!(denied.json()["choices"][0]["finish_reason"], "content_filter");
    assert_eq!(counted().await, are([2, 1, 3, 0]));
    assert_eq!(server.stream_chat("ab-cd, and ab-cd", json!({})).await.text(0, "content"), "[card], and [card]");
    assert_eq!(counted().await, are([2, 1, 3, 2]));
    // A reload begins nothing anew.
    let config = GatewayConfig { guardrails: both(), ..(*server.gateway.config()).clone() };
    let models = server.gateway.models().into_iter().map(|model| (*model.config).clone()).collect();
    server.gateway.reload(config, models);
    assert_eq!(server.chat("pin 1234", json!({})).await.content(), "pin #");
    assert_eq!(counted().await, are([2, 1, 4, 2]));
}
