//! Prefixes that the operator named: computed at start, shared by all tenants, kept for the next start; and what tenants
//! don't share (T-C5 of the gateway's contract).

use crate::prefixes::{asked, check, stats, words};
use crate::support::served::Served;
use crate::support::{Answer, PATIENCE, Server, chat_body};
use crate::tiny_model::{GENERATORS, answer, start, tokens};
use hearth::chat::{ChatPrompt, Message, Prompt, Role};
use hearth::engine::config::{DraftMode, KvLayout, PrefixConfig, PrefixText};
use hearth::engine::{Engine, EngineConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SYSTEM: &str = "You are a patient assistant in a small shop. You answer in short sentences, you know all the prices, \
    you never promise what the shop can't hold, and you ask when you aren't sure what somebody wants.";

fn named(text: PrefixText) -> impl Fn(&mut EngineConfig) {
    move |config| config.prefixes = vec![PrefixConfig { name: "one".into(), text: text.clone() }]
}

fn system() -> PrefixText {
    PrefixText::Chat(ChatPrompt::new(vec![Message::new(Role::System, SYSTEM)]))
}

/// A raw prompt of at least `n` tokens.
fn story(n: usize) -> String {
    const WORDS: [&str; 8] = ["river", "house", "garden", "letter", "island", "window", "morning", "people"];
    (0..n).map(|i| WORDS[(i * i + i / 3) % 8]).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_named_prefix_is_there_before_the_first_request_and_for_every_tenant() {
    let engine = start("hearth-demo", named(system())).await;
    for (partition, text) in [(1, "What is a pear?"), (2, "Are you open?"), (3, "Thank you.")] {
        let messages = vec![Message::new(Role::System, SYSTEM), Message::new(Role::User, text)];
        let mut request = asked(&[], 8);
        (request.prompt, request.partition) = (Prompt::Chat(ChatPrompt::new(messages)), partition);
        let usage = answer(&engine, request).await.expect("an answer").usage;
        let computed = usage.prompt_tokens - usage.cached_tokens;
        assert!(usage.cached_tokens > 40 && computed < 30, "tenant {partition}: {usage:?}");
    }
    // What they said themselves is theirs.
    let messages = vec![Message::new(Role::System, SYSTEM), Message::new(Role::User, "What is a pear?")];
    let mut request = asked(&[], 8);
    (request.prompt, request.partition) = (Prompt::Chat(ChatPrompt::new(messages)), 4);
    let usage = answer(&engine, request).await.expect("an answer").usage;
    assert!(usage.prompt_tokens - usage.cached_tokens >= 5, "{usage:?}");
}

#[tokio::test]
async fn every_kind_of_memory_begins_at_a_named_prefix() {
    for model in GENERATORS {
        for layout in [KvLayout::Unified, KvLayout::Split] {
            let text = story(100);
            let engine = start(model, |config| {
                named(PrefixText::Prompt(text.clone()))(config);
                (config.n_slots, config.kv_layout) = (2, layout);
            })
            .await;
            let prompt = [tokens(&engine, &text).await, words(&engine, 20, 5).await].concat();
            for partition in [1, 2] {
                let mut request = asked(&prompt, 4);
                request.partition = partition;
                let got = answer(&engine, request).await.expect("an answer");
                let computed = got.usage.prompt_tokens - got.usage.cached_tokens;
                assert!(computed <= 21, "{model} {layout:?}: {computed} computed");
                check(&engine, &prompt, &got, model).await;
            }
        }
    }
}

async fn first_answer(engine: &Engine) -> (String, u32) {
    let prompt = [tokens(engine, &story(200)).await, words(engine, 20, 5).await].concat();
    let got = answer(engine, asked(&prompt, 8)).await.expect("an answer");
    (got.text, got.usage.prompt_tokens - got.usage.cached_tokens)
}

fn states(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("a folder").flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "prefix")).collect()
}

#[tokio::test]
async fn a_restart_finds_what_was_kept_and_does_without_what_was_damaged() {
    for model in ["tiny/tiny-llama", "tiny/tiny-jamba", "tiny/tiny-gemma2"] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let begin = || {
            start(model, |config| {
                named(PrefixText::Prompt(story(200)))(config);
                config.prefix_store = Some(dir.path().to_owned());
            })
        };
        let engine = begin().await;
        let (said, computed) = first_answer(&engine).await;
        assert!(computed < 50, "{model}: {computed}");
        engine.close().await;
        let files = states(dir.path());
        assert_eq!(files.len(), 1, "{files:?}");
        // What is written takes the place of another file.
        let written = || std::fs::metadata(&files[0]).map(|file| file.ino()).expect("a file");
        let at_first = written();
        // Read, not written again.
        let engine = begin().await;
        assert_eq!(first_answer(&engine).await, (said.clone(), computed), "{model}");
        assert_eq!(written(), at_first);
        engine.close().await;
        // Damaged in the middle: noticed, computed anew, mended.
        let good = std::fs::read(&files[0]).expect("a file");
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 0x55;
        std::fs::write(&files[0], &bad).expect("a writable file");
        let engine = begin().await;
        assert_eq!(first_answer(&engine).await, (said.clone(), computed), "{model}");
        assert_ne!(std::fs::read(&files[0]).expect("a file"), bad);
        engine.close().await;
        // Another shape of the context has a file of its own.
        let engine = start(model, |config| {
            named(PrefixText::Prompt(story(200)))(config);
            config.prefix_store = Some(dir.path().to_owned());
            config.n_ctx = Some(2048);
        })
        .await;
        assert_eq!(first_answer(&engine).await.0, said, "{model}");
        assert_eq!(states(dir.path()).len(), 2);
        engine.close().await;
        // In a folder that has room for one, the one that was not used makes room.
        let n_bytes = states(dir.path()).iter().map(|path| path.metadata().expect("a file").len()).max();
        let engine = start(model, |config| {
            named(PrefixText::Prompt(story(200)))(config);
            config.prefix_store = Some(dir.path().to_owned());
            config.prefix_store_bytes = n_bytes.expect("two");
            config.n_ctx = Some(2048);
        })
        .await;
        assert_eq!(first_answer(&engine).await.0, said, "{model}");
        assert!(states(dir.path()).len() == 1 && !files[0].exists(), "{model}");
    }
}

/// The first answer of a served demo model to a chat behind that system message: its text, and the prompt's tokens and those
/// of them that were computed for it. The server is stopped as a supervisor does it.
async fn first_of_served(arguments: &[&str], system: &str) -> (String, [u64; 2]) {
    let started = ["models/hearth-demo.gguf", "--alias", "hearth-demo", "--ctx-size", "4096"];
    let mut served = Served::of(&[&started, arguments].concat());
    let messages = json!([{ "role": "system", "content": system }, { "role": "user", "content": "What is the capital of France?" }]);
    let body = json!({ "model": "hearth-demo", "messages": messages, "temperature": 0, "max_tokens": 16 });
    let client = reqwest::Client::builder().timeout(6 * PATIENCE).build().expect("a client");
    let request = client.post(format!("{}/v1/chat/completions", served.url)).json(&body);
    let answer = Answer::of(request.send().await.expect("an answer")).await;
    let text = answer.content();
    let n_prompt = answer.json()["usage"]["prompt_tokens"].as_u64().expect("a count");
    let pid = i32::try_from(served.pid()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::TERM).expect("it lives");
    assert!(served.ended(PATIENCE), "it ends by itself, and well");
    (text, [n_prompt, n_prompt - cached(&answer)])
}

/// Mark 7: a prefix of 2,000 tokens outlives the process that computed it.
#[tokio::test]
async fn a_restarted_server_computes_less_than_fifty_tokens_of_a_kept_prefix() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let system = story(1600);
    let settings = dir.path().join("hearth.toml");
    std::fs::write(&settings, format!("[[prefix]]\nname = \"house\"\nsystem = {system:?}\n"))
        .expect("a writable folder");
    let store = dir.path().join("store");
    let [config, folder] = [&settings, &store].map(|path| path.to_str().expect("a plain path"));
    let plain = first_of_served(&[], &system).await;
    let [n_prompt, computed] = plain.1;
    assert!(computed == n_prompt && (1900..2200).contains(&n_prompt), "{n_prompt} tokens, {computed} computed");
    let with_store = ["--config", config, "--prefix-store", folder];
    let mut written = Vec::new();
    for run in ["first", "second"] {
        let (text, [n, computed]) = first_of_served(&with_store, &system).await;
        assert!(n == n_prompt && computed < 50, "{run}: {computed} of {n} computed");
        assert_eq!(text, plain.0, "{run}");
        let files = states(&store);
        assert_eq!(files.len(), 1, "{files:?}");
        // What is written takes the place of another file.
        written.push(std::fs::metadata(&files[0]).expect("a file").ino());
    }
    assert_eq!(written[0], written[1], "the second start read what the first one wrote");
}

/// Heads have memory of their own: the model's is the same with them and without, and so is what is kept of it.
#[tokio::test]
async fn what_was_kept_without_a_files_heads_is_good_with_them() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().to_owned();
    let begin = |mode: DraftMode| {
        let path = path.clone();
        start("tiny/tiny-glm4moe", move |config| {
            named(PrefixText::Prompt(story(200)))(config);
            config.prefix_store = Some(path);
            (config.draft.mode, config.draft.always) = (mode, true);
        })
    };
    let mut said = Vec::new();
    for mode in [DraftMode::None, DraftMode::Auto, DraftMode::None] {
        let engine = begin(mode).await;
        said.push(first_answer(&engine).await);
        let is_drafted = engine.stats().await.expect("stats").n_drafted > 0;
        assert_eq!(is_drafted, mode == DraftMode::Auto);
        engine.close().await;
        assert_eq!(states(dir.path()).len(), 1, "one file for all");
    }
    // Rows of drafts beside them may round a token otherwise.
    assert!(said[0] == said[2] && said[0].1 == said[1].1 && said[0].1 < 50, "{said:?}");
}

#[tokio::test]
async fn a_folder_that_cant_be_used_is_done_without() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let engine = start("tiny/tiny-llama", |config| {
        named(PrefixText::Prompt(story(200)))(config);
        config.prefix_store = Some(file.path().to_owned());
    })
    .await;
    assert!(first_answer(&engine).await.1 < 50);
}

#[tokio::test]
async fn a_prefix_that_does_not_fit_is_left_out() {
    let engine = start("tiny/tiny-llama", |config| {
        named(PrefixText::Prompt(story(3000)))(config);
        config.n_ctx = Some(512);
    })
    .await;
    let prompt = words(&engine, 30, 1).await;
    assert_eq!(answer(&engine, asked(&prompt, 4)).await.expect("an answer").usage.cached_tokens, 0);
    assert_eq!(stats(&engine).await.saved_bytes, 0);
}

async fn ask(server: &Server, key: &str, text: &str) -> Answer {
    let request = server.client.post(server.url("/v1/chat/completions")).bearer_auth(key);
    Answer::of(request.json(&chat_body(text, json!({}))).send().await.expect("an answer")).await
}

fn cached(answer: &Answer) -> u64 {
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
}

#[tokio::test]
async fn t_c5_a_tenant_finds_nothing_of_anothers_prefix() {
    let server = Server::with(|setup| {
        setup.key("sk-a");
        setup.key("sk-b");
    })
    .await;
    let long = "x y ".repeat(500);
    assert_eq!(cached(&ask(&server, "sk-a", &long).await), 0);
    assert!(cached(&ask(&server, "sk-a", &long).await) > 1900);
    assert_eq!(cached(&ask(&server, "sk-b", &long).await), 0);
    // In turn, with the slots of both idle, and at once.
    for round in 0..20 {
        let text = format!("{round} {long}");
        assert!(cached(&ask(&server, "sk-a", &text).await) < 40, "round {round}");
        assert!(cached(&ask(&server, "sk-b", &text).await) < 40, "round {round}");
        let text = format!("at once {round} {long}");
        let (a, b) = tokio::join!(ask(&server, "sk-a", &text), ask(&server, "sk-b", &text));
        assert!(cached(&a) < 40 && cached(&b) < 40, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t_c5_no_answer_says_what_another_tenant_asked() {
    const REQUESTS: usize = 2000;
    let server = Server::with(|setup| {
        setup.key("sk-a");
        setup.key("sk-b");
    })
    .await;
    let server = &server;
    let shared = "a beginning that all of them have. ".repeat(8);
    let clients = (0..8usize).map(|client| {
        let shared = &shared;
        async move {
            for at in 0..REQUESTS / 8 {
                let key = ["sk-a", "sk-b"][(client + at) % 2];
                let said = format!("{shared}nonce {client}-{at} of {key}.");
                let answer = ask(server, key, &said).await;
                assert_eq!(answer.content(), said);
            }
        }
    });
    let all = futures_util::future::join_all(clients);
    tokio::time::timeout(Duration::from_secs(300), all).await.expect("they all end");
    // One that runs alone computes a row a step, but for its prompt: a tenth more.
    let stats = server.engine.stats().await.expect("stats");
    assert!(stats.n_decode_rows * 2 > stats.n_decode_calls * 3, "they took turns: {stats:?}");
}
