# Everything a developer runs. `make` alone lists the targets.
#
# TORCH chooses another build of PyTorch, and PIP_OPTIONS whatever pip needs for it, for instance a build for CUDA 12.6:
#   make setup TORCH='torch==2.13.0' PIP_OPTIONS='--extra-index-url https://download.pytorch.org/whl/cu126'

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
PIP_OPTIONS ?=
VENV        ?= .venv
BIN         := $(VENV)/bin
READY       := $(VENV)/.ready
RUN         := runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test contract slow lint type check bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with the pinned environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train on the embedded corpus, translate, evaluate, draw attention (a minute or two)
	$(BIN)/s2s train --config configs/toy/bahdanau.yaml --run-dir $(RUN)
	@echo
	printf 'The old man calls the woman today.\nI know that you do not see the small dogs.\n' | $(BIN)/s2s translate --model $(RUN) --attention $(RUN)/attention.svg --overwrite
	@echo
	$(BIN)/s2s eval --model $(RUN)
	@echo "the attention picture is in $(RUN)/attention.svg: open it in a browser"

test: $(READY)  ## all tests but the slow ones (under 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' --durations 10

contract: $(READY)  ## the laws that every encoder, decoder and attention keeps
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/contract tests/oracles tests/test_architecture.py -m 'not slow'

slow: $(READY)  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow --durations 10

lint: $(READY)  ## ruff: style and imports
	$(BIN)/ruff check s2s scripts tests
	$(BIN)/ruff format --check s2s scripts tests

type: $(READY)  ## mypy, strict
	$(BIN)/mypy

check: lint type test  ## what a change must pass

bench: $(READY)  ## training and translation speed on this machine
	$(BIN)/python scripts/bench/speed.py

clean:  ## remove the environment, caches and runs
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
