#!/bin/sh
# Mutates a room's rules and says which mutations none of the room's own tests notices:
#     sh .ci/mutants.sh limits                  (make mutants ROOM=limits)
#     sh .ci/mutants.sh ledger --shard 0/2      (further flags are cargo-mutants': `cargo install cargo-mutants`)
# Rooms: limits, breaker, ledger, cache, keys. What only a test of another room would notice counts as unnoticed here.
#
# A build of hearth takes minutes, so a room is compiled in a package of its own, in seconds, over a hearth that is compiled
# once: a copy of the source in which everything is public, so that the room finds its neighbours where it expects them.
set -eu
room=${1:?which room: limits, breaker, ledger, cache or keys}
shift
# `parts`: what is compiled anew for each mutation, under src/gateway. `files`: what of it is mutated. `tests`: who must notice.
case $room in
    limits) parts=limits files='limits/*.rs' tests='limits::' ;;
    breaker) parts='upstream/breaker.rs' files='upstream/breaker.rs' tests='breaker::' ;;
    ledger) parts='store books ship' files='store/row.rs books/ledger.rs' tests='gateway::' ;;
    cache) parts=cache files='cache/key.rs' tests='cache::' ;;
    keys) parts='keys spec.rs names.rs' files='keys/*.rs spec.rs names.rs' tests='gateway::' ;;
    *) echo "no such room: $room" >&2 && exit 2 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
export CARGO_TARGET_DIR="$target" CARGO_INCREMENTAL=1
rest=$target/mutants/rest
own=$target/mutants/room

# Copies file $1 to $2 with the sed script $3, where that changes anything: cargo goes by times.
put() {
    mkdir -p "$(dirname "$2")"
    sed "$3" "$1" > "$2.new"
    if cmp -s "$2.new" "$2"; then rm "$2.new"; else mv "$2.new" "$2"; fi
}
open='s/^mod \([a-z_0-9]*\);/pub mod \1;/; s/pub(\(crate\|super\|in [a-z:]*\))/pub/g'
cd "$root"
find src -type f ! -path src/lib.rs | while read -r file; do
    case $file in *.rs) put "$file" "$rest/$file" "$open" ;; *) put "$file" "$rest/$file" '' ;; esac
done
put src/lib.rs "$rest/src/lib.rs" "$open; 1i #![allow(warnings)]"
put build.rs "$rest/build.rs" ''
put Cargo.lock "$rest/Cargo.lock" ''
put Cargo.toml "$rest/Cargo.toml" '/^\[\[bench\]\]$/,/^$/d; /^\[lints/,$d'

rm -rf "$own"
mkdir -p "$own/src/gateway"
for part in $parts; do
    mkdir -p "$own/src/gateway/$(dirname "$part")"
    cp -r "src/gateway/$part" "$own/src/gateway/$part"
done
# One failure is enough: the smallest one would take minutes to find; and a mutation is soon found.
find "$own/src" -name '*.rs' -exec sed -i 's/max_shrink_iters: [0-9]*/max_shrink_iters: 0/; s/cases: 40/cases: 8/' {} +
# Fuzz targets need the house's fuzzer.
find "$own/src" -name fuzz_tests.rs -delete
find "$own/src" -name '*.rs' -exec sed -i '/^#\[cfg(test)\]$/{N;/fuzz_tests/d}' {} +
{
    printf '#![allow(dead_code, unused_imports)]\npub use hearth::*;\npub mod gateway {\n    pub use hearth::gateway::*;\n'
    for part in $parts; do
        name=${part%.rs}
        case $name in
            */*) printf '    pub mod %s {\n        pub use hearth::gateway::%s::*;\n        pub mod %s;\n    }\n' "${name%/*}" "${name%/*}" "${name#*/}" ;;
            *) printf '    pub mod %s;\n' "$name" ;;
        esac
    done
    printf '}\n'
} > "$own/src/lib.rs"
cp Cargo.lock "$own/"
{
    printf '[package]\nname = "room"\nversion = "0.1.0"\nedition = "2024"\n\n[workspace]\n\n'
    printf '[features]\ndefault = ["otlp", "postgres"]\notlp = []\npostgres = []\n\n'
    sed -n '/^\[dependencies\]/,/^\[build-dependencies\]/p' Cargo.toml | sed '$d; s/, optional = true//'
    printf 'hearth = { path = "%s" }\n\n' "$rest"
    sed -n '/^\[dev-dependencies\]/,/^\[profile/p' Cargo.toml | sed '$d'
    # What others made is compiled as hearth's own build has it, and found there.
    sed -n '/^\[profile.release\]/,/^$/p' Cargo.toml
    for package in hearth room; do
        printf '[profile.release.package.%s]\nopt-level = 0\ndebug = false\ncodegen-units = 64\n\n' "$package"
    done
} > "$own/Cargo.toml"
# The flags that the rest was compiled with come with the place; elsewhere they are brought along.
case $target in
    "$root"/*) ;;
    *) mkdir -p "$own/.cargo" && sed '/^include/d' .cargo/config.toml > "$own/.cargo/config.toml" ;;
esac
cd "$own"
set -f
for file in $files; do set -- -f "src/gateway/$file" "$@"; done
code=0
# These take most of the time and notice little that the others don't: interleavings, flipped bits, thousands of rows.
cargo mutants --in-place --profile release --no-times --timeout "${TIMEOUT:-60}" "$@" -- --lib "$tests" -- --skip loom_tests \
    --skip no_flipped_bit --skip the_log_is_copied_back --skip a_file_that_can_not_be_written || code=$?
# 2: some were missed; 3: some ran out of time, which is noticed too.
case $code in 0 | 2 | 3) ;; *) exit "$code" ;; esac
cd mutants.out
awk -F: -v least=90 '
    { kind = FILENAME; sub(/\.txt$/, "", kind); n[$1, kind]++; all[kind]++; files[$1] }
    function row(name, caught, missed, timeout, unviable) {
        of = caught + missed + timeout
        share = of ? 100 * (caught + timeout) / of : 100
        printf "%-36s %8d %8d %8d %8d %8d %9.1f %%\n", name, of + unviable, caught, missed, timeout, unviable, share
        return share
    }
    END {
        printf "%-36s %8s %8s %8s %8s %8s %11s\n", "", "mutants", "caught", "missed", "timeout", "unviable", "noticed"
        for (f in files) row(f, n[f, "caught"], n[f, "missed"], n[f, "timeout"], n[f, "unviable"])
        exit row("together", all["caught"], all["missed"], all["timeout"], all["unviable"]) < least
    }' caught.txt missed.txt timeout.txt unviable.txt
