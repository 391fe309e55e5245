# `make demo` and `make test` on a machine that has python3 (3.10 or later) and a package index.

# The Python of $(VENV), where there is one. Another one makes it anew: `make demo PYTHON=python3.12`.
PYTHON ?= $(or $(wildcard $(VENV)/bin/python),python3)
# Without its caches, every process of the tests would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
PYTHON_STAMP := $(VENV)/checked-python
DEMO := $(VENV)/installed-demo
TEST := $(VENV)/installed-test
PACKAGE := $(VENV)/installed-package
SOURCES := pyproject.toml build_backend.py CMakeLists.txt $(wildcard gptoss_mlx/kernels/native/*)

# In words of old Pythons, which are what it is for.
define CHECK_PYTHON
import platform, sys
if sys.version_info < (3, 10):
    sys.exit("error: Python 3.10 or later is needed, and %s is %s: name another one, as in `make demo PYTHON=python3.12`"
             " (python.org has them)" % (sys.executable, platform.python_version()))
if sys.platform == "darwin" and platform.machine() != "arm64":
    sys.exit("error: %s is for Intel processors, and MLX needs Apple silicon: there, name a Python that does not run under"
             " Rosetta, as in `make demo PYTHON=/opt/homebrew/bin/python3`" % sys.executable)
print(sys.version.replace("\n", " "))
endef
export CHECK_PYTHON

.PHONY: help demo test test-timing test-kernels test-macos test-all package lint docs clean FORCE

help:
	@echo "make demo          convert the small embedded model, ask it three questions, chat"
	@echo "make test          the daily test suite, in parallel"
	@echo "make test-timing   the tests that are decided by a clock, one after another: on a quiet machine"
	@echo "make test-kernels  the C++ tests, under sanitizers and on an emulated ARM machine, where their tools are found"
	@echo "make test-macos    the wheel for a Mac, cross-compiled and checked, where its tools are found"
	@echo "make package       the files for a package index in dist/, tried without compiler and network: PYTHONS=..."
	@echo "make test-all      every test: slow, timing, kernels, macos and package too"
	@echo "make lint          ruff, clang-format and mypy: nothing is changed"
	@echo "make docs          write what is generated in docs/: commands, the page for man, the memory plan, the picture"
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

test-macos:
	PYTHON=$(PYTHON) tests/macos/run

# For the oldest and the newest Python that are found, or those in PYTHONS.
package: $(PACKAGE)
	$(VENV)/bin/python release/check.py $(PYTHONS)

# What takes gigabytes, or is timed, runs alone.
test-all: test test-kernels test-macos package
	$(VENV)/bin/python -m pytest -m "slow or timing" --hypothesis-profile=thorough

lint: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard gptoss_mlx/kernels/native/*) tests/kernels/*.cc
	$(VENV)/bin/mypy

docs: $(TEST)
	$(VENV)/bin/python docs/commands.py
	$(VENV)/bin/python docs/man.py
	$(VENV)/bin/python docs/plan.py
	$(VENV)/bin/python docs/terminal.py

$(DEMO): WHAT := .
$(TEST): WHAT := .[test]
$(PACKAGE): WHAT := .[package]
$(DEMO) $(TEST) $(PACKAGE): $(SOURCES) $(PYTHON_STAMP)
	@if command -v uv >/dev/null; then \
		echo "installing into $(VENV) with uv"; \
		{ [ -x $(VENV)/bin/python ] || uv venv --quiet --allow-existing --python $(PYTHON) $(VENV); } && \
		uv pip install --quiet --python $(VENV) --editable '$(WHAT)'; \
	else \
		echo "installing into $(VENV) with pip (this takes a minute or two)"; \
		{ [ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV); } && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '$(WHAT)'; \
	fi
	@touch $(DEMO) $@

# New only where $(VENV) is not, or was made with another Python.
$(PYTHON_STAMP): FORCE
	@wanted=$$($(PYTHON) -c "$$CHECK_PYTHON") || exit 1; \
	[ "$$wanted" = "$$($(VENV)/bin/python -c "$$CHECK_PYTHON" 2>/dev/null)" ] || rm -rf $(VENV); \
	[ -f $@ ] || { mkdir -p $(VENV) && touch $@; }

clean:
	rm -rf $(VENV)
