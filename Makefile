# make demo   the quickstart: install, run grids/quickstart.yaml, print three leaderboards
# make test   install, lint, type-check, run the default tests
# Both do all their own set-up in .venv; a second call finds it done.

VENV ?= .venv
# The first interpreter that really runs, is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
MARK ?= not slow
# Test processes at once; each computes on one thread. A file's tests stay together: they share what is slow to start.
JOBS ?= auto
export PYTHONUNBUFFERED := 1

.PHONY: demo test slow lint install install-dev clean-venv

demo: $(VENV)/.installed
	@$(RUN) -m suite.launch grids/quickstart.yaml
	@$(RUN) -m suite.report grids/quickstart.yaml

test: lint
	@.ci/system-packages slurm browser tex || [ $$? -eq 3 ]
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n $(JOBS) --dist loadfile -m "$(MARK)" --durations=15

slow: MARK = slow
slow: test

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check suite tests
	$(VENV)/bin/ruff format --check suite tests
	$(VENV)/bin/mypy

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer with venv is needed - set PYTHON=/path/to/python3.11" >&2; exit 2; }
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
