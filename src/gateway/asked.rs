//! A request that generates, before it is known who answers.

use super::running::Keep;
use super::trace::AskedFor;
use crate::chat::{CacheAsk, ChatRequest, Class, CompletionRequest, Output, Prompt, PromptPart, Sampling};
use crate::dialect::remote::{Outgoing, Unsupported, Wire};

#[derive(Clone)]
pub(super) enum Asked {
    Chat(ChatRequest),
    Text(CompletionRequest),
}

impl Asked {
    pub(super) fn model(&self) -> Option<&str> {
        match self {
            Asked::Chat(request) => request.model.as_deref(),
            Asked::Text(request) => request.model.as_deref(),
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        match self {
            Asked::Chat(request) => request.stream,
            Asked::Text(request) => request.stream,
        }
    }

    pub(super) fn cache(&self) -> &CacheAsk {
        match self {
            Asked::Chat(request) => &request.cache,
            Asked::Text(request) => &request.cache,
        }
    }

    pub(super) fn output(&self) -> &Output {
        match self {
            Asked::Chat(request) => &request.output,
            Asked::Text(request) => &request.output,
        }
    }

    /// The queue that the client is content with.
    pub(super) fn class(&self) -> Class {
        match self {
            Asked::Chat(request) => request.class,
            Asked::Text(_) => Class::default(),
        }
    }

    /// Whom the client says that it acts for.
    pub(super) fn end_user(&self) -> Option<&str> {
        match self {
            Asked::Chat(request) => request.end_user.as_deref(),
            Asked::Text(request) => request.end_user.as_deref(),
        }
    }

    /// The same with an answer of this length; `None` if that is what it says.
    pub(super) fn of_length(&self, max_tokens: Option<u32>) -> Option<Self> {
        (max_tokens != self.max_tokens()).then(|| {
            let mut asked = self.clone();
            match &mut asked {
                Asked::Chat(request) => request.output.max_tokens = max_tokens,
                Asked::Text(request) => request.output.max_tokens = max_tokens,
            }
            asked
        })
    }

    pub(super) fn max_tokens(&self) -> Option<u32> {
        self.output().max_tokens
    }

    pub(super) fn n_choices(&self) -> usize {
        match self {
            Asked::Chat(request) => request.n as usize,
            Asked::Text(request) => request.n as usize * request.prompts.len(),
        }
    }

    pub(super) fn keep(&self) -> Keep {
        let n = match self {
            Asked::Chat(request) => request.n as usize,
            Asked::Text(request) => request.n as usize,
        };
        Keep { of: n, n }
    }

    fn sampling(&self) -> &Sampling {
        match self {
            Asked::Chat(request) => &request.sampling,
            Asked::Text(request) => &request.sampling,
        }
    }

    /// What it says in numbers.
    pub(super) fn numbers(&self) -> AskedFor {
        let said = self.sampling();
        AskedFor {
            n_choices: u32::try_from(self.n_choices()).unwrap_or(u32::MAX),
            max_tokens: self.max_tokens(),
            temperature: said.temperature,
            top_p: said.top_p,
            top_k: said.top_k,
            seed: said.seed,
            frequency_penalty: said.frequency_penalty,
            presence_penalty: said.presence_penalty,
        }
    }

    /// Whether the client asked for the same answer each time.
    pub(super) fn is_steady(&self) -> bool {
        let said = self.sampling();
        said.temperature == Some(0.0) || said.seed.is_some_and(|seed| seed != u32::MAX)
    }

    pub(super) fn with_logprobs(&self) -> Self {
        let mut asked = self.clone();
        let output = match &mut asked {
            Asked::Chat(request) => &mut request.output,
            Asked::Text(request) => &mut request.output,
        };
        output.top_logprobs = output.top_logprobs.or(Some(0));
        asked
    }

    pub(super) fn outgoing(&self, wire: &Wire) -> Result<Outgoing, Unsupported> {
        match self {
            Asked::Chat(request) => wire.chat(request),
            Asked::Text(request) => wire.completion(request),
        }
    }

    /// A copy of what is asked.
    pub(super) fn prompts(&self) -> Vec<Prompt> {
        match self {
            Asked::Chat(request) => vec![Prompt::Chat(request.prompt.clone())],
            Asked::Text(request) => request.prompts.clone(),
        }
    }

    /// Bytes of the texts that the prompt is made of.
    pub(super) fn prompt_bytes(&self) -> usize {
        match self {
            Asked::Chat(request) => {
                let messages = request.prompt.messages.iter().filter_map(|message| message.content.as_ref());
                let tools = request.prompt.tools.iter().map(|tool| tool.parameters.len() + tool.name.len());
                messages.map(String::len).sum::<usize>() + tools.sum::<usize>()
            }
            Asked::Text(request) => {
                let n_bytes = |prompt: &Prompt| match prompt {
                    Prompt::Text(text) => text.len(),
                    Prompt::Tokens(tokens) => tokens.len() * 4,
                    Prompt::Mixed(parts) => parts.iter().map(part_bytes).sum(),
                    Prompt::Infill(infill) => infill.prefix.len() + infill.suffix.len() + infill.prompt.len(),
                    Prompt::Chat(_) => 0,
                };
                request.prompts.iter().map(n_bytes).sum()
            }
        }
    }
}

/// A token is about four bytes.
fn part_bytes(part: &PromptPart) -> usize {
    match part {
        PromptPart::Text(text) => text.len(),
        PromptPart::Token(_) => 4,
    }
}
