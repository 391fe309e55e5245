# `make demo` and `make test` on a machine that has python3 (3.10 or later) and a package index.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: help demo test test-kernels lint clean

help:
	@echo "make demo   convert the small embedded model, ask it three questions, chat"
	@echo "make test   the whole test suite"
	@echo "make test-kernels   the C++ tests, under sanitizers and on an emulated ARM machine, where tools for it are found"
	@echo "make lint   ruff check, and whether ruff and clang-format would change anything"
	@echo "make clean  remove $(VENV)"

demo: $(INSTALLED)
	@$(VENV)/bin/gptoss-mlx demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

# Apart from `make test`, which covers the kernels through Python: these need a compiler, and half a minute of it each.
test-kernels:
	tests/kernels/run

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard gptoss_mlx/kernels/native/*) tests/kernels/kernels_test.cc

$(INSTALLED): pyproject.toml build_backend.py CMakeLists.txt $(wildcard gptoss_mlx/kernels/native/*)
	@if command -v uv >/dev/null; then \
		echo "installing into $(VENV) with uv"; \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(VENV) --editable '.[test]'; \
	else \
		echo "installing into $(VENV) with pip (this takes a minute or two)"; \
		$(PYTHON) -m venv $(VENV) && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV)
