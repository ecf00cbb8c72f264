#!/bin/sh
# Mutates rules that stand alone (the breaker, the limiter, keys) and says which mutations no test of theirs notices:
#     sh .ci/mutants.sh gateway/upstream/breaker.rs upstream
#     sh .ci/mutants.sh 'gateway/limits/core.rs' limits --shard 0/4
# The file (a glob, under src), the tests that must notice, and flags for cargo-mutants (`cargo install cargo-mutants`).
#
# A build of hearth takes minutes, so these files are compiled in a package of their own, in seconds. What only a test of another
# room would notice counts as unnoticed here.
set -eu
file=$1 tests=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
place=${CARGO_TARGET_DIR:-$root/target}/mutants
rm -rf "$place/src" && mkdir -p "$place/src/gateway/upstream"
cp -r "$root/src/gateway/limits" "$root/src/gateway/keys" "$root/src/gateway/spec.rs" "$root/src/gateway/names.rs" "$place/src/gateway/"
cp "$root/src/gateway/upstream/breaker.rs" "$place/src/gateway/upstream/"
cp "$root/Cargo.lock" "$place/"
# Its fuzz targets need the rest of the house.
rm "$place/src/gateway/keys/fuzz_tests.rs"
sed -i '/^#\[cfg(test)\]$/{N;/fuzz_tests/d}' "$place/src/gateway/keys/mod.rs"
{
    printf '[package]\nname = "mutants"\nversion = "0.1.0"\nedition = "2024"\n\n[workspace]\n\n[profile.test]\nopt-level = 1\ndebug = 0\n\n'
    sed -n '/^\[dependencies\]/,/^\[build-dependencies\]/p' "$root/Cargo.toml" |
        grep -E '^\[dependencies|^(arc-swap|crc32fast|getrandom|hmac|ipnet|jiff|rand|serde|serde_json|sha2|subtle|tokio-util|tracing) '
    printf '\n[dev-dependencies]\n'
    sed -n '/^\[dev-dependencies\]/,/^\[profile/p' "$root/Cargo.toml" | grep -E '^(loom|proptest) '
} > "$place/Cargo.toml"
cat > "$place/src/lib.rs" <<'RUST'
#![allow(dead_code, unused_imports)]
pub mod chat {
    use serde::{Deserialize, Serialize};
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Class {
        #[default]
        Interactive,
        Batch,
    }
}
pub mod gateway {
    pub mod keys;
    pub mod limits;
    pub mod names;
    pub mod spec;
    pub mod upstream {
        pub mod breaker;
    }
    pub use keys::*;
    pub use limits::*;
    pub use spec::*;
    #[derive(Debug, Clone, PartialEq)]
    pub enum Error {
        Unauthorized,
        Forbidden(&'static str),
    }
}
RUST
cd "$place"
# The interleavings of loom take most of the time and notice little that the others don't.
exec cargo mutants --in-place --no-times --timeout 60 -f "src/$file" "$@" -- --lib "$tests" -- --skip loom_tests
