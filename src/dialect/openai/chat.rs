//! `POST /v1/chat/completions`: body → [`Chat`].

use super::format::{constraint, constraint_name};
use super::lora::lora;
use super::messages::messages;
use super::parts::Found;
use super::sampling::{Limit, accept_or_refuse, choices, class, prediction, sampling, stop, stream, token_limit};
use super::tools::{CallStyle, tools};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{ChatPrompt, ChatRequest, Class, Output, ReasoningFormat, Role, ToolChoice};
use crate::dialect::caching::cache;
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored, Read, Wanted};
use serde_json::Value;

pub(in crate::dialect) const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// Variables for the chat template; more is a mistake.
const TEMPLATE_KWARGS_MAX: usize = 128;

/// A chat as read, with what the form of its answer and of its refusals depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    pub request: ChatRequest,
    pub style: ChatStyle,
    pub places: Places,
}

/// How the answer to a chat is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChatStyle {
    pub with_logprobs: bool,
    /// Only for a stream; a whole answer always has its usage.
    pub include_usage: bool,
    pub calls: CallStyle,
    /// The answer is a call, so its content is null from the start.
    pub is_forced: bool,
    pub wanted: Wanted,
    pub class: Class,
}

/// Paths in the body of what only the engine or the model can judge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// The field that holds the constraint.
    constraint: Option<String>,
    calls: CallStyle,
    /// The type of each image's and sound's part, in order.
    media: Vec<String>,
}

impl Places {
    /// Where the client wrote what the engine or the gateway calls `field`.
    pub fn name(&self, field: &str) -> String {
        let index = field.strip_prefix("media[").and_then(|rest| rest.strip_suffix(']'));
        if let Some(path) = index.and_then(|index| self.media.get(index.parse::<usize>().ok()?)) {
            return path.clone();
        }
        match field.strip_prefix("tools[") {
            Some(rest) if self.calls == CallStyle::FunctionCall => {
                format!("functions[{}", rest.replacen(".function.", ".", 1))
            }
            _ => constraint_name(self.constraint.as_deref(), field),
        }
    }
}

pub fn chat_request(body: &[u8]) -> Result<Read<Chat>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let (prompt, mut places) = chat_prompt(&mut body, &mut ignored)?;
    refuse_audio(&mut body)?;
    // Before what has no effect is accepted: it names the tier too.
    let class = class(&mut body);
    accept_or_refuse(&mut body)?;
    let sampling = sampling(&mut body)?;
    let is_forced = prompt.tool_choice == ToolChoice::Required;
    // A constraint is about the answer's text, and an answer that must be a call has none.
    let asked = constraint(&mut body, &mut ignored)?.filter(|_| !is_forced);
    let constraint;
    (places.constraint, constraint) = asked.map(|asked| (asked.field, asked.constraint)).unzip();
    let output = Output {
        with_tokens: false,
        max_tokens: max_tokens(&mut body)?,
        stop: stop(&mut body)?,
        top_logprobs: top_logprobs(&mut body)?,
        echo: false,
        constraint,
        prediction: prediction(&mut body, &mut ignored)?,
    };
    check::output(&output)?;
    let (stream, include_usage) = stream(&mut body, &mut ignored)?;
    let with_logprobs = output.top_logprobs.is_some();
    let wanted = Wanted::read(&mut body)?;
    let style = ChatStyle { with_logprobs, include_usage, calls: places.calls, is_forced, wanted, class };
    let request = ChatRequest {
        model: body.string("model")?,
        prompt,
        sampling,
        output,
        n: choices(&mut body)?,
        stream,
        include_usage,
        cache_prompt: body.bool("cache_prompt")?.unwrap_or(true),
        lora: lora(&mut body, &mut ignored)?,
        end_user: body.end_user(),
        cache: cache(&mut body, &mut ignored)?,
        class,
    };
    body.finish(&mut ignored);
    Ok(Read { request: Chat { request, style, places }, ignored })
}

/// What the template gets: messages, tools, and its switches.
pub(super) fn chat_prompt(body: &mut Object, ignored: &mut Ignored) -> Result<(ChatPrompt, Places), Fault> {
    let mut found = Found { ignored, media: Vec::new() };
    let mut prompt = ChatPrompt::new(messages(body, &mut found)?);
    let Found { ignored, media } = found;
    let places = Places { constraint: None, calls: tools(body, &mut prompt, ignored)?, media };
    template_kwargs(body, &mut prompt)?;
    if let Some(effort) = body.string("reasoning_effort")? {
        if !EFFORTS.contains(&effort.as_str()) {
            return Err(invalid_value("reasoning_effort", &effort, &EFFORTS.join(", ")));
        }
        if effort == "none" {
            prompt.enable_thinking = Some(false);
        }
        prompt.reasoning_effort = Some(effort);
    }
    prompt.reasoning_format = match body.string("reasoning_format")?.as_deref() {
        None | Some("auto" | "deepseek") => ReasoningFormat::Separate,
        Some("none") => ReasoningFormat::Inline,
        Some(other) => return Err(invalid_value("reasoning_format", other, "auto, deepseek, none")),
    };
    turns(body, &mut prompt)?;
    Ok((prompt, places))
}

/// Whether a new turn is opened or the last one continued.
fn turns(body: &mut Object, prompt: &mut ChatPrompt) -> Result<(), Fault> {
    let add_generation_prompt = body.bool("add_generation_prompt")?;
    prompt.continue_final_message = body.bool("continue_final_message")?.unwrap_or(false);
    if !prompt.continue_final_message {
        prompt.add_generation_prompt = add_generation_prompt.unwrap_or(true);
        return Ok(());
    }
    let fault =
        |why: &str| Fault::new("continue_final_message", "invalid_value", format!("continue_final_message {why}."));
    if add_generation_prompt == Some(true) {
        return Err(fault("and add_generation_prompt can't both be true"));
    }
    if prompt.messages.last().map(|message| message.role) != Some(Role::Assistant) {
        return Err(fault("needs a last message of the role assistant"));
    }
    prompt.add_generation_prompt = false;
    Ok(())
}

/// Variables that the engine sets: a second conversation behind the first would pass by all that looks at it.
const RESERVED_KWARGS: [&str; 5] = ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt"];

fn template_kwargs(body: &mut Object, prompt: &mut ChatPrompt) -> Result<(), Fault> {
    let entries = match body.take("chat_template_kwargs") {
        None => return Ok(()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(invalid_type("chat_template_kwargs", "an object", &other)),
    };
    if entries.len() > TEMPLATE_KWARGS_MAX {
        return Err(too_many("chat_template_kwargs", entries.len(), TEMPLATE_KWARGS_MAX));
    }
    for (name, value) in entries {
        if name == "enable_thinking" {
            let path = "chat_template_kwargs.enable_thinking";
            prompt.enable_thinking = Some(value.as_bool().ok_or_else(|| invalid_type(path, "a boolean", &value))?);
        } else if RESERVED_KWARGS.contains(&name.as_str()) {
            let message =
                format!("chat_template_kwargs.{name} is what the request itself says, and can't be said again.");
            return Err(Fault::new(format!("chat_template_kwargs.{name}"), "invalid_value", message));
        } else {
            prompt.template_kwargs.push((name, value.to_string()));
        }
    }
    Ok(())
}

fn refuse_audio(body: &mut Object) -> Result<(), Fault> {
    for (i, value) in body.array("modalities")?.unwrap_or_default().into_iter().enumerate() {
        match value.as_str() {
            Some("text") => {}
            Some("audio") => return Err(body.unsupported("modalities", "this server answers with text only")),
            Some(other) => return Err(invalid_value(format!("modalities[{i}]"), other, "text")),
            None => return Err(invalid_type(format!("modalities[{i}]"), "a string", &value)),
        }
    }
    // Settings of a voice that nobody asked to hear.
    body.accept(&["audio"]);
    Ok(())
}

fn max_tokens(body: &mut Object) -> Result<Option<u32>, Fault> {
    let newer = token_limit(body, "max_completion_tokens", 1)?;
    let older = token_limit(body, "max_tokens", 1)?;
    Ok(newer.or(older).and_then(Limit::tokens))
}

fn top_logprobs(body: &mut Object) -> Result<Option<u8>, Fault> {
    let wanted = body.bool("logprobs")?.unwrap_or(false);
    let top = body.integer("top_logprobs", 0, TOP_LOGPROBS_MAX.into())?.and_then(|k| u8::try_from(k).ok());
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            Err(Fault::new("top_logprobs", "invalid_value", "top_logprobs needs logprobs to be true, and it is not."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Constraint;
    use serde_json::json;

    fn read(extra: Value) -> Result<Read<ChatRequest>, Fault> {
        read_chat(extra).map(|Read { request, ignored }| Read { request: request.request, ignored })
    }

    fn read_chat(extra: Value) -> Result<Read<Chat>, Fault> {
        let mut body = json!({"messages":[{"role":"user","content":"hi"}]});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        chat_request(body.to_string().as_bytes())
    }

    fn fault(extra: Value) -> (String, &'static str) {
        let shown = extra.to_string();
        let fault = read(extra).err().unwrap_or_else(|| panic!("{shown} should be refused"));
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn every_optional_field_may_be_null() {
        let nulls = [
            "model",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "seed",
            "n",
            "stop",
            "stream",
            "stream_options",
            "logprobs",
            "top_logprobs",
            "response_format",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "functions",
            "function_call",
            "reasoning_effort",
            "verbosity",
            "prediction",
            "modalities",
            "audio",
            "web_search_options",
            "moderation",
            "store",
            "metadata",
            "user",
            "service_tier",
            "top_k",
            "min_p",
            "grammar",
            "json_schema",
            "guided_json",
            "chat_template_kwargs",
            "samplers",
            "vendor_field",
        ];
        let extra: serde_json::Map<_, _> = nulls.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
        let read = read(Value::Object(extra)).unwrap();
        assert_eq!(read.ignored.header(), None);
        assert_eq!(read.request.sampling, crate::chat::Sampling::default());
    }

    #[test]
    fn unknown_fields_are_listed_wherever_they_are() {
        let read = read(json!({
            "provider": {}, "stream": true, "stream_options": {"include_usage": true, "x": 1, "include_obfuscation": true},
            "messages": [{"role":"user","content":[{"type":"text","text":"t","odd":1}],"mood":"good"}],
        }))
        .unwrap();
        assert_eq!(
            read.ignored.header().as_deref(),
            Some("messages[0].content[0].odd, messages[0].mood, stream_options.x, provider")
        );
        assert!(read.request.include_usage);
    }

    #[test]
    fn limits_follow_the_contract() {
        let limit = |extra| read(extra).map(|read| read.request.output.max_tokens);
        assert_eq!(limit(json!({"max_tokens": 1_000_000})), Ok(Some(1_000_000)));
        assert_eq!(limit(json!({"max_tokens": -1})), Ok(None));
        assert_eq!(limit(json!({"max_tokens": 9_223_372_036_854_775_808u64})), Ok(Some(u32::MAX)));
        assert_eq!(limit(json!({"max_tokens": 5, "max_completion_tokens": 7})), Ok(Some(7)));
        assert_eq!(fault(json!({"max_tokens": 0})), ("max_tokens".into(), "integer_below_min_value"));
        assert_eq!(fault(json!({"max_completion_tokens": -2})).0, "max_completion_tokens");
        assert_eq!(fault(json!({"max_tokens": 1.5})).1, "invalid_type");
        assert_eq!(fault(json!({"n": 0})), ("n".into(), "integer_below_min_value"));
        assert_eq!(fault(json!({"n": 1_000_000_000})), ("n".into(), "integer_above_max_value"));
    }

    #[test]
    fn logit_bias_is_clamped_and_its_keys_are_token_ids() {
        let bias = read(json!({"logit_bias": {"5": 200, "6": -100, "7": 1.5, "99999999999": 1, "-3": 1}})).unwrap();
        assert_eq!(bias.request.sampling.logit_bias, Some(vec![(5, 100.0), (6, f32::NEG_INFINITY), (7, 1.5)]));
        assert_eq!(fault(json!({"logit_bias": {"x": 1}})), ("logit_bias".into(), "invalid_value"));
        assert_eq!(fault(json!({"logit_bias": {"1": "x"}})), ("logit_bias.1".into(), "invalid_type"));
        assert_eq!(fault(json!({"logit_bias": []})).1, "invalid_type");
    }

    #[test]
    fn logprobs_are_asked_for_by_two_fields() {
        let top = |extra| read(extra).map(|read| read.request.output.top_logprobs);
        assert_eq!(top(json!({"logprobs": true})), Ok(Some(0)));
        assert_eq!(top(json!({"logprobs": true, "top_logprobs": 20})), Ok(Some(20)));
        assert_eq!(fault(json!({"top_logprobs": 3})).0, "top_logprobs");
        assert_eq!(fault(json!({"logprobs": true, "top_logprobs": 21})).1, "integer_above_max_value");
    }

    #[test]
    fn stop_is_a_string_or_several() {
        let stop = |extra| read(extra).map(|read| read.request.output.stop);
        assert_eq!(stop(json!({"stop": "a"})), Ok(vec!["a".to_owned()]));
        assert_eq!(stop(json!({"stop": ["", "b"]})), Ok(vec!["b".to_owned()]));
        assert_eq!(stop(json!({"stop": ""})), Ok(vec![]));
        assert_eq!(fault(json!({"stop": [1]})), ("stop[0]".into(), "invalid_type"));
        assert_eq!(fault(json!({"stop": vec!["x"; 100_000]})).0, "stop");
    }

    #[test]
    fn what_can_not_be_done_is_refused_by_name() {
        for (extra, param) in [
            (json!({"modalities":["text","audio"],"audio":{"voice":"x"}}), "modalities"),
            (json!({"web_search_options":{}}), "web_search_options"),
            (json!({"moderation":true}), "moderation"),
            (json!({"structural_tag":"x"}), "structural_tag"),
        ] {
            assert_eq!(fault(extra), (param.to_owned(), "unsupported_parameter"));
        }
    }

    #[test]
    fn what_asks_for_nothing_is_fine() {
        for extra in [
            json!({"tools":[],"tool_choice":"auto","parallel_tool_calls":true}),
            json!({"response_format":{"type":"text"},"grammar":"","modalities":["text"]}),
            json!({"stream_options":{"include_usage":true}}),
            json!({"service_tier":"flex","verbosity":"low","prediction":null,"lora":[]}),
        ] {
            let read = read(extra).unwrap();
            assert!(!read.request.include_usage && read.ignored.header().is_none());
            assert_eq!(read.request.output, Output::default());
        }
    }

    #[test]
    fn a_tier_that_may_wait_is_the_batch_class() {
        for tier in ["auto", "default", "priority", "scale"] {
            assert_eq!(read(json!({"service_tier":tier})).unwrap().request.class, Class::Interactive, "{tier}");
        }
        assert_eq!(read(json!({})).unwrap().request.class, Class::Interactive);
        let flex = read_chat(json!({"service_tier":"flex"})).unwrap().request;
        assert_eq!((flex.request.class, flex.style.class), (Class::Batch, Class::Batch));
    }

    #[test]
    fn a_forced_call_has_no_text_to_constrain() {
        let tools = json!([{"type":"function","function":{"name":"f"}}]);
        let format = json!({"type":"json_object"});
        let of =
            |choice: &str| read_chat(json!({"tools":tools,"tool_choice":choice,"response_format":format})).unwrap();
        let auto = of("auto").request;
        assert_eq!(auto.request.output.constraint, Some(Constraint::JsonObject), "JSON-06");
        assert!(!auto.style.is_forced && auto.places.name("grammar") == "response_format");
        let forced = of("required").request;
        assert!(forced.style.is_forced && forced.request.output.constraint.is_none());
    }

    #[test]
    fn refusals_of_the_engine_get_the_names_of_the_body() {
        let older = read_chat(json!({"functions":[{"name":"f"}],"guided_regex":"("})).unwrap().request.places;
        assert_eq!(older.name("tools[0].function.parameters"), "functions[0].parameters");
        assert_eq!(older.name("regex"), "guided_regex");
        let newer = read_chat(json!({"tools":[{"type":"function","function":{"name":"f"}}]})).unwrap().request.places;
        assert_eq!(newer.name("tools[0].function.parameters"), "tools[0].function.parameters");
        assert_eq!(newer.name("messages"), "messages");
        let image = json!({"type":"image_url","image_url":"data:image/png;base64,AQID"});
        let messages = json!([{"role":"user","content":[{"type":"text","text":"x"},image]}]);
        let seen = read_chat(json!({ "messages": messages })).unwrap().request.places;
        assert_eq!(
            (seen.name("media[0]").as_str(), seen.name("media[1]").as_str()),
            ("messages[0].content[1].type", "media[1]")
        );
    }

    #[test]
    fn a_prediction_is_a_text_or_its_parts() {
        let of = |prediction: Value| read(json!({"prediction":prediction})).map(|read| read.request.output.prediction);
        assert_eq!(of(json!({"type":"content","content":"ab"})), Ok(Some("ab".into())));
        let parts = json!([{"type":"text","text":"a"},{"type":"text","text":"b"}]);
        assert_eq!(of(json!({"type":"content","content":parts})), Ok(Some("ab".into())));
        assert_eq!(of(json!({"type":"content","content":""})), Ok(None));
        for (prediction, param) in [
            (json!("x"), "prediction"),
            (json!({"content":"x"}), "prediction.type"),
            (json!({"type":"guess","content":"x"}), "prediction.type"),
            (json!({"type":"content"}), "prediction.content"),
            (json!({"type":"content","content":5}), "prediction.content"),
            (json!({"type":"content","content":[{"type":"image_url"}]}), "prediction.content[0].type"),
        ] {
            assert_eq!(of(prediction).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn adapters_have_an_id_and_a_scale() {
        let of = |lora: Value| read(json!({ "lora": lora })).map(|read| read.request.lora);
        assert_eq!(of(json!([{"id":0,"scale":0.5},{"id":2,"scale":1}])), Ok(Some(vec![(0, 0.5), (2, 1.0)])));
        for (lora, param) in [
            (json!({}), "lora"),
            (json!([1]), "lora[0]"),
            (json!([{"scale":1}]), "lora[0].id"),
            (json!([{"id":-1}]), "lora[0].id"),
            (json!([{"id":0,"scale":"x"}]), "lora[0].scale"),
            (json!([{"id":0}]), "lora[0].scale"),
            (json!([{"id":0,"scale":1},{"id":0,"scale":1}]), "lora[1].id"),
        ] {
            assert_eq!(of(lora).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn thinking_can_be_switched_off_in_two_ways() {
        let thinking = |extra| read(extra).unwrap().request.prompt.enable_thinking;
        assert_eq!(thinking(json!({"reasoning_effort":"none"})), Some(false));
        assert_eq!(thinking(json!({"reasoning_effort":"high"})), None);
        assert_eq!(thinking(json!({"chat_template_kwargs":{"enable_thinking":false}})), Some(false));
        assert_eq!(fault(json!({"reasoning_effort":"a lot"})).1, "invalid_value");
    }

    #[test]
    fn template_arguments_stay_json_text() {
        let read = read(json!({"chat_template_kwargs":{"a":{"b":[1]},"c":"x"}})).unwrap();
        let kwargs = read.request.prompt.template_kwargs;
        assert_eq!(kwargs, [("a".into(), "{\"b\":[1]}".into()), ("c".into(), "\"x\"".into())]);
    }

    #[test]
    fn a_final_message_is_continued_only_if_it_is_the_assistants() {
        assert_eq!(fault(json!({"continue_final_message": true})).0, "continue_final_message");
        let messages = json!([{"role":"user","content":"a"},{"role":"assistant","content":"b"}]);
        let read = read(json!({"continue_final_message": true, "messages": messages})).unwrap();
        assert!(read.request.prompt.continue_final_message && !read.request.prompt.add_generation_prompt);
    }
}
