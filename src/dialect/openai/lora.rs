//! LoRA adapters as llama-server's clients speak of them: the field `lora` of a request, and `/lora-adapters`.

use super::to_wire::json;
use crate::dialect::fields::{Object, empty_array, too_many};
use crate::dialect::{Fault, Ignored, Read, json as body_json};
use crate::engine::{Adapter, EngineConfig};
use serde_json::{Value, json};
use std::path::Path;

/// Scales by adapter id.
pub type Scales = Vec<(u32, f32)>;

/// The field `lora`: the scales of this request. Adapters that are not named are off.
pub(in crate::dialect) fn lora(body: &mut Object, ignored: &mut Ignored) -> Result<Option<Scales>, Fault> {
    let path = body.path("lora");
    body.array("lora")?.map(|entries| scales(&path, entries, ignored)).transpose()
}

/// The body of `POST /lora-adapters`: an array, or an object with it as `lora`.
pub fn lora_request(body: &[u8]) -> Result<Read<Scales>, Fault> {
    let mut ignored = Ignored::default();
    let request = match body_json::parse(body)? {
        Value::Array(entries) => scales("lora", entries, &mut ignored)?,
        value => {
            let mut body = Object::at("", value).map_err(|_| {
                Fault::body("The request body must be a JSON array of adapters with their id and scale.")
            })?;
            let scales = lora(&mut body, &mut ignored)?.ok_or_else(|| body.missing("lora"))?;
            body.finish(&mut ignored);
            scales
        }
    };
    if request.is_empty() {
        return Err(empty_array("lora"));
    }
    Ok(Read { request, ignored })
}

fn scales(path: &str, entries: Vec<Value>, ignored: &mut Ignored) -> Result<Scales, Fault> {
    if entries.len() > EngineConfig::LORA_MAX {
        return Err(too_many(path, entries.len(), EngineConfig::LORA_MAX));
    }
    let mut seen = Vec::with_capacity(entries.len());
    let one = |(i, entry): (usize, Value)| {
        let mut entry = Object::at(format!("{path}[{i}]"), entry)?;
        let id = entry.integer("id", 0, u32::MAX.into())?.ok_or_else(|| entry.missing("id"))?;
        let scale = entry.decimal("scale")?.ok_or_else(|| entry.missing("scale"))?;
        if seen.contains(&id) {
            let path = entry.path("id");
            return Err(Fault::new(&path, "invalid_value", format!("{path} is {id}, and so is an earlier one.")));
        }
        seen.push(id);
        // Part of what `GET /lora-adapters` answers, which clients send back.
        entry.accept(&["path", "task_name", "prompt_prefix"]);
        entry.finish(ignored);
        Ok((u32::try_from(id).unwrap_or(u32::MAX), scale))
    };
    entries.into_iter().enumerate().map(one).collect()
}

/// The adapters with their scales of now. Of a path only the file's name: where it lies is the operator's.
pub fn lora_response(adapters: &[Adapter], scales: &[f32]) -> Vec<u8> {
    let one = |(id, (adapter, scale)): (usize, (&Adapter, &f32))| {
        let name = Path::new(&adapter.path).file_name().map(|name| name.to_string_lossy());
        json!({ "id": id, "path": name, "scale": scale })
    };
    json(&adapters.iter().zip(scales).enumerate().map(one).collect::<Value>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Scales, Fault> {
        lora_request(body.as_bytes()).map(|read| read.request)
    }

    #[test]
    fn both_forms_are_read() {
        let expected = Ok(vec![(1, 0.5), (0, 0.0)]);
        assert_eq!(read(r#"[{"id":1,"scale":0.5},{"id":0,"scale":0}]"#), expected);
        assert_eq!(read(r#"{"lora":[{"id":1,"scale":0.5,"path":"a"},{"id":0,"scale":0}]}"#), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let param = |body: &str| read(body).unwrap_err().param.unwrap_or_default();
        assert_eq!(param(r#"[{"id":0,"scale":1},{"scale":1}]"#), "lora[1].id");
        assert_eq!(param(r#"[{"id":0}]"#), "lora[0].scale");
        assert_eq!(param(r#"[{"id":-1,"scale":1}]"#), "lora[0].id");
        assert_eq!(param(r#"[1]"#), "lora[0]");
        assert_eq!(param("[]"), "lora");
        assert_eq!(param("{}"), "lora");
        assert_eq!(param("3"), "");
        let many = format!("[{}]", vec![r#"{"id":0,"scale":1}"#; 65].join(","));
        assert_eq!(param(&many), "lora");
    }
}
