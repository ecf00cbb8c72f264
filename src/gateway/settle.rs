//! What a request comes to before it leaves for an engine: its sampling settled, its media checked.

use super::{Error, ModelConfig, Target};
use crate::chat::check::{self, Refusal};
use crate::chat::{ChatPrompt, MediaKind, Sampling, SamplingParams};
use crate::engine::Description;

/// Sampling as the engine gets it when a client says nothing.
pub fn default_sampling(target: &Target) -> SamplingParams {
    settle(Sampling::default(), &target.config, &target.description)
}

/// The client over the operator over the template.
pub(super) fn settle_chat(prompt: &mut ChatPrompt, config: &ModelConfig) {
    // A client that says how hard to think says that, too.
    if prompt.reasoning_effort.is_none() {
        prompt.enable_thinking = prompt.enable_thinking.or(config.thinks);
    }
}

/// The client over the operator over the model over the built-in defaults.
pub(super) fn settle(said: Sampling, config: &ModelConfig, description: &Description) -> SamplingParams {
    let said = said.over(&config.sampling);
    // The model's suggestions come from a file that nobody here wrote.
    let said = match check::sampling(&description.sampling) {
        Ok(()) => said.over(&description.sampling),
        Err(refusal) => {
            tracing::warn!(field = refusal.field, "the model's sampling suggestions are out of range and unused");
            said
        }
    };
    let mut params = said.settle();
    if params.top_p <= 0.0 {
        // Nothing but the most likely token is left: greedy, without asking the sampler to divide by nothing.
        params.temperature = 0.0;
    }
    params
}

/// Bytes of images and sounds of all choices together: each choice carries its own copy to the engine.
const MEDIA_BYTES_MAX: usize = 256 << 20;

/// A model without a projector for it can't see an image or hear a sound. The field is `media[k]` with k counted over all
/// messages; where that stands in the body is the dialect's to say.
pub(super) fn refuse_media(prompt: &ChatPrompt, n_choices: u32, description: &Description) -> Result<(), Error> {
    let (mut n_bytes, mut k) = (0, 0);
    for media in prompt.messages.iter().flat_map(|message| &message.media) {
        let (kind, what) = match media.kind {
            MediaKind::Image | MediaKind::RemoteImage => (MediaKind::Image, "images"),
            MediaKind::Audio => (MediaKind::Audio, "sound"),
        };
        if !description.media.contains(&kind) {
            let message = format!("This model takes no {what}, and a part of the message is one.");
            return Err(Refusal::new(format!("media[{k}]"), "unsupported_content", message).into());
        }
        n_bytes += media.data.len();
        k += 1;
    }
    if n_bytes.saturating_mul(n_choices as usize) <= MEDIA_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "The images and sounds of all choices may have at most {MEDIA_BYTES_MAX} bytes, but {n_choices} choices of \
         {n_bytes} bytes are more."
    );
    Err(Refusal::new("n", "integer_above_max_value", message).into())
}
