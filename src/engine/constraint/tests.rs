use super::*;
use crate::engine::backend::scripted::ScriptedModel;
use crate::engine::config::{EngineConfig, ModelSource, ScriptedConfig};
use serde_json::{Map, Value, json};

fn constraints() -> Constraints<ScriptedModel> {
    let scripted = ScriptedConfig::default();
    let config = EngineConfig::new(ModelSource::Scripted(scripted.clone()));
    Constraints::new(Arc::new(ScriptedModel::load(&scripted, &config, |_| {})))
}

/// Whether `text`, byte by byte, is a whole answer under the constraint.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut matcher = constraints().compile(constraint).expect("a good constraint");
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    matcher.consume_tokens(&tokens).is_ok() && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false))
}

fn schema(value: Value) -> Constraint {
    Constraint::JsonSchema(value.to_string())
}

fn refused(constraint: &Constraint) -> String {
    match constraints().compile(constraint) {
        Err(Failure::Invalid { message, .. }) => message,
        other => panic!("should be refused: {:?}", other.is_ok()),
    }
}

#[test]
fn objects_are_closed_and_in_the_schemas_order() {
    let constraint = schema(json!({
        "type": "object", "title": "T", "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"b": {"type": "integer"}, "a": {"type": "string", "default": "x"}}, "required": ["b", "a"],
    }));
    assert!(accepts(&constraint, r#"{"b": 1, "a": "x"}"#));
    assert!(!accepts(&constraint, r#"{"a": "x", "b": 1}"#), "the order is the schema's (JSON-09)");
    assert!(!accepts(&constraint, r#"{"b": 1, "a": "x", "c": 2}"#), "nothing that isn't named");
    assert!(!accepts(&constraint, r#"{"b":  1, "a": "x"}"#), "white space is bounded");
}

#[test]
fn what_the_contract_lists_holds() {
    let string = |extra: Value| {
        let mut value = json!({"type": "string"});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        schema(value)
    };
    for (constraint, good, bad) in [
        (schema(json!({"type": ["integer", "null"]})), "null", "\"x\""),
        (schema(json!({"enum": ["a", 1, null]})), "1", "2"),
        (schema(json!({"const": {"k": [1]}})), r#"{"k": [1]}"#, r#"{"k": [2]}"#),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 12})), "12", "13"),
        (schema(json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1})), "0.5", "-1"),
        (schema(json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2})), "[true]", "[]"),
        (schema(json!({"type": "array", "prefixItems": [{"const": 1}], "items": false})), "[1]", "[1, 1]"),
        (schema(json!({"oneOf": [{"type": "integer"}, {"type": "boolean"}]})), "true", "\"a\""),
        (string(json!({"minLength": 2, "maxLength": 3})), "\"abc\"", "\"a\""),
        (string(json!({"pattern": "^[a-c]+$"})), "\"abc\"", "\"abd\""),
        (string(json!({"format": "date"})), "\"2024-02-29\"", "\"2024-13-01\""),
        (string(json!({"format": "date"})), "\"2000-02-29\"", "\"2023-02-29\""),
        (string(json!({"format": "date-time"})), "\"2024-12-31T23:59:59.5+01:00\"", "\"2024-12-31T23:59:60Z\""),
        (string(json!({"format": "uuid"})), "\"123e4567-e89b-12d3-a456-426614174000\"", "\"123\""),
        (string(json!({"format": "time"})), "\"10:11:12Z\"", "\"25:00:00Z\""),
        (string(json!({"format": "email"})), "\"a@b.c\"", "\"ab\""),
        (string(json!({"format": "color", "nullable": true})), "null", "1"),
    ] {
        assert!(accepts(&constraint, good), "{constraint:?} should take {good}");
        assert!(!accepts(&constraint, bad), "{constraint:?} should not take {bad}");
    }
}

#[test]
fn references_recursion_and_inheritance_work() {
    let tree = schema(json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {
            "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}},
    }));
    assert!(accepts(&tree, r#"{"v": 1, "next": {"v": 2, "next": null}}"#));
    let merged = schema(json!({
        "allOf": [{"$ref": "#/definitions/base"}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
        "definitions": {"base": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    }));
    assert!(accepts(&merged, r#"{"a": 1, "b": 2}"#));
    assert!(!accepts(&merged, r#"{"a": 1}"#));
}

#[test]
fn what_can_not_be_honoured_is_refused_with_its_reason() {
    assert!(refused(&schema(json!({"type": "strin"}))).contains("unknown value \"strin\""));
    assert!(refused(&schema(json!({"properties": {"a": {"$ref": "#/$defs/no"}}}))).contains("properties.a.$ref"));
    assert!(refused(&schema(json!({"$ref": "https://example.com/schema"}))).contains("points to nothing"));
    assert!(refused(&schema(json!([1]))).contains("must be an object"));
    assert!(refused(&schema(json!(false))).contains("nothing fits"));
    assert!(refused(&schema(json!({"not": {"type": "string"}}))).contains("not"));
    assert!(refused(&schema(json!({"type": "array", "uniqueItems": true}))).contains("uniqueItems"));
    assert!(refused(&schema(json!({"type": "string", "enum": [1]}))).contains("nsatisfiable"));
    let deep = (0..100).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    assert!(refused(&schema(deep)).contains("nested deeper"));
    refused(&Constraint::Regex("(".into()));
    refused(&Constraint::Lark("start: nothing".into()));
    refused(&Constraint::Regex("x".repeat(TEXT_BYTES_MAX + 1)));
}

#[test]
fn other_languages_are_taken() {
    assert!(accepts(&Constraint::Regex("[0-9]{3}-x".into()), "123-x"));
    assert!(!accepts(&Constraint::Regex("[0-9]{3}-x".into()), "12-x"));
    assert!(accepts(&Constraint::Choice(vec!["yes \"no\"".into(), "b\nc".into()]), "b\nc"));
    assert!(!accepts(&Constraint::Choice(vec!["yes".into(), "no".into()]), "ye"));
    assert!(accepts(&Constraint::Lark("start: \"a\" b\nb: /[0-9]+/".into()), "a12"));
    assert!(accepts(&Constraint::JsonObject, r#"{"a": [1, {"b": null}]}"#));
    assert!(!accepts(&Constraint::JsonObject, "[1]"));
}

#[test]
fn a_large_schema_compiles_within_a_second() {
    let values: Vec<String> = (0..3000).map(|i| format!("value number {i}")).collect();
    let properties: serde_json::Map<String, Value> = (0..200)
        .map(|i| (format!("property_{i}"), json!({"type": "string", "enum": &values[..15 * (1 + i % 200)]})))
        .collect();
    let required: Vec<&String> = properties.keys().collect();
    let value = json!({"type": "object", "properties": properties, "required": required});
    let started = std::time::Instant::now();
    let outcome = constraints().compile(&schema(value));
    let time = started.elapsed();
    assert!(time.as_secs_f64() < 2.0, "JSON-08: {time:?}");
    println!("200 properties, 3,000 enum values: {time:?}, taken: {}", outcome.is_ok());
}

#[test]
fn constraints_are_kept_and_bounded() {
    let constraints = constraints();
    for i in 0..100 {
        constraints.compile(&Constraint::Regex(format!("a{i}"))).unwrap();
    }
    assert_eq!(constraints.lock().len(), KEPT_MAX);
    constraints.compile(&Constraint::Regex("a99".into())).unwrap();
    assert_eq!(constraints.lock().len(), KEPT_MAX);
}

#[test]
fn a_constraint_of_another_partition_is_compiled_again() {
    let constraints = constraints();
    let compile = |partition| constraints.compile_lark(partition, "start: \"a\"".into()).unwrap();
    for (partition, n_kept) in [(1, 1), (1, 1), (2, 2), (1, 2)] {
        compile(partition);
        assert_eq!(constraints.lock().len(), n_kept, "partition {partition}");
    }
}

mod gates {
    use super::super::gate::Step;
    use super::*;
    use crate::engine::backend::Place;

    fn bytes(text: &str) -> Vec<i32> {
        text.bytes().map(i32::from).collect()
    }

    fn rules() -> Rules {
        Rules {
            answer: None,
            answer_after_thought: None,
            calls: Vec::new(),
            openings: Vec::new(),
            openings_after_thought: Vec::new(),
            watch: None,
            thinking_ends: vec!["</think>".into()],
            is_thinking: false,
            thoughts: Some(constraints().endless().unwrap()),
            is_prologue: false,
            forces: true,
        }
    }

    fn choice(of: &[&str]) -> llguidance::Matcher {
        let of = of.iter().map(|one| (*one).to_owned()).collect();
        constraints().compile(&Constraint::Choice(of)).unwrap()
    }

    fn gate(openings: Vec<Opening>, is_thinking: bool) -> Gate {
        Gate::new(Rules { answer: Some(choice(&["[yes]", "[no]"])), openings, is_thinking, ..rules() })
    }

    /// Says what may be said of `text`, byte by byte, and what is forced behind it.
    fn say(gate: &mut Gate, text: &str) -> (String, Step) {
        let (mut said, mut last) = (String::new(), Step::default());
        for byte in text.bytes() {
            gate.prepare().unwrap();
            if gate.mask().is_some_and(|mask| !crate::engine::backend::allows(mask, i32::from(byte))) {
                break;
            }
            said.push(char::from(byte));
            last = gate.take(i32::from(byte), &[byte]).unwrap();
        }
        (said, last)
    }

    #[test]
    fn text_is_free_until_a_call_begins() {
        let mut calls = vec![choice(&["{yes}", "{no}"])];
        let watch = constraints().watch(&["<call>"], &mut calls, &["<other>".into()], "<think>").unwrap();
        let mut gate = Gate::new(Rules { calls, watch: Some(watch), thoughts: None, ..rules() });
        assert!(!gate.needs_mask(), "text costs nothing");
        let (said, step) = say(&mut gate, "<think>a <call> in a thought</think>some <cal text <call>");
        assert_eq!(said, "<think>a <call> in a thought</think>some <cal text <call>");
        assert_eq!((step.forced, allowed(&mut gate).unwrap().as_slice()), (bytes("{"), &b"ny"[..]));
        let (said, step) = say(&mut gate, "y");
        assert_eq!((said.as_str(), step.forced, step.is_complete), ("y", bytes("es}"), true));
    }

    #[test]
    fn drafts_end_where_something_may_begin() {
        let watch = || {
            let mut calls = vec![choice(&["{yes}", "{no}"])];
            let watch = constraints().watch(&["<call>"], &mut calls, &["<other>".into()], "<think>").unwrap();
            Rules { calls, watch: Some(watch), thoughts: None, ..rules() }
        };
        let thought = || Rules { answer: Some(choice(&["[yes]"])), is_thinking: true, ..rules() };
        let texts = ["<think>a <call> in a thought</think>some <cal text <call>", "a <b> c <<other> <call>"];
        let cases = [(true, texts[0]), (true, texts[1]), (false, "hm </thin </think>[")];
        for (is_watched, text) in cases {
            let new = || Gate::new(if is_watched { watch() } else { thought() });
            let mut gate = new();
            for at in 0..text.len() {
                let rest = &text.as_bytes()[at..];
                let n_ahead = gate.n_ahead(rest.iter().map(std::slice::from_ref));
                // Else the constraint holds, and is asked.
                let n_steady = if gate.is_steady() { n_ahead } else { 0 };
                let mask = allowed(&mut gate);
                // The mask of its first token is that of all.
                let mut ahead = new();
                text.as_bytes()[..at].iter().for_each(|byte| _ = ahead.take(i32::from(*byte), &[*byte]).unwrap());
                for byte in &rest[..n_steady] {
                    let step = ahead.take(i32::from(*byte), &[*byte]).unwrap();
                    assert!(step.forced.is_empty() && !step.is_complete);
                    assert_eq!(allowed(&mut ahead), mask, "{text} from {at}");
                }
                if !gate.may_draft() {
                    assert_eq!(n_ahead, 0);
                }
                gate.take(i32::from(rest[0]), &rest[..1]).unwrap();
            }
        }
        let mut plain = Gate::new(watch());
        assert_eq!(plain.n_ahead(b"no tags, <no call>, <othe".chunks(1)), 9);
        plain.take(i32::from(b'x'), b"x").unwrap();
        assert_eq!(plain.n_ahead(b"no tags".chunks(1)), 7);
    }

    /// What a gate says of a draft at once is what it says of its tokens one by one, and the gate is where it was.
    #[test]
    fn a_constraint_is_asked_ahead_of_a_draft() {
        let json = schema(json!({"type": "object", "properties": {
            "name": {"type": "string"}, "city": {"enum": ["Rome", "Paris"]}, "n": {"type": "integer"}},
            "required": ["name", "city", "n"], "additionalProperties": false}));
        let whole = r#"{"name": "Ann", "city": "Paris", "n": 42}"#;
        let new = |forces| Gate::new(Rules { answer: Some(constraints().compile(&json).unwrap()), forces, ..rules() });
        let others = ["", "{\"nam", "{\"name\": \"Bob\", \"town\": 1}", "what?"];
        for forces in [true, false] {
            let mut n_held = 0;
            for at in 0..whole.len() {
                let mut gate = new(forces);
                let mut done = 0;
                while done <= at {
                    let byte = whole.as_bytes()[done];
                    done += 1 + gate.take(i32::from(byte), &[byte]).unwrap().forced.len();
                }
                for rest in [&whole[done.min(whole.len())..], others[at % others.len()]] {
                    let draft: Vec<i32> =
                        bytes(rest).into_iter().take(gate.n_ahead(rest.as_bytes().chunks(1))).collect();
                    let before = allowed(&mut gate);
                    gate.expect(&draft);
                    gate.prepare().unwrap();
                    let ahead: Vec<_> = (1..=draft.len()).map_while(|at| gate.place(at)).map(told).collect();
                    n_held += ahead.len();
                    assert_eq!(
                        ahead,
                        one_by_one(new(forces), &whole[..done.min(whole.len())], &draft),
                        "{rest} from {done}"
                    );
                    gate.expect(&[]);
                    assert_eq!(allowed(&mut gate), before, "it is where it was");
                }
            }
            assert!(n_held > 100, "{n_held}");
        }
    }

    /// Of a place behind a token: what is forced there, or which tokens may come.
    fn told(place: Place<'_>) -> Result<i32, Vec<u8>> {
        match place {
            Place::Forced(token) => Ok(token),
            Place::Chosen(mask) => Err(bytes_of(mask.unwrap())),
        }
    }

    /// As `Gate::ahead`, by taking what the draft says, behind `said`.
    fn one_by_one(mut gate: Gate, said: &str, draft: &[i32]) -> Vec<Result<i32, Vec<u8>>> {
        let mut at = 0;
        while at < said.len() {
            let byte = said.as_bytes()[at];
            at += 1 + gate.take(i32::from(byte), &[byte]).unwrap().forced.len();
        }
        let mut places = Vec::new();
        let mut rest = draft.iter();
        while let Some(token) = rest.next() {
            if !allowed(&mut gate).unwrap().iter().any(|byte| i32::from(*byte) == *token) {
                break;
            }
            let step = gate.take(*token, &[u8::try_from(*token).unwrap()]).unwrap();
            places.extend(step.forced.iter().map(|token| Ok(*token)));
            if step.is_complete || !step.forced.iter().all(|token| rest.next() == Some(token)) {
                break;
            }
            places.push(Err(allowed(&mut gate).unwrap()));
        }
        places.truncate(draft.len());
        places
    }

    #[test]
    fn what_is_banned_is_never_said() {
        let watch = constraints().watch(&[], &mut [], &["<call>".into(), "<<x".into()], "").unwrap();
        let mut gate = Gate::new(Rules { watch: Some(watch), thoughts: None, ..rules() });
        assert_eq!(say(&mut gate, "a <call b <call> c").0, "a <call b <call");
        assert_eq!(say(&mut gate, " <<<x").0, " <<<");
    }

    #[test]
    fn openings_and_answers_may_begin_alike() {
        let rules = || Rules {
            answer: Some(choice(&["<final>yes", "<final>no"])),
            answer_after_thought: Some(choice(&["<start><final>yes"])),
            openings: vec![Opening::Thinking(bytes("<fin>"))],
            ..rules()
        };
        let mut gate = Gate::new(rules());
        let (said, step) = say(&mut gate, "<fina");
        assert_eq!((said.as_str(), step.forced), ("<fina", bytes("l>")));
        let mut gate = Gate::new(rules());
        assert_eq!(say(&mut gate, "<fin>hm</think><start><final>y").0, "<fin>hm</think><");
        assert!(gate.needs_mask());
    }

    #[test]
    fn a_prologue_gives_way_to_text() {
        let mut gate = Gate::new(Rules { answer: Some(choice(&["all:"])), is_prologue: true, ..rules() });
        assert_eq!(allowed(&mut gate).unwrap(), b"a");
        let step = gate.take(i32::from(b'a'), b"a").unwrap();
        assert_eq!((step.forced, step.is_complete), (bytes("ll:"), false));
        assert_eq!(allowed(&mut gate), None);
    }

    fn allowed(gate: &mut Gate) -> Option<Vec<u8>> {
        gate.prepare().unwrap();
        Some(bytes_of(gate.mask()?))
    }

    fn bytes_of(mask: &[u32]) -> Vec<u8> {
        (0..=255u8).filter(|byte| crate::engine::backend::allows(mask, i32::from(*byte))).collect()
    }

    #[test]
    fn forced_tokens_need_no_asking_and_the_end_is_known() {
        let mut gate = gate(Vec::new(), false);
        assert_eq!(allowed(&mut gate).unwrap(), b"[");
        assert!(gate.take(i32::from(b'['), b"[").unwrap().forced.is_empty());
        assert_eq!(allowed(&mut gate).unwrap(), b"ny");
        let step = gate.take(i32::from(b'y'), b"y").unwrap();
        assert_eq!((step.forced, step.is_complete), (bytes("es]"), true));
    }

    #[test]
    fn the_constraint_begins_behind_a_thought() {
        let mut gate = gate(Vec::new(), true);
        for byte in "hm, no</think>".bytes() {
            assert_eq!(allowed(&mut gate).unwrap().len(), 256);
            assert!(!crate::engine::backend::allows(gate.mask().unwrap(), 257), "a turn can't end in a thought");
            gate.take(i32::from(byte), &[byte]).unwrap();
        }
        assert_eq!(allowed(&mut gate).unwrap(), b"[");
    }

    #[test]
    fn an_opening_may_come_instead() {
        let mut gate = gate(vec![Opening::Thinking(bytes("<t>")), Opening::Call(0, bytes("(c"))], false);
        assert_eq!(allowed(&mut gate).unwrap(), b"(<[");
        gate.take(i32::from(b'('), b"(").unwrap();
        assert_eq!(allowed(&mut gate).unwrap(), b"c");
        gate.take(i32::from(b'c'), b"c").unwrap();
        assert_eq!(allowed(&mut gate), None, "another grammar's");
    }
}

#[test]
fn hostile_constraints_end_soon() {
    let long = "x".repeat(200_000);
    let names: Map<String, Value> = (0..20_000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    let wide = json!({"type": "object", "properties": names, "required": names.keys().collect::<Vec<_>>()});
    let optional =
        json!({"type": "object", "properties": (0..3000).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>()});
    let mutual = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
    let all_of = json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}});
    let any_of = (0..12).fold(json!({"type": "integer"}), |inner, i| {
        json!({"type": "object", "properties": {format!("k{i}"): {"anyOf": [inner, inner]}}, "required": [format!("k{i}")]})
    });
    for constraint in [
        Constraint::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Constraint::Regex("(a|aa|aaa|aaaa)*b(c?){5000}c{5000}".into()),
        Constraint::Regex(format!("({long})+")),
        Constraint::Regex("[\\\\s\\\\S]{1,100000}x[\\\\s\\\\S]{1,100000}y".into()),
        Constraint::Lark("start: a{1,100000}\na: b{1,100000}\nb: \"x\" | b b".into()),
        Constraint::Lark("start: start start | \"x\"".into()),
        Constraint::Lark(format!("start: {}", "(".repeat(20_000))),
        schema(json!({"type": "string", "maxLength": 1_000_000_000u64})),
        schema(json!({"type": "array", "items": {"type": "string"}, "minItems": 90_000, "maxItems": 1_000_000_000u64})),
        schema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "minLength": 5000})),
        schema(json!({"type": "number", "multipleOf": 0.000_000_1, "minimum": 0.123_456_7, "maximum": 1e300})),
        schema(wide),
        schema(optional),
        schema(mutual),
        schema(all_of),
        schema(any_of),
        Constraint::Choice((0..CHOICES_MAX).map(|i| format!("choice {i}")).collect()),
    ] {
        let shown: String = format!("{constraint:?}").chars().take(60).collect();
        let started = std::time::Instant::now();
        let outcome = constraints().compile(&constraint);
        let time = started.elapsed().as_secs_f64();
        println!("{time:.3} s, {}: {shown}", outcome.is_ok());
        assert!(time < 3.0, "{time} s (a second where nothing else runs): {shown}");
    }
}
