//! ggml's code for the CPU: linked in, or (`dynamic-backends`) libraries beside the executable of which one is chosen.

use super::error::Error;
use super::sys;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::path::{Path, PathBuf};

/// Names the folder with ggml's libraries, for packages that keep them elsewhere.
pub const VARIABLE: &str = "HEARTH_BACKENDS";
/// Where they are otherwise, beside the executable's folder; the loader finds llama.cpp there too (`build.rs`).
const BESIDE_BIN: &str = "lib/hearth";
/// Where they were built, unless this is an archive's executable.
const BUILT: Option<&str> = option_env!("HEARTH_BACKENDS_BUILT");
const PREFIX: &str = "libggml-cpu-";

/// The code for this CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The kind of CPU whose library was chosen, as ggml names it (`zen4`); `None`: it is linked in.
    pub variant: Option<String>,
    /// What it was compiled to use, as ggml names it (`AVX2 FMA`).
    pub features: String,
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.variant.as_deref().unwrap_or("built in"), self.features)
    }
}

/// What runs here. Errors: ggml was not started, or has no code for this CPU.
pub fn cpu() -> Result<Cpu, Error> {
    super::init()?;
    let (mut file, mut features) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: both are places for strings, which are taken over below.
    sys::call(|err| unsafe { sys::hearth_cpu(&raw mut file, &raw mut features, err) })?;
    // SAFETY: the shim left strings of its own, since it succeeded.
    let (file, features) = unsafe { (sys::take(file), sys::take(features)) };
    Ok(Cpu { variant: variant(Path::new(&file)), features })
}

fn variant(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    name.strip_suffix(".so").map(str::to_owned)
}

/// The folder that ggml's code comes from; `None`: it is linked in.
/// Errors: the executable doesn't know where it is.
pub(super) fn folder() -> Result<Option<PathBuf>, Error> {
    let given = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty());
    if cfg!(not(feature = "dynamic-backends")) {
        if given.is_some() {
            tracing::warn!("{VARIABLE} is of no use: this build has its code for the CPU inside");
        }
        return Ok(None);
    }
    if let Some(dir) = given {
        return Ok(Some(dir.into()));
    }
    let exe = std::env::current_exe().map_err(|error| Error::Invalid(format!("where is this executable? {error}")))?;
    let beside = beside(&exe);
    let built = BUILT.map(PathBuf::from).filter(|built| !beside.exists() && built.exists());
    Ok(Some(built.unwrap_or(beside)))
}

fn beside(exe: &Path) -> PathBuf {
    let up = exe.parent().and_then(Path::parent);
    up.unwrap_or(Path::new("/")).join(BESIDE_BIN)
}

pub(super) fn as_c(dir: &Path) -> Result<CString, Error> {
    CString::new(dir.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::Invalid(format!("{}: a NUL in it", dir.display())))
}

/// Why ggml found no code for this CPU in `dir`.
pub(super) fn explain(dir: &Path) -> String {
    let is_ours = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with("libggml-cpu"));
    let why = match std::fs::read_dir(dir) {
        Err(error) => error.to_string(),
        Ok(entries) => match entries.flatten().filter(|entry| is_ours(&entry.file_name())).count() {
            0 => format!("no {PREFIX}*.so is there"),
            n => format!("none of the {n} libraries there can be loaded on this CPU"),
        },
    };
    format!(
        "ggml's code for the CPU is missing: {}: {why}. The folders bin and lib of hearth's archive belong together; \
         {VARIABLE} names another folder",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variant_is_in_the_librarys_name() {
        let of = |file| variant(Path::new(file));
        assert_eq!(of("/opt/hearth/lib/hearth/libggml-cpu-zen4.so").as_deref(), Some("zen4"));
        assert_eq!(of("libggml-cpu-x64.so").as_deref(), Some("x64"));
        assert_eq!(of("/usr/bin/hearth"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn libraries_are_beside_the_executable() {
        assert_eq!(beside(Path::new("/opt/hearth/bin/hearth")), Path::new("/opt/hearth/lib/hearth"));
        assert_eq!(beside(Path::new("/hearth")), Path::new("/lib/hearth"));
    }

    #[test]
    fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(explain(&dir.path().join("gone")).contains("No such file"));
        assert!(explain(dir.path()).contains("no libggml-cpu-*.so is there"));
        std::fs::write(dir.path().join("libggml-cpu-zen9.so"), "").expect("a file");
        let text = explain(dir.path());
        assert!(text.contains("none of the 1 libraries"), "{text}");
        assert!(text.contains(&dir.path().display().to_string()) && text.contains(VARIABLE), "{text}");
    }

    #[test]
    fn the_code_for_this_cpu_is_known() {
        let cpu = cpu().expect("llama.cpp starts");
        assert_eq!(cpu.variant.is_some(), cfg!(feature = "dynamic-backends"), "{cpu}");
        assert!(!cpu.features.is_empty(), "{cpu}");
    }
}
