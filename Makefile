# Everything from a checkout. Needs Python 3.10 or later, g++ and make; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# More arguments for the program behind a target: make test ARGS="-k layer", make train ARGS="--resume"
ARGS ?=
# More arguments for pip: make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# --no-compile: most of the 10 000 files are never imported, and the others are compiled when they are.
PIP_INSTALL := $(PIP) install --quiet --no-compile --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test test-cuda-load test-gpu lint format bench bench-gpu refine training-table clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.built  ## Create .venv, install from constraints.txt, build the C++ and CUDA libraries

train: $(VENV)/.built  ## Render the bundled video set, train EMCL-Net on it, evaluate, and report
	@if [ -e runs/shapes ] && [ -z "$(ARGS)" ]; then \
		echo 'runs/shapes holds a run already. Go on with it:  make train ARGS="--resume"'; \
		echo '                          Start another one:  make train ARGS="--out runs/second"'; \
		echo '                          See its report:     $(BIN)/emcl-train report runs/shapes'; \
		exit 1; \
	fi
	$(BIN)/emcl-train train shapes $(ARGS)

test: $(VENV)/.built  ## Run the whole test suite
	$(BIN)/python -m pytest -q --durations=10 $(ARGS)

test-cuda-load: $(VENV)/.built  ## Load the CUDA library in a CUDA build of torch; downloads gigabytes
	$(BIN)/python tests/kernels/cuda_load.py $(PIP_ARGS)

# An interpreter that has torch and pytest already; .venv is then neither made nor used: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?=

test-gpu: $(if $(GPU_PYTHON),,$(VENV)/.built)  ## Run the kernel tests on a GPU
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) tests/run_on_gpu.py $(ARGS)

CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/*/*/*.h csrc/*/*/*.cpp)

lint: $(VENV)/.built  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.built  ## Put the code into the one format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.built  ## Compare the kernels with eager and compiled torch
	@mkdir -p build
	$(BIN)/python -m pytest -o addopts="" benchmarks --benchmark-json=build/bench.json $(ARGS)
	$(if $(ARGS),@echo 'No record is written of a part; all is in build/bench.json',$(BIN)/python benchmarks/record.py build/bench.json)

bench-gpu: $(if $(GPU_PYTHON),,$(VENV)/.built)  ## Compare on a GPU, in under 9 minutes, and write a record
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py $(ARGS)

# Two arrays [2, N, D] of embeddings; see benchmarks/refine/run.py for their names.
EMBEDDINGS ?= ../shared/data/embeddings

refine: $(VENV)/.built  ## Compare EMRefiner with simpler refinements on real embeddings, and write the table
	$(BIN)/python -m benchmarks.refine.run $(EMBEDDINGS) $(ARGS)

training-table: $(VENV)/.built  ## Train EMCL's settings and its comparators, 8 seeds each: hours; and write the table
	$(BIN)/python -m benchmarks.training.run --seeds 8 $(ARGS)
	$(BIN)/python -m benchmarks.training.table

clean:  ## Remove what was built and installed; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info emcl_kernels/_C emcl_kernels/_bindings*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo 'Python 3.10 or later is needed, and $(PYTHON) is' `$(PYTHON) --version 2>&1`; \
		echo 'Name another one:  make $(MAKECMDGOALS) PYTHON=/path/to/python3.12'; \
		exit 1; \
	}
	@$(PYTHON) -m venv $(VENV) || { echo 'Could not make $(VENV); on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	@touch $@

$(VENV)/.deps: $(VENV)/.created constraints.txt pyproject.toml
	@echo 'Installing into $(VENV); this happens once and takes a few minutes'
	$(PIP_INSTALL) torch setuptools wheel ninja pybind11
	$(PIP_INSTALL) --no-build-isolation -e ".[train,onnx,triton,test,lint]"
	@touch $@

# An installation that hides why something was not built would be no help: build again where it is seen.
# The emulated CUDA library is what the tests of the CUDA kernels run.
$(VENV)/.built: $(VENV)/.deps setup.py $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.* csrc/*/*/*.*)
	@EMCL_BUILD_EMULATED=1 $(BIN)/python setup.py -q build_ext --inplace
	@touch $@
