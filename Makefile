# Two commands need nothing but Python >= 3.10 and a C++ compiler: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
TEST_WORKERS ?= 2

.PHONY: demo test check clean

demo: .venv/demo
	$(BIN)/qn-deploy demo

test: .venv/test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "qn-deploy needs Python 3.10 or newer; try make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "this Python can't make a virtual environment; on Debian: apt-get install python3-venv"; exit 2; }

# torch brings its CUDA libraries along, about 3 GB: the first run takes a few minutes.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@
