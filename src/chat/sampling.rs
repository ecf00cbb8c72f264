//! How the next token is chosen: what a client may say, and the checked values the engine works with.

use serde::{Deserialize, Serialize};

/// The samplers of llama.cpp's chain that a request may order. Source: `common_sampler_type`, common/common.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    TypicalP,
    TopP,
    MinP,
    Xtc,
    Temperature,
    Infill,
}

impl SamplerKind {
    pub const ALL: [SamplerKind; 10] = [
        SamplerKind::Penalties,
        SamplerKind::Dry,
        SamplerKind::TopNSigma,
        SamplerKind::TopK,
        SamplerKind::TypicalP,
        SamplerKind::TopP,
        SamplerKind::MinP,
        SamplerKind::Xtc,
        SamplerKind::Temperature,
        SamplerKind::Infill,
    ];

    /// The name llama-server uses in `samplers`.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Penalties => "penalties",
            SamplerKind::Dry => "dry",
            SamplerKind::TopNSigma => "top_n_sigma",
            SamplerKind::TopK => "top_k",
            SamplerKind::TypicalP => "typ_p",
            SamplerKind::TopP => "top_p",
            SamplerKind::MinP => "min_p",
            SamplerKind::Xtc => "xtc",
            SamplerKind::Temperature => "temperature",
            SamplerKind::Infill => "infill",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "typical_p" { "typ_p" } else { name };
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Mirostat's version. Source: <https://arxiv.org/abs/2007.14966>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mirostat {
    Off,
    V1,
    V2,
}

macro_rules! sampling {
    ($($(#[$doc:meta])* $field:ident: $ty:ty = $default:expr,)*) => {
        /// What somebody said about sampling: a client, the command line or the model's metadata. `None`: nothing said.
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Sampling {
            $($(#[$doc])* pub $field: Option<$ty>,)*
        }

        /// Sampling with every value settled and in range: what the engine gets.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct SamplingParams {
            $($(#[$doc])* pub $field: $ty,)*
        }

        impl Default for SamplingParams {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Sampling {
            /// The names of all fields, in the order of their declaration.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// `self` where it says something, else `under`.
            #[must_use]
            pub fn over(self, under: &Sampling) -> Sampling {
                Sampling { $($field: self.$field.or_else(|| under.$field.clone()),)* }
            }

            /// Every value settled: what was said, else the built-in default.
            pub fn settle(self) -> SamplingParams {
                let default = SamplingParams::default();
                SamplingParams { $($field: self.$field.unwrap_or(default.$field),)* }
            }
        }
    };
}

sampling! {
    /// `u32::MAX` (llama.cpp's LLAMA_DEFAULT_SEED): a fresh random seed for each request.
    seed: u32 = u32::MAX,
    /// 0 = greedy.
    temperature: f32 = 1.0,
    dynatemp_range: f32 = 0.0,
    dynatemp_exponent: f32 = 1.0,
    /// 0 = off.
    top_k: i32 = 40,
    top_p: f32 = 0.95,
    min_p: f32 = 0.05,
    typical_p: f32 = 1.0,
    /// Negative = off.
    top_n_sigma: f32 = -1.0,
    xtc_probability: f32 = 0.0,
    xtc_threshold: f32 = 0.1,
    /// Least candidates the truncating samplers leave.
    min_keep: u32 = 0,
    /// Tokens the penalties look back; -1 = the context.
    repeat_last_n: i32 = 64,
    repeat_penalty: f32 = 1.0,
    presence_penalty: f32 = 0.0,
    frequency_penalty: f32 = 0.0,
    dry_multiplier: f32 = 0.0,
    dry_base: f32 = 1.75,
    dry_allowed_length: i32 = 2,
    /// Tokens DRY looks back; -1 = the context.
    dry_penalty_last_n: i32 = -1,
    dry_sequence_breakers: Vec<String> = vec!["\n".into(), ":".into(), "\"".into(), "*".into()],
    mirostat: Mirostat = Mirostat::Off,
    mirostat_tau: f32 = 5.0,
    mirostat_eta: f32 = 0.1,
    /// Token id, value added to its logit (minus infinity bans it).
    logit_bias: Vec<(i32, f32)> = Vec::new(),
    ignore_eos: bool = false,
    /// Order of the chain.
    samplers: Vec<SamplerKind> = SamplerKind::ALL[..9].to_vec(),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_wins_over_the_defaults_below() {
        let client = Sampling { temperature: Some(0.0), ..Default::default() };
        let model = Sampling { temperature: Some(0.2), top_k: Some(20), ..Default::default() };
        let params = client.over(&model).settle();
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.0, 20, 0.95));
    }

    #[test]
    fn every_sampler_is_found_by_its_name() {
        for kind in SamplerKind::ALL {
            assert_eq!(SamplerKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(SamplerKind::from_name("nope"), None);
    }
}
