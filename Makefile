# Everything from nothing: `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test test-all fuzz lint format types bench bench-approximate docs clean help

help:
	@echo "make demo      optimize a sample network and show the savings"
	@echo "make test      run the tests (make test-all: the slow ones too)"
	@echo "make fuzz      check random networks for MINUTES=5"
	@echo "make lint      ruff (lint and format) and mypy --strict"
	@echo "make bench     print the figures that the README quotes"
	@echo "make bench-approximate  gains within budgets, against the usual ways (ARGS=--large, --ablation)"

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("graphopt needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	@mkdir -p .demo
	$(BIN)/graphopt optimize models/conv5x5_digits.onnx --data models/digits.npz --max-drop 0.005 \
		--output .demo/conv5x5_digits.opt.onnx --report .demo/report.json --html .demo/report.html
	@echo
	@echo "The network: .demo/conv5x5_digits.opt.onnx   The report: .demo/report.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

# MARK=slow runs only what `make test` leaves out.
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(if $(MARK),-m $(MARK))

# Random networks for MINUTES; what fails is kept in .fuzz, as small as it gets.
MINUTES ?= 5
SEED ?= 0
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) --failures .fuzz

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/zoo.py

# ARGS='--json results.json' goes on from an interrupted run; see the file for --ablation and --large.
bench-approximate: $(VENV)/.dev
	$(BIN)/python benchmarks/approximate.py $(ARGS)

docs: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mkdocs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
