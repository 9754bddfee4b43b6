# Everything from a checkout. Needs Python 3.10 or later, g++ and make; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# More arguments for the program behind a target: make test ARGS="-k layer", make train ARGS="--resume"
ARGS ?=
# More arguments for pip: make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# --no-compile: most of the 10 000 files are never imported, and the others are compiled when they are. Where the environment
# forbids to keep that, as images of containers like to, every process would compile them anew, and take four times as long
# to start: no recipe is told so.
unexport PYTHONDONTWRITEBYTECODE
PIP_OPTIONS := --quiet --no-compile --disable-pip-version-check $(PIP_ARGS)
PIP_INSTALL := $(PIP) install $(PIP_OPTIONS) -c constraints.txt
# The site's tools have an environment of their own; they read sources, and need no torch.
DOCS_VENV := .venv-docs
DOCS_BIN := $(DOCS_VENV)/bin
# So have the libraries of others that emcl_kernels/integrations serves. Their torch is the same, for the CPU.
INTEGRATIONS_VENV := .venv-integrations
INTEGRATIONS_BIN := $(INTEGRATIONS_VENV)/bin
# And what searches one's own videos: beside the packages of .venv, which it sees, those of the extra "search".
SEARCH_VENV := .venv-search
SEARCH_BIN := $(SEARCH_VENV)/bin
# And the decoders that ours is measured against.
PIPELINE_VENV := .venv-pipeline
PIPELINE_BIN := $(PIPELINE_VENV)/bin
# And Ray, on which corpora are embedded in a cluster.
RAY_VENV := .venv-ray
RAY_BIN := $(RAY_VENV)/bin
# And peft, which makes adapters; where transformers finds it, it looks for adapters wherever it reads weights.
LORA_VENV := .venv-lora
LORA_BIN := $(LORA_VENV)/bin
# And OpenCLIP, whose torchvision goes with another torch than that of .venv.
OPENCLIP_VENV := .venv-openclip
OPENCLIP_BIN := $(OPENCLIP_VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test test-fast test-random test-triton test-processors test-oldest-triton test-cuda-load test-faults test-faults-short
.PHONY: test-integrations test-gpu lint style types format docs
.PHONY: bench bench-gpu refine embeddings training-table readme-picture clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.built  ## Create .venv, install from constraints.txt, build the C++ and CUDA libraries

train: $(VENV)/.built  ## Render the bundled video set, train EMCL-Net on it, evaluate, and report
	@if [ -e runs/shapes ] && [ -z "$(ARGS)" ]; then \
		echo 'runs/shapes holds a run already. Go on with it:  make train ARGS="--resume"'; \
		echo '                          Start another one:  make train ARGS="--out runs/second"'; \
		echo '                          See its report:     $(BIN)/emcl-train report runs/shapes'; \
		exit 1; \
	fi
	$(BIN)/emcl-train train shapes $(ARGS)

# Processes that share the files of tests among them. 0 runs all in one, as a debugger wants it.
JOBS ?= 2
IN_PROCESSES := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Each process has two threads of OpenMP, and so together they have more than there are cores: a thread that spins while it
# waits for another one takes the core from it. Here they sleep; there are as many of them.
test test-fast test-processors test-search: export OMP_WAIT_POLICY := passive

test: $(VENV)/.built  ## Run the whole test suite, in JOBS=2 processes
	$(BIN)/python -m pytest -q $(IN_PROCESSES) --durations=10 $(ARGS)

test-fast: $(VENV)/.built  ## Run the tests that are not marked slow, in about three minutes
	$(BIN)/python -m pytest -q $(IN_PROCESSES) -m "not slow" --durations=5 $(ARGS)

test-triton: $(VENV)/.built  ## Run every case of the kernel tests in Triton's interpreter; make test runs a fifth
	EMCL_TEST_INTERPRETED=1 $(BIN)/python -m pytest -q tests/kernels/test_jobs.py $(ARGS)

# The oldest one that is served comes with torch 2.11. It lies in a folder of its own, without another torch.
OLDEST_TRITON := 3.6.0
TRITON_FOLDER := $(CURDIR)/build/triton-$(OLDEST_TRITON)

# What torch and the C++ library would do on a processor with less: torch without vectors beside our baseline, and both with
# AVX2. Left out is what does not depend on either: compilers, the emulator, and what starts processes of its own.
PROCESSORS := default/baseline avx2/avx2
SAME_EVERYWHERE := $(foreach name,jobs emulator cuda_build triton_compile toy_op random_shapes plan info,--ignore tests/kernels/test_$(name).py)

# Every case of a test, as EVERY=1 has it, takes twice as long.
EVERY ?= 2

test-processors: $(VENV)/.built  ## Run half of the kernel tests' cases as on processors without AVX-512 and without AVX2
	@failed=""; for pair in $(PROCESSORS); do \
		echo "== ATEN_CPU_CAPABILITY=$${pair%/*} EMCL_ISA=$${pair#*/}"; \
		ATEN_CPU_CAPABILITY=$${pair%/*} EMCL_ISA=$${pair#*/} $(BIN)/python -m pytest -q $(IN_PROCESSES) tests/kernels $(SAME_EVERYWHERE) \
			-m "not slow" -k "not cuda and not triton" --every $(EVERY) $(ARGS) || failed="$$failed $$pair"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

test-oldest-triton: $(VENV)/.built $(TRITON_FOLDER)/.installed  ## Compile the Triton kernels with the oldest Triton that is served
	@PYTHONPATH=$(TRITON_FOLDER) $(BIN)/python -c 'import triton; assert triton.__version__ == "$(OLDEST_TRITON)", triton'
	PYTHONPATH=$(TRITON_FOLDER) $(BIN)/python -m pytest -q tests/kernels/test_triton_compile.py $(ARGS)

$(TRITON_FOLDER)/.installed: $(VENV)/.deps
	$(PIP_INSTALL) --no-deps --upgrade --target $(@D) triton==$(OLDEST_TRITON)
	@touch $@

# emcl_kernels is taken from here, with the libraries that .venv has built.
test-integrations: $(VENV)/.built $(INTEGRATIONS_VENV)/.deps  ## Run the tests with sentence-transformers, mteb, FAISS and LanceDB, offline
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(INTEGRATIONS_BIN)/python -m pytest -q tests/integrations --durations=5 $(ARGS)

# Playwright lies in a folder of its own, beside the packages of .venv, and drives the browser that the system has.
PLAYWRIGHT := 1.65.2
BROWSER_TOOLS := $(CURDIR)/build/browser-tools-$(PLAYWRIGHT)

.PHONY: test-browser
test-browser: $(VENV)/.built $(BROWSER_TOOLS)/.installed  ## Open the pages that the program writes in Chromium, and use them
	PYTHONPATH=$(BROWSER_TOOLS) $(BIN)/python -m pytest -q tests/browser --durations=5 $(ARGS)

$(BROWSER_TOOLS)/.installed: $(VENV)/.deps
	$(PIP_INSTALL) --upgrade --target $(@D) playwright==$(PLAYWRIGHT)
	@touch $@

# A library is of one model: another training run has another one.
SHAPES_LIBRARY = build/shapes-library-$$(cksum < runs/shapes/model.safetensors | cut -d ' ' -f 1)

.PHONY: search test-search test-search-page
search: $(VENV)/.built $(SEARCH_VENV)/.deps  ## Index the bundled clips with the run of make train, and open the page that searches them
	@if [ ! -e runs/shapes/model.safetensors ]; then \
		echo 'runs/shapes holds no trained run; make it first:  make train'; \
		exit 1; \
	fi
	$(SEARCH_BIN)/python -m emcl_train index data/shapes/videos --out $(SHAPES_LIBRARY) --model runs/shapes
	$(SEARCH_BIN)/python -m emcl_train serve $(SHAPES_LIBRARY) --open $(ARGS)

test-search: $(VENV)/.built $(SEARCH_VENV)/.deps  ## Run the tests of the library of one's own videos
	PYTHONPATH=. $(SEARCH_BIN)/python -m pytest -q $(IN_PROCESSES) tests/search --durations=5 $(ARGS)

test-search-page: $(VENV)/.built $(SEARCH_VENV)/.deps $(BROWSER_TOOLS)/.installed  ## Use its page in Chromium
	PYTHONPATH=.:$(BROWSER_TOOLS) $(SEARCH_BIN)/python -m pytest -q tests/browser_search --durations=5 $(ARGS)

.PHONY: test-ray
test-ray: $(VENV)/.built $(RAY_VENV)/.deps  ## Embed a corpus on a Ray of this machine with two workers, and kill one
	PYTHONPATH=. $(RAY_BIN)/python -m pytest -q tests/ray --durations=5 $(ARGS)

.PHONY: test-lora
test-lora: $(VENV)/.built $(LORA_VENV)/.deps  ## Train small towers through adapters of low rank, with peft
	PYTHONPATH=. $(LORA_BIN)/python -m pytest -q tests/lora --durations=5 $(ARGS)

.PHONY: test-openclip
test-openclip: $(VENV)/.built $(OPENCLIP_VENV)/.deps  ## Run the tests with OpenCLIP's own library, offline; installs gigabytes
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(OPENCLIP_BIN)/python -m pytest -q tests/openclip --durations=5 $(ARGS)

# How many an op.
SHAPES ?= 100

test-random: $(VENV)/.built  ## Run the CUDA kernels at SHAPES=100 random shapes an op, in the emulator
	EMCL_TEST_SHAPES=$(SHAPES) $(BIN)/python -m pytest -q tests/kernels/test_random_shapes.py --durations=5 $(ARGS)

test-cuda-load: $(VENV)/.built  ## Load the CUDA library in a CUDA build of torch; downloads gigabytes
	$(BIN)/python tests/kernels/cuda_load.py $(PIP_ARGS)

# An interpreter that has torch and pytest already; .venv is then neither made nor used: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?=

.PHONY: test-faults test-faults-short
test-faults: $(VENV)/.built  ## Kills, full disks, hostile files, random calls under sanitizers; a quarter of an hour (tests/faults)
	$(BIN)/python tests/faults/run.py $(ARGS)

test-faults-short: $(VENV)/.built  ## The five minutes of it that continuous integration runs
	$(BIN)/python tests/faults/run.py --short $(ARGS)

test-gpu: $(if $(GPU_PYTHON),,$(VENV)/.built)  ## Run the kernel tests on a GPU
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) tests/run_on_gpu.py $(ARGS)

CPP := $(wildcard $(foreach kind,h cpp cu cuh,csrc/*.$(kind) csrc/*/*.$(kind) csrc/*/*/*.$(kind)) emcl_kernels/include/emcl/*.h tests/kernels/toy/*.cpp tests/faults/native/*.cpp)

lint: style types  ## Check style and types

style: $(VENV)/.deps  ## Check style: ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# Tests pass wrong things on purpose and put stand-ins in places: mypy looks at what they import, return and override.
TEST_TYPES := --allow-untyped-defs $(foreach code,arg-type assignment attr-defined call-arg dict-item func-returns-value index \
	method-assign misc operator return-value union-attr var-annotated,--disable-error-code $(code))

# Modules in the flat folders of benchmarks and tests import each other by bare names, so each folder has a call.
types: $(VENV)/.deps  ## Check types: mypy
	$(BIN)/mypy
	MYPYPATH=benchmarks:tests:tests/train $(BIN)/mypy benchmarks/*.py
	MYPYPATH=benchmarks $(BIN)/mypy tests/*.py
	MYPYPATH=tests/kernels $(BIN)/mypy $(TEST_TYPES) --exclude /toy/ tests/kernels
	MYPYPATH=tests/faults:tests/kernels:tests/train:tests/train/weights $(BIN)/mypy $(TEST_TYPES) tests/faults
	MYPYPATH=tests/integrations $(BIN)/mypy $(TEST_TYPES) tests/integrations
	MYPYPATH=$(subst $() ,:,$(sort $(dir $(wildcard tests/train/*.py tests/train/*/*.py)))) $(BIN)/mypy $(TEST_TYPES) tests/train
	MYPYPATH=tests/browser:tests/train $(BIN)/mypy $(TEST_TYPES) tests/browser
	MYPYPATH=tests/search:tests/train:tests/train/models $(BIN)/mypy $(TEST_TYPES) tests/search
	MYPYPATH=tests/ray:tests/train $(BIN)/mypy $(TEST_TYPES) tests/ray
	MYPYPATH=tests/openclip:tests/search:tests/train:tests/train/models $(BIN)/mypy $(TEST_TYPES) tests/openclip
	MYPYPATH=tests/lora:tests/train:tests/train/models $(BIN)/mypy $(TEST_TYPES) tests/lora
	MYPYPATH=tests/browser_search:tests/search:tests/browser:tests/train:tests/train/models $(BIN)/mypy $(TEST_TYPES) tests/browser_search

docs: $(DOCS_VENV)/.deps  ## Build the site into build/site; broken links and docstrings are errors
	$(DOCS_BIN)/python docs/site.py

format: $(VENV)/.deps  ## Put the code into the one format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# What a processor without AVX-512 would be given; the record shows both.
AS_AVX2 := ATEN_CPU_CAPABILITY=avx2 EMCL_ISA=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2

bench: $(VENV)/.built  ## Compare the kernels with eager and compiled torch
	@mkdir -p build
	$(BIN)/python -m pytest -o addopts="" benchmarks --benchmark-json=build/bench.json $(ARGS)
	@rm -f build/bench-avx2.json; if grep -qw avx512f /proc/cpuinfo; then \
		$(AS_AVX2) $(BIN)/python -m pytest -o addopts="" benchmarks --benchmark-json=build/bench-avx2.json $(ARGS); fi
	$(if $(ARGS),@echo 'No record is written of a part; all is in build/bench*.json',$(BIN)/python benchmarks/record.py build/bench.json --narrower build/bench-avx2.json)

bench-gpu: $(if $(GPU_PYTHON),,$(VENV)/.built)  ## Compare on a GPU, in under 9 minutes, and write a record
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py $(ARGS)

# A folder of videos, which are not part of this repository; and JSON lines with captions, if there are some.
CLIPS ?=
CAPTIONS ?=

.PHONY: bench-pipeline
bench-pipeline:  ## Time clips, captions, evaluation and the rest of a step against decord, OpenCV, torchcodec: CLIPS=folder
	@if [ -z "$(CLIPS)" ]; then echo 'Name a folder of videos:  make bench-pipeline CLIPS=/path/to/folder'; exit 1; fi
	@$(MAKE) --no-print-directory $(VENV)/.built $(PIPELINE_VENV)/.deps
	$(PIPELINE_BIN)/python -m benchmarks.pipeline $(CLIPS) $(if $(CAPTIONS),--captions $(CAPTIONS)) $(ARGS)

.PHONY: gpu-hour hub
gpu-hour: $(if $(GPU_PYTHON),,$(VENV)/.built)  ## All that a GPU is wanted for, in parts of under 10 minutes; files in build/gpu-hour
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu_hour.py $(ARGS)

# The hub's tools lie in a folder of their own, beside the torch of .venv; nothing is uploaded.
HUB_TOOLS := build/hub-tools

hub: $(VENV)/.built  ## Lay out a kernel of the hub from what was built, and check it with the hub's tools
	@test -d $(HUB_TOOLS) || $(PIP) install --quiet --target $(HUB_TOOLS) $(PIP_ARGS) kernels==0.17.2 kernel-abi-check==0.14.1
	$(BIN)/python hub/assemble.py
	PYTHONPATH=$(HUB_TOOLS) $(BIN)/python hub/check.py $(ARGS)

# A folder with two arrays [2, N, D] of embeddings, which are not part of this repository.
EMBEDDINGS ?=

refine: embeddings $(VENV)/.built  ## Compare the refiners with others on real embeddings, and write the table
	$(BIN)/python -m benchmarks.refine.run $(EMBEDDINGS) $(ARGS)

# Asked before anything is installed.
embeddings:
	@if [ -z "$(EMBEDDINGS)" ]; then \
		echo 'Name the folder of the embeddings:  make refine EMBEDDINGS=/path/to/folder'; \
		echo 'It holds coco500_clip_vitb16.npy and msrvtt100_videoclip.npy: float32 arrays [2, N, D],'; \
		echo 'images or videos first, texts second; row i of one belongs to row i of the other.'; \
		echo 'docs/refine.md says where they come from, and how to make such files.'; \
		exit 1; \
	fi

readme-picture: $(VENV)/.built  ## Draw docs/before-and-after.png from the committed figures of make refine
	$(BIN)/python -m benchmarks.refine.picture

training-table: $(VENV)/.built  ## Train EMCL's settings and its comparators, 8 seeds each: hours; and write the table
	$(BIN)/python -m benchmarks.training.run --seeds 8 $(ARGS)
	$(BIN)/python -m benchmarks.training.table

clean:  ## Remove what was built and installed; runs/ and data/ stay
	rm -rf $(VENV) $(DOCS_VENV) $(INTEGRATIONS_VENV) $(SEARCH_VENV) $(PIPELINE_VENV) $(RAY_VENV) $(LORA_VENV) $(OPENCLIP_VENV) build dist *.egg-info emcl_kernels/_C emcl_kernels/_bindings*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created $(DOCS_VENV)/.created $(INTEGRATIONS_VENV)/.created $(SEARCH_VENV)/.created $(PIPELINE_VENV)/.created $(RAY_VENV)/.created $(LORA_VENV)/.created $(OPENCLIP_VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo 'Python 3.10 or later is needed, and $(PYTHON) is' `$(PYTHON) --version 2>&1`; \
		echo 'Name another one:  make $(MAKECMDGOALS) PYTHON=/path/to/python3.12'; \
		exit 1; \
	}
	@$(PYTHON) -m venv $(@D) || { echo 'Could not make $(@D); on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	@touch $@

$(VENV)/.deps: $(VENV)/.created constraints.txt pyproject.toml
	@echo 'Installing into $(VENV); this happens once and takes a few minutes'
	$(PIP_INSTALL) torch setuptools wheel ninja pybind11
	$(PIP_INSTALL) --no-build-isolation -e ".[train,experts,onnx,triton,test,lint]"
	@touch $@

$(DOCS_VENV)/.deps: $(DOCS_VENV)/.created constraints-docs.txt
	@echo 'Installing the tools of the site into $(DOCS_VENV); this happens once'
	$(DOCS_BIN)/python -m pip install $(PIP_OPTIONS) -r constraints-docs.txt
	@touch $@

# Where a page of wheels for the CPU can be reached, torch comes without the gigabytes of CUDA.
$(INTEGRATIONS_VENV)/.deps: $(INTEGRATIONS_VENV)/.created constraints-integrations.txt
	@echo 'Installing sentence-transformers, mteb, FAISS and LanceDB into $(INTEGRATIONS_VENV); this happens once'
	$(INTEGRATIONS_BIN)/python -m pip install $(PIP_OPTIONS) -r constraints-integrations.txt
	@touch $@

.PHONY: environments
environments: $(DOCS_VENV)/.deps $(INTEGRATIONS_VENV)/.deps  ## Create the environments that do not need .venv: of the site, and of others' libraries

# An environment that has the packages of .venv beside its own.
define sees_venv
@$(1)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > $(1)/.place
@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_paths()["purelib"])' \
	> "$$(cat $(1)/.place)/of_venv.pth"
endef

$(SEARCH_VENV)/.deps: $(SEARCH_VENV)/.created $(VENV)/.deps constraints-search.txt
	@echo 'Installing LanceDB, PySceneDetect and a server into $(SEARCH_VENV); this happens once'
	$(call sees_venv,$(SEARCH_VENV))
	$(SEARCH_BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -r constraints-search.txt
	@touch $@

# torchcodec as well, whose wheel is found to load or not when it is asked for: on the CPU alone it lacks libraries of CUDA.
$(PIPELINE_VENV)/.deps: $(PIPELINE_VENV)/.created $(VENV)/.deps constraints-pipeline.txt
	@echo 'Installing decord, OpenCV and torchcodec into $(PIPELINE_VENV); this happens once'
	$(call sees_venv,$(PIPELINE_VENV))
	$(PIPELINE_BIN)/python -m pip install $(PIP_OPTIONS) --no-deps -r constraints-pipeline.txt
	@touch $@

$(RAY_VENV)/.deps: $(RAY_VENV)/.created $(VENV)/.deps constraints-ray.txt
	@echo 'Installing Ray into $(RAY_VENV); this happens once'
	$(call sees_venv,$(RAY_VENV))
	$(RAY_BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -r constraints-ray.txt
	@touch $@

$(LORA_VENV)/.deps: $(LORA_VENV)/.created $(VENV)/.deps constraints-lora.txt
	@echo 'Installing peft into $(LORA_VENV); this happens once'
	$(call sees_venv,$(LORA_VENV))
	$(LORA_BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -r constraints-lora.txt
	@touch $@

# It sees nothing of .venv: torchvision needs its own torch. Libraries of films are made by its models, too.
$(OPENCLIP_VENV)/.deps: $(OPENCLIP_VENV)/.created constraints-openclip.txt constraints-search.txt
	@echo 'Installing OpenCLIP, timm, torchvision, their torch and what a library of films needs into $(OPENCLIP_VENV); this happens once'
	$(OPENCLIP_BIN)/python -m pip install $(PIP_OPTIONS) -r constraints-openclip.txt -r constraints-search.txt
	@touch $@

# The version, which the libraries have inside.
$(VENV)/.built: emcl_kernels/__init__.py

# An installation that hides why something was not built would be no help: build again where it is seen.
# The emulated CUDA library is what the tests of the CUDA kernels run.
$(VENV)/.built: $(VENV)/.deps setup.py $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.* csrc/*/*/*.* emcl_kernels/include/emcl/*.h)
	@EMCL_BUILD_EMULATED=1 $(BIN)/python setup.py -q build_ext --inplace
	@touch $@
