# zephyr-kit needs Python 3.11 or newer and make; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The tested versions; without it, the newest that the ranges in pyproject.toml allow.
CONSTRAINTS ?= -c constraints.txt

.PHONY: install quickstart test test-unsloth-versions lint docs check bench faults clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zephyr-kit needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable '.[dev]'
	touch $(STAMP)

quickstart: install
	$(BIN)/zkit run presets/quickstart.toml

# A worker for each processor, and a thread for each worker; files in the order of tests/conftest.py, the longest first.
IN_PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PARALLEL)

# The same tests at the newest versions that unsloth takes: its caps must not reach the core.
CAPPED := build/unsloth-versions

test-unsloth-versions: $(CAPPED)/.installed
	OMP_NUM_THREADS=1 $(CAPPED)/bin/python -m pytest $(IN_PARALLEL) $(TESTS)

$(CAPPED)/.installed: pyproject.toml constraints-unsloth.txt
	test -x $(CAPPED)/bin/python || $(PYTHON) -m venv $(CAPPED)
	$(CAPPED)/bin/pip install --quiet --upgrade pip
	$(CAPPED)/bin/pip install --quiet -c constraints-unsloth.txt torch
	$(CAPPED)/bin/pip install --quiet -c constraints-unsloth.txt --editable . gguf hypothesis jsonschema latex2mathml markdown pytest pytest-timeout pytest-xdist trl
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site; a dead link, or a page that cannot be made, is an error.
docs: install
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint test

bench: install
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable '.[bench]'
	$(BIN)/python -m benchmarks training --quick

FIGURES ?= build/faults.jsonl

faults: install
	mkdir -p $(dir $(FIGURES)) && rm -f $(FIGURES)
	ZKIT_FAULTS=full ZKIT_FAULTS_RESULTS=$(abspath $(FIGURES)) $(BIN)/python -m pytest tests/faults
	$(BIN)/python -m tests.faults.table $(FIGURES)

clean:
	rm -rf .venv build dist
