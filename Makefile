# Every target does its own set-up: a virtual environment in .venv, the package and what it needs, and a Kafka where one is needed.
# Nothing else is needed before, but Python 3.11+ (with venv), and Java 17+ with Maven (or Docker) for the tests on real Kafka.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check lint types layers bench kafka clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(DEMO_STAMP)  ## four services, 200 orders, planned faults, letters, a replay: on an in-process broker
	@$(BIN)/choreo demo

test: $(DEV_STAMP)  ## the tests but the longest; those on real Kafka start their own
	$(BIN)/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup -m "not long" --durations=15

chaos: $(DEV_STAMP)  ## all that kill, stop and starve real processes and brokers, the long ones too; prints the crash matrix
	$(BIN)/python -m pytest -q -p no:cacheprovider -n 4 --dist loadgroup -m chaos --durations=15

check: lint types layers  ## style, types, layers

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(DEV_STAMP)
	$(BIN)/lint-imports --no-logo

bench: $(DEV_STAMP)  ## choreo against a hand-written loop on real Kafka; writes benchmarks/results.json
	$(BIN)/python -m benchmarks.run

kafka: $(DEV_STAMP)  ## a real broker to play with, until Ctrl-C
	$(BIN)/python -m tests.support.kafka_cluster

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "choreo needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(DEMO_STAMP)

clean:  ## removes what the targets made
	rm -rf $(VENV) .cache .choreo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
