//! `hearth inspect`: what a model file holds, read from its header.

use super::{Flags, plan, say};
use crate::engine::EngineConfig;
use crate::engine::config::ModelSource;
use crate::model::fit::bytes;
use crate::model::{FitError, List, Memory, ModelFile, Plan, Shape, Tensor, Value, lock};
use anyhow::Result;
use clap::Args;
use serde_json::{Map, json};
use std::path::Path;

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The GGUF file
    #[arg(value_name = "MODEL")]
    file: String,
    /// Everything as one JSON object
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Also read the whole file for its SHA-256
    #[arg(long)]
    sha256: bool,
    #[command(flatten)]
    flags: Flags,
}

/// Rows and columns of the memory table.
const SLOTS: [u32; 5] = [1, 2, 4, 8, 16];
const CONTEXTS: [u32; 9] = [512, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144];

/// Everything that is told about a file.
struct Facts {
    file: ModelFile,
    shape: Result<Shape, FitError>,
    fingerprint: String,
    sha256: Option<String>,
    memory: Option<Memory>,
    engine: EngineConfig,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let path = Path::new(&self.file);
        let file = ModelFile::open(path)?;
        let raw = self.flags.with("model", Some(&self.file)).gather()?;
        // Settings such as the cache's type change the table; what a server would refuse is not this command's business.
        let engine = raw.resolve().map_or_else(
            |_| EngineConfig::new(ModelSource::Gguf(path.to_owned())),
            |config| config.into_first().engine,
        );
        let facts = Facts {
            shape: Shape::read(&file).map_err(FitError::from),
            fingerprint: lock::fingerprint(path, &file.gguf)?,
            sha256: self.sha256.then(|| lock::sha256(path, |_| {})).transpose()?,
            memory: Memory::now(),
            engine,
            file,
        };
        if self.json {
            say!("{}", serde_json::to_string_pretty(&facts.json(self.tensors))?);
        } else {
            facts.print(self.tensors);
        }
        Ok(())
    }
}

impl Facts {
    fn print(&self, with_tensors: bool) {
        let gguf = &self.file.gguf;
        say!("{}", self.file.path.display());
        say!("  GGUF version {}, {} on disk", gguf.version, bytes(self.file.file_bytes()));
        if !self.file.parts.is_empty() {
            say!("  {} files", self.file.parts.len() + 1);
        }
        say!("  fingerprint {}", self.fingerprint);
        if let Some(sha256) = &self.sha256 {
            say!("  sha256 {sha256}");
        }
        say!("  {} parameters in {} tensors", count(self.file.n_params()), self.file.tensors().count());
        say!("\nmetadata");
        for (key, value) in gguf.metadata.iter().filter(|(key, _)| key != TEMPLATE) {
            say!("  {key} = {}", shown(value));
        }
        say!("\nquantisation");
        for (kind, n, n_bytes) in self.file.quantisations() {
            say!("  {kind:<8} {n:>6} tensors {:>12}", bytes(n_bytes));
        }
        if with_tensors {
            say!("\ntensors");
            for tensor in self.file.tensors() {
                say!("  {:<48} {:<8} {}", printable(&tensor.name), tensor.kind, dims(tensor));
            }
        }
        match gguf.text(TEMPLATE) {
            Some(template) => say!("\nchat template\n{}", indented(template)),
            None => say!("\nno chat template"),
        }
        self.print_memory();
    }

    fn print_memory(&self) {
        let shape = match &self.shape {
            Ok(shape) => shape,
            Err(error) => {
                say!("\nno memory plan: {error}");
                return;
            }
        };
        let layout = if self.engine.kv_layout.is_unified() { "one pool of cells" } else { "cells split" };
        say!("\nmemory with all of a context's cells in use ({layout}; context x slots; compute is an estimate)");
        let available = self.memory.map_or(u64::MAX, |memory| memory.available);
        let heads: String =
            SLOTS.iter().map(|n| format!("{:>13}", format!("{n} slot{}", if *n == 1 { "" } else { "s" }))).collect();
        say!("  {:>8}{heads}", "context");
        for (n_ctx, plans) in self.table(shape) {
            let cells: String = plans
                .iter()
                .map(|plan| format!("{:>12}{}", bytes(plan.total()), if plan.total() > available { '!' } else { ' ' }))
                .collect();
            say!("  {n_ctx:>8}{cells}");
        }
        if let Some(memory) = self.memory {
            say!("  {} available ({}); ! does not fit", bytes(memory.available), memory.limited_by);
        }
    }

    /// Plans for the usual contexts up to the model's own, each with the usual numbers of slots.
    fn table(&self, shape: &Shape) -> Vec<(u64, Vec<Plan>)> {
        let own = shape.n_ctx_train;
        let mut contexts: Vec<u64> = CONTEXTS.iter().map(|n| u64::from(*n)).filter(|n| own == 0 || *n < own).collect();
        contexts.extend((own > 0).then_some(own));
        let plan = |n_ctx, n_slots: u32| {
            let ask = plan::ask(&EngineConfig { n_slots, ..self.engine.clone() }, shape);
            Plan::new(&self.file, shape, crate::model::Ask { n_ctx, ..ask })
        };
        contexts.into_iter().map(|n_ctx| (n_ctx, SLOTS.iter().map(|n| plan(n_ctx, *n)).collect())).collect()
    }

    fn json(&self, with_tensors: bool) -> serde_json::Value {
        let gguf = &self.file.gguf;
        let metadata: Map<String, serde_json::Value> =
            gguf.metadata.iter().map(|(key, value)| (key.clone(), as_json(value))).collect();
        let quantisations: Vec<_> = self
            .file
            .quantisations()
            .into_iter()
            .map(|(kind, n, n_bytes)| json!({"type": kind, "tensors": n, "bytes": n_bytes}))
            .collect();
        let mut facts = json!({
            "path": self.file.path.display().to_string(),
            "version": gguf.version,
            "file_bytes": self.file.file_bytes(),
            "files": self.file.parts.len() + 1,
            "fingerprint": self.fingerprint,
            "sha256": self.sha256,
            "n_params": self.file.n_params(),
            "n_tensors": self.file.tensors().count(),
            "weight_bytes": self.file.weight_bytes(),
            "metadata": metadata,
            "quantisations": quantisations,
            "available_bytes": self.memory.map(|memory| memory.available),
        });
        if with_tensors {
            facts["tensors"] = self
                .file
                .tensors()
                .map(|tensor| {
                    json!({"name": tensor.name, "type": tensor.kind, "dims": tensor.dims, "bytes": tensor.n_bytes})
                })
                .collect();
        }
        if let Ok(shape) = &self.shape {
            let rows = self.table(shape).into_iter().flat_map(|(_, plans)| plans);
            facts["memory"] = rows.map(|plan| plan_json(&plan)).collect();
        }
        facts
    }
}

const TEMPLATE: &str = "tokenizer.chat_template";

fn plan_json(plan: &Plan) -> serde_json::Value {
    json!({
        "n_ctx": plan.ask.n_ctx,
        "n_slots": plan.ask.n_slots,
        "weight_bytes": plan.weights,
        "kv_bytes": plan.kv,
        "state_bytes": plan.state,
        "compute_bytes_estimate": plan.compute,
        "total_bytes": plan.total(),
    })
}

/// A value on one line, shortened. Control characters are escaped: a file must not command the terminal.
fn shown(value: &Value) -> String {
    const TEXT_MAX: usize = 200;
    match value {
        Value::Uint(n) => n.to_string(),
        Value::Int(n) => n.to_string(),
        Value::F32(n) => n.to_string(),
        Value::F64(n) => n.to_string(),
        Value::Bool(yes) => yes.to_string(),
        Value::Text(text) => {
            let start: String = text.chars().take(TEXT_MAX).collect();
            let rest = if start.len() < text.len() { "…" } else { "" };
            format!("{}{rest}", printable(&start))
        }
        Value::List(List { kind, len, numbers, texts, longest }) => match kind {
            _ if !texts.is_empty() => format!("[{}]", printable(&texts.join(", "))),
            _ if !numbers.is_empty() && *len <= 16 => format!("{numbers:?}"),
            &"str" => format!("[{len} texts, the longest of {longest} bytes]"),
            kind => format!("[{len} {kind}]"),
        },
    }
}

fn as_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Uint(n) => json!(n),
        Value::Int(n) => json!(n),
        // By way of text: 0.2 stays 0.2.
        Value::F32(n) => n.to_string().parse::<f64>().map_or(serde_json::Value::Null, |n| json!(n)),
        Value::F64(n) => json!(n),
        Value::Bool(yes) => json!(yes),
        Value::Text(text) => json!(text),
        Value::List(list) if !list.texts.is_empty() => json!(list.texts),
        Value::List(list) if !list.numbers.is_empty() => json!(list.numbers),
        Value::List(list) => json!({"type": list.kind, "len": list.len}),
    }
}

fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn indented(template: &str) -> String {
    template.lines().map(|line| format!("  {}\n", printable(line))).collect::<String>().trim_end().to_owned()
}

fn dims(tensor: &Tensor) -> String {
    tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

/// 4066560 → `4.07 M`.
fn count(n: u64) -> String {
    let (unit, name) = match n {
        0..1_000_000 => return n.to_string(),
        1_000_000..1_000_000_000 => (1_000_000, "M"),
        _ => (1_000_000_000, "G"),
    };
    format!("{}.{:02} {name}", n / unit, n % unit * 100 / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shortened_and_cannot_command_the_terminal() {
        assert_eq!(shown(&Value::Text("a\x1b[2J\n".into())), "a\\u{1b}[2J\\n");
        assert!(shown(&Value::Text("x".repeat(500))).chars().count() == 201);
        assert_eq!(shown(&Value::F32(0.2)), "0.2");
    }

    #[test]
    fn counts_are_rounded_down() {
        assert_eq!(
            (count(999), count(4_066_560), count(7_000_000_000)),
            ("999".into(), "4.06 M".into(), "7.00 G".into())
        );
    }
}
