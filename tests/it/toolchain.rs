//! What this tree does to the compiler that builds llama.cpp.

use crate::support::served::root;
use std::process::Command;

/// GCC's own header lets the optimiser drop what tiles are configured with (`src/llama/shim/gcc`).
#[test]
#[cfg(target_arch = "x86_64")]
fn a_configuration_of_tiles_is_loaded_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("tile.cpp");
    // 4660 is in none of the first eight bytes.
    let text = "#include <immintrin.h>\nvoid f() { alignas(64) unsigned short c[32] = {}; c[0] = 1; c[20] = 4660; \
                _tile_loadconfig(c); }\n";
    std::fs::write(&source, text).expect("a writable folder");
    let compiled = Command::new(std::env::var_os("CXX").unwrap_or("c++".into()))
        .args(["-O3", "-mamx-tile", "-mavx512f", "-S", "-o", "-"])
        .arg(&source)
        .env("CPLUS_INCLUDE_PATH", root().join("src/llama/shim/gcc"))
        .output()
        .expect("the compiler that built this");
    let assembly = String::from_utf8_lossy(&compiled.stdout);
    if !compiled.status.success() {
        // Too old to know tiles: then none are used.
        let error = String::from_utf8_lossy(&compiled.stderr);
        assert!(error.contains("amx"), "{error}");
        return;
    }
    assert!(assembly.contains("ldtilecfg") && assembly.contains("4660"), "{assembly}");
    let config = std::fs::read_to_string(root().join(".cargo/config.toml")).expect("it is in the tree");
    assert!(config.contains(r#"CPLUS_INCLUDE_PATH = { value = "src/llama/shim/gcc", relative = true }"#));
}
