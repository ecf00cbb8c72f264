//! Clients' JSON, upstreams' streams, and what goes from one dialect to another, fuzzed (F1, F5, F13, F17).

use super::remote::{Kind, Reader, Said, Wire};
use super::{Answer, Chunks, Fault, Read, anthropic, media, ollama, openai, responses};
use crate::chat::{ChatRequest, Delta, Finish, Role, ToolCallDelta, Usage};
use crate::engine::Done;
use crate::fuzz::{Shape, Target, corpus, fuzz, headed, outcome};
use serde_json::Value;

/// Names and words of requests.
const WORDS: &str = "model¦messages¦role¦content¦user¦system¦assistant¦tool¦developer¦name¦type¦text¦image_url¦url¦\
    input_audio¦data:image/png;base64,aGk=¦https://example.com/a.png¦tools¦function¦parameters¦tool_choice¦\
    auto¦none¦required¦allowed_tools¦tool_calls¦tool_call_id¦arguments¦{\"a\":1}¦max_tokens¦\
    max_completion_tokens¦n¦best_of¦stop¦stream¦stream_options¦include_usage¦logprobs¦top_logprobs¦\
    logit_bias¦seed¦temperature¦top_p¦top_k¦min_p¦samplers¦response_format¦json_schema¦json_object¦schema¦\
    grammar¦regex¦structured_outputs¦guided_choice¦chat_template_kwargs¦reasoning_effort¦low¦\
    reasoning_content¦functions¦function_call¦user¦metadata¦store¦prediction¦input¦instructions¦\
    previous_response_id¦item_reference¦function_call_output¦custom¦namespace¦input_schema¦tool_use¦\
    tool_result¦thinking¦budget_tokens¦cache_control¦ephemeral¦source¦base64¦media_type¦image/png¦\
    stop_sequences¦options¦num_predict¦num_ctx¦keep_alive¦5m¦format¦json¦images¦prompt¦suffix¦raw¦\
    encoding_format¦dimensions";

fn came_out<T>(read: Result<Read<T>, Fault>) -> u64 {
    match read {
        Ok(read) => outcome(read.ignored.header().map_or("taken", |_| "taken in part")),
        Err(fault) => {
            let (param, code) = (fault.param.unwrap_or_default(), fault.code.unwrap_or_default());
            assert!(param.len() + fault.message.len() < 4096, "a fault says too much: {:.200}", fault.message);
            outcome(&format!("{code} {param} {}", fault.message))
        }
    }
}

/// Reads a body as an endpoint does; whatever it holds, in bounded words.
fn read(endpoint: &str, body: &[u8]) -> u64 {
    match endpoint {
        "chat" => came_out(openai::chat_request(body)),
        "completion" => came_out(openai::completion_request(body)),
        "native" => came_out(openai::native_request(body)),
        "infill" => came_out(openai::infill_request(body)),
        "lora" => came_out(openai::lora_request(body)),
        "embeddings" => came_out(openai::embeddings_request(body)),
        "embedding" => came_out(openai::embedding_request(body)),
        "classify" => came_out(openai::classify_request(body)),
        "rerank" => came_out(openai::rerank_request(body)),
        "score" => came_out(openai::score_request(body)),
        "tokenize" => came_out(openai::tokenize_request(body)),
        "detokenize" => came_out(openai::detokenize_request(body)),
        "render" => came_out(openai::render_request(body)),
        "responses" => {
            let mut read = responses::request(body);
            let chat = read.as_mut().map(|read| {
                let missing = read.request.resolve(|_| None).is_err();
                (missing, read.request.converse(&[], "base").is_ok())
            });
            let chat = outcome(&format!("{chat:?}").chars().take(20).collect::<String>());
            came_out(read) ^ chat
        }
        "messages" => came_out(anthropic::messages_request(body)),
        "count" => came_out(anthropic::count_request(body)),
        "ollama-chat" => came_out(ollama::chat_request(body)),
        "ollama-generate" => came_out(ollama::generate_request(body)),
        "ollama-embed" => came_out(ollama::embed_request(body)),
        "ollama-embeddings" => came_out(ollama::embeddings_request(body)),
        "ollama-named" => came_out(ollama::named_request(body)),
        "ollama-pull" => came_out(ollama::pull_request(body)),
        _ => 0,
    }
}

#[test]
fn requests() {
    let target = Target {
        name: "requests",
        seeds: Vec::new(),
        shape: Shape::Json,
        words: &WORDS.split('¦').collect::<Vec<_>>(),
    };
    fuzz(&target, |input| {
        let (endpoint, body) = headed(input);
        read(endpoint, body) ^ outcome(endpoint)
    });
}

/// The chat that a body asks for, in whichever dialect.
fn chat(endpoint: &str, body: &[u8]) -> Option<ChatRequest> {
    match endpoint {
        "chat" => Some(openai::chat_request(body).ok()?.request.request),
        "messages" => Some(anthropic::messages_request(body).ok()?.request.request),
        "ollama-chat" => Some(ollama::chat_request(body).ok()?.request.request),
        "responses" => Some(responses::request(body).ok()?.request.converse(&[], "base").ok()?.0),
        _ => None,
    }
}

/// What is sent to an upstream is what its dialect's reader takes, and to send that again changes nothing. Another hearth reads
/// what the client said.
#[test]
fn translations() {
    let target = Target {
        name: "translations",
        seeds: corpus("requests"),
        shape: Shape::Json,
        words: &WORDS.split('¦').collect::<Vec<_>>(),
    };
    fuzz(&target, |input| {
        let (endpoint, body) = headed(input);
        let Some(request) = chat(endpoint, body) else { return outcome(endpoint) };
        // Ollama's clients load a model with such a chat, and nothing goes to an upstream.
        if request.prompt.messages.is_empty() {
            return 0;
        }
        let mut all = outcome(endpoint);
        for (n, kind) in [Kind::OpenAi, Kind::Hearth, Kind::Anthropic].into_iter().enumerate() {
            let wire = Wire { kind, model: "there".into(), newer_limit: false };
            let came = match wire.chat(&request) {
                Err(unsupported) => outcome(unsupported.0),
                Ok(sent) => {
                    there_and_back(&wire, &request, &sent.body);
                    outcome(&sent.dropped.join(" "))
                }
            };
            all = all.rotate_left(7) ^ came.wrapping_add(n as u64);
        }
        all
    });
}

fn there_and_back(wire: &Wire, request: &ChatRequest, body: &[u8]) {
    let kind = wire.kind;
    let shown = |body: &[u8]| String::from_utf8_lossy(body).chars().take(400).collect::<String>();
    let read = |body: &[u8]| match kind {
        Kind::Anthropic => anthropic::messages_request(body).map(|read| read.request.request),
        _ => openai::chat_request(body).map(|read| read.request.request),
    };
    let first =
        read(body).unwrap_or_else(|fault| panic!("{kind:?} is sent what it would refuse: {fault:?}: {}", shown(body)));
    let again =
        wire.chat(&first).unwrap_or_else(|error| panic!("{kind:?} is not sent again: {error:?}: {}", shown(body)));
    let second = read(&again.body).expect("what was read once is read twice");
    let (first, second) = (format!("{first:?}"), format!("{second:?}"));
    assert!(first == second, "{kind:?} reads something else: {}", difference(&first, &second));
    if kind == Kind::Hearth {
        let mut sent = request.clone();
        (sent.model, sent.stream, sent.include_usage) = (Some(wire.model.clone()), true, true);
        // What concerns this server's own books and cache stays here.
        (sent.end_user, sent.cache) = (None, Default::default());
        for message in &mut sent.prompt.messages {
            if message.role != Role::Assistant && message.content.is_none() {
                message.content = Some(String::new());
            }
        }
        let all =
            |tools: &[crate::chat::Tool], names: &Vec<String>| tools.iter().all(|tool| names.contains(&tool.name));
        sent.prompt.callable = sent.prompt.callable.take().filter(|names| !all(&sent.prompt.tools, names));
        let sent = format!("{sent:?}");
        assert!(sent == first, "another hearth reads something else: {}", difference(&sent, &first));
    }
}

/// Where two texts part, with some of each.
fn difference(one: &str, other: &str) -> String {
    let at = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count().saturating_sub(60);
    let some = |text: &str| {
        String::from_utf8_lossy(&text.as_bytes()[at.min(text.len())..]).chars().take(200).collect::<String>()
    };
    format!("{:?} and {:?}", some(one), some(other))
}

/// All that a stream says, handed over in pieces; adjoining deltas as one.
fn said(kind: Kind, stream: &[u8], mut sizes: impl Iterator<Item = usize>) -> (Vec<Said>, Option<String>) {
    let (mut reader, mut out, mut rest) = (Reader::new(kind, 2), Vec::new(), stream);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(sizes.next().unwrap_or(1).clamp(1, rest.len()));
        rest = more;
        if let Err(fault) = reader.push(piece, &mut out) {
            return (out, Some(format!("{fault:?}")));
        }
    }
    (out, None)
}

/// An upstream's stream says the same however it is cut.
#[test]
fn streams() {
    let words = [
        "data: ",
        "\n\n",
        "\r\n",
        "\r",
        ":",
        "event: ",
        "[DONE]",
        "\u{feff}",
        "{\"choices\":[{\"index\":0,\"delta\":",
        "}]}",
        "\"content\":",
        "\"tool_calls\":",
        "\"finish_reason\":",
        "\"usage\":",
        "\"error\":",
        "\"index\":",
        "\"message_start\"",
        "\"content_block_start\"",
        "\"content_block_delta\"",
        "\"message_delta\"",
        "\"message_stop\"",
        "\"thinking\"",
        "\"tool_use\"",
        "\"input_json_delta\"",
        "\"logprobs\":",
        "null",
        "9223372036854775808",
        "-1",
    ];
    let target = Target { name: "streams", seeds: Vec::new(), shape: Shape::Text, words: &words };
    fuzz(&target, |input| {
        let (kind, stream) = headed(input);
        let kind = if kind == "anthropic" { Kind::Anthropic } else { Kind::OpenAi };
        let whole = said(kind, stream, std::iter::once(stream.len()));
        let mut n = stream.len();
        let cut = said(
            kind,
            stream,
            std::iter::from_fn(|| {
                n = n.wrapping_mul(31).wrapping_add(7);
                Some(n % 61)
            }),
        );
        // Numbers that are none are equal to nothing.
        assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
        let kinds: String = whole.0.iter().rev().take(6).map(|said| format!("{said:.6?}.")).collect();
        outcome(&format!("{kinds} {:?}", whole.1))
    });
}

/// An answer that we write is the answer that another hearth reads.
#[test]
fn answers() {
    let seeds = vec![b"hello \xc3\xa9\0\x01\x02world\"\\\n{\"a\":1}".to_vec(), vec![0; 40], (0..=255).collect()];
    let target =
        Target { name: "answers", seeds, shape: Shape::Bytes, words: &["data: [DONE]\n\n", "\r\n", "\u{2028}"] };
    fuzz(&target, |input| {
        let head = openai::Head { id: "i".into(), created: 1, model: "m".into(), fingerprint: "f".into() };
        let style = openai::ChatStyle { include_usage: true, ..Default::default() };
        let mut chunks = openai::ChatChunks::new(&head, 1, style);
        let (mut out, mut expected, mut n_calls) = (Vec::new(), Answer::default(), 0);
        chunks.open(&mut out);
        for piece in input.chunks(9) {
            let text = String::from_utf8_lossy(&piece[1..]).into_owned();
            let delta = match piece[0] % 8 {
                0..=3 if n_calls == 0 => Delta { content: text, ..Default::default() },
                4 if n_calls == 0 => Delta { reasoning: text, ..Default::default() },
                5 if n_calls < 100 => {
                    n_calls += 1;
                    let opening = Some((format!("call_{n_calls}"), "f".to_owned()));
                    let call = ToolCallDelta { index: n_calls - 1, opening, arguments: text };
                    Delta { tool_calls: vec![call], ..Default::default() }
                }
                _ if n_calls > 0 => {
                    let call = ToolCallDelta { index: n_calls - 1, opening: None, arguments: text };
                    Delta { tool_calls: vec![call], ..Default::default() }
                }
                _ => Delta::default(),
            };
            chunks.delta(0, &delta, &mut out);
            expected.push(delta);
        }
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4, ..Default::default() };
        let done = Done { finish: Finish::EndOfTurn, usage, timings: Default::default() };
        chunks.finish(0, &done, &mut out);
        chunks.end(&usage, &mut out);
        expected.finish = Finish::EndOfTurn;
        let mut n = input.len();
        let (all, fault) = said(
            Kind::Hearth,
            &out,
            std::iter::from_fn(|| {
                n = n.wrapping_mul(17).wrapping_add(3);
                Some(n % 97)
            }),
        );
        let mut answer = Answer::default();
        let mut ends = 0;
        for said in all {
            match said {
                Said::Delta(_, delta) => answer.push(delta),
                Said::Finish(_, finish) => answer.finish = finish,
                Said::Usage(counts) => assert_eq!(counts, usage),
                Said::End => ends += 1,
            }
        }
        assert_eq!((answer, fault, ends), (expected, None, 1));
        u64::from(n_calls) << 8 | u64::from(input.len().checked_ilog2().unwrap_or(0))
    });
}

#[test]
fn data_urls() {
    let seeds = ["data:image/png;base64,iVBORw0KGgo=", "DATA:image/PNG;x=y;base64,AQ", "https://x/y.png", "file:///a"];
    let seeds = seeds.map(|seed| seed.as_bytes().to_vec()).to_vec();
    let words = ["data:", ";base64,", "image/", ",", ";", "=", "https://", "é", "\n"];
    let target = Target { name: "data_urls", seeds, shape: Shape::Text, words: &words };
    fuzz(&target, |input| {
        let text = String::from_utf8_lossy(input);
        let taken = media::data_url(&text).map(|(mime, data)| {
            assert!(text.ends_with(data) && !mime.contains(';'));
            match media::decode("p", data) {
                Ok(bytes) => u64::from(!bytes.is_empty()),
                Err(fault) => outcome(&fault.message),
            }
        });
        taken.unwrap_or(7) ^ u64::from(media::is_elsewhere(&text)) << 32
    });
}

/// Deltas that no sane engine sends are written all the same, as whole events (F11).
#[test]
fn engines_deltas() {
    let call = ToolCallDelta { index: 0, opening: Some(("c".into(), "f".into())), arguments: "{\"a\":".into() };
    let more = ToolCallDelta { index: 0, opening: None, arguments: "1}".into() };
    let text =
        Delta { content: "a".into(), reasoning: "b".into(), n_tokens: 2, tokens: vec![1, 2], ..Delta::default() };
    let calls = Delta { tool_calls: vec![call.clone(), more, ToolCallDelta { index: 1, ..call }], ..Delta::default() };
    let seeds: Vec<Vec<u8>> = [vec![text.clone(), calls.clone()], vec![calls, text.clone()], vec![text]]
        .iter()
        .map(|deltas| postcard::to_stdvec(deltas).expect("it is encoded"))
        .collect();
    let target = Target { name: "engines_deltas", seeds, shape: Shape::Bytes, words: &["{", "\"", "\\", "\0"] };
    fuzz(&target, |input| {
        let Ok(deltas) = postcard::from_bytes::<Vec<Delta>>(input) else { return 0 };
        let usage = Usage { prompt_tokens: u32::MAX, completion_tokens: u32::MAX, ..Default::default() };
        let mut n_bytes = 0;
        let asked = responses::request(br#"{"input":"x"}"#).expect("a good request").request;
        let openai_head = || openai::Head { id: "i".into(), created: 1, model: "m".into(), fingerprint: "f".into() };
        let head = responses::Head { id: "resp_1".into(), created_at: 1, model: "m".into(), clock: || 1 };
        n_bytes += written(responses::ResponseChunks::new(head, asked), &deltas, usage);
        n_bytes += written(openai::ChatChunks::new(&openai_head(), 1, openai::ChatStyle::default()), &deltas, usage);
        let head = anthropic::Head { id: "msg_1".into(), model: "m".into(), stops: Vec::new() };
        n_bytes += written(anthropic::MessageChunks::new(head, usage), &deltas, usage);
        let mut answer = Answer::default();
        deltas.iter().for_each(|delta| answer.push(delta.clone()));
        answer.usage = usage;
        let style = openai::ChatStyle { with_logprobs: true, ..Default::default() };
        n_bytes += openai::chat_response(&openai_head(), &[answer], &usage, style).len();
        u64::from((n_bytes / 64).checked_ilog2().unwrap_or(0)) << 8 | deltas.len() as u64
    });
}

/// Bytes of a stream that says `deltas`; each event is one JSON value.
fn written<C: Chunks>(mut chunks: C, deltas: &[Delta], usage: Usage) -> usize {
    let mut out = Vec::new();
    chunks.open(&mut out);
    deltas.iter().for_each(|delta| chunks.delta(0, delta, &mut out));
    chunks.finish(0, &Done { finish: Finish::Length, usage, timings: Default::default() }, &mut out);
    chunks.end(&usage, &mut out);
    let text = std::str::from_utf8(&out).expect("UTF-8");
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        assert!(serde_json::from_str::<Value>(data).is_ok(), "{data:.300}");
    }
    out.len()
}
