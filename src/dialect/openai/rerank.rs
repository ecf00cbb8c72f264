//! Rerank as Cohere, Jina, vLLM and TEI ask for it, and vLLM's `/score`.

use super::embeddings::INPUTS_MAX;
use super::to_wire::json;
use crate::chat::{RerankAsk, ScoreAsk};
use crate::dialect::fields::{Object, empty_array, invalid_type, too_many};
use crate::dialect::{Fault, Ignored, Read};
use serde_json::{Value, json as tree};

/// What a rerank endpoint was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Rerank {
    pub ask: RerankAsk,
    /// Results wanted, at least 1.
    pub top_n: usize,
    /// The documents as text where they are part of the answer, else none.
    pub shown: Option<Vec<String>>,
    /// The documents came as `texts`: TEI's client, which reads a bare array.
    pub is_tei: bool,
}

pub fn rerank_request(body: &[u8]) -> Result<Read<Rerank>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let query = body.string("query")?.ok_or_else(|| body.missing("query"))?;
    let is_tei = body.has("texts") && !body.has("documents");
    let documents = documents(&mut body, if is_tei { "texts" } else { "documents" }, &mut ignored)?;
    let top_n = body.integer("top_n", 1, i64::MAX)?;
    let documents_wanted = body.bool("return_documents")?.unwrap_or(false);
    let text_wanted = is_tei && body.bool("return_text")?.unwrap_or(false);
    let n_document_max = body.integer("max_tokens_per_doc", 1, u32::MAX.into())?.and_then(|n| u32::try_from(n).ok());
    if is_tei && body.bool("truncate")?.unwrap_or(false) {
        return Err(body.unsupported("truncate", "documents are not cut; use max_tokens_per_doc"));
    }
    if body.bool("raw_scores")?.is_some_and(|raw| !raw) && is_tei {
        return Err(body.unsupported("raw_scores", "scores are the model's own"));
    }
    let request = Rerank {
        top_n: top_n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX),
        shown: (documents_wanted || text_wanted).then(|| documents.clone()),
        is_tei,
        ask: RerankAsk { model: body.string("model")?, query, documents, n_document_max, end_user: body.user() },
    };
    body.finish(&mut ignored);
    Ok(Read { request, ignored })
}

/// Texts, or objects with a `text`.
fn documents(body: &mut Object, key: &str, ignored: &mut Ignored) -> Result<Vec<String>, Fault> {
    let values = body.array(key)?.ok_or_else(|| body.missing(key))?;
    if values.is_empty() {
        return Err(empty_array(key));
    }
    if values.len() > INPUTS_MAX {
        return Err(too_many(key, values.len(), INPUTS_MAX));
    }
    let text = |(i, value): (usize, Value)| {
        let path = format!("{key}[{i}]");
        match value {
            Value::String(text) => Ok(text),
            Value::Object(_) => {
                let mut document = Object::at(path, value)?;
                let text = document.string("text")?.ok_or_else(|| document.missing("text"))?;
                document.finish(ignored);
                Ok(text)
            }
            other => Err(invalid_type(path, "a string or an object with a text", &other)),
        }
    };
    values.into_iter().enumerate().map(text).collect()
}

/// Best first; equal ones in the order of the request.
pub fn rerank_response(id: &str, model: &str, request: &Rerank, scores: &[f32], prompt_tokens: u64) -> Vec<u8> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(request.top_n);
    let text = |index: usize| request.shown.as_ref().and_then(|texts| texts.get(index));
    if request.is_tei {
        let entry = |index: usize| match text(index) {
            Some(text) => tree!({ "index": index, "score": scores[index], "text": text }),
            None => tree!({ "index": index, "score": scores[index] }),
        };
        return json(&order.into_iter().map(entry).collect::<Vec<Value>>());
    }
    let entry = |index: usize| match text(index) {
        Some(text) => tree!({ "index": index, "relevance_score": scores[index], "document": { "text": text } }),
        None => tree!({ "index": index, "relevance_score": scores[index] }),
    };
    json(&tree!({
        "id": id, "object": "list", "model": model,
        "results": order.into_iter().map(entry).collect::<Vec<Value>>(),
        "usage": { "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens },
        "meta": { "api_version": { "version": "1" }, "billed_units": { "search_units": 1 } },
    }))
}

/// vLLM's `/score`: `text_1` and `text_2`, each a text or several: one with each, or pair by pair.
pub fn score_request(body: &[u8]) -> Result<Read<ScoreAsk>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let ones = score_texts(&mut body, "text_1")?;
    let twos = score_texts(&mut body, "text_2")?;
    let groups = match (ones.len(), twos.len()) {
        (1, _) => ones.into_iter().map(|one| (one, twos.clone())).collect(),
        (a, b) if a == b => ones.into_iter().zip(twos).map(|(one, two)| (one, vec![two])).collect(),
        (a, b) => {
            let message = format!("text_1 has {a} texts and text_2 has {b}; it must be 1, or as many as text_2 has.");
            return Err(Fault::new("text_1", "invalid_value", message));
        }
    };
    let ask = ScoreAsk { model: body.string("model")?, groups, end_user: None };
    body.finish(&mut ignored);
    Ok(Read { request: ask, ignored })
}

fn score_texts(body: &mut Object, key: &str) -> Result<Vec<String>, Fault> {
    let values = match body.take(key) {
        None => return Err(body.missing(key)),
        Some(Value::String(text)) => return Ok(vec![text]),
        Some(Value::Array(values)) if values.is_empty() => return Err(empty_array(key)),
        Some(Value::Array(values)) if values.len() > INPUTS_MAX => return Err(too_many(key, values.len(), INPUTS_MAX)),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid_type(key, "a string or an array of strings", &other)),
    };
    let text = |(i, value): (usize, Value)| match value {
        Value::String(text) => Ok(text),
        other => Err(invalid_type(format!("{key}[{i}]"), "a string", &other)),
    };
    values.into_iter().enumerate().map(text).collect()
}

pub fn score_response(head: (&str, u64, &str), scores: &[f32], prompt_tokens: u64) -> Vec<u8> {
    let (id, created, model) = head;
    let entry = |(index, score): (usize, &f32)| tree!({ "index": index, "object": "score", "score": score });
    json(&tree!({
        "id": id, "object": "list", "created": created, "model": model,
        "data": scores.iter().enumerate().map(entry).collect::<Vec<Value>>(),
        "usage": { "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens, "completion_tokens": 0 },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Rerank, Fault> {
        rerank_request(body.to_string().as_bytes()).map(|read| read.request)
    }

    #[test]
    fn documents_are_texts_or_objects() {
        let request = read(json!({"query":"q","documents":["a",{"text":"b"}],"top_n":1})).unwrap();
        assert_eq!((request.ask.documents, request.top_n, request.is_tei), (vec!["a".into(), "b".into()], 1, false));
        assert!(read(json!({"query":"q","texts":["a"]})).unwrap().is_tei);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let fault = |body: Value| read(body).expect_err("refused").param.unwrap();
        assert_eq!(fault(json!({"documents":["a"]})), "query");
        assert_eq!(fault(json!({"query":"q"})), "documents");
        assert_eq!(fault(json!({"query":"q","documents":[]})), "documents");
        assert_eq!(fault(json!({"query":"q","documents":["a", 1]})), "documents[1]");
        assert_eq!(fault(json!({"query":"q","documents":[{"title":"a"}]})), "documents[0].text");
        assert_eq!(fault(json!({"query":"q","documents":["a"],"top_n":0})), "top_n");
    }

    #[test]
    fn results_are_sorted_and_keep_their_index() {
        let request = read(json!({"query":"q","documents":["a","b","c"],"top_n":2,"return_documents":true})).unwrap();
        let body: Value = serde_json::from_slice(&rerank_response("r", "m", &request, &[0.1, 0.3, 0.2], 9)).unwrap();
        assert_eq!(body["results"].as_array().unwrap().len(), 2);
        assert_eq!((&body["results"][0]["index"], &body["results"][0]["document"]["text"]), (&json!(1), &json!("b")));
        assert_eq!(body["usage"]["total_tokens"], 9);
    }

    #[test]
    fn scores_pair_texts_up() {
        let read = |body: Value| score_request(body.to_string().as_bytes()).map(|read| read.request.groups);
        assert_eq!(
            read(json!({"text_1":"q","text_2":["a","b"]})).unwrap(),
            [("q".into(), vec!["a".into(), "b".into()])]
        );
        assert_eq!(read(json!({"text_1":["q","r"],"text_2":["a","b"]})).unwrap().len(), 2);
        assert_eq!(read(json!({"text_1":["q","r"],"text_2":["a"]})).unwrap_err().param.as_deref(), Some("text_1"));
    }
}
