# `make train` and `make test` need Python 3.11 or newer and nothing else: both create $(VENV) and
# install the pins of requirements.txt when these change. Nothing is written outside the checkout
# but pip's own cache.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= experiments/configs/jet_digits.py
WORKDIR ?= runs/jet_digits

BIN := $(VENV)/bin
STAMP := $(VENV)/installed.txt

# These tools keep caches and settings in the home folder unless told otherwise.
CACHE := $(abspath $(VENV))/cache
export MPLCONFIGDIR := $(CACHE)/matplotlib
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter
export JUPYTER_DATA_DIR := $(CACHE)/jupyter
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime

.PHONY: install train lint test test-slow

install: $(STAMP)

$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
	  sys.exit(f"normjax needs Python 3.11 or newer, but $(PYTHON) is {v}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	cp requirements.txt $@

train: $(STAMP)
	$(BIN)/python -m experiments.train --config=$(CONFIG) --workdir=$(WORKDIR)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow
