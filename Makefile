# `make demo` trains and evaluates a small language model.  `make quick` runs the tests that need no training but one
# (under 90 seconds on two cores), `make test` runs all tests, `make types` the type checker, `make docs` builds the pages.
# Each makes the environment in .venv first, with the versions that constraints.txt pins.
.PHONY: demo quick test types docs lint clean

PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo
# pip builds the project in an environment of its own; the variable makes the pins hold there too.
INSTALL = PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python setup.cfg constraints.txt
	@echo "installing into .venv (about 2 minutes, 2 GB)"
	$(INSTALL) --editable .
	@touch $@

.venv/.test: .venv/bin/python setup.cfg constraints.txt
	@echo "installing into .venv with the test extra (about 2 minutes, 2 GB)"
	$(INSTALL) --editable '.[test]'
	@touch $@ .venv/.demo

.venv/.docs: .venv/.test
	$(INSTALL) --editable '.[docs]'
	@touch $@

demo: .venv/.demo
	@rm -rf $(DEMO)
	$(BIN)/lm-trials demo --output_dir $(DEMO)

test quick: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(SELECTION) $(PYTEST)

test: types
quick: SELECTION = -m "not slow and not end_to_end" --hypothesis-profile quick

types: .venv/.test
	$(BIN)/python -m mypy

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir out/site

lint: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO)
