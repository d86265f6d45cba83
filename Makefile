# All targets use .venv, which is created on first use and updated when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := dev,notebooks,watch,dashboard,eval,gguf,sentencepiece

.PHONY: help env demo test test-kernels test-slow test-gpu gpu-wheels test-clusters clusters notebooks pictures docs docs-serve lint format clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

env: $(READY) ## Create .venv

demo: $(READY) ## Train the demo study (deep against wide on real text) and write its report
	$(BIN)/python sweep.py study=demo

# xdist would run the files with few tests last, of which some are long: one of them would then keep one worker.
IN_PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder

test: $(READY) lint ## Run lint and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" $(IN_PARALLEL)

# Without vector instructions and fused multiply-adds the last bits differ, as they do between CPUs. numpy refuses
# names of instructions that it does not know, so the list is the one that it detects on this machine.
test-kernels: $(READY) ## Run the numeric fast tests with the kernels of an older CPU
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F \
	NPY_DISABLE_CPU_FEATURES="$$($(BIN)/python -c 'import numpy; print(*numpy.show_config("dicts")["SIMD Extensions"].get("found", []))')" \
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "numeric and not slow and not gpu" $(IN_PARALLEL)

test-slow: $(READY) ## Run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not gpu and not cluster" $(IN_PARALLEL)
	$(BIN)/pytest -m "cluster and not gpu"

test-gpu: $(READY) ## Run the tests that need a CUDA device
	$(BIN)/pytest -m gpu

# For a machine with a GPU and torch, but without network: docs/gpu.md. antlr4 has no wheel, so it is built here.
GPU_WHEELS := hydra-core omegaconf pydantic pydantic_core annotated-types typing-inspection typing-extensions \
	PyYAML packaging rich markdown-it-py mdurl pygments
gpu-wheels: $(READY) ## Fill gpu-wheels/ with what the GPU acceptance command needs besides torch, for Python 3.12
	mkdir -p gpu-wheels
	$(BIN)/pip download --quiet --disable-pip-version-check --dest gpu-wheels --no-deps -c constraints.txt \
		--only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi none \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 $(GPU_WHEELS)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --wheel-dir gpu-wheels --no-deps -c constraints.txt \
		antlr4-python3-runtime

test-clusters: clusters ## Run the tests that start a local Slurm and Ray (Slurm: as root, after apt install slurm-wlm munge)
	$(BIN)/pytest -m cluster

# hydra-ray-launcher is for a test only: ours must replace it where a user has installed it too.
clusters: $(READY) ## Install the dependencies of hydra/launcher=slurm and ray
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm,ray]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps hydra-ray-launcher==1.2.2

notebooks: $(READY) ## Execute the notebooks in analysis/notebooks and update the .ipynb files
	$(BIN)/python -m analysis.notebooks.execute

pictures: $(READY) ## Regenerate docs/img, the pictures of reports, from committed runs (needs chromium)
	$(BIN)/python -m tests.pictures

# The variable turns off a notice about the end of mkdocs 1; warnings of the build itself are errors.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
docs: $(READY) ## Build the documentation site in site/
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(MKDOCS) build

docs-serve: docs ## Serve the documentation on 127.0.0.1:8000 and rebuild it on changes
	$(MKDOCS) serve

lint: $(READY) ## Check style, types and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and the caches, but not the runs
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache site

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"slm needs Python 3.11 to 3.13, not {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
