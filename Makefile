# Every target that needs Python sets it up first, in .venv, and uses that again the next time.
# PYTHON names the interpreter that .venv is made of: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# a process a core, but few: many tests start processes of their own; a file's tests share what it sets up
SPREAD := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench docs clean tiny-clip

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY) ## run the whole job on rendered scenes with planted faults, and tell what was found
	$(BIN)/curate demo

test: $(READY) ## run the tests, those of minutes left out
	$(BIN)/python -m pytest -m "not slow" $(SPREAD)

test-all: $(READY) ## run all tests
	$(BIN)/python -m pytest $(SPREAD)

check: $(READY) ## format, lint and types, as in CI
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict curate filters

bench: $(READY) ## measure the figures of docs/benchmarks.md
	$(BIN)/python -m bench

docs: $(READY) ## run every command that the manual shows
	$(BIN)/python -m pytest tests/commands/test_docs.py

tiny-clip: $(READY) ## train the model in the package again, in minutes on two cores
	$(BIN)/python -m curate.demo.train

clean: ## remove what was made here, .venv included
	rm -rf .venv build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
