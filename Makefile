# SPDX-License-Identifier: Apache-2.0
# make demo   install into .venv, make a small BIDS data set, process it, say where the report is
# make test   install the test tools as well and run the tests
# make image  build the container image anatnet:VERSION for Docker or Podman
# make sif    build anatnet_VERSION.sif for Apptainer, and run one scan of the demo in it
#
# PYTHON=python3.12  another interpreter (3.10 or newer)
# VENV=DIR           another place for the environment
# DEMO=DIR           another place for the demo
# ENGINE=podman      instead of docker
# TORCH=cu130        container with CUDA: a tag of PyTorch's package index; else cpu
# BUILD_ARGS=...     more options for the build of the container

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
ENGINE ?= docker
APPTAINER ?= apptainer
TORCH ?= cpu
VERSION = $(shell sed -n "s/^__version__ = '\(.*\)'/\1/p" bids_app/__init__.py)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
TAG = $(VERSION)$(if $(filter-out cpu,$(TORCH)),-$(TORCH))
BIN = $(VENV)/bin

.PHONY: demo test lint image sif install check-python clean

demo: $(VENV)/.installed
	@$(BIN)/python -m bids_app.demo "$(DEMO)/bids"
	@$(BIN)/anatnet "$(DEMO)/bids" "$(DEMO)/derivatives" participant --work-dir "$(DEMO)/work"
	@echo
	@echo "Reports:"
	@for report in "$(abspath $(DEMO))"/derivatives/sub-*.html; do echo "  $$report"; done

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet "ruff>=0.17"
	$(BIN)/ruff check bids_app tests benchmarks run.py
	$(BIN)/ruff format --check bids_app tests benchmarks run.py

image:
	$(ENGINE) build --tag anatnet:$(TAG) --build-arg TORCH=$(TORCH) \
	  --build-arg IMAGE_TAG=anatnet:$(TAG) --build-arg REVISION=$(REVISION) $(BUILD_ARGS) .

sif:
	$(APPTAINER) build --build-arg torch=$(TORCH) --build-arg revision=$(or $(REVISION),unknown) \
	  $(BUILD_ARGS) anatnet_$(TAG).sif Singularity.def

install: $(VENV)/.installed

check-python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "There is no $(PYTHON): install Python 3.10 or newer, or name one: make PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is older than 3.10: name a newer one, for instance make PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv"; \
	  exit 1; }

# pip is the last that venv makes: an environment that was cut off is made again.
$(BIN)/pip: | check-python
	$(PYTHON) -m venv "$(VENV)"

# The constraints hold for an environment that has no torch yet: one that is there is kept.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then constraints=""; \
	else constraints="--constraint constraints.txt"; fi; \
	echo "Installing into $(VENV)"; \
	$(BIN)/python -m pip install --quiet $$constraints --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

clean:
	rm -rf "$(VENV)" "$(DEMO)"
