# One door for developers and CI. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help env demo test slow lint clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 8

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.full: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[classify,export,postgres,dev]'
	@touch $@

env: $(VENV)/.full  ## make .venv with every extra, and run nothing

demo: $(VENV)/.base  ## train the built-in demo from nothing: about two minutes on two cores, no network
	$(BIN)/python -m hsr_train preset=demo

lint: $(VENV)/.full  ## ruff, format and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, a thread each: small networks gain little from more threads. In the order of tests/conftest.py: by
# number of tests, the file that takes longest would come last. Python may keep what it compiled: else every process that
# a test starts compiles the package anew, and `make slow` all tests that `make test` has compiled.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint  ## lint, then the fast tests
	$(PYTEST)

slow: $(VENV)/.full  ## the tests that take minutes
	$(PYTEST) -m 'slow and not gpu'

clean:  ## remove the environment
	rm -rf $(VENV)
