# Two commands on a fresh clone (Debian with Python >= 3.11): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := $(VENV)/typed/alpa_mlir

.PHONY: setup demo test lint types unit lit docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $(STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' editable finder, so it is shown the package as it is installed: one folder of links.
types: setup
	rm -rf $(VENV)/typed && mkdir -p $(TYPED)
	for f in alpa_mlir/*; do ln -s ../../../$$f $(TYPED)/; done
	for wing in dialect passes runtime clusters; do ln -s ../../../$$wing $(TYPED)/$$wing; done
	ln -s ../../../examples/models $(TYPED)/models
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p alpa_mlir

# Two at a time; tests that start mpirun take ports and ranks of their own.
unit: setup
	$(BIN)/python -m pytest -n 2

lit: setup
	$(BIN)/lit -v lit_tests

# docs/passes.md and docs/attributes.md are written from the declarations in the code; tests/test_docs.py finds stale ones.
docs: setup
	$(BIN)/python -m alpa_mlir.docs_generator

test: lint types unit lit

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
