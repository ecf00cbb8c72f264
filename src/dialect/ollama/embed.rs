//! `POST /api/embed`, and `POST /api/embeddings` as it was before.

use super::keep_alive::{KeepAlive, keep_alive};
use crate::chat::Prompt;
use crate::dialect::fields::{Object, invalid_type, too_many};
use crate::dialect::{Fault, Ignored, Read};
use crate::engine::{EmbedRequest, Vectors};
use serde_json::{Value, json};
use std::time::Duration;

/// Inputs of one request, as many as OpenAI takes.
const INPUTS_MAX: usize = 2048;

/// Inputs as read; none of them (`""`, `[]`) asks for no vectors, and only for the model to be loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Embed {
    pub model: Option<String>,
    pub request: EmbedRequest,
    pub form: EmbedForm,
    pub keep_alive: Option<KeepAlive>,
}

/// How the vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbedForm {
    /// Each of length 1, cut to this many numbers first.
    Normalised { dimensions: Option<u32> },
    /// The only one, as the model made it.
    Raw,
}

impl EmbedForm {
    /// Refuses more dimensions than the model has.
    pub fn check(self, n_embd: u32) -> Result<(), Fault> {
        match self {
            EmbedForm::Normalised { dimensions: Some(n) } if n > n_embd => {
                let message = format!("dimensions must be at most {n_embd}, the model's own, but it is {n}.");
                Err(Fault::new("dimensions", "integer_above_max_value", message))
            }
            _ => Ok(()),
        }
    }
}

pub fn embed_request(body: &[u8]) -> Result<Read<Embed>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let inputs = inputs(&mut body)?;
    let truncate = body.bool("truncate")?.unwrap_or(true);
    let dimensions = body.integer("dimensions", 0, u32::MAX.into())?.and_then(|n| u32::try_from(n).ok());
    // Clients that have no wish send 0.
    let form = EmbedForm::Normalised { dimensions: dimensions.filter(|n| *n > 0) };
    finish(body, EmbedRequest { inputs, truncate }, form, &mut ignored).map(|request| Read { request, ignored })
}

pub fn embeddings_request(body: &[u8]) -> Result<Read<Embed>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let text = body.string("prompt")?.filter(|text| !text.is_empty());
    let request = EmbedRequest { inputs: text.map(Prompt::Text).into_iter().collect(), truncate: true };
    finish(body, request, EmbedForm::Raw, &mut ignored).map(|request| Read { request, ignored })
}

fn finish(mut body: Object, request: EmbedRequest, form: EmbedForm, ignored: &mut Ignored) -> Result<Embed, Fault> {
    let model = super::model(&mut body)?;
    let keep_alive = keep_alive(&mut body)?;
    // All of them are about loading or about generating.
    body.object("options")?;
    body.finish(ignored);
    Ok(Embed { model, request, form, keep_alive })
}

fn inputs(body: &mut Object) -> Result<Vec<Prompt>, Fault> {
    let values = match body.take("input") {
        None => return Err(body.missing("input")),
        Some(Value::String(text)) if text.is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type("input", "a string or an array of strings", &other)),
    };
    if values.len() > INPUTS_MAX {
        return Err(too_many("input", values.len(), INPUTS_MAX));
    }
    let texts = values.into_iter().enumerate().map(|(i, value)| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        other => Err(invalid_type(format!("input[{i}]"), "a string", &other)),
    });
    texts.collect()
}

/// `load`: from the request's arrival until the model was there; `total`: until now.
pub fn embed_response(model: &str, vectors: &Vectors, form: EmbedForm, load: Duration, total: Duration) -> Vec<u8> {
    let dimensions = match form {
        EmbedForm::Normalised { dimensions } => dimensions.map(|n| n as usize),
        EmbedForm::Raw => None,
    };
    let embeddings: Vec<Vec<f32>> = vectors.vectors.iter().map(|vector| normalised(vector, dimensions)).collect();
    json!({
        "model": model,
        "embeddings": embeddings,
        "total_duration": super::rows::nanoseconds(total),
        "load_duration": super::rows::nanoseconds(load),
        "prompt_eval_count": vectors.n_tokens.iter().sum::<u32>(),
    })
    .to_string()
    .into_bytes()
}

/// The one vector of the older endpoint; `[]` for an empty prompt.
pub fn embeddings_response(vectors: &Vectors) -> Vec<u8> {
    let vector = vectors.vectors.first().map_or(&[][..], Vec::as_slice);
    json!({ "embedding": vector }).to_string().into_bytes()
}

/// The first `dimensions` numbers, scaled to length 1; a vector of zeros stays one.
fn normalised(vector: &[f32], dimensions: Option<usize>) -> Vec<f32> {
    let vector = &vector[..dimensions.unwrap_or(vector.len()).min(vector.len())];
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|x| (f64::from(*x) / length) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Embed, Fault> {
        embed_request(body.to_string().as_bytes()).map(|read| read.request)
    }

    /// OLLA-03.
    #[test]
    fn inputs_have_three_forms() {
        let inputs = |input: Value| read(json!({ "input": input })).unwrap().request.inputs;
        assert_eq!(inputs(json!("a")), [Prompt::Text("a".into())]);
        assert_eq!(inputs(json!(["a", "b"])), [Prompt::Text("a".into()), Prompt::Text("b".into())]);
        assert!(inputs(json!("")).is_empty() && inputs(json!([])).is_empty());
        let older = |body: Value| embeddings_request(body.to_string().as_bytes()).unwrap().request;
        assert_eq!(older(json!({"prompt":"a"})).request.inputs, [Prompt::Text("a".into())]);
        assert!(older(json!({"prompt":""})).request.inputs.is_empty());
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input":1}), "input"),
            (json!({"input":["a",1]}), "input[1]"),
            (json!({"input":"a","dimensions":-1}), "dimensions"),
            (json!({"input":"a","truncate":1}), "truncate"),
            (json!({"input":"a","keep_alive":"x"}), "keep_alive"),
        ] {
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(param));
        }
        assert!(read(json!({"input":"a"})).unwrap().request.truncate);
        let form = read(json!({"input":"a","dimensions":5})).unwrap().form;
        assert_eq!(form.check(5), Ok(()));
        assert_eq!(form.check(4).unwrap_err().param.as_deref(), Some("dimensions"));
    }

    /// OLLA-03.
    #[test]
    fn vectors_are_cut_and_normalised() {
        let vectors = Vectors { vectors: vec![vec![3.0, 4.0, 12.0], vec![0.0; 3]], n_tokens: vec![2, 1] };
        let second = Duration::from_secs(1);
        let body =
            |form| -> Value { serde_json::from_slice(&embed_response("m", &vectors, form, second, second)).unwrap() };
        let cut = body(EmbedForm::Normalised { dimensions: Some(2) });
        assert_eq!(cut["embeddings"], json!([[0.6f32, 0.8f32], [0.0, 0.0]]));
        assert_eq!((&cut["prompt_eval_count"], &cut["total_duration"]), (&json!(3), &json!(1_000_000_000)));
        let whole = body(EmbedForm::Normalised { dimensions: None });
        assert_eq!(whole["embeddings"][0].as_array().unwrap().len(), 3);
        let older: Value = serde_json::from_slice(&embeddings_response(&vectors)).unwrap();
        assert_eq!(older, json!({"embedding":[3.0, 4.0, 12.0]}));
        assert_eq!(embeddings_response(&Vectors::default()), b"{\"embedding\":[]}");
    }
}
