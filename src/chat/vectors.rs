//! Asking for vectors and scores, in any dialect's words.

use super::Prompt;

/// Texts to become vectors.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EmbedAsk {
    pub model: Option<String>,
    /// Each is `Text`, `Tokens` or `Mixed`.
    pub inputs: Vec<Prompt>,
    /// Cut what is too long for the model instead of refusing it.
    pub truncate: bool,
    /// Keep only this many numbers of each vector, before it is normalised.
    pub dimensions: Option<u32>,
    pub norm: Norm,
    /// The person or program that the client acts for.
    pub end_user: Option<String>,
    /// A vector for each token is fine, where that is how the model is served.
    pub takes_tokens: bool,
}

/// Documents to be scored against a query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RerankAsk {
    pub model: Option<String>,
    pub query: String,
    pub documents: Vec<String>,
    /// Tokens of a document that count; `None`: all.
    pub n_document_max: Option<u32>,
    pub end_user: Option<String>,
}

/// Pairs of texts to be scored, each by itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScoreAsk {
    pub model: Option<String>,
    /// A query and its documents; the scores come in this order, one after the other.
    pub groups: Vec<(String, Vec<String>)>,
    pub end_user: Option<String>,
}

/// How a vector is scaled. Numbers as llama-server's `embd_normalize`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Norm {
    None,
    /// The largest number becomes 32760.
    MaxAbs,
    /// To length 1.
    #[default]
    Euclid,
    /// By the p-norm, p at least 1.
    P(i32),
}

impl Norm {
    /// Scales `vector`; one of zeros stays as it is. Source: common_embd_normalize, llama.cpp.
    pub fn apply(self, vector: &mut [f32]) {
        let wide = || vector.iter().map(|x| f64::from(*x).abs());
        let size = match self {
            Norm::None => return,
            Norm::MaxAbs => wide().fold(0.0, f64::max) / 32_760.0,
            Norm::Euclid => wide().map(|x| x * x).sum::<f64>().sqrt(),
            Norm::P(p) => wide().map(|x| x.powi(p)).sum::<f64>().powf(1.0 / f64::from(p)),
        };
        if size > 0.0 && size.is_finite() {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / size) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_scaled_as_llama_server_scales_them() {
        let scaled = |norm: Norm| {
            let mut vector = [3.0, -4.0];
            norm.apply(&mut vector);
            vector
        };
        assert_eq!(scaled(Norm::None), [3.0, -4.0]);
        assert_eq!(scaled(Norm::Euclid), [0.6, -0.8]);
        assert_eq!(scaled(Norm::P(1)), [3.0 / 7.0, -4.0 / 7.0]);
        assert_eq!(scaled(Norm::MaxAbs), [24_570.0, -32_760.0]);
        let mut zeros = [0.0, 0.0];
        Norm::Euclid.apply(&mut zeros);
        assert_eq!(zeros, [0.0, 0.0]);
    }
}
