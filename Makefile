# Plain `make` lists the commands. Everything goes into .venv of this checkout, from the lock files, by hash.

VENV := .venv
BIN := $(VENV)/bin
# The first Python on the path that is new enough.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV_VERSION := 0.13.9
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--no-header --no-emit-index-url
# Tests run in this many processes; two of them begin with the flows, which wait more than they work.
# PYTEST_ARGS is handed to pytest, e.g. make test PYTEST_ARGS="-k ledger".
TEST_PROCESSES ?= 3
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run install test check without bench lint lock clean
.DELETE_ON_ERROR:

help: ## list these commands
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-14s %s\n' "$$name" "$$what"; done

run: $(VENV)/.runtime ## start the fleet with imitations of the remote systems, and watch orders flow (Ctrl-C stops it)
	@exec $(BIN)/orderfleet up --sandbox

install: $(VENV)/.dev ## put everything into .venv, the tools for tests and checks too

test: $(VENV)/.dev ## run the tests; the end says what was left out for want of a server
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --no-loadscope-reorder $(PYTEST_ARGS)

check: ## what CI runs: servers, style, types, layers, then every test with nothing left out
	@.ci/run

without: $(VENV)/.dev ## check that everything else passes without one system: make without SYSTEM=doshii
	@$(BIN)/python tests/without.py $(SYSTEM)

bench: $(VENV)/.dev ## measure the fleet beside what one would use instead
	@$(BIN)/python -m bench $(BENCH_ARGS)

lint: $(VENV)/.dev ## style, types, layers, and whether the lock files fit pyproject.toml
	$(BIN)/python -m pip --disable-pip-version-check check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(BIN)/pip ## write the lock files anew, with the newest versions that pyproject.toml allows
	@$(PIP) install uv==$(UV_VERSION)
	$(COMPILE) --upgrade --group build --output-file requirements.lock
	$(COMPILE) --upgrade --group dev --constraints requirements.lock --output-file requirements-dev.lock

clean: ## remove .venv and what builds and tools left behind; the fleet's data stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "orderfleet needs Python 3.11 or newer: install it, or say where it is with make PYTHON=..."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

# Two stamps in one environment: a newcomer's first look needs only what the fleet runs on.
$(VENV)/.runtime: requirements.lock pyproject.toml | $(BIN)/pip
	@echo "Installing what the fleet runs on (a minute the first time)"
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing the tools for tests and checks"
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@
