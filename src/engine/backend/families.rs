//! Every template family that llama.cpp ships, against its own format: what `make test` fetches is read here.

use super::llama::LlamaModel;
use super::{Calls, Model, Reading, Rendered, Token, allows};
use crate::chat::{ChatPrompt, Constraint, Delta, Message, Role, Tool, ToolCall, ToolChoice};
use crate::engine::config::{EngineConfig, ModelSource};
use crate::engine::constraint::{Constraints, Gate};
use crate::engine::error::Failure;
use crate::engine::gates::{Gates, Hold, Terms};
use crate::engine::reading::Reader;
use crate::engine::text::Released;
use rand::RngExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// (family, template), in order of their names.
fn families() -> Vec<(String, String)> {
    let dir = root().join("tests/clients/templates");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        assert!(std::env::var_os("HEARTH_CLIENTS").is_none(), "{} is missing: run `make test`", dir.display());
        eprintln!("skipped: `make test` fetches the templates");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("a template"))).collect()
}

fn load(template: &str) -> LlamaModel {
    let path = root().join("models/tiny/tiny-llama.gguf");
    let mut config = EngineConfig::new(ModelSource::Gguf(path.clone()));
    config.chat_template = Some(template.to_owned());
    LlamaModel::load(&path, &config, |_| {}).expect("the template compiles")
}

fn weather() -> Tool {
    let parameters = r#"{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city","days"]}"#;
    Tool {
        name: "get_weather".into(),
        description: Some("The weather of a city".into()),
        parameters: parameters.into(),
        strict: false,
    }
}

fn prompt(messages: Vec<Message>) -> ChatPrompt {
    let mut prompt = ChatPrompt::new(messages);
    prompt.tools = vec![weather()];
    prompt.enable_thinking = Some(false);
    prompt
}

fn called() -> Message {
    let mut message = Message::new(Role::Assistant, "");
    let arguments = r#"{"city": "Oslo", "days": 2}"#.to_owned();
    message.tool_calls = vec![ToolCall { id: "call00001".into(), name: "get_weather".into(), arguments }];
    message
}

fn read(rendered: Rendered, pieces: &[&str], is_cut: bool) -> Vec<Delta> {
    let mut reader = Reader::new(rendered.reading);
    let last = pieces.len() - 1;
    let mut deltas = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        if is_cut && i == last {
            reader.cut();
        }
        let released = Released { text: (*piece).to_owned(), ..Default::default() };
        deltas.push(reader.push(released, 1, i == last));
    }
    deltas
}

/// (content, [(name, arguments)]) of all deltas together.
fn sum(deltas: &[Delta]) -> (String, Vec<(String, String)>) {
    let mut calls: Vec<(String, String)> = Vec::new();
    for piece in deltas.iter().flat_map(|delta| &delta.tool_calls) {
        if let Some((_, name)) = &piece.opening {
            calls.push((name.clone(), String::new()));
        }
        calls[piece.index as usize].1 += &piece.arguments;
    }
    (deltas.iter().map(|delta| delta.content.as_str()).collect(), calls)
}

fn is_the_call(calls: &[(String, String)]) -> bool {
    let arguments = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let expected = arguments(r#"{"city": "Oslo", "days": 2}"#);
    calls.len() == 1 && calls[0].0 == "get_weather" && arguments(&calls[0].1) == expected
}

/// The call as the template writes it into the history, which is how the model has learnt to write it: what follows the
/// prompt of the question, up to the end of the turn.
fn written(model: &LlamaModel) -> Option<String> {
    let question = vec![Message::new(Role::User, "Weather?")];
    let asked = model.render(&prompt(question.clone())).ok()?;
    let mut history = prompt([question, vec![called()]].concat());
    history.add_generation_prompt = false;
    let answered = model.render(&history).ok()?.text;
    // A plain answer shows where an answer stands, and how a turn ends.
    let mut spoken = history;
    spoken.messages[1] = Message::new(Role::Assistant, "plain text");
    let spoken = model.render(&spoken).ok()?.text;
    let (before, turn_end) = spoken.rsplit_once("plain text")?;
    // The history leaves out the thinking that the prompt begins or skips.
    let start = asked.thinking.start.as_str();
    let unthought = asked.text.rfind(start).filter(|_| !start.is_empty()).map(|at| &asked.text[..at]);
    let bases = [Some(asked.text.as_str()), Some(before), unthought];
    let mut text = bases.into_iter().flatten().find_map(|base| answered.strip_prefix(base))?;
    text = text.strip_suffix(turn_end).unwrap_or(text);
    let ends = [
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "</s>",
        "<|end|>",
        "<|call|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|calls|>",
        "<|eot|>",
        "<|START_OF_TURN_TOKEN|>",
        "<\u{ff5c}hy_eos:opensource\u{ff5c}>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
        "<turn|>",
        "<SPECIAL_12>",
        "[e~[",
    ];
    text = ends.iter().filter_map(|end| text.find(end)).min().map_or(text, |at| &text[..at]);
    for end in &asked.thinking.ends {
        text = text.rsplit_once(end.as_str()).filter(|_| end.contains("think")).map_or(text, |(_, text)| text);
    }
    Some(text.trim_end().to_owned())
}

/// What stands before an answer that the prompt began to think about.
fn lead(rendered: &Rendered) -> String {
    let end = rendered.thinking.ends.first().filter(|_| rendered.thinking.opened);
    end.map(|end| format!("hm{end}")).unwrap_or_default()
}

/// Every family: tools are shown, a call is read whole and in pieces of any size as the template writes it, and what was
/// shown of a part is never taken back; a call that is cut shows no markup. TOOL-02, and the issue's golden set.
#[test]
fn calls_are_read_whole_and_in_part() {
    let (mut n_read, mut faults) = (0, Vec::new());
    for (name, template) in families() {
        let model = load(&template);
        let ask = || prompt(vec![Message::new(Role::User, "Weather?")]);
        let rendered = match model.render(&ask()) {
            Ok(rendered) => rendered,
            Err(failure) => {
                faults.push(format!("{name}: {failure}"));
                continue;
            }
        };
        if !rendered.text.contains("get_weather") {
            faults.push(format!("{name}: the prompt shows no tools"));
        }
        match &rendered.calls {
            Calls::Lazy { grammar: Some(grammar), .. } => {
                if let Err(failure) = model.sampler(&Default::default(), &[], Some(grammar)) {
                    faults.push(format!("{name}: {failure}"));
                }
            }
            Calls::Begun(..) => {}
            _ => faults.push(format!("{name}: nothing holds calls")),
        }
        if !model.format_for_test().is_native {
            continue; // what is read is our own shape: see `begun_calls_are_held`
        }
        let Some(text) = written(&model) else {
            faults.push(format!("{name}: it isn't known how it writes calls"));
            continue;
        };
        let again = || model.render(&ask()).expect("as before");
        let lead = lead(&again());
        let whole_text = [lead.clone(), text.clone()].concat();
        let whole = sum(&read(again(), &[&whole_text], false));
        if !is_the_call(&whole.1) {
            faults.push(format!("{name}: not read as written: {whole_text:?} {whole:?}"));
            continue;
        }
        n_read += 1;
        let mut pieces: Vec<&str> = whole_text.split_inclusive(|_: char| true).collect();
        pieces.push("");
        let streamed = sum(&read(again(), &pieces, false));
        if streamed != whole {
            faults.push(format!("{name}: {streamed:?} in pieces, {whole:?} whole"));
        }
        for (cut, _) in text.char_indices().skip(1).step_by(3) {
            let part = [lead.as_str(), &text[..cut]].concat();
            let (content, _) = sum(&read(again(), &[&part, ""], true));
            if content.contains("get_weather") {
                faults.push(format!("{name}: cut at {cut} shows markup: {content:?}"));
                break;
            }
        }
    }
    println!("{n_read} families read calls as their template writes them");
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// What is forced is what the parser reads, in the template's shape where it has one.
#[test]
fn shapes_are_found_and_read() {
    let (mut n_native, mut shapeless) = (0, Vec::new());
    for (name, template) in families() {
        let model = load(&template);
        let format = model.format_for_test();
        n_native += usize::from(format.is_native);
        if format.is_native && format.shape.is_none() {
            shapeless.push(name.clone());
        }
        let mut forced = prompt(vec![Message::new(Role::User, "Weather?")]);
        forced.tool_choice = ToolChoice::Required;
        let rendered = model.render(&forced).expect("it renders");
        let shape = format.shape.filter(|_| format.is_native).unwrap_or_else(super::calls::hermes);
        let arguments = r#"{"city": "Oslo", "days": 2}"#;
        let Calls::Forced(grammar) = &rendered.calls else { panic!("{name}") };
        assert!(matches!(rendered.reading, Reading::Parser(_)), "{name}");
        if !grammar.thinking_ends.is_empty() {
            continue;
        }
        let text = format!("{}get_weather{}{arguments}{}", shape.head, shape.mid, shape.tail);
        let (content, calls) = sum(&read(rendered, &[&text], false));
        assert!(content.is_empty() && is_the_call(&calls), "{name}: {content:?} {calls:?}");
    }
    println!("{n_native} families have a format of their own; without JSON arguments: {shapeless:?}");
}

/// A seeded walk through a gate: what is forced, and of what is allowed anything.
struct Walk<'a> {
    model: &'a LlamaModel,
    gate: Box<Gate>,
    banned: Vec<Token>,
    text: Vec<u8>,
    is_over: bool,
    random: rand::rngs::StdRng,
}

impl<'a> Walk<'a> {
    fn new(model: &'a LlamaModel, hold: Hold, seed: u64) -> Self {
        let gate = hold.gate.expect("a gate");
        let random = rand::SeedableRng::seed_from_u64(seed);
        Self { model, gate, banned: hold.banned, text: Vec::new(), is_over: false, random }
    }

    fn take(&mut self, token: Token) {
        let step = self.gate.take(token, self.model.piece(token)).expect("the gate takes what it allowed");
        for token in std::iter::once(token).chain(step.forced) {
            self.text.extend_from_slice(self.model.piece(token));
        }
        self.is_over |= step.is_complete;
    }

    fn allows(&mut self, token: Token) -> bool {
        if self.gate.needs_mask() {
            self.gate.prepare().expect("a mask");
        }
        !self.banned.contains(&token) && self.gate.mask().is_none_or(|mask| allows(mask, token))
    }

    /// Says `text` as far as it may; returns what may not be said of it.
    fn say(&mut self, text: &str) -> String {
        let tokens = self.model.tokenize(text, false, true).expect("tokens");
        for (i, token) in tokens.iter().enumerate() {
            if !self.allows(*token) {
                let rest: Vec<u8> = tokens[i..].iter().flat_map(|token| self.model.piece(*token)).copied().collect();
                return String::from_utf8_lossy(&rest).into_owned();
            }
            self.take(*token);
        }
        String::new()
    }

    /// Goes on at random, to the end.
    fn finish(&mut self) -> String {
        for _ in 0..2000 {
            if self.is_over {
                break;
            }
            let n_vocab = i32::try_from(self.model.n_vocab()).unwrap_or(0);
            let can: Vec<Token> = (0..n_vocab).filter(|token| self.allows(*token)).collect();
            assert!(!can.is_empty(), "a dead end behind {:?}", String::from_utf8_lossy(&self.text));
            let token = can[self.random.random_range(0..can.len())];
            if can.iter().any(|token| self.model.is_end(*token)) {
                break;
            }
            self.take(token);
        }
        String::from_utf8(self.text.clone()).expect("UTF-8")
    }
}

fn hold(model: &Arc<LlamaModel>, rendered: &mut Rendered, constraint: Option<&Constraint>, may_think: bool) -> Hold {
    let constraints = Constraints::new(Arc::clone(model));
    let gates = Gates { model: model.as_ref(), constraints: &constraints, partition: 0 };
    let calls = std::mem::replace(&mut rendered.calls, Calls::Never(Vec::new()));
    let (reading, thinking, frame) = (&rendered.reading, &rendered.thinking, rendered.frame.as_ref());
    let terms = Terms { constraint, reading, calls, thinking, frame, may_think, forces: true };
    gates.hold(terms).expect("it can be held")
}

/// Every family: a call that is begun validates, whatever the model says from there on. TOOL-04.
#[test]
fn begun_calls_are_held() {
    let schema = serde_json::json!({"type": "object", "required": ["city", "days", "of"], "properties": {
        "city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "of": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object", "required": ["k"],
            "properties": {"k": {"enum": ["rain", "sun", null]}, "sure": {"type": "boolean"}}}}}});
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let (mut n_held, mut by_llama) = (0, Vec::new());
    for (name, template) in families() {
        let model = Arc::new(load(&template));
        for strict in [false, true] {
            let mut asked = prompt(vec![Message::new(Role::User, "Weather?")]);
            asked.tools[0].parameters = schema.to_string();
            asked.tools[0].strict = strict;
            asked.parallel_tool_calls = false;
            let render = || model.render(&asked).expect("it renders");
            let Calls::Begun(grammar, _) = render().calls else {
                assert!(!strict, "{name}: strict tools are held in any format");
                by_llama.push(name.clone());
                continue;
            };
            for (seed, start) in (0..).zip(&grammar.starts) {
                let mut rendered = render();
                let hold = hold(&model, &mut rendered, None, true);
                let mut walk = Walk::new(&model, hold, seed);
                let opening = [lead(&rendered), start.text.clone()].concat();
                assert_eq!(walk.say(&opening), "", "{name}");
                let text = walk.finish();
                let (content, calls) = sum(&read(rendered, &[&text], false));
                assert_eq!((content.trim(), calls.len()), ("", 1), "{name}: {text:?} {calls:?}");
                let arguments: serde_json::Value = serde_json::from_str(&calls[0].1).expect("JSON");
                assert!(calls[0].0 == "get_weather" && validator.is_valid(&arguments), "{name}: {text:?}");
                n_held += 1;
            }
        }
    }
    println!("{n_held} walks; llama.cpp's grammar holds calls of tools that aren't strict in {by_llama:?}");
}

/// TOOL-02: where no call may come, nothing begins one, with tools and without when the history has calls.
#[test]
fn calls_that_may_not_come_can_not_begin() {
    let mut unmarked = Vec::new();
    for (name, template) in families() {
        let model = Arc::new(load(&template));
        let question = || vec![Message::new(Role::User, "Weather?")];
        let mut told = Message::new(Role::Tool, "Rain.");
        told.tool_call_id = Some("call00001".into());
        let mut never = prompt(question());
        never.tool_choice = ToolChoice::None;
        let mut history = prompt([question(), vec![called(), told]].concat());
        history.tools.clear();
        for asked in [never, history] {
            let Ok(mut rendered) = model.render(&asked) else { continue }; // folded by `prepare`
            let Calls::Never(texts) = &rendered.calls else { panic!("{name}") };
            if texts.is_empty() {
                unmarked.push(name.clone());
                continue;
            }
            let texts = texts.clone();
            let held = hold(&model, &mut rendered, None, true);
            let mut walk = Walk::new(&model, held, 1);
            for text in texts {
                assert!(!walk.say(&format!("so {text}")).is_empty(), "{name} lets {text:?} be said");
            }
        }
    }
    println!("what begins a call isn't known in {unmarked:?}");
}

/// A constrained answer is framed as its format wants it, so that what is read of it is JSON, with and without a thought.
#[test]
fn constrained_answers_are_framed() {
    let schema =
        serde_json::json!({"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", 1, null]}}});
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let constraint = Constraint::JsonSchema(schema.to_string());
    let mut framed = Vec::new();
    for (name, template) in families() {
        let model = Arc::new(load(&template));
        let mut plain = ChatPrompt::new(vec![Message::new(Role::User, "Weather?")]);
        let mut with_tools = plain.clone();
        with_tools.tools = vec![weather()];
        plain.reasoning_format = crate::chat::ReasoningFormat::Separate;
        for asked in [plain, with_tools] {
            let render = || model.render(&asked).expect("it renders");
            let thinking = render().thinking;
            if render().frame.is_some() && !framed.contains(&name) {
                framed.push(name.clone());
            }
            let end = thinking.ends.first().map(String::as_str).unwrap_or_default();
            let may_think = render().frame.map_or(!thinking.start.is_empty(), |frame| frame.after_thought.is_some());
            let beginnings = match thinking.opened {
                true => vec![format!("hm{end}")],
                false if may_think => vec![String::new(), format!("{}hm{end}", thinking.start)],
                false => vec![String::new()],
            };
            for (seed, thought) in (0..).zip(beginnings) {
                let mut rendered = render();
                if matches!(rendered.calls, Calls::Lazy { .. }) {
                    continue; // A call may come instead, and llama.cpp's grammar holds it.
                }
                let held = hold(&model, &mut rendered, Some(&constraint), !thought.is_empty());
                let mut walk = Walk::new(&model, held, seed);
                assert_eq!(walk.say(&thought), "", "{name}");
                let text = walk.finish();
                let (content, calls) = sum(&read(rendered, &[&text], false));
                if !calls.is_empty() {
                    continue; // It may come instead.
                }
                let said: serde_json::Value = serde_json::from_str(&content).unwrap_or_default();
                assert!(validator.is_valid(&said), "{name}: {text:?} is read as {content:?}");
            }
        }
    }
    println!("framed: {framed:?}");
}

/// What this thread has spent on a processor: a busy machine doesn't count.
fn cpu_time() -> std::time::Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
    std::time::Duration::from_nanos(first.expect("nanoseconds"))
}

/// Preparing hostile tools takes less than a second, in every kind of format: what costs too much is refused by its place,
/// or, where it needn't be strict, left to the model.
#[test]
fn hostile_schemas_are_prepared_soon() {
    let wide = |n: usize| (0..n).map(|i| format!(r#""p{i}":{{"enum":[{i}]}}"#)).collect::<Vec<_>>().join(",");
    let any = |n: usize| (0..n).map(|i| format!(r#""p{i}":{{}}"#)).collect::<Vec<_>>().join(",");
    let union = vec![r#"{"type":"string"}"#; 3000].join(",");
    let doubled = (0..10).fold(r#"{"type":"integer"}"#.to_owned(), |inner, i| {
        format!(r#"{{"type":"object","properties":{{"k{i}":{{"anyOf":[{inner},{inner}]}}}},"required":["k{i}"]}}"#)
    });
    let long = "ab".repeat(100_000);
    let schemas = [
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, wide(5000)),
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, wide(100)),
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, any(3000)),
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, any(900)),
        format!(r#"{{"type":"object","properties":{{"a":{{"anyOf":[{union}]}}}}}}"#),
        format!(r#"{{"type":"object","properties":{{"a":{doubled}}}}}"#),
        format!(r#"{{"type":"object","properties":{{"a":{{"type":"string","pattern":"^({long})+$"}}}}}}"#),
        r#"{"type":"object","properties":{"a":{"type":"array","minItems":90000,"items":{"type":"string","minLength":90000}}}}"#.into(),
        r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##.into(),
        r#"{"type":"object","properties":{"a":{"type":"string","pattern":"^((((a{1,99}){1,99}){1,99}){1,99}){1,99}$"}}}"#.into(),
        r#"{"type":"object","properties":{"a":{"not":{}}}}"#.into(),
    ];
    let wanted = ["Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "microsoft-Phi-3.5-mini-instruct", "Kimi-K2-Instruct"];
    for (name, template) in families().into_iter().filter(|(name, _)| wanted.contains(&name.as_str())) {
        let model = Arc::new(load(&template));
        let constraints = Constraints::new(Arc::clone(&model));
        let gates = Gates { model: model.as_ref(), constraints: &constraints, partition: 0 };
        for schema in &schemas {
            for (choice, strict) in [(ToolChoice::Auto, false), (ToolChoice::Auto, true), (ToolChoice::Required, false)]
            {
                let mut hostile = prompt(vec![Message::new(Role::User, "hi")]);
                hostile.tools[0].parameters.clone_from(schema);
                hostile.tools[0].strict = strict;
                hostile.tool_choice = choice;
                let started = cpu_time();
                let outcome = model.render(&hostile).and_then(|mut rendered| {
                    let calls = std::mem::replace(&mut rendered.calls, Calls::Never(Vec::new()));
                    let (reading, thinking) = (&rendered.reading, &rendered.thinking);
                    let (constraint, frame) = (None, rendered.frame.as_ref());
                    let hold = gates.hold(Terms {
                        constraint,
                        reading,
                        calls,
                        thinking,
                        frame,
                        may_think: true,
                        forces: true,
                    })?;
                    model.sampler(&Default::default(), &[], hold.grammar.as_deref())
                });
                let took = cpu_time() - started;
                let refusal = outcome.err();
                println!("{name} {choice:?} {strict}: {took:?} for {schema:.60}: {refusal:?}");
                assert!(took.as_millis() < 1000, "{name} {choice:?} {strict}: {took:?} for {schema:.60}");
                if let Some(refusal) = refusal {
                    let Failure::Invalid { field, .. } = &refusal else { panic!("{refusal:?}") };
                    assert!(field == "tools" || field == "tools[0].function.parameters", "{refusal:?}");
                }
            }
        }
    }
}
