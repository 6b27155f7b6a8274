# Every target makes .venv first (scripts/bootstrap); the second time that costs nothing.
# PYTHON=/path/to/python picks the interpreter, ARGS="..." is handed on.

BIN := .venv/bin
SEED ?= 1
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install run test check bench sim proof gate fuzz docs fmt lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install: ## make or mend .venv
	@scripts/bootstrap

run: install ## kill an agent in mid-work and watch it go on
	@$(BIN)/perdure demo durability $(ARGS)

test: install ## run every test; ARGS="-n 0 -k name" for one
	@$(BIN)/python -m pytest $(ARGS)

check: install ## format, lint, types, imports, tidiness: under a minute
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/architecture

bench: install ## measure against the floor and the peers: under five minutes
	@$(BIN)/python -m bench $(ARGS)

sim: install ## replay one simulated world: make sim SEED=7
	@$(BIN)/python -m perdure.testing.simulation --seed $(SEED) $(ARGS)

proof: install ## run every rig and write docs/proof.md: some twenty minutes
	@$(BIN)/python -m perdure.testing.proof $(ARGS)

gate: install ## kill and simulate as much as a change has to survive
	@$(BIN)/python -m perdure.testing.proof --gate

fuzz: install ## look for ten minutes for what the protocol does not document
	@$(BIN)/python -m tests.wire.test_fuzz "$$(mktemp -d)" 600

docs: install ## write the pages that come out of the code
	@$(BIN)/python scripts/docs.py

fmt: install ## format, and mend what the linter can
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

# The lock is made with uv, from PATH or UV=...; installing it needs only pip.
UV ?= uv
EXPORT = $(UV) export --quiet --frozen --no-emit-project --no-header \
	--no-emit-index-url --no-emit-find-links --format requirements-txt
LOCKS = requirements.lock deploy/image.lock deploy/build.lock
lock: ## renew requirements.lock and those of the image (needs uv); ARGS=--upgrade for newer ones
	@$(UV) lock --quiet $(ARGS)
	@$(EXPORT) --all-extras --all-groups --output-file requirements.lock
	@$(EXPORT) --all-extras --no-extra prove --no-default-groups --output-file deploy/image.lock
	@$(EXPORT) --only-group build --output-file deploy/build.lock
	@! grep -nE '://|(^|[ =])/' $(LOCKS)

clean: ## remove .venv, caches and what runs left behind
	rm -rf .venv .venv.installing dist build htmlcov .coverage* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name .venvs -type d -prune -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
