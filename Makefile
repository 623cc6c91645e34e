# Three commands do everything on a bare machine with Python 3.11 or later and make: `make demo`, `make test` (all tests)
# and `make quick` (those that take less than half a second of processor time each).
PYTHON ?= python3
BIN := .venv/bin
# `make test CONSTRAINTS=` takes the newest versions of everything that pyproject.toml allows.
CONSTRAINTS ?= --constraint constraints.txt
# More processes than cores: many tests wait for other processes.
JOBS ?= 4
# A file's tests share what they set up, so they stay together. Files with slow tests come first: tests/conftest.py.
# Without compiled modules on disk every process of the tests would compile all of them, with their checks of shapes.
# In memory, where there is room for it, tests that write thousands of small files take a sixth less processor time.
ROOM_KIB := $(shell df --output=avail --block-size=1K /dev/shm 2>/dev/null | tail -n 1)
TEMPORARY := $(shell test "$(ROOM_KIB)" -ge 8000000 2>/dev/null && echo TMPDIR=/dev/shm)
PYTEST := $(TEMPORARY) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick check docs dist bench clean

demo: .venv/installed
	$(BIN)/multiseg demo --out demo

test: .venv/test-installed
	$(PYTEST)

quick: .venv/test-installed
	$(PYTEST) -m "not slow"

check: .venv/test-installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# The site, built without the network. A page that loads something from outside fails.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/site_tools/outer_requests.py site

# The source distribution and the wheel, checked. The tools have an environment of their own: releases need them alone.
dist:
	$(PYTHON) -m venv .venv/release
	.venv/release/bin/pip install --quiet 'build>=1.2' 'twine>=6'
	rm -rf dist
	.venv/release/bin/python -m build --outdir dist
	.venv/release/bin/twine check --strict dist/*

bench: .venv/test-installed
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.inference

# pip compiles what it installs on one processor only. Some packages contain files that this Python cannot compile.
PIP := $(BIN)/pip install --quiet --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true

# torch first and by its exact version: without it, pip may choose a build of several gigabytes.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(PIP) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) $(CONSTRAINTS) --editable .
	$(COMPILE)
	touch $@

.venv/test-installed: .venv/installed
	$(PIP) $(CONSTRAINTS) --editable '.[test]'
	$(COMPILE)
	touch $@

.venv/docs-installed: .venv/installed
	$(PIP) $(CONSTRAINTS) --editable '.[docs]'
	$(COMPILE)
	touch $@

# What a hospital installs: our requirements with the SHA-256 of every file that may be taken. torch is left out, since
# each of its builds (for processors, for each CUDA) is another file: docs/federation.md says how it is installed. colorama
# is for Windows.
requirements-site.txt: pyproject.toml constraints.txt
	printf 'torch\ncolorama\n' | uv pip compile pyproject.toml --quiet --upgrade --constraint constraints.txt --excludes /dev/stdin --universal \
		--python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make $@" --output-file $@

clean:
	rm -rf .venv demo site dist
