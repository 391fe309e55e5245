# `make demo` and `make test` on a machine that has python3 (3.10 or later) and a package index.

PYTHON ?= python3
# Without its caches, every process of the tests would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
DEMO := $(VENV)/installed-demo
TEST := $(VENV)/installed-test
SOURCES := pyproject.toml build_backend.py CMakeLists.txt $(wildcard gptoss_mlx/kernels/native/*)

.PHONY: help demo test test-timing test-kernels test-all lint docs clean

help:
	@echo "make demo          convert the small embedded model, ask it three questions, chat"
	@echo "make test          the daily test suite, in parallel"
	@echo "make test-timing   the tests that are decided by a clock, one after another: on a quiet machine"
	@echo "make test-kernels  the C++ tests, under sanitizers and on an emulated ARM machine, where their tools are found"
	@echo "make test-all      every test: slow, timing and kernels too"
	@echo "make lint          ruff, clang-format and mypy: nothing is changed"
	@echo "make docs          write what is generated in docs/: commands, the memory plan, the picture"
	@echo "make clean         remove $(VENV)"

demo: $(DEMO)
	@$(VENV)/bin/gptoss-mlx demo

test: $(TEST)
	$(VENV)/bin/python -m pytest -n auto --dist worksteal

test-timing: $(TEST)
	$(VENV)/bin/python -m pytest -m timing

# Apart from `make test`, which covers the kernels through Python: these need a compiler, and half a minute of it each.
test-kernels:
	tests/kernels/run

# What takes gigabytes, or is timed, runs alone.
test-all: test test-kernels
	$(VENV)/bin/python -m pytest -m "slow or timing" --hypothesis-profile=thorough

lint: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard gptoss_mlx/kernels/native/*) tests/kernels/*.cc
	$(VENV)/bin/mypy

docs: $(TEST)
	$(VENV)/bin/python docs/commands.py
	$(VENV)/bin/python docs/plan.py
	$(VENV)/bin/python docs/terminal.py

$(DEMO): WHAT := .
$(TEST): WHAT := .[test]
$(DEMO) $(TEST): $(SOURCES)
	@if command -v uv >/dev/null; then \
		echo "installing into $(VENV) with uv"; \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(VENV) --editable '$(WHAT)'; \
	else \
		echo "installing into $(VENV) with pip (this takes a minute or two)"; \
		$(PYTHON) -m venv $(VENV) && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '$(WHAT)'; \
	fi
	@touch $(if $(findstring test,$@),$(DEMO)) $@

clean:
	rm -rf $(VENV)
