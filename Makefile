# One virtual environment, made once from the pinned versions; every target uses it.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

# Its hooks read the code of this folder; the notice is about a program that we do not use.
MKDOCS := PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

.PHONY: help install demo test test-all docs docs-serve cluster cluster-stop lint format lock clean
.DEFAULT_GOAL := help

help:  ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	|| sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install into .venv; every other target does so too

demo: $(VENV)/.installed  ## Train sigmaReparam beside its pre-LN baseline and draw the picture
	$(BIN)/python -m launcher.demo

test: $(VENV)/.installed  ## Run the tests, without the slow ones
	$(BIN)/pytest -n 2 -m "not slow"

test-all: $(VENV)/.installed  ## Run every test
	$(BIN)/pytest -n 2

docs: $(VENV)/.installed  ## Build the documentation's site into site/, warnings as errors
	$(MKDOCS) build --quiet --clean
	@echo "site/index.html; with a search: make docs-serve"

docs-serve: $(VENV)/.installed  ## Serve it on http://127.0.0.1:8000 and build it again when a page changes
	$(MKDOCS) serve

cluster: $(VENV)/.installed  ## Start a Slurm of four nodes on this machine, without root (cluster/README.md)
	$(BIN)/python -m cluster install
	$(BIN)/python -m cluster start

cluster-stop:  ## Stop it, and every process of its jobs
	$(BIN)/python -m cluster stop

lint: $(VENV)/.installed  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed  ## Put the code into its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(VENV)/.installed  ## Pin the versions that .venv holds now
	{ echo '# Every version an install uses (pip --constraint). Written by `make lock`.'; \
	  $(BIN)/pip freeze --all --exclude-editable | grep -i '^torch=='; \
	  $(BIN)/pip freeze --all --exclude-editable | grep -v -i -E '^(pip|torch|triton)=='; } \
	| sed 's/+[a-z0-9.]*$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	touch $(VENV)/.installed

clean:  ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# DeepSpeed comes as source and looks at the installed torch while it is built: torch first, then no isolated build,
# which would fetch another one.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Steadytrain needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "PYTHON = $(PYTHON): Steadytrain needs Python 3.11 or newer" >&2; exit 1; }
	@echo "Installing into $(VENV): a few minutes, once"
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel ninja packaging torch
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
