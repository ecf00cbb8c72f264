//! Compiles the C++ shim over llama.cpp's `common/` and binds its header. llama.cpp itself is compiled by
//! `llama-cpp-sys-2`; its source is wherever that crate found it, which the CMake cache tells.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const SHIM: &str = "src/llama/shim";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SHIM}");
    let source = llama_source()?;
    compile_shim(&source);
    find_libraries()?;
    bind_shim(&source)
}

/// The directory that was really compiled: works for the registry and for `make vendor` alike.
fn llama_source() -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=DEP_LLAMA_ROOT");
    let root = env::var("DEP_LLAMA_ROOT")
        .map_err(|_| "DEP_LLAMA_ROOT is not set: llama-cpp-sys-2 is not a direct dependency")?;
    let cache = Path::new(&root).join("build/CMakeCache.txt");
    let text = fs::read_to_string(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let home = text.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="));
    Ok(PathBuf::from(home.ok_or("CMakeCache.txt names no CMAKE_HOME_DIRECTORY")?))
}

fn includes(source: &Path) -> Vec<PathBuf> {
    ["common", "include", "ggml/include", "vendor", "tools/mtmd", "."].iter().map(|dir| source.join(dir)).collect()
}

fn compile_shim(source: &Path) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .files(
            [
                "hearth_llama.cpp",
                "hearth_graph.cpp",
                "hearth_sampler.cpp",
                "hearth_reference.cpp",
                "hearth_chat.cpp",
                "hearth_mtmd.cpp",
                "hearth_speculator.cpp",
                "hearth_tools.cpp",
            ]
            .map(|file| format!("{SHIM}/{file}")),
        )
        .include(SHIM);
    for dir in includes(source) {
        // As system headers, so that warnings of llama.cpp's headers aren't ours.
        build.flag("-isystem").flag(dir.display().to_string());
    }
    build.flag("-Wall").flag("-Wextra").compile("hearth_llama");
}

/// Where the loader finds llama.cpp when it isn't linked in: `src/llama/cpu.rs` finds ggml's variants in the same folder, or
/// where they were built, which archives (`.ci/dist.sh` sets HEARTH_DIST) must not know.
fn find_libraries() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=HEARTH_DIST");
    if env::var_os("CARGO_FEATURE_DYNAMIC_BACKENDS").is_none() || env::var("CARGO_CFG_TARGET_OS")? != "linux" {
        return Ok(());
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/hearth");
    if env::var_os("HEARTH_DIST").is_none() {
        let root = env::var("DEP_LLAMA_ROOT")?;
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{root}/lib,-rpath,{root}/lib64");
        println!("cargo:rustc-env=HEARTH_BACKENDS_BUILT={root}/backends");
    }
    Ok(())
}

fn bind_shim(source: &Path) -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("shim.rs");
    let mut builder = bindgen::Builder::default()
        .header(format!("{SHIM}/hearth_llama.h"))
        .allowlist_item("(hearth|HEARTH)_.*")
        // Types of llama.h, ggml.h and mtmd.h are the sys crate's.
        .blocklist_type("(llama|ggml|mtmd)_.*")
        .raw_line("use llama_cpp_sys_2::*;")
        .prepend_enum_name(false)
        .layout_tests(false);
    for dir in includes(source) {
        builder = builder.clang_arg(format!("-I{}", dir.display()));
    }
    builder.generate()?.write_to_file(out)?;
    Ok(())
}
