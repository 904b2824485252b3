# Everything here works on a fresh clone: the environment is made on demand, by the first command.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-cluster test-seamless check clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLUSTER_PACKAGES := openssh-server pdsh iproute2 slurm-wlm munge openmpi-bin

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## speech to spoken language model, its forgetting and the remedies: runs/quickstart/report.html
	$(BIN)/python launcher/pipeline.py ds_configs/pipelines/tiny.yaml

# three processes on two cores: the longest tests wait for ranks that start, stop, or are found lost
test: $(READY) ## all tests, no network and no GPU needed
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the tests that take minutes each
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-cluster: $(READY) ## real ssh and real SLURM, two hosts of each on this machine; as root, on Debian: installs them
	-apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(CLUSTER_PACKAGES)
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -rs

test-seamless: $(READY) ## the port against the original package, in an environment of its own; SOURCE=CHECKOUT without a network
	-$(BIN)/python -m slm speech env seamless .venv-seamless $(if $(SOURCE),--source $(SOURCE))
	SLM_SEAMLESS=.venv-seamless OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m seamless -rs tests/speech

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove runs and caches; the environment stays
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch alone and first, so that nothing else decides which build of it is taken
$(READY): constraints.txt setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev]'
	@touch $@
