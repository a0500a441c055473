# make demo   the quickstart: install, run grids/quickstart.yaml, print three leaderboards
# make test   install, lint, type-check, run the default tests
# Both do all their own set-up in .venv; a second call finds it done.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python
MARK ?= not slow
export PYTHONUNBUFFERED := 1

.PHONY: demo test slow lint install install-dev clean-venv

demo: $(VENV)/.installed
	@$(RUN) -m suite.launch grids/quickstart.yaml
	@$(RUN) -m suite.report grids/quickstart.yaml

test: lint
	@.ci/system-packages slurm browser || [ $$? -eq 3 ]
	$(VENV)/bin/pytest -m "$(MARK)" --durations=15

slow: MARK = slow
slow: test

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check suite tests
	$(VENV)/bin/ruff format --check suite tests
	$(VENV)/bin/mypy

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed - set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@.ci/system-packages ffcv
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ffcv]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ffcv,dev]'
	@touch $@

clean-venv:
	rm -rf $(VENV)
