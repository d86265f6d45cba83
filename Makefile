# Everything runs in .venv, which is made on first use and remade when dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow test-gpu test-clusters clusters notebooks lint format clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: $(READY) ## Deep against wide on real text: trains the demo study, writes its report
	$(BIN)/python sweep.py study=demo

test: $(READY) lint ## Lint, then the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadscope

test-slow: $(READY) ## The slow tests
	$(BIN)/pytest -m "slow and not gpu"

test-gpu: $(READY) ## The tests that need a CUDA device
	$(BIN)/pytest -m gpu

test-clusters: clusters ## The tests with a Slurm and a Ray of their own (Slurm: as root, apt install slurm-wlm munge)
	$(BIN)/pytest -m cluster

clusters: $(READY) ## Install what hydra/launcher=slurm and ray need
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm,ray]'

notebooks: $(READY) ## Execute analysis/notebooks and write their .ipynb anew
	$(BIN)/python -m analysis.notebooks.execute

lint: $(READY) ## Style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches; runs stay
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"slm needs Python 3.11 to 3.13, not {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks]'
	@touch $@
