#!/bin/sh
# Prints the folder of a CUDA toolkit: the one of CUDA_PATH, of the nvcc on the PATH, or /usr/local/cuda; where there is none, the
# compiler and the libraries it links with are installed from PyPI into .venv-cuda, which takes no GPU and no driver.
set -eu

for root in "${CUDA_PATH:-}" "$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")"; do
    if [ -n "$root" ] && [ -x "$root/bin/nvcc" ]; then
        echo "$root"
        exit 0
    fi
done

venv=$(pwd)/.venv-cuda
wanted=.ci/cuda_requirements.txt
if ! cmp -s $wanted "$venv/installed"; then
    echo "cuda: there is no nvcc; installing it into .venv-cuda (1 GB)" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r $wanted >&2
    root=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
    # Packages for running have no names for the linker, and the driver's library comes with a driver.
    ln -s lib "$root/lib64"
    for library in cudart cublas cublasLt; do
        ln -s "$(basename "$root/lib/lib$library.so".*)" "$root/lib/lib$library.so"
    done
    mkdir "$root/lib/stubs"
    # All that cuda.h declares: linkers leave a library out that has nothing of what is asked for.
    cc -E -x c "$root/include/cuda.h" | grep -o '\bcu[A-Z][A-Za-z0-9_]*(' | sort -u | sed 's/(/(void) { return 1; }/; s/^/int /' \
        | cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so" -x c -
    cp $wanted "$venv/installed"
fi
echo "$venv"/lib/python3*/site-packages/nvidia/cu13
