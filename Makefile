# Every target works from a fresh clone: it makes its own .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Two processes of one thread each, which leave each other a core; the tests of a file share what
# they set up, and so stay in one of them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test lint bench nightly clean
.DEFAULT_GOAL := demo

demo: $(VENV)/run.stamp
	$(BIN)/onnxcp demo

test: $(VENV)/dev.stamp
	$(PYTEST) -m "not nightly"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.charnet
	$(BIN)/python -m benchmarks.vgg
	$(BIN)/python -m benchmarks.decompose

nightly: $(VENV)/dev.stamp
	$(PYTEST) -m nightly

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnxcp needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV)
