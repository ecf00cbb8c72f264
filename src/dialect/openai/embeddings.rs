//! `/v1/embeddings`, llama-server's `/embedding`, and vLLM's `/classify`.

use super::completion::token_ids;
use super::native::mixed;
use super::to_wire::json;
use crate::chat::{EmbedAsk, Norm, Prompt};
use crate::dialect::fields::{Object, empty_array, invalid_type, invalid_value, too_many};
use crate::dialect::{Fault, Ignored, Read};
use base64::Engine as _;
use serde_json::{Value, json as tree};

/// Inputs of one request.
pub(super) const INPUTS_MAX: usize = 2048;

/// How the numbers of a vector are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Float,
    /// Little-endian f32.
    Base64,
}

/// What `/v1/embeddings` was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    pub ask: EmbedAsk,
    pub encoding: Encoding,
}

pub fn embeddings_request(body: &[u8]) -> Result<Read<Embeddings>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let inputs = inputs(&mut body, "input", &mut ignored)?;
    let encoding = match body.string("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => return Err(invalid_value("encoding_format", other, "float, base64")),
    };
    let dimensions = body.integer("dimensions", 1, i64::from(u32::MAX))?.and_then(|n| u32::try_from(n).ok());
    let ask =
        EmbedAsk { model: body.string("model")?, inputs, dimensions, end_user: body.user(), ..Default::default() };
    body.finish(&mut ignored);
    Ok(Read { request: Embeddings { ask, encoding }, ignored })
}

pub fn embeddings_response(model: &str, vectors: &[Vec<f32>], prompt_tokens: u64, encoding: Encoding) -> Vec<u8> {
    // Written vector by vector: as a tree, a million numbers would take tens of megabytes.
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    for (index, vector) in vectors.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        out.extend(format!("{comma}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":").bytes());
        match encoding {
            Encoding::Float => out.extend(json(vector)),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                out.extend(json(&base64::engine::general_purpose::STANDARD.encode(bytes)));
            }
        }
        out.push(b'}');
    }
    let usage = tree!({ "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens });
    out.extend(format!("],\"model\":{},\"usage\":{usage}}}", tree!(model)).bytes());
    out
}

/// llama-server's own form: `content` (or `input`) and `embd_normalize`.
pub fn embedding_request(body: &[u8]) -> Result<Read<EmbedAsk>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let key = if body.has("input") { "input" } else { "content" };
    let inputs = inputs(&mut body, key, &mut ignored)?;
    let norm = match body.integer("embd_normalize", -1, 64)? {
        None | Some(2) => Norm::Euclid,
        Some(-1) => Norm::None,
        Some(0) => Norm::MaxAbs,
        Some(p) => Norm::P(p as i32),
    };
    let ask = EmbedAsk { model: body.string("model")?, inputs, norm, takes_tokens: true, ..Default::default() };
    body.finish(&mut ignored);
    Ok(Read { request: ask, ignored })
}

/// llama-server's answer: an array, and each vector in an array of its own because it may be one of several tokens'.
/// `n_per_token`: the numbers of one, where each token has its own.
pub fn embedding_response(vectors: &[Vec<f32>], n_per_token: Option<usize>) -> Vec<u8> {
    let mut out = b"[".to_vec();
    for (index, vector) in vectors.iter().enumerate() {
        out.extend(format!("{}{{\"index\":{index},\"embedding\":[", if index == 0 { "" } else { "," }).bytes());
        for (i, one) in vector.chunks(n_per_token.unwrap_or(vector.len()).max(1)).enumerate() {
            out.extend_from_slice(if i == 0 { b"" } else { b"," });
            out.extend(json(&one));
        }
        out.extend_from_slice(b"]}");
    }
    out.push(b']');
    out
}

/// vLLM's `/classify`: `{model, input}`.
pub fn classify_request(body: &[u8]) -> Result<Read<EmbedAsk>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let inputs = inputs(&mut body, "input", &mut ignored)?;
    let ask = EmbedAsk { model: body.string("model")?, inputs, end_user: body.user(), ..Default::default() };
    body.finish(&mut ignored);
    Ok(Read { request: ask, ignored })
}

/// Probabilities: softmax over several outputs, the logistic function of a single one.
pub fn classify_response(
    head: (&str, u64, &str),
    outputs: &[Vec<f32>],
    labels: &[String],
    prompt_tokens: u64,
) -> Vec<u8> {
    let (id, created, model) = head;
    let data = outputs.iter().enumerate().map(|(index, output)| {
        let probs = probabilities(output);
        let best = (0..probs.len()).max_by(|a, b| probs[*a].total_cmp(&probs[*b])).unwrap_or_default();
        let label = labels.get(best).cloned().unwrap_or_else(|| format!("LABEL_{best}"));
        tree!({ "index": index, "label": label, "num_classes": probs.len(), "probs": probs })
    });
    json(&tree!({
        "id": id, "object": "list", "created": created, "model": model,
        "data": data.collect::<Vec<Value>>(),
        "usage": { "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens, "completion_tokens": 0 },
    }))
}

/// Of a head's outputs; as many.
pub fn probabilities(output: &[f32]) -> Vec<f32> {
    if let [single] = output {
        return vec![1.0 / (1.0 + (-single).exp())];
    }
    let most = output.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f32> = output.iter().map(|x| (x - most).exp()).collect();
    let sum: f32 = parts.iter().sum();
    parts.iter().map(|part| part / sum).collect()
}

/// A text, several texts, token ids, or several lists of token ids; none of them empty. In the place of a text there may
/// also be an object, see [`object_text`], and among token ids texts, as llama-server has it; what begins with a text is a
/// list of inputs.
fn inputs(body: &mut Object, key: &str, ignored: &mut Ignored) -> Result<Vec<Prompt>, Fault> {
    let values = match body.take(key) {
        None => return Err(body.missing(key)),
        Some(Value::String(text)) => return Ok(vec![input_text(key.to_owned(), text)?]),
        Some(value @ Value::Object(_)) => return Ok(vec![object_text(key.to_owned(), value, ignored)?]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type(key, "a string or an array", &other)),
    };
    match values.first() {
        None => Err(empty_array(key)),
        Some(Value::Number(_)) => Ok(vec![tokens_or_mixed(key, values)?]),
        Some(_) if values.len() > INPUTS_MAX => Err(too_many(key, values.len(), INPUTS_MAX)),
        Some(_) => {
            let entry = |(i, value): (usize, Value)| match value {
                Value::String(text) => input_text(format!("{key}[{i}]"), text),
                value @ Value::Object(_) => object_text(format!("{key}[{i}]"), value, ignored),
                Value::Array(ids) if ids.is_empty() => Err(empty_array(format!("{key}[{i}]"))),
                Value::Array(ids) => tokens_or_mixed(&format!("{key}[{i}]"), ids),
                other => Err(invalid_type(format!("{key}[{i}]"), "a string or an array of token ids", &other)),
            };
            values.into_iter().enumerate().map(entry).collect()
        }
    }
}

fn tokens_or_mixed(path: &str, values: Vec<Value>) -> Result<Prompt, Fault> {
    match values.iter().any(Value::is_string) {
        true => Ok(Prompt::Mixed(mixed(path, values)?)),
        false => Ok(Prompt::Tokens(token_ids(path, &values)?)),
    }
}

/// llama-server's forms of a text: `{"prompt_string": text}` or `{"content": [{"type": "text", "text"}]}`.
fn object_text(path: String, value: Value, ignored: &mut Ignored) -> Result<Prompt, Fault> {
    let mut object = Object::at(path.clone(), value)?;
    if let Some(text) = object.string("prompt_string")? {
        if object.take("multimodal_data").is_some() {
            return Err(object.unsupported("multimodal_data", "embeddings are made of text"));
        }
        let path = object.path("prompt_string");
        object.finish(ignored);
        return input_text(path, text);
    }
    let parts = object.array("content")?.ok_or_else(|| object.missing("content"))?;
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Object::at(format!("{path}.content[{i}]"), part)?;
        match part.string("type")?.as_deref() {
            Some("text") => text.push_str(&part.string("text")?.ok_or_else(|| part.missing("text"))?),
            Some(other) => return Err(invalid_value(part.path("type"), other, "text")),
            None => return Err(part.missing("type")),
        }
        part.finish(ignored);
    }
    object.finish(ignored);
    input_text(path, text)
}

fn input_text(path: String, text: String) -> Result<Prompt, Fault> {
    if text.is_empty() {
        let message = format!("{path} is an empty text, which has no embedding.");
        return Err(Fault::new(path, "invalid_value", message));
    }
    Ok(Prompt::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::PromptPart;
    use serde_json::json;

    fn read(body: Value) -> Result<Embeddings, Fault> {
        embeddings_request(body.to_string().as_bytes()).map(|read| read.request)
    }

    fn fault(body: Value) -> (String, &'static str) {
        let fault = read(body).expect_err("should be refused");
        (fault.param.unwrap(), fault.code.unwrap())
    }

    #[test]
    fn an_input_has_four_forms_and_is_never_empty() {
        let n = |input: Value| read(json!({ "input": input })).unwrap().ask.inputs.len();
        assert_eq!((n(json!("x")), n(json!(["x", "y"])), n(json!([1, 2])), n(json!([[1], [2, 3]]))), (1, 2, 1, 2));
        assert_eq!(fault(json!({})), ("input".into(), "missing_required_parameter"));
        assert_eq!(fault(json!({"input": ""})), ("input".into(), "invalid_value"));
        assert_eq!(fault(json!({"input": [""]})), ("input[0]".into(), "invalid_value"));
        assert_eq!(fault(json!({"input": []})), ("input".into(), "empty_array"));
        assert_eq!(fault(json!({"input": [[]]})), ("input[0]".into(), "empty_array"));
        assert_eq!(fault(json!({"input": [1, -1]})), ("input[1]".into(), "integer_below_min_value"));
        let mixed = vec![PromptPart::Token(1), PromptPart::Text("x".into()), PromptPart::Token(2)];
        let one = |input: Value| read(json!({ "input": input })).unwrap().ask.inputs;
        assert_eq!(one(json!([1, "x", 2])), [Prompt::Mixed(mixed.clone())]);
        assert_eq!(one(json!(["y", [1, "x", 2]])), [Prompt::Text("y".into()), Prompt::Mixed(mixed)]);
        assert_eq!(fault(json!({"input": [1, {}]})), ("input[1]".into(), "invalid_type"));
        assert_eq!(fault(json!({"input": ["x", 1]})), ("input[1]".into(), "invalid_type"));
        assert_eq!(fault(json!({"input": 1})), ("input".into(), "invalid_type"));
        assert_eq!(fault(json!({"input": vec!["x"; 2049]})), ("input".into(), "array_above_max_length"));
    }

    #[test]
    fn a_text_may_be_an_object() {
        let inputs = |input: Value| read(json!({ "input": input })).unwrap().ask.inputs;
        let parts = json!({"content":[{"type":"text","text":"a "},{"type":"text","text":"b"}]});
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(inputs(json!({"prompt_string":"x"})), [text("x")]);
        assert_eq!(inputs(json!(["x", parts])), [text("x"), text("a b")]);
        for (input, path) in [
            (json!({}), "input.content"),
            (json!({"content":"text"}), "input.content"),
            (json!([{"content":[{"type":"image_url"}]}]), "input[0].content[0].type"),
            (json!({"prompt_string":"x","multimodal_data":["AA"]}), "input.multimodal_data"),
            (json!({"prompt_string":""}), "input.prompt_string"),
        ] {
            assert_eq!(fault(json!({ "input": input })).0, path);
        }
    }

    #[test]
    fn options_are_checked_by_name() {
        assert_eq!(fault(json!({"input":"x","encoding_format":"int8"})), ("encoding_format".into(), "invalid_value"));
        assert_eq!(fault(json!({"input":"x","dimensions":0})), ("dimensions".into(), "integer_below_min_value"));
        let request = read(json!({"input":"x","encoding_format":"base64","dimensions":3,"user":"u"})).unwrap();
        assert_eq!((request.encoding, request.ask.dimensions), (Encoding::Base64, Some(3)));
    }

    #[test]
    fn base64_is_little_endian() {
        let body = embeddings_response("m", &[vec![1.0, -2.0]], 3, Encoding::Base64);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["data"][0]["embedding"], "AACAPwAAAMA=");
        assert_eq!(body["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    }

    #[test]
    fn classes_have_probabilities() {
        let body = classify_response(("c", 1, "m"), &[vec![0.0, 0.0], vec![1.0, 9.0]], &["no".into(), "yes".into()], 2);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["data"][0]["probs"], json!([0.5, 0.5]));
        assert_eq!(body["data"][1]["label"], "yes");
        assert_eq!(probabilities(&[0.0]), [0.5]);
    }
}
