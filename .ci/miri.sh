#!/bin/sh
# Runs the unit tests of what stands between the front and its engine process (frames, router, mailboxes, pulse) and of the readers of
# hostile bytes that need nothing of llama.cpp, under Miri (`rustup toolchain install nightly -c miri -c rust-src`):
#     sh .ci/miri.sh
#     sh .ci/miri.sh engine::transport
#
# Miri can't call C++, so these files are compiled in a package of their own. What talks to llama.cpp is beyond it; that has a run
# with AddressSanitizer (benches/README.md).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
place=${CARGO_TARGET_DIR:-$root/target}/miri-package
rm -rf "$place/src" && mkdir -p "$place/src/engine/transport"
cp -r "$root/src/chat" "$root/src/model" "$place/src/"
for part in config error event mailbox promises request router wait; do
    cp "$root/src/engine/$part.rs" "$place/src/engine/"
done
for part in frame pulse supervisor; do
    cp "$root/src/engine/transport/$part.rs" "$place/src/engine/transport/"
done
cp "$root/Cargo.lock" "$place/"
# Fuzz targets need files and the rest of the house.
rm "$place/src/model/fuzz_tests.rs"
sed -i '/^#\[cfg(test)\]$/{N;/fuzz_tests/d}' "$place/src/model/mod.rs"
# The part of a file that begins with a line and ends with the first that is a closing brace.
part() { sed -n "/$2/,/^}/p" "$root/src/engine/$1"; }
{
    printf '[package]\nname = "room"\nversion = "0.1.0"\nedition = "2024"\n\n[workspace]\n\n'
    sed -n '/^\[dependencies\]/,/^\[build-dependencies\]/p' "$root/Cargo.toml" |
        grep -E '^(\[dependencies\]|(postcard|rand|rustc-hash|rustix|serde|serde_json|sha2|thiserror|tokio|tracing) )'
    printf '\n[dev-dependencies]\n'
    sed -n '/^\[dev-dependencies\]/,/^\[profile/p' "$root/Cargo.toml" | grep -E '^(proptest|tempfile) '
} > "$place/Cargo.toml"
{
    printf '#![allow(dead_code, unused_imports)]\npub mod chat;\npub mod model;\npub mod llama {\n    pub const BACKENDS_VARIABLE: &str = "HEARTH_BACKENDS";\n}\n'
    printf 'pub mod engine {\n'
    for name in config error event mailbox promises request router wait; do printf '    pub mod %s;\n' "$name"; done
    printf '    pub use config::EngineConfig;\n    pub use error::Failure;\n    pub use event::*;\n    pub use request::*;\n'
    printf '    pub mod pressure {\n        use crate::chat::Class;\n        use std::sync::atomic::{AtomicU8, Ordering};\n'
    printf '        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]\n'
    part pressure.rs '^pub enum Pressure {'
    part pressure.rs '^impl Pressure {'
    printf '        #[derive(Debug, Default)]\n        pub struct PressureNow(AtomicU8);\n'
    part pressure.rs '^impl PressureNow {'
    printf '    }\n    pub mod transport {\n        use serde::{Deserialize, Serialize};\n        use super::event::Description;\n'
    printf '        pub mod frame;\n        pub mod pulse;\n        pub mod supervisor;\n'
    printf '        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]\n'
    part transport/mod.rs '^pub(super) enum Notice {'
    printf '    }\n}\n'
} > "$place/src/lib.rs"
cd "$place"
# Files are read for nothing but their bytes; clocks run on.
MIRIFLAGS="-Zmiri-disable-isolation ${MIRIFLAGS:-}" PROPTEST_CASES=20 exec cargo +nightly miri test --lib -- "$@"
