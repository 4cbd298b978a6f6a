# vnet-tui: the commands a person needs. Each sets up what it lacks first; see scripts/setup.sh.
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: run setup setup-dev test lint bench bench-fastpath screenshots demo demo-recording clean

run: setup
	@exec $(VENV)/bin/vnet-tui

setup:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

demo: setup
	@exec $(VENV)/bin/vnet-tui demo

test: setup-dev
	$(PY) -m pytest -q $(ARGS) tests --ignore=tests/bench

lint: setup-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	shellcheck scripts/*.sh .ci/run

bench: setup-dev
	$(PY) -m tests.bench

bench-fastpath: setup-dev
	$(PY) -m tests.bench fastpath

demo-recording: setup-dev
	scripts/demo-recording.sh

screenshots: setup-dev
	$(PY) -m tests.support.screenshots

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache
