#!/bin/sh
# Proves that vendor/ is enough: builds a copy of the tree with the network off, an empty cargo home and nothing built.
set -eu

[ -d vendor/crates ] || { echo "vendor-test: run 'make vendor' first" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/home" "$work/tree"
tar cf - --exclude ./target --exclude ./.git --exclude ./.venv --exclude node_modules . \
    | tar xf - -C "$work/tree"
cd "$work/tree"
export CARGO_HOME="$work/home" CARGO_NET_OFFLINE=true CARGO_TARGET_DIR="$work/target"
cargo build --release --locked --offline
"$work/target/release/hearth" inspect models/hearth-demo.gguf >/dev/null
echo "vendor-test: the build from vendor/ works without a network"
