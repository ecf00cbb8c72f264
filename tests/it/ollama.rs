//! Ollama's native API. Names are the contract's rows (OLLA-), and section 3's rules.

use crate::support::{Answer, MODEL, Server, with};
use serde_json::{Value, json};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const DURATIONS: [&str; 4] = ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"];

fn chat(text: &str, more: Value) -> Value {
    with(json!({ "model": MODEL, "messages": [{ "role": "user", "content": text }] }), more)
}

fn whole(text: &str, more: Value) -> Value {
    chat(text, with(json!({ "stream": false }), more))
}

/// The text of an error, which is all there is of it.
fn error(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8", "{}", answer.text);
    let body = answer.json();
    assert_eq!(body.as_object().map(|it| it.len()), Some(1), "{}", answer.text);
    (answer.status, body["error"].as_str().expect("a text").to_owned())
}

fn rows(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"), "{}", answer.text);
    assert!(answer.text.ends_with('\n') && !answer.text.contains("\n\n"), "{}", answer.text);
    answer.text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn has_metrics(row: &Value) -> bool {
    let all = DURATIONS.iter().chain(&["prompt_eval_count", "eval_count"]);
    let n = all.clone().filter(|key| row[**key].is_u64()).count();
    assert!(n == 0 || n == all.count(), "{row}");
    n > 0
}

/// FAULT-14: `rows` wants no blank line.
#[tokio::test]
async fn rows_of_a_chat_stream_by_default() {
    let server = Server::start().await;
    let rows = rows(&server.post(CHAT, chat("/count 5", json!({}))).await);
    let (last, others) = rows.split_last().expect("rows");
    let text: String = others.iter().map(|row| row["message"]["content"].as_str().expect("a text")).collect();
    assert_eq!(text, "1 2 3 4 5");
    assert!(others.iter().all(|row| row["done"] == false && !has_metrics(row) && row["model"] == MODEL));
    assert_eq!(last["message"], json!({"role":"assistant","content":""}));
    assert_eq!((&last["done"], &last["done_reason"], has_metrics(last)), (&json!(true), &json!("stop"), true));
    let time = |key: &str| last[key].as_u64().expect("nanoseconds");
    let parts = time("load_duration") + time("prompt_eval_duration") + time("eval_duration");
    assert!(time("total_duration") >= parts, "{last}");
    assert!((1000..60_000_000_000).contains(&time("total_duration")), "{last}");
    assert!(last["created_at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')));
}

#[tokio::test]
async fn a_whole_answer_is_all_rows_in_one() {
    let server = Server::start().await;
    for text in ["hello", "/think deep", "/bytes 240 159 152 128", "/count 0"] {
        let rows = rows(&server.post(CHAT, chat(text, json!({}))).await);
        let answer = server.post(CHAT, whole(text, json!({}))).await;
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        let body = answer.json();
        for key in ["content", "thinking"] {
            let streamed: String = rows.iter().filter_map(|row| row["message"][key].as_str()).collect();
            assert_eq!(streamed, body["message"][key].as_str().unwrap_or_default());
        }
        assert!(body["done"] == true && body["done_reason"] == "stop" && has_metrics(&body));
        assert_eq!(body["eval_count"], rows.last().expect("rows")["eval_count"]);
    }
}

#[tokio::test]
async fn olla_01_calls_are_objects_each_in_one_row() {
    let server = Server::start().await;
    let tool = |name: &str| json!({"type":"function","function":{"name":name,"parameters":{"type":"object"}}});
    let more = json!({ "tools": [tool("f"), tool("g")] });
    let text = "/call f {\"b\":1,\"a\":\"x\"}\n/call g {}";
    let rows = rows(&server.post(CHAT, chat(text, more.clone())).await);
    let calls: Vec<&Value> = rows.iter().filter_map(|row| row["message"]["tool_calls"].get(0)).collect();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0]["function"], json!({"index":0,"name":"f","arguments":{"b":1,"a":"x"}}));
    assert_eq!(calls[0]["function"]["arguments"].to_string(), "{\"b\":1,\"a\":\"x\"}", "keys keep their order");
    assert_eq!(calls[1]["function"], json!({"index":1,"name":"g","arguments":{}}));
    assert_eq!(rows.last().expect("rows")["done_reason"], "stop");
    let body = server.post(CHAT, whole(text, more)).await.json();
    assert_eq!(body["message"]["tool_calls"].as_array().map(Vec::len), Some(2));
    let messages = json!([{"role":"user","content":"go"}, body["message"],
        {"role":"tool","tool_name":"f","content":"r"}, {"role":"tool","tool_name":"g","content":"r"},
        {"role":"user","content":"and?"}]);
    let again = server.post(CHAT, json!({"messages":messages,"stream":false,"tools":[tool("f")]})).await;
    assert_eq!((again.json()["message"]["content"].as_str(), again.header("x-hearth-ignored")), (Some("and?"), ""));
    let none = server.post(CHAT, whole("x", json!({ "tools": [] }))).await.json();
    assert_eq!(none["message"], json!({"role":"assistant","content":"x"}));
}

#[tokio::test]
async fn olla_06_think_is_accepted_and_thinking_apart() {
    let server = Server::start().await;
    for think in [json!(true), json!(false), json!("low"), json!(null)] {
        let answer = server.post(CHAT, whole("/think deep", json!({ "think": think }))).await;
        let message = &answer.json()["message"];
        assert_eq!((&message["content"], &message["thinking"]), (&json!("ok"), &json!("deep")), "{think}");
    }
    let generated = server.post(GENERATE, json!({"prompt":"/think deep","think":true,"stream":false})).await.json();
    assert_eq!((&generated["response"], &generated["thinking"]), (&json!("ok"), &json!("deep")));
    assert!(error(&server.post(CHAT, chat("x", json!({ "think": "lots" }))).await).1.contains("think"));
}

#[tokio::test]
async fn olla_07_14_options() {
    let server = Server::start().await;
    let options = json!({"num_ctx":1_000_000,"num_gpu":99,"num_thread":8,"temperature":0,"top_k":40,"seed":0,"stop":" 4",
        "num_predict":-1,"my_own":1});
    let answer = server.post(CHAT, whole("/count 9", json!({ "options": options }))).await;
    assert_eq!(answer.json()["message"]["content"], "1 2 3");
    assert_eq!(answer.header("x-hearth-ignored"), "options.my_own");
    let cut = |n: i64| server.post(CHAT, whole("abcdef", json!({"options":{"num_predict":n}})));
    let three = cut(3).await.json();
    assert_eq!((&three["message"]["content"], &three["done_reason"]), (&json!("abc"), &json!("length")));
    assert_eq!((&three["eval_count"], &cut(-2).await.json()["message"]["content"]), (&json!(3), &json!("abcdef")));
    let zero = cut(0).await.json();
    assert_eq!((&zero["message"]["content"], &zero["done_reason"]), (&json!(""), &json!("length")));
    for (more, named) in [
        (json!({"options":{"temperature":"hot"}}), "options.temperature"),
        (json!({"options":{"top_k":1.5}}), "options.top_k"),
        (json!({"options":{"num_predict":-9}}), "options.num_predict"),
        (json!({"format":"yaml"}), "format"),
        (json!({"format":{"type":"oddity"}}), "format"),
        (json!({"keep_alive":"soon"}), "keep_alive"),
        (json!({"tools":[{"type":"web"}]}), "tools[0].type"),
        (json!({"messages":[{"role":"robot"}]}), "messages[0].role"),
    ] {
        let (status, text) = error(&server.post(CHAT, chat("x", more)).await);
        assert!(status == 400 && text.contains(named), "{text}");
    }
}

#[tokio::test]
async fn olla_08_images_on_a_text_model() {
    let server = Server::start().await;
    let messages = json!([{"role":"user","content":"see","images":["AQID"]}]);
    let (status, text) = error(&server.post(CHAT, json!({ "messages": messages })).await);
    assert!(status == 400 && text.contains("messages[0].images[0]"), "{text}");
    let (status, text) = error(&server.post(GENERATE, json!({"prompt":"see","images":["AQID"]})).await);
    assert!(status == 400 && text.contains("images[0]"), "{text}");
}

#[tokio::test]
async fn olla_09_a_failure_in_a_stream_is_a_row_and_the_end() {
    let server = Server::with(|setup| setup.scripted().step_us = 500).await;
    let asking = server.post(CHAT, chat("/forever", json!({})));
    let closing = async {
        server.busy(1).await;
        server.engine.close().await;
    };
    let (answer, ()) = tokio::join!(asking, closing);
    let rows = rows(&answer);
    assert!(rows.last().expect("rows")["error"].is_string());
    assert!(rows.iter().all(|row| row["done"] != true));
}

#[tokio::test]
async fn olla_11_keep_alive_and_the_empty_requests_that_carry_it() {
    let server = Server::start().await;
    for keep_alive in [json!(0), json!(-1), json!("5m"), json!(1800), json!("-1s"), json!("1h30m"), json!(null)] {
        let answer = server.post(CHAT, whole("x", json!({ "keep_alive": keep_alive }))).await;
        assert_eq!(answer.json()["message"]["content"], "x", "{keep_alive}");
    }
    for (keep_alive, reason) in [(json!(null), "load"), (json!("5m"), "load"), (json!(0), "unload")] {
        let loaded = server.post(CHAT, json!({"model":MODEL,"stream":false,"keep_alive":keep_alive})).await.json();
        assert_eq!(loaded["message"], json!({"role":"assistant","content":""}));
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!(reason)));
        let rows = rows(&server.post(GENERATE, json!({"model":MODEL,"prompt":"","keep_alive":keep_alive})).await);
        assert_eq!((rows.len(), &rows[0]["response"], &rows[0]["done_reason"]), (1, &json!(""), &json!(reason)));
    }
    assert_eq!(server.post(CHAT, whole("still here", json!({}))).await.status, 200);
}

#[tokio::test]
async fn generate_templates_its_prompt_unless_it_is_raw() {
    let server = Server::start().await;
    let count = |more: Value| {
        let body = with(json!({"prompt":"abc","stream":false}), more);
        let server = &server;
        async move { server.post(GENERATE, body).await.json()["prompt_eval_count"].as_u64().expect("a count") }
    };
    let (raw, templated) = (count(json!({ "raw": true })).await, count(json!({})).await);
    assert!(raw < templated && templated < count(json!({ "system": "be brief" })).await);
    assert_eq!(templated, count(json!({"template":"x","context":[1,2]})).await);
    let rows = rows(&server.post(GENERATE, json!({ "prompt": "/count 3" })).await);
    let text: String = rows.iter().filter_map(|row| row["response"].as_str()).collect();
    assert_eq!((text.as_str(), has_metrics(rows.last().expect("rows"))), ("1 2 3", true));
    let (status, text) = error(&server.post(GENERATE, json!({"prompt":"x","raw":true,"system":"s"})).await);
    assert!(status == 400 && text.contains("system"));
}

#[tokio::test]
async fn olla_12_a_suffix_is_infill_and_the_template_says_so() {
    let server = Server::start().await;
    let show = server.post("/api/show", json!({ "model": MODEL })).await.json();
    assert!(show["template"].as_str().is_some_and(|text| text.contains(".Suffix")));
    let filled = server.post(GENERATE, json!({"prompt":"a","suffix":"b","stream":false})).await;
    assert!(filled.status == 200 && has_metrics(&filled.json()), "{}", filled.text);
    let (status, text) = error(&server.post(GENERATE, json!({"prompt":"a","suffix":"b","system":"s"})).await);
    assert!(status == 400 && text.contains("system"), "{text}");
}

#[tokio::test]
async fn olla_13_rows_carry_logprobs() {
    let server = Server::start().await;
    let more = json!({"logprobs":true,"top_logprobs":2});
    let rows = rows(&server.post(CHAT, chat("hi", more.clone())).await);
    let entries: Vec<&Value> = rows.iter().filter_map(|row| row["logprobs"].as_array()).flatten().collect();
    let tokens: String = entries.iter().filter_map(|entry| entry["token"].as_str()).collect();
    assert_eq!(tokens, "hi");
    assert!(
        entries
            .iter()
            .all(|it| it["logprob"].is_f64() && it["top_logprobs"].as_array().is_some_and(|top| top.len() == 2))
    );
    let body = server.post(GENERATE, with(json!({"prompt":"hi","stream":false}), more)).await.json();
    assert_eq!(body["logprobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.post(CHAT, whole("hi", json!({}))).await.json().get("logprobs"), None);
}

#[tokio::test]
async fn olla_03_a_model_without_vectors_says_so() {
    let server = Server::start().await;
    for (path, body) in [("/api/embed", json!({"input":["a","b"]})), ("/api/embeddings", json!({"prompt":"a"}))] {
        let (status, text) = error(&server.post(path, body).await);
        assert!(status == 400 && text.contains("embed"), "{text}");
    }
    assert_eq!(server.post("/api/embed", json!({"input":[]})).await.json()["embeddings"], json!([]));
    assert_eq!(server.post("/api/embeddings", json!({"prompt":""})).await.json(), json!({"embedding":[]}));
    let (status, text) = error(&server.post("/api/embed", json!({ "input": 7 })).await);
    assert!(status == 400 && text.contains("input"), "{text}");
    let unknown = server.post("/api/embed", json!({"model":"nope","input":"a"})).await;
    assert_eq!(error(&unknown), (404, "model 'nope' not found".into()));
}

#[tokio::test]
async fn names_models_and_descriptions() {
    let server = Server::start().await;
    for name in [MODEL, "scripted-1:latest", "default", "house/model"] {
        assert_eq!(server.post(CHAT, whole("x", json!({ "model": name }))).await.status, 200, "{name}");
        assert_eq!(server.post("/api/show", json!({ "name": name })).await.status, 200, "{name}");
    }
    for (path, body) in [
        (CHAT, chat("x", json!({ "model": "nope" }))),
        (GENERATE, json!({"model":"nope","prompt":"x"})),
        ("/api/show", json!({ "model": "nope" })),
        (CHAT, json!({ "model": "nope" })),
    ] {
        assert_eq!(error(&server.post(path, body).await), (404, "model 'nope' not found".into()));
    }
    let tag = server.get("/api/tags").await.json()["models"][0].clone();
    let running = server.get("/api/ps").await.json()["models"][0].clone();
    assert_eq!((&tag["name"], &tag["model"], &tag["name"]), (&json!(MODEL), &json!(MODEL), &running["name"]));
    assert_eq!(tag["digest"].as_str().map(str::len), Some(64));
    assert_eq!(tag["details"]["format"], "gguf");
    assert!(running["expires_at"].as_str().is_some_and(|at| at.ends_with('Z')) && running["size_vram"].is_u64());
    let show = server.post("/api/show", json!({"model":MODEL,"verbose":true})).await.json();
    assert_eq!(
        (&running["context_length"], &show["model_info"]["scripted.context_length"]),
        (&json!(4096), &json!(4096))
    );
    assert_eq!(show["capabilities"], json!(["completion", "tools", "thinking", "insert"]));
    assert!(show["parameters"].as_str().is_some_and(|text| text.contains("num_ctx 4096\nstop \"<|end|>\"")));
    assert!(show["template"].as_str().is_some_and(|text| text.starts_with("scripted")));
}

#[tokio::test]
async fn what_one_file_can_not_do_is_403_with_a_text() {
    let server = Server::start().await;
    let rows = rows(&server.post("/api/pull", json!({ "model": MODEL })).await);
    assert_eq!(rows, [json!({"status":"pulling manifest"}), json!({"status":"success"})]);
    let whole = server.post("/api/pull", json!({"name":"default","stream":false})).await;
    assert_eq!((whole.status, whole.json()), (200, json!({"status":"success"})));
    let (status, text) = error(&server.post("/api/pull", json!({ "model": "other" })).await);
    assert!(status == 403 && text.starts_with("this server serves one model"), "{text}");
    for path in ["/api/create", "/api/copy", "/api/push", "/api/delete", "/api/blobs/sha256:abc"] {
        assert_eq!(error(&server.post(path, json!({ "model": "x" })).await).0, 403, "{path}");
    }
    let deleted = server.client.delete(server.url("/api/delete")).send().await.expect("an answer");
    assert_eq!(error(&Answer::of(deleted).await).0, 403);
    let blob = server.client.head(server.url("/api/blobs/sha256:abc")).send().await.expect("an answer");
    assert_eq!(blob.status(), 403);
    let version = server.get("/api/version").await.json()["version"].as_str().expect("a version").to_owned();
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().expect("digits")).collect();
    assert!(parts >= vec![0, 6, 4], "{version}");
    assert_eq!(server.get("/").await.status, 200);
    for path in ["/", "/api/version", "/api/tags"] {
        assert_eq!(server.client.head(server.url(path)).send().await.expect("an answer").status(), 200, "{path}");
    }
}

/// FAULT-16: `error` wants a text.
#[tokio::test]
async fn any_content_type_without_an_origin_and_errors_as_texts() {
    let server = Server::start().await;
    let post = |kind: Option<&'static str>, origin: Option<&'static str>, body: String| {
        let mut request = server.client.post(server.url(CHAT)).body(body);
        for (name, value) in [("content-type", kind), ("origin", origin)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        async { Answer::of(request.send().await.expect("an answer")).await }
    };
    let body = || whole("x", json!({})).to_string();
    for kind in [None, Some("application/x-www-form-urlencoded"), Some("text/plain")] {
        assert_eq!(post(kind, None, body()).await.status, 200, "{kind:?}");
    }
    let local = Some("http://localhost:3000");
    assert_eq!(error(&post(Some("text/plain"), local, body()).await).0, 415);
    assert_eq!(error(&post(None, Some("http://evil.example"), body()).await).0, 403);
    for raw in ["", "[]", "{", "{\"messages\":[{\"role\":\"user\",\"content\":[1]}]}"] {
        assert_eq!(error(&post(None, None, raw.to_owned()).await).0, 400, "{raw}");
    }
    assert_eq!(error(&server.get("/api/nope").await).0, 404);
    assert_eq!(error(&server.get(CHAT).await).0, 405);
    let (status, text) = error(&server.post(CHAT, chat(&"x".repeat(9000), json!({}))).await);
    assert!(status == 400 && text.contains("exceeds the available context size"), "{text}");
    let keyed = Server::with(|setup| setup.key("k")).await;
    assert_eq!(error(&keyed.post(CHAT, chat("x", json!({}))).await).0, 401);
}

#[tokio::test]
async fn while_loading_and_full_the_text_says_so() {
    let server = Server::with(|setup| {
        setup.while_loading = true;
        setup.scripted().load_ms = 600_000;
    })
    .await;
    for answer in [server.post(CHAT, chat("x", json!({}))).await, server.get("/api/tags").await] {
        let (status, text) = error(&answer);
        assert!(status == 503 && text.contains("loading"), "{text}");
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| (1..=5).contains(&seconds)));
    }
}
