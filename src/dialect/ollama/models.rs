//! What Ollama's clients ask about models: lists, descriptions, and the pull of what is there already.

use crate::dialect::fields::Object;
use crate::dialect::openai::rfc3339;
use crate::dialect::{Fault, Ignored, Read};
use crate::engine::{Description, Pooling};
use crate::model::lock::hex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The version of Ollama whose API this is; VS Code wants 0.6.4 at least.
const VERSION: &str = "0.12.0";
/// When a model that stays loaded is said to be unloaded: 2286, the last ten-digit second.
const FOREVER: u64 = 9_999_999_999;

/// A served model.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    pub id: &'a str,
    /// When it began to be served, in unix seconds.
    pub n_created: u64,
    pub model: &'a Description,
    /// When it will be unloaded, in unix seconds; `None`: it stays.
    pub expires_at: Option<u64>,
}

/// A request that names a model: (name, whether anything is streamed).
pub fn named_request(body: &[u8]) -> Result<Read<Option<String>>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let request = super::model(&mut body)?;
    // What else an answer could hold; the description here is always the same.
    body.bool("verbose")?;
    body.accept(&["system", "options", "template"]);
    body.finish(&mut ignored);
    Ok(Read { request, ignored })
}

/// (name, `stream`).
pub fn pull_request(body: &[u8]) -> Result<Read<(Option<String>, bool)>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let name = super::model(&mut body)?;
    let stream = body.bool("stream")?.unwrap_or(true);
    body.bool("insecure")?;
    body.accept(&["username", "password"]);
    body.finish(&mut ignored);
    Ok(Read { request: (name, stream), ignored })
}

/// The pull of the served model, which is there.
pub fn pull_rows(stream: bool) -> Vec<u8> {
    let last = json!({ "status": "success" }).to_string();
    match stream {
        true => format!("{}\n{last}\n", json!({ "status": "pulling manifest" })).into_bytes(),
        false => last.into_bytes(),
    }
}

pub fn version_response() -> Vec<u8> {
    json!({ "version": VERSION }).to_string().into_bytes()
}

pub fn tags_response(models: &[Served]) -> Vec<u8> {
    let models: Vec<Value> = models.iter().map(entry).collect();
    json!({ "models": models }).to_string().into_bytes()
}

/// The loaded ones. Which part of a model is on an accelerator is not known here, and told as none.
pub fn ps_response(models: &[Served]) -> Vec<u8> {
    let running = |served: &Served| {
        let mut entry = entry(served);
        entry["expires_at"] = rfc3339(served.expires_at.unwrap_or(FOREVER).min(FOREVER)).into();
        entry["size_vram"] = 0.into();
        entry["context_length"] = served.model.n_ctx.into();
        entry
    };
    let models: Vec<Value> = models.iter().map(running).collect();
    json!({ "models": models }).to_string().into_bytes()
}

fn entry(served: &Served) -> Value {
    json!({
        "name": served.id,
        "model": served.id,
        "modified_at": rfc3339(served.n_created),
        "size": served.model.size_bytes,
        "digest": digest(served),
        "details": details(served.model),
        "capabilities": capabilities(served.model),
    })
}

/// Tells models apart and stays the same for the same one. Not the file's own digest, which would take reading all of it.
fn digest(served: &Served) -> String {
    let d = served.model;
    let text = format!("{}\0{}\0{}\0{:?}", served.id, d.architecture, d.desc, (d.n_params, d.size_bytes, d.n_vocab));
    hex(&Sha256::digest(text.as_bytes()))
}

fn details(model: &Description) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": parameter_size(model.n_params),
        "quantization_level": quantization(&model.desc),
    })
}

/// `7.2B`, `135M`, `1.50M`, `42K`. Source: HumanNumber, format/format.go of Ollama.
fn parameter_size(n: u64) -> String {
    let in_units = |unit: u64, decimals: usize, name: &str| match n % unit {
        0 => format!("{}{name}", n / unit),
        _ => format!("{:.decimals$}{name}", n as f64 / unit as f64),
    };
    match n {
        1_000_000_000.. => in_units(1_000_000_000, 1, "B"),
        1_000_000.. => in_units(1_000_000, 2, "M"),
        1_000.. => in_units(1_000, 0, "K"),
        _ => n.to_string(),
    }
}

/// `Q4_K_M` of llama.cpp's `qwen2 1B Q4_K - Medium`. Source: llama_model_ftype_name, llama-model-loader.cpp.
fn quantization(desc: &str) -> String {
    let name = desc.splitn(3, ' ').nth(2).unwrap_or_default();
    let name = name.trim_start_matches("all ").trim_end_matches("(guessed)").trim();
    let (kind, size) = name.split_once(" - ").unwrap_or((name, ""));
    let letter = match size {
        "Small" => "_S",
        "Medium" => "_M",
        "Large" => "_L",
        _ => "",
    };
    match kind.split(' ').next() {
        Some(kind) if !kind.is_empty() => format!("{kind}{letter}"),
        _ => "unknown".to_owned(),
    }
}

fn capabilities(model: &Description) -> Vec<&'static str> {
    use crate::chat::MediaKind;
    let can_embed = model.pooling.is_some_and(|pooling| !matches!(pooling, Pooling::Rank | Pooling::None));
    let all = [
        ("completion", model.generates),
        ("tools", model.generates && model.has_tools),
        ("thinking", model.generates && model.supports_thinking),
        ("vision", model.media.contains(&MediaKind::Image)),
        ("audio", model.media.contains(&MediaKind::Audio)),
        ("insert", model.infills),
        ("embedding", can_embed),
    ];
    all.into_iter().filter(|(_, can)| *can).map(|(name, _)| name).collect()
}

pub fn show_response(served: &Served) -> Vec<u8> {
    let model = served.model;
    let mut template = model.chat_template.clone().unwrap_or_default();
    if model.infills {
        // Continue asks for completions with a suffix only where the template says the word.
        template.push_str("{# .Suffix: /api/generate fills in the middle #}");
    }
    json!({
        "modelfile": "",
        "parameters": parameters(model),
        "template": template,
        "license": "",
        "details": details(model),
        "model_info": model_info(served),
        "capabilities": capabilities(model),
        "modified_at": rfc3339(served.n_created),
    })
    .to_string()
    .into_bytes()
}

/// Lines of `key value`, in which Continue looks for `num_ctx` and `stop`.
fn parameters(model: &Description) -> String {
    let mut lines = vec![format!("num_ctx {}", model.n_ctx)];
    if !model.eos_token.is_empty() {
        lines.push(format!("stop {}", Value::from(model.eos_token.as_str())));
    }
    let said = &model.sampling;
    let decimals = [("temperature", said.temperature), ("top_p", said.top_p), ("min_p", said.min_p)];
    lines.extend(decimals.iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}"))));
    lines.extend(said.top_k.map(|k| format!("top_k {k}")));
    lines.join("\n")
}

fn model_info(served: &Served) -> Map<String, Value> {
    let (model, arch) = (served.model, &served.model.architecture);
    let mut info = Map::new();
    let mut add = |key: String, value: Value| info.insert(key, value);
    add("general.architecture".into(), arch.as_str().into());
    add("general.basename".into(), served.id.into());
    add("general.parameter_count".into(), model.n_params.into());
    // The context that is served, not the one that the model was trained for: clients cut their prompts to it.
    add(format!("{arch}.context_length"), model.n_ctx.into());
    add(format!("{arch}.embedding_length"), model.n_embd.into());
    add(format!("{arch}.block_count"), model.n_layer.into());
    add(format!("{arch}.vocab_size"), model.n_vocab.into());
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::MediaKind;

    fn model() -> Description {
        Description {
            architecture: "qwen2".into(),
            desc: "qwen2 1B Q4_K - Medium".into(),
            n_params: 494_032_768,
            size_bytes: 1000,
            n_embd: 896,
            n_ctx: 8192,
            n_ctx_train: 32_768,
            chat_template: Some("T".into()),
            eos_token: "<|im_end|>".into(),
            generates: true,
            has_tools: true,
            ..Default::default()
        }
    }

    fn show(model: &Description) -> Value {
        serde_json::from_slice(&show_response(&Served { id: "m", n_created: 0, model, expires_at: None })).unwrap()
    }

    #[test]
    fn sizes_and_quantisations_are_named_as_ollama_does() {
        for (n, name) in
            [(7_241_732_096, "7.2B"), (8_000_000_000, "8B"), (494_032_768, "494.03M"), (42_400, "42K"), (7, "7")]
        {
            assert_eq!(parameter_size(n), name);
        }
        for (desc, name) in [
            ("qwen2 1B Q4_K - Medium", "Q4_K_M"),
            ("llama 7B Q3_K - Small", "Q3_K_S"),
            ("llama 8x7B Q8_0", "Q8_0"),
            ("llama ?B all F32", "F32"),
            ("llama ?B F16 (guessed)", "F16"),
            ("llama 7B IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
            ("gpt-oss 20B MXFP4 MoE", "MXFP4"),
            ("scripted bytes", "unknown"),
        ] {
            assert_eq!(quantization(desc), name);
        }
    }

    /// OLLA-12.
    #[test]
    fn a_description_says_what_clients_look_for() {
        let body = show(&model());
        assert_eq!(body["parameters"], "num_ctx 8192\nstop \"<|im_end|>\"");
        assert_eq!((&body["template"], &body["capabilities"]), (&json!("T"), &json!(["completion", "tools"])));
        assert_eq!(body["model_info"]["qwen2.context_length"], 8192);
        assert_eq!(body["details"]["quantization_level"], "Q4_K_M");
        let able = Description {
            infills: true,
            supports_thinking: true,
            media: vec![MediaKind::Image],
            pooling: Some(Pooling::Mean),
            ..model()
        };
        let body = show(&able);
        assert!(body["template"].as_str().unwrap().contains(".Suffix"));
        assert_eq!(body["capabilities"], json!(["completion", "tools", "thinking", "vision", "insert", "embedding"]));
    }

    #[test]
    fn lists_share_their_names_and_digests() {
        let model = model();
        let served = [Served { id: "m", n_created: 1_790_000_000, model: &model, expires_at: None }];
        let list = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap()["models"][0].clone();
        let (tag, running) = (list(tags_response(&served)), list(ps_response(&served)));
        for key in ["name", "model", "digest", "size", "details", "modified_at"] {
            assert_eq!(tag[key], running[key], "{key}");
        }
        assert_eq!((&tag["name"], &tag["model"]), (&json!("m"), &json!("m")));
        assert_eq!(tag["digest"].as_str().unwrap().len(), 64);
        assert_eq!(
            (&running["expires_at"], &running["context_length"]),
            (&json!("2286-11-20T17:46:39Z"), &json!(8192))
        );
        let leaving = [Served { expires_at: Some(1_790_000_000), ..served[0] }];
        assert_eq!(list(ps_response(&leaving))["expires_at"], "2026-09-21T14:13:20Z");
    }

    #[test]
    fn a_pull_ends_with_success() {
        assert_eq!(pull_rows(true), b"{\"status\":\"pulling manifest\"}\n{\"status\":\"success\"}\n");
        assert_eq!(pull_rows(false), b"{\"status\":\"success\"}");
        let read = pull_request(br#"{"name":"m","stream":false,"insecure":true}"#).unwrap();
        assert_eq!((read.request, read.ignored.header()), ((Some("m".to_owned()), false), None));
        assert_eq!(named_request(br#"{"model":"m","verbose":true}"#).unwrap().request.as_deref(), Some("m"));
    }
}
