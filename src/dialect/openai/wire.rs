//! Shapes of OpenAI's answers. Keys that its schema requires are written even when null.

use serde::Serialize;
use serde_json::Value;

#[derive(Serialize)]
pub(super) struct Completion<'a, C> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub system_fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
    pub choices: Vec<C>,
    pub usage: UsageCount,
    /// llama-server's.
    pub timings: Value,
}

#[derive(Serialize)]
pub(super) struct ChatChoice<'a> {
    pub index: usize,
    pub message: ChatMessage<'a>,
    pub logprobs: Option<Value>,
    pub finish_reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct ChatMessage<'a> {
    pub role: &'static str,
    pub content: Option<&'a str>,
    pub refusal: Option<&'a str>,
    pub annotations: [(); 0],
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reasoning_content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<Value>,
}

#[derive(Serialize)]
pub(super) struct TextChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub logprobs: Option<Value>,
    pub finish_reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct UsageCount {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

#[derive(Serialize)]
pub(super) struct PromptDetails {
    pub cached_tokens: u32,
    pub audio_tokens: u32,
}

#[derive(Serialize)]
pub(super) struct CompletionDetails {
    pub reasoning_tokens: u32,
    pub audio_tokens: u32,
    pub accepted_prediction_tokens: u32,
    pub rejected_prediction_tokens: u32,
}

/// A model, in the superset that OpenAI's, Anthropic's, vLLM's and llama.cpp's clients read.
#[derive(Serialize)]
pub(super) struct ModelObject<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub owned_by: &'static str,
    /// vLLM's word for the model behind a name.
    pub root: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<ModelMeta>,
    pub status: ModelStatus,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub display_name: &'a str,
    pub created_at: String,
    pub lifecycle: &'static str,
}

/// As llama-server's router has it.
#[derive(Serialize)]
pub(super) struct ModelStatus {
    pub value: &'static str,
}

#[derive(Serialize)]
pub(super) struct ModelMeta {
    pub n_ctx: u32,
    pub n_ctx_train: u32,
    pub n_vocab: u32,
    pub n_embd: u32,
    pub n_params: u64,
    pub size: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sha256: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct ErrorBody<'a> {
    pub error: ErrorObject<'a>,
}

/// All four keys, always; `code` is text or null, never a number.
#[derive(Serialize)]
pub(super) struct ErrorObject<'a> {
    pub message: &'a str,
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub param: Option<&'a str>,
    pub code: Option<&'a str>,
}
