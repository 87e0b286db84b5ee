# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UPSTREAM_VERSION := 0.3.36
UPSTREAM := build/upstream/llama_cpp_python-$(UPSTREAM_VERSION)
# llama.cpp is compiled once, for this machine; downloads over TLS are nothing this project uses.
# Its AMX kernels crash when GCC optimises their tile configuration away (ggml-org/llama.cpp
# issue 20824, pull request 26954), so that a quantized model ends the process.
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8)
export CMAKE_ARGS ?= -DLLAMA_OPENSSL=OFF '-DCMAKE_C_FLAGS=$(NO_AMX)' '-DCMAKE_CXX_FLAGS=$(NO_AMX)'
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check install install-dev format lint types pytest wheel upstream qemu emulated clean

demo: install
	$(BIN)/python -m mllm_export.demo

test: install-dev upstream
	$(MAKE) check wheel

check: lint types pytest

install: $(VENV)/.installed-export
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-export: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[export]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed-export

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Type checkers do not follow setuptools' package-dir, so they get a tree of links.
types:
	rm -rf build/types && mkdir -p build/types/mllm_export
	ln -s $(CURDIR)/mllm_export/* build/types/mllm_export/
	for stage in export quantize runtimes device_tests; do \
	  ln -s $(CURDIR)/$$stage build/types/mllm_export/$$stage; done
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p mllm_export

pytest:
	OMP_NUM_THREADS=1 MLLM_REQUIRE_UPSTREAM=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not emulated"

# arm64 machines that qemu plays, made once into the cache (MLLM_EXPORT_CACHE, or ~/.cache).
qemu: install-dev
	$(BIN)/mllm-export device setup qemu

# Reference bundles on those, and boards and phones on loopback; as root, with Debian's packages.
emulated: qemu
	OMP_NUM_THREADS=1 MLLM_REQUIRE_EMULATION=1 $(BIN)/pytest -q -n 2 --dist loadgroup -m emulated \
	  tests/device_tests/emulated

wheel:
	$(BIN)/python tests/smoke_wheel.py

# llama.cpp's own converter, an oracle in tests; it is not part of what is shipped.
upstream: $(UPSTREAM)/PKG-INFO

$(UPSTREAM)/PKG-INFO: | $(VENV)/bin/python
	mkdir -p build/upstream/download
	$(BIN)/python -m pip download -q --no-deps --no-binary llama-cpp-python \
	  -d build/upstream/download llama-cpp-python==$(UPSTREAM_VERSION)
	tar xzf build/upstream/download/llama_cpp_python-$(UPSTREAM_VERSION).tar.gz -C build/upstream
	touch $@

clean:
	rm -rf build $(VENV)
