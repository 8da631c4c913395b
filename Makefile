# Every target does its own set-up in .venv; nothing is needed but Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
JOBS ?= 2

.PHONY: setup quickstart lint types test test-slow test-multiprocess test-interop test-t5x clean

setup: .venv/setup.stamp

.venv/setup.stamp: setup.py constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e '.[data,dev]' && touch $@

.venv/t5x.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,t5x]' && touch $@

.venv/interop.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,interop]' && touch $@

quickstart: setup
	$(BIN)/mhr-jax study --gin_file=presets/quickstart.gin

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/pyrefly check

test: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist=loadfile --durations=20

test-slow: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist=loadfile --durations=20 \
	  -m 'slow or multiprocess'

# One after the other: each starts as many processes as there are cores.
test-multiprocess: setup
	$(BIN)/python -m pytest -q --durations=20 -m multiprocess

# Tests whose library is missing fail; those without ../shared are skipped, and
# named at the end.
test-interop: .venv/interop.stamp
	MHR_JAX_REQUIRE_INTEROP=1 $(BIN)/python -m pytest -q -rs -n $(JOBS) \
	  --dist=loadfile --durations=20 -m 'interop or parity'

# T5X_DIR=<checkout of google-research/t5x> make test-t5x
test-t5x: .venv/t5x.stamp
	$(BIN)/python -m pytest -q --durations=20 -m t5x

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
