# Every target does its own set-up in .venv; nothing is needed but Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
JOBS ?= 2

.PHONY: setup quickstart lint types test test-slow test-multiprocess \
  test-interop test-t5x test-bad-input test-fuzz test-faults \
  test-faults-nightly test-nightly dist-test audit docs clean

setup: .venv/setup.stamp

.venv/setup.stamp: setup.py constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e '.[data,dev]' && touch $@

.venv/t5x.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,t5x]' && touch $@

.venv/audit.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,audit]' && touch $@

.venv/interop.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,interop]' && touch $@

quickstart: setup
	$(BIN)/mhr-jax study --gin_file=presets/quickstart.gin

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/pyrefly check

# Thousands of small programs are compiled: without most of XLA's optimisations
# in 60 % of the time. The suites of what takes longer run the optimised ones.
test: setup
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist=loadfile --durations=20

test-slow: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist=loadfile --durations=20 \
	  -m 'slow and not nightly'

# The notebooks, the README, the benchmarks and a killed study; 25 minutes.
test-nightly: .venv/interop.stamp
	$(BIN)/python -m pytest -q -rs --durations=20 -m nightly

# One after the other: each starts as many processes as there are cores.
test-multiprocess: setup
	$(BIN)/python -m pytest -q --durations=20 -m multiprocess

# Tests whose library is missing fail; those without ../shared are skipped, and
# named at the end.
test-interop: .venv/interop.stamp
	MHR_JAX_REQUIRE_INTEROP=1 $(BIN)/python -m pytest -q -rs -n $(JOBS) \
	  --dist=loadfile --durations=20 -m 'interop or parity'

# Every mistake of the table as a user makes it, each answered within 15 s.
test-bad-input: setup
	MHR_JAX_BAD_INPUT_SECONDS=15 $(BIN)/python -m pytest -q --durations=5 \
	  -n $(JOBS) -m slow tests/bad_input

# Readers on spoiled files; FUZZ_EXAMPLES of every kind, drawn anew.
FUZZ_EXAMPLES ?= 1000
test-fuzz: setup
	MHR_JAX_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q \
	  -n $(JOBS) --durations=10 tests/fuzz

# FAULTS_KILLS=20 FAULTS_SEED=1 make test-faults: more kills, other moments.
test-faults: setup
	$(BIN)/python -m pytest -q -rs -n $(JOBS) --dist=loadfile --durations=10 \
	  -m faults

# 100 random kills of one training after the other, and a summary. Stopped, it
# goes on where it was.
test-faults-nightly: setup
	PYTHONPATH=tests $(BIN)/python -m faults.random_kills runs/faults \
	  --kills=$(or $(FAULTS_KILLS),100) --seed=$(or $(FAULTS_SEED),0)

# T5X_DIR=<checkout of google-research/t5x> make test-t5x
test-t5x: .venv/t5x.stamp
	$(BIN)/python -m pytest -q --durations=20 -m t5x

# The wheel and the sdist, each in empty environments, on every Python from 3.11
# that is here; minutes for each, and it needs the package index.
dist-test: setup
	$(BIN)/python -m pytest -q -rs --durations=20 -m dist

# Known vulnerabilities of what is pinned; needs https://pypi.org itself. It
# fails also where a package could not be looked up.
audit: .venv/audit.stamp
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.venv/docs.stamp: .venv/setup.stamp
	$(BIN)/pip install -q -c constraints.txt -e '.[data,dev,docs]' && touch $@

# Guides and reference, in build/docs/index.html; a warning is an error.
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
