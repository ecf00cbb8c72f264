//! The GPUs that ggml's backends found.

use super::error::Error;
use super::{cpu, sys};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A device that layers can be kept on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As ggml calls it: `CUDA0`.
    pub name: String,
    /// As its driver calls it: `NVIDIA H100 80GB HBM3`.
    pub description: String,
    /// Bytes of its memory that nobody uses now, with what asking took counted as used.
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Its memory is the machine's.
    pub is_integrated: bool,
}

/// Most GPUs that are told of; ggml's own limit. Source: GGML_SCHED_MAX_BACKENDS, ggml-backend.cpp.
const GPUS_MAX: usize = 16;

/// Held by whoever opens a device, in builds for GPUs: ggml's Vulkan devices are set up by their first user, and a second one at
/// that moment finds half of one and aborts (two engines in one process, with llvmpipe). Source: ggml_vk_get_device,
/// ggml-vulkan.cpp.
pub(super) fn opening() -> Option<MutexGuard<'static, ()>> {
    static OPENING: Mutex<()> = Mutex::new(());
    super::offloads().then(|| OPENING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// All GPUs that this build can use. Opens each of them, which takes some of its memory until this process ends.
/// Errors: ggml was not started; what a driver threw.
pub fn gpus() -> Result<Vec<Gpu>, Error> {
    super::init()?;
    let _opening = opening();
    let mut gpus = Vec::new();
    for index in 0..GPUS_MAX {
        let mut device = sys::hearth_device {
            name: std::ptr::null_mut(),
            description: std::ptr::null_mut(),
            free_bytes: 0,
            total_bytes: 0,
            is_integrated: false,
        };
        let mut found = false;
        // SAFETY: both are places for what the shim tells; its strings are taken over below.
        sys::call(|err| unsafe { sys::hearth_gpu(index, &raw mut device, &raw mut found, err) })?;
        if !found {
            break;
        }
        // SAFETY: the shim left strings of its own, since it found a device.
        let (name, description) = unsafe { (sys::take(device.name), sys::take(device.description)) };
        let (free_bytes, total_bytes) = (device.free_bytes, device.total_bytes);
        gpus.push(Gpu { name, description, free_bytes, total_bytes, is_integrated: device.is_integrated });
    }
    Ok(gpus)
}

/// Libraries of ggml for GPUs that are beside the executable: their names, and where they are.
/// Errors: the executable doesn't know where it is.
fn libraries() -> Result<Vec<(String, PathBuf)>, Error> {
    let Some(dir) = cpu::folder()? else { return Ok(Vec::new()) };
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let is_for_gpus = |name: &str| {
        let kind = name.strip_prefix("libggml-").and_then(|rest| rest.strip_suffix(".so"));
        kind.is_some_and(|kind| kind != "base" && !kind.starts_with("cpu"))
    };
    let mut libraries: Vec<_> = named.filter(|(name, _)| is_for_gpus(name)).collect();
    libraries.sort();
    Ok(libraries)
}

/// Whether this build, or a library beside it, has code for GPUs, whatever is here to run it. Starts nothing.
pub fn has_gpu_code() -> bool {
    cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan", feature = "rocm", feature = "opencl"))
        || (cfg!(feature = "dynamic-backends") && libraries().is_ok_and(|libraries| !libraries.is_empty()))
}

/// Libraries of ggml for GPUs that can't be loaded, with what the loader says.
/// Errors: ggml was not started.
pub fn unloadable() -> Result<Vec<String>, Error> {
    super::init()?;
    let mut faults = Vec::new();
    for (name, path) in libraries()? {
        let path = cpu::as_c(&path)?;
        let mut fault = std::ptr::null_mut();
        // SAFETY: a C string that lives during the call, and a place for a string, which is taken over below.
        sys::call(|err| unsafe { sys::hearth_library_fault(path.as_ptr(), &raw mut fault, err) })?;
        // SAFETY: NULL or the shim's own string.
        let fault = unsafe { sys::take(fault) };
        if !fault.is_empty() {
            faults.push(format!("{name}: {fault}"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_build_without_gpus_finds_none_and_one_with_them_tells_their_memory() {
        let gpus = super::gpus().expect("ggml starts");
        assert_eq!(gpus.is_empty(), !crate::llama::offloads());
        for gpu in &gpus {
            assert!(!gpu.name.is_empty() && gpu.free_bytes <= gpu.total_bytes, "{gpu:?}");
        }
    }
}
