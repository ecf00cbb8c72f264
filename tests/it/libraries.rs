//! What the binary loads, and what it says of it.

use std::path::Path;
use std::process::Command;

fn hearth(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    let output =
        command.args(arguments).envs(variables.iter().copied()).current_dir(dir).output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

#[test]
fn the_version_tells_what_models_run_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let name = format!("hearth {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(hearth(dir.path(), &["-V"], &[]).0, name);
    let (long, _) = hearth(dir.path(), &["--version"], &[]);
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines.len(), 3, "{long}");
    assert!(long.starts_with(&name) && lines[1].starts_with("llama.cpp "), "{long}");
    let cpu = lines[2].strip_prefix("CPU code: ").expect("the code for the CPU");
    assert_eq!(cpu.starts_with("built in ("), cfg!(not(feature = "dynamic-backends")), "{cpu}");
    assert!(cpu.ends_with(')') && !cpu.contains("()"), "{cpu}");
}

/// ggml's own search would take libraries out of the current directory, which may be anybody's.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn no_library_comes_from_the_current_directory() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["libggml-blas.so", "libggml-cpu-zen4.so", "libggml-cpu.so"] {
        std::fs::write(dir.path().join(name), "not a library").expect("a file");
    }
    // The loader tells each file that it opens.
    let (long, told) = hearth(dir.path(), &["--version"], &[("LD_DEBUG", "files")]);
    assert!(long.contains("CPU code: "), "{long}");
    assert!(told.contains("libc.so"), "the loader says what it loads: {told}");
    assert!(!told.contains(&dir.path().display().to_string()), "{told}");
}
