//! Settings in llama.cpp's terms.

use crate::chat::{Mirostat, SamplingParams};
use crate::engine::config::KvType;
use crate::llama::{KvElement, SamplerParams};

/// -1 means the whole context for both look-backs; llama.cpp's samplers allocate what they are told.
pub(super) fn sampler_params(params: &SamplingParams, n_ctx: i32) -> SamplerParams {
    let look_back = |n: i32| if n < 0 { n_ctx } else { n.min(n_ctx) };
    SamplerParams {
        seed: params.seed,
        min_keep: i32::try_from(params.min_keep).unwrap_or(i32::MAX),
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        typical_p: params.typical_p,
        top_n_sigma: params.top_n_sigma,
        xtc_probability: params.xtc_probability,
        xtc_threshold: params.xtc_threshold,
        temperature: params.temperature,
        dynatemp_range: params.dynatemp_range,
        dynatemp_exponent: params.dynatemp_exponent,
        penalty_last_n: look_back(params.repeat_last_n),
        penalty_repeat: params.repeat_penalty,
        penalty_frequency: params.frequency_penalty,
        penalty_presence: params.presence_penalty,
        dry_multiplier: params.dry_multiplier,
        dry_base: params.dry_base,
        dry_allowed_length: params.dry_allowed_length,
        // DRY copies its window; without a multiplier it is off and needs none.
        dry_penalty_last_n: if params.dry_multiplier == 0.0 { 0 } else { look_back(params.dry_penalty_last_n) },
        mirostat: match params.mirostat {
            Mirostat::Off => 0,
            Mirostat::V1 => 1,
            Mirostat::V2 => 2,
        },
        mirostat_tau: params.mirostat_tau,
        mirostat_eta: params.mirostat_eta,
        ignore_eos: params.ignore_eos,
        dry_breakers: params.dry_sequence_breakers.clone(),
        logit_bias: params.logit_bias.clone(),
        samplers: params.samplers.iter().map(|kind| kind.name()).collect(),
    }
}

pub(super) fn element(kind: KvType) -> KvElement {
    match kind {
        KvType::F32 => KvElement::F32,
        KvType::F16 => KvElement::F16,
        KvType::Bf16 => KvElement::Bf16,
        KvType::Q8_0 => KvElement::Q8_0,
        KvType::Q4_0 => KvElement::Q4_0,
        KvType::Q4_1 => KvElement::Q4_1,
        KvType::Iq4Nl => KvElement::Iq4Nl,
        KvType::Q5_0 => KvElement::Q5_0,
        KvType::Q5_1 => KvElement::Q5_1,
    }
}
