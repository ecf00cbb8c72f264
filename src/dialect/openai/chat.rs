//! `POST /v1/chat/completions`: body → [`ChatRequest`].

use super::lora::lora;
use super::messages::messages;
use super::sampling::{Limit, accept_or_refuse, choices, sampling, stop, stream, token_limit};
use crate::chat::check::{self, TOP_LOGPROBS_MAX};
use crate::chat::{ChatPrompt, ChatRequest, Output, ReasoningFormat, Role};
use crate::dialect::fields::{Object, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored, Read};
use serde_json::Value;

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// Variables for the chat template; more is a mistake.
const TEMPLATE_KWARGS_MAX: usize = 128;

pub fn chat_request(body: &[u8]) -> Result<Read<ChatRequest>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let prompt = chat_prompt(&mut body, &mut ignored)?;
    refuse_audio(&mut body)?;
    accept_or_refuse(&mut body)?;
    let sampling = sampling(&mut body)?;
    let output = Output {
        max_tokens: max_tokens(&mut body)?,
        stop: stop(&mut body)?,
        top_logprobs: top_logprobs(&mut body)?,
        ..Default::default()
    };
    check::output(&output)?;
    let (stream, include_usage) = stream(&mut body, &mut ignored)?;
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
    };
    body.finish(&mut ignored);
    Ok(Read { request, ignored })
}

/// What the template gets: messages, tools (not yet), and its switches.
pub(super) fn chat_prompt(body: &mut Object, ignored: &mut Ignored) -> Result<ChatPrompt, Fault> {
    let mut prompt = ChatPrompt::new(messages(body, ignored)?);
    refuse_tools(body)?;
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
    Ok(prompt)
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
        } else {
            prompt.template_kwargs.push((name, value.to_string()));
        }
    }
    Ok(())
}

/// Tool calls in the history are fine; offering tools is not, until their output is constrained.
fn refuse_tools(body: &mut Object) -> Result<(), Fault> {
    for key in ["tools", "functions"] {
        if body.array(key)?.is_some_and(|tools| !tools.is_empty()) {
            return Err(body.unsupported(key, "this server does not call tools"));
        }
    }
    for key in ["tool_choice", "function_call"] {
        match body.take(key) {
            None => {}
            Some(Value::String(choice)) if choice == "auto" || choice == "none" => {}
            Some(Value::String(choice)) if choice == "required" && key == "tool_choice" => {
                return Err(Fault::new(key, "invalid_value", "tool_choice is \"required\", but no tools are given."));
            }
            Some(Value::Object(_)) => {
                return Err(Fault::new(key, "invalid_value", format!("{key} names a tool, but no tools are given.")));
            }
            Some(Value::String(other)) => return Err(invalid_value(key, &other, "auto, none")),
            Some(other) => return Err(invalid_type(key, "a string or an object", &other)),
        }
    }
    body.bool("parallel_tool_calls").map(|_| ())
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
    use serde_json::json;

    fn read(extra: Value) -> Result<Read<ChatRequest>, Fault> {
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
    fn what_can_not_be_done_yet_is_refused_by_name() {
        for (extra, param) in [
            (json!({"tools":[{"type":"function","function":{"name":"f"}}]}), "tools"),
            (json!({"functions":[{"name":"f"}]}), "functions"),
            (json!({"response_format":{"type":"json_object"}}), "response_format"),
            (json!({"grammar":"root ::= \"a\""}), "grammar"),
            (json!({"json_schema":{}}), "json_schema"),
            (json!({"guided_regex":"a"}), "guided_regex"),
            (json!({"structured_outputs":{"regex":"a"}}), "structured_outputs"),
            (json!({"modalities":["text","audio"],"audio":{"voice":"x"}}), "modalities"),
            (json!({"web_search_options":{}}), "web_search_options"),
            (json!({"moderation":true}), "moderation"),
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
            json!({"prediction":{"type":"content","content":"x"},"service_tier":"flex","verbosity":"low"}),
        ] {
            let read = read(extra).unwrap();
            assert!(!read.request.include_usage && read.ignored.header().is_none());
        }
        assert_eq!(fault(json!({"tool_choice":"required"})).0, "tool_choice");
        assert_eq!(fault(json!({"response_format":{"type":"yaml"}})).0, "response_format.type");
        assert_eq!(fault(json!({"response_format":"text"})), ("response_format".into(), "invalid_type"));
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
