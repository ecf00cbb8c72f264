#!/bin/sh
# Builds hearth with ggml's CPU variants beside it and packs both: `make dist`, which passes the target folder, the kind of CPU
# (`uname -m`'s word: this machine's, or one to cross compile for) and cargo's feature flags. The archive is the same, byte for
# byte, for the same commit, path, tools and system.
set -eu

target=$1
arch=$2
shift 2
root=$(pwd)
[ "$(uname)" = Linux ] || { echo "dist: Linux only" >&2; exit 1; }
cargo_home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd)
build=$target/dist-build

# The binary carries the list of its crates, for those who look for known faults in what they were given (`cargo audit bin`,
# Trivy, Grype, Syft). AUDITABLE=no leaves it out, where the tool can't be had.
auditable=auditable
if [ "${AUDITABLE:-yes}" = no ]; then
    auditable=
elif ! command -v cargo-auditable >/dev/null; then
    PATH=$(mkdir -p "$target/tools/bin" && cd "$target/tools/bin" && pwd):$PATH
    export PATH
    command -v cargo-auditable >/dev/null \
        || ${CARGO:-cargo} install --quiet --locked --version 0.7.7 --root "$target/tools" cargo-auditable \
        || { echo "dist: cargo-auditable can't be installed; AUDITABLE=no builds without it" >&2; exit 1; }
fi

# No path of this machine goes into the archive: not by debug information, not by `file!()` and `__FILE__`, not by the folder
# that ggml would look for its variants in if it weren't told where they are. Libraries find their own beside them.
maps="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$root=/hearth"
case $target in
    /*) maps="$maps -ffile-prefix-map=$target=/hearth/target" ;;
esac
# Loops begin on a boundary of 32 bytes and not where chance puts them: 1 % more tokens, prompts as before (benches/README.md).
align=
if [ "$arch" = x86_64 ]; then align="-falign-functions=64 -falign-loops=32"; fi
export CFLAGS="${CFLAGS:-} $maps $align" CXXFLAGS="${CXXFLAGS:-} $maps $align -UGGML_BACKEND_DIR"
case "$*" in
    *cuda*) export CMAKE_CUDA_FLAGS="${CMAKE_CUDA_FLAGS:-} -Xcompiler=$(echo "$maps" | tr ' ' ,)" ;;
esac
separator=$(printf '\037')
export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo${separator}--remap-path-prefix=$root=/hearth"
export HEARTH_DIST=1
export CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols
# shellcheck disable=SC2016 # the loader's word, not the shell's
export CMAKE_INSTALL_RPATH='$ORIGIN'

cxx=$(sh .ci/cxx.sh "$arch")
if [ "$arch" = "$(uname -m)" ]; then
    triple=$(rustc -vV | sed -n 's/^host: //p')
    for_triple=
    tools=
    built=$build/release
else
    triple=$arch-unknown-linux-gnu
    for_triple="--target=$triple"
    tools=$arch-linux-gnu-
    built=$build/$triple/release
    export "CARGO_TARGET_$(echo "$triple" | tr a-z- A-Z_)_LINKER=${tools}gcc"
fi
# Only for the target: what the build itself runs is compiled as ever.
words=$(echo "$triple" | tr - _)
case $cxx in
    clang*) export "CC_$words=clang${cxx#clang++}" "CXX_$words=$cxx" ;;
esac
build() {
    # shellcheck disable=SC2086 # one word or none, each
    ${CARGO:-cargo} $auditable build --release --locked $for_triple --features dynamic-backends --target-dir "$build" "$@"
}
build "$@"

sys=$(build "$@" --message-format=json 2>/dev/null \
    | sed -n 's/.*"reason":"build-script-executed".*[/#]llama-cpp-sys-2[@#].*"out_dir":"\([^"]*\)".*/\1/p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=hearth-$version-linux-$arch
stage=$target/dist/$name
rm -rf "$stage" "$stage.tar.gz"
# A folder of its own under lib, so that the archive may be unpacked over /usr/local, beside another llama.cpp.
mkdir -p "$stage/bin" "$stage/lib/hearth" "$stage/licences"
install -m 755 "$built/hearth" "$stage/bin/hearth"
for library in "$sys"/lib*/lib*.so; do
    # Under the name that the loader looks for.
    soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
    install -m 755 "$library" "$stage/lib/hearth/$soname"
done
install -m 755 "$sys"/backends/libggml-*.so "$stage/lib/hearth/"
"${tools}strip" --strip-unneeded "$stage"/lib/hearth/*
install -m 644 README.md "$stage/"
install -m 644 LICENSE-MIT LICENSE-APACHE "$stage/licences/"
python3 .ci/licences.py --filter-platform "$triple" --features dynamic-backends "$@" > "$stage/licences/THIRD-PARTY.txt"
python3 -B .ci/sbom.py --filter-platform "$triple" --features dynamic-backends "$@" > "$stage/licences/hearth.cdx.json"

# The newest symbols of each kind that anything asks of the system's libraries.
newest() {
    for file in "$stage/bin/hearth" "$stage"/lib/hearth/*; do readelf -V "$file"; done \
        | sed -n "s/.*Name: \($1_[0-9.]*\).*/\1/p" | sort -uV | tail -n 1
}
cat > "$stage/INSTALL.txt" <<END
hearth $version for Linux on $arch, any CPU of that kind.

Run it where it lies, bin/hearth serve MODEL.gguf, or copy the folders bin and lib together, to /usr/local say. lib/hearth has
ggml's code for each kind of CPU; the best that runs is chosen at start, and 'hearth --version' tells which one.
HEARTH_BACKENDS names another folder to choose from.

It needs the system's C and C++ libraries (libc, libm, libstdc++, libgcc_s) with $(newest GLIBC), $(newest GLIBCXX) or newer.
README.md is the manual.
END
if [ -e "$stage/lib/hearth/libggml-cuda.so" ]; then
    needed=$(readelf -d "$stage/lib/hearth/libggml-cuda.so" | sed -n 's/.*(NEEDED).*\[\(libcu.*\)\]/\1/p' | xargs | sed 's/ /, /g')
    cat >> "$stage/INSTALL.txt" <<END

On a machine with an NVIDIA GPU models run on it ('hearth gpus' lists them) where these libraries are found: $needed.
libcuda comes with the driver, the others with NVIDIA's toolkit or from PyPI (nvidia-cuda-runtime, nvidia-cublas). Where the loader
doesn't know their folder, name it in LD_LIBRARY_PATH or copy them into lib/hearth. Elsewhere models run on the CPU.
END
fi

tar --create --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --mtime="@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}" -C "$target/dist" "$name" \
    | gzip -9n > "$stage.tar.gz"
rm -rf "$stage"
ls -l "$stage.tar.gz"
