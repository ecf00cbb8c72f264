//! Images and sound over HTTP, with real decodes through tiny random projectors (rows CHAT-14 and CHAT-16).

use crate::support::exact::is_exact;
use crate::support::{Answer, Events, Server, Setup};
use base64::Engine as _;
use hearth::engine::config::{KvLayout, ModelSource};
use hearth::gateway::MediaHost;
use serde_json::{Value, json};
use std::io::Cursor;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LLAMA: (&str, &str) = ("tiny-llama", "tiny-mmproj");
/// Positions in three dimensions.
const QWEN: (&str, &str) = ("tiny-qwen2vl", "tiny-qwen2vl-mmproj");

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("models/tiny/{name}.gguf"))
}

async fn server(model: (&str, &str), change: impl FnOnce(&mut Setup)) -> Server {
    Server::with(|setup| {
        setup.engine.source = ModelSource::Gguf(file(model.0));
        setup.engine.mmproj = Some(file(model.1));
        setup.engine.n_ctx = Some(1024);
        change(setup);
    })
    .await
}

fn png(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let pixel = |x: u32, y: u32| image::Rgb([(x * 7) as u8 ^ seed, (y * 5) as u8, seed.wrapping_mul(37)]);
    let mut out = Cursor::new(Vec::new());
    let image = image::RgbImage::from_fn(width, height, pixel);
    image.write_to(&mut out, image::ImageFormat::Png).expect("encodes");
    out.into_inner()
}

fn wav(tone: f32) -> Vec<u8> {
    let samples = (0..8000u32).map(|i| ((i as f32 / 8000.0 * tone * std::f32::consts::TAU).sin() * 12_000.0) as i16);
    let mut out =
        b"RIFF\xa4\x3e\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x80\x3e\0\0".to_vec();
    out.extend(samples.flat_map(i16::to_le_bytes));
    out
}

fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

fn image_part(data: &[u8]) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", base64(data))}})
}

fn sound_part(data: &[u8]) -> Value {
    json!({"type": "input_audio", "input_audio": {"data": base64(data), "format": "wav"}})
}

fn body(part: Option<Value>, text: &str) -> Value {
    let mut parts = vec![json!({"type": "text", "text": "Look: "})];
    parts.extend(part);
    parts.push(json!({"type": "text", "text": text}));
    json!({
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 5, "ignore_eos": true,
    })
}

async fn ask(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/chat/completions", body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn usage(answer: &Value) -> (u64, u64) {
    let number = |value: &Value| value.as_u64().expect("a number");
    (number(&answer["usage"]["prompt_tokens"]), number(&answer["usage"]["prompt_tokens_details"]["cached_tokens"]))
}

fn first_logprobs(answer: &Value) -> &Value {
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert!(first.is_object(), "{answer}");
    first
}

/// The same was seen: it is worth the same first token, and where that is rounded alike the same answer.
fn is_said_again(one: &Value, again: &Value) {
    if is_exact() {
        assert_eq!(one["choices"][0]["message"], again["choices"][0]["message"]);
    }
    let (one, again) = (first_logprobs(one), first_logprobs(again));
    let logprob = |first: &Value| first["logprob"].as_f64().expect("a number");
    let most = if is_exact() { 1e-3 } else { 0.1 };
    assert!(one["token"] == again["token"] && (logprob(one) - logprob(again)).abs() < most, "{one} and {again}");
}

/// One medium counts, is cached by its content, and is seen: another one gives other logits.
async fn is_taken(server: &Server, one: Value, other: Value, n_least: u64) {
    let plain = usage(&ask(server, &body(None, "what is it?")).await).0;
    let first = ask(server, &body(Some(one.clone()), "what is it?")).await;
    let n_prompt = usage(&first).0;
    assert!(n_prompt >= plain + n_least, "{n_prompt} tokens with it, {plain} without");
    let again = ask(server, &body(Some(one.clone()), "what is it?")).await;
    assert_eq!(usage(&again).0, n_prompt);
    assert_eq!(usage(&again).1, n_prompt - 1, "all but the token whose logits are wanted");
    is_said_again(&first, &again);
    let next = ask(server, &body(Some(one.clone()), "and now another question")).await;
    assert!(usage(&next).1 > n_least, "the image's cells are found again: {}", next["usage"]);
    let different = ask(server, &body(Some(other), "what is it?")).await;
    assert!(usage(&different).1 + n_least <= usage(&next).1, "another one is not found: {}", different["usage"]);
    assert_ne!(first_logprobs(&first), first_logprobs(&different), "the model sees what is in it");
    let counted = server.post("/v1/chat/completions/input_tokens", body(Some(one), "what is it?")).await;
    assert_eq!(counted.status, 200, "{}", counted.text);
    assert_eq!(counted.json()["input_tokens"], n_prompt, "{}", counted.text);
}

/// CHAT-14 with a projector: an image is decoded, counted, cached by content, and changes what the model says.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_reaches_the_model() {
    let server = server(LLAMA, |_| {}).await;
    is_taken(&server, image_part(&png(40, 30, 1)), image_part(&png(40, 30, 200)), 16).await;
    server.stop().await;
}

/// CHAT-16 with a projector: so is sound.
#[tokio::test(flavor = "multi_thread")]
async fn a_sound_reaches_the_model() {
    let server = server(LLAMA, |_| {}).await;
    is_taken(&server, sound_part(&wav(440.0)), sound_part(&wav(1700.0)), 50).await;
    server.stop().await;
}

/// Positions that count in three dimensions: fewer than tokens, and a conversation behind the image still goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_reaches_a_model_with_three_dimensional_positions() {
    let server = server(QWEN, |_| {}).await;
    is_taken(&server, image_part(&png(64, 32, 1)), image_part(&png(64, 32, 200)), 32).await;
    server.stop().await;
}

/// The KV cache changes nothing: the same conversation gives the same answer with and without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cached_image_is_the_same_image() {
    for model in [LLAMA, QWEN] {
        let server = server(model, |_| {}).await;
        let whole = body(Some(image_part(&png(64, 32, 9))), "tell me more about it");
        ask(&server, &body(Some(image_part(&png(64, 32, 9))), "tell")).await;
        let cached = ask(&server, &whole).await;
        assert!(usage(&cached).1 > 20, "{}", cached["usage"]);
        let mut fresh = whole.clone();
        fresh["cache_prompt"] = json!(false);
        let fresh = ask(&server, &fresh).await;
        assert_eq!(usage(&fresh).1, 0);
        is_said_again(&cached, &fresh);
        server.stop().await;
    }
}

/// Bad files are the client's fault, named by their part.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_or_sound_is_refused_by_name() {
    let server = server(LLAMA, |_| {}).await;
    let whole = png(64, 64, 3);
    let mut huge = whole.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]); // 10,000 × 10,000 pixels
    let bad: Vec<Vec<u8>> = vec![b"hello".to_vec(), whole[..whole.len() / 2].to_vec(), huge, b"GIF89a".to_vec()];
    for data in &bad {
        for part in [image_part(data), sound_part(data)] {
            let answer = server.post("/v1/chat/completions", body(Some(part), "?")).await;
            answer.is_refusal("invalid_value", "messages[0].content[1]");
        }
    }
    let mut silent = wav(1.0);
    silent.truncate(44);
    let answer = server.post("/v1/chat/completions", body(Some(sound_part(&silent)), "?")).await;
    answer.is_refusal("invalid_value", "messages[0].content[1]");
    // Nothing of that hurt anybody.
    assert_eq!(server.chat("hi", json!({"max_tokens": 2})).await.status, 200);
    server.stop().await;
}

/// CHAT-14, CHAT-16: a model without a projector refuses, and so does a projector that lacks the kind.
#[tokio::test(flavor = "multi_thread")]
async fn media_that_the_model_does_not_take_are_refused_by_name() {
    let text = Server::start().await;
    let eyes = server(QWEN, |_| {}).await;
    for (server, part) in [
        (&text, image_part(&png(8, 8, 1))),
        (&text, sound_part(&wav(3.0))),
        (&text, json!({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})),
        (&eyes, sound_part(&wav(3.0))),
    ] {
        let answer = server.post("/v1/chat/completions", body(Some(part), "?")).await;
        answer.is_refusal("unsupported_content", "messages[0].content[1].type");
    }
    text.stop().await;
    eyes.stop().await;
}

/// A host with images: `/a.png` is one, `/to?URL` leads elsewhere, everything else is 404. Counts its connections.
async fn host() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let n_connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut request = vec![0; 4096];
            let n = socket.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let answer = match path.split_once('?') {
                Some(("/to", to)) => {
                    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes()
                }
                _ if path == "/a.png" => {
                    let data = png(40, 30, 1);
                    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", data.len()).into_bytes();
                    answer.extend(data);
                    answer
                }
                _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            };
            let _ = socket.write_all(&answer).await;
        }
    });
    (address, n_connections)
}

fn linked(url: &str) -> Value {
    body(Some(json!({"type": "image_url", "image_url": {"url": url}})), "what is it?")
}

/// CHAT-14: addresses are fetched from listed hosts only; redirects are checked like first addresses.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_fetched_from_listed_hosts_only() {
    let (address, n_connections) = host().await;
    let closed = server(LLAMA, |_| {}).await;
    let answer = closed.post("/v1/chat/completions", linked(&format!("http://{address}/a.png"))).await;
    answer.is_refusal("unsupported_content", "messages[0].content[1]");
    assert_eq!(n_connections.load(Ordering::SeqCst), 0, "nothing is fetched by default");
    closed.stop().await;

    let open = server(LLAMA, |setup| {
        setup.gateway.media_hosts = vec![MediaHost::new(&address.to_string()).expect("an address")];
    })
    .await;
    let sent = ask(&open, &body(Some(image_part(&png(40, 30, 1))), "what is it?")).await;
    let fetched = ask(&open, &linked(&format!("http://{address}/a.png"))).await;
    is_said_again(&sent, &fetched);
    let moved = ask(&open, &linked(&format!("http://{address}/to?/a.png"))).await;
    is_said_again(&sent, &moved);
    let n_before = n_connections.load(Ordering::SeqCst);
    for (url, code) in [
        (format!("http://{address}/missing.png"), "invalid_image_url"),
        (format!("http://{address}/to?http://localhost:{}/a.png", address.port()), "invalid_image_url"),
        (format!("http://{address}/to?file:///etc/passwd"), "invalid_image_url"),
        (format!("http://localhost:{}/a.png", address.port()), "unsupported_content"),
        ("http://169.254.169.254/latest/meta-data".to_owned(), "unsupported_content"),
    ] {
        let answer: Answer = open.post("/v1/chat/completions", linked(&url)).await;
        answer.is_refusal(code, "messages[0].content[1]");
    }
    assert_eq!(n_connections.load(Ordering::SeqCst), n_before + 3, "one for each first address that is allowed");
    open.stop().await;
}

fn of_responses(url: &str) -> Value {
    let parts = json!([{"type": "input_text", "text": "Look"}, {"type": "input_image", "image_url": url}]);
    json!({"input": [{"role": "user", "content": parts}], "max_output_tokens": 2, "store": false})
}

/// With a result's image behind another one in the body, which comes before it in the conversation.
fn of_anthropic(url: &str) -> Value {
    let mine = json!({"type": "base64", "media_type": "image/png", "data": base64(&png(8, 8, 1))});
    let parts = json!([
        {"type": "image", "source": mine},
        {"type": "tool_result", "tool_use_id": "toolu_1",
         "content": [{"type": "image", "source": {"type": "url", "url": url}}]},
    ]);
    json!({"max_tokens": 2, "messages": [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]},
        {"role": "user", "content": parts},
    ]})
}

/// Responses and Messages name images by address like chats do; Ollama's API has no addresses.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_api_are_fetched_by_the_same_rules() {
    let (address, n_connections) = host().await;
    let there = format!("http://{address}/a.png");
    let closed = server(LLAMA, |_| {}).await;
    let answer = closed.post("/v1/responses", of_responses(&there)).await;
    answer.is_refusal("unsupported_content", "input[0].content[1].type");
    let names_it = |answer: &Answer, place: &str| {
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.text.contains(place), "{}", answer.text);
    };
    let place = "messages[2].content[1].content[0].type";
    names_it(&closed.post("/v1/messages", of_anthropic(&there)).await, place);
    let ollama = json!({"messages": [{"role": "user", "content": "Look", "images": [there]}], "stream": false});
    let answer = closed.post("/api/chat", ollama.clone()).await;
    names_it(&answer, "messages[0].images[0]: an address is not taken here; send the image itself as base64");
    let generate = json!({"prompt": "Look", "images": [there]});
    names_it(&closed.post("/api/generate", generate).await, "images[0]: an address");
    let broken = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "user", "content": "Look", "images": [base64(&png(8, 8, 1)), base64(b"no image")]}]});
    names_it(&closed.post("/api/chat", broken).await, "messages[1].images[1]");
    assert_eq!(n_connections.load(Ordering::SeqCst), 0, "nothing is fetched by default");
    closed.stop().await;

    let open = server(LLAMA, |setup| {
        setup.gateway.media_hosts = vec![MediaHost::new(&address.to_string()).expect("an address")];
    })
    .await;
    for (path, body) in [("/v1/responses", of_responses(&there)), ("/v1/messages", of_anthropic(&there))] {
        let answer = open.post(path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert_eq!(n_connections.load(Ordering::SeqCst), 2);
    let answer = open.post("/v1/responses/input_tokens", of_responses(&there)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let missing = format!("http://{address}/missing.png");
    let answer = open.post("/v1/responses", of_responses(&missing)).await;
    answer.is_refusal("invalid_image_url", "input[0].content[1].type");
    names_it(&open.post("/v1/messages", of_anthropic(&missing)).await, place);
    let n_before = n_connections.load(Ordering::SeqCst);
    let elsewhere = "http://127.0.0.2:9/a.png";
    open.post("/v1/responses", of_responses(elsewhere)).await.is_refusal("unsupported_content", "input[0].content[1]");
    names_it(&open.post("/v1/messages", of_anthropic(elsewhere)).await, place);
    assert_eq!(n_connections.load(Ordering::SeqCst), n_before);
    open.stop().await;
}

/// `file://` names what lies below the operator's folder, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_read_from_the_operators_folder_only() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().canonicalize().expect("it is there");
    std::fs::create_dir_all(root.join("in/sub")).expect("a writable folder");
    std::fs::write(root.join("in/sub/a.png"), png(40, 30, 1)).expect("a writable folder");
    std::fs::write(root.join("b.png"), png(40, 30, 1)).expect("a writable folder");
    #[cfg(unix)]
    std::os::unix::fs::symlink(root.join("b.png"), root.join("in/link.png")).expect("links can be made");
    let closed = server(LLAMA, |_| {}).await;
    let answer = closed.post("/v1/chat/completions", linked("file://sub/a.png")).await;
    answer.is_refusal("unsupported_content", "messages[0].content[1].type");
    closed.stop().await;

    let open = server(LLAMA, |setup| setup.gateway.media_path = Some(root.join("in"))).await;
    let sent = ask(&open, &body(Some(image_part(&png(40, 30, 1))), "what is it?")).await;
    for url in ["file://sub/a.png", "file:////sub//a.png", "FILE:///sub/a.png"] {
        is_said_again(&sent, &ask(&open, &linked(url)).await);
    }
    for url in [
        "file://sub/missing.png",
        "file://../b.png",
        "file://sub/../../b.png",
        "file://link.png",
        "file://sub",
        "file://",
    ] {
        let answer: Answer = open.post("/v1/chat/completions", linked(url)).await;
        answer.is_refusal("invalid_image_url", "messages[0].content[1].type");
        assert!(!answer.text.contains("in/"), "{}", answer.text);
    }
    assert_eq!(open.post("/v1/responses", of_responses("file://sub/a.png")).await.status, 200);
    assert_eq!(open.post("/v1/messages", of_anthropic("file://sub/a.png")).await.status, 200);
    open.stop().await;
}

type Scored<'a> = (&'a str, f64);

/// Each token of an answer with its log-probability, and the likely ones there.
fn tokens(answer: &Value) -> Vec<(&str, f64, Vec<Scored<'_>>)> {
    let logprob = |entry: &Value| entry["logprob"].as_f64().expect("a number");
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().expect("entries");
    entries
        .iter()
        .map(|entry| {
            let top = entry["top_logprobs"].as_array().expect("the likely ones");
            let top = top.iter().map(|one| (one["token"].as_str().expect("a token"), logprob(one))).collect();
            (entry["token"].as_str().expect("a token"), logprob(entry), top)
        })
        .collect()
}

/// The same answer up to what rounding may change: where they part, both tokens were as likely.
fn are_alike(alone: &Value, beside: &Value) {
    for (i, (one, other)) in tokens(alone).iter().zip(&tokens(beside)).enumerate() {
        let differs = |what: &str| format!("token {i}: {what}: {one:?} alone, {other:?} beside others");
        if one.0 != other.0 {
            assert!(i > 0, "{}", differs("the first"));
            let there = one.2.iter().find(|(token, _)| *token == other.0);
            assert!(there.is_some_and(|(_, logprob)| one.1 - logprob < 0.2), "{}", differs("no tie"));
            return;
        }
        assert!((one.1 - other.1).abs() < 0.2, "{}", differs("another probability"));
    }
}

/// Requests with images run beside those of text in one pool of cells, also one that is too small for all of them, and
/// each says what it says alone.
#[tokio::test(flavor = "multi_thread")]
async fn requests_with_images_run_beside_requests_of_text() {
    for (model, n_ctx) in [(LLAMA, 1024), (QWEN, 1024), (LLAMA, 256)] {
        let server = server(model, |setup| {
            setup.engine.n_ctx = Some(n_ctx);
            setup.engine.kv_layout = KvLayout::Unified;
        })
        .await;
        let parts = [Some(image_part(&png(64, 32, 5))), None, Some(image_part(&png(32, 64, 90))), None];
        let bodies: Vec<Value> = (parts.into_iter().enumerate())
            .map(|(i, part)| {
                let mut body = body(part, &format!("question number {i}"));
                (body["max_tokens"], body["cache_prompt"]) = (json!(40), json!(false));
                body
            })
            .collect();
        let mut alone = Vec::new();
        for body in &bodies {
            alone.push(ask(&server, body).await);
        }
        let together = futures_util::future::join_all(bodies.iter().map(|body| ask(&server, body))).await;
        for (alone, beside) in alone.iter().zip(&together) {
            assert_eq!(usage(alone).0, usage(beside).0);
            are_alike(alone, beside);
        }
        let streamed: Events = server.stream("/v1/chat/completions", bodies[0].clone()).await;
        assert!(!streamed.text(0, "content").is_empty());
        server.idle().await;
        server.stop().await;
    }
}

/// Clients that leave free what they held, wherever their image was.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_image() {
    let server = server(LLAMA, |_| {}).await;
    for i in 0..6u8 {
        let mut body = body(Some(image_part(&png(300, 200, i))), "go on");
        (body["max_tokens"], body["stream"]) = (json!(800), json!(true));
        let client = server.client.post(server.url("/v1/chat/completions")).json(&body).send();
        // Some leave while the image is decoded, some while it is encoded, some behind it.
        let wait = std::time::Duration::from_millis(u64::from(i) * 15);
        let _ = tokio::time::timeout(wait, client).await;
    }
    server.idle().await;
    assert_eq!(server.chat("hi", json!({"max_tokens": 2})).await.status, 200);
    server.stop().await;
}
