//! The GPUs of this machine: `hearth gpus`, and what the memory plan knows of them.

use super::say;
use crate::engine::config::GpuLayers;
use crate::engine::{self, Gpu};
use crate::model::Offload;
use crate::model::fit::bytes;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A driver that has not answered by then will not; the first start of one may take some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Left free on each GPU, as llama.cpp does (`--fit-target`), but no more than an eighth of its memory: for what matrix
/// products take for a moment, and what the plan's estimate of the compute buffers leaves out.
const SPARE_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(super) struct Gpus {
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

impl Gpus {
    pub fn run(self) -> Result<()> {
        let gpus = engine::gpus().map_err(|reason| anyhow!(reason))?;
        if self.json {
            say!("{}", serde_json::to_string(&gpus)?);
            return Ok(());
        }
        for gpu in &gpus {
            let kind = if gpu.is_integrated { ", of the machine's memory" } else { "" };
            let (free, total) = (bytes(gpu.free_bytes), bytes(gpu.total_bytes));
            say!("{}  {}  {free} of {total} free{kind}", gpu.name, gpu.description);
        }
        for fault in engine::unloadable().map_err(|reason| anyhow!(reason))? {
            say!("can't be loaded: {fault}");
        }
        if gpus.is_empty() && engine::has_gpu_code() {
            say!("no GPU that this build can use; models run on the CPU");
        } else if gpus.is_empty() {
            say!("this build runs models on the CPU only; README.md tells how to build for GPUs");
        }
        Ok(())
    }
}

/// The memory of all GPUs that the plan may give away.
pub(super) struct GpuMemory {
    names: Vec<String>,
    free: u64,
    /// If not, it is the machine's, which is counted elsewhere.
    is_own: bool,
}

impl GpuMemory {
    pub fn now() -> Self {
        Self::of(found())
    }

    /// llama.cpp uses integrated GPUs only where there are no others. Source: `llama_prepare_model_devices`, src/llama.cpp.
    fn of(gpus: &[Gpu]) -> Self {
        let is_own = gpus.iter().any(|gpu| !gpu.is_integrated);
        let used: Vec<&Gpu> = gpus.iter().filter(|gpu| gpu.is_integrated != is_own).collect();
        let free = |gpu: &&Gpu| gpu.free_bytes.saturating_sub(SPARE_BYTES.min(gpu.total_bytes / 8));
        Self {
            free: used.iter().map(free).fold(0, u64::saturating_add),
            names: used.iter().map(|gpu| gpu.description.clone()).collect(),
            is_own,
        }
    }

    pub fn is_there(&self) -> bool {
        !self.names.is_empty()
    }

    /// What may still be taken, if it is not the machine's memory.
    pub fn free(&self) -> Option<u64> {
        (self.is_there() && self.is_own).then_some(self.free)
    }

    pub fn take(&mut self, n_bytes: u64) {
        self.free = self.free.saturating_sub(n_bytes);
    }

    #[cfg(test)]
    pub(super) fn with(free: u64) -> Self {
        Self { names: vec!["RTX".into()], free, is_own: true }
    }

    /// How many layers go there, and their bytes beside `further` ones that go with the first.
    /// Errors: more were asked for than fit.
    pub fn settle(&self, asked: GpuLayers, offload: &Offload, further: u64) -> Result<(GpuLayers, u64)> {
        let Some(free) = self.free() else { return Ok((asked, 0)) };
        let all = offload.n_max();
        let need = |n: u32| offload.need(n).saturating_add(if n > 0 { further } else { 0 });
        let fit = if further > free { 0 } else { offload.fit(free - further) };
        let n = match asked {
            GpuLayers::Auto => fit,
            GpuLayers::All => all,
            GpuLayers::Count(n) => n.min(all),
        };
        if n > fit {
            bail!(
                "{n} of {all} layers on the GPU need {}, and {} has {} to give; --n-gpu-layers {fit} would fit, auto takes as \
                 many as do",
                bytes(need(n)),
                self.names.join(", "),
                bytes(free)
            );
        }
        tracing::info!(
            "{n} of {all} layers go to {}: {} of the {} it has to give",
            self.names.join(", "),
            bytes(need(n)),
            bytes(free)
        );
        Ok((if n == all { GpuLayers::All } else { GpuLayers::Count(n) }, need(n)))
    }
}

/// The GPUs as they were at the first call. A process of its own looks: opening one takes its memory and this process's.
fn found() -> &'static [Gpu] {
    static FOUND: OnceLock<Vec<Gpu>> = OnceLock::new();
    FOUND.get_or_init(|| {
        if !engine::has_gpu_code() {
            return Vec::new();
        }
        look().unwrap_or_else(|error| {
            tracing::warn!("which GPUs are here can't be told, models run on the CPU: {error:#}");
            Vec::new()
        })
    })
}

fn look() -> Result<Vec<Gpu>> {
    let exe = std::env::current_exe().context("hearth can't find its own executable")?;
    let mut child = Command::new(exe)
        .args(["gpus", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("hearth can't start itself")?;
    let since = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if since.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("the driver did not answer within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // What sixteen GPUs say of themselves is less than a pipe holds, so it waits there.
    let mut text = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.take(64 << 10).read_to_string(&mut text)?;
    }
    if !status.success() {
        bail!("hearth gpus ended with {status}");
    }
    serde_json::from_str(&text).context("hearth gpus printed something else")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ask, ModelFile, Plan, Shape};
    use std::path::Path;

    fn gpu(description: &str, free_bytes: u64, is_integrated: bool) -> Gpu {
        let total_bytes = 16 << 30;
        Gpu { name: "GPU0".into(), description: description.into(), free_bytes, total_bytes, is_integrated }
    }

    fn offload() -> Offload {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-demo.gguf");
        let file = ModelFile::open(&path).expect("a model of the tree");
        let shape = Shape::read(&file).expect("a model of the tree");
        let plan = Plan::new(&file, &shape, Ask { n_ctx: 2048, ..Ask::default() });
        Offload::new(&file, &shape, &plan)
    }

    #[test]
    fn integrated_gpus_have_no_memory_of_their_own() {
        let only = GpuMemory::of(&[gpu("Iris", 9 << 30, true)]);
        assert_eq!((only.is_there(), only.free()), (true, None));
        assert_eq!(only.settle(GpuLayers::All, &offload(), 0).expect("it is not looked at"), (GpuLayers::All, 0));
        let none = GpuMemory::of(&[]);
        assert_eq!((none.is_there(), none.free()), (false, None));
        // Where there is another, the integrated one is not used; a GiB of it stays free.
        let both = GpuMemory::of(&[gpu("Iris", 9 << 30, true), gpu("RTX", 5 << 30, false), gpu("RTX", 3 << 30, false)]);
        assert_eq!((both.names.len(), both.free()), (2, Some(6 << 30)));
        assert_eq!(GpuMemory::of(&[gpu("RTX", 1 << 29, false)]).free(), Some(0));
    }

    #[test]
    fn layers_go_where_they_fit() {
        let offload = offload();
        let all = offload.n_max();
        let with = GpuMemory::with;
        let rich = with(offload.need(all) + 7);
        assert_eq!(
            rich.settle(GpuLayers::Auto, &offload, 7).expect("it fits"),
            (GpuLayers::All, offload.need(all) + 7)
        );
        assert_eq!(rich.settle(GpuLayers::Count(900), &offload, 0).expect("it fits").0, GpuLayers::All);
        let tight = with(offload.need(2));
        let (layers, taken) = tight.settle(GpuLayers::Auto, &offload, 0).expect("some fit");
        assert_eq!((layers, taken), (GpuLayers::Count(2), offload.need(2)));
        // What goes along with the first layer counts.
        assert_eq!(tight.settle(GpuLayers::Auto, &offload, 1).expect("fewer fit").0, GpuLayers::Count(1));
        assert_eq!(with(5).settle(GpuLayers::Auto, &offload, 9).expect("none fits"), (GpuLayers::Count(0), 0));
        for asked in [GpuLayers::All, GpuLayers::Count(3)] {
            let text = tight.settle(asked, &offload, 0).expect_err("more than fit").to_string();
            assert!(text.contains("--n-gpu-layers 2 would fit") && text.contains("RTX"), "{text}");
        }
        assert_eq!(tight.settle(GpuLayers::Count(0), &offload, 9).expect("nothing goes there").1, 0);
    }
}
