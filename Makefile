# Everything from a machine with Python >= 3.11 and its package index:  make run   make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: setup run test check
setup: $(VENV)/installed

run: setup
	$(BIN)/bench run --method ours --method random --queries 2 --k 500 --workers 2

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest
