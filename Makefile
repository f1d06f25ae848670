# Two commands on a fresh clone (Debian with Python >= 3.11): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
STAMP := $(VENV)/.installed
TYPED := $(VENV)/typed/alpa_mlir

.PHONY: setup demo test lint types unit lit docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); apt-get install -y -q python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -q -e '.[dev]'
	# Where Python may write no bytecode while it runs, each of the many processes below would compile all our modules.
	$(BIN)/python -m compileall -q alpa_mlir dialect passes runtime examples/models
	# Compile the loops of the planner and of the second solver engine once; numba keeps them.
	$(BIN)/alpa-mlir-solve --engine search examples/instance.json > /dev/null 2>&1
	$(BIN)/alpa-mlir-plan tests/runtime/mlp_step.mlir --cluster cpu --devices-per-node 4 --no-cache -o /dev/null > /dev/null 2>&1
	touch $(STAMP)

# Export a GPT training step, plan it for 4 devices (2 stages of 2, 4 microbatches), train 20 steps under mpirun on a small
# built-in text, and compare with one device. The variables are explained in docs/runtime.md.
demo: export PATH := $(abspath $(BIN)):$(PATH)
demo: export OMPI_ALLOW_RUN_AS_ROOT := 1
demo: export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
demo: export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
demo: export PRTE_MCA_hwloc_default_binding_policy := none
demo: export OMPI_MCA_btl := ^ofi
demo: setup
	mkdir -p $(DEMO)
	alpa-mlir-export gpt -o $(DEMO)/gpt.mlir
	alpa-mlir-plan $(DEMO)/gpt.mlir --cluster cpu --devices-per-node 4 --stages 2 --microbatches 4 -o $(DEMO)/plan.mlir
	$(BIN)/python examples/demo_inputs.py --steps 20 -o $(DEMO)/inputs.npz
	mpirun -n 4 alpa-mlir-run $(DEMO)/plan.mlir --inputs $(DEMO)/inputs.npz --steps 20 --reference $(DEMO)/gpt.mlir

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' editable finder, so it is shown the package as it is installed: one folder of links.
types: setup
	rm -rf $(VENV)/typed && mkdir -p $(TYPED)
	for f in alpa_mlir/*; do ln -s ../../../$$f $(TYPED)/; done
	for wing in dialect passes runtime clusters; do ln -s ../../../$$wing $(TYPED)/$$wing; done
	ln -s ../../../examples/models $(TYPED)/models
	ln -s ../../benchmarks $(VENV)/typed/benchmarks
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p alpa_mlir -p benchmarks

# Two at a time; tests that start mpirun take ports and ranks of their own. Who is done early takes tests from the other.
unit: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lit: setup
	$(BIN)/lit -v lit_tests

# docs/passes.md and docs/attributes.md are written from the declarations in the code; tests/test_docs.py finds stale ones.
docs: setup
	$(BIN)/python -m alpa_mlir.docs_generator

test: lint types unit lit

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
