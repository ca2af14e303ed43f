# Set-up and the project's commands. `make train` and `make test` need make and Python >= 3.10, nothing else.
#   ARGS         passed on:              make train ARGS="env=cartpole algorithm=ppo"     make test ARGS="-k names"
#   PYTHON       another interpreter:    make train PYTHON=python3.12
#   CONSTRAINTS  other versions:         make train CONSTRAINTS=my-constraints.txt
#   PIP_ARGS     more options of pip:    see constraints.txt
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# An old interpreter would only fail later, deep inside pip: say at once which one it is and what to type.
CHECK_PYTHON = import sys; sys.exit(0 if sys.version_info >= (3, 10) else f"{sys.executable} is Python {sys.version.split()[0]}, but hpc_marl needs 3.10 or newer; name one: make PYTHON=/path/to/python3.12")

.DEFAULT_GOAL := help
.PHONY: help train test lint test-slow test-slurm bench scores clean

help:  ## show this text
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

train: $(INSTALLED)  ## set up, then train the default experiment (or what ARGS say) on this machine
	$(BIN)/hpc-marl train $(ARGS)

test: lint  ## set up, then lint, check types and run the fast tests
	$(BIN)/pytest -m "not slow and not slurm" $(ARGS)

lint: $(INSTALLED)  ## ruff and mypy only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-slow: $(INSTALLED)  ## the learning tests, which take minutes
	$(BIN)/pytest -m "slow and not slurm" $(ARGS)

test-slurm: $(INSTALLED)  ## the tests on a Slurm cluster of many nodes on this machine (root, Debian)
	BIN=$(BIN) tests/slurm/run $(ARGS)

bench: $(INSTALLED)  ## every benchmark's table: ours, peers, the limit
	@for script in $(filter-out benchmarks/scores.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done

scores: $(INSTALLED)  ## the learning results of 5 seeds each: tens of minutes; continued where it was interrupted
	$(BIN)/python benchmarks/scores.py --output results.json $(ARGS)

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find hpc_marl tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[dev,envs]'
	@touch $@
	@echo "Installed. To have hpc-marl on your path: source $(BIN)/activate"
