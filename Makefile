# Everything a newcomer types. `make demo` and `make test` install what is missing by themselves.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
CUDA ?= 0
BUILD ?= $(if $(filter 1,$(CUDA)),build-cuda,build)
DOC ?= examples/demo/document.txt
ROWS ?= 128
export CUDA JOBS GGML_PREFIX MODEL

configure = cmake -S . -G Ninja -DHEADKV_PCH=ON -DCMAKE_CXX_COMPILER=$(CXX) -Dggml_DIR=$$(tools/setup ggml-dir) $(CMAKE_FLAGS)

.PHONY: help setup build program demo test install lint format sanitize bench bench-kernels clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Variables: JOBS=N, CXX=g++, CUDA=1, GGML_PREFIX=DIR (a ggml of your own),"
	@echo "  demo: MODEL=FILE.gguf DOC=FILE QUESTION='...' ROWS=128;  install: PREFIX=DIR"

setup: ## installs what is missing: Debian packages, ggml, the default model
	@tools/setup

build: setup ## compiles everything into build/
	@$(configure) -B $(BUILD) --log-level=NOTICE && ninja -C $(BUILD) -j $(JOBS)

# Only the program: a demo need not wait for the tests to be compiled.
program: setup
	@$(configure) -B $(BUILD) --log-level=NOTICE && ninja -C $(BUILD) -j $(JOBS) headkv-cli

demo: program ## answers questions about a document, with the full cache and with headkv-r2
	@BUILD='$(BUILD)' DOC='$(DOC)' QUESTION='$(subst ','\'',$(QUESTION))' ROWS='$(ROWS)' tools/demo

test: build ## runs all tests
	@ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j $(JOBS)

install: build ## installs program, library and CMake package files under PREFIX
	@cmake --install $(BUILD) --prefix '$(PREFIX)'

lint: ## clang-format and clang-tidy over our sources
	@tools/setup lint-packages && tools/setup ggml
	@tools/lint format
	@$(configure) -B build --log-level=NOTICE && tools/lint tidy

format: ## formats our sources in place
	@tools/setup lint-packages && tools/lint fix

sanitize: setup ## tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(configure) -B build-asan -DHEADKV_SANITIZE=address,undefined -DHEADKV_EXAMPLES=OFF -DHEADKV_PCH=OFF \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG='-O1 -g1' --log-level=NOTICE
	@tools/run-sanitized

bench-kernels: setup ## each kernel beside a plain loop; fails where one has lost its speed
	@$(configure) -B $(BUILD) -DHEADKV_BENCH=ON --log-level=NOTICE && ninja -C $(BUILD) -j $(JOBS) bench_kernels
	@tools/bench-kernels $(BUILD)/bin/bench_kernels

bench: program ## speed and memory at several depths, full cache against headkv-r2
	@$(BUILD)/bin/headkv bench -m $(or $(MODEL),.deps/models/smollm2-135m.gguf) --depth 0,4096,7500 --methods full,headkv-r2 --rows $(ROWS)

clean: ## removes what was built, keeps what was fetched
	rm -rf build build-asan build-cuda

distclean: clean ## removes what was fetched, too
	rm -rf .deps
