# Each target first installs what it needs into .venv: one stamp per extra, renewed when pyproject.toml changes.
# ARGS goes to the command: make test ARGS="-k pooling", make bench ARGS="--quick".
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check
ARGS ?=

.PHONY: demo test bench lint clean

demo: .venv/.stamp-examples
	$(BIN)/fastconv train digits $(ARGS)

test: .venv/.stamp-test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

bench: .venv/.stamp-bench
	$(BIN)/python -m bench $(ARGS)

lint: .venv/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp-venv:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.stamp-%: pyproject.toml | .venv/.stamp-venv
	$(PIP) --editable '.[$*]'
	@touch $@
