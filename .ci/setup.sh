#!/bin/sh
# Looks for what a build (and, asked with `test`, the clients' tests; with `dist ARCH` and `test-dist ARCH`, an archive for that
# kind of CPU) needs, and installs what is missing on Debian and Ubuntu. Elsewhere it prints the command that does. Changes
# nothing when nothing is missing, and is quick then.
set -eu

want=${1:-build}
arch=${2:-$(uname -m)}
missing=
need() { missing="$missing $1"; }

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for file in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib64/llvm*/lib/libclang*.so* /opt/homebrew/opt/llvm/lib/libclang.dylib \
        /usr/local/opt/llvm/lib/libclang.dylib /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        case $file in *libclang-cpp*) continue ;; esac # another library, there without libclang itself
        [ -e "$file" ] && return 0
    done
    return 1
}

if ! command -v cargo >/dev/null; then
    echo "setup: Rust is missing. Install it with:  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
    exit 1
fi
command -v c++ >/dev/null || need g++
command -v make >/dev/null || command -v ninja >/dev/null || need make
command -v cmake >/dev/null || need cmake
has_libclang || need libclang-dev
if [ "$want" = test ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
    command -v npm >/dev/null || need npm
    # Their tests are skipped where they are missing. Debian leaves their folders out of the path of ordinary users.
    if command -v apt-get >/dev/null; then
        command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || need nginx
        command -v prometheus >/dev/null || need prometheus
        ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need postgresql
        # Ubuntu's is a snap, which containers can't install.
        if grep -qs '^ID=debian' /etc/os-release; then
            command -v chromium >/dev/null || command -v google-chrome >/dev/null || need chromium
        fi
    fi
fi
if [ "$want" = dist ] || [ "$want" = test-dist ]; then
    if [ "$arch" != "$(uname -m)" ]; then
        [ "$arch-$(uname -m)" = aarch64-x86_64 ] || { echo "setup: no cross build for $arch on $(uname -m)" >&2; exit 1; }
        command -v aarch64-linux-gnu-g++ >/dev/null || need g++-aarch64-linux-gnu
        if ! [ -d "$(rustc --print target-libdir --target aarch64-unknown-linux-gnu)" ]; then
            if ! command -v rustup >/dev/null; then
                echo "setup: Rust's standard library for aarch64-unknown-linux-gnu is missing, and there is no rustup to add it" >&2
                exit 1
            fi
            rustup target add aarch64-unknown-linux-gnu
        fi
        if [ "$want" = test-dist ] && [ -z "${QEMU:-}" ]; then
            command -v qemu-aarch64-static >/dev/null || command -v qemu-aarch64 >/dev/null || need qemu-user-static
        fi
    fi
    # All variants of Arm's: the compiler may be too old for the newest.
    sh .ci/cxx.sh "$arch" >/dev/null || need clang-19
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: missing:$missing. Install them and run make again:" >&2
    if [ "$(uname)" = Darwin ]; then
        echo "  xcode-select --install; brew install cmake llvm node python" >&2
    elif command -v dnf >/dev/null; then
        echo "  sudo dnf install gcc-c++ make cmake clang-devel python3 nodejs" >&2
    elif command -v pacman >/dev/null; then
        echo "  sudo pacman -S --needed base-devel cmake clang python nodejs npm" >&2
    elif command -v apk >/dev/null; then
        echo "  sudo apk add build-base linux-headers cmake clang-dev python3 nodejs npm" >&2
    elif command -v zypper >/dev/null; then
        echo "  sudo zypper install gcc-c++ make cmake clang-devel python3 nodejs npm" >&2
    else
        echo "  a C++ compiler, make, cmake, libclang; for make test also python3 with venv, node and npm" >&2
    fi
    exit 1
fi

as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: missing:$missing. Run as root:  apt-get install -y$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "setup: installing$missing from this system's package sources"
# shellcheck disable=SC2086 # the list is meant to be split
{ $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing; } >&2
