# Two commands do everything on a fresh Debian or Ubuntu machine: `make demo` and `make test`.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SHELL := /bin/sh

# The first Python that is new enough; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

.PHONY: help demo test test-slow test-e2b-live lint bench bundle clean system sandbox
.DEFAULT_GOAL := help

help:
	@echo "make demo       watch a sandboxed agent at work (needs no credential)"
	@echo "make test       lint, types and all fast tests"
	@echo "make test-slow  the tests that take long"
	@echo "make test-e2b-live  the tests of E2B against the cloud, with your E2B_API_KEY"
	@echo "make conformance  the MCP conformance suite (needs npm)"
	@echo "make lint       lint and types alone"
	@echo "make bench      the benchmarks"
	@echo "make bundle     the bundle for Claude Desktop (needs npm)"
	@echo "make clean      remove the virtual environment and all caches"

demo: sandbox
	@$(BIN)/rookery demo

test: lint sandbox
	$(BIN)/pytest --numprocesses 3 --dist loadfile -m "not slow"

test-slow: sandbox
	@$(BIN)/python -m pip install --quiet --group fuzz || echo "Going on without the fuzzer, which cannot be installed."
	$(BIN)/pytest -m slow

# Against the real cloud: makes sandboxes in the account of E2B_API_KEY and kills them again; costs some cents.
test-e2b-live:
	@if [ -z "$$E2B_API_KEY" ]; then \
		echo "E2B_API_KEY is not set, so there is no cloud to test against: nothing was run."; \
		echo "Get a key at https://e2b.dev/dashboard, or run make test, which tests against a local double."; \
		exit 1; \
	fi
	@$(MAKE) --no-print-directory sandbox
	ROOKERY_TEST_E2B=live $(BIN)/pytest -m e2b

# Node and the suite are installed into .conformance, which git ignores.
conformance: $(READY)
	@command -v npm >/dev/null || { echo "make conformance needs npm: install Node.js with its package manager."; exit 1; }
	@$(BIN)/python -m tests.conformance.protocol.run

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: sandbox
	@for benchmark in benchmarks/[a-z]*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

# The bundle for Claude Desktop; needs npm.
bundle:
	rm -rf build/bundle && mkdir -p build/bundle dist
	cp -r policies server tools rookery pyproject.toml README.md build/bundle/
	cp packaging/manifest.json build/bundle/manifest.json
	find build/bundle -name __pycache__ -type d -prune -exec rm -rf {} +
	npx --yes @anthropic-ai/mcpb@2.1.2 pack build/bundle dist/rookery.mcpb

clean:
	rm -rf $(VENV) .conformance .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What agents need to run at all; says what to do where it is missing, and never goes on without a sandbox.
sandbox: $(READY)
	@$(BIN)/rookery doctor --sandbox

$(READY): pyproject.toml | system
	@echo "Making the virtual environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --progress-bar on --editable . --group dev
	@touch $@

# Programs of the system: installed with apt-get when that is allowed without a password, else the line to run is said.
system:
	@if [ "$$(uname -s)" != Linux ]; then \
		echo "Rookery runs its agents in bubblewrap sandboxes, which need Linux; this is $$(uname -s)."; \
		echo "Use a Linux machine, or a Linux virtual machine on this one. Agents are never run unsandboxed."; \
		exit 1; \
	fi; \
	if [ -z "$(PYTHON)" ] && command -v python3 >/dev/null; then \
		echo "Rookery needs Python 3.11 or newer; this machine has $$(python3 --version 2>&1)."; \
		echo "Use Debian 12, Ubuntu 24.04 or newer (bubblewrap must be 0.8 or newer, too),"; \
		echo "or name another Python: make PYTHON=/path/to/python3.12 demo"; \
		exit 1; \
	fi; \
	missing=""; \
	command -v bwrap >/dev/null || missing="bubblewrap"; \
	if [ -z "$(PYTHON)" ]; then missing="$$missing python3 python3-venv"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		missing="$$missing $$(basename $(PYTHON))-venv"; \
	fi; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
		echo "Missing: $$missing. Install them with your package manager, then run make again."; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then root=""; \
	elif sudo -n true 2>/dev/null; then root="sudo"; \
	else \
		echo "Missing: $$missing. Run this, then make again:"; \
		echo "  sudo apt-get update && sudo apt-get install -y $$missing"; exit 1; \
	fi; \
	echo "Installing $$missing"; \
	$$root apt-get update -q && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing
