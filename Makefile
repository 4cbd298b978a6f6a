# vnet-tui: the commands a person needs. Each sets up what it lacks first; see scripts/setup.sh.
VENV := .venv
PY := $(VENV)/bin/python
# Tests that run at the same time: many wait more than they work.
JOBS ?= 3
TESTS ?= tests --ignore=tests/bench

LINTERS := mypy imports ruff clang shellcheck

.PHONY: run setup setup-dev check test test-kernels test-engines fuzz fuzz-rules fuzz-kill fuzz-flush fuzz-reach soak lint bench \
	bench-fastpath screenshots demo demo-recording clean $(LINTERS)

run: setup
	@exec $(VENV)/bin/vnet-tui

setup:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

demo: setup
	@exec $(VENV)/bin/vnet-tui demo

test: setup-dev
	$(PY) -m pytest -q -n $(JOBS) $(ARGS) $(TESTS)

# For every edit: all that needs neither root nor the kernel.
check: JOBS = 4
check: setup-dev
	@$(MAKE) --no-print-directory --output-sync -kj2 $(LINTERS)
	$(PY) -m pytest -q -n $(JOBS) -m "not root" $(ARGS) tests/unit tests/ui

# The fast path on Debian's kernels, in virtual machines: some of "bookworm trixie backports".
test-kernels: setup-dev
	@scripts/setup.sh kernels
	$(PY) -m tests.kernels $(ARGS) $(KERNELS)

# The tests of container engines with other versions than the installed ones; ENGINES= some of them, see
# tests/engines/packages.py; TESTS= some of the tests.
test-engines: setup-dev
	$(PY) -m tests.engines $(if $(filter command\ line,$(origin TESTS)),--tests="$(TESTS)") $(if $(ARGS),--pytest="$(ARGS)") $(ENGINES)

fuzz: setup-dev
	VNET_FUZZ=1000000 $(PY) -m pytest -q $(ARGS) tests/datapath/test_fuzz.py

# Random rule sets and changes through the kernel's path and the fast path; SEED= repeats a run, CASE= one case of it.
fuzz-rules: setup-dev
	VNET_FUZZ_RULES=$(or $(COUNT),500) VNET_FUZZ_SEED=$(SEED) VNET_FUZZ_CASE=$(CASE) \
		$(PY) -m pytest -q -s $(ARGS) tests/kernel/test_fastpath_fuzz_rules.py

# Changes, undos and recoveries killed at random calls; COUNT= trials, SEED= repeats a run, CASE= one trial of it.
fuzz-kill: setup-dev
	VNET_FUZZ_KILL=$(or $(COUNT),500) VNET_FUZZ_SEED=$(SEED) VNET_FUZZ_CASE=$(CASE) \
		$(PY) -m pytest -q -s $(ARGS) tests/kernel/test_kill_fuzz.py

# The static answer of `why` against real probes; COUNT= hosts, SEED= repeats a run, CASE= one host of it.
fuzz-reach: setup-dev
	VNET_FUZZ_REACH=$(or $(COUNT),300) VNET_FUZZ_SEED=$(SEED) VNET_FUZZ_CASE=$(CASE) \
		$(PY) -m pytest -q -s $(ARGS) tests/kernel/test_reach_fuzz.py

# Random sequences of flushes against the agent; SEED= repeats a run.
fuzz-flush: setup-dev
	VNET_FUZZ_FLUSH=$(or $(COUNT),10000) VNET_FUZZ_SEED=$(SEED) \
		$(PY) -m pytest -q -s $(ARGS) tests/kernel/test_agent_flushes.py

# A large host that changes all the time: ten minutes, or SECONDS=.
soak: setup-dev
	$(PY) -m tests.soak $(SECONDS) $(ARGS)

lint: setup-dev
	@$(MAKE) --no-print-directory --output-sync -kj2 $(LINTERS)

ruff:
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

mypy:
	$(VENV)/bin/mypy

imports:
	$(VENV)/bin/lint-imports --no-cache --no-logo

# The fast path's C with all warnings.
clang:
	$(PY) -m tests.support.c_warnings

shellcheck:
	$(if $(or $(shell command -v shellcheck),$(VNET_REQUIRE_ROOT)),shellcheck scripts/*.sh .ci/run,@echo "no shellcheck here: left out. Try: apt install shellcheck")

# SIZE=tiny shows within some two minutes that each benchmark works.
bench: setup-dev
	VNET_BENCH_SIZE=$(SIZE) $(PY) -m tests.bench $(BENCHES)

bench-fastpath: setup-dev
	$(PY) -m tests.bench fastpath

demo-recording: setup-dev
	scripts/demo-recording.sh

screenshots: setup-dev
	$(PY) -m tests.support.screenshots

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache
