# Everything a person runs here. `make help` lists the targets.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.tools/uv/bin/uv)
PY := .venv/bin/python
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

# Of those on a store, the ones that ask it for more than any PostgreSQL must do; and no server of a test's own.
STORE_TESTS := tests/integration/store tests/integration/cloud/test_analytics.py \
	tests/integration/cloud/test_kva_analytics.py tests/integration/assets/test_rollups.py \
	--ignore tests/integration/store/test_crash.py --ignore tests/integration/store/test_arrays.py

# Some environments forbid bytecode; starting a dozen Python processes without it costs twice the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo edge test check bench prove timescale lock format clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## Install everything and run the closed loop once
	@.venv/bin/primespark demo $(ARGS)

edge: .venv/.edge ## Install what a device needs, and nothing else

# Beside numpy 1, which a Hailo chip's package needs, what fits it.
extra-%: .venv/bin/python
	$(UV) pip install --python $(PY) --editable '.[$*]' --constraint requirements/$$($(PY) -c \
		'import numpy; print("edge-hailo" if numpy.__version__ < "2" else "dev")' 2>/dev/null || echo dev).lock

test: .venv/.dev ## Install everything and run the tests
	$(PY) -m pytest $(ARGS)

check: .venv/.dev ## Style, types, import rules, locks, documents in step
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	tools/check_locks $(UV)

bench: .venv/.dev ## Measure the promised figures
	$(PY) -m benchmarks $(ARGS)

# What `benchmarks/windows.py` compares with.
.tools/stream-peers: $(UV) pyproject.toml
	$(UV) venv --quiet --clear --python $(PYTHON) $@
	$(UV) pip install --quiet --python $@/bin/python --group stream-peers

prove: .venv/.dev ## The long proofs: thousands of histories, many kills
	PROVE=1 $(PY) -m pytest -m prove $(ARGS)

timescale: .venv/.dev ## The store's tests on a TimescaleDB (from a Debian)
	tools/fetch_timescaledb .tools/timescaledb
	$(PY) -m pytest --require-all --timescaledb .tools/timescaledb $(or $(ARGS),$(STORE_TESTS))

format: .venv/.dev ## Format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: $(UV) ## Renew the lock files
	$(COMPILE) --upgrade --extra demo --group dev pyproject.toml -o requirements/dev.lock
	$(COMPILE) --upgrade --extra demo --group build -c requirements/dev.lock pyproject.toml -o requirements/demo.lock
	$(COMPILE) --upgrade --extra edge --group build -c requirements/dev.lock pyproject.toml -o requirements/edge.lock
	cp requirements/edge.lock requirements/edge-hailo.lock
	$(COMPILE) --extra edge --group build -c requirements/hailo.in pyproject.toml -o requirements/edge-hailo.lock
	$(COMPILE) --upgrade requirements/uv.in -o requirements/uv.lock

clean: ## Remove what was installed and made
	rm -rf .venv .tools .primespark .artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis

.tools/uv/bin/uv: requirements/uv.lock
	$(PYTHON) -m venv .tools/uv
	.tools/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@touch $@

.venv/bin/python: | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11"; echo "  try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(UV) venv --quiet --python $(PYTHON) .venv

.venv/.edge: requirements/edge.lock pyproject.toml | .venv/bin/python
	$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/edge.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

# Compiled here, once: left to the first start, a dozen processes compile the same modules at the same time.
.venv/.demo: requirements/demo.lock pyproject.toml | .venv/bin/python
	$(UV) pip install --quiet --compile-bytecode --python $(PY) --require-hashes -r requirements/demo.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements/dev.lock pyproject.toml | .venv/bin/python
	$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/dev.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@ .venv/.demo .venv/.edge
