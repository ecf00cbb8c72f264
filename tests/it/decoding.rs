//! What the worker does with real decodes beyond the next token: constraints, shared prompts, echoes, drafts.

use crate::support::exact::{is_alike, is_exact};
use crate::tiny_model::{GENERATORS, answer, chat, greedy, start, tokens};
use hearth::chat::{Constraint, Finish, Infill, Prompt};
use hearth::engine::config::{EngineConfig, ModelSource, ScriptedConfig};
use hearth::engine::{Engine, EngineMode, Event, Failure, GenerateRequest, TokenizeRequest, fresh_family};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};
use std::sync::Arc;

fn constrained(constraint: Constraint, max_tokens: u32, seed: u32) -> GenerateRequest {
    let Prompt::Chat(mut prompt) = chat("Hello") else { unreachable!("a chat is a chat") };
    prompt.enable_thinking = Some(false);
    let mut request = GenerateRequest::new(Prompt::Chat(prompt));
    request.sampling.temperature = 1.0;
    request.sampling.seed = seed;
    request.output.max_tokens = Some(max_tokens);
    request.output.constraint = Some(constraint);
    request
}

#[tokio::test]
async fn random_weights_of_every_kind_write_what_the_schema_says() {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["north", "south"]}, "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["name", "n", "kind", "tags"]});
    let validator = jsonschema::validator_for(&schema).unwrap();
    for model in GENERATORS {
        let engine = start(model, |_| {}).await;
        for seed in 0..4 {
            let mut request = constrained(Constraint::JsonSchema(schema.to_string()), 300, seed);
            request.output.top_logprobs = (seed == 3).then_some(2);
            let said = answer(&engine, request).await.expect("an answer");
            assert_eq!(said.finish, Some(Finish::EndOfTurn), "{model}: {}", said.text);
            let value: Value =
                serde_json::from_str(&said.text).unwrap_or_else(|error| panic!("{error}: {}", said.text));
            assert!(validator.is_valid(&value), "{model}: {}", said.text);
            if seed == 3 {
                let spelled: Vec<u8> = said.logprobs.iter().flat_map(|entry| entry.bytes.clone()).collect();
                assert_eq!(spelled, said.text.as_bytes(), "{model}");
                assert!(said.logprobs.iter().all(|entry| entry.logprob > -9999.0), "of the model, not of the mask");
            }
        }
    }
}

/// Issue: "1,000 random schemas: every finished answer parses and validates."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_random_schemas_hold() {
    let engine = Arc::new(start("tiny/tiny-llama", |config| config.n_slots = 8).await);
    let outcomes = futures_util::future::join_all((0..8u64).map(|lane| {
        let engine = Arc::clone(&engine);
        async move {
            let (mut n_finished, mut n_cut, mut n_refused) = (0, 0, 0);
            for i in 0..125 {
                let seed = lane * 1000 + i;
                let schema = random_schema(&mut StdRng::seed_from_u64(seed), 0);
                let request = constrained(Constraint::JsonSchema(schema.to_string()), 400, seed as u32);
                match answer(&engine, request).await {
                    Ok(said) if said.finish == Some(Finish::EndOfTurn) => {
                        let value = serde_json::from_str(&said.text);
                        let value: Value = value.unwrap_or_else(|error| panic!("seed {seed}: {error}: {}", said.text));
                        let valid = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
                        let fault = valid.validate(&value).err().map(|error| error.to_string());
                        assert_eq!(fault, None, "seed {seed}: {} against {schema}", said.text);
                        n_finished += 1;
                    }
                    Ok(said) => {
                        assert_eq!(said.finish, Some(Finish::Length), "seed {seed}");
                        n_cut += 1;
                    }
                    Err(Failure::Invalid { code, .. }) if code == "invalid_json_schema" => n_refused += 1,
                    Err(failure) => panic!("seed {seed}: {failure}: {schema}"),
                }
            }
            (n_finished, n_cut, n_refused)
        }
    }))
    .await;
    let sum = outcomes.into_iter().fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
    println!(
        "1,000 random schemas: {} answers finished and valid, {} cut by the limit, {} refused",
        sum.0, sum.1, sum.2
    );
    assert!(sum.0 >= 900 && sum.2 <= 20, "{sum:?}");
}

fn random_schema(rng: &mut StdRng, depth: u32) -> Value {
    let kind = rng.random_range(0..if depth < 3 { 11 } else { 7 });
    match kind {
        0 => json!({"type": "boolean"}),
        1 => {
            let low = rng.random_range(-50..50);
            json!({"type": "integer", "minimum": low, "maximum": low + rng.random_range(0..100)})
        }
        2 => json!({"type": "number", "minimum": 0, "maximum": rng.random_range(1..10)}),
        3 => {
            let least = rng.random_range(0..5);
            json!({"type": "string", "minLength": least, "maxLength": least + rng.random_range(0..10)})
        }
        4 => {
            let values = [json!("rot"), json!(7), Value::Null, json!({"a": [true]}), json!("grün")];
            json!({"enum": values[..rng.random_range(1..5)]})
        }
        5 => {
            let pattern = ["^[a-z]{2,5}$", "^(ab|cd){1,3}x?$", "^[0-9]{3}-[A-F]{2}$"][rng.random_range(0..3)];
            json!({"type": "string", "pattern": pattern})
        }
        6 => {
            let format = ["date", "uuid", "time", "ipv4"][rng.random_range(0..4)];
            json!({"type": "string", "format": format})
        }
        7 => {
            let least = rng.random_range(0..2);
            json!({"type": "array", "items": random_schema(rng, depth + 1), "minItems": least,
                "maxItems": least + rng.random_range(0..3)})
        }
        8 => json!({"anyOf": [random_schema(rng, depth + 1), random_schema(rng, depth + 1), {"type": "null"}]}),
        _ => {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for i in 0..rng.random_range(1..5) {
                let name = format!("{}{i}", ["id", "the name", "größe", "x-y"][rng.random_range(0..4)]);
                properties.insert(name.clone(), random_schema(rng, depth + 1));
                if rng.random_bool(0.6) {
                    required.push(name);
                }
            }
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

#[tokio::test]
async fn choices_of_one_prompt_share_its_computation() {
    for (model, unified) in [("hearth-demo", true), ("tiny/tiny-llama", false), ("tiny/tiny-gemma2", true)] {
        let engine = start(model, |config| {
            config.n_slots = 4;
            config.n_ctx = Some(2048);
            config.kv_layout = if unified { Default::default() } else { hearth::engine::config::KvLayout::Split };
        })
        .await;
        let prompt = tokens(&engine, &"Once upon a time there was a house. ".repeat(12)).await;
        let before = engine.stats().await.unwrap().prompt_tokens_computed;
        let (family, n) = (fresh_family(), 8);
        let requests = (0..n).map(|seed| {
            let mut request = GenerateRequest::new(Prompt::Tokens(prompt.clone()));
            request.sampling.seed = seed;
            request.sampling.ignore_eos = true;
            request.output.max_tokens = Some(6);
            request.family = family;
            answer(&engine, request)
        });
        let said = futures_util::future::join_all(requests).await;
        let computed = engine.stats().await.unwrap().prompt_tokens_computed - before;
        assert!(said.iter().all(|one| one.as_ref().unwrap().usage.completion_tokens == 6), "{model}");
        // Each choice computes the prompt's last token, whose logits it needs.
        assert!(computed <= prompt.len() as u64 + 2 * u64::from(n), "{model}: {computed} for {}", prompt.len());

        let mut alone = GenerateRequest::new(Prompt::Tokens(prompt.clone()));
        (alone.sampling.seed, alone.sampling.ignore_eos, alone.cache_prompt) = (3, true, false);
        alone.output.max_tokens = Some(6);
        let alone = answer(&engine, alone).await.unwrap();
        let shared = &said[3].as_ref().unwrap().text;
        // Random weights differ by rounding between batches, and a sampled token may tip over.
        let same = alone.text.chars().zip(shared.chars()).take_while(|(a, b)| a == b).count();
        assert!(same >= 3, "{model}: sharing changes nothing: {:?} and {shared:?}", alone.text);
    }
}

/// Recurrent and hybrid memories can't go back, so all choices take over what the first holds in front of the last token,
/// also those that get a slot when it is long past.
#[tokio::test]
async fn choices_share_a_prompt_on_memories_that_can_not_go_back() {
    for (model, unified) in [("tiny/tiny-mamba", true), ("tiny/tiny-jamba", true), ("tiny/tiny-jamba", false)] {
        let engine = start(model, |config| {
            config.n_slots = 4;
            config.n_ctx = Some(2048);
            config.kv_layout = if unified { Default::default() } else { hearth::engine::config::KvLayout::Split };
        })
        .await;
        let prompt = tokens(&engine, &"Once upon a time there was a house. ".repeat(12)).await;
        let request = |seed, family| {
            let mut request = GenerateRequest::new(Prompt::Tokens(prompt.clone()));
            (request.sampling.seed, request.sampling.ignore_eos, request.family) = (seed, true, family);
            request.output.max_tokens = Some(6);
            request.cache_prompt = false;
            request
        };
        let before = engine.stats().await.unwrap().prompt_tokens_computed;
        let (family, n) = (fresh_family(), 8);
        let said = (0..n).map(|seed| answer(&engine, request(seed, family)));
        let said = futures_util::future::join_all(said).await;
        let computed = engine.stats().await.unwrap().prompt_tokens_computed - before;
        assert!(said.iter().all(|one| one.as_ref().unwrap().usage.completion_tokens == 6), "{model}");
        // Each choice computes the prompt's last token, whose logits it needs.
        assert_eq!(computed, prompt.len() as u64 - 1 + u64::from(n), "{model} {unified}");
        for seed in 0..n {
            let alone = answer(&engine, request(seed, 0)).await.unwrap();
            let shared = &said[seed as usize].as_ref().unwrap().text;
            // Random weights differ by rounding between batches, and a sampled token may tip over.
            let same = alone.text.chars().zip(shared.chars()).take_while(|(a, b)| a == b).count();
            assert!(same >= 3 || !is_exact(), "{model} {unified}: {:?} and {shared:?}", alone.text);
        }
    }
}

#[tokio::test]
async fn an_echo_tells_the_prompts_tokens_and_what_they_were_worth() {
    let engine = start("hearth-demo", |_| {}).await;
    let text = "Once upon a time there was a little house. ".repeat(20);
    let prompt = tokens(&engine, &text).await;
    for max_tokens in [0, 3] {
        let mut request = greedy(Prompt::Tokens(prompt.clone()), max_tokens);
        request.output.echo = true;
        request.output.top_logprobs = Some(2);
        let mut generation = engine.generate(request.clone()).unwrap();
        let (mut entries, mut n_generated) = (Vec::new(), 0);
        while let Some(event) = generation.next().await {
            match event {
                Event::Delta(delta) => {
                    entries.extend(delta.prompt);
                    n_generated += delta.n_tokens;
                }
                Event::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
        assert_eq!((entries.len(), n_generated), (prompt.len(), max_tokens));
        assert!(entries[1..].iter().all(|entry| entry.logprob < 0.0 && entry.top.len() == 2));
        assert!(entries[1..].iter().all(|entry| entry.top[0].logprob >= entry.logprob - 1e-4));
        // Greedy continuation of the prompt's first half says the same about its first token as the echo does.
        if max_tokens == 3 {
            let half = prompt.len() / 2;
            let mut request = greedy(Prompt::Tokens(prompt[..half].to_vec()), 1);
            request.output.top_logprobs = Some(2);
            let said = answer(&engine, request).await.unwrap();
            let (again, echoed) = (&said.logprobs[0].top[0], &entries[half].top[0]);
            assert!(again.id == echoed.id && (again.logprob - echoed.logprob).abs() < 0.1, "{again:?} {echoed:?}");
        }
    }
}

#[tokio::test]
async fn a_right_prediction_saves_decodes_and_changes_nothing() {
    let engine = start("hearth-demo", |_| {}).await;
    let plain = greedy(Prompt::Text("Once upon a time".into()), 64);
    let decodes = |engine: Engine| async move { engine.stats().await.unwrap().n_decode_calls };
    let n0 = decodes(engine.clone()).await;
    let first = answer(&engine, plain.clone()).await.unwrap();
    let n1 = decodes(engine.clone()).await;
    let mut predicted = plain.clone();
    predicted.output.prediction = Some(first.text.clone());
    let second = answer(&engine, predicted).await.unwrap();
    let n2 = decodes(engine.clone()).await;
    assert!(is_alike(&second.text, &first.text), "{:?} and {:?}", second.text, first.text);
    let usage = second.usage;
    assert!(usage.accepted_prediction_tokens > 30 || !is_exact(), "{usage:?}");
    assert!((n2 - n1) * 2 < n1 - n0, "{} decodes with, {} without", n2 - n1, n1 - n0);

    let mut wrong = plain;
    wrong.output.prediction = Some("A completely different text. ".repeat(20));
    let third = answer(&engine, wrong).await.unwrap();
    assert_eq!(third.text, first.text);
    assert!(third.usage.rejected_prediction_tokens <= 16, "{:?}", third.usage);
}

/// What was said before is tried again where it goes on the same way, and the answer is what it would be without.
#[tokio::test]
async fn an_answer_that_repeats_its_prompt_takes_fewer_decodes_and_is_the_same() {
    let message = "The quick brown fox jumps over the lazy dog and runs away from 27 angry bees.";
    let mut seen = Vec::new();
    for n_draft_max in [0, 16] {
        let mut config =
            EngineConfig::new(ModelSource::Scripted(ScriptedConfig { step_us: 1000, ..ScriptedConfig::default() }));
        config.n_draft_max = n_draft_max;
        let engine = Engine::start(config, EngineMode::InProcess);
        crate::support::ready(&engine).await;
        let one = answer(&engine, greedy(Prompt::Text(message.into()), 200)).await.unwrap();
        seen.push((one.text, one.usage, engine.stats().await.unwrap().n_decode_calls));
    }
    let [(plain, _, n_plain), (drafted, usage, n_drafted)] = &seen[..] else { panic!("two answers") };
    assert_eq!((plain.as_str(), drafted), (message, plain));
    assert!(usage.accepted_draft_tokens > 40 && usage.accepted_draft_tokens <= usage.draft_tokens, "{usage:?}");
    assert_eq!(usage.accepted_prediction_tokens, 0, "the client predicted nothing");
    assert!(n_drafted * 2 < *n_plain, "{n_drafted} decodes with, {n_plain} without");
}

/// The same with a real model, wherever its passage leads.
#[tokio::test]
async fn drafts_change_no_greedy_answer() {
    let passage = "Lily had a red ball and a blue box. She put the ball in the box. ";
    for prompt in [passage.repeat(6), "One day, Tim and Tom went".to_owned(), "a b c ".repeat(30)] {
        let mut texts = Vec::new();
        for n_draft_max in [0, 16] {
            let engine = start("hearth-demo", |config| config.n_draft_max = n_draft_max).await;
            texts.push(answer(&engine, greedy(Prompt::Text(prompt.clone()), 96)).await.unwrap().text);
        }
        assert_eq!(texts[0], texts[1], "{prompt:?}");
    }
}

#[tokio::test]
async fn the_middle_is_filled_with_the_models_own_tokens() {
    let engine = start("tiny/tiny-qwen2moe", |config| config.n_ctx = Some(256)).await;
    let infill = |extra: Vec<(String, String)>| {
        Prompt::Infill(Infill { prefix: "fn a() {".into(), suffix: "}".into(), prompt: "let".into(), extra })
    };
    let count = |prompt: Prompt| {
        let request =
            TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: true, partition: 0 };
        engine.tokenize(request)
    };
    let plain = count(infill(Vec::new())).await.unwrap();
    let text = String::from_utf8(plain.pieces.concat()).unwrap();
    assert_eq!(text, "<|fim_prefix|>fn a() {<|fim_suffix|>}<|fim_middle|>let");
    let extra = vec![("far.rs".into(), "x".repeat(4000)), ("near.rs".into(), "use <|im_end|>".into())];
    let with = count(infill(extra)).await.unwrap();
    let text = String::from_utf8(with.pieces.concat()).unwrap();
    assert!(
        text.starts_with("<|repo_name|>repo\n<|file_sep|>near.rs\nuse <|im_end|>\n<|file_sep|>file\n<|fim_prefix|>"),
        "{text}"
    );
    assert!(with.pieces.iter().all(|piece| piece != b"<|im_end|>"), "no control token from text");
    let said = answer(&engine, greedy(infill(Vec::new()), 4)).await.unwrap();
    assert_eq!(said.usage.prompt_tokens as usize, plain.tokens.len());

    let engine = start("tiny/tiny-llama", |_| {}).await;
    let refused = answer(&engine, greedy(infill(Vec::new()), 4)).await.unwrap_err();
    assert!(
        matches!(refused, Failure::Invalid { field, code, .. } if field == "suffix" && code == "unsupported_operation")
    );
}

/// Drafts and the rows of echoes are outputs of one decode, which llama.cpp counts; small ubatches don't change that.
#[tokio::test]
async fn echoes_beside_drafts_stay_within_the_outputs_of_a_decode() {
    let engine = start("hearth-demo", |config| {
        config.n_slots = 8;
        config.n_ubatch = 32;
        config.n_threads = Some(2);
    })
    .await;
    let first = answer(&engine, greedy(Prompt::Text("Once upon a time".into()), 120)).await.unwrap();
    let requests = (0..8).map(|i| {
        let mut request = greedy(Prompt::Text(format!("Once upon a time{}", " and then".repeat(30 * (i % 2)))), 120);
        request.cache_prompt = false;
        if i % 2 == 0 {
            request.output.prediction = Some(first.text.clone());
        } else {
            (request.output.echo, request.output.top_logprobs) = (true, Some(1));
        }
        answer(&engine, request)
    });
    for said in futures_util::future::join_all(requests).await {
        said.expect("nobody fails for another's rows");
    }
}

#[tokio::test]
async fn a_prediction_is_no_harm_to_a_memory_that_can_not_go_back() {
    for model in ["tiny/tiny-mamba", "tiny/tiny-jamba"] {
        let engine = start(model, |_| {}).await;
        let mut request = greedy(Prompt::Text("Once".into()), 24);
        request.sampling.ignore_eos = true;
        let plain = answer(&engine, request.clone()).await.unwrap();
        let before = engine.stats().await.unwrap().n_decode_rows;
        (request.cache_prompt, request.output.prediction) = (false, Some("Once upon a time there was".into()));
        let predicted = answer(&engine, request).await.unwrap();
        let rows = engine.stats().await.unwrap().n_decode_rows - before;
        assert_eq!((predicted.text, predicted.usage.rejected_prediction_tokens), (plain.text, 0), "{model}");
        assert!(rows < 60, "{model}: {rows} rows");
    }
}

#[tokio::test]
async fn a_grammar_of_the_clients_own_holds_and_a_bad_one_is_refused() {
    let engine = start("tiny/tiny-llama", |_| {}).await;
    for seed in 0..3 {
        let grammar = Constraint::Gbnf("root ::= \"(\" [a-c]{2,4} \")\" digit+\ndigit ::= [0-9]".into());
        let said = answer(&engine, constrained(grammar, 60, seed)).await.unwrap();
        let inner = said.text.strip_prefix('(').and_then(|rest| rest.split_once(')')).expect(&said.text);
        assert!(
            (2..=4).contains(&inner.0.len()) && inner.0.bytes().all(|b| (b'a'..=b'c').contains(&b)),
            "{}",
            said.text
        );
        assert!(inner.1.bytes().all(|b| b.is_ascii_digit()), "{}", said.text);
    }
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(9000), ")".repeat(9000));
    for bad in ["root ::= nothing", "root = 1", "root ::= root \"a\"", "", &deep, &"x".repeat(300_000)] {
        let refused = answer(&engine, constrained(Constraint::Gbnf(bad.to_owned()), 8, 1)).await;
        let shown: String = bad.chars().take(30).collect();
        assert!(
            matches!(&refused, Err(Failure::Invalid { field, .. }) if field == "grammar"),
            "{shown}: {:?}",
            refused.map(|said| said.text)
        );
    }
}
