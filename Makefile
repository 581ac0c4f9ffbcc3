# `make` lists the targets. Everything lives in .venv, .cache, build and dist; `make clean` removes all but .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
ONLY ?=
RESUME ?=
MODES ?= session transaction
SERVERS ?= newest yugabyte
WORKERS ?= 2

# Set up again only when what is installed changes: the part of pyproject.toml before the tools' settings.
STAMP := $(VENV)/.riverq-$(shell sed '/^\[tool\.pytest/,$$d' pyproject.toml | cksum | cut -d' ' -f1)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv and install riverq in it, with everything for development (PYTHON=… picks the interpreter)

$(STAMP):
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  for python in $${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do \
	    if command -v $$python >/dev/null && $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "riverq needs Python 3.11 or newer; none found as $${PYTHON:-python3.13, python3.12, python3.11, python3, python} (try make PYTHON=/path/to/python)" >&2; \
	    exit 1; \
	  fi; \
	  rm -rf $(VENV); \
	  if ! $$found -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    echo "$$found cannot make a virtual environment (Debian and Ubuntu: apt-get install python3-venv)" >&2; \
	    exit 1; \
	  fi; \
	fi
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/.riverq-*
	@touch $@

.PHONY: test
test: setup ## Run the tests (ARGS="tests/query -k claim" picks some, WORKERS=0 runs them in one process)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

.PHONY: test-slow
test-slow: setup ## Run the tests that `make test` leaves out, because they wait on a real clock or for real processes
	$(BIN)/pytest -n $(WORKERS) --dist load -m slow $(ARGS)

.PHONY: test-faults
test-faults: setup ## Kill, stop and cut off real workers for minutes, then prove every job's fate (ARGS="-k two_minutes")
	RIVERQ_FAULTS=1 $(BIN)/pytest -n 0 -v tests/faults $(ARGS)

.PHONY: test-interop
test-interop: setup ## Run riverq and the real Go River as one fleet, and print what was shown (needs Go; ARGS="-k snooze")
	RIVERQ_INTEROP=1 $(BIN)/pytest -n $(WORKERS) --dist load tests/interop $(ARGS)

# Whatever goes through an engine of the tests goes through PgBouncer here; without it these tests are skipped, and say so.
.PHONY: test-pgbouncer
test-pgbouncer: setup ## Run the tests of queries, inserts, work, leader and control through PgBouncer (MODES="session transaction")
	@for mode in $(MODES); do \
	  echo "== PgBouncer in $$mode mode"; \
	  $(BIN)/pytest -n $(WORKERS) --dist loadfile --pgbouncer $$mode $(ARGS) || exit 1; \
	done

# The folders whose tests ask the server for anything: the statements on all adapters, what runs on top of them on one,
# because every adapter was tried on it by `make test`, and all of it on all would take a quarter of an hour for a server.
# Nothing may be left of a choice in ARGS for one of the two runs (5: no tests).
.PHONY: test-servers
test-servers: setup ## Run the same tests on the newest Postgres and on a simulated YugabyteDB (SERVERS="newest yugabyte")
	@for server in $(SERVERS); do \
	  echo "== Server: $$server"; \
	  $(BIN)/pytest -n $(WORKERS) --dist loadfile --server $$server tests/query $(ARGS) || [ $$? -eq 5 ] || exit 1; \
	  $(BIN)/pytest -n $(WORKERS) --dist loadfile --server $$server --adapter psycopg \
	    tests/client tests/worker tests/maintenance tests/liveness tests/test_*.py $(ARGS) || [ $$? -eq 5 ] || exit 1; \
	done

.PHONY: test-all-pythons
test-all-pythons: ## Run the tests on every Python from 3.11 on that is found
	@for version in 3.11 3.12 3.13 3.14; do \
	  if command -v python$$version >/dev/null; then \
	    echo "== Python $$version"; \
	    $(MAKE) test VENV=.cache/venv-$$version PYTHON=python$$version; \
	  else \
	    echo "== Python $$version is not installed, left out"; \
	  fi; \
	done

.PHONY: lint
lint: setup ## Check style, format, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: format
format: setup ## Format the code, and fix what can be fixed without judgement
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: demo
demo: setup ## See riverq work, on a Postgres of its own (ARGS=--help shows the options)
	$(BIN)/riverq demo $(ARGS)

.PHONY: db
db: setup ## Run a throw-away Postgres until Ctrl-C, and print its URL
	$(BIN)/python -m riverq.demo.postgres

.PHONY: build
build: setup ## Build the wheel and the sdist into dist/, and try the wheel in a fresh environment
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet "$$(echo dist/*.whl)[all]"
	cd build && wheel/bin/python -c 'import riverq, riverq_migrations.versions; from importlib.metadata import entry_points; \
	  print(*(point.load() for point in entry_points(group="riverq.drivers")), sep="\n")'
	cd build && wheel/bin/riverq version

.PHONY: bench
bench: setup ## Measure riverq, Go River and other queues (ONLY="throughput insert" picks questions, RESUME=1 continues, ARGS=--help)
	$(BIN)/python -m benchmarks $(ONLY) $(if $(filter-out 0 no,$(RESUME)),--resume) $(ARGS)

.PHONY: clean
clean: ## Remove what was built or cached; .venv stays
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
