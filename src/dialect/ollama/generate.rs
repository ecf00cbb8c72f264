//! `POST /api/generate`: body → what the gateway takes.

use super::chat::overflow;
use super::keep_alive::{KeepAlive, keep_alive};
use super::options::{images, settings, think};
use crate::chat::{CacheAsk, ChatPrompt, ChatRequest, Class, CompletionRequest, Infill, Message, Prompt, Role};
use crate::dialect::fields::Object;
use crate::dialect::media::MediaPlaces;
use crate::dialect::{Fault, Ignored, Read};

/// A request as read.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    pub wanted: Wanted,
    pub model: Option<String>,
    pub stream: bool,
    pub media: MediaPlaces,
    pub with_logprobs: bool,
    pub keep_alive: Option<KeepAlive>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// The prompt goes through the model's chat template as one turn.
    Chat(Box<ChatRequest>),
    /// The prompt as it is, or what stands around the text that is wanted.
    Text(Box<CompletionRequest>),
    /// No prompt: load the model, or unload it.
    Nothing,
}

pub fn generate_request(body: &[u8]) -> Result<Read<Generate>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let mut places = MediaPlaces::default();
    let model = super::model(&mut body)?;
    let stream = body.bool("stream")?.unwrap_or(true);
    let text = body.string("prompt")?.unwrap_or_default();
    let suffix = body.string("suffix")?.unwrap_or_default();
    let system = body.string("system")?.unwrap_or_default();
    let is_raw = body.bool("raw")?.unwrap_or(false);
    let media = images(&mut body, &mut places)?;
    let (sampling, output) = settings(&mut body, &mut ignored)?;
    let with_logprobs = output.top_logprobs.is_some();
    let mut prompt = ChatPrompt::new(Vec::new());
    think(&mut body, &mut prompt)?;
    // The model's own template is the one that fits it, and earlier turns belong into /api/chat.
    body.accept(&["template", "context"]);
    overflow(&mut body)?;
    let has_template = suffix.is_empty() && !is_raw;
    if !has_template {
        let why =
            if is_raw { "a raw prompt has no place for it" } else { "a prompt with a suffix has no place for it" };
        for (key, is_given) in [("system", !system.is_empty()), ("images", !media.is_empty())] {
            if is_given {
                return Err(body.unsupported(key, why));
            }
        }
    }
    let wanted = if text.is_empty() && suffix.is_empty() && media.is_empty() {
        Wanted::Nothing
    } else if has_template {
        if !system.is_empty() {
            prompt.messages.push(Message::new(Role::System, system));
        }
        prompt.messages.push(Message { media, ..Message::new(Role::User, text) });
        Wanted::Chat(Box::new(ChatRequest {
            model: model.clone(),
            prompt,
            sampling,
            output,
            n: 1,
            stream,
            include_usage: true,
            cache_prompt: true,
            lora: None,
            end_user: None,
            cache: CacheAsk::default(),
            class: Class::default(),
        }))
    } else {
        let prompt = match suffix.is_empty() {
            true => Prompt::Text(text),
            false => Prompt::Infill(Infill { prefix: text, suffix, ..Default::default() }),
        };
        Wanted::Text(Box::new(CompletionRequest {
            model: model.clone(),
            prompts: vec![prompt],
            sampling,
            output,
            n: 1,
            best_of: 1,
            stream,
            include_usage: true,
            cache_prompt: true,
            lora: None,
            end_user: None,
            cache: CacheAsk::default(),
        }))
    };
    let keep_alive = keep_alive(&mut body)?;
    body.finish(&mut ignored);
    Ok(Read { request: Generate { wanted, model, stream, media: places, with_logprobs, keep_alive }, ignored })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn wanted(body: Value) -> Result<Wanted, Fault> {
        generate_request(body.to_string().as_bytes()).map(|read| read.request.wanted)
    }

    #[test]
    fn a_prompt_is_one_turn_unless_it_is_raw() {
        let Ok(Wanted::Chat(chat)) = wanted(json!({"prompt":"p","system":"s","images":["AQID"],"context":[1]})) else {
            panic!("a chat");
        };
        let shape: Vec<_> = chat.prompt.messages.iter().map(|it| (it.role, it.content.as_deref())).collect();
        assert_eq!(shape, [(Role::System, Some("s")), (Role::User, Some("p"))]);
        assert_eq!(chat.prompt.messages[1].media.len(), 1);
        let Ok(Wanted::Text(text)) = wanted(json!({"prompt":"p","raw":true,"template":"x"})) else { panic!("a text") };
        assert_eq!(text.prompts, [Prompt::Text("p".into())]);
    }

    /// OLLA-12.
    #[test]
    fn a_suffix_is_infill_also_of_an_empty_beginning() {
        for prefix in ["a", ""] {
            let Ok(Wanted::Text(text)) = wanted(json!({"prompt":prefix,"suffix":"b"})) else { panic!("a text") };
            let infill = Infill { prefix: prefix.into(), suffix: "b".into(), ..Default::default() };
            assert_eq!(text.prompts, [Prompt::Infill(infill)]);
        }
    }

    #[test]
    fn nothing_is_asked_and_what_has_no_place_is_named() {
        assert_eq!(wanted(json!({"model":"m"})), Ok(Wanted::Nothing));
        assert_eq!(wanted(json!({"prompt":"","keep_alive":0})), Ok(Wanted::Nothing));
        for (body, param) in [
            (json!({"prompt":"p","raw":true,"system":"s"}), "system"),
            (json!({"prompt":"p","raw":true,"images":["AQID"]}), "images"),
            (json!({"prompt":"p","suffix":"s","system":"s"}), "system"),
            (json!({"prompt":["p"]}), "prompt"),
            (json!({"prompt":"p","raw":"yes"}), "raw"),
        ] {
            assert_eq!(wanted(body).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
