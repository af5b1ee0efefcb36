# make run    creates .venv if need be and runs the main job; ARGS="..." passes overrides
# make test   format check, lint, type check, tests: what .ci/run runs
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
ARGS ?=

# Tests never ask a hub or a tracker, and share the cores fairly.
TEST_ENV := HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q

.PHONY: help install run test check test-slow test-slurm test-browser test-real docs format clean

help:
	@grep -hE '^# make|^[a-z-]+:.*##' Makefile | sed -E 's/^# //; s/^([a-z-]+):.*## /make \1	/'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rapidun needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV) (once; log in $(VENV)/install.log)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off -c constraints.txt -e '.[gguf,optuna,bm25,tensorboard,trackio,dashboard,dev]' 2>&1 \
		| tee $(VENV)/install.log \
		| awk '/^ *(Collecting|Downloading|Building|Installing)/ { n++; printf "\r\033[K  %3d  %.70s", n, $$0; fflush() } END { printf "\r\033[K" }' \
		|| { tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $(STAMP)

install: $(STAMP) ## the environment only

run: $(STAMP)
	@$(BIN)/python sweep.py $(ARGS)

test: check ## format check, lint, type check, tests
	@$(PYTEST) -n 2 --dist worksteal $(ARGS)

check: $(STAMP) ## the same without the tests
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary rapidun sweep.py

test-slow: $(STAMP) ## only the tests that take longer
	@$(PYTEST) -m slow $(ARGS)

test-slurm: $(STAMP) ## sweeps on a SLURM that the tests start here (root; .ci/slurm-packages installs it)
	@$(PYTEST) -m slurm tests/slurm $(ARGS)

test-browser: $(STAMP) ## the report in a headless Chromium (.ci/browser-packages installs it)
	@$(PYTEST) -m browser tests/browser $(ARGS)

test-real: $(STAMP) ## only the tests on the real model and the real pack (RAPIDUN_SHARED, RAPIDUN_SMOLLM2)
	@$(PYTEST) -m real $(ARGS)

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet -c constraints.txt -e '.[docs]'
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP) ## the pages of docs/ and the reference as a site: build/site/index.html
	@$(BIN)/python docs/site/build.py $(ARGS)

format: $(STAMP) ## rewrite the files as ruff has them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## caches; not .venv, not outputs
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
