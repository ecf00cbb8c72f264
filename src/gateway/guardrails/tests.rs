//! Rules by themselves: what comes out of pieces is what comes out of the whole.

use super::json::JsonSieve;
use super::patterns::{Patterns, Source};
use super::screen::Screen;
use super::sieve::{Act, Denied, Sieve, Step, whole};
use super::{ClassifySpec, GuardrailSpec, Guardrails, RuleSpec};
use crate::chat::{
    ChatPrompt, ChatRequest, CompletionRequest, Constraint, Delta, Finish, Media, MediaKind, Message, Output, Prompt,
    Role, Tool, ToolCall, ToolCallDelta, Usage,
};
use crate::engine::{Done, Event, Failure, Timings};
use crate::gateway::Error;
use crate::gateway::asked::Asked;
use proptest::prelude::*;
use std::sync::Arc;

fn step(act: Act, patterns: &[&str], with: &str) -> Step {
    let sources = patterns.iter().map(|text| Source::regex(text, with.to_owned()).expect(text)).collect();
    (act, Arc::new(Patterns::new(sources, true).expect("bounded").expect("some")))
}

fn words(words: &[&str]) -> Step {
    let sources = words.iter().map(|text| Source::word(text).expect(text)).collect();
    (Act::Deny, Arc::new(Patterns::new(sources, true).expect("bounded").expect("some")))
}

/// `text` in pieces of these lengths, in characters, again and again.
fn pieces(text: &str, lengths: &[usize]) -> Vec<String> {
    let (mut chars, mut all) = (text.chars().peekable(), Vec::new());
    let mut lengths = lengths.iter().copied().cycle();
    while chars.peek().is_some() {
        let n = lengths.next().unwrap_or(1);
        all.push(chars.by_ref().take(n.max(1)).collect());
    }
    all
}

fn streamed(steps: &[Step], pieces: &[String]) -> (String, Result<(), Denied>) {
    let (mut sieve, mut out) = (Sieve::new(steps), String::new());
    let done = pieces.iter().try_for_each(|piece| sieve.push(piece, &mut out));
    let done = done.and_then(|()| sieve.finish(&mut out));
    (out, done)
}

/// What the lists make of a whole text, by nothing but searching it.
fn expected(steps: &[Step], text: &str) -> (String, Result<(), Denied>) {
    let (mut text, mut done) = (text.to_owned(), Ok(()));
    for (act, patterns) in steps {
        let (mut out, mut at) = (String::new(), 0);
        while let Some((span, with)) = patterns.find(&text, at) {
            out.push_str(&text[at..span.start]);
            at = span.end;
            match act {
                Act::Redact => out.push_str(with),
                Act::Deny => {
                    (at, done) = (text.len(), Err(Denied));
                    break;
                }
            }
        }
        out.push_str(&text[at..]);
        text = out;
    }
    (text, done)
}

#[test]
fn a_match_may_be_cut_anywhere_and_the_rest_does_not_wait() {
    let steps = [step(Act::Redact, &[r"\b\d{4}-\d{4}\b"], "[card]")];
    let mut sieve = Sieve::new(&steps);
    let mut pass = |piece: &str| {
        let mut out = String::new();
        sieve.push(piece, &mut out).expect("nothing is denied");
        out
    };
    assert_eq!(pass("my number is "), "my number is ");
    assert_eq!(pass("12"), "");
    assert_eq!(pass("34-56"), "");
    assert_eq!(pass("78"), "", "another digit would make it another number");
    assert_eq!(pass("."), "[card].");
    assert_eq!(pass("12x"), "12x", "what can't become a match any more goes out");
    assert_eq!(pass("1234-5678"), "1234-", "after a letter no boundary, but behind the dash another may begin");
    let mut out = String::new();
    sieve.push(" 1234-5678", &mut out).expect("nothing is denied");
    sieve.finish(&mut out).expect("nothing is denied");
    assert_eq!(out, "5678 [card]", "the end is a boundary, too");
}

#[test]
fn words_are_whole_words_in_any_case() {
    let steps = [words(&["Aurora", "c++", "größe"])];
    let is_denied = |text: &str| streamed(&steps, &pieces(text, &[1])).1 == Err(Denied);
    assert!(
        is_denied("the AURORA plan")
            && is_denied("aurora")
            && is_denied("in c++ it is")
            && is_denied("die GRÖSSE größe")
    );
    assert!(!is_denied("auroras") && !is_denied("x_aurora") && !is_denied("c+ +") && !is_denied(""));
    assert_eq!(streamed(&steps, &pieces("before aurora after", &[3])).0, "before ");
}

#[test]
fn what_has_no_bound_is_refused_where_text_comes() {
    let bounded = |text: &str, comes| {
        Source::regex(text, String::new()).and_then(|source| Patterns::new(vec![source], comes)).map(|_| ())
    };
    for text in ["a+", ".*x", r"\d{1,}", "(?:ab*)c", "a{513}"] {
        assert!(bounded(text, true).is_err_and(|error| error.contains("bound")), "{text}");
        assert_eq!(bounded(text, false), Ok(()), "{text}");
    }
    for text in ["a{1,512}", "(?s).{3}", r"(?i)\bkey-[a-z]{2,40}\b"] {
        assert_eq!(bounded(text, true), Ok(()), "{text}");
    }
    for text in ["", "a?", "(", "[b-a]", "a{0}", r"\b"] {
        assert!(bounded(text, false).is_err(), "{text}");
    }
}

fn pattern() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("é".to_owned()),
        Just("[ab]".to_owned()),
        Just("ab".to_owned()),
        Just(r"\b".to_owned()),
        Just(r"\B".to_owned()),
        Just("(?m:^)".to_owned()),
        Just("$".to_owned()),
        Just(r"\n".to_owned()),
        Just(" ".to_owned()),
    ];
    atom.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
            (inner.clone(), 0..2_u32, 1..3_u32).prop_map(|(it, min, more)| format!("(?:{it}){{{min},{}}}", min + more)),
            inner.prop_map(|it| format!("(?:{it})??")),
        ]
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let list = (prop::collection::vec(pattern(), 1..3), any::<bool>(), "[ab #]{0,3}");
    prop::collection::vec(list, 1..4).prop_map(|lists| {
        let step = |(texts, denies, with): (Vec<String>, bool, String)| {
            let sources: Vec<Source> = texts.iter().filter_map(|text| Source::regex(text, with.clone()).ok()).collect();
            let patterns = Patterns::new(sources, true).ok()??;
            Some((if denies { Act::Deny } else { Act::Redact }, Arc::new(patterns)))
        };
        lists.into_iter().filter_map(step).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn pieces_come_to_what_the_whole_comes_to(
        steps in steps(),
        text in "[abé\n ]{0,40}",
        lengths in prop::collection::vec(1..7_usize, 1..6),
    ) {
        let got = streamed(&steps, &pieces(&text, &lengths));
        prop_assert_eq!(&got, &expected(&steps, &text));
        let at_once = whole(&steps, &text);
        prop_assert_eq!(at_once.map(|out| out.unwrap_or(text)), got.1.map(|()| got.0));
    }

    #[test]
    fn nothing_waits_that_can_not_match_any_more(
        steps in steps(),
        text in "[abé\n ]{0,60}",
        lengths in prop::collection::vec(1..7_usize, 1..6),
    ) {
        // A character that is in no pattern decides everything before it.
        let text = format!("{text}#");
        let (mut sieve, mut out) = (Sieve::new(&steps), String::new());
        let done = pieces(&text, &lengths).iter().try_for_each(|piece| sieve.push(piece, &mut out));
        let ends_before = steps.iter().any(|(_, patterns)| patterns.is_match("#") || patterns.is_match("a#") || patterns.is_match("##"));
        prop_assert!(done.is_err() || ends_before || steps.len() > 1 || !sieve.is_holding(), "{:?} holds back", text);
    }

    #[test]
    fn json_stays_json_and_only_its_values_change(
        key in "[ab]{1,3}",
        text in "[ab\"\\\\\n\u{1F600}é/ ]{0,30}",
        number in 0..3000_u32,
        lengths in prop::collection::vec(1..5_usize, 1..5),
        escapes in any::<bool>(),
    ) {
        let steps = [step(Act::Redact, &["ab", r"\b12\d\b", "\u{1F600}"], "\"#\"")];
        let value = serde_json::json!({ &key: text, "n": number, "list": [true, null, -0.5, text] });
        let mut written = value.to_string();
        if escapes {
            written = written.replace('é', "\\u00e9").replace('\u{1F600}', "\\ud83d\\ude00").replace('/', "\\/");
        }
        let (mut sieve, mut out) = (JsonSieve::new(&steps), String::new());
        for piece in pieces(&written, &lengths) {
            prop_assert!(sieve.push(&piece, &mut out).is_ok());
        }
        prop_assert!(sieve.finish(&mut out).is_ok());
        let got: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let redacted = |text: &str| expected(&steps, text).0;
        let n = redacted(&number.to_string());
        let n = if n == number.to_string() { number.into() } else { serde_json::Value::from(n) };
        let text = redacted(&text);
        prop_assert_eq!(got, serde_json::json!({ redacted(&key): text, "n": n, "list": [true, null, -0.5, text] }));
    }
}

#[test]
fn arguments_that_are_cut_or_odd_keep_what_they_have() {
    let steps = [step(Act::Redact, &["secret"], "#")];
    let sifted = |text: &str, n: usize| {
        let (mut sieve, mut out) = (JsonSieve::new(&steps), String::new());
        let done = pieces(text, &[n]).iter().try_for_each(|piece| sieve.push(piece, &mut out));
        (out.clone(), done.and_then(|()| sieve.finish(&mut out)).map(|()| out))
    };
    for n in [1, 2, 100] {
        assert_eq!(sifted("{\"a\":\"sec", n).1.as_deref(), Ok("{\"a\":\"sec"), "half a word is none");
        assert_eq!(sifted("{\"a\":\"\\u00", n).1.as_deref(), Ok("{\"a\":\""));
        assert_eq!(sifted("[\"\\ud83d\",\"\\ud83dx\"]", n).1.as_deref(), Ok("[\"\u{fffd}\",\"\u{fffd}x\"]"));
        assert_eq!(sifted("[secret, 1]", n).1.as_deref(), Ok("[\"#\", 1]"));
        assert_eq!(sifted(&format!("[{}]", "1".repeat(600)), n).1.as_deref(), Ok("[null]"));
        assert_eq!(sifted("[\"\\u0073ecret\"]", n).1.as_deref(), Ok("[\"#\"]"), "an escape hides nothing");
    }
}

fn delta(content: &str) -> Event {
    Event::Delta(Delta { content: content.into(), n_tokens: 1, tokens: vec![7], ..Default::default() })
}

fn done(finish: Finish) -> Event {
    let usage = Usage { prompt_tokens: 5, completion_tokens: 9, ..Default::default() };
    Event::Done(Done { finish, usage, timings: Timings::default() })
}

fn all(screen: &mut Screen) -> Vec<(usize, Event)> {
    std::iter::from_fn(|| screen.pop()).collect()
}

fn put_together(events: &[(usize, Event)]) -> (Delta, u32) {
    let (mut sum, mut n) = (Delta::default(), 0);
    for (_, event) in events {
        let Event::Delta(delta) = event else { continue };
        sum.content.push_str(&delta.content);
        sum.reasoning.push_str(&delta.reasoning);
        sum.tool_calls.extend(delta.tool_calls.clone());
        assert!(delta.tokens.is_empty(), "ids would tell what was taken out");
        n += delta.n_tokens;
    }
    (sum, n)
}

#[test]
fn thinking_text_and_calls_are_texts_of_their_own_in_their_order() {
    let steps = vec![step(Act::Redact, &["abc"], "#")];
    let mut screen = Screen::new(steps, false, &[5]);
    let piece = |opening: bool, arguments: &str| ToolCallDelta {
        index: 0,
        opening: opening.then(|| ("c1".into(), "f".into())),
        arguments: arguments.into(),
    };
    let mut events = Vec::new();
    let deltas = [
        Delta { reasoning: "xa".into(), n_tokens: 1, ..Default::default() },
        Delta { reasoning: "b".into(), n_tokens: 1, ..Default::default() },
        Delta { content: "cab".into(), n_tokens: 1, ..Default::default() },
        Delta { tool_calls: vec![piece(true, "{\"k\":\"ab")], n_tokens: 1, ..Default::default() },
        Delta { tool_calls: vec![piece(false, "c\"}")], n_tokens: 1, ..Default::default() },
    ];
    for delta in deltas {
        assert!(!screen.push(0, Event::Delta(delta)));
        events.extend(all(&mut screen));
    }
    screen.push(0, done(Finish::EndOfTurn));
    events.extend(all(&mut screen));
    let (sum, n) = put_together(&events);
    assert_eq!((sum.reasoning.as_str(), sum.content.as_str(), n), ("xab", "cab", 5));
    let arguments: String = sum.tool_calls.iter().map(|piece| piece.arguments.as_str()).collect();
    assert_eq!((arguments.as_str(), sum.tool_calls[0].opening.is_some()), ("{\"k\":\"#\"}", true));
    let place = |is_it: fn(&Delta) -> bool| {
        events.iter().position(|(_, event)| matches!(event, Event::Delta(delta) if is_it(delta)))
    };
    let (thought, said) = (place(|it| it.reasoning == "ab"), place(|it| !it.content.is_empty()));
    assert!(thought < said && said < place(|it| !it.tool_calls.is_empty()), "{events:#?}");
    assert_eq!(events.last(), Some(&(0, done(Finish::EndOfTurn))));
}

#[test]
fn a_denied_choice_ends_where_the_match_begins_and_is_counted_to_its_end() {
    let mut screen = Screen::new(vec![words(&["secret"])], false, &[5, 5]);
    assert!(!screen.push(0, delta("the sec")) && !screen.push(1, delta("fine")));
    assert!(screen.push(0, delta("ret ")), "its generation may end");
    assert!(!screen.is_over());
    assert!(!screen.push(0, delta("and more")));
    screen.push(0, Event::Failed(Failure::Cancelled));
    screen.push(1, done(Finish::Length));
    let events = all(&mut screen);
    let of = |idx: usize| events.iter().filter(|(i, _)| *i == idx).cloned().collect::<Vec<_>>();
    let (sum, n) = put_together(&of(0));
    assert_eq!((sum.content.as_str(), n), ("the ", 3));
    let Some((_, Event::Done(end))) = of(0).pop() else { unreachable!("the end") };
    assert_eq!((end.finish, end.usage.completion_tokens, end.usage.prompt_tokens), (Finish::Filtered, 3, 5));
    assert_eq!(of(1).last(), Some(&(1, done(Finish::Length))));
    assert!(screen.is_over());
}

#[test]
fn what_is_denied_at_the_very_end_ends_so_too() {
    let mut screen = Screen::new(vec![words(&["secret"])], false, &[5]);
    screen.push(0, delta("a secret"));
    screen.push(0, done(Finish::EndOfTurn));
    let events = all(&mut screen);
    assert_eq!(put_together(&events).0.content, "a ");
    assert_eq!(events.last(), Some(&(0, done(Finish::Filtered))));
}

#[test]
fn a_tool_of_a_denied_name_is_not_called() {
    let mut screen = Screen::new(vec![step(Act::Redact, &["launch"], "#")], false, &[5]);
    let opening = Some(("c".to_owned(), "launch_it".to_owned()));
    let call = ToolCallDelta { index: 0, opening, arguments: String::new() };
    assert!(screen.push(0, Event::Delta(Delta { tool_calls: vec![call], n_tokens: 1, ..Default::default() })));
    assert!(put_together(&all(&mut screen)).0.tool_calls.is_empty());
}

#[test]
fn text_that_a_schema_binds_stays_json() {
    let mut screen = Screen::new(vec![step(Act::Redact, &[r"\d{4}"], "\"x\"")], true, &[5]);
    screen.push(0, delta("{\"pin\": 12"));
    screen.push(0, delta("34, \"t\": \"99"));
    screen.push(0, delta("99\"}"));
    screen.push(0, done(Finish::EndOfTurn));
    let text = put_together(&all(&mut screen)).0.content;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value, serde_json::json!({ "pin": "\"x\"", "t": "\"x\"" }));
}

fn guardrails(specs: &[(&str, GuardrailSpec)]) -> Guardrails {
    let specs = specs.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
    Guardrails::new(&specs).expect("good sets")
}

fn chat(prompt: ChatPrompt) -> Asked {
    Asked::Chat(ChatRequest {
        model: None,
        prompt,
        sampling: Default::default(),
        output: Output::default(),
        n: 1,
        stream: false,
        include_usage: false,
        cache_prompt: true,
        lora: None,
        end_user: None,
        cache: Default::default(),
        class: Default::default(),
    })
}

fn text(prompt: Prompt, output: Output) -> Asked {
    Asked::Text(CompletionRequest {
        model: None,
        prompts: vec![prompt],
        sampling: Default::default(),
        output,
        n: 1,
        best_of: 1,
        stream: false,
        include_usage: false,
        cache_prompt: true,
        lora: None,
        end_user: None,
        cache: Default::default(),
    })
}

fn messages(asked: Asked) -> Vec<Message> {
    let Asked::Chat(request) = asked else { unreachable!("a chat") };
    request.prompt.messages
}

fn code(result: Result<Asked, Error>) -> String {
    match result.map(|_| ()).expect_err("refused") {
        Error::Engine(Failure::Invalid { code, message, .. }) => {
            assert!(!message.contains("aurora"), "{message}");
            code
        }
        Error::Refused(refusal) => refusal.code.to_owned(),
        other => other.to_string(),
    }
}

#[test]
fn a_classifier_is_asked_where_its_set_holds() {
    let spec = ClassifySpec {
        model: "judge".into(),
        deny: vec!["x".into()],
        above: 0.5,
        n_windows_max: 1,
        passes_on_error: false,
    };
    let rules = || RuleSpec { classify: Some(spec.clone()), ..Default::default() };
    let sets = guardrails(&[
        ("in", GuardrailSpec { input: rules(), ..Default::default() }),
        ("out", GuardrailSpec { output: rules(), ..Default::default() }),
    ]);
    let border = |name: &str| sets.border([name.to_owned()].iter(), |model| (model == "judge").then_some(3));
    let (inward, outward) = (border("in").expect("there"), border("out").expect("there"));
    assert!(!inward.is_open() && !outward.is_open());
    assert_eq!(inward.checks_in().iter().map(|(_, idx)| *idx).collect::<Vec<_>>(), [3]);
    assert!(outward.checks_in().is_empty());
    assert_ne!(inward.digest(), outward.digest(), "an answer that one let through is not the other's");
    assert!(!outward.screens(), "log-probabilities tell nothing of an answer that goes out whole");
    assert!(outward.enter(text(Prompt::Tokens(vec![1]), Output::default()), true).is_ok());
    let tokens = inward.enter(text(Prompt::Tokens(vec![1]), Output::default()), false);
    assert_eq!(code(tokens), "unsupported_parameter", "token ids are no text");
    let gone = sets.border(["in".to_owned()].iter(), |_| None);
    assert_eq!(gone.map(|_| ()), Err(Error::Unguarded), "a model that is gone lets nothing pass");
}

#[test]
fn instructions_come_first_in_the_order_of_their_sets() {
    let system = |text: &str| GuardrailSpec { system: Some(text.into()), ..Default::default() };
    let sets = guardrails(&[("default", system("one")), ("b", system("two")), ("c", system("three"))]);
    let names = ["c", "b", "c"].map(str::to_owned);
    let border = sets.border(names.iter(), |_| None).expect("all there");
    let user = Message::new(Role::User, "hi");
    let got = messages(border.enter(chat(ChatPrompt::new(vec![user.clone()])), false).expect("let in"));
    assert_eq!(got, [Message::new(Role::System, "one\n\nthree\n\ntwo"), user.clone()]);
    let mut own = Message::new(Role::System, "own");
    own.media = vec![Media { kind: MediaKind::Image, offset: 2, data: vec![1] }];
    let got = messages(border.enter(chat(ChatPrompt::new(vec![own, user])), false).expect("let in"));
    assert_eq!(got[0].content.as_deref(), Some("one\n\nthree\n\ntwo\n\nown"));
    assert_eq!((got.len(), got[0].media[0].offset), (2, 19), "the image stands where it stood");
    assert_ne!(sets.border([].iter(), |_| None).expect("there").digest(), border.digest());
    assert_eq!(sets.border(["d".to_owned()].iter(), |_| None).map(|_| ()), Err(Error::Unguarded));
    assert_eq!(code(border.enter(text(Prompt::Text("x".into()), Output::default()), false)), "unsupported_operation");
    assert!(guardrails(&[]).border([].iter(), |_| None).expect("nothing").is_open());
}

#[test]
fn what_comes_in_is_redacted_or_refused_wherever_it_stands() {
    let input = RuleSpec {
        deny_words: vec!["aurora".into()],
        redact: vec![(r"\d{4}".into(), "#".into())],
        ..Default::default()
    };
    let sets = guardrails(&[("default", GuardrailSpec { input, ..Default::default() })]);
    let border = sets.border([].iter(), |_| None).expect("there");
    let enter = |asked| border.enter(asked, false);
    let mut message = Message::new(Role::User, "a 1234 b 5678");
    message.media = vec![
        Media { kind: MediaKind::Image, offset: 4, data: vec![1] },
        Media { kind: MediaKind::Image, offset: 13, data: vec![2] },
    ];
    message.reasoning = Some("1111".into());
    message.tool_calls =
        vec![ToolCall { id: "c".into(), name: "f".into(), arguments: "{\"n\":1234,\"s\":\"1234\"}".into() }];
    let got = messages(enter(chat(ChatPrompt::new(vec![message]))).expect("let in")).remove(0);
    assert_eq!(got.content.as_deref(), Some("a 1234 b #"), "an image between two digits parts them");
    assert_eq!(got.media.iter().map(|media| media.offset).collect::<Vec<_>>(), [4, 10]);
    assert_eq!(got.reasoning.as_deref(), Some("#"));
    assert_eq!(got.tool_calls[0].arguments, "{\"n\":\"#\",\"s\":\"#\"}");
    let refused = "content_policy_violation";
    let prompt = || ChatPrompt::new(vec![Message::new(Role::User, "x")]);
    assert_eq!(code(enter(chat(ChatPrompt::new(vec![Message::new(Role::Tool, "say AURORA now")])))), refused);
    let tool = |name: &str, description: &str, parameters: &str| Tool {
        name: name.into(),
        description: Some(description.into()),
        parameters: parameters.into(),
        strict: false,
    };
    for tool in [tool("t1234", "", "{}"), tool("t", "aurora", "{}"), tool("t", "", "{\"enum\":[\"aurora\"]}")] {
        let asked = chat(ChatPrompt { tools: vec![tool], ..prompt() });
        assert_eq!(code(enter(asked)), refused);
    }
    let asked = chat(ChatPrompt { tools: vec![tool("t", "like 1234", "{}")], ..prompt() });
    let Asked::Chat(request) = enter(asked).expect("let in") else { unreachable!("a chat") };
    assert_eq!(request.prompt.tools[0].description.as_deref(), Some("like #"));
    let asked = chat(ChatPrompt { template_kwargs: vec![("k".into(), "[\"aurora\"]".into())], ..prompt() });
    assert_eq!(code(enter(asked)), refused);
    let constrained = |constraint| Output { constraint: Some(constraint), ..Default::default() };
    for constraint in [Constraint::Regex("aurora".into()), Constraint::Choice(vec!["1234".into()])] {
        assert_eq!(code(enter(text(Prompt::Text("x".into()), constrained(constraint)))), refused);
    }
    assert_eq!(code(enter(text(Prompt::Tokens(vec![1]), Output::default()))), "unsupported_parameter");
    let Asked::Text(request) = enter(text(Prompt::Text("is 1234".into()), Output::default())).expect("let in") else {
        unreachable!("a text")
    };
    assert_eq!(request.prompts, [Prompt::Text("is #".into())]);
}

#[test]
fn logprobs_are_refused_where_answers_are_looked_at() {
    let output = RuleSpec { deny_words: vec!["x".into()], ..Default::default() };
    let sets = guardrails(&[("a", GuardrailSpec { output, ..Default::default() })]);
    let border = sets.border(["a".to_owned()].iter(), |_| None).expect("there");
    let asked = || chat(ChatPrompt::new(vec![Message::new(Role::User, "hi")]));
    assert_eq!(code(border.enter(asked(), true)), "unsupported_parameter");
    assert!(border.enter(asked(), false).is_ok(), "the gateway's own are its own");
}
